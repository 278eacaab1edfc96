// Command simulate runs the balancer and published policies against simulated servers, judges the results by the
// criteria, and writes them into docs/balancing.md. It exits with 1 when a criterion fails.
//
//	go run ./upstream/loadaware/sim/cmd/simulate            the headline scenarios, 3 seeds
//	go run ./upstream/loadaware/sim/cmd/simulate -full      all scenarios and policies, 10 seeds, resumable
//
// It also compares the published policies with what was published of them, and fails where one goes another way for no known
// reason.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"transom/upstream/loadaware/sim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	ok, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// run says whether all criteria hold.
func run(ctx context.Context, args []string, out, progress io.Writer) (bool, error) {
	f := flag.NewFlagSet("simulate", flag.ContinueOnError)
	f.SetOutput(progress)
	var c sim.Campaign
	f.BoolVar(&c.Full, "full", false, "all scenarios under all policies")
	f.IntVar(&c.Seeds, "seeds", 0, "runs of each cell; 0 for 3, or 10 with -full")
	f.IntVar(&c.Requests, "requests", 0, "bound of the requests of a run, for a quick look; 0 for what the scenario says")
	f.IntVar(&c.Workers, "workers", runtime.GOMAXPROCS(0), "runs at a time")
	f.StringVar(&c.Cache, "cache", filepath.Join(".cache", "simulate"), "directory of results of single runs; empty for none")
	only := f.String("only", "", "scenarios to run, such as S3,S7")
	policies := f.String("policies", "", "print these policies, separated by semicolons, and judge nothing; adaptive:Choices=8 changes a parameter")
	docs := f.String("docs", "", "directory with balancing.md to write the results into; empty for none")
	if err := f.Parse(args); err != nil {
		return false, err
	}
	if *only != "" {
		c.Only = strings.Split(*only, ",")
	}
	if c.Seeds <= 0 {
		c.Seeds = 3
		if c.Full {
			c.Seeds = 10
		}
	}
	if *policies != "" {
		return true, compare(c, strings.Split(*policies, ";"), out)
	}
	if c.Cache != "" {
		build, err := fingerprint()
		if err != nil {
			return false, err
		}
		c.Build = build
	}
	start := time.Now()
	last := time.Time{}
	c.Progress = func(done, all int, what string) {
		if now := time.Now(); done == all || now.Sub(last) > 2*time.Second {
			last = now
			fmt.Fprintf(progress, "%5.0fs  %d of %d runs  %s\n", time.Since(start).Seconds(), done, all, what)
		}
	}
	all, err := c.Run(ctx)
	if err != nil {
		return false, err
	}
	verdicts := sim.Verdicts(all)
	ok := true
	for _, v := range verdicts {
		word := "ok  "
		if !v.OK {
			word, ok = "FAIL", false
		}
		fmt.Fprintf(out, "%s  %-4s %-22s %-46s %s\n", word, v.Scenario, v.Cell, v.Criterion, v.Got)
	}
	claims, err := c.Published(ctx)
	if err != nil {
		return false, err
	}
	for _, p := range claims {
		word := "ok  "
		switch {
		case !p.InShape && p.Why == "":
			word, ok = "FAIL", false
		case !p.InShape:
			word = "no  "
		}
		fmt.Fprintf(out, "%s  %s: %s: %s\n", word, p.Source, p.Published, p.Simulated)
	}
	if *docs == "" {
		return ok, nil
	}
	return ok, write(*docs, c, all, verdicts, claims)
}

// write puts the results into the documents. Tables and plots of scenarios are written only when all of them were run.
func write(dir string, c sim.Campaign, all []sim.ScenarioResult, verdicts []sim.Verdict, claims []sim.Claim) error {
	file := filepath.Join(dir, "balancing.md")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if text, err = sim.DocumentPublished(text, claims); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if c.Full && len(c.Only) == 0 {
		if text, err = sim.Document(text, all, verdicts); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := plot(filepath.Join(dir, "balancing"), all); err != nil {
			return err
		}
	}
	return os.WriteFile(file, text, 0o600) //nolint:gosec // the path is what the caller named
}

// plot draws the scenarios that have several cells.
func plot(dir string, all []sim.ScenarioResult) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for i := range all {
		if len(all[i].Results) > 1 {
			if err := os.WriteFile(filepath.Join(dir, all[i].ID+".svg"), sim.Plot(&all[i]), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare prints policies side by side.
func compare(c sim.Campaign, policies []string, out io.Writer) error {
	scenarios, err := sim.Scenarios()
	if err != nil {
		return err
	}
	for _, s := range scenarios {
		if len(c.Only) > 0 && !strings.Contains(","+strings.Join(c.Only, ",")+",", ","+s.ID+",") {
			continue
		}
		for _, cell := range s.Cells {
			if c.Requests > 0 {
				cell.Requests = min(cell.Requests, c.Requests)
			}
			fmt.Fprintf(out, "%s %s\n", s.ID, cell.Name)
			for _, p := range policies {
				var runs []sim.Summary
				for k := range c.Seeds {
					r, err := sim.One(cell, p, uint64(k+1))
					if err != nil {
						return err
					}
					runs = append(runs, r)
				}
				m := func(f func(sim.Summary) float64) float64 { v, _, _ := sim.Median(runs, f); return v }
				fmt.Fprintf(out, "  %-36s p50 %6.1f  p99 %7.1f  p99.9 %7.1f  cheap p99 %6.1f  errors %.4f  share %.3f  healed %.2f  probes %.2f  imbalance %.2f\n", p,
					m(func(s sim.Summary) float64 { return s.P50 }), m(func(s sim.Summary) float64 { return s.P99 }),
					m(func(s sim.Summary) float64 { return s.P999 }), m(func(s sim.Summary) float64 { return s.CheapP99 }), m(func(s sim.Summary) float64 { return s.Errors }),
					m(func(s sim.Summary) float64 { return s.BadShare }), m(func(s sim.Summary) float64 { return s.HealedShare }),
					m(func(s sim.Summary) float64 { return s.Probes }), m(func(s sim.Summary) float64 { return s.Imbalance }))
			}
		}
	}
	return nil
}

// fingerprint names this program's code: results in the cache are of one program only.
func fingerprint() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8]), nil
}
