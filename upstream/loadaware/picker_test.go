package loadaware

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	_ "google.golang.org/grpc/balancer/leastrequest"
	_ "google.golang.org/grpc/balancer/roundrobin"
	_ "google.golang.org/grpc/balancer/weightedroundrobin"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"

	"transom/upstream/loadaware/score"
)

func TestOutcomeOf(t *testing.T) {
	sent := balancer.DoneInfo{BytesSent: true, BytesReceived: true, Trailer: metadata.MD{}}
	with := func(err error) balancer.DoneInfo { d := sent; d.Err = err; return d }
	for _, c := range []struct {
		name    string
		in      balancer.DoneInfo
		want    score.Outcome
		untimed bool
	}{
		{"empty", balancer.DoneInfo{}, score.Void, false},
		{"success", sent, score.Answered, false},
		{"client cancelled", with(status.Error(codes.Canceled, "")), score.Cut, false},
		{"deadline", with(status.Error(codes.DeadlineExceeded, "")), score.TimedOut, false},
		{"unavailable", with(status.Error(codes.Unavailable, "")), score.Failed, false},
		{"never sent", balancer.DoneInfo{Err: status.Error(codes.Unavailable, "")}, score.Void, false},
		{"overload", with(status.Error(codes.ResourceExhausted, "")), score.Failed, false},
		{"internal", with(status.Error(codes.Internal, "")), score.Erred, false},
		{"no status", with(errors.New("x")), score.Erred, false},
		{"client's fault", with(status.Error(codes.InvalidArgument, "")), score.Answered, true},
		{"application's answer", with(status.Error(codes.NotFound, "")), score.Answered, true},
	} {
		if got, untimed := outcomeOf(c.in); got != c.want || untimed != c.untimed {
			t.Errorf("%s: %v, untimed %v, want %v, %v", c.name, got, untimed, c.want, c.untimed)
		}
	}
}

// fakeCC is a channel whose connections are ready at once.
type fakeCC struct {
	balancer.ClientConn
	picker balancer.Picker
	ready  []func()
}

type fakeSC struct {
	balancer.SubConn
	listen func(balancer.SubConnState)
	cc     *fakeCC
}

func (s *fakeSC) Connect() {
	s.cc.ready = append(s.cc.ready, func() {
		s.listen(balancer.SubConnState{ConnectivityState: connectivity.Connecting})
		s.listen(balancer.SubConnState{ConnectivityState: connectivity.Ready})
	})
}
func (s *fakeSC) Shutdown() {}
func (s *fakeSC) GetOrBuildProducer(balancer.ProducerBuilder) (balancer.Producer, func()) {
	return fakeConn{}, func() {}
}

func (s *fakeSC) RegisterHealthListener(l func(balancer.SubConnState)) {
	s.cc.ready = append(s.cc.ready, func() { l(balancer.SubConnState{ConnectivityState: connectivity.Ready}) })
}

type fakeConn struct{ grpc.ClientConnInterface }

func (c *fakeCC) NewSubConn(_ []resolver.Address, o balancer.NewSubConnOptions) (balancer.SubConn, error) {
	return &fakeSC{listen: o.StateListener, cc: c}, nil
}
func (c *fakeCC) UpdateState(s balancer.State)            { c.picker = s.Picker }
func (c *fakeCC) ResolveNow(resolver.ResolveNowOptions)   {}
func (c *fakeCC) MetricsRecorder() estats.MetricsRecorder { return noMetrics{} }

type noMetrics struct{ estats.MetricsRecorder }

func (noMetrics) RecordInt64Count(*estats.Int64CountHandle, int64, ...string)       {}
func (noMetrics) RecordFloat64Histo(*estats.Float64HistoHandle, float64, ...string) {}

// ready builds a policy over n endpoints that are all ready and returns its picker.
func ready(tb testing.TB, policy, config string, n int, attrs ...EndpointAttrs) balancer.Picker {
	tb.Helper()
	bb := balancer.Get(policy)
	cc := &fakeCC{}
	b := bb.Build(cc, balancer.BuildOptions{})
	tb.Cleanup(b.Close)
	var cfg serviceconfig.LoadBalancingConfig
	if parser, ok := bb.(balancer.ConfigParser); ok {
		var err error
		if cfg, err = parser.ParseConfig(json.RawMessage(config)); err != nil {
			tb.Fatal(err)
		}
	}
	var eps []resolver.Endpoint
	for i := range n {
		eps = append(eps, resolver.Endpoint{Addresses: []resolver.Address{{Addr: fmt.Sprint("10.0.0.", i)}}})
		if len(attrs) > 0 {
			eps[i] = SetEndpoint(eps[i], attrs[i])
		}
	}
	if err := b.UpdateClientConnState(balancer.ClientConnState{ResolverState: resolver.State{Endpoints: eps}, BalancerConfig: cfg}); err != nil {
		tb.Fatal(err)
	}
	for len(cc.ready) > 0 {
		up := cc.ready[0]
		cc.ready = cc.ready[1:]
		up()
	}
	return cc.picker
}

// answered is a successful end as grpc tells it.
var answered = balancer.DoneInfo{BytesSent: true, BytesReceived: true, Trailer: metadata.MD{}}

func TestPicksDoNotAllocate(t *testing.T) {
	if raceEnabled {
		return // sync.Pool drops items at random
	}
	for _, n := range []int{1, 4, 100} {
		p := ready(t, Name, "{}", n)
		ctx := WithAttempt(t.Context(), &Attempt{Stream: true})
		got := testing.AllocsPerRun(1000, func() {
			r, err := p.Pick(balancer.PickInfo{Ctx: ctx})
			if err != nil {
				t.Fatal(err)
			}
			r.Done(answered)
		})
		if got != 0 {
			t.Errorf("%d endpoints: %v allocations per pick, want 0", n, got)
		}
	}
}

// Weights are relative: endpoints that all have 100, as those of an endpoint file without weights do, fill up as evenly as
// those that have none, and one of twice the weight takes twice as many.
func TestWeightsAreRelative(t *testing.T) {
	for _, c := range []struct{ weights, want []float64 }{
		{[]float64{0, 0, 0, 0}, []float64{10, 10, 10, 10}},
		{[]float64{100, 100, 100, 100}, []float64{10, 10, 10, 10}},
		{[]float64{200, 100, 100, 0.1}, []float64{20, 10, 10, 0}},
	} {
		var attrs []EndpointAttrs
		for _, w := range c.weights {
			attrs = append(attrs, EndpointAttrs{Weight: w})
		}
		p := ready(t, Name, `{"warmup": "0s"}`, len(attrs), attrs...).(*picker)
		sum := 0.
		for _, target := range p.levels[0].targets {
			sum += target.node.Weight()
		}
		// Else a call in flight would count for less than a chance difference in speed.
		if mean := sum / float64(len(attrs)); math.Abs(mean-1) > 1e-9 {
			t.Errorf("weights %v: the mean of the nodes' is %v, want 1", c.weights, mean)
		}
		pick := func() balancer.PickResult {
			r, err := p.Pick(balancer.PickInfo{Ctx: t.Context()})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		for range 100 { // out of probation
			pick().Done(answered)
		}
		for range 40 {
			defer pick().Done(answered)
		}
		for _, target := range p.levels[0].targets {
			var i int
			if _, err := fmt.Sscanf(target.endpoint.addr, "10.0.0.%d", &i); err != nil {
				t.Fatal(err)
			}
			if got := float64(target.node.InFlight()); math.Abs(got-c.want[i]) > 2 {
				t.Errorf("weights %v: %v calls in flight at endpoint %d, want about %v", c.weights, got, i, c.want[i])
			}
		}
	}
}

func TestDoneTwiceCountsOnce(t *testing.T) {
	p := ready(t, Name, "{}", 1).(*picker)
	r, err := p.Pick(balancer.PickInfo{Ctx: t.Context()})
	if err != nil {
		t.Fatal(err)
	}
	n := p.levels[0].table.Node(0)
	if got := n.InFlight(); got != 1 {
		t.Errorf("%d in flight after a pick, want 1", got)
	}
	r.Done(balancer.DoneInfo{})
	r.Done(balancer.DoneInfo{})
	if got := n.InFlight(); got != 0 {
		t.Errorf("%d in flight after the end, want 0", got)
	}
	if s := n.Stats(p.b.now()); !s.Probation {
		t.Error("an empty DoneInfo ended probation")
	}
}

func TestPriorities(t *testing.T) {
	for _, c := range []struct {
		listed, ready map[int]int
		ejected       int // of the ready ones of priority 0
		want          map[int]float64
	}{
		{map[int]int{0: 4, 1: 4}, map[int]int{0: 4, 1: 4}, 0, map[int]float64{0: 1}},
		{map[int]int{0: 4, 1: 4}, map[int]int{0: 3, 1: 4}, 0, map[int]float64{0: 1}},
		{map[int]int{0: 4, 1: 4}, map[int]int{0: 2, 1: 4}, 0, map[int]float64{0: 0.7, 1: 0.3}},
		{map[int]int{0: 4, 1: 4}, map[int]int{1: 1}, 0, map[int]float64{1: 1}},
		{map[int]int{0: 5, 1: 5, 2: 5}, map[int]int{0: 1, 1: 2, 2: 5}, 0, map[int]float64{0: 0.28, 1: 0.56, 2: 0.16}},
		// Ejected ones are not there.
		{map[int]int{0: 4, 1: 4}, map[int]int{0: 4, 1: 4}, 2, map[int]float64{0: 0.7, 1: 0.3}},
		{map[int]int{0: 4, 1: 4}, map[int]int{0: 3, 1: 4}, 1, map[int]float64{0: 0.7, 1: 0.3}},
	} {
		b := &lb{cfg: defaultConfig(), fleets: map[int]*score.Fleet{}}
		ts := map[int][]target{}
		for pr, n := range c.ready {
			b.fleets[pr] = score.NewFleet(score.Defaults())
			for range n {
				ts[pr] = append(ts[pr], target{endpoint: &endpoint{b: b, attrs: EndpointAttrs{Priority: pr}}, node: b.fleets[pr].NewNode(1)})
			}
		}
		p := newPicker(b, c.listed, ts)
		if c.ejected > 0 {
			var rnd score.Rand
			p.levels[0].table.Choose(time.Second, &rnd, &score.Pick{}) // the fleet learns its size
			for _, target := range ts[0][:c.ejected] {
				for range 5 {
					target.node.End(time.Second, score.Sample{Outcome: score.Failed, Started: time.Second, Load: target.node.Begin(time.Second, false)})
				}
			}
		}
		got := map[int]float64{}
		const draws = 1000
		for k := range draws {
			got[p.levels[p.spill((float64(k)+0.5)/draws)].targets[0].endpoint.attrs.Priority]++
		}
		for pr := range got {
			got[pr] /= draws
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("listed %v, ready %v, %d ejected: parts %v, want %v", c.listed, c.ready, c.ejected, got, c.want)
		}
	}
}

func TestSubset(t *testing.T) {
	var list []resolver.Endpoint
	for i := range 100 {
		list = append(list, resolver.Endpoint{Addresses: []resolver.Address{{Addr: fmt.Sprint("10.0.0.", i)}}})
	}
	used := map[string]int{}
	for seed := range uint64(200) {
		a, b := subset(list, 10, seed), subset(list[1:], 10, seed)
		if len(a) != 10 {
			t.Fatalf("%d endpoints, want 10", len(a))
		}
		changed := 0
		for _, e := range a {
			used[e.Addresses[0].Addr]++
			if !slices.ContainsFunc(b, func(o resolver.Endpoint) bool { return o.Addresses[0].Addr == e.Addresses[0].Addr }) {
				changed++
			}
		}
		if changed > 1 {
			t.Errorf("removing one endpoint changed %d of the subset, want at most 1", changed)
		}
	}
	for _, e := range list {
		if n := used[e.Addresses[0].Addr]; n < 5 || n > 45 {
			t.Errorf("%s is in %d of 200 subsets, want about 20", e.Addresses[0].Addr, n)
		}
	}
}

// A subset has its number of endpoints of each priority that take calls, and an endpoint that begins to drain keeps its place.
func TestSubsetOfPriorities(t *testing.T) {
	list := func(drain string) (out []resolver.Endpoint) {
		for pr := range 2 {
			for i := range 10 {
				addr := fmt.Sprintf("10.0.%d.%d", pr, i)
				e := resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}}
				out = append(out, SetEndpoint(e, EndpointAttrs{Priority: pr, Drain: addr == drain}))
			}
		}
		return out
	}
	names := func(eps []resolver.Endpoint) (out []string) {
		for _, e := range eps {
			out = append(out, e.Addresses[0].Addr)
		}
		return out
	}
	for seed := range uint64(20) {
		before := subset(list(""), 3, seed)
		var n [2]int
		for _, e := range before {
			n[endpointAttrs(e).Priority]++
		}
		if n != [2]int{3, 3} {
			t.Fatalf("seed %d: %v endpoints by priority, want 3 of each", seed, n)
		}
		leaves := before[0].Addresses[0].Addr
		after := names(subset(list(leaves), 3, seed))
		if len(after) != 7 {
			t.Errorf("seed %d: %v with one that drains, want one more", seed, after)
		}
		for _, name := range names(before) {
			if !slices.Contains(after, name) {
				t.Errorf("seed %d: %s is no longer there as %s drains", seed, name, leaves)
			}
		}
	}
}

// Processes choose different subsets unless they are told a seed; in one process all channels choose the same.
func TestSubsetSeed(t *testing.T) {
	var eps []resolver.Endpoint
	for i := range 100 {
		eps = append(eps, resolver.Endpoint{Addresses: []resolver.Address{{Addr: fmt.Sprint("10.0.0.", i)}}})
	}
	chosen := func(process builder, config string) []string {
		cfg, err := process.ParseConfig(json.RawMessage(config))
		if err != nil {
			t.Fatal(err)
		}
		b := process.Build(&fakeCC{}, balancer.BuildOptions{}).(*lb)
		defer b.Close()
		if err := b.UpdateClientConnState(balancer.ClientConnState{ResolverState: resolver.State{Endpoints: eps}, BalancerConfig: cfg}); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range b.endpoints.Values() {
			names = append(names, e.addr)
		}
		slices.Sort(names)
		return names
	}
	one, other := builder{subsetSeed: 1}, builder{subsetSeed: 2}
	const drawn, told = `{"subset": 10}`, `{"subset": 10, "subsetSeed": 7}`
	if a, b := chosen(one, drawn), chosen(one, drawn); len(a) != 10 || !slices.Equal(a, b) {
		t.Errorf("one process chooses %v, then %v", a, b)
	}
	if a, b := chosen(one, drawn), chosen(other, drawn); slices.Equal(a, b) {
		t.Errorf("two processes choose the same: %v", a)
	}
	if a, b := chosen(one, told), chosen(other, told); !slices.Equal(a, b) {
		t.Errorf("told a seed, two processes choose %v and %v", a, b)
	}
	if r, ok := balancer.Get(Name).(builder); !ok || r.subsetSeed == 0 {
		t.Errorf("the registered policy has no seed of its own: %+v", r)
	}
}

// processorTime is what this process has used so far. On a machine that is shared it says more than the clock.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPickAndDone is one pick and its successful end, by as many goroutines as there are processors, on connections
// that do not exist: the cost of the policy alone, beside grpc-go's own in the same run. All endpoints are past
// probation and warm-up.
func BenchmarkPickAndDone(b *testing.B) {
	for _, n := range []int{4, 100, 1000} {
		for _, policy := range []struct{ name, config string }{
			{Name, `{"warmup":"0s"}`}, {"least_request_experimental", "{}"}, {"weighted_round_robin", "{}"}, {"round_robin", "{}"},
		} {
			b.Run(fmt.Sprintf("endpoints=%d/policy=%s", n, policy.name), func(b *testing.B) {
				p := ready(b, policy.name, policy.config, n)
				ctx := b.Context()
				for range 20 * n {
					if r, err := p.Pick(balancer.PickInfo{Ctx: ctx}); err == nil && r.Done != nil {
						r.Done(answered)
					}
				}
				b.ReportAllocs()
				b.ResetTimer()
				before := processorTime(b)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						r, err := p.Pick(balancer.PickInfo{Ctx: ctx})
						if err != nil {
							b.Error(err)
							return
						}
						if r.Done != nil {
							r.Done(answered)
						}
					}
				})
				b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}
