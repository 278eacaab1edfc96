package listeners_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"transom/listeners"
	"transom/rpc"
)

// listenAged runs a Server until the test ends, whose connections become old soon unless cfg says otherwise. Its calls wait for goOn.
func listenAged(t *testing.T, cfg listeners.Config, goOn <-chan struct{}) *listeners.Server {
	t.Helper()
	cfg.Address, cfg.Limits.MaxAge = "127.0.0.1:0", cmp.Or(cfg.Limits.MaxAge, time.Second)
	log := slog.New(slog.DiscardHandler)
	front := listeners.NewFront(listeners.FrontConfig{HealthPath: "/healthz"}, newView(t, func(ctx context.Context, call *rpc.Call) error {
		select {
		case <-goOn:
		case <-ctx.Done():
			return ctx.Err()
		}
		m, err := rpc.RecvOne(ctx, call.Stream)
		if err != nil {
			return err
		}
		return call.Stream.Send(ctx, m)
	}), log)
	srv, err := listeners.Listen(t.Context(), cfg, front, log)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Run(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Drain(ctx); err != nil {
			t.Errorf("Drain: %v", err)
		}
		wg.Wait()
	})
	return srv
}

// TestAgeHTTP1 asks again and again over one connection, with and without TLS: once it is old, an answer says that it is the last
// and comes whole, and the connection ends.
func TestAgeHTTP1(t *testing.T) {
	cert, pool := certificate(t)
	for name, cfg := range map[string]listeners.Config{
		"plain": {}, "TLS": {TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}, "redirect": {RedirectPort: 443},
	} {
		t.Run(name, func(t *testing.T) {
			srv := listenAged(t, cfg, nil)
			c, err := net.Dial("tcp", srv.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if cfg.TLS != nil {
				c = tls.Client(c, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"})
			}
			r := bufio.NewReader(c)
			n := 0
			for last := false; !last; n++ {
				if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
					t.Fatalf("request %d: %v", n, err)
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatalf("request %d: %v", n, err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Fatalf("request %d: %v", n, err)
				}
				resp.Body.Close()
				last = resp.Close
			}
			if n < 2 {
				t.Error("the first answer is the last of its connection")
			}
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("after the last answer: %v, want the end", err)
			}
		})
	}
}

// TestAgeHTTP3 has the client of an old connection told to go: what it has open is answered, further requests are not taken, and the
// connection ends.
func TestAgeHTTP3(t *testing.T) {
	cert, pool := certificate(t)
	goOn := make(chan struct{})
	srv := listenAged(t, listeners.Config{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, HTTP3: true}, goOn)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	base := "https://" + srv.Addr().String()
	dial := func() (*quic.Conn, *http3.ClientConn) {
		conn, err := quic.DialAddr(ctx, srv.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", NextProtos: []string{"h3"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return conn, (&http3.Transport{}).NewClientConn(conn)
	}
	conn, client := dial()
	answered := make(chan error, 1)
	go func() {
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, base+"/rpctest.Echo/Unary", strings.NewReader(`"x"`))
		r.RequestURI = ""
		r.Header.Set("Content-Type", "application/json")
		resp, err := client.RoundTrip(r)
		if err == nil {
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
		}
		answered <- err
	}()
	n := 0
	for ; ; n++ {
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, base+"/healthz", nil)
		r.RequestURI = ""
		resp, err := client.RoundTrip(r)
		if err != nil {
			break // told to go
		}
		resp.Body.Close()
	}
	if conn.Context().Err() != nil {
		t.Fatalf("after %d requests the connection has ended under an open call: %v", n, context.Cause(conn.Context()))
	}
	close(goOn)
	if err := <-answered; err != nil {
		t.Errorf("the open call: %v", err)
	}
	select {
	case <-conn.Context().Done():
	case <-ctx.Done():
		t.Error("the old connection does not end")
	}
	if n == 0 {
		t.Error("the first request finds the connection old")
	}
	conn, client = dial()
	defer func() { _ = conn.CloseWithError(0, "") }()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, base+"/healthz", nil)
	r.RequestURI = ""
	resp, err := client.RoundTrip(r)
	if err != nil {
		t.Fatalf("on a new connection: %v", err)
	}
	resp.Body.Close()
}

// TestQUICConnectionsPerClient: of one client, QUIC connections beyond the limit are closed, with WebTransport and without, and let in once
// another has gone.
func TestQUICConnectionsPerClient(t *testing.T) {
	cert, pool := certificate(t)
	for _, webTransport := range []bool{false, true} {
		srv := listenAged(t, listeners.Config{
			TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, HTTP3: true, WebTransport: webTransport, Limits: listeners.Limits{MaxConnsPerIP: 2, MaxAge: time.Hour},
		}, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		// ask opens a connection and sends a request.
		ask := func() (*quic.Conn, error) {
			conn, err := quic.DialAddr(ctx, srv.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", NextProtos: []string{"h3"}}, nil)
			if err != nil { // it may be closed as soon as that
				return nil, err
			}
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, "https://"+srv.Addr().String()+"/healthz", nil)
			r.RequestURI = ""
			resp, err := (&http3.Transport{}).NewClientConn(conn).RoundTrip(r)
			if err == nil {
				resp.Body.Close()
			}
			return conn, err
		}
		first, err := ask()
		second, err2 := ask()
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		defer func() { _ = second.CloseWithError(0, "") }()
		if _, err := ask(); err == nil {
			t.Errorf("WebTransport %v: a third connection is served", webTransport)
		}
		if n := srv.Refused(); n != 1 {
			t.Errorf("WebTransport %v: %d are refused", webTransport, n)
		}
		_ = first.CloseWithError(0, "")
		for err = errors.New("not tried"); err != nil; {
			var c *quic.Conn
			if c, err = ask(); err == nil {
				_ = c.CloseWithError(0, "")
			}
			if ctx.Err() != nil {
				t.Fatalf("WebTransport %v: no room after one has gone: %v", webTransport, err)
			}
		}
	}
}
