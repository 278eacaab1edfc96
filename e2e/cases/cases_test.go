package cases_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/e2e/cases"
	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// load makes transom in front of a backend.
func load(t *testing.T, set *descriptorpb.FileDescriptorSet, backend string, extras bool) (*gateway.Gateway, error) {
	t.Helper()
	raw, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cases.binpb")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return gateway.New(t.Context(), &configv1.Config{
		Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0", Cors: &configv1.Cors{AllowOrigins: []string{cases.Origin}}}},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: file}}},
		Clusters:    map[string]*configv1.Cluster{"backend": {Target: "static:///" + backend}},
		Policies:    []*configv1.Policy{{Selector: []string{"*"}, MessageBytes: cases.MaxBody}},
		Metadata:    &configv1.Metadata{RequestHeaders: []string{"X-Hop"}},
		Json:        &configv1.Json{QueryMaps: extras},
	}, slog.New(slog.DiscardHandler))
}

// start runs transom in front of b until the test ends.
func start(t *testing.T, b *cases.Backend, extras bool) string {
	t.Helper()
	g, err := load(t, cases.DescriptorSet(), b.Addr(), extras)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	return g.Addrs()[0].String()
}

// TestSchemas: transom does not start with rules that it must refuse, and says why; it starts with the others.
func TestSchemas(t *testing.T) {
	for _, s := range cases.Schemas() {
		t.Run(fmt.Sprintf("%d %s", s.Number, s.Rule), func(t *testing.T) {
			g, err := load(t, s.DescriptorSet(), "127.0.0.1:1", false)
			if wrong := s.Check(err); wrong != nil || err != nil && !strings.Contains(err.Error(), s.Want) {
				t.Errorf("%v; got %v, want %q", wrong, err, s.Want)
			}
			if g != nil {
				ctx, stop := context.WithCancel(t.Context())
				stop()
				if err := g.Run(ctx); err != nil {
					t.Errorf("Run: %v", err)
				}
			}
		})
	}
}

// TestCases runs the whole table against transom, which gives the first of the answers that a rule allows.
func TestCases(t *testing.T) {
	b, err := cases.StartBackend()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	plain := cases.NewClient(b, start(t, b, false))
	t.Cleanup(plain.Close)
	extras := cases.NewClient(b, start(t, b, true))
	t.Cleanup(extras.Close)
	for _, tc := range cases.Table() {
		t.Run(fmt.Sprintf("%d %s", tc.Number, tc.Rule), func(t *testing.T) {
			c := plain
			if tc.Extras {
				c = extras
			}
			if strict, _ := c.Run(t.Context(), tc); strict != nil {
				t.Error(strict)
			}
		})
	}
}
