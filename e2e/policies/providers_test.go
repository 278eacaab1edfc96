package policies_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"golang.org/x/crypto/bcrypt"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/cmd/transom/demo/bank"
	bankv1 "transom/proto/bank/v1"
)

func TestBasic(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("open:sesame"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, fmt.Sprintf(`
consumers:
  providers: {people: {basic: {}}}
  known: {ali: {password: %q}}
policies:
- {selector: "*", auth: {require: [people]}}
`, hash))
	basic := func(s string) map[string]string {
		return map[string]string{"authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(s))}
	}
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for range 2 {
			o := call(t, p, basic("ali:open:sesame"))
			o.want(t, "right", codes.OK, 200, "")
			if got := o.seen["x-transom-consumer"]; !slices.Equal(got, []string{"ali"}) {
				t.Errorf("consumer %q", got)
			}
		}
		for what, header := range map[string]map[string]string{
			"wrong password": basic("ali:x"), "wrong name": basic("baba:open:sesame"), "no colon": basic("ali"), "not base64": {"authorization": "Basic !"},
			"nobody": basic("zoe:nobody"),
		} {
			o := call(t, p, header)
			o.want(t, what, codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
			if got := o.header["www-authenticate"]; !slices.Equal(got, []string{`Basic realm="transom", charset="UTF-8"`}) {
				t.Errorf("%s: challenge %q", what, got)
			}
		}
	})
}

// introspector is an authorization server (RFC 7662).
type introspector struct {
	*httptest.Server
	asked atomic.Int64
	down  atomic.Bool
}

func startIntrospector(t *testing.T) *introspector {
	t.Helper()
	s := &introspector{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if id, secret, ok := r.BasicAuth(); !ok || id != "gateway" || secret != "s3cret" || r.Method != http.MethodPost {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if s.down.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		answer := map[string]any{"active": false}
		switch r.PostFormValue("token") {
		case "opaque-of-bob":
			answer = map[string]any{"active": true, "sub": "bob", "username": "bobby", "aud": "bank", "teams": []string{"red"}, "scope": "accounts.read", "exp": time.Now().Add(time.Hour).Unix()}
		case "opaque-of-a-machine":
			answer = map[string]any{"active": true, "client_id": "cron"}
		case "ended":
			answer = map[string]any{"active": true, "sub": "bob", "exp": time.Now().Add(-time.Hour).Unix()}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(s.Close)
	return s
}

// TestSeveralMethods tries tokens, introspection and keys in order.
func TestSeveralMethods(t *testing.T) {
	id, as := startOIDC(t), startIntrospector(t)
	p := start(t, fmt.Sprintf(`
consumers:
  providers:
    main: {jwt: {issuer: %q, audiences: [bank], outbound: {private: true}}}
    opaque: {introspection: {url: %q, client_id: gateway, client_secret: s3cret, outbound: {private: true}}, forward: true}
    keys: {api_key: {header: x-shop-key}}
  known:
    shop: {api_keys: [%q]}
    robert: {identities: ["opaque:bob"], plan: silver, scopes: [extra]}
policies:
- {selector: "*", auth: {require: [main, opaque, keys]}}
`, id.URL, as.URL, sha("k")))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for consumer, header := range map[string]map[string]string{
			"main:alice": {"authorization": "Bearer " + id.token(t, nil)}, "robert": {"authorization": "bearer opaque-of-bob"},
			"opaque:cron": {"authorization": "Bearer opaque-of-a-machine"}, "shop": {"x-shop-key": "k"},
		} {
			o := call(t, p, header)
			o.want(t, consumer, codes.OK, 200, "")
			if got := o.seen["x-transom-consumer"]; !slices.Equal(got, []string{consumer}) {
				t.Errorf("%v: consumer %q, want %s", header, got, consumer)
			}
			if consumer == "robert" && (!slices.Equal(o.seen["x-transom-scopes"], []string{"accounts.read extra"}) || o.seen["authorization"] == nil) {
				t.Errorf("robert: scopes %q, authorization %q", o.seen["x-transom-scopes"], o.seen["authorization"])
			}
		}
		call(t, p, map[string]string{"authorization": "Bearer unknown"}).want(t, "not active", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
		o := call(t, p, nil)
		o.want(t, "nothing", codes.Unauthenticated, 401, "CREDENTIALS_MISSING")
		if got := o.header["www-authenticate"]; len(got) != 2 {
			t.Errorf("challenges %q, want one for tokens and one for keys", got)
		}
	})
	if asked := as.asked.Load(); asked != 3 {
		t.Errorf("the server was asked %d times about 3 tokens, want each once", asked)
	}
	callREST(t, p, map[string]string{"authorization": "Bearer ended"}).want(t, "ended", codes.Unauthenticated, 401, "CREDENTIALS_EXPIRED")
	as.down.Store(true)
	callREST(t, p, map[string]string{"authorization": "Bearer opaque-of-bob"}).want(t, "remembered", codes.OK, 200, "")
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, map[string]string{"authorization": "Bearer new"}).want(t, "fails closed", codes.Unavailable, 503, "CREDENTIALS_UNKNOWN")
	})
}

// TestClaimSettings: who callers are, what groups they are in, and for whom their tokens must be, is taken from the claims that the
// configuration names.
func TestClaimSettings(t *testing.T) {
	id, as := startOIDC(t), startIntrospector(t)
	token := map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"org": map[string]any{"teams": []string{"blue", "green"}, "user": "al"}, "https://id.example/roles": "chief"})}
	opaque := map[string]string{"authorization": "Bearer opaque-of-bob"}
	p := start(t, "")
	for _, tc := range []struct {
		jwt, introspection      string
		header                  map[string]string
		code                    codes.Code
		consumer, groups, email string
	}{
		{"", "", token, codes.OK, "main:alice", "staff", ""},
		{"group_claims: [org.teams]", "", token, codes.OK, "main:alice", "blue,green", ""},
		{"group_claims: [org.teams, groups, \"https://id.example/roles\"]", "", token, codes.OK, "main:alice", "blue,green,staff,chief", ""},
		{"subject_claim: org.user, metadata: {x-transom-email: email}", "", token, codes.OK, "main:al", "staff", "alice@example.com"},
		{"subject_claim: org.nobody", "", token, codes.Unauthenticated, "", "", ""},
		{"", "", opaque, codes.OK, "opaque:bob", "", ""},
		{"", "group_claims: [teams], subject_claim: username, metadata: {x-transom-email: username}", opaque, codes.OK, "opaque:bobby", "red", "bobby"},
		{"", "audiences: [bank]", opaque, codes.OK, "opaque:bob", "", ""},
		{"", "audiences: [others]", opaque, codes.Unauthenticated, "", "", ""},
	} {
		p.reload(t, fmt.Sprintf(`
consumers:
  providers:
    main: {jwt: {issuer: %q, audiences: [bank], outbound: {private: true}, %s}}
    opaque: {introspection: {url: %q, client_id: gateway, client_secret: s3cret, outbound: {private: true}, %s}}
policies: [{selector: "*", auth: {require: [main, opaque]}}]
`, id.URL, tc.jwt, as.URL, tc.introspection))
		everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
			o := call(t, p, tc.header)
			if tc.code != codes.OK {
				o.want(t, tc.jwt+tc.introspection, tc.code, 401, "CREDENTIALS_INVALID")
				return
			}
			o.wantOK(t, tc.jwt+tc.introspection)
			for name, want := range map[string]string{"x-transom-consumer": tc.consumer, "x-transom-groups": tc.groups, "x-transom-email": tc.email} {
				if got := strings.Join(o.seen[name], "; "); got != want {
					t.Errorf("%s%s: the backend sees %s %q, want %q", tc.jwt, tc.introspection, name, got, want)
				}
			}
		})
	}
}

// authorizer is an external authorization server.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	fail  atomic.Bool
	asked atomic.Int64
}

func (a *authorizer) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	if a.asked.Add(1); a.fail.Load() {
		return nil, errors.New("broken")
	}
	h := r.GetAttributes().GetRequest().GetHttp()
	set := func(k, v string) *corev3.HeaderValueOption {
		return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, Value: v}}
	}
	denied := func(code typev3.StatusCode, body string, headers ...*corev3.HeaderValueOption) *authv3.CheckResponse {
		return &authv3.CheckResponse{Status: &statuspb.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: code}, Body: body, Headers: headers,
		}}}
	}
	if h.GetPath() != "/bank.v1.Diagnostics/Metadata" || r.GetAttributes().GetSource().GetAddress().GetSocketAddress().GetAddress() != "127.0.0.1" {
		return denied(typev3.StatusCode_InternalServerError, "unexpected question"), nil
	}
	if h.GetHeaders()["x-session-of"] == "carol" {
		return &authv3.CheckResponse{Status: &statuspb.Status{}}, nil
	}
	switch h.GetHeaders()["cookie"] {
	case "session=good":
		claims, err := structpb.NewStruct(map[string]any{"sub": "carol", "groups": []any{"staff"}})
		return &authv3.CheckResponse{
			Status: &statuspb.Status{}, DynamicMetadata: claims,
			HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
				Headers:         []*corev3.HeaderValueOption{set("x-session", "42"), set("x-transom-consumer", "root"), set("grpc-timeout", "1n")},
				HeadersToRemove: []string{"cookie"},
				ResponseHeadersToAdd: []*corev3.HeaderValueOption{
					set("Set-Cookie", "session=good; Secure"), set("set-cookie", "seen=1"), set("x-transom-consumer", "root"), set("content-length", "1"),
				},
			}},
		}, err
	case "":
		return denied(typev3.StatusCode_Unauthorized, "log in first", set("WWW-Authenticate", `Form realm="bank"`)), nil
	case "session=old":
		return denied(typev3.StatusCode_Found, "log in again", set("Location", "https://login.example")), nil
	}
	return denied(typev3.StatusCode_Forbidden, ""), nil
}

// startAuthorizer runs an authorizer and returns its address.
func startAuthorizer(t *testing.T) (*authorizer, string) {
	t.Helper()
	a := &authorizer{}
	srv := grpc.NewServer()
	authv3.RegisterAuthorizationServer(srv, a)
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
	return a, l.Addr().String()
}

func TestExternalAuthorization(t *testing.T) {
	a, addr := startAuthorizer(t)
	p := startWith(t, `
consumers:
  providers: {sessions: {external: {cluster: authz}}}
policies:
- {selector: "*", cluster: bank, auth: {require: [sessions]}}
- {selector: bank.v1.Diagnostics.*, access: {groups: [staff]}, faults: {when: {header: x-fault, present: true}, abort: UNAVAILABLE}}
`, fmt.Sprintf(", authz: {target: \"static:///%s\"}", addr))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		o := call(t, p, map[string]string{"cookie": "session=good"})
		o.want(t, "good session", codes.OK, 200, "")
		for k, want := range map[string][]string{"x-transom-consumer": {"sessions:carol"}, "x-session": {"42"}, "cookie": nil} {
			if !slices.Equal(o.seen[k], want) {
				t.Errorf("the backend sees %s: %q, want %q", k, o.seen[k], want)
			}
		}
		if o.header != nil && (!slices.Equal(o.header["set-cookie"], []string{"session=good; Secure", "seen=1"}) || o.header["x-transom-consumer"] != nil) { // a bare WebSocket has no place
			t.Errorf("the client gets %v", o.header)
		}
		o = call(t, p, map[string]string{"cookie": "session=good", "x-fault": "1"})
		if o.want(t, "an error", codes.Unavailable, 503, "FAULT_INJECTED"); o.header != nil && !slices.Equal(o.header["set-cookie"], []string{"session=good; Secure", "seen=1"}) {
			t.Errorf("with an error the client gets %v", o.header)
		}
		o = call(t, p, nil)
		o.want(t, "no session", codes.Unauthenticated, 401, "")
		if !slices.Equal(o.header["www-authenticate"], []string{`Form realm="bank"`}) || o.message != "log in first" {
			t.Errorf("no session: %q, challenge %q", o.message, o.header["www-authenticate"])
		}
		call(t, p, map[string]string{"cookie": "session=bad"}).want(t, "bad session", codes.PermissionDenied, 403, "")
	})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url("http")+metadataPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Cookie", "session=old")
	resp, err := p.http.Transport.RoundTrip(r) // which follows no redirect
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if o := ofHTTP(t, resp); o.http != http.StatusFound || resp.Header.Get("Location") != "https://login.example" || o.message != "log in again" {
		t.Errorf("a redirect: %d %q to %q", o.http, o.message, resp.Header.Get("Location"))
	}
	if r, err = http.NewRequestWithContext(t.Context(), http.MethodPost, p.url("http")+"/bank.v1.Diagnostics/Metadata", strings.NewReader("{}")); err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Cookie": {"session=old"}, "Content-Type": {"application/json"}, "Connect-Protocol-Version": {"1"}}
	refused, err := p.http.Transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Body.Close()
	if body, err := io.ReadAll(refused.Body); err != nil || refused.StatusCode != http.StatusForbidden || !strings.Contains(string(body), `"permission_denied"`) {
		t.Errorf("a redirect by Connect: %d %s, %v", refused.StatusCode, body, err)
	}
	a.fail.Store(true)
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		o := call(t, p, map[string]string{"cookie": "session=good"})
		o.want(t, "fails closed", codes.Unavailable, 503, "CREDENTIALS_UNKNOWN")
		if got := o.header["retry-after"]; !slices.Equal(got, []string{"1"}) {
			t.Errorf("retry-after %q", got)
		}
	})
}

// TestExternalUnderLoad changes how long the server may take, what it gets, and which it is, by its cluster's name and by the cluster's
// address, while calls go on: none fails, and those after each change go by it.
func TestExternalUnderLoad(t *testing.T) {
	a, first := startAuthorizer(t)
	b, second := startAuthorizer(t)
	clusters := func(authz string) string {
		return fmt.Sprintf(", authz: {target: \"static:///%s\"}, other: {target: \"static:///%s\"}", authz, second)
	}
	config := func(external string) string {
		return "\nconsumers: {providers: {sessions: {external: {" + external + "}}}}\npolicies: [{selector: \"*\", cluster: bank, auth: {require: [sessions]}, access: {groups: [staff]}}]\n"
	}
	header := map[string]string{"cookie": "session=good"}
	p := startWith(t, config("cluster: authz, timeout: 10s"), clusters(first))
	load := underLoad(t, func(t *testing.T, name string, _, _ int, call caller) {
		o := call(t, p, header)
		if o.wantOK(t, name); !slices.Equal(o.seen["x-transom-consumer"], []string{"sessions:carol"}) || o.seen["cookie"] != nil {
			t.Errorf("%s: the backend sees %v", name, o.seen)
		}
	})
	for range 2 {
		for _, tc := range []struct {
			external, authz string
			asked           *authorizer
		}{
			{"cluster: authz, timeout: 20s", first, a},
			{"cluster: authz, timeout: 20s, headers: [cookie]", first, a},
			{"cluster: other, timeout: 20s, headers: [cookie]", first, b},
			{"cluster: other, timeout: 10s, headers: [cookie, x-session-of]", first, b},
			{"cluster: authz, timeout: 10s, headers: [cookie, x-session-of]", second, b},
			{"cluster: authz, timeout: 10s", first, a},
		} {
			p.clusters = clusters(tc.authz)
			p.reload(t, config(tc.external))
			asked := tc.asked.asked.Load()
			everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
				call(t, p, header).wantOK(t, tc.external)
			})
			if n := tc.asked.asked.Load() - asked; n < 3 {
				t.Errorf("%s: three calls asked the server %d times", tc.external, n)
			}
			load.calls(t, 20)
		}
	}
	load.end()
	// The first server is asked no more, and the second does not get what it would need.
	p.clusters = clusters(second)
	p.reload(t, config("cluster: authz, timeout: 10s, headers: [x-session-of]"))
	was := a.asked.Load()
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, header).want(t, "without the cookie", codes.Unauthenticated, 401, "")
	})
	if n := a.asked.Load() - was; n != 0 {
		t.Errorf("the server before was asked %d times", n)
	}
	p.reload(t, config("cluster: authz, timeout: 10s"))
	a.fail.Store(true)
	callREST(t, p, header).wantOK(t, "while the server before fails")
}

// TestExternalHeaders: the server sees a header that is meant for it by whatever protocol a call comes.
func TestExternalHeaders(t *testing.T) {
	_, addr := startAuthorizer(t)
	p := startWith(t, `
consumers:
  providers: {sessions: {external: {cluster: authz, headers: [X-Session-Of]}}}
policies:
- {selector: "*", cluster: bank, auth: {require: [sessions]}}
`, fmt.Sprintf(", authz: {target: \"static:///%s\"}", addr))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, map[string]string{"x-session-of": "carol"}).want(t, "with the header", codes.OK, 200, "")
		call(t, p, map[string]string{"cookie": "session=good"}).want(t, "with another", codes.Unauthenticated, 401, "")
	})
}

// TestTokenBySubprotocol opens a WebSocket as a browser must: with the token beside the subprotocol.
func TestTokenBySubprotocol(t *testing.T) {
	id := startOIDC(t)
	p := start(t, fmt.Sprintf(jwtConfig, id.URL))
	callWebSocket(t, p, map[string]string{"sec-websocket-protocol": "bearer, " + id.token(t, nil)}).want(t, "token", codes.OK, 200, "")
	o := callWebSocket(t, p, map[string]string{"sec-websocket-protocol": "bearer, nonsense"})
	o.want(t, "nonsense", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
}

// TestTokenInFrame has each call of a transom.v1 socket show its own token in the frame that opens it: as good as in a header,
// before what the socket's request says, and for this call alone. Names of the gateway's own are dropped from frames too. The
// end of a token ends its stream, and neither the socket nor the calls of others.
func TestTokenInFrame(t *testing.T) {
	id := startOIDC(t)
	p := start(t, fmt.Sprintf(jwtConfig, id.URL))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	bearer := func(claims map[string]any) string { return "Bearer " + id.token(t, claims) }
	c, _, err := websocket.Dial(ctx, p.url("ws")+"/", &websocket.DialOptions{
		Subprotocols: []string{"transom.v1"}, HTTPHeader: http.Header{"Authorization": {bearer(map[string]any{"sub": "the page"})}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	type frame struct {
		ID      int
		Message json.RawMessage
		Status  *struct {
			Code    codes.Code
			Message string
			Details []struct{ Reason string }
		}
	}
	read := func() (f frame) {
		t.Helper()
		_, b, err := c.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		return f
	}
	open := func(id int, method, message string, md map[string][]string) {
		t.Helper()
		text, err := json.Marshal(map[string]any{
			"id": id, "open": map[string]any{"method": method, "metadata": md}, "message": json.RawMessage(message), "end": true,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Write(ctx, websocket.MessageText, text); err != nil {
			t.Fatal(err)
		}
	}
	const method, watch = "/bank.v1.Diagnostics/Metadata", "/bank.v1.Accounts/Watch"
	for i, tc := range []struct {
		name     string
		md       map[string][]string
		consumer string // or the reason of a refusal
		code     codes.Code
	}{
		{"the frame's", map[string][]string{"authorization": {bearer(map[string]any{"sub": "ann"})}}, "main:ann", codes.OK},
		{"another's", map[string][]string{"Authorization": {bearer(map[string]any{"sub": "bob"})}}, "main:bob", codes.OK},
		{"the socket's", nil, "main:the page", codes.OK},
		{"forged", map[string][]string{"authorization": {bearer(map[string]any{"sub": "ann"}) + "x"}}, "CREDENTIALS_INVALID", codes.Unauthenticated},
		{"expired", map[string][]string{"authorization": {bearer(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})}}, "CREDENTIALS_EXPIRED", codes.Unauthenticated},
		{"two", map[string][]string{"authorization": {bearer(nil), bearer(nil)}}, "CREDENTIALS_INVALID", codes.Unauthenticated},
		{"two, in two spellings", map[string][]string{"authorization": {bearer(nil)}, "Authorization": {bearer(nil)}}, "CREDENTIALS_INVALID", codes.Unauthenticated},
		{"somebody else's name", map[string][]string{"x-transom-consumer": {"root"}, "X_Transom_Consumer": {"root"}, "x.transom.scopes": {"admin"}}, "main:the page", codes.OK},
	} {
		open(i+1, method, "{}", tc.md)
		var f frame
		var message json.RawMessage
		for f.Status == nil {
			if f = read(); f.Message != nil {
				message = f.Message
			}
		}
		if f.ID != i+1 || f.Status.Code != tc.code {
			t.Errorf("%s: call %d ends with %v %s, want %v", tc.name, f.ID, f.Status.Code, f.Status.Message, tc.code)
			continue
		}
		if tc.code != codes.OK {
			if len(f.Status.Details) != 1 || f.Status.Details[0].Reason != tc.consumer {
				t.Errorf("%s: details %v, want reason %s", tc.name, f.Status.Details, tc.consumer)
			}
			continue
		}
		seen, _ := seenOf(t, message)
		if got := seen["x-transom-consumer"]; !slices.Equal(got, []string{tc.consumer}) || seen["authorization"] != nil || seen["x_transom_consumer"] != nil || strings.Contains(fmt.Sprint(seen), "admin") {
			t.Errorf("%s: the backend sees %v, want consumer %s", tc.name, seen, tc.consumer)
		}
	}
	const account = `{"name":"customers/1/accounts/1","interval":"0.2s"}`
	open(100, watch, account, map[string][]string{"authorization": {bearer(map[string]any{"exp": time.Now().Add(2 * time.Second).Unix()})}})
	open(101, watch, account, nil)
	ended, others := false, 0
	for others < 3 {
		f := read()
		if f.Message != nil { // which makes room for one more
			if err := c.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `{"id":%d,"credit":1}`, f.ID)); err != nil {
				t.Fatal(err)
			}
		}
		switch {
		case f.Status != nil && f.ID == 100:
			if ended = true; f.Status.Code != codes.Unauthenticated || len(f.Status.Details) != 1 || f.Status.Details[0].Reason != "CREDENTIALS_EXPIRED" {
				t.Errorf("the stream ends with %+v", f.Status)
			}
		case f.Status != nil:
			t.Fatalf("another's stream ends: %+v", f.Status)
		case ended && f.Message != nil:
			others++
		}
	}
}

// TestAccess has what callers must be, one rule at a time.
func TestAccess(t *testing.T) {
	id := startOIDC(t)
	p := start(t, "")
	alice := map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"roles": "clerk", "realm_access": map[string]any{"roles": []string{"teller"}}})}
	for _, tc := range []struct{ policy, reason string }{
		{`access: {scopes: [transfer, accounts.read]}`, ""},
		{`access: {scopes: [transfer, admin]}`, "SCOPE_MISSING"},
		{`access: {groups: [admin, staff]}`, ""},
		{`access: {groups: [admin]}`, "GROUP_MISSING"},
		{`access: {groups: [teller]}`, ""}, // roles are groups
		{`access: {groups: [clerk]}`, ""},
		{`access: {groups: [roles]}`, "GROUP_MISSING"},
		{`access: {consumers: ["main:alice"]}`, ""},
		{`access: {consumers: ["main:bob"]}`, "CONSUMER_DENIED"},
		{`access: {allow_ips: [127.0.0.0/8, "::1"]}`, ""},
		{`access: {allow_ips: [10.0.0.0/8]}`, "ADDRESS_DENIED"},
		{`access: {deny_ips: [127.0.0.1]}`, "ADDRESS_DENIED"},
		{`allow: 'method == "bank.v1.Diagnostics.Metadata" && service.endsWith("Diagnostics") && consumer == "main:alice" && provider == "main" && plan == ""'`, ""},
		{`allow: '"staff" in groups && claims.email.endsWith("@example.com") && !peer.tls && peer.address == "127.0.0.1"'`, ""},
		{`allow: 'metadata["x-none"] == "1"'`, "RULE_DENIED"},
		{`allow: 'claims.none.deeper == 1'`, "RULE_DENIED"},
		{`allow: 'size(request.header) == 0'`, ""},
		{`allow: 'request.header["a"] == "b"'`, "RULE_DENIED"},
	} {
		p.reload(t, fmt.Sprintf(`
consumers:
  providers: {main: {jwt: {issuer: %q, audiences: [bank], outbound: {private: true}}}}
policies:
- {selector: "*", auth: {require: [main]}}
- selector: bank.v1.Diagnostics.Metadata
  %s
`, id.URL, tc.policy))
		everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
			o := call(t, p, alice)
			if tc.reason == "" {
				o.want(t, tc.policy, codes.OK, 200, "")
				return
			}
			if strings.Contains(tc.policy, "request.") && o.http == 0 && o.reason == "" { // a bare WebSocket that was granted: its close code only
				o.reason = tc.reason
			}
			o.want(t, tc.policy, codes.PermissionDenied, 403, tc.reason)
			if tc.reason == "SCOPE_MISSING" && !slices.Equal(o.header["www-authenticate"], []string{`Bearer realm="transom", error="insufficient_scope", scope="transfer admin"`}) {
				t.Errorf("challenge %q", o.header["www-authenticate"])
			}
		})
	}
}

// TestAccessOfStreams has a rule about the request hold for each message of a stream: what does not keep it ends the call, and the
// backend does not get it.
func TestAccessOfStreams(t *testing.T) {
	p := start(t, "policies: [{selector: bank.v1.Accounts.Deposit, allow: 'request.amount.units < 100'}]\n")
	msg := func(units int64) *bankv1.DepositRequest {
		return &bankv1.DepositRequest{Name: "7", Amount: &bankv1.Money{Currency: "EUR", Units: units}}
	}
	lines := func(units ...int64) (lines []string) {
		for _, n := range units {
			lines = append(lines, fmt.Sprintf(`{"name":"7","amount":{"currency":"EUR","units":"%d"}}`, n))
		}
		return lines
	}
	deposits := map[string]func(t *testing.T, units ...int64) outcome{
		"REST": func(t *testing.T, units ...int64) outcome {
			return p.post(t, "/v1/accounts:deposit", strings.Join(lines(units...), "\n")+"\n", nil)
		},
		"gRPC": func(t *testing.T, units ...int64) outcome {
			s, err := bankv1.NewAccountsClient(p.conn).Deposit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range units {
				_ = s.Send(msg(n))
			}
			_, err = s.CloseAndRecv()
			return ofStatus(err)
		},
		"WebSocket": func(t *testing.T, units ...int64) outcome {
			_, o := p.webSocket(t, "/v1/accounts:deposit", nil, append(lines(units...), "")...)
			if o.code != codes.OK {
				o.reason = "RULE_DENIED" // a close frame has no details
			}
			return o
		},
	}
	balance := func(t *testing.T) int64 {
		b, err := bankv1.NewAccountsClient(p.conn).Balance(t.Context(), &bankv1.BalanceRequest{Name: "7"})
		if err != nil {
			t.Fatal(err)
		}
		return b.GetBalance().GetUnits()
	}
	for name, deposit := range deposits {
		t.Run(name, func(t *testing.T) {
			before := balance(t)
			if o := deposit(t, 1, 99); o.code != codes.OK {
				t.Errorf("two that keep the rule: %v %s", o.code, o.message)
			}
			deposit(t, 100).want(t, "the first breaks it", codes.PermissionDenied, 403, "RULE_DENIED")
			deposit(t, 1, 2, 500, 3).want(t, "the third breaks it", codes.PermissionDenied, 403, "RULE_DENIED")
			if after := balance(t); after < before+100 || after > before+103 { // of a call that is ended the bank may have seen a part
				t.Errorf("the balance went from %d to %d", before, after)
			}
		})
	}
}

// TestDefaultDeny lets through only what a policy names.
func TestDefaultDeny(t *testing.T) {
	p := start(t, `
security: {default_deny: true}
policies:
- {selector: bank.v1.Diagnostics.Metadata, auth: {anonymous: true}}
`)
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, nil).want(t, "named", codes.OK, 200, "")
	})
	p.reload(t, "\nsecurity: {default_deny: true}\n")
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, nil).want(t, "not named", codes.PermissionDenied, 403, "NOT_ALLOWED")
	})
}

// TestTrustedProxies reads X-Forwarded-For from its end, as far as it can be believed.
func TestTrustedProxies(t *testing.T) {
	p := start(t, "")
	for _, tc := range []struct{ trusted, xff, client string }{
		{"10.0.0.0/8", "192.0.2.1", "127.0.0.1"}, // nobody in front is trusted
		{"127.0.0.1", "", "127.0.0.1"},
		{"127.0.0.1", "192.0.2.1", "192.0.2.1"},
		{"127.0.0.1", "198.51.100.9, 192.0.2.1", "192.0.2.1"},                       // the client made the first up
		{"127.0.0.1, 10.0.0.0/8", "198.51.100.9, 192.0.2.1, 10.1.2.3", "192.0.2.1"}, // two proxies
		{"127.0.0.1", "192.0.2.1, garbage", "127.0.0.1"},
		{"127.0.0.1, 10.0.0.0/8", "garbage, 10.1.2.3", "10.1.2.3"},
		{"127.0.0.1", "192.0.2.1:4711", "192.0.2.1"},
		{"127.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"},
		{"127.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"},
	} {
		p.reload(t, fmt.Sprintf(`
security: {trusted_proxies: [%s]}
policies:
- {selector: "*", allow: 'peer.address == %q'}
`, tc.trusted, tc.client))
		everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
			header := map[string]string{"x-forwarded-host": "shop.example", "x-forwarded-proto": "https"}
			if tc.xff != "" {
				header["x-forwarded-for"] = tc.xff
			}
			o := call(t, p, header)
			o.want(t, fmt.Sprint(tc), codes.OK, 200, "")
			// What the backend is told is what the proxy in front says, with that proxy's address, or else what transom sees.
			told := map[string]string{"x-forwarded-for": "127.0.0.1", "x-forwarded-host": p.addr, "x-forwarded-proto": "http"}
			if strings.HasPrefix(tc.trusted, "127.0.0.1") {
				told = header
				told["x-forwarded-for"] = strings.TrimPrefix(tc.xff+", 127.0.0.1", ", ")
			}
			for name, want := range told {
				if got := o.seen[name]; !slices.Equal(got, []string{want}) {
					t.Errorf("%v: the backend sees %s %q, want %q", tc, name, got, want)
				}
			}
		})
	}
}

// TestHSTS tells browsers to come by TLS, in what TLS carries and nowhere else.
func TestHSTS(t *testing.T) {
	ca := newAuthority(t)
	ca.issue(t, &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "edge")
	ca.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "ann"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, "ann")
	const policies = "security: {hsts: 8760h}\npolicies: [{selector: \"*\", access: {deny_ips: [%s]}}]\n"
	p := start(t, fmt.Sprintf(policies, "192.0.2.1")+fmt.Sprintf("\nlisteners: [{address: \"127.0.0.1:0\", tls: {certificate: %q, key: %q}}]\n", ca.dir+"/edge.crt", ca.dir+"/edge.key"))
	p.useTLS(t, ca, "ann")
	plain := start(t, fmt.Sprintf(policies, "192.0.2.1"))
	want := []string{"max-age=31536000"}
	if got := callREST(t, p, nil); got.code != codes.OK || !slices.Equal(got.header["strict-transport-security"], want) {
		t.Errorf("by TLS: %v, %q", got.code, got.header["strict-transport-security"])
	}
	if got := callREST(t, plain, nil); got.code != codes.OK || got.header["strict-transport-security"] != nil {
		t.Errorf("in plain text: %v, %q", got.code, got.header["strict-transport-security"])
	}
	p.reload(t, fmt.Sprintf(policies, "127.0.0.1")+fmt.Sprintf("\nlisteners: [{address: \"127.0.0.1:0\", tls: {certificate: %q, key: %q}}]\n", ca.dir+"/edge.crt", ca.dir+"/edge.key"))
	for name, call := range map[string]caller{"REST": callREST, "WebSocket": callWebSocket} {
		got := call(t, p, nil)
		if got.want(t, name, codes.PermissionDenied, 403, "ADDRESS_DENIED"); !slices.Equal(got.header["strict-transport-security"], want) {
			t.Errorf("a refusal by %s: %q", name, got.header["strict-transport-security"])
		}
	}
}

// TestTraceContext: what a client says of its trace (W3C Trace Context) gets to the backend: as it is, or if transom traces calls
// itself, with transom's span as the parent.
func TestTraceContext(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	given := map[string]string{"traceparent": "00-" + trace + "-" + span + "-01", "tracestate": "vendor=1"}
	for _, tracing := range []bool{false, true} {
		text := "policies: []\n"
		if tracing {
			text += "tracing: {endpoint: \"http://127.0.0.1:1\"}\n"
		}
		p := start(t, text)
		everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
			o := call(t, p, given)
			o.wantOK(t, "with a trace")
			parent, state := strings.Join(o.seen["traceparent"], " "), strings.Join(o.seen["tracestate"], " ")
			if own := strings.HasPrefix(parent, "00-"+trace+"-") && strings.HasSuffix(parent, "-01") && !strings.Contains(parent, span); state != "vendor=1" || tracing && !own || !tracing && parent != given["traceparent"] {
				t.Errorf("tracing %v: the backend sees traceparent %q, tracestate %q", tracing, parent, state)
			}
		})
	}
}

// TestForgery: what browsers add by themselves, be it cookies, a password that the user gave the browser or a client certificate, no
// page of another origin gets to use.
func TestForgery(t *testing.T) {
	ca := newAuthority(t)
	ca.issue(t, &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "edge")
	ca.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "ann"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, "ann")
	pair, err := tls.LoadX509KeyPair(filepath.Join(ca.dir, "ann.crt"), filepath.Join(ca.dir, "ann.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	known := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	defer known.CloseIdleConnections()
	for _, cors := range []string{"", `, cors: {allow_origins: ["*"]}`, `, cors: {allow_origins: ["https://app.example"]}`, `, cors: {allow_origins: ["https://app.example"], allow_credentials: true}`} {
		p := start(t, fmt.Sprintf(`
listeners:
- {address: "127.0.0.1:0"%s}
- {name: secure, address: "127.0.0.1:0", tls: {certificate: %q, key: %q, client_ca: %q, client_auth: request}%s}
`, cors, ca.dir+"/edge.crt", ca.dir+"/edge.key", ca.dir+"/ca.crt", cors))
		named, credentials := strings.Contains(cors, "app.example"), strings.Contains(cors, "credentials")
		for _, tc := range []struct {
			what   string
			header map[string]string
			cert   bool
			app    bool // whether pages of app.example may, evil.example's never
			others bool // whether anybody's may
		}{
			{"cookie", map[string]string{"cookie": "s=1"}, false, credentials, false},
			{"password", map[string]string{"authorization": "Basic YTpi"}, false, named, false},
			{"login of Windows", map[string]string{"authorization": "negotiate YTpi"}, false, named, false},
			{"certificate", nil, true, credentials, false},
			{"password and cookie", map[string]string{"authorization": "Basic YTpi", "cookie": "s=1"}, false, credentials, false},
			{"token", map[string]string{"authorization": "Bearer t"}, false, true, true},
			{"scheme of the page's own", map[string]string{"authorization": "Token t"}, false, true, true},
			{"nothing", nil, false, true, true},
		} {
			c, base := p.http, "http://"+p.addr
			if tc.cert {
				c, base = &http.Client{Transport: known}, "https://"+p.Addrs()[1].String()
			}
			for origin, may := range map[string]bool{"": true, "https://app.example": tc.app, "https://evil.example": tc.others, "null": tc.others} {
				for verb, may := range map[string]bool{http.MethodPost: may, http.MethodGet: true} {
					r, err := http.NewRequestWithContext(t.Context(), verb, base+metadataPath, nil)
					if err != nil {
						t.Fatal(err)
					}
					for k, v := range tc.header {
						r.Header.Set(k, v)
					}
					if origin != "" {
						r.Header.Set("Origin", origin)
						r.Header.Set("Sec-Fetch-Site", "cross-site")
					}
					resp, err := c.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					if want := map[bool]int{true: 200, false: 403}[may]; resp.StatusCode != want {
						t.Errorf("%s with a %s from %q, cors %q: %d, want %d", verb, tc.what, origin, cors, resp.StatusCode, want)
					}
				}
			}
		}
		// A WebSocket's request always has the cookies.
		o := callWebSocket(t, p, map[string]string{"cookie": "s=1", "authorization": "Basic YTpi", "origin": "https://app.example"})
		switch {
		case cors == "":
			o.want(t, "WebSocket", codes.PermissionDenied, 403, "ORIGIN_DENIED")
		case named:
			if o.want(t, "WebSocket", codes.OK, 200, ""); !slices.Equal(o.seen["cookie"], []string{"s=1"}) || len(o.seen["authorization"]) != 1 {
				t.Errorf("WebSocket of a page that is named, cors %q: the backend sees %v", cors, o.seen)
			}
		default:
			if o.want(t, "WebSocket", codes.OK, 200, ""); o.seen["cookie"] != nil || o.seen["authorization"] != nil {
				t.Errorf("WebSocket of anybody's page: the backend sees %v", o.seen)
			}
			if o = callWebSocket(t, p, map[string]string{"authorization": "Bearer t", "origin": "https://app.example"}); len(o.seen["authorization"]) != 1 {
				t.Errorf("WebSocket of anybody's page: of its own token the backend sees %v", o.seen)
			}
		}
	}
}

// TestForgeryByGet: a GET goes with cookies, wherever the page is from that makes a browser send it, unless the method says itself that
// it writes, or its rule is one for every HTTP method and nothing says that there are no effects.
func TestForgeryByGet(t *testing.T) {
	const any = "/v1/diagnostics/any/x" // of Echo, by a custom rule for every method
	for level, want := range map[descriptorpb.MethodOptions_IdempotencyLevel]map[string]int{
		descriptorpb.MethodOptions_NO_SIDE_EFFECTS:     {metadataPath: 200, any: 200},
		descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN: {metadataPath: 200, any: 403},
		descriptorpb.MethodOptions_IDEMPOTENT:          {metadataPath: 403, any: 403},
	} {
		set := &descriptorpb.FileDescriptorSet{}
		if err := proto.Unmarshal(bank.DescriptorSet(), set); err != nil {
			t.Fatal(err)
		}
		for _, f := range set.GetFile() {
			for _, s := range f.GetService() {
				for _, m := range s.GetMethod() {
					if m.GetOptions() != nil {
						m.Options.IdempotencyLevel = level.Enum()
					}
				}
			}
		}
		b, err := proto.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "bank.binpb")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		p := start(t, fmt.Sprintf("security: {trusted_origins: [\"https://app.example\"]}\ndescriptors: [{file: %q}]\n", path))
		for path, want := range want {
			for _, verb := range []string{http.MethodGet, http.MethodHead} {
				for what, tc := range map[string]struct {
					header map[string]string
					want   int
				}{
					"a foreign page":        {map[string]string{"cookie": "s=1", "origin": "https://evil.example", "sec-fetch-site": "cross-site"}, want},
					"a link on it":          {map[string]string{"cookie": "s=1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, want},
					"its image, a password": {map[string]string{"authorization": "Basic YTpi", "sec-fetch-site": "cross-site"}, want},
					"no cookies":            {map[string]string{"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 200},
					"a trusted page":        {map[string]string{"cookie": "s=1", "origin": "https://app.example", "sec-fetch-site": "cross-site"}, 200},
					"the same origin":       {map[string]string{"cookie": "s=1", "sec-fetch-site": "same-origin"}, 200},
					"typed by the user":     {map[string]string{"cookie": "s=1", "sec-fetch-site": "none"}, 200},
					"no browser":            {map[string]string{"cookie": "s=1"}, 200},
				} {
					r, err := http.NewRequestWithContext(t.Context(), verb, p.url("http")+path, nil)
					if err != nil {
						t.Fatal(err)
					}
					for k, v := range tc.header {
						r.Header.Set(k, v)
					}
					resp, err := p.http.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					if resp.StatusCode != tc.want {
						t.Errorf("%s %s of a method that is %v by %s: %d, want %d", verb, path, level, what, resp.StatusCode, tc.want)
					}
				}
			}
		}
	}
}

// TestSecurityHeaders has request ids, the response headers and cross-site requests with cookies.
func TestSecurityHeaders(t *testing.T) {
	p := start(t, `
security:
  request_id: {}
  response_headers: {content-security-policy: "default-src 'none'"}
  trusted_origins: ["https://app.example"]
`)
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for _, given := range []string{"", "abc-123", "bad id"} {
			header := map[string]string{}
			if given != "" {
				header["x-request-id"] = given
			}
			o := call(t, p, header)
			o.want(t, "request id", codes.OK, 200, "")
			seen := o.seen["x-request-id"]
			if len(seen) != 1 || given == "abc-123" && seen[0] != given || given != "abc-123" && len(seen[0]) != 32 {
				t.Errorf("request id %q: the backend sees %q", given, seen)
			}
			if got := o.header["x-request-id"]; o.header != nil && !slices.Equal(got, seen) {
				t.Errorf("request id %q: the client sees %q, the backend %q", given, got, seen)
			}
		}
	})
	o := callREST(t, p, nil)
	if !slices.Equal(o.header["content-security-policy"], []string{"default-src 'none'"}) || !slices.Equal(o.header["x-content-type-options"], []string{"nosniff"}) {
		t.Errorf("response header %v", o.header)
	}
	for _, tc := range []struct {
		what   string
		header map[string]string
		http   int
	}{
		{"a form of a foreign page", map[string]string{"cookie": "s=1", "origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 403},
		{"an old browser", map[string]string{"cookie": "s=1", "origin": "https://evil.example"}, 403},
		{"origin null", map[string]string{"cookie": "s=1", "origin": "null"}, 403},
		{"a page of the same site", map[string]string{"cookie": "s=1", "sec-fetch-site": "same-origin"}, 200},
		{"a trusted page", map[string]string{"cookie": "s=1", "origin": "https://app.example", "sec-fetch-site": "cross-site"}, 200},
		{"without cookies", map[string]string{"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 200},
		{"no browser", map[string]string{"cookie": "s=1"}, 200},
	} {
		for _, path := range []string{metadataPath, "/bank.v1.Diagnostics/Metadata"} { // REST and Connect
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.addr+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range tc.header {
				r.Header.Set(k, v)
			}
			r.Header.Set("Content-Type", "application/json")
			resp, err := p.http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != tc.http {
				t.Errorf("%s at %s: %d, want %d", tc.what, path, resp.StatusCode, tc.http)
			}
		}
	}
}

// TestForgeryByEveryWay: a foreign page's request is refused in the words of the protocol that it is made by, with a reason.
func TestForgeryByEveryWay(t *testing.T) {
	o := openTo(t, "policies: []")
	page := map[string]string{"cookie": "s=1", "origin": "https://evil.example", "sec-fetch-site": "cross-site"}
	got := o.post(t, metadataPath, "{}", page)
	if got.want(t, "POST", codes.PermissionDenied, 403, "ORIGIN_DENIED"); !strings.HasPrefix(got.message, `pages of origin "https://evil.example" may not send requests with cookies`) {
		t.Errorf("POST: message %q", got.message)
	}
	header := http.Header{}
	for k, v := range page {
		header.Set(k, v)
	}
	for way, status := range map[string]int{
		"Connect, HTTP/1.1": 403, "Connect, HTTP/3": 403, "WebSocket": 403, "transom.v1, upgrade": 403, "grpc-websockets, upgrade": 403,
		"gRPC-Web, HTTP/1.1": 200, "gRPC-Web, HTTP/2": 200, "gRPC": 0, // these say it by grpc-status
	} {
		o.oneWay(t, way, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
			if r := call(t, metadataAsk(header)); r.code != codes.PermissionDenied || r.reason != "ORIGIN_DENIED" || r.http != status {
				t.Errorf("%s: %v, reason %q, HTTP %d; want PermissionDenied, ORIGIN_DENIED, %d", way, r.code, r.reason, r.http, status)
			}
		})
	}
	o.oneWay(t, "Connect GET", func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
		if r := call(t, metadataAsk(header)); r.code != codes.OK {
			t.Errorf("%s: %v, want OK, for it has no effects", way, r.code)
		}
	})
	stream := ask{
		method: "/bank.v1.Accounts/Watch", stream: true, in: &bankv1.WatchRequest{Name: "1"},
		out: func() proto.Message { return &bankv1.Transaction{} }, header: header,
	}
	o.oneWay(t, "Connect, HTTP/1.1", func(t *testing.T, _ string, call func(*testing.T, ask) *reply) {
		if r := call(t, stream); r.code != codes.PermissionDenied || r.reason != "ORIGIN_DENIED" {
			t.Errorf("a stream by Connect: %v, reason %q", r.code, r.reason)
		}
	})
}
