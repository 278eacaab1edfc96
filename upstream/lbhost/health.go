package lbhost

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// health is a policy's interest in the health of a subConn, while it is in one state.
type health struct {
	ready bool   // the state that the policy knows is Ready
	stop  func() // ends the watch; nil while there is none
}

// resetHealth drops the listener, as the policy is about to hear of state s.
func (sc *subConn) resetHealth(s connectivity.State) {
	sc.healthMu.Lock()
	defer sc.healthMu.Unlock()
	if sc.health.stop != nil {
		sc.health.stop()
	}
	sc.health = &health{ready: s == connectivity.Ready}
}

// RegisterHealthListener has listener hear of the endpoint's health as long as the subConn stays Ready and no other is
// registered; nil drops the present one. Without health checks it hears Ready, once.
func (sc *subConn) RegisterHealthListener(listener func(balancer.SubConnState)) {
	sc.healthMu.Lock()
	defer sc.healthMu.Unlock()
	if sc.health.stop != nil {
		sc.health.stop()
		sc.health.stop = nil
	}
	if !sc.health.ready {
		return
	}
	h := &health{ready: true}
	sc.health = h
	if listener == nil {
		return
	}
	tell := func(s connectivity.State, err error) {
		sc.channel.calls.schedule(func() {
			sc.healthMu.Lock()
			defer sc.healthMu.Unlock()
			if sc.health == h {
				listener(balancer.SubConnState{ConnectivityState: s, ConnectionError: err})
			}
		})
	}
	service := sc.channel.cfg.HealthService
	if service == nil {
		tell(connectivity.Ready, nil)
		return
	}
	ctx, cancel := context.WithCancel(sc.channel.ctx)
	h.stop = cancel
	sc.channel.start(func() {
		defer cancel()
		sc.watch(ctx, *service, tell)
	})
}

// watch follows the health of a service on the subConn until ctx ends (health-checking.md, "Client-side"). An endpoint
// that does not implement the health service is healthy.
func (sc *subConn) watch(ctx context.Context, service string, tell func(connectivity.State, error)) {
	failed := 0
	for ctx.Err() == nil {
		if failed > 0 {
			timer := time.NewTimer(backoffOf(backoff.DefaultConfig, failed-1))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
		tell(connectivity.Connecting, nil)
		answered, err := sc.watchOnce(ctx, service, tell)
		if status.Code(err) == codes.Unimplemented {
			tell(connectivity.Ready, nil)
			sc.channel.cfg.Log.Debug("endpoint has no health service, taken for healthy")
			return
		}
		if ctx.Err() != nil {
			return
		}
		tell(connectivity.TransientFailure, fmt.Errorf("health check failed: %w", err))
		if failed++; answered {
			failed = 1
		}
	}
}

// watchOnce makes one Watch call and reports whether there was any answer, and how it ended.
func (sc *subConn) watchOnce(ctx context.Context, service string, tell func(connectivity.State, error)) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := sc.stub.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, healthpb.Health_Watch_FullMethodName)
	if err != nil {
		return false, err
	}
	// An error of sending is told again by receiving, with the status.
	_ = s.SendMsg(&healthpb.HealthCheckRequest{Service: service})
	_ = s.CloseSend()
	for {
		var r healthpb.HealthCheckResponse
		if err := s.RecvMsg(&r); err != nil {
			return answered, err
		}
		answered = true
		if r.Status == healthpb.HealthCheckResponse_SERVING {
			tell(connectivity.Ready, nil)
		} else {
			tell(connectivity.TransientFailure, fmt.Errorf("the endpoint says that it is %v", r.Status))
		}
	}
}
