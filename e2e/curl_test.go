package e2e

import (
	"crypto/sha256"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"transom/cmd/transom/demo/bank"
)

// TestCurl is the REST surface as curl sees it, over HTTP/1.1, h2c, and HTTP/2 over TLS.
func TestCurl(t *testing.T) {
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	large := filepath.Join(t.TempDir(), "large.json")
	if err := os.WriteFile(large, []byte(`{"account":"`+strings.Repeat("2", 20<<20)+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]struct {
		base    string
		args    []string
		version string
	}{
		"HTTP1": {"http://" + p.Plain, []string{"--http1.1"}, "HTTP/1.1"},
		"h2c":   {"http://" + p.Plain, []string{"--http2-prior-knowledge"}, "HTTP/2"},
		"h2":    {"https://" + p.Secure, []string{"--http2", "--cacert", p.ca}, "HTTP/2"},
	} {
		t.Run(name, func(t *testing.T) {
			get := func(args ...string) (int, string, string) {
				t.Helper()
				args[len(args)-1] = mode.base + args[len(args)-1]
				code, header, body := curl(t, append(mode.args, args...)...)
				if !strings.HasPrefix(header, mode.version+"\n") {
					t.Errorf("version: %s", header)
				}
				return code, header, body
			}
			code, header, body := get("/v1/customers/3/accounts/1")
			if code != 200 || !strings.Contains(body, `"number":"7"`) || !strings.Contains(strings.ToLower(header), "content-type: application/json") {
				t.Errorf("get: %d %s\n%s", code, header, body)
			}
			if name == "h2" && !strings.Contains(strings.ToLower(header), `alt-svc: h3=":`) {
				t.Errorf("no alt-svc: %s", header)
			}
			code, _, body = get("-d", `{"account":"customers/1/accounts/1","amount":{"currency":"EUR","units":"999999999"}}`,
				"-H", "Content-Type: application/json", "/v1/customers/3/accounts/1:transfer")
			if code != 400 || !strings.Contains(body, `"reason":"INSUFFICIENT_FUNDS"`) || !strings.Contains(body, `"code":9`) {
				t.Errorf("transfer too much: %d %s", code, body)
			}
			code, header, body = get("/v1/customers/3/accounts/1/transactions:watch?count=2&interval=0.01s")
			if lines := strings.Split(strings.TrimSpace(body), "\n"); code != 200 || len(lines) != 2 || !strings.HasPrefix(lines[0], `{"name":`) || !strings.Contains(header, "application/x-ndjson") {
				t.Errorf("NDJSON: %d %s\n%s", code, header, body)
			}
			code, header, body = get("-H", "Accept: text/event-stream", "/v1/customers/3/accounts/1/transactions:watch?count=2&interval=0.01s")
			if code != 200 || strings.Count(body, "data: {\"name\":") != 2 || !strings.Contains(header, "text/event-stream") {
				t.Errorf("SSE: %d %s\n%s", code, header, body)
			}
			code, _, body = get("-H", "Accept: application/json", "/v1/customers/3/accounts/1/transactions:watch?count=2&interval=0.01s")
			if c := compact(body); code != 200 || !strings.HasPrefix(c, `[{"name":`) || !strings.HasSuffix(c, "}]") {
				t.Errorf("array: %d %s", code, body)
			}
			code, header, body = get("/v1/customers/3/accounts/1/statement.csv")
			if code != 200 || !strings.Contains(header, "text/csv") || !strings.Contains(body, ",") {
				t.Errorf("HttpBody: %d %s\n%s", code, header, body)
			}
			code, _, body = get("-T", "-", "-H", "Content-Type: application/octet-stream", "/v1/statements:import")
			if code != 200 || !strings.Contains(body, `"parts":"1"`) && !strings.Contains(body, `"parts":`) {
				t.Errorf("empty upload: %d %s", code, body)
			}
			code, header, _ = get("-X", "DELETE", "/v1/customers/3/accounts/1/balance")
			if code != 405 || !strings.Contains(strings.ToLower(header), "allow: get") {
				t.Errorf("wrong verb: %d %s", code, header)
			}
			code, _, body = get("/v1/diagnostics/fail?code=5&message=gone&details=true")
			if code != 404 || !strings.Contains(body, `"message":"gone"`) || !strings.Contains(body, `"@type":`) {
				t.Errorf("fail: %d %s", code, body)
			}
			code, _, body = get("/v1/diagnostics/fail:late?code=5&message=gone&afterMessages=2")
			if lines := strings.Split(strings.TrimSpace(body), "\n"); code != 200 || len(lines) != 3 || !strings.HasPrefix(lines[2], `{"@error":{"code":5,`) {
				t.Errorf("late error: %d %s", code, body)
			}
			// Refusals while curl still sends, which curl 7.88 over HTTP/2 takes for a broken connection if a reset comes with them.
			code, _, body = get("-d", "@"+large, "-H", "Content-Type: application/json", "/v1/customers/3/accounts/1:transfer")
			if code != 413 || !strings.Contains(body, "larger than the limit of 4194304 bytes") {
				t.Errorf("a body over the limit: %d %s", code, body)
			}
			if code, _, body = get("-d", "@"+large, "/nowhere"); code != 404 || !strings.Contains(body, "no route for this path") {
				t.Errorf("a body for nobody: %d %s", code, body)
			}
			if code, _, body = get("/healthz"); code != 200 || body != "ok\n" {
				t.Errorf("health: %d %s", code, body)
			}
		})
	}
}

// TestUploadAndDownload sends 100 MiB each way through the proxy, whose memory must stay flat.
func TestUploadAndDownload(t *testing.T) {
	const size = 100 << 20
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	file := filepath.Join(t.TempDir(), "upload")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum), bank.Content(size)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	want := base64.StdEncoding.EncodeToString(sum.Sum(nil))
	curl(t, "http://"+p.Plain+"/v1/customers/3/accounts/1") // warm
	before := p.Memory(t, "VmRSS")
	for _, mode := range [][]string{{"--http1.1", "http://" + p.Plain}, {"--http2-prior-knowledge", "http://" + p.Plain}} {
		code, _, body := curl(t, mode[0], "-T", file, "-H", "Content-Type: application/octet-stream", mode[1]+"/v1/statements:import")
		if code != 200 || !strings.Contains(body, want) || !strings.Contains(body, `"sizeBytes":"104857600"`) {
			t.Errorf("%s upload: %d %s, want the hash %s", mode[0], code, body, want)
		}
		code, _, body = curl(t, mode[0], mode[1]+"/v1/customers/3/accounts/1/statements/2026:download?sizeBytes=104857600")
		got := sha256.Sum256([]byte(body))
		if code != 200 || base64.StdEncoding.EncodeToString(got[:]) != want {
			t.Errorf("%s download: %d, %d bytes", mode[0], code, len(body))
		}
	}
	peak := p.Memory(t, "VmHWM")
	t.Logf("resident memory: %d MiB before, peak %d MiB", before>>20, peak>>20)
	if grown := peak - before; grown > 48<<20 {
		t.Errorf("memory grew by %d MiB while 400 MiB went through, want at most 48", grown>>20)
	}
}
