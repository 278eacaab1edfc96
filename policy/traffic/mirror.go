package traffic

import (
	"context"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// maxAhead is how many bytes of a client's stream may wait for a slow mirror before the mirrored call is given up.
const maxAhead = 1 << 20

// mirroredHeader marks copies, so that backends can tell them from calls. Clients cannot send it.
const mirroredHeader = "x-transom-mirrored"

// Mirrors runs the copies of calls, and counts them by the cluster that they go to, over all configurations. The zero value
// is not usable; see NewMirrors.
type Mirrors struct {
	ctx  context.Context //nolint:containedctx // of the copies, which are the Mirrors' own
	stop context.CancelFunc

	mu     sync.Mutex // guards what follows
	byName map[string]*mirrored
	closed bool
	wg     sync.WaitGroup
}

// mirrored counts the copies that go to one cluster.
type mirrored struct{ inFlight, ok, failed, dropped atomic.Int64 }

// MirrorCounts are the copies that were sent to a cluster, or were to be.
type MirrorCounts struct {
	Cluster string
	// InFlight are under way. OK ended well, Failed otherwise: with an error, too late, or given up because the client's
	// messages came faster than the cluster took them. Dropped were never sent, since there were too many already.
	InFlight, OK, Failed, Dropped int64
}

// NewMirrors must be closed if calls are mirrored.
func NewMirrors() *Mirrors {
	m := &Mirrors{byName: map[string]*mirrored{}}
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m
}

// Close ends all copies and waits for them. Later ones are dropped.
func (m *Mirrors) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop()
	m.wg.Wait()
}

// Counts are by cluster, sorted by name; a cluster is there from when a configuration first mirrors to it.
func (m *Mirrors) Counts() []MirrorCounts {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []MirrorCounts
	for _, name := range slices.Sorted(maps.Keys(m.byName)) {
		c := m.byName[name]
		list = append(list, MirrorCounts{name, c.inFlight.Load(), c.ok.Load(), c.failed.Load(), c.dropped.Load()})
	}
	return list
}

// Mirror says which calls are copied, and where to.
type Mirror struct {
	// Cluster is the name that copies are counted by.
	Cluster string
	// Share is the part of calls that are copied, 0 … 1, at random.
	Share float64
	// MaxConcurrent is how many copies may be under way to the cluster, whatever method they are of; of further calls none is
	// made.
	MaxConcurrent int64
	// Timeout bounds a copy, streams included.
	Timeout time.Duration
	To      rpc.Handler
	// Acquire keeps what To needs until Release, since a copy may outlive its call. It is called during the call; if it
	// reports false no copy is made.
	Acquire func() bool
	Release func()
}

// Middleware copies calls as cfg says; nil if it says none. A copy has the call's messages, metadata, peer and principal,
// and a deadline of its own. Its answers are dropped. The call itself never waits for its copy, nor fails with it. The copy
// of a call with one request starts when that has come, that of a client's stream at once; it ends with the stream if that is
// broken off.
func (m *Mirrors) Middleware(cfg Mirror) rpc.Middleware {
	if cfg.Share <= 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	to := m.byName[cfg.Cluster]
	if to == nil {
		to = &mirrored{}
		m.byName[cfg.Cluster] = to
	}
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			if !chosen(cfg.Share) {
				return next(ctx, call)
			}
			if to.inFlight.Add(1) > cfg.MaxConcurrent {
				to.inFlight.Add(-1)
				to.dropped.Add(1)
				return next(ctx, call)
			}
			c := &mirroring{mirrors: m, cfg: &cfg, counts: to, copy: rpc.Call{
				Method: call.Method, Header: maps.Clone(call.Header), Peer: call.Peer, Principal: call.Principal,
				Info: &rpc.Info{Protocol: rpc.ProtocolLocal, Start: time.Now()},
			}}
			c.copy.SetHeader(mirroredHeader, "true")
			if call.Method.ClientStreams {
				c.start()
			}
			call.Stream = &tap{call.Stream, c}
			defer c.end()
			return next(ctx, call)
		}
	}
}

// mirroring is one call's copy, and the way from one to the other.
type mirroring struct {
	mirrors *Mirrors
	cfg     *Mirror
	counts  *mirrored
	copy    rpc.Call

	mu      sync.Mutex // guards what follows
	queue   []rpc.Message
	bytes   int
	half    bool // the client has half-closed
	over    bool // nothing more is wanted
	started bool
	cancel  context.CancelFunc
	ready   chan struct{} // has a token after every change
}

// start sends the copy on its way, or drops it.
func (c *mirroring) start() {
	m := c.mirrors
	c.started = true
	m.mu.Lock()
	if m.closed || !c.cfg.Acquire() {
		m.mu.Unlock()
		c.over = true
		c.counts.inFlight.Add(-1)
		c.counts.dropped.Add(1)
		return
	}
	m.wg.Add(1)
	m.mu.Unlock()
	var ctx context.Context
	ctx, c.cancel = context.WithTimeout(m.ctx, c.cfg.Timeout)
	c.ready = make(chan struct{}, 1)
	c.copy.Stream = copied{c}
	go func() {
		defer m.wg.Done()
		defer c.cfg.Release()
		defer c.counts.inFlight.Add(-1)
		defer c.cancel()
		if c.run(ctx) == nil {
			c.counts.ok.Add(1)
		} else {
			c.counts.failed.Add(1)
		}
		c.mu.Lock()
		c.over, c.queue = true, nil
		c.mu.Unlock()
	}()
}

// run makes the copy of the call. A panic ends it, and not the process.
func (c *mirroring) run(ctx context.Context) (err error) {
	defer rpc.Recovered(&err)
	return c.cfg.To(ctx, &c.copy)
}

// add hands the copy of a message on. It never waits: a copy that is too far behind is given up.
func (c *mirroring) add(m rpc.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if c.bytes += m.Len(); c.bytes > maxAhead && len(c.queue) > 0 {
		c.over, c.queue = true, nil
		if c.cancel != nil { // else the client sends more than the one request that is waited for
			c.cancel()
		}
		return
	}
	c.queue = append(c.queue, rpc.NewMessage(slices.Clone(m.Bytes())))
	c.wake()
}

// close passes the client's half-close on. A call with one request starts its copy now.
func (c *mirroring) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.half {
		return
	}
	c.half = true
	switch {
	case c.started:
		c.wake()
	case len(c.queue) == 1:
		c.start()
	}
}

// wake tells the copy that there is something. mu is held.
func (c *mirroring) wake() {
	if c.ready == nil { // not started
		return
	}
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// end is the end of the call: a copy that was never started is not made, and one of a stream that was broken off ends.
func (c *mirroring) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.started:
		c.over, c.queue = true, nil
		c.counts.inFlight.Add(-1)
	case !c.half && c.cancel != nil:
		c.cancel()
	}
}

// tap is the client's stream, of which the copy gets what is received.
type tap struct {
	rpc.Stream
	c *mirroring
}

func (t *tap) Recv(ctx context.Context) (rpc.Message, error) {
	m, err := t.Stream.Recv(ctx)
	switch err {
	case nil:
		t.c.add(m)
	case io.EOF:
		t.c.close()
	}
	return m, err
}

// copied is the stream of a copy: the client's messages, and answers that nobody reads.
type copied struct{ c *mirroring }

func (s copied) Recv(ctx context.Context) (rpc.Message, error) {
	c := s.c
	for {
		c.mu.Lock()
		if len(c.queue) > 0 {
			m := c.queue[0]
			c.queue[0] = rpc.Message{}
			c.queue = c.queue[1:]
			c.bytes -= m.Len()
			c.mu.Unlock()
			return m, nil
		}
		half := c.half
		c.mu.Unlock()
		if half {
			return rpc.Message{}, io.EOF
		}
		select {
		case <-c.ready:
		case <-ctx.Done():
			return rpc.Message{}, rpc.CauseOf(ctx)
		}
	}
}

func (copied) SendHeader(metadata.MD) error { return nil }

func (copied) Send(_ context.Context, m rpc.Message) error {
	m.Release()
	return nil
}

func (copied) Flush() error { return nil }

func (copied) SetTrailer(metadata.MD) {}
