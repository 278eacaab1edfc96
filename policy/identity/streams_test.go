package identity

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net/url"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/descriptors"
	"transom/rpc"
)

// TestRevokedBeforeItBegan has a stream that an old Directory admits when one without its key is in force already: it must not slip
// through.
func TestRevokedBeforeItBegan(t *testing.T) {
	var streams Streams
	directory := func(keys ...string) *Directory {
		shop := &Consumer{Name: "shop"}
		for _, k := range keys {
			shop.KeyHashes = append(shop.KeyHashes, sha256.Sum256([]byte(k)))
		}
		p, err := NewAPIKeys("keys", "x-api-key", []*Consumer{shop})
		if err != nil {
			t.Fatal(err)
		}
		d, err := NewDirectory(map[string]Entry{"keys": {Provider: p}}, []*Consumer{shop}, &streams)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	old := directory("a", "b")
	streams.Use(old)
	mw, err := old.Middleware(Requirement{Providers: []string{"keys"}})
	if err != nil {
		t.Fatal(err)
	}
	streams.Use(directory("b"))
	for key, want := range map[string]codes.Code{"a": codes.Unauthenticated, "b": codes.OK} {
		call := &rpc.Call{Method: descriptors.Opaque("/bank.v1.Accounts/Watch"), Header: metadata.Pairs("x-api-key", key), Info: &rpc.Info{}}
		err := mw(func(ctx context.Context, _ *rpc.Call) error { return rpc.CauseOf(ctx) })(t.Context(), call)
		if status.Code(err) != want {
			t.Errorf("key %s: %v, want %v", key, err, want)
		}
	}
	if len(streams.open) > 0 {
		t.Errorf("%d streams are kept that are over", len(streams.open))
	}
}

// TestRevocations puts another configuration in force while a stream is open, of a caller of each kind: it ends if its consumer or its
// provider is no more, or the provider is another one under the same name.
func TestRevocations(t *testing.T) {
	id := newIDP(t)
	id.about = map[string]any{"active": true, "sub": "alice"}
	introspection := func(url string) *Introspection {
		p, err := NewIntrospection(IntrospectionConfig{Name: "main", URL: url, Cache: time.Minute}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		p.client.http.Transport = id
		return p
	}
	external := func(cluster string) *External {
		claims, err := structpb.NewStruct(map[string]any{"sub": "alice"})
		if err != nil {
			t.Fatal(err)
		}
		return NewExternal(ExternalConfig{Name: "main", Cluster: cluster, Timeout: time.Second}, authorizer(func(context.Context) (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{DynamicMetadata: claims}, nil
		}), slog.New(slog.DiscardHandler))
	}
	tokens := id.jwt(t, JWTConfig{Algorithms: []string{"ES256"}})
	other := id.jwt(t, JWTConfig{Algorithms: []string{"ES256"}})
	other.cfg.Issuer = "https://other.example"
	certs := NewClientCertificates("main")
	leaf := &x509.Certificate{Raw: []byte("leaf"), URIs: []*url.URL{{Scheme: "spiffe", Host: "alice"}}, NotAfter: time.Now().Add(time.Hour), SerialNumber: big.NewInt(1)}
	asks := introspection(idpURL + "/introspect")
	authz := external("authz")
	token := id.token(t, time.Hour, "JWT")

	alice := func(name string) []*Consumer {
		return []*Consumer{{Name: name, Identities: []string{"main:alice", "main:uri:spiffe://alice"}}}
	}
	for _, tc := range []struct {
		name          string
		before, after Provider // after is nil for none
		known, then   []*Consumer
		want          bool // that it ends
	}{
		{"jwt, the same", tokens, tokens, nil, nil, false},
		{"jwt, another issuer", tokens, other, nil, nil, true},
		{"jwt, none", tokens, nil, nil, nil, true},
		{"jwt to introspection", tokens, asks, nil, nil, true},
		{"introspection to jwt", asks, tokens, nil, nil, true},
		{"introspection, the same", asks, introspection(idpURL + "/introspect"), nil, nil, false},
		{"introspection, another URL", asks, introspection(idpURL + "/else"), nil, nil, true},
		{"external, the same", authz, external("authz"), nil, nil, false},
		{"external, another cluster", authz, external("others"), nil, nil, true},
		{"external to certificates", authz, certs, nil, nil, true},
		{"certificates, the same", certs, certs, nil, nil, false},
		{"certificates to external", certs, authz, nil, nil, true},
		{"jwt, the consumer stays", tokens, tokens, alice("a"), alice("a"), false},
		{"jwt, no consumer", tokens, tokens, alice("a"), nil, true},
		{"jwt, another consumer", tokens, tokens, alice("a"), alice("b"), true},
		{"jwt, a consumer now", tokens, tokens, nil, alice("a"), false},
		{"introspection, no consumer", asks, asks, alice("a"), nil, true},
		{"external, no consumer", authz, authz, alice("a"), nil, true},
		{"certificates, no consumer", certs, certs, alice("a"), nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var streams Streams
			directory := func(p Provider, known []*Consumer) *Directory {
				providers := map[string]Entry{"more": {Provider: asks}}
				if p != nil {
					providers["main"] = Entry{Provider: p}
				}
				d, err := NewDirectory(providers, known, &streams)
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			before, after := directory(tc.before, tc.known), directory(tc.after, tc.then)
			mw, err := before.Middleware(Requirement{Providers: []string{"main"}})
			if err != nil {
				t.Fatal(err)
			}
			streams.Use(before)
			call := &rpc.Call{Method: descriptors.Opaque("/bank.v1.Accounts/Watch"), Header: metadata.Pairs("authorization", "Bearer "+token), Info: &rpc.Info{}}
			call.Peer.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
			err = mw(func(ctx context.Context, _ *rpc.Call) error {
				streams.Use(after)
				return rpc.CauseOf(ctx)
			})(t.Context(), call)
			if want := map[bool]codes.Code{true: codes.Unauthenticated}[tc.want]; status.Code(err) != want {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}
