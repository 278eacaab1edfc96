package upstream

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Calls that wait for a busy endpoint are served in the order in which they came, before those that wait to be let in, and
// each tries only when an endpoint may be free.
func TestGateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const calls, took = 60, time.Second
		g := &gate{queue: calls, within: time.Hour}
		g.setLimit(20)
		busy := false // only one goroutine runs between two waits of this test
		var order, want []int
		tries := 0
		for i := range calls {
			want = append(want, i)
			go func() {
				turn, err := g.enter(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				defer g.leave()
				for {
					ends := g.ends.Load()
					g.mu.Lock() // guards what this test keeps, too
					tries++
					free := !busy
					busy = true
					g.mu.Unlock()
					if free {
						break
					}
					if turn, err = g.await(t.Context(), turn, ends); err != nil {
						t.Error(err)
						return
					}
				}
				g.served()
				time.Sleep(took)
				g.mu.Lock()
				order = append(order, i)
				busy = false
				g.mu.Unlock()
			}()
			synctest.Wait()
		}
		time.Sleep(2 * calls * took)
		synctest.Wait()
		if !slices.Equal(order, want) {
			t.Errorf("served in the order %v", order)
		}
		if tries > 4*calls {
			t.Errorf("%d tries for %d calls", tries, calls)
		}
		if n := g.waiting.Load() + g.inside.Load(); n != 0 {
			t.Errorf("%d calls are left", n)
		}
	})
}

// A call that has waited keeps its place in a full queue, and its time goes on.
func TestGateKeepsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{queue: 1, within: time.Minute}
		g.setLimit(3)
		for range 2 {
			if _, err := g.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		time.AfterFunc(40*time.Second, g.leave)
		turn, err := g.await(t.Context(), nil, g.ends.Load())
		if err != nil || time.Since(start) != 40*time.Second {
			t.Fatal(err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		other := make(chan error)
		go func() { // takes its place in the queue, not its turn
			_, err := g.await(ctx, nil, g.ends.Load())
			other <- err
		}()
		synctest.Wait()
		if _, err := g.await(t.Context(), nil, g.ends.Load()); err != errFull {
			t.Errorf("beyond the queue: %v", err)
		}
		if _, err := g.await(t.Context(), turn, g.ends.Load()); err != errWaited || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		cancel()
		if err := <-other; err != context.Canceled {
			t.Error(err)
		}
	})
}
