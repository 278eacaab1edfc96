package limit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseAmount(t *testing.T) {
	for _, tc := range []struct {
		kind Kind
		in   string
		want Amount
	}{
		{Rate, "100/m", Amount{Count: 100, Period: time.Minute}},
		{Rate, "5/10s", Amount{Count: 5, Period: 10 * time.Second}},
		{Rate, "1/24h", Amount{Count: 1, Period: Day}},
		{Rate, "1000000/s", Amount{Count: 1e6, Period: time.Second}},
		{Quota, "7/day", Amount{Count: 7, Period: Day}},
		{Quota, "7/month", Amount{Count: 7, Period: Month}},
		{Concurrent, "20", Amount{Count: 20}},
		{Rate, "", Amount{}},
		{Rate, "100", Amount{}},
		{Rate, "0/s", Amount{}},
		{Rate, "-1/s", Amount{}},
		{Rate, "1000001/s", Amount{}},
		{Rate, "1/25h", Amount{}},
		{Rate, "1/s/s", Amount{}},
		{Rate, "1/-1s", Amount{}},
		{Quota, "7/week", Amount{}},
		{Quota, "0/day", Amount{}},
		{Concurrent, "20/s", Amount{}},
		{Concurrent, "0", Amount{}},
		{Concurrent, "9999999999", Amount{}},
	} {
		got, err := ParseAmount(tc.kind, tc.in)
		if got != tc.want || (err == nil) != (tc.want != Amount{}) {
			t.Errorf("ParseAmount(%d, %q) = %+v, %v; want %+v", tc.kind, tc.in, got, err, tc.want)
		}
	}
}

func FuzzParseAmount(f *testing.F) {
	for _, s := range []string{"100/m", "5/10s", "1000/day", "20", "9223372036854775807/ns", "1/2562047h"} {
		f.Add(uint8(0), s)
		f.Add(uint8(1), s)
	}
	f.Fuzz(func(t *testing.T, kind uint8, s string) {
		a, err := ParseAmount(Kind(kind%3), s)
		if err == nil && (a.Count < 1 || a.Period < 0) {
			t.Errorf("ParseAmount(%q) = %+v", s, a)
		}
	})
}

// exact is the limit in whole numbers: a bucket that holds burst·period, to which a call adds period and each µs takes count.
type exact struct {
	count, period, burst int64 // period in µs
	level, at            int64
}

// take also tells how far the call was from the edge, in µs.
func (e *exact) take(now, cost int64) (ok bool, edge float64) {
	e.level = max(0, e.level-(now-e.at)*e.count)
	e.at = now
	over := e.level + cost*e.period - e.burst*e.period
	edge = float64(over) / float64(e.count)
	if over <= 0 {
		e.level += cost * e.period
		return true, edge
	}
	return false, edge
}

// takers are the implementations that must agree: take(now, cost) in µs. Redis is among them if a call uses up a minute or more.
func takers(t *testing.T, a Amount) map[string]func(now, cost int64) bool {
	t.Helper()
	l := New(Config{Name: "test", Kind: Rate, Amount: a})
	var tat float64
	all := map[string]func(now, cost int64) bool{"Go": func(now, cost int64) bool {
		next, wait := gcra(tat, float64(now), l.def.cost*float64(cost), l.def.tolerance)
		if wait >= slack {
			return false
		}
		tat = next
		return true
	}}
	if a.Period < time.Duration(a.Count)*time.Minute {
		return all // Redis would let keys go, by its own clock, under a test that has to wait
	}
	r := NewRedis(RedisConfig{Addresses: []string{process.StartRedis(t).Addr}, Prefix: "t:", Timeout: 10 * time.Second}, slog.New(slog.DiscardHandler))
	t.Cleanup(r.Close)
	awaitRedis(t, r)
	all["Lua"] = func(now, cost int64) bool {
		v, err := r.run(t.Context(), *r.client.Load(), l, l.def, []byte("k"), cost, strconv.FormatInt(now, 10))
		if err != nil {
			t.Fatal(err)
		}
		return v.wait == 0
	}
	return all
}

// TestModel has the arithmetic here and in Redis decide as exact does, for random calls. Where a call is within a µs of the
// edge rounding may decide; then exact follows.
func TestModel(t *testing.T) {
	for _, a := range []Amount{
		{Count: 10, Period: time.Second, Burst: 10},
		{Count: 3, Period: time.Second, Burst: 1},
		{Count: 7, Period: time.Minute, Burst: 30},
		{Count: 300_000, Period: time.Hour, Burst: 50},
		{Count: 10, Period: time.Hour, Burst: 10},
		{Count: 3, Period: time.Hour, Burst: 1},
		{Count: 7, Period: time.Hour, Burst: 30},
		{Count: 50, Period: time.Hour, Burst: 50},
		{Count: 1, Period: time.Hour, Burst: 2},
	} {
		t.Run(fmt.Sprint(a), func(t *testing.T) {
			for name, take := range takers(t, a) {
				rng := rand.New(rand.NewPCG(1, 2))
				// Redis lets keys go by its own clock: not before a call would find them out of date.
				now := time.Since(epoch()).Microseconds()
				e := exact{count: a.Count, period: a.Period.Microseconds(), burst: a.Burst, at: now}
				allowed := 0
				for i := range 1000 {
					now += rng.Int64N(3*a.Period.Microseconds()/a.Count + 1)
					cost := 1 + rng.Int64N(min(3, a.Burst))
					want, edge := e.take(now, cost)
					got := take(now, cost)
					if got != want && edge > -1 && edge < 1 {
						if got {
							e.level += cost * e.period
						} else {
							e.level -= cost * e.period
						}
						continue
					}
					if got != want {
						t.Fatalf("%s: call %d is %v, want %v (%f µs from the edge)", name, i, got, want, edge)
					}
					if got {
						allowed++
					}
				}
				if allowed == 0 || allowed == 1000 {
					t.Errorf("%s: %d of 1000 allowed: this tests nothing", name, allowed)
				}
			}
		})
	}
}

func newCall(consumer, addr string) *rpc.Call {
	c := &rpc.Call{Method: descriptors.Opaque("/a.B/C"), Info: &rpc.Info{}, Stream: &headerOnly{}, Peer: rpc.Peer{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 1)}}
	if consumer != "" {
		c.Principal = &rpc.Principal{Consumer: consumer}
	}
	return c
}

func parts(t testing.TB, per ...string) []Part {
	t.Helper()
	var out []Part
	for _, s := range per {
		p, err := ParsePart(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func ok(context.Context, *rpc.Call) error { return nil }

// late are limits on calls of a method that nobody is authenticated for.
func late(limits []*Limiter, cost int64, fields Fields) rpc.Middleware {
	_, mw := Middleware(limits, cost, fields, false)
	return mw
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := late([]*Limiter{New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 10, Period: time.Second, Burst: 5}, Per: parts(t, "consumer")})}, 1, nil)(ok)
		admitted := func(consumer string, n int) (yes int, last error) {
			for range n {
				if err := h(t.Context(), newCall(consumer, "192.0.2.1")); err != nil {
					last = err
				} else {
					yes++
				}
			}
			return yes, last
		}
		n, err := admitted("a", 20)
		if n != 5 {
			t.Errorf("burst of 5 let %d through", n)
		}
		st := rpc.StatusOf(err)
		var reason string
		var wait time.Duration
		for _, d := range st.Details() {
			switch d := d.(type) {
			case *errdetails.ErrorInfo:
				reason = d.GetReason()
			case *errdetails.RetryInfo:
				wait = d.GetRetryDelay().AsDuration()
			}
		}
		if st.Code() != codes.ResourceExhausted || reason != "RATE_LIMITED" || wait != 100*time.Millisecond {
			t.Errorf("%v %s, retry in %v", st, reason, wait)
		}
		if md := rpc.HeaderOf(err); md.Get("retry-after")[0] != "1" || md.Get("ratelimit")[0] != `"r";r=0;t=1` || md.Get("ratelimit-policy")[0] != `"r";q=10;w=1` {
			t.Errorf("headers %v", md)
		}
		if n, _ := admitted("b", 20); n != 5 {
			t.Errorf("another consumer got %d through", n)
		}
		time.Sleep(time.Second)
		if n, _ := admitted("a", 20); n != 5 {
			t.Errorf("after a second %d got through", n)
		}
		total := 0
		for range 50 {
			time.Sleep(20 * time.Millisecond)
			n, _ := admitted("a", 5)
			total += n
		}
		if total != 10 {
			t.Errorf("%d in a second of trying, want 10", total)
		}
	})
}

func TestQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at midnight
		for _, tc := range []struct {
			period time.Duration
			days   int
		}{{Month, 31}, {Day, 1}} { // from 1 January
			period, days := tc.period, tc.days
			h := late([]*Limiter{New(Config{Name: "q", Kind: Quota, Amount: Amount{Count: 3, Period: period}})}, 1, nil)(ok)
			for day := range days {
				n := 0
				for range 5 {
					if h(t.Context(), newCall("", "192.0.2.1")) == nil {
						n++
					}
				}
				if want := map[bool]int{true: 3}[day == 0]; n != want {
					t.Errorf("%v, day %d: %d calls, want %d", period, day, n, want)
				}
				time.Sleep(Day)
			}
			if h(t.Context(), newCall("", "192.0.2.1")) != nil {
				t.Errorf("nothing left after %v", period)
			}
		}
	})
}

// TestWindow has quotas go by the calendar of UTC, whatever the length of the month.
func TestWindow(t *testing.T) {
	for _, tc := range []struct {
		now    string
		period time.Duration
		end    string
	}{
		{"2026-01-01T00:00:00Z", Day, "2026-01-02T00:00:00Z"},
		{"2026-12-31T23:59:59.999999Z", Day, "2027-01-01T00:00:00Z"},
		{"2028-02-28T12:00:00Z", Day, "2028-02-29T00:00:00Z"},
		{"2026-02-01T00:00:00Z", Month, "2026-03-01T00:00:00Z"},
		{"2028-02-29T23:59:59Z", Month, "2028-03-01T00:00:00Z"},
		{"2026-04-30T23:59:59Z", Month, "2026-05-01T00:00:00Z"},
		{"2026-12-01T00:00:00Z", Month, "2027-01-01T00:00:00Z"},
	} {
		now, err := time.Parse(time.RFC3339Nano, tc.now)
		if err != nil {
			t.Fatal(err)
		}
		end := epoch().Add(time.Duration(window(float64(now.Sub(epoch()).Microseconds()), tc.period)) * time.Microsecond)
		if got := end.Format(time.RFC3339Nano); got != tc.end {
			t.Errorf("%s, %v: the window ends at %s, want %s", tc.now, tc.period, got, tc.end)
		}
	}
}

// TestWallClock: the wall clock may be set after the start, and days are those that it says then. They were those of the start, in
// Redis too, where others counted in theirs.
func TestWallClock(t *testing.T) {
	cfg := Config{Name: "q", Kind: Quota, Amount: Amount{Count: 3, Period: Day}}
	synctest.Test(t, func(t *testing.T) { // begins at midnight
		l := New(cfg)
		l.clock.origin = l.clock.origin.Add(-Day / 2) // what it is when the clock was half a day behind at the start
		if v, err := l.take(t.Context(), newCall("", "192.0.2.1"), request{}, 1); err != nil || v.reset != Day {
			t.Errorf("the day ends in %v, %v", v.reset, err)
		}
	})
	addr := process.StartRedis(t).Addr
	for i := range 2 {
		r := NewRedis(RedisConfig{Addresses: []string{addr}, Prefix: "t:", Timeout: 10 * time.Second}, slog.New(slog.DiscardHandler))
		defer r.Close()
		awaitRedis(t, r)
		r.clock.origin = r.clock.origin.Add(-Day * time.Duration(i))
		cfg.Redis = r
		if v, err := New(cfg).take(t.Context(), newCall("", "192.0.2.1"), request{}, 1); err != nil || v.remaining != int64(2-i) {
			t.Errorf("transom %d: %d left, %v", i, v.remaining, err)
		}
	}
	// What was counted in a time that is not any more, is not.
	at := func(year int) float64 {
		return float64(time.Date(year, 3, 9, 12, 0, 0, 0, time.UTC).Sub(epoch()).Microseconds())
	}
	for _, period := range []time.Duration{Day, Month} {
		p := &plan{Amount: Amount{Count: 1, Period: period}}
		u, _ := used{}.add(at(2070), window(at(2070), period), 1, p)
		u, ok := u.add(at(2026), window(at(2026), period), 1, p)
		if !ok || u.end != window(at(2026), period) {
			t.Errorf("after the clock was set back: %+v, %v", u, ok)
		}
		other := Day + Month - period
		if _, ok := u.add(at(2026), window(at(2026), other), 1, &plan{Amount: Amount{Count: 1, Period: other}}); ok {
			t.Error("a caller of another plan finds nothing used")
		}
	}
}

func TestConcurrent(t *testing.T) {
	l := New(Config{Name: "c", Kind: Concurrent, Amount: Amount{Count: 2}, Per: parts(t, "header:x-key")})
	enter, leave := make(chan struct{}), make(chan struct{})
	h := late([]*Limiter{l}, 1, nil)(func(_ context.Context, call *rpc.Call) error {
		call.SetHeader("x-key", "changed by a policy further in")
		enter <- struct{}{}
		<-leave
		return nil
	})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { _ = h(t.Context(), newCall("a", "192.0.2.1")) })
		<-enter
	}
	if err := h(t.Context(), newCall("b", "192.0.2.1")); rpc.StatusOf(err).Code() != codes.ResourceExhausted {
		t.Errorf("third call: %v", err)
	}
	close(leave)
	wg.Wait()
	if n := l.running.len(); n != 0 {
		t.Errorf("%d keys left when all calls have ended", n)
	}
}

// TestGiveBack has a call that the second limit refuses count against neither.
func TestGiveBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := New(Config{Name: "all", Kind: Rate, Amount: Amount{Count: 10, Period: time.Hour}})
		day := New(Config{Name: "day", Kind: Quota, Amount: Amount{Count: 10, Period: Day}})
		each := New(Config{Name: "each", Kind: Rate, Amount: Amount{Count: 1, Period: time.Hour}, Per: parts(t, "consumer")})
		h := late([]*Limiter{all, day, each}, 1, nil)(ok)
		for range 50 {
			_ = h(t.Context(), newCall("greedy", "192.0.2.1"))
		}
		n := 0
		for i := range 20 {
			if h(t.Context(), newCall(fmt.Sprint("c", i), "192.0.2.1")) == nil {
				n++
			}
		}
		if n != 9 {
			t.Errorf("%d others got through, want the 9 that the greedy one left", n)
		}
	})
}

func TestKeys(t *testing.T) {
	call := func(fn func(*rpc.Call)) *rpc.Call {
		c := newCall("a", "2001:db8::1")
		c.Header = metadata.MD{"x-one": {"1"}}
		c.Principal.Claims = map[string]any{"org": map[string]any{"id": 7.0}}
		fn(c)
		return c
	}
	nothing := func(*rpc.Call) {}
	for _, tc := range []struct {
		name string
		per  []string
		fn   func(*rpc.Call)
		same bool
	}{
		{"consumer", []string{"consumer"}, func(c *rpc.Call) { c.Principal.Consumer = "b" }, false},
		{"consumer, other address", []string{"consumer"}, func(c *rpc.Call) { c.Peer.Addr = netip.MustParseAddrPort("192.0.2.7:1") }, true},
		{"same /64", []string{"ip"}, func(c *rpc.Call) { c.Peer.Addr = netip.MustParseAddrPort("[2001:db8::ffff]:9") }, true},
		{"other /64", []string{"ip"}, func(c *rpc.Call) { c.Peer.Addr = netip.MustParseAddrPort("[2001:db8:0:1::1]:9") }, false},
		{"header", []string{"header:x-one"}, func(c *rpc.Call) { c.Header["x-one"] = []string{"2"} }, false},
		{"header split", []string{"header:x-one"}, func(c *rpc.Call) { c.Header["x-one"] = []string{"1", ""} }, false},
		{"claim", []string{"claim:org.id"}, func(c *rpc.Call) { c.Principal.Claims = map[string]any{"org": map[string]any{"id": 8.0}} }, false},
		{"method", []string{"method"}, func(c *rpc.Call) { c.Method = descriptors.Opaque("/a.B/D") }, false},
		{"everybody", nil, func(c *rpc.Call) { *c = *newCall("z", "192.0.2.9") }, true},
		{"anonymous is no consumer", []string{"consumer"}, func(c *rpc.Call) { c.Principal = nil }, false},
		{"both", []string{"consumer", "header:x-one"}, func(c *rpc.Call) { c.Header["x-one"] = []string{"2"} }, false},
	} {
		l := New(Config{Name: "k", Per: parts(t, tc.per...), Amount: Amount{Count: 1, Period: time.Second}})
		a, b := string(l.key(nil, call(nothing), request{})), string(l.key(nil, call(tc.fn), request{}))
		if (a == b) != tc.same {
			t.Errorf("%s: keys %q and %q", tc.name, a, b)
		}
	}
	for _, bad := range []string{"", "consumer:x", "header:", "header:X-Up", "claim:", "field:"} {
		if _, err := ParsePart(bad); err == nil {
			t.Errorf("ParsePart(%q) is taken", bad)
		}
	}
}

// TestLongKeys has values of any length make keys of a bounded one, and different ones different keys.
func TestLongKeys(t *testing.T) {
	l := New(Config{Name: "k", Per: parts(t, "consumer"), Amount: Amount{Count: 1, Period: time.Second}})
	seen := map[string]int{}
	for _, n := range []int{0, 1, 127, 128, 129, 1 << 20, 1<<20 + 1} {
		for _, end := range []string{"a", "b"} {
			key := l.key(nil, newCall(strings.Repeat("x", n)+end, "192.0.2.1"), request{})
			if len(key) > 200 {
				t.Errorf("the key of %d bytes has %d", n, len(key))
			}
			seen[string(key)]++
		}
	}
	if len(seen) != 14 {
		t.Errorf("%d keys for 14 values", len(seen))
	}
}

// fieldLimits are limits by fields of bank.v1.Accounts.Transfer's or Deposit's request, and the middleware of them.
func fieldLimits(t *testing.T, method string, limits ...*Limiter) (*descriptors.Method, rpc.Middleware) {
	t.Helper()
	svc := bankv1.File_bank_v1_bank_proto.Services().ByName("Accounts")
	md := svc.Methods().ByName(protoreflect.Name(method))
	m := &descriptors.Method{FullPath: "/bank.v1.Accounts/" + method, Name: md.FullName(), Desc: md, ClientStreams: md.IsStreamingClient()}
	fields := Fields{}
	for _, l := range limits {
		for _, p := range l.cfg.Per {
			path, err := rpc.ParseFieldPath(md.Input(), p.name)
			if err != nil {
				t.Fatal(err)
			}
			fields[p.name] = path
		}
	}
	return m, late(limits, 1, fields)
}

// consume takes all messages of a call, as backends do.
func consume(ctx context.Context, call *rpc.Call) error {
	for {
		m, err := call.Stream.Recv(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		m.Release()
	}
}

func wire(t *testing.T, m proto.Message) rpc.Message {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return rpc.NewMessage(b)
}

// TestField counts calls of every kind by a field of the first message.
func TestField(t *testing.T) {
	deposit := func(name, currency string) *bankv1.DepositRequest {
		m := &bankv1.DepositRequest{Name: name}
		if currency != "" {
			m.Amount = &bankv1.Money{Currency: currency}
		}
		return m
	}
	for _, kind := range []Config{
		{Kind: Rate, Amount: Amount{Count: 1, Period: time.Hour}},
		{Kind: Quota, Amount: Amount{Count: 1, Period: Day}},
	} {
		kind.Name, kind.Per = "f", parts(t, "field:amount.currency")
		m, mw := fieldLimits(t, "Deposit", New(kind))
		h := mw(consume)
		for i, tc := range []struct {
			msgs []rpc.Message
			want codes.Code
		}{
			{[]rpc.Message{wire(t, deposit("1", "EUR")), wire(t, deposit("1", "USD"))}, codes.OK},
			{[]rpc.Message{wire(t, deposit("2", "EUR"))}, codes.ResourceExhausted},
			{[]rpc.Message{wire(t, deposit("2", "USD"))}, codes.OK}, // only the first message of a call counts
			{nil, codes.OK}, // no message, and no field: one key
			{[]rpc.Message{wire(t, deposit("3", ""))}, codes.ResourceExhausted},
			{[]rpc.Message{rpc.NewMessage([]byte{0xff})}, codes.InvalidArgument},
			{[]rpc.Message{wire(t, deposit("4", strings.Repeat("X", 1000)))}, codes.OK},
		} {
			if _, err := rpc.Local(t.Context(), h, m, nil, tc.msgs...); rpc.StatusOf(err).Code() != tc.want {
				t.Errorf("%s, call %d: %v, want %v", reasons[kind.Kind], i, err, tc.want)
			}
		}
	}
}

// TestFieldOfMessages counts each message by its own field.
func TestFieldOfMessages(t *testing.T) {
	m, mw := fieldLimits(t, "Deposit", New(Config{Name: "f", Kind: Rate, Amount: Amount{Count: 2, Period: time.Hour}, Per: parts(t, "field:name"), Messages: true}))
	call := func(names ...string) codes.Code {
		var msgs []rpc.Message
		for _, n := range names {
			msgs = append(msgs, wire(t, &bankv1.DepositRequest{Name: n}))
		}
		_, err := rpc.Local(t.Context(), mw(consume), m, nil, msgs...)
		return rpc.StatusOf(err).Code()
	}
	if got := call("a", "b", "a", "b"); got != codes.OK {
		t.Errorf("two of each: %v", got)
	}
	if got := call("c", "b"); got != codes.ResourceExhausted {
		t.Errorf("a third: %v", got)
	}
	if _, err := rpc.Local(t.Context(), mw(consume), m, nil, rpc.NewMessage([]byte{0xff})); rpc.StatusOf(err).Code() != codes.InvalidArgument {
		t.Errorf("no message of the type: %v", err)
	}
}

// TestFieldOfRunning counts calls at a time by a field.
func TestFieldOfRunning(t *testing.T) {
	m, mw := fieldLimits(t, "Transfer", New(Config{Name: "f", Kind: Concurrent, Amount: Amount{Count: 1}, Per: parts(t, "field:name")}))
	transfer := func(h rpc.Handler, name string) codes.Code {
		_, err := rpc.Local(t.Context(), h, m, nil, wire(t, &bankv1.TransferRequest{Name: name}))
		return rpc.StatusOf(err).Code()
	}
	var same, other codes.Code
	outer := transfer(mw(func(context.Context, *rpc.Call) error {
		same, other = transfer(mw(consume), "a"), transfer(mw(consume), "b")
		return nil
	}), "a")
	if again := transfer(mw(consume), "a"); outer != codes.OK || same != codes.ResourceExhausted || other != codes.OK || again != codes.OK {
		t.Errorf("first %v, during it the same %v, another %v, after it %v", outer, same, other, again)
	}
}

// TestParallelBurst has many goroutines at once try to get more than the burst.
func TestParallelBurst(t *testing.T) {
	h := late([]*Limiter{New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 100, Period: time.Hour}})}, 1, nil)(ok)
	var yes atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 100 {
				if h(t.Context(), newCall("a", "192.0.2.1")) == nil {
					yes.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := yes.Load(); n != 100 {
		t.Errorf("%d of 1600 got through, want 100", n)
	}
}

// TestBounded floods a table with keys: those of a quota were worth the same all, and the one at its limit was forgotten as any.
func TestBounded(t *testing.T) {
	for _, cfg := range []Config{
		{Name: "r", Kind: Rate, Amount: Amount{Count: 1, Period: time.Hour, Burst: 1000}},
		{Name: "q", Kind: Quota, Amount: Amount{Count: 1000, Period: Month}},
	} {
		t.Run(cfg.Kind.String(), func(t *testing.T) {
			cfg.Per = parts(t, "header:k")
			l := New(cfg)
			victim := newCall("", "192.0.2.1")
			victim.SetHeader("k", "victim")
			for range 1000 { // at its limit
				if v, _ := l.take(t.Context(), victim, request{}, 1); v.wait != 0 {
					t.Fatal("refused too early")
				}
			}
			c := newCall("", "192.0.2.1")
			for i := range maxKeys + maxKeys/4 {
				c.SetHeader("k", strconv.Itoa(i))
				_, _ = l.take(t.Context(), c, request{}, 1)
			}
			keys := 0
			if cfg.Kind == Quota {
				keys = l.quotas.len()
			} else {
				keys = l.rates.len()
			}
			if keys > maxKeys {
				t.Errorf("%d keys, want at most %d", keys, maxKeys)
			}
			if v, _ := l.take(t.Context(), victim, request{}, 1); v.wait == 0 {
				t.Error("a flood of keys made the table forget one at its limit")
			}
		})
	}
}

// awaitRedis waits until r is connected.
func awaitRedis(t testing.TB, r *Redis) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for r.client.Load() == nil {
		select {
		case <-deadline.C:
			t.Fatal("no connection to Redis")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestRedisQuota counts in Redis, gives back, and goes over windows.
func TestRedisQuota(t *testing.T) {
	r := NewRedis(RedisConfig{Addresses: []string{process.StartRedis(t).Addr}, Prefix: "t:", Timeout: 10 * time.Second}, slog.New(slog.DiscardHandler))
	t.Cleanup(r.Close)
	awaitRedis(t, r)
	one := New(Config{Name: "q", Kind: Quota, Amount: Amount{Count: 3, Period: Day}, Redis: r})
	two := New(Config{Name: "q", Kind: Quota, Amount: Amount{Count: 3, Period: Day}, Redis: r})
	c := newCall("a", "192.0.2.1")
	for i, tc := range []struct {
		l    *Limiter
		cost int64
		ok   bool
		left int64
	}{{one, 1, true, 2}, {two, 1, true, 1}, {one, 2, false, 1}, {two, 1, true, 0}, {one, 1, false, 0}, {one, -1, true, 1}, {two, 1, true, 0}} {
		v, err := tc.l.take(t.Context(), c, request{}, tc.cost)
		if err != nil || (v.wait == 0) != tc.ok || v.remaining != tc.left {
			t.Errorf("step %d: wait %v, %d left, %v; want ok %v, %d left", i, v.wait, v.remaining, err, tc.ok, tc.left)
		}
	}
	if c.Info.Notes.Get("limit_shared") != "" {
		t.Error("a decision was made without Redis")
	}
}

// TestAwait: after it nothing is decided without a Redis that can be reached, and a Redis that cannot be, or says nothing, is not waited
// for but as long as ctx lives.
func TestAwait(t *testing.T) {
	addr := process.StartRedis(t).Addr
	up := NewRedis(RedisConfig{Addresses: []string{addr}, Timeout: 10 * time.Second}, slog.New(slog.DiscardHandler))
	defer up.Close()
	awaitRedis(t, up) // the server listens
	r := NewRedis(RedisConfig{Addresses: []string{addr}, Prefix: "t:", Timeout: 10 * time.Second}, slog.New(slog.DiscardHandler))
	defer r.Close()
	r.Await(t.Context())
	l := New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 3, Period: time.Hour}, Redis: r})
	c := newCall("a", "192.0.2.1")
	if v, err := l.take(t.Context(), c, request{}, 1); err != nil || v.remaining != 2 || c.Info.Notes.Get("limit_shared") != "" {
		t.Errorf("the first decision: %v, %d left, %v", err, v.remaining, c.Info.Notes)
	}
	nobody := NewRedis(RedisConfig{Addresses: []string{"127.0.0.1:1"}, Timeout: time.Second}, slog.New(slog.DiscardHandler))
	defer nobody.Close()
	nobody.Await(t.Context())
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	quiet := NewRedis(RedisConfig{Addresses: []string{silent.Addr().String()}, Timeout: time.Second}, slog.New(slog.DiscardHandler))
	defer quiet.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	quiet.Await(ctx)
}

// TestRedisFailsText: what the log says of a Redis that does not answer in time is what becomes of calls.
func TestRedisFailsText(t *testing.T) {
	addr := process.StartRedis(t).Addr
	for closed, want := range map[bool]string{false: "limits are held here", true: "calls that it limits are refused"} {
		var log bytes.Buffer
		r := NewRedis(RedisConfig{Addresses: []string{addr}, Timeout: time.Nanosecond, FailClosed: closed}, slog.New(slog.NewTextHandler(&log, nil)))
		awaitRedis(t, r)
		l := New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 100, Period: time.Hour}, Redis: r})
		_, err := l.take(t.Context(), newCall("a", "192.0.2.1"), request{}, 1)
		r.Close()
		if (err != nil) != closed || !strings.Contains(log.String(), "Redis does not answer, "+want) {
			t.Errorf("fail_closed %v: %v, log %q", closed, err, log.String())
		}
	}
}

// TestRedisDown has no Redis: each process allows its share, or nothing.
func TestRedisDown(t *testing.T) {
	for _, closed := range []bool{false, true} {
		r := NewRedis(RedisConfig{Addresses: []string{"127.0.0.1:1"}, Timeout: 100 * time.Millisecond, Instances: 4, FailClosed: closed}, slog.New(slog.DiscardHandler))
		l := New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 100, Period: time.Hour}, Redis: r})
		h := late([]*Limiter{l}, 1, nil)(ok)
		n, alone := 0, 0
		var last error
		for range 200 {
			c := newCall("a", "192.0.2.1")
			if err := h(t.Context(), c); err == nil {
				n++
			} else {
				last = err
			}
			if c.Info.Notes.Get("limit_shared") == "no" {
				alone++
			}
		}
		want, wantAlone, code := 25, 200, codes.ResourceExhausted
		if closed {
			want, wantAlone, code = 0, 0, codes.Unavailable
		}
		if n != want || rpc.StatusOf(last).Code() != code || alone != wantAlone {
			t.Errorf("closed %v: %d through, then %v, %d decided alone; want %d, %v, %d", closed, n, last, alone, want, code, wantAlone)
		}
		r.Close()
	}
}

// TestRedisDownWeighted: calls that weigh more than this process's share are let through one by one; none ever was.
func TestRedisDownWeighted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			cfg  Config
			wait time.Duration
		}{
			{Config{Kind: Rate, Amount: Amount{Count: 10, Period: time.Second, Burst: 10}}, 2 * time.Second}, // 5 at 2.5 a second
			{Config{Kind: Quota, Amount: Amount{Count: 10, Period: Day}}, Day},
		} {
			tc.cfg.Name, tc.cfg.Redis = "r", &Redis{cfg: RedisConfig{Instances: 4}}
			l := New(tc.cfg)
			c := newCall("a", "192.0.2.1")
			for range 3 {
				if v, err := l.take(t.Context(), c, request{}, 5); err != nil || v.wait > 0 {
					t.Errorf("%v: %v, must wait %v", tc.cfg.Kind, err, v.wait)
				}
				if v, err := l.take(t.Context(), c, request{}, 1); err != nil || v.wait == 0 || v.wait > tc.wait {
					t.Errorf("%v: another one: %v, must wait %v", tc.cfg.Kind, err, v.wait)
				}
				if v, err := l.take(t.Context(), c, request{}, 5); err != nil || v.wait == 0 || v.wait > tc.wait {
					t.Errorf("%v: another of 5: %v, must wait %v", tc.cfg.Kind, err, v.wait)
				}
				time.Sleep(tc.wait)
			}
		}
	})
}

// TestRefusalTexts: a refusal says the same amount in words and in ratelimit-policy, counts what the limit counts, and has no Integer
// of more than 15 digits.
func TestRefusalTexts(t *testing.T) {
	down := &Redis{cfg: RedisConfig{Instances: 4}}
	for _, tc := range []struct {
		cfg                Config
		msg, state, policy string
	}{
		{
			Config{Kind: Rate, Amount: Amount{Count: 100, Period: time.Minute}, Redis: down},
			`rate limit "l": 25 calls per 1m0s are allowed`, `"l";r=0;t=60`, `"l";q=25;w=60`,
		},
		{
			Config{Kind: Quota, Amount: Amount{Count: 100, Period: Day}, Redis: down, Messages: true},
			`quota "l": 25 messages per day are allowed`, `"l";r=0;t=86400`, `"l";q=25;w=86400`,
		},
		{
			Config{Kind: Rate, Amount: Amount{Count: 100, Period: time.Minute, Burst: 25}, Messages: true},
			`rate limit "l": 100 messages per 1m0s are allowed`, `"l";r=0;t=15`, `"l";q=100;w=60`,
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			tc.cfg.Name = "l"
			l, c := New(tc.cfg), newCall("a", "192.0.2.1")
			if v, err := l.take(t.Context(), c, request{}, 25); err != nil || v.wait > 0 {
				t.Fatal(v, err)
			}
			v, _ := l.take(t.Context(), c, request{}, 1)
			err := l.refusal(c, v)
			md := rpc.HeaderOf(err)
			if got := rpc.StatusOf(err).Message(); got != tc.msg || md.Get("ratelimit")[0] != tc.state || md.Get("ratelimit-policy")[0] != tc.policy {
				t.Errorf("%q, %v; want %q, %s, %s", got, md, tc.msg, tc.state, tc.policy)
			}
		})
	}
	vast := New(Config{Name: "l", Kind: Quota, Amount: Amount{Count: math.MaxInt64, Period: Day}})
	v, _ := vast.take(t.Context(), newCall("a", "192.0.2.1"), request{}, 1)
	if got := string(vast.state(nil, v)) + " " + v.plan.policy[0]; !strings.HasPrefix(got, `"l";r=999999999999999;t=`) || !strings.HasSuffix(got, `"l";q=999999999999999;w=86400`) {
		t.Error(got)
	}
	// A burst that takes longer to be there again than a Duration can say.
	long := New(Config{Name: "l", Kind: Rate, Amount: Amount{Count: 1, Period: Day, Burst: math.MaxUint32}})
	v, _ = long.take(t.Context(), newCall("a", "192.0.2.1"), request{}, math.MaxUint32)
	if got := string(long.state(nil, v)); got != `"l";r=0;t=9000000000` {
		t.Error(got)
	}
}

// BenchmarkDecision is the whole of a decision: key, table, clock, arithmetic.
func BenchmarkDecision(b *testing.B) {
	l := New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 1e6, Period: time.Second, Burst: 1e12}, Per: parts(b, "consumer")}) // never over
	c := newCall("the-shop", "192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		_, _ = l.take(b.Context(), c, request{}, 1)
	}
}

// BenchmarkTimeRate compares a decision, the key's look-up included, with one of golang.org/x/time/rate, one limiter without
// a key. Both take turns in short batches, and the least of each counts, which other load on the machine hardly touches.
func BenchmarkTimeRate(b *testing.B) {
	const batch = 1000
	l := New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 1e6, Period: time.Second, Burst: 1e12}, Per: parts(b, "consumer")}) // never over
	c := newCall("the-shop", "192.0.2.1")
	reference := rate.NewLimiter(1e6, 1e12)
	ours, theirs := time.Hour, time.Hour
	ctx := b.Context()
	for b.Loop() {
		began := time.Now()
		for range batch {
			_, _ = l.take(ctx, c, request{}, 1)
		}
		between := time.Now()
		for range batch {
			reference.AllowN(time.Now(), 1)
		}
		ours, theirs = min(ours, between.Sub(began)), min(theirs, time.Since(between))
	}
	b.ReportMetric(float64(ours)/batch, "ns/decision")
	b.ReportMetric(float64(theirs)/batch, "ns/rate")
	b.ReportMetric(float64(ours)/float64(theirs), "ratio")
}

// TestAllocations gates the decision and the middleware.
func TestAllocations(t *testing.T) {
	l := New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 1e6, Period: time.Second, Burst: 1e6}, Per: parts(t, "consumer", "header:k")})
	c := newCall("the-shop", "192.0.2.1")
	c.SetHeader("k", "v")
	if n := testing.AllocsPerRun(1000, func() { _, _ = l.take(context.Background(), c, request{}, 1) }); n > 0 {
		t.Errorf("a decision makes %v allocations", n)
	}
	h := late([]*Limiter{l}, 1, nil)(func(_ context.Context, call *rpc.Call) error { return call.Stream.SendHeader(nil) })
	quiet := &headerOnly{}
	const most = 4 // what tells the client, its text, and the metadata with room for it
	if n := testing.AllocsPerRun(1000, func() {
		c.Stream = quiet
		if err := h(context.Background(), c); err != nil || len(quiet.md) != 2 {
			t.Fatal(err, quiet.md)
		}
	}); n > most {
		t.Errorf("a call within its limits makes %v allocations, want %d", n, most)
	}
}

// TestRestedText: what most calls are told is made beforehand, and is what would be made of the verdict then.
func TestRestedText(t *testing.T) {
	for _, rate := range []string{"1/s", "5/10s", "100/m", "1000000/s", "7/h", "3/1ms"} {
		amount, err := ParseAmount(Rate, rate)
		if err != nil {
			t.Fatal(err)
		}
		for _, burst := range []int64{0, 1, 3, 1000} {
			amount.Burst = burst
			l := New(Config{Name: "calls", Kind: Rate, Amount: amount, Plans: map[string]Amount{"gold": {Count: 9, Period: time.Minute}}, Redis: &Redis{cfg: RedisConfig{Instances: 3}}})
			for _, p := range []*plan{l.def, l.def.share, l.plans["gold"], l.plans["gold"].share} {
				v := l.local(p, []byte(fmt.Sprintf("%p", p)), 1)
				if want := string(l.state(nil, v)); v.wait > 0 || p.rested.text != want {
					t.Errorf("%s, burst %d: %q is ready, %q is so", rate, burst, p.rested.text, want)
				}
			}
		}
	}
}

// headerOnly is a Stream that keeps the response metadata.
type headerOnly struct {
	rpc.Stream
	md metadata.MD
}

func (h *headerOnly) SendHeader(md metadata.MD) error { h.md = md; return nil }

// teller is a Stream that tells of limits itself.
type teller struct {
	headerOnly
	state string
}

func (t *teller) RateLimit(state, _ string) { t.state = state }

// TestTwoGatesTell has something between the gates wrap the client's Stream, which tells of limits itself: what either gate says
// reaches the client.
func TestTwoGatesTell(t *testing.T) {
	rate := func(name, per string) *Limiter {
		return New(Config{Name: name, Kind: Rate, Amount: Amount{Count: 10, Period: time.Hour, Burst: 10}, Per: parts(t, per)})
	}
	early, late := Middleware([]*Limiter{rate("address", "ip"), rate("shop", "consumer")}, 1, nil, true)
	client := &teller{}
	c := newCall("the-shop", "192.0.2.1")
	c.Stream = client
	err := early(func(ctx context.Context, call *rpc.Call) error {
		call.Stream = struct{ rpc.Stream }{call.Stream}
		return late(func(_ context.Context, call *rpc.Call) error { return call.Stream.SendHeader(nil) })(ctx, call)
	})(t.Context(), c)
	if got := client.md.Get("ratelimit"); err != nil || client.state != "" || len(got) != 1 || !strings.HasPrefix(got[0], `"address";`) || !strings.Contains(got[0], `, "shop";`) {
		t.Errorf("told %q and %q, %v", client.state, got, err)
	}
}

// TestEmptyStreamTells: a stream that ends well without a message, and for which nothing else sends metadata, tells of limits too.
func TestEmptyStreamTells(t *testing.T) {
	cfg := Config{Name: "r", Kind: Rate, Amount: Amount{Count: 10, Period: time.Hour, Burst: 10}}
	running := cfg
	running.Kind, running.Amount = Concurrent, Amount{Count: 5}
	for name, limits := range map[string][]*Limiter{"of calls": {New(cfg)}, "of calls at a time too": {New(cfg), New(running)}} {
		_, h := Middleware(limits, 1, nil, false)
		client := &headerOnly{}
		c := newCall("shop", "192.0.2.1")
		c.Stream = client
		if err := h(func(context.Context, *rpc.Call) error { return nil })(t.Context(), c); err != nil || len(client.md["ratelimit"]) != 1 {
			t.Errorf("%s: told %v, %v", name, client.md, err)
		}
	}
}

// untold is a Stream that takes no header.
type untold struct{ rpc.Stream }

func (untold) SendHeader(metadata.MD) error { return rpc.ErrHeaderSent }

// TestUntold: a call that ended well became an error when its client could not be told what it has left.
func TestUntold(t *testing.T) {
	h := late([]*Limiter{New(Config{Name: "r", Kind: Rate, Amount: Amount{Count: 10, Period: time.Hour}})}, 1, nil)(func(context.Context, *rpc.Call) error { return nil })
	c := newCall("shop", "192.0.2.1")
	c.Stream = untold{}
	if err := h(t.Context(), c); err != nil {
		t.Error(err)
	}
}

// TestEarly: of limits on authenticated calls those by address alone stand before authentication.
func TestEarly(t *testing.T) {
	rate := func(per ...string) Config {
		return Config{Name: "r", Amount: Amount{Count: 5, Period: time.Hour}, Per: parts(t, per...)}
	}
	running, messages, plans := rate("ip"), rate("ip"), rate("ip")
	running.Kind, running.Amount = Concurrent, Amount{Count: 5}
	messages.Messages = true
	plans.Plans = map[string]Amount{"gold": {Count: 9, Period: time.Hour}}
	for _, tc := range []struct {
		name  string
		cfg   Config
		early bool
	}{
		{"ip", rate("ip"), true},
		{"ip and method", rate("method", "ip"), true},
		{"concurrent", running, true},
		{"everybody", rate(), false},
		{"method", rate("method"), false},
		{"consumer", rate("consumer"), false},
		{"ip and consumer", rate("ip", "consumer"), false},
		{"ip and header", rate("ip", "header:x-tenant"), false},
		{"ip and claim", rate("ip", "claim:org"), false},
		{"ip and field", rate("ip", "field:name"), false},
		{"messages", messages, false},
		{"plans", plans, false},
	} {
		early, late := Middleware([]*Limiter{New(tc.cfg)}, 1, nil, true)
		if (early != nil) != tc.early || (late != nil) == tc.early {
			t.Errorf("%s: early %v, late %v", tc.name, early != nil, late != nil)
		}
		if early, late := Middleware([]*Limiter{New(tc.cfg)}, 1, nil, false); early != nil || late == nil {
			t.Errorf("%s, nobody is authenticated: early %v, late %v", tc.name, early != nil, late != nil)
		}
	}
}
