package sim

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// What runs under the policies of the literature depend on, but for a few types of package score.
var (
	//go:embed engine.go
	engineGo string
	//go:embed baselines.go
	baselinesGo string
	//go:embed cell.go
	cellGo string
	//go:embed machine.go
	machineGo string
)

// Campaign is a choice of scenarios to run.
type Campaign struct {
	// Full runs all scenarios and policies; otherwise the headline ones.
	Full bool
	// Only names scenarios, instead of the choice by Full.
	Only []string
	// Seeds is the number of runs of each cell under each policy.
	Seeds int
	// Requests bounds the requests of a run; 0 takes what the scenario says.
	Requests int
	// Workers is how many runs go on at a time.
	Workers int
	// Cache is a directory for the results of single runs, so that a campaign can be resumed; "" for none. Build names the
	// code that made them: results of other code are not taken. Those of policies that are not of package score outlive it
	// as long as the simulator itself stays the same.
	Cache, Build string
	// Progress is told after each run. It may be nil.
	Progress func(done, all int, what string)
}

// CellResult is one cell under all policies.
type CellResult struct {
	Cell Cell
	Runs map[string][]Summary // by policy, by seed
}

// ScenarioResult is a scenario with its cells.
type ScenarioResult struct {
	Scenario
	Ran      []string // policies in order
	Results  []CellResult
	SeedsRun int
}

// Run runs the campaign. It returns when all runs are done, one has failed, or ctx has ended.
func (c Campaign) Run(ctx context.Context) ([]ScenarioResult, error) {
	all, err := Scenarios()
	if err != nil {
		return nil, err
	}
	type job struct {
		cell   Cell
		policy string
		seed   uint64
		what   string
		into   *Summary
	}
	var out []ScenarioResult
	var jobs []job
	for _, s := range all {
		if len(c.Only) > 0 && !slices.Contains(c.Only, s.ID) || len(c.Only) == 0 && !c.Full && !s.Headline {
			continue
		}
		r := ScenarioResult{Scenario: s, Ran: s.policies(c.Full), SeedsRun: c.Seeds}
		for _, cell := range s.Cells {
			if c.Requests > 0 {
				cell.Requests = min(cell.Requests, c.Requests)
			}
			cr := CellResult{Cell: cell, Runs: map[string][]Summary{}}
			for _, p := range r.Ran {
				runs := make([]Summary, c.Seeds)
				cr.Runs[p] = runs
				for k := range runs {
					jobs = append(jobs, job{cell, p, uint64(k + 1), fmt.Sprintf("%s %s %s", s.ID, cell.Name, p), &runs[k]})
				}
			}
			r.Results = append(r.Results, cr)
		}
		out = append(out, r)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var mu sync.Mutex
	next, done := 0, 0
	var wg sync.WaitGroup
	for range max(1, c.Workers) {
		wg.Go(func() {
			for {
				mu.Lock()
				if next == len(jobs) || ctx.Err() != nil {
					mu.Unlock()
					return
				}
				j := jobs[next]
				next++
				mu.Unlock()
				s, err := c.one(j.cell, j.policy, j.seed)
				if err != nil {
					stop(fmt.Errorf("%s: %w", j.what, err))
					return
				}
				*j.into = s
				mu.Lock()
				done++
				if c.Progress != nil {
					c.Progress(done, len(jobs), j.what)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out, context.Cause(ctx)
}

// one takes a run from the cache or runs it.
func (c Campaign) one(cell Cell, policy string, seed uint64) (Summary, error) {
	if c.Cache == "" {
		return One(cell, policy, seed)
	}
	// Work on the balancer's arithmetic leaves the results of the others valid.
	code := c.Build
	if !scoredPolicy(policy) {
		code = engineGo + baselinesGo + cellGo
		if cell.Machine != nil {
			code += machineGo
		}
	}
	key, err := json.Marshal([]any{code, cell, policy, seed})
	if err != nil {
		return Summary{}, err
	}
	sum := sha256.Sum256(key)
	file := filepath.Join(c.Cache, hex.EncodeToString(sum[:12])+".json")
	var s Summary
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &s) == nil {
		return s, nil
	}
	if s, err = One(cell, policy, seed); err != nil {
		return s, err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return s, err
	}
	if err := os.MkdirAll(c.Cache, 0o750); err != nil {
		return s, err
	}
	// A run that was cut off must not leave half a file.
	tmp := file + fmt.Sprintf(".%d.tmp", os.Getpid())
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return s, err
	}
	return s, os.Rename(tmp, file)
}
