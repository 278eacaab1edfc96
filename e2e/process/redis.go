package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// attempts is how many ports are tried until one is free.
const attempts = 100

// Listen listens on a port of 127.0.0.1 that the system gives to nobody of its own accord, neither to a listener nor to a
// connection: when it is closed the port stays free, for a server that is run again or a program that must be told a port.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	const first, end = 10_000, 30_000 // Linux gives those from 32768 on
	var l net.Listener
	err := error(syscall.EADDRINUSE)
	for i := 0; i < attempts && errors.Is(err, syscall.EADDRINUSE); i++ {
		l, err = new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.IntN(end-first))))
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Redis is Debian's redis-server, to be stopped and run again on the same port. Its methods exclude one another.
type Redis struct {
	// Addr is host:port, by TLS where the arguments have a certificate.
	Addr string
	// Cmd is what runs, or ran last.
	Cmd *exec.Cmd

	args   []string
	silent chan struct{} // closed when the server has ended
}

// StartRedis runs a redis-server with further args until the test ends. It keeps nothing over a stop.
func StartRedis(t testing.TB, args ...string) *Redis {
	t.Helper()
	dir := t.TempDir()
	var err error
	for range attempts {
		l := Listen(t)
		r := &Redis{Addr: l.Addr().String()}
		_ = l.Close()
		_, port, _ := net.SplitHostPort(r.Addr)
		r.args = []string{"--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir, "--port", port}
		if slices.Contains(args, "--tls-cert-file") {
			r.args = append(r.args, "--port", "0", "--tls-port", port)
		}
		r.args = append(r.args, args...)
		if err = r.Run(t); err == nil {
			t.Cleanup(r.Stop)
			return r
		}
	}
	t.Fatal(err)
	return nil
}

// Run starts the server, which must not run, and returns when it says that it takes connections: whoever else had the port would
// take them too. The error has what the server says. It may be called from any goroutine of the test.
func (r *Redis) Run(t testing.TB) error {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "redis-server", r.args...) //nolint:gosec // a test says what it runs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("redis-server: %w", err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "Ready to accept connections") {
			silent := make(chan struct{})
			r.Cmd, r.silent = cmd, silent
			go func() {
				for lines.Scan() {
					continue // it would wait for who reads
				}
				_ = cmd.Wait()
				close(silent)
			}()
			return nil
		}
		said.WriteString(lines.Text() + "\n")
	}
	_ = cmd.Wait()
	return fmt.Errorf("redis-server on %s: %s", r.Addr, said.String())
}

// Stop kills the server and returns when it has ended.
func (r *Redis) Stop() {
	_ = r.Cmd.Process.Kill()
	<-r.silent
}
