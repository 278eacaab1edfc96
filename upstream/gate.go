package upstream

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// errFull and errWaited are why a gate turns a call away.
var (
	errFull   = errors.New("the queue is full")
	errWaited = errors.New("waited too long in the queue")
)

// gate lets a limited number of calls in and has a limited number wait, first come, first served. Calls pay for it with
// two atomic operations unless the gate is full.
type gate struct {
	limit  atomic.Int64
	queue  int
	within time.Duration // the longest wait

	inside  atomic.Int64
	waiting atomic.Int64  // len(line)
	ends    atomic.Uint64 // counts those who have left

	mu   sync.Mutex
	line []*waiter
}

// waiter is a call in the queue.
type waiter struct {
	ready chan struct{} // closed when its turn has come
	slot  bool          // it waits to be let in; else only for ends to change
	ends  uint64
}

// enter lets the caller in, waiting if need be. It fails with errFull, errWaited or the cause of ctx's end. Who was let
// in must leave.
func (g *gate) enter(ctx context.Context) error {
	if g.waiting.Load() == 0 && g.takeSlot() {
		return nil
	}
	return g.wait(ctx, &waiter{slot: true})
}

// await waits until a call has left since ends had the given count. It is for who is inside. It fails as enter does.
func (g *gate) await(ctx context.Context, ends uint64) error {
	return g.wait(ctx, &waiter{ends: ends})
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
		g.admit()
		g.mu.Unlock()
	}
}

// admit wakes those whose turn has come: for whom there is a slot, and who waited for an end. mu is held.
func (g *gate) admit() {
	for len(g.line) > 0 {
		w := g.line[0]
		if w.slot && !g.takeSlot() || !w.slot && g.ends.Load() == w.ends {
			break
		}
		close(w.ready)
		g.line[0] = nil
		g.line = g.line[1:]
	}
	g.waiting.Store(int64(len(g.line)))
}

// wait queues w.
func (g *gate) wait(ctx context.Context, w *waiter) error {
	w.ready = make(chan struct{})
	g.mu.Lock()
	if len(g.line) >= g.queue {
		g.mu.Unlock()
		return errFull
	}
	g.line = append(g.line, w)
	g.waiting.Store(int64(len(g.line)))
	g.admit() // what it waits for may have come meanwhile, by a call that saw nobody waiting
	g.mu.Unlock()

	timer := time.NewTimer(g.within)
	defer timer.Stop()
	var err error
	select {
	case <-w.ready:
		return nil
	case <-timer.C:
		err = errWaited
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, o := range g.line {
		if o == w {
			g.line = append(g.line[:i:i], g.line[i+1:]...)
			g.admit() // whoever was behind may be in luck
			return err
		}
	}
	return nil // its turn had come after all
}
