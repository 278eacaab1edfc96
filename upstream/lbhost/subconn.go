package lbhost

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
)

// clientConn is the Channel as its policy sees it.
type clientConn struct {
	balancer.ClientConn // nil, see the package's documentation
	channel             *Channel
}

func (cc *clientConn) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	if len(addrs) == 0 {
		return nil, errors.New("a connection needs an address")
	}
	sc := &subConn{
		channel: cc.channel, listener: opts.StateListener, addrs: slices.Clone(addrs),
		state: connectivity.Idle, producers: map[balancer.ProducerBuilder]*producer{}, health: &health{},
	}
	sc.ctx, sc.cancel = context.WithCancel(cc.channel.ctx)
	sc.stub = stub{sc.opener}
	cc.channel.mu.Lock()
	defer cc.channel.mu.Unlock()
	cc.channel.subConns[sc] = struct{}{}
	return sc, nil
}

// RemoveSubConn is deprecated.
func (cc *clientConn) RemoveSubConn(sc balancer.SubConn) { sc.Shutdown() }

// UpdateAddresses is deprecated.
func (cc *clientConn) UpdateAddresses(sc balancer.SubConn, addrs []resolver.Address) {
	sc.UpdateAddresses(addrs) //nolint:staticcheck // deprecated, but some policies still call it
}

func (cc *clientConn) UpdateState(s balancer.State) {
	c := cc.channel
	next := &generation{picker: s.Picker, replaced: make(chan struct{})}
	for {
		old := c.gen.Load()
		if old == nil {
			return // closed
		}
		if c.gen.CompareAndSwap(old, next) {
			close(old.replaced)
			break
		}
	}
	c.setState(s.ConnectivityState)
}

func (cc *clientConn) ResolveNow(o resolver.ResolveNowOptions) { cc.channel.resolveNow(o) }
func (cc *clientConn) Target() string                          { return cc.channel.cfg.Target.String() }
func (cc *clientConn) MetricsRecorder() stats.MetricsRecorder  { return noMetrics{} }

type noMetrics struct {
	stats.UnimplementedMetricsRecorder
}

// subConn is one endpoint's connections. It is Ready while there is at least one.
type subConn struct {
	balancer.SubConn // nil, see the package's documentation
	channel          *Channel
	listener         func(balancer.SubConnState)
	stub             grpc.ClientConnInterface // for calls on this subConn

	// conns are those that take streams; replaced, not changed, under mu. nil or empty: not Ready.
	conns atomic.Pointer[[]*held]

	mu      sync.Mutex
	addrs   []resolver.Address
	current resolver.Address // the one connected to
	state   connectivity.State
	failed  int           // attempts since the last that succeeded
	growing chan struct{} // closed when the other connection that is being opened is there; nil if none is
	stunted time.Time     // when the last attempt to open another failed
	// ctx ends when what is being opened is of no use any more: with the subConn, or as its addresses change.
	ctx    context.Context
	cancel context.CancelFunc

	// producersMu guards producers.
	producersMu sync.Mutex
	producers   map[balancer.ProducerBuilder]*producer

	// healthMu guards health, which is replaced when its listener is to hear no more.
	healthMu sync.Mutex
	health   *health
}

// held is a connection with the calls that picks have given it.
type held struct {
	Conn
	calls atomic.Int64
}

// growPause is the time after a failed attempt to open another connection in which there is no further.
const growPause = time.Second

// pick counts a call to the connection with the fewest. If it is half full another connection is opened; if it is full
// the call waits for that one, so that it does not wait behind long calls where it need not. errGone: there is none.
func (sc *subConn) pick(ctx context.Context) (*held, error) {
	for {
		list := sc.conns.Load()
		if list == nil {
			return nil, errGone
		}
		var best *held
		var least int64
		for _, h := range *list {
			select {
			case <-h.Draining():
				continue // as the policy is about to hear
			default:
			}
			if n := h.calls.Load(); best == nil || n < least {
				best, least = h, n
			}
		}
		if best == nil {
			return nil, errGone
		}
		if limit := int64(best.MaxStreams()); least >= limit/2 && len(*list) < sc.channel.cfg.MaxConns {
			grown, ok := sc.grow(list)
			if !ok {
				continue
			}
			if grown != nil && least >= limit {
				select {
				case <-grown:
					continue
				case <-ctx.Done():
					return nil, errFull
				}
			}
		}
		// Calls that come at once must not all be the least one's next.
		if best.calls.CompareAndSwap(least, least+1) {
			return best, nil
		}
	}
}

// grow opens another connection to those of list if none is being opened. The channel is closed when one has come or
// failed to; it is nil if that need not be waited for. ok is false if the connections are not list any more.
func (sc *subConn) grow(list *[]*held) (grown <-chan struct{}, ok bool) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.conns.Load() != list {
		return nil, false
	}
	if sc.growing != nil {
		return sc.growing, true
	}
	if time.Since(sc.stunted) < growPause {
		return nil, true
	}
	came := make(chan struct{})
	ctx, addr := sc.ctx, sc.current
	if !sc.channel.start(func() {
		dial, cancel := context.WithTimeout(ctx, sc.channel.cfg.ConnectTimeout)
		defer cancel()
		err := sc.open(ctx, dial, addr)
		sc.mu.Lock()
		defer sc.mu.Unlock()
		if err != nil {
			sc.stunted = time.Now()
		}
		sc.growing = nil
		close(came)
	}) {
		return nil, true
	}
	sc.growing = came
	return came, true
}

// Connect starts to connect if the subConn is Idle.
func (sc *subConn) Connect() {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.state != connectivity.Idle || sc.ctx.Err() != nil || len(sc.addrs) == 0 {
		return
	}
	sc.start()
}

// start begins an attempt to connect. mu is held.
func (sc *subConn) start() {
	sc.setState(connectivity.Connecting, nil)
	ctx, addrs, failed := sc.ctx, sc.addrs, sc.failed
	sc.channel.start(func() { sc.attempt(ctx, addrs, failed) })
}

// attempt tries the addresses in turn. If all fail it waits as long as the backoff says.
func (sc *subConn) attempt(ctx context.Context, addrs []resolver.Address, failed int) {
	wait := backoffOf(sc.channel.cfg.Backoff, failed)
	dial, cancel := context.WithTimeout(ctx, max(sc.channel.cfg.ConnectTimeout, wait))
	var first error
	for _, addr := range addrs {
		err := sc.open(ctx, dial, addr)
		if err == nil || ctx.Err() != nil {
			cancel()
			return
		}
		if first == nil {
			first = err
		}
	}
	cancel()
	sc.channel.resolveNow(resolver.ResolveNowOptions{})
	if !sc.become(ctx, connectivity.TransientFailure, first) {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	sc.mu.Lock()
	sc.failed = failed + 1
	sc.mu.Unlock()
	sc.become(ctx, connectivity.Idle, first)
}

// backoffOf is how long to wait after an attempt that failed attempts precede.
func backoffOf(b backoff.Config, failed int) time.Duration {
	d := min(float64(b.BaseDelay)*math.Pow(b.Multiplier, float64(failed)), float64(b.MaxDelay))
	return time.Duration(d * (1 + b.Jitter*(2*rand.Float64()-1)))
}

// become changes the state unless ctx has ended, and reports whether it has.
func (sc *subConn) become(ctx context.Context, s connectivity.State, err error) bool {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	sc.setState(s, err)
	return true
}

// open adds a connection to addr until dial ends; ctx is the subConn's at the time. The first makes it Ready.
func (sc *subConn) open(ctx, dial context.Context, addr resolver.Address) error {
	c, err := sc.channel.cfg.Dial(dial, addr)
	if err != nil {
		return err
	}
	h := &held{Conn: c}
	if !sc.add(ctx, h, addr) {
		c.Drain()
	}
	sc.channel.wg.Go(func() { sc.hold(h) }) // this is one of the Channel's goroutines, so it has not been waited for
	return nil
}

// hold follows a connection to its end.
func (sc *subConn) hold(c *held) {
	select {
	case <-c.Draining():
		sc.lost(c)
	case <-sc.channel.ctx.Done():
	}
	select {
	case <-c.Done():
	case <-sc.channel.ctx.Done():
	}
	c.Close()
}

// add takes a new connection in, unless ctx has ended.
func (sc *subConn) add(ctx context.Context, c *held, addr resolver.Address) bool {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	var list []*held
	if old := sc.conns.Load(); old != nil {
		list = append(list, *old...)
	}
	list = append(list, c)
	sc.conns.Store(&list)
	sc.current, sc.failed = addr, 0
	sc.setState(connectivity.Ready, nil)
	return true
}

// lost is called when a connection takes no further streams. If it was the last the subConn is Idle.
func (sc *subConn) lost(c *held) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	old := sc.conns.Load()
	if old == nil || !slices.Contains(*old, c) {
		return // taken out before: by Shutdown or a change of addresses
	}
	list := slices.DeleteFunc(slices.Clone(*old), func(o *held) bool { return o == c })
	sc.conns.Store(&list)
	if len(list) == 0 && sc.ctx.Err() == nil {
		sc.channel.resolveNow(resolver.ResolveNowOptions{})
		sc.setState(connectivity.Idle, nil)
	}
}

// take takes all connections out. mu is held; the caller drains them when it no longer is.
func (sc *subConn) take() []*held {
	if old := sc.conns.Swap(nil); old != nil {
		return *old
	}
	return nil
}

func drain(conns []*held) {
	for _, c := range conns {
		c.Drain()
	}
}

// setState changes the state and tells the policy. mu is held.
func (sc *subConn) setState(s connectivity.State, err error) {
	if sc.state == s {
		return
	}
	sc.state = s
	sc.channel.calls.schedule(func() {
		// Producers and health listeners are for the state before.
		sc.closeProducers()
		sc.resetHealth(s)
		if sc.listener != nil {
			sc.listener(balancer.SubConnState{ConnectivityState: s, ConnectionError: err})
		}
	})
}

// Shutdown ends the subConn. Calls on its connections go on.
func (sc *subConn) Shutdown() {
	sc.closeProducers()
	sc.mu.Lock()
	sc.cancel()
	conns := sc.take()
	sc.setState(connectivity.Shutdown, nil)
	sc.mu.Unlock()
	drain(conns)
	sc.channel.mu.Lock()
	defer sc.channel.mu.Unlock()
	delete(sc.channel.subConns, sc)
}

// UpdateAddresses is deprecated. A connection to an address that remains is kept; otherwise another is opened.
func (sc *subConn) UpdateAddresses(addrs []resolver.Address) {
	same := func(a, b resolver.Address) bool {
		return a.Addr == b.Addr && a.ServerName == b.ServerName && a.Attributes.Equal(b.Attributes)
	}
	sc.mu.Lock()
	if slices.EqualFunc(sc.addrs, addrs, same) {
		sc.mu.Unlock()
		return
	}
	sc.addrs = slices.Clone(addrs)
	var old []*held
	keep := sc.state == connectivity.Ready && slices.ContainsFunc(addrs, func(a resolver.Address) bool { return same(a, sc.current) })
	if !keep && (sc.state == connectivity.Connecting || sc.state == connectivity.Ready) {
		sc.cancel()
		sc.ctx, sc.cancel = context.WithCancel(sc.channel.ctx)
		old = sc.take()
		if len(addrs) == 0 {
			sc.setState(connectivity.Idle, nil)
		} else {
			sc.start()
		}
	}
	sc.mu.Unlock()
	drain(old)
}

// opener is for calls on this subConn only, which no policy counts.
func (sc *subConn) opener(ctx context.Context, _ string, _ bool) (Pick, error) {
	h, err := sc.pick(ctx)
	if err != nil {
		return Pick{}, status.Error(codes.Unavailable, err.Error())
	}
	return Pick{Conn: h.Conn, held: h}, nil
}

// producer is one with those who use it.
type producer struct {
	balancer.Producer
	users int
	close func()
}

// GetOrBuildProducer returns the builder's producer on this subConn and how to give it back.
func (sc *subConn) GetOrBuildProducer(b balancer.ProducerBuilder) (balancer.Producer, func()) {
	sc.producersMu.Lock()
	defer sc.producersMu.Unlock()
	p := sc.producers[b]
	if p == nil {
		made, end := b.Build(sc.stub)
		p = &producer{Producer: made, close: end}
		sc.producers[b] = p
	}
	p.users++
	return p.Producer, sync.OnceFunc(func() {
		sc.producersMu.Lock()
		p.users--
		last := p.users == 0 // never, if closeProducers was first
		if last {
			delete(sc.producers, b)
		}
		sc.producersMu.Unlock()
		if last {
			p.close()
		}
	})
}

// closeProducers ends all producers, whoever uses them.
func (sc *subConn) closeProducers() {
	sc.producersMu.Lock()
	defer sc.producersMu.Unlock()
	for b, p := range sc.producers {
		p.users = 0
		p.close()
		delete(sc.producers, b)
	}
}
