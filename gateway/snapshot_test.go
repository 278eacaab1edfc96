package gateway

import (
	"log/slog"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
)

// TestSnapshotAfterEnd asks for the Snapshot when everything is closed, as SIGUSR1 may: it turned without end.
func TestSnapshotAfterEnd(t *testing.T) {
	g, err := New(t.Context(), &configv1.Config{
		Clusters:       map[string]*configv1.Cluster{"a": {Target: "static:///127.0.0.1:1"}},
		UnknownMethods: &configv1.UnknownMethods{Cluster: "a"},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	g.Snapshot(func(*Snapshot) { ran++ })
	before := g.current.Acquire()
	g.Drain()
	if err := g.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	before.Release()
	g.Snapshot(func(*Snapshot) { ran++ })
	g.ReopenLogs(t.Context())
	if ran != 1 {
		t.Errorf("the function ran %d times, want once", ran)
	}
	v := g.current.Acquire()
	if _, ok := v.Method("/grpc.health.v1.Health/Check"); !ok {
		t.Error("a request that comes too late gets a Snapshot with nothing in it")
	}
	v.Release()
	if refs := g.current.p.Load().refs.Load(); refs != 0 {
		t.Errorf("%d references are left", refs)
	}
}

// Who asks for the health of a service that there is not is at fault, and not the gateway.
func TestHealthOfUnknownService(t *testing.T) {
	schema, err := descriptors.Compile([]*descriptors.Set{builtinSet()}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, _ := schema.Method(healthpb.Health_Check_FullMethodName)
	for _, tc := range []struct {
		request []byte
		code    codes.Code
	}{
		{[]byte("\x0a\x04nope"), codes.NotFound},
		{[]byte("\xff"), codes.InvalidArgument},
	} {
		res, err := rpc.Local(t.Context(), builtinHandlers(schema, health.NewServer())[m.FullPath], m, nil, rpc.NewMessage(tc.request))
		if status.Code(err) != tc.code || res.Info.ErrorSource != rpc.SourceClient {
			t.Errorf("%q: %v, the fault of %v, want %v and the client", tc.request, err, res.Info.ErrorSource, tc.code)
		}
	}
}

// TestAwaiting: as long as a server that is asked for its descriptors has not answered, it may have what is not found.
func TestAwaiting(t *testing.T) {
	cfg := &configv1.Config{
		Clusters:       map[string]*configv1.Cluster{"a": {Target: "static:///127.0.0.1:1"}},
		UnknownMethods: &configv1.UnknownMethods{Cluster: "a"},
	}
	for _, want := range []bool{false, true} {
		if want {
			cfg.Descriptors = []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_Reflection_{Reflection: &configv1.DescriptorSource_Reflection{Cluster: "a"}}}}
		}
		g, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		v := g.current.Acquire()
		if got := v.Awaiting(); got != want {
			t.Errorf("Awaiting is %v, want %v", got, want)
		}
		v.Release()
		g.Drain()
		if err := g.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
