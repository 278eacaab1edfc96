package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
)

// defaultStreamIdle is how long a stream may be without a message.
const defaultStreamIdle = 5 * time.Minute

// idleLooks is how often a stream is looked at in the time that it may be idle: it ends a quarter of that late at most.
const idleLooks = 4

// idle ends streaming calls on which no message has gone either way for as long as the policy says: the client vanished
// without a word, or holds on to a stream that it does not use. The call ends with DEADLINE_EXCEEDED. nil for unary methods,
// which have their timeout.
func (b *builder) idle(m *descriptors.Method, eff Effective) rpc.Middleware {
	if m.Unary() {
		return nil
	}
	limit := streamIdleOf(eff.Policy)
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			s := &idleStream{Stream: call.Stream, limit: limit, cancel: cancel}
			s.start()
			defer s.stop()
			call.Stream = s
			return next(ctx, call)
		}
	}
}

// idleStream counts the messages of a stream.
type idleStream struct {
	rpc.Stream
	limit  time.Duration
	cancel context.CancelCauseFunc
	moved  atomic.Uint64 // messages, both ways

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	seen  uint64 // moved, when it was last looked at
	still int    // looks without a message
	over  bool
}

func (s *idleStream) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(s.limit/idleLooks, s.look)
}

func (s *idleStream) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.timer.Stop()
}

func (s *idleStream) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	if n := s.moved.Load(); n != s.seen {
		s.seen, s.still = n, 0
	} else if s.still++; s.still >= idleLooks {
		s.cancel(status.Errorf(codes.DeadlineExceeded, "the stream had no message for %v", s.limit))
		return
	}
	s.timer.Reset(s.limit / idleLooks)
}

// Recv implements rpc.Stream.
func (s *idleStream) Recv(ctx context.Context) (rpc.Message, error) {
	m, err := s.Stream.Recv(ctx)
	s.moved.Add(1)
	return m, err
}

// Send implements rpc.Stream. A client that takes nothing of it has no message go.
func (s *idleStream) Send(ctx context.Context, m rpc.Message) error {
	err := s.Stream.Send(ctx, m)
	s.moved.Add(1)
	return err
}
