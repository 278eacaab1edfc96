package transcoder

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/transcoder/codec"
)

// param is a field as path and query see it: how the text of a parameter becomes one wire record.
type param struct {
	desc protoreflect.FieldDescriptor
	form paramForm
	// oneof is the index in its message of the field's oneof plus 1; 0 without one.
	oneof int32
	// tag begins the record; for a delimited (group) field end ends it, else it is nil.
	tag, end []byte
	// child are the fields of a plain message.
	child *params
	// value is the codec of a well-known type that has a text form.
	value *codec.Field
	// enum are the numbers of an enum's names.
	enum map[string]int32
	// inner is the value field of a wrapper, with its explicit tag.
	inner *param
	// raw is a google.api.HttpBody, singular or repeated.
	raw bool
	// key and val are the entry fields of a map.
	key, val *param
}

// paramForm says what text a parameter takes.
type paramForm uint8

const (
	formScalar  paramForm = iota // a scalar or an enum
	formWrapper                  // google.protobuf.Int32Value and its like: as the scalar
	formMask                     // FieldMask: paths between commas
	formText                     // Timestamp, Duration: what their JSON string says; Struct, Value, ListValue: JSON
	formMessage                  // a message, only its fields can be named
	formMap                      // a map, by name[key]
	formNone                     // no text form
)

// params are the fields of a message by the names a parameter may use: lowerCamelCase and as in the .proto file.
type params struct {
	desc   protoreflect.MessageDescriptor
	byName map[string]*param
}

// paramTables compiles params, once for each message type.
type paramTables struct {
	types *codec.Types
	done  map[protoreflect.FullName]*params
	enums map[protoreflect.FullName]map[string]int32
}

func (t *paramTables) message(md protoreflect.MessageDescriptor) *params {
	if m, ok := t.done[md.FullName()]; ok {
		return m
	}
	fields := md.Fields()
	m := &params{md, make(map[string]*param, 2*fields.Len())}
	t.done[md.FullName()] = m
	for i := range fields.Len() {
		fd := fields.Get(i)
		p := t.field(fd)
		for _, name := range [...]string{string(fd.Name()), fd.TextName(), fd.JSONName()} {
			m.byName[name] = p
		}
	}
	return m
}

func (t *paramTables) field(fd protoreflect.FieldDescriptor) *param {
	p := &param{desc: fd}
	if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
		p.oneof = int32(o.Index()) + 1
	}
	wireType := wireTypeOf(fd.Kind())
	p.tag = protowire.AppendTag(nil, fd.Number(), wireType)
	if wireType == protowire.StartGroupType {
		p.end = protowire.AppendTag(nil, fd.Number(), protowire.EndGroupType)
	}
	md := fd.Message()
	switch {
	case fd.IsMap():
		p.form = formMap
		p.key, p.val = t.field(fd.MapKey()), t.field(fd.MapValue())
	case fd.Enum() != nil:
		p.enum = t.enum(fd.Enum())
	case md == nil:
	case md.FullName() == "google.api.HttpBody":
		p.form, p.raw = formNone, true
	case md.ParentFile().Package() != "google.protobuf":
		p.form = formMessage
		if !fd.IsList() {
			p.child = t.message(md)
		} else {
			p.form = formNone
		}
	default:
		switch md.Name() {
		case "FieldMask":
			p.form = formMask
		case "Timestamp", "Duration", "Struct", "Value", "ListValue":
			p.form, p.value = formText, t.types.Field(fd)
		case "BoolValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value", "FloatValue", "DoubleValue",
			"StringValue", "BytesValue":
			p.form, p.inner = formWrapper, t.field(md.Fields().ByNumber(1))
		case "Any":
			p.form = formNone
		default: // Empty, Api, Type and their like are plain messages
			p.form = formNone
			if !fd.IsList() {
				p.form, p.child = formMessage, t.message(md)
			}
		}
	}
	return p
}

// enum maps the names of an enum to numbers.
func (t *paramTables) enum(ed protoreflect.EnumDescriptor) map[string]int32 {
	if m, ok := t.enums[ed.FullName()]; ok {
		return m
	}
	values := ed.Values()
	m := make(map[string]int32, values.Len())
	for i := range values.Len() {
		m[string(values.Get(i).Name())] = int32(values.Get(i).Number())
	}
	t.enums[ed.FullName()] = m
	return m
}

// unknown is the fault of a parameter that names no field of m.
func (m *params) unknown(name string) error {
	return fmt.Errorf("%s has no field %q", m.desc.FullName(), clip(name))
}

func wireTypeOf(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	default:
		return protowire.VarintType
	}
}

// settable reports whether one parameter can hold the field's value, or one element of it.
func (p *param) settable() bool {
	return p.form <= formText
}

// kindName says what a field of no text form is, for error messages.
func (p *param) kindName() string {
	if p.form == formMap {
		return "a map"
	}
	if p.desc.IsList() {
		return "a list of messages"
	}
	return "a message"
}

// appendText appends the field's record with the value that text says. The record is always written, also for a zero, so
// that it overrides an earlier one. The error's text is for the client and follows the parameter's name. text is not
// kept.
func (p *param) appendText(dst []byte, text string) ([]byte, error) {
	switch p.form {
	case formScalar:
		return p.appendScalar(append(dst, p.tag...), text)
	case formWrapper:
		start := len(dst)
		dst, err := p.inner.appendText(dst, text)
		if err != nil {
			return dst, err
		}
		return p.shut(dst, start), nil
	case formMask:
		start := len(dst)
		for rest := text; rest != ""; {
			var path string
			path, rest, _ = strings.Cut(rest, ",")
			var err error
			if dst, err = appendMaskPath(dst, path); err != nil {
				return dst, err
			}
		}
		return p.shut(dst, start), nil
	case formText:
		out, err := p.value.AppendText(dst, strings.Clone(text))
		if err != nil {
			if e, ok := errors.AsType[*codec.Error](err); ok {
				err = errors.New(e.Msg) // its place is in text that the client did not write
			}
			return dst, err
		}
		return out, nil
	default:
		return dst, fmt.Errorf("%s cannot be given as one parameter", p.kindName())
	}
}

// appendMaskPath appends one path of a FieldMask, given with its names in lowerCamelCase, as in JSON, or as in the .proto
// file.
func appendMaskPath(dst []byte, path string) ([]byte, error) {
	n := len(path)
	for i := range len(path) {
		switch c := path[i]; {
		case 'A' <= c && c <= 'Z':
			n++
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_', c == '.', c == '*':
		default:
			return dst, expected("field names between commas", path)
		}
	}
	if n == 0 {
		return dst, expected("a field name between commas", path)
	}
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(n))
	for i := range len(path) {
		c := path[i]
		if 'A' <= c && c <= 'Z' {
			dst = append(dst, '_')
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst, nil
}

// reset appends a record that sets every part of a Timestamp or Duration to zero, for a later record to merge with.
func (p *param) reset(dst []byte) []byte {
	if p.form != formText {
		return dst
	}
	start := len(dst)
	return p.shut(append(dst, 1<<3, 0, 2<<3, 0), start)
}

// shut makes what was appended since start the content of a record of p, a message field.
func (p *param) shut(dst []byte, start int) []byte {
	n := len(dst) - start
	head := len(p.tag)
	if p.end == nil {
		head += protowire.SizeVarint(uint64(n))
	}
	var room [2 * 10]byte
	dst = append(dst, room[:head]...)
	copy(dst[start+head:], dst[start:start+n])
	h := append(dst[:start], p.tag...)
	if p.end == nil {
		protowire.AppendVarint(h, uint64(n))
		return dst
	}
	return append(dst, p.end...)
}

// appendScalar appends the value of a scalar or enum field.
func (p *param) appendScalar(dst []byte, text string) ([]byte, error) {
	switch p.desc.Kind() {
	case protoreflect.BoolKind:
		switch text {
		case "true":
			return append(dst, 1), nil
		case "false":
			return append(dst, 0), nil
		}
		return dst, expected("true or false", text)
	case protoreflect.Int32Kind:
		v, err := parseInt(text, 32)
		return protowire.AppendVarint(dst, uint64(v)), err
	case protoreflect.Int64Kind:
		v, err := parseInt(text, 64)
		return protowire.AppendVarint(dst, uint64(v)), err
	case protoreflect.Sint32Kind:
		v, err := parseInt(text, 32)
		return protowire.AppendVarint(dst, protowire.EncodeZigZag(v)), err
	case protoreflect.Sint64Kind:
		v, err := parseInt(text, 64)
		return protowire.AppendVarint(dst, protowire.EncodeZigZag(v)), err
	case protoreflect.Sfixed32Kind:
		v, err := parseInt(text, 32)
		return protowire.AppendFixed32(dst, uint32(v)), err
	case protoreflect.Sfixed64Kind:
		v, err := parseInt(text, 64)
		return protowire.AppendFixed64(dst, uint64(v)), err
	case protoreflect.Uint32Kind:
		v, err := parseUint(text, 32)
		return protowire.AppendVarint(dst, v), err
	case protoreflect.Uint64Kind:
		v, err := parseUint(text, 64)
		return protowire.AppendVarint(dst, v), err
	case protoreflect.Fixed32Kind:
		v, err := parseUint(text, 32)
		return protowire.AppendFixed32(dst, uint32(v)), err
	case protoreflect.Fixed64Kind:
		v, err := parseUint(text, 64)
		return protowire.AppendFixed64(dst, v), err
	case protoreflect.FloatKind:
		v, err := parseFloat(text, 32)
		return protowire.AppendFixed32(dst, math.Float32bits(float32(v))), err
	case protoreflect.DoubleKind:
		v, err := parseFloat(text, 64)
		return protowire.AppendFixed64(dst, math.Float64bits(v)), err
	case protoreflect.StringKind:
		if !utf8.ValidString(text) {
			return dst, expected("UTF-8 text", text)
		}
		return protowire.AppendString(dst, text), nil
	case protoreflect.BytesKind:
		return appendBase64(dst, text)
	case protoreflect.EnumKind:
		v, err := p.enumNumber(text)
		return protowire.AppendVarint(dst, uint64(v)), err
	default:
		return dst, fmt.Errorf("%s cannot be given as one parameter", p.kindName())
	}
}

// enumNumber reads the name or number of an enum value; a number without a name only for an open enum.
func (p *param) enumNumber(text string) (int64, error) {
	if n, ok := p.enum[text]; ok {
		return int64(n), nil
	}
	ed := p.desc.Enum()
	if n, err := parseInt(text, 32); err == nil {
		if !ed.IsClosed() || ed.Values().ByNumber(protoreflect.EnumNumber(n)) != nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s has no value %q", ed.FullName(), clip(text))
}

func expected(what, text string) error { return fmt.Errorf("expected %s, found %q", what, clip(text)) }

// parseInt reads -?(0|[1-9][0-9]*) of 32 or 64 bits.
func parseInt(text string, bits int) (int64, error) {
	if !isInteger(strings.TrimPrefix(text, "-")) {
		return 0, expected("an integer", text)
	}
	v, err := strconv.ParseInt(text, 10, bits)
	if err != nil {
		return 0, outOfRange(text, "", bits)
	}
	return v, nil
}

// parseUint reads 0|[1-9][0-9]*, or -0, of 32 or 64 bits.
func parseUint(text string, bits int) (uint64, error) {
	if !isInteger(strings.TrimPrefix(text, "-")) {
		return 0, expected("an unsigned integer", text)
	}
	v, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		if text == "-0" {
			return 0, nil
		}
		return 0, outOfRange(text, "unsigned ", bits)
	}
	return v, nil
}

func outOfRange(text, sign string, bits int) error {
	return fmt.Errorf("%s is out of range of %s%d-bit integers", clip(text), sign, bits)
}

func isInteger(s string) bool {
	if s == "" || s[0] == '0' && len(s) > 1 {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// parseFloat reads a JSON number, NaN, Infinity or -Infinity; a finite text too large for the type is refused.
func parseFloat(text string, bits int) (float64, error) {
	switch text {
	case "NaN":
		return math.NaN(), nil
	case "Infinity":
		return math.Inf(1), nil
	case "-Infinity":
		return math.Inf(-1), nil
	}
	s := strings.TrimPrefix(text, "-")
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	rest := s[n:]
	ok := isInteger(s[:n])
	if ok && strings.HasPrefix(rest, ".") {
		rest, ok = afterDigits(rest[1:])
	}
	if ok && rest != "" && rest[0]|0x20 == 'e' {
		rest = rest[1:]
		if rest != "" && (rest[0] == '+' || rest[0] == '-') {
			rest = rest[1:]
		}
		rest, ok = afterDigits(rest)
	}
	if !ok || rest != "" {
		return 0, expected("a number", text)
	}
	v, err := strconv.ParseFloat(text, bits)
	if err != nil {
		return 0, fmt.Errorf("%s is out of range of %d-bit floating point", clip(text), bits)
	}
	return v, nil
}

// afterDigits skips one digit or more.
func afterDigits(s string) (rest string, ok bool) {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return s[n:], n > 0
}

// appendBase64 appends, with its length, what text in either base64 alphabet, padded or not, decodes to.
func appendBase64(dst []byte, text string) ([]byte, error) {
	body := strings.TrimRight(text, "=")
	enc := base64.RawStdEncoding
	if strings.ContainsAny(body, "-_") {
		enc = base64.RawURLEncoding
	}
	pad := len(text) - len(body)
	dst = protowire.AppendVarint(dst, uint64(enc.DecodedLen(len(body))))
	dst, err := enc.AppendDecode(dst, bytesOf(body))
	if err != nil || pad > 0 && len(text)%4 != 0 || strings.ContainsAny(body, "\r\n") {
		return dst, expected("base64", text)
	}
	return dst, nil
}

// bytesOf views s as bytes, which must not be written to.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// stringOf views b as a string, valid until b is written to.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
