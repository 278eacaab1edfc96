package listeners

import (
	"errors"
	"net/http"
	"sync"
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
}

// quicLinger is how long a connection is kept after its last request during a drain: a client that has not heard yet that it
// is to go may have sent another one, which is refused so that it may be sent again.
const quicLinger = time.Second

// quicConns are a Server's open QUIC connections.
type quicConns struct {
	mu      sync.Mutex // guards what follows
	open    map[*quicConn]struct{}
	leaving bool
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

func newQUICConn(conn *quic.Conn, limit time.Duration) *quicConn {
	return &quicConn{limit: limit, timer: time.AfterFunc(limit, func() {
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
