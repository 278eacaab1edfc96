package score

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// Rand is a small random number generator (splitmix64) that lives on the stack. Seed it from wherever randomness comes.
type Rand struct{ State uint64 }

// Uint64 returns 64 random bits.
func (r *Rand) Uint64() uint64 {
	r.State += 0x9e3779b97f4a7c15
	z := r.State
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// IntN returns a number in [0, n). n must be positive and fit in 32 bits.
func (r *Rand) IntN(n int) int { return int(r.Uint64() >> 32 * uint64(n) >> 32) }

// Float64 returns a number in [0, 1).
func (r *Rand) Float64() float64 { return float64(r.Uint64()>>11) / (1 << 53) }

// Policy is a way of choosing.
type Policy uint8

// The policies.
const (
	Adaptive Policy = iota
	RoundRobin
	WeightedRoundRobin
	LeastRequest
	PeakEWMA
	Random
	RingHash
	BoundedHash
)

var policyNames = [...]string{"adaptive", "round_robin", "weighted_round_robin", "least_request", "peak_ewma", "random", "ring_hash", "bounded_hash"}

func (p Policy) String() string { return policyNames[p] }

// Policies are the names that ParsePolicy knows.
func Policies() []string { return slices.Clone(policyNames[:]) }

// ParsePolicy finds a policy by its name; "" is Adaptive.
func ParsePolicy(name string) (Policy, bool) {
	if name == "" {
		return Adaptive, true
	}
	for i, s := range policyNames {
		if s == name {
			return Policy(i), true
		}
	}
	return 0, false
}

// Pick is what one call asks for.
type Pick struct {
	// Tried are nodes not to be chosen while others can serve.
	Tried []*Node
	// Hash is the key of the hash policies. Without HasHash a random key is taken.
	Hash    uint64
	HasHash bool
	// Stream says that the call is a stream.
	Stream bool
}

// Table is an immutable list of nodes that a call may go to, with the scheduling state of its policy.
type Table struct {
	fleet  *Fleet
	policy Policy
	nodes  []*Node
	next   atomic.Uint64 // round robin
	wrr    atomic.Pointer[stride]
	wrrDue instant
	ring   []ringEntry
}

// NewTable returns a table over nodes, which must be of this fleet. names, of the same length, place the nodes on the
// ring of the hash policies; the others do not need them.
func (f *Fleet) NewTable(p Policy, nodes []*Node, names []string, seed uint64) *Table {
	t := &Table{fleet: f, policy: p, nodes: nodes}
	if p == PeakEWMA {
		f.peaks.Store(true)
	}
	t.next.Store(seed)
	for i, n := range nodes {
		n.slot.Store(int32(i))
	}
	if p == RingHash || p == BoundedHash {
		t.ring = newRing(nodes, names)
	}
	return t
}

// Len is the number of nodes, Node the i-th of them.
func (t *Table) Len() int { return len(t.nodes) }

// Fit is how many of the nodes are not ejected.
func (t *Table) Fit() int { return max(1, len(t.nodes)-int(t.fleet.ejected.Load())) }

// Node returns the i-th node.
func (t *Table) Node(i int) *Node { return t.nodes[i] }

// Choose returns the index of the node that the next call should go to, or -1 if every node is at its limit.
func (t *Table) Choose(now time.Duration, r *Rand, p *Pick) int {
	if now >= t.fleet.next.get() {
		t.tick(now)
	}
	i := -1
	switch t.policy {
	case Adaptive:
		i = t.adaptive(now, r, p)
	case RoundRobin:
		i = t.roundRobin(now, p)
	case WeightedRoundRobin:
		i = t.weighted(now, p)
	case LeastRequest:
		i = t.twoChoices(now, r, p, (*Node).requests)
	case PeakEWMA:
		i = t.twoChoices(now, r, p, (*Node).peak)
	case Random:
		i = t.probe(now, p, r.IntN(len(t.nodes)))
	case RingHash, BoundedHash:
		i = t.hash(now, r, p)
	}
	if i >= 0 {
		return i
	}
	return t.leastBad(r, p)
}

// admits says whether n may be picked freely, and if so whether it must be, to learn how it is.
func (t *Table) admits(now time.Duration, p *Pick, n *Node) (ok, must bool) {
	g := n.gates.Load()
	if l := n.limit.Load(); l > 0 && n.inflight.Load() >= int64(l) {
		return false, false
	}
	if slices.Contains(p.Tried, n) {
		return false, false
	}
	if g == 0 {
		return true, false
	}
	if g&(gateProbation|gateHung|gateEjected) != 0 && n.working() > 0 {
		return t.fleet.panicking.Load() && g&(gateProbation|gateHung) == 0, false
	}
	// A stream may not tell for hours: beside such, one call goes to see now and then.
	see := n.inflight.Load() == 0 || now-n.picked.get() > t.fleet.par().EjectFor
	if g&gateEjected != 0 {
		if now < n.ejectedUntil.get() || !see {
			return t.fleet.panicking.Load(), false
		}
		return true, true
	}
	if g&gateSuspect != 0 && n.inflight.Load() == 0 {
		rest := t.fleet.par().EjectFor
		if !n.failing.Load() {
			rest /= 10
		}
		if now-n.picked.get() > rest {
			return true, true
		}
	}
	if g&gateProbation != 0 {
		return true, see && !n.failing.Load()
	}
	return true, false
}

// cost estimates what a further call, or stream, will cost at n, in typical calls. To a call, streams that last count for
// little; streams are spread by their number.
func (f *Fleet) cost(par *Params, now time.Duration, n *Node, stream bool) float64 {
	streams := float64(n.streams.Load())
	working := float64(n.inflight.Load()) - streams
	q := working + streams
	if !stream && streams > 0 {
		q = working + streams*f.streamCost.get()
	}
	if s := f.sharing.get(); s > 0 {
		q += q*s*par.OwnWeight + n.elsewhere(now)
	}
	load := q + 1
	if c := n.capacity.get(); c > 0 {
		load /= c
	}
	if n.remote.Load() {
		load += par.ZonePenalty
	}
	slow := n.slowness.get()
	if working >= 1 {
		if med := f.median.get(); med > 0 {
			silent := float64(now-n.quiet.get()) / med
			if c := n.capacity.get(); working < c {
				silent *= working / c // what is long under way leaves room beside it
			}
			slow = max(slow, silent)
		}
	}
	if slow == 0 {
		slow = 1
	}
	// Waiting costs little while there is room, and grows with the queue.
	return slow*(1+load*load) + n.penalty.get()
}

func (t *Table) adaptive(now time.Duration, r *Rand, p *Pick) int {
	f, par := t.fleet, t.fleet.par()
	b := bargain{node: -1, young: -1, cost: math.Inf(1), youngCost: math.Inf(1)}
	n := len(t.nodes)
	if n <= par.ScanAll {
		// Start anywhere, so that ties fall on every node alike.
		at := r.IntN(n)
		for range n {
			if t.look(f, par, now, r, p, at, &b) {
				return b.node
			}
			if at++; at == n {
				at = 0
			}
		}
		return b.choice(par)
	}
	choices := par.Choices
	if f.sharing.get() > 0.1 {
		// Others send much of the load, and chose well among the same nodes: it takes more looks to find room that they have left.
		choices = min(2*choices, n)
		// Most reports are stale there: look at those that are not.
		for k := range f.recent {
			nd := f.recent[k].Load()
			if nd == nil || now-nd.reported.get() > 2*par.ReportMemory {
				continue
			}
			if i := int(nd.slot.Load()); i < n && t.nodes[i] == nd && t.look(f, par, now, r, p, i, &b) {
				return b.node
			}
		}
	}
	// Choices without replacement: a random start and random steps, none long enough to come round.
	at := r.IntN(n)
	for range choices {
		if t.look(f, par, now, r, p, at, &b) {
			return b.node
		}
		if at += 1 + r.IntN(n/choices); at >= n {
			at -= n
		}
	}
	return b.choice(par)
}

// bargain is the cheapest node seen so far.
type bargain struct {
	node, young     int // young is the cheapest of those that only their age keeps out
	cost, youngCost float64
}

// choice is the node that the call goes to. A server that warms up is spared only as long as the others do not queue.
func (b *bargain) choice(par *Params) int {
	if b.cost > par.WarmupYield && b.youngCost < b.cost {
		return b.young
	}
	return b.node
}

// look considers node i, and says whether the search is over because a call must go there.
func (t *Table) look(f *Fleet, par *Params, now time.Duration, r *Rand, p *Pick, i int, b *bargain) bool {
	n := t.nodes[i]
	if len(p.Tried) > 0 || n.gates.Load() != 0 || n.limit.Load() != 0 {
		ok, must := t.admits(now, p, n)
		if !ok {
			return false
		}
		if must {
			b.node = i
			return true
		}
		if n.gated(gateWarmup) {
			if w := n.admit.get(); w < 1 && r.Float64() >= w {
				if c := f.cost(par, now, n, p.Stream); c < b.youngCost {
					b.young, b.youngCost = i, c
				}
				return false
			}
		}
	}
	if c := f.cost(par, now, n, p.Stream); c < b.cost {
		b.node, b.cost = i, c
	}
	return false
}

// leastBad serves a call for which the filter left nothing: of a few nodes that are not full, the one with the fewest
// calls in flight, those already tried last. It returns -1 if all nodes are at their limits.
func (t *Table) leastBad(r *Rand, p *Pick) int {
	n := len(t.nodes)
	at := r.IntN(n)
	best, least := -1, math.Inf(1)
	for k := range n {
		if k >= 2*t.fleet.par().ScanAll && best >= 0 {
			break
		}
		nd := t.nodes[at]
		if l := nd.limit.Load(); l == 0 || nd.inflight.Load() < int64(l) {
			c := float64(nd.inflight.Load())
			g := nd.gates.Load()
			for _, tried := range p.Tried {
				if tried == nd {
					c += 1e6
				}
			}
			switch {
			case g&gateEjected != 0:
				c += 1e4
			case g&gateHung != 0:
				c += 1e3
			}
			if c < least {
				best, least = at, c
			}
		}
		if at++; at == n {
			at = 0
		}
	}
	return best
}

// Probes appends to dst the indexes of nodes whose load is worth asking for now, and returns it. It is to be called once
// per call. The rate is Params.Probes times the part of the servers' load that comes from elsewhere.
func (t *Table) Probes(now time.Duration, r *Rand, dst []int) []int {
	f := t.fleet
	s := f.sharing.get()
	if s < 0.1 || len(t.nodes) < 2 {
		return dst
	}
	p := f.par()
	want := p.Probes * s
	for ; want > 0 && len(dst) < cap(dst); want-- {
		if want < 1 && r.Float64() >= want {
			break
		}
		for range 4 {
			i := r.IntN(len(t.nodes))
			if n := t.nodes[i]; now-n.reported.get() >= p.ProbeAge && now-n.asked.get() >= p.ProbeAge && n.gates.Load()&(gateEjected|gateHung) == 0 {
				n.asked.set(now)
				dst = append(dst, i)
				break
			}
		}
	}
	return dst
}
