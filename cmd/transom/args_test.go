package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/cmd/transom/demo/bank"
)

// TestArguments: what is wrong with a command line is said, and is an error; nothing of it is passed over. Faults of the command line
// itself, which exit with 2, are told from those of what it names.
func TestArguments(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	set := write("bank.binpb", bank.DescriptorSet())
	cut := write("cut.binpb", bank.DescriptorSet()[:300])
	less := write("less.binpb", without(t, "Rates", "Get"))
	config := write("transom.yaml", []byte("listeners: [{address: \"127.0.0.1:0\"}]\ndescriptors: [{file: "+set+"}]\nclusters: {bank: {target: \"static:///127.0.0.1:1\"}}\n"))
	open := write("open.yaml", []byte("listeners: [{address: \"127.0.0.1:0\"}]\ndescriptors: [{file: "+set+"}]\nclusters: {bank: {target: \"static:///127.0.0.1:1\"}}\nsecurity: {trusted_proxies: [0.0.0.0/0]}\n"))
	broken := write("broken.yaml", []byte("listeners: [{adress: a}]\n"))
	const usage, fault = true, false
	simple := "--upstream 127.0.0.1:1 --descriptors " + set
	for _, tc := range []struct {
		args  string
		usage bool
		want  string // "" if nothing is wrong
	}{
		{"nonsense", usage, `unknown command "nonsense"`},
		{"serv", usage, "did you mean serve?"},
		{"--nope", usage, "unknown flag: --nope"},
		{"help", usage, ""},
		{"help serve", usage, ""},
		{"help completion bash", usage, ""},
		{"help serv", usage, "did you mean serve?"},
		{"help completion tcsh", usage, `unknown command "tcsh"`},
		{"completion", usage, ""},
		{"completion bash", usage, ""},
		{"completion tcsh", usage, `unknown command "tcsh"`},
		{"version", usage, ""},
		{"version x", usage, `unexpected argument "x"`},
		{"demo x", usage, `unexpected argument "x"`},

		{"serve", usage, "--upstream TARGET"},
		{"serve --listen", usage, "flag needs an argument: --listen"},
		{"serve " + simple, usage, "say where to listen"},
		{"serve --listen nonsense " + simple, usage, `listen address "nonsense": want HOST:PORT`},
		{"serve --listen :99999 " + simple, fault, "listeners[0].address: want host:port"},
		{"serve --listen unix:/x.sock " + simple, fault, "listeners[0].address: listeners have TCP addresses, host:port; only admin.address may be a Unix socket"},
		{"serve --listen 127.0.0.1:0 --upstream a:1 --upstream b:1", usage, "more clusters need --config"},
		{"serve --listen-tls :0 " + simple, usage, "--listen-tls needs --tls-cert and --tls-key"},
		{"serve --config " + filepath.Join(dir, "none"), fault, "no such file"},
		{"serve --config " + dir, fault, "is a directory"},
		{"serve --config " + broken, fault, broken + ":1:14: "},

		{"check " + simple, usage, ""},
		{"check --config " + config, usage, ""},
		{"check --upstream file://" + filepath.Join(dir, "none") + " --descriptors " + set, usage, ""},
		{"check --upstream file://" + filepath.Join(dir, "none", "none") + " --descriptors " + set, fault, "no such file"},
		{"check " + simple + " extra", usage, `unexpected argument "extra"`},
		{"check --config " + broken, fault, broken + ":1:14: "},
		{"check --upstream nowhere --descriptors " + set, fault, `clusters[default].target: "nowhere" must be host:port`},
		{"check --upstream 127.0.0.1:1 --descriptors " + cut, fault, "descriptors[0]: descriptor set " + cut + ": file at byte 0"},
		{"check --upstream 127.0.0.1:1 --descriptors " + filepath.Join(dir, "none"), fault, "no such file"},
		{"check --http3 " + simple, usage, "--http3 needs --listen-tls"},
		{"check --tls-cert a " + simple, usage, "--tls-cert needs --listen-tls"},
		{"check --tls-key a " + simple, usage, "--tls-key needs --listen-tls"},
		{"check --warmup -5s " + simple, usage, "--warmup: -5s is not 0s … 1h"},
		{"check --warmup soon " + simple, usage, "--warmup"},
		{"check --max-message-bytes 4294967295 " + simple, usage, "--max-message-bytes: 4294967295 is more"},
		{"check --admin-listen 0.0.0.0:1 " + simple, fault, "is not a loopback address"},
		{"check --against unix:here " + simple, usage, "want host:port or unix:/path"},
		{"check --config " + config + " --http3", usage, "what --http3 says goes into the file"},
		{"check --config " + config + " --warmup 1s", usage, "what --warmup says goes into the file"},
		{"check --config " + config + " --max-message-bytes 1", usage, "what --max-message-bytes says goes into the file"},
		{"check --config " + config + " --tls-cert a", usage, "what --tls-cert says goes into the file"},
		{"check --config " + config + " --listen :1", usage, "what --listen says goes into the file"},

		{"audit " + simple, usage, ""},
		{"audit --config " + config, usage, ""},
		{"audit --config " + broken, fault, broken + ":1:14: "},
		{"audit --config " + open, fault, "there are findings of high severity"},
		{"audit extra", usage, `unexpected argument "extra"`},

		{"routes", usage, "name a descriptor set"},
		{"routes " + set, usage, ""},
		{"routes " + set + " --config " + config, usage, "what --descriptors says goes into the file"},
		{"routes " + cut, fault, "descriptor set " + cut},
		{"diff", usage, "name two descriptor sets"},
		{"diff " + set, usage, "name two descriptor sets"},
		{"diff " + set + " " + set, usage, ""},
		{"diff " + less + " " + set, usage, ""},
		{"diff " + set + " " + less, fault, "2 of 2 changes break clients"},
		{"diff " + set + " " + cut, fault, "descriptor set " + cut},
		{"diff " + filepath.Join(dir, "none") + " " + set, fault, "no such file"},
		{"diff " + set + " " + set + " --service-config " + filepath.Join(dir, "none"), fault, "no such file"},

		{"fmt " + config + " " + filepath.Join(dir, "none"), fault, "no such file"},
		{"fmt " + cut, fault, cut + ":"},
		{"fmt --check " + config, usage, ""},
		{"fmt --check ../../deploy/transom.yaml ../../deploy/compose/transom.yaml", usage, ""},

		{"schema x", usage, `unexpected argument "x"`},
		{"schema", usage, ""},

		{"explain " + simple, usage, "name one method"},
		{"explain a b " + simple, usage, "name one method"},
		{"explain bank.v1.Accounts.Nope " + simple, fault, "there is no method bank.v1.Accounts.Nope"},
		{"explain bank.v1.Accounts " + simple, fault, "bank.v1.Accounts is a service; name one of its methods: Balance, "},
		{"explain /bank.v1.Accounts " + simple, fault, "bank.v1.Accounts is a service; "},
		{"explain bank.v1.Accounts.* " + simple, fault, "bank.v1.Accounts is a service; "},
		{"explain bank.v1.* " + simple, fault, "bank.v1 is a package; name a method of one of its services: bank.v1.Accounts, "},
		{"explain bank " + simple, fault, "bank is a package; "},
		{"explain bank.v " + simple, fault, "there is no method bank.v; did you mean bank.v1?"},

		{"status --admin=", usage, `admin listener "": want host:port or unix:/path`},
		{"status --admin nonsense", usage, `admin listener "nonsense": want host:port or unix:/path`},
		{"status --admin unix:here", usage, `admin listener "unix:here": want host:port or unix:/path`},
		{"status --admin 127.0.0.1:1", fault, "no answer: "},
		{"status --admin 127.0.0.1:1 --admin-token-file " + filepath.Join(dir, "none"), fault, "no such file"},
		{"healthcheck --admin 127.0.0.1:1", fault, "no answer: "},
		{"clusters extra", usage, `unexpected argument "extra"`},
		{"usage --previous=maybe", usage, "--previous"},
		{"purge --method", usage, "flag needs an argument: --method"},
		{"log-level info warn", usage, `unexpected argument "warn"`},
	} {
		cmd := command()
		cmd.SetArgs(strings.Fields(tc.args))
		cmd.SetOut(io.Discard)
		cmd.SetErr(new(bytes.Buffer))
		err := cmd.ExecuteContext(t.Context())
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("transom %s: %v", tc.args, err)
		case tc.want == "":
		case err == nil || !strings.Contains(err.Error(), tc.want):
			t.Errorf("transom %s: %v, want %s", tc.args, err, tc.want)
		case errors.As(err, new(usageError)) != tc.usage:
			t.Errorf("transom %s: %v; a fault of the command line: %v, want %v", tc.args, err, !tc.usage, tc.usage)
		}
	}
}

// without is the bank's descriptor set without a method.
func without(t *testing.T, service, method string) []byte {
	t.Helper()
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(bank.DescriptorSet(), &set); err != nil {
		t.Fatal(err)
	}
	for _, f := range set.GetFile() {
		for _, s := range f.GetService() {
			if f.GetPackage() == "bank.v1" && s.GetName() == service {
				s.Method = slices.DeleteFunc(s.GetMethod(), func(m *descriptorpb.MethodDescriptorProto) bool { return m.GetName() == method })
			}
		}
	}
	b, err := proto.Marshal(&set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDiff: what changes for clients is said, and what breaks them goes first.
func TestDiff(t *testing.T) {
	dir := t.TempDir()
	set, less := filepath.Join(dir, "bank.binpb"), filepath.Join(dir, "less.binpb")
	for path, b := range map[string][]byte{set: bank.DescriptorSet(), less: without(t, "Rates", "Get")} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ old, new, want string }{
		{set, set, "ok; 0 changes, none of which breaks clients\n"},
		{set, less, "breaking: method bank.v1.Rates.Get is removed\nbreaking: route GET /v1/rates/{base}/{quote} of bank.v1.Rates.Get is removed\n"},
		{less, set, "method bank.v1.Rates.Get is added\nroute GET /v1/rates/{base}/{quote} of bank.v1.Rates.Get is added\nok; 2 changes, none of which breaks clients\n"},
	} {
		var out bytes.Buffer
		cmd := command()
		cmd.SetArgs([]string{"diff", tc.old, tc.new})
		cmd.SetOut(&out)
		if err := cmd.ExecuteContext(t.Context()); (err != nil) != strings.HasPrefix(tc.want, "breaking") || out.String() != tc.want {
			t.Errorf("%q, %v; want %q", out.String(), err, tc.want)
		}
	}
}

// TestFmt: --check names what is not in canonical form and changes nothing; without it the file is replaced, and keeps its mode; what
// a symbolic link leads to is, and not the link.
func TestFmt(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "transom.yaml"), filepath.Join(dir, "link.yaml")
	const odd, canonical = "listeners:\n    - address: \":1\"   # plain\n", "listeners:\n- address: \":1\" # plain\n"
	if err := os.WriteFile(path, []byte(odd), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	run := func(in string, args ...string) (string, error) {
		var out bytes.Buffer
		cmd := command()
		cmd.SetArgs(append([]string{"fmt"}, args...))
		cmd.SetIn(strings.NewReader(in))
		cmd.SetOut(&out)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	holds := func(want string) {
		t.Helper()
		b, err := os.ReadFile(path)
		info, statErr := os.Stat(path)
		if err != nil || statErr != nil || string(b) != want || info.Mode() != 0o640 {
			t.Errorf("the file is %q, %v, %v", b, err, info)
		}
	}
	if out, err := run("", "--check", path); !errors.Is(err, errNotFormatted) || out != path+"\n" {
		t.Errorf("--check: %q, %v", out, err)
	}
	holds(odd)
	if out, err := run("", link); err != nil || out != link+"\n" {
		t.Errorf("%q, %v", out, err)
	}
	holds(canonical)
	if out, err := run("", "--check", path, link); err != nil || out != "" {
		t.Errorf("--check of what was formatted: %q, %v", out, err)
	}
	if out, err := run(odd); err != nil || out != canonical {
		t.Errorf("standard input: %q, %v", out, err)
	}
	if out, err := run(odd, "--check"); !errors.Is(err, errNotFormatted) || out != "" {
		t.Errorf("--check of standard input: %q, %v", out, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
