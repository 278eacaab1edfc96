package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
)

// writeConfig writes a configuration of the bank with a plaintext and an admin listener, and what else is given.
func writeConfig(t *testing.T, b *backend, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "transom.yaml")
	process.Replace(t, path, fmt.Appendf(nil, `listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
descriptors: [{file: %s}]
clusters: {bank: {target: "static:///%s"}}
%s`, descriptorSet(t), b.addr, more))
	return path
}

// TestLogReaderGone ends what reads the access log from standard output: calls go on, and lost lines are counted. Once the whole
// process died of it, by SIGPIPE.
func TestLogReaderGone(t *testing.T) {
	config := writeConfig(t, startBank(t, bank.Config{}), "access_log: {file: stdout}\n")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), process.Program(t), "serve", "--config", config)
	cmd.Stdout = w
	p := process.Run(t, 2, cmd)
	_, _ = w.Close(), r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for lost := 0.0; lost == 0; {
		resp, err := http.Get("http://" + p.Plain + "/v1/rates/EUR/USD")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		m, err := p.Metrics(ctx)
		if err != nil {
			t.Fatal(err)
		}
		lost = m["transom_access_log_lines_lost_total"]
	}
	if err := p.Stop(t); err != nil {
		t.Errorf("exit: %v", err)
	}
	if log := p.Log(); strings.Count(log, "lines of the access log are lost") != 1 || !strings.Contains(log, "broken pipe") {
		t.Error("the log does not say once that lines are lost, and why")
	}
}
