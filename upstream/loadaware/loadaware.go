// Package loadaware is the load balancing policy "adaptive" for grpc-go: it sends each call to the endpoint that will
// probably answer it first, judging by what is in flight from here, by what the servers report of their load, and by how
// calls to them went. How it judges is in package [transom/upstream/loadaware/score], the plumbing is here.
//
// # Use
// Import the package, for its name or blank, and select the policy by service config:
//
//	{"loadBalancingConfig": [{"adaptive": {}}]}
//
// [Config] documents the settings; Config.ServiceConfig renders them. The classic policies are chosen by the setting
// "policy" and share everything else: draining, ejection, limits, the set of tried endpoints, statistics.
//
// Resolvers describe endpoints by [SetEndpoint]: weight, zone, priority, draining. Who wants to see the endpoints puts a
// [Registry] into the resolver's state by [SetRegistry]. Each attempt of a call may carry an [Attempt] in its context
// (WithAttempt): it names the endpoints not to use again, the hash key, whether the call is a stream, and tells
// afterwards where the call went.
//
// Servers report by ORCA: in the trailer of each call, for which package report has an interceptor, or out of band. The
// named metrics requests_in_flight, uptime_seconds and latency_seconds are understood from any server.
//
// Client-side health checking (service config healthCheckConfig, and a blank import of google.golang.org/grpc/health)
// works as with grpc-go's own policies: an endpoint that is not serving is not picked.
//
// # Failing picks
// Where every endpoint is at its limit of calls in flight, a pick fails with RESOURCE_EXHAUSTED and Attempt.Saturated is
// true: queueing is the caller's.
//
// # Concurrency
// Picks are lock-free and allocate nothing. Statistics belong to an endpoint's addresses and outlive connections and
// address lists: an endpoint that disappears and returns within ten minutes is known again.
package loadaware

import (
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"transom/upstream/loadaware/score"
)

// Name is the name of the policy in service config.
const Name = "adaptive"

// balancer.Register may only run at init, and a policy that is not registered cannot be named in service config.
func init() { balancer.Register(builder{subsetSeed: rand.Uint64()}) }

// builder makes balancers. subsetSeed is what they choose subsets by if their config has no seed.
type builder struct{ subsetSeed uint64 }

func (builder) Name() string { return Name }

func (builder) ParseConfig(js json.RawMessage) (serviceconfig.LoadBalancingConfig, error) {
	return parseConfig(js)
}

func (bb builder) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	b := &lb{
		ClientConn: cc,
		subsetSeed: bb.subsetSeed,
		epoch:      time.Now().Add(-time.Second),
		target:     opts.Target.String(),
		endpoints:  resolver.NewEndpointMap[*endpoint](),
		fleets:     map[int]*score.Fleet{},
		probes:     newProbes(),
	}
	b.records.New = func() any {
		r := &record{b: b}
		r.done = r.finish
		return r
	}
	pf := balancer.Get(pickfirst.Name)
	build := func(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
		c := &child{ClientConn: cc, b: b}
		c.Balancer = pf.Build(c, opts)
		return c
	}
	b.shards = endpointsharding.NewBalancer(b, opts, build, endpointsharding.Options{})
	return b
}

// forgetAfter is how long the statistics of an endpoint that vanished are kept.
const forgetAfter = 10 * time.Minute

// lb is the balancer of one channel.
type lb struct {
	balancer.ClientConn // UpdateState is intercepted
	shards              balancer.Balancer
	epoch               time.Time // a second before the start, so that no time is zero
	target              string
	subsetSeed          uint64
	records             sync.Pool // of *record
	probes              *probes

	mu        sync.Mutex
	cfg       *Config
	endpoints *resolver.EndpointMap[*endpoint] // those listed, and those that vanished not long ago
	fleets    map[int]*score.Fleet             // by priority
	registry  *Registry
	closed    bool
}

// now is the time that the statistics go by. time.Since reads the monotonic clock only.
func (b *lb) now() time.Duration { return time.Since(b.epoch) }

func (b *lb) UpdateClientConnState(s balancer.ClientConnState) error {
	cfg, _ := s.BalancerConfig.(*Config)
	if cfg == nil {
		cfg = defaultConfig()
	}
	list := s.ResolverState.Endpoints
	if cfg.Subset > 0 {
		list = subset(list, cfg.Subset, cmp.Or(cfg.SubsetSeed, b.subsetSeed))
		s.ResolverState.Endpoints = list
	}
	now := b.now()
	b.mu.Lock()
	if r := registryOf(s.ResolverState); r != b.registry {
		b.registry.remove(b)
		b.registry = r
		r.add(b)
	}
	oobChanged := b.cfg != nil && b.cfg.OOBPeriod != cfg.OOBPeriod
	b.cfg = cfg
	for _, f := range b.fleets {
		f.SetParams(cfg.params())
	}
	for _, e := range b.endpoints.All() {
		if e.gone == 0 {
			e.gone = now
		}
	}
	typical := typicalWeights(list)
	for _, re := range list {
		e, ok := b.endpoints.Get(re)
		if !ok {
			e = newEndpoint(b, re)
			b.endpoints.Set(re, e)
		}
		e.gone = 0
		a := endpointAttrs(re)
		b.describeLocked(now, e, a, typical[a.Priority])
	}
	var old []resolver.Endpoint
	for re, e := range b.endpoints.All() {
		if e.gone != 0 && now-e.gone > forgetAfter {
			old = append(old, re)
		}
	}
	for _, re := range old {
		b.endpoints.Delete(re)
	}
	var relisten []*endpoint
	if oobChanged {
		relisten = b.endpoints.Values()
	}
	b.mu.Unlock()
	for _, e := range relisten {
		e.listen(cfg)
	}
	return b.shards.UpdateClientConnState(balancer.ClientConnState{
		ResolverState: pickfirst.EnableHealthListener(s.ResolverState),
	})
}

// typicalWeights returns the mean weight of the endpoints of each priority. A node's weight is relative to it: what counts
// as one call's worth of load must not depend on whether weights are written as 1 or as 100.
func typicalWeights(list []resolver.Endpoint) map[int]float64 {
	sum, n := map[int]float64{}, map[int]float64{}
	for _, re := range list {
		a := endpointAttrs(re)
		sum[a.Priority] += a.weight()
		n[a.Priority]++
	}
	for priority := range sum {
		sum[priority] /= n[priority]
	}
	return sum
}

// describeLocked applies what the resolver says of an endpoint of a priority whose endpoints have a typical weight. The
// caller holds b.mu.
func (b *lb) describeLocked(now time.Duration, e *endpoint, a EndpointAttrs, typical float64) {
	fresh := e.node == nil
	if fresh || e.attrs.Priority != a.Priority {
		f := b.fleets[a.Priority]
		if f == nil {
			f = score.NewFleet(b.cfg.params())
			b.fleets[a.Priority] = f
		}
		e.node = f.NewNode(now)
	}
	e.attrs = a
	e.node.SetWeight(a.weight() / typical)
	e.node.SetRemote(b.cfg.Zone != "" && a.Zone != "" && a.Zone != b.cfg.Zone)
	e.node.SetLimit(b.cfg.MaxInFlight)
}

// UpdateState makes a picker of the children that are ready. endpointsharding holds its lock, and calls it at every
// change of a child.
func (b *lb) UpdateState(s balancer.State) {
	children := endpointsharding.ChildStatesFromPicker(s.Picker)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.cfg == nil {
		return
	}
	defer func() {
		// Shown only once the picker knows it too.
		for _, c := range children {
			if cp, ok := c.State.Picker.(*childPicker); ok {
				cp.e.state.Store(uint32(c.State.ConnectivityState))
			}
		}
	}()
	listed := map[int]int{}
	ready := map[int][]target{}
	var draining []target
	for _, c := range children {
		cp, ok := c.State.Picker.(*childPicker)
		if !ok {
			continue // it has not said anything yet
		}
		e := cp.e
		if !e.attrs.Drain {
			listed[e.attrs.Priority]++
		}
		if c.State.ConnectivityState != connectivity.Ready {
			continue
		}
		t := target{endpoint: e, node: e.node, picker: cp.Picker}
		if e.attrs.Drain {
			draining = append(draining, t)
		} else {
			ready[e.attrs.Priority] = append(ready[e.attrs.Priority], t)
		}
	}
	p := newPicker(b, listed, ready)
	if p == nil && len(draining) > 0 {
		// Nothing else is ready: a server that is about to go still answers.
		p = newPicker(b, map[int]int{0: len(draining)}, map[int][]target{0: draining})
	}
	if p == nil {
		// endpointsharding's own picker waits, or fails with the connection error.
		b.ClientConn.UpdateState(s)
		return
	}
	b.ClientConn.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: p})
}

func (b *lb) ResolverError(err error) { b.shards.ResolverError(err) }

// UpdateSubConnState is deprecated; state comes through StateListener.
func (b *lb) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

func (b *lb) ExitIdle() { b.shards.ExitIdle() }

func (b *lb) Close() {
	b.mu.Lock()
	b.closed = true
	b.registry.remove(b)
	b.registry = nil
	all := b.endpoints.Values()
	b.mu.Unlock()
	for _, e := range all {
		e.disconnect(nil)
	}
	b.shards.Close()
	b.probes.close()
}

// child is the pick_first of one endpoint. It knows which endpoint it is, as endpointsharding does not tell.
type child struct {
	balancer.ClientConn
	balancer.Balancer
	b *lb
	e atomic.Pointer[endpoint]
}

func (c *child) UpdateClientConnState(s balancer.ClientConnState) error {
	if len(s.ResolverState.Endpoints) == 1 {
		c.b.mu.Lock()
		e, _ := c.b.endpoints.Get(s.ResolverState.Endpoints[0])
		c.b.mu.Unlock()
		c.e.Store(e)
	}
	return c.Balancer.UpdateClientConnState(s)
}

// childPicker is pick_first's picker with the endpoint it is of, so that a change of one child does not look up them all.
type childPicker struct {
	balancer.Picker
	e *endpoint
}

func (c *child) UpdateState(s balancer.State) {
	if e := c.e.Load(); e != nil {
		switch s.ConnectivityState {
		case connectivity.Ready:
			e.works()
		case connectivity.TransientFailure:
			if _, err := s.Picker.Pick(balancer.PickInfo{}); err != nil { // as pick_first's fails, with what it failed with
				e.fail(err)
			}
		}
		s.Picker = &childPicker{s.Picker, e}
	}
	c.ClientConn.UpdateState(s)
}

func (c *child) ResolverError(err error) { c.Balancer.ResolverError(err) }

func (c *child) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	var sc balancer.SubConn
	listener := opts.StateListener
	opts.StateListener = func(s balancer.SubConnState) {
		if e := c.e.Load(); e != nil {
			if s.ConnectivityState == connectivity.Ready {
				e.connect(sc)
			} else {
				e.disconnect(sc)
			}
		}
		listener(s)
	}
	// The listener runs only after Connect, when sc is set.
	sc, err := c.ClientConn.NewSubConn(addrs, opts) //nolint:staticcheck // for one address each, as it will be
	return sc, err
}
