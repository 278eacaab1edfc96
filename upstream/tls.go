package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
)

// TLS is how a cluster's endpoints are spoken to over TLS 1.2 or later. The files are read again for each connection,
// so that they can be renewed in place; while one is unreadable or malformed the last good ones are used.
type TLS struct {
	// CAFile holds the PEM certificates that endpoints' certificates must lead to. Empty: the system's.
	CAFile string
	// CertFile and KeyFile are transom's own certificate and key in PEM, for backends that ask for one. Both or neither.
	CertFile, KeyFile string
	// ServerName is the name that endpoints' certificates must hold. Empty: the host of the cluster's authority.
	ServerName string
	// SkipVerify accepts any certificate: for tests only.
	SkipVerify bool
}

// load reads the files into a configuration.
func (t *TLS) load() (*tls.Config, error) {
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         t.ServerName,
		InsecureSkipVerify: t.SkipVerify, //nolint:gosec // what it is for
		NextProtos:         []string{"h2"},
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authorities: %s holds no PEM certificate", t.CAFile)
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("certificate and key must be given together")
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

// credentials are t's for grpc-go.
func (t *TLS) credentials(log *slog.Logger) (credentials.TransportCredentials, error) {
	cfg, err := t.load()
	if err != nil {
		return nil, err
	}
	c := &reloadingCreds{tls: *t, log: log}
	c.good.Store(cfg)
	c.TransportCredentials = credentials.NewTLS(cfg)
	return c, nil
}

// reloadingCreds are TLS credentials that read their files for each handshake.
type reloadingCreds struct {
	credentials.TransportCredentials
	tls  TLS
	good atomic.Pointer[tls.Config]
	log  *slog.Logger
}

func (c *reloadingCreds) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := c.tls.load()
	if err != nil {
		c.log.Error("TLS files cannot be read again, the earlier ones stay in use", "error", err)
		cfg = c.good.Load()
	} else {
		c.good.Store(cfg)
	}
	if c.tls.ServerName != "" {
		authority = c.tls.ServerName // NewTLS goes by this alone
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

// Info leaves the server name out, which is for the certificate only: grpc-go would make it the authority of calls.
func (c *reloadingCreds) Info() credentials.ProtocolInfo {
	info := c.TransportCredentials.Info()
	info.ServerName = "" //nolint:staticcheck // deprecated to set, but grpc-go still reads it
	return info
}

func (c *reloadingCreds) Clone() credentials.TransportCredentials {
	n := &reloadingCreds{TransportCredentials: c.TransportCredentials.Clone(), tls: c.tls, log: c.log}
	n.good.Store(c.good.Load())
	return n
}
