package sim

import (
	"math"
	"slices"
	"time"
)

// Machine is what serves in place of slots: the CPUs of a machine that a server shares with others, its antagonists. All requests at
// the server are served at once, each by a thread of its own (processor sharing). A request's need is time of a CPU; one whose caller
// has given up is not served any further.
type Machine struct {
	// CPUs is how many the machine has.
	CPUs float64 `yaml:"cpus"`
	// Allocation is how many of them the server is guaranteed. It may use what the antagonists leave, and is throttled to its
	// allocation where they leave less. 0 is a machine without isolation: all threads get the same.
	Allocation float64 `yaml:"allocation"`
	// Demand is the mean part of the machine that its antagonists would use, Swing the deviation from it, normally distributed, and
	// Memory the time in which a deviation fades to 1/e (an Ornstein-Uhlenbeck process); cut off at 0 and 1. Each machine's is its own.
	Demand float64       `yaml:"demand"`
	Swing  float64       `yaml:"swing"`
	Memory time.Duration `yaml:"memory"`
}

// processor is the state of one server's machine.
type processor struct {
	demand   float64 // part of the machine, not yet cut off
	burners  float64 // threads of antagonists, by events
	attained float64 // what each request that is there all the time has been served, in ns of need
	at       time.Duration
	jobs     []job // a heap by finish
	gen      uint32
}

// job is done when attained has come to finish.
type job struct {
	finish float64
	req    int32
}

// used is how many CPUs n requests use.
func (m *Machine) used(p *processor, n float64) float64 {
	if n == 0 {
		return 0
	}
	if m.Allocation > 0 {
		return min(n, max(m.Allocation, m.CPUs*(1-min(1, max(0, p.demand)))-p.burners))
	}
	return n * min(1, m.CPUs/(n+p.burners))
}

// guaranteed is how many CPUs serve a server whatever the antagonists do.
func (m *Machine) guaranteed() float64 {
	if m.Allocation > 0 {
		return m.Allocation
	}
	return m.CPUs
}

// utilization is the use of CPU as a server reports it: of its allocation, or of the machine.
func (m *Machine) utilization(s *server) float64 {
	u := m.used(&s.cpu, float64(len(s.cpu.jobs)))
	if m.Allocation > 0 {
		return u / m.Allocation
	}
	return min(1, (u+s.cpu.burners)/m.CPUs)
}

// reported is the utilization that server i reports: one that is bound by CPU has measured it over the last second.
func (w *World) reported(i int) float64 { return w.measure(i).busyAvg }

// evolveEvery is the step of the antagonists' demand.
const evolveEvery = 100 * time.Millisecond

// evolve lets the demand of all machines' antagonists go on by a step, or begin.
func (w *World) evolve(begin bool) {
	m := w.cell.Machine
	keep := 0.
	if !begin {
		keep = math.Exp(-float64(evolveEvery) / float64(m.Memory))
	}
	for i := range w.servers {
		s := &w.servers[i]
		w.advance(s)
		p := &s.cpu
		p.demand = m.Demand + (p.demand-m.Demand)*keep + m.Swing*math.Sqrt(1-keep*keep)*w.antagonists.NormFloat64()
		w.reschedule(int32(i))
	}
	if m.Memory > 0 && w.now < w.end {
		w.q.push(event{at: w.now + evolveEvery, kind: evEvolve})
	}
}

// speed is how much of each request's need is served in a unit of time.
func (w *World) speed(s *server) float64 {
	n := float64(len(s.cpu.jobs))
	if n == 0 {
		return 0
	}
	return w.cell.Machine.used(&s.cpu, n) / n / s.factor
}

// advance serves what has been there since the last change. Whatever changes the speed must call it before.
func (w *World) advance(s *server) {
	p := &s.cpu
	s.busy(w.now, w.cell.Machine.utilization(s))
	p.attained += w.speed(s) * float64(w.now-p.at)
	p.at = w.now
}

// reschedule makes the event of the next request to be done at server i.
func (w *World) reschedule(i int32) {
	s := &w.servers[i]
	p := &s.cpu
	p.gen++
	if len(p.jobs) == 0 {
		p.attained = 0
		return
	}
	left := max(0, p.jobs[0].finish-p.attained)
	w.q.push(event{at: w.now + time.Duration(math.Ceil(left/w.speed(s))), kind: evDone, a: i, gen: p.gen})
}

// join begins to serve request id at its server.
func (w *World) join(id int32) {
	r := &w.reqs[id]
	s := &w.servers[r.node]
	w.advance(s)
	s.cpu.push(job{s.cpu.attained + float64(r.need), id})
	w.reschedule(r.node)
}

// done ends the requests that are served in full at server i.
func (w *World) done(i int32) {
	s := &w.servers[i]
	w.advance(s)
	p := &s.cpu
	for len(p.jobs) > 0 && p.jobs[0].finish <= p.attained+1 { // a nanosecond
		id := p.jobs[0].req
		p.drop(0)
		w.served(id, 0)
	}
	w.reschedule(i)
}

// abandon takes request id, whose caller has given up, from its server if it is there.
func (w *World) abandon(id int32) {
	i := w.reqs[id].node
	s := &w.servers[i]
	k := slices.IndexFunc(s.cpu.jobs, func(j job) bool { return j.req == id })
	if k < 0 {
		return
	}
	w.advance(s)
	s.cpu.drop(k)
	s.inFlight--
	s.meter.End(w.now+time.Hour, 0, true)
	w.took(&w.reqs[id]) // that long at least
	w.release(id)
	w.reschedule(i)
}

func (p *processor) push(j job) {
	p.jobs = append(p.jobs, j)
	p.up(len(p.jobs) - 1)
}

func (p *processor) up(i int) {
	for h := p.jobs; i > 0 && h[i].finish < h[(i-1)/2].finish; i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
}

func (p *processor) drop(i int) {
	last := len(p.jobs) - 1
	p.jobs[i] = p.jobs[last]
	p.jobs = p.jobs[:last]
	if i == last {
		return
	}
	h := p.jobs
	p.up(i)
	for {
		c := 2*i + 1
		if c >= last {
			return
		}
		if c+1 < last && h[c+1].finish < h[c].finish {
			c++
		}
		if h[i].finish <= h[c].finish {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}
