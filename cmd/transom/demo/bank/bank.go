// Package bank is the backend of transom's demo and of its tests: bank.v1 in memory, with data that is the same at every
// start. It answers every kind of call, can be made slow, fails as it is asked to, and reports its load (ORCA) in the
// trailers of unary calls.
//
// # Data
// Customers 1 to 8 have three accounts each, "customers/C/accounts/1" to 3, with the numbers 1 to 24 in that order: number
// 7 is customers/3/accounts/1. Account N holds 1000·N units and 50 hundredths, in EUR, but USD and GBP for those of
// customers 7 and 8.
//
// # Concurrency
// A Bank is safe for concurrent use, by several servers too.
package bank

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	bankv1 "transom/proto/bank/v1"
)

// Config says how a Bank behaves. Its zero value answers at once, any number of calls at a time.
type Config struct {
	// Name is the server's own, in the answers of bank.v1.Diagnostics.
	Name string
	// Delay is how long the work of a unary call takes; a deadline or cancellation ends it early.
	Delay time.Duration
	// Capacity is how many unary calls are worked on at a time; further ones wait. 0 is without limit, and then the bank
	// reports its load as if it were 100.
	Capacity int
	// Canceled, if not nil, is told of every call whose context ended before its handler did: the full method,
	// "/bank.v1.Support/Chat", and the context's error. It is called on the call's goroutine.
	Canceled func(method string, err error)
}

// Bank implements the services of bank.v1.
type Bank struct {
	cfg   Config
	slots chan struct{} // holds a token for each call worked on; nil without limit
	// Health is what the registered grpc.health.v1 says; all services serve until a test says otherwise.
	Health *health.Server

	inFlight atomic.Int64 // unary calls being worked on or waiting
	rate     rate

	*books
}

// books are the data of a bank and its branches.
type books struct {
	mu    sync.Mutex // guards what follows
	state state
}

// New returns a bank with the seed data.
func New(cfg Config) *Bank { return open(cfg, &books{state: seed()}) }

// Branch returns another bank on the same data, so that calls may go to either.
func (b *Bank) Branch(cfg Config) *Bank { return open(cfg, b.books) }

func open(cfg Config, data *books) *Bank {
	b := &Bank{cfg: cfg, Health: health.NewServer(), books: data}
	if cfg.Capacity > 0 {
		b.slots = make(chan struct{}, cfg.Capacity)
	}
	return b
}

// Register puts the bank's services, grpc.health.v1 and reflection on s, which must have been made with
// [Bank.ServerOptions].
func (b *Bank) Register(s reflection.GRPCServer) {
	bankv1.RegisterAccountsServer(s, &accounts{bank: b})
	bankv1.RegisterRatesServer(s, &rates{})
	bankv1.RegisterStatementsServer(s, &statements{bank: b})
	bankv1.RegisterSupportServer(s, &support{})
	bankv1.RegisterDiagnosticsServer(s, &diagnostics{bank: b})
	for name := range s.GetServiceInfo() {
		b.Health.SetServingStatus(name, healthgrpc.HealthCheckResponse_SERVING)
	}
	healthgrpc.RegisterHealthServer(s, b.Health)
	reflection.Register(s)
}

// ServerOptions are what a server needs for the bank's delay, load reports and Config.Canceled.
func (b *Bank) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		orca.CallMetricsServerOption(nil),
		grpc.ChainUnaryInterceptor(b.unary),
		grpc.ChainStreamInterceptor(b.stream),
	}
}

// unary does the work of a unary call: waits for a slot and for Config.Delay, calls the handler and reports the load.
func (b *Bank) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	b.inFlight.Add(1)
	resp, err := b.work(ctx, req, handler)
	if r := orca.CallMetricsRecorderFromContext(ctx); r != nil { // nil for a server without ServerOptions
		qps, eps := b.rate.count(time.Now(), err != nil)
		r.SetApplicationUtilization(b.utilization())
		r.SetQPS(qps)
		r.SetEPS(eps)
		r.SetNamedMetric("in_flight", float64(b.inFlight.Load()-1))
	}
	b.inFlight.Add(-1)
	b.observe(ctx, info.FullMethod)
	return resp, err
}

// work waits for a slot and for Config.Delay, and calls the handler.
func (b *Bank) work(ctx context.Context, req any, handler grpc.UnaryHandler) (any, error) {
	if b.slots != nil {
		select {
		case b.slots <- struct{}{}:
			defer func() { <-b.slots }()
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if err := sleep(ctx, b.cfg.Delay); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// stream tells Config.Canceled of streams that were cut short.
func (b *Bank) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := handler(srv, ss)
	b.observe(ss.Context(), info.FullMethod)
	return err
}

// observe is called as a handler returns; the context has ended by then only if the client ended it.
func (b *Bank) observe(ctx context.Context, method string) {
	if err := ctx.Err(); err != nil && b.cfg.Canceled != nil {
		b.cfg.Canceled(method, err)
	}
}

// utilization is the share of the capacity in use, more than 1 when calls wait.
func (b *Bank) utilization() float64 {
	capacity := b.cfg.Capacity
	if capacity == 0 {
		capacity = 100
	}
	return float64(b.inFlight.Load()) / float64(capacity)
}

// sleep waits for d; the error is a status if ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// rate counts calls and errors by the second.
type rate struct {
	mu          sync.Mutex
	second      int64
	calls, errs [2]int // of this second and of the one before
}

// count adds a call and returns calls and errors per second: those of the last full second, or of the present one if they
// are more already.
func (r *rate) count(now time.Time, failed bool) (qps, eps float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch s := now.Unix(); s - r.second {
	case 0:
	case 1:
		r.calls, r.errs, r.second = [2]int{0, r.calls[0]}, [2]int{0, r.errs[0]}, s
	default:
		r.calls, r.errs, r.second = [2]int{}, [2]int{}, s
	}
	r.calls[0]++
	if failed {
		r.errs[0]++
	}
	return float64(max(r.calls[0], r.calls[1])), float64(max(r.errs[0], r.errs[1]))
}

// statusWith is a status with details.
func statusWith(code codes.Code, msg string, details ...detail) error {
	st := status.New(code, msg)
	with, err := st.WithDetails(details...)
	if err != nil { // a detail that does not marshal; the status still says what matters
		return st.Err()
	}
	return with.Err()
}
