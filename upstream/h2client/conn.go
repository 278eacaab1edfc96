package h2client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"transom/rpc/h2wire"
	"transom/rpc/trywrite"
)

// Conn is a connection. See the package's documentation.
type Conn struct {
	cfg    Config
	raw    net.Conn
	conn   net.Conn         // raw, or what secures it
	output *trywrite.Output // of whoever has set writing

	ready, draining, done chan struct{}
	writers               sync.WaitGroup
	inFlight, waiting     atomic.Int64
	maxStreams            atomic.Uint32
	current               atomic.Uint32 // state, for State

	reader reader // of the reading goroutine

	mu    sync.Mutex
	state State
	err   error

	// The sending side.
	out, spareOut        []byte
	writing              bool
	joinScore, joinSkips int
	enc                  encoder
	nextID               uint32
	handed               uint32 // streams from here on have surely not been sent
	sendWindow           int64
	blocked              []*Stream // wait for sendWindow, or for room in out
	roomWanted           bool      // some wait for room
	echoes               int       // PINGs that the DATA sent accounts for

	// What the server has set.
	initialWindow int64
	maxFrame      int
	maxHeaderList uint64

	streams     map[uint32]*Stream
	active      uint32    // streams, opened or granted
	granting    int       // those that have not yet taken up the place they were given
	first, last *Stream   // of those that wait for MaxStreams, or for room in out
	free        []*Stream // of unary calls
	recvWindow  int       // what the server may still send
	recvDebt    int       // what is to be given back
	startWindow int       // of a stream: Config.StreamWindow, or shortWindow while short
	held        int       // what streams hold that nobody has received
	short       bool      // of memory: they hold too much
	unacked     int       // SETTINGS that the server has not acknowledged
	grown       int       // by how much the windows of open streams have grown, together
	wakes       []*Stream // whose receivers are woken before the reader waits
	keepalive   *time.Timer
	pinged      bool
	pingLeft    time.Duration // for an answer
	heard       atomic.Bool   // something, since keepalive last looked
	settled     bool          // the first SETTINGS have come
	batching    bool          // the reader wakes receivers later
}

// maxGranting bounds what those who have waited gather at once.
const maxGranting = 32

// maxFree is the number of streams kept for further calls.
const maxFree = 256

// blocks are memory for the fields of calls that are being opened.
var blocks = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// New makes a connection of raw, which it takes over and closes if it fails. It returns when the server's SETTINGS have
// come, or with an error when ctx ends first. Close it.
func New(ctx context.Context, raw net.Conn, cfg Config) (*Conn, error) {
	if cfg.UserAgent == "" {
		cfg.UserAgent = "transom"
	}
	if cfg.MaxMessageBytes == 0 {
		cfg.MaxMessageBytes = 4 << 20
	}
	if cfg.MaxHeaderListBytes == 0 {
		cfg.MaxHeaderListBytes = 64 << 10
	}
	if cfg.StreamWindow == 0 {
		cfg.StreamWindow = 512 << 10
	}
	if cfg.ConnWindow == 0 {
		cfg.ConnWindow = 16 << 20
	}
	if cfg.KeepaliveTimeout == 0 {
		cfg.KeepaliveTimeout = 20 * time.Second
	}
	for _, w := range [...]int{cfg.StreamWindow, cfg.ConnWindow} {
		if w < 64<<10 || w > h2wire.MaxWindow {
			_ = raw.Close()
			return nil, fmt.Errorf("a flow-control window of %d bytes is not from 64 KiB to 2 GiB", w)
		}
	}
	c := &Conn{
		cfg: cfg, raw: raw, conn: raw,
		ready: make(chan struct{}), draining: make(chan struct{}), done: make(chan struct{}),
		enc:           newEncoder(&cfg),
		nextID:        1,
		sendWindow:    h2wire.DefaultWindow,
		initialWindow: h2wire.DefaultWindow,
		maxFrame:      16 << 10,
		maxHeaderList: math.MaxUint64,
		streams:       map[uint32]*Stream{},
		recvWindow:    cfg.ConnWindow,
		startWindow:   cfg.StreamWindow,
		unacked:       1,
	}
	c.maxStreams.Store(math.MaxUint32)
	var sealed *trywrite.Sealed
	if cfg.Handshake != nil {
		sealed = &trywrite.Sealed{Conn: raw}
		conn, err := cfg.Handshake(ctx, sealed)
		if err != nil {
			_ = raw.Close()
			return nil, fmt.Errorf("handshake: %w", err)
		}
		sealed.Gather()
		c.conn = conn
	}
	c.output = trywrite.New(raw, c.conn, sealed, 0)
	c.reader = reader{c: c, buf: make([]byte, readBufLen), dec: hpack.NewDecoder(h2wire.DefaultTable, nil)}
	c.reader.dec.SetEmitFunc(c.reader.head.add)
	c.reader.head.limit = cfg.MaxHeaderListBytes

	c.mu.Lock()
	c.out = append(c.out, h2wire.Preface...)
	c.out = h2wire.AppendFrame(c.out, 18, h2wire.FrameSettings, 0, 0)
	c.out = h2wire.AppendSetting(c.out, h2wire.SettingEnablePush, 0)
	c.out = h2wire.AppendSetting(c.out, h2wire.SettingInitialWindow, uint32(cfg.StreamWindow))
	c.out = h2wire.AppendSetting(c.out, h2wire.SettingMaxHeaderListSize, uint32(cfg.MaxHeaderListBytes))
	if n := cfg.ConnWindow - h2wire.DefaultWindow; n > 0 {
		c.out = h2wire.AppendWindowUpdate(c.out, 0, n)
	}
	go c.read()
	c.flush(false)
	select {
	case <-c.ready:
	case <-ctx.Done():
		c.Close()
		return nil, fmt.Errorf("waiting for the server's SETTINGS: %w", context.Cause(ctx))
	case <-c.done:
		return nil, c.Err()
	}
	if cfg.KeepaliveTime > 0 {
		c.mu.Lock()
		if c.state != Closed {
			c.keepalive = time.AfterFunc(cfg.KeepaliveTime, c.checkAlive)
		}
		c.mu.Unlock()
	}
	return c, nil
}

// State is the connection's present state.
func (c *Conn) State() State { return State(c.current.Load()) }

// Draining is closed when the connection takes no new calls any more: after GOAWAY, Drain, Close or a failure.
func (c *Conn) Draining() <-chan struct{} { return c.draining }

// Done is closed when the connection is gone and all that it started has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err tells why the connection is draining or gone: a *GoAwayError, ErrClosed after Close or Drain, or what failed. nil
// while Ready.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// InFlight is the number of calls that the server has or is about to have, without those that wait for a place.
func (c *Conn) InFlight() int { return int(c.inFlight.Load()) }

// Waiting is the number of calls that wait because of MaxStreams, or because the server does not read.
func (c *Conn) Waiting() int { return int(c.waiting.Load()) }

// MaxStreams is how many streams the server takes at once now (SETTINGS_MAX_CONCURRENT_STREAMS), math.MaxUint32 if it
// has set no limit. It may change at any time.
func (c *Conn) MaxStreams() uint32 { return c.maxStreams.Load() }

// LocalAddr is the socket's own address.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is the address of the server.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// Drain takes no new calls and closes the connection when the last has ended. It does not wait: see Done.
func (c *Conn) Drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain(ErrClosed)
}

// Close ends all calls with Unavailable and waits until nothing that the connection started runs. It may be called more
// than once.
func (c *Conn) Close() {
	c.mu.Lock()
	c.fail(ErrClosed, h2wire.CodeNo)
	c.mu.Unlock()
	<-c.done
}

// ErrClosed is Conn.Err after Close or Drain.
var ErrClosed = errors.New("the connection was closed by this side")

// GoAwayError is Conn.Err after a GOAWAY.
type GoAwayError struct {
	Code  uint32 // the HTTP/2 error code; 0 is a graceful end, 11 ENHANCE_YOUR_CALM
	Debug string // what the server said, clipped to 256 bytes
}

func (e *GoAwayError) Error() string {
	return "the server sent GOAWAY with " + h2wire.ErrCode(e.Code).String() + " " + strconv.Quote(e.Debug)
}

func errWrite(err error) error { return fmt.Errorf("writing to the server: %w", err) }

// drain takes no new calls; those that wait for a place are refused. c.mu is held.
func (c *Conn) drain(err error) {
	if c.state != Ready {
		return
	}
	c.setState(Draining, err)
	for s := c.first; s != nil; s = s.next {
		wake(s.sendable)
	}
	c.closeIfIdle()
}

// closeIfIdle closes a draining connection that has no calls. c.mu is held.
func (c *Conn) closeIfIdle() {
	if c.state == Draining && c.active == 0 {
		c.fail(c.err, h2wire.CodeNo)
	}
}

func (c *Conn) setState(s State, err error) {
	if c.state == Ready {
		c.err = err
		close(c.draining)
	}
	c.state = s
	c.current.Store(uint32(s))
}

// fail closes the connection and ends all its calls. code is told to the server. c.mu is held.
func (c *Conn) fail(err error, code h2wire.ErrCode) {
	if c.state == Closed {
		return
	}
	c.setState(Closed, err)
	if code != h2wire.CodeNo {
		c.err = err
	}
	if !c.writing && c.output.CanTry() { // for courtesy, if it costs no waiting
		c.writing = true // and nobody writes after it
		// Without what has been gathered: its calls are told that they were not sent.
		_, _ = c.output.Try(h2wire.AppendGoAway(nil, 0, code)) // a server opens no streams
	}
	_ = c.raw.Close()
	if c.keepalive != nil {
		c.keepalive.Stop()
	}
	lost := &Error{Code: codes.Unavailable, Message: "the connection was lost", Origin: OriginConn, Cause: err}
	unsent := *lost
	unsent.Unprocessed = true
	c.wakeBlocked()
	for id, s := range c.streams {
		if id >= c.handed {
			s.finish(&unsent)
		} else {
			s.finish(lost)
		}
	}
	for s := c.first; s != nil; s = s.next {
		wake(s.sendable)
	}
	c.wakeReceivers()
}

// checkAlive is what the keepalive timer does.
func (c *Conn) checkAlive() {
	c.mu.Lock()
	if c.state == Closed {
		c.mu.Unlock()
		return
	}
	switch heard := c.heard.Swap(false); {
	case heard, c.active == 0 && !c.cfg.KeepaliveIdle:
		c.pinged = false
		c.keepalive.Reset(c.cfg.KeepaliveTime)
	case !c.pinged:
		c.pinged, c.pingLeft = true, c.cfg.KeepaliveTimeout
		c.out = h2wire.AppendPing(c.out, 0, &[8]byte{})
		c.keepalive.Reset(min(c.pingLeft, c.cfg.KeepaliveTime))
	default:
		if c.pingLeft -= min(c.pingLeft, c.cfg.KeepaliveTime); c.pingLeft > 0 {
			c.keepalive.Reset(min(c.pingLeft, c.cfg.KeepaliveTime))
		} else {
			c.fail(errors.New("the server did not answer a PING in time"), h2wire.CodeNo)
		}
	}
	c.flush(false)
}

// wake lets go the one who waits on ch, or the next to wait. Those who wait look again at what they wait for, so that a
// wake too many, or for an earlier call, does no harm.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (c *Conn) wakeBlocked() {
	for i, s := range c.blocked {
		s.blocked = false
		wake(s.sendable)
		c.blocked[i] = nil
	}
	c.blocked = c.blocked[:0]
}

func (c *Conn) wakeReceivers() {
	for i, s := range c.wakes {
		s.waking = false
		wake(s.receivable)
		c.wakes[i] = nil
	}
	c.wakes = c.wakes[:0]
}

// errNotReady refuses a call. c.mu is held.
func (c *Conn) errNotReady() *Error {
	return &Error{Code: codes.Unavailable, Message: "the connection takes no new calls", Origin: OriginConn, Unprocessed: true, Cause: c.err}
}

// ContextError is the end of a call whose context has ended: DeadlineExceeded if its deadline has passed, else Canceled. Contexts
// derived from one that ended by its deadline may say that they were cancelled: their cause tells. A client that leaves at the
// deadline may be heard of before whoever keeps it: the clock tells.
func ContextError(ctx context.Context) *Error {
	cause := context.Cause(ctx)
	deadline, ok := ctx.Deadline()
	if errors.Is(cause, context.DeadlineExceeded) || errors.Is(ctx.Err(), context.DeadlineExceeded) || ok && !time.Now().Before(deadline) {
		return &Error{Code: codes.DeadlineExceeded, Message: "the call's deadline has passed", Origin: OriginContext, Cause: cause}
	}
	return &Error{Code: codes.Canceled, Message: "the call was cancelled", Origin: OriginContext, Cause: cause}
}

// open gives s a place and an ID and gathers its HEADERS. c.mu is held when it returns nil, and not with an error.
func (c *Conn) open(ctx context.Context, s *Stream, method string, md metadata.MD) error {
	fields := blocks.Get().(*[]byte)
	var size int
	var err error
	if *fields, size, err = appendMetadata((*fields)[:0], md); err != nil { // before the lock is taken
		err = &Error{Code: codes.InvalidArgument, Message: err.Error(), Origin: OriginRequest}
	} else {
		err = c.gather(ctx, s, method, *fields, size)
	}
	blocks.Put(fields)
	return err
}

// gather is open for fields of a size as RFC 9113 6.5.2 counts.
func (c *Conn) gather(ctx context.Context, s *Stream, method string, fields []byte, size int) error {
	if !validPath(method) {
		return &Error{Code: codes.Unimplemented, Message: fmt.Sprintf("%q is not the path of a method", clip(method)), Origin: OriginRequest}
	}
	if ctx.Err() != nil {
		return ContextError(ctx)
	}
	c.mu.Lock()
	if err := c.place(ctx, s); err != nil {
		c.mu.Unlock()
		return err
	}
	var timeout time.Duration
	if s.deadline, s.timed = ctx.Deadline(); s.timed {
		if timeout = time.Until(s.deadline); timeout <= 0 {
			c.vacate()
			c.mu.Unlock()
			return ContextError(ctx)
		}
	}
	if n := c.enc.size + len(method) + size; s.timed && uint64(n+64) > c.maxHeaderList || uint64(n) > c.maxHeaderList {
		c.vacate()
		c.mu.Unlock()
		return &Error{Code: codes.ResourceExhausted, Message: fmt.Sprintf("metadata of %d bytes is more than the server takes", size), Origin: OriginRequest}
	}
	if c.nextID > h2wire.MaxStreamID {
		c.vacate()
		err := c.errNotReady()
		c.drain(errors.New("no stream numbers are left"))
		c.mu.Unlock()
		return err
	}
	s.id = c.nextID
	c.nextID += 2
	s.sendWindow, s.recvWindow, s.window = c.initialWindow, c.startWindow, c.startWindow
	c.streams[s.id] = s

	start := len(c.out)
	c.out = h2wire.AppendFrame(c.out, 0, h2wire.FrameHeaders, h2wire.FlagEndHeaders, s.id)
	c.out = c.enc.appendConst(c.out, method)
	if s.timed {
		c.out = appendTimeout(c.out, timeout)
	}
	c.out = append(c.out, fields...)
	c.out = h2wire.EndHeaders(c.out, start, s.id, c.maxFrame)
	return nil
}

// hasPlace reports whether a further stream may be opened. c.mu is held.
func (c *Conn) hasPlace() bool {
	return c.active < c.maxStreams.Load() && len(c.out) < maxUnsent && c.granting < maxGranting
}

// place waits for s's place among MaxStreams, in turn, and counts it. c.mu is held on entry and on return, not between.
func (c *Conn) place(ctx context.Context, s *Stream) error {
	if c.state != Ready {
		return c.errNotReady()
	}
	if c.first == nil && c.hasPlace() {
		c.active++
		c.inFlight.Add(1)
		return nil
	}
	s.granted = false
	if s.prev = c.last; s.prev != nil {
		s.prev.next = s
	} else {
		c.first = s
	}
	c.last = s
	c.waiting.Add(1)
	c.grant()
	for !s.granted && c.state == Ready && ctx.Err() == nil {
		c.flush(false)
		select {
		case <-s.sendable:
		case <-ctx.Done():
		}
		c.mu.Lock()
	}
	if s.granted {
		c.granting--
		c.grant()
	} else {
		c.unqueue(s)
	}
	ended := ctx.Err() != nil
	switch {
	case !ended && c.state == Ready: // granted
		return nil
	case s.granted:
		c.vacate()
	}
	if ended {
		return ContextError(ctx)
	}
	return c.errNotReady()
}

func (c *Conn) unqueue(s *Stream) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		c.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		c.last = s.prev
	}
	s.prev, s.next = nil, nil
	c.waiting.Add(-1)
}

// grant gives free places to those who wait. c.mu is held.
func (c *Conn) grant() {
	for c.first != nil && c.state == Ready && c.hasPlace() {
		s := c.first
		c.unqueue(s)
		s.granted = true
		c.granting++
		c.active++
		c.inFlight.Add(1)
		wake(s.sendable)
	}
}

// vacate gives a place back. c.mu is held.
func (c *Conn) vacate() {
	c.active--
	c.inFlight.Add(-1)
	c.grant()
	c.closeIfIdle()
}

// send gathers a message, and the half-close behind it if last. It waits for windows and for room, until the stream ends
// or ctx does. c.mu is held on entry and on return, not between. io.EOF means that the stream has ended.
func (c *Conn) send(ctx context.Context, s *Stream, m Message, last bool) error {
	size := m.Data.Len()
	if uint64(size) > math.MaxUint32 {
		return &Error{Code: codes.ResourceExhausted, Message: "a message of 4 GiB or more cannot be sent", Origin: OriginRequest}
	}
	prefix := [messagePrefix]byte{0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}
	if m.Compressed {
		prefix[0] = 1
	}
	left := messagePrefix + size
	piece, next := prefix[:], 0 // what is to be copied next, and the buffer behind it
	for left > 0 {
		if s.end != nil {
			return errEnded
		}
		n := int(min(int64(left), int64(c.maxFrame), s.sendWindow, c.sendWindow, int64(maxUnsent-len(c.out))))
		if n <= 0 {
			if len(c.out) >= maxUnsent && !c.writing {
				c.flush(false)
				c.mu.Lock()
				continue
			}
			if s.sendWindow > 0 && !s.blocked { // else it is the stream's window, which wakes s itself
				s.blocked = true
				c.blocked = append(c.blocked, s)
			}
			c.roomWanted = c.roomWanted || len(c.out) >= maxUnsent
			c.flush(false)
			select {
			case <-s.sendable:
			case <-ctx.Done():
				c.mu.Lock()
				return ctx.Err()
			}
			c.mu.Lock()
			continue
		}
		left -= n
		s.sendWindow -= int64(n)
		c.sendWindow -= int64(n)
		c.echoes = min(c.echoes+1, maxIdleFrames)
		var flags byte
		if last && left == 0 {
			flags, s.sendClosed = h2wire.FlagEndStream, true
		}
		c.out = h2wire.AppendFrame(c.out, n, h2wire.FrameData, flags, s.id)
		for n > 0 {
			for len(piece) == 0 {
				piece = m.Data[next].ReadOnlyData()
				next++
			}
			k := min(n, len(piece))
			c.out = append(c.out, piece[:k]...)
			piece, n = piece[k:], n-k
		}
	}
	return nil
}

// remove takes a stream that has ended, for either side, off the connection. c.mu is held.
func (c *Conn) remove(s *Stream) {
	delete(c.streams, s.id)
	if s.blocked { // by a window that the server may never open
		s.blocked = false
		c.blocked = slices.DeleteFunc(c.blocked, func(b *Stream) bool { return b == s })
	}
	c.grown -= s.window - c.startWindow
	if s.in != nil {
		s.in.Free()
		s.in = nil
	}
	if !s.unary { // what has come in full is held until it is received
		queued := 0
		for _, q := range s.queue[s.head:] {
			queued += q.size
		}
		s.hold(queued - s.held)
	}
	c.vacate()
}

// reset ends s for this side: its receiver gets err. c.mu is held.
func (c *Conn) reset(s *Stream, code h2wire.ErrCode, err *Error) {
	if s.end != nil {
		return
	}
	c.out = h2wire.AppendReset(c.out, s.id, code)
	s.sendClosed = true
	s.finish(err)
}
