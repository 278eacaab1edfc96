package cases_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"transom/e2e/cases"
	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs transom in front of b until the test ends.
func start(t *testing.T, b *cases.Backend, extras bool) string {
	t.Helper()
	raw, err := proto.Marshal(cases.DescriptorSet())
	if err != nil {
		t.Fatal(err)
	}
	set := filepath.Join(t.TempDir(), "cases.binpb")
	if err := os.WriteFile(set, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(t.Context(), &configv1.Config{
		Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0", Cors: &configv1.Cors{AllowOrigins: []string{cases.Origin}}}},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: set}}},
		Clusters:    map[string]*configv1.Cluster{"backend": {Target: "static:///" + b.Addr()}},
		Policies:    []*configv1.Policy{{Selector: []string{"*"}, MessageBytes: cases.MaxBody}},
		Metadata:    &configv1.Metadata{RequestHeaders: []string{"X-Hop"}},
		Json:        &configv1.Json{QueryMaps: extras},
	}, slog.New(slog.DiscardHandler))
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
