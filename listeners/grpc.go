package listeners

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/transcoder"
)

// grpcStream is a native gRPC call (gRPC over HTTP/2, also over HTTP/3). Messages pass through untouched.
type grpcStream struct {
	exchange
	in      frameReader
	out     frameWriter
	codec   bodyCodec
	decode  decompressor
	header  bool // response header committed
	trailer metadata.MD
	write   func([]byte) error
}

// bodyCodec turns the client's encoding of a message into wire bytes and back; nil where it is wire bytes already.
type bodyCodec interface {
	toWire(m rpc.Message) (rpc.Message, error)
	fromWire(m rpc.Message) (rpc.Message, error)
}

// serveGRPC answers native gRPC.
func (f *Front) serveGRPC(w http.ResponseWriter, r *http.Request, v View) {
	s := &grpcStream{}
	s.begin(f, w, r, rpc.ProtocolGRPC)
	if r.ProtoMajor < 2 {
		s.refuseHTTP(http.StatusHTTPVersionNotSupported, "gRPC needs HTTP/2 or HTTP/3")
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		s.refuseHTTP(http.StatusMethodNotAllowed, "gRPC needs POST")
		return
	}
	err := s.serve(v)
	s.finish(err)
}

// refuseHTTP answers what is not a gRPC call at all with a plain HTTP error.
func (s *grpcStream) refuseHTTP(code int, text string) {
	s.info.Fail(rpc.SourceClient)
	http.Error(s.w, text, code)
	s.end(errors.New(text), status.New(codes.Internal, text), code)
}

func (s *grpcStream) serve(v View) error {
	r := s.Request
	m, ok := v.Method(r.URL.Path)
	if !ok {
		s.info.Fail(rpc.SourceClient)
		return status.Errorf(codes.Unimplemented, "unknown method %s", r.URL.Path)
	}
	route := v.Route(m)
	s.call.Method = m
	var err error
	if s.codec, err = grpcCodec(r.Header.Get("Content-Type"), route.Plan); err != nil {
		return err
	}
	if s.decode, err = decompressorFor(r.Header.Get("Grpc-Encoding"), route.MaxMessageBytes); err != nil {
		return err
	}
	timeout := time.Duration(-1)
	if t := r.Header.Get("Grpc-Timeout"); t != "" {
		if timeout, err = transcoder.ParseTimeout(t); err != nil {
			return err
		}
	}
	s.call.Header, err = transcoder.RequestMetadata(r.Header)
	if err != nil {
		return err
	}
	s.call.Peer = peerOf(r)
	s.call.Stream = s
	s.in = frameReader{r: s.guard.body(r.Body), max: route.MaxMessageBytes}
	s.write = func(b []byte) error { return s.guard.put(s.w, b) }
	return s.run(route, timeout)
}

// grpcCodec picks the message encoding by content type: application/grpc, +proto, or +json.
func grpcCodec(contentType string, plan *transcoder.Plan) (bodyCodec, error) {
	ct, _, _ := strings.Cut(contentType, ";")
	_, sub, ok := strings.Cut(strings.ToLower(strings.TrimSpace(ct)), "+")
	switch {
	case !ok, sub == "proto":
		return nil, nil
	case sub == "json":
		if plan == nil {
			return nil, status.Error(codes.Unimplemented, "JSON needs a schema, and this method has none")
		}
		return jsonCodec{plan}, nil
	}
	return nil, status.Errorf(codes.Unimplemented, "message encoding %q is not supported, use proto or json", sub)
}

// jsonCodec is the +json form of gRPC, gRPC-Web and Connect messages.
type jsonCodec struct{ plan *transcoder.Plan }

func (c jsonCodec) toWire(m rpc.Message) (rpc.Message, error) {
	defer m.Release()
	b, err := c.plan.AppendMessage(nil, m.Bytes())
	if err != nil {
		return rpc.Message{}, err
	}
	return rpc.NewMessage(b), nil
}

func (c jsonCodec) fromWire(m rpc.Message) (rpc.Message, error) {
	defer m.Release()
	b, err := c.plan.AppendJSON(nil, m.Bytes())
	if err != nil {
		return rpc.Message{}, err
	}
	return rpc.NewMessage(b), nil
}

// Recv implements rpc.Stream.
func (s *grpcStream) Recv(ctx context.Context) (rpc.Message, error) {
	if err := s.guard.bindRead(ctx, s.w); err != nil {
		return rpc.Message{}, err
	}
	flags, m, err := s.in.next()
	if err != nil {
		return rpc.Message{}, s.recvError(ctx, err)
	}
	if m, err = s.decode.message(flags, m); err != nil {
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	s.info.MessagesIn++
	s.info.BytesIn += int64(m.Len())
	if s.codec != nil {
		if m, err = s.codec.toWire(m); err != nil {
			s.info.Fail(rpc.SourceClient)
		}
	}
	return m, err
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
	return rpc.ErrClientGone
}

// SendHeader implements rpc.Stream.
func (s *grpcStream) SendHeader(md metadata.MD) error {
	if s.header {
		return rpc.ErrHeaderSent
	}
	s.header = true
	h := s.w.Header()
	h["Content-Type"] = s.contentType()
	writeMetadata(h, "", md, true)
	return nil
}

// contentType echoes the request's message encoding.
func (s *grpcStream) contentType() []string {
	if s.codec != nil {
		return []string{"application/grpc+json"}
	}
	return grpcType
}

// Send implements rpc.Stream.
func (s *grpcStream) Send(ctx context.Context, m rpc.Message) error {
	if err := s.guard.bindWrite(ctx, s.w); err != nil {
		m.Release()
		return err
	}
	if !s.header {
		if err := s.SendHeader(nil); err != nil {
			return err
		}
	}
	if s.codec != nil {
		var err error
		if m, err = s.codec.fromWire(m); err != nil {
			return err
		}
	}
	s.info.MessagesOut++
	s.info.BytesOut += int64(m.Len())
	if err := s.out.add(0, m, s.write); err != nil {
		return s.sendError(ctx)
	}
	return nil
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
func (s *grpcStream) Flush() error {
	if err := s.out.flush(s.write); err != nil {
		return rpc.ErrClientGone
	}
	if !s.header {
		return nil
	}
	if err := s.guard.flush(s.w); err != nil {
		return rpc.ErrClientGone
	}
	return nil
}

// SetTrailer implements rpc.Stream.
func (s *grpcStream) SetTrailer(md metadata.MD) { s.trailer = md }

// finish sends the status as trailers, or as headers if nothing was sent before (trailers-only).
func (s *grpcStream) finish(err error) {
	st := rpc.StatusOf(err)
	h := s.w.Header()
	prefix := http.TrailerPrefix
	if s.header {
		if s.write != nil {
			_ = s.out.flush(s.write)
		}
	} else {
		prefix = ""
		h["Content-Type"] = s.contentType()
	}
	writeMetadata(h, prefix, s.trailer, true)
	writeGRPCStatus(h, prefix, st)
	if prefix == "" {
		s.w.WriteHeader(http.StatusOK)
	}
	s.in.done()
	s.out.done()
	s.end(err, st, http.StatusOK)
}
