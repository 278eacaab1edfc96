package listeners_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/descriptors"
	"transom/listeners"
	wsv1 "transom/proto/transom/ws/v1"
	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/rpc/rpctest"
	"transom/transcoder"
)

// sessionSocket is a client of transom.v1.
type sessionSocket struct {
	*websocket.Conn
	ctx    context.Context
	binary bool
}

func dialSession(ctx context.Context, url string, binary bool) (*sessionSocket, error) {
	conn, _, err := websocket.Dial(ctx, "ws"+url[4:]+"/", &websocket.DialOptions{Subprotocols: []string{"transom.v1"}})
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(-1)
	return &sessionSocket{conn, ctx, binary}, nil
}

// send sends a frame, with message as its payload if it is not nil.
func (s *sessionSocket) send(f *wsv1.Frame, message []byte) error {
	if s.binary {
		f.Binary = message
		b, err := proto.Marshal(f)
		if err != nil {
			return err
		}
		return s.Write(s.ctx, websocket.MessageBinary, b)
	}
	b, err := protojson.Marshal(f)
	if err != nil {
		return err
	}
	if message != nil {
		if bytes.Equal(b, []byte("{}")) {
			b = []byte("{")
		} else {
			b = append(b[:len(b)-1], ',')
		}
		b = append(append(append(b, `"message":`...), jsonOfValue(message)...), '}')
	}
	return s.Write(s.ctx, websocket.MessageText, b)
}

// receive returns the next frame, with its payload.
func (s *sessionSocket) receive() (*wsv1.Frame, []byte, error) {
	typ, b, err := s.Read(s.ctx)
	if err != nil {
		return nil, nil, err
	}
	f := &wsv1.Frame{}
	if s.binary != (typ == websocket.MessageBinary) {
		return nil, nil, fmt.Errorf("a %v frame, binary is %v", typ, s.binary)
	}
	if s.binary {
		err := proto.Unmarshal(b, f)
		return f, f.GetBinary(), err
	}
	if err := protojson.Unmarshal(b, f); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", b, err)
	}
	if f.Message == nil {
		return f, nil, nil
	}
	var m struct{ Message []byte }
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, nil, err
	}
	return f, rpctest.Value(m.Message), nil
}

func listOf(key string, values []string) *structpb.ListValue {
	l := &structpb.ListValue{}
	for _, v := range values {
		if strings.HasSuffix(key, "-bin") {
			v = grpcwire.EncodeBin(v)
		}
		l.Values = append(l.Values, structpb.NewStringValue(v))
	}
	return l
}

func mdOf(m map[string]*structpb.ListValue) metadata.MD {
	md := metadata.MD{}
	for k, l := range m {
		for _, v := range l.GetValues() {
			s := v.GetStringValue()
			if strings.HasSuffix(k, "-bin") {
				b, _ := grpcwire.DecodeBin(s)
				s = string(b)
			}
			md.Append(k, s)
		}
	}
	return md
}

// sessionClient is a call that is alone on its socket.
type sessionClient struct {
	s       *sessionSocket
	cancel  context.CancelFunc
	credits chan struct{}
	header  metadata.MD
	trailer metadata.MD
	queue   [][]byte
	status  error // io.EOF for OK
	owed    int
}

func startSession(t *testing.T, url string, m *descriptors.Method, header metadata.MD, binary bool) *sessionClient {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := dialSession(ctx, url, binary)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	c := &sessionClient{s: s, cancel: cancel, credits: make(chan struct{}, 10_000)}
	t.Cleanup(c.Leave)
	for range transcoder.EnvelopeWindow {
		c.credits <- struct{}{}
	}
	open := &wsv1.Open{Method: m.FullPath, Metadata: map[string]*structpb.ListValue{}}
	for k, vs := range header {
		open.Metadata[k] = listOf(k, vs)
	}
	if err := s.send(&wsv1.Frame{Id: 1, Open: open}, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *sessionClient) Send(msg []byte) error {
	select {
	case <-c.credits:
	case <-c.s.ctx.Done():
		return c.s.ctx.Err()
	}
	if msg == nil {
		msg = []byte{}
	}
	return c.s.send(&wsv1.Frame{Id: 1}, msg)
}

func (c *sessionClient) CloseSend() error { return c.s.send(&wsv1.Frame{Id: 1, End: true}, nil) }

// step takes in one frame.
func (c *sessionClient) step() {
	f, msg, err := c.s.receive()
	if err != nil {
		c.status = err
		return
	}
	if f.Header != nil {
		c.header = mdOf(f.Header.GetMetadata())
	}
	if f.Binary != nil || f.Message != nil {
		c.queue = append(c.queue, msg)
	}
	for range f.Credit {
		c.credits <- struct{}{}
	}
	if st := f.Status; st != nil {
		c.trailer = mdOf(st.GetTrailers())
		c.status = io.EOF
		if st.GetCode() != 0 {
			c.status = status.Error(codes.Code(st.GetCode()), st.GetMessage())
		}
	}
}

func (c *sessionClient) Header() metadata.MD {
	for c.header == nil && c.status == nil {
		c.step()
	}
	return c.header
}

func (c *sessionClient) Recv() ([]byte, error) {
	for len(c.queue) == 0 && c.status == nil {
		c.step()
	}
	if len(c.queue) == 0 {
		return nil, c.status
	}
	m := c.queue[0]
	c.queue = c.queue[1:]
	if c.owed++; c.owed == 8 {
		c.owed = 0
		_ = c.s.send(&wsv1.Frame{Id: 1, Credit: 8}, nil)
	}
	return m, nil
}

func (c *sessionClient) Trailer() metadata.MD { return c.trailer }

func (c *sessionClient) Leave() {
	c.cancel()
	_ = c.s.CloseNow()
}

func TestSessionKeepsTheStreamContract(t *testing.T) {
	for name, binary := range map[string]bool{"Text": false, "Binary": true} {
		t.Run(name, func(t *testing.T) {
			rpctest.TestStream(t, rpctest.Harness{
				Start: func(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler) rpctest.Client {
					srv := serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{MaxMessageBytes: 8 << 20}}, h)
					return startSession(t, srv.URL, m, header, binary)
				},
			})
		})
	}
}

// A thousand calls on one socket: one whose answers nobody takes, and one whose messages nobody receives, stop themselves
// only. What the gateway holds for them is bounded.
func TestSessionStalledCalls(t *testing.T) {
	const calls = 1000
	big := rpctest.Value(bytes.Repeat([]byte("x"), 32<<10))
	stalledSends := make(chan int, 1)
	srv := serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{MaxCalls: calls}}, func(ctx context.Context, call *rpc.Call) error {
		switch {
		case call.Header["flood"] != nil: // as many answers as are taken
			for n := 0; ; n++ {
				if err := call.Stream.Send(ctx, rpc.NewMessage(big)); err != nil {
					stalledSends <- n
					return err
				}
			}
		case call.Header["deaf"] != nil:
			<-ctx.Done()
			return rpc.CauseOf(ctx)
		}
		return echo(ctx, call)
	})
	s, err := dialSession(t.Context(), srv.URL, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.CloseNow()
	open := func(id uint32, mark string) {
		t.Helper()
		o := &wsv1.Open{Method: "/rpctest.Echo/Bidi"}
		if mark != "" {
			o.Metadata = map[string]*structpb.ListValue{mark: listOf(mark, []string{"1"})}
		}
		if err := s.send(&wsv1.Frame{Id: id, Open: o}, nil); err != nil {
			t.Fatal(err)
		}
	}
	open(1, "flood") // its answers get no credit
	open(2, "deaf")
	for range transcoder.EnvelopeWindow {
		if err := s.send(&wsv1.Frame{Id: 2}, big); err != nil {
			t.Fatal(err)
		}
	}
	for id := uint32(3); id <= calls; id++ {
		open(id, "")
	}
	var before runtime.MemStats
	const rounds = 5
	answers := map[uint32]int{}
	floods := 0
	for round := range rounds {
		if round == 1 { // all calls run by now
			runtime.GC()
			runtime.ReadMemStats(&before)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for id := uint32(3); id <= calls; id++ {
				if err := s.send(&wsv1.Frame{Id: id}, rpctest.Value(fmt.Append(nil, id))); err != nil {
					t.Errorf("call %d: %v", id, err)
					return
				}
			}
		})
		for got := 0; got < calls-2; {
			f, msg, err := s.receive()
			if err != nil {
				t.Fatalf("after %d answers: %v", got, err)
			}
			switch {
			case f.Status != nil:
				t.Fatalf("call %d ended with %v", f.Id, f.Status)
			case f.Id == 1 && f.Binary != nil:
				floods++
			case f.Binary != nil:
				if want := rpctest.Value(fmt.Append(nil, f.Id)); !bytes.Equal(msg, want) {
					t.Fatalf("call %d was answered %q", f.Id, msg)
				}
				answers[f.Id]++
				got++
			}
		}
		wg.Wait()
	}
	var after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if floods != transcoder.EnvelopeWindow {
		t.Errorf("the stalled call sent %d answers, want as many as its window of %d", floods, transcoder.EnvelopeWindow)
	}
	for id := uint32(3); id <= calls; id++ {
		if answers[id] != rounds {
			t.Errorf("call %d had %d answers, want %d", id, answers[id], rounds)
		}
	}
	// Each ends when cancelled; the others live on.
	if err := s.send(&wsv1.Frame{Id: 1, Cancel: true}, nil); err != nil {
		t.Fatal(err)
	}
	if n := <-stalledSends; n != transcoder.EnvelopeWindow {
		t.Errorf("the stalled handler could send %d messages", n)
	}
	for f := (*wsv1.Frame)(nil); f.GetStatus() == nil; {
		if f, _, err = s.receive(); err != nil {
			t.Fatal(err)
		}
		if f.Status != nil && (f.Id != 1 || codes.Code(f.Status.Code) != codes.Canceled) {
			t.Errorf("call %d ended with %v, want call 1 with Canceled", f.Id, f.Status)
		}
	}
}

// What a client of transom.v1 may and may not do: frames in, frames out, and the close code.
func TestSessionFrames(t *testing.T) {
	srv := serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{MaxMessageBytes: 1 << 10, MaxCalls: 2}}, func(ctx context.Context, call *rpc.Call) error {
		if call.Header["deaf"] != nil {
			<-ctx.Done()
			return rpc.CauseOf(ctx)
		}
		if call.Method.Unary() {
			m, err := rpc.RecvOne(ctx, call.Stream)
			if err != nil {
				return err
			}
			return call.Stream.Send(ctx, m)
		}
		return echo(ctx, call)
	})
	const (
		unary = `"open":{"method":"/rpctest.Echo/Unary"}`
		bidi  = `"open":{"method":"/rpctest.Echo/Bidi"}`
		deaf  = `"open":{"method":"/rpctest.Echo/Bidi","metadata":{"deaf":["1"]}}`
	)
	for _, tc := range []struct {
		name string
		in   []string
		out  []string // as many frames are awaited, in any order
		code int      // the close code after them; 0 if the socket lives
	}{
		{"unary", []string{`{"id":1,` + unary + `,"message":"eA==","end":true}`}, []string{`{"id":1,"header":{},"message":"eA=="}`, `{"id":1,"status":{"code":0}}`}, 0},
		{"by path", []string{`{"id":7,"open":{"path":"/rpctest/unary","verb":"POST"},"message":"eA==","end":true}`}, []string{`{"id":7,"header":{},"message":"eA=="}`, `{"id":7,"status":{"code":0}}`}, 0},
		{"unknown method", []string{`{"id":1,"open":{"method":"/a.B/C"}}`}, []string{`{"id":1,"status":{"code":12,"message":"unknown method /a.B/C"}}`}, 0},
		{"unknown path", []string{`{"id":1,"open":{"path":"/nowhere"}}`}, []string{`{"id":1,"status":{"code":5,"message":"no route for this path"}}`}, 0},
		{"wrong verb", []string{`{"id":1,"open":{"path":"/rpctest/unary"}}`}, []string{`{"id":1,"status":{"code":12,"message":"method GET is not allowed here, use POST"}}`}, 0},
		{"timeout", []string{`{"id":1,"open":{"method":"/rpctest.Echo/Bidi","metadata":{"deaf":["1"]},"timeout":"0.01s"}}`}, []string{`{"id":1,"status":{"code":4,"message":"deadline exceeded"}}`}, 0},
		{"cancel", []string{`{"id":1,` + deaf + `}`, `{"id":1,"cancel":true}`}, []string{`{"id":1,"status":{"code":1,"message":"the call was cancelled"}}`}, 0},
		{"frames after the end", []string{`{"id":1,` + unary + `,"message":"eA==","end":true}`, `{"id":1,"credit":3}`, `{"id":1,"end":true}`}, []string{`{"id":1,"header":{},"message":"eA=="}`, `{"id":1,"status":{"code":0}}`}, 0},
		{"too many calls", []string{`{"id":1,` + deaf + `}`, `{"id":2,` + deaf + `}`, `{"id":3,` + deaf + `}`}, []string{`{"id":3,"status":{"code":8,"message":"a socket may have 2 calls open at once"}}`}, 0},
		{"bad message", []string{`{"id":1,` + deaf + `}`, `{"id":2,` + unary + `,"message":5,"end":true}`}, []string{`{"id":2,"status":{"code":3`}, 0},
		{"bad metadata", []string{`{"id":1,` + deaf + `}`, `{"id":2,"open":{"method":"/rpctest.Echo/Unary","metadata":{"a":["é"]}},"message":"eA==","end":true}`, `{"id":3,` + unary + `,"message":"eA==","end":true}`}, []string{`{"id":2,"status":{"code":3,"message":"open: header a: `, `{"id":3,"header":{},"message":"eA=="}`, `{"id":3,"status":{"code":0}}`}, 0},
		{"deadline has passed", []string{`{"id":1,` + deaf + `}`, `{"id":2,"open":{"method":"/rpctest.Echo/Unary","timeout":"-0.5s"},"message":"eA==","end":true}`}, []string{`{"id":2,"status":{"code":4`}, 0},
		{"no open", []string{`{"id":1,` + deaf + `}`, `{"id":"2","open":{"nope":1}}`}, []string{`{"id":2,"status":{"code":3`}, 0},
		{"no frame", []string{`hello`}, []string{`{"id":0,"status":{"code":3,"message":"frame: not a JSON object"}}`}, 1002},
		{"empty", []string{``}, []string{`{"id":0,"status":{"code":3`}, 1002},
		{"unknown member", []string{`{"id":1,"x":1}`}, []string{`{"id":0,"status":{"code":3`}, 1002},
		{"id 0", []string{`{"id":0,` + bidi + `}`}, []string{`{"id":0,"status":{"code":3`}, 1002},
		{"id again", []string{`{"id":5,` + deaf + `}`, `{"id":5,` + deaf + `}`}, []string{`{"id":5,"status":{"code":3`, `{"id":0,"status":{"code":3`}, 1002},
		{"id not open", []string{`{"id":5,"end":true}`}, []string{`{"id":0,"status":{"code":3,"message":"frame: no call has id 5"}}`}, 1002},
		{"message after end", []string{`{"id":1,` + deaf + `,"end":true}`, `{"id":1,"message":""}`}, []string{`{"id":1,"status":{"code":3`, `{"id":0,"status":{"code":3`}, 1002},
		{"no credit", append([]string{`{"id":1,` + deaf + `}`}, strings.Split(strings.Repeat(`{"id":1,"message":""}|`, 16)+`{"id":1,"message":""}`, "|")...), []string{`{"id":1,"status":{"code":3`, `{"id":0,"status":{"code":3`}, 1002},
		{"too big", []string{`{"id":1,` + deaf + `}`, `{"id":1,"message":"` + strings.Repeat("a", 1<<10) + `"}`}, []string{`{"id":1,"status":{"code":8`, `{"id":0,"status":{"code":8`}, 1009},
		{"not UTF-8", []string{"\xff"}, nil, 1007},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := dialSession(t.Context(), srv.URL, false)
			if err != nil {
				t.Fatal(err)
			}
			defer s.CloseNow()
			for _, f := range tc.in {
				if err := s.Write(t.Context(), websocket.MessageText, []byte(f)); err != nil {
					t.Fatal(err)
				}
			}
			left := tc.out
			for len(left) > 0 {
				_, b, err := s.Read(t.Context())
				if err != nil {
					t.Fatalf("%v, still expected %q", err, left)
				}
				found := -1
				for i, want := range left {
					if strings.HasPrefix(string(b), want) {
						found = i
					}
				}
				if found < 0 {
					t.Fatalf("got %s, expected one of %q", b, left)
				}
				left = append(append([]string{}, left[:found]...), left[found+1:]...)
			}
			if tc.code == 0 {
				if err := s.Ping(s.CloseRead(t.Context())); err != nil {
					t.Errorf("the socket does not live: %v", err)
				}
				return
			}
			if _, b, err := s.Read(t.Context()); int(websocket.CloseStatus(err)) != tc.code {
				t.Errorf("the socket ended with %s %v, want close %d", b, err, tc.code)
			}
		})
	}
	t.Run("form", func(t *testing.T) {
		s, err := dialSession(t.Context(), srv.URL, false)
		if err != nil {
			t.Fatal(err)
		}
		defer s.CloseNow()
		_ = s.Write(t.Context(), websocket.MessageText, []byte(`{"id":1,`+deaf+`}`))
		_ = s.Write(t.Context(), websocket.MessageBinary, nil)
		for {
			if _, _, err = s.Read(t.Context()); err != nil {
				break
			}
		}
		if websocket.CloseStatus(err) != websocket.StatusUnsupportedData {
			t.Errorf("a binary frame on a text socket: %v, want close 1003", err)
		}
	})
}

// All calls together may hold so much; the one that holds the most makes room.
func TestSessionBound(t *testing.T) {
	const limit = 64 << 10
	ended := make(chan error, 8)
	srv := serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{MaxMessageBytes: limit}}, func(ctx context.Context, call *rpc.Call) error {
		<-ctx.Done()
		ended <- rpc.CauseOf(ctx)
		return rpc.CauseOf(ctx)
	})
	s, err := dialSession(t.Context(), srv.URL, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.CloseNow()
	msg := rpctest.Value(make([]byte, limit-100))
	for id, n := range []int{1: 10, 2: 16} {
		if n == 0 {
			continue
		}
		if err := s.send(&wsv1.Frame{Id: uint32(id), Open: &wsv1.Open{Method: "/rpctest.Echo/Bidi"}}, nil); err != nil {
			t.Fatal(err)
		}
		for range n {
			if err := s.send(&wsv1.Frame{Id: uint32(id)}, msg); err != nil {
				t.Fatal(err)
			}
		}
	}
	f, _, err := s.receive()
	if err != nil || codes.Code(f.GetStatus().GetCode()) != codes.ResourceExhausted {
		t.Errorf("a call ended with %v, %v, want ResourceExhausted", f, err)
	}
	if err := <-ended; status.Code(err) != codes.ResourceExhausted {
		t.Errorf("its handler was told %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the other ended too: %v", err)
	default:
	}
}

// A drain tells sessions to go, lets calls finish, refuses new ones, and cuts what is left.
func TestDrainOfWebSockets(t *testing.T) {
	started := make(chan struct{}, 3)
	finish := make(chan struct{})
	h := func(ctx context.Context, call *rpc.Call) error {
		if _, err := call.Stream.Recv(ctx); err != nil {
			return err
		}
		started <- struct{}{}
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return rpc.CauseOf(ctx)
		}
	}
	for _, cut := range []bool{false, true} {
		finish = make(chan struct{})
		front := listeners.NewFront(listeners.FrontConfig{}, newView(t, h), slog.New(slog.DiscardHandler))
		srv, err := listeners.Listen(t.Context(), listeners.Config{Address: "127.0.0.1:0"}, front, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := srv.Run(); err != nil {
				t.Error(err)
			}
		})
		url := "http://" + net.JoinHostPort("127.0.0.1", fmt.Sprint(srv.Addr().Port))
		idle, err := dialSession(t.Context(), url, false)
		if err != nil {
			t.Fatal(err)
		}
		busy, err := dialSession(t.Context(), url, false)
		if err != nil {
			t.Fatal(err)
		}
		_ = busy.send(&wsv1.Frame{Id: 1, Open: &wsv1.Open{Method: "/rpctest.Echo/Bidi"}}, rpctest.Value(nil))
		bare, _, err := websocket.Dial(t.Context(), "ws"+url[4:]+"/rpctest.Echo/Bidi", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = bare.Write(t.Context(), websocket.MessageBinary, nil)
		<-started
		<-started
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if !cut {
			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
		}
		drained := make(chan error, 1)
		go func() { drained <- srv.Drain(ctx) }()
		if _, _, err := idle.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
			t.Errorf("cut %v: an idle session ends with %v, want close 1001", cut, err)
		}
		if f, _, err := busy.receive(); err != nil || f.Id != 0 || codes.Code(f.GetStatus().GetCode()) != codes.Unavailable {
			t.Errorf("cut %v: a busy session is told %v, %v", cut, f, err)
		}
		want := codes.Unavailable
		if !cut {
			_ = busy.send(&wsv1.Frame{Id: 2, Open: &wsv1.Open{Method: "/rpctest.Echo/Bidi"}}, nil)
			if f, _, err := busy.receive(); err != nil || f.Id != 2 || codes.Code(f.GetStatus().GetCode()) != codes.Unavailable {
				t.Errorf("a new call is answered %v, %v, want Unavailable", f, err)
			}
			close(finish)
			want = codes.OK
		}
		if f, _, err := busy.receive(); err != nil || f.Id != 1 || codes.Code(f.GetStatus().GetCode()) != want {
			t.Errorf("cut %v: the call ends with %v, %v, want %v", cut, f, err, want)
		}
		if _, _, err := busy.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
			t.Errorf("cut %v: a busy session ends with %v, want close 1001", cut, err)
		}
		wantClose := websocket.StatusNormalClosure
		if cut {
			wantClose = websocket.StatusGoingAway
		}
		if _, _, err := bare.Read(t.Context()); websocket.CloseStatus(err) != wantClose {
			t.Errorf("cut %v: a bare socket ends with %v, want close %d", cut, err, wantClose)
		}
		if err := <-drained; (err != nil) != cut {
			t.Errorf("cut %v: Drain: %v", cut, err)
		}
		cancel()
		wg.Wait()
	}
}

// brokenView panics when a method is looked up.
type brokenView struct{ *view }

func (v brokenView) Acquire() listeners.View { return v }

func (brokenView) Method(string) (*descriptors.Method, bool) { panic("secret") }

// TestSessionPanic sees that a panic over a frame ends the socket, and not the process.
func TestSessionPanic(t *testing.T) {
	srv := httptest.NewServer(listeners.NewFront(listeners.FrontConfig{}, brokenView{newView(t, echo)}, slog.New(slog.DiscardHandler)))
	defer srv.Close()
	s, err := dialSession(t.Context(), srv.URL, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.CloseNow()
	if err := s.send(&wsv1.Frame{Id: 1, Open: &wsv1.Open{Method: "/rpctest.Echo/Bidi"}}, nil); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, _, err = s.receive()
	}
	if websocket.CloseStatus(err) != 4013 || strings.Contains(err.Error(), "secret") {
		t.Errorf("the socket ended with %v, want close 4013", err)
	}
}
