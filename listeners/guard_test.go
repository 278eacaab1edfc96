package listeners

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// deadlines is a response writer that keeps the earliest write deadline.
type deadlines struct {
	http.ResponseWriter
	earliest time.Time
}

func (d *deadlines) SetWriteDeadline(at time.Time) error {
	if d.earliest.IsZero() || at.Before(d.earliest) {
		d.earliest = at
	}
	return nil
}

// The wheel may call for a write that has just ended while the next begins: that one has its whole time.
func TestSlowWriteOfEarlierWrite(t *testing.T) {
	f := &Front{cfg: FrontConfig{IdleWrite: time.Hour}}
	for range 10_000 {
		w := &deadlines{ResponseWriter: httptest.NewRecorder()}
		g := &guard{front: f, rc: http.NewResponseController(w)}
		g.slow.g = g // as an earlier write leaves it
		begins := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			<-begins
			g.slow.due()
		})
		close(begins)
		_ = g.put(w, []byte("x"))
		wg.Wait()
		if !w.earliest.IsZero() {
			t.Fatalf("a write that has just begun was given a deadline at %v", w.earliest)
		}
	}
}
