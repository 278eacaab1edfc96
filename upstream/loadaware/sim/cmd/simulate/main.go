// Command simulate is a placeholder for tuning.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"transom/upstream/loadaware/sim"
)

func main() {
	only := flag.String("s", "", "")
	cells := flag.String("c", "", "")
	pols := flag.String("p", strings.Join(sim.Policies(), ";"), "")
	n := flag.Int("n", 0, "")
	seeds := flag.Int("seeds", 1, "")
	flag.Parse()
	all, err := sim.Scenarios()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, s := range all {
		if *only != "" && !strings.Contains(","+*only+",", ","+s.ID+",") {
			continue
		}
		for _, c := range s.Cells {
			if *cells != "" && !strings.Contains(c.Name, *cells) {
				continue
			}
			if *n > 0 {
				c.Requests = min(*n, c.Requests)
			}
			fmt.Printf("== %s %s [%s]\n", s.ID, s.Title, c.Name)
			for p := range strings.SplitSeq(*pols, ";") {
				if s.Policies != nil {
				}
				t := time.Now()
				var runs []sim.Summary
				for k := range *seeds {
					r, err := sim.One(c, p, uint64(k+1))
					if err != nil {
						fmt.Println(err)
						os.Exit(1)
					}
					runs = append(runs, r)
				}
				m := func(f func(sim.Summary) float64) float64 { v, _, _ := sim.Median(runs, f); return v }
				fmt.Printf("%-40s p50 %6.1f p99 %7.1f p999 %7.1f err %.4f late %.4f bad %.3f healed %.2f rep %5.0f att %.3f pr %.2f imb %.2f osc %.2f  %v\n", p,
					m(func(s sim.Summary) float64 { return s.P50 }), m(func(s sim.Summary) float64 { return s.P99 }), m(func(s sim.Summary) float64 { return s.P999 }),
					m(func(s sim.Summary) float64 { return s.Errors }), m(func(s sim.Summary) float64 { return s.LateErrors }), m(func(s sim.Summary) float64 { return s.BadShare }),
					m(func(s sim.Summary) float64 { return s.HealedShare }), m(func(s sim.Summary) float64 { return float64(s.Repeats) }), m(func(s sim.Summary) float64 { return s.Attempts }),
					m(func(s sim.Summary) float64 { return s.Probes }), m(func(s sim.Summary) float64 { return s.Imbalance }), m(func(s sim.Summary) float64 { return s.Oscillation }), time.Since(t).Round(time.Millisecond))
			}
		}
	}
}
