package loadaware

import (
	"context"
	"sync"
	"time"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// probeTimeout bounds one probe; a later answer would be stale.
const probeTimeout = 100 * time.Millisecond

// loadTrailer carries an ORCA report.
const loadTrailer = "endpoint-load-metrics-bin"

// prober gives access to calls on one connection.
type prober struct{}

func (*prober) Build(cc any) (balancer.Producer, func()) { return cc, func() {} }

// probes owns the goroutines of probes under way: at most one per endpoint.
type probes struct {
	ctx    context.Context // ends with the balancer, whose goroutines these are
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func newProbes() *probes {
	ctx, cancel := context.WithCancel(context.Background())
	return &probes{ctx: ctx, cancel: cancel}
}

func (p *probes) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

// start asks e for its load, unless that is being done or has proved useless.
func (p *probes) start(e *endpoint) {
	if e.mute.Load() || !e.probing.CompareAndSwap(false, true) {
		return
	}
	e.mu.Lock()
	conn := e.conn
	e.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn == nil || p.closed {
		e.probing.Store(false)
		return
	}
	p.wg.Go(func() {
		defer e.probing.Store(false)
		e.probe(p.ctx, conn)
	})
}

// probe is a standard health check, answered by any gRPC server at once; what is wanted of it is the load report in its
// trailer.
func (e *endpoint) probe(ctx context.Context, conn grpc.ClientConnInterface) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	v := check(ctx, conn).Get(loadTrailer)
	if len(v) != 1 {
		if ctx.Err() == nil {
			e.mute.Store(true) // until the next connection
		}
		return
	}
	var r v3orcapb.OrcaLoadReport
	if proto.Unmarshal([]byte(v[0]), &r) != nil {
		return
	}
	e.probesOK.Add(1)
	e.current().Observe(e.b.now(), ReportOf(&r))
}

// check makes the health check and returns its trailer. A connection's own streams do not honour the option that takes
// the trailer of a unary call, so it is read as a stream.
func check(ctx context.Context, conn grpc.ClientConnInterface) metadata.MD {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, healthpb.Health_Check_FullMethodName)
	if err != nil {
		return nil
	}
	if s.SendMsg(&healthpb.HealthCheckRequest{}) != nil || s.CloseSend() != nil {
		return nil
	}
	for {
		// An answer, then the end; an error ends it too, and may carry a report all the same.
		if err := s.RecvMsg(&healthpb.HealthCheckResponse{}); err != nil {
			return s.Trailer()
		}
	}
}
