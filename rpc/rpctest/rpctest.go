// Package rpctest tests what is built on package rpc: [Start] drives any [rpc.Handler] from the client's side in memory,
// and [TestStream] is the contract that every [rpc.Stream] must keep.
package rpctest

import (
	"context"
	"io"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/descriptors"
	"transom/rpc"
)

// Client is the client's side of one call. Send and CloseSend may be called by one goroutine while another calls the
// rest.
type Client interface {
	// Send sends one message and returns an error if the call has ended.
	Send(msg []byte) error
	// CloseSend half-closes.
	CloseSend() error
	// Header waits for the response metadata. It is nil if the call ended without (trailers-only).
	Header() metadata.MD
	// Recv returns the next reply. At the end of the call it returns io.EOF, or the call's status as an error.
	Recv() ([]byte, error)
	// Trailer may be called once Recv has failed.
	Trailer() metadata.MD
	// Leave is the client's abrupt end, as of a process that is killed.
	Leave()
}

// Call is a call made in memory by Start. It is a Client, and knows more of what happens on the other side.
type Call struct {
	stream  *stream
	cancel  context.CancelCauseFunc
	ended   chan struct{}
	err     error // the handler's; read after ended is closed
	rpcCall *rpc.Call
}

// Window is how many messages a Call holds in either direction before the sender waits.
const Window = 4

// Start runs h in a goroutine of its own, for a call of method by a client that the returned Call plays. The call's
// context is cancelled with rpc.ErrClientGone by Leave, and ends with ctx. The goroutine ends when h returns: Wait for it.
func Start(ctx context.Context, h rpc.Handler, method *descriptors.Method, header metadata.MD) *Call {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stream{
		in: make(chan []byte, Window), out: make(chan []byte, Window),
		halfClosed: make(chan struct{}), committed: make(chan struct{}), call: ctx, ended: make(chan struct{}),
	}
	c := &Call{
		stream: s,
		cancel: cancel,
		ended:  s.ended,
		rpcCall: &rpc.Call{
			Method: method, Header: header, Stream: s,
			Peer: rpc.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:1234")},
			Info: &rpc.Info{Protocol: rpc.ProtocolLocal, Start: time.Now()},
		},
	}
	go func() {
		c.err = h(ctx, c.rpcCall)
		cancel(nil)
		close(s.ended)
	}()
	return c
}

// Send implements Client.
func (c *Call) Send(msg []byte) error {
	select {
	case c.stream.in <- msg:
		return nil
	case <-c.ended:
		return io.EOF
	}
}

// CloseSend implements Client.
func (c *Call) CloseSend() error {
	close(c.stream.halfClosed)
	return nil
}

// Header implements Client.
func (c *Call) Header() metadata.MD {
	select {
	case <-c.stream.committed:
	case <-c.ended:
	}
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	return c.stream.header
}

// Recv implements Client.
func (c *Call) Recv() ([]byte, error) {
	select {
	case m := <-c.stream.out:
		return m, nil
	default:
	}
	select {
	case m := <-c.stream.out:
		return m, nil
	case <-c.ended:
	}
	select {
	case m := <-c.stream.out: // sent just before the end
		return m, nil
	default:
	}
	if c.err != nil {
		return nil, rpc.StatusOf(c.err).Err()
	}
	return nil, io.EOF
}

// Trailer implements Client.
func (c *Call) Trailer() metadata.MD {
	<-c.ended
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	return c.stream.trailer
}

// Leave implements Client.
func (c *Call) Leave() { c.cancel(rpc.ErrClientGone) }

// Wait waits until the handler has returned and returns its error as it is.
func (c *Call) Wait() error {
	<-c.ended
	return c.err
}

// Info is the call's. It may be read after Wait.
func (c *Call) Info() *rpc.Info { return c.rpcCall.Info }

// Flushes is how often the handler has flushed so far.
func (c *Call) Flushes() int {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	return c.stream.flushes
}

// Committed reports whether response metadata or a message was sent.
func (c *Call) Committed() bool {
	select {
	case <-c.stream.committed:
		return true
	default:
		return false
	}
}

// stream is the rpc.Stream of a Call: two channels of messages.
type stream struct {
	in, out    chan []byte
	halfClosed chan struct{}
	committed  chan struct{}
	call       context.Context
	ended      chan struct{} // the handler has returned

	mu              sync.Mutex
	header, trailer metadata.MD
	isCommitted     bool
	flushes         int
}

func (s *stream) Recv(ctx context.Context) (rpc.Message, error) {
	if err := rpc.CauseOf(ctx); err != nil {
		return rpc.Message{}, err
	}
	select {
	case m := <-s.in:
		return rpc.NewMessage(m), nil
	default:
	}
	select {
	case m := <-s.in:
		return rpc.NewMessage(m), nil
	case <-s.halfClosed:
		select {
		case m := <-s.in: // sent just before the half-close
			return rpc.NewMessage(m), nil
		default:
			return rpc.Message{}, io.EOF
		}
	case <-ctx.Done():
		return rpc.Message{}, rpc.CauseOf(ctx)
	case <-s.call.Done():
		return rpc.Message{}, rpc.CauseOf(s.call)
	}
}

func (s *stream) SendHeader(md metadata.MD) error {
	return s.commit(md, true)
}

// commit commits md; explicit says that it must be the first to do so.
func (s *stream) commit(md metadata.MD, explicit bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isCommitted {
		if explicit {
			return rpc.ErrHeaderSent
		}
		return nil
	}
	if md == nil {
		md = metadata.MD{}
	}
	s.isCommitted, s.header = true, md
	close(s.committed)
	return nil
}

func (s *stream) Send(ctx context.Context, m rpc.Message) error {
	defer m.Release()
	if err := rpc.CauseOf(ctx); err != nil {
		return err
	}
	if err := s.commit(nil, false); err != nil {
		return err
	}
	b := append([]byte{}, m.Bytes()...)
	select {
	case s.out <- b:
		return nil
	case <-ctx.Done():
		return rpc.CauseOf(ctx)
	case <-s.call.Done():
		return rpc.CauseOf(s.call)
	}
}

func (s *stream) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushes++
	return nil
}

func (s *stream) SetTrailer(md metadata.MD) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trailer = md
}

var (
	_ Client     = (*Call)(nil)
	_ rpc.Stream = (*stream)(nil)
)
