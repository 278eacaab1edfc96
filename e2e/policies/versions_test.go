package policies_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/gateway"
	bankv1 "transom/proto/bank/v1"
	wsv1 "transom/proto/transom/ws/v1"
)

const ratesV2 = `syntax = "proto3";
package bank.v2;
import "google/api/annotations.proto";
service Rates {
  rpc Get(GetRateRequest) returns (Rate) { option (google.api.http) = {get: "/v2/rates/{base}/{quote}"}; }
}
message GetRateRequest { string base = 1; string quote = 2; }
message Rate { string value = 1; }
`

// withV2 is a configuration with bank.v1, and a bank.v2 that has a newer Rates.Get and nothing else; the calls of bank.v2 are
// told to seen.
func withV2(t *testing.T, seen chan copied, text string) (config, clusters string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "rates.proto"), []byte(ratesV2), 0o600); err != nil {
		t.Fatal(err)
	}
	config = fmt.Sprintf(`%s
policies:
- {selector: "*", cluster: bank}
- {selector: bank.v1.Rates.Get, deprecated: {since: "2026-01-01"}}
- {selector: bank.v2.*, cluster: newer}
descriptors: [{file: $SET}, {proto: {roots: %s, files: rates.proto}}]
`, text, dir)
	return config, fmt.Sprintf(`, newer: {target: "static:///%s", no_health_check: true}`, startShadow(t, seen))
}

func TestAPIVersions(t *testing.T) {
	seen := make(chan copied, 100)
	config, clusters := withV2(t, seen, "\napi_versions: {versions: [v1, v2, v3], header: api-version, default: v1}")
	p := startWith(t, config, clusters)
	const get, list = "/rates/EUR/USD", "/rates/EUR"
	const v1, v2, none, older = "bank.v1", "bank.v2", "404", "400"
	cases := []struct{ path, header, want string }{
		{"/v1" + get, "", v1},
		{"/v1" + get, "v2", v1}, // what the path says counts
		{"/v2" + get, "", v2},
		{"/v2" + get, "v1", v2},
		{"/v3" + get, "", v2}, // the newest that has it
		{"/v2" + list, "", v1},
		{"/v3" + list, "", v1},
		{"/v4" + list, "", none},
		{get, "", v1}, // by default
		{get, "v1", v1},
		{get, "v2", v2},
		{get, "v3", v2},
		{list, "v3", v1},
		{get, "v9", older},
		{"/nothing", "v2", none},
		{"/v2", "", none},
		{"/v2/v1" + get, "", none},
	}
	// which tells what a call reached.
	which := func(t *testing.T, code codes.Code, deprecated bool) string {
		t.Helper()
		switch code {
		case codes.OK:
		case codes.NotFound:
			return none
		default:
			return older
		}
		select {
		case c := <-seen:
			if c.method != "/bank.v2.Rates/Get" || deprecated {
				t.Errorf("%s was called, deprecated: %v", c.method, deprecated)
			}
			return v2
		default:
			return v1
		}
	}
	t.Run("REST", func(t *testing.T) {
		for _, tc := range cases {
			header := map[string]string{}
			if tc.header != "" {
				header["Api-Version"] = tc.header
			}
			status, h, body := p.get(t, tc.path, header)
			code := map[int]codes.Code{200: codes.OK, 404: codes.NotFound}[status]
			if status == 400 {
				code = codes.InvalidArgument
			}
			if got := which(t, code, h.Get("Deprecation") != ""); got != tc.want || status != 200 && status != 404 && status != 400 {
				t.Errorf("%s with %q reached %s (%d %s), want %s", tc.path, tc.header, got, status, body, tc.want)
			}
			if status == 400 && !strings.Contains(body, `header api-version: there is no version \"v9\", only v1, v2, v3`) {
				t.Errorf("an unknown version: %s", body)
			}
			if strings.HasSuffix(tc.path, get) && tc.want == v1 && h.Get("Deprecation") != "@1767225600" {
				t.Errorf("%s: deprecation %q", tc.path, h.Get("Deprecation"))
			}
			if !slices.Contains(h.Values("Vary"), "Api-Version") {
				t.Errorf("%s: vary %q", tc.path, h.Values("Vary"))
			}
		}
		for _, path := range []string{"/v2" + get, "/v3" + get, get} {
			if o := p.post(t, path, "{}", map[string]string{"Api-Version": "v2"}); o.http != http.StatusMethodNotAllowed || !slices.Equal(o.header["allow"], []string{"GET, HEAD"}) {
				t.Errorf("POST %s: %d, allow %q", path, o.http, o.header["allow"])
			}
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		for _, tc := range cases {
			header := map[string]string{}
			if tc.header != "" {
				header["Api-Version"] = tc.header
			}
			answers, o := p.webSocket(t, tc.path, header)
			if got := which(t, o.code, false); got != tc.want {
				t.Errorf("%s with %q reached %s (%q, %+v), want %s", tc.path, tc.header, got, answers, o, tc.want)
			}
		}
	})
	t.Run("transom.v1", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, _, err := websocket.Dial(ctx, "ws://"+p.addr+"/", &websocket.DialOptions{Subprotocols: []string{"transom.v1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		for i, tc := range cases {
			open := fmt.Sprintf(`{"id":%d,"open":{"path":%q,"metadata":{"api-version":[%q]}},"end":true}`, i+1, tc.path, tc.header)
			if tc.header == "" {
				open = fmt.Sprintf(`{"id":%d,"open":{"path":%q},"end":true}`, i+1, tc.path)
			}
			if err := c.Write(ctx, websocket.MessageText, []byte(open)); err != nil {
				t.Fatal(err)
			}
			var frame struct{ Status *struct{ Code codes.Code } }
			for frame.Status == nil {
				_, b, err := c.Read(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(b, &frame); err != nil {
					t.Fatal(err)
				}
			}
			if got := which(t, frame.Status.Code, false); got != tc.want {
				t.Errorf("%s with %q reached %s, want %s", tc.path, tc.header, got, tc.want)
			}
		}
	})
	t.Run("gRPC", func(t *testing.T) { // goes by names, which have their version
		if _, err := bankv1.NewRatesClient(p.conn).Get(t.Context(), &bankv1.GetRateRequest{Base: "EUR", Quote: "USD"}); err != nil || len(seen) > 0 {
			t.Errorf("bank.v1: %v", err)
		}
		if err := p.conn.Invoke(t.Context(), "/bank.v2.Rates/Get", &emptypb.Empty{}, &emptypb.Empty{}, grpc.WaitForReady(true)); err != nil || len(seen) != 1 {
			t.Errorf("bank.v2: %v", err)
		}
		<-seen
	})
	t.Run("explain", func(t *testing.T) {
		var out strings.Builder
		if err := gateway.Explain(t.Context(), p.parse(t, config).Config, "bank.v1.Rates.List", func(string) string { return "" }, &out, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		const want = "  GET /v1/rates/{base}\n  GET /v2/rates/{base}  by api_versions\n  GET /v3/rates/{base}  by api_versions\n  GET /rates/{base}  by api_versions\n"
		if !strings.Contains(out.String(), want) {
			t.Errorf("explain says\n%s\nwant in it\n%s", out.String(), want)
		}
		out.Reset()
		if err := gateway.Explain(t.Context(), p.parse(t, config).Config, "bank.v1.Rates.Get", func(string) string { return "" }, &out, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "/v2/rates") || !strings.Contains(out.String(), "GET /rates/{base}/{quote}  by api_versions\n") {
			t.Errorf("explain says\n%s", out.String())
		}
	})
}

func TestAPIVersionFaults(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"api_versions: {}\n", `1:15: `},
		{"api_versions: {versions: [v1, v1]}\n", `1:26: versions: `},
		{"api_versions: {versions: [v1, /v2]}\n", `1:31: versions[1]: `},
		{"api_versions: {versions: v1, header: Api-Version}\n", `1:38: header: `},
		{"api_versions:\n  versions: [v1, v2]\n  default: v3\n", `2:3: api_versions: default is one of versions`},
		{"api_versions:\n  versions: [v0, v1]\n", `2:14: no HTTP rule begins with /v0/`},
	} {
		found := faults(t, tc.text)
		if !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
}

// TestAPIVersionsUnderLoad adds versions, takes them away and changes the default while calls go on of paths that each
// configuration has: by REST, WebSocket and transom.v1, for gRPC goes by names.
func TestAPIVersionsUnderLoad(t *testing.T) {
	const path = "/v2/diagnostics/metadata"
	p := start(t, "\napi_versions: {versions: [v1, v2]}\n")
	load := underLoad(t, func(t *testing.T, name string, _, n int, call caller) {
		if n%2 == 0 {
			call(t, p, nil).wantOK(t, name)
			return
		}
		header := map[string]string{"Api-Version": "v2"}
		switch name {
		case "REST":
			if status, _, body := p.get(t, path, header); status != http.StatusOK {
				t.Errorf("REST: %d %s", status, body)
			}
		case "WebSocket":
			if answers, o := p.webSocket(t, path, header); o.code != codes.OK || len(answers) != 1 {
				t.Errorf("WebSocket: %v %s, %d answers", o.code, o.message, len(answers))
			}
		default:
			v2 := map[string]*structpb.ListValue{"api-version": {Values: []*structpb.Value{structpb.NewStringValue("v2")}}}
			if st := p.overSession(t, &wsv1.Open{Path: path, Metadata: v2}); st.GetCode() != 0 {
				t.Errorf("transom.v1: %v", st)
			}
		}
	})
	for i := range 12 {
		p.reload(t, []string{"\napi_versions: {versions: [v1, v2, v3], header: api-version, default: v3}\n", "\napi_versions: {versions: [v1, v2]}\n"}[i%2])
		load.calls(t, 50)
	}
	load.end()
}
