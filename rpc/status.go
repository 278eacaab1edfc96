package rpc

import (
	"context"
	"errors"
	"io"
	"maps"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ErrClientGone is the cancellation cause of a call whose client has left.
var ErrClientGone = errors.New("client closed the connection or cancelled the request")

// ErrHeaderSent is what SendHeader returns when the response is already committed: a fault of the caller.
var ErrHeaderSent = errors.New("response header sent twice or after a message")

// StatusOf maps any error to the status the client is told; it is the one place that does. A gRPC status anywhere in
// err's chain is kept as it is (its code forced into 0…16: others become Unknown). Context errors become Canceled or
// DeadlineExceeded. Anything else is Internal with a fixed text, since its own may name hosts, files or code: log err
// itself. nil is OK.
func StatusOf(err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	var gs interface{ GRPCStatus() *status.Status }
	if errors.As(err, &gs) {
		if st := gs.GRPCStatus(); st != nil {
			return clampCode(st)
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, "deadline exceeded")
	case errors.Is(err, context.Canceled), errors.Is(err, ErrClientGone):
		return status.New(codes.Canceled, "the call was cancelled")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return status.New(codes.Internal, "stream ended inside a message")
	}
	return status.New(codes.Internal, "internal error")
}

// withHeader is a refusal that comes with response metadata.
type withHeader struct {
	error
	header metadata.MD
}

func (e *withHeader) Unwrap() error { return e.error }

// WithHeader is err with response metadata for the client that is refused, such as "www-authenticate" and "retry-after".
// Clients of HTTP get them as header fields of that name, clients of gRPC in a trailers-only answer. They are lost if the
// response has begun. err must not be nil.
func WithHeader(err error, md metadata.MD) error { return &withHeader{err, md} }

// HeaderOf gives the metadata of all WithHeader in err's chain; what is further out wins, and a name without values there
// takes away what is further in. The result may be changed.
func HeaderOf(err error) metadata.MD {
	var md metadata.MD
	for e, ok := errors.AsType[*withHeader](err); ok; e, ok = errors.AsType[*withHeader](e.error) {
		for k, v := range e.header {
			if _, there := md[k]; !there {
				if md == nil {
					md = metadata.MD{}
				}
				md[k] = v
			}
		}
	}
	maps.DeleteFunc(md, func(_ string, v []string) bool { return len(v) == 0 })
	return md
}

// Known reports whether err carries a meaning for the client. StatusOf turns an error that does not into a bare
// Internal, so that its text belongs in the log.
func Known(err error) bool {
	var gs interface{ GRPCStatus() *status.Status }
	return err == nil || errors.As(err, &gs) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, context.Canceled) || errors.Is(err, ErrClientGone) || errors.Is(err, io.ErrUnexpectedEOF)
}

// CauseOf returns why ctx ended, as an error StatusOf understands: the status given as the cancellation cause if there
// is one, else the context's own error. nil while ctx lives.
func CauseOf(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if Known(cause) {
		return cause
	}
	return err
}

// clampCode replaces a code that gRPC does not define by Unknown, as the gRPC specification asks of receivers.
func clampCode(st *status.Status) *status.Status {
	if st.Code() <= codes.Unauthenticated {
		return st
	}
	p := st.Proto()
	p.Code = int32(codes.Unknown)
	return status.FromProto(p)
}
