package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// events is what a log is told.
type events struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (e *events) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.text.Write(b)
}

func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.text.String()
}

// logTo is an access log's configuration, whose lost lines m counts.
func logTo(file string, m *Metrics, e io.Writer) AccessLogConfig {
	return AccessLogConfig{File: file, Log: slog.New(slog.NewTextHandler(e, nil)), Lost: m.LinesLost()}
}

func accessLog(w io.Writer) *AccessLog { return NewAccessLog(w, logTo("", NewMetrics(), io.Discard)) }

const linesLost = "transom_access_log_lines_lost_total{}"

// TestAccessLogFullDisk writes where there is never room: calls go on, and each lost line is counted.
func TestAccessLogFullDisk(t *testing.T) {
	m, e := NewMetrics(), &events{}
	l, err := OpenAccessLog(logTo("/dev/full", m, e))
	if err != nil {
		t.Fatal(err)
	}
	o := New(m, l, nil, nil)
	const n = 1000
	for range n {
		o.End(exchange())
	}
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if lost := scrape(t, m)[linesLost]; lost != n {
		t.Errorf("%v lines are lost, want %d", lost, n)
	}
	if got := e.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "/dev/full") || !strings.Contains(got, "no space left") {
		t.Errorf("logged:\n%s", got)
	}
}

// disk takes so many bytes of the next writes.
type disk struct {
	room atomic.Int64
	has  events
}

func (d *disk) Write(b []byte) (int, error) {
	n := int(min(int64(len(b)), d.room.Load()))
	_, _ = d.has.Write(b[:n])
	d.room.Add(int64(-n))
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// TestAccessLogRoomAgain gives a full disk room again in the middle of a line: the lines that come then are whole.
func TestAccessLogRoomAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, e, d := NewMetrics(), &events{}, &disk{}
		l := NewAccessLog(d, logTo("a.log", m, e))
		o := New(nil, l, nil, nil)
		d.room.Store(int64(lineLength(t) + 10))
		for range 3 {
			o.End(exchange())
		}
		time.Sleep(writeAfter)
		synctest.Wait()
		d.room.Store(1 << 20)
		for range 2 {
			o.End(exchange())
		}
		time.Sleep(writeAfter)
		synctest.Wait()
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
		lines := strings.Split(strings.TrimSuffix(d.has.String(), "\n"), "\n")
		whole := 0
		for _, line := range lines {
			if json.Valid([]byte(line)) {
				whole++
			}
		}
		if lost := scrape(t, m)[linesLost]; len(lines) != 4 || whole != 3 || lost != 2 {
			t.Errorf("%v lines are lost, want 2; %d are whole, want 3 and a torn one:\n%s", lost, whole, d.has.String())
		}
		if got := e.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "lost=2") || !strings.Contains(got, "written again") {
			t.Errorf("logged:\n%s", got)
		}
	})
}

// lineLength is that of one exchange's line, in bytes, with the newline.
func lineLength(t *testing.T) int {
	t.Helper()
	var out bytes.Buffer
	l := accessLog(&out)
	New(nil, l, nil, nil).End(exchange())
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return out.Len()
}

// TestAccessLogBlockedPipe writes to a pipe that nobody reads: no call waits, what has no room is counted, and a Close gives up
// in time. What the pipe's reader gets at last is every line that was not counted as lost.
func TestAccessLogBlockedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m := NewMetrics()
	l := NewAccessLog(w, logTo("pipe", m, io.Discard))
	o := New(nil, l, nil, nil)
	n := 0
	for ; scrape(t, m)[linesLost] == 0; n += 1000 {
		for range 1000 {
			o.End(exchange())
		}
	}
	soon, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Close(soon); err == nil {
		t.Error("nothing is said of the lines that were not written")
	}
	got := make(chan int)
	go func() {
		b, _ := io.ReadAll(r)
		got <- bytes.Count(b, []byte("\n"))
	}()
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if written, lost := <-got, int(scrape(t, m)[linesLost]); written+lost != n {
		t.Errorf("%d lines are written and %d lost, of %d", written, lost, n)
	}
}

// TestAccessLogInTime waits for a line without anything further, and for many.
func TestAccessLogInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		d.room.Store(1 << 30)
		l := accessLog(d)
		o := New(nil, l, nil, nil)
		for range 2 {
			before := len(d.has.String())
			o.End(exchange())
			time.Sleep(writeAfter - time.Millisecond)
			synctest.Wait()
			if len(d.has.String()) != before {
				t.Error("a line is written by itself, at once")
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if len(d.has.String()) == before {
				t.Error("a line is not written in time")
			}
		}
		before := len(d.has.String())
		for range writeAt/100 + 1 {
			o.End(exchange())
		}
		synctest.Wait()
		if len(d.has.String()) == before {
			t.Error("many lines wait")
		}
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestAccessLogNoReader opens a named pipe that nobody reads.
func TestAccessLogNoReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAccessLog(logTo(path, NewMetrics(), io.Discard)); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("opened: %v", err)
	}
}

// TestAccessLogReopenTwice rotates twice while nothing is written: no line is lost, and each is in the file of its time.
func TestAccessLogReopenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, err := OpenAccessLog(logTo(path, NewMetrics(), io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	o := New(nil, l, nil, nil)
	for i, to := range []string{path + ".1", path + ".2", ""} {
		for range i + 1 {
			o.End(exchange())
		}
		if to == "" {
			break
		}
		if err := os.Rename(path, to); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := 0
	for _, p := range []string{path + ".1", path + ".2", path} {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Error(err)
		}
		all += bytes.Count(b, []byte("\n"))
	}
	if b, _ := os.ReadFile(path); all != 6 || bytes.Count(b, []byte("\n")) != 3 {
		t.Errorf("%d lines in all, want 6; in the last file, want 3:\n%s", all, b)
	}
}
