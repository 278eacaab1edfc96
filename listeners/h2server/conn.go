package h2server

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"transom/rpc/h2wire"
	"transom/rpc/trywrite"
)

const (
	// streamWindow is what a client may send of a request's body that the handler has not read; connWindow that of all
	// requests of a connection.
	streamWindow = 64 << 10
	connWindow   = 1 << 20
	// endedLen is how many streams that we have reset are remembered: what arrives for them was sent before the client knew.
	endedLen = 128
	// leaveTime is how long a client may go on with a request that has its answer before it is told to stop; maxLeft how many
	// such requests a connection may have.
	leaveTime = time.Second
	maxLeft   = 32
	// drainGrace is how long after its first GOAWAY a client may open streams that does not answer the PING behind it.
	drainGrace = time.Second
	// lingerTime and lingerBytes are how long, and for how much, a connection that we end is still read, lest what the client
	// has sent meanwhile make its TCP drop our last words.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
	// leastRequests is from how many requests on a connection ends of which half or more were reset unanswered, or were faulty: to
	// open a stream and to reset it costs a client nothing and us a call (CVE-2023-44487, CVE-2025-8671).
	leastRequests = 500
)

// drainPing is the PING behind the first GOAWAY.
var drainPing = [8]byte{'g', 'o', ' ', 'a', 'w', 'a', 'y', '.'}

// state is where in its life a connection is.
type state uint8

const (
	open     state = iota
	draining       // the client was told to make no further requests
	closed         // nothing is gathered any more
)

// conn is a connection.
type conn struct {
	srv    *Server
	sock   Socket
	remote string
	output *trywrite.Output // of whoever has set writing
	ctx    context.Context  // of all requests
	cancel context.CancelFunc
	reader reader // of the serving goroutine

	running sync.WaitGroup // handlers
	heard   atomic.Bool    // something, since tick last looked
	wrote   chan struct{}  // has room for one; filled when writing ends after closed

	mu    sync.Mutex // guards what follows
	state state
	err   error

	// The sending side.
	out, spareOut        []byte
	writing              bool
	broken               bool // the socket takes nothing any more
	joinScore, joinSkips int
	enc                  encoder
	sendWindow           int64
	initialWindow        int64
	maxFrame             int
	blocked              []*stream // wait for sendWindow, or for room in out
	roomWanted           bool      // some wait for room
	echoes               int       // WINDOW_UPDATE and PING that what was sent accounts for

	// The receiving side.
	recvWindow int // what the client may still send
	recvDebt   int // what is to be given back
	wakes      []*stream
	batching   bool // the reader wakes handlers later

	streams  map[uint32]*stream // that neither side has ended
	maxID    uint32             // the highest stream opened
	lastID   uint32             // of the last GOAWAY, once final
	final    bool               // the last GOAWAY is gathered
	handlers int                // that have not returned
	pending  []*stream          // wait for a handler to start
	dead     int                // of them, those that were reset meanwhile
	// ended are the streams that we have reset last, in a ring.
	ended     *[endedLen]uint32
	endedNext int
	// left are the streams that have their answer while the client still sends, the oldest first.
	left          []leftStream
	requests, bad int // that were made, and that came to nothing

	// Alarms; zero is none.
	timer                          *time.Timer
	armed                          time.Time
	helloBy, ackBy, blockBy        time.Time
	idleSince, lastHeard, pingedAt time.Time
	drainBy                        time.Time
}

// leftStream is a stream that is reset at a time unless the client ends it before.
type leftStream struct {
	id uint32
	at time.Time
}

func newConn(ctx context.Context, srv *Server, sock Socket) *conn {
	c := &conn{
		srv: srv, sock: sock, wrote: make(chan struct{}, 1),
		sendWindow: h2wire.DefaultWindow, initialWindow: h2wire.DefaultWindow, maxFrame: h2wire.DefaultMaxFrame,
		recvWindow: connWindow, streams: map[uint32]*stream{},
		enc: encoder{limit: h2wire.DefaultTable},
	}
	if a := sock.Conn.RemoteAddr(); a != nil {
		c.remote = a.String()
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	if sock.Sealed != nil {
		sock.Sealed.Gather()
	}
	c.output = trywrite.New(sock.Raw, sock.Conn, sock.Sealed, srv.cfg.WriteStall)
	c.reader = reader{c: c, buf: make([]byte, firstReadBuf), dec: hpack.NewDecoder(h2wire.DefaultTable, nil)}
	c.reader.dec.SetEmitFunc(c.reader.head.add)
	c.reader.head.limit = srv.cfg.MaxHeaderBytes + 10*32
	return c
}

// start sends our SETTINGS.
func (c *conn) start() {
	c.mu.Lock()
	now := time.Now()
	c.idleSince, c.lastHeard = now, now
	c.helloBy, c.ackBy = now.Add(c.srv.cfg.HeaderTimeout), now.Add(c.srv.cfg.HeaderTimeout)
	c.out = h2wire.AppendFrame(c.out, 18, h2wire.FrameSettings, 0, 0)
	c.out = h2wire.AppendSetting(c.out, h2wire.SettingMaxStreams, uint32(c.srv.cfg.MaxStreams)) //nolint:gosec // a limit that was checked
	c.out = h2wire.AppendSetting(c.out, h2wire.SettingInitialWindow, streamWindow)
	c.out = h2wire.AppendSetting(c.out, h2wire.SettingMaxHeaderListSize, uint32(c.reader.head.limit)) //nolint:gosec // a limit that was checked
	c.out = h2wire.AppendWindowUpdate(c.out, 0, connWindow-h2wire.DefaultWindow)
	if s := c.sock.TLS; s != nil && !adequate(s) {
		c.fail(&connError{h2wire.CodeInadequateSecurity, "the cipher suite is not one for HTTP/2"}, h2wire.CodeInadequateSecurity)
	} else {
		c.arm(c.helloBy)
		c.arm(now.Add(c.srv.cfg.IdleTimeout))
		c.arm(now.Add(c.srv.cfg.PingAfter))
	}
	c.flush(false)
}

// serve reads frames until the connection ends, and sees it off.
func (c *conn) serve() {
	err := c.reader.preface()
	for err == nil {
		err = c.reader.frame()
	}
	code := h2wire.CodeNo
	if e := (*connError)(nil); errors.As(err, &e) {
		code = e.code
	}
	c.mu.Lock()
	c.batching = false
	if code == h2wire.CodeNo {
		c.final = true // the client has gone: nobody reads a GOAWAY
	}
	c.fail(err, code)
	c.wakeReaders()
	if c.err != nil {
		c.output.Limit(time.Now().Add(lingerTime))
	} // else the last answers have the time that all have
	for c.writing {
		c.mu.Unlock()
		<-c.wrote
		c.mu.Lock()
	}
	c.writing = true // and nobody writes after this
	last, broken := c.out, c.broken
	c.out = nil
	c.mu.Unlock()
	if !broken && c.last(last) {
		c.linger()
	}
	_ = c.sock.Conn.Close()
	c.running.Wait()
}

// last writes what is left and ends our side. It reports whether that went well.
func (c *conn) last(p []byte) bool {
	rest, err := c.output.Try(p)
	if err == nil && len(rest) > 0 {
		err = c.output.Finish(rest)
	}
	if t, ok := c.sock.Conn.(interface{ CloseWrite() error }); ok && err == nil && c.sock.Sealed != nil {
		if err = t.CloseWrite(); err == nil { // close_notify, which has been kept
			if rest, err = c.output.Try(nil); err == nil && len(rest) > 0 {
				err = c.output.Finish(rest)
			}
		}
	}
	if err != nil {
		return false
	}
	if t, ok := c.sock.Raw.(interface{ CloseWrite() error }); ok {
		return t.CloseWrite() == nil
	}
	return false
}

// linger drops what the client still sends, for a while.
func (c *conn) linger() {
	_ = c.sock.Raw.SetReadDeadline(time.Now().Add(lingerTime))
	buf := c.reader.buf
	for left := lingerBytes; left > 0; {
		n, err := c.sock.Raw.Read(buf)
		if err != nil {
			return
		}
		left -= n
	}
}

// errGone is what becomes of the requests of a connection that has ended.
var errGone = errors.New("the client's connection has ended")

// fail ends the connection: the client is told code, unless it has had its last GOAWAY, and the reader is called back, which
// does the rest. c.mu is held.
func (c *conn) fail(err error, code h2wire.ErrCode) {
	if c.state == closed {
		return
	}
	c.state, c.err = closed, err
	if !c.final || code != h2wire.CodeNo {
		c.out = h2wire.AppendGoAway(c.out, c.maxID, code)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	for _, s := range c.streams {
		s.end(errGone)
	}
	clear(c.streams)
	c.wakeBlocked()
	c.wakeReaders()
	c.cancel()
	_ = c.sock.Conn.SetReadDeadline(time.Unix(1, 0))
}

// lose ends a connection that cannot be written to. c.mu is held.
func (c *conn) lose(err error) {
	c.broken = true
	c.fail(err, h2wire.CodeNo)
	c.out = nil
}

// goAway begins the end of the connection: a client may have requests on the way that it made before it knew, so it is asked
// first to make no more, and told which was the last when it has surely heard (RFC 9113 6.8).
func (c *conn) goAway() {
	c.mu.Lock()
	c.firstGoAway()
	c.flush(false)
}

// firstGoAway gathers the first GOAWAY. c.mu is held.
func (c *conn) firstGoAway() {
	if c.state != open {
		return
	}
	c.state = draining
	c.out = h2wire.AppendGoAway(c.out, h2wire.MaxStreamID, h2wire.CodeNo)
	c.out = h2wire.AppendPing(c.out, 0, &drainPing)
	c.drainBy = time.Now().Add(drainGrace)
	c.arm(c.drainBy)
}

// finalGoAway tells which stream was the last. c.mu is held.
func (c *conn) finalGoAway() {
	if c.state == closed || c.final {
		return
	}
	c.state, c.final, c.lastID, c.drainBy = draining, true, c.maxID, time.Time{}
	c.out = h2wire.AppendGoAway(c.out, c.lastID, h2wire.CodeNo)
	c.closeIfIdle()
}

// closeIfIdle ends a draining connection with its last request. c.mu is held.
func (c *conn) closeIfIdle() {
	if c.final && len(c.streams) == 0 && c.handlers == 0 {
		c.fail(nil, h2wire.CodeNo)
	}
}

// arm makes tick come no later than at. c.mu is held.
func (c *conn) arm(at time.Time) {
	if c.state == closed || !c.armed.IsZero() && !at.Before(c.armed) {
		return
	}
	c.armed = at
	if c.timer == nil {
		c.timer = time.AfterFunc(time.Until(at), c.tick)
		return
	}
	c.timer.Reset(time.Until(at))
}

// tick is what the connection's timer does: it looks which alarm is due and when the next may be.
func (c *conn) tick() {
	c.mu.Lock()
	if c.state == closed {
		c.mu.Unlock()
		return
	}
	now, cfg := time.Now(), &c.srv.cfg
	c.armed = time.Time{}
	due := func(at time.Time) bool { return !at.IsZero() && !now.Before(at) }
	if c.heard.Swap(false) {
		c.lastHeard, c.pingedAt = now, time.Time{}
	}
	if due(c.drainBy) {
		c.finalGoAway()
	}
	for len(c.left) > 0 && due(c.left[0].at) {
		c.resetLeft()
	}
	idle := len(c.streams) == 0 && c.handlers == 0
	switch {
	case due(c.helloBy), due(c.ackBy):
		c.fail(&connError{h2wire.CodeSettingsTimeout, "no SETTINGS in time"}, h2wire.CodeSettingsTimeout)
	case due(c.blockBy):
		c.fail(&connError{h2wire.CodeEnhanceCalm, "a header block took too long"}, h2wire.CodeEnhanceCalm)
	case idle && due(c.idleSince.Add(cfg.IdleTimeout)):
		c.finalGoAway()
	case c.pingedAt.IsZero() && due(c.lastHeard.Add(cfg.PingAfter)):
		c.pingedAt = now
		c.out = h2wire.AppendPing(c.out, 0, &[8]byte{})
	case !c.pingedAt.IsZero() && due(c.pingedAt.Add(cfg.PingTimeout)):
		c.final = true // nobody is there
		c.fail(errors.New("no answer to PING"), h2wire.CodeNo)
	}
	next := c.lastHeard.Add(cfg.PingAfter)
	if !c.pingedAt.IsZero() {
		next = c.pingedAt.Add(cfg.PingTimeout)
	}
	alarms := [...]time.Time{c.helloBy, c.ackBy, c.blockBy, c.drainBy, c.idleSince.Add(cfg.IdleTimeout)}
	for i, at := range alarms {
		if i == len(alarms)-1 && !idle {
			continue
		}
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	if len(c.left) > 0 && c.left[0].at.Before(next) {
		next = c.left[0].at
	}
	c.arm(next)
	c.flush(false)
}

// settle does what can no longer be put off because the reader is about to wait. It does not wait.
func (c *conn) settle() {
	c.mu.Lock()
	c.batching = false
	c.wakeReaders()
	for c.handlers < c.srv.cfg.MaxStreams {
		s := c.next()
		if s == nil {
			break
		}
		c.srv.workers.run(s)
	}
	if len(c.out)+c.output.Pending() > maxGathered {
		c.fail(&connError{h2wire.CodeEnhanceCalm, "it asks for answers that it does not read"}, h2wire.CodeEnhanceCalm)
	}
	c.flush(false)
}

// next takes the next request that waits for its handler, and counts that; nil if there is none. c.mu is held.
func (c *conn) next() *stream {
	for i, s := range c.pending {
		c.pending[i] = nil
		if s.gone != nil {
			c.dead--
			continue
		}
		s.queued = false
		c.handlers++
		c.running.Add(1)
		if c.pending = c.pending[i+1:]; len(c.pending) == 0 {
			c.pending = c.pending[:0]
		}
		return s
	}
	c.pending = c.pending[:0]
	return nil
}

// unqueue hears that a request was reset before its handler was started. c.mu is held.
func (c *conn) unqueue() {
	if c.dead++; c.dead <= c.srv.cfg.MaxStreams {
		return
	}
	left := c.pending[:0]
	for _, s := range c.pending {
		if s.gone == nil {
			left = append(left, s)
		}
	}
	clear(c.pending[len(left):])
	c.pending, c.dead = left, 0
}

// wakeReaders wakes the handlers for which something has come. c.mu is held.
func (c *conn) wakeReaders() {
	for i, s := range c.wakes {
		s.waking = false
		wake(s.readable)
		c.wakes[i] = nil
	}
	c.wakes = c.wakes[:0]
}

// notify wakes the handler of s, at the latest before the reader waits: there may be more for it until then. c.mu is held.
func (c *conn) notify(s *stream) {
	if !c.batching {
		wake(s.readable)
	} else if !s.waking {
		s.waking = true
		c.wakes = append(c.wakes, s)
	}
}

// remove takes a stream off the connection that has ended. c.mu is held.
func (c *conn) remove(s *stream) {
	delete(c.streams, s.id)
	if s.blocked {
		s.blocked = false
		c.blocked = slices.DeleteFunc(c.blocked, func(b *stream) bool { return b == s })
	}
	c.rest()
}

// rest notes when the connection has nothing more to do. c.mu is held.
func (c *conn) rest() {
	if len(c.streams) == 0 && c.handlers == 0 {
		if cap(c.spareOut) > keepOut {
			c.spareOut = nil
		}
		c.idleSince = time.Now()
		c.arm(c.idleSince.Add(c.srv.cfg.IdleTimeout))
	}
}

// abort resets a stream for the client's fault: its handler, if there is one, finds it gone. c.mu is held.
func (c *conn) abort(s *stream, code h2wire.ErrCode, err error) {
	c.reset(s.id, code)
	c.drop(s, err)
}

// drop ends a stream that is not to be answered any more. c.mu is held.
func (c *conn) drop(s *stream, err error) {
	s.end(err)
	c.remove(s)
	if s.queued {
		c.unqueue()
		s.closeBody()
		c.closeIfIdle()
	}
}

// pay gives n bytes of body back to the connection's window, in portions. c.mu is held.
func (c *conn) pay(n int) {
	if c.recvDebt += n; c.recvDebt >= connWindow/4 && c.state != closed {
		c.out = h2wire.AppendWindowUpdate(c.out, 0, c.recvDebt)
		c.recvWindow += c.recvDebt
		c.recvDebt = 0
	}
}

// leave lets the client go on with a request that has its answer, within the stream's window. Most stop by themselves when
// they have read it. A RST_STREAM right behind the answer has some lose it: curl 7.88 and before, if they are sending. c.mu
// is held.
func (c *conn) leave(id uint32) {
	if len(c.left) == maxLeft {
		c.resetLeft()
	}
	at := time.Now().Add(leaveTime)
	c.left = append(c.left, leftStream{id, at})
	c.arm(at)
}

// resetLeft tells the client to stop sending the oldest request of c.left (RFC 9113 8.1). c.mu is held.
func (c *conn) resetLeft() {
	c.reset(c.left[0].id, h2wire.CodeNo)
	c.left = slices.Delete(c.left, 0, 1)
}

// leaves reports whether a stream is in c.left, which it is not any longer if the client has ended it. c.mu is held.
func (c *conn) leaves(id uint32, end bool) bool {
	i := slices.IndexFunc(c.left, func(l leftStream) bool { return l.id == id })
	if i >= 0 && end {
		c.left = slices.Delete(c.left, i, i+1)
	}
	return i >= 0
}

// wasReset reports whether we have reset a stream lately. c.mu is held.
func (c *conn) wasReset(id uint32) bool {
	if c.ended == nil {
		return false
	}
	for _, e := range c.ended {
		if e == id {
			return true
		}
	}
	return false
}

// connError ends the connection for a fault of the client.
type connError struct {
	code h2wire.ErrCode
	text string
}

func (e *connError) Error() string { return "the client broke HTTP/2: " + e.text }

func protocolError(text string) error { return &connError{h2wire.CodeProtocol, text} }

const (
	// firstReadBuf and maxReadBuf are the lengths of the reading buffer: as a connection begins, and one that is busy. The
	// latter is more than any frame's.
	firstReadBuf = 4 << 10
	maxReadBuf   = 32 << 10
	// maxIdleFrames is how many frames of no use (PING, SETTINGS, PRIORITY, empty DATA, unknown, …) a client may send in ten
	// seconds, besides eight for each that is of use.
	maxIdleFrames = 2000
)

// reader is the receiving side. It belongs to the serving goroutine.
type reader struct {
	c    *conn
	buf  []byte
	r, w int // what is buffered: buf[r:w]
	dec  *hpack.Decoder
	head head

	// A header block in several frames.
	block       []byte
	blockStream uint32 // 0 if none is unfinished
	blockEnd    bool   // with END_STREAM
	selfish     bool   // the block's stream depends on itself

	settled    bool // the first SETTINGS have come
	idleFrames int
	idleSince  time.Time
}

// need waits until n bytes are buffered. n is at most maxReadBuf.
func (r *reader) need(n int) error {
	for r.w-r.r < n {
		switch {
		case r.r == r.w:
			r.r, r.w = 0, 0
		case r.r+n > len(r.buf):
			r.w = copy(r.buf, r.buf[r.r:r.w])
			r.r = 0
		}
		if n > len(r.buf) {
			r.grow(maxReadBuf)
		}
		r.c.settle()
		k, err := r.c.sock.Conn.Read(r.buf[r.w:])
		if r.w += k; r.w == len(r.buf) && len(r.buf) < maxReadBuf {
			r.grow(2 * len(r.buf))
		}
		if k > 0 && !r.c.heard.Load() {
			r.c.heard.Store(true)
		}
		if err != nil && r.w-r.r < n {
			if err == io.EOF && r.w > r.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

func (r *reader) grow(n int) {
	buf := make([]byte, n)
	r.w = copy(buf, r.buf[r.r:r.w])
	r.r, r.buf = 0, buf
}

// preface reads what a client begins with (RFC 9113 3.4).
func (r *reader) preface() error {
	if r.c.sock.Begun {
		return nil
	}
	if err := r.need(len(h2wire.Preface)); err != nil {
		return err
	}
	r.r += len(h2wire.Preface)
	if string(r.buf[r.r-len(h2wire.Preface):r.r]) != h2wire.Preface {
		return protocolError("it does not begin with the preface")
	}
	return nil
}

// frame reads one frame and does what it asks for.
func (r *reader) frame() error {
	if err := r.need(h2wire.FrameHeaderLen); err != nil {
		return err
	}
	h := r.buf[r.r : r.r+h2wire.FrameHeaderLen]
	length := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	typ, flags := h[3], h[4]
	id := binary.BigEndian.Uint32(h[5:]) & h2wire.MaxStreamID
	r.r += h2wire.FrameHeaderLen
	switch {
	case !r.settled && (typ != h2wire.FrameSettings || flags&h2wire.FlagAck != 0):
		return protocolError("its first frame is not SETTINGS")
	case length > h2wire.DefaultMaxFrame:
		return &connError{h2wire.CodeFrameSize, "a frame is too long"}
	case r.blockStream != 0 && (typ != h2wire.FrameContinuation || id != r.blockStream):
		return protocolError("a header block is interrupted")
	case typ == h2wire.FrameData:
		return r.data(id, flags, length)
	}
	if err := r.need(length); err != nil {
		return err
	}
	p := r.buf[r.r : r.r+length]
	r.r += length
	switch typ {
	case h2wire.FrameHeaders:
		return r.headers(id, flags, p)
	case h2wire.FrameContinuation:
		return r.continuation(id, flags, p)
	case h2wire.FramePriority:
		return r.priority(id, p)
	case h2wire.FrameReset:
		return r.reset(id, p)
	case h2wire.FrameSettings:
		return r.settings(id, flags, p)
	case h2wire.FramePing:
		return r.ping(id, flags, p)
	case h2wire.FrameGoAway:
		return r.goAway(id, p)
	case h2wire.FrameWindowUpdate:
		return r.windowUpdate(id, p)
	case h2wire.FramePushPromise:
		return protocolError("PUSH_PROMISE")
	default:
		return r.idle(1)
	}
}

// useful counts a frame that brings a request forward, which others may go with.
func (r *reader) useful() { r.idleFrames = max(r.idleFrames-8, 0) }

// idle counts a frame of no use, by what it costs us.
func (r *reader) idle(cost int) error {
	if r.idleFrames += cost; r.idleFrames < maxIdleFrames {
		return nil
	}
	r.idleFrames = 0
	now := time.Now()
	if now.Sub(r.idleSince) < 10*time.Second {
		return &connError{h2wire.CodeEnhanceCalm, "too many frames of no use"}
	}
	r.idleSince = now
	return nil
}

// echo counts a frame of those that clients send with what they get: a WINDOW_UPDATE for the stream and one for the
// connection, and, to measure the path, a PING. c.mu is held.
func (r *reader) echo() error {
	if r.c.echoes > 0 {
		r.c.echoes--
		return nil
	}
	return r.idle(1)
}

// lock takes c.mu for what a frame changes.
func (r *reader) lock() *conn {
	r.c.mu.Lock()
	r.c.batching = true
	return r.c
}

// stream is the open stream with an ID, or nil if it is no longer. c.mu is held.
func (c *conn) stream(id uint32) (*stream, error) {
	if s, ok := c.streams[id]; ok {
		return s, nil
	}
	if id%2 == 0 || id > c.maxID && !c.ignored(id) {
		return nil, protocolError("a frame of a stream that was never opened")
	}
	return nil, nil //nolint:nilnil // as said
}

// ignored reports whether a stream is one that the client opened after our last GOAWAY. c.mu is held.
func (c *conn) ignored(id uint32) bool { return c.final && id > c.lastID }

// faulty counts a request that the client reset before there was an answer and its timeout had run out, or that the client should not
// have made. c.mu is held.
func (c *conn) faulty() error {
	if c.bad++; c.requests >= leastRequests && 2*c.bad >= c.requests {
		return &connError{h2wire.CodeEnhanceCalm, "too many requests that come to nothing"}
	}
	return nil
}

var (
	errMalformed = errors.New("the client's request is malformed")
	errReset     = errors.New("the client has reset the stream")
)

// data reads a DATA frame.
func (r *reader) data(id uint32, flags byte, length int) error {
	n, pad := length, 0
	if flags&h2wire.FlagPadded != 0 {
		if length < 1 {
			return &connError{h2wire.CodeFrameSize, "DATA without its padding length"}
		}
		if err := r.need(1); err != nil {
			return err
		}
		pad = int(r.buf[r.r])
		r.r++
		if n--; pad > n {
			return protocolError("more padding than DATA")
		}
		n -= pad
	}
	empty, end := n == 0, flags&h2wire.FlagEndStream != 0
	c := r.lock()
	s, err := c.stream(id)
	if err == nil {
		if c.recvWindow -= length; c.recvWindow < 0 {
			err = &connError{h2wire.CodeFlowControl, "more DATA than the connection's window"}
		}
	}
	if err == nil && s == nil {
		c.pay(length)
		if !c.leaves(id, end) && !c.wasReset(id) && !c.ignored(id) {
			c.reset(id, h2wire.CodeStreamClosed)
			err = c.faulty()
		}
		empty = true
	}
	if err == nil && s != nil {
		switch s.recvWindow -= length; {
		case s.remoteClosed:
			err = c.refuse(s, h2wire.CodeStreamClosed, length)
			s = nil
		case s.recvWindow < 0:
			err = c.refuse(s, h2wire.CodeFlowControl, length)
			s = nil
		case s.declared >= 0 && s.received+int64(n) > s.declared, end && s.declared >= 0 && s.received+int64(n) != s.declared:
			err = c.refuse(s, h2wire.CodeProtocol, length)
			s = nil
		default:
			s.received += int64(n)
			c.pay(length - n)
			s.pay(length - n)
		}
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if s == nil {
		if err := r.skip(n); err != nil {
			return err
		}
	}
	for s != nil && n > 0 {
		if r.r == r.w {
			if err := r.need(1); err != nil {
				return err
			}
		}
		p := r.buf[r.r:r.w]
		p = p[:min(len(p), n)]
		c = r.lock()
		s.take(p)
		c.mu.Unlock()
		r.r += len(p)
		n -= len(p)
	}
	if s != nil && end {
		c = r.lock()
		s.closeRemote()
		c.mu.Unlock()
	}
	if !empty || end && s != nil {
		r.useful()
	} else if err := r.idle(1); err != nil {
		return err
	}
	return r.skip(pad)
}

// refuse aborts a stream for a fault of a DATA frame, whose length in bytes is given back. c.mu is held.
func (c *conn) refuse(s *stream, code h2wire.ErrCode, length int) error {
	c.pay(length)
	c.abort(s, code, errMalformed)
	return c.faulty()
}

// skip passes over n bytes.
func (r *reader) skip(n int) error {
	for n > 0 {
		if r.w == r.r {
			if err := r.need(1); err != nil {
				return err
			}
		}
		k := min(n, r.w-r.r)
		r.r += k
		n -= k
	}
	return nil
}

// headers reads a HEADERS frame.
func (r *reader) headers(id uint32, flags byte, p []byte) error {
	if id%2 == 0 {
		return protocolError("HEADERS of no stream of the client's")
	}
	if flags&h2wire.FlagPadded != 0 {
		if len(p) < 1 || int(p[0]) > len(p)-1 {
			return protocolError("more padding than HEADERS")
		}
		p = p[1 : len(p)-int(p[0])]
	}
	r.selfish = false
	if flags&h2wire.FlagPriority != 0 {
		if len(p) < 5 {
			return &connError{h2wire.CodeFrameSize, "HEADERS without the priority it announces"}
		}
		r.selfish = binary.BigEndian.Uint32(p)&h2wire.MaxStreamID == id
		p = p[5:]
	}
	end := flags&h2wire.FlagEndStream != 0
	if flags&h2wire.FlagEndHeaders != 0 {
		return r.decode(id, end, p)
	}
	r.blockStream, r.blockEnd = id, end
	r.block = append(r.block[:0], p...)
	c := r.lock()
	c.blockBy = time.Now().Add(c.srv.cfg.HeaderTimeout)
	c.arm(c.blockBy)
	c.mu.Unlock()
	return nil
}

func (r *reader) continuation(id uint32, flags byte, p []byte) error {
	if r.blockStream == 0 {
		return protocolError("CONTINUATION of nothing")
	}
	if len(p) < 64 {
		if err := r.idle(16); err != nil {
			return err
		}
	}
	if len(r.block)+len(p) > 2*r.head.limit+h2wire.DefaultMaxFrame {
		return &connError{h2wire.CodeEnhanceCalm, "a header block far over the limit"}
	}
	r.block = append(r.block, p...)
	if flags&h2wire.FlagEndHeaders == 0 {
		return nil
	}
	r.blockStream = 0
	c := r.lock()
	c.blockBy = time.Time{}
	c.mu.Unlock()
	err := r.decode(id, r.blockEnd, r.block)
	r.block = nil
	return err
}

// decode decodes a header block, for the table's sake even if it is of no stream, and gives it to the stream.
func (r *reader) decode(id uint32, end bool, block []byte) error {
	h := &r.head
	h.reset()
	if _, err := r.dec.Write(block); err != nil {
		return &connError{h2wire.CodeCompression, err.Error()}
	}
	if err := r.dec.Close(); err != nil {
		return &connError{h2wire.CodeCompression, err.Error()}
	}
	if h.over { // a few bytes may name a long field of the table again and again
		if err := r.idle(8 * h.size / h.limit); err != nil {
			return err
		}
	}
	c := r.lock()
	defer c.mu.Unlock()
	if s, ok := c.streams[id]; ok {
		return r.trailers(s, end)
	}
	if id <= c.maxID {
		if c.leaves(id, end) || c.wasReset(id) {
			return r.idle(1)
		}
		return &connError{h2wire.CodeStreamClosed, "HEADERS of a stream that has ended"}
	}
	if c.ignored(id) {
		return r.idle(8)
	}
	c.maxID = id
	c.requests++
	if len(c.streams) >= c.srv.cfg.MaxStreams {
		c.reset(id, h2wire.CodeRefused)
		return c.faulty()
	}
	s := newStream(c, id, end)
	if r.selfish || !h.over && !h.request(s, end) {
		c.reset(id, h2wire.CodeProtocol)
		return c.faulty()
	}
	r.useful()
	if h.over {
		h.bare(s)
		if err := c.faulty(); err != nil {
			return err
		}
	}
	c.streams[id] = s
	s.queued = true
	c.pending = append(c.pending, s)
	return nil
}

// trailers takes the header block that ends a request, and of which nothing is kept. c.mu is held.
func (r *reader) trailers(s *stream, end bool) error {
	c, h := r.c, &r.head
	code := h2wire.CodeProtocol
	switch {
	case s.remoteClosed:
		code = h2wire.CodeStreamClosed
	case end && !r.selfish && !h.fault && h.pseudo == 0 && (s.declared < 0 || s.received == s.declared):
		s.closeRemote()
		r.useful()
		return nil
	}
	c.abort(s, code, errMalformed)
	return c.faulty()
}

// priority reads a PRIORITY frame, which is of no effect.
func (r *reader) priority(id uint32, p []byte) error {
	switch {
	case id == 0:
		return protocolError("PRIORITY of no stream")
	case len(p) != 5:
		return &connError{h2wire.CodeFrameSize, "PRIORITY"}
	case binary.BigEndian.Uint32(p)&h2wire.MaxStreamID == id:
		return protocolError("a stream that depends on itself")
	}
	return r.idle(1)
}

// reset reads an RST_STREAM frame.
func (r *reader) reset(id uint32, p []byte) error {
	if len(p) != 4 {
		return &connError{h2wire.CodeFrameSize, "RST_STREAM"}
	}
	c := r.lock()
	defer c.mu.Unlock()
	s, err := c.stream(id)
	switch {
	case err != nil:
		return err
	case s == nil:
		c.leaves(id, true)
		return r.idle(1)
	}
	c.drop(s, errReset)
	if s.committed { // it has come to something, and many a stream has no other end
		return nil
	}
	if !s.overdue.IsZero() && !time.Now().Before(s.overdue) {
		return nil
	}
	return c.faulty()
}

// settings reads a SETTINGS frame.
func (r *reader) settings(id uint32, flags byte, p []byte) error {
	switch {
	case id != 0:
		return protocolError("SETTINGS of a stream")
	case flags&h2wire.FlagAck != 0 && len(p) != 0, len(p)%6 != 0:
		return &connError{h2wire.CodeFrameSize, "SETTINGS"}
	}
	if err := r.idle(1 + len(p)); err != nil {
		return err
	}
	c := r.lock()
	defer c.mu.Unlock()
	if flags&h2wire.FlagAck != 0 {
		c.ackBy = time.Time{}
		return nil
	}
	for ; len(p) > 0; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case h2wire.SettingHeaderTableSize:
			c.enc.setLimit(v)
		case h2wire.SettingEnablePush:
			if v > 1 {
				return protocolError("SETTINGS_ENABLE_PUSH")
			}
		case h2wire.SettingInitialWindow:
			if v > h2wire.MaxWindow {
				return &connError{h2wire.CodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE"}
			}
			delta := int64(v) - c.initialWindow
			c.initialWindow = int64(v)
			for _, s := range c.streams {
				if s.sendWindow += delta; s.sendWindow > h2wire.MaxWindow {
					return &connError{h2wire.CodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE"}
				}
				wake(s.sendable)
			}
		case h2wire.SettingMaxFrame:
			if v < 16<<10 || v > 1<<24-1 {
				return protocolError("SETTINGS_MAX_FRAME_SIZE")
			}
			c.maxFrame = int(min(v, 64<<10)) // longer ones would keep other streams waiting
		}
	}
	c.out = h2wire.AppendFrame(c.out, 0, h2wire.FrameSettings, h2wire.FlagAck, 0)
	r.settled = true
	c.helloBy = time.Time{}
	return nil
}

// ping reads a PING frame.
func (r *reader) ping(id uint32, flags byte, p []byte) error {
	switch {
	case id != 0:
		return protocolError("PING of a stream")
	case len(p) != 8:
		return &connError{h2wire.CodeFrameSize, "PING"}
	}
	c := r.lock()
	defer c.mu.Unlock()
	if err := r.echo(); err != nil {
		return err
	}
	switch {
	case flags&h2wire.FlagAck == 0:
		c.out = h2wire.AppendPing(c.out, h2wire.FlagAck, (*[8]byte)(p))
	case *(*[8]byte)(p) == drainPing && !c.drainBy.IsZero():
		c.finalGoAway()
	}
	return nil
}

// goAway reads a GOAWAY frame: the client opens no more streams, whatever it says.
func (r *reader) goAway(id uint32, p []byte) error {
	switch {
	case id != 0:
		return protocolError("GOAWAY of a stream")
	case len(p) < 8:
		return &connError{h2wire.CodeFrameSize, "GOAWAY"}
	}
	c := r.lock()
	defer c.mu.Unlock()
	c.finalGoAway()
	return r.idle(1)
}

// windowUpdate reads a WINDOW_UPDATE frame.
func (r *reader) windowUpdate(id uint32, p []byte) error {
	if len(p) != 4 {
		return &connError{h2wire.CodeFrameSize, "WINDOW_UPDATE"}
	}
	n := int64(binary.BigEndian.Uint32(p) & h2wire.MaxWindow)
	c := r.lock()
	defer c.mu.Unlock()
	if err := r.echo(); err != nil {
		return err
	}
	if id == 0 {
		c.sendWindow += n
		switch {
		case n == 0:
			return protocolError("WINDOW_UPDATE of 0")
		case c.sendWindow > h2wire.MaxWindow:
			return &connError{h2wire.CodeFlowControl, "WINDOW_UPDATE past 2 GiB"}
		}
		c.wakeBlocked()
		return nil
	}
	s, err := c.stream(id)
	switch {
	case err != nil:
		return err
	case s == nil:
		return nil
	case n == 0:
		c.abort(s, h2wire.CodeProtocol, errMalformed)
		return c.faulty()
	case s.sendWindow+n > h2wire.MaxWindow:
		c.abort(s, h2wire.CodeFlowControl, errMalformed)
		return c.faulty()
	default:
		s.sendWindow += n
		wake(s.sendable)
	}
	return nil
}
