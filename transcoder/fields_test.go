package transcoder_test

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/transcoder"
)

func TestFields(t *testing.T) {
	const item = `{"id":"a","bool":true,"owner":{"name":"x","age":3,"parent":{"name":"y"}},"owners":[{"name":"p","age":1},{"age":2}],` +
		`"labels":{"k":"v","l":"\"}"},"byName":{"n":{"name":"z","age":4}},"struct":{"deep":{"a":[1,{"b":2,"c":3}]}},"strings":["a,b","]"],"time":"1970-01-01T00:00:00Z"}`
	s, ps := plans(t, transcoder.Options{})
	for _, c := range []struct{ fields, want string }{
		{"id", `{"id":"a"}`},
		{"id,bool", `{"id":"a","bool":true}`},
		{"optionalText", `{}`},
		{"owner", `{"owner":{"name":"x","age":3,"parent":{"name":"y"}}}`},
		{"owner/name", `{"owner":{"name":"x"}}`},
		{"owner.name", `{"owner":{"name":"x"}}`},
		{"owner(name,parent/name)", `{"owner":{"name":"x","parent":{"name":"y"}}}`},
		{"owner/parent/name,owner/age", `{"owner":{"age":3,"parent":{"name":"y"}}}`},
		{"owner/name,owner", `{"owner":{"name":"x","age":3,"parent":{"name":"y"}}}`},
		{"owner,owner/name", `{"owner":{"name":"x","age":3,"parent":{"name":"y"}}}`},
		{"owners/name", `{"owners":[{"name":"p"},{}]}`},
		{"labels", `{"labels":{"k":"v","l":"\"}"}}`},
		{"labels/l", `{"labels":{"l":"\"}"}}`},
		{"by_name/n/age", `{"byName":{"n":{"age":4}}}`},
		{"byName/*/name", `{"byName":{"n":{"name":"z"}}}`},
		{"struct/deep/a/c", `{"struct":{"deep":{"a":[1,{"c":3}]}}}`},
		{"strings,time", `{"strings":["a,b","]"],"time":"1970-01-01T00:00:00Z"}`},
		{"*", item},
		{"*/name", `{"id":"a","bool":true,"owner":{"name":"x"},"owners":[{"name":"p"},{}],"labels":{},"byName":{},"struct":{},"strings":["a,b","]"],"time":"1970-01-01T00:00:00Z"}`},
	} {
		f, err := ps.Method(method(t, s, "Get")).Fields(nil, c.fields)
		if err != nil {
			t.Errorf("%s: %v", c.fields, err)
			continue
		}
		if got := string(f.Keep([]byte(item))); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.fields, got, c.want)
		}
	}
	var all *transcoder.Fields
	if got := string(all.Keep([]byte(item))); got != item {
		t.Errorf("nil: got %s, want everything", got)
	}
	// With response_body the expression is about what the client sees.
	b := matched(t, s, "GET", "/v1/items")
	f, err := ps.Method(b.Method).Fields(b, "id")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(f.Keep([]byte(`[{"id":"a","bool":true},{"bool":true}]`))), `[{"id":"a"},{}]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFieldsProtoNames(t *testing.T) {
	o := transcoder.Options{}
	o.JSON.ProtoNames = true
	s, ps := plans(t, o)
	f, err := ps.Method(method(t, s, "Get")).Fields(nil, "optionalText,odd_name")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(f.Keep([]byte(`{"id":"a","optional_text":"b","odd_name":"c"}`))), `{"optional_text":"b","odd_name":"c"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFieldsFaults(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	p := ps.Method(method(t, s, "Get"))
	for in, want := range map[string]string{
		"":                                      "a name is missing at byte 0",
		"nope":                                  `items.v1.Item has no field "nope" at byte 0`,
		"id,owner/nope":                         `items.v1.Owner has no field "nope" at byte 9`,
		"id/x":                                  `"x" is asked of a value that has no fields at byte 3`,
		"time/seconds":                          `has no fields at byte 5`,
		"labels/a/b":                            `has no fields at byte 9`,
		"owner(name":                            "a ) is missing at byte 10",
		"owner(name))":                          "unexpected ')' at byte 11",
		"id,":                                   "a name is missing at byte 3",
		"owner()":                               "a name is missing at byte 6",
		"owner(name)age":                        "unexpected 'a' at byte 11",
		"owner" + strings.Repeat("(parent", 40): "nested too deeply",
	} {
		_, err := p.Fields(nil, in)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want InvalidArgument about %q", in, err, want)
		}
	}
}

func TestAppendIndented(t *testing.T) {
	got, err := transcoder.AppendIndented([]byte("kept "), []byte(`{"a":[1]}`))
	if want := "kept {\n  \"a\": [\n    1\n  ]\n}\n"; string(got) != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// FuzzFields holds that filtering keeps valid JSON valid and never adds a member.
func FuzzFields(f *testing.F) {
	f.Add("id,owner(name,parent/age),labels/*", `{"id":"a","owner":{"name":"x","parent":{"age":1}},"labels":{"k":"\\\""}}`)
	f.Add("*/name", `{"a":[{"name":[[{}]]},3,null,"x"],"b":{}}`)
	s, ps := plans(f, transcoder.Options{})
	p := ps.Method(method(f, s, "Get"))
	f.Fuzz(func(t *testing.T, expression, text string) {
		fields, err := p.Fields(nil, expression)
		if err != nil {
			return
		}
		var v any
		if json.Unmarshal([]byte(text), &v) != nil {
			return
		}
		compact, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		before := len(compact)
		got := fields.Keep(compact)
		if !json.Valid(got) || len(got) > before {
			t.Errorf("%s of %s: got %s", expression, text, got)
		}
		if again := fields.Keep([]byte(string(got))); string(again) != string(got) {
			t.Errorf("%s of %s: %s is kept as %s", expression, text, got, again)
		}
	})
}

func BenchmarkFields(b *testing.B) {
	s, ps := plans(b, transcoder.Options{})
	f, err := ps.Method(method(b, s, "Get")).Fields(nil, "owners/name")
	if err != nil {
		b.Fatal(err)
	}
	text := []byte(`{"id":"a","owners":[` + strings.Repeat(`{"name":"x","age":3},`, 999) + `{}],"strings":["` + strings.Repeat("s", 10000) + `"]}`)
	scratch := make([]byte, len(text))
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		copy(scratch, text)
		f.Keep(scratch)
	}
}
