package listeners

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// quicKey is where a request's context has its *quicConn.
type quicKey struct{}

// quicConn ends a QUIC connection that has no request for too long. QUIC's own time limit goes by packets, which a client may
// send for ever, say of streams whose header never ends.
type quicConn struct {
	mu    sync.Mutex // guards what follows
	limit time.Duration
	open  int
	timer *time.Timer
	// doubt is nil for a client whose address is its own.
	doubt *doubt
}

// maxDoubts is how many QUIC connections may come from addresses that can be forged before further ones must first show, by a
// round trip more (Retry, RFC 9000 section 8.1.2), that they get what is sent there.
const maxDoubts = 500

// doubts counts the connections whose client has not shown that its address is its own, neither by a Retry nor by a request.
type doubts struct{ n atomic.Int64 }

// begin is Transport.ConnContext.
func (d *doubts) begin(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
	if client.AddrVerified {
		return ctx, nil
	}
	d.n.Add(1)
	one := &doubt{of: d}
	context.AfterFunc(ctx, one.end)
	return context.WithValue(ctx, doubtKey{}, one), nil
}

// many is Transport.VerifySourceAddress.
func (d *doubts) many(net.Addr) bool { return d.n.Load() >= maxDoubts }

type doubtKey struct{}

// doubt is that of one connection.
type doubt struct {
	of   *doubts
	over atomic.Bool
}

// end ends it, if it has not ended yet.
func (d *doubt) end() {
	if !d.over.Swap(true) {
		d.of.n.Add(-1)
	}
}

// quicLinger is how long a connection is kept after its last request during a drain: a client that has not heard yet that it
// is to go may have sent another one, which is refused so that it may be sent again.
const quicLinger = time.Second

// quicConns are a Server's open QUIC connections.
type quicConns struct {
	mu      sync.Mutex // guards what follows
	open    map[*quicConn]struct{}
	leaving bool

	// closing is held while a connection is closed: http3.Server.handleConn runs in a circle from when streams have ended to when
	// the connection has, in a drain, and hundreds at once leave no time for that.
	closing sync.Mutex
}

func (c *quicConns) add(q *quicConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*quicConn]struct{}{}
	}
	c.open[q] = struct{}{}
	if c.leaving {
		q.leave()
	}
}

func (c *quicConns) remove(q *quicConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, q)
	q.timer.Stop()
}

// leave ends the connections as soon as they have no request. Clients that were told to go need not do so themselves.
func (c *quicConns) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	for q := range c.open {
		q.leave()
	}
}

func (q *quicConn) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit = min(q.limit, quicLinger)
	if q.open == 0 {
		q.timer.Reset(q.limit)
	}
}

func (c *quicConns) of(conn *quic.Conn, limit time.Duration) *quicConn {
	d, _ := conn.Context().Value(doubtKey{}).(*doubt)
	return &quicConn{doubt: d, limit: limit, timer: time.AfterFunc(limit, func() {
		c.closing.Lock()
		defer c.closing.Unlock()
		_ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "idle")
	})}
}

// whileBusy holds connections open while they have requests.
func whileBusy(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if q, ok := r.Context().Value(quicKey{}).(*quicConn); ok {
			q.busy(1)
			defer q.busy(-1)
		}
		next.ServeHTTP(w, r)
	})
}

func (q *quicConn) busy(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.doubt != nil {
		q.doubt.end()
		q.doubt = nil
	}
	if q.open += n; q.open > 0 {
		q.timer.Stop()
	} else {
		q.timer.Reset(q.limit)
	}
}

var errFull = errors.New("too many connections")

// admitQUIC refuses connections for which there is no room.
func (s *Server) admitQUIC(*quic.ClientInfo) (*quic.Config, error) {
	if s.quics.Load() >= int64(s.cfg.Limits.MaxConns) {
		s.door.refused.Add(1)
		return nil, errFull
	}
	return s.h3.QUICConfig, nil
}
