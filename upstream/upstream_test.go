package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"transom/descriptors"
	"transom/rpc"
	"transom/rpc/rpctest"
	"transom/upstream"
)

func TestMain(m *testing.M) {
	// grpc-go logs an error for each connection to a server that has no health service.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	balancer.Register(recording{balancer.Get("round_robin")})
	goleak.VerifyTestMain(m)
}

// Methods of the backends here, one of each kind.
var (
	unary  = &descriptors.Method{FullPath: "/t.T/Unary", Name: "t.T.Unary"}
	server = &descriptors.Method{FullPath: "/t.T/Server", Name: "t.T.Server", ServerStreams: true}
	client = &descriptors.Method{FullPath: "/t.T/Client", Name: "t.T.Client", ClientStreams: true}
	bidi   = &descriptors.Method{FullPath: "/t.T/Bidi", Name: "t.T.Bidi", ClientStreams: true, ServerStreams: true}
)

// bytesCodec is what a backend that deals in raw messages uses.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }
func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// stream is a backend's side of a call of raw messages.
type stream struct{ grpc.ServerStream }

func (s stream) recv() (string, error) {
	var b []byte
	err := s.RecvMsg(&b)
	return string(b), err
}

func (s stream) send(m string) error { return s.SendMsg([]byte(m)) }

// newBackend serves every method by h on a loopback port and returns its address.
func newBackend(t testing.TB, h func(method string, s stream) error, opts ...grpc.ServerOption) string {
	addr, _ := newServer(t, "127.0.0.1:0", h, opts...)
	return addr
}

func newServer(t testing.TB, addr string, h func(method string, s stream) error, opts ...grpc.ServerOption) (string, *grpc.Server) {
	t.Helper()
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	opts = append(opts, grpc.ForceServerCodecV2(bytesCodec{}), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(ss)
		if !strings.HasPrefix(method, "/t.T/") { // such as health checks
			return status.Error(codes.Unimplemented, method)
		}
		return h(method, stream{ss})
	}))
	srv := grpc.NewServer(opts...)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return ln.Addr().String(), srv
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// transportEnv makes the tests here use a transport: "own" or "grpc-go".
const transportEnv = "TRANSOM_TEST_TRANSPORT"

// transport is that of all clusters here that name none.
func transport() upstream.Transport {
	if os.Getenv(transportEnv) == "grpc-go" {
		return upstream.TransportGRPCGo
	}
	return upstream.TransportOwn
}

// Everything that holds with our own transport holds with grpc-go's.
func TestOverGRPCGo(t *testing.T) {
	if os.Getenv(transportEnv) != "" {
		return // as this test is about to be run in a process that it has started
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.timeout=5m", "-test.short="+strconv.FormatBool(testing.Short()))
	cmd.Env = append(os.Environ(), transportEnv+"=grpc-go")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func newCluster(t testing.TB, cfg upstream.Config) *upstream.Cluster {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "bank"
	}
	if cfg.Transport == upstream.TransportDefault {
		cfg.Transport = transport()
	}
	c, err := upstream.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

// echo answers as the kinds of method do: it repeats what it gets.
func echo(method string, s stream) error {
	switch method {
	case unary.FullPath:
		m, err := s.recv()
		if err != nil {
			return err
		}
		return s.send("re:" + m)
	case server.FullPath:
		m, err := s.recv()
		if err != nil {
			return err
		}
		for i := range 3 {
			if err := s.send(fmt.Sprint(m, i)); err != nil {
				return err
			}
		}
		return nil
	case client.FullPath:
		var all []string
		for {
			m, err := s.recv()
			if err == io.EOF {
				return s.send(strings.Join(all, "+"))
			}
			if err != nil {
				return err
			}
			all = append(all, m)
		}
	}
	for {
		m, err := s.recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.send("re:" + m); err != nil {
			return err
		}
	}
}

// exchange makes a whole call: it sends msgs, half-closes and receives to the end.
func exchange(t testing.TB, c *upstream.Cluster, m *descriptors.Method, header metadata.MD, msgs ...string) (replies []string, call *rpctest.Call, err error) {
	t.Helper()
	call = rpctest.Start(t.Context(), c.Invoke, m, header)
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, m := range msgs {
			_ = call.Send([]byte(m)) // the call's end says why
		}
		_ = call.CloseSend()
	})
	for {
		var b []byte
		if b, err = call.Recv(); err != nil {
			break
		}
		replies = append(replies, string(b))
	}
	wg.Wait()
	_ = call.Wait()
	if err == io.EOF {
		err = nil
	}
	return replies, call, err
}

// A method of one answer is answered once, or the backend is at fault: two would be taken for one by who joins them.
func TestAnswersOfOneAnswer(t *testing.T) {
	for n, want := range []codes.Code{codes.Internal, codes.OK, codes.Internal} {
		addr := newBackend(t, func(_ string, s stream) error {
			if _, err := s.recv(); err != nil {
				return err
			}
			for range n {
				if err := s.send("answer"); err != nil {
					return err
				}
			}
			return nil
		})
		c := newCluster(t, upstream.Config{Target: "static:///" + addr})
		for _, m := range []*descriptors.Method{unary, client} {
			replies, call, err := exchange(t, c, m, nil, "m")
			if status.Code(err) != want || len(replies) > 1 {
				t.Errorf("%s answered with %d messages: %d replies and %v, want %v", m.FullPath, n, len(replies), err, want)
			}
			if want != codes.OK && call.Info().ErrorSource != rpc.SourceUpstream {
				t.Errorf("%s answered with %d messages: the source of the error is %v", m.FullPath, n, call.Info().ErrorSource)
			}
		}
	}
}

// panicking is a client's stream one of whose methods panics.
type panicking struct {
	rpc.Stream
	in string
}

func (p panicking) do(what string) {
	if what == p.in {
		panic("secret")
	}
}

func (p panicking) Recv(ctx context.Context) (rpc.Message, error) {
	p.do("Recv")
	return p.Stream.Recv(ctx)
}

func (p panicking) SendHeader(md metadata.MD) error {
	p.do("SendHeader")
	return p.Stream.SendHeader(md)
}

func (p panicking) Send(ctx context.Context, m rpc.Message) error {
	p.do("Send")
	return p.Stream.Send(ctx, m)
}

func (p panicking) Flush() error {
	p.do("Flush")
	return p.Stream.Flush()
}

// A panic over what a client sends or is sent ends the call, for the balancer too, and not the process.
func TestPanicOverMessages(t *testing.T) {
	c := newCluster(t, upstream.Config{Target: "static:///" + newBackend(t, echo)})
	for _, in := range []string{"Recv", "SendHeader", "Send", "Flush"} {
		call := rpctest.Start(t.Context(), func(ctx context.Context, call *rpc.Call) error {
			call.Stream = panicking{call.Stream, in}
			return c.Invoke(ctx, call)
		}, bidi, nil)
		_ = call.Send([]byte("m")) // and no half-close: the call does not end by itself
		err := call.Wait()
		if st := rpc.StatusOf(err); st.Code() != codes.Internal || strings.Contains(st.Message(), "secret") || call.Info().ErrorSource != rpc.SourceGateway {
			t.Errorf("%s: %v, of %v", in, st, call.Info().ErrorSource)
		}
		if !strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "panicking."+in) {
			t.Errorf("%s: the log is not told what happened: %v", in, err)
		}
		if e := c.Endpoints(); len(e) != 1 || e[0].Streams != 0 {
			t.Errorf("%s: %d streams are in flight", in, e[0].Streams)
		}
	}
}

// A call over Conn counts as in flight until it ends, also if its caller gives it up by its context, as asking for descriptors
// does, or never gets to send its message.
func TestConnCallsEnd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	reflection.Register(srv)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	c := newCluster(t, upstream.Config{Target: "static:///" + ln.Addr().String()})
	idle := func(what string) {
		t.Helper()
		for late := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
			e := c.Endpoints()
			if len(e) == 1 && e[0].InFlight == 0 && e[0].Streams == 0 {
				return
			}
			if time.Now().After(late) {
				t.Fatalf("%s: %d calls and %d streams are in flight", what, e[0].InFlight, e[0].Streams)
			}
		}
	}
	if _, err := descriptors.ReflectionSource(c.Conn(), 0).Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	idle("after reflection")
	err = c.Conn().Invoke(t.Context(), "/t.T/Get", wrapperspb.String("\xff"), &emptypb.Empty{})
	if status.Code(err) != codes.Internal {
		t.Fatal(err)
	}
	idle("after a message that cannot be encoded")
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.Conn().NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/t.T/Get"); err != nil {
		t.Fatal(err)
	}
	cancel()
	idle("after a stream that was never used")
}

func TestKinds(t *testing.T) {
	addr := newBackend(t, echo)
	for _, lb := range []string{"", "round_robin", `[{"pick_first": {}}]`} {
		c := newCluster(t, upstream.Config{Target: "static:///" + addr, LB: lb})
		for _, tt := range []struct {
			method *descriptors.Method
			msgs   []string
			want   []string
		}{
			{unary, []string{"a"}, []string{"re:a"}},
			{unary, []string{""}, []string{"re:"}},
			{server, []string{"a"}, []string{"a0", "a1", "a2"}},
			{client, []string{"a", "b", "", "c"}, []string{"a+b++c"}},
			{client, nil, []string{""}},
			{bidi, []string{"a", "b", "c", "d", "e", "f"}, []string{"re:a", "re:b", "re:c", "re:d", "re:e", "re:f"}},
			{bidi, nil, nil},
			{descriptors.Opaque("/t.T/Unary"), []string{"a"}, []string{"re:a"}},
			{descriptors.Opaque("/t.T/Server"), []string{"a"}, []string{"a0", "a1", "a2"}},
		} {
			got, call, err := exchange(t, c, tt.method, nil, tt.msgs...)
			if err != nil {
				t.Errorf("%s(%q): %v", tt.method.FullPath, tt.msgs, err)
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) || len(got) != len(tt.want) {
				t.Errorf("%s(%q) = %q, want %q", tt.method.FullPath, tt.msgs, got, tt.want)
			}
			in := call.Info()
			if in.Cluster != "bank" || in.Endpoint != addr || in.Attempts != 1 || in.Upstream <= 0 || in.ErrorSource != rpc.SourceNone {
				t.Errorf("%s: Info = %+v", tt.method.FullPath, in)
			}
		}
	}
}

func TestMetadata(t *testing.T) {
	seen := make(chan metadata.MD, 8)
	addr := newBackend(t, func(method string, s stream) error {
		md, _ := metadata.FromIncomingContext(s.Context())
		seen <- md
		s.SetTrailer(metadata.Pairs("t", "1", "t", "2", "t-bin", "\x00\xff", "endpoint-load-metrics-bin", "x"))
		if err := s.SendHeader(metadata.Pairs("h", "1", "h-bin", "\x01")); err != nil {
			return err
		}
		return echo(method, s)
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr})
	for _, m := range []*descriptors.Method{unary, server, client, bidi} {
		_, call, err := exchange(t, c, m, metadata.MD{
			"a": {"1", "2"}, "a-bin": {"\x00"}, "grpc-trace-bin": {"t"},
			"grpc-encoding": {"gzip"}, "grpc-secret": {"x"}, "connection": {"close"}, "te": {"gzip"}, "host": {"x"},
			"content-length": {"7"}, "transfer-encoding": {"chunked"}, "user-agent": {"curl"}, ":path": {"/"},
			"grpc-previous-rpc-attempts": {"77"}, "grpc-timeout": {"1n"}, "proxy-authorization": {"x"}, "trailer": {"x"}, "http2-settings": {"x"},
		}, "m")
		if err != nil {
			t.Fatalf("%s: %v", m.FullPath, err)
		}
		md := <-seen
		for k, want := range map[string]string{
			"a": "[1 2]", "a-bin": "[\x00]", "grpc-trace-bin": "[t]", "grpc-secret": "[]", "connection": "[]", "host": "[]",
			"content-length": "[]", "grpc-encoding": "[]", "transfer-encoding": "[]", "grpc-previous-rpc-attempts": "[]",
			"proxy-authorization": "[]", "trailer": "[]", "http2-settings": "[]", ":authority": "[" + addr + "]",
		} {
			if got := fmt.Sprint(md[k]); got != want {
				t.Errorf("%s: the backend got %s = %q, want %q", m.FullPath, k, got, want)
			}
		}
		if ua := fmt.Sprint(md["user-agent"]); !strings.Contains(ua, "transom") || strings.Contains(ua, "curl") {
			t.Errorf("%s: user-agent = %s", m.FullPath, ua)
		}
		if got, want := fmt.Sprintf("%q", map[string][]string(call.Header())), `map["h":["1"] "h-bin":["\x01"]]`; got != want {
			t.Errorf("%s: header = %s, want %s", m.FullPath, got, want)
		}
		if got, want := fmt.Sprintf("%q", map[string][]string(call.Trailer())), `map["endpoint-load-metrics-bin":["x"] "t":["1" "2"] "t-bin":["\x00\xff"]]`; got != want {
			t.Errorf("%s: trailer = %s, want %s", m.FullPath, got, want)
		}
	}
}

// A backend's status arrives as it was sent: before anything else as trailers-only, and after headers or messages.
func TestStatus(t *testing.T) {
	detailed, err := status.New(codes.FailedPrecondition, "no ünicode\nproblem").WithDetails(&errdetails.ErrorInfo{Reason: "R"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []*status.Status{
		detailed,
		status.New(codes.Unavailable, "error reading from server: not really"), // looks like grpc-go's own
		status.New(codes.Canceled, "the backend gave up"),
		status.New(codes.DeadlineExceeded, "behind the backend"),
		status.New(codes.Internal, ""),
	} {
		for _, after := range []string{"nothing", "header", "message"} {
			addr := newBackend(t, func(method string, s stream) error {
				if _, err := s.recv(); err != nil {
					return err
				}
				s.SetTrailer(metadata.Pairs("t", "1"))
				switch after {
				case "header":
					if err := s.SendHeader(metadata.Pairs("h", "1")); err != nil {
						return err
					}
				case "message":
					if err := s.send("m"); err != nil {
						return err
					}
				}
				return want.Err()
			})
			c := newCluster(t, upstream.Config{Target: "static:///" + addr})
			for _, m := range []*descriptors.Method{unary, server, client, bidi} {
				_, call, err := exchange(t, c, m, nil, "m")
				if got := status.Convert(err); got.String() != want.String() || len(got.Details()) != len(want.Details()) {
					t.Errorf("%s after %s: %v, want %v", m.FullPath, after, got, want)
				}
				if got := call.Info().ErrorSource; got != rpc.SourceUpstream {
					t.Errorf("%s after %s: source = %v, want upstream", m.FullPath, after, got)
				}
				if got := call.Trailer()["t"]; len(got) != 1 {
					t.Errorf("%s after %s: trailer = %v", m.FullPath, after, call.Trailer())
				}
				if got, want := call.Committed(), after != "nothing" && m != unary; got != want {
					t.Errorf("%s after %s: committed = %v, want %v", m.FullPath, after, got, want)
				}
			}
		}
	}
}

// What goes wrong on the way is told by the cluster's name, never by an address.
func TestFaultsOnTheWay(t *testing.T) {
	raw := func(serve func(net.Conn)) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { defer conn.Close(); serve(conn) })
			}
		})
		t.Cleanup(func() { ln.Close(); wg.Wait() })
		return ln.Addr().String()
	}
	refused := raw(func(net.Conn) {})
	notHTTP2 := raw(func(c net.Conn) { _, _ = io.WriteString(c, "220 mail.example ESMTP\r\n") })
	long := newBackend(t, func(_ string, s stream) error {
		_, _ = s.recv()
		return s.send(strings.Repeat("x", 2000))
	})
	var srv *grpc.Server
	var dying string
	dying, srv = newServer(t, "127.0.0.1:0", func(method string, s stream) error {
		if method == bidi.FullPath {
			_ = s.send("m")
		}
		go srv.Stop()
		<-s.Context().Done()
		return nil
	})
	for _, tt := range []struct {
		name, addr string
		method     *descriptors.Method
		code       codes.Code
		text       string
	}{
		{"refused", refused, unary, codes.Unavailable, `cluster "bank" has no endpoint that can be reached`},
		{"refused stream", refused, bidi, codes.Unavailable, `cluster "bank" has no endpoint that can be reached`},
		{"not HTTP/2", notHTTP2, unary, codes.Unavailable, `cluster "bank" has no endpoint that can be reached`},
		{"too long", long, unary, codes.ResourceExhausted, `cluster "bank" sent a message larger than the limit for answers`},
		{"too long stream", long, server, codes.ResourceExhausted, `cluster "bank" sent a message larger than the limit for answers`},
		{"dies mid-call", dying, bidi, codes.Unavailable, `cluster "bank" lost the connection to the endpoint during the call`},
	} {
		c := newCluster(t, upstream.Config{Target: "static:///" + tt.addr, MaxMessageBytes: 1000})
		_, call, err := exchange(t, c, tt.method, nil, "m")
		st := status.Convert(err)
		if st.Code() != tt.code || st.Message() != tt.text {
			t.Errorf("%s: %v %q, want %v %q", tt.name, st.Code(), st.Message(), tt.code, tt.text)
		}
		var e *upstream.Error
		if !errors.As(call.Wait(), &e) || e.Cause == nil || e.Cluster != "bank" {
			t.Errorf("%s: %#v is no *Error with a cause", tt.name, call.Wait())
		}
		if e != nil && (e.HTTPStatus() == http.StatusBadGateway) != (tt.code == codes.ResourceExhausted) {
			t.Errorf("%s: HTTP status %d", tt.name, e.HTTPStatus()) // 429 would tell a client of REST to come back
		}
		if got := call.Info().ErrorSource; got != rpc.SourceUpstream {
			t.Errorf("%s: source = %v, want upstream", tt.name, got)
		}
	}
}

func TestBadMetadataIsTheClients(t *testing.T) {
	c := newCluster(t, upstream.Config{Target: "static:///" + newBackend(t, echo)})
	_, call, err := exchange(t, c, unary, metadata.MD{"k": {"ü"}}, "m")
	if st := status.Convert(err); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), `"k"`) {
		t.Errorf("non-ASCII metadata: %v", st)
	}
	if got := call.Info().ErrorSource; got != rpc.SourceClient {
		t.Errorf("source = %v, want client", got)
	}
}

// The backend hears at once that the client is gone, the deadline has passed or the client's credential is over, and the call ends.
func TestCallEndsEarly(t *testing.T) {
	for _, m := range []*descriptors.Method{unary, server, client, bidi} {
		for _, how := range []string{"leave", "deadline", "credential"} {
			timeout := 200 * time.Millisecond
			for !callEndsEarly(t, m, how, timeout) {
				if timeout *= 2; timeout > time.Minute {
					t.Fatalf("%s, %s: the backend was not reached", m.FullPath, how)
				}
			}
		}
	}
}

// callEndsEarly makes a call that ends early, and reports whether it began: the timeout, which is that of a call with a
// deadline, may not suffice for the backend to be reached.
func callEndsEarly(t *testing.T, m *descriptors.Method, how string, timeout time.Duration) (began bool) {
	t.Helper()
	started, ended := make(chan struct{}), make(chan struct{})
	addr := newBackend(t, func(method string, s stream) error {
		if _, err := s.recv(); err != nil {
			return err
		}
		if _, ok := s.Context().Deadline(); ok != (how == "deadline") {
			t.Errorf("%s: the backend has a deadline: %v", method, ok)
		}
		close(started)
		<-s.Context().Done()
		close(ended)
		return status.FromContextError(s.Context().Err()).Err()
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr})
	ctx, cut := context.WithCancelCause(t.Context())
	defer cut(nil)
	code, source := codes.Canceled, rpc.SourceClient
	if how == "deadline" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
		code, source = codes.DeadlineExceeded, rpc.SourceUpstream
	}
	call := rpctest.Start(ctx, c.Invoke, m, nil)
	_ = call.Send([]byte("m"))
	if !m.ClientStreams {
		_ = call.CloseSend()
	}
	end := make(chan error, 1)
	go func() { end <- call.Wait() }()
	select {
	case <-started:
	case err := <-end:
		if how != "deadline" || rpc.StatusOf(err).Code() != code {
			t.Fatalf("%s, %s: %v before the backend was reached", m.FullPath, how, err)
		}
		return false
	}
	switch how {
	case "leave":
		call.Leave()
	case "credential":
		code = codes.Unauthenticated
		cut(status.Error(code, "the credential was withdrawn"))
	}
	if err := <-end; rpc.StatusOf(err).Code() != code {
		t.Errorf("%s, %s: %v, want %v", m.FullPath, how, err, code)
	}
	if got := call.Info().ErrorSource; got != source {
		t.Errorf("%s, %s: source = %v, want %v", m.FullPath, how, got, source)
	}
	<-ended
	return true
}

// A backend that ends the call while the client still could send ends it for the client.
func TestBackendEndsFirst(t *testing.T) {
	addr := newBackend(t, func(_ string, s stream) error {
		if _, err := s.recv(); err != nil {
			return err
		}
		return status.Error(codes.OutOfRange, "enough")
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr})
	for _, m := range []*descriptors.Method{client, bidi} {
		call := rpctest.Start(t.Context(), c.Invoke, m, nil)
		_ = call.Send([]byte("m"))
		if err := call.Wait(); status.Code(err) != codes.OutOfRange {
			t.Errorf("%s: %v, want OutOfRange", m.FullPath, err)
		}
	}
}

// Headers reach the client before there is any message.
func TestHeadersAtOnce(t *testing.T) {
	addr := newBackend(t, func(_ string, s stream) error {
		if err := s.SendHeader(metadata.Pairs("h", "1")); err != nil {
			return err
		}
		_, err := s.recv()
		if err != nil {
			return err
		}
		return s.send("m")
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr})
	call := rpctest.Start(t.Context(), c.Invoke, bidi, nil)
	if h := call.Header(); fmt.Sprint(h["h"]) != "[1]" {
		t.Errorf("header = %v", h)
	}
	_ = call.Send([]byte("m"))
	if m, err := call.Recv(); string(m) != "m" || err != nil {
		t.Errorf("Recv = %q, %v", m, err)
	}
	if _, err := call.Recv(); err != io.EOF {
		t.Errorf("Recv at the end: %v", err)
	}
}

func TestClose(t *testing.T) {
	entered, release := make(chan struct{}, 1), make(chan struct{})
	addr := newBackend(t, func(method string, s stream) error {
		if method == unary.FullPath {
			entered <- struct{}{}
		}
		<-release
		return echo(method, s)
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr})
	call := rpctest.Start(t.Context(), c.Invoke, unary, nil)
	_ = call.Send([]byte("m"))
	_ = call.CloseSend()
	<-entered

	closed := make(chan error)
	go func() { closed <- c.Close(t.Context()) }()
	// Until Close has begun new calls wait in the backend, which a test can't see: so ask until one is refused.
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		again := rpctest.Start(ctx, c.Invoke, bidi, nil)
		err := again.Wait()
		cancel()
		if status.Code(err) == codes.Unavailable {
			if got := again.Info().ErrorSource; got != rpc.SourceGateway {
				t.Errorf("refused call: source = %v, want gateway", got)
			}
			break
		}
	}
	select {
	case err := <-closed:
		t.Fatalf("Close returned %v with a call in flight", err)
	default:
	}
	close(release)
	if m, err := call.Recv(); string(m) != "re:m" || err != nil {
		t.Errorf("the call in flight: %q, %v", m, err)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
}

// waiter is what both transports' Conn can do besides calls.
type waiter interface {
	WaitForStateChange(ctx context.Context, s connectivity.State) bool
}

func TestCloseGivesUp(t *testing.T) {
	entered := make(chan struct{})
	addr := newBackend(t, func(_ string, s stream) error { close(entered); <-s.Context().Done(); return nil })
	c, err := upstream.New(upstream.Config{Name: "bank", Target: "static:///" + addr, Transport: transport()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	call := rpctest.Start(t.Context(), c.Invoke, client, nil)
	<-entered
	// Calls are let through a moment before the state says so.
	for cc := c.Conn().(waiter); !c.Ready(); {
		if s := c.State(); s != connectivity.Ready && !cc.WaitForStateChange(t.Context(), s) {
			t.Fatalf("state = %v with a call at the backend", s)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close = %v, want %v", err, context.Canceled)
	}
	if err := call.Wait(); status.Code(err) != codes.Unavailable {
		t.Errorf("the call cut off: %v, want Unavailable", err)
	}
}

func TestConfigFaults(t *testing.T) {
	for _, tt := range []struct {
		cfg  upstream.Config
		want string
	}{
		{upstream.Config{}, "name: must not be empty\ntarget: must not be empty"},
		{upstream.Config{Name: "a", Target: "host"}, `target: "host" must be host:port`},
		{upstream.Config{Name: "a", Target: "host:99999"}, `target: "host:99999" has the port "99999", which is not 1 … 65535`},
		{upstream.Config{Name: "a", Target: "http://x:1"}, `unknown scheme "http"; give host:port, dns:///`},
		{upstream.Config{Name: "a", Target: "static://x:1"}, `needs three slashes: static:///x:1`},
		{upstream.Config{Name: "a", Target: "static:///x:1,y"}, `target: "y" must be host:port`},
		{upstream.Config{Name: "a", Target: "static:///x:1,x:1"}, `target: "x:1" is listed twice`},
		{upstream.Config{Name: "a", Target: "file://x"}, `needs three slashes`},
		{upstream.Config{Name: "a", Target: "x:1", LB: "fastest"}, `lb.policy: there is no "fastest"; there are adaptive, round_robin, weighted_round_robin, least_request, peak_ewma, random, ring_hash, bounded_hash and pick_first`},
		{upstream.Config{Name: "a", Target: "x:1", LB: "[{"}, `lb.policy: must be a name or a list as in gRPC service config: line 1, column 2`},
		{upstream.Config{Name: "a", Target: "x:1", LB: `[{"weighted_target": {}, "b": {}}]`}, `each entry of the list must name one policy, not 2`},
		{
			upstream.Config{Name: "a", Target: "x:1", LB: `[{"adaptive": {"subset": -1, "probes": 11}}]`},
			"lb.policy: adaptive: subset: must be at least 0, is -1\nlb.policy: adaptive: probes: must be from 0 to 10, is 11",
		},
		{upstream.Config{Name: "a", Target: "x:1", LB: `[{"adaptive": {"ejection": {"base": 1}}}]`}, `lb.policy: adaptive: ejection.base: 1 is not a duration such as "90s"`},
		{upstream.Config{Name: "a", Target: "x:1", MaxMessageBytes: -1}, `max message bytes: -1 is outside`},
		{upstream.Config{Name: "a", Target: "x:1", TLS: &upstream.TLS{CertFile: "c"}}, `tls: certificate and key must be given together`},
		{upstream.Config{Name: "a", Target: "x:1", TLS: &upstream.TLS{CAFile: "/none"}}, `tls: certificate authorities: open /none`},
	} {
		err := tt.cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.cfg, err, tt.want)
		}
	}
	for _, target := range []string{"x:1", "[::1]:1", "dns:///x:1", "dns://8.8.8.8/x:1", "static:///x:1,y:2", "file:///a/b.yaml", "unix:/a", "unix:///a"} {
		if err := (upstream.Config{Name: "a", Target: target}).Validate(); err != nil {
			t.Errorf("target %q: %v", target, err)
		}
	}
}
