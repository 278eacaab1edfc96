package policies_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
)

func sha(key string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(key))) }

const apiKeyConfig = `
consumers:
  providers: {keys: {api_key: {}}}
  known:
    shop: {plan: gold, groups: [partners], scopes: [accounts.read], api_keys: [%q]}
policies:
- {selector: "*", auth: {require: [keys]}}
`

func TestAPIKey(t *testing.T) {
	p := start(t, fmt.Sprintf(apiKeyConfig, sha("secret-of-the-shop")))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		o := call(t, p, map[string]string{"x-api-key": "secret-of-the-shop"})
		o.want(t, "good key", codes.OK, 200, "")
		for k, want := range map[string]string{
			"x-transom-consumer": "shop", "x-transom-provider": "keys", "x-transom-plan": "gold", "x-transom-groups": "partners", "x-transom-scopes": "accounts.read",
		} {
			if got := o.seen[k]; !slices.Equal(got, []string{want}) {
				t.Errorf("the backend sees %s: %q, want %q", k, got, want)
			}
		}
		if got := o.seen["x-api-key"]; got != nil {
			t.Errorf("the backend sees the key: %q", got)
		}
		for what, header := range map[string]map[string]string{
			"CREDENTIALS_MISSING": nil, "CREDENTIALS_INVALID": {"x-api-key": "wrong"},
		} {
			o := call(t, p, header)
			o.want(t, what, codes.Unauthenticated, 401, what)
			if got := o.header["www-authenticate"]; !slices.Equal(got, []string{`ApiKey realm="transom", header="x-api-key"`}) {
				t.Errorf("%s: challenge %q", what, got)
			}
		}
	})
}

const jwtConfig = `
consumers:
  providers:
    main:
      jwt: {issuer: %q, audiences: [bank], outbound: {private: true}, leeway: 1s, metadata: {x-transom-email: email}}
policies:
- {selector: "*", auth: {require: [main]}}
- {selector: bank.v1.Diagnostics.*, allow: '"transfer" in claims.scope.split(" ")'}
`

func TestJWT(t *testing.T) {
	id := startOIDC(t)
	p := start(t, fmt.Sprintf(jwtConfig, id.URL))
	provider, err := gooidc.NewProvider(t.Context(), id.URL)
	if err != nil {
		t.Fatal(err)
	}
	good := id.token(t, nil)
	// An independent client of the provider takes the token too.
	if _, err := provider.Verifier(&gooidc.Config{ClientID: "bank"}).Verify(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	hour := time.Now().Add(time.Hour).Unix()
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for range 2 { // verified, and from the cache
			o := call(t, p, map[string]string{"authorization": "Bearer " + good})
			o.want(t, "good token", codes.OK, 200, "")
			if got := o.seen["x-transom-consumer"]; !slices.Equal(got, []string{"main:alice"}) {
				t.Errorf("consumer %q", got)
			}
			if got := o.seen["x-transom-email"]; !slices.Equal(got, []string{"alice@example.com"}) {
				t.Errorf("email %q", got)
			}
			if got := o.seen["authorization"]; got != nil {
				t.Errorf("the backend sees the token")
			}
		}
		call(t, p, map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"aud": []string{"other", "bank"}, "email": nil})}).want(t, "a list of audiences", codes.OK, 200, "")
		for what, token := range map[string]string{
			"CREDENTIALS_MISSING":                "",
			"CREDENTIALS_EXPIRED":                id.token(t, map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}),
			"CREDENTIALS_INVALID other audience": id.token(t, map[string]any{"aud": "other"}),
			"CREDENTIALS_INVALID no audience":    id.token(t, map[string]any{"aud": nil}),
			"CREDENTIALS_INVALID no expiry":      id.token(t, map[string]any{"exp": nil}),
			"CREDENTIALS_INVALID text expiry":    id.token(t, map[string]any{"exp": fmt.Sprint(hour)}),
			"CREDENTIALS_INVALID issuer":         id.token(t, map[string]any{"iss": "https://evil.example"}),
			"CREDENTIALS_INVALID not yet":        id.token(t, map[string]any{"nbf": hour}),
			"CREDENTIALS_INVALID no subject":     id.token(t, map[string]any{"sub": nil}),
			"CREDENTIALS_INVALID garbage":        "a.b.c",
			"CREDENTIALS_INVALID cut":            good[:len(good)-4],
		} {
			header := map[string]string{}
			if token != "" {
				header["authorization"] = "Bearer " + token
			}
			o := call(t, p, header)
			reason, _, _ := strings.Cut(what, " ")
			o.want(t, what, codes.Unauthenticated, 401, reason)
			want := `Bearer realm="transom", error="invalid_token"`
			if token == "" {
				want = `Bearer realm="transom"`
			}
			if got := o.header["www-authenticate"]; !slices.Equal(got, []string{want}) {
				t.Errorf("%s: challenge %q, want %q", what, got, want)
			}
		}
		o := call(t, p, map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"scope": "accounts.read"})})
		o.want(t, "a rule that does not hold", codes.PermissionDenied, 403, "RULE_DENIED")
		o = call(t, p, map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"scope": nil})})
		o.want(t, "a rule that fails", codes.PermissionDenied, 403, "RULE_DENIED")
	})
}

// TestTokenSettings: only tokens of the algorithms and the type that the configuration has are taken, by keys of jwks_uri too.
func TestTokenSettings(t *testing.T) {
	id := startOIDC(t)
	config := func(more string) string {
		return fmt.Sprintf("consumers: {providers: {main: {jwt: {issuer: %q, audiences: [bank], outbound: {private: true}, %s}}}}\npolicies: [{selector: \"*\", auth: {require: [main]}}]\n", id.URL, more)
	}
	p := start(t, config("algorithms: [ES256]"))
	for more, ok := range map[string]bool{
		"algorithms: [ES256]": true, "algorithms: [RS256]": false, "algorithms: [RS256, PS512, ES384, EdDSA]": false, "algorithms: [EdDSA, ES256]": true,
		"type: JWT": true, "type: jwt": true, "type: at+jwt": false, fmt.Sprintf("jwks_uri: %q", id.URL+"/keys"): true,
	} {
		p.reload(t, config(more))
		everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
			o := call(t, p, map[string]string{"authorization": "Bearer " + id.token(t, nil)})
			if ok {
				o.wantOK(t, more)
			} else {
				o.want(t, more, codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
			}
		})
	}
}

// TestForgedTokens has the known ways to pass off a token of one's own, where tokens by keys of every type are taken.
func TestForgedTokens(t *testing.T) {
	id := startOIDC(t)
	own := map[jose.SignatureAlgorithm]jose.JSONWebKey{jose.ES256: id.keys[0]}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, key := range map[jose.SignatureAlgorithm]any{jose.RS256: rsaKey, jose.PS256: rsaKey, jose.ES384: p384, jose.EdDSA: ed} {
		own[alg] = jose.JSONWebKey{Key: key, KeyID: "of " + string(alg)}
		id.keys = append(id.keys, own[alg])
	}
	p := start(t, fmt.Sprintf(strings.Replace(jwtConfig, "leeway: 1s", "algorithms: [ES256, RS256, PS256, ES384, EdDSA]", 1), id.URL))
	good := id.token(t, nil)
	parts := strings.Split(good, ".")
	header := func(h string) string { return base64.RawURLEncoding.EncodeToString([]byte(h)) }
	public, err := id.keys[0].Public().MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	hs256 := func(secret []byte, kid string) string {
		return id.sign(t, jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: secret, KeyID: kid}}, nil)
	}
	other := startOIDC(t)
	forged := map[string]string{
		"alg none":           header(`{"alg":"none","kid":"key-1"}`) + "." + parts[1] + ".",
		"alg None":           header(`{"alg":"None"}`) + "." + parts[1] + "." + parts[2],
		"no alg":             header(`{"kid":"key-1"}`) + "." + parts[1] + "." + parts[2],
		"HS256, public key":  hs256(public, "key-1"),
		"HS256, PEM of RSA":  hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix}), "of RS256"),
		"HS256, DER of RSA":  hs256(pkix, "of RS256"),
		"another's key":      id.sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: other.keys[0]}, nil),
		"own key in header":  header(`{"alg":"ES256","kid":"key-1","jwk":`+string(public)+`}`) + "." + parts[1] + "." + parts[2],
		"jku":                header(`{"alg":"ES256","kid":"key-1","jku":"`+other.URL+`/keys"}`) + "." + parts[1] + "." + parts[2],
		"crit":               header(`{"alg":"ES256","kid":"key-1","crit":["b64"],"b64":false}`) + "." + parts[1] + "." + parts[2],
		"empty signature":    parts[0] + "." + parts[1] + ".",
		"changed claims":     parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+id.URL+`","aud":"bank","sub":"root","exp":9999999999}`)) + "." + parts[2],
		"two authorizations": good + ", Bearer " + good,
		"long":               good + strings.Repeat("A", 8<<10),
	}
	tokens := map[jose.SignatureAlgorithm]string{}
	for alg, key := range own {
		tokens[alg] = id.sign(t, jose.SigningKey{Algorithm: alg, Key: key}, nil)
		for instead := range own {
			if part := strings.Split(tokens[alg], "."); instead != alg {
				forged[fmt.Sprintf("%s for %s", instead, alg)] = header(fmt.Sprintf(`{"alg":%q,"kid":%q}`, instead, key.KeyID)) + "." + part[1] + "." + part[2]
			}
		}
	}
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for what, token := range forged {
			call(t, p, map[string]string{"authorization": "Bearer " + token}).want(t, what, codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
		}
		for alg, token := range tokens {
			o := call(t, p, map[string]string{"authorization": "Bearer " + token})
			o.wantOK(t, string(alg))
			if got := o.seen["x-transom-consumer"]; !slices.Equal(got, []string{"main:alice"}) {
				t.Errorf("%s: consumer %q", alg, got)
			}
		}
	})
	if n := other.fetches.Load(); n != 0 {
		t.Errorf("a token made the gateway fetch keys from elsewhere %d times", n)
	}
}

// TestKeyRotation signs with a new key, twice, while calls go on by every protocol and none fails: the gateway learns it at once, and
// stops to trust the one that left.
func TestKeyRotation(t *testing.T) {
	id := startOIDC(t)
	p := start(t, fmt.Sprintf(jwtConfig, id.URL))
	first := id.token(t, nil)
	var mu sync.Mutex // guards by
	by := map[string]int{}
	load := underLoad(t, func(t *testing.T, name string, worker, n int, call caller) {
		mu.Lock()
		rotations := by["rotations"]
		mu.Unlock()
		call(t, p, map[string]string{"authorization": "Bearer " + id.token(t, map[string]any{"jti": fmt.Sprint(name, worker, n)})}).wantOK(t, name)
		mu.Lock()
		defer mu.Unlock()
		by[fmt.Sprint(name, worker)] = rotations
	})
	// Every worker has made a call with the newest key before that becomes the older of two.
	rotate := func() {
		id.rotate(t)
		mu.Lock()
		by["rotations"]++
		mu.Unlock()
		for all := false; !all && !t.Failed(); {
			load.calls(t, 12)
			mu.Lock()
			all = len(by) == 13 // the workers, and rotations itself
			for _, n := range by {
				all = all && n == by["rotations"]
			}
			mu.Unlock()
		}
	}
	call := func(t *testing.T, call caller, token string) outcome {
		t.Helper()
		return call(t, p, map[string]string{"authorization": "Bearer " + token})
	}
	load.calls(t, 24)
	rotate()
	call(t, callREST, first).wantOK(t, "first key, still in the set")
	rotate()
	load.end()
	everyProtocol(t, func(t *testing.T, by caller) {
		call(t, by, first).want(t, "first key, which has left", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
	})
	if n := id.fetches.Load(); n > 5 {
		t.Errorf("two new keys made %d fetches", n)
	}
	// The issuer is down: keys that are there go on.
	id.down.Store(true)
	call(t, callREST, id.token(t, map[string]any{"jti": "2"})).wantOK(t, "issuer down")
}

// TestKeyFlood sends tokens with key ids that nobody knows.
func TestKeyFlood(t *testing.T) {
	id := startOIDC(t)
	p := start(t, fmt.Sprintf(jwtConfig, id.URL))
	callREST(t, p, map[string]string{"authorization": "Bearer " + id.token(t, nil)}).want(t, "good", codes.OK, 200, "")
	began := time.Now()
	key := id.keys[0]
	for i := range 200 {
		key.KeyID = fmt.Sprintf("unknown-%d", i)
		token := id.sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
		callREST(t, p, map[string]string{"authorization": "Bearer " + token}).want(t, "unknown key", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
	}
	if n, most := id.fetches.Load(), 3+int64(time.Since(began)/(2*time.Second))+1; n > most {
		t.Errorf("200 tokens with unknown key ids made %d fetches, want at most %d", n, most)
	}
	callREST(t, p, map[string]string{"authorization": "Bearer " + id.token(t, nil)}).want(t, "good after the flood", codes.OK, 200, "")
}

// TestIssuerDown has no keys at all: the gateway starts, and fails closed.
func TestIssuerDown(t *testing.T) {
	id := startOIDC(t)
	id.down.Store(true)
	p := start(t, fmt.Sprintf(jwtConfig, id.URL))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, map[string]string{"authorization": "Bearer " + id.token(t, nil)}).want(t, "no keys", codes.Unavailable, 503, "CREDENTIALS_UNKNOWN")
	})
}

// TestPaddedCredential sends a credential that is no good with white space around it, in every way there is, where calls without one go
// through: it is refused, and not taken for none.
func TestPaddedCredential(t *testing.T) {
	o := openTo(t, `
consumers:
  providers: {people: {basic: {}}, keys: {api_key: {}}}
policies:
- {selector: "*", auth: {require: [people, keys], anonymous: true}}
`)
	o.everyWay(t, func(t *testing.T, _ string, call func(*testing.T, ask) *reply) {
		for _, v := range []string{" Basic d3Jvbmc6", "bASIC d3Jvbmc6 ", "basic "} {
			if r := call(t, metadataAsk(http.Header{"Authorization": {v}})); r.code != codes.Unauthenticated {
				t.Errorf("%q: %v, the backend sees %q", v, r.code, r.seen()["authorization"])
			}
		}
	})
}

// TestSpoofedIdentity sends what only the gateway may say, in every spelling, with and without a credential.
func TestSpoofedIdentity(t *testing.T) {
	p := start(t, fmt.Sprintf(strings.Replace(apiKeyConfig, "[keys]", "[keys], anonymous: true", 1), sha("secret-of-the-shop")))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		for _, key := range []string{"", "secret-of-the-shop"} {
			header := map[string]string{}
			if key != "" {
				header["x-api-key"] = key
			}
			for _, name := range []string{
				"x-transom-consumer", "x_transom_consumer", "x.transom.consumer", "x-transom_consumer", "X-Transom-Groups", "x-transom-anything",
				"grpc-metadata-x-transom-consumer", "grpc-metadata-x_transom_consumer",
			} {
				header[name] = "root"
			}
			o := call(t, p, header)
			o.want(t, "spoofed", codes.OK, 200, "")
			for k, v := range o.seen {
				if norm := strings.NewReplacer("_", "-", ".", "-").Replace(k); strings.HasPrefix(norm, "x-transom-") && slices.Contains(v, "root") {
					t.Errorf("key %q: the backend sees %s: %q", key, k, v)
				}
			}
		}
	})
}

// whoMay is the begin of a policy whose callers are known.
const whoMay = `consumers:
  providers: {keys: {api_key: {}}}
  known: {shop: {}, till: {identities: ["keys:a"]}}
policies:
- {selector: "*", auth: {require: [keys]}, `

// TestMisconfigured has what is refused at start, each with its line.
func TestMisconfigured(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"no such provider", "policies:\n- selector: \"*\"\n  auth: {require: [nobody]}\n", `3:19: there is no provider "nobody", only []`},
		{"neither", "policies:\n- selector: \"*\"\n  auth: {}\n", `3:9: auth: auth needs providers in require, or anonymous: true`},
		{"key not hashed", "consumers:\n  known:\n    shop:\n      api_keys: [secret]\n", `4:18: `},
		{"same key", "consumers:\n  providers:\n    keys: {api_key: {}}\n  known:\n    a: {api_keys: [" + sha("x") + "]}\n    b: {api_keys: [" + sha("x") + "]}\n", `6:20: consumers a and b have the same API key (see line 5)`},
		{"no audience", "consumers:\n  providers:\n    main:\n      jwt: {issuer: \"https://id.example\"}\n", `4:12: audiences: `},
		{"plain http", "consumers:\n  providers:\n    main:\n      jwt: {issuer: \"http://id.example\", audiences: [bank]}\n", `4:7: "http://id.example" is not https`},
		{"HS256", "consumers:\n  providers:\n    main:\n      jwt: {issuer: \"https://id.example\", audiences: [bank], algorithms: [HS256]}\n", `4:75: algorithms[0]: must be in list`},
		{"unknown variable", "policies:\n- selector: bank.v1.Rates.Get\n  allow: claim.sub == \"x\"\n", `3:10: for bank.v1.Rates.Get: column 1: undeclared reference to 'claim'`},
		{"not a condition", "policies:\n- selector: bank.v1.Rates.Get\n  allow: claims.sub\n", `3:10: for bank.v1.Rates.Get: the expression is of type dyn, not bool`},
		{"unknown request field", "policies:\n- selector: bank.v1.Rates.Get\n  allow: request.nothing == 1\n", `3:10: for bank.v1.Rates.Get: column 8: undefined field 'nothing'`},
		{"costly", "policies:\n- selector: \"*\"\n  allow: scopes.all(a, scopes.all(b, scopes.all(c, a + b != c)))\n", `3:10: for bank.v1.Accounts.Balance and 29 more methods: the expression may cost too much`},
		{"scopes without identity", "policies:\n- selector: bank.v1.Rates.Get\n  access: {scopes: [a]}\n", `3:11: for bank.v1.Rates.Get: scopes, groups and consumers need callers`},
		{"password not hashed", "consumers:\n  providers: {people: {basic: {}}}\n  known:\n    ali: {password: sesame}\n", `4:21: password: does not match`},
		{"no such cluster to ask", "consumers:\n  providers:\n    sessions: {external: {cluster: authz}}\n", `3:36: there is no cluster "authz", only ["bank"]`},
		{"plain http to ask", "consumers:\n  providers:\n    opaque: {introspection: {url: \"http://id.example\", client_id: a, client_secret: b}}\n", `3:13: "http://id.example" is not https`},
		{"API key in grpc-timeout", "consumers:\n  providers:\n    keys: {api_key: {header: grpc-timeout}}\n", `3:30: a header grpc-timeout never becomes metadata`},
		{"API key in content-type", "consumers:\n  providers:\n    keys: {api_key: {header: content-type}}\n", `3:30: a header content-type never becomes metadata`},
		{"API key in x-transom-consumer", "consumers:\n  providers:\n    keys: {api_key: {header: x-transom-consumer}}\n", `3:30: a header x-transom-consumer never becomes metadata`},
		{"API key in x-forwarded-for", "consumers:\n  providers:\n    keys: {api_key: {header: x-forwarded-for}}\n", `3:30: a header x-forwarded-for never becomes metadata`},
		{"API key in sec-websocket-protocol", "consumers:\n  providers:\n    keys: {api_key: {header: sec-websocket-protocol}}\n", `3:30: a header sec-websocket-protocol never becomes metadata`},
		{"certificates that no listener asks for", "consumers:\n  providers:\n    certs: {client_certificate: {}}\n", `3:33: no listener asks clients for certificates`},
		{"certificates that the listener does not ask for", "consumers:\n  providers:\n    certs: {client_certificate: {}}\nlisteners: [{address: \"127.0.0.1:0\", tls: {certificate: a, key: b, client_ca: c, client_auth: none}}]\n", `3:33: no listener asks clients for certificates`},
		{"two kinds of provider", "consumers:\n  providers:\n    p: {basic: {}, api_key: {}}\n", `3:29: api_key: field basic is already set for oneof kind`},
		{"identity of no provider", "consumers:\n  known:\n    shop: {identities: [\"main:alice\"]}\n", `3:5: identity "main:alice" of consumer shop: there is no provider "main"`},
		{"proxies that are none", "security:\n  trusted_proxies: [everybody]\n", `2:21: "everybody" is not an address or network`},
		{"origin that is none", "security:\n  trusted_origins: [app.example]\n", `2:21: trusted_origins[0]: does not match`},
		{"header that is none", "security:\n  response_headers: {\"x y\": a}\n", `2:29: response_headers["x y"]: does not match`},
		{"request id in content-length", "security:\n  request_id: {header: content-length}\n", `2:24: content-length cannot carry an id`},
		{"request id in x-transom-consumer", "security:\n  request_id: {header: x-transom-consumer}\n", `2:24: x-transom-consumer cannot carry an id`},
		{"request id in x-forwarded-for", "security:\n  request_id: {header: x-forwarded-for}\n", `2:24: x-forwarded-for cannot carry an id`},
		{"request id in no header", "security:\n  request_id: {header: \"x y\"}\n", `2:24: header: does not match`},
		{"negative hsts", "security:\n  hsts: -1h\n", `2:9: hsts: must be greater than or equal to 0s`},
		{"validation of a number", "policies:\n- {selector: \"*\", validate: 3}\n", `2:29: validate: expected bool, got "3"`},
		{"consumer with a typing error", whoMay + "access: {consumers: [till, shpo]}}\n", `5:71: consumers.known has no "shpo"; did you mean "shop"? (`},
		{"consumer of no provider", whoMay + "access: {consumers: [\"keys:x\", \"nope:alice\"]}}\n", `5:75: there is no provider "nope", only ["keys"]`},
		{"consumer by its identity", whoMay + "access: {consumers: [\"keys:a\"]}}\n", `5:65: "keys:a" is the known consumer till: write that`},
		{"empty scope", whoMay + "access: {scopes: [a, \"\"]}}\n", `5:65: it is empty`},
		{"empty group", whoMay + "access: {groups: [\"\"]}}\n", `5:62: it is empty`},
		{"provider twice", "consumers: {providers: {keys: {api_key: {}}}}\npolicies:\n- {selector: \"*\", auth: {require: [keys, keys]}}\n", `3:42: "keys" is there already`},
		{"not a network", "policies:\n- selector: bank.v1.Rates.Get\n  access: {allow_ips: [10.0.0.1/8]}\n", `3:24: network 10.0.0.1/8 has bits beyond its prefix, write 10.0.0.0/8`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			found := faults(t, tc.text)
			if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
				t.Errorf("faults:\n%s\nwant one that begins with\n%s", strings.Join(found, "\n"), tc.want)
			}
		})
	}
}
