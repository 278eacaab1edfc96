package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.opentelemetry.io/otel/trace"
	collectormetricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// exchange is a finished call.
func exchange() *listeners.Exchange {
	m := &descriptors.Method{ID: 3, FullPath: "/bank.v1.Accounts/Get", Name: "bank.v1.Accounts.Get"}
	b := &descriptors.Binding{Method: m, Verb: "GET", Template: "/v1/{name=accounts/*}"}
	m.Bindings = []*descriptors.Binding{b}
	r := httptest.NewRequest("GET", "/v1/accounts/7?key=hunter2", nil)
	r.Header.Set("Authorization", "Bearer hunter2")
	r.Header.Set("User-Agent", "curl/8")
	return &listeners.Exchange{
		Listener: "edge", Request: r, Client: netip.MustParseAddrPort(r.RemoteAddr), Protocol: rpc.ProtocolREST, Start: time.Now().Add(-30 * time.Millisecond), HTTPStatus: 200,
		Call: &rpc.Call{Method: m, Info: &rpc.Info{
			Protocol: rpc.ProtocolREST, Binding: b, MessagesIn: 1, MessagesOut: 1, BytesIn: 10, BytesOut: 200,
			Cluster: "bank", Endpoint: "10.0.0.1:50051", Attempts: 2, Upstream: 25 * time.Millisecond,
		}},
	}
}

// scrape reads the metrics as Prometheus does.
func scrape(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for name, f := range families {
		for _, s := range f.GetMetric() {
			var labels []string
			for _, l := range s.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			key := name + "{" + strings.Join(labels, ",") + "}"
			out[key] = s.GetCounter().GetValue() + s.GetGauge().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestMetrics(t *testing.T) {
	m := NewMetrics()
	o := New(m, nil, nil, nil)
	for range 3 {
		x := exchange()
		o.Begin(t.Context(), x)
		o.End(x)
	}
	x := exchange()
	x.Status, x.HTTPStatus, x.Call.Info.ErrorSource = status.New(codes.NotFound, "no"), 404, rpc.SourceUpstream
	o.Begin(t.Context(), x)
	o.End(x)
	unmatched := &listeners.Exchange{
		Request: httptest.NewRequest("BREW", "/pot", nil), Protocol: rpc.ProtocolREST, Start: time.Now(), HTTPStatus: 404, Status: status.New(codes.NotFound, "no"),
		Call: &rpc.Call{Info: &rpc.Info{}},
	}
	o.Begin(t.Context(), unmatched)
	got := scrape(t, m)
	for series, want := range map[string]float64{
		"http_server_active_requests{transom_protocol=rest}":                                                                                                        1,
		"rpc_server_call_duration_seconds{rpc_method=bank.v1.Accounts/Get,rpc_status_code=OK,rpc_system_name=grpc}":                                                 3,
		"rpc_server_call_duration_seconds{rpc_method=bank.v1.Accounts/Get,rpc_status_code=NOT_FOUND,rpc_system_name=grpc}":                                          1,
		"transom_calls_total{rpc_method=bank.v1.Accounts/Get,rpc_status_code=NOT_FOUND,transom_error_source=upstream,transom_protocol=rest}":                        1,
		"http_server_request_duration_seconds{http_request_method=GET,http_response_status_code=200,http_route=/v1/{name=accounts/*},network_protocol_version=1.1}": 3,
		"transom_message_bytes_total{direction=out,rpc_method=bank.v1.Accounts/Get,transom_protocol=rest}":                                                          800,
		"transom_messages_total{direction=in,rpc_method=bank.v1.Accounts/Get,transom_protocol=rest}":                                                                4,
		"transom_upstream_attempts_total{transom_cluster=bank}":                                                                                                     8,
		"rpc_client_call_duration_seconds{rpc_status_code=OK,rpc_system_name=grpc,transom_cluster=bank}":                                                            3,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
	o.End(unmatched)
	got = scrape(t, m)
	for series, want := range map[string]float64{
		"http_server_active_requests{transom_protocol=rest}": 0,
		"http_server_request_duration_seconds{http_request_method=_OTHER,http_response_status_code=404,http_route=,network_protocol_version=1.1}": 1,
		"rpc_server_call_duration_seconds{rpc_method=_OTHER,rpc_status_code=NOT_FOUND,rpc_system_name=grpc}":                                      1,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
}

// TestReloadedSchema calls the methods of two schemas in turn: the counts go on.
func TestReloadedSchema(t *testing.T) {
	m := NewMetrics()
	o := New(m, nil, nil, nil)
	a, b := exchange(), exchange()
	b.Call.Method.ID = 0
	for range 5 {
		for _, x := range []*listeners.Exchange{a, b} {
			o.Begin(t.Context(), x)
			o.End(x)
		}
	}
	if n := scrape(t, m)["rpc_server_call_duration_seconds{rpc_method=bank.v1.Accounts/Get,rpc_status_code=OK,rpc_system_name=grpc}"]; n != 10 {
		t.Errorf("%v calls counted, want 10", n)
	}
}

func TestAccessLog(t *testing.T) {
	var out bytes.Buffer
	l := accessLog(&out)
	o := New(nil, l, nil, nil)
	x := exchange()
	x.Request.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	x.Request.Header.Set("User-Agent", "a\"b\\c\n\xff\u00e9")
	x.Call.Info.Note("cache", "hit")
	x.Call.Principal = &rpc.Principal{Consumer: "ada"}
	o.End(x)
	x = exchange()
	x.Status, x.HTTPStatus, x.Err, x.Call.Info.ErrorSource = status.New(codes.Internal, "internal error"), 500, errors.New("dial 10.0.0.1: refused"), rpc.SourceGateway
	x.Call.Info.Refuse("limit", "writes")
	x.Call.Info.Refuse("auth", "EXPIRED")
	o.End(x)
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("a secret is in the log: %s", out.String())
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %s", len(lines), out.String())
	}
	var got [2]map[string]any
	for i := range got {
		if err := json.Unmarshal([]byte(lines[i]), &got[i]); err != nil {
			t.Fatalf("%v: %s", err, lines[i])
		}
	}
	for key, want := range map[string]any{
		"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "listener": "edge", "transom.protocol": "rest", "http.request.method": "GET",
		"url.path": "/v1/accounts/7", "http.route": "/v1/{name=accounts/*}", "http.response.status_code": 200.0,
		"rpc.method": "bank.v1.Accounts/Get", "rpc.status_code": "OK", "consumer": "ada", "cluster": "bank", "upstream.address": "10.0.0.1:50051",
		"attempts": 2.0, "upstream_ms": 25.0, "bytes_out": 200.0, "messages_in": 1.0, "cache": "hit", "network.protocol.version": "1.1",
		"user_agent": "a\"b\\c\n\ufffd\u00e9", "client.address": "192.0.2.1", "client.port": 1234.0,
	} {
		if got[0][key] != want {
			t.Errorf("%s is %v, want %v", key, got[0][key], want)
		}
	}
	if d, _ := got[0]["duration_ms"].(float64); d < 30 || d > 10_000 {
		t.Errorf("duration_ms is %v", got[0]["duration_ms"])
	}
	if got[1]["transom.policy"] != "limit" || got[1]["limit"] != "writes" || got[0]["transom.policy"] != nil {
		t.Errorf("the policy that refused is not told: %s", lines[1])
	}
	if got[1]["transom.error_source"] != "gateway" || got[1]["error"] != "dial 10.0.0.1: refused" {
		t.Errorf("%s", lines[1])
	}
}

// TestAccessLogClient tells clients by the word of a trusted proxy in front, and names the proxy.
func TestAccessLogClient(t *testing.T) {
	for _, tc := range []struct{ peer, client, want string }{
		{"192.0.2.1:1234", "192.0.2.1:1234", `"client.address":"192.0.2.1","client.port":1234,"network.protocol.version"`},
		{"[2001:db8::1]:9", "[2001:db8::1]:9", `"client.address":"2001:db8::1","client.port":9,"network.protocol.version"`},
		{"10.0.0.1:1234", "198.51.100.9:0", `"client.address":"198.51.100.9","network.peer.address":"10.0.0.1","network.protocol.version"`},
		{"10.0.0.1:1234", "198.51.100.9:7", `"client.address":"198.51.100.9","client.port":7,"network.peer.address":"10.0.0.1","network.protocol.version"`},
		{"@", "", `"client.address":"@","network.protocol.version"`},
	} {
		var out bytes.Buffer
		l := accessLog(&out)
		x := exchange()
		x.Request.RemoteAddr = tc.peer
		x.Client, _ = netip.ParseAddrPort(tc.client)
		New(nil, l, nil, nil).End(x)
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), tc.want) {
			t.Errorf("%s for %s: %s, want %s", tc.peer, tc.client, out.String(), tc.want)
		}
	}
}

// TestAccessLogStreamStarts has a line when a stream begins, if asked to, with what is known then.
func TestAccessLogStreamStarts(t *testing.T) {
	for _, on := range []bool{false, true} {
		var out bytes.Buffer
		cfg := logTo("", NewMetrics(), io.Discard)
		cfg.StreamStarts = on
		l := NewAccessLog(&out, cfg)
		o := New(nil, l, nil, nil)
		x := exchange()
		x.Call.Info.RequestID = "r1"
		o.Stream(x)
		o.End(x)
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		want := 1
		if on {
			want = 2
			var got map[string]any
			if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
				t.Fatalf("%v: %s", err, lines[0])
			}
			delete(got, "time")
			if diff := cmp.Diff(map[string]any{
				"event": "start", "request_id": "r1", "listener": "edge", "client.address": "192.0.2.1", "client.port": 1234.0,
				"network.protocol.version": "1.1", "transom.protocol": "rest", "http.request.method": "GET", "url.path": "/v1/accounts/7",
				"http.route": "/v1/{name=accounts/*}", "rpc.method": "bank.v1.Accounts/Get", "user_agent": "curl/8",
			}, got); diff != "" {
				t.Errorf("the line at the start (-want +got):\n%s", diff)
			}
		}
		if len(lines) != want || strings.Contains(lines[len(lines)-1], `"event"`) {
			t.Errorf("stream_starts %v: %s", on, out.String())
		}
	}
}

// TestAccessLogReopen renames the file away, as log rotation does.
func TestAccessLogReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, err := OpenAccessLog(logTo(path, NewMetrics(), io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	o := New(nil, l, nil, nil)
	o.End(exchange())
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	o.End(exchange())
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".1"} {
		if b, err := os.ReadFile(p); err != nil || bytes.Count(b, []byte("\n")) != 1 {
			t.Errorf("%s: %v %s", p, err, b)
		}
	}
	if _, err := OpenAccessLog(logTo(filepath.Join(path, "below"), NewMetrics(), io.Discard)); err == nil {
		t.Error("a file below a file was opened")
	}
}

// TestDecisions counts what policies note, by names that no client can make up.
func TestDecisions(t *testing.T) {
	m := NewMetrics()
	o := New(m, nil, nil, nil)
	for range 2 {
		x := exchange()
		x.Call.Info.Notes = rpc.Notes{
			{Key: "cache", Value: "hit"},
			{Key: "auth", Value: "TOKEN_EXPIRED"},
			{Key: "limit", Value: "writes: redis: connection refused"},
			{Key: "limit_shared", Value: "no"},
			{Key: "allow", Value: "no such key: hunter2"},
			{Key: "error_was", Value: "Internal"},
			{Key: "something", Value: "else"},
		}
		o.End(x)
	}
	got := scrape(t, m)
	sum := 0.0
	for name, v := range got {
		if strings.HasPrefix(name, "transom_policy_decisions_total") {
			sum += v
			if strings.Contains(name, "hunter2") || strings.Contains(name, "refused") {
				t.Errorf("%s has what a client or a server said", name)
			}
		}
	}
	if sum != 10 {
		t.Errorf("%v decisions, want twice five: %v", sum, got)
	}
	for i := range 2 * maxDecisions {
		m.decided(decision{"auth", strconv.Itoa(i)})
	}
	if n := len(*m.known.Load()); n > maxDecisions+1 {
		t.Errorf("%d kinds of decision are told apart", n)
	}
}

// TestText puts each byte at each place of values of various lengths.
func TestText(t *testing.T) {
	for n := 1; n <= 20; n++ {
		for at := range n {
			for c := range utf8.RuneSelf {
				v := []byte(strings.Repeat("! 0z~#9[]", 3)[:n])
				v[at] = byte(c)
				var got map[string]string
				b := text([]byte(`{"a":1`), `,"x":"`, string(v))
				if err := json.Unmarshal(append(bytes.Replace(b, []byte("1"), []byte(`"1"`), 1), '}'), &got); err != nil || got["x"] != string(v) {
					t.Fatalf("%q became %s: %v", v, b, err)
				}
			}
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "plain", "\"\\\n\x00\x1f\x7f", "\xff\xfe", "\u00e9\u2028\U0001f600", "\xed\xa0\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got string
		if len(s) > maxText {
			return
		}
		b := bytes.TrimPrefix(text(nil, `,"x":"`, s), []byte(`,"x":`))
		if s == "" {
			b = []byte(`""`)
		}
		if err := json.Unmarshal(b, &got); err != nil || got != strings.ToValidUTF8(s, "\ufffd") && !strings.Contains(s, "\ufffd") && len([]rune(s)) != len([]rune(got)) {
			t.Errorf("%q became %s: %v", s, b, err)
		}
	})
}

// collector is an OTLP receiver.
type collector struct {
	*httptest.Server
	spans chan *tracepb.Span
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{spans: make(chan *tracepb.Span, 100)}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var req collectorpb.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for _, rs := range req.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					c.spans <- s
				}
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// TestTraces sends a sampled call's spans to a receiver, and passes on a context that names the inner one.
func TestTraces(t *testing.T) {
	c := newCollector(t)
	tr, err := NewTraces(t.Context(), TracesConfig{Endpoint: c.URL + "/v1/traces"})
	if err != nil {
		t.Fatal(err)
	}
	o := New(nil, nil, tr, nil)
	x := exchange()
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	x.Request.Header.Set("Traceparent", parent)
	ctx := o.Begin(t.Context(), x)
	x.Request = x.Request.WithContext(ctx)
	h := tr.Upstream(func(context.Context, *rpc.Call) error { return status.Error(codes.Unavailable, "gone") })
	if err := h(ctx, x.Call); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	out := x.Call.Header.Get("traceparent")
	if len(out) != 1 || !strings.HasPrefix(out[0], "00-4bf92f3577b34da6a3ce929d0e0e4736-") || out[0] == parent || !strings.HasSuffix(out[0], "-01") {
		t.Errorf("traceparent upstream is %q", out)
	}
	o.End(x)

	// Not sampled: no span, and nothing of ours in the context.
	x = exchange()
	x.Request.Header.Set("Traceparent", strings.TrimSuffix(parent, "1")+"0")
	if ctx := o.Begin(t.Context(), x); ctx != t.Context() || trace.SpanFromContext(ctx).IsRecording() {
		t.Error("a call that is not sampled has a span")
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	client, server := <-c.spans, <-c.spans
	if len(c.spans) != 0 || client.GetKind() != tracepb.Span_SPAN_KIND_CLIENT || server.GetName() != "bank.v1.Accounts/Get" {
		t.Errorf("spans are %v and %v", client, server)
	}
	if !bytes.Equal(client.GetParentSpanId(), server.GetSpanId()) || !bytes.Equal(client.GetTraceId(), server.GetTraceId()) {
		t.Error("the inner span is not the outer's child")
	}
}

// TestTracesOfPolicies has a span for each policy that a sampled call comes to, beside each other and below the call's, and what
// refuses it is told.
func TestTracesOfPolicies(t *testing.T) {
	c := newCollector(t)
	tr, err := NewTraces(t.Context(), TracesConfig{Endpoint: c.URL + "/v1/traces"})
	if err != nil {
		t.Fatal(err)
	}
	o := New(nil, nil, tr, nil)
	backend := func(context.Context, *rpc.Call) error { return nil }
	h := chained(tr, backend)
	run := func(header string) {
		x := exchange()
		x.Request.Header.Set("Traceparent", header)
		ctx := o.Begin(t.Context(), x)
		x.Request = x.Request.WithContext(ctx)
		x.Err = h(ctx, x.Call)
		x.Status = rpc.StatusOf(x.Err)
		o.End(x)
	}
	const good, bad, unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-badbadbadbadbadbadbadbadbadbadba-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4700-00f067aa0ba902b7-00"
	for _, header := range []string{good, bad, unsampled} {
		run(header)
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spans := map[string]*tracepb.Span{} // by the first byte of the trace and the span's name
	for len(c.spans) > 0 {
		s := <-c.spans
		name := fmt.Sprintf("%x %s", s.GetTraceId()[:1], s.GetName())
		if s.GetKind() == tracepb.Span_SPAN_KIND_CLIENT {
			name += " upstream"
		}
		spans[name] = s
	}
	for name, wrong := range map[string]string{"4b auth": "", "4b limits": "", "4b bank.v1.Accounts/Get upstream": "", "ba auth": "", "ba limits": "too many"} {
		s, call := spans[name], spans[name[:3]+"bank.v1.Accounts/Get"]
		if s == nil || call == nil {
			t.Errorf("no span %q, or none above it", name)
			continue
		}
		if !bytes.Equal(s.GetParentSpanId(), call.GetSpanId()) {
			t.Errorf("%s is not below the call", name)
		}
		if got := s.GetStatus().GetMessage(); got != wrong {
			t.Errorf("%s has the status %q, want %q", name, got, wrong)
		}
	}
	if len(spans) != 7 {
		t.Errorf("%d spans: %v", len(spans), spans)
	}
	if a, b := spans["4b auth"], spans["4b limits"]; a.GetEndTimeUnixNano() > b.GetStartTimeUnixNano() {
		t.Error("auth has not ended when limits begins")
	}
}

// chained is a chain of two policies, of which the second refuses the calls of one trace.
func chained(tr *Traces, backend rpc.Handler) rpc.Handler {
	pass := func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error { return next(ctx, call) }
	}
	limits := func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			if id := trace.SpanContextFromContext(ctx).TraceID(); id[0] == 0xba {
				return status.Error(codes.ResourceExhausted, "too many")
			}
			return next(ctx, call)
		}
	}
	return tr.Chain(rpc.Chain(backend, pass, limits), rpc.Chain(tr.Upstream(backend), tr.Step("auth", pass), tr.Step("limits", limits)))
}

// TestTracesDown sends spans to a collector that takes none, and then does: that is logged once each.
func TestTracesDown(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	c := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			http.Error(w, "no room", http.StatusInsufficientStorage)
		}
	}))
	defer c.Close()
	var out bytes.Buffer
	tr, err := NewTraces(t.Context(), TracesConfig{Endpoint: c.URL, Sample: 1, Log: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	o := New(nil, nil, tr, nil)
	send := func(n int) {
		for range n {
			x := exchange()
			x.Request = x.Request.WithContext(o.Begin(t.Context(), x))
			o.End(x)
			if err := tr.provider.ForceFlush(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	send(3)
	down.Store(false)
	send(2)
	down.Store(true)
	x := exchange()
	x.Request = x.Request.WithContext(o.Begin(t.Context(), x))
	o.End(x)
	if err := tr.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "507") {
		t.Errorf("of the last spans, which were not taken, Close says %v", err)
	}
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "level=WARN") || !strings.Contains(lines[0], "507") ||
		!strings.Contains(lines[1], "pushed again") || !strings.Contains(lines[1], "failed=3") {
		t.Errorf("logged:\n%s", out.String())
	}
}

// TestPush sends metrics to a receiver by OpenTelemetry's names when the last is pushed, at the latest.
func TestPush(t *testing.T) {
	got := make(chan *collectormetricspb.ExportMetricsServiceRequest, 100)
	c := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var req collectormetricspb.ExportMetricsServiceRequest
		if err := proto.Unmarshal(b, &req); err != nil || r.URL.Path != "/v1/metrics" {
			http.Error(w, "not metrics", http.StatusBadRequest)
			return
		}
		got <- &req
	}))
	defer c.Close()
	m := NewMetrics()
	p, err := m.Push(t.Context(), PushConfig{Endpoint: c.URL + "/v1/metrics", ServiceName: "edge", Interval: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	o := New(m, nil, nil, nil)
	for range 3 {
		x := exchange()
		o.Begin(t.Context(), x)
		o.End(x)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("%d pushes, want the last alone", len(got))
	}
	rm := (<-got).GetResourceMetrics()[0]
	if a := rm.GetResource().GetAttributes(); len(a) != 1 || a[0].GetKey() != "service.name" || a[0].GetValue().GetStringValue() != "edge" {
		t.Errorf("the resource is %v", a)
	}
	metrics := map[string]*metricspb.Metric{}
	for _, m := range rm.GetScopeMetrics()[0].GetMetrics() {
		metrics[m.GetName()] = m
	}
	for name, want := range map[string]struct {
		unit, attributes string
		value            float64 // of a histogram the count
	}{
		"rpc.server.call.duration": {"s", "rpc.method=bank.v1.Accounts/Get rpc.status_code=OK rpc.system.name=grpc", 3},
		"rpc.client.call.duration": {"s", "rpc.status_code=OK rpc.system.name=grpc transom.cluster=bank", 3},
		"http.server.request.duration": {
			"s", "http.request.method=GET http.response.status_code=200 http.route=/v1/{name=accounts/*} network.protocol.version=1.1", 3,
		},
		"http.server.active_requests": {"", "transom.protocol=rest", 0},
		"transom_calls_total":         {"", "rpc.method=bank.v1.Accounts/Get rpc.status_code=OK transom.error_source=none transom.protocol=rest", 3},
		"transom_message_bytes_total": {"By", "direction=out rpc.method=bank.v1.Accounts/Get transom.protocol=rest", 600},
		"go_memstats_alloc_bytes":     {"By", "", -1},
	} {
		m := metrics[name]
		if m == nil {
			t.Errorf("no metric %s", name)
			continue
		}
		if m.GetUnit() != want.unit || m.GetDescription() == "" {
			t.Errorf("%s is in %q, want %q; %q", name, m.GetUnit(), want.unit, m.GetDescription())
		}
		points := map[string]float64{}
		for _, p := range m.GetHistogram().GetDataPoints() {
			points[attributeText(p.GetAttributes())] = float64(p.GetCount())
			if n := p.GetBucketCounts(); len(n) != len(durations)+1 || p.GetSum() < 0.025*3 {
				t.Errorf("%s: %v", name, p)
			}
		}
		for _, p := range append(m.GetSum().GetDataPoints(), m.GetGauge().GetDataPoints()...) {
			points[attributeText(p.GetAttributes())] = p.GetAsDouble()
		}
		if v, ok := points[want.attributes]; !ok || want.value >= 0 && v != want.value {
			t.Errorf("%s has %v, want %v of %s", name, points, want.value, want.attributes)
		}
		if s := m.GetSum(); s != nil && (!s.GetIsMonotonic() || s.GetAggregationTemporality() != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE) {
			t.Errorf("%s is no cumulative counter", name)
		}
	}
	if a := metrics["http.server.request.duration"].GetHistogram().GetDataPoints()[0].GetAttributes(); !slices.ContainsFunc(a, func(a *commonpb.KeyValue) bool {
		return a.GetKey() == "http.response.status_code" && a.GetValue().GetIntValue() == 200
	}) {
		t.Errorf("the status is no number: %v", a)
	}
}

// attributeText are attributes in the order of their names.
func attributeText(all []*commonpb.KeyValue) string {
	var s []string
	for _, a := range all {
		v := a.GetValue().GetStringValue()
		if n := a.GetValue().GetIntValue(); n != 0 {
			v = strconv.FormatInt(n, 10)
		}
		s = append(s, a.GetKey()+"="+v)
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

// TestPushDown is told of a collector that takes nothing once, and of its return; pushes go on.
func TestPushDown(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	c := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			http.Error(w, "no room", http.StatusServiceUnavailable)
		}
	}))
	defer c.Close()
	var out bytes.Buffer
	p, err := NewMetrics().Push(t.Context(), PushConfig{Endpoint: c.URL, Interval: time.Hour, Log: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.provider.ForceFlush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	down.Store(false)
	for range 2 {
		if err := p.provider.ForceFlush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	down.Store(true)
	if err := p.Close(t.Context()); err == nil {
		t.Error("nothing is said of the last push, which failed")
	}
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "level=WARN") || !strings.Contains(lines[0], "no room") ||
		!strings.Contains(lines[1], "pushed again") || !strings.Contains(lines[1], "failed=3") {
		t.Errorf("logged:\n%s", out.String())
	}
}

// The CPU of observing one small REST call, beside which a call itself takes some 50 µs.
func BenchmarkObserve(b *testing.B) {
	tr := &Traces{}
	l := accessLog(io.Discard)
	defer l.Close(b.Context())
	for name, o := range map[string]listeners.Observer{
		"metrics": New(NewMetrics(), nil, nil, nil), "access log": New(nil, l, nil, nil),
		"both": New(NewMetrics(), l, nil, nil), "traces, not sampled": New(nil, nil, tr, nil),
	} {
		b.Run(name, func(b *testing.B) {
			x := exchange()
			ctx := context.Background()
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				o.Begin(ctx, x)
				o.End(x)
				if n%64 == 0 {
					runtime.Gosched() // a call waits often, and what writes lines gets its turn
				}
			}
		})
	}
}
