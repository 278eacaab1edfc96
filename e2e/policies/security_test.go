package policies_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/gateway"
	bankv1 "transom/proto/bank/v1"
)

// TestExpiryEndsStreams opens streams with a token that ends in a moment.
func TestExpiryEndsStreams(t *testing.T) {
	id := startOIDC(t)
	p := start(t, fmt.Sprintf(`
consumers:
  providers: {main: {jwt: {issuer: %q, audiences: [bank], leeway: 0s, outbound: {private: true}}}}
policies:
- {selector: "*", auth: {require: [main]}}
`, id.URL))
	const account = "customers/1/accounts/1"
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	var wg sync.WaitGroup
	for name, watch := range map[string]func(bearer string) (messages int, end string){
		"gRPC": func(bearer string) (n int, end string) {
			s, err := bankv1.NewAccountsClient(p.conn).Watch(metadata.AppendToOutgoingContext(ctx, "authorization", bearer), &bankv1.WatchRequest{Name: account})
			for err == nil {
				if _, err = s.Recv(); err == nil {
					n++
				}
			}
			return n, ofStatus(err).reason
		},
		"REST": func(bearer string) (int, string) {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+"/v1/"+account+"/transactions:watch", nil)
			if err != nil {
				return 0, err.Error()
			}
			r.Header.Set("Authorization", bearer)
			resp, err := p.http.Do(r)
			if err != nil {
				return 0, err.Error()
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			lines := strings.Split(strings.TrimSpace(string(body)), "\n")
			last := lines[len(lines)-1]
			if err != nil || !strings.Contains(last, "CREDENTIALS_EXPIRED") || !strings.Contains(last, "16") || len(lines) > 1 && resp.StatusCode != 200 {
				return 0, fmt.Sprintf("%d, the last of %d lines %s, %v; want an error record of UNAUTHENTICATED", resp.StatusCode, len(lines), last, err)
			}
			return len(lines) - 1, "CREDENTIALS_EXPIRED"
		},
		"WebSocket": func(bearer string) (n int, end string) {
			c, resp, err := websocket.Dial(ctx, "ws://"+p.addr+"/v1/"+account+"/transactions:watch", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {bearer}}})
			if err != nil && resp != nil && resp.StatusCode == http.StatusUnauthorized {
				return 0, "CREDENTIALS_EXPIRED"
			}
			if err != nil {
				return 0, err.Error()
			}
			defer c.CloseNow()
			for err == nil {
				if _, _, err = c.Read(ctx); err == nil {
					n++
				}
			}
			if websocket.CloseStatus(err) != 4016 {
				return n, err.Error()
			}
			return n, "CREDENTIALS_EXPIRED"
		},
	} {
		wg.Go(func() {
			// Where the stream takes longer to open than the token lives, one that lives longer shows the same.
			for life := 2 * time.Second; ; life *= 2 {
				n, end := watch("Bearer " + id.token(t, map[string]any{"exp": time.Now().Add(life).Unix()}))
				if end != "CREDENTIALS_EXPIRED" || n == 0 && life > patience {
					t.Errorf("%s: after %d messages %s", name, n, end)
				}
				if n > 0 || t.Failed() {
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestReloadUnderLoad changes the policies while calls go on: none fails that may be made under both.
func TestReloadUnderLoad(t *testing.T) {
	id := startOIDC(t)
	config := func(extra string) string {
		return fmt.Sprintf(`
consumers:
  providers:
    main: {jwt: {issuer: %q, audiences: [bank], outbound: {private: true}}}
    keys: {api_key: {}}
  known: {shop: {api_keys: [%q]}}
policies:
- {selector: "*", auth: {require: [main, keys]}}
- {selector: bank.v1.Diagnostics.Metadata, %s}
`, id.URL, sha("k"), extra)
	}
	variants := []string{`access: {allow_ips: [127.0.0.1]}`, `allow: 'consumer in ["shop", "main:alice"]'`, `allow: 'size(request.header) == 0'`}
	p := start(t, config(variants[0]))
	fetched := id.fetches.Load()
	stop := make(chan struct{})
	var calls atomic.Int64
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(stop)
		wg.Wait()
	})
	defer end()
	for name, call := range protocols {
		for _, header := range []map[string]string{{"x-api-key": "k"}, {"authorization": "Bearer " + id.token(t, nil)}} {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					call(t, p, header).want(t, name, codes.OK, 200, "")
					calls.Add(1)
				}
			})
		}
	}
	reloads := 0
	for ; !t.Failed() && (reloads < 9 || calls.Load() < 300); reloads++ {
		p.reload(t, config(variants[reloads%len(variants)]))
	}
	end()
	p.reload(t, config(`access: {deny_ips: [127.0.0.0/8]}`))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, map[string]string{"x-api-key": "k"}).want(t, "after the reload", codes.PermissionDenied, 403, "ADDRESS_DENIED")
	})
	if n := id.fetches.Load() - max(fetched, 1); n != 0 {
		t.Errorf("%d reloads that left the provider alone fetched its keys %d times more", reloads, n)
	}
	t.Logf("%d calls over %d reloads, none failed", calls.Load(), reloads)
}

// TestCredentialsUnderLoad changes keys, consumers and providers while calls go on by a key and a token that are good in every
// configuration: none fails, each is of the same caller, and each change holds for the calls after it. Then the key is taken out.
func TestCredentialsUnderLoad(t *testing.T) {
	id := startOIDC(t)
	config := func(shop, main, require string) string {
		main = strings.NewReplacer("MAIN", fmt.Sprintf("issuer: %q, audiences: [bank], outbound: {private: true}", id.URL), "URL", id.URL).Replace(main)
		return fmt.Sprintf(`
consumers:
  providers: {main: {%s}, keys: {api_key: {}}}
  known: {shop: {%s}}
policies:
- {selector: "*", auth: {require: [%s]}}
`, main, shop, require)
	}
	before, after := "api_keys: ["+sha("old")+", "+sha("new")+"]", "api_keys: ["+sha("new")+"]"
	byToken := map[string]string{"x-transom-scopes": "accounts.read transfer", "x-transom-groups": "staff"}
	bearer := "Bearer " + id.token(t, nil)
	variants := []struct {
		shop, main, require string
		old                 bool // the key that is to go is good
		// byKey and byToken are what backends see of a call, the latter beside what they always see.
		byKey, byToken map[string]string
	}{
		{before, "jwt: {MAIN}", "main, keys", true, nil, nil},
		{before + ", plan: gold, scopes: [accounts.read]", "jwt: {MAIN, algorithms: [ES256]}", "keys, main", true, map[string]string{"x-transom-plan": "gold", "x-transom-scopes": "accounts.read"}, nil},
		{after + ", plan: silver, groups: [partners]", "jwt: {MAIN, algorithms: [RS256, ES256], leeway: 5m}", "keys, main", false, map[string]string{"x-transom-plan": "silver", "x-transom-groups": "partners"}, nil},
		{after, "jwt: {MAIN, metadata: {x-transom-email: email}}", "main, keys", false, nil, map[string]string{"x-transom-email": "alice@example.com"}},
		{after, `jwt: {MAIN, plan_claim: email, jwks_uri: "URL/keys"}`, "main, keys", false, nil, map[string]string{"x-transom-plan": "alice@example.com"}},
		{after, "forward: true, jwt: {MAIN}", "main, keys", false, nil, map[string]string{"authorization": bearer}},
	}
	key, token := map[string]string{"x-api-key": "new"}, map[string]string{"authorization": bearer}
	p := start(t, config(variants[0].shop, variants[0].main, variants[0].require))
	sees := func(t *testing.T, what string, call caller, header map[string]string, consumer string) outcome {
		t.Helper()
		o := call(t, p, header)
		o.wantOK(t, what)
		if got := o.seen["x-transom-consumer"]; !slices.Equal(got, []string{consumer}) {
			t.Errorf("%s: a call of %s is of %q", what, consumer, got)
		}
		return o
	}
	load := underLoad(t, func(t *testing.T, name string, worker, _ int, call caller) {
		if worker%2 == 0 {
			sees(t, name, call, key, "shop")
		} else {
			sees(t, name, call, token, "main:alice")
		}
	})
	for _, v := range append(variants, variants[0]) {
		p.reload(t, config(v.shop, v.main, v.require))
		for name, call := range protocols {
			what := name + ", " + v.main + ", " + v.shop
			check := func(o outcome, want map[string]string) {
				t.Helper()
				for _, k := range []string{"x-transom-plan", "x-transom-scopes", "x-transom-groups", "x-transom-email", "x-api-key", "authorization"} {
					if got := strings.Join(o.seen[k], ","); got != want[k] {
						t.Errorf("%s: the backend sees %s: %q, want %q", what, k, got, want[k])
					}
				}
			}
			check(sees(t, what, call, key, "shop"), v.byKey)
			want := maps.Clone(byToken)
			maps.Copy(want, v.byToken)
			check(sees(t, what, call, token, "main:alice"), want)
			if o := call(t, p, map[string]string{"x-api-key": "old"}); v.old {
				o.wantOK(t, what+", the old key")
			} else {
				o.want(t, what+", the old key", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
			}
		}
		load.calls(t, 20)
	}
	load.end()
	p.reload(t, config("api_keys: ["+sha("next")+"]", "jwt: {MAIN, algorithms: [RS256]}", "main, keys"))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		call(t, p, key).want(t, "a key that was taken out", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
		call(t, p, token).want(t, "an algorithm that was taken out", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
	})
}

// TestCostBombs has expressions that would take forever; none gets past the start, or past its limit.
func TestCostBombs(t *testing.T) {
	for what, source := range map[string]string{
		"three loops":       `scopes.all(a, scopes.all(b, scopes.all(c, a + b != c)))`,
		"loops over claims": `claims.exists(a, claims.exists(b, claims.exists(c, a == b && b == c)))`,
		"doubling":          `[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, a+b+c+d+e+f > 0))))))`,
		"deep":              strings.Repeat("(", 300) + "true" + strings.Repeat(")", 300),
		"long":              strings.Repeat("true && ", 600) + "true",
	} {
		began := time.Now()
		found := faults(t, "policies:\n- selector: bank.v1.Diagnostics.Metadata\n  allow: '"+source+"'\n")
		if len(found) == 0 || !strings.HasPrefix(found[0], "3:10: ") {
			t.Errorf("%s: faults %q, want one at 3:10", what, found)
		}
		if d := time.Since(began); d > patience {
			t.Errorf("%s took %v to refuse", what, d)
		}
	}
	// Cheap for texts of the assumed length, dear for one of 3 MiB.
	p := start(t, "\nlimits: {message_bytes: 8MiB}\npolicies:\n- {selector: bank.v1.Diagnostics.Echo, allow: 'request.text.split(\"a\").all(s, s == \"\")'}\n")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := bankv1.NewDiagnosticsClient(p.conn)
	if _, err := client.Echo(ctx, &bankv1.Everything{Text: "aaa"}, grpc.MaxCallRecvMsgSize(8<<20)); err != nil {
		t.Errorf("a short text: %v", err)
	}
	if _, err := client.Echo(ctx, &bankv1.Everything{Text: strings.Repeat("a", 3<<20)}, grpc.MaxCallSendMsgSize(8<<20)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a long text: %v, want PermissionDenied", err)
	}
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.issue(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "test authority"}}, "ca")
	return a
}

// issue signs a certificate and writes name.crt and name.key.
func (a *authority) issue(t *testing.T, c *x509.Certificate, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	if c.NotBefore = time.Now().Add(-time.Hour); c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(filepath.Join(a.dir, name+file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// TestClientCertificates identifies clients by certificates over gRPC, REST and WebSocket.
func TestClientCertificates(t *testing.T) {
	ca := newAuthority(t)
	ca.issue(t, &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "edge")
	spiffe, err := url.Parse("spiffe://bank.example/shop")
	if err != nil {
		t.Fatal(err)
	}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	ca.issue(t, &x509.Certificate{URIs: []*url.URL{spiffe}, DNSNames: []string{"other"}, ExtKeyUsage: client}, "spiffe")
	ca.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "till 7"}, ExtKeyUsage: client}, "till")
	p := start(t, "\n"+strings.NewReplacer("/etc/transom/clients.pem", ca.dir+"/ca.crt", "/etc/transom", ca.dir, `":8443"`, `"127.0.0.1:0"`).
		Replace(example(t, "Client certificates")))
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for name, want := range map[string]string{"spiffe": "shop", "till": "certs:cn:till 7", "": ""} {
		tc := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
		if name != "" {
			pair, err := tls.LoadX509KeyPair(filepath.Join(ca.dir, name+".crt"), filepath.Join(ca.dir, name+".key"))
			if err != nil {
				t.Fatal(err)
			}
			tc.Certificates = []tls.Certificate{pair}
		}
		check := func(protocol string, o outcome) {
			t.Helper()
			if want == "" {
				o.want(t, protocol+" without a certificate", codes.Unauthenticated, 401, "CREDENTIALS_MISSING")
				return
			}
			o.want(t, protocol+" as "+want, codes.OK, 200, "")
			if got := o.seen["x-transom-consumer"]; !slices.Equal(got, []string{want}) {
				t.Errorf("%s: consumer %q, want %q", protocol, got, want)
			}
		}
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: tc.Clone()}}
		resp, err := h.Get("https://" + p.addr + metadataPath)
		if err != nil {
			t.Fatal(err)
		}
		check("REST", ofHTTP(t, resp))
		resp.Body.Close()
		c, resp, err := websocket.Dial(t.Context(), "wss://"+p.addr+metadataPath, &websocket.DialOptions{HTTPClient: h})
		if err != nil {
			check("WebSocket", ofHTTP(t, resp))
		} else {
			_, b, err := c.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			o := outcome{http: 200}
			o.seen, o.server = seenOf(t, b)
			check("WebSocket", o)
			c.CloseNow()
		}
		h.CloseIdleConnections()
		conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(tc)))
		if err != nil {
			t.Fatal(err)
		}
		check("gRPC", callGRPC(t, &proxy{conn: conn}, nil))
		conn.Close()
	}
}

// TestBadClientCertificates: over every protocol a certificate that the listener's authority does not vouch for, or not for a client,
// or no longer, opens no connection, and is not taken for none where none will do. A good one is told from others by its name.
func TestBadClientCertificates(t *testing.T) {
	ca := newAuthority(t)
	ca.issue(t, &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "edge")
	foreign := newAuthority(t)
	foreign.dir = ca.dir
	till := func(by *authority, name, cn string, usage x509.ExtKeyUsage, end time.Time) {
		t.Helper()
		by.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: cn}, ExtKeyUsage: []x509.ExtKeyUsage{usage}, NotAfter: end}, name)
	}
	till(ca, "good", "till 7", x509.ExtKeyUsageClientAuth, time.Time{})
	till(ca, "known", "till 8", x509.ExtKeyUsageClientAuth, time.Time{})
	till(ca, "other", "till 9", x509.ExtKeyUsageClientAuth, time.Time{})
	till(foreign, "foreign", "till 7", x509.ExtKeyUsageClientAuth, time.Time{})
	till(ca, "expired", "till 7", x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Minute))
	till(ca, "server", "till 7", x509.ExtKeyUsageServerAuth, time.Time{})
	till(&authority{dir: ca.dir}, "self-signed", "till 7", x509.ExtKeyUsageClientAuth, time.Time{})
	const anybodys = "/v1/customers/1/accounts/1" // a call without a certificate will do
	for _, auth := range []string{"request", "require"} {
		p := start(t, strings.NewReplacer("DIR", ca.dir, "AUTH", auth).Replace(`
consumers:
  providers: {certs: {client_certificate: {}}}
  known: {shop: {identities: ["certs:cn:till 8"]}}
policies:
- {selector: "*", auth: {require: [certs], anonymous: true}}
- {selector: bank.v1.Diagnostics.*, auth: {require: [certs]}, access: {consumers: [shop, "certs:cn:till 7"]}}
listeners: [{address: "127.0.0.1:0", tls: {certificate: DIR/edge.crt, key: DIR/edge.key, client_ca: DIR/ca.crt, client_auth: AUTH}}]
`))
		for _, name := range []string{"good", "known", "other", "foreign", "expired", "server", "self-signed", "", "good"} {
			p.useTLS(t, ca, name)
			what := fmt.Sprintf("client_auth: %s, certificate %q", auth, name)
			if consumer, ok := map[string]string{"good": "certs:cn:till 7", "known": "shop", "other": "", "": ""}[name]; ok && (name != "" || auth == "request") {
				everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
					o := call(t, p, nil)
					switch {
					case consumer != "":
						o.wantOK(t, what)
						if got := o.seen["x-transom-consumer"]; !slices.Equal(got, []string{consumer}) {
							t.Errorf("%s: consumer %q, want %q", what, got, consumer)
						}
					case name == "":
						o.want(t, what, codes.Unauthenticated, 401, "CREDENTIALS_MISSING")
						if status, _, body := p.get(t, anybodys, nil); status != http.StatusOK {
							t.Errorf("%s where none will do: %d %s", what, status, body)
						}
					default:
						o.want(t, what, codes.PermissionDenied, 403, "CONSUMER_DENIED")
					}
				})
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if resp, err := p.http.Get(p.url("http") + anybodys); err == nil {
				t.Errorf("%s, REST: %s", what, resp.Status)
				resp.Body.Close()
			}
			if c, resp, err := websocket.Dial(ctx, p.url("ws")+anybodys, &websocket.DialOptions{HTTPClient: p.http}); err == nil || resp != nil || ctx.Err() != nil {
				t.Errorf("%s, WebSocket: %v, %v, %v", what, c, resp, err)
			}
			if _, err := bankv1.NewAccountsClient(p.conn).Get(ctx, &bankv1.GetAccountRequest{Name: "customers/1/accounts/1"}); status.Code(err) != codes.Unavailable {
				t.Errorf("%s, gRPC: %v", what, err)
			}
			cancel()
		}
	}
}

// TestExplain shows where each field comes from.
func TestExplain(t *testing.T) {
	p := &proxy{bank: "127.0.0.1:1", set: descriptorSet(t)}
	file := p.parse(t, `policies:
- {selector: "*", timeout: 10s, auth: {anonymous: true}}
- selector: bank.v1.Accounts.Transfer
  allow: consumer != ""
  timeout: 2s
`)
	where := func(path string) string {
		line, column := file.Position(path)
		return fmt.Sprintf("%s:%d:%d", file.Name, line, column)
	}
	var out strings.Builder
	if err := gateway.Explain(t.Context(), file.Config, "/bank.v1.Accounts/Transfer", where, &out, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	const want = `bank.v1.Accounts.Transfer  unary
  POST /bank.v1.Accounts/Transfer
  POST /v1/{name=customers/*/accounts/*}:transfer
  POST /v1/accounts/{name}:transfer

FIELD          VALUE               SELECTOR                   FROM
cluster        bank                                           default
timeout        "2s"                bank.v1.Accounts.Transfer  transom.yaml:5:12
message_bytes  4194304                                        default
auth           {"anonymous":true}  *                          transom.yaml:2:39
allow          "consumer != \"\""  bank.v1.Accounts.Transfer  transom.yaml:4:10

a call goes through overload, access, the cluster
`
	got := strings.ReplaceAll(out.String(), `"anonymous": true`, `"anonymous":true`) // protojson's spacing is random
	if squeeze(got) != squeeze(want) {
		t.Errorf("explain says\n%s\nwant\n%s", got, want)
	}
	err := gateway.Explain(t.Context(), file.Config, "bank.v1.Accounts.Transfr", where, io.Discard, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "did you mean bank.v1.Accounts.Transfer?") {
		t.Errorf("a method that is none: %v", err)
	}
}

// squeeze makes one space of many.
func squeeze(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	return strings.Join(lines, "\n")
}

// FuzzRouteAndPolicy sends any path by every protocol whose calls have one, over HTTP/1.1 and HTTP/2: the method that the backend serves
// is the one that the policy saw, and one that the policy denies never reaches it.
func FuzzRouteAndPolicy(f *testing.F) {
	for _, path := range []string{
		"/v1/diagnostics/metadata", "/bank.v1.Diagnostics/Metadata", "/v1/diagnostics/%6detadata", "/v1//diagnostics/metadata", "/v1/diagnostics/metadata/",
		"/v1/diagnostics/../diagnostics/metadata", "/v1/diagnostics/any/../metadata", "/v1/diagnostics/any/%2e%2e/metadata", "/v1/diagnostics%2Fmetadata",
		"/v1/diagnostics/metadata;x=1", "/v1/diagnostics/metadata%00", "/V1/diagnostics/metadata", "bank.v1.Diagnostics/Metadata", "//bank.v1.Diagnostics/Metadata",
		"/bank.v1.Diagnostics/Metadata/", "/bank.v1.Diagnostics/metadata", "/bank.v1.Diagnostics%2FMetadata", "/v1/diagnostics/any/bank.v1.Diagnostics/Metadata",
		"/v1/customers/1/accounts/1", "/v1/accounts/1", "/v1/diagnostics/any/x",
		"/v2/diagnostics/metadata", "/diagnostics/metadata", "/v2/v1/diagnostics/metadata", "/v2//diagnostics/metadata", "/v%32/diagnostics/metadata",
	} {
		f.Add(path, true)
		f.Add(path, false)
	}
	p := startFor(f, fuzzedPolicies, "")
	h2c := &http.Client{Transport: &http.Transport{Protocols: new(http.Protocols)}}
	h2c.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	f.Cleanup(h2c.CloseIdleConnections)
	f.Fuzz(func(t *testing.T, path string, get bool) {
		u, err := url.ParseRequestURI(path)
		if err != nil || u.IsAbs() || u.Host != "" || path == "*" { // which net/http sends again and again when it is reset over HTTP/2
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		verb := http.MethodPost
		if get {
			verb = http.MethodGet
		}
		// What the router would do, without any policy. The path of a method is taken as it is, byte for byte.
		var called, ruled *descriptors.Method
		p.Snapshot(func(s *gateway.Snapshot) {
			called, _ = s.Schema().Method(u.EscapedPath())
			if match, err := s.MatchHTTP(verb, u.EscapedPath(), ""); err == nil {
				ruled = match.Binding.Method
			}
		})
		isDenied := func(m *descriptors.Method) bool { return m != nil && m.Name == "bank.v1.Diagnostics.Metadata" }
		judge := func(way string, method *descriptors.Method, answer string, reached bool) {
			t.Helper()
			denied := strings.Contains(answer, "this method's rule does not allow the call")
			switch {
			case reached:
				t.Errorf("%s: %q reached the method that is denied: %s", way, path, answer)
			case isDenied(method) && !denied:
				t.Errorf("%s: %q is routed to the method that is denied, and answered %s", way, path, answer)
			case denied && !isDenied(method):
				t.Errorf("%s: %q is routed to %v, and the policy of another method denied it", way, path, method)
			}
		}
		for _, way := range []struct {
			name        string
			contentType string
			framed      bool // so that it is POST
		}{{"JSON", "application/json", false}, {"gRPC", "application/grpc", true}, {"gRPC-Web", "application/grpc-web+proto", true}} {
			for version, client := range map[string]*http.Client{"HTTP/1.1": p.http, "HTTP/2": h2c} {
				if get && way.framed || way.name == "gRPC" && client != h2c {
					continue
				}
				method, content := called, string(frame(0, nil))
				if !way.framed {
					content = "{}"
					if method == nil || get {
						method = ruled
					}
				}
				r, err := http.NewRequestWithContext(ctx, verb, "http://"+p.addr+"/", strings.NewReader(content))
				if err != nil {
					t.Fatal(err)
				}
				r.URL.Path, r.URL.RawPath, r.URL.Opaque = u.Path, u.RawPath, ""
				r.Header.Set("Content-Type", way.contentType)
				resp, err := client.Do(r)
				if err != nil {
					continue // not even HTTP
				}
				b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
				resp.Body.Close()
				answer := fmt.Sprintf("%d %s %v %v", resp.StatusCode, b, resp.Header["Grpc-Message"], resp.Trailer)
				reached := resp.StatusCode == 200 && strings.Contains(string(b), `"server"`) && strings.Contains(string(b), `"metadata"`)
				if way.framed {
					reached = isDenied(method) && (resp.Trailer.Get("Grpc-Status") == "0" || strings.Contains(string(b), "grpc-status: 0"))
				}
				judge(way.name+" over "+version, method, answer, reached)
			}
		}
		if !get {
			return
		}
		answer := ""
		c, resp, err := websocket.Dial(ctx, "ws://"+p.addr+u.EscapedPath(), &websocket.DialOptions{HTTPClient: p.http})
		switch {
		case err == nil:
			defer c.CloseNow()
			_ = c.Write(ctx, websocket.MessageText, []byte("{}"))
			_, b, err := c.Read(ctx)
			answer = fmt.Sprintf("%s %v", b, err)
		case resp != nil:
			b, _ := io.ReadAll(resp.Body)
			answer = string(b)
		default:
			return // not even HTTP
		}
		method := called
		if method == nil {
			method = ruled
		}
		judge("WebSocket", method, answer, strings.Contains(answer, `"server"`) && strings.Contains(answer, `"metadata"`))
	})
}

const fuzzedPolicies = `
api_versions: {versions: [v1, v2], header: api-version, default: v2}
policies:
- {selector: bank.v1.Diagnostics.Metadata, allow: "false"}
`

// TestLargeAnswerMetadata: up to 64 KiB of metadata come through from a backend, more ends the call, and that call only.
func TestLargeAnswerMetadata(t *testing.T) {
	p := start(t, "\npolicies: []\n")
	p.conn.Close()
	var err error
	if p.conn, err = grpc.NewClient(p.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithMaxHeaderListSize(1<<20)); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"header", "trailer"} {
		for _, tc := range []struct {
			size int
			ok   bool
		}{{30 << 10, true}, {70 << 10, false}, {500 << 10, false}} {
			value := strings.Repeat("x", tc.size)
			body := `{"` + kind + `":{"x-large":"` + value + `"}}`
			got := map[string]codes.Code{}
			got["REST"] = p.post(t, metadataPath, body, nil).code
			answers, o := p.webSocket(t, "/bank.v1.Diagnostics/Metadata", nil, body)
			if got["WebSocket"] = o.code; tc.ok && len(answers) != 1 {
				t.Errorf("WebSocket, %s of %d bytes: %d answers", kind, tc.size, len(answers))
			}
			in := &bankv1.MetadataRequest{}
			if kind == "header" {
				in.Header = map[string]string{"x-large": value}
			} else {
				in.Trailer = map[string]string{"x-large": value}
			}
			_, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(t.Context(), in)
			got["gRPC"] = status.Code(err)
			for protocol, code := range got {
				if (code == codes.OK) != tc.ok {
					t.Errorf("%s, %s of %d bytes: %v", protocol, kind, tc.size, code)
				}
			}
			if !tc.ok {
				t.Logf("%s of %d bytes: %v", kind, tc.size, got)
			}
			callREST(t, p, nil).wantOK(t, "the next call")
			callGRPC(t, p, nil).wantOK(t, "the next call")
		}
	}
}

// TestCacheProbe: what the cache has of one caller no other gets, whatever the protocol either calls by.
func TestCacheProbe(t *testing.T) {
	p := start(t, fmt.Sprintf(`
consumers:
  providers: {keys: {api_key: {}}}
  known: {alice: {api_keys: [%q]}, bob: {api_keys: [%q]}}
policies: [{selector: bank.v1.Diagnostics.Metadata, auth: {require: [keys], anonymous: true}, cache: {ttl: 1h}}]
`, sha("a"), sha("b")))
	for first, fetch := range protocols {
		p.purge(t, "", "", "")
		for _, who := range []struct{ key, consumer string }{{"a", "alice"}, {"b", "bob"}, {"", ""}} {
			header := map[string]string{}
			if who.key != "" {
				header["x-api-key"] = who.key
			}
			fetch(t, p, header).wantOK(t, first)
			for name, call := range protocols {
				o := call(t, p, header)
				o.wantOK(t, name)
				if got := strings.Join(o.seen["x-transom-consumer"], ","); got != who.consumer {
					t.Errorf("%q is given by %s what %q fetched", who.consumer, name, got)
				}
			}
		}
		if n := p.purge(t, "", "", ""); n != 3 {
			t.Errorf("%s: three callers have %d answers in the cache", first, n)
		}
	}
}

// TestBurst: calls made at the same moment by every protocol do not get past a limit together.
func TestBurst(t *testing.T) {
	p := start(t, "\npolicies: [{selector: \"*\", limits: [{rate: 20/h, per: ip}, {quota: 1000/day, everybody: true}]}]\n")
	var admitted, refused atomic.Int64
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for name, call := range protocols {
		for range 40 {
			wg.Go(func() {
				<-begin
				switch o := call(t, p, nil); o.code {
				case codes.OK:
					admitted.Add(1)
				case codes.ResourceExhausted:
					refused.Add(1)
				default:
					t.Errorf("%s: %v", name, o.code)
				}
			})
		}
	}
	close(begin)
	wg.Wait()
	if admitted.Load() != 20 || refused.Load() != 100 {
		t.Errorf("of 120 calls %d were let through and %d refused, want 20 and 100", admitted.Load(), refused.Load())
	}
}
