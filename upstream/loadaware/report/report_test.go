package report

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// transport catches the trailer that an interceptor sets.
type transport struct {
	grpc.ServerTransportStream
	trailer metadata.MD
}

func (t *transport) SetTrailer(md metadata.MD) error { t.trailer = md; return nil }

func unary(t *testing.T, r *Reporter, method string, h grpc.UnaryHandler) *v3orcapb.OrcaLoadReport {
	t.Helper()
	tr := &transport{}
	ctx := grpc.NewContextWithServerTransportStream(t.Context(), tr)
	_, _ = r.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, h)
	v := tr.trailer["endpoint-load-metrics-bin"]
	if len(v) != 1 {
		t.Fatalf("trailer %v, want one report", tr.trailer)
	}
	var out v3orcapb.OrcaLoadReport
	if err := proto.Unmarshal([]byte(v[0]), &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

func TestUnaryReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{Capacity: 4, Utilization: func() float64 { return 0.1 }})
		var inner *v3orcapb.OrcaLoadReport
		time.Sleep(time.Second) // of the bubble
		outer := unary(t, r, "/s/m", func(context.Context, any) (any, error) {
			inner = unary(t, r, "/s/n", func(context.Context, any) (any, error) {
				time.Sleep(20 * time.Millisecond)
				return nil, errors.New("boom")
			})
			time.Sleep(20 * time.Millisecond)
			return nil, nil
		})
		if got := inner.NamedMetrics["requests_in_flight"]; got != 1 {
			t.Errorf("the inner call reports %v in flight, want 1", got)
		}
		if got := inner.ApplicationUtilization; got != 0.25 {
			t.Errorf("the inner call reports utilization %v, want 1/4", got)
		}
		if got := outer.ApplicationUtilization; got != 0.1 {
			t.Errorf("the outer call reports utilization %v, want the function's 0.1", got)
		}
		if got := outer.NamedMetrics["uptime_seconds"]; math.Abs(got-1.04) > 1e-6 {
			t.Errorf("uptime %v, want 1.04", got)
		}
		if got := outer.NamedMetrics["latency_seconds"]; math.Abs(got-0.04) > 1e-6 {
			t.Errorf("latency %v, want that of the call that did not fail, 0.04", got)
		}
		if rate := outer.Eps / outer.RpsFractional; math.Abs(rate-0.5) > 0.01 {
			t.Errorf("error rate %v, want 0.5", rate)
		}
		if probe := unary(t, r, "/grpc.health.v1.Health/Check", func(context.Context, any) (any, error) { return nil, nil }); probe.NamedMetrics["requests_in_flight"] != 0 ||
			math.Abs(probe.RpsFractional-outer.RpsFractional) > 0.01 {
			t.Errorf("a health check reports %v, want it not counted", probe)
		}
	})
}

func TestMeterRates(t *testing.T) {
	var m Meter
	now := time.Duration(0)
	for range 6000 { // 100 per second for a minute, each tenth failing
		now += 10 * time.Millisecond
		m.Begin()
		m.End(now, time.Millisecond, int(now/(10*time.Millisecond))%10 == 0)
	}
	l := m.Read(now)
	if math.Abs(l.PerSecond-100) > 2 || math.Abs(l.ErrorsPerSecond-10) > 1 || l.Latency != time.Millisecond {
		t.Errorf("load %+v, want 100 and 10 per second, 1ms", l)
	}
	if l = m.Read(now + time.Minute); l.PerSecond > 1 {
		t.Errorf("a minute later the rate is %v, want about none", l.PerSecond)
	}
}

func BenchmarkUnary(b *testing.B) {
	r := New(Config{Capacity: 4})
	ctx := grpc.NewContextWithServerTransportStream(b.Context(), &transport{})
	info := &grpc.UnaryServerInfo{FullMethod: "/s/m"}
	h := func(context.Context, any) (any, error) { return nil, nil }
	b.ReportAllocs()
	for b.Loop() {
		_, _ = r.Unary(ctx, nil, info, h)
	}
}
