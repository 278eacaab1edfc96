package listeners_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"transom/listeners"
	wsv1 "transom/proto/transom/ws/v1"
	"transom/rpc"
)

// TestClientCAsReplaced replaces the authorities of clients while connections are open that the old ones vouch for: as long as the
// certificate is vouched for, nothing ends; then calls on the connection are refused, its streams end, and it is not used further. So it is
// with clients that have no certificate, when one is required.
func TestClientCAsReplaced(t *testing.T) {
	cert, pool := certificate(t)
	mine, mineToo := certificate(t)
	_, others := certificate(t)
	both := mineToo.Clone()
	for _, version := range []string{"HTTP1", "HTTP2", "HTTP3", "HTTP1 without", "HTTP2 without", "HTTP3 without"} {
		t.Run(version, func(t *testing.T) {
			version, without := strings.CutSuffix(version, " without")
			began := make(chan struct{}, 1)
			front := listeners.NewFront(listeners.FrontConfig{}, newView(t, func(ctx context.Context, call *rpc.Call) error {
				if !call.Method.Unary() {
					began <- struct{}{}
					<-ctx.Done()
					return rpc.CauseOf(ctx)
				}
				m, err := rpc.RecvOne(ctx, call.Stream)
				if err != nil {
					return err
				}
				return call.Stream.Send(ctx, m)
			}), slog.New(slog.DiscardHandler))
			srv, err := listeners.Listen(t.Context(), listeners.Config{
				Address: "127.0.0.1:0", HTTP3: version == "HTTP3",
				TLS: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: mineToo},
			}, front, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := srv.Run(); err != nil {
					t.Errorf("Run: %v", err)
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			defer wg.Wait()
			defer func() {
				if err := srv.Drain(ctx); err != nil {
					t.Errorf("Drain: %v", err)
				}
			}()
			cfg, text := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{mine}}, "withdrawn"
			if without {
				cfg.Certificates, text = nil, "required"
			}
			base := "https://" + srv.Addr().String()
			var client http.Client
			var dialed atomic.Int32
			if version == "HTTP3" {
				tr := &http3.Transport{TLSClientConfig: cfg, Dial: func(ctx context.Context, addr string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
					dialed.Add(1)
					return quic.DialAddr(ctx, addr, tc, qc)
				}}
				defer tr.Close()
				client.Transport = tr
			} else {
				tr := &http.Transport{TLSClientConfig: cfg, Protocols: &http.Protocols{}}
				tr.Protocols.SetHTTP1(version == "HTTP1")
				tr.Protocols.SetHTTP2(version == "HTTP2")
				defer tr.CloseIdleConnections()
				client.Transport = tr
			}
			post := func(method, contentType, body string) (*http.Response, error) {
				trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
					if !i.Reused {
						dialed.Add(1)
					}
				}}
				r, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodPost, base+"/rpctest.Echo/"+method, strings.NewReader(body))
				if err != nil {
					return nil, err
				}
				r.Header.Set("Content-Type", contentType)
				return client.Do(r)
			}
			unary := func(want int) {
				t.Helper()
				resp, err := post("Unary", "application/json", `"eA=="`)
				if err != nil {
					if version == "HTTP3" && want != 200 { // the end of the stream may have closed the connection
						return
					}
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if b, err := io.ReadAll(resp.Body); resp.StatusCode != want || err != nil || want != 200 && !strings.Contains(string(b), text) {
					t.Errorf("%d %s, %v, want %d", resp.StatusCode, b, err, want)
				}
			}
			watch := func() chan string {
				ended := make(chan string, 1)
				wg.Go(func() {
					resp, err := post("Bidi", "application/grpc-web+proto", "\x00\x00\x00\x00\x00")
					if err != nil {
						t.Error(err)
						close(ended)
						return
					}
					defer resp.Body.Close()
					b, _ := io.ReadAll(resp.Body)
					ended <- resp.Header.Get("Grpc-Status") + string(b)
				})
				select {
				case <-began:
				case <-ctx.Done():
					t.Error("the stream does not begin")
				}
				return ended
			}

			unary(200)
			var session *sessionSocket
			if version == "HTTP1" {
				conn, _, err := websocket.Dial(ctx, base+"/", &websocket.DialOptions{Subprotocols: []string{"transom.v1"}, HTTPClient: &client})
				if err != nil {
					t.Fatal(err)
				}
				defer conn.CloseNow()
				session = &sessionSocket{conn, ctx, false}
			}
			stream := watch()
			srv.SetClientCAs(both)
			unary(200)
			select {
			case end := <-stream:
				t.Fatalf("the stream has ended while its certificate is good: %q", end)
			default:
			}
			before := dialed.Load()
			srv.SetClientCAs(others)
			srv.RequireClientCerts(true)
			if end := <-stream; !strings.Contains(end, "16") {
				t.Errorf("the stream ended with %q, want UNAUTHENTICATED", end)
			}
			unary(401)
			if session != nil {
				if err := session.send(&wsv1.Frame{Id: 1, Open: &wsv1.Open{Method: "/rpctest.Echo/Unary"}, End: true}, []byte{}); err != nil {
					t.Fatal(err)
				}
				for f := (*wsv1.Frame)(nil); f.GetStatus() == nil; {
					if f, _, err = session.receive(); err != nil {
						t.Fatal(err)
					}
					if st := f.GetStatus(); st != nil && st.GetCode() != 16 {
						t.Errorf("a call of the session: %v", st)
					}
				}
			}
			if version != "HTTP1" && dialed.Load() != before {
				t.Errorf("%d connections, want %d up to here", dialed.Load(), before)
			}
			srv.SetClientCAs(mineToo)
			srv.RequireClientCerts(false)
			unary(200)
			if dialed.Load() == before {
				t.Error("the connection is used on")
			}
		})
	}
}
