package listeners_test

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/listeners"
	"transom/rpc"
)

func TestCORS(t *testing.T) {
	policy, err := listeners.NewCORS(listeners.CORSConfig{
		Origins: []string{"https://app.example", "https://*.wild.example"}, Credentials: true,
		AllowHeaders: []string{"X-Tenant"}, ExposeHeaders: []string{"X-Quota"}, MaxAge: 10 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	front := listeners.NewFront(listeners.FrontConfig{CORS: policy}, newView(t, func(ctx context.Context, call *rpc.Call) error {
		calls++
		m, err := rpc.RecvOne(ctx, call.Stream)
		if err != nil {
			return err
		}
		if err := call.Stream.SendHeader(metadata.MD{"vary": {"accept-language"}}); err != nil {
			return err
		}
		return call.Stream.Send(ctx, m)
	}), slog.New(slog.DiscardHandler))
	base, client := listen(t, front, "HTTP1")
	do := func(verb, path string, header map[string]string, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), verb, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			req.Header.Set(k, v)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	for _, path := range []string{"/rpctest/unary", "/rpctest.Echo/Unary"} {
		for _, tc := range []struct {
			origin, verb, headers string
			allowed               bool
		}{
			{"https://app.example", "POST", "content-type,x-grpc-web,x-user-agent,grpc-timeout", true},
			{"https://app.example", "POST", "connect-protocol-version,connect-timeout-ms,content-type", true},
			{"https://a.b.wild.example", "PATCH", "authorization,x-tenant", true},
			{"https://app.example", "DELETE", "x-unheard-of", false},
			{"https://evil.example", "POST", "content-type", false},
			{"http://app.example", "POST", "content-type", false},
			{"null", "POST", "content-type", false},
		} {
			names := strings.Split(tc.headers, ",")
			slices.Sort(names) // as browsers send them
			resp := do("OPTIONS", path, map[string]string{
				"Origin": tc.origin, "Access-Control-Request-Method": tc.verb, "Access-Control-Request-Headers": strings.Join(names, ","),
			}, "")
			h := resp.Header
			allowed := h.Get("Access-Control-Allow-Origin") == tc.origin &&
				(h.Get("Access-Control-Allow-Methods") != "" || tc.verb == "POST") && h.Get("Access-Control-Allow-Headers") != "" &&
				h.Get("Access-Control-Allow-Credentials") == "true"
			if allowed != tc.allowed {
				t.Errorf("preflight %s of %+v: %d %v", path, tc, resp.StatusCode, h)
			}
			if allowed && h.Get("Access-Control-Max-Age") != "600" {
				t.Errorf("max age %q", h.Get("Access-Control-Max-Age"))
			}
		}
	}
	if calls != 0 {
		t.Errorf("preflights made %d calls", calls)
	}
	for _, tc := range []struct{ path, contentType, body string }{
		{"/rpctest/unary", "application/json", `"AQ=="`},
		{"/rpctest.Echo/Unary", "application/json", `"AQ=="`},
		{"/rpctest.Echo/Unary", "application/grpc-web", "\x00\x00\x00\x00\x00"},
		{"/rpctest/nowhere", "application/json", `{}`},
	} {
		for origin, allowed := range map[string]bool{"https://app.example": true, "https://evil.example": false, "": false} {
			resp := do("POST", tc.path, map[string]string{"Origin": origin, "Content-Type": tc.contentType}, tc.body)
			got := resp.Header.Get("Access-Control-Allow-Origin")
			if allowed != (got != "") {
				t.Errorf("%s from %q: allowed %q, status %d", tc.path, origin, got, resp.StatusCode)
			}
			exposed := strings.ToLower(resp.Header.Get("Access-Control-Expose-Headers"))
			for _, name := range []string{"grpc-status", "grpc-message", "grpc-status-details-bin", "x-quota"} {
				if allowed && !slices.Contains(strings.Split(exposed, ","), name) {
					t.Errorf("%s: %s is not exposed: %q", tc.path, name, exposed)
				}
			}
			vary := strings.Join(resp.Header["Vary"], ",")
			if !strings.Contains(vary, "Origin") || tc.path != "/rpctest/nowhere" && !strings.Contains(vary, "accept-language") {
				t.Errorf("%s from %q: Vary %q", tc.path, origin, vary)
			}
		}
	}
	if calls != 9 {
		t.Errorf("%d calls, want 9", calls)
	}
}

func TestCORSFaults(t *testing.T) {
	for _, c := range []listeners.CORSConfig{
		{},
		{Origins: []string{"*"}, Credentials: true},
		{Origins: []string{"app.example"}},
		{Origins: []string{"https://app.example/path"}},
		{Origins: []string{"https://app.example"}, AllowHeaders: []string{"Host"}},
		{Origins: []string{"https://app.example"}, MaxAge: 48 * time.Hour},
	} {
		if _, err := listeners.NewCORS(c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}
