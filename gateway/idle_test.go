package gateway

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/descriptors"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
)

// pacedStream gives a message every so often, of so many, and then waits.
type pacedStream struct {
	rpc.Stream
	every time.Duration
	left  int
}

func (s *pacedStream) Recv(ctx context.Context) (rpc.Message, error) {
	wait := time.NewTimer(s.every)
	defer wait.Stop()
	if s.left == 0 {
		wait.Reset(1000 * time.Hour)
	}
	select {
	case <-wait.C:
		s.left--
		return rpc.Message{}, nil
	case <-ctx.Done():
		return rpc.Message{}, rpc.CauseOf(ctx)
	}
}

func TestStreamIdle(t *testing.T) {
	drain := func(ctx context.Context, call *rpc.Call) error {
		for {
			if _, err := call.Stream.Recv(ctx); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	for _, tc := range []struct {
		name   string
		policy *configv1.Policy
		every  time.Duration
		count  int
		least  time.Duration // when it ends, and a quarter of the limit later at most
	}{
		{"silent", &configv1.Policy{}, time.Second, 0, 5 * time.Minute},
		{"as configured", &configv1.Policy{StreamIdleTimeout: durationpb.New(10 * time.Second)}, time.Second, 0, 10 * time.Second},
		{"messages keep it alive", &configv1.Policy{StreamIdleTimeout: durationpb.New(10 * time.Second)}, 9 * time.Second, 20, 190 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := new(builder).idle(descriptors.Opaque("/a.B/C"), Effective{Policy: tc.policy})(drain)
				begin := time.Now()
				err := h(t.Context(), &rpc.Call{Stream: &pacedStream{every: tc.every, left: tc.count}})
				if status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("it ends with %v", err)
				}
				if took := time.Since(begin); took < tc.least || took > tc.least+streamIdleOf(tc.policy)/idleLooks {
					t.Errorf("it ends after %v, want %v or little more", took, tc.least)
				}
			})
		})
	}
}
