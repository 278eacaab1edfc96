package listeners

import (
	"crypto/tls"
	"net/http"
	"testing"
)

// TestOwnOrigin: a page of the own host is one if scheme and port are the request's, and the browser does not say otherwise.
func TestOwnOrigin(t *testing.T) {
	for _, tc := range []struct {
		origin string
		site   []string
		tls    bool
		want   bool
	}{
		{"https://api.example", nil, true, true},
		{"https://api.example", []string{"same-origin"}, true, true},
		{"https://api.example", []string{"none"}, true, true},
		{"https://api.example", []string{"same-site"}, true, false},
		{"https://api.example", []string{"cross-site"}, true, false},
		{"https://api.example", []string{"same-origin", "cross-site"}, true, false},
		{"http://api.example", nil, true, false},
		{"http://api.example", []string{"same-origin"}, true, false},
		{"https://api.example:8443", nil, true, false},
		{"http://api.example", nil, false, true},
		{"https://api.example", nil, false, true}, // a proxy has the TLS
		{"https://api.example", []string{"same-site"}, false, false},
		{"ftp://api.example", nil, false, false},
		{"api.example", nil, false, false},
		{"null", nil, false, false},
	} {
		r := &http.Request{Host: "API.example", Header: http.Header{}}
		if tc.site != nil {
			r.Header["Sec-Fetch-Site"] = tc.site
		}
		if tc.tls {
			r.TLS = &tls.ConnectionState{}
		}
		if got := isOwn(r, tc.origin); got != tc.want {
			t.Errorf("%s, %q, TLS %v: %v, want %v", tc.origin, tc.site, tc.tls, got, tc.want)
		}
	}
}
