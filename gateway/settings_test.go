package gateway_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

// TestHTTPSettings: what the configuration says of JSON, queries, routes and depth is what requests meet.
func TestHTTPSettings(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(rules, []byte("type: google.api.Service\nconfig_version: 3\nhttp:\n  rules:\n  - {selector: bank.v1.Accounts.Get, get: \"/v9/{name=customers/*/accounts/*}\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const get, none, call = "/v1/customers/1/accounts/1", "/v1/customers/1/accounts/2", "/bank.v1.Accounts/Get"
	const name = `{"name":"customers/1/accounts/1"`
	json := func(j *configv1.Json) func(*configv1.Config) {
		return func(c *configv1.Config) { c.Json = j }
	}
	for _, tc := range []struct {
		what       string
		edit       func(*configv1.Config)
		path, body string // a GET, or a POST of body
		// before and after are the status and a part of the body without the setting, and with it.
		before, after string
	}{
		{"emit_defaults", json(&configv1.Json{EmitDefaults: true}), get, "", `200 {"name":"customers/1/accounts/1"}`, `"displayName":""`},
		{"proto_names", json(&configv1.Json{EmitDefaults: true, ProtoNames: true}), get, "", "200", `"display_name":""`},
		{"enum_numbers", json(&configv1.Json{EmitDefaults: true, EnumNumbers: true}), get, "", "200", `"kind":0`},
		{"int64_numbers", json(&configv1.Json{EmitDefaults: true, Int64Numbers: true}), get, "", "200", `"number":0`},
		{"ignore_unknown_fields", json(&configv1.Json{IgnoreUnknownFields: true}), call, name + `,"x":1}`, "400", "200"},
		{"ignore_unknown_query", json(&configv1.Json{IgnoreUnknownQuery: true}), get + "?x=1", "", "400", "200"},
		{"ignore_query", json(&configv1.Json{IgnoreQuery: []string{"x"}}), get + "?x=1", "", "400", "200"},
		{"ignore_query, another", json(&configv1.Json{IgnoreQuery: []string{"x"}}), get + "?y=1", "", "400", "400"},
		{"aip193_errors", json(&configv1.Json{Aip193Errors: true}), none, "", `404 {"code":5,`, `404 {"error":{"code":404,`},
		{"ignore_trailing_slash", func(c *configv1.Config) { c.HttpRules = &configv1.HttpRules{IgnoreTrailingSlash: true} }, get + "/", "", "404", "200"},
		{"service_config", func(c *configv1.Config) { c.HttpRules = &configv1.HttpRules{ServiceConfig: rules} }, "/v9/customers/1/accounts/1", "", "404", "200"},
		{"depth", func(c *configv1.Config) {
			c.Json, c.Limits = &configv1.Json{IgnoreUnknownFields: true}, &configv1.Limits{Depth: 5}
		}, call, name + `,"x":[[[[[[[]]]]]]]}`, "400", "400"},
		{"depth that will do", func(c *configv1.Config) {
			c.Json, c.Limits = &configv1.Json{IgnoreUnknownFields: true}, &configv1.Limits{Depth: 20}
		}, call, name + `,"x":[[[[[[[]]]]]]]}`, "400", "200"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			for i, edit := range []func(*configv1.Config){nil, tc.edit} {
				_, addr := start(t, edit)
				verb := http.MethodGet
				if tc.body != "" {
					verb = http.MethodPost
				}
				r, err := http.NewRequestWithContext(t.Context(), verb, "http://"+addr+tc.path, strings.NewReader(tc.body))
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Content-Type", "application/json")
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				if got, want := resp.Status[:3]+" "+string(body), [...]string{tc.before, tc.after}[i]; !strings.Contains(got, want) {
					t.Errorf("with the setting: %v: %s, want %s", i == 1, got, want)
				}
			}
		})
	}
	cfg := &configv1.Config{
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}},
		Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///127.0.0.1:1"}},
		HttpRules:   &configv1.HttpRules{ServiceConfig: rules + ".none"},
	}
	if err := gateway.Check(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.HasPrefix(err.Error(), "http_rules.service_config: open ") {
		t.Errorf("a service config that is not there: %v", err)
	}
}

// TestWebSocketMessageBytes: messages of a WebSocket are held to the listener's bound.
func TestWebSocketMessageBytes(t *testing.T) {
	_, addr := start(t, func(c *configv1.Config) { c.Limits = &configv1.Limits{WebsocketMessageBytes: 1000} })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for n, want := range map[int]websocket.StatusCode{900: websocket.StatusNormalClosure, 1100: websocket.StatusMessageTooBig} {
		c, _, err := websocket.Dial(ctx, "ws://"+addr+"/bank.v1.Accounts/Get", nil)
		if err != nil {
			t.Fatal(err)
		}
		text := `{"name":"customers/1/accounts/1"`
		if err := c.Write(ctx, websocket.MessageText, []byte(text+strings.Repeat(" ", n-len(text)-1)+"}")); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, _, err = c.Read(ctx)
		}
		if got := websocket.CloseStatus(err); got != want {
			t.Errorf("a message of %d bytes: %v, want close %d", n, err, want)
		}
		c.CloseNow()
	}
}
