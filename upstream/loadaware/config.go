package loadaware

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"transom/upstream/loadaware/score"
)

// Duration is a time.Duration that JSON spells as Go does: "1m30s".
type Duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	s, err := strconv.Unquote(string(b))
	if err != nil {
		return fmt.Errorf("%s is not a duration such as \"90s\"", b)
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}

// Config are the settings of the policy. Absent ones have the defaults of [DefaultConfig], so that {} is a config.
type Config struct { //nolint:recvcheck // decoded by pointer, used by value
	serviceconfig.LoadBalancingConfig `json:"-"`

	// Policy is adaptive (the default), round_robin, weighted_round_robin (gRFC A58), least_request, peak_ewma, random,
	// ring_hash or bounded_hash (consistent hash with bounded load).
	Policy string `json:"policy,omitempty"`
	// Warmup is the age at which a server gets its full share. 0 for at once. Default 90s.
	Warmup Duration `json:"warmup"`
	// MaxInFlight bounds the calls in flight per endpoint. Default 0, no bound.
	MaxInFlight int `json:"maxInFlight,omitempty"`
	// Zone is where this proxy is. Endpoints that are in another zone get calls only when those of this one are busier by
	// a tenth of their capacity. Default "": zones do not matter.
	Zone string `json:"zone,omitempty"`
	// Subset is how many endpoints of each priority are used, draining ones not counted, chosen so that a change of one
	// endpoint changes at most one of them. Default 0, all.
	Subset int `json:"subset,omitempty"`
	// SubsetSeed decides which: proxies with one seed use the same ones. Default 0, a number of the process's own (gRFC A68), so
	// that many proxies together use all endpoints alike.
	SubsetSeed uint64 `json:"subsetSeed,omitempty"`
	// OOBPeriod is the interval at which servers are asked to report out of band. Default 0, not at all.
	OOBPeriod Duration `json:"oobPeriod,omitempty"`
	// Probes is the greatest number of probes per call. They are sent only as far as servers report load that does not
	// come from here. Default 0.03; 0 for none.
	Probes float64 `json:"probes"`
	// HashBound is the greatest load of an endpoint under bounded_hash, as a multiple of the mean. Default 1.25.
	HashBound float64  `json:"hashBound"`
	Ejection  Ejection `json:"ejection"`

	policy score.Policy
}

// Ejection says when endpoints are taken out for their failures.
type Ejection struct {
	// Consecutive failures eject: UNAVAILABLE, RESOURCE_EXHAUSTED, and deadlines at an endpoint that finishes nothing.
	// Default 5; 0 switches the rule off.
	Consecutive int `json:"consecutive"`
	// SuccessMargin ejects an endpoint whose error rate exceeds the cluster's by this much. UNKNOWN, INTERNAL and
	// DATA_LOSS count here too. Default 0.3; 0 switches the rule off.
	SuccessMargin float64 `json:"successMargin"`
	// LatencyFactor ejects an endpoint this many times slower than the cluster's median; less slow ones get fewer calls as it is. Default 20; 0 switches the rule off.
	LatencyFactor float64 `json:"latencyFactor"`
	// Base is the length of the first ejection, doubled by each further one up to Max. Defaults 1s and 4s.
	Base Duration `json:"base"`
	Max  Duration `json:"max"`
	// MaxPercent of the endpoints may be ejected at a time, one always remains. Default 50.
	MaxPercent float64 `json:"maxPercent"`
	// PanicPercent is the part of the endpoints that must not be ejected for ejection to be respected. Default 50.
	PanicPercent float64 `json:"panicPercent"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	p := score.Defaults()
	return Config{
		Warmup: Duration(p.Warmup), Probes: p.Probes, HashBound: p.HashBound,
		Ejection: Ejection{
			Consecutive: p.ConsecutiveFailures, SuccessMargin: p.SuccessRateMargin, LatencyFactor: p.LatencyFactor,
			Base: Duration(p.EjectFor), Max: Duration(p.EjectMax), MaxPercent: p.MaxEjected * 100, PanicPercent: p.Panic * 100,
		},
	}
}

func defaultConfig() *Config {
	c := DefaultConfig()
	return &c
}

// Validate reports all faults of the config.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, must string, v any) {
		errs = append(errs, fmt.Errorf("%s: must be %s, is %v", field, must, v))
	}
	if _, ok := score.ParsePolicy(c.Policy); !ok {
		bad("policy", "one of adaptive, round_robin, weighted_round_robin, least_request, peak_ewma, random, ring_hash, bounded_hash", strconv.Quote(c.Policy))
	}
	if c.Warmup < 0 {
		bad("warmup", "at least 0s", time.Duration(c.Warmup))
	}
	if c.MaxInFlight < 0 {
		bad("maxInFlight", "at least 0", c.MaxInFlight)
	}
	if c.Subset < 0 {
		bad("subset", "at least 0", c.Subset)
	}
	if c.OOBPeriod < 0 {
		bad("oobPeriod", "at least 0s", time.Duration(c.OOBPeriod))
	}
	if c.Probes < 0 || c.Probes > 10 {
		bad("probes", "from 0 to 10", c.Probes)
	}
	if c.HashBound < 1 {
		bad("hashBound", "at least 1", c.HashBound)
	}
	e := &c.Ejection
	if e.Consecutive < 0 {
		bad("ejection.consecutive", "at least 0", e.Consecutive)
	}
	if e.SuccessMargin < 0 || e.SuccessMargin > 1 {
		bad("ejection.successMargin", "from 0 to 1", e.SuccessMargin)
	}
	if e.LatencyFactor != 0 && e.LatencyFactor <= 1 {
		bad("ejection.latencyFactor", "0 or above 1", e.LatencyFactor)
	}
	if e.Base <= 0 {
		bad("ejection.base", "above 0s", time.Duration(e.Base))
	}
	if e.Max < e.Base {
		bad("ejection.max", "at least ejection.base", time.Duration(e.Max))
	}
	for _, p := range []struct {
		field string
		v     float64
	}{{"ejection.maxPercent", e.MaxPercent}, {"ejection.panicPercent", e.PanicPercent}} {
		if p.v < 0 || p.v > 100 {
			bad(p.field, "from 0 to 100", p.v)
		}
	}
	return errors.Join(errs...)
}

// ServiceConfig renders the config as a grpc service config's loadBalancingConfig value: [{"adaptive": {…}}].
func (c Config) ServiceConfig() (json.RawMessage, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return json.Marshal([]map[string]Config{{Name: c}})
}

// parseConfig reads the policy's settings and reports their faults, joined; grpc-go says of which policy they are. Unknown
// settings are errors: a misspelt one would silently be its default.
func parseConfig(js json.RawMessage) (*Config, error) {
	c := defaultConfig()
	if len(bytes.TrimSpace(js)) > 0 {
		if err := decode(js, c); err != nil {
			return nil, placed(js, err, func() any { return new(Config) })
		}
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.policy, _ = score.ParsePolicy(c.Policy)
	return c, nil
}

func decode(js []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(js))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// placed puts the name of the setting before err, with which decoding js failed: package json does not tell whose
// UnmarshalJSON it was. The setting is the first that fails alone.
func placed(js []byte, err error, blank func() any) error {
	var settings map[string]json.RawMessage
	if json.Unmarshal(js, &settings) != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		one, _ := json.Marshal(map[string]json.RawMessage{name: settings[name]}) // it was JSON before
		cause := decode(one, blank())
		te := (*json.UnmarshalTypeError)(nil)
		switch {
		case cause == nil:
		case strings.Contains(cause.Error(), "unknown field"):
			if name == "ejection" {
				return fmt.Errorf("%s: %w", name, cause)
			}
			return cause
		case name == "ejection" && settings[name][0] == '{':
			return fmt.Errorf("%s.%w", name, placed(settings[name], cause, func() any { return new(Ejection) }))
		case errors.As(cause, &te):
			return fmt.Errorf("%s: %s is no %s", name, settings[name], te.Type.Kind())
		default:
			return fmt.Errorf("%s: %w", name, cause)
		}
	}
	return err
}

// params compiles the config for the arithmetic.
func (c *Config) params() score.Params {
	p := score.Defaults()
	p.Warmup = time.Duration(c.Warmup)
	p.Probes = c.Probes
	p.HashBound = c.HashBound
	p.ConsecutiveFailures = c.Ejection.Consecutive
	p.SuccessRateMargin = c.Ejection.SuccessMargin
	p.LatencyFactor = c.Ejection.LatencyFactor
	p.EjectFor, p.EjectMax = time.Duration(c.Ejection.Base), time.Duration(c.Ejection.Max)
	p.MaxEjected, p.Panic = c.Ejection.MaxPercent/100, c.Ejection.PanicPercent/100
	return p
}

// subset chooses k endpoints of each priority by rendezvous hashing: those whose address hashes highest together with the
// seed. An endpoint that drains keeps its place and does not count.
func subset(list []resolver.Endpoint, k int, seed uint64) []resolver.Endpoint {
	type ranked struct {
		rank uint64
		at   int
	}
	prefix := strconv.FormatUint(seed, 16) + "/"
	rs := make([]ranked, 0, len(list))
	for i, e := range list {
		if len(e.Addresses) > 0 {
			rs = append(rs, ranked{score.Hash(prefix + e.Addresses[0].Addr), i})
		}
	}
	slices.SortFunc(rs, func(a, b ranked) int { return cmp.Compare(b.rank, a.rank) })
	var out []resolver.Endpoint
	chosen := map[int]int{} // by priority
	for _, r := range rs {
		a := endpointAttrs(list[r.at])
		if chosen[a.Priority] == k {
			continue
		}
		if !a.Drain {
			chosen[a.Priority]++
		}
		out = append(out, list[r.at])
	}
	return out
}
