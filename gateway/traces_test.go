package gateway_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	configv1 "transom/proto/transom/config/v1"
)

// TestRefusedCall makes a call that is let go on and one that its limit refuses: the spans of policies and the access log say so.
func TestRefusedCall(t *testing.T) {
	var mu sync.Mutex
	spans := map[string][]string{} // names of the policies' spans by trace, sorted; with the status, if there is one
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var req collectorpb.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &req); err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, s := range req.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans() {
			if name := s.GetName(); !strings.Contains(name, "/") {
				id := string("0123456789abcdef"[s.GetTraceId()[0]>>4])
				spans[id] = append(spans[id], strings.TrimSpace(name+" "+s.GetStatus().GetMessage()))
			}
		}
	}))
	t.Cleanup(srv.Close)
	path := filepath.Join(t.TempDir(), "access.log")
	t.Cleanup(func() { // the gateway has ended
		for id, want := range map[string]string{"a": "limits,overload", "b": `limits rate limit "one": 1 calls per 1h0m0s are allowed,overload`} {
			if got := slices.Sorted(slices.Values(spans[id])); strings.Join(got, ",") != want {
				t.Errorf("call %s has the spans %q, want %q", id, got, want)
			}
		}
		b, err := os.ReadFile(path)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		if err != nil || len(lines) != 2 {
			t.Fatalf("%v: the access log is %q", err, b)
		}
		for i, want := range []any{nil, "limit"} {
			var line map[string]any
			if err := json.Unmarshal([]byte(lines[i]), &line); err != nil || line["transom.policy"] != want {
				t.Errorf("%v: transom.policy is not %v: %s", err, want, lines[i])
			}
		}
	})
	_, addr := start(t, func(c *configv1.Config) {
		c.Tracing = &configv1.Tracing{Endpoint: srv.URL + "/v1/traces"}
		c.AccessLog = &configv1.AccessLog{File: path}
		c.Policies = []*configv1.Policy{{Selector: []string{"*"}, Limits: []*configv1.Limit{{Name: "one", Kind: &configv1.Limit_Rate{Rate: "1/h"}}}}}
	})
	for i, id := range []string{"a", "b"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+"/v1/customers/7/accounts/1", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Traceparent", "00-"+strings.Repeat(id, 32)+"-00f067aa0ba902b7-01")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := []int{200, 429}[i]; resp.StatusCode != want {
			t.Errorf("call %s: status %d, want %d", id, resp.StatusCode, want)
		}
	}
}
