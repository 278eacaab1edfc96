package gateway

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"transom/gateway/acme"
	"transom/listeners"
	configv1 "transom/proto/transom/config/v1"
)

// certificates are a listener's TLS settings in force. Each handshake takes them anew, so that a reload needs no new socket.
type certificates struct{ inForce atomic.Pointer[listenerTLS] }

// listenerTLS are a listener's TLS settings, as compiled.
type listenerTLS struct {
	config *tls.Config
	// issuer may be nil.
	issuer *acme.Issuer
}

// config is what the listener is given.
func (c *certificates) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			now := c.inForce.Load()
			if now.issuer != nil && len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.Protocol {
				return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{acme.Protocol}, GetCertificate: now.issuer.Challenge}, nil
			}
			return now.config, nil
		},
	}
}

// replace puts the settings of now in force, for what is open on the server too.
func (c *certificates) replace(now *listenerTLS, server *listeners.Server) {
	before := c.inForce.Swap(now)
	if !before.config.ClientCAs.Equal(now.config.ClientCAs) {
		server.SetClientCAs(now.config.ClientCAs)
	}
	if before.config.ClientAuth != now.config.ClientAuth {
		server.RequireClientCerts(now.config.ClientAuth == tls.RequireAndVerifyClientCert)
	}
}

// notAfter is when the first of the certificates expires, and its name; zero if there is none yet.
func (c *certificates) notAfter() (at time.Time, subject string) {
	now := c.inForce.Load()
	for _, pair := range now.config.Certificates {
		if at.IsZero() || pair.Leaf.NotAfter.Before(at) {
			at, subject = pair.Leaf.NotAfter, pair.Leaf.Subject.CommonName
			if len(pair.Leaf.DNSNames) > 0 {
				subject = pair.Leaf.DNSNames[0]
			}
		}
	}
	for _, s := range now.issued() {
		if !s.NotAfter.IsZero() && (at.IsZero() || s.NotAfter.Before(at)) {
			at, subject = s.NotAfter, s.Name
		}
	}
	return at, subject
}

// issued are the names that an authority certifies.
func (l *listenerTLS) issued() []acme.Status {
	if l.issuer == nil {
		return nil
	}
	return l.issuer.Status()
}

// loadTLS reads the files of a listener's TLS settings.
func loadTLS(t *configv1.TLS) (*tls.Config, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	var pairs []*configv1.KeyPair
	if t.GetCertificate() != "" {
		pairs = append(pairs, &configv1.KeyPair{Certificate: t.GetCertificate(), Key: t.GetKey()})
	}
	pairs = append(pairs, t.GetMore()...)
	var errs []error
	for _, p := range pairs {
		pair, err := tls.LoadX509KeyPair(p.GetCertificate(), p.GetKey())
		if err != nil {
			errs = append(errs, fmt.Errorf("certificate %s: %w", p.GetCertificate(), err))
			continue
		}
		tc.Certificates = append(tc.Certificates, pair)
	}
	switch t.GetClientAuth() {
	case configv1.TLS_CLIENT_AUTH_REQUEST:
		tc.ClientAuth = tls.VerifyClientCertIfGiven
	case configv1.TLS_CLIENT_AUTH_REQUIRE:
		tc.ClientAuth = tls.RequireAndVerifyClientCert
	case configv1.TLS_CLIENT_AUTH_UNSPECIFIED:
		if t.GetClientCa() != "" {
			tc.ClientAuth = tls.RequireAndVerifyClientCert
		}
	default:
	}
	if t.GetClientCa() != "" {
		pem, err := os.ReadFile(t.GetClientCa())
		tc.ClientCAs = x509.NewCertPool()
		if err == nil && !tc.ClientCAs.AppendCertsFromPEM(pem) {
			err = errors.New("no certificate in it")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("client_ca %s: %w", t.GetClientCa(), err))
		}
	}
	return tc, errors.Join(errs...)
}

// watchedFiles are the files that cfg names, beside descriptors, whose change calls for a reload.
func watchedFiles(cfg *configv1.Config) []string {
	var files []string
	for _, l := range cfg.GetListeners() {
		t := l.GetTls()
		if t == nil {
			continue
		}
		if t.GetCertificate() != "" {
			files = append(files, t.GetCertificate(), t.GetKey())
		}
		for _, p := range t.GetMore() {
			files = append(files, p.GetCertificate(), p.GetKey())
		}
		if t.GetClientCa() != "" {
			files = append(files, t.GetClientCa())
		}
	}
	if path := cfg.GetHttpRules().GetServiceConfig(); path != "" {
		files = append(files, path)
	}
	return files
}

// digestOf identifies the content of files; one that can't be read counts as empty.
func digestOf(files []string) [sha256.Size]byte {
	h := sha256.New()
	for _, path := range files {
		b, _ := os.ReadFile(path) // an unreadable file is for the reload to complain of
		fmt.Fprintf(h, "%q %d ", path, len(b))
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
