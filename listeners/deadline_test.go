package listeners

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"transom/rpc"
)

func TestWheel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wheel
		start := time.Now()
		long, cancelLong := w.withTimeout(t.Context(), time.Hour)
		short, cancelShort := w.withTimeout(t.Context(), 2*time.Second)
		exact, cancelExact := w.withTimeout(t.Context(), 10*time.Millisecond)
		defer cancelExact()
		dropped, drop := w.withTimeout(t.Context(), 3*time.Second)
		drop()
		child, cancelChild := context.WithCancel(short)
		defer cancelChild()
		if at, ok := short.Deadline(); !ok || !at.Equal(start.Add(2*time.Second)) {
			t.Errorf("deadline %v", at)
		}
		<-exact.Done()
		if d := time.Since(start); d != 10*time.Millisecond {
			t.Errorf("10 ms took %v", d)
		}
		<-child.Done()
		if d := time.Since(start); d < 2*time.Second || d > 2*time.Second+2*wheelTick {
			t.Errorf("2 s took %v", d)
		}
		if !errors.Is(short.Err(), context.DeadlineExceeded) || rpc.StatusOf(rpc.CauseOf(short)).Code() != codes.DeadlineExceeded || rpc.StatusOf(rpc.CauseOf(child)).Code() != codes.DeadlineExceeded {
			t.Errorf("at the deadline: %v, cause %v, child's cause %v", short.Err(), rpc.CauseOf(short), rpc.CauseOf(child))
		}
		if !errors.Is(dropped.Err(), context.Canceled) {
			t.Errorf("dropped: %v", dropped.Err())
		}
		cancelShort()
		if long.Err() != nil {
			t.Errorf("the long one ended: %v", long.Err())
		}
		parent, cancelParent := context.WithCancelCause(t.Context())
		inner, cancelInner := w.withTimeout(parent, time.Minute)
		defer cancelInner()
		cancelParent(rpc.ErrClientGone)
		<-inner.Done()
		if !errors.Is(inner.Err(), context.Canceled) || !errors.Is(rpc.CauseOf(inner), rpc.ErrClientGone) {
			t.Errorf("the parent ended: %v, cause %v", inner.Err(), rpc.CauseOf(inner))
		}
		<-long.Done()
		if d := time.Since(start); d < time.Hour || d > time.Hour+time.Hour/1000+2*wheelTick {
			t.Errorf("an hour took %v", d)
		}
		cancelLong()
		if len(w.slots) != 0 || w.armed {
			t.Errorf("left in the wheel: %d, armed %v", len(w.slots), w.armed)
		}
	})
}

// Many calls with one timeout share few slots; taking one out leaves the others.
func TestWheelRemovesAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wheel
		var ctxs []context.Context
		var cancels []func()
		for range 5 {
			ctx, cancel := w.withTimeout(t.Context(), 5*time.Second)
			ctxs, cancels = append(ctxs, ctx), append(cancels, cancel)
		}
		for _, i := range []int{2, 0, 4} {
			cancels[i]()
		}
		time.Sleep(6 * time.Second)
		for i, ctx := range ctxs {
			want := context.DeadlineExceeded
			if i%2 == 0 {
				want = context.Canceled
			}
			if !errors.Is(ctx.Err(), want) {
				t.Errorf("%d: %v, want %v", i, ctx.Err(), want)
			}
		}
		cancels[1]()
		cancels[3]()
	})
}

// Streams have a day by default. A turn looks at all slots with the lock held, which took 2 ms with 50,000 streams open.
func TestWheelOfManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wheel
		slots := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.slots)
		}
		var cancels []func()
		for i := range 5000 {
			timeout := 24 * time.Hour
			if i%2 == 1 {
				timeout = 5 * time.Minute
			}
			start := time.Now()
			ctx, cancel := w.withTimeout(t.Context(), timeout)
			cancels = append(cancels, cancel)
			context.AfterFunc(ctx, func() {
				if late := time.Since(start) - timeout; late < 0 || late > timeout/1000+2*wheelTick {
					t.Errorf("%v was kept to %v", timeout, late)
				}
			})
			time.Sleep(80 * time.Millisecond)
		}
		if n := slots(); n > 2000 {
			t.Errorf("%d slots", n)
		}
		time.Sleep(25 * time.Hour)
		if n := slots(); n != 0 {
			t.Errorf("left in the wheel: %d", n)
		}
		for _, cancel := range cancels {
			cancel()
		}
	})
}

func BenchmarkDeadline(b *testing.B) {
	parent, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.Run("wheel", func(b *testing.B) {
		var w wheel
		b.ReportAllocs()
		for b.Loop() {
			_, cancel := w.withTimeout(parent, 15*time.Second)
			cancel()
		}
	})
	b.Run("timer", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, cancel := context.WithTimeout(parent, 15*time.Second)
			cancel()
		}
	})
}

// again is an alarm that is counted.
type again struct {
	alarm
	fired int
}

func (a *again) due() { a.fired++ }

// A body that arrives slowly has its alarm go off and be set again for each read. The wheel once kept the neighbours that
// the alarm had had before, and taking it out again tore other deadlines out of their lists, or closed a list to a ring.
func TestWheelTakesAlarmsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wheel
		slow := make([]again, 4)
		for i := range slow {
			slow[i].owner = &slow[i]
			w.add(&slow[i].alarm, time.Now(), time.Second)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		var ctxs []context.Context
		for range 3 {
			ctx, cancel := w.withTimeout(t.Context(), 5*time.Second)
			defer cancel()
			ctxs = append(ctxs, ctx)
		}
		now := time.Now()
		for i := range slow {
			if slow[i].fired != 1 {
				t.Errorf("alarm %d went off %d times", i, slow[i].fired)
			}
		}
		for _, i := range []int{0, 2} { // each is now the first of its list, and had one before it
			w.add(&slow[i].alarm, now, 5*time.Second)
			w.add(&slow[i].alarm, now, 6*time.Second) // moves it
			w.remove(&slow[i].alarm)
		}
		time.Sleep(6 * time.Second)
		for i, ctx := range ctxs {
			if ctx.Err() == nil {
				t.Errorf("deadline %d was lost", i)
			}
		}
		if len(w.slots) != 0 || w.armed {
			t.Errorf("left in the wheel: %d, armed %v", len(w.slots), w.armed)
		}
	})
}
