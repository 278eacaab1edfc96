package listeners_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/webtransport-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/descriptors"
	"transom/listeners"
	wsv1 "transom/proto/transom/ws/v1"
	"transom/rpc"
	"transom/rpc/rpctest"
)

// wtGateway is a Server with WebTransport.
type wtGateway struct {
	*listeners.Server
	url  string
	pool *x509.CertPool
}

func serveWebTransport(t *testing.T, cfg listeners.FrontConfig, h rpc.Handler) *wtGateway {
	t.Helper()
	return serveWebTransportOf(t, cfg, newView(t, h))
}

func serveWebTransportOf(t *testing.T, cfg listeners.FrontConfig, source listeners.Source) *wtGateway {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	g := &wtGateway{pool: x509.NewCertPool()}
	g.pool.AddCert(parsed)
	tc := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: priv}}, MinVersion: tls.VersionTLS13}
	front := listeners.NewFront(cfg, source, slog.New(slog.DiscardHandler))
	g.Server, err = listeners.Listen(t.Context(), listeners.Config{Address: "127.0.0.1:0", TLS: tc, HTTP3: true, WebTransport: true}, front, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	g.url = fmt.Sprintf("https://localhost:%d/transom.v1", g.Addr().Port)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Run(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = g.Drain(ctx)
		wg.Wait()
	})
	return g
}

func (g *wtGateway) dial(t *testing.T, header http.Header) (*http.Response, *webtransport.Session, error) {
	t.Helper()
	d := &webtransport.Transport{TLSClientConfig: &tls.Config{RootCAs: g.pool, NextProtos: []string{"h3"}, MinVersion: tls.VersionTLS13}}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	resp, s, err := d.Dial(ctx, g.url, header)
	t.Cleanup(func() {
		if s != nil {
			_ = s.CloseWithError(0, "")
		}
		_ = d.Close()
	})
	return resp, s, err
}

// wtClient is one call on a stream, in binary frames.
type wtClient struct {
	session         *webtransport.Session
	str             *webtransport.Stream
	header, trailer metadata.MD
	queue           [][]byte
	end             error
}

func startWT(t *testing.T, s *webtransport.Session, m *descriptors.Method, header metadata.MD) *wtClient {
	t.Helper()
	str, err := s.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	c := &wtClient{session: s, str: str}
	open := &wsv1.Open{Method: m.FullPath, Metadata: map[string]*structpb.ListValue{}}
	for k, vs := range header {
		open.Metadata[k] = listOf(k, vs)
	}
	if err := c.send(&wsv1.Frame{Id: 1, Open: open}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *wtClient) send(f *wsv1.Frame) error {
	b, err := proto.Marshal(f)
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b)))
	_, err = c.str.Write(append(head, b...))
	return err
}

func (c *wtClient) Send(msg []byte) error {
	if msg == nil {
		msg = []byte{}
	}
	return c.send(&wsv1.Frame{Id: 1, Binary: msg})
}

func (c *wtClient) CloseSend() error { return c.str.Close() }

func (c *wtClient) step() {
	var head [5]byte
	f := &wsv1.Frame{}
	_, err := io.ReadFull(c.str, head[:])
	if err == nil {
		b := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err = io.ReadFull(c.str, b); err == nil {
			err = proto.Unmarshal(b, f)
		}
	}
	if err != nil {
		c.end = fmt.Errorf("no status: %w", err)
		return
	}
	if f.Header != nil {
		c.header = mdOf(f.Header.GetMetadata())
	}
	if f.Binary != nil {
		c.queue = append(c.queue, f.Binary)
	}
	if st := f.Status; st != nil {
		c.trailer, c.end = mdOf(st.GetTrailers()), io.EOF
		if st.GetCode() != 0 {
			c.end = status.Error(codes.Code(st.GetCode()), st.GetMessage())
		}
	}
}

func (c *wtClient) Header() metadata.MD {
	for c.header == nil && c.end == nil {
		c.step()
	}
	return c.header
}

func (c *wtClient) Recv() ([]byte, error) {
	for len(c.queue) == 0 && c.end == nil {
		c.step()
	}
	if len(c.queue) > 0 {
		m := c.queue[0]
		c.queue = c.queue[1:]
		return m, nil
	}
	return nil, c.end
}

func (c *wtClient) Trailer() metadata.MD { return c.trailer }

func (c *wtClient) Leave() {
	c.str.CancelWrite(0)
	c.str.CancelRead(0)
}

func TestWebTransportKeepsTheStreamContract(t *testing.T) {
	rpctest.TestStream(t, rpctest.Harness{
		Start: func(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler) rpctest.Client {
			g := serveWebTransport(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{MaxMessageBytes: 8 << 20}}, h)
			_, s, err := g.dial(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			return startWT(t, s, m, header)
		},
	})
}

// TestWebTransportIdle: a session without a call is closed after the time that a WebSocket has, and one with a call is not.
func TestWebTransportIdle(t *testing.T) {
	const idle = 3 * time.Second
	g := serveWebTransport(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{IdleTimeout: idle}}, echo)
	began := time.Now()
	_, busy, err := g.dial(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	call := startWT(t, busy, rpctest.NewMethods().Bidi, nil)
	if err := call.Send(rpctest.Value([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	if _, err := call.Recv(); err != nil { // it is open
		t.Fatal(err)
	}
	_, unused, err := g.dial(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	closed := func(s *webtransport.Session) {
		t.Helper()
		select {
		case <-s.Context().Done():
		case <-time.After(20 * time.Second):
			t.Fatal("the session is not closed")
		}
		var code *webtransport.SessionError
		if _, err := s.AcceptStream(t.Context()); !errors.As(err, &code) || code.ErrorCode != 1001 {
			t.Errorf("closed with %v, want 1001", err)
		}
	}
	closed(unused)
	if took := time.Since(began); took < idle {
		t.Errorf("closed after %v", took)
	}
	if busy.Context().Err() != nil {
		t.Fatal("the session with a call is closed")
	}
	_ = call.CloseSend()
	if _, err := call.Recv(); err != io.EOF {
		t.Errorf("the call ended with %v", err)
	}
	closed(busy)
}

// TestWebTransportPanic sees that a panic over a frame resets its stream, and ends neither session nor process.
func TestWebTransportPanic(t *testing.T) {
	v := &panicsOnce{view: newView(t, echo)}
	g := serveWebTransportOf(t, listeners.FrontConfig{}, v)
	_, s, err := g.dial(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	bidi := rpctest.NewMethods().Bidi
	if _, err := io.ReadAll(startWT(t, s, bidi, nil).str); err == nil {
		t.Error("the stream with the panic ends well, want a reset")
	}
	c := startWT(t, s, bidi, nil)
	_ = c.Send(rpctest.Value([]byte("x")))
	if _, err := c.Recv(); err != nil {
		t.Errorf("the next call of the session: %v", err)
	}
}

// panicsOnce is a view that panics over the first method that is looked for.
type panicsOnce struct {
	*view
	did atomic.Bool
}

func (v *panicsOnce) Acquire() listeners.View { return v }

func (v *panicsOnce) Method(path string) (*descriptors.Method, bool) {
	if !v.did.Swap(true) {
		panic("over a frame")
	}
	return v.view.Method(path)
}

// A foreign origin is refused, a stream that is not a call is reset, a session bounds its calls, and HTTP/3 goes on beside.
func TestWebTransportSession(t *testing.T) {
	g := serveWebTransport(t, listeners.FrontConfig{HealthPath: "/healthz", WebSocket: listeners.WebSocketConfig{MaxCalls: 1, MaxMessageBytes: 1 << 10}}, echo)
	if resp, _, err := g.dial(t, http.Header{"Origin": {"https://evil.example"}}); err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a foreign origin: %v, %v, want 403", resp, err)
	}
	_, s, err := g.dial(t, http.Header{"Origin": {strings.TrimSuffix(g.url, "/transom.v1")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, garbage := range []string{"\x02\x00\x00\x00\x00", "\x00\xff\xff\xff\xff", "\x01\x00\x00\x00\x02{}", "\x01\x00\x00\x00\x08{\"id\":1}"} {
		str, err := s.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = str.Write([]byte(garbage))
		if b, err := io.ReadAll(str); err == nil {
			t.Errorf("%q was answered %q, want a reset", garbage, b)
		}
	}
	bidi := rpctest.NewMethods().Bidi
	first := startWT(t, s, bidi, nil)
	_ = first.Send(rpctest.Value([]byte("x")))
	if b, err := first.Recv(); err != nil || string(b) != string(rpctest.Value([]byte("x"))) {
		t.Errorf("echo %q, %v", b, err)
	}
	if _, err := startWT(t, s, bidi, nil).Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a call too many: %v, want ResourceExhausted", err)
	}
	// A drain lets the call finish, and no other begin.
	drained := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { drained <- g.Drain(ctx) }()
	if _, err := startWT(t, s, bidi, nil).Recv(); status.Code(err) != codes.ResourceExhausted && status.Code(err) != codes.Unavailable {
		t.Errorf("a call while draining: %v", err)
	}
	_ = first.CloseSend()
	if _, err := first.Recv(); err != io.EOF {
		t.Errorf("the open call ended with %v, want OK", err)
	}
	if err := <-drained; err != nil {
		t.Errorf("Drain: %v", err)
	}
}
