package sim

import (
	"math"
	"slices"
	"time"

	"transom/upstream/loadaware/score"
)

// local is a family of policies that know only what passes through them, and what answers report.
type local struct {
	w     *World
	name  string
	alive []int
	nodes []localNode
	next  int
}

type localNode struct {
	inFlight  int
	ewma      float64 // seconds
	at        time.Duration
	success   float64 // kratos: EWMA of success, 0 to 1
	picked    time.Duration
	busy      float64 // last reported utilization
	busyAt    time.Duration
	errors    float64 // netflix: error rate, fading linearly over 30 s
	errorsAt  time.Duration
	probation bool
	since     time.Duration
}

func newLocal(w *World, name string, k int) *local {
	l := &local{w: w, name: name, nodes: make([]localNode, w.cell.Nodes), next: k}
	for i := range l.nodes {
		l.nodes[i] = localNode{success: 1, probation: true, since: -time.Hour}
	}
	return l
}

func (l *local) list(now time.Duration, present []bool) {
	was := map[int]bool{}
	for _, i := range l.alive {
		was[i] = true
	}
	l.alive = l.alive[:0]
	for i, p := range present {
		if p {
			l.alive = append(l.alive, i)
			if !was[i] && now > 0 {
				l.nodes[i] = localNode{success: 1, probation: true, since: now, inFlight: l.nodes[i].inFlight}
			}
		}
	}
}

func (l *local) pick(now time.Duration, r *request) int {
	i := l.choose(now, r)
	l.nodes[i].inFlight++
	l.nodes[i].picked = now
	return i
}

func (l *local) choose(now time.Duration, r *request) int {
	n := len(l.alive)
	c := &l.w.choice
	switch l.name {
	case "random":
		return l.alive[c.IntN(n)]
	case "round_robin":
		l.next++
		return l.alive[l.next%n]
	case "least_request": // gRFC A48, Envoy: with replacement
		a, b := l.alive[c.IntN(n)], l.alive[c.IntN(n)]
		if l.nodes[b].inFlight < l.nodes[a].inFlight {
			return b
		}
		return a
	case "least_loaded": // of all, ties at random
		return l.least(func(i int) float64 { return float64(l.nodes[i].inFlight) })
	case "oracle":
		return l.least(func(i int) float64 { return l.w.oracle(i, r) })
	}
	if n == 1 {
		return l.alive[0]
	}
	i := c.IntN(n)
	j := c.IntN(n - 1)
	if j >= i {
		j++
	}
	a, b := l.alive[i], l.alive[j]
	switch l.name {
	case "kratos": // cost = cpu · latency · in flight, over health; a node not picked for 3 s is picked once
		ca, cb := l.kratos(a), l.kratos(b)
		if cb < ca {
			a, b = b, a
		}
		if now-l.nodes[b].picked > 3*time.Second {
			return b
		}
		return a
	case "netflix":
		// Filtering by health and utilization, best effort: a few tries, then unfiltered.
		for range 4 {
			if l.fit(now, a) && l.fit(now, b) {
				break
			}
			if !l.fit(now, a) {
				a = l.alive[c.IntN(n)]
			}
			if !l.fit(now, b) {
				b = l.alive[c.IntN(n)]
			}
		}
		if l.netflix(now, b) < l.netflix(now, a) {
			return b
		}
		return a
	}
	if l.cost(now, b) < l.cost(now, a) {
		return b
	}
	return a
}

// least is the server with the least of cost, the first from a random one on.
func (l *local) least(cost func(i int) float64) int {
	best, least := -1, math.Inf(1)
	at := l.w.choice.IntN(len(l.alive))
	for k := range l.alive {
		i := l.alive[(at+k)%len(l.alive)]
		if v := cost(i); v < least {
			best, least = i, v
		}
	}
	return best
}

func (l *local) cost(now time.Duration, i int) float64 {
	n := &l.nodes[i]
	if l.name == "least_request_distinct" {
		return float64(n.inFlight)
	}
	// Finagle: ewma · (pending + 1), fading with time; one that has calls pending and no answer yet is dear.
	if n.ewma == 0 {
		if n.inFlight > 0 {
			return 1e6 + float64(n.inFlight)
		}
		return 0
	}
	return n.ewma * math.Exp(-float64(now-n.at)/1e10) * float64(n.inFlight+1)
}

func (l *local) kratos(i int) float64 {
	n := &l.nodes[i]
	lat := n.ewma
	if lat == 0 {
		lat = 0.1
		if n.inFlight == 0 {
			return 0
		}
	}
	return max(n.busy, 0.01) * math.Sqrt(lat+1e-6) * float64(n.inFlight+1) / max(n.success, 0.001)
}

func (n *localNode) errorRate(now time.Duration) float64 {
	return n.errors * max(0, 1-float64(now-n.errorsAt)/float64(30*time.Second))
}

func (n *localNode) utilization(now time.Duration) float64 {
	return n.busy * max(0, 1-float64(now-n.busyAt)/float64(30*time.Second))
}

func (l *local) fit(now time.Duration, i int) bool {
	n := &l.nodes[i]
	if n.probation && n.inFlight > 0 {
		return false
	}
	if age := now - n.since; age < 90*time.Second && l.w.choice.Float64() > max(0.1, float64(age)/float64(90*time.Second)) {
		return false
	}
	return n.errorRate(now) < 0.3 && n.utilization(now) < 0.95
}

// netflix joins in-flight, reported utilization and error rate; the formula is ours, the text gives none.
func (l *local) netflix(now time.Duration, i int) float64 {
	n := &l.nodes[i]
	return float64(n.inFlight+1) * (0.5 + n.utilization(now)) * (1 + 10*n.errorRate(now))
}

func (l *local) done(now time.Duration, r *request, o score.Outcome, _ score.Report, full *fullReport) {
	n := &l.nodes[r.node]
	n.inFlight--
	took := (now - r.sent).Seconds()
	if full != nil {
		n.busy, n.busyAt = full.busy, now
		n.probation = false
	}
	ok := 0.
	if o == score.Answered {
		ok = 1
	}
	switch l.name {
	case "kratos":
		k := math.Exp(-float64(now-n.at) / float64(600*time.Millisecond))
		if n.ewma == 0 {
			k = 0
		}
		n.ewma = n.ewma*k + took*(1-k)
		n.success = n.success*k + ok*(1-k)
		n.at = now
		return
	case "netflix":
		rate := n.errorRate(now)
		n.errors, n.errorsAt = rate+(1-ok-rate)*0.1, now
		return
	case "linkerd":
		if o == score.Failed || o == score.TimedOut {
			took = max(took, 5) // an error is charged as five seconds
		}
	}
	if took > n.ewma {
		n.ewma = took
	} else {
		k := math.Exp(-float64(now-n.at) / 1e10)
		n.ewma = n.ewma*k + took*(1-k)
	}
	n.at = now
}

func (l *local) probes(time.Duration) []int { return nil }
func (l *local) probed(_ time.Duration, node int, full *fullReport) {
	l.nodes[node].busy, l.nodes[node].busyAt = full.busy, l.w.now
}

// oracle is when server i would have done the request, knowing all.
func (w *World) oracle(i int, r *request) float64 {
	s := &w.servers[i]
	if s.gone || s.frozen {
		return 1e18
	}
	if s.failing >= 1 {
		return 1e17
	}
	wait := 0.
	if queue := s.inFlight + 1 - s.slots; queue > 0 {
		wait = float64(s.work) / float64(s.slots)
	}
	if s.paused {
		wait += 3e8
	}
	f := s.factor
	if s.coldLeft > 0 {
		f *= 1 + (s.coldFrom-1)*s.coldLeft/500
	}
	return wait + float64(r.need)*f + float64(s.inFlight)
}

// prequal is Prequal (arXiv 2312.10172) or, with c3, C3's score in the same frame of probes.
type prequal struct {
	w       *World
	q       float64
	c3      bool
	alive   []int
	pool    []probeEntry
	most    int
	budget  float64 // how often a pooled answer may serve; what is after the point is the part of answers that may once more
	rifs    [64]int // recent probes' requests in flight
	nrifs   int
	removed int
	buf     []int
	nodes   []prequalNode
}

type prequalNode struct {
	inFlight int
	response float64
	fails    int
	out      time.Duration
	streak   int
}

type probeEntry struct {
	node int
	rif  int
	lat  float64
	at   time.Duration
	left float64 // how often it may serve still
}

// The published constants.
const (
	prequalPool   = 16
	prequalProbes = 3
	prequalAge    = time.Second
)

func newPrequal(w *World, n int, q float64, c3 bool) *prequal {
	return &prequal{w: w, q: q, c3: c3, nodes: make([]prequalNode, n)}
}

func (p *prequal) list(_ time.Duration, present []bool) {
	p.alive = p.alive[:0]
	for i, ok := range present {
		if ok {
			p.alive = append(p.alive, i)
		}
	}
	kept := p.pool[:0]
	for _, e := range p.pool {
		if present[e.node] {
			kept = append(kept, e)
		}
	}
	p.pool = kept
	n := float64(len(p.alive))
	// The pool is smaller than the fleet; where the formula for the reuse budget has no value, entries may be reused until
	// they are replaced.
	p.most = max(1, min(prequalPool, len(p.alive)-1))
	d := (1-float64(p.most)/n)*prequalProbes - 1
	p.budget = math.Inf(1)
	if d > 0 {
		p.budget = max(1, 2/d)
	}
}

// threshold is the number of requests in flight above which a server is hot. The quantile 0 makes all of them hot, 1 none.
func (p *prequal) threshold() int {
	k := min(p.nrifs, len(p.rifs))
	if k == 0 || p.q >= 1 {
		return math.MaxInt
	}
	if p.q <= 0 {
		return -1
	}
	var v [64]int
	copy(v[:], p.rifs[:k])
	s := v[:k]
	slices.Sort(s)
	return s[min(k-1, int(p.q*float64(k)))]
}

func (p *prequal) remove(i int) {
	p.pool[i] = p.pool[len(p.pool)-1]
	p.pool = p.pool[:len(p.pool)-1]
}

func (p *prequal) pick(now time.Duration, _ *request) int {
	for i := 0; i < len(p.pool); {
		if now-p.pool[i].at > prequalAge || now < p.nodes[p.pool[i].node].out {
			p.remove(i)
			continue
		}
		i++
	}
	i := p.choose(now)
	p.nodes[i].inFlight++
	return i
}

func (p *prequal) choose(now time.Duration) int {
	if len(p.pool) < 2 && len(p.alive) > 1 {
		for range 4 {
			if i := p.alive[p.w.choice.IntN(len(p.alive))]; now >= p.nodes[i].out {
				return i
			}
		}
		return p.alive[p.w.choice.IntN(len(p.alive))]
	}
	if len(p.pool) == 0 {
		return p.alive[0]
	}
	hot := p.threshold()
	better := func(a, b *probeEntry) bool { // HCL: any cold goes before the hot; cold by latency, hot by load
		if p.c3 {
			return p.c3score(a) < p.c3score(b)
		}
		ah, bh := a.rif > hot, b.rif > hot
		if ah != bh {
			return bh
		}
		if ah {
			return a.rif < b.rif
		}
		return a.lat < b.lat
	}
	best := 0
	for i := range p.pool {
		if better(&p.pool[i], &p.pool[best]) {
			best = i
		}
	}
	e := &p.pool[best]
	node := e.node
	e.rif++
	if e.left--; e.left <= 0 {
		p.remove(best)
	}
	// One more entry is removed per query, in turn the oldest and the worst.
	if len(p.pool) == 0 || len(p.pool) < p.most && len(p.alive) <= prequalPool {
		return node // small fleets: the pool is the fleet
	}
	drop := 0
	if p.removed++; p.removed%2 == 0 {
		for i := range p.pool {
			if better(&p.pool[drop], &p.pool[i]) {
				drop = i
			}
		}
	} else {
		drop = p.oldest()
	}
	p.remove(drop)
	return node
}

// oldest is the pool's oldest entry.
func (p *prequal) oldest() int {
	oldest := 0
	for i := range p.pool {
		if p.pool[i].at < p.pool[oldest].at {
			oldest = i
		}
	}
	return oldest
}

func (p *prequal) c3score(e *probeEntry) float64 {
	n := &p.nodes[e.node]
	q := float64(1 + n.inFlight*p.w.cell.Proxies + e.rif)
	mu := max(e.lat, 1e-3) / float64(1+e.rif)
	resp := n.response
	if resp == 0 {
		resp = e.lat
	}
	return resp - mu + q*q*q*mu
}

func (p *prequal) done(now time.Duration, r *request, o score.Outcome, _ score.Report, _ *fullReport) {
	n := &p.nodes[r.node]
	n.inFlight--
	took := (now - r.sent).Seconds()
	n.response += (took - n.response) * 0.1
	if o == score.Answered {
		n.fails, n.streak = 0, 0
		return
	}
	// The open copy's answer to servers that fail fast: five failures eject, 1 s doubling to 30 s, at most half.
	if n.fails++; n.fails >= 5 {
		out := 0
		for _, i := range p.alive {
			if now < p.nodes[i].out {
				out++
			}
		}
		if out < len(p.alive)/2 {
			n.out = now + min(30*time.Second, time.Second<<min(n.streak, 5))
			n.streak++
			n.fails = 0
		}
	}
}

func (p *prequal) probes(time.Duration) []int {
	p.buf = p.buf[:0]
	k := min(prequalProbes, len(p.alive))
draw:
	for len(p.buf) < k {
		i := p.alive[p.w.choice.IntN(len(p.alive))]
		for _, b := range p.buf {
			if b == i {
				continue draw
			}
		}
		p.buf = append(p.buf, i)
	}
	return p.buf
}

func (p *prequal) probed(now time.Duration, node int, full *fullReport) {
	rif := int(full.InFlight)
	p.rifs[p.nrifs%len(p.rifs)] = rif
	p.nrifs++
	e := probeEntry{node: node, rif: rif, lat: full.median.Seconds(), at: now, left: math.Floor(p.budget)}
	if p.w.choice.Float64() < p.budget-e.left {
		e.left++
	}
	for i := range p.pool {
		if p.pool[i].node == node {
			p.pool[i] = e
			return
		}
	}
	if len(p.pool) >= p.most {
		p.pool[p.oldest()] = e
		return
	}
	p.pool = append(p.pool, e)
}
