package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	bankv1 "transom/proto/bank/v1"
	configv1 "transom/proto/transom/config/v1"
)

// TestShedCalls holds the only call that there may be: a second is told to come back, in each protocol, and let in later.
func TestShedCalls(t *testing.T) {
	backend := startBank(t)
	_, addr := start(t, func(c *configv1.Config) {
		c.Overload = &configv1.Overload{Calls: 1, RetryAfter: durationpb.New(3 * time.Second)}
		c.Clusters["bank"].Target = "static:///" + backend
	})
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	chat, err := bankv1.NewSupportClient(conn).Chat(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := chat.Send(&bankv1.ChatMessage{Text: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := chat.Recv(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + addr + "/v1/customers/7/accounts/1")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "3" || !strings.Contains(string(b), "too many calls") || !strings.Contains(string(b), "RetryInfo") {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, b)
	}
	if _, err := bankv1.NewAccountsClient(conn).Get(ctx, &bankv1.GetAccountRequest{Name: "customers/7/accounts/1"}); status.Code(err) != codes.Unavailable {
		t.Errorf("gRPC: %v", err)
	}
	_ = chat.CloseSend()
	for err == nil {
		_, err = chat.Recv()
	}
	if code, body := get(t, "http://"+addr+"/v1/customers/7/accounts/1"); code != 200 {
		t.Errorf("with room again: %d %s", code, body)
	}
}

// TestShedMemory sets a limit that the process is far above.
func TestShedMemory(t *testing.T) {
	_, addr := start(t, nil)
	was := debug.SetMemoryLimit(4 << 20)
	defer debug.SetMemoryLimit(was)
	limit := time.Now().Add(20 * time.Second)
	for {
		code, body := get(t, "http://"+addr+"/v1/customers/7/accounts/1")
		if code == 503 && strings.Contains(body, "memory is short") {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("calls are still let in: %d %s", code, body)
		}
	}
	debug.SetMemoryLimit(1 << 40)
	for {
		if code, _ := get(t, "http://"+addr+"/v1/customers/7/accounts/1"); code == 200 {
			return
		}
		if time.Now().After(limit) {
			t.Fatal("calls are still turned away")
		}
	}
}

// TestGarbageIsNoShortage lets go of what the last collection found in use: nothing is turned away for what is gone.
func TestGarbageIsNoShortage(t *testing.T) {
	_, addr := start(t, nil)
	const size = 256 << 20
	var before, now runtime.MemStats
	held := make([]byte, size)
	debug.FreeOSMemory()
	runtime.ReadMemStats(&before)
	runtime.KeepAlive(held)
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(int64(before.Sys - before.HeapReleased + size/8)))
	limit := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond) // so that the calls are not what makes the next collection due
	defer tick.Stop()
	for ; now.NumGC <= before.NumGC; <-tick.C {
		if code, body := get(t, "http://"+addr+"/v1/customers/7/accounts/1"); code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		if time.Now().After(limit) {
			t.Fatal("memory was never looked at")
		}
		runtime.ReadMemStats(&now)
	}
	if code, body := get(t, "http://"+addr+"/v1/customers/7/accounts/1"); code != 200 {
		t.Errorf("after a collection: %d %s", code, body)
	}
}

// TestConnectionLimit: the third connection of one client is closed unanswered, and let in once another has gone.
func TestConnectionLimit(t *testing.T) {
	_, addr := start(t, func(c *configv1.Config) { c.Listeners[0].Limits = &configv1.Limits{ConnectionsPerIp: 2} })
	ok := func(c net.Conn) bool {
		fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		line, _ := bufio.NewReader(c).ReadString('\n')
		return strings.HasPrefix(line, "HTTP/1.1 200")
	}
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	a, b := dial("127.0.0.1"), dial("127.0.0.1")
	if !ok(a) || !ok(b) {
		t.Fatal("the first two are not served")
	}
	if ok(dial("127.0.0.1")) {
		t.Error("a third connection is served")
	}
	if !ok(dial("127.0.0.9")) {
		t.Error("another client is not served")
	}
	a.Close()
	limit := time.Now().Add(20 * time.Second)
	for !ok(dial("127.0.0.1")) {
		if time.Now().After(limit) {
			t.Fatal("no connection after one has gone")
		}
	}
}

// TestProxyProtocol takes the client's address from a trusted peer only.
func TestProxyProtocol(t *testing.T) {
	_, addr := start(t, func(c *configv1.Config) {
		c.Listeners[0].ProxyProtocol = &configv1.ProxyProtocol{Trusted: []string{"127.0.0.1/32"}}
		c.AccessLog = &configv1.AccessLog{File: t.TempDir() + "/access.log"}
	})
	for name, tc := range map[string]struct{ from, head, want string }{
		"trusted":                {"127.0.0.1", "PROXY TCP4 203.0.113.9 192.0.2.1 4711 80\r\n", "HTTP/1.1 200"},
		"trusted without header": {"127.0.0.1", "", ""},
		"stranger":               {"127.0.0.2", "", "HTTP/1.1 200"},
		"stranger with header":   {"127.0.0.2", "PROXY TCP4 203.0.113.9 192.0.2.1 4711 80\r\n", "HTTP/1.1 400"},
	} {
		t.Run(name, func(t *testing.T) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(tc.from)}}
			c, err := d.DialContext(t.Context(), "tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprintf(c, "%sGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", tc.head)
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			line, _ := bufio.NewReader(c).ReadString('\n')
			if tc.want == "" && line != "" && !strings.HasPrefix(line, "HTTP/1.1 400") || !strings.HasPrefix(line, tc.want) {
				t.Errorf("%q, want %q", line, tc.want)
			}
		})
	}
}

// TestRedirect answers with the same URL on https, and nothing else.
func TestRedirect(t *testing.T) {
	_, addr := start(t, func(c *configv1.Config) { c.Listeners[0].RedirectHttps = 8443 })
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, tc := range []struct{ host, path, want string }{
		{"api.example", "/v1/a%2Fb?x=1", "https://api.example:8443/v1/a%2Fb?x=1"},
		{"api.example:80", "/", "https://api.example:8443/"},
		{"[2001:db8::1]:80", "/", "https://[2001:db8::1]:8443/"},
		{"api.example", "//evil.example/", "https://api.example:8443//evil.example/"},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr+tc.path, nil)
		req.Host = tc.host
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode != 308 || got != tc.want {
			t.Errorf("%s%s: %d %s, want %s", tc.host, tc.path, resp.StatusCode, got, tc.want)
		}
	}
	client.CloseIdleConnections()
}
