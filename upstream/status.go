package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// Error is a call's end that no backend sent: the client is told Status, which names the cluster and no address, and the
// log may have the Cause.
type Error struct {
	Cluster string
	Status  *status.Status
	Cause   error // nil if Status says all
	// HTTP is what clients of plain HTTP are told in place of the code's status; 0 for the code's.
	HTTP int
}

func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Status.Message()
	}
	return e.Status.Message() + ": " + e.Cause.Error()
}

// GRPCStatus is what the client is told.
func (e *Error) GRPCStatus() *status.Status { return e.Status }

// HTTPStatus is the HTTP status for clients of plain HTTP, 0 for that of the code.
func (e *Error) HTTPStatus() int { return e.HTTP }

func (e *Error) Unwrap() error { return e.Cause }

// errorf makes an Error; the text completes a sentence that begins with the cluster.
func (c *Cluster) errorf(code codes.Code, cause error, format string, args ...any) *Error {
	text := fmt.Sprintf("cluster %q ", c.name) + fmt.Sprintf(format, args...)
	return &Error{Cluster: c.name, Status: status.New(code, text), Cause: cause}
}

// fail turns the error of an attempt into the call's end and records whose fault it is. header and trailer say whether
// the attempt brought any response metadata.
//
// grpc-go gives one type of error for what a server sent and for its own troubles, whose texts name addresses. What
// tells them apart is that a server's status comes with metadata (content-type at least): in the trailer if it is
// trailers-only, else in the header; after a header grpc-go's own errors are known by their texts.
func (c *Cluster) fail(ctx context.Context, call *rpc.Call, err error, header, trailer bool) error {
	st := status.Convert(err)
	if trailer || header && !ownText(st.Message()) {
		call.Info.Fail(rpc.SourceUpstream)
		return err
	}
	if ctx.Err() != nil && (st.Code() == codes.Canceled || st.Code() == codes.DeadlineExceeded) {
		return c.ended(ctx, call)
	}
	if !header {
		// What of the client's can make grpc-go refuse a call: its metadata.
		if key, ok := strings.CutPrefix(st.Message(), "header key "); ok {
			call.Info.Fail(rpc.SourceClient)
			return status.Error(codes.InvalidArgument, "metadata key "+key)
		}
		if strings.HasPrefix(st.Message(), "header list size to send violates") {
			call.Info.Fail(rpc.SourceClient)
			return c.errorf(codes.ResourceExhausted, err, "does not take this much metadata")
		}
	}
	call.Info.Fail(rpc.SourceUpstream)
	return c.translate(err, st, call.Info.Endpoint != "")
}

// ended is the end of a call whose context has ended before the backend did.
func (c *Cluster) ended(ctx context.Context, call *rpc.Call) error {
	cause := rpc.CauseOf(ctx)
	deadline, ok := ctx.Deadline()
	late := ok && !time.Now().Before(deadline) // whatever the client's stream makes of it
	if gone := (clientError{}); !late && errors.As(context.Cause(ctx), &gone) {
		call.Info.Fail(rpc.SourceClient)
		return gone.error
	}
	switch {
	case late, errors.Is(cause, context.DeadlineExceeded):
		call.Info.Fail(rpc.SourceUpstream)
		return c.errorf(codes.DeadlineExceeded, nil, "did not answer within the call's deadline")
	case errors.Is(cause, rpc.ErrClientGone), errors.Is(cause, context.Canceled):
		call.Info.Fail(rpc.SourceClient)
	default:
		call.Info.Fail(rpc.SourceGateway) // a policy or a drain ended it
	}
	return cause
}

// translate words an error of grpc-go's own for clients. reached says that the call had an endpoint.
func (c *Cluster) translate(err error, st *status.Status, reached bool) error {
	text := st.Message()
	switch {
	case strings.HasPrefix(text, rstText):
		code := strings.TrimPrefix(text, rstText)
		if name, _, ok := strings.Cut(code, ";"); ok { // "…; received prior goaway: …"
			code = name
		}
		return c.errorf(st.Code(), err, "reset the stream with HTTP/2 error %s", code)
	case st.Code() == codes.DeadlineExceeded:
		return c.errorf(codes.DeadlineExceeded, err, "did not answer within the call's deadline")
	case strings.Contains(text, "larger than max"):
		e := c.errorf(codes.ResourceExhausted, err, "sent a message larger than the limit for answers")
		e.HTTP = http.StatusBadGateway // 429 would tell the client to come back
		return e
	case strings.HasPrefix(text, httpText):
		var httpStatus int
		if _, scanErr := fmt.Sscanf(text[len(httpText):], "%d", &httpStatus); scanErr == nil {
			return c.errorf(st.Code(), err, "answered with HTTP status %d instead of gRPC", httpStatus)
		}
	case st.Code() == codes.Unavailable && reached:
		return c.errorf(codes.Unavailable, err, "lost the connection to the endpoint during the call")
	case st.Code() == codes.Unavailable:
		return c.errorf(codes.Unavailable, err, "has no endpoint that can be reached")
	case st.Code() == codes.Canceled && strings.HasSuffix(text, "connection is closing"):
		return c.errorf(codes.Unavailable, err, "is being removed")
	}
	return c.errorf(st.Code(), err, "gave an answer that is not valid gRPC")
}

// The beginnings of texts that carry something worth telling.
const (
	rstText  = "stream terminated by RST_STREAM with error code: "
	httpText = "unexpected HTTP status code received from server: "
)

// ownText reports whether a status message is one that grpc-go 1.85 makes itself once response headers have come.
func ownText(text string) bool {
	for _, prefix := range ownTexts {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

var ownTexts = [...]string{
	rstText,
	httpText,
	"error reading from server: ",
	"closing transport due to: ",
	"closing connection since the server is not reading",
	"connection error: ",
	"transport is closing",
	"transport: ",
	"keepalive ping ",
	"server closed the stream without sending trailers",
	"a HEADERS frame cannot appear in the middle of a stream",
	"peer header list size exceeded limit",
	"received ", // "received N-bytes data exceeding the limit M bytes", of flow control
	"cardinality violation: ",
	"grpc: ",
	"malformed header: ",
	"protocol error: ",
	"unexpected EOF",
	"context canceled",
	"context deadline exceeded",
	"io: read/write on closed pipe",
}
