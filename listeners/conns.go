package listeners

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"

	"transom/listeners/h2server"
	"transom/rpc/trywrite"
)

// defaultMaxConns is how many TCP connections a listener has at a time unless Limits say otherwise.
const defaultMaxConns = 50_000

// door lets connections in as long as there are not too many, over all and of one client.
type door struct {
	limit, perClient int

	open    atomic.Int64
	refused atomic.Int64

	mu      sync.Mutex // guards clients
	clients map[netip.Addr]int
}

// boundedListener closes connections for which there is no room.
type boundedListener struct {
	net.Listener
	door *door
	// trusted are peers that many clients share.
	trusted func(netip.Addr) bool
	// failed is told of connections that the system does not give.
	failed func(error)
	// age is how old connections become, give or take a tenth.
	age time.Duration
}

// Accept implements net.Listener.
func (l boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			l.failed(err)
			return nil, err
		}
		peer := c
		if p, ok := c.(*proxyproto.Conn); ok {
			peer = p.Raw() // the header is not to be waited for here
		}
		client, ok := l.door.enter(peer.RemoteAddr(), l.trusted)
		if ok {
			return &boundedConn{Conn: c, door: l.door, client: client, old: time.Now().Add(jittered(l.age))}, nil
		}
		_ = c.Close()
	}
}

// enter counts a connection in. The client is zero if it is not counted by itself.
func (d *door) enter(peer net.Addr, shared func(netip.Addr) bool) (client netip.Addr, ok bool) {
	if d.open.Add(1) > int64(d.limit) {
		d.open.Add(-1)
		d.refused.Add(1)
		return client, false
	}
	if d.perClient == 0 {
		return client, true
	}
	socket, ok := peer.(interface{ AddrPort() netip.AddrPort }) // of TCP or UDP
	if !ok || shared(socket.AddrPort().Addr().Unmap()) {
		return client, true
	}
	client = clientOf(socket.AddrPort().Addr())
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.clients[client] >= d.perClient {
		d.open.Add(-1)
		d.refused.Add(1)
		return client, false
	}
	if d.clients == nil {
		d.clients = map[netip.Addr]int{}
	}
	d.clients[client]++
	return client, true
}

func (d *door) leave(client netip.Addr) {
	d.open.Add(-1)
	if !client.IsValid() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.clients[client]--; d.clients[client] == 0 {
		delete(d.clients, client)
	}
}

// clientOf is what counts as one client: an IPv4 address, or the /64 that one IPv6 customer has at least.
func clientOf(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is4() {
		return a
	}
	p, _ := a.WithZone("").Prefix(64)
	return p.Addr()
}

// boundedConn is counted out when it is closed.
type boundedConn struct {
	net.Conn
	door   *door
	client netip.Addr
	closed atomic.Bool
	// old is when it has its age.
	old time.Time
	// phase belongs to the one goroutine at a time that reports the connection's state.
	phase phase
}

// phase is how far a connection has come.
type phase uint8

const (
	phaseReading  phase = iota // its first request is not read yet
	phaseFirst                 // its first request is served
	phaseSeasoned              // it has served one
)

// bounded finds our connection below net/http's.
func bounded(c net.Conn) *boundedConn {
	switch w := c.(type) {
	case *tls.Conn:
		if s, ok := w.NetConn().(*trywrite.Sealed); ok {
			c = s.Conn
		}
	case *lengthCounter:
		c = w.Conn
	}
	b, _ := c.(*boundedConn)
	return b
}

// jittered is d, give or take a tenth: connections that came together, after a restart, do not go together.
func jittered(d time.Duration) time.Duration { return d*9/10 + rand.N(d/5+1) }

// agedKey is where the context of an HTTP/1.1 request has its *boundedConn.
type agedKey struct{}

// whileYoung makes a request that comes over an old HTTP/1.1 connection the last of it.
func whileYoung(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(agedKey{}).(*boundedConn); ok && !time.Now().Before(c.old) && !isWebSocket(r) {
			w.Header()["Connection"] = connClose
		}
		next.ServeHTTP(w, r)
	})
}

// raw is the socket below.
func (c *boundedConn) raw() net.Conn {
	if p, ok := c.Conn.(*proxyproto.Conn); ok {
		return p.Raw()
	}
	return c.Conn
}

// sealingListener lets what TLS writes be kept, for HTTP/2.
type sealingListener struct{ net.Listener }

// Accept implements net.Listener.
func (l sealingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &trywrite.Sealed{Conn: c}, nil
}

// serveSecure2 serves a connection whose client has chosen HTTP/2 by ALPN. h has its context.
func (s *Server) serveSecure2(_ *http.Server, c *tls.Conn, h http.Handler) {
	sealed, _ := c.NetConn().(*trywrite.Sealed)
	state := c.ConnectionState()
	s.serve2(bounded(c), h, h2server.Socket{Conn: c, Sealed: sealed, TLS: &state})
}

// servePlain2 serves a connection that has begun with the preface of HTTP/2, which has been read. c has it inside.
func (s *Server) servePlain2(_ *http.Server, c *tls.Conn, h http.Handler) {
	if inner, ok := c.NetConn().(interface{ UnencryptedNetConn() net.Conn }); ok {
		b := bounded(inner.UnencryptedNetConn())
		s.serve2(b, h, h2server.Socket{Conn: b, Begun: true})
	}
}

func (s *Server) serve2(b *boundedConn, h http.Handler, sock h2server.Socket) {
	ctx := s.calls
	if base, ok := h.(interface{ BaseContext() context.Context }); ok {
		ctx = base.BaseContext()
	}
	s.seasoned(b) // a drain need not wait for its first request
	sock.Raw = b.raw()
	s.h2.Serve(ctx, sock)
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.door.leave(c.client)
	}
	return c.Conn.Close()
}

// parseProxies reads a comma-separated list of addresses and networks.
func parseProxies(list string) (func(netip.Addr) bool, error) {
	var prefixes []netip.Prefix
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, errAddr := netip.ParseAddr(s)
			if errAddr != nil {
				return nil, fmt.Errorf("%q is neither an address nor a network", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		prefixes = append(prefixes, p)
	}
	return func(a netip.Addr) bool {
		for _, p := range prefixes {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}, nil
}

// accepting is what net/http accepts from: the socket, with the PROXY protocol and the limits of connections.
func (s *Server) accepting() net.Listener {
	l := s.tcp
	if s.cfg.ProxyFrom != "" {
		l = &proxyproto.Listener{
			Listener: l, ReadHeaderTimeout: s.cfg.Limits.HeaderTimeout,
			ConnPolicy: func(o proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
				if tcp, ok := o.Upstream.(*net.TCPAddr); ok && s.proxies(tcp.AddrPort().Addr().Unmap()) {
					return proxyproto.REQUIRE, nil
				}
				return proxyproto.SKIP, nil
			},
		}
	}
	return boundedListener{l, &s.door, s.proxies, s.acceptFailed, s.cfg.Limits.MaxAge}
}

// acceptFailed logs once a minute that connections are not accepted, for want of files, say. net/http tries again, and tells
// nobody.
func (s *Server) acceptFailed(err error) {
	const every = time.Minute
	now := time.Now()
	if errors.Is(err, net.ErrClosed) || now.Sub(s.toldAccept) < every {
		return
	}
	s.toldAccept = now
	s.log.LogAttrs(s.calls, slog.LevelError, "connections are not accepted", slog.String("listener", s.cfg.Name), slog.String("error", err.Error()))
}

// redirect answers with the same URL on https (308, which keeps method and body), but to authorities' challenges, which come
// over plain HTTP.
func (s *Server) redirect(port int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.front.Load().answersChallenge(w, r) {
			return
		}
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		if host == "" || strings.ContainsAny(host, "/\\@?# ") {
			http.Error(w, "the Host header is no host", http.StatusBadRequest)
			return
		}
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		if port != 443 {
			host += ":" + strconv.Itoa(port)
		}
		w.Header()["Location"] = []string{"https://" + host + r.URL.RequestURI()}
		w.WriteHeader(http.StatusPermanentRedirect)
	})
}

// Refused counts the connections for which there was no room.
func (s *Server) Refused() int64 { return s.door.refused.Load() + s.door3.refused.Load() }
