package upstream

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/upstream/loadaware"
	"transom/upstream/loadaware/score"
)

// attempts are those of one call, one at a time or side by side.
type attempts struct {
	*attempt // the latest
	first    attempt
	tried    loadaware.Tried
	key      string
	budget   *score.Budget
	stream   bool
	gate     *gate
	turn     *turn // at the gate, nil if the call has not waited
}

// newAttempts makes those of a call with the request req, which is empty if the client sends a stream, and its
// turn.
func (c *Cluster) newAttempts(call *rpc.Call, req rpc.Message, t *turn) *attempts {
	return &attempts{key: c.hash.key(call, req), budget: c.budget, stream: !call.Method.Unary(), gate: &c.gate, turn: t}
}

// next makes the next attempt. One that found every endpoint saturated does not count.
func (a *attempts) next() *attempt {
	if a.attempt == nil {
		a.attempt = &a.first
		a.n = 1
	} else {
		n := a.n
		if !a.Saturated() {
			n++
		}
		a.attempt = &attempt{n: n}
	}
	a.Tried, a.Key, a.Stream, a.Budget = &a.tried, a.key, a.stream, a.budget
	if a.turn != nil {
		a.Began = a.gate.served
	}
	return a.attempt
}

// await waits until an endpoint may be free, after an attempt that began when so many calls had left and found none.
func (a *attempts) await(ctx context.Context, ends uint64) (err error) {
	a.turn, err = a.gate.await(ctx, a.turn, ends)
	return err
}

// unary makes a call of one message each way on the caller's goroutine.
func (c *Cluster) unary(ctx context.Context, call *rpc.Call, t *turn) error {
	req, err := rpc.RecvOne(ctx, call.Stream)
	if err != nil {
		call.Info.Fail(rpc.SourceClient)
		return err
	}
	p := c.policies.of(call.Method)
	if p.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.timeout)
		defer cancel()
	}
	start := time.Now()
	c.budget.Call(sinceEpoch(start))
	var a answer
	final := false
	if p.hedge == nil {
		a, final, err = c.retried(ctx, call, &p.retry, req, t)
	} else {
		a, final, err = c.hedged(ctx, call, p.hedge, req, t)
	}
	req.Release()
	call.Info.Upstream = time.Since(start)
	call.Info.Endpoint = a.endpoint
	if c.limiter != nil && !final {
		took := call.Info.Upstream
		if limit := c.limiter.End(sinceEpoch(start)+took, took, c.gate.inside.Load(), err == nil, busy(err)); limit > 0 {
			c.gate.setLimit(limit)
		}
	}
	if final {
		return err
	}
	if err != nil {
		err = c.fail(ctx, call, err)
		// Nothing is committed: the answer is trailers-only, which carries both kinds of metadata.
		call.Stream.SetTrailer(join(stripResponse(a.header), stripResponse(a.trailer)))
		return err
	}
	c.policies.throttles.success()
	header, trailer := stripResponse(a.header), stripResponse(a.trailer)
	if err := call.Stream.SendHeader(header); err != nil {
		a.reply.Release()
		call.Info.Fail(rpc.SourceClient)
		return err
	}
	if err := call.Stream.Send(ctx, a.reply); err != nil {
		call.Info.Fail(rpc.SourceClient)
		return err
	}
	call.Stream.SetTrailer(trailer)
	return nil
}

// retried makes attempts one after the other. final says that err is the call's end as it stands.
func (c *Cluster) retried(ctx context.Context, call *rpc.Call, p *retryPolicy, req rpc.Message, t *turn) (a answer, final bool, err error) {
	at := c.newAttempts(call, req, t)
	for {
		ends := c.gate.ends.Load()
		a, err = c.backend.Unary(ctx, call.Method, call.Header, req, at.next())
		if at.Saturated() {
			if err := at.await(ctx, ends); err != nil {
				return a, true, c.turnedAway(ctx, call, err)
			}
			continue
		}
		call.Info.Attempts = at.n
		if err == nil {
			return a, false, nil
		}
		wait, ok := c.again(ctx, call, p, at.n, outcomeOf(err, a.answered, a.trailer))
		if !ok || !pause(ctx, wait) {
			return a, false, err
		}
	}
}

// hedged makes attempts side by side, one more after each delay, until one succeeds or fails for good; the others are
// then cancelled and waited for. A failure that is not fatal brings the next attempt forward, or puts it off as the server says.
func (c *Cluster) hedged(ctx context.Context, call *rpc.Call, p *hedgePolicy, req rpc.Message, t *turn) (_ answer, final bool, _ error) {
	type result struct {
		answer
		at  *attempt
		err error
	}
	results := make(chan result, p.attempts)
	attempts, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		for range len(results) {
			r := <-results // an answer that came too late
			r.reply.Release()
		}
	}()
	seq := c.newAttempts(call, req, t)
	ends := c.gate.ends.Load()
	sent, running := 0, 0
	send := func() {
		sent++
		running++
		call.Info.Attempts = sent
		at := seq.next()
		wg.Go(func() {
			a, err := c.backend.Unary(attempts, call.Method, call.Header, req, at)
			results <- result{a, at, err}
		})
	}
	send()
	next := time.NewTimer(p.delay)
	defer next.Stop()
	most := p.attempts
	more := func() {
		if sent >= most {
			return
		}
		if !c.budget.Take(sinceEpoch(time.Now())) {
			call.Info.Note("hedge", "over the cluster's budget")
			most = sent
			return
		}
		send()
		next.Reset(p.delay)
	}
	var failed result // the last that did, for good if none is running or to follow
	for {
		var over <-chan struct{}
		if running == 0 { // the server has put off the next one; attempts that are running tell of the end themselves
			over = ctx.Done()
		}
		select {
		case <-over:
			return failed.answer, false, failed.err
		case <-next.C:
			if more(); running == 0 {
				return failed.answer, false, failed.err
			}
		case r := <-results:
			running--
			if r.err == nil {
				return r.answer, false, nil
			}
			if r.at.Saturated() {
				// Only the first attempt queues: the others are extras.
				if most = min(most, sent); running > 0 {
					continue
				}
				if err := seq.await(ctx, ends); err != nil {
					return r.answer, true, c.turnedAway(ctx, call, err)
				}
				ends = c.gate.ends.Load()
				sent--
				send()
				continue
			}
			o := outcomeOf(r.err, r.answered, r.trailer)
			nonFatal := p.nonFatal.has(o.st.Code()) || o.unseen
			if t := c.policies.throttles; t != nil && (nonFatal || o.stop) && !t.failure() || o.stop {
				most = sent
			}
			if o.answered || !nonFatal || ctx.Err() != nil {
				return r.answer, false, r.err
			}
			failed = r
			if o.pushback > 0 {
				next.Reset(o.pushback)
			} else {
				more()
			}
			if at, ok := ctx.Deadline(); running == 0 && (sent >= most || ok && time.Now().Add(o.pushback).After(at)) {
				return r.answer, false, r.err
			}
		}
	}
}

// busy says whether a call ended as it would by the servers' having too much to do.
func busy(err error) bool {
	switch status.Code(err) {
	case codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded:
		return true
	default:
		return false
	}
}
