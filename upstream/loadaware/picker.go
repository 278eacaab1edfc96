package loadaware

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/upstream/loadaware/score"
)

// errSaturated fails a pick where every endpoint is at its limit.
var errSaturated = status.Error(codes.ResourceExhausted, "every endpoint has as many calls in flight as it may")

// target is an endpoint that calls may go to.
type target struct {
	endpoint *endpoint
	node     *score.Node
	picker   balancer.Picker // pick_first's, with the connection
}

// picker is immutable but for the statistics it points at.
type picker struct {
	b      *lb
	levels []level
}

// level is a priority with its part of the calls.
type level struct {
	each    float64 // part of the calls that each endpoint that is ready and not ejected can take
	table   *score.Table
	targets []target
}

// overprovision is by how much a priority's ready part may fall before calls spill to the next. Envoy: 1.4.
const overprovision = 1.4

// spill returns the index of the level that a call goes to by x, which is from 0 to 1: a level takes calls in proportion to overprovision
// times the part of its endpoints that is ready and not ejected, and what is left goes to the next.
func (p *picker) spill(x float64) int {
	last := len(p.levels) - 1
	for at := range last {
		l := &p.levels[at]
		if x -= l.each * float64(l.table.Fit()); x < 0 {
			return at
		}
	}
	return last
}

// tried says whether all targets are among nodes.
func (l *level) tried(nodes []*score.Node) bool {
	if len(nodes) < len(l.targets) {
		return false
	}
	for i := range l.targets {
		if !slices.Contains(nodes, l.targets[i].node) {
			return false
		}
	}
	return true
}

// newPicker makes a picker of the ready targets, or returns nil if there are none. listed counts the endpoints of each
// priority, ready or not. What a priority has no room for goes to the next. The caller holds b.mu.
func newPicker(b *lb, listed map[int]int, ready map[int][]target) *picker {
	p := &picker{b: b}
	var priorities []int
	for pr := range ready {
		priorities = append(priorities, pr)
	}
	slices.Sort(priorities)
	for _, pr := range priorities {
		ts := ready[pr]
		nodes := make([]*score.Node, len(ts))
		names := make([]string, len(ts))
		for i, t := range ts {
			nodes[i], names[i] = t.node, t.endpoint.addr
		}
		fleet := b.fleets[ts[0].endpoint.attrs.Priority]
		p.levels = append(p.levels, level{each: overprovision / float64(listed[pr]), targets: ts, table: fleet.NewTable(b.cfg.policy, nodes, names, rand.Uint64())})
	}
	if len(p.levels) == 0 {
		return nil
	}
	return p
}

// maxProbes is the greatest number of probes per call that may be set.
const maxProbes = 10

// record is one pick under way. Records are pooled; done is bound once per record, not per pick.
type record struct {
	b         *lb
	done      func(balancer.DoneInfo)
	node      *score.Node
	started   time.Duration
	load      float64
	stream    bool
	childDone func(balancer.DoneInfo)
}

// Pick implements balancer.Picker.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	rnd := score.Rand{State: rand.Uint64()}
	now := p.b.now()
	at := 0
	if len(p.levels) > 1 {
		at = p.spill(rnd.Float64())
	}
	var a *Attempt
	if info.Ctx != nil {
		a, _ = info.Ctx.Value(attemptKey{}).(*Attempt)
	}
	var want score.Pick
	var tried [maxTried]*score.Node
	if a != nil {
		want.Stream = a.Stream
		if a.Tried != nil {
			want.Tried = tried[:a.Tried.nodes(&tried)]
		}
		if a.Key != "" {
			want.Hash, want.HasHash = score.Hash(a.Key), true
		}
	}
	// A level whose endpoints are at their limits, or have all been tried, leaves the call to the others.
	var l *level
	i := -1
	for others := len(p.levels) - 1; i < 0 && others >= 0; others-- {
		if l = &p.levels[at]; others == 0 || !l.tried(want.Tried) {
			i = l.table.Choose(now, &rnd, &want)
		}
		if at++; at == len(p.levels) {
			at = 0
		}
	}
	if i < 0 {
		if a != nil {
			a.saturated.Store(true)
		}
		return balancer.PickResult{}, errSaturated
	}
	t := &l.targets[i]
	res, err := t.picker.Pick(info)
	if err != nil {
		return res, err
	}
	r := p.b.records.Get().(*record)
	r.node, r.started, r.childDone = t.node, now, res.Done
	r.stream = a != nil && a.Stream
	r.load = t.node.Begin(now, r.stream)
	if a != nil {
		a.endpoint.Store(t.endpoint)
		if a.Tried != nil {
			a.Tried.add(t.node)
		}
		if a.Began != nil {
			a.Began()
		}
	}
	var ask [maxProbes]int
	for _, i := range l.table.Probes(now, &rnd, ask[:0]) {
		if a != nil && a.Budget != nil && !a.Budget.Take(time.Duration(time.Now().UnixNano())) {
			break
		}
		p.b.probes.start(l.targets[i].endpoint)
	}
	res.Done = r.done
	return res, nil
}

// finish is the Done of a pick: it learns from the end of the attempt, then gives the record back. grpc calls it once per
// pick; a second call before the record's next use is ignored.
func (r *record) finish(info balancer.DoneInfo) {
	n, done := r.node, r.childDone
	if n == nil {
		return
	}
	now := r.b.now()
	o, untimed := outcomeOf(info)
	n.End(now, score.Sample{Outcome: o, Untimed: untimed, Started: r.started, Load: r.load, Stream: r.stream})
	if load, _ := info.ServerLoad.(*v3orcapb.OrcaLoadReport); load != nil {
		n.Observe(now, ReportOf(load))
	}
	r.node, r.childDone = nil, nil
	r.b.records.Put(r)
	if done != nil {
		done(info)
	}
}

// outcomeOf says what the end of an attempt tells about the server. grpc ends an attempt with an empty DoneInfo when the
// connection was gone before it began: that is never a success. Codes that only the client or the application can be
// blamed for are answers, though not ones whose time counts.
func outcomeOf(info balancer.DoneInfo) (o score.Outcome, untimed bool) {
	if info.Err == nil {
		if !info.BytesSent && !info.BytesReceived && info.Trailer == nil {
			return score.Void, false
		}
		return score.Answered, false
	}
	switch status.Code(info.Err) {
	case codes.Canceled:
		return score.Cut, false
	case codes.DeadlineExceeded:
		return score.TimedOut, false
	case codes.Unavailable:
		if !info.BytesSent && !info.BytesReceived {
			return score.Void, false
		}
		return score.Failed, false
	case codes.ResourceExhausted:
		return score.Failed, false
	case codes.Unknown, codes.Internal, codes.DataLoss:
		return score.Erred, false
	default:
		return score.Answered, true
	}
}

type attemptKey struct{}

// Attempt is what one attempt of a call tells the picker, and hears from it. Use one per attempt, not per call: attempts
// of a hedged call run side by side. The fields are not changed once the attempt has begun.
type Attempt struct {
	// Tried are the endpoints that earlier attempts of the call went to, which this one avoids while others can serve. The
	// picker adds to it. It may be nil.
	Tried *Tried
	// Key decides the endpoint under the hash policies; attempts without one are spread.
	Key string
	// Stream says that the client or the application decides how long the call takes, so that its length tells nothing of
	// the server and its silence is no sign of a hung one.
	Stream bool
	// Budget is what probes are taken from that come with the pick, by the time since the Unix epoch. Nil: they are bounded by
	// Config.Probes alone.
	Budget *score.Budget
	// Began is called when an endpoint has been chosen, by the picker: it must not wait. It may be nil.
	Began func()

	endpoint  atomic.Pointer[endpoint]
	saturated atomic.Bool
}

// WithAttempt returns a context that carries a to the picker.
func WithAttempt(ctx context.Context, a *Attempt) context.Context {
	return context.WithValue(ctx, attemptKey{}, a)
}

// Endpoint is the address that the attempt went to, "" if it went nowhere.
func (a *Attempt) Endpoint() string {
	if e := a.endpoint.Load(); e != nil {
		return e.addr
	}
	return ""
}

// Saturated says whether the pick failed because every endpoint was at its limit.
func (a *Attempt) Saturated() bool { return a.saturated.Load() }

// maxTried is how many endpoints a Tried remembers, more than a call has attempts.
const maxTried = 8

// Tried is the set of endpoints that the attempts of one call went to. The zero value is empty. It may be used
// concurrently.
type Tried struct {
	slots [maxTried]atomic.Pointer[score.Node]
	n     atomic.Int32
}

func (t *Tried) add(n *score.Node) {
	if i := int(t.n.Add(1)) - 1; i < maxTried {
		t.slots[i].Store(n)
	}
}

func (t *Tried) nodes(into *[maxTried]*score.Node) int {
	k := 0
	for i := range min(int(t.n.Load()), maxTried) {
		if n := t.slots[i].Load(); n != nil {
			into[k] = n
			k++
		}
	}
	return k
}
