package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// Outbound says how an HTTP service is reached that a provider asks. Its zero value allows https to public addresses.
type Outbound struct {
	// Private allows plain http, and loopback and private addresses.
	Private bool
	// CAFile is a PEM file of the authorities that vouch for the service; empty for the system's.
	CAFile string
}

const (
	// outboundTimeout bounds one exchange, outboundLimit what is read of an answer.
	outboundTimeout = 5 * time.Second
	outboundLimit   = 1 << 20
)

// client is an HTTP client that cannot be led astray: the address is checked once the name is resolved, so that a name
// which changes its address helps no one, and a redirect may not leave the host.
type client struct {
	http    *http.Client
	private bool
}

func newClient(o Outbound) (*client, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, err
		}
		tc.RootCAs = x509.NewCertPool()
		if !tc.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", o.CAFile)
		}
	}
	d := &net.Dialer{Timeout: outboundTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		return checkAddress(address, o.Private)
	}}
	return &client{private: o.Private, http: &http.Client{
		Timeout: outboundTimeout,
		Transport: &http.Transport{
			DialContext: d.DialContext, TLSClientConfig: tc, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if first := via[0].URL; r.URL.Host != first.Host || r.URL.Scheme != first.Scheme || len(via) > 3 || r.Method != via[0].Method {
				return errors.New("redirected elsewhere")
			}
			return nil
		},
	}}, nil
}

// checkAddress refuses addresses at which no service of an operator is: link-local ones (where clouds have their metadata
// servers), multicast and the unspecified; and unless they are allowed, loopback and private ones.
func checkAddress(address string, private bool) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	a := ap.Addr().Unmap()
	inside := a.IsLoopback() || a.IsPrivate() || sharedSpace.Contains(a)
	if a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsInterfaceLocalMulticast() || metadataV6 == a || inside && !private {
		return fmt.Errorf("address %s is not allowed", a)
	}
	return nil
}

var (
	sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	metadataV6  = netip.MustParseAddr("fd00:ec2::254")   // a cloud's metadata server
)

// checkURL refuses what is not an absolute http(s) URL, or plain http to the outside.
func (c *client) checkURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return err
	case u.Host == "" || u.User != nil || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q is not an https URL", raw)
	case u.Scheme == "http" && !c.private:
		return fmt.Errorf("%q is not https, which only a service inside need not be (outbound: {private: true})", raw)
	}
	return nil
}

// do sends r and returns the body of a 200 answer.
func (c *client) do(r *http.Request) (body []byte, header http.Header, err error) {
	if err := c.checkURL(r.URL.String()); err != nil {
		return nil, nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, outboundLimit+1))
	switch {
	case err != nil:
		return nil, nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, nil, fmt.Errorf("%s answers %s", r.URL.Redacted(), resp.Status)
	case len(body) > outboundLimit:
		return nil, nil, fmt.Errorf("%s answers with more than %d bytes", r.URL.Redacted(), outboundLimit)
	}
	return body, resp.Header, nil
}

// getJSON fetches a JSON document.
func (c *client) getJSON(ctx context.Context, url string) ([]byte, http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Accept", "application/json, application/jwk-set+json")
	body, header, err := c.do(r)
	if err != nil {
		return nil, nil, err
	}
	if mt, _, _ := mime.ParseMediaType(header.Get("Content-Type")); mt != "application/json" && !strings.HasSuffix(mt, "+json") {
		return nil, nil, fmt.Errorf("%s answers with content type %q, not JSON", url, header.Get("Content-Type"))
	}
	return body, header, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }
