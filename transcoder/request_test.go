package transcoder_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/transcoder"
)

// requestCase is a request and the message it makes, as JSON, or a part of the error it is refused with. The numbers in
// names are those of the table in docs/transcoding.md.
type requestCase struct {
	name   string
	target string // "GET /path?query"
	body   string
	ctype  string
	want   string // the request message in JSON
	fault  string // a part of the message; the code is InvalidArgument
	field  string // of the BadRequest detail
	http   int    // 0 is 400
}

func runRequests(t *testing.T, o transcoder.Options, cases []requestCase) {
	t.Helper()
	s, ps := plans(t, o)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			verb, target, _ := strings.Cut(c.target, " ")
			path, query, _ := strings.Cut(target, "?")
			m, err := s.MatchHTTP(verb, path)
			if err != nil {
				t.Fatal(err)
			}
			const mark = "kept"
			got, err := ps.Method(m.Binding.Method).AppendRequest([]byte(mark), &m, query, c.ctype, []byte(c.body))
			if c.fault != "" {
				if err == nil {
					t.Fatalf("got no error, want one about %q", c.fault)
				}
				st := status.Convert(err)
				if st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), c.fault) {
					t.Errorf("got %v, want InvalidArgument about %q", err, c.fault)
				}
				if want := max(c.http, 400*b2i(c.http == 0)); transcoder.HTTPStatusOf(err) != want {
					t.Errorf("got HTTP status %d, want %d", transcoder.HTTPStatusOf(err), want)
				}
				if c.field != "" {
					if got := violation(st); got != c.field {
						t.Errorf("got a violation of %q, want %q", got, c.field)
					}
				}
				return
			}
			if err != nil {
				t.Fatalf("got error %v", err)
			}
			if string(got[:len(mark)]) != mark {
				t.Errorf("what dst held before was overwritten: %q", got)
			}
			in := m.Binding.Method.Desc.Input()
			want := fromJSON(t, s, in, c.want)
			if msg := read(t, in, got[len(mark):]); !proto.Equal(msg, want) {
				t.Errorf("got %s, want %s", toJSON(msg), toJSON(want))
			}
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// violation is the field of the first violation in st's BadRequest.
func violation(st *status.Status) string {
	for _, d := range st.Details() {
		if br, ok := d.(*errdetails.BadRequest); ok && len(br.GetFieldViolations()) > 0 {
			return br.GetFieldViolations()[0].GetField()
		}
	}
	return ""
}

func TestPath(t *testing.T) {
	runRequests(t, transcoder.Options{}, []requestCase{
		{name: "1 escaped slash", target: "GET /v1/items/a%2Fb", want: `{"id":"a/b"}`},
		{name: "2 escaped slash in several segments", target: "GET /v1/files/a/b%2Fc", want: `{"id":"a/b%2Fc"}`},
		{name: "3 decoded once", target: "GET /v1/items/a%252Fb", want: `{"id":"a%2Fb"}`},
		{name: "4 escaped percent", target: "GET /v1/items/a%25", want: `{"id":"a%"}`},
		{name: "6 bytes are base64", target: "GET /v1/data/_-8=", want: `{"bytes":"/+8="}`},
		{name: "6 bytes that are not base64", target: "GET /v1/data/a", fault: `path variable "bytes": expected base64`, field: "bytes"},
		{name: "8 plus", target: "GET /v1/items/a+b", want: `{"id":"a+b"}`},
		{name: "nested", target: "GET /v1/owners/x/items/y", want: `{"id":"y","owner":{"name":"x"}}`},
		{name: "delimited", target: "GET /v1/group/x", want: `{"box":{"name":"x"}}`},
		{name: "24 timestamp", target: "GET /v1/at/2020-01-02T03:04:05.5Z", want: `{"time":"2020-01-02T03:04:05.5Z"}`},
		{name: "24 not a timestamp", target: "GET /v1/at/noon", fault: `path variable "time":`, field: "time"},
		{name: "24 wrapper", target: "GET /v1/wrapped/0", want: `{"wrapped":0}`},
		{name: "26 out of range", target: "GET /v1/num/99999999999", fault: `path variable "int32": 99999999999 is out of range of 32-bit integers`, field: "int32"},
		{name: "26 fraction", target: "GET /v1/num/1.0", fault: `path variable "int32": expected an integer, found "1.0"`},
		{name: "26 bool", target: "GET /v1/flag/yes", fault: `expected true or false, found "yes"`},
		{name: "27 enum name", target: "GET /v1/kind/SMALL", want: `{"kind":"SMALL"}`},
		{name: "27 unknown enum name", target: "GET /v1/kind/small", fault: `items.v1.Kind has no value "small"`},
		{name: "27 unknown enum number", target: "GET /v1/kind/77", want: `{"kind":77}`},
		{name: "32 path wins over the body", target: "PUT /v1/items/a", body: `{"id":"evil","bool":true}`, want: `{"id":"a","bool":true}`},
		{name: "32 also with a zero", target: "PUT /v1/num/0", body: `{"int32":7}`, want: `{}`},
		{name: "32 also in parts of a timestamp", target: "PUT /v1/at/1970-01-01T00:00:01Z", body: `{"time":"1970-01-01T00:00:05.5Z"}`, want: `{"time":"1970-01-01T00:00:01Z"}`},
		{name: "32 also in a wrapper", target: "PUT /v1/wrapped/0", body: `{"wrapped":7}`, want: `{"wrapped":0}`},
		{name: "32 also in the body field", target: "PUT /v1/owners/a", body: `{"name":"evil","age":3}`, want: `{"owner":{"name":"a","age":3}}`},
	})
}

func TestQuery(t *testing.T) {
	runRequests(t, transcoder.Options{}, []requestCase{
		{
			name: "all scalars", target: "GET /v1/items?id=x&int32=-1&int64=-2&uint32=3&uint64=18446744073709551615&sint32=-5&sint64=-6&fixed32=7&fixed64=8&sfixed32=-9&sfixed64=-10&float=1.5&double=-2e3&bool=true&bytes=aGk&kind=BIG&closed=ONE",
			want: `{"id":"x","int32":-1,"int64":"-2","uint32":3,"uint64":"18446744073709551615","sint32":-5,"sint64":"-6","fixed32":7,"fixed64":"8","sfixed32":-9,"sfixed64":"-10","float":1.5,"double":-2000,"bool":true,"bytes":"aGk=","kind":"BIG","closed":"ONE"}`,
		},
		{name: "31 path field by query", target: "GET /v1/items/a?id=evil", fault: `query parameter "id": the path sets this field`, field: "id"},
		{name: "31 by its parent", target: "GET /v1/owners/a/items/b?owner.name=evil", fault: `query parameter "owner.name": the path sets this field`},
		{name: "31 by its parent as a whole", target: "GET /v1/owners/a/items/b?owner=evil", fault: `field "owner" is a message`},
		{name: "31 a sibling is fine", target: "GET /v1/owners/a/items/b?owner.age=3", want: `{"id":"b","owner":{"name":"a","age":3}}`},
		{name: "31 both spellings", target: "GET /v1/items?optional_text=a&optionalText=b", fault: `"optionalText": given twice`},
		{name: "33 body holds all", target: "PUT /v1/items/a?bool=true", body: `{}`, fault: `the body holds the whole request`},
		{name: "34 body holds the field", target: "PUT /v1/owners/a?owner.age=3", body: `{}`, fault: `the body holds this field`},
		{name: "34 other fields are fine", target: "PUT /v1/owners/a?bool=true", body: `{"age":3}`, want: `{"owner":{"name":"a","age":3},"bool":true}`},
		{name: "35 unknown", target: "GET /v1/items?nope=1", fault: `query parameter "nope": items.v1.Item has no field "nope"`, field: "nope"},
		{name: "35 unknown nested", target: "GET /v1/items?owner.nope=1", fault: `query parameter "owner.nope": items.v1.Owner has no field "nope"`},
		{name: "35 beyond a scalar", target: "GET /v1/items?id.x=1", fault: `field "id" has no fields of its own`},
		{name: "36 system parameters", target: "GET /v1/items?$alt=json&alt=sse&%24fields=id&fields=a&$prettyPrint&prettyPrint=false&key=k&access_token=t&id=x", want: `{"id":"x"}`},
		{name: "36 a field comes first", target: "GET /v1/keyed?key=k&access_token=t", want: `{"key":"k"}`},
		{name: "37 twice", target: "GET /v1/items?bool=true&bool=true", fault: `"bool": given twice`, field: "bool"},
		{name: "37 nested twice", target: "GET /v1/items?owner.name=a&owner.name=b", fault: `"owner.name": given twice`},
		{name: "37 the same name elsewhere", target: "GET /v1/items?owner.name=a&owner.parent.name=b&choice.name=c", want: `{"owner":{"name":"a","parent":{"name":"b"}},"choice":{"name":"c"}}`},
		{name: "37 repeated message", target: "GET /v1/items?owners.name=a", fault: `field "owners" has no fields of its own`},
		{name: "37 repeated message as a whole", target: "GET /v1/items?owners=a", fault: `field "owners" is a list of messages`},
		{name: "38 two members of a oneof", target: "GET /v1/items?left=a&right=b", fault: `"right": another member of oneof "side" is set already`},
		{name: "38 with a message member", target: "GET /v1/items?choice.name=a&left=b", fault: `another member of oneof "side"`},
		{name: "38 one message member twice", target: "GET /v1/items?choice.name=a&choice.age=1", want: `{"choice":{"name":"a","age":1}}`},
		{name: "38 with the path", target: "GET /v1/choice/a?right=b", fault: `another member of oneof "side"`},
		{name: "38 with the body", target: "PUT /v1/choices/a?left=b", body: `{}`, fault: `another member of oneof "side"`},
		{name: "39 field mask", target: "GET /v1/items?mask=fooBar,x.yZ", want: `{"mask":"fooBar,x.yZ"}`},
		{name: "39 field mask as in the .proto file", target: "GET /v1/items?mask=foo_bar", want: `{"mask":"fooBar"}`},
		{name: "40 maps are off", target: "GET /v1/items?labels[a]=b", fault: `map parameters are not enabled`},
		{name: "41 no value for a bool", target: "GET /v1/items?bool", fault: `expected true or false, found ""`},
		{name: "41 empty bool", target: "GET /v1/items?bool=", fault: `expected true or false, found ""`},
		{name: "41 empty text", target: "GET /v1/items?id=&optionalText=", want: `{"optionalText":""}`},
		{name: "42 other booleans", target: "GET /v1/items?bool=1", fault: `expected true or false`},
		{name: "42 exponent", target: "GET /v1/items?int32=1e2", fault: `expected an integer, found "1e2"`},
		{name: "42 leading plus", target: "GET /v1/items?int32=%2B1", fault: `expected an integer`},
		{name: "43 plus is a space", target: "GET /v1/items?id=a+b%2Bc", want: `{"id":"a b+c"}`},
		{name: "44 semicolon", target: "GET /v1/items?id=a;bool=true", fault: `query parameter "id": a bare semicolon is not allowed`, field: "id"},
		{name: "44 escaped semicolon", target: "GET /v1/items?id=a%3Bb", want: `{"id":"a;b"}`},
		{name: "44 bad escape", target: "GET /v1/items?id=%zz", fault: `query parameter "id": malformed percent escape`},
		{name: "44 cut escape", target: "GET /v1/items?id=%4", fault: `malformed percent escape`},
		{name: "44 bad escape in a name", target: "GET /v1/items?%zz=1", fault: `malformed percent escape`},
		{name: "45 duration", target: "GET /v1/items?duration=1.5s", want: `{"duration":"1.5s"}`},
		{name: "45 duration in Go's form", target: "GET /v1/items?duration=1h2m", fault: `query parameter "duration":`},
		{name: "45 a plus in a time zone", target: "GET /v1/items?time=2020-01-01T00:00:00+02:00", fault: `write %2B for a plus`, field: "time"},
		{name: "45 time zone", target: "GET /v1/items?time=2020-01-01T00:00:00%2B02:00", want: `{"time":"2019-12-31T22:00:00Z"}`},
		{name: "46 base64, standard, padded", target: "GET /v1/items?bytes=%2B/8%3D", want: `{"bytes":"+/8="}`},
		{name: "46 base64, URL, bare", target: "GET /v1/items?bytes=-_8", want: `{"bytes":"+/8="}`},
		{name: "46 not base64", target: "GET /v1/items?bytes=a", fault: `expected base64`},
		{name: "nested three deep", target: "GET /v1/items?owner.parent.parent.name=x", want: `{"owner":{"parent":{"parent":{"name":"x"}}}}`},
		{name: "repeated", target: "GET /v1/items?strings=a&strings=&strings=b&numbers=1&numbers=0", want: `{"strings":["a","","b"],"numbers":[1,0]}`},
		{name: "repeated in a message", target: "GET /v1/items?owner.tags=a&owner.tags=b", want: `{"owner":{"tags":["a","b"]}}`},
		{name: "repeated timestamps", target: "GET /v1/items?times=1970-01-01T00:00:01Z&times=1970-01-01T00:00:02Z", want: `{"times":["1970-01-01T00:00:01Z","1970-01-01T00:00:02Z"]}`},
		{name: "wrappers", target: "GET /v1/items?wrapped=0&text=&owner.size=5", want: `{"wrapped":0,"text":"","owner":{"size":5}}`},
		{name: "delimited", target: "GET /v1/items?box.name=a&box.parent.age=4", want: `{"box":{"name":"a","parent":{"age":4}}}`},
		{name: "json_name", target: "GET /v1/items?aliased=a", want: `{"aliased":"a"}`},
		{name: "json_name, proto name", target: "GET /v1/items?odd_name=a", want: `{"aliased":"a"}`},
		{name: "struct", target: "GET /v1/items?struct={%22a%22:[1,null]}&value=3", want: `{"struct":{"a":[1,null]},"value":3}`},
		{name: "closed enum, unknown number", target: "GET /v1/items?closed=7", fault: `items.v1.Closed has no value "7"`},
		{name: "not UTF-8", target: "GET /v1/items?id=%FF", fault: `expected UTF-8`},
		{name: "floats", target: "GET /v1/items?float=-0&double=Infinity", want: `{"float":-0.0,"double":"Infinity"}`},
		{name: "float out of range", target: "GET /v1/items?float=3.5e38", fault: `out of range of 32-bit floating point`},
		{name: "float in other forms", target: "GET /v1/items?double=0x1p3", fault: `expected a number`},
		{name: "-0 unsigned", target: "GET /v1/items?uint32=-0", want: `{}`},
		{name: "negative unsigned", target: "GET /v1/items?uint32=-1", fault: `-1 is out of range of unsigned 32-bit integers`},
		{name: "empty pairs", target: "GET /v1/items?&id=a&&", want: `{"id":"a"}`},
		{name: "escaped name", target: "GET /v1/items?%69d=a", want: `{"id":"a"}`},
		{name: "too deep", target: "GET /v1/items?owner" + strings.Repeat(".parent", 200) + ".name=a", fault: "names more nested fields than are allowed"},
	})
}

func TestQueryOptions(t *testing.T) {
	runRequests(t, transcoder.Options{IgnoreUnknownQuery: true, IgnoreQuery: []string{"utm_source", "bool"}, QueryMaps: true}, []requestCase{
		{name: "33 ignored", target: "PUT /v1/items/a?bool=true&id=evil", body: `{}`, want: `{"id":"a"}`},
		{name: "35 ignored", target: "GET /v1/items?nope=1&owner.nope=2&id=a", want: `{"id":"a"}`},
		{name: "35 ignore list", target: "GET /v1/items?utm_source=1&bool=whatever", want: `{}`},
		{name: "31 still refused", target: "GET /v1/items/a?id=evil", fault: `the path sets this field`},
		{name: "40 maps", target: "GET /v1/items?labels[a]=1&labels[b.c]=2&flags[-3]=true", want: `{"labels":{"a":"1","b.c":"2"},"flags":{"-3":true}}`},
		{name: "40 bad key", target: "GET /v1/items?flags[x]=true", fault: `map key: expected an integer, found "x"`},
		{name: "40 bad value", target: "GET /v1/items?flags[1]=x", fault: `expected true or false`},
		{name: "40 the key twice", target: "GET /v1/items?labels[a]=1&labels[a]=2", fault: `given twice`},
		{name: "40 not a map", target: "GET /v1/items?id[a]=1", fault: `field "id" is not a map`},
		{name: "40 no key", target: "GET /v1/items?labels=1", fault: `field "labels" is a map`},
		{name: "40 a dot is no key", target: "GET /v1/items?labels.a=1", fault: `field "labels" has no fields of its own`},
		{name: "40 messages", target: "GET /v1/items?by_name[a]=1", fault: `a message cannot be given as one parameter`},
	})
}

// takesForms lets every method take forms.
func takesForms(*descriptors.Method) bool { return true }

func TestForms(t *testing.T) {
	const mp = "multipart/form-data; boundary=b"
	part := func(header, body string) string {
		return "--b\r\nContent-Disposition: form-data; " + header + "\r\n\r\n" + body + "\r\n"
	}
	const end = "--b--\r\n"
	runRequests(t, transcoder.Options{Forms: takesForms}, []requestCase{
		{name: "form", target: "PUT /v1/items/a", ctype: "application/x-www-form-urlencoded", body: "bool=true&owner.name=x+y", want: `{"id":"a","bool":true,"owner":{"name":"x y"}}`},
		{name: "form cannot set the path's field", target: "PUT /v1/items/a", ctype: "application/x-www-form-urlencoded", body: "id=evil", fault: `form field "id": the path sets this field`},
		{name: "form for a field", target: "PUT /v1/owners/a?bool=true", ctype: "application/x-www-form-urlencoded", body: "age=3&parent.name=b", want: `{"bool":true,"owner":{"name":"a","age":3,"parent":{"name":"b"}}}`},
		{name: "form for a field, path", target: "PUT /v1/owners/a", ctype: "application/x-www-form-urlencoded", body: "name=evil", fault: `the path sets this field`},
		{name: "form for a list", target: "PUT /v1/tags/a", ctype: "application/x-www-form-urlencoded", body: "x=1", fault: "send it as application/json", http: 415},
		{
			name: "multipart", target: "PUT /v1/items/a", ctype: mp, body: part("name=bool", "true") + part("name=owner.name", "x\r\ny") + part(`name=bytes; filename="f"`, "\x00\xff") + end,
			want: `{"id":"a","bool":true,"owner":{"name":"x\r\ny"},"bytes":"AP8="}`,
		},
		{name: "multipart, path's field", target: "PUT /v1/items/a", ctype: mp, body: part("name=id", "evil") + end, fault: `form part "id": the path sets this field`},
		{name: "multipart, bytes as text", target: "PUT /v1/items/a", ctype: mp, body: part("name=bytes", "AP8=") + end, want: `{"id":"a","bytes":"AP8="}`},
		{name: "multipart, file for text", target: "PUT /v1/items/a", ctype: mp, body: part(`name=left; filename="f"`, "x") + end, fault: "a file cannot be given for this field", field: "left"},
		{name: "multipart, file twice", target: "PUT /v1/items/a", ctype: mp, body: part(`name=bytes; filename="f"`, "x") + part(`name=bytes; filename="f"`, "y") + end, fault: "given twice"},
		{name: "multipart, no name", target: "PUT /v1/items/a", ctype: mp, body: part(`filename="f"`, "x") + end, fault: "the part has no name"},
		{name: "multipart, cut", target: "PUT /v1/items/a", ctype: mp, body: part("name=bool", "true")[:50], fault: "the part is cut off"},
		{name: "multipart, cut in a header", target: "PUT /v1/items/a", ctype: mp, body: part("name=bool", "true")[:20], fault: "malformed multipart/form-data"},
		{name: "multipart, no boundary", target: "PUT /v1/items/a", ctype: "multipart/form-data", body: end, fault: "it has no boundary", http: 415},
		{name: "multipart, empty", target: "PUT /v1/items/a", ctype: mp, body: end, want: `{"id":"a"}`},
		{
			name: "multipart, a file in a message", target: "PUT /v1/attachments/a", ctype: mp,
			body: part("name=title", "t") + part("name=attachment.file; filename=\"f\"\r\nContent-Type: image/png", "png") + part("name=files; filename=f", "1") + part("name=files; filename=g", "2") + end,
			want: `{"name":"a","title":"t","attachment":{"file":{"contentType":"image/png","data":"cG5n"}},"files":[{"data":"MQ=="},{"data":"Mg=="}]}`,
		},
		{
			name: "multipart, the body is a file", target: "POST /v1/uploads/a", ctype: mp, body: part("name=any; filename=\"f\"\r\nContent-Type: image/png", "png") + end,
			want: `{"name":"a","file":{"contentType":"image/png","data":"cG5n"}}`,
		},
		{name: "multipart, the request is a file", target: "POST /v1/raws", ctype: mp, body: part("name=any", "x") + end, want: `{"data":"eA=="}`},
		{name: "multipart, two files for a file", target: "POST /v1/raws", ctype: mp, body: part("name=a", "x") + part("name=b", "x") + end, fault: "the body is one file"},
		{name: "raw of another type", target: "POST /v1/raws", ctype: "image/png", body: "x", want: `{"contentType":"image/png","data":"eA=="}`},
	})
	runRequests(t, transcoder.Options{}, []requestCase{
		{name: "off", target: "PUT /v1/items/a", ctype: "application/x-www-form-urlencoded", body: "bool=true", fault: "this method takes no forms", http: 415},
		{name: "multipart off", target: "PUT /v1/items/a", ctype: mp, body: end, fault: "this method takes no forms", http: 415},
		{name: "multipart off, raw", target: "POST /v1/raws", ctype: mp, body: "x", want: `{"contentType":"multipart/form-data; boundary=b","data":"eA=="}`},
		{name: "a type that is not UTF-8", target: "POST /v1/raws", ctype: "a\xff", body: "x", want: `{"contentType":"a�","data":"eA=="}`},
	})
}

func TestFormFile(t *testing.T) {
	const mp = "multipart/form-data; boundary=b"
	const head = "--b\r\nContent-Disposition: form-data; name=f; filename=x\r\nContent-Type: image/png\r\n\r\n"
	for _, c := range []struct{ name, ctype, body, want, wantType, fault string }{
		{"a form", mp, head + "png\r\n--b--\r\n", "png", "image/png", ""},
		{"empty file", mp, head + "\r\n--b--\r\n", "", "image/png", ""},
		{"no form", "image/png", "png", "png", "image/png", ""},
		{"another part", mp, head + "png\r\n" + head + "x\r\n--b--\r\n", "png", "image/png", "must have one part"},
		{"cut", mp, head + "png", "png", "image/png", "the part is cut off"},
		{"no part", mp, "--b--\r\n", "", "", "no part in it"},
		{"no boundary", "multipart/form-data", "", "", "", "it has no boundary"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file, fileType, err := transcoder.FormFile(c.ctype, strings.NewReader(c.body))
			var got []byte
			if err == nil {
				got, err = io.ReadAll(iotest.OneByteReader(file))
			}
			if string(got) != c.want || fileType != c.wantType {
				t.Errorf("got %q, %q, want %q, %q", got, fileType, c.want, c.wantType)
			}
			if c.fault == "" && err != nil || c.fault != "" && (status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.fault)) {
				t.Errorf("got %v, want InvalidArgument about %q", err, c.fault)
			}
		})
	}
}

func TestIsForm(t *testing.T) {
	for in, want := range map[string]bool{
		"application/x-www-form-urlencoded": true, "Multipart/Form-Data; boundary=x": true, " multipart/form-data": true,
		"application/json": false, "": false, "multipart/mixed": false,
	} {
		if got := transcoder.IsForm(in); got != want {
			t.Errorf("%q: got %v, want %v", in, got, want)
		}
	}
}

func TestBody(t *testing.T) {
	runRequests(t, transcoder.Options{}, []requestCase{
		{name: "47 empty body is the empty message", target: "PUT /v1/items/a", want: `{"id":"a"}`},
		{name: "47 empty body leaves the field unset", target: "PATCH /v1/items/a", want: `{"item":{"id":"a"}}`},
		{name: "48 null", target: "PUT /v1/items/a", body: `null`, fault: "body:"},
		{name: "48 array", target: "PUT /v1/items/a", body: `[]`, fault: "body:"},
		{name: "49 second value", target: "PUT /v1/items/a", body: `{} {}`, fault: "body:"},
		{name: "70 list", target: "PUT /v1/tags/a", body: `["x","y"]`, want: `{"id":"a","strings":["x","y"]}`},
		{name: "71 a body without a rule is not parsed", target: "DELETE /v1/items/a", body: `{]`, ctype: "text/plain", want: `{"id":"a"}`},
		{name: "72 parameters", target: "PUT /v1/items/a", ctype: "application/json; charset=utf-8", body: `{"bool":true}`, want: `{"id":"a","bool":true}`},
		{name: "72 case", target: "PUT /v1/items/a", ctype: "application/JSON", body: `{}`, want: `{"id":"a"}`},
		{name: "72 suffix", target: "PUT /v1/items/a", ctype: "application/merge-patch+json", body: `{}`, want: `{"id":"a"}`},
		{name: "72 charset", target: "PUT /v1/items/a", ctype: "application/json; charset=utf-16", body: `{}`, fault: "text must be in UTF-8", http: 415},
		{name: "72 text/plain", target: "PUT /v1/items/a", ctype: "text/plain", body: `{}`, fault: `content type "text/plain" is not supported`, http: 415},
		{name: "72 malformed", target: "PUT /v1/items/a", ctype: ";", body: `{}`, fault: "is not supported", http: 415},
		{
			name: "75 mask", target: "PATCH /v1/items/a", body: `{"bool":true,"owner":{"name":"x","parent":{"age":1}},"strings":[],"wrapped":null,"labels":{"a":"b"},"time":"1970-01-01T00:00:01Z"}`,
			want: `{"item":{"id":"a","bool":true,"owner":{"name":"x","parent":{"age":1}},"labels":{"a":"b"},"time":"1970-01-01T00:00:01Z"},"updateMask":"bool,owner.name,owner.parent.age,strings,wrapped,labels,time"}`,
		},
		{name: "75 what the path sets is no change", target: "PATCH /v1/items/a", body: `{"id":"a","bool":true}`, want: `{"item":{"id":"a","bool":true},"updateMask":"bool"}`},
		{name: "75 a given mask is kept", target: "PATCH /v1/items/a?updateMask=bool", body: `{"bool":true,"int32":1}`, want: `{"item":{"id":"a","bool":true,"int32":1},"updateMask":"bool"}`},
		{name: "75 an empty mask is filled", target: "PATCH /v1/items/a?updateMask=&validateOnly=true", body: `{"bool":true}`, want: `{"item":{"id":"a","bool":true},"updateMask":"bool","validateOnly":true}`},
		{name: "75 nothing set", target: "PATCH /v1/items/a", body: `{}`, want: `{"item":{"id":"a"},"updateMask":""}`},
		{name: "75 unknown key", target: "PATCH /v1/items/a", body: `{"nope":1}`, fault: "nope"},
		{name: "78 raw upload", target: "POST /v1/uploads/a", ctype: "text/plain", body: "hello\x00", want: `{"name":"a","file":{"contentType":"text/plain","data":"aGVsbG8A"}}`},
		{name: "78 raw upload, query", target: "POST /v1/raw?name=n", body: "x", want: `{"name":"n","file":{"data":"eA=="}}`},
		{name: "78 raw message", target: "POST /v1/raws", ctype: "image/png", body: "x", want: `{"contentType":"image/png","data":"eA=="}`},
	})
}

// Two masks add up, so that a mask in the path could be widened by the body.
func TestNewPlansRefusesAMaskInThePath(t *testing.T) {
	dir := t.TempDir()
	const text = `syntax = "proto3"; package p; import "google/api/annotations.proto"; import "google/protobuf/field_mask.proto";
		service S { rpc M(Q) returns (Q) { option (google.api.http) = { put: "/{mask}" body: "*" }; } }
		message Q { google.protobuf.FieldMask mask = 1; }`
	if err := os.WriteFile(filepath.Join(dir, "p.proto"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := descriptors.FromProto(t.Context(), []string{dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = transcoder.NewPlans(s, transcoder.Options{})
	if want := `method p.S.M, PUT /{mask}: variable "mask": a field mask cannot be given in a path`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestBodyFaultNamesThePlace(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	m, err := s.MatchHTTP("PUT", "/v1/items/a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = ps.Method(m.Binding.Method).AppendRequest(nil, &m, "", "", []byte("{\n  \"bool\": 3}"))
	st := status.Convert(err)
	if st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), "line 2") {
		t.Errorf("got %v, want InvalidArgument naming line 2", err)
	}
}

func TestAllocations(t *testing.T) {
	s, ps := plans(t, transcoder.Options{})
	m, err := s.MatchHTTP("GET", "/v1/owners/x/items/y")
	if err != nil {
		t.Fatal(err)
	}
	p := ps.Method(m.Binding.Method)
	dst := make([]byte, 0, 1024)
	n := testing.AllocsPerRun(100, func() {
		if _, err := p.AppendRequest(dst, &m, "int32=5&owner.age=3&bool=true&optionalText=a+b%20c&kind=BIG&strings=a&strings=b&bytes=aGVsbG8&double=1.5", "", nil); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func BenchmarkAppendRequest(b *testing.B) {
	s, ps := plans(b, transcoder.Options{})
	for _, c := range []struct{ name, path, query string }{
		{"path", "/v1/items/8127", ""},
		{"query", "/v1/items/8127", "int32=5&owner.age=3&bool=true&optionalText=a+b%20c"},
		{"hostile", "/v1/items", strings.Repeat("strings=a&owner"+strings.Repeat(".parent", 90)+".tags=b&", 40)},
	} {
		b.Run(c.name, func(b *testing.B) {
			m, err := s.MatchHTTP("GET", c.path)
			if err != nil {
				b.Fatal(err)
			}
			p := ps.Method(m.Binding.Method)
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				if dst, err = p.AppendRequest(dst[:0], &m, c.query, "", nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
