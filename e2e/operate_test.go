package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

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

// TestConnectionsByVersion keeps a connection of each HTTP version and a WebSocket open, and counts them.
func TestConnectionsByVersion(t *testing.T) {
	b, a := startBank(t, bank.Config{}), process.NewAuthority(t)
	cert, config := certificate(t, a), filepath.Join(t.TempDir(), "transom.yaml")
	process.Replace(t, config, fmt.Appendf(nil, `
listeners:
  - {address: "127.0.0.1:0", name: plain}
  - {address: "127.0.0.1:0", name: secure, tls: {certificate: %s, key: %s}, http3: true}
admin: {address: "127.0.0.1:0"}
descriptors: [{file: %s}]
clusters: {bank: {target: "static:///%s"}}
`, cert, cert, descriptorSet(t), b.addr))
	p := &proxy{process.Start(t, 3, "serve", "--config", config), a.File, a.Pool}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for version := range versions {
		c, base := client(t, p, version)
		resp, err := c.Get(base + "/v1/rates/EUR/USD")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	ws, _, err := websocket.Dial(ctx, "ws://"+p.Plain+"/v1/support/chat", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	text, err := p.Get(ctx, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`transom_connections{listener="plain",network_protocol_version="1.1"} 2`, // one of them the WebSocket
		`transom_connections{listener="plain",network_protocol_version="2"} 1`,
		`transom_connections{listener="secure",network_protocol_version="1.1"} 0`,
		`transom_connections{listener="secure",network_protocol_version="2"} 1`,
		`transom_connections{listener="secure",network_protocol_version="3"} 1`,
		`transom_websocket_connections{listener="plain"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		for line := range strings.Lines(text) {
			if strings.Contains(line, "_connections{") {
				t.Log(line)
			}
		}
	}
}

// TestNoAnswer asks a transom that is not there.
func TestNoAnswer(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:1":    "transom at 127.0.0.1:1: no answer: dial tcp 127.0.0.1:1: connect: connection refused\n",
		"unix:/no/where": "transom at unix:/no/where: no answer: dial unix /no/where: connect: no such file or directory\n",
	} {
		cmd := exec.CommandContext(t.Context(), process.Program(t), "status", "--admin", address)
		out, err := cmd.CombinedOutput()
		if err == nil || string(out) != want {
			t.Errorf("%v: %s, want %s", err, out, want)
		}
	}
}

// TestStopWithBlockedLog stops a transom whose access log nobody reads any more: it ends all the same, in a few seconds.
func TestStopWithBlockedLog(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(pipe, os.O_RDWR, 0) // open, and never read
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Write(make([]byte, 64<<10)); err != nil { // what a pipe has room for
		t.Fatal(err)
	}
	p := process.Start(t, 2, "serve", "--config", writeConfig(t, startBank(t, bank.Config{}), "access_log: {file: "+pipe+"}\ndrain: {timeout: 1s}\n"))
	for range 3 {
		resp, err := http.Get("http://" + p.Plain + "/v1/rates/EUR/USD")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	begin := time.Now()
	if err := p.Stop(t); err != nil {
		t.Errorf("exit: %v", err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("the end took %v", took)
	}
	if !strings.Contains(p.Log(), "the last lines are lost") {
		t.Error("the log does not say that lines are lost")
	}
}

// TestAccessLogOfStreams opens streams through a trusted proxy: each has a line when it begins and one when it ends, with one request id
// and the client's address, which a request without a method has too.
func TestAccessLogOfStreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	p := process.Start(t, 2, "serve", "--config", writeConfig(t, startBank(t, bank.Config{}), fmt.Sprintf(
		"access_log: {file: %s, stream_starts: true}\nsecurity: {request_id: {}, trusted_proxies: [127.0.0.1]}\n", path)))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// lines waits until there are n.
	lines := func(n int) (all []map[string]any) {
		t.Helper()
		for len(all) < n {
			if ctx.Err() != nil {
				t.Fatalf("%d lines, want %d: %v", len(all), n, all)
			}
			all = nil
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				var fields map[string]any
				if json.Unmarshal([]byte(line), &fields) == nil {
					all = append(all, fields)
				}
			}
		}
		return all
	}
	from := http.Header{"X-Forwarded-For": {"198.51.100.9"}}
	ws, _, err := websocket.Dial(ctx, "ws://"+p.Plain+"/v1/support/chat", &websocket.DialOptions{HTTPHeader: from})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	begun := lines(1)[0]
	if begun["event"] != "start" || begun["rpc.method"] != "bank.v1.Support/Chat" || begun["request_id"] == nil || begun["duration_ms"] != nil {
		t.Errorf("the line of a stream that begins: %v", begun)
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
	ended := lines(2)[1]
	if ended["event"] != nil || ended["request_id"] != begun["request_id"] || ended["duration_ms"] == nil {
		t.Errorf("the line of a stream that has ended: %v", ended)
	}
	curl(t, "-H", "X-Forwarded-For: 198.51.100.9", "http://"+p.Plain+"/nowhere")
	curl(t, "-H", "X-Forwarded-For: 198.51.100.9", "http://"+p.Plain+"/v1/rates/EUR/USD")
	for _, line := range lines(4) {
		if line["client.address"] != "198.51.100.9" || line["network.peer.address"] != "127.0.0.1" {
			t.Errorf("client and peer of %v", line)
		}
	}
}

// TestLogLevel turns the log of a running transom up.
func TestLogLevel(t *testing.T) {
	p := process.Start(t, 2, "serve", "--config", writeConfig(t, startBank(t, bank.Config{}), ""))
	for _, tc := range []struct {
		args []string
		want string
		ok   bool
	}{
		{nil, "info\n", true},
		{[]string{"debug"}, "debug\n", true},
		{nil, "debug\n", true},
		{[]string{"loud"}, `"loud"`, false},
		{[]string{"info", "warn"}, `unexpected argument "warn"`, false},
	} {
		cmd := exec.CommandContext(t.Context(), process.Program(t), append([]string{"log-level", "--admin", p.Admin}, tc.args...)...)
		out, err := cmd.CombinedOutput()
		if (err == nil) != tc.ok || !strings.Contains(string(out), tc.want) {
			t.Errorf("log-level %q: %v, %s", tc.args, err, out)
		}
	}
}
