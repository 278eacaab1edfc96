package listeners

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/transcoder"
)

const (
	connectStreamPrefix  = "application/connect+"
	connectVersionHeader = "Connect-Protocol-Version"
	// What a POST of a unary or a streaming call may hold, for Accept-Post.
	connectUnaryTypes  = "application/json, application/proto"
	connectStreamTypes = "application/connect+json, application/connect+proto"
)

// isConnectUnary reports whether r is a unary call of the Connect protocol: one that says so, or a POST or GET of the
// protocol's form to the path of a method. A client need not say so, and then the same request may be REST; the path of a
// method, which has the method's full name, is taken before an HTTP rule.
func isConnectUnary(r *http.Request, contentType string, v View) bool {
	if _, ok := r.Header[connectVersionHeader]; ok {
		return true
	}
	switch r.Method {
	case http.MethodPost:
		if !hasPrefixFold(contentType, "application/json") && !hasPrefixFold(contentType, "application/proto") {
			return false
		}
	case http.MethodGet:
		q := r.URL.RawQuery
		if q == "" || !strings.Contains(q, "message=") && !strings.Contains(q, "encoding=") && !strings.Contains(q, "connect=v") {
			return false
		}
	default:
		return false
	}
	m, ok := methodOf(r, v)
	return ok && m.ID >= 0
}

// connectMethod finds the method that a Connect request names and checks that the protocol may call it so. Its errors are
// plain HTTP faults.
func (x *exchange) connectMethod(v View, stream bool) (*descriptors.Method, error) {
	r := x.Request
	m, ok := methodOf(r, v)
	if !ok || m.ID < 0 {
		return nil, x.missing(v, transcoder.HTTPError(http.StatusNotFound, codes.Unimplemented, "unknown method "+r.URL.Path))
	}
	if err := methodFault(r, m, stream); err != nil {
		return nil, err
	}
	if stream == m.Unary() {
		return nil, notAccepted(r, m)
	}
	return m, nil
}

// methodFault refuses an HTTP method that m's path does not have.
func methodFault(r *http.Request, m *descriptors.Method, stream bool) error {
	get := m.Effect == descriptors.EffectNone && m.Unary() && !stream
	if r.Method == http.MethodPost || get && r.Method == http.MethodGet {
		return nil
	}
	allow := http.MethodPost
	if get {
		allow = "GET, POST"
	}
	return &withHeader{
		transcoder.HTTPError(http.StatusMethodNotAllowed, codes.Unknown, "method "+r.Method+" is not allowed here, use "+allow),
		http.Header{"Allow": {allow}},
	}
}

// notAccepted refuses a content type that cannot carry a call of m.
func notAccepted(r *http.Request, m *descriptors.Method) error {
	types := connectStreamTypes
	if m.Unary() {
		types = connectUnaryTypes
	}
	return &withHeader{
		transcoder.HTTPError(http.StatusUnsupportedMediaType, codes.Unknown,
			"content type "+strconv.Quote(r.Header.Get("Content-Type"))+" is not supported for this method, use one of: "+types),
		http.Header{"Accept-Post": {types}},
	}
}

// pathFault explains a request that no HTTP rule matched to a client that meant a method's own path; nil if there is no
// such method.
func pathFault(r *http.Request, v View) error {
	m, ok := methodOf(r, v)
	if !ok || m.ID < 0 {
		return nil
	}
	if err := methodFault(r, m, false); err != nil {
		return err
	}
	if r.Method == http.MethodGet {
		return status.Error(codes.InvalidArgument, `query parameters "encoding" and "message" are missing`)
	}
	return notAccepted(r, m)
}

// connectTimeout reads the timeout and version headers: negative if there is no timeout.
func connectTimeout(r *http.Request) (time.Duration, error) {
	if v := r.Header[connectVersionHeader]; len(v) > 0 && v[0] != "1" {
		return 0, status.Errorf(codes.InvalidArgument, "Connect protocol version %q is not supported, use 1", v[0])
	}
	v := r.Header["Connect-Timeout-Ms"]
	if len(v) == 0 {
		return -1, nil
	}
	return transcoder.ParseConnectTimeout(v[0])
}

// connectUnary is a unary call of the Connect protocol. The answer is held back until the call ends, since its status is
// the response's HTTP status.
type connectUnary struct {
	exchange
	route   *Route
	codec   bodyCodec
	coding  *coding // the request's
	encode  compressor
	typ     []string // Content-Type of the answer
	query   *[]byte  // the message of a GET; nil for a POST
	recv    bool     // the message has been received
	reply   rpc.Message
	sent    bool
	began   bool
	header  metadata.MD
	trailer metadata.MD
}

var _ rpc.Stream = (*connectUnary)(nil)

// serveConnectUnary answers a unary Connect call.
func (f *Front) serveConnectUnary(w http.ResponseWriter, r *http.Request, v View) {
	s := &connectUnary{}
	s.begin(f, w, r, rpc.ProtocolConnect, v)
	s.finish(s.serve(v))
}

func (s *connectUnary) serve(v View) error {
	r := s.Request
	timeout, err := s.prepare(v)
	if err == nil {
		err = s.checkForgery(false)
	}
	if err == nil {
		s.call.Header, err = transcoder.RequestMetadata(r.Header)
	}
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	s.call.Stream = s
	return s.run(s.route, timeout)
}

// prepare reads the request's header.
func (s *connectUnary) prepare(v View) (time.Duration, error) {
	r := s.Request
	m, err := s.connectMethod(v, false)
	if err != nil {
		return 0, err
	}
	s.call.Method, s.route = m, v.Route(m)
	if r.Method == http.MethodGet {
		err = s.prepareGET()
	} else {
		err = s.preparePOST()
	}
	if err != nil {
		return 0, err
	}
	accept := r.Header["Accept-Encoding"]
	s.encode = compressor{coding: s.route.replyCoding(s.coding, accept)}
	if s.coding == nil {
		s.encode.min = worthCompressing
	}
	return connectTimeout(r)
}

func (s *connectUnary) preparePOST() error {
	r := s.Request
	ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	name, isApp := strings.CutPrefix(strings.ToLower(strings.TrimSpace(ct)), "application/")
	var ok bool
	var err error
	if s.codec, ok, err = codecOf(name, s.route.Plan); err != nil {
		return err
	}
	if !ok || !isApp {
		return notAccepted(r, s.call.Method)
	}
	s.typ = connectTypes[name]
	return s.setCoding(r.Header.Get("Content-Encoding"))
}

// prepareGET reads the query: encoding and message are required, compression, base64 and connect may be there.
func (s *connectUnary) prepareGET() error {
	q, err := url.ParseQuery(s.Request.URL.RawQuery)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "query: %v", err)
	}
	if v := q.Get("connect"); v != "" && v != "v1" {
		return status.Errorf(codes.InvalidArgument, "query parameter \"connect\": version %q is not supported, use v1", v)
	}
	for _, name := range [...]string{"encoding", "message"} {
		if !q.Has(name) {
			return status.Errorf(codes.InvalidArgument, "query parameter %q is missing", name)
		}
	}
	name := q.Get("encoding")
	var ok bool
	if s.codec, ok, err = codecOf(name, s.route.Plan); err != nil {
		return err
	}
	if !ok {
		return transcoder.HTTPError(http.StatusUnsupportedMediaType, codes.Unknown,
			"message encoding "+strconv.Quote(name)+" is not supported, use proto or json")
	}
	s.typ = connectTypes[name]
	if err = s.setCoding(q.Get("compression")); err != nil {
		return err
	}
	msg := []byte(q.Get("message"))
	if q.Get("base64") == "1" {
		text := strings.TrimRight(q.Get("message"), "=")
		if msg, err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return status.Errorf(codes.InvalidArgument, "query parameter \"message\" is not base64 of the URL alphabet")
		}
	}
	s.query = &msg
	return nil
}

// setCoding takes the name of the request's compression.
func (s *connectUnary) setCoding(name string) error {
	d, err := decompressorFor(name, 0)
	if err != nil {
		return &withHeader{err, http.Header{"Accept-Encoding": {acceptedEncodings}}}
	}
	s.coding = d.coding
	return nil
}

// Recv implements rpc.Stream.
func (s *connectUnary) Recv(ctx context.Context) (rpc.Message, error) {
	if s.recv {
		return rpc.Message{}, io.EOF
	}
	m, err := s.message(ctx)
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	s.recv = true
	s.info.MessagesIn++
	s.info.BytesIn += int64(m.Len())
	if s.coding != nil {
		if m, err = (decompressor{coding: s.coding, max: s.route.MaxMessageBytes}).message(transcoder.FlagCompressed, m); err != nil {
			s.info.Fail(rpc.SourceClient)
			return rpc.Message{}, err
		}
	}
	if s.codec != nil {
		if m, err = timed(s.codec.toWire, m, &s.info.TranscodeIn); err != nil {
			s.info.Fail(rpc.SourceClient)
		}
	}
	return m, err
}

// message is the request as it came.
func (s *connectUnary) message(ctx context.Context) (rpc.Message, error) {
	limit := s.route.MaxMessageBytes
	if s.query != nil {
		if len(*s.query) > limit {
			return rpc.Message{}, tooLong(len(*s.query), limit)
		}
		return rpc.NewMessage(*s.query), nil
	}
	r := s.Request
	if r.ContentLength > int64(limit) {
		return rpc.Message{}, tooLong(int(r.ContentLength), limit)
	}
	if r.ContentLength == 0 {
		return rpc.Message{}, nil
	}
	if err := s.guard.noteRead(ctx, s.w); err != nil {
		return rpc.Message{}, err
	}
	body := getBuffer()
	over, err := readAll(s.guard.body(r.Body), body, r.ContentLength, limit)
	switch {
	case err != nil:
		err = s.recvError(ctx, err)
	case over:
		err = status.Errorf(codes.ResourceExhausted, "message exceeds the limit of %d bytes", limit)
	default:
		return rpc.PooledMessage(body, bufferPool{}), nil
	}
	putBuffer(body)
	return rpc.Message{}, err
}

func tooLong(n, limit int) error {
	return status.Errorf(codes.ResourceExhausted, "message of %d bytes exceeds the limit of %d bytes", n, limit)
}

// SendHeader implements rpc.Stream.
func (s *connectUnary) SendHeader(md metadata.MD) error {
	if s.began {
		return rpc.ErrHeaderSent
	}
	s.began, s.header = true, md
	return nil
}

// Send implements rpc.Stream. The message is kept to the end of the call.
func (s *connectUnary) Send(ctx context.Context, m rpc.Message) error {
	if err := rpc.CauseOf(ctx); err != nil {
		m.Release()
		return err
	}
	if s.sent {
		m.Release()
		return status.Error(codes.Internal, "a unary call was answered twice")
	}
	s.began, s.sent, s.reply = true, true, m
	s.info.MessagesOut++
	return nil
}

// Flush implements rpc.Stream. A unary answer goes out at the end of the call.
func (s *connectUnary) Flush() error { return nil }

// SetTrailer implements rpc.Stream.
func (s *connectUnary) SetTrailer(md metadata.MD) { s.trailer = md }

// finish sends the answer, or the error as JSON.
func (s *connectUnary) finish(err error) {
	s.settle(true)
	var flags byte
	if err == nil && !s.sent {
		err = status.Error(codes.Internal, "the backend ended the call without a message")
	}
	m := s.reply
	if err == nil && s.codec != nil {
		m, err = timed(s.codec.fromWire, m, &s.info.TranscodeOut)
		s.reply = rpc.Message{}
	}
	if err == nil {
		m, flags, err = s.encode.message(m)
		s.reply = rpc.Message{}
	}
	h := s.w.Header()
	s.writeMetadata(h, s.header, false)
	writeTrailer(h, "Trailer-", s.trailer, false)
	if s.Request.Method == http.MethodGet {
		h["Vary"] = append(slices.Clip(h["Vary"]), "Accept-Encoding")
		if etag := h["Etag"]; len(etag) > 0 {
			h["Etag"] = weakTag(etag)
		}
	}
	st := statusOf(err)
	code := http.StatusOK
	if err != nil {
		s.reply.Release()
		code = s.refuse(err, st)
	} else {
		h["Content-Type"] = s.typ
		h["Content-Length"] = []string{strconv.Itoa(m.Len())}
		if flags != 0 {
			h["Content-Encoding"] = s.encode.coding.value
		}
		s.keepPrivate(s.route)
		s.info.BytesOut += int64(m.Len())
		s.w.WriteHeader(code)
		for _, part := range m.Buffers() {
			_ = s.guard.put(s.w, part.ReadOnlyData())
		}
		m.Release()
	}
	s.end(err, st, code)
}

// errorStatus is the HTTP status of an error for clients that would follow a redirect instead of reading the error, or take it for
// no answer of a server's: where err asks for one, the status of its code.
func errorStatus(err error, st *status.Status) int {
	code := transcoder.HTTPStatusOf(err)
	if code < http.StatusBadRequest {
		code = transcoder.HTTPStatus(st.Code())
	}
	return code
}

// refuse answers with an error as JSON under its HTTP status, which it returns; see errorStatus.
func (x *exchange) refuse(err error, st *status.Status) int {
	code := errorStatus(err, st)
	body := getBuffer()
	defer putBuffer(body)
	*body = transcoder.AppendConnectError(*body, st)
	h := x.w.Header()
	x.addHeaderOf(h, err)
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(*body))}
	h["Cache-Control"] = noStore
	x.w.WriteHeader(code)
	_, _ = x.w.Write(*body)
	return code
}

// connectStream is a streaming call of the Connect protocol: frames, the last of which carries the status.
type connectStream struct{ framed }

var _ rpc.Stream = (*connectStream)(nil)

// serveConnectStream answers a streaming Connect call.
func (f *Front) serveConnectStream(w http.ResponseWriter, r *http.Request, v View) {
	s := &connectStream{}
	s.begin(f, w, r, rpc.ProtocolConnect, v)
	name := subtype(r.Header.Get("Content-Type"), connectStreamPrefix[:len(connectStreamPrefix)-1])
	m, err := s.connectMethod(v, true)
	var ok bool
	if err == nil {
		s.call.Method = m
		if s.codec, ok, err = codecOf(name, v.Route(m).Plan); err == nil && !ok {
			err = notAccepted(r, m)
		}
	}
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		s.settle(true)
		st := rpc.StatusOf(err)
		s.end(err, st, s.refuse(err, st))
		return
	}
	s.contentType, s.encodingHeader = connectTypes["connect+"+name], "Connect-Content-Encoding"
	s.finish(s.start(v.Route(m)))
}

func (s *connectStream) start(route *Route) error {
	r := s.Request
	timeout, err := connectTimeout(r)
	if err == nil {
		if s.decode, err = decompressorFor(r.Header.Get("Connect-Content-Encoding"), route.MaxMessageBytes); err != nil {
			err = &withHeader{err, http.Header{"Connect-Accept-Encoding": {acceptedEncodings}}}
		}
	}
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	s.encode = compressor{coding: route.replyCoding(s.decode.coding, r.Header["Connect-Accept-Encoding"])}
	if s.decode.coding == nil {
		s.encode.min = worthCompressing
	}
	return s.serve(route, timeout, r.Body, s)
}

// finish sends the end-stream frame.
func (s *connectStream) finish(err error) {
	s.settle(true)
	st := statusOf(err)
	if !s.header {
		h := s.w.Header()
		h["Content-Type"] = s.contentType
		s.addHeaderOf(h, err)
	}
	_ = s.out.end(transcoder.FlagEndStream, s, func(dst []byte) []byte {
		delete(s.trailer, loadReportKey)
		return transcoder.AppendConnectEnd(dst, st, s.trailer)
	})
	s.done(err, st, http.StatusOK)
}

// connectTypes are the content types of answers by what follows "application/".
var connectTypes = map[string][]string{
	"proto":         {"application/proto"},
	"json":          {"application/json"},
	"connect+proto": {"application/connect+proto"},
	"connect+json":  {"application/connect+json"},
}
