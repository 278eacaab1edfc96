package gateway

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"transom/descriptors"
	"transom/listeners"
	"transom/policy/access"
	"transom/policy/identity"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
	"transom/transcoder"
)

const (
	defaultAPIKeyHeader       = "x-api-key"
	defaultRequestIDHeader    = "x-request-id"
	defaultLeeway             = 30 * time.Second
	defaultIntrospectionCache = time.Minute
	defaultExternalTimeout    = time.Second
)

// openConsumers holds the providers and joins them with the consumers that are known.
func (b *builder) openConsumers() {
	cfg := b.cfg.GetConsumers()
	var known []*identity.Consumer
	for _, name := range slices.Sorted(maps.Keys(cfg.GetKnown())) {
		known = append(known, consumerOf(name, cfg.GetKnown()[name]))
	}
	providers := map[string]identity.Entry{}
	for _, name := range slices.Sorted(maps.Keys(cfg.GetProviders())) {
		p := cfg.GetProviders()[name]
		path := fmt.Sprintf("consumers.providers[%s]", name)
		b.checkProvider(path, p)
		provider, err := b.provider(path, name, p, known)
		if err != nil {
			for _, err := range flatten(err) {
				if same, ok := errors.AsType[*identity.SameKeyError](err); ok {
					b.faults = append(b.faults, Fault{
						Path: fmt.Sprintf("consumers.known[%s].api_keys[%d]", same.Second, same.Index), Msg: err.Error(), Other: "consumers.known[" + same.First + "].api_keys",
					})
				} else {
					b.faultOf(path, err)
				}
			}
			continue
		}
		providers[name] = identity.Entry{Provider: provider, Forward: p.GetForward()}
	}
	var err error
	if b.directory, err = identity.NewDirectory(providers, known, b.streams); err != nil {
		b.faultOf("consumers.known", err)
	}
	if b.rules, err = access.NewCompiler(); err != nil {
		b.faultOf("", err)
	}
}

// checkProvider makes faults of what would have a provider find no credentials ever, and refuse every call.
func (b *builder) checkProvider(path string, p *configv1.Provider) {
	if k := p.GetApiKey(); k != nil {
		if h := apiKeyHeader(k); transcoder.Reserved(h) || transcoder.Identity(h) || transcoder.Forwarded(h) {
			b.fault(path+".api_key.header", "a header %s never becomes metadata, so that no call would have a key", h)
		}
	}
	if p.GetClientCertificate() != nil && !slices.ContainsFunc(b.cfg.GetListeners(), asksForCertificate) {
		b.fault(path+".client_certificate", "no listener asks clients for certificates, so that no call would have one: tls needs client_ca")
	}
}

// checkCallers makes faults of what policies ask of callers and no caller can be.
func (b *builder) checkCallers() {
	cfg := b.cfg.GetConsumers()
	names := slices.Sorted(maps.Keys(cfg.GetKnown()))
	claimed := map[string]string{}
	for _, name := range names {
		for _, id := range cfg.GetKnown()[name].GetIdentities() {
			claimed[id] = name
		}
	}
	for i, p := range b.cfg.GetPolicies() {
		path := fmt.Sprintf("policies[%d]", i)
		for j, name := range p.GetAuth().GetRequire() {
			if slices.Contains(p.GetAuth().GetRequire()[:j], name) {
				b.fault(fmt.Sprintf("%s.auth.require[%d]", path, j), "%q is there already", name)
			}
		}
		b.checkEmpty(path+".access.scopes", p.GetAccess().GetScopes())
		b.checkEmpty(path+".access.groups", p.GetAccess().GetGroups())
		for j, name := range p.GetAccess().GetConsumers() {
			if _, ok := cfg.GetKnown()[name]; ok {
				continue
			}
			at := fmt.Sprintf("%s.access.consumers[%d]", path, j)
			provider, _, of := strings.Cut(name, ":")
			switch {
			case claimed[name] != "":
				b.fault(at, "%q is the known consumer %s: write that", name, claimed[name])
			case of && cfg.GetProviders()[provider] == nil:
				b.fault(at, "there is no provider %q, only %q", provider, slices.Sorted(maps.Keys(cfg.GetProviders())))
			case !of:
				msg := fmt.Sprintf("consumers.known has no %q", name)
				if s := descriptors.Closest(name, names); s != "" {
					msg += fmt.Sprintf("; did you mean %q?", s)
				}
				b.fault(at, "%s (callers that it does not have are provider:subject)", msg)
			}
		}
	}
}

// checkEmpty makes faults of the empty names in the list at path, of scopes or groups.
func (b *builder) checkEmpty(path string, list []string) {
	for i, name := range list {
		if name == "" {
			b.fault(fmt.Sprintf("%s[%d]", path, i), "it is empty, and no caller has that")
		}
	}
}

// asksForCertificate reports whether clients can identify themselves to the listener by certificate.
func asksForCertificate(l *configv1.Listener) bool {
	return l.GetTls().GetClientCa() != "" && l.GetTls().GetClientAuth() != configv1.TLS_CLIENT_AUTH_NONE
}

func consumerOf(name string, c *configv1.Consumer) *identity.Consumer {
	out := &identity.Consumer{
		Name: name, Identities: c.GetIdentities(), Groups: c.GetGroups(), Scopes: c.GetScopes(), Plan: c.GetPlan(),
		PasswordHash: c.GetPassword(), Claims: c.GetClaims().AsMap(),
	}
	for _, key := range c.GetApiKeys() {
		var hash [32]byte
		if n, err := hex.Decode(hash[:], []byte(strings.TrimPrefix(key, "sha256:"))); err == nil && n == len(hash) {
			out.KeyHashes = append(out.KeyHashes, hash)
		}
	}
	return out
}

// provider makes the provider at path, or takes the one of the Snapshot before. It asks nobody if its cluster has faults.
func (b *builder) provider(path, name string, p *configv1.Provider, known []*identity.Consumer) (identity.Provider, error) {
	switch kind := p.GetKind().(type) {
	case *configv1.Provider_ApiKey:
		return identity.NewAPIKeys(name, apiKeyHeader(kind.ApiKey), known)
	case *configv1.Provider_Jwt:
		j := kind.Jwt
		return hold(&b.holds, "jwt", name, j, func() (*identity.JWT, func(), error) {
			cfg := identity.JWTConfig{
				Name: name, Issuer: j.GetIssuer(), Audiences: j.GetAudiences(), JWKSURI: j.GetJwksUri(), Algorithms: j.GetAlgorithms(),
				Type: j.GetType(), Leeway: defaultLeeway, SubjectClaim: j.GetSubjectClaim(), GroupClaims: j.GetGroupClaims(), PlanClaim: j.GetPlanClaim(),
				Metadata: j.GetMetadata(), Outbound: outboundOf(j.GetOutbound()),
			}
			if l := j.GetLeeway(); l != nil {
				cfg.Leeway = l.AsDuration()
			}
			provider, err := identity.NewJWT(cfg, b.log)
			if err != nil {
				return nil, nil, err
			}
			return provider, provider.Close, nil
		})
	case *configv1.Provider_Introspection:
		i := kind.Introspection
		return hold(&b.holds, "introspection", name, i, func() (*identity.Introspection, func(), error) {
			cfg := identity.IntrospectionConfig{
				Name: name, URL: i.GetUrl(), ClientID: i.GetClientId(), ClientSecret: i.GetClientSecret(), Audiences: i.GetAudiences(),
				Cache: defaultIntrospectionCache, SubjectClaim: i.GetSubjectClaim(), GroupClaims: i.GetGroupClaims(), PlanClaim: i.GetPlanClaim(), Metadata: i.GetMetadata(),
				Outbound: outboundOf(i.GetOutbound()),
			}
			if d := i.GetCache(); d != nil {
				cfg.Cache = d.AsDuration()
			}
			provider, err := identity.NewIntrospection(cfg, b.log)
			if err != nil {
				return nil, nil, err
			}
			return provider, provider.Close, nil
		})
	case *configv1.Provider_ClientCertificate:
		return hold(&b.holds, "client_certificate", name, nil, func() (*identity.ClientCertificates, func(), error) {
			return identity.NewClientCertificates(name), nil, nil
		})
	case *configv1.Provider_Basic:
		// What is remembered of passwords goes with the consumers that they are of.
		return hold(&b.holds, "basic", name, b.cfg.GetConsumers(), func() (*identity.Basic, func(), error) {
			provider, err := identity.NewBasic(name, known)
			return provider, nil, err
		})
	case *configv1.Provider_External:
		var conn grpc.ClientConnInterface
		if cluster := b.clusterOf(path+".external.cluster", kind.External.GetCluster()); cluster != nil {
			conn = cluster.Conn()
		}
		cfg := identity.ExternalConfig{Name: name, Cluster: kind.External.GetCluster(), Timeout: defaultExternalTimeout}
		if d := kind.External.GetTimeout(); d != nil {
			cfg.Timeout = d.AsDuration()
		}
		for _, h := range kind.External.GetHeaders() {
			cfg.Headers = append(cfg.Headers, strings.ToLower(h))
		}
		return identity.NewExternal(cfg, conn, b.log), nil
	}
	return nil, errors.New("a provider is one of api_key, jwt, introspection, client_certificate, basic, external")
}

func outboundOf(o *configv1.Outbound) identity.Outbound {
	return identity.Outbound{Private: o.GetPrivate(), CAFile: o.GetCa()}
}

func apiKeyHeader(k *configv1.ApiKey) string {
	if h := k.GetHeader(); h != "" {
		return h
	}
	return defaultAPIKeyHeader
}

// credentialHeaders are the headers in which providers look for credentials, beside authorization, or that they are said to see.
func credentialHeaders(cfg *configv1.Config) []string {
	var names []string
	for _, p := range cfg.GetConsumers().GetProviders() {
		if k := p.GetApiKey(); k != nil {
			names = append(names, apiKeyHeader(k))
		}
		names = append(names, p.GetExternal().GetHeaders()...)
	}
	return names
}

// edge is what holds for every request. options are what methods ask for by their option.
func (b *builder) edge(options map[string]*methodOption) listeners.EdgeConfig {
	sec := b.cfg.GetSecurity()
	policies := slices.Clone(b.cfg.GetPolicies())
	for _, o := range options {
		policies = append(policies, o.policy)
	}
	cfg := listeners.EdgeConfig{
		Forward:        slices.Concat(credentialHeaders(b.cfg), headersOf(policies), b.cfg.GetMetadata().GetRequestHeaders()),
		TrustedProxies: b.networks("security.trusted_proxies", sec.GetTrustedProxies()),
		TrustedOrigins: sec.GetTrustedOrigins(),
		ResponseHeader: sec.GetResponseHeaders(),
		VersionHeader:  b.cfg.GetApiVersions().GetHeader(),
	}
	for i, name := range b.cfg.GetMetadata().GetRequestHeaders() {
		if transcoder.Reserved(strings.ToLower(name)) {
			b.fault(fmt.Sprintf("metadata.request_headers[%d]", i), "%s is not for backends: it belongs to HTTP or gRPC, or is where transom names itself", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sec.GetResponseHeaders())) {
		if transcoder.Reserved(strings.ToLower(name)) {
			b.fault("security.response_headers["+name+"]", "%s belongs to HTTP or gRPC themselves and cannot be changed", name)
		}
	}
	if d := sec.GetHsts(); d != nil {
		cfg.HSTS = "max-age=" + strconv.FormatInt(int64(d.AsDuration().Seconds()), 10)
	}
	if sec.GetRequestId() != nil {
		if cfg.RequestID = sec.GetRequestId().GetHeader(); cfg.RequestID == "" {
			cfg.RequestID = defaultRequestIDHeader
		}
		if h := cfg.RequestID; transcoder.Reserved(h) || transcoder.Identity(h) || transcoder.Forwarded(h) {
			b.fault("security.request_id.header", "%s cannot carry an id: it belongs to HTTP or gRPC, or tells backends of the client", h)
		}
	}
	return cfg
}

// authenticate is the middleware that tells who calls; nil if nobody has to say.
func (b *builder) authenticate(eff Effective) rpc.Middleware {
	mw, err := b.directory.Middleware(identity.Requirement{Providers: eff.Policy.GetAuth().GetRequire(), Anonymous: eff.Policy.GetAuth().GetAnonymous()})
	if err != nil {
		b.faultOf(eff.path("auth")+".require", err)
	}
	return mw
}

// authorize is the middleware that decides what callers may do; nil if everything.
func (b *builder) authorize(m *descriptors.Method, eff Effective) rpc.Middleware {
	b.checkAuthenticated(eff)
	if b.cfg.GetSecurity().GetDefaultDeny() && eff.Policy.GetAuth() == nil {
		return func(rpc.Handler) rpc.Handler { return access.Deny }
	}
	a := eff.Policy.GetAccess()
	scopes, groups, allow := eff.also()
	cfg := access.Config{Scopes: slices.Concat(a.GetScopes(), scopes), Consumers: a.GetConsumers()}
	for _, list := range [][]string{a.GetGroups(), groups} {
		if len(list) > 0 {
			cfg.Groups = append(cfg.Groups, list)
		}
	}
	cfg.AllowIPs = b.networks(eff.path("access")+".allow_ips", a.GetAllowIps())
	cfg.DenyIPs = b.networks(eff.path("access")+".deny_ips", a.GetDenyIps())
	if len(cfg.Scopes)+len(cfg.Groups)+len(cfg.Consumers) > 0 && (len(eff.Policy.GetAuth().GetRequire()) == 0 || eff.Policy.GetAuth().GetAnonymous()) {
		b.faultFor(m, eff.path("access"), "scopes, groups and consumers need callers that say who they are: auth.require without anonymous")
	}
	for i, source := range []string{eff.Policy.GetAllow(), allow} {
		if source == "" {
			continue
		}
		e, err := b.rules.Compile(source, m)
		if err != nil {
			path := eff.path("allow")
			if i > 0 {
				path = fmt.Sprintf("%s of %s.allow", optionName, m.Name)
			}
			for _, err := range flatten(err) {
				b.faultFor(m, path, "%v", err)
			}
			continue
		}
		cfg.Allow = append(cfg.Allow, e)
	}
	return access.New(cfg)
}

// networks parses addresses and networks.
func (b *builder) networks(path string, list []string) []netip.Prefix {
	var nets []netip.Prefix
	for i, s := range list {
		p, err := access.ParseNetwork(s)
		if err != nil {
			b.fault(fmt.Sprintf("%s[%d]", path, i), "%v", err)
		}
		nets = append(nets, p)
	}
	return nets
}
