package listeners

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/transcoder"
)

// Source gives the View in force. Acquire is called once per call and must be cheap and safe for concurrent use.
type Source interface {
	Acquire() View
}

// View is what a listener sees of the gateway's Snapshot: immutable, and valid until Release.
type View interface {
	// MatchHTTP finds the HTTP rule for a request; see descriptors.Schema.MatchHTTP for its errors, beside which a bad version
	// is one. version is the API version that the request asks for in the header that the Edge has for it; "" if in none.
	MatchHTTP(verb, escapedPath, version string) (descriptors.Match, error)
	// Method finds a method by its gRPC path. It includes methods without a schema when they are to be passed through.
	Method(fullPath string) (*descriptors.Method, bool)
	// Awaiting reports whether a source of descriptors has not answered yet, ever, which may have what is not found.
	Awaiting() bool
	// Route returns what is compiled for a method that this View gave out.
	Route(m *descriptors.Method) *Route
	// Plans renders errors with the types of the schema in force.
	Plans() *transcoder.Plans
	// Edge is what holds for every request, whatever its method; nil is the zero Edge.
	Edge() *Edge
	// Release ends the use of the View. It is called exactly once.
	Release()
}

// Route is what is compiled for one method. It is immutable.
type Route struct {
	// Handler is the policy chain around the cluster.
	Handler rpc.Handler
	// Plan transcodes the method's messages; nil for an opaque method, which only gRPC and gRPC-Web can call.
	Plan *transcoder.Plan
	// Timeout bounds the whole call, the client's own timeout included; 0 for none.
	Timeout time.Duration
	// Edge is the View's.
	Edge *Edge
	// Uncompressed has answers sent as they are, whatever the client accepts: their length must not tell what is in them.
	Uncompressed bool
	// Private has caches between here and the client keep answers for nobody else: they depend on who calls.
	Private bool
	// MaxMessageBytes limits one request message (of a REST request: its decoded body); positive.
	MaxMessageBytes int
}

// Exchange is one request at a listener and what became of it, for observers. Its fields are final when End is called.
type Exchange struct {
	// Listener is the name of the listener.
	Listener string
	Request  *http.Request
	// Client is the client's address: the socket's peer, or what a trusted proxy in front says; the port is 0 if that says
	// none. It is invalid if the peer has no such address.
	Client netip.AddrPort
	// Call has no Method if none was found; neither it nor its Info is ever nil.
	Call *rpc.Call
	// Protocol is set as soon as the marks are read.
	Protocol rpc.Protocol
	Start    time.Time
	// Status is how the call ended; nil is OK.
	Status *status.Status
	// HTTPStatus is what was or would have been sent; 0 if nothing was.
	HTTPStatus int
	// Err is the error behind Status, with all that is kept from the client.
	Err error
}

// Observer sees the begin and end of every exchange, including those that match no method. Its methods are called on the
// request's goroutine and must be safe for concurrent use.
type Observer interface {
	// Begin may return a derived context for the call.
	Begin(ctx context.Context, x *Exchange) context.Context
	// Stream is called when the method of a call is found to be streaming, before policies see the call.
	Stream(x *Exchange)
	End(x *Exchange)
}
