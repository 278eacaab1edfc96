package gateway_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/gateway"
	"transom/gateway/configfile"
	transomv1 "transom/proto/transom/v1"
)

// reader reads the configurations of all tests: compiling the rules anew for each would take longest.
var reader configfile.Reader

// faultsOf are the faults of the configuration in text, as "LINE: message". What it takes to be sound is put behind it, unless text
// has it.
func faultsOf(t *testing.T, text string) []string {
	t.Helper()
	for key, rest := range map[string]string{
		"listeners":   `[{address: "127.0.0.1:0"}]`,
		"clusters":    `{bank: {target: "static:///127.0.0.1:1"}}`,
		"descriptors": fmt.Sprintf("[{file: %q}]", descriptorSet(t)),
	} {
		if !regexp.MustCompile("(?m)^" + key + ":").MatchString(text) {
			text += "\n" + key + ": " + rest
		}
	}
	file, err := reader.Parse("test.yaml", []byte(text), os.LookupEnv)
	if err == nil {
		err = gateway.Locate(gateway.Check(t.Context(), file.Config, slog.New(slog.DiscardHandler)), file)
	}
	if err == nil {
		return nil
	}
	faults, ok := errors.AsType[configfile.Faults](err)
	if !ok {
		t.Fatal(err)
	}
	var all []string
	for _, f := range faults {
		all = append(all, fmt.Sprintf("%d: %s", f.Line, f.Message))
	}
	return all
}

// wantFaults has the faults of the configuration in text be those that begin as wanted.
func wantFaults(t *testing.T, text string, want ...string) {
	t.Helper()
	got := faultsOf(t, text)
	same := len(got) == len(want)
	for i := 0; same && i < len(got); i++ {
		same = len(got[i]) >= len(want[i]) && got[i][:len(want[i])] == want[i]
	}
	if !same {
		t.Errorf("got %q, want %q", got, want)
	}
}

// optionSet is descriptorSet with the option of one method.
func optionSet(t *testing.T, service, method string, option *transomv1.Policy) string {
	t.Helper()
	path := descriptorSet(t)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(b, set); err != nil {
		t.Fatal(err)
	}
	for _, f := range set.File {
		for _, s := range f.Service {
			for _, m := range s.Method {
				if s.GetName() != service || m.GetName() != method {
					continue
				}
				if m.Options == nil {
					m.Options = &descriptorpb.MethodOptions{}
				}
				proto.SetExtension(m.Options, transomv1.E_Policy, option)
				f.Dependency = append(f.Dependency, transomv1.File_transom_v1_policy_proto.Path())
			}
		}
	}
	set.File = append([]*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(transomv1.File_transom_v1_policy_proto)}, set.File...)
	if b, err = proto.Marshal(set); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "options.binpb")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestOneNameOneLimit: two limits of one name were two, which in Redis wrote the same keys, and one that stood twice in a list counted
// each call twice.
func TestOneNameOneLimit(t *testing.T) {
	const accounts, rates = "policies:\n- {selector: bank.v1.Accounts.*, limits: {name: n, %s}}\n", "- {selector: bank.v1.Rates.*, limits: {name: n, %s}}\n"
	const differ = `3: limits of one name are one limit, and this "n" differs from another (see line 2)`
	for _, tc := range []struct{ one, two string }{
		{"rate: 5/s", "rate: 6/s"},
		{"rate: 5/s", "rate: 5/m"},
		{"rate: 5/s", "quota: 5/day"},
		{"rate: 5/s", "concurrent: 5"},
		{"rate: 5/s", "rate: 5/s, burst: 2"},
		{"rate: 5/s", "rate: 5/s, per: ip"},
		{"rate: 5/s", "rate: 5/s, everybody: true"},
		{"rate: 5/s", "rate: 5/s, messages: true"},
		{"rate: 5/s, plans: {gold: 7/s}", "rate: 5/s, plans: {gold: 8/s}"},
	} {
		wantFaults(t, fmt.Sprintf(accounts+rates, tc.one, tc.two), differ)
		wantFaults(t, fmt.Sprintf(accounts+rates, tc.one, tc.one))
	}
	wantFaults(t, fmt.Sprintf(accounts+rates, "rate: 5/s", "rate: 5/s, per: consumer, local: true"))
	wantFaults(t, fmt.Sprintf(accounts+rates+"redis: {addresses: [\"127.0.0.1:1\"]}\n", "rate: 5/s", "rate: 5/s, local: true"), differ)
	wantFaults(t, "policies:\n- selector: bank.v1.*\n  limits:\n  - {name: n, rate: 5/s}\n  - {name: m, rate: 5/s}\n  - {name: n, rate: 5/s}\n",
		`6: limit "n" is in this list twice: each call would count twice (see line 4)`)
	wantFaults(t, "policies:\n- selector: bank.v1.*\n  limits:\n  - {name: n, rate: 5/s}\n  - {name: n, quota: 5/day}\n",
		`5: limits of one name are one limit, and this "n" differs from another (see line 4)`)

	set := optionSet(t, "Accounts", "Get", &transomv1.Policy{Limits: []*transomv1.Limit{{Name: "n", Kind: &transomv1.Limit_Rate{Rate: "5/s"}}}})
	text := fmt.Sprintf("descriptors: [{file: %q}]\n", set) + "policies: [{selector: bank.v1.Rates.*, limits: [{name: n, rate: %s}]}]\n"
	wantFaults(t, fmt.Sprintf(text, "5/s"))
	wantFaults(t, fmt.Sprintf(text, "6/s"), `2: limits of one name are one limit, and this "n" differs from another (see (transom.v1.policy) of bank.v1.Accounts.Get.limits[0])`)
}

// TestResponseHeaderFaults: headers of every answer that are not those of the content broke the protocols that they belong to.
func TestResponseHeaderFaults(t *testing.T) {
	for _, name := range []string{
		"content-length", "Content-Encoding", "transfer-encoding", "connection", "trailer", "te", "upgrade", "keep-alive", "grpc-status", "Grpc-Message", "sec-websocket-accept",
	} {
		wantFaults(t, "security:\n  response_headers:\n    x-frame-options: DENY\n    "+name+": x\n", "4: "+name+" belongs to HTTP or gRPC themselves and cannot be changed")
	}
	wantFaults(t, "security: {response_headers: {Content-Security-Policy: \"default-src 'none'\", cache-control: no-store}}\n")
}

// TestRequestHeaderFaults: names that never reach backends were taken.
func TestRequestHeaderFaults(t *testing.T) {
	for _, name := range []string{"User-Agent", "Host", "te", "Content-Length", "grpc-timeout"} {
		wantFaults(t, "metadata:\n  request_headers:\n  - X-Tenant\n  - "+name+"\n",
			"4: "+name+" is not for backends: it belongs to HTTP or gRPC, or is where transom names itself")
	}
}

// TestOverruled: what a policy says in response metadata and every answer says otherwise is lost.
func TestOverruled(t *testing.T) {
	const text = "security: {response_headers: {Cache-Control: no-store, vary: x-edge}}\npolicies:\n- selector: bank.v1.Rates.Get\n  response_metadata:\n    %s: {x-mine: a, vary: x-mine, cache-control: private}\n"
	for _, field := range []string{"set", "add"} {
		wantFaults(t, fmt.Sprintf(text, field), "5: security.response_headers says cache-control in every answer")
	}
}

// TestErrorRuleFaults: rules that did nothing, or not what they say, were taken.
func TestErrorRuleFaults(t *testing.T) {
	const policy = "policies:\n- selector: bank.v1.*\n  errors:\n"
	for _, tc := range []struct{ rules, want string }{
		{"  - {codes: [not_found], to: OK}\n", "4: to: an error cannot become OK"},
		{"  - {message: a}\n  - {codes: [not_found], to: internal}\n", "5: no error comes to this rule: those before it have all its codes (see line 4)"},
		{"  - {message: a}\n  - {message: b}\n", "5: no error comes"},
		{"  - {codes: [not_found], message: a}\n  - {codes: [aborted], message: b}\n  - {codes: [not_found, aborted], message: c}\n", "6: no error comes to this rule: those before it have all its codes (see line 5)"},
		{"  - {codes: [not_found], message: a}\n  - {codes: [not_found, aborted], message: b}\n  - {message: c}\n", ""},
		{"  - {codes: [not_found], to: internal}\n", ""},
	} {
		if tc.want == "" {
			wantFaults(t, policy+tc.rules)
		} else {
			wantFaults(t, policy+tc.rules, tc.want)
		}
	}
}

// TestFaultsOnce: what is wrong for many methods was told for each, and what two consumers have in common of their provider.
func TestFaultsOnce(t *testing.T) {
	wantFaults(t, "policies:\n- {selector: \"*\", timeout: 1s}\n- {selector: \"*\", timeout: 2s}\n- {selector: bank.v1.*, allow: nobody}\n- {selector: bank.v1.Rates.*, cost: 3, limits: {rate: 2/s}}\n",
		`3: for bank.v1.Accounts.Balance and 32 more methods: selector "*" sets timeout with the same precedence as this one (see line 2)`,
		`4: for bank.v1.Accounts.Balance and 27 more methods: column 1: undeclared reference to 'nobody'`,
		`5: for bank.v1.Rates.Get and another method: calls cost 3, and no more than 2 may ever come at once`)
	key := strings.Repeat("0", 64)
	wantFaults(t, "consumers:\n  providers: {keys: {api_key: {}}, more: {api_key: {header: x-more}}}\n  known:\n    ann: {api_keys: [\"sha256:"+key+"\"]}\n    bob:\n      api_keys:\n      - \"sha256:1"+key[1:]+"\"\n      - \"sha256:"+key+"\"\n",
		"8: consumers ann and bob have the same API key (see line 4)")
}

// TestMistypedConsumer: a policy's consumer that is not known hid the faults of all policies, and empty scopes and groups of a line were told
// in an order that changed.
func TestMistypedConsumer(t *testing.T) {
	wantFaults(t, `policies:
- {selector: "*", auth: {require: [keys]}, access: {scopes: [""], groups: [""], consumers: [ana]}}
- {selector: "*", allow: "nobody.knows"}
consumers:
  providers: {keys: {api_key: {}}}
  known: {ann: {}}
`,
		"2: it is empty", "2: it is empty", `2: consumers.known has no "ana"; did you mean "ann"?`, "3: ")
}

// TestNoDirectory: check let files pass whose directory does not exist, and serve did not start.
func TestNoDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"stdout", "stderr", "calls.log", dir + "/calls.log"} {
		wantFaults(t, fmt.Sprintf("access_log: {file: %q}\nusage: {file: %[1]q}\n", file))
	}
	if _, err := os.Stat(dir + "/calls.log"); err == nil {
		t.Error("the check made the file")
	}
	wantFaults(t, fmt.Sprintf("access_log: {file: %q}\nusage:\n  file: %[1]q\n", dir+"/none/calls.log"), "1: stat "+dir+"/none: no such file", "3: stat "+dir+"/none: no such file")
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantFaults(t, fmt.Sprintf("access_log: {file: %q}\n", dir+"/file/calls.log"), "1: "+dir+"/file is no directory")
}

// TestFaultsOfDescriptors: what is wrong in one descriptor source, or in the rules of a service config, was told of the first source.
func TestFaultsOfDescriptors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"one", "two", "three"} {
		write(name+".proto", fmt.Sprintf(`syntax = "proto3"; package %[1]s; import "google/api/annotations.proto"; message R { string id = 1; }
service S { rpc Get(R) returns (R) { option (google.api.http) = {get: %[2]q}; } }`, name, map[string]string{"one": "/a/{id}", "two": "/b/{id}", "three": "/b/{id=*}"}[name]))
	}
	source := func(name string) string { return fmt.Sprintf("- proto: {roots: [%q], files: [%s.proto]}\n", dir, name) }
	all := "descriptors:\n" + source("one") + source("two") + source("three")
	const same = "methods three.S.Get and two.S.Get have the same route, GET /b/{id} "
	wantFaults(t, all, "4: "+same)
	wantFaults(t, "descriptors:\n"+source("three")+source("one")+source("two"), "4: "+same)
	write("bad.proto", `syntax = "proto3"; package bad; import "google/api/annotations.proto"; message R { string id = 1; string fooBar = 2; string foo_bar = 3; }
service S { rpc Get(R) returns (R) { option (google.api.http) = {get: "/c/{id"}; } }`)
	wantFaults(t, "descriptors:\n"+source("one")+source("bad"), "3: ")
	write("template.proto", `syntax = "proto3"; package template; import "google/api/annotations.proto"; message R { string id = 1; }
service S { rpc Get(R) returns (R) { option (google.api.http) = {get: "/c/{id"}; } }`)
	wantFaults(t, "descriptors:\n"+source("one")+source("template")+source("two"), `3: method template.S.Get: google.api.http: path template "/c/{id", column `)
	write("again.proto", `syntax = "proto3"; package one; message R { string id = 1; }`)
	wantFaults(t, "descriptors:\n"+source("one")+source("again"), "3: message one.R is defined by file ")
	wantFaults(t, "descriptors:\n"+source("again")+source("one"), "3: message one.R is defined by file ")
	write("same.yaml", "type: google.api.Service\nhttp: {rules: [{selector: one.S.Get, get: \"/b/{id}\"}]}\n")
	write("rules.yaml", "type: google.api.Service\nhttp: {rules: [{selector: three.S.Get, get: \"/d/{id\"}, {selector: none.S.Get, get: /e}]}\n")
	wantFaults(t, "descriptors:\n"+source("one")+source("two")+fmt.Sprintf("http_rules: {service_config: %q}\n", dir+"/same.yaml"), "4: methods one.S.Get and two.S.Get have the same route, GET /b/{id} ")
	rules := fmt.Sprintf("http_rules: {service_config: %q}\n", dir+"/rules.yaml")
	wantFaults(t, all+rules, "5: HTTP rule 1: the selector \"none.S.Get\" matches no method", "5: method three.S.Get: google.api.http: path template \"/d/{id\", column ")
}

// TestAddressFaults: check let addresses pass that nothing can listen on, or not beside another, and serve did not start.
func TestAddressFaults(t *testing.T) {
	for _, tc := range []struct {
		one, other string
		clash      bool
	}{
		{"127.0.0.1:7582", "127.0.0.1:7582", true},
		{"127.0.0.1:80", "127.0.0.1:http", true},
		{"127.0.0.1:7582", "[::ffff:127.0.0.1]:7582", true},
		{":7582", "127.0.0.1:7582", true},
		{"127.0.0.1:7582", ":7582", true},
		{":7582", "[::]:7582", true},
		{"0.0.0.0:7582", "127.0.0.1:7582", true},
		{"[::1]:7582", "[::]:7582", true},
		{"0.0.0.0:7582", "localhost:7582", true},
		{"localhost:7582", "LOCALHOST:7582", true},
		{"127.0.0.1:7582", "127.0.0.1:7583", false},
		{"127.0.0.1:7582", "127.0.0.2:7582", false},
		{"127.0.0.1:7582", "[::1]:7582", false},
		{"0.0.0.0:7582", "[::]:7582", false},
		{"[::]:7582", "127.0.0.1:7582", false},
		{"[::]:7582", "localhost:7582", true},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{":0", "127.0.0.1:0", false},
	} {
		var want []string
		if tc.clash {
			want = []string{fmt.Sprintf("3: %s cannot be listened on beside %s (see line 2)", tc.other, tc.one)}
		}
		wantFaults(t, fmt.Sprintf("listeners:\n- {address: %q}\n- {address: %q}\n", tc.one, tc.other), want...)
	}
	for listener, want := range map[string]string{"127.0.0.1:7582": "3: 127.0.0.1:7582 cannot", ":7582": "3: 127.0.0.1:7582 cannot", "127.0.0.1:7583": "", "127.0.0.2:7582": ""} {
		text := fmt.Sprintf("listeners:\n- {address: %q}\nadmin: {address: \"127.0.0.1:7582\"}\n", listener)
		if want == "" {
			wantFaults(t, text)
		} else {
			wantFaults(t, text, want)
		}
	}
	wantFaults(t, "listeners:\n- {address: \"*:7582\"}\n- {address: \"unix:/x.sock\"}\n- {address: nonsense}\nadmin: {address: \"127.0.0.1:99999\"}\n",
		`2: "*" is no host; all addresses of the machine are ":7582"`, "3: listeners have TCP addresses, host:port; only admin.address may be a Unix socket", "4: want host:port: ", "5: want host:port: ")
	wantFaults(t, "admin:\n  address: unix:/x.sock\n")
}

// A field that may be in what an Any holds, in the answers of one method, is not passed over because another method has it in the open.
func TestRedactIntoAny(t *testing.T) {
	dir := t.TempDir()
	replace(t, filepath.Join(dir, "notes.proto"), `syntax = "proto3";
package notes.v1;
import "google/protobuf/any.proto";
service Notes {
  rpc Open(Note) returns (Note);
  rpc Sealed(Note) returns (Envelope);
  rpc Many(Note) returns (Envelopes);
}
message Note { Text content = 1; }
message Text { string secret = 1; }
message Envelope { google.protobuf.Any content = 1; }
message Envelopes { map<string, google.protobuf.Any> content = 1; }
`)
	config := func(selector string) string {
		return fmt.Sprintf("policies:\n- selector: %s\n  redact:\n  - fields:\n    - content.secret\ndescriptors: [{proto: {roots: [%q], files: [notes.proto]}}]\n", selector, dir)
	}
	wantFaults(t, config("notes.v1.Notes.*"),
		"5: content.secret: notes.v1.Envelopes.content has a google.protobuf.Any", "5: content.secret: notes.v1.Envelope.content has a google.protobuf.Any")
	wantFaults(t, config("notes.v1.Notes.Open"))
}
