// Package observe is what operators see of calls: Prometheus metrics, an access log and traces. An [Observer] is given to
// the listeners and is told of the begin and end of every exchange; each of the three parts may be absent, and costs
// nothing then.
//
// Metric names and labels follow OpenTelemetry's conventions for RPC and HTTP where there are any. The number of series is
// bounded by the schema: methods and routes are labels, paths, consumers and addresses are not, and what is unknown is
// "_OTHER".
//
// # Concurrency
// Everything here is safe for concurrent use. Recording a call takes no lock and allocates nothing once a method has been
// called the same way before; the access log takes one lock for the time of copying a line.
package observe

import (
	"context"
	"time"

	"transom/listeners"
)

// Observer tells Metrics, AccessLog and Traces of every exchange.
type Observer struct {
	metrics *Metrics
	log     *AccessLog
	traces  *Traces
}

var _ listeners.Observer = (*Observer)(nil)

// New puts an Observer together; each part may be nil. Without any it returns nil, for no Observer at all.
func New(m *Metrics, l *AccessLog, t *Traces) listeners.Observer {
	if m == nil && l == nil && t == nil {
		return nil
	}
	return &Observer{m, l, t}
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
}
