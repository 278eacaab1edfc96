package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	rpccode "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"

	"transom/policy/traffic"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
	"transom/transcoder"
)

const (
	defaultMirrors       = 100
	defaultMirrorTimeout = 15 * time.Second
)

// destination is the innermost handler: the cluster that the policy names, or what chooses one, and copies calls if they are
// to be mirrored.
func (b *builder) destination(eff Effective) rpc.Handler {
	p := eff.Policy
	cfg := traffic.Config{}
	for i, r := range p.GetRoutes() {
		path := fmt.Sprintf("%s[%d]", eff.path("routes"), i)
		to := b.clusterOf(path+".cluster", r.GetCluster())
		if to == nil {
			continue
		}
		cfg.Routes = append(cfg.Routes, traffic.Route{When: b.conditions(path+".when", eff, r.GetWhen()), To: to.Invoke})
	}
	path := eff.path("split")
	weights := p.GetSplit().GetClusters()
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		to := b.clusterOf(fmt.Sprintf("%s.clusters[%s]", path, name), name)
		if to == nil {
			continue
		}
		cfg.Split = append(cfg.Split, traffic.Target{Name: name, Weight: weights[name], To: to.Invoke})
	}
	for i, s := range p.GetSplit().GetSticky() {
		at := fmt.Sprintf("%s.sticky[%d]", path, i)
		key, err := traffic.ParseKey(s)
		if err != nil {
			b.faultOf(at, err)
		} else if name := key.Header(); name != "" {
			b.checkHeader(at, eff, name)
		}
		cfg.Sticky = append(cfg.Sticky, key)
	}
	if len(weights) == 0 {
		cfg.Otherwise = b.cluster(eff)
	}
	inner := traffic.New(cfg)
	if mw := b.mirror(eff); mw != nil {
		inner = mw(inner)
	}
	return inner
}

// mirror is the middleware that copies calls; nil if none are.
func (b *builder) mirror(eff Effective) rpc.Middleware {
	m := eff.Policy.GetMirror()
	if m == nil {
		return nil
	}
	to := b.clusterOf(eff.path("mirror")+".cluster", m.GetCluster())
	if to == nil {
		return nil
	}
	cfg := traffic.Mirror{
		Cluster: m.GetCluster(), Share: shareOf(m.Share), MaxConcurrent: int64(m.GetMaxConcurrent()), Timeout: defaultMirrorTimeout, To: to.Invoke,
		Acquire: b.building.acquire, Release: b.building.Release,
	}
	if cfg.MaxConcurrent == 0 {
		cfg.MaxConcurrent = defaultMirrors
	}
	if t := m.GetTimeout(); t != nil {
		cfg.Timeout = t.AsDuration()
	}
	return b.mirrors.Middleware(cfg)
}

// faulty is the middleware that injects faults; nil if there are none.
func (b *builder) faulty(eff Effective) rpc.Middleware {
	var faults []traffic.Fault
	for i, f := range eff.Policy.GetFaults() {
		faults = append(faults, traffic.Fault{
			When:  b.conditions(fmt.Sprintf("%s[%d].when", eff.path("faults"), i), eff, f.GetWhen()),
			Share: shareOf(f.Share), Delay: f.GetDelay().AsDuration(), Abort: codes.Code(rpccode.Code_value[f.GetAbort()]),
		})
	}
	return traffic.Faults(faults)
}

// deprecated is the middleware that says that a method will go; nil if nobody says so.
func (b *builder) deprecated(eff Effective) rpc.Middleware {
	c := eff.Policy.GetDeprecated()
	if c == nil {
		return nil
	}
	path := eff.path("deprecated")
	d := traffic.Deprecation{Since: b.date(path+".since", c.GetSince()), Sunset: b.date(path+".sunset", c.GetSunset()), Link: c.GetLink()}
	if err := d.Validate(); err != nil {
		b.faultOf(path+".sunset", err)
	}
	return traffic.Deprecated(d)
}

// date reads "2027-06-30" or "2027-06-30T12:00:00Z"; "" is the zero Time.
func (b *builder) date(path, s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		t, err = time.Parse(time.RFC3339, s)
	}
	if err != nil {
		b.fault(path, "%q is no date like 2027-06-30 or 2027-06-30T12:00:00Z", s)
	}
	return t
}

// shareOf is a share that is 1 if it is left out.
func shareOf(s *float64) float64 {
	if s == nil {
		return 1
	}
	return *s
}

// conditions compiles those at path.
func (b *builder) conditions(path string, eff Effective, list []*configv1.Condition) []traffic.Condition {
	var when []traffic.Condition
	for i, c := range list {
		b.checkHeader(fmt.Sprintf("%s[%d].header", path, i), eff, c.GetHeader())
		cond := traffic.Condition{Header: c.GetHeader()}
		switch m := c.GetMatch().(type) {
		case *configv1.Condition_Exact:
			cond.Match, cond.Text = traffic.Exact, m.Exact
		case *configv1.Condition_Prefix:
			cond.Match, cond.Text = traffic.Prefix, m.Prefix
		case *configv1.Condition_Present:
			if !m.Present {
				cond.Match = traffic.Absent
			}
		}
		when = append(when, cond)
	}
	return when
}

// checkHeader has a header that decides about calls be one that gets there: past the listener, and past a cache, which
// passes on only what answers are kept by.
func (b *builder) checkHeader(path string, eff Effective, name string) {
	if transcoder.Reserved(name) {
		b.fault(path, "header %q belongs to the protocol and is not part of a call's metadata", name)
		return
	}
	c := eff.Policy.GetCache()
	if c == nil || slices.Contains(c.GetVary(), name) {
		return
	}
	if !c.GetShared() && (name == "cookie" || name == "authorization" || transcoder.Identity(name)) {
		return
	}
	b.fault(path, "answers that depend on header %q are cached: cache.vary must have it", name)
}

// headersOf are the headers that policies look at, which REST and WebSocket must pass on for it.
func headersOf(policies []*configv1.Policy) []string {
	var names []string
	when := func(when []*configv1.Condition) {
		for _, c := range when {
			names = append(names, c.GetHeader())
		}
	}
	keys := func(keys []string) {
		for _, key := range keys {
			if name, ok := strings.CutPrefix(key, "header:"); ok {
				names = append(names, name)
			}
		}
	}
	for _, p := range policies {
		for _, r := range p.GetRoutes() {
			when(r.GetWhen())
		}
		for _, f := range p.GetFaults() {
			when(f.GetWhen())
		}
		for _, l := range p.GetLimits() {
			keys(l.GetPer())
		}
		keys(p.GetSplit().GetSticky())
		names = append(names, p.GetCache().GetVary()...)
	}
	return names
}
