package balance

import (
	"errors"
	"fmt"
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

// TestUnequal is S3: half of the servers are half as fast. Against round_robin the slow ones get less, and the tail is
// shorter.
func TestUnequal(t *testing.T) {
	f := newFleet(t, 8)
	for _, n := range f.nodes[:4] {
		n.slow.Store(2)
	}
	rate := 0.75 * (4 + 4*0.5) * perNode
	tail, stretch := map[string]time.Duration{}, 1.0 // the adaptive policy's, which comes last
	for _, policy := range []string{"round_robin", "adaptive"} {
		l := startProxy(t, f, policy, time.Second)
		l.run(rate, 2*time.Second)
		before := counts(f.nodes)
		o := l.run(rate, 6*time.Second)
		s := shares(f.nodes, before)
		tail[policy], stretch = o.at(0.99), o.stretch()
		t.Logf("%s: %d calls, slow servers %.2f of an equal share, fast %.2f; p50 %v, p99 %v", policy, o.calls, average(s[:4]), average(s[4:]), o.at(0.5), o.at(0.99))
		if o.failed() > 0 {
			t.Errorf("%s: %v", policy, o.errors)
		}
		if ratio := average(s[:4]) / average(s[4:]); policy == "adaptive" && (ratio < 0.25 || ratio > 0.8) {
			t.Errorf("slow servers get %.2f of what fast ones get, want about 0.5", ratio)
		}
	}
	bound := tail["round_robin"] * 7 / 10
	if stretch > 1 {
		bound = tail["round_robin"]
	}
	if tail["adaptive"] > bound {
		t.Errorf("p99 %v, round_robin %v", tail["adaptive"], tail["round_robin"])
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

// TestSlow is S7: one server takes ten times as long.
func TestSlow(t *testing.T) {
	f := newFleet(t, 8)
	f.nodes[0].slow.Store(10)
	l := startProxy(t, f, "adaptive", time.Second)
	rate := 0.7 * 7 * perNode
	l.run(rate, 3*time.Second)
	before := counts(f.nodes)
	o := l.run(rate, 6*time.Second)
	share := shares(f.nodes, before)[0]
	t.Logf("%d calls, the slow server %.3f of an equal share; p99 %v", o.calls, share, o.at(0.99))
	if share > 0.1*o.stretch() {
		t.Errorf("the slow server gets %.2f of an equal share, calls take %.1f times what they should", share, o.stretch())
	}
	if o.failed() > 0 {
		t.Error(o.errors)
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
// while all servers are replaced, end as they should, and no call fails meanwhile.
func TestStreams(t *testing.T) {
	f := newFleet(t, 4)
	l := startProxy(t, f, "adaptive", time.Second)
	l.once = true
	rate := 0.4 * 3 * perNode
	l.run(rate, 2*time.Second)
	wait := l.streams(16)
	failed := l.run(rate, time.Second).failed()
	f.nodes[0].drain = true
	f.list(f.nodes...)
	failed += l.run(rate, time.Second).failed()
	before := counts(f.nodes)
	o := l.run(rate, 2*time.Second)
	failed += o.failed()
	if s := shares(f.nodes, before); s[0] > 0 {
		t.Errorf("the draining server gets %.2f of an equal share of the calls", s[0])
	}
	var stopped sync.WaitGroup
	for i, old := range f.nodes {
		f.nodes[i] = startNode(t, "127.0.0.1:0")
		f.list(f.nodes...)
		stopped.Go(old.srv.GracefulStop) // as long as its streams last
		failed += l.run(rate, time.Second).failed()
	}
	whole, broken := wait()
	stopped.Wait()
	t.Logf("%d streams of %v", whole, ticks*tick)
	if len(broken) > 0 {
		t.Errorf("%d of 16 streams broke: %v", len(broken), errors.Join(broken...))
	}
	if failed > 0 {
		t.Errorf("%d calls failed", failed)
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
