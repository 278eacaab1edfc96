package sim

import (
	_ "embed"
	"fmt"
	"math"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed scenarios.yaml
var scenariosYAML []byte

// Scenario is one experiment, a list of cells. See scenarios.yaml.
type Scenario struct {
	ID        string   `yaml:"id"`
	Title     string   `yaml:"title"`
	Published string   `yaml:"published"`
	Headline  bool     `yaml:"headline"`
	Policies  []string `yaml:"policies"`
	Base      Cell     `yaml:"base"`
	Cells     []Cell   `yaml:"cells"`
}

// Cell is one setting of a scenario. Fields that are zero are the scenario's base, then the default.
type Cell struct {
	Name string `yaml:"name"`
	// Nodes servers with Slots each serve requests of Mean length, drawn from Service: exponential, normal (sd = mean, not
	// below 0), bimodal (99 % of 10 ms, 1 % of 500 ms) or pareto (shape 1.5).
	Nodes   int           `yaml:"nodes"`
	Slots   int           `yaml:"slots"`
	Mean    time.Duration `yaml:"mean"`
	Service string        `yaml:"service"`
	// Load is the offered load as a part of the capacity of the servers that are there and not Frozen, slowness counted.
	Load    float64       `yaml:"load"`
	Proxies int           `yaml:"proxies"`
	Network time.Duration `yaml:"network"` // one way
	Timeout time.Duration `yaml:"timeout"`
	// Requests is how many are measured, after Warmup.
	Requests int           `yaml:"requests"`
	Warmup   time.Duration `yaml:"warmup"`
	// Reports: trailer (default), none, lost (every second), oob (only each OOB).
	Reports string        `yaml:"reports"`
	OOB     time.Duration `yaml:"oob"`
	// Retry repeats UNAVAILABLE on another server, within a budget of a fifth of the requests.
	Retry bool `yaml:"retry"`
	// Hedge is the delay after which a request that has no answer is sent to a second server too, as long as that adds no
	// more than 2 % to the requests; 0 for not at all.
	Hedge  time.Duration `yaml:"hedge"`
	Zones  int           `yaml:"zones"`
	Hot    float64       `yaml:"hot"` // load of the first zone; the others have Load
	Cross  time.Duration `yaml:"cross"`
	HotKey float64       `yaml:"hot_key"`
	// ProbeCost is the server's work for a probe.
	ProbeCost time.Duration `yaml:"probe_cost"`
	// Machine serves in place of Slots. Load is of the allocation then, or of the whole machine.
	Machine *Machine `yaml:"machine"`
	// Workers send the requests in place of a Poisson process: each the next one when it has its answer, but not before its part of
	// Load allows (closed loop); Requests is how many Load would be of then. 0 is the process.
	Workers int     `yaml:"workers"`
	Events  []Event `yaml:"events"`
}

// Event changes some servers for a time. From and To count from the end of the warm-up; To of 0 is the end.
type Event struct {
	Kind string `yaml:"kind"`
	// First is the first of Count servers.
	First int           `yaml:"first"`
	Count int           `yaml:"count"`
	From  time.Duration `yaml:"from"`
	To    time.Duration `yaml:"to"`
	// Factor is how much slower (slow, cold), what part of slots is left (slots), what part of calls fails (fail), how many threads
	// run on the server's machine beside it (burn).
	Factor float64       `yaml:"factor"`
	Period time.Duration `yaml:"period"` // of slots, gc and burn
	Pause  time.Duration `yaml:"pause"`  // of gc
	Sync   bool          `yaml:"sync"`
	Code   string        `yaml:"code"` // of fail: unavailable, exhausted, internal, empty
}

// Scenarios reads the data file.
func Scenarios() ([]Scenario, error) {
	var all []Scenario
	if err := yaml.Unmarshal(scenariosYAML, &all); err != nil {
		return nil, fmt.Errorf("scenarios.yaml: %w", err)
	}
	for i := range all {
		s := &all[i]
		if len(s.Cells) == 0 {
			s.Cells = []Cell{{}}
		}
		for j := range s.Cells {
			s.Cells[j] = s.Cells[j].over(s.Base)
			if err := s.Cells[j].check(); err != nil {
				return nil, fmt.Errorf("scenarios.yaml: %s cell %q: %w", s.ID, s.Cells[j].Name, err)
			}
		}
	}
	return all, nil
}

func or[T comparable](v *T, others ...T) {
	var zero T
	for _, o := range others {
		if *v == zero {
			*v = o
		}
	}
}

func (c Cell) over(b Cell) Cell {
	or(&c.Nodes, b.Nodes, 10)
	or(&c.Slots, b.Slots, 4)
	or(&c.Mean, b.Mean, 40*time.Millisecond)
	or(&c.Service, b.Service, "exponential")
	or(&c.Load, b.Load, 0.7)
	or(&c.Proxies, b.Proxies, 1)
	or(&c.Network, b.Network, 500*time.Microsecond)
	or(&c.Timeout, b.Timeout, 5*time.Second)
	or(&c.Requests, b.Requests, 84000)
	or(&c.Warmup, b.Warmup, 15*time.Second)
	or(&c.Reports, b.Reports, "trailer")
	or(&c.OOB, b.OOB)
	or(&c.Retry, b.Retry)
	or(&c.Hedge, b.Hedge)
	or(&c.Zones, b.Zones, 1)
	or(&c.Hot, b.Hot)
	or(&c.Cross, b.Cross)
	or(&c.HotKey, b.HotKey)
	or(&c.ProbeCost, b.ProbeCost)
	or(&c.Machine, b.Machine)
	or(&c.Workers, b.Workers)
	if c.Events == nil {
		c.Events = slices.Clone(b.Events)
	}
	for i := range c.Events {
		or(&c.Events[i].Count, 1)
	}
	return c
}

// meanNeed is the mean of what draw draws.
func (c Cell) meanNeed() time.Duration {
	m := float64(c.Mean)
	switch c.Service {
	case "normal":
		// What would be below 0 is 0: m · (Φ(1) + φ(1)).
		m *= 0.5*math.Erfc(-1/math.Sqrt2) + math.Exp(-0.5)/math.Sqrt(2*math.Pi)
	case "pareto":
		// What would be above 100 m is 100 m.
		m *= 1 - 2./3*math.Pow(3, -0.5)/math.Sqrt(100)
	}
	return time.Duration(m)
}

func (c Cell) check() error {
	if !slices.Contains([]string{"exponential", "normal", "bimodal", "pareto"}, c.Service) {
		return fmt.Errorf("service %q is not known", c.Service)
	}
	if !slices.Contains([]string{"trailer", "none", "lost", "oob"}, c.Reports) {
		return fmt.Errorf("reports %q is not known", c.Reports)
	}
	if m := c.Machine; m != nil && (m.CPUs <= 0 || m.Allocation < 0 || m.Allocation > m.CPUs) {
		return fmt.Errorf("machine of %v CPUs with an allocation of %v", m.CPUs, m.Allocation)
	}
	for _, e := range c.Events {
		if !slices.Contains([]string{"slow", "fail", "freeze", "kill", "slots", "gc", "cold", "add", "lie", "drain", "burn"}, e.Kind) {
			return fmt.Errorf("event %q is not known", e.Kind)
		}
		if onMachine := e.Kind == "burn"; e.Kind != "slow" && onMachine != (c.Machine != nil) {
			return fmt.Errorf("event %q: only a server on a machine has burn, and it has no other but slow", e.Kind)
		}
		if e.First < 0 || e.First+e.Count > c.Nodes {
			return fmt.Errorf("event %q: servers %d to %d of %d", e.Kind, e.First, e.First+e.Count-1, c.Nodes)
		}
	}
	return nil
}
