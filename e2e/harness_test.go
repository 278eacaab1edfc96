package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
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

// proxy is a running transom process. Its TLS listener also serves HTTP/3.
type proxy struct {
	*process.Process
	ca   string // PEM file of the authority
	pool *x509.CertPool
}

// startTransom runs `transom serve` with a plaintext and a TLS listener until the test ends.
func startTransom(t *testing.T, upstream string, args ...string) *proxy {
	t.Helper()
	a := process.NewAuthority(t)
	cert := certificate(t, a)
	return &proxy{process.Start(t, 2, append([]string{
		"serve", "--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0",
		"--tls-cert", cert, "--tls-key", cert, "--http3", "--descriptors", descriptorSet(t), "--upstream", upstream,
	}, args...)...), a.File, a.Pool}
}

// certificate writes a certificate with its key.
func certificate(t *testing.T, a *process.Authority) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cert.pem")
	process.Replace(t, path, a.Issue(t))
	return path
}

// descriptorSet writes the bank's descriptors to a file.
func descriptorSet(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bank.binpb")
	process.Replace(t, path, bank.DescriptorSet())
	return path
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
