package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/policy/cache"
	"transom/policy/limit"
	"transom/policy/validate"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
)

const (
	defaultCacheBytes   = 64 << 20
	defaultRedisPrefix  = "transom:"
	defaultRedisTimeout = 100 * time.Millisecond

	defaultCacheEntryBytes = 1 << 20
)

// shaping is what a builder keeps for the policies that limit and shape calls.
type shaping struct {
	validator *validate.Compiler
	// limiters are those of each policy block, named all of them by their names.
	limiters map[string][]*limit.Limiter
	named    map[string]namedLimit
	redis    *limit.Redis
	cache    *cache.Cache
	store    *cache.Store
	paths    fieldPaths
}

// namedLimit is the limit of a name, and the first place that has it.
type namedLimit struct {
	path string
	cfg  limit.Config
	*limit.Limiter
}

// validate is the middleware that checks messages by the rules of their descriptors; nil if there are none.
func (b *builder) validate(m *descriptors.Method, eff Effective) rpc.Middleware {
	if !eff.Policy.GetValidate() || m.Desc == nil {
		return nil
	}
	if b.validator == nil {
		b.validator = validate.NewCompiler(b.schema.Types())
	}
	mw, err := b.validator.Middleware(m)
	if err != nil {
		b.faultOf(eff.path("validate"), err)
	}
	return mw
}

// limits are the middlewares that hold calls to their limits: early stands before authentication. Either is nil if there is
// nothing for it to do.
func (b *builder) limits(m *descriptors.Method, eff Effective, authenticated bool) (early, late rpc.Middleware) {
	if len(eff.Policy.GetLimits()) == 0 {
		return nil, nil
	}
	cost := int64(max(1, eff.Policy.GetCost()))
	place := eff.path("limits")
	limiters, made := b.limiters[place]
	if !made {
		for i, l := range eff.Policy.GetLimits() {
			name := l.GetName()
			if name == "" {
				first := eff.method
				if n := eff.From["limits"].Block; n != optionBlock {
					first = b.cfg.GetPolicies()[n].GetSelector()[0]
				}
				name = fmt.Sprintf("%s.%d", first, i)
			}
			limiter := b.limiter(fmt.Sprintf("%s[%d]", place, i), name, l)
			if at := slices.Index(limiters, limiter); limiter != nil && at >= 0 {
				b.faults = append(b.faults, Fault{
					Path:  fmt.Sprintf("%s[%d]", place, i),
					Msg:   fmt.Sprintf("limit %q is in this list twice: each call would count twice", name),
					Other: fmt.Sprintf("%s[%d]", place, at),
				})
			}
			limiters = append(limiters, limiter)
		}
		if b.limiters == nil {
			b.limiters = map[string][]*limit.Limiter{}
		}
		b.limiters[place] = limiters
	}
	for i, l := range limiters {
		if l == nil {
			continue
		}
		if most := l.MaxCost(); cost > most {
			b.faultFor(m, fmt.Sprintf("%s[%d]", place, i), "calls cost %d, and no more than %d may ever come at once", cost, most)
		}
	}
	b.limitHeaders(eff)
	fields := b.limitFields(m, eff)
	if slices.Contains(limiters, nil) {
		return nil, nil
	}
	return limit.Middleware(limiters, cost, fields, authenticated)
}

// limitHeaders makes faults of limits by a header that authentication takes out before they are asked: all its calls would count
// as one caller's.
func (b *builder) limitHeaders(eff Effective) {
	gone := map[string]string{} // by provider
	for _, name := range eff.Policy.GetAuth().GetRequire() {
		p := b.cfg.GetConsumers().GetProviders()[name]
		switch {
		case p.GetForward():
		case p.GetApiKey() != nil:
			gone["header:"+apiKeyHeader(p.GetApiKey())] = name
		case p.GetJwt() != nil || p.GetIntrospection() != nil || p.GetBasic() != nil:
			gone["header:authorization"] = name
		}
	}
	for i, l := range eff.Policy.GetLimits() {
		for j, per := range l.GetPer() {
			if provider := gone[per]; provider != "" {
				b.fault(fmt.Sprintf("%s[%d].per[%d]", eff.path("limits"), i, j),
					"%s: provider %s takes it out of calls before they are counted, so that all would be one caller's; count by consumer", per, provider)
			}
		}
	}
}

// limitFields are the fields of the method's request that its limits count by; nil if by none. Unlike other fields in a policy
// each method that has the limit must have them: else its calls would all count as one.
func (b *builder) limitFields(m *descriptors.Method, eff Effective) limit.Fields {
	var fields limit.Fields
	for i, l := range eff.Policy.GetLimits() {
		for j, per := range l.GetPer() {
			name, ok := strings.CutPrefix(per, "field:")
			if !ok || name == "" { // which is no Part
				continue
			}
			place := fmt.Sprintf("%s[%d].per[%d]", eff.path("limits"), i, j)
			if m.Desc == nil {
				b.fault(place, "%s: nobody knows the fields of methods that no descriptor tells of", per)
				continue
			}
			path, err := rpc.ParseFieldPath(m.Desc.Input(), name)
			if err != nil {
				b.faultFor(m, place, "%v", err)
				continue
			}
			if fields == nil {
				fields = limit.Fields{}
			}
			fields[name] = path
		}
	}
	return fields
}

// limiter makes one limit, or takes the one of the name that there is, or that of the Snapshot before; nil after a fault.
func (b *builder) limiter(path, name string, l *configv1.Limit) *limit.Limiter {
	cfg := limit.Config{Name: name, Messages: l.GetMessages(), Plans: map[string]limit.Amount{}}
	faults := len(b.faults)
	text, field := l.GetRate(), "rate"
	switch l.GetKind().(type) {
	case *configv1.Limit_Quota:
		cfg.Kind, text, field = limit.Quota, l.GetQuota(), "quota"
	case *configv1.Limit_Concurrent:
		cfg.Kind, text, field = limit.Concurrent, l.GetConcurrent(), "concurrent"
	}
	var err error
	if cfg.Amount, err = limit.ParseAmount(cfg.Kind, text); err != nil {
		b.faultOf(path+"."+field, err)
	}
	cfg.Burst = int64(l.GetBurst())
	for _, plan := range slices.Sorted(maps.Keys(l.GetPlans())) {
		amount, err := limit.ParseAmount(cfg.Kind, l.GetPlans()[plan])
		if err != nil {
			b.faultOf(fmt.Sprintf("%s.plans[%s]", path, plan), err)
		}
		cfg.Plans[plan] = amount
	}
	per := l.GetPer()
	if len(per) == 0 && !l.GetEverybody() {
		per = []string{"consumer"}
	}
	for i, p := range per {
		part, err := limit.ParsePart(p)
		if err != nil {
			b.faultOf(fmt.Sprintf("%s.per[%d]", path, i), err)
		}
		cfg.Per = append(cfg.Per, part)
	}
	if len(b.faults) > faults {
		return nil
	}
	if b.named == nil {
		b.named = map[string]namedLimit{}
	}
	shared := ""
	if b.cfg.GetRedis() != nil && !l.GetLocal() && cfg.Kind != limit.Concurrent {
		if cfg.Redis = b.sharedCounts(); cfg.Redis == nil {
			return nil
		}
		shared = fmt.Sprintf("%p", cfg.Redis)
	}
	if first, ok := b.named[name]; ok {
		if !reflect.DeepEqual(cfg, first.cfg) {
			b.faults = append(b.faults, Fault{
				Path: path, Msg: fmt.Sprintf("limits of one name are one limit, and this %q differs from another", name), Other: first.path,
			})
			return nil
		}
		return first.Limiter
	}
	limiter, err := hold(&b.holds, "limit"+shared, name, l, func() (*limit.Limiter, func(), error) { return limit.New(cfg), nil, nil })
	if err != nil {
		b.faultOf(path, err)
		return nil
	}
	b.named[name] = namedLimit{path, cfg, limiter}
	return limiter
}

// allLimits are the limiters of all policies, by name.
func (b *builder) allLimits() []*limit.Limiter {
	var all []*limit.Limiter
	for _, limiters := range b.limiters {
		all = append(all, limiters...)
	}
	slices.SortFunc(all, func(a, b *limit.Limiter) int { return strings.Compare(a.Name(), b.Name()) })
	return slices.Compact(all)
}

// redisConfig is how Redis is reached; nil after a fault.
func (b *builder) redisConfig() *limit.RedisConfig {
	c := b.cfg.GetRedis()
	cfg := &limit.RedisConfig{
		Addresses: c.GetAddresses(), Username: c.GetUsername(), Password: c.GetPassword(), Database: int(c.GetDatabase()),
		Prefix: c.GetPrefix(), Timeout: defaultRedisTimeout, Instances: int(c.GetInstances()), FailClosed: c.GetFailClosed(),
	}
	if cfg.Prefix == "" {
		cfg.Prefix = defaultRedisPrefix
	}
	if t := c.GetTimeout(); t != nil {
		cfg.Timeout = t.AsDuration()
	}
	if t := c.GetTls(); t != nil {
		cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.GetServerName()}
		if file := t.GetCa(); file != "" {
			pem, err := os.ReadFile(file)
			if err != nil {
				b.faultOf("redis.tls.ca", err)
				return nil
			}
			cfg.TLS.RootCAs = x509.NewCertPool()
			if !cfg.TLS.RootCAs.AppendCertsFromPEM(pem) {
				b.fault("redis.tls.ca", "%s holds no certificate", file)
				return nil
			}
		}
	}
	return cfg
}

// sharedCounts is the Redis of the limits; nil after a fault.
func (b *builder) sharedCounts() *limit.Redis {
	if b.redis != nil {
		return b.redis
	}
	cfg := b.redisConfig()
	if cfg == nil {
		return nil
	}
	r, err := hold(&b.holds, "redis", "", b.cfg.GetRedis(), func() (*limit.Redis, func(), error) {
		r := limit.NewRedis(*cfg, b.log)
		return r, r.Close, nil
	})
	if err != nil {
		b.faultOf("redis", err)
	}
	b.redis = r
	return r
}

// sharedAnswers is the Redis of the cache; nil after a fault. Its connection is another than that of the limits, whose small
// questions must not wait behind large answers.
func (b *builder) sharedAnswers() *cache.Store {
	if b.store != nil {
		return b.store
	}
	limits := b.redisConfig()
	if limits == nil {
		return nil
	}
	cfg := cache.StoreConfig{Client: limits.ClientOption(), Prefix: limits.Prefix, Timeout: limits.Timeout, MaxBytes: int(b.cfg.GetRedis().GetCacheEntryBytes())}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultCacheEntryBytes
	}
	s, err := hold(&b.holds, "cache store", fmt.Sprintf("%p", b.cache), b.cfg.GetRedis(), func() (*cache.Store, func(), error) {
		s := cache.NewStore(cfg, b.cache, b.log)
		return s, s.Close, nil
	})
	if err != nil {
		b.faultOf("redis", err)
	}
	b.store = s
	return s
}

// caching is the middleware that keeps answers; nil if none are.
func (b *builder) caching(m *descriptors.Method, eff Effective) rpc.Middleware {
	c := eff.Policy.GetCache()
	if c == nil {
		return nil
	}
	if b.cache == nil {
		size := int64(b.cfg.GetCacheBytes())
		if size == 0 {
			size = defaultCacheBytes
		}
		var err error
		b.cache, err = hold(&b.holds, "cache", strconv.FormatInt(size, 10), nil, func() (*cache.Cache, func(), error) {
			made, err := cache.New(size)
			if err != nil {
				return nil, nil, err
			}
			return made, made.Close, nil
		})
		if err != nil {
			b.faultOf(eff.path("cache"), err)
			return nil
		}
	}
	// What another policy makes of answers is another answer.
	policy, err := proto.MarshalOptions{Deterministic: true}.Marshal(eff.Policy)
	if err != nil {
		b.faultOf(eff.path("cache"), err)
	}
	salt := sha256.Sum256(policy)
	cfg := cache.Config{
		TTL: c.GetTtl().AsDuration(), StaleWhileRevalidate: c.GetStaleWhileRevalidate().AsDuration(), StaleIfError: c.GetStaleIfError().AsDuration(),
		Vary: c.GetVary(), Shared: c.GetShared(), Salt: string(salt[:]), Timeout: timeoutOf(eff.Policy, true),
	}
	for i, tag := range c.GetTags() {
		name, ok := strings.CutPrefix(tag, "field:")
		if !ok {
			cfg.Tags = append(cfg.Tags, tag)
			continue
		}
		if m.Desc == nil {
			continue // Middleware has it be a fault
		}
		path, err := rpc.ParseFieldPath(m.Desc.Input(), name)
		if b.foundField(fmt.Sprintf("%s.tags[%d]", eff.path("cache"), i), err) {
			cfg.TagFields = append(cfg.TagFields, cache.TagField{Name: name, Path: path})
		}
	}
	if c.GetRedis() {
		if b.cfg.GetRedis() == nil {
			b.fault(eff.path("cache")+".redis", "there is no redis in the configuration to keep answers in")
			return nil
		}
		if cfg.Store = b.sharedAnswers(); cfg.Store == nil {
			return nil
		}
	}
	mw, err := b.cache.Middleware(m, cfg)
	if err != nil {
		b.faultOf(eff.path("cache"), err)
	}
	return mw
}

// PurgeCache drops the cached answers of a method (full name), of a consumer, with a tag, of all these together, or all; "" is
// any. It returns how many were in memory, and whether those in Redis are gone for all transoms too, if answers are shared. An
// error says that Redis does not answer, and has them still.
func (g *Gateway) PurgeCache(ctx context.Context, method, consumer, tag string) (n int, shared bool, err error) {
	sel := cache.Selection{Method: method, Consumer: consumer, Tag: tag}
	g.Snapshot(func(s *Snapshot) {
		switch {
		case s.store != nil:
			n, err = s.store.Purge(ctx, sel)
			shared = err == nil
		case s.cache != nil:
			n = s.cache.Purge(sel)
		}
	})
	return n, shared, err
}
