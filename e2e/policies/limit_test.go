package policies_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

func TestLimits(t *testing.T) {
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		hourly := strings.Replace(example(t, "Limits"), "60/m", "60/h", 1) // a slow test must not be given more
		p := start(t, hourly)
		for i := range 3 {
			o := call(t, p, nil)
			o.wantOK(t, "within the burst")
			if o.header == nil { // a WebSocket's messages have no headers
				continue
			}
			want := []string{fmt.Sprintf(`"burst";r=%d;t=`, 2-i), fmt.Sprintf(`, "daily";r=%d;t=`, 999-i)}
			if got := o.header["ratelimit"]; len(got) != 1 || !strings.HasPrefix(got[0], want[0]) || !strings.Contains(got[0], want[1]) {
				t.Errorf("ratelimit %q, want %q…", got, want)
			}
			if got, want := o.header["ratelimit-policy"], []string{`"burst";q=60;w=3600, "daily";q=1000;w=86400`}; !slices.Equal(got, want) {
				t.Errorf("ratelimit-policy %q, want %q", got, want)
			}
		}
		o := call(t, p, nil)
		o.want(t, "over the burst", codes.ResourceExhausted, 429, "RATE_LIMITED")
		o.wantRetry(t, "over the burst", time.Minute)
		if got := o.header["ratelimit"]; len(got) != 1 || !strings.HasPrefix(got[0], `"burst";r=0;t=`) {
			t.Errorf("ratelimit %q", got)
		}
		if retryDelay(o) <= 0 {
			t.Errorf("no RetryInfo in %v", o.details)
		}
		// A reload that does not touch the limit forgets nothing.
		p.reload(t, hourly+"- {selector: bank.v1.Accounts.Get, timeout: 3s}\n")
		call(t, p, nil).want(t, "after a reload", codes.ResourceExhausted, 429, "RATE_LIMITED")
		p.reload(t, "policies: [{selector: bank.v1.Diagnostics.*, limits: {concurrent: \"5\", per: method}}]\n")
		call(t, p, nil).wantOK(t, "with other limits")
	})
}

// retryDelay is that of the RetryInfo among an outcome's details; 0 if there is none.
func retryDelay(o outcome) time.Duration {
	for _, d := range o.details {
		switch d := d.(type) {
		case *errdetails.RetryInfo:
			return d.GetRetryDelay().AsDuration()
		case map[string]any:
			if text, ok := d["retryDelay"].(string); ok {
				delay, _ := time.ParseDuration(text)
				return delay
			}
		}
	}
	return 0
}

// wantRetry checks what a refusal says of when to try again, which is in max at the latest.
func (o outcome) wantRetry(t *testing.T, what string, max time.Duration) {
	t.Helper()
	after, err := strconv.Atoi(strings.Join(o.header["retry-after"], ""))
	if delay := retryDelay(o); err != nil || delay <= 0 || delay > max || time.Duration(after)*time.Second < delay || time.Duration(after-1)*time.Second >= delay {
		t.Errorf("%s: retry-after %q, RetryInfo %v; want the same, up to %v", what, o.header["retry-after"], delay, max)
	}
}

// TestCost: a call weighs what its method's cost says, and all methods of a block share its limit.
func TestCost(t *testing.T) {
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		p := start(t, "policies:\n- {selector: bank.v1.Diagnostics.*, limits: [{name: weight, rate: 7/h}]}\n- {selector: bank.v1.Diagnostics.Metadata, cost: 3}\n")
		for _, left := range []int{4, 1} {
			o := call(t, p, nil)
			o.wantOK(t, "within the limit")
			if got := o.header["ratelimit"]; o.header != nil && (len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprintf(`"weight";r=%d;`, left))) {
				t.Errorf("ratelimit %q, want %d left", got, left)
			}
		}
		call(t, p, nil).want(t, "too heavy for what is left", codes.ResourceExhausted, 429, "RATE_LIMITED")
		if code, _, body := p.get(t, "/v1/diagnostics/echo?text=light", nil); code != 200 {
			t.Errorf("a call of weight 1: %d %s", code, body)
		}
		if code, _, body := p.get(t, "/v1/diagnostics/echo?text=light", nil); code != 429 {
			t.Errorf("and one more: %d %s", code, body)
		}
	})
}

// TestLimitsOfErrors: who gets an error from the backend is told as well what is left.
func TestLimitsOfErrors(t *testing.T) {
	p := start(t, example(t, "Limits"))
	want := func(what string, got []string, left int) {
		t.Helper()
		if len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprintf(`"burst";r=%d;`, left)) {
			t.Errorf("%s: ratelimit %q, want %d left", what, got, left)
		}
	}
	code, h, body := p.get(t, "/v1/diagnostics/fail?code=5&message=none", nil)
	if code != 404 {
		t.Errorf("REST: %d %s", code, body)
	}
	want("REST", h.Values("RateLimit"), 2)
	var header, trailer metadata.MD
	_, err := bankv1.NewDiagnosticsClient(p.conn).Fail(t.Context(), &bankv1.FailRequest{Code: int32(codes.NotFound)}, grpc.Header(&header), grpc.Trailer(&trailer))
	if status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	want("gRPC", append(header["ratelimit"], trailer["ratelimit"]...), 1)
	resp, err := p.http.Post("http://"+p.addr+"/bank.v1.Diagnostics/Fail", "application/json", strings.NewReader(`{"code":5}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 {
		t.Errorf("Connect: %s", resp.Status)
	}
	want("Connect", resp.Header.Values("RateLimit"), 0)
}

// TestLimitBeforeAuthentication: a limit by address holds who tries credentials, before these are looked at; what it counted of a
// call that another limit refuses is given back.
func TestLimitBeforeAuthentication(t *testing.T) {
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		p := start(t, fmt.Sprintf(`
consumers: {providers: {keys: {api_key: {}}}, known: {shop: {api_keys: [%q]}}}
policies:
- {selector: "*", auth: {require: [keys]}, limits: [{name: consumer, quota: 2/day}, {name: address, rate: 4/h, burst: 4, per: [ip, method]}]}
`, sha("shop")))
		shop, guess := map[string]string{"x-api-key": "shop"}, map[string]string{"x-api-key": "guess"}
		for i := range 2 {
			o := call(t, p, shop)
			o.wantOK(t, "within both")
			if o.header == nil { // a WebSocket's messages have no headers
				continue
			}
			var left, full, quota int
			got, want := o.header["ratelimit"], 900*(i+1)
			if _, err := fmt.Sscanf(strings.Join(got, "\n"), `"address";r=%d;t=%d, "consumer";r=%d;t=`, &left, &full, &quota); err != nil || left != 3-i || quota != 1-i || full > want || full < want-int(patience.Seconds()) {
				t.Errorf("ratelimit %q, want %d left, all of it in %d s, and %d; %v", got, 3-i, want, 1-i, err)
			}
			if got, want := o.header["ratelimit-policy"], []string{`"address";q=4;w=3600, "consumer";q=2;w=86400`}; !slices.Equal(got, want) {
				t.Errorf("ratelimit-policy %q, want %q", got, want)
			}
		}
		for range 5 {
			o := call(t, p, shop)
			o.want(t, "over the quota", codes.ResourceExhausted, 429, "QUOTA_EXCEEDED")
			if got := o.header["ratelimit"]; len(got) != 1 || !strings.HasPrefix(got[0], `"consumer";r=0;t=`) {
				t.Errorf("over the quota: ratelimit %q", got)
			}
		}
		for i := range 2 {
			o := call(t, p, guess)
			o.want(t, "a guess", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
			if got, want := o.header["ratelimit"], fmt.Sprintf(`"address";r=%d;t=`, 1-i); len(got) != 1 || !strings.HasPrefix(got[0], want) {
				t.Errorf("a guess: ratelimit %q, want %q…", got, want)
			}
		}
		call(t, p, guess).want(t, "one guess too many", codes.ResourceExhausted, 429, "RATE_LIMITED")
		call(t, p, shop).want(t, "another's, from there", codes.ResourceExhausted, 429, "RATE_LIMITED")
	})
}

// TestLimitByHeader counts by a header that no other setting passes on: over REST and WebSocket all callers were one.
func TestLimitByHeader(t *testing.T) {
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		p := start(t, "policies: [{selector: \"*\", limits: [{rate: 1/h, per: \"header:x-tenant\"}]}]\n")
		for _, who := range []string{"a", "b"} {
			call(t, p, map[string]string{"x-tenant": who}).wantOK(t, who)
			call(t, p, map[string]string{"x-tenant": who}).want(t, who+" again", codes.ResourceExhausted, 429, "RATE_LIMITED")
		}
	})
}

// ofStatus is the outcome of a call by gRPC.
func ofStatus(err error) outcome {
	st := status.Convert(err)
	o := outcome{code: st.Code(), message: st.Message()}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			o.reason = info.GetReason()
		}
	}
	return o
}

// rates are the ways to call Rates.Get.
var rates = map[string]func(t *testing.T, p *proxy, base, quote string) outcome{
	"REST": func(t *testing.T, p *proxy, base, quote string) outcome {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url("http")+"/v1/rates/"+base+"/"+quote, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := p.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return ofHTTP(t, resp)
	},
	"gRPC": func(t *testing.T, p *proxy, base, quote string) outcome {
		_, err := bankv1.NewRatesClient(p.conn).Get(t.Context(), &bankv1.GetRateRequest{Base: base, Quote: quote})
		return ofStatus(err)
	},
	"WebSocket": func(t *testing.T, p *proxy, base, quote string) outcome {
		_, o := p.webSocket(t, "/v1/rates/"+base+"/"+quote, nil)
		if o.code != codes.OK {
			o.reason = "RATE_LIMITED" // a close frame has no details
		}
		return o
	},
}

// TestLimitByField counts unary calls and streams by a field of the request.
func TestLimitByField(t *testing.T) {
	for name, rate := range rates {
		t.Run(name, func(t *testing.T) {
			p := start(t, example(t, "Limits by a field of the request"))
			for _, base := range []string{"EUR", "USD"} {
				for _, quote := range []string{"GBP", "CHF"} {
					if o := rate(t, p, base, quote); o.code != codes.OK {
						t.Errorf("%s in %s: %v %s", base, quote, o.code, o.message)
					}
				}
				rate(t, p, base, "GBP").want(t, base, codes.ResourceExhausted, 429, "RATE_LIMITED")
			}
			p.reload(t, example(t, "Limits by a field of the request")+"- {selector: bank.v1.Accounts.Get, timeout: 3s}\n")
			rate(t, p, "EUR", "GBP").want(t, "after a reload", codes.ResourceExhausted, 429, "RATE_LIMITED")
		})
	}
	const msg = `{"name":%q,"amount":{"currency":"EUR","units":"1"}}`
	for name, deposit := range map[string]func(t *testing.T, p *proxy, names ...string) outcome{
		"REST": func(t *testing.T, p *proxy, names ...string) outcome {
			var body strings.Builder
			for _, n := range names {
				fmt.Fprintf(&body, msg+"\n", n)
			}
			return p.post(t, "/v1/accounts:deposit", body.String(), nil)
		},
		"gRPC": func(t *testing.T, p *proxy, names ...string) outcome {
			s, err := bankv1.NewAccountsClient(p.conn).Deposit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				_ = s.Send(&bankv1.DepositRequest{Name: n, Amount: &bankv1.Money{Currency: "EUR", Units: 1}})
			}
			_, err = s.CloseAndRecv()
			return ofStatus(err)
		},
		"WebSocket": func(t *testing.T, p *proxy, names ...string) outcome {
			var msgs []string
			for _, n := range names {
				msgs = append(msgs, fmt.Sprintf(msg, n))
			}
			_, o := p.webSocket(t, "/v1/accounts:deposit", nil, append(msgs, "")...)
			if o.code != codes.OK {
				o.reason = "QUOTA_EXCEEDED" // a close frame has no details
			}
			return o
		},
	} {
		t.Run(name+" stream", func(t *testing.T) {
			p := start(t, example(t, "Limits by a field of the request"))
			for range 2 { // the first message decides
				if o := deposit(t, p, "7", "1", "1", "1"); o.code != codes.OK {
					t.Errorf("%v %s", o.code, o.message)
				}
			}
			deposit(t, p, "7").want(t, "a third call", codes.ResourceExhausted, 429, "QUOTA_EXCEEDED")
			if o := deposit(t, p, "1"); o.code != codes.OK {
				t.Errorf("another account: %v %s", o.code, o.message)
			}
			p.reload(t, "policies: [{selector: bank.v1.Accounts.Deposit, limits: [{quota: 2/day, per: \"field:name\", messages: true}]}]\n")
			if o := deposit(t, p, "7", "1", "7", "1"); o.code != codes.OK {
				t.Errorf("two messages of each: %v %s", o.code, o.message)
			}
			deposit(t, p, "2", "7").want(t, "a third message", codes.ResourceExhausted, 429, "QUOTA_EXCEEDED")
		})
	}
}

// TestLimitByFieldUnderLoad changes the field that a limit goes by, and whether it is shared in Redis, while calls go on over
// REST, gRPC and WebSocket that every configuration allows: none fails. Then one is in force that refuses them.
func TestLimitByFieldUnderLoad(t *testing.T) {
	redis := startRedis(t).Addr
	text := func(limit string) string {
		return fmt.Sprintf("redis: {addresses: [%q], timeout: 10s}\npolicies: [{selector: bank.v1.Rates.Get, limits: [%s]}]\n", redis, limit)
	}
	between := []string{
		`{name: a, rate: 1000000/s, per: "field:base", local: true}`, `{name: a, rate: 500000/s, per: [ip, "field:quote"], local: true}`,
		`{name: a, quota: 1000000/day, per: "field:base"}, {concurrent: 100, per: "field:quote"}`, "{name: a, rate: 1000000/s}",
	}
	p := start(t, text(between[0]))
	load := underLoad(t, func(t *testing.T, name string, _, n int, _ caller) {
		if o := rates[name](t, p, "EUR", []string{"USD", "CHF", "GBP"}[n%3]); o.code != codes.OK {
			t.Errorf("%s: %v %s", name, o.code, o.message)
		}
	})
	for i := range 3 * len(between) {
		p.reload(t, text(between[(i+1)%len(between)]))
		load.calls(t, 20)
	}
	load.end()
	p.reload(t, text(`{name: last, rate: 1/h, per: "field:base", local: true}`))
	if o := rates["gRPC"](t, p, "EUR", "USD"); o.code != codes.OK {
		t.Errorf("the one call there is: %v %s", o.code, o.message)
	}
	for name, rate := range rates {
		rate(t, p, "EUR", "CHF").want(t, name, codes.ResourceExhausted, 429, "RATE_LIMITED")
	}
}

// TestSharedLimitByField: what the requests of one proxy used of a field's value the other knows, by all protocols.
func TestSharedLimitByField(t *testing.T) {
	config := fmt.Sprintf("redis: {addresses: [%q], timeout: 10s, fail_closed: true}\npolicies:\n", startRedis(t).Addr) +
		"- {selector: bank.v1.Rates.*, limits: [{name: base, quota: 3/day, per: \"field:base\"}]}\n"
	one, two := start(t, config), start(t, config)
	for _, p := range []*proxy{one, two} { // until Redis is connected nothing is let through
		for deadline := time.Now().Add(patience); rates["gRPC"](t, p, "GBP", "CHF").code == codes.Unavailable; {
			if time.Now().After(deadline) {
				t.Fatal("no Redis")
			}
		}
	}
	for _, base := range []string{"EUR", "USD"} {
		for name, rate := range rates { // three calls
			p := one
			if name == "REST" {
				p = two
			}
			if o := rate(t, p, base, "CHF"); o.code != codes.OK {
				t.Errorf("%s of %s: %v %s", name, base, o.code, o.message)
			}
		}
		for name, rate := range rates {
			for _, p := range []*proxy{one, two} {
				o := rate(t, p, base, "GBP")
				if name == "WebSocket" {
					o.reason = "QUOTA_EXCEEDED" // a close frame has no details
				}
				o.want(t, name+" of "+base, codes.ResourceExhausted, 429, "QUOTA_EXCEEDED")
			}
		}
	}
	if o := rates["gRPC"](t, two, "CHF", "EUR"); o.code != codes.OK {
		t.Errorf("another base: %v %s", o.code, o.message)
	}
}

// TestSharedFromTheStart: the first call after a start, and after a reload that brings another Redis, is counted in Redis.
func TestSharedFromTheStart(t *testing.T) {
	config := func(redis string, limit int) string {
		return fmt.Sprintf("\nredis: {addresses: [%q], timeout: 10s, instances: 4}\npolicies: [{selector: \"*\", limits: [{name: shared, rate: %d/h, everybody: true}]}]\n", redis, limit)
	}
	redis := startRedis(t).Addr
	p := start(t, config(redis, 100))
	for _, limit := range []int{100, 200} {
		if limit > 100 {
			p.reload(t, config(startRedis(t).Addr, limit))
		}
		if got, want := callREST(t, p, nil).header["ratelimit"], fmt.Sprintf(`"shared";r=%d;t=`, limit-1); len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("ratelimit %q, want %s…", got, want)
		}
	}
}

// TestLimitByFieldOption has the limit be one of the method's option, where a field that is not there is a fault too.
func TestLimitByFieldOption(t *testing.T) {
	option := func(field string) string {
		return optionSet(t, map[string]string{"bank.v1.Rates.Get": fmt.Sprintf(`limits: {rate: "1/h" per: "field:%s"}`, field)}, nil)
	}
	p := start(t, optionConfig(option("base"), ""))
	get := func(base string) codes.Code {
		_, err := bankv1.NewRatesClient(p.conn).Get(t.Context(), &bankv1.GetRateRequest{Base: base, Quote: "CHF"})
		return status.Code(err)
	}
	for _, base := range []string{"EUR", "USD"} {
		if first, second := get(base), get(base); first != codes.OK || second != codes.ResourceExhausted {
			t.Errorf("%s: %v, then %v", base, first, second)
		}
	}
	const want = `for bank.v1.Rates.Get: colour: bank.v1.GetRateRequest has no field "colour"`
	found := faults(t, "\n"+optionConfig(option("colour"), ""))
	if !slices.ContainsFunc(found, func(f string) bool {
		return strings.Contains(f, "option (transom.v1.policy) of bank.v1.Rates.Get") && strings.Contains(f, want)
	}) {
		t.Errorf("faults %q, want one of the option with %q", found, want)
	}
}

func TestQuotaOfPlans(t *testing.T) {
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
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
			p.exhaust(t, key, call, map[string]string{"x-api-key": key}, want, 24*time.Hour)
		}
	})
}

// exhaust checks that a caller may make n calls, and is told then when it may again: in max at the latest.
func (p *proxy) exhaust(t *testing.T, who string, call caller, header map[string]string, n int, max time.Duration) {
	t.Helper()
	for range n {
		call(t, p, header).wantOK(t, who)
	}
	for range 2 {
		o := call(t, p, header)
		o.want(t, fmt.Sprintf("%s after %d calls", who, n), codes.ResourceExhausted, 429, "QUOTA_EXCEEDED")
		o.wantRetry(t, who, max)
	}
}

// TestPlansOfTokens has tokens say what plan their callers are on, and a known consumer's own plan go before it.
func TestPlansOfTokens(t *testing.T) {
	id := startOIDC(t)
	tier := func(sub, tier string) map[string]string {
		return map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"sub": sub, "org": map[string]any{"tier": tier}})}
	}
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		p := start(t, fmt.Sprintf(`
consumers:
  providers: {main: {jwt: {issuer: %q, audiences: [bank], plan_claim: org.tier, outbound: {private: true}}}}
  known: {carol: {identities: ["main:carol"], plan: gold}}
policies:
- {selector: "*", auth: {require: [main]}, limits: [{quota: 1/month, plans: {gold: 3/month, silver: 2/month}}]}
`, id.URL))
		for _, tc := range []struct {
			sub, tier string
			want      int
		}{{"ann", "gold", 3}, {"bob", "silver", 2}, {"dan", "tin", 1}, {"carol", "silver", 3}} {
			p.exhaust(t, tc.sub, call, tier(tc.sub, tc.tier), tc.want, 31*24*time.Hour)
		}
	})
}

// TestLimitByClaim counts all callers together whose tokens say the same of a claim.
func TestLimitByClaim(t *testing.T) {
	id := startOIDC(t)
	of := func(sub, org string) map[string]string {
		return map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"sub": sub, "org": map[string]any{"id": org}})}
	}
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		p := start(t, fmt.Sprintf(`
consumers: {providers: {main: {jwt: {issuer: %q, audiences: [bank], outbound: {private: true}}}}}
policies: [{selector: "*", auth: {require: [main]}, limits: [{quota: 2/day, per: "claim:org.id"}]}]
`, id.URL))
		call(t, p, of("ann", "acme")).wantOK(t, "ann of acme")
		p.exhaust(t, "bob of acme", call, of("bob", "acme"), 1, 24*time.Hour)
		p.exhaust(t, "ann of globex", call, of("ann", "globex"), 2, 24*time.Hour)
		call(t, p, of("ann", "acme")).want(t, "ann of acme again", codes.ResourceExhausted, 429, "QUOTA_EXCEEDED")
	})
}

// TestConcurrentByEveryWay: who finds no room is told so, and when to try again, in the words of every protocol.
func TestConcurrentByEveryWay(t *testing.T) {
	o := openTo(t, "policies: [{selector: bank.v1.*, limits: [{name: room, concurrent: 1, everybody: true}]}]")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	s, err := bankv1.NewAccountsClient(o.conn).Watch(ctx, &bankv1.WatchRequest{Name: "customers/1/accounts/1", Interval: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil { // it takes the only place
		t.Fatal(err)
	}
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		got := call(t, o.proxy, nil)
		got.want(t, "no room", codes.ResourceExhausted, 429, "CONCURRENCY_LIMITED")
		got.wantRetry(t, "no room", time.Second)
		if want := `limit "room": 1 calls at a time are allowed`; got.message != want {
			t.Errorf("message %q, want %q", got.message, want)
		}
	})
	o.everyWay(t, func(t *testing.T, _ string, call func(*testing.T, ask) *reply) {
		if r := call(t, metadataAsk(nil)); r.code != codes.ResourceExhausted || r.reason != "CONCURRENCY_LIMITED" || r.header.Get("Retry-After") != "1" {
			t.Errorf("%v, reason %q, retry-after %q; want ResourceExhausted, CONCURRENCY_LIMITED, 1", r.code, r.reason, r.header.Get("Retry-After"))
		}
	})
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
		{"policies:\n- selector: bank.v1.Rates.*\n  limits: [{rate: 10/s, per: [ip, \"field:quote\"]}]\n", `3:35: for bank.v1.Rates.List: quote: bank.v1.ListRatesRequest has no field "quote"`},
		{"policies:\n- selector: bank.v1.Accounts.Deposit\n  limits: [{rate: 10/s}, {quota: 1/day, per: \"field:amount.colour\"}]\n", `3:46: for bank.v1.Accounts.Deposit: amount.colour: bank.v1.Money has no field "colour"`},
		{"policies:\n- selector: bank.v1.Accounts.Deposit\n  limits: [{rate: 10/s, per: \"field:amount\"}]\n", `3:30: for bank.v1.Accounts.Deposit: amount: bank.v1.DepositRequest.amount is a message; name a field in it`},
		{"policies:\n- selector: bank.v1.Accounts.Deposit\n  limits: [{rate: 10/s, per: \"field:\"}]\n", `3:30: "field:" is not consumer, ip`},
		{"consumers: {providers: {keys: {api_key: {header: x-key}}}}\npolicies:\n- selector: bank.v1.Rates.Get\n  auth: {require: [keys]}\n  limits: [{rate: 10/s, per: [ip, \"header:x-key\"]}]\n", `5:35: header:x-key: provider keys takes it out of calls before they are counted, so that all would be one caller's; count by consumer`},
		{"policies:\n- selector: \"*\"\n  limits: [{rate: 10/s, per: \"field:name\"}]\nunknown_methods: {cluster: bank}\n", `3:30: field:name: nobody knows the fields of methods that no descriptor tells of`},
		{"policies:\n- selector: \"*\"\n  limits: [{rate: 10/s, plans: {gold: x}}]\n", `3:39: "x" is not a rate`},
		{"policies:\n- selector: \"*\"\n  cost: 5\n  limits: [{rate: 10/s, burst: 4}]\n", `4:12: for bank.v1.Accounts.Balance and 29 more methods: calls cost 5, and no more than 4`},
		{"policies:\n- selector: \"*\"\n  limits: [{}]\n", `3:12: kind: exactly one field is required`},
		{"policies:\n- selector: \"*\"\n  limits: [{rate: 1/s, per: ip, everybody: true}]\n", `3:12: limits[0]: everybody and per exclude each other`},
		{"redis: {addresses: [\"127.0.0.1:1\", \"127.0.0.1:2\"], database: 1}\n", `1:8: redis: a cluster, which several addresses are of, has database 0`},
		{"redis: {addresses: [\"127.0.0.1:1\"], tls: {ca: /nowhere}}\npolicies:\n- selector: \"*\"\n  limits: [{rate: 1/s}]\n", `1:47: open /nowhere`},
	} {
		found := faults(t, tc.text)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
}

// redisServer is a Redis, to be stopped and run again on the same port.
type redisServer struct{ *process.Redis }

func startRedis(t *testing.T, args ...string) *redisServer {
	t.Helper()
	return &redisServer{process.StartRedis(t, args...)}
}

// decisions are what a flood of calls was told. Times are when a call was sent, or answered.
type decisions struct {
	admitted, failed int64
	began, ended     time.Time
	// firstAnswer is when the first of the calls that were let through was answered, lastRefusal when the last that was
	// refused was sent, by target.
	firstAnswer, lastRefusal []time.Time
	by                       []int64 // admitted, by target
}

// flood calls all targets in parallel, by four callers each, until enough says so.
func flood(t *testing.T, targets []*grpc.ClientConn, enough func(admitted int64) bool) decisions {
	t.Helper()
	d := decisions{
		began: time.Now(), firstAnswer: make([]time.Time, len(targets)), lastRefusal: make([]time.Time, len(targets)), by: make([]int64, len(targets)),
	}
	var mu sync.Mutex // guards d
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for i, conn := range targets {
		for range 4 {
			wg.Go(func() {
				for !enough(admitted.Load()) {
					sent := time.Now()
					_, err := bankv1.NewDiagnosticsClient(conn).Metadata(t.Context(), &bankv1.MetadataRequest{})
					mu.Lock()
					switch status.Code(err) {
					case codes.OK:
						admitted.Add(1)
						d.by[i]++
						if d.firstAnswer[i].IsZero() {
							d.firstAnswer[i] = time.Now()
						}
					case codes.ResourceExhausted:
						if sent.After(d.lastRefusal[i]) {
							d.lastRefusal[i] = sent
						}
					default:
						d.failed++
						t.Log(err)
					}
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	d.admitted, d.ended = admitted.Load(), time.Now()
	return d
}

// TestSharedLimits has three transoms, each a process of its own, share a limit in a real Redis under load, lose it, and get
// it back. What may be let through is told by when calls were sent and answered, so that a busy machine changes nothing in it
// as long as no caller stands still for all of the burst's two seconds.
func TestSharedLimits(t *testing.T) {
	redis := startRedis(t)
	const rate, burst = 150, 300 // far less than a busy machine can be asked for
	backend, set := startBank(t), descriptorSet(t)
	// On a busy machine an answer may take longer than the 100 ms that are waited for one, and then a transom goes by its own
	// share for a while.
	text := strings.NewReplacer("127.0.0.1:6379", redis.Addr, "rate: 300/s, burst: 30", fmt.Sprintf("rate: %d/s, burst: %d", rate, burst), "instances: 3", "instances: 3, timeout: 10s").
		Replace(example(t, "Limits shared by several transoms"))
	text += fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\"}]\ndescriptors: [{file: %q}]\nclusters: {bank: {target: \"static:///%s\"}}\n", set, backend)
	file := filepath.Join(t.TempDir(), "transom.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var targets []*grpc.ClientConn
	for range 3 {
		p := process.Start(t, 1, "serve", "--config", file)
		conn, err := grpc.NewClient(p.Plain, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		targets = append(targets, conn)
	}
	// shared waits until Redis decides for all three, and returns how many calls are left: of its own share a transom has a
	// third.
	shared := func() int {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			all, left := true, 0
			for _, conn := range targets {
				var md metadata.MD
				_, err := bankv1.NewDiagnosticsClient(conn).Metadata(t.Context(), &bankv1.MetadataRequest{}, grpc.Header(&md))
				if err != nil && status.Code(err) != codes.ResourceExhausted {
					t.Fatal(err)
				}
				if v := md.Get("ratelimit"); err == nil && len(v) == 1 {
					if _, err := fmt.Sscanf(v[0], `"shared";r=%d`, &left); err != nil {
						t.Fatal(err)
					}
				}
				all = all && err == nil && left > burst/2
			}
			if all {
				return left
			}
		}
		t.Fatal("Redis is not in use")
		return 0
	}
	check := func(what string) {
		t.Helper()
		left := shared()
		d := flood(t, targets, func(n int64) bool { return n >= burst+4*rate })
		first, last := slices.MinFunc(d.firstAnswer, time.Time.Compare), slices.MaxFunc(d.lastRefusal, time.Time.Compare)
		least, most := float64(left)+rate*last.Sub(first).Seconds(), burst+rate*d.ended.Sub(d.began).Seconds()
		n := float64(d.admitted)
		t.Logf("%s: %d admitted in %v, %.0f to %.0f wanted (%+.2f %% to %+.2f %%)", what, d.admitted, d.ended.Sub(d.began).Round(time.Millisecond), least, most, 100*(n/most-1), 100*(n/least-1))
		if n < 0.98*least || n > 1.02*most || last.IsZero() || d.failed > 0 {
			t.Errorf("%s: %d admitted, want %.0f to %.0f, and 2 %% on each side; %d failed", what, d.admitted, least, most, d.failed)
		}
	}
	check("shared")
	// Redis is killed while calls go on.
	var killed, restarted atomic.Bool
	d := flood(t, targets, func(n int64) bool {
		if n >= rate && killed.CompareAndSwap(false, true) {
			redis.Stop()
		}
		return n >= 2*rate
	})
	if d.failed > 0 {
		t.Errorf("%d calls failed when Redis was killed", d.failed)
	}
	// Each transom holds callers to a third, of which it may have something left: what one's callers leave, no other has.
	d = flood(t, targets, func(n int64) bool { return n >= 4*rate })
	most := burst + rate*d.ended.Sub(d.began).Seconds()
	t.Logf("without Redis: %d admitted in %v, at most %.0f wanted, by %v", d.admitted, d.ended.Sub(d.began).Round(time.Millisecond), most, d.by)
	if float64(d.admitted) > 1.02*most || d.failed > 0 {
		t.Errorf("without Redis: %d admitted, want at most %.0f; %d failed", d.admitted, most, d.failed)
	}
	for i, n := range d.by {
		if least := rate / 3 * d.lastRefusal[i].Sub(d.firstAnswer[i]).Seconds(); float64(n) < 0.98*least || d.lastRefusal[i].IsZero() {
			t.Errorf("without Redis: %d admitted by transom %d, want at least %.0f", n, i, least)
		}
	}
	// Redis comes back while calls go on.
	d = flood(t, targets, func(n int64) bool {
		if n >= rate/2 && restarted.CompareAndSwap(false, true) {
			if err := redis.Run(t); err != nil {
				t.Error(err)
			}
		}
		return n >= rate
	})
	if d.failed > 0 {
		t.Errorf("%d calls failed when Redis came back", d.failed)
	}
	check("Redis is back")
}

// TestRedisSettings: transom logs in to Redis, checks its certificate, and keeps to its database and the prefix of its keys; and where
// it may not, or it is not the right server, nothing is counted there.
func TestRedisSettings(t *testing.T) {
	ca := newAuthority(t)
	ca.issue(t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "address")
	ca.issue(t, &x509.Certificate{DNSNames: []string{"redis.internal"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "name")
	secured := func(name string) *redisServer {
		return startRedis(t, "--tls-cert-file", ca.dir+"/"+name+".crt", "--tls-key-file", ca.dir+"/"+name+".key", "--tls-ca-cert-file", ca.dir+"/ca.crt", "--tls-auth-clients", "no")
	}
	open, locked := startRedis(t), startRedis(t, "--requirepass", "s3cret")
	users := startRedis(t, "--user", "default", "off", "--user", "app", "on", ">s3cret", "~shop:*", "&*", "+@all")
	address, named := secured("address"), secured("name")
	for _, tc := range []struct {
		what     string
		redis    *redisServer
		settings string
		ok       bool
	}{
		{"no password", open, "", true},
		{"a password", locked, ", password: s3cret", true},
		{"no password where there must be one", locked, "", false},
		{"another password", locked, ", password: secret", false},
		{"a user", users, ", username: app, password: s3cret, prefix: \"shop:\"", true},
		{"a user, and keys that are not its", users, ", username: app, password: s3cret", false},
		{"another user", users, ", password: s3cret, prefix: \"shop:\"", false},
		{"another database", open, ", database: 3", true},
		{"another prefix", open, ", prefix: \"other:\"", true},
		{"TLS, by address", address, fmt.Sprintf(", tls: {ca: %q}", ca.dir+"/ca.crt"), true},
		{"TLS, by name", named, fmt.Sprintf(", tls: {ca: %q, server_name: redis.internal}", ca.dir+"/ca.crt"), true},
		{"TLS, of another name", named, fmt.Sprintf(", tls: {ca: %q}", ca.dir+"/ca.crt"), false},
		{"TLS, of nobody known", address, ", tls: {}", false},
		{"plain text where there must be TLS", address, "", false},
	} {
		config := fmt.Sprintf("redis: {addresses: [%q], timeout: 10s, fail_closed: true%s}\npolicies: [{selector: \"*\", limits: [{name: all, rate: 100/h, everybody: true}]}]\n", tc.redis.Addr, tc.settings)
		for i := range 2 { // of two transoms; each setting that does has a count of its own
			p := start(t, config)
			o := callREST(t, p, nil)
			if !tc.ok {
				o.want(t, tc.what, codes.Unavailable, 503, "LIMIT_UNKNOWN")
				break
			}
			o.wantOK(t, tc.what)
			if got, want := o.header["ratelimit"], fmt.Sprintf(`"all";r=%d;t=`, 99-i); len(got) != 1 || !strings.HasPrefix(got[0], want) {
				t.Errorf("%s, transom %d: ratelimit %q, want %s…", tc.what, i, got, want)
			}
		}
	}
}

// TestRedisUnderLoad changes the Redis of limits and of the cache while calls go on, and its time and its keys, and takes it out and
// puts it in again: no call fails, and what is in force is where calls are counted. In the end it has one call left.
func TestRedisUnderLoad(t *testing.T) {
	one, two := startRedis(t), startRedis(t)
	config := func(r *redisServer, settings, limit string) string {
		const policies = "policies: [{selector: bank.v1.Diagnostics.Metadata, limits: [{name: all, %s, everybody: true}], cache: {ttl: 0.001s, stale_if_error: 1h%s}}]\n"
		if r == nil {
			return "\n" + fmt.Sprintf(policies, limit, "")
		}
		return fmt.Sprintf("\nredis: {addresses: [%q], %s}\n", r.Addr, settings) + fmt.Sprintf(policies, limit, ", redis: true")
	}
	const plenty = "quota: 1000000/month" // whose keys stay
	p := start(t, config(one, "timeout: 10s", plenty))
	load := underLoad(t, func(t *testing.T, name string, _, _ int, call caller) { call(t, p, nil).wantOK(t, name) })
	for i := range 3 {
		for j, step := range []struct {
			redis            *redisServer
			settings, prefix string
		}{
			{two, "timeout: 10s, prefix: \"%s\"", "two-%d:"},
			{two, "timeout: 9s, prefix: \"%s\"", "other-%d:"},
			{nil, "", ""},
			{one, "timeout: 10s, prefix: \"%s\"", "one-%d:"},
		} {
			if strings.Contains(step.prefix, "%d") {
				step.prefix = fmt.Sprintf(step.prefix, i)
				step.settings = fmt.Sprintf(step.settings, step.prefix)
			}
			p.reload(t, config(step.redis, step.settings, plenty))
			load.calls(t, 20)
			if step.redis == nil {
				continue
			}
			for _, kind := range []string{"all:", "cache:"} {
				if !step.redis.holds(t, step.prefix+kind, func() { load.calls(t, 1) }) { // it may not be connected yet
					t.Errorf("round %d, step %d: Redis has no keys of %s", i, j, step.prefix+kind)
				}
			}
		}
	}
	load.end()
	p.reload(t, config(two, "timeout: 10s, prefix: \"last:\", fail_closed: true", "quota: 1/month"))
	o := callREST(t, p, nil)
	for deadline := time.Now().Add(patience); o.code == codes.Unavailable && time.Now().Before(deadline); { // it may not be connected yet
		o = callREST(t, p, nil)
	}
	o.wantOK(t, "the one call there is")
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, nil).want(t, "after the last reload", codes.ResourceExhausted, 429, "QUOTA_EXCEEDED")
	})
}

// TestSharedLimitsCounted: what is decided without Redis is counted.
func TestSharedLimitsCounted(t *testing.T) {
	p := start(t, "admin: {address: \"127.0.0.1:0\"}\nredis: {addresses: [\"127.0.0.1:1\"], instances: 2}\npolicies: [{selector: \"*\", limits: [{rate: 10/h, everybody: true}]}]\n")
	n := 0
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, nil).wantOK(t, "of this transom's part")
		n++
	})
	want := fmt.Sprintf("transom_policy_decisions_total{decision=\"not shared\",policy=\"limit\"} %d\n", n)
	for deadline := time.Now().Add(patience); ; { // a call is counted after its answer
		resp, err := p.http.Get("http://" + p.AdminAddr().String() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), want) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the metrics do not say %s", want)
		}
	}
}

// TestSharedLimitsClosed refuses calls while there is no Redis.
func TestSharedLimitsClosed(t *testing.T) {
	p := start(t, "redis: {addresses: [\"127.0.0.1:1\"], fail_closed: true}\npolicies: [{selector: \"*\", limits: {rate: 10/s}}]\n")
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, nil).want(t, "no Redis", codes.Unavailable, 503, "LIMIT_UNKNOWN")
	})
}
