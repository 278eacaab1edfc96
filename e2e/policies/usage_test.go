package policies_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "transom/proto/transom/admin/v1"
)

// admin is a client of the proxy's admin listener.
func (p *proxy) admin(t *testing.T) adminv1.AdminClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.AdminAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return adminv1.NewAdminClient(conn)
}

// counted are the calls counted of a consumer and API, errors and refused behind them. It waits until there are as many calls,
// since a call is counted after its answer.
func counted(t *testing.T, c adminv1.AdminClient, consumer, api string, calls uint64) string {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		u, err := c.GetUsage(t.Context(), &adminv1.GetUsageRequest{Consumer: consumer, Api: api})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, r := range u.GetRows() {
			got = fmt.Sprintf("%d %d %d %s", r.GetCalls(), r.GetErrors(), r.GetRefused(), r.GetPlan())
			if r.GetCalls() >= calls {
				return got
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s of %s: %s, want %d calls", consumer, api, got, calls)
		}
	}
}

func TestUsage(t *testing.T) {
	config := func(more string) string {
		return example(t, "Usage") + more + "admin: {address: \"127.0.0.1:0\"}\n"
	}
	log := filepath.Join(t.TempDir(), "usage.log")
	// Of a period that ends in the middle of the test, the rows would be gone.
	here := strings.NewReplacer("/var/log/transom/usage.log", log, "period: 1h", "period: 744h").Replace
	p := start(t, here(config("")))
	c := p.admin(t)
	key := map[string]string{"x-api-key": "shop-key-4f9a1c"}
	var calls uint64
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for range 3 {
			call(t, p, key).wantOK(t, "of the shop")
		}
		call(t, p, nil).want(t, "without a key", codes.Unauthenticated, 401, "CREDENTIALS_MISSING")
		calls += 3
		if got, want := counted(t, c, "shop", "bank.v1.Diagnostics", calls), fmt.Sprintf("%d 0 0 gold", calls); got != want {
			t.Errorf("the shop's: %s, want %s", got, want)
		}
		n := calls / 3
		if got, want := counted(t, c, "_anonymous", "", n), fmt.Sprintf("%d %d %d ", n, n, n); got != want {
			t.Errorf("of nobody: %s, want %s", got, want)
		}
		// What was counted is kept over a reload, and APIs may be others from then on.
		p.reload(t, here(config(fmt.Sprintf("- {selector: bank.v1.Rates.Get, timeout: %ds}\n", n))))
	})
	// An API of methods, and an error of the backend.
	if code, _, _ := p.get(t, "/v1/customers/1/accounts/99", key); code != 404 {
		t.Errorf("an account that there is none of: %d", code)
	}
	if got := counted(t, c, "shop", "accounts", 1); got != "1 1 0 gold" {
		t.Errorf("of accounts: %s", got)
	}

	t.Run("pages", func(t *testing.T) {
		var names []string
		req := &adminv1.GetUsageRequest{PageSize: 1}
		for {
			u, err := c.GetUsage(t.Context(), req)
			if err != nil || len(u.GetRows()) != 1 || u.GetStartTime() == nil || u.GetEndTime() == nil {
				t.Fatalf("%v, %v", u, err)
			}
			names = append(names, u.GetRows()[0].GetConsumer()+" "+u.GetRows()[0].GetApi())
			if req.PageToken = u.GetNextPageToken(); req.GetPageToken() == "" {
				break
			}
		}
		if want := []string{"_anonymous bank.v1.Diagnostics", "shop accounts", "shop bank.v1.Diagnostics"}; !slices.Equal(names, want) {
			t.Errorf("%q, want %q", names, want)
		}
		for _, bad := range []*adminv1.GetUsageRequest{{PageToken: "%"}, {PageSize: 10001}} {
			if _, err := c.GetUsage(t.Context(), bad); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v: %v", bad, err)
			}
		}
	})
	t.Run("JSON", func(t *testing.T) {
		resp, err := http.Get("http://" + p.AdminAddr().String() + "/v1/usage?consumer=shop&api=accounts")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var u struct {
			Rows []struct{ Consumer, Calls, BytesOut, Time string }
		}
		if err := json.NewDecoder(resp.Body).Decode(&u); err != nil || len(u.Rows) != 1 || u.Rows[0].Calls != "1" || !strings.HasSuffix(u.Rows[0].Time, "s") {
			t.Errorf("%+v, %v", u, err)
		}
	})
	t.Run("off", func(t *testing.T) {
		if _, err := os.Stat(log); err != nil {
			t.Errorf("the log is not there from the start: %v", err)
		}
		p.reload(t, "policies: []\nadmin: {address: \"127.0.0.1:0\"}\n")
		if _, err := p.admin(t).GetUsage(t.Context(), &adminv1.GetUsageRequest{}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%v", err)
		}
		// The period that was under way is in the log.
		deadline := time.Now().Add(patience)
		for {
			text, err := os.ReadFile(log)
			if strings.Contains(string(text), `"consumer":"shop","plan":"gold","api":"accounts","calls":1,"errors":1,"refused":0,`) && strings.Count(string(text), "\n") == 3 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s, %v", text, err)
			}
		}
	})
}

// total is how many calls are in the lines of files and in the period under way.
func total(t *testing.T, c adminv1.AdminClient, files ...string) uint64 {
	t.Helper()
	var n uint64
	u, err := c.GetUsage(t.Context(), &adminv1.GetUsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range u.GetRows() {
		n += r.GetCalls()
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var row struct{ Calls uint64 }
			if err := json.Unmarshal([]byte(line), &row); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			n += row.Calls
		}
	}
	return n
}

// TestUsageReload changes what calls are counted by, how long, for how many and where while they go on: of each call there is a line in
// one of the files, or it is in the period under way.
func TestUsageReload(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "one.log"), filepath.Join(dir, "two.log")}
	config := func(n int) string {
		return fmt.Sprintf("usage: {file: %q, period: %dh, consumers: %d, apis: {%s: {selector: %s}}}\nadmin: {address: \"127.0.0.1:0\"}\n",
			files[n/4%2], 743+n%2, 10+n/2%2, []string{"all", "diagnostics", "others"}[n%3], []string{"\"*\"", "bank.v1.Diagnostics.*", "bank.v1.Rates.*"}[n%3])
	}
	p := start(t, config(0))
	c := p.admin(t)
	var made atomic.Uint64
	load := underLoad(t, func(t *testing.T, name string, _, _ int, call caller) {
		call(t, p, nil).wantOK(t, name)
		made.Add(1)
	})
	for n := range 12 {
		p.reload(t, config(n+1))
		load.calls(t, 20)
	}
	load.end()
	for deadline := time.Now().Add(patience); ; { // a call is counted after its answer
		n := total(t, c, files...)
		if n == made.Load() {
			break
		}
		if n > made.Load() || time.Now().After(deadline) {
			t.Fatalf("%d calls counted, %d made", n, made.Load())
		}
	}
}

// TestUsageUnderLoad has reloads lose none of what is counted.
func TestUsageUnderLoad(t *testing.T) {
	const text = "usage: {period: 744h, apis: {all: {selector: \"*\"}}}\nadmin: {address: \"127.0.0.1:0\"}\npolicies: [{selector: bank.v1.Diagnostics.Metadata, timeout: %ds}]\n"
	p := start(t, fmt.Sprintf(text, 10))
	c := p.admin(t)
	var made atomic.Uint64
	load := underLoad(t, func(t *testing.T, name string, _, _ int, call caller) {
		call(t, p, nil).wantOK(t, name)
		made.Add(1)
	})
	for n := range 10 {
		p.reload(t, fmt.Sprintf(text, 11+n))
		load.calls(t, 20)
	}
	load.end()
	want := fmt.Sprintf("%d 0 0 ", made.Load())
	if got := counted(t, c, "_anonymous", "all", made.Load()); got != want {
		t.Errorf("counted %s, want %s", got, want)
	}
}

func TestUsageFaults(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"usage: {period: 100ms}\n", `1:17: period: `},
		{"usage: {consumers: 1000001}\n", `1:20: consumers: `},
		{"usage:\n  apis:\n    a: {selector: [bank.v1.Acounts.*]}\n", `3:20: it takes in no method of the loaded descriptors; did you mean "bank.v1.Accounts`},
		{"usage:\n  apis:\n    a: {selector: bank.v1.}\n", `3:19: selector "bank.v1.": want `},
		{"usage:\n  apis:\n    a: {selector: bank.v1.*}\n    b: {selector: bank.v1.*}\n", `4:19: bank.v1.Accounts.Balance is in API a by a selector of the same precedence`},
		{"usage:\n  apis:\n    a: {}\n", `3:8: selector: `},
	} {
		found := faults(t, tc.text)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
}
