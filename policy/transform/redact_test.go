package transform_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/descriptors"
	"transom/policy/transform"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
)

func paths(t testing.TB, md protoreflect.MessageDescriptor, names ...string) []transform.Path {
	t.Helper()
	var list []transform.Path
	for _, name := range names {
		p, err := transform.NewPath(md, name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

// answersOf are the messages that the client gets of a backend's.
func answersOf(t testing.TB, p *rpc.Principal, mw rpc.Middleware, msgs ...[]byte) ([][]byte, error) {
	t.Helper()
	r, err := run(t, p, nil, nil, answering(nil, nil, nil, msgs...), mw)
	var out [][]byte
	for _, m := range r.Messages {
		out = append(out, slices.Clone(m.Bytes()))
		m.Release()
	}
	return out, err
}

func TestRedact(t *testing.T) {
	type ev = bankv1.Everything
	full := func() *ev {
		return &ev{
			Text: "keep", Data: []byte("secret"), Int32: 7, Nested: &ev{Text: "inner", Data: []byte("s"), Nested: &ev{Text: "deep"}},
			List: []*ev{{Text: "a", Data: []byte("s1")}, {Text: "b"}, {Data: []byte("s3")}}, Int32S: []int32{1, 2, 3}, Unpacked: []uint32{4, 5},
			TextMap: map[string]string{"k": "v"}, MessageMap: map[uint64]*ev{1: {Text: "m", Data: []byte("s")}, 2: {}},
			Choice: &bankv1.Everything_ChoiceText{ChoiceText: "chosen"},
		}
	}
	for _, tc := range []struct {
		names []string
		want  func(m *ev)
	}{
		{[]string{"data"}, func(m *ev) { m.Data = nil }},
		{[]string{"text", "data", "int32"}, func(m *ev) { m.Text, m.Data, m.Int32 = "", nil, 0 }},
		{[]string{"nested"}, func(m *ev) { m.Nested = nil }},
		{[]string{"nested.data"}, func(m *ev) { m.Nested.Data = nil }},
		{[]string{"nested.data", "nested"}, func(m *ev) { m.Nested = nil }},
		{[]string{"nested", "nested.data"}, func(m *ev) { m.Nested = nil }},
		{[]string{"nested.nested.text"}, func(m *ev) { m.Nested.Nested.Text = "" }},
		{[]string{"list"}, func(m *ev) { m.List = nil }},
		{[]string{"list.data", "list.text"}, func(m *ev) { m.List = []*ev{{}, {}, {}} }},
		{[]string{"int32s", "unpacked"}, func(m *ev) { m.Int32S, m.Unpacked = nil, nil }},
		{[]string{"text_map"}, func(m *ev) { m.TextMap = nil }},
		{[]string{"message_map.data"}, func(m *ev) { m.MessageMap[1].Data = nil }},
		{[]string{"choice_text"}, func(m *ev) { m.Choice = nil }},
		{[]string{"choice_number", "optional_text", "timestamp.seconds"}, func(*ev) {}},
	} {
		want := full()
		tc.want(want)
		b := wire(t, full())
		before := bytes.Clone(b)
		for _, pad := range []int{0, 8 << 10} { // in the pool's buffers too
			in := append(bytes.Clone(b), protowire.AppendBytes(protowire.AppendTag(nil, 2000, protowire.BytesType), make([]byte, pad))...)
			got, err := answersOf(t, nil, transform.Redact(paths(t, everything(), tc.names...)), in, in)
			if err != nil || len(got) != 2 || !bytes.Equal(got[0], got[1]) {
				t.Fatalf("%q: %v", tc.names, err)
			}
			var out ev
			if err := proto.Unmarshal(got[0], &out); err != nil {
				t.Fatalf("%q: %v", tc.names, err)
			}
			if len(out.ProtoReflect().GetUnknown()) < pad {
				t.Errorf("%q: unknown fields are lost", tc.names)
			}
			out.ProtoReflect().SetUnknown(nil)
			if diff := cmp.Diff(want, &out, protocmp.Transform()); diff != "" {
				t.Errorf("%q: %s", tc.names, diff)
			}
			if slices.Contains(tc.names, "data") && bytes.Contains(got[0], []byte("secret")) {
				t.Errorf("%q: the bytes are still there", tc.names)
			}
		}
		if !bytes.Equal(b, before) {
			t.Errorf("%q: the backend's bytes were written to", tc.names)
		}
	}
	if transform.Redact(nil) != nil {
		t.Error("nothing to do is something")
	}
}

func TestPathFaults(t *testing.T) {
	for name, want := range map[string]string{
		"txt":           `txt: bank.v1.Everything has no field "txt"`,
		"text.x":        "text.x: bank.v1.Everything.text is no message",
		"text_map.x":    "text_map.x: bank.v1.Everything.text_map is no message",
		"message_map.x": `message_map.x: bank.v1.Everything has no field "x"`,
		"":              `: bank.v1.Everything has no field ""`,
	} {
		if _, err := transform.NewPath(everything(), name); !errors.Is(err, rpc.ErrNoField) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
	for name, want := range map[string]string{
		"any.text":           "any.text: bank.v1.Everything.any has a google.protobuf.Any, which is not looked into",
		"nested.any.value.x": "nested.any.value.x: bank.v1.Everything.any has a google.protobuf.Any",
		"struct.secret":      "struct.secret: bank.v1.Everything.struct has a google.protobuf.Struct",
		"value.secret":       "value.secret: bank.v1.Everything.value has a google.protobuf.Value",
	} {
		if _, err := transform.NewPath(everything(), name); err == nil || errors.Is(err, rpc.ErrNoField) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
	if p := paths(t, everything(), "any", "any.value", "any.type_url", "struct.fields.string_value"); len(p) != 4 {
		t.Errorf("%d paths", len(p))
	}
	if _, err := transform.NewPath(old(t), "must"); err == nil || errors.Is(err, rpc.ErrNoField) {
		t.Errorf("a required field: %v", err)
	}
}

// old is a proto2 message type with groups, a required field and a oneof that holds a group.
func old(t testing.TB) protoreflect.MessageDescriptor {
	t.Helper()
	field := func(name string, num int32, typ descriptorpb.FieldDescriptorProto_Type, label descriptorpb.FieldDescriptorProto_Label, of string, oneof *int32) *descriptorpb.FieldDescriptorProto {
		f := &descriptorpb.FieldDescriptorProto{Name: &name, Number: &num, Type: &typ, Label: &label, OneofIndex: oneof}
		if of != "" {
			f.TypeName = &of
		}
		return f
	}
	const (
		opt   = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
		rep   = descriptorpb.FieldDescriptorProto_LABEL_REPEATED
		req   = descriptorpb.FieldDescriptorProto_LABEL_REQUIRED
		group = descriptorpb.FieldDescriptorProto_TYPE_GROUP
		text  = descriptorpb.FieldDescriptorProto_TYPE_STRING
		num   = descriptorpb.FieldDescriptorProto_TYPE_INT32
		msg   = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE
	)
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("old.proto"), Package: proto.String("old"), Syntax: proto.String("proto2"),
		MessageType: []*descriptorpb.DescriptorProto{{
			Name: proto.String("Old"),
			Field: []*descriptorpb.FieldDescriptorProto{
				field("must", 1, text, req, "", nil),
				field("single", 2, group, opt, ".old.Old.Single", nil),
				field("many", 3, group, rep, ".old.Old.Many", nil),
				field("next", 4, msg, opt, ".old.Old", nil),
				field("a", 5, text, opt, "", proto.Int32(0)),
				field("b", 6, num, opt, "", proto.Int32(0)),
				field("chosen", 7, group, opt, ".old.Old.Chosen", proto.Int32(0)),
			},
			OneofDecl: []*descriptorpb.OneofDescriptorProto{{Name: proto.String("choice")}},
			NestedType: []*descriptorpb.DescriptorProto{
				{Name: proto.String("Single"), Field: []*descriptorpb.FieldDescriptorProto{field("text", 1, text, opt, "", nil), field("next", 2, msg, opt, ".old.Old", nil)}},
				{Name: proto.String("Many"), Field: []*descriptorpb.FieldDescriptorProto{field("text", 1, text, opt, "", nil), field("num", 2, num, opt, "", nil)}},
				{Name: proto.String("Chosen"), Field: []*descriptorpb.FieldDescriptorProto{field("text", 1, text, opt, "", nil), field("num", 2, num, opt, "", nil)}},
			},
		}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return file.Messages().ByName("Old")
}

// reference redacts by decoding: it clears the fields, and drops what is unknown of their numbers.
func reference(t testing.TB, md protoreflect.MessageDescriptor, b []byte, names []string) (protoreflect.Message, bool) {
	t.Helper()
	msg, ok := decode(md, b)
	if !ok {
		return nil, false
	}
	for _, name := range names {
		clearPath(msg, strings.Split(name, "."))
	}
	return msg, true
}

// decode reads a message that may lack required fields. It fails where dynamicpb panics.
func decode(md protoreflect.MessageDescriptor, b []byte) (msg *dynamicpb.Message, ok bool) {
	defer func() { ok = recover() == nil && ok }()
	msg = dynamicpb.NewMessage(md)
	return msg, (proto.UnmarshalOptions{AllowPartial: true}).Unmarshal(b, msg) == nil
}

func clearPath(m protoreflect.Message, path []string) {
	fd := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	m.SetUnknown(without(m.GetUnknown(), fd.Number()))
	switch {
	case len(path) == 1:
		m.Clear(fd)
	case !m.Has(fd):
	case fd.IsMap():
		m.Get(fd).Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
			clearPath(v.Message(), path[1:])
			return true
		})
	case fd.IsList():
		for i := range m.Get(fd).List().Len() {
			clearPath(m.Get(fd).List().Get(i).Message(), path[1:])
		}
	default:
		clearPath(m.Mutable(fd).Message(), path[1:])
	}
}

// without drops the fields of a number.
func without(b []byte, num protowire.Number) []byte {
	var out []byte
	for len(b) > 0 {
		n, _, size := protowire.ConsumeField(b)
		if size < 0 {
			return append(out, b...)
		}
		if n != num {
			out = append(out, b[:size]...)
		}
		b = b[size:]
	}
	return out
}

// judge holds redaction to the reference.
func judge(t testing.TB, md protoreflect.MessageDescriptor, b []byte, names []string) {
	t.Helper()
	want, readable := reference(t, md, b, names)
	got, err := answersOf(t, nil, transform.Redact(paths(t, md, names...)), b)
	if err != nil {
		if _, strict := rpc.Decode(md, b); strict == nil || rpc.StatusOf(err).Code() != codes.Internal {
			t.Errorf("%q of %x: %v", names, b, err)
		}
		return
	}
	if !readable {
		return
	}
	out, ok := decode(md, got[0])
	if !ok {
		t.Errorf("%q of %x is %x, which cannot be read", names, b, got[0])
		return
	}
	w, _ := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(want.Interface())
	g, _ := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(out)
	if !bytes.Equal(w, g) {
		t.Errorf("%q of %x is %x:\n%v\nwant\n%v", names, b, got[0], out, want)
	}
	if len(got[0]) > len(b) && bytes.Equal(got[0][:len(b)], b) {
		t.Errorf("%q of %x is longer", names, b)
	}
}

// redactions are paths to try together.
var redactions = [][]string{
	{"text", "data"},
	{"nested.text", "nested.nested", "int32s"},
	{"list.data", "list.list.text", "message_map.text", "text_map"},
	{"choice_text"},
	{"choice_message.text", "choice_number"},
	{"choice_message.choice_text", "nested.choice_number", "message_map.choice_message", "list.choice_text"},
	{"nested.nested.choice_message.choice_null", "value.string_value", "struct.fields", "any.value", "string_value.value"},
	{"choice_text", "choice_number", "choice_message", "choice_null"},
}

var oldRedactions = [][]string{
	{"single.text", "many.num"}, {"single", "next.many"}, {"single.next.single.text"}, {"a"}, {"b", "chosen.text"}, {"chosen"}, {"next.a", "next.next.b", "many.text"},
}

// TestRedactOrders has messages that say members of a oneof, and messages, several times.
func TestRedactOrders(t *testing.T) {
	type ev = bankv1.Everything
	pieces := []*ev{
		{Choice: &bankv1.Everything_ChoiceText{ChoiceText: "a"}},
		{Choice: &bankv1.Everything_ChoiceNumber{ChoiceNumber: 7}},
		{Choice: &bankv1.Everything_ChoiceMessage{ChoiceMessage: &ev{Text: "m", Choice: &bankv1.Everything_ChoiceText{ChoiceText: "in"}}}},
		{Choice: &bankv1.Everything_ChoiceMessage{ChoiceMessage: &ev{Text: "n", Choice: &bankv1.Everything_ChoiceNumber{ChoiceNumber: 3}}}},
		{Nested: &ev{Choice: &bankv1.Everything_ChoiceText{ChoiceText: "b"}}},
		{Nested: &ev{Choice: &bankv1.Everything_ChoiceNumber{ChoiceNumber: 8}}},
		{List: []*ev{{Choice: &bankv1.Everything_ChoiceText{ChoiceText: "c"}}}},
		{MessageMap: map[uint64]*ev{1: {Choice: &bankv1.Everything_ChoiceMessage{ChoiceMessage: &ev{}}}}},
		{Text: "t"},
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 4000 {
		var b []byte
		for range 1 + r.IntN(5) {
			b = append(b, wire(t, pieces[r.IntN(len(pieces))])...)
		}
		judge(t, everything(), b, redactions[r.IntN(len(redactions))])
	}
}

func FuzzRedact(f *testing.F) {
	f.Add(wire(f, &bankv1.Everything{Text: "t", Data: []byte("d"), Nested: &bankv1.Everything{Text: "x", Nested: &bankv1.Everything{}}, List: []*bankv1.Everything{{Data: []byte("y")}}}), uint8(0))
	f.Add(wire(f, &bankv1.Everything{Choice: &bankv1.Everything_ChoiceMessage{ChoiceMessage: &bankv1.Everything{Text: "q"}}, MessageMap: map[uint64]*bankv1.Everything{3: {Text: "z"}}}), uint8(5))
	f.Add([]byte{2<<3 | 3, 1<<3 | 2, 1, 'x', 2<<3 | 4, 3<<3 | 3, 2 << 3, 7, 3<<3 | 4}, uint8(100))
	f.Add([]byte("\x8a\x02\a\b\x0300\n\x010"), uint8(3)) // over which dynamicpb panics
	f.Add([]byte{1<<3 | 3, 1<<3 | 4, 0x8a, 0x80, 0, 0x81, 0, 'x'}, uint8(0))
	md := old(f)
	f.Fuzz(func(t *testing.T, b []byte, which uint8) {
		if which >= 100 {
			judge(t, md, b, oldRedactions[int(which)%len(oldRedactions)])
		} else {
			judge(t, everything(), b, redactions[int(which)%len(redactions)])
		}
	})
}

// TestRedactUnreadable has answers that nobody can read: nothing of them passes.
func TestRedactUnreadable(t *testing.T) {
	mw := transform.Redact(paths(t, everything(), "nested.text", "data"))
	for what, b := range map[string][]byte{
		"at the top":       {2<<3 | 2, 7},
		"after the field":  {2<<3 | 2, 1, 'x', 1<<3 | 2, 7},
		"inside":           {17<<3&0x7F | 2 | 0x80, 1, 2, 1<<3 | 2, 7},
		"before any field": {1<<3 | 2, 7},
		"an open group":    {1<<3 | 3, 2<<3 | 2, 1, 'x'},
	} {
		got, err := answersOf(t, nil, mw, b)
		if rpc.StatusOf(err).Code() != codes.Internal || len(got) != 0 {
			t.Errorf("%s: %x, %v", what, got, err)
		}
	}
}

// TestRedactUnlessScope has callers that see more than others.
func TestRedactUnlessScope(t *testing.T) {
	mw := transform.Response(transform.ResponseConfig{Redact: []transform.Conditional{
		{Paths: paths(t, everything(), "data"), Scope: "a"}, {Paths: paths(t, everything(), "int32", "nested.text"), Scope: "z"},
	}})
	b := wire(t, &bankv1.Everything{Text: "t", Data: []byte("d"), Int32: 7, Nested: &bankv1.Everything{Text: "x"}})
	for what, tc := range map[string]struct {
		who  *rpc.Principal
		want *bankv1.Everything
		etag bool
	}{
		"nobody":        {nil, &bankv1.Everything{Text: "t", Nested: &bankv1.Everything{}}, false},
		"no such scope": {&rpc.Principal{}, &bankv1.Everything{Text: "t", Nested: &bankv1.Everything{}}, false},
		"one of two":    {alice(), &bankv1.Everything{Text: "t", Data: []byte("d"), Nested: &bankv1.Everything{}}, false},
		"both":          {&rpc.Principal{Scopes: []string{"z", "a"}}, &bankv1.Everything{Text: "t", Data: []byte("d"), Int32: 7, Nested: &bankv1.Everything{Text: "x"}}, true},
	} {
		r, err := run(t, tc.who, nil, nil, answering(metadata.MD{"etag": {`W/"1"`}}, nil, nil, b), mw)
		if err != nil {
			t.Fatal(err)
		}
		var got bankv1.Everything
		if err := proto.Unmarshal(r.Messages[0].Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, &got, protocmp.Transform()); diff != "" || (r.Header["etag"] != nil) != tc.etag {
			t.Errorf("%s: etag %q, %s", what, r.Header["etag"], diff)
		}
	}
}

// TestRedactedTag: the backend's tag, which is of the whole, is not that of an answer from which something is taken out.
func TestRedactedTag(t *testing.T) {
	b := wire(t, &bankv1.Everything{Text: "t", Data: []byte("d")})
	r, err := run(t, nil, nil, nil, answering(metadata.MD{"etag": {`"1"`}, "x-kept": {"1"}}, nil, nil, b), transform.Redact(paths(t, everything(), "data")))
	if err != nil || r.Header["etag"] != nil || r.Header["x-kept"] == nil {
		t.Errorf("%v, %v", r.Header, err)
	}
}

// counted is a buffer that counts its references.
type counted struct {
	mem.Buffer
	refs *int
}

func (c counted) Ref()  { *c.refs++ }
func (c counted) Free() { *c.refs-- }

// TestReferences has every buffer released once, whatever becomes of its message.
func TestReferences(t *testing.T) {
	whole := wire(t, &bankv1.Everything{Text: "t", Data: make([]byte, 5000)})
	for what, b := range map[string][]byte{"changed": whole, "unchanged": wire(t, &bankv1.Everything{Int64: 1}), "unreadable": {2<<3 | 2, 7}} {
		for name, mw := range map[string]rpc.Middleware{
			"redact": transform.Redact(paths(t, everything(), "text")),
			"fill":   fill(t, transform.FieldConfig{Path: "text", Value: "v", Default: true}, transform.FieldConfig{Path: "int32", Value: "1"}),
		} {
			refs := 1
			m := rpc.MessageOf(mem.BufferSlice{counted{mem.SliceBuffer(b), &refs}})
			var out rpc.Message
			if name == "redact" {
				r, _ := rpc.Local(t.Context(), mw(func(ctx context.Context, call *rpc.Call) error { return call.Stream.Send(ctx, m) }), descriptors.Opaque("/a.B/C"), nil)
				if len(r.Messages) > 0 {
					out = r.Messages[0]
				}
			} else {
				_, _ = rpc.Local(t.Context(), mw(func(ctx context.Context, call *rpc.Call) (err error) {
					out, err = call.Stream.Recv(ctx)
					return err
				}), descriptors.Opaque("/a.B/C"), nil, m)
			}
			out.Release()
			if refs != 0 {
				t.Errorf("%s, %s: %d references are left", name, what, refs)
			}
		}
	}
}
