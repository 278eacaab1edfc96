package policies_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

// errRevoked is the end of a stream whose credential was withdrawn.
var errRevoked = errors.New("UNAUTHENTICATED, CREDENTIALS_REVOKED")

const watched = "customers/1/accounts/1"

// watcher opens a stream of an account's transactions, the recorded ones first, and returns what waits for the next.
type watcher func(ctx context.Context, t *testing.T, p *proxy, header map[string]string) (next func() (string, error))

var watchers = map[string]watcher{
	"gRPC": func(ctx context.Context, t *testing.T, p *proxy, header map[string]string) func() (string, error) {
		s, err := bankv1.NewAccountsClient(p.conn).Watch(metadata.NewOutgoingContext(ctx, metadata.New(header)), &bankv1.WatchRequest{Name: watched})
		if err != nil {
			t.Fatal(err)
		}
		return func() (string, error) {
			m, err := s.Recv()
			for _, d := range status.Convert(err).Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == "CREDENTIALS_REVOKED" && status.Code(err) == 16 {
					return "", errRevoked
				}
			}
			return m.GetReference(), err
		}
	},
	"REST": func(ctx context.Context, t *testing.T, p *proxy, header map[string]string) func() (string, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url("http")+"/v1/"+watched+"/transactions:watch", nil)
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
		t.Cleanup(func() { _ = resp.Body.Close() })
		lines := bufio.NewScanner(resp.Body)
		return func() (string, error) {
			switch {
			case !lines.Scan():
				return "", fmt.Errorf("the end of the body: %w", lines.Err())
			case strings.Contains(lines.Text(), "CREDENTIALS_REVOKED") && strings.Contains(lines.Text(), `"code":16`):
				return "", errRevoked
			case strings.HasPrefix(lines.Text(), `{"@error"`):
				return "", errors.New(lines.Text())
			}
			return lines.Text(), nil
		}
	},
	"WebSocket": func(ctx context.Context, t *testing.T, p *proxy, header map[string]string) func() (string, error) {
		return watchSocket(ctx, t, p, header, "/v1/"+watched+"/transactions:watch", "", "", func(_ []byte, err error) error {
			if websocket.CloseStatus(err) == 4016 {
				return errRevoked
			}
			return err
		})
	},
	"transom.v1": func(ctx context.Context, t *testing.T, p *proxy, header map[string]string) func() (string, error) {
		open := `{"id":1,"open":{"method":"/bank.v1.Accounts/Watch"},"message":{"name":"` + watched + `"},"end":true}`
		return watchSocket(ctx, t, p, header, "/", "transom.v1", open, func(b []byte, err error) error {
			if strings.Contains(string(b), "CREDENTIALS_REVOKED") && strings.Contains(string(b), `"code":16`) {
				return errRevoked
			}
			return err
		})
	},
}

func watchSocket(ctx context.Context, t *testing.T, p *proxy, header map[string]string, path, protocol, first string, judge func([]byte, error) error) func() (string, error) {
	t.Helper()
	o := &websocket.DialOptions{HTTPHeader: http.Header{}}
	for k, v := range header {
		o.HTTPHeader.Set(k, v)
	}
	if protocol != "" {
		o.Subprotocols = []string{protocol}
	}
	c, _, err := websocket.Dial(ctx, p.url("ws")+path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	if first != "" {
		if err := c.Write(ctx, websocket.MessageText, []byte(first)); err != nil {
			t.Fatal(err)
		}
	}
	return func() (string, error) {
		_, b, err := c.Read(ctx)
		return string(b), judge(b, err)
	}
}

// TestRevocationEndsStreams takes a key and a password out of the configuration while streams are open that were begun with them,
// and puts another password in another's place: these streams end, those of other callers and keys go on.
func TestRevocationEndsStreams(t *testing.T) {
	hash := func(password string) string {
		h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		return string(h)
	}
	config := func(known, plan string) string {
		return fmt.Sprintf(`
consumers:
  providers: {keys: {api_key: {}}, people: {basic: {}}}
  known: {%s}
policies:
- {selector: "*", timeout: %s, auth: {require: [keys, people]}}
`, known, plan)
	}
	basic := func(user, password string) map[string]string {
		return map[string]string{"authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))}
	}
	key := func(k string) map[string]string { return map[string]string{"x-api-key": k} }
	ali, bea := hash("sesame"), hash("open")
	before := fmt.Sprintf(`shop: {api_keys: [%q, %q]}, till: {api_keys: [%q]}, ali: {password: %q}, bea: {password: %q}, cid: {password: %q}`, sha("old"), sha("new"), sha("till"), ali, bea, bea)
	after := fmt.Sprintf(`shop: {api_keys: [%q]}, store: {api_keys: [%q]}, ali: {password: %q}, bea: {password: %q}`, sha("new"), sha("till"), hash("another"), bea)
	p := start(t, config(before, "5s"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	// transfer makes a transaction that all who watch see, by that reference.
	transfer := func(reference string) {
		t.Helper()
		_, err := bankv1.NewAccountsClient(p.conn).Transfer(metadata.NewOutgoingContext(ctx, metadata.New(key("new"))), &bankv1.TransferRequest{
			Name: "1", Destination: &bankv1.TransferRequest_Account{Account: "customers/1/accounts/2"},
			Amount: &bankv1.Money{Currency: "EUR", Units: 1}, Reference: reference,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	type stream struct {
		name  string
		stays bool
		next  func() (string, error)
	}
	// sees waits until the stream has the transaction of that reference, or ends.
	sees := func(s stream, reference string) error {
		for {
			if text, err := s.next(); err != nil || strings.Contains(text, reference) {
				return err
			}
		}
	}
	var streams []stream
	for way, open := range watchers {
		for what, c := range map[string]struct {
			header map[string]string
			stays  bool
		}{
			"a key that is withdrawn":          {key("old"), false},
			"another key of that consumer":     {key("new"), true},
			"a key that is another consumer's": {key("till"), false},
			"a password that is another":       {basic("ali", "sesame"), false},
			"a password that is what it was":   {basic("bea", "open"), true},
			"a consumer that is known no more": {basic("cid", "open"), false},
		} {
			s := stream{way + ", " + what, c.stays, open(ctx, t, p, c.header)}
			if _, err := s.next(); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			streams = append(streams, s)
		}
	}
	p.reload(t, config(before, "6s"))
	transfer("first")
	for _, s := range streams {
		if err := sees(s, "first"); err != nil {
			t.Errorf("%s: %v after a reload that left it what it is", s.name, err)
		}
	}
	p.reload(t, config(after, "6s"))
	transfer("second")
	for _, s := range streams {
		until := "second"
		if !s.stays {
			until = "its end" // one that was on its way may have come
		}
		switch err := sees(s, until); {
		case s.stays && err != nil:
			t.Errorf("%s: %v", s.name, err)
		case !s.stays && !errors.Is(err, errRevoked):
			t.Errorf("%s: %v, want %v", s.name, err, errRevoked)
		}
	}
}

// TestClientCAReplaced: the authorities of clients are read again with each reload. Connections that the same ones vouch for live on;
// if others are in the file, calls over them are refused and streams end.
func TestClientCAReplaced(t *testing.T) {
	ca, next := newAuthority(t), newAuthority(t)
	for _, a := range []*authority{ca, next} {
		a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "till 7"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, "till")
	}
	ca.issue(t, &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "edge")
	clients := filepath.Join(ca.dir, "clients.pem")
	use := func(authorities ...*authority) {
		t.Helper()
		var content []byte
		for _, a := range authorities {
			b, err := os.ReadFile(a.dir + "/ca.crt")
			if err != nil {
				t.Fatal(err)
			}
			content = append(content, b...)
		}
		process.Replace(t, clients, content)
	}
	use(ca)
	text := fmt.Sprintf(`
consumers: {providers: {certs: {client_certificate: {}}}}
policies: [{selector: "*", auth: {require: [certs]}}]
listeners: [{address: "127.0.0.1:0", tls: {certificate: %q, key: %q, client_ca: %q}}]
`, ca.dir+"/edge.crt", ca.dir+"/edge.key", clients)
	p := start(t, text)
	p.useTLS(t, ca, "till")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream := watchers["gRPC"](ctx, t, p, nil)
	if _, err := stream(); err != nil {
		t.Fatal(err)
	}
	load := underLoad(t, func(t *testing.T, name string, _, _ int, call caller) {
		call(t, p, nil).wantOK(t, name+", vouched for still")
	})
	for _, authorities := range [][]*authority{{ca}, {next, ca}, {ca}, {ca, next}} {
		use(authorities...)
		p.reload(t, text)
		load.calls(t, 24)
	}
	load.end()
	use(next)
	p.reload(t, text)
	callREST(t, p, nil).want(t, "REST", codes.Unauthenticated, 401, "CREDENTIALS_REVOKED")
	for err := error(nil); !errors.Is(err, errRevoked); {
		if _, err = stream(); err != nil && !errors.Is(err, errRevoked) {
			t.Fatalf("the stream: %v", err)
		}
	}
}

// TestStreamsOfOtherTerms: a stream went on without a certificate after a reload had begun to require one, and by the authority of before
// if the reload that replaced it put another listener in the place of the stream's.
func TestStreamsOfOtherTerms(t *testing.T) {
	ca, next := newAuthority(t), newAuthority(t)
	ca.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "till 7"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, "till")
	ca.issue(t, &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "edge")
	listener := func(ca, clients *authority, auth, more string) string {
		return fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\", tls: {certificate: %q, key: %q, client_ca: %q, client_auth: %s}%s}]\n",
			ca.dir+"/edge.crt", ca.dir+"/edge.key", clients.dir+"/ca.crt", auth, more)
	}
	const policies = "policies: [{selector: \"*\", auth: {anonymous: true}}]\n"
	const other = ", limits: {streams: 7}"
	for _, tc := range []struct {
		name, client, before string
		after                []string // by a reload each
		reason               string
	}{
		{"required", "", listener(ca, ca, "none", ""), []string{listener(ca, ca, "require", "")}, "CREDENTIALS_MISSING"},
		{"required of another listener", "", listener(ca, ca, "request", ""), []string{listener(ca, ca, "require", other)}, "CREDENTIALS_MISSING"},
		{"another authority of another listener", "till", listener(ca, ca, "require", ""), []string{listener(ca, next, "require", other)}, "CREDENTIALS_REVOKED"},
		{"another authority as it drains", "till", listener(ca, ca, "require", ""), []string{listener(ca, ca, "require", other), listener(ca, next, "require", other)}, "CREDENTIALS_REVOKED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := start(t, policies+tc.before)
			p.useTLS(t, ca, tc.client)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			s, err := bankv1.NewAccountsClient(p.conn).Watch(ctx, &bankv1.WatchRequest{Name: watched})
			if err == nil {
				_, err = s.Recv()
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range tc.after {
				p.reload(t, policies+text)
			}
			for err == nil {
				_, err = s.Recv()
			}
			reason := ""
			for _, d := range status.Convert(err).Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok {
					reason = info.GetReason()
				}
			}
			if status.Code(err) != codes.Unauthenticated || reason != tc.reason {
				t.Errorf("the stream ends with %v, reason %q, want UNAUTHENTICATED, %s", err, reason, tc.reason)
			}
		})
	}
}
