package loadaware

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/experimental/balancer/weight"
	"google.golang.org/grpc/resolver"

	"transom/upstream/loadaware/score"
)

// EndpointAttrs is what a resolver knows of an endpoint. A change of it does not touch the connection.
type EndpointAttrs struct {
	// Weight is the endpoint's size relative to the others; 0 counts as 1.
	Weight float64
	// Zone is where it is; "" if unknown.
	Zone string
	// Priority is 0 for endpoints of first choice; those of a higher number serve when too few of the lower are ready.
	Priority int
	// Drain says that the endpoint gets no new calls while others are ready; calls under way are not touched.
	Drain bool
}

// Equal implements the comparison that attributes need.
func (a EndpointAttrs) Equal(o any) bool {
	b, ok := o.(EndpointAttrs)
	return ok && a == b
}

// weight is Weight, 1 if it is not given.
func (a EndpointAttrs) weight() float64 {
	if !(a.Weight > 0) {
		return 1
	}
	return a.Weight
}

type endpointKey struct{}

// SetEndpoint returns a copy of e that carries a.
func SetEndpoint(e resolver.Endpoint, a EndpointAttrs) resolver.Endpoint {
	e.Attributes = e.Attributes.WithValue(endpointKey{}, a)
	return e
}

// endpointAttrs reads them back. Endpoints that carry only grpc-go's shared weight attribute have that weight.
func endpointAttrs(e resolver.Endpoint) EndpointAttrs {
	a, ok := e.Attributes.Value(endpointKey{}).(EndpointAttrs)
	if !ok {
		a.Weight = float64(weight.FromEndpoint(e).Weight)
	}
	return a
}

type registryKey struct{}

// SetRegistry returns a copy of s that makes the balancer show its endpoints in r.
func SetRegistry(s resolver.State, r *Registry) resolver.State {
	s.Attributes = s.Attributes.WithValue(registryKey{}, r)
	return s
}

func registryOf(s resolver.State) *Registry {
	r, _ := s.Attributes.Value(registryKey{}).(*Registry)
	return r
}

// Registry knows the balancers that were given it, one per channel. The zero value is empty. It may be used
// concurrently.
type Registry struct {
	// Log hears why an endpoint cannot be used, once for each cause until it can; nil is not to say. It is set before use.
	Log *slog.Logger

	mu  sync.Mutex
	lbs map[*lb]struct{}
}

func (r *Registry) add(b *lb) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lbs == nil {
		r.lbs = map[*lb]struct{}{}
	}
	r.lbs[b] = struct{}{}
}

func (r *Registry) remove(b *lb) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.lbs, b)
}

// EndpointStats is a snapshot of one endpoint for people to look at.
type EndpointStats struct {
	// Target is the channel's target, Address the endpoint's first address.
	Target, Address string
	EndpointAttrs
	State connectivity.State
	// Failure is why the endpoint cannot be used: the last attempt to connect, or its health. Empty if nothing is known to be wrong.
	Failure string
	// Listed is how long ago the endpoint vanished from the resolver's list; 0 while it is listed.
	Vanished time.Duration
	// Probes counts the answered ones.
	Probes uint64
	score.Stats
}

// Endpoints takes a snapshot of all endpoints, by target and address.
func (r *Registry) Endpoints() []EndpointStats {
	r.mu.Lock()
	lbs := make([]*lb, 0, len(r.lbs))
	for b := range r.lbs {
		lbs = append(lbs, b)
	}
	r.mu.Unlock()
	var out []EndpointStats
	for _, b := range lbs {
		now := b.now()
		b.mu.Lock()
		for _, e := range b.endpoints.All() {
			s := EndpointStats{
				Target: b.target, Address: e.addr, EndpointAttrs: e.attrs, State: connectivity.State(e.state.Load()),
				Probes: e.probesOK.Load(), Stats: e.node.Stats(now),
			}
			e.mu.Lock()
			s.Failure = e.failure
			e.mu.Unlock()
			if e.gone != 0 {
				s.Vanished, s.State = now-e.gone, connectivity.Shutdown
			}
			out = append(out, s)
		}
		b.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b EndpointStats) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Address, b.Address))
	})
	return out
}
