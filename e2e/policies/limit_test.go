package policies_test

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bankv1 "transom/proto/bank/v1"
)

func TestLimits(t *testing.T) {
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		p := start(t, example(t, "Limits"))
		for i := range 3 {
			o := call(t, p, nil)
			o.wantOK(t, "within the burst")
			if o.header == nil { // a WebSocket's messages have no headers
				continue
			}
			want := []string{fmt.Sprintf(`"burst";r=%d;t=%d, "daily";r=%d;t=`, 2-i, i+1, 999-i)}
			if got := o.header["ratelimit"]; len(got) != 1 || !strings.HasPrefix(got[0], want[0]) {
				t.Errorf("ratelimit %q, want %q…", got, want)
			}
			if got, want := o.header["ratelimit-policy"], []string{`"burst";q=60;w=60, "daily";q=1000;w=86400`}; !slices.Equal(got, want) {
				t.Errorf("ratelimit-policy %q, want %q", got, want)
			}
		}
		o := call(t, p, nil)
		o.want(t, "over the burst", codes.ResourceExhausted, 429, "RATE_LIMITED")
		if got := o.header["retry-after"]; !slices.Equal(got, []string{"1"}) {
			t.Errorf("retry-after %q", got)
		}
		if got := o.header["ratelimit"]; len(got) != 1 || !strings.HasPrefix(got[0], `"burst";r=0;t=`) {
			t.Errorf("ratelimit %q", got)
		}
		if !slices.ContainsFunc(o.details, func(d any) bool {
			if _, ok := d.(*errdetails.RetryInfo); ok {
				return true
			}
			m, ok := d.(map[string]any)
			return ok && m["@type"] == "type.googleapis.com/google.rpc.RetryInfo" && m["retryDelay"] != ""
		}) {
			t.Errorf("no RetryInfo in %v", o.details)
		}
		// A reload that does not touch the limit forgets nothing.
		p.reload(t, example(t, "Limits")+"- {selector: bank.v1.Accounts.Get, timeout: 3s}\n")
		call(t, p, nil).want(t, "after a reload", codes.ResourceExhausted, 429, "RATE_LIMITED")
		p.reload(t, "policies: [{selector: bank.v1.Diagnostics.*, limits: {concurrent: \"5\", per: method}}]\n")
		call(t, p, nil).wantOK(t, "with other limits")
	})
}

func TestQuotaOfPlans(t *testing.T) {
	p := start(t, fmt.Sprintf(`
consumers:
  providers: {keys: {api_key: {}}}
  known:
    shop: {plan: gold, api_keys: [%q]}
    kiosk: {api_keys: [%q]}
policies:
- {selector: "*", auth: {require: [keys]}, limits: [{quota: 2/day, plans: {gold: 5/day}}]}
`, sha("shop"), sha("kiosk")))
	for key, want := range map[string]int{"shop": 5, "kiosk": 2} {
		n := 0
		for range 10 {
			o := callREST(t, p, map[string]string{"x-api-key": key})
			if o.code == codes.OK {
				n++
				continue
			}
			o.want(t, key, codes.ResourceExhausted, 429, "QUOTA_EXCEEDED")
		}
		if n != want {
			t.Errorf("%s made %d calls, want %d", key, n, want)
		}
	}
}

// TestPlansOfTokens has tokens say what plan their callers are on, and a known consumer's own plan go before it.
func TestPlansOfTokens(t *testing.T) {
	id := startOIDC(t)
	p := start(t, fmt.Sprintf(`
consumers:
  providers: {main: {jwt: {issuer: %q, audiences: [bank], plan_claim: org.tier, outbound: {private: true}}}}
  known: {carol: {identities: ["main:carol"], plan: gold}}
policies:
- {selector: "*", auth: {require: [main]}, limits: [{quota: 1/month, plans: {gold: 3/month, silver: 2/month}}]}
`, id.URL))
	tier := func(sub, tier string) map[string]string {
		return map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"sub": sub, "org": map[string]any{"tier": tier}})}
	}
	for _, tc := range []struct {
		who  map[string]string
		want int
	}{{tier("ann", "gold"), 3}, {tier("bob", "silver"), 2}, {tier("dan", "tin"), 1}, {tier("carol", "silver"), 3}} {
		n := 0
		for o := callGRPC(t, p, tc.who); o.code == codes.OK; o = callGRPC(t, p, tc.who) {
			n++
		}
		if n != tc.want {
			t.Errorf("%v: %d calls, want %d", tc.who, n, tc.want)
		}
	}
}

// TestLimitOfCalls holds streams open at the same time.
func TestLimitOfCalls(t *testing.T) {
	p := start(t, "policies: [{selector: bank.v1.Support.Chat, limits: {concurrent: \"2\"}}]\n")
	chat := func() (bankv1.SupportClient, func() error, func()) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c := bankv1.NewSupportClient(p.conn)
		s, err := c.Chat(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return c, func() error {
			_ = s.Send(&bankv1.ChatMessage{Text: "hello"})
			_, err := s.Recv()
			return err
		}, cancel
	}
	_, first, leave := chat()
	_, second, leaveSecond := chat()
	defer leaveSecond()
	if err := first(); err != nil {
		t.Fatal(err)
	}
	if err := second(); err != nil {
		t.Fatal(err)
	}
	_, third, cancel := chat()
	if err := third(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("third call: %v", err)
	}
	cancel()
	leave()
	deadline := time.Now().Add(patience)
	for { // the first call's end takes its way through the gateway
		_, again, cancel := chat()
		err := again()
		cancel()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no room after a call has ended: %v", err)
		}
	}
}

// TestLimitOfMessages counts the messages of streams.
func TestLimitOfMessages(t *testing.T) {
	const text = "policies: [{selector: bank.v1.Accounts.Deposit, limits: [{rate: 3/h, messages: true}], cost: %d}]\n"
	const msg = `{"name":"7","amount":{"currency":"EUR","units":"1"}}`
	p := start(t, fmt.Sprintf(text, 1))
	_, o := p.webSocket(t, "/v1/accounts:deposit", nil, msg, msg, msg, msg, msg)
	if o.code != codes.ResourceExhausted {
		t.Errorf("WebSocket: %v %s", o.code, o.message)
	}
	p.reload(t, "policies: []\n")
	p.reload(t, fmt.Sprintf(text, 2)) // two messages weigh 4
	p.post(t, "/v1/accounts:deposit", msg+"\n", nil).wantOK(t, "one message")
	p.post(t, "/v1/accounts:deposit", msg+"\n"+msg+"\n", nil).want(t, "two messages", codes.ResourceExhausted, 429, "RATE_LIMITED")
	p.reload(t, "policies: []\n")
	p.reload(t, fmt.Sprintf(text, 1))
	s, err := bankv1.NewAccountsClient(p.conn).Deposit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		_ = s.Send(&bankv1.DepositRequest{Name: "7", Amount: &bankv1.Money{Currency: "EUR", Units: 1}})
	}
	if _, err := s.CloseAndRecv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("gRPC: %v", err)
	}
}

func TestLimitFaults(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"policies:\n- selector: \"*\"\n  limits: [{rate: 10/week}]\n", `3:19: "10/week" is not a rate like 100/m`},
		{"policies:\n- selector: \"*\"\n  limits: [{quota: 10/week}]\n", `3:20: "10/week" is not a quota like 1000/day`},
		{"policies:\n- selector: \"*\"\n  limits: [{concurrent: many}]\n", `3:25: "many" is not a number of calls`},
		{"policies:\n- selector: \"*\"\n  limits: [{rate: 10/s, per: [consumer, colour]}]\n", `3:41: "colour" is not consumer, ip, method`},
		{"policies:\n- selector: \"*\"\n  limits: [{rate: 10/s, plans: {gold: x}}]\n", `3:39: "x" is not a rate`},
		{"policies:\n- selector: \"*\"\n  cost: 5\n  limits: [{rate: 10/s, burst: 4}]\n", `4:12: calls of bank.v1.Accounts.Balance cost 5, and no more than 4`},
		{"policies:\n- selector: \"*\"\n  limits: [{}]\n", `3:12: kind: exactly one field is required`},
		{"policies:\n- selector: \"*\"\n  limits: [{rate: 1/s, per: ip, everybody: true}]\n", `3:12: limits[0]: everybody and per exclude each other`},
		{"redis: {addresses: [\"127.0.0.1:1\"], tls: {ca: /nowhere}}\npolicies:\n- selector: \"*\"\n  limits: [{rate: 1/s}]\n", `1:47: open /nowhere`},
	} {
		found := faults(t, tc.text)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
}

// redisServer is Debian's, to be stopped and started again on the same port.
type redisServer struct {
	addr, port string
	cmd        *exec.Cmd
}

func startRedis(t *testing.T) *redisServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &redisServer{addr: l.Addr().String(), port: strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}
	l.Close()
	r.run(t)
	t.Cleanup(r.kill)
	return r
}

// run starts the server and waits until it answers.
func (r *redisServer) run(t *testing.T) {
	t.Helper()
	r.cmd = exec.Command("redis-server", "--port", r.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		c, err := net.Dial("tcp", r.addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *redisServer) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// flood calls through all proxies in parallel for d, and returns how many calls were let through and how many ended
// otherwise than by the limit.
func flood(t *testing.T, proxies []*proxy, d time.Duration) (admitted, failed int64) {
	t.Helper()
	var yes, bad atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range proxies {
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					// The call itself is not cut off: it would not be known what became of it.
					_, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(t.Context(), &bankv1.MetadataRequest{})
					switch status.Code(err) {
					case codes.OK:
						yes.Add(1)
					case codes.ResourceExhausted:
					default:
						bad.Add(1)
						t.Log(err)
					}
				}
			})
		}
	}
	wg.Wait()
	return yes.Load(), bad.Load()
}

// TestSharedLimits has three gateways share a limit in a real Redis under load, loses it, and gets it back.
func TestSharedLimits(t *testing.T) {
	redis := startRedis(t)
	// A burst of a second: callers that a busy machine holds up for less than that make up for it, so what is counted in the
	// end is the limit's arithmetic, not the machine's load.
	const rate, burst = 300, 300
	text := strings.NewReplacer("127.0.0.1:6379", redis.addr, "burst: 30", fmt.Sprintf("burst: %d", burst)).
		Replace(example(t, "Limits shared by several transoms"))
	proxies := []*proxy{start(t, text), start(t, text), start(t, text)}
	// Until Redis is reached, each holds callers to its own share, which must be used up before counting.
	settle := func() {
		deadline := time.Now().Add(patience)
		for time.Now().Before(deadline) {
			all := true
			for _, p := range proxies {
				o := callREST(t, p, nil)
				var left int // of a gateway's own share at most a third of the burst
				_, err := fmt.Sscanf(o.header["ratelimit"][0], `"shared";r=%d`, &left)
				all = all && o.code == codes.OK && err == nil && left > burst/2
			}
			time.Sleep(burst * time.Second / rate) // full again
			if all {
				return
			}
		}
		t.Fatal("Redis is not in use")
	}
	check := func(what string, d time.Duration) {
		t.Helper()
		began := time.Now()
		n, failed := flood(t, proxies, d)
		want := burst + rate*time.Since(began).Seconds()
		t.Logf("%s: %d admitted in %v, %.0f wanted (%+.2f %%)", what, n, time.Since(began).Round(time.Millisecond), want, 100*(float64(n)/want-1))
		if float64(n) < 0.98*want || float64(n) > 1.02*want || failed > 0 {
			t.Errorf("%s: %d admitted, want %.0f ± 2 %%; %d failed", what, n, want, failed)
		}
	}
	settle()
	check("shared", 3*time.Second)
	redis.kill()
	began := time.Now()
	n, failed := flood(t, proxies, 3*time.Second)
	// At most a burst from before, and the three shares of one. Less is no fault: what one gateway's callers leave of its
	// share, no other has, and on a busy machine they leave some.
	want := 2*burst + rate*time.Since(began).Seconds()
	if t.Logf("without Redis: %d admitted, at most %.0f wanted, %d failed", n, want, failed); float64(n) > 1.02*want || float64(n) < 0.6*(want-2*burst) || failed > 0 {
		t.Errorf("without Redis: %d admitted, want about %.0f; %d failed", n, want, failed)
	}
	redis.run(t)
	settle()
	check("Redis is back", 2*time.Second)
}

// TestSharedLimitsClosed refuses calls while there is no Redis.
func TestSharedLimitsClosed(t *testing.T) {
	p := start(t, "redis: {addresses: [\"127.0.0.1:1\"], fail_closed: true}\npolicies: [{selector: \"*\", limits: {rate: 10/s}}]\n")
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, nil).want(t, "no Redis", codes.Unavailable, 503, "LIMIT_UNKNOWN")
	})
}
