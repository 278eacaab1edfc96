package listeners

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/flate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// wsOp is the opcode of a WebSocket frame (RFC 6455 section 5.2).
type wsOp byte

const (
	opContinuation wsOp = 0x0
	opText         wsOp = 0x1
	opBinary       wsOp = 0x2
	opClose        wsOp = 0x8
	opPing         wsOp = 0x9
	opPong         wsOp = 0xa
)

// Close codes (RFC 6455 section 7.4.1); 4000 + a gRPC code tells a status.
const (
	closeNormal      = 1000
	closeGoingAway   = 1001
	closeProtocol    = 1002
	closeUnsupported = 1003
	closeNoCode      = 1005
	closeInvalidData = 1007
	closePolicy      = 1008
	closeTooBig      = 1009
	closeStatus      = 4000
)

const (
	// wsSmallBuffer is the read buffer that every socket has. A larger one is borrowed while a socket is busy.
	wsSmallBuffer = 256
	wsBigBuffer   = 4 << 10
	// wsQueueLen is how much may wait to be written before Send waits.
	wsQueueLen = 64 << 10
	// wsWriteLen is how much is gathered before it is written without being flushed.
	wsWriteLen = 16 << 10
	// wsBusy is how long a busy socket may be silent before it gives its large buffer back.
	wsBusy = 5 * time.Second
	// wsCloseWait is how long a closing socket waits for the client's close frame.
	wsCloseWait = 3 * time.Second
	// wsDeflateLen is the size from which a message is compressed, if that was agreed.
	wsDeflateLen = 512
	// wsWritePiece is how much is written at a time: a client has IdleWrite for each piece.
	wsWritePiece = 64 << 10
	// wsStep is how much of a large message is allocated before any of it has come.
	wsStep = 64 << 10
)

// wsFault is what the client did that a WebSocket is closed for, or why the server closes it of itself.
type wsFault struct {
	close  int
	code   codes.Code
	reason string
}

func (e *wsFault) Error() string              { return e.reason }
func (e *wsFault) GRPCStatus() *status.Status { return status.New(e.code, e.reason) }

func protocolFault(reason string) *wsFault {
	return &wsFault{closeProtocol, codes.InvalidArgument, reason}
}

// errInterrupted is what next returns after interrupt.
var errInterrupted = errors.New("read interrupted")

// wsMessage is one message from the client.
type wsMessage struct {
	op   wsOp
	data []byte
	pool *[]byte // where data comes from, if it is from grpc's pool
}

// take hands the data over as an rpc.Message.
func (m wsMessage) take() rpc.Message {
	if m.pool != nil {
		return rpc.PooledMessage(m.pool, mem.DefaultBufferPool())
	}
	return rpc.NewMessage(m.data)
}

// release gives the data back.
func (m wsMessage) release() {
	if m.pool != nil {
		mem.DefaultBufferPool().Put(m.pool)
	}
}

// wsConn is the server's side of a WebSocket (RFC 6455) on a connection taken over from net/http. It has no goroutine and,
// while nothing happens, no buffers but a small one for reading. Pings go out when the client is silent, as part of
// reading, so somebody must read.
//
// # Concurrency
// One goroutine may read (next, closeWait) while any others write. interrupt may be called by anyone.
type wsConn struct {
	nc      net.Conn
	cfg     *WebSocketConfig
	max     int  // largest message, in bytes
	deflate bool // permessage-deflate was agreed
	async   bool // writes are made by a goroutine of their own

	// Of the reader.
	small    [wsSmallBuffer]byte
	big      *[]byte // of wsReadBuffers; nil while the socket is not busy
	start    int     // buf()[start:end] is read and not consumed
	end      int
	filled   bool // the small buffer was filled by one read
	heard    bool // something came since the last tick
	pinged   bool // a ping was sent and nothing came since
	lastData time.Time
	closed   bool // the client's close frame came
	skip     int  // bytes of the present frame that closeWait must pass over
	lost     bool // where frames begin is not known any more

	// data: a data message came or went since the last tick.
	data atomic.Bool

	deadlineMu  sync.Mutex // guards the read deadline
	interrupted bool

	mu        sync.Mutex // guards what follows
	out       *[]byte    // frames not yet handed to the kernel; nil if there are none
	controls  int        // bytes of control frames in out
	writing   bool
	hurried   bool          // what is being written has its last deadline
	last      bool          // so has all that is yet to be written
	room      chan struct{} // closed when out has been taken; nil while nobody waits
	writeErr  error
	closeSent bool
}

// wsReadBuffers are lent to busy sockets, wsWriteBuffers to those with something to write.
var (
	wsReadBuffers  = sync.Pool{New: func() any { b := make([]byte, wsBigBuffer); return &b }}
	wsWriteBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}
)

// newWSConn takes over nc, of which buffered has been read already.
func newWSConn(nc net.Conn, buffered []byte, cfg *WebSocketConfig, maxMessage int) *wsConn {
	c := &wsConn{nc: nc, cfg: cfg, max: maxMessage, lastData: time.Now()}
	if len(buffered) > 0 {
		b := make([]byte, max(len(buffered), wsBigBuffer))
		c.end = copy(b, buffered)
		c.big = &b
	}
	c.arm(cfg.PingInterval)
	return c
}

func (c *wsConn) buf() []byte {
	if c.big != nil {
		return *c.big
	}
	return c.small[:]
}

// arm sets when the reader is to look up if nothing comes.
func (c *wsConn) arm(d time.Duration) {
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	if !c.interrupted {
		_ = c.nc.SetReadDeadline(time.Now().Add(d))
	}
}

// interrupt ends the present read and every later one, except those of closeWait.
func (c *wsConn) interrupt() {
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	c.interrupted = true
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// read reads into p at least one byte. It wakes up from time to time to see whether the client is there.
func (c *wsConn) read(p []byte) (int, error) {
	for {
		n, err := c.nc.Read(p)
		if n > 0 {
			c.heard = true
			return n, nil
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, rpc.ErrClientGone
		}
		if err := c.tick(); err != nil {
			return 0, err
		}
	}
}

// tick is what the reader does when its deadline has passed: nothing, if something came since the last; else ask the client
// for a sign of life, or give it up.
func (c *wsConn) tick() error {
	c.deadlineMu.Lock()
	interrupted := c.interrupted
	c.deadlineMu.Unlock()
	if interrupted {
		return errInterrupted
	}
	now := time.Now()
	if c.data.Swap(false) {
		c.lastData = now
	} else if c.cfg.IdleTimeout > 0 && now.Sub(c.lastData) >= c.cfg.IdleTimeout {
		return &wsFault{closeGoingAway, codes.Canceled, "idle for too long"}
	}
	next := c.cfg.PingInterval
	switch {
	case c.heard:
		c.heard, c.pinged = false, false
		if c.big != nil {
			next = min(next, wsBusy)
		}
	case c.pinged:
		return rpc.ErrClientGone
	default:
		if c.start == c.end {
			c.shrink()
		}
		c.pinged = true
		next = c.cfg.PongTimeout
		c.control(opPing, nil)
	}
	c.arm(next)
	return nil
}

// need makes n unconsumed bytes available, at most the longest frame header.
func (c *wsConn) need(n int) error {
	for c.end-c.start < n {
		if c.start == c.end {
			c.start, c.end = 0, 0
			if c.big == nil && c.filled {
				c.big, _ = wsReadBuffers.Get().(*[]byte)
				c.arm(min(c.cfg.PingInterval, wsBusy))
			}
		}
		buf := c.buf()
		if len(buf)-c.start < n {
			c.end = copy(buf, buf[c.start:c.end])
			c.start = 0
		}
		m, err := c.read(buf[c.end:])
		if err != nil {
			return err
		}
		c.end += m
		c.filled = c.filled || c.big == nil && c.end == len(buf)
	}
	return nil
}

// frameHead is the head of one frame.
type frameHead struct {
	op         wsOp
	fin        bool
	compressed bool
	n          int
	key        [4]byte
}

// head reads the head of the next frame and checks it (RFC 6455 section 5.2).
func (c *wsConn) head() (h frameHead, err error) {
	defer func() {
		if _, ok := errors.AsType[*wsFault](err); ok {
			c.lost = true
		}
	}()
	if err = c.need(2); err != nil {
		return h, err
	}
	b := c.buf()[c.start:c.end]
	h.op, h.fin = wsOp(b[0]&0x0f), b[0]&0x80 != 0
	h.compressed = b[0]&0x40 != 0
	if b[0]&0x30 != 0 || h.compressed && (!c.deflate || h.op != opText && h.op != opBinary) {
		return h, protocolFault("reserved bits are set in a frame")
	}
	if b[1]&0x80 == 0 {
		return h, protocolFault("a client's frame is not masked")
	}
	h.n = int(b[1] & 0x7f)
	long := 0
	switch h.n {
	case 126:
		long = 2
	case 127:
		long = 8
	}
	if h.op >= opClose && (!h.fin || long > 0) {
		return h, protocolFault("a control frame is fragmented or too long")
	}
	if h.op > opPong || h.op > opBinary && h.op < opClose {
		return h, protocolFault("unknown kind of frame")
	}
	if err = c.need(2 + long + 4); err != nil {
		return h, err
	}
	b = c.buf()[c.start:c.end]
	switch long {
	case 2:
		h.n = int(binary.BigEndian.Uint16(b[2:]))
		if h.n < 126 {
			return h, protocolFault("a frame's length is not in its shortest form")
		}
	case 8:
		n := binary.BigEndian.Uint64(b[2:])
		if n < 1<<16 || n > 1<<62 {
			return h, protocolFault("a frame's length is not in its shortest form")
		}
		h.n = int(n)
	}
	copy(h.key[:], b[2+long:])
	c.start += 2 + long + 4
	c.skip = h.n
	return h, nil
}

// payload appends the n bytes of a frame to dst and unmasks them. Large ones are allocated as they come, so that a client
// cannot make the server hold much more than it has sent, in however many frames.
func (c *wsConn) payload(dst []byte, h frameHead) ([]byte, error) {
	from := len(dst)
	for left := h.n; left > 0; {
		step := min(left, max(wsStep, len(dst)-from))
		if cap(dst)-len(dst) < step {
			dst = append(make([]byte, 0, max(len(dst)+step, min(2*len(dst), c.max))), dst...)
		}
		p := dst[len(dst) : len(dst)+step]
		n := copy(p, c.buf()[c.start:c.end])
		c.start += n
		c.skip -= n
		for n < step {
			m, err := c.read(p[n:])
			if err != nil {
				return dst, err
			}
			n += m
			c.skip -= m
		}
		dst = dst[:len(dst)+step]
		left -= step
	}
	unmask(dst[from:], h.key)
	return dst, nil
}

// unmask undoes the masking of a client's frame (RFC 6455 section 5.3).
func unmask(b []byte, key [4]byte) {
	k := binary.LittleEndian.Uint32(key[:])
	k8 := uint64(k)<<32 | uint64(k)
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^k8)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= key[i&3]
	}
}

// next returns the client's next text or binary message, whole, and answers control frames on the way. The error is a
// *wsFault if the client is to be told of it by a close frame, rpc.ErrClientGone if it has left, or errInterrupted.
func (c *wsConn) next() (wsMessage, error) {
	var m wsMessage
	var compressed bool
	for {
		h, err := c.head()
		if err != nil {
			m.release()
			return wsMessage{}, err
		}
		if h.op >= opClose {
			if err := c.handleControl(h); err != nil {
				m.release()
				return wsMessage{}, err
			}
			continue
		}
		switch {
		case h.op == opContinuation && m.op == 0:
			return wsMessage{}, protocolFault("a continuation frame continues nothing")
		case h.op != opContinuation && m.op != 0:
			m.release()
			return wsMessage{}, protocolFault("a message begins inside another")
		case h.op != opContinuation:
			m.op, compressed = h.op, h.compressed
			if h.fin && h.n <= wsStep && !mem.IsBelowBufferPoolingThreshold(h.n) {
				m.pool = mem.DefaultBufferPool().Get(h.n)
				m.data = (*m.pool)[:0]
			}
		}
		if len(m.data)+h.n > c.max || h.n > c.max {
			m.release()
			return wsMessage{}, c.tooBig()
		}
		if m.data, err = c.payload(m.data, h); err != nil {
			m.release()
			return wsMessage{}, err
		}
		if h.fin {
			break
		}
	}
	c.data.Store(true)
	if compressed {
		data, err := inflate(m.data, c.max)
		m.release()
		if err == errInflatedTooBig {
			return wsMessage{}, c.tooBig()
		}
		if err != nil {
			return wsMessage{}, &wsFault{closeInvalidData, codes.InvalidArgument, "a compressed message cannot be decompressed"}
		}
		m.data, m.pool = data, nil
	}
	if m.op == opText && !utf8.Valid(m.data) {
		m.release()
		return wsMessage{}, &wsFault{closeInvalidData, codes.InvalidArgument, "a text message is not valid UTF-8"}
	}
	if m.pool != nil {
		*m.pool = m.data
	}
	return m, nil
}

func (c *wsConn) tooBig() error {
	return &wsFault{closeTooBig, codes.ResourceExhausted, "message is larger than the limit of " + strconv.Itoa(c.max) + " bytes"}
}

// handleControl answers a ping and a close.
func (c *wsConn) handleControl(h frameHead) error {
	p, err := c.payload(nil, h)
	if err != nil {
		return err
	}
	switch h.op {
	case opPing:
		c.control(opPong, p)
		return nil
	case opPong:
		return nil
	}
	c.closed = true
	code := closeNoCode
	switch {
	case len(p) == 1:
		return protocolFault("a close frame has half a code")
	case len(p) > 1:
		code = int(binary.BigEndian.Uint16(p))
		if code < 1000 || code > 4999 || code >= 1016 && code < 3000 || code == 1004 || code == 1005 || code == 1006 || code == 1015 {
			return protocolFault("a close frame has a code that must not be sent")
		}
		if !utf8.Valid(p[2:]) {
			return &wsFault{closeInvalidData, codes.InvalidArgument, "the reason of a close frame is not valid UTF-8"}
		}
	}
	c.sendClose(code, "")
	return rpc.ErrClientGone
}

// appendHead appends the head of a frame that is a whole message.
func appendHead(dst []byte, op wsOp, compressed bool, n int) []byte {
	first := byte(op) | 0x80
	if compressed {
		first |= 0x40
	}
	switch {
	case n < 126:
		return append(dst, first, byte(n)) //nolint:gosec // checked
	case n < 1<<16:
		return append(dst, first, 126, byte(n>>8), byte(n)) //nolint:gosec // checked
	}
	return binary.BigEndian.AppendUint64(append(dst, first, 127), uint64(n))
}

// control queues a ping or pong. Those for which there is no room, since the client does not read, are left out.
func (c *wsConn) control(op wsOp, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writeErr != nil || c.closeSent || c.controls > 1<<10 {
		return
	}
	b := c.queue()
	*b = append(appendHead(*b, op, false, len(payload)), payload...)
	c.controls += len(payload) + 2
	if !c.writing {
		c.writing = true
		go c.write()
	}
}

// queue returns the buffer of what is to be written. mu is held.
func (c *wsConn) queue() *[]byte {
	if c.out == nil {
		c.out, _ = wsWriteBuffers.Get().(*[]byte)
	}
	return c.out
}

// send queues one message, given in parts, and waits if there is no room or until done. Nothing is written before flush,
// or before much is queued. plain has the message sent as it is, compression agreed or not.
func (c *wsConn) send(done <-chan struct{}, op wsOp, plain bool, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	var deflated *[]byte
	if c.deflate && !plain && n >= wsDeflateLen {
		deflated, _ = wsWriteBuffers.Get().(*[]byte)
		defer putWSWriteBuffer(deflated)
		*deflated = deflate((*deflated)[:0], parts)
		parts, n = [][]byte{*deflated}, len(*deflated)
	}
	if !c.data.Load() {
		c.data.Store(true)
	}
	c.mu.Lock()
	for c.out != nil && len(*c.out) > 0 && len(*c.out)+n > wsQueueLen && c.writeErr == nil {
		if !c.writing {
			c.startWrite()
			continue
		}
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room := c.room
		c.mu.Unlock()
		select {
		case <-room:
		case <-done:
			return errInterrupted
		}
		c.mu.Lock()
	}
	if c.writeErr != nil || c.closeSent {
		c.mu.Unlock()
		return rpc.ErrClientGone
	}
	b := c.queue()
	*b = appendHead(*b, op, deflated != nil, n)
	for _, p := range parts {
		*b = append(*b, p...)
	}
	if len(*b) >= wsWriteLen && !c.writing {
		c.startWrite()
	}
	err := c.writeErr
	c.mu.Unlock()
	return err
}

// flush has what is queued written. If the socket is not async, it is then written, or is being written by another.
func (c *wsConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out != nil && !c.writing {
		c.startWrite()
	}
	return c.writeErr
}

// startWrite writes what is queued. mu is held, and given up in between.
func (c *wsConn) startWrite() {
	c.writing = true
	if c.async {
		go c.write()
		return
	}
	c.mu.Unlock()
	c.write()
	c.mu.Lock()
}

// write writes until nothing is queued.
func (c *wsConn) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.out != nil && c.writeErr == nil {
		b := c.out
		c.out, c.controls, c.hurried = nil, 0, false
		if c.room != nil {
			close(c.room)
			c.room = nil
		}
		for left := *b; len(left) > 0; {
			if !c.hurried && !c.last {
				_ = c.nc.SetWriteDeadline(time.Now().Add(c.cfg.idleWrite))
			}
			c.mu.Unlock()
			n, err := c.nc.Write(left[:min(len(left), wsWritePiece)])
			left = left[n:]
			c.mu.Lock()
			if err != nil {
				c.fail()
				break
			}
		}
		putWSWriteBuffer(b)
	}
	c.writing = false
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
}

// fail marks the socket as one that cannot be written to. mu is held.
func (c *wsConn) fail() {
	c.writeErr = rpc.ErrClientGone
	if c.out != nil {
		putWSWriteBuffer(c.out)
		c.out = nil
	}
}

func putWSWriteBuffer(b *[]byte) {
	if cap(*b) <= 2*wsQueueLen {
		*b = (*b)[:0]
		wsWriteBuffers.Put(b)
	}
}

// hurry gives a write that is blocked now only writeGrace more: the call is over.
func (c *wsConn) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writing {
		c.hurried = true
		_ = c.nc.SetWriteDeadline(time.Now().Add(writeGrace))
	}
}

// lastWrites gives all that is yet to be written idleWrite together, or what hurry left: the socket ends, and waits for it.
func (c *wsConn) lastWrites() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limitWrites()
}

// limitWrites is lastWrites with mu held.
func (c *wsConn) limitWrites() {
	if c.last {
		return
	}
	c.last = true
	if !c.writing || !c.hurried {
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.cfg.idleWrite))
	}
}

// sendClose queues a close frame, once, behind everything else, and has it written within the time of lastWrites. 1005 stands for a
// frame without code.
func (c *wsConn) sendClose(code int, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writeErr != nil || c.closeSent {
		return
	}
	c.closeSent = true
	c.limitWrites()
	b := c.queue()
	if code == closeNoCode {
		*b = appendHead(*b, opClose, false, 0)
	} else {
		reason = closeReason(reason)
		*b = appendHead(*b, opClose, false, 2+len(reason))
		*b = binary.BigEndian.AppendUint16(*b, uint16(code)) //nolint:gosec // close codes are below 5000
		*b = append(*b, reason...)
	}
	if !c.writing {
		c.startWrite()
	}
}

// close ends the socket: a close frame, a short wait for the client's own, and the end of the connection. The caller is
// the reader.
func (c *wsConn) close(code int, reason string) {
	c.sendClose(code, reason)
	c.mu.Lock()
	for c.writing {
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room := c.room
		c.mu.Unlock()
		<-room
		c.mu.Lock()
	}
	broken := c.writeErr != nil
	c.fail()
	c.mu.Unlock()
	if !broken && !c.closed {
		c.closeWait()
	}
	_ = c.nc.Close()
	c.shrink()
}

// shrink gives the large read buffer back.
func (c *wsConn) shrink() {
	if c.big != nil && len(*c.big) == wsBigBuffer {
		wsReadBuffers.Put(c.big)
	}
	c.big, c.filled = nil, false
	c.start, c.end = 0, 0
}

// closeWait reads and throws away until the client's close frame has come, or the connection has ended, or wsCloseWait is
// over. Closing without it may reset the connection before the client has read the status.
func (c *wsConn) closeWait() {
	c.deadlineMu.Lock()
	_ = c.nc.SetReadDeadline(time.Now().Add(wsCloseWait))
	c.interrupted = true // a deadline that passes is the end
	c.deadlineMu.Unlock()
	for {
		for c.skip > 0 || c.lost {
			if c.start == c.end {
				n, err := c.read(c.buf())
				if err != nil {
					return
				}
				c.start, c.end = 0, n
			}
			n := c.end - c.start
			if !c.lost {
				n = min(n, c.skip)
			}
			c.start += n
			c.skip -= n
		}
		if h, err := c.head(); err != nil || h.op == opClose {
			return
		}
	}
}

// closeReason cuts msg to the 123 bytes that a close frame holds (RFC 6455 section 5.5), on a character border.
func closeReason(msg string) string {
	const limit = 123
	if !utf8.ValidString(msg) {
		msg = string(bytes.ToValidUTF8([]byte(msg), []byte("\uFFFD")))
	}
	if len(msg) <= limit {
		return msg
	}
	n := limit
	for !utf8.RuneStart(msg[n]) {
		n--
	}
	return msg[:n]
}

// permessage-deflate (RFC 7692), always without context takeover: nothing is kept between messages.
var (
	inflaters = sync.Pool{New: func() any { return flate.NewReader(nil) }}
	deflaters = sync.Pool{New: func() any {
		w, _ := flate.NewWriter(nil, flate.BestSpeed) // the level is valid
		return w
	}}
	errInflatedTooBig = errors.New("message is too large when decompressed")
)

// deflateTail ends every compressed message and is left out on the wire (RFC 7692 section 7.2.1); the empty final block
// behind it makes an end that flate knows.
const deflateTail = "\x00\x00\xff\xff" + "\x01\x00\x00\xff\xff"

// inflate decompresses a message of at most limit bytes.
func inflate(data []byte, limit int) ([]byte, error) {
	r, _ := inflaters.Get().(io.ReadCloser)
	defer inflaters.Put(r)
	src := io.MultiReader(bytes.NewReader(data), bytes.NewReader([]byte(deflateTail)))
	if err := r.(flate.Resetter).Reset(src, nil); err != nil { //nolint:forcetypeassert // flate says so
		return nil, err
	}
	var buf bytes.Buffer
	n, err := io.Copy(&buf, io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if n > int64(limit) {
		return nil, errInflatedTooBig
	}
	return buf.Bytes(), nil
}

// sliceWriter appends to a slice.
type sliceWriter struct{ b []byte }

func (w *sliceWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// deflate appends the parts, compressed as one message, to dst.
func deflate(dst []byte, parts [][]byte) []byte {
	w, _ := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	sw := &sliceWriter{dst}
	w.Reset(sw)
	for _, p := range parts {
		_, _ = w.Write(p) // a slice takes everything
	}
	_ = w.Flush()
	return sw.b[:len(sw.b)-4]
}
