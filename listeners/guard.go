package listeners

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"transom/rpc"
)

const (
	// writeGrace is how long a write may go on that is blocked when its context ends, so that the status still gets out to
	// a client that is merely slow.
	writeGrace = time.Second
	// writeStall is how long a client may take none of what ends its call.
	writeStall = 30 * time.Second
)

// guard lets the end of a context release a read or write that is blocked on the client. net/http offers deadlines only; a
// read deadline in the past ends a blocked body read in HTTP/1.1, HTTP/2 and HTTP/3 alike. Deadlines are touched only
// while something is blocked, since an HTTP/1.1 connection does not survive one. A guard that was never bound writes
// straight through. Reading and writing may go on at once, each in one goroutine.
type guard struct {
	rc *http.ResponseController

	mu          sync.Mutex // also keeps a release from touching a response whose handler has returned
	read, write side
	over        bool // the call is over; only its end is still to be written
	eof         bool // the request body was read to its end

	// watch is how a read that was only noted finds out that it is slow, in wheel; nil if none was noted.
	watch alarm
	wheel *wheel
}

// side is one direction.
type side struct {
	ctx  context.Context
	stop func() bool // ends the watch over ctx; nil if the other side watches the same
	busy bool
}

// note keeps the context that a read or write goes by.
func (s *side) note(ctx context.Context) { s.ctx = ctx }

// bindRead makes the end of ctx end reads that follow; it returns the cause if ctx has ended. Binding the same context
// again costs a comparison.
func (g *guard) bindRead(ctx context.Context, w http.ResponseWriter) error {
	if g.read.ctx != ctx {
		g.bind(ctx, &g.read, &g.write, w)
	}
	return rpc.CauseOf(ctx)
}

// bindWrite is bindRead for writes.
func (g *guard) bindWrite(ctx context.Context, w http.ResponseWriter) error {
	if g.write.ctx != ctx {
		g.bind(ctx, &g.write, &g.read, w)
	}
	return rpc.CauseOf(ctx)
}

// noteRead is bindRead for a call that reads once, and most often finds all there: ctx is watched only once a read has
// been blocked for a while.
func (g *guard) noteRead(ctx context.Context, w http.ResponseWriter, wheel *wheel) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.read.ctx != ctx && g.read.stop == nil && g.write.ctx == nil {
		if g.rc == nil {
			g.rc = http.NewResponseController(w)
		}
		g.read.note(ctx)
		g.wheel, g.watch.owner = wheel, g
	}
	return rpc.CauseOf(ctx)
}

// slowRead is how long a read may block before its context is watched.
const slowRead = 100 * time.Millisecond

// due implements the wheel's call: the read that was noted is slow.
func (g *guard) due() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.read.busy && !g.over && g.read.stop == nil {
		g.read.stop = context.AfterFunc(g.read.ctx, g.release)
	}
}

// bind watches ctx for s; a context that both sides have is watched once.
func (g *guard) bind(ctx context.Context, s, other *side, w http.ResponseWriter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rc == nil {
		g.rc = http.NewResponseController(w)
	}
	if s.stop != nil {
		if other.ctx == s.ctx {
			other.stop = s.stop
		} else {
			s.stop()
		}
		s.stop = nil
	}
	if s.ctx = ctx; other.ctx != ctx {
		s.stop = context.AfterFunc(ctx, g.release)
	}
}

// release ends a read that is blocked, and a write that stays blocked, if their context has ended. A response writer
// without deadlines is one that does not block.
func (g *guard) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return
	}
	if g.read.busy && g.read.ctx != nil && g.read.ctx.Err() != nil {
		_ = g.rc.SetReadDeadline(time.Unix(1, 0))
	}
	if g.write.busy && g.write.ctx != nil && g.write.ctx.Err() != nil {
		_ = g.rc.SetWriteDeadline(time.Now().Add(writeGrace))
	}
}

// disarm ends the watch over the contexts: the call is over. What is written afterwards has writeStall to get out. It
// must be called before the handler returns.
func (g *guard) disarm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rc == nil {
		return
	}
	for _, s := range []*side{&g.read, &g.write} {
		if s.stop != nil {
			s.stop()
		}
	}
	if g.write.ctx != nil {
		_ = g.rc.SetWriteDeadline(time.Now().Add(writeStall))
	}
	g.over = true
}

// enter marks the begin of something that may block on a side; it reports whether the side's context has ended.
func (g *guard) enter(s *side) (ended bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.busy = true
	return !g.over && s.ctx != nil && s.ctx.Err() != nil
}

func (g *guard) leave(s *side) {
	g.mu.Lock()
	s.busy = false
	g.mu.Unlock()
}

// body returns r with its reads under the guard.
func (g *guard) body(r io.Reader) io.Reader { return guardedBody{g, r} }

type guardedBody struct {
	g *guard
	r io.Reader
}

func (b guardedBody) Read(p []byte) (int, error) {
	if b.g.enter(&b.g.read) {
		b.g.leave(&b.g.read)
		return 0, rpc.CauseOf(b.g.read.ctx)
	}
	if b.g.wheel != nil {
		b.g.wheel.add(&b.g.watch, time.Now().Add(slowRead))
		defer b.g.wheel.remove(&b.g.watch)
	}
	n, err := b.r.Read(p)
	b.g.mu.Lock()
	b.g.read.busy = false
	b.g.eof = b.g.eof || err == io.EOF
	b.g.mu.Unlock()
	return n, err
}

// atEOF reports whether the request body was read to its end.
func (g *guard) atEOF() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.eof
}

// put writes b, which may block on the client.
func (g *guard) put(w http.ResponseWriter, b []byte) error {
	if g.rc == nil {
		_, err := w.Write(b)
		return err
	}
	if g.enter(&g.write) {
		_ = g.rc.SetWriteDeadline(time.Now().Add(writeGrace))
	}
	_, err := w.Write(b)
	g.leave(&g.write)
	return err
}

// flush pushes out what net/http buffers.
func (g *guard) flush(w http.ResponseWriter) error {
	if g.rc == nil {
		return http.NewResponseController(w).Flush()
	}
	if g.enter(&g.write) {
		_ = g.rc.SetWriteDeadline(time.Now().Add(writeGrace))
	}
	err := g.rc.Flush()
	g.leave(&g.write)
	return err
}
