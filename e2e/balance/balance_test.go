package balance

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

func average(x []float64) (sum float64) {
	for _, v := range x {
		sum += v
	}
	return sum / float64(len(x))
}

// slowly makes the fleets of a comparison take four times as long, so that what a busy machine adds to a call weighs little
// beside what its server adds, and that two fleets side by side need less of the machine than one does elsewhere.
const slowly = 4

// sideBySide runs the same load through proxies in front of fleets of their own, at the same time: what else the machine
// does meets all of them. It returns what became of the calls after the first settle, and each node's share of them.
func sideBySide(loads []*load, rate float64, settle, d time.Duration) ([]outcome, [][]float64) {
	out, parts := make([]outcome, len(loads)), make([][]float64, len(loads))
	var all sync.WaitGroup
	for i, l := range loads {
		all.Go(func() {
			l.run(rate, settle)
			before := counts(l.fleet.nodes)
			out[i] = l.run(rate, d)
			parts[i] = shares(l.fleet.nodes, before)
		})
	}
	all.Wait()
	return out, parts
}

// TestUnequal is S3: half of the servers are half as fast. Beside round_robin the slow ones get less, and the tail is
// shorter.
func TestUnequal(t *testing.T) {
	policies := []string{"round_robin", "adaptive"}
	var loads []*load
	for _, policy := range policies {
		f := newFleet(t, 8)
		f.pace(slowly)
		for _, n := range f.nodes[:4] {
			n.slow.Store(2 * slowly)
		}
		loads = append(loads, startProxy(t, f, policy, time.Second))
	}
	o, s := sideBySide(loads, 0.75*(4+4*0.5)*perNode/slowly, 4*time.Second, 8*time.Second)
	var ratio [2]float64
	for i, policy := range policies {
		ratio[i] = average(s[i][:4]) / average(s[i][4:])
		t.Logf("%s: %d calls, slow servers get %.2f of what fast ones get; p50 %v, p99 %v", policy, o[i].calls, ratio[i], o[i].at(0.5), o[i].at(0.99))
	}
	if o[1].failed() > 0 {
		t.Errorf("adaptive: %v", o[1].errors)
	}
	if ratio[0] < 0.9 || ratio[0] > 1.1 {
		t.Errorf("slow servers get %.2f of what fast ones get by round_robin, want the same", ratio[0])
	}
	if ratio[1] < 0.25 || ratio[1] > 0.8 {
		t.Errorf("slow servers get %.2f of what fast ones get, want about 0.5", ratio[1])
	}
	if o[1].at(0.99) > o[0].at(0.99)*7/10 {
		t.Errorf("p99 %v, round_robin %v", o[1].at(0.99), o[0].at(0.99))
	}
}

// TestCold is S5: a new server is ten times slower for its first calls. While it warms up it gets no more than its share of
// that, and afterwards all of it.
func TestCold(t *testing.T) {
	const warmup = 8 * time.Second
	f := newFleet(t, 7)
	rate := 0.6 * 7 * perNode
	l := startProxy(t, f, "adaptive", warmup)
	l.run(rate, warmup+time.Second) // all are warm
	cold := startNode(t, "127.0.0.1:0")
	cold.learning.Store(150)
	f.nodes = append(f.nodes, cold)
	f.list(f.nodes...)
	start := time.Now()
	for time.Since(start) < warmup {
		before := counts(f.nodes)
		o := l.run(rate, warmup/4)
		ramp := min(1, float64(time.Since(start))/float64(warmup)) // at the end of this part
		share := shares(f.nodes, before)[7]
		t.Logf("after %v: %.2f of an equal share, ramp %.2f; p99 %v", time.Since(start).Round(time.Millisecond), share, ramp, o.at(0.99))
		if share > ramp+0.15 {
			t.Errorf("the cold server gets %.2f of an equal share, and may have %.2f", share, ramp)
		}
		if o.failed() > 0 {
			t.Error(o.errors)
		}
	}
	cold.learning.Store(0)
	// A server that was seen to be slow is looked at every three seconds, and again at once if it answers soon.
	share, calls := 0.0, 0
	since := time.Now()
	for share < 0.7 && calls < int(16*rate) {
		before := counts(f.nodes)
		calls += l.run(rate, 2*time.Second).calls
		share = shares(f.nodes, before)[7]
		t.Logf("%v and %d calls after it became fast: %.2f of an equal share", time.Since(since).Round(time.Second), calls, share)
	}
	if share < 0.7 {
		t.Errorf("warm and fast, the server gets %.2f of an equal share", share)
	}
}

// TestBlackHole is S6: two servers of eight fail at once, which makes them look idle. After a second no more than one
// call in a hundred meets them, and once they are well they get calls again. The calls must not be repeated.
func TestBlackHole(t *testing.T) {
	f := newFleet(t, 8)
	l := startProxy(t, f, "adaptive", time.Second)
	l.once = true
	rate := 0.6 * 6 * perNode
	l.run(rate, 2*time.Second)
	for _, n := range f.nodes[:2] {
		n.broken.Store(true)
	}
	first := l.run(rate, time.Second)
	o := l.run(rate, 5*time.Second)
	t.Logf("%d of %d calls failed in the first second, %d of %d afterwards", first.failed(), first.calls, o.failed(), o.calls)
	if o.failed()*100 > o.calls {
		t.Errorf("%d of %d calls failed", o.failed(), o.calls)
	}
	for _, n := range f.nodes[:2] {
		n.broken.Store(false)
	}
	l.run(rate, 5*time.Second)
	before := counts(f.nodes)
	l.run(rate, 4*time.Second)
	if s := shares(f.nodes, before); average(s[:2]) < 0.6 {
		t.Errorf("five seconds after they are well: %.2f of an equal share", average(s[:2]))
	}
}

// TestSlow is S7: one server takes ten times as long. It gets a tenth of an equal share at most, and the calls take hardly
// longer than those of a fleet that does not have it.
func TestSlow(t *testing.T) {
	whole, f := newFleet(t, 7), newFleet(t, 8)
	whole.pace(slowly)
	f.pace(slowly)
	f.nodes[0].slow.Store(10 * slowly)
	loads := []*load{startProxy(t, whole, "adaptive", time.Second), startProxy(t, f, "adaptive", time.Second)}
	o, s := sideBySide(loads, 0.7*7*perNode/slowly, 4*time.Second, 8*time.Second)
	share := s[1][0]
	t.Logf("%d calls, the slow server %.3f of an equal share; p95 %v, without it %v", o[1].calls, share, o[1].at(0.95), o[0].at(0.95))
	if share > 0.1 {
		t.Errorf("the slow server gets %.3f of an equal share", share)
	}
	if o[1].at(0.95) > o[0].at(0.95)*13/10 {
		t.Errorf("p95 %v, without the slow server %v", o[1].at(0.95), o[0].at(0.95))
	}
	for _, o := range o {
		if o.failed() > 0 {
			t.Error(o.errors)
		}
	}
}

// TestKill is S8: one server of eight ends with calls under way. None of those that may be repeated fails.
func TestKill(t *testing.T) {
	f := newFleet(t, 8)
	l := startProxy(t, f, "adaptive", time.Second)
	rate := 0.6 * 7 * perNode
	l.run(rate, 2*time.Second)
	timer := time.AfterFunc(time.Second, func() { f.nodes[3].srv.Stop() })
	defer timer.Stop()
	o := l.run(rate, 4*time.Second)
	t.Logf("%d calls, %v", o.calls, o.errors)
	if o.failed() > 0 {
		t.Errorf("%d of %d calls failed: %v", o.failed(), o.calls, o.errors)
	}
}

// TestHung is the other part of S8: one server of five is stopped as it is, connections and all. Calls that may be
// repeated, and have a second attempt after a while, all succeed; few have to wait for it. Woken up, the server gets its
// calls again.
func TestHung(t *testing.T) {
	f := newFleet(t, 4)
	c := startChild(t)
	f.list(append(f.nodes, &node{addr: c.addr})...)
	const delay = 500 * time.Millisecond
	l := startProxy(t, f, "adaptive", time.Second, fmt.Sprintf(`service_config: '{"methodConfig": [{"name": [{"service": "bank.v1.Rates"}],
    "hedgingPolicy": {"maxAttempts": 3, "hedgingDelay": "%vs", "nonFatalStatusCodes": ["UNAVAILABLE"]}}]}'`, delay.Seconds()))
	rate := 0.5 * 4 * perNode
	o := l.run(rate, 3*time.Second)
	if got := c.calls(); got < int64(o.calls)/20 {
		t.Fatalf("the server has %d of %d calls before it hangs", got, o.calls)
	}
	c.signal(syscall.SIGSTOP)
	o = l.run(rate, 6*time.Second)
	late, _ := slices.BinarySearch(o.took, delay)
	late = len(o.took) - late
	t.Logf("%d calls, %d of them took the time of a second attempt, %v", o.calls, late, o.errors)
	if o.failed() > 0 {
		t.Errorf("%d of %d calls failed: %v", o.failed(), o.calls, o.errors)
	}
	if late > o.calls/10 {
		t.Errorf("%d of %d calls had to wait: a fifth would if the server were called as ever", late, o.calls)
	}
	c.signal(syscall.SIGCONT)
	share, calls := 0.0, 0
	for share < 0.5 && calls < int(20*rate) {
		before := c.calls()
		o := l.run(rate, 2*time.Second)
		calls += o.calls
		share = float64(c.calls()-before) / float64(o.calls) * 5
		if o.failed() > 0 {
			t.Errorf("%d of %d calls failed: %v", o.failed(), o.calls, o.errors)
		}
	}
	t.Logf("%d calls after it was woken: %.2f of an equal share", calls, share)
	if share < 0.5 {
		t.Errorf("awake, the server gets %.2f of an equal share", share)
	}
}

// TestStreams is the other part of S9: streams that are open while their server is first marked as draining, and then
// while all servers are replaced, end as they should, and no call fails meanwhile. They last for STREAM_DURATION, 9 s if
// that is not set.
func TestStreams(t *testing.T) {
	long := 9 * time.Second
	if s := os.Getenv("STREAM_DURATION"); s != "" {
		var err error
		if long, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	f := newFleet(t, 4)
	l := startProxy(t, f, "adaptive", time.Second)
	l.once = true
	rate := 0.4 * 3 * perNode
	l.run(rate, 2*time.Second)
	opened := time.Now()
	wait := l.streams(16, long)
	calls := l.run(rate, time.Second)
	f.nodes[0].drain = true
	f.list(f.nodes...)
	calls = calls.and(l.run(rate, time.Second))
	before := counts(f.nodes)
	calls = calls.and(l.run(rate, 2*time.Second))
	if s := shares(f.nodes, before); s[0] > 0 {
		t.Errorf("the draining server gets %.2f of an equal share of the calls", s[0])
	}
	var stopped sync.WaitGroup
	for i, old := range f.nodes {
		f.nodes[i] = startNode(t, "127.0.0.1:0")
		f.list(f.nodes...)
		stopped.Go(old.srv.GracefulStop) // as long as its streams last
		calls = calls.and(l.run(rate, time.Second))
	}
	if left := long - time.Since(opened); left > 0 {
		calls = calls.and(l.run(rate/4, left))
	}
	whole, broken := wait()
	stopped.Wait()
	t.Logf("%d streams of %v, %d calls", whole, long, calls.calls)
	if len(broken) > 0 {
		t.Errorf("%d of 16 streams broke: %v", len(broken), errors.Join(broken...))
	}
	if calls.failed() > 0 {
		t.Errorf("%d calls failed: %v", calls.failed(), calls.errors)
	}
}

// TestCallsBesideStreams opens streams that last, and then adds a server, which has none of them: it gets its share of the calls and
// no more, and no server goes without.
func TestCallsBesideStreams(t *testing.T) {
	f := newFleet(t, 4)
	l := startProxy(t, f, "adaptive", time.Second)
	rate := 0.5 * 4 * perNode
	l.run(rate, 2*time.Second)
	l.streams(120, time.Minute) // they end with the test
	calls := l.run(rate, time.Second)
	f.nodes = append(f.nodes, startNode(t, "127.0.0.1:0"))
	f.list(f.nodes...)
	calls = calls.and(l.run(rate, 2*time.Second))
	before := counts(f.nodes)
	o := l.run(rate, 4*time.Second)
	s := shares(f.nodes, before)
	t.Logf("%d calls, shares %.2f; p99 %v", o.calls, s, o.at(0.99))
	if slices.Min(s) < 0.4 || slices.Max(s) > 1.8 {
		t.Errorf("shares of an equal part: %.2f", s)
	}
	if calls = calls.and(o); calls.failed() > 0 {
		t.Errorf("%d calls failed: %v", calls.failed(), calls.errors)
	}
}

// TestRollingRestart is S9: all servers are replaced, one after the other, each finishing the calls it has.
func TestRollingRestart(t *testing.T) {
	f := newFleet(t, 4)
	l := startProxy(t, f, "adaptive", time.Second)
	l.once = true
	rate := 0.5 * 3 * perNode
	l.run(rate, 2*time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i, old := range f.nodes {
			next := startNode(t, "127.0.0.1:0")
			f.nodes[i] = next
			f.list(f.nodes...)
			old.srv.GracefulStop()
		}
	}()
	o := l.run(rate, 6*time.Second)
	<-done
	t.Logf("%d calls, %v", o.calls, o.errors)
	if o.failed() > 0 {
		t.Errorf("%d of %d calls failed: %v", o.failed(), o.calls, o.errors)
	}
}

// TestScale is S10: four servers become eight, and four again.
func TestScale(t *testing.T) {
	const warmup = 3 * time.Second
	f := newFleet(t, 4)
	l := startProxy(t, f, "adaptive", warmup)
	rate := 0.85 * 4 * perNode
	o := l.run(rate, warmup+time.Second)
	failed := o.failed()
	for range 4 {
		f.nodes = append(f.nodes, startNode(t, "127.0.0.1:0"))
	}
	f.list(f.nodes...)
	failed += l.run(rate, warmup+2*time.Second).failed()
	before := counts(f.nodes)
	failed += l.run(rate, 5*time.Second).failed()
	s := shares(f.nodes, before)
	t.Logf("warm: shares %.2f", s)
	if average(s[4:]) < 0.8 || slices.Max(s) > 1.4 {
		t.Errorf("shares of an equal part: %.2f", s)
	}
	f.list(f.nodes[4:]...)
	failed += l.run(rate, time.Second).failed()
	before = counts(f.nodes)
	failed += l.run(rate, 2*time.Second).failed()
	if s := shares(f.nodes, before); slices.Max(s[:4]) > 0 {
		t.Errorf("servers that left get %.2f", s[:4])
	}
	if failed > 0 {
		t.Errorf("%d calls failed", failed)
	}
}
