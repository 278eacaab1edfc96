package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"transom/descriptors"
	"transom/upstream/loadaware"
	"transom/upstream/loadaware/score"
)

// Limits of gRFC A6.
const (
	maxAttempts       = 5
	maxThrottleTokens = 1000
)

// methodPolicy is what a cluster does with the calls of a method beyond carrying them.
type methodPolicy struct {
	timeout time.Duration // 0 is none
	retry   retryPolicy
	hedge   *hedgePolicy // nil is none
}

// retryPolicy says when a failed attempt is made again. An attempt that no server has seen is made again whatever its
// code.
type retryPolicy struct {
	attempts     int // in all; 1 is no retries
	initial, max time.Duration
	multiplier   float64
	codes        codeSet
}

// hedgePolicy says when further attempts are made beside one that has not ended.
type hedgePolicy struct {
	attempts int
	delay    time.Duration
	nonFatal codeSet
}

// codeSet is a set of status codes, a bit each.
type codeSet uint32

func (s codeSet) has(c codes.Code) bool { return c < 32 && s>>c&1 == 1 }

// The policies of methods that no service config speaks of.
var (
	defaultRetry = retryPolicy{attempts: 3, initial: 25 * time.Millisecond, max: time.Second, multiplier: 2}
	// defaultRepeatable is that of unary methods that may be called twice.
	defaultRepeatable = methodPolicy{retry: withCodes(defaultRetry, 1<<codes.Unavailable)}
	defaultOther      = methodPolicy{retry: defaultRetry}
)

func withCodes(p retryPolicy, c codeSet) retryPolicy {
	p.codes = c
	return p
}

// policies are the compiled service config of a cluster.
type policies struct {
	// methods are by "/service/method", "/service/" or "".
	methods   map[string]*methodPolicy
	throttles *throttle // nil is none
	adaptive  bool      // package loadaware balances
	// grpc is what is left to grpc-go: balancing, health checks, wait-for-ready and message limits.
	grpc string
	// The same for our own transport. limits is by path as methods is, nil if there are none; health is nil without health
	// checks.
	lb     json.RawMessage
	limits map[string]callLimits
	health *string
}

// callLimits is what a service config says of single attempts at a method.
type callLimits struct {
	wait              bool // for an endpoint that can be reached
	request, response int  // the largest message; -1 is any
}

// limitsOf returns those of a method.
func (p *policies) limitsOf(m *descriptors.Method) callLimits {
	if p.limits != nil {
		service := m.FullPath[:strings.LastIndexByte(m.FullPath, '/')+1]
		for _, path := range [...]string{m.FullPath, service, ""} {
			if l, ok := p.limits[path]; ok {
				return l
			}
		}
	}
	return callLimits{request: -1, response: -1}
}

// of returns the policy of a method.
func (p *policies) of(m *descriptors.Method) *methodPolicy {
	if len(p.methods) > 0 {
		if mp, ok := p.methods[m.FullPath]; ok {
			return mp.orDefault(m)
		}
		service := m.FullPath[:strings.LastIndexByte(m.FullPath, '/')+1]
		if mp, ok := p.methods[service]; ok {
			return mp.orDefault(m)
		}
		if mp, ok := p.methods[""]; ok {
			return mp.orDefault(m)
		}
	}
	return defaultPolicy(m)
}

func defaultPolicy(m *descriptors.Method) *methodPolicy {
	if m.Unary() && m.Effect >= descriptors.EffectIdempotent {
		return &defaultRepeatable
	}
	return &defaultOther
}

// orDefault lets a policy that says nothing of retries have those of the method's kind.
func (p *methodPolicy) orDefault(m *descriptors.Method) *methodPolicy {
	if p.retry.attempts > 0 {
		return p
	}
	q := *defaultPolicy(m)
	q.timeout, q.hedge = p.timeout, p.hedge
	return &q
}

// The JSON of gRPC service config (grpc/service_config/service_config.proto), as far as it is understood.
type (
	jsonConfig struct {
		LoadBalancingPolicy string            `json:"loadBalancingPolicy,omitempty"`
		LoadBalancingConfig json.RawMessage   `json:"loadBalancingConfig,omitempty"`
		MethodConfig        []jsonMethod      `json:"methodConfig,omitempty"`
		RetryThrottling     *jsonThrottling   `json:"retryThrottling,omitempty"`
		HealthCheckConfig   *jsonHealthConfig `json:"healthCheckConfig,omitempty"`
	}
	jsonMethod struct {
		Name                    []jsonName    `json:"name"`
		WaitForReady            *bool         `json:"waitForReady,omitempty"`
		Timeout                 *jsonDuration `json:"timeout,omitempty"`
		MaxRequestMessageBytes  *int64        `json:"maxRequestMessageBytes,omitempty"`
		MaxResponseMessageBytes *int64        `json:"maxResponseMessageBytes,omitempty"`
		RetryPolicy             *jsonRetry    `json:"retryPolicy,omitempty"`
		HedgingPolicy           *jsonHedge    `json:"hedgingPolicy,omitempty"`
	}
	jsonName struct {
		Service string `json:"service,omitempty"`
		Method  string `json:"method,omitempty"`
	}
	jsonRetry struct {
		MaxAttempts          int           `json:"maxAttempts"`
		InitialBackoff       *jsonDuration `json:"initialBackoff"`
		MaxBackoff           *jsonDuration `json:"maxBackoff"`
		BackoffMultiplier    float64       `json:"backoffMultiplier"`
		RetryableStatusCodes []codes.Code  `json:"retryableStatusCodes"`
	}
	jsonHedge struct {
		MaxAttempts         int           `json:"maxAttempts"`
		HedgingDelay        *jsonDuration `json:"hedgingDelay"`
		NonFatalStatusCodes []codes.Code  `json:"nonFatalStatusCodes"`
	}
	jsonThrottling struct {
		MaxTokens  float64 `json:"maxTokens"`
		TokenRatio float64 `json:"tokenRatio"`
	}
	jsonHealthConfig struct {
		ServiceName *string `json:"serviceName,omitempty"`
	}
)

// jsonDuration is a google.protobuf.Duration in JSON: "1.5s".
type jsonDuration time.Duration

func (d *jsonDuration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil || !strings.HasSuffix(s, "s") {
		return fmt.Errorf(`duration %s: must be seconds such as "1.5s"`, b)
	}
	v, err := time.ParseDuration(s)
	if err != nil || strings.ContainsAny(s, "mhuµn") {
		return fmt.Errorf(`duration %s: must be seconds such as "1.5s"`, b)
	}
	*d = jsonDuration(v)
	return nil
}

// parseServiceConfig compiles the service config of cfg and its balancing policy. It reports all faults, joined, each
// with its place in the JSON.
func parseServiceConfig(cfg Config) (*policies, error) {
	var c jsonConfig
	text, lb := cfg.ServiceConfig, cfg.LB
	if text != "" {
		dec := json.NewDecoder(strings.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&c); err != nil {
			return nil, place(text, err)
		}
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return nil, errors.New("there is more after the JSON object")
		}
	}
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	p := &policies{methods: map[string]*methodPolicy{}}
	for i, m := range c.MethodConfig {
		at := fmt.Sprintf("methodConfig[%d]", i)
		mp := &methodPolicy{}
		if m.Timeout != nil {
			if mp.timeout = time.Duration(*m.Timeout); mp.timeout <= 0 {
				fault("%s.timeout: must be more than 0s, is %v", at, mp.timeout)
			}
		}
		for field, v := range map[string]*int64{"maxRequestMessageBytes": m.MaxRequestMessageBytes, "maxResponseMessageBytes": m.MaxResponseMessageBytes} {
			if v != nil && *v < 0 {
				fault("%s.%s: must not be negative, is %d", at, field, *v)
			}
		}
		if r := m.RetryPolicy; r != nil {
			mp.retry = r.compile(at+".retryPolicy", fault)
		}
		if h := m.HedgingPolicy; h != nil {
			if m.RetryPolicy != nil {
				fault("%s: has both a retryPolicy and a hedgingPolicy", at)
			}
			mp.hedge = h.compile(at+".hedgingPolicy", fault)
		}
		if len(m.Name) == 0 {
			fault("%s.name: must not be empty; [{}] is every method", at)
		}
		for j, n := range m.Name {
			path := n.path()
			if n.Service == "" && n.Method != "" {
				fault("%s.name[%d]: has a method but no service", at, j)
			}
			if p.methods[path] != nil {
				fault("%s.name[%d]: %q is named twice", at, j, path)
			}
			p.methods[path] = mp
		}
	}
	if t := c.RetryThrottling; t != nil {
		if t.MaxTokens <= 0 || t.MaxTokens > maxThrottleTokens {
			fault("retryThrottling.maxTokens: must be more than 0 and at most %d, is %v", maxThrottleTokens, t.MaxTokens)
		}
		if t.TokenRatio < 0.001 {
			fault("retryThrottling.tokenRatio: must be at least 0.001, is %v", t.TokenRatio)
		}
		p.throttles = newThrottle(t.MaxTokens, t.TokenRatio)
	}
	switch {
	case len(c.LoadBalancingConfig) > 0 && lb != "":
		fault("loadBalancingConfig: the cluster has a balancing policy of its own")
	case len(c.LoadBalancingConfig) > 0:
		lb = string(c.LoadBalancingConfig)
	case c.LoadBalancingPolicy != "" && lb == "":
		lb = strings.ToLower(c.LoadBalancingPolicy)
	}
	list, adaptive, err := balancing(lb, cfg)
	p.adaptive = adaptive
	for _, err := range each(err) {
		if cfg.LB != "" {
			err = &FieldError{"lb.policy", err}
		} else {
			err = fmt.Errorf("loadBalancingConfig: %w", err)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}

	// What grpc-go is to do: not what is done here for the call as a whole.
	for i := range c.MethodConfig {
		c.MethodConfig[i].Timeout, c.MethodConfig[i].RetryPolicy, c.MethodConfig[i].HedgingPolicy = nil, nil, nil
	}
	c.LoadBalancingPolicy, c.LoadBalancingConfig, c.RetryThrottling = "", list, nil
	switch {
	case cfg.NoHealthCheck:
		c.HealthCheckConfig = nil
	case c.HealthCheckConfig == nil:
		whole := ""
		c.HealthCheckConfig = &jsonHealthConfig{ServiceName: &whole}
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	p.grpc, p.lb = string(b), list
	if c.HealthCheckConfig != nil {
		p.health = c.HealthCheckConfig.ServiceName
	}
	for _, m := range c.MethodConfig {
		p.limit(m)
	}
	return p, nil
}

// limit takes in what m says of single attempts.
func (p *policies) limit(m jsonMethod) {
	l := callLimits{wait: m.WaitForReady != nil && *m.WaitForReady, request: -1, response: -1}
	if v := m.MaxRequestMessageBytes; v != nil {
		l.request = int(min(*v, math.MaxInt32))
	}
	if v := m.MaxResponseMessageBytes; v != nil {
		l.response = int(min(*v, math.MaxInt32))
	}
	for _, n := range m.Name {
		if p.limits == nil {
			p.limits = map[string]callLimits{}
		}
		p.limits[n.path()] = l
	}
}

// path is n as policies are by.
func (n jsonName) path() string {
	if n.Service == "" {
		return ""
	}
	return "/" + n.Service + "/" + n.Method
}

func (r *jsonRetry) compile(at string, fault func(string, ...any)) retryPolicy {
	p := retryPolicy{attempts: min(r.MaxAttempts, maxAttempts), multiplier: r.BackoffMultiplier, codes: setOf(r.RetryableStatusCodes)}
	if r.MaxAttempts < 2 {
		fault("%s.maxAttempts: must be at least 2, is %d", at, r.MaxAttempts)
	}
	if r.BackoffMultiplier <= 0 {
		fault("%s.backoffMultiplier: must be more than 0, is %v", at, r.BackoffMultiplier)
	}
	if p.codes == 0 {
		fault("%s.retryableStatusCodes: must not be empty", at)
	}
	for _, d := range []struct {
		field string
		from  *jsonDuration
		to    *time.Duration
	}{{"initialBackoff", r.InitialBackoff, &p.initial}, {"maxBackoff", r.MaxBackoff, &p.max}} {
		if d.from == nil || *d.from <= 0 {
			fault("%s.%s: must be more than 0s", at, d.field)
			continue
		}
		*d.to = time.Duration(*d.from)
	}
	return p
}

func (h *jsonHedge) compile(at string, fault func(string, ...any)) *hedgePolicy {
	p := &hedgePolicy{attempts: min(h.MaxAttempts, maxAttempts), nonFatal: setOf(h.NonFatalStatusCodes)}
	if h.MaxAttempts < 2 {
		fault("%s.maxAttempts: must be at least 2, is %d", at, h.MaxAttempts)
	}
	if h.HedgingDelay != nil {
		if p.delay = time.Duration(*h.HedgingDelay); p.delay < 0 {
			fault("%s.hedgingDelay: must not be negative, is %v", at, p.delay)
		}
	}
	return p
}

func setOf(cs []codes.Code) codeSet {
	var s codeSet
	for _, c := range cs {
		s |= 1 << c
	}
	return s
}

// place adds line and column to an error of encoding/json that knows where it is.
func place(text string, err error) error {
	var offset int64
	var se *json.SyntaxError
	var te *json.UnmarshalTypeError
	switch {
	case errors.As(err, &se):
		offset = se.Offset
	case errors.As(err, &te):
		offset = te.Offset
	default:
		return err
	}
	before := []byte(text)[:min(max(offset, 0), int64(len(text)))]
	line := bytes.Count(before, []byte("\n")) + 1
	return fmt.Errorf("line %d, column %d: %w", line, len(before)-bytes.LastIndexByte(before, '\n')-1, err)
}

// balancing is the loadBalancingConfig that selects the policy of cfg. adaptive reports whether that is package
// loadaware's, as it is for every policy that loadaware knows and whose settings it can take.
func balancing(lb string, cfg Config) (config json.RawMessage, adaptive bool, err error) {
	if lb == "" {
		lb = loadaware.Name
	}
	var list []map[string]json.RawMessage
	if strings.HasPrefix(lb, "[") {
		if err := json.Unmarshal([]byte(lb), &list); err != nil {
			return nil, false, fmt.Errorf("must be a name or a list as in gRPC service config: %w", place(lb, err))
		}
	} else {
		list = append(list, map[string]json.RawMessage{lb: json.RawMessage("{}")})
	}
	if len(list) == 0 {
		return nil, false, errors.New("the list is empty")
	}
	for i, p := range list {
		if len(p) != 1 {
			return nil, false, fmt.Errorf("each entry of the list must name one policy, not %d", len(p))
		}
		name := slices.Collect(maps.Keys(p))[0]
		settings := map[string]json.RawMessage{}
		if _, ok := score.ParsePolicy(name); name == loadaware.Name || ok && emptyObject(p[name]) {
			if err := json.Unmarshal(p[name], &settings); err != nil {
				return nil, false, fmt.Errorf("%s: %w", name, err)
			}
			cfg.adaptiveDefaults(settings, name)
			name = loadaware.Name
			b, err := json.Marshal(settings)
			if err != nil {
				return nil, false, err
			}
			list[i] = map[string]json.RawMessage{name: b}
		}
		b := balancer.Get(name)
		if b == nil || b.Name() != name {
			return nil, false, fmt.Errorf("there is no %q; there are %s and pick_first", name, strings.Join(score.Policies(), ", "))
		}
		if parser, ok := b.(balancer.ConfigParser); ok {
			_, err := parser.ParseConfig(list[i][name])
			var errs []error
			for _, err := range each(err) {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
			if err != nil {
				return nil, false, errors.Join(errs...)
			}
		}
		adaptive = adaptive || i == 0 && name == loadaware.Name // gRPC takes the first that it knows
	}
	config, err = json.Marshal(list)
	return config, adaptive, err
}

func emptyObject(b json.RawMessage) bool {
	var m map[string]any
	return json.Unmarshal(b, &m) == nil && len(m) == 0
}

// adaptiveDefaults adds to the settings of package loadaware what the Config says and they do not.
func (c Config) adaptiveDefaults(settings map[string]json.RawMessage, policy string) {
	set := func(key string, v any) {
		if _, ok := settings[key]; ok {
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // strings, numbers and durations have JSON
		}
		settings[key] = b
	}
	if policy != loadaware.Name {
		set("policy", policy)
	}
	if c.Warmup != 0 {
		set("warmup", loadaware.Duration(max(c.Warmup, 0)))
	}
	if c.Zone != "" {
		set("zone", c.Zone)
	}
	if c.MaxInFlightPerEndpoint > 0 {
		set("maxInFlight", c.MaxInFlightPerEndpoint)
	}
}
