package sim

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Claim is what somebody published of policies, and what the simulator has beside it.
type Claim struct {
	// Source is where it was published, Published what.
	Source, Published string
	Simulated         string
	// InShape says that what was simulated goes the same way; the numbers themselves depend on loads and machines that were
	// not published. Why says why it does not, where that is known.
	InShape bool
	Why     string
}

// Published judges the claims by runs of the campaign's seeds and sizes. Most of its runs are those of the scenarios.
func (c Campaign) Published(ctx context.Context) ([]Claim, error) {
	scenarios, err := Scenarios()
	if err != nil {
		return nil, err
	}
	l := &lookup{campaign: c, scenarios: scenarios}
	var out []Claim
	for _, p := range published {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		claim := Claim{Source: p.source, Published: p.published, Why: p.why}
		claim.Simulated, claim.InShape = p.judge(l)
		if l.err != nil {
			return nil, fmt.Errorf("%s: %w", p.source, l.err)
		}
		out = append(out, claim)
	}
	return out, nil
}

// lookup finds what runs measured. After an error it finds NaN.
type lookup struct {
	campaign  Campaign
	scenarios []Scenario
	err       error
}

// of is the median of f over the runs of a policy in a cell.
func (l *lookup) of(scenario, cell, policy string, f func(Summary) float64) float64 {
	if l.err != nil {
		return math.NaN()
	}
	for _, s := range l.scenarios {
		for _, c := range s.Cells {
			if s.ID == scenario && c.Name == cell {
				return l.in(c, policy, f)
			}
		}
	}
	l.err = fmt.Errorf("scenario %s has no cell %q", scenario, cell)
	return math.NaN()
}

// in is the median of f over the runs of a policy in a cell that may be of no scenario.
func (l *lookup) in(c Cell, policy string, f func(Summary) float64) float64 {
	if l.err != nil {
		return math.NaN()
	}
	if l.campaign.Requests > 0 {
		c.Requests = min(c.Requests, l.campaign.Requests)
	}
	var runs []Summary
	for k := range l.campaign.Seeds {
		r, err := l.campaign.one(c, policy, uint64(k+1))
		if err != nil {
			l.err = err
			return math.NaN()
		}
		runs = append(runs, r)
	}
	m, _, _ := Median(runs, f)
	return m
}

func (l *lookup) p99(scenario, cell, policy string) float64 {
	return l.of(scenario, cell, policy, p99)
}

// row is the p99 of policies in a cell, and how it reads.
func (l *lookup) row(scenario, cell string, policies ...string) (v map[string]float64, text string) {
	v = map[string]float64{}
	var parts []string
	for _, p := range policies {
		v[p] = l.p99(scenario, cell, p)
		parts = append(parts, p+" "+ms(v[p]))
	}
	return v, strings.Join(parts, ", ")
}

func p999(s Summary) float64     { return s.P999 }
func p50(s Summary) float64      { return s.P50 }
func errored(s Summary) float64  { return s.Errors }
func badShare(s Summary) float64 { return s.BadShare }

// timedOut is from which latency, in ms, a quantile counts as at the timeout of 5 s.
const timedOut = 4900

// ramp are the cells of S1.
var ramp = []string{"0.75", "0.83", "0.93", "1.03", "1.14", "1.27", "1.41", "1.57", "1.74"}

// published are the columns that there are. Figures of Prequal's paper (arXiv 2312.10172) are as others retell them.
var published = []struct {
	source, published, why string
	judge                  func(l *lookup) (simulated string, ok bool)
}{
	{
		source: "Prequal, Fig. 6: Prequal", published: "no errors at any step of the ramp",
		judge: func(l *lookup) (string, bool) {
			worst := 0.
			for _, step := range ramp {
				worst = max(worst, l.of("S1", step, "prequal", errored))
			}
			return fmt.Sprintf("S1: %.2g %% errors at the worst step", worst*100), worst == 0
		},
	},
	{
		source: "Prequal, Fig. 6: WRR", published: "p99.9 at the timeout from step 1.03, more than 25 % errors at 1.74",
		judge: func(l *lookup) (string, bool) {
			from := slices.IndexFunc(ramp, func(step string) bool { return l.of("S1", step, "wrr", p999) >= timedOut })
			errs := l.of("S1", "1.74", "wrr", errored)
			if from < 0 {
				return fmt.Sprintf("S1: never, %.2g %% errors at 1.74", errs*100), false
			}
			return fmt.Sprintf("S1: from step %s, %.2g %% errors at 1.74", ramp[from], errs*100),
				errs > 0.05 && l.of("S1", ramp[from], "prequal", p999) < timedOut
		},
	},
	{
		source: "Copy of Fig. 6 on 4 processors", published: "p99 from 0.75 to 1.27: Prequal 96 → 215 ms, WRR 200 → 678 ms",
		judge: func(l *lookup) (string, bool) {
			a, _ := l.row("S1", "0.75", "prequal", "wrr")
			b, _ := l.row("S1", "1.27", "prequal", "wrr")
			return fmt.Sprintf("S1: prequal %s → %s, wrr %s → %s", ms(a["prequal"]), ms(b["prequal"]), ms(a["wrr"]), ms(b["wrr"])),
				a["wrr"] > a["prequal"] && b["wrr"]/a["wrr"] > b["prequal"]/a["prequal"]
		},
	},
	{
		source: "Prequal, Fig. 7, 70 %: RR, least loaded, C3, Prequal", published: "p99: timeout, 1804, 299, 281",
		judge: func(l *lookup) (string, bool) {
			v, text := l.row("S2", "n=100 0.7", "round_robin", "least_request", "c3", "prequal")
			return "S2: " + text, v["round_robin"] >= timedOut && v["least_request"] > 3*v["prequal"] && within(v["c3"], v["prequal"], 1.25)
		},
	},
	{
		source: "Prequal, Fig. 7, 90 %: least loaded, C3, Prequal", published: "p99: 2654, 304, 286",
		judge: func(l *lookup) (string, bool) {
			v, text := l.row("S2", "n=100 0.9", "least_request", "c3", "prequal")
			return "S2: " + text, v["least_request"] > 3*v["prequal"] && within(v["c3"], v["prequal"], 1.25)
		},
		why: "C3 is as published, Prequal a third above; 90 % are of an allocation there, of the capacity here",
	},
	{
		source: "Prequal, Fig. 7: WRR", published: "p99: 314 at 70 %, timeout at 90 %",
		judge: func(l *lookup) (string, bool) {
			a, b := l.p99("S2", "n=100 0.7", "wrr"), l.p99("S2", "n=100 0.9", "wrr")
			return fmt.Sprintf("S2: %s, %s", ms(a), ms(b)), b >= timedOut && within(a, l.p99("S2", "n=100 0.7", "prequal"), 1.5)
		},
		why: "at 90 % as published; 70 % are of an allocation there, of the capacity here, which Fig. 6's WRR does not stand either",
	},
	{
		source: "Prequal, Fig. 9: by load alone, by hot and cold", published: "p99: 162, 142",
		judge: func(l *lookup) (string, bool) {
			load, both := l.in(manySlots(), "prequal:0", p99), l.in(manySlots(), "prequal", p99)
			return fmt.Sprintf("as S3, but 50 servers of 32 slots at 0.9: %s, %s", ms(load), ms(both)), load > 1.02*both
		},
	},
	{
		source: "Prequal, Fig. 9: by latency alone", published: "p99 a fifth above that of hot and cold",
		judge: func(l *lookup) (string, bool) {
			latency, both := l.in(manySlots(), "prequal:1", p99), l.in(manySlots(), "prequal", p99)
			return fmt.Sprintf("there: %s against %s", ms(latency), ms(both)), latency > 1.1*both
		},
		why: "servers are slow for good here, so that their latency tells nearly all; in the paper they are so for moments",
	},
	{
		source: "Analysis: black holes, 2 of 20", published: "of the calls fail: round robin 10 %, two choices 1 − 0.9² = 19 %",
		judge: func(l *lookup) (string, bool) {
			late := func(s Summary) float64 { return s.LateErrors }
			rr, lr := l.of("S6", "unavailable", "round_robin", late), l.of("S6", "unavailable", "least_request", late)
			return fmt.Sprintf("S6: %.1f %%, %.1f %%", rr*100, lr*100), math.Abs(rr-0.1) < 0.01 && math.Abs(lr-0.19) < 0.02
		},
	},
	{
		source: "prequal-rs: black holes, 2 of 20", published: "its ejection avoids 85 % of the failed requests",
		judge: func(l *lookup) (string, bool) {
			with, without := l.of("S6", "unavailable", "prequal", errored), l.of("S6", "unavailable", "round_robin", errored)
			return fmt.Sprintf("S6: %.1f %% of round robin's", (1-with/without)*100), 1-with/without >= 0.85
		},
	},
	{
		source: "Copy in Go, 2 of 16 servers 16 times slower", published: "p99: RR 807, least connections 802, Prequal 80.6 ms",
		judge: func(l *lookup) (string, bool) {
			v, text := l.row("S7", "whole run", "round_robin", "least_request", "prequal")
			return "S7: " + text, v["round_robin"] > 5*v["prequal"] && v["least_request"] > 2*v["prequal"]
		},
	},
	{
		source: "Copy on CloudLab, a moving antagonist", published: "Prequal's p99 18 to 36 % lower, its p50 higher than RR's",
		judge: func(l *lookup) (string, bool) {
			pr, rr := l.p99("S4", "20s", "prequal"), l.p99("S4", "20s", "round_robin")
			a, b := l.of("S4", "20s", "prequal", p50), l.of("S4", "20s", "round_robin", p50)
			return fmt.Sprintf("S4: p99 %s against %s, p50 %s against %s", ms(pr), ms(rr), ms(a), ms(b)), pr < 0.82*rr && a > b
		},
		why: "the p99 goes the same way; round robin overloads the three servers here, which shows in its p50 too",
	},
	{
		source: "Analysis: 64 proxies", published: "a proxy sees 0.06 calls of its own per server: least request is hardly better than random",
		judge: func(l *lookup) (string, bool) {
			one, many := l.p99("S13", "1", "least_request"), l.p99("S13", "64", "least_request")
			random := l.p99("S13", "64", "random")
			return fmt.Sprintf("S13: least_request %s with one proxy, %s with 64, random %s", ms(one), ms(many), ms(random)),
				many-one > 0.5*(random-one)
		},
	},
	{
		source: "Analysis: a frozen server of n", published: "two choices with replacement send it 1/n²: 25 %, 11 %, 4 % of the calls at 2, 3, 5",
		judge: func(l *lookup) (string, bool) {
			var shares []string
			ok := true
			for _, n := range []int{2, 3, 5} {
				share := l.of("S16", fmt.Sprint("n=", n), "least_request", badShare) / float64(n)
				shares = append(shares, fmt.Sprintf("%.1f %%", share*100))
				ok = ok && math.Abs(share*float64(n*n)-1) < 0.1
			}
			return "S16: " + strings.Join(shares, ", "), ok
		},
	},
	{
		source: "Copy in Go: what probes cost", published: "Prequal serves 25 % less than RR, p99 29.9 against 20.2 ms",
		judge: func(l *lookup) (string, bool) {
			v, text := l.row("S17", "", "prequal", "round_robin")
			return "S17: " + text, v["prequal"] > 1.2*v["round_robin"]
		},
	},
}

// manySlots is a cell of servers of many slots: with few there are few numbers of calls in flight to tell hot from cold by.
func manySlots() Cell {
	return Cell{Nodes: 50, Proxies: 50, Slots: 32, Load: 0.9, Warmup: 5 * time.Second, Events: []Event{{Kind: "slow", Count: 25, Factor: 2}}}.over(Cell{})
}

// within says whether a and b differ by a factor of f at most.
func within(a, b, f float64) bool { return a <= f*b && b <= f*a }
