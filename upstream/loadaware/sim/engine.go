package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"transom/upstream/loadaware/report"
	"transom/upstream/loadaware/score"
)

// event is something that happens at a time.
type event struct {
	at   time.Duration
	seq  uint64 // breaks ties in order of making
	kind eventKind
	a, b int32
	gen  uint32
}

type eventKind uint8

const (
	evArrival eventKind = iota // a request at a proxy
	evReach                    // request a at its server
	evServed                   // request a done at its server
	evAnswer                   // request a's answer at its proxy; b is the outcome
	evProbe                    // proxy a's probe at server b
	evProbed                   // its answer
	evChange                   // Cell.Events[a] begins (b=1) or ends (b=0)
	evOOB                      // all servers report out of band
	evHedge                    // request a gets a second attempt, unless it has ended
	evWorker                   // a worker of proxy a sends its next request
	evDone                     // the next request is done at server a, unless something changed there since
	evEvolve                   // the antagonists' demand goes on
)

// queue is a 4-ary heap of events.
type queue struct {
	h   []event
	seq uint64
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (q *queue) push(e event) {
	q.seq++
	e.seq = q.seq
	q.h = append(q.h, e)
	i := len(q.h) - 1
	for i > 0 {
		p := (i - 1) / 4
		if !q.h[i].before(&q.h[p]) {
			break
		}
		q.h[i], q.h[p] = q.h[p], q.h[i]
		i = p
	}
}

func (q *queue) pop() event {
	top := q.h[0]
	last := len(q.h) - 1
	q.h[0] = q.h[last]
	q.h = q.h[:last]
	i := 0
	for {
		first := 4*i + 1
		if first >= last {
			return top
		}
		least := first
		for c := first + 1; c < min(first+4, last); c++ {
			if q.h[c].before(&q.h[least]) {
				least = c
			}
		}
		if !q.h[least].before(&q.h[i]) {
			return top
		}
		q.h[i], q.h[least] = q.h[least], q.h[i]
		i = least
	}
}

// request is one request, from its arrival to its end.
type request struct {
	arrived, sent, reached time.Duration
	need                   time.Duration // of service
	load                   float64       // the policy's own, from its begin
	proxy, node            int32
	twin                   int32  // the other attempt of a hedged request, -1 if there is none
	life                   uint32 // a timeout of an earlier request is ignored
	gen                    uint32 // an answer of an earlier attempt or after the timeout is ignored
	attempts               uint8
	cheap, over, measured  bool
	rifAt                  int32
	report                 score.Report
	tried                  [3]int32
	key                    uint64
}

// server is one simulated server.
type server struct {
	slots, running int
	factor         float64 // how much slower
	waiting        []int32
	head           int
	inFlight       int
	failing        float64
	code           score.Outcome
	empty          bool
	frozen, gone   bool
	lying          bool
	paused         bool
	held           []int32 // served while frozen or paused: answered at its end
	booted         time.Duration
	coldUntil      time.Duration
	coldLeft       float64
	coldFrom       float64
	meter          report.Meter
	busyAvg        float64 // utilization, EWMA over a second
	busyLong       float64 // the same over ten, as the rates
	busyAt         time.Duration
	byRIF          [256]recentLatency
	cpu            processor     // of a server on a Machine
	work           time.Duration // remaining, for the oracle
	probeDebt      time.Duration
	zone           int
	reports        uint64
}

// recentLatency keeps the last latencies seen at one number of requests in flight.
type recentLatency struct {
	v  [8]time.Duration
	n  int
	at time.Duration // of the last one
}

// World is one run of one cell under one policy.
type World struct {
	cell    Cell
	q       queue
	now     time.Duration
	reqs    []request
	free    []int32
	servers []server
	nominal []int // slots before events
	proxies []policy
	present []bool // servers that the resolver lists
	rnd     *rand.Rand
	choice  score.Rand
	// antagonists is apart, so that they do the same under every policy.
	antagonists *rand.Rand
	rate        float64 // arrivals per second
	due         []timeout
	dueHead     int
	end         time.Duration
	retries     *score.Budget // of all proxies together
	hedges      *score.Budget
	res         Result
	zoneCum     []float64
	scratch     fullReport
	live        []int // attempts in flight per server, as the proxies see it
}

type timeout struct {
	at   time.Duration
	req  int32
	life uint32
}

// Result is what one run measured.
type Result struct {
	Latencies []float32 // of all measured requests, in ms; errors not included
	Cheap     []float32 // of the cheap class
	Errors    int
	Requests  int
	// Attempts and Probes count over the measured part.
	Attempts, Probes int
	// BadShare is the part of picks that went to the servers of the first event, from a second after it began to its end,
	// relative to their fair share; BadErrors the part of requests of that time that failed.
	BadPicks, BadAll, BadErrors int
	// Healed counts the same from five to fifteen seconds after the first event's end.
	HealedPicks, HealedAll int
	// Before and After are the latencies in ms of requests that came before the first event, and from five to fifteen seconds
	// after its end; AfterErrors of these failed.
	Before, After []float32
	AfterErrors   int
	// StormRequests came during the first event, StormAttempts were made then.
	StormRequests, StormAttempts int
	// Repeats are requests sent to a frozen server while another was in flight there, from a second after it froze.
	Repeats int
	// PerNode counts picks.
	PerNode []int
	Bins    [][]int32 // picks per second and node
	Seconds float64
}

// Run runs a cell under a policy.
func Run(c Cell, name string, seed uint64) (Result, error) {
	w := &World{cell: c, rnd: rand.New(rand.NewPCG(seed, 1)), antagonists: rand.New(rand.NewPCG(seed, 2)), choice: score.Rand{State: seed * 7919}, retries: score.NewBudget(0.2), hedges: score.NewBudget(0.02)}
	w.servers = make([]server, c.Nodes)
	w.present = make([]bool, c.Nodes)
	w.nominal = make([]int, c.Nodes)
	w.live = make([]int, c.Nodes)
	for i := range w.servers {
		w.servers[i] = server{slots: c.Slots, factor: 1, booted: -time.Hour, zone: i % c.Zones}
		w.present[i] = true
		w.nominal[i] = c.Slots
	}
	// What holds for the whole run holds from before its start, and counts in the capacity.
	capacity := 0.
	factor := make([]float64, c.Nodes)
	for i := range factor {
		factor[i] = 1
	}
	for i, e := range c.Events {
		always := e.From == 0 && e.To == 0
		if always && e.Kind == "slow" {
			for k := e.First; k < e.First+e.Count; k++ {
				factor[k] = e.Factor
			}
		}
		if e.Kind == "add" {
			for k := e.First; k < e.First+e.Count; k++ {
				w.present[k] = false
				factor[k] = math.Inf(1)
			}
		}
		if e.Kind == "freeze" || e.Kind == "slow" && !always {
			for k := e.First; k < e.First+e.Count; k++ {
				factor[k] = math.Inf(1) // Load is of what remains
			}
		}
		start := c.Warmup + e.From
		if always {
			start = 0
		}
		w.q.push(event{at: start, kind: evChange, a: int32(i), b: 1})
		if e.To > 0 {
			w.q.push(event{at: c.Warmup + e.To, kind: evChange, a: int32(i)})
		}
	}
	width := float64(c.Slots)
	if c.Machine != nil {
		width = c.Machine.guaranteed()
		w.evolve(true)
	}
	for _, f := range factor {
		capacity += width / c.meanNeed().Seconds() / f
	}
	w.rate = c.Load * capacity
	if c.Zones > 1 {
		// The first zone's proxies offer Hot of its servers' capacity, the others Load.
		each := capacity / float64(c.Zones)
		cum := 0.
		for z := range c.Zones {
			l := c.Load
			if z == 0 {
				l = c.Hot
			}
			cum += l * each
			w.zoneCum = append(w.zoneCum, cum)
		}
		w.rate = cum
	}
	w.end = c.Warmup + time.Duration(float64(c.Requests)/w.rate*float64(time.Second))
	for i := range c.Proxies {
		p, err := newPolicy(name, w, i)
		if err != nil {
			return Result{}, err
		}
		w.proxies = append(w.proxies, p)
	}
	w.relist()
	w.res.PerNode = make([]int, c.Nodes)
	if c.Workers > 0 {
		// They begin one after another.
		for k := range c.Workers {
			w.q.push(event{at: w.pace() * time.Duration(k) / time.Duration(c.Workers), kind: evWorker, a: int32(k % c.Proxies)})
		}
	} else {
		w.q.push(event{at: w.gap(), kind: evArrival})
	}
	if c.Reports == "oob" {
		w.q.push(event{at: c.OOB, kind: evOOB})
	}
	w.run()
	w.res.Seconds = (w.end - c.Warmup).Seconds()
	return w.res, nil
}

func (w *World) gap() time.Duration {
	return w.now + time.Duration(w.rnd.ExpFloat64()/w.rate*float64(time.Second))
}

// pace is the least time between two requests of one worker.
func (w *World) pace() time.Duration {
	return time.Duration(float64(w.cell.Workers) / w.rate * float64(time.Second))
}

func (w *World) relist() {
	for _, p := range w.proxies {
		p.list(w.now, w.present)
	}
}

func (w *World) run() {
	for len(w.q.h) > 0 {
		for w.dueHead < len(w.due) && w.due[w.dueHead].at <= w.q.h[0].at {
			d := w.due[w.dueHead]
			w.dueHead++
			if r := &w.reqs[d.req]; r.life == d.life && !r.over {
				w.now = d.at
				w.finish(d.req, score.TimedOut, true)
			}
		}
		if w.dueHead > 1<<16 {
			w.due = append(w.due[:0], w.due[w.dueHead:]...)
			w.dueHead = 0
		}
		if len(w.q.h) == 0 {
			break
		}
		e := w.q.pop()
		w.now = e.at
		if w.now > w.end+w.cell.Timeout+time.Second {
			return
		}
		switch e.kind {
		case evArrival:
			if w.now < w.end {
				w.q.push(event{at: w.gap(), kind: evArrival})
				w.arrive(w.rnd.IntN(w.cell.Proxies))
			}
		case evWorker:
			if w.now < w.end {
				w.arrive(int(e.a))
			}
		case evDone:
			if w.servers[e.a].cpu.gen == e.gen {
				w.done(e.a)
			}
		case evEvolve:
			w.evolve(false)
		case evReach:
			w.reach(e.a, e.gen)
		case evServed:
			if w.reqs[e.a].gen == e.gen {
				w.served(e.a, int(e.b))
			}
		case evAnswer:
			if r := &w.reqs[e.a]; r.gen == e.gen && !r.over {
				w.finish(e.a, score.Outcome(e.b), false)
			}
		case evProbe:
			s := &w.servers[e.b]
			s.probeDebt += w.cell.ProbeCost
			if !s.gone && !s.frozen && !s.paused {
				w.q.push(event{at: w.now + w.cell.Network, kind: evProbed, a: e.a, b: e.b})
			}
		case evProbed:
			w.proxies[e.a].probed(w.now, int(e.b), w.full(int(e.b), w.report(int(e.b))))
		case evChange:
			w.change(&w.cell.Events[e.a], e.b == 1, e.a)
		case evHedge:
			if r := &w.reqs[e.a]; r.gen == e.gen && !r.over && w.hedges.Take(w.now) {
				w.hedge(e.a)
			}
		case evOOB:
			for i := range w.servers {
				if s := &w.servers[i]; s.gone || s.frozen {
					continue
				}
				for _, p := range w.proxies {
					p.probed(w.now, i, w.full(i, w.report(i)))
				}
			}
			if w.now < w.end {
				w.q.push(event{at: w.now + w.cell.OOB, kind: evOOB})
			}
		}
	}
}

// draw draws a request's need of service.
func (w *World) draw() (need time.Duration, cheap bool) {
	m := float64(w.cell.Mean)
	switch w.cell.Service {
	case "normal":
		return time.Duration(max(0, m+m*w.rnd.NormFloat64())), true
	case "bimodal":
		// 99 % of 10 ms and 1 % of 500 ms are 14.9 ms in the mean; scaled to Mean.
		if w.rnd.Float64() < 0.01 {
			return time.Duration(m / 14.9 * 500), false
		}
		return time.Duration(m / 14.9 * 10), true
	case "pareto":
		return time.Duration(min(m/3*math.Pow(1-w.rnd.Float64(), -1/1.5), 100*m)), true
	}
	return time.Duration(m * w.rnd.ExpFloat64()), true
}

// arrive makes a request at proxy pr, or at one of its rank in the zone that the request is of.
func (w *World) arrive(pr int) {
	id := w.entry()
	r := &w.reqs[id]
	life := r.life + 1
	*r = request{arrived: w.now, gen: r.gen + 1, life: life, measured: w.now >= w.cell.Warmup, node: -1, twin: -1, tried: [3]int32{-1, -1, -1}}
	r.need, r.cheap = w.draw()
	if w.zoneCum != nil {
		x := w.rnd.Float64() * w.zoneCum[len(w.zoneCum)-1]
		z := 0
		for x > w.zoneCum[z] {
			z++
		}
		pr = pr - pr%w.cell.Zones + z
		if pr >= w.cell.Proxies {
			pr = z
		}
	}
	r.proxy = int32(pr)
	r.key = w.rnd.Uint64()
	if w.cell.HotKey > 0 && w.rnd.Float64() < w.cell.HotKey {
		r.key = 12345
	}
	w.retries.Call(w.now)
	w.hedges.Call(w.now)
	if r.measured {
		w.res.Requests++
		if w.during(w.now, 0) {
			w.res.StormRequests++
		}
	}
	w.due = append(w.due, timeout{at: w.now + w.cell.Timeout, req: id, life: life})
	w.send(id)
	if w.cell.Hedge > 0 {
		w.q.push(event{at: w.now + w.cell.Hedge, kind: evHedge, a: id, gen: r.gen})
	}
}

// hedge makes a second attempt beside request id's first.
func (w *World) hedge(id int32) {
	twin := w.entry()
	r, t := &w.reqs[id], &w.reqs[twin]
	life, gen := t.life, t.gen
	*t = *r
	t.life, t.gen, t.twin = life+1, gen+1, id
	r.twin = twin
	w.send(twin)
}

// entry finds room for a request.
func (w *World) entry() int32 {
	if n := len(w.free); n > 0 {
		id := w.free[n-1]
		w.free = w.free[:n-1]
		return id
	}
	w.reqs = append(w.reqs, request{})
	return int32(len(w.reqs) - 1)
}

func (w *World) send(id int32) {
	r := &w.reqs[id]
	p := w.proxies[r.proxy]
	i := p.pick(w.now, r)
	r.node, r.sent, r.report = int32(i), w.now, score.NoReport()
	if int(r.attempts) < len(r.tried) {
		r.tried[r.attempts] = int32(i)
	}
	r.attempts++
	if r.measured {
		w.count(i)
	}
	w.live[i]++
	for _, t := range p.probes(w.now) {
		if r.measured {
			w.res.Probes++
		}
		w.q.push(event{at: w.now + w.cell.Network, kind: evProbe, a: r.proxy, b: int32(t)})
	}
	w.q.push(event{at: w.now + w.delay(int(r.proxy), i), kind: evReach, a: id, gen: r.gen})
}

func (w *World) delay(proxy, node int) time.Duration {
	d := w.cell.Network
	if w.cell.Zones > 1 && proxy%w.cell.Zones != w.servers[node].zone {
		d += w.cell.Cross
	}
	return d
}

func (w *World) count(i int) {
	w.res.Attempts++
	w.res.PerNode[i]++
	bin := int((w.now - w.cell.Warmup) / time.Second)
	for len(w.res.Bins) <= bin {
		w.res.Bins = append(w.res.Bins, make([]int32, w.cell.Nodes))
	}
	w.res.Bins[bin][i]++
	if len(w.cell.Events) == 0 {
		return
	}
	e := &w.cell.Events[0]
	hit := i >= e.First && i < e.First+e.Count
	if w.during(w.now, 0) {
		w.res.StormAttempts++
	}
	if w.during(w.now, time.Second) {
		w.res.BadAll++
		if hit {
			w.res.BadPicks++
			if w.servers[i].frozen && w.live[i] > 0 {
				w.res.Repeats++
			}
		}
	}
	if w.healed(w.now) {
		w.res.HealedAll++
		if hit {
			w.res.HealedPicks++
		}
	}
}

// during says whether at is at least after into the first event, and before its end.
func (w *World) during(at, after time.Duration) bool {
	if len(w.cell.Events) == 0 {
		return false
	}
	e := &w.cell.Events[0]
	at -= w.cell.Warmup
	return at >= e.From+after && (e.To == 0 || at < e.To)
}

// healed says whether at is from five to fifteen seconds after the first event's end: for new servers and cold ones, when
// they have warmed up.
func (w *World) healed(at time.Duration) bool {
	if len(w.cell.Events) == 0 {
		return false
	}
	e := &w.cell.Events[0]
	end := e.To
	if e.Kind == "add" || e.Kind == "cold" {
		end = e.From + warmedUp
	}
	at -= w.cell.Warmup + end
	return end > 0 && at >= 5*time.Second && at < 15*time.Second
}

// warmedUp is the age at which a cold server is warm however few requests it has had.
const warmedUp = 90 * time.Second

func (w *World) reach(id int32, gen uint32) {
	r := &w.reqs[id]
	if r.gen != gen || r.over {
		return
	}
	s := &w.servers[r.node]
	r.reached = w.now
	if s.gone {
		w.q.push(event{at: w.now + w.cell.Network, kind: evAnswer, a: id, b: int32(score.Failed), gen: gen})
		return
	}
	s.inFlight++
	r.rifAt = int32(s.inFlight - 1)
	s.meter.Begin()
	if s.failing > 0 && (s.failing >= 1 || w.choice.Float64() < s.failing) && !s.frozen {
		// Fails, or answers nonsense, in a millisecond and without a slot.
		w.q.push(event{at: w.now + time.Millisecond, kind: evServed, a: id, b: 1, gen: gen})
		return
	}
	s.work += time.Duration(float64(r.need) * s.factor)
	if w.cell.Machine != nil {
		w.join(id)
		return
	}
	if s.running < s.slots && !s.paused && !s.frozen {
		w.serve(s, id)
	} else {
		s.waiting = append(s.waiting, id)
	}
}

// busy makes the time since it was last called, at a utilization of u, part of the averages.
func (s *server) busy(now time.Duration, u float64) {
	if now == s.busyAt {
		return
	}
	k := math.Exp(-float64(now-s.busyAt) / float64(10*time.Second))
	s.busyLong = s.busyLong*k + u*(1-k)
	k2 := k * k
	k = k2 * k2 * k2 * k2 * k2 // over one second
	s.busyAvg = s.busyAvg*k + u*(1-k)
	s.busyAt = now
}

// measure brings the averages of server i's utilization up to now.
func (w *World) measure(i int) *server {
	s := &w.servers[i]
	if w.cell.Machine != nil {
		w.advance(s)
	} else {
		s.busy(w.now, float64(s.running)/float64(w.nominal[i]))
	}
	return s
}

func (w *World) serve(s *server, id int32) {
	r := &w.reqs[id]
	w.measure(int(r.node))
	s.running++
	f := s.factor
	if s.coldLeft > 0 && w.now < s.coldUntil {
		f *= 1 + (s.coldFrom-1)*s.coldLeft/500
		s.coldLeft--
	}
	need := time.Duration(float64(r.need)*f) + s.probeDebt
	s.probeDebt = 0
	w.q.push(event{at: w.now + need, kind: evServed, a: id, gen: r.gen})
}

func (w *World) served(id int32, failed int) {
	r := &w.reqs[id]
	s := &w.servers[r.node]
	if s.gone {
		return
	}
	if s.frozen || s.paused {
		s.held = append(s.held, id<<1|int32(failed))
		return
	}
	if failed == 0 {
		if w.cell.Machine == nil {
			w.measure(int(r.node))
			s.running--
		}
		s.work = max(0, s.work-time.Duration(float64(r.need)*s.factor))
	}
	s.inFlight--
	took := w.now - r.reached
	out := score.Answered
	if failed == 1 && !s.empty {
		out = s.code
	}
	s.meter.End(w.now+time.Hour, took, out != score.Answered)
	if out == score.Answered {
		w.took(r)
	}
	if r.over {
		w.release(id) // the caller has gone
	} else {
		r.report = w.report(int(r.node))
		w.q.push(event{at: w.now + w.delay(int(r.proxy), int(r.node)), kind: evAnswer, a: id, b: int32(out), gen: r.gen})
	}
	w.next(s)
}

// next starts what waits.
func (w *World) next(s *server) {
	for s.running < s.slots && s.head < len(s.waiting) && !s.frozen && !s.paused {
		id := s.waiting[s.head]
		s.head++
		r := &w.reqs[id]
		if r.over { // cancelled in the queue
			s.inFlight--
			s.work = max(0, s.work-time.Duration(float64(r.need)*s.factor))
			s.meter.End(w.now+time.Hour, 0, true)
			w.release(id)
			continue
		}
		w.serve(s, id)
	}
	if s.head > 1024 {
		s.waiting = append(s.waiting[:0], s.waiting[s.head:]...)
		s.head = 0
	}
}

func (w *World) release(id int32) {
	w.reqs[id].gen++
	w.free = append(w.free, id)
}

// finish ends an attempt at the proxy, and the request unless it is retried.
func (w *World) finish(id int32, o score.Outcome, timedOut bool) {
	r := &w.reqs[id]
	w.live[r.node]--
	rep := score.NoReport()
	var full *fullReport
	if !timedOut && r.report.InFlight >= 0 && o != score.TimedOut && w.cell.Reports != "none" && w.cell.Reports != "oob" {
		s := &w.servers[r.node]
		if s.reports++; w.cell.Reports != "lost" || s.reports%2 == 0 {
			rep = r.report
			full = w.full(int(r.node), rep)
		}
	}
	w.proxies[r.proxy].done(w.now, r, o, rep, full)
	if o == score.Failed && w.cell.Retry && r.attempts < 3 && w.retries.Take(w.now) {
		r.gen++
		w.send(id)
		return
	}
	if r.measured {
		if o == score.Answered {
			ms := float32(w.now-r.arrived) / 1e6
			w.res.Latencies = append(w.res.Latencies, ms)
			if r.cheap && w.cell.Service == "bimodal" {
				w.res.Cheap = append(w.res.Cheap, ms)
			}
			switch {
			case w.healed(r.arrived):
				w.res.After = append(w.res.After, ms)
			case len(w.cell.Events) > 0 && r.arrived < w.cell.Warmup+w.cell.Events[0].From:
				w.res.Before = append(w.res.Before, ms)
			}
		} else {
			w.res.Errors++
			if w.during(r.arrived, time.Second) {
				w.res.BadErrors++
			}
			if w.healed(r.arrived) {
				w.res.AfterErrors++
			}
		}
	}
	r.over = true
	if r.twin >= 0 {
		t := &w.reqs[r.twin]
		if !t.over {
			// The other attempt is cancelled. Its server goes on with what it has begun.
			t.over = true
			w.live[t.node]--
			w.proxies[t.proxy].done(w.now, t, score.Cut, score.NoReport(), nil)
		}
		r.twin, t.twin = -1, -1
	}
	switch {
	case !timedOut || w.servers[r.node].gone:
		w.release(id)
	case w.cell.Machine != nil:
		w.abandon(id)
	}
	if w.cell.Workers > 0 {
		w.q.push(event{at: max(w.now, r.arrived+w.pace()), kind: evWorker, a: r.proxy})
	}
}

// report is what a server says now. One with slots says how many of them are taken.
func (w *World) report(i int) score.Report {
	s := &w.servers[i]
	if s.lying {
		return score.Report{Uptime: w.now - s.booted, PerSecond: 100}
	}
	l := s.meter.Read(w.now + time.Hour)
	r := score.Report{
		Utilization: float64(s.inFlight) / float64(w.nominal[i]), InFlight: float64(s.inFlight), Uptime: w.now - s.booted,
		Service: l.Latency, PerSecond: l.PerSecond, ErrorsPerSecond: l.ErrorsPerSecond,
	}
	if w.cell.Machine != nil {
		r.Utilization = w.reported(i)
	}
	return r
}

// fullReport is what policies of the literature ask for.
type fullReport struct {
	score.Report
	busy, busyLong float64       // utilization averaged over one second, and over ten as PerSecond is
	median         time.Duration // latency at the present requests in flight, 0 if unknown
}

func (w *World) full(i int, r score.Report) *fullReport {
	w.scratch = fullReport{Report: r}
	f := &w.scratch
	if w.servers[i].lying {
		return f
	}
	s := w.measure(i)
	f.busy, f.busyLong, f.median = s.busyAvg, s.busyLong, s.median(w.now)
	return f
}

// median estimates how long a request that comes now will take, from the last ones that came when as many were there as are now, or as
// near to that as there were any within fresh; if none was answered since, any. It is 0 if none was answered yet.
func (s *server) median(now time.Duration) time.Duration {
	at := min(s.inFlight, len(s.byRIF)-1)
	var old *recentLatency
	look := func(i int) bool {
		if i < 0 || i >= len(s.byRIF) || s.byRIF[i].n == 0 {
			return false
		}
		if old == nil {
			old = &s.byRIF[i]
		}
		return now-s.byRIF[i].at <= fresh
	}
	for d := range len(s.byRIF) {
		if look(at - d) {
			return s.byRIF[at-d].median()
		}
		if look(at + d) {
			return s.byRIF[at+d].median()
		}
	}
	if old == nil {
		return 0
	}
	return old.median()
}

// fresh is how old what tells of a server's latency may be, as long as there is anything younger. A probe's answer may be as old.
const fresh = time.Second

// took notes how long request r was at its server until now.
func (w *World) took(r *request) {
	s := &w.servers[r.node]
	b := &s.byRIF[min(int(r.rifAt), len(s.byRIF)-1)]
	b.v[b.n%len(b.v)] = w.now - r.reached
	b.n++
	b.at = w.now
}

func (r *recentLatency) median() time.Duration {
	var v [8]time.Duration
	k := copy(v[:], r.v[:min(r.n, len(r.v))])
	slices.Sort(v[:k])
	return v[k/2]
}

// change begins or ends an event.
func (w *World) change(e *Event, begin bool, index int32) {
	for i := e.First; i < e.First+e.Count; i++ {
		s := w.measure(i)
		switch e.Kind {
		case "burn":
			s.cpu.burners = 0
			// With a period, for half of it, one server after another.
			phase := w.now + e.Period*time.Duration(i-e.First)/time.Duration(e.Count)
			if begin && (e.Period == 0 || phase%e.Period < e.Period/2) {
				s.cpu.burners = e.Factor
			}
			if begin && i == e.First && e.Period > 0 && w.now < w.end {
				w.q.push(event{at: w.now + e.Period/time.Duration(2*e.Count), kind: evChange, a: index, b: 1})
			}
		case "slow":
			s.factor = 1
			if begin {
				s.factor = e.Factor
			}
		case "fail":
			s.failing, s.empty = 0, e.Code == "empty"
			s.code = score.Failed
			if e.Code == "internal" {
				s.code = score.Erred
			}
			if begin {
				if s.failing = e.Factor; s.failing == 0 {
					s.failing = 1
				}
			}
		case "freeze":
			s.frozen = begin
			w.thaw(s)
		case "lie":
			s.lying = begin
		case "slots":
			// A square wave: the event re-arms itself.
			if begin && (e.To == 0 || w.now < w.cell.Warmup+e.To) && w.now < w.end {
				if s.slots == w.nominal[i] {
					s.slots = max(1, int(math.Round(float64(w.nominal[i])*e.Factor)))
				} else {
					s.slots = w.nominal[i]
				}
				if i == e.First {
					w.q.push(event{at: w.now + e.Period/2, kind: evChange, a: index, b: 1})
				}
			} else {
				s.slots = w.nominal[i]
			}
			w.next(s)
		case "gc":
			// b=1 pauses, b=0 resumes; unsynchronised servers take turns.
			w.gc(e, begin, index)
			return
		case "cold":
			if begin {
				s.coldLeft, s.coldFrom, s.coldUntil = 500, e.Factor, w.now+warmedUp
				s.booted = w.now
			}
		case "add":
			w.present[i] = begin
			if begin {
				s.booted = w.now
				if e.Factor > 1 {
					s.coldLeft, s.coldFrom, s.coldUntil = 500, e.Factor, w.now+warmedUp
				}
			}
		case "drain":
			w.present[i] = !begin
		case "kill":
			w.present[i] = !begin
			if begin {
				s.gone = true
				w.kill(i)
			} else {
				*s = server{slots: w.nominal[i], factor: 1, booted: w.now, zone: s.zone}
			}
		}
		if w.cell.Machine != nil {
			w.reschedule(int32(i))
		}
	}
	switch e.Kind {
	case "add", "drain", "kill":
		w.relist()
	}
}

// kill fails what is in flight at server i.
func (w *World) kill(i int) {
	for id := range w.reqs {
		r := &w.reqs[id]
		if int(r.node) == i && !r.over && r.arrived > 0 {
			w.q.push(event{at: w.now + w.cell.Network, kind: evAnswer, a: int32(id), b: int32(score.Failed), gen: r.gen})
		}
	}
}

// thaw lets out what a frozen or paused server held, and goes on with what waits.
func (w *World) thaw(s *server) {
	if s.frozen || s.paused {
		return
	}
	held := s.held
	s.held = nil
	for _, h := range held {
		w.served(h>>1, int(h&1))
	}
	w.next(s)
}

// gc pauses servers in turn, or all at once.
func (w *World) gc(e *Event, begin bool, index int32) {
	if !begin || w.now >= w.end {
		for i := e.First; i < e.First+e.Count; i++ {
			w.servers[i].paused = false
			w.thaw(&w.servers[i])
		}
		return
	}
	step := e.Period
	turn := -1
	if !e.Sync {
		step = e.Period / time.Duration(e.Count)
		turn = int((w.now/step)%time.Duration(e.Count)) + e.First
	}
	for i := e.First; i < e.First+e.Count; i++ {
		w.servers[i].paused = turn < 0 || i == turn
		if !w.servers[i].paused {
			w.thaw(&w.servers[i])
		}
	}
	if e.Sync || step > e.Pause {
		w.q.push(event{at: w.now + e.Pause, kind: evChange, a: index, b: 0})
	}
	w.q.push(event{at: w.now + step, kind: evChange, a: index, b: 1})
}
