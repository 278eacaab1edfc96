package upstream

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"

	"transom/rpc/h2wire"
	"transom/upstream/loadaware"
)

// A backend says in its HTTP/2 settings how many streams it takes on one connection; beyond that grpc-go has calls wait.
// So that they need not, a cluster has more connections to each endpoint as its calls come near that number (after gRFC
// A105, which grpc-go lacks): it opens further channels, each with a connection to every endpoint.

// channel is one grpc-go channel with its calls in flight.
type channel struct {
	cc    *grpc.ClientConn
	calls atomic.Int64
}

// channels are those of a cluster, at least one until closed.
type channels struct {
	open func() (*grpc.ClientConn, error)
	list atomic.Pointer[[]*channel] // replaced, not changed
	// growAt is the number of calls in flight from which there should be more channels.
	growAt atomic.Int64
	// full is the number of calls that one channel takes.
	full atomic.Int64
	// registry shows the endpoints, if the balancer is package loadaware's.
	registry loadaware.Registry

	mu        sync.Mutex
	streams   int64 // the least number of streams that an endpoint takes on a connection; 0 is unknown
	endpoints int64 // of the last resolution; 0 is unknown
	closed    bool
}

// start opens the first channel.
func (c *channels) start() error {
	c.growAt.Store(math.MaxInt64)
	c.full.Store(math.MaxInt64)
	cc, err := c.add()
	if err != nil {
		return err
	}
	cc.Connect()
	return nil
}

// add opens a channel, which the caller lets connect when it no longer holds mu: its resolver calls back. mu is held, but
// for the first.
func (c *channels) add() (*grpc.ClientConn, error) {
	cc, err := c.open()
	if err != nil {
		return nil, err
	}
	var list []*channel
	if old := c.list.Load(); old != nil {
		list = append(list, *old...)
	}
	list = append(list, &channel{cc: cc})
	c.list.Store(&list)
	return cc, nil
}

// first is the channel that speaks for all.
func (c *channels) first() *grpc.ClientConn { return (*c.list.Load())[0].cc }

// pick chooses the channel with the least calls and counts one. The caller counts it out. One that is not ready is chosen
// only if the others are full, so that the call would have to wait there too.
func (c *channels) pick() *channel {
	list := *c.list.Load()
	best := list[0]
	for _, ch := range list[1:] {
		n := best.calls.Load()
		if ch.calls.Load() < n && (n >= c.full.Load() || ch.cc.GetState() == connectivity.Ready) {
			best = ch
		}
	}
	best.calls.Add(1)
	return best
}

// limited hears of the number of streams that an endpoint takes.
func (c *channels) limited(streams uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := max(int64(streams), 1); c.streams == 0 || s < c.streams {
		c.streams = s
	}
	c.setGrowAt()
}

// resolved hears of the number of endpoints.
func (c *channels) resolved(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endpoints = int64(n)
	c.setGrowAt()
}

// setGrowAt puts the threshold at half of what the connections can take, since new ones take their time. mu is held.
func (c *channels) setGrowAt() {
	at, full := int64(math.MaxInt64), int64(math.MaxInt64)
	if c.streams > 0 {
		full = min(c.streams, math.MaxInt32) * max(c.endpoints, 1)
		if width := int64(len(*c.list.Load())); width < maxConns && !c.closed {
			at = max(full*width/2, 1)
		}
	}
	c.growAt.Store(at)
	c.full.Store(full)
}

// load hears of the number of calls in flight.
func (c *channels) load(n int64) {
	if n < c.growAt.Load() {
		return
	}
	if cc := c.grow(n); cc != nil {
		cc.Connect()
	}
}

// grow opens a channel if there are still too few for n calls.
func (c *channels) grow(n int64) *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n < c.growAt.Load() || c.closed {
		return nil
	}
	cc, err := c.add()
	if err != nil { // which cannot be: the first was opened in the same way
		c.growAt.Store(math.MaxInt64)
		return nil
	}
	c.setGrowAt()
	return cc
}

// close closes all channels.
func (c *channels) close() error {
	c.mu.Lock()
	c.closed = true
	list := *c.list.Load()
	c.mu.Unlock()
	var err error
	for _, ch := range list {
		if e := ch.cc.Close(); e != nil {
			err = e
		}
	}
	return err
}

// resolvers are transom's own, but for unix, which is grpc-go's.
func (c *channels) resolvers(cfg Config, adaptive bool, log *slog.Logger) []resolver.Builder {
	var builders []resolver.Builder
	for _, b := range resolvers(cfg, adaptive, log) {
		if b.Scheme() != "unix" {
			builders = append(builders, countedBuilder{b, c})
		}
	}
	return builders
}

// countedBuilder is a resolver that tells the channels of its endpoints, and the balancer of the registry.
type countedBuilder struct {
	resolver.Builder
	channels *channels
}

func (b countedBuilder) Build(t resolver.Target, cc resolver.ClientConn, opts resolver.BuildOptions) (resolver.Resolver, error) {
	return b.Builder.Build(t, countedConn{cc, b.channels}, opts)
}

type countedConn struct {
	resolver.ClientConn
	channels *channels
}

func (c countedConn) UpdateState(s resolver.State) error {
	c.channels.resolved(len(s.Endpoints))
	return c.ClientConn.UpdateState(loadaware.SetRegistry(s, &c.channels.registry))
}

// sniffing are credentials whose connections tell the channels of the settings that the server begins with.
type sniffing struct {
	credentials.TransportCredentials
	channels *channels
}

func (s sniffing) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := s.TransportCredentials.ClientHandshake(ctx, authority, conn)
	if err == nil {
		conn = &settingsConn{Conn: conn, heard: s.channels.limited}
	}
	return conn, info, err
}

func (s sniffing) Clone() credentials.TransportCredentials {
	return sniffing{s.TransportCredentials.Clone(), s.channels}
}

// settingsConn reads the first frame along, which a server must begin with: SETTINGS (RFC 9113 3.4).
type settingsConn struct {
	net.Conn
	heard func(streams uint32)
	// begin is the connection's beginning until that frame is whole. Only Read uses it, which has one caller at a time.
	begin []byte
	done  bool
}

// maxSettingsLen is the length of a first frame that is looked into.
const maxSettingsLen = 1 << 10

func (c *settingsConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.done {
		c.begin = append(c.begin, p[:min(n, h2wire.FrameHeaderLen+maxSettingsLen)]...)
		c.scan()
	}
	return n, err
}

// scan looks for the setting once the frame is whole.
func (c *settingsConn) scan() {
	b := c.begin
	if len(b) < h2wire.FrameHeaderLen {
		return
	}
	size := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if b[3] != h2wire.FrameSettings || size > maxSettingsLen {
		c.done, c.begin = true, nil
		return
	}
	if len(b) < h2wire.FrameHeaderLen+size {
		return
	}
	for b = b[h2wire.FrameHeaderLen : h2wire.FrameHeaderLen+size]; len(b) >= 6; b = b[6:] {
		if binary.BigEndian.Uint16(b) == h2wire.SettingMaxStreams {
			c.heard(binary.BigEndian.Uint32(b[2:]))
		}
	}
	c.done, c.begin = true, nil
}
