package policies_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
)

// TestEveryPolicyReloaded changes one policy after the other while calls go on over REST, gRPC and WebSocket that every
// configuration allows: none fails. Then it puts one in force that refuses them. API keys and tokens are in
// TestCredentialsUnderLoad, rules in TestReloadUnderLoad, validation in TestValidateUnderLoad, more of ext_authz in
// TestExternalUnderLoad, transformation in TestTransformReload, where calls go in TestTrafficUnderLoad and TestCanaryUnderLoad,
// versions in TestAPIVersionsUnderLoad.
func TestEveryPolicyReloaded(t *testing.T) {
	as, redis := startIntrospector(t), startRedis(t)
	_, authz := startAuthorizer(t)
	hash, err := bcrypt.GenerateFromPassword([]byte("sesame"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	other, err := bcrypt.GenerateFromPassword([]byte("another"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t)
	ca.issue(t, &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "edge")
	ca.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "till 7"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, "till")
	tlsListener := strings.ReplaceAll("\nlisteners: [{address: \"127.0.0.1:0\", tls: {certificate: DIR/edge.crt, key: DIR/edge.key, client_ca: DIR/ca.crt, client_auth: request}}]\n", "DIR", ca.dir)

	for _, tc := range []struct {
		name   string
		header map[string]string
		// text is the configuration, with %s for each of between, which are put in force in turn, and then for last.
		text    string
		between []string
		last    string
		code    codes.Code
		http    int
		reason  string
	}{
		{
			name: "basic", header: map[string]string{"authorization": "Basic YWxpOnNlc2FtZQ=="},
			text:    "consumers: {providers: {people: {basic: {}}}, known: {ali: {%s}}}\npolicies: [{selector: \"*\", auth: {require: [people]}}]\n",
			between: []string{"password: \"" + string(hash) + "\"", "plan: gold, password: \"" + string(hash) + "\""},
			last:    "password: \"" + string(other) + "\"", code: codes.Unauthenticated, http: 401, reason: "CREDENTIALS_INVALID",
		},
		{
			name: "introspection", header: map[string]string{"authorization": "Bearer opaque-of-bob"},
			text: "consumers: {providers: {opaque: {introspection: {url: \"" + as.URL + "\", client_id: gateway, outbound: {private: true}, %s}}}}\n" +
				"policies: [{selector: \"*\", auth: {require: [opaque]}}]\n",
			between: []string{"client_secret: s3cret", "client_secret: s3cret, cache: 1s"},
			last:    "client_secret: wrong", code: codes.Unavailable, http: 503, reason: "CREDENTIALS_UNKNOWN",
		},
		{
			name:    "client certificates",
			text:    "consumers: {providers: {certs: {client_certificate: {}}}, known: {shop: {identities: [\"certs:cn:till 7\"]%s}}}\npolicies: [{selector: \"*\", auth: {require: [certs]}, access: {groups: [tills]}}]" + tlsListener,
			between: []string{", groups: [tills]", ", plan: gold, groups: [tills, others]"},
			last:    "", code: codes.PermissionDenied, http: 403, reason: "GROUP_MISSING",
		},
		{
			name: "ext_authz", header: map[string]string{"cookie": "session=good"},
			text: "consumers: {providers: {sessions: {external: {cluster: authz, timeout: 10s}}}}\n" +
				"policies: [{selector: \"*\", cluster: bank, auth: {require: [sessions]}, %s}]\n",
			between: []string{"access: {groups: [staff]}", "access: {deny_ips: [192.0.2.1]}"},
			last:    "access: {groups: [admins]}", code: codes.PermissionDenied, http: 403, reason: "GROUP_MISSING",
		},
		{
			name: "limits", text: "policies: [{selector: \"*\", limits: [%s]}]\n",
			between: []string{
				"{rate: 1000000/s, per: ip}", "{rate: 500000/s, burst: 100000, everybody: true}, {concurrent: 100}", "{quota: 1000000/day, per: method}, {rate: 100000/s, messages: true}",
			},
			last: "{rate: 1/h, everybody: true}", code: codes.ResourceExhausted, http: 429, reason: "RATE_LIMITED",
		},
		{
			name: "shared limits", text: "redis: {addresses: [\"" + redis.Addr + "\"], timeout: 10s}\npolicies: [{selector: \"*\", limits: [%s]}]\n",
			between: []string{"{name: a, rate: 1000000/s}", "{name: a, rate: 500000/s}, {name: b, quota: 1000000/day}"},
			last:    "{name: c, quota: 1/month, everybody: true}", code: codes.ResourceExhausted, http: 429, reason: "QUOTA_EXCEEDED",
		},
		{
			name: "cache", text: "policies: [{selector: bank.v1.Diagnostics.Metadata, %s}]\n",
			between: []string{"cache: {ttl: 1h}", "cache: {ttl: 0.001s, stale_while_revalidate: 1s}", "timeout: 10s", "cache: {ttl: 1h, shared: true}"},
			last:    "faults: {abort: INTERNAL}", code: codes.Internal, http: 500, reason: "FAULT_INJECTED",
		},
		{
			name: "size and time", text: "policies: [{selector: bank.v1.Diagnostics.*, %s}]\n",
			between: []string{"timeout: 10s, message_bytes: 1MiB", "timeout: 20s, stream_timeout: 1h", "message_bytes: 1024, stream_idle_timeout: 1m"},
			last:    "timeout: 0.1s, faults: {delay: 1h}", code: codes.DeadlineExceeded, http: 504,
		},
		{
			name: "edge", text: "security: {%s}\n",
			between: []string{"request_id: {}, hsts: 1h", "response_headers: {x-frame-options: DENY}, trusted_proxies: [127.0.0.1]", "trusted_origins: [\"https://app.example\"]"},
			last:    "default_deny: true", code: codes.PermissionDenied, http: 403, reason: "NOT_ALLOWED",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := func(part string) string { return "\n" + fmt.Sprintf(tc.text, part) }
			clusters := ""
			if tc.name == "ext_authz" {
				clusters = ", authz: {target: \"static:///" + authz + "\"}"
			}
			p := startWith(t, text(tc.between[0]), clusters)
			if strings.Contains(tc.text, "tls:") {
				p.useTLS(t, ca, "till")
			}
			load := underLoad(t, func(t *testing.T, name string, _, _ int, call caller) { call(t, p, tc.header).wantOK(t, name) })
			for i := range 3 * len(tc.between) {
				p.reload(t, text(tc.between[(i+1)%len(tc.between)]))
				load.calls(t, 20)
			}
			load.end()
			p.reload(t, text(tc.last))
			if tc.code == codes.ResourceExhausted {
				callREST(t, p, tc.header).wantOK(t, "the one call there is")
			}
			everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
				call(t, p, tc.header).want(t, "after the last reload", tc.code, tc.http, tc.reason)
			})
		})
	}
}

// useTLS makes the proxy's clients show a certificate, whatever the listener says it takes; none if name is empty.
func (p *proxy) useTLS(t *testing.T, ca *authority, name string) {
	t.Helper()
	var pair tls.Certificate
	if name != "" {
		var err error
		if pair, err = tls.LoadX509KeyPair(filepath.Join(ca.dir, name+".crt"), filepath.Join(ca.dir, name+".key")); err != nil {
			t.Fatal(err)
		}
	}
	tc := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", MinVersion: tls.VersionTLS12}
	tc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	tc.RootCAs.AddCert(ca.cert)
	p.tls = true
	p.http.CloseIdleConnections()
	p.http = &http.Client{Transport: &http.Transport{TLSClientConfig: tc.Clone()}}
	p.conn.Close()
	var err error
	if p.conn, err = grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(tc))); err != nil {
		t.Fatal(err)
	}
}
