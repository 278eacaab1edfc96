package transcoder

import (
	"errors"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	"transom/transcoder/codec"
)

// Growing says how a body becomes a request message while it is read, so that body and message are not both in memory.
type Growing uint8

const (
	// GrowingNot is a body that must be whole.
	GrowingNot Growing = iota
	// GrowingList is an array whose elements AppendElement turns into a message one by one.
	GrowingList
	// GrowingHTTPBody is bytes in front of which WrapHTTPBody puts the rest of the message.
	GrowingHTTPBody
)

// Growing reports how a body of this content type can be read. What the body holds comes first in the message,
// AppendQueryAndPath makes the rest.
func (p *Plan) Growing(b *descriptors.Binding, contentType string) Growing {
	c := p.plans.bindings[b.ID]
	if form, err := p.formOf(c, contentType); err != nil || form.kind != notForm || c.mask != nil {
		return GrowingNot
	}
	switch {
	case c.raw.Request:
		return GrowingHTTPBody
	case c.BodyField == nil || !c.BodyField.IsList():
		return GrowingNot
	}
	switch c.BodyField.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind, protoreflect.StringKind, protoreflect.BytesKind:
		return GrowingList
	}
	return GrowingNot
}

// AppendElement appends what element n, of an array that is the body, makes of the request; n is -1 for a body that is no
// array. before says where text begins, for errors: the bytes, lines and characters of the line before it. Errors are those
// of AppendRequest.
func (p *Plan) AppendElement(dst []byte, b *descriptors.Binding, n int, text []byte, before func() (bytes, lines, column int)) ([]byte, error) {
	c := p.plans.bindings[b.ID]
	read := c.bodyCodec.AppendElement
	if n < 0 {
		read = c.bodyCodec.AppendWire
	}
	out, err := read(dst, text, &p.plans.options.JSON)
	if err == nil {
		return out, nil
	}
	if e, ok := errors.AsType[*codec.Error](err); ok {
		bytes, lines, column := before()
		if e.Line == 1 {
			e.Column += column
		}
		if e.Offset >= 0 {
			e.Offset += bytes
		}
		if e.Line > 0 {
			e.Line += lines
		}
		if n >= 0 {
			path := "[" + strconv.Itoa(n) + "]"
			if e.Path != "" && e.Path[0] != '[' {
				path += "."
			}
			e.Path = path + e.Path
		}
	}
	return dst, bodyFault(string(c.BodyField.Name()), err)
}

// HTTPBodyRoom returns how many bytes WrapHTTPBody needs in front of the data.
func HTTPBodyRoom(contentType string) int { return 64 + 3*len(contentType) } // a byte that is not UTF-8 becomes three

// WrapHTTPBody makes a message of the bytes in buf[room:]. It is what AppendBody makes of them, and lies in buf.
func (p *Plan) WrapHTTPBody(buf []byte, room int, b *descriptors.Binding, contentType string) []byte {
	c := p.plans.bindings[b.ID]
	head := c.appendHTTPBodyHead(make([]byte, 0, room), contentType, len(buf)-room)
	n := copy(buf, head)
	buf = buf[:n+copy(buf[n:], buf[room:])]
	if c.body != nil {
		buf = append(buf, c.body.end...)
	}
	return buf
}
