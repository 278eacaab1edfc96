package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// allAlgorithms are those that a configuration can have.
var allAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// hashOf is what an algorithm has signed.
func hashOf(alg string, data []byte) (crypto.Hash, []byte) {
	h := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:]]
	w := h.New()
	w.Write(data)
	return h, w.Sum(nil)
}

// signAs makes a token whose header says alg and kid with a signature of that form by any key; "" if key cannot make such a one.
func signAs(t *testing.T, alg, kid string, key crypto.Signer) string {
	t.Helper()
	header := map[string]string{"alg": alg}
	if kid != "" {
		header["kid"] = kid
	}
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(header) + "." + part(map[string]any{"iss": idpURL, "aud": "bank", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	var sig []byte
	var err error
	switch k := key.(type) {
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(signed))
	case *rsa.PrivateKey:
		switch alg[:2] {
		case "RS":
			h, sum := hashOf(alg, []byte(signed))
			sig, err = rsa.SignPKCS1v15(nil, k, h, sum)
		case "PS":
			h, sum := hashOf(alg, []byte(signed))
			sig, err = rsa.SignPSS(rand.Reader, k, h, sum, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		default:
			return ""
		}
	case *ecdsa.PrivateKey:
		size, ok := map[string]int{"ES256": 32, "ES384": 48, "ES512": 66}[alg]
		if !ok || size < (k.Params().BitSize+7)/8 {
			return ""
		}
		_, sum := hashOf(alg, []byte(signed))
		r, s, e := ecdsa.Sign(rand.Reader, k, sum)
		if err = e; err == nil {
			sig = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
		}
	}
	if err != nil {
		return "" // PS512 is too long for 1024 bits
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// typedKey is a key of a set and what it may sign.
type typedKey struct {
	kid string
	key crypto.Signer
	// alg and use are what the set says of it.
	alg, use string
	fit      []string
}

// everyKey makes a key of each type.
func everyKey(t *testing.T) []typedKey {
	t.Helper()
	rsaKey := func(bits int) *rsa.PrivateKey {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ec := func(c elliptic.Curve) *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	big := rsaKey(2048)
	return []typedKey{
		{"rsa", big, "", "", allAlgorithms[:6]},
		{"rsa of RS256", big, "RS256", "sig", []string{"RS256"}},
		{"rsa of RSA-OAEP", big, "RSA-OAEP", "", nil},
		{"rsa for encryption", big, "", "enc", nil},
		{"rsa of 1024 bits", rsaKey(1024), "", "", nil},
		{"P-256", ec(elliptic.P256()), "", "", []string{"ES256"}},
		{"P-256 of ES384", ec(elliptic.P256()), "ES384", "", nil},
		{"P-384", ec(elliptic.P384()), "", "sig", []string{"ES384"}},
		{"P-521", ec(elliptic.P521()), "ES512", "", []string{"ES512"}},
		{"Ed25519", ed, "", "", []string{"EdDSA"}},
	}
}

// TestKeyTypes: a key of the set verifies signatures of the algorithms of its type, and of the one that the set says, and nothing
// else, whatever a token says of itself.
func TestKeyTypes(t *testing.T) {
	p := newIDP(t)
	all := everyKey(t)
	for _, k := range all {
		p.more = append(p.more, jose.JSONWebKey{Key: k.key.Public(), KeyID: k.kid, Algorithm: k.alg, Use: k.use})
	}
	began := time.Now()
	v := p.jwt(t, JWTConfig{Algorithms: allAlgorithms})
	accepted := 0
	for _, k := range all {
		for _, alg := range allAlgorithms {
			token := signAs(t, alg, k.kid, k.key)
			if token == "" {
				continue
			}
			ok := slices.Contains(k.fit, alg)
			c, reason, err := who(t, v, token)
			if (err == nil) != ok || !ok && reason != reasonInvalid {
				t.Errorf("%s by the key %q: %v, %v; want it taken: %v", alg, k.kid, c, err, ok)
			}
			if ok {
				accepted++
			}
			for _, other := range all {
				if other.kid == k.kid || other.key == k.key {
					continue
				}
				if c, reason, err := who(t, v, signAs(t, alg, other.kid, k.key)); reason != reasonInvalid {
					t.Errorf("%s by the key %q, which says %q: %v, %v", alg, k.kid, other.kid, c, err)
				}
			}
		}
	}
	if accepted != 11 {
		t.Errorf("%d pairs of key and algorithm were taken, want 11", accepted)
	}
	if most := fetchBurst + int(time.Since(began)/fetchEvery); p.fetches > most {
		t.Errorf("%d fetches, want at most %d", p.fetches, most)
	}
}

// TestKeysWithoutID: a token without a key id is verified by the only key that suits its algorithm, and refused if there are several.
func TestKeysWithoutID(t *testing.T) {
	p := newIDP(t)
	all := everyKey(t)
	for _, k := range all {
		p.more = append(p.more, jose.JSONWebKey{Key: k.key.Public(), KeyID: k.kid, Algorithm: k.alg, Use: k.use})
	}
	v := p.jwt(t, JWTConfig{Algorithms: allAlgorithms})
	for _, tc := range []struct {
		kid, alg string
		ok       bool
	}{
		{"rsa", "PS256", true},
		{"rsa", "RS512", true},
		{"rsa", "RS256", false}, // two keys may make it
		{"rsa of 1024 bits", "RS512", false},
		{"P-256", "ES256", false}, // so may another
		{"P-256", "ES384", false},
		{"P-384", "ES384", true},
		{"P-384", "ES512", false},
		{"P-521", "ES512", true},
		{"Ed25519", "EdDSA", true},
		{"Ed25519", "ES256", false},
	} {
		k := all[slices.IndexFunc(all, func(k typedKey) bool { return k.kid == tc.kid })]
		if c, reason, err := who(t, v, signAs(t, tc.alg, "", k.key)); (err == nil) != tc.ok || !tc.ok && reason != reasonInvalid {
			t.Errorf("%s by the key %q, without its id: %v, %v; want it taken: %v", tc.alg, tc.kid, c, err, tc.ok)
		}
	}
}

// TestSymmetricAlgorithms: no form of a public key is taken for the secret of an HMAC, and no configuration has such an algorithm.
func TestSymmetricAlgorithms(t *testing.T) {
	p := newIDP(t)
	key := everyKey(t)[0]
	public := jose.JSONWebKey{Key: key.key.Public(), KeyID: key.kid}
	p.more = []jose.JSONWebKey{public}
	pub, ok := public.Key.(*rsa.PublicKey)
	if !ok {
		t.Fatalf("a key of type %T", public.Key)
	}
	jwk, err := public.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := x509.MarshalPKCS1PublicKey(pub)
	modulus := pub.N.Bytes()
	block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})
	v := p.jwt(t, JWTConfig{Algorithms: allAlgorithms})
	if c, _, err := who(t, v, signAs(t, "RS256", key.kid, key.key)); err != nil {
		t.Fatalf("the key's own: %v, %v", c, err)
	}
	part := base64.RawURLEncoding.EncodeToString
	claims := part(fmt.Appendf(nil, `{"iss":%q,"aud":"bank","sub":"root","exp":%d}`, idpURL, time.Now().Add(time.Hour).Unix()))
	for what, secret := range map[string][]byte{
		"PEM": block, "PEM without its last line feed": block[:len(block)-1], "PEM of PKCS #1": pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: pkcs1}),
		"DER": pkix, "DER of PKCS #1": pkcs1, "modulus": modulus, "modulus as it is in the set": []byte(part(modulus)), "JWK": jwk, "nothing": nil,
	} {
		for _, header := range []string{`{"alg":"HS256","kid":"rsa"}`, `{"alg":"HS256"}`, `{"alg":"RS256","kid":"rsa"}`} {
			signed := part([]byte(header)) + "." + claims
			mac := hmac.New(sha256.New, secret)
			mac.Write([]byte(signed))
			if c, reason, err := who(t, v, signed+"."+part(mac.Sum(nil))); reason != reasonInvalid {
				t.Errorf("%s, an HMAC by its %s: %v, %v", header, what, c, err)
			}
		}
	}
	for _, alg := range []string{"HS256", "HS384", "HS512", "none", "rs256", ""} {
		if _, err := NewJWT(JWTConfig{Issuer: idpURL, Algorithms: []string{"RS256", alg}}, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("a provider takes tokens of %q", alg)
		}
	}
}

// TestNewKeyInFlood: while tokens with key ids that nobody knows come without end, a token by a new key is taken two seconds and a fetch
// after it at most, and the issuer is asked once in two seconds.
func TestNewKeyInFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newIDP(t)
		p.takes = 300 * time.Millisecond
		v := p.jwt(t, JWTConfig{Algorithms: []string{"ES256"}})
		unknown := signAs(t, "ES256", "unknown", p.key)
		began := time.Now()
		var longest time.Duration
		for n := range 20 {
			for range 30 + 7*n { // at any time since the last fetch
				if c, reason, err := who(t, v, unknown); reason != reasonInvalid {
					t.Fatalf("an unknown key: %v, %v", c, err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			p.rotate(t, fmt.Sprint("new ", n))
			rotated, token := time.Now(), p.token(t, time.Hour, "JWT")
			for {
				_, _, _ = who(t, v, unknown)
				_, reason, err := who(t, v, token)
				if err == nil {
					break
				}
				if reason != reasonInvalid || time.Since(rotated) > time.Minute {
					t.Fatalf("a new key after %v: %v", time.Since(rotated), err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			longest = max(longest, time.Since(rotated))
		}
		if most := 2*time.Second + p.takes + 10*time.Millisecond; longest > most {
			t.Errorf("a new key was found after %v, want %v at most", longest, most)
		}
		if most := 3 + int(time.Since(began)/(2*time.Second)); p.fetches > most {
			t.Errorf("%d fetches in %v, want %d at most", p.fetches, time.Since(began), most)
		}
	})
}

// TestNewKeyDuringFetch: a token by a key that came to be while the keys were on their way has them fetched anew, once for all such
// tokens; those by a key that nobody knows do not get past the limit by it.
func TestNewKeyDuringFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newIDP(t)
		p.takes = time.Second
		v := p.jwt(t, JWTConfig{Algorithms: []string{"ES256"}})
		var wg sync.WaitGroup
		several := func(token, want string) {
			for range 10 {
				wg.Go(func() {
					if c, reason, err := who(t, v, token); reason != want || (err == nil) != (want == "") {
						t.Errorf("%v, %v, want %q", c, err, want)
					}
				})
			}
			synctest.Wait()
		}
		several(p.token(t, time.Hour, "JWT"), "")
		p.rotate(t, "2")
		several(p.token(t, time.Hour, "JWT"), "")
		wg.Wait()
		if p.fetches != 2 {
			t.Errorf("%d fetches, want 2", p.fetches)
		}
		several(signAs(t, "ES256", "unknown", p.key), reasonInvalid)
		wg.Wait()
		if p.fetches > fetchBurst+1 {
			t.Errorf("%d fetches, want at most %d", p.fetches, fetchBurst+1)
		}
	})
}

// TestIssuerDownIsLogged once, and its return.
func TestIssuerDownIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newIDP(t)
		v := p.jwt(t, JWTConfig{Algorithms: []string{"ES256"}})
		var log strings.Builder
		v.keys.log = slog.New(slog.NewTextHandler(&log, nil))
		token := p.token(t, time.Hour, "JWT")
		for range 2 {
			p.down = true
			for range 10 {
				_, _, _ = who(t, v, signAs(t, "ES256", "unknown", p.key))
				time.Sleep(fetchEvery)
			}
			p.down = false
			_, _, _ = who(t, v, signAs(t, "ES256", "unknown", p.key))
			if _, _, err := who(t, v, token); err != nil {
				t.Error(err)
			}
		}
		const fails, again = "keys of a token issuer cannot be fetched", "keys of a token issuer can be fetched again"
		if strings.Count(log.String(), fails) != 2 || strings.Count(log.String(), again) != 2 || strings.Count(log.String(), "\n") != 4 {
			t.Errorf("two outages are logged as\n%s", log.String())
		}
	})
}

// TestKeysSeenByOthers: calls that find, all at once, that their key is missing have it fetched once between them.
func TestKeysSeenByOthers(t *testing.T) {
	p := newIDP(t)
	v := p.jwt(t, JWTConfig{Algorithms: []string{"ES256"}})
	for n := range 2 {
		p.rotate(t, fmt.Sprint(n))
		token := p.token(t, time.Hour, "JWT")
		seen := v.keys.keys.Load()
		if _, _, err := who(t, v, token); err != nil {
			t.Fatal(err)
		}
		if wait, began := v.keys.refresh(time.Now(), seen); wait != nil || began {
			t.Error("keys that another call had fetched meanwhile were fetched again")
		}
	}
}
