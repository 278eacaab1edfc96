// Package h2server serves HTTP/2 (RFC 9113) to an http.Handler. It takes over connections whose client has chosen HTTP/2:
// by ALPN, or by prior knowledge.
//
// # How a connection works
// One goroutine reads frames, and hands on what it has found before it waits for more: so a request with a small body
// reaches its handler whole. Handlers run on goroutines that are used again. Answers are gathered, and whoever finds nobody
// writing writes for all; an answer of header, body and trailers is one write. Nobody waits for the socket but a goroutine
// that exists only while the client does not read.
//
// # What the handler gets
// The ResponseWriter is an http.Flusher and has what an http.ResponseController asks for but Hijack. Trailers are sent by
// http.TrailerPrefix or the Trailer header; those of requests are dropped. A short answer is given a Content-Length, unless its
// header has that name without a value. A request's context ends when its client resets the stream or is gone, and has the values
// of the context that the connection was given. The server does not push, has no extended CONNECT, and ignores priorities.
//
// # Clients that are up to no good
// Handlers count until they return, whatever the client has reset, and no more than MaxStreams run for a connection;
// requests beyond wait, at no cost but their header's. Frames that bring nothing forward are counted against those that
// do, and so are requests that are reset before their answer begins, or should not have been sent: too many end the connection with
// ENHANCE_YOUR_CALM. What is gathered for a client that does not read is bounded, and the connection given up after
// WriteStall.
//
// # Concurrency
// A Server serves any number of connections at once. Of one request's ResponseWriter and Body, one goroutine may write
// while another reads; deadlines may be set by any. After the handler has returned they do nothing but fail.
package h2server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"transom/rpc/trywrite"
)

// Config is how a Server behaves. All fields but Log are needed.
type Config struct {
	Handler http.Handler
	// MaxStreams limits the concurrent requests of a connection.
	MaxStreams int
	// MaxHeaderBytes limits a request's header as RFC 9113 6.5.2 counts, besides 32 bytes for ten fields.
	MaxHeaderBytes int
	// TooLarge answers a request whose header is longer. Of that it gets the method and Content-Type, if they came within the limit.
	TooLarge http.Handler
	// HeaderTimeout is how long the client's first SETTINGS, their acknowledgement of ours, and a header in several frames may
	// take.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a connection may be without a request.
	IdleTimeout time.Duration
	// MaxAge is how old a connection becomes, give or take a tenth, before its client is told to make no further requests on it.
	MaxAge time.Duration
	// WriteStall is how long a client may take none of what is ready for it, and how long an answer that has no deadline of
	// its own may wait for room in the client's windows.
	WriteStall time.Duration
	// PingAfter is the silence after which a PING asks whether the client is still there; PingTimeout is the time it has for
	// an answer.
	PingAfter, PingTimeout time.Duration
	// Log gets panics of handlers; nil drops them.
	Log *slog.Logger
}

// Server serves connections.
type Server struct {
	cfg     Config
	workers workers
	date    date

	mu       sync.Mutex // guards what follows
	conns    map[*conn]struct{}
	draining bool
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, conns: map[*conn]struct{}{}}
}

// Socket is a connection to be served.
type Socket struct {
	// Conn is read from and closed.
	Conn net.Conn
	// Raw is what is written to in the end: a plain socket, at best.
	Raw net.Conn
	// Sealed is what Conn, a TLS connection, writes to; nil for plaintext. It wraps Raw.
	Sealed *trywrite.Sealed
	// TLS is nil for plaintext.
	TLS *tls.ConnectionState
	// Begun says that the client's preface has been read.
	Begun bool
}

// Serve serves a connection to its end, which closes it. ctx is what the requests' contexts are made of; its end ends them,
// not the connection.
func (s *Server) Serve(ctx context.Context, sock Socket) {
	c := newConn(ctx, s, sock)
	c.start() // before GoAway may find it
	s.mu.Lock()
	s.conns[c] = struct{}{}
	draining := s.draining
	s.mu.Unlock()
	if draining {
		c.goAway()
	}
	// Those that came together, after a restart, do not go together.
	age := time.AfterFunc(s.cfg.MaxAge*9/10+rand.N(s.cfg.MaxAge/5+1), c.goAway)
	c.serve()
	age.Stop()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Open is the number of connections.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// GoAway tells the clients of all connections, and of those that are still to come, to make no further requests on them: a
// connection ends with its last request.
func (s *Server) GoAway() {
	s.mu.Lock()
	s.draining = true
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.goAway()
	}
}

// Close ends the goroutines that wait for requests. Connections are ended by closing them.
func (s *Server) Close() { s.workers.close() }
