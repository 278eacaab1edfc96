package upstream

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/upstream/loadaware"
)

// backend is the transport below a Cluster: name resolution, balancing and connections. It makes single attempts and
// knows nothing of clients, retries or limits. Its errors carry a gRPC status: a server's, or they are *fault.
type backend interface {
	// Prepare takes out of a call's metadata what must not go, unless that is left out of each attempt. It is called once per call.
	Prepare(header metadata.MD)
	// Unary makes one attempt at a call of one message each way. It borrows header and req. The answer's reply holds one
	// reference if err is nil; its other fields are filled as far as the attempt came, err or not.
	Unary(ctx context.Context, m *descriptors.Method, header metadata.MD, req rpc.Message, at *attempt) (answer, error)
	// Stream opens a stream, which ends when ctx does. It borrows header until it returns.
	Stream(ctx context.Context, m *descriptors.Method, header metadata.MD, at *attempt) (backendStream, error)
	// Repeats says whether Stream makes an attempt again itself that no server has seen.
	Repeats() bool
	// Load tells how many calls are in flight.
	Load(calls int64)
	// Endpoints is empty if the balancer is not package loadaware's.
	Endpoints() []loadaware.EndpointStats
	Conn() grpc.ClientConnInterface
	State() connectivity.State
	// Close ends all calls and waits for what the backend has started.
	Close() error
}

// attempt is one of a call's.
type attempt struct {
	n int // from 1
	// Attempt is for the balancer. Saturated is true if no endpoint may be given another call now.
	loadaware.Attempt
}

// answer is what came back of a unary attempt. answered says that a header came; else it was a trailers-only answer, or
// none. Both maps belong to whoever receives the answer.
type answer struct {
	reply           rpc.Message
	header, trailer metadata.MD
	answered        bool
	endpoint        string
}

// backendStream is the upstream side of a streaming call. One goroutine may call Send and CloseSend while another calls
// the rest. The stream must be received from until Recv fails, and no further.
type backendStream interface {
	// Send borrows m. It blocks for flow control. io.EOF means that the call has ended: Recv says how.
	Send(m *rpc.Message) error
	CloseSend() error
	// Header waits for the response metadata. ok is false when the call has ended without any.
	Header() (md metadata.MD, ok bool)
	// Recv sets *m to the next message with one reference. io.EOF is the end with status OK.
	Recv(m *rpc.Message) error
	// Trailer may be called after Recv has failed.
	Trailer() metadata.MD
	// Endpoint is the address of the backend, "" until Header has returned.
	Endpoint() string
}

// fault is the end of an attempt that no server sent: what went wrong on the way.
type fault struct {
	kind faultKind
	code codes.Code
	// detail is what kind says.
	detail string
	// unseen says that no server has seen the attempt, so that it may be made again whatever its method.
	unseen bool
	// cause is for the log and may name addresses.
	cause error
}

type faultKind uint8

// The kinds of fault.
const (
	faultAnswer       faultKind = iota // the answer is not valid gRPC
	faultAnswerSize                    // a message of it is too large
	faultReset                         // RST_STREAM; detail is the name of the HTTP/2 error code
	faultHTTP                          // an HTTP status without a gRPC status; detail is its number
	faultLost                          // the connection broke during the attempt
	faultUnreached                     // no endpoint was reached
	faultClosing                       // the backend is being closed
	faultMetadata                      // the client's metadata cannot be sent; detail is the key and what is wrong
	faultMetadataSize                  // it is more than the server takes
	faultRequestSize                   // a message of the client's is larger than the service config lets it be
)

func (f *fault) Error() string              { return f.cause.Error() }
func (f *fault) Unwrap() error              { return f.cause }
func (f *fault) GRPCStatus() *status.Status { return status.New(f.code, f.cause.Error()) }
