package upstream_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"transom/rpc"
	"transom/upstream"
)

func TestParseEndpointFile(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{
			`endpoints: [{address: "127.0.0.1:1234", weight: 5, zone: a, drain: true}, {address: "[::1]:2", priority: 1}]`,
			"[{127.0.0.1:1234 5 a 0 true} {[::1]:2 100  1 false}]",
		},
		{"# comment\nendpoints:\n- address: b:1\n", "[{b:1 100  0 false}]"},
		{"", "the file lists no endpoints"},
		{"endpoints: []", "the file lists no endpoints"},
		{"endpoint: []", "line 1: field endpoint not found"},
		{"endpoints:\n- adress: b:1\n", `line 2: an endpoint has address, weight, zone, priority and drain, but no "adress"`},
		{"endpoints:\n- b:1\n", `line 2: an endpoint must be a mapping such as {address: "host:port"}`},
		{"endpoints:\n- {address: b}\n- {address: 'c:0'}", "line 2: address: \"b\" must be host:port\nline 3: address: \"c:0\" has the port"},
		{"endpoints:\n- {address: 'b:1'}\n\n- {address: 'b:1'}", `line 4: address: "b:1" is on line 2 already`},
		{"endpoints:\n- {address: 'b:1', weight: 0}", "line 2: weight: 0 is not 1 … 1048576; to take no calls say drain: true"},
		{"endpoints:\n- {address: 'b:1', weight: -3}", "line 2: weight: -3 is not"},
		{"endpoints:\n- {address: 'b:1', weight: heavy}", "line 2: cannot unmarshal"},
		{"endpoints:\n- {address: 'b:1', priority: -1}", "line 2: priority: -1 is not 0 … 100"},
		{"endpoints:\n- {address: 'b:1', priority: 4294967296}", "line 2: priority: 4294967296 is not 0 … 100"},
		{"endpoints:\n- {address: 'b:1'}\n---\nx: 1", "must be one YAML document"},
		{"endpoints: [", "did not find expected node content"},
	} {
		f, err := upstream.ParseEndpointFile([]byte(tt.in))
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(f.Endpoints)
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%q:\n%s\nwant\n%s", tt.in, got, tt.want)
		}
	}
}

func FuzzParseEndpointFile(f *testing.F) {
	f.Add([]byte("endpoints:\n- {address: '127.0.0.1:1', weight: 5, zone: a, priority: 1, drain: true}\n"))
	f.Add([]byte("endpoints: [{address: b}, &a {address: 'c:1'}, *a]"))
	f.Add([]byte("endpoints: {a: b}"))
	f.Add([]byte("- \xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := upstream.ParseEndpointFile(b)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, e := range file.Endpoints {
			if seen[e.Address] || e.Weight == 0 || !strings.Contains(e.Address, ":") {
				t.Errorf("%q gave %+v", b, e)
			}
			seen[e.Address] = true
		}
		if len(seen) == 0 {
			t.Errorf("%q gave no endpoint and no error", b)
		}
	})
}

// nameBackend answers every call with its name.
func nameBackend(t testing.TB, name string) string {
	return newBackend(t, func(_ string, s stream) error {
		if _, err := s.recv(); err != nil {
			return err
		}
		return s.send(name)
	})
}

// untilOnly calls until n calls in a row were answered by want's backends, in any proportion, and each at least once.
func untilOnly(t *testing.T, c *upstream.Cluster, want ...string) {
	t.Helper()
	seen := map[string]int{}
	for row := 0; row < 20 || len(seen) < len(want); row++ {
		if t.Context().Err() != nil {
			t.Fatal("the endpoints never changed")
		}
		got, _, err := exchange(t, c, unary, nil, "m")
		if err != nil {
			t.Fatalf("a call failed while endpoints changed: %v", err)
		}
		if !strings.Contains(strings.Join(want, " "), got[0]) {
			row, seen = -1, map[string]int{}
			continue
		}
		seen[got[0]]++
	}
}

// replace writes a file as careful programs do.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestFileTarget(t *testing.T) {
	a, b, d := nameBackend(t, "A"), nameBackend(t, "B"), nameBackend(t, "D")
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}, {address: %q, drain: true}]", a, d))
	var log syncBuffer
	c, err := upstream.New(upstream.Config{Name: "bank", Target: "file://" + path}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	untilOnly(t, c, "A")

	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}, {address: %q}]", a, b))
	untilOnly(t, c, "A", "B")

	replace(t, path, "endpoints:\n- {address: nowhere}\n") // refused as a whole
	for !strings.Contains(log.String(), `line 2: address: \"nowhere\" must be host:port`) {
		untilOnly(t, c, "A", "B")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(log.String(), "no such file") {
		untilOnly(t, c, "A", "B")
	}

	if err := os.WriteFile(path, fmt.Appendf(nil, "endpoints: [{address: %q}]", b), 0o600); err != nil { // in place
		t.Fatal(err)
	}
	untilOnly(t, c, "B")
}

// A directory in which something is always written, logs for instance, does not keep the endpoint file from being read.
func TestFileTargetInBusyDirectory(t *testing.T) {
	// The directory rests if nothing is written for so long. A try in which it did tells nothing, which a busy machine brings about.
	const rests = 10 * time.Millisecond
	dir := t.TempDir()
	path := filepath.Join(dir, "endpoints.yaml")
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}]", nameBackend(t, "A")))
	c := newCluster(t, upstream.Config{Target: "file://" + path})
	stop := make(chan struct{})
	var rested atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		other, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Error(err)
			return
		}
		defer other.Close()
		for last := time.Now(); ; {
			select {
			case <-stop:
				return
			default:
				_, _ = other.WriteAt([]byte("x"), 0)
				now := time.Now()
				if now.Sub(last) >= rests {
					rested.Store(true)
				}
				last = now
				runtime.Gosched()
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	untilOnly(t, c, "A")
	for try := range 20 {
		rested.Store(false)
		name := string(rune('B' + try))
		replace(t, path, fmt.Sprintf("endpoints: [{address: %q}]", nameBackend(t, name)))
		untilOnly(t, c, name)
		if !rested.Load() {
			return
		}
	}
	t.Log("the directory rested in each try: what is shown is in descriptors, TestRest")
}

func TestFileTargetAppearsLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	c := newCluster(t, upstream.Config{Target: "file://" + path})
	if _, call, err := exchange(t, c, unary, nil, "m"); err == nil || call.Info().ErrorSource != rpc.SourceUpstream {
		t.Errorf("a call without a file: %v, source %v", err, call.Info().ErrorSource)
	}
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}]", nameBackend(t, "A")))
	for {
		if _, _, err := exchange(t, c, unary, nil, "m"); err == nil {
			break
		}
	}
}
