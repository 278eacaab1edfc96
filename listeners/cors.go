package listeners

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jub0bs/cors"
)

// CORSConfig says which web pages of other origins may call a listener (Fetch standard, "CORS protocol").
type CORSConfig struct {
	// Origins as browsers send them, "https://app.example", patterns of them, "https://*.example", or "*" for all.
	Origins []string
	// Credentials lets pages send cookies and other credentials. Not together with the origin "*".
	Credentials bool
	// AllowHeaders are request headers beyond those that the protocols need; "*" is all, but for Authorization.
	AllowHeaders []string
	// ExposeHeaders are response headers that pages may read beyond those that the protocols need.
	ExposeHeaders []string
	// MaxAge is how long a browser may keep the answer to a preflight, in whole seconds; 0 is 2 hours, negative is not.
	MaxAge time.Duration
}

const defaultCORSMaxAge = 2 * time.Hour

// corsRequestHeaders are those that the clients of some protocol set and browsers ask leave for.
var corsRequestHeaders = []string{
	"Authorization", "Connect-Accept-Encoding", "Connect-Content-Encoding", "Connect-Protocol-Version", "Connect-Timeout-Ms",
	"Content-Encoding", "Content-Type", "Grpc-Accept-Encoding", "Grpc-Encoding", "Grpc-Timeout", "Last-Event-Id",
	"Traceparent", "Tracestate", "X-Grpc-Web", "X-Request-Id", "X-User-Agent",
}

// corsResponseHeaders are those that the clients of some protocol read.
var corsResponseHeaders = []string{
	"Allow", "Connect-Accept-Encoding", "Connect-Content-Encoding", "Content-Encoding", "Etag", "Grpc-Accept-Encoding",
	"Grpc-Encoding", "Grpc-Message", "Grpc-Status", "Grpc-Status-Details-Bin", "Location", "Retry-After",
	"Www-Authenticate", "X-Request-Id",
}

// CORS is a compiled CORSConfig. It answers preflights by itself, and adds to other answers what lets pages of allowed
// origins read them. Requests of other origins are served all the same: it is the browser that keeps their pages from the
// answer. It is immutable.
type CORS struct {
	m *cors.Middleware
	// headers are the request headers allowed, in lower case; all says that any is.
	headers map[string]bool
	all     bool
	// credentials says that pages may send cookies.
	credentials bool
}

// NewCORS compiles c. The error joins all faults of the settings.
func NewCORS(c CORSConfig) (*CORS, error) {
	age := c.MaxAge
	switch {
	case age == 0:
		age = defaultCORSMaxAge
	case age < 0:
		age = -time.Second
	}
	cfg := cors.Config{
		Origins:         c.Origins,
		Credentialed:    c.Credentials,
		Methods:         []string{"*"},
		RequestHeaders:  slices.Concat(corsRequestHeaders, c.AllowHeaders),
		MaxAgeInSeconds: int(age / time.Second),
		ResponseHeaders: slices.Concat(corsResponseHeaders, c.ExposeHeaders),
	}
	if _, err := cors.NewMiddleware(cfg); err != nil {
		return nil, err
	}
	out := &CORS{headers: map[string]bool{}, credentials: c.Credentials}
	for _, name := range cfg.RequestHeaders {
		out.headers[strings.ToLower(name)] = true
		out.all = out.all || name == "*"
	}
	// The search of cors 1.0.1 in a set of more than three names misses some that are there, so the names are looked up
	// here and not given to it.
	cfg.RequestHeaders = nil
	var err error
	out.m, err = cors.NewMiddleware(cfg)
	return out, err
}

// wrap is next with preflights answered before it.
func (c *CORS) wrap(next http.Handler) http.Handler {
	wrapped := c.m.Wrap(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions && len(r.Header["Access-Control-Request-Headers"]) > 0 {
			asked := r.Header["Access-Control-Request-Headers"]
			delete(r.Header, "Access-Control-Request-Headers")
			if c.allows(asked) {
				w = &preflight{w, asked}
			}
		}
		wrapped.ServeHTTP(w, r)
	})
}

// allows reports whether all of the names in Access-Control-Request-Headers values are allowed.
func (c *CORS) allows(values []string) bool {
	if c.all {
		return true
	}
	for _, v := range values {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.Trim(name, " \t"); name != "" && !c.headers[strings.ToLower(name)] {
				return false
			}
		}
	}
	return true
}

// preflight adds the allowed request headers to the answer to a preflight whose origin is allowed.
type preflight struct {
	http.ResponseWriter
	allowed []string
}

// WriteHeader implements http.ResponseWriter.
func (p *preflight) WriteHeader(code int) {
	h := p.Header()
	if len(h["Access-Control-Allow-Origin"]) > 0 {
		h["Access-Control-Allow-Headers"] = p.allowed
	}
	p.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController: a call that only looks like a preflight gets through.
func (p *preflight) Unwrap() http.ResponseWriter { return p.ResponseWriter }
