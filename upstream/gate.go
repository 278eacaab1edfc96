package upstream

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// errFull and errWaited are why a gate turns a call away.
var (
	errFull   = errors.New("the queue is full")
	errWaited = errors.New("waited too long in the queue")
)

// gate lets a limited number of calls in and has a limited number wait, first come, first served: both for being let in and,
// inside, for an endpoint. Calls pay for it with two atomic operations unless the gate is full.
type gate struct {
	limit  atomic.Int64
	queue  int
	within time.Duration // the longest that a call waits, all its waits together

	inside  atomic.Int64
	waiting atomic.Int64  // len(line) + len(saturated)
	ends    atomic.Uint64 // counts those who have left

	mu        sync.Mutex
	last      uint64  // the number of the last turn
	line      []*turn // who is to be let in
	saturated []*turn // who is inside and waits for an endpoint; they go before those in line
}

// turn is the place of a call that has waited, which it keeps however often it waits.
type turn struct {
	number uint64
	by     time.Time     // when it gives up
	ready  chan struct{} // closed when its turn has come
}

// enter lets the caller in, waiting if need be. It fails with errFull, errWaited or the cause of ctx's end. Who was let
// in must leave. The turn is for await, nil if it did not wait.
func (g *gate) enter(ctx context.Context) (*turn, error) {
	if g.waiting.Load() == 0 && g.takeSlot() {
		return nil, nil //nolint:nilnil // as said
	}
	g.mu.Lock()
	t, err := g.turn()
	if err != nil {
		g.mu.Unlock()
		return nil, err
	}
	g.line = append(g.line, t)
	g.count()
	g.admit() // a slot may have come meanwhile, by a call that saw nobody waiting
	g.mu.Unlock()
	return t, g.wait(ctx, t, &g.line)
}

// await waits for the next try at an endpoint, after one that began when ends had the given count and found none. It is for
// who is inside, with the turn that the call has, if any, and returns the one that it has then. It fails as enter does,
// with errFull only a call that has no turn.
func (g *gate) await(ctx context.Context, t *turn, ends uint64) (*turn, error) {
	g.mu.Lock()
	if t == nil {
		var err error
		if t, err = g.turn(); err != nil {
			g.mu.Unlock()
			return nil, err
		}
	}
	t.ready = make(chan struct{})
	i, _ := slices.BinarySearchFunc(g.saturated, t, func(a, b *turn) int { return cmp.Compare(a.number, b.number) })
	g.saturated = slices.Insert(g.saturated, i, t)
	g.count()
	if g.ends.Load() != ends { // by a call that saw nobody waiting, or while this one was trying
		g.saturated = slices.Delete(g.saturated, i, i+1)
		g.count()
		g.mu.Unlock()
		return t, nil
	}
	g.mu.Unlock()
	return t, g.wait(ctx, t, &g.saturated)
}

// turn gives a call its place. mu is held.
func (g *gate) turn() (*turn, error) {
	if len(g.line)+len(g.saturated) >= g.queue {
		return nil, errFull
	}
	g.last++
	return &turn{number: g.last, by: time.Now().Add(g.within), ready: make(chan struct{})}, nil
}

// served hears that a call that has waited for an endpoint has one: there may be another.
func (g *gate) served() {
	if g.waiting.Load() > 0 {
		g.mu.Lock()
		g.next()
		g.mu.Unlock()
	}
}

// takeSlot takes a free slot.
func (g *gate) takeSlot() bool {
	for {
		n := g.inside.Load()
		if n >= g.limit.Load() {
			return false
		}
		if g.inside.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// setLimit changes how many are let in. Those inside stay.
func (g *gate) setLimit(n int64) {
	g.limit.Store(n)
	if g.waiting.Load() > 0 {
		g.mu.Lock()
		g.admit()
		g.mu.Unlock()
	}
}

// leave gives a slot back.
func (g *gate) leave() {
	g.inside.Add(-1)
	g.ends.Add(1)
	if g.waiting.Load() > 0 {
		g.mu.Lock()
		g.next()
		g.mu.Unlock()
	}
}

// next has one call try that waits for an endpoint; whoever is in line would try for the same. mu is held.
func (g *gate) next() {
	if len(g.saturated) == 0 {
		g.admit()
		return
	}
	close(g.saturated[0].ready)
	g.saturated = slices.Delete(g.saturated, 0, 1)
	g.count()
}

// admit lets those in line in for whom there is a slot, unless some who are inside find no endpoint. mu is held.
func (g *gate) admit() {
	n := 0
	for len(g.saturated) == 0 && n < len(g.line) && g.takeSlot() {
		close(g.line[n].ready)
		n++
	}
	g.line = slices.Delete(g.line, 0, n)
	g.count()
}

// count is of those who wait. mu is held.
func (g *gate) count() { g.waiting.Store(int64(len(g.line) + len(g.saturated))) }

// wait waits for t's turn, in a queue of g.
func (g *gate) wait(ctx context.Context, t *turn, queue *[]*turn) error {
	timer := time.NewTimer(time.Until(t.by))
	defer timer.Stop()
	var err error
	select {
	case <-t.ready:
		return nil
	case <-timer.C:
		err = errWaited
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(*queue, t)
	if i < 0 {
		return nil // its turn had come after all
	}
	*queue = slices.Delete(*queue, i, i+1)
	g.count()
	return err
}
