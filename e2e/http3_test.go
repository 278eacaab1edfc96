package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/quic-go/quic-go/http3"

	"transom/cmd/transom/demo/bank"
)

// client is an HTTP client of one version.
func client(t *testing.T, p *proxy, version string) (*http.Client, string) {
	t.Helper()
	tc := &tls.Config{RootCAs: p.pool, MinVersion: tls.VersionTLS12}
	if version == "h3" {
		tr := &http3.Transport{TLSClientConfig: tc}
		t.Cleanup(func() { tr.Close() })
		return &http.Client{Transport: tr}, "https://" + p.Secure
	}
	tr := &http.Transport{TLSClientConfig: tc, Protocols: new(http.Protocols)}
	base := "http://" + p.Plain
	switch version {
	case "h1":
		tr.Protocols.SetHTTP1(true)
	case "h2c":
		tr.Protocols.SetUnencryptedHTTP2(true)
	case "h2":
		tr.Protocols.SetHTTP2(true)
		base = "https://" + p.Secure
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}, base
}

var versions = map[string]string{"h1": "HTTP/1.1", "h2c": "HTTP/2.0", "h2": "HTTP/2.0", "h3": "HTTP/3.0"}

// TestEveryVersion runs one body over HTTP/1.1, h2c, HTTP/2 and HTTP/3: unary, streams, a client that leaves.
func TestEveryVersion(t *testing.T) {
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	for version, proto := range versions {
		t.Run(version, func(t *testing.T) {
			c, base := client(t, p, version)
			do := func(ctx context.Context, verb, path string, body io.Reader, header ...string) *http.Response {
				t.Helper()
				req, err := http.NewRequestWithContext(ctx, verb, base+path, body)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(header); i += 2 {
					req.Header.Set(header[i], header[i+1])
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatalf("%s %s: %v", verb, path, err)
				}
				if resp.Proto != proto {
					t.Errorf("answered by %s, want %s", resp.Proto, proto)
				}
				return resp
			}
			t.Run("unary", func(t *testing.T) {
				resp := do(t.Context(), "GET", "/v1/customers/3/accounts/1", nil)
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 || !strings.Contains(string(body), `"number":"7"`) {
					t.Errorf("%d %s", resp.StatusCode, body)
				}
			})
			t.Run("HEAD", func(t *testing.T) {
				resp := do(t.Context(), "HEAD", "/v1/customers/3/accounts/1", nil)
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 || len(body) != 0 || resp.ContentLength <= 0 {
					t.Errorf("%d, %d bytes, length %d", resp.StatusCode, len(body), resp.ContentLength)
				}
			})
			t.Run("duplex", func(t *testing.T) {
				pr, pw := io.Pipe()
				go func() { _, _ = io.WriteString(pw, `{"author":"Ada","text":"one"}`+"\n") }()
				resp := do(t.Context(), "POST", "/v1/support/chat", pr, "Content-Type", "application/json")
				defer resp.Body.Close()
				lines := bufio.NewScanner(resp.Body)
				if !lines.Scan() || !strings.Contains(lines.Text(), `"text"`) {
					t.Fatalf("first answer %q, %v", lines.Text(), lines.Err())
				}
				// The answer came while the request is still open.
				if _, err := io.WriteString(pw, `{"author":"Ada","text":"two"}`+"\n"); err != nil {
					t.Fatal(err)
				}
				if !lines.Scan() {
					t.Fatalf("no second answer: %v", lines.Err())
				}
				pw.Close()
				for lines.Scan() {
				}
				if lines.Err() != nil {
					t.Error(lines.Err())
				}
			})
			t.Run("late error", func(t *testing.T) {
				resp := do(t.Context(), "GET", "/v1/diagnostics/fail:late?code=9&message=late&afterMessages=2", nil)
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || strings.Count(string(body), "\n") != 3 || !strings.Contains(string(body), `{"@error":{"code":9,"message":"late"`) {
					t.Errorf("%s %v", body, err)
				}
				// An array must not look complete. The reset may even overtake the header.
				req, _ := http.NewRequestWithContext(t.Context(), "GET", base+"/v1/diagnostics/fail:late?code=9&message=late&afterMessages=2", nil)
				req.Header.Set("Accept", "application/json")
				if resp, err = c.Do(req); err == nil {
					body, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if err == nil {
					t.Errorf("a failed array reads as complete: %s", body)
				}
			})
			t.Run("client leaves a stream", func(t *testing.T) {
				b.forget()
				ctx, cancel := context.WithCancel(t.Context())
				resp := do(ctx, "GET", "/v1/customers/3/accounts/1/transactions:watch?interval=3600s&count=1000", nil)
				_, _ = bufio.NewReader(resp.Body).ReadString('\n')
				cancel()
				resp.Body.Close()
				expectCanceled(t, b, "/bank.v1.Accounts/Watch")
			})
			t.Run("client leaves with its body open", func(t *testing.T) {
				b.forget()
				ctx, cancel := context.WithCancel(t.Context())
				pr, pw := io.Pipe()
				defer pw.Close()
				go func() { _, _ = io.WriteString(pw, `{"author":"Ada","text":"one"}`+"\n") }()
				resp := do(ctx, "POST", "/v1/support/chat", pr, "Content-Type", "application/json")
				_, _ = bufio.NewReader(resp.Body).ReadString('\n')
				cancel()
				resp.Body.Close()
				expectCanceled(t, b, "/bank.v1.Support/Chat")
			})
			t.Run("client leaves a unary call", func(t *testing.T) {
				b.forget()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					req, _ := http.NewRequestWithContext(ctx, "GET", base+"/v1/diagnostics/slow?delay=30s", nil)
					if resp, err := c.Do(req); err == nil {
						resp.Body.Close()
						t.Error("the slow call was answered")
					}
				}()
				b.awaitStart(t, "/bank.v1.Diagnostics/Slow")
				cancel()
				<-done
				expectCanceled(t, b, "/bank.v1.Diagnostics/Slow")
			})
			t.Run("deadline", func(t *testing.T) {
				b.forget()
				resp := do(t.Context(), "GET", "/v1/diagnostics/slow?delay=30s", nil, "Grpc-Timeout", "50m")
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 504 || !strings.Contains(string(body), `"code":4`) {
					t.Errorf("%d %s", resp.StatusCode, body)
				}
				expectCanceled(t, b, "/bank.v1.Diagnostics/Slow")
			})
		})
	}
}
