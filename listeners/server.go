package listeners

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/listeners/h2server"
)

// Config configures a Server.
type Config struct {
	// Name is used in logs and metrics; the address if empty.
	Name string
	// Address is host:port to listen on; port 0 takes a free one.
	Address string
	// TLS turns on TLS with HTTP/1.1 and HTTP/2; without it the socket speaks HTTP/1.1 and h2c.
	TLS *tls.Config
	// HTTP3 also serves HTTP/3 on the same port over UDP and announces it by Alt-Svc. It needs TLS.
	HTTP3 bool
	// WebTransport lets clients open WebTransport sessions over HTTP/3.
	WebTransport bool
	// AltSvcPort is the port to announce, where it differs from the one listened on; 0 is that one.
	AltSvcPort int
	Limits     Limits
	// ProxyFrom are the load balancers whose connections begin with a PROXY protocol header (version 1 or 2): addresses and
	// networks, separated by commas. Empty is none.
	ProxyFrom string
	// RedirectPort makes every answer a redirect to https at this port; 0 is off.
	RedirectPort int
	// Sockets are served rather than ones bound to Address; the Server closes them. Nil binds.
	Sockets *Sockets
}

// Sockets are bound, and not served yet.
type Sockets struct {
	TCP net.Listener
	// UDP is for HTTP/3; nil is none.
	UDP net.PacketConn
	// Turn are closed when UDP is to be read from: other Servers, or processes, still serve the connections that they have.
	Turn []<-chan struct{}
}

// Close closes both.
func (s *Sockets) Close() {
	_ = s.TCP.Close()
	if s.UDP != nil {
		_ = s.UDP.Close()
	}
}

// bind opens the sockets. With withUDP both have the same port.
func bind(ctx context.Context, address string, withUDP bool) (*Sockets, error) {
	var lc net.ListenConfig
	tcp, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", address, err)
	}
	s := &Sockets{TCP: tcp}
	if withUDP {
		return s, s.bindUDP(ctx, address)
	}
	return s, nil
}

// bindUDP opens the UDP socket beside the TCP one.
func (s *Sockets) bindUDP(ctx context.Context, address string) error {
	var lc net.ListenConfig
	var err error
	if s.UDP, err = lc.ListenPacket(ctx, "udp", s.TCP.Addr().String()); err != nil {
		s.UDP = nil
		s.Close()
		return fmt.Errorf("listener %s: http3: %w", address, err)
	}
	return nil
}

// Limits bound what one listener spends on clients. The zero value of a field means its default.
type Limits struct {
	// HeaderTimeout is how long a request's header may take to arrive; default 10 s.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a keep-alive connection may lie idle; default 3 min.
	IdleTimeout time.Duration
	// MaxAge is how old a connection becomes, give or take a tenth, before its client is told to open another: any but a
	// WebSocket, and one of HTTP/3 beside WebTransport; default 1 h.
	MaxAge time.Duration
	// MaxHeaderBytes limits a request's header; default 16 KiB.
	MaxHeaderBytes int
	// MaxHeaderFields limits the fields in it, each of several values of a name counted; default 100.
	MaxHeaderFields int
	// MaxStreams limits the concurrent requests of one HTTP/2 or HTTP/3 connection; default 100.
	MaxStreams int
	// WriteStall is how long the client of an HTTP/2 connection may take none of what is ready for it; default 30 s.
	WriteStall time.Duration
	// MaxConns limits the TCP connections at a time, and the QUIC connections; default 50,000. MaxConnsPerIP limits those of one
	// client address, of IPv6 one /64, but not of load balancers in ProxyFrom; default none. Those beyond are closed
	// unanswered.
	MaxConns, MaxConnsPerIP int
}

func (l *Limits) setDefaults() {
	if l.HeaderTimeout == 0 {
		l.HeaderTimeout = 10 * time.Second
	}
	if l.IdleTimeout == 0 {
		l.IdleTimeout = 3 * time.Minute
	}
	if l.MaxAge == 0 {
		l.MaxAge = time.Hour
	}
	if l.MaxHeaderBytes == 0 {
		l.MaxHeaderBytes = defaultHeaderBytes
	}
	if l.MaxHeaderFields == 0 {
		l.MaxHeaderFields = defaultHeaderFields
	}
	if l.MaxStreams == 0 {
		l.MaxStreams = 100
	}
	if l.WriteStall == 0 {
		l.WriteStall = defaultIdle
	}
	if l.MaxConns == 0 {
		l.MaxConns = defaultMaxConns
	}
}

// Server is one bound listener: a TCP socket, and a UDP socket if it serves HTTP/3.
type Server struct {
	cfg     Config
	front   atomic.Pointer[Front]
	sockets *sockets
	// clientCerts judges clients by their certificates.
	clientCerts *clientCerts
	log         *slog.Logger
	tcp         net.Listener
	udp         net.PacketConn
	// turn is that of the sockets. quicOpen says that HTTP/3 is served, leaving is closed when a drain begins, and quicOver when
	// this Server reads no more from the UDP socket.
	turn              []<-chan struct{}
	quicOpen          atomic.Bool
	leaving, quicOver chan struct{}
	left, over        sync.Once
	h1                *http.Server
	h2                *h2server.Server
	h3                *http3.Server   // how each connection's own is
	quic              *quic.Transport // serves h3
	accept3           quicAcceptor
	wt                *wtServer // serves h3; nil without WebTransport
	door, door3       door      // of TCP and QUIC
	proxies           func(netip.Addr) bool
	// conns and quics count open connections of net/http and of QUIC.
	conns, quics atomic.Int64
	quicConns    quicConns
	doubts       doubts
	// toldAccept is when acceptFailed logged last; it belongs to the goroutine that accepts.
	toldAccept time.Time
	// reading counts the connections that have sent no request yet, fresh those and the ones that are at their first.
	reading, fresh atomic.Int64
	// started says that Run has begun to accept, accepted is closed when it has ended.
	started  atomic.Bool
	accepted chan struct{}

	// calls is the context of every request; cutting it ends what a drain could not wait for.
	calls context.Context
	cut   context.CancelCauseFunc
}

// Listen binds the sockets, or takes over cfg's; Run serves them. On error nothing stays bound.
func Listen(ctx context.Context, cfg Config, front *Front, log *slog.Logger) (*Server, error) {
	cfg.Limits.setDefaults()
	if cfg.HTTP3 && cfg.TLS == nil {
		return nil, fmt.Errorf("listener %s: http3 needs tls", cfg.Address)
	}
	proxies, err := parseProxies(cfg.ProxyFrom)
	if err != nil {
		return nil, fmt.Errorf("listener %s: proxy protocol: %w", cfg.Address, err)
	}
	socks := cfg.Sockets
	switch {
	case socks == nil:
		socks, err = bind(ctx, cfg.Address, cfg.HTTP3)
	case cfg.HTTP3 && socks.UDP == nil:
		err = socks.bindUDP(ctx, cfg.Address)
	case !cfg.HTTP3 && socks.UDP != nil:
		_ = socks.UDP.Close()
		socks.UDP = nil
	}
	if err != nil {
		return nil, err
	}
	tcp := socks.TCP
	cfg.Sockets = nil
	if cfg.Name == "" {
		cfg.Name = tcp.Addr().String()
	}
	s := &Server{cfg: cfg, sockets: front.sockets, clientCerts: front.clientCerts, log: log, tcp: tcp, udp: socks.UDP, turn: socks.Turn, accepted: make(chan struct{}), leaving: make(chan struct{}), quicOver: make(chan struct{})}
	s.front.Store(front)
	s.proxies, s.door.limit, s.door.perClient = proxies, cfg.Limits.MaxConns, cfg.Limits.MaxConnsPerIP
	s.door3.limit, s.door3.perClient = cfg.Limits.MaxConns, cfg.Limits.MaxConnsPerIP
	s.calls, s.cut = context.WithCancelCause(context.WithoutCancel(ctx))
	var handler http.Handler = http.HandlerFunc(s.serve)
	if cfg.RedirectPort != 0 {
		handler = s.redirect(cfg.RedirectPort)
	}
	if cfg.HTTP3 {
		port := tcp.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a "tcp" listener has a TCP address
		s.h3 = &http3.Server{
			Handler:        handler,
			TLSConfig:      http3.ConfigureTLSConfig(cfg.TLS.Clone()),
			MaxHeaderBytes: cfg.Limits.MaxHeaderBytes,
			IdleTimeout:    cfg.Limits.IdleTimeout,
			Logger:         slog.New(slog.DiscardHandler),
			QUICConfig: &quic.Config{
				MaxIncomingStreams:             int64(cfg.Limits.MaxStreams),
				MaxIdleTimeout:                 cfg.Limits.IdleTimeout,
				HandshakeIdleTimeout:           cfg.Limits.HeaderTimeout,
				InitialStreamReceiveWindow:     64 << 10,
				InitialConnectionReceiveWindow: 256 << 10,
				GetConfigForClient:             s.admitQUIC,
			},
			ConnContext: func(ctx context.Context, conn *quic.Conn) context.Context {
				s.quics.Add(1)
				var own *http3.Server
				if s.wt == nil {
					own, _ = ctx.Value(http3.ServerContextKey).(*http3.Server)
				}
				q := s.quicConns.of(conn, own, cfg.Limits.IdleTimeout)
				s.quicConns.add(q, cfg.Limits.MaxAge)
				context.AfterFunc(ctx, func() {
					s.quics.Add(-1)
					s.quicConns.remove(q)
				})
				return context.WithValue(joined(ctx, s.calls), quicKey{}, q)
			},
		}
		s.quic = &quic.Transport{Conn: s.udp, ConnContext: s.doubts.begin, VerifySourceAddress: s.doubts.many}
		if cfg.WebTransport {
			s.wt = newWTServer(s)
		}
		s.h3.Handler = whileBusy(s.h3.Handler)
		if cfg.AltSvcPort != 0 {
			port = cfg.AltSvcPort
		}
		handler = s.altSvc(fmt.Sprintf(`h3=":%d"; ma=86400`, port), handler)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	if cfg.TLS != nil {
		protocols.SetHTTP2(true)
	} else {
		protocols.SetUnencryptedHTTP2(true)
	}
	s.h1 = &http.Server{
		Handler:           whileYoung(handler),
		TLSConfig:         cfg.TLS,
		Protocols:         &protocols,
		ReadHeaderTimeout: cfg.Limits.HeaderTimeout,
		IdleTimeout:       cfg.Limits.IdleTimeout,
		MaxHeaderBytes:    cfg.Limits.MaxHeaderBytes,
		ConnState:         s.count,
		BaseContext:       func(net.Listener) context.Context { return s.calls },
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// With these net/http leaves HTTP/2 to us. The second is what it calls prior knowledge.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": s.serveSecure2, "unencrypted_http2": s.servePlain2},
	}
	s.h2 = h2server.New(h2server.Config{
		Handler:    handler,
		MaxStreams: cfg.Limits.MaxStreams, MaxHeaderBytes: cfg.Limits.MaxHeaderBytes,
		TooLarge: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			refuseHeader(w, r, "the header of the request is too large")
		}),
		HeaderTimeout: cfg.Limits.HeaderTimeout, IdleTimeout: cfg.Limits.IdleTimeout, MaxAge: cfg.Limits.MaxAge, WriteStall: cfg.Limits.WriteStall,
		PingAfter: 30 * time.Second, PingTimeout: 15 * time.Second,
		Log: log,
	})
	return s, nil
}

// joined is ctx, ended also by the end of other and with its cause.
func joined(ctx, other context.Context) context.Context {
	ctx, cut := context.WithCancelCause(ctx)
	stop := context.AfterFunc(other, func() { cut(context.Cause(other)) })
	context.AfterFunc(ctx, func() { stop() })
	return ctx
}

// altSvc announces HTTP/3 (RFC 7838) while it is served.
func (s *Server) altSvc(value string, next http.Handler) http.Handler {
	values := []string{value}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.quicOpen.Load() {
			w.Header()["Alt-Svc"] = values
		}
		next.ServeHTTP(w, r)
	})
}

// serve hands a request to the Front in force.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 3 {
		growStack()
	}
	fields := 0
	for _, values := range r.Header {
		fields += len(values)
	}
	if limit := s.cfg.Limits.MaxHeaderFields; fields > limit {
		refuseHeader(w, r, fmt.Sprintf("the request has %d header fields, %d are the limit", fields, limit))
		return
	}
	s.front.Load().ServeHTTP(w, r)
}

// refuseHeader answers a request whose header is over a limit: gRPC clients in their way, as they make no more of 431 than that it is
// unknown.
func refuseHeader(w http.ResponseWriter, r *http.Request, msg string) {
	ct := r.Header.Get("Content-Type")
	if r.ProtoMajor < 2 || !hasPrefixFold(ct, "application/grpc") || isGRPCWeb(ct) {
		http.Error(w, msg, http.StatusRequestHeaderFieldsTooLarge)
		return
	}
	h := w.Header()
	h["Content-Type"] = grpcType
	h["Content-Length"] = nil // as in every Trailers-Only
	writeGRPCStatus(h, false, status.New(codes.ResourceExhausted, msg))
	w.WriteHeader(http.StatusOK)
}

// growStack makes room on the stack of a new goroutine, as each request of HTTP/3 has one, for what a call needs:
// once, and while there is little to copy, rather than by doubling it three times on the way down.
//
//go:noinline
func growStack() {
	var room [9 << 10]byte
	runtime.KeepAlive(&room)
}

// SetFront makes front serve the requests that follow. Open calls and WebSockets are not touched. front must not have been
// given to a Server before. SetFront may not be called twice at once.
func (s *Server) SetFront(front *Front) {
	front.sockets, front.clientCerts = s.sockets, s.clientCerts
	s.front.Store(front)
}

// count keeps the number of connections that net/http has, and of those that have not come to their first request's end.
func (s *Server) count(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
		if bounded(c) != nil {
			s.reading.Add(1)
			s.fresh.Add(1)
		}
	case http.StateActive:
		if b := bounded(c); b != nil && b.phase == phaseReading {
			b.phase = phaseFirst
			s.reading.Add(-1)
		}
	case http.StateIdle:
		s.seasoned(bounded(c))
	case http.StateClosed, http.StateHijacked:
		s.seasoned(bounded(c))
		s.conns.Add(-1)
	}
}

// seasoned ends a connection's first request.
func (s *Server) seasoned(b *boundedConn) {
	if b == nil {
		return
	}
	switch b.phase {
	case phaseReading:
		s.reading.Add(-1)
		s.fresh.Add(-1)
	case phaseFirst:
		s.fresh.Add(-1)
	}
	b.phase = phaseSeasoned
}

// settled waits until no connection is about to bring its first request: net/http's Shutdown drops a request that it has
// read, unanswered, if it was the first. It waits for a request no longer than Shutdown itself, and for its end not long,
// only to be sure that it is past that point.
func (s *Server) settled(ctx context.Context) {
	const forRequest, forEnd, look = 5 * time.Second, 50 * time.Millisecond, time.Millisecond
	await := func(n *atomic.Int64, limit time.Duration) {
		for waited := time.Duration(0); n.Load() > 0 && waited < limit && ctx.Err() == nil; waited += look {
			time.Sleep(look)
		}
	}
	await(&s.reading, forRequest)
	await(&s.fresh, forEnd)
}

// Connections are those open at a time, by the HTTP that they speak.
type Connections struct {
	// HTTP1 are those that have said nothing yet, too, and the WebSockets.
	HTTP1, HTTP2, HTTP3, WebSockets int
}

// Connections counts what is open.
func (s *Server) Connections() Connections {
	c := Connections{HTTP2: s.h2.Open(), HTTP3: int(s.quics.Load()), WebSockets: s.sockets.count()}
	c.HTTP1 = max(0, int(s.conns.Load())-c.HTTP2) + c.WebSockets // they come and go between the counts
	return c
}

// Files are the bound sockets, to be served by whoever is next, in this process or another: connections that wait for being
// accepted are lost by neither's closing them. udp is nil without HTTP/3. On error both may be there. It is to be followed
// by Drain.
func (s *Server) Files() (tcp, udp *os.File, err error) {
	tcp, err = s.tcp.(*net.TCPListener).File() //nolint:forcetypeassert // it was bound as "tcp"
	if err == nil && s.udp != nil {
		udp, err = s.udp.(*net.UDPConn).File() //nolint:forcetypeassert // it was bound as "udp"
	}
	if err != nil {
		err = fmt.Errorf("listener %s: %w", s.cfg.Name, err)
	}
	return tcp, udp, err
}

// Share is Files for this process.
func (s *Server) Share() (*Sockets, error) {
	tcp, udp, err := s.Files()
	socks := &Sockets{Turn: append(slices.Clone(s.turn), s.quicOver)}
	if tcp != nil {
		defer func() { _ = tcp.Close() }()
	}
	if udp != nil {
		defer func() { _ = udp.Close() }()
	}
	if err == nil {
		socks.TCP, err = net.FileListener(tcp)
	}
	if err == nil && udp != nil {
		if socks.UDP, err = net.FilePacketConn(udp); err != nil {
			_ = socks.TCP.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", s.cfg.Name, err)
	}
	return socks, nil
}

// Addr is the bound TCP address; HTTP/3 has the same port.
func (s *Server) Addr() *net.TCPAddr {
	return s.tcp.Addr().(*net.TCPAddr) //nolint:forcetypeassert // a "tcp" listener has a TCP address
}

// Name is the listener's name in logs and metrics.
func (s *Server) Name() string { return s.cfg.Name }

// Run serves until Drain, or until a socket fails; only the latter is an error.
func (s *Server) Run() error {
	var wg sync.WaitGroup
	var errTCP, errUDP error
	if s.h3 != nil {
		wg.Go(func() { errUDP = s.serveHTTP3() })
	}
	s.started.Store(true)
	if s.cfg.TLS != nil {
		errTCP = s.h1.ServeTLS(sealingListener{s.accepting()}, "", "")
	} else {
		errTCP = s.h1.Serve(countingListener{s.accepting()})
	}
	close(s.accepted)
	if !errors.Is(errTCP, net.ErrClosed) && !errors.Is(errTCP, http.ErrServerClosed) && s.h3 != nil {
		s.closeHTTP3()
	}
	wg.Wait()
	for _, err := range []error{errTCP, errUDP} {
		if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, quic.ErrServerClosed) {
			return fmt.Errorf("listener %s: %w", s.cfg.Name, err)
		}
	}
	return nil
}

// serveHTTP3 waits for its turn, and serves until the end. A drain that begins before is the end.
func (s *Server) serveHTTP3() error {
	for _, turn := range s.turn {
		select {
		case <-turn:
		case <-s.leaving:
			return nil
		}
	}
	s.quicOpen.Store(true)
	ln, err := s.quic.ListenEarly(s.h3.TLSConfig, s.h3.QUICConfig)
	if err != nil {
		return err
	}
	defer func() { _ = ln.Close() }()
	if s.wt != nil {
		return s.accept3.serve(ln, s.entered(s.wt.serve))
	}
	return s.accept3.serve(ln, s.entered(s.serveQUIC))
}

// QUICOver is closed when the Server reads no more from its UDP socket, or has none, which is after Drain: whoever has the
// socket too may do so then.
func (s *Server) QUICOver() <-chan struct{} { return s.quicOver }

// errDrained is what calls are told that outlast the drain.
var errDrained = status.Error(codes.Unavailable, "the gateway is shutting down")

// cutGrace is how long cut calls get to tell their clients so.
const cutGrace = 2 * time.Second

// Drain stops accepting, tells clients to go (Connection: close, GOAWAY, WebSocket close 1001), lets calls finish until
// ctx ends, and cuts what is left then. It returns the error of ctx if anything was cut.
//
// The sockets may be served by another meanwhile: connections of TCP are the one's or the other's, and the other waits for
// QUICOver.
func (s *Server) Drain(ctx context.Context) error {
	var wg sync.WaitGroup
	var errTCP, errUDP, errWS error
	s.left.Do(func() { close(s.leaving) })
	s.quicOpen.Store(false)
	s.quicConns.leave()
	s.accept3.stop()
	switch {
	case s.h3 == nil:
		s.endQUIC()
	case s.wt == nil:
		wg.Go(func() {
			errUDP = s.accept3.wait(ctx)
			s.closeHTTP3()
		})
	}
	s.sockets.goAway()
	wg.Go(func() { errWS = s.sockets.wait(ctx) })
	// net/http does not know a connection between its Accept and the next line of Serve, and would not wait for it.
	_ = s.tcp.Close()
	if s.started.Load() {
		<-s.accepted
	}
	s.h1.SetKeepAlivesEnabled(false)
	s.h2.GoAway()
	s.settled(ctx)
	errTCP = s.h1.Shutdown(ctx)
	wg.Wait()
	err := errors.Join(errTCP, errUDP, errWS)
	if err != nil {
		s.cut(errDrained)
		s.sockets.cutOff(errDrained)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutGrace)
		defer cancel()
		_ = s.h1.Shutdown(grace)
		_ = s.sockets.wait(grace)
	}
	s.cut(errDrained)
	_ = s.h1.Close()
	s.h2.Close()
	if s.h3 != nil {
		s.closeHTTP3()
	}
	return err
}

// closeHTTP3 cuts all QUIC connections.
func (s *Server) closeHTTP3() {
	s.accept3.stop()
	if s.wt != nil {
		_ = s.wt.wt.Close()
	}
	s.quicConns.close()
	_ = s.udp.Close()
	s.endQUIC()
}

func (s *Server) endQUIC() { s.over.Do(func() { close(s.quicOver) }) }
