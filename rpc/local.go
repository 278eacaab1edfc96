package rpc

import (
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
)

// RecvOne receives the single request message of a method whose client does not stream, and the half-close behind it.
// A missing message or a second one is Unimplemented, as gRPC's cardinality rules
// say.
func RecvOne(ctx context.Context, s Stream) (Message, error) {
	m, err := s.Recv(ctx)
	if err == io.EOF {
		return Message{}, status.Error(codes.Unimplemented, "the method takes one request message, the client sent none")
	}
	if err != nil {
		return Message{}, err
	}
	extra, err := s.Recv(ctx)
	switch err {
	case io.EOF:
		return m, nil
	case nil:
		extra.Release()
		err = status.Error(codes.Unimplemented, "the method takes one request message, the client sent more")
	}
	m.Release()
	return Message{}, err
}

// Peek receives the first message and returns it, still owned by the returned Stream, which gives it again on its first
// Recv. If there is no first message the error of Recv is returned, and given again by the Stream.
func Peek(ctx context.Context, s Stream) (Message, Stream, error) {
	m, err := s.Recv(ctx)
	return m, &peeked{Stream: s, first: m, err: err, full: true}, err
}

type peeked struct {
	Stream
	first Message
	err   error
	full  bool
}

func (p *peeked) Recv(ctx context.Context) (Message, error) {
	if p.full {
		p.full = false
		m := p.first
		p.first = Message{}
		return m, p.err
	}
	return p.Stream.Recv(ctx)
}

// Result is what a call run in memory gave back.
type Result struct {
	Header, Trailer metadata.MD
	// Messages are the answers, one reference each held by the Result.
	Messages []Message
	Info     *Info
}

// Local runs one call in memory: composition, mirroring, admin and tests. The messages are handed over; each answer
// carries one reference for the caller. The error is the Handler's, beside whatever it sent before.
func Local(ctx context.Context, h Handler, method *descriptors.Method, header metadata.MD, msgs ...Message) (*Result, error) {
	s := &localStream{in: msgs}
	info := &Info{Protocol: ProtocolLocal, Start: time.Now()}
	err := h(ctx, &Call{Method: method, Header: header, Info: info, Stream: s})
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.in {
		m.Release()
	}
	return &Result{Header: s.header, Trailer: s.trailer, Messages: s.out, Info: info}, err
}

// localStream is the Stream of a call made in memory.
type localStream struct {
	mu              sync.Mutex
	in, out         []Message
	header, trailer metadata.MD
	committed       bool
}

func (s *localStream) Recv(ctx context.Context) (Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := CauseOf(ctx); err != nil {
		return Message{}, err
	}
	if len(s.in) == 0 {
		return Message{}, io.EOF
	}
	m := s.in[0]
	s.in = s.in[1:]
	return m, nil
}

func (s *localStream) SendHeader(md metadata.MD) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.committed {
		return ErrHeaderSent
	}
	s.committed, s.header = true, md
	return nil
}

func (s *localStream) Send(ctx context.Context, m Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := CauseOf(ctx); err != nil {
		m.Release()
		return err
	}
	s.committed = true
	s.out = append(s.out, m)
	return nil
}

func (s *localStream) Flush() error { return nil }

func (s *localStream) SetTrailer(md metadata.MD) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trailer = md
}
