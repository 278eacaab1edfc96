package score

import (
	"cmp"
	"math"
	"sync/atomic"
	"time"
)

// number is a float64 that may be read and written concurrently. The zero value is 0.
type number struct{ bits atomic.Uint64 }

func (n *number) get() float64  { return math.Float64frombits(n.bits.Load()) }
func (n *number) set(v float64) { n.bits.Store(math.Float64bits(v)) }

// number32 is a number of which seven digits are enough.
type number32 struct{ bits atomic.Uint32 }

func (n *number32) get() float64  { return float64(math.Float32frombits(n.bits.Load())) }
func (n *number32) set(v float64) { n.bits.Store(math.Float32bits(float32(v))) }

// instant is a point in time that may be read and written concurrently. The zero value is "never"; the epoch itself
// cannot be told from it.
type instant struct{ ns atomic.Int64 }

func (i *instant) get() time.Duration  { return time.Duration(i.ns.Load()) }
func (i *instant) set(v time.Duration) { i.ns.Store(int64(v)) }

// Node holds the statistics of one endpoint. Times are durations since an epoch common to all nodes of a fleet, always
// greater than zero. Make one with [Fleet.NewNode].
type Node struct {
	// What Choose reads of every candidate is one cache line.
	inflight atomic.Int64
	quiet    instant       // when the node last finished a call, or became busy with calls that are no streams, whichever is later
	slowness number        // multiple of the fleet's median time per call; 0 until the first tick
	capacity number        // concurrency · weight; 0 until the first tick
	penalty  number        // added cost
	gates    atomic.Uint32 // why the node may not be picked freely; 0 on the fast path
	limit    atomic.Uint32 // most calls in flight, 0 for no limit
	remote   atomic.Bool
	streams  atomic.Int32 // of those in flight
	_        [8]byte

	// What the end of a call writes besides, and what reports do, is the next.
	timed    atomic.Uint64 // time per call without waiting: µs in the low 40 bits, calls above them; one addition per call
	tookSq   atomic.Uint64 // µs², of one call in four, four times
	oks      atomic.Uint32 // answers that are not in timed
	bads     atomic.Uint32 // failures
	cuts     atomic.Uint32 // calls in timed that were cut
	closed   atomic.Uint32 // streams that ended
	others   number        // calls in flight from elsewhere, when reported
	reported instant       // when the last usable report came
	admit    number        // probability of being considered while warming up
	seen     atomic.Uint64 // time per call as it was, of one call in four: as timed

	fleet  *Fleet
	slot   atomic.Int32 // index in the newest table
	weight number
	calls  atomic.Uint64 // ended, as of the last tick
	picked instant       // last pick
	asked  instant       // last probe

	// Time per call without waiting; the tick folds what calls have added into it.
	service number  // mean in nanoseconds, EWMA
	square  number  // mean of the squares
	samples number  // how many calls are behind them, decaying
	learnt  instant // when they were last folded with something new
	// Mean and number of the calls since somebody last went to see whether the node is still slow.
	fresh      number
	freshCalls number32
	// Mean of the time per call as it was, in nanoseconds; 0 until known.
	whole number32
	// Time per call as seen, for the policy that goes by it: peak EWMA in nanoseconds, by whoever holds learning.
	learning atomic.Bool
	latency  number
	peaked   instant
	// Decaying counts of outcomes, folded by the tick too.
	good, bad   number
	consecutive atomic.Int32
	failing     atomic.Bool  // the last call whose end tells anything failed
	clean       atomic.Int32 // clean answers in probation

	// Ejection. Written by Done on consecutive failures and by the tick.
	ejectedUntil instant
	ejections    atomic.Int32 // grows by one per ejection, shrinks with good time

	// Reports, by whoever holds observing.
	observing   atomic.Bool
	utilization number
	rif         number // requests in flight at the server, as last reported
	rifMean     number // EWMA of what was reported
	utilMean    number
	apart       number32 // how far the two are from going together, EWMA: 0 if they do, at most 1
	doubt       number32 // how often fewer requests were reported than are in flight from here, EWMA
	serviceRep  number   // the server's own mean time per call in nanoseconds
	booted      instant
	hasBooted   atomic.Bool
	weighed     number // A58 weight
	weighedAt   instant
	weighedFrom instant
}

// The gates.
const (
	gateProbation uint32 = 1 << iota // one call in flight until the server has answered
	gateEjected                      // not before ejectedUntil, then one call in flight until it succeeds
	gateWarmup                       // admitted with the probability of its age
	gateSuspect                      // calls to it failed, or it seems slow and nobody looked: tried now and then, even if dear
	gateHung                         // busy and silent for too long: no further call until something finishes
)

func (n *Node) setGate(g uint32)    { n.gates.Or(g) }
func (n *Node) clearGate(g uint32)  { n.gates.And(^g) }
func (n *Node) gated(g uint32) bool { return n.gates.Load()&g != 0 }

// working is how many calls the server is expected to finish by itself: those in flight that are no streams.
func (n *Node) working() int64 { return n.inflight.Load() - int64(n.streams.Load()) }

// InFlight is the number of this proxy's calls at the node.
func (n *Node) InFlight() int { return int(n.inflight.Load()) }

// SetRemote says whether the node is in another zone.
func (n *Node) SetRemote(remote bool) { n.remote.Store(remote) }

// SetWeight sets the node's static weight; 1 is a node of ordinary size. Values that are not positive count as 1.
func (n *Node) SetWeight(w float64) {
	if !(w > 0) {
		w = 1
	}
	n.weight.set(w)
}

// Weight is the node's static weight.
func (n *Node) Weight() float64 { return n.weight.get() }

// SetLimit bounds the calls in flight at the node; 0 is no bound.
func (n *Node) SetLimit(calls int) { n.limit.Store(uint32(max(0, calls))) }

// Start says that a server that was not there before may be behind the node: its statistics begin anew, it is in
// probation, and its age counts from now unless it reports its own.
func (n *Node) Start(now time.Duration) {
	n.timed.Store(0)
	n.tookSq.Store(0)
	n.seen.Store(0)
	n.whole.set(0)
	n.samples.set(0)
	n.service.set(0)
	n.square.set(0)
	n.fresh.set(0)
	n.freshCalls.set(0)
	n.latency.set(0)
	n.good.set(0)
	n.bad.set(0)
	n.oks.Store(0)
	n.cuts.Store(0)
	n.bads.Store(0)
	n.consecutive.Store(0)
	n.failing.Store(false)
	n.clean.Store(0)
	n.reported.set(0)
	n.others.set(0)
	n.utilization.set(0)
	n.rifMean.set(0)
	n.utilMean.set(0)
	n.apart.set(0)
	n.serviceRep.set(0)
	n.weighed.set(0)
	n.weighedFrom.set(0)
	n.slowness.set(0)
	n.admit.set(1)
	n.capacity.set(0)
	n.penalty.set(0)
	n.ejections.Store(0)
	n.ejectedUntil.set(0)
	n.clearGate(gateEjected | gateHung | gateSuspect)
	n.setGate(gateProbation)
	n.hasBooted.Store(false)
	n.booted.set(now)
	if n.fleet.par().Warmup > 0 {
		n.setGate(gateWarmup)
	}
	n.quiet.set(now)
}

// Begin counts a call as in flight and returns the load that it found, calls per unit of concurrency and itself included, to
// be given back in its [Sample]. Streams do not count in it: how long calls take beside them tells how much they weigh.
func (n *Node) Begin(now time.Duration, stream bool) (load float64) {
	q := n.inflight.Add(1)
	if stream {
		q -= int64(n.streams.Add(1))
	} else if q -= int64(n.streams.Load()); q == 1 {
		n.quiet.set(now)
	}
	if n.gates.Load() != 0 {
		n.picked.set(now)
	}
	if c := n.capacity.get(); c > 0 {
		return (float64(q) + n.elsewhere(now)) / c
	}
	return 0
}

// Outcome says what the end of a call tells about the server.
type Outcome uint8

// The outcomes.
const (
	// Answered: the server did its work, whatever it said; its time counts.
	Answered Outcome = iota
	// Failed: the server's fault, or its overload. Its time does not count, its failure does.
	Failed
	// Erred: the server ran the call into an error that may be the application's. It counts only where others err less.
	Erred
	// Cut: the caller gave up before the end. The time counts only as a lower bound.
	Cut
	// TimedOut is Cut by the call's deadline: a failure if the node is silent.
	TimedOut
	// Void: the call never reached the server. It tells nothing.
	Void
)

// Sample is one finished call.
type Sample struct {
	Outcome Outcome
	// Started is when the call began, Load what Begin returned.
	Started time.Duration
	Load    float64
	// Stream is what Begin was told: the call's length is the caller's choice.
	Stream bool
	// Untimed says that the call's length tells nothing of the server for another reason.
	Untimed bool
}

// End counts the call as finished and learns from it.
func (n *Node) End(now time.Duration, s Sample) {
	left := n.inflight.Add(-1)
	if s.Stream {
		n.streams.Add(-1)
		n.closed.Add(1)
	}
	if s.Outcome == Void {
		return
	}
	par := n.fleet.par()
	took := float64(now - s.Started)
	switch s.Outcome {
	case Answered:
		if s.Stream || s.Untimed {
			n.oks.Add(1)
		}
		if n.consecutive.Load() != 0 {
			n.consecutive.Store(0)
		}
		if n.failing.Load() {
			n.failing.Store(false)
		}
		n.answered(now)
	case TimedOut:
		// A deadline that is short for everybody is not this node's fault; a node that finished nothing meanwhile is. Streams
		// end by their deadline because nothing else ends them.
		if silent := n.quiet.get() <= s.Started; !silent || s.Stream {
			s.Outcome = Cut
			break
		}
		fallthrough
	case Failed:
		n.bads.Add(1)
		n.clean.Store(0)
		n.failing.Store(true)
		n.setGate(gateSuspect)
		if c := n.consecutive.Add(1); par.ConsecutiveFailures > 0 && int(c) >= par.ConsecutiveFailures && n.fleet.unlikely(int(c)) || n.gated(gateEjected) {
			n.fleet.eject(now, n)
		}
		n.penalty.set(max(n.penalty.get(), par.FailurePenalty*float64(n.consecutive.Load())))
	case Erred:
		n.bads.Add(1)
		n.failing.Store(true)
		n.setGate(gateSuspect)
		if n.gated(gateEjected) {
			n.fleet.eject(now, n)
		}
	}
	if s.Outcome == Answered || s.Outcome == Failed || s.Outcome == Erred {
		if left > 0 {
			n.quiet.set(now) // else the next Begin does
		}
		if n.gated(gateHung) {
			n.clearGate(gateHung)
		}
	} else if n.gated(gateHung) && !s.Stream && n.quiet.get() <= s.Started {
		n.fleet.eject(now, n) // it took calls and gave nothing back until their callers gave up
	}
	if s.Stream || s.Untimed || s.Outcome == Failed || s.Outcome == Erred {
		return
	}
	if (s.Outcome == Cut || s.Outcome == TimedOut) && took < n.service.get()*max(1, s.Load) {
		return // a lower bound that is already met
	}
	if s.Outcome != Answered {
		n.cuts.Add(1)
	}
	alone := took / max(1, s.Load)
	us := uint64(min(alone, float64(10*time.Minute)) / 1e3)
	n.timed.Add(1<<timedBits | us)
	if now&(3<<10) == 0 { // about a microsecond's bits are as good as chance
		n.tookSq.Add(4 * us * us)
		n.seen.Add(1<<timedBits | uint64(min(took, float64(10*time.Minute))/1e3))
	}
	if n.fleet.peaks.Load() && n.learning.CompareAndSwap(false, true) {
		lat := n.latency.get()
		if took > lat {
			lat = took
		} else {
			lat += (took - lat) * (1 - math.Exp(-float64(now-n.peaked.get())/float64(par.PeakDecay)))
		}
		n.latency.set(lat)
		n.peaked.set(now)
		n.learning.Store(false)
	}
}

// timedBits is where the count of calls begins in Node.timed.
const timedBits = 40

// fold makes the sums of finished calls part of the means. The sums are taken one after another, so that a call may be
// split between two folds; that averages out. It returns how many calls were answered.
func (n *Node) fold(now time.Duration) (answered float64) {
	sum := n.timed.Swap(0)
	answered = float64(n.oks.Swap(0)) + max(0, float64(sum>>timedBits)-float64(n.cuts.Swap(0)))
	if sum == 0 {
		return answered
	}
	par := n.fleet.par()
	c := float64(sum >> timedBits)
	mean, sq := float64(sum&(1<<timedBits-1))*1e3/c, float64(n.tookSq.Swap(0))*1e6/c
	k := n.samples.get() / (1 + float64(now-n.learnt.get())/float64(par.Memory))
	k = max(c, min(k+c, par.Samples))
	n.learnt.set(now)
	n.samples.set(min(k, par.Samples))
	fc := n.freshCalls.get() + c
	n.freshCalls.set(fc)
	n.fresh.set(n.fresh.get() + (mean-n.fresh.get())*c/fc)
	a := c / k
	n.service.set(n.service.get()*(1-a) + mean*a)
	n.square.set(n.square.get()*(1-a) + sq*a)
	if seen := n.seen.Swap(0); seen != 0 {
		mean := float64(seen&(1<<timedBits-1)) * 1e3 / float64(seen>>timedBits)
		if was := n.whole.get(); was > 0 {
			mean = was*(1-a) + mean*a
		}
		n.whole.set(mean)
	}
	return answered
}

// answered is what a clean answer does to probation and trial.
func (n *Node) answered(now time.Duration) {
	g := n.gates.Load()
	if g&(gateProbation|gateEjected|gateSuspect) == 0 {
		return
	}
	if g&gateSuspect != 0 {
		n.bad.set(n.bad.get() / 4)
	}
	if g&gateProbation != 0 && int(n.clean.Add(1)) >= n.fleet.par().CleanAnswers {
		n.clearGate(gateProbation)
	}
	if g&gateEjected != 0 && now >= n.ejectedUntil.get() {
		n.clearGate(gateEjected)
		n.penalty.set(0)
		n.good.set(0)
		n.bad.set(0)
		// What was slow may have healed: only what comes now decides.
		n.samples.set(0)
		n.slowness.set(1)
	}
}

// Report is what a server said of its load. Fields that it did not report are negative.
type Report struct {
	// Utilization is 1 when the server can do no more; it may exceed 1.
	Utilization float64
	// InFlight counts the requests in flight at the server, the reporting one not included.
	InFlight float64
	// Uptime is the age of the server process.
	Uptime time.Duration
	// Service is the server's mean time per call.
	Service time.Duration
	// PerSecond counts requests, ErrorsPerSecond those that failed.
	PerSecond, ErrorsPerSecond float64
}

// NoReport is a Report that says nothing.
func NoReport() Report {
	return Report{Utilization: -1, InFlight: -1, Uptime: -1, Service: -1, PerSecond: -1, ErrorsPerSecond: -1}
}

// Observe learns from a report that came now. Call it after [Node.End] of the call that carried the report.
func (n *Node) Observe(now time.Duration, r Report) {
	if !(r.Utilization >= 0) && !(r.InFlight >= 0) && r.Uptime < 0 {
		return
	}
	if !n.observing.CompareAndSwap(false, true) {
		return
	}
	defer n.observing.Store(false)
	if r.Uptime >= 0 {
		booted := now - r.Uptime
		// Clocks and rounding differ by less than this; a younger server is another one.
		if n.hasBooted.Load() && booted > n.booted.get()+2*time.Second {
			n.Start(now)
		}
		n.hasBooted.Store(true)
		n.booted.set(booted)
	}
	own := float64(n.inflight.Load())
	if r.InFlight >= 0 && !math.IsInf(r.InFlight, 0) {
		if own > 0 {
			// What is in flight from here is at the server, but for the little that is on the way. A server that says
			// otherwise more often than not reports nonsense.
			const a = 1. / 8
			less := 0.
			if r.InFlight < own {
				less = a
			}
			n.doubt.set(n.doubt.get()*(1-a) + less)
		}
		n.rif.set(r.InFlight)
		n.others.set(max(0, r.InFlight-own))
	} else {
		r.InFlight = own
	}
	if r.Utilization >= 0 && !math.IsInf(r.Utilization, 0) {
		n.utilization.set(r.Utilization)
		// The ratio of the means is steadier than the mean of the ratios. 32 reports of memory.
		const a = 1. / 32
		if q, u := n.rifMean.get(), n.utilMean.get(); q > 0 && u > 0 {
			q, u = r.InFlight/q, r.Utilization/u
			n.apart.set(n.apart.get()*(1-a) + math.Abs(q-u)/max(1, q, u)*a)
		}
		if n.utilMean.get() == 0 {
			n.rifMean.set(r.InFlight)
			n.utilMean.set(r.Utilization)
		} else {
			n.rifMean.set(n.rifMean.get()*(1-a) + r.InFlight*a)
			n.utilMean.set(n.utilMean.get()*(1-a) + r.Utilization*a)
		}
		if r.PerSecond > 0 && r.Utilization > 0 {
			// gRFC A58: weight = qps / (utilization + eps/qps · error_utilization_penalty).
			eps := max(0, r.ErrorsPerSecond)
			n.weighed.set(r.PerSecond / (r.Utilization + eps/r.PerSecond))
			n.weighedAt.set(now)
			if n.weighedFrom.get() == 0 {
				n.weighedFrom.set(now)
			}
		}
	}
	if r.Service > 0 {
		// The server's time per call includes waiting. By Little's law its mean number in flight is rate times time; the part
		// of it that exceeds its concurrency waits.
		sv := float64(r.Service)
		if c, sure := n.concurrency(); sure && r.PerSecond > 0 {
			sv /= max(1, r.PerSecond*r.Service.Seconds()/c)
		}
		n.serviceRep.set(sv)
	}
	n.reported.set(now)
	n.clearGate(gateProbation)
	n.fleet.remember(n)
}

// concurrency is how many calls the server works at without waiting, as far as its reports tell; 0 if they do not. They tell for sure
// where the utilization is the part of places that are taken. A server that is bound by CPU reports how much of it it uses: that stays
// at 1 when calls queue, so that the server would seem the larger the longer its queue is.
func (n *Node) concurrency() (c float64, sure bool) {
	u := n.utilMean.get()
	if u <= 0.01 {
		return 0, false
	}
	c = n.rifMean.get() / u
	return c, c > 0 && n.apart.get() < togetherAt
}

// togetherAt is up to where requests in flight and utilization go together: two or three reports in which they do not are past it.
const togetherAt = 0.005

// elsewhere estimates the calls in flight at the server that did not come from here.
func (n *Node) elsewhere(now time.Duration) float64 {
	at := n.reported.get()
	mean := n.fleet.othersMean.get()
	if at == 0 {
		return mean
	}
	o := n.others.get()
	if o == mean || n.doubt.get() > 0.5 {
		return mean
	}
	age := float64(now - at)
	return mean + (o-mean)/(1+age/float64(n.fleet.par().ReportMemory))
}

// Age is how long the server has been up, as it says or as seen from here.
func (n *Node) Age(now time.Duration) time.Duration { return now - n.booted.get() }

// Stats is a snapshot of one node for people to look at.
type Stats struct {
	InFlight, Streams int
	// Calls counts those in flight and those that ended in an answer or a failure.
	Calls uint64
	// Utilization and InFlightReported are the server's last word; Reported is its age, negative if it never spoke.
	Utilization, InFlightReported float64
	Reported                      time.Duration
	// Latency is the decaying mean time of a call, Slowness its multiple of the fleet's median (1 is typical).
	Latency  time.Duration
	Slowness float64
	// Health is 1 for a node whose recent calls all succeeded, 0 for one whose calls all failed.
	Health                                float64
	Ejected, Probation, WarmingUp, Silent bool
	Age                                   time.Duration
}

// Stats takes a snapshot; its fields are read one after another.
func (n *Node) Stats(now time.Duration) Stats {
	g := n.gates.Load()
	s := Stats{
		InFlight: n.InFlight(), Streams: int(n.streams.Load()), Calls: n.calls.Load() + uint64(n.oks.Load()) + n.timed.Load()>>timedBits + uint64(n.bads.Load()) + uint64(max(0, n.inflight.Load())),
		Utilization: n.utilization.get(), InFlightReported: n.rif.get(), Reported: -1,
		Latency: time.Duration(cmp.Or(n.whole.get(), n.service.get())), Slowness: n.slowness.get(), Health: 1 - n.errorRate(),
		Ejected: g&gateEjected != 0, Probation: g&gateProbation != 0, WarmingUp: g&gateWarmup != 0, Silent: g&gateHung != 0,
		Age: n.Age(now),
	}
	if at := n.reported.get(); at > 0 {
		s.Reported = now - at
	}
	return s
}

func (n *Node) errorRate() float64 {
	good, bad := n.good.get()+float64(n.oks.Load())+float64(n.timed.Load()>>timedBits), n.bad.get()+float64(n.bads.Load())
	if bad == 0 {
		return 0
	}
	return bad / (good + bad + 1)
}
