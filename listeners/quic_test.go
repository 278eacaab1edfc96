package listeners_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"transom/listeners"
)

// recorder is a socket that gets nothing, and keeps what is sent first.
type recorder struct {
	first chan []byte
	end   chan struct{}
	once  sync.Once
}

func (r *recorder) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case r.first <- append([]byte(nil), b...):
	default:
	}
	return len(b), nil
}

func (r *recorder) ReadFrom([]byte) (int, net.Addr, error) {
	<-r.end
	return 0, nil, os.ErrDeadlineExceeded
}

func (r *recorder) Close() error {
	r.once.Do(func() { close(r.end) })
	return nil
}

func (r *recorder) LocalAddr() net.Addr              { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetReadDeadline(time.Time) error  { return r.Close() }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

// initial is the first packet of a new QUIC connection.
func initial(t *testing.T) []byte {
	t.Helper()
	r := &recorder{first: make(chan []byte, 1), end: make(chan struct{})}
	tr := &quic.Transport{Conn: r}
	defer tr.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dialed := make(chan struct{})
	go func() {
		defer close(dialed)
		// Without post-quantum keys a ClientHello fits into one packet.
		_, _ = tr.Dial(ctx, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2}, &tls.Config{
			ServerName: "localhost", NextProtos: []string{"h3"}, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519},
		}, nil)
	}()
	b := <-r.first
	cancel()
	<-dialed
	return b
}

// TestForgedQUICSources begins many QUIC connections from addresses of their own that are silent after the first packet, as
// those of somebody else would be. None is sent more than three times what came from there and a packet, which quic-go begins as
// long as it is below that; from some number on they get Retry packets, for which nothing is kept. Honest clients are served.
func TestForgedQUICSources(t *testing.T) {
	const inDoubt, more, packet = 500, 40, 1452
	cert, pool := certificate(t)
	cfg := listeners.Config{
		Address: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, HTTP3: true,
		Limits: listeners.Limits{HeaderTimeout: time.Minute},
	}
	for _, webTransport := range []bool{false, true} {
		t.Run(fmt.Sprintf("WebTransport=%v", webTransport), func(t *testing.T) {
			cfg.WebTransport = webTransport
			srv, err := listeners.Listen(t.Context(), cfg, listeners.NewFront(listeners.FrontConfig{HealthPath: "/healthz"}, nil, slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := srv.Run(); err != nil {
					t.Errorf("Run: %v", err)
				}
			})
			defer wg.Wait()
			defer func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
				defer cancel()
				if err := srv.Drain(ctx); err != nil {
					t.Errorf("Drain: %v", err)
				}
			}()
			ask := func() { // on a connection of its own
				t.Helper()
				tr := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
				defer tr.Close()
				resp, err := (&http.Client{Transport: tr}).Get("https://" + srv.Addr().String() + "/healthz")
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
			}
			ask() // the server reads
			to := &net.UDPAddr{IP: srv.Addr().IP, Port: srv.Addr().Port}
			var retries []int
			for i := range inDoubt + more {
				from, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 1, byte(i/200), byte(1+i%200))})
				if err != nil {
					t.Fatal(err)
				}
				defer from.Close()
				first := initial(t)
				if _, err := from.WriteTo(first, to); err != nil {
					t.Fatal(err)
				}
				_ = from.SetReadDeadline(time.Now().Add(20 * time.Second))
				var b [2048]byte
				n, err := from.Read(b[:])
				if err != nil {
					t.Fatalf("source %d: %v", i, err)
				}
				if b[0]&0xf0 == 0xf0 { // RFC 9000, section 17.2.5
					retries = append(retries, i)
				}
				if i > 0 {
					continue
				}
				for got := n; err == nil; got += n {
					if got > 3*len(first)+packet {
						t.Errorf("%d bytes are sent for %d", got, len(first))
						break
					}
					_ = from.SetReadDeadline(time.Now().Add(2 * time.Second)) // its timer for lost packets goes off meanwhile
					n, err = from.Read(b[:])
				}
			}
			if len(retries) != more || retries[0] != inDoubt {
				t.Errorf("of %d sources these get a Retry: %v; want the last %d", inDoubt+more, retries, more)
			}
			if n := srv.Connections().HTTP3; n > inDoubt+1 {
				t.Errorf("%d connections are kept", n)
			}
			ask()
		})
	}
}
