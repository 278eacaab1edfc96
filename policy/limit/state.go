package limit

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"transom/rpc"
)

// String is the kind in a word.
func (k Kind) String() string {
	return [...]string{Rate: "rate", Quota: "quota", Concurrent: "concurrent"}[k]
}

// Text is the amount as [ParseAmount] reads it.
func (a Amount) Text(kind Kind) string {
	switch {
	case kind == Concurrent:
		return strconv.FormatInt(a.Count, 10)
	case kind == Quota && a.Period == Day:
		return fmt.Sprintf("%d/day", a.Count)
	case kind == Quota:
		return fmt.Sprintf("%d/month", a.Count)
	}
	per := a.Period.String()
	for _, zero := range [...]string{"m0s", "h0m"} {
		if strings.HasSuffix(per, zero) {
			per = per[:len(per)-2]
		}
	}
	switch per {
	case "1ms", "1s", "1m", "1h":
		per = per[1:]
	}
	return fmt.Sprintf("%d/%s", a.Count, per)
}

// String is the part as [ParsePart] reads it.
func (p Part) String() string {
	kind := [...]string{perConsumer: "consumer", perIP: "ip", perMethod: "method", perHeader: "header", perClaim: "claim", perField: "field"}[p.kind]
	if p.name != "" {
		kind += ":" + p.name
	}
	return kind
}

// State is a limit, and what one caller has left of it.
type State struct {
	Name string
	Kind Kind
	// Amount is the caller's, by its plan; Plan is "" if that has no amount of its own.
	Amount Amount
	Plan   string
	Per    []Part
	// Messages says that messages are counted rather than calls, Shared that counts are in Redis.
	Messages, Shared bool
	// Keys is how many are counted apart in this process; Redis's are not known.
	Keys int
	// Known says that Remaining and Reset are the caller's: how many calls of cost 1 there may be now, and the time until the
	// full amount is there again, which of Concurrent nobody knows.
	Known     bool
	Remaining int64
	Reset     time.Duration
}

// Name is the limit's own.
func (l *Limiter) Name() string { return l.cfg.Name }

// State tells what the limit is, and what is left of it for the caller of call, without counting it: as far as its Principal,
// Peer and Method say all that the limit counts by. Any of these may be missing; Info must be there.
func (l *Limiter) State(ctx context.Context, call *rpc.Call) State {
	p := l.of(call)
	s := State{Name: l.cfg.Name, Kind: l.cfg.Kind, Amount: p.Amount, Per: l.cfg.Per, Messages: l.cfg.Messages, Shared: l.cfg.Redis != nil}
	if p != l.def {
		s.Plan = call.Principal.Plan
	}
	switch l.cfg.Kind {
	case Rate:
		s.Keys = l.rates.len()
	case Quota:
		s.Keys = l.quotas.len()
	case Concurrent:
		s.Keys = l.running.len()
	}
	for _, part := range l.cfg.Per {
		switch part.kind {
		case perConsumer:
			s.Known = call.Principal != nil || call.Peer.Addr.IsValid()
		case perIP:
			s.Known = call.Peer.Addr.IsValid()
		case perMethod:
			s.Known = call.Method != nil
		default:
			s.Known = false
		}
		if !s.Known {
			return s
		}
	}
	key := l.key(nil, call, request{})
	if r := l.cfg.Redis; r != nil {
		v, err := r.take(ctx, l, p, key, 0)
		s.Known, s.Remaining, s.Reset = err == nil, v.remaining, v.reset
		return s
	}
	v := l.look(p, key)
	s.Known, s.Remaining, s.Reset = true, v.remaining, v.reset
	return s
}

// look is local for a call that is not made.
func (l *Limiter) look(p *plan, key []byte) verdict {
	v := verdict{plan: p}
	switch l.cfg.Kind {
	case Rate:
		now := l.clock.now()
		s := l.rates.shard(key)
		s.mu.Lock()
		tat, there := s.m[s.hash]
		s.unlock()
		if !there {
			tat = now
		}
		v.ofRate(p, tat-now, 0)
	case Quota:
		now := wall()
		s := l.quotas.shard(key)
		s.mu.Lock()
		u := s.m[s.hash]
		s.unlock()
		u, _ = u.add(now, window(now, p.Period), 0, p)
		v.of(p, u, now, true)
	case Concurrent:
		s := l.running.shard(key)
		s.mu.Lock()
		v.remaining = max(0, p.Count-int64(s.m[s.hash]))
		s.unlock()
	}
	return v
}
