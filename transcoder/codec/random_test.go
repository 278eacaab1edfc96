package codec

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// schema is a random file with what is needed to use it.
type schema struct {
	files    *protoregistry.Files
	resolver *dynamicpb.Types
	types    *Types
	messages []protoreflect.MessageDescriptor
	plain    []protoreflect.MessageDescriptor // those without required fields below them, for Any
}

var wellKnownNames = []string{
	"Any", "Timestamp", "Duration", "FieldMask", "Struct", "Value", "ListValue", "BoolValue", "Int32Value", "Int64Value",
	"UInt32Value", "UInt64Value", "FloatValue", "DoubleValue", "StringValue", "BytesValue", "Empty",
}

// randomSchema makes a file of some messages in proto2, proto3 or edition 2023.
func randomSchema(t testing.TB, r *rand.Rand) *schema {
	t.Helper()
	s := &schema{files: new(protoregistry.Files)}
	for _, fd := range []protoreflect.FileDescriptor{
		anypb.File_google_protobuf_any_proto, timestamppb.File_google_protobuf_timestamp_proto,
		durationpb.File_google_protobuf_duration_proto, fieldmaskpb.File_google_protobuf_field_mask_proto,
		structpb.File_google_protobuf_struct_proto, wrapperspb.File_google_protobuf_wrappers_proto,
		emptypb.File_google_protobuf_empty_proto,
	} {
		if err := s.files.RegisterFile(fd); err != nil {
			t.Fatal(err)
		}
	}
	syntax := []string{"proto2", "proto3", "proto3", "editions"}[r.IntN(4)]
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String("r.proto"), Package: proto.String("r"), Syntax: proto.String(syntax),
		Dependency: []string{
			"google/protobuf/any.proto", "google/protobuf/timestamp.proto", "google/protobuf/duration.proto",
			"google/protobuf/field_mask.proto", "google/protobuf/struct.proto", "google/protobuf/wrappers.proto",
			"google/protobuf/empty.proto",
		},
	}
	if syntax == "editions" {
		file.Edition = descriptorpb.Edition_EDITION_2023.Enum()
		features := &descriptorpb.FeatureSet{}
		if r.IntN(2) == 0 {
			features.FieldPresence = descriptorpb.FeatureSet_IMPLICIT.Enum()
		}
		if r.IntN(2) == 0 {
			features.RepeatedFieldEncoding = descriptorpb.FeatureSet_EXPANDED.Enum()
		}
		if r.IntN(3) == 0 {
			features.Utf8Validation = descriptorpb.FeatureSet_NONE.Enum()
		}
		file.Options = &descriptorpb.FileOptions{Features: features}
	}
	e := &descriptorpb.EnumDescriptorProto{
		Name: proto.String("E"), Options: &descriptorpb.EnumOptions{AllowAlias: proto.Bool(true)},
		Value: []*descriptorpb.EnumValueDescriptorProto{
			{Name: proto.String("E_ZERO"), Number: proto.Int32(0)},
			{Name: proto.String("E_ONE"), Number: proto.Int32(1)},
			{Name: proto.String("E_UNO"), Number: proto.Int32(1)},
			{Name: proto.String("E_NEG"), Number: proto.Int32(-1)},
			{Name: proto.String("E_BIG"), Number: proto.Int32(1 << 30)},
		},
	}
	file.EnumType = append(file.EnumType, e)
	n := 2 + r.IntN(4)
	for i := range n {
		file.MessageType = append(file.MessageType, randomMessageType(r, syntax, i, n))
	}
	if syntax != "proto3" {
		for i := range r.IntN(4) {
			f := randomField(r, syntax, 1000+i, n, false)
			f.Name = proto.String(fmt.Sprintf("ext_%d", i))
			f.Extendee = proto.String(".r.M0")
			f.JsonName = nil
			f.OneofIndex = nil
			f.Proto3Optional = nil
			if f.GetLabel() == descriptorpb.FieldDescriptorProto_LABEL_REQUIRED {
				f.Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
			}
			if f.Options != nil && f.Options.Features != nil {
				f.Options.Features.FieldPresence = nil
			}
			file.Extension = append(file.Extension, f)
		}
	}
	fd, err := protodesc.NewFile(file, s.files)
	if err != nil {
		t.Fatalf("%v\n%s", err, protojson.Format(file)[:2000])
	}
	if err := s.files.RegisterFile(fd); err != nil {
		t.Fatal(err)
	}
	s.resolver = dynamicpb.NewTypes(s.files)
	s.types = NewTypes(s.resolver)
	for i := range fd.Messages().Len() {
		s.messages = append(s.messages, fd.Messages().Get(i))
	}
	for _, name := range wellKnownNames {
		d, err := s.files.FindDescriptorByName(protoreflect.FullName("google.protobuf." + name))
		if err != nil {
			t.Fatal(err)
		}
		s.plain = append(s.plain, d.(protoreflect.MessageDescriptor))
	}
	s.plain = append(s.plain, s.messages...)
	return s
}

var scalarTypes = []descriptorpb.FieldDescriptorProto_Type{
	descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, descriptorpb.FieldDescriptorProto_TYPE_FLOAT,
	descriptorpb.FieldDescriptorProto_TYPE_INT64, descriptorpb.FieldDescriptorProto_TYPE_UINT64,
	descriptorpb.FieldDescriptorProto_TYPE_INT32, descriptorpb.FieldDescriptorProto_TYPE_FIXED64,
	descriptorpb.FieldDescriptorProto_TYPE_FIXED32, descriptorpb.FieldDescriptorProto_TYPE_UINT32,
	descriptorpb.FieldDescriptorProto_TYPE_SFIXED32, descriptorpb.FieldDescriptorProto_TYPE_SFIXED64,
	descriptorpb.FieldDescriptorProto_TYPE_SINT32, descriptorpb.FieldDescriptorProto_TYPE_SINT64,
	descriptorpb.FieldDescriptorProto_TYPE_BOOL, descriptorpb.FieldDescriptorProto_TYPE_STRING,
	descriptorpb.FieldDescriptorProto_TYPE_BYTES, descriptorpb.FieldDescriptorProto_TYPE_ENUM,
}

// randomField makes a field of message types M0 to Mn-1 or anything else.
func randomField(r *rand.Rand, syntax string, num, n int, required bool) *descriptorpb.FieldDescriptorProto {
	f := &descriptorpb.FieldDescriptorProto{
		Number: proto.Int32(int32(num)), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
		Options: &descriptorpb.FieldOptions{},
	}
	features := &descriptorpb.FeatureSet{}
	switch k := r.IntN(24); {
	case k < 13:
		f.Type = scalarTypes[r.IntN(len(scalarTypes))].Enum()
		if *f.Type == descriptorpb.FieldDescriptorProto_TYPE_ENUM {
			f.TypeName = proto.String(".r.E")
			if r.IntN(6) == 0 {
				f.TypeName = proto.String(".google.protobuf.NullValue")
			}
		}
	case k < 18:
		f.Type = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum()
		f.TypeName = proto.String(fmt.Sprintf(".r.M%d", r.IntN(n)))
		if syntax == "editions" && r.IntN(3) == 0 {
			features.MessageEncoding = descriptorpb.FeatureSet_DELIMITED.Enum()
		}
	default:
		f.Type = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum()
		f.TypeName = proto.String(".google.protobuf." + wellKnownNames[r.IntN(len(wellKnownNames))])
	}
	scalar := *f.Type != descriptorpb.FieldDescriptorProto_TYPE_MESSAGE && *f.Type != descriptorpb.FieldDescriptorProto_TYPE_GROUP
	switch {
	case r.IntN(3) == 0:
		f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		if syntax != "editions" && scalar && *f.Type != descriptorpb.FieldDescriptorProto_TYPE_STRING &&
			*f.Type != descriptorpb.FieldDescriptorProto_TYPE_BYTES && r.IntN(2) == 0 {
			f.Options.Packed = proto.Bool(r.IntN(2) == 0)
		}
	case required && syntax == "proto2" && r.IntN(12) == 0 && scalar:
		f.Label = descriptorpb.FieldDescriptorProto_LABEL_REQUIRED.Enum()
	case syntax == "editions" && scalar && r.IntN(2) == 0:
		p := descriptorpb.FeatureSet_EXPLICIT
		if r.IntN(12) == 0 && required {
			p = descriptorpb.FeatureSet_LEGACY_REQUIRED
		}
		features.FieldPresence = p.Enum()
	}
	if syntax == "editions" {
		f.Options.Features = features
	}
	return f
}

func randomMessageType(r *rand.Rand, syntax string, i, n int) *descriptorpb.DescriptorProto {
	m := &descriptorpb.DescriptorProto{Name: proto.String(fmt.Sprintf("M%d", i))}
	nums := r.Perm(40)
	if r.IntN(2) == 0 {
		for k := range nums {
			nums[k] = k
		}
	}
	fields := 1 + r.IntN(14)
	if r.IntN(8) == 0 {
		fields = 35 + r.IntN(60)
		nums = r.Perm(400)
	}
	for k := range fields {
		num := nums[k] + 1
		if r.IntN(10) == 0 {
			num += 5000
		}
		if i == 0 && num >= 1000 && num < 1010 {
			num += 100
		}
		f := randomField(r, syntax, num, n, true)
		name := fmt.Sprintf("f%d", k)
		switch r.IntN(5) {
		case 0:
			name = fmt.Sprintf("some_longer_name_%d_of_field", k)
		case 1:
			name = fmt.Sprintf("a_field_%d", k)
		}
		f.Name = proto.String(name)
		if r.IntN(12) == 0 {
			f.JsonName = proto.String([]string{"@x", "ключ", "a b", "quote\"d", "x/y\\z", "new\nline"}[r.IntN(6)] + fmt.Sprint(k))
		}
		single := f.GetLabel() == descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
		switch {
		case r.IntN(7) == 0:
			entry := strings.ReplaceAll(strings.ToUpper(name[:1])+name[1:], "_", " ")
			var camel strings.Builder
			for part := range strings.FieldsSeq(entry) {
				camel.WriteString(strings.ToUpper(part[:1]) + part[1:])
			}
			val := randomField(r, syntax, 2, n, false)
			for val.GetType() == descriptorpb.FieldDescriptorProto_TYPE_GROUP || val.GetTypeName() == ".google.protobuf.NullValue" {
				val = randomField(r, syntax, 2, n, false)
			}
			val.Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
			val.Options = nil
			val.Name, val.JsonName = proto.String("value"), proto.String("value")
			kt := []descriptorpb.FieldDescriptorProto_Type{3, 4, 5, 6, 7, 8, 9, 9, 9, 13, 15, 16, 17, 18}[r.IntN(14)]
			m.NestedType = append(m.NestedType, &descriptorpb.DescriptorProto{
				Name: proto.String(camel.String() + "Entry"), Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
				Field: []*descriptorpb.FieldDescriptorProto{
					{
						Name: proto.String("key"), JsonName: proto.String("key"), Number: proto.Int32(1), Type: kt.Enum(),
						Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
					},
					val,
				},
			})
			f.Type = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum()
			f.TypeName = proto.String(fmt.Sprintf(".r.M%d.%sEntry", i, camel.String()))
			f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
			f.Options = nil
		case r.IntN(2) == 0 && single && (f.Options.Features == nil || f.Options.Features.FieldPresence == nil):
			if k == 0 || m.Field[k-1].OneofIndex == nil || r.IntN(3) == 0 {
				m.OneofDecl = append(m.OneofDecl, &descriptorpb.OneofDescriptorProto{Name: proto.String(fmt.Sprintf("o%d", k))})
			}
			f.OneofIndex = proto.Int32(int32(len(m.OneofDecl) - 1))
		}
		m.Field = append(m.Field, f)
	}
	if syntax == "proto2" && r.IntN(2) == 0 {
		g := &descriptorpb.DescriptorProto{Name: proto.String("Grp")}
		for k := range 1 + r.IntN(4) {
			f := randomField(r, syntax, k+1, n, true)
			f.Name = proto.String(fmt.Sprintf("g%d", k))
			g.Field = append(g.Field, f)
		}
		m.NestedType = append(m.NestedType, g)
		label := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
		if r.IntN(2) == 0 {
			label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED
		}
		m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{
			Name: proto.String("grp"), Number: proto.Int32(450), Label: label.Enum(),
			Type: descriptorpb.FieldDescriptorProto_TYPE_GROUP.Enum(), TypeName: proto.String(fmt.Sprintf(".r.M%d.Grp", i)),
		})
	}
	// proto3 optional: synthetic oneofs come after the real ones.
	if syntax == "proto3" {
		for _, f := range m.Field {
			if f.OneofIndex == nil && f.GetLabel() == descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL && r.IntN(4) == 0 {
				m.OneofDecl = append(m.OneofDecl, &descriptorpb.OneofDescriptorProto{Name: proto.String("_" + f.GetName())})
				f.OneofIndex = proto.Int32(int32(len(m.OneofDecl) - 1))
				f.Proto3Optional = proto.Bool(true)
			}
		}
	}
	if syntax != "proto3" && i == 0 {
		m.ExtensionRange = []*descriptorpb.DescriptorProto_ExtensionRange{{Start: proto.Int32(1000), End: proto.Int32(1010)}}
	}
	return m
}

// fill sets random fields of m; budget bounds the whole.
func (s *schema) fill(r *rand.Rand, m protoreflect.Message, depth int, budget *int) {
	md := m.Descriptor()
	switch md.FullName() {
	case "google.protobuf.Any":
		if r.IntN(8) == 0 {
			return
		}
		inner := dynamicpb.NewMessage(s.plain[r.IntN(len(s.plain))])
		if depth > 0 {
			s.fill(r, inner, depth-1, budget)
		}
		b, _ := proto.MarshalOptions{AllowPartial: true}.Marshal(inner)
		url := "type.googleapis.com/" + string(inner.Descriptor().FullName())
		if r.IntN(30) == 0 {
			url += "x"
		}
		m.Set(md.Fields().ByNumber(1), protoreflect.ValueOfString(url))
		m.Set(md.Fields().ByNumber(2), protoreflect.ValueOfBytes(b))
		return
	case "google.protobuf.Timestamp":
		secs := r.Int64N(253402300799+62135596800) - 62135596800
		if r.IntN(40) == 0 {
			secs = 253402300800
		}
		m.Set(md.Fields().ByNumber(1), protoreflect.ValueOfInt64(secs))
		m.Set(md.Fields().ByNumber(2), protoreflect.ValueOfInt32(randomNanos(r)))
		return
	case "google.protobuf.Duration":
		secs := r.Int64N(315576000001) >> r.IntN(38)
		nanos := randomNanos(r)
		if r.IntN(2) == 0 {
			secs, nanos = -secs, -nanos
		}
		if r.IntN(40) == 0 {
			nanos = -nanos
		}
		m.Set(md.Fields().ByNumber(1), protoreflect.ValueOfInt64(secs))
		m.Set(md.Fields().ByNumber(2), protoreflect.ValueOfInt32(nanos))
		return
	case "google.protobuf.FieldMask":
		l := m.Mutable(md.Fields().ByNumber(1)).List()
		for range r.IntN(4) {
			paths := []string{"a", "foo_bar", "a.b_c.d", "x1.y_z", "_lead", "bad_1", "Upper", "", "a..b"}
			k := r.IntN(5)
			if r.IntN(20) == 0 {
				k = r.IntN(len(paths))
			}
			l.Append(protoreflect.ValueOfString(paths[k]))
		}
		return
	case "google.protobuf.Value":
		k := r.IntN(6)
		if depth <= 0 {
			k = r.IntN(4)
		}
		fd := md.Fields().ByNumber(protoreflect.FieldNumber(k + 1))
		if r.IntN(60) == 0 {
			return
		}
		*budget--
		if fd.Message() != nil {
			s.fill(r, m.Mutable(fd).Message(), depth-1, budget)
			return
		}
		v := s.scalar(r, fd)
		if f, ok := v.Interface().(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) && r.IntN(10) != 0 {
			v = protoreflect.ValueOfFloat64(1.5)
		}
		m.Set(fd, v)
		return
	}
	fds := md.Fields()
	share := 1 + r.IntN(3)
	for i := range fds.Len() {
		fd := fds.Get(i)
		required := fd.Cardinality() == protoreflect.Required && r.IntN(30) != 0
		if !required && (*budget <= 0 || r.IntN(share+1) == 0) {
			continue
		}
		s.set(r, m, fd, depth, budget)
	}
	for num := protoreflect.FieldNumber(1000); num < 1004; num++ {
		xt, err := s.resolver.FindExtensionByNumber(md.FullName(), num)
		if err != nil {
			continue
		}
		if r.IntN(2) == 0 {
			s.set(r, m, xt.TypeDescriptor(), depth, budget)
		}
	}
}

func randomNanos(r *rand.Rand) int32 {
	return []int32{0, r.Int32N(1000) * 1000000, r.Int32N(1000000) * 1000, r.Int32N(1000000000)}[r.IntN(4)]
}

func (s *schema) set(r *rand.Rand, m protoreflect.Message, fd protoreflect.FieldDescriptor, depth int, budget *int) {
	*budget--
	switch {
	case fd.IsMap():
		mp := m.Mutable(fd).Map()
		n := r.IntN(4)
		if r.IntN(20) == 0 {
			n = 30
		}
		for range n {
			k := s.scalar(r, fd.MapKey()).MapKey()
			if fd.MapValue().Message() != nil {
				v := mp.NewValue()
				if depth > 0 {
					s.fill(r, v.Message(), depth-1, budget)
				}
				mp.Set(k, v)
			} else {
				mp.Set(k, s.scalar(r, fd.MapValue()))
			}
		}
	case fd.IsList():
		l := m.Mutable(fd).List()
		for range r.IntN(4) {
			if fd.Message() != nil {
				v := l.NewElement()
				if depth > 0 {
					s.fill(r, v.Message(), depth-1, budget)
				}
				l.Append(v)
			} else {
				l.Append(s.scalar(r, fd))
			}
		}
	case fd.Message() != nil:
		if depth > 0 {
			s.fill(r, m.Mutable(fd).Message(), depth-1, budget)
		}
	default:
		m.Set(fd, s.scalar(r, fd))
	}
}

var someStrings = []string{
	"", "a", "hello", "hello, world", "\"quoted\"", "back\\slash", "line\nbreak\ttab", "\x00\x01\x1f\x7f", "Привет, мир",
	"日本語テキスト", "emoji 🎉", "</script>&", "\u2028\u2029", "exactly8", "seven77", "a longer string of plain text that goes on for a while",
	"mixed 日本 and \"quotes\" and ünïcödé", "\uFFFD", "1234", "true",
}

func (s *schema) scalar(r *rand.Rand, fd protoreflect.FieldDescriptor) protoreflect.Value {
	bits := r.Uint64() >> r.IntN(64)
	if r.IntN(6) == 0 {
		bits = 0
	}
	neg := r.IntN(2) == 0
	i := int64(bits)
	if neg {
		i = -i
	}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(neg)
	case protoreflect.EnumKind:
		n := []int32{0, 1, 1, -1, 1 << 30, 2, 77, math.MaxInt32, math.MinInt32}[r.IntN(9)]
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(i))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(i)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(bits))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(bits)
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		var f float64
		switch r.IntN(6) {
		case 0:
			f = math.Float64frombits(r.Uint64())
		case 1:
			f = float64(r.IntN(100000)) / 100
		case 2:
			f = float64(i)
		case 3:
			f = []float64{0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(), 1e21, 1e-7}[r.IntN(7)]
		case 4:
			f = r.Float64()
		case 5:
			f = float64(math.Float32frombits(r.Uint32()))
		}
		if fd.Kind() == protoreflect.FloatKind {
			return protoreflect.ValueOfFloat32(float32(f))
		}
		return protoreflect.ValueOfFloat64(f)
	case protoreflect.BytesKind:
		b := make([]byte, r.IntN(12)*r.IntN(3))
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		return protoreflect.ValueOfBytes(b)
	}
	v := someStrings[r.IntN(len(someStrings))]
	if r.IntN(3) == 0 {
		v += someStrings[r.IntN(len(someStrings))]
	}
	if r.IntN(60) == 0 {
		v = strings.Repeat(v, 1+r.IntN(300))
	}
	return protoreflect.ValueOfString(v)
}

// shuffle reorders, repeats and splits the records of a message, at any depth, and puts in unknown ones.
func shuffle(r *rand.Rand, md protoreflect.MessageDescriptor, b []byte, depth int) []byte {
	type record struct {
		b []byte
	}
	var recs []record
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return b
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return b
		}
		val := b[n : n+m]
		rec := append([]byte{}, b[:n+m]...)
		fd := md.Fields().ByNumber(num)
		if fd != nil && fd.Message() != nil && depth > 0 && typ == protowire.BytesType {
			inner, _ := protowire.ConsumeBytes(val)
			inner = shuffle(r, fd.Message(), inner, depth-1)
			if r.IntN(12) == 0 && len(inner) > 0 { // in two halves, which merge where records end
				first := 0
				for first < len(inner) && r.IntN(3) > 0 {
					num, typ, n := protowire.ConsumeTag(inner[first:])
					if n < 0 {
						break
					}
					m := protowire.ConsumeFieldValue(num, typ, inner[first+n:])
					if m < 0 {
						break
					}
					first += n + m
				}
				recs = append(recs, record{protowire.AppendBytes(append([]byte{}, b[:n]...), inner[:first])})
				inner = inner[first:]
			}
			rec = protowire.AppendBytes(append([]byte{}, b[:n]...), inner)
		}
		recs = append(recs, record{rec})
		if r.IntN(25) == 0 {
			recs = append(recs, record{rec})
		}
		if r.IntN(40) == 0 { // another wire type for the same number
			recs = append(recs, record{protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), r.Uint64()>>r.IntN(64))})
		}
		if r.IntN(40) == 0 {
			recs = append(recs, record{protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte{1, 2, 3}[:r.IntN(4)])})
		}
		if r.IntN(40) == 0 {
			recs = append(recs, record{protowire.AppendFixed32(protowire.AppendTag(nil, 3999, protowire.Fixed32Type), 7)})
		}
		b = b[n+m:]
	}
	switch r.IntN(3) {
	case 0:
		r.Shuffle(len(recs), func(i, j int) { recs[i], recs[j] = recs[j], recs[i] })
	case 1:
		if len(recs) > 1 {
			i, j := r.IntN(len(recs)), r.IntN(len(recs))
			recs[i], recs[j] = recs[j], recs[i]
		}
	}
	var out []byte
	for _, rec := range recs {
		out = append(out, rec.b...)
	}
	return out
}
