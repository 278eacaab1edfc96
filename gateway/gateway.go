// Package gateway is transom's composition root, the only package that knows every other. It compiles a configuration
// and the descriptors it names into one immutable [Snapshot], puts it in force with one pointer, and owns what lives
// longer than a Snapshot: listeners, clusters, descriptor sources.
//
// # Concurrency
// A Gateway's methods may be called from any goroutine. Reloads run one at a time; calls never wait for one.
package gateway

import (
	"context"
	"crypto/sha256"
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

	"transom/descriptors"
	"transom/gateway/observe"
	"transom/policy/identity"
	"transom/policy/traffic"
	configv1 "transom/proto/transom/config/v1"
)

// Gateway is a running transom.
type Gateway struct {
	log     *slog.Logger
	current current
	// complete is false until every descriptor source has answered; draining is true from the start of a drain.
	complete, draining atomic.Bool
	// broken ends Run when a listener fails, leave when somebody asks for a drain.
	broken chan error
	leave  chan struct{}
	asked  sync.Once
	// replaced says that another process has the sockets.
	replaced atomic.Bool
	// wake makes Run look again at what should run.
	wake chan struct{}
	// up is closed when Run first serves all there is to serve.
	up   chan struct{}
	isUp sync.Once
	// down is closed when a drain begins, quicOver when it has ended with all QUIC connections.
	down, quicOver chan struct{}
	// turn is that of the sockets that the process came with; may be nil.
	turn <-chan struct{}
	// waits says that these sockets are still left to the process that this one is to replace. It is Run's.
	waits bool

	health *health.Server
	keep   keep
	loads  loads
	// overload is measured over all Snapshots.
	overload overload
	// mirrors are the copies of calls, of all Snapshots.
	mirrors *traffic.Mirrors
	// streams are the open ones of all Snapshots whose callers are known.
	streams identity.Streams
	// metrics are collected while somebody can read them.
	metrics *observe.Metrics
	began   time.Time
	// level is the log's; nil if it can't be changed.
	level *slog.LevelVar
	// view is what is in force, for the admin listener.
	view atomic.Pointer[view]
	// started says that all descriptors were there once.
	started atomic.Bool

	mu  sync.Mutex // guards what follows, and serialises reloads
	cfg *configv1.Config
	// file is where cfg came from and comes from again; "" if it was given as a value.
	file string
	// digest is of the watched files as they were last read.
	digest [sha256.Size]byte
	// servers are in the order of the configuration's listeners; retired are those no longer wanted, which Run is to drain, and leaving
	// those and what Run drains.
	servers, retired []*serving
	leaving          map[*serving]struct{}
	// admin is nil without one.
	admin *admin
	// sockets are those that the process came with; all are taken or closed by the first configuration.
	sockets *Sockets
	// offline says that nothing is to be served.
	offline bool
	// sources and issuers are by key.
	sources map[string]*source
	issuers map[string]*issuing
}

// New compiles cfg, connects to its clusters and binds its listeners; Run serves. All faults of cfg are reported at once,
// as joined Faults. A descriptor source that does not answer yet is no fault: the gateway is up, but not ready. On error
// nothing stays open.
func New(ctx context.Context, cfg *configv1.Config, log *slog.Logger) (*Gateway, error) {
	return NewOn(ctx, nil, cfg, log)
}

// NewOn is New with listeners that take their sockets from those given, as far as there is one for them, rather than bind.
// It closes the others. If they have a Turn, Run leaves them to whoever has them until all there is to serve is there, or that one is gone.
func NewOn(ctx context.Context, sockets *Sockets, cfg *configv1.Config, log *slog.Logger) (*Gateway, error) {
	g := newGateway(log)
	if g.sockets = sockets; sockets != nil {
		g.turn = sockets.Turn
		g.waits = g.turn != nil
	}
	if err := g.Reload(ctx, cfg); err != nil {
		return nil, err
	}
	return g, nil
}

func newGateway(log *slog.Logger) *Gateway {
	g := &Gateway{
		log: log, began: time.Now(), metrics: observe.NewMetrics(), health: health.NewServer(), broken: make(chan error, 1), leave: make(chan struct{}), wake: make(chan struct{}, 1), up: make(chan struct{}), down: make(chan struct{}), quicOver: make(chan struct{}),
		mirrors: traffic.NewMirrors(), leaving: map[*serving]struct{}{},
	}
	g.metrics.Register(newState(g))
	return g
}

// Follow names the file that the configuration came from: Refresh reads it again, and Run watches it as it does the files that it
// names, unless the configuration says not to. It must be called before Run.
func (g *Gateway) Follow(path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.file = path
	g.digest = digestOf(g.watched())
}

// LogLevel lets the admin listener change the level of the log. It must be called before Run.
func (g *Gateway) LogLevel(v *slog.LevelVar) { g.level = v }

// Addrs are the bound addresses, in the order of the configuration's listeners.
func (g *Gateway) Addrs() []*net.TCPAddr {
	g.mu.Lock()
	defer g.mu.Unlock()
	addrs := make([]*net.TCPAddr, len(g.servers))
	for i, s := range g.servers {
		addrs[i] = s.server.Addr()
	}
	return addrs
}

// Ready reports whether all descriptors are loaded and no drain has begun.
func (g *Gateway) Ready() bool { return g.complete.Load() && !g.draining.Load() }

// Drain makes Run drain and return, as the end of its context does. It does not wait.
func (g *Gateway) Drain() { g.asked.Do(func() { close(g.leave) }) }

// Run serves until ctx ends or Drain is called, drains, and closes everything. It returns an error if a listener failed.
func (g *Gateway) Run(ctx context.Context) error {
	run, stop := context.WithCancel(ctx)
	defer stop()
	var serving, following sync.WaitGroup
	following.Go(func() { g.watch(run) })
	following.Go(func() { g.watchMemory(run) })
	var err error
	turn := g.turn
	for running := true; running; {
		g.reconcile(run, &serving, &following)
		select {
		case <-g.wake:
		case <-turn:
			g.waits = false
			turn = nil
		case <-ctx.Done():
			running = false
		case <-g.leave:
			running = false
		case err = <-g.broken:
			running = false
		}
	}
	stop()
	following.Wait()
	detached := context.WithoutCancel(ctx)
	g.mu.Lock() // a reload under way is the last one
	g.draining.Store(true)
	close(g.down)
	servers, cfg := g.servers, g.cfg
	g.mu.Unlock()
	g.health.Shutdown()
	began := time.Now()
	g.log.LogAttrs(detached, slog.LevelInfo, "draining", slog.Duration("limit", drainOf(cfg)), slog.Bool("replaced", g.replaced.Load()))
	if g.replaced.Load() {
		g.closeAdmin()
	} else if delay := cfg.GetDrain().GetDelay().AsDuration(); delay > 0 && err == nil {
		time.Sleep(delay)
	}
	limit, cancel := context.WithTimeout(detached, drainOf(cfg))
	defer cancel()
	errs := make([]error, len(servers))
	var draining sync.WaitGroup
	for i, s := range servers {
		draining.Go(func() { errs[i] = s.server.Drain(limit) })
	}
	for _, s := range servers {
		<-s.server.QUICOver()
	}
	if g.turn != nil {
		select {
		case <-g.turn:
		case <-limit.Done():
		}
	}
	close(g.quicOver)
	draining.Wait()
	g.close(detached)
	serving.Wait()
	if cut := errors.Join(errs...); cut != nil {
		g.log.LogAttrs(detached, slog.LevelWarn, "calls were cut at the end of the drain")
	}
	g.log.LogAttrs(detached, slog.LevelInfo, "drained", slog.Duration("took", time.Since(began)))
	return err
}

// reconcile starts what should run and does not yet, and ends what should not.
func (g *Gateway) reconcile(ctx context.Context, serving, following *sync.WaitGroup) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.complete.Load() {
		g.waits = false
	}
	for _, s := range g.servers {
		if s.started || g.waits {
			continue
		}
		s.started = true
		serving.Go(func() {
			if err := s.server.Run(); err != nil {
				select {
				case g.broken <- err:
				default:
				}
			}
		})
	}
	for _, s := range g.retired {
		serving.Go(func() { g.retire(context.WithoutCancel(ctx), s) })
	}
	g.retired = nil
	if g.admin != nil && !g.admin.started && !g.waits {
		g.admin.started = true
		serving.Go(g.admin.serve)
	}
	if g.complete.Load() {
		g.isUp.Do(func() { close(g.up) })
	}
	for _, s := range g.issuers {
		if s.stop == nil {
			var own context.Context
			own, s.stop = context.WithCancel(ctx)
			following.Go(func() { s.issuer.Run(own) })
		}
	}
	for key, s := range g.sources {
		if s.stop != nil {
			continue
		}
		var own context.Context
		own, s.stop = context.WithCancel(ctx)
		following.Go(func() {
			_ = s.from.Run(own, func(set *descriptors.Set, err error) { g.descriptorsChanged(own, key, set, err) })
		})
	}
}

// retire drains a listener that the configuration no longer has, or has otherwise.
func (g *Gateway) retire(ctx context.Context, s *serving) {
	ctx, cancel := context.WithTimeout(ctx, s.drain)
	defer cancel()
	if err := s.server.Drain(ctx); err != nil {
		g.log.LogAttrs(ctx, slog.LevelWarn, "calls of a retired listener were cut", slog.String("listener", s.server.Name()))
	}
	g.log.LogAttrs(ctx, slog.LevelInfo, "listener retired", slog.String("listener", s.server.Name()))
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.leaving, s)
}

// closeAdmin ends the admin listener of a process that was replaced: operators mean the one that goes on.
func (g *Gateway) closeAdmin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.admin != nil {
		g.admin.keepSocketFile()
		g.admin.close()
		g.admin = nil
	}
}

// close lets go of all that is open.
func (g *Gateway) close(ctx context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.servers {
		_ = s.server.Drain(ctx)
	}
	for _, s := range g.retired {
		_ = s.server.Drain(ctx)
	}
	g.servers, g.retired = nil, nil
	if g.admin != nil {
		g.admin.close()
	}
	g.mirrors.Close()
	if s := g.current.p.Load(); s != nil {
		closePush(s.push, g.log) // while there is a Snapshot to tell of
		g.current.close()
	}
}

// joinFaults makes one error of all faults.
func joinFaults(faults []Fault) error {
	errs := make([]error, len(faults))
	for i := range faults {
		errs[i] = &faults[i]
	}
	return errors.Join(errs...)
}

// Snapshot runs fn on the Snapshot in force. After Run has closed everything there is none, and fn is not run.
func (g *Gateway) Snapshot(fn func(*Snapshot)) {
	if s := g.current.take(); s != nil {
		defer s.Release()
		fn(s)
	}
}

// Schema is the schema of the Snapshot.
func (s *Snapshot) Schema() *descriptors.Schema { return s.schema }

// Check compiles cfg without serving it. Descriptor sources that do not answer are faults here; an endpoint file that is not there,
// which may come later, is a warning in the log.
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
	g := newGateway(log)
	g.offline = true
	p, err := g.compile(ctx, cfg, fresh{})
	if err != nil {
		return err
	}
	defer p.snapshot.Release()
	if len(p.missing) > 0 {
		faults := make([]Fault, len(p.missing))
		for i, n := range p.missing {
			faults[i] = Fault{Path: fmt.Sprintf("descriptors[%d]", n), Msg: "the cluster's servers do not answer reflection"}
		}
		return joinFaults(faults)
	}
	return fn(p.snapshot)
}
