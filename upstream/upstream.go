// Package upstream carries calls to backends. A [Cluster] is a named group of interchangeable endpoints behind one
// target: it resolves the target, keeps connections, balances calls over the endpoints and is the innermost
// [rpc.Handler] of every chain. It is the only package of transom that dials; others receive a
// [grpc.ClientConnInterface] from [Cluster.Conn].
//
// Messages pass through as the wire bytes they are: they are never parsed or copied here.
//
// # How calls end
// A status that a backend sent reaches the client unchanged, with code, message and details. What happens on the way to a
// backend (no endpoint, connection lost, an answer that is not gRPC) becomes a status whose text names the cluster and
// never an address; the cause is kept for the log ([Error]). Both are recorded as [rpc.SourceUpstream]. What a cluster
// itself refuses (closing, limits) is [rpc.SourceGateway], and what the client's own stream failed with is
// [rpc.SourceClient].
//
// # Concurrency
// A Cluster may be used by any number of goroutines. Each unary call runs on its caller's goroutine alone; a streaming
// call has helpers of its own, all of which have ended when Invoke returns.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	"transom/rpc"
	"transom/upstream/loadaware"
	"transom/upstream/loadaware/score"
)

const defaultMaxInFlight = 100_000

// DefaultMaxMessageBytes is the limit of one answer message unless Config says otherwise.
const DefaultMaxMessageBytes = 4 << 20

// Transport is what carries a cluster's calls.
type Transport uint8

// The transports. They behave alike; where one has trouble the other is a way out.
const (
	TransportDefault Transport = iota // defaultTransport
	TransportOwn                      // package h2client under package lbhost
	TransportGRPCGo                   // grpc-go's client
)

const defaultTransport = TransportOwn

// Config describes one cluster. It is plain data: equal Configs make interchangeable Clusters.
type Config struct {
	// Name is what operators call the cluster; it appears in errors and metrics. Required.
	Name string
	// Target says where the endpoints are:
	//
	//	host:port, dns:///host:port          every address that DNS has for host
	//	static:///host:port,host:port        these
	//	file:///path/endpoints.yaml          those that the file lists, followed as it changes (see EndpointFile)
	//	kubernetes:///service.namespace:port  the ready pods of a service, followed by its EndpointSlices
	//	xds:///service                       what an xDS control plane says, see below
	//	unix:/path, unix:///path             a socket
	//
	// xDS is grpc-go's, for programs that import google.golang.org/grpc/xds. Its bootstrap is in the file or text that the
	// environment variables GRPC_XDS_BOOTSTRAP and GRPC_XDS_BOOTSTRAP_CONFIG give. Balancing, outlier detection and limits
	// per endpoint are then the control plane's business (it may choose the policy "adaptive" as a custom one), and LB and
	// what depends on it do nothing; retries, timeouts and the cluster's limits work as ever.
	//
	// Required.
	Target string
	// Transport carries the calls. xds targets are grpc-go's always.
	Transport Transport
	// Kubernetes is for kubernetes targets; nil is the cluster whose pod this is.
	Kubernetes *Kubernetes
	// TLS is how to speak to the endpoints; nil is plaintext HTTP/2.
	TLS *TLS
	// Authority is the ":authority" of calls, and the name checked in certificates unless TLS names another. Empty: the
	// target's host, the first address of a static target, Name for a file, service.namespace in
	// Kubernetes.
	Authority string
	// LB is the name of a balancing policy: "adaptive" (if empty), "round_robin", "weighted_round_robin", "least_request",
	// "peak_ewma", "random", "ring_hash", "bounded_hash", all of package loadaware, or "pick_first". One that needs
	// settings is given in JSON as in gRPC service config: [{"adaptive": {…}}], see [loadaware.Config].
	LB string
	// HashOn is what the hash policies go by: "ip", the client's address, "header:" and a metadata key, or "field:" and the
	// path of a field of the request, such as "field:account.name". Calls that have no such key are spread at random: with a
	// field, those of methods that have it not or are sent a stream. Empty: nothing, so that all are.
	HashOn string
	// Warmup is how long a new endpoint is given less than its share. 0 is 90 s; negative is none.
	Warmup time.Duration
	// Zone is where this transom runs. Endpoints that are elsewhere get calls only when those of its zone are busier.
	// Empty: zones do not matter.
	Zone string
	// MaxInFlightPerEndpoint is how many calls an endpoint is given at a time; when all have as many, further ones wait in
	// the queue. 0 is no limit.
	MaxInFlightPerEndpoint int
	// ServiceConfig is gRPC service config in its standard JSON: per method timeout, waitForReady, message limits,
	// retryPolicy and hedgingPolicy (gRFC A6; hedging is for unary calls), retryThrottling, healthCheckConfig, and
	// loadBalancingConfig if LB is empty. A method without a retry policy is retried as far as that is surely safe: a
	// unary method that is IDEMPOTENT or has NO_SIDE_EFFECTS on UNAVAILABLE, any call if no server has seen it.
	ServiceConfig string
	// NoHealthCheck leaves endpoints unasked. Otherwise each is watched by grpc.health.v1 for the whole server, or the
	// service that ServiceConfig names; one that does not implement it counts as healthy.
	NoHealthCheck bool
	// RetryBudget is how many extra attempts (retries, hedges and probes) there may be per call, over the last ten seconds. 0 is
	// 0.2; a negative budget is none. Ten per ten seconds are always allowed.
	RetryBudget float64
	// RetryBytes is how much of a client's stream is kept for retries; a longer one is no longer retried. 0 is 256 KiB.
	RetryBytes int
	// MaxInFlight is how many calls the cluster carries at a time; further ones wait in a queue. 0 is 100,000.
	MaxInFlight int
	// AdaptiveConcurrency gives the cluster fewer calls than MaxInFlight at a time while its answers take much longer than
	// they did at best. It goes by unary calls.
	AdaptiveConcurrency bool
	// MaxQueued is how many calls may wait; further ones fail with Unavailable at once. 0 is 1,000.
	MaxQueued int
	// QueueTimeout is how long a call may wait before it fails with Unavailable. 0 is 5 s.
	QueueTimeout time.Duration
	// MaxMessageBytes limits one message of an answer; a larger one ends the call with ResourceExhausted. 0 is
	// DefaultMaxMessageBytes. (Requests are limited by the listeners.)
	MaxMessageBytes int
	// Keepalive is how long a connection may be silent before it is pinged; an endpoint that does not answer the ping
	// within 20 s is disconnected. 0 is 5 minutes, which every gRPC server tolerates; less than 10 s counts as 10 s.
	// Pings are sent while calls are open only.
	Keepalive time.Duration
	// ConnectTimeout limits one attempt to connect to an endpoint. 0 is 5 s.
	ConnectTimeout time.Duration
	// DNSRefresh is how often names are looked up. 0 is 10 s; less than 1 s counts as 1 s. A failed connection brings the
	// next lookup forward.
	DNSRefresh time.Duration
}

// FieldError is a fault of what the configuration has at Field, below its cluster: "lb.policy".
type FieldError struct {
	Field string
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *FieldError) Unwrap() error { return e.Err }

// inField makes each of the errors that are joined in err a FieldError, unless it is one.
func inField(field string, err error) (errs []error) {
	for _, e := range each(err) {
		if f := (*FieldError)(nil); !errors.As(e, &f) {
			e = &FieldError{field, e}
		}
		errs = append(errs, e)
	}
	return errs
}

// each lists the errors that are joined in err; none if it is nil.
func each(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
		return nil
	case !ok:
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, each(e)...)
	}
	return all
}

// Validate reports every fault of the Config, joined; those of fields that have a meaning of their own are FieldErrors.
func (c Config) Validate() error {
	var errs []error
	if c.Name == "" {
		errs = append(errs, errors.New("name: must not be empty"))
	}
	_, err := parseTarget(c.Target)
	errs = append(errs, inField("target", err)...)
	_, err = parseServiceConfig(c)
	errs = append(errs, inField("service_config", err)...)
	if c.Kubernetes != nil {
		_, err := c.Kubernetes.client()
		errs = append(errs, inField("kubernetes", err)...)
	}
	_, err = parseHashOn(c.HashOn)
	errs = append(errs, inField("lb.hash_on", err)...)
	if c.TLS != nil {
		_, err := c.TLS.load()
		errs = append(errs, inField("tls", err)...)
	}
	if c.MaxMessageBytes < 0 || c.MaxMessageBytes > math.MaxInt32 {
		errs = append(errs, fmt.Errorf("max message bytes: %d is outside 0 … %d", c.MaxMessageBytes, math.MaxInt32))
	}
	if c.RetryBudget > 1 {
		errs = append(errs, fmt.Errorf("retry budget: %v is more than 1", c.RetryBudget))
	}
	if c.RetryBytes < 0 {
		errs = append(errs, fmt.Errorf("retry bytes: %d is negative", c.RetryBytes))
	}
	for _, n := range []struct {
		field string
		v     int
	}{
		{"max in flight", c.MaxInFlight},
		{"max in flight per endpoint", c.MaxInFlightPerEndpoint},
		{"max queued", c.MaxQueued},
	} {
		if n.v < 0 {
			errs = append(errs, fmt.Errorf("%s: %d is negative", n.field, n.v))
		}
	}
	for _, d := range []struct {
		field string
		v     time.Duration
	}{
		{"queue timeout", c.QueueTimeout},
		{"keepalive", c.Keepalive},
		{"connect timeout", c.ConnectTimeout},
		{"DNS refresh", c.DNSRefresh},
	} {
		if d.v < 0 {
			errs = append(errs, fmt.Errorf("%s: %v is negative", d.field, d.v))
		}
	}
	return errors.Join(errs...)
}

// Cluster carries calls to the endpoints of one target.
type Cluster struct {
	name       string
	log        *slog.Logger
	backend    backend
	policies   *policies
	budget     *score.Budget
	retryBytes int
	gate       gate
	limiter    *score.Limiter // nil if the limit is fixed
	hash       hashOn

	// calls counts calls in flight. Close adds closing to it, which makes it negative.
	calls   atomic.Int64
	drained chan struct{} // closed, once, when the count of a closing cluster reaches zero
	drain   sync.Once
}

// closing is far below zero, so that a count with it added is negative while there are fewer than 2^62 calls.
const closing = math.MinInt64 / 2

// New makes a Cluster and starts to connect it in the background; that no endpoint can be reached is not an error. The
// caller must Close it.
func New(cfg Config, log *slog.Logger) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("cluster %q: %w", cfg.Name, err)
	}
	log = log.With("cluster", cfg.Name)
	p, err := parseServiceConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("cluster %q: service config: %w", cfg.Name, err)
	}
	hash, err := parseHashOn(cfg.HashOn)
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", cfg.Name, err)
	}
	b, err := newBackend(cfg, p, log)
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", cfg.Name, err)
	}
	c := &Cluster{
		name: cfg.Name, log: log, backend: b, policies: p, hash: hash,
		budget:     score.NewBudget(orDefault(cfg.RetryBudget, 0.2)),
		retryBytes: orDefault(cfg.RetryBytes, 256<<10),
		gate: gate{
			queue:  orDefault(cfg.MaxQueued, 1000),
			within: orDefault(cfg.QueueTimeout, 5*time.Second),
		},
		drained: make(chan struct{}),
	}
	c.gate.setLimit(int64(orDefault(cfg.MaxInFlight, defaultMaxInFlight)))
	if cfg.AdaptiveConcurrency {
		var limit int64
		c.limiter, limit = score.NewLimiter(orDefault(cfg.MaxInFlight, defaultMaxInFlight))
		c.gate.setLimit(limit)
	}
	return c, nil
}

// newBackend makes the backend that cfg asks for.
func newBackend(cfg Config, p *policies, log *slog.Logger) (backend, error) {
	t := cfg.Transport
	if t == TransportDefault {
		t = defaultTransport
	}
	if t == TransportOwn && !strings.HasPrefix(cfg.Target, "xds:") {
		return newOwn(cfg, p, log)
	}
	return newGRPC(cfg, p, log)
}

// Name is the Config's.
func (c *Cluster) Name() string { return c.name }

// Invoke carries one call to a backend and its answer to the client: an [rpc.Handler]. It may change call.Header, of which
// reserved keys do not go on, and fills the backend's part of call.Info.
func (c *Cluster) Invoke(ctx context.Context, call *rpc.Call) error {
	call.Info.Cluster = c.name
	if !c.enter() {
		call.Info.Fail(rpc.SourceGateway)
		return c.errorf(codes.Unavailable, nil, "is being removed")
	}
	defer c.leave()
	t, err := c.gate.enter(ctx)
	if err != nil {
		return c.turnedAway(ctx, call, err)
	}
	defer c.gate.leave()
	c.backend.Load(c.gate.inside.Load())
	c.backend.Prepare(call.Header)
	if call.Method.Unary() {
		return c.unary(ctx, call, t)
	}
	return c.stream(ctx, call, t)
}

// turnedAway is the end of a call that the gate did not let in.
func (c *Cluster) turnedAway(ctx context.Context, call *rpc.Call, err error) error {
	switch err {
	case errFull:
		call.Info.Fail(rpc.SourceGateway)
		return c.errorf(codes.Unavailable, err, "is at its limit of calls, and so is its queue")
	case errWaited:
		call.Info.Fail(rpc.SourceGateway)
		return c.errorf(codes.Unavailable, err, "is at its limit of calls; gave up after waiting in its queue")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		call.Info.Fail(rpc.SourceGateway)
		return c.errorf(codes.DeadlineExceeded, nil, "is at its limit of calls; the call's deadline passed in its queue")
	}
	return c.ended(ctx, call)
}

// Conn is the cluster's connections as generated clients want them, for health checks, reflection and authorization
// services. Calls over it are ordinary protobuf calls; they are not counted by Close.
func (c *Cluster) Conn() grpc.ClientConnInterface { return c.backend.Conn() }

// State is the state of the cluster as a whole: Ready if at least one endpoint is.
func (c *Cluster) State() connectivity.State { return c.backend.State() }

// Ready reports whether a call would find an endpoint now.
func (c *Cluster) Ready() bool { return c.backend.State() == connectivity.Ready }

// Endpoints is a snapshot of the endpoints for people to look at, by address. One to which there are several connections
// is listed several times. It is empty if the balancing policy is not one of package loadaware.
func (c *Cluster) Endpoints() []loadaware.EndpointStats { return c.backend.Endpoints() }

// InFlight counts the calls under way.
func (c *Cluster) InFlight() int64 { return c.gate.inside.Load() }

// Limit is how many calls may be under way.
func (c *Cluster) Limit() int64 { return c.gate.limit.Load() }

// Queued counts the calls in the queue.
func (c *Cluster) Queued() int64 { return c.gate.waiting.Load() }

// Close refuses new calls, waits until those in flight have ended and closes the connections. If ctx ends first, what
// is still in flight is cut off and ctx's error returned. Only the first Close does anything.
func (c *Cluster) Close(ctx context.Context) error {
	n := c.calls.Load()
	for {
		if n < 0 {
			return nil
		}
		if c.calls.CompareAndSwap(n, n+closing) {
			break
		}
		n = c.calls.Load()
	}
	var err error
	if n > 0 {
		select {
		case <-c.drained:
		case <-ctx.Done():
			err = fmt.Errorf("cluster %q: closed with calls in flight: %w", c.name, ctx.Err())
		}
	}
	return errors.Join(err, c.backend.Close())
}

// sinceEpoch is t as the budget wants it.
func sinceEpoch(t time.Time) time.Duration { return time.Duration(t.UnixNano()) }

// enter counts a call in and reports whether it may run.
func (c *Cluster) enter() bool {
	if c.calls.Add(1) > 0 {
		return true
	}
	c.leave()
	return false
}

// leave counts a call out.
func (c *Cluster) leave() {
	if c.calls.Add(-1) == closing {
		c.drain.Do(func() { close(c.drained) }) // a call that is refused comes to zero again
	}
}
