package cache

import (
	"cmp"
	"math"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// shape is what is known of a message type to tell, without decoding, whether bytes of it are already what the deterministic
// encoding makes of their message. Most requests are, since listeners and generated code write them so.
//
// The answer no may be wrong, at the cost of decoding. A wrong yes would only make two entries of one request: whatever the
// bytes, equal ones are one message.
type shape struct {
	// fields are in the order of their numbers. Those whose place in the encoding depends on more than that (maps, members of
	// oneofs, groups) are left out, and so is everything of a type with required fields: bytes that have any are not canonical.
	fields []shapeField
}

type shapeField struct {
	number protowire.Number
	kind   protoreflect.Kind
	wire   protowire.Type // of one value
	// list is of a repeated field, packed if its values are in one record.
	list, packed bool
	// implicit says that the zero value is not written.
	implicit bool
	msg      *shape
}

// maxNested is how many messages within each other are looked at.
const maxNested = 32

// shapeOf compiles md. known has the types that are compiled, or being compiled: they may contain themselves.
func shapeOf(md protoreflect.MessageDescriptor, known map[protoreflect.FullName]*shape) *shape {
	if s := known[md.FullName()]; s != nil {
		return s
	}
	s := &shape{}
	known[md.FullName()] = s
	if md.RequiredNumbers().Len() > 0 {
		return s
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		oneof := fd.ContainingOneof()
		if fd.IsMap() || fd.Kind() == protoreflect.GroupKind || oneof != nil && !oneof.IsSynthetic() {
			continue
		}
		f := shapeField{number: fd.Number(), kind: fd.Kind(), wire: wireOf(fd.Kind()), list: fd.IsList(), packed: fd.IsPacked(), implicit: !fd.HasPresence()}
		if fd.Kind() == protoreflect.MessageKind {
			f.msg = shapeOf(fd.Message(), known)
		}
		s.fields = append(s.fields, f)
	}
	slices.SortFunc(s.fields, func(a, b shapeField) int { return cmp.Compare(a.number, b.number) })
	return s
}

func wireOf(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	default:
		return protowire.VarintType
	}
}

// canonical reports whether b is the deterministic encoding of its message. depth is how many messages it is in.
func (s *shape) canonical(b []byte, depth int) bool {
	if depth > maxNested {
		return false
	}
	for at := 0; len(b) > 0; {
		tag, n := minimalVarint(b)
		if n == 0 {
			return false
		}
		b = b[n:]
		number, wire := protowire.DecodeTag(tag)
		for at < len(s.fields) && s.fields[at].number < number {
			at++
		}
		if at == len(s.fields) || s.fields[at].number != number {
			return false
		}
		f := &s.fields[at]
		if f.packed {
			v, rest, ok := delimited(b)
			if wire != protowire.BytesType || !ok || len(v) == 0 {
				return false
			}
			for len(v) > 0 {
				if _, v, ok = f.value(v, depth); !ok {
					return false
				}
			}
			b = rest
			at++
			continue
		}
		zero, rest, ok := f.value(b, depth)
		if wire != f.wire || !ok || zero && f.implicit && !f.list {
			return false
		}
		b = rest
		if !f.list {
			at++
		}
	}
	return true
}

// value takes one value off b, if it is written as it would be again.
func (f *shapeField) value(b []byte, depth int) (zero bool, rest []byte, ok bool) {
	switch f.wire {
	case protowire.VarintType:
		v, n := minimalVarint(b)
		return v == 0, b[n:], n > 0 && f.holds(v)
	case protowire.Fixed32Type:
		v, n := protowire.ConsumeFixed32(b)
		if n < 0 || f.kind == protoreflect.FloatKind && math.IsNaN(float64(math.Float32frombits(v))) {
			return false, nil, false
		}
		return v == 0, b[n:], true
	case protowire.Fixed64Type:
		v, n := protowire.ConsumeFixed64(b)
		if n < 0 || f.kind == protoreflect.DoubleKind && math.IsNaN(math.Float64frombits(v)) {
			return false, nil, false
		}
		return v == 0, b[n:], true
	default:
		v, rest, ok := delimited(b)
		switch {
		case !ok:
		case f.kind == protoreflect.MessageKind:
			ok = f.msg.canonical(v, depth+1)
		case f.kind == protoreflect.StringKind:
			ok = utf8.Valid(v)
		}
		return len(v) == 0, rest, ok
	}
}

// holds reports whether a varint of the field's kind stays as it is.
func (f *shapeField) holds(v uint64) bool {
	switch f.kind {
	case protoreflect.BoolKind:
		return v <= 1
	case protoreflect.Int32Kind, protoreflect.EnumKind:
		return uint64(int64(int32(v))) == v
	case protoreflect.Uint32Kind, protoreflect.Sint32Kind:
		return v <= math.MaxUint32
	default:
		return true
	}
}

// delimited takes what has its length before it off b.
func delimited(b []byte) (v, rest []byte, ok bool) {
	size, n := minimalVarint(b)
	if n == 0 || size > uint64(len(b)-n) {
		return nil, nil, false
	}
	b = b[n:]
	return b[:size], b[size:], true
}

// minimalVarint reads a varint that has no more bytes than it needs; n is 0 if there is none.
func minimalVarint(b []byte) (v uint64, n int) {
	v, n = protowire.ConsumeVarint(b)
	if n < 0 || n > 1 && b[n-1] == 0 {
		return 0, 0
	}
	return v, n
}
