package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
)

// pebble is Let's Encrypt's test authority, which rejects some requests on purpose.
type pebble struct {
	directory string
	// ca is the PEM file of the authority behind its own certificate.
	ca         string
	management string
	client     *http.Client
}

// freePort is a port that nothing listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// startPebble runs an authority that looks for every name at 127.0.0.1, at the given ports for http-01 and tls-alpn-01, and
// whose certificates are valid for so long.
func startPebble(t *testing.T, httpPort, tlsPort int, validity time.Duration) *pebble {
	t.Helper()
	a := process.NewAuthority(t)
	cert, dir := certificate(t, a), t.TempDir()
	main, management := freePort(t), freePort(t)
	config := filepath.Join(dir, "pebble.json")
	process.Replace(t, config, fmt.Appendf(nil, `{"pebble": {
  "listenAddress": "127.0.0.1:%d", "managementListenAddress": "127.0.0.1:%d", "certificate": %q, "privateKey": %[3]q,
  "httpPort": %d, "tlsPort": %d, "keyAlgorithm": "ecdsa", "retryAfter": {"authz": 1, "order": 1},
  "domainBlocklist": ["blocked.example"],
  "profiles": {"default": {"description": "test", "validityPeriod": %d}}}}`,
		main, management, cert, httpPort, tlsPort, int(validity.Seconds())))
	program, err := filepath.Abs("../build/tools/pebble")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-config", config, "-strict", "-dnsserver", startDNS(t))
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: run make build/tools/pebble first", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("pebble said:\n%s", b)
		}
		_ = log.Close()
	})
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.Pool}, DisableKeepAlives: true}
	p := &pebble{fmt.Sprintf("https://127.0.0.1:%d/dir", main), a.File, fmt.Sprintf("https://127.0.0.1:%d", management), &http.Client{Transport: tr}}
	for limit := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if resp, err := p.client.Get(p.directory); err == nil {
			_ = resp.Body.Close()
			return p
		}
		if time.Now().After(limit) {
			t.Fatal("pebble does not start")
		}
	}
}

// root is what certificates of the authority are checked against.
func (p *pebble) root(t *testing.T) *x509.CertPool {
	t.Helper()
	resp, err := p.client.Get(p.management + "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		t.Fatalf("no root in %s", b)
	}
	return pool
}

// startDNS answers, over TCP as pebble asks, that every name is at 127.0.0.1.
func startDNS(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			answerDNS(c)
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// answerDNS answers one question (RFC 1035, 4.2.2: messages follow their length).
func answerDNS(c net.Conn) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	var m dnsmessage.Message
	if _, err := io.ReadFull(c, b); err != nil || m.Unpack(b) != nil || len(m.Questions) != 1 {
		return
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		}}
	}
	if b, err := m.Pack(); err == nil {
		_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	}
}

// shown is the certificate that a listener shows for a name; nil without one.
func shown(t *testing.T, addr, name string, roots *x509.CertPool) *x509.Certificate {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, &tls.Config{ServerName: name, RootCAs: roots})
	if err != nil {
		return nil
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

// await waits for a condition.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(3 * patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// TestACME gets certificates from an authority by each challenge, the plain one at a listener that redirects, beside one from
// a file; renews them; and has them at once after a restart.
func TestACME(t *testing.T) {
	for _, challenge := range []string{"tls", "http"} {
		t.Run(challenge, func(t *testing.T) {
			t.Parallel()
			b := startBank(t, bank.Config{})
			plain, secure := freePort(t), freePort(t)
			p := startPebble(t, plain, secure, 20*time.Second)
			a := process.NewAuthority(t)
			cert, storage := certificate(t, a), filepath.Join(t.TempDir(), "acme")
			config := filepath.Join(t.TempDir(), "transom.yaml")
			process.Replace(t, config, fmt.Appendf(nil, `
listeners:
  - {address: "127.0.0.1:%d", redirect_https: %d}
  - address: "127.0.0.1:%[2]d"
    http3: true
    tls:
      certificate: %[3]s
      key: %[3]s
      acme: {names: [one.example, two.example], storage: %[4]s, accept_terms: true, directory: "%[5]s", ca: %[6]s, email: ops@one.example, challenge: %[7]s}
admin: {address: "127.0.0.1:0"}
descriptors: [{file: %[8]s}]
clusters: {bank: {target: "static:///%[9]s"}}
`, plain, secure, cert, storage, p.directory, p.ca, challenge, descriptorSet(t), b.addr))
			gw := process.Start(t, 3, "serve", "--config", config)
			roots := p.root(t)
			first := map[string]*x509.Certificate{}
			for _, name := range []string{"one.example", "two.example"} {
				await(t, "the certificate of "+name, func() bool { first[name] = shown(t, gw.Secure, name, roots); return first[name] != nil })
				if got := first[name].DNSNames; len(got) != 1 || got[0] != name {
					t.Errorf("%s has a certificate for %q", name, got)
				}
			}
			if c := shown(t, gw.Secure, "localhost", a.Pool); c == nil {
				t.Error("a name of the file's certificate does not get it")
			}
			await(t, "the renewal", func() bool {
				c := shown(t, gw.Secure, "one.example", roots)
				return c != nil && c.SerialNumber.Cmp(first["one.example"].SerialNumber) != 0
			})
			var s struct {
				Listeners []struct {
					Issued []struct {
						Name                 string
						ExpireTime, NextTime time.Time
						Fault                string
					}
				}
			}
			text, err := gw.Get(t.Context(), "/v1/status")
			if err != nil || json.Unmarshal([]byte(text), &s) != nil || len(s.Listeners) != 2 || len(s.Listeners[1].Issued) != 2 {
				t.Fatalf("%v: %s", err, text)
			}
			if n := s.Listeners[1].Issued[0]; n.Name != "one.example" || n.Fault != "" || n.ExpireTime.IsZero() || n.NextTime.IsZero() {
				t.Errorf("status: %+v", n)
			}
			secrets := 0
			_ = filepath.Walk(storage, func(path string, info os.FileInfo, err error) error {
				want := os.FileMode(0o600)
				if err == nil && info.IsDir() {
					want = 0o700
				}
				if err != nil || info.Mode().Perm() != want {
					t.Errorf("%s: %v, mode %v", path, err, info.Mode())
				}
				if strings.HasSuffix(path, ".pem") || strings.HasSuffix(path, ".key") {
					secrets++
				}
				return nil
			})
			if secrets != 3 {
				t.Errorf("%d files with keys, want the account's and two certificates'", secrets)
			}
			if err := gw.Stop(t); err != nil {
				t.Error(err)
			}
			// What is kept is served at once.
			gw = process.Start(t, 3, "serve", "--config", config)
			if c := shown(t, gw.Secure, "one.example", roots); c == nil {
				t.Error("after a restart there is no certificate")
			}
			if err := gw.Stop(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestACMEFaults has an authority that refuses a name, one that is not there, and storage that is not fit for keys.
func TestACMEFaults(t *testing.T) {
	b := startBank(t, bank.Config{})
	secure := freePort(t)
	p := startPebble(t, freePort(t), secure, time.Hour)
	storage, config := t.TempDir(), filepath.Join(t.TempDir(), "transom.yaml")
	write := func(names, directory string) {
		process.Replace(t, config, fmt.Appendf(nil, `
listeners: [{address: "127.0.0.1:%d", tls: {acme: {names: [%s], storage: %s, accept_terms: true, directory: "%s", ca: %s}}}]
admin: {address: "127.0.0.1:0"}
descriptors: [{file: %s}]
clusters: {bank: {target: "static:///%s"}}
`, secure, names, storage, directory, p.ca, descriptorSet(t), b.addr))
	}
	write("good.example, blocked.example", p.directory)
	gw := process.Start(t, 2, "serve", "--config", config)
	await(t, "the good name's certificate", func() bool { return shown(t, gw.Secure, "good.example", p.root(t)) != nil })
	await(t, "the bad name's fault", func() bool { return strings.Contains(gw.Log(), "no certificate from the authority") })
	if !strings.Contains(gw.Log(), "name=blocked.example") || !strings.Contains(gw.Log(), "rejectedIdentifier") || strings.Contains(gw.Log(), "name=good.example directory="+p.directory+" error") {
		t.Errorf("the log does not say which name and why:\n%s", gw.Log())
	}
	await(t, "the fault in the status", func() bool {
		text, _ := gw.Get(t.Context(), "/v1/status")
		return strings.Contains(text, "rejectedIdentifier")
	})
	metrics, err := gw.Metrics(t.Context())
	if err != nil || metrics["transom_acme_orders_total"] < 2 {
		t.Errorf("%v: transom_acme_orders_total is %v", err, metrics["transom_acme_orders_total"])
	}
	// Another authority is put in force by a reload; it is not there.
	write("good.example", fmt.Sprintf("https://127.0.0.1:%d/dir", freePort(t)))
	_ = gw.Cmd.Process.Signal(syscall.SIGHUP)
	await(t, "the absent authority's fault", func() bool { return strings.Contains(gw.Log(), "connection refused") })
	if c := shown(t, gw.Secure, "good.example", p.root(t)); c != nil {
		t.Error("the certificate of another authority is shown")
	}
	if err := gw.Stop(t); err != nil {
		t.Error(err)
	}
	// Keys that others may read are not used.
	write("good.example", p.directory)
	keys, _ := filepath.Glob(filepath.Join(storage, "*", "account.key"))
	if len(keys) == 0 {
		t.Fatal("no account key is kept")
	}
	for _, key := range keys {
		if err := os.Chmod(key, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(process.Program(t), "check", "--config", config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), config+":2:") || !strings.Contains(string(out), "chmod 600") {
		t.Errorf("%v: %s", err, out)
	}
}
