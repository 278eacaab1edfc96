package gateway

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
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
)

// shaping is what a builder keeps for the policies that limit and shape calls.
type shaping struct {
	validator *validate.Compiler
	// limiters are those of each policy block.
	limiters map[int][]*limit.Limiter
	redis    *limit.Redis
	cache    *cache.Cache
	paths    fieldPaths
}

// validate is the middleware that checks messages by the rules of their descriptors; nil if there are none.
func (b *builder) validate(m *descriptors.Method, eff Effective) rpc.Middleware {
	if !eff.Policy.GetValidate() || m.Desc == nil {
		return nil
	}
	if b.validator == nil {
		b.validator = validate.NewCompiler()
	}
	mw, err := b.validator.Middleware(m)
	if err != nil {
		b.faultOf(eff.path("validate"), err)
	}
	return mw
}

// limits is the middleware that holds calls to their limits; nil if there are none.
func (b *builder) limits(m *descriptors.Method, eff Effective) rpc.Middleware {
	if len(eff.Policy.GetLimits()) == 0 {
		return nil
	}
	cost := int64(max(1, eff.Policy.GetCost()))
	from := eff.From["limits"]
	limiters, made := b.limiters[from.Block]
	if !made {
		for i, l := range eff.Policy.GetLimits() {
			name := l.GetName()
			if name == "" {
				name = fmt.Sprintf("%s.%d", b.cfg.GetPolicies()[from.Block].GetSelector()[0], i)
			}
			if limiter := b.limiter(fmt.Sprintf("%s[%d]", eff.path("limits"), i), name, l); limiter != nil {
				limiters = append(limiters, limiter)
			}
		}
		if b.limiters == nil {
			b.limiters = map[int][]*limit.Limiter{}
		}
		b.limiters[from.Block] = limiters
	}
	for i, l := range limiters {
		if most := l.MaxCost(); cost > most {
			b.fault(fmt.Sprintf("%s[%d]", eff.path("limits"), i), "calls of %s cost %d, and no more than %d may ever come at once", m.Name, cost, most)
		}
	}
	return limit.Middleware(limiters, cost)
}

// limiter makes one limit, or takes the one of the Snapshot before; nil after a fault.
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
	shared := ""
	if b.cfg.GetRedis() != nil && !l.GetLocal() && cfg.Kind != limit.Concurrent {
		if cfg.Redis = b.sharedCounts(); cfg.Redis == nil {
			return nil
		}
		shared = fmt.Sprintf("%p", cfg.Redis)
	}
	limiter, err := hold(&b.holds, "limit"+shared, name, l, func() (*limit.Limiter, func(), error) { return limit.New(cfg), nil, nil })
	if err != nil {
		b.faultOf(path, err)
	}
	return limiter
}

// sharedCounts is the Redis of the configuration; nil after a fault.
func (b *builder) sharedCounts() *limit.Redis {
	if b.redis != nil {
		return b.redis
	}
	c := b.cfg.GetRedis()
	cfg := limit.RedisConfig{
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
	r, err := hold(&b.holds, "redis", "", c, func() (*limit.Redis, func(), error) {
		r := limit.NewRedis(cfg, b.log)
		return r, r.Close, nil
	})
	if err != nil {
		b.faultOf("redis", err)
	}
	b.redis = r
	return r
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
	mw, err := b.cache.Middleware(m, cache.Config{
		TTL: c.GetTtl().AsDuration(), StaleWhileRevalidate: c.GetStaleWhileRevalidate().AsDuration(), StaleIfError: c.GetStaleIfError().AsDuration(),
		Vary: c.GetVary(), Shared: c.GetShared(), Salt: string(salt[:]),
	})
	if err != nil {
		b.faultOf(eff.path("cache"), err)
	}
	return mw
}

// PurgeCache drops the cached answers of a method (full name), of a consumer, of both together, or all; "" is any. It
// returns how many they were.
func (g *Gateway) PurgeCache(method, consumer string) int {
	n := 0
	g.Snapshot(func(s *Snapshot) {
		if s.cache != nil {
			n = s.cache.Purge(method, consumer)
		}
	})
	return n
}
