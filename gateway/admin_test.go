package gateway_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/gateway"
	adminv1 "transom/proto/transom/admin/v1"
	configv1 "transom/proto/transom/config/v1"
)

// adminConfig adds an admin listener.
func adminConfig(c *configv1.Config) { c.Admin = &configv1.Admin{Address: "127.0.0.1:0"} }

// ask sends a request to the admin listener.
func ask(t *testing.T, g *gateway.Gateway, verb, path string, header http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), verb, "http://"+g.AdminAddr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if verb == "POST" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
		req.Header.Set("Content-Type", "application/json")
	}
	maps.Copy(req.Header, header)
	if host := header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func TestAdminJSON(t *testing.T) {
	g, addr := start(t, adminConfig)
	if code, _ := get(t, "http://"+addr+"/v1/customers/7/accounts/1"); code != 200 {
		t.Fatal(code)
	}
	for _, tc := range []struct {
		verb, path string
		code       int
		want       []string
	}{
		{"GET", "/livez", 200, []string{"ok"}},
		{"GET", "/readyz", 200, []string{"ok"}},
		{"GET", "/startupz", 200, []string{"ok"}},
		{"GET", "/", 200, []string{"/readyz", "/metrics", "GET   /v1/status", "POST  /v1:drain", "by gRPC"}},
		{"GET", "/nothing", 404, []string{`"code":`}},
		{"GET", "/v1/status", 200, []string{`"ready":true`, addr, `"succeeded":1`, `"lastSucceeded":true`}},
		{"GET", "/v1/config", 200, []string{`"target":"static:///`, `"listeners":[`}},
		{"GET", "/v1/methods?prefix=bank.v1.Accounts.G", 200, []string{`"name":"bank.v1.Accounts.Get"`, `"kind":"unary"`, `"GET /v1/{name=customers/*/accounts/*}"`}},
		{"GET", "/v1/clusters", 200, []string{`"name":"bank"`, `"state":"READY"`, `"address":"127.0.0.1:`, `"calls":"1"`}},
		{"GET", "/v1/schema", 200, []string{`bank/v1/bank.proto`}},
		{"POST", "/v1:reload", 200, []string{`"succeeded":2`}},
		{"POST", "/v1/log:level", 400, []string{"no level"}},
		{"GET", "/v1:drain", 405, []string{"POST"}},
		{"GET", "/debug/pprof/", 404, nil},
		{"GET", "/v1/customers/7/accounts/1", 404, nil},
	} {
		code, body := ask(t, g, tc.verb, tc.path, nil)
		if code != tc.code {
			t.Errorf("%s %s: %d %s, want %d", tc.verb, tc.path, code, body, tc.code)
		}
		for _, w := range tc.want {
			if !strings.Contains(compactJSON(body), w) {
				t.Errorf("%s %s: %.300s lacks %s", tc.verb, tc.path, body, w)
			}
		}
	}
	if code, body := get(t, "http://"+addr+"/v1/status"); code != 404 {
		t.Errorf("the data port serves the admin API: %d %s", code, body)
	}
}

func compactJSON(s string) string {
	var b bytes.Buffer
	if json.Compact(&b, []byte(s)) != nil {
		return s
	}
	return b.String()
}

// TestConfigHash: gateways with one configuration and schema have one hash of each, whatever the order of descriptors; other settings,
// and another schema, have another, and a secret does not show.
func TestConfigHash(t *testing.T) {
	dir := t.TempDir()
	extra := filepath.Join(dir, "extra.proto")
	replace(t, extra, "syntax = \"proto3\";\npackage extra;\nmessage M {}\n")
	first := &configv1.DescriptorSource{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}
	second := &configv1.DescriptorSource{Source: &configv1.DescriptorSource_Proto{Proto: &configv1.DescriptorSource_ProtoFiles{Roots: []string{dir}, Files: []string{"extra.proto"}}}}
	redis := func(password string) *configv1.Redis {
		return &configv1.Redis{Addresses: []string{"127.0.0.1:1"}, Password: password}
	}
	hashes := func(change func(*configv1.Config)) (config, schema string) {
		t.Helper()
		g, _ := start(t, func(c *configv1.Config) {
			adminConfig(c)
			c.Clusters["bank"].Target = "static:///127.0.0.1:1"
			c.Descriptors = []*configv1.DescriptorSource{first, second}
			change(c)
		})
		var s struct{ ConfigHash, SchemaHash string }
		if _, body := ask(t, g, "GET", "/v1/status", nil); json.Unmarshal([]byte(body), &s) != nil || len(s.ConfigHash) != 12 || len(s.SchemaHash) != 12 {
			t.Fatal(body)
		}
		if _, body := ask(t, g, "GET", "/metrics", nil); !strings.Contains(body, fmt.Sprintf("transom_config_hash_info{config_hash=%q,schema_hash=%q} 1\n", s.ConfigHash, s.SchemaHash)) {
			t.Error("the metric has not these hashes")
		}
		return s.ConfigHash, s.SchemaHash
	}
	config, schema := hashes(func(*configv1.Config) {})
	for _, tc := range []struct {
		name                   string
		change                 func(*configv1.Config)
		sameConfig, sameSchema bool
	}{
		{"the same", func(*configv1.Config) {}, true, true},
		{"descriptors in another order", func(c *configv1.Config) { c.Descriptors = []*configv1.DescriptorSource{second, first} }, false, true},
		{"another setting", func(c *configv1.Config) { c.Drain = &configv1.Drain{Timeout: durationpb.New(time.Second)} }, false, true},
		{"another schema", func(c *configv1.Config) { c.Descriptors = c.Descriptors[:1] }, false, false},
	} {
		if c, s := hashes(tc.change); (c == config) != tc.sameConfig || (s == schema) != tc.sameSchema {
			t.Errorf("%s: %s and %s, the first had %s and %s", tc.name, c, s, config, schema)
		}
	}
	one, _ := hashes(func(c *configv1.Config) { c.Redis = redis("a") })
	two, _ := hashes(func(c *configv1.Config) { c.Redis = redis("b") })
	if one != two || one == config {
		t.Errorf("with a secret %s, with another %s", one, two)
	}
}

// TestAdminLimits asks what callers have left of limits.
func TestAdminLimits(t *testing.T) {
	g, addr := start(t, func(c *configv1.Config) {
		adminConfig(c)
		c.Policies = []*configv1.Policy{{Selector: []string{"bank.v1.Accounts.*"}, Limits: []*configv1.Limit{
			{Name: "calls", Kind: &configv1.Limit_Rate{Rate: "100/h"}, Per: []string{"ip"}},
			{Kind: &configv1.Limit_Quota{Quota: "1000/day"}, Plans: map[string]string{"gold": "5000/day"}},
		}}}
		c.Consumers = &configv1.Consumers{Known: map[string]*configv1.Consumer{"shop": {Plan: "gold"}}}
	})
	for range 3 {
		get(t, "http://"+addr+"/v1/customers/7/accounts/1")
	}
	for path, want := range map[string]string{
		"/v1/limits":                      `{"limits":[{"name":"bank.v1.Accounts.*.1","kind":"quota","amount":"1000/day","per":["consumer"],"counted":1},{"name":"calls","kind":"rate","amount":"100/h","burst":"100","per":["ip"],"counted":1}]}`,
		"/v1/limits?consumer=shop":        `"amount":"5000/day","plan":"gold","per":["consumer"],"counted":1,"remaining":"5000","fullIn":"`,
		"/v1/limits?address=127.0.0.1":    `"counted":1,"remaining":"97","fullIn":"`,
		"/v1/limits?address=192.0.2.1":    `"counted":1,"remaining":"100","fullIn":"0s"`,
		"/v1/limits?address=here":         `"code":3`,
		"/v1/limits?method=bank.v1.A.Get": `"code":5`,
	} {
		if _, body := ask(t, g, "GET", path, nil); !strings.Contains(compactJSON(body), want) {
			t.Errorf("%s: %s, want %s", path, compactJSON(body), want)
		}
	}
}

// TestAdminMetrics scrapes with Prometheus's own parser.
func TestAdminMetrics(t *testing.T) {
	g, addr := start(t, adminConfig)
	for _, path := range []string{"/v1/customers/7/accounts/1", "/v1/customers/7/accounts/2", "/nothing"} {
		get(t, "http://"+addr+path)
	}
	code, body := ask(t, g, "GET", "/metrics", nil)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if code != 200 || err != nil {
		t.Fatal(code, err)
	}
	for name, want := range map[string]int{
		"rpc_server_call_duration_seconds": 3, "http_server_request_duration_seconds": 3, "transom_calls_total": 3, "rpc_client_call_duration_seconds": 2,
		"transom_build_info": 1, "transom_config_last_reload_successful": 1, "transom_connections": 2, "transom_websocket_connections": 1,
		"transom_cluster_endpoints": 1, "transom_cluster_endpoint_healthy": 1, "go_goroutines": 1, "process_cpu_seconds_total": 1,
	} {
		if got := len(families[name].GetMetric()); got != want {
			t.Errorf("%s has %d series, want %d", name, got, want)
		}
	}
	if v := families["transom_ready"].GetMetric()[0].GetGauge().GetValue(); v != 1 {
		t.Errorf("transom_ready is %v", v)
	}
}

// TestAdminStrangers: a web page may reach the listener by a name of its own, or across origins; neither gets an answer.
func TestAdminStrangers(t *testing.T) {
	g, _ := start(t, adminConfig)
	for name, tc := range map[string]struct {
		verb, path string
		header     http.Header
		want       int
	}{
		"rebound name":        {"GET", "/v1/config", http.Header{"Host": {"evil.example"}}, 421},
		"rebound with port":   {"GET", "/metrics", http.Header{"Host": {"evil.example:9901"}}, 421},
		"foreign origin":      {"POST", "/v1:drain", http.Header{"Origin": {"https://evil.example"}}, 403},
		"null origin":         {"POST", "/v1:drain", http.Header{"Origin": {"null"}}, 403},
		"cross-site":          {"POST", "/v1:drain", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		"cross-site get":      {"GET", "/v1/config", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		"text form":           {"POST", "/v1:reload", http.Header{"Content-Type": {"text/plain"}}, 415},
		"by name":             {"GET", "/v1/status", http.Header{"Host": {"localhost:1"}}, 200},
		"by IPv6":             {"GET", "/v1/status", http.Header{"Host": {"[::1]:1"}}, 200},
		"by another address":  {"GET", "/metrics", http.Header{"Host": {"10.1.2.3:9901"}}, 200},
		"same origin":         {"GET", "/v1/status", http.Header{"Sec-Fetch-Site": {"same-origin"}}, 200},
		"typed into the line": {"GET", "/v1/status", http.Header{"Sec-Fetch-Site": {"none"}}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			if code, body := ask(t, g, tc.verb, tc.path, tc.header); code != tc.want {
				t.Errorf("%d %s, want %d", code, body, tc.want)
			}
		})
	}
	if !g.Ready() {
		t.Error("a stranger drained the gateway")
	}
}

// TestAdminToken: without loopback there must be a token, and with one only probes answer without it.
func TestAdminToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g, _ := start(t, func(c *configv1.Config) {
		c.Admin = &configv1.Admin{Address: "0.0.0.0:0", TokenFile: file, Hosts: []string{"edge.internal"}}
	})
	_, port, _ := net.SplitHostPort(g.AdminAddr().String())
	for name, tc := range map[string]struct {
		path  string
		token string
		want  int
	}{
		"probe": {"/readyz", "", 200}, "none": {"/v1/status", "", 401}, "wrong": {"/metrics", "Bearer s3cre", 401}, "right": {"/v1/status", "Bearer s3cret", 200},
	} {
		t.Run(name, func(t *testing.T) {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://127.0.0.1:"+port+tc.path, nil)
			req.Header.Set("Authorization", tc.token)
			req.Host = "edge.internal"
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != tc.want {
				t.Errorf("%d, want %d", resp.StatusCode, tc.want)
			}
		})
	}
	for address, want := range map[string]string{"0.0.0.0:0": "not a loopback", "10.0.0.1:1": "not a loopback", "nonsense": "host:port", "unix:" + file: "in use"} {
		cfg := &configv1.Config{
			Listeners: []*configv1.Listener{{Address: "127.0.0.1:0"}}, Clusters: map[string]*configv1.Cluster{"a": {Target: "static:///127.0.0.1:1"}},
			UnknownMethods: &configv1.UnknownMethods{Cluster: "a"}, Admin: &configv1.Admin{Address: address},
		}
		if _, err := gateway.New(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "admin.address") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// TestAdminGRPC uses the API over a unix socket, changes the log's level and drains.
func TestAdminGRPC(t *testing.T) {
	backend, set := startBank(t), descriptorSet(t)
	dir, err := os.MkdirTemp("", "transom") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	path := filepath.Join(t.TempDir(), "transom.yaml")
	config := fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\"}]\ndescriptors: [{file: %s}]\nclusters: {bank: {target: \"static:///%s\"}}\nadmin: {address: \"unix:%s\", pprof: true}\nreload: {no_watch: true}\n", set, backend, socket)
	replace(t, path, config)
	g, _ := serveFile(t, path)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := adminv1.NewAdminClient(conn)
	s, err := c.GetStatus(t.Context(), &adminv1.GetStatusRequest{})
	if err != nil || !s.GetReady() || s.GetMethods() == 0 {
		t.Fatal(s, err)
	}
	replace(t, path, config+"nonsense: 1\n")
	if _, err := c.Reload(t.Context(), &adminv1.ReloadRequest{}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(status.Convert(err).Message(), "transom.yaml:6:1") {
		t.Errorf("reload of a broken file: %v", err)
	}
	replace(t, path, config+"json: {emit_defaults: true}\n")
	if s, err = c.Reload(t.Context(), &adminv1.ReloadRequest{}); err != nil || s.GetReloads().GetSucceeded() != 2 || s.GetReloads().GetFailed() != 1 {
		t.Errorf("%v, %v", s.GetReloads(), err)
	}
	cfg, err := c.GetConfig(t.Context(), &adminv1.GetConfigRequest{})
	if err != nil || !cfg.GetJson().GetEmitDefaults() {
		t.Errorf("%v, %v", cfg, err)
	}
	if _, err := c.Drain(t.Context(), &adminv1.DrainRequest{}); err != nil {
		t.Error(err)
	}
	_ = g
}
