package codec

import (
	"bytes"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	defaultDepth = 100
	maxScratch   = 2 << 20 // larger scratch is not kept
)

func (t *Types) newWriter(o *Options) *writer {
	w, _ := t.writers.Get().(*writer)
	if w == nil {
		w = &writer{types: t}
	}
	if o == nil {
		o = &Options{}
	}
	w.style = styleJSON
	if o.ProtoNames {
		w.style = styleProto
	}
	w.defaults, w.enumNumbers, w.bareInt64 = o.EmitDefaults, o.EnumNumbers, o.Int64Numbers
	w.scanAll = false
	w.reset(o)
	return w
}

// reset prepares for an attempt.
func (w *writer) reset(o *Options) {
	w.struck, w.partial, w.required, w.merged = false, false, 0, 0
	if w.depth = defaultDepth; o != nil && o.MaxDepth > 0 {
		w.depth = o.MaxDepth
	}
	w.recs, w.heads, w.seen, w.exts, w.entries, w.scratch = w.recs[:0], w.heads[:0], w.seen[:0], w.exts[:0], w.entries[:0], w.scratch[:0]
	w.path = w.path[:0]
}

func (t *Types) freeWriter(w *writer) {
	w.wire = nil
	if cap(w.scratch) > maxScratch || cap(w.recs)*12 > maxScratch || cap(w.entries)*64 > maxScratch {
		return
	}
	clear(w.entries[:cap(w.entries)]) // they may hold merged values
	t.writers.Put(w)
}

func (w *writer) fault() error {
	return &Error{Offset: w.offset, Path: joinPath(w.path), Msg: w.msg}
}

// AppendJSON appends the JSON text of a message in wire form to dst, without white space and with fields in order of
// declaration. What is wrong with the message is told by an [*Error]; dst is then returned as it was.
func (m *Message) AppendJSON(dst, wire []byte, o *Options) ([]byte, error) {
	return m.m.appendJSON(dst, wire, o, (*writer).message)
}

func (m *message) appendJSON(dst, wire []byte, o *Options, write func(*writer, []byte, *message, []byte) []byte) ([]byte, error) {
	if len(wire) > maxInput {
		return dst, &Error{Offset: -1, Msg: "message too large"}
	}
	w := m.types.newWriter(o)
	w.wire = wire
	out := write(w, room(dst, 64), m, wire)
	if out == nil { // struck, or a fault that what comes later may mend: an empty Value, a required field
		w.reset(o)
		w.scanAll = true
		out = write(w, room(dst, 64), m, wire)
	}
	if out == nil {
		err := w.fault()
		m.types.freeWriter(w)
		return dst, err
	}
	m.types.freeWriter(w)
	return out, nil
}

// AppendJSON takes the field out of its parent's wire form and appends its bare JSON value to dst. A field that is not
// set is [] when repeated, {} when a map, null when it has presence, else its default.
func (f *Field) AppendJSON(dst, parentWire []byte, o *Options) ([]byte, error) {
	return f.bare.appendJSON(dst, parentWire, o, f.write)
}

func (f *Field) write(w *writer, dst []byte, bare *message, wire []byte) []byte {
	b := wire
	if f.f.oneof != 0 { // another member that comes later clears it
		if b = w.afterOthers(f, wire); b == nil {
			return nil
		}
	}
	start := len(dst)
	required := w.required
	if !bare.inOrder(b, w.depth) {
		dst = w.level(dst, bare, b)
	} else {
		dst = w.stream(dst, bare, b, -1)
	}
	if dst == nil {
		return nil
	}
	w.required = required
	switch {
	case len(dst) > start:
		return dst
	case f.f.none != "":
		return append(dst, f.f.none...)
	case !f.f.implicit:
		return append(dst, "null"...)
	case f.f.kind >= kindString:
		return append(dst, '"', '"')
	}
	return w.scalar(dst, f.f, 0)
}

// afterOthers returns wire from behind the last other member of f's oneof on, never nil unless it is malformed.
func (w *writer) afterOthers(f *Field, wire []byte) []byte {
	from := 0
	for i := 0; i < len(wire); {
		x, tag, j := f.parent.find(wire, i)
		if j >= 0 {
			j = skip(wire, j, tag, w.depth)
		}
		if j < 0 {
			return w.malformed(wire, i)
		}
		if i = j; x >= 0 && int32(x) != f.f.idx && f.parent.fields[x].oneof == f.f.oneof {
			from = i
		}
	}
	if wire == nil {
		return []byte{}
	}
	return wire[from:]
}

func (t *Types) newReader(in []byte, o *Options) *reader {
	r, _ := t.readers.Get().(*reader)
	if r == nil {
		r = &reader{types: t}
	}
	if o == nil {
		o = &Options{}
	}
	r.in = in
	r.style = styleJSON
	if o.ProtoNames {
		r.style = styleProto
	}
	r.discard = o.DiscardUnknown
	r.partial, r.dropped, r.extra = false, false, 0
	if r.depth = defaultDepth; o.MaxDepth > 0 {
		r.depth = o.MaxDepth
	}
	r.fixes, r.seen, r.exts, r.keys, r.index, r.scratch = r.fixes[:0], r.seen[:0], r.exts[:0], r.keys[:0], r.index[:0], r.scratch[:0]
	return r
}

func (t *Types) freeReader(r *reader) {
	r.in = nil
	if cap(r.scratch) > maxScratch || cap(r.keys)*24 > maxScratch || cap(r.index)*4 > maxScratch || cap(r.fixes)*24 > maxScratch {
		return
	}
	t.readers.Put(r)
}

// fault is the error for what fail noted: the place in the text is worked out only now.
func (r *reader) fault() error {
	at := min(r.offset, len(r.in))
	before := r.in[:at]
	line := bytes.Count(before, []byte{'\n'}) + 1
	before = before[bytes.LastIndexByte(before, '\n')+1:]
	inside := at
	if r.named { // behind the name
		end, _, _ := scanString(r.in, at+1)
		inside = end + 1
	}
	return &Error{Offset: at, Line: line, Column: utf8.RuneCount(before) + 1, Path: pathAt(r.in, inside), Msg: r.msg}
}

// finish checks that nothing follows the value that ended before in[i], and completes the output.
func (r *reader) finish(dst []byte, i int) ([]byte, bool) {
	if i < 0 {
		return nil, false
	}
	if i = space(r.in, i); i < len(r.in) {
		r.expected(i, "the end")
		return nil, false
	}
	return r.settle(dst), true
}

// AppendWire appends the wire form of a message given as JSON text to dst. The text must be one value and white space.
// What is wrong with it is told by an [*Error]; dst is then returned as it was.
func (m *Message) AppendWire(dst, json []byte, o *Options) ([]byte, error) {
	t := m.m.types
	if len(json) > maxInput {
		return dst, &Error{Offset: -1, Msg: "text too large"}
	}
	r := t.newReader(json, o)
	out, ok := r.finish(r.message(dst, m.m, space(json, 0)))
	if !ok {
		out = dst
		err := r.fault()
		t.freeReader(r)
		return out, err
	}
	t.freeReader(r)
	return out, nil
}

// AppendWire appends the wire records of the field, given its bare JSON value, to dst. null, an empty list or map, and a
// default that needs no presence append nothing.
func (f *Field) AppendWire(dst, json []byte, o *Options) ([]byte, error) {
	t := f.parent.types
	if len(json) > maxInput {
		return dst, &Error{Offset: -1, Msg: "text too large"}
	}
	r := t.newReader(json, o)
	i := space(json, 0)
	out := dst
	switch {
	case r.at(i) == 'n' && !f.f.null:
		i = r.literal(i, "null")
	case f.f.shape == shapeList:
		out, i = r.list(dst, f.f, i)
	case f.f.shape == shapeMap:
		out, i = r.mapField(dst, f.f, i)
	default:
		out, i = r.single(dst, f.f, i)
	}
	out, ok := r.finish(out, i)
	if !ok {
		err := r.fault()
		t.freeReader(r)
		return dst, err
	}
	t.freeReader(r)
	return out, nil
}

// AppendElement appends the wire record of one element of a repeated field of messages, strings or bytes, given its JSON
// value. What elements make one after the other is what AppendWire makes of their array.
func (f *Field) AppendElement(dst, json []byte, o *Options) ([]byte, error) {
	t := f.parent.types
	if len(json) > maxInput {
		return dst, &Error{Offset: -1, Msg: "text too large"}
	}
	r := t.newReader(json, o)
	defer t.freeReader(r)
	r.depth-- // the array
	if out, ok := r.finish(r.single(dst, f.element, space(json, 0))); ok {
		return out, nil
	}
	return dst, r.fault()
}

// AppendText appends one wire record of the field, given the text of one path or query parameter, to dst: the number, the
// enum value's name or number, true or false, base64 in either alphabet for bytes, the text itself for strings; for
// well-known types the text inside their JSON string (Timestamp, Duration, FieldMask), the bare value (wrappers), or
// JSON (Struct, Value, ListValue). Other messages, and maps, are refused. A default is written like any other value, so
// that the record replaces what comes before it.
func (f *Field) AppendText(dst []byte, text string) ([]byte, error) {
	out, fault := f.appendText(dst, text)
	if fault != "" {
		return dst, &Error{Offset: -1, Msg: fault}
	}
	return out, nil
}

func (f *Field) appendText(dst []byte, s string) (out []byte, fault string) {
	g := f.f
	if g.shape == shapeMap {
		return dst, "a map cannot be given as one parameter"
	}
	switch g.kind {
	case kindMessage, kindGroup:
		var content []byte
		switch m := g.msg; m.special {
		case timestampType, durationType, fieldMaskType:
			content, fault = appendTextForm(nil, m.special, []byte(s))
			if fault != "" {
				return dst, "expected " + fault + ", found " + strconv.Quote(s)
			}
		case wrapperType:
			if content, fault = appendTextValue(nil, &m.fields[0], s); fault != "" {
				return dst, fault
			}
		case structType, valueType, listValueType:
			var err error
			if content, err = (&Message{m}).AppendWire(nil, []byte(s), nil); err != nil {
				return dst, err.Error()
			}
		default:
			return dst, "a " + string(m.desc.FullName()) + " cannot be given as one parameter"
		}
		if g.kind == kindGroup {
			return dst, "a group cannot be given as one parameter"
		}
		dst = protowire.AppendVarint(dst, uint64(g.tag))
		return protowire.AppendBytes(dst, content), ""
	}
	return appendTextValue(dst, g, s)
}

// appendTextValue writes the record of a field that is not a message.
func appendTextValue(dst []byte, g *field, s string) (out []byte, fault string) {
	in := []byte(s)
	switch g.kind {
	case kindString:
		if !utf8.ValidString(s) {
			return dst, "not valid UTF-8"
		}
		return protowire.AppendString(protowire.AppendVarint(dst, uint64(g.tag)), s), ""
	case kindBytes:
		b := appendUnbase64([]byte{}, in, true)
		if b == nil {
			return dst, "expected base64, found " + strconv.Quote(s)
		}
		return protowire.AppendBytes(protowire.AppendVarint(dst, uint64(g.tag)), b), ""
	}
	r := reader{in: in}
	var v uint64
	end := -1
	switch {
	case len(in) > 0 && in[0] == '"':
		r.expected(0, "a plain value")
	case g.kind == kindEnum && in != nil && len(in) > 0 && in[0]-'0' >= 10 && in[0] != '-':
		n, ok := g.enum.number(in)
		if !ok {
			return dst, strconv.Quote(s) + " is not a value of enum " + string(g.enum.desc.FullName())
		}
		v, end = uint64(int64(n)), len(in)
	case g.kind >= kindFloat && g.kind != kindFixed64 && g.kind != kindSfixed64 && (s == "NaN" || s == "Infinity" || s == "-Infinity"):
		r.in = []byte(strconv.Quote(s))
		v, end = r.float(g, 0)
		end -= 2
	default:
		v, end = r.number(g, 0)
		if end < 0 && g.kind < kindFloat && g.kind != kindBool && g.kind != kindEnum { // digits up to the end of the text
			v, end = r.integerText(g, 0)
		}
	}
	if end < 0 {
		return dst, r.msg
	}
	if end != len(in) {
		r.expected(end, "the end")
		return dst, r.msg
	}
	return appendRaw(room(protowire.AppendVarint(dst, uint64(g.tag)), 10), g.wire, v), ""
}
