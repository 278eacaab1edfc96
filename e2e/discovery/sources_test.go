package discovery

import (
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

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
	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"transom/e2e/process"
)

// file is an endpoint file.
type file struct {
	path string
	port int
}

func newFile(t *testing.T, port int) source {
	return &file{filepath.Join(t.TempDir(), "endpoints.yaml"), port}
}

func (f *file) list(t *testing.T, hosts ...string) {
	var b strings.Builder
	b.WriteString("endpoints:\n")
	for _, h := range hosts {
		fmt.Fprintf(&b, "- address: \"%s:%d\"\n", h, f.port)
	}
	process.Replace(t, f.path, []byte(b.String()))
}

func (f *file) cluster() string   { return fmt.Sprintf(`{target: "file://%s"}`, f.path) }
func (f *file) environ() []string { return nil }

// nameServer is a DNS server for one name.
type nameServer struct {
	addr  string
	port  int
	mu    sync.Mutex
	addrs []netip.Addr
}

func newNameServer(t *testing.T, port int) source {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{addr: pc.LocalAddr().String(), port: port}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			size, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if b := n.answer(buf[:size]); b != nil {
				_, _ = pc.WriteTo(b, from)
			}
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return n
}

func (n *nameServer) list(_ *testing.T, hosts ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs = nil
	for _, h := range hosts {
		n.addrs = append(n.addrs, netip.MustParseAddr(h))
	}
}

func (n *nameServer) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.addrs {
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: a.As4()},
			})
		}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func (n *nameServer) cluster() string {
	return fmt.Sprintf(`{target: "dns://%s/bank.example.:%d", dns_refresh: 1s}`, n.addr, n.port)
}
func (n *nameServer) environ() []string { return nil }

// apiServer is what a Kubernetes API server shows of one service: a list of one EndpointSlice, and a watch of it.
type apiServer struct {
	web       *httptest.Server
	port      int
	token, ca string // files

	mu      sync.Mutex
	version int
	slice   string
	changed chan struct{} // closed and replaced as slice changes
}

func newAPIServer(t *testing.T, port int) source {
	dir := t.TempDir()
	s := &apiServer{port: port, token: filepath.Join(dir, "token"), ca: filepath.Join(dir, "ca.crt"), changed: make(chan struct{}), version: 100}
	s.web = httptest.NewTLSServer(s)
	t.Cleanup(func() {
		s.web.CloseClientConnections()
		s.web.Close()
	})
	process.Replace(t, s.token, []byte("t1\n"))
	process.Replace(t, s.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.web.Certificate().Raw}))
	return s
}

func (s *apiServer) list(_ *testing.T, hosts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	var pods []string
	for _, h := range hosts {
		pods = append(pods, fmt.Sprintf(`{"addresses":[%q],"conditions":{"ready":true}}`, h))
	}
	s.slice = fmt.Sprintf(`{"metadata":{"name":"bank-1","resourceVersion":"%d","labels":{"kubernetes.io/service-name":"bank"}},
		"addressType":"IPv4","ports":[{"name":"grpc","port":%d,"protocol":"TCP"}],"endpoints":[%s]}`, s.version, s.port, strings.Join(pods, ","))
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.Header.Get("Authorization") != "Bearer t1" || r.URL.Path != "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices" ||
		q.Get("labelSelector") != "kubernetes.io/service-name=bank" {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if q.Get("watch") == "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintf(w, `{"kind":"EndpointSliceList","metadata":{"resourceVersion":"%d"},"items":[%s]}`, s.version, s.slice)
		return
	}
	seen, err := strconv.Atoi(q.Get("resourceVersion"))
	if err != nil {
		http.Error(w, "no version", http.StatusBadRequest)
		return
	}
	for {
		s.mu.Lock()
		changed := s.changed
		if s.version > seen {
			fmt.Fprintf(w, `{"type":"MODIFIED","object":%s}`+"\n", s.slice)
			seen = s.version
		}
		s.mu.Unlock()
		w.(http.Flusher).Flush() // net/http's are
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *apiServer) cluster() string {
	return fmt.Sprintf(`{target: "kubernetes:///bank.default:grpc", kubernetes: {server: %q, token_file: %q, ca: %q}}`, s.web.URL, s.token, s.ca)
}
func (s *apiServer) environ() []string { return nil }

// controlPlane is an xDS control plane, go-control-plane's.
type controlPlane struct {
	addr      string
	port      uint32
	version   int
	snapshots cache.SnapshotCache
}

func newControlPlane(t *testing.T, port int) source {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &controlPlane{addr: l.Addr().String(), port: uint32(port), snapshots: cache.NewSnapshotCache(true, cache.IDHash{}, nil)}
	srv := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, controlplane.NewServer(t.Context(), c.snapshots, nil))
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return c
}

func (c *controlPlane) list(t *testing.T, hosts ...string) {
	t.Helper()
	packed := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}, ResourceApiVersion: corev3.ApiVersion_V3}
	var endpoints []*endpointv3.LbEndpoint
	for _, h := range hosts {
		endpoints = append(endpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: h, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: c.port},
			}}},
		}}})
	}
	c.version++
	s, err := cache.NewSnapshot(strconv.Itoa(c.version), map[resource.Type][]types.Resource{
		resource.ListenerType: {&listenerv3.Listener{Name: "bank", ApiListener: &listenerv3.ApiListener{ApiListener: packed(&hcmv3.HttpConnectionManager{
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads, RouteConfigName: "routes"}},
			HttpFilters:    []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&routerv3.Router{})}}},
		})}}},
		resource.RouteType: {&routev3.RouteConfiguration{Name: "routes", VirtualHosts: []*routev3.VirtualHost{{
			Name: "bank", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{}},
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
	if err == nil {
		err = c.snapshots.SetSnapshot(t.Context(), "transom", s)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (c *controlPlane) cluster() string { return `{target: "xds:///bank"}` }

func (c *controlPlane) environ() []string {
	return []string{fmt.Sprintf(`GRPC_XDS_BOOTSTRAP_CONFIG={"xds_servers": [{"server_uri": %q,
		"channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}], "node": {"id": "transom"}}`, c.addr)}
}
