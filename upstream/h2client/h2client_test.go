package h2client_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/upstream/h2client"
)

func TestMain(m *testing.M) {
	if os.Getenv(serverVariable) != "" {
		serveProcess()
		return
	}
	goleak.VerifyTestMain(m)
}

type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (bytesCodec) Unmarshal(d mem.BufferSlice, v any) error {
	*v.(*[]byte) = d.Materialize()
	return nil
}

// newServer is a grpc-go server whose methods all are handled by h.
func newServer(tb testing.TB, h func(grpc.ServerStream) error, opts ...grpc.ServerOption) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(64<<20), grpc.ForceServerCodecV2(bytesCodec{}), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error { return h(ss) }))...)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }()
	tb.Cleanup(func() { s.Stop(); <-done })
	return ln.Addr().String()
}

// echo answers each message with the same.
func echo(ss grpc.ServerStream) error {
	for {
		var m []byte
		if err := ss.RecvMsg(&m); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := ss.SendMsg(&m); err != nil {
			return err
		}
	}
}

func dial(tb testing.TB, addr string, cfg h2client.Config) *h2client.Conn {
	tb.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Authority = addr
	c, err := h2client.New(soon(tb), nc, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func msg(b []byte) h2client.Message {
	return h2client.Message{Data: mem.BufferSlice{mem.SliceBuffer(b)}}
}

// pattern is n bytes that differ by seed.
func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
	return b
}

func errorOf(tb testing.TB, err error) *h2client.Error {
	tb.Helper()
	e := (*h2client.Error)(nil)
	if !errors.As(err, &e) {
		tb.Fatalf("%v (%T) is no *Error", err, err)
	}
	return e
}

// soon ends only if something hangs, however busy the machine.
func soon(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	tb.Cleanup(cancel)
	return ctx
}

// certificate is a fresh one for 127.0.0.1, and a pool that trusts it.
func certificate(tb testing.TB) (tls.Certificate, *x509.CertPool) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// both runs a test over plaintext and over TLS.
func both(t *testing.T, h func(grpc.ServerStream) error, cfg h2client.Config, test func(*testing.T, *h2client.Conn)) {
	t.Run("plaintext", func(t *testing.T) { test(t, dial(t, newServer(t, h), cfg)) })
	t.Run("TLS", func(t *testing.T) {
		cert, pool := certificate(t)
		addr := newServer(t, h, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
		cfg := cfg
		cfg.Handshake = h2client.ClientTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, "127.0.0.1")
		test(t, dial(t, addr, cfg))
	})
	t.Run("TLS of grpc-go", func(t *testing.T) {
		cert, pool := certificate(t)
		addr := newServer(t, h, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
		cfg := cfg
		cfg.Handshake = func(ctx context.Context, raw net.Conn) (net.Conn, error) {
			c, _, err := credentials.NewClientTLSFromCert(pool, "").ClientHandshake(ctx, addr, raw)
			return c, err
		}
		test(t, dial(t, addr, cfg))
	})
}

// TestHeaderLimit: metadata beyond what the server takes (SETTINGS_MAX_HEADER_LIST_SIZE) is not sent.
func TestHeaderLimit(t *testing.T) {
	c := dial(t, newServer(t, echo, grpc.MaxHeaderListSize(2000)), h2client.Config{})
	for _, m := range []struct {
		bytes int
		code  codes.Code
	}{{1000, codes.OK}, {2000, codes.ResourceExhausted}} {
		var reply h2client.Reply
		err := c.Unary(soon(t), "/a.B/C", metadata.MD{"x-large": {string(bytes.Repeat([]byte("x"), m.bytes))}}, msg([]byte("x")), &reply)
		if m.code == codes.OK {
			if err != nil {
				t.Errorf("metadata of %d bytes: %v", m.bytes, err)
			}
			reply.Message.Free()
			continue
		}
		if e := errorOf(t, err); e.Code != m.code || e.Origin != h2client.OriginRequest {
			t.Errorf("metadata of %d bytes: %v", m.bytes, err)
		}
	}
}

func TestUnary(t *testing.T) {
	both(t, echo, h2client.Config{MaxMessageBytes: 16 << 20}, func(t *testing.T, c *h2client.Conn) {
		for i, n := range []int{0, 1, 200, 511, 512, 513, 16 << 10, 64 << 10, 300_000, 1 << 20, 5_000_000} {
			var reply h2client.Reply
			want := pattern(n, i)
			if err := c.Unary(soon(t), "/a.B/C", nil, msg(want), &reply); err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			if got := reply.Message.Data.Materialize(); !bytes.Equal(got, want) || !reply.Answered {
				t.Errorf("%d bytes: %d came back, answered %v", n, len(got), reply.Answered)
			}
			reply.Message.Free()
		}
		if n := c.InFlight(); n != 0 {
			t.Errorf("%d calls in flight at the end", n)
		}
	})
}

func TestMetadata(t *testing.T) {
	c := dial(t, newServer(t, func(ss grpc.ServerStream) error {
		in, _ := metadata.FromIncomingContext(ss.Context())
		out := metadata.MD{"seen-timeout": in["grpc-timeout"], "seen-type": in["content-type"], "seen-agent": in["user-agent"], "seen-authority": in[":authority"]}
		for _, k := range []string{"authorization", "x-many", "x-bin", "x-empty", "x-long"} {
			out[k] = in[k]
		}
		_ = ss.SetHeader(out)
		ss.SetTrailer(metadata.MD{"t-bin": {"\x00\xff", ""}, "t": {"1", "2"}})
		return echo(ss)
	}), h2client.Config{UserAgent: "me/1"})
	long := string(bytes.Repeat([]byte("x"), 40_000)) // CONTINUATION
	md := metadata.MD{
		"authorization": {"Bearer x"}, "x-many": {"a", "b"}, "x-bin": {"\x00\x01\xfe"}, "x-empty": {""},
		"x-long": {long}, "content-type": {"text/plain"}, "te": {"no"}, "connection": {"close"},
	}
	for range 3 { // the first and the cached header block
		var reply h2client.Reply
		if err := c.Unary(soon(t), "/a.B/C", md, msg([]byte("x")), &reply); err != nil {
			t.Fatal(err)
		}
		reply.Message.Free()
		for k, want := range map[string][]string{
			"authorization": {"Bearer x"}, "x-many": {"a", "b"}, "x-bin": {"\x00\x01\xfe"}, "x-empty": {""}, "x-long": {long},
			"seen-type": {"application/grpc+proto"}, "seen-agent": {"me/1"}, "seen-authority": {c.RemoteAddr().String()},
		} {
			if got := reply.Header[k]; !slices.Equal(got, want) {
				t.Errorf("header %s: %.60q, want %.60q", k, got, want)
			}
		}
		if got := fmt.Sprintf("%q", map[string][]string(reply.Trailer)); got != `map["t":["1" "2"] "t-bin":["\x00\xff" ""]]` {
			t.Errorf("trailer: %s", got)
		}
		if _, ok := reply.Header["content-type"]; ok {
			t.Error("the protocol's own fields are among the metadata")
		}
	}
	for _, bad := range []string{"", "a.B/C", "/a b", "/a\r\n", "/é"} {
		var reply h2client.Reply
		if e := errorOf(t, c.Unary(soon(t), bad, nil, msg(nil), &reply)); e.Code != codes.Unimplemented || e.Origin != h2client.OriginRequest {
			t.Errorf("method %q: %+v", bad, e)
		}
	}
	for _, bad := range []metadata.MD{{"Upper": {"x"}}, {"k": {"a\nb"}}, {"k": {"\x7f"}}, {"k\r": {"v"}}, {"k": {"é"}}} {
		var reply h2client.Reply
		e := errorOf(t, c.Unary(soon(t), "/a.B/C", bad, msg(nil), &reply))
		if e.Code != codes.InvalidArgument || e.Origin != h2client.OriginRequest {
			t.Errorf("%q: %+v", bad, e)
		}
	}
}

func TestStatus(t *testing.T) {
	c := dial(t, newServer(t, func(ss grpc.ServerStream) error {
		ss.SetTrailer(metadata.Pairs("k", "v"))
		st, _ := status.New(codes.NotFound, "no account 7 – 100%").WithDetails(&errdetails.ErrorInfo{Reason: "R"})
		return st.Err()
	}), h2client.Config{})
	var reply h2client.Reply
	err := c.Unary(soon(t), "/a.B/C", nil, msg([]byte("x")), &reply)
	e := errorOf(t, err)
	if e.Code != codes.NotFound || e.Message != "no account 7 – 100%" || e.Origin != h2client.OriginServer || e.Unprocessed {
		t.Errorf("%+v", e)
	}
	st := status.Convert(err)
	if len(st.Details()) != 1 || st.Code() != codes.NotFound {
		t.Errorf("status %v with details %v", st, st.Details())
	}
	if reply.Answered || reply.Trailer.Get("k") == nil || len(reply.Message.Data) != 0 {
		t.Errorf("a trailers-only answer: %+v", reply)
	}
}

func TestStreams(t *testing.T) {
	both(t, func(ss grpc.ServerStream) error {
		switch m, _ := grpc.MethodFromServerStream(ss); m {
		case "/a.B/Client": // the sum of all lengths
			sum := 0
			for {
				var m []byte
				if err := ss.RecvMsg(&m); err != nil {
					m = strconv.AppendInt(nil, int64(sum), 10)
					return ss.SendMsg(&m)
				}
				sum += len(m)
			}
		case "/a.B/Server": // 1000 of what was asked for
			var m []byte
			if err := ss.RecvMsg(&m); err != nil {
				return err
			}
			for i := range 1000 {
				m := bytes.Clone(m) // which grpc-go keeps
				m[0] = byte(i)
				if err := ss.SendMsg(&m); err != nil {
					return err
				}
			}
			return nil
		}
		return echo(ss)
	}, h2client.Config{}, func(t *testing.T, c *h2client.Conn) {
		s, err := c.NewStream(soon(t), "/a.B/Client", nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			if err := s.Send(msg(pattern(5000, 0)), false); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		m, err := s.Recv()
		if got := string(m.Data.Materialize()); err != nil || got != "1500000" {
			t.Errorf("client stream: %q, %v", got, err)
		}
		m.Free()
		if _, err := s.Recv(); err != io.EOF {
			t.Errorf("end of a client stream: %v", err)
		}

		for _, size := range []int{1, 200, 70_000} {
			s, err := c.NewStream(soon(t), "/a.B/Server", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(msg(pattern(size, 3)), true); err != nil {
				t.Fatal(err)
			}
			if _, ok := s.Header(); !ok {
				t.Error("no header")
			}
			want := pattern(size, 3)
			for i := range 1000 {
				m, err := s.Recv()
				if err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
				want[0] = byte(i)
				if got := m.Data.Materialize(); !bytes.Equal(got, want) {
					t.Fatalf("message %d of %d bytes differs", i, size)
				}
				m.Free()
			}
			for range 2 {
				if _, err := s.Recv(); err != io.EOF {
					t.Errorf("end of a server stream: %v", err)
				}
			}
		}

		s, err = c.NewStream(soon(t), "/a.B/Bidi", nil)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range 500 {
				if err := s.Send(msg(pattern(i*7, i)), i == 499); err != nil {
					t.Errorf("message %d: %v", i, err)
					return
				}
			}
		})
		for i := range 500 {
			m, err := s.Recv()
			if err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			if got := m.Data.Materialize(); !bytes.Equal(got, pattern(i*7, i)) {
				t.Fatalf("message %d differs", i)
			}
			m.Free()
		}
		if _, err := s.Recv(); err != io.EOF {
			t.Errorf("end of a bidi stream: %v", err)
		}
		wg.Wait()
		if n := c.InFlight(); n != 0 {
			t.Errorf("%d calls in flight at the end", n)
		}
	})
}

func TestContext(t *testing.T) {
	ended := make(chan error, 10)
	sawEnd := func(t *testing.T) {
		t.Helper()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the server saw no end")
			}
		case <-soon(t).Done():
			t.Fatal("the server saw no end, or no call")
		}
	}
	both(t, func(ss grpc.ServerStream) error {
		<-ss.Context().Done()
		ended <- ss.Context().Err()
		return status.FromContextError(ss.Context().Err()).Err()
	}, h2client.Config{}, func(t *testing.T, c *h2client.Conn) {
		var reply h2client.Reply
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if e := errorOf(t, c.Unary(ctx, "/a.B/C", nil, msg([]byte("x")), &reply)); e.Code != codes.DeadlineExceeded { // perhaps the server's
			t.Errorf("deadline: %+v", e)
		}
		sawEnd(t)
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		s, err := c.NewStream(ctx, "/a.B/C", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(msg([]byte("x")), false); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Recv(); errorOf(t, err).Code != codes.Canceled {
				t.Errorf("cancelled: %v", err)
			}
		})
		cancel()
		wg.Wait()
		sawEnd(t)
		if err := s.Send(msg([]byte("x")), false); err != io.EOF {
			t.Errorf("Send after the end: %v", err)
		}
		if e := errorOf(t, c.Unary(ctx, "/a.B/C", nil, msg(nil), &reply)); e.Code != codes.Canceled {
			t.Errorf("a call of a context that has ended: %+v", e)
		}
		s, err = c.NewStream(t.Context(), "/a.B/C", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Send(msg(nil), true)
		wg.Go(func() {
			if _, err := s.Recv(); errorOf(t, err).Code != codes.Canceled {
				t.Errorf("closed: %v", err)
			}
		})
		s.Close()
		wg.Wait()
		sawEnd(t)
		if n := c.InFlight(); n != 0 {
			t.Errorf("%d calls in flight at the end", n)
		}
	})
}

// TestContextError sees that a call which ended at its deadline is told from one that was cancelled.
func TestContextError(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name     string
		cause    error // of the context, from which the call's is derived
		deadline time.Time
		want     codes.Code
	}{
		{"cancelled", nil, now.Add(time.Hour), codes.Canceled},
		{"cancelled for a reason", errors.New("reason"), now.Add(time.Hour), codes.Canceled},
		{"the deadline of another", context.DeadlineExceeded, now.Add(time.Hour), codes.DeadlineExceeded},
		{"cancelled at the deadline", errors.New("the client has gone"), now, codes.DeadlineExceeded},
	} {
		parent, end := context.WithCancelCause(t.Context())
		ctx, cancel := context.WithCancel(lateContext{parent, tt.deadline})
		end(tt.cause)
		<-ctx.Done()
		if e := h2client.ContextError(ctx); e.Code != tt.want || e.Origin != h2client.OriginContext {
			t.Errorf("%s: %+v, want %v", tt.name, e, tt.want)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), -1, errors.New("too slow"))
	defer cancel()
	if e := h2client.ContextError(ctx); e.Code != codes.DeadlineExceeded {
		t.Errorf("a deadline with a cause: %+v", e)
	}
}

// TestSlowReceiver sees that a server is held back by a receiver who does not receive, and that nothing is lost.
// endedContext has ended once over is set, and nobody has been told yet.
type endedContext struct {
	context.Context
	over atomic.Bool
}

func (c *endedContext) Err() error {
	if c.over.Load() {
		return context.Canceled
	}
	return nil
}

// TestHalfCloseAfterCancel cancels a call and half-closes it at once: the server saw a call that was whole, and answered OK.
func TestHalfCloseAfterCancel(t *testing.T) {
	for _, how := range []string{"CloseSend", "Send"} {
		t.Run(how, func(t *testing.T) {
			ended := make(chan error, 1)
			conn := dial(t, newServer(t, func(ss grpc.ServerStream) error {
				var b []byte
				err := ss.RecvMsg(&b)
				if err == nil {
					err = ss.RecvMsg(&b)
				}
				ended <- err
				return nil
			}), h2client.Config{})
			ctx := &endedContext{Context: soon(t)}
			s, err := conn.NewStream(ctx, "/test.Service/Method", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(msg([]byte("1")), false); err != nil {
				t.Fatal(err)
			}
			ctx.over.Store(true)
			if how == "Send" {
				err = s.Send(msg([]byte("2")), true)
			} else {
				err = s.CloseSend()
			}
			if want := map[string]error{"CloseSend": nil, "Send": io.EOF}[how]; err != want {
				t.Errorf("%s says %v, want %v", how, err, want)
			}
			if err := <-ended; status.Code(err) != codes.Canceled {
				t.Errorf("the server got %v, want that the call is cancelled", err)
			}
			if _, err := s.Recv(); errorOf(t, err).Code != codes.Canceled {
				t.Errorf("Recv: %v", err)
			}
		})
	}
}

func TestSlowReceiver(t *testing.T) {
	sent := make(chan int, 10_000)
	c := dial(t, newServer(t, func(ss grpc.ServerStream) error {
		var m []byte
		if err := ss.RecvMsg(&m); err != nil {
			return err
		}
		for i := range 200 {
			m := pattern(20_000, i)
			if err := ss.SendMsg(&m); err != nil {
				return err
			}
			sent <- i
		}
		return nil
	}), h2client.Config{StreamWindow: 64 << 10})
	s, err := c.NewStream(soon(t), "/a.B/C", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Send(msg(nil), true)
	for range 3 {
		<-sent
	}
	// Calls beside it are not held up.
	for range 200 {
		select {
		case <-sent:
		default:
		}
		other, err := c.NewStream(soon(t), "/a.B/C", nil)
		if err != nil {
			t.Fatal(err)
		}
		other.Close()
	}
	for i := range 200 {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.Data.Materialize(), pattern(20_000, i)) {
			t.Fatalf("message %d differs", i)
		}
		m.Free()
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
}

func TestALPN(t *testing.T) {
	cert, pool := certificate(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		nc, err := ln.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, nc)
			nc.Close()
		}
	})
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = h2client.New(soon(t), nc, h2client.Config{Handshake: h2client.ClientTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, "127.0.0.1")})
	if err == nil {
		t.Error("a server without ALPN was accepted")
	}
	wg.Wait()
	ln.Close()
}

func TestCloseEndsCalls(t *testing.T) {
	both(t, func(ss grpc.ServerStream) error { <-ss.Context().Done(); return nil }, h2client.Config{}, func(t *testing.T, c *h2client.Conn) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				var reply h2client.Reply
				if e := errorOf(t, c.Unary(soon(t), "/a.B/C", nil, msg([]byte("x")), &reply)); e.Code != codes.Unavailable || e.Origin != h2client.OriginConn {
					t.Errorf("%+v", e)
				}
			})
		}
		for c.InFlight() < 8 {
			<-time.After(time.Millisecond)
		}
		c.Close()
		wg.Wait()
		if c.State() != h2client.Closed || c.Err() != h2client.ErrClosed || c.InFlight() != 0 {
			t.Errorf("%v, %v, %d in flight", c.State(), c.Err(), c.InFlight())
		}
		var reply h2client.Reply
		if e := errorOf(t, c.Unary(soon(t), "/a.B/C", nil, msg(nil), &reply)); !e.Unprocessed {
			t.Errorf("%+v", e)
		}
		c.Close()
	})
}

func TestDrain(t *testing.T) {
	release := make(chan struct{})
	c := dial(t, newServer(t, func(ss grpc.ServerStream) error { <-release; return echo(ss) }), h2client.Config{})
	s, err := c.NewStream(soon(t), "/a.B/C", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Drain()
	<-c.Draining()
	var reply h2client.Reply
	if e := errorOf(t, c.Unary(soon(t), "/a.B/C", nil, msg(nil), &reply)); !e.Unprocessed || e.Code != codes.Unavailable {
		t.Errorf("%+v", e)
	}
	close(release)
	if err := s.Send(msg([]byte("x")), true); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Recv(); err != nil || string(m.Data.Materialize()) != "x" {
		t.Errorf("%v", err)
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
	<-c.Done()
}

func tlsConfig(pool *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// accept runs serve on the one connection that is made to addr, over TLS perhaps. wait waits for its end.
func accept(tb testing.TB, cert tls.Certificate, secure bool, serve func(net.Conn)) (addr string, wait func()) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		if secure {
			tc := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12})
			if err := tc.Handshake(); err != nil {
				tb.Error(err)
				return
			}
			nc = tc
		}
		serve(nc)
	})
	return ln.Addr().String(), func() { ln.Close(); wg.Wait() }
}
