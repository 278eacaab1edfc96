package listeners

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// clientCerts judges the certificates of a Server's clients by the authorities in force, which handshakes of before may not have
// known. Like sockets it outlives Fronts. The zero value takes every handshake's word.
//
// # Concurrency
// Safe for concurrent use.
type clientCerts struct {
	mu sync.RWMutex // guards what follows
	// roots is nil as long as the authorities are those of every handshake there was.
	roots *x509.CertPool
	// verdicts are whether roots vouch for a certificate.
	verdicts map[certKey]bool
	// streams are the open ones of clients with a certificate.
	streams map[*certStream]struct{}
}

// certKey tells the certificates of clients apart: the client's own, and what it sent to go with it.
type certKey struct{ leaf, issuer *x509.Certificate }

type certStream struct {
	tls *tls.ConnectionState
	end func()
}

// maxVerdicts is how many of them are kept.
const maxVerdicts = 4096

// errWithdrawn is the end of calls by a client whose certificate the authorities in force do not vouch for.
var errWithdrawn = func() error {
	st := status.New(codes.Unauthenticated, "the authority of the client certificate was withdrawn")
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: "CREDENTIALS_REVOKED", Domain: "transom"}); err == nil {
		st = detailed
	}
	return st.Err()
}()

// replace puts roots in force, and ends the streams of those for whom they do not vouch.
func (c *clientCerts) replace(roots *x509.CertPool) {
	c.mu.Lock()
	c.roots, c.verdicts = roots, map[certKey]bool{}
	streams := make([]*certStream, 0, len(c.streams))
	for s := range c.streams {
		streams = append(streams, s)
	}
	c.mu.Unlock()
	for _, s := range streams {
		if !c.vouch(s.tls) {
			s.end()
		}
	}
}

// vouch reports whether the authorities in force vouch for the client of a connection, as its handshake would ask them now.
func (c *clientCerts) vouch(t *tls.ConnectionState) bool {
	key := certKey{leaf: t.PeerCertificates[0]}
	if len(t.PeerCertificates) > 1 {
		key.issuer = t.PeerCertificates[1]
	}
	c.mu.RLock()
	roots := c.roots
	good, judged := c.verdicts[key]
	c.mu.RUnlock()
	if roots == nil || judged {
		return roots == nil || good
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, cert := range t.PeerCertificates[1:] {
		o.Intermediates.AddCert(cert)
	}
	_, err := key.leaf.Verify(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.roots == roots {
		if len(c.verdicts) >= maxVerdicts {
			clear(c.verdicts)
		}
		c.verdicts[key] = err == nil
	}
	return err == nil
}

// enter adds a stream, which end ends if its client's certificate is withdrawn. leave must be called at its end.
func (c *clientCerts) enter(t *tls.ConnectionState, end func()) (leave func()) {
	s := &certStream{t, end}
	c.mu.Lock()
	if c.streams == nil {
		c.streams = map[*certStream]struct{}{}
	}
	c.streams[s] = struct{}{}
	c.mu.Unlock()
	if !c.vouch(t) { // since it was asked for the call
		end()
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, s)
	}
}

// certified is next for a call over a connection with a client certificate.
func (x *exchange) certified(next rpc.Handler) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		certs := x.front.clientCerts
		if !certs.vouch(x.Request.TLS) {
			x.dismiss()
			return x.withdrawn()
		}
		if call.Method.Unary() {
			return next(ctx, call)
		}
		ctx, cut := context.WithCancelCause(ctx)
		defer cut(nil)
		defer certs.enter(x.Request.TLS, func() { cut(errWithdrawn) })()
		err := next(ctx, call)
		if err != nil && errors.Is(context.Cause(ctx), errWithdrawn) {
			return x.withdrawn()
		}
		return err
	}
}

// withdrawn is errWithdrawn, and says so to observers.
func (x *exchange) withdrawn() error {
	x.info.Fail(rpc.SourceClient)
	x.info.Refuse("auth", "CREDENTIALS_REVOKED")
	return errWithdrawn
}

// dismiss asks the client to open another connection, on which it may show another certificate.
func (x *exchange) dismiss() {
	if q, ok := x.Request.Context().Value(quicKey{}).(*quicConn); ok {
		q.of.mu.Lock()
		defer q.of.mu.Unlock()
		q.of.dismiss(q)
	} else if x.Protocol != rpc.ProtocolWebSocket { // whose answer was given, or is the connection's last
		x.w.Header()["Connection"] = connClose
	}
}

// SetClientCAs makes roots the authorities that vouch for clients with a certificate, instead of those of their handshakes: calls of
// others end with UNAUTHENTICATED, their streams with it, and their clients are asked to open other connections, but those of sessions
// (transom.v1, WebTransport), which see each call refused. It is for when the Config's TLS has other ClientCAs in force than before, and
// those of calls to come. nil vouches for none.
func (s *Server) SetClientCAs(roots *x509.CertPool) {
	if roots == nil {
		roots = x509.NewCertPool()
	}
	s.clientCerts.replace(roots)
}
