package balance

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"transom/e2e/process"
)

// TestClusters has `transom clusters` show what is known of each endpoint of a fleet in which each has something of its own.
func TestClusters(t *testing.T) {
	f := newFleet(t, 9)
	heavy, plain, draining, broken, second := f.nodes[0].addr, f.nodes[1].addr, f.nodes[2].addr, f.nodes[3].addr, f.nodes[4].addr
	const gone = "127.0.0.1:1"
	f.nodes[3].broken.Store(true)
	// Without the broken one and the one that is gone, enough are left that none is called of the next priority.
	others := ""
	for _, n := range f.nodes[5:] {
		others += fmt.Sprintf("- {address: %q}\n", n.addr)
	}
	process.Replace(t, f.file, fmt.Appendf(nil, `endpoints:
- {address: %q, weight: 200, zone: here}
- {address: %q}
- {address: %q, drain: true}
- {address: %q}
- {address: %q, priority: 1}
- {address: %q}
%s`, heavy, plain, draining, broken, second, gone, others))
	l := startProxy(t, f, "round_robin", time.Hour)
	l.run(100, 2*time.Second)
	const open = 6
	l.streams(open, time.Minute) // they end with the test
	// Columns: endpoint, state, weight, in flight, calls, utilization, latency, health, age, notes.
	shown := map[string][]string{}
	for begun := false; !begun; {
		out, err := exec.CommandContext(t.Context(), process.Program(t), "clusters", "--admin", l.admin).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		begun = strings.Contains(string(out), fmt.Sprintf("bank: ready, %d of ", open))
		for line := range strings.Lines(string(out)) {
			if c := strings.Fields(line); len(c) >= 9 && strings.HasPrefix(c[0], "127.0.0.1:") {
				shown[c[0]] = append(c[:9:9], strings.Join(c[9:], " "))
			}
		}
		if begun {
			t.Logf("\n%s", out)
		}
	}
	number := func(s string) float64 {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Errorf("%q is no number", s)
		}
		return v
	}
	inFlight := 0.
	for _, c := range shown {
		inFlight += number(c[3])
	}
	for addr, want := range map[string]struct {
		state, weight string
		called, well  bool
		notes         []string
	}{
		heavy:    {"ready", "200", true, true, []string{"warming up", "zone here"}},
		plain:    {"ready", "100", true, true, []string{"warming up"}},
		draining: {"ready", "100", false, true, []string{"draining", "probation"}},
		broken:   {"ready", "100", true, false, []string{"ejected"}},
		second:   {"ready", "100", false, true, []string{"probation", "priority 1"}},
		gone:     {"transient_failure", "100", false, true, []string{"connection refused"}},
	} {
		c := shown[addr]
		if c == nil {
			t.Errorf("%s is not shown", addr)
			continue
		}
		if c[1] != want.state && !(addr == gone && c[1] == "connecting") || c[2] != want.weight {
			t.Errorf("%s: state %s and weight %s, want %s and %s", addr, c[1], c[2], want.state, want.weight)
		}
		if got := number(c[4]) > 0; got != want.called {
			t.Errorf("%s: %s calls", addr, c[4])
		}
		if reported := c[5] != "-"; reported != want.called {
			t.Errorf("%s: utilization %s", addr, c[5])
		}
		if h := number(c[7]); (h == 1) != want.well {
			t.Errorf("%s: health %v", addr, h)
		}
		if age, err := time.ParseDuration(c[8]); err != nil || age < time.Second || age > time.Minute {
			t.Errorf("%s: age %s", addr, c[8])
		}
		for _, note := range want.notes {
			if !strings.Contains(c[9], note) {
				t.Errorf("%s: notes %q, want %q", addr, c[9], note)
			}
		}
	}
	if inFlight != open {
		t.Errorf("%v calls in flight are shown, want %d", inFlight, open)
	}
}
