package h2server

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"

	"transom/rpc/grpcwire"
)

// The pseudo-header fields of requests, as bits.
const (
	pseudoMethod = 1 << iota
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoOther // none of a request's
)

// head is a decoded header block.
type head struct {
	limit int // of size
	size  int
	over  bool // size is over limit: what follows is not kept
	fault bool // the block is malformed (RFC 9113 8.2, 8.3)

	pseudo                          uint8
	regular                         bool // a field that is no pseudo-header has come
	method, scheme, authority, path string
	host                            string // of the field "host"
	length                          int64  // of the field "content-length", negative if there is none
	cookie                          int    // where in fields it is, counted from 1
	expect                          bool   // 100-continue
	timeout                         string // of the field "grpc-timeout"
	millis                          string // of the field "connect-timeout-ms"
	fields                          []field
	// names are the canonical forms of names that are not common.
	names map[string]string
}

// field is a header field.
type field struct{ name, value string }

// Bounds of head.names.
const (
	maxNames   = 64
	maxNameLen = 64
)

func (h *head) reset() {
	clear(h.fields)
	*h = head{limit: h.limit, length: -1, fields: h.fields[:0], names: h.names}
}

// add takes one field.
func (h *head) add(f hpack.HeaderField) {
	h.size += len(f.Name) + len(f.Value) + 32
	h.over = h.over || h.size > h.limit
	if h.over || h.fault {
		return
	}
	if len(f.Name) > 0 && f.Name[0] == ':' {
		h.addPseudo(f)
		return
	}
	h.regular = true
	value := strings.Trim(f.Value, " \t") // metadata of gRPC may have them, where HTTP/2 allows none
	if !validName(f.Name) || !validValue(value) {
		h.fault = true
		return
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		h.fault = true
	case "te":
		if h.fault = value != "trailers"; !h.fault {
			h.fields = append(h.fields, field{"Te", value})
		}
	case "host":
		h.fault = h.host != "" && h.host != value
		h.host = value
	case "trailer": // trailers of requests are dropped
	case "content-length":
		n, err := strconv.ParseUint(value, 10, 63)
		if err != nil || value[0] == '+' || h.length >= 0 && h.length != int64(n) {
			h.fault = true
			return
		}
		if h.length < 0 {
			h.length = int64(n)
			h.fields = append(h.fields, field{"Content-Length", value})
		}
	case "expect":
		if strings.EqualFold(value, "100-continue") {
			h.expect = true
			return
		}
		h.fields = append(h.fields, field{"Expect", value})
	case "grpc-timeout":
		h.timeout = value
		h.fields = append(h.fields, field{"Grpc-Timeout", value})
	case "connect-timeout-ms":
		h.millis = value
		h.fields = append(h.fields, field{"Connect-Timeout-Ms", value})
	case "cookie":
		if h.cookie > 0 { // RFC 9113 8.2.3
			h.fields[h.cookie-1].value += "; " + value
			return
		}
		h.fields = append(h.fields, field{"Cookie", value})
		h.cookie = len(h.fields)
	default:
		h.fields = append(h.fields, field{h.canonical(f.Name), value})
	}
}

// addPseudo takes a pseudo-header field.
func (h *head) addPseudo(f hpack.HeaderField) {
	var bit uint8
	switch f.Name {
	case ":method":
		bit, h.method = pseudoMethod, f.Value
		h.fault = !validToken(f.Value)
	case ":scheme":
		bit, h.scheme = pseudoScheme, f.Value
		h.fault = f.Value != "http" && f.Value != "https"
	case ":authority":
		bit, h.authority = pseudoAuthority, f.Value
	case ":path":
		bit, h.path = pseudoPath, f.Value
	default:
		bit = pseudoOther
		h.fault = true
	}
	h.fault = h.fault || h.regular || h.pseudo&bit != 0
	h.pseudo |= bit
}

// canonical is the form that names have in an http.Header.
func (h *head) canonical(name string) string {
	if c, ok := canonicalNames[name]; ok {
		return c
	}
	if c, ok := h.names[name]; ok {
		return c
	}
	c := http.CanonicalHeaderKey(name)
	if len(name) <= maxNameLen && len(h.names) < maxNames {
		if h.names == nil {
			h.names = map[string]string{}
		}
		h.names[name] = c
	}
	return c
}

// request makes s's request of a block that is not over the limit. It reports whether the block is that of a request.
func (h *head) request(s *stream, end bool) bool {
	if h.fault {
		return false
	}
	if h.pseudo&pseudoAuthority != 0 {
		if h.host != "" && !strings.EqualFold(h.host, h.authority) {
			return false
		}
	} else {
		h.authority = h.host
	}
	if !httpguts.ValidHostHeader(h.authority) || strings.IndexByte(h.authority, '@') >= 0 {
		return false
	}
	u := &url.URL{}
	uri := h.path
	switch {
	case h.method == http.MethodConnect:
		if h.pseudo != pseudoMethod|pseudoAuthority {
			return false
		}
		u.Host, uri = h.authority, h.authority
	case h.pseudo|pseudoAuthority != pseudoMethod|pseudoScheme|pseudoAuthority|pseudoPath:
		return false
	case h.path == "*":
		if h.method != http.MethodOptions {
			return false
		}
		u.Path = "*"
	case h.path == "" || h.path[0] != '/':
		return false
	case plainPath(h.path):
		u.Path = h.path
	default:
		var err error
		if u, err = url.ParseRequestURI(h.path); err != nil {
			return false
		}
	}
	s.expect = h.expect
	r := http.Request{
		Method: h.method, URL: u, Proto: "HTTP/2.0", ProtoMajor: 2, Header: h.header(), Body: &s.body, ContentLength: h.length,
		Host: h.authority, RemoteAddr: s.c.remote, RequestURI: uri, TLS: s.c.sock.TLS,
	}
	if end {
		if h.length > 0 {
			return false
		}
		r.Body, r.ContentLength = http.NoBody, 0
	} else {
		s.declared = h.length
	}
	if d := h.patience(); d >= leastTimeout {
		s.overdue = time.Now().Add(d - d/10)
	}
	s.begin(&r)
	return true
}

// patience is the timeout of a call that the request names, of gRPC or Connect; 0 if it names none.
func (h *head) patience() time.Duration {
	if h.timeout != "" {
		if d, err := grpcwire.ParseTimeout(h.timeout); err == nil {
			return d
		}
	}
	if h.millis != "" && len(h.millis) <= 10 { // as Connect has it
		if n, err := strconv.ParseInt(h.millis, 10, 64); err == nil {
			return time.Duration(n) * time.Millisecond
		}
	}
	return 0
}

// leastTimeout is from how long a timeout of a call on its client may reset it when that has run out, though there is no answer, as
// grpc-go does. Shorter ones would be a way to open streams and to reset them as fast as without.
const leastTimeout = 100 * time.Millisecond

// bare makes s's request of a block that is over the limit, to be answered with that.
func (h *head) bare(s *stream) {
	header := http.Header{}
	for _, f := range h.fields {
		if f.name == "Content-Type" {
			header[f.name] = []string{f.value}
		}
	}
	r := http.Request{
		Method: h.method, URL: &url.URL{Path: "/"}, Proto: "HTTP/2.0", ProtoMajor: 2, Header: header, Body: http.NoBody,
		RemoteAddr: s.c.remote, RequestURI: "/", TLS: s.c.sock.TLS,
	}
	s.over = true
	s.begin(&r)
}

// header is a fresh http.Header of the fields. The values of all names share memory.
func (h *head) header() http.Header {
	header := make(http.Header, len(h.fields))
	values := make([]string, len(h.fields))
	for i, f := range h.fields {
		if v := header[f.name]; v != nil {
			header[f.name] = append(v, f.value)
			continue
		}
		values[i] = f.value
		header[f.name] = values[i : i+1 : i+1]
	}
	return header
}

// begin gives s its request and that its context.
func (s *stream) begin(r *http.Request) {
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(s.c.ctx)
	s.req = r.WithContext(ctx)
	s.head = r.Method == http.MethodHead
}

// plainPath reports whether a path means what it says: letters, digits and some marks, no query, nothing encoded.
func plainPath(p string) bool {
	for i := range len(p) {
		if !pathChars[p[i]] {
			return false
		}
	}
	return true
}

func validToken(s string) bool {
	for i := range len(s) {
		if !httpguts.IsTokenRune(rune(s[i])) {
			return false
		}
	}
	return s != ""
}

// validName reports whether a field's name is a token without upper case.
func validName(s string) bool {
	for i := range len(s) {
		if !nameChars[s[i]] {
			return false
		}
	}
	return s != ""
}

// validValue reports whether a field's value has no control characters.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func charsOf(set string) (ok [256]bool) {
	for i := range len(set) {
		ok[set[i]] = true
	}
	return ok
}

const lowerAndDigits = "0123456789abcdefghijklmnopqrstuvwxyz"

var (
	nameChars = charsOf("!#$%&'*+-.^_`|~" + lowerAndDigits)
	pathChars = charsOf("/-._~ABCDEFGHIJKLMNOPQRSTUVWXYZ" + lowerAndDigits)
)

// canonicalNames are the canonical forms of common request fields.
var canonicalNames = func() map[string]string {
	m := map[string]string{}
	for _, name := range []string{
		"accept", "accept-charset", "accept-encoding", "accept-language", "access-control-request-headers",
		"access-control-request-method", "authorization", "cache-control", "connect-protocol-version", "connect-timeout-ms",
		"content-encoding", "content-type", "dnt", "etag", "forwarded", "from", "grpc-accept-encoding", "grpc-encoding",
		"grpc-timeout", "if-match", "if-modified-since", "if-none-match", "last-event-id", "origin", "pragma", "priority",
		"range", "referer", "sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-fetch-dest", "sec-fetch-mode",
		"sec-fetch-site", "sec-fetch-user", "te", "traceparent", "tracestate", "upgrade-insecure-requests", "user-agent",
		"via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-grpc-web", "x-request-id", "x-user-agent",
	} {
		m[name] = http.CanonicalHeaderKey(name)
	}
	return m
}()

// adequate reports whether a TLS connection is one that HTTP/2 may use (RFC 9113 9.2): of its cipher suites for TLS 1.2 those
// that have ephemeral keys and authenticate what they encrypt.
func adequate(s *tls.ConnectionState) bool {
	return s.Version > tls.VersionTLS12 || s.Version == tls.VersionTLS12 && slices.Contains([]uint16{
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	}, s.CipherSuite)
}

// body is a request's.
type body struct{ s *stream }

var _ io.ReadCloser = (*body)(nil)
