package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
)

// TestAgainst compares a configuration with a running transom's, and purges its cache.
func TestAgainst(t *testing.T) {
	b := startBank(t, bank.Config{})
	dir := t.TempDir()
	config, set := filepath.Join(dir, "transom.yaml"), descriptorSet(t)
	write := func(path, timeout, more string) {
		process.Replace(t, path, fmt.Appendf(nil, `listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
descriptors: [{file: %s}]
clusters: {bank: {target: "static:///%s"}}
policies:
  - {selector: "*", timeout: %s}
  - {selector: bank.v1.Rates.Get, cache: {ttl: 1h}}
%s`, set, b.addr, timeout, more))
	}
	write(config, "10s", "")
	p := process.Start(t, 2, "serve", "--config", config)
	check := func(path string) (string, bool) {
		t.Helper()
		out, err := exec.Command(process.Program(t), "check", "--config", path, "--against", p.Admin).CombinedOutput()
		return string(out), err == nil
	}
	if out, ok := check(config); !ok || !strings.HasPrefix(out, "ok; 0 differences") {
		t.Errorf("against itself: %s", out)
	}
	other := filepath.Join(dir, "other.yaml")
	write(other, "5s", "access_log: {file: stdout}\n")
	out, ok := check(other)
	for _, want := range []string{"ok; 2 differences", "configuration: access_log: new: {\"file\":\"stdout\"}\n", "configuration: policies[0].timeout: \"10s\" → \"5s\"\n"} {
		if !ok || !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	// Without the schema of the bank its routes are gone.
	less := func(more string) {
		process.Replace(t, other, fmt.Appendf(nil, `listeners: [{address: "127.0.0.1:0"}]
clusters: {bank: {target: "static:///%s"}}
unknown_methods: {cluster: bank}
%s`, b.addr, more))
	}
	less("")
	if out, ok = check(other); !ok || !strings.Contains(out, "schema: breaking: route GET /v1/rates/{base}/{quote} of bank.v1.Rates.Get is removed\n") {
		t.Errorf("no word of a route that goes: %s", out)
	}
	less("reload: {refuse_breaking: true}\n")
	if out, ok = check(other); ok || !strings.Contains(out, "a reload would be refused") {
		t.Errorf("a change that is refused passes the check: %s", out)
	}
	process.Replace(t, other, []byte("listeners: [{address: nowhere}]\n"))
	if out, ok = check(other); ok || !strings.Contains(out, other+":") {
		t.Errorf("a fault without its place: %s", out)
	}

	purge := func(body string) (int, string) {
		code, _, answer := curl(t, "-d", body, "-H", "Content-Type: application/json", "http://"+p.Admin+"/v1/cache:purge")
		return code, compact(answer)
	}
	get := func() string {
		_, header, _ := curl(t, "http://"+p.Plain+"/v1/rates/EUR/USD")
		return header
	}
	get()
	if h := get(); !strings.Contains(strings.ToLower(h), "cache-status: transom; hit") {
		t.Errorf("the answer is not cached: %s", h)
	}
	if code, answer := purge(`{"method": "bank.v1.Rates.Gett"}`); code != 404 {
		t.Errorf("purging a method that is not there: %d %s", code, answer)
	}
	if code, answer := purge(`{"method": "bank.v1.Rates.Get", "consumer": "somebody"}`); code != 200 || answer != `{}` {
		t.Errorf("purging what another has: %d %s", code, answer)
	}
	if code, answer := purge(`{"method": "bank.v1.Rates.Get"}`); code != 200 || answer != `{"purged":1}` {
		t.Errorf("purging: %d %s", code, answer)
	}
	if h := get(); strings.Contains(h, "; hit") {
		t.Errorf("what was purged is given: %s", h)
	}
	m, err := p.Metrics(t.Context())
	if err != nil || m["transom_policy_decisions_total"] < 3 || m["transom_transcoding_seconds_total"] <= 0 {
		t.Errorf("%v; decisions %v, transcoding %v s", err, m["transom_policy_decisions_total"], m["transom_transcoding_seconds_total"])
	}
}
