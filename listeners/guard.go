package listeners

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

const (
	// writeGrace is how long a write may go on that is blocked when its context ends, so that the status still gets out to
	// a client that is merely slow.
	writeGrace = time.Second
	// defaultIdle is how long a body may make no progress, and a client take nothing, unless it is configured.
	defaultIdle = 30 * time.Second
	// writePiece is what a client must take within its time, in bytes, and the least that is watched at all: less fits into
	// the buffers on the way. So a slow client gets any answer as long as it is not slower than that.
	writePiece = 256 << 10
	writeSmall = 32 << 10
	// uploadRate is the least that a client must bring of a file, in bytes a second of the time that is waited for it.
	uploadRate = 240
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

	// front has the time limits, and the wheel that keeps them.
	front *Front
	// watch is how a read finds out that it is slow, if watching says so; late that it was once already.
	watch          alarm
	watching, late bool
	stalled        bool // the body made no progress for too long
	// paced says that the body must come at uploadRate. waited is how long reads waited for the got bytes that came since that was
	// last looked at. They belong to the goroutine that reads.
	paced  bool
	waited time.Duration
	got    int
	// failure is why the body could not be read; it belongs to the goroutine that reads.
	failure error
	slow    slowWrite
}

// slowWrite ends a write that takes too long.
type slowWrite struct {
	alarm
	g     *guard
	began time.Time // of the write under way
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
// been blocked for a while. A body that stands still is given up.
func (g *guard) noteRead(ctx context.Context, w http.ResponseWriter) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.read.ctx != ctx && g.read.stop == nil && g.write.ctx == nil {
		if g.rc == nil {
			g.rc = http.NewResponseController(w)
		}
		g.read.note(ctx)
		g.watching, g.watch.owner = true, g
	}
	return rpc.CauseOf(ctx)
}

// watchRead gives up a body that stands still or comes at less than uploadRate, for a call whose client has no reason to wait
// within it, and whose every few bytes are a message, so that no other time limit holds for it.
func (g *guard) watchRead() { g.watching, g.watch.owner, g.paced = true, g, true }

// tooSlow counts n bytes that a read waited for since began, and reports whether the body comes too slowly: each time that IdleBody
// was waited, as many bytes must have come as uploadRate brings.
func (g *guard) tooSlow(n int, began time.Time) bool {
	g.waited += time.Since(began)
	g.got += n
	if g.waited < g.front.cfg.IdleBody {
		return false
	}
	slow := float64(g.got) < uploadRate*g.waited.Seconds()
	g.waited, g.got = 0, 0
	return slow
}

// slowRead is how long a read may block before its context is watched.
const slowRead = 100 * time.Millisecond

// due implements the wheel's call: the read under way is slow, or too slow.
func (g *guard) due() {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !g.read.busy || g.over:
	case g.late:
		g.stalled = true
		_ = g.rc.SetReadDeadline(time.Unix(1, 0))
	default:
		g.late = true
		if g.read.stop == nil && g.read.ctx != nil {
			g.read.stop = context.AfterFunc(g.read.ctx, g.release)
		}
		g.front.deadlines.add(&g.watch, time.Now(), g.front.cfg.IdleBody)
	}
}

// due implements the wheel's call: the client takes nothing. The wheel may call for a write that has just ended.
func (s *slowWrite) due() {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if s.g.write.busy && time.Since(s.began) >= s.g.front.cfg.IdleWrite-wheelTick {
		_ = s.g.rc.SetWriteDeadline(time.Unix(1, 0))
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

// disarm ends the watch over the contexts: the call is over. It must be called before the handler returns.
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
	if g.write.ctx != nil { // what ends the call, net/http's own part of it too, has so long to get out
		_ = g.rc.SetWriteDeadline(time.Now().Add(g.front.cfg.IdleWrite))
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
	n, err := b.read(p)
	if err != nil && err != io.EOF {
		b.g.failure = err
	}
	return n, err
}

func (b guardedBody) read(p []byte) (int, error) {
	if b.g.enter(&b.g.read) {
		b.g.leave(&b.g.read)
		return 0, rpc.CauseOf(b.g.read.ctx)
	}
	var began time.Time
	if b.g.watching {
		began = time.Now()
		b.g.front.deadlines.add(&b.g.watch, began, slowRead)
	}
	n, err := b.r.Read(p)
	b.g.mu.Lock()
	defer b.g.mu.Unlock()
	b.g.read.busy, b.g.late = false, false
	if b.g.watching { // under the lock, since due may be about to add it again
		b.g.front.deadlines.remove(&b.g.watch)
	}
	b.g.eof = b.g.eof || err == io.EOF
	if b.g.stalled && n == 0 {
		err = status.Errorf(codes.DeadlineExceeded, "the request body stood still for %v", b.g.front.cfg.IdleBody)
	}
	if b.g.paced && err == nil && b.g.tooSlow(n, began) {
		err = status.Errorf(codes.DeadlineExceeded, "the request body came at less than %d bytes a second for %v", uploadRate, b.g.front.cfg.IdleBody)
	}
	return n, err
}

// atEOF reports whether the request body was read to its end.
func (g *guard) atEOF() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.eof
}

// put writes b, which may block on the client, but not for longer than it takes a client that reads at all.
func (g *guard) put(w http.ResponseWriter, b []byte) error {
	if g.rc == nil {
		if len(b) < writeSmall {
			_, err := w.Write(b)
			return err
		}
		g.rc = http.NewResponseController(w)
	}
	for {
		piece := b[:min(len(b), writePiece)]
		b = b[len(piece):]
		g.beginWrite()
		_, err := w.Write(piece)
		g.endWrite()
		if err != nil || len(b) == 0 {
			return err
		}
	}
}

func (g *guard) beginWrite() {
	if g.slow.g == nil {
		g.slow.g, g.slow.owner = g, &g.slow
	}
	g.slow.began = time.Now() // which due, called for an earlier write, looks at as soon as this one is busy
	if g.enter(&g.write) {
		_ = g.rc.SetWriteDeadline(time.Now().Add(writeGrace))
	}
	g.front.deadlines.add(&g.slow.alarm, g.slow.began, g.front.cfg.IdleWrite)
}

func (g *guard) endWrite() {
	g.front.deadlines.remove(&g.slow.alarm)
	g.leave(&g.write)
}

// flush pushes out what net/http buffers.
func (g *guard) flush(w http.ResponseWriter) error {
	if g.rc == nil {
		return http.NewResponseController(w).Flush()
	}
	g.beginWrite()
	err := g.rc.Flush()
	g.endWrite()
	return err
}
