package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/rpc/h2wire"
	"transom/upstream/h2client"
	"transom/upstream/lbhost"
	"transom/upstream/loadaware"
)

// ownBackend is the backend of our own transport: connections of package h2client under the balancers that package lbhost
// hosts.
type ownBackend struct {
	channel  *lbhost.Channel
	policies *policies
	// largest is the limit of an answer's message.
	largest  int
	registry loadaware.Registry
	replies  sync.Pool // of *h2client.Reply
}

// ownConn is a connection with its endpoint's name.
type ownConn struct {
	*h2client.Conn
	name string
}

// newOwn makes a backend for a cluster with policies p.
func newOwn(cfg Config, p *policies, log *slog.Logger) (*ownBackend, error) {
	text, err := parseTarget(cfg.Target)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	b := &ownBackend{policies: p, largest: orDefault(cfg.MaxMessageBytes, DefaultMaxMessageBytes)}
	b.registry.Log = log
	b.replies.New = func() any { return &h2client.Reply{} }
	c := lbhost.Config{
		Target:         resolver.Target{URL: *u},
		Authority:      authorityOf(cfg, text),
		ConnectTimeout: orDefault(cfg.ConnectTimeout, 5*time.Second),
		Backoff:        connectBackoff(),
		MaxConns:       maxConns,
		HealthService:  p.health,
		Log:            log,
	}
	if c.Authority == "" {
		c.Authority = "localhost" // of a unix target
	}
	for _, r := range resolvers(cfg, p.adaptive, log) {
		if r.Scheme() == u.Scheme {
			c.Resolver = shownBuilder{r, &b.registry}
		}
	}
	if c.Resolver == nil {
		return nil, fmt.Errorf("there is no resolver for %q", u.Scheme)
	}
	if c.Balancer, c.BalancerConfig, err = lbhost.ParseBalancer(p.lb); err != nil {
		return nil, err
	}
	conn := h2client.Config{
		Authority: c.Authority, MaxMessageBytes: b.largest, AcceptEncoding: "gzip",
		KeepaliveTime: max(orDefault(cfg.Keepalive, 5*time.Minute), 10*time.Second), KeepaliveTimeout: 20 * time.Second,
	}
	if cfg.TLS != nil {
		if c.Credentials, err = cfg.TLS.credentials(log); err != nil {
			return nil, err
		}
		conn.Handshake = func(ctx context.Context, raw net.Conn) (net.Conn, error) {
			secure, _, err := c.Credentials.ClientHandshake(ctx, c.Authority, raw)
			return secure, err
		}
	}
	c.Dial = func(ctx context.Context, addr resolver.Address) (lbhost.Conn, error) {
		network, name := "tcp", addr.Addr
		if path, ok := strings.CutPrefix(name, "unix:"); ok {
			network, name = "unix", path
		}
		raw, err := new(net.Dialer).DialContext(ctx, network, name)
		if err != nil {
			return nil, err
		}
		hc, err := h2client.New(ctx, raw, conn)
		if err != nil {
			return nil, fmt.Errorf("connection to %s: %w", name, err)
		}
		return ownConn{hc, hc.RemoteAddr().String()}, nil
	}
	if b.channel, err = lbhost.New(c); err != nil {
		return nil, err
	}
	return b, nil
}

// maxConns is the most connections to one endpoint, by either transport.
const maxConns = 10

// connectBackoff is the pause after a failed attempt to connect.
func connectBackoff() backoff.Config {
	return backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 10 * time.Second}
}

// shownBuilder is a resolver that has the balancer show its endpoints in a registry.
type shownBuilder struct {
	resolver.Builder
	registry *loadaware.Registry
}

func (b shownBuilder) Build(t resolver.Target, cc resolver.ClientConn, opts resolver.BuildOptions) (resolver.Resolver, error) {
	return b.Builder.Build(t, shownConn{cc, b.registry}, opts)
}

type shownConn struct {
	resolver.ClientConn
	registry *loadaware.Registry
}

func (c shownConn) UpdateState(s resolver.State) error {
	return c.ClientConn.UpdateState(loadaware.SetRegistry(s, c.registry))
}

func (b *ownBackend) Repeats() bool                        { return false }
func (b *ownBackend) Load(int64)                           {} // lbhost sees to it by the connection
func (b *ownBackend) Endpoints() []loadaware.EndpointStats { return b.registry.Endpoints() }
func (b *ownBackend) Conn() grpc.ClientConnInterface       { return b.channel.Stub() }
func (b *ownBackend) State() connectivity.State            { return b.channel.State() }
func (b *ownBackend) Close() error                         { b.channel.Close(); return nil }

// Prepare takes out what package h2client does not leave out of each attempt, since whoever uses it may set that.
func (b *ownBackend) Prepare(header metadata.MD) {
	delete(header, previousAttempts)
	delete(header, encodingKey)
}

// again is how often an attempt is made elsewhere at once when the server surely has not seen it: its connection closed at
// the wrong moment. Beyond it the cluster decides.
const again = 2

func (b *ownBackend) Unary(ctx context.Context, m *descriptors.Method, header metadata.MD, req rpc.Message, at *attempt) (answer, error) {
	lim := b.policies.limitsOf(m)
	if lim.request >= 0 && req.Len() > lim.request {
		return answer{}, tooLarge(req.Len(), lim.request)
	}
	r := b.replies.Get().(*h2client.Reply)
	var a answer
	for n := 0; ; n++ {
		p, conn, err := b.pick(ctx, m, header, at, lim.wait)
		if err != nil {
			b.replies.Put(r)
			return answer{}, err
		}
		err = conn.Unary(ctx, m.FullPath, attemptMetadata(header, at, &p), h2client.Message{Data: req.Buffers()}, r)
		p.End(err, r.Answered, r.Trailer)
		if err != nil && n < again && lbhost.Unprocessed(err) && ctx.Err() == nil {
			continue
		}
		a = answer{header: r.Header, trailer: r.Trailer, answered: r.Answered, endpoint: conn.name}
		if err == nil {
			a.reply, err = b.message(r.Message, r.Encoding, lim)
		}
		*r = h2client.Reply{}
		b.replies.Put(r)
		if err != nil {
			return a, ownError(err)
		}
		return a, nil
	}
}

// pick has the balancer choose a connection.
func (b *ownBackend) pick(ctx context.Context, m *descriptors.Method, header metadata.MD, at *attempt, wait bool) (lbhost.Pick, ownConn, error) {
	if b.policies.adaptive {
		ctx = loadaware.WithAttempt(ctx, &at.Attempt)
	} else {
		ctx = metadata.NewOutgoingContext(ctx, header) // where other policies look for keys
	}
	p, err := b.channel.Pick(ctx, m.FullPath, wait)
	if err != nil {
		f := &fault{code: status.Code(err), cause: err}
		switch {
		case errors.Is(err, lbhost.ErrClosed):
			f.kind = faultClosing
		case f.code == codes.Unavailable:
			f.kind, f.unseen = faultUnreached, true
		}
		return p, ownConn{}, f
	}
	return p, p.Conn.(ownConn), nil // Dial makes no others
}

// attemptMetadata is header with what one attempt adds.
func attemptMetadata(header metadata.MD, at *attempt, p *lbhost.Pick) metadata.MD {
	if at.n == 1 && p.Metadata == nil {
		return header
	}
	md := metadata.Join(header, p.Metadata)
	if at.n > 1 {
		md[previousAttempts] = []string{strconv.Itoa(at.n - 1)}
	}
	return md
}

// message makes a received message one of ours. It takes over m's reference.
func (b *ownBackend) message(m h2client.Message, encoding string, lim callLimits) (rpc.Message, error) {
	data := m.Data
	if m.Compressed {
		var err error
		if data, err = lbhost.Decompress(data, encoding, b.largest); err != nil {
			return rpc.Message{}, err
		}
	}
	if lim.response >= 0 && data.Len() > lim.response {
		n := data.Len()
		data.Free()
		return rpc.Message{}, &h2client.Error{
			Code: codes.ResourceExhausted, Origin: h2client.OriginLimit,
			Message: fmt.Sprintf("received a message of %d bytes, the service config allows %d", n, lim.response),
		}
	}
	return rpc.MessageOf(data), nil
}

func tooLarge(n, limit int) *fault {
	return &fault{
		kind: faultRequestSize, code: codes.ResourceExhausted,
		cause: fmt.Errorf("the request's message has %d bytes, the service config allows %d", n, limit),
	}
}

// ownError makes a fault of an error of package h2client, unless it is what the server sent.
func ownError(err error) error {
	e, ok := err.(*h2client.Error) //nolint:errorlint // it is one or was a fault before
	if !ok {
		return err
	}
	f := &fault{code: e.Code, cause: e, unseen: e.Unprocessed}
	switch e.Origin {
	case h2client.OriginServer:
		return err
	case h2client.OriginHTTP:
		f.kind, f.detail = faultHTTP, strconv.Itoa(e.HTTP)
	case h2client.OriginReset:
		f.kind, f.detail = faultReset, h2wire.ErrCode(e.Reset).String()
	case h2client.OriginConn:
		f.kind = faultLost
	case h2client.OriginLimit:
		f.kind = faultAnswerSize
	case h2client.OriginRequest:
		f.kind = faultMetadataSize
		if key, ok := strings.CutPrefix(e.Message, "metadata key "); ok {
			f.kind, f.detail = faultMetadata, key
		}
	case h2client.OriginProtocol:
		if f.code == codes.Unimplemented { // no answer or a second one, which clients would take for a method that is not there
			f.code = codes.Internal
		}
	case h2client.OriginContext:
	}
	return f
}

func (b *ownBackend) Stream(ctx context.Context, m *descriptors.Method, header metadata.MD, at *attempt) (backendStream, error) {
	lim := b.policies.limitsOf(m)
	for n := 0; ; n++ {
		p, conn, err := b.pick(ctx, m, header, at, lim.wait)
		if err != nil {
			return nil, err
		}
		hs, err := conn.NewStream(ctx, m.FullPath, attemptMetadata(header, at, &p))
		if err == nil {
			return &ownStream{s: hs, pick: p, b: b, limits: lim, endpoint: conn.name, one: !m.ServerStreams}, nil
		}
		p.End(err, false, nil)
		if n < again && lbhost.Unprocessed(err) && ctx.Err() == nil {
			continue
		}
		return nil, ownError(err)
	}
}

type ownStream struct {
	s        *h2client.Stream
	pick     lbhost.Pick
	b        *ownBackend
	limits   callLimits
	endpoint string
	one      bool // the method has one answer
	received bool // a message
	// refused is why a message was not sent, after which the stream is closed.
	refused atomic.Pointer[fault]
}

func (s *ownStream) Send(m *rpc.Message) error {
	if s.limits.request >= 0 && m.Len() > s.limits.request {
		s.refused.Store(tooLarge(m.Len(), s.limits.request))
		s.s.Close()
		return errRefused
	}
	return s.s.Send(h2client.Message{Data: m.Buffers()}, false)
}

// errRefused says that a message was not sent; Recv tells why.
var errRefused = errors.New("the message is too large")

func (s *ownStream) CloseSend() error            { return s.s.CloseSend() }
func (s *ownStream) Header() (metadata.MD, bool) { return s.s.Header() }
func (s *ownStream) Trailer() metadata.MD        { return s.s.Trailer() }
func (s *ownStream) Endpoint() string            { return s.endpoint }

func (s *ownStream) Recv(m *rpc.Message) error {
	msg, err := s.s.Recv()
	switch {
	case !s.one:
	case err == nil && s.received:
		msg.Free()
		s.s.Close()
		return s.end(errAnswers("more than one message"))
	case err == io.EOF && !s.received:
		return s.end(errAnswers("no message"))
	}
	if err == nil {
		s.received = true
		if *m, err = s.b.message(msg, s.s.Encoding(), s.limits); err == nil {
			return nil
		}
		s.s.Close()
	}
	return s.end(err)
}

// errAnswers is the end of a stream whose method has one answer.
func errAnswers(what string) error {
	return &h2client.Error{
		Code: codes.Internal, Origin: h2client.OriginProtocol, Message: "the server answered a method of one answer with " + what,
	}
}

// end ends the stream with err, which may be io.EOF.
func (s *ownStream) end(err error) error {
	_, answered := s.s.Header()
	trailer := s.s.Trailer()
	if err == io.EOF {
		s.pick.End(nil, answered, trailer)
		return err
	}
	s.pick.End(err, answered, trailer)
	if f := s.refused.Load(); f != nil {
		return f
	}
	return ownError(err)
}
