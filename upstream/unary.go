package upstream

import (
	"context"
	"sync"
	"time"

	"transom/rpc"
)

// unary makes a call of one message each way on the caller's goroutine.
func (c *Cluster) unary(ctx context.Context, call *rpc.Call) error {
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
	c.budget.call(start)
	var a answer
	if p.hedge == nil {
		a, err = c.retried(ctx, call, &p.retry, req)
	} else {
		a, err = c.hedged(ctx, call, p.hedge, req)
	}
	req.Release()
	call.Info.Upstream = time.Since(start)
	call.Info.Endpoint = a.endpoint
	if err != nil {
		err = c.fail(ctx, call, err, a.header != nil, len(a.trailer) > 0)
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

// retried makes attempts one after the other.
func (c *Cluster) retried(ctx context.Context, call *rpc.Call, p *retryPolicy, req rpc.Message) (answer, error) {
	for n := 1; ; n++ {
		a, err := c.backend.Unary(ctx, call.Method, call.Header, req, n)
		call.Info.Attempts = n
		if err == nil {
			return a, nil
		}
		wait, ok := c.again(ctx, call, p, n, outcomeOf(err, a.header != nil, a.trailer, a.endpoint))
		if !ok || !pause(ctx, wait) {
			return a, err
		}
	}
}

// hedged makes attempts side by side, one more after each delay, until one succeeds or fails for good; the others are
// then cancelled and waited for. A failure that is not fatal brings the next attempt forward.
func (c *Cluster) hedged(ctx context.Context, call *rpc.Call, p *hedgePolicy, req rpc.Message) (answer, error) {
	type result struct {
		answer
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
	sent, running := 0, 0
	send := func() {
		sent++
		running++
		n := sent
		call.Info.Attempts = n
		wg.Go(func() {
			a, err := c.backend.Unary(attempts, call.Method, call.Header, req, n)
			results <- result{a, err}
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
		if !c.budget.take(time.Now()) {
			call.Info.Note("hedge", "over the cluster's budget")
			most = sent
			return
		}
		send()
		next.Reset(p.delay)
	}
	for {
		select {
		case <-next.C:
			more()
		case r := <-results:
			running--
			if r.err == nil {
				return r.answer, nil
			}
			o := outcomeOf(r.err, r.header != nil, r.trailer, r.endpoint)
			nonFatal := p.nonFatal.has(o.st.Code()) || o.unseen
			if t := c.policies.throttles; t != nil && (nonFatal || o.stop) && !t.failure() || o.stop {
				most = sent
			}
			if o.answered || !nonFatal || ctx.Err() != nil {
				return r.answer, r.err
			}
			if o.pushback > 0 {
				next.Reset(o.pushback)
			} else {
				more()
			}
			if running == 0 && sent >= most {
				return r.answer, r.err
			}
		}
	}
}
