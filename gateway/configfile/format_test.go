package configfile_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"transom/gateway/configfile"
)

func TestFormat(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"a comment", "# nothing yet\n", "# nothing yet\n"},
		{"indentation", "listeners:\n    - address:   ':8080'\n      http3:  true\n", "listeners:\n- address: ':8080'\n  http3: true\n"},
		{"brackets", "clusters:   {bank:   {target: \"dns:///bank:1\",\n  warmup: 1s}}\n", "clusters: {bank: {target: \"dns:///bank:1\", warmup: 1s}}\n"},
		{"names", "cacheBytes: 4MiB\nlisteners: [{address: \":1\", altSvcPort: 2}]\n", "cache_bytes: 4MiB\nlisteners: [{address: \":1\", alt_svc_port: 2}]\n"},
		{"values", "clusters: {a: {target: b, transport: TRANSPORT_GRPC_GO}}\n", "clusters: {a: {target: b, transport: grpc_go}}\n"},
		{"one for a list", "policies:\n  selector: bank.v1.*\n", "policies:\n  selector: bank.v1.*\n"},
		{"names of others", "clusters: {httpRules: {target: a}}\nsecurity: {response_headers: {cacheBytes: x}}\n", "clusters: {httpRules: {target: a}}\nsecurity: {response_headers: {cacheBytes: x}}\n"},
		{"what is no field", "polices: []\n", "polices: []\n"},
		{"variables", "admin: {address:  \"${ADMIN}\"}\n", "admin: {address: \"${ADMIN}\"}\n"},
		{
			"comments and empty lines",
			"# The file.\n\n\n# Sockets.\nlisteners:\n\n    # plain\n    - {address: \":1\"}   # for all\n\n    # secure\n    - {address: \":2\"}\n    # - {address: \":3\"}\n\n\nclusters: {}\n# the end",
			"# The file.\n\n# Sockets.\nlisteners:\n\n# plain\n- {address: \":1\"} # for all\n\n# secure\n- {address: \":2\"}\n# - {address: \":3\"}\n\nclusters: {}\n# the end\n",
		},
	} {
		out, err := configfile.Format("x", []byte(tc.in))
		if err != nil || string(out) != tc.want {
			t.Errorf("%s: %v, got\n%s\nwant\n%s", tc.name, err, out, tc.want)
		}
	}
	if _, err := configfile.Format("x", []byte("a: [\n")); err == nil || !strings.HasPrefix(err.Error(), "x:") {
		t.Errorf("what is not YAML: %v", err)
	}
}

// FuzzFormat: what is formatted says the same, and has nothing more to be formatted. The seeds are all configurations of the documents.
func FuzzFormat(f *testing.F) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		f.Fatal(err)
	}
	seeds := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?ms)^ *```yaml\n(.*?)^ *```$").FindAllSubmatch(text, -1) {
			f.Add(string(m[1]))
			seeds++
		}
	}
	if seeds < 40 {
		f.Errorf("%d examples, want more", seeds)
	}
	for _, s := range []string{"a: &x 1\nb: *x\n", "# c\n- a # b\n# d\n", "a:\n  - # x\n    b\n", "? a\n: b\n", "a: |\n  x\n\n  y\n", "{a: 1, # x\n b: 2}\n", "a: !!str 1\n---\nb: 2\n", "%YAML 1.1\n---\na: 1\n", "\"a\": \"\\u2028\"\n"} {
		f.Add(s)
	}
	env := func(string) (string, bool) { return "1s", true }
	var r configfile.Reader
	f.Fuzz(func(t *testing.T, text string) {
		out, err := configfile.Format("x", []byte(text))
		if err != nil {
			return
		}
		again, err := configfile.Format("x", out)
		if err != nil || string(again) != string(out) {
			t.Errorf("%q became\n%s\nand that, %v,\n%s", text, out, err, again)
		}
		was, err1 := r.Parse("x", []byte(text), env)
		is, err2 := r.Parse("x", out, env)
		if (err1 == nil) != (err2 == nil) || err1 == nil && !proto.Equal(was.Config, is.Config) {
			t.Errorf("%q says something else now, %v, %v:\n%s", text, err1, err2, out)
		}
	})
}
