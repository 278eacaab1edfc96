package listeners

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"
)

// writeGrace is how long a blocked write may go on after its call has ended, so that the status still gets out to a
// client that is merely slow.
const writeGrace = time.Second

// guard lets the end of a call's context release reads and writes that are blocked on the client. net/http offers
// deadlines only; a read deadline in the past ends a blocked body read in HTTP/1.1, HTTP/2 and HTTP/3 alike.
type guard struct {
	rc      *http.ResponseController
	ctx     context.Context
	stop    func() bool
	writing atomic.Bool
}

// arm binds the guard to ctx; the first call counts. The caller must disarm before the handler returns.
func (g *guard) arm(ctx context.Context, w http.ResponseWriter) {
	if g.rc != nil {
		return
	}
	g.rc, g.ctx = http.NewResponseController(w), ctx
	g.stop = context.AfterFunc(ctx, g.release)
}

// release ends what is blocked. A response writer without deadlines is one that does not block.
func (g *guard) release() {
	_ = g.rc.SetReadDeadline(time.Unix(1, 0))
	if g.writing.Load() {
		_ = g.rc.SetWriteDeadline(time.Now().Add(writeGrace))
	}
}

// disarm must be called once the stream's reading and writing is over.
func (g *guard) disarm() {
	if g.stop != nil {
		g.stop()
	}
}

// write runs one write that may block on the client.
func (g *guard) write(w http.ResponseWriter, b []byte) error {
	if g.rc == nil {
		_, err := w.Write(b)
		return err
	}
	g.writing.Store(true)
	if g.ctx.Err() != nil {
		_ = g.rc.SetWriteDeadline(time.Now().Add(writeGrace))
	}
	_, err := w.Write(b)
	g.writing.Store(false)
	return err
}

// flush pushes out what net/http buffers.
func (g *guard) flush(w http.ResponseWriter) error {
	if g.rc == nil {
		return http.NewResponseController(w).Flush()
	}
	g.writing.Store(true)
	if g.ctx.Err() != nil {
		_ = g.rc.SetWriteDeadline(time.Now().Add(writeGrace))
	}
	err := g.rc.Flush()
	g.writing.Store(false)
	return err
}
