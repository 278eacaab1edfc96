package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

func fault(err error) error {
	msg := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	return &Error{Offset: -1, Msg: msg}
}

func orZero(o *Options) *Options {
	if o == nil {
		return &Options{}
	}
	return o
}

// AppendJSON appends the JSON text of a message in wire form to dst.
func (m *Message) AppendJSON(dst, wire []byte, o *Options) ([]byte, error) {
	msg := dynamicpb.NewMessage(m.desc)
	if err := (proto.UnmarshalOptions{Resolver: m.types.resolver}).Unmarshal(wire, msg); err != nil {
		return dst, fault(err)
	}
	return m.types.appendJSON(dst, msg, orZero(o))
}

func (t *Types) appendJSON(dst []byte, msg proto.Message, o *Options) ([]byte, error) {
	text, err := protojson.MarshalOptions{
		Resolver: t.resolver, EmitDefaultValues: o.EmitDefaults, UseProtoNames: o.ProtoNames,
		UseEnumNumbers: o.EnumNumbers,
	}.Marshal(msg)
	if err != nil {
		return dst, fault(err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return dst, fault(err)
	}
	return append(dst, b.Bytes()...), nil
}

// AppendWire appends the wire form of a message given as JSON text to dst.
func (m *Message) AppendWire(dst, text []byte, o *Options) ([]byte, error) {
	o = orZero(o)
	msg := dynamicpb.NewMessage(m.desc)
	err := protojson.UnmarshalOptions{
		Resolver: m.types.resolver, DiscardUnknown: o.DiscardUnknown, RecursionLimit: o.MaxDepth,
	}.Unmarshal(text, msg)
	if err != nil {
		return dst, fault(err)
	}
	dst, err = proto.MarshalOptions{Deterministic: true, AllowPartial: true}.MarshalAppend(dst, msg)
	if err != nil {
		return dst, fault(err)
	}
	return dst, nil
}

// AppendWire appends the wire records of the field, given its bare JSON value, to dst.
func (f *Field) AppendWire(dst, text []byte, o *Options) ([]byte, error) {
	name, _ := json.Marshal(f.desc.TextName())
	wrapped := append(append(append([]byte("{"), name...), ':'), text...)
	return f.parent.AppendWire(dst, append(wrapped, '}'), o)
}

// AppendJSON takes the field out of its parent's wire form and appends its bare JSON value to dst. A field that is not
// set is [] when repeated, {} when a map, null when it has presence, else its default.
func (f *Field) AppendJSON(dst, parentWire []byte, o *Options) ([]byte, error) {
	p := dynamicpb.NewMessage(f.parent.desc)
	if err := (proto.UnmarshalOptions{Resolver: f.parent.types.resolver}).Unmarshal(parentWire, p); err != nil {
		return dst, fault(err)
	}
	if f.desc.HasPresence() && !p.Has(f.desc) {
		return append(dst, "null"...), nil
	}
	one := dynamicpb.NewMessage(f.parent.desc)
	if p.Has(f.desc) {
		one.Set(f.desc, p.Get(f.desc))
	}
	oo := *orZero(o)
	oo.EmitDefaults = oo.EmitDefaults || !p.Has(f.desc)
	text, err := f.parent.types.appendJSON(nil, one, &oo)
	if err != nil {
		return dst, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return dst, fault(err)
	}
	name := f.desc.JSONName()
	if oo.ProtoNames {
		name = f.desc.TextName()
	}
	return append(dst, fields[name]...), nil
}

// AppendText appends one wire record of the field, given the text of one path or query parameter, to dst: the number, the
// enum value's name or number, true or false, base64 in either alphabet for bytes, the text itself for strings; for
// well-known types the text inside their JSON string (Timestamp, Duration, FieldMask), the bare value (wrappers), or
// JSON (Struct, Value, ListValue). Other messages, and maps, are refused.
func (f *Field) AppendText(dst []byte, text string) ([]byte, error) {
	quoted, _ := json.Marshal(text)
	val := quoted
	fd := f.desc
	if fd.IsMap() {
		return dst, &Error{Offset: -1, Msg: "a map cannot be given as one parameter"}
	}
	kind := fd.Kind()
	if md := fd.Message(); md != nil {
		switch md.FullName() {
		case "google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask":
			kind = protoreflect.StringKind
		case "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue":
			kind, val = protoreflect.StringKind, []byte(text)
		case "google.protobuf.BoolValue", "google.protobuf.Int32Value", "google.protobuf.Int64Value",
			"google.protobuf.UInt32Value", "google.protobuf.UInt64Value", "google.protobuf.FloatValue",
			"google.protobuf.DoubleValue", "google.protobuf.StringValue", "google.protobuf.BytesValue":
			kind = md.Fields().ByNumber(1).Kind()
		default:
			return dst, &Error{Offset: -1, Msg: fmt.Sprintf("a %s cannot be given as one parameter", md.FullName())}
		}
	}
	switch kind {
	case protoreflect.BoolKind:
		if text != "true" && text != "false" {
			return dst, &Error{Offset: -1, Msg: fmt.Sprintf("expected true or false, found %q", text)}
		}
		val = []byte(text)
	case protoreflect.EnumKind:
		if text != "" && (text[0] == '-' || '0' <= text[0] && text[0] <= '9') {
			val = []byte(text)
		}
	}
	if fd.IsList() {
		val = append(append([]byte{'['}, val...), ']')
	}
	return f.AppendWire(dst, val, nil)
}

// AppendMaskPaths appends the field-mask paths of what a JSON body of the message sets, in the order of the text: the
// path of each leaf, where lists, maps, well-known types, null and an empty object are leaves.
func (m *Message) AppendMaskPaths(paths []string, text []byte, o *Options) ([]string, error) {
	return maskPaths(paths, "", m.desc, text, orZero(o))
}

func maskPaths(paths []string, prefix string, md protoreflect.MessageDescriptor, text []byte, o *Options) ([]string, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return paths, &Error{Offset: -1, Path: prefix, Msg: "expected an object"}
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return paths, fault(err)
		}
		name, _ := tok.(string)
		var val json.RawMessage
		if err := dec.Decode(&val); err != nil {
			return paths, fault(err)
		}
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			fd = md.Fields().ByTextName(name)
		}
		if fd == nil {
			if o.DiscardUnknown {
				continue
			}
			return paths, &Error{Offset: -1, Path: prefix, Msg: fmt.Sprintf("unknown field %q", name)}
		}
		path := string(fd.Name())
		if prefix != "" {
			path = prefix + "." + path
		}
		val = bytes.TrimSpace(val)
		empty := len(val) < 2 || len(bytes.TrimSpace(val[1:len(val)-1])) == 0
		if fd.Message() == nil || fd.IsList() || fd.IsMap() || val[0] != '{' || empty ||
			special(fd.Message().FullName()) {
			paths = append(paths, path)
			continue
		}
		if paths, err = maskPaths(paths, path, fd.Message(), val, o); err != nil {
			return paths, err
		}
	}
	return paths, nil
}

func special(name protoreflect.FullName) bool {
	switch name {
	case "google.protobuf.Any", "google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask",
		"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.BoolValue",
		"google.protobuf.Int32Value", "google.protobuf.Int64Value", "google.protobuf.UInt32Value",
		"google.protobuf.UInt64Value", "google.protobuf.FloatValue", "google.protobuf.DoubleValue",
		"google.protobuf.StringValue", "google.protobuf.BytesValue":
		return true
	}
	return false
}
