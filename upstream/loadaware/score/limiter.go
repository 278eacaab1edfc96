package score

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Settings of the limiter.
const (
	// A window lasts this long, and until it has this many calls.
	limiterWindow = 100 * time.Millisecond
	limiterCalls  = 20
	// limiterMemory is how long the least time of a window is remembered, and half of that at least.
	limiterMemory = time.Minute
	// limiterTolerance is how many times longer than at best calls may take before the limit shrinks.
	limiterTolerance = 2
	limiterStart     = 8
	limiterLeast     = 4
)

// Limiter finds how many calls a cluster takes at a time (after Netflix's concurrency-limits and Envoy's gradient
// controller). By Little's law more calls in flight than the servers work at only wait; so while answers take longer than
// limiterTolerance times what they took at best, the limit shrinks in proportion, and otherwise it grows by its square
// root. Envoy learns the best time by holding nearly all calls back now and then; here it is the least mean of a window in
// the last minute. Under a load that lasts, the limit is halved for a moment every half minute so that there is such a
// window: as calls then take up to limiterTolerance times their best, the servers stay busy. The limit does not grow while
// less than half of it is used. It may be used concurrently; who ends a call while another computes does not wait.
type Limiter struct {
	most float64

	sum, calls atomic.Int64 // of the window: ns of the answered, and their number
	refused    atomic.Int64 // calls of the window that the servers were too busy for
	peak       atomic.Int64 // most calls in flight
	until      atomic.Int64 // the window's end, ns

	mu          sync.Mutex // guards what follows
	limit       float64
	least, next float64 // ns: of the last half minute or more, and of the one that has begun
	turn        int64   // when next takes the place of least
}

// NewLimiter returns one that keeps to 4 … most, or to most if that is less, and the limit that it begins with.
func NewLimiter(most int) (l *Limiter, limit int64) {
	l = &Limiter{most: float64(most), limit: min(limiterStart, float64(most)), least: math.Inf(1), next: math.Inf(1)}
	return l, int64(l.limit)
}

// End counts a call that ended at now, a time since any epoch, after took, and that was one of inFlight. refused says that
// the servers were too busy for it; answered, that they did their work. It returns a new limit, or 0 if there is none.
func (l *Limiter) End(now, took time.Duration, inFlight int64, answered, refused bool) (limit int64) {
	switch {
	case refused:
		l.refused.Add(1)
	case answered:
		l.sum.Add(int64(took))
		l.calls.Add(1)
	}
	if inFlight > l.peak.Load() {
		l.peak.Store(inFlight)
	}
	if int64(now) < l.until.Load() || l.calls.Load()+l.refused.Load() < limiterCalls || !l.mu.TryLock() {
		return 0
	}
	defer l.mu.Unlock()
	if int64(now) < l.until.Load() {
		return 0
	}
	calls, refusals := l.calls.Swap(0), l.refused.Swap(0)
	sum, peak := l.sum.Swap(0), l.peak.Swap(0)
	l.until.Store(int64(now + limiterWindow))
	gradient := 1.0
	if calls > 0 {
		mean := float64(sum) / float64(calls)
		if int64(now) > l.turn {
			busy := mean > 1.5*l.least
			l.least, l.next, l.turn = l.next, math.Inf(1), int64(now+limiterMemory/2)
			if busy {
				gradient = 0.5
			}
		}
		l.least, l.next = min(l.least, mean), min(l.next, mean)
		gradient = min(gradient, max(0.5, limiterTolerance*l.least/mean))
	}
	if refusals > calls/10 {
		gradient = min(gradient, 0.9)
	}
	next := l.limit * gradient
	if gradient == 1 && float64(peak) > l.limit/2 {
		next += math.Sqrt(l.limit)
	}
	l.limit = min(max(next, min(limiterLeast, l.most)), l.most)
	return int64(l.limit)
}
