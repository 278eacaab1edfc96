package h2client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/rpc/h2wire"
)

const (
	messagePrefix = 5 // flag and length of a gRPC message
	// readBufLen is the length of the reading buffer, more than any frame's.
	readBufLen = 64 << 10
	// directRead is the number of bytes of a message missing in a frame from which they are read to where they belong.
	directRead = 8 << 10
	// maxIdleFrames is how many frames of no use (PING, SETTINGS, empty DATA, unknown, …) a server may send in ten seconds.
	maxIdleFrames = 10_000
)

// reader is the receiving side. It belongs to one goroutine.
type reader struct {
	c    *Conn
	buf  []byte
	r, w int // what is buffered: buf[r:w]
	dec  *hpack.Decoder
	head head

	// A header block in several frames.
	block       []byte
	blockStream uint32 // 0 if none is unfinished
	blockEnd    bool   // with END_STREAM

	idleFrames int
	idleSince  time.Time
}

// connError ends the connection for a fault of the server.
type connError struct {
	code h2wire.ErrCode
	text string
}

func (e *connError) Error() string { return "the server broke HTTP/2: " + e.text }

func protocolError(text string) error { return &connError{h2wire.CodeProtocol, text} }

// read is the connection's goroutine.
func (c *Conn) read() {
	var err error
	for err == nil {
		err = c.reader.frame()
	}
	code := h2wire.CodeNo
	if e := (*connError)(nil); errors.As(err, &e) {
		code = e.code
	} else {
		err = fmt.Errorf("reading from the server: %w", err)
	}
	c.mu.Lock()
	c.batching = false
	c.fail(err, code)
	c.wakeReceivers()
	c.mu.Unlock()
	c.writers.Wait()
	close(c.done)
}

// settle does what can no longer be put off because the reader is about to wait. It does not wait.
func (c *Conn) settle() {
	c.mu.Lock()
	c.batching = false
	c.wakeReceivers()
	if len(c.out)+c.output.Pending() > maxGathered {
		c.fail(&connError{h2wire.CodeEnhanceCalm, "it asks for answers that it does not read"}, h2wire.CodeEnhanceCalm)
	}
	c.flush(false)
}

// need waits until n bytes are buffered. n is at most readBufLen.
func (r *reader) need(n int) error {
	for r.w-r.r < n {
		if r.r == r.w {
			r.r, r.w = 0, 0
		} else if r.r+n > len(r.buf) {
			r.w = copy(r.buf, r.buf[r.r:r.w])
			r.r = 0
		}
		k, err := r.receive(r.buf[r.w:])
		r.w += k
		if err != nil && r.w-r.r < n {
			if err == io.EOF && r.w > r.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// receive reads from the socket.
func (r *reader) receive(p []byte) (int, error) {
	r.c.settle()
	n, err := r.c.conn.Read(p)
	if n > 0 {
		r.c.heard.Store(true)
	}
	return n, err
}

// frame reads one frame and does what it asks for.
func (r *reader) frame() error {
	if err := r.need(h2wire.FrameHeaderLen); err != nil {
		return err
	}
	h := r.buf[r.r : r.r+h2wire.FrameHeaderLen]
	length := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	typ, flags := h[3], h[4]
	id := binary.BigEndian.Uint32(h[5:]) & h2wire.MaxStreamID
	r.r += h2wire.FrameHeaderLen
	switch {
	case !r.c.settled && (typ != h2wire.FrameSettings || flags&h2wire.FlagAck != 0):
		return protocolError("its first frame is not SETTINGS")
	case length > h2wire.DefaultMaxFrame:
		return &connError{h2wire.CodeFrameSize, "frame of " + strconv.Itoa(length) + " bytes"}
	case r.blockStream != 0 && (typ != h2wire.FrameContinuation || id != r.blockStream):
		return protocolError("a header block is interrupted")
	case typ == h2wire.FrameData:
		return r.data(id, flags, length)
	}
	if err := r.need(length); err != nil {
		return unexpected(err)
	}
	p := r.buf[r.r : r.r+length]
	r.r += length
	switch typ {
	case h2wire.FrameHeaders:
		return r.headers(id, flags, p)
	case h2wire.FrameContinuation:
		return r.continuation(id, flags, p)
	case h2wire.FrameReset:
		return r.reset(id, p)
	case h2wire.FrameSettings:
		return r.settings(id, flags, p)
	case h2wire.FramePing:
		return r.ping(id, flags, p)
	case h2wire.FrameGoAway:
		return r.goAway(id, p)
	case h2wire.FrameWindowUpdate:
		return r.windowUpdate(id, p)
	case h2wire.FramePushPromise:
		return protocolError("PUSH_PROMISE")
	default: // PRIORITY, and whatever may be invented
		return r.idle()
	}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// useful counts a frame that brings a call forward, which others may go with: grpc-go's servers send a PING and a
// WINDOW_UPDATE with many an answer.
func (r *reader) useful() { r.idleFrames = max(r.idleFrames-8, 0) }

// idle counts a frame of no use.
func (r *reader) idle() error {
	r.idleFrames++
	if r.idleFrames < maxIdleFrames {
		return nil
	}
	r.idleFrames = 0
	now := time.Now()
	if now.Sub(r.idleSince) < 10*time.Second {
		return &connError{h2wire.CodeEnhanceCalm, "too many frames of no use"}
	}
	r.idleSince = now
	return nil
}

// lock takes c.mu for what a frame changes.
func (r *reader) lock() *Conn {
	r.c.mu.Lock()
	r.c.batching = true
	return r.c
}

// stream is the open stream with an ID, or nil if it is no longer. c.mu is held.
func (c *Conn) stream(id uint32) (*Stream, error) {
	if s, ok := c.streams[id]; ok {
		return s, nil
	}
	if id == 0 || id%2 == 0 || id >= c.nextID {
		return nil, protocolError("frame of stream " + strconv.FormatUint(uint64(id), 10) + ", which was never opened")
	}
	return nil, nil //nolint:nilnil // as said
}

// data reads a DATA frame.
func (r *reader) data(id uint32, flags byte, length int) error {
	n, pad := length, 0
	if flags&h2wire.FlagPadded != 0 {
		if length < 1 {
			return &connError{h2wire.CodeFrameSize, "DATA without its padding length"}
		}
		if err := r.need(1); err != nil {
			return unexpected(err)
		}
		pad = int(r.buf[r.r])
		r.r++
		if n--; pad > n {
			return protocolError("more padding than DATA")
		}
		n -= pad
	}
	empty := n == 0
	c := r.lock()
	s, err := c.stream(id)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	if c.recvWindow -= length; c.recvWindow < 0 {
		c.mu.Unlock()
		return &connError{h2wire.CodeFlowControl, "more DATA than the connection's window"}
	}
	if c.recvDebt += length; c.recvDebt >= c.cfg.ConnWindow/4 {
		c.out = h2wire.AppendWindowUpdate(c.out, 0, c.recvDebt)
		c.recvWindow += c.recvDebt
		c.recvDebt = 0
	}
	if s != nil {
		switch s.recvWindow -= length; {
		case s.recvWindow < 0:
			c.reset(s, h2wire.CodeFlowControl, errProtocol("the server sent more than the stream's window"))
			s = nil
		case !s.answered:
			c.reset(s, h2wire.CodeProtocol, errProtocol("the server sent a message before its headers"))
			s = nil
		default:
			s.pay(length - n)
		}
	}
	for n > 0 {
		if s == nil {
			c.mu.Unlock()
			if err := r.skip(n); err != nil {
				return err
			}
			c = r.lock()
			break
		}
		k, err := r.message(s, n) // unlocks
		if err != nil {
			return unexpected(err)
		}
		n -= k
		c = r.lock()
		s = c.streams[id]
	}
	if s != nil && flags&h2wire.FlagEndStream != 0 {
		s.finish(errProtocol("the server ended the stream without trailers"))
	}
	c.mu.Unlock()
	if !empty {
		r.useful()
	} else if err := r.idle(); err != nil {
		return err
	}
	return r.skip(pad)
}

// skip passes over n bytes.
func (r *reader) skip(n int) error {
	for n > 0 {
		if r.w == r.r {
			if err := r.need(1); err != nil {
				return unexpected(err)
			}
		}
		k := min(n, r.w-r.r)
		r.r += k
		n -= k
	}
	return nil
}

// message takes some of the n bytes of messages that follow in a DATA frame of s, at least one. c.mu is held on entry and
// not on return.
func (r *reader) message(s *Stream, n int) (int, error) {
	c := r.c
	if r.w == r.r {
		if want := s.missing(); s.prefixLen == messagePrefix && min(n, want) >= directRead {
			b, at := s.in, s.filled
			s.in = nil // the stream may end meanwhile
			id := s.id
			c.mu.Unlock()
			k, err := r.receive(b.SliceBuffer[at : at+min(n, want)])
			c = r.lock()
			if c.streams[id] != s {
				b.Free()
				c.mu.Unlock()
				return k, err
			}
			s.in = b
			s.took(k)
			c.mu.Unlock()
			return k, err
		}
		c.mu.Unlock()
		return 0, r.need(1)
	}
	p := r.buf[r.r:r.w]
	p = p[:min(len(p), n)]
	k := len(p)
	for len(p) > 0 && s.end == nil {
		if s.prefixLen < messagePrefix {
			i := copy(s.prefix[s.prefixLen:], p)
			s.prefixLen += i
			p = p[i:]
			s.owe(i)
			if s.prefixLen == messagePrefix {
				s.begin()
			}
			continue
		}
		i := copy(s.in.SliceBuffer[s.filled:], p[:min(len(p), s.missing())])
		p = p[i:]
		s.took(i)
	}
	r.r += k
	c.mu.Unlock()
	return k, nil
}

// missing is the number of bytes of the present message that its memory has room for and that are not here.
func (s *Stream) missing() int {
	if s.in == nil {
		return 0
	}
	return len(s.in.SliceBuffer) - s.filled
}

// owe accounts for n bytes of messages. Those of a unary call are given back as they come, since the whole message is
// wanted; those of a stream when their message is received, or its large message could never come.
func (s *Stream) owe(n int) {
	if s.unary {
		s.pay(n)
		return
	}
	s.unpaid += n
	s.hold(n)
	s.fetch()
}

// begin begins the message whose prefix is here.
func (s *Stream) begin() {
	c := s.c
	size := binary.BigEndian.Uint32(s.prefix[1:])
	switch flag := s.prefix[0]; {
	case flag > 1:
		c.reset(s, h2wire.CodeCancel, errProtocol(fmt.Sprintf("the server sent a message with invalid flags 0x%02x", flag)))
	case flag == 1 && (s.encoding == "" || s.encoding == "identity"):
		c.reset(s, h2wire.CodeCancel, errProtocol("the server sent a compressed message without naming its encoding"))
	case uint64(size) > uint64(c.cfg.MaxMessageBytes):
		c.reset(s, h2wire.CodeCancel, &Error{
			Code: codes.ResourceExhausted, Origin: OriginLimit,
			Message: fmt.Sprintf("the server sent a message of %d bytes, the limit is %d bytes", size, c.cfg.MaxMessageBytes),
		})
	case s.unary && len(s.queue) > 0:
		c.reset(s, h2wire.CodeCancel, &Error{
			Code: codes.Unimplemented, Origin: OriginProtocol,
			Message: "the server answered a unary call with more than one message",
		})
	default:
		s.size, s.filled = int(size), 0
		s.in = newBuf(min(s.size, c.firstChunk()))
		s.owe(0)
		s.took(0)
	}
}

// took hears that n bytes have been put into the message's memory.
func (s *Stream) took(n int) {
	s.filled += n
	s.burst += n
	s.owe(n)
	if s.filled < len(s.in.SliceBuffer) {
		return
	}
	if s.filled < s.size {
		s.in = s.in.grown(min(2*s.filled, s.size))
		return
	}
	m := Message{Compressed: s.prefix[0] == 1}
	if s.size > 0 {
		m.Data = s.in.slice()
	} else {
		s.in.Free()
	}
	s.in = nil
	s.queue = append(s.queue, queued{m, s.size + messagePrefix, s.unpaid})
	s.unpaid, s.prefixLen = 0, 0
	if !s.unary { // whose caller waits for the end
		s.c.notify(s)
	}
}

// notify wakes the receiver of s, at the latest before the reader waits: there may be more for it until then. c.mu is
// held.
func (c *Conn) notify(s *Stream) {
	if !c.batching {
		wake(s.receivable)
	} else if !s.waking {
		s.waking = true
		c.wakes = append(c.wakes, s)
	}
}

func errProtocol(text string) *Error {
	return &Error{Code: codes.Internal, Message: text, Origin: OriginProtocol}
}

// headers reads a HEADERS frame.
func (r *reader) headers(id uint32, flags byte, p []byte) error {
	if flags&h2wire.FlagPadded != 0 {
		if len(p) < 1 || int(p[0]) > len(p)-1 {
			return protocolError("more padding than HEADERS")
		}
		p = p[1 : len(p)-int(p[0])]
	}
	if flags&h2wire.FlagPriority != 0 {
		if len(p) < 5 {
			return &connError{h2wire.CodeFrameSize, "HEADERS without the priority it announces"}
		}
		p = p[5:]
	}
	end := flags&h2wire.FlagEndStream != 0
	if flags&h2wire.FlagEndHeaders == 0 {
		r.blockStream, r.blockEnd = id, end
		r.block = append(r.block[:0], p...)
		return nil
	}
	return r.decode(id, end, p)
}

func (r *reader) continuation(id uint32, flags byte, p []byte) error {
	if r.blockStream == 0 {
		return protocolError("CONTINUATION of nothing")
	}
	if len(p) == 0 {
		if err := r.idle(); err != nil {
			return err
		}
	}
	if len(r.block)+len(p) > 4*r.head.limit+h2wire.DefaultMaxFrame {
		return &connError{h2wire.CodeEnhanceCalm, "header block far over the limit"}
	}
	r.block = append(r.block, p...)
	if flags&h2wire.FlagEndHeaders == 0 {
		return nil
	}
	r.blockStream = 0
	err := r.decode(id, r.blockEnd, r.block)
	if cap(r.block) > 4*h2wire.DefaultMaxFrame {
		r.block = nil
	}
	return err
}

// decode decodes a header block, for the table's sake even if nobody waits for it.
func (r *reader) decode(id uint32, end bool, block []byte) error {
	r.head.reset()
	if _, err := r.dec.Write(block); err != nil {
		return &connError{h2wire.CodeCompression, err.Error()}
	}
	if err := r.dec.Close(); err != nil {
		return &connError{h2wire.CodeCompression, err.Error()}
	}
	c := r.lock()
	s, err := c.stream(id)
	if err == nil && s != nil {
		err = r.head.apply(s, end, r)
	}
	c.mu.Unlock()
	return err
}

// head is a decoded header block.
type head struct {
	limit int // of size
	size  int
	fault string // why the block is malformed, "" if it is not
	over  bool   // size is over limit

	regular     bool // a field that is no pseudo-header has come
	status      int  // 0 if there is none
	contentType string
	encoding    string
	grpcStatus  string
	message     string
	details     []byte
	md          metadata.MD
}

func (h *head) reset() { *h = head{limit: h.limit} }

// add takes one field.
func (h *head) add(f hpack.HeaderField) {
	h.size += len(f.Name) + len(f.Value) + 32
	if h.size > h.limit {
		h.over = true
		h.md = nil
	}
	if h.over || h.fault != "" {
		return
	}
	if len(f.Name) > 0 && f.Name[0] == ':' {
		n, err := strconv.Atoi(f.Value)
		if f.Name != ":status" || h.status != 0 || h.regular || err != nil || len(f.Value) != 3 || n < 100 {
			h.fault = "a pseudo-header is not valid"
		}
		h.status = n
		return
	}
	h.regular = true
	switch f.Name {
	case "content-type":
		h.contentType = f.Value
	case "grpc-status":
		h.grpcStatus = f.Value
	case "grpc-message":
		h.message = f.Value
	case "grpc-encoding":
		h.encoding = f.Value
	case "grpc-status-details-bin":
		d, err := grpcwire.DecodeBin(f.Value)
		if err != nil {
			h.fault = "grpc-status-details-bin is not base64"
			return
		}
		h.details = d
	case "te", "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade": // not HTTP/2's
	default:
		h.metadata(f)
	}
}

// metadata takes a field of the application's.
func (h *head) metadata(f hpack.HeaderField) {
	for i := range len(f.Name) {
		if !fieldNameChars[f.Name[i]] {
			h.fault = "a field name is not valid"
			return
		}
	}
	for i := range len(f.Value) {
		if c := f.Value[i]; c < 0x20 && c != '\t' || c == 0x7f {
			h.fault = "a field value has control characters"
			return
		}
	}
	if h.md == nil {
		h.md = rpc.NewMetadata()
	}
	if !strings.HasSuffix(f.Name, "-bin") {
		h.md[f.Name] = append(h.md[f.Name], f.Value)
		return
	}
	for part := range strings.SplitSeq(f.Value, ",") {
		b, err := grpcwire.DecodeBin(strings.Trim(part, " \t"))
		if err != nil {
			h.fault = "a value of " + f.Name + " is not base64"
			return
		}
		h.md[f.Name] = append(h.md[f.Name], string(b))
	}
}

// fieldNameChars are those of a token (RFC 9110 5.6.2) without upper case (RFC 9113 8.2).
var fieldNameChars = func() (ok [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz" {
		ok[c] = true
	}
	return ok
}()

// isGRPC reports whether the block is of a gRPC response in protobuf: application/grpc or application/grpc+proto, with
// parameters perhaps.
func (h *head) isGRPC() bool {
	t, _, _ := strings.Cut(h.contentType, ";")
	t = strings.TrimRight(t, " \t")
	return strings.EqualFold(t, "application/grpc") || strings.EqualFold(t, "application/grpc+proto")
}

// apply gives the block to its stream. c.mu is held.
func (h *head) apply(s *Stream, end bool, r *reader) error {
	c := s.c
	switch {
	case h.over:
		c.reset(s, h2wire.CodeCancel, &Error{
			Code: codes.ResourceExhausted, Origin: OriginLimit,
			Message: fmt.Sprintf("the server sent metadata of more than %d bytes", h.limit),
		})
	case h.fault != "":
		c.reset(s, h2wire.CodeProtocol, errProtocol("the server sent malformed headers: "+h.fault))
	case s.answered && (!end || h.status != 0):
		c.reset(s, h2wire.CodeProtocol, errProtocol("the server sent headers in the middle of a stream"))
	case s.answered:
		r.useful()
		s.trailer = h.md
		s.finish(h.outcome(s))
	case h.status == 0:
		c.reset(s, h2wire.CodeProtocol, errProtocol("the server sent headers without :status"))
	case h.status < 200:
		if end || h.status == 101 {
			c.reset(s, h2wire.CodeProtocol, errProtocol("the server ended the stream with an interim response"))
			return nil
		}
		return r.idle()
	case end && h.grpcStatus != "" && (h.isGRPC() || h.contentType == ""):
		s.trailer = h.md
		s.finish(h.outcome(s))
	case h.status != http.StatusOK:
		c.refuse(s, end, &Error{
			Code: grpcwire.CodeOfHTTP(h.status), Origin: OriginHTTP, HTTP: h.status,
			Message: "the server answered with HTTP status " + strconv.Itoa(h.status) + " instead of gRPC",
		})
	case !h.isGRPC():
		c.refuse(s, end, &Error{
			Code: codes.Unknown, Origin: OriginHTTP, HTTP: h.status,
			Message: fmt.Sprintf("the server answered with content-type %q instead of gRPC", clip(h.contentType)),
		})
	case end:
		s.trailer = h.md
		s.finish(h.outcome(s))
	default:
		s.answered, s.header, s.encoding = true, h.md, h.encoding
		c.notify(s)
	}
	return nil
}

// refuse ends a stream whose answer is not gRPC.
func (c *Conn) refuse(s *Stream, end bool, err *Error) {
	if end {
		s.finish(err)
		return
	}
	c.reset(s, h2wire.CodeCancel, err)
}

// outcome is the status that trailers tell: an *Error, or io.EOF for OK.
func (h *head) outcome(s *Stream) error {
	n, err := strconv.ParseUint(h.grpcStatus, 10, 32)
	switch {
	case h.grpcStatus == "":
		return &Error{Code: codes.Unknown, Message: "the server sent no grpc-status", Origin: OriginProtocol}
	case err != nil:
		return &Error{Code: codes.Unknown, Message: "the server sent a malformed grpc-status", Origin: OriginProtocol}
	case n == 0 && s.prefixLen > 0:
		return errProtocol("the server ended the stream inside a message")
	case n == 0:
		return io.EOF
	case n > uint64(codes.Unauthenticated):
		n = uint64(codes.Unknown)
	}
	return &Error{Code: codes.Code(n), Message: grpcwire.DecodeGRPCMessage(h.message), Details: h.details, Origin: OriginServer}
}

func clip(s string) string { return s[:min(len(s), 64)] }

// reset reads an RST_STREAM frame.
func (r *reader) reset(id uint32, p []byte) error {
	if len(p) != 4 {
		return &connError{h2wire.CodeFrameSize, "RST_STREAM"}
	}
	c := r.lock()
	defer c.mu.Unlock()
	s, err := c.stream(id)
	if err != nil {
		return err
	}
	if s == nil {
		return r.idle()
	}
	code := h2wire.ErrCode(binary.BigEndian.Uint32(p))
	s.sendClosed = true // no reset in answer
	if code == h2wire.CodeCancel && s.timed && !time.Now().Before(s.deadline) {
		// The server's clock was the faster one.
		s.finish(&Error{Code: codes.DeadlineExceeded, Message: "the call's deadline has passed", Origin: OriginContext})
		return nil
	}
	s.finish(&Error{
		Code: grpcwire.CodeOfReset(uint32(code)), Origin: OriginReset, Reset: uint32(code), Unprocessed: code == h2wire.CodeRefused,
		Message: "the server reset the stream with HTTP/2 error " + code.String(),
	})
	return nil
}

// settings reads a SETTINGS frame.
func (r *reader) settings(id uint32, flags byte, p []byte) error {
	switch {
	case id != 0:
		return protocolError("SETTINGS of a stream")
	case flags&h2wire.FlagAck != 0 && len(p) != 0, len(p)%6 != 0:
		return &connError{h2wire.CodeFrameSize, "SETTINGS"}
	}
	if err := r.idle(); err != nil {
		return err
	}
	c := r.lock()
	defer c.mu.Unlock()
	if flags&h2wire.FlagAck != 0 {
		c.acknowledged()
		return nil
	}
	for ; len(p) > 0; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case h2wire.SettingHeaderTableSize:
			c.enc.setLimit(v)
		case h2wire.SettingEnablePush:
			if v != 0 {
				return protocolError("SETTINGS_ENABLE_PUSH")
			}
		case h2wire.SettingMaxStreams:
			c.maxStreams.Store(v)
		case h2wire.SettingInitialWindow:
			if v > h2wire.MaxWindow {
				return &connError{h2wire.CodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE"}
			}
			delta := int64(v) - c.initialWindow
			c.initialWindow = int64(v)
			for _, s := range c.streams {
				if s.sendWindow += delta; s.sendWindow > h2wire.MaxWindow {
					return &connError{h2wire.CodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE"}
				}
				wake(s.sendable)
			}
		case h2wire.SettingMaxFrame:
			if v < 16<<10 || v > 1<<24-1 {
				return protocolError("SETTINGS_MAX_FRAME_SIZE")
			}
			c.maxFrame = int(v)
		case h2wire.SettingMaxHeaderListSize:
			c.maxHeaderList = uint64(v)
		}
	}
	c.out = h2wire.AppendFrame(c.out, 0, h2wire.FrameSettings, h2wire.FlagAck, 0)
	c.grant()
	if !c.settled {
		c.settled = true
		close(c.ready)
	}
	return nil
}

// ping reads a PING frame.
func (r *reader) ping(id uint32, flags byte, p []byte) error {
	switch {
	case id != 0:
		return protocolError("PING of a stream")
	case len(p) != 8:
		return &connError{h2wire.CodeFrameSize, "PING"}
	}
	c := r.lock()
	defer c.mu.Unlock()
	if c.echoes > 0 { // grpc-go's servers measure the path while they get DATA
		c.echoes--
	} else if err := r.idle(); err != nil {
		return err
	}
	if flags&h2wire.FlagAck == 0 {
		c.out = h2wire.AppendPing(c.out, h2wire.FlagAck, (*[8]byte)(p))
	}
	return nil
}

// goAway reads a GOAWAY frame.
func (r *reader) goAway(id uint32, p []byte) error {
	switch {
	case id != 0:
		return protocolError("GOAWAY of a stream")
	case len(p) < 8:
		return &connError{h2wire.CodeFrameSize, "GOAWAY"}
	}
	last := binary.BigEndian.Uint32(p) & h2wire.MaxStreamID
	away := &GoAwayError{Code: binary.BigEndian.Uint32(p[4:]), Debug: string(p[8:min(len(p), 8+256)])}
	if err := r.idle(); err != nil {
		return err
	}
	c := r.lock()
	defer c.mu.Unlock()
	refused := &Error{
		Code: codes.Unavailable, Message: "the server is closing the connection and did not take the call",
		Origin: OriginConn, Unprocessed: true, Cause: away,
	}
	for id, s := range c.streams {
		if id > last {
			s.sendClosed = true // no reset: the server ignores it
			s.finish(refused)
		}
	}
	c.drain(away)
	return nil
}

// windowUpdate reads a WINDOW_UPDATE frame.
func (r *reader) windowUpdate(id uint32, p []byte) error {
	if len(p) != 4 {
		return &connError{h2wire.CodeFrameSize, "WINDOW_UPDATE"}
	}
	n := int64(binary.BigEndian.Uint32(p) & h2wire.MaxWindow)
	c := r.lock()
	defer c.mu.Unlock()
	if id == 0 {
		c.sendWindow += n
		switch {
		case n == 0:
			return protocolError("WINDOW_UPDATE of 0")
		case c.sendWindow > h2wire.MaxWindow:
			return &connError{h2wire.CodeFlowControl, "WINDOW_UPDATE past 2 GiB"}
		}
		c.wakeBlocked()
		return nil
	}
	s, err := c.stream(id)
	switch {
	case err != nil:
		return err
	case s == nil:
		return nil
	case n == 0:
		c.reset(s, h2wire.CodeProtocol, errProtocol("the server sent a WINDOW_UPDATE of 0"))
	case s.sendWindow+n > h2wire.MaxWindow:
		c.reset(s, h2wire.CodeFlowControl, errProtocol("the server raised the stream's window past 2 GiB"))
	default:
		s.sendWindow += n
		wake(s.sendable)
	}
	return nil
}
