package upstream

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// errEnded is why the client's side of a call is given up when the backend has ended it.
var errEnded = errors.New("the backend has ended the call")

// clientError is the cancellation cause of a streaming call whose client's side failed.
type clientError struct{ error }

func (e clientError) Unwrap() error { return e.error }

// stream makes a call of any kind but unary. Replies are carried by the caller's goroutine, requests by one other,
// which is not needed if the client sends one message only. Whichever side ends first cancels the other.
func (c *Cluster) stream(ctx context.Context, call *rpc.Call) error {
	var req rpc.Message
	if !call.Method.ClientStreams {
		var err error
		if req, err = rpc.RecvOne(ctx, call.Stream); err != nil {
			call.Info.Fail(rpc.SourceClient)
			return err
		}
	}
	start := time.Now()
	call.Info.Attempts++
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errEnded)
	us, err := c.backend.Stream(ctx, call.Method, call.Header)
	if err != nil {
		req.Release()
		call.Info.Upstream = time.Since(start)
		return c.fail(ctx, call, err, false, false)
	}
	var wg sync.WaitGroup
	if call.Method.ClientStreams {
		wg.Go(func() { forward(ctx, cancel, call.Stream, us) })
	} else {
		// An error of Send is told again by Recv, with the call's status.
		_ = us.Send(&req)
		_ = us.CloseSend()
		req.Release()
	}
	err = c.backward(ctx, cancel, call, us)
	cancel(errEnded)
	wg.Wait()
	call.Info.Upstream = time.Since(start)
	return err
}

// forward carries the client's messages to the backend until either side ends. A failing client cancels the call.
func forward(ctx context.Context, cancel context.CancelCauseFunc, s rpc.Stream, us backendStream) {
	var m rpc.Message
	for {
		var err error
		m, err = s.Recv(ctx)
		if err == io.EOF {
			_ = us.CloseSend()
			return
		}
		if err != nil {
			cancel(clientError{err})
			return
		}
		err = us.Send(&m)
		m.Release()
		if err != nil {
			return // the call has ended; backward knows how
		}
	}
}

// backward carries the backend's answer to the client and returns the call's end.
func (c *Cluster) backward(ctx context.Context, cancel context.CancelCauseFunc, call *rpc.Call, us backendStream) error {
	r := replies{ctx: ctx, cancel: cancel, s: call.Stream}
	defer r.end()
	header, answered := us.Header()
	call.Info.Endpoint = us.Endpoint()
	if answered {
		r.header(stripResponse(header))
	}
	var err error
	for {
		if err = us.Recv(&r.next); err != nil {
			break
		}
		r.send()
	}
	trailer := us.Trailer()
	if err == io.EOF {
		err = nil
	} else if gone := (clientError{}); errors.As(context.Cause(ctx), &gone) {
		call.Info.Fail(rpc.SourceClient)
		return gone.error
	} else {
		err = c.fail(ctx, call, err, answered, len(trailer) > 0)
	}
	call.Stream.SetTrailer(stripResponse(trailer))
	return err
}

// replies sends to a client and flushes when nothing further is ready. The backend's stream can only be asked for the
// next message by waiting for it, so the flush is left to a goroutine which the first message of a burst starts, and
// which comes to run when the receiver waits (or a little later, on another processor). Between bursts there is none.
type replies struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	next   rpc.Message // what is received into; here, so that it is allocated once
	wg     sync.WaitGroup

	// mu guards the sending methods of s, and what follows.
	mu    sync.Mutex
	s     rpc.Stream
	due   bool // a goroutine is about to flush
	ended bool
}

// header commits the response metadata.
func (r *replies) header(md metadata.MD) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent(r.s.SendHeader(md))
}

// send hands r.next to the client. It blocks while the client does not read. If the client is gone it cancels the call,
// which the receiver then hears of.
func (r *replies) send() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent(r.s.Send(r.ctx, r.next))
}

// sent arranges for what was sent to be flushed. mu is held.
func (r *replies) sent(err error) {
	switch {
	case err != nil:
		r.cancel(clientError{err})
	case !r.due:
		r.due = true
		r.wg.Go(r.flush)
	}
}

// flush flushes once.
func (r *replies) flush() {
	runtime.Gosched() // the receiver goes first: it may find more
	r.mu.Lock()
	defer r.mu.Unlock()
	r.due = false
	if r.ended {
		return // the end of the call flushes
	}
	if err := r.s.Flush(); err != nil {
		r.cancel(clientError{err})
	}
}

// end waits until nothing of r uses the client's stream.
func (r *replies) end() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.wg.Wait()
}
