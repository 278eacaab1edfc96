package limit

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"transom/descriptors"
	"transom/rpc"
)

// TestAmountText: what an amount is written as is read as that amount.
func TestAmountText(t *testing.T) {
	for _, tc := range []struct {
		kind     Kind
		in, want string
	}{
		{Rate, "100/m", "100/m"},
		{Rate, "100/1m", "100/m"},
		{Rate, "100/60s", "100/m"},
		{Rate, "5/10s", "5/10s"},
		{Rate, "7/90s", "7/1m30s"},
		{Rate, "1/h", "1/h"},
		{Rate, "1/24h", "1/24h"},
		{Rate, "1/1h30m", "1/1h30m"},
		{Rate, "3/5ms", "3/5ms"},
		{Rate, "1000/ms", "1000/ms"},
		{Rate, "1/1500ms", "1/1.5s"},
		{Quota, "7/day", "7/day"},
		{Quota, "7/month", "7/month"},
		{Concurrent, "20", "20"},
	} {
		a, err := ParseAmount(tc.kind, tc.in)
		if err != nil {
			t.Fatal(err)
		}
		got := a.Text(tc.kind)
		if again, err := ParseAmount(tc.kind, got); got != tc.want || err != nil || again != a {
			t.Errorf("%s is written as %s and read as %+v, %v; want %s", tc.in, got, again, err, tc.want)
		}
	}
}

// TestState has callers use limits, and asks what they have left: the numbers are theirs, asking costs nothing, and what is not said of a
// caller leaves it unknown.
func TestState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		method := &descriptors.Method{FullPath: "/bank.v1.Accounts/Get"}
		ada := &rpc.Call{Principal: &rpc.Principal{Consumer: "ada"}, Method: method, Info: &rpc.Info{}}
		gold := &rpc.Call{Principal: &rpc.Principal{Consumer: "bob", Plan: "gold"}, Method: method, Info: &rpc.Info{}}
		guest := &rpc.Call{Peer: rpc.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:5")}, Method: method, Info: &rpc.Info{}}
		nobody := &rpc.Call{Info: &rpc.Info{}}
		parts := func(names ...string) (all []Part) {
			for _, n := range names {
				p, err := ParsePart(n)
				if err != nil {
					t.Fatal(err)
				}
				if p.String() != n {
					t.Errorf("part %s is written as %s", n, p)
				}
				all = append(all, p)
			}
			return all
		}
		rate := Config{Name: "a", Amount: Amount{Count: 60, Period: time.Minute, Burst: 10}, Plans: map[string]Amount{"gold": {Count: 600, Period: time.Minute}}, Per: parts("consumer")}
		with := func(cfg Config, change func(*Config)) Config {
			change(&cfg)
			return cfg
		}
		for _, tc := range []struct {
			name      string
			cfg       Config
			call      *rpc.Call
			use       int64
			known     bool
			remaining int64
			reset     time.Duration
		}{
			{"rate, unused", rate, ada, 0, true, 10, 0},
			{"rate, three used", rate, ada, 3, true, 7, 3 * time.Second},
			{"rate of a plan", rate, gold, 100, true, 500, 10 * time.Second},
			{"rate of an address", rate, guest, 1, true, 9, time.Second},
			{"rate of nobody", rate, nobody, 0, false, 0, 0},
			{"by address and method", with(rate, func(c *Config) { c.Per = parts("ip", "method") }), guest, 4, true, 6, 4 * time.Second},
			{"by address, without one", with(rate, func(c *Config) { c.Per = parts("ip", "method") }), ada, 4, false, 0, 0},
			{"by header", with(rate, func(c *Config) { c.Per = parts("consumer", "header:x-tenant") }), ada, 4, false, 0, 0},
			{"by claim", with(rate, func(c *Config) { c.Per = parts("claim:sub") }), ada, 4, false, 0, 0},
			{"by field", with(rate, func(c *Config) { c.Per = parts("field:name") }), ada, 4, false, 0, 0},
			{"everybody's", with(rate, func(c *Config) { c.Per = nil }), nobody, 2, true, 8, 2 * time.Second},
			// synctest begins at midnight of 2000-01-01.
			{"quota", with(rate, func(c *Config) { c.Kind, c.Amount, c.Plans = Quota, Amount{Count: 5, Period: Day}, nil }), ada, 2, true, 3, Day},
			{"quota used up", with(rate, func(c *Config) { c.Kind, c.Amount, c.Plans = Quota, Amount{Count: 5, Period: Day}, nil }), ada, 5, true, 0, Day},
			{"at a time", with(rate, func(c *Config) { c.Kind, c.Amount, c.Plans = Concurrent, Amount{Count: 5}, nil }), ada, 2, true, 3, 0},
		} {
			l := New(tc.cfg)
			call := tc.call
			for range tc.use {
				if tc.cfg.Kind == Concurrent {
					if _, err := l.enter(call, request{}); err != nil {
						t.Fatal(err)
					}
					continue
				}
				if v, err := l.take(t.Context(), call, request{}, 1); err != nil || v.wait > 0 {
					t.Fatalf("%s: %+v, %v", tc.name, v, err)
				}
			}
			keys := min(1, int(tc.use))
			for range 3 {
				s := l.State(t.Context(), call)
				if s.Known != tc.known || s.Remaining != tc.remaining || s.Reset != tc.reset || s.Keys != keys {
					t.Errorf("%s: known %v, %d left, full in %v, %d keys; want %v, %d, %v, %d", tc.name, s.Known, s.Remaining, s.Reset, s.Keys, tc.known, tc.remaining, tc.reset, keys)
				}
				if want := call == gold; (s.Plan == "gold") != want {
					t.Errorf("%s: plan %q", tc.name, s.Plan)
				}
			}
		}
	})
}
