package h2client

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"transom/rpc/h2wire"
)

// errEnded is that a stream has ended before all was sent.
var errEnded = errors.New("the stream has ended")

// Stream is one call. See the package's documentation.
type Stream struct {
	c     *Conn
	ctx   context.Context // nil for unary calls
	unary bool
	stop  func() bool // looking for ctx's end

	// Each has room for one wake.
	receivable, sendable chan struct{}

	// Conn.mu guards the rest.
	id         uint32
	deadline   time.Time
	timed      bool // deadline is set
	next, prev *Stream
	granted    bool
	blocked    bool // in Conn.blocked
	waking     bool // in Conn.wakes

	sendWindow int64
	sendClosed bool
	window     int // what it may have under way, Config.StreamWindow at first
	recvWindow int // what the server may still send
	recvDebt   int // what is to be given back
	burst      int // what has come since the receiver last waited for long
	starved    bool
	held       int  // bytes of messages that have come and have not been received, of a stream
	receiving  bool // Recv waits

	answered        bool
	header, trailer metadata.MD
	encoding        string
	end             error // nil while the stream is open; io.EOF is status OK

	// The message that is arriving.
	prefix    [messagePrefix]byte
	prefixLen int
	size      int  // once the prefix is here
	in        *buf // may be shorter than size at first
	filled    int
	unpaid    int // bytes that have not been given back to the window

	queue []queued // messages not received yet
	head  int
}

// queued is a message that waits to be received. Of its bytes on the wire, cost are given back to the window then.
type queued struct {
	m          Message
	size, cost int
}

func newStream(c *Conn) *Stream {
	return &Stream{c: c, receivable: make(chan struct{}, 1), sendable: make(chan struct{}, 1)}
}

// Unary makes a call of one message each way: method is the full path, "/bank.v1.Accounts/Get". It borrows md and req. It
// returns soon after ctx ends, whatever the server does. *reply is filled as far as the call came, error or not; the
// error is an *Error.
func (c *Conn) Unary(ctx context.Context, method string, md metadata.MD, req Message, reply *Reply) error {
	*reply = Reply{}
	s := c.unaryStream()
	if err := c.open(ctx, s, method, md); err != nil {
		c.mu.Lock()
		c.recycle(s)
		c.mu.Unlock()
		return err
	}
	if err := c.send(ctx, s, req, true); err != nil {
		if e := (*Error)(nil); errors.As(err, &e) {
			c.reset(s, h2wire.CodeCancel, e)
		} // else errEnded, or ctx has ended: both are seen below
	}
	for join := true; s.end == nil && ctx.Err() == nil; join = false {
		c.flush(join)
		select {
		case <-s.receivable:
		case <-ctx.Done():
		}
		c.mu.Lock()
	}
	if ctx.Err() != nil { // wins over an answer
		e := ContextError(ctx)
		c.reset(s, h2wire.CodeCancel, e)
		s.end = e
	}
	end := s.end
	reply.Header, reply.Trailer, reply.Answered, reply.Encoding = s.header, s.trailer, s.answered, s.encoding
	if len(s.queue) > 0 {
		if end == io.EOF {
			reply.Message = s.queue[0].m
		} else {
			s.queue[0].m.Free()
		}
	} else if end == io.EOF {
		end = &Error{Code: codes.Unimplemented, Message: "the server answered a unary call without a message", Origin: OriginProtocol}
	}
	c.recycle(s)
	c.flush(false)
	if end == io.EOF {
		return nil
	}
	return end
}

// unaryStream returns a stream that has not been opened.
func (c *Conn) unaryStream() *Stream {
	c.mu.Lock()
	var s *Stream
	if n := len(c.free); n > 0 {
		s, c.free = c.free[n-1], c.free[:n-1]
	}
	c.mu.Unlock()
	if s == nil {
		s = newStream(c)
		s.unary = true
	}
	return s
}

// recycle keeps a stream that has ended, of which nothing is used any more. There may be wakes for it still to come: its
// next call then looks in vain, once. c.mu is held.
func (c *Conn) recycle(s *Stream) {
	if len(c.free) >= maxFree {
		return
	}
	queue := s.queue[:cap(s.queue)]
	clear(queue)
	*s = Stream{c: c, unary: true, receivable: s.receivable, sendable: s.sendable, queue: queue[:0], waking: s.waking}
	c.free = append(c.free, s)
}

// NewStream opens a call of any kind, which ends when ctx does, and frees what has not been received then. It borrows md. It waits
// while the server takes no further streams. The error is an *Error. The request's headers leave with the first use of the stream.
func (c *Conn) NewStream(ctx context.Context, method string, md metadata.MD) (*Stream, error) {
	s := newStream(c)
	s.ctx = ctx
	if err := c.open(ctx, s, method, md); err != nil {
		return nil, err
	}
	c.mu.Unlock()
	if ctx.Done() != nil {
		s.stop = context.AfterFunc(ctx, s.cancelled)
	}
	return s, nil
}

// cancelled ends the stream with its context.
func (s *Stream) cancelled() {
	s.c.mu.Lock()
	s.over()
	s.c.flush(false)
}

// over ends the stream if its context has ended, which cancelled may not have come to yet: a server that got a half-close
// after it would take the call for one that its client wants. What has come is freed: its receiver gets the context's error
// instead, and need not come. c.mu is held.
func (s *Stream) over() bool {
	if s.ctx.Err() == nil {
		return false
	}
	if s.end == io.EOF && s.head == len(s.queue) { // a good end, of which all has been received
		return true
	}
	s.c.reset(s, h2wire.CodeCancel, ContextError(s.ctx))
	if e := (*Error)(nil); !errors.As(s.end, &e) || e.Origin != OriginContext {
		s.end = ContextError(s.ctx)
	}
	s.drop()
	return true
}

// Send sends a message, and half-closes with it if last. It borrows m. It blocks for flow control. io.EOF means that the
// call has ended: Recv tells how. It must not be called after the half-close.
func (s *Stream) Send(m Message, last bool) error {
	c := s.c
	c.mu.Lock()
	if s.over() {
		c.flush(false)
		return io.EOF
	}
	err := c.send(s.ctx, s, m, last)
	if e := (*Error)(nil); errors.As(err, &e) {
		c.reset(s, h2wire.CodeCancel, e)
	}
	c.flush(true)
	if err != nil {
		return io.EOF
	}
	return nil
}

// CloseSend half-closes: no message follows. It does not block.
func (s *Stream) CloseSend() error {
	c := s.c
	c.mu.Lock()
	if s.sendClosed || s.end != nil {
		c.mu.Unlock()
		return nil //nolint:nilerr // Recv tells how the call ended
	}
	if s.over() {
		c.flush(false)
		return nil
	}
	s.sendClosed = true
	c.out = h2wire.AppendFrame(c.out, 0, h2wire.FrameData, h2wire.FlagEndStream, s.id)
	c.flush(true)
	return nil
}

// Header waits for the response metadata, which the caller owns. ok is false if the call ended without: trailers-only,
// or an error.
func (s *Stream) Header() (md metadata.MD, ok bool) {
	c := s.c
	c.mu.Lock()
	for !s.answered && s.end == nil {
		c.flush(false)
		<-s.receivable
		c.mu.Lock()
	}
	defer c.mu.Unlock()
	return s.header, s.answered
}

// Encoding is the response's "grpc-encoding", "" if there is none, once Header has returned.
func (s *Stream) Encoding() string {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.encoding
}

// Recv waits for the next message, of which the caller gets one reference. io.EOF is the end with status OK; any other
// error is an *Error. After either it gives the same again.
func (s *Stream) Recv() (Message, error) {
	c := s.c
	c.mu.Lock()
	for {
		if s.over() {
			return Message{}, s.ended()
		}
		if s.head < len(s.queue) {
			q := s.queue[s.head]
			s.queue[s.head] = queued{}
			if s.head++; s.head == len(s.queue) {
				s.queue, s.head = s.queue[:0], 0
			}
			s.hold(-q.size)
			if s.end == nil { // else the end comes when all messages have been received
				s.pay(q.cost)
				s.fetch()
			}
			if !c.writing && len(c.out) > 0 {
				c.flush(false)
			} else {
				c.mu.Unlock()
			}
			return q.m, nil
		}
		if s.end != nil {
			return Message{}, s.ended()
		}
		s.receiving = true
		s.fetch()
		measured := s.burst >= s.window/2
		c.flush(false)
		if !measured {
			<-s.receivable
			c.mu.Lock()
			s.receiving = false
			continue
		}
		start := time.Now()
		<-s.receivable
		c.mu.Lock()
		s.receiving = false
		if time.Since(start) > longWait {
			s.starved, s.burst = true, 0
		}
	}
}

// longWait is what tells a wait for what is under way from one for the reader.
const longWait = time.Millisecond

// ended returns how the stream ended, and frees what nobody receives any more. c.mu is held on entry and not on return.
func (s *Stream) ended() error {
	s.drop()
	err := s.end
	s.c.flush(false)
	if s.stop != nil {
		s.stop()
	}
	return err
}

// drop frees what has not been received. c.mu is held.
func (s *Stream) drop() {
	for i := range s.queue[s.head:] {
		s.queue[s.head+i].m.Free()
	}
	s.queue, s.head = nil, 0
	s.hold(-s.held)
}

// Trailer is the trailing metadata, which the caller owns, once Recv has failed.
func (s *Stream) Trailer() metadata.MD {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.trailer
}

// Close ends the call if it has not ended (with RST_STREAM CANCEL; a Recv under way returns Canceled) and frees messages
// that were not received. It may be called more than once. It is needed unless Recv has failed or the context has ended.
func (s *Stream) Close() {
	c := s.c
	c.mu.Lock()
	c.reset(s, h2wire.CodeCancel, &Error{
		Code: codes.Canceled, Message: "the call was cancelled", Origin: OriginContext, Cause: context.Canceled,
	})
	_ = s.ended()
}

// finish ends the stream: err is the status, or io.EOF for OK. c.mu is held.
func (s *Stream) finish(err error) {
	if s.end != nil {
		return
	}
	s.end = err
	if !s.sendClosed && s.c.state != Closed { // the server must not wait for the rest of the request (RFC 9113 8.1)
		s.sendClosed = true
		s.c.out = h2wire.AppendReset(s.c.out, s.id, h2wire.CodeNo)
	}
	s.c.remove(s)
	wake(s.sendable)
	s.c.notify(s)
}

// large reports whether the message that is arriving may not fit into the window. c.mu is held.
func (s *Stream) large() bool { return s.prefixLen == messagePrefix && s.size > s.window/2 }

// fetch makes room for the message that is arriving if it is the next to be received: it may be larger than the window.
// While memory is short it has to be waited for, too. c.mu is held.
func (s *Stream) fetch() {
	if s.unpaid > 0 && s.large() && s.head == len(s.queue) && (s.receiving || !s.c.short) {
		s.pay(s.unpaid)
		s.unpaid = 0
	}
}

// hold hears that s holds n bytes more. c.mu is held.
func (s *Stream) hold(n int) {
	s.held += n
	s.c.held += n
	s.c.weigh()
}

// pay gives n bytes back to the stream's window, in portions. If the receiver had to wait after the server had sent much of
// what it may, and has received all, more could be under way: the window is doubled. c.mu is held.
func (s *Stream) pay(n int) {
	s.recvDebt += n
	if s.recvDebt < s.window/4 {
		return
	}
	if c := s.c; s.starved && s.head == len(s.queue) && s.window < mostGrowth*c.cfg.StreamWindow && c.grown+s.window <= c.cfg.ConnWindow {
		c.grown += s.window
		s.recvDebt += s.window
		s.window *= 2
		s.starved = false
	}
	s.c.out = h2wire.AppendWindowUpdate(s.c.out, s.id, s.recvDebt)
	s.recvWindow += s.recvDebt
	s.recvDebt = 0
}

// mostGrowth is how many times Config.StreamWindow a stream's window may become.
const mostGrowth = 8
