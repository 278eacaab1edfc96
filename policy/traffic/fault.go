package traffic

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// reasonInjected is that of an injected error, as in google.rpc.ErrorInfo.
const reasonInjected = "FAULT_INJECTED"

// Fault makes calls late, or fail, or both.
type Fault struct {
	// When are the conditions that calls must meet, all of them.
	When []Condition
	// Share of those calls, 0 … 1, at random.
	Share float64
	// Delay is how long the call waits before it goes on, or fails.
	Delay time.Duration
	// Abort is the code that the call ends with; OK lets it go on.
	Abort codes.Code
}

// Faults is the middleware that injects faults, each on its own, in their order; nil if none of them ever happens.
func Faults(faults []Fault) rpc.Middleware {
	var live []injection
	for _, f := range faults {
		if f.Share <= 0 || f.Delay <= 0 && f.Abort == codes.OK {
			continue
		}
		in := injection{Fault: f}
		if f.Abort != codes.OK {
			st := status.New(f.Abort, "injected by the gateway's configuration")
			if with, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reasonInjected, Domain: "transom"}); err == nil {
				st = with
			}
			in.err = st.Err()
		}
		live = append(live, in)
	}
	if len(live) == 0 {
		return nil
	}
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			for i := range live {
				if err := live[i].run(ctx, call); err != nil {
					call.Info.Fail(rpc.SourceGateway)
					return err
				}
			}
			return next(ctx, call)
		}
	}
}

// injection is a Fault with the error that it ends calls with; nil for none.
type injection struct {
	Fault

	err error
}

func (f *injection) run(ctx context.Context, call *rpc.Call) error {
	if !all(f.When, call.Header) || !chosen(f.Share) {
		return nil
	}
	if f.Delay > 0 {
		call.Info.Note("fault", "delay")
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return rpc.CauseOf(ctx)
		}
	}
	if f.err != nil {
		call.Info.Refuse("fault", "abort")
	}
	return f.err
}
