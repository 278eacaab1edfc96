package cache_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/cmd/transom/demo/bank"
	"transom/descriptors"
	"transom/policy/cache"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func method(tb testing.TB, path string) *descriptors.Method {
	tb.Helper()
	set, err := descriptors.FromBytes("bank", bank.DescriptorSet())
	if err != nil {
		tb.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	m, ok := s.Method(path)
	if !ok {
		tb.Fatalf("no method %s", path)
	}
	return m
}

// backend counts its calls, and answers with their number.
type backend struct {
	calls  atomic.Int64
	header metadata.MD
	err    error
	source rpc.Source // of err
	delay  time.Duration
	gate   chan struct{} // each call waits for its end; nil for not at all
	mu     sync.Mutex    // guards seen
	seen   metadata.MD
}

func (b *backend) handle(ctx context.Context, call *rpc.Call) error {
	m, err := rpc.RecvOne(ctx, call.Stream)
	if err != nil {
		return err
	}
	m.Release()
	n := b.calls.Add(1)
	b.mu.Lock()
	b.seen = call.Header
	b.mu.Unlock()
	if b.delay > 0 {
		select {
		case <-time.After(b.delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if b.gate != nil {
		select {
		case <-b.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if b.err != nil {
		call.Info.Fail(b.source)
		return b.err
	}
	if err := call.Stream.SendHeader(b.header.Copy()); err != nil {
		return err
	}
	wire, err := proto.Marshal(&bankv1.Rate{Base: strconv.FormatInt(n, 10)})
	if err != nil {
		return err
	}
	return call.Stream.Send(ctx, rpc.NewMessage(wire))
}

// client makes calls through a cache.
type client struct {
	t       *testing.T
	m       *descriptors.Method
	h       rpc.Handler
	c       *cache.Cache
	backend *backend
}

func newClient(t *testing.T, cfg cache.Config) *client {
	t.Helper()
	c, err := cache.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	m := method(t, "/bank.v1.Rates/Get")
	mw, err := c.Middleware(m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{}
	return &client{t, m, mw(b.handle), c, b}
}

// do makes a call and returns the answer's number and the cache's word on it; the number is -1 after an error.
func (c *client) do(consumer string, header metadata.MD, req *bankv1.GetRateRequest) (int, string, error) {
	c.t.Helper()
	wire, err := proto.Marshal(req)
	if err != nil {
		c.t.Fatal(err)
	}
	h := func(ctx context.Context, call *rpc.Call) error {
		if consumer != "" {
			call.Principal = &rpc.Principal{Consumer: consumer}
			call.SetHeader("x-transom-consumer", consumer)
		}
		return c.h(ctx, call)
	}
	r, err := rpc.Local(c.t.Context(), h, c.m, header.Copy(), rpc.NewMessage(wire))
	if err != nil {
		return -1, r.Info.Notes.Get("cache"), err
	}
	var rate bankv1.Rate
	if err := proto.Unmarshal(r.Messages[0].Bytes(), &rate); err != nil {
		c.t.Fatal(err)
	}
	n, err := strconv.Atoi(rate.GetBase())
	if err != nil {
		c.t.Fatal(err)
	}
	return n, r.Info.Notes.Get("cache"), nil
}

func (c *client) want(what string, consumer string, header metadata.MD, req *bankv1.GetRateRequest, n int, note string) {
	c.t.Helper()
	if got, gotNote, err := c.do(consumer, header, req); got != n || gotNote != note {
		c.t.Errorf("%s: answer %d, %s (%v); want %d, %s", what, got, gotNote, err, n, note)
	}
}

var usd = &bankv1.GetRateRequest{Base: "EUR", Quote: "USD"}

func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, cache.Config{TTL: 10 * time.Second, StaleWhileRevalidate: 5 * time.Second, StaleIfError: time.Minute})
		c.want("first", "", nil, usd, 1, "miss")
		c.want("again", "", nil, usd, 1, "hit")
		c.want("another request", "", nil, &bankv1.GetRateRequest{Base: "EUR", Quote: "GBP"}, 2, "miss")
		time.Sleep(11 * time.Second)
		c.want("stale", "", nil, usd, 1, "stale")
		synctest.Wait()
		c.want("brought up to date", "", nil, usd, 3, "hit")
		time.Sleep(20 * time.Second)
		c.backend.err = status.Error(codes.Unavailable, "down")
		c.want("stale if error", "", nil, usd, 3, "stale")
		c.backend.err = status.Error(codes.NotFound, "gone")
		if _, _, err := c.do("", nil, usd); status.Code(err) != codes.NotFound {
			t.Errorf("an error that says something of the thing itself is not passed on: %v", err)
		}
		c.backend.err = nil
		time.Sleep(2 * time.Minute)
		before := int(c.backend.calls.Load())
		c.want("after all of it", "", nil, usd, before+1, "miss")
		c.backend.err = status.Error(codes.Internal, "broken")
		req := &bankv1.GetRateRequest{Base: "X"}
		_, _, _ = c.do("", nil, req)
		c.backend.err = nil
		c.want("an error is not kept", "", nil, req, before+3, "miss")
	})
}

// TestRefreshTimeout has an answer be brought up to date in as much time as a call of its method has.
func TestRefreshTimeout(t *testing.T) {
	for _, tc := range []struct{ timeout, want time.Duration }{{0, 15 * time.Second}, {time.Second, time.Second}, {time.Minute, time.Minute}} {
		t.Run(tc.timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, cache.Config{TTL: time.Second, StaleWhileRevalidate: time.Hour, Timeout: tc.timeout})
				c.want("first", "", nil, usd, 1, "miss")
				time.Sleep(time.Second)
				c.backend.delay = tc.want - time.Millisecond
				c.want("stale", "", nil, usd, 1, "stale")
				time.Sleep(tc.want)
				c.want("in time", "", nil, usd, 2, "hit")
				time.Sleep(time.Second)
				c.backend.delay = tc.want + time.Millisecond
				c.want("stale", "", nil, usd, 2, "stale")
				time.Sleep(tc.want + time.Second)
				c.want("too late", "", nil, usd, 2, "stale")
			})
		})
	}
}

// TestKeys is the cross-user probe, and the sweep of metadata that is no part of the key.
func TestKeys(t *testing.T) {
	c := newClient(t, cache.Config{TTL: time.Hour, Vary: []string{"accept-language"}})
	c.want("alice", "alice", nil, usd, 1, "miss")
	c.want("bob", "bob", nil, usd, 2, "miss")
	c.want("nobody", "", nil, usd, 3, "miss")
	c.want("alice again", "alice", nil, usd, 1, "hit")
	c.want("token", "", metadata.MD{"authorization": {"Bearer a"}}, usd, 4, "miss")
	c.want("other token", "", metadata.MD{"authorization": {"Bearer b"}}, usd, 5, "miss")
	c.want("cookie", "", metadata.MD{"cookie": {"s=1"}}, usd, 6, "miss")
	c.want("language", "alice", metadata.MD{"accept-language": {"de"}}, usd, 7, "miss")
	c.want("language again", "alice", metadata.MD{"accept-language": {"de"}}, usd, 7, "hit")
	c.want("groups", "alice", metadata.MD{"x-transom-groups": {"admin"}}, usd, 8, "miss")
	// What the key does not have, the backend does not see.
	c.c.Purge(cache.Selection{Method: "", Consumer: ""})
	c.want("poison", "alice", metadata.MD{"x-forwarded-host": {"evil.example"}, "x-anything": {"1"}, "traceparent": {"00-1"}}, usd, 9, "miss")
	if len(c.backend.seen["x-forwarded-host"])+len(c.backend.seen["x-anything"]) > 0 || len(c.backend.seen["traceparent"]) != 1 || len(c.backend.seen["x-transom-consumer"]) != 1 {
		t.Errorf("the backend sees %v", c.backend.seen)
	}
	c.want("after the poison", "alice", nil, usd, 9, "hit")
}

func TestShared(t *testing.T) {
	c := newClient(t, cache.Config{TTL: time.Hour, Shared: true})
	c.want("alice", "alice", metadata.MD{"authorization": {"Bearer a"}}, usd, 1, "miss")
	c.want("bob", "bob", nil, usd, 1, "hit")
	if len(c.backend.seen) > 0 {
		t.Errorf("the backend of a shared answer sees %v", c.backend.seen)
	}
}

// TestCanonical has one request written in two ways.
func TestCanonical(t *testing.T) {
	c := newClient(t, cache.Config{TTL: time.Hour})
	for i, wire := range []string{"\x0a\x03EUR\x12\x03USD", "\x12\x03USD\x0a\x03EUR", "\x12\x03GBP\x12\x03USD\x0a\x03EUR"} {
		r, err := rpc.Local(t.Context(), c.h, c.m, nil, rpc.NewMessage([]byte(wire)))
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{true: "miss", false: "hit"}[i == 0]; r.Info.Notes.Get("cache") != want {
			t.Errorf("%q: %s, want %s", wire, r.Info.Notes.Get("cache"), want)
		}
	}
	// Bytes that are no message go to the backend, which says so.
	r, err := rpc.Local(t.Context(), c.h, c.m, nil, rpc.NewMessage([]byte{0xff}))
	if err != nil || r.Info.Notes.Get("cache") != "bypass" {
		t.Errorf("%v, %v", r.Info.Notes, err)
	}
}

func TestBackendControls(t *testing.T) {
	for _, tc := range []struct {
		name   string
		header metadata.MD
		shared bool
		kept   time.Duration
	}{
		{"nothing", nil, false, time.Minute},
		{"no-store", metadata.MD{"cache-control": {"no-store"}}, false, 0},
		{"no-cache", metadata.MD{"cache-control": {"max-age=5, no-cache"}}, false, 0},
		{"private", metadata.MD{"cache-control": {"private"}}, false, time.Minute},
		{"private, shared", metadata.MD{"cache-control": {"private"}}, true, 0},
		{"max-age", metadata.MD{"cache-control": {"public, max-age=5"}}, false, 5 * time.Second},
		{"s-maxage", metadata.MD{"cache-control": {"s-maxage=7", "max-age=5"}}, false, 7 * time.Second},
		{"max-age=0", metadata.MD{"cache-control": {"max-age=0"}}, false, 0},
		{"max-age, negative", metadata.MD{"cache-control": {"max-age=-5"}}, false, 0},
		{"max-age, no number", metadata.MD{"cache-control": {"max-age=soon"}}, false, 0},
		{"age", metadata.MD{"age": {"50"}}, false, 10 * time.Second},
		{"age, max-age", metadata.MD{"age": {"2"}, "cache-control": {"max-age=5"}}, false, 3 * time.Second},
		{"age, several", metadata.MD{"age": {"2, 4", "3"}, "cache-control": {"max-age=5"}}, false, 3 * time.Second},
		{"age, all of it", metadata.MD{"age": {"5"}, "cache-control": {"max-age=5"}}, false, 0},
		{"age, very old", metadata.MD{"age": {"99999999999999999999"}}, false, 0},
		{"age, no number", metadata.MD{"age": {"old"}}, false, time.Minute},
		{"age, negative", metadata.MD{"age": {"-5"}}, false, time.Minute},
		{"expires", metadata.MD{"expires": {"Sat, 01 Jan 2000 00:00:05 GMT"}}, false, 5 * time.Second},
		{"expires, 0", metadata.MD{"expires": {"0"}}, false, 0},
		{"expires, past", metadata.MD{"expires": {"Fri, 31 Dec 1999 23:59:59 GMT"}}, false, 0},
		{"expires, max-age", metadata.MD{"expires": {"0"}, "cache-control": {"max-age=5"}}, false, 5 * time.Second},
		{"expires, public", metadata.MD{"expires": {"0"}, "cache-control": {"public"}}, false, 0},
		{"expires, age", metadata.MD{"expires": {"Sat, 01 Jan 2000 00:00:05 GMT"}, "age": {"2"}}, false, 3 * time.Second},
		{"expires, another clock", metadata.MD{"expires": {"Sat, 01 Jan 2000 01:00:05 GMT"}, "date": {"Sat, 01 Jan 2000 01:00:00 GMT"}}, false, 5 * time.Second},
		{"expires, an hour old", metadata.MD{"expires": {"Sat, 01 Jan 2000 00:00:05 GMT"}, "date": {"Fri, 31 Dec 1999 23:00:00 GMT"}, "age": {"3600"}}, false, 5 * time.Second},
		{"set-cookie", metadata.MD{"set-cookie": {"s=1"}}, false, 0},
		{"vary, listed", metadata.MD{"vary": {"Accept-Language"}}, false, time.Minute},
		{"vary, unlisted", metadata.MD{"vary": {"accept-language, x-other"}}, false, 0},
		{"vary *", metadata.MD{"vary": {"*"}}, false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, cache.Config{TTL: time.Minute, Vary: []string{"accept-language"}, Shared: tc.shared})
				c.backend.header = tc.header
				c.want("first", "", nil, usd, 1, "miss")
				if tc.kept == 0 {
					c.want("again", "", nil, usd, 2, "miss")
					return
				}
				time.Sleep(tc.kept - time.Millisecond)
				c.want("fresh", "", nil, usd, 1, "hit")
				time.Sleep(2 * time.Millisecond)
				c.want("too old", "", nil, usd, 2, "miss")
			})
		})
	}
}

// TestBehindCaches has what caches behind say of an answer be part of what the client is told: its age, with the time that it was on
// the way, and their cache-status before this one's.
func TestBehindCaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, cache.Config{TTL: time.Minute})
		c.backend.delay = 3 * time.Second
		ask := func(age, status string) {
			t.Helper()
			r, err := rpc.Local(t.Context(), c.h, c.m, nil, rpc.NewMessage([]byte("\x0a\x03EUR\x12\x03USD")))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(r.Header["age"], ","); got != age {
				t.Errorf("age %q, want %q", got, age)
			}
			if got := strings.Join(r.Header["cache-status"], ", "); got != status {
				t.Errorf("cache-status %q, want %q", got, status)
			}
		}
		c.backend.header = metadata.MD{"age": {"7"}, "cache-status": {"near; hit"}}
		ask("10", "near; hit, transom; fwd=miss; stored")
		time.Sleep(time.Second)
		ask("11", "near; hit, transom; hit")
		ask("11", "near; hit, transom; hit")
		time.Sleep(time.Minute)
		c.backend.header = metadata.MD{"age": {"70"}, "cache-status": {"near; hit"}}
		ask("70", "near; hit, transom; fwd=miss")
	})
}

// TestSingleFlight has a hundred calls at once make one to the backend, and the first one's leaving not be the others' fault, of
// whom one fetches for all.
func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, cache.Config{TTL: time.Minute})
		c.backend.delay = time.Second
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if n, _, err := c.do("", nil, usd); n != 1 || err != nil {
					t.Errorf("answer %d, %v", n, err)
				}
			})
		}
		wg.Wait()
		if n := c.backend.calls.Load(); n != 1 {
			t.Errorf("%d calls reached the backend", n)
		}
		c.c.Purge(cache.Selection{Method: "", Consumer: ""})
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := rpc.Local(ctx, c.h, c.m, nil, rpc.NewMessage([]byte("\x0a\x03EUR\x12\x03USD"))); status.Code(rpc.StatusOf(err).Err()) != codes.Canceled {
				t.Errorf("the one who left: %v", err)
			}
		})
		synctest.Wait()
		for range 5 {
			wg.Go(func() {
				if _, _, err := c.do("", nil, usd); err != nil {
					t.Errorf("one who stayed: %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if n := c.backend.calls.Load(); n != 3 {
			t.Errorf("once the first had left, those who stayed made %d calls", n-2)
		}
	})
}

// TestNotKept has calls at once whose answer may not be kept each fetch their own, at the same time.
func TestNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, cache.Config{TTL: time.Minute})
		c.backend.delay = time.Second
		c.backend.header = metadata.MD{"cache-control": {"no-store"}}
		began := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, note, err := c.do("", nil, usd); note != "miss" || err != nil {
					t.Errorf("%s, %v", note, err)
				}
			})
		}
		wg.Wait()
		if n, took := c.backend.calls.Load(), time.Since(began); n != 10 || took != 2*time.Second {
			t.Errorf("%d calls reached the backend, in %v", n, took)
		}
	})
}

// TestErrorsOfOthers has calls at once that wait for an answer get the error there is in its place, once, whatever its code.
func TestErrorsOfOthers(t *testing.T) {
	for _, code := range []codes.Code{codes.NotFound, codes.DeadlineExceeded, codes.Canceled} {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, cache.Config{TTL: time.Minute})
				c.backend.delay, c.backend.err = time.Second, status.Error(code, "none")
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						if _, _, err := c.do("", nil, usd); status.Code(err) != code {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if n := c.backend.calls.Load(); n != 1 {
					t.Errorf("%d calls reached the backend", n)
				}
			})
		})
	}
}

// TestSourceOfOthers has an error be the same one's fault for the call that fetches and for those that wait.
func TestSourceOfOthers(t *testing.T) {
	for _, source := range []rpc.Source{rpc.SourceClient, rpc.SourceGateway, rpc.SourceUpstream} {
		t.Run(source.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, cache.Config{TTL: time.Minute})
				c.backend.delay, c.backend.err, c.backend.source = time.Second, status.Error(codes.Unavailable, "no"), source
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						r, err := rpc.Local(t.Context(), c.h, c.m, nil, rpc.NewMessage([]byte("\x0a\x03EUR\x12\x03USD")))
						if r.Info.ErrorSource != source || status.Code(err) != codes.Unavailable {
							t.Errorf("%v, a fault of %v", err, r.Info.ErrorSource)
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// TestTimeOfOthers has a call that waits for one with less time fetch for itself then, even if the backend says that the time is over
// before this call's context does.
func TestTimeOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, cache.Config{TTL: time.Minute})
		c.backend.delay, c.backend.err = time.Second, status.Error(codes.DeadlineExceeded, "late")
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx := lateContext{t.Context(), time.Now().Add(time.Second)}
			if _, err := rpc.Local(ctx, c.h, c.m, nil, rpc.NewMessage([]byte("\x0a\x03EUR\x12\x03USD"))); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("the one with a second: %v", err)
			}
		})
		synctest.Wait()
		began := time.Now()
		wg.Go(func() {
			if _, note, err := c.do("", nil, usd); note != "miss" || time.Since(began) != 2*time.Second {
				t.Errorf("the one with more time: %s, %v, after %v", note, err, time.Since(began))
			}
		})
		wg.Wait()
		if n := c.backend.calls.Load(); n != 2 {
			t.Errorf("%d calls reached the backend", n)
		}
	})
}

// lateContext is one that ends later than by its deadline, as those of listeners do.
type lateContext struct {
	context.Context //nolint:containedctx // it is one
	at              time.Time
}

func (l lateContext) Deadline() (time.Time, bool) { return l.at, true }

// TestStaleIfError has an old answer take the place of errors that say nothing of the thing itself, and of no others; of the error of
// another call as well.
func TestStaleIfError(t *testing.T) {
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				saved := false
				switch code {
				case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Unknown, codes.ResourceExhausted, codes.DataLoss, codes.Aborted:
					saved = true
				default:
				}
				c := newClient(t, cache.Config{TTL: 10 * time.Second, StaleIfError: time.Minute})
				c.want("first", "", nil, usd, 1, "miss")
				c.backend.err, c.backend.delay = status.Error(code, "broken"), time.Second
				time.Sleep(11 * time.Second)
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						n, note, err := c.do("", nil, usd)
						if saved && (n != 1 || note != "stale" || err != nil) || !saved && status.Code(err) != code {
							t.Errorf("answer %d, %s, %v; saved: %v", n, note, err, saved)
						}
					})
				}
				wg.Wait()
				time.Sleep(time.Minute) // more than a minute after it was fresh nothing is given any more
				if _, _, err := c.do("", nil, usd); status.Code(err) != code {
					t.Errorf("too late: %v", err)
				}
			})
		})
	}
}

// TestStaleOfHanging has an old answer be given by a Stream that takes nothing once the call has ended, as most do, when the backend
// hangs: to the call that fetches, and to those that wait for it, of which one has less time.
func TestStaleOfHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, cache.Config{TTL: 10 * time.Second, StaleIfError: time.Minute})
		c.want("first", "", nil, usd, 1, "miss")
		c.backend.delay = time.Hour
		time.Sleep(11 * time.Second)
		began := time.Now()
		ask := func(timeout, want time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			r, err := rpc.Local(ctx, c.h, c.m, nil, rpc.NewMessage([]byte("\x0a\x03EUR\x12\x03USD")))
			if took := time.Since(began); err != nil || r.Info.Notes.Get("cache") != "stale" || r.Info.ErrorSource != rpc.SourceNone || took != want {
				t.Errorf("with %v: %v, %v of %v, after %v", timeout, r.Info.Notes, err, r.Info.ErrorSource, took)
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { ask(20*time.Second, 19500*time.Millisecond) })
		synctest.Wait()
		wg.Go(func() { ask(time.Second, 900*time.Millisecond) })
		wg.Go(func() { ask(time.Minute, 19500*time.Millisecond) })
		wg.Wait()
		// A client that leaves gets nothing.
		ctx, cancel := context.WithCancelCause(t.Context())
		wg.Go(func() {
			if r, err := rpc.Local(ctx, c.h, c.m, nil, rpc.NewMessage([]byte("\x0a\x03EUR\x12\x03USD"))); status.Code(rpc.StatusOf(err).Err()) != codes.Canceled {
				t.Errorf("the one who left: %v, %v", r.Info.Notes, err)
			}
		})
		synctest.Wait()
		cancel(rpc.ErrClientGone)
		wg.Wait()
	})
}

// TestStaleControls has what the backend says of stale answers go before the policy.
func TestStaleControls(t *testing.T) {
	for _, tc := range []struct {
		control  string
		swr, sie bool // whether an answer 5 s too old is given at once, and in place of an error
	}{
		{"", true, true},
		{"max-age=60", true, true},
		{"stale-while-revalidate=10", true, true},
		{"stale-while-revalidate=2", false, true},
		{"stale-if-error=2, stale-while-revalidate=0", false, false},
		{"stale-while-revalidate=0", false, true},
		{"must-revalidate", false, false},
		{"Max-Age=60, Proxy-Revalidate", false, false},
		{"must-revalidate, stale-while-revalidate=10, stale-if-error=10", false, false},
		{"proxy-revalidate, max-age=60, stale-if-error=10", false, false},
		{"s-maxage=60", false, false},
		{"s-maxage=60, stale-while-revalidate=10", true, false},
		{"stale-if-error=10, s-maxage=60, max-age=1", false, true},
		{"stale-while-revalidate=soon", false, false}, // and nothing is kept
	} {
		t.Run(tc.control, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, cache.Config{TTL: time.Minute, StaleWhileRevalidate: 20 * time.Second, StaleIfError: 20 * time.Second})
				c.backend.header = metadata.MD{"cache-control": {tc.control}}
				c.want("first", "", nil, usd, 1, "miss")
				time.Sleep(65 * time.Second)
				c.backend.err = status.Error(codes.Unavailable, "down")
				n, note, err := c.do("", nil, usd)
				synctest.Wait()
				if given := note == "stale" && n == 1 && err == nil; given != (tc.swr || tc.sie) {
					t.Errorf("an error: answer %d, %s, %v", n, note, err)
				}
				c.backend.err = nil
				want := 3
				if tc.swr {
					want = 1
				}
				if n, _, err := c.do("", nil, usd); n != want || err != nil {
					t.Errorf("no error: answer %d, %v; want %d", n, err, want)
				}
			})
		})
	}
}

func TestPurgeAndBound(t *testing.T) {
	c := newClient(t, cache.Config{TTL: time.Hour})
	c.want("alice", "alice", nil, usd, 1, "miss")
	c.want("bob", "bob", nil, usd, 2, "miss")
	if n := c.c.Purge(cache.Selection{Method: "bank.v1.Rates.Get", Consumer: "alice"}); n != 1 {
		t.Errorf("%d purged, want 1", n)
	}
	if n := c.c.Purge(cache.Selection{Method: "bank.v1.Rates.List", Consumer: ""}); n != 0 {
		t.Errorf("%d purged, want 0", n)
	}
	c.want("alice, purged", "alice", nil, usd, 3, "miss")
	c.want("bob, still there", "bob", nil, usd, 2, "hit")
	long := strings.Repeat("x", 10_000)
	for i := range 1000 { // ten times the bound
		_, _, _ = c.do("", nil, &bankv1.GetRateRequest{Base: fmt.Sprint(i, long)})
	}
	if n := c.c.Purge(cache.Selection{Method: "", Consumer: ""}); n > 105 {
		t.Errorf("%d entries of 10 kB in a cache of 1 MiB", n)
	}
}

// TestTags purges by the tags of policy, request and backend.
func TestTags(t *testing.T) {
	c := newClient(t, cache.Config{TTL: time.Hour})
	base, err := rpc.ParseFieldPath(c.m.Desc.Input(), "base")
	if err != nil {
		t.Fatal(err)
	}
	mw, err := c.c.Middleware(c.m, cache.Config{TTL: time.Hour, Tags: []string{"rates"}, TagFields: []cache.TagField{{Name: "base", Path: base}}})
	if err != nil {
		t.Fatal(err)
	}
	c.h = mw(c.backend.handle)
	c.backend.header = metadata.MD{"cache-tag": {"a, b", " c ,"}}
	n := 0
	for _, tag := range []string{"rates", "base:EUR", "a", "b", "c"} {
		n++
		c.want("before "+tag, "", nil, usd, n, "miss")
		if got := c.c.Purge(cache.Selection{Tag: tag}); got != 1 {
			t.Errorf("%d purged by tag %q, want 1", got, tag)
		}
	}
	n++
	c.want("again", "", nil, usd, n, "miss")
	for _, tag := range []string{"base:USD", "A", "rate", "a,b"} {
		if got := c.c.Purge(cache.Selection{Tag: tag}); got != 0 {
			t.Errorf("%d purged by tag %q", got, tag)
		}
	}
	c.backend.header = metadata.MD{"cache-tag": {strings.Repeat("x,", 65)}}
	for i := range 2 {
		c.want("with more tags than there may be", "", nil, &bankv1.GetRateRequest{Base: "CHF"}, n+1+i, "miss")
	}
	c.backend.header = nil
	for i := range 2 {
		c.want("with too long a tag", "", nil, &bankv1.GetRateRequest{Base: strings.Repeat("x", 257)}, n+3+i, "miss")
	}
}

// TestPurgeWhileFetching has an answer that was asked for before a purge not be kept after it, nor be given to those who ask
// after it.
func TestPurgeWhileFetching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, cache.Config{TTL: time.Hour})
		c.backend.delay = time.Second
		var wg sync.WaitGroup
		wg.Go(func() { c.want("before", "", nil, usd, 1, "miss") })
		time.Sleep(500 * time.Millisecond)
		c.c.Purge(cache.Selection{})
		wg.Go(func() { c.want("after", "", nil, usd, 2, "miss") })
		wg.Wait()
		c.want("kept", "", nil, usd, 2, "hit")
	})
}

func TestMisuse(t *testing.T) {
	c, err := cache.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, path := range []string{"/bank.v1.Accounts/Transfer", "/bank.v1.Accounts/Watch", "/bank.v1.Accounts/Update"} {
		if _, err := c.Middleware(method(t, path), cache.Config{TTL: time.Second}); err == nil {
			t.Errorf("%s is cached", path)
		}
	}
}

func BenchmarkHit(b *testing.B) {
	c, err := cache.New(1 << 20)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	m := method(b, "/bank.v1.Rates/Get")
	mw, err := c.Middleware(m, cache.Config{TTL: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	h := mw((&backend{}).handle)
	msg := rpc.NewMessage([]byte("\x0a\x03EUR\x12\x03USD"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rpc.Local(b.Context(), h, m, nil, msg); err != nil {
			b.Fatal(err)
		}
	}
}
