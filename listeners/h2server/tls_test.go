package h2server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"transom/listeners/h2server"
	"transom/rpc/trywrite"
)

// serveTLS serves h on loopback over TLS and returns the address, and how a client trusts it.
func serveTLS(t *testing.T, cfg h2server.Config) (*h2server.Server, string, *tls.Config) {
	t.Helper()
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	serverTLS := cert.TLS.Clone()
	pool := x509.NewCertPool()
	pool.AddCert(cert.Certificate())
	cert.Close()
	serverTLS.NextProtos = []string{"h2"}
	serverTLS.MinVersion = tls.VersionTLS12
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := h2server.New(cfg)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			raw, err := lis.Accept()
			if err != nil {
				return
			}
			_ = raw.(*net.TCPConn).SetWriteBuffer(16 << 10)
			mu.Lock()
			conns = append(conns, raw)
			mu.Unlock()
			wg.Go(func() {
				sealed := &trywrite.Sealed{Conn: raw}
				c := tls.Server(sealed, serverTLS)
				if c.HandshakeContext(context.WithoutCancel(t.Context())) != nil {
					_ = raw.Close()
					return
				}
				state := c.ConnectionState()
				s.Serve(context.WithoutCancel(t.Context()), h2server.Socket{Conn: c, Raw: raw, Sealed: sealed, TLS: &state})
			})
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
		s.Close()
	})
	return s, lis.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "example.com", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
}

// TestTLS sends much both ways over TLS, and ends the connection: the client sees TLS's own end, so that nobody can have cut it.
func TestTLS(t *testing.T) {
	s, addr, trust := serveTLS(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.TLS.ServerName != "example.com" {
			t.Errorf("%+v", r.TLS)
		}
		_, _ = io.Copy(w, r.Body)
	})))
	tr := &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	body := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	for range 3 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+addr, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(got, body) || resp.ProtoMajor != 2 {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	nc, err := tls.Dial("tcp", addr, trust)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	fr := http2.NewFramer(nc, nc)
	_, _ = io.WriteString(nc, http2.ClientPreface)
	_ = fr.WriteSettings()
	_ = fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	for {
		if _, err := fr.ReadFrame(); err != nil {
			if err != io.EOF {
				t.Errorf("the connection ends with %v", err)
			}
			break
		}
	}
	s.GoAway()
}

// TestStallTLS is TestStall over TLS, whose records wait where nobody can take them back.
func TestStallTLS(t *testing.T) {
	ended := make(chan struct{})
	cfg := config(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var err error
		for err == nil {
			_, err = w.Write(make([]byte, 64<<10))
		}
		close(ended)
	}))
	cfg.WriteStall = 100 * time.Millisecond
	_, addr, trust := serveTLS(t, cfg)
	nc, err := tls.Dial("tcp", addr, trust)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fr := http2.NewFramer(nc, nc)
	c := &client{t: t, nc: nc, fr: fr}
	c.enc = newEncoder(c)
	c.raw(http2.ClientPreface)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	_ = fr.WriteWindowUpdate(0, 1<<30)
	c.headers(1, true, get("/")...)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the handler is held up")
	}
}

// TestCipherSuites has a client that insists on a cipher suite that HTTP/2 forbids (RFC 9113 9.2.2).
func TestCipherSuites(t *testing.T) {
	_, addr, trust := serveTLS(t, config(http.HandlerFunc(echo)))
	trust.MaxVersion = tls.VersionTLS12
	for suite, want := range map[uint16]string{
		tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA:    "GOAWAY 0 INADEQUATE_SECURITY",
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: `PING "stillher" ACK`,
	} {
		trust := trust.Clone()
		trust.CipherSuites = []uint16{suite}
		nc, err := tls.Dial("tcp", addr, trust)
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(patience))
		c := &client{t: t, nc: nc, fr: http2.NewFramer(nc, nc)}
		_, _ = io.WriteString(nc, http2.ClientPreface)
		_ = c.fr.WriteSettings()
		_ = c.fr.WritePing(false, [8]byte{'s', 't', 'i', 'l', 'l', 'h', 'e', 'r'})
		c.want(want)
		_ = nc.Close()
	}
}
