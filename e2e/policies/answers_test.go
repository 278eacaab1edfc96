package policies_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestBackendsSayNoMore: what the gateway says in every answer, and who may call from another page, backends do not say once more,
// nor otherwise.
func TestBackendsSayNoMore(t *testing.T) {
	const own, foreign = "https://app.example", "https://other.example"
	p := start(t, `
listeners: [{address: "127.0.0.1:0", cors: {allow_origins: ["https://app.example"]}}]
security: {response_headers: {x-frame-options: DENY, vary: X-Edge}}
`)
	const body = `{"header": {"access-control-allow-origin": "*", "access-control-allow-credentials": "true", "x-frame-options": "ALLOW", "vary": "x-mine", "x-other": "theirs"}}`
	ask := func(path, contentType, origin string) http.Header {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url("http")+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", contentType)
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		resp, err := p.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v: %s", path, resp.StatusCode, err, b)
		}
		return resp.Header
	}
	for _, path := range []string{metadataPath, "/bank.v1.Diagnostics/Metadata"} {
		for _, origin := range []string{"", own, foreign} {
			h := ask(path, "application/json", origin)
			allowed := []string(nil)
			if origin == own {
				allowed = []string{own}
			}
			for name, want := range map[string][]string{
				"Access-Control-Allow-Origin": allowed, "Access-Control-Allow-Credentials": nil, "X-Frame-Options": {"DENY"}, "X-Other": {"theirs"},
			} {
				if !slices.Equal(h[name], want) {
					t.Errorf("%s from %q: %s is %q, want %q", path, origin, name, h[name], want)
				}
			}
			if vary := strings.Join(h["Vary"], ", "); !strings.Contains(vary, "X-Edge") || !strings.Contains(vary, "x-mine") {
				t.Errorf("%s from %q: vary is %q", path, origin, vary)
			}
		}
	}
	// Without such settings a backend may see to pages itself.
	p.reload(t, "security: {response_headers: {x-frame-options: DENY}}\n")
	if h := ask(metadataPath, "application/json", foreign); !slices.Equal(h["Access-Control-Allow-Origin"], []string{"*"}) {
		t.Errorf("without CORS settings: %q", h["Access-Control-Allow-Origin"])
	}
}
