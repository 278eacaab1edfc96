package score

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// Params tune the arithmetic. Start from [Defaults].
type Params struct {
	// Warmup is the age at which a server gets its full share; before, it is considered with probability age/Warmup, at
	// least a tenth. 0 switches warm-up off. Netflix: 90 s.
	Warmup time.Duration
	// WarmupYield is the cost from which the others count as queueing, so that a server that warms up is used in full.
	WarmupYield float64
	// CleanAnswers end the probation of a server that does not report.
	CleanAnswers int

	// Samples bounds how many calls the mean time per call looks back, Memory how long: a time constant.
	Samples float64
	Memory  time.Duration
	// Doubt is how many standard errors, squared, a node's deviation from the fleet's median must have to be half believed.
	Doubt float64
	// Relearn is how long a node that seems slow may be left alone before a call goes there to see (Kratos: 3 s), as far as
	// such calls stay within the part Looks of all.
	Relearn time.Duration
	Looks   float64
	// FastestRatio bounds from below how much faster than the median a node may seem, so that one that answers nonsense
	// at once does not draw every call.
	FastestRatio float64
	// PeakDecay is the time constant of the peak EWMA. Finagle: 10 s.
	PeakDecay time.Duration
	// ReportMemory is the age at which half of a report's deviation from the fleet's mean is still believed.
	ReportMemory time.Duration

	// Choices is how many nodes are looked at per pick when there are more than ScanAll, twice as many where others send much of the load.
	Choices, ScanAll int
	// OwnWeight counts each call in flight from here as so many more, in proportion to the load that comes from elsewhere: if
	// the others choose alike, one call from here means as many from them that no report has told of yet (C3).
	OwnWeight float64
	// ZonePenalty is added to the load of nodes in another zone.
	ZonePenalty float64

	// ConsecutiveFailures eject a node; 0 switches this rule off. Finagle, Envoy: 5.
	ConsecutiveFailures int
	// SuccessRateMargin ejects a node whose error rate exceeds the fleet's by this much, once it has SuccessRateVolume calls
	// behind it; 0 switches this rule off.
	SuccessRateMargin, SuccessRateVolume float64
	// LatencyFactor ejects a node this many times slower than the fleet's median; 0 switches this rule off.
	LatencyFactor float64
	// EjectFor is the first ejection's length, doubled by each further one up to EjectMax.
	EjectFor, EjectMax time.Duration
	// MaxEjected is the greatest part of the fleet that may be ejected at a time; one node is always left.
	MaxEjected float64
	// Panic is the part of the fleet that must be admissible for ejection to be respected at all.
	Panic float64
	// PanicErrors is the part of all calls that must fail for ejection not to be respected, FleetMemory the time constant of it.
	PanicErrors float64
	FleetMemory time.Duration
	// FailurePenalty is the cost of one recent failure, in typical calls. ErrorPenalty is the cost of an error rate of 1
	// above the fleet's.
	FailurePenalty, ErrorPenalty float64
	// HealthMemory is the time constant of the error rate.
	HealthMemory time.Duration
	// HungFactor is how many typical times per call a busy node may be silent, HungAtLeast a lower bound in time.
	HungFactor  float64
	HungAtLeast time.Duration

	// Probes is the greatest number of probes per call, used in full when all load at the servers comes from elsewhere and
	// not at all when none does. 0 switches probing off.
	Probes float64
	// ProbeAge is the age of a report from which a probe is worth sending.
	ProbeAge time.Duration

	// Blackout, Expiry and Update are gRFC A58's, for the weighted round robin.
	Blackout, Expiry, Update time.Duration

	// HashBound is the greatest load of a node in the bounded hash policy, as a multiple of the mean. HAProxy: 1.25 to 2.
	HashBound float64
}

// Defaults returns the parameters that the simulator settled on.
func Defaults() Params {
	return Params{
		Warmup: 90 * time.Second, WarmupYield: 3, CleanAnswers: 3,
		Samples: 64, Memory: 10 * time.Second, Doubt: 2, Relearn: 3 * time.Second, Looks: 0.01, FastestRatio: 1. / 3, PeakDecay: 10 * time.Second,
		ReportMemory: 500 * time.Millisecond, OwnWeight: 15,
		Choices: 4, ScanAll: 16, ZonePenalty: 0.1,
		ConsecutiveFailures: 5, SuccessRateMargin: 0.3, SuccessRateVolume: 10, LatencyFactor: 20,
		EjectFor: time.Second, EjectMax: 4 * time.Second, MaxEjected: 0.5, Panic: 0.5, PanicErrors: 0.3, FleetMemory: time.Second,
		FailurePenalty: 5, ErrorPenalty: 100, HealthMemory: 3 * time.Second,
		HungFactor: 10, HungAtLeast: 200 * time.Millisecond,
		Probes: 0.03, ProbeAge: 20 * time.Millisecond,
		Blackout: 10 * time.Second, Expiry: 3 * time.Minute, Update: time.Second,
		HashBound: 1.25,
	}
}

// recents is how many of the nodes that reported last are remembered.
const recents = 16

// Fleet is what is known over all nodes of a cluster.
type Fleet struct {
	params atomic.Pointer[Params]

	othersMean number      // mean calls in flight from elsewhere per node
	sharing    number      // part of the load at the servers that comes from elsewhere, 0 to 1
	median     number      // median time per call without waiting, ns
	failing    number      // part of the calls of the last second or so that failed
	variation  number      // of the time per call: variance over squared mean, pooled over the nodes
	streamCost number      // what a stream in flight counts as for a call that is none, 0 to 1
	panicking  atomic.Bool // ejection is not respected
	ejected    atomic.Int32
	size       atomic.Int32
	peaks      atomic.Bool // some table goes by peak EWMA

	next    instant // when the next tick is due
	ticking atomic.Bool
	buf     []float64 // the tick's
	looks   float64   // the tick's: calls that may go to see how slow nodes are
	ends    float64   // the tick's: calls that ended in the last second or so, decaying, and those that failed
	fails   float64
	closed  float64 // the tick's: streams that ended in the last Params.Memory or so, decaying

	// The nodes that reported last, for picking where most reports would be stale.
	recent     [recents]atomic.Pointer[Node]
	recentNext atomic.Uint32
}

// NewFleet returns a fleet that works by p.
func NewFleet(p Params) *Fleet {
	f := &Fleet{}
	f.SetParams(p)
	return f
}

// SetParams replaces the parameters.
func (f *Fleet) SetParams(p Params) { f.params.Store(&p) }

func (f *Fleet) par() *Params { return f.params.Load() }

// NewNode returns a node of weight 1 that starts now.
func (f *Fleet) NewNode(now time.Duration) *Node {
	n := &Node{fleet: f}
	n.SetWeight(1)
	n.Start(now)
	return n
}

func (f *Fleet) remember(n *Node) {
	if f.sharing.get() > 0 {
		f.recent[f.recentNext.Add(1)%recents].Store(n)
	}
}

// unlikely says whether k failures in a row are too many to be chance where the whole fleet fails as often as it does: less
// than one in ten thousand.
func (f *Fleet) unlikely(k int) bool {
	rate := f.failing.get()
	return rate <= 0 || math.Pow(rate, float64(k)) < 1e-4
}

// eject takes n out, or keeps it out for longer, unless too many are out already.
func (f *Fleet) eject(now time.Duration, n *Node) {
	if !n.gated(gateEjected) {
		size := f.size.Load()
		allowed := max(1, int32(f.par().MaxEjected*float64(size)))
		if size <= 1 || f.ejected.Load() >= min(allowed, size-1) {
			return
		}
		n.setGate(gateEjected)
		f.ejected.Add(1)
	} else if now < n.ejectedUntil.get() {
		return // a call from before the ejection
	}
	k := n.ejections.Add(1)
	for_ := f.par().EjectFor << min(k-1, 16)
	n.ejectedUntil.set(now + min(for_, f.par().EjectMax))
}

// tick recomputes what is derived from all nodes, if it is due: every 50 ms, or 100 µs per node, whichever is longer, so
// that its cost per pick does not grow with the fleet.
func (t *Table) tick(now time.Duration) {
	f := t.fleet
	if now < f.next.get() || !f.ticking.CompareAndSwap(false, true) {
		return
	}
	defer f.ticking.Store(false)
	last := f.next.get()
	every := max(50*time.Millisecond, time.Duration(len(t.nodes))*100*time.Microsecond)
	f.next.set(now + every)
	elapsed := now - last + every
	if last == 0 {
		elapsed = every
	}
	t.learn(now, elapsed)
	t.reweigh(now)
}

func (t *Table) learn(now, elapsed time.Duration) {
	f := t.fleet
	p := f.par()
	f.buf = f.buf[:0]
	var squares, means, calls float64
	var own, others, withReport, good, bad, caps, ncaps, warm float64
	var ejected int32
	var streams float64
	f.closed /= 1 + float64(elapsed)/float64(p.Memory)
	keep := 1 / (1 + float64(elapsed)/float64(p.HealthMemory))
	keepFleet := 1 / (1 + float64(elapsed)/float64(p.FleetMemory))
	f.ends, f.fails = f.ends*keepFleet, f.fails*keepFleet
	for _, n := range t.nodes {
		own += float64(n.inflight.Load())
		streams += float64(n.streams.Load())
		f.closed += float64(n.closed.Swap(0))
		if at := n.reported.get(); at > 0 && now-at < 30*time.Second {
			others += n.others.get()
			withReport++
		}
		ok, bd := n.fold(now), n.bads.Swap(0)
		n.calls.Add(uint64(ok) + uint64(bd))
		calls += ok
		f.ends += ok + float64(bd)
		f.fails += float64(bd)
		n.good.set(n.good.get()*keep + ok)
		n.bad.set(n.bad.get()*keep + float64(bd))
		good += n.good.get()
		bad += n.bad.get()
		if c, _ := n.concurrency(); c > 0 {
			caps += math.Log(c)
			ncaps++
		}
		if sv, k := n.serviceOf(); k >= 1 {
			f.buf = append(f.buf, sv)
			// A node far slower than the others would outweigh them all.
			w := k
			if far := 3 * f.median.get(); far > 0 && sv > far {
				w *= far / sv * far / sv
			}
			squares += w * n.square.get()
			means += w * n.service.get() * n.service.get()
		}
		if n.gated(gateEjected) {
			ejected++
		}
		warm = max(warm, n.warmth(now))
	}
	f.size.Store(int32(len(t.nodes)))
	f.ejected.Store(ejected)
	if withReport > 0 {
		f.othersMean.set(others / withReport)
		mine := own / float64(len(t.nodes))
		s := 0.
		if o := others / withReport; o > 0 {
			s = o / (o + mine)
		}
		// Slowly: single calls of others must not switch probing on and off.
		f.sharing.set(f.sharing.get()*0.9 + s*0.1)
	} else {
		f.othersMean.set(0)
		f.sharing.set(0)
	}
	med := 0.
	if len(f.buf) > 0 {
		slices.Sort(f.buf)
		med = f.buf[(len(f.buf)-1)/2]
	}
	f.median.set(med)
	if streams > 0 {
		// By Little's law streams last for as long as there are of them for each that ends.
		lasting := streams / f.closed * float64(p.Memory)
		f.streamCost.set(min(1, shortStream*med/lasting))
	}
	// Even a steady server's time varies with what it is asked. Where few calls take most of the time, one node's calls
	// hardly show it, so it is pooled; and a mean is even less certain there than its standard error says.
	cv2 := 0.5
	if means > 0 {
		cv2 = max(cv2, squares/means-1)
	}
	f.variation.set(cv2 * max(1, cv2))
	f.looks = min(f.looks+calls*p.Looks, 2)
	rate := 0.
	if bad > 0 {
		rate = bad / (good + bad)
	}
	failing := 0.
	if f.fails > 0 {
		failing = f.fails / f.ends
	}
	f.failing.set(failing)
	// Where many calls fail wherever they go, nobody is to be blamed, now or when it is over.
	if failing > p.PanicErrors && ejected > 0 {
		for _, n := range t.nodes {
			n.clearGate(gateEjected)
			n.ejections.Store(0)
		}
		f.ejected.Store(0)
		ejected = 0
	}
	f.panicking.Store(float64(int32(len(t.nodes))-ejected) < p.Panic*float64(len(t.nodes)) || failing > p.PanicErrors)
	typical := 1.
	if ncaps > 0 {
		typical = math.Exp(caps / ncaps)
	}
	for _, n := range t.nodes {
		c := typical
		if own, sure := n.concurrency(); sure {
			c = min(max(own, typical/8), typical*8)
		}
		if ncaps == 0 {
			c = 1
		}
		n.capacity.set(c * n.weight.get())
		if n.gated(gateWarmup) {
			// Relative to the warmest: a fleet that is new as a whole is not held back.
			n.admit.set(n.warmth(now) / warm)
		}
		t.judge(now, n, med, rate)
	}
}

// shortStream is how many typical calls a stream may last to be work as a call is. Of one that lasts longer most is waiting for
// somebody, and the longer the more: it counts as so much less.
const shortStream = 10

// serviceOf returns the node's time per call without waiting, and how many calls are behind it: those from here, and as far
// as the server's load comes from elsewhere, what the server says.
func (n *Node) serviceOf() (ns, samples float64) {
	sv, k := n.service.get(), n.samples.get()
	if share := n.fleet.sharing.get(); share > 0.1 {
		if rep := n.serviceRep.get(); rep > 0 {
			w := 64 * share
			sv, k = (sv*k+rep*w)/(k+w), k+w
		}
	}
	return sv, k
}

// judge decides slowness, penalty, ejection and gates of one node.
func (t *Table) judge(now time.Duration, n *Node, median, fleetRate float64) {
	p := t.fleet.par()
	sv, k := n.serviceOf()
	k /= 1 + float64(now-n.learnt.get())/float64(p.Memory)
	slow := 1.
	if median > 0 && sv > 0 {
		slow = n.believe(math.Log(max(sv/median, p.FastestRatio)), k)
	}
	n.slowness.set(slow)

	good, bad := n.good.get(), n.bad.get()
	excess := 0.
	if bad > 0.01 {
		// One more success than was seen, so that what is long ago weighs nothing.
		excess = max(0, bad/(good+bad+1)-fleetRate)
	}
	penalty := excess*p.ErrorPenalty + max(0, n.penalty.get()-excess*p.ErrorPenalty)*0.5
	if penalty < 0.1 {
		penalty = 0 // or what is left of one would decide for long between nodes that are alike otherwise
	}
	n.penalty.set(penalty)

	if !n.gated(gateEjected) {
		switch {
		case p.SuccessRateMargin > 0 && good+bad >= p.SuccessRateVolume && excess > p.SuccessRateMargin &&
			excess*excess*(good+bad) > 16*fleetRate*(1-fleetRate), // four standard errors: where all fail now and then, some fail more often by chance
			p.LatencyFactor > 0 && len(t.nodes) > 2 && k >= 8 && slow >= p.LatencyFactor:
			t.fleet.eject(now, n)
		case bad == 0 && n.ejections.Load() > 0 && now-n.ejectedUntil.get() > 4*p.EjectMax:
			n.ejections.Store(0)
		}
	}
	if slow > 1.25 && n.inflight.Load() == 0 && t.fleet.looks >= 1 && !n.gated(gateSuspect) && n.worthALook(now) {
		t.fleet.looks--
		n.setGate(gateSuspect)
	} else if n.gated(gateSuspect) && !n.failing.Load() && penalty == 0 {
		n.clearGate(gateSuspect)
	}
	if n.gated(gateWarmup) && n.Age(now) >= p.Warmup {
		n.clearGate(gateWarmup)
	}
	// One call that takes long is no sign; several that do, or one that takes very long, are.
	limit := max(p.HungAtLeast, time.Duration(p.HungFactor*median))
	stuck := n.working()
	if silent := now - n.quiet.get(); median > 0 && (stuck >= 2 && silent > limit || stuck == 1 && silent > 5*limit) {
		n.setGate(gateHung)
	}
}

// worthALook says whether a call should go to n, which seems slow, to see whether it still is: nobody has looked for long,
// or who looked came back much sooner than expected. After a few such calls they alone are believed, if by chance they
// would hardly differ so much (two standard errors).
func (n *Node) worthALook(now time.Duration) bool {
	calls, fresh, was := n.freshCalls.get(), n.fresh.get(), n.service.get()
	long := now-n.learnt.get() > n.fleet.par().Relearn
	if long || calls >= freshMost {
		n.freshCalls.set(0)
		n.fresh.set(0)
		return long
	}
	if calls == 0 || fresh > was*freshFaster {
		return false
	}
	if d := math.Log(was / fresh); calls >= freshLeast && d*d*calls > 4*n.fleet.variation.get() {
		n.service.set(fresh)
		n.samples.set(calls)
		return false
	}
	return true
}

// Calls that went to see whether a slow node still is: from freshLeast on they may be believed, after freshMost they begin
// anew, and as long as they take less than freshFaster of what was expected another may follow at once.
const (
	freshLeast, freshMost = 4, 16
	freshFaster           = 0.7
)

// believe shrinks the logarithm d of how much slower a node seems, from k calls, towards 0 by how uncertain it is, and
// returns the factor. Little deviations are mostly chance and would only make all proxies prefer the same node; large ones
// stay as they are.
func (n *Node) believe(d, k float64) float64 {
	cv2 := n.fleet.variation.get()
	return math.Exp(d * d * d / (d*d + n.fleet.par().Doubt*cv2/max(k, 0.1)))
}

// warmth is the part of its share that the node's age allows, 0.1 to 1.
func (n *Node) warmth(now time.Duration) float64 {
	w := n.fleet.par().Warmup
	if w <= 0 || !n.gated(gateWarmup) {
		return 1
	}
	return min(1, max(0.1, float64(n.Age(now))/float64(w)))
}
