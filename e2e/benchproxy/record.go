package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// recordFor is how long transom's CPU is recorded under one load.
const recordFor = 4 * time.Second

// record writes a CPU profile of transom under each load of both comparisons, with metrics and access log, for the compiler:
// each load has the same share of the time, whatever a call of it costs.
func record(into, binary string) error {
	dir, err := os.MkdirTemp("", "benchproxy")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	set := filepath.Join(dir, "bench.binpb")
	if err := writeSet(set); err != nil {
		return err
	}
	if err := withoutSideEffects(set); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	backend, err := start("backend", self, "backend")
	if err != nil {
		return err
	}
	defer backend.cmd.Process.Kill()
	issuer, token, err := startIssuer()
	if err != nil {
		return err
	}
	list, err := contests(dir, issuer, token, "")
	if err != nil {
		return err
	}
	args := []string{"tool", "pprof", "-proto", "-output", into, binary}
	take := func(policies string, loads ...scenario) error {
		admin, err := freeAddress()
		if err != nil {
			return err
		}
		p, _, err := startReloadable(binary, dir, set, backend.addr, policies+fmt.Sprintf("admin: {address: %q, pprof: true}\naccess_log: {file: %q}\n", admin, filepath.Join(dir, "access.log")))
		if err != nil {
			return err
		}
		defer p.cmd.Process.Kill()
		for _, l := range loads {
			file := filepath.Join(dir, fmt.Sprintf("%d.pprof", len(args)))
			if err := recordOne(p, admin, file, l); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			args = append(args, file)
		}
		return nil
	}
	if err := take("", scenarios()...); err != nil {
		return err
	}
	for _, c := range list {
		if c.observed { // as all are here
			continue
		}
		if err := take(c.policies, scenario{name: c.name, requests: c.requests, load: c.load.run}); err != nil {
			return err
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// recordOne writes the profile of p under one load.
func recordOne(p *proc, admin, file string, l scenario) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := l.load(ctx, p, max(1, l.requests/4)); err != nil { // warm up
		return err
	}
	done := make(chan error, 1)
	go func() {
		resp, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", admin, int(recordFor.Seconds())))
		if err != nil {
			done <- err
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			done <- errors.New(resp.Status)
			return
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			done <- err
			return
		}
		done <- os.WriteFile(file, b, 0o600)
	}()
	for {
		select {
		case err := <-done:
			return err
		default:
		}
		if err := l.load(ctx, p, max(1, l.requests/10)); err != nil {
			return err
		}
	}
}
