package transcoder

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
)

// HTTPBody says which HTTP bodies of a rule are a google.api.HttpBody, raw bytes with a content type of their own.
type HTTPBody struct{ Request, Response bool }

// HTTPBody says what b's bodies are. A nil b, a call by RPC path, has none.
func (p *Plan) HTTPBody(b *descriptors.Binding) HTTPBody {
	if b == nil {
		return HTTPBody{}
	}
	return p.plans.bindings[b.ID].raw
}

func httpBodyOf(b *descriptors.Binding) HTTPBody {
	is := func(md protoreflect.MessageDescriptor) bool {
		return md != nil && md.FullName() == "google.api.HttpBody"
	}
	field := func(fd protoreflect.FieldDescriptor) bool { return is(fd.Message()) && !fd.IsList() && !fd.IsMap() }
	var h HTTPBody
	switch b.Body {
	case descriptors.BodyNone:
	case descriptors.BodyAll:
		h.Request = is(b.Method.Desc.Input())
	case descriptors.BodyField:
		h.Request = field(b.BodyField)
	}
	if b.ResponseField != nil {
		h.Response = field(b.ResponseField)
	} else {
		h.Response = is(b.Method.Desc.Output())
	}
	return h
}

// AppendHTTPBody appends the part of a request message that raw bytes make, where HTTPBody(b).Request is set: data, and
// the content type if it is not "". An upload in parts gives the content type with the first message only.
func (p *Plan) AppendHTTPBody(dst []byte, b *descriptors.Binding, contentType string, data []byte) []byte {
	return p.plans.bindings[b.ID].appendHTTPBody(dst, contentType, data)
}

// The fields of google.api.HttpBody.
const (
	httpBodyContentType protowire.Number = 1
	httpBodyData        protowire.Number = 2
)

func (b *binding) appendHTTPBody(dst []byte, contentType string, data []byte) []byte {
	dst = append(b.appendHTTPBodyHead(dst, contentType, len(data)), data...)
	if b.body != nil {
		dst = append(dst, b.body.end...)
	}
	return dst
}

// appendHTTPBodyHead appends what comes before n bytes of data.
func (b *binding) appendHTTPBodyHead(dst []byte, contentType string, n int) []byte {
	contentType = strings.ToValidUTF8(contentType, "�") // what is not cannot be a string on the wire
	if b.body != nil {
		size := 0
		if contentType != "" {
			size += 1 + protowire.SizeBytes(len(contentType))
		}
		if n > 0 {
			size += 1 + protowire.SizeBytes(n)
		}
		dst = append(dst, b.body.tag...)
		if b.body.end == nil {
			dst = protowire.AppendVarint(dst, uint64(size))
		}
	}
	if contentType != "" {
		dst = protowire.AppendTag(dst, httpBodyContentType, protowire.BytesType)
		dst = protowire.AppendString(dst, contentType)
	}
	if n > 0 {
		dst = protowire.AppendTag(dst, httpBodyData, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(n))
	}
	return dst
}

// SplitHTTPBody returns the content type and the bytes of a response message where HTTPBody(b).Response is set; data lies
// in wire. An absent content type is application/octet-stream; one that would break a header line, or a message that is
// not one, is Internal. Of a stream only the first message's content type counts.
func (p *Plan) SplitHTTPBody(b *descriptors.Binding, wire []byte) (contentType string, data []byte, err error) {
	var ct []byte
	if f := b.ResponseField; f != nil {
		err = eachRecord(wire, func(num protowire.Number, v []byte) error {
			if num != f.Number() {
				return nil
			}
			return splitHTTPBody(v, &ct, &data)
		})
	} else {
		err = splitHTTPBody(wire, &ct, &data)
	}
	if err != nil {
		return "", nil, err
	}
	for _, c := range ct {
		if c < 0x20 && c != '\t' || c == 0x7F {
			return "", nil, status.Error(codes.Internal, "the response's content_type has control characters")
		}
	}
	if len(ct) == 0 {
		return "application/octet-stream", data, nil
	}
	return string(ct), data, nil
}

func splitHTTPBody(wire []byte, ct, data *[]byte) error {
	return eachRecord(wire, func(num protowire.Number, v []byte) error {
		switch num {
		case httpBodyContentType:
			*ct = v
		case httpBodyData:
			*data = v
		default:
		}
		return nil
	})
}

// eachRecord calls f for each length-delimited record, and each group, of a message.
func eachRecord(wire []byte, f func(num protowire.Number, v []byte) error) error {
	for len(wire) > 0 {
		num, t, n := protowire.ConsumeTag(wire)
		if n < 0 {
			return errWire
		}
		wire = wire[n:]
		var v []byte
		switch t {
		case protowire.BytesType:
			v, n = protowire.ConsumeBytes(wire)
		case protowire.StartGroupType:
			v, n = protowire.ConsumeGroup(num, wire)
		default:
			n = protowire.ConsumeFieldValue(num, t, wire)
			if n < 0 {
				return errWire
			}
			wire = wire[n:]
			continue
		}
		if n < 0 {
			return errWire
		}
		wire = wire[n:]
		if err := f(num, v); err != nil {
			return err
		}
	}
	return nil
}

var errWire = status.Error(codes.Internal, "the response message cannot be parsed")
