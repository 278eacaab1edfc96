package policies_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/cmd/transom/demo/bank"
	"transom/gateway"
	transomv1 "transom/proto/transom/v1"
)

// optionSet writes the bank's descriptors with options (transom.v1.policy) of methods, in text by method, to a file. The bytes
// of raw are put into that of Diagnostics.Metadata.
func optionSet(t *testing.T, options map[string]string, raw []byte) string {
	t.Helper()
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(bank.DescriptorSet(), set); err != nil {
		t.Fatal(err)
	}
	set.File = append([]*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(transomv1.File_transom_v1_policy_proto)}, set.File...)
	for _, f := range set.File {
		if f.GetPackage() != "bank.v1" {
			continue
		}
		f.Dependency = append(f.Dependency, transomv1.File_transom_v1_policy_proto.Path())
		for _, s := range f.Service {
			for _, m := range s.Method {
				name := f.GetPackage() + "." + s.GetName() + "." + m.GetName()
				if m.Options == nil {
					m.Options = &descriptorpb.MethodOptions{}
				}
				if text, ok := options[name]; ok {
					o := &transomv1.Policy{}
					if err := prototext.Unmarshal([]byte(text), o); err != nil {
						t.Fatal(err)
					}
					proto.SetExtension(m.Options, transomv1.E_Policy, o)
				}
				if raw != nil && name == "bank.v1.Diagnostics.Metadata" {
					u := protowire.AppendTag(m.Options.ProtoReflect().GetUnknown(), transomv1.E_Policy.TypeDescriptor().Number(), protowire.BytesType)
					m.Options.ProtoReflect().SetUnknown(protowire.AppendBytes(u, raw))
				}
			}
		}
	}
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

const protected = `authenticated: true access: {scopes: "transfer" groups: ["staff", "admins"]} allow: "consumer != 'eve'" timeout: {seconds: 2} message_bytes: 1000`

// optionConfig has callers of every kind, and more at the end.
func optionConfig(set, policies string) string {
	if policies == "" {
		policies = "- {selector: bank.v1.Rates.*, timeout: 1s}"
	}
	known := ""
	for name, what := range map[string]string{"ann": "scopes: [transfer], groups: [staff]", "bob": "groups: [staff]", "carol": "scopes: [transfer]", "eve": "scopes: [transfer], groups: [admins]"} {
		known += fmt.Sprintf("    %s: {%s, api_keys: [%q]}\n", name, what, sha(name))
	}
	return fmt.Sprintf("consumers:\n  providers: {keys: {api_key: {}}}\n  known:\n%spolicies:\n%s\ndescriptors: [{file: %q}]\n", known, policies, set)
}

func TestMethodOptions(t *testing.T) {
	set := optionSet(t, map[string]string{"bank.v1.Diagnostics.Metadata": protected}, nil)
	p := start(t, optionConfig(set, `- {selector: "*", auth: {require: [keys]}}`))
	judged := func(t *testing.T, call caller, want map[string]string) {
		t.Helper()
		for who, reason := range want {
			header := map[string]string{"x-api-key": who}
			if who == "" {
				header = nil
			}
			switch o := call(t, p, header); reason {
			case "":
				o.wantOK(t, who)
			case "CREDENTIALS_MISSING":
				o.want(t, who, codes.Unauthenticated, 401, reason)
			default:
				o.want(t, who, codes.PermissionDenied, 403, reason)
			}
		}
	}
	everyProtocol(t, func(t *testing.T, call caller) {
		judged(t, call, map[string]string{"ann": "", "bob": "SCOPE_MISSING", "carol": "GROUP_MISSING", "eve": "RULE_DENIED", "": "CREDENTIALS_MISSING"})
	})
	// What the configuration asks for comes on top.
	p.reload(t, optionConfig(set, `- {selector: "*", auth: {require: [keys]}, access: {groups: [admins]}, allow: 'true'}`))
	everyProtocol(t, func(t *testing.T, call caller) {
		judged(t, call, map[string]string{"ann": "GROUP_MISSING", "bob": "SCOPE_MISSING", "carol": "GROUP_MISSING", "eve": "RULE_DENIED"})
	})
	p.reload(t, optionConfig(set, `- {selector: "*", auth: {require: [keys]}, access: {consumers: [eve, ann]}, allow: 'consumer != "ann"'}`))
	everyProtocol(t, func(t *testing.T, call caller) {
		judged(t, call, map[string]string{"ann": "RULE_DENIED", "bob": "CONSUMER_DENIED", "eve": "RULE_DENIED"})
	})
	// A limit and a cache as defaults.
	set = optionSet(t, map[string]string{"bank.v1.Diagnostics.Metadata": `limits: {rate: "2/h"}`}, nil)
	p.reload(t, optionConfig(set, ""))
	everyProtocol(t, func(t *testing.T, call caller) {
		for o := call(t, p, nil); o.code == codes.OK; o = call(t, p, nil) {
		}
		call(t, p, nil).want(t, "over the limit", codes.ResourceExhausted, 429, "RATE_LIMITED")
	})
	p.reload(t, optionConfig(set, `- {selector: "*", limits: {rate: 1000/s}}`))
	everyProtocol(t, func(t *testing.T, call caller) {
		call(t, p, nil).wantOK(t, "with the limit of the configuration")
	})
}

// TestMethodOptionsFromSources reads options of .proto sources, as backend teams write them.
func TestMethodOptionsFromSources(t *testing.T) {
	dir := t.TempDir()
	source := `syntax = "proto3";
package shop.v1;
import "transom/v1/policy.proto";
message M {}
service Shop {
  rpc Buy(M) returns (M) {
    option (transom.v1.policy) = {
      timeout: {seconds: 2}
      authenticated: true
      access: {scopes: "transfer"}
      limits: {quota: "10/day"}
    };
  }
}
`
	if err := os.WriteFile(filepath.Join(dir, "shop.proto"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	got := explained(t, fmt.Sprintf(`
consumers: {providers: {keys: {api_key: {}}}}
policies:
- {selector: shop.v1.*, auth: {require: [keys]}, access: {groups: [staff]}, timeout: 3s}
descriptors: [{proto: {roots: [%q, ../../proto], files: [shop.proto]}}]
`, dir), "shop.v1.Shop.Buy")
	for _, want := range []string{
		`timeout "3s" shop.v1.* 4:86`,
		`access {"groups":["staff"]} shop.v1.* 4:`,
		`and access {"scopes":["transfer"]} (transom.v1.policy) descriptors`,
		`limits [{"quota":"10/day"}] (transom.v1.policy) descriptors`,
		`authenticated true (transom.v1.policy) descriptors`,
		"a call goes through overload, auth, access, limits, the cluster",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("explain says\n%s\nwant\n%s", got, want)
		}
	}
}

// explained is what explain says of a method, with one space between words.
func explained(t *testing.T, text, method string) string {
	t.Helper()
	p := &proxy{bank: "127.0.0.1:1", set: descriptorSet(t)}
	file, err := reader.Parse("transom.yaml", p.whole(text), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	where := func(path string) string {
		line, column := file.Position(path)
		return fmt.Sprintf("%d:%d", line, column)
	}
	var out strings.Builder
	if err := gateway.Locate(gateway.Explain(t.Context(), file.Config, method, where, &out, slog.New(slog.DiscardHandler)), file); err != nil {
		t.Fatal(err)
	}
	return squeeze(strings.NewReplacer(`": `, `":`, `, "`, `,"`).Replace(out.String()))
}

func TestMethodOptionFaults(t *testing.T) {
	const method = "bank.v1.Diagnostics.Metadata"
	keys := `- {selector: "*", auth: {require: [keys]}}`
	for _, tc := range []struct {
		option, policies, want string
		raw                    []byte
	}{
		{"authenticated: true", "", "callers of " + method + " must say who they are, by its option (transom.v1.policy): it needs auth.require, without anonymous", nil},
		{"authenticated: true", `- {selector: "*", auth: {require: [keys], anonymous: true}}`, "9:25: callers of " + method + " must say who they are", nil},
		{`access: {scopes: "x"}`, "", "option (transom.v1.policy) of " + method + ".access: for bank.v1.Diagnostics.Metadata: scopes, groups and consumers need callers", nil},
		{`allow: "1"`, keys, "option (transom.v1.policy) of " + method + ".allow: for " + method, nil},
		{`allow: "1"`, keys + "\n" + `- {selector: bank.v1.*, allow: "true"}`, "option (transom.v1.policy) of " + method + ".allow: for " + method, nil},
		{`limits: {rate: "many"}`, keys, "option (transom.v1.policy) of " + method + `.limits[0].rate: "many" is not a rate`, nil},
		{`limits: {}`, keys, "option (transom.v1.policy) of " + method + ".limits[0].kind: exactly one field is required", nil},
		{"timeout: {seconds: 100000}", keys, "option (transom.v1.policy) of " + method + ".timeout: must be", nil},
		{"validate: true", `- {selector: "*", validate: false}`, "9:29: " + method + " has its messages checked by its option (transom.v1.policy), and the configuration cannot turn that off", nil},
		{"", keys, "option (transom.v1.policy) of " + method + ": it has field 2000, which this transom does not know", protowire.AppendVarint(protowire.AppendTag(nil, 2000, protowire.VarintType), 1)},
		{"", keys, "option (transom.v1.policy) of " + method + ": it has field 9, which this transom does not know", []byte("\xaa\x01\x02\x48\x01")},
	} {
		options := map[string]string{}
		if tc.option != "" {
			options[method] = tc.option
		}
		found := faults(t, optionConfig(optionSet(t, options, tc.raw), tc.policies))
		if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, tc.want) }) {
			t.Errorf("%s\n%s\nfaults:\n%s\nwant\n%s", tc.option, tc.policies, strings.Join(found, "\n"), tc.want)
		}
	}
}

// TestMethodOptionsReload has other descriptors bring other options under load.
func TestMethodOptionsReload(t *testing.T) {
	var sets []string
	for _, o := range []string{"timeout: {seconds: 10}", `authenticated: true access: {groups: "staff"}`, `allow: "consumer != 'eve'"`} {
		sets = append(sets, optionSet(t, map[string]string{"bank.v1.Diagnostics.Metadata": o}, nil))
	}
	config := func(n int) string {
		return optionConfig(sets[n%len(sets)], `- {selector: "*", auth: {require: [keys]}}`)
	}
	p := start(t, config(0))
	load := underLoad(t, func(t *testing.T, name string, _, _ int, call caller) {
		call(t, p, map[string]string{"x-api-key": "ann"}).wantOK(t, name)
	})
	for n := range 9 {
		p.reload(t, config(n+1))
		load.calls(t, 20)
	}
	load.end()
	callGRPC(t, p, map[string]string{"x-api-key": "eve"}).wantOK(t, "of the first")
	p.reload(t, config(2))
	callGRPC(t, p, map[string]string{"x-api-key": "eve"}).want(t, "of the last", codes.PermissionDenied, 403, "RULE_DENIED")
}
