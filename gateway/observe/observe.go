// Package observe is what operators see of calls: Prometheus metrics, an access log, traces, and what consumers use. An
// [Observer] is given to the listeners and is told of the begin and end of every exchange; each of the four parts may be
// absent, and costs nothing then.
//
// Metric names and labels follow OpenTelemetry's conventions for RPC and HTTP where there are any. The number of series is
// bounded by the schema: methods and routes are labels, paths, consumers and addresses are not, and what is unknown is
// "_OTHER".
//
// # Concurrency
// Everything here is safe for concurrent use. Recording a call takes no lock and allocates nothing once a method has been
// called the same way before; the access log takes one lock for the time of copying a line, and no call waits for what it is
// written to.
package observe

import (
	"context"
	"time"

	"transom/listeners"
)

// Observer tells Metrics, AccessLog, Traces and Usage of every exchange.
type Observer struct {
	metrics *Metrics
	log     *AccessLog
	traces  *Traces
	usage   *UsageOf
}

var _ listeners.Observer = (*Observer)(nil)

// New puts an Observer together; each part may be nil. Without any it returns nil, for no Observer at all.
func New(m *Metrics, l *AccessLog, t *Traces, u *UsageOf) listeners.Observer {
	if m == nil && l == nil && t == nil && u == nil {
		return nil
	}
	return &Observer{m, l, t, u}
}

// Begin implements listeners.Observer.
func (o *Observer) Begin(ctx context.Context, x *listeners.Exchange) context.Context {
	if o.metrics != nil {
		o.metrics.begin(x)
	}
	if o.traces != nil {
		ctx = o.traces.begin(ctx, x)
	}
	return ctx
}

// Stream implements listeners.Observer.
func (o *Observer) Stream(x *listeners.Exchange) {
	if o.log != nil && o.log.cfg.StreamStarts {
		o.log.begin(x)
	}
}

// End implements listeners.Observer.
func (o *Observer) End(x *listeners.Exchange) {
	took := time.Since(x.Start)
	if o.metrics != nil {
		o.metrics.end(x, took)
	}
	if o.log != nil {
		o.log.end(x, took)
	}
	if o.traces != nil {
		o.traces.end(x)
	}
	if o.usage != nil {
		o.usage.end(x, took)
	}
}
