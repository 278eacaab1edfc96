// Package process runs transom as a process of its own, for tests of the whole program, and looks at it from outside: what
// it logs, the memory and the files that it holds, its metrics.
package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what takes no time on a good day.
const patience = 30 * time.Second

// Process is a running transom. Its methods may be called from any goroutine.
type Process struct {
	Cmd *exec.Cmd
	// Plain, Secure and Admin are host:port of the plaintext, the TLS and the admin listener; of several of a kind, the last.
	Plain, Secure, Admin string
	// Exited is closed when the process has ended, with Err as it says itself.
	Exited chan struct{}
	Err    error

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

// maxLog is how much of the log is kept; what comes after it replaces the older half.
const maxLog = 4 << 20

// root is the directory of the module.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, missing := os.Stat(filepath.Join(dir, "Makefile")); missing == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("no module above the working directory: %v", err)
	return ""
}

// Program is the path of the program under test.
func Program(t testing.TB) string {
	t.Helper()
	path := filepath.Join(root(t), "bin", "transom")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return path
}

var listening = regexp.MustCompile(`msg="?(listening|admin listening)"? address=(\S+)(?: tls=(\S+))?`)

// Start runs transom with args until the test ends, and waits until it listens on want sockets, the admin's among them.
func Start(t testing.TB, want int, args ...string) *Process {
	t.Helper()
	return Run(t, want, exec.CommandContext(context.WithoutCancel(t.Context()), Program(t), args...)) //nolint:gosec // a test says what it runs
}

// Run is Start of a command.
func Run(t testing.TB, want int, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Exited: make(chan struct{})}
	// A pipe of our own: a process that takes over from this one has it too, and Wait would wait for both.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		t.Fatal(err)
	}
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer r.Close()
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			p.mu.Lock()
			if p.log.Len() > maxLog {
				p.log.Next(maxLog / 2)
			}
			p.log.Write(append(lines.Bytes(), '\n'))
			p.mu.Unlock()
			m := listening.FindStringSubmatch(lines.Text())
			if m == nil || want == 0 {
				continue
			}
			switch {
			case m[1] != "listening":
				p.Admin = m[2]
			case m[3] == "true":
				p.Secure = m[2]
			default:
				p.Plain = m[2]
			}
			if want--; want == 0 {
				close(ready)
			}
		}
	})
	wg.Go(func() {
		p.Err = cmd.Wait()
		close(p.Exited)
	})
	t.Cleanup(func() {
		select {
		case <-p.Exited:
		default:
			_ = cmd.Process.Kill()
		}
		left := time.AfterFunc(patience, func() {
			t.Error("a process that took over is still there")
			_ = r.Close()
		})
		wg.Wait()
		left.Stop()
		if t.Failed() {
			t.Logf("transom said:\n%s", p.Log())
		}
	})
	select {
	case <-ready:
	case <-p.Exited:
		t.Fatalf("transom ended: %v\n%s", p.Err, p.Log())
	case <-time.After(patience):
		t.Fatalf("transom does not listen:\n%s", p.Log())
	}
	return p
}

// Log is what transom wrote to standard error, the last few MiB of it.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// Stop sends SIGTERM, waits for the process to end and returns how it did.
func (p *Process) Stop(t testing.TB) error {
	t.Helper()
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Exited:
		return p.Err
	case <-time.After(45 * time.Second):
		t.Fatal("transom does not end after SIGTERM")
		return nil
	}
}

// Memory is a line of /proc/PID/status in bytes: VmRSS is the resident memory, VmHWM its peak.
func (p *Process) Memory(t testing.TB, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(p.proc("status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s in %s", field, p.proc("status"))
	return 0
}

// Files is the number of open file descriptors.
func (p *Process) Files(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(p.proc("fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func (p *Process) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.Cmd.Process.Pid), name)
}

// Get reads a path of the admin listener.
func (p *Process) Get(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Admin+path, nil)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{DisableKeepAlives: true} // leaves no connection behind that would be counted
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, b)
	}
	return string(b), err
}

// Metrics are the values of the metrics that have no labels, or one set of them only, by name; of others the sum.
func (p *Process) Metrics(ctx context.Context) (map[string]float64, error) {
	text, err := p.Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		if i < 0 {
			return nil, errors.New("a line of metrics without a value: " + line)
		}
		name, _, _ := strings.Cut(line[:i], "{")
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			return nil, err
		}
		values[name] += v
	}
	return values, nil
}
