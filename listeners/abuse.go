package listeners

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
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
	of *quicConns

	mu    sync.Mutex // guards what follows
	limit time.Duration
	open  int
	timer *time.Timer
	// requests were made, vain of them taken back before they had an answer.
	requests, vain int
	// doubt is nil for a client whose address is its own.
	doubt *doubt

	conn *quic.Conn
	// server serves this connection alone; nil if it is WebTransport's.
	server *http3.Server
	// age has the client told to go once the connection is old, away says that it was; both belong to the quicConns.
	age  *time.Timer
	away bool
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
	over    bool
	// goAways are the connections that are told to go.
	goAways sync.WaitGroup

	// closing is held while a connection is closed: http3.Server.handleConn runs in a circle from when streams have ended to when
	// the connection has, in a drain, and hundreds at once leave no time for that.
	closing sync.Mutex
}

// add counts one in. It is told to go once it has the age, give or take a tenth, unless WebTransport has it.
func (c *quicConns) add(q *quicConn, age time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*quicConn]struct{}{}
	}
	c.open[q] = struct{}{}
	if c.leaving {
		c.dismiss(q)
	}
	if q.server != nil {
		q.age = time.AfterFunc(jittered(age), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.dismiss(q)
		})
	}
}

func (c *quicConns) remove(q *quicConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, q)
	q.timer.Stop()
	if q.age != nil {
		q.age.Stop()
	}
}

// leave ends the connections as soon as they have no request.
func (c *quicConns) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	for q := range c.open {
		c.dismiss(q)
	}
}

// dismiss tells q's client to make no further requests on it (GOAWAY, RFC 9114 section 5.2), and ends it when it has none.
// Clients that were told to go need not do so themselves. c.mu is held.
func (c *quicConns) dismiss(q *quicConn) {
	if q.away || c.over {
		return
	}
	q.away = true
	if q.server != nil {
		c.goAways.Go(func() { _ = q.server.Shutdown(context.Background()) }) // it returns when the connection has ended
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit = min(q.limit, quicLinger)
	if q.open == 0 {
		q.timer.Reset(q.limit)
	}
}

// close cuts all connections, and waits for those that were told to go.
func (c *quicConns) close() {
	c.mu.Lock()
	c.over = true
	all := slices.Collect(maps.Keys(c.open))
	c.mu.Unlock()
	for _, q := range all {
		_ = q.conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
	}
	c.goAways.Wait()
}

// of is what is known of a connection. server is its own, nil for one of WebTransport's.
func (c *quicConns) of(conn *quic.Conn, server *http3.Server, limit time.Duration) *quicConn {
	d, _ := conn.Context().Value(doubtKey{}).(*doubt)
	return &quicConn{of: c, doubt: d, limit: limit, conn: conn, server: server, timer: time.AfterFunc(limit, func() {
		c.closing.Lock()
		defer c.closing.Unlock()
		_ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "idle")
	})}
}

// quicAcceptor accepts QUIC connections until stop.
type quicAcceptor struct {
	mu   sync.Mutex          // guards what follows
	ln   *quic.EarlyListener // nil before serve
	over bool
	done chan struct{} // closed when all has ended
}

// serve runs each for every connection, and returns when all have ended after stop.
func (a *quicAcceptor) serve(ln *quic.EarlyListener, each func(*quic.Conn)) error {
	done := make(chan struct{})
	defer close(done)
	a.mu.Lock()
	a.ln, a.done = ln, done
	over := a.over
	a.mu.Unlock()
	if over {
		_ = ln.Close()
	}
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := ln.Accept(context.Background())
		if err != nil {
			return err
		}
		conns.Go(func() { each(conn) })
	}
}

// stop accepts no further connections.
func (a *quicAcceptor) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.ln != nil {
		_ = a.ln.Close()
	}
}

// wait returns when all connections have ended, or with the error of ctx. It follows stop.
func (a *quicAcceptor) wait(ctx context.Context) error {
	a.mu.Lock()
	done := a.done
	a.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// entered is serve for connections for which there is room; others are closed. A connection is here once its handshake is over, so
// that its address is its client's, and nobody takes the room of another.
func (s *Server) entered(serve func(*quic.Conn)) func(*quic.Conn) {
	return func(conn *quic.Conn) {
		client, ok := s.door3.enter(conn.RemoteAddr(), s.proxies)
		if !ok {
			_ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad), errFull.Error())
			return
		}
		defer s.door3.leave(client)
		serve(conn)
	}
}

// serveQUIC serves HTTP/3 on a connection to its end, by an http3.Server of its own: quic-go tells all connections of a Server
// at once to go, and old ones go alone.
func (s *Server) serveQUIC(conn *quic.Conn) {
	one := &http3.Server{
		Handler: s.h3.Handler, MaxHeaderBytes: s.h3.MaxHeaderBytes, IdleTimeout: s.h3.IdleTimeout, ConnContext: s.h3.ConnContext, Logger: s.h3.Logger,
	}
	_ = one.ServeQUICConn(conn) // the client's faults
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
	q.requests += max(0, n)
	if q.open += n; q.open > 0 {
		q.timer.Stop()
	} else {
		q.timer.Reset(q.limit)
	}
}

// leastRequests is from how many requests on a connection it is closed if half or more were taken back unanswered: to open a
// stream and to reset it costs a client nothing and us a call (CVE-2023-44487).
const leastRequests = 500

// tookBack hears of a request that its client has taken back before there was an answer.
func (q *quicConn) tookBack() {
	q.mu.Lock()
	q.vain++
	abused := q.requests >= leastRequests && 2*q.vain >= q.requests
	q.mu.Unlock()
	if abused {
		_ = q.conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad), "too many requests that come to nothing")
	}
}

var errFull = errors.New("too many connections")

// admitQUIC refuses connections for which there is no room.
func (s *Server) admitQUIC(*quic.ClientInfo) (*quic.Config, error) {
	if s.quics.Load() >= int64(s.cfg.Limits.MaxConns) {
		s.door3.refused.Add(1)
		return nil, errFull
	}
	return s.h3.QUICConfig, nil
}
