package score_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"transom/upstream/loadaware/score"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ms = time.Millisecond

// bench is a fleet in virtual time.
type bench struct {
	*testing.T
	now   time.Duration
	fleet *score.Fleet
	table *score.Table
	nodes []*score.Node
	rnd   score.Rand
}

func newBench(t *testing.T, p score.Policy, n int, change func(*score.Params)) *bench {
	par := score.Defaults()
	if change != nil {
		change(&par)
	}
	b := &bench{T: t, now: time.Second, fleet: score.NewFleet(par), rnd: score.Rand{State: 1}}
	for range n {
		b.nodes = append(b.nodes, b.fleet.NewNode(b.now))
	}
	b.seal(p)
	return b
}

func (b *bench) seal(p score.Policy) {
	var names []string
	for i := range b.nodes {
		names = append(names, fmt.Sprint("node", i))
	}
	b.table = b.fleet.NewTable(p, b.nodes, names, 0)
}

func (b *bench) choose() int { return b.table.Choose(b.now, &b.rnd, &score.Pick{}) }

// call runs one call alone, of the given length and outcome at each node, and returns where it went.
func (b *bench) call(took func(i int) (time.Duration, score.Outcome)) int {
	i := b.choose()
	started := b.now
	load := b.nodes[i].Begin(b.now, false)
	d, o := took(i)
	b.now += d
	b.nodes[i].End(b.now, score.Sample{Outcome: o, Started: started, Load: load})
	return i
}

func ok(int) (time.Duration, score.Outcome) { return ms, score.Answered }

func (b *bench) shares(calls int, took func(int) (time.Duration, score.Outcome)) []float64 {
	got := make([]float64, len(b.nodes))
	for range calls {
		got[b.call(took)] += 1 / float64(calls)
	}
	return got
}

func TestProportions(t *testing.T) {
	for _, c := range []struct {
		name    string
		policy  score.Policy
		weights []float64
		reports []score.Report
		want    []float64
	}{
		{"round robin", score.RoundRobin, []float64{1, 1, 1, 1}, nil, []float64{.25, .25, .25, .25}},
		{"round robin by weight", score.RoundRobin, []float64{1, 2, 5}, nil, []float64{.125, .25, .625}},
		{"random", score.Random, []float64{1, 1}, nil, []float64{.5, .5}},
		{"A58 weights: qps over utilization", score.WeightedRoundRobin, []float64{1, 1, 1}, []score.Report{
			{Utilization: 0.5, PerSecond: 100, InFlight: -1, Uptime: -1},
			{Utilization: 0.25, PerSecond: 100, InFlight: -1, Uptime: -1},
			{Utilization: 0.5, PerSecond: 100, ErrorsPerSecond: 50, InFlight: -1, Uptime: -1},
		}, []float64{200. / 700, 400. / 700, 100. / 700}},
		{"A58 with one report is round robin", score.WeightedRoundRobin, []float64{1, 1, 1}, []score.Report{
			{Utilization: 0.5, PerSecond: 100, InFlight: -1, Uptime: -1}, score.NoReport(), score.NoReport(),
		}, []float64{1. / 3, 1. / 3, 1. / 3}},
		{"A58 with one report goes by the static weights", score.WeightedRoundRobin, []float64{1, 2, 5}, []score.Report{
			{Utilization: 0.5, PerSecond: 100, InFlight: -1, Uptime: -1}, score.NoReport(), score.NoReport(),
		}, []float64{.125, .25, .625}},
		{"A58 without a report is the mean", score.WeightedRoundRobin, []float64{1, 1, 1}, []score.Report{
			{Utilization: 0.5, PerSecond: 100, InFlight: -1, Uptime: -1},
			{Utilization: 0.25, PerSecond: 50, InFlight: -1, Uptime: -1},
			score.NoReport(),
		}, []float64{1. / 3, 1. / 3, 1. / 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.policy, len(c.weights), nil)
			for i, w := range c.weights {
				b.nodes[i].SetWeight(w)
			}
			b.seal(c.policy)
			for range 12 { // past the blackout
				for i, r := range c.reports {
					b.nodes[i].Observe(b.now, r)
				}
				b.now += time.Second
				b.call(ok)
			}
			for i, got := range b.shares(8000, ok) {
				if math.Abs(got-c.want[i]) > 0.02 {
					t.Errorf("node %d got %.3f of the calls, want %.3f", i, got, c.want[i])
				}
			}
		})
	}
}

func TestProbationLetsOneCallIn(t *testing.T) {
	b := newBench(t, score.Adaptive, 3, func(p *score.Params) { p.Warmup = 0 })
	for range 30 {
		b.call(ok)
	}
	fresh := b.fleet.NewNode(b.now)
	b.nodes = append(b.nodes, fresh)
	b.seal(score.Adaptive)
	if i := b.choose(); b.nodes[i] != fresh {
		t.Errorf("the first call went to node %d, want the new one", i)
	}
	fresh.Begin(b.now, false)
	for range 100 {
		if i := b.choose(); b.nodes[i] == fresh {
			t.Fatal("a second call to a server in probation")
		} else {
			b.nodes[i].Begin(b.now, false)
		}
	}
	fresh.End(b.now, score.Sample{Outcome: score.Void, Started: b.now})
	if !fresh.Stats(b.now).Probation {
		t.Error("a call that never reached the server ended its probation")
	}
	fresh.Observe(b.now, score.Report{Utilization: 0.1, InFlight: 0, Uptime: -1})
	if fresh.Stats(b.now).Probation {
		t.Error("a report did not end probation")
	}
}

func TestFleetThatNeverReportsRunsAtFullSpeed(t *testing.T) {
	b := newBench(t, score.Adaptive, 4, nil)
	for range 100 { // a hundred calls at once, from the start
		i := b.choose()
		if i < 0 {
			t.Fatal("no node for a call")
		}
		b.nodes[i].Begin(b.now, false)
	}
	for i, n := range b.nodes {
		if got := n.InFlight(); got != 25 {
			t.Errorf("node %d has %d in flight, want 25", i, got)
		}
	}
}

func TestWarmupShare(t *testing.T) {
	b := newBench(t, score.Adaptive, 4, func(p *score.Params) { p.Warmup = 100 * time.Second })
	for _, n := range b.nodes {
		n.Observe(b.now, score.Report{Utilization: 0, InFlight: 0, Uptime: time.Hour})
	}
	for range 100 {
		b.call(ok)
	}
	young := b.nodes[0]
	for _, c := range []struct {
		age  time.Duration
		want float64 // of its fair share
	}{{time.Second, 0.1}, {20 * time.Second, 0.2}, {50 * time.Second, 0.5}, {101 * time.Second, 1}} {
		young.Start(b.now)
		young.Observe(b.now, score.Report{Utilization: 0, InFlight: 0, Uptime: c.age})
		b.now += 200 * ms
		share := 0.
		for range 4000 {
			// No time passes: only the choice counts.
			if b.nodes[b.choose()] == young {
				share += 1. / 4000
			}
		}
		if got := share * 4; got > c.want*1.2+0.03 || got < c.want*0.7 {
			t.Errorf("at age %v it got %.2f of its fair share, want about %.2f", c.age, got, c.want)
		}
	}
}

// A stream that lasts tells nothing of its server: while nothing but streams is in flight there, a new server, or one that was
// ejected, gets no more of them than others do, but for one a second to see.
func TestStreamsAtServersOnTrial(t *testing.T) {
	for _, ejected := range []bool{false, true} {
		b := newBench(t, score.Adaptive, 4, func(p *score.Params) { p.Warmup = 0 })
		b.shares(400, ok)
		trial := b.nodes[0]
		if ejected {
			for range 20 {
				trial.Begin(b.now, false)
				trial.End(b.now, score.Sample{Outcome: score.Failed, Started: b.now})
			}
			if !trial.Stats(b.now).Ejected {
				t.Fatal("not ejected")
			}
			b.now += time.Minute
		} else {
			trial.Start(b.now)
		}
		for range 400 { // for 4 s
			b.nodes[b.table.Choose(b.now, &b.rnd, &score.Pick{Stream: true})].Begin(b.now, true)
			b.now += 10 * ms
		}
		if got := trial.InFlight(); got < 1 || got > 110 {
			t.Errorf("ejected %v: %d of 400 streams at the server on trial, want about 100 at most", ejected, got)
		}
	}
}

// A server that has no streams beside others that have many gets the next streams, but not all calls; streams that do not last
// longer than calls count as such.
func TestStreamsThatLastAreNoLoad(t *testing.T) {
	for _, c := range []struct {
		lasting  bool
		min, max float64 // node 0's share of the calls
	}{{true, 0.15, 0.45}, {false, 0.6, 1}} {
		b := newBench(t, score.Adaptive, 4, func(p *score.Params) { p.Warmup = 0 })
		b.shares(400, ok)
		type flight struct {
			node    int
			started time.Duration
			load    float64
			stream  bool
		}
		begin := func(i int, stream bool) flight {
			return flight{i, b.now, b.nodes[i].Begin(b.now, stream), stream}
		}
		end := func(f flight) {
			b.nodes[f.node].End(b.now, score.Sample{Outcome: score.Answered, Started: f.started, Load: f.load, Stream: f.stream})
		}
		var streams, calls []flight
		for i := 1; i < 4; i++ {
			for range 30 {
				streams = append(streams, begin(i, true))
			}
		}
		got := 0.
		const n = 4000
		for k := range n {
			b.now += ms
			if !c.lasting { // each is followed by another at its server
				end(streams[0])
				streams = append(streams[1:], begin(streams[0].node, true))
			}
			if len(calls) == 4 {
				end(calls[0])
				calls = calls[1:]
			}
			i := b.choose()
			calls = append(calls, begin(i, false))
			if k >= n/4 && i == 0 {
				got += 1 / (n * 0.75)
			}
		}
		if got < c.min || got > c.max {
			t.Errorf("streams last %v: the server without gets %.2f of the calls, want %v to %v", c.lasting, got, c.min, c.max)
		}
		for range 10 {
			i := b.table.Choose(b.now, &b.rnd, &score.Pick{Stream: true})
			if b.nodes[i].Begin(b.now, true); c.lasting && i != 0 {
				t.Errorf("a stream goes to node %d, which has more", i)
			}
		}
	}
}

// Streams that end by their deadline, as those of subscribers do, are no failures of their server.
func TestStreamsEndByTheirDeadline(t *testing.T) {
	b := newBench(t, score.Adaptive, 2, nil)
	b.shares(100, ok)
	for range 20 {
		b.nodes[0].Begin(b.now, true)
		b.now += time.Minute
		b.nodes[0].End(b.now, score.Sample{Outcome: score.TimedOut, Started: b.now - time.Minute, Stream: true})
	}
	b.choose()
	if s := b.nodes[0].Stats(b.now); s.Ejected || s.Health != 1 {
		t.Errorf("ejected %v, health %v", s.Ejected, s.Health)
	}
	if got := b.shares(1000, ok)[0]; got < 0.4 {
		t.Errorf("%.2f of the calls go there, want half", got)
	}
}

// Streams that stay open are no sign that a server has stopped: calls beside them spread as ever.
func TestCallsBesideStreams(t *testing.T) {
	for _, with := range [][]int{{0}, {0, 1, 2, 3}} {
		b := newBench(t, score.Adaptive, 4, func(p *score.Params) { p.Warmup = 0 })
		b.shares(400, ok)
		for _, i := range with {
			b.nodes[i].Begin(b.now, true)
		}
		b.now += 10 * time.Minute
		got := b.shares(4000, ok)
		for i, share := range got {
			if len(with) == 4 && (share < 0.15 || share > 0.35) || len(with) == 1 && i > 0 && share < 0.2 {
				t.Errorf("streams at %v: shares %.2f of the calls", with, got)
				break
			}
		}
	}
}

func TestConsecutiveFailuresEject(t *testing.T) {
	b := newBench(t, score.Adaptive, 5, nil)
	broken := true
	at := func(i int) (time.Duration, score.Outcome) {
		if i == 0 && broken {
			return ms, score.Failed
		}
		return ms, score.Answered
	}
	if got := b.shares(10000, at)[0]; got > 0.005 {
		t.Errorf("the broken node got %.4f of the calls, want at most 0.005", got)
	}
	if s := b.nodes[0].Stats(b.now); s.Health > 0.7 {
		t.Errorf("the broken node has health %.2f, want at most 0.7", s.Health)
	}
	broken = false
	b.shares(5000, at) // 5 s
	if got := b.shares(1000, at)[0]; got < 0.15 {
		t.Errorf("5 s after healing the node got %.3f of the calls, want at least 0.15", got)
	}
}

func TestEveryNodeBrokenStillServes(t *testing.T) {
	b := newBench(t, score.Adaptive, 4, nil)
	bad := func(int) (time.Duration, score.Outcome) { return ms, score.Failed }
	for i, got := range b.shares(4000, bad) {
		if got < 0.05 {
			t.Errorf("node %d got %.3f of the calls of a broken fleet, want all to be used", i, got)
		}
	}
}

func TestMaxEjected(t *testing.T) {
	for n := 1; n <= 12; n++ {
		b := newBench(t, score.Adaptive, n, nil)
		for range 3 {
			for i := range n {
				for range 6 {
					b.call(ok)
					load := b.nodes[i].Begin(b.now, false)
					b.nodes[i].End(b.now, score.Sample{Outcome: score.Failed, Started: b.now, Load: load})
				}
			}
		}
		ejected := 0
		for _, nd := range b.nodes {
			if nd.Stats(b.now).Ejected {
				ejected++
			}
		}
		if allowed := max(1, n/2); ejected > allowed || ejected >= n {
			t.Errorf("%d of %d nodes are ejected, at most %d may", ejected, n, allowed)
		}
	}
}

func TestSlowNodeIsAvoided(t *testing.T) {
	for _, n := range []int{2, 3, 5, 10, 40} {
		b := newBench(t, score.Adaptive, n, nil)
		at := func(i int) (time.Duration, score.Outcome) {
			if i == 0 {
				return 10 * ms, score.Answered
			}
			return ms, score.Answered
		}
		b.shares(200, at)
		if got := b.shares(5000, at)[0]; got > 0.1/float64(n) {
			t.Errorf("of %d nodes, the ten times slower got %.4f of the calls, want at most a tenth of fair", n, got)
		}
	}
}

// Calls that go to see whether a slow node still is follow each other while they come back soon.
func TestNodeThatBecameFastGetsItsShare(t *testing.T) {
	for _, n := range []int{3, 10, 40} {
		b := newBench(t, score.Adaptive, n, nil)
		slow := 10 * ms
		at := func(i int) (time.Duration, score.Outcome) {
			if i == 0 {
				return slow, score.Answered
			}
			return ms, score.Answered
		}
		b.shares(10000, at)
		slow = ms
		b.shares(4000, at) // 4 s, of which 3 may pass before anybody looks
		if got := b.shares(2000, at)[0]; got < 0.7/float64(n) {
			t.Errorf("of %d nodes, the one that became fast 4 s ago got %.4f of the calls, want at least 0.7 of fair", n, got)
		}
	}
}

// Where all nodes fail alike none is to be blamed, though chance has it that some fail several times in a row.
func TestFleetThatFailsKeepsAllNodes(t *testing.T) {
	b := newBench(t, score.Adaptive, 10, nil)
	b.shares(3000, ok)
	rnd := score.Rand{State: 3}
	half := func(int) (time.Duration, score.Outcome) {
		if rnd.Float64() < 0.5 {
			return ms, score.Failed
		}
		return ms, score.Answered
	}
	b.shares(2000, half)
	for i, got := range b.shares(5000, half) {
		if got < 0.04 || got > 0.25 {
			t.Errorf("node %d got %.3f of the calls of a fleet that fails half of them, want about a tenth", i, got)
		}
	}
	b.shares(4000, ok)
	if got := slices.Min(b.shares(3000, ok)); got < 0.06 {
		t.Errorf("4 s after the failures, a node got %.3f of the calls, want about a tenth", got)
	}
}

func TestHungNodeGetsNoSecondCall(t *testing.T) {
	for _, n := range []int{2, 3, 5} {
		b := newBench(t, score.Adaptive, n, nil)
		b.shares(300, ok)
		for b.nodes[0].InFlight() == 0 {
			if i := b.choose(); i == 0 {
				b.nodes[0].Begin(b.now, false)
			} else {
				b.call(ok)
			}
		}
		b.now += time.Second
		for range 5000 {
			if i := b.call(ok); i == 0 {
				t.Fatalf("n=%d: a call went to the hung node", n)
			}
		}
	}
	b := newBench(t, score.Adaptive, 1, nil)
	b.shares(300, ok)
	b.nodes[0].Begin(b.now, false)
	b.now += time.Second
	if i := b.choose(); i != 0 {
		t.Errorf("a single hung node: chose %d, want 0", i)
	}
}

func TestQueueIsReportedPlusSentLessFinished(t *testing.T) {
	// Two nodes, no calls from here; node 0 says 10 in flight, node 1 says 12. Sending three to node 0 makes it the fuller.
	b := newBench(t, score.Adaptive, 2, func(p *score.Params) { p.Warmup = 0; p.ReportMemory = time.Hour; p.OwnWeight = 0 })
	report := func() {
		b.nodes[0].Observe(b.now, score.Report{Utilization: 0.5, InFlight: 10, Uptime: -1})
		b.nodes[1].Observe(b.now, score.Report{Utilization: 0.6, InFlight: 12, Uptime: -1})
	}
	for range 100 {
		report()
		b.choose()
		b.now += 100 * ms
	}
	report()
	want := []int{0, 0}
	for _, w := range want {
		if got := b.choose(); got != w {
			t.Fatalf("chose %d, want %d", got, w)
		}
		b.nodes[0].Begin(b.now, false)
	}
	b.nodes[0].Begin(b.now, false)
	if got := b.choose(); got != 1 {
		t.Errorf("with 10+3 against 12, chose %d, want 1", got)
	}
	for range 2 {
		b.nodes[0].End(b.now, score.Sample{Outcome: score.Cut, Started: b.now})
	}
	if got := b.choose(); got != 0 {
		t.Errorf("with 10+3-2 against 12, chose %d, want 0", got)
	}
}

// A server that is bound by CPU reports a utilization of 1 however many calls wait for it: its queue is not room. One that reports the
// part of its places that are taken is known to have many.
func TestQueueIsNoConcurrency(t *testing.T) {
	for _, c := range []struct {
		name        string
		utilization func(inFlight float64) float64
		least, most int // of 40 calls, to the node with some 30 in flight
	}{
		{"CPU", func(q float64) float64 { return min(1, q/4) }, 0, 0},
		{"places", func(q float64) float64 { return q / 60 }, 10, 40},
	} {
		b := newBench(t, score.Adaptive, 4, func(p *score.Params) { p.OwnWeight = 0 })
		for k := range 200 {
			for i, n := range b.nodes {
				q := float64(1 + (k+i)%3)
				u := q / 4
				if i == 0 {
					q = float64(28 + k%5)
					u = c.utilization(q)
				}
				r := score.NoReport()
				r.InFlight, r.Utilization, r.Uptime = q, u, time.Hour
				n.Observe(b.now, r)
			}
			b.choose()
			b.now += 20 * ms
		}
		got := 0
		for range 40 {
			i := b.choose()
			b.nodes[i].Begin(b.now, false)
			if i == 0 {
				got++
			}
		}
		if got < c.least || got > c.most {
			t.Errorf("%s: %d of 40 calls to the node with the queue, want %d to %d", c.name, got, c.least, c.most)
		}
	}
}

// What is shown as a node's latency is how long its calls took, whatever its weight: a node of low weight counts as full with one call, but
// that makes the call no shorter.
func TestLatencyIsAsSeen(t *testing.T) {
	b := newBench(t, score.Adaptive, 3, nil)
	b.nodes[1].SetWeight(0.01)
	b.nodes[2].SetWeight(3)
	for range 400 {
		for _, n := range b.nodes {
			load := n.Begin(b.now, false)
			b.now += 10*ms + 300*time.Microsecond
			n.End(b.now, score.Sample{Outcome: score.Answered, Started: b.now - 10*ms, Load: load})
		}
		b.choose()
	}
	for i, n := range b.nodes {
		if got := n.Stats(b.now).Latency; got < 9*ms || got > 11*ms {
			t.Errorf("node %d of weight %v: latency %v, want 10ms", i, n.Weight(), got)
		}
	}
}

func TestTriedIsAvoided(t *testing.T) {
	for _, p := range []score.Policy{score.Adaptive, score.RoundRobin, score.LeastRequest, score.PeakEWMA, score.Random, score.RingHash, score.BoundedHash} {
		b := newBench(t, p, 3, nil)
		b.shares(100, ok)
		for range 200 {
			pick := &score.Pick{Tried: b.nodes[:2], HasHash: true, Hash: b.rnd.Uint64()}
			if got := b.table.Choose(b.now, &b.rnd, pick); got != 2 {
				t.Fatalf("%v chose %d, want the only untried node", p, got)
			}
			pick.Tried = b.nodes
			if got := b.table.Choose(b.now, &b.rnd, pick); got < 0 {
				t.Fatalf("%v chose none where all are tried", p)
			}
		}
	}
}

func TestBoundedHash(t *testing.T) {
	b := newBench(t, score.BoundedHash, 10, nil)
	most := 0
	for k := range 1000 {
		pick := &score.Pick{HasHash: true, Hash: score.Hash(fmt.Sprint(k))}
		if k%5 == 0 {
			pick.Hash = score.Hash("hot")
		}
		i := b.table.Choose(b.now, &b.rnd, pick)
		b.nodes[i].Begin(b.now, false)
		most = max(most, b.nodes[i].InFlight())
	}
	if most > 126 {
		t.Errorf("the fullest node has %d of 1000 calls, want at most 125 and rounding", most)
	}
}

func TestRingMovesFewKeys(t *testing.T) {
	b := newBench(t, score.RingHash, 10, nil)
	place := func() (at []*score.Node) {
		for k := range 5000 {
			i := b.table.Choose(b.now, &b.rnd, &score.Pick{HasHash: true, Hash: score.Hash(fmt.Sprint(k))})
			at = append(at, b.nodes[i])
		}
		return at
	}
	for range 5 {
		b.shares(100, ok)
	}
	before := place()
	b.nodes = b.nodes[:9]
	b.seal(score.RingHash)
	moved := 0
	gone := 0
	for k, n := range place() {
		if n != before[k] {
			moved++
		}
	}
	for _, n := range before {
		found := false
		for _, m := range b.nodes {
			found = found || m == n
		}
		if !found {
			gone++
		}
	}
	if moved != gone || moved == 0 || moved > 1000 {
		t.Errorf("%d of 5000 keys moved when the node of %d went, want just those, about 500", moved, gone)
	}
}

func TestErrorsOfTheApplicationEjectWhereOthersErrLess(t *testing.T) {
	b := newBench(t, score.Adaptive, 20, func(p *score.Params) { p.Choices, p.ScanAll = 2, 1 })
	at := func(i int) (time.Duration, score.Outcome) {
		if i < 2 {
			return ms, score.Erred
		}
		return ms, score.Answered
	}
	b.shares(3000, at)
	for _, i := range []int{0, 1} {
		if got := b.shares(20000, at)[i]; got > 0.002 {
			t.Errorf("erring node %d got %.4f of the calls, want at most 0.002", i, got)
		}
	}
	all := func(int) (time.Duration, score.Outcome) { return ms, score.Erred }
	b.shares(20000, all)
	for i, got := range b.shares(20000, all) {
		if got < 0.01 {
			t.Errorf("where all err, node %d got %.4f of the calls, want about 0.05", i, got)
		}
	}
}
