package descriptors

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestRest: files are read once nothing has happened in their directory for a while, and in one that never rests, since a log is written
// there, say, all the same.
func TestRest(t *testing.T) {
	const settle = 100 * time.Millisecond
	for _, tc := range []struct {
		name  string
		every time.Duration // between events
		n     int           // events; negative for no end
		want  time.Duration
	}{
		{"quiet", settle / 2, 0, settle},
		{"three events", settle / 2, 3, 3*settle/2 + settle},
		{"events far apart", 2 * settle, -1, settle},
		{"no end of events", settle / 2, -1, 20 * settle},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				events := make(chan fsnotify.Event)
				go func() {
					for n := tc.n; n != 0; n-- {
						select {
						case <-time.After(tc.every):
						case <-ctx.Done():
							return
						}
						select {
						case events <- fsnotify.Event{}:
						case <-ctx.Done():
							return
						}
					}
				}()
				began := time.Now()
				rest(ctx, settle, events)
				if took := time.Since(began); took != tc.want {
					t.Errorf("took %v, want %v", took, tc.want)
				}
			})
		})
	}
}
