package listeners

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/transcoder"
)

// framed is what the streams of gRPC, gRPC-Web and Connect have in common: length-prefixed messages each way, compressed
// one by one. Messages pass through untouched unless the client speaks JSON.
type framed struct {
	exchange
	in     frameReader
	out    frameWriter
	codec  bodyCodec
	decode decompressor
	encode compressor
	// What the response header says besides metadata: its Content-Type and, under the name of the protocol, the encoding.
	contentType    []string
	encodingHeader string
	loadReport     bool         // backends' load reports reach the client
	text           *textEncoder // the body is base64; nil if it is not
	header         bool         // response header committed
	trailer        metadata.MD
}

// bodyCodec turns the client's encoding of a message into wire bytes and back; nil where it is wire bytes already.
type bodyCodec interface {
	toWire(m rpc.Message) (rpc.Message, error)
	fromWire(m rpc.Message) (rpc.Message, error)
}

// codecOf picks the message encoding by its name in a content type. ok is false for an unknown one.
func codecOf(name string, plan *transcoder.Plan) (c bodyCodec, ok bool, err error) {
	switch name {
	case "proto":
		return nil, true, nil
	case "json":
		if plan == nil {
			return nil, true, status.Error(codes.Unimplemented, "JSON needs a schema, and this method has none")
		}
		return jsonCodec{plan}, true, nil
	}
	return nil, false, nil
}

// jsonCodec is the JSON form of gRPC, gRPC-Web and Connect messages.
type jsonCodec struct{ plan *transcoder.Plan }

func (c jsonCodec) toWire(m rpc.Message) (rpc.Message, error) {
	defer m.Release()
	b := getBuffer()
	var err error
	if *b, err = c.plan.AppendMessage(*b, m.Bytes()); err != nil {
		putBuffer(b)
		return rpc.Message{}, err
	}
	return rpc.PooledMessage(b, bufferPool{}), nil
}

func (c jsonCodec) fromWire(m rpc.Message) (rpc.Message, error) {
	defer m.Release()
	b := getBuffer()
	var err error
	if *b, err = c.plan.AppendJSON(*b, m.Bytes()); err != nil {
		putBuffer(b)
		return rpc.Message{}, err
	}
	return rpc.PooledMessage(b, bufferPool{}), nil
}

// timed transcodes m, and adds the time that it takes to spent.
func timed(transcode func(rpc.Message) (rpc.Message, error), m rpc.Message, spent *time.Duration) (rpc.Message, error) {
	began := time.Now()
	m, err := transcode(m)
	*spent += time.Since(began)
	return m, err
}

// subtype is what follows prefix and "+" in a content type, in lower case and without parameters: "proto" if nothing does.
func subtype(contentType, prefix string) string {
	ct, _, _ := strings.Cut(contentType[len(prefix):], ";")
	ct = strings.ToLower(strings.TrimSpace(ct))
	if ct == "" {
		return "proto"
	}
	if ct[0] != '+' {
		return ct
	}
	return ct[1:]
}

// serve runs the call whose method, codec and encodings are set. timeout is negative if the client gave none.
func (s *framed) serve(route *Route, timeout time.Duration, body io.Reader, stream rpc.Stream) error {
	r := s.Request
	err := s.checkForgery(false)
	if err != nil {
		return err
	}
	if s.call.Header, err = transcoder.RequestMetadata(r.Header); err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	s.call.Stream = stream
	s.in = frameReader{r: s.guard.body(body), max: route.MaxMessageBytes}
	if s.call.Method.ClientStreams {
		s.fullDuplex()
	}
	return s.run(route, timeout)
}

// grpcTimeout reads the grpc-timeout header: negative if there is none.
func grpcTimeout(r *http.Request) (time.Duration, error) {
	v := r.Header["Grpc-Timeout"]
	if len(v) == 0 {
		return -1, nil
	}
	return grpcwire.ParseTimeout(v[0])
}

// Recv implements rpc.Stream.
func (s *framed) Recv(ctx context.Context) (rpc.Message, error) {
	var err error
	if s.call.Method.Unary() {
		err = s.guard.noteRead(ctx, s.w)
	} else {
		err = s.guard.bindRead(ctx, s.w)
	}
	if err != nil {
		return rpc.Message{}, err
	}
	flags, m, err := s.in.next()
	if err != nil {
		return rpc.Message{}, s.recvError(ctx, err)
	}
	s.info.MessagesIn++
	s.info.BytesIn += int64(m.Len())
	if m, err = s.decode.message(flags, m); err == nil && s.codec != nil {
		m, err = timed(s.codec.toWire, m, &s.info.TranscodeIn)
	}
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	return m, nil
}

// recvError says what a failed body read means.
func (x *exchange) recvError(ctx context.Context, err error) error {
	if err == io.EOF {
		return err
	}
	x.info.Fail(rpc.SourceClient)
	if _, ok := status.FromError(err); ok {
		return err
	}
	if cause := rpc.CauseOf(ctx); cause != nil {
		return cause
	}
	if _, socket := errors.AsType[net.Error](err); x.Request.ProtoMajor == 1 && !socket && err != io.ErrUnexpectedEOF {
		return status.Error(codes.InvalidArgument, "the chunks of the request body are malformed")
	}
	return rpc.ErrClientGone
}

// SendHeader implements rpc.Stream.
func (s *framed) SendHeader(md metadata.MD) error {
	if s.header {
		return rpc.ErrHeaderSent
	}
	s.header = true
	s.settle(false)
	h := s.w.Header()
	h["Content-Type"] = s.contentType
	if s.encode.coding != nil {
		h[s.encodingHeader] = s.encode.coding.value
	}
	s.writeMetadata(h, md, s.loadReport)
	return nil
}

// Send implements rpc.Stream.
func (s *framed) Send(ctx context.Context, m rpc.Message) error {
	var err error
	if s.call.Method.Unary() && m.Len() < directWriteLen { // only gathered: the client takes it at the end of the call
		err = rpc.CauseOf(ctx)
	} else {
		err = s.guard.bindWrite(ctx, s.w)
	}
	if err != nil {
		m.Release()
		return err
	}
	if !s.header {
		_ = s.SendHeader(nil) // fails only a second time
	}
	if s.codec != nil {
		if m, err = timed(s.codec.fromWire, m, &s.info.TranscodeOut); err != nil {
			return err
		}
	}
	m, flags, err := s.encode.message(m)
	if err != nil {
		return err
	}
	s.info.MessagesOut++
	s.info.BytesOut += int64(m.Len())
	if err := s.out.add(flags, m, s); err != nil {
		return s.sendError(ctx)
	}
	return nil
}

// Write hands a piece of the response body to net/http: an io.Writer for the frameWriter.
func (s *framed) Write(b []byte) (int, error) {
	if s.text == nil {
		return len(b), s.guard.put(s.w, b)
	}
	return len(b), s.guard.put(s.w, s.text.encode(b))
}

// sendError says why the client can't be written to.
func (x *exchange) sendError(ctx context.Context) error {
	x.info.Fail(rpc.SourceClient)
	if cause := rpc.CauseOf(ctx); cause != nil {
		return cause
	}
	return rpc.ErrClientGone
}

// Flush implements rpc.Stream.
func (s *framed) Flush() error {
	if !s.header {
		return nil
	}
	if s.out.flush(s) != nil || s.pad() != nil || s.guard.flush(s.w) != nil {
		return s.sendError(s.Request.Context())
	}
	return nil
}

// pad ends the base64 of a text body so far, so that the client can decode all of it.
func (s *framed) pad() error {
	if s.text == nil {
		return nil
	}
	if b := s.text.pad(); len(b) > 0 {
		return s.guard.put(s.w, b)
	}
	return nil
}

// SetTrailer implements rpc.Stream.
func (s *framed) SetTrailer(md metadata.MD) { s.trailer = md }

// done gives back what the stream has borrowed and ends the exchange.
func (s *framed) done(err error, st *status.Status, httpStatus int) {
	s.in.done()
	s.out.done()
	s.end(err, st, httpStatus)
}

// addHeaderOf sets the response header that a refusal comes with.
func (x *exchange) addHeaderOf(h http.Header, err error) {
	if e, ok := errors.AsType[*withHeader](err); ok {
		maps.Copy(h, e.header)
	}
	if md := rpc.HeaderOf(err); md != nil {
		transcoder.AddHeader(h, x.theirs(md), "")
	}
}

// notPOST refuses a request whose HTTP method is not the one that the protocol has for a call.
func (x *exchange) notPOST() bool {
	if x.Request.Method == http.MethodPost {
		return false
	}
	x.refuseHTTP(&withHeader{
		transcoder.HTTPError(http.StatusMethodNotAllowed, codes.Unknown, "a call needs POST"),
		http.Header{"Allow": {http.MethodPost}},
	})
	return true
}

// refuseHTTP answers what is not a call at all in plain HTTP.
func (x *exchange) refuseHTTP(err error) {
	x.info.Fail(rpc.SourceClient)
	x.settle(true)
	x.addHeaderOf(x.w.Header(), err)
	code := transcoder.HTTPStatusOf(err)
	http.Error(x.w, err.Error(), code)
	x.end(err, rpc.StatusOf(err), code)
}
