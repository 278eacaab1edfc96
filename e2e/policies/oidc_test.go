package policies_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// oidc is an OpenID Connect provider: discovery, keys, tokens, and introspection of tokens that say nothing themselves.
type oidc struct {
	*httptest.Server
	// fetches counts those of the keys.
	fetches atomic.Int64
	// down makes the keys answer 503.
	down atomic.Bool

	mu   sync.Mutex
	n    int
	keys []jose.JSONWebKey
}

func startOIDC(t *testing.T) *oidc {
	t.Helper()
	o := &oidc{}
	o.rotate(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": o.URL, "jwks_uri": o.URL + "/keys", "authorization_endpoint": o.URL + "/auth", "token_endpoint": o.URL + "/token",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		o.fetches.Add(1)
		if o.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		set := jose.JSONWebKeySet{}
		for _, k := range o.keys {
			set.Keys = append(set.Keys, k.Public())
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(set)
	})
	o.Server = httptest.NewServer(mux)
	t.Cleanup(o.Close)
	return o
}

// rotate makes a new key, which signs from now on. The one before stays in the set, older ones leave it.
func (o *oidc) rotate(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n++
	o.keys = append([]jose.JSONWebKey{{Key: key, KeyID: fmt.Sprintf("key-%d", o.n), Algorithm: "ES256", Use: "sig"}}, o.keys...)
	o.keys = o.keys[:min(2, len(o.keys))]
}

// token signs claims over the usual ones; a claim that is nil is left out.
func (o *oidc) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	o.mu.Lock()
	key := o.keys[0]
	o.mu.Unlock()
	return o.sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: key}, claims)
}

// sign signs with a key of the caller's.
func (o *oidc) sign(t *testing.T, key jose.SigningKey, claims map[string]any) string {
	t.Helper()
	all := map[string]any{
		"iss": o.URL, "aud": "bank", "sub": "alice", "scope": "accounts.read transfer", "groups": []string{"staff"}, "email": "alice@example.com",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return s
}
