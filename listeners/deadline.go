package listeners

import (
	"context"
	"errors"
	"sync"
	"time"
)

// wheelTick is how late a deadline kept by a wheel may be, or a thousandth of its timeout, if that is more.
const wheelTick = 50 * time.Millisecond

// wheelFine is the number of ticks up to which a timeout is kept to one. Those beyond share slots, all of which a turn looks at.
const wheelFine = 1024

// wheelLeast is the shortest timeout that a wheel keeps; shorter ones get a timer of their own.
const wheelLeast = time.Second

// wheel keeps the deadlines of many calls with one timer. A runtime timer for every call costs more than it looks: each one
// that is due before all others wakes a thread from its wait for the network. Most calls end long before their deadline,
// so being up to a tick late is cheap to accept; what the backend is told (grpc-timeout) is exact.
//
// # Concurrency
// Safe for concurrent use. The timer runs only while there are deadlines.
type wheel struct {
	mu    sync.Mutex
	slots map[int64]*alarm // by tick, the head of a list
	first int64            // the earliest tick that may have a slot
	timer *time.Timer
	armed bool
}

// alarm is a place in a wheel. It belongs to the wheel while it is in.
type alarm struct {
	owner      interface{ due() } // told when the time has come
	tick       int64              // 0 while it is out
	next, prev *alarm
}

// deadline is a context with a deadline that a wheel keeps.
type deadline struct {
	context.Context
	alarm

	at     time.Time
	cancel context.CancelCauseFunc
}

// due implements the wheel's call.
func (d *deadline) due() { d.cancel(context.DeadlineExceeded) }

var _ context.Context = (*deadline)(nil)

// Deadline implements context.Context.
func (d *deadline) Deadline() (time.Time, bool) {
	if p, ok := d.Context.Deadline(); ok && p.Before(d.at) {
		return p, true
	}
	return d.at, true
}

// Err implements context.Context. Contexts derived from d say Canceled when d ends by its deadline; the cause says which.
func (d *deadline) Err() error {
	err := d.Context.Err()
	if err != nil && errors.Is(context.Cause(d.Context), context.DeadlineExceeded) {
		return context.DeadlineExceeded
	}
	return err
}

// withTimeout is context.WithTimeout with the wheel's precision for timeouts that allow it. The cancel function must be
// called.
func (w *wheel) withTimeout(ctx context.Context, timeout time.Duration) (context.Context, func()) {
	if timeout < wheelLeast {
		return context.WithTimeout(ctx, timeout)
	}
	now := time.Now()
	d := &deadline{at: now.Add(timeout)}
	d.Context, d.cancel = context.WithCancelCause(ctx)
	d.owner = d
	w.add(&d.alarm, now, timeout)
	return d, func() {
		w.remove(&d.alarm)
		d.cancel(context.Canceled)
	}
}

// add puts d into the slot of the time after now, out of the one it may be in.
func (w *wheel) add(d *alarm, now time.Time, after time.Duration) {
	tick := now.Add(after).UnixNano()/int64(wheelTick) + 1
	step := int64(1)
	for n := int64(after / wheelTick); n >= 2*wheelFine*step; {
		step *= 2
	}
	tick = (tick + step - 1) / step * step
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.slots == nil {
		w.slots = map[int64]*alarm{}
	}
	w.unlink(d)
	d.tick = tick
	if d.next = w.slots[tick]; d.next != nil {
		d.next.prev = d
	}
	w.slots[tick] = d
	if !w.armed || tick < w.first {
		w.first, w.armed = tick, true
		w.arm()
	}
}

// arm sets the timer for the first tick. mu is held.
func (w *wheel) arm() {
	wait := time.Until(time.Unix(0, w.first*int64(wheelTick)))
	if w.timer == nil {
		w.timer = time.AfterFunc(wait, w.turn)
		return
	}
	w.timer.Reset(wait)
}

// remove takes d out, if it is still in.
func (w *wheel) remove(d *alarm) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unlink(d)
}

// unlink does the work of remove. mu is held.
func (w *wheel) unlink(d *alarm) {
	if d.tick == 0 {
		return
	}
	if d.next != nil {
		d.next.prev = d.prev
	}
	switch {
	case d.prev != nil:
		d.prev.next = d.next
	case d.next != nil:
		w.slots[d.tick] = d.next
	default:
		delete(w.slots, d.tick)
	}
	d.tick, d.next, d.prev = 0, nil, nil
}

// turn ends what is due and sets the timer for what is next.
func (w *wheel) turn() {
	now := time.Now().UnixNano() / int64(wheelTick)
	var due []interface{ due() }
	w.mu.Lock()
	first := int64(0)
	for tick, d := range w.slots {
		if tick > now {
			if first == 0 || tick < first {
				first = tick
			}
			continue
		}
		delete(w.slots, tick)
		for d != nil {
			next := d.next
			d.tick, d.next, d.prev = 0, nil, nil // it may be added again
			due = append(due, d.owner)
			d = next
		}
	}
	if w.armed = first != 0; w.armed {
		w.first = first
		w.arm()
	}
	w.mu.Unlock()
	for _, d := range due {
		d.due()
	}
}
