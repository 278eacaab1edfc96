package lbhost

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservice "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/encoding/gzip"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"transom/upstream/h2client"
)

// network is a channel to real servers.
func network(t *testing.T, b balancer.Builder, healthService *string, addrs ...string) *Channel {
	t.Helper()
	r := manual.NewBuilderWithScheme("network")
	var s resolver.State
	for _, a := range addrs {
		s.Addresses = append(s.Addresses, resolver.Address{Addr: a})
	}
	r.InitialState(s)
	c, err := New(Config{
		Target: resolver.Target{URL: url.URL{Scheme: "network", Path: "/n"}}, Resolver: r, Balancer: b, Authority: "bank",
		Dial: func(ctx context.Context, addr resolver.Address) (Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr.Addr)
			if err != nil {
				return nil, err
			}
			hc, err := h2client.New(ctx, nc, h2client.Config{Authority: "bank", AcceptEncoding: "gzip"})
			if err != nil {
				return nil, err
			}
			return hc, nil
		},
		ConnectTimeout: 5 * time.Second, Backoff: backoff.DefaultConfig, MaxConns: 2, HealthService: healthService,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// serve starts a server with what register adds.
func serve(t *testing.T, register func(*grpc.Server), opts ...grpc.ServerOption) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(opts...)
	register(s)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ln) })
	t.Cleanup(func() { s.Stop(); wg.Wait() })
	return ln.Addr().String()
}

// healthServer answers Check with the metadata that it got, and an error for a service that it does not know.
type healthServer struct{ *grpchealth.Server }

func (h healthServer) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if err := grpc.SetHeader(ctx, metadata.Pairs("h", md.Get("k")[0])); err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs("t", "1")); err != nil {
		return nil, err
	}
	if len(md.Get("zip")) > 0 {
		if err := grpc.SetSendCompressor(ctx, gzip.Name); err != nil {
			return nil, err
		}
	}
	return h.Server.Check(ctx, r)
}

// Generated clients find what a grpc.ClientConn would give them.
func TestStub(t *testing.T) {
	addr := serve(t, func(s *grpc.Server) { healthpb.RegisterHealthServer(s, healthServer{grpchealth.NewServer()}) })
	c := network(t, base.NewBalancerBuilder("first", firstBuilder{}, base.Config{}), nil, addr)
	client := healthpb.NewHealthClient(c.Stub())
	for _, zip := range []bool{false, true} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "k", "v")
		if zip {
			ctx = metadata.AppendToOutgoingContext(ctx, "zip", "1")
		}
		var header, trailer metadata.MD
		var p peer.Peer
		var finished []error
		r, err := client.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&p),
			grpc.OnFinish(func(err error) { finished = append(finished, err) }))
		if err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("Check: %v, %v", r, err)
		}
		if header.Get("h")[0] != "v" || trailer.Get("t")[0] != "1" || p.Addr.String() != addr || len(finished) != 1 || finished[0] != nil {
			t.Errorf("header %v, trailer %v, peer %v, finished %v", header, trailer, p.Addr, finished)
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "k", "v")
	if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: "nobody's"}); status.Code(err) != codes.NotFound {
		t.Errorf("Check of an unknown service: %v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	w, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := w.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("Watch: %v, %v", r, err)
	}
	if w.Context() != ctx {
		t.Error("the context is another")
	}
	cancel()
	for range 2 {
		if _, err := w.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("Watch at the end: %v", err)
		}
	}
	c.Close()
	if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("Check when closed: %v", err)
	}
}

// A call that nobody receives from any more ends for the policy with its context: as one whose deadline has passed, if the context
// that it is derived from ended so.
func TestStubGivenUp(t *testing.T) {
	addr := serve(t, func(s *grpc.Server) { healthpb.RegisterHealthServer(s, grpchealth.NewServer()) })
	for cause, want := range map[error]codes.Code{context.Canceled: codes.Canceled, context.DeadlineExceeded: codes.DeadlineExceeded} {
		ends := make(chan error, 1)
		c := network(t, base.NewBalancerBuilder("first", toldBuilder{ends}, base.Config{}), nil, addr)
		parent, end := context.WithCancelCause(t.Context())
		ctx, cancel := context.WithCancel(parent)
		defer cancel()
		w, err := healthpb.NewHealthClient(c.Stub()).Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
		end(cause)
		if err := <-ends; status.Code(err) != want {
			t.Errorf("%v: the policy is told %v, want %v", cause, err, want)
		}
	}
}

// toldBuilder is a policy over one connection that tells how calls ended.
type toldBuilder struct{ ends chan error }

func (b toldBuilder) Build(info base.PickerBuildInfo) balancer.Picker {
	for sc := range info.ReadySCs {
		return firstPicker{balancer.PickResult{SubConn: sc, Done: func(d balancer.DoneInfo) { b.ends <- d.Err }}}
	}
	return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
}

func TestDecompress(t *testing.T) {
	for _, tt := range []struct {
		encoding string
		code     codes.Code
	}{{"", codes.Internal}, {"identity", codes.Internal}, {"br", codes.Internal}, {"gzip", codes.Internal}} {
		_, err := Decompress(mem.BufferSlice{mem.SliceBuffer("no gzip")}, tt.encoding, 100)
		if e := (*h2client.Error)(nil); !errors.As(err, &e) || e.Code != tt.code {
			t.Errorf("%q: %v, want %v", tt.encoding, err, tt.code)
		}
	}
}

// healthPolicy is a policy over one connection that follows its health.
type healthPolicy struct {
	base.PickerBuilder
	states chan connectivity.State
	oob    chan *v3orcapb.OrcaLoadReport
}

func (p *healthPolicy) Name() string { return "health" }

func (p *healthPolicy) Build(cc balancer.ClientConn, _ balancer.BuildOptions) balancer.Balancer {
	return &healthBalancer{p: p, cc: cc}
}

type healthBalancer struct {
	p  *healthPolicy
	cc balancer.ClientConn
	sc balancer.SubConn
}

func (b *healthBalancer) OnLoadReport(r *v3orcapb.OrcaLoadReport) { b.p.oob <- r }

func (b *healthBalancer) UpdateClientConnState(s balancer.ClientConnState) error {
	if got := b.cc.Target(); got != "network:///n" { //nolint:staticcheck // deprecated, but some policies still ask
		return errors.New("the target is " + got)
	}
	b.cc.MetricsRecorder().RecordInt64Count(nil, 1)
	var err error
	//nolint:staticcheck // one address, as it will be
	b.sc, err = b.cc.NewSubConn(s.ResolverState.Addresses, balancer.NewSubConnOptions{StateListener: func(s balancer.SubConnState) {
		if s.ConnectivityState != connectivity.Ready {
			return
		}
		orca.RegisterOOBListener(b.sc, b, orca.OOBListenerOptions{ReportInterval: time.Second})
		b.sc.RegisterHealthListener(func(s balancer.SubConnState) { b.p.states <- s.ConnectivityState })
	}})
	b.sc.Connect()
	return err
}

func (*healthBalancer) ResolverError(error)                                        {}
func (*healthBalancer) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}
func (*healthBalancer) Close()                                                     {}
func (*healthBalancer) ExitIdle()                                                  {}

// reporter is a server's out-of-band load service.
type reporter struct {
	orcaservice.UnimplementedOpenRcaServiceServer
}

func (reporter) StreamCoreMetrics(_ *orcaservice.OrcaLoadReportRequest, s orcaservice.OpenRcaService_StreamCoreMetricsServer) error {
	if err := s.Send(&v3orcapb.OrcaLoadReport{CpuUtilization: 0.25}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

// The health of an endpoint and its load out of band reach the policy, by calls on the endpoint's own connection.
func TestHealthAndLoad(t *testing.T) {
	h := grpchealth.NewServer()
	h.SetServingStatus("bank", healthpb.HealthCheckResponse_NOT_SERVING)
	addr := serve(t, func(s *grpc.Server) {
		healthpb.RegisterHealthServer(s, h)
		orcaservice.RegisterOpenRcaServiceServer(s, reporter{})
	})
	bank, other := "bank", "other"
	p := &healthPolicy{states: make(chan connectivity.State, 16), oob: make(chan *v3orcapb.OrcaLoadReport, 16)}
	c := network(t, p, &bank, addr)
	want := func(states ...connectivity.State) {
		t.Helper()
		for _, s := range states {
			if got := <-p.states; got != s {
				t.Fatalf("%v, want %v", got, s)
			}
		}
	}
	want(connectivity.Connecting, connectivity.TransientFailure)
	h.SetServingStatus("bank", healthpb.HealthCheckResponse_SERVING)
	want(connectivity.Ready)
	h.SetServingStatus("bank", healthpb.HealthCheckResponse_NOT_SERVING)
	want(connectivity.TransientFailure)
	if r := <-p.oob; r.CpuUtilization != 0.25 {
		t.Errorf("load %v", r)
	}
	c.Close()

	// A server without the service is healthy, and so is any if nobody asks.
	addr = serve(t, func(*grpc.Server) {})
	network(t, p, &other, addr)
	want(connectivity.Connecting, connectivity.Ready)
	network(t, p, nil, addr)
	want(connectivity.Ready)
}
