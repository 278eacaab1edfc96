package policies_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"transom/gateway"
	bankv1 "transom/proto/bank/v1"
)

// banks are clusters "stable" and "canary" of banks of these names, beside that of the harness.
func banks(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf(`, stable: {target: "static:///%s"}, canary: {target: "static:///%s"}`, startNamed(t, "stable"), startNamed(t, "canary"))
}

func TestRoutes(t *testing.T) {
	p := startWith(t, `
policies:
- selector: bank.v1.*
  cluster: stable
  routes:
  - {when: [{header: x-version, prefix: v2}, {header: x-old, present: false}], cluster: canary}
  - {when: {header: x-who, exact: me}, cluster: bank}
`, banks(t))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for _, tc := range []struct {
			header map[string]string
			want   string
		}{
			{nil, "stable"},
			{map[string]string{"x-version": "v2.1"}, "canary"},
			{map[string]string{"x-version": "v1"}, "stable"},
			{map[string]string{"x-version": "v2", "x-old": "yes"}, "stable"},
			{map[string]string{"x-version": "v2", "x-who": "me"}, "canary"}, // the first wins
			{map[string]string{"x-who": "me"}, ""},
			{map[string]string{"x-who": "you"}, "stable"},
		} {
			o := call(t, p, tc.header)
			o.wantOK(t, fmt.Sprint(tc.header))
			if o.server != tc.want {
				t.Errorf("%v went to %q, want %q", tc.header, o.server, tc.want)
			}
		}
	})
}

// split is a policy that gives the canary weight of 100 calls.
func split(weight int) string {
	return fmt.Sprintf("\npolicies:\n- {selector: bank.v1.*, split: {clusters: {stable: %d, canary: %d}, sticky: [\"header:x-user\", \"cookie:session\"]}}\n", 100-weight, weight)
}

// TestSplit has users stay where they are, by whatever protocol they come, and those without a name be spread.
func TestSplit(t *testing.T) {
	const users = 60
	p := startWith(t, split(30), banks(t))
	where := map[string]string{}
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for i := range users {
			user := strconv.Itoa(i)
			o := call(t, p, map[string]string{"x-user": user})
			o.wantOK(t, user)
			if was, known := where[user]; known && o.server != was {
				t.Errorf("user %s is on %s, and was on %s", user, o.server, was)
			}
			where[user] = o.server
			if o := call(t, p, map[string]string{"cookie": "a=b; session=" + user}); o.server != where[user] {
				t.Errorf("user %s is on %s by header and on %s by cookie", user, where[user], o.server)
			}
		}
	})
	canary := 0
	for _, w := range where {
		if w == "canary" {
			canary++
		}
	}
	// Which users they are is fixed by the hash; 30 % of 60, within three standard deviations.
	if math.Abs(float64(canary)-users*0.3) > 3*math.Sqrt(users*0.3*0.7) {
		t.Errorf("%d of %d users are on the canary", canary, users)
	}
	// More weight only moves users to the canary.
	for _, weight := range []int{31, 60, 99, 100} {
		p.reload(t, split(weight))
		for user, was := range where {
			now := callGRPC(t, p, map[string]string{"x-user": user}).server
			if was == "canary" && now != "canary" {
				t.Errorf("weight %d moved user %s back to %s", weight, user, now)
			}
			where[user] = now
		}
	}
	for user, w := range where {
		if w != "canary" {
			t.Errorf("weight 100 left user %s on %s", user, w)
		}
	}
	// Of calls without a name each is on its own: 1,000 at 50 %, within five standard deviations, which fails once in 1.7
	// million runs.
	p.reload(t, split(50))
	n := map[string]int{}
	for range 1000 {
		n[callGRPC(t, p, nil).server]++
	}
	if math.Abs(float64(n["canary"])-500) > 5*math.Sqrt(250) || n["canary"]+n["stable"] != 1000 {
		t.Errorf("calls without a name went to %v", n)
	}
}

// TestCanaryUnderLoad raises the canary's weight from 0 to 100 while users call by every protocol: no call fails, and each
// user goes over once.
func TestCanaryUnderLoad(t *testing.T) {
	p := startWith(t, split(0), banks(t))
	var mu sync.Mutex // guards was
	was := map[string]string{}
	load := underLoad(t, func(t *testing.T, name string, worker, n int, call caller) {
		user := fmt.Sprintf("%s.%d.%d", name, worker, n%25)
		o := call(t, p, map[string]string{"x-user": user})
		o.wantOK(t, name)
		mu.Lock()
		defer mu.Unlock()
		if was[user] == "canary" && o.server != "canary" || o.server != "canary" && o.server != "stable" {
			t.Errorf("user %s went from %q to %q", user, was[user], o.server)
		}
		was[user] = o.server
	})
	for weight := 0; weight <= 100; weight += 5 {
		p.reload(t, split(weight))
		load.calls(t, 100)
	}
	load.end()
	for user := range was {
		if o := callGRPC(t, p, map[string]string{"x-user": user}); o.server != "canary" {
			t.Errorf("at 100 user %s goes to %q", user, o.server)
		}
	}
}

// TestSplitByIdentity has callers be told apart by what authentication says of them, or by their address.
func TestSplitByIdentity(t *testing.T) {
	const names = 40
	var known strings.Builder
	for i := range names {
		fmt.Fprintf(&known, "    c%d: {api_keys: [%q], claims: {org: {id: %d}}}\n", i, sha(fmt.Sprint("key", i)), i%4)
	}
	policy := func(sticky string) string {
		return "\nconsumers:\n  providers: {keys: {api_key: {}}}\n  known:\n" + known.String() +
			"security: {trusted_proxies: [127.0.0.0/8]}\npolicies:\n- {selector: bank.v1.*, auth: {require: keys}, split: {clusters: {stable: 1, canary: 1}, sticky: " + sticky + "}}\n"
	}
	p := startWith(t, policy("consumer"), banks(t))
	for _, tc := range []struct {
		sticky string
		groups int // of callers that have the key in common
		group  func(i int) int
		header func(i int) map[string]string
	}{
		{"consumer", names, func(i int) int { return i }, func(i int) map[string]string { return map[string]string{"x-api-key": fmt.Sprint("key", i)} }},
		{"claim:org.id", 4, func(i int) int { return i % 4 }, func(i int) map[string]string { return map[string]string{"x-api-key": fmt.Sprint("key", i)} }},
		{"ip", names / 2, func(i int) int { return i / 2 }, func(i int) map[string]string {
			return map[string]string{"x-api-key": fmt.Sprint("key", i), "x-forwarded-for": fmt.Sprintf("2001:db8:0:%x::%d", i/2, i)}
		}},
	} {
		t.Run(tc.sticky, func(t *testing.T) {
			p.reload(t, policy(tc.sticky))
			where := map[int]string{}
			everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
				for i := range names {
					o := call(t, p, tc.header(i))
					o.wantOK(t, fmt.Sprint(i))
					if was, known := where[tc.group(i)]; known && was != o.server {
						t.Errorf("group %d is on %s, and was on %s", tc.group(i), o.server, was)
					}
					where[tc.group(i)] = o.server
				}
			})
			count := map[string]int{}
			for _, w := range where {
				count[w]++
			}
			if len(where) != tc.groups || count["stable"]+count["canary"] != tc.groups || tc.groups > 4 && (count["stable"] < tc.groups/4 || count["canary"] < tc.groups/4) {
				t.Errorf("%d groups are on %v", len(where), count)
			}
		})
	}
}

type caller = func(t *testing.T, p *proxy, header map[string]string) outcome

// load is calls over and over again.
type load struct {
	done chan struct{} // one for each call
	end  func()
}

// underLoad runs fn by four workers for each protocol until end is called, or the test ends; n counts a worker's calls.
func underLoad(t *testing.T, fn func(t *testing.T, name string, worker, n int, call caller)) *load {
	t.Helper()
	stop := make(chan struct{})
	l := &load{done: make(chan struct{})}
	var wg sync.WaitGroup
	l.end = sync.OnceFunc(func() {
		close(stop)
		wg.Wait()
	})
	t.Cleanup(l.end)
	for name, call := range protocols {
		for w := range 4 {
			wg.Go(func() {
				for n := 0; ; n++ {
					fn(t, name, w, n, call)
					select {
					case l.done <- struct{}{}:
					case <-stop:
						return
					}
				}
			})
		}
	}
	return l
}

// calls waits for n calls.
func (l *load) calls(t *testing.T, n int) {
	t.Helper()
	limit := time.After(patience)
	for range n {
		select {
		case <-l.done:
		case <-limit:
			t.Fatal("the calls have stopped")
		}
	}
}

// TestDestination has the more specific of cluster and split count, and routes only where neither is more specific.
func TestDestination(t *testing.T) {
	p := startWith(t, `
policies:
- {selector: "*", cluster: bank, routes: [{when: {header: x-to, exact: canary}, cluster: canary}]}
- {selector: bank.v1.*, split: {clusters: {stable: 1}}}
- {selector: bank.v1.Diagnostics.*, routes: [{when: {header: x-to, exact: canary}, cluster: canary}]}
- {selector: bank.v1.Diagnostics.Slow, cluster: bank}
`, banks(t))
	to := map[string]string{"x-to": "canary"}
	if o := callREST(t, p, to); o.server != "canary" {
		t.Errorf("a route more specific than the split: %q", o.server)
	}
	if o := callREST(t, p, nil); o.server != "stable" {
		t.Errorf("a split more specific than the cluster: %q", o.server)
	}
	_, _, body := p.get(t, "/v1/diagnostics/slow", to)
	var answer struct{ Server string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Server != "" {
		t.Errorf("a cluster more specific than split and routes: %s", body)
	}
	file := p.parse(t, "policies:\n- {selector: \"*\", cluster: bank, routes: [{when: {header: x, present: true}, cluster: canary}]}\n- {selector: bank.v1.*, split: {clusters: {stable: 1}}}\n")
	var out strings.Builder
	where := func(path string) string { return path }
	if err := gateway.Explain(t.Context(), file.Config, "bank.v1.Rates.Get", where, &out, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if got := squeeze(strings.ReplaceAll(out.String(), ": ", ":")); !strings.Contains(got, "split {\"clusters\":{\"stable\":1}} bank.v1.* policies[1].split\n") || strings.Contains(got, "\ncluster ") || strings.Contains(got, "\nroutes ") {
		t.Errorf("explain says\n%s", got)
	}
}

func TestTrafficFaults(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		// A cluster that is none.
		{"policies:\n- selector: bank.v1.*\n  routes: [{when: {header: a, present: true}, cluster: canray}]\n", `3:56: there is no cluster "canray", only ["bank"]`},
		{"policies:\n- selector: bank.v1.*\n  split:\n    clusters:\n      bank: 95\n      canary: 5\n", `6:15: there is no cluster "canary", only ["bank"]`},
		{"policies:\n- selector: bank.v1.*\n  mirror: {cluster: shadow}\n", `3:21: there is no cluster "shadow", only ["bank"]`},
		// The rest.
		{"policies:\n- selector: bank.v1.*\n  cluster: bank\n  split: {clusters: {bank: 1}}\n", `4:10: for bank.v1.Accounts.Balance and 27 more methods: cluster and split exclude each other`},
		{"policies:\n- selector: bank.v1.*\n  split: {clusters: {bank: 1}, sticky: [ip, user]}\n", `3:45: "user" is not consumer, ip, header:name (in lower case), cookie:name or claim:path`},
		{"policies:\n- selector: bank.v1.*\n  split: {clusters: {bank: 0}}\n", `3:10: split: one of the clusters needs a weight above 0`},
		{"policies:\n- selector: bank.v1.*\n  split: {clusters: {bank: 1000001}}\n", `3:28: `},
		{"policies:\n- selector: bank.v1.*\n  split: {clusters: {bank: heavy}}\n", `3:28: `},
		{"policies:\n- selector: bank.v1.*\n  routes: [{when: {header: content-type, prefix: a}, cluster: bank}]\n", `3:28: header "content-type" belongs to the protocol`},
		{"policies:\n- selector: bank.v1.*\n  routes: [{when: {header: X-User, prefix: a}, cluster: bank}]\n", `3:28: `},
		{"policies:\n- selector: bank.v1.*\n  routes: [{when: {header: x-user}, cluster: bank}]\n", `3:19: `},
		{"policies:\n- selector: bank.v1.*\n  routes: [{cluster: bank}]\n", `3:12: when: `},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {ttl: 1s, vary: x-a}\n  routes:\n  - {when: {header: x-a, present: true}, cluster: bank}\n  - {when: {header: x-b, present: true}, cluster: bank}\n", `6:21: answers that depend on header "x-b" are cached: cache.vary must have it`},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {ttl: 1s, shared: true}\n  split: {clusters: {bank: 1}, sticky: cookie:a}\n", `4:40: answers that depend on header "cookie" are cached`},
		{"policies:\n- selector: bank.v1.*\n  mirror: {cluster: bank, share: 1.5}\n", `3:34: share: `},
		{"policies:\n- selector: bank.v1.*\n  mirror: {cluster: bank, timeout: 0s}\n", `3:36: timeout: `},
		{"policies:\n- selector: bank.v1.*\n  faults: [{share: 0.5}]\n", `3:12: faults[0]: a fault has a delay, or abort, or both`},
		{"policies:\n- selector: bank.v1.*\n  faults: [{abort: OK}]\n", `3:20: abort: `},
		{"policies:\n- selector: bank.v1.*\n  faults: [{delay: 1s, share: -1}]\n", `3:31: share: `},
		{"policies:\n- selector: bank.v1.*\n  deprecated: {since: tomorrow}\n", `3:23: "tomorrow" is no date like 2027-06-30`},
		{"policies:\n- selector: bank.v1.*\n  deprecated: {since: \"2027-01-01\", sunset: \"2026-01-01\"}\n", `3:45: the sunset is before the deprecation`},
		{"policies:\n- selector: bank.v1.*\n  deprecated: {link: \"https://bank.example\"}\n", `3:15: deprecated: deprecated needs since or sunset`},
		{"policies:\n- selector: bank.v1.*\n  deprecated: {since: \"2027-01-01\", link: \"javascript:alert(1)\"}\n", `3:43: link: `},
	} {
		found := faults(t, tc.text)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
}

// TestRoutesOfCache has a cache keep the answers of two clusters apart.
func TestRoutesOfCache(t *testing.T) {
	p := startWith(t, `
policies:
- selector: bank.v1.Diagnostics.Metadata
  cluster: stable
  routes: [{when: {header: x-to, exact: canary}, cluster: canary}]
  cache: {ttl: 1h, vary: x-to}
- {selector: bank.v1.*, cluster: stable}
`, banks(t))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for range 2 {
			if o := call(t, p, map[string]string{"x-to": "canary"}); o.server != "canary" {
				t.Errorf("the canary's answer is %q's", o.server)
			}
			if o := call(t, p, nil); o.server != "stable" {
				t.Errorf("the other answer is %q's", o.server)
			}
		}
	})
}

// copied is a call as a shadow saw it.
type copied struct {
	method   string
	header   metadata.MD
	messages [][]byte
	err      error
}

// startShadow is a cluster for copies: it answers nothing but the end of the call, which it tells of first. It tells arrived
// the text of each message.
func startShadow(t *testing.T, seen chan<- copied, arrived ...chan<- string) string {
	t.Helper()
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		c := copied{}
		c.method, _ = grpc.MethodFromServerStream(s)
		c.header, _ = metadata.FromIncomingContext(s.Context())
		for {
			m := &emptypb.Empty{}
			if err := s.RecvMsg(m); err != nil {
				if err != io.EOF {
					c.err = err
				}
				break
			}
			c.messages = append(c.messages, m.ProtoReflect().GetUnknown())
			for _, a := range arrived {
				a <- string(m.ProtoReflect().GetUnknown())
			}
		}
		select {
		case seen <- c:
		default:
			select {
			case seen <- c:
			case <-s.Context().Done():
			}
		}
		return s.SendMsg(&emptypb.Empty{})
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() {
		srv.Stop()
		wg.Wait()
	})
	return l.Addr().String()
}

// next is the next copy.
func next(t *testing.T, seen <-chan copied) copied {
	t.Helper()
	select {
	case c := <-seen:
		return c
	case <-time.After(patience):
		t.Fatal("no copy has come")
		return copied{}
	}
}

// mirrored asks the metrics until the copies to the shadow are these; a copy is counted a moment after its cluster has seen
// it.
func (p *proxy) mirrored(t *testing.T, want map[string]int) {
	t.Helper()
	var got map[string]int
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		resp, err := p.http.Get("http://" + p.AdminAddr().String() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		got = map[string]int{}
		for line := range strings.Lines(string(b)) {
			var result string
			var n int
			if _, err := fmt.Sscanf(line, `transom_mirrored_calls_total{result=%q,transom_cluster="shadow"} %d`, &result, &n); err == nil {
				got[result] = n
			}
		}
		if maps.Equal(got, want) {
			return
		}
	}
	t.Fatalf("copies: %v, want %v", got, want)
}

const mirrorText = "\nadmin: {address: \"127.0.0.1:0\"}\npolicies:\n- {selector: bank.v1.*, cluster: bank, mirror: {cluster: shadow, %s}}\n"

func TestMirror(t *testing.T) {
	seen := make(chan copied, 100)
	arrived := make(chan string, 100)
	p := startWith(t, fmt.Sprintf(mirrorText, "share: 1"), fmt.Sprintf(`, shadow: {target: "static:///%s", no_health_check: true}`, startShadow(t, seen, arrived)))
	n := 0
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		o := call(t, p, map[string]string{"authorization": "Bearer x"})
		o.wantOK(t, "mirrored")
		if o.seen["authorization"][0] != "Bearer x" || o.seen["x-transom-mirrored"] != nil {
			t.Errorf("the call itself came with %v", o.seen)
		}
		c := next(t, seen)
		if c.method != "/bank.v1.Diagnostics/Metadata" || c.header.Get("authorization")[0] != "Bearer x" || !slices.Equal(c.header["x-transom-mirrored"], []string{"true"}) || len(c.messages) != 1 || c.err != nil {
			t.Errorf("the copy is %+v", c)
		}
		n++
	})
	p.mirrored(t, map[string]int{"ok": n, "failed": 0, "dropped": 0})
	t.Run("streams", func(t *testing.T) {
		deposit := func(name string) *bankv1.DepositRequest {
			return &bankv1.DepositRequest{Name: name, Amount: &bankv1.Money{Currency: "EUR", Units: 1}}
		}
		want := [][]byte{}
		s, err := bankv1.NewAccountsClient(p.conn).Deposit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"7", "8", "7"} {
			b, err := proto.Marshal(deposit(name))
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, b)
			if err := s.Send(deposit(name)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.CloseAndRecv(); err != nil {
			t.Fatal(err)
		}
		if c := next(t, seen); c.method != "/bank.v1.Accounts/Deposit" || !slices.EqualFunc(c.messages, want, bytes.Equal) || c.err != nil {
			t.Errorf("the copy of a stream is %+v, want %q", c, want)
		}
		if _, o := p.webSocket(t, "/v1/accounts:deposit", nil, `{"name":"7","amount":{"currency":"EUR","units":"1"}}`, ""); o.code != codes.OK {
			t.Errorf("a stream by WebSocket: %+v", o)
		}
		if c := next(t, seen); !slices.EqualFunc(c.messages, want[:1], bytes.Equal) || c.err != nil {
			t.Errorf("its copy is %+v, want %q", c, want[:1])
		}
		// A call that is cancelled ends its copy.
		ctx, cancel := context.WithCancel(t.Context())
		chat, err := bankv1.NewSupportClient(p.conn).Chat(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := chat.Send(&bankv1.ChatMessage{Text: "hello"}); err != nil {
			t.Fatal(err)
		}
		for text := ""; !strings.Contains(text, "hello"); { // else there may be nothing yet to cancel
			select {
			case text = <-arrived:
			case <-time.After(patience):
				t.Fatal("the message was not copied")
			}
		}
		cancel()
		if c := next(t, seen); c.method != "/bank.v1.Support/Chat" || c.err == nil {
			t.Errorf("the copy of a call that was cancelled is %+v", c)
		}
		p.mirrored(t, map[string]int{"ok": n + 2, "failed": 1, "dropped": 0})
	})
}

// TestMirrorBroken has shadows that hang, are down, and are behind: no call notices.
func TestMirrorBroken(t *testing.T) {
	seen := make(chan copied) // nobody looks: the shadow hangs
	p := startWith(t, fmt.Sprintf(mirrorText, "max_concurrent: 1"), fmt.Sprintf(`, shadow: {target: "static:///%s", no_health_check: true}`, startShadow(t, seen)))
	n := 0
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for range 5 {
			call(t, p, nil).wantOK(t, "with a shadow that hangs")
			n++
		}
	})
	p.mirrored(t, map[string]int{"ok": 0, "failed": 0, "dropped": n - 1})
	p.reload(t, fmt.Sprintf(mirrorText, "max_concurrent: 2, timeout: 1ms"))
	callGRPC(t, p, nil).wantOK(t, "with a shadow that is late")
	p.mirrored(t, map[string]int{"ok": 0, "failed": 1, "dropped": n - 1})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the one that hangs goes on
		for {
			select {
			case <-seen:
			case <-stop:
				return
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	p.mirrored(t, map[string]int{"ok": 1, "failed": 1, "dropped": n - 1})
	p.clusters = `, shadow: {target: "static:///127.0.0.1:1", no_health_check: true}`
	p.reload(t, fmt.Sprintf(mirrorText, "timeout: 10s"))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, nil).wantOK(t, "with a shadow that is down")
	})
	p.mirrored(t, map[string]int{"ok": 1, "failed": 4, "dropped": n - 1})
}

func TestFaultInjection(t *testing.T) {
	const text = `
policies:
- selector: bank.v1.*
  timeout: %s
  faults:
  - {when: {header: x-late, present: true}, delay: 200ms}
  - {when: {header: x-fault, exact: abort}, abort: UNAVAILABLE}
  - {when: {header: x-fault, exact: timeout}, delay: 1m, abort: INTERNAL}
`
	p := start(t, fmt.Sprintf(text, patience))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, nil).wantOK(t, "without the header")
		call(t, p, map[string]string{"x-fault": "abort"}).want(t, "aborted", codes.Unavailable, 503, "FAULT_INJECTED")
		began := time.Now()
		call(t, p, map[string]string{"x-late": "1"}).wantOK(t, "late")
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("late by %v only", took)
		}
	})
	p.reload(t, fmt.Sprintf(text, "100ms"))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, map[string]string{"x-fault": "timeout"}).want(t, "too late", codes.DeadlineExceeded, 504, "")
	})
	// The share of calls that fail, within five standard deviations, which fails once in 1.7 million runs.
	p.reload(t, "\npolicies: [{selector: bank.v1.*, faults: [{share: 0.25, abort: DATA_LOSS}]}]\n")
	failed := 0
	for range 1000 {
		switch o := callGRPC(t, p, nil); o.code {
		case codes.OK:
		case codes.DataLoss:
			failed++
		default:
			t.Errorf("a call ended with %v", o.code)
		}
	}
	if math.Abs(float64(failed)-250) > 5*math.Sqrt(1000*0.25*0.75) {
		t.Errorf("%d of 1000 calls failed", failed)
	}
}

// TestDeprecated looks for the headers in answers and refusals, and for the frame of a WebSocket.
func TestDeprecated(t *testing.T) {
	p := start(t, `
consumers:
  providers: {keys: {api_key: {}}}
  known: {shop: {api_keys: ["`+sha("k")+`"]}}
policies:
- selector: bank.v1.Diagnostics.*
  auth: {require: keys}
  deprecated: {since: "2026-01-01", sunset: "2027-06-30T12:00:00Z", link: "https://bank.example/v2"}
`)
	want := map[string]string{
		"deprecation": "@1767225600", "sunset": "Wed, 30 Jun 2027 12:00:00 GMT", "link": `<https://bank.example/v2>; rel="deprecation"`,
	}
	check := func(t *testing.T, what string, md map[string][]string) {
		t.Helper()
		for k, v := range want {
			if !slices.Equal(md[k], []string{v}) {
				t.Errorf("%s: %s is %q, want %q", what, k, md[k], v)
			}
		}
	}
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		o := call(t, p, nil)
		o.want(t, "refused", codes.Unauthenticated, 401, "CREDENTIALS_MISSING")
		check(t, "refused", o.header)
		o = call(t, p, map[string]string{"x-api-key": "k"})
		o.wantOK(t, "answered")
		if o.header != nil { // a bare WebSocket has no place for them
			check(t, "answered", o.header)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws://"+p.addr+"/", &websocket.DialOptions{Subprotocols: []string{"transom.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageText, []byte(`{"id":1,"open":{"path":"`+metadataPath+`","metadata":{"x-api-key":["k"]}},"end":true}`)); err != nil {
		t.Fatal(err)
	}
	var frame struct {
		Header struct{ Metadata map[string][]string }
	}
	for frame.Header.Metadata == nil {
		_, b, err := c.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &frame); err != nil {
			t.Fatal(err)
		}
	}
	check(t, "by transom.v1", frame.Header.Metadata)
	p.reload(t, "\npolicies: []\n")
	if o := callREST(t, p, nil); o.header["deprecation"] != nil {
		t.Errorf("after the policy is gone: %v", o.header)
	}
}

// TestTrafficUnderLoad puts mirrors, faults and deprecations in force and out again while calls go on that none of them ends.
func TestTrafficUnderLoad(t *testing.T) {
	seen := make(chan copied, 1)
	shadow := startShadow(t, seen)
	p := startWith(t, "\npolicies: [{selector: \"*\", cluster: bank}]\n", fmt.Sprintf(`, shadow: {target: "static:///%s", no_health_check: true}`, shadow))
	load := underLoad(t, func(t *testing.T, name string, _, _ int, call caller) {
		call(t, p, map[string]string{"x-user": "ann"}).wantOK(t, name)
	})
	for i := range 12 {
		p.reload(t, "\npolicies:\n- {selector: bank.v1.*, cluster: bank, "+[]string{
			"mirror: {cluster: shadow, timeout: 100ms}",
			"mirror: {cluster: shadow, share: 0.5, max_concurrent: 3}, deprecated: {since: \"2026-01-01\"}",
			"faults: [{delay: 1ms}, {when: {header: x-user, exact: bob}, abort: INTERNAL}]",
			"routes: [{when: {header: x-user, present: true}, cluster: bank}]",
		}[i%4]+"}\n")
		load.calls(t, 50)
	}
	load.end()
}

// TestMirrorGone takes a shadow out of the configuration while a copy hangs there: neither the reload nor a call waits for it,
// and it comes to its end.
func TestMirrorGone(t *testing.T) {
	seen := make(chan copied)
	p := startWith(t, fmt.Sprintf(mirrorText, "timeout: 1h"), fmt.Sprintf(`, shadow: {target: "static:///%s", no_health_check: true}`, startShadow(t, seen)))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	chat, err := bankv1.NewSupportClient(p.conn).Chat(ctx) // keeps the configuration that it began with
	if err != nil {
		t.Fatal(err)
	}
	if err := chat.Send(&bankv1.ChatMessage{Text: "hello"}); err != nil {
		t.Fatal(err)
	}
	if _, err := chat.Recv(); err != nil {
		t.Fatal(err)
	}
	callREST(t, p, nil).wantOK(t, "with a shadow that hangs")
	p.clusters = ""
	began := time.Now()
	p.reload(t, "\nadmin: {address: \"127.0.0.1:0\"}\npolicies: []\n")
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = chat.Recv()
	}
	if err != io.EOF {
		t.Error(err)
	}
	callREST(t, p, nil).wantOK(t, "without the shadow")
	if took := time.Since(began); took > patience {
		t.Errorf("waited %v for the copies", took)
	}
	methods := []string{next(t, seen).method, next(t, seen).method}
	if !slices.Contains(methods, "/bank.v1.Support/Chat") || !slices.Contains(methods, "/bank.v1.Diagnostics/Metadata") {
		t.Errorf("the copies are of %v", methods)
	}
	p.mirrored(t, map[string]int{"ok": 2, "failed": 0, "dropped": 0})
}
