package gateway

import (
	"log/slog"
	"reflect"
	"testing"

	"transom/policy/traffic"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
	"transom/upstream"
)

// TestUnusedTraffic has calls of a method that no traffic policy holds for go straight to its cluster.
func TestUnusedTraffic(t *testing.T) {
	c, err := upstream.New(upstream.Config{Name: "bank", Target: "static:///127.0.0.1:1"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	mirrors := traffic.NewMirrors()
	defer mirrors.Close()
	share := 0.0
	for what, p := range map[string]*configv1.Policy{
		"nothing": {},
		"off": {
			Mirror: &configv1.Mirror{Cluster: "bank", Share: &share},
			Faults: []*configv1.Fault{{Abort: "INTERNAL", Share: &share}},
		},
	} {
		b := &builder{cfg: &configv1.Config{}, clusters: map[string]*upstream.Cluster{"bank": c}, mirrors: mirrors, building: &Snapshot{}}
		eff := Effective{Policy: p}
		if got, want := reflect.ValueOf(b.destination(eff)).Pointer(), reflect.ValueOf(rpc.Handler(c.Invoke)).Pointer(); got != want {
			t.Errorf("%s: something stands before the cluster", what)
		}
		if b.faulty(eff) != nil || b.deprecated(eff) != nil || b.mirror(eff) != nil || b.versions() != nil {
			t.Errorf("%s: something is in the chain", what)
		}
		if len(b.faults) > 0 {
			t.Errorf("%s: %v", what, b.faults)
		}
	}
}
