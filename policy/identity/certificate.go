package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"

	"transom/rpc"
)

// ClientCertificates identifies callers by the TLS certificates that the listener has checked.
type ClientCertificates struct {
	name  string
	cache credentialCache
}

// certificateVoucher is that of all callers with a certificate.
const certificateVoucher = "client_certificate"

// NewClientCertificates makes the provider of that name.
func NewClientCertificates(name string) *ClientCertificates { return &ClientCertificates{name: name} }

func (p *ClientCertificates) place() place            { return place{} }
func (p *ClientCertificates) challenge(string) string { return "" } // HTTP has none

func (p *ClientCertificates) knows(who *caller) bool { return who.voucher == certificateVoucher }

func (p *ClientCertificates) identify(_ context.Context, call *rpc.Call) (*caller, error) {
	t := call.Peer.TLS
	if t == nil || len(t.VerifiedChains) == 0 || len(t.PeerCertificates) == 0 {
		return nil, errNone
	}
	cert := t.PeerCertificates[0]
	now := time.Now()
	if !now.Before(cert.NotAfter) { // since the handshake
		return nil, &refusal{reasonExpired, "the client certificate has expired"}
	}
	seen := tagOf(cert.Raw)
	if e, ok := p.cache.get(seen, now); ok {
		return e.who, nil
	}
	subject := subjectOf(cert)
	if subject == "" {
		return nil, invalid("the client certificate does not say whose it is")
	}
	hash := sha256.Sum256(cert.Raw)
	who := &caller{identity: p.name + ":" + subject, voucher: certificateVoucher}
	who.Principal = rpc.Principal{Consumer: who.identity, Provider: p.name, Expires: cert.NotAfter, Claims: map[string]any{
		"sub": subject, "cn": cert.Subject.CommonName, "fingerprint": hex.EncodeToString(hash[:]), "serial": cert.SerialNumber.Text(16),
		"organizations": anyList(cert.Subject.Organization), "dns": anyList(cert.DNSNames), "emails": anyList(cert.EmailAddresses),
	}}
	p.cache.put(seen, cached{who: who, until: cert.NotAfter}, now)
	return who, nil
}

// subjectOf names whose a certificate is by kind and value.
func subjectOf(c *x509.Certificate) string {
	switch {
	case len(c.URIs) > 0:
		return "uri:" + c.URIs[0].String()
	case len(c.DNSNames) > 0:
		return "dns:" + c.DNSNames[0]
	case len(c.EmailAddresses) > 0:
		return "email:" + c.EmailAddresses[0]
	case c.Subject.CommonName != "":
		return "cn:" + c.Subject.CommonName
	}
	return ""
}

func anyList(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
