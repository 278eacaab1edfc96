package upstream

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // health checks, which service config switches on
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/upstream/loadaware"
)

// wireCodec passes rpc.Messages through grpc-go as the bytes they are, keeping its pooled buffers. Its name is the
// content-subtype, so that backends see plain application/grpc+proto.
type wireCodec struct{}

func (wireCodec) Name() string { return "proto" }

// Marshal lends the buffers of v with a reference that grpc-go frees.
func (wireCodec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*rpc.Message)
	if !ok {
		return nil, fmt.Errorf("wire codec: %T is not a message in wire form", v)
	}
	b := m.Buffers()
	b.Ref()
	return b, nil
}

// Unmarshal keeps the buffers with a reference of its own.
func (wireCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*rpc.Message)
	if !ok {
		return fmt.Errorf("wire codec: %T is not a message in wire form", v)
	}
	data.Ref()
	*m = rpc.MessageOf(data)
	return nil
}

// grpcBackend is the backend that grpc-go provides.
type grpcBackend struct {
	channels channels
	attempts bool      // the balancer looks for loadaware.Attempt
	calls    sync.Pool // of *unaryAttempt
	opts     []grpc.CallOption
	names    addrNames
}

// unaryAttempt is what one Invoke writes to, with the options that say so: kept together, they are made once and used by
// many calls in turn.
type unaryAttempt struct {
	req, reply      rpc.Message
	header, trailer metadata.MD
	peer            peer.Peer
	opts            []grpc.CallOption
}

// newGRPC makes a backend for a cluster with policies p.
func newGRPC(cfg Config, p *policies, log *slog.Logger) (*grpcBackend, error) {
	target, err := parseTarget(cfg.Target)
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		if creds, err = cfg.TLS.credentials(log); err != nil {
			return nil, err
		}
	}
	xds := strings.HasPrefix(target, "xds:")
	b := &grpcBackend{attempts: p.adaptive || xds}
	b.channels.registry.Log = log
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(sniffing{creds, &b.channels}),
		grpc.WithResolvers(b.channels.resolvers(cfg, p.adaptive, log)...),
		grpc.WithDisableRetry(), // but for streams the server surely never saw, which grpc-go always retries
		grpc.WithIdleTimeout(0), // connections are kept, so that the state of the cluster is known
		grpc.WithNoProxy(),
		grpc.WithUserAgent("transom"),
		grpc.WithMaxHeaderListSize(64 << 10),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: connectBackoff(), MinConnectTimeout: orDefault(cfg.ConnectTimeout, 5*time.Second),
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: orDefault(cfg.Keepalive, 5*time.Minute), Timeout: 20 * time.Second,
		}),
		// A stream holds this much, or one message, that its client has not read. Fixed: grpc-go would let it grow to 16 MiB.
		grpc.WithStaticStreamWindowSize(512 << 10),
		grpc.WithStaticConnWindowSize(8 << 20), // returned as data arrive, so slow streams hold up no others
	}
	if xds && os.Getenv("GRPC_XDS_BOOTSTRAP") == "" && os.Getenv("GRPC_XDS_BOOTSTRAP_CONFIG") == "" {
		log.LogAttrs(context.Background(), slog.LevelWarn, "no control plane is known for an xds target: neither GRPC_XDS_BOOTSTRAP nor GRPC_XDS_BOOTSTRAP_CONFIG is set",
			slog.String("target", target))
	}
	if !xds { // where the resolver's service config says all
		options = append(options, grpc.WithDefaultServiceConfig(p.grpc), grpc.WithDisableServiceConfig())
	}
	if a := authorityOf(cfg, target); a != "" {
		options = append(options, grpc.WithAuthority(a))
	}
	b.channels.open = func() (*grpc.ClientConn, error) { return grpc.NewClient(target, options...) }
	b.opts = []grpc.CallOption{
		grpc.ForceCodecV2(wireCodec{}),
		grpc.MaxCallRecvMsgSize(orDefault(cfg.MaxMessageBytes, DefaultMaxMessageBytes)),
	}
	b.calls.New = func() any {
		u := &unaryAttempt{}
		u.opts = append(u.opts, b.opts...)
		u.opts = append(u.opts, grpc.Header(&u.header), grpc.Trailer(&u.trailer), grpc.Peer(&u.peer))
		return u
	}
	if err := b.channels.start(); err != nil {
		return nil, err
	}
	return b, nil
}

func orDefault[T time.Duration | int | float64](v, zero T) T {
	if v == 0 {
		return zero
	}
	return v
}

func (b *grpcBackend) Prepare(header metadata.MD) { strip(header) }

func (b *grpcBackend) Repeats() bool                  { return true }
func (b *grpcBackend) Conn() grpc.ClientConnInterface { return b.channels.first() }
func (b *grpcBackend) State() connectivity.State      { return b.channels.first().GetState() }
func (b *grpcBackend) Load(calls int64)               { b.channels.load(calls) }
func (b *grpcBackend) Close() error                   { return b.channels.close() }

func (b *grpcBackend) Endpoints() []loadaware.EndpointStats { return b.channels.registry.Endpoints() }

func (b *grpcBackend) Unary(ctx context.Context, m *descriptors.Method, header metadata.MD, req rpc.Message, at *attempt) (answer, error) {
	u := b.calls.Get().(*unaryAttempt)
	u.req = req
	ctx = b.outgoing(ctx, header, at)
	ch := b.channels.pick()
	err := ch.cc.Invoke(ctx, m.FullPath, &u.req, &u.reply, u.opts...)
	ch.calls.Add(-1)
	a := answer{reply: u.reply, header: u.header, trailer: u.trailer, answered: u.header != nil, endpoint: b.names.of(u.peer.Addr)}
	if err != nil {
		a.reply.Release() // of a message that came before an error
		a.reply = rpc.Message{}
		err = grpcError(err, a.answered, len(a.trailer) > 0, a.endpoint != "")
	}
	*u = unaryAttempt{opts: u.opts}
	b.calls.Put(u)
	return a, err
}

// outgoing is the context of an attempt with the call's metadata.
func (b *grpcBackend) outgoing(ctx context.Context, header metadata.MD, at *attempt) context.Context {
	if b.attempts {
		ctx = loadaware.WithAttempt(ctx, &at.Attempt)
	}
	if len(header) > 0 {
		ctx = metadata.NewOutgoingContext(ctx, header)
	}
	if at.n > 1 {
		ctx = metadata.AppendToOutgoingContext(ctx, previousAttempts, strconv.Itoa(at.n-1))
	}
	return ctx
}

// streamDescs are the kinds of streaming call by clientStreams + 2·serverStreams.
var streamDescs = [4]grpc.StreamDesc{
	{StreamName: "unary"},
	{StreamName: "client", ClientStreams: true},
	{StreamName: "server", ServerStreams: true},
	{StreamName: "bidi", ClientStreams: true, ServerStreams: true},
}

func (b *grpcBackend) Stream(ctx context.Context, m *descriptors.Method, header metadata.MD, at *attempt) (backendStream, error) {
	ctx = b.outgoing(ctx, header, at)
	kind := 0
	if m.ClientStreams {
		kind |= 1
	}
	if m.ServerStreams {
		kind |= 2
	}
	ch := b.channels.pick()
	cs, err := ch.cc.NewStream(ctx, &streamDescs[kind], m.FullPath, b.opts...)
	if err != nil {
		ch.calls.Add(-1)
		return nil, grpcError(err, false, false, false)
	}
	return &grpcStream{cs: cs, channel: ch, names: &b.names}, nil
}

type grpcStream struct {
	cs       grpc.ClientStream
	channel  *channel
	names    *addrNames
	answered bool
}

func (s *grpcStream) Send(m *rpc.Message) error { return s.cs.SendMsg(m) }
func (s *grpcStream) CloseSend() error          { return s.cs.CloseSend() }
func (s *grpcStream) Trailer() metadata.MD      { return s.cs.Trailer() }

func (s *grpcStream) Recv(m *rpc.Message) error {
	err := s.cs.RecvMsg(m)
	if err != nil {
		s.channel.calls.Add(-1)
		if err != io.EOF {
			err = grpcError(err, s.answered, len(s.cs.Trailer()) > 0, s.Endpoint() != "")
		}
	}
	return err
}

func (s *grpcStream) Header() (metadata.MD, bool) {
	md, err := s.cs.Header()
	s.answered = err == nil && md != nil
	return md, s.answered
}

func (s *grpcStream) Endpoint() string {
	p, ok := peer.FromContext(s.cs.Context())
	if !ok {
		return ""
	}
	return s.names.of(p.Addr)
}

// grpcError tells what a server sent from grpc-go's own troubles, which become faults. grpc-go gives one type of error for
// both; what tells them apart is that a server's status comes with metadata (content-type at least): in the trailer if it
// is trailers-only, else in the header; after a header grpc-go's own errors are known by their texts, those of 1.85.
// reached says that the attempt had an endpoint.
func grpcError(err error, header, trailer, reached bool) error {
	st := status.Convert(err)
	text := st.Message()
	if trailer || header && !ownText(text) {
		return err
	}
	f := &fault{code: st.Code(), cause: err}
	if name, ok := strings.CutPrefix(text, rstText); ok {
		f.kind = faultReset
		f.detail, _, _ = strings.Cut(name, ";") // "…; received prior goaway: …"
		f.unseen = !header && f.code == codes.Unavailable && f.detail == "REFUSED_STREAM"
		return f
	}
	if !header && f.code == codes.Unavailable {
		f.unseen = !reached || text == goAwayText
	}
	if !header {
		// What of the client's can make grpc-go refuse a call: its metadata.
		if key, ok := strings.CutPrefix(text, "header key "); ok {
			f.kind, f.detail = faultMetadata, key
			return f
		}
		if strings.HasPrefix(text, "header list size to send violates") {
			f.kind = faultMetadataSize
			return f
		}
	}
	switch {
	case f.code == codes.DeadlineExceeded:
	case strings.HasPrefix(text, "trying to send message larger than max"):
		f.kind = faultRequestSize
	case strings.Contains(text, "larger than max"):
		f.kind = faultAnswerSize
	case strings.HasPrefix(text, httpText):
		f.kind = faultHTTP
		if f.detail, _, _ = strings.Cut(text[len(httpText):], " "); f.detail == "" {
			f.kind = faultAnswer
		}
	case f.code == codes.Unavailable && reached:
		f.kind = faultLost
	case f.code == codes.Unavailable:
		f.kind = faultUnreached
	case f.code == codes.Canceled && strings.HasSuffix(text, "connection is closing"):
		f.kind = faultClosing
	}
	return f
}

// goAwayText is grpc-go's for a stream that a closing connection did not take.
const goAwayText = "the stream is rejected because server is draining the connection"

// The beginnings of texts that carry something worth telling.
const (
	rstText  = "stream terminated by RST_STREAM with error code: "
	httpText = "unexpected HTTP status code received from server: "
)

// ownText reports whether a status message is one that grpc-go 1.85 makes itself once response headers have come.
func ownText(text string) bool {
	for _, prefix := range ownTexts {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

var ownTexts = [...]string{
	rstText,
	httpText,
	"error reading from server: ",
	"closing transport due to: ",
	"closing connection since the server is not reading",
	"connection error: ",
	"transport is closing",
	"transport: ",
	"keepalive ping ",
	"server closed the stream without sending trailers",
	"a HEADERS frame cannot appear in the middle of a stream",
	"peer header list size exceeded limit",
	"received ", // "received N-bytes data exceeding the limit M bytes", of flow control
	"cardinality violation: ",
	"grpc: ",
	"malformed header: ",
	"protocol error: ",
	"unexpected EOF",
	"context canceled",
	"context deadline exceeded",
	"io: read/write on closed pipe",
}

// addrNames remembers the text of addresses, which is asked for on every call: a connection has one net.Addr for all its
// calls, and formatting it allocates.
type addrNames struct {
	m sync.Map // net.Addr → string
	n int
	// mu guards n and the clearing of m.
	mu sync.Mutex
}

// maxAddrNames bounds the memory kept for connections that are gone.
const maxAddrNames = 4096

func (a *addrNames) of(addr net.Addr) string {
	if addr == nil {
		return ""
	}
	if name, ok := a.m.Load(addr); ok {
		return name.(string)
	}
	name := addr.String()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n++; a.n > maxAddrNames {
		a.m.Clear()
		a.n = 1
	}
	a.m.Store(addr, name)
	return name
}
