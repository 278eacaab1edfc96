package upstream

import (
	"context"
	"errors"
	"io"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// errEnded is why the client's side of a call is given up when the backend has ended it.
var errEnded = errors.New("the backend has ended the call")

// clientError is the cancellation cause of a streaming call whose client's side failed.
type clientError struct{ error }

func (e clientError) Unwrap() error { return e.error }

// caught is deferred by what uses the client's stream, and takes a panic for its failing: on a goroutine of its own it would end
// the process, and on the call's the backend's stream would not be received to its end.
func caught(info *rpc.Info, cancel context.CancelCauseFunc) {
	if p := recover(); p != nil {
		info.Fail(rpc.SourceGateway)
		cancel(clientError{&rpc.PanicError{Value: p, Stack: debug.Stack()}})
	}
}

// stream makes a call of any kind but unary. Replies are carried by the caller's goroutine, requests by one other,
// which is not needed if the client sends one message only. Whichever side ends first cancels the other.
func (c *Cluster) stream(ctx context.Context, call *rpc.Call, t *turn) error {
	p := c.policies.of(call.Method)
	if p.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.timeout)
		defer cancel()
	}
	o := outbox{src: call.Stream, info: call.Info, keep: p.retry.codes != 0 || !c.backend.Repeats(), limit: c.retryBytes}
	if !call.Method.ClientStreams {
		req, err := rpc.RecvOne(ctx, call.Stream)
		if err != nil {
			call.Info.Fail(rpc.SourceClient)
			return err
		}
		o.only = req
	}
	start := time.Now()
	c.budget.Call(sinceEpoch(start))
	o.ctx, o.cancel = context.WithCancelCause(ctx)
	defer o.end()
	err := c.attempts(&o, call, &p.retry, t)
	call.Info.Upstream = time.Since(start)
	if err == nil {
		c.policies.throttles.success()
	}
	return err
}

// attempts makes attempts at a streaming call until one is answered, and carries its answer to the client.
func (c *Cluster) attempts(o *outbox, call *rpc.Call, p *retryPolicy, t *turn) error {
	at := c.newAttempts(call, o.only, t)
	for {
		ends := c.gate.ends.Load()
		us, err := c.backend.Stream(o.ctx, call.Method, call.Header, at.next())
		if at.Saturated() {
			if err := at.await(o.ctx, ends); err != nil {
				return c.turnedAway(o.ctx, call, err)
			}
			continue
		}
		call.Info.Attempts = at.n
		var trailer metadata.MD
		answered := false
		if err == nil {
			o.attach(us, call.Method.ClientStreams)
			var header metadata.MD
			header, answered = us.Header()
			call.Info.Endpoint = us.Endpoint()
			if answered {
				o.committed.Store(true)
				err = backward(o, call.Stream, us, header)
			} else {
				var none rpc.Message
				err = us.Recv(&none)
			}
			trailer = us.Trailer()
			if err == io.EOF {
				call.Stream.SetTrailer(stripResponse(trailer))
				return nil
			}
		}
		if gone := (clientError{}); errors.As(context.Cause(o.ctx), &gone) {
			return c.ended(o.ctx, call)
		}
		if us == nil && !o.started || !answered && o.hold() {
			wait, ok := c.again(o.ctx, call, p, at.n, outcomeOf(err, answered, trailer))
			if ok && pause(o.ctx, wait) {
				call.Info.Endpoint = ""
				continue
			}
		}
		err = c.fail(o.ctx, call, err)
		call.Stream.SetTrailer(stripResponse(trailer))
		return err
	}
}

// backward carries a backend's header and messages to the client until the backend's stream fails, with io.EOF at its
// good end. A failing client cancels the call.
func backward(o *outbox, client rpc.Stream, us backendStream, header metadata.MD) error {
	r := replies{ctx: o.ctx, cancel: o.cancel, info: o.info, s: client}
	defer r.end()
	r.header(stripResponse(header))
	for {
		if err := us.Recv(&r.next); err != nil {
			return err
		}
		r.send()
	}
}

// outbox carries a client's messages to the backend, and keeps them until an attempt is answered so that another can be
// made.
type outbox struct {
	// ctx is the call's, cancelled by either side's end.
	ctx    context.Context
	cancel context.CancelCauseFunc
	src    rpc.Stream
	info   *rpc.Info
	limit  int         // of the bytes kept
	only   rpc.Message // the one request, if the client sends one only

	committed atomic.Bool // an attempt is answered: nothing needs to be kept
	started   bool        // forward runs or ran
	held      bool        // mu is locked, by hold
	wg        sync.WaitGroup

	// mu is held while a message is sent and between attempts, and guards what follows.
	mu     sync.Mutex
	us     backendStream // the present attempt
	keep   bool
	kept   []rpc.Message
	bytes  int
	closed bool // the client has half-closed
}

// attach makes us the present attempt and sends it what the client has sent so far. It ends a hold.
func (o *outbox) attach(us backendStream, clientStreams bool) {
	if !clientStreams {
		// An error of Send is told again by Recv, with the call's status.
		_ = us.Send(&o.only)
		_ = us.CloseSend()
		return
	}
	o.us = us
	if !o.started {
		o.started = true
		o.wg.Go(o.forward)
		return
	}
	o.held = false
	o.wg.Go(func() { // not here: the backend may have to be received from before it takes all
		defer o.mu.Unlock()
		for i := range o.kept {
			if us.Send(&o.kept[i]) != nil {
				return
			}
		}
		if o.closed {
			_ = us.CloseSend()
		}
	})
}

// forward carries the client's messages until either side ends. A failing client cancels the call.
func (o *outbox) forward() {
	defer caught(o.info, o.cancel)
	for {
		m, err := o.src.Recv(o.ctx)
		if err == io.EOF {
			o.mu.Lock()
			o.closed = true
			_ = o.us.CloseSend()
			o.mu.Unlock()
			return
		}
		if err != nil {
			o.cancel(clientError{err})
			return
		}
		if !o.send(m) {
			return // the call has ended; attempts knows how
		}
	}
}

// send sends one message and reports whether the next is of use.
func (o *outbox) send(m rpc.Message) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keep {
		o.bytes += m.Len()
		o.kept = append(o.kept, m.Retain())
		if o.committed.Load() || o.bytes > o.limit {
			o.drop()
		}
	}
	err := o.us.Send(&m)
	m.Release()
	return err == nil || o.keep
}

// drop gives up what is kept. mu is held.
func (o *outbox) drop() {
	for _, m := range o.kept {
		m.Release()
	}
	o.keep, o.kept = false, nil
}

// hold reports whether another attempt could be sent all that the client has sent. If so no more is taken from a client that
// streams until attach, or end: with no attempt to send it to, it could become more than is kept, and be lost.
func (o *outbox) hold() bool {
	if !o.started || o.held {
		return o.keep
	}
	o.mu.Lock()
	if o.held = o.keep; !o.held {
		o.mu.Unlock()
	}
	return o.held
}

// end ends the client's side and waits until nothing of o uses its stream.
func (o *outbox) end() {
	o.cancel(errEnded)
	if o.held {
		o.mu.Unlock()
	}
	o.wg.Wait()
	o.drop()
	o.only.Release()
}

// replies sends to a client and flushes when nothing further is ready. The backend's stream can only be asked for the
// next message by waiting for it, so the flush is left to a goroutine which the first message of a burst starts, and
// which comes to run when the receiver waits (or a little later, on another processor). Between bursts there is none.
type replies struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	info   *rpc.Info
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
	defer caught(r.info, r.cancel)
	r.sent(r.s.SendHeader(md))
}

// send hands r.next to the client. It blocks while the client does not read. If the client is gone it cancels the call,
// which the receiver then hears of.
func (r *replies) send() {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer caught(r.info, r.cancel)
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
	defer caught(r.info, r.cancel)
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
