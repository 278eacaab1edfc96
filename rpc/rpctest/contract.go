package rpctest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
)

// Harness is how TestStream reaches an implementation of rpc.Stream. The zero value of each restriction describes a
// protocol that can say all that gRPC can.
type Harness struct {
	// Start begins one call of m (one of NewMethods) by a client of the protocol under test, so that h is run with the
	// Stream under test. header is request metadata. The call and all that serves it must end when the client has
	// received its end or has left.
	Start func(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler) Client
	// OneRequest: the client cannot stream.
	OneRequest bool
	// HalfDuplex: the client gets no reply before it has half-closed.
	HalfDuplex bool
	// NoHeader and NoTrailer: the client cannot see response metadata.
	NoHeader, NoTrailer bool
	// NoLateStatus: an error after the first reply reaches the client as some error, with another code.
	NoLateStatus bool
}

// within bounds every wait on something that must happen soon.
const within = 10 * time.Second

// TestStream checks that the Streams which hs makes keep the contract of rpc.Stream.
func TestStream(t *testing.T, hs Harness) {
	ms := NewMethods()
	c := contract{hs, ms}
	kinds := []*descriptors.Method{ms.Unary, ms.Server}
	if !hs.OneRequest {
		kinds = append(kinds, ms.Client, ms.Bidi)
	}
	for _, m := range kinds {
		t.Run(string(m.Name.Name()), func(t *testing.T) {
			t.Run("Messages", func(t *testing.T) { c.messages(t, m) })
			t.Run("RequestMetadata", func(t *testing.T) { c.requestMetadata(t, m) })
			t.Run("Header", func(t *testing.T) { c.header(t, m) })
			t.Run("TrailersOnly", func(t *testing.T) { c.trailersOnly(t, m) })
			t.Run("TrailerReplaced", func(t *testing.T) { c.trailerReplaced(t, m) })
			t.Run("UnknownError", func(t *testing.T) { c.unknownError(t, m) })
			t.Run("ClientLeaves", func(t *testing.T) { c.clientLeaves(t, m) })
			t.Run("References", func(t *testing.T) { c.references(t, m) })
			if m.ServerStreams {
				t.Run("LateStatus", func(t *testing.T) { c.lateStatus(t, m) })
				t.Run("Flush", func(t *testing.T) { c.flush(t, m) })
				t.Run("SlowClient", func(t *testing.T) { c.slowClient(t, m) })
				t.Run("SendAfterLeave", func(t *testing.T) { c.sendAfterLeave(t, m) })
			}
			if m.ClientStreams {
				t.Run("RecvContext", func(t *testing.T) { c.recvContext(t, m) })
				t.Run("SlowHandler", func(t *testing.T) { c.slowHandler(t, m) })
				t.Run("HandlerEndsFirst", func(t *testing.T) { c.handlerEndsFirst(t, m) })
				t.Run("NoMessages", func(t *testing.T) { c.noMessages(t, m) })
			}
			if m.ClientStreams && m.ServerStreams && !hs.HalfDuplex {
				t.Run("PingPong", func(t *testing.T) { c.pingPong(t, m) })
				t.Run("BothWaysAtOnce", func(t *testing.T) { c.bothWays(t, m) })
			}
		})
	}
}

type contract struct {
	Harness
	ms Methods
}

// run makes a whole call: it sends the values, half-closes and receives to the end, which is nil for OK.
func (c contract) run(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler, values ...[]byte) (cl Client, replies [][]byte, err error) {
	t.Helper()
	cl = c.Start(t, m, header, h)
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, v := range values {
			if cl.Send(v) != nil {
				return // the call's end says why
			}
		}
		_ = cl.CloseSend()
	})
	replies, err = drain(cl)
	wg.Wait()
	return cl, replies, err
}

func drain(cl Client) (replies [][]byte, err error) {
	for {
		b, err := cl.Recv()
		if err == io.EOF {
			return replies, nil
		}
		if err != nil {
			return replies, err
		}
		replies = append(replies, b)
	}
}

// recvAll receives the request or requests of a call of any kind.
func recvAll(ctx context.Context, call *rpc.Call) (values [][]byte, err error) {
	if !call.Method.ClientStreams {
		m, err := rpc.RecvOne(ctx, call.Stream)
		if err != nil {
			return nil, err
		}
		defer m.Release()
		return [][]byte{bytes.Clone(m.Bytes())}, nil
	}
	for {
		m, err := call.Stream.Recv(ctx)
		if err == io.EOF {
			return values, nil
		}
		if err != nil {
			return values, err
		}
		values = append(values, bytes.Clone(m.Bytes()))
		m.Release()
	}
}

func value(format string, args ...any) []byte { return Value(fmt.Appendf(nil, format, args...)) }

// payload is n bytes that look like nothing else.
func payload(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// Messages arrive in order and whole, whatever their size; the end is io.EOF, again and again.
func (c contract) messages(t *testing.T, m *descriptors.Method) {
	sizes := []int{0, 1, 4, 127, 128, 1023, 1024, 1025, 16383, 16384, 65535, 65536, 300_000}
	var values [][]byte
	for _, n := range sizes {
		values = append(values, Value(payload(n)))
	}
	send, want := values, values
	check := func(send, want [][]byte) {
		t.Helper()
		_, got, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
			in, err := recvAll(ctx, call)
			if err != nil {
				return err
			}
			for range 2 {
				if _, err := call.Stream.Recv(ctx); err != io.EOF {
					t.Errorf("Recv after the end: %v, want io.EOF", err)
				}
			}
			if !equal(in, send) {
				t.Errorf("the handler got %s, want %s", lengths(in), lengths(send))
			}
			for _, v := range want {
				if err := call.Stream.Send(ctx, rpc.NewMessage(v)); err != nil {
					return err
				}
			}
			return nil
		}, send...)
		if err != nil || !equal(got, want) {
			t.Errorf("the client got %s and %v, want %s", lengths(got), err, lengths(want))
		}
	}
	switch {
	case m.ClientStreams && m.ServerStreams:
		check(send, want)
	case m.ClientStreams:
		check(send, want[5:6])
	case m.ServerStreams:
		check(send[5:6], want)
	default:
		for i := range send {
			check(send[i:i+1], want[i:i+1])
		}
	}
}

func equal(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func lengths(values [][]byte) string {
	n := make([]int, len(values))
	for i, v := range values {
		n[i] = len(v)
	}
	return fmt.Sprintf("%d messages of %v bytes", len(n), n)
}

func (c contract) requestMetadata(t *testing.T, m *descriptors.Method) {
	_, _, err := c.run(t, m, metadata.MD{"k": {"1", "2"}, "k-bin": {"\x00\xff"}}, func(ctx context.Context, call *rpc.Call) error {
		if got, want := fmt.Sprintf("%q", call.Header["k"]), `["1" "2"]`; got != want {
			t.Errorf("k = %s, want %s", got, want)
		}
		if got, want := fmt.Sprintf("%q", call.Header["k-bin"]), `["\x00\xff"]`; got != want {
			t.Errorf("k-bin = %s, want %s", got, want)
		}
		if call.Info == nil || call.Method.FullPath != m.FullPath {
			t.Errorf("the call is of %s, with Info %v", call.Method.FullPath, call.Info)
		}
		if _, err := recvAll(ctx, call); err != nil {
			return err
		}
		return call.Stream.Send(ctx, rpc.NewMessage(value("ok")))
	}, value("v"))
	if err != nil {
		t.Error(err)
	}
}

// The header is committed once, by SendHeader or the first Send.
func (c contract) header(t *testing.T, m *descriptors.Method) {
	for _, explicit := range []bool{true, false} {
		cl, got, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
			if _, err := recvAll(ctx, call); err != nil {
				return err
			}
			if explicit {
				if err := call.Stream.SendHeader(metadata.MD{"h": {"1", "2"}, "h-bin": {"\x00\xff"}}); err != nil {
					t.Errorf("SendHeader: %v", err)
				}
				if err := call.Stream.SendHeader(metadata.MD{"h": {"3"}}); !errors.Is(err, rpc.ErrHeaderSent) {
					t.Errorf("second SendHeader: %v, want ErrHeaderSent", err)
				}
			}
			if err := call.Stream.Send(ctx, rpc.NewMessage(value("v"))); err != nil {
				return err
			}
			if err := call.Stream.SendHeader(nil); !errors.Is(err, rpc.ErrHeaderSent) {
				t.Errorf("SendHeader after Send: %v, want ErrHeaderSent", err)
			}
			call.Stream.SetTrailer(metadata.MD{"t": {"1", "2"}, "t-bin": {"\x00\xff"}})
			return nil
		}, value("v"))
		if err != nil || !equal(got, [][]byte{value("v")}) {
			t.Errorf("the client got %q and %v", got, err)
		}
		if !c.NoHeader {
			md, want := cl.Header(), `[] []`
			if explicit {
				want = `["1" "2"] ["\x00\xff"]`
			}
			if got := fmt.Sprintf("%q %q", md["h"], md["h-bin"]); got != want || md == nil {
				t.Errorf("explicit %v: header %s, want %s", explicit, got, want)
			}
		}
		if !c.NoTrailer {
			md := cl.Trailer()
			if got, want := fmt.Sprintf("%q %q", md["t"], md["t-bin"]), `["1" "2"] ["\x00\xff"]`; got != want {
				t.Errorf("explicit %v: trailer %s, want %s", explicit, got, want)
			}
		}
	}
}

// A call that fails before anything is committed brings its status and trailer, and no header.
func (c contract) trailersOnly(t *testing.T, m *descriptors.Method) {
	cl, got, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		if _, err := recvAll(ctx, call); err != nil {
			return err
		}
		call.Stream.SetTrailer(metadata.MD{"t": {"1"}})
		return status.Error(codes.FailedPrecondition, "not now, 50% ü")
	}, value("v"))
	if len(got) != 0 {
		t.Errorf("the client got %s", lengths(got))
	}
	if st := status.Convert(err); st.Code() != codes.FailedPrecondition || st.Message() != "not now, 50% ü" {
		t.Errorf("the client got %v", err)
	}
	if md := cl.Header(); !c.NoHeader && len(md["h"]) != 0 {
		t.Errorf("header %v", md)
	}
	if md := cl.Trailer(); !c.NoTrailer && len(md["t"]) != 1 {
		t.Errorf("trailer %v", md)
	}
}

func (c contract) trailerReplaced(t *testing.T, m *descriptors.Method) {
	if c.NoTrailer {
		return
	}
	cl, _, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		call.Stream.SetTrailer(metadata.MD{"a": {"1"}})
		if _, err := recvAll(ctx, call); err != nil {
			return err
		}
		call.Stream.SetTrailer(metadata.MD{"b": {"1"}})
		return call.Stream.Send(ctx, rpc.NewMessage(value("v")))
	}, value("v"))
	if md := cl.Trailer(); err != nil || len(md["a"]) != 0 || len(md["b"]) != 1 {
		t.Errorf("trailer %v, error %v", md, err)
	}
}

// An error that says nothing to clients is Internal, and none of its text is told.
func (c contract) unknownError(t *testing.T, m *descriptors.Method) {
	_, _, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		if _, err := recvAll(ctx, call); err != nil {
			return err
		}
		return errors.New("dial tcp 10.0.0.1:5432: secret")
	}, value("v"))
	if st := status.Convert(err); st.Code() != codes.Internal || bytes.Contains([]byte(st.Message()), []byte("secret")) {
		t.Errorf("the client got %v", err)
	}
}

func (c contract) lateStatus(t *testing.T, m *descriptors.Method) {
	cl, got, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		if _, err := recvAll(ctx, call); err != nil {
			return err
		}
		if err := call.Stream.Send(ctx, rpc.NewMessage(value("v"))); err != nil {
			return err
		}
		if err := call.Stream.Flush(); err != nil {
			return err
		}
		call.Stream.SetTrailer(metadata.MD{"t": {"1"}})
		return status.Error(codes.DataLoss, "half of it")
	}, value("v"))
	if !equal(got, [][]byte{value("v")}) {
		t.Errorf("the client got %s", lengths(got))
	}
	if st := status.Convert(err); st.Code() != codes.DataLoss && !c.NoLateStatus || st.Code() == codes.OK {
		t.Errorf("the client got %v, want DataLoss", err)
	}
	if md := cl.Trailer(); !c.NoTrailer && len(md["t"]) != 1 {
		t.Errorf("trailer %v", md)
	}
}

// What is flushed reaches the client while the call goes on, header and messages.
func (c contract) flush(t *testing.T, m *descriptors.Method) {
	next := make(chan struct{})
	var once sync.Once
	release := func() { once.Do(func() { close(next) }) }
	defer release()
	cl := c.Start(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		if !m.ClientStreams || c.HalfDuplex {
			if _, err := recvAll(ctx, call); err != nil {
				return err
			}
		}
		if err := call.Stream.SendHeader(metadata.MD{"h": {"1"}}); err != nil {
			return err
		}
		for range 2 {
			if err := call.Stream.Flush(); err != nil { // also with nothing to flush
				return err
			}
		}
		select {
		case <-next:
		case <-ctx.Done():
			return rpc.CauseOf(ctx)
		}
		for i := range 3 {
			if err := call.Stream.Send(ctx, rpc.NewMessage(value("%d", i))); err != nil {
				return err
			}
			if i == 1 {
				if err := call.Stream.Flush(); err != nil {
					return err
				}
				if _, err := recvAll(ctx, call); err != nil && m.ClientStreams {
					return err
				}
			}
		}
		return nil
	})
	if !m.ClientStreams || c.HalfDuplex {
		_ = cl.Send(value("v"))
		_ = cl.CloseSend()
	}
	if !c.NoHeader {
		if md := cl.Header(); len(md["h"]) != 1 {
			t.Errorf("header %v", md)
		}
	}
	release()
	for i := range 2 {
		if b, err := cl.Recv(); err != nil || !bytes.Equal(b, value("%d", i)) {
			t.Fatalf("reply %d: %q, %v", i, b, err)
		}
	}
	if m.ClientStreams && !c.HalfDuplex {
		_ = cl.CloseSend()
	}
	if got, err := drain(cl); err != nil || !equal(got, [][]byte{value("2")}) {
		t.Errorf("what was sent last: %q, %v", got, err)
	}
}

// await waits for a channel to be closed.
func await(t *testing.T, ch <-chan struct{}, what string) bool {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-ch:
		return true
	case <-timer.C:
		t.Errorf("%s: did not happen within %v", what, within)
		return false
	}
}

// A client that is gone ends the call's context and every wait.
func (c contract) clientLeaves(t *testing.T, m *descriptors.Method) {
	started, ended := make(chan struct{}), make(chan struct{})
	cl := c.Start(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		defer close(ended)
		var err error
		if m.ClientStreams && !c.HalfDuplex {
			_, err = call.Stream.Recv(ctx)
			close(started)
			if err == nil {
				_, err = call.Stream.Recv(ctx)
			}
			if err == nil || err == io.EOF || rpc.StatusOf(err).Code() != codes.Canceled {
				t.Errorf("Recv: %v, want an error that means Canceled", err)
			}
		} else {
			_, err = recvAll(ctx, call)
			close(started)
			if err != nil {
				t.Errorf("Recv: %v", err)
			}
		}
		<-ctx.Done()
		if err := rpc.CauseOf(ctx); !errors.Is(err, rpc.ErrClientGone) && !errors.Is(err, context.Canceled) {
			t.Errorf("the context's cause is %v, want ErrClientGone", err)
		}
		return rpc.CauseOf(ctx)
	})
	_ = cl.Send(value("v"))
	if !m.ClientStreams || c.HalfDuplex {
		_ = cl.CloseSend()
	}
	await(t, started, "the handler's start")
	cl.Leave()
	await(t, ended, "the end of a call whose client has left")
}

func (c contract) sendAfterLeave(t *testing.T, m *descriptors.Method) {
	started, left, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	cl := c.Start(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		defer close(ended)
		if !m.ClientStreams || c.HalfDuplex {
			if _, err := recvAll(ctx, call); err != nil {
				t.Errorf("Recv: %v", err)
			}
		}
		close(started)
		<-left
		for range 1024 {
			if err := call.Stream.Send(ctx, rpc.NewMessage(Value(payload(64<<10)))); err != nil {
				if got := rpc.StatusOf(err).Code(); got != codes.Canceled {
					t.Errorf("Send to a client that has left: %v (%v), want an error that means Canceled", err, got)
				}
				return err
			}
		}
		t.Error("64 MiB were sent to a client that has left")
		return nil
	})
	if !m.ClientStreams || c.HalfDuplex {
		_ = cl.Send(value("v"))
		_ = cl.CloseSend()
	}
	await(t, started, "the handler's start")
	cl.Leave()
	close(left)
	await(t, ended, "an error of Send to a client that has left")
}

// Send waits for a client that does not read, no longer than its context, and buffers within bounds.
func (c contract) slowClient(t *testing.T, m *descriptors.Method) {
	ended := make(chan struct{})
	cl := c.Start(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		defer close(ended)
		if !m.ClientStreams || c.HalfDuplex {
			if _, err := recvAll(ctx, call); err != nil {
				t.Errorf("Recv: %v", err)
			}
		}
		short, cancel := context.WithTimeoutCause(ctx, time.Second, status.Error(codes.Aborted, "too slow"))
		defer cancel()
		for range 1024 {
			if err := call.Stream.Send(short, rpc.NewMessage(Value(payload(64<<10)))); err != nil {
				if got := rpc.StatusOf(err).Code(); got != codes.Aborted {
					t.Errorf("Send when its context has ended: %v (%v), want the context's cause", err, got)
				}
				return err
			}
		}
		t.Error("64 MiB were taken from a handler for a client that does not read")
		return nil
	})
	if !m.ClientStreams || c.HalfDuplex {
		_ = cl.Send(value("v"))
		_ = cl.CloseSend()
	}
	await(t, ended, "the end of a Send to a client that does not read")
	cl.Leave()
}

// Recv ends with its context, though the client is there.
func (c contract) recvContext(t *testing.T, m *descriptors.Method) {
	cause := status.Error(codes.Aborted, "enough")
	ended := make(chan struct{})
	cl := c.Start(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		defer close(ended)
		if c.HalfDuplex {
			return cause
		}
		wait, cancel := context.WithCancelCause(ctx)
		received := make(chan error)
		go func() {
			_, err := call.Stream.Recv(wait)
			received <- err
		}()
		cancel(cause)
		err := <-received
		if rpc.StatusOf(err).Code() != codes.Aborted {
			t.Errorf("Recv: %v, want the context's cause", err)
		}
		return err
	})
	if !await(t, ended, "the end of Recv with its context") {
		cl.Leave()
		return
	}
	if _, err := drain(cl); status.Code(err) != codes.Aborted {
		t.Errorf("the client got %v, want Aborted", err)
	}
}

// What a client sends to a handler that does not receive is bounded.
func (c contract) slowHandler(t *testing.T, m *descriptors.Method) {
	release := make(chan struct{})
	cl := c.Start(t, m, nil, func(ctx context.Context, _ *rpc.Call) error {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return status.Error(codes.Aborted, "not interested")
	})
	all := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		big := Value(payload(64 << 10))
		for range 1024 {
			if cl.Send(big) != nil {
				return
			}
		}
		close(all)
	})
	timer := time.NewTimer(500 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-all:
		t.Error("64 MiB were taken from a client for a handler that does not receive")
	case <-timer.C:
	}
	close(release)
	cl.Leave()
	wg.Wait()
}

// A handler may return while the client is in the midst of sending.
func (c contract) handlerEndsFirst(t *testing.T, m *descriptors.Method) {
	cl := c.Start(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		if !c.HalfDuplex {
			msg, err := call.Stream.Recv(ctx)
			if err != nil {
				return err
			}
			msg.Release()
		}
		return status.Error(codes.OutOfRange, "enough")
	})
	_ = cl.Send(value("v"))
	if c.HalfDuplex {
		_ = cl.CloseSend()
	}
	if _, err := drain(cl); status.Code(err) != codes.OutOfRange {
		t.Errorf("the client got %v, want OutOfRange", err)
	}
}

func (c contract) noMessages(t *testing.T, m *descriptors.Method) {
	_, got, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		if _, err := call.Stream.Recv(ctx); err != io.EOF {
			t.Errorf("Recv: %v, want io.EOF", err)
		}
		if m.ServerStreams {
			return nil
		}
		return call.Stream.Send(ctx, rpc.NewMessage(nil))
	})
	if want := map[bool]int{true: 0, false: 1}[m.ServerStreams]; err != nil || len(got) != want {
		t.Errorf("the client got %s and %v, want %d messages", lengths(got), err, want)
	}
}

func (c contract) pingPong(t *testing.T, m *descriptors.Method) {
	cl := c.Start(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		for {
			msg, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := call.Stream.Send(ctx, msg); err != nil {
				return err
			}
			if err := call.Stream.Flush(); err != nil {
				return err
			}
		}
	})
	for i := range 20 {
		if err := cl.Send(value("%d", i)); err != nil {
			t.Fatal(err)
		}
		if got, err := cl.Recv(); err != nil || !bytes.Equal(got, value("%d", i)) {
			t.Fatalf("reply %d: %q, %v", i, got, err)
		}
	}
	_ = cl.CloseSend()
	if _, err := drain(cl); err != nil {
		t.Error(err)
	}
}

// One goroutine receives while another sends.
func (c contract) bothWays(t *testing.T, m *descriptors.Method) {
	const n = 500
	var sent, want [][]byte
	for i := range n {
		sent = append(sent, value("up %d", i))
		want = append(want, value("down %d", i))
	}
	_, got, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		up := make(chan error, 1)
		go func() {
			in, err := recvAll(ctx, call)
			if err == nil && !equal(in, sent) {
				err = fmt.Errorf("the handler got %s", lengths(in))
			}
			up <- err
		}()
		for i, v := range want {
			if err := call.Stream.Send(ctx, rpc.NewMessage(v)); err != nil {
				return err
			}
			if i%10 == 0 {
				if err := call.Stream.Flush(); err != nil {
					return err
				}
			}
		}
		return <-up
	}, sent...)
	if err != nil || !equal(got, want) {
		t.Errorf("the client got %s and %v", lengths(got), err)
	}
}

// countingPool hands out buffers and overwrites them when they come back, so that a use after release shows.
type countingPool struct {
	out  atomic.Int64
	none chan struct{} // receives when out reaches zero
}

func (p *countingPool) Get(n int) *[]byte {
	p.out.Add(1)
	b := make([]byte, n)
	return &b
}

func (p *countingPool) Put(b *[]byte) {
	for i := range *b {
		(*b)[i] = 0xee
	}
	if p.out.Add(-1) == 0 {
		select {
		case p.none <- struct{}{}:
		default:
		}
	}
}

// Each message that is sent is released once, when its bytes are no longer needed, whether or not Send succeeds.
func (c contract) references(t *testing.T, m *descriptors.Method) {
	pool := &countingPool{none: make(chan struct{}, 1)}
	message := func() rpc.Message {
		v := Value(payload(5000))
		b := pool.Get(len(v))
		copy(*b, v)
		return rpc.PooledMessage(b, pool)
	}
	n := 1
	if m.ServerStreams {
		n = 50
	}
	var extra atomic.Int64
	_, got, err := c.run(t, m, nil, func(ctx context.Context, call *rpc.Call) error {
		if _, err := recvAll(ctx, call); err != nil {
			return err
		}
		for range n {
			if err := call.Stream.Send(ctx, message()); err != nil {
				return err
			}
		}
		if m.ServerStreams {
			gone, cancel := context.WithCancel(ctx)
			cancel()
			if err := call.Stream.Send(gone, message()); err == nil {
				extra.Store(1) // it may have had room
			}
		}
		return nil
	}, value("v"))
	want := n + int(extra.Load())
	if err != nil || len(got) != want {
		t.Fatalf("the client got %s and %v, want %d messages", lengths(got), err, want)
	}
	for i, b := range got {
		if !bytes.Equal(b, Value(payload(5000))) {
			t.Errorf("reply %d was sent from a buffer that had been released", i)
		}
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	for pool.out.Load() != 0 { // the client hears of the end before the listener has tidied up
		select {
		case <-pool.none:
		case <-timer.C:
			t.Fatalf("%d of %d messages were never released", pool.out.Load(), n)
		}
	}
}
