package listeners

import (
	"slices"
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
type CORS struct{ m *cors.Middleware }

// NewCORS compiles c. The error joins all faults of the settings.
func NewCORS(c CORSConfig) (*CORS, error) {
	age := c.MaxAge
	switch {
	case age == 0:
		age = defaultCORSMaxAge
	case age < 0:
		age = -time.Second
	}
	m, err := cors.NewMiddleware(cors.Config{
		Origins:         c.Origins,
		Credentialed:    c.Credentials,
		Methods:         []string{"*"},
		RequestHeaders:  slices.Concat(corsRequestHeaders, c.AllowHeaders),
		MaxAgeInSeconds: int(age / time.Second),
		ResponseHeaders: slices.Concat(corsResponseHeaders, c.ExposeHeaders),
	})
	if err != nil {
		return nil, err
	}
	return &CORS{m}, nil
}
