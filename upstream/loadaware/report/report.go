// Package report makes a gRPC server tell its callers how loaded it is, in the trailer of every call, as the balancer of
// transom understands it and grpc-go's weighted_round_robin does too.
//
//	r := report.New(report.Config{Capacity: 64})
//	s := grpc.NewServer(grpc.ChainUnaryInterceptor(r.Unary), grpc.ChainStreamInterceptor(r.Stream))
//
// Capacity is how many requests the server works at without any of them waiting: worker slots, or connections to the
// database behind it. A server that has no such number, because it is bound by CPU, gives Utilization a function that
// returns its use of CPU from 0 to 1.
//
// The report is ORCA's OrcaLoadReport in the trailer endpoint-load-metrics-bin, with
//
//	application_utilization          requests in flight / Capacity, or what Utilization says
//	rps_fractional, eps              requests and failed requests per second, over about ten seconds
//	requests_in_flight (named)       requests at the server, the reporting one not included
//	uptime_seconds (named)           age of the server
//	latency_seconds (named)          mean time per request, over about the last 64 requests
//
// Put the interceptor first, so that it sees the whole of a call. Calls of grpc.health.v1.Health are not counted, but a
// Check carries the report too: balancers probe with it. Do not use it together with orca.CallMetricsServerOption: a
// second report in one trailer makes both invalid.
package report

import (
	"context"
	"strings"
	"time"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Config says what the server's utilization is. One of its fields must be set; with both, the greater value counts.
type Config struct {
	// Capacity is the number of requests that the server works at without any of them waiting.
	Capacity int
	// Utilization returns the server's utilization, 1 when it can do no more. It is called at the end of every request and
	// must be fast.
	Utilization func() float64
}

// Reporter counts a server's requests and reports.
type Reporter struct {
	cfg   Config
	epoch time.Time
	meter Meter
}

// New returns a Reporter for a server that starts now.
func New(cfg Config) *Reporter { return &Reporter{cfg: cfg, epoch: time.Now()} }

// Unary is a grpc.UnaryServerInterceptor.
func (r *Reporter) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	end := r.begin(info.FullMethod)
	resp, err := next(ctx, req)
	// An error here means that the trailer cannot be sent any more; the call is over.
	_ = grpc.SetTrailer(ctx, end(err))
	return resp, err
}

// Stream is a grpc.StreamServerInterceptor.
func (r *Reporter) Stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	end := r.begin(info.FullMethod)
	err := next(srv, s)
	s.SetTrailer(end(err))
	return err
}

const healthService = "/grpc.health.v1.Health/"

func (r *Reporter) begin(method string) (end func(error) metadata.MD) {
	if strings.HasPrefix(method, healthService) {
		return func(error) metadata.MD { return r.trailer(time.Since(r.epoch)) }
	}
	started := time.Since(r.epoch)
	r.meter.Begin()
	return func(err error) metadata.MD {
		now := time.Since(r.epoch)
		r.meter.End(now, now-started, serverFault(err))
		return r.trailer(now)
	}
}

// serverFault says whether err counts as an error of the server's.
func serverFault(err error) bool {
	switch status.Code(err) {
	case codes.Unknown, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	default:
		return false
	}
}

// report is the server's load at now, the time since New.
func (r *Reporter) report(now time.Duration) *v3orcapb.OrcaLoadReport {
	l := r.meter.Read(now)
	u := 0.
	if r.cfg.Capacity > 0 {
		u = float64(l.InFlight) / float64(r.cfg.Capacity)
	}
	if r.cfg.Utilization != nil {
		u = max(u, r.cfg.Utilization())
	}
	named := map[string]float64{"requests_in_flight": float64(l.InFlight), "uptime_seconds": now.Seconds()}
	if l.Latency > 0 {
		named["latency_seconds"] = l.Latency.Seconds()
	}
	return &v3orcapb.OrcaLoadReport{
		ApplicationUtilization: u, RpsFractional: l.PerSecond, Eps: l.ErrorsPerSecond, NamedMetrics: named,
	}
}

func (r *Reporter) trailer(now time.Duration) metadata.MD {
	b, err := proto.Marshal(r.report(now))
	if err != nil {
		return nil // a message of numbers always encodes
	}
	return metadata.MD{"endpoint-load-metrics-bin": {string(b)}}
}
