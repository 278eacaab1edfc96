package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/descriptors"
	"transom/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStatusOf(t *testing.T) {
	detailed, _ := status.New(codes.Aborted, "a").WithDetails(&errdetails.ErrorInfo{Reason: "R"})
	for _, tc := range []struct {
		err   error
		code  codes.Code
		msg   string
		known bool
	}{
		{nil, codes.OK, "", true},
		{status.Error(codes.NotFound, "no account"), codes.NotFound, "no account", true},
		{fmt.Errorf("get: %w", detailed.Err()), codes.Aborted, "get: rpc error: code = Aborted desc = a", true},
		{context.Canceled, codes.Canceled, "the call was cancelled", true},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "deadline exceeded", true},
		{rpc.ErrClientGone, codes.Canceled, "the call was cancelled", true},
		{io.ErrUnexpectedEOF, codes.Internal, "stream ended inside a message", true},
		{errors.New("dial tcp 10.0.0.1:50051: refused"), codes.Internal, "internal error", false},
		{status.Error(codes.Code(99), "odd"), codes.Unknown, "odd", true},
	} {
		st := rpc.StatusOf(tc.err)
		if st.Code() != tc.code || tc.code != codes.Aborted && st.Message() != tc.msg || rpc.Known(tc.err) != tc.known {
			t.Errorf("StatusOf(%v) = %v %q, known %v; want %v %q, %v", tc.err, st.Code(), st.Message(), rpc.Known(tc.err), tc.code, tc.msg, tc.known)
		}
	}
	if got := rpc.StatusOf(fmt.Errorf("get: %w", detailed.Err())).Details(); len(got) != 1 {
		t.Errorf("details: %v", got)
	}
}

func TestCauseOf(t *testing.T) {
	if err := rpc.CauseOf(t.Context()); err != nil {
		t.Errorf("a living context: %v", err)
	}
	want := status.Error(codes.Unavailable, "shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(want)
	if err := rpc.CauseOf(ctx); !errors.Is(err, want) {
		t.Errorf("cause: %v, want %v", err, want)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	cancel(errors.New("secret"))
	if err := rpc.CauseOf(ctx); !errors.Is(err, context.Canceled) || rpc.StatusOf(err).Code() != codes.Canceled {
		t.Errorf("an unknown cause shows: %v", err)
	}
}

// counted is a pool that counts what comes back.
type counted struct{ back int }

func (c *counted) Get(n int) *[]byte { b := make([]byte, n); return &b }
func (c *counted) Put(*[]byte)       { c.back++ }

func TestMessage(t *testing.T) {
	if m := rpc.NewMessage(nil); m.Len() != 0 || m.Bytes() != nil {
		t.Errorf("the empty message: %d %q", m.Len(), m.Bytes())
	}
	pool := &counted{}
	b := make([]byte, 4<<10)
	m := rpc.PooledMessage(&b, pool)
	kept := m.Retain()
	m.Release()
	if pool.back != 0 || kept.Len() != len(b) {
		t.Errorf("released while retained: %d back, %d bytes", pool.back, kept.Len())
	}
	kept.Release()
	if pool.back != 1 {
		t.Errorf("%d buffers came back, want 1", pool.back)
	}
	split := rpc.MessageOf(mem.BufferSlice{mem.SliceBuffer("ab"), mem.SliceBuffer("cd")})
	if string(split.Bytes()) != "abcd" || split.Len() != 4 {
		t.Errorf("two buffers: %q %d", split.Bytes(), split.Len())
	}
}

func TestRendering(t *testing.T) {
	calls := 0
	render := func(wire []byte) ([]byte, error) { calls++; return append([]byte("json:"), wire...), nil }
	plain := rpc.NewMessage([]byte("x"))
	if _, ok, err := plain.Rendering("k", render); ok || err != nil || calls != 0 {
		t.Errorf("a message not shared renders: %v %v, %d calls", ok, err, calls)
	}
	m := plain.Share()
	for range 2 {
		if b, ok, err := m.Rendering("k", render); !ok || err != nil || string(b) != "json:x" {
			t.Errorf("%q %v %v", b, ok, err)
		}
	}
	if _, _, _ = m.Rendering("other", render); calls != 2 {
		t.Errorf("%d renderings for two keys", calls)
	}
	fail := errors.New("no")
	if _, ok, err := m.Rendering("bad", func([]byte) ([]byte, error) { return nil, fail }); !ok || !errors.Is(err, fail) {
		t.Errorf("%v %v", ok, err)
	}
}

func TestLocal(t *testing.T) {
	m := descriptors.Opaque("/a.B/C")
	if m.Name != "a.B.C" || m.Unary() {
		t.Errorf("opaque method: %+v", m)
	}
	echo := func(ctx context.Context, call *rpc.Call) error {
		if err := call.Stream.SendHeader(metadata.MD{"h": call.Header["in"]}); err != nil {
			return err
		}
		if err := call.Stream.SendHeader(nil); !errors.Is(err, rpc.ErrHeaderSent) {
			t.Errorf("a second header: %v", err)
		}
		for {
			msg, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			if err := call.Stream.Send(ctx, msg); err != nil {
				return err
			}
		}
		call.Stream.SetTrailer(metadata.MD{"t": {"1"}})
		return status.Error(codes.DataLoss, "end")
	}
	var order []string
	mark := func(name string) rpc.Middleware {
		return func(next rpc.Handler) rpc.Handler {
			return func(ctx context.Context, call *rpc.Call) error {
				order = append(order, name)
				return next(ctx, call)
			}
		}
	}
	r, err := rpc.Local(t.Context(), rpc.Chain(echo, mark("a"), nil, mark("b")), m, metadata.MD{"in": {"x"}}, rpc.NewMessage([]byte("1")), rpc.NewMessage([]byte("2")))
	if status.Code(err) != codes.DataLoss || len(r.Messages) != 2 || string(r.Messages[1].Bytes()) != "2" || r.Header["h"][0] != "x" || r.Trailer["t"][0] != "1" {
		t.Errorf("%+v, %v", r, err)
	}
	if fmt.Sprint(order) != "[a b]" {
		t.Errorf("the chain ran as %v", order)
	}
}

func TestRecvOneAndPeek(t *testing.T) {
	run := func(h rpc.Handler, n int) error {
		msgs := make([]rpc.Message, n)
		for i := range msgs {
			msgs[i] = rpc.NewMessage([]byte{byte('a' + i)})
		}
		_, err := rpc.Local(t.Context(), h, descriptors.Opaque("/a.B/C"), nil, msgs...)
		return err
	}
	one := func(ctx context.Context, call *rpc.Call) error {
		_, err := rpc.RecvOne(ctx, call.Stream)
		return err
	}
	for n, want := range []codes.Code{codes.Unimplemented, codes.OK, codes.Unimplemented} {
		if got := status.Code(run(one, n)); got != want {
			t.Errorf("RecvOne of %d messages: %v, want %v", n, got, want)
		}
	}
	peek := func(ctx context.Context, call *rpc.Call) error {
		first, s, err := rpc.Peek(ctx, call.Stream)
		if err != nil {
			if _, again := s.Recv(ctx); !errors.Is(again, err) {
				t.Errorf("after a failed Peek, Recv gives %v", again)
			}
			return nil
		}
		again, err := s.Recv(ctx)
		if err != nil || string(again.Bytes()) != string(first.Bytes()) {
			t.Errorf("peeked %q, then received %q, %v", first.Bytes(), again.Bytes(), err)
		}
		if second, err := s.Recv(ctx); err != nil || string(second.Bytes()) != "b" {
			t.Errorf("second %q, %v", second.Bytes(), err)
		}
		return nil
	}
	_ = run(peek, 2)
	_ = run(peek, 0)
}

func TestInfo(t *testing.T) {
	var i rpc.Info
	i.Fail(rpc.SourceClient)
	i.Fail(rpc.SourceUpstream)
	i.Note("cache", "hit")
	if i.ErrorSource != rpc.SourceClient || i.ErrorSource.String() != "client" || i.Notes.Get("cache") != "hit" {
		t.Errorf("%+v", &i)
	}
	var c rpc.Call
	c.SetHeader("k", "a", "b")
	if len(c.Header["k"]) != 2 {
		t.Errorf("%v", c.Header)
	}
}

func TestDecode(t *testing.T) {
	md := (&structpb.Struct{}).ProtoReflect().Descriptor()
	for in, ok := range map[string]bool{
		"":                      true,
		"\n\x05\n\x01a\x12\x00": true,
		"\n\x05\n\x01a":         false,
		"\n\x05\n\x01a\x08\x00": false, // over which dynamicpb panics
		"\x0b\x0c":              true,  // an unknown group
		"\x0b":                  false,
	} {
		msg, err := rpc.Decode(md, []byte(in))
		if (err == nil) != ok || (msg != nil) != ok {
			t.Errorf("%q: %v, %v", in, msg, err)
		}
	}
}

// TestFail has both sides of a stream fail at once; the race detector looks on, and one of them is to blame.
func TestFail(t *testing.T) {
	var info rpc.Info
	var wg sync.WaitGroup
	for _, s := range []rpc.Source{rpc.SourceClient, rpc.SourceUpstream} {
		wg.Go(func() { info.Fail(s) })
	}
	wg.Wait()
	was := info.ErrorSource
	if info.Fail(rpc.SourceGateway); info.ErrorSource != was || was != rpc.SourceClient && was != rpc.SourceUpstream {
		t.Errorf("%v is to blame, and then %v", was, info.ErrorSource)
	}
}

func TestHeaderOf(t *testing.T) {
	err := rpc.WithHeader(status.Error(codes.Unavailable, "no"), metadata.MD{"a": {"in"}, "b": {"in"}, "c": {"in"}})
	err = rpc.WithHeader(fmt.Errorf("wrapped: %w", err), metadata.MD{"a": {"out"}, "b": nil})
	if got := rpc.HeaderOf(err); len(got) != 2 || got["a"][0] != "out" || got["c"][0] != "in" {
		t.Errorf("%v", got)
	}
	if got := rpc.HeaderOf(errors.New("no header")); got != nil {
		t.Errorf("%v of none", got)
	}
}

// What was given back comes out empty, whatever was in it, and what it held is as it was.
func TestFreeMetadata(t *testing.T) {
	rpc.FreeMetadata(nil)
	for n := range 20 {
		md := rpc.NewMetadata()
		if md == nil || len(md) != 0 {
			t.Fatalf("NewMetadata() = %v, want an empty map", md)
		}
		for i := range n {
			md[string(rune('a'+i))] = []string{"v"}
		}
		values := md["a"]
		rpc.FreeMetadata(md)
		if n > 0 && values[0] != "v" {
			t.Fatalf("the values of what was given back are %q, want them alone", values)
		}
	}
}

// A policy that looks at what a client streams may note something while another, that looks at the answers, does.
func TestNotesOfBothSides(t *testing.T) {
	var info rpc.Info
	var wg sync.WaitGroup
	for _, side := range []string{"limit", "redact"} {
		wg.Go(func() {
			for range 1000 {
				info.Note(side+"_note", side)
				info.Refuse(side, "reason")
			}
		})
	}
	wg.Wait()
	if len(info.Notes) != 4 || info.Notes.Get("limit") != "reason" || info.Policy != "limit" && info.Policy != "redact" {
		t.Errorf("notes %v, policy %q", info.Notes, info.Policy)
	}
}
