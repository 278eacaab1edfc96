package gateway

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"

	configv1 "transom/proto/transom/config/v1"
)

// TestRedacted: what the admin API shows of a configuration has no secrets, and the configuration is not changed.
func TestRedacted(t *testing.T) {
	cfg := &configv1.Config{
		Clusters:  map[string]*configv1.Cluster{"a": {Target: "redis://user:hunter2@host:1", Authority: "plain.example"}},
		Admin:     &configv1.Admin{Address: "127.0.0.1:1", TokenFile: "/etc/token"},
		Consumers: &configv1.Consumers{Known: map[string]*configv1.Consumer{"ada": {ApiKeys: []string{"sha256:hunter2"}}}},
	}
	before := prototext.Format(cfg)
	got := prototext.Format(redacted(cfg))
	if strings.Contains(got, "hunter2") {
		t.Errorf("a secret is shown:\n%s", got)
	}
	for _, want := range []string{"/etc/token", "plain.example", "redis://REDACTED@host:1"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in:\n%s", want, got)
		}
	}
	if prototext.Format(cfg) != before {
		t.Error("the configuration was changed")
	}
}
