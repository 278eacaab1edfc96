package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/descriptors"
	"transom/gateway/configfile"
	"transom/listeners"
	configv1 "transom/proto/transom/config/v1"
)

// serving is one listener and what belongs to it.
type serving struct {
	// key tells listeners apart over reloads: the configured address, counted among equal ones.
	key    string
	cfg    listeners.Config // without what can be changed while it runs
	server *listeners.Server
	certs  *certificates // nil without TLS
	// started says that Run serves it.
	started bool
	// drain is how long its calls have when it is retired.
	drain time.Duration
}

// loads are the reloads so far.
type loads struct {
	good, bad atomic.Int64
	// ok says that nothing is refused that should be in force, at when the last good one was, in Unix nanoseconds.
	ok atomic.Bool
	at atomic.Int64
	// refused is what is at fault as it was last read. Gateway.mu guards it.
	refused map[string]bool
}

// configuration is what loads call the configuration file and what it names.
const configuration = "configuration"

// plan is a compiled configuration that is not in force yet. Its Snapshot must be released or put in force.
type plan struct {
	cfg      *configv1.Config
	snapshot *Snapshot
	sources  map[string]*source
	missing  []int
	builder  *builder
	// changes are what the schema brings against the one in force.
	changes []descriptors.Change
}

// Reload compiles cfg and puts it in force, all or nothing: on error what was in force stays. Listeners that cfg changes
// are replaced, with their sockets handed on; other listeners, and all open calls, are not touched. Certificates and
// descriptor files are read again.
func (g *Gateway) Reload(ctx context.Context, cfg *configv1.Config) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	cfg, _ = proto.Clone(cfg).(*configv1.Config)
	if g.file == "" {
		g.digest = digestOf(watchedFiles(cfg)) // as of before they are read
	}
	return g.reload(ctx, cfg)
}

// Refresh reads the file that Follow named and reloads; without a file it reloads the configuration in force, which reads
// certificates and descriptors again. What is wrong is logged, and returned with its place in the file.
func (g *Gateway) Refresh(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refresh(ctx)
}

// refresh does the work of Refresh with mu held.
func (g *Gateway) refresh(ctx context.Context) error {
	// Taken before the files are read: what changes meanwhile is noticed.
	files := g.watched()
	g.digest = digestOf(files)
	err := func() error {
		if g.file == "" {
			return g.reload(ctx, g.cfg)
		}
		file, err := configfile.Load(g.file)
		if err != nil {
			return err
		}
		err = Locate(g.reload(ctx, file.Config), file)
		if now := g.watched(); !slices.Equal(now, files) {
			g.digest = digestOf(now)
		}
		return err
	}()
	g.loaded(ctx, configuration, err)
	return err
}

// reload does the work of Reload with mu held.
func (g *Gateway) reload(ctx context.Context, cfg *configv1.Config) error {
	if g.draining.Load() {
		return errors.New("the gateway is shutting down")
	}
	p, err := g.compile(ctx, cfg, fresh{})
	if err == nil {
		err = g.commit(ctx, p)
	}
	if err == nil {
		clear(g.loads.refused) // all has been read anew
		g.loads.ok.Store(true)
	}
	return err
}

// loaded logs and counts how a reload went. mu is held.
func (g *Gateway) loaded(ctx context.Context, what string, err error) {
	if err == nil {
		delete(g.loads.refused, what)
	} else {
		if g.loads.refused == nil {
			g.loads.refused = map[string]bool{}
		}
		g.loads.refused[what] = true
	}
	g.loads.ok.Store(len(g.loads.refused) == 0)
	if err != nil {
		g.loads.bad.Add(1)
		for _, e := range flatten(err) {
			g.log.LogAttrs(ctx, slog.LevelError, "reload refused, what was in force stays", slog.String("what", what), slog.String("fault", e.Error()))
		}
		return
	}
	g.log.LogAttrs(ctx, slog.LevelInfo, "reloaded", slog.String("what", what))
}

// locate gives faults their place in the file that the configuration in force came from, as far as it still says the same.
func (g *Gateway) locate(err error) error {
	if err == nil || g.file == "" {
		return err
	}
	file, unreadable := configfile.Load(g.file)
	if unreadable != nil || !proto.Equal(file.Config, g.cfg) {
		return err
	}
	return Locate(err, file)
}

// Locate gives the Faults joined in err their file, line and column. Other errors stay as they are.
func Locate(err error, file *configfile.File) error {
	if err == nil || file == nil {
		return err
	}
	var faults configfile.Faults
	for _, e := range flatten(err) {
		f, ok := errors.AsType[*Fault](e)
		if !ok {
			return err
		}
		faults = append(faults, file.Fault(f.Path, f.text(func(path string) string {
			if strings.HasPrefix(path, optionName) {
				return path // which is in no file
			}
			line, _ := file.Position(path)
			return fmt.Sprintf("line %d", line)
		})))
	}
	return faults
}

// redisPatience is how long a configuration waits for a Redis that is new to it, before it is in force without.
const redisPatience = time.Second

// compile makes a plan of cfg, without effect on what is in force but that clusters begin to connect.
func (g *Gateway) compile(ctx context.Context, cfg *configv1.Config, anew rereads) (*plan, error) {
	b := &builder{ctx: ctx, cfg: cfg, log: g.log, metrics: g.metrics, health: g.health, holds: holds{keep: &g.keep}, known: g.sources, issuing: g.issuers, anew: anew, dry: g.offline, overload: &g.overload, mirrors: g.mirrors, streams: &g.streams}
	s, err := b.build()
	if err != nil {
		return nil, err
	}
	if b.redis != nil && !b.dry { // else the first calls would be counted here alone, or refused
		wait, cancel := context.WithTimeout(ctx, redisPatience)
		b.redis.Await(wait)
		cancel()
	}
	p := &plan{cfg: cfg, snapshot: s, sources: b.loaded, missing: b.missing, builder: b}
	if old := g.current.p.Load(); old != nil {
		p.changes = descriptors.Diff(old.schema, s.schema)
	}
	if cfg.GetReload().GetRefuseBreaking() {
		var faults []Fault
		for _, c := range p.changes {
			if c.Breaking {
				faults = append(faults, Fault{Path: "descriptors", Msg: c.String()})
			}
		}
		if len(faults) > 0 {
			s.Release()
			return nil, joinFaults(faults)
		}
	}
	return p, nil
}

// commit puts a plan in force, or releases it and says why it can't be.
func (g *Gateway) commit(ctx context.Context, p *plan) error {
	adm, err := g.openAdmin(ctx, p.cfg.GetAdmin())
	var next []*serving
	if err == nil {
		next, err = g.openListeners(ctx, p)
		if err != nil && adm.opened() {
			adm.next.close()
		}
	}
	if err != nil {
		p.snapshot.Release()
		return err
	}
	g.useAdmin(adm)
	g.sockets.closeRest(ctx, g.log)
	g.logChanges(ctx, p.changes)
	g.streams.Use(p.snapshot.directory)
	g.current.swap(p.snapshot)
	terms := map[string]*listenerTLS{}
	for i, s := range next {
		terms[s.key] = p.builder.tls[i]
	}
	g.retireOthers(next, drainOf(p.cfg))
	for _, s := range slices.AppendSeq(slices.Clone(next), maps.Keys(g.leaving)) { // those too that another has taken the place of
		if now := terms[s.key]; s.certs != nil && now != nil {
			s.certs.replace(now, s.server)
		}
	}
	for key, s := range g.sources {
		if n := p.sources[key]; n != nil {
			s.set = n.set
			p.sources[key] = s
		} else if s.stop != nil {
			s.stop()
		}
	}
	for key, s := range g.issuers {
		if p.builder.issuers[key] == nil && s.stop != nil {
			s.stop()
		}
	}
	g.cfg, g.sources, g.issuers, g.servers = p.cfg, p.sources, p.builder.issuers, next
	g.complete.Store(len(p.missing) == 0)
	if len(p.missing) == 0 {
		g.started.Store(true)
	}
	files := slices.SortedFunc(slices.Values(p.snapshot.schema.FileDescriptorSet().GetFile()),
		func(a, b *descriptorpb.FileDescriptorProto) int { return strings.Compare(a.GetName(), b.GetName()) })
	g.view.Store(&view{
		cfg: p.cfg, servers: next, missing: p.missingNames(), issuers: issuersOf(p.builder.issuers),
		configHash: hashOf(redacted(p.cfg)), schemaHash: hashOf(&descriptorpb.FileDescriptorSet{File: files}),
	})
	announce(g.health, p.snapshot.schema, len(p.missing) == 0)
	g.loads.good.Add(1)
	g.loads.at.Store(time.Now().UnixNano())
	select {
	case g.wake <- struct{}{}:
	default:
	}
	return nil
}

// maxLoggedChanges bounds what one reload writes to the log about schemas.
const maxLoggedChanges = 50

func (g *Gateway) logChanges(ctx context.Context, changes []descriptors.Change) {
	for i, c := range changes {
		if i == maxLoggedChanges {
			g.log.LogAttrs(ctx, slog.LevelInfo, "further schema changes", slog.Int("count", len(changes)-i))
			return
		}
		level := slog.LevelInfo
		if c.Breaking {
			level = slog.LevelWarn
		}
		g.log.LogAttrs(ctx, level, "schema change", slog.String("change", c.String()))
	}
}

// openListeners gives each of the plan's listeners its serving: the one that there is, with new settings in force, one with
// the sockets of the one that there is, or one with sockets of its own. On error none is changed.
func (g *Gateway) openListeners(ctx context.Context, p *plan) ([]*serving, error) {
	old := map[string]*serving{}
	for _, s := range g.servers {
		old[s.key] = s
	}
	seen := map[string]int{}
	var next, opened []*serving
	var fronts []*listeners.Front
	for i, l := range p.cfg.GetListeners() {
		key := fmt.Sprintf("%s#%d", l.GetAddress(), seen[l.GetAddress()])
		seen[l.GetAddress()]++
		fc, err := frontConfig(p.cfg, l, g.Ready)
		var front *listeners.Front
		if err == nil {
			fc.Observer, fc.Challenge = p.observer(g), keyAuthorization(p.builder.issuers)
			front = listeners.NewFront(fc, &g.current, g.log)
			s := &serving{key: key, cfg: listenerConfig(p.cfg, l), drain: drainOf(p.cfg)}
			if was := old[key]; was != nil && was.cfg == s.cfg && (was.certs != nil) == (p.builder.tls[i] != nil) {
				next, fronts = append(next, was), append(fronts, front)
				continue
			}
			if err = s.open(ctx, front, p.builder.tls[i], old[key], g.sockets.listener(key, l.GetName(), l.GetAddress()), g.log); err == nil {
				next, opened, fronts = append(next, s), append(opened, s), append(fronts, nil)
				continue
			}
		}
		for _, s := range opened {
			_ = s.server.Drain(ctx)
		}
		return nil, &Fault{Path: fmt.Sprintf("listeners[%d]", i), Msg: err.Error()}
	}
	for i, s := range next {
		if fronts[i] != nil {
			s.server.SetFront(fronts[i])
		}
	}
	for _, s := range opened {
		g.log.LogAttrs(ctx, slog.LevelInfo, "listening",
			slog.String("address", s.server.Addr().String()), slog.Bool("tls", s.certs != nil), slog.Bool("http3", s.cfg.HTTP3))
	}
	return next, nil
}

// open binds the listener, or takes over the sockets of was, or those given.
func (s *serving) open(ctx context.Context, front *listeners.Front, terms *listenerTLS, was *serving, given *listeners.Sockets, log *slog.Logger) error {
	lc := s.cfg
	lc.Sockets = given
	if terms != nil {
		s.certs = &certificates{}
		s.certs.inForce.Store(terms)
		lc.TLS = s.certs.config()
	}
	var err error
	if was != nil {
		if lc.Sockets, err = was.server.Share(); err != nil {
			return err
		}
	}
	if s.server, err = listeners.Listen(ctx, lc, front, log); err != nil && lc.Sockets != nil {
		lc.Sockets.Close()
	}
	return err
}

// retireOthers puts aside the servings that next has no more.
func (g *Gateway) retireOthers(next []*serving, drain time.Duration) {
	wanted := map[*serving]bool{}
	for _, s := range next {
		wanted[s] = true
	}
	for _, s := range g.servers {
		if !wanted[s] {
			s.drain = drain
			g.retired = append(g.retired, s)
			g.leaving[s] = struct{}{}
		}
	}
}
