package traffic

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
)

// seen is a copy as its cluster saw it.
type seen struct {
	messages []string
	header   metadata.MD
	call     rpc.Call
	err      error // of Recv
}

// collect is a cluster that takes all messages of a call, answers each, and then tells of it.
func collect(to chan<- seen) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		s := seen{header: call.Header, call: *call}
		for {
			m, err := call.Stream.Recv(ctx)
			if err != nil {
				if err != io.EOF {
					s.err = err
				}
				break
			}
			s.messages = append(s.messages, string(m.Bytes()))
			if err := call.Stream.Send(ctx, m); err != nil {
				return err
			}
		}
		to <- s
		return s.err
	}
}

// primary is a cluster that takes one message and answers it.
func primary(ctx context.Context, call *rpc.Call) error {
	call.Header["x-changed"] = []string{"by the call itself"}
	m, err := rpc.RecvOne(ctx, call.Stream)
	if err != nil {
		return err
	}
	return call.Stream.Send(ctx, m)
}

// mirror is to a cluster that lives as long as the test.
func mirror(most int64, timeout time.Duration, to rpc.Handler) Mirror {
	return Mirror{Cluster: "shadow", Share: 1, MaxConcurrent: most, Timeout: timeout, To: to, Acquire: func() bool { return true }, Release: func() {}}
}

func message(s string) rpc.Message { return rpc.NewMessage([]byte(s)) }

// as has calls come from somebody.
func as(next rpc.Handler) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		call.Peer.Addr = netip.MustParseAddrPort("192.0.2.7:1")
		call.Principal = &rpc.Principal{Consumer: "shop"}
		return next(ctx, call)
	}
}

func TestMirrorUnary(t *testing.T) {
	m := NewMirrors()
	copies := make(chan seen, 1)
	h := rpc.Chain(primary, as, m.Middleware(mirror(1, time.Minute, collect(copies))))
	header := metadata.MD{"x-user": {"ann"}}
	r, err := rpc.Local(t.Context(), h, method(), header, message("hello"))
	if err != nil || len(r.Messages) != 1 || !bytes.Equal(r.Messages[0].Bytes(), []byte("hello")) {
		t.Errorf("the call itself: %v, %v", r.Messages, err)
	}
	c := <-copies
	m.Close()
	if !slices.Equal(c.messages, []string{"hello"}) || c.err != nil {
		t.Errorf("the copy has messages %q, %v", c.messages, c.err)
	}
	if c.header.Get("x-user")[0] != "ann" || len(c.header["x-changed"]) > 0 || !slices.Equal(c.header["x-transom-mirrored"], []string{"true"}) {
		t.Errorf("the copy has metadata %v", c.header)
	}
	if len(header["x-transom-mirrored"]) > 0 {
		t.Error("the call itself is marked as a copy")
	}
	if c.call.Principal.Consumer != "shop" || c.call.Peer.Addr.Port() != 1 || c.call.Info.Protocol != rpc.ProtocolLocal {
		t.Errorf("the copy is %+v", c.call)
	}
	if got := m.Counts(); !slices.Equal(got, []MirrorCounts{{"shadow", 0, 1, 0, 0}}) {
		t.Errorf("counts %v", got)
	}
	// A request that is none is not copied.
	if _, err := rpc.Local(t.Context(), h, method(), metadata.MD{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("no message: %v", err)
	}
	// Nothing is sent once it is closed.
	if _, err := rpc.Local(t.Context(), h, method(), metadata.MD{}, message("late")); err != nil {
		t.Error(err)
	}
	if got := m.Counts(); !slices.Equal(got, []MirrorCounts{{"shadow", 0, 1, 0, 1}}) {
		t.Errorf("counts %v", got)
	}
}

// TestMirrorShare copies a share of the calls: of 10,000, within five standard deviations of the binomial distribution, which fails
// once in 1.7 million runs.
func TestMirrorShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, p = 10_000, 0.1
		m := NewMirrors()
		defer m.Close()
		cfg := mirror(n, time.Minute, primary)
		cfg.Share = p
		h := rpc.Chain(primary, m.Middleware(cfg))
		for range n {
			if _, err := rpc.Local(t.Context(), h, method(), metadata.MD{}, message("hello")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		got := m.Counts()[0]
		if d := math.Abs(float64(got.OK) - n*p); d > 5*math.Sqrt(n*p*(1-p)) || got.InFlight+got.Failed+got.Dropped > 0 {
			t.Errorf("%+v of %d calls, want about %v", got, n, n*p)
		}
	})
}

// TestMirrorTooManyRequests has a client send large messages to a method that takes one: it is told so, and nothing is left of the copy.
func TestMirrorTooManyRequests(t *testing.T) {
	m := NewMirrors()
	defer m.Close()
	h := rpc.Chain(primary, m.Middleware(mirror(1, time.Minute, primary)))
	large := func() rpc.Message { return rpc.NewMessage(make([]byte, maxAhead)) }
	if _, err := rpc.Local(t.Context(), h, method(), metadata.MD{}, large(), large()); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	if got := m.Counts(); !slices.Equal(got, []MirrorCounts{{"shadow", 0, 0, 0, 0}}) {
		t.Errorf("counts %v", got)
	}
	crash := func(context.Context, *rpc.Call) error { panic("oh") }
	func() {
		defer func() { _ = recover() }()
		_, _ = rpc.Local(t.Context(), rpc.Chain(crash, m.Middleware(mirror(1, time.Minute, primary))), method(), metadata.MD{}, message("hello"))
	}()
	if got := m.Counts(); !slices.Equal(got, []MirrorCounts{{"shadow", 0, 0, 0, 0}}) {
		t.Errorf("counts after a panic %v", got)
	}
}

// TestMirrorIsBounded has a cluster that never answers: calls don't notice, one copy is under way, and it ends in time.
func TestMirrorIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMirrors()
		defer m.Close()
		hang := func(ctx context.Context, _ *rpc.Call) error {
			<-ctx.Done()
			return rpc.CauseOf(ctx)
		}
		h := rpc.Chain(primary, m.Middleware(mirror(1, 5*time.Second, hang)))
		began := time.Now()
		for range 10 {
			if _, err := rpc.Local(t.Context(), h, method(), metadata.MD{}, message("hello")); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("calls waited %v", took)
		}
		if got := m.Counts(); !slices.Equal(got, []MirrorCounts{{"shadow", 1, 0, 0, 9}}) {
			t.Errorf("counts %v", got)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := m.Counts(); !slices.Equal(got, []MirrorCounts{{"shadow", 0, 0, 1, 9}}) {
			t.Errorf("after the timeout: %v", got)
		}
	})
}

// TestMirrorStream copies a client's stream; the cluster of the call answers message by message.
func TestMirrorStream(t *testing.T) {
	bidi := &descriptors.Method{FullPath: "/a.B/D", ClientStreams: true, ServerStreams: true}
	echo := func(ctx context.Context, call *rpc.Call) error {
		for {
			m, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := call.Stream.Send(ctx, m); err != nil {
				return err
			}
		}
	}
	m := NewMirrors()
	copies := make(chan seen, 1)
	cfg := mirror(10, time.Minute, collect(copies))
	r, err := rpc.Local(t.Context(), rpc.Chain(echo, m.Middleware(cfg)), bidi, metadata.MD{}, message("a"), message("b"), message("c"))
	if err != nil || len(r.Messages) != 3 {
		t.Errorf("the call itself: %v, %v", r.Messages, err)
	}
	if c := <-copies; !slices.Equal(c.messages, []string{"a", "b", "c"}) || c.err != nil {
		t.Errorf("the copy has %q, %v", c.messages, c.err)
	}
	// A call that ends before the client's stream does ends its copy.
	stop := func(ctx context.Context, call *rpc.Call) error {
		m, err := call.Stream.Recv(ctx)
		m.Release()
		return err
	}
	if _, err := rpc.Local(t.Context(), rpc.Chain(stop, m.Middleware(cfg)), bidi, metadata.MD{}, message("a"), message("b")); err != nil {
		t.Error(err)
	}
	if c := <-copies; len(c.messages) > 1 || !errors.Is(c.err, context.Canceled) {
		t.Errorf("the copy of a call that was broken off has %q, %v", c.messages, c.err)
	}
	// One that cannot keep up is given up.
	behind := make(chan error, 1)
	cfg.To = func(ctx context.Context, _ *rpc.Call) error {
		<-ctx.Done()
		behind <- rpc.CauseOf(ctx)
		return rpc.CauseOf(ctx)
	}
	big := func() rpc.Message { return rpc.NewMessage(make([]byte, maxAhead/2)) }
	if _, err := rpc.Local(t.Context(), rpc.Chain(echo, m.Middleware(cfg)), bidi, metadata.MD{}, big(), big(), big(), big()); err != nil {
		t.Error(err)
	}
	if err := <-behind; !errors.Is(err, context.Canceled) {
		t.Errorf("a copy that is behind ends with %v", err)
	}
	m.Close()
	if got := m.Counts(); !slices.Equal(got, []MirrorCounts{{"shadow", 0, 1, 2, 0}}) {
		t.Errorf("counts %v", got)
	}
}

// BenchmarkMirror is what a copy costs its call; that of the copy itself is in it, since it runs beside.
func BenchmarkMirror(b *testing.B) {
	m := NewMirrors()
	defer m.Close()
	h := rpc.Chain(primary, m.Middleware(mirror(1000, time.Minute, primary)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rpc.Local(b.Context(), h, method(), metadata.MD{}, message("hello")); err != nil {
			b.Fatal(err)
		}
	}
}
