package gateway

import (
	"context"
	"log/slog"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/rpc"
)

// Defaults of configv1.Overload.
const (
	defaultMaxCalls    = 100_000
	defaultMemoryShare = 0.85
	defaultRetryAfter  = time.Second
)

// overload is what tells when to turn calls away.
type overload struct {
	calls   atomic.Int64
	pressed atomic.Bool // memory is short
	// byCalls and byMemory count the calls turned away.
	byCalls, byMemory atomic.Int64
}

// shed turns calls away that transom could not carry: the outermost of all, since it must be cheap.
func (b *builder) shed() rpc.Middleware {
	o, limit := b.overload, int64(defaultMaxCalls)
	if n := b.cfg.GetOverload().GetCalls(); n > 0 {
		limit = int64(n)
	}
	after := b.cfg.GetOverload().GetRetryAfter().AsDuration()
	if after == 0 {
		after = defaultRetryAfter
	}
	busy, short := turnedAway("too many calls are under way", after), turnedAway("memory is short", after)
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			if o.pressed.Load() {
				o.byMemory.Add(1)
				call.Info.Fail(rpc.SourceGateway)
				call.Info.Policy = "overload"
				return short
			}
			if o.calls.Add(1) > limit {
				o.calls.Add(-1)
				o.byCalls.Add(1)
				call.Info.Fail(rpc.SourceGateway)
				call.Info.Policy = "overload"
				return busy
			}
			defer o.calls.Add(-1)
			return next(ctx, call)
		}
	}
}

// turnedAway is the answer to a call that is: UNAVAILABLE, and when to come back both as RetryInfo and as Retry-After.
func turnedAway(why string, after time.Duration) error {
	st := status.New(codes.Unavailable, "the gateway is overloaded: "+why)
	if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)}); err == nil {
		st = with
	}
	return rpc.WithHeader(st.Err(), metadata.Pairs("retry-after", strconv.Itoa(int((after+time.Second-1)/time.Second))))
}

// memoryEvery is how often memory is looked at, collectEvery how often at most it is collected for that.
const (
	memoryEvery  = 250 * time.Millisecond
	collectEvery = time.Second
)

// watchMemory looks at memory until ctx ends. Calls are turned away from the configured share of the limit on, until five
// hundredths less are in use. What decides is what a collection of its own has left: the last one may be of before a thousand
// streams ended, and takes for live whatever was allocated while it ran.
func (g *Gateway) watchMemory(ctx context.Context) {
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	var collected time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limit := debug.SetMemoryLimit(-1)
		if limit >= 1<<62 {
			continue
		}
		share := g.view.Load().cfg.GetOverload().GetMemory()
		if share == 0 {
			share = defaultMemoryShare
		}
		pressed := g.overload.pressed.Load()
		if pressed {
			share -= 0.05
		}
		used := float64(liveMemory()) / float64(limit)
		if used > share {
			if time.Since(collected) < collectEvery {
				continue
			}
			runtime.GC()
			collected, used = time.Now(), float64(liveMemory())/float64(limit)
		}
		switch {
		case !pressed && used > share:
			g.overload.pressed.Store(true)
			g.log.LogAttrs(ctx, slog.LevelWarn, "memory is short, new calls are turned away", slog.Float64("share_of_limit", used))
		case pressed && used <= share:
			g.overload.pressed.Store(false)
			g.log.LogAttrs(ctx, slog.LevelInfo, "memory suffices again", slog.Float64("share_of_limit", used))
		}
	}
}

// liveMemory is what the limit is about but garbage, in bytes, as of the last collection: with a limit the heap may well grow
// up to it, and is then collected.
func liveMemory() uint64 {
	s := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
	metrics.Read(s)
	v := func(i int) uint64 { return s[i].Value.Uint64() }
	return v(0) - v(1) - v(2) - v(3) - v(4) + v(5)
}
