package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/gateway"
	bankv1 "transom/proto/bank/v1"
	configv1 "transom/proto/transom/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// accounts is a bank of two accounts.
type accounts struct {
	bankv1.UnimplementedAccountsServer
}

func (accounts) Get(_ context.Context, r *bankv1.GetAccountRequest) (*bankv1.Account, error) {
	if !strings.HasSuffix(r.GetName(), "1") {
		return nil, status.Errorf(codes.NotFound, "no account %q", r.GetName())
	}
	return &bankv1.Account{Name: r.GetName()}, nil
}

// descriptorSet writes the bank's descriptors, imports included, to a file.
func descriptorSet(t *testing.T) string {
	t.Helper()
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i))
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(fd))
	}
	add(bankv1.File_bank_v1_bank_proto)
	b, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bank.binpb")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs a backend and a gateway in front of it, and returns the gateway's address.
func start(t *testing.T, edit func(*configv1.Config)) (*gateway.Gateway, string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	bankv1.RegisterAccountsServer(srv, accounts{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })
	cfg := &configv1.Config{
		Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0"}},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}},
		Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///" + lis.Addr().String(), Lb: &configv1.LoadBalancing{Policy: "round_robin"}}},
	}
	if edit != nil {
		edit(cfg)
	}
	g, err := gateway.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		stop()
		srv.Stop()
		wg.Wait()
	})
	return g, g.Addrs()[0].String()
}

func TestRESTUnary(t *testing.T) {
	_, addr := start(t, nil)
	for _, tc := range []struct {
		verb, path string
		code       int
		want       string
	}{
		{"GET", "/v1/customers/7/accounts/1", 200, `{"name":"customers/7/accounts/1"}`},
		{"GET", "/v1/customers/7/accounts/2", 404, `{"code":5,"message":"no account \"customers/7/accounts/2\"","details":[]}`},
		{"GET", "/nowhere", 404, `{"code":5,"message":"no route for this path","details":[]}`},
		{"POST", "/v1/customers/7/accounts/1", 405, ``},
		{"GET", "/healthz", 200, "ok\n"},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), tc.verb, "http://"+addr+tc.path, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.code || tc.want != "" && !sameJSON(string(body), tc.want) {
			t.Errorf("%s %s: %d %s, want %d %s", tc.verb, tc.path, resp.StatusCode, body, tc.code, tc.want)
		}
	}
}

// sameJSON compares texts, white space inside JSON aside.
func sameJSON(a, b string) bool {
	var ca, cb bytes.Buffer
	if json.Compact(&ca, []byte(a)) != nil || json.Compact(&cb, []byte(b)) != nil {
		return a == b
	}
	return ca.String() == cb.String()
}

func TestNativeGRPC(t *testing.T) {
	_, addr := start(t, nil)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := bankv1.NewAccountsClient(conn)
	acc, err := client.Get(t.Context(), &bankv1.GetAccountRequest{Name: "customers/7/accounts/1"})
	if err != nil || acc.GetName() != "customers/7/accounts/1" {
		t.Errorf("Get = %v, %v", acc, err)
	}
	_, err = client.Get(t.Context(), &bankv1.GetAccountRequest{Name: "x"})
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != `no account "x"` {
		t.Errorf("Get of an unknown account: %v", err)
	}
}

func TestBareWebSocket(t *testing.T) {
	_, addr := start(t, nil)
	c, _, err := websocket.Dial(t.Context(), "ws://"+addr+"/v1/customers/7/accounts/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	typ, b, err := c.Read(t.Context())
	if err != nil || typ != websocket.MessageText || !sameJSON(string(b), `{"name":"customers/7/accounts/1"}`) {
		t.Errorf("answer %v %s, %v", typ, b, err)
	}
	if _, _, err = c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("the call ends with %v, want close 1000", err)
	}
	c, _, err = websocket.Dial(t.Context(), "ws://"+addr+bankv1.Accounts_Get_FullMethodName, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(t.Context(), websocket.MessageText, []byte(`{"name":"nobody"}`)); err != nil {
		t.Fatal(err)
	}
	_, _, err = c.Read(t.Context())
	if websocket.CloseStatus(err) != 4005 {
		t.Errorf("the call ends with %v, want close 4005", err)
	}
}

func TestCORSFromConfig(t *testing.T) {
	_, addr := start(t, func(cfg *configv1.Config) {
		cfg.Listeners[0].Cors = &configv1.Cors{AllowOrigins: []string{"https://app.example"}, ExposeHeaders: []string{"X-Quota"}}
	})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+"/v1/customers/7/accounts/1", nil)
	req.Header.Set("Origin", "https://app.example")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "https://app.example" {
		t.Errorf("allowed origin %q", got)
	}
	bad := &configv1.Config{
		Listeners: []*configv1.Listener{{Address: "127.0.0.1:0", Cors: &configv1.Cors{AllowOrigins: []string{"app.example", "https://app.example/x"}}}},
		Clusters:  map[string]*configv1.Cluster{"bank": {Target: "static:///127.0.0.1:1"}},
	}
	_, err = gateway.New(t.Context(), bad, slog.New(slog.DiscardHandler))
	if err == nil || strings.Count(err.Error(), "listeners[0].cors") != 2 {
		t.Errorf("New with two bad origins: %v", err)
	}
}

// Faults of a cluster are where they are in the configuration, each for itself.
func TestClusterFaults(t *testing.T) {
	err := gateway.Check(t.Context(), &configv1.Config{
		Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0"}},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}},
		Clusters: map[string]*configv1.Cluster{
			"a": {Target: "127.0.0.1", Lb: &configv1.LoadBalancing{Policy: "fastest"}, ServiceConfig: `{"methodConfig": [{}]}`},
			"b": {Target: "127.0.0.1:1", Lb: &configv1.LoadBalancing{Policy: `[{"adaptive": {"subset": -1, "probes": 11}}]`}},
			"c": {Target: "127.0.0.1:1", Tls: &configv1.UpstreamTLS{Ca: "/none"}},
		},
	}, slog.New(slog.DiscardHandler))
	for _, want := range []string{
		`clusters[a].target: "127.0.0.1" must be host:port`,
		`clusters[a].lb.policy: there is no "fastest"; there are adaptive, round_robin,`,
		`clusters[a].service_config: methodConfig[0].name: must not be empty`,
		`clusters[b].lb.policy: adaptive: subset: must be at least 0, is -1`,
		`clusters[b].lb.policy: adaptive: probes: must be from 0 to 10, is 11`,
		`clusters[c].tls: certificate authorities: open /none`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The field that a cluster hashes by must be in the request of some method.
func TestHashOnField(t *testing.T) {
	for field, want := range map[string]string{
		"field:amount.currency": "",
		"field:amount":          `clusters\[bank\].lb.hash_on: .*field "amount"`, // a message
		"field:amont.currency":  `clusters\[bank\].lb.hash_on: .*field "amont.currency"`,
		"field:amount..x":       `is not the name of a field`,
	} {
		err := gateway.Check(t.Context(), &configv1.Config{
			Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0"}},
			Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}},
			Clusters: map[string]*configv1.Cluster{"bank": {
				Target: "static:///127.0.0.1:1", Lb: &configv1.LoadBalancing{Policy: "ring_hash", HashOn: field},
			}},
		}, slog.New(slog.DiscardHandler))
		if want == "" && err != nil || want != "" && (err == nil || !regexp.MustCompile(want).MatchString(err.Error())) {
			t.Errorf("%s: %v, want %q", field, err, want)
		}
	}
}

// noNames is a DNS server that knows no name. again is closed when the name is looked up for the second time, which is after the first
// time came to nothing.
func noNames(t *testing.T) (addr string, again <-chan struct{}) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		var b [512]byte
		for queries := 1; ; queries++ {
			n, from, err := conn.ReadFrom(b[:])
			if err != nil {
				return
			}
			if queries == 3 { // a look-up asks for both kinds of address
				close(second)
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) == nil {
				m.Response, m.RCode, m.Additionals = true, dnsmessage.RCodeNameError, nil
				if answer, err := m.Pack(); err == nil {
					_, _ = conn.WriteTo(answer, from)
				}
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	return conn.LocalAddr().String(), second
}

// TestCheckNames: a name that cannot be resolved here is no fault, and nothing that looks like one is written either. The check takes until
// the name has been looked up in vain, since another cluster's servers, which are asked for descriptors, answer only then.
func TestCheckNames(t *testing.T) {
	dns, again := noNames(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.StreamInterceptor(func(s any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		select {
		case <-again:
		case <-ss.Context().Done():
		}
		return h(s, ss)
	}))
	bankv1.RegisterAccountsServer(srv, accounts{})
	reflection.Register(srv)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })
	defer wg.Wait()
	defer srv.Stop()
	var log bytes.Buffer
	err = gateway.Check(t.Context(), &configv1.Config{
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_Reflection_{Reflection: &configv1.DescriptorSource_Reflection{Cluster: "asked"}}}},
		Clusters: map[string]*configv1.Cluster{
			"asked":   {Target: "static:///" + lis.Addr().String(), NoHealthCheck: true},
			"nowhere": {Target: "dns://" + dns + "/nowhere.invalid.:1"},
		},
		Policies: []*configv1.Policy{{Selector: []string{"*"}, Cluster: "nowhere"}},
	}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil || log.Len() > 0 {
		t.Errorf("%v; written: %s", err, log.String())
	}
	select {
	case <-again:
	default:
		t.Error("the check was over before the name was looked up in vain")
	}
}

// TestCheckTargets checks configurations by what their targets name. An endpoint file that is not there may come later, as serve takes it,
// but not one whose directory is not there.
func TestCheckTargets(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"good": `endpoints: [{address: "127.0.0.1:1"}]`, "bad": `endpoints: [{adress: "127.0.0.1:1"}]`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for target, want := range map[string]string{
		"file://" + dir + "/good":    "",
		"file://" + dir + "/bad":     "clusters[bank].target: endpoint file " + dir + "/bad: line 1: an endpoint has address, ",
		"file://" + dir + "/none":    "",
		"file://" + dir + "/no/file": "clusters[bank]: cluster \"bank\": endpoint file: stat " + dir + "/no: ",
	} {
		var log bytes.Buffer
		err := gateway.Check(t.Context(), &configv1.Config{
			Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}},
			Clusters:    map[string]*configv1.Cluster{"bank": {Target: target}},
		}, slog.New(slog.NewTextHandler(&log, nil)))
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", target, err, want)
		}
		if missing := strings.Contains(target, "/no"); missing != strings.Contains(log.String(), "level=WARN msg=\"an endpoint file is not there yet") || !missing && log.Len() > 0 {
			t.Errorf("%s: %s", target, log.String())
		}
	}
}

// TestNothingToCall has a configuration without descriptors refused: it answered every request with 404.
func TestNothingToCall(t *testing.T) {
	cfg := &configv1.Config{Clusters: map[string]*configv1.Cluster{"bank": {Target: "static:///127.0.0.1:1"}}}
	log := slog.New(slog.DiscardHandler)
	if err := gateway.Check(t.Context(), cfg, log); err == nil || !strings.HasPrefix(err.Error(), "descriptors: no descriptors say what can be called: give a file, ") {
		t.Errorf("%v", err)
	}
	cfg.UnknownMethods = &configv1.UnknownMethods{Cluster: "bank"}
	if err := gateway.Check(t.Context(), cfg, log); err != nil {
		t.Errorf("with unknown_methods: %v", err)
	}
}

// TestFaultsAtOnce has faults in parts of the configuration that depend on one another: all are told of, and none that follows
// only from another.
func TestFaultsAtOnce(t *testing.T) {
	cfg := &configv1.Config{
		Listeners: []*configv1.Listener{
			{Address: "127.0.0.1:0", Tls: &configv1.TLS{Certificate: "missing.crt", Key: "missing.key"}},
		},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}},
		Clusters: map[string]*configv1.Cluster{
			"bad":  {Target: "nowhere"},
			"good": {Target: "static:///127.0.0.1:1"},
		},
		Consumers: &configv1.Consumers{Providers: map[string]*configv1.Provider{
			"asked": {Kind: &configv1.Provider_External{External: &configv1.External{Cluster: "bad"}}},
		}},
		Policies: []*configv1.Policy{
			{Selector: []string{"*"}, Cluster: "good", Mirror: &configv1.Mirror{Cluster: "bad"}},
			{Selector: []string{"bank.v1.Accounts.*"}, Cluster: "bad", Auth: &configv1.Auth{Require: []string{"asked"}}},
			{Selector: []string{"bank.v1.Accounts.Gett"}, Timeout: durationpb.New(time.Second)},
			{Selector: []string{"bank.v1.Accounts.List"}, Cluster: "neither"},
		},
	}
	err := gateway.Check(t.Context(), cfg, slog.New(slog.DiscardHandler))
	var got []string
	for line := range strings.Lines(fmt.Sprint(err)) {
		path, text, _ := strings.Cut(strings.TrimSpace(line), ": ")
		got = append(got, path+": "+text[:min(len(text), 24)])
	}
	want := []string{
		"listeners[0].tls: certificate missing.crt:",
		`clusters[bad].target: "nowhere" must be host:p`,
		`policies[2].selector: selector "bank.v1.Accoun`,
		`policies[3].cluster: there is no cluster "nei`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q; all of it:\n%v", got, want, err)
	}
}
