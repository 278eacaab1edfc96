package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"transom/upstream/loadaware/score"
)

// policy is what one proxy does.
type policy interface {
	// list says which servers there are now.
	list(now time.Duration, present []bool)
	// pick chooses a server and counts the request as in flight there.
	pick(now time.Duration, r *request) int
	// done tells how the request ended. full is nil where nothing was reported.
	done(now time.Duration, r *request, o score.Outcome, rep score.Report, full *fullReport)
	// probes returns the servers to be probed after a pick; the slice is used at once.
	probes(now time.Duration) []int
	// probed is a probe's answer.
	probed(now time.Duration, node int, full *fullReport)
}

// Policies are the names that Run knows, the adaptive one first, the oracle last.
func Policies() []string {
	return []string{"adaptive", "random", "round_robin", "wrr", "least_request", "least_request_distinct", "peak_ewma", "linkerd", "prequal", "prequal_060", "c3", "kratos", "netflix", "oracle"}
}

// scoredPolicy says whether a policy is of package score.
func scoredPolicy(name string) bool {
	name, _, _ = strings.Cut(name, ":")
	return slices.Contains([]string{"adaptive", "bounded_hash", "ring_hash", "wrr"}, name)
}

// newPolicy makes proxy k's policy. A name "adaptive:Param=value,…" changes parameters, for tuning; "prequal:0.5" is Prequal with
// that quantile between hot and cold, 0 for a choice by load alone and 1 by latency alone.
func newPolicy(name string, w *World, k int) (policy, error) {
	name, change, _ := strings.Cut(name, ":")
	n := w.cell.Nodes
	switch name {
	case "adaptive", "bounded_hash", "ring_hash":
		p, err := tune(score.Defaults(), change)
		if err != nil {
			return nil, err
		}
		kind, _ := score.ParsePolicy(name)
		return newScored(w, k, p, kind), nil
	case "wrr":
		// gRPC's own has none of the rest.
		p := score.Defaults()
		p.Warmup, p.ConsecutiveFailures, p.SuccessRateMargin, p.LatencyFactor = 0, 0, 0, 0
		p.HungAtLeast, p.CleanAnswers, p.Probes = 1000*time.Hour, 1, 0
		s := newScored(w, k, p, score.WeightedRoundRobin)
		s.averaged = true
		return s, nil
	case "random", "round_robin", "least_request", "least_request_distinct", "least_loaded", "peak_ewma", "linkerd", "kratos", "netflix", "oracle":
		return newLocal(w, name, k), nil
	case "prequal":
		q := 0.84
		if change != "" {
			var err error
			if q, err = strconv.ParseFloat(change, 64); err != nil {
				return nil, fmt.Errorf("policy prequal: %w", err)
			}
		}
		return newPrequal(w, n, q, false), nil
	case "prequal_060":
		return newPrequal(w, n, 0.6, false), nil
	case "c3":
		return newPrequal(w, n, 0.84, true), nil
	}
	return nil, fmt.Errorf("policy %q is not known", name)
}

// scored is a policy of package score: the code that the balancer runs.
type scored struct {
	w        *World
	fleet    *score.Fleet
	kind     score.Policy
	averaged bool // takes the utilization averaged over the time that the rate is, as A58 means it
	nodes    []*score.Node
	listed   []int // table index to server
	was      []bool
	table    *score.Table
	probe    [8]int
	zone     int
	zones    int
	used     [3]*score.Node
}

func newScored(w *World, k int, p score.Params, kind score.Policy) *scored {
	s := &scored{w: w, fleet: score.NewFleet(p), kind: kind, zone: k % w.cell.Zones, zones: w.cell.Zones}
	s.nodes = make([]*score.Node, w.cell.Nodes)
	s.was = make([]bool, w.cell.Nodes)
	return s
}

func (s *scored) list(now time.Duration, present []bool) {
	s.listed = s.listed[:0]
	var nodes []*score.Node
	var names []string
	for i, p := range present {
		if !p {
			s.was[i] = false
			continue
		}
		if s.nodes[i] == nil {
			s.nodes[i] = s.fleet.NewNode(now + 1)
			s.nodes[i].SetRemote(s.zones > 1 && i%s.zones != s.zone)
		} else if !s.was[i] {
			s.nodes[i].Start(now + 1)
		}
		s.was[i] = true
		s.listed = append(s.listed, i)
		nodes = append(nodes, s.nodes[i])
		names = append(names, fmt.Sprint("server-", i))
	}
	s.table = s.fleet.NewTable(s.kind, nodes, names, s.w.choice.Uint64())
}

func (s *scored) pick(now time.Duration, r *request) int {
	now++ // never zero
	p := score.Pick{Hash: r.key, HasHash: true}
	if r.attempts > 0 {
		k := 0
		for _, t := range r.tried[:min(int(r.attempts), 3)] {
			if s.nodes[t] != nil {
				s.used[k] = s.nodes[t]
				k++
			}
		}
		p.Tried = s.used[:k]
	}
	i := s.listed[s.table.Choose(now, &s.w.choice, &p)]
	r.load = s.nodes[i].Begin(now, false)
	return i
}

func (s *scored) done(now time.Duration, r *request, o score.Outcome, rep score.Report, full *fullReport) {
	now++
	n := s.nodes[r.node]
	n.End(now, score.Sample{Outcome: o, Started: r.sent + 1, Load: r.load})
	if s.averaged && full != nil {
		rep.Utilization = full.busyLong
	}
	n.Observe(now, rep)
}

func (s *scored) probes(now time.Duration) []int {
	k := 0
	for _, i := range s.table.Probes(now+1, &s.w.choice, s.probe[:0]) {
		s.probe[k] = s.listed[i]
		k++
	}
	return s.probe[:k]
}

func (s *scored) probed(now time.Duration, node int, full *fullReport) {
	if s.nodes[node] != nil {
		rep := full.Report
		if s.averaged {
			rep.Utilization = full.busyLong
		}
		s.nodes[node].Observe(now+1, rep)
	}
}
