// Package limit bounds what callers may use: calls per time (GCRA with a burst), calls per day or month, and calls at a
// time, each counted per consumer, address, method, header, claim or field of the request, or any of these together.
//
// A call that goes over a limit ends with RESOURCE_EXHAUSTED, a google.rpc.ErrorInfo of domain "transom" whose reason is
// RATE_LIMITED, QUOTA_EXCEEDED or CONCURRENCY_LIMITED, a google.rpc.RetryInfo, and the metadata "retry-after" (seconds),
// "ratelimit" and "ratelimit-policy" (draft-ietf-httpapi-ratelimit-headers-10). Calls that go through carry the latter two as
// well, also if they end with an error. A call refused by one limit counts against none.
//
// # Where counts are
// In this process, in tables of bounded size ([Limiter]); or in Redis, shared by every transom that uses it ([Redis]), by
// the same arithmetic in one atomic script. Calls at a time are always counted here.
//
// # Concurrency
// Everything is safe for concurrent use.
package limit

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/rpc"
)

// Kind is what a limit counts.
type Kind uint8

// The kinds: calls per time, calls in a calendar day or month of UTC, calls at a time.
const (
	Rate Kind = iota
	Quota
	Concurrent
)

// The reasons of refusals, by Kind, as in google.rpc.ErrorInfo.
var reasons = [...]string{Rate: "RATE_LIMITED", Quota: "QUOTA_EXCEEDED", Concurrent: "CONCURRENCY_LIMITED"}

// reasonUnknown is that of calls refused because nobody can say what was used.
const reasonUnknown = "LIMIT_UNKNOWN"

// Amount is how much a limit allows.
type Amount struct {
	// Count is at least 1.
	Count int64
	// Period is what Count is for: of a Rate its time, of a Quota Day or Month, of Concurrent 0.
	Period time.Duration
	// Burst, of a Rate, is how many calls may come at once: 1 … . 0 is Count.
	Burst int64
}

// Periods of a Quota.
const (
	Day   = 24 * time.Hour
	Month = 31 * Day
)

// maxRate is the highest rate: the arithmetic goes by microseconds.
const maxRate = 1e6

// ParseAmount reads an amount of the kind: "100/m" or "5/10s" (units ms, s, m, h) for Rate, "1000/day" or "50000/month" for
// Quota, "20" for Concurrent.
func ParseAmount(kind Kind, s string) (Amount, error) {
	n, per, divided := strings.Cut(s, "/")
	count, err := strconv.ParseInt(n, 10, 64)
	a := Amount{Count: count}
	bad := func(want string) (Amount, error) { return Amount{}, fmt.Errorf("%q is not %s", s, want) }
	switch kind {
	case Rate:
		const want = "a rate like 100/m, 5/10s or 1000/h, of at most 1000000 per second"
		if per != "" && (per[0] < '0' || per[0] > '9') {
			per = "1" + per
		}
		var perErr error
		a.Period, perErr = time.ParseDuration(per)
		if err != nil || perErr != nil || count < 1 || a.Period < time.Millisecond || a.Period > Day || float64(count)/a.Period.Seconds() > maxRate {
			return bad(want)
		}
	case Quota:
		switch per {
		case "day":
			a.Period = Day
		case "month":
			a.Period = Month
		default:
			return bad("a quota like 1000/day or 50000/month")
		}
		if err != nil || count < 1 {
			return bad("a quota like 1000/day or 50000/month")
		}
	case Concurrent:
		if err != nil || divided || count < 1 || count > math.MaxInt32 {
			return bad("a number of calls like 20")
		}
	}
	return a, nil
}

// Config is one limit.
type Config struct {
	// Name is the limit's own in headers, errors and Redis. Required.
	Name string
	Kind Kind
	Amount
	// Plans are the amounts for callers of a plan, by its name.
	Plans map[string]Amount
	// Per says whose calls are counted together; empty for everybody's.
	Per []Part
	// Messages counts the messages that clients send rather than calls. Not of Concurrent.
	Messages bool
	// Redis shares the counts; nil for this process's own. Not of Concurrent.
	Redis *Redis
}

// Limiter is one limit with its counts, kept for as long as its configuration does not change.
type Limiter struct {
	cfg     Config
	def     *plan
	plans   map[string]*plan
	rates   *table[float64]
	quotas  *table[used]
	running *table[int32]
	clock   clock
	// quoted is the name as an item of "ratelimit" begins with it.
	quoted string
}

// plan is an Amount made ready.
type plan struct {
	// cost and tolerance are the increment of one call and the burst, in µs.
	cost, tolerance float64
	// rested is what is told of a Rate after a call of cost 1 that found the whole burst there, as most calls do; none of other kinds.
	rested told
	// share is what this process allows by itself while Redis does not answer; nil if the limit is not shared.
	share *plan
	// policy is the value of ratelimit-policy; nil of Concurrent. It is shared and never changed.
	policy []string
	Amount
}

// told is an item of "ratelimit" made ready.
type told struct {
	remaining, seconds int64
	text               string
}

// New makes a Limiter. cfg must have been parsed and so is taken to be right.
func New(cfg Config) *Limiter {
	l := &Limiter{cfg: cfg, plans: map[string]*plan{}, clock: newClock(), quoted: strconv.Quote(cfg.Name)}
	l.def = l.plan(cfg.Amount)
	for name, a := range cfg.Plans {
		l.plans[name] = l.plan(a)
	}
	switch cfg.Kind {
	case Rate:
		l.rates = newTable(func(tat, now float64) float64 { return tat - now })
	case Quota:
		l.quotas = newTable(used.worth)
	case Concurrent:
		l.running = newTable[int32](nil)
	}
	return l
}

// plan makes an Amount ready.
func (l *Limiter) plan(a Amount) *plan {
	p := &plan{Amount: a}
	if p.Burst == 0 {
		p.Burst = p.Count
	}
	p.policy = l.policy(a)
	p.cost = float64(a.Period.Microseconds()) / float64(a.Count)
	p.tolerance = p.cost * float64(p.Burst)
	p.rested = l.rested(p)
	if r := l.cfg.Redis; r != nil && r.cfg.Instances > 1 {
		n := int64(r.cfg.Instances)
		share := *p
		share.Count, share.Burst = max(1, p.Count/n), max(1, p.Burst/n)
		share.policy = l.policy(share.Amount)
		share.cost = p.cost * float64(n)
		share.tolerance = share.cost * float64(share.Burst)
		share.rested = l.rested(&share)
		p.share = &share
	} else if r != nil {
		p.share = p
	}
	return p
}

// policy makes plan.policy.
func (l *Limiter) policy(a Amount) []string {
	if l.cfg.Kind == Concurrent {
		return nil
	}
	return []string{fmt.Sprintf("%s;q=%d;w=%d", l.quoted, min(a.Count, maxInteger), max(1, int64(a.Period/time.Second)))}
}

// maxInteger is the most that an Integer of a structured field can say (RFC 9651, 3.3.1).
const maxInteger = 999_999_999_999_999

// rested makes plan.rested.
func (l *Limiter) rested(p *plan) told {
	if l.cfg.Kind != Rate {
		return told{}
	}
	var v verdict
	v.ofRate(p, p.cost, 0)
	return told{v.remaining, seconds(v.reset), string(l.state(nil, v))}
}

// MaxCost is the most that one call may weigh; more never goes through where counts are shared.
func (l *Limiter) MaxCost() int64 {
	most := l.def.Burst
	for _, p := range l.plans {
		most = min(most, p.Burst)
	}
	return most
}

// verdict is what a limit says of one call.
type verdict struct {
	plan *plan
	// remaining is how many calls of cost 1 there may be now, reset the time until the full amount is there again.
	remaining int64
	reset     time.Duration
	// wait is how long until the call would be let through; 0 if it is.
	wait time.Duration
}

// clock counts µs since 2025 by the monotonic clock: times between calls, which no setting of the wall clock may change.
type clock struct{ origin time.Time }

func epoch() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// newClock moves the epoch onto the monotonic clock.
func newClock() clock {
	now := time.Now()
	return clock{now.Add(-now.Round(0).Sub(epoch()))}
}

func (c clock) now() float64 { return float64(time.Since(c.origin).Microseconds()) }

// wall is the µs since 2025 by the wall clock: days and months, which all transoms have in common.
func wall() float64 { return float64(time.Now().Round(0).Sub(epoch()).Microseconds()) }

// gcra is the generic cell rate algorithm with its virtual schedule (ITU-T I.371): tat is the theoretical arrival time of
// the next call, now the time of this one, which costs cost; tolerance is what a full burst costs. The call may pass if wait
// is less than a µs, and tat is then next; else it must wait. A cost below 0 gives back. All in µs.
func gcra(tat, now, cost, tolerance float64) (next, wait float64) {
	next = max(tat, now) + cost
	return next, next - now - tolerance
}

// slack is the wait that is none: what rounding makes of it.
const slack = 0.5

// used is what was used of a quota until its window ends, in µs.
type used struct {
	n   int64
	end float64
}

// worth is what a table goes by: what was used, and nothing once the window has ended. All windows of a period end at once.
func (u used) worth(now float64) float64 {
	if u.end <= now {
		return 0
	}
	return float64(u.n)
}

// window is the end of the calendar day or month in which now is, in UTC and in µs.
func window(now float64, period time.Duration) float64 {
	t := epoch().Add(time.Duration(now) * time.Microsecond)
	y, m, d := t.Date()
	if period == Month {
		return float64(time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC).Sub(epoch()).Microseconds())
	}
	return float64(time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC).Sub(epoch()).Microseconds())
}

// add is the arithmetic of a quota, in the window that ends at end, the one of p that now is in, which callers find before they lock. A
// call that weighs more than all there is, as one may more than a share, is let through if nothing was used.
func (u used) add(now, end float64, n int64, p *plan) (used, bool) {
	// The window must be the one that now is in, which after the clock was set back it may not be; callers of another plan may have begun
	// it.
	if u.end != end && u.end != window(now, Day+Month-p.Period) {
		u = used{0, end}
	}
	if n > 0 && u.n+n > max(n, p.Count) {
		return u, false
	}
	u.n = max(0, u.n+n)
	return u, true
}

// micros is a number of µs as a Duration, rounded up, not below 0, and 285 years at most.
func micros(f float64) time.Duration {
	return time.Duration(math.Ceil(min(max(0, f), 9e15))) * time.Microsecond
}

// of is the plan for the call.
func (l *Limiter) of(call *rpc.Call) *plan {
	if len(l.plans) > 0 && call.Principal != nil {
		if p, ok := l.plans[call.Principal.Plan]; ok {
			return p
		}
	}
	return l.def
}

// take asks for cost, or gives it back if cost is below 0. An error says that nobody knows.
func (l *Limiter) take(ctx context.Context, call *rpc.Call, req request, cost int64) (verdict, error) {
	var buf [128]byte
	key := l.key(buf[:0], call, req)
	p := l.of(call)
	if r := l.cfg.Redis; r != nil {
		v, err := r.take(ctx, l, p, key, cost)
		if err == nil {
			return v, nil
		}
		if r.cfg.FailClosed {
			return verdict{}, err
		}
		call.Info.Note("limit_shared", "no")
		p = p.share
	}
	return l.local(p, key, cost), nil
}

// local asks this process's tables.
func (l *Limiter) local(p *plan, key []byte, cost int64) verdict {
	v := verdict{plan: p}
	if l.cfg.Kind == Quota {
		now := wall()
		end := window(now, p.Period)
		var after used
		ok := true
		l.quotas.update(key, now, func(u used) (used, bool) {
			after, ok = u.add(now, end, cost, p)
			return after, ok
		})
		v.of(p, after, now, ok)
		return v
	}
	now := l.clock.now()
	s := l.rates.shard(key)
	s.mu.Lock()
	tat, there := s.m[s.hash]
	if !there {
		tat = now
	}
	weight := p.cost * float64(cost)
	next, wait := gcra(tat, now, weight, max(weight, p.tolerance)) // what weighs more than a share is let through if nothing was used
	if wait < slack || cost < 0 {
		s.put(next, now)
		wait, tat = 0, next
	}
	s.unlock()
	v.ofRate(p, tat-now, wait)
	return v
}

// ofRate fills v: ahead is how far the schedule is ahead of now.
func (v *verdict) ofRate(p *plan, ahead, wait float64) {
	ahead = max(0, ahead)
	v.remaining = max(0, int64((p.tolerance-ahead+slack)/p.cost))
	v.reset = micros(ahead)
	if wait >= slack {
		v.wait = micros(wait)
	}
}

// of fills v for a quota.
func (v *verdict) of(p *plan, u used, now float64, ok bool) {
	v.remaining = max(0, p.Count-u.n)
	v.reset = micros(u.end - now)
	if !ok {
		v.wait = v.reset
	}
}

// refusal ends a call that went over l's limit.
func (l *Limiter) refusal(call *rpc.Call, v verdict) error {
	call.Info.Fail(rpc.SourceGateway)
	call.Info.Refuse("limit", l.cfg.Name)
	var msg string
	what := "calls"
	if l.cfg.Messages {
		what = "messages"
	}
	switch l.cfg.Kind {
	case Rate:
		msg = fmt.Sprintf("rate limit %q: %d %s per %s are allowed", l.cfg.Name, v.plan.Count, what, v.plan.Period)
	case Quota:
		msg = fmt.Sprintf("quota %q: %d %s per %s are allowed", l.cfg.Name, v.plan.Count, what, map[time.Duration]string{Day: "day", Month: "month"}[v.plan.Period])
	case Concurrent:
		msg = fmt.Sprintf("limit %q: %d calls at a time are allowed", l.cfg.Name, v.plan.Count)
	}
	st := status.New(codes.ResourceExhausted, msg)
	info := &errdetails.ErrorInfo{Reason: reasons[l.cfg.Kind], Domain: "transom", Metadata: map[string]string{"limit": l.cfg.Name}}
	if detailed, err := st.WithDetails(info, &errdetails.RetryInfo{RetryDelay: durationpb.New(v.wait)}); err == nil {
		st = detailed
	}
	md := metadata.MD{"retry-after": {strconv.FormatInt(seconds(v.wait), 10)}}
	if v.plan.policy != nil {
		md["ratelimit"], md["ratelimit-policy"] = []string{string(l.state(nil, v))}, v.plan.policy
	}
	return rpc.WithHeader(st.Err(), md)
}

// unknown ends a call of which nobody can say whether it goes over l's limit.
func (l *Limiter) unknown(call *rpc.Call, cause error) error {
	call.Info.Fail(rpc.SourceGateway)
	call.Info.Refuse("limit", l.cfg.Name+": "+cause.Error())
	st := status.New(codes.Unavailable, "the limits of this call cannot be checked now")
	info := &errdetails.ErrorInfo{Reason: reasonUnknown, Domain: "transom", Metadata: map[string]string{"limit": l.cfg.Name}}
	if detailed, err := st.WithDetails(info, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}); err == nil {
		st = detailed
	}
	return rpc.WithHeader(st.Err(), metadata.MD{"retry-after": {"1"}})
}

// state appends the item of "ratelimit": "name";r=remaining;t=seconds.
func (l *Limiter) state(dst []byte, v verdict) []byte {
	dst = strconv.AppendInt(append(append(dst, l.quoted...), ";r="...), min(v.remaining, maxInteger), 10)
	return strconv.AppendInt(append(dst, ";t="...), seconds(v.reset), 10)
}

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
