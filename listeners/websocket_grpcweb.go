package listeners

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/textproto"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/transcoder"
)

// grpcWebSocket is a socket of the subprotocol grpc-websockets, in which the clients of improbable-eng's gRPC-Web speak: one
// call by the method's path. The client's first binary frame is a header block; each later one is a byte 0 with a piece of
// the request body in gRPC-Web frames, or a byte 1 alone, the half-close. The answer is a gRPC-Web body, its headers in a
// trailer frame of their own in front.
type grpcWebSocket struct {
	wsCall
	begun  bool // the header block has come
	in     frameReader
	ctx    context.Context // of the present Recv
	piece  wsMessage       // of the body, its first n bytes consumed
	n      int
	over   bool
	decode decompressor
	header metadata.MD // committed and not sent yet
	// handler runs the call once its header block is there.
	handler rpc.Handler
	plain   metadata.MD // what the upgrade carried
	trailer metadata.MD
}

// serveGRPCWebSockets runs one call.
func (f *Front) serveGRPCWebSockets(w http.ResponseWriter, r *http.Request, u upgrade) {
	s := &grpcWebSocket{}
	s.serve(f, w, r, u, s)
}

// open implements socketCall. The metadata is in the first frame, so the handler runs behind a step that waits for it.
func (s *grpcWebSocket) open(v View) (*Route, time.Duration, error) {
	r := s.Request
	m, ok := methodOf(r, v)
	if !ok {
		return nil, 0, s.missing(v, transcoder.HTTPError(http.StatusNotFound, codes.Unimplemented, "unknown method "+r.URL.Path))
	}
	s.call.Method = m
	var err error
	if s.plain, err = restMetadata(v.Edge(), s.upgrade.authorize(r.Header)); err != nil {
		return nil, 0, err
	}
	route := *v.Route(m)
	s.in = frameReader{r: pieceReader{s}, max: route.MaxMessageBytes}
	s.handler = route.Handler
	route.Handler = s.readHeader
	return &route, -1, nil
}

// readHeader reads the header block and runs the call with what it says.
func (s *grpcWebSocket) readHeader(ctx context.Context, call *rpc.Call) error {
	m, err := s.first(ctx)
	if err != nil {
		return err
	}
	if m.op != opBinary {
		m.release()
		return &wsFault{closeUnsupported, codes.InvalidArgument, "a grpc-websockets client sends binary frames"}
	}
	block := append(bytes.Clone(m.data), "\r\n"...)
	m.release()
	h, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(block))).ReadMIMEHeader()
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return status.Error(codes.InvalidArgument, "the first frame is not a block of headers")
	}
	s.begun = true
	if ct := h.Get("Content-Type"); ct != "" && ct != "application/grpc-web" && ct != "application/grpc-web+proto" {
		return status.Errorf(codes.Unimplemented, "content type %q is not supported here, use application/grpc-web+proto", ct)
	}
	if s.decode, err = decompressorFor(h.Get("Grpc-Encoding"), s.in.max); err != nil {
		return err
	}
	if call.Header, err = transcoder.RequestMetadata(h); err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	transcoder.DropForwarded(call.Header) // no proxy looks into frames
	call.Header = mergeMetadata(s.plain, call.Header)
	if err := s.front.checkMetadata(call.Header); err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	s.view.Edge().admit(&s.exchange, s.Request) // again: the header is another one now
	if t := h.Get("Grpc-Timeout"); t != "" {
		timeout, err := grpcwire.ParseTimeout(t)
		if err != nil {
			return err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer func() {
			s.disarm()
			cancel()
		}()
	}
	return s.handler(ctx, call)
}

// first is the client's first message. Before it no policy has seen the call, nor counted it, so that it has as long as the body of a
// request has to go on.
func (s *grpcWebSocket) first(ctx context.Context) (wsMessage, error) {
	patience := s.front.cfg.IdleBody
	wait, cancel := context.WithTimeoutCause(ctx, patience, status.Errorf(codes.DeadlineExceeded, "no block of headers came within %v", patience))
	defer cancel()
	m, err := s.next(wait)
	if s.recvStop != nil { // the end of wait is none of the call
		s.recvStop()
		s.recvStop, s.recvDone = nil, nil
	}
	return m, err
}

// isEnd implements socketCall.
func (s *grpcWebSocket) isEnd(m wsMessage) bool {
	return m.op == opBinary && len(m.data) == 1 && m.data[0] == 1
}

// pieceReader is the request body of a grpcWebSocket.
type pieceReader struct{ s *grpcWebSocket }

func (p pieceReader) Read(b []byte) (int, error) {
	s := p.s
	for s.n == len(s.piece.data) {
		if s.over {
			return 0, io.EOF
		}
		s.piece.release()
		s.piece, s.n = wsMessage{}, 0
		m, err := s.next(s.ctx)
		if err != nil {
			return 0, err
		}
		if s.isEnd(m) {
			m.release()
			s.over = true
			s.lastMessage(true)
			return 0, io.EOF
		}
		if m.op != opBinary || len(m.data) > 0 && m.data[0] != 0 {
			m.release()
			return 0, &wsFault{closeProtocol, codes.InvalidArgument, "a frame begins with neither 0 nor 1"}
		}
		s.piece, s.n = m, min(1, len(m.data))
	}
	n := copy(b, s.piece.data[s.n:])
	s.n += n
	return n, nil
}

// Recv implements rpc.Stream.
func (s *grpcWebSocket) Recv(ctx context.Context) (rpc.Message, error) {
	s.ctx = ctx
	flags, m, err := s.in.next()
	if err != nil {
		if err != io.EOF {
			s.info.Fail(rpc.SourceClient)
		}
		return rpc.Message{}, err
	}
	if m, err = s.decode.message(flags, m); err != nil {
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	s.info.MessagesIn++
	s.info.BytesIn += int64(m.Len())
	return m, nil
}

// SendHeader implements rpc.Stream.
func (s *grpcWebSocket) SendHeader(md metadata.MD) error {
	if s.committed {
		return rpc.ErrHeaderSent
	}
	s.committed = true
	if md == nil {
		md = metadata.MD{}
	}
	s.header = md
	return s.commit(nil) //nolint:staticcheck // a nil context: nothing to wait for
}

// appendBlock appends a trailer frame of a header block; name: value lines with names in lower case.
func appendBlock(dst []byte, h http.Header) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, transcoder.FrameHeaderLen)...)
	for name, values := range h {
		for _, v := range values {
			dst = append(append(append(dst, strings.ToLower(name)...), ": "...), v...)
			dst = append(dst, "\r\n"...)
		}
	}
	transcoder.PutFrameHeader(dst[start:], 0x80)
	return dst
}

// writeHeader sends the response headers, if they are committed and not sent.
func (s *grpcWebSocket) writeHeader(ctx context.Context) error {
	if s.header == nil {
		return nil
	}
	h := http.Header{"Content-Type": {"application/grpc-web+proto"}}
	s.writeMetadata(h, s.header, false)
	s.header = nil
	return s.write(ctx, opBinary, appendBlock(nil, h))
}

// Send implements rpc.Stream.
func (s *grpcWebSocket) Send(ctx context.Context, m rpc.Message) error {
	defer m.Release()
	if err := rpc.CauseOf(ctx); err != nil {
		return err
	}
	if !s.committed {
		if err := s.SendHeader(nil); err != nil {
			return err
		}
	}
	if err := s.commit(ctx); err != nil {
		return err
	}
	if err := s.writeHeader(ctx); err != nil {
		return err
	}
	s.info.MessagesOut++
	s.info.BytesOut += int64(m.Len())
	var head [transcoder.FrameHeaderLen]byte
	return s.write(ctx, opBinary, transcoder.AppendFrameHeader(head[:0], 0, m.Len()), m.Bytes())
}

// Flush implements rpc.Stream.
func (s *grpcWebSocket) Flush() error {
	if !s.committed {
		return nil
	}
	if err := s.writeHeader(s.Request.Context()); err != nil {
		return err
	}
	return s.conn.flush()
}

// SetTrailer implements rpc.Stream.
func (s *grpcWebSocket) SetTrailer(md metadata.MD) { s.trailer = md }

// ended implements socketCall: status and trailers are a frame; the close code is 1000 whatever they say. A call that ends
// with nothing sent has them where the headers would be.
func (s *grpcWebSocket) ended(err error, st *status.Status) (int, string) {
	var details []byte
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		details, _ = proto.Marshal(p)
	}
	_ = s.writeHeader(context.Background())
	trailer := visible(withHeaderOf(err, s.trailer))
	block := transcoder.AppendTrailerBlock(make([]byte, transcoder.FrameHeaderLen), st.Code(), st.Message(), details, trailer)
	transcoder.PutFrameHeader(block, 0x80)
	_ = s.write(context.Background(), opBinary, block)
	s.in.done()
	s.piece.release()
	return closeNormal, ""
}
