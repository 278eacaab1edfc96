package gateway

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/structpb"

	configv1 "transom/proto/transom/config/v1"
)

// TestRedacted: what the admin API shows of a configuration has no secrets, and the configuration is not changed.
func TestRedacted(t *testing.T) {
	cfg := &configv1.Config{
		Clusters:  map[string]*configv1.Cluster{"a": {Target: "redis://user:hunter2@host:1", Authority: "plain.example"}},
		Admin:     &configv1.Admin{Address: "127.0.0.1:1", TokenFile: "/etc/token"},
		Consumers: &configv1.Consumers{Known: map[string]*configv1.Consumer{"ada": {ApiKeys: []string{"sha256:hunter2"}, Plan: "basic plan"}}},
	}
	claims, err := structpb.NewStruct(map[string]any{"org": "acme", "deep": map[string]any{"api_token": "hunter2"}})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Consumers.Known["ada"].Claims = claims
	values := map[string]string{
		"authorization": "{claims.org} hunter2", "proxy-authorization": "hunter2", "cookie": "a=hunter2", "x-api-key": "hunter2", "x-token": "hunter2",
		"x-client-secret": "hunter2", "x-password": "hunter2", "x-upstream": "Bearer hunter2", "x-authtoken": "hunter2",
		"Ocp-Apim-Subscription-Key": "hunter2", "X-Functions-Key": "hunter2", "x-jwt": "hunter2", "x-partition-key": "by-tenant", "sort_key": "by-name", "monkey": "capuchin", "x-tenant": "tenant {consumer}",
	}
	edits := &configv1.MetadataEdits{Set: values, Add: values, Rename: map[string]string{"authorization": "x-was"}}
	cfg.Security = &configv1.Security{ResponseHeaders: map[string]string{"X-Token": "hunter2"}}
	cfg.Policies = []*configv1.Policy{{
		RequestMetadata: edits, ResponseMetadata: edits, ResponseTrailers: edits,
		RequestFields: []*configv1.RequestField{
			{Field: "auth.accessToken", Source: &configv1.RequestField_Value{Value: "hunter2"}},
			{Field: "auth.apiKey", Source: &configv1.RequestField_Value{Value: "hunter2"}},
			{Field: "owner.upstream", Source: &configv1.RequestField_Value{Value: "Basic hunter2"}},
			{Field: "page.sortKey", Source: &configv1.RequestField_Value{Value: "by-date"}},
			{Field: "owner.id", Source: &configv1.RequestField_Value{Value: "owner {subject}"}},
		},
		Routes: []*configv1.Route{{When: []*configv1.Condition{
			{Header: "x-canary-token", Match: &configv1.Condition_Exact{Exact: "hunter2"}},
			{Header: "cookie", Match: &configv1.Condition_Prefix{Prefix: "canary=hunter2"}},
			{Header: "x-was", Match: &configv1.Condition_Exact{Exact: "Basic hunter2"}},
			{Header: "x-region", Match: &configv1.Condition_Prefix{Prefix: "eu-"}},
			{Header: "authorization", Match: &configv1.Condition_Present{Present: true}},
		}}},
	}}
	before := prototext.Format(cfg)
	got := prototext.Format(redacted(cfg))
	if strings.Contains(got, "hunter2") {
		t.Errorf("a secret is shown:\n%s", got)
	}
	for _, want := range []string{
		"/etc/token", "by-tenant", "by-name", "capuchin", "by-date", "Basic REDACTED", "basic plan",
		"plain.example", "redis://REDACTED@host:1", "tenant {consumer}", "owner {subject}", "x-was", "eu-", "Bearer REDACTED", "acme",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in:\n%s", want, got)
		}
	}
	if prototext.Format(cfg) != before {
		t.Error("the configuration was changed")
	}
}
