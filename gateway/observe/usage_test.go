package observe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
)

// usageOf counts what the calls of exchange are.
func usageOf(t *testing.T, cfg UsageConfig) *UsageOf {
	t.Helper()
	u, err := NewUsage(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return &UsageOf{Usage: u, APIs: map[string]string{"/bank.v1.Accounts/Get": "accounts"}}
}

// count records one call of a consumer, "" for anonymous, that took a time and ended with a code after so many attempts.
func (u *UsageOf) count(consumer string, took time.Duration, code codes.Code, attempts int) {
	x := exchange()
	x.Status, x.Call.Info.Attempts = status.New(code, ""), attempts
	if consumer != "" {
		x.Call.Principal = &rpc.Principal{Consumer: consumer, Plan: "gold"}
	}
	u.end(x, took)
}

func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "usage.log")
		u := usageOf(t, UsageConfig{File: path, Period: time.Hour, Consumers: 2})
		if r := u.Report(true, "", ""); !r.Start.IsZero() || len(r.Rows) != 0 {
			t.Errorf("before the first period ends: %+v", r)
		}
		start := time.Now()
		time.Sleep(time.Minute)
		for range 98 {
			u.count("shop", 3*time.Millisecond, codes.OK, 1)
		}
		u.count("shop", time.Second, codes.NotFound, 1)
		u.count("shop", time.Microsecond, codes.ResourceExhausted, 0)
		u.count("kiosk", 0, codes.OK, 0)
		u.count("", 0, codes.Unauthenticated, 0)
		for i := range 5 { // beyond what is told apart
			u.count(fmt.Sprint(i), 0, codes.OK, 1)
		}
		opaque := exchange()
		opaque.Call.Method = descriptors.Opaque("/made.Up/Name")
		u.end(opaque, time.Hour)
		unknown := exchange()
		unknown.Call.Method = &descriptors.Method{FullPath: "/grpc.health.v1.Health/Check"}
		u.end(unknown, 0)
		unknown.Call.Method = nil
		u.end(unknown, 0)

		r := u.Report(false, "", "")
		var got []string
		for _, row := range r.Rows {
			got = append(got, fmt.Sprintf("%s %s %s %d %d %d", row.Consumer, row.Plan, row.API, row.Calls, row.Errors, row.Refused))
		}
		want := []string{"_anonymous  _OTHER 1 0 0", "_anonymous  accounts 1 1 1", "_other  accounts 5 0 0", "kiosk gold accounts 1 0 0", "shop gold accounts 100 2 1"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("rows\n%q, want\n%q", got, want)
		}
		shop := r.Rows[4]
		if shop.BytesIn != 1000 || shop.BytesOut != 20000 || shop.MessagesIn != 100 || shop.Time != 98*3*time.Millisecond+time.Second+time.Microsecond ||
			shop.Max != time.Second || shop.P50 < 2*time.Millisecond || shop.P50 > 4*time.Millisecond || shop.P95 > 4*time.Millisecond || shop.P99 > 4*time.Millisecond {
			t.Errorf("shop %+v", shop)
		}
		if opaque := r.Rows[0]; opaque.Time != time.Hour || opaque.Max != 0 || opaque.P99 != 0 {
			t.Errorf("of a stream %+v", opaque)
		}
		if r := u.Report(false, "shop", "other"); len(r.Rows) != 0 {
			t.Errorf("of another API: %+v", r.Rows)
		}
		if r := u.Report(false, "shop", ""); len(r.Rows) != 1 || !r.Start.Equal(start) || !r.End.Equal(start.Add(time.Minute)) {
			t.Errorf("of shop: %+v", r)
		}

		time.Sleep(time.Hour)
		synctest.Wait()
		if r := u.Report(true, "", ""); len(r.Rows) != 5 || !r.End.Equal(start.Add(time.Hour)) {
			t.Errorf("of the period before: %+v", r)
		}
		if r := u.Report(false, "", ""); len(r.Rows) != 0 {
			t.Errorf("of the next: %+v", r)
		}
		u.count("\"", 0, codes.OK, 1)
		u.Close()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Split(bytes.TrimSpace(text), []byte{'\n'})
		if len(lines) != 6 {
			t.Fatalf("%s", text)
		}
		var line struct {
			Start, End          time.Time
			Consumer, Plan, API string
			Calls               int
			P99                 float64 `json:"p99_ms"`
			Max                 float64 `json:"max_ms"`
		}
		if err := json.Unmarshal(lines[4], &line); err != nil || line.Consumer != "shop" || line.Plan != "gold" || line.API != "accounts" || line.Calls != 100 ||
			line.P99 > 4 || line.Max != 1000 || !line.Start.Equal(start) || !line.End.Equal(start.Add(time.Hour)) {
			t.Errorf("%s: %+v, %v", lines[4], line, err)
		}
		if err := json.Unmarshal(lines[5], &line); err != nil || line.Consumer != `"` || !line.End.Equal(start.Add(time.Hour+time.Minute)) {
			t.Errorf("the period that was cut: %s, %v", lines[5], err)
		}
	})
}

// TestUsageTurns has periods end while calls are counted: none is lost or counted twice.
func TestUsageTurns(t *testing.T) {
	u := usageOf(t, UsageConfig{Period: 100 * 365 * 24 * time.Hour, Consumers: 100}) // it ends where the test says, not at a full hour
	defer u.Close()
	const workers, calls = 4, 2000
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for n := range calls {
				u.count(fmt.Sprint(i, n%7), 0, codes.OK, 1)
			}
		})
	}
	counted := func(previous bool) (n uint64) {
		for _, r := range u.Report(previous, "", "").Rows {
			n += r.Calls
		}
		return n
	}
	var total uint64
	for range 100 {
		u.turn(time.Now())
		total += counted(true)
	}
	wg.Wait()
	if total += counted(false); total != workers*calls {
		t.Errorf("%d calls counted of %d", total, workers*calls)
	}
}

func TestUsageFile(t *testing.T) {
	if _, err := NewUsage(UsageConfig{File: t.TempDir(), Period: time.Hour, Consumers: 1}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a directory is taken for a file")
	}
}

func BenchmarkUsage(b *testing.B) {
	u, err := NewUsage(UsageConfig{Period: time.Hour, Consumers: 10000}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	of := &UsageOf{Usage: u, APIs: map[string]string{"/bank.v1.Accounts/Get": "accounts"}}
	x := exchange()
	x.Call.Principal = &rpc.Principal{Consumer: "shop"}
	b.ReportAllocs()
	for b.Loop() {
		of.end(x, time.Millisecond)
	}
}
