package cache

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
)

func everything() (protoreflect.MessageDescriptor, *shape) {
	md := (&bankv1.Everything{}).ProtoReflect().Descriptor()
	return md, shapeOf(md, map[protoreflect.FullName]*shape{})
}

// checkCanonical holds what canonical says to what decoding and encoding makes of b.
func checkCanonical(t *testing.T, md protoreflect.MessageDescriptor, s *shape, b []byte) bool {
	t.Helper()
	if !s.canonical(b, 0) {
		return false
	}
	m, err := rpc.Decode(md, b)
	if err != nil {
		t.Errorf("%x is taken as canonical, and is no message", b)
		return true
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("%x is taken as canonical, and becomes %x, %v", b, again, err)
	}
	return true
}

func TestCanonicalForms(t *testing.T) {
	md, s := everything()
	number := func(name protoreflect.Name) protowire.Number { return md.Fields().ByName(name).Number() }
	varint := func(name protoreflect.Name, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, number(name), protowire.VarintType), v)
	}
	text := func(name protoreflect.Name, v string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, number(name), protowire.BytesType), v)
	}
	for _, tc := range []struct {
		name string
		wire []byte
		want bool
	}{
		{"nothing", nil, true},
		{"a number", varint("int32", 7), true},
		{"a negative number", varint("int32", math.MaxUint64), true},
		{"a number of more bits than it has", varint("int32", 1<<40), false},
		{"zero", varint("int32", 0), false},
		{"zero that was set", varint("optional_int32", 0), true},
		{"a number twice", append(varint("int32", 7), varint("int32", 7)...), false},
		{"not in order", append(varint("uint32", 7), varint("int32", 7)...), false},
		{"too long a number", append(protowire.AppendTag(nil, number("int32"), protowire.VarintType), 0x87, 0x00), false},
		{"text", text("text", "x"), true},
		{"no text", text("text", ""), false},
		{"not UTF-8", text("text", "\xff"), false},
		{"bytes", text("data", "\xff"), true},
		{"another wire type", text("int32", "x"), false},
		{"unpacked", append(varint("unpacked", 1), varint("unpacked", 0)...), true},
		{"packed", text("int32s", "\x01\x00"), true},
		{"packed, nothing in it", text("int32s", ""), false},
		{"packed in two parts", append(text("int32s", "\x01"), text("int32s", "\x02")...), false},
		{"unpacked, though packed", varint("int32s", 1), false},
		{"a message", text("nested", string(varint("int32", 7))), true},
		{"a message with zero in it", text("nested", string(varint("int32", 0))), false},
		{"an empty message", text("nested", ""), true},
		{"an unknown field", protowire.AppendVarint(protowire.AppendTag(nil, 9999, protowire.VarintType), 1), false},
		{"cut", text("text", "abc")[:3], false},
		{"a number too big for a tag", []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0}, false},
		{"NaN", protowire.AppendFixed64(protowire.AppendTag(nil, number("double"), protowire.Fixed64Type), 0x7ff0000000000001), false},
		{"minus zero", protowire.AppendFixed64(protowire.AppendTag(nil, number("double"), protowire.Fixed64Type), 1<<63), true},
	} {
		if got := checkCanonical(t, md, s, tc.wire); got != tc.want {
			t.Errorf("%s: %x is canonical: %v", tc.name, tc.wire, got)
		}
	}
	deep := []byte(nil)
	for range 100 {
		deep = text("nested", string(deep))
	}
	if s.canonical(deep, 0) {
		t.Error("messages are followed down without end")
	}
}

// TestCanonicalRandom: what is left of random messages without maps and oneofs is found canonical as it is encoded.
func TestCanonicalRandom(t *testing.T) {
	md, s := everything()
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		m := (&bankv1.Everything{}).ProtoReflect()
		fill(r, m, 3)
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
		if err != nil {
			t.Fatal(err)
		}
		if !checkCanonical(t, md, s, b) {
			t.Fatalf("not canonical: %v", m)
		}
	}
}

// fill sets about a third of the fields.
func fill(r *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		oneof := fd.ContainingOneof()
		if r.IntN(3) > 0 || fd.IsMap() || oneof != nil && !oneof.IsSynthetic() || fd.Message() != nil && (depth == 0 || isStruct(fd.Message())) {
			continue
		}
		if !fd.IsList() {
			m.Set(fd, value(r, fd, m.NewField(fd), depth))
			continue
		}
		list := m.Mutable(fd).List()
		for range r.IntN(3) {
			list.Append(value(r, fd, list.NewElement(), depth))
		}
	}
}

// isStruct reports whether a type is one of those of google.protobuf.Struct, which have nothing but maps and oneofs.
func isStruct(md protoreflect.MessageDescriptor) bool {
	return md.FullName().Parent() == "google.protobuf" && (md.Name() == "Struct" || md.Name() == "Value" || md.Name() == "ListValue")
}

func value(r *rand.Rand, fd protoreflect.FieldDescriptor, fresh protoreflect.Value, depth int) protoreflect.Value {
	n := [...]int64{0, 1, -1, 127, 128, math.MaxInt32, math.MinInt64}[r.IntN(7)]
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n > 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) / 3)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString([...]string{"", "a", "ü"}[r.IntN(3)])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([][]byte{nil, {0}, {0xff, 0}}[r.IntN(3)])
	default:
		fill(r, fresh.Message(), depth-1)
		return fresh
	}
}

// FuzzCanonical: bytes that are taken as canonical stay what they are.
func FuzzCanonical(f *testing.F) {
	md, s := everything()
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		m := (&bankv1.Everything{}).ProtoReflect()
		fill(r, m, 2)
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkCanonical(t, md, s, b) })
}
