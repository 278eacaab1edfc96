// Package lbhost hosts grpc-go's resolver and balancer plugins on connections that are not grpc-go's. A [Channel] is what
// grpc.ClientConn is to them: it resolves a target, lets a balancing policy open connections, and has each call choose one
// by the policy's picker. Connections come from [Config.Dial]; whoever makes a call asks [Channel.Pick], makes it on the
// connection and tells the end by [Pick.End]. Generated clients go by [Channel.Stub].
//
// # What plugins find
// All of balancer.ClientConn and balancer.SubConn, with grpc-go's semantics: serialized calls into the policy, backoff by
// connection-backoff.md, health listeners by grpc.health.v1, producers, deprecated UpdateAddresses. Not here: service config
// from resolvers and so a change of the policy, idle mode, channelz (a policy finds no parent), metrics (they are dropped),
// and the xds policies and resolver, whose parts talk to grpc-go by ways that are closed to others.
//
// grpc-go keeps others from implementing the two interfaces, so that it may add methods: they must be embedded. Here the
// embedded values are nil, which is right as long as every method is overridden, and TestEveryMethodIsOurs says when one is
// not.
//
// # Concurrency
// Everything may be called by any number of goroutines. A pick takes no lock unless it has to wait.
package lbhost

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"

	"transom/upstream/h2client"
)

// Conn is a connection to one endpoint: an [*h2client.Conn], or what embeds one.
type Conn interface {
	Unary(ctx context.Context, method string, md metadata.MD, req h2client.Message, reply *h2client.Reply) error
	NewStream(ctx context.Context, method string, md metadata.MD) (*h2client.Stream, error)
	RemoteAddr() net.Addr
	// MaxStreams is how many calls the peer takes at a time.
	MaxStreams() uint32
	// Drain takes no further calls and closes the connection when the last one has ended. It does not wait.
	Drain()
	// Close ends all calls and waits until nothing of the connection is left. It may be called more than once.
	Close()
	// Draining is closed when the connection takes no further calls, whatever the cause; Done when it is gone.
	Draining() <-chan struct{}
	Done() <-chan struct{}
}

// Config describes a Channel.
type Config struct {
	// Target is what Resolver is asked for.
	Target   resolver.Target
	Resolver resolver.Builder
	// Balancer is the policy, BalancerConfig its settings as its ParseConfig has them; see [ParseBalancer].
	Balancer       balancer.Builder
	BalancerConfig serviceconfig.LoadBalancingConfig
	// Authority is told to resolver and policy.
	Authority string
	// Credentials are told to resolver and policy, which may look at them. Dial uses its own.
	Credentials credentials.TransportCredentials
	// Dial opens a connection, handshakes included, unless ctx ends first.
	Dial func(ctx context.Context, addr resolver.Address) (Conn, error)
	// ConnectTimeout limits one attempt to connect; after many failures it grows with the backoff.
	ConnectTimeout time.Duration
	// Backoff is the pause after a failed attempt (connection-backoff.md).
	Backoff backoff.Config
	// MaxConns is how many connections a SubConn may have. It gets further ones, one at a time, as its calls come near what
	// the peer takes; calls beyond that wait for the next connection. At least 1.
	MaxConns int
	// HealthService names the service whose health is watched on each connection if the policy asks for it; "" is the whole
	// server, nil is not to watch.
	HealthService *string
	Log           *slog.Logger
}

// ErrClosed is why a closed Channel has no connections: Unavailable.
var ErrClosed = status.Error(codes.Unavailable, "the channel is closed")

// generation is a picker and what tells those who wait that there is a newer one.
type generation struct {
	picker   balancer.Picker // nil until the policy has one
	replaced chan struct{}   // closed when there is
}

// Channel is a target with its connections.
type Channel struct {
	cfg Config
	// gen is never nil until the channel is closed.
	gen   atomic.Pointer[generation]
	calls serializer // into the balancer

	// balancer is used by functions of calls only; nil until the resolver has had success.
	balancer balancer.Balancer

	ctx    context.Context // ends with the Channel: what its goroutines go by
	cancel context.CancelFunc
	wg     sync.WaitGroup // of connections, of what opens them and of health watches

	mu       sync.Mutex
	resolver resolver.Resolver // nil until it is built, and when closed
	again    bool              // ResolveNow was called before there was a resolver
	closed   bool
	subConns map[*subConn]struct{} // not shut down yet

	state   atomic.Uint32 // connectivity.State
	stateMu sync.Mutex
	changed chan struct{} // closed and replaced as the state changes
}

// New makes a Channel and starts to resolve its target. An error is the resolver's. The caller must Close it.
func New(cfg Config) (*Channel, error) {
	c := &Channel{cfg: cfg, changed: make(chan struct{}), subConns: map[*subConn]struct{}{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.gen.Store(&generation{replaced: make(chan struct{})})
	c.state.Store(uint32(connectivity.Idle))
	r, err := cfg.Resolver.Build(cfg.Target, resolverConn{c}, resolver.BuildOptions{
		DisableServiceConfig: true, DialCreds: cfg.Credentials, Authority: cfg.Authority,
	})
	if err != nil {
		c.Close()
		return nil, err
	}
	c.mu.Lock()
	c.resolver = r
	again := c.again
	c.mu.Unlock()
	if again {
		r.ResolveNow(resolver.ResolveNowOptions{})
	}
	return c, nil
}

// Close ends the resolver, the policy and all connections with what is open on them, and waits for them. Only the first
// call does anything.
func (c *Channel) Close() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	r := c.resolver
	c.resolver = nil
	c.mu.Unlock()
	if r != nil {
		r.Close()
	}
	close(c.gen.Swap(nil).replaced)
	c.setState(connectivity.Shutdown)
	c.calls.close(func() {
		if c.balancer != nil {
			c.balancer.Close()
		}
		for _, sc := range c.allSubConns() { // a policy may leave them to the channel
			sc.Shutdown()
		}
	})
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.wg.Wait()
}

// start runs f on a goroutine that Close waits for, unless the Channel has ended. f must end soon after c.ctx.
func (c *Channel) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	c.wg.Go(f)
	return true
}

func (c *Channel) allSubConns() []*subConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.subConns))
}

// State is the policy's: Ready if at least one endpoint is.
func (c *Channel) State() connectivity.State { return connectivity.State(c.state.Load()) }

// WaitForStateChange waits until the state is not s, and reports whether it is, before ctx ends.
func (c *Channel) WaitForStateChange(ctx context.Context, s connectivity.State) bool {
	for {
		c.stateMu.Lock()
		changed := c.changed
		c.stateMu.Unlock()
		if c.State() != s {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (c *Channel) setState(s connectivity.State) {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	if old := c.State(); old == s || old == connectivity.Shutdown {
		return
	}
	c.state.Store(uint32(s))
	close(c.changed)
	c.changed = make(chan struct{})
}

// resolveNow asks for another resolution.
func (c *Channel) resolveNow(o resolver.ResolveNowOptions) {
	c.mu.Lock()
	r := c.resolver
	if r == nil {
		c.again = true
	}
	c.mu.Unlock()
	if r != nil {
		r.ResolveNow(o)
	}
}

// resolverConn is the Channel as its resolver sees it.
type resolverConn struct{ c *Channel }

// UpdateState hands the state to the policy, waits for it and returns what it says.
func (r resolverConn) UpdateState(s resolver.State) error {
	if s.Endpoints == nil {
		s.Endpoints = endpointsOf(s.Addresses)
	}
	s.ServiceConfig = nil
	done := make(chan error, 1)
	if !r.c.calls.schedule(func() {
		c := r.c
		if c.balancer == nil {
			c.balancer = c.cfg.Balancer.Build(&clientConn{channel: c}, balancer.BuildOptions{
				DialCreds: c.cfg.Credentials, Authority: c.cfg.Authority, Target: c.cfg.Target,
			})
		}
		done <- c.balancer.UpdateClientConnState(balancer.ClientConnState{ResolverState: s, BalancerConfig: c.cfg.BalancerConfig})
	}) {
		return ErrClosed
	}
	return <-done
}

// ReportError has calls fail with err, unless there are endpoints from before.
func (r resolverConn) ReportError(err error) {
	r.c.calls.schedule(func() {
		if r.c.balancer != nil {
			r.c.balancer.ResolverError(err)
			return
		}
		(&clientConn{channel: r.c}).UpdateState(balancer.State{
			ConnectivityState: connectivity.TransientFailure, Picker: base.NewErrPicker(err),
		})
	})
}

// NewAddress is deprecated.
func (r resolverConn) NewAddress(addrs []resolver.Address) {
	_ = r.UpdateState(resolver.State{Addresses: addrs}) // the policy tells the calls
}

func (r resolverConn) ParseServiceConfig(string) *serviceconfig.ParseResult {
	return &serviceconfig.ParseResult{Err: errors.New("service config from a resolver is not taken")}
}

// endpointsOf makes an endpoint of each address, as grpc-go does for resolvers that know addresses only.
func endpointsOf(addrs []resolver.Address) []resolver.Endpoint {
	eps := make([]resolver.Endpoint, len(addrs))
	for i, a := range addrs {
		eps[i].Attributes = a.BalancerAttributes //nolint:staticcheck // deprecated, but such resolvers set it
		a.BalancerAttributes = nil               //nolint:staticcheck // as above
		eps[i].Addresses = []resolver.Address{a}
	}
	return eps
}
