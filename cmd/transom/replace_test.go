package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"transom/cmd/transom/demo/bank"
	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

// TestMain is also what a replacement starts in place of transom: a program that never gets ready.
func TestMain(m *testing.M) {
	if _, ok := os.LookupEnv(socketsEnv); ok {
		time.Sleep(5 * time.Minute) // or until it is killed
		return
	}
	goleak.VerifyTestMain(m)
}

// TestInheritNothing sees that numbers of sockets that are none are none.
func TestInheritNothing(t *testing.T) {
	for _, n := range []string{"0", "-1", "x", ""} {
		t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		t.Setenv("LISTEN_FDS", n)
		if _, err := inherit(); err != nil {
			t.Errorf("LISTEN_FDS=%q: %v", n, err)
		}
	}
}

// lines is a log, in pieces that are each written at once.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

// await waits until the log has what, and returns the log.
func (l *lines) await(t *testing.T, what string) string {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		text := l.text.String()
		l.mu.Unlock()
		if strings.Contains(text, what) {
			return text
		}
		select {
		case <-l.more:
		case <-late:
			t.Fatalf("the log has no %q:\n%s", what, text)
		}
	}
}

// TestStopWhileReplaced: a process stops at once while the one that is to replace it does not get ready, by a signal or by an
// operator's drain, and the other with it. A reload waits for the other, and is made if that fails.
func TestStopWhileReplaced(t *testing.T) {
	set := filepath.Join(t.TempDir(), "bank.binpb")
	if err := os.WriteFile(set, bank.DescriptorSet(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, stop := range []string{"signal", "drain", "signal, once the other has failed"} {
		t.Run(stop, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			said := &lines{more: make(chan struct{}, 1)}
			log := slog.New(slog.NewTextHandler(said, nil))
			g, err := gateway.New(ctx, &configv1.Config{
				Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0"}},
				Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: set}}},
				Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///127.0.0.1:1"}},
			}, log)
			if err != nil {
				t.Fatal(err)
			}
			asked, over := make(chan os.Signal, 1), make(chan error, 1)
			go func() { over <- run(ctx, g, inheritance{}, asked, log) }()
			<-g.Up()
			asked <- syscall.SIGUSR2
			m := regexp.MustCompile(`msg=replacing .*pid=(\d+)`).FindStringSubmatch(said.await(t, "msg=replacing"))
			pid, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			asked <- syscall.SIGHUP
			switch stop {
			case "signal":
				cancel()
			case "drain":
				g.Drain()
			default:
				asked <- syscall.SIGUSR1 // it has taken the one before
				asked <- syscall.SIGUSR1
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if said := said.await(t, "msg=reloaded"); !strings.Contains(said, `msg="not replaced"`) {
					t.Error("it reloads while the other starts")
				}
				cancel()
			}
			select {
			case err := <-over:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				_ = syscall.Kill(pid, syscall.SIGKILL) // run has not waited for it
				t.Fatal("it does not stop")
			}
			if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
				t.Errorf("the new process: %v, want that there is none", err)
			}
		})
	}
}
