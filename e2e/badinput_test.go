package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

// startInProcess runs a gateway in this process, so that goleak sees what it leaves behind.
func startInProcess(t *testing.T, upstream string) string {
	t.Helper()
	set := filepath.Join(t.TempDir(), "bank.binpb")
	if err := os.WriteFile(set, bank.DescriptorSet(), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := &configv1.Config{
		Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0"}},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: set}}},
		Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///" + upstream}},
		Policies:    []*configv1.Policy{{Selector: []string{"*"}, MessageBytes: 64 << 10}},
	}
	g, err := gateway.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	return g.Addrs()[0].String()
}

func frame(flags byte, payload string) string {
	b := binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(payload)))
	return string(b) + payload
}

// TestBadInput throws what clients should not send at a gateway. Each gets the right status and a message that names what
// is wrong; the gateway goes on serving, and nothing is left running.
func TestBadInput(t *testing.T) {
	b := startBank(t, bank.Config{})
	addr := startInProcess(t, b.addr)
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(true)
	tr2 := &http.Transport{Protocols: new(http.Protocols)}
	tr2.Protocols.SetUnencryptedHTTP2(true)
	defer tr2.CloseIdleConnections()
	defer tr.CloseIdleConnections()
	const acc = "/v1/customers/3/accounts/1"
	const echo = "/v1/diagnostics/echo"
	deep := strings.Repeat(`{"nested":`, 200) + "{}" + strings.Repeat("}", 200)
	for _, tc := range []struct {
		name   string
		h2     bool
		verb   string
		path   string
		header string // "Name: value" lines
		body   string
		code   int
		want   string // in the body, or for gRPC in the grpc-message
		plain  bool   // refused by net/http itself
	}{
		// Paths.
		{name: "unknown path", verb: "GET", path: "/v2/x", code: 404, want: "no route"},
		{name: "wrong verb", verb: "PATCH", path: acc + "/balance", code: 405, want: "GET"},
		{name: "bad escape", verb: "GET", path: "/v1/accounts/%zz", code: 400, plain: true},
		{name: "cut escape", verb: "GET", path: "/v1/accounts/a%2", code: 400, plain: true},
		{name: "invalid UTF-8 in a path value", verb: "GET", path: "/v1/accounts/%FF", code: 400, want: "UTF-8"},
		{name: "empty segment", verb: "GET", path: "/v1//accounts", code: 404},
		{name: "dot segments", verb: "GET", path: "/v1/customers/3/accounts/../../rates", code: 404},
		{name: "trailing slash", verb: "GET", path: acc + "/", code: 404},
		{name: "unknown verb in the path", verb: "POST", path: acc + ":explode", body: "{}", code: 405},
		{name: "long path", verb: "GET", path: "/v1/" + strings.Repeat("a/", 3000), code: 404},
		{name: "NUL in a path value", verb: "GET", path: "/v1/accounts/%00", code: 400, want: "name"},
		// Query.
		{name: "unknown parameter", verb: "GET", path: acc + "?colour=red", code: 400, want: "colour"},
		{name: "path field again in the query", verb: "GET", path: acc + "?name=customers/1/accounts/1", code: 400, want: "name"},
		{name: "not a number", verb: "GET", path: "/v1/accounts?page_size=ten", code: 400, want: "page_size"},
		{name: "number too large", verb: "GET", path: "/v1/accounts?page_size=99999999999", code: 400, want: "page_size"},
		{name: "singular twice", verb: "GET", path: "/v1/accounts?page_size=1&page_size=2", code: 400, want: "page_size"},
		{name: "bad escape in the query", verb: "GET", path: "/v1/accounts?page_size=%zz", code: 400},
		{name: "semicolon", verb: "GET", path: "/v1/accounts?page_size=1;page_token=a", code: 400},
		{name: "bool spelt otherwise", verb: "GET", path: echo + "?flag=yes", code: 400, want: "flag"},
		{name: "enum name unknown", verb: "GET", path: echo + "?kind=KIND_X", code: 400, want: "kind"},
		{name: "bytes not base64", verb: "GET", path: echo + "?data=***", code: 400, want: "data"},
		{name: "Go duration", verb: "GET", path: "/v1/diagnostics/slow?delay=1h2m", code: 400, want: "delay"},
		{name: "query beside a whole body", verb: "POST", path: acc + ":transfer?reference=x", body: "{}", code: 400, want: "reference"},
		{name: "message in the query", verb: "GET", path: echo + "?nested=x", code: 400, want: "nested"},
		// JSON bodies.
		{name: "no JSON", verb: "POST", path: echo, body: "hello", code: 400},
		{name: "cut JSON", verb: "POST", path: echo, body: `{"text":"a`, code: 400},
		{name: "array for a message", verb: "POST", path: echo, body: `[]`, code: 400},
		{name: "null for a message", verb: "POST", path: echo, body: `null`, code: 400},
		{name: "two values", verb: "POST", path: echo, body: `{} {}`, code: 400},
		{name: "trailing comma", verb: "POST", path: echo, body: `{"text":"a",}`, code: 400},
		{name: "comment", verb: "POST", path: echo, body: `{/**/}`, code: 400},
		{name: "single quotes", verb: "POST", path: echo, body: `{'text':'a'}`, code: 400},
		{name: "byte order mark", verb: "POST", path: echo, body: "\xef\xbb\xbf{}", code: 400},
		{name: "unknown field", verb: "POST", path: echo, body: `{"nested":{"color":1}}`, code: 400, want: "color"},
		{name: "duplicate key", verb: "POST", path: echo, body: `{"text":"a","text":"b"}`, code: 400, want: "text"},
		{name: "string for an int", verb: "POST", path: echo, body: `{"int32":"x"}`, code: 400, want: "int32"},
		{name: "int overflow", verb: "POST", path: echo, body: `{"int32":2147483648}`, code: 400, want: "int32"},
		{name: "fraction for an int", verb: "POST", path: echo, body: `{"int64":1.5}`, code: 400, want: "int64"},
		{name: "negative for unsigned", verb: "POST", path: echo, body: `{"uint32":-1}`, code: 400, want: "uint32"},
		{name: "float overflow", verb: "POST", path: echo, body: `{"float":3.5e38}`, code: 400, want: "float"},
		{name: "lone surrogate", verb: "POST", path: echo, body: `{"text":"\ud800"}`, code: 400, want: "text"},
		{name: "control character", verb: "POST", path: echo, body: "{\"text\":\"a\x01\"}", code: 400, want: "text"},
		{name: "invalid UTF-8", verb: "POST", path: echo, body: "{\"text\":\"\xff\"}", code: 400, want: "text"},
		{name: "bad base64", verb: "POST", path: echo, body: `{"data":"a*"}`, code: 400, want: "data"},
		{name: "null in a list", verb: "POST", path: echo, body: `{"texts":[null]}`, code: 400, want: "texts"},
		{name: "nested path in the message", verb: "POST", path: echo, body: `{"list":[{},{"nested":{"int32":true}}]}`, code: 400, want: "list[1].nested.int32"},
		{name: "too deep", verb: "POST", path: echo, body: deep, code: 400, want: "deep"},
		{name: "twenty thousand brackets", verb: "POST", path: echo, body: strings.Repeat("[", 20000), code: 400},
		{name: "path field in the body", verb: "PATCH", path: acc, body: `{"name":"customers/1/accounts/1","displayName":"x"}`, code: 200, want: `"name":"customers/3/accounts/1"`},
		// Content.
		{name: "text body", verb: "POST", path: echo, header: "Content-Type: text/plain", body: "{}", code: 415},
		{name: "XML body", verb: "POST", path: echo, header: "Content-Type: application/xml", body: "<a/>", code: 415},
		{name: "UTF-16", verb: "POST", path: echo, header: "Content-Type: application/json; charset=utf-16", body: "{}", code: 415, want: "utf-16"},
		{name: "unknown coding", verb: "POST", path: echo, header: "Content-Encoding: lzma", body: "{}", code: 415, want: "lzma"},
		{name: "no gzip", verb: "POST", path: echo, header: "Content-Encoding: gzip", body: "{}", code: 400, want: "gzip"},
		{name: "too large", verb: "POST", path: echo, body: `{"text":"` + strings.Repeat("x", 70<<10) + `"}`, code: 413, want: "65536"},
		{name: "bad timeout", verb: "GET", path: acc, header: "Grpc-Timeout: soon", code: 400, want: "soon"},
		{name: "timeout with nine digits", verb: "GET", path: acc, header: "Grpc-Timeout: 123456789S", code: 400},
		{name: "zero timeout", verb: "GET", path: acc, header: "Grpc-Timeout: 0n", code: 504},
		{name: "bad binary metadata", verb: "GET", path: acc, header: "Grpc-Metadata-Key-Bin: ***", code: 400, want: "key-bin"},
		{name: "large header", verb: "GET", path: acc, header: "X-Large: " + strings.Repeat("x", 64<<10), code: 431},
		{name: "stream of nonsense", verb: "POST", path: "/v1/accounts:deposit", body: "{}\nnonsense", code: 400},
		{name: "open array", verb: "POST", path: "/v1/accounts:deposit", body: `[{"name":"customers/1/accounts/1","amount":{"currency":"EUR"}}`, code: 400, want: "array"},
		// gRPC. The status is in the grpc-status header or trailer, as "grpc N".
		{name: "gRPC over HTTP/1.1", verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", body: frame(0, ""), code: 505},
		{name: "gRPC by GET", h2: true, verb: "GET", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", code: 405},
		{name: "gRPC unknown method", h2: true, verb: "POST", path: "/bank.v1.Accounts/Got", header: "Content-Type: application/grpc", body: frame(0, ""), code: 200, want: "grpc 12"},
		{name: "gRPC unknown encoding", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc\nGrpc-Encoding: lzma", body: frame(1, "x"), code: 200, want: "grpc 12"},
		{name: "gRPC compressed flag without encoding", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", body: frame(1, "x"), code: 200, want: "grpc 13"},
		{name: "gRPC undefined flag", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", body: frame(6, "x"), code: 200, want: "grpc 13"},
		{name: "gRPC cut frame", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", body: frame(0, "0123456789")[:9], code: 200, want: "grpc 13"},
		{name: "gRPC cut frame header", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", body: "\x00\x00", code: 200, want: "grpc 13"},
		{name: "gRPC no message", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", code: 200, want: "grpc 12"},
		{name: "gRPC two messages", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", body: frame(0, "") + frame(0, ""), code: 200, want: "grpc 12"},
		{name: "gRPC message over the limit", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc", body: "\x00\xff\xff\xff\xff", code: 200, want: "grpc 8"},
		{name: "gRPC bad timeout", h2: true, verb: "POST", path: "/bank.v1.Accounts/Get", header: "Content-Type: application/grpc\nGrpc-Timeout: x", body: frame(0, ""), code: 200, want: "grpc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var body io.Reader
			if tc.body != "" || tc.verb == http.MethodPost {
				body = strings.NewReader(tc.body)
			}
			req, err := http.NewRequestWithContext(ctx, tc.verb, "http://"+addr, body)
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Opaque = "//" + addr + tc.path // as it is, valid or not
			if tc.body != "" {
				req.Header.Set("Content-Type", "application/json")
			}
			for line := range strings.SplitSeq(tc.header, "\n") {
				if k, v, ok := strings.Cut(line, ": "); ok {
					req.Header.Set(k, v)
				}
			}
			var rt http.RoundTripper = tr
			if tc.h2 {
				rt = tr2
			}
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			text := string(got)
			for _, h := range []http.Header{resp.Header, resp.Trailer} {
				if s := h.Get("Grpc-Status"); s != "" {
					text += "grpc " + s + " " + h.Get("Grpc-Message")
				}
			}
			if resp.StatusCode != tc.code || !strings.Contains(text, tc.want) {
				t.Errorf("%d %s, want %d and %q", resp.StatusCode, text, tc.code, tc.want)
			}
			if strings.Contains(text, ".go:") || strings.Contains(text, b.addr) || strings.Contains(text, "proto:") {
				t.Errorf("the answer shows internals: %s", text)
			}
			if resp.StatusCode >= 400 && resp.StatusCode != 431 && resp.StatusCode != 505 && !tc.h2 && !tc.plain && !bytes.Contains(got, []byte(`"code":`)) {
				t.Errorf("the error has another shape: %s", got)
			}
		})
	}
	t.Run("WebSocket", func(t *testing.T) { badSockets(t, addr) })
	resp, err := http.Get("http://" + addr + acc)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("afterwards: %v %v", resp, err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
}

// badSockets opens WebSockets that should not be, and sends on others what they should not.
func badSockets(t *testing.T, addr string) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, tc := range []struct {
		path, origin string
		code         int
	}{
		{path: "/nowhere", origin: "http://" + addr, code: 404},
		{path: "/v1/support/chat", origin: "https://evil.example", code: 403},
		{path: "/v1/customers/1/accounts/1/transactions:watch?nope=1", origin: "http://" + addr, code: 400},
		{path: "/v1/accounts?pageSize=many", origin: "http://" + addr, code: 400},
	} {
		_, resp, err := websocket.Dial(ctx, "ws://"+addr+tc.path, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {tc.origin}}})
		if err == nil || resp == nil || resp.StatusCode != tc.code {
			t.Errorf("%s from %q: %v %v, want %d", tc.path, tc.origin, resp, err, tc.code)
		}
	}
	for _, tc := range []struct {
		name, path string
		typ        websocket.MessageType
		data       string
		code       websocket.StatusCode
		reason     string
	}{
		{"no JSON", "/v1/support/chat", websocket.MessageText, "hello", 4003, ""},
		{"unknown field", "/v1/support/chat", websocket.MessageText, `{"colour":1}`, 4003, "colour"},
		{"no protobuf", "/bank.v1.Accounts/Get", websocket.MessageBinary, "\xff\xff\xff", 4000, ""},
		{"unary without a message", "/bank.v1.Accounts/Get", websocket.MessageText, "", 4012, ""},
	} {
		c, _, err := websocket.Dial(ctx, "ws://"+addr+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Write(ctx, tc.typ, []byte(tc.data)); err != nil {
			t.Fatal(err)
		}
		_, _, err = c.Read(ctx)
		got := websocket.CloseStatus(err)
		if tc.code == 4000 && got > 4000 {
			got = 4000 // the backend says which
		}
		if got != tc.code || !strings.Contains(err.Error(), tc.reason) {
			t.Errorf("%s: %v, want close %d %q", tc.name, err, tc.code, tc.reason)
		}
		c.CloseNow()
	}
}

// TestNotTLS speaks plaintext to a TLS port and nonsense to both; the process goes on.
func TestNotTLS(t *testing.T) {
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	for _, addr := range []string{p.Plain, p.Secure} {
		for _, say := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x00\x05hello", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff", "\r\n\r\n\r\n"} {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(c, say)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}
	c, err := tls.Dial("tcp", p.Secure, &tls.Config{RootCAs: p.pool, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
	if err == nil {
		c.Close()
		t.Error("TLS 1.1 is accepted")
	}
	if code, _, _ := curl(t, "--cacert", p.ca, "https://"+p.Secure+"/healthz"); code != 200 {
		t.Errorf("afterwards: %d", code)
	}
}

// TestBadFiles starts transom with descriptor sets and configurations that are not sound: exit code 1, or 2 for the
// command line, and a message that names file, line or field.
func TestBadFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.binpb", string(bank.DescriptorSet()))
	rest := "descriptors: [{file: " + good + "}]\nclusters: {a: {target: \"a:1\"}}\n"
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"set missing", []string{"--descriptors", dir + "/none", "--upstream", "a:1", "--listen", "127.0.0.1:0"}, 1, "none"},
		{"set cut", []string{"--descriptors", write("cut.binpb", string(bank.DescriptorSet()[:1000])), "--upstream", "a:1", "--listen", "127.0.0.1:0"}, 1, "cut.binpb"},
		{"set empty", []string{"--descriptors", write("empty.binpb", ""), "--upstream", "a:1", "--listen", "127.0.0.1:0"}, 1, "empty.binpb"},
		{"set is source", []string{"--descriptors", write("x.proto", `syntax = "proto3";`), "--upstream", "a:1", "--listen", "127.0.0.1:0"}, 1, "x.proto"},
		{"no upstream", []string{"--descriptors", good, "--listen", "127.0.0.1:0"}, 2, "--upstream"},
		{"bad target", []string{"--descriptors", good, "--upstream", "ftp:///x", "--listen", "127.0.0.1:0"}, 1, "target"},
		{"bad address", []string{"--descriptors", good, "--upstream", "a:1", "--listen", "nonsense"}, 2, "nonsense"},
		{"no certificate", []string{"--descriptors", good, "--upstream", "a:1", "--listen-tls", "127.0.0.1:0"}, 2, "--tls-cert"},
		{"http3 without TLS", []string{"--descriptors", good, "--upstream", "a:1", "--listen", "127.0.0.1:0", "--http3"}, 2, "--listen-tls"},
		{"unknown flag", []string{"--colour"}, 2, "colour"},
		{"unexpected argument", []string{"--upstream", "a:1", "bank.binpb"}, 2, "bank.binpb"},
		{"config missing", []string{"--config", dir + "/none.yaml"}, 1, "none.yaml"},
		{"config no YAML", []string{"--config", write("a.yaml", "listeners: [")}, 1, "a.yaml:1:"},
		{"config unknown field", []string{"--config", write("b.yaml", "listeners:\n  - {address: \":0\", colour: red}\nclusters: {a: {target: \"a:1\"}}\n")}, 1, "b.yaml:2:"},
		{"config bad duration", []string{"--config", write("c.yaml", "listeners:\n  - address: \":0\"\nclusters: {a: {target: \"a:1\"}}\ndrain:\n  timeout: soon\n")}, 1, "c.yaml:5:"},
		{"config unknown cluster", []string{"--config", write("d.yaml", "listeners:\n  - address: \":0\"\ndescriptors:\n  - file: "+good+"\nclusters: {a: {target: \"a:1\"}}\npolicies:\n  - selector: \"*\"\n    cluster: b\n")}, 1, "d.yaml:8:"},
		{"config dead selector", []string{"--config", write("e.yaml", "listeners:\n  - address: \":0\"\ndescriptors:\n  - file: "+good+"\nclusters: {a: {target: \"a:1\"}}\npolicies:\n  - selector: bank.v1.Acounts.*\n    timeout: 1s\n")}, 1, "bank.v1.Accounts"},
		{"config address", []string{"--config", write("g.yaml", "listeners:\n  - {address: \"127.0.0.1:99999\"}\n"+rest)}, 1, "g.yaml:2:15:"},
		{"config no port", []string{"--config", write("h.yaml", "listeners:\n  - {address: nonsense}\n"+rest)}, 1, "h.yaml:2:15:"},
		{"config address twice", []string{"--config", write("i.yaml", "listeners:\n  - {address: \"127.0.0.1:1\"}\n  - {address: \"127.0.0.1:1\"}\n"+rest)}, 1, "i.yaml:3:15:"},
		{"config admin open to all", []string{"--config", write("j.yaml", "listeners:\n  - {address: \":0\"}\nadmin: {address: \"0.0.0.0:1\"}\n"+rest)}, 1, "j.yaml:3:18:"},
		{"config admin without its token", []string{"--config", write("k.yaml", "listeners:\n  - {address: \":0\"}\nadmin: {address: \":1\", token_file: /nowhere}\n"+rest)}, 1, "k.yaml:3:36:"},
		{"config target", []string{"--config", write("l.yaml", "listeners:\n  - {address: \":0\"}\nclusters:\n  a:\n    target: a\n")}, 1, "l.yaml:5:13:"},
		{"config balancing policy", []string{"--config", write("m.yaml", "listeners:\n  - {address: \":0\"}\nclusters:\n  a:\n    target: a:1\n    lb: {policy: fastest}\n")}, 1, "m.yaml:6:18:"},
		{"config service config", []string{"--config", write("n.yaml", "listeners:\n  - {address: \":0\"}\nclusters:\n  a:\n    target: a:1\n    service_config: '{}x'\n")}, 1, "n.yaml:6:21:"},
		{"config two of one rank", []string{"--config", write("f.yaml", "listeners:\n  - address: \":0\"\ndescriptors:\n  - file: "+good+"\nclusters: {a: {target: \"a:1\"}}\npolicies:\n  - {selector: bank.v1.*, timeout: 1s}\n  - {selector: bank.v1.*, timeout: 2s}\n")}, 1, "timeout"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, process.Program(t), append([]string{"serve"}, tc.args...)...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != tc.code || !strings.Contains(stderr.String(), tc.want) {
				t.Errorf("exit code %d, want %d; said %q, want %q in it", code, tc.code, stderr.String(), tc.want)
			}
			if !slices.Contains(tc.args, "--config") {
				return
			}
			said, _ := exec.CommandContext(ctx, process.Program(t), append([]string{"check"}, tc.args...)...).CombinedOutput()
			if !strings.Contains(string(said), tc.want) {
				t.Errorf("check said %q, want %q in it", said, tc.want)
			}
		})
	}
	t.Run("unknown command", func(t *testing.T) {
		said, err := exec.CommandContext(t.Context(), process.Program(t), "server").CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 2 || !strings.Contains(string(said), "did you mean serve?") {
			t.Errorf("%v, said %q; want exit code 2 and a suggestion", err, said)
		}
	})
}
