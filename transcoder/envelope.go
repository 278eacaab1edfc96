package transcoder

import (
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/descriptors"
	wsv1 "transom/proto/transom/ws/v1"
	"transom/rpc/grpcwire"
)

// EnvelopeWindow is how many messages a side of a transom.v1 call may send before it is given credit, unless the call was
// opened with a window of its own.
const EnvelopeWindow = 16

// ClientFrame is a frame of a transom.v1 client (proto/transom/ws/v1/frame.proto). Its parts take effect in their order
// here.
type ClientFrame struct {
	ID uint32
	// Open is nil but in the first frame of a call.
	Open *Open
	// Message is one message, JSON in a text frame and wire bytes in a binary one, if HasMessage. It lies in the frame.
	Message    []byte
	HasMessage bool
	End        bool
	Cancel     bool
	Credit     uint32
}

// Open is the beginning of a transom.v1 call.
type Open struct {
	// Method is a gRPC path; else Verb and Path are an HTTP method and a path with its query.
	Method, Verb, Path string
	// Metadata is what RequestMetadata makes of the frame's.
	Metadata metadata.MD
	// Timeout is negative without limit.
	Timeout time.Duration
	// Window is how many responses may be sent before the client gives credit.
	Window uint32
	// Err is why the call cannot begin, InvalidArgument; it says nothing of other calls. What is wrong is then not set.
	Err error
}

// The fields of transom.ws.v1.Frame.
const (
	frameID      protowire.Number = 1
	frameOpen    protowire.Number = 2
	frameHeader  protowire.Number = 3
	frameMessage protowire.Number = 4
	frameBinary  protowire.Number = 5
	frameEnd     protowire.Number = 6
	frameCancel  protowire.Number = 7
	frameStatus  protowire.Number = 8
	frameCredit  protowire.Number = 9
)

// ParseFrame reads a client's frame; text says that it came as a WebSocket text frame. A frame that is none, or has parts
// that only servers send, is InvalidArgument saying what is wrong: the socket is then not to be trusted further. What is wrong
// within an open, whose end is known, is its Err.
func (p *Plans) ParseFrame(data []byte, text bool) (ClientFrame, error) {
	var f ClientFrame
	var open []byte
	var err error
	if text {
		open, err = p.parseText(&f, data)
	} else {
		open, err = f.parseBinary(data)
	}
	if err == nil && open != nil {
		f.Open, err = p.parseOpen(open, text)
	}
	if err != nil {
		return ClientFrame{}, err
	}
	return f, nil
}

func badFrame(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, "frame: "+format, args...)
}

// parseBinary reads the wire form; open is the record of that field, nil if there is none.
func (f *ClientFrame) parseBinary(data []byte) (open []byte, err error) {
	for len(data) > 0 {
		num, t, n := protowire.ConsumeTag(data)
		if n < 0 {
			return nil, badFrame("not a transom.ws.v1.Frame")
		}
		data = data[n:]
		var v uint64
		var b []byte
		switch t {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			b, n = protowire.ConsumeBytes(data)
			b = slices.Clip(b)
		default:
			n = protowire.ConsumeFieldValue(num, t, data)
		}
		if n < 0 {
			return nil, badFrame("not a transom.ws.v1.Frame")
		}
		data = data[n:]
		isBytes, isVarint := t == protowire.BytesType, t == protowire.VarintType
		switch {
		case num == frameID && isVarint:
			f.ID = uint32(v)
		case num == frameOpen && isBytes:
			open = b
		case num == frameBinary && isBytes:
			f.Message, f.HasMessage = b, true
		case num == frameEnd && isVarint:
			f.End = v != 0
		case num == frameCancel && isVarint:
			f.Cancel = v != 0
		case num == frameCredit && isVarint:
			f.Credit = uint32(v)
		case (num == frameHeader || num == frameMessage || num == frameStatus) && isBytes:
			return nil, badFrame("field %d is not a client's in a binary frame", num)
		}
	}
	return open, nil
}

// parseText reads the JSON form; open is the text of that member, nil if there is none.
func (p *Plans) parseText(f *ClientFrame, data []byte) (open []byte, err error) {
	s := frameScanner{data: data}
	if !s.take('{') {
		return nil, badFrame("not a JSON object")
	}
	seen := 0
	for first := true; !s.take('}'); first = false {
		if !first && !s.take(',') {
			return nil, badFrame("expected , or } at byte %d", s.pos)
		}
		name, ok := s.value()
		if !ok || name[0] != '"' || !s.take(':') {
			return nil, badFrame("expected a member at byte %d", s.pos)
		}
		at := s.space()
		v, ok := s.value()
		if !ok {
			return nil, badFrame("expected a value at byte %d", at)
		}
		bit := 0
		isNull := string(v) == "null"
		switch string(name) {
		case `"id"`:
			bit = 1
			ok = p.parseUint32(&f.ID, v)
		case `"open"`:
			bit = 2
			if !isNull {
				open = v
			}
		case `"message"`:
			bit = 4
			f.Message, f.HasMessage = v, true
		case `"end"`:
			bit = 8
			ok = parseBool(&f.End, v)
		case `"cancel"`:
			bit = 16
			ok = parseBool(&f.Cancel, v)
		case `"credit"`:
			bit = 32
			ok = p.parseUint32(&f.Credit, v)
		default:
			return nil, badFrame("%s is not a member that a client sends", clip(stringOf(name)))
		}
		switch {
		case !ok:
			return nil, badFrame("%s cannot be %s", name, clip(stringOf(v)))
		case seen&bit != 0:
			return nil, badFrame("%s is given twice", name)
		}
		seen |= bit
	}
	if s.space() != len(data) {
		return nil, badFrame("unexpected text after the object, at byte %d", s.pos)
	}
	return open, nil
}

// parseUint32 reads a number in any of its forms in ProtoJSON: 7, "7", 7.0, 7e0.
func (p *Plans) parseUint32(dst *uint32, v []byte) bool {
	if string(v) == "null" {
		return true
	}
	if n, ok := digits(string(v)); ok {
		*dst = uint32(n)
		return n <= math.MaxUint32
	}
	// Rare enough to be read as a number of this kind that a message has.
	wire, err := p.open.AppendWire(nil, slices.Concat([]byte(`{"window":`), v, []byte{'}'}), nil)
	var o wsv1.Open
	if err != nil || proto.Unmarshal(wire, &o) != nil {
		return false
	}
	*dst = o.GetWindow()
	return true
}

func parseBool(dst *bool, v []byte) bool {
	*dst = string(v) == "true"
	return *dst || string(v) == "false" || string(v) == "null"
}

// frameScanner walks the members of a JSON object without looking into their values.
type frameScanner struct {
	data []byte
	pos  int
}

// space passes over white space and returns where it ends.
func (s *frameScanner) space() int {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
			continue
		}
		break
	}
	return s.pos
}

// take passes over c, if it is next.
func (s *frameScanner) take(c byte) bool {
	if s.space() < len(s.data) && s.data[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

// value passes over the value that is next and returns it. It finds only where the value ends.
func (s *frameScanner) value() (v []byte, ok bool) {
	start := s.space()
	depth := 0
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case '"':
			for s.pos++; ; s.pos++ {
				if s.pos >= len(s.data) {
					return nil, false
				}
				if s.data[s.pos] == '\\' {
					s.pos++
				} else if s.data[s.pos] == '"' {
					break
				}
			}
			s.pos++
		case '{', '[':
			depth++
			s.pos++
			continue
		case '}', ']':
			if depth == 0 {
				return nil, false
			}
			depth--
			s.pos++
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return nil, false
			}
			s.pos++
			continue
		default:
			for s.pos < len(s.data) && strings.IndexByte(",:{}[]\" \t\r\n", s.data[s.pos]) < 0 {
				s.pos++
			}
		}
		if depth == 0 {
			return s.data[start:s.pos:s.pos], true
		}
	}
	return nil, false
}

// parseOpen reads an Open. The error says that a binary frame is none.
func (p *Plans) parseOpen(b []byte, text bool) (*Open, error) {
	out := &Open{Timeout: -1}
	if text {
		var err error
		if b, err = p.open.AppendWire(nil, b, nil); err != nil {
			out.Err = badOpen("%v", err)
			return out, nil
		}
	}
	var o wsv1.Open
	if err := proto.Unmarshal(b, &o); err != nil {
		return nil, badFrame("open: not a transom.ws.v1.Open")
	}
	out.Method, out.Verb, out.Path, out.Window = o.GetMethod(), o.GetVerb(), o.GetPath(), o.GetWindow()
	if out.Verb == "" {
		out.Verb = "GET"
	}
	if out.Window == 0 {
		out.Window = EnvelopeWindow
	}
	if (o.GetMethod() == "") == (o.GetPath() == "") {
		out.Err = badOpen("either method or path must be set")
		return out, nil
	}
	if d := o.GetTimeout(); d != nil {
		if !d.IsValid() {
			out.Err = badOpen("timeout is out of range")
			return out, nil
		}
		out.Timeout = max(0, d.AsDuration()) // a deadline that has passed is less than nothing
	}
	out.Metadata, out.Err = openMetadata(o.GetMetadata())
	return out, nil
}

func badOpen(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, "open: "+format, args...)
}

// openMetadata is the request metadata of an Open.
func openMetadata(lists map[string]*structpb.ListValue) (metadata.MD, error) {
	if len(lists) == 0 {
		return nil, nil
	}
	h := make(map[string][]string, len(lists))
	for key, list := range lists {
		values := make([]string, len(list.GetValues()))
		for i, v := range list.GetValues() {
			s, ok := v.AsInterface().(string)
			if !ok {
				return nil, badOpen("metadata %q: every value must be a string", clip(key))
			}
			values[i] = s
		}
		key = Lower(key) // one name, however it is written
		h[key] = append(h[key], values...)
	}
	md, err := RequestMetadata(h)
	if err != nil {
		return nil, badOpen("%s", status.Convert(err).Message())
	}
	DropForwarded(md) // no proxy looks into frames
	return md, nil
}

// AppendMessageFrame appends a server's frame of one response message, given in wire form. header, if not nil, goes before
// it in the same frame; it may be empty. In a text frame b, nil for a call opened by method, says which part of the
// response the client sees. A message without a JSON form is Internal, as in AppendResponse.
func (p *Plan) AppendMessageFrame(dst []byte, text bool, id uint32, header metadata.MD, b *descriptors.Binding, wire []byte) ([]byte, error) {
	dst = appendFrameID(dst, text, id)
	dst = appendFrameHeader(dst, text, header)
	if !text {
		dst = protowire.AppendTag(dst, frameBinary, protowire.BytesType)
		return protowire.AppendBytes(dst, wire), nil
	}
	dst, err := p.AppendResponse(append(dst, `,"message":`...), b, wire)
	return append(dst, '}'), err
}

// AppendHeaderFrame appends a server's frame of response metadata alone.
func AppendHeaderFrame(dst []byte, text bool, id uint32, header metadata.MD) []byte {
	if header == nil {
		header = metadata.MD{}
	}
	dst = appendFrameHeader(appendFrameID(dst, text, id), text, header)
	if text {
		dst = append(dst, '}')
	}
	return dst
}

// AppendStatusFrame appends a server's frame that ends a call; header, if not nil, goes before the status in the same
// frame.
func (p *Plans) AppendStatusFrame(dst []byte, text bool, id uint32, header metadata.MD, st *status.Status, trailer metadata.MD) []byte {
	dst = appendFrameHeader(appendFrameID(dst, text, id), text, header)
	ps := st.Proto()
	if !text {
		start := len(dst)
		if c := defined(st.Code()); c != 0 {
			dst = protowire.AppendVarint(protowire.AppendTag(dst, 1, protowire.VarintType), uint64(c))
		}
		if m := ps.GetMessage(); m != "" {
			dst = protowire.AppendString(protowire.AppendTag(dst, 2, protowire.BytesType), strings.ToValidUTF8(m, "�"))
		}
		for _, d := range ps.GetDetails() {
			at := len(dst)
			if out, err := (proto.MarshalOptions{}).MarshalAppend(dst, d); err == nil {
				dst = wrap(out, at, 3)
			}
		}
		return wrap(appendFrameMetadata(dst, 4, trailer), start, frameStatus)
	}
	dst = append(dst, `,"status":{"code":`...)
	dst = appendUint(dst, uint64(defined(st.Code())))
	if m := ps.GetMessage(); m != "" {
		dst = appendString(append(dst, `,"message":`...), m)
	}
	if len(ps.GetDetails()) > 0 {
		dst = append(dst, `,"details":[`...)
		for i, d := range ps.GetDetails() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = p.appendDetail(dst, d)
		}
		dst = append(dst, ']')
	}
	if len(trailer) > 0 {
		dst = appendMetadataJSON(append(dst, `,"trailers":`...), trailer)
	}
	return append(dst, '}', '}')
}

// AppendCreditFrame appends a frame that lets the client send n further messages on the call.
func AppendCreditFrame(dst []byte, text bool, id, n uint32) []byte {
	dst = appendFrameID(dst, text, id)
	if !text {
		return protowire.AppendVarint(protowire.AppendTag(dst, frameCredit, protowire.VarintType), uint64(n))
	}
	return append(appendUint(append(dst, `,"credit":`...), uint64(n)), '}')
}

func appendFrameID(dst []byte, text bool, id uint32) []byte {
	if text {
		return appendUint(append(dst, `{"id":`...), uint64(id))
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, frameID, protowire.VarintType), uint64(id))
}

func appendFrameHeader(dst []byte, text bool, md metadata.MD) []byte {
	switch {
	case md == nil:
		return dst
	case text:
		dst = append(dst, `,"header":{`...)
		if len(md) > 0 {
			dst = appendMetadataJSON(append(dst, `"metadata":`...), md)
		}
		return append(dst, '}')
	}
	start := len(dst)
	return wrap(appendFrameMetadata(dst, 1, md), start, frameHeader)
}

// appendFrameMetadata appends md as a field of type map<string, google.protobuf.ListValue>.
func appendFrameMetadata(dst []byte, num protowire.Number, md metadata.MD) []byte {
	for key, values := range md {
		if Reserved(key) || !validKey(key) {
			continue
		}
		bin := strings.HasSuffix(key, "-bin")
		entry := len(dst)
		dst = protowire.AppendString(protowire.AppendTag(dst, 1, protowire.BytesType), key)
		list := len(dst)
		for _, v := range values {
			if bin {
				v = grpcwire.EncodeBin(v)
			}
			at := len(dst)
			dst = protowire.AppendString(protowire.AppendTag(dst, 3, protowire.BytesType), strings.ToValidUTF8(v, "�"))
			dst = wrap(dst, at, 1)
		}
		dst = wrap(wrap(dst, list, 2), entry, num)
	}
	return dst
}

// appendMetadataJSON appends md as an object of lists of strings. Reserved names are left out, values of "-bin" names
// become base64.
func appendMetadataJSON(dst []byte, md metadata.MD) []byte {
	dst = append(dst, '{')
	first := true
	for key, values := range md {
		if Reserved(key) || !validKey(key) {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(appendString(dst, key), ':', '[')
		for i, v := range values {
			if i > 0 {
				dst = append(dst, ',')
			}
			if strings.HasSuffix(key, "-bin") {
				v = grpcwire.EncodeBin(v)
			}
			dst = appendString(dst, v)
		}
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

// wrap makes what was appended since start the content of a length-delimited record.
func wrap(dst []byte, start int, num protowire.Number) []byte {
	var head [10]byte
	h := protowire.AppendVarint(protowire.AppendTag(head[:0], num, protowire.BytesType), uint64(len(dst)-start))
	n := len(dst)
	dst = append(dst, h...)
	copy(dst[start+len(h):], dst[start:n])
	copy(dst[start:], h)
	return dst
}
