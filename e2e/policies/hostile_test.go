package policies_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// TestLimitByEveryWay: calls by whatever protocol and version of HTTP count together, and a refusal says by each of them when to
// come again, what is left, and what else every answer says.
func TestLimitByEveryWay(t *testing.T) {
	o := openTo(t, fmt.Sprintf(`
consumers:
  providers: {keys: {api_key: {}}}
  known: {shop: {api_keys: [%q]}}
policies:
- {selector: "*", auth: {require: [keys]}, limits: [{name: all, rate: %d/h}], deprecated: {since: "2026-01-01"}}
`, sha("k"), len(ways)))
	key := http.Header{"x-api-key": {"k"}}
	left := len(ways)
	for _, code := range []codes.Code{codes.OK, codes.ResourceExhausted} {
		o.everyWay(t, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
			r := call(t, metadataAsk(key))
			left = max(0, left-1)
			if r.code != code || code != codes.OK && r.reason != "RATE_LIMITED" {
				t.Errorf("ends with %v %s, want %v", r.code, r.reason, code)
			}
			if bare(way) && code == codes.OK {
				return
			}
			if got, want := r.header.Get("Ratelimit"), fmt.Sprintf(`"all";r=%d;t=`, left); !strings.HasPrefix(got, want) {
				t.Errorf("ratelimit %q, want %s…", got, want)
			}
			if got := r.header.Get("Retry-After"); (got != "") != (code != codes.OK) {
				t.Errorf("%v: retry-after %q", code, got)
			}
			if got := r.header.Get("Deprecation"); got != "@1767225600" {
				t.Errorf("%v: deprecation %q", code, got)
			}
		})
	}
}

// TestRefusedByEveryWay: credentials that are none, doubled, or forged are refused alike, with a challenge.
func TestRefusedByEveryWay(t *testing.T) {
	id := startOIDC(t)
	o := openTo(t, fmt.Sprintf(jwtConfig, id.URL))
	token := "Bearer " + id.token(t, nil)
	o.everyWay(t, func(t *testing.T, way string, call func(*testing.T, ask) *reply) {
		if r := call(t, metadataAsk(http.Header{"authorization": {token}})); r.code != codes.OK || r.seen()["x-transom-consumer"][0] != "main:alice" {
			t.Errorf("a good token: %v %s", r.code, r.reason)
		}
		for _, tc := range []struct {
			values    []string
			reason    string
			challenge string
		}{
			{nil, "CREDENTIALS_MISSING", `Bearer realm="transom"`},
			{[]string{token, token}, "CREDENTIALS_INVALID", `Bearer realm="transom", error="invalid_token"`},
			{[]string{token + ", " + token}, "CREDENTIALS_INVALID", `Bearer realm="transom", error="invalid_token"`},
			{[]string{token + "x"}, "CREDENTIALS_INVALID", `Bearer realm="transom", error="invalid_token"`},
			{[]string{"Bearer a b"}, "CREDENTIALS_INVALID", `Bearer realm="transom", error="invalid_token"`},
		} {
			header := http.Header{}
			if tc.values != nil {
				header["authorization"] = tc.values
			}
			r := call(t, metadataAsk(header))
			if r.code != codes.Unauthenticated || r.reason != tc.reason || r.header.Get("Www-Authenticate") != tc.challenge {
				t.Errorf("%.30q: %v %s, challenge %q; want %s, %q", tc.values, r.code, r.reason, r.header.Get("Www-Authenticate"), tc.reason, tc.challenge)
			}
		}
	})
}
