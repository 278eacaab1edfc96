package gateway

import (
	"log/slog"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/descriptors"
	"transom/policy/identity"
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
		cfg := &configv1.Config{Clusters: map[string]*configv1.Cluster{"bank": {}}}
		b := &builder{cfg: cfg, clusters: map[string]*upstream.Cluster{"bank": c}, mirrors: mirrors, building: &Snapshot{}}
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

// TestUnusedPolicies: what no policy asks for is not in a method's chain, so that it costs nothing, neither time nor memory.
func TestUnusedPolicies(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	c, err := upstream.New(upstream.Config{Name: "bank", Target: "static:///127.0.0.1:1"}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	directory, err := identity.NewDirectory(nil, nil, &identity.Streams{})
	if err != nil {
		t.Fatal(err)
	}
	method := descriptors.Opaque("/bank.v1.Accounts/Get")
	unary := *method
	unary.ClientStreams, unary.ServerStreams = false, false
	for _, p := range []*configv1.Policy{{}, {Timeout: durationpb.New(time.Second)}, {Cost: 5}, {Validate: proto.Bool(false)}} {
		b := &builder{cfg: &configv1.Config{}, clusters: map[string]*upstream.Cluster{"bank": c}, directory: directory, overload: &overload{}, building: &Snapshot{}}
		_, names := b.chain(&unary, Effective{Policy: p}, c.Invoke)
		if len(b.faults) > 0 || !slices.Equal(names, []string{"overload"}) {
			t.Errorf("%v: a call goes through %v; %v", p, names, b.faults)
		}
		// And chaining nothing is the very handler.
		early, late := b.limits(&unary, Effective{Policy: p}, false)
		if got, want := reflect.ValueOf(rpc.Chain(c.Invoke, early, b.authenticate(Effective{Policy: p}), late)).Pointer(), reflect.ValueOf(rpc.Handler(c.Invoke)).Pointer(); got != want {
			t.Errorf("%v: something stands before the cluster", p)
		}
	}
}
