package limit

import (
	"context"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// Middleware holds calls to all of the limits; a call, or message, weighs cost. It is nil if there are none.
func Middleware(limits []*Limiter, cost int64) rpc.Middleware {
	if len(limits) == 0 {
		return nil
	}
	g := &gate{cost: cost}
	for _, l := range limits {
		switch {
		case l.cfg.Kind == Concurrent:
			g.running = append(g.running, l)
		case l.cfg.Messages:
			g.messages = append(g.messages, l)
		default:
			g.calls = append(g.calls, l)
		}
	}
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error { return g.run(ctx, call, next) }
	}
}

// gate is the limits of one method.
type gate struct {
	cost int64
	// running are of Kind Concurrent, calls count calls, messages count messages.
	running, calls, messages []*Limiter
}

func (g *gate) run(ctx context.Context, call *rpc.Call, next rpc.Handler) error {
	if len(g.running) > 0 {
		var room [2]slot[int32]
		inside := room[:0]
		defer func() {
			for _, s := range inside {
				leave(s)
			}
		}()
		for _, l := range g.running {
			s, err := l.enter(call)
			if err != nil {
				return err
			}
			inside = append(inside, s)
		}
	}
	if len(g.calls) > 0 {
		a := &announced{Stream: call.Stream, limits: g.calls}
		a.all = a.verdicts[:0]
		if err := take(ctx, call, g.calls, g.cost, &a.all); err != nil {
			return err
		}
		call.Stream = a
	}
	if len(g.messages) > 0 {
		call.Stream = &counted{call.Stream, g, call}
	}
	return next(ctx, call)
}

// take asks all limits, and appends what they say to all unless that is nil. What was taken is given back if one refuses.
func take(ctx context.Context, call *rpc.Call, limits []*Limiter, cost int64, all *[]verdict) error {
	for i, l := range limits {
		v, err := l.take(ctx, call, cost)
		switch {
		case err != nil:
			err = l.unknown(call, err)
		case v.wait > 0:
			err = l.refusal(call, v)
		default:
			if all != nil {
				*all = append(*all, v)
			}
			continue
		}
		for _, before := range limits[:i] {
			_, _ = before.take(ctx, call, -cost)
		}
		return err
	}
	return nil
}

// enter counts a call in.
func (l *Limiter) enter(call *rpc.Call) (slot[int32], error) {
	var buf [128]byte
	s := l.running.shard(l.key(buf[:0], call))
	p := l.of(call)
	s.mu.Lock()
	defer s.unlock()
	if n := s.m[s.hash]; int64(n) < p.Count {
		s.m[s.hash] = n + 1
		return s, nil
	}
	// When another call ends nobody knows; a second is polite.
	return s, l.refusal(call, verdict{plan: p, wait: time.Second})
}

// leave counts a call out.
func leave(s slot[int32]) {
	s.mu.Lock()
	defer s.unlock()
	if n := s.m[s.hash] - 1; n > 0 {
		s.m[s.hash] = n
	} else {
		delete(s.m, s.hash)
	}
}

// announced tells the client in the response metadata what it has left.
type announced struct {
	rpc.Stream
	limits   []*Limiter
	all      []verdict
	verdicts [2]verdict // where all is, mostly
	state    [1]string  // what SendHeader says of them
	told     bool
}

func (a *announced) SendHeader(md metadata.MD) error {
	a.told = true
	if md == nil {
		md = make(metadata.MD, 2)
	}
	var stateBuf, policyBuf [128]byte
	state, policy := stateBuf[:0], policyBuf[:0]
	for i, v := range a.all {
		if i > 0 {
			state, policy = append(state, ", "...), append(policy, ", "...)
		}
		state = a.limits[i].state(state, v)
		if len(a.all) > 1 {
			policy = append(policy, v.plan.policy[0]...)
		}
	}
	a.state[0] = string(state)
	md["ratelimit"] = a.state[:]
	if len(a.all) == 1 {
		md["ratelimit-policy"] = a.all[0].plan.policy
	} else {
		md["ratelimit-policy"] = []string{string(policy)}
	}
	return a.Stream.SendHeader(md)
}

func (a *announced) Send(ctx context.Context, m rpc.Message) error {
	if !a.told {
		if err := a.SendHeader(nil); err != nil {
			m.Release()
			return err
		}
	}
	return a.Stream.Send(ctx, m)
}

// counted counts the client's messages.
type counted struct {
	rpc.Stream
	gate *gate
	call *rpc.Call
}

func (c *counted) Recv(ctx context.Context) (rpc.Message, error) {
	m, err := c.Stream.Recv(ctx)
	if err != nil {
		return m, err
	}
	if err := take(ctx, c.call, c.gate.messages, c.gate.cost, nil); err != nil {
		m.Release()
		return rpc.Message{}, err
	}
	return m, nil
}
