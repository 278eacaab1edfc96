package configfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "transom/proto/transom/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testEnv(name string) (string, bool) {
	v, ok := map[string]string{"PORT": "8080", "YES": "true", "TRICK": "a\n  b: c", "DOLLAR": "${PORT}", "SIZE": "1MiB"}[name]
	return v, ok
}

const good = `
# the edge
listeners:
  - address: ":${PORT}"
  - {address: ":8443", tls: {certificate: edge.crt, key: edge.key, client_ca: ca.pem, client_auth: require}, http3: true}
descriptors:
  - {file: bank.binpb}
  - {proto: {roots: proto, files: [bank/v1/bank.proto]}}
  - reflection: {cluster: bank}
clusters:
  bank: {target: "dns:///bank.internal:50051", lb: {warmup: 1m30s}, messageBytes: 8MiB}
policies:
  - {selector: "*", cluster: bank, timeout: 250ms}
  - selector: [bank.v1.Accounts.Transfer, "bank.v1.Rates.*"]
    message_bytes: 64KiB
limits: {header_bytes: '${SIZE}'}
metadata: {request_headers: X-Tenant}
`

func TestParse(t *testing.T) {
	f, err := Parse("transom.yaml", []byte(good), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	want := &configv1.Config{
		Listeners: []*configv1.Listener{
			{Address: ":8080"},
			{
				Address: ":8443", Http3: true,
				Tls: &configv1.TLS{Certificate: "edge.crt", Key: "edge.key", ClientCa: "ca.pem", ClientAuth: configv1.TLS_CLIENT_AUTH_REQUIRE},
			},
		},
		Descriptors: []*configv1.DescriptorSource{
			{Source: &configv1.DescriptorSource_File{File: "bank.binpb"}},
			{Source: &configv1.DescriptorSource_Proto{Proto: &configv1.DescriptorSource_ProtoFiles{
				Roots: []string{"proto"}, Files: []string{"bank/v1/bank.proto"},
			}}},
			{Source: &configv1.DescriptorSource_Reflection_{Reflection: &configv1.DescriptorSource_Reflection{Cluster: "bank"}}},
		},
		Clusters: map[string]*configv1.Cluster{"bank": {
			Target: "dns:///bank.internal:50051", MessageBytes: 8 << 20,
			Lb: &configv1.LoadBalancing{Warmup: durationpb.New(90 * time.Second)},
		}},
		Policies: []*configv1.Policy{
			{Selector: []string{"*"}, Cluster: "bank", Timeout: durationpb.New(250 * time.Millisecond)},
			{Selector: []string{"bank.v1.Accounts.Transfer", "bank.v1.Rates.*"}, MessageBytes: 64 << 10},
		},
		Limits:   &configv1.Limits{HeaderBytes: 1 << 20},
		Metadata: &configv1.Metadata{RequestHeaders: []string{"X-Tenant"}},
	}
	if !proto.Equal(f.Config, want) {
		t.Errorf("got  %v\nwant %v", f.Config, want)
	}
}

func TestPosition(t *testing.T) {
	f, err := Parse("transom.yaml", []byte(good), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path         string
		line, column int
	}{
		{"", 3, 1},
		{"listeners", 4, 3},
		{"listeners[0].address", 4, 14},
		{"listeners[1].tls.client_auth", 5, 100},
		{"listeners[1].cors", 5, 5}, // left out: the message around it
		{"descriptors[1].proto.roots[0]", 8, 21},
		{`clusters["bank"].target`, 11, 18},
		{"clusters[bank].target", 11, 18},
		{"clusters[other].target", 11, 3},
		{"policies[0].selector[0]", 13, 16},
		{"policies[1].selector[1]", 14, 43},
		{"policies[9].selector", 13, 3},
		{"drain.timeout", 3, 1},
		{"no such path", 3, 1},
	} {
		if line, column := f.Position(c.path); line != c.line || column != c.column {
			t.Errorf("Position(%q) = %d:%d, want %d:%d", c.path, line, column, c.line, c.column)
		}
	}
	fault := f.Fault("policies[0].cluster", `no cluster "bank"`)
	want := "transom.yaml:13:30: no cluster \"bank\"\n" +
		"   13 |   - {selector: \"*\", cluster: bank, timeout: 250ms}\n" +
		"      |                              ^"
	if got := fault.Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// minimal is what a file must have, for the cases that add something to it.
const minimal = "listeners: {address: ':80'}\nclusters: {a: {target: 'b:1'}}\n"

func TestFaults(t *testing.T) {
	for _, c := range []struct{ name, yaml, want string }{
		{"empty", "", "1:1: listeners: must contain at least 1 item(s)|1:1: clusters: map must be at least 1 entries"},
		{"comment only", "# nothing\n", "1:1: listeners: must contain at least 1 item(s)|1:1: clusters: map must be at least 1 entries"},
		{"nothing behind the last line", "?  |\n  5", `1:4: unknown field "5"; the fields here are |2:1: expected sequence, got scalar`},
		{"not a mapping", "- a\n", "1:1: expected fields for transom.config.v1.Config, got sequence"},
		{"syntax", "listeners: [\n", "1:1: YAML: did not find expected node content"},
		{"tab", "listeners:\n\t- a\n", "2:1: YAML: a tab; lines are indented with spaces"},
		{"not UTF-8", "listeners:\n  \xff\n", "2:1: not UTF-8 text"},
		{"separator", "a: b\u2028c: d\n", "1:5: line separator U+2028; end lines with a line feed"},
		{"two documents", minimal + "---\nlisteners: {}\n", "3:1: a second YAML document; the configuration is one"},
		{"unknown field", minimal + "policys: []\n", `3:1: unknown field "policys"; did you mean "policies"? the fields here are access_log, admin, api_versions, cache_bytes, clusters, `},
		{"unknown field, nothing near", minimal + "x: []\n", `3:1: unknown field "x"; the fields here are access_log, admin, api_versions, cache_bytes, clusters, `},
		{"set twice", minimal + "drain: {delay: 1s, delay: 2s}\n", "3:20: delay is set twice"},
		{"set twice by both names", minimal + "unknown_methods: {cluster: a}\nunknownMethods: {cluster: a}\n", "4:1: unknownMethods is set twice"},
		{"map key twice", "listeners: {address: ':80'}\nclusters:\n  a: {target: 'b:1'}\n  a: {target: 'c:1'}\n", "4:3: a is set twice"},
		{"alias", "listeners: &l {address: ':80'}\nclusters: {a: {target: 'b:1', tls: *l}}\n", "2:36: aliases are not supported; write the value out"},
		{"enum", "listeners: {address: ':80', tls: {certificate: a, key: b, client_auth: maybe}}\nclusters: {a: {target: 'b:1'}}\n", `1:72: unknown value "maybe", expected one of none, request, require`},
		{"duration", minimal + "drain: {delay: soon}\n", `3:16: delay: invalid number, expected digit`},
		{"duration range", minimal + "drain: {delay: 11m}\n", `3:16: delay: must be greater than or equal to 0s and less than or equal to 600s`},
		{"negative", minimal + "limits: {message_bytes: -1}\n", `3:25: message_bytes: invalid integer: parsing "-1": invalid syntax`},
		{"too large", minimal + "limits: {message_bytes: 3GiB}\n", `3:25: message_bytes: must be less than or equal to 2147483647`},
		{"metrics_push", minimal + "metrics_push:\n  endpoint: collector:4318\n  interval: 100ms\n", `4:13: endpoint: does not match regex pattern|5:13: interval: must be greater than or equal to 1s and less than or equal to 3600s`},
		{"tracing", minimal + "tracing: {endpoint: 'collector:4317'}\n", `3:21: endpoint: does not match regex pattern`},
		{"tracing by gRPC", minimal + "tracing:\n  endpoint: grpc://collector:4317\n", `4:13: endpoint: does not match regex pattern`},
		{"tracing without host", minimal + "tracing: {endpoint: 'http:///v1/traces'}\n", `3:21: endpoint: does not match regex pattern`},
		{"metrics_push without endpoint", minimal + "metrics_push: {}\n", `3:15: endpoint: does not match regex pattern`},
		{"kind", minimal + "policies: {selector: {a: b}}\n", `3:22: selector[0]: expected scalar, got mapping`},
		{"oneof", minimal + "descriptors: {file: a, reflection: {cluster: a}}\n", `3:36: reflection: field file is already set for oneof source`},
		{"oneof empty", minimal + "descriptors: [{}]\n", `3:15: source: exactly one field is required in oneof`},
		{"http3 without tls", "listeners: {address: ':80', http3: true}\nclusters: {a: {target: 'b:1'}}\n", `1:12: listeners[0]: http3 needs tls`},
		{"tls without anything", "listeners: {address: ':80', tls: {}}\nclusters: {a: {target: 'b:1'}}\n", `1:34: tls: tls needs certificate and key, or acme`},
		{"certificate without key", "listeners: {address: ':80', tls: {certificate: a}}\nclusters: {a: {target: 'b:1'}}\n", `1:34: tls: tls needs certificate and key, or acme`},
		{
			"acme", "listeners: {address: ':80', tls: {acme: {names: ['*.a.example', localhost], directory: 'http://ca'}}}\nclusters: {a: {target: 'b:1'}}\n",
			`1:41: storage: must be at least 1 characters|1:41: accept_terms: must equal true|1:50: names[0]: does not match regex pattern|1:65: names[1]: does not match regex pattern|1:88: directory: does not match regex pattern`,
		},
		{"credentials", "listeners: {address: ':80', cors: {allow_origins: '*', allow_credentials: true}}\nclusters: {a: {target: 'b:1'}}\n", `1:35: cors: allow_credentials needs origins by name, not "*"`},
		{"cluster name", "listeners: {address: ':80'}\nclusters: {A: {target: 'b:1'}}\n", `2:15: clusters["A"]: does not match regex pattern`},
		{"variable unset", minimal + "drain: {delay: '${NOPE}'}\n", `3:16: ${NOPE}: the environment variable is not set`},
		{"variable open", minimal + "drain: {delay: '${NOPE'}\n", `3:16: "${" without "}"; write "$${" for the characters themselves`},
		{"variable name", minimal + "drain: {delay: '${A-B}'}\n", `3:16: ${A-B}: not a variable's name (letters, digits and _)`},
		{
			"all at once", "listeners:\n  - {adress: ':80'}\n  - {address: ':81', http3: perhaps}\nclusters: {a: {target: 1, tls: yes}}\n",
			`2:6: unknown field "adress"; did you mean "address"? the fields here are address, ` +
				`|3:29: http3: expected bool, got "perhaps"|4:32: tls: expected fields for transom.config.v1.UpstreamTLS, got scalar`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f", []byte(c.yaml), testEnv)
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("error %v, want Faults", err)
			}
			var got []string
			for _, f := range faults {
				head, _, _ := strings.Cut(f.Error(), "\n")
				got = append(got, strings.TrimPrefix(head, "f:"))
			}
			want := strings.Split(c.want, "|")
			for i := range max(len(got), len(want)) {
				if i >= len(got) || i >= len(want) || !strings.HasPrefix(got[i], want[i]) {
					t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		})
	}
}

func TestVariables(t *testing.T) {
	for _, c := range []struct{ in, want, fault string }{
		{"", "", ""},
		{"plain $ text $}", "plain $ text $}", ""},
		{"${PORT}", "8080", ""},
		{"a${PORT}b${YES}c", "a8080btruec", ""},
		{"$${PORT}", "${PORT}", ""},
		{"$$${PORT}", "$${PORT}", ""},
		{"${TRICK}", "a\n  b: c", ""},
		{"${DOLLAR}", "${PORT}", ""},
		{"${}", "", "not a variable's name"},
		{"${", "", `without "}"`},
	} {
		got, err := expand(c.in, testEnv)
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("expand(%q): error %v, want one with %q", c.in, err, c.fault)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("expand(%q) = %q, %v, want %q", c.in, got, err, c.want)
		}
	}
	// A variable can be a boolean, and can't add to the structure.
	f, err := Parse("f", []byte("listeners: {address: '${TRICK}', tls: {certificate: a, key: b}, http3: '${YES}'}\nclusters: {a: {target: 'b:1'}}\n"), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	if l := f.Config.GetListeners()[0]; !l.GetHttp3() || l.GetAddress() != "a\n  b: c" {
		t.Errorf("got %v", l)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "transom.yaml")
	if err := os.WriteFile(path, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Config.GetClusters()["a"].GetTarget(); got != "b:1" {
		t.Errorf("target %q, want b:1", got)
	}
	if _, err := Load(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// What is read again from its own text is the same, and whatever the text is, a fault lies within it.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		good, minimal, "", "a", "- a", "listeners: [", "a: &a b\nc: *a", "listeners:\r\n- address: x\r\n", "? [a]\n: b", "a: !!binary x", "?  |\n  5",
		"listeners: !!null\nclusters: ~", "policies: {selector: ${A}}", "\ufefflisteners: 1", "a: |\n  x\n ...\n", "%YAML 1.1\n---\na",
	} {
		f.Add(s)
	}
	var r Reader
	f.Fuzz(func(t *testing.T, s string) {
		file, err := r.Parse("f", []byte(s), testEnv)
		if err == nil {
			if line, column := file.Position("listeners[0]"); line < 1 || column < 1 {
				t.Errorf("position %d:%d", line, column)
			}
			return
		}
		var faults Faults
		if !errors.As(err, &faults) || len(faults) == 0 {
			t.Fatalf("error %T %v, want Faults", err, err)
		}
		lines := strings.Count(s, "\n") + 1
		for _, fault := range faults {
			if fault.Line < 1 || fault.Line > lines || fault.Column < 1 || fault.Message == "" {
				t.Errorf("fault %+v of %d lines", fault, lines)
			}
			_ = fault.Error()
		}
	})
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("f", []byte(good), testEnv); err != nil {
			b.Fatal(err)
		}
	}
}
