package loadaware_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservice "github.com/cncf/xds/go/xds/service/orca/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/upstream/loadaware"
	"transom/upstream/loadaware/report"
	"transom/upstream/loadaware/score"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a gRPC server on loopback whose handler the test decides.
type backend struct {
	testpb.UnimplementedTestServiceServer
	addr   string
	srv    *grpc.Server
	calls  atomic.Int64
	unary  func(context.Context) error
	stream func(testpb.TestService_FullDuplexCallServer) error
}

func (b *backend) EmptyCall(ctx context.Context, _ *testpb.Empty) (*testpb.Empty, error) {
	b.calls.Add(1)
	if b.unary != nil {
		return &testpb.Empty{}, b.unary(ctx)
	}
	return &testpb.Empty{}, nil
}

func (b *backend) FullDuplexCall(s testpb.TestService_FullDuplexCallServer) error { return b.stream(s) }

func start(t *testing.T, b *backend, addr string, opts ...grpc.ServerOption) *backend {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	b.addr, b.srv = l.Addr().String(), grpc.NewServer(opts...)
	testpb.RegisterTestServiceServer(b.srv, b)
	hs := health.NewServer()
	healthpb.RegisterHealthServer(b.srv, hs)
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.srv.Serve(l) })
	t.Cleanup(func() { b.srv.Stop(); wg.Wait() })
	return b
}

type channel struct {
	*grpc.ClientConn
	testpb.TestServiceClient
	resolver *manual.Resolver
	registry *loadaware.Registry
}

func (c *channel) state(eps ...resolver.Endpoint) resolver.State {
	return loadaware.SetRegistry(resolver.State{Endpoints: eps}, c.registry)
}

func ep(b *backend, a loadaware.EndpointAttrs) resolver.Endpoint {
	return loadaware.SetEndpoint(resolver.Endpoint{Addresses: []resolver.Address{{Addr: b.addr}}}, a)
}

func dial(t *testing.T, config string, eps ...resolver.Endpoint) *channel {
	t.Helper()
	c := &channel{resolver: manual.NewBuilderWithScheme("test"), registry: &loadaware.Registry{}}
	c.resolver.InitialState(c.state(eps...))
	cc, err := grpc.NewClient("test:///backends", grpc.WithResolvers(c.resolver), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(fmt.Sprintf(`{"loadBalancingConfig":[{"adaptive":%s}]}`, config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	c.ClientConn, c.TestServiceClient = cc, testpb.NewTestServiceClient(cc)
	cc.Connect()
	c.until(t, "all endpoints are ready", func(s []loadaware.EndpointStats) bool {
		for _, e := range s {
			if e.State != connectivity.Ready {
				return false
			}
		}
		return len(s) == len(eps)
	})
	return c
}

// until waits for the registry to show something.
func (c *channel) until(t *testing.T, what string, ok func([]loadaware.EndpointStats) bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !ok(c.registry.Endpoints()) {
		select {
		case <-poll.C:
		case <-deadline.C:
			t.Fatalf("not within 10s: %s; endpoints %+v", what, c.registry.Endpoints())
		}
	}
}

func (c *channel) call(t *testing.T, a *loadaware.Attempt) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if a != nil {
		ctx = loadaware.WithAttempt(ctx, a)
	}
	_, err := c.EmptyCall(ctx, &testpb.Empty{})
	return err
}

func three(t *testing.T) (bs [3]*backend, eps []resolver.Endpoint) {
	for i := range bs {
		bs[i] = start(t, &backend{}, "127.0.0.1:0")
		eps = append(eps, ep(bs[i], loadaware.EndpointAttrs{}))
	}
	return bs, eps
}

func TestEveryPolicyServes(t *testing.T) {
	for _, policy := range []string{"adaptive", "round_robin", "weighted_round_robin", "least_request", "peak_ewma", "random", "ring_hash", "bounded_hash"} {
		t.Run(policy, func(t *testing.T) {
			bs, eps := three(t)
			c := dial(t, fmt.Sprintf(`{"policy":%q}`, policy), eps...)
			for i := range 300 {
				if err := c.call(t, &loadaware.Attempt{Key: fmt.Sprint("key ", i)}); err != nil {
					t.Fatal(err)
				}
			}
			for _, b := range bs {
				if got := b.calls.Load(); got < 1 {
					t.Errorf("a backend of three got %d of 300 calls, want at least 1", got)
				}
			}
		})
	}
}

func TestRingHashKeepsKeys(t *testing.T) {
	_, eps := three(t)
	c := dial(t, `{"policy":"ring_hash"}`, eps...)
	for k := range 20 {
		var first string
		for range 5 {
			a := &loadaware.Attempt{Key: fmt.Sprint(k)}
			if err := c.call(t, a); err != nil {
				t.Fatal(err)
			}
			if first == "" {
				first = a.Endpoint()
			}
			if got := a.Endpoint(); got != first {
				t.Fatalf("key %d went to %s, then to %s", k, first, got)
			}
		}
	}
}

func TestRetryGoesElsewhere(t *testing.T) {
	_, eps := three(t)
	c := dial(t, `{}`, eps...)
	for range 50 {
		tried := &loadaware.Tried{}
		seen := map[string]bool{}
		for range 3 {
			a := &loadaware.Attempt{Tried: tried}
			if err := c.call(t, a); err != nil {
				t.Fatal(err)
			}
			if seen[a.Endpoint()] {
				t.Fatalf("%s was tried twice while others were left", a.Endpoint())
			}
			seen[a.Endpoint()] = true
		}
		// All three are tried: best effort.
		if err := c.call(t, &loadaware.Attempt{Tried: tried}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFailingEndpointIsEjected(t *testing.T) {
	bs, eps := three(t)
	bad := start(t, &backend{unary: func(context.Context) error { return status.Error(codes.Unavailable, "no") }}, "127.0.0.1:0")
	c := dial(t, `{}`, append(eps, ep(bad, loadaware.EndpointAttrs{}))...)
	failed := 0
	for range 1000 {
		if c.call(t, nil) != nil {
			failed++
		}
	}
	if failed > 10 {
		t.Errorf("%d of 1000 calls failed, want at most 10", failed)
	}
	for _, b := range bs {
		if b.calls.Load() == 0 {
			t.Error("a good backend got no calls")
		}
	}
	for _, s := range c.registry.Endpoints() {
		if s.Address == bad.addr && s.Health > 0.7 {
			t.Errorf("health of the failing endpoint is %v, want at most 0.7: %+v", s.Health, s)
		}
	}
}

func TestDrainGetsNoNewCalls(t *testing.T) {
	bs, eps := three(t)
	bs[0].stream = func(s testpb.TestService_FullDuplexCallServer) error {
		for {
			if _, err := s.Recv(); err != nil {
				return nil //nolint:nilerr // the client is done
			}
			if err := s.Send(&testpb.StreamingOutputCallResponse{}); err != nil {
				return err
			}
		}
	}
	c := dial(t, `{}`, eps[0])
	stream, err := c.FullDuplexCall(loadaware.WithAttempt(t.Context(), &loadaware.Attempt{Stream: true}))
	if err != nil {
		t.Fatal(err)
	}
	echo := func() {
		t.Helper()
		if err := stream.Send(&testpb.StreamingOutputCallRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	echo()
	c.resolver.UpdateState(c.state(ep(bs[0], loadaware.EndpointAttrs{Drain: true}), eps[1], eps[2]))
	c.until(t, "the others are ready", func(s []loadaware.EndpointStats) bool {
		for _, e := range s {
			if e.State != connectivity.Ready {
				return false
			}
		}
		return len(s) == 3
	})
	before := bs[0].calls.Load()
	for range 100 {
		if err := c.call(t, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := bs[0].calls.Load() - before; got != 0 {
		t.Errorf("the draining endpoint got %d new calls", got)
	}
	echo()
	// It vanishes altogether: the stream still lives.
	c.resolver.UpdateState(c.state(eps[1], eps[2]))
	echo()
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream did not end")
	}
}

func TestHistorySurvivesTheList(t *testing.T) {
	bs, eps := three(t)
	c := dial(t, `{}`, eps...)
	for range 30 {
		if err := c.call(t, nil); err != nil {
			t.Fatal(err)
		}
	}
	picks := func() uint64 {
		for _, s := range c.registry.Endpoints() {
			if s.Address == bs[0].addr {
				return s.Calls
			}
		}
		return 0
	}
	before := picks()
	if before == 0 {
		t.Fatalf("no picks yet: %+v", c.registry.Endpoints())
	}
	c.resolver.UpdateState(c.state(eps[1:]...))
	c.until(t, "it has vanished", func(s []loadaware.EndpointStats) bool { return len(s) == 3 && vanished(s, bs[0].addr) })
	c.resolver.UpdateState(c.state(eps...))
	if after := picks(); after < before {
		t.Errorf("%d picks known after the endpoint came back, %d before", after, before)
	}
}

func vanished(s []loadaware.EndpointStats, addr string) bool {
	for _, e := range s {
		if e.Address == addr {
			return e.Vanished > 0
		}
	}
	return false
}

func TestLimitSaturates(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 2)
	b := start(t, &backend{unary: func(context.Context) error { entered <- struct{}{}; <-release; return nil }}, "127.0.0.1:0")
	c := dial(t, `{"maxInFlight":2}`, ep(b, loadaware.EndpointAttrs{}))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := c.EmptyCall(t.Context(), &testpb.Empty{}); err != nil {
				t.Error(err)
			}
		})
		<-entered
	}
	var a loadaware.Attempt
	if err := c.call(t, &a); status.Code(err) != codes.ResourceExhausted || !a.Saturated() {
		t.Errorf("third call: %v, saturated %v, want RESOURCE_EXHAUSTED and true", err, a.Saturated())
	}
	close(release)
	wg.Wait()
	var again loadaware.Attempt
	go func() { <-entered }()
	if err := c.call(t, &again); err != nil || again.Saturated() {
		t.Errorf("call after release: %v, saturated %v", err, again.Saturated())
	}
}

func TestTrailerReportsAreRead(t *testing.T) {
	r := report.New(report.Config{Capacity: 8})
	hold, entered := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	b := start(t, &backend{unary: func(context.Context) error {
		if first.CompareAndSwap(false, true) {
			close(entered)
			<-hold
		}
		return nil
	}}, "127.0.0.1:0", grpc.ChainUnaryInterceptor(r.Unary), grpc.ChainStreamInterceptor(r.Stream))
	c := dial(t, `{}`, ep(b, loadaware.EndpointAttrs{}))
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.EmptyCall(t.Context(), &testpb.Empty{}) })
	<-entered
	if err := c.call(t, nil); err != nil {
		t.Fatal(err)
	}
	s := c.registry.Endpoints()[0]
	if s.InFlightReported != 1 || s.Utilization != 0.125 || s.Probation || s.Reported < 0 {
		t.Errorf("stats %+v, want 1 request in flight, utilization 1/8, no probation", s)
	}
	close(hold)
	wg.Wait()
}

// orcaServer reports at once and then on demand.
type orcaServer struct {
	orcaservice.UnimplementedOpenRcaServiceServer
	reports chan *v3orcapb.OrcaLoadReport
}

func (o *orcaServer) StreamCoreMetrics(_ *orcaservice.OrcaLoadReportRequest, s orcaservice.OpenRcaService_StreamCoreMetricsServer) error {
	for {
		select {
		case <-s.Context().Done():
			return nil
		case r := <-o.reports:
			if err := s.Send(r); err != nil {
				return err
			}
		}
	}
}

func TestOutOfBandReportsAreRead(t *testing.T) {
	o := &orcaServer{reports: make(chan *v3orcapb.OrcaLoadReport, 1)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	orcaservice.RegisterOpenRcaServiceServer(srv, o)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	defer wg.Wait()
	defer srv.Stop()
	c := dial(t, `{"oobPeriod":"100ms"}`, resolver.Endpoint{Addresses: []resolver.Address{{Addr: l.Addr().String()}}})
	o.reports <- &v3orcapb.OrcaLoadReport{CpuUtilization: 0.75, NamedMetrics: map[string]float64{"uptime_seconds": 1000}}
	c.until(t, "the report is seen", func(s []loadaware.EndpointStats) bool {
		return s[0].Utilization == 0.75 && s[0].Age > 999*time.Second && !s[0].Probation
	})
}

// busy makes a server report that others keep it busy.
func busy(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	b, err := proto.Marshal(&v3orcapb.OrcaLoadReport{ApplicationUtilization: 0.5, NamedMetrics: map[string]float64{"requests_in_flight": 20}})
	if err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs("endpoint-load-metrics-bin", string(b))); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func TestProbesAreHealthChecks(t *testing.T) {
	var eps []resolver.Endpoint
	for range 3 {
		eps = append(eps, ep(start(t, &backend{}, "127.0.0.1:0", grpc.ChainUnaryInterceptor(busy)), loadaware.EndpointAttrs{}))
	}
	c := dial(t, `{"probes":3}`, eps...)
	c.until(t, "a probe is answered", func(s []loadaware.EndpointStats) bool {
		if err := c.call(t, nil); err != nil {
			t.Fatal(err)
		}
		for _, e := range s {
			if e.Probes > 0 {
				return true
			}
		}
		return false
	})
}

// Probes come out of the budget of those who call, where they have one.
func TestProbesWithoutBudget(t *testing.T) {
	var eps []resolver.Endpoint
	for range 3 {
		eps = append(eps, ep(start(t, &backend{}, "127.0.0.1:0", grpc.ChainUnaryInterceptor(busy)), loadaware.EndpointAttrs{}))
	}
	c := dial(t, `{"probes":3}`, eps...)
	for range 300 {
		if err := c.call(t, &loadaware.Attempt{Budget: score.NewBudget(0)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range c.registry.Endpoints() {
		if e.Probes != 0 {
			t.Errorf("%s answered %d probes, want none sent", e.Address, e.Probes)
		}
	}
}

func TestServerThatDoesNotReportIsNotProbed(t *testing.T) {
	_, eps := three(t)
	c := dial(t, `{"probes":3}`, eps...)
	for range 200 {
		if err := c.call(t, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range c.registry.Endpoints() {
		if e.Probes != 0 {
			t.Errorf("%s answered %d probes, want none sent", e.Address, e.Probes)
		}
	}
}

func FuzzReport(f *testing.F) {
	good, err := proto.Marshal(&v3orcapb.OrcaLoadReport{CpuUtilization: 0.5, RpsFractional: 3, NamedMetrics: map[string]float64{
		"requests_in_flight": 2, "uptime_seconds": 9, "latency_seconds": 0.1,
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, in []byte) {
		var r v3orcapb.OrcaLoadReport
		if proto.Unmarshal(in, &r) != nil {
			return
		}
		fleet := score.NewFleet(score.Defaults())
		nodes := []*score.Node{fleet.NewNode(1), fleet.NewNode(1), fleet.NewNode(1)}
		for _, policy := range []score.Policy{score.Adaptive, score.WeightedRoundRobin} {
			table := fleet.NewTable(policy, nodes, []string{"a", "b", "c"}, 0)
			rnd := score.Rand{}
			for k := range 300 {
				now := time.Duration(k+1) * 100 * time.Millisecond
				nodes[k%2].Observe(now, loadaware.ReportOf(&r))
				if i := table.Choose(now, &rnd, &score.Pick{}); i < 0 || i > 2 {
					t.Fatalf("report %v: chose %d of 3", &r, i)
				}
			}
		}
		for _, n := range nodes {
			if s := n.Stats(time.Minute); math.IsNaN(s.Slowness) || math.IsNaN(s.Utilization) || math.IsInf(s.Utilization, 0) {
				t.Errorf("report %v: statistics %+v", &r, s)
			}
		}
	})
}

func TestBadConfig(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"policy":"best"}`, "policy: must be one of adaptive"},
		{`{"warmup":"-1s"}`, "warmup: must be at least 0s, is -1s"},
		{`{"warmup":90}`, `warmup: 90 is not a duration such as "90s"`},
		{`{"ejection":{"max":"soon"}}`, `ejection.max: time: invalid duration "soon"`},
		{`{"ejection":{"maxx":"1s"}}`, `ejection: json: unknown field "maxx"`},
		{`{"ejection":3}`, `ejection: 3 is no struct`},
		{`{"subset":"all"}`, `subset: "all" is no int`},
		{`{"hashBound":0.5,"maxInFlight":-1}`, "hashBound: must be at least 1, is 0.5"},
		{`{"ejection":{"maxPercent":101}}`, "ejection.maxPercent: must be from 0 to 100, is 101"},
		{`{"warmpu":"1s"}`, `unknown field "warmpu"`},
	} {
		_, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(fmt.Sprintf(`{"loadBalancingConfig":[{"adaptive":%s}]}`, c.in)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.in, err, c.want)
		}
	}
	js, err := loadaware.DefaultConfig().ServiceConfig()
	if err != nil {
		t.Fatal(err)
	}
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":`+string(js)+`}`))
	if err != nil {
		t.Fatalf("%s: %v", js, err)
	}
	cc.Close()
}

func FuzzConfig(f *testing.F) {
	f.Add(`{}`)
	f.Add(`{"warmup":"90s","ejection":{"base":"1s","max":"2s"}}`)
	f.Fuzz(func(t *testing.T, in string) {
		c := loadaware.DefaultConfig()
		if json.Unmarshal([]byte(in), &c) != nil || c.Validate() != nil {
			return
		}
		js, err := c.ServiceConfig()
		if err != nil {
			t.Fatalf("a valid config does not render: %v", err)
		}
		var back []map[string]loadaware.Config
		if err := json.Unmarshal(js, &back); err != nil || back[0]["adaptive"] != c {
			t.Errorf("%s came back as %+v, %v, want %+v", js, back, err, c)
		}
	})
}
