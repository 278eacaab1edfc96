package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

// TestAudit changes one thing at a time in a configuration in which nothing is found.
func TestAudit(t *testing.T) {
	set := descriptorSet(t)
	dir := t.TempDir()
	cert, key := pair(t, dir, "a", "a.example")
	safe := func() *configv1.Config {
		return &configv1.Config{
			Listeners: []*configv1.Listener{
				{Address: ":443", Tls: &configv1.TLS{Certificate: cert, Key: key}, Limits: &configv1.Limits{ConnectionsPerIp: 100}},
				{Address: ":80", RedirectHttps: 443, Limits: &configv1.Limits{ConnectionsPerIp: 100}},
				{Address: "127.0.0.1:8080"},
			},
			Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: set}}},
			Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///127.0.0.1:1,[::1]:2"}, "local": {Target: "unix:///tmp/x"}, "secure": {Target: "static:///192.0.2.1:1", Tls: &configv1.UpstreamTLS{}}},
			Security:    &configv1.Security{DefaultDeny: true, Hsts: durationpb.New(time.Hour), TrustedProxies: nil},
			Consumers:   &configv1.Consumers{Providers: map[string]*configv1.Provider{"keys": {Kind: &configv1.Provider_ApiKey{ApiKey: &configv1.ApiKey{}}}}},
			Policies:    []*configv1.Policy{{Selector: []string{"*"}, Cluster: "bank", Auth: &configv1.Auth{Require: []string{"keys"}}}},
			AccessLog:   &configv1.AccessLog{File: "stdout"},
			Admin:       &configv1.Admin{Address: "127.0.0.1:9901"},
		}
	}
	redact := func(fields ...string) *configv1.Policy {
		return &configv1.Policy{Selector: []string{"bank.v1.Diagnostics.*"}, Redact: []*configv1.Redaction{{Fields: fields}}}
	}
	token := dir + "/token"
	replace(t, token, "secret")
	for _, tc := range []struct {
		name   string
		change func(*configv1.Config)
		want   string // of the first finding; "" for none
	}{
		{"nothing", func(*configv1.Config) {}, ""},
		{"everybody is a proxy", func(c *configv1.Config) { c.Security.TrustedProxies = []string{"10.0.0.0/8", "::/0"} }, "high at security.trusted_proxies[1]"},
		{"everybody speaks for others", func(c *configv1.Config) {
			c.Listeners[0].ProxyProtocol = &configv1.ProxyProtocol{Trusted: []string{"0.0.0.0/0"}}
		}, "high at listeners[0].proxy_protocol.trusted[0]"},
		{"open methods beside others", func(c *configv1.Config) {
			c.Security.DefaultDeny, c.Policies[0].Selector = false, []string{"bank.v1.Accounts.*"}
			c.Policies = append(c.Policies, &configv1.Policy{Selector: []string{"*"}, Cluster: "bank"})
		}, "high at security.default_deny: it is not set, and anybody may call bank.v1."},
		{"all open", func(c *configv1.Config) {
			c.Security.DefaultDeny, c.Consumers, c.Policies[0].Auth = false, nil, nil
		}, "medium at security.default_deny"},
		{"anonymous without limits", func(c *configv1.Config) { c.Policies[0].Auth.Anonymous = true }, "medium at policies: without limits anybody may call"},
		{"anonymous with limits", func(c *configv1.Config) {
			c.Policies[0].Auth.Anonymous = true
			c.Policies[0].Limits = []*configv1.Limit{{Kind: &configv1.Limit_Rate{Rate: "1/s"}}}
		}, ""},
		{"a plan of nobody", func(c *configv1.Config) {
			c.Consumers.Known = map[string]*configv1.Consumer{"shop": {Plan: "gold"}, "till": {}}
			c.Policies[0].Limits = []*configv1.Limit{{Kind: &configv1.Limit_Rate{Rate: "1/s"}, Plans: map[string]string{"gold": "2/s", "Golf": "3/s"}}}
		}, `low at policies[0].limits[0].plans[Golf]: no known consumer is on this plan; did you mean "gold"?`},
		{"a plan of tokens", func(c *configv1.Config) {
			c.Consumers.Providers["main"] = &configv1.Provider{Kind: &configv1.Provider_Jwt{Jwt: &configv1.Jwt{
				Issuer: "https://id.example", Audiences: []string{"bank"}, PlanClaim: "plan",
			}}}
			c.Policies[0].Limits = []*configv1.Limit{{Kind: &configv1.Limit_Rate{Rate: "1/s"}, Plans: map[string]string{"gold": "2/s"}}}
		}, ""},
		{"plain text", func(c *configv1.Config) { c.Listeners[1].RedirectHttps = 0 }, "medium at listeners[1]: there is no tls"},
		{"plain text behind a proxy", func(c *configv1.Config) {
			c.Listeners[1].RedirectHttps, c.Listeners[1].ProxyProtocol = 0, &configv1.ProxyProtocol{Trusted: []string{"10.0.0.1"}}
		}, ""},
		{"all connections for one", func(c *configv1.Config) { c.Listeners[0].Limits = nil }, "medium at listeners[0]: limits.connections_per_ip"},
		{"limits of all listeners", func(c *configv1.Config) {
			c.Listeners[0].Limits, c.Limits = nil, &configv1.Limits{ConnectionsPerIp: 10}
		}, ""},
		{"all origins", func(c *configv1.Config) { c.Listeners[2].Cors = &configv1.Cors{AllowOrigins: []string{"*"}} }, "medium at listeners[2].cors.allow_origins"},
		{"admin for others", func(c *configv1.Config) { c.Admin = &configv1.Admin{Address: ":9901", TokenFile: token} }, "medium at admin.address"},
		{"unknown methods", func(c *configv1.Config) {
			c.UnknownMethods = &configv1.UnknownMethods{Cluster: "bank"}
			c.Security.DefaultDeny, c.Policies[0].Selector = false, []string{"bank.v1.*", "grpc.reflection.*"}
		}, "medium at unknown_methods"},
		{"redaction around an Any", func(c *configv1.Config) {
			c.Policies = append(c.Policies, redact("text", "nested"))
		}, "low at policies[1].redact: answers of bank.v1.Diagnostics.Echo have a google.protobuf.Any in list.any, of which nothing is taken out"},
		{"in what is left", func(c *configv1.Config) {
			c.Policies = append(c.Policies, redact("any", "nested.any", "nested.nested", "nested.list", "nested.messageMap", "nested.choice_message", "list", "message_map.any"))
		}, "low at policies[1].redact: answers of bank.v1.Diagnostics.Echo have a google.protobuf.Any in message_map.nested.any"},
		{"redaction of each", func(c *configv1.Config) {
			c.Policies = append(c.Policies, redact("any.value", "nested", "list", "message_map", "choice_message"))
		}, ""},
		{"redaction without any", func(c *configv1.Config) {
			c.Policies = append(c.Policies, &configv1.Policy{Selector: []string{"bank.v1.Accounts.*"}, Redact: []*configv1.Redaction{{Fields: []string{"owners"}}}})
		}, ""},
		{"browsers in plain text", func(c *configv1.Config) { c.Security.Hsts = nil }, "low at listeners[0].tls: security.hsts"},
		{"compressed sockets", func(c *configv1.Config) { c.Listeners[2].WebsocketCompression = true }, "low at listeners[2].websocket_compression"},
		{"profiles", func(c *configv1.Config) { c.Admin.Pprof = true }, "low at admin.pprof"},
		{"backends elsewhere", func(c *configv1.Config) { c.Clusters["bank"].Target = "static:///127.0.0.1:1,10.0.0.1:2" }, "low at clusters[bank].target"},
		{"backends without a scheme", func(c *configv1.Config) { c.Clusters["bank"].Target = "192.0.2.1:1" }, "low at clusters[bank].target"},
		{"sampled by clients", func(c *configv1.Config) { c.Tracing = &configv1.Tracing{Endpoint: "http://127.0.0.1:1"} }, "low at tracing"},
		{"no access log", func(c *configv1.Config) { c.AccessLog = nil }, "low at access_log"},
		{"Redis elsewhere", func(c *configv1.Config) { c.Redis = &configv1.Redis{Addresses: []string{"10.0.0.1:1"}} }, "low at redis"},
	} {
		cfg := safe()
		tc.change(cfg)
		var out bytes.Buffer
		err := gateway.Audit(t.Context(), cfg, func(path string) string { return "at" }, &out, slog.New(slog.DiscardHandler))
		first := "nothing found"
		if lines := strings.Split(out.String(), "\n"); len(lines) > 1 && strings.HasPrefix(lines[0], "SEVERITY") {
			first = strings.Join(strings.Fields(lines[1]), " ")
		}
		want := tc.want
		if want == "" {
			want = "nothing found"
		}
		if !strings.HasPrefix(first, want) || errors.Is(err, gateway.ErrUnsafe) != strings.HasPrefix(want, "high") || err != nil && !errors.Is(err, gateway.ErrUnsafe) {
			t.Errorf("%s: %v, %s; want %s", tc.name, err, fmt.Sprint(out.String()), want)
		}
	}
}
