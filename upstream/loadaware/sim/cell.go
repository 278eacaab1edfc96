package sim

import (
	"fmt"
	"math"
	"slices"
)

// Summary is what is kept of one run.
type Summary struct {
	Seed           uint64
	P50, P99       float64 // ms; errors count as infinite
	P999, CheapP99 float64
	Requests       int
	Errors         float64 // part of the requests
	LateErrors     float64 // part of those from a second into the first event to its end
	BadShare       float64 // picks of the first event's servers then, relative to their fair share
	HealedShare    float64
	Repeats        int
	Attempts       float64 // per request
	StormAttempts  float64 // the same during the first event
	BeforeP99      float64 // ms, of the requests before the first event
	AfterP99       float64 // ms, of those from five to fifteen seconds after its end; errors count as infinite
	Probes         float64 // per request
	Imbalance      float64 // greatest picks of a server over the mean
	Oscillation    float64 // autocorrelation of a server's share per second, greatest of lags 1 to 10
}

// Summarize reduces a run.
func Summarize(r Result, c Cell, seed uint64) Summary {
	s := Summary{Seed: seed, Requests: r.Requests}
	if r.Requests == 0 {
		return s
	}
	q := func(v []float32, errs int, p float64) float64 {
		k := int(math.Ceil(p*float64(len(v)+errs))) - 1
		if k >= len(v) {
			return float64(c.Timeout.Milliseconds())
		}
		return float64(v[max(0, k)])
	}
	slices.Sort(r.Latencies)
	s.P50, s.P99, s.P999 = q(r.Latencies, r.Errors, 0.5), q(r.Latencies, r.Errors, 0.99), q(r.Latencies, r.Errors, 0.999)
	if len(r.Before) > 0 && len(r.After) > 0 {
		slices.Sort(r.Before)
		slices.Sort(r.After)
		s.BeforeP99, s.AfterP99 = q(r.Before, 0, 0.99), q(r.After, r.AfterErrors, 0.99)
	}
	if r.StormRequests > 0 {
		s.StormAttempts = float64(r.StormAttempts) / float64(r.StormRequests)
	}
	if len(r.Cheap) > 0 {
		slices.Sort(r.Cheap)
		s.CheapP99 = q(r.Cheap, 0, 0.99)
	}
	n := float64(r.Requests)
	s.Errors, s.Attempts, s.Probes = float64(r.Errors)/n, float64(r.Attempts)/n, float64(r.Probes)/n
	if r.BadAll > 0 {
		s.LateErrors = float64(r.BadErrors) / float64(r.BadAll)
		e := c.Events[0]
		fair := float64(e.Count) / float64(c.Nodes)
		s.BadShare = float64(r.BadPicks) / float64(r.BadAll) / fair
		if r.HealedAll > 0 {
			s.HealedShare = float64(r.HealedPicks) / float64(r.HealedAll) / fair
		}
	}
	s.Repeats = r.Repeats
	most, sum := 0, 0
	for _, k := range r.PerNode {
		most = max(most, k)
		sum += k
	}
	if sum > 0 {
		s.Imbalance = float64(most) * float64(len(r.PerNode)) / float64(sum)
	}
	s.Oscillation = oscillation(r.Bins)
	return s
}

// oscillation is the greatest autocorrelation, at lags of 1 to 10 s, of server 0's picks per second.
func oscillation(bins [][]int32) float64 {
	if len(bins) < 25 {
		return 0
	}
	x := make([]float64, len(bins))
	mean := 0.
	for i, b := range bins {
		t := int32(0)
		for _, v := range b {
			t += v
		}
		x[i] = float64(b[0]) / float64(max(1, t))
		mean += x[i] / float64(len(x))
	}
	v := 0.
	for _, a := range x {
		v += (a - mean) * (a - mean)
	}
	best := 0.
	for lag := 1; lag <= 10; lag++ {
		c := 0.
		for i := lag; i < len(x); i++ {
			c += (x[i] - mean) * (x[i-lag] - mean)
		}
		if v > 0 {
			best = max(best, c/v)
		}
	}
	return best
}

// Median returns the median over runs of what f says, and the range.
func Median(runs []Summary, f func(Summary) float64) (mid, low, high float64) {
	v := make([]float64, 0, len(runs))
	for _, r := range runs {
		v = append(v, f(r))
	}
	if len(v) == 0 {
		return math.NaN(), math.NaN(), math.NaN()
	}
	slices.Sort(v)
	return v[(len(v)-1)/2], v[0], v[len(v)-1]
}

// One runs one cell under one policy with one seed.
func One(c Cell, policy string, seed uint64) (Summary, error) {
	r, err := Run(c, policy, seed)
	if err != nil {
		return Summary{}, fmt.Errorf("%s: %w", policy, err)
	}
	return Summarize(r, c, seed), nil
}

// policies are the names that the scenario compares; all of them, or those that the criteria speak of and a few marks.
func (s *Scenario) policies(all bool) []string {
	if len(s.Policies) > 0 {
		return s.Policies
	}
	if all {
		return Policies()
	}
	return append(append([]string{"adaptive"}, references...), "round_robin", "prequal_060", "c3", "oracle")
}

// references are the policies that the adaptive one is measured against.
var references = []string{"prequal", "peak_ewma", "wrr", "least_request", "netflix"}
