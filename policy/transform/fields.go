package transform

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/rpc"
)

// FieldConfig is one request field that the gateway fills in.
type FieldConfig struct {
	// Path leads to the field, "owner.id".
	Path string
	// Claim is the path of the claim that is the value; if it is empty, Value is the value's template.
	Claim, Value string
	// Default leaves alone what the client sent. Otherwise the value is forced.
	Default bool
}

// Field is a compiled FieldConfig for one message type.
type Field struct {
	name string
	// path ends in a singular scalar; before it are singular messages.
	path      []protoreflect.FieldDescriptor
	byDefault bool
	claim     string
	template  *Template
	// fixed is the field on the wire if its value is the same for all calls.
	fixed []byte
}

// NewField compiles cfg for messages of type md. An error is a *Fault of "field" or "value"; rpc.ErrNoField is that the messages
// have no such field.
func NewField(md protoreflect.MessageDescriptor, cfg FieldConfig) (*Field, error) {
	f, err := newField(md, cfg)
	if err != nil {
		return nil, &Fault{"field", err}
	}
	if cfg.Claim != "" {
		return f, nil
	}
	if f.template, err = NewTemplate(cfg.Value); err != nil {
		return nil, &Fault{"value", err}
	}
	if s, ok := f.template.constant(); ok {
		if f.fixed, err = f.encode(s); err != nil {
			return nil, &Fault{"value", err}
		}
	}
	return f, nil
}

// newField finds the field and checks that it can be filled in.
func newField(md protoreflect.MessageDescriptor, cfg FieldConfig) (*Field, error) {
	path, err := follow(md, cfg.Path, false)
	if err != nil {
		return nil, err
	}
	f := &Field{name: cfg.Path, path: path, byDefault: cfg.Default, claim: cfg.Claim}
	leaf := f.leaf()
	switch {
	case leaf.Cardinality() == protoreflect.Repeated:
		return nil, fmt.Errorf("%s is a list or map; only a single value can be filled in", cfg.Path)
	case leaf.Message() != nil:
		return nil, fmt.Errorf("%s is a message; name a field in it", cfg.Path)
	}
	for _, fd := range path[:len(path)-1] {
		if choice := realOneof(fd); choice != nil {
			return nil, fmt.Errorf("%s: %s is one choice of %s, and filling in a field in it would choose for the client", cfg.Path, fd.FullName(), choice.Name())
		}
	}
	return f, nil
}

func (f *Field) leaf() protoreflect.FieldDescriptor { return f.path[len(f.path)-1] }

// realOneof is the oneof that a field is a member of, nil for none; "optional" makes none.
func realOneof(fd protoreflect.FieldDescriptor) protoreflect.OneofDescriptor {
	if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
		return o
	}
	return nil
}

// wire is the field as it is appended for a call. It is not ok if there is no value.
func (f *Field) wire(call *rpc.Call) ([]byte, bool) {
	if f.fixed != nil {
		return f.fixed, true
	}
	var s string
	var ok bool
	if f.claim != "" {
		s, ok = claimText(call.Principal.Claim(f.claim))
	} else {
		s, ok = f.template.text(call, false)
	}
	if !ok {
		return nil, false
	}
	b, err := f.encode(s)
	return b, err == nil
}

// encode writes the field with the messages around it.
func (f *Field) encode(s string) ([]byte, error) {
	b, err := appendScalar(nil, f.leaf(), s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	for i := len(f.path) - 2; i >= 0; i-- {
		num := f.path[i].Number()
		if f.path[i].Kind() == protoreflect.GroupKind {
			outer := protowire.AppendTag(nil, num, protowire.StartGroupType)
			b = protowire.AppendTag(append(outer, b...), num, protowire.EndGroupType)
			continue
		}
		outer := protowire.AppendTag(nil, num, protowire.BytesType)
		b = protowire.AppendBytes(outer, b)
	}
	return b, nil
}

// appendScalar appends a field that has the value s means: of an enum a name or number, of a bool true or false.
func appendScalar(b []byte, fd protoreflect.FieldDescriptor, s string) ([]byte, error) {
	b = protowire.AppendTag(b, fd.Number(), wireType(fd))
	bits := 64
	switch fd.Kind() {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind, protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.FloatKind:
		bits = 32
	default:
	}
	wrong := func(what string) ([]byte, error) { return nil, fmt.Errorf("%q is not %s", s, what) }
	switch fd.Kind() {
	case protoreflect.StringKind:
		if !utf8.ValidString(s) {
			return wrong("UTF-8 text")
		}
		return protowire.AppendString(b, s), nil
	case protoreflect.BytesKind:
		return protowire.AppendString(b, s), nil
	case protoreflect.BoolKind:
		if s != "true" && s != "false" {
			return wrong("true or false")
		}
		return protowire.AppendVarint(b, protowire.EncodeBool(s == "true")), nil
	case protoreflect.EnumKind:
		ev := fd.Enum().Values().ByName(protoreflect.Name(s))
		if n, err := strconv.ParseInt(s, 10, 32); ev == nil && err == nil {
			ev = fd.Enum().Values().ByNumber(protoreflect.EnumNumber(n))
		}
		if ev == nil {
			return wrong("a value of " + string(fd.Enum().FullName()))
		}
		return protowire.AppendVarint(b, uint64(int64(ev.Number()))), nil
	case protoreflect.Int32Kind, protoreflect.Int64Kind, protoreflect.Sint32Kind, protoreflect.Sint64Kind, protoreflect.Sfixed32Kind, protoreflect.Sfixed64Kind:
		n, err := strconv.ParseInt(s, 10, bits)
		if err != nil {
			return wrong(fmt.Sprintf("a whole number of %d bits", bits))
		}
		switch fd.Kind() {
		case protoreflect.Sint32Kind, protoreflect.Sint64Kind:
			return protowire.AppendVarint(b, protowire.EncodeZigZag(n)), nil
		case protoreflect.Sfixed32Kind:
			return protowire.AppendFixed32(b, uint32(int32(n))), nil
		case protoreflect.Sfixed64Kind:
			return protowire.AppendFixed64(b, uint64(n)), nil
		default:
			return protowire.AppendVarint(b, uint64(n)), nil
		}
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		n, err := strconv.ParseUint(s, 10, bits)
		if err != nil {
			return wrong(fmt.Sprintf("a whole number of %d bits that is not negative", bits))
		}
		switch fd.Kind() {
		case protoreflect.Fixed32Kind:
			return protowire.AppendFixed32(b, uint32(n)), nil
		case protoreflect.Fixed64Kind:
			return protowire.AppendFixed64(b, n), nil
		default:
			return protowire.AppendVarint(b, n), nil
		}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		x, err := strconv.ParseFloat(s, bits)
		if err != nil {
			return wrong("a number")
		}
		if bits == 32 {
			return protowire.AppendFixed32(b, math.Float32bits(float32(x))), nil
		}
		return protowire.AppendFixed64(b, math.Float64bits(x)), nil
	default:
		return nil, fmt.Errorf("a field of kind %v cannot be filled in", fd.Kind())
	}
}

// wireType is how one value of a field is written when it is not packed.
func wireType(fd protoreflect.FieldDescriptor) protowire.Type {
	switch fd.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	default:
		return protowire.VarintType
	}
}

// present reports whether a message has the field, or another member of its oneof. A field without presence that is zero
// is not there.
func (f *Field) present(b []byte) bool {
	set := false
	f.look(b, f.path, &set)
	return set
}

// look follows every occurrence of path in b.
func (f *Field) look(b []byte, path []protoreflect.FieldDescriptor, set *bool) {
	fd := path[0]
	choice := realOneof(fd)
	for len(b) > 0 {
		num, typ, value, rest, ok := next(b)
		if !ok {
			return
		}
		b = rest
		switch {
		case len(path) > 1:
			if num == fd.Number() && typ == wireType(fd) {
				f.look(value, path[1:], set)
			}
		case choice != nil:
			if m := choice.Fields().ByNumber(num); m != nil && typ == wireType(m) {
				*set = true
			}
		case num == fd.Number() && typ == wireType(fd):
			*set = fd.HasPresence() || !isZero(fd, value)
		}
	}
}

// next cuts the first field off b. value is what is between its tag, and length if it has one, and its end, and end tag if
// it has one.
func next(b []byte) (num protowire.Number, typ protowire.Type, value, rest []byte, ok bool) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, 0, nil, nil, false
	}
	b = b[n:]
	switch typ {
	case protowire.BytesType:
		value, n = protowire.ConsumeBytes(b)
	case protowire.StartGroupType:
		value, n = protowire.ConsumeGroup(num, b)
	default:
		if n = protowire.ConsumeFieldValue(num, typ, b); n >= 0 {
			value = b[:n]
		}
	}
	if n < 0 {
		return 0, 0, nil, nil, false
	}
	return num, typ, value, b[n:], true
}

// isZero reports whether a scalar's bytes on the wire, of the field's own wire type, are those of its zero value.
func isZero(fd protoreflect.FieldDescriptor, value []byte) bool {
	if wireType(fd) == protowire.VarintType {
		v, _ := protowire.ConsumeVarint(value)
		switch fd.Kind() {
		case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Uint32Kind, protoreflect.EnumKind:
			return uint32(v) == 0 // what is beyond is cut off
		default:
			return v == 0
		}
	}
	return wireType(fd) == protowire.BytesType && len(value) == 0 ||
		wireType(fd) != protowire.BytesType && !slices.ContainsFunc(value, func(c byte) bool { return c != 0 })
}

// checkFields finds fields that contradict each other.
func checkFields(fields []*Field) error {
	var errs []error
	seen := map[string]string{}
	for _, f := range fields {
		var names []string
		for _, fd := range f.path {
			names = append(names, string(fd.Name()))
		}
		if choice := realOneof(f.leaf()); choice != nil {
			names[len(names)-1] = "oneof " + string(choice.Name())
		}
		key := strings.Join(names, ".")
		if other, ok := seen[key]; ok {
			errs = append(errs, fmt.Errorf("%s is filled in twice, the other time by %s", f.name, other))
		}
		seen[key] = f.name
	}
	return errors.Join(errs...)
}

// ends reports whether b is a sequence of whole fields, so that what is appended to it is a field of its own.
func ends(b []byte) bool {
	for len(b) > 0 {
		var ok bool
		if _, _, _, b, ok = next(b); !ok {
			return false
		}
	}
	return true
}
