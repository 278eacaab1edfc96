//go:build !race

package observe

import (
	"context"
	"io"
	"testing"
	"time"

	"transom/rpc"
)

// TestAllocations says that a call is recorded without an allocation.
func TestAllocations(t *testing.T) {
	u := usageOf(t, UsageConfig{Period: time.Hour, Consumers: 1})
	defer u.Close()
	l := accessLog(io.Discard)
	defer l.Close(t.Context())
	o := New(NewMetrics(), l, nil, u)
	x := exchange()
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		o.Begin(ctx, x)
		o.End(x)
	}); n != 0 {
		t.Errorf("%v allocations a call, want 0", n)
	}
}

// TestTracesAllocations says that the policies' spans cost a call nothing that is not sampled.
func TestTracesAllocations(t *testing.T) {
	x := exchange()
	h := chained(&Traces{}, func(context.Context, *rpc.Call) error { return nil })
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() { _ = h(ctx, x.Call) }); n != 0 {
		t.Errorf("%v allocations a call, want 0", n)
	}
}
