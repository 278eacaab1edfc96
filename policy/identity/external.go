package identity

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// ExternalConfig configures an External.
type ExternalConfig struct {
	// Name is the provider's.
	Name string
	// Cluster is the name of the server's.
	Cluster string
	// Timeout bounds one question; positive.
	Timeout time.Duration
	// Headers is the metadata that the server gets; nil for all.
	Headers []string
}

// External lets a gRPC server decide who calls and whether it may (envoy.service.auth.v3.Authorization). It finds something
// to ask in every call.
type External struct {
	cfg  ExternalConfig
	auth authv3.AuthorizationClient
	asked
}

// NewExternal makes the provider over a connection that belongs to the caller.
func NewExternal(cfg ExternalConfig, conn grpc.ClientConnInterface, log *slog.Logger) *External {
	return &External{cfg, authv3.NewAuthorizationClient(conn), asked{log: log, provider: cfg.Name}}
}

func (p *External) place() place            { return place{all: true} }
func (p *External) challenge(string) string { return "" } // the server's own headers say it

func (p *External) voucher() string        { return "external " + p.cfg.Cluster }
func (p *External) knows(who *caller) bool { return who.voucher == p.voucher() }

// denial is a refusal in the words of the server that was asked.
type denial struct{ error }

func (d *denial) Unwrap() error { return d.error }

func (p *External) identify(ctx context.Context, call *rpc.Call) (*caller, error) {
	wait, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	resp, err := p.auth.Check(wait, p.question(call))
	if err != nil {
		if cause := rpc.CauseOf(ctx); cause != nil { // the call's own end
			return nil, cause
		}
		p.failed(ctx, err)
		return nil, errNoAnswer
	}
	p.answered(ctx)
	// A denial is one, whatever the status beside it.
	if codes.Code(resp.GetStatus().GetCode()) != codes.OK || resp.GetDeniedResponse() != nil {
		return nil, &denial{denialOf(resp)}
	}
	ok := resp.GetOkResponse()
	for _, name := range ok.GetHeadersToRemove() {
		if name = strings.ToLower(name); settable(name) {
			clearAliases(call, name)
			delete(call.Header, name)
		}
	}
	for _, h := range ok.GetHeaders() {
		setHeader(call, h)
	}
	who := &caller{}
	if claims := resp.GetDynamicMetadata().AsMap(); claims["sub"] != nil {
		if who, err = callerOf(p.cfg.Name, p.voucher(), claims, paths{subject: "sub", plan: "plan", groups: []string{"groups", "roles"}}, time.Time{}); err != nil {
			return nil, err
		}
	}
	who.answer = answerOf(ok.GetResponseHeadersToAdd())
	return who, nil
}

// question describes the call.
func (p *External) question(call *rpc.Call) *authv3.CheckRequest {
	headers := map[string]string{}
	for k, v := range call.Header {
		if !strings.HasSuffix(k, "-bin") && (p.cfg.Headers == nil || slices.Contains(p.cfg.Headers, k)) {
			headers[k] = strings.Join(v, ",")
		}
	}
	peer := call.Peer.Addr
	source := &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: peer.Addr().Unmap().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(peer.Port())},
	}}}}
	if t := call.Peer.TLS; t != nil && len(t.VerifiedChains) > 0 {
		source.Principal = subjectOf(t.PeerCertificates[0])
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: source,
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: call.Info.RequestID, Method: http.MethodPost, Path: call.Method.FullPath, Headers: headers, Protocol: "HTTP/2",
		}},
		ContextExtensions: map[string]string{"method": string(call.Method.Name), "protocol": call.Info.Protocol.String()},
	}}
}

// settable reports whether the server may set or remove metadata of that name, in lower case: it must be one, and no other's to say.
func settable(name string) bool {
	odd := func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.", c)
	}
	if strings.ContainsFunc(name, odd) || strings.HasSuffix(name, "-bin") || strings.HasPrefix(name, "grpc-") || strings.HasPrefix(plain(name), "x-transom-") {
		return false
	}
	switch name {
	case "", "host", "te", "connection", "content-type", "content-length", "transfer-encoding", "upgrade", "user-agent":
		return false
	}
	return true
}

// plain is a name as many frameworks read it: "_" and "." are "-".
func plain(name string) string {
	return strings.Map(func(c rune) rune {
		if c == '_' || c == '.' {
			return '-'
		}
		return c
	}, name)
}

// clearAliases takes out what a client sent in other spellings of a name that is the server's to say.
func clearAliases(call *rpc.Call, name string) {
	is := plain(name)
	for other := range call.Header {
		if len(other) == len(name) && other != name && plain(other) == is {
			delete(call.Header, other)
		}
	}
}

// setHeader sets metadata as the server wishes.
func setHeader(call *rpc.Call, h *corev3.HeaderValueOption) {
	name, value := strings.ToLower(h.GetHeader().GetKey()), valueOf(h)
	if !settable(name) {
		return
	}
	add := h.GetAppend().GetValue() //nolint:staticcheck // what most servers still set
	switch h.GetAppendAction() {
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		if len(call.Header[name]) > 0 {
			return
		}
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		if len(call.Header[name]) == 0 {
			return
		}
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
	}
	clearAliases(call, name)
	if add {
		call.SetHeader(name, append(slices.Clone(call.Header[name]), value)...)
		return
	}
	call.SetHeader(name, value)
}

// valueOf is a value as it is, or with everything encoded if metadata cannot carry it.
func valueOf(h *corev3.HeaderValueOption) string {
	v := h.GetHeader().GetValue()
	if raw := h.GetHeader().GetRawValue(); len(raw) > 0 {
		v = string(raw)
	}
	if strings.ContainsFunc(v, func(c rune) bool { return c < 0x20 || c > 0x7E }) {
		return rpc.MetadataText(v)
	}
	return v
}

// maxDenial is how much of a denial's text the client gets, in bytes of grpc-message: percent-encoded, so that it fits into a header.
const maxDenial = 2 << 10

// denialText is the whole characters of text that maxDenial has room for.
func denialText(text string) string {
	size := 0
	for i, r := range text {
		switch {
		case r < 0x20 || r == '%' || r == 0x7F:
			size += 3
		case r > 0x7F:
			size += 3 * utf8.RuneLen(r) // that of U+FFFD for a byte that is none
		default:
			size++
		}
		if size > maxDenial {
			text = text[:i]
			break
		}
	}
	return strings.ToValidUTF8(text, "�")
}

// deniedStatus is a status with the HTTP status that REST clients get; 0 for the one of its code.
type deniedStatus struct {
	status *status.Status
	http   int
}

func (e *deniedStatus) Error() string              { return e.status.Message() }
func (e *deniedStatus) GRPCStatus() *status.Status { return e.status }
func (e *deniedStatus) HTTPStatus() int            { return e.http }

// denialOf makes the client's status of a denial: the HTTP status that the server chose as a code, PERMISSION_DENIED if none, and for
// REST as it is if it is one of 300 to 599 that has a body; its body as the message, or else what its own status says.
func denialOf(resp *authv3.CheckResponse) error {
	d := resp.GetDeniedResponse()
	code, msg := codes.PermissionDenied, "the call is not allowed"
	switch n := int(d.GetStatus().GetCode()); {
	case n == http.StatusUnauthorized:
		code, msg = codes.Unauthenticated, "the call needs a credential"
	case n == http.StatusTooManyRequests:
		code, msg = codes.ResourceExhausted, "too many calls"
	case n == http.StatusNotFound:
		code, msg = codes.NotFound, "not found"
	case n == http.StatusBadRequest:
		code, msg = codes.InvalidArgument, "the call is not valid"
	case n >= 500:
		code, msg = codes.Unavailable, "the authorization server does not answer"
	}
	if text := cmp.Or(d.GetBody(), resp.GetStatus().GetMessage()); text != "" {
		msg = denialText(text)
	}
	e := &deniedStatus{status: status.New(code, msg)}
	if n := int(d.GetStatus().GetCode()); n >= 300 && n <= 599 && n != http.StatusNotModified {
		e.http = n
	}
	return rpc.WithHeader(e, answerOf(d.GetHeaders()))
}

// answerOf is the metadata that the server has for the client; nil if it has none.
func answerOf(headers []*corev3.HeaderValueOption) metadata.MD {
	var md metadata.MD
	for _, h := range headers {
		if name := strings.ToLower(h.GetHeader().GetKey()); settable(name) {
			if md == nil {
				md = metadata.MD{}
			}
			md[name] = append(md[name], valueOf(h))
		}
	}
	return md
}

// answering adds md to what the client gets of a call, be it an answer or an error.
func answering(md metadata.MD, next rpc.Handler) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		s := &answered{Stream: call.Stream, md: md}
		call.Stream = s
		err := next(ctx, call)
		if err == nil || s.began {
			return err
		}
		return rpc.WithHeader(err, s.with(rpc.HeaderOf(err)))
	}
}

// answered is the Stream of a call whose client gets further metadata.
type answered struct {
	rpc.Stream
	md    metadata.MD
	began bool
}

// with is md, which may be changed, with what is added.
func (s *answered) with(md metadata.MD) metadata.MD {
	if md == nil {
		md = make(metadata.MD, len(s.md))
	}
	for name, values := range s.md {
		md[name] = append(slices.Clip(md[name]), values...)
	}
	return md
}

func (s *answered) SendHeader(md metadata.MD) error {
	s.began = true
	return s.Stream.SendHeader(s.with(md))
}

func (s *answered) Send(ctx context.Context, m rpc.Message) error {
	if !s.began {
		if err := s.SendHeader(nil); err != nil {
			m.Release()
			return err
		}
	}
	return s.Stream.Send(ctx, m)
}
