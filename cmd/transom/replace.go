package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"transom/gateway"
)

// A process takes the sockets that it serves from one of two places. systemd's socket activation (sd_listen_fds(3)) has them
// from descriptor 3 on, with LISTEN_FDS and LISTEN_PID and, if they have names, LISTEN_FDNAMES. A transom that is being
// replaced has a pipe in descriptor 3, on which it waits for a byte that says that the new one serves, and its sockets from
// 4 on, with their names in socketsEnv. One of them, turnName, is a pipe that it closes when it has done with QUIC: of two
// processes that read from one UDP socket each would miss what is for it.
const (
	socketsEnv   = "TRANSOM_SOCKETS"
	turnName     = "turn"
	firstFD      = 3
	replaceLimit = time.Minute // for a new process to be ready
)

// inheritance is what a process was started with. ready is nil unless another waits for this one.
type inheritance struct {
	sockets *gateway.Sockets
	ready   *os.File
}

// inherit takes what the process was started with, and its traces out of the environment.
func inherit() (inheritance, error) {
	names, next := []string(nil), firstFD
	in := inheritance{sockets: &gateway.Sockets{}}
	if own, ok := os.LookupEnv(socketsEnv); ok {
		names = strings.Fields(own)
		syscall.CloseOnExec(next)
		in.ready = os.NewFile(uintptr(next), "ready")
		next++
	} else if n, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err == nil && n > 0 && os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		names = slices.Grow(strings.Split(os.Getenv("LISTEN_FDNAMES"), ":"), n)[:n]
	}
	for _, name := range []string{socketsEnv, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name)
	}
	for i, name := range names {
		syscall.CloseOnExec(next + i)
		if in.ready != nil && name == turnName {
			in.sockets.Turn = ended(os.NewFile(uintptr(next+i), name))
			continue
		}
		if err := in.sockets.Add(name, os.NewFile(uintptr(next+i), name)); err != nil {
			return in, fmt.Errorf("sockets that the process was started with: %w", err)
		}
	}
	return in, nil
}

// ended is closed when the other end of a pipe is, at the latest by the end of its process.
func ended(pipe *os.File) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		_, _ = pipe.Read(make([]byte, 1))
		_ = pipe.Close()
		close(over)
	}()
	return over
}

// serving tells the process that is being replaced that this one serves.
func (in inheritance) serving() {
	if in.ready != nil {
		_, _ = in.ready.Write([]byte{1})
		_ = in.ready.Close()
	}
}

// replacement is what replace returns.
type replacement struct {
	pid  int
	turn *os.File
	err  error
}

// replace starts the program anew, with this one's arguments and sockets, and waits until it serves. Then this one is to
// drain, and to close turn when it has done with QUIC. It gives up after replaceLimit and when ctx ends. On error the new process
// is gone, and this one goes on as if nothing had been.
func replace(ctx context.Context, g *gateway.Gateway, log *slog.Logger) (pid int, turn *os.File, err error) {
	names, files, err := g.Files()
	if err != nil {
		return 0, nil, err
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	program, err := os.Executable()
	if err != nil {
		return 0, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = r.Close() }()
	turnEnd, mine, err := os.Pipe()
	if err != nil {
		_ = w.Close()
		return 0, nil, err
	}
	defer func() {
		if err != nil {
			_ = mine.Close()
		}
	}()
	names, files = append(names, turnName), append(files, turnEnd)
	fds := []uintptr{0, 1, 2}
	for _, f := range append([]*os.File{w}, files...) {
		// Not Fd: it would make the socket blocking, for this process too.
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds = append(fds, fd) })
		}
		if err != nil {
			_ = w.Close()
			return 0, nil, err
		}
	}
	env := slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "WATCHDOG_PID=") })
	pid, err = syscall.ForkExec(program, os.Args, &syscall.ProcAttr{ //nolint:gosec // it is this program, as it was called
		Env: append(env, socketsEnv+"="+strings.Join(names, " ")), Files: fds,
	})
	_ = w.Close()
	if err != nil {
		return 0, nil, fmt.Errorf("%s: %w", program, err)
	}
	log.LogAttrs(ctx, slog.LevelInfo, "replacing", slog.String("program", program), slog.Int("pid", pid))
	_ = r.SetReadDeadline(time.Now().Add(replaceLimit))
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })()
	if n, err := r.Read(make([]byte, 1)); n != 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		var how syscall.WaitStatus
		_, _ = syscall.Wait4(pid, &how, 0, nil)
		if ctx.Err() != nil {
			return 0, nil, fmt.Errorf("process %d was not ready when this one was told to stop", pid)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil, fmt.Errorf("process %d was not ready within %v", pid, replaceLimit)
		}
		return 0, nil, fmt.Errorf("process %d ended before it was ready, with status %d", pid, how.ExitStatus())
	}
	return pid, mine, nil
}
