package limit

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// Middleware holds calls to all of the limits; a call, or message, weighs cost. It is nil if there are none. fields are those of
// the method's request that the limits count by; nil if they count by none.
//
// If callers are authenticated, the limits that count by addresses (see anonymous) are in early, which is to stand before
// authentication, so that they hold floods of bad credentials too; early is nil if there are none. What early counted is given
// back if one of the others refuses the call.
//
// A limit by a field goes by the first message of a call, which is waited for, or if it counts messages by each; a call without
// a message has none of the fields. A message that is not of the type ends the call with INVALID_ARGUMENT. Where no limit
// counts by a field nothing is waited for and nothing decoded.
func Middleware(limits []*Limiter, cost int64, fields Fields, authenticated bool) (early, late rpc.Middleware) {
	before, after := &gate{cost: cost}, &gate{cost: cost, fields: fields}
	for _, l := range limits {
		g := after
		if authenticated && l.anonymous() {
			g = before
		}
		g.add(l)
	}
	before.followed = len(after.calls) > 0
	return before.middleware(), after.middleware()
}

// add adds a limit.
func (g *gate) add(l *Limiter) {
	switch {
	case l.cfg.Kind == Concurrent:
		g.running = append(g.running, l)
		g.first = g.first || l.byField()
	case l.cfg.Messages:
		g.messages = append(g.messages, l)
		g.each = g.each || l.byField()
	default:
		g.calls = append(g.calls, l)
		g.first = g.first || l.byField()
	}
}

// middleware is nil if g has no limits.
func (g *gate) middleware() rpc.Middleware {
	if len(g.running)+len(g.calls)+len(g.messages) == 0 {
		return nil
	}
	if g.first || len(g.running)+len(g.messages) > 0 {
		return func(next rpc.Handler) rpc.Handler {
			return func(ctx context.Context, call *rpc.Call) error { return g.run(ctx, call, next) }
		}
	}
	return g.count
}

// count is the Middleware of limits that only count calls. Little of it is on the stack while next runs.
func (g *gate) count(next rpc.Handler) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		left, err := g.charge(ctx, call, request{})
		if err != nil {
			return err
		}
		if err = next(ctx, call); err == nil && left == nil {
			return nil
		}
		return g.ended(ctx, call, request{}, left, err)
	}
}

// gate is the limits of one method.
type gate struct {
	cost int64
	// running are of Kind Concurrent, calls count calls, messages count messages.
	running, calls, messages []*Limiter
	// first says that running or calls count by a field, each that messages do.
	first, each bool
	fields      Fields
	// followed says that there is a gate further in that counts calls.
	followed bool
}

// refused is the error of a call that a gate did not let through.
type refused struct{ error }

func (r *refused) Unwrap() error { return r.error }

// run lets the call through if there is room for it. The first message is looked at before anything is counted.
func (g *gate) run(ctx context.Context, call *rpc.Call, next rpc.Handler) error {
	if !g.first {
		return g.hold(ctx, call, request{}, next)
	}
	first, stream, err := rpc.Peek(ctx, call.Stream)
	if err != nil && err != io.EOF {
		return err
	}
	call.Stream = stream
	var req request
	if err == nil {
		if req, err = g.read(call, first); err != nil {
			first.Release()
			return err
		}
	}
	passed := false
	err = g.hold(ctx, call, req, func(ctx context.Context, call *rpc.Call) error {
		passed = true
		return next(ctx, call)
	})
	if !passed {
		first.Release()
	}
	return err
}

// read takes a message for what limits count by.
func (g *gate) read(call *rpc.Call, m rpc.Message) (request, error) {
	input := call.Method.Desc.Input()
	msg, err := rpc.Decode(input, m.Bytes())
	if err != nil {
		call.Info.Fail(rpc.SourceClient)
		return request{}, status.Errorf(codes.InvalidArgument, "the request cannot be read as a %s", input.FullName())
	}
	return request{g.fields, msg}, nil
}

// hold lets the call, of the request req, through if there is room for it.
func (g *gate) hold(ctx context.Context, call *rpc.Call, req request, next rpc.Handler) error {
	if len(g.running) > 0 {
		var room [2]slot[int32]
		inside := room[:0]
		defer func() {
			for _, s := range inside {
				leave(s)
			}
		}()
		for _, l := range g.running {
			s, err := l.enter(call, req)
			if err != nil {
				return &refused{err}
			}
			inside = append(inside, s)
		}
	}
	var left *announced
	if len(g.calls) > 0 {
		var err error
		if left, err = g.charge(ctx, call, req); err != nil {
			return err
		}
	}
	if len(g.messages) > 0 {
		call.Stream = &counted{call.Stream, g, call}
	}
	return g.ended(ctx, call, req, left, next(ctx, call))
}

// charge counts the call, and has the client told what it has left: by what it returns, unless that is nil.
func (g *gate) charge(ctx context.Context, call *rpc.Call, req request) (*announced, error) {
	var few [2]verdict
	all, err := take(ctx, call, req, g.calls, g.cost, few[:0])
	if err != nil {
		return nil, &refused{err}
	}
	state, policy := g.tell(all)
	if stream, ok := call.Stream.(rpc.RateLimited); ok && !g.followed {
		stream.RateLimit(state, policy)
		return nil, nil
	}
	left := &announced{Stream: call.Stream, state: [1]string{state}, policy: [1]string{policy}, followed: g.followed}
	call.Stream = left
	return left, nil
}

// ended is how a call ends that was let through and ended with err, or well. What it took is given back if a gate further in has refused
// it.
func (g *gate) ended(ctx context.Context, call *rpc.Call, req request, left *announced, err error) error {
	if _, further := errors.AsType[*refused](err); further {
		giveBack(ctx, call, req, g.calls, g.cost)
		return err
	}
	if left != nil {
		return left.end(err)
	}
	return err
}

// giveBack gives back what a call took of limits.
func giveBack(ctx context.Context, call *rpc.Call, req request, limits []*Limiter, cost int64) {
	for _, l := range limits {
		_, _ = l.take(ctx, call, req, -cost)
	}
}

// take asks all limits, and appends what they say to all. What was taken is given back if one refuses.
func take(ctx context.Context, call *rpc.Call, req request, limits []*Limiter, cost int64, all []verdict) ([]verdict, error) {
	for i, l := range limits {
		v, err := l.take(ctx, call, req, cost)
		switch {
		case err != nil:
			err = l.unknown(call, err)
		case v.wait > 0:
			err = l.refusal(call, v)
		default:
			all = append(all, v)
			continue
		}
		giveBack(ctx, call, req, limits[:i], cost)
		return nil, err
	}
	return all, nil
}

// enter counts a call in.
func (l *Limiter) enter(call *rpc.Call, req request) (slot[int32], error) {
	var buf [128]byte
	s := l.running.shard(l.key(buf[:0], call, req))
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

// tell is what the client is told of what the limits said.
func (g *gate) tell(all []verdict) (state, policy string) {
	if len(all) == 1 {
		v := &all[0]
		if r := &v.plan.rested; r.text != "" && v.remaining == r.remaining && seconds(v.reset) == r.seconds {
			return r.text, v.plan.policy[0]
		}
	}
	var buf [128]byte
	b := buf[:0]
	for i, v := range all {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = g.calls[i].state(b, v)
	}
	if len(all) == 1 {
		return string(b), all[0].plan.policy[0]
	}
	policies := make([]string, len(all))
	for i, v := range all {
		policies[i] = v.plan.policy[0]
	}
	return string(b), strings.Join(policies, ", ")
}

// announced tells the client in the response metadata what it has left, for a Stream that does not do so itself.
type announced struct {
	rpc.Stream
	// state and policy are the values of "ratelimit" and "ratelimit-policy".
	state, policy [1]string
	// followed says that further limits have told already.
	followed, told bool
}

func (a *announced) SendHeader(md metadata.MD) error {
	a.told = true
	if md == nil {
		md = rpc.NewMetadata()
	}
	a.put(md)
	return a.Stream.SendHeader(md)
}

// put writes what is left into md, before what further limits wrote.
func (a *announced) put(md metadata.MD) {
	if a.followed {
		if had, by := md["ratelimit"], md["ratelimit-policy"]; len(had) == 1 && len(by) == 1 {
			a.state[0], a.policy[0] = a.state[0]+", "+had[0], a.policy[0]+", "+by[0]
		}
	}
	md["ratelimit"], md["ratelimit-policy"] = a.state[:], a.policy[:]
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

// end has the client told with an error that is the call's whole answer, or where a stream had no message. A limit that refuses has
// told already.
func (a *announced) end(err error) error {
	switch {
	case a.told:
		return err
	case err == nil:
		_ = a.SendHeader(nil) // the call has ended well, also if this cannot be told
		return nil
	}
	md := metadata.MD{}
	for key, values := range rpc.HeaderOf(err) {
		if key == "ratelimit" || key == "ratelimit-policy" {
			md[key] = values
		}
	}
	if len(md) > 0 && !a.followed {
		return err
	}
	a.put(md)
	return rpc.WithHeader(err, md)
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
	var req request
	if c.gate.each {
		if req, err = c.gate.read(c.call, m); err != nil {
			m.Release()
			return rpc.Message{}, err
		}
	}
	var few [2]verdict
	if _, err := take(ctx, c.call, req, c.gate.messages, c.gate.cost, few[:0]); err != nil {
		m.Release()
		return rpc.Message{}, err
	}
	return m, nil
}
