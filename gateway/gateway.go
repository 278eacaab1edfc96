// Package gateway is transom's composition root, the only package that knows every other. It compiles a configuration
// and the descriptors it names into one immutable [Snapshot], puts it in force with one pointer, and owns what lives
// longer than a Snapshot: listeners, clusters, descriptor sources.
//
// # Concurrency
// A Gateway's methods may be called from any goroutine. Reloads run one at a time; calls never wait for one.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc/health"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/listeners"
	configv1 "transom/proto/transom/config/v1"
)

// Gateway is a running transom.
type Gateway struct {
	log     *slog.Logger
	current current
	servers []*listeners.Server
	drain   time.Duration
	// ready is false until every descriptor source has answered, and again from the start of a drain.
	ready atomic.Bool
	// broken ends Run when a listener fails.
	broken chan error

	health *health.Server

	keep keep

	mu  sync.Mutex // guards what follows, and serialises reloads
	cfg *configv1.Config
	// missing are the descriptor sources that have not answered yet.
	missing []*configv1.DescriptorSource
}

// New compiles cfg, connects to its clusters and binds its listeners; Run serves. All faults of cfg are reported at once,
// as joined Faults. A descriptor source that does not answer yet is no fault: the gateway is up, but not ready. On error
// nothing stays open.
func New(ctx context.Context, cfg *configv1.Config, log *slog.Logger) (*Gateway, error) {
	g := &Gateway{log: log, health: health.NewServer(), broken: make(chan error, 1), drain: drainOf(cfg)}
	if err := g.Reload(ctx, cfg); err != nil {
		return nil, err
	}
	for i, l := range cfg.GetListeners() {
		s, err := g.listen(ctx, l)
		if err != nil {
			g.close(context.WithoutCancel(ctx))
			return nil, &Fault{fmt.Sprintf("listeners[%d]", i), err.Error()}
		}
		g.servers = append(g.servers, s)
	}
	return g, nil
}

// listen binds one listener.
func (g *Gateway) listen(ctx context.Context, l *configv1.Listener) (*listeners.Server, error) {
	var tc *tls.Config
	if t := l.GetTls(); t != nil {
		pair, err := tls.LoadX509KeyPair(t.GetCertificate(), t.GetKey())
		if err != nil {
			return nil, err
		}
		tc = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	fc, err := frontConfig(g.cfg, l, g.ready.Load)
	if err != nil {
		return nil, err
	}
	front := listeners.NewFront(fc, &g.current, g.log)
	return listeners.Listen(ctx, listenerConfig(g.cfg, l, tc), front, g.log)
}

// Addrs are the bound addresses, in the order of the configuration's listeners.
func (g *Gateway) Addrs() []*net.TCPAddr {
	addrs := make([]*net.TCPAddr, len(g.servers))
	for i, s := range g.servers {
		addrs[i] = s.Addr()
	}
	return addrs
}

// Ready reports whether all descriptors are loaded and no drain has begun.
func (g *Gateway) Ready() bool { return g.ready.Load() }

// Run serves until ctx ends, drains, and closes everything. It returns an error if a listener failed, or if calls had to
// be cut at the end of the drain.
func (g *Gateway) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	run, stop := context.WithCancel(ctx)
	defer stop()
	for _, s := range g.servers {
		wg.Go(func() {
			if err := s.Run(); err != nil {
				select {
				case g.broken <- err:
				default:
				}
			}
		})
	}
	wg.Go(func() { g.chaseDescriptors(run) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-g.broken:
	}
	stop()
	g.ready.Store(false)
	g.health.Shutdown()
	g.log.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "draining", slog.Duration("limit", g.drain))
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.drain)
	defer cancel()
	errs := make([]error, len(g.servers))
	for i, s := range g.servers {
		wg.Go(func() { errs[i] = s.Drain(limit) })
	}
	wg.Wait()
	g.close(context.WithoutCancel(ctx))
	if cut := errors.Join(errs...); cut != nil {
		g.log.LogAttrs(context.WithoutCancel(ctx), slog.LevelWarn, "calls were cut at the end of the drain")
	}
	return err
}

// close lets go of the Snapshot in force, and so of the clusters.
func (g *Gateway) close(ctx context.Context) {
	for _, s := range g.servers {
		_ = s.Drain(ctx)
	}
	if s := g.current.p.Load(); s != nil {
		s.Release()
	}
}

// Reload compiles cfg and puts it in force, all or nothing: on error what was in force stays. Listeners are not changed.
func (g *Gateway) Reload(ctx context.Context, cfg *configv1.Config) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	cfg, _ = proto.Clone(cfg).(*configv1.Config)
	return g.reload(ctx, cfg)
}

// reload does the work of Reload with mu held.
func (g *Gateway) reload(ctx context.Context, cfg *configv1.Config) error {
	b := builder{ctx: ctx, cfg: cfg, log: g.log, health: g.health, holds: holds{keep: &g.keep}}
	s, err := b.build()
	if err != nil {
		return err
	}
	g.cfg, g.missing = cfg, b.missing
	g.current.swap(s)
	g.ready.Store(len(b.missing) == 0)
	announce(g.health, s.schema, len(b.missing) == 0)
	return nil
}

// joinFaults makes one error of all faults.
func joinFaults(faults []Fault) error {
	errs := make([]error, len(faults))
	for i := range faults {
		errs[i] = &faults[i]
	}
	return errors.Join(errs...)
}

// chaseDescriptors asks the descriptor sources that have not answered, with growing pauses, until all have.
func (g *Gateway) chaseDescriptors(ctx context.Context) {
	const first, last = 100 * time.Millisecond, 10 * time.Second
	for pause := first; ; pause = min(2*pause, last) {
		g.mu.Lock()
		waiting := len(g.missing) > 0
		g.mu.Unlock()
		if !waiting {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		g.mu.Lock()
		if err := g.reload(ctx, g.cfg); err != nil && ctx.Err() == nil {
			g.log.LogAttrs(ctx, slog.LevelError, "descriptors do not compile", slog.String("error", err.Error()))
		}
		g.mu.Unlock()
	}
}

// Snapshot runs fn on the Snapshot in force.
func (g *Gateway) Snapshot(fn func(*Snapshot)) {
	s := g.current.Acquire().(*Snapshot) //nolint:forcetypeassert // current holds nothing else
	defer s.Release()
	fn(s)
}

// Schema is the schema of the Snapshot.
func (s *Snapshot) Schema() *descriptors.Schema { return s.schema }

// Check compiles cfg without serving it. Descriptor sources that do not answer are faults here.
func Check(ctx context.Context, cfg *configv1.Config, log *slog.Logger) error {
	return offline(ctx, cfg, log, func(*Snapshot) error { return nil })
}

// Routes writes a table of what can be called: HTTP verb, path template, method and kind, sorted by path; methods without
// an HTTP rule are listed by their gRPC path.
func Routes(ctx context.Context, cfg *configv1.Config, w io.Writer, log *slog.Logger) error {
	return offline(ctx, cfg, log, func(s *Snapshot) error {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "VERB\tPATH\tMETHOD\tKIND")
		var rows [][2]string
		for _, m := range s.schema.Methods() {
			kind := kindOf(m)
			for _, b := range m.Bindings {
				rows = append(rows, [2]string{b.Template, fmt.Sprintf("%s\t%s\t%s\t%s", b.Verb, b.Template, m.Name, kind)})
			}
			rows = append(rows, [2]string{m.FullPath, fmt.Sprintf("POST\t%s\t%s\t%s", m.FullPath, m.Name, kind)})
		}
		slices.SortStableFunc(rows, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
		for _, r := range rows {
			fmt.Fprintln(tw, r[1])
		}
		return tw.Flush()
	})
}

func kindOf(m *descriptors.Method) string {
	switch {
	case m.Unary():
		return "unary"
	case !m.ClientStreams:
		return "server stream"
	case !m.ServerStreams:
		return "client stream"
	}
	return "bidi stream"
}

// offline compiles cfg and runs fn on the result.
func offline(ctx context.Context, cfg *configv1.Config, log *slog.Logger, fn func(*Snapshot) error) error {
	g := &Gateway{log: log, health: health.NewServer()}
	if err := g.Reload(ctx, cfg); err != nil {
		return err
	}
	defer g.close(context.WithoutCancel(ctx))
	var faults []Fault
	for i, d := range cfg.GetDescriptors() {
		if slices.ContainsFunc(g.missing, func(m *configv1.DescriptorSource) bool { return proto.Equal(m, d) }) {
			faults = append(faults, Fault{fmt.Sprintf("descriptors[%d]", i), "the cluster's servers do not answer reflection"})
		}
	}
	if len(faults) > 0 {
		return joinFaults(faults)
	}
	var err error
	g.Snapshot(func(s *Snapshot) { err = fn(s) })
	return err
}
