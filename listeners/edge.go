package listeners

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/transcoder"
)

// EdgeConfig is what holds for every request before its method is known.
type EdgeConfig struct {
	// Forward are the names of headers that REST and WebSocket requests pass on as metadata, case ignored, beside
	// authorization, cookie, traceparent, tracestate and Grpc-Metadata-* (without the prefix), which always pass.
	Forward []string
	// TrustedProxies are the networks of the proxies in front whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// RequestID is the header, in lower case, in which calls carry an id: the client's, or one that is made. Empty for none.
	RequestID string
	// VersionHeader is the request header, in lower case, that says which API version a path is of; empty for none. Responses
	// say that they depend on it (Vary).
	VersionHeader string
	// ResponseHeader is set on every response; HSTS is the value of Strict-Transport-Security over TLS, empty for none.
	ResponseHeader map[string]string
	HSTS           string
	// TrustedOrigins are origins, "https://app.example", whose pages may send requests with cookies and effects.
	TrustedOrigins []string
}

// Edge is a compiled EdgeConfig: immutable, and part of a View. A nil Edge is that of the zero EdgeConfig.
type Edge struct {
	// forward are by canonical header names: few, and mostly of other lengths than the one that is looked for.
	forward []forwarded
	// forwardsPeers says that one of them is a name in which proxies tell of clients.
	forwardsPeers bool
	proxies       []netip.Prefix
	// requestID is the metadata name, and requestIDHeader the canonical header name.
	requestID, requestIDHeader string
	// versionName is the metadata name, and versionHeader the canonical header name.
	versionName, versionHeader string
	header                     http.Header
	hsts                       []string
	// says are the metadata names of fields that setHeader sets, so that backends do not; but for vary, which adds up.
	says    map[string]bool
	origins []string
}

// NewEdge compiles cfg.
func NewEdge(cfg EdgeConfig) *Edge {
	e := &Edge{
		proxies: cfg.TrustedProxies, requestID: cfg.RequestID,
		requestIDHeader: http.CanonicalHeaderKey(cfg.RequestID), header: http.Header{}, says: map[string]bool{},
		versionName: cfg.VersionHeader, versionHeader: http.CanonicalHeaderKey(cfg.VersionHeader),
	}
	for _, name := range cfg.Forward {
		name = http.CanonicalHeaderKey(name)
		e.forward = append(e.forward, forwarded{name, transcoder.FieldOf(name)})
		e.forwardsPeers = e.forwardsPeers || transcoder.Forwarded(transcoder.Lower(name))
	}
	for name, value := range cfg.ResponseHeader {
		e.header.Set(name, value)
		e.says[strings.ToLower(name)] = true
	}
	delete(e.says, "vary")
	if cfg.VersionHeader != "" {
		e.header.Add("Vary", e.versionHeader)
	}
	if cfg.HSTS != "" {
		e.hsts = []string{cfg.HSTS}
		e.says["strict-transport-security"] = true
	}
	for _, o := range cfg.TrustedOrigins {
		e.origins = append(e.origins, strings.ToLower(o))
	}
	return e
}

// forwarded is a header of a canonical name that REST and WebSocket requests pass on as metadata.
type forwarded struct {
	name  string
	field transcoder.Field
}

// always are the headers that pass with any Edge, none too.
var always = func() (all []forwarded) {
	for _, name := range [...]string{"Authorization", "Cookie", "Traceparent", "Tracestate"} {
		all = append(all, forwarded{name, transcoder.FieldOf(name)})
	}
	return all
}()

// forwards is what REST and WebSocket requests pass on of the header of that canonical name; nil if nothing.
func (e *Edge) forwards(name string) *transcoder.Field {
	for i := range always {
		if always[i].name == name {
			return &always[i].field
		}
	}
	if e == nil {
		return nil
	}
	for i := range e.forward {
		if e.forward[i].name == name {
			return &e.forward[i].field
		}
	}
	return nil
}

// version is the API version that a request asks for by header; "" if by none.
func (e *Edge) version(h http.Header) string {
	if e == nil || e.versionHeader == "" {
		return ""
	}
	return h.Get(e.versionHeader)
}

// versionOfFrame is version for a call that a frame opened: of the frame's metadata before that of the request which the
// socket began with.
func (e *Edge) versionOfFrame(md metadata.MD, h http.Header) string {
	if e == nil || e.versionHeader == "" {
		return ""
	}
	if v := md[e.versionName]; len(v) > 0 {
		return v[0]
	}
	return e.version(h)
}

// peer is the client: the socket's peer, or, behind trusted proxies, what the nearest of them that is not trusted is said
// to be. X-Forwarded-For is read from its end: each proxy appends whom it got the request from, and what stands before the
// word of one that is not trusted is anybody's.
func (e *Edge) peer(r *http.Request) rpc.Peer {
	addr, _ := netip.ParseAddrPort(r.RemoteAddr)
	p := rpc.Peer{Addr: addr, TLS: r.TLS}
	if e == nil || !e.trusts(addr.Addr()) {
		return p
	}
	values := r.Header["X-Forwarded-For"]
	for i := len(values) - 1; i >= 0; i-- {
		for rest := values[i]; rest != ""; {
			var last string
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, last = rest[:at], rest[at+1:]
			} else {
				rest, last = "", rest
			}
			a, ok := parseHop(strings.TrimSpace(last))
			if !ok {
				return p
			}
			p.Addr = a
			if !e.trusts(a.Addr()) {
				return p
			}
		}
	}
	return p
}

// parseHop reads an element of X-Forwarded-For: an address, perhaps with a port, IPv6 perhaps in brackets.
func parseHop(s string) (netip.AddrPort, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, true
	}
	if len(s) > 2 && s[0] == '[' && s[len(s)-1] == ']' {
		s = s[1 : len(s)-1]
	}
	a, err := netip.ParseAddr(s)
	return netip.AddrPortFrom(a, 0), err == nil
}

func (e *Edge) trusts(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(e.proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// admit completes a call with what the Edge knows of it: the peer, what backends are told of it, and the request id.
func (e *Edge) admit(x *exchange, r *http.Request) {
	e.tellForwarded(x, r)
	if e != nil && e.requestID != "" {
		e.identify(x)
	}
}

// behindProxy reports whether the socket's peer, an address without a port, is a trusted proxy.
func (e *Edge) behindProxy(peer string) bool {
	if e == nil || len(e.proxies) == 0 {
		return false
	}
	addr, err := netip.ParseAddr(peer)
	return err == nil && e.trusts(addr)
}

// tellForwarded tells the backend in x-forwarded-for, -host and -proto who called, by what name and over what. What the request
// says itself is kept only if it comes from a trusted proxy, whose own address is then appended; others could say anything,
// so that nothing goes on of what they say in these names and the like (forwarded, x-real-ip).
func (e *Edge) tellForwarded(x *exchange, r *http.Request) {
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil { // it has no address, such as that of a Unix socket
		client = "unknown" // RFC 7239 section 6.2
	}
	host, proto := r.Host, "http"
	if r.TLS != nil {
		proto = "https"
	}
	if e.behindProxy(client) {
		if before := r.Header["X-Forwarded-For"]; len(before) > 0 {
			client = strings.Join(before, ", ") + ", " + client
		}
		host, proto = cmp.Or(r.Header.Get("X-Forwarded-Host"), host), cmp.Or(r.Header.Get("X-Forwarded-Proto"), proto)
	} else if x.Protocol != rpc.ProtocolREST || e != nil && e.forwardsPeers { // of a REST request restMetadata has left out those that are not listed
		transcoder.DropForwarded(x.call.Header)
	}
	told := [...]string{rpc.MetadataText(client), rpc.MetadataText(host), rpc.MetadataText(proto)}
	x.call.SetHeader("x-forwarded-for", told[:1:1]...)
	x.call.SetHeader("x-forwarded-host", told[1:2:2]...)
	x.call.SetHeader("x-forwarded-proto", told[2:3:3]...)
}

// identify gives the call its request id: the client's if it is fit to be logged, else a new one. The backend gets it as
// metadata, the client as a header while there is one to be sent.
func (e *Edge) identify(x *exchange) {
	if x.info.RequestID == "" {
		if given := x.Request.Header[e.requestIDHeader]; len(given) == 1 && isRequestID(given[0]) {
			x.info.RequestID = given[0]
		} else {
			x.info.RequestID = newRequestID()
		}
	}
	values := []string{x.info.RequestID}
	x.call.SetHeader(e.requestID, values...)
	if x.w != nil {
		x.w.Header()[e.requestIDHeader] = values
	}
}

// isRequestID reports whether a client's request id is 1 to 128 letters, digits and "-_.:/+=".
func isRequestID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && strings.IndexByte("-_.:/+=", c) < 0 {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// newRequestID is 128 random bits in hex.
func newRequestID() string {
	var raw [16]byte
	binary.LittleEndian.PutUint64(raw[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(raw[8:], rand.Uint64())
	var text [32]byte
	hex.Encode(text[:], raw[:])
	return string(text[:])
}

// setHeader sets the response header that every response has.
func (e *Edge) setHeader(w http.ResponseWriter, r *http.Request) {
	if e == nil {
		return
	}
	h := w.Header()
	maps.Copy(h, e.header)
	if e.hsts != nil && r.TLS != nil {
		h["Strict-Transport-Security"] = e.hsts
	}
}

// ambience is what browsers add to a request by themselves, whatever page makes them send it.
type ambience struct {
	cookies bool
	// password is what the user showed the browser, or told the page: authorization of a scheme that browsers know themselves.
	password    bool
	certificate bool
}

// ambient looks for it.
func ambient(r *http.Request) ambience {
	a := ambience{cookies: len(r.Header["Cookie"]) > 0, certificate: r.TLS != nil && len(r.TLS.PeerCertificates) > 0}
	for _, v := range r.Header["Authorization"] {
		scheme, _, _ := strings.Cut(v, " ")
		switch strings.ToLower(scheme) {
		case "basic", "digest", "negotiate", "ntlm":
			a.password = true
		}
	}
	return a
}

// checkForgery refuses a request with effects, and with what the user has of cookies, passwords and certificates, that a page of
// another origin made a browser send (cross-site request forgery), by what browsers say of it: Sec-Fetch-Site, and Origin. A
// request without any of these carries nothing of the user's. GET, HEAD and OPTIONS are let through unless effects says that the
// method called has effects. What the listener's CORS allows goes. The protocols call it once they know the method; WebSockets and
// WebTransport have Front.checkOrigin.
func (x *exchange) checkForgery(effects bool) error {
	r := x.Request
	if r.Header["Origin"] == nil && r.Header["Sec-Fetch-Site"] == nil {
		return nil
	}
	what := ambient(r)
	if what == (ambience{}) {
		return nil
	}
	if effects { // whatever the HTTP method
		as := *r
		as.Method = http.MethodPost
		r = &as
	}
	var csrf http.CrossOriginProtection
	if csrf.Check(r) == nil {
		return nil
	}
	origin := strings.ToLower(r.Header.Get("Origin"))
	if x.edge != nil && slices.Contains(x.edge.origins, origin) || x.front.credentialsFrom(origin, what) {
		return nil
	}
	x.info.Fail(rpc.SourceClient)
	return originDenied("pages of origin %q may not send requests with cookies, passwords or certificates here", origin)
}

// originDenied refuses what a page of another origin sends, with a google.rpc.ErrorInfo.
func originDenied(format string, args ...any) error {
	st := status.Newf(codes.PermissionDenied, format, args...)
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: "ORIGIN_DENIED", Domain: "transom"}); err == nil {
		st = detailed
	}
	return st.Err()
}
