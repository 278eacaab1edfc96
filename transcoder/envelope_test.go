package transcoder_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	wsv1 "transom/proto/transom/ws/v1"
	"transom/transcoder"
)

func TestParseFrame(t *testing.T) {
	_, ps := plans(t, transcoder.Options{})
	for _, c := range []struct {
		name string
		in   string // JSON; the binary form is made of it, "message" becoming "binary"
		want transcoder.ClientFrame
	}{
		{
			"unary call in one frame", `{"id":1,"open":{"method":"/p.S/M","metadata":{"x-a":["1","2"],"x-bin":["aGk"]},"timeout":"1.5s"},"message":{"id":"a"},"end":true}`,
			transcoder.ClientFrame{ID: 1, Open: &transcoder.Open{Method: "/p.S/M", Verb: "GET", Metadata: metadata.MD{"x-a": {"1", "2"}, "x-bin": {"hi"}}, Timeout: 1500 * time.Millisecond, Window: 16}, Message: []byte(`{"id":"a"}`), HasMessage: true, End: true},
		},
		{
			"by path", `{"id":7,"open":{"path":"/v1/items/a?x=1","verb":"PUT","window":3}}`,
			transcoder.ClientFrame{ID: 7, Open: &transcoder.Open{Path: "/v1/items/a?x=1", Verb: "PUT", Timeout: -1, Window: 3}},
		},
		{"message", `{"id":4294967295,"message":[{"a":"}\""},null]}`, transcoder.ClientFrame{ID: 4294967295, Message: []byte(`[{"a":"}\""},null]`), HasMessage: true}},
		{"cancel", `{"id":2,"cancel":true}`, transcoder.ClientFrame{ID: 2, Cancel: true}},
		{"credit", `{"id":2,"credit":16}`, transcoder.ClientFrame{ID: 2, Credit: 16}},
		{"deadline has passed", `{"id":1,"open":{"method":"/p.S/M","timeout":"-0.5s"}}`, transcoder.ClientFrame{ID: 1, Open: &transcoder.Open{Method: "/p.S/M", Verb: "GET", Window: 16}}},
		{"numbers as strings", `{"id":"1","credit":"16"}`, transcoder.ClientFrame{ID: 1, Credit: 16}},
		{"numbers with fractions", `{"id":1.0,"credit":1.6e1}`, transcoder.ClientFrame{ID: 1, Credit: 16}},
		{
			"101 reserved metadata", `{"id":1,"open":{"method":"/p.S/M","metadata":{"grpc-timeout":["1S"],"connection":["x"]}}}`,
			transcoder.ClientFrame{ID: 1, Open: &transcoder.Open{Method: "/p.S/M", Verb: "GET", Timeout: -1, Window: 16}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ps.ParseFrame([]byte(c.in), true)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("text: %v, (-want +got):\n%s", err, diff)
			}
			var f wsv1.Frame
			if err := protojson.Unmarshal([]byte(c.in), &f); err != nil {
				t.Fatal(err)
			}
			f.Message = nil
			if c.want.HasMessage {
				f.Binary = c.want.Message
			}
			b, err := proto.Marshal(&f)
			if err != nil {
				t.Fatal(err)
			}
			got, err = ps.ParseFrame(b, false)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("binary: %v, (-want +got):\n%s", err, diff)
			}
		})
	}
	got, err := ps.ParseFrame([]byte(" { \"id\" : 3 ,\n\"message\" : 5 , \"open\": null, \"end\":null } "), true)
	if diff := cmp.Diff(transcoder.ClientFrame{ID: 3, Message: []byte("5"), HasMessage: true}, got); err != nil || diff != "" {
		t.Errorf("with white space: %v, (-want +got):\n%s", err, diff)
	}
}

func TestParseFrameFaults(t *testing.T) {
	_, ps := plans(t, transcoder.Options{})
	for _, c := range []struct {
		in   string
		text bool
		want string
	}{
		{"", true, "not a JSON object"},
		{"[]", true, "not a JSON object"},
		{"{", true, "expected a member at byte 1"},
		{`{"id"}`, true, "expected a member at byte 5"},
		{`{"id":}`, true, "expected a value at byte 6"},
		{`{"id":1`, true, "expected , or } at byte 7"},
		{`{"id":1 "end":true}`, true, "expected , or } at byte 8"},
		{`{"id":1,}`, true, "expected a member at byte 8"},
		{`{"id":1} x`, true, "unexpected text after the object, at byte 9"},
		{`{"id":-1}`, true, `"id" cannot be -1`},
		{`{"id":4294967296}`, true, `"id" cannot be 4294967296`},
		{`{"id":1,"id":2}`, true, `"id" is given twice`},
		{`{"end":1}`, true, `"end" cannot be 1`},
		{`{"status":{}}`, true, `"status" is not a member that a client sends`},
		{`{"binary":"aGk="}`, true, `"binary" is not a member that a client sends`},
		{`{"message":{"a":"}`, true, "expected a value at byte 11"},
		{`{"id":"-1"}`, true, `"id" cannot be "-1"`},
		{`{"id":1.5}`, true, `"id" cannot be 1.5`},
		{`{"id":"1}`, true, "expected a value at byte 6"},
		{`{"credit":4294967296.0}`, true, `"credit" cannot be 4294967296.0`},
		{"\x80", false, "not a transom.ws.v1.Frame"},
		{"\x12\x05a", false, "not a transom.ws.v1.Frame"},
		{"\x12\x01a", false, "not a transom.ws.v1.Open"},
		{"\x42\x00", false, "field 8 is not a client's"},
		{"\x22\x00", false, "field 4 is not a client's"},
	} {
		_, err := ps.ParseFrame([]byte(c.in), c.text)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want InvalidArgument about %q", c.in, err, c.want)
		}
	}
}

// An open that says what cannot be leaves its frame a frame.
func TestParseFrameBadOpen(t *testing.T) {
	_, ps := plans(t, transcoder.Options{})
	for _, c := range []struct{ open, want string }{
		{`{}`, "either method or path must be set"},
		{`{"method":"/a/b","path":"/x"}`, "either method or path must be set"},
		{`{"method":"/a/b","timeout":"400000000000s"}`, "timeout"},
		{`{"method":"/a/b","metadata":{"x":[1]}}`, `metadata "x": every value must be a string`},
		{`{"method":"/a/b","metadata":{"x-bin":["!"]}}`, "header x-bin: the value is not base64"},
		{`{"method":"/a/b","metadata":{"x":["é"]}}`, "header x: the value has characters"},
		{`{"method":"/a/b","metadata":{"x":["a\nb"]}}`, "header x: the value has characters"},
		{`{"method":"/a/b","metadata":{"x y":["a"]}}`, `header "x y": the name has characters`},
		{`{"method":"/a/b","metadata":{"x":"a"}}`, "open: "},
		{`{"nope":1}`, "nope"},
		{`{nope}`, "open: "},
	} {
		f, err := ps.ParseFrame([]byte(`{"open":`+c.open+`,"end":true,"id":3}`), true)
		if err != nil || f.ID != 3 || !f.End || f.Open == nil {
			t.Errorf("%s: got %+v, %v, want a frame", c.open, f, err)
			continue
		}
		if err := f.Open.Err; status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "open: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want InvalidArgument about %q", c.open, err, c.want)
		}
		var o wsv1.Open
		if protojson.Unmarshal([]byte(c.open), &o) != nil {
			continue
		}
		b, err := proto.Marshal(&wsv1.Frame{Id: 3, Open: &o, End: true})
		if err != nil {
			t.Fatal(err)
		}
		if f, err := ps.ParseFrame(b, false); err != nil || f.ID != 3 || !f.End || f.Open == nil || status.Code(f.Open.Err) != codes.InvalidArgument {
			t.Errorf("%s in wire form: got %+v, %v, want a frame", c.open, f, err)
		}
	}
}

// What a server writes, read by the generated type in both forms.
func TestAppendFrames(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	get := method(t, s, "Get")
	p := ps.Method(get)
	wire, err := proto.Marshal(fromJSON(t, s, get.Desc.Output(), `{"id":"a","wrapped":0}`))
	if err != nil {
		t.Fatal(err)
	}
	md := metadata.MD{"x-a": {"1", "2"}, "x-bin": {"\xFF"}, "grpc-status": {"0"}}
	const mdJSON = `{"x-a":["1","2"],"x-bin":["/w"]}`
	for _, c := range []struct {
		name  string
		frame func(text bool) []byte
		want  string
	}{
		{"message", func(text bool) []byte {
			return must(t)(p.AppendMessageFrame(nil, text, 1, nil, nil, wire))
		}, `{"id":1,"message":{"id":"a","wrapped":0}}`},
		{"header and message", func(text bool) []byte {
			return must(t)(p.AppendMessageFrame(nil, text, 1, md, nil, wire))
		}, `{"id":1,"header":{"metadata":` + mdJSON + `},"message":{"id":"a","wrapped":0}}`},
		{"header", func(text bool) []byte { return transcoder.AppendHeaderFrame(nil, text, 300, md) }, `{"id":300,"header":{"metadata":` + mdJSON + `}}`},
		{"empty header", func(text bool) []byte { return transcoder.AppendHeaderFrame(nil, text, 300, nil) }, `{"id":300,"header":{}}`},
		{"ok", func(text bool) []byte { return ps.AppendStatusFrame(nil, text, 1, nil, status.New(codes.OK, ""), nil) }, `{"id":1,"status":{}}`},
		{
			"status", func(text bool) []byte { return ps.AppendStatusFrame(nil, text, 1, metadata.MD{}, withDetails(t), md) },
			`{"id":1,"header":{},"status":{"code":5,"message":"no \"x\"\n","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"R","domain":"d"}],"trailers":` + mdJSON + `}}`,
		},
		{"credit", func(text bool) []byte { return transcoder.AppendCreditFrame(nil, text, 1, 16) }, `{"id":1,"credit":16}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var want, fromText, fromBinary wsv1.Frame
			if err := protojson.Unmarshal([]byte(c.want), &want); err != nil {
				t.Fatal(err)
			}
			text := c.frame(true)
			// Details of no type that is known here are base64 in the text; only the first is compared.
			text = []byte(strings.Replace(string(text), `,{"@type":"type.googleapis.com/other.v1.Unknown","value":"CAE="},{"@type":"type.googleapis.com/google.rpc.ErrorInfo","value":"/w=="}`, "", 1))
			if err := protojson.Unmarshal(text, &fromText); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if !proto.Equal(&fromText, &want) {
				t.Errorf("text: got %s, want %s", text, c.want)
			}
			if err := proto.Unmarshal(c.frame(false), &fromBinary); err != nil {
				t.Fatal(err)
			}
			if want.GetMessage() != nil {
				want.Message, want.Binary = nil, wire
			}
			if st := fromBinary.GetStatus(); len(st.GetDetails()) > 1 {
				st.Details = st.GetDetails()[:1]
			}
			if !proto.Equal(&fromBinary, &want) {
				t.Errorf("binary: got %v, want %v", &fromBinary, &want)
			}
		})
	}
}

func must(t *testing.T) func([]byte, error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte(`{"id":1,"open":{"method":"/p.S/M","metadata":{"x-a":["1"]},"timeout":"1.5s"},"message":{"id":"a"},"end":true}`), true)
	f.Add([]byte("\x08\x01\x12\x06\x0a\x04/a/b\x2a\x01x\x30\x01"), false)
	_, ps := plans(f, transcoder.Options{})
	f.Fuzz(func(t *testing.T, in []byte, text bool) {
		got, err := ps.ParseFrame(in, text)
		var want wsv1.Frame
		if text {
			if !json.Valid(in) || protojson.Unmarshal(in, &want) != nil {
				return // the message is looked at later
			}
		} else if proto.Unmarshal(in, &want) != nil {
			if err == nil && got.Open != nil {
				t.Errorf("%q was taken", in)
			}
			return
		}
		if err != nil {
			return
		}
		if got.ID != want.GetId() || got.End != want.GetEnd() || got.Cancel != want.GetCancel() || got.Credit != want.GetCredit() {
			t.Errorf("%q: got %+v, want %v", in, got, &want)
		}
		if (got.Open == nil) != (want.GetOpen() == nil) || got.Open != nil && (got.Open.Method != want.GetOpen().GetMethod() || got.Open.Path != want.GetOpen().GetPath()) {
			t.Errorf("%q: got %+v, want %v", in, got.Open, want.GetOpen())
		}
		if !text && (got.HasMessage != (want.Binary != nil) || string(got.Message) != string(want.GetBinary())) {
			t.Errorf("%q: got %q, want %q", in, got.Message, want.GetBinary())
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	s, ps := plans(b, transcoder.Options{})
	p := ps.Method(method(b, s, "Get"))
	for _, text := range []bool{true, false} {
		name, in := "binary", append([]byte("\x08\x01\x2a\x64"), make([]byte, 100)...)
		if text {
			name, in = "text", []byte(`{"id":1,"message":{"id":"`+strings.Repeat("a", 100)+`"}}`)
		}
		b.Run("parse/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ps.ParseFrame(in, text); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("append/"+name, func(b *testing.B) {
			var dst []byte
			var err error
			b.ReportAllocs()
			for b.Loop() {
				if dst, err = p.AppendMessageFrame(dst[:0], text, 1, nil, nil, []byte("\x0a\x03abc")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
