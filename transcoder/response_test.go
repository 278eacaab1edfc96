package transcoder_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/transcoder"
)

// matched finds the binding of a request.
func matched(t testing.TB, s *descriptors.Schema, verb, path string) *descriptors.Binding {
	t.Helper()
	m, err := s.MatchHTTP(verb, path)
	if err != nil {
		t.Fatal(err)
	}
	return m.Binding
}

func TestAppendResponse(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	for _, c := range []struct{ name, verb, path, message, want string }{
		{"whole", "GET", "/v1/items/a", `{"id":"a","int64":"5"}`, `{"id":"a","int64":"5"}`},
		{"77 list", "GET", "/v1/items", `{"items":[{"id":"a"}],"nextPageToken":"t"}`, `[{"id":"a"}]`},
		{"77 empty list", "GET", "/v1/items", `{"nextPageToken":"t"}`, `[]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := matched(t, s, c.verb, c.path)
			wire, err := proto.Marshal(fromJSON(t, s, b.Method.Desc.Output(), c.message))
			if err != nil {
				t.Fatal(err)
			}
			got, err := ps.Method(b.Method).AppendResponse([]byte("kept"), b, wire)
			if string(got) != "kept"+c.want || err != nil {
				t.Errorf("got %s, %v, want kept%s", got, err, c.want)
			}
		})
	}
}

// Case 63.
func TestResponseWithoutJSON(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	p := ps.Method(method(t, s, "Get"))
	for name, wire := range map[string]string{
		"not UTF-8":              "\x0a\x01\xFF",
		"timestamp out of range": "\xd2\x01\x07\x08\xff\xff\xff\xff\xff\x7f",
		"cut":                    "\x0a\x05a",
	} {
		if _, err := p.AppendJSON(nil, []byte(wire)); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "no JSON form") {
			t.Errorf("%s: got %v, want Internal", name, err)
		}
	}
}

func TestHTTPBody(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	for _, c := range []struct {
		verb, path string
		want       transcoder.HTTPBody
	}{
		{"POST", "/v1/uploads/a", transcoder.HTTPBody{Request: true, Response: true}},
		{"POST", "/v1/raw", transcoder.HTTPBody{Request: true}},
		{"POST", "/v1/raws", transcoder.HTTPBody{Request: true, Response: true}},
		{"GET", "/v1/items/a", transcoder.HTTPBody{}},
	} {
		b := matched(t, s, c.verb, c.path)
		if got := ps.Method(b.Method).HTTPBody(b); got != c.want {
			t.Errorf("%s %s: got %+v, want %+v", c.verb, c.path, got, c.want)
		}
	}
}

// Case 80: the first message has the type, all have data, and together they are the upload.
func TestAppendHTTPBodyInParts(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	m, err := s.MatchHTTP("POST", "/v1/uploads/a")
	if err != nil {
		t.Fatal(err)
	}
	p, b := ps.Method(m.Binding.Method), m.Binding
	first, err := p.AppendQueryAndPath(p.AppendHTTPBody(nil, b, "image/png", []byte("ab")), &m, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ got, want string }{
		{toJSON(read(t, b.Method.Desc.Input(), first)), `{"name":"a","file":{"contentType":"image/png","data":"YWI="}}`},
		{toJSON(read(t, b.Method.Desc.Input(), p.AppendHTTPBody(nil, b, "", []byte("c")))), `{"file":{"data":"Yw=="}}`},
		{toJSON(read(t, b.Method.Desc.Input(), p.AppendHTTPBody(nil, b, "", nil))), `{"file":{}}`},
	} {
		if got := strings.ReplaceAll(c.got, " ", ""); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

// Case 78.
func TestSplitHTTPBody(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	upload, raws := matched(t, s, "POST", "/v1/uploads/a"), matched(t, s, "POST", "/v1/raws")
	for _, c := range []struct {
		name  string
		b     *descriptors.Binding
		wire  string
		ctype string
		data  string
		code  codes.Code
	}{
		{"whole", upload, "\x0a\x03a/b\x12\x02hi\x1a\x00", "a/b", "hi", 0},
		{"empty", upload, "", "application/octet-stream", "", 0},
		{"last wins", upload, "\x12\x01a\x12\x01b", "application/octet-stream", "b", 0},
		{"field", raws, "\x0a\x01n\x12\x09\x0a\x03a/b\x12\x02hi", "a/b", "hi", 0},
		{"field in parts", raws, "\x12\x05\x0a\x03a/b\x12\x04\x12\x02hi", "a/b", "hi", 0},
		{"line break in the type", upload, "\x0a\x03a\r\n", "", "", codes.Internal},
		{"cut", upload, "\x0a\x03a", "", "", codes.Internal},
		{"cut tag", upload, "\x80", "", "", codes.Internal},
		{"other fields", upload, "\x20\x05\x0a\x01x", "x", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctype, data, err := ps.Method(c.b.Method).SplitHTTPBody(c.b, []byte(c.wire))
			if ctype != c.ctype || string(data) != c.data || status.Code(err) != c.code {
				t.Errorf("got %q, %q, %v, want %q, %q, %v", ctype, data, err, c.ctype, c.data, c.code)
			}
		})
	}
}

func TestSystem(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	for _, c := range []struct {
		method, query string
		want          transcoder.System
		fault         string
	}{
		{"Get", "", transcoder.System{}, ""},
		{"Get", "id=x&$alt=sse&fields=a(b%2Cc)&prettyPrint&key=k&access_token=t", transcoder.System{Alt: "sse", Fields: "a(b,c)", PrettyPrint: true, Key: "k", AccessToken: "t"}, ""},
		{"Get", "%24prettyPrint=false&alt=json", transcoder.System{Alt: "json"}, ""},
		{"Keyed", "key=k&$key=s&access_token=t", transcoder.System{Key: "s", AccessToken: "t"}, ""},
		{"Get", "prettyPrint=1", transcoder.System{}, `query parameter "prettyPrint": expected true or false`},
		{"Get", "fields=%zz", transcoder.System{}, `query parameter "fields": malformed percent escape`},
	} {
		got, err := ps.Method(method(t, s, c.method)).System(c.query)
		if c.fault != "" {
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%s: got %v, want InvalidArgument about %q", c.query, err, c.fault)
			}
			continue
		}
		if got != c.want || err != nil {
			t.Errorf("%s: got %+v, %v, want %+v", c.query, got, err, c.want)
		}
	}
}
