package access_test

import (
	"context"
	"slices"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/policy/access"
	"transom/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "192.0.2.0/24": "192.0.2.0/24", "2001:db8::/32": "2001:db8::/32", "::ffff:192.0.2.7": "192.0.2.7/32",
		"::1": "::1/128", "192.0.2.1/24": "", "": "", "192.0.2.0/33": "", "fe80::1%eth0": "", "::ffff:192.0.2.0/120": "", "example.com": "",
	} {
		got, err := access.ParseNetwork(in)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("ParseNetwork(%q) = %v, %v, want %q", in, got, err, want)
		}
	}
}

// TestChallenge: the holder of a token is told what scopes it needs, and nobody else, who could not ask for a better one.
func TestChallenge(t *testing.T) {
	h := access.New(access.Config{Scopes: []string{"a", "admin"}})(func(context.Context, *rpc.Call) error { return nil })
	for name, tc := range map[string]struct {
		who  *rpc.Principal
		want []string
	}{
		"token":   {&rpc.Principal{Scopes: []string{"a"}, Bearer: true}, []string{`Bearer realm="transom", error="insufficient_scope", scope="a admin"`}},
		"another": {&rpc.Principal{Scopes: []string{"a"}}, nil},
		"nobody":  {nil, nil},
	} {
		err := h(t.Context(), &rpc.Call{Method: descriptors.Opaque("/a.B/C"), Principal: tc.who, Info: &rpc.Info{}})
		if got := rpc.HeaderOf(err)["www-authenticate"]; status.Code(err) != codes.PermissionDenied || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, challenge %q, want %q", name, err, got, tc.want)
		}
	}
}

// FuzzCompile: no expression panics, or takes long, to compile or to run.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{`consumer == "a"`, `"x" in scopes`, `claims.a.b.c == 1`, `metadata["a"].split(",").all(x, x.size() > 1)`, `scopes.map(s, s + s).exists(s, s == "aa")`, `1/0 == 1`, `groups.all(g, groups.all(h, g == h))`} {
		f.Add(s)
	}
	m := descriptors.Opaque("/a.B/C")
	f.Fuzz(func(t *testing.T, source string) {
		c, err := access.NewCompiler()
		if err != nil {
			t.Fatal(err)
		}
		e, err := c.Compile(source, m)
		if err != nil {
			return
		}
		_ = access.New(access.Config{Allow: []*access.Expression{e}})(func(context.Context, *rpc.Call) error { return nil })(t.Context(), call(m))
	})
}

func call(m *descriptors.Method) *rpc.Call {
	return &rpc.Call{
		Method: m, Header: metadata.MD{"a": {"1", "2"}}, Info: &rpc.Info{},
		Principal: &rpc.Principal{Consumer: "main:alice", Scopes: []string{"a", "b"}, Groups: []string{"staff"}, Claims: map[string]any{"scope": "transfer accounts.read"}},
	}
}

// BenchmarkAllow is what authorization adds to a call.
func BenchmarkAllow(b *testing.B) {
	c, err := access.NewCompiler()
	if err != nil {
		b.Fatal(err)
	}
	m := descriptors.Opaque("/a.B/C")
	for name, source := range map[string]string{
		"Scopes": "", "InScopes": `"b" in scopes`, "ClaimSplit": `"transfer" in claims.scope.split(" ")`, "Metadata": `metadata["a"] == "1,2"`,
	} {
		b.Run(name, func(b *testing.B) {
			cfg := access.Config{}
			if source == "" {
				cfg.Scopes, cfg.Groups = []string{"a", "b"}, [][]string{{"staff"}}
			} else {
				e, err := c.Compile(source, m)
				if err != nil {
					b.Fatal(err)
				}
				cfg.Allow = []*access.Expression{e}
			}
			h := access.New(cfg)(func(context.Context, *rpc.Call) error { return nil })
			call, ctx := call(m), b.Context()
			b.ReportAllocs()
			for b.Loop() {
				if err := h(ctx, call); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
