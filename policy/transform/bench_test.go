//go:build !race

// The race detector makes pools forget, and moves what else would stay off the heap.

package transform_test

import (
	"context"
	"testing"

	"google.golang.org/grpc/metadata"

	"transom/descriptors"
	"transom/policy/transform"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
)

// still is a Stream that gives one message again and again, and takes any.
type still struct{ msg rpc.Message }

func (s *still) Recv(context.Context) (rpc.Message, error) { return s.msg.Retain(), nil }
func (s *still) SendHeader(metadata.MD) error              { return nil }
func (s *still) Flush() error                              { return nil }
func (s *still) SetTrailer(metadata.MD)                    {}

func (s *still) Send(_ context.Context, m rpc.Message) error {
	m.Release()
	return nil
}

// cost is a call of one message each way, and what it may allocate.
type cost struct {
	name   string
	mw     rpc.Middleware
	allocs float64
}

func costs(tb testing.TB) []cost {
	tb.Helper()
	request := func(e *transform.Edits, fields ...transform.FieldConfig) rpc.Middleware {
		cfg := transform.RequestConfig{Edits: e}
		for _, f := range fields {
			field, err := transform.NewField(everything(), f)
			if err != nil {
				tb.Fatal(err)
			}
			cfg.Fields = append(cfg.Fields, field)
		}
		mw, err := transform.Request(cfg)
		if err != nil {
			tb.Fatal(err)
		}
		return mw
	}
	fixed := edits(tb, transform.EditsConfig{Set: map[string]string{"x-fixed": "v"}, Remove: []string{"x-debug"}})
	templates := edits(tb, transform.EditsConfig{Set: map[string]string{"x-user": "{consumer}"}, Rename: map[string]string{"x-tenant": "x-org"}})
	rule, err := transform.NewErrorRule(transform.ErrorConfig{Message: "hidden"})
	if err != nil {
		tb.Fatal(err)
	}
	return []cost{
		{"nothing", func(h rpc.Handler) rpc.Handler { return h }, 0},
		{"metadata, fixed", request(fixed), 0},
		{"metadata, templates", request(templates), 1},
		{"field, fixed", request(nil, transform.FieldConfig{Path: "text", Value: "v"}), 3},
		{"field, claim", request(nil, transform.FieldConfig{Path: "text", Claim: "sub"}), 5},
		{"field, default not needed", request(nil, transform.FieldConfig{Path: "int32", Value: "1", Default: true}), 2},
		{"redact", transform.Redact(paths(tb, everything(), "data", "nested.data")), 3},
		{"redact, nothing there", transform.Redact(paths(tb, everything(), "int64")), 1},
		{"redact, scope", transform.Response(transform.ResponseConfig{Redact: []transform.Conditional{{Paths: paths(tb, everything(), "data"), Scope: "a"}}}), 1},
		{"answer metadata", transform.Response(transform.ResponseConfig{Header: fixed}), 1},
		{"errors", transform.Response(transform.ResponseConfig{Errors: []*transform.ErrorRule{rule}}), 0},
	}
}

// exchange is a call of one message each way through mw, as often as it is run.
func exchange(tb testing.TB, mw rpc.Middleware) func() {
	tb.Helper()
	msg := rpc.NewMessage(wire(tb, &bankv1.Everything{Text: "victim", Int32: 1, Data: make([]byte, 100), Nested: &bankv1.Everything{Text: "x", Data: []byte("y")}}))
	s := &still{msg}
	header := metadata.MD{"x-tenant": {"acme"}, "x-user": {"admin"}, "x-debug": {"1"}, "authorization": {"v"}, "traceparent": {"v"}}
	call := &rpc.Call{Method: descriptors.Opaque("/a.B/C"), Info: &rpc.Info{}, Principal: alice(), Header: header}
	answer := metadata.MD{"x-a": {"1"}}
	h := func(ctx context.Context, call *rpc.Call) error {
		m, err := call.Stream.Recv(ctx)
		if err != nil {
			return err
		}
		m.Release()
		if err := call.Stream.SendHeader(answer); err != nil {
			return err
		}
		return call.Stream.Send(ctx, msg.Retain())
	}
	run := mw(h)
	return func() {
		call.Stream = s
		header["x-tenant"] = header["authorization"]
		if err := run(tb.Context(), call); err != nil {
			tb.Fatal(err)
		}
	}
}

// TestAllocations counts what a call costs beyond what it costs without.
func TestAllocations(t *testing.T) {
	for _, c := range costs(t) {
		if got := testing.AllocsPerRun(200, exchange(t, c.mw)); got > c.allocs {
			t.Errorf("%s: %v allocations, want at most %v", c.name, got, c.allocs)
		}
	}
}

// BenchmarkTransform is one message each way, in memory.
func BenchmarkTransform(b *testing.B) {
	for _, c := range costs(b) {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			run := exchange(b, c.mw)
			for b.Loop() {
				run()
			}
		})
	}
}

// BenchmarkRedactLarge redacts an answer of 256 KiB in 1,000 messages within a list.
func BenchmarkRedactLarge(b *testing.B) {
	m := &bankv1.Everything{}
	for range 1000 {
		m.List = append(m.List, &bankv1.Everything{Text: "kept", Data: make([]byte, 200), Int32S: []int32{1, 2, 3}, Nested: &bankv1.Everything{Text: "in"}})
	}
	msg := rpc.NewMessage(wire(b, m))
	s := &still{msg}
	call := &rpc.Call{Method: descriptors.Opaque("/a.B/C"), Info: &rpc.Info{}}
	h := transform.Redact(paths(b, everything(), "list.int32s", "list.nested.text"))(func(ctx context.Context, call *rpc.Call) error {
		return call.Stream.Send(ctx, msg.Retain())
	})
	b.ReportAllocs()
	b.SetBytes(int64(msg.Len()))
	for b.Loop() {
		call.Stream = s
		if err := h(b.Context(), call); err != nil {
			b.Fatal(err)
		}
	}
}
