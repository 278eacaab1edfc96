package observe

import (
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
)

// Metrics counts exchanges. It lives as long as the gateway, over all reloads.
type Metrics struct {
	registry *prometheus.Registry

	calls     *prometheus.HistogramVec
	requests  *prometheus.HistogramVec
	outcomes  *prometheus.CounterVec
	upstreams *prometheus.HistogramVec
	attempts  *prometheus.CounterVec
	messages  *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	transcode *prometheus.CounterVec
	decisions *prometheus.CounterVec
	linesLost prometheus.Counter
	// active is by protocol.
	active [len(protocols)]prometheus.Gauge

	// series are by Method.ID of the schema in force, each checked against the Method it was made for.
	series atomic.Pointer[[]*series]
	mu     sync.Mutex // guards what follows, and the making of series and cells
	// byName are all series there are, so that a method keeps its own over reloads.
	byName map[string]*series

	// known are the counters of decisions that were made before; it is replaced under mu.
	known atomic.Pointer[map[decision]prometheus.Counter]
}

// decision is what a policy decided on a call.
type decision struct{ policy, name string }

// maxDecisions bounds how many are told apart; further ones count as other.
const maxDecisions = 1000

// decisionOf makes a decision of a policy's note, without a name if it is none. A name is the policy's own or from the
// configuration, never of what a client sent.
func decisionOf(policy, note string) decision {
	switch policy {
	case "auth", "access", "validate", "cache", "transform", "fault":
	case "limit":
		note, _, _ = strings.Cut(note, ": ") // the limit's name; why it is not known follows
	case "limit_shared":
		policy, note = "limit", "not shared"
	case "retry", "hedge":
		note = "over budget"
	case "allow", "redact":
		note = "error"
	default:
		return decision{}
	}
	return decision{policy, note}
}

// decided counts a decision.
func (m *Metrics) decided(d decision) {
	if known := m.known.Load(); known != nil {
		if c := (*known)[d]; c != nil {
			c.Inc()
			return
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[decision]prometheus.Counter{}
	if known := m.known.Load(); known != nil {
		maps.Copy(all, *known)
	}
	if len(all) >= maxDecisions {
		d.name = other
	}
	c := m.decisions.WithLabelValues(d.policy, d.name)
	c.Inc()
	all[d] = c
	m.known.Store(&all)
}

var protocols = [...]rpc.Protocol{
	rpc.ProtocolUnknown, rpc.ProtocolREST, rpc.ProtocolGRPC, rpc.ProtocolGRPCWeb, rpc.ProtocolConnect, rpc.ProtocolWebSocket,
	rpc.ProtocolWebTransport, rpc.ProtocolLocal,
}

// other is the label of a method that no schema knows (OpenTelemetry, RPC conventions).
const other = "_OTHER"

// durations are the buckets that OpenTelemetry prescribes for calls, in seconds.
var durations = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}

// NewMetrics makes a registry with the metrics of calls, of the Go runtime and of the process.
func NewMetrics() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), byName: map[string]*series{}}
	m.calls = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rpc_server_call_duration_seconds", Help: "Duration of calls, from the request's header to the end of the answer.",
		Buckets: durations, ConstLabels: prometheus.Labels{"rpc_system_name": "grpc"},
	}, []string{"rpc_method", "rpc_status_code"})
	m.requests = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_server_request_duration_seconds", Help: "Duration of HTTP requests, those that match no method included.", Buckets: durations,
	}, []string{"http_request_method", "http_route", "http_response_status_code", "network_protocol_version"})
	m.outcomes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "transom_calls_total", Help: "Calls by how they came, how they ended and whose fault an error is.",
	}, []string{"rpc_method", "transom_protocol", "rpc_status_code", "transom_error_source"})
	m.upstreams = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rpc_client_call_duration_seconds", Help: "Duration of calls' part at a cluster, retries included.", Buckets: durations,
		ConstLabels: prometheus.Labels{"rpc_system_name": "grpc"},
	}, []string{"transom_cluster", "rpc_status_code"})
	m.attempts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "transom_upstream_attempts_total", Help: "Attempts at calls, retries and hedges included.",
	}, []string{"transom_cluster"})
	m.messages = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "transom_messages_total", Help: "Messages of calls by direction, as clients see it.",
	}, []string{"rpc_method", "transom_protocol", "direction"})
	m.bytes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "transom_message_bytes_total", Help: "Bytes of messages on the client's side, without framing.",
	}, []string{"rpc_method", "transom_protocol", "direction"})
	m.transcode = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "transom_transcoding_seconds_total", Help: "Time that messages took between JSON and protobuf, by direction as clients see it.",
	}, []string{"rpc_method", "transom_protocol", "direction"})
	m.decisions = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "transom_policy_decisions_total", Help: "What policies decided: refusals by their reason or the limit's name, and what the cache had.",
	}, []string{"policy", "decision"})
	m.linesLost = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "transom_access_log_lines_lost_total", Help: "Lines of the access log that could not be written, or had no room while nothing could be.",
	})
	active := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "http_server_active_requests", Help: "Requests under way; of WebSockets, calls.",
	}, []string{"transom_protocol"})
	for i, p := range protocols {
		m.active[i] = active.WithLabelValues(p.String())
	}
	m.registry.MustRegister(m.calls, m.requests, m.outcomes, m.upstreams, m.attempts, m.messages, m.bytes, m.transcode, m.decisions, m.linesLost, active,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Register adds further metrics. It panics if they are there already.
func (m *Metrics) Register(c prometheus.Collector) { m.registry.MustRegister(c) }

// LinesLost counts lines of access logs that are lost.
func (m *Metrics) LinesLost() prometheus.Counter { return m.linesLost }

// Handler serves the metrics in the formats that Prometheus reads.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// series are one method's.
type series struct {
	method *descriptors.Method // the one of the schema in which it was last called; nil for other
	name   string
	cells  atomic.Pointer[[]*cell]
}

// cell is one way in which a method was called and has ended.
type cell struct {
	key
	call, request, upstream                    prometheus.Observer
	outcome, attempts                          prometheus.Counter
	messagesIn, messagesOut, bytesIn, bytesOut prometheus.Counter
	transcodeIn, transcodeOut                  prometheus.Counter
}

// key tells cells of a method apart.
type key struct {
	cluster  string
	binding  *descriptors.Binding
	code     codes.Code
	status   int
	protocol rpc.Protocol
	source   rpc.Source
	version  uint8
	verb     uint8
}

func (m *Metrics) begin(x *listeners.Exchange) { m.active[x.Protocol].Inc() }

func (m *Metrics) end(x *listeners.Exchange, took time.Duration) {
	m.active[x.Protocol].Dec()
	info := x.Call.Info
	k := key{
		protocol: x.Protocol, code: x.Status.Code(), status: x.HTTPStatus, version: uint8(x.Request.ProtoMajor), verb: verbOf(x.Request.Method),
		binding: info.Binding, source: info.ErrorSource,
	}
	if info.Attempts > 0 {
		k.cluster = info.Cluster
	}
	c := m.of(x.Call.Method).cell(m, &k)
	seconds := took.Seconds()
	c.call.Observe(seconds)
	c.request.Observe(seconds)
	c.outcome.Inc()
	c.messagesIn.Add(float64(info.MessagesIn))
	c.messagesOut.Add(float64(info.MessagesOut))
	c.bytesIn.Add(float64(info.BytesIn))
	c.bytesOut.Add(float64(info.BytesOut))
	if info.TranscodeIn+info.TranscodeOut > 0 {
		c.transcodeIn.Add(info.TranscodeIn.Seconds())
		c.transcodeOut.Add(info.TranscodeOut.Seconds())
	}
	for _, n := range info.Notes {
		if d := decisionOf(n.Key, n.Value); d.name != "" {
			m.decided(d)
		}
	}
	if k.cluster != "" {
		c.upstream.Observe(info.Upstream.Seconds())
		c.attempts.Add(float64(info.Attempts))
	}
}

// of gives a method's series. method may be nil.
func (m *Metrics) of(method *descriptors.Method) *series {
	id := 0 // other's
	if method != nil {
		id = method.ID + 1
	}
	if all := m.series.Load(); all != nil && id < len(*all) {
		if s := (*all)[id]; s != nil && (s.method == method || id == 0) {
			return s
		}
	}
	return m.adopt(method, id)
}

// adopt puts a method of a schema that is new here in its place. Methods of two schemas in use at once take turns.
func (m *Metrics) adopt(method *descriptors.Method, id int) *series {
	name := other
	if id > 0 {
		name = method.FullPath[1:]
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &series{name: name}
	if id > 0 {
		s.method = method
	}
	if known := m.byName[name]; known != nil {
		// Counters are shared by Prometheus; cells are not, since their bindings are of another schema.
		if known.method == s.method {
			s = known
		}
	}
	m.byName[name] = s
	var all []*series
	if p := m.series.Load(); p != nil {
		all = append(all, *p...)
	}
	for len(all) <= id {
		all = append(all, nil)
	}
	all[id] = s
	m.series.Store(&all)
	return s
}

// maxCells bounds how many ways of one method are remembered; more are not to be had without an attack, and cost a lookup.
const maxCells = 256

// cell finds the cell for k, or makes it.
func (s *series) cell(m *Metrics, k *key) *cell {
	cells := s.cells.Load()
	if cells != nil {
		for _, c := range *cells {
			if c.key == *k {
				return c
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	protocol, code := k.protocol.String(), codeName(k.code)
	route := ""
	switch {
	case k.binding != nil:
		route = k.binding.Template
	case s.method != nil:
		route = s.method.FullPath
	}
	c := &cell{
		key:         *k,
		call:        m.calls.WithLabelValues(s.name, code),
		request:     m.requests.WithLabelValues(verbs[k.verb], route, strconv.Itoa(k.status), versionName(k.version)),
		outcome:     m.outcomes.WithLabelValues(s.name, protocol, code, k.source.String()),
		messagesIn:  m.messages.WithLabelValues(s.name, protocol, "in"),
		messagesOut: m.messages.WithLabelValues(s.name, protocol, "out"),
		bytesIn:     m.bytes.WithLabelValues(s.name, protocol, "in"),
		bytesOut:    m.bytes.WithLabelValues(s.name, protocol, "out"),

		transcodeIn:  m.transcode.WithLabelValues(s.name, protocol, "in"),
		transcodeOut: m.transcode.WithLabelValues(s.name, protocol, "out"),
	}
	if k.cluster != "" {
		c.upstream = m.upstreams.WithLabelValues(k.cluster, code)
		c.attempts = m.attempts.WithLabelValues(k.cluster)
	}
	var all []*cell
	if p := s.cells.Load(); p != nil {
		all = append(all, *p...)
	}
	if len(all) < maxCells {
		all = append(all, c)
		s.cells.Store(&all)
	}
	return c
}

// verbs are the HTTP methods that are labels.
var verbs = [...]string{other, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodConnect, http.MethodTrace}

func verbOf(method string) uint8 {
	for i, v := range verbs {
		if v == method {
			return uint8(i)
		}
	}
	return 0
}

func versionName(major uint8) string {
	if major == 1 {
		return "1.1"
	}
	return strconv.Itoa(int(major))
}

// codeNames are the codes as OpenTelemetry writes them.
var codeNames = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
	"UNAUTHENTICATED",
}

func codeName(c codes.Code) string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return codeNames[codes.Unknown]
}
