package policies_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	bankv1 "transom/proto/bank/v1"
)

// TestLimitByEveryWay: calls by whatever protocol and version of HTTP count together, and a refusal says by each of them when to
// come again, what is left, and what else every answer says.
func TestLimitByEveryWay(t *testing.T) {
	o := openTo(t, fmt.Sprintf(`
consumers:
  providers: {keys: {api_key: {}}}
  known: {shop: {api_keys: [%q]}}
policies:
- {selector: "*", auth: {require: [keys]}, limits: [{name: all, rate: %d/h}], deprecated: {since: "2026-01-01"}}
`, sha("k"), len(ways)))
	key := http.Header{"x-api-key": {"k"}}
	left := len(ways)
	for _, code := range []codes.Code{codes.OK, codes.ResourceExhausted} {
		o.everyWay(t, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
			r := call(t, metadataAsk(key))
			left = max(0, left-1)
			if r.code != code || code != codes.OK && r.reason != "RATE_LIMITED" {
				t.Errorf("ends with %v %s, want %v", r.code, r.reason, code)
			}
			if bare(way) && code == codes.OK {
				return
			}
			if got, want := r.header.Get("Ratelimit"), fmt.Sprintf(`"all";r=%d;t=`, left); !strings.HasPrefix(got, want) {
				t.Errorf("ratelimit %q, want %s…", got, want)
			}
			if got := r.header.Get("Retry-After"); (got != "") != (code != codes.OK) {
				t.Errorf("%v: retry-after %q", code, got)
			}
			if got := r.header.Get("Deprecation"); got != "@1767225600" {
				t.Errorf("%v: deprecation %q", code, got)
			}
		})
	}
}

// TestRefusedByEveryWay: credentials that are none, doubled, or forged are refused alike, with a challenge.
func TestRefusedByEveryWay(t *testing.T) {
	id := startOIDC(t)
	o := openTo(t, fmt.Sprintf(jwtConfig, id.URL))
	token := "Bearer " + id.token(t, nil)
	o.everyWay(t, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
		if r := call(t, metadataAsk(http.Header{"authorization": {token}})); r.code != codes.OK || r.seen()["x-transom-consumer"][0] != "main:alice" {
			t.Errorf("a good token: %v %s", r.code, r.reason)
		}
		for _, tc := range []struct {
			values    []string
			reason    string
			challenge string
		}{
			{nil, "CREDENTIALS_MISSING", `Bearer realm="transom"`},
			{[]string{token, token}, "CREDENTIALS_INVALID", `Bearer realm="transom", error="invalid_token"`},
			{[]string{token + ", " + token}, "CREDENTIALS_INVALID", `Bearer realm="transom", error="invalid_token"`},
			{[]string{token + "x"}, "CREDENTIALS_INVALID", `Bearer realm="transom", error="invalid_token"`},
			{[]string{"Bearer a b"}, "CREDENTIALS_INVALID", `Bearer realm="transom", error="invalid_token"`},
		} {
			header := http.Header{}
			if tc.values != nil {
				header["authorization"] = tc.values
			}
			r := call(t, metadataAsk(header))
			if r.code != codes.Unauthenticated || r.reason != tc.reason || r.header.Get("Www-Authenticate") != tc.challenge {
				t.Errorf("%.30q: %v %s, challenge %q; want %s, %q", tc.values, r.code, r.reason, r.header.Get("Www-Authenticate"), tc.reason, tc.challenge)
			}
		}
	})
}

// TestSecondCredential: of a call with several credentials the first provider's counts, and the backend gets none of the others, which
// nobody has looked at; forward leaves in only the one that was.
func TestSecondCredential(t *testing.T) {
	id := startOIDC(t)
	o := openTo(t, "")
	token := "Bearer " + id.token(t, nil)
	for _, tc := range []struct {
		require string
		forward [2]bool // of keys and main
		header  http.Header
		seen    map[string]string
	}{
		{"keys, main", [2]bool{}, http.Header{"x-api-key": {"k"}, "authorization": {"Bearer forged"}}, map[string]string{"x-transom-consumer": "shop"}},
		{"keys, main", [2]bool{true, true}, http.Header{"x-api-key": {"k"}, "authorization": {"Bearer forged"}}, map[string]string{"x-transom-consumer": "shop", "x-api-key": "k"}},
		{"keys, main", [2]bool{}, http.Header{"authorization": {token}}, map[string]string{"x-transom-consumer": "main:alice"}},
		{"main, keys", [2]bool{}, http.Header{"x-api-key": {"nonsense"}, "authorization": {token}}, map[string]string{"x-transom-consumer": "main:alice"}},
		{"main, keys", [2]bool{false, true}, http.Header{"x-api-key": {"nonsense"}, "authorization": {token}}, map[string]string{"x-transom-consumer": "main:alice", "authorization": token}},
		{"keys", [2]bool{}, http.Header{"x-api-key": {"k"}, "authorization": {"Bearer of the backend's own"}}, map[string]string{"x-transom-consumer": "shop", "authorization": "Bearer of the backend's own"}},
		{"keys, main", [2]bool{}, http.Header{"x-api-key": {"k"}, "authorization": {"Digest own"}}, map[string]string{"x-transom-consumer": "shop", "authorization": "Digest own"}},
	} {
		o.reload(t, o.with(fmt.Sprintf(`
consumers:
  providers:
    keys: {forward: %v, api_key: {}}
    main: {forward: %v, jwt: {issuer: %q, audiences: [bank], outbound: {private: true}}}
  known: {shop: {api_keys: [%q]}}
policies: [{selector: "*", auth: {require: [%s]}}]
`, tc.forward[0], tc.forward[1], id.URL, sha("k"), tc.require)))
		o.everyWay(t, func(t *testing.T, _ string, call func(*testing.T, ask) *reply) {
			r := call(t, metadataAsk(tc.header))
			if r.code != codes.OK {
				t.Fatalf("%s with %v: %v %s", tc.require, tc.header, r.code, r.reason)
			}
			seen := r.seen()
			for _, name := range []string{"x-transom-consumer", "x-api-key", "authorization"} {
				if got := strings.Join(seen[name], "; "); got != tc.seen[name] {
					t.Errorf("%s with %.60v: the backend sees %s %q, want %q", tc.require, tc.header, name, got, tc.seen[name])
				}
			}
		})
	}
}

// TestForwardedByEveryWay: what is said of the client in the names that proxies use is said by a proxy that is trusted, or it does
// not reach the backend, in no spelling; and in a frame, which no proxy looks into, not even then.
func TestForwardedByEveryWay(t *testing.T) {
	const config = `
security: {trusted_proxies: [%s]}
metadata: {request_headers: [x-real-ip, forwarded, x-client-ip, true-client-ip, x-forwarded-port, x-forwarded-client-cert, x-envoy-external-address, x-mine]}
`
	o := openTo(t, fmt.Sprintf(config, "192.0.2.1"))
	trusts := o.with(fmt.Sprintf(config, "127.0.0.1"))
	unlisted := o.with("metadata: {request_headers: [x-mine]}\n")
	names := []string{
		"x-real-ip", "forwarded", "x-client-ip", "true-client-ip", "x-forwarded-port", "x-forwarded-client-cert", "x-envoy-external-address",
		"X-Real-IP", "x_real_ip", "x.real.ip", "x_forwarded_for", "x-forwarded_for", "x.forwarded.for", "x_forwarded_host", "x-original-forwarded-for",
	}
	for _, next := range []string{"", trusts, unlisted} {
		trusted := next == trusts
		if next != "" {
			o.reload(t, next)
		}
		o.everyWay(t, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
			header := http.Header{"x-forwarded-for": {"6.6.6.6"}, "x-forwarded-host": {"6.6.6.6"}, "x-forwarded-for-bin": {"Ni42LjYuNg"}, "x-mine": {"mine"}}
			for _, name := range names {
				header[name] = []string{"6.6.6.6"}
				header["grpc-metadata-"+name] = []string{"6.6.6.7"}
			}
			r := call(t, metadataAsk(header))
			want := map[string]string{"x-forwarded-for": "127.0.0.1"}
			if trusted && !strings.Contains(way, "frame") && !strings.Contains(way, "block") {
				want = map[string]string{"x-forwarded-for": "6.6.6.6, 127.0.0.1", "x-forwarded-host": "6.6.6.6", "x-real-ip": "6.6.6.6", "forwarded": "6.6.6.6", "x-client-ip": "6.6.6.6"}
			}
			seen := r.seen()
			for name, value := range want {
				if got := strings.Join(slices.Compact(seen[name]), "; "); got != value {
					t.Errorf("trusted %v: the backend sees %s %q, want %q", trusted, name, got, value)
				}
			}
			for name, values := range seen {
				if s := fmt.Sprint(values); strings.Contains(s, "6.6.6.7") || len(want) == 1 && strings.Contains(s, "6.6.6.6") || strings.ContainsAny(name, "_.") {
					t.Errorf("trusted %v: the backend sees %s %s", trusted, name, s)
				}
			}
			if r.code != codes.OK || strings.Join(seen["x-mine"], "") != "mine" {
				t.Errorf("trusted %v: %v %s, and of others %q", trusted, r.code, r.reason, seen["x-mine"])
			}
		})
	}
}

// TestExpiryByEveryWay: a stream ends with the token it was opened by, whatever it came by, and whichever side is speaking.
func TestExpiryByEveryWay(t *testing.T) {
	id := startOIDC(t)
	o := openTo(t, fmt.Sprintf(strings.Replace(jwtConfig, "leeway: 1s", "leeway: 0s", 1), id.URL))
	token := func(life time.Duration) string {
		return "Bearer " + id.token(t, map[string]any{"exp": time.Now().Add(life).Unix()})
	}
	// living runs fn with a token; where the machine was too busy for the call to begin in the token's time, again with one that lives
	// longer.
	living := func(t *testing.T, fn func(ctx context.Context, header http.Header) (began bool)) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		life := 2 * time.Second
		for !fn(ctx, http.Header{"authorization": {token(life)}}) && !t.Failed() {
			if life *= 2; life > patience/2 {
				t.Fatal("no call begins while its token is good")
			}
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	// All at once: what takes its time is the tokens.
	run := func(name string, fn func(t *testing.T)) { wg.Go(func() { t.Run(name, fn) }) }
	for way := range ways {
		if way == "Connect GET" { // which has no streams
			continue
		}
		run("backend, "+way, func(t *testing.T) {
			o.oneWay(t, way, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
				// Where two messages take longer than the token lives, one that lives longer shows the same.
				for life := 2 * time.Second; ; life *= 2 {
					r := call(t, ask{
						method: "/bank.v1.Accounts/Watch", rest: "/v1/customers/1/accounts/1/transactions:watch?interval=0.2s", stream: true,
						in:  &bankv1.WatchRequest{Name: "customers/1/accounts/1", Interval: durationpb.New(200 * time.Millisecond)},
						out: func() proto.Message { return &bankv1.Transaction{} }, header: http.Header{"authorization": {token(life)}},
					})
					if r.code != codes.Unauthenticated || r.reason != "CREDENTIALS_EXPIRED" && !bare(way) || len(r.messages) < 2 && life > patience/4 {
						t.Errorf("after %d messages %v %s", len(r.messages), r.code, r.reason)
					}
					if len(r.messages) >= 2 || t.Failed() {
						return
					}
				}
			})
		})
	}
	const deposit = `{"name":"customers/1/accounts/1","amount":{"currency":"EUR","units":"1"}}`
	const cut = "the credential has expired while the call was open" // that of another that came too late has expired, no more
	run("client, gRPC", func(t *testing.T) {
		living(t, func(ctx context.Context, header http.Header) bool {
			s, err := bankv1.NewAccountsClient(o.conn).Deposit(metadata.NewOutgoingContext(ctx, metadata.MD(header)))
			if err == nil {
				err = s.RecvMsg(&bankv1.DepositResponse{}) // and never half-closes
			}
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("ends with %v", err)
			}
			return status.Convert(err).Message() == cut
		})
	})
	for name, by := range map[string]func() (*http.Client, string){
		"HTTP/1.1": func() (*http.Client, string) { return o.h1, "http://" + o.addr },
		"h2c":      func() (*http.Client, string) { return o.h2c, "http://" + o.addr },
		"HTTP/3":   func() (*http.Client, string) { return o.h3, "https://" + o.secure },
	} {
		run("client, REST, "+name, func(t *testing.T) {
			living(t, func(ctx context.Context, header http.Header) bool {
				body, w := io.Pipe()
				defer w.Close()
				go func() { _, _ = io.WriteString(w, deposit+"\n") }()
				c, base := by()
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/accounts:deposit", body)
				if err != nil {
					t.Fatal(err)
				}
				r.Header = canonical(header)
				r.Header.Set("Content-Type", "application/json")
				resp, err := c.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(string(b), "CREDENTIALS_EXPIRED") {
					t.Errorf("%d %s", resp.StatusCode, b)
				}
				return strings.Contains(string(b), cut)
			})
		})
	}
	run("client, WebSocket", func(t *testing.T) {
		living(t, func(ctx context.Context, header http.Header) bool {
			c, r := dial(ctx, t, o, "/bank.v1.Accounts/Deposit", "", header)
			if c == nil {
				if r.reason != "CREDENTIALS_EXPIRED" {
					t.Errorf("refused: %v %s", r.code, r.reason)
				}
				return false
			}
			defer c.CloseNow()
			_ = c.Write(ctx, websocket.MessageText, []byte(deposit)) // it may have ended already
			if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != 4016 {
				t.Errorf("ends with %v", err)
			}
			return true
		})
	})
	for _, framed := range []bool{false, true} {
		run(fmt.Sprintf("client, transom.v1, frame %v", framed), func(t *testing.T) {
			living(t, func(ctx context.Context, header http.Header) bool {
				a := ask{method: "/bank.v1.Accounts/Deposit", header: header}
				if framed {
					header = nil
				}
				c, r := dial(ctx, t, o, "/", "transom.v1", header)
				if c == nil {
					if r.reason != "CREDENTIALS_EXPIRED" {
						t.Errorf("refused: %v %s", r.code, r.reason)
					}
					return false
				}
				defer c.CloseNow()
				r.header = http.Header{}
				f := opening(a, framed)
				f.End = false
				if err := c.Write(ctx, websocket.MessageBinary, wire(t, f)); err != nil {
					t.Fatal(err)
				}
				_, b, err := c.Read(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if !r.frame(t, a, b) || r.reason != "CREDENTIALS_EXPIRED" {
					t.Errorf("ends with %v %s", r.code, r.reason)
				}
				return strings.Contains(string(b), cut)
			})
		})
	}
}

// TestPoliciesByEveryWay: authorization, validation, redaction and the cache are the same for all.
func TestPoliciesByEveryWay(t *testing.T) {
	o := openTo(t, fmt.Sprintf(`
consumers:
  providers: {keys: {api_key: {}}}
  known: {shop: {api_keys: [%q], scopes: [full]}, other: {api_keys: [%q]}}
policies:
- {selector: "*", auth: {require: [keys]}}
- selector: bank.v1.Accounts.Get
  redact: [{fields: [owners, labels]}, {fields: [kind], unless_scope: full}]
  allow: 'request.name != "customers/1/accounts/2"'
  cache: {ttl: 1h}
- {selector: bank.v1.Accounts.List, validate: true}
`, sha("shop"), sha("other")))
	get := func(name, key string) ask {
		return ask{
			method: "/bank.v1.Accounts/Get", rest: "/v1/" + name, in: &bankv1.GetAccountRequest{Name: name},
			out: func() proto.Message { return &bankv1.Account{} }, header: http.Header{"x-api-key": {key}},
		}
	}
	first := true
	o.everyWay(t, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
		for _, key := range []string{"shop", "other"} {
			r := call(t, get("customers/1/accounts/1", key))
			if r.code != codes.OK || len(r.messages) != 1 {
				t.Fatalf("%s: %v %s, %d messages", key, r.code, r.reason, len(r.messages))
			}
			got, _ := r.messages[0].(*bankv1.Account)
			if len(got.GetOwners())+len(got.GetLabels()) > 0 || (got.GetKind() != 0) != (key == "shop") || got.GetName() == "" {
				t.Errorf("%s gets %v", key, got)
			}
			want := "transom; hit"
			if first {
				want = "transom; fwd=miss; stored"
			}
			if status := r.header.Get("Cache-Status"); status != want && !bare(way) {
				t.Errorf("%s: cache-status %q, want %q", key, status, want)
			}
		}
		first = false
		if r := call(t, get("customers/1/accounts/2", "shop")); r.code != codes.PermissionDenied || r.reason != "RULE_DENIED" && !bare(way) {
			t.Errorf("denied: %v %s", r.code, r.reason)
		}
		r := call(t, ask{
			method: "/bank.v1.Accounts/List", rest: "/v1/accounts?page_size=5000", in: &bankv1.ListAccountsRequest{PageSize: 5000},
			out: func() proto.Message { return &bankv1.ListAccountsResponse{} }, header: http.Header{"x-api-key": {"shop"}},
		})
		if r.code != codes.InvalidArgument || r.reason != "REQUEST_INVALID" && !bare(way) {
			t.Errorf("not valid: %v %s", r.code, r.reason)
		}
	})
}

// TestLargeMetadataByEveryWay: what would be too much for a header is too much in a frame, from which backends get a header all the same.
func TestLargeMetadataByEveryWay(t *testing.T) {
	o := openTo(t, "metadata: {request_headers: [x-big]}\n")
	fields := func(n int) http.Header {
		h := http.Header{}
		for i := range n {
			h[fmt.Sprintf("x-f%d", i)] = []string{"1"}
		}
		return h
	}
	o.everyWay(t, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
		if r := call(t, metadataAsk(http.Header{"x-big": {strings.Repeat("a", 14<<10)}})); r.code != codes.OK || len(r.seen()["x-big"][0]) != 14<<10 {
			t.Errorf("14 KiB: %v", r.code)
		}
		if r := call(t, metadataAsk(fields(80))); r.code != codes.OK {
			t.Errorf("80 fields: %v", r.code)
		}
		if !strings.Contains(way, "frame") && !strings.Contains(way, "block") {
			return // of headers others tell: TestAttacks, TestMalformedHTTP1
		}
		for what, header := range map[string]http.Header{
			"17 KiB": {"x-big": {strings.Repeat("a", 17<<10)}}, "900 kB": {"x-big": {strings.Repeat("a", 900_000)}}, "101 fields": fields(101), "5,000 fields": fields(5000),
			"101 values": {"x-big": slices.Repeat([]string{"1"}, 101)}, "17 KiB in several": {"x-big": slices.Repeat([]string{strings.Repeat("a", 1<<10)}, 17)},
		} {
			if r := call(t, metadataAsk(header)); r.code != codes.ResourceExhausted {
				t.Errorf("%s: %v, want ResourceExhausted", what, r.code)
			}
		}
	})
}

// TestSlotsByEveryWay: a client that vanishes in the middle of a stream leaves its place among the concurrent calls to others.
func TestSlotsByEveryWay(t *testing.T) {
	o := openTo(t, `
policies: [{selector: bank.v1.Accounts.Watch, limits: [{concurrent: 1, per: "header:x-way"}, {rate: 1000000/h, everybody: true}]}]
`)
	in := &bankv1.WatchRequest{Name: "customers/1/accounts/1", Interval: durationpb.New(time.Hour)}
	const method, rest = "/bank.v1.Accounts/Watch", "/v1/customers/1/accounts/1/transactions:watch?interval=3600s"
	body := wire(t, in)
	opens := func(way string) []byte {
		f := opening(ask{method: method, header: http.Header{"x-way": {way}}}, true)
		f.Binary = body
		return wire(t, f)
	}
	// Each reads the beginning of the answer and leaves.
	byHTTP := func(by func() (*http.Client, string), verb, path, contentType string, body []byte) func(context.Context, *testing.T, string) {
		return func(ctx context.Context, t *testing.T, way string) {
			t.Helper()
			ctx, leave := context.WithCancel(ctx)
			defer leave()
			c, base := by()
			r, err := http.NewRequestWithContext(ctx, verb, base+path, bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", contentType)
			r.Header.Set("X-Way", way)
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
				t.Fatalf("%d: %v", resp.StatusCode, err)
			}
		}
	}
	bySocket := func(path, protocol string, frames func(way string) [][]byte) func(context.Context, *testing.T, string) {
		return func(ctx context.Context, t *testing.T, way string) {
			t.Helper()
			header := http.Header{"x-way": {way}}
			c, r := dial(ctx, t, o, path, protocol, header)
			if c == nil {
				t.Fatalf("refused: %v %s", r.code, r.reason)
			}
			for _, f := range frames(way) {
				if err := c.Write(ctx, websocket.MessageBinary, f); err != nil {
					t.Fatal(err)
				}
			}
			if _, b, err := c.Read(ctx); err != nil {
				t.Fatalf("%q, %v", b, err)
			}
			c.CloseNow()
		}
	}
	byGRPC := func(ctx context.Context, way string) error {
		ctx, leave := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "x-way", way))
		defer leave()
		s, err := bankv1.NewAccountsClient(o.conn).Watch(ctx, in)
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	plain := func(c *http.Client) func() (*http.Client, string) {
		return func() (*http.Client, string) { return c, "http://" + o.addr }
	}
	secure := func(c *http.Client) func() (*http.Client, string) {
		return func() (*http.Client, string) { return c, "https://" + o.secure }
	}
	for way, vanish := range map[string]func(ctx context.Context, t *testing.T, way string){
		"REST, HTTP/1.1":   byHTTP(plain(o.h1), http.MethodGet, rest, "", nil),
		"REST, h2c":        byHTTP(plain(o.h2c), http.MethodGet, rest, "", nil),
		"REST, HTTP/3":     byHTTP(secure(o.h3), http.MethodGet, rest, "", nil),
		"Connect, HTTP/3":  byHTTP(secure(o.h3), http.MethodPost, method, "application/connect+proto", frame(0, body)),
		"gRPC-Web, HTTP/2": byHTTP(secure(o.h2), http.MethodPost, method, "application/grpc-web+proto", frame(0, body)),
		"gRPC": func(ctx context.Context, t *testing.T, way string) {
			if err := byGRPC(ctx, way); err != nil {
				t.Fatal(err)
			}
		},
		"WebSocket":  bySocket(method, "", func(string) [][]byte { return [][]byte{body} }),
		"transom.v1": bySocket("/", "transom.v1", func(way string) [][]byte { return [][]byte{opens(way)} }),
		"grpc-websockets": bySocket(method, "grpc-websockets", func(way string) [][]byte {
			return [][]byte{[]byte("x-way: " + way + "\r\n"), append([]byte{0}, frame(0, body)...), {1}}
		}),
		"WebTransport": func(ctx context.Context, t *testing.T, way string) {
			s, end := o.session(ctx, t, nil)
			defer end()
			str, err := s.OpenStream()
			if err == nil {
				_, err = str.Write(frame(0, opens(way)))
			}
			if err == nil {
				_, err = str.Read(make([]byte, 1))
			}
			if err != nil {
				t.Fatal(err)
			}
			str.CancelRead(0)
			str.CancelWrite(0)
		},
	} {
		t.Run(way, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			vanish(ctx, t, way)
			for err := byGRPC(ctx, way); err != nil; err = byGRPC(ctx, way) {
				if status.Code(err) != codes.ResourceExhausted {
					t.Fatalf("the place is not free again: %v", err)
				}
			}
		})
	}
}
