package policies_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
	adminv1 "transom/proto/transom/admin/v1"
)

// get makes a REST call and returns status, header and body.
func (p *proxy) get(t *testing.T, path string, header map[string]string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url("http")+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	resp, err := p.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// purge drops cached answers and returns how many there were.
func (p *proxy) purge(t *testing.T, method, consumer, tag string) int {
	t.Helper()
	n, _, err := p.PurgeCache(t.Context(), method, consumer, tag)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCache(t *testing.T) {
	p := start(t, example(t, "Cache"))
	t.Run("REST", func(t *testing.T) {
		p.purge(t, "", "", "")
		_, h, first := p.get(t, metadataPath, nil)
		if got := h.Get("Cache-Status"); got != "transom; fwd=miss; stored" || !slices.Equal(h.Values("Vary"), []string{"accept-language"}) {
			t.Errorf("first: %q, vary %q", got, h.Values("Vary"))
		}
		code, h, second := p.get(t, metadataPath, nil)
		if got := h.Values("Vary"); !slices.Equal(got, []string{"accept-language"}) {
			t.Errorf("second: vary %q", got)
		}
		if code != 200 || h.Get("Cache-Status") != "transom; hit" || first != second || h.Get("Age") == "" || h.Get("Etag") == "" {
			t.Errorf("second: %d %v; the answers are equal: %v", code, h, first == second)
		}
		etag := h.Get("Etag")
		for _, tag := range []string{etag, strings.TrimPrefix(etag, "W/"), `"other", ` + etag, "*"} {
			if code, h, body := p.get(t, metadataPath, map[string]string{"If-None-Match": tag}); code != 304 || body != "" || h.Get("Etag") != etag {
				t.Errorf("If-None-Match %s: %d %q %v", tag, code, body, h)
			}
		}
		if code, _, body := p.get(t, metadataPath, map[string]string{"If-None-Match": `"other"`}); code != 200 || body != first {
			t.Errorf("another etag: %d %q", code, body)
		}
		// Another caller, by what it shows.
		if _, h, other := p.get(t, metadataPath, map[string]string{"Authorization": "Bearer x"}); h.Get("Cache-Status") != "transom; fwd=miss; stored" || other == first {
			t.Errorf("another caller: %v", h)
		}
		if _, _, pretty := p.get(t, metadataPath+"?$prettyPrint=true", nil); pretty == first || strings.Join(strings.Fields(pretty), "") != strings.Join(strings.Fields(first), "") {
			t.Errorf("pretty: %s", pretty)
		}
		if n := p.purge(t, "bank.v1.Diagnostics.Metadata", "", ""); n != 2 {
			t.Errorf("%d purged, want 2", n)
		}
	})
	t.Run("gRPC", func(t *testing.T) {
		p.purge(t, "", "", "")
		for i, want := range []string{"transom; fwd=miss; stored", "transom; hit"} {
			var md metadata.MD
			if _, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(t.Context(), &bankv1.MetadataRequest{}, grpc.Header(&md)); err != nil {
				t.Fatal(err)
			}
			if got := md.Get("cache-status"); !slices.Equal(got, []string{want}) {
				t.Errorf("call %d: %q, want %q", i, got, want)
			}
		}
		// What REST fetched gRPC finds.
		if _, h, _ := p.get(t, metadataPath, nil); h.Get("Cache-Status") != "transom; hit" {
			t.Errorf("REST after gRPC: %v", h)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		p.purge(t, "", "", "")
		first, _ := p.webSocket(t, metadataPath, nil)
		second, _ := p.webSocket(t, metadataPath, nil)
		if len(first) != 1 || !slices.Equal(first, second) {
			t.Errorf("answers %q and %q", first, second)
		}
	})
	t.Run("reload", func(t *testing.T) {
		_, _, first := p.get(t, metadataPath, nil)
		p.reload(t, example(t, "Cache"))
		if _, h, body := p.get(t, metadataPath, nil); h.Get("Cache-Status") != "transom; hit" || body != first {
			t.Errorf("after a reload: %v", h)
		}
		// The same answer in another JSON is not what a browser has.
		_, h, _ := p.get(t, metadataPath, nil)
		p.reload(t, example(t, "Cache")+"json: {emit_defaults: true}\n")
		if code, now, body := p.get(t, metadataPath, map[string]string{"If-None-Match": h.Get("Etag")}); code != 200 || now.Get("Cache-Status") != "transom; hit" || body == first {
			t.Errorf("in another JSON: %d %q %v", code, body, now)
		}
		p.reload(t, "policies: []\n")
		if _, h, _ := p.get(t, metadataPath, nil); h.Get("Cache-Status") != "" {
			t.Errorf("without a cache: %v", h)
		}
	})
	t.Run("errors and cookies", func(t *testing.T) {
		p.reload(t, "policies: [{selector: bank.v1.Diagnostics.Metadata, cache: {ttl: 30s}}, {selector: bank.v1.Accounts.Get, cache: {ttl: 30s}}]\n")
		for range 2 {
			var md metadata.MD
			if _, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(t.Context(), &bankv1.MetadataRequest{Header: map[string]string{"set-cookie": "s=1"}}, grpc.Header(&md)); err != nil {
				t.Fatal(err)
			}
			if got := md.Get("cache-status"); !slices.Equal(got, []string{"transom; fwd=miss"}) {
				t.Errorf("set-cookie: %q", got)
			}
			if code, h, _ := p.get(t, "/v1/accounts/999", nil); code != 404 || strings.Contains(h.Get("Cache-Status"), "hit") {
				t.Errorf("an error: %d %v", code, h)
			}
		}
	})
}

// TestCacheStale gives old answers while the backend is away, and while a new one is fetched, over REST, gRPC and WebSocket.
func TestCacheStale(t *testing.T) {
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		l := process.Listen(t)
		addr, stop := l.Addr().String(), bankOn(t, "one", l)
		another := func(name string) (stop func()) {
			t.Helper()
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			return bankOn(t, name, l)
		}
		config := func(stale string) string {
			return fmt.Sprintf("clusters: {bank: {target: \"static:///%s\"}}\npolicies: [{selector: bank.v1.Diagnostics.Metadata, cache: {ttl: 1ms, %s: 1h}}]\n", addr, stale)
		}
		p := start(t, config("stale_if_error"))
		ask := func(what string) outcome {
			t.Helper()
			o := call(t, p, nil)
			o.wantOK(t, what)
			return o
		}
		given := func(o outcome, server, status string) bool {
			return o.server == server && (o.header == nil || slices.Equal(o.header["cache-status"], []string{status})) // a WebSocket's messages have no headers
		}
		// old asks until the time of the answer is over, a millisecond after it came.
		old := func(what string) outcome {
			t.Helper()
			for {
				if o := ask(what); !slices.Equal(o.header["cache-status"], []string{"transom; hit"}) {
					return o
				}
			}
		}
		// until asks until the answer is of another bank, which transom must first connect to.
		until := func(server string) {
			t.Helper()
			for deadline := time.Now().Add(patience); ask("a new answer").server != server; {
				if time.Now().After(deadline) {
					t.Fatalf("nothing is heard of %s", server)
				}
			}
		}
		if o := ask("at first"); !given(o, "one", "transom; fwd=miss; stored") {
			t.Errorf("at first: %q, %v", o.server, o.header["cache-status"])
		}
		stop()
		for range 2 {
			if o := old("without the backend"); !given(o, "one", "transom; hit; detail=stale-if-error") {
				t.Errorf("without the backend: %q, %v", o.server, o.header["cache-status"])
			}
		}
		stop = another("two")
		until("two")
		p.reload(t, config("stale_while_revalidate")) // keeps nothing of another policy
		ask("kept")
		stop()
		stop = another("three")
		defer stop()
		if o := old("while a new one is fetched"); !given(o, "two", "transom; hit; detail=stale-while-revalidate") {
			t.Errorf("while a new one is fetched: %q, %v", o.server, o.header["cache-status"])
		}
		until("three")
	})
}

// TestTagsOfCodings has a backend's strong entity tag be weak where the answer comes in several codings, in the 304 as well.
func TestTagsOfCodings(t *testing.T) {
	const set = `policies: [{selector: bank.v1.Diagnostics.Metadata%s, response_metadata: {set: {etag: '%s'}}}]` + "\n"
	const connect = "/bank.v1.Diagnostics/Metadata?connect=v1&encoding=json&message=%7B%7D"
	large := strings.Repeat("x", 2000)
	p := start(t, fmt.Sprintf(set, "", `"v1"`))
	for _, tc := range []struct{ policy, etag, path, auth, want string }{
		{"", `"v1"`, metadataPath, large, `W/"v1"`},
		{"", `W/"v1"`, metadataPath, large, `W/"v1"`},
		{"", `"v1"`, metadataPath, "small", `"v1"`},
		{", compress: false", `"v1"`, metadataPath, large, `"v1"`},
		{"", `"v1"`, connect, large, `W/"v1"`},
	} {
		p.reload(t, fmt.Sprintf(set, tc.policy, tc.etag))
		for _, more := range []map[string]string{{"accept-encoding": "gzip"}, {"accept-encoding": "identity"}, {"if-none-match": `"v1"`}} {
			more["authorization"] = tc.auth
			code, h, _ := p.get(t, tc.path, more)
			if got := h.Values("Etag"); !slices.Equal(got, []string{tc.want}) || code != 200 && code != 304 {
				t.Errorf("%+v with %v: %d, etag %q", tc, more, code, got)
			}
		}
	}
}

// startHanging runs a server that answers a caller of Diagnostics.Metadata once, and leaves it without an answer from then on. It
// returns its address, and how often a caller has called.
func startHanging(t *testing.T) (addr string, calls func(caller string) int) {
	t.Helper()
	var mu sync.Mutex
	seen, end := map[string]int{}, make(chan struct{})
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		if err := s.RecvMsg(&bankv1.MetadataRequest{}); err != nil {
			return err
		}
		caller := strings.Join(metadata.ValueFromIncomingContext(s.Context(), "authorization"), ",")
		mu.Lock()
		seen[caller]++
		n := seen[caller]
		mu.Unlock()
		if n > 1 {
			<-end // a server that heard of the deadline might tell of it before transom does
			return nil
		}
		return s.SendMsg(&bankv1.MetadataResponse{})
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() {
		close(end)
		srv.Stop()
		wg.Wait()
	})
	return l.Addr().String(), func(caller string) int {
		mu.Lock()
		defer mu.Unlock()
		return seen[caller]
	}
}

// TestCacheOfHanging gives an old answer in every way when the backend hangs, before the method's timeout ends the call.
func TestCacheOfHanging(t *testing.T) {
	addr, calls := startHanging(t)
	o := openTo(t, fmt.Sprintf(`
clusters: {bank: {target: "static:///%s", no_health_check: true}}
policies: [{selector: bank.v1.Diagnostics.Metadata, timeout: 5s, cache: {ttl: 1ms, stale_if_error: 1h}}]`, addr))
	var wg sync.WaitGroup
	defer wg.Wait()
	one := func(t *testing.T, way string, call func(t *testing.T, a ask) *reply) {
		t.Helper()
		who := fmt.Sprintf("Bearer %x", way)
		for calls(who) < 2 { // the answer is fresh for a moment
			r := call(t, metadataAsk(http.Header{"authorization": {who}}))
			status := r.header["Cache-Status"]
			if stale := calls(who) == 2; r.code != codes.OK || len(r.messages) != 1 || stale && !bare(way) && !slices.Equal(status, []string{"transom; hit; detail=stale-if-error"}) {
				t.Errorf("call %d: %v, %d messages, %q", calls(who), r.code, len(r.messages), status)
			}
		}
	}
	for way := range ways { // all at once: what takes its time is the timeout, of which half a second is for the old answer
		wg.Go(func() { t.Run(way, func(t *testing.T) { o.oneWay(t, way, one) }) })
	}
}

func TestCacheFaults(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"policies:\n- selector: bank.v1.Accounts.Transfer\n  cache: {ttl: 1s}\n", `3:10: answers of bank.v1.Accounts.Transfer cannot be cached: it has side effects`},
		{"policies:\n- selector: bank.v1.Accounts.Watch\n  cache: {ttl: 1s}\n", `3:10: answers of bank.v1.Accounts.Watch cannot be cached: it is not a unary method`},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {}\n", `3:10: ttl: `},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {ttl: 1s, vary: [Accept]}\n", `3:27: vary[0]: `},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {ttl: 1s, redis: true}\n", `3:27: there is no redis in the configuration`},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {ttl: 1s, tags: [\"field:bas\"]}\n", `3:27: bas: bank.v1.GetRateRequest has no field "bas"`},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {ttl: 1s, tags: [\"a b\"]}\n", `3:27: tags[0]: `},
		{"redis: {addresses: [\"127.0.0.1:1\"], cache_entry_bytes: 1GiB}\n", `1:56: cache_entry_bytes: `},
	} {
		found := faults(t, tc.text)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
}

// kept waits until Redis has n answers: they are written there after calls have ended.
func (r *redisServer) kept(t *testing.T, n int) {
	t.Helper()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{r.Addr}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(patience); ; {
		keys, err := c.Do(t.Context(), c.B().Keys().Pattern("transom:cache:*").Build()).AsStrSlice()
		if err == nil && len(keys) == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Redis has %q, want %d answers; %v", keys, n, err)
		}
	}
}

// holds waits until Redis has a key that begins with prefix, with calls meanwhile, and reports whether it has.
func (r *redisServer) holds(t *testing.T, prefix string, meanwhile func()) bool {
	t.Helper()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{r.Addr}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		keys, err := c.Do(t.Context(), c.B().Keys().Pattern(prefix+"*").Build()).AsStrSlice()
		if err == nil && len(keys) > 0 {
			return true
		}
		meanwhile()
	}
	return false
}

// TestSharedCache has two gateways, each before a bank of its own, share answers in a real Redis, purge for each other, and do
// without it.
func TestSharedCache(t *testing.T) {
	redis := startRedis(t)
	config := func(bank string) string {
		return strings.ReplaceAll(example(t, "Cache shared by several transoms"), "127.0.0.1:6379\"]", redis.Addr+"\"], timeout: 1s") +
			fmt.Sprintf("admin: {address: \"127.0.0.1:0\"}\nclusters: {bank: {target: \"static:///%s\"}}\n", startNamed(t, bank))
	}
	one, two := start(t, config("one")), start(t, config("two"))
	admin, other := one.admin(t), two.admin(t)
	// purgeBy waits until there is a connection.
	purgeBy := func(admin adminv1.AdminClient, req *adminv1.PurgeCacheRequest) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			r, err := admin.PurgeCache(t.Context(), req)
			if err == nil && r.GetShared() {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v, %v", r, err)
			}
		}
	}
	purge := func(req *adminv1.PurgeCacheRequest) {
		t.Helper()
		purgeBy(admin, req)
	}
	purgeBy(other, &adminv1.PurgeCacheRequest{})
	purge(&adminv1.PurgeCacheRequest{})
	n := 0
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		who := map[string]string{"authorization": "Bearer " + t.Name()}
		ask := func(p *proxy, want, status string) {
			t.Helper()
			o := call(t, p, who)
			o.wantOK(t, t.Name())
			if got := o.header["cache-status"]; o.server != want || o.header != nil && !slices.Equal(got, []string{status}) {
				t.Errorf("answered by %q, %q; want %q, %q", o.server, got, want, status)
			}
		}
		ask(one, "one", "transom; fwd=miss; stored")
		n++
		redis.kept(t, n)
		ask(two, "one", "transom; hit; detail=shared")
		ask(two, "one", "transom; hit")
		for _, req := range []*adminv1.PurgeCacheRequest{{Tag: "diagnostics"}, {Method: "bank.v1.Diagnostics.Metadata"}, {}} {
			purge(req)
			ask(one, "one", "transom; fwd=miss; stored")
		}
	})
	t.Run("purges are heard of", func(t *testing.T) {
		who := map[string]string{"authorization": "Bearer heard"}
		callGRPC(t, two, who)
		purge(&adminv1.PurgeCacheRequest{Tag: "diagnostics"})
		for deadline := time.Now().Add(patience); ; {
			if got := callGRPC(t, two, who).header["cache-status"]; slices.Equal(got, []string{"transom; fwd=miss; stored"}) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the other never heard of the purge")
			}
		}
	})
	t.Run("purge by JSON", func(t *testing.T) {
		resp, err := http.Post("http://"+one.AdminAddr().String()+"/v1/cache:purge", "application/json", strings.NewReader(`{"tag":"diagnostics"}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.Contains(string(b), `"shared":true`) {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
	})
	fresh := 0
	ask := func(what string) {
		t.Helper()
		for name, call := range protocols {
			fresh++
			call(t, one, map[string]string{"authorization": fmt.Sprint("Bearer ", fresh)}).wantOK(t, what+", "+name)
		}
	}
	t.Run("Redis hangs", func(t *testing.T) {
		_ = redis.Cmd.Process.Signal(syscall.SIGSTOP)
		began := time.Now()
		const rounds = 10
		for range rounds {
			ask("while Redis hangs")
		}
		// One call waits, and then for a second none does; each of them would be a second.
		if took := time.Since(began); took > rounds*3*time.Second/2 {
			t.Errorf("%d calls took %v", rounds*3, took)
		}
		if _, err := admin.PurgeCache(t.Context(), &adminv1.PurgeCacheRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("a purge: %v", err)
		}
		_ = redis.Cmd.Process.Signal(syscall.SIGCONT)
	})
	t.Run("Redis is killed", func(t *testing.T) {
		redis.Stop()
		ask("without Redis")
		if err := redis.Run(t); err != nil {
			t.Fatal(err)
		}
		purgeBy(other, &adminv1.PurgeCacheRequest{})
		purge(&adminv1.PurgeCacheRequest{})
		who := map[string]string{"authorization": "Bearer again"}
		callGRPC(t, one, who).wantOK(t, "Redis is back")
		redis.kept(t, 1)
		if o := callGRPC(t, two, who); o.server != "one" {
			t.Errorf("answered by %q", o.server)
		}
	})
}

// TestSharedCacheProbe: what one caller fetched by a transom no other gets of another transom, by Redis; and a purge of one's answers
// leaves the other's.
func TestSharedCacheProbe(t *testing.T) {
	redis := startRedis(t)
	config := func(bank string) string {
		return fmt.Sprintf(`
admin: {address: "127.0.0.1:0"}
redis: {addresses: [%q], timeout: 10s}
consumers:
  providers: {keys: {api_key: {}}}
  known: {alice: {api_keys: [%q]}, bob: {api_keys: [%q]}}
policies: [{selector: bank.v1.Diagnostics.Metadata, auth: {require: [keys], anonymous: true}, cache: {ttl: 1h, redis: true, vary: [x-run]}}]
clusters: {bank: {target: "static:///%s"}}
`, redis.Addr, sha("a"), sha("b"), startNamed(t, bank))
	}
	one, two := start(t, config("one")), start(t, config("two"))
	for _, p := range []*proxy{one, two} { // until there is a connection
		for deadline := time.Now().Add(patience); ; {
			if _, shared, err := p.PurgeCache(t.Context(), "", "", "none"); err == nil && shared {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("Redis is not in use")
			}
		}
	}
	n := 0
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		ask := func(p *proxy, key, consumer, want string) {
			t.Helper()
			header := map[string]string{"x-run": t.Name()}
			if key != "" {
				header["x-api-key"] = key
			}
			o := call(t, p, header)
			o.wantOK(t, consumer)
			if got := strings.Join(o.seen["x-transom-consumer"], ","); got != consumer || o.server != want {
				t.Errorf("%q is given what %q fetched of bank %s, want %s", consumer, got, o.server, want)
			}
		}
		ask(one, "a", "alice", "one")
		n++
		redis.kept(t, n)
		ask(two, "b", "bob", "two")
		ask(two, "", "", "two")
		n += 2
		redis.kept(t, n)
		ask(one, "b", "bob", "two")
		ask(one, "", "", "two")
		ask(two, "a", "alice", "one")
		purged, shared, err := two.PurgeCache(t.Context(), "", "alice", "")
		if want := min(n/3, 2); purged != want || !shared || err != nil { // with the one of the run before
			t.Errorf("a purge of alice's: %d, %v, %v; want %d", purged, shared, err, want)
		}
		ask(two, "a", "alice", "two")
		ask(two, "b", "bob", "two")
		ask(one, "b", "bob", "two")
	})
}

// TestSharedCacheReload turns sharing on and off under load.
func TestSharedCacheReload(t *testing.T) {
	redis := startRedis(t)
	p := start(t, "policies: []\n")
	load := underLoad(t, func(t *testing.T, name string, worker, n int, call caller) {
		call(t, p, map[string]string{"authorization": fmt.Sprint("Bearer ", name, worker, n/3)}).wantOK(t, name)
	})
	for n := range 10 {
		p.reload(t, fmt.Sprintf("redis: {addresses: [%q]}\npolicies: [{selector: bank.v1.Diagnostics.Metadata, cache: {ttl: %ds, redis: %v}}]\n", redis.Addr, 10+n/3, n%2 == 0))
		load.calls(t, 20)
	}
	load.end()
}

// TestCacheVaryOfHeader keeps answers by a header that no other setting passes on: over REST and WebSocket neither the key nor
// the backend had it, and all callers got one answer.
func TestCacheVaryOfHeader(t *testing.T) {
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		p := start(t, "policies: [{selector: bank.v1.Diagnostics.Metadata, cache: {ttl: 1h, vary: x-tenant, shared: true}}]\n")
		for _, who := range []string{"a", "b", "a"} {
			o := call(t, p, map[string]string{"x-tenant": who})
			o.wantOK(t, who)
			if got := o.seen["x-tenant"]; len(got) != 1 || got[0] != who {
				t.Errorf("the answer for %s is that for %q", who, got)
			}
		}
	})
}

// TestCacheNotEncodedAgain: a large answer from the cache is turned into JSON once, whoever gets it, plain or compressed. By the
// metrics encoding takes no more time, where a call that the cache does not have takes some.
func TestCacheNotEncodedAgain(t *testing.T) {
	p := start(t, "admin: {address: \"127.0.0.1:0\"}\npolicies:\n- {selector: bank.v1.Diagnostics.Echo, cache: {ttl: 1h}}\n")
	scrape := func() (decided, seconds float64) {
		t.Helper()
		resp, err := p.http.Get("http://" + p.AdminAddr().String() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			var decision string
			var n float64
			if _, err := fmt.Sscanf(line, `transom_policy_decisions_total{decision=%q,policy="cache"} %g`, &decision, &n); err == nil {
				decided += n
			}
			_, _ = fmt.Sscanf(line, `transom_transcoding_seconds_total{direction="out",rpc_method="bank.v1.Diagnostics/Echo",transom_protocol="rest"} %g`, &seconds)
		}
		return decided, seconds
	}
	// encoded is the time that answers took so far, in seconds, once n calls are counted. What the cache decided is the last that
	// is counted of a call, but not the last that is read of the metrics.
	encoded := func(n float64) float64 {
		t.Helper()
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			if decided, _ := scrape(); decided == n {
				_, seconds := scrape()
				return seconds
			}
		}
		t.Fatalf("there are not %v calls", n)
		return 0
	}
	echo := func(text, accept, status string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.addr+"/v1/diagnostics/echo", strings.NewReader(`{"text":"`+text+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept-Encoding", accept)
		resp, err := p.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 || resp.Header.Get("Cache-Status") != status {
			t.Errorf("%d %q, %v; want %q", resp.StatusCode, resp.Header.Get("Cache-Status"), err, status)
		}
	}
	text := strings.Repeat("text\\n", 12_000)
	echo(text, "identity", "transom; fwd=miss; stored")
	once := encoded(1)
	for _, accept := range []string{"identity", "gzip", "br", "identity", "gzip"} {
		echo(text, accept, "transom; hit")
	}
	if all := encoded(6); once == 0 || all != once {
		t.Errorf("encoding took %v s, and %v s after five answers from the cache", once, all)
	}
	echo(text+"other", "identity", "transom; fwd=miss; stored")
	if other := encoded(7); other <= once {
		t.Errorf("encoding took %v s, and %v s after another answer", once, other)
	}
}

// TestPrivateAnswers: what a caller gets because of who it is, caches on the way keep for nobody else, unless the backend or the
// policy says that they may.
func TestPrivateAnswers(t *testing.T) {
	const config = `
consumers:
  providers: {keys: {api_key: {}}}
  known: {shop: {api_keys: [%q]}}
policies:
- {selector: bank.v1.Rates.*, cache: {ttl: 1h}}
- {selector: [bank.v1.Diagnostics.*, bank.v1.Accounts.*], %s}
`
	p := start(t, fmt.Sprintf(config, sha("k"), `auth: {require: [keys], anonymous: true}`))
	const rates, connect = "/v1/rates/EUR/USD", "/bank.v1.Diagnostics/Metadata?connect=v1&encoding=json&message=%7B%7D"
	watch := "/v1/customers/1/accounts/1/transactions:watch?count=1"
	for _, tc := range []struct {
		policy string
		paths  map[string]string
	}{
		{`auth: {require: [keys], anonymous: true}`, map[string]string{metadataPath: "private", connect: "private", rates: "", watch: "no-cache"}},
		{`auth: {require: [keys], anonymous: true}, cache: {ttl: 1h, shared: true}`, map[string]string{metadataPath: "private", connect: "private"}},
		{`access: {deny_ips: [192.0.2.1]}`, map[string]string{metadataPath: "private", connect: "private"}},
		{`timeout: 5s`, map[string]string{metadataPath: "", connect: ""}},
		{`auth: {anonymous: true, require: [keys]}, response_metadata: {set: {cache-control: "max-age=60"}}`, map[string]string{metadataPath: "max-age=60; private", connect: "max-age=60; private"}},
		{`auth: {anonymous: true, require: [keys]}, response_metadata: {set: {cache-control: "Public, max-age=60"}}`, map[string]string{metadataPath: "Public, max-age=60", connect: "Public, max-age=60"}},
		{`auth: {anonymous: true, require: [keys]}, response_metadata: {set: {cache-control: "max-age=60, s-maxage=5"}}`, map[string]string{metadataPath: "max-age=60, s-maxage=5"}},
		{`auth: {anonymous: true, require: [keys]}, response_metadata: {set: {cache-control: no-store}}`, map[string]string{metadataPath: "no-store", connect: "no-store"}},
	} {
		text := config
		if strings.Contains(tc.policy, "cache: ") {
			text = strings.Replace(config, "[bank.v1.Diagnostics.*, bank.v1.Accounts.*]", "bank.v1.Diagnostics.Metadata", 1)
		}
		p.reload(t, fmt.Sprintf(text, sha("k"), tc.policy))
		for path, want := range tc.paths {
			for _, header := range []map[string]string{{"x-api-key": "k"}, nil, {"if-none-match": "*"}} {
				code, h, body := p.get(t, path, header)
				if got := strings.Join(h["Cache-Control"], "; "); got != want || code != 200 && code != 304 {
					t.Errorf("%s: %s with %v: %d, cache-control %q, want %q (%s)", tc.policy, path, header, code, got, want, body)
				}
			}
		}
	}
	// Answers to others than GET and HEAD are no cache's.
	p.reload(t, fmt.Sprintf(config, sha("k"), `auth: {require: [keys]}`))
	if o := p.post(t, metadataPath, "{}", map[string]string{"x-api-key": "k"}); o.code != codes.OK || o.header["cache-control"] != nil {
		t.Errorf("POST: %v, cache-control %q", o.code, o.header["cache-control"])
	}
	// A refusal is for nobody to keep, one of a stream either.
	for _, path := range []string{metadataPath, watch} {
		if code, h, _ := p.get(t, path, nil); code != http.StatusUnauthorized || !slices.Equal(h["Cache-Control"], []string{"no-store"}) {
			t.Errorf("%s without a key: %d, cache-control %q", path, code, h["Cache-Control"])
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, p.url("http")+metadataPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Api-Key", "k")
	resp, err := p.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Cache-Control"); resp.StatusCode != 200 || got != "private" {
		t.Errorf("HEAD: %d, cache-control %q", resp.StatusCode, got)
	}
}
