package upstream

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// pushbackKey is the trailer by which a server says when to try again, in milliseconds; not at all if negative (A6).
const pushbackKey = "grpc-retry-pushback-ms"

// outcome is how an attempt ended that brought no answer.
type outcome struct {
	st       *status.Status
	pushback time.Duration // -1: none given
	stop     bool          // the server asks not to try again
	unseen   bool          // no server has seen the attempt
	answered bool          // response headers have come: the call is committed
}

// outcomeOf judges an attempt that ended with err.
func outcomeOf(err error, answered bool, trailer metadata.MD) outcome {
	o := outcome{st: status.Convert(err), pushback: -1, answered: answered}
	if vs := trailer[pushbackKey]; len(vs) > 0 {
		ms, err := strconv.ParseInt(vs[0], 10, 64)
		if o.stop = err != nil || ms < 0 || len(vs) > 1; !o.stop {
			o.pushback = time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
		}
	}
	if f := (*fault)(nil); errors.As(err, &f) {
		o.unseen = f.unseen
	}
	return o
}

// again decides whether an attempt, the n-th of its call (from 1), is followed by another, and after how long. It takes
// from the budget if so.
func (c *Cluster) again(ctx context.Context, call *rpc.Call, p *retryPolicy, n int, o outcome) (time.Duration, bool) {
	if o.answered || ctx.Err() != nil {
		return 0, false
	}
	listed := p.codes.has(o.st.Code())
	if t := c.policies.throttles; t != nil && (listed || o.stop) && !t.failure() {
		return 0, false
	}
	if !listed && !o.unseen || o.stop || n >= p.attempts {
		return 0, false
	}
	wait := o.pushback
	if wait < 0 {
		wait = p.backoff(n)
	}
	now := time.Now()
	if d, ok := ctx.Deadline(); ok && now.Add(wait).After(d) {
		return 0, false
	}
	if !c.budget.Take(sinceEpoch(now)) {
		call.Info.Note("retry", "over the cluster's budget")
		return 0, false
	}
	return wait, true
}

// backoff is how long to wait after the n-th attempt, with 20 % of jitter either way (A6).
func (p *retryPolicy) backoff(n int) time.Duration {
	d := min(float64(p.initial)*math.Pow(p.multiplier, float64(n-1)), float64(p.max))
	return time.Duration(d * (0.8 + 0.4*rand.Float64()))
}

// pause waits for d and reports whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// throttle is the retryThrottling of gRFC A6: tokens, counted in thousandths, that failures take and successes give
// back in part. There are retries while more than half are left.
type throttle struct {
	tokens     atomic.Int64
	max, ratio int64
}

func newThrottle(maxTokens, ratio float64) *throttle {
	t := &throttle{max: int64(maxTokens * 1000), ratio: int64(ratio * 1000)}
	t.tokens.Store(t.max)
	return t
}

// failure counts a failed attempt and reports whether it may be made again.
func (t *throttle) failure() bool { return t.add(-1000) > t.max/2 }

// success counts a call that succeeded. t may be nil.
func (t *throttle) success() {
	if t != nil && t.tokens.Load() < t.max {
		t.add(t.ratio)
	}
}

func (t *throttle) add(d int64) int64 {
	for {
		old := t.tokens.Load()
		n := min(max(old+d, 0), t.max)
		if t.tokens.CompareAndSwap(old, n) {
			return n
		}
	}
}
