package traffic

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/metadata"

	"transom/descriptors"
	"transom/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func method() *descriptors.Method { return &descriptors.Method{FullPath: "/a.B/C", Name: "a.B.C"} }

// shares are targets by weight, in the order given.
func shares(weights ...any) *split {
	var targets []Target
	for i := 0; i < len(weights); i += 2 {
		targets = append(targets, Target{Name: weights[i].(string), Weight: uint32(weights[i+1].(int)), To: func(context.Context, *rpc.Call) error { return nil }})
	}
	return newSplit(targets, nil)
}

// place is where each of n keys goes, by the target's seed.
func (s *split) place(n int) []uint64 {
	places := make([]uint64, n)
	for i := range places {
		places[i] = s.targets[s.choose(hash(fmt.Sprintf("user-%d", i)))].seed
	}
	return places
}

// TestShares has the same keys in the same place every time, in numbers that are within five standard deviations of what the
// weights ask for (of the binomial distribution; the outcome itself is fixed by the hash).
func TestShares(t *testing.T) {
	const n = 100_000
	for _, s := range []*split{
		shares("stable", 95, "canary", 5),
		shares("stable", 999, "canary", 1),
		shares("a", 1, "b", 1, "c", 1),
		shares("a", 50, "b", 30, "c", 15, "d", 5),
		shares("bank", 1, "bank-v2", 1), // names that begin alike
	} {
		var sum float64
		count := map[uint64]int{}
		for _, p := range s.place(n) {
			count[p]++
		}
		for _, tg := range s.targets {
			sum += tg.weight
		}
		for i, tg := range s.targets {
			p := tg.weight / sum
			if d := math.Abs(float64(count[tg.seed]) - n*p); d > 5*math.Sqrt(n*p*(1-p)) {
				t.Errorf("target %d of weight %v of %v has %d of %d keys", i, tg.weight, sum, count[tg.seed], n)
			}
		}
	}
}

// TestMoves changes weights: keys move to the target whose weight has grown, or from the one whose weight has shrunk, and
// no others.
func TestMoves(t *testing.T) {
	const n = 20_000
	canary := hash("canary")
	before := shares("a", 60, "canary", 0, "b", 40).place(n)
	if slices.Contains(before, canary) {
		t.Error("a weight of 0 has keys")
	}
	grown := 0
	for _, weight := range []int{1, 5, 10, 50, 100, 1000, 1_000_000} {
		after := shares("a", 60, "canary", weight, "b", 40).place(n)
		moved := 0
		for i := range n {
			if before[i] == after[i] {
				continue
			}
			moved++
			if after[i] != canary {
				t.Fatalf("weight %d: user-%d moved between targets whose weights did not change", weight, i)
			}
		}
		if moved == 0 {
			t.Errorf("weight %d: no key moved to the canary", weight)
		}
		grown += moved
		if !slices.Equal(after, shares("canary", weight, "b", 40, "a", 60).place(n)) {
			t.Errorf("weight %d: the order of targets matters", weight)
		}
		before = after
	}
	if most := slices.Repeat([]uint64{canary}, n); grown < n*99/100 || !slices.Equal(shares("a", 0, "canary", 1).place(n), most) {
		t.Errorf("in the end %d of %d keys are on the canary", grown, n)
	}
	after := shares("a", 30, "canary", 1_000_000, "b", 40).place(n)
	for i := range n {
		if a := hash("a"); before[i] != after[i] && before[i] != a {
			t.Fatalf("user-%d moved away from a target whose weight did not shrink", i)
		}
	}
}

func TestKeys(t *testing.T) {
	call := func(mod func(*rpc.Call)) *rpc.Call {
		c := &rpc.Call{
			Method: method(), Info: &rpc.Info{},
			Header:    metadata.MD{"x-user": {"ann", "bob"}, "cookie": {`a=1; session="s 1"; b=2`, "other=o"}},
			Peer:      rpc.Peer{Addr: netip.MustParseAddrPort("192.0.2.7:1000")},
			Principal: &rpc.Principal{Consumer: "shop", Claims: map[string]any{"org": map[string]any{"id": 7.0}}},
		}
		if mod != nil {
			mod(c)
		}
		return c
	}
	six := func(a string) func(*rpc.Call) {
		return func(c *rpc.Call) { c.Peer.Addr = netip.AddrPortFrom(netip.MustParseAddr(a), 1) }
	}
	anonymous := func(c *rpc.Call) { c.Principal, c.Header = nil, nil }
	for _, tc := range []struct {
		key        string
		a, b       func(*rpc.Call)
		none, same bool
	}{
		{"consumer", nil, func(c *rpc.Call) { c.Peer.Addr = netip.AddrPort{} }, false, true},
		{"consumer", nil, func(c *rpc.Call) { c.Principal.Consumer = "kiosk" }, false, false},
		{"consumer", anonymous, anonymous, true, true},
		{"ip", nil, func(c *rpc.Call) { c.Peer.Addr = netip.MustParseAddrPort("[::ffff:192.0.2.7]:2000") }, false, true},
		{"ip", nil, func(c *rpc.Call) { c.Peer.Addr = netip.MustParseAddrPort("192.0.2.8:1000") }, false, false},
		{"ip", six("2001:db8::1"), six("2001:db8::2"), false, true},
		{"ip", six("2001:db8::1"), six("2001:db8:0:1::1"), false, false},
		{"ip", func(c *rpc.Call) { c.Peer = rpc.Peer{} }, func(c *rpc.Call) { c.Peer = rpc.Peer{} }, true, true},
		{"header:x-user", nil, func(c *rpc.Call) { c.Header["x-user"] = []string{"ann"} }, false, true},
		{"header:x-user", nil, func(c *rpc.Call) { c.Header["x-user"] = []string{"bob"} }, false, false},
		{"header:x-user", anonymous, anonymous, true, true},
		{"cookie:session", nil, func(c *rpc.Call) { c.Header["cookie"] = []string{"z=1;session=s 1"} }, false, true},
		{"cookie:session", nil, func(c *rpc.Call) { c.Header["cookie"] = []string{"session=s 2"} }, false, false},
		{"cookie:other", nil, nil, false, true},
		{"cookie:session", nil, func(c *rpc.Call) { c.Header["cookie"] = []string{`session="; session=`, "session=s 1"} }, false, true}, // empty ones are none
		{"cookie:Session", nil, nil, true, true},
		{"claim:org.id", nil, func(c *rpc.Call) { c.Principal.Claims["org"] = map[string]any{"id": "7"} }, false, true},
		{"claim:org.id", nil, func(c *rpc.Call) { c.Principal.Claims["org"] = map[string]any{"id": "8"} }, false, false},
		{"claim:org", anonymous, anonymous, true, true},
	} {
		k, err := ParseKey(tc.key)
		if err != nil {
			t.Fatal(err)
		}
		h1, ok1 := k.of(call(tc.a))
		h2, ok2 := k.of(call(tc.b))
		if ok1 == tc.none || ok1 != ok2 || (h1 == h2) != tc.same {
			t.Errorf("%s: %v %v, equal: %v; want a key: %v, equal: %v", tc.key, ok1, ok2, h1 == h2, !tc.none, tc.same)
		}
	}
	// The first key that a call has counts.
	header, consumer := Key{byHeader, "x-user"}, Key{kind: byConsumer}
	s := &split{sticky: []Key{header, consumer}}
	want, _ := consumer.of(call(nil))
	if got := s.key(call(func(c *rpc.Call) { c.Header = nil })); got != want {
		t.Error("a call without the first key does not go by the second")
	}
	if a, b := s.key(call(anonymous)), s.key(call(anonymous)); a == b {
		t.Error("calls without a key are not spread at random")
	}
}

func TestParseKey(t *testing.T) {
	for _, s := range []string{"", "user", "header:", "header:X-User", "cookie:", "claim:", "header", "ip:4", "consumer:x"} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("ParseKey(%q) = %v", s, k)
		}
	}
}

// FuzzCookie: what net/http finds is found, and nothing panics.
func FuzzCookie(f *testing.F) {
	for _, s := range []string{"a=1", `a="1"; b=2`, "b=2;a=1", ";;=;a", "a=1=2", " a =1", "a", `a="`, `a=";a=0`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got := cookie(metadata.MD{"cookie": {line}}, "a")
		r := http.Request{Header: http.Header{"Cookie": {line}}}
		all := r.CookiesNamed("a")
		if len(all) == 1 && len(all[0].Value) > 0 && got == "" {
			t.Errorf("%q: net/http finds %q, we find nothing", line, all[0].Value)
		}
	})
}

func TestRoutes(t *testing.T) {
	var went string
	to := func(name string) rpc.Handler {
		return func(context.Context, *rpc.Call) error {
			went = name
			return nil
		}
	}
	h := New(Config{
		Routes: []Route{
			{[]Condition{{"x-version", Exact, "v2"}, {"x-beta", Present, ""}}, to("both")},
			{[]Condition{{"x-version", Exact, "v2"}}, to("exact")},
			{[]Condition{{"x-version", Prefix, "v3."}}, to("prefix")},
			{[]Condition{{"x-user", Absent, ""}}, to("absent")},
		},
		Split: []Target{{"split", 1, to("split")}},
	})
	for _, tc := range []struct {
		md   metadata.MD
		want string
	}{
		{metadata.MD{"x-version": {"v2"}, "x-beta": {""}}, "both"},
		{metadata.MD{"x-version": {"v2"}}, "exact"},
		{metadata.MD{"x-version": {"v1", "v2"}}, "exact"},
		{metadata.MD{"x-version": {"v3.1"}}, "prefix"},
		{metadata.MD{"x-version": {"v3"}, "x-user": {"u"}}, "split"},
		{metadata.MD{"x-version": {"v22"}}, "absent"},
		{nil, "absent"},
		{metadata.MD{"x-beta": {"1"}, "x-user": {"u"}}, "split"},
	} {
		if err := h(t.Context(), &rpc.Call{Header: tc.md}); err != nil || went != tc.want {
			t.Errorf("%v went to %s (%v), want %s", tc.md, went, err, tc.want)
		}
	}
}

// TestNothing has no handler around that which nothing is asked of.
func TestNothing(t *testing.T) {
	called := false
	h := New(Config{Otherwise: func(context.Context, *rpc.Call) error { called = true; return nil }})
	if n := testing.AllocsPerRun(10, func() { _ = h(t.Context(), nil) }); n != 0 || !called {
		t.Errorf("%v allocations, called: %v", n, called)
	}
	if Faults(nil) != nil || Faults([]Fault{{Share: 0, Delay: 1}, {Share: 1}}) != nil {
		t.Error("faults that never happen have a middleware")
	}
	m := NewMirrors()
	defer m.Close()
	if m.Middleware(Mirror{Cluster: "a", Share: 0}) != nil {
		t.Error("a mirror of nothing has a middleware")
	}
}

func TestSplitAllocations(t *testing.T) {
	s := shares("stable", 95, "canary", 5)
	s.sticky = []Key{{byCookie, "session"}, {byHeader, "x-user"}, {kind: byConsumer}, {kind: byIP}}
	for _, c := range []*rpc.Call{
		{Header: metadata.MD{"cookie": {"session=1"}}},
		{Header: metadata.MD{"x-user": {"ann"}}},
		{Principal: &rpc.Principal{Consumer: "shop"}},
		{Peer: rpc.Peer{Addr: netip.MustParseAddrPort("192.0.2.7:1000")}},
		{},
	} {
		if n := testing.AllocsPerRun(100, func() { _ = s.handle(t.Context(), c) }); n != 0 {
			t.Errorf("%v allocations for %v", n, c)
		}
	}
}

// BenchmarkSplit chooses one of two targets by a header.
func BenchmarkSplit(b *testing.B) {
	s := shares("stable", 95, "canary", 5)
	s.sticky = []Key{{byHeader, "x-user"}}
	c := &rpc.Call{Header: metadata.MD{"x-user": {"customers/1234567"}}}
	b.ReportAllocs()
	for b.Loop() {
		_ = s.handle(b.Context(), c)
	}
}
