package loadaware

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/resolver"

	"transom/upstream/loadaware/score"
)

// restartAfter is how long an endpoint must have been away for its server to be taken for a new one, when it does not
// report its uptime.
const restartAfter = 5 * time.Second

// endpoint is one endpoint of the resolver's list: its statistics, and the connection behind it.
type endpoint struct {
	b    *lb
	addr string

	// Guarded by b.mu. node is also read by pickers, which hold their own copy.
	node  *score.Node
	attrs EndpointAttrs
	gone  time.Duration // when it left the list; 0 while it is listed

	state atomic.Uint32 // connectivity.State

	// The connection in use, and what hangs on it. mu is never held while a producer is stopped or a listener called.
	mu       sync.Mutex
	sc       balancer.SubConn
	stopOOB  func()
	conn     grpc.ClientConnInterface // for probes; nil while there is none
	release  func()
	lost     time.Duration // when the last connection was lost
	seen     bool          // it has been connected before
	mute     atomic.Bool   // its server does not answer probes with a report
	probing  atomic.Bool
	probesOK atomic.Uint64
	failure  string          // why it cannot be used; "" while it can, and before anything is known
	told     map[string]bool // the causes that the log has heard since it last could
}

func newEndpoint(b *lb, re resolver.Endpoint) *endpoint {
	e := &endpoint{b: b}
	if len(re.Addresses) > 0 {
		e.addr = re.Addresses[0].Addr
	}
	return e
}

// current returns the node that statistics go to.
func (e *endpoint) current() *score.Node {
	e.b.mu.Lock()
	defer e.b.mu.Unlock()
	return e.node
}

// connect is called when sc became ready.
func (e *endpoint) connect(sc balancer.SubConn) {
	now := e.b.now()
	e.b.mu.Lock()
	cfg, node := e.b.cfg, e.node
	e.b.mu.Unlock()
	e.mu.Lock()
	if e.sc != nil {
		e.mu.Unlock()
		return
	}
	e.sc = sc
	// An endpoint that has never been connected started when it was listed.
	if restarted := e.seen && now-e.lost > restartAfter; restarted || !e.seen {
		node.Start(now)
	}
	e.seen = true
	e.mu.Unlock()
	e.mute.Store(false)
	pr, release := sc.GetOrBuildProducer(&prober{})
	e.mu.Lock()
	e.conn, e.release = pr.(grpc.ClientConnInterface), release
	e.mu.Unlock()
	e.listen(cfg)
}

// maxTold bounds the causes for which one failure of an endpoint is logged.
const maxTold = 8

// fail is called when the endpoint cannot be used, after each attempt to connect again.
func (e *endpoint) fail(err error) {
	text := err.Error()
	// The port at this end is another with each attempt: "read tcp 127.0.0.1:39800->127.0.0.1:50051: …".
	if before, after, ok := strings.Cut(text, "->"); ok {
		text = before[:strings.LastIndexByte(before, ' ')+1] + after
	}
	e.mu.Lock()
	e.failure = text
	fresh := !e.told[text] && len(e.told) < maxTold
	if fresh {
		if e.told == nil {
			e.told = map[string]bool{}
		}
		e.told[text] = true
	}
	e.mu.Unlock()
	e.b.mu.Lock()
	r := e.b.registry
	e.b.mu.Unlock()
	if fresh && r != nil && r.Log != nil {
		r.Log.LogAttrs(context.Background(), slog.LevelWarn, "endpoint cannot be used", slog.String("endpoint", e.addr), slog.String("error", text))
	}
}

// works is called when the endpoint can be used.
func (e *endpoint) works() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failure, e.told = "", nil
}

// disconnect is called when sc is no longer ready, with nil at the end of all.
func (e *endpoint) disconnect(sc balancer.SubConn) {
	e.mu.Lock()
	if e.sc == nil || sc != nil && e.sc != sc {
		e.mu.Unlock()
		return
	}
	stop, release := e.stopOOB, e.release
	e.sc, e.stopOOB, e.conn, e.release = nil, nil, nil, nil
	e.lost = e.b.now()
	e.mu.Unlock()
	if stop != nil {
		stop()
	}
	if release != nil {
		release()
	}
}

// listen starts, restarts or stops listening to out-of-band reports, as cfg wants.
func (e *endpoint) listen(cfg *Config) {
	e.mu.Lock()
	stop, sc := e.stopOOB, e.sc
	e.stopOOB = nil
	e.mu.Unlock()
	if stop != nil {
		stop()
	}
	if sc == nil || cfg.OOBPeriod <= 0 {
		return
	}
	stop = orca.RegisterOOBListener(sc, &oob{e}, orca.OOBListenerOptions{ReportInterval: time.Duration(cfg.OOBPeriod)})
	e.mu.Lock()
	if e.sc == sc && e.stopOOB == nil {
		e.stopOOB, stop = stop, nil
	}
	e.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// oob takes the out-of-band reports of an endpoint. It runs under the producer's lock, so takes none that is held while
// registering.
type oob struct{ e *endpoint }

func (o *oob) OnLoadReport(r *v3orcapb.OrcaLoadReport) {
	o.e.current().Observe(o.e.b.now(), ReportOf(r))
}

// The named metrics that servers may report besides ORCA's own fields.
const (
	// MetricInFlight counts the requests at the server, the reporting one not included.
	MetricInFlight = "requests_in_flight"
	// MetricUptime is the age of the server process in seconds.
	MetricUptime = "uptime_seconds"
	// MetricLatency is the server's mean time per request in seconds, over its last requests.
	MetricLatency = "latency_seconds"
)

// ReportOf reads an ORCA report. Application utilization goes before CPU utilization; a utilization of zero is one that
// was not reported, as ORCA cannot say the difference, unless requests in flight are reported beside it.
func ReportOf(r *v3orcapb.OrcaLoadReport) score.Report {
	out := score.NoReport()
	if r == nil {
		return out
	}
	if v, ok := r.NamedMetrics[MetricInFlight]; ok && within(v, 1e6) {
		out.InFlight = v
	}
	if u := r.ApplicationUtilization; u > 0 && within(u, 1e3) {
		out.Utilization = u
	} else if u := r.CpuUtilization; within(u, 1e3) && (u > 0 || out.InFlight >= 0) {
		out.Utilization = u
	}
	if v, ok := r.NamedMetrics[MetricUptime]; ok && within(v, 1e9) {
		out.Uptime = time.Duration(v * float64(time.Second))
	}
	if v, ok := r.NamedMetrics[MetricLatency]; ok && within(v, 1e6) {
		out.Service = time.Duration(v * float64(time.Second))
	}
	if r.RpsFractional > 0 && within(r.RpsFractional, 1e9) {
		out.PerSecond = r.RpsFractional
		if within(r.Eps, 1e9) {
			out.ErrorsPerSecond = r.Eps
		}
	}
	return out
}

// within says whether v is a number from 0 to most: what lies outside is a server's mistake.
func within(v, most float64) bool { return v >= 0 && v <= most }
