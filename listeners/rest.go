package listeners

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/transcoder"
)

var _ rpc.RateLimited = (*restStream)(nil)

// restStream is a REST call by google.api.http.
type restStream struct {
	exchange
	route *Route
	match descriptors.Match
	// What the request body and the response are.
	up   upload
	down download
	// format is that of a downloadStream.
	format transcoder.StreamFormat
	fields *transcoder.Fields // what the client wants of each answer; nil for all
	pretty bool
	in     jsonStream
	// fileType is the content type of an uploadHTTPBody.
	fileType string
	recv     int // messages received
	// out is the response body: for a unary call all of it, for a stream what is not yet written.
	out *[]byte
	// raw is the answer if it is wanted to the end: its HttpBody data is the response body, or it remembers what it was turned into.
	raw       rpc.Message
	header    metadata.MD
	trailer   metadata.MD
	answered  bool       // header is what SendHeader took
	committed bool       // status and header are written
	ending    bool       // finish writes the rest
	sent      int        // messages sent
	abort     bool       // the response must be seen to be cut off
	beat      *heartbeat // of a stream of events whose status is written
	plans     *transcoder.Plans
	// limit and limitPolicy are the values of RateLimit and RateLimit-Policy; "" for none.
	limit, limitPolicy [1]string
}

// upload says how the request body becomes messages.
type upload uint8

const (
	uploadOne      upload = iota // one message from path, query and the whole body
	uploadJSON                   // a stream of JSON messages
	uploadHTTPBody               // a stream of raw chunks in google.api.HttpBody
)

// download says how answers become the response body.
type download uint8

const (
	downloadOne      download = iota // one JSON document
	downloadRaw                      // the data of one HttpBody
	downloadStream                   // a stream of JSON in the format that was negotiated
	downloadHTTPBody                 // the data of a stream of HttpBody, byte for byte
)

var streamTypes = [...][]string{
	transcoder.StreamNDJSON: {transcoder.StreamNDJSON.ContentType()},
	transcoder.StreamSSE:    {transcoder.StreamSSE.ContentType()},
	transcoder.StreamArray:  {transcoder.StreamArray.ContentType()},
}

// restBuffers hold request and response bodies.
var restBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// maxPooledBuffer is the capacity above which a buffer is left to the collector.
const maxPooledBuffer = 1 << 20

func getBuffer() *[]byte {
	b, _ := restBuffers.Get().(*[]byte)
	return b
}

func putBuffer(b *[]byte) {
	if cap(*b) <= maxPooledBuffer {
		*b = (*b)[:0]
		restBuffers.Put(b)
	}
}

// serveREST answers a REST request.
func (f *Front) serveREST(w http.ResponseWriter, r *http.Request, v View) {
	s := &restStream{}
	s.begin(f, w, r, rpc.ProtocolREST, v)
	s.plans = v.Plans()
	var err error
	if s.match, err = v.MatchHTTP(r.Method, r.URL.EscapedPath(), v.Edge().version(r.Header)); err != nil {
		if fault := pathFault(r, v); fault != nil {
			s.refuseHTTP(fault)
			return
		}
		err = s.routeFault(v, r.Method, err)
		s.info.Fail(rpc.SourceClient)
	} else {
		err = s.serve(v)
	}
	s.finish(err)
	if s.abort {
		panic(http.ErrAbortHandler)
	}
}

// hasEffects reports whether a request of that binding may change something even if it is a GET. A rule for GET promises that it
// does not (RFC 9110, 9.2.1), but if the method says of itself that it writes; one for every HTTP method promises nothing.
func hasEffects(b *descriptors.Binding) bool {
	return b.Method.Effect == descriptors.EffectIdempotent || b.Verb == "*" && b.Method.Effect != descriptors.EffectNone
}

func (s *restStream) serve(v View) error {
	r := s.Request
	b := s.match.Binding
	s.call.Method = b.Method
	s.info.Binding = b
	s.route = v.Route(b.Method)
	var err error
	if err = s.checkForgery(hasEffects(b)); err != nil {
		return err
	}
	if err = s.negotiate(b); err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	timeout := time.Duration(-1)
	if t := r.Header.Get("Grpc-Timeout"); t != "" {
		if timeout, err = grpcwire.ParseTimeout(t); err != nil {
			s.info.Fail(rpc.SourceClient)
			return err
		}
	}
	if s.call.Header, err = restMetadata(v.Edge(), r.Header); err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	s.call.Stream = s
	return s.run(s.route, timeout)
}

// negotiate decides the form of request and response.
func (s *restStream) negotiate(b *descriptors.Binding) error {
	r, m, plan := s.Request, b.Method, s.route.Plan
	raw := plan.HTTPBody(b)
	switch {
	case m.ClientStreams && raw.Request:
		s.up = uploadHTTPBody
	case m.ClientStreams:
		s.up = uploadJSON
	}
	if plan.Forms() && transcoder.IsForm(r.Header.Get("Content-Type")) {
		var sameOrigin http.CrossOriginProtection
		if sameOrigin.Check(r) != nil {
			return originDenied("forms are taken from pages of the same origin only")
		}
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		if codingOf(transcoder.Lower(enc)) == nil || r.Body == nil { // their names have no case: RFC 9110, 8.4.1
			return &withHeader{
				unsupported("content encoding " + strconv.Quote(enc) + " is not supported, use one of: " + acceptedEncodings),
				http.Header{"Accept-Encoding": {acceptedEncodings}},
			}
		}
	}
	switch {
	case raw.Response && m.ServerStreams:
		s.down = downloadHTTPBody
	case raw.Response:
		s.down = downloadRaw
	case m.ServerStreams:
		s.down, s.format = downloadStream, acceptStream(r.Header.Get("Accept"))
	}
	if r.URL.RawQuery != "" && !raw.Response {
		if err := s.systemParams(b); err != nil {
			return err
		}
	}
	if m.ClientStreams {
		s.fullDuplex()
	}
	return nil
}

func unsupported(msg string) error {
	return transcoder.HTTPError(http.StatusUnsupportedMediaType, codes.InvalidArgument, msg)
}

// systemParams obeys the system parameters of the query that say how the answer is written.
func (s *restStream) systemParams(b *descriptors.Binding) error {
	sys, err := s.route.Plan.System(s.Request.URL.RawQuery)
	if err != nil {
		return err
	}
	switch {
	case sys.Alt == "":
	case sys.Alt == "json" && s.down == downloadOne:
	case s.down == downloadStream && sys.Alt == "json":
		s.format = transcoder.StreamArray
	case s.down == downloadStream && sys.Alt == "ndjson":
		s.format = transcoder.StreamNDJSON
	case s.down == downloadStream && sys.Alt == "sse":
		s.format = transcoder.StreamSSE
	default:
		return transcoder.QueryFault("$alt", fmt.Errorf("this answer cannot be written as %q", sys.Alt))
	}
	s.pretty = sys.PrettyPrint && s.down == downloadOne
	if sys.Fields != "" {
		s.fields, err = s.route.Plan.Fields(b, sys.Fields)
	}
	return err
}

// acceptStream picks the framing of a server stream by the first of the three that Accept names; NDJSON if none.
func acceptStream(accept string) transcoder.StreamFormat {
	for part := range strings.SplitSeq(accept, ",") {
		mt, params, _ := strings.Cut(part, ";")
		if quality(params) == 0 {
			continue
		}
		switch strings.ToLower(strings.TrimSpace(mt)) {
		case "text/event-stream":
			return transcoder.StreamSSE
		case "application/json":
			return transcoder.StreamArray
		case "application/x-ndjson", "application/jsonl", "application/json-lines", "application/json-seq":
			return transcoder.StreamNDJSON
		}
	}
	return transcoder.StreamNDJSON
}

// Recv implements rpc.Stream.
func (s *restStream) Recv(ctx context.Context) (rpc.Message, error) {
	switch s.up {
	case uploadOne:
	case uploadJSON:
		return s.recvJSON(ctx)
	case uploadHTTPBody:
		return s.recvChunk(ctx)
	}
	if s.recv > 0 {
		return rpc.Message{}, io.EOF
	}
	if n := s.Request.ContentLength; n < 0 || n >= largeBody {
		if how := s.route.Plan.Growing(s.match.Binding, s.Request.Header.Get("Content-Type")); how != transcoder.GrowingNot {
			return s.recvGrowing(ctx, how)
		}
	}
	body := getBuffer()
	defer putBuffer(body)
	if err := s.readBody(ctx, body); err != nil {
		return rpc.Message{}, err
	}
	s.info.BytesIn += int64(len(*body))
	wire := getBuffer()
	var err error
	began := time.Now()
	*wire, err = s.route.Plan.AppendRequest(*wire, &s.match, s.Request.URL.RawQuery, s.Request.Header.Get("Content-Type"), *body)
	s.info.TranscodeIn += time.Since(began)
	if err != nil {
		putBuffer(wire)
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	s.recv++
	s.info.MessagesIn++
	return rpc.PooledMessage(wire, bufferPool{}), nil
}

// bufferPool lets messages return their memory to restBuffers.
type bufferPool struct{}

var _ mem.BufferPool = bufferPool{}

// Get implements mem.BufferPool.
func (bufferPool) Get(n int) *[]byte {
	b := getBuffer()
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (bufferPool) Put(b *[]byte) { putBuffer(b) }

// readBody reads the whole request body, decompressed, within the limit.
func (s *restStream) readBody(ctx context.Context, dst *[]byte) error {
	r := s.Request
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	limit := s.route.MaxMessageBytes
	body, err := s.openBody(ctx)
	if err != nil {
		return err
	}
	over, err := readAll(body, dst, r.ContentLength, limit)
	switch {
	case err != nil:
		return s.recvError(ctx, err)
	case over:
		return s.tooLarge()
	}
	return nil
}

// openBody begins to read the request body of a unary call.
func (s *restStream) openBody(ctx context.Context) (io.Reader, error) {
	if s.Request.ContentLength > int64(s.route.MaxMessageBytes) {
		return nil, s.tooLarge()
	}
	if err := s.guard.noteRead(ctx, s.w); err != nil {
		return nil, err
	}
	return s.bodyReader(ctx)
}

// largeBody is from how many bytes on a body becomes the message while it is read, where that can be.
const largeBody = 64 << 10

// recvGrowing receives the message of a large body without having the body in memory too.
func (s *restStream) recvGrowing(ctx context.Context, how transcoder.Growing) (rpc.Message, error) {
	body, err := s.openBody(ctx)
	if err != nil {
		return rpc.Message{}, err
	}
	wire := getBuffer()
	if how == transcoder.GrowingHTTPBody {
		err = s.growHTTPBody(ctx, wire, body)
	} else {
		err = s.growList(ctx, wire, body)
	}
	if err == nil {
		*wire, err = s.route.Plan.AppendQueryAndPath(*wire, &s.match, s.Request.URL.RawQuery)
	}
	if err != nil {
		putBuffer(wire)
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	s.recv++
	s.info.MessagesIn++
	return rpc.PooledMessage(wire, bufferPool{}), nil
}

// growHTTPBody reads the data to where it stays in the message.
func (s *restStream) growHTTPBody(ctx context.Context, wire *[]byte, body io.Reader) error {
	contentType := s.Request.Header.Get("Content-Type")
	room := transcoder.HTTPBodyRoom(contentType)
	*wire = append(*wire, make([]byte, room)...)
	over, err := readAll(body, wire, s.Request.ContentLength, s.route.MaxMessageBytes)
	switch {
	case err != nil:
		return s.recvError(ctx, err)
	case over:
		return s.tooLarge()
	}
	s.info.BytesIn += int64(len(*wire) - room)
	*wire = s.route.Plan.WrapHTTPBody(*wire, room, s.match.Binding, contentType)
	return nil
}

// growList turns the elements of an array into records of the message as they come.
func (s *restStream) growList(ctx context.Context, wire *[]byte, body io.Reader) error {
	plan, b, limit := s.route.Plan, s.match.Binding, s.route.MaxMessageBytes
	bounded := &countedReader{r: io.LimitReader(body, int64(limit)+1)}
	in := jsonStream{r: bounded, max: limit}
	defer func() { s.info.BytesIn += bounded.n }()
	failed := func(err error) error {
		if bounded.n > int64(limit) {
			return s.tooLarge()
		}
		return s.recvError(ctx, err)
	}
	c, err := in.peek()
	if err != nil && err != io.EOF {
		return failed(err)
	}
	if c != '[' { // nothing, null, or a fault
		text := in.buf[in.start:]
		if _, err := readAll(bounded, &text, -1, limit+1); err != nil {
			return failed(err)
		}
		if bounded.n > int64(limit) {
			return s.tooLarge()
		}
		if len(text) > 0 {
			lines, column := in.position(in.start)
			*wire, err = plan.AppendElement(*wire, b, -1, text, func() (int, int, int) { return int(in.offset), lines, column })
		}
		return err
	}
	for n := 0; ; n++ {
		text, err := in.next()
		if err == io.EOF && bounded.n <= int64(limit) {
			return nil
		}
		if err != nil {
			return failed(err)
		}
		*wire, err = plan.AppendElement(*wire, b, n, text, func() (before, lines, column int) {
			lines, column = in.position(in.start - len(text))
			return int(in.offset) - len(text), lines, column
		})
		if err != nil {
			return err
		}
		if size := s.Request.ContentLength; n == 100 && size > 0 && in.offset > 0 {
			// The rest will be like the first: one allocation instead of a dozen, each a copy of what there is. Not by slices.Grow,
			// which makes as much again under the race detector.
			room := int(min(size-in.offset, int64(limit)) * int64(len(*wire)) / in.offset * 17 / 16)
			*wire = append(make([]byte, 0, len(*wire)+room), *wire...)
		}
	}
}

// readAll appends all of body to dst and reports whether it is over limit bytes; then it stops reading. size is its length
// in bytes if known, else negative; memory for it is taken as it comes.
func readAll(body io.Reader, dst *[]byte, size int64, limit int) (over bool, err error) {
	b := *dst
	limit += len(b)
	whole := len(b) + int(size) + 1 // with room for the read that sees the end
	if cap(b) < min(whole, firstPiece) {
		b = append(make([]byte, 0, min(whole, len(b)+firstPiece)), b...)
	}
	for {
		switch {
		case len(b) < cap(b):
		case len(b) < whole:
			b = append(make([]byte, 0, min(whole, growth*len(b))), b...)
		default:
			b = append(b, 0)[:len(b)]
		}
		n, err := body.Read(b[len(b):min(cap(b), limit+1)])
		b = b[:len(b)+n]
		*dst = b
		if len(b) > limit {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func (s *restStream) tooLarge() error {
	s.info.Fail(rpc.SourceClient)
	return transcoder.HTTPError(http.StatusRequestEntityTooLarge, codes.ResourceExhausted,
		"request body is larger than the limit of "+strconv.Itoa(s.route.MaxMessageBytes)+" bytes")
}

// recvError says what a failed body read means. Why the body itself could not be read goes before what was made of that by who
// decodes it.
func (s *restStream) recvError(ctx context.Context, err error) error {
	if why := s.guard.failure; why != nil {
		err = why
	}
	return s.exchange.recvError(ctx, err)
}

// bodyReader is the request body with its content coding undone.
func (s *restStream) bodyReader(ctx context.Context) (io.Reader, error) {
	c := codingOf(transcoder.Lower(s.Request.Header.Get("Content-Encoding")))
	body := s.guard.body(s.Request.Body)
	if c == nil {
		return body, nil
	}
	coded := &countedReader{r: body}
	r, err := c.reader(coded)
	if err != nil {
		return nil, s.recvError(ctx, status.Errorf(codes.InvalidArgument, "request body is not valid %s: %v", c.name, err))
	}
	return &codedBody{r: r, coding: c, coded: coded}, nil
}

// A body may decode to maxRatio times its size, beyond the first ratioFree bytes: a stream of parts has no other limit to
// what a few bytes become. Text comes to 20 times or less, a file of zeros to 1,000 and more.
const (
	maxRatio  = 100
	ratioFree = 1 << 20
)

// countedReader counts what is read.
type countedReader struct {
	r io.Reader
	n int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// codedBody names the coding in its errors, and refuses bodies that are only there to be large.
type codedBody struct {
	r      io.Reader
	coding *coding
	coded  *countedReader
	n      int64
}

func (c *codedBody) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n += int64(n); c.n > ratioFree+maxRatio*c.coded.n {
		return 0, transcoder.HTTPError(http.StatusRequestEntityTooLarge, codes.ResourceExhausted,
			"request body decodes to more than "+strconv.Itoa(maxRatio)+" times its size")
	}
	if err != nil {
		if err != io.EOF {
			return n, status.Errorf(codes.InvalidArgument, "request body is not valid %s: %v", c.coding.name, err)
		}
		if c.r != nil {
			c.coding.readers.Put(c.r)
			c.r = eofReader{}
		}
	}
	return n, err
}

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }

// recvJSON receives the next message of a JSON stream. Path and query go into the first message.
func (s *restStream) recvJSON(ctx context.Context) (rpc.Message, error) {
	if err := s.guard.bindRead(ctx, s.w); err != nil {
		return rpc.Message{}, err
	}
	if s.in.r == nil {
		body, err := s.bodyReader(ctx)
		if err != nil {
			return rpc.Message{}, err
		}
		s.in = jsonStream{r: body, max: s.route.MaxMessageBytes}
	}
	text, err := s.in.next()
	if err != nil {
		return rpc.Message{}, s.recvError(ctx, err)
	}
	wire := getBuffer()
	began := time.Now()
	if s.recv == 0 {
		*wire, err = s.route.Plan.AppendRequest(*wire, &s.match, s.Request.URL.RawQuery, s.Request.Header.Get("Content-Type"), text)
	} else {
		*wire, err = s.route.Plan.AppendBody(*wire, s.match.Binding, "", text)
	}
	s.info.TranscodeIn += time.Since(began)
	if err != nil {
		lines, column := s.in.position(s.in.start - len(text))
		err = transcoder.InStream(err, s.recv+1, lines, column)
		putBuffer(wire)
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	s.recv++
	s.info.MessagesIn++
	s.info.BytesIn += int64(len(text))
	return rpc.PooledMessage(wire, bufferPool{}), nil
}

// chunkLen is the data in one message of an HttpBody upload.
const chunkLen = 64 << 10

// recvChunk receives the next chunk of a raw upload. Path, query and content type go into the first message; an empty body
// is one message with no data.
func (s *restStream) recvChunk(ctx context.Context) (rpc.Message, error) {
	if err := s.guard.bindRead(ctx, s.w); err != nil {
		return rpc.Message{}, err
	}
	if s.in.r == nil {
		s.guard.watchRead()
		body, err := s.bodyReader(ctx)
		if err != nil {
			return rpc.Message{}, err
		}
		s.fileType = s.Request.Header.Get("Content-Type")
		if s.route.Plan.Forms() {
			if body, s.fileType, err = transcoder.FormFile(s.fileType, body); err != nil {
				return rpc.Message{}, s.recvError(ctx, err)
			}
		}
		s.in.r = body
	}
	if s.in.eof != nil {
		return rpc.Message{}, s.recvError(ctx, s.in.eof)
	}
	chunk := getBuffer()
	defer putBuffer(chunk)
	if cap(*chunk) < chunkLen {
		*chunk = make([]byte, chunkLen)
	}
	n, err := s.in.r.Read((*chunk)[:chunkLen])
	if n == 0 && err != nil {
		if err != io.EOF || s.recv > 0 {
			return rpc.Message{}, s.recvError(ctx, err)
		}
	}
	s.in.eof = err // the last chunk may come with the end of the body
	data := (*chunk)[:n]
	wire := getBuffer()
	if s.recv == 0 {
		*wire = s.route.Plan.AppendHTTPBody(*wire, s.match.Binding, s.fileType, data)
		*wire, err = s.route.Plan.AppendQueryAndPath(*wire, &s.match, s.Request.URL.RawQuery)
	} else {
		*wire, err = s.route.Plan.AppendHTTPBody(*wire, s.match.Binding, "", data), nil
	}
	if err != nil {
		putBuffer(wire)
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	s.recv++
	s.info.MessagesIn++
	s.info.BytesIn += int64(n)
	return rpc.PooledMessage(wire, bufferPool{}), nil
}

// SendHeader implements rpc.Stream. The HTTP status is held back until the first message, since a call may still fail.
func (s *restStream) SendHeader(md metadata.MD) error {
	if s.answered || s.sent > 0 {
		return rpc.ErrHeaderSent
	}
	s.answered, s.header = true, md
	return nil
}

// RateLimit implements rpc.RateLimited.
func (s *restStream) RateLimit(state, policy string) {
	s.limit[0], s.limitPolicy[0] = state, policy
}

// writeHeader sets the header of the answer that is metadata.
func (s *restStream) writeHeader(h http.Header) {
	s.writeMetadata(h, s.header, false)
	s.header = nil
	if s.limit[0] != "" {
		h["Ratelimit"], h["Ratelimit-Policy"] = s.limit[:], s.limitPolicy[:]
	}
}

// SetTrailer implements rpc.Stream.
func (s *restStream) SetTrailer(md metadata.MD) { s.trailer = md }

// Send implements rpc.Stream.
func (s *restStream) Send(ctx context.Context, m rpc.Message) error {
	if s.down >= downloadStream {
		if err := s.guard.bindWrite(ctx, s.w); err != nil {
			m.Release()
			return err
		}
	}
	s.sent++
	s.info.MessagesOut++
	if s.out == nil {
		s.out = getBuffer()
	}
	switch s.down {
	case downloadOne:
		if s.fields == nil && !s.pretty {
			if b, ok, err := m.Rendering(s.match.Binding, s.render); ok {
				*s.out = append(*s.out, b...)
				s.raw = m
				return err
			}
		}
		defer m.Release()
		return s.appendJSON(m.Bytes())
	case downloadRaw:
		s.raw = m
		return nil
	case downloadHTTPBody:
		return s.sendChunk(ctx, m)
	case downloadStream:
	}
	before := len(*s.out)
	*s.out = s.format.AppendBefore(*s.out, int64(s.sent-1))
	err := s.appendJSON(m.Bytes())
	m.Release()
	if err != nil {
		*s.out = (*s.out)[:before]
		s.sent--
		s.info.MessagesOut--
		return err
	}
	*s.out = s.format.AppendAfter(*s.out)
	if len(*s.out) >= writeBufferLen {
		return s.writeOut(ctx)
	}
	return nil
}

// render is the whole of one answer in JSON.
func (s *restStream) render(wire []byte) ([]byte, error) {
	began := time.Now()
	defer func() { s.info.TranscodeOut += time.Since(began) }()
	return s.route.Plan.AppendResponse(nil, s.match.Binding, wire)
}

// appendJSON appends what the client wants of one answer. On error s.out is as before.
func (s *restStream) appendJSON(wire []byte) error {
	start := len(*s.out)
	began := time.Now()
	b, err := s.route.Plan.AppendResponse(*s.out, s.match.Binding, wire)
	s.info.TranscodeOut += time.Since(began)
	if err != nil {
		return err
	}
	if s.fields != nil {
		b = b[:start+len(s.fields.Keep(b[start:]))]
	}
	if s.pretty {
		indented, err := transcoder.AppendIndented(nil, b[start:])
		if err != nil {
			return err
		}
		b = append(b[:start], indented...)
	}
	*s.out = b
	return nil
}

// sendChunk writes the data of one HttpBody message.
func (s *restStream) sendChunk(ctx context.Context, m rpc.Message) error {
	defer m.Release()
	contentType, data, err := s.route.Plan.SplitHTTPBody(s.match.Binding, m.Bytes())
	if err != nil {
		return err
	}
	if !s.committed {
		s.commit(http.StatusOK, []string{contentType}, false)
	}
	s.info.BytesOut += int64(len(data))
	if err := s.guard.put(s.w, data); err != nil {
		return s.sendError(ctx)
	}
	return nil
}

// commit writes the response header; last says that the call is over.
func (s *restStream) commit(code int, contentType []string, last bool) {
	s.committed = true
	s.settle(last)
	h := s.w.Header()
	s.writeHeader(h)
	h["Content-Type"] = contentType
	if code == http.StatusOK && s.down == downloadStream && s.format != transcoder.StreamArray {
		h["Cache-Control"] = []string{"no-cache"}
	}
	s.keepPrivate(s.route)
	h["X-Content-Type-Options"] = nosniff
	s.w.WriteHeader(code)
}

// writeOut hands the gathered stream to net/http.
func (s *restStream) writeOut(ctx context.Context) error {
	if !s.committed {
		s.commit(http.StatusOK, streamTypes[s.format], false)
		if s.down == downloadStream && s.format == transcoder.StreamSSE && !s.ending {
			s.startBeat()
		}
	}
	if len(*s.out) == 0 {
		return nil
	}
	s.info.BytesOut += int64(len(*s.out))
	free := s.holdBeat()
	err := s.guard.put(s.w, *s.out)
	free()
	*s.out = (*s.out)[:0]
	if err != nil {
		return s.sendError(ctx)
	}
	return nil
}

// Flush implements rpc.Stream. Once a backend has sent its header the stream's is sent too, so that a client of a quiet
// stream knows it is open; an error after that is a late one.
func (s *restStream) Flush() error {
	switch s.down {
	case downloadOne, downloadRaw:
		return nil
	case downloadHTTPBody:
		if !s.committed { // the content type comes with the first message
			return nil
		}
	default:
		if s.sent == 0 && !s.answered {
			return nil
		}
		if s.out == nil {
			s.out = getBuffer()
		}
		if err := s.writeOut(s.Request.Context()); err != nil {
			return err
		}
	}
	free := s.holdBeat()
	err := s.guard.flush(s.w)
	free()
	if err != nil {
		return s.sendError(s.Request.Context())
	}
	return nil
}

// finish ends the exchange: the answer, an error body, or the end of a stream in its framing.
func (s *restStream) finish(err error) {
	s.stopBeat()
	s.ending = true
	if err == nil {
		err = s.finishOK()
	}
	var st *status.Status
	code := http.StatusOK
	if err != nil {
		st = rpc.StatusOf(err)
		code = s.finishError(err, st)
	}
	if s.out != nil {
		putBuffer(s.out)
		s.out = nil
	}
	s.raw.Release()
	s.settle(true)
	s.end(err, st, code)
}

// finishOK writes what is left of a successful answer.
func (s *restStream) finishOK() error {
	switch s.down {
	case downloadOne:
		if s.sent == 0 {
			return status.Error(codes.Internal, "the backend ended the call without a message")
		}
		s.tag(*s.out)
		if s.unchanged() {
			return nil
		}
		s.writeJSON(*s.out)
		return nil
	case downloadRaw:
		if s.sent == 0 {
			return status.Error(codes.Internal, "the backend ended the call without a message")
		}
		contentType, data, err := s.route.Plan.SplitHTTPBody(s.match.Binding, s.raw.Bytes())
		if err != nil {
			return err
		}
		s.tag(data)
		if s.unchanged() {
			return nil
		}
		s.writeBody(http.StatusOK, []string{contentType}, data)
		return nil
	case downloadHTTPBody:
		if s.sent == 0 {
			s.writeBody(http.StatusOK, []string{"application/octet-stream"}, nil)
		}
		return nil
	case downloadStream:
	}
	if s.out == nil {
		s.out = getBuffer()
	}
	*s.out = s.format.AppendEnd(*s.out, int64(s.sent))
	if s.committed {
		return s.writeOut(s.Request.Context())
	}
	s.writeBody(http.StatusOK, streamTypes[s.format], *s.out)
	return nil
}

// codedForm names the compressed JSON among the renderings of an answer.
type codedForm struct {
	binding *descriptors.Binding
	coding  *coding
}

// negotiated reports whether clients get the answer in the coding that they take, and has the header tell caches so.
func (s *restStream) negotiated(body []byte) bool {
	if len(body) < worthCompressing || s.route.Uncompressed {
		return false
	}
	h := s.w.Header()
	h["Vary"] = append(h["Vary"], "Accept-Encoding")
	if etag := s.header["etag"]; len(etag) > 0 {
		s.header["etag"] = weakTag(etag)
	}
	return true
}

// weakTag is an entity tag of a backend for an answer that comes in several codings. Their bytes differ, which a strong tag would deny
// (RFC 9110 sections 8.8.1 and 8.8.3.3).
func weakTag(etag []string) []string {
	if strings.HasPrefix(etag[0], "W/") {
		return etag
	}
	return []string{"W/" + etag[0]}
}

// writeJSON writes a unary answer, compressed if it is worth it and the client takes it.
func (s *restStream) writeJSON(body []byte) {
	if !s.negotiated(body) {
		s.writeBody(http.StatusOK, jsonType, body)
		return
	}
	if c := replyCoding(nil, s.Request.Header["Accept-Encoding"]); c != nil {
		coded, remembered, err := s.raw.Rendering(codedForm{s.match.Binding, c}, func([]byte) ([]byte, error) { return c.compress(nil, body) })
		if !remembered {
			b := getBuffer()
			defer putBuffer(b)
			if coded, err = c.compress(*b, body); err == nil {
				*b = coded
			}
		}
		if err == nil {
			body = coded
			s.w.Header()["Content-Encoding"] = c.value
		}
	}
	s.writeBody(http.StatusOK, jsonType, body)
}

// tag gives the answer to a GET of a method without side effects an entity tag, if the backend gave none: a
// hash of the body. It is weak, since the same tag stands for the body in every content coding.
func (s *restStream) tag(body []byte) {
	get := s.Request.Method == http.MethodGet || s.Request.Method == http.MethodHead
	if !get || s.call.Method.Effect != descriptors.EffectNone || len(s.header["etag"]) > 0 {
		return
	}
	var b [2 + 1 + 11 + 1]byte
	t := append(b[:0], `W/"`...)
	t = base64.RawURLEncoding.AppendEncode(t, binary.BigEndian.AppendUint64(nil, xxhash.Sum64(body)))
	s.w.Header()["Etag"] = []string{string(append(t, '"'))}
}

// unchanged answers 304 if the client asks by GET for what it has already: if-none-match has the answer's etag, weakly
// compared (RFC 9110 sections 8.8.3.2 and 13.1.2).
func (s *restStream) unchanged() bool {
	have := s.Request.Header["If-None-Match"]
	if len(have) == 0 || s.Request.Method != http.MethodGet && s.Request.Method != http.MethodHead {
		return false
	}
	h := s.w.Header()
	etag := s.header["etag"]
	if len(etag) == 0 {
		etag = h["Etag"]
	}
	if len(etag) != 1 {
		return false
	}
	want := strings.TrimPrefix(etag[0], "W/")
	for _, line := range have {
		for tag := range strings.SplitSeq(line, ",") {
			if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == want {
				if s.out != nil {
					s.negotiated(*s.out) // as with the answer itself
				}
				s.committed = true
				s.settle(true)
				s.writeHeader(h)
				s.keepPrivate(s.route)
				s.w.WriteHeader(http.StatusNotModified)
				return true
			}
		}
	}
	return false
}

// writeBody writes a whole response.
func (s *restStream) writeBody(code int, contentType []string, body []byte) {
	h := s.w.Header()
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	writeTrailer(h, "Grpc-Trailer-", s.trailer, false)
	s.trailer = nil
	s.commit(code, contentType, true)
	s.info.BytesOut += int64(len(body))
	if s.Request.Method != http.MethodHead {
		_, _ = s.w.Write(body)
	}
}

// finishError writes the error body, or, once the answer has begun, the framing's own form of a late error.
func (s *restStream) finishError(err error, st *status.Status) int {
	if s.committed || s.sent > 0 && s.down >= downloadStream {
		s.lateError(err, st)
		return http.StatusOK
	}
	code := transcoder.HTTPStatusOf(err)
	body := getBuffer()
	defer putBuffer(body)
	*body = s.plans.AppendStatus(*body, st, code)
	h := s.w.Header()
	s.addHeaderOf(h, err)
	if h["Ratelimit"] != nil {
		s.limit[0] = ""
	}
	h["Cache-Control"] = noStore
	if code == http.StatusRequestEntityTooLarge && s.Request.ProtoMajor == 1 {
		h["Connection"] = connClose
	}
	s.writeBody(code, jsonType, *body)
	return code
}

// lateError ends a stream that failed after its first message so that no client can take it for complete: NDJSON and SSE
// end in an error record, an array stays open, raw data is cut off.
func (s *restStream) lateError(err error, st *status.Status) {
	if s.out == nil {
		s.out = getBuffer()
	}
	if s.down == downloadStream {
		*s.out = s.plans.AppendStreamError(*s.out, s.format, int64(s.sent), st, transcoder.HTTPStatusOf(err))
	}
	h := s.w.Header()
	writeTrailer(h, http.TrailerPrefix, s.trailer, false)
	s.trailer = nil
	writeGRPCStatus(h, true, st)
	_ = s.writeOut(s.Request.Context())
	if s.down == downloadHTTPBody || s.format == transcoder.StreamArray {
		_ = s.guard.flush(s.w)
		s.abort = true
	}
}
