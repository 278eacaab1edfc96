package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/health"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/listeners"
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

func frontConfig(cfg *configv1.Config, l *configv1.Listener, ready func() bool) listeners.FrontConfig {
	fc := listeners.FrontConfig{
		Name:     l.GetName(),
		Metadata: listeners.MetadataRules{Forward: cfg.GetMetadata().GetRequestHeaders()},
		Ready:    ready,
	}
	if fc.Name == "" {
		fc.Name = l.GetAddress()
	}
	if h := cfg.GetHealth(); !h.GetOff() {
		if fc.HealthPath = h.GetPath(); fc.HealthPath == "" {
			fc.HealthPath = defaultHealthPath
		}
	}
	for _, o := range l.GetCors().GetAllowOrigins() {
		if _, host, ok := strings.Cut(o, "://"); ok {
			o = host
		}
		fc.Origins = append(fc.Origins, o)
	}
	return fc
}

// listenerConfig turns a listener's configuration into what package listeners takes.
func listenerConfig(cfg *configv1.Config, l *configv1.Listener, tc *tls.Config) listeners.Config {
	lim := limitsOf(cfg, l)
	return listeners.Config{
		Name: l.GetName(), Address: l.GetAddress(), TLS: tc, HTTP3: l.GetHttp3(), AltSvcPort: int(l.GetAltSvcPort()),
		Limits: listeners.Limits{
			HeaderTimeout: lim.GetHeaderTimeout().AsDuration(), IdleTimeout: lim.GetIdleTimeout().AsDuration(),
			MaxHeaderBytes: int(lim.GetHeaderBytes()), MaxStreams: int(lim.GetStreams()),
		},
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
	uc := upstream.Config{
		Name: name, Target: c.GetTarget(), Authority: c.GetAuthority(), LB: c.GetLb().GetPolicy(),
		MaxMessageBytes: int(c.GetMessageBytes()), ConnectTimeout: c.GetConnectTimeout().AsDuration(), Keepalive: c.GetKeepalive().AsDuration(),
	}
	if t := c.GetTls(); t != nil {
		uc.TLS = &upstream.TLS{CAFile: t.GetCa(), CertFile: t.GetCertificate(), KeyFile: t.GetKey(), ServerName: t.GetServerName()}
	}
	return uc
}

// loadSchema reads the descriptor sources of cfg and compiles them. Sources that do not answer are left out and returned.
func loadSchema(ctx context.Context, cfg *configv1.Config, clusters map[string]*clusterRef) (*descriptors.Schema, []*configv1.DescriptorSource, []Fault) {
	var sets []*descriptors.Set
	var missing []*configv1.DescriptorSource
	var faults []Fault
	for i, d := range cfg.GetDescriptors() {
		path := fmt.Sprintf("descriptors[%d]", i)
		var set *descriptors.Set
		var err error
		switch src := d.GetSource().(type) {
		case *configv1.DescriptorSource_File:
			set, err = descriptors.FromFile(src.File)
		case *configv1.DescriptorSource_Proto:
			set, err = descriptors.FromProto(ctx, src.Proto.GetRoots(), src.Proto.GetFiles())
		case *configv1.DescriptorSource_Reflection_:
			ref := clusters[src.Reflection.GetCluster()]
			if ref == nil {
				faults = append(faults, Fault{path + ".reflection.cluster", noCluster(src.Reflection.GetCluster(), cfg)})
				continue
			}
			attempt, cancel := context.WithTimeout(ctx, reflectionTimeout)
			set, err = descriptors.FromReflection(attempt, ref.Conn())
			cancel()
			if err != nil {
				missing = append(missing, d)
				continue
			}
		default:
			faults = append(faults, Fault{path, "a descriptor source is one of file, proto or reflection"})
			continue
		}
		if err != nil {
			faults = append(faults, Fault{path, err.Error()})
			continue
		}
		sets = append(sets, set)
	}
	sets = append(sets, builtinSet())
	var opts descriptors.Options
	opts.IgnoreTrailingSlash = cfg.GetHttpRules().GetIgnoreTrailingSlash()
	if len(faults) > 0 {
		return nil, nil, faults
	}
	schema, err := descriptors.Compile(sets, opts)
	if err != nil {
		return nil, nil, faultsOf("descriptors", err)
	}
	return schema, missing, nil
}

// reflectionTimeout bounds one try at a reflection source.
const reflectionTimeout = 5 * time.Second

// faultsOf makes a Fault of each of the errors joined in err.
func faultsOf(path string, err error) []Fault {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // errors.Join's own form is meant
		var faults []Fault
		for _, e := range joined.Unwrap() {
			faults = append(faults, faultsOf(path, e)...)
		}
		return faults
	}
	return []Fault{{path, err.Error()}}
}

func noCluster(name string, cfg *configv1.Config) string {
	if name == "" {
		return "names no cluster"
	}
	return fmt.Sprintf("there is no cluster %q, only %q", name, slices.Sorted(maps.Keys(cfg.GetClusters())))
}

// compile makes a Snapshot of a configuration, its schema and its clusters.
func compile(cfg *configv1.Config, schema *descriptors.Schema, clusters map[string]*clusterRef, hs *health.Server) (*Snapshot, []Fault) {
	j := cfg.GetJson()
	opts := transcoder.Options{
		JSON: codec.Options{
			EmitDefaults: j.GetEmitDefaults(), ProtoNames: j.GetProtoNames(), EnumNumbers: j.GetEnumNumbers(),
			Int64Numbers: j.GetInt64Numbers(), DiscardUnknown: j.GetIgnoreUnknownFields(), MaxDepth: int(cfg.GetLimits().GetDepth()),
		},
		IgnoreUnknownQuery: j.GetIgnoreUnknownQuery(), IgnoreQuery: j.GetIgnoreQuery(), QueryMaps: j.GetQueryMaps(),
	}
	if j.GetAip193Errors() {
		opts.ErrorShape = transcoder.ErrorAIP193
	}
	plans, err := transcoder.NewPlans(schema, opts)
	if err != nil {
		return nil, faultsOf("descriptors", err)
	}
	set, faults := compilePolicies(cfg.GetPolicies())
	faults = append(faults, set.unmatched(schema)...)
	s := &Snapshot{schema: schema, plans: plans, routes: make([]listeners.Route, len(schema.Methods()))}
	local := builtinHandlers(schema, hs)
	for _, m := range schema.Methods() {
		eff, fs := set.effective(string(m.Name))
		faults = append(faults, fs...)
		route, fs := compileRoute(cfg, m, eff, clusters, local[m.FullPath])
		faults = append(faults, fs...)
		route.Plan = plans.Method(m)
		s.routes[m.ID] = route
	}
	if u := cfg.GetUnknownMethods(); u != nil {
		ref := clusters[u.GetCluster()]
		if ref == nil {
			faults = append(faults, Fault{"unknown_methods.cluster", noCluster(u.GetCluster(), cfg)})
		} else {
			eff, _ := set.effective("")
			s.opaque = &listeners.Route{Handler: ref.Invoke, Timeout: timeoutOf(eff.Policy, false), MaxMessageBytes: maxMessageOf(cfg, eff.Policy)}
		}
	}
	return s, unique(faults)
}

// unique drops faults that several methods have in common.
func unique(faults []Fault) []Fault {
	seen := map[Fault]bool{}
	return slices.DeleteFunc(faults, func(f Fault) bool {
		defer func() { seen[f] = true }()
		return seen[f]
	})
}

// compileRoute writes out the handler chain of one method, outermost first.
func compileRoute(cfg *configv1.Config, m *descriptors.Method, eff Effective, clusters map[string]*clusterRef, local rpc.Handler) (listeners.Route, []Fault) {
	route := listeners.Route{Timeout: timeoutOf(eff.Policy, m.Unary()), MaxMessageBytes: maxMessageOf(cfg, eff.Policy)}
	if local != nil {
		route.Handler = local
		return route, nil
	}
	ref, err := clusterOf(cfg, eff.Policy.GetCluster(), clusters)
	if err != nil {
		path := ""
		if from, ok := eff.From["cluster"]; ok {
			path = fmt.Sprintf("policies[%d].cluster", from.Block)
		}
		return route, []Fault{{path, err.Error()}}
	}
	route.Handler = rpc.Chain(ref.Invoke)
	return route, nil
}

// clusterOf finds the cluster that a policy names, or the only one there is.
func clusterOf(cfg *configv1.Config, name string, clusters map[string]*clusterRef) (*clusterRef, error) {
	if name == "" && len(clusters) == 1 {
		for _, ref := range clusters {
			return ref, nil
		}
	}
	if ref := clusters[name]; ref != nil {
		return ref, nil
	}
	if name == "" {
		return nil, errors.New("with more than one cluster, or none, a policy must say which cluster a method's calls go to: {selector: \"*\", cluster: NAME}")
	}
	return nil, errors.New(noCluster(name, cfg))
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

func maxMessageOf(cfg *configv1.Config, p *configv1.Policy) int {
	for _, n := range []uint32{p.GetMessageBytes(), cfg.GetLimits().GetMessageBytes()} {
		if n > 0 {
			return int(n)
		}
	}
	return defaultMaxMessageBytes
}
