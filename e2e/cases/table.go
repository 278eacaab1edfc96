package cases

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/api/httpbody"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Table returns all cases, by number.
func Table() []Case {
	return slices.Concat(paths(), queries(), bodies(), answers(), headers())
}

// got wants success and one message at the backend.
func got(method, text string) Want { return Want{Code: 200, Method: method, Got: []string{text}} }

// status wants an HTTP status only.
func status(code int, has ...string) Want { return Want{Code: code, Has: has} }

// invalid wants 400 with INVALID_ARGUMENT and what must be named.
func invalid(has ...string) Want { return Want{Code: 400, RPC: 3, Has: has} }

// wire is an item's wire form.
func wire(text string) string {
	b, err := proto.Marshal(item(text))
	if err != nil {
		panic(err) // the table is right by its test
	}
	return string(b)
}

// file is the wire form of an HttpBody.
func file(contentType, data string) string {
	b, err := proto.Marshal(&httpbody.HttpBody{ContentType: contentType, Data: []byte(data)})
	if err != nil {
		panic(err)
	}
	return string(b)
}

func exactly(s string) *string { return &s }

func zipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(s))
	_ = z.Close()
	return b.String()
}

// details is the value of grpc-status-details-bin.
func details(code int32, message string, ds ...*anypb.Any) string {
	b, err := proto.Marshal(&spb.Status{Code: code, Message: message, Details: ds})
	if err != nil {
		panic(err)
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

func paths() []Case {
	get := func(n int, rule, path string, w Want, or ...Want) Case {
		return Case{Number: n, Rule: rule, Verb: "GET", Path: path, Want: w, Or: or}
	}
	return []Case{
		get(1, "%2F in a variable of one segment is a slash", "/items/a%2Fb", got("GetItem", `id: "a/b"`)),
		get(2, "%2F in a variable of many segments stays", "/shelves/1/books/b%2Fc/d", got("GetBook", `name: "shelves/1/books/b%2Fc/d"`)),
		get(2, "all else in a variable of many segments is decoded", "/shelves/1/books/b%20c/d", got("GetBook", `name: "shelves/1/books/b c/d"`)),
		get(3, "a segment is decoded once", "/items/a%252Fb", got("GetItem", `id: "a%2Fb"`)),
		get(3, "a segment is decoded once, of many", "/shelves/1/books/a%252Fb", got("GetBook", `name: "shelves/1/books/a%2Fb"`)),
		get(4, "%25 is a percent sign", "/items/a%25", got("GetItem", `id: "a%"`)),
		get(5, "%2f is %2F", "/items/a%2fb", got("GetItem", `id: "a/b"`)),
		get(5, "%2f is kept as it is", "/shelves/1/books/b%2fc", got("GetBook", `name: "shelves/1/books/b%2fc"`), got("GetBook", `name: "shelves/1/books/b%2Fc"`)),
		get(6, "a string is UTF-8", "/items/%FF", invalid()),
		get(6, "bytes in a path are base64", "/typed/data/YWI=", got("GetTyped", `data: "ab"`)),
		get(7, "a malformed escape is refused", "/items/%zz", status(400)),
		get(7, "a cut escape is refused", "/items/a%", status(400)),
		get(8, "+ in a path is a plus", "/items/a+b", got("GetItem", `id: "a+b"`)),
		get(9, "** matches no segment at all", "/shelves/1/books", got("GetBook", `name: "shelves/1/books"`)),
		get(10, "* needs a segment that is not empty", "/items/", status(404)),
		get(11, "a trailing slash is another path", "/items/abc/", status(404)),
		get(12, "an empty segment matches nothing", "//items/a", status(404)),
		get(12, "an empty segment matches no variable", "/pairs//b:verb", status(404)),
		get(13, "dot segments reach no other route", "/items/../query", status(404)),
		get(13, "escaped dot segments reach no other route", "/items/%2e%2e/query", status(404)),
		get(14, "a colon that begins no verb is data", "/items/a:b", got("GetItem", `id: "a:b"`)),
		get(14, "a verb of another HTTP method is data", "/items/x:archive", got("GetItem", `id: "x:archive"`), status(404), status(405)),
		{Number: 15, Rule: "the verb is behind the last colon", Verb: "POST", Path: "/items/x:y:archive", Body: `{}`, Want: got("ArchiveItem", `id: "x:y"`)},
		get(16, "verbs within segments are data", "/pairs/some:verb/const:verb", got("GetPair", `id: "some:verb" name: "const"`)),
		get(17, "an escaped colon begins no verb", "/items/a%3Aarchive", got("GetItem", `id: "a:archive"`)),
		{Number: 17, Rule: "an escaped colon reaches no verb's method", Verb: "POST", Path: "/items/a%3Aarchive", Body: `{}`, Want: status(405), Or: []Want{status(404), status(501)}},
		get(18, "a verb of one template is data in another", "/items/x:verb", got("GetItem", `id: "x:verb"`)),
		get(19, "a literal comes first", "/order/first", Want{Code: 200, Method: "OrderLiteral", Got: []string{""}}),
		get(19, "a variable of one segment comes second", "/order/x", got("OrderOne", `id: "x"`)),
		get(19, "a variable of many comes last", "/order/first/y", got("OrderMany", `id: "first/y"`)),
		get(20, "a literal of another HTTP method hides no variable", "/items/blue", got("GetItem", `id: "blue"`)),
		{Number: 21, Rule: "a path without the HTTP method is 405 with Allow", Verb: "PUT", Path: "/items/x", Want: Want{Code: 405, Header: []string{"Allow: GET"}}},
		{Number: 21, Rule: "the 405 has a status as its body", Verb: "PUT", Path: "/items/x", Want: Want{RPC: 12, Code: 405}},
		{Number: 21, Rule: "HEAD is GET without the body", Verb: "HEAD", Path: "/items/x", Want: Want{Code: 200, Method: "GetItem", Got: []string{`id: "x"`}, Body: exactly("")}},
		get(25, "a path of 8 KB is matched in linear time", "/order/"+strings.Repeat("a/", 4000)+"a", got("OrderMany", fmt.Sprintf("id: %q", strings.Repeat("a/", 4000)+"a"))),
		get(26, "an int32 out of range is named", "/typed/count/99999999999", invalid("count")),
		get(26, "1.0 in a path is no integer", "/typed/count/1.0", invalid("count")),
		get(26, "yes is no bool", "/typed/flag/yes", invalid("flag")),
		get(26, "errors do not show the parser", "/typed/count/x", Want{Code: 400, Hasnt: []string{"strconv", "ParseInt", "proto:"}}),
		get(27, "an unknown enum name is refused", "/typed/color/COLOR_BLUE", invalid()),
		get(27, "an enum by number", "/typed/color/1", got("GetTyped", `color: COLOR_RED`)),
		get(27, "an unknown number of an open enum", "/typed/color/7", got("GetTyped", `color: 7`)),
		get(28, "a literal is compared after decoding both sides", "/caf%C3%A9/x", got("GetCoffee", `id: "x"`)),
		get(28, "a decoded slash is in no literal", "/caf%C3%A9%2Fx", status(404)),
	}
}

func queries() []Case {
	get := func(n int, rule, path string, w Want, or ...Want) Case {
		return Case{Number: n, Rule: rule, Verb: "GET", Path: path, Want: w, Or: or}
	}
	query := func(n int, rule, q string, w Want, or ...Want) Case { return get(n, rule, "/query?"+q, w, or...) }
	with := func(n int, rule, q string, w Want, or ...Want) Case {
		c := query(n, rule, q, w, or...)
		c.Extras = true
		return c
	}
	return []Case{
		get(31, "the query never overrides the path", "/items/a?id=evil", invalid("id"), got("GetItem", `id: "a"`)),
		get(31, "nor in a submessage", "/typed/sub/a?sub.id=evil", invalid("sub.id"), got("GetTyped", `sub {id: "a"}`)),
		{Number: 32, Rule: "the body never overrides the path", Verb: "POST", Path: "/body/a", Body: `{"id":"evil"}`, Want: got("Body", `id: "a"`), Or: []Want{status(400)}},
		{Number: 33, Rule: `with body "*" there is no query`, Verb: "POST", Path: "/body?name=x", Body: `{}`, Want: invalid("name"), Or: []Want{got("Body", "")}},
		{Number: 34, Rule: "what the body holds is not in the query", Verb: "POST", Path: "/sub/a?sub.name=x", Body: `{"count":1}`, Want: invalid("sub.name")},
		query(35, "an unknown parameter is named", "colour=red", invalid("colour")),
		query(36, "system parameters are no fields", "$alt=json&$prettyPrint=true&key=k&access_token=t", got("Query", "")),
		query(37, "a singular field once", "count=1&count=2", invalid("count")),
		query(37, "a repeated message not at all", "list=x", status(400)),
		query(37, "a repeated scalar often", "tags=a&tags=b", got("Query", `tags: "a" tags: "b"`)),
		query(37, "both spellings of a name", "twoWords=a", got("Query", `two_words: "a"`)),
		query(37, "nested fields", "sub.sub.two_words=a", got("Query", `sub {sub {two_words: "a"}}`)),
		query(38, "two members of a oneof are refused", "choice_text=a&choice_number=1", status(400)),
		query(39, "a field mask in camel case", "mask=fooBar,x.yZ", got("Query", `mask {paths: "foo_bar" paths: "x.y_z"}`)),
		with(40, "a map's entries", "labels[a]=1&labels[b]=2", got("Query", `labels {key: "a" value: "1"} labels {key: "b" value: "2"}`)),
		with(40, "a map's keys have their type", "numbers[x]=1", status(400)),
		with(40, "a map is no message", "labels.k=v", status(400)),
		query(41, "a bool needs its value", "flag", status(400)),
		query(41, "an empty bool is none", "flag=", status(400)),
		query(41, "an empty string may be", "name=", got("Query", "")),
		query(41, "an optional string is present and empty", "opt_text=", got("Query", `opt_text: ""`)),
		query(42, "1 is no bool", "flag=1", status(400)),
		query(42, "True is no bool", "flag=True", status(400)),
		query(42, "1e2 is no integer", "count=1e2", status(400)),
		query(43, "+ is a space", "name=a+b", got("Query", `name: "a b"`)),
		query(43, "%2B is a plus", "name=a%2Bb", got("Query", `name: "a+b"`)),
		query(44, "; separates nothing", "name=a;count=1", status(400)),
		query(44, "a malformed escape is refused", "name=%zz", status(400)),
		query(45, "a duration in JSON's form", "span=1.5s", got("Query", `span {seconds: 1 nanos: 500000000}`)),
		query(45, "a duration in no other form", "span=1h2m", status(400)),
		query(45, "a timestamp with an offset", "time=2020-01-01T00:00:00%2B02:00", got("Query", `time {seconds: 1577829600}`)),
		query(45, "a timestamp with a bare +", "time=2020-01-01T00:00:00+02:00", status(400)),
		query(46, "bytes in base64", "data=%2B/8=", got("Query", `data: "\373\377"`)),
		query(46, "bytes in the URL alphabet without padding", "data=-_8", got("Query", `data: "\373\377"`)),
	}
}

func bodies() []Case {
	post := func(n int, rule, path, body string, w Want) Case {
		return Case{Number: n, Rule: rule, Verb: "POST", Path: path, Body: body, Want: w}
	}
	ok := func(n int, rule, body, text string) Case { return post(n, rule, "/body", body, got("Body", text)) }
	bad := func(n int, rule, body string) Case { return post(n, rule, "/body", body, status(400)) }
	typed := func(rule, ct string, w Want) Case {
		c := post(72, rule, "/body", `{"name":"x"}`, w)
		c.Header = []string{"Content-Type: " + ct}
		return c
	}
	patch := func(n int, rule, path, body string, w Want) Case {
		c := post(n, rule, path, body, w)
		c.Verb = "PATCH"
		return c
	}
	cs := []Case{
		post(47, `an empty body for "*" is an empty message`, "/body", "", got("Body", "")),
		post(47, "an empty body for a field leaves it unset", "/sub/a", "", got("BodySub", `id: "a"`)),
		post(47, "{} for a field sets it", "/sub/a", "{}", got("BodySub", `id: "a" sub {}`)),
	}
	for _, v := range []string{`null`, `[]`, `"x"`, `1`} {
		cs = append(cs, post(48, v+" is no message", "/body", v, invalid()))
	}
	cs = append(cs,
		bad(49, "one value only", `{} {}`),
		bad(49, "nothing behind the value", `{}x`),
		bad(50, "a key once", `{"name":"a","name":"b"}`),
		bad(50, "a field once, in both spellings", `{"twoWords":"a","two_words":"b"}`),
		bad(51, "one member of a oneof", `{"choiceText":"1","choiceNumber":"2"}`),
		ok(51, "null leaves a oneof's member unset", `{"choiceText":"1","choiceNumber":null}`, `choice_text: "1"`),
		ok(52, "null leaves fields unset", `{"name":null,"sub":null,"tags":null,"labels":null,"wrapped":null}`, ``),
		bad(52, "null is no element", `{"tags":[null]}`),
		bad(52, "null is no map value", `{"labels":{"a":null}}`),
		ok(52, "null is a Value", `{"value":null}`, `value {null_value: NULL_VALUE}`),
		ok(53, "a 64-bit number exactly", `{"big":9007199254740993}`, `big: 9007199254740993`),
		ok(53, "a 64-bit number as a string", `{"big":"-9223372036854775808"}`, `big: -9223372036854775808`),
		Case{Number: 53, Rule: "64-bit numbers are printed as strings", Verb: "GET", Path: "/items/a", Reply: Reply{Messages: []string{wire("big: 9007199254740993")}}, Want: status(200, `"big":"9007199254740993"`)},
	)
	for _, v := range []string{`1e3`, `"1e3"`, `1000.0`} {
		cs = append(cs, ok(54, v+" is an integer", `{"count":`+v+`}`, `count: 1000`))
	}
	for _, v := range []string{`1.5`, `""`, `" 1"`, `"1 "`, `0x1`, `01`, `+1`, `2147483648`} {
		cs = append(cs, bad(54, v+" is no int32", `{"count":`+v+`}`))
	}
	cs = append(cs,
		bad(54, "-1 is not unsigned", `{"unsigned":-1}`),
		ok(55, `"NaN" is a number`, `{"exact":"NaN"}`, `exact: nan`),
		ok(55, `"-Infinity" is a number`, `{"exact":"-Infinity"}`, `exact: -inf`),
		bad(55, "NaN is not", `{"exact":NaN}`),
		bad(55, "1e400 is too large", `{"exact":1e400}`),
		bad(55, "3.5e38 is too large for a float", `{"ratio":3.5e38}`),
		Case{Number: 55, Rule: "-0 keeps its sign", Verb: "GET", Path: "/items/a", Reply: Reply{Messages: []string{wire("exact: -0.0")}}, Want: status(200, `"exact":-0`)},
		ok(56, "an enum by name", `{"color":"COLOR_RED"}`, `color: COLOR_RED`),
		ok(56, "an enum by number", `{"color":2}`, `color: COLOR_GREEN`),
		ok(56, "an enum by its alias", `{"color":"COLOR_LEAF"}`, `color: COLOR_GREEN`),
		ok(56, "an unknown number", `{"color":9}`, `color: 9`),
		bad(56, "an unknown name is refused", `{"color":"COLOR_BLUE"}`),
		bad(56, "an unknown name in a list is refused", `{"colors":["COLOR_RED","COLOR_BLUE"]}`),
		Case{Number: 56, Rule: "the first alias and unknown numbers are printed", Verb: "GET", Path: "/items/a", Reply: Reply{Messages: []string{wire("colors: 2 colors: 9")}}, Want: status(200, `"colors":["COLOR_GREEN",9]`)},
		ok(57, "both alphabets of base64", `{"data":"-_8"}`, `data: "\373\377"`),
		Case{Number: 57, Rule: "bytes are printed in the standard alphabet, padded", Verb: "GET", Path: "/items/a", Reply: Reply{Messages: []string{wire(`data: "\373\377"`)}}, Want: status(200, `"data":"+/8="`)},
		bad(58, "a lone surrogate", `{"name":"\ud800"}`),
		bad(58, "a control character", "{\"name\":\"a\x01\"}"),
		bad(58, "no UTF-8", "{\"name\":\"\xff\"}"),
		ok(58, "NUL and a pair of surrogates", `{"name":"\u0000\ud83d\ude00"}`, `name: "\000😀"`),
		bad(59, "a byte order mark", "\xef\xbb\xbf{}"),
		bad(59, "a comment", "{/**/}"),
		bad(59, "a trailing comma", `{"name":"a",}`),
		bad(59, "single quotes", `{'name':'a'}`),
		ok(60, "map keys are strings", `{"switches":{"true":"a"},"numbers":{"-7":"b"}}`, `switches {key: true value: "a"} numbers {key: -7 value: "b"}`),
		bad(60, "a map key of another type", `{"numbers":{"x":"b"}}`),
		bad(60, "a map key once", `{"labels":{"a":"1","a":"2"}}`),
		ok(61, "an offset is normalised", `{"time":"2020-01-01T00:00:00.5+02:00"}`, `time {seconds: 1577829600 nanos: 500000000}`),
		Case{Number: 61, Rule: "times are printed in UTC with 3, 6 or 9 digits", Verb: "GET", Path: "/items/a", Reply: Reply{Messages: []string{wire("time {seconds: 1577829600 nanos: 500000000}")}}, Want: status(200, `"2019-12-31T22:00:00.500Z"`)},
	)
	for _, v := range []string{"2020-01-01t00:00:00Z", "2020-01-01T00:00:00z", "2020-01-01T00:00:60Z", "2020-01-01T00:00:00.0123456789Z", "0000-12-31T00:00:00Z", "10000-01-01T00:00:00Z", "2020-01-01"} {
		cs = append(cs, bad(61, v+" is no timestamp", `{"time":"`+v+`"}`))
	}
	cs = append(cs,
		ok(62, "a negative duration below a second", `{"span":"-0.5s"}`, `span {nanos: -500000000}`),
		bad(62, "a duration needs its unit", `{"span":"1"}`),
		bad(62, "a duration out of range", `{"span":"315576000001s"}`),
		Case{Number: 62, Rule: "durations are printed with 3, 6 or 9 digits", Verb: "GET", Path: "/items/a", Reply: Reply{Messages: []string{wire("span {seconds: -1 nanos: -500000000}")}}, Want: status(200, `"-1.500s"`)},
	)
	for _, tc := range []struct{ rule, reply, field string }{
		{"a timestamp out of range", wire("time {seconds: 999999999999999}"), "time"},
		{"a duration of two signs", wire("sub {span {seconds: 1 nanos: -1}}"), "sub.span"},
		{"a mask that has no camel case", wire(`mask {paths: "fooBar"}`), "mask"},
		{"a string that is not UTF-8", "\x12\x01\xff", "name"},
		{"NaN in a Value", wire("value {number_value: nan}"), "value"},
	} {
		cs = append(cs, Case{
			Number: 63, Rule: tc.rule + " from the backend is a 500 that names the field", Verb: "GET", Path: "/items/a",
			Reply: Reply{Messages: []string{tc.reply}}, Want: Want{Code: 500, Called: true, RPC: 13, Has: []string{tc.field}},
		})
	}
	cs = append(cs,
		ok(64, "a mask in camel case", `{"mask":"fooBar,a.bC"}`, `mask {paths: "foo_bar" paths: "a.b_c"}`),
		bad(64, "a mask in snake case", `{"mask":"foo_bar"}`),
		ok(64, "an empty mask", `{"mask":""}`, `mask {}`),
		ok(65, "@type anywhere in an Any", `{"any":{"value":"1.5s","@type":"type.googleapis.com/google.protobuf.Duration"}}`, `any {[type.googleapis.com/google.protobuf.Duration]: {seconds: 1 nanos: 500000000}}`),
		ok(65, "an Any of the schema", `{"any":{"name":"x","@type":"type.googleapis.com/cases.v1.Item"}}`, `any {[type.googleapis.com/cases.v1.Item]: {name: "x"}}`),
		bad(65, "an Any without @type", `{"any":{"name":"x"}}`),
		bad(65, "an Any of an unknown type", `{"any":{"@type":"type.googleapis.com/no.Body"}}`),
		ok(66, "Struct and Value nest", `{"struct":{"a":[1,{"b":null}]}}`, `struct {fields {key: "a" value {list_value {values {number_value: 1} values {struct_value {fields {key: "b" value {null_value: NULL_VALUE}}}}}}}}`),
		Case{Number: 66, Rule: "a Value without a kind cannot be printed", Verb: "GET", Path: "/items/a", Reply: Reply{Messages: []string{wire("value {}")}}, Want: Want{Code: 500, Called: true}},
		bad(67, "20,000 brackets", strings.Repeat("[", 20000)),
		bad(67, "20,000 objects", strings.Repeat(`{"sub":`, 20000)),
		bad(67, "20,000 brackets in a Value", `{"value":`+strings.Repeat("[", 20000)+strings.Repeat("]", 20000)+`}`),
		post(68, "an unknown field is named", "/body", `{"sub":{"colour":1}}`, invalid("colour")),
		ok(69, "json_name", `{"otherName":"x"}`, `renamed: "x"`),
		ok(69, "the name in the .proto file", `{"renamed":"x"}`, `renamed: "x"`),
		post(70, "a list as the body", "/tags", `["a","b"]`, got("BodyTags", `tags: "a" tags: "b"`)),
		post(70, "a scalar as the body", "/name", `"x"`, got("BodyName", `name: "x"`)),
		post(70, "a wrapper as the body", "/wrapped", `"5"`, got("BodyWrapped", `wrapped {value: 5}`)),
		post(70, "an enum as the body", "/color", `"COLOR_RED"`, got("BodyColor", `color: COLOR_RED`)),
		Case{Number: 71, Rule: "a body without a rule is not looked at", Verb: "DELETE", Path: "/items/a", Body: `{"name":"x"`, Want: got("DeleteItem", `id: "a"`), Or: []Want{status(400)}},
		typed("a charset", "application/json; charset=utf-8", got("Body", `name: "x"`)),
		typed("upper case", "application/JSON", got("Body", `name: "x"`)),
		typed("merge-patch+json", "application/merge-patch+json", got("Body", `name: "x"`)),
		typed("no type", "", got("Body", `name: "x"`)),
		typed("another charset", "application/json; charset=utf-16", status(415)),
		typed("text/plain, which any page may send", "text/plain", status(415)),
		Case{Number: 73, Rule: "an unknown coding is 415 with Accept-Encoding", Verb: "POST", Path: "/body", Body: `{}`, Header: []string{"Content-Encoding: lzma"}, Want: Want{Code: 415, Header: []string{"Accept-Encoding: gzip"}}},
		Case{Number: 73, Rule: "a body in gzip", Verb: "POST", Path: "/body", Body: zipped(`{"name":"x"}`), Header: []string{"Content-Encoding: gzip"}, Want: got("Body", `name: "x"`)},
		Case{Number: 73, Rule: "the limit counts what is unpacked", Verb: "POST", Path: "/body", Body: zipped(`{"name":"` + strings.Repeat("x", 3*MaxBody) + `"}`), Header: []string{"Content-Encoding: gzip"}, Want: status(413)},
		Case{Number: 73, Rule: "garbage behind gzip", Verb: "POST", Path: "/body", Body: zipped(`{"name":"x"}`) + "garbage", Header: []string{"Content-Encoding: gzip"}, Want: status(400)},
		post(74, "a body over the limit", "/body", `{"name":"`+strings.Repeat("x", 2*MaxBody)+`"}`, status(413)),
		Case{Number: 74, Rule: "a body over the limit in chunks", Verb: "POST", Path: "/body", Body: `{"name":"` + strings.Repeat("x", 2*MaxBody) + `"}`, Chunked: true, Want: status(413)},
		Case{
			Number: 74, Rule: "an answer over the limit is no 429", Verb: "GET", Path: "/items/a", Reply: Reply{Messages: []string{wire(fmt.Sprintf("name: %q", strings.Repeat("x", 5<<20)))}},
			Want: Want{Code: 502, Called: true, RPC: 8}, Or: []Want{{Code: 500, Called: true, RPC: 8}, {Code: 200}},
		},
		patch(75, "PATCH fills the mask from the body", "/patch/a", `{"name":"x","sub":{"count":1}}`, got("PatchItem", `id: "a" sub {name: "x" sub {count: 1}} mask {paths: "name" paths: "sub.count"}`)),
		patch(75, "lists, maps and wrappers are leaves, null clears", "/patch/a", `{"tags":["a"],"labels":{"k":"v"},"wrapped":1,"count":null}`, got("PatchItem", `id: "a" sub {tags: "a" labels {key: "k" value: "v"} wrapped {value: 1}} mask {paths: "tags" paths: "labels" paths: "wrapped" paths: "count"}`)),
		patch(75, "an unknown key is refused", "/patch/a", `{"colour":"x"}`, status(400)),
		patch(75, "a mask of the query is kept", "/patch/a?mask=count", `{"name":"x"}`, got("PatchItem", `id: "a" sub {name: "x"} mask {paths: "count"}`)),
		patch(76, `PATCH with body "*" fills no mask`, "/patch", `{"name":"x"}`, got("PatchAll", `name: "x"`)),
	)
	return cs
}

// failed is a reply with a status after n messages.
func failed(n int, code, text string, trailer ...string) Reply {
	r := Reply{Messages: []string{}, Status: code, Text: text, Trailer: trailer}
	for i := range n {
		r.Messages = append(r.Messages, wire(fmt.Sprintf("count: %d", i+1)))
	}
	return r
}

func answers() []Case {
	get := func(n int, rule, path string, r Reply, w Want, or ...Want) Case {
		return Case{Number: n, Rule: rule, Verb: "GET", Path: path, Reply: r, Want: w, Or: or}
	}
	called := func(code, rpc int, has ...string) Want { return Want{Code: code, RPC: rpc, Called: true, Has: has} }
	accept := func(c Case, header ...string) Case {
		c.Header = header
		return c
	}
	one := func(text string) Reply { return Reply{Messages: []string{wire(text)}} }
	unknown := &anypb.Any{TypeUrl: "type.googleapis.com/no.Body", Value: []byte("xyz")}
	cs := []Case{
		get(77, "response_body of a list is an array", "/answer/tags", one(`tags: "a"`), Want{Code: 200, Body: exactly(`["a"]`)}),
		get(77, "an empty list is []", "/answer/tags", one(""), Want{Code: 200, Body: exactly(`[]`)}),
		get(77, "response_body of a scalar is bare", "/answer/name", one(`name: "x"`), Want{Code: 200, Body: exactly(`"x"`)}),
		get(77, "an unset message is null or {}", "/answer/sub", one(``), Want{Code: 200, Body: exactly(`null`)}, Want{Code: 200, Body: exactly(`{}`)}),
		get(78, "an HttpBody is its data", "/files/a", Reply{Messages: []string{file("text/csv", "a,b\n")}}, Want{Code: 200, Body: exactly("a,b\n"), Header: []string{"Content-Type: text/csv"}}),
		get(78, "an empty HttpBody", "/files/a", Reply{Messages: []string{file("text/csv", "")}}, Want{Code: 200, Body: exactly(""), Header: []string{"Content-Type: text/csv"}}),
		get(78, "an HttpBody without a type", "/files/a", Reply{Messages: []string{file("", "x")}}, Want{Code: 200, Body: exactly("x"), Header: []string{"Content-Type: application/octet-stream"}}),
		get(78, "a type with a line break splits no header", "/files/a", Reply{Messages: []string{file("text/csv\r\nEvil: 1", "x")}}, Want{Header: []string{"Evil"}, Check: func(a Answer) error {
			if strings.Contains(a.Header.Get("Content-Type"), "Evil") {
				return errors.New("the line break was folded into the type")
			}
			return nil
		}}),
		{Number: 78, Rule: "an HttpBody as the request", Verb: "POST", Path: "/files/a", Header: []string{"Content-Type: text/csv"}, Body: "a,b\n", Want: got("Upload", `id: "a" file {content_type: "text/csv" data: "a,b\n"}`)},
		get(79, "a stream of HttpBody is its bytes", "/filestream/a", Reply{Messages: []string{file("text/csv", "a,b\n"), file("", "c,"), file("", "d\n")}}, Want{Code: 200, Body: exactly("a,b\nc,d\n"), Header: []string{"Content-Type: text/csv"}}),
		get(79, "a stream of HttpBody that fails is cut off", "/filestream/a", Reply{Messages: []string{file("text/csv", "a,b\n")}, Status: "13", Text: "broken"}, Want{Code: 200, Cut: true, Body: exactly("a,b\n")}),
		{Number: 80, Rule: "path and type come with the first part only", Verb: "POST", Path: "/filestream/a", Header: []string{"Content-Type: text/csv"}, Body: strings.Repeat("0123456789abcdef", 16<<10), Want: Want{Code: 200, Method: "", Check: parts}},
		{Number: 80, Rule: "an empty upload is one message", Verb: "POST", Path: "/filestream/a", Header: []string{"Content-Type: text/csv"}, Want: Want{Code: 200, Check: func(a Answer) error {
			if len(a.Calls) != 1 || len(a.Calls[0].Items) != 1 || a.Calls[0].Items[0].GetId() != "a" {
				return fmt.Errorf("the backend got %v", a.Calls)
			}
			return nil
		}}},
		get(81, "a detail of an unknown type does not hide the error", "/items/a", failed(0, "5", "gone", "Grpc-Status-Details-Bin: "+details(5, "gone", unknown)), called(404, 5, "gone")),
		get(82, "details that are no message do not hide the error", "/items/a", failed(0, "5", "gone", "Grpc-Status-Details-Bin: AAAA"), called(404, 5, "gone")),
		get(82, "details of another code do not change it", "/items/a", failed(0, "5", "gone", "Grpc-Status-Details-Bin: "+details(7, "other")), called(404, 5), called(500, 13)),
	}
	for _, code := range []string{"17", "99", "-1", "abc"} {
		cs = append(cs, get(83, "status "+code+" is unknown", "/items/a", failed(0, code, "odd"), called(500, 0)))
	}
	for _, tc := range []struct{ from, to, rpc int }{{400, 500, 13}, {401, 401, 16}, {403, 403, 7}, {404, 501, 12}, {503, 503, 14}, {418, 500, 2}, {200, 500, 2}} {
		cs = append(cs, get(84, fmt.Sprintf("HTTP %d without gRPC is code %d", tc.from, tc.rpc), "/items/a", Reply{HTTP: tc.from}, called(tc.to, tc.rpc)))
	}
	cs = append(cs,
		get(85, "a stream that is reset as refused", "/items/a", Reply{Reset: 7}, called(503, 14)),
		get(85, "a stream that is reset as cancelled", "/items/a", Reply{Reset: 8}, called(499, 1)),
		get(85, "a stream that is reset to calm the caller", "/items/a", Reply{Reset: 11}, called(429, 8)),
		get(85, "a stream that is reset as not secure enough", "/items/a", Reply{Reset: 12}, called(403, 7)),
		get(85, "a stream that is reset with another code", "/items/a", Reply{Reset: 2}, called(500, 13)),
		get(86, "a status in the only headers", "/items/a", Reply{TrailersOnly: true, Status: "5", Text: "gone"}, called(404, 5, "gone")),
		get(86, "success without a message is none", "/items/a", failed(0, "0", ""), called(500, 13), called(501, 12)),
		get(86, "two messages are no success", "/items/a", failed(2, "0", ""), called(500, 13), called(501, 12)),
		get(87, "a message and an error is an error", "/items/a", failed(1, "5", "gone"), Want{Code: 404, RPC: 5, Called: true, Hasnt: []string{"count"}}),
		get(88, "no status is no success", "/items/a", Reply{Status: "-"}, called(500, 13), called(500, 2)),
		get(89, "escapes in grpc-message that are none stay", "/items/a", failed(0, "5", "100%zz %C3%BC%"), called(404, 5, "100%zz ü%")),
	)
	for i, code := range []int{499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401} {
		cs = append(cs, get(90, fmt.Sprintf("code %d is HTTP %d", i+1, code), "/items/a", failed(0, strconv.Itoa(i+1), "no"), called(code, i+1)))
	}
	cs = append(cs,
		get(91, "an unknown path has an error of the same shape", "/nowhere", Reply{}, Want{Code: 404, RPC: 5, Header: []string{"Content-Type: application/json"}}),
		accept(Case{Number: 91, Rule: "an unknown type has an error of the same shape", Verb: "POST", Path: "/body", Body: "<a/>", Want: Want{Code: 415, Has: []string{`"code":`, `"message":`}, Header: []string{"Content-Type: application/json"}}}, "Content-Type: application/xml"),
		get(92, "the backend's message is in no header", "/items/a", failed(0, "16", "secret%0D%0AEvil: 1"), Want{Code: 401, Called: true, Header: []string{"Evil"}, Check: func(a Answer) error {
			for k, vs := range a.Header {
				if strings.Contains(strings.Join(vs, " "), "secret") {
					return fmt.Errorf("header %s has the message", k)
				}
			}
			return nil
		}}),
		get(93, "a stream that fails at once is answered as a unary call", "/stream", failed(0, "5", "gone"), called(404, 5, "gone")),
		get(94, "a late error is told from a message", "/stream", failed(2, "5", "gone"), Want{Check: lateLine}),
		accept(get(94, "a late error does not close the array", "/stream", failed(2, "5", "gone"), Want{Cut: true, Check: lateArray}, Want{Check: lateArray}), "Accept: application/json"),
		accept(get(94, "a late error is an event", "/stream", failed(2, "5", "gone"), Want{Code: 200, Has: []string{"event: error", "gone"}, Header: []string{"Content-Type: text/event-stream"}}), "Accept: text/event-stream"),
		accept(get(95, "an empty stream in lines", "/stream", failed(0, "0", ""), Want{Code: 200, Body: exactly(""), Header: []string{"Content-Type: application/x-ndjson"}}), "Accept: application/x-ndjson"),
		get(95, "an empty stream has a type", "/stream", failed(0, "0", ""), Want{Code: 200, Header: []string{"Content-Type: json"}}),
		accept(get(95, "an empty stream as an array", "/stream", failed(0, "0", ""), Want{Code: 200, Check: func(a Answer) error {
			if strings.TrimSpace(string(a.Body)) != "[]" {
				return fmt.Errorf("not [] but %q", a.Body)
			}
			return nil
		}}), "Accept: application/json"),
		get(96, "a record has no line break", "/stream", Reply{Messages: []string{wire(`name: "a\nb"`), wire(`name: "c"`)}}, Want{Code: 200, Check: func(a Answer) error {
			if n := len(lines(a.Body)); n != 2 {
				return fmt.Errorf("%d lines, not 2", n)
			}
			return nil
		}}),
		accept(get(96, "events are not cached", "/stream", Reply{}, Want{Code: 200, Header: []string{"Content-Type: text/event-stream", "Cache-Control: no-cache"}}, Want{Code: 200, Header: []string{"Content-Type: text/event-stream", "Cache-Control: no-store"}}), "Accept: text/event-stream"),
		Case{Number: 97, Rule: "the client leaves a unary call", Verb: "GET", Path: "/items/a", Leave: true, Reply: Reply{Hang: true}},
		Case{Number: 97, Rule: "the client leaves a stream", Verb: "GET", Path: "/stream", Leave: true, Reply: Reply{Hang: true}},
		Case{
			Number: 98, Rule: "of a stream that nobody reads the backend can send a bounded part", Verb: "GET", Path: "/stream", Stall: true, Reply: Reply{Endless: true},
			Want: Want{Code: 200},
		},
	)
	return cs
}

// parts checks an upload in several messages.
func parts(a Answer) error {
	if len(a.Calls) != 1 || len(a.Calls[0].Items) == 0 {
		return fmt.Errorf("the backend got %d calls", len(a.Calls))
	}
	size := 0
	for i, m := range a.Calls[0].Items {
		size += len(m.GetFile().GetData())
		if first := i == 0; (m.GetId() == "a") != first || (m.GetFile().GetContentType() == "text/csv") != first {
			return fmt.Errorf("message %d has id %q and type %q", i, m.GetId(), m.GetFile().GetContentType())
		}
	}
	if size != 256<<10 {
		return fmt.Errorf("the backend got %d bytes", size)
	}
	return nil
}

func headers() []Case {
	const item = "/items/a"
	get := func(n int, rule string, header []string, w Want, or ...Want) Case {
		return Case{Number: n, Rule: rule, Verb: "GET", Path: item, Header: header, Want: w, Or: or}
	}
	// A gateway may pass metadata on with a prefix or without.
	seen := func(name, value string) Want {
		return Want{Code: 200, Check: func(a Answer) error {
			for _, n := range []string{name, "Grpc-Metadata-" + name} {
				if vs := a.Header.Values(n); strings.Join(vs, "|") == value {
					return nil
				}
			}
			return fmt.Errorf("no header %s with %q: %v", name, value, a.Header)
		}}
	}
	return []Case{
		get(99, "binary metadata of two values", []string{"Grpc-Metadata-Key-Bin: AQI=,AwQ", "Key-Bin: AQI=,AwQ"}, Want{Code: 200, Metadata: []string{"key-bin: AQI,AwQ"}}),
		{Number: 99, Rule: "binary metadata of an answer is base64", Verb: "GET", Path: item, Reply: Reply{Header: []string{"Key-Bin: AQL/"}}, Want: seen("Key-Bin", "AQL/")},
		get(100, "hop-by-hop headers stay", []string{"Te: trailers, deflate", "Keep-Alive: 5", "Proxy-Authorization: Basic eDp5", "Grpc-Metadata-Connection: x", "Connection: X-Hop", "X-Hop: 1"},
			Want{Code: 200, Metadata: []string{"connection", "keep-alive", "proxy-authorization", "x-hop"}}),
		get(101, "grpc headers cannot be injected", []string{"Grpc-Metadata-Grpc-Status: 5", "Grpc-Metadata-Grpc-Encoding: lzma", "Grpc-Encoding: lzma", "Grpc-Status: 5"}, Want{Code: 200, Metadata: []string{"grpc-status", "grpc-encoding"}}, status(400)),
		get(101, "names reach the backend in lower case", []string{"Grpc-Metadata-X-Upper: 1", "X-Upper: 1"}, Want{Code: 200, Metadata: []string{"x-upper: 1"}}),
		get(102, "a malformed timeout", []string{"Grpc-Timeout: soon"}, status(400), status(200)),
		get(102, "a timeout of nine digits", []string{"Grpc-Timeout: 123456789S"}, status(400)),
		get(102, "a timeout of zero is over at once", []string{"Grpc-Timeout: 0n"}, Want{Code: 504, RPC: 4}),
		{
			Number: 103, Rule: "the deadline ends a call that is not answered", Verb: "GET", Path: item, Header: []string{"Grpc-Timeout: 200m", "X-Server-Timeout: 0.2"}, Reply: Reply{Hang: true},
			Want: Want{Code: 504, RPC: 4, Called: true, Check: func(a Answer) error {
				if len(a.Calls) != 1 || a.Calls[0].Header.Get("Grpc-Timeout") == "" {
					return errors.New("the backend was not told the deadline")
				}
				return nil
			}},
		},
		get(104, "metadata of many values keeps their order", []string{"Grpc-Metadata-X-Many: b", "Grpc-Metadata-X-Many: a", "X-Many: b", "X-Many: a"}, Want{Code: 200, Metadata: []string{"x-many: b,a"}}),
		{Number: 104, Rule: "Set-Cookie is not joined", Verb: "GET", Path: item, Reply: Reply{Header: []string{"Set-Cookie: a=1", "Set-Cookie: b=2"}}, Want: seen("Set-Cookie", "a=1|b=2")},
		get(105, "a GET without side effects has a tag", nil, Want{Code: 200, Header: []string{`Etag: W/"`}}),
		get(105, "and none is sent again to who has it", []string{`If-None-Match: *`}, Want{Code: 304, Called: true, Header: []string{`Etag: W/"`}, Body: new(string)}),
		get(105, "another tag changes nothing", []string{`If-None-Match: "other"`}, Want{Code: 200, Header: []string{`Etag: W/"`}}),
		{
			Number: 105, Rule: "the backend's own tag is compared, weakly", Verb: "GET", Path: item, Header: []string{`If-None-Match: "a", W/"v7"`}, Reply: Reply{Header: []string{`Etag: "v7"`}},
			Want: Want{Code: 304, Called: true, Header: []string{`Etag: "v7"`}, Body: new(string)},
		},
		{Number: 105, Rule: "a method that may have effects has no tag", Verb: "GET", Path: "/shelves/1/books/2", Header: []string{"If-None-Match: *"}, Want: Want{Code: 200, Header: []string{"Etag"}}},
		{
			Number: 105, Rule: "an error has no tag", Verb: "GET", Path: item, Header: []string{"If-None-Match: *"}, Reply: Reply{Status: "5", Text: "gone"},
			Want: Want{Code: 404, Called: true, RPC: 5, Header: []string{"Etag"}},
		},
		{
			Number: 106, Rule: "a large answer is packed for who takes it", Verb: "GET", Path: item, Header: []string{"Accept-Encoding: gzip"}, Reply: Reply{Messages: []string{wire(fmt.Sprintf("name: %q", strings.Repeat("x", 64<<10)))}},
			Want: Want{Code: 200, Header: []string{"Content-Encoding: gzip", "Vary: Accept-Encoding"}},
		},
		{
			Number: 106, Rule: "and not for who does not", Verb: "GET", Path: item, Header: []string{"Accept-Encoding: gzip;q=0"}, Reply: Reply{Messages: []string{wire(fmt.Sprintf("name: %q", strings.Repeat("x", 64<<10)))}},
			Want: Want{Code: 200, Header: []string{"Content-Encoding"}},
		},
		get(107, "a unary call has no events", []string{"Accept: text/event-stream"}, Want{Code: 200, Header: []string{"Content-Type: application/json"}}, status(406)),
		get(107, "*/* takes the default", []string{"Accept: */*"}, Want{Code: 200, Header: []string{"Content-Type: application/json"}}),
		{
			Number: 108, Rule: "a preflight is answered without a call", Verb: http.MethodOptions, Path: item, Header: []string{"Origin: " + Origin, "Access-Control-Request-Method: GET"},
			Want: Want{Header: []string{"Access-Control-Allow-Origin: " + Origin}, Check: func(a Answer) error {
				if a.Code/100 != 2 || len(a.Calls) > 0 {
					return fmt.Errorf("HTTP %d after %d calls", a.Code, len(a.Calls))
				}
				return nil
			}},
		},
		get(108, "pages may read the status", []string{"Origin: " + Origin}, Want{Code: 200, Header: []string{"Access-Control-Allow-Origin: " + Origin, "Access-Control-Expose-Headers: grpc-status", "Vary: Origin"}}),
		get(108, "a foreign page gets no leave", []string{"Origin: https://evil.example"}, Want{Header: []string{"Access-Control-Allow-Origin"}}),
	}
}

// lines are the lines of an NDJSON body.
func lines(body []byte) []string {
	return strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
}
