package policies_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	bankv1 "transom/proto/bank/v1"
)

// get makes a REST call and returns status, header and body.
func (p *proxy) get(t *testing.T, path string, header map[string]string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	resp, err := p.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestCache(t *testing.T) {
	p := start(t, example(t, "Cache"))
	t.Run("REST", func(t *testing.T) {
		p.PurgeCache("", "")
		_, h, first := p.get(t, metadataPath, nil)
		if got := h.Get("Cache-Status"); got != "transom; fwd=miss; stored" {
			t.Errorf("first: %q", got)
		}
		code, h, second := p.get(t, metadataPath, nil)
		if code != 200 || h.Get("Cache-Status") != "transom; hit" || first != second || h.Get("Age") == "" || h.Get("Etag") == "" {
			t.Errorf("second: %d %v; the answers are equal: %v", code, h, first == second)
		}
		etag := h.Get("Etag")
		for _, tag := range []string{etag, strings.TrimPrefix(etag, "W/"), `"other", ` + etag, "*"} {
			if code, h, body := p.get(t, metadataPath, map[string]string{"If-None-Match": tag}); code != 304 || body != "" || h.Get("Etag") != etag {
				t.Errorf("If-None-Match %s: %d %q %v", tag, code, body, h)
			}
		}
		if code, _, body := p.get(t, metadataPath, map[string]string{"If-None-Match": `"other"`}); code != 200 || body != first {
			t.Errorf("another etag: %d %q", code, body)
		}
		// Another caller, by what it shows.
		if _, h, other := p.get(t, metadataPath, map[string]string{"Authorization": "Bearer x"}); h.Get("Cache-Status") != "transom; fwd=miss; stored" || other == first {
			t.Errorf("another caller: %v", h)
		}
		if _, _, pretty := p.get(t, metadataPath+"?$prettyPrint=true", nil); pretty == first || strings.Join(strings.Fields(pretty), "") != strings.Join(strings.Fields(first), "") {
			t.Errorf("pretty: %s", pretty)
		}
		if n := p.PurgeCache("bank.v1.Diagnostics.Metadata", ""); n != 2 {
			t.Errorf("%d purged, want 2", n)
		}
	})
	t.Run("gRPC", func(t *testing.T) {
		p.PurgeCache("", "")
		for i, want := range []string{"transom; fwd=miss; stored", "transom; hit"} {
			var md metadata.MD
			if _, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(t.Context(), &bankv1.MetadataRequest{}, grpc.Header(&md)); err != nil {
				t.Fatal(err)
			}
			if got := md.Get("cache-status"); !slices.Equal(got, []string{want}) {
				t.Errorf("call %d: %q, want %q", i, got, want)
			}
		}
		// What REST fetched gRPC finds.
		if _, h, _ := p.get(t, metadataPath, nil); h.Get("Cache-Status") != "transom; hit" {
			t.Errorf("REST after gRPC: %v", h)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		p.PurgeCache("", "")
		first, _ := p.webSocket(t, metadataPath, nil)
		second, _ := p.webSocket(t, metadataPath, nil)
		if len(first) != 1 || !slices.Equal(first, second) {
			t.Errorf("answers %q and %q", first, second)
		}
	})
	t.Run("reload", func(t *testing.T) {
		_, _, first := p.get(t, metadataPath, nil)
		p.reload(t, example(t, "Cache"))
		if _, h, body := p.get(t, metadataPath, nil); h.Get("Cache-Status") != "transom; hit" || body != first {
			t.Errorf("after a reload: %v", h)
		}
		p.reload(t, "policies: []\n")
		if _, h, _ := p.get(t, metadataPath, nil); h.Get("Cache-Status") != "" {
			t.Errorf("without a cache: %v", h)
		}
	})
	t.Run("errors and cookies", func(t *testing.T) {
		p.reload(t, "policies: [{selector: bank.v1.Diagnostics.Metadata, cache: {ttl: 30s}}, {selector: bank.v1.Accounts.Get, cache: {ttl: 30s}}]\n")
		for range 2 {
			var md metadata.MD
			if _, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(t.Context(), &bankv1.MetadataRequest{Header: map[string]string{"set-cookie": "s=1"}}, grpc.Header(&md)); err != nil {
				t.Fatal(err)
			}
			if got := md.Get("cache-status"); !slices.Equal(got, []string{"transom; fwd=miss"}) {
				t.Errorf("set-cookie: %q", got)
			}
			if code, h, _ := p.get(t, "/v1/accounts/999", nil); code != 404 || strings.Contains(h.Get("Cache-Status"), "hit") {
				t.Errorf("an error: %d %v", code, h)
			}
		}
	})
}

func TestCacheFaults(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"policies:\n- selector: bank.v1.Accounts.Transfer\n  cache: {ttl: 1s}\n", `3:10: answers of bank.v1.Accounts.Transfer cannot be cached: it has side effects`},
		{"policies:\n- selector: bank.v1.Accounts.Watch\n  cache: {ttl: 1s}\n", `3:10: answers of bank.v1.Accounts.Watch cannot be cached: it is not a unary method`},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {}\n", `3:10: ttl: `},
		{"policies:\n- selector: bank.v1.Rates.Get\n  cache: {ttl: 1s, vary: [Accept]}\n", `3:27: vary[0]: `},
	} {
		found := faults(t, tc.text)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
}
