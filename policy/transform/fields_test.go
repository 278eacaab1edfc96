package transform_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"transom/descriptors"
	"transom/policy/transform"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
)

func fill(t testing.TB, cfgs ...transform.FieldConfig) rpc.Middleware {
	t.Helper()
	var fields []*transform.Field
	for _, cfg := range cfgs {
		f, err := transform.NewField(everything(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		fields = append(fields, f)
	}
	mw, err := transform.Request(transform.RequestConfig{Fields: fields})
	if err != nil {
		t.Fatal(err)
	}
	return mw
}

func wire(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFields(t *testing.T) {
	type fc = transform.FieldConfig
	type ev = bankv1.Everything
	for _, tc := range []struct {
		what     string
		in, want *ev
		cfg      []fc
	}{
		{"text from a claim", &ev{Text: "victim"}, &ev{Text: "alice"}, []fc{{Path: "text", Claim: "sub"}}},
		{"empty request", &ev{}, &ev{Text: "alice"}, []fc{{Path: "text", Claim: "sub"}}},
		{"a template", &ev{}, &ev{Text: "shop of Öl 50%"}, []fc{{Path: "text", Value: "{consumer} of {claims.org.name}"}}},
		{"zero over a value", &ev{Int32: 7, Text: "x", Flag: true, Double: 1}, &ev{}, []fc{{Path: "int32", Value: "0"}, {Path: "text"}, {Path: "flag", Value: "false"}, {Path: "double", Value: "0"}}},
		{"every scalar", &ev{}, &ev{
			Data: []byte("raw"), Flag: true, Int32: -1, Sint32: -2, Sfixed32: -3, Uint32: 4, Fixed32: 5, Int64: -6, Sint64: -7, Sfixed64: -8,
			Uint64: math.MaxUint64, Fixed64: 9, Float: 0.5, Double: -1.5, Kind: bankv1.Account_KIND_SAVINGS,
		}, []fc{
			{Path: "data", Value: "raw"},
			{Path: "flag", Value: "true"},
			{Path: "int32", Value: "-1"},
			{Path: "sint32", Value: "-2"},
			{Path: "sfixed32", Value: "-3"},
			{Path: "uint32", Value: "4"},
			{Path: "fixed32", Value: "5"},
			{Path: "int64", Value: "-6"},
			{Path: "sint64", Value: "-7"},
			{Path: "sfixed64", Value: "-8"},
			{Path: "uint64", Value: "18446744073709551615"},
			{Path: "fixed64", Value: "9"},
			{Path: "float", Value: "0.5"},
			{Path: "double", Value: "-1.5"},
			{Path: "kind", Value: "KIND_SAVINGS"},
		}},
		{"enums by number, and from a claim", &ev{}, &ev{Kind: 3, Nested: &ev{Kind: 2}}, []fc{{Path: "kind", Value: "3"}, {Path: "nested.kind", Claim: "kind"}}},
		{"numbers from claims", &ev{}, &ev{Int32: 42, Int64: 1e15, Double: 0.5, Flag: true, Text: "42"}, []fc{
			{Path: "int32", Claim: "age"}, {Path: "int64", Claim: "big"}, {Path: "double", Claim: "half"}, {Path: "flag", Claim: "ok"}, {Path: "text", Claim: "age"},
		}},
		{
			"nested, merged", &ev{Nested: &ev{Text: "victim", Int32: 1, Nested: &ev{Text: "inner", Flag: true}}}, &ev{Nested: &ev{Text: "alice", Int32: 1, Nested: &ev{Text: "7", Flag: true}}},
			[]fc{{Path: "nested.text", Claim: "sub"}, {Path: "nested.nested.text", Claim: "org.id"}},
		},
		{"nested, made", &ev{Text: "x"}, &ev{Text: "x", Nested: &ev{Nested: &ev{Text: "alice"}}}, []fc{{Path: "nested.nested.text", Claim: "sub"}}},
		{"by JSON name", &ev{}, &ev{Renamed: "v"}, []fc{{Path: "otherName", Value: "v"}}},
		{"optional", &ev{OptionalText: proto.String("x")}, &ev{OptionalText: proto.String("")}, []fc{{Path: "optional_text"}}},
		{"a wrapper", &ev{}, &ev{StringValue: wrapperspb.String("alice")}, []fc{{Path: "string_value.value", Claim: "sub"}}},
		{"a oneof, another member", &ev{Choice: &bankv1.Everything_ChoiceNumber{ChoiceNumber: 7}}, &ev{Choice: &bankv1.Everything_ChoiceText{ChoiceText: "alice"}}, []fc{{Path: "choice_text", Claim: "sub"}}},
		{"a oneof, a message member", &ev{Choice: &bankv1.Everything_ChoiceMessage{ChoiceMessage: &ev{Text: "x"}}}, &ev{Choice: &bankv1.Everything_ChoiceText{ChoiceText: "alice"}}, []fc{{Path: "choice_text", Claim: "sub"}}},
		{"default, absent", &ev{}, &ev{Text: "alice"}, []fc{{Path: "text", Claim: "sub", Default: true}}},
		{"default, present", &ev{Text: "own"}, &ev{Text: "own"}, []fc{{Path: "text", Claim: "sub", Default: true}}},
		{"default, optional and empty", &ev{OptionalText: proto.String("")}, &ev{OptionalText: proto.String("")}, []fc{{Path: "optional_text", Value: "d", Default: true}}},
		{"default, no value", &ev{}, &ev{}, []fc{{Path: "text", Claim: "none", Default: true}, {Path: "int32", Claim: "sub", Default: true}}},
		{"default, nested", &ev{Nested: &ev{Int32: 1}}, &ev{Nested: &ev{Int32: 1, Text: "d"}}, []fc{{Path: "nested.text", Value: "d", Default: true}, {Path: "nested.int32", Value: "2", Default: true}}},
		{"default of a oneof, none chosen", &ev{}, &ev{Choice: &bankv1.Everything_ChoiceNumber{ChoiceNumber: 5}}, []fc{{Path: "choice_number", Value: "5", Default: true}}},
		{"default of a oneof, another chosen", &ev{Choice: &bankv1.Everything_ChoiceText{}}, &ev{Choice: &bankv1.Everything_ChoiceText{}}, []fc{{Path: "choice_number", Value: "5", Default: true}}},
		{"default and forced", &ev{Int32: 1}, &ev{Int32: 2, Text: "d"}, []fc{{Path: "text", Value: "d", Default: true}, {Path: "int32", Value: "2"}}},
	} {
		for _, size := range []int{0, 8 << 10} { // copied, and linked
			in, want := proto.Clone(tc.in).(*ev), proto.Clone(tc.want).(*ev)
			in.Datas, want.Datas = [][]byte{make([]byte, size)}, [][]byte{make([]byte, size)}
			got, err := received(t, alice(), nil, fill(t, tc.cfg...), wire(t, in), wire(t, in))
			if err != nil || len(got) != 2 || !bytes.Equal(got[0], got[1]) {
				t.Fatalf("%s: %d messages, %v", tc.what, len(got), err)
			}
			var out ev
			if err := proto.Unmarshal(got[0], &out); err != nil {
				t.Fatalf("%s: %v", tc.what, err)
			}
			if diff := cmp.Diff(want, &out, protocmp.Transform()); diff != "" {
				t.Errorf("%s: %s", tc.what, diff)
			}
		}
	}
}

// TestOddOrder has messages that say a field several times.
func TestOddOrder(t *testing.T) {
	field := func(num protowire.Number, v string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), v)
	}
	varint := func(num protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
	}
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	byDefault := fill(t, transform.FieldConfig{Path: "text", Value: "d", Default: true}, transform.FieldConfig{Path: "int32", Value: "9", Default: true}, transform.FieldConfig{Path: "nested.text", Value: "n", Default: true},
		transform.FieldConfig{Path: "fixed32", Value: "1", Default: true}, transform.FieldConfig{Path: "data", Value: "b", Default: true})
	for what, b := range map[string][]byte{
		"empty after a value":    cat(field(1, "x"), field(1, "")),
		"a value after empty":    cat(field(1, ""), field(1, "x")),
		"of another type":        cat(varint(1, 7), varint(4, 0)),
		"zero in many bytes":     cat([]byte{4 << 3, 0x80, 0x80, 0}),
		"cut to 32 bits":         varint(4, 1<<32),
		"the top bit only":       protowire.AppendFixed32(protowire.AppendTag(nil, 8, protowire.Fixed32Type), 1<<31),
		"a byte of the top bit":  field(2, "\x80"),
		"a message in two parts": cat(field(17, string(field(1, "x"))), field(17, string(varint(4, 1)))),
		"a message twice":        cat(field(17, string(field(1, "x"))), field(17, string(field(1, "")))),
		"a group of that number": cat(protowire.AppendTag(nil, 17, protowire.StartGroupType), field(1, "x"), protowire.AppendTag(nil, 17, protowire.EndGroupType)),
	} {
		got, err := received(t, nil, nil, byDefault, b)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		checkDefaults(t, b, got[0])
	}
}

// checkDefaults compares with what the decoded message says is absent.
func checkDefaults(t *testing.T, before, after []byte) {
	t.Helper()
	var want, got bankv1.Everything
	if proto.Unmarshal(before, &want) != nil {
		return
	}
	if err := proto.Unmarshal(after, &got); err != nil {
		t.Fatalf("%x became %x: %v", before, after, err)
	}
	n := want.GetNested()
	if n.GetText() == "" {
		if n == nil {
			want.Nested = &bankv1.Everything{}
		}
		want.Nested.Text = "n"
	}
	if want.Text == "" {
		want.Text = "d"
	}
	if want.Int32 == 0 {
		want.Int32 = 9
	}
	if want.Fixed32 == 0 {
		want.Fixed32 = 1
	}
	if len(want.Data) == 0 {
		want.Data = []byte("b")
	}
	if diff := cmp.Diff(&want, &got, protocmp.Transform()); diff != "" {
		t.Errorf("%x became %x: %s", before, after, diff)
	}
}

// TestUnfinished has messages that would swallow what is appended to them.
func TestUnfinished(t *testing.T) {
	mw := fill(t, transform.FieldConfig{Path: "text", Value: "alice"})
	victim := wire(t, &bankv1.Everything{Text: "victim"})
	for what, tail := range map[string][]byte{
		"a length without its bytes": {2<<3 | 2, 7},
		"an open group":              {100<<3&0x7F | 3 | 0x80, 100 << 3 >> 7},
		"half a tag":                 {0x80},
		"a closed group":             {1<<3 | 4},
		"half a varint":              {4 << 3, 0x80},
		"field number 0":             {0, 0},
		"half a fixed32":             {14<<3 | 5, 1, 2},
	} {
		_, err := received(t, nil, nil, mw, append(bytes.Clone(victim), tail...))
		if st := rpc.StatusOf(err); st.Code() != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestSeveralBuffers has a message in pieces, and one that is shared.
func TestSeveralBuffers(t *testing.T) {
	in := &bankv1.Everything{Text: "victim", Data: make([]byte, 5000)}
	b := wire(t, in)
	in.Text, in.Int32 = "alice", 9
	mw := fill(t, transform.FieldConfig{Path: "text", Value: "alice"}, transform.FieldConfig{Path: "int32", Value: "9", Default: true})
	pieces := rpc.MessageOf(mem.BufferSlice{mem.SliceBuffer(b[:3]), mem.SliceBuffer(b[3:4000]), mem.SliceBuffer(b[4000:])})
	shared := rpc.NewMessage(b).Share()
	_, err := rpc.Local(t.Context(), mw(func(ctx context.Context, call *rpc.Call) error {
		for range 2 {
			m, err := call.Stream.Recv(ctx)
			if err != nil {
				return err
			}
			var out bankv1.Everything
			if err := proto.Unmarshal(m.Bytes(), &out); err != nil {
				return err
			}
			if !proto.Equal(in, &out) {
				t.Errorf("%v", &out)
			}
			m.Release()
		}
		return nil
	}), descriptors.Opaque("/a.B/C"), nil, pieces, shared)
	if err != nil {
		t.Error(err)
	}
	if !bytes.Equal(shared.Bytes(), b) {
		t.Error("the client's message was changed")
	}
}

func TestForcedWithoutValue(t *testing.T) {
	for what, cfg := range map[string]transform.FieldConfig{
		"nobody":               {Path: "text", Claim: "sub"},
		"a template of nobody": {Path: "text", Value: "of {consumer}"},
	} {
		if _, err := received(t, nil, nil, fill(t, cfg), wire(t, &bankv1.Everything{Text: "victim"})); rpc.StatusOf(err).Code() != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, cfg := range map[string]transform.FieldConfig{
		"no claim":        {Path: "text", Claim: "none"},
		"a list":          {Path: "text", Claim: "aud"},
		"no number":       {Path: "int32", Claim: "sub"},
		"too large":       {Path: "int32", Claim: "big"},
		"not whole":       {Path: "int64", Claim: "half"},
		"no enum value":   {Path: "kind", Claim: "sub"},
		"no bool":         {Path: "flag", Claim: "sub"},
		"negative":        {Path: "uint32", Value: "-{claims.age}"},
		"metadata absent": {Path: "text", Value: "{metadata.x-none}"},
	} {
		_, err := received(t, alice(), metadata.MD{"x-in": {"a"}}, fill(t, cfg), wire(t, &bankv1.Everything{Text: "victim"}))
		if st := rpc.StatusOf(err); st.Code() != codes.PermissionDenied || !strings.Contains(st.Message(), cfg.Path) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestFieldFaults(t *testing.T) {
	for _, tc := range []struct {
		cfg    transform.FieldConfig
		want   string
		absent bool
	}{
		{transform.FieldConfig{Path: "txt"}, `field: txt: bank.v1.Everything has no field "txt"`, true},
		{transform.FieldConfig{Path: "nested.txt"}, `field: nested.txt: bank.v1.Everything has no field "txt"`, true},
		{transform.FieldConfig{Path: "text.x"}, `field: text.x: bank.v1.Everything.text is no message, so there is no x in it`, true},
		{transform.FieldConfig{Path: "texts"}, "field: texts is a list or map", false},
		{transform.FieldConfig{Path: "text_map"}, "field: text_map is a list or map", false},
		{transform.FieldConfig{Path: "list.text"}, "field: list.text: bank.v1.Everything.list is a list or map", false},
		{transform.FieldConfig{Path: "message_map.text"}, "field: message_map.text: bank.v1.Everything.message_map is a list or map", false},
		{transform.FieldConfig{Path: "nested"}, "field: nested is a message; name a field in it", false},
		{transform.FieldConfig{Path: "choice_message.text"}, "field: choice_message.text: bank.v1.Everything.choice_message is one choice of choice", false},
		{transform.FieldConfig{Path: "int32", Value: "x"}, `value: int32: "x" is not a whole number of 32 bits`, false},
		{transform.FieldConfig{Path: "int32", Value: "2147483648"}, `value: int32: "2147483648" is not a whole number of 32 bits`, false},
		{transform.FieldConfig{Path: "uint64", Value: "-1"}, `value: uint64: "-1" is not a whole number of 64 bits that is not negative`, false},
		{transform.FieldConfig{Path: "double", Value: "x"}, `value: double: "x" is not a number`, false},
		{transform.FieldConfig{Path: "flag", Value: "1"}, `value: flag: "1" is not true or false`, false},
		{transform.FieldConfig{Path: "kind", Value: "9"}, `value: kind: "9" is not a value of bank.v1.Account.Kind`, false},
		{transform.FieldConfig{Path: "text", Value: "\xff"}, `value: text: "\xff" is not UTF-8 text`, false},
		{transform.FieldConfig{Path: "text", Value: "{x}"}, "value: column 2: there is no {x}", false},
	} {
		_, err := transform.NewField(everything(), tc.cfg)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) || errors.Is(err, rpc.ErrNoField) != tc.absent {
			t.Errorf("%+v: %v, want %s", tc.cfg, err, tc.want)
		}
	}
	for _, pair := range [][2]string{{"text", "text"}, {"nested.text", "nested.text"}, {"choice_text", "choice_number"}, {"renamed", "otherName"}} {
		var fields []*transform.Field
		for _, path := range pair {
			f, err := transform.NewField(everything(), transform.FieldConfig{Path: path, Claim: "sub"})
			if err != nil {
				t.Fatal(err)
			}
			fields = append(fields, f)
		}
		if _, err := transform.Request(transform.RequestConfig{Fields: fields}); err == nil || !strings.Contains(err.Error(), "is filled in twice") {
			t.Errorf("%q: %v", pair, err)
		}
	}
}

// FuzzFill holds filling in to what decoding says.
func FuzzFill(f *testing.F) {
	f.Add(wire(f, &bankv1.Everything{Text: "victim", Nested: &bankv1.Everything{Text: "x"}, Choice: &bankv1.Everything_ChoiceNumber{ChoiceNumber: 1}}))
	f.Add([]byte{2<<3 | 2, 7})
	forced := []transform.FieldConfig{{Path: "text", Value: "alice"}, {Path: "nested.int32", Value: "7"}, {Path: "choice_text", Value: "c"}, {Path: "nested.nested.double", Value: "0"}}
	mw := fill(f, forced...)
	byDefault := fill(f, transform.FieldConfig{Path: "text", Value: "d", Default: true}, transform.FieldConfig{Path: "int32", Value: "9", Default: true}, transform.FieldConfig{Path: "nested.text", Value: "n", Default: true},
		transform.FieldConfig{Path: "fixed32", Value: "1", Default: true}, transform.FieldConfig{Path: "data", Value: "b", Default: true})
	f.Fuzz(func(t *testing.T, b []byte) {
		var want bankv1.Everything
		readable := proto.Unmarshal(b, &want) == nil
		got, err := received(t, nil, nil, mw, b)
		if err != nil {
			if readable {
				t.Errorf("%x is refused: %v", b, err)
			}
			return
		}
		var out bankv1.Everything
		if err := proto.Unmarshal(got[0], &out); err != nil {
			if readable {
				t.Errorf("%x became %x: %v", b, got[0], err)
			}
			return
		}
		if out.GetText() != "alice" || out.GetNested().GetInt32() != 7 || out.GetChoiceText() != "c" || out.GetNested().GetNested() == nil || out.GetNested().GetNested().GetDouble() != 0 {
			t.Errorf("%x: a forced field is %v", b, &out)
		}
		set := func(m protoreflect.Message, name protoreflect.Name, v protoreflect.Value) {
			m.Set(m.Descriptor().Fields().ByName(name), v)
		}
		r := want.ProtoReflect()
		set(r, "text", protoreflect.ValueOfString("alice"))
		set(r, "choice_text", protoreflect.ValueOfString("c"))
		n := r.Mutable(r.Descriptor().Fields().ByName("nested")).Message()
		set(n, "int32", protoreflect.ValueOfInt32(7))
		set(n.Mutable(n.Descriptor().Fields().ByName("nested")).Message(), "double", protoreflect.ValueOfFloat64(0))
		if readable && !proto.Equal(&want, &out) && !strings.Contains(want.String(), "nan") {
			t.Errorf("%x: %v, want %v", b, &out, &want)
		}
		got, err = received(t, nil, nil, byDefault, b)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(want.String(), "nan") {
			checkDefaults(t, b, got[0])
		}
	})
}
