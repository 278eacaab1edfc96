package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs the demo on free ports and returns what it says to try.
func start(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := Run(ctx, Config{Plain: "127.0.0.1:0", TLS: "127.0.0.1:0", Admin: "127.0.0.1:0", Backends: []string{"127.0.0.1:0", "127.0.0.1:0"}, Out: in})
		_ = in.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	// The guide comes in one write; the pipe hands it over in one read if the buffer is large enough.
	buf := make([]byte, 64<<10)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatalf("no guide: %v", err)
	}
	return string(buf[:n])
}

// Every command works as it is printed.
func TestGuide(t *testing.T) {
	guide := start(t)
	want := map[string]string{ // a part of the command, and of its answer
		"/v1/accounts/7":     `"name":"customers/3/accounts/1"`,
		"filter.kinds":       `"totalSize":`,
		":transfer":          `"units":"-5"`,
		"PATCH":              `"displayName":"Holidays"`,
		"interval=0.5s":      `transactions/demo-2`,
		"text/event-stream":  `data: {`,
		"statements:import":  `"contentType":"text/plain"`,
		"diagnostics/fail":   `"code":9`,
		"https://localhost:": `"rate":1.08`,
	}
	ran := 0
	for s := bufio.NewScanner(strings.NewReader(guide)); s.Scan(); {
		command := strings.TrimSpace(s.Text())
		if !strings.HasPrefix(command, "curl ") {
			continue
		}
		ran++
		cmd := exec.CommandContext(t.Context(), "bash", "-c", command)
		cmd.Dir = "../../.." // it names go.mod
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		answer, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: %v\n%s", command, err, stderr.String())
			continue
		}
		matched := false
		for part, expect := range want {
			if strings.Contains(command, part) {
				matched = true
				if !strings.Contains(string(answer), expect) {
					t.Errorf("%s\nanswers %s\nwant %s", command, answer, expect)
				}
			}
		}
		if !matched {
			t.Errorf("nothing is expected of %s", command)
		}
	}
	if ran != len(want) {
		t.Errorf("%d commands ran, %d are expected", ran, len(want))
	}
}

func TestPage(t *testing.T) {
	guide := start(t)
	i := strings.Index(guide, "http://localhost:")
	base, _, _ := strings.Cut(guide[i:], "/demo")
	get := func(path string) (int, string, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		defer http.DefaultClient.CloseIdleConnections()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type"), string(body)
	}
	for _, c := range []struct{ path, contentType, part string }{
		{"/demo", "text/html; charset=utf-8", "<title>transom demo</title>"},
		{"/demo/demo.js", "text/javascript; charset=utf-8", "EventSource"},
		{"/demo/demo.css", "text/css; charset=utf-8", "body {"},
	} {
		code, contentType, body := get(c.path)
		if code != http.StatusOK || contentType != c.contentType || !strings.Contains(body, c.part) {
			t.Errorf("GET %s = %d %s, %d bytes; want %s with %q", c.path, code, contentType, len(body), c.contentType, c.part)
		}
	}
	for _, path := range []string{"/demo/nope.html", "/demo/..%2fdemo.go", "/demo/%2e%2e"} {
		code, _, body := get(path)
		var st struct{ Code int }
		if err := json.Unmarshal([]byte(body), &st); code < 400 || code >= 500 || err != nil || st.Code == 0 {
			t.Errorf("GET %s = %d %s, want a client error", path, code, body)
		}
	}
}

func TestAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, cfg := range []Config{
		{Plain: "127.0.0.1:0", TLS: "127.0.0.1:0", Admin: "127.0.0.1:0", Backends: []string{l.Addr().String()}},
		{Plain: l.Addr().String(), TLS: "127.0.0.1:0", Admin: "127.0.0.1:0", Backends: []string{"127.0.0.1:0"}},
	} {
		if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("Run: %v, want that the address is in use", err)
		}
	}
}
