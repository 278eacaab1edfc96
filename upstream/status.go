package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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

// fail turns the error of an attempt into the call's end and records whose fault it is.
func (c *Cluster) fail(ctx context.Context, call *rpc.Call, err error) error {
	var f *fault
	if !errors.As(err, &f) { // a server's status
		call.Info.Fail(rpc.SourceUpstream)
		return err
	}
	if ctx.Err() != nil && (f.code == codes.Canceled || f.code == codes.DeadlineExceeded) {
		return c.ended(ctx, call)
	}
	switch f.kind {
	case faultMetadata:
		call.Info.Fail(rpc.SourceClient)
		return status.Error(codes.InvalidArgument, "metadata key "+f.detail)
	case faultMetadataSize:
		call.Info.Fail(rpc.SourceClient)
		return c.errorf(codes.ResourceExhausted, f, "does not take this much metadata")
	case faultRequestSize:
		call.Info.Fail(rpc.SourceClient)
		return c.errorf(codes.ResourceExhausted, f, "does not take messages as large as this")
	default:
		call.Info.Fail(rpc.SourceUpstream)
		return c.translate(f)
	}
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
		return c.errorf(codes.DeadlineExceeded, nil, "did not end the call within its deadline")
	case errors.Is(cause, rpc.ErrClientGone), errors.Is(cause, context.Canceled), rpc.StatusOf(cause).Code() == codes.Unauthenticated:
		call.Info.Fail(rpc.SourceClient) // who has left, or whose credential is over
	default:
		call.Info.Fail(rpc.SourceGateway) // a policy or a drain ended it
	}
	return cause
}

// translate words what went wrong on the way for clients.
func (c *Cluster) translate(f *fault) error {
	switch {
	case f.kind == faultReset:
		return c.errorf(f.code, f, "reset the stream with HTTP/2 error %s", f.detail)
	case f.code == codes.DeadlineExceeded:
		return c.errorf(codes.DeadlineExceeded, f, "did not end the call within its deadline")
	case f.kind == faultAnswerSize:
		e := c.errorf(codes.ResourceExhausted, f, "sent a message larger than the limit for answers")
		e.HTTP = http.StatusBadGateway // 429 would tell the client to come back
		return e
	case f.kind == faultHTTP:
		return c.errorf(f.code, f, "answered with HTTP status %s instead of gRPC", f.detail)
	case f.kind == faultLost:
		return c.errorf(codes.Unavailable, f, "lost the connection to the endpoint during the call")
	case f.kind == faultUnreached:
		return c.errorf(codes.Unavailable, f, "has no endpoint that can be reached")
	case f.kind == faultClosing:
		return c.errorf(codes.Unavailable, f, "is being removed")
	}
	return c.errorf(f.code, f, "gave an answer that is not valid gRPC")
}
