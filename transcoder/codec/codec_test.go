package codec

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/typepb"

	benchv1 "transom/proto/transom/bench/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTypes() *Types { return NewTypes(dynamicpb.NewTypes(protoregistry.GlobalFiles)) }

func descriptor(m proto.Message) protoreflect.MessageDescriptor { return m.ProtoReflect().Descriptor() }

func fieldOf(t *testing.T, types *Types, m proto.Message, name string) *Field {
	t.Helper()
	fd := descriptor(m).Fields().ByName(protoreflect.Name(name))
	if fd == nil {
		t.Fatalf("no field %s", name)
	}
	return types.Field(fd)
}

// TestAccepts reads JSON and writes it again; want is empty when it comes back the same.
func TestAccepts(t *testing.T) {
	types := newTypes()
	for _, c := range []struct {
		msg        proto.Message
		text, want string
	}{
		{&benchv1.Small{}, `{}`, ""},
		{&benchv1.Small{}, " \n{ \"id\" : \"a\" ,\t\"active\":true}\r\n", `{"id":"a","active":true}`},
		{&benchv1.Small{}, `{"display_name":"a"}`, `{"displayName":"a"}`},
		{&benchv1.Small{}, `{"\u0064isplayName":"\u00e9\ud83c\udf89\/"}`, `{"displayName":"é🎉/"}`},
		{&benchv1.Small{}, `{"id":null,"tags":null,"currency":null}`, `{}`},
		{&benchv1.Small{}, `{"balance":1e3,"revision":"10.0e-1"}`, `{"balance":"1000","revision":1}`},
		{&benchv1.Small{}, `{"balance":9007199254740993}`, `{"balance":"9007199254740993"}`},
		{&benchv1.Small{}, `{"balance":-9223372036854775808}`, `{"balance":"-9223372036854775808"}`},
		{&benchv1.Small{}, `{"rate":"NaN"}`, ""},
		{&benchv1.Small{}, `{"rate":-0}`, `{"rate":-0}`},
		{&benchv1.Small{}, `{"rate":"1e-7"}`, `{"rate":1e-7}`},
		{&benchv1.Small{}, `{"currency":2}`, `{"currency":"CURRENCY_USD"}`},
		{&benchv1.Small{}, `{"currency":77}`, ""},
		{&benchv1.Small{}, `{"id":"\u0000\u001f\b\f\n\r\t\"\\\u007f"}`, "{\"id\":\"\\u0000\\u001f\\b\\f\\n\\r\\t\\\"\\\\\u007f\"}"},
		{&benchv1.Order{}, `{"labels":{"b":"2","a":"1"},"adjustments":{"+1":{},"-01":{}}}`, `{"labels":{"a":"1","b":"2"},"adjustments":{"-1":{},"1":{}}}`},
		{&benchv1.Order{}, `{"card":null,"iban":"x"}`, `{"iban":"x"}`},
		{&benchv1.Blob{}, `{"content":"-_-_"}`, `{"content":"+/+/"}`},
		{&benchv1.Blob{}, `{"content":"QQ"}`, `{"content":"QQ=="}`},
		{&benchv1.Blob{}, `{"content":"QU\nI=\n\n\n"}`, `{"content":"QUI="}`},
		{&benchv1.WellKnown_Event{}, `{"at":"2020-02-29T23:59:59.5+01:00"}`, `{"at":"2020-02-29T22:59:59.500Z"}`},
		{&benchv1.WellKnown_Event{}, `{"at":"0001-01-01T00:00:00Z","took":"-0.5s"}`, `{"at":"0001-01-01T00:00:00Z","took":"-0.500s"}`},
		{&benchv1.WellKnown_Event{}, `{"at":"9999-12-31T23:59:59.999999999Z","took":"315576000000s"}`, ""},
		{&benchv1.WellKnown_Event{}, `{"subject":"","count":"0","final":false}`, ""},
		{&benchv1.WellKnown_Event{}, `{"changed":"fooBar,a.bC"}`, ""},
		{&benchv1.WellKnown_Event{}, `{"changed":""}`, ""},
		{&benchv1.WellKnown_Event{}, `{"attributes":{"a":[null,true,1.5,"x",{},[]]}}`, ""},
		{&benchv1.WellKnown_Event{}, `{"detail":{}}`, ""},
		{
			&benchv1.WellKnown_Event{}, `{"detail":{"units":"5","@type":"x/transom.bench.v1.Money"}}`,
			`{"detail":{"@type":"x/transom.bench.v1.Money","units":"5"}}`,
		},
		{&benchv1.WellKnown_Event{}, `{"detail":{"@type":"x/google.protobuf.Duration","value":"1s"}}`, ""},
		{
			&benchv1.WellKnown_Event{}, `{"detail":{"@type":"x/google.protobuf.Any","value":{"@type":"x/google.protobuf.Value","value":null}}}`, "",
		},
		{&benchv1.WellKnown_Event{}, `{"detail":{"@type":"x/google.protobuf.Empty","value":{}}}`, `{"detail":{"@type":"x/google.protobuf.Empty"}}`},
		{&structpb.Value{}, `null`, ""},
		{&structpb.ListValue{}, `[1,[2,[3]]]`, ""},
	} {
		m := types.Message(descriptor(c.msg))
		wire, err := m.AppendWire(nil, []byte(c.text), nil)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		got, err := m.AppendJSON(nil, wire, nil)
		want := c.want
		if want == "" {
			want = c.text
		}
		if err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v, want %s", c.text, got, err, want)
		}
	}
}

// TestRefuses gives text that must be refused, with what the error says.
func TestRefuses(t *testing.T) {
	types := newTypes()
	for _, c := range []struct {
		msg        proto.Message
		text, want string
	}{
		{&benchv1.Small{}, ``, `expected an object, found the end (line 1, column 1)`},
		{&benchv1.Small{}, `null`, `expected an object, found null (line 1, column 1)`},
		{&benchv1.Small{}, `[]`, `expected an object, found an array (line 1, column 1)`},
		{&benchv1.Small{}, `{} x`, `expected the end, found x (line 1, column 4)`},
		{&benchv1.Small{}, "\ufeff{}", "expected an object, found a byte order mark (line 1, column 1)"},
		{&benchv1.Small{}, "{\n\"id\":\"a\",\n\"nope\":1}", `nope: unknown field (line 3, column 1)`},
		{&benchv1.Order{}, `{"items":[{},{"unitPrice":{"no pe":1}}]}`, `items[1].unitPrice["no pe"]: unknown field (line 1, column 28)`},
		{&benchv1.Small{}, `{"id":"a","id":"b"}`, `id: duplicate field (line 1, column 11)`},
		{&benchv1.Small{}, `{"displayName":"a","display_name":"b"}`, `display_name: duplicate field`},
		{&benchv1.Small{}, `{"id":"a",}`, `expected a field name, found }`},
		{&benchv1.Small{}, `{'id':1}`, `expected a field name, found '`},
		{&benchv1.Small{}, `{"id":"\ud800"}`, `id: malformed escape in a string`},
		{&benchv1.Small{}, "{\"id\":\"\n\"}", `id: control character in a string`},
		{&benchv1.Small{}, "{\"id\":\"\xff\"}", `id: not valid UTF-8`},
		{&benchv1.Small{}, `{"id":"a`, `id: a string without end`},
		{&benchv1.Small{}, `{"revision":1.5}`, `revision: expected a 32-bit integer, found 1.5`},
		{&benchv1.Small{}, `{"revision":2147483648}`, `revision: out of range: 2147483648`},
		{&benchv1.Small{}, `{"revision":" 1"}`, `revision: expected a 32-bit integer, found " 1"`},
		{&benchv1.Small{}, `{"revision":""}`, `revision: expected a 32-bit integer, found ""`},
		{&benchv1.Small{}, `{"revision":01}`, `revision: expected an integer, found 01`},
		{&benchv1.Small{}, `{"revision":+1}`, `revision: expected an integer, found +1`},
		{&benchv1.Small{}, `{"revision":0x1}`, `revision: expected an integer, found 0x1`},
		{&benchv1.Small{}, `{"revision":1E}`, `revision: expected an integer, found 1E`},
		{&benchv1.Small{}, `{"rate":NaN}`, `rate: expected a number, found NaN`},
		{&benchv1.Small{}, `{"rate":1e400}`, `rate: out of range: 1e400`},
		{&benchv1.Small{}, `{"active":"true"}`, `active: expected true or false, found "true"`},
		{&benchv1.Small{}, `{"currency":"XXX"}`, `currency: "XXX" is not a value of enum transom.bench.v1.Currency`},
		{&benchv1.Small{}, `{"tags":["a",null]}`, `tags[1]: expected a string, found null`},
		{&benchv1.Order{}, `{"items":[{},{},{"unitPrice":{"units":"x"}}]}`, `items[2].unitPrice.units: expected a 64-bit integer, found "x" (line 1, column 39)`},
		{&benchv1.Order{}, `{"card":{},"iban":"x"}`, `iban: another field of oneof payment is set already`},
		{&benchv1.Order{}, `{"labels":{"a":"1","\u0061":"2"}}`, `labels: duplicate map key`},
		{&benchv1.Order{}, `{"labels":{"a b":null}}`, `labels["a b"]: expected a string, found null`},
		{&benchv1.Order{}, `{"adjustments":{"1":{},"01":{}}}`, `duplicate map key "01"`},
		{&benchv1.Order{}, `{"adjustments":{"x":{}}}`, `expected a map key of type int32, found "x"`},
		{&benchv1.Blob{}, "{\"content\":\"QU\nI=\n\n\n\"}", `control character in a string`},
		{&benchv1.Blob{}, `{"content":"A"}`, `content: expected base64, found "A"`},
		{&benchv1.Blob{}, `{"content":"+_+_"}`, `content: expected base64`},
		{&benchv1.WellKnown_Event{}, `{"at":"2020-02-30T00:00:00Z"}`, `at: expected a timestamp`},
		{&benchv1.WellKnown_Event{}, `{"at":"2020-01-01t00:00:00Z"}`, `at: expected a timestamp`},
		{&benchv1.WellKnown_Event{}, `{"at":"2020-01-01T00:00:60Z"}`, `at: expected a timestamp`},
		{&benchv1.WellKnown_Event{}, `{"at":"2020-01-01T00:00:00.1234567890Z"}`, `at: expected a timestamp`},
		{&benchv1.WellKnown_Event{}, `{"took":"1"}`, `took: expected a duration`},
		{&benchv1.WellKnown_Event{}, `{"took":"315576000001s"}`, `took: expected a duration`},
		{&benchv1.WellKnown_Event{}, `{"took":"1h2m"}`, `took: expected a duration`},
		{&benchv1.WellKnown_Event{}, `{"changed":"foo_bar"}`, `changed: expected field paths`},
		{&benchv1.WellKnown_Event{}, `{"detail":{"units":"5"}}`, `detail: missing "@type"`},
		{&benchv1.WellKnown_Event{}, `{"detail":{"@type":"x/none.Such"}}`, `unknown type "x/none.Such"`},
		{&benchv1.WellKnown_Event{}, `{"detail":{"@type":"x/google.protobuf.Duration"}}`, `missing "value"`},
		{
			&benchv1.WellKnown_Event{}, `{"detail":{"@type":"x/transom.bench.v1.Money","units":"5","@type":"x/transom.bench.v1.Money"}}`,
			`duplicate "@type"`,
		},
	} {
		dst, err := types.Message(descriptor(c.msg)).AppendWire([]byte("kept"), []byte(c.text), nil)
		e, ok := errors.AsType[*Error](err)
		if !ok || !strings.Contains(e.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.text, err, c.want)
		}
		if string(dst) != "kept" {
			t.Errorf("%s: got %q", c.text, dst)
		}
	}
}

// TestBadWire gives wire bytes that have no JSON form.
func TestBadWire(t *testing.T) {
	types := newTypes()
	row := func(units []byte) []byte {
		price := protowire.AppendBytes([]byte{4<<3 | 2}, units)
		first := []byte{1<<3 | 2, 0}
		return append(first, protowire.AppendBytes([]byte{1<<3 | 2}, price)...)
	}
	for _, c := range []struct {
		msg  proto.Message
		wire []byte
		want string
	}{
		{&benchv1.Small{}, []byte{0x0a, 5, 'a'}, "malformed protobuf data"},
		{&benchv1.Small{}, []byte{0x00}, "malformed protobuf data"},
		{&benchv1.Small{}, []byte{0x0c}, "malformed protobuf data"},
		{&benchv1.Small{}, []byte{0x0a, 1, 0xff}, "id: not valid UTF-8"},
		{&benchv1.List{}, row([]byte{0x10}), "rows[1].price: malformed protobuf data"},
		{&benchv1.WellKnown_Event{}, []byte{0x0a, 2, 0x10, 0x80}, "at: malformed protobuf data"},
		{&benchv1.WellKnown_Event{}, []byte("\x0a\x07\x08\x80\x80\x80\x80\x80\x40"), "at: timestamp out of range"},
		{&benchv1.WellKnown_Event{}, []byte("\x12\x0d\x08\x01\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "took: seconds and nanoseconds of a duration differ in sign"},
		{&benchv1.WellKnown_Event{}, []byte("\x32\x05\x0a\x03a_1"), `changed: field mask path has no JSON form: "a_1"`},
		{&benchv1.WellKnown_Event{}, []byte("\x3a\x07\x0a\x05\x0a\x01k\x12\x00"), "attributes.k: a google.protobuf.Value holds nothing"},
		{&benchv1.WellKnown_Event{}, []byte("\x42\x03\x0a\x01x"), `detail: unknown type "x"`},
	} {
		_, err := types.Message(descriptor(c.msg)).AppendJSON(nil, c.wire, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%x: got %v, want %s", c.wire, err, c.want)
		}
	}
}

func TestOptions(t *testing.T) {
	types := newTypes()
	m := types.Message(descriptor(&benchv1.Small{}))
	wire, err := m.AppendWire(nil, []byte(`{"displayName":"a","balance":"5","currency":1}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, `{"displayName":"a","balance":"5","currency":"CURRENCY_EUR"}`},
		{Options{ProtoNames: true}, `{"display_name":"a","balance":"5","currency":"CURRENCY_EUR"}`},
		{Options{EnumNumbers: true, Int64Numbers: true}, `{"displayName":"a","balance":5,"currency":1}`},
		{
			Options{EmitDefaults: true},
			`{"id":"","displayName":"a","balance":"5","revision":0,"active":false,"currency":"CURRENCY_EUR","rate":0,"tags":[],"accountNumber":""}`,
		},
	} {
		if got, err := m.AppendJSON(nil, wire, &c.o); err != nil || string(got) != c.want {
			t.Errorf("%+v: got %s, %v, want %s", c.o, got, err, c.want)
		}
	}
	got, err := m.AppendWire(nil, []byte(`{"x":[{"y":1}],"currency":"NONE","balance":1}`), &Options{DiscardUnknown: true})
	if err != nil || string(got) != "\x18\x01" {
		t.Errorf("got %x, %v", got, err)
	}
}

func TestDepth(t *testing.T) {
	types := newTypes()
	for _, c := range []struct {
		depth, max int
		ok         bool
	}{{100, 0, true}, {101, 0, false}, {5, 5, true}, {6, 5, false}, {2000, 10000, true}} {
		text := strings.Repeat("[", c.depth) + strings.Repeat("]", c.depth)
		m := types.Message(descriptor(&structpb.ListValue{}))
		wire, err := m.AppendWire(nil, []byte(text), &Options{MaxDepth: c.max})
		if (err == nil) != c.ok {
			t.Errorf("depth %d of %d: %v", c.depth, c.max, err)
			continue
		}
		if !c.ok {
			if wire, err = m.AppendWire(nil, []byte(text), &Options{MaxDepth: 10000}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := m.AppendJSON(nil, wire, &Options{MaxDepth: c.max})
		if (err == nil) != c.ok || c.ok && string(got) != text {
			t.Errorf("depth %d of %d, back: %v", c.depth, c.max, err)
		}
	}
}

func TestField(t *testing.T) {
	types := newTypes()
	for _, c := range []struct {
		msg              proto.Message
		field, text, out string
	}{
		{&benchv1.Small{}, "id", `"a"`, `"a"`},
		{&benchv1.Small{}, "id", `null`, `""`},
		{&benchv1.Small{}, "balance", ` 5 `, `"5"`},
		{&benchv1.Small{}, "currency", `"CURRENCY_EUR"`, `"CURRENCY_EUR"`},
		{&benchv1.Small{}, "currency", `0`, `"CURRENCY_UNSPECIFIED"`},
		{&benchv1.Small{}, "tags", `["a","b"]`, `["a","b"]`},
		{&benchv1.Small{}, "tags", `[]`, `[]`},
		{&benchv1.Order{}, "labels", `{"a":"b"}`, `{"a":"b"}`},
		{&benchv1.Order{}, "labels", `{}`, `{}`},
		{&benchv1.Order{}, "total", `{"units":"1"}`, `{"units":"1"}`},
		{&benchv1.Order{}, "total", `{}`, `{}`},
		{&benchv1.Order{}, "total", `null`, `null`},
		{&benchv1.Order{}, "iban", `"x"`, `"x"`},
		{&benchv1.Numbers{}, "ints", `[1,-2]`, `[1,-2]`},
		{&benchv1.WellKnown_Event{}, "subject", `"s"`, `"s"`},
		{&benchv1.WellKnown_Event{}, "at", `"2020-01-01T00:00:00Z"`, `"2020-01-01T00:00:00Z"`},
	} {
		f := fieldOf(t, types, c.msg, c.field)
		wire, err := f.AppendWire(nil, []byte(c.text), nil)
		if err != nil {
			t.Errorf("%s %s: %v", c.field, c.text, err)
			continue
		}
		if got, err := f.AppendJSON(nil, wire, nil); err != nil || string(got) != c.out {
			t.Errorf("%s %s: got %s, %v, want %s", c.field, c.text, got, err, c.out)
		}
	}
	// Records of other fields around it, in pieces, and the oneof's other member after it.
	total := fieldOf(t, types, &benchv1.Order{}, "total")
	wire, err := hex.DecodeString("0a0161" + "5a021005" + "5a021807" + "520162")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := total.AppendJSON(nil, wire, nil); err != nil || string(got) != `{"units":"5","nanos":7}` {
		t.Errorf("got %s, %v", got, err)
	}
	card := fieldOf(t, types, &benchv1.Order{}, "card")
	if got, err := card.AppendJSON(nil, []byte("\x42\x03\x0a\x01n\x4a\x01i"), nil); err != nil || string(got) != `null` {
		t.Errorf("got %s, %v", got, err)
	}
	for _, text := range []string{`{}`, `[1]`, `["a"`, `["a"]]`, ``} {
		if _, err := fieldOf(t, types, &benchv1.Small{}, "tags").AppendWire(nil, []byte(text), nil); err == nil {
			t.Errorf("%s is taken for a list of strings", text)
		}
	}
}

func TestAppendText(t *testing.T) {
	types := newTypes()
	for _, c := range []struct {
		msg               proto.Message
		field, text, want string // the bare JSON of the field, or ! for a refusal
	}{
		{&benchv1.Small{}, "id", "a/b", `"a/b"`},
		{&benchv1.Small{}, "id", "\xff", "!"},
		{&benchv1.Small{}, "balance", "-5", `"-5"`},
		{&benchv1.Small{}, "balance", "5x", "!"},
		{&benchv1.Small{}, "balance", "", "!"},
		{&benchv1.Small{}, "balance", `"5"`, "!"},
		{&benchv1.Small{}, "revision", "2147483648", "!"},
		{&benchv1.Small{}, "active", "true", "true"},
		{&benchv1.Small{}, "active", "1", "!"},
		{&benchv1.Small{}, "active", "True", "!"},
		{&benchv1.Small{}, "currency", "CURRENCY_EUR", `"CURRENCY_EUR"`},
		{&benchv1.Small{}, "currency", "2", `"CURRENCY_USD"`},
		{&benchv1.Small{}, "currency", "EUR", "!"},
		{&benchv1.Small{}, "rate", "1.5", "1.5"},
		{&benchv1.Small{}, "rate", "-Infinity", `"-Infinity"`},
		{&benchv1.Small{}, "rate", "inf", "!"},
		{&benchv1.Small{}, "tags", "x", `["x"]`},
		{&benchv1.Blob{}, "content", "-_8", `"+/8="`},
		{&benchv1.Blob{}, "content", "+/8=", `"+/8="`},
		{&benchv1.Blob{}, "content", "?", "!"},
		{&benchv1.Order{}, "labels", "x", "!"},
		{&benchv1.Order{}, "total", "x", "!"},
		{&benchv1.Numbers{}, "ints", "7", "[7]"},
		{&benchv1.Numbers{}, "floats", "0.1", "[0.1]"},
		{&benchv1.Numbers{}, "floats", "NaN", `["NaN"]`},
		{&benchv1.WellKnown_Event{}, "at", "2020-01-01T00:00:00Z", `"2020-01-01T00:00:00Z"`},
		{&benchv1.WellKnown_Event{}, "at", "yesterday", "!"},
		{&benchv1.WellKnown_Event{}, "took", "1.5s", `"1.500s"`},
		{&benchv1.WellKnown_Event{}, "subject", "s", `"s"`},
		{&benchv1.WellKnown_Event{}, "count", "5", `"5"`},
		{&benchv1.WellKnown_Event{}, "final", "false", `false`},
		{&benchv1.WellKnown_Event{}, "changed", "a.bC,d", `"a.bC,d"`},
		{&benchv1.WellKnown_Event{}, "attributes", `{"a":1}`, `{"a":1}`},
		{&benchv1.WellKnown_Event{}, "attributes", `1`, `!`},
	} {
		f := fieldOf(t, types, c.msg, c.field)
		wire, err := f.AppendText(nil, c.text)
		if c.want == "!" {
			if err == nil {
				t.Errorf("%s %q: got %x, want an error", c.field, c.text, wire)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s %q: %v", c.field, c.text, err)
			continue
		}
		if got, err := f.AppendJSON(nil, wire, nil); err != nil || string(got) != c.want {
			t.Errorf("%s %q: got %s, %v, want %s", c.field, c.text, got, err, c.want)
		}
	}
	// A zero is written, so that it replaces what comes before it.
	if got, err := fieldOf(t, types, &benchv1.Small{}, "balance").AppendText(nil, "0"); err != nil || string(got) != "\x18\x00" {
		t.Errorf("got %x, %v", got, err)
	}
}

func TestMaskPaths(t *testing.T) {
	m := newTypes().Message(descriptor(&benchv1.Order{}))
	for _, c := range []struct {
		text string
		want []string
	}{
		{`{}`, nil},
		{`{"note":"x","billing_address":{"city":"y","lines":[]},"total":null}`, []string{"note", "billing_address.city", "billing_address.lines", "total"}},
		{`{"labels":{"a":"b"},"items":[{"sku":"x"}],"card":{ }}`, []string{"labels", "items", "card"}},
	} {
		if got, err := m.AppendMaskPaths(nil, []byte(c.text), nil); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, %v, want %q", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{`{"nope":1}`, `[]`, `{"note":}`, `{"note":"x"} x`, `{"total":{"units":1}`} {
		if got, err := m.AppendMaskPaths(nil, []byte(text), nil); err == nil {
			t.Errorf("%s: got %q", text, got)
		}
	}
}

// TestTruncated cuts texts and messages at every byte. No part of the text is taken, and nothing panics.
func TestTruncated(t *testing.T) {
	types := newTypes()
	m := types.Message(descriptor(&benchv1.WellKnown_Event{}))
	const text = `{"at":"2020-01-01T00:00:00.5Z","took":"1s","subject":"\u0041\ud83c\udf89","count":"5","final":true,` +
		`"changed":"a,b","attributes":{"a":[1.5e3,null,{"b":"é"}]},"detail":{"units":"5","@type":"x/transom.bench.v1.Money"}}`
	for i := range text {
		if _, err := m.AppendWire(nil, []byte(text[:i]), nil); err == nil {
			t.Errorf("%s is taken", text[:i])
		}
	}
	wire, err := m.AppendWire(nil, []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range wire {
		_, err := m.AppendJSON(nil, wire[:i], nil)
		want := proto.Unmarshal(wire[:i], &benchv1.WellKnown_Event{})
		if want != nil && err == nil {
			t.Errorf("%x is taken", wire[:i])
		}
	}
}

// TestPanickingOracle pins a message on which dynamicpb panics: a map entry whose key comes again with a wrong wire type.
func TestPanickingOracle(t *testing.T) {
	m := newTypes().Message(descriptor(&benchv1.Order{}))
	got, err := m.AppendJSON(nil, []byte("\x32\x05\x0a\x01k\x08\x00"), nil)
	if err != nil || string(got) != `{"labels":{"k":""}}` {
		t.Errorf("got %s, %v", got, err)
	}
}

// TestHostile translates inputs made to be slow, and twice as much of each: time must not grow faster than the input.
func TestHostile(t *testing.T) {
	types := newTypes()
	value := types.Message(descriptor(&structpb.Value{}))
	order := types.Message(descriptor(&benchv1.Order{}))
	event := types.Message(descriptor(&benchv1.WellKnown_Event{}))
	typ := types.Message(descriptor(&typepb.Type{}))
	nest := func(open, inside, end string, n int) string {
		return strings.Repeat(open, n) + inside + strings.Repeat(end, n)
	}
	keys := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"key%d":1`, i)
		}
		return "{" + b.String()[1:] + "}"
	}
	wire := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	backwards := func(n int) []byte { // fields of each message in reverse order
		var b []byte
		for range n {
			b = append(b, wire(&typepb.Type{SourceContext: nil, Oneofs: []string{"o"}})...)
			b = append(b, wire(&typepb.Type{Fields: []*typepb.Field{{Name: "f", Number: 3}}})...)
			b = append(b, wire(&typepb.Type{Name: "n"})...)
		}
		return b
	}
	pieces := func(n int) []byte { // one singular message, merged from n
		return bytes.Repeat([]byte("\x1a\x03\x12\x01c"), n)
	}
	for _, c := range []struct {
		name  string
		do    func(in []byte) error
		input func(n int) []byte
		size  int
	}{
		{"arrays", decode(value), func(n int) []byte {
			return []byte("[" + strings.Repeat(nest("[", "1", "]", 90)+",", n) + "1]")
		}, 400},
		{"long text far down", decode(value), func(n int) []byte {
			return []byte(nest("[", `"`+strings.Repeat("x", n)+`"`, "]", 90))
		}, 200_000},
		{"many keys", decode(value), func(n int) []byte { return []byte(keys(n)) }, 8000},
		{"one long number", decode(value), func(n int) []byte { return append([]byte("0."), bytes.Repeat([]byte("7"), n)...) }, 100_000},
		{"zeros", decode(value), func(n int) []byte { return append([]byte("0."), bytes.Repeat([]byte("0"), n)...) }, 200_000},
		{"long key", decode(value), func(n int) []byte { return []byte(`{"` + strings.Repeat("k", n) + `":1}`) }, 200_000},
		{"escapes", decode(value), func(n int) []byte { return []byte(`"` + strings.Repeat(`\u00e9`, n) + `"`) }, 50_000},
		{"Any inside Any, type last", decode(event), func(n int) []byte {
			text := `"@type":"x/google.protobuf.Empty"`
			for range 40 {
				text = `"value":{` + text + `},"@type":"x/google.protobuf.Any"`
			}
			return []byte(`{"detail":{` + strings.Replace(text, `"@type"`, `"value":{`+strings.Repeat(" ", n)+`},"@type"`, 1) + `}}`)
		}, 100_000},
		{"fields backwards", encode(typ), backwards, 2000},
		{"many pieces", encode(order), pieces, 5000},
		{"map entries backwards", encode(order), func(n int) []byte {
			var b []byte
			for i := range n {
				b = protowire.AppendBytes(append(b, 0x32), fmt.Appendf([]byte("\x0a\x06"), "%06d", n-i))
			}
			return b
		}, 4000},
	} {
		best := func(in []byte) time.Duration {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			least := time.Hour
			for range 7 {
				start := cpuTime(t)
				if err := c.do(in); err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				least = min(least, cpuTime(t)-start)
			}
			return least
		}
		one, four := best(c.input(c.size)), best(c.input(4*c.size))
		if four > 12*one+2*time.Millisecond {
			t.Errorf("%s: %v, four times as much: %v", c.name, one, four)
		}
	}
}

// cpuTime is what the process has used: on a busy machine the clock on the wall says little. The caller must be bound to its
// thread: of other threads, one that it has left among them, what they used in the present tick may be missing.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func decode(m *Message) func(in []byte) error {
	return func(in []byte) error {
		_, err := m.AppendWire(nil, in, nil)
		return err
	}
}

func encode(m *Message) func(in []byte) error {
	return func(in []byte) error {
		_, err := m.AppendJSON(nil, in, nil)
		return err
	}
}

// TestConcurrent uses one Types from many goroutines while it learns types for Any.
func TestConcurrent(t *testing.T) {
	types := newTypes()
	done := make(chan error)
	for i := range 8 {
		go func() {
			m := types.Message(descriptor(&anypb.Any{}))
			names := []string{"transom.bench.v1.Money", "transom.bench.v1.Small", "transom.bench.v1.Order", "google.protobuf.Type"}
			for k := range 200 {
				text := `{"@type":"x/` + names[(i+k)%len(names)] + `"}`
				wire, err := m.AppendWire(nil, []byte(text), nil)
				if err == nil {
					var got []byte
					if got, err = m.AppendJSON(nil, wire, nil); err == nil && string(got) != text {
						err = fmt.Errorf("got %s, want %s", got, text)
					}
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestNestingCost: lists in lists, as deep as they may be, take at most three times as long as lists seven deep with as much text,
// either way; were a level's cost that of all within it, it would be fourteen times. How long either takes beside lists that are
// not nested depends on how many returns a processor foresees.
func TestNestingCost(t *testing.T) {
	m := newTypes().Message(descriptor(&structpb.Value{}))
	deep := []byte("[" + strings.Repeat(strings.Repeat("[", 98)+"1"+strings.Repeat("]", 98)+",", 50) + "1]")
	shallow := []byte("[" + strings.Repeat(strings.Repeat("[", 7)+"1"+strings.Repeat("]", 7)+",", 50*98/7) + "1]")
	deepWire, err := m.AppendWire(nil, deep, nil)
	if err != nil {
		t.Fatal(err)
	}
	shallowWire, err := m.AppendWire(nil, shallow, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		do         appendFunc
		flat, deep []byte
	}{
		{"JSON to wire", m.AppendWire, shallow, deep},
		{"wire to JSON", m.AppendJSON, shallowWire, deepWire},
	} {
		least := leastTimes(t, c.do, c.flat, c.deep)
		t.Logf("%s: seven deep %v, as deep as may be %v, %.2f times", c.name, least[0], least[1], float64(least[1])/float64(least[0]))
		if least[1] > 3*least[0] {
			t.Errorf("%s: seven deep %v, as deep as may be %v", c.name, least[0], least[1])
		}
	}
}

type appendFunc = func(dst, in []byte, o *Options) ([]byte, error)

// leastTimes are the CPU times of the quickest of 300 runs of each, in turn.
func leastTimes(t *testing.T, do appendFunc, one, other []byte) (least [2]time.Duration) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var dst []byte
	least = [2]time.Duration{time.Hour, time.Hour}
	for range 300 {
		for k, in := range [2][]byte{one, other} {
			start := cpuTime(t)
			var err error
			if dst, err = do(dst[:0], in, nil); err != nil {
				t.Fatal(err)
			}
			least[k] = min(least[k], cpuTime(t)-start)
		}
	}
	return least
}

// TestDisorderCost: a message whose records or members come backwards at every level takes at most three times as long as
// the same in order, either way.
func TestDisorderCost(t *testing.T) {
	list := &benchv1.List{TotalSize: 1, NextPageToken: "n"}
	for i := range 300 {
		list.Rows = append(list.Rows, &benchv1.List_Row{
			Name: fmt.Sprint("rows/", i), Sequence: int64(i), Title: "a title of some words", Price: &benchv1.Money{Units: 5, Nanos: 7},
			Sizes: []int32{1, 2, 3}, Available: true, Score: 1.5, Description: "and a description of some more words",
		})
	}
	wire, err := proto.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var reverse func(md protoreflect.MessageDescriptor, b []byte) []byte
	reverse = func(md protoreflect.MessageDescriptor, b []byte) []byte {
		var out []byte
		for len(b) > 0 {
			num, typ, n := protowire.ConsumeField(b)
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			rec := b[:n]
			if fd := md.Fields().ByNumber(num); fd.Message() != nil {
				_, _, k := protowire.ConsumeTag(rec)
				inner, _ := protowire.ConsumeBytes(rec[k:])
				rec = protowire.AppendBytes(protowire.AppendTag(nil, num, typ), reverse(fd.Message(), inner))
			}
			out = append(slices.Clone(rec), out...)
			b = b[n:]
		}
		return out
	}
	var reverseText func(raw json.RawMessage) json.RawMessage
	reverseText = func(raw json.RawMessage) json.RawMessage {
		if raw[0] != '{' && !bytes.HasPrefix(raw, []byte("[{")) {
			return raw
		}
		dec := json.NewDecoder(bytes.NewReader(raw))
		if _, err := dec.Token(); err != nil {
			t.Fatal(err)
		}
		var out []string
		for dec.More() {
			name := ""
			if raw[0] == '{' {
				tok, err := dec.Token()
				if err != nil {
					t.Fatal(err)
				}
				name = fmt.Sprintf("%q:", tok)
			}
			var value json.RawMessage
			if err := dec.Decode(&value); err != nil {
				t.Fatal(err)
			}
			out = append(out, name+string(reverseText(value)))
		}
		if raw[0] == '{' {
			slices.Reverse(out)
		}
		return json.RawMessage(string(raw[0]) + strings.Join(out, ",") + string(raw[0]+2))
	}
	m := newTypes().Message(descriptor(list))
	text, err := m.AppendJSON(nil, wire, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name               string
		do                 appendFunc
		ordered, backwards []byte
	}{
		{"wire to JSON", m.AppendJSON, wire, reverse(descriptor(list), wire)},
		{"JSON to wire", m.AppendWire, text, reverseText(text)},
	} {
		least := leastTimes(t, c.do, c.ordered, c.backwards)
		t.Logf("%s: in order %v, backwards %v, %.2f times", c.name, least[0], least[1], float64(least[1])/float64(least[0]))
		if least[1] > 3*least[0] || len(c.backwards) != len(c.ordered) {
			t.Errorf("%s: in order %v, backwards %v", c.name, least[0], least[1])
		}
	}
}
