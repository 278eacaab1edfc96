package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
)

// PushConfig configures Push.
type PushConfig struct {
	// Endpoint is the collector's OTLP endpoint over HTTP, a URL with its path.
	Endpoint string
	// ServiceName is what the collector knows the gateway as; "transom" if empty.
	ServiceName string
	// Interval is the time between two pushes; a minute if zero.
	Interval time.Duration
	// Log is told of a collector that does not take them, and when it does again.
	Log *slog.Logger
}

// Push sends Metrics to a collector, all of them every time, beside the calls that they are of.
type Push struct {
	provider *metric.MeterProvider
	exporter *pushExporter
	closed   atomic.Bool
}

// Push starts to send m. The caller must Close it. A collector that does not answer is no error: all values are cumulative, so
// that the next push makes good what one has lost.
func (m *Metrics) Push(ctx context.Context, cfg PushConfig) (*Push, error) {
	to, err := otlpmetrichttp.New(ctx, otlpmetrichttp.WithEndpointURL(cfg.Endpoint),
		otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{Enabled: false}))
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if cfg.ServiceName == "" {
		cfg.ServiceName = "transom"
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Minute
	}
	exporter := &pushExporter{Exporter: to, complaints: complaints{
		log: cfg.Log, endpoint: cfg.Endpoint, signal: "metrics",
	}}
	reader := metric.NewPeriodicReader(exporter, metric.WithInterval(cfg.Interval),
		metric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(m.registry))))
	return &Push{exporter: exporter, provider: metric.NewMeterProvider(
		metric.WithReader(reader), metric.WithResource(resource.NewSchemaless(attribute.String("service.name", cfg.ServiceName))),
	)}, nil
}

// Close pushes once more, as long as ctx lets it, and ends. A further Close does nothing.
func (p *Push) Close(ctx context.Context) error {
	if p.closed.Swap(true) {
		return nil
	}
	p.exporter.closing.Store(true)
	return p.provider.Shutdown(ctx)
}

// pushExporter sends what the registry has by the names that OpenTelemetry has for it. Export is called once at a time.
type pushExporter struct {
	*otlpmetrichttp.Exporter
	complaints
	closing atomic.Bool
}

// Export implements metric.Exporter. It fails for Close only; else the reader would log every push that fails.
func (e *pushExporter) Export(ctx context.Context, rm *metricdata.ResourceMetrics) error {
	for _, s := range rm.ScopeMetrics {
		for i := range s.Metrics {
			convention(&s.Metrics[i])
		}
	}
	err := e.Exporter.Export(ctx, rm)
	switch {
	case errors.Is(ctx.Err(), context.Canceled): // by Close, which pushes once more
		return nil
	case e.closing.Load():
		return err
	}
	e.tell(ctx, err)
	return nil
}

// complaints tells of a collector that takes nothing, once in a while, and when it does again. It is for one goroutine at a time.
type complaints struct {
	log      *slog.Logger
	endpoint string
	signal   string // "metrics" or "traces"
	// failed counts what failed since the last that went well, and told is when that was logged.
	failed int
	told   time.Time
}

// tell takes how one attempt went.
func (c *complaints) tell(ctx context.Context, err error) {
	if err == nil {
		if c.failed > 0 {
			c.log.LogAttrs(ctx, slog.LevelInfo, "what is observed is pushed again", slog.String("signal", c.signal), slog.String("endpoint", c.endpoint), slog.Int("failed", c.failed))
		}
		c.failed, c.told = 0, time.Time{}
		return
	}
	c.failed++
	if now := time.Now(); now.Sub(c.told) >= complainEvery {
		c.told = now
		c.log.LogAttrs(ctx, slog.LevelWarn, "what is observed was not pushed", slog.String("signal", c.signal), slog.String("endpoint", c.endpoint), slog.Int("failed", c.failed), slog.String("error", err.Error()))
	}
}

// conventions are OpenTelemetry's names of metrics and their attributes, by those of the exposition, which have other separators
// and the unit at the end. A collector that writes for Prometheus makes the latter of them again.
var conventions = map[string]string{
	"rpc_server_call_duration_seconds":     "rpc.server.call.duration",
	"rpc_client_call_duration_seconds":     "rpc.client.call.duration",
	"http_server_request_duration_seconds": "http.server.request.duration",
	"http_server_active_requests":          "http.server.active_requests",

	"rpc_method":               "rpc.method",
	"rpc_status_code":          "rpc.status_code",
	"rpc_system_name":          "rpc.system.name",
	"http_request_method":      "http.request.method",
	"http_route":               "http.route",
	httpStatusLabel:            "http.response.status_code",
	"network_protocol_version": "network.protocol.version",
	"transom_protocol":         "transom.protocol",
	"transom_error_source":     "transom.error_source",
	"transom_cluster":          "transom.cluster",
}

// httpStatusLabel is the label that is a number in OpenTelemetry's conventions.
const httpStatusLabel = "http_response_status_code"

// convention gives a metric its unit and, with its attributes, the names of conventions.
func convention(m *metricdata.Metrics) {
	switch name := strings.TrimSuffix(m.Name, "_total"); {
	case strings.HasSuffix(name, "_seconds"):
		m.Unit = "s"
	case strings.HasSuffix(name, "_bytes"):
		m.Unit = "By"
	}
	if name := conventions[m.Name]; name != "" {
		m.Name = name
	}
	switch d := m.Data.(type) {
	case metricdata.Gauge[float64]:
		for i := range d.DataPoints {
			d.DataPoints[i].Attributes = attributes(d.DataPoints[i].Attributes)
		}
	case metricdata.Sum[float64]:
		for i := range d.DataPoints {
			d.DataPoints[i].Attributes = attributes(d.DataPoints[i].Attributes)
		}
	case metricdata.Histogram[float64]:
		for i := range d.DataPoints {
			d.DataPoints[i].Attributes = attributes(d.DataPoints[i].Attributes)
		}
	}
}

func attributes(labels attribute.Set) attribute.Set {
	all := labels.ToSlice()
	for i, a := range all {
		name := conventions[string(a.Key)]
		if name == "" {
			continue
		}
		if status, err := strconv.Atoi(a.Value.AsString()); a.Key == httpStatusLabel && err == nil {
			all[i] = attribute.Int(name, status)
			continue
		}
		all[i].Key = attribute.Key(name)
	}
	return attribute.NewSet(all...)
}
