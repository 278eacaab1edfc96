package cache_test

import (
	"bytes"
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/e2e/process"
	"transom/policy/cache"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
)

// patience is how long a test waits for what takes no time on a good day.
const patience = 20 * time.Second

// redisServer is a Redis, to be stopped and run again on the same port.
type redisServer struct{ *process.Redis }

func startRedis(t *testing.T) *redisServer {
	t.Helper()
	return &redisServer{process.StartRedis(t)}
}

func (r *redisServer) option() rueidis.ClientOption {
	return rueidis.ClientOption{InitAddress: []string{r.Addr}, ForceSingleClient: true, DisableCache: true, DisableRetry: true, PipelineMultiplex: -1}
}

// peer is a cache with a store, before a backend.
type peer struct {
	*client
	store *cache.Store
}

func newPeer(t *testing.T, r *redisServer, b *backend, cfg cache.Config) *peer {
	t.Helper()
	c := newClient(t, cache.Config{TTL: time.Hour})
	s := cache.NewStore(cache.StoreConfig{Client: r.option(), Prefix: "t:", Timeout: 5 * time.Second, MaxBytes: 1 << 10}, c.c, slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	cfg.Store = s
	mw, err := c.c.Middleware(c.m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "Redis is in use", func() bool {
		_, err := s.Purge(t.Context(), cache.Selection{Method: "none"})
		return err == nil
	})
	return &peer{&client{t, c.m, mw(b.handle), c.c, b}, s}
}

// eventually waits until ok says so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// kept waits until Redis has n answers.
func (r *redisServer) kept(t *testing.T, n int) {
	t.Helper()
	c, err := rueidis.NewClient(r.option())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, strconv.Itoa(n)+" answers in Redis", func() bool {
		keys, err := c.Do(t.Context(), c.B().Keys().Pattern("t:cache:*").Build()).AsStrSlice()
		return err == nil && len(keys) == n
	})
}

// TestStore has two processes share answers, purge for each other, and not keep what was fetched before a purge.
func TestStore(t *testing.T) {
	r := startRedis(t)
	b := &backend{header: metadata.MD{"cache-tag": {"rates, fx"}, "odd-bin": {"\x00\xff"}}}
	cfg := cache.Config{TTL: time.Hour, Tags: []string{"static"}}
	one, two := newPeer(t, r, b, cfg), newPeer(t, r, b, cfg)
	one.want("first", "", nil, usd, 1, "miss")
	r.kept(t, 1)
	two.want("by the other", "", nil, usd, 1, "hit")
	if calls := b.calls.Load(); calls != 1 {
		t.Errorf("%d calls of the backend", calls)
	}
	res, err := rpc.Local(t.Context(), two.h, two.m, nil, rpc.NewMessage([]byte("\n\x03EUR\x12\x03USD")))
	if err != nil || res.Header["odd-bin"][0] != "\x00\xff" || res.Header["cache-tag"] != nil {
		t.Errorf("%v, %v", res.Header, err)
	}
	one.want("another caller", "alice", nil, usd, 2, "miss")
	r.kept(t, 2)
	n := 2
	for _, sel := range []cache.Selection{
		{Tag: "fx"}, {Tag: "rates", Method: "bank.v1.Rates.Get"}, {Tag: "static"}, {Method: "bank.v1.Rates.Get"}, {},
	} {
		if _, err := one.store.Purge(t.Context(), sel); err != nil {
			t.Fatal(err)
		}
		// What is in Redis is gone at once, what is in the memory of another soon.
		n++
		one.want("after a purge", "", nil, usd, n, "miss")
		eventually(t, "the other has heard of it", func() bool {
			got, _, _ := two.do("", nil, usd)
			return got == n
		})
	}
	for _, sel := range []cache.Selection{{Tag: "other"}, {Tag: "fx", Method: "bank.v1.Rates.List"}, {Consumer: "alice"}} {
		if _, err := one.store.Purge(t.Context(), sel); err != nil {
			t.Fatal(err)
		}
		one.want("after a purge of others", "", nil, usd, n, "hit")
	}
	// A third comes and learns of all purges.
	three := newPeer(t, r, b, cfg)
	three.want("a newcomer", "", nil, usd, n, "hit")

	// One purges while two fetches.
	slow := &backend{delay: 50 * time.Millisecond}
	four := newPeer(t, r, slow, cache.Config{TTL: time.Hour, Salt: "slow"})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = four.do("", nil, usd)
	}()
	eventually(t, "a fetch", func() bool { return slow.calls.Load() == 1 })
	if _, err := one.store.Purge(t.Context(), cache.Selection{}); err != nil {
		t.Fatal(err)
	}
	<-done
	five := newPeer(t, r, slow, cache.Config{TTL: time.Hour, Salt: "slow"})
	five.want("fetched before the purge", "", nil, usd, 2, "miss")
}

// TestStoreDown loses Redis and gets it back: calls go on and do not wait, purges say that they could not be done.
func TestStoreDown(t *testing.T) {
	r := startRedis(t)
	b := &backend{}
	p := newPeer(t, r, b, cache.Config{TTL: time.Hour})
	gbp := &bankv1.GetRateRequest{Base: "EUR", Quote: "GBP"}
	p.want("first", "", nil, usd, 1, "miss")
	r.kept(t, 1)
	r.Stop()
	p.want("in memory", "", nil, usd, 1, "hit")
	p.want("not in memory", "", nil, gbp, 2, "miss")
	p.want("kept in memory", "", nil, gbp, 2, "hit")
	if n, err := p.store.Purge(t.Context(), cache.Selection{}); err == nil || n != 2 {
		t.Errorf("a purge without Redis: %d, %v", n, err)
	}
	p.want("purged in memory", "", nil, usd, 3, "miss")
	if err := r.Run(t); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Redis is in use again", func() bool {
		_, err := p.store.Purge(t.Context(), cache.Selection{})
		return err == nil
	})
	p.want("purged", "", nil, usd, 4, "miss")
	r.kept(t, 1)
}

// TestStoreStale has answers of Redis be given stale, as those in memory are.
func TestStoreStale(t *testing.T) {
	r := startRedis(t)
	b := &backend{}
	cfg := cache.Config{TTL: time.Millisecond, StaleWhileRevalidate: time.Hour}
	one := newPeer(t, r, b, cfg)
	one.want("first", "", nil, usd, 1, "miss")
	r.kept(t, 1)
	newPeer(t, r, b, cfg).want("stale", "", nil, usd, 1, "stale")
	eventually(t, "it was brought up to date", func() bool { return b.calls.Load() == 2 })
}

// awaited is a context that tells when its end is waited for.
type awaited struct {
	context.Context //nolint:containedctx // it is one
	waits           func()
}

func (a awaited) Done() <-chan struct{} {
	a.waits()
	return a.Context.Done()
}

// TestStoreStaleOfOthers has the old answer of Redis go to the call that fetches, and to those that wait for it and have no answer in
// memory.
func TestStoreStaleOfOthers(t *testing.T) {
	r := startRedis(t)
	cfg := cache.Config{TTL: time.Millisecond, StaleIfError: time.Hour}
	newPeer(t, r, &backend{}, cfg).want("first", "", nil, usd, 1, "miss")
	r.kept(t, 1)
	b := &backend{err: status.Error(codes.Unavailable, "down"), gate: make(chan struct{})}
	p := newPeer(t, r, b, cfg)
	var wg sync.WaitGroup
	wg.Go(func() { p.want("the one that fetches", "", nil, usd, 1, "stale") })
	eventually(t, "a fetch", func() bool { return b.calls.Load() == 1 })
	p.c.Evict()
	var waiting sync.WaitGroup
	for range 3 {
		waiting.Add(1)
		wg.Go(func() {
			ctx := awaited{t.Context(), sync.OnceFunc(waiting.Done)}
			res, err := rpc.Local(ctx, p.h, p.m, nil, rpc.NewMessage([]byte("\n\x03EUR\x12\x03USD")))
			if err != nil || res.Info.Notes.Get("cache") != "stale" {
				t.Errorf("one that waits: %v, %v", res.Info.Notes, err)
			}
		})
	}
	waiting.Wait()
	close(b.gate)
	wg.Wait()
	if calls := b.calls.Load(); calls != 1 {
		t.Errorf("%d calls of the backend", calls)
	}
}

// TestStoreBounds keeps out of Redis what is too large, and out of memory what is no answer.
func TestStoreBounds(t *testing.T) {
	r := startRedis(t)
	b := &backend{header: metadata.MD{"cache-tag": {strings.Repeat("x", 257)}}}
	p := newPeer(t, r, b, cache.Config{TTL: time.Hour})
	for n := range 2 { // a purge could not name it
		p.want("too long a tag", "", nil, usd, n+1, "miss")
	}
	b.header = nil
	secret := metadata.MD{"authorization": {"Bearer hunter2"}}
	p.want("kept", "", secret, usd, 3, "miss")
	r.kept(t, 1)
	c, err := rueidis.NewClient(r.option())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	keys, err := c.Do(t.Context(), c.B().Keys().Pattern("t:cache:*").Build()).AsStrSlice()
	if err != nil {
		t.Fatal(err)
	}
	value, err := c.Do(t.Context(), c.B().Get().Key(keys[0]).Build()).AsBytes()
	if err != nil {
		t.Fatal(err)
	}
	for i := range value {
		if err := c.Do(t.Context(), c.B().Set().Key(keys[0]).Value(rueidis.BinaryString(value[:i])).Build()).Error(); err != nil {
			t.Fatal(err)
		}
		p.c.Purge(cache.Selection{})
		if n, note, err := p.do("", secret, usd); err != nil || note == "" {
			t.Fatalf("cut at %d: %d, %s, %v", i, n, note, err)
		}
	}
	if strings.Contains(keys[0], "hunter2") || bytes.Contains(value, []byte("hunter2")) {
		t.Error("a credential is in Redis")
	}
}
