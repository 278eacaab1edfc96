package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	"transom/policy/transform"
	configv1 "transom/proto/transom/config/v1"
)

// severity is how much a finding of Audit matters.
type severity uint8

const (
	low severity = iota
	medium
	high
)

func (s severity) String() string { return [...]string{"low", "medium", "high"}[s] }

// finding is a setting that is allowed, and may be unsafe.
type finding struct {
	severity severity
	// path is of the field that it is about, or that would have to be there.
	path, text string
}

// ErrUnsafe is what Audit returns if a finding is of high severity.
var ErrUnsafe = errors.New("there are findings of high severity")

// Audit writes what in cfg and the schema is allowed and may be unsafe, the gravest first, each with its severity and the place
// that where gives for a field by its path, or "nothing". What is only open to this machine (loopback) is passed over. It
// returns ErrUnsafe if something is of high severity, and the faults of cfg if it is not sound.
func Audit(ctx context.Context, cfg *configv1.Config, where func(path string) string, w io.Writer, log *slog.Logger) error {
	return offline(ctx, cfg, log, func(s *Snapshot) error {
		found := slices.Concat(auditListeners(cfg), auditMethods(cfg, s), auditPlans(cfg), auditRedaction(s), auditRest(cfg))
		if len(found) == 0 {
			_, err := fmt.Fprintln(w, "nothing found")
			return err
		}
		slices.SortStableFunc(found, func(a, b finding) int { return int(b.severity) - int(a.severity) })
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "SEVERITY\tWHERE\tFINDING")
		for _, f := range found {
			fmt.Fprintf(tw, "%v\t%s\t%s: %s\n", f.severity, where(f.path), f.path, f.text)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		if found[0].severity == high {
			return ErrUnsafe
		}
		return nil
	})
}

// auditListeners looks at each socket that clients reach.
func auditListeners(cfg *configv1.Config) (found []finding) {
	for i, l := range cfg.GetListeners() {
		path := fmt.Sprintf("listeners[%d]", i)
		for j, p := range l.GetProxyProtocol().GetTrusted() {
			if everywhere(p) {
				found = append(found, finding{high, fmt.Sprintf("%s.proxy_protocol.trusted[%d]", path, j), "whoever connects may say what its address is"})
			}
		}
		if slices.Contains(l.GetCors().GetAllowOrigins(), "*") {
			found = append(found, finding{medium, path + ".cors.allow_origins", "pages of every origin may call, and read the answers"})
		}
		if l.GetWebsocketCompression() {
			found = append(found, finding{low, path + ".websocket_compression", "sizes of messages tell of their contents, where what others say stands beside secrets"})
		}
		if host, _, err := net.SplitHostPort(l.GetAddress()); err == nil && isLoopback(host) {
			continue
		}
		fronted := l.GetProxyProtocol() != nil || len(cfg.GetSecurity().GetTrustedProxies()) > 0
		switch {
		case l.GetTls() == nil && l.GetRedirectHttps() == 0 && !fronted:
			found = append(found, finding{medium, path, "there is no tls: what passes can be read, and changed, by who is on the way"})
		case l.GetTls() != nil && cfg.GetSecurity().GetHsts().AsDuration() == 0:
			found = append(found, finding{low, path + ".tls", "security.hsts is not set: browsers may be led to plain text"})
		}
		if cfg.GetLimits().GetConnectionsPerIp() == 0 && l.GetLimits().GetConnectionsPerIp() == 0 && !fronted {
			found = append(found, finding{medium, path, "limits.connections_per_ip is not set: one client may take all connections"})
		}
	}
	return found
}

// everywhere reports whether a network is all addresses.
func everywhere(network string) bool {
	p, err := netip.ParsePrefix(network)
	return err == nil && p.Bits() == 0
}

// auditMethods looks at who may call what.
func auditMethods(cfg *configv1.Config, s *Snapshot) (found []finding) {
	var open, unbounded []string
	for _, m := range s.schema.Methods() {
		if isHealth(m) {
			continue
		}
		p := s.effective[m.ID].Policy
		if p.GetAuth() == nil && p.GetAccess() == nil && p.GetAllow() == "" && !cfg.GetSecurity().GetDefaultDeny() {
			open = append(open, string(m.Name))
		}
		if len(p.GetLimits()) == 0 && (p.GetAuth() == nil && !cfg.GetSecurity().GetDefaultDeny() || p.GetAuth().GetAnonymous()) {
			unbounded = append(unbounded, string(m.Name))
		}
	}
	if len(open) > 0 {
		how := medium
		if len(cfg.GetConsumers().GetProviders()) > 0 {
			how = high // others are not open, and so these may be by mistake
		}
		found = append(found, finding{how, "security.default_deny", "it is not set, and anybody may call " + some(open)})
	}
	if len(unbounded) > 0 {
		found = append(found, finding{medium, "policies", "without limits anybody may call as often as they like " + some(unbounded)})
	}
	if cfg.GetUnknownMethods() != nil && !cfg.GetSecurity().GetDefaultDeny() && !slices.ContainsFunc(cfg.GetPolicies(), func(p *configv1.Policy) bool {
		return slices.Contains(p.GetSelector(), "*") && p.GetAuth() != nil
	}) {
		found = append(found, finding{medium, "unknown_methods", "anybody may call methods that no descriptor knows, but for those that a policy with auth has by name"})
	}
	return found
}

// auditPlans looks for amounts for plans that nobody is on, as far as one can tell: tokens and authorization servers may tell of plans too.
func auditPlans(cfg *configv1.Config) (found []finding) {
	for _, p := range cfg.GetConsumers().GetProviders() {
		if p.GetJwt().GetPlanClaim() != "" || p.GetIntrospection().GetPlanClaim() != "" || p.GetExternal() != nil {
			return nil
		}
	}
	plans := map[string]bool{}
	for _, c := range cfg.GetConsumers().GetKnown() {
		plans[c.GetPlan()] = true
	}
	for i, p := range cfg.GetPolicies() {
		for j, l := range p.GetLimits() {
			for _, name := range slices.Sorted(maps.Keys(l.GetPlans())) {
				if plans[name] {
					continue
				}
				text := "no known consumer is on this plan"
				if s := descriptors.Closest(name, slices.Sorted(maps.Keys(plans))); s != "" {
					text += fmt.Sprintf("; did you mean %q?", s)
				}
				found = append(found, finding{low, fmt.Sprintf("policies[%d].limits[%d].plans[%s]", i, j, name), text})
			}
		}
	}
	return found
}

// auditRedaction looks for what redaction by field leaves in: the contents of google.protobuf.Any.
func auditRedaction(s *Snapshot) (found []finding) {
	told := map[string]bool{}
	for _, m := range s.schema.Methods() {
		eff := &s.effective[m.ID]
		var redacted [][]string
		for _, r := range eff.Policy.GetRedact() {
			for _, name := range r.GetFields() {
				if _, err := transform.NewPath(m.Desc.Output(), name); err == nil { // others are of other methods
					redacted = append(redacted, strings.Split(name, "."))
				}
			}
		}
		if len(redacted) == 0 || told[eff.path("redact")] {
			continue
		}
		if at := anyIn(m.Desc.Output(), redacted, map[protoreflect.FullName]bool{}); at != "" {
			told[eff.path("redact")] = true
			found = append(found, finding{low, eff.path("redact"), fmt.Sprintf("answers of %s have a google.protobuf.Any in %s, of which nothing is taken out; %s.value would be all of it", m.Name, at, at)})
		}
	}
	return found
}

// anyIn is the path of an Any in messages of a type that is not redacted, nor its value; "" if there is none. Types that were seen
// are passed over where no redacted path leads on.
func anyIn(md protoreflect.MessageDescriptor, redacted [][]string, seen map[protoreflect.FullName]bool) string {
	fields := md.Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		within := fd.Message()
		if fd.IsMap() {
			within = fd.MapValue().Message()
		}
		if within == nil {
			continue
		}
		gone := false
		var deeper [][]string
		for _, path := range redacted {
			if path[0] != string(fd.Name()) && path[0] != fd.JSONName() {
				continue
			}
			if gone = len(path) == 1; gone {
				break
			}
			deeper = append(deeper, path[1:])
		}
		switch {
		case gone:
		case within.FullName() == "google.protobuf.Any":
			if !slices.ContainsFunc(deeper, func(p []string) bool { return p[0] == "value" }) {
				return string(fd.Name())
			}
		case len(deeper) > 0 || !seen[within.FullName()]:
			if len(deeper) == 0 {
				seen[within.FullName()] = true
			}
			if at := anyIn(within, deeper, seen); at != "" {
				return string(fd.Name()) + "." + at
			}
		}
	}
	return ""
}

// some names the first few of names.
func some(names []string) string {
	const most = 3
	text := strings.Join(names[:min(len(names), most)], ", ")
	if n := len(names) - most; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// auditRest looks at what is not for clients.
func auditRest(cfg *configv1.Config) (found []finding) {
	for i, p := range cfg.GetSecurity().GetTrustedProxies() {
		if everywhere(p) {
			found = append(found, finding{high, fmt.Sprintf("security.trusted_proxies[%d]", i), "every client may say what its address is, by X-Forwarded-For"})
		}
	}
	if a := cfg.GetAdmin(); a != nil {
		if a.GetPprof() {
			found = append(found, finding{low, "admin.pprof", "profiles cost processor time, and tell of what is in memory"})
		}
		if host, _, err := net.SplitHostPort(a.GetAddress()); err == nil && !isLoopback(host) {
			found = append(found, finding{medium, "admin.address", "the admin listener has no TLS: who is on the way to it can read its token"})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.GetClusters())) {
		if c := cfg.GetClusters()[name]; c.GetTls() == nil && beyond(c.GetTarget()) {
			found = append(found, finding{low, "clusters[" + name + "].target", "there is no tls to these backends: what passes can be read, and changed, by who is on the way"})
		}
	}
	if r := cfg.GetRedis(); r != nil && r.GetTls() == nil && slices.ContainsFunc(r.GetAddresses(), func(a string) bool {
		host, _, err := net.SplitHostPort(a)
		return err == nil && !isLoopback(host)
	}) {
		found = append(found, finding{low, "redis", "there is no tls to Redis, and answers and its password can be read on the way"})
	}
	if t := cfg.GetTracing(); t != nil && !t.GetUntrusted() {
		found = append(found, finding{low, "tracing", "untrusted is not set: clients decide whether their calls are sampled"})
	}
	if cfg.GetAccessLog() == nil {
		found = append(found, finding{low, "access_log", "it is not set: nobody can tell afterwards who called what"})
	}
	return found
}

// beyond reports whether a target leads, or may lead, to other machines.
func beyond(target string) bool {
	u, err := url.Parse(target)
	if err != nil || u.Scheme == "" || u.Opaque != "" { // "host:port"
		host, _, err := net.SplitHostPort(target)
		return err != nil || !isLoopback(host)
	}
	switch u.Scheme {
	case "unix":
		return false
	case "static", "dns":
		for address := range strings.SplitSeq(strings.TrimPrefix(u.Path, "/"), ",") {
			if host, _, err := net.SplitHostPort(address); err != nil || !isLoopback(host) {
				return true
			}
		}
		return false
	}
	return true
}
