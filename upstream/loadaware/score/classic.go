package score

import (
	"math"
	"slices"
	"strconv"
	"time"
)

// probe walks from at to the first node that admits the call.
func (t *Table) probe(now time.Duration, p *Pick, at int) int {
	for k := range t.nodes {
		i := at + k
		if i >= len(t.nodes) {
			i -= len(t.nodes)
		}
		if ok, _ := t.admits(now, p, t.nodes[i]); ok {
			return i
		}
	}
	return -1
}

// roundRobin takes node after node; with unequal weights it strides.
func (t *Table) roundRobin(now time.Duration, p *Pick) int {
	if s := t.wrr.Load(); s != nil {
		return t.probe(now, p, s.next(&t.next))
	}
	return t.probe(now, p, int(t.next.Add(1)%uint64(len(t.nodes))))
}

// weighted is gRFC A58: weights from reports, round robin by the static weights until two nodes have one.
func (t *Table) weighted(now time.Duration, p *Pick) int { return t.roundRobin(now, p) }

// reweigh renews the strides of the round robins, once per Params.Update.
func (t *Table) reweigh(now time.Duration) {
	par := t.fleet.par()
	if t.policy != WeightedRoundRobin && t.policy != RoundRobin || now < t.wrrDue.get() {
		return
	}
	t.wrrDue.set(now + par.Update)
	w := make([]float64, len(t.nodes))
	sum, known := 0., 0.
	for i, n := range t.nodes {
		at, from := n.weighedAt.get(), n.weighedFrom.get()
		switch {
		case t.policy == RoundRobin || at == 0:
		case now-at >= par.Expiry:
			n.weighedFrom.set(0)
		case now-from >= par.Blackout:
			w[i] = n.weighed.get()
			sum += w[i]
			known++
		}
	}
	if known < 2 {
		for i, n := range t.nodes {
			w[i] = n.weight.get()
		}
		if slices.Min(w) == slices.Max(w) {
			t.wrr.Store(nil)
			return
		}
		t.wrr.Store(newStride(w))
		return
	}
	for i, n := range t.nodes {
		if w[i] <= 0 {
			w[i] = sum / known
		}
		w[i] *= n.weight.get()
	}
	t.wrr.Store(newStride(w))
}

// stride is a static stride scheduler as in gRFC A58: in each generation, a run over all nodes, node i is taken if its
// weight, scaled to 16 bits, still has a stride left; over 65535 generations it is taken weight times.
type stride struct{ weights []uint16 }

func newStride(w []float64) *stride {
	scale := math.MaxUint16 / slices.Max(w)
	s := &stride{weights: make([]uint16, len(w))}
	for i, v := range w {
		s.weights[i] = uint16(max(1, math.Round(v*scale)))
	}
	return s
}

type counter interface{ Add(uint64) uint64 }

func (s *stride) next(c counter) int {
	const whole = math.MaxUint16
	for {
		k := c.Add(1)
		i, generation := k%uint64(len(s.weights)), k/uint64(len(s.weights))
		w := uint64(s.weights[i])
		// Half a stride of offset for every other node spreads nodes of one weight over the generations.
		if mod := (w*generation + i*(whole/2)) % whole; mod < whole-w {
			continue
		}
		return int(i)
	}
}

// requests is the cost of the least request policy.
func (n *Node) requests(time.Duration) float64 {
	return (float64(n.inflight.Load()) + 1) / n.weight.get()
}

// peak is the cost of the peak EWMA policy. A node that has calls in flight and never finished one is dear.
func (n *Node) peak(now time.Duration) float64 {
	q := float64(n.inflight.Load())
	l := n.latency.get()
	if l == 0 {
		if q > 0 {
			return 1e18 + q
		}
		return 0
	}
	l *= math.Exp(-float64(now-n.peaked.get()) / float64(n.fleet.par().PeakDecay))
	return l * (q + 1) / n.weight.get()
}

// twoChoices takes the cheaper of two different random nodes.
func (t *Table) twoChoices(now time.Duration, r *Rand, p *Pick, cost func(*Node, time.Duration) float64) int {
	n := len(t.nodes)
	i := t.probe(now, p, r.IntN(n))
	if i < 0 || n == 1 {
		return i
	}
	j := r.IntN(n - 1)
	if j >= i {
		j++
	}
	if ok, _ := t.admits(now, p, t.nodes[j]); ok && cost(t.nodes[j], now) < cost(t.nodes[i], now) {
		return j
	}
	return i
}

// ringEntry is one of a node's points on the hash ring.
type ringEntry struct {
	hash uint64
	node int32
}

// ringPoints is how many points a node of the greatest weight has.
const ringPoints = 128

func newRing(nodes []*Node, names []string) []ringEntry {
	heaviest := 0.
	for _, n := range nodes {
		heaviest = max(heaviest, n.weight.get())
	}
	var ring []ringEntry
	for i, n := range nodes {
		points := max(1, int(ringPoints*n.weight.get()/heaviest))
		for k := range points {
			ring = append(ring, ringEntry{Hash(names[i] + "_" + strconv.Itoa(k)), int32(i)})
		}
	}
	slices.SortFunc(ring, func(a, b ringEntry) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return int(a.node - b.node)
	})
	return ring
}

// Hash is a hash for keys and ring points: FNV-1a, finished with splitmix64's mixer.
func Hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	r := Rand{h}
	return r.Uint64()
}

// hash takes the first node on the ring at or after the key that admits the call and, if bounded, whose calls in flight
// would stay within Params.HashBound times the mean.
func (t *Table) hash(now time.Duration, r *Rand, p *Pick) int {
	key := p.Hash
	if !p.HasHash {
		key = r.Uint64()
	}
	bound := math.Inf(1)
	if t.policy == BoundedHash {
		total := 1.
		weight := 0.
		for _, n := range t.nodes {
			total += float64(n.inflight.Load())
			weight += n.weight.get()
		}
		bound = t.fleet.par().HashBound * total / weight
	}
	at, _ := slices.BinarySearchFunc(t.ring, key, func(e ringEntry, k uint64) int {
		switch {
		case e.hash < k:
			return -1
		case e.hash > k:
			return 1
		}
		return 0
	})
	for k := range t.ring {
		i := at + k
		if i >= len(t.ring) {
			i -= len(t.ring)
		}
		n := t.nodes[t.ring[i].node]
		if float64(n.inflight.Load()) >= math.Ceil(bound*n.weight.get()) {
			continue
		}
		if ok, _ := t.admits(now, p, n); ok {
			return int(t.ring[i].node)
		}
	}
	return -1
}
