package listeners

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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

// A file must come at 240 bytes a second of what is waited for it, averaged over the time that a body may stand still.
func TestUploadRate(t *testing.T) {
	for _, tc := range []struct {
		bytes int
		every time.Duration
		ends  time.Duration // of waiting; 0: not within an hour
	}{
		{1, 29 * time.Second, 58 * time.Second},
		{1, 50 * time.Millisecond, 30 * time.Second},
		{239, time.Second, 30 * time.Second},
		{240, time.Second, 0},
		{7200, 29 * time.Second, 0},
		{64 << 10, 100 * time.Millisecond, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := &guard{front: &Front{cfg: FrontConfig{IdleBody: 30 * time.Second}}}
			g.watchRead()
			var waited time.Duration
			body := g.body(readerFunc(func([]byte) (int, error) {
				time.Sleep(tc.every)
				waited += tc.every
				return tc.bytes, nil
			}))
			p := make([]byte, chunkLen)
			for waited < time.Hour {
				if _, err := body.Read(p); err != nil {
					if status.Code(err) != codes.DeadlineExceeded || waited != tc.ends {
						t.Errorf("%d bytes every %v: %v after %v, want it after %v", tc.bytes, tc.every, err, waited, tc.ends)
					}
					return
				}
				time.Sleep(5 * time.Second) // what a backend takes its time for is no fault of the client's
			}
			if tc.ends > 0 {
				t.Errorf("%d bytes every %v went on for an hour", tc.bytes, tc.every)
			}
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
