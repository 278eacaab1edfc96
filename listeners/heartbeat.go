package listeners

import (
	"sync"
	"time"
)

// heartbeatEvery is how often a stream of server-sent events is looked at. One that nothing was written to since the last
// time gets a comment, which clients pass over: proxies on the way take it for a sign of life, and a client that is gone is
// noticed (HTML, section 9.2.7). So a stream is silent for less than twice as long.
const heartbeatEvery = 10 * time.Second

// heartbeat keeps a quiet stream alive. Whoever writes to the stream holds mu.
type heartbeat struct {
	mu    sync.Mutex
	timer *time.Timer // nil until it begins
	quiet bool        // nothing was written since the last beat
	over  bool
}

// startBeat begins to send heartbeats. The status is written already.
func (s *restStream) startBeat() {
	s.beat = &heartbeat{quiet: true}
	s.beat.timer = time.AfterFunc(heartbeatEvery, s.sendBeat)
}

// sendBeat writes a comment, unless something else was written in the meantime.
func (s *restStream) sendBeat() {
	b := s.beat
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return
	}
	if b.quiet {
		if s.guard.put(s.w, []byte(":\n\n")) != nil || s.guard.flush(s.w) != nil {
			return // the next write of the call, or the end of its context, tells that the client is gone
		}
	}
	b.quiet = true
	b.timer.Reset(heartbeatEvery)
}

// holdBeat keeps heartbeats out of a write until the function that it returns is called.
func (s *restStream) holdBeat() func() {
	b := s.beat
	if b == nil {
		return func() {}
	}
	b.mu.Lock()
	b.quiet = false
	return b.mu.Unlock
}

// stopBeat ends heartbeats and waits for one that is being written.
func (s *restStream) stopBeat() {
	b := s.beat
	if b == nil {
		return
	}
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	b.timer.Stop()
}
