package h2client

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

// Conn is a connection. See the package's documentation.
type Conn struct {
	raw      net.Conn
	cfg      Config
	h2       *http2.ClientConn
	n        atomic.Int64
	mu       sync.Mutex
	draining chan struct{}
	done     chan struct{}
	state    State
}

// New makes a connection of raw, which it takes over and closes if it fails. It returns when the server's SETTINGS have
// come, or with an error when ctx ends first. Close it.
func New(ctx context.Context, raw net.Conn, cfg Config) (*Conn, error) {
	nc := raw
	if cfg.Handshake != nil {
		var err error
		if nc, err = cfg.Handshake(ctx, raw); err != nil {
			raw.Close()
			return nil, err
		}
	}
	t := &http2.Transport{AllowHTTP: true, DisableCompression: true}
	h2, err := t.NewClientConn(nc)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return &Conn{raw: nc, cfg: cfg, h2: h2, draining: make(chan struct{}), done: make(chan struct{})}, nil
}

// Unary makes a call of one message each way: method is the full path, "/bank.v1.Accounts/Get". It borrows md and req. It
// returns soon after ctx ends, whatever the server does. *reply is filled as far as the call came, error or not; the
// error is an *Error.
func (c *Conn) Unary(ctx context.Context, method string, md metadata.MD, req Message, reply *Reply) error {
	*reply = Reply{}
	s, err := c.NewStream(ctx, method, md)
	if err != nil {
		return err
	}
	defer s.Close()
	_ = s.Send(req, true)
	m, err := s.Recv()
	if err == nil {
		_, end := s.Recv()
		if end != io.EOF {
			m.Free()
			err = end
		}
	} else if err == io.EOF {
		err = &Error{Code: codes.Unimplemented, Message: "no message"}
	}
	reply.Header, reply.Answered = s.Header()
	reply.Trailer = s.Trailer()
	reply.Message = m
	reply.Encoding = s.Encoding()
	return err
}

// Stream is one call. See the package's documentation.
type Stream struct {
	c      *Conn
	ctx    context.Context
	cancel context.CancelFunc
	pw     *io.PipeWriter
	got    chan struct{}
	resp   *http.Response
	err    error
	end    error
}

// NewStream opens a call of any kind, which ends when ctx does. It borrows md. It waits while the server takes no further
// streams. The error is an *Error. The request's headers leave with the first use of the stream.
func (c *Conn) NewStream(ctx context.Context, method string, md metadata.MD) (*Stream, error) {
	if c.State() != Ready {
		return nil, &Error{Code: codes.Unavailable, Message: "the connection takes no new calls", Origin: OriginConn, Unprocessed: true}
	}
	c.n.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+c.cfg.Authority+method, pr)
	for k, vs := range md {
		req.Header[http.CanonicalHeaderKey(k)] = vs
	}
	req.Header.Set("Content-Type", "application/grpc+proto")
	req.Header.Set("Te", "trailers")
	if d, ok := ctx.Deadline(); ok {
		req.Header.Set("Grpc-Timeout", strconv.FormatInt(int64(time.Until(d)/time.Microsecond), 10)+"u")
	}
	s := &Stream{c: c, ctx: ctx, cancel: cancel, pw: pw, got: make(chan struct{})}
	go func() {
		s.resp, s.err = c.h2.RoundTrip(req)
		close(s.got)
		if s.err != nil {
			pr.CloseWithError(s.err)
		}
	}()
	return s, nil
}

// Send sends a message, and half-closes with it if last. It borrows m. It blocks for flow control. io.EOF means that the
// call has ended: Recv tells how.
func (s *Stream) Send(m Message, last bool) error {
	b := make([]byte, 5, 5+m.Data.Len())
	binary.BigEndian.PutUint32(b[1:], uint32(m.Data.Len()))
	for _, x := range m.Data {
		b = append(b, x.ReadOnlyData()...)
	}
	if _, err := s.pw.Write(b); err != nil {
		return io.EOF
	}
	if last {
		return s.CloseSend()
	}
	return nil
}

// CloseSend half-closes: no message follows. It does not block.
func (s *Stream) CloseSend() error { return s.pw.Close() }

// Header waits for the response metadata, which the caller owns. ok is false if the call ended without: trailers-only,
// or an error.
func (s *Stream) Header() (md metadata.MD, ok bool) {
	<-s.got
	if s.err != nil || s.resp.Header.Get("Grpc-Status") != "" {
		return nil, false
	}
	return lower(s.resp.Header), true
}

// Encoding is the response's "grpc-encoding", "" if there is none, once Header has returned.
func (s *Stream) Encoding() string { return "" }

func lower(h http.Header) metadata.MD {
	var md metadata.MD
	for k, v := range h {
		k = strings.ToLower(k)
		if k == "content-type" || strings.HasPrefix(k, "grpc-") {
			continue
		}
		if md == nil {
			md = metadata.MD{}
		}
		md[k] = v
	}
	return md
}

// Recv waits for the next message, of which the caller gets one reference. io.EOF is the end with status OK; any other
// error is an *Error. After either it gives the same again.
func (s *Stream) Recv() (Message, error) {
	if s.end != nil {
		return Message{}, s.end
	}
	m, err := s.recv()
	if err != nil {
		s.end = err
		s.Close()
	}
	return m, err
}

func (s *Stream) recv() (Message, error) {
	<-s.got
	if s.ctx.Err() != nil {
		code := codes.Canceled
		if errors.Is(s.ctx.Err(), context.DeadlineExceeded) {
			code = codes.DeadlineExceeded
		}
		return Message{}, &Error{Code: code, Message: s.ctx.Err().Error(), Origin: OriginContext}
	}
	if s.err != nil {
		return Message{}, &Error{Code: codes.Unavailable, Message: "connection lost", Origin: OriginConn, Cause: s.err}
	}
	var p [5]byte
	_, err := io.ReadFull(s.resp.Body, p[:])
	if err == io.EOF {
		h := s.resp.Trailer
		if h.Get("Grpc-Status") == "" {
			h = s.resp.Header
		}
		n, _ := strconv.Atoi(h.Get("Grpc-Status"))
		if n == 0 {
			return Message{}, io.EOF
		}
		return Message{}, &Error{Code: codes.Code(n), Message: h.Get("Grpc-Message"), Origin: OriginServer}
	}
	b := make([]byte, binary.BigEndian.Uint32(p[1:]))
	if err == nil {
		_, err = io.ReadFull(s.resp.Body, b)
	}
	if err != nil {
		return Message{}, &Error{Code: codes.Unavailable, Message: "connection lost", Origin: OriginConn, Cause: err}
	}
	return Message{Data: mem.BufferSlice{mem.SliceBuffer(b)}, Compressed: p[0] == 1}, nil
}

// Trailer is the trailing metadata, which the caller owns, once Recv has failed.
func (s *Stream) Trailer() metadata.MD {
	if s.resp == nil {
		return nil
	}
	return lower(s.resp.Trailer)
}

// Close ends the call if it has not ended (with RST_STREAM CANCEL; a Recv under way returns Canceled) and frees messages
// that were not received. It may be called more than once. It is needed unless Recv has failed.
func (s *Stream) Close() {
	if s.cancel != nil {
		s.cancel()
		s.pw.Close()
	}
}

// State is the connection's present state.
func (c *Conn) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == Ready && !c.h2.CanTakeNewRequest() {
		c.state = Draining
		close(c.draining)
	}
	return c.state
}

// Draining is closed when the connection takes no new calls any more: after GOAWAY, Drain, Close or a failure.
func (c *Conn) Draining() <-chan struct{} { return c.draining }

// Done is closed when the connection is gone and all that it started has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err tells why the connection is draining or gone: a *GoAwayError, ErrClosed after Close or Drain, or what failed. nil while Ready.
func (c *Conn) Err() error { return nil }

// InFlight is the number of calls that the server has or is about to have, without those that wait for a place.
func (c *Conn) InFlight() int { return int(c.n.Load()) }

// Waiting is the number of calls that wait because of MaxStreams.
func (c *Conn) Waiting() int { return 0 }

// MaxStreams is how many streams the server takes at once now (SETTINGS_MAX_CONCURRENT_STREAMS), math.MaxUint32 if it
// has set no limit. It may change at any time.
func (c *Conn) MaxStreams() uint32 { return 100 }

// LocalAddr and RemoteAddr are the socket's.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is the address of the server.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// Drain takes no new calls and closes the connection when the last has ended. It does not wait: see Done.
func (c *Conn) Drain() { go c.h2.Shutdown(context.Background()) }

// Close ends all calls with Unavailable and waits until nothing that the connection started runs. It may be called more
// than once.
func (c *Conn) Close() {
	c.h2.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state < Draining {
		close(c.draining)
	}
	if c.state < Closed {
		close(c.done)
	}
	c.state = Closed
}

// ErrClosed is Conn.Err after Close or Drain.
var ErrClosed = errors.New("the connection was closed by this side")

// GoAwayError is Conn.Err after a GOAWAY.
type GoAwayError struct {
	Code  uint32 // the HTTP/2 error code; 0 is a graceful end, 11 ENHANCE_YOUR_CALM
	Debug string // what the server said, clipped to 256 bytes
}

func (e *GoAwayError) Error() string {
	return "the server sent GOAWAY with code " + strconv.FormatUint(uint64(e.Code), 10) + " " + strconv.Quote(e.Debug)
}
