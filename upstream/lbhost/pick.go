package lbhost

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/upstream/h2client"
)

// Pick is the policy's choice for one attempt of a call.
type Pick struct {
	Conn Conn
	// Metadata is the policy's, to be sent with the attempt; usually nil.
	Metadata metadata.MD
	held     *held
	done     func(balancer.DoneInfo)
}

// Done tells the policy how the attempt ended. It, or End, must be called once for each pick.
func (p *Pick) Done(info balancer.DoneInfo) {
	p.held.calls.Add(-1)
	if p.done != nil {
		p.done(info)
	}
}

// Pick has the policy choose a connection. It waits while the policy has none to give: while it is connecting, and, if
// wait is true, also while no endpoint can be reached (wait-for-ready). Its errors carry a status: Unavailable if no
// endpoint can be reached, DeadlineExceeded or Canceled as ctx ended, the policy's own (restricted to the codes of gRFC
// A54), or are ErrClosed.
func (c *Channel) Pick(ctx context.Context, method string, wait bool) (Pick, error) {
	info := balancer.PickInfo{FullMethodName: method, Ctx: ctx}
	var last error // of the policy, while waiting
	for {
		gen := c.gen.Load()
		if gen == nil {
			return Pick{}, ErrClosed
		}
		if gen.picker != nil {
			res, err := gen.picker.Pick(info)
			if err == nil {
				if sc, ok := res.SubConn.(*subConn); ok {
					h, err := sc.pick(ctx)
					if err == nil {
						return Pick{Conn: h.Conn, Metadata: res.Metadata, held: h, done: res.Done}, nil
					}
					last = err
				}
				// The connection is gone, of which the policy is about to hear, or ctx has ended.
				if res.Done != nil {
					res.Done(balancer.DoneInfo{})
				}
			} else if err != balancer.ErrNoSubConnAvailable {
				if st, ok := status.FromError(err); ok {
					return Pick{}, allowed(st, err)
				}
				if !wait {
					return Pick{}, status.Error(codes.Unavailable, err.Error())
				}
				last = err
			}
		}
		select {
		case <-gen.replaced:
		case <-ctx.Done():
			return Pick{}, waited(ctx, last)
		}
	}
}

// Why a pick had to wait although the policy chose an endpoint.
var (
	errGone = errors.New("the connection that the policy chose is gone")
	errFull = errors.New("the endpoint takes no more calls on its connections, and another has not come")
)

// waited is the end of a pick whose context ended.
func waited(ctx context.Context, last error) error {
	code := h2client.ContextError(ctx).Code
	if last == nil {
		return status.Error(code, "while waiting for a connection")
	}
	return status.Error(code, "while waiting for a connection: "+last.Error())
}

// allowed lets a policy end calls with the codes only that gRFC A54 gives to the control plane.
func allowed(st *status.Status, err error) error {
	switch st.Code() {
	case codes.OK, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted,
		codes.OutOfRange, codes.DataLoss:
		return status.Error(codes.Internal, fmt.Sprintf("the policy failed the call with a code that it may not use: %v", err))
	default:
		return err
	}
}
