package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"transom/listeners"
	"transom/rpc"
)

// TracesConfig configures Traces.
type TracesConfig struct {
	// Endpoint is the collector's OTLP endpoint over HTTP, a URL with its path.
	Endpoint string
	// ServiceName is what the collector knows the gateway as; "transom" if empty.
	ServiceName string
	// Sample is the share of calls that are sampled among those without a trace context of their own, 0 … 1.
	Sample float64
	// Untrusted takes no sampling decision from clients.
	Untrusted bool
	// Log is told of a collector that takes no spans, and when it does again.
	Log *slog.Logger
}

// Traces sends the spans of sampled calls to a collector: one of the call, one of each policy on its way, one of its part at a
// cluster. A call that is not sampled costs a look at one header, and a random number if it has none; its trace context goes on
// as it came.
type Traces struct {
	cfg      TracesConfig
	exporter *spanExporter
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// NewTraces starts to export. The caller must Close it. A collector that does not answer is no error; its spans are lost.
func NewTraces(ctx context.Context, cfg TracesConfig) (*Traces, error) {
	to, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(cfg.Endpoint))
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	exporter := &spanExporter{SpanExporter: to, complaints: complaints{
		log: cfg.Log, endpoint: cfg.Endpoint, signal: "traces",
	}}
	if cfg.ServiceName == "" {
		cfg.ServiceName = "transom"
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter), sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", cfg.ServiceName))),
	)
	return &Traces{cfg: cfg, exporter: exporter, provider: provider, tracer: provider.Tracer("transom")}, nil
}

// Close sends what is left, as long as ctx lets it.
func (t *Traces) Close(ctx context.Context) error {
	t.exporter.closing.Store(true)
	err := t.provider.Shutdown(ctx)
	return errors.Join(err, t.exporter.last)
}

// spanExporter keeps failures from OpenTelemetry's own log, which is the process's standard error. ExportSpans is called once at
// a time.
type spanExporter struct {
	sdktrace.SpanExporter
	complaints
	closing atomic.Bool
	// last is why spans were not sent after Close was called.
	last error
}

// ExportSpans implements sdktrace.SpanExporter. It never fails.
func (e *spanExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if e.closing.Load() {
		e.last = errors.Join(e.last, err)
		return nil
	}
	e.tell(ctx, err)
	return nil
}

// begin starts the span of a sampled call, and leaves ctx alone for others.
func (t *Traces) begin(ctx context.Context, x *listeners.Exchange) context.Context {
	if v := x.Request.Header["Traceparent"]; len(v) > 0 {
		// Parsed from the header without its other 30 possible carriers.
		with := propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(http.Header{"Traceparent": v, "Tracestate": x.Request.Header["Tracestate"]}))
		switch sc := trace.SpanContextFromContext(with); {
		case !sc.IsValid(): // as if there were none
		case !t.cfg.Untrusted && !sc.IsSampled():
			return ctx
		case !t.cfg.Untrusted:
			return t.start(with, x)
		default:
			if rand.Float64() >= t.cfg.Sample {
				return ctx
			}
			return t.start(with, x)
		}
	}
	if t.cfg.Sample == 0 || rand.Float64() >= t.cfg.Sample {
		return ctx
	}
	return t.start(ctx, x)
}

func (t *Traces) start(ctx context.Context, x *listeners.Exchange) context.Context {
	ctx, _ = t.tracer.Start(ctx, x.Request.Method, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.Start))
	return ctx
}

func (t *Traces) end(x *listeners.Exchange) {
	span := trace.SpanFromContext(x.Request.Context())
	if !span.IsRecording() {
		return
	}
	info := x.Call.Info
	attrs := []attribute.KeyValue{
		attribute.String("transom.protocol", x.Protocol.String()),
		attribute.String("http.request.method", x.Request.Method),
		attribute.String("url.path", x.Request.URL.Path),
		attribute.Int("http.response.status_code", x.HTTPStatus),
		attribute.String("rpc.status_code", codeName(x.Status.Code())),
		attribute.String("transom.error_source", info.ErrorSource.String()),
	}
	if m := x.Call.Method; m != nil {
		name := m.FullPath[1:]
		span.SetName(name)
		attrs = append(attrs, attribute.String("rpc.system.name", "grpc"), attribute.String("rpc.method", name))
		if info.Binding != nil {
			attrs = append(attrs, attribute.String("http.route", info.Binding.Template))
		}
		attrs = append(attrs, attribute.Int64("transom.messages_in", info.MessagesIn), attribute.Int64("transom.messages_out", info.MessagesOut))
		if info.Policy != "" {
			attrs = append(attrs, attribute.String("transom.policy", info.Policy))
		}
	}
	span.SetAttributes(attrs...)
	if x.Err != nil && x.HTTPStatus >= http.StatusInternalServerError || x.Status.Code() >= 12 && x.Status.Code() <= 15 {
		span.SetStatus(otelcodes.Error, x.Status.Message())
	}
	span.End()
}

// Chain is traced for calls that are sampled and plain for others, for which it costs a look at their context.
func (t *Traces) Chain(plain, traced rpc.Handler) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		if trace.SpanContextFromContext(ctx).IsSampled() {
			return traced(ctx, call)
		}
		return plain(ctx, call)
	}
}

// Step is a policy's Middleware with a span of its own below the call's: from when the call comes to it until it lets the call
// go on, or ends it. The spans of what follows are not below the policy's but beside it. Calls must be sampled.
func (t *Traces) Step(policy string, mw rpc.Middleware) rpc.Middleware {
	return func(next rpc.Handler) rpc.Handler {
		inner := mw(func(ctx context.Context, call *rpc.Call) error {
			if s, ok := ctx.Value(stepKey{}).(*step); ok { // a policy may go on by itself, in a context of its own
				s.end(nil)
				ctx = trace.ContextWithSpan(ctx, s.outer)
			}
			return next(ctx, call)
		})
		return func(ctx context.Context, call *rpc.Call) error {
			s := &step{outer: trace.SpanFromContext(ctx)}
			ctx, s.span = t.tracer.Start(ctx, policy)
			err := inner(context.WithValue(ctx, stepKey{}, s), call)
			s.end(err)
			return err
		}
	}
}

type stepKey struct{}

// step is a call at a policy.
type step struct {
	span, outer trace.Span
	over        atomic.Bool
}

// end ends the span, unless it has ended; err is what the policy ends the call with.
func (s *step) end(err error) {
	if s.over.Swap(true) {
		return
	}
	if err != nil {
		st := rpc.StatusOf(err)
		s.span.SetAttributes(attribute.String("rpc.status_code", codeName(st.Code())))
		s.span.SetStatus(otelcodes.Error, st.Message())
	}
	s.span.End()
}

// Upstream is Middleware for around a cluster: it makes the span of what happens there, and passes its context on as
// traceparent. Calls must be sampled.
func (t *Traces) Upstream(next rpc.Handler) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		ctx, span := t.tracer.Start(ctx, call.Method.FullPath[1:], trace.WithSpanKind(trace.SpanKindClient))
		defer span.End()
		out := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(ctx, out)
		for k, v := range out {
			call.SetHeader(k, v)
		}
		err := next(ctx, call)
		span.SetAttributes(attribute.String("transom.cluster", call.Info.Cluster), attribute.String("server.address", call.Info.Endpoint),
			attribute.Int("transom.attempts", call.Info.Attempts), attribute.String("rpc.status_code", codeName(rpc.StatusOf(err).Code())))
		if err != nil {
			span.SetStatus(otelcodes.Error, rpc.StatusOf(err).Message())
		}
		return err
	}
}
