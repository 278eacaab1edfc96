package listeners

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/transcoder"
)

// FrontConfig configures a Front. Its zero value is usable.
type FrontConfig struct {
	// Name is the listener's name in logs and metrics.
	Name string
	// HealthPath answers GET with 200 while Ready, else 503. Empty turns it off.
	HealthPath string
	// Ready reports whether traffic should come; nil is always.
	Ready func() bool
	// Challenge is what to answer an authority that asks, below /.well-known/acme-challenge/, whether the request's host is ours (ACME's
	// http-01). Nil is nothing.
	Challenge func(token string) (keyAuthorization string, ok bool)
	// IdleBody is how long a request body may make no progress; 0 is 30 s.
	IdleBody time.Duration
	// IdleWrite is how long a client may take nothing of what there is for it; 0 is 30 s.
	IdleWrite time.Duration
	// Origins are the origins of pages that may open a WebSocket besides those of the request's own host:
	// "https://app.example", "https://*.example" or "*".
	Origins   []string
	WebSocket WebSocketConfig
	// MaxHeaderBytes and MaxHeaderFields limit the metadata that a frame opens a call with, that of the socket's request counted in, as
	// Limits do a request's header; 0 is 16 KiB and 100.
	MaxHeaderBytes, MaxHeaderFields int
	// CORS lets web pages of other origins call; nil lets none.
	CORS *CORS
	// Observer may be nil.
	Observer Observer
}

// Front is the one http.Handler behind every socket.
type Front struct {
	cfg       FrontConfig
	source    Source
	log       *slog.Logger
	deadlines wheel
	// calls serves what is neither a health check nor a WebSocket.
	calls http.Handler
	// sockets and clientCerts are the Server's, so that they outlive this Front.
	sockets     *sockets
	clientCerts *clientCerts
}

// NewFront returns a Front that serves what source has in force.
func NewFront(cfg FrontConfig, source Source, log *slog.Logger) *Front {
	if cfg.IdleBody == 0 {
		cfg.IdleBody = defaultIdle
	}
	if cfg.IdleWrite == 0 {
		cfg.IdleWrite = defaultIdle
	}
	cfg.MaxHeaderBytes = cmp.Or(cfg.MaxHeaderBytes, defaultHeaderBytes)
	cfg.MaxHeaderFields = cmp.Or(cfg.MaxHeaderFields, defaultHeaderFields)
	cfg.WebSocket.idleWrite = cfg.IdleWrite
	cfg.WebSocket.setDefaults()
	f := &Front{cfg: cfg, source: source, log: log, sockets: &sockets{}, clientCerts: &clientCerts{}}
	f.calls = http.HandlerFunc(f.serveCall)
	if cfg.CORS != nil {
		f.calls = cfg.CORS.wrap(f.calls)
	}
	return f
}

// ServeHTTP runs one request to its end.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 {
		guardLength(w, r)
	}
	if f.cfg.Challenge != nil && f.answersChallenge(w, r) {
		return
	}
	if f.cfg.HealthPath != "" && r.URL.Path == f.cfg.HealthPath && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		f.serveHealth(w)
		return
	}
	if isWebSocket(r) {
		f.serveWebSocket(w, r)
		return
	}
	f.calls.ServeHTTP(w, r)
}

// challengePath is where an authority asks (RFC 8555, 8.3).
const challengePath = "/.well-known/acme-challenge/"

// answersChallenge answers an authority, if the request is one of its.
func (f *Front) answersChallenge(w http.ResponseWriter, r *http.Request) bool {
	token, ok := strings.CutPrefix(r.URL.Path, challengePath)
	if !ok || f.cfg.Challenge == nil || r.Method != http.MethodGet {
		return false
	}
	auth, ok := f.cfg.Challenge(token)
	if !ok {
		return false
	}
	w.Header()["Content-Type"] = []string{"application/octet-stream"}
	_, _ = w.Write([]byte(auth))
	return true
}

// serveCall tells the protocols apart.
func (f *Front) serveCall(w http.ResponseWriter, r *http.Request) {
	v := f.source.Acquire()
	defer v.Release()
	v.Edge().setHeader(w, r)
	ct := r.Header.Get("Content-Type")
	switch {
	case hasPrefixFold(ct, "application/grpc"):
		if isGRPCWeb(ct) {
			f.serveGRPCWeb(w, r, v)
		} else {
			f.serveGRPC(w, r, v)
		}
	case hasPrefixFold(ct, connectStreamPrefix):
		f.serveConnectStream(w, r, v)
	case isConnectUnary(r, ct, v):
		f.serveConnectUnary(w, r, v)
	default:
		f.serveREST(w, r, v)
	}
}

// methodOf finds the method whose gRPC path a request has, byte for byte: one with anything percent-encoded is another path, as
// it is for a proxy in front that judges by paths.
func methodOf(r *http.Request, v View) (*descriptors.Method, bool) {
	if r.URL.RawPath != "" {
		return v.Method(r.URL.RawPath)
	}
	return v.Method(r.URL.Path)
}

// credentialsFrom reports whether the CORS settings let pages of an origin, in lower case, send what the user has.
func (f *Front) credentialsFrom(origin string, what ambience) bool {
	if f.cfg.CORS == nil || origin == "" {
		return false
	}
	// A password may be the page's own, and then need not be allowed by allow_credentials.
	if !f.cfg.CORS.credentials && what != (ambience{password: true}) {
		return false
	}
	return f.names(origin)
}

// names reports whether an origin, in lower case, is one of those that are named, and not only let in by "*".
func (f *Front) names(origin string) bool {
	return slices.ContainsFunc(f.cfg.Origins, func(p string) bool { return p != "*" && matchOrigin(p, origin) })
}

// serveHealth answers a load balancer in front.
func (f *Front) serveHealth(w http.ResponseWriter) {
	w.Header()["Content-Type"] = textPlain
	w.Header()["Cache-Control"] = noStore
	if f.cfg.Ready != nil && !f.cfg.Ready() {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte("not ready\n"))
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// exchange is what every protocol's stream embeds: the call, its info, and the way to its end.
type exchange struct {
	Exchange
	call  rpc.Call
	info  rpc.Info
	front *Front
	edge  *Edge // of the View that the exchange began with
	w     http.ResponseWriter
	guard guard
	// duplex says that the answer may begin before the request body has ended, which over HTTP/1.1 net/http must be told.
	duplex bool
}

// begin sets up x for a request and tells the observer. The protocols call it first.
func (x *exchange) begin(f *Front, w http.ResponseWriter, r *http.Request, p rpc.Protocol, v View) {
	now := time.Now()
	x.front, x.w, x.guard.front = f, w, f
	x.edge = v.Edge()
	x.call.Peer = x.edge.peer(r)
	x.Exchange = Exchange{Listener: f.cfg.Name, Request: r, Client: x.call.Peer.Addr, Protocol: p, Start: now}
	x.info = rpc.Info{Protocol: p, Start: now}
	x.call.Info, x.Call = &x.info, &x.call // also of what is refused before it is a call
	if f.cfg.Observer != nil {
		if ctx := f.cfg.Observer.Begin(r.Context(), &x.Exchange); ctx != r.Context() {
			x.Request = r.WithContext(ctx)
		}
	}
}

// run bounds the call by its timeout and runs its chain. clientTimeout is negative if the client gave none. A panic ends the call
// as an error does, so that it is answered, counted and logged.
func (x *exchange) run(route *Route, clientTimeout time.Duration) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(x.front, p)
		}
	}()
	ctx := x.Request.Context()
	route.Edge.admit(x, x.Request)
	limit := route.Timeout
	if clientTimeout >= 0 && (limit == 0 || clientTimeout < limit) {
		if clientTimeout == 0 {
			return status.Error(codes.DeadlineExceeded, "the client left no time for the call")
		}
		limit = clientTimeout
	}
	if limit > 0 {
		var cancel func()
		ctx, cancel = x.front.deadlines.withTimeout(ctx, limit)
		defer cancel()
	}
	unary := x.call.Method.Unary()
	if !unary && x.front.cfg.Observer != nil {
		x.front.cfg.Observer.Stream(&x.Exchange)
	}
	if !unary && x.Protocol != rpc.ProtocolWebSocket {
		_ = x.guard.bindRead(ctx, x.w)
		_ = x.guard.bindWrite(ctx, x.w)
	}
	defer x.guard.disarm() // before cancel, whose only meaning is that the call is over
	handler := route.Handler
	if t := x.Request.TLS; t != nil && (len(t.PeerCertificates) > 0 || !unary || x.front.clientCerts.vouch(t) != nil) {
		handler = x.certified(handler)
	}
	return handler(ctx, &x.call)
}

// panicked logs a panic and makes it an error.
func panicked(f *Front, p any) error {
	f.log.LogAttrs(context.Background(), slog.LevelError, "panic while serving a call", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
	return fmt.Errorf("panic: %v", p)
}

// fullDuplex lets the answer begin before the request body has ended.
func (x *exchange) fullDuplex() {
	if x.Request.ProtoMajor == 1 {
		_ = http.NewResponseController(x.w).EnableFullDuplex()
		x.duplex = true
	}
}

// lingerRead is how long a client may go on sending a body that nobody wants, so that it can see the answer.
const lingerRead = time.Second

// settle must be called before the response header is written; last says that the call is over. An HTTP/1.1 connection
// whose request body was not read to its end is not used again, lest what is left be taken for a request. net/http sees
// to that by reading on before it writes the header, for which it gets a time limit, or not at all in full duplex.
func (x *exchange) settle(last bool) {
	r := x.Request
	if r.ProtoMajor != 1 || r.ContentLength == 0 || x.guard.atEOF() {
		return
	}
	if x.duplex {
		x.w.Header()["Connection"] = connClose
	}
	if last {
		_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(lingerRead))
	}
}

// keepPrivate tells caches on the way to the client not to give others the answer to a GET that depends on who calls. RFC 9111
// section 3.5 has them think so of requests with authorization; of API keys, cookies and certificates they know nothing. As there,
// public, s-maxage and must-revalidate in the answer's own cache-control say otherwise. route is nil if no method was found.
func (x *exchange) keepPrivate(route *Route) {
	if route == nil || !route.Private || x.Request.Method != http.MethodGet && x.Request.Method != http.MethodHead {
		return
	}
	h := x.w.Header()
	said := h["Cache-Control"]
	if len(said) == 0 {
		h["Cache-Control"] = private
		return
	}
	for _, v := range said {
		for d := range strings.SplitSeq(v, ",") {
			name, _, _ := strings.Cut(strings.TrimSpace(d), "=")
			switch strings.ToLower(name) {
			case "private", "no-store", "no-cache", "public", "s-maxage", "must-revalidate":
				return
			}
		}
	}
	h["Cache-Control"] = append(slices.Clip(said), "private")
}

// end records how the exchange ended and tells the observer.
func (x *exchange) end(err error, st *status.Status, httpStatus int) {
	x.Err, x.Status, x.HTTPStatus = err, st, httpStatus
	if err != nil {
		x.info.Fail(rpc.SourceGateway)
		if !rpc.Known(err) {
			x.front.log.LogAttrs(context.WithoutCancel(x.Request.Context()), slog.LevelError, "call failed inside the gateway",
				slog.String("path", x.Request.URL.Path), slog.String("error", err.Error()))
		}
	}
	if x.front.cfg.Observer != nil {
		x.front.cfg.Observer.End(&x.Exchange)
	}
	// Calls within a WebTransport session are no requests.
	if x.Request.ProtoMajor == 3 && x.Protocol != rpc.ProtocolWebTransport && st.Code() == codes.Canceled && x.info.MessagesOut == 0 {
		if q, ok := x.Request.Context().Value(quicKey{}).(*quicConn); ok {
			q.tookBack()
		}
	}
}

// withHeader is a refusal that comes with response headers.
type withHeader struct {
	error
	header http.Header
}

func (e *withHeader) Unwrap() error { return e.error }

// missing is err, by which what a request asks for is not there; while descriptors are awaited, which may have it, it is Unavailable
// instead, and not the client's fault.
func (x *exchange) missing(v View, err error) error {
	if !v.Awaiting() {
		return err
	}
	x.info.Fail(rpc.SourceGateway)
	return status.Error(codes.Unavailable, "some descriptors are not there yet, and this may be in them; try again")
}

// routeFault turns an error of MatchHTTP into 404, 405 or 400, or into 503 as missing does.
func (x *exchange) routeFault(v View, verb string, err error) error {
	none, ok := errors.AsType[*descriptors.NoRouteError](err)
	switch {
	case !ok:
		return status.Error(codes.InvalidArgument, err.Error())
	case len(none.Allow) > 0:
		allow := strings.Join(none.Allow, ", ")
		return x.missing(v, &withHeader{
			transcoder.HTTPError(http.StatusMethodNotAllowed, codes.Unimplemented, "method "+verb+" is not allowed here, use "+allow),
			http.Header{"Allow": {allow}},
		})
	}
	return x.missing(v, transcoder.HTTPError(http.StatusNotFound, codes.NotFound, "no route for this path"))
}

// hasPrefixFold reports whether s begins with prefix, ASCII case ignored.
func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// Header values that are set often; shared, never changed.
var (
	textPlain    = []string{"text/plain; charset=utf-8"}
	grpcType     = []string{"application/grpc"}
	grpcJSONType = []string{"application/grpc+json"}
	jsonType     = []string{"application/json"}
	noStore      = []string{"no-store"}
	private      = []string{"private"}
	connClose    = []string{"close"}
	statusOK     = []string{"0"}
	nosniff      = []string{"nosniff"}
)
