package listeners

import (
	"encoding/base64"
	"io"
	"net/http"
	"strings"

	"google.golang.org/protobuf/proto"

	"transom/rpc"
	"transom/transcoder"
)

// grpcWebStream is a gRPC-Web call, binary or text (PROTOCOL-WEB.md): gRPC's frames, and its trailers as a last frame of
// the body, since browsers see no HTTP trailers.
type grpcWebStream struct{ framed }

var _ rpc.Stream = (*grpcWebStream)(nil)

const (
	grpcWebPrefix  = "application/grpc-web"
	grpcTextPrefix = "application/grpc-web-text"
)

// serveGRPCWeb answers gRPC-Web.
func (f *Front) serveGRPCWeb(w http.ResponseWriter, r *http.Request, v View) {
	s := &grpcWebStream{}
	s.begin(f, w, r, rpc.ProtocolGRPCWeb, v)
	if s.notPOST() {
		return
	}
	s.finish(s.start(v))
}

func (s *grpcWebStream) start(v View) error {
	r := s.Request
	ct := r.Header.Get("Content-Type")
	prefix, answer := grpcWebPrefix, grpcWebPrefix
	var body io.Reader = r.Body
	if hasPrefixFold(ct, grpcTextPrefix) {
		text := &textReader{r: r.Body}
		defer text.done()
		prefix, body = grpcTextPrefix, text
	}
	if prefix == grpcTextPrefix || hasPrefixFold(r.Header.Get("Accept"), grpcTextPrefix) {
		answer = grpcTextPrefix
		s.text = &textEncoder{}
	}
	codec := subtype(ct, prefix)
	s.contentType, s.encodingHeader = grpcWebTypes[answer+"+"+codec], "Grpc-Encoding"
	if s.contentType == nil {
		s.contentType = []string{answer}
	}
	route, timeout, err := s.grpcCall(v, codec)
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	if accept := r.Header["Grpc-Accept-Encoding"]; s.decode.coding != nil || len(accept) > 0 {
		s.encode = compressor{coding: route.replyCoding(s.decode.coding, accept)}
		if s.decode.coding == nil {
			s.encode.min = worthCompressing
		}
	}
	return s.serve(route, timeout, body, s)
}

// finish sends the status as the trailer frame, or as headers if nothing was sent before (trailers-only).
func (s *grpcWebStream) finish(err error) {
	s.settle(true)
	st := statusOf(err)
	if s.header {
		_ = s.out.end(transcoder.FlagTrailer, s, func(dst []byte) []byte {
			var details []byte
			if p := st.Proto(); err != nil && len(p.GetDetails()) > 0 {
				details, _ = proto.Marshal(p)
			}
			delete(s.trailer, loadReportKey)
			return transcoder.AppendTrailerBlock(dst, st.Code(), st.Message(), details, s.trailer)
		})
		_ = s.pad()
	} else {
		h := s.w.Header()
		h["Content-Type"] = s.contentType
		s.addHeaderOf(h, err)
		s.writeMetadata(h, s.trailer, false)
		writeGRPCStatus(h, false, st)
		s.w.WriteHeader(http.StatusOK)
	}
	s.done(err, st, http.StatusOK)
}

// textReader decodes a text body.
type textReader struct {
	r   io.Reader
	d   transcoder.TextDecoder
	err error
	// buf holds in its first half the text that was read last, in its second what it decodes to; rest is what of that is
	// not yet consumed.
	buf  *[readBufferLen]byte
	rest []byte
}

// Read implements io.Reader.
func (t *textReader) Read(p []byte) (int, error) {
	const half = readBufferLen / 2
	for len(t.rest) == 0 {
		if t.err != nil {
			return 0, t.err
		}
		if t.buf == nil {
			t.buf, _ = readBuffers.Get().(*[readBufferLen]byte)
		}
		var n int
		n, t.err = t.r.Read(t.buf[:half])
		var err error
		if t.rest, err = t.d.Append(t.buf[half:half], t.buf[:n]); err == nil && t.err == io.EOF {
			t.rest, err = t.d.Close(t.rest)
		}
		if err != nil {
			t.err, t.rest = err, nil
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// done gives back the buffer.
func (t *textReader) done() {
	if t.buf != nil {
		readBuffers.Put(t.buf)
		t.buf, t.rest, t.err = nil, nil, io.EOF
	}
}

// textEncoder encodes a text body as base64 that is padded where the client must be able to decode all there is.
type textEncoder struct {
	buf  []byte
	tail [3]byte // what does not fill a group yet
	n    int
}

// encode returns the text of all full groups of three bytes; it is valid until the next call.
func (t *textEncoder) encode(b []byte) []byte {
	t.buf = t.buf[:0]
	if t.n > 0 {
		m := copy(t.tail[t.n:], b)
		t.n, b = t.n+m, b[m:]
		if t.n < len(t.tail) {
			return t.buf
		}
		t.buf = base64.StdEncoding.AppendEncode(t.buf, t.tail[:])
	}
	full := len(b) / 3 * 3
	t.buf = base64.StdEncoding.AppendEncode(t.buf, b[:full])
	t.n = copy(t.tail[:], b[full:])
	return t.buf
}

// pad returns the text of what is left over, padded.
func (t *textEncoder) pad() []byte {
	t.buf = base64.StdEncoding.AppendEncode(t.buf[:0], t.tail[:t.n])
	t.n = 0
	return t.buf
}

// isGRPCWeb tells gRPC-Web from native gRPC, whose content types have a common beginning.
func isGRPCWeb(contentType string) bool {
	const tail = len("application/grpc")
	return len(contentType) >= len(grpcWebPrefix) && strings.EqualFold(contentType[tail:len(grpcWebPrefix)], "-web")
}

// grpcWebTypes are the content types of answers, by themselves.
var grpcWebTypes = func() map[string][]string {
	m := map[string][]string{}
	for _, t := range [...]string{
		grpcWebPrefix + "+proto", grpcWebPrefix + "+json", grpcTextPrefix + "+proto", grpcTextPrefix + "+json",
	} {
		m[t] = []string{t}
	}
	return m
}()
