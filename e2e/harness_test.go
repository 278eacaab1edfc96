package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"transom/cmd/transom/demo/bank"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for something that takes no time on a good day.
const patience = 20 * time.Second

// backend is a running bank.
type backend struct {
	*bank.Bank
	addr string
	srv  *grpc.Server
	// canceled gets the method of every call that was cancelled, started that of every unary call that begins.
	canceled, started chan string
}

// startBank runs a bank until the test ends.
func startBank(t *testing.T, cfg bank.Config) *backend {
	t.Helper()
	b := &backend{canceled: make(chan string, 64), started: make(chan string, 64)}
	cfg.Canceled = func(method string, _ error) {
		select {
		case b.canceled <- method:
		default:
		}
	}
	b.Bank = bank.New(cfg)
	begin := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		select {
		case b.started <- info.FullMethod:
		default:
		}
		return handler(ctx, req)
	}
	b.srv = grpc.NewServer(append(b.ServerOptions(), grpc.MaxRecvMsgSize(64<<20), grpc.ChainUnaryInterceptor(begin))...)
	b.Register(b.srv)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.srv.Serve(l) })
	t.Cleanup(func() {
		b.srv.Stop()
		wg.Wait()
	})
	return b
}

// forget drops what was reported of earlier calls.
func (b *backend) forget() {
	for {
		select {
		case <-b.canceled:
		case <-b.started:
		default:
			return
		}
	}
}

// awaitStart waits until a unary call of method has begun.
func (b *backend) awaitStart(t *testing.T, method string) {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case m := <-b.started:
			if m == method {
				return
			}
		case <-limit:
			t.Fatalf("%s was not called", method)
		}
	}
}

// proxy is a running transom process.
type proxy struct {
	cmd *exec.Cmd
	// plain and secure are host:port of the plaintext and the TLS listener; the latter also serves HTTP/3.
	plain, secure string
	ca            string // PEM file of the certificate
	pool          *x509.CertPool

	mu     sync.Mutex
	stderr bytes.Buffer
	exited chan struct{}
	err    error
}

// program is the program under test.
func program(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../bin/transom")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return path
}

// startTransom runs `transom serve` with a plaintext and a TLS listener until the test ends.
func startTransom(t *testing.T, upstream string, args ...string) *proxy {
	t.Helper()
	cert, key, pool := certificate(t)
	set := filepath.Join(t.TempDir(), "bank.binpb")
	if err := os.WriteFile(set, bank.DescriptorSet(), 0o600); err != nil {
		t.Fatal(err)
	}
	return startProcess(t, cert, pool, 2, append([]string{
		"serve", "--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0",
		"--tls-cert", cert, "--tls-key", key, "--http3", "--descriptors", set, "--upstream", upstream,
	}, args...)...)
}

var listening = regexp.MustCompile(`msg=listening address=(\S+) tls=(\S+)`)

// startProcess runs transom and waits until it listens on want sockets.
func startProcess(t *testing.T, ca string, pool *x509.CertPool, want int, args ...string) *proxy {
	t.Helper()
	p := &proxy{cmd: exec.Command(program(t), args...), ca: ca, pool: pool, exited: make(chan struct{})}
	r, w := io.Pipe()
	p.cmd.Stderr = w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			p.mu.Lock()
			p.stderr.Write(append(lines.Bytes(), '\n'))
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				if m[2] == "true" {
					p.secure = m[1]
				} else {
					p.plain = m[1]
				}
				if want--; want == 0 {
					close(ready)
				}
			}
			p.mu.Unlock()
		}
	})
	wg.Go(func() {
		p.err = p.cmd.Wait()
		w.Close()
		close(p.exited)
	})
	t.Cleanup(func() {
		select {
		case <-p.exited:
		default:
			_ = p.cmd.Process.Kill()
		}
		wg.Wait()
		if t.Failed() {
			t.Logf("transom said:\n%s", p.log())
		}
	})
	select {
	case <-ready:
	case <-p.exited:
		t.Fatalf("transom ended: %v\n%s", p.err, p.log())
	case <-time.After(patience):
		t.Fatalf("transom does not listen:\n%s", p.log())
	}
	return p
}

func (p *proxy) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// stop sends SIGTERM and waits for the process to end.
func (p *proxy) stop(t *testing.T) error {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.exited:
		return p.err
	case <-time.After(45 * time.Second):
		t.Fatal("transom does not end after SIGTERM")
		return nil
	}
}

// rss is a line of /proc/PID/status in bytes, such as VmHWM, the peak of the resident memory.
func (p *proxy) rss(t *testing.T, field string) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s in /proc status", field)
	return 0
}

// certificate writes a self-signed certificate for 127.0.0.1 and localhost.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return cert, key, pool
}

// curl runs curl and returns status, headers and body.
func curl(t *testing.T, args ...string) (code int, header, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	out, head := filepath.Join(dir, "body"), filepath.Join(dir, "head")
	cmd := exec.CommandContext(ctx, "curl", append([]string{"-sS", "-o", out, "-D", head, "-w", "%{http_code} %{http_version}"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	said, err := cmd.Output()
	if err != nil {
		t.Fatalf("curl %q: %v: %s", args, err, stderr.String())
	}
	var version string
	if _, err := fmt.Sscan(string(said), &code, &version); err != nil {
		t.Fatalf("curl says %q", said)
	}
	b, _ := os.ReadFile(out)
	h, _ := os.ReadFile(head)
	return code, "HTTP/" + version + "\n" + string(h), string(b)
}

// compact removes white space between JSON tokens.
func compact(s string) string {
	var b bytes.Buffer
	if json.Compact(&b, []byte(s)) != nil {
		return s
	}
	return b.String()
}
