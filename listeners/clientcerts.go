package listeners

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// clientCerts judges the certificates of a Server's clients by the authorities in force, which handshakes of before may not have
// known, and those that showed none by whether one is required now. Like sockets it outlives Fronts. The zero value takes every
// handshake's word.
//
// # Concurrency
// Safe for concurrent use.
type clientCerts struct {
	// required says that clients without a certificate are not served.
	required atomic.Bool

	mu sync.RWMutex // guards what follows
	// roots is nil as long as the authorities are those of every handshake there was.
	roots *x509.CertPool
	// verdicts are whether roots vouch for a certificate.
	verdicts map[certKey]bool
	// streams are the open ones over TLS.
	streams map[*certStream]struct{}
}

// certKey tells the certificates of clients apart: the client's own, and what it sent to go with it.
type certKey struct{ leaf, issuer *x509.Certificate }

type certStream struct {
	tls *tls.ConnectionState
	end func(error)
}

// maxVerdicts is how many of them are kept.
const maxVerdicts = 4096

// Ends of calls: of a client whose certificate the authorities in force do not vouch for, and of one that has none where one is required
// now.
var (
	errWithdrawn   = refusal("CREDENTIALS_REVOKED", "the authority of the client certificate was withdrawn")
	errUncertified = refusal("CREDENTIALS_MISSING", "a client certificate is required now")
)

func refusal(reason, text string) error {
	st := status.New(codes.Unauthenticated, text)
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "transom"}); err == nil {
		st = detailed
	}
	return st.Err()
}

// replace puts roots in force.
func (c *clientCerts) replace(roots *x509.CertPool) {
	c.mu.Lock()
	c.roots, c.verdicts = roots, map[certKey]bool{}
	c.mu.Unlock()
	c.judge()
}

// require says whether clients must have a certificate.
func (c *clientCerts) require(required bool) {
	c.required.Store(required)
	c.judge()
}

// judge ends the streams of those who are vouched for no more.
func (c *clientCerts) judge() {
	c.mu.Lock()
	streams := make([]*certStream, 0, len(c.streams))
	for s := range c.streams {
		streams = append(streams, s)
	}
	c.mu.Unlock()
	for _, s := range streams {
		if err := c.vouch(s.tls); err != nil {
			s.end(err)
		}
	}
}

// vouch is nil if the handshake of a connection would succeed now, by the authorities in force or, without a certificate, since none is
// required; otherwise what calls over it end with.
func (c *clientCerts) vouch(t *tls.ConnectionState) error {
	if len(t.PeerCertificates) == 0 {
		if c.required.Load() {
			return errUncertified
		}
		return nil
	}
	key := certKey{leaf: t.PeerCertificates[0]}
	if len(t.PeerCertificates) > 1 {
		key.issuer = t.PeerCertificates[1]
	}
	c.mu.RLock()
	roots := c.roots
	good, judged := c.verdicts[key]
	c.mu.RUnlock()
	if roots == nil || good {
		return nil
	}
	if judged {
		return errWithdrawn
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
	if err != nil {
		return errWithdrawn
	}
	return nil
}

// enter adds a stream, which end ends if its client is vouched for no more. leave must be called at its end.
func (c *clientCerts) enter(t *tls.ConnectionState, end func(error)) (leave func()) {
	s := &certStream{t, end}
	c.mu.Lock()
	if c.streams == nil {
		c.streams = map[*certStream]struct{}{}
	}
	c.streams[s] = struct{}{}
	c.mu.Unlock()
	if err := c.vouch(t); err != nil { // since it was asked for the call
		end(err)
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, s)
	}
}

// certified is next for a call over TLS, for which the client's certificate must be vouched for to its end.
func (x *exchange) certified(next rpc.Handler) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		certs := x.front.clientCerts
		if err := certs.vouch(x.Request.TLS); err != nil {
			x.dismiss()
			return x.disowned(err)
		}
		if call.Method.Unary() {
			return next(ctx, call)
		}
		ctx, cut := context.WithCancelCause(ctx)
		defer cut(nil)
		defer certs.enter(x.Request.TLS, cut)()
		err := next(ctx, call)
		if cause := context.Cause(ctx); err != nil && (errors.Is(cause, errWithdrawn) || errors.Is(cause, errUncertified)) {
			return x.disowned(cause)
		}
		return err
	}
}

// disowned is err, one of vouch's, and says so to observers.
func (x *exchange) disowned(err error) error {
	x.info.Fail(rpc.SourceClient)
	reason := "CREDENTIALS_REVOKED"
	if errors.Is(err, errUncertified) {
		reason = "CREDENTIALS_MISSING"
	}
	x.info.Refuse("auth", reason)
	return err
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

// RequireClientCerts says whether clients without a certificate are served on; if not, what SetClientCAs says of others happens to them. It
// is for when the Config's TLS has another ClientAuth in force than before.
func (s *Server) RequireClientCerts(required bool) { s.clientCerts.require(required) }
