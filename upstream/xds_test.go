package upstream_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	controlplane "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"transom/upstream"
)

// xdsChild is set in the environment of the process that plays transom in TestXDSTarget: grpc-go reads its bootstrap from
// the environment when the process starts.
const xdsChild = "TRANSOM_TEST_XDS_CHILD"

func anyOf(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// xdsSnapshot is the configuration of one service whose endpoints are addrs.
func xdsSnapshot(t *testing.T, version int, addrs ...string) *cache.Snapshot {
	t.Helper()
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}, ResourceApiVersion: corev3.ApiVersion_V3}
	var endpoints []*endpointv3.LbEndpoint
	for _, a := range addrs {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		endpoints = append(endpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n)},
			}}},
		}}})
	}
	s, err := cache.NewSnapshot(strconv.Itoa(version), map[resource.Type][]types.Resource{
		resource.ListenerType: {&listenerv3.Listener{Name: "bank", ApiListener: &listenerv3.ApiListener{ApiListener: anyOf(t, &hcmv3.HttpConnectionManager{
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads, RouteConfigName: "routes"}},
			HttpFilters:    []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(t, &routerv3.Router{})}}},
		})}}},
		resource.RouteType: {&routev3.RouteConfiguration{Name: "routes", VirtualHosts: []*routev3.VirtualHost{{
			Name: "bank", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "pods"}}},
			}},
		}}}},
		resource.ClusterType: {&clusterv3.Cluster{
			Name: "pods", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads},
		}},
		resource.EndpointType: {&endpointv3.ClusterLoadAssignment{ClusterName: "pods", Endpoints: []*endpointv3.LocalityLbEndpoints{{
			Locality: &corev3.Locality{Zone: "z"}, LoadBalancingWeight: wrapperspb.UInt32(1), LbEndpoints: endpoints,
		}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestXDSTarget(t *testing.T) {
	if os.Getenv(xdsChild) != "" {
		return
	}
	a, b := nameBackend(t, "A"), nameBackend(t, "B")
	snapshots := cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	if err := snapshots.SetSnapshot(t.Context(), "transom", xdsSnapshot(t, 1, a)); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	srv := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, controlplane.NewServer(ctx, snapshots, nil))
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	defer func() { srv.Stop(); wg.Wait() }()

	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestXDSChild$", "-test.timeout=60s")
	child.Env = append(os.Environ(), xdsChild+"=1", fmt.Sprintf(`GRPC_XDS_BOOTSTRAP_CONFIG={"xds_servers": [{"server_uri": %q,
		"channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}], "node": {"id": "transom"}}`, ln.Addr()))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stop, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	// until reads the child's calls until n in a row went to want's backends and each had one.
	until := func(want string) {
		seen := map[string]bool{}
		for row := 0; row < 20 || len(seen) < len(want); row++ {
			if !lines.Scan() {
				t.Fatalf("the child has ended while waiting for %s: %v", want, lines.Err())
			}
			got := lines.Text()
			if len(got) != 1 {
				t.Fatalf("the child says %q", got)
			}
			if !strings.Contains(want, got) {
				row, seen = -1, map[string]bool{}
				continue
			}
			seen[got] = true
		}
	}
	until("A")
	for i, step := range []struct {
		addrs []string
		want  string
	}{{[]string{a, b}, "AB"}, {[]string{b}, "B"}, {[]string{a, b}, "AB"}} {
		if err := snapshots.SetSnapshot(t.Context(), "transom", xdsSnapshot(t, i+2, step.addrs...)); err != nil {
			t.Fatal(err)
		}
		until(step.want)
	}
	if err := stop.Close(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := child.Wait(); err != nil {
		t.Errorf("the child: %v", err)
	}
}

// TestXDSChild is the other process of TestXDSTarget: it calls until its input ends, and prints who answered.
func TestXDSChild(t *testing.T) {
	if os.Getenv(xdsChild) == "" {
		if err := (upstream.Config{Name: "a", Target: "xds:///"}).Validate(); err == nil || !strings.Contains(err.Error(), "names no service") {
			t.Errorf("no service: %v", err)
		}
		return
	}
	c, err := upstream.New(upstream.Config{Name: "bank", Target: "xds:///bank"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
	}()
	for running := true; running; {
		got, call, err := exchange(t, c, unary, nil, "m")
		if err != nil || len(got) != 1 || call.Info().Endpoint == "" {
			fmt.Printf("%v %v %v\n", got, err, call.Wait())
			break
		}
		fmt.Println(got[0])
		select {
		case <-ended:
			running = false
		default:
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestXDSWithoutBootstrap: an xds target for which no control plane is known is logged.
func TestXDSWithoutBootstrap(t *testing.T) {
	t.Setenv("GRPC_XDS_BOOTSTRAP", "")
	t.Setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "")
	var said syncBuffer
	c, err := upstream.New(upstream.Config{Name: "bank", Target: "xds:///bank"}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(t.Context())) }()
	if log := said.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "GRPC_XDS_BOOTSTRAP") {
		t.Errorf("the log says %q", log)
	}
}
