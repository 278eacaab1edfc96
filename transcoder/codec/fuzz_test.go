package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	benchv1 "transom/proto/transom/bench/v1"
)

// fuzzSchema is a random schema that has everything, with the benchmark's messages.
func fuzzSchema(f *testing.F) (*schema, []protoreflect.MessageDescriptor) {
	f.Helper()
	r := rand.New(rand.NewPCG(11, 3))
	s := randomSchema(f, r)
	return s, s.messages
}

// FuzzJSON: wire bytes become the JSON that protojson makes of them, or are refused as protojson does.
func FuzzJSON(f *testing.F) {
	s, messages := fuzzSchema(f)
	r := rand.New(rand.NewPCG(1, 1))
	for n := range 200 {
		m := dynamicpb.NewMessage(messages[n%len(messages)])
		budget := 30
		s.fill(r, m, 3, &budget)
		b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(n), shuffle(r, m.Descriptor(), b, 3))
	}
	f.Fuzz(func(t *testing.T, which uint8, wire []byte) {
		md := messages[int(which)%len(messages)]
		o := &Options{MaxDepth: 10000, EmitDefaults: which&0x80 != 0}
		got, gotErr := s.types.Message(md).AppendJSON(nil, wire, o)
		want, wantErr := oracleJSON(s, md, wire, o)
		if errors.Is(wantErr, errPanicked) {
			return
		}
		if (gotErr == nil) != (wantErr == nil) || gotErr == nil && !bytes.Equal(got, want) {
			t.Errorf("%s %x\ngot  %s %v\nwant %s %v", md.FullName(), wire, got, gotErr, want, wantErr)
		}
	})
}

// FuzzWire: JSON text becomes the message that protojson makes of it, or is refused as protojson does.
func FuzzWire(f *testing.F) {
	s, messages := fuzzSchema(f)
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 200 {
		m := dynamicpb.NewMessage(messages[n%len(messages)])
		budget := 30
		s.fill(r, m, 3, &budget)
		b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		if text, err := s.types.Message(messages[n%len(messages)]).AppendJSON(nil, b, nil); err == nil {
			f.Add(uint8(n), text)
			f.Add(uint8(n), mangle(r, text))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, text []byte) {
		md := messages[int(which)%len(messages)]
		o := &Options{MaxDepth: 10000, DiscardUnknown: which&0x80 != 0}
		got, gotErr := s.types.Message(md).AppendWire(nil, text, o)
		want, wantErr := oracleWire(s, md, text, o)
		if errors.Is(wantErr, errPanicked) || wantErr == nil && gotErr != nil && !json.Valid(text) {
			return
		}
		if (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("%s %s\ngot  %x %v\nwant %x %v", md.FullName(), text, got, gotErr, want, wantErr)
		}
		if gotErr != nil {
			return
		}
		a, errA := oracleJSON(s, md, got, &Options{})
		b, errB := oracleJSON(s, md, want, &Options{})
		if (errA == nil) != (errB == nil) || !bytes.Equal(a, b) {
			t.Errorf("%s %s\ngot  %x %s %v\nwant %x %s %v", md.FullName(), text, got, a, errA, want, b, errB)
		}
	})
}

// FuzzText: what one parameter may say, the field's JSON says back.
func FuzzText(f *testing.F) {
	types := NewTypes(dynamicpb.NewTypes(protoregistry.GlobalFiles))
	var fields []*Field
	for _, m := range []proto.Message{&benchv1.Small{}, &benchv1.Numbers{}, &benchv1.WellKnown_Event{}, &benchv1.Blob{}} {
		fds := descriptor(m).Fields()
		for i := range fds.Len() {
			fields = append(fields, types.Field(fds.Get(i)))
		}
	}
	for i, s := range []string{"a", "1", "1.5", "true", "CURRENCY_EUR", "2020-01-01T00:00:00Z", "1s", "a.b,c", `{"a":[1]}`, "QQ==", "-1", "1e400", ""} {
		for n := range fields {
			f.Add(uint8(n+i), s)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, s string) {
		g := fields[int(which)%len(fields)]
		wire, err := g.AppendText(nil, s)
		if err != nil {
			return
		}
		text, err := g.AppendJSON(nil, wire, nil)
		if err != nil {
			t.Fatalf("%s %q: %x has no JSON form: %v", g.Descriptor().FullName(), s, wire, err)
		}
		back, err := g.AppendWire(nil, text, nil)
		if err != nil {
			t.Fatalf("%s %q: %s cannot be read: %v", g.Descriptor().FullName(), s, text, err)
		}
		if again, err := g.AppendJSON(nil, back, nil); err != nil || !bytes.Equal(again, text) {
			t.Errorf("%s %q: got %s, %v, want %s", g.Descriptor().FullName(), s, again, err, text)
		}
	})
}
