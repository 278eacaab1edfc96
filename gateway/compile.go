package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/health"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/gateway/observe"
	"transom/listeners"
	"transom/policy/access"
	"transom/policy/identity"
	"transom/policy/traffic"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
	"transom/transcoder"
	"transom/transcoder/codec"
	"transom/upstream"
)

// Defaults of the configuration.
const (
	defaultUnaryTimeout    = 15 * time.Second
	defaultStreamTimeout   = 24 * time.Hour
	defaultMaxMessageBytes = 4 << 20
	defaultDrain           = 30 * time.Second
	defaultHealthPath      = "/healthz"
)

func drainOf(cfg *configv1.Config) time.Duration {
	if d := cfg.GetDrain().GetTimeout(); d != nil {
		return d.AsDuration()
	}
	return defaultDrain
}

func frontConfig(cfg *configv1.Config, l *configv1.Listener, ready func() bool) (listeners.FrontConfig, error) {
	fc := listeners.FrontConfig{
		Name:  l.GetName(),
		Ready: ready,
	}
	if fc.Name == "" {
		fc.Name = l.GetAddress()
	}
	if h := cfg.GetHealth(); !h.GetOff() {
		if fc.HealthPath = h.GetPath(); fc.HealthPath == "" {
			fc.HealthPath = defaultHealthPath
		}
	}
	fc.Origins = l.GetCors().GetAllowOrigins()
	lim := limitsOf(cfg, l)
	fc.WebSocket = listeners.WebSocketConfig{
		MaxMessageBytes: int(lim.GetWebsocketMessageBytes()), MaxCalls: int(lim.GetStreams()), IdleTimeout: lim.GetWebsocketIdleTimeout().AsDuration(),
		PingInterval: lim.GetWebsocketPingInterval().AsDuration(), PongTimeout: lim.GetWebsocketPongTimeout().AsDuration(),
		Compression: l.GetWebsocketCompression(),
	}
	fc.MaxHeaderBytes, fc.MaxHeaderFields = int(lim.GetHeaderBytes()), int(lim.GetHeaderCount())
	fc.IdleBody, fc.IdleWrite = lim.GetBodyIdleTimeout().AsDuration(), lim.GetWriteIdleTimeout().AsDuration()
	var err error
	fc.CORS, err = corsOf(l)
	return fc, err
}

// corsOf compiles a listener's CORS settings, nil if it has none.
func corsOf(l *configv1.Listener) (*listeners.CORS, error) {
	c := l.GetCors()
	if c == nil {
		return nil, nil
	}
	cc := listeners.CORSConfig{
		Origins: c.GetAllowOrigins(), Credentials: c.GetAllowCredentials(),
		AllowHeaders: c.GetAllowHeaders(), ExposeHeaders: c.GetExposeHeaders(), MaxAge: c.GetMaxAge().AsDuration(),
	}
	if c.GetMaxAge() != nil && cc.MaxAge == 0 {
		cc.MaxAge = -1
	}
	return listeners.NewCORS(cc)
}

// checkListeners finds the faults of the listeners' settings, the admin listener's too, that show without binding a socket.
func (b *builder) checkListeners() {
	var taken []listenAddress
	for i, l := range b.cfg.GetListeners() {
		path := fmt.Sprintf("listeners[%d].address", i)
		if _, ok := isUnix(l.GetAddress()); ok {
			b.fault(path, "listeners have TCP addresses, host:port; only admin.address may be a Unix socket")
		} else {
			taken = b.take(taken, path, l.GetAddress())
		}
		if _, err := corsOf(l); err != nil {
			b.faultOf(fmt.Sprintf("listeners[%d].cors", i), err)
		}
		var terms *listenerTLS
		if t := l.GetTls(); t != nil {
			tc, err := loadTLS(t)
			if err != nil {
				b.faultOf(fmt.Sprintf("listeners[%d].tls", i), err)
			}
			terms = &listenerTLS{config: tc}
			if a := t.GetAcme(); a != nil {
				if terms.issuer = b.issuer(fmt.Sprintf("listeners[%d].tls.acme", i), a); terms.issuer != nil {
					tc.GetCertificate = terms.issuer.Certificate
				}
			}
		}
		b.tls = append(b.tls, terms)
	}
	if a := b.cfg.GetAdmin(); a != nil {
		if err := allowedAdmin(a); err != nil {
			b.faultOf("admin.address", err)
		} else if _, ok := isUnix(a.GetAddress()); !ok {
			b.take(taken, "admin.address", a.GetAddress())
		}
		if _, err := adminToken(a); err != nil {
			b.faultOf("admin.token_file", err)
		}
	}
}

// listenAddress is one that something of the configuration is to listen on.
type listenAddress struct {
	path, text string
	host       string // "" is all, as a socket of both IP versions
	all        bool   // of a version or both
	v4         bool   // an IPv4 address
	port       int
}

// take checks an address to listen on, apart from whether it is this machine's and free, and adds it to those taken.
func (b *builder) take(taken []listenAddress, path, address string) []listenAddress {
	host, service, err := net.SplitHostPort(address)
	var port int
	if err == nil {
		port, err = net.DefaultResolver.LookupPort(b.ctx, "tcp", service)
	}
	if err != nil {
		b.fault(path, "want host:port: %v", err)
		return taken
	}
	if strings.ContainsAny(host, "*?,;/@ ") {
		b.fault(path, "%q is no host; all addresses of the machine are \":%s\"", host, service)
		return taken
	}
	if port == 0 { // one that is free
		return taken
	}
	l := listenAddress{path: path, text: address, host: strings.ToLower(host), all: host == "", port: port}
	if ip, err := netip.ParseAddr(host); err == nil {
		l.host, l.all, l.v4 = ip.Unmap().String(), ip.IsUnspecified(), ip.Unmap().Is4()
	}
	for _, other := range taken {
		if l.clash(other) {
			b.faults = append(b.faults, Fault{Path: path, Msg: fmt.Sprintf("%s cannot be listened on beside %s", address, other.text), Other: other.path})
			return taken
		}
	}
	return append(taken, l)
}

// clash reports whether no two sockets can have both addresses. [::] can be one for IPv6 alone that the process is started with, beside
// those of IPv4.
func (l listenAddress) clash(other listenAddress) bool {
	apart := l.host == "::" && other.v4 || other.host == "::" && l.v4
	return l.port == other.port && !apart && (l.host == other.host || l.all != other.all || l.host == "" || other.host == "")
}

// listenerConfig turns a listener's configuration into what package listeners takes.
func listenerConfig(cfg *configv1.Config, l *configv1.Listener) listeners.Config {
	lim := limitsOf(cfg, l)
	return listeners.Config{
		Name: l.GetName(), Address: l.GetAddress(), HTTP3: l.GetHttp3(), WebTransport: l.GetWebtransport(), AltSvcPort: int(l.GetAltSvcPort()),
		Limits: listeners.Limits{
			HeaderTimeout: lim.GetHeaderTimeout().AsDuration(), IdleTimeout: lim.GetIdleTimeout().AsDuration(), MaxAge: lim.GetConnectionAge().AsDuration(),
			MaxHeaderBytes: int(lim.GetHeaderBytes()), MaxHeaderFields: int(lim.GetHeaderCount()), MaxStreams: int(lim.GetStreams()),
			WriteStall: lim.GetWriteIdleTimeout().AsDuration(), MaxConns: int(lim.GetConnections()), MaxConnsPerIP: int(lim.GetConnectionsPerIp()),
		},
		ProxyFrom: strings.Join(l.GetProxyProtocol().GetTrusted(), ","), RedirectPort: int(l.GetRedirectHttps()),
	}
}

// limitsOf are a listener's limits, with those it leaves out taken from the configuration's.
func limitsOf(cfg *configv1.Config, l *configv1.Listener) *configv1.Limits {
	lim := &configv1.Limits{}
	proto.Merge(lim, cfg.GetLimits())
	proto.Merge(lim, l.GetLimits())
	return lim
}

func clusterConfig(name string, c *configv1.Cluster) upstream.Config {
	lb, conc := c.GetLb(), c.GetConcurrency()
	uc := upstream.Config{
		Name: name, Target: c.GetTarget(), Authority: c.GetAuthority(),
		LB: lb.GetPolicy(), HashOn: lb.GetHashOn(), Zone: lb.GetZone(),
		ServiceConfig: c.GetServiceConfig(), NoHealthCheck: c.GetNoHealthCheck(), RetryBytes: int(c.GetRetry().GetBytes()),
		MaxInFlight: int(conc.GetMaxInFlight()), MaxInFlightPerEndpoint: int(conc.GetMaxInFlightPerEndpoint()),
		AdaptiveConcurrency: conc.GetAdaptive(), MaxQueued: int(conc.GetMaxQueued()), QueueTimeout: conc.GetQueueTimeout().AsDuration(),
		MaxMessageBytes: int(c.GetMessageBytes()), ConnectTimeout: c.GetConnectTimeout().AsDuration(),
		Keepalive: c.GetKeepalive().AsDuration(), DNSRefresh: c.GetDnsRefresh().AsDuration(),
	}
	switch c.GetTransport() {
	case configv1.Cluster_TRANSPORT_OWN:
		uc.Transport = upstream.TransportOwn
	case configv1.Cluster_TRANSPORT_GRPC_GO:
		uc.Transport = upstream.TransportGRPCGo
	case configv1.Cluster_TRANSPORT_UNSPECIFIED:
	}
	// In upstream.Config 0 is the default and less is none.
	if w := lb.GetWarmup(); w != nil {
		if uc.Warmup = w.AsDuration(); uc.Warmup == 0 {
			uc.Warmup = -1
		}
	}
	if r := c.GetRetry(); r != nil && r.Ratio != nil {
		if uc.RetryBudget = r.GetRatio(); uc.RetryBudget == 0 {
			uc.RetryBudget = -1
		}
	}
	if t := c.GetTls(); t != nil {
		uc.TLS = &upstream.TLS{CAFile: t.GetCa(), CertFile: t.GetCertificate(), KeyFile: t.GetKey(), ServerName: t.GetServerName()}
	}
	if k := c.GetKubernetes(); k != nil {
		uc.Kubernetes = &upstream.Kubernetes{Server: k.GetServer(), TokenFile: k.GetTokenFile(), CAFile: k.GetCa()}
	}
	return uc
}

// builder compiles one configuration to a Snapshot. It collects all faults before it gives up.
type builder struct {
	ctx    context.Context //nolint:containedctx // a builder lives as long as the call that makes it
	cfg    *configv1.Config
	log    *slog.Logger
	health *health.Server
	holds
	shaping
	clusters map[string]*upstream.Cluster
	schema   *descriptors.Schema
	// directory, streams and rules are of authentication and authorization.
	directory *identity.Directory
	streams   *identity.Streams
	rules     *access.Compiler
	// known are the descriptor sources there are, anew says which of them to read again, loaded what came of it.
	known  map[string]*source
	anew   rereads
	loaded map[string]*source
	// missing are the indexes of the descriptor sources that did not answer.
	missing []int
	// tls is by listener; nil for plain text.
	tls []*listenerTLS
	// issuing are the issuers that there are by key, issuers those of this configuration.
	issuing, issuers map[string]*issuing
	// dry says that nothing will be served, so that nothing need be written or sent.
	dry      bool
	overload *overload
	mirrors  *traffic.Mirrors
	// building is the Snapshot that policies are compiled for.
	building  *Snapshot
	accessLog *observe.AccessLog
	traces    *observe.Traces
	metrics   *observe.Metrics
	push      *observe.Push
	usage     *observe.UsageOf
	faults    []Fault
}

// fault records something wrong with the field at path.
func (b *builder) fault(path, format string, args ...any) {
	b.faults = append(b.faults, Fault{Path: path, Msg: fmt.Sprintf(format, args...)})
}

// faultFor is fault for a field that is wrong for one method: what several have in common is told once.
func (b *builder) faultFor(m *descriptors.Method, path, format string, args ...any) {
	b.faults = append(b.faults, Fault{Path: path, Msg: fmt.Sprintf(format, args...), Method: string(m.Name)})
}

// faultOf records every error joined in err.
func (b *builder) faultOf(path string, err error) {
	for _, e := range flatten(err) {
		b.faults = append(b.faults, Fault{Path: path, Msg: e.Error()})
	}
}

// flatten lists the errors that errors.Join put together.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

// build does all of it. On faults nothing is held; otherwise the Snapshot holds what it needs until it is released.
func (b *builder) build() (*Snapshot, error) {
	b.checkListeners()
	b.openObservers()
	b.openClusters()
	b.checkCallers()
	apart := len(b.faults) // of what policies are compiled without
	b.openConsumers()
	b.loadSchema()
	var s *Snapshot
	if len(b.faults) == apart {
		s = b.snapshot()
		b.usage = b.countUsage()
	}
	if len(b.faults) > 0 {
		b.release()
		placed(b.faults)
		return nil, joinFaults(unique(b.faults))
	}
	s.drop, s.clusters, s.accessLog, s.push, s.cache = b.release, b.clusters, b.accessLog, b.push, b.cache
	s.store, s.limits, s.directory = b.store, b.allLimits(), b.directory
	if b.usage != nil {
		s.usage = b.usage.Usage
	}
	s.refs.Store(1)
	return s, nil
}

// unique has each fault once, and of those that several methods have in common the first, which counts the others.
func unique(faults []Fault) []Fault {
	seen := map[Fault]bool{}
	at := map[Fault]int{} // without methods
	var all []Fault
	for _, f := range faults {
		if seen[f] {
			continue
		}
		seen[f] = true
		common := f
		common.Method = ""
		if i, ok := at[common]; ok && f.Method != "" {
			all[i].More++
			continue
		}
		at[common] = len(all)
		all = append(all, f)
	}
	return all
}

// closeTimeout bounds the wait for calls of a cluster that nothing refers to: there are none, but for streams cut off.
const closeTimeout = 5 * time.Second

// openClusters holds every cluster of the configuration.
func (b *builder) openClusters() {
	b.clusters = map[string]*upstream.Cluster{}
	for _, name := range slices.Sorted(maps.Keys(b.cfg.GetClusters())) {
		c := b.cfg.GetClusters()[name]
		cluster, err := hold(&b.holds, "cluster", name, c, func() (*upstream.Cluster, func(), error) {
			uc := clusterConfig(name, c)
			if err := uc.Validate(); err != nil {
				return nil, nil, err
			}
			log := b.log
			if b.dry {
				if err := uc.CheckEndpoints(); errors.Is(err, fs.ErrNotExist) {
					b.log.LogAttrs(b.ctx, slog.LevelWarn, "an endpoint file is not there yet, and calls fail until it is", slog.String("cluster", name), slog.String("error", err.Error()))
				} else if err != nil {
					return nil, nil, err
				}
				if !b.asked(name) {
					log = slog.New(slog.DiscardHandler) // whether its name can be resolved here says nothing
				}
			}
			cluster, err := upstream.New(uc, log)
			if err != nil {
				return nil, nil, err
			}
			return cluster, func() {
				ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
				defer cancel()
				if err := cluster.Close(ctx); err != nil {
					b.log.LogAttrs(ctx, slog.LevelWarn, "cluster closed with calls in flight", slog.String("cluster", name), slog.String("error", err.Error()))
				}
			}, nil
		})
		if err != nil {
			for _, err := range flatten(err) {
				path := "clusters[" + name + "]"
				if f := (*upstream.FieldError)(nil); errors.As(err, &f) {
					path, err = path+"."+f.Field, f.Err
				}
				b.faultOf(path, err)
			}
			continue
		}
		b.clusters[name] = cluster
	}
}

// asked reports whether a cluster is asked for its descriptors.
func (b *builder) asked(cluster string) bool {
	return slices.ContainsFunc(b.cfg.GetDescriptors(), func(d *configv1.DescriptorSource) bool {
		return d.GetReflection() != nil && d.GetReflection().GetCluster() == cluster
	})
}

// loadSchema reads the descriptor sources and compiles them. Sources that do not answer are left out.
func (b *builder) loadSchema() {
	var sets []*descriptors.Set
	var paths []string // where each set is named
	before := len(b.faults)
	b.loaded = map[string]*source{}
	if len(b.cfg.GetDescriptors()) == 0 && b.cfg.GetUnknownMethods() == nil {
		b.fault("descriptors", "no descriptors say what can be called: give a file, proto sources, or a cluster to ask, {reflection: {cluster: NAME}}")
	}
	for i, d := range b.cfg.GetDescriptors() {
		path := fmt.Sprintf("descriptors[%d]", i)
		key, s := b.source(path, d)
		if s == nil {
			continue
		}
		var err error
		if s.set, err = b.anew.read(b.ctx, key, s, b.known[key]); err != nil {
			b.faultOf(path, err)
			continue
		}
		b.loaded[key] = s
		if s.set == nil {
			b.missing = append(b.missing, i)
			continue
		}
		sets, paths = append(sets, s.set), append(paths, path)
	}
	opts := descriptors.Options{IgnoreTrailingSlash: b.cfg.GetHttpRules().GetIgnoreTrailingSlash()}
	if path := b.cfg.GetHttpRules().GetServiceConfig(); path != "" {
		text, err := os.ReadFile(path)
		if err == nil {
			opts.Rules, err = descriptors.ParseServiceConfig(path, text)
		}
		if err != nil {
			b.faultOf("http_rules.service_config", err)
		}
	}
	if len(b.faults) > before {
		return
	}
	var err error
	if b.schema, err = descriptors.Compile(append(sets, builtinSet()), opts); err == nil {
		return
	}
	for _, e := range flatten(err) {
		path := "descriptors"
		if of, ok := errors.AsType[*descriptors.OriginError](e); ok && of.Set < 0 {
			path = "http_rules.service_config"
		} else if ok && of.Set < len(paths) {
			path = paths[of.Set]
		}
		b.faultOf(path, e)
	}
}

// clusterOf is the cluster that the field at path names. It is nil if there is none, which is a fault of the field, and if the
// cluster has faults itself.
func (b *builder) clusterOf(path, name string) *upstream.Cluster {
	all := b.cfg.GetClusters()
	switch {
	case all[name] != nil:
	case name == "":
		b.fault(path, "names no cluster")
	default:
		b.fault(path, "there is no cluster %q, only %q", name, slices.Sorted(maps.Keys(all)))
	}
	return b.clusters[name]
}

// snapshot compiles plans, policies and routes.
func (b *builder) snapshot() *Snapshot {
	j := b.cfg.GetJson()
	opts := transcoder.Options{
		JSON: codec.Options{
			EmitDefaults: j.GetEmitDefaults(), ProtoNames: j.GetProtoNames(), EnumNumbers: j.GetEnumNumbers(),
			Int64Numbers: j.GetInt64Numbers(), DiscardUnknown: j.GetIgnoreUnknownFields(), MaxDepth: int(b.cfg.GetLimits().GetDepth()),
		},
		IgnoreUnknownQuery: j.GetIgnoreUnknownQuery(), IgnoreQuery: j.GetIgnoreQuery(), QueryMaps: j.GetQueryMaps(),
	}
	if j.GetAip193Errors() {
		opts.ErrorShape = transcoder.ErrorAIP193
	}
	set, faults := compilePolicies(b.cfg.GetPolicies())
	b.faults = append(b.faults, faults...)
	set.options = b.options()
	if len(b.missing) == 0 {
		b.faults = append(b.faults, set.unmatched(b.schema)...)
	}
	opts.Forms = func(m *descriptors.Method) bool {
		eff, _ := set.effective(string(m.Name))
		return eff.Policy.GetForms()
	}
	plans, err := transcoder.NewPlans(b.schema, opts)
	if err != nil {
		b.faultOf("descriptors", err)
		return nil
	}
	methods := b.schema.Methods()
	edge := listeners.NewEdge(b.edge(set.options))
	s := &Snapshot{schema: b.schema, plans: plans, edge: edge, awaiting: len(b.missing) > 0, routes: make([]listeners.Route, len(methods)), effective: make([]Effective, len(methods)), chains: make([][]string, len(methods))}
	s.versions = b.versions()
	b.building = s
	local := builtinHandlers(b.schema, b.health)
	for _, m := range methods {
		eff, faults := set.effective(string(m.Name))
		b.faults = append(b.faults, faults...)
		s.effective[m.ID] = eff
		inner, own := local[m.FullPath]
		if !own {
			inner = b.destination(eff)
			b.hashes(m)
		}
		s.routes[m.ID] = listeners.Route{
			Handler: inner, Plan: plans.Method(m), Edge: edge,
			Timeout: timeoutOf(eff.Policy, m.Unary()), MaxMessageBytes: maxMessageOf(b.cfg, eff.Policy),
			Uncompressed: uncompressed(eff.Policy),
		}
		if !isHealth(m) {
			handler, names := b.chain(m, eff, inner)
			target := "the cluster"
			if own {
				target = "the gateway itself"
			}
			s.routes[m.ID].Private = private(names)
			s.routes[m.ID].Handler, s.chains[m.ID] = handler, append(names, target)
		}
	}
	if b.cfg.GetUnknownMethods() != nil {
		if s.opaque = b.opaque(set, edge); s.opaque == nil {
			return nil
		}
	}
	b.lostFields()
	return s
}

// chain writes out the handler chain of one method, outermost first, and the names of what is in it. What a policy does not
// ask for is not in it.
func (b *builder) chain(m *descriptors.Method, eff Effective, inner rpc.Handler) (rpc.Handler, []string) {
	response, redact := b.answers(m, eff)
	auth := b.authenticate(eff)
	addresses, limits := b.limits(m, eff, auth != nil)
	links := []struct {
		name string
		mw   rpc.Middleware
	}{
		{"overload", b.shed()},
		{"idle", b.idle(m, eff)},
		{"deprecated", b.deprecated(eff)},
		{"answers", response},
		{"limits by address", addresses},
		{"auth", auth},
		{"requests", b.request(m, eff)},
		{"access", b.authorize(m, eff)},
		{"limits", limits},
		{"validate", b.validate(m, eff)},
		{"cache", b.caching(m, eff)},
		{"redact", redact},
		{"faults", b.faulty(eff)},
	}
	var names []string
	var mws, traced []rpc.Middleware
	for _, l := range links {
		if l.mw == nil {
			continue
		}
		names, mws = append(names, l.name), append(mws, l.mw)
		if b.traces != nil {
			traced = append(traced, b.traces.Step(l.name, l.mw))
		}
	}
	if b.traces == nil {
		return rpc.Chain(inner, mws...), names
	}
	return b.traces.Chain(rpc.Chain(inner, mws...), rpc.Chain(b.traces.Upstream(inner), traced...)), names
}

// hashes checks the fields that clusters hash by: one must be in the request of some method.
func (b *builder) hashes(m *descriptors.Method) {
	for name, c := range b.cfg.GetClusters() {
		on := c.GetLb().GetHashOn()
		field, ok := strings.CutPrefix(on, "field:")
		if !ok {
			continue
		}
		var err error
		if !upstream.HashesOn(on, m) {
			err = fmt.Errorf("%w: no method has a single request with a field %q that is one value", rpc.ErrNoField, field)
		}
		b.foundField("clusters["+name+"].lb.hash_on", err)
	}
}

// cluster takes calls to the cluster that the policy names, or to the only one there is.
func (b *builder) cluster(eff Effective) rpc.Handler {
	name := eff.Policy.GetCluster()
	if all := b.cfg.GetClusters(); name == "" && len(all) == 1 {
		for only := range all {
			name = only
		}
	}
	if name == "" {
		b.fault("", "with more than one cluster, or none, a policy must say where calls go: {selector: \"*\", cluster: NAME}")
		return nil
	}
	if c := b.clusterOf(eff.path("cluster"), name); c != nil {
		return c.Invoke
	}
	return nil
}

func timeoutOf(p *configv1.Policy, unary bool) time.Duration {
	switch {
	case unary && p.GetTimeout() != nil:
		return p.GetTimeout().AsDuration()
	case unary:
		return defaultUnaryTimeout
	case p.GetStreamTimeout() != nil:
		return p.GetStreamTimeout().AsDuration()
	}
	return defaultStreamTimeout
}

// uncompressed reports whether answers are sent as they are.
func uncompressed(p *configv1.Policy) bool { return p.Compress != nil && !p.GetCompress() }

func streamIdleOf(p *configv1.Policy) time.Duration {
	if d := p.GetStreamIdleTimeout(); d != nil {
		return d.AsDuration()
	}
	return defaultStreamIdle
}

func maxMessageOf(cfg *configv1.Config, p *configv1.Policy) int {
	for _, n := range []uint32{p.GetMessageBytes(), cfg.GetLimits().GetMessageBytes()} {
		if n > 0 {
			return int(n)
		}
	}
	return defaultMaxMessageBytes
}
