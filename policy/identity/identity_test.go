package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/goleak"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/descriptors"
	"transom/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer serves the keys of one key pair and returns its URL and a token.
func issuer(tb testing.TB) (url, token string) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	jwk := jose.JSONWebKey{Key: key, KeyID: "1", Algorithm: "ES256", Use: "sig"}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk.Public()}})
	}))
	tb.Cleanup(srv.Close)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	token, err = jwt.Signed(signer).Claims(map[string]any{
		"iss": "https://id.example", "aud": "bank", "sub": "alice", "scope": "a b c", "email": "alice@example.com",
		"exp": time.Now().Add(time.Hour).Unix(), "groups": []string{"staff", "admins"},
	}).Serialize()
	if err != nil {
		tb.Fatal(err)
	}
	return srv.URL, token
}

// BenchmarkAuthenticate is what authentication adds to a call: the whole middleware, with the metadata for the backend,
// without the call itself. "verify" is a token's first call, without the fetch of the keys.
func BenchmarkAuthenticate(b *testing.B) {
	url, token := issuer(b)
	p, err := NewJWT(JWTConfig{Name: "main", Issuer: "https://id.example", Audiences: []string{"bank"}, JWKSURI: url, Outbound: Outbound{Private: true}}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	consumer := &Consumer{Name: "shop", Plan: "gold", KeyHashes: [][32]byte{sha256.Sum256([]byte("a-key-of-the-usual-length-0123456789"))}}
	keys, err := NewAPIKeys("keys", "x-api-key", []*Consumer{consumer})
	if err != nil {
		b.Fatal(err)
	}
	d, err := NewDirectory(map[string]Entry{"main": {Provider: p}, "keys": {Provider: keys}}, []*Consumer{consumer}, &Streams{})
	if err != nil {
		b.Fatal(err)
	}
	method := descriptors.Opaque("/bank.v1.Accounts/Get")
	for _, bc := range []struct {
		name, provider, header, value string
		forget                        bool
	}{
		{"APIKey", "keys", "x-api-key", "a-key-of-the-usual-length-0123456789", false},
		{"JWTCached", "main", "authorization", "Bearer " + token, false},
		{"JWTVerify", "main", "authorization", "Bearer " + token, true},
		{"JWTForged", "main", "authorization", "Bearer " + token[:len(token)-6] + "AAAAAA", false},
	} {
		b.Run(bc.name, func(b *testing.B) {
			mw, err := d.Middleware(Requirement{Providers: []string{bc.provider}})
			if err != nil {
				b.Fatal(err)
			}
			h := mw(func(context.Context, *rpc.Call) error { return nil })
			value := []string{bc.value}
			call := &rpc.Call{Method: &descriptors.Method{FullPath: method.FullPath, Name: method.Name}, Info: &rpc.Info{}, Header: metadata.MD{}}
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				call.Header[bc.header] = value
				if bc.forget {
					p.cache = credentialCache{}
				}
				if err := h(ctx, call); (err != nil) != (bc.name == "JWTForged") {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestManyKeys asks for each of many keys, some of which share the place where those seen before are, several times, and for keys
// that are none.
func TestManyKeys(t *testing.T) {
	name := func(i int) string { return fmt.Sprintf("consumer-%d", i) }
	key := func(i int) string { return fmt.Sprintf("key-%d-of-the-usual-length-0123456789", i) }
	const count = 300
	var known []*Consumer
	for i := range count {
		known = append(known, &Consumer{Name: name(i), KeyHashes: [][32]byte{sha256.Sum256([]byte(key(i)))}})
	}
	p, err := NewAPIKeys("keys", "x-api-key", known)
	if err != nil {
		t.Fatal(err)
	}
	identify := func(key string) (*caller, error) {
		return p.identify(t.Context(), &rpc.Call{Header: metadata.MD{"x-api-key": {key}}})
	}
	for round := range 3 {
		for i := range count {
			who, err := identify(key(i))
			if err != nil || who.Consumer != name(i) {
				t.Fatalf("round %d, key %d: %+v, %v", round, i, who, err)
			}
			if who, err := identify(key(count + i)); who != nil || err == nil {
				t.Fatalf("round %d, a key that is none: %+v, %v", round, who, err)
			}
		}
	}
}

// keeps reports whether text, or any eight bytes of it, are in what v leads to. It does not follow unsafe pointers.
func keeps(text string, v reflect.Value, seen map[uintptr]bool) bool {
	holds := func(b []byte) bool {
		for i := range len(text) - 7 {
			if bytes.Contains(b, []byte(text[i:i+8])) {
				return true
			}
		}
		return false
	}
	switch v.Kind() {
	case reflect.String:
		return holds([]byte(v.String()))
	case reflect.Pointer:
		if v.IsNil() || seen[v.Pointer()] {
			return false
		}
		seen[v.Pointer()] = true
		return keeps(text, v.Elem(), seen)
	case reflect.Interface:
		return !v.IsNil() && keeps(text, v.Elem(), seen)
	case reflect.Struct:
		for _, field := range v.Fields() {
			if keeps(text, field, seen) {
				return true
			}
		}
	case reflect.Map:
		for k, e := range v.Seq2() {
			if keeps(text, k, seen) || keeps(text, e, seen) {
				return true
			}
		}
	case reflect.Slice, reflect.Array:
		var b []byte
		for i := range v.Len() {
			if e := v.Index(i); e.Kind() == reflect.Uint8 {
				b = append(b, byte(e.Uint()))
			} else if keeps(text, e, seen) {
				return true
			}
		}
		return holds(b)
	}
	return false
}

// TestKeysAreHashed: a key is known by all of its SHA-256 and by nothing else, before it is seen and after. What is looked up in
// variable time, by an attacker's choice, is a hash, of which the key cannot be had; the key itself is not there to compare with.
func TestKeysAreHashed(t *testing.T) {
	const key = "a-key-of-the-usual-length-0123456789"
	hash := sha256.Sum256([]byte(key))
	first, last := hash, hash
	first[0] ^= 1
	last[31] ^= 1 // which is found beside the key's own
	shop := &Consumer{Name: "shop", KeyHashes: [][32]byte{hash}}
	others := &Consumer{Name: "others", KeyHashes: [][32]byte{first, last}}
	for _, known := range [][]*Consumer{{shop, others}, {others, shop}, {others}} {
		p, err := NewAPIKeys("keys", "x-api-key", known)
		if err != nil {
			t.Fatal(err)
		}
		d, err := NewDirectory(map[string]Entry{"keys": {Provider: p}}, known, &Streams{})
		if err != nil {
			t.Fatal(err)
		}
		mw, err := d.Middleware(Requirement{Providers: []string{"keys"}})
		if err != nil {
			t.Fatal(err)
		}
		h := mw(func(context.Context, *rpc.Call) error { return nil })
		for range 2 {
			call := asking(metadata.Pairs("x-api-key", key))
			err := h(t.Context(), call)
			if is := slices.Contains(known, shop); (err == nil) != is || is && call.Principal.Consumer != "shop" {
				t.Errorf("%v: %+v, %v", known, call.Principal, err)
			}
			if h(t.Context(), asking(metadata.Pairs("x-api-key", string(hash[:])))) == nil {
				t.Error("a key's hash is taken for the key")
			}
			kept := []any{d, p}
			for i := range p.seen {
				if k := p.seen[i].Load(); k != nil {
					kept = append(kept, k, k.who.linked.Load())
				}
			}
			if keeps(key, reflect.ValueOf(kept), map[uintptr]bool{}) {
				t.Errorf("the key is kept in %+v", kept)
			}
			if !keeps(string(hash[8:]), reflect.ValueOf(kept), map[uintptr]bool{}) {
				t.Error("the test looks past what is kept")
			}
		}
	}
}

// TestSchemes: what is of a scheme, with a credential or without, is never taken for no credential.
func TestSchemes(t *testing.T) {
	for v, want := range map[string]bool{
		"Bearer x": true, "bearer x": true, "BEARER  x": true, "Bearer": true, "bearer ": true,
		"Bearerx": false, "Beare": false, "Basic x": false, "": false,
	} {
		if got := isOf("bearer", v); got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}

// TestListsForBackends: what backends split is what there was, whatever is in a name.
func TestListsForBackends(t *testing.T) {
	p := &rpc.Principal{Consumer: "a", Provider: "p", Scopes: []string{"read all", "x"}, Groups: []string{"staff,admins", "50% off", "Öl", "two words"}}
	want := map[string]string{"x-transom-scopes": "read%20all x", "x-transom-groups": "staff%2Cadmins,50%25 off,%C3%96l,two words"}
	for _, f := range headerOf(p) {
		if w, ok := want[f.key]; ok && f.value[0] != w {
			t.Errorf("%s: %q, want %q", f.key, f.value[0], w)
		}
		delete(want, f.key)
	}
	if len(want) > 0 {
		t.Errorf("no %v", want)
	}
}

// TestChallenges: an error is told in the challenge of those that have seen the credential, and of nobody else.
func TestChallenges(t *testing.T) {
	url, token := issuer(t)
	tokens, err := NewJWT(JWTConfig{Name: "main", Issuer: "https://id.example", Audiences: []string{"bank"}, JWKSURI: url, Outbound: Outbound{Private: true}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tokens.Close)
	keys, err := NewAPIKeys("keys", "x-api-key", nil)
	if err != nil {
		t.Fatal(err)
	}
	people, err := NewBasic("people", nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDirectory(map[string]Entry{"keys": {Provider: keys}, "people": {Provider: people}, "main": {Provider: tokens}}, nil, &Streams{})
	if err != nil {
		t.Fatal(err)
	}
	mw, err := d.Middleware(Requirement{Providers: []string{"people", "keys", "main"}})
	if err != nil {
		t.Fatal(err)
	}
	const basic, key, plain = `Basic realm="transom", charset="UTF-8"`, `ApiKey realm="transom", header="x-api-key"`, `Bearer realm="transom"`
	for _, tc := range []struct{ name, value, bearer string }{
		{"x-none", "", plain},
		{"authorization", "Basic YTpi", plain},
		{"x-api-key", "wrong", plain},
		{"authorization", "Bearer " + token[:len(token)-6] + "AAAAAA", plain + `, error="invalid_token"`},
		{"authorization", "Bearer foreign", plain + `, error="invalid_token"`},
	} {
		call := &rpc.Call{Method: descriptors.Opaque("/a.B/C"), Info: &rpc.Info{}, Header: metadata.MD{tc.name: {tc.value}}}
		err := mw(func(context.Context, *rpc.Call) error { return nil })(t.Context(), call)
		if got, want := rpc.HeaderOf(err)["www-authenticate"], []string{basic, key, tc.bearer}; !slices.Equal(got, want) {
			t.Errorf("%s %q: %v, %q, want %q", tc.name, tc.value, err, got, want)
		}
	}
}

// TestBearer: a Principal says whether its credential was a bearer token, whose holder is told what it lacks.
func TestBearer(t *testing.T) {
	id := newIDP(t)
	id.about = map[string]any{"active": true, "sub": "alice"}
	shop := &Consumer{Name: "shop", KeyHashes: [][32]byte{sha256.Sum256([]byte("Bearer k"))}, PasswordHash: "$2a$04$bGfN3Mq.88O1In2k9TieBuBs/zqRgtlPEwFVmzH1fozu8mmZ7/3OC"}
	keys, err := NewAPIKeys("keys", "authorization", []*Consumer{shop})
	if err != nil {
		t.Fatal(err)
	}
	people, err := NewBasic("people", []*Consumer{shop})
	if err != nil {
		t.Fatal(err)
	}
	asks, err := NewIntrospection(IntrospectionConfig{Name: "asks", URL: idpURL + "/introspect", Cache: time.Minute}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(asks.Close)
	asks.client.http.Transport = id
	claims, err := structpb.NewStruct(map[string]any{"sub": "alice"})
	if err != nil {
		t.Fatal(err)
	}
	authz, _ := external(func(context.Context) (*authv3.CheckResponse, error) {
		return &authv3.CheckResponse{DynamicMetadata: claims}, nil
	})
	d, err := NewDirectory(map[string]Entry{
		"keys": {Provider: keys}, "people": {Provider: people}, "main": {Provider: id.jwt(t, JWTConfig{Algorithms: []string{"ES256"}})},
		"asks": {Provider: asks}, "certs": {Provider: NewClientCertificates("certs")}, "authz": {Provider: authz},
	}, []*Consumer{shop}, &Streams{})
	if err != nil {
		t.Fatal(err)
	}
	token := "Bearer " + id.token(t, time.Hour, "JWT")
	for _, tc := range []struct {
		provider, authorization string
		want                    bool
	}{
		{"keys", "Bearer k", false},
		{"people", "Basic c2hvcDpw", false},
		{"main", token, true},
		{"asks", "Bearer k", true},
		{"certs", token, false},
		{"authz", token, false},
	} {
		mw, err := d.Middleware(Requirement{Providers: []string{tc.provider}})
		if err != nil {
			t.Fatal(err)
		}
		call := asking(metadata.Pairs("authorization", tc.authorization))
		leaf := &x509.Certificate{Raw: []byte("leaf"), DNSNames: []string{"alice"}, NotAfter: time.Now().Add(time.Hour), SerialNumber: big.NewInt(1)}
		call.Peer.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
		err = mw(func(context.Context, *rpc.Call) error { return nil })(t.Context(), call)
		if err != nil || call.Principal == nil || call.Principal.Bearer != tc.want {
			t.Errorf("%s: %v, %+v, want %v", tc.provider, err, call.Principal, tc.want)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	var c credentialCache
	now := time.Now()
	for i := range 4 * cacheShards * cacheShard {
		seen := tagOf([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		c.put(seen, cached{until: now.Add(time.Minute)}, now)
		if _, ok := c.get(seen, now); !ok {
			t.Fatal("what was just put is gone")
		}
		if _, ok := c.get(seen, now.Add(time.Minute)); ok {
			t.Fatal("what has ended is given")
		}
	}
	for i := range c.shards {
		if n := len(c.shards[i].m); n > cacheShard {
			t.Errorf("shard %d holds %d entries, want at most %d", i, n, cacheShard)
		}
	}
}

func TestCheckAddress(t *testing.T) {
	for _, tc := range []struct {
		address         string
		outside, inside bool
	}{
		{"93.184.216.34:443", true, true},
		{"[2606:2800:220:1::1]:443", true, true},
		{"127.0.0.1:443", false, true},
		{"[::1]:443", false, true},
		{"10.0.0.1:443", false, true},
		{"192.168.1.1:443", false, true},
		{"[fd12::1]:443", false, true},
		{"100.64.0.1:443", false, true},
		{"169.254.169.254:80", false, false},
		{"[::ffff:169.254.169.254]:80", false, false},
		{"[fe80::1]:80", false, false},
		{"[fd00:ec2::254]:80", false, false},
		{"0.0.0.0:80", false, false},
		{"[::]:80", false, false},
		{"224.0.0.1:80", false, false},
		{"[::ffff:127.0.0.1]:80", false, true},
	} {
		if got := checkAddress(tc.address, false) == nil; got != tc.outside {
			t.Errorf("%s from outside allowed: %v, want %v", tc.address, got, tc.outside)
		}
		if got := checkAddress(tc.address, true) == nil; got != tc.inside {
			t.Errorf("%s inside allowed: %v, want %v", tc.address, got, tc.inside)
		}
	}
}

// TestRedirects: a service that answers with a redirect to another host is not followed there.
func TestRedirects(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed to another host") }))
	defer other.Close()
	srv := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
	defer srv.Close()
	c, err := newClient(Outbound{Private: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, _, err := c.getJSON(t.Context(), srv.URL); err == nil || !strings.Contains(err.Error(), "redirected elsewhere") {
		t.Errorf("a redirect to another host: %v", err)
	}
	outside, err := newClient(Outbound{})
	if err != nil {
		t.Fatal(err)
	}
	defer outside.close()
	if _, _, err := outside.getJSON(t.Context(), strings.Replace(srv.URL, "http:", "https:", 1)); err == nil || !strings.Contains(err.Error(), "is not allowed") {
		t.Errorf("loopback without leave: %v", err)
	}
}

// FuzzToken: whatever a token is, it is refused without a panic; only the issuer's own is taken.
func FuzzToken(f *testing.F) {
	url, token := issuer(f)
	p, err := NewJWT(JWTConfig{Name: "main", Issuer: "https://id.example", Audiences: []string{"bank"}, JWKSURI: url, Outbound: Outbound{Private: true}}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(p.Close)
	f.Add(token)
	for i := range 40 {
		f.Add(token[:len(token)*i/40])
	}
	f.Add("..")
	f.Add("eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUifQ.")
	f.Fuzz(func(t *testing.T, s string) {
		call := &rpc.Call{Header: metadata.MD{"authorization": {"Bearer " + s}}, Info: &rpc.Info{}}
		who, err := p.identify(t.Context(), call)
		if err == nil && (s != token || who.identity != "main:alice") {
			t.Errorf("token %q is taken as %s", s, who.identity)
		}
	})
}

// FuzzKeySet: a key set of any form is read or refused, and has only public keys of known kinds.
func FuzzKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		set, err := parseKeys(b)
		if err != nil {
			return
		}
		for _, k := range set.all {
			if !k.IsPublic() {
				t.Errorf("key %q is not public", k.KeyID)
			}
		}
	})
}

// TestAllocations: that a credential was seen before is found without an allocation.
func TestAllocations(t *testing.T) {
	var c credentialCache
	token := strings.Repeat("x", 900)
	now := time.Now()
	c.put(tagOf(bytesOf(token)), cached{until: now.Add(time.Minute)}, now)
	if n := testing.AllocsPerRun(100, func() {
		seen := tagOf(bytesOf(token))
		if _, ok := c.get(seen, now); !ok {
			t.Fatal("what was put is gone")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
