package sim

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Verdict is one criterion and how it came out.
type Verdict struct {
	Scenario, Cell string
	Criterion      string
	Got            string
	OK             bool
}

func (r CellResult) median(policy string, f func(Summary) float64) float64 {
	m, _, _ := Median(r.Runs[policy], f)
	return m
}

func p99(s Summary) float64 { return s.P99 }

// tail is the latency that the scenario is judged by: p99, of the cheap calls where there are dear ones.
func (r CellResult) tail(policy string) float64 {
	if r.Cell.Service == "bimodal" {
		return r.median(policy, func(s Summary) float64 { return s.CheapP99 })
	}
	return r.median(policy, p99)
}

// best is the best of some policies.
func (r CellResult) best(of []string) (policy string, v float64) {
	v = math.Inf(1)
	for _, p := range of {
		if t := r.tail(p); t < v {
			policy, v = p, t
		}
	}
	return policy, v
}

// strict are the scenarios in which 3 % over the best reference is the most.
var strict = []string{"S1", "S2", "S3", "S6", "S7", "S13", "P1", "P2", "P3"}

// Verdicts judges results by the criteria.
func Verdicts(all []ScenarioResult) []Verdict {
	var out []Verdict
	for _, s := range all {
		for _, r := range s.Results {
			add := func(criterion string, ok bool, got string, a ...any) {
				out = append(out, Verdict{s.ID, r.Cell.Name, criterion, fmt.Sprintf(got, a...), ok})
			}
			of := func(f func(Summary) float64) float64 { return r.median("adaptive", f) }
			if _, ok := r.Runs["adaptive"]; ok {
				most := 1.05
				if slices.Contains(strict, s.ID) {
					most = 1.03
				}
				against := references
				if strings.HasPrefix(s.ID, "P") {
					against = slices.DeleteFunc(slices.Clone(s.Ran), func(p string) bool { return p == "adaptive" })
				}
				p, best := r.best(against)
				mine := r.tail("adaptive")
				add(fmt.Sprintf("p99 ≤ %.2f× the best reference", most), mine <= most*best, "%.1f ms, %.3f× %s", mine, mine/best, p)
			}
			late := func(s Summary) float64 { return s.LateErrors }
			share := func(s Summary) float64 { return s.BadShare }
			healed := func(s Summary) float64 { return s.HealedShare }
			errs := func(s Summary) float64 { return s.Errors }
			switch s.ID {
			case "S1", "P1", "P3":
				if r.median("prequal", errs) == 0 {
					add("no errors where Prequal has none", of(errs) == 0, "%.4f", of(errs))
				}
			case "S5", "S10":
				add("full share 5 s after they are warm", of(healed) >= 0.9, "%.2f of fair", of(healed))
			case "S6":
				add("≤ 1 % errors a second after the fault", of(late) <= 0.01, "%.4f", of(late))
				add("full share 5 s after healing", of(healed) >= 0.9, "%.2f of fair", of(healed))
			case "S7":
				add("slow server's share ≤ 1/10 of fair", of(share) <= 0.1, "%.3f", of(share))
				if r.Cell.Events[0].To > 0 {
					add("full share 5 s after healing", of(healed) >= 0.9, "%.2f of fair", of(healed))
				}
			case "S8":
				if r.Cell.Events[0].Kind == "kill" {
					add("no client errors", of(errs) == 0, "%.5f", of(errs))
				} else {
					add("hung server's share ≤ 1/10 of fair after 1 s", of(share) <= 0.1, "%.3f", of(share))
				}
			case "S9":
				add("no client errors", of(errs) == 0, "%.5f", of(errs))
			case "S12":
				if len(r.Cell.Events) > 0 {
					add("lying server's share ≤ 1.5 of fair", of(share) <= 1.5, "%.2f", of(share))
				}
			case "S13":
				one := s.Results[0].tail("adaptive")
				add("p99 ≤ 1.25× that of one proxy", r.tail("adaptive") <= 1.25*one, "%.3f×", r.tail("adaptive")/one)
			case "S14":
				if r.Cell.Hedge > 0 {
					bare := s.Results[0].tail("adaptive") // the same cell without
					att := of(func(s Summary) float64 { return s.Attempts })
					add("hedging lowers p99", r.tail("adaptive") < bare, "%.1f ms against %.1f", r.tail("adaptive"), bare)
					add("≤ 2 % extra calls", att <= 1.02, "%.3f attempts per request", att)
				}
			case "S15":
				att := of(func(s Summary) float64 { return s.StormAttempts })
				add("attempts ≤ 1.2 per request in the storm", att <= 1.2, "%.3f", att)
				before, after := of(func(s Summary) float64 { return s.BeforeP99 }), of(func(s Summary) float64 { return s.AfterP99 })
				add("p99 5 s after the storm as before, ± 10 %", after <= 1.1*before, "%.0f ms against %.0f", after, before)
			case "S16":
				rep := of(func(s Summary) float64 { return float64(s.Repeats) })
				add("no second request to a frozen server", rep == 0, "%.0f", rep)
			case "S17":
				probes := of(func(s Summary) float64 { return s.Probes })
				add("≤ 3 % probes", probes <= 0.03, "%.3f per request", probes)
			case "S19":
				bound := r.median("bounded_hash", func(s Summary) float64 { return s.P99 })
				free := r.median("ring_hash", func(s Summary) float64 { return s.P99 })
				add("the bound keeps the hot key from one server", bound < free, "p99 %.0f ms against %.0f unbounded", bound, free)
			}
		}
	}
	return out
}
