package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"transom/upstream/loadaware/score"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func cell(c Cell) Cell {
	if c.Requests == 0 {
		c.Requests = 8000
	}
	c.Warmup = max(c.Warmup, 2*time.Second)
	return c.over(Cell{})
}

func TestSameSeedSameResult(t *testing.T) {
	c := cell(Cell{Proxies: 4, Requests: 2000})
	for _, p := range Policies() {
		a, err := One(c, p, 1)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := One(c, p, 1); a != b {
			t.Errorf("%s: two runs of one seed differ: %+v, %+v", p, a, b)
		}
		if b, _ := One(c, p, 2); a.P99 == b.P99 {
			t.Errorf("%s: two seeds give the same p99", p)
		}
	}
}

// The single server is an M/M/4 queue: its mean is known.
func TestQueueAgreesWithErlang(t *testing.T) {
	c := cell(Cell{Nodes: 1, Requests: 100000, Load: 0.8})
	c.Network = 1
	r, err := Run(c, "random", 3)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.
	for _, l := range r.Latencies {
		sum += float64(l)
	}
	got := sum / float64(len(r.Latencies))
	// Erlang C with 4 servers and 3.2 Erlang: waiting probability 0.5964; wait = C · mean / (4 - 3.2).
	want := 40 + 0.5964*40/0.8
	if math.Abs(got-want) > 0.06*want {
		t.Errorf("mean latency %.1f ms, want %.1f", got, want)
	}
}

// On one CPU that all requests share, the mean is that of the need over the part of the CPU that is left, whatever the needs' distribution.
func TestMachineAgreesWithProcessorSharing(t *testing.T) {
	for service, want := range map[string]float64{"exponential": 40 / 0.3, "normal": 40 * 1.0833 / 0.3} {
		c := cell(Cell{Nodes: 1, Requests: 100000, Load: 0.7, Service: service, Machine: &Machine{CPUs: 1}})
		c.Network, c.Timeout = 1, time.Hour
		r, err := Run(c, "random", 3)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.
		for _, l := range r.Latencies {
			sum += float64(l)
		}
		if got := sum / float64(len(r.Latencies)); math.Abs(got-want) > 0.06*want {
			t.Errorf("%s: mean latency %.1f ms, want %.1f", service, got, want)
		}
	}
}

// A server may use what its machine's antagonists leave, and its allocation where they leave nothing.
func TestMachineIsolates(t *testing.T) {
	for _, x := range []struct {
		demand, threads, requests, want float64
	}{
		{demand: 1, requests: 20, want: 4},
		{demand: 1, requests: 3, want: 3},
		{demand: 0.5, requests: 30, want: 20},
		{demand: -1, requests: 60, want: 40},
		{demand: 0.5, threads: 12, requests: 30, want: 8},
		{demand: 0.5, threads: 30, requests: 30, want: 4},
	} {
		m := &Machine{CPUs: 40, Allocation: 4}
		if got := m.used(&processor{demand: x.demand, burners: x.threads}, x.requests); got != x.want {
			t.Errorf("%+v: %v CPUs", x, got)
		}
	}
	// Without isolation every thread gets the same.
	if got := (&Machine{CPUs: 8}).used(&processor{burners: 6}, 10); got != 5 {
		t.Errorf("10 requests beside 6 threads use %v of 8 CPUs, want 5", got)
	}
}

// Workers send nothing before they have their answer: there are never more requests than workers.
func TestClosedLoop(t *testing.T) {
	c := cell(Cell{Nodes: 2, Workers: 30, Proxies: 3, Load: 3, Requests: 20000, Machine: &Machine{CPUs: 4}})
	r, err := Run(c, "round_robin", 1)
	if err != nil {
		t.Fatal(err)
	}
	mean := 0.
	for _, l := range r.Latencies {
		mean += float64(l) / 1e3 / float64(len(r.Latencies))
	}
	// Little's law: 30 in flight, 8 CPUs of 40 ms each busy all the time.
	if rate := float64(len(r.Latencies)) / r.Seconds; math.Abs(rate*mean-30) > 2 || math.Abs(rate-200) > 10 || r.Errors > 0 {
		t.Errorf("%.1f requests in flight, %.0f a second, %d errors, want 30, 200, 0", rate*mean, rate, r.Errors)
	}
}

// What a server says of its latency is of requests that found as many there as there are now, and of late if there are such.
func TestLatencyByRequestsInFlight(t *testing.T) {
	var s server
	if got := s.median(0); got != 0 {
		t.Errorf("%v before any answer", got)
	}
	note := func(rif int, took, at time.Duration) {
		b := &s.byRIF[rif]
		b.v[b.n%len(b.v)], b.at = took, at
		b.n++
	}
	note(2, 20*time.Millisecond, time.Second)
	note(10, 100*time.Millisecond, 5*time.Second)
	for _, x := range []struct {
		inFlight  int
		now, want time.Duration
	}{
		{2, 1500 * time.Millisecond, 20 * time.Millisecond},
		{2, 5 * time.Second, 100 * time.Millisecond}, // what is known of 2 is old
		{9, 5 * time.Second, 100 * time.Millisecond},
		{3, time.Minute, 20 * time.Millisecond}, // all is old
	} {
		s.inFlight = x.inFlight
		if got := s.median(x.now); got != x.want {
			t.Errorf("%d in flight after %v: %v, want %v", x.inFlight, x.now, got, x.want)
		}
	}
}

// A query takes from Prequal's pool what has served often enough, and one answer more; how often an answer may serve is a whole number
// that is 1.32 on average.
func TestPrequalPool(t *testing.T) {
	w := &World{cell: cell(Cell{Nodes: 100})}
	p := newPrequal(w, 100, 0.84, false)
	present := make([]bool, 100)
	for i := range present {
		present[i] = true
	}
	p.list(0, present)
	sum := 0.
	const rounds = 4000
	for range rounds {
		p.pool = p.pool[:0]
		for i := range 20 {
			p.probed(time.Second, i, &fullReport{Report: score.Report{InFlight: float64(i % 5)}, median: time.Duration(50+i) * time.Millisecond})
		}
		if len(p.pool) != prequalPool {
			t.Fatalf("%d answers in the pool, want %d", len(p.pool), prequalPool)
		}
		best := 0
		for i := range p.pool {
			if p.pool[i].rif <= p.threshold() && p.pool[i].lat < p.pool[best].lat {
				best = i
			}
		}
		left := p.pool[best].left
		sum += left
		at := p.pool[best].node
		if got := p.pick(time.Second, nil); got != at {
			t.Fatalf("picked %d, want the fastest of the cold ones, %d", got, at)
		}
		if want := prequalPool - 1 - int(2-left); len(p.pool) != want {
			t.Fatalf("%d answers left after one that could serve %v times, want %d", len(p.pool), left, want)
		}
	}
	if mean := sum / rounds; math.Abs(mean-2/1.52) > 0.05 {
		t.Errorf("answers serve %.2f times, want %.2f", mean, 2/1.52)
	}
	for q, want := range map[float64]int{0: -1, 1: math.MaxInt} {
		p := newPrequal(w, 100, q, false)
		p.rifs[0], p.nrifs = 7, 1
		if got := p.threshold(); got != want {
			t.Errorf("quantile %v: hot above %d, want %d", q, got, want)
		}
	}
}

// The load is a part of the capacity, whatever the requests' needs are drawn from.
func TestLoadIsOfCapacity(t *testing.T) {
	for _, service := range []string{"exponential", "normal", "bimodal", "pareto"} {
		c := cell(Cell{Service: service})
		w := &World{cell: c, rnd: rand.New(rand.NewPCG(1, 1))}
		sum := 0.
		const n = 1 << 18
		for range n {
			need, _ := w.draw()
			sum += float64(need) / n
		}
		if want := float64(c.meanNeed()); math.Abs(sum-want) > 0.03*want {
			t.Errorf("%s: drawn %v on average, counted as %v", service, time.Duration(sum), time.Duration(want))
		}
	}
}

// Servers that are bound by CPU report 1 while their queue grows: they must not seem the larger for it.
func TestAdaptiveOnServersBoundByCPU(t *testing.T) {
	c := cell(Cell{Service: "normal", Mean: 10 * time.Millisecond, Load: 1.12, Requests: 30000, Warmup: 5 * time.Second, Machine: &Machine{CPUs: 8, Allocation: 2}, Events: []Event{{Kind: "burn", Count: 10, Factor: 6, Period: 10 * time.Second}}})
	a, err := One(c, "adaptive", 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := One(c, "peak_ewma", 1)
	if err != nil {
		t.Fatal(err)
	}
	if a.P99 > 1.05*b.P99 {
		t.Errorf("p99 %.0f ms, that of peak EWMA is %.0f", a.P99, b.P99)
	}
}

func TestEveryRequestIsCounted(t *testing.T) {
	shared := cell(Cell{Nodes: 4, Load: 1.2, Timeout: time.Second, Requests: 4000, Machine: &Machine{CPUs: 8, Allocation: 2, Demand: 0.8, Swing: 0.3, Memory: time.Second}})
	for _, p := range Policies() {
		r, err := Run(shared, p, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(r.Latencies) + r.Errors; got != r.Requests || r.Requests < 3000 {
			t.Errorf("%s on machines: %d requests, %d ends", p, r.Requests, got)
		}
	}
	for _, e := range []Event{
		{Kind: "fail", Count: 1, From: time.Second, To: 4 * time.Second, Code: "unavailable"},
		{Kind: "freeze", Count: 1, From: time.Second, To: 4 * time.Second},
		{Kind: "kill", Count: 1, From: time.Second, To: 4 * time.Second},
		{Kind: "drain", Count: 1, From: time.Second, To: 4 * time.Second},
		{Kind: "gc", Count: 4, From: time.Second, Period: 4 * time.Second, Pause: 300 * time.Millisecond},
		{Kind: "slots", Count: 1, Factor: 0.4, Period: 2 * time.Second},
		{Kind: "cold", Count: 1, From: time.Second, Factor: 10},
		{Kind: "add", Count: 1, From: time.Second, Factor: 10},
	} {
		for _, retry := range []bool{false, true} {
			c := cell(Cell{Nodes: 4, Load: 0.6, Events: []Event{e}, Retry: retry, Timeout: time.Second, Requests: 4000})
			for _, p := range []string{"adaptive", "prequal", "least_request"} {
				r, err := Run(c, p, 1)
				if err != nil {
					t.Fatal(err)
				}
				if got := len(r.Latencies) + r.Errors; got != r.Requests || r.Requests < 3000 {
					t.Errorf("%s, %s, retry %v: %d requests, %d ends", p, e.Kind, retry, r.Requests, got)
				}
			}
		}
	}
}

func TestScenariosAreValid(t *testing.T) {
	all, err := Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, s := range all {
		ids = append(ids, s.ID)
		for _, c := range s.Cells {
			c.Requests, c.Warmup = 200, 200*time.Millisecond
			for _, p := range s.policies(false)[:1] {
				if _, err := Run(c, p, 1); err != nil {
					t.Errorf("%s %s %s: %v", s.ID, c.Name, p, err)
				}
			}
		}
	}
	if len(ids) != 22 || !slices.Contains(ids, "S19") || !slices.Contains(ids, "P3") {
		t.Errorf("scenarios %v, want S1 to S19 and P1 to P3", ids)
	}
}

// What the published policies are known for must come out.
func TestPublishedShapes(t *testing.T) {
	p99 := func(c Cell, p string) float64 {
		t.Helper()
		s, err := One(c, p, 1)
		if err != nil {
			t.Fatal(err)
		}
		return s.P99
	}
	hole := cell(Cell{Nodes: 20, Load: 0.5, Requests: 20000, Events: []Event{{Kind: "fail", Count: 2, From: 0, To: time.Hour, Code: "unavailable"}}})
	// P2C with replacement sends 1-(18/20)² of the calls to two black holes: twice what round robin does.
	for p, want := range map[string]float64{"round_robin": 0.10, "least_request": 0.19} {
		s, err := One(hole, p, 1)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(s.Errors-want) > 0.02 {
			t.Errorf("%s: %.3f of the calls fail with 2 of 20 black holes, want %.2f", p, s.Errors, want)
		}
	}
	mixed := cell(Cell{Load: 0.75, Requests: 20000, Events: []Event{{Kind: "slow", Count: 5, Factor: 2}}})
	rr, ewma, oracle := p99(mixed, "round_robin"), p99(mixed, "peak_ewma"), p99(mixed, "oracle")
	if rr < 5*ewma || ewma < oracle {
		t.Errorf("half the servers slow: round robin %.0f, peak EWMA %.0f, oracle %.0f ms, want them apart in this order", rr, ewma, oracle)
	}
	// P2C with replacement sends 1/n² of the calls to a frozen server of n.
	for n := 2; n <= 5; n++ {
		c := cell(Cell{Nodes: n, Load: 0.6, Requests: 10000, Events: []Event{{Kind: "freeze", Count: 1, From: time.Second, To: time.Hour}}})
		s, err := One(c, "least_request", 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.BadShare / float64(n); math.Abs(got*float64(n*n)-1) > 0.2 {
			t.Errorf("least request sends %.3f of the calls to a frozen server of %d, want %.3f", got, n, 1/float64(n*n))
		}
	}
	slow := cell(Cell{Load: 0.7, Requests: 20000, Events: []Event{{Kind: "slow", Count: 1, Factor: 10}}})
	if rr, lr, pr := p99(slow, "round_robin"), p99(slow, "least_request"), p99(slow, "prequal"); rr < 5*pr || lr < 2*pr {
		t.Errorf("one server of ten ten times slower: round robin %.0f, least request %.0f, Prequal %.0f ms", rr, lr, pr)
	}
	taxed := cell(Cell{Nodes: 4, Load: 0.95, ProbeCost: time.Millisecond, Requests: 20000})
	if rr, pr := p99(taxed, "round_robin"), p99(taxed, "prequal"); pr < 1.2*rr {
		t.Errorf("where a probe costs a millisecond: round robin %.0f, Prequal %.0f ms, want probes to cost", rr, pr)
	}
	full := cell(Cell{Nodes: 60, Proxies: 60, Load: 0.85, Service: "normal", Requests: 10000, Warmup: 4 * time.Second, Events: []Event{{Kind: "slow", Count: 30, Factor: 2}}})
	wrr, pr, c3 := p99(full, "wrr"), p99(full, "prequal"), p99(full, "c3")
	if wrr < 2*pr || !within(pr, c3, 1.6) {
		t.Errorf("near capacity: WRR %.0f, Prequal %.0f, C3 %.0f ms, want WRR to fall behind and the others to be near", wrr, pr, c3)
	}
	herd := cell(Cell{Nodes: 16, Proxies: 64, Requests: 20000})
	one := herd
	one.Proxies = 1
	if a, b := p99(one, "least_request"), p99(herd, "least_request"); b < 1.03*a {
		t.Errorf("least request with 64 proxies has %.0f ms, with one %.0f: want it to lose what it knows", b, a)
	}
}

// The columns that are published are written beside what was simulated, and say why where they differ.
func TestDocumentPublished(t *testing.T) {
	for _, p := range published() {
		if p.source == "" || p.published == "" || strings.ContainsAny(p.source+p.published+p.why, "|\n") {
			t.Errorf("%+v does not fit into a table", p)
		}
	}
	const doc = "before\n<!-- published: begin -->\nold\n<!-- published: end -->\nafter\n"
	got, err := DocumentPublished([]byte(doc), []Claim{
		{Source: "A", Published: "1", Simulated: "2", InShape: true, Why: "unused", Adaptive: "5"}, {Source: "B", Published: "3", Simulated: "4", Why: "because"},
	})
	want := "before\n<!-- published: begin -->\n| Published by | Published | Simulated | In shape | Adaptive there |\n|---|---|---|---|---|\n" +
		"| A | 1 | 2 | yes | 5 |\n| B | 3 | 4 | **no**: because |  |\n<!-- published: end -->\nafter\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
	if _, err := DocumentPublished([]byte("none"), nil); err == nil {
		t.Error("a document without the lines is taken")
	}
	l := &lookup{campaign: Campaign{Seeds: 1}}
	if l.p99("S99", "", "prequal"); l.err == nil {
		t.Error("a scenario that is not there is found")
	}
}

func BenchmarkAdaptive(b *testing.B) {
	c := cell(Cell{Requests: 20000})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Run(c, "adaptive", 1); err != nil {
			b.Fatal(err)
		}
	}
}
