package descriptors_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/descriptors"
)

// sources compiles files given as name → body to one set named origin. A body without "syntax" gets proto3 and, if it has
// an HTTP rule, the import that it needs.
func sources(t testing.TB, origin string, files map[string]string) *descriptors.Set {
	t.Helper()
	set, err := trySources(t, files)
	if err != nil {
		t.Fatal(err)
	}
	set.Origin = origin
	return set
}

func trySources(t testing.TB, files map[string]string) (*descriptors.Set, error) {
	t.Helper()
	dir := t.TempDir()
	var names []string
	for name, body := range files {
		if !strings.Contains(body, "syntax =") && !strings.Contains(body, "edition =") {
			header := "syntax = \"proto3\"; package t.v1;"
			if strings.Contains(body, "google.api.http") {
				header += "import \"google/api/annotations.proto\";"
			}
			body = header + "\n" + body
		}
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return descriptors.FromProto(context.Background(), []string{dir}, names)
}

// lines are the faults of err, one each.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

func checkFaults(t *testing.T, err error, want ...string) {
	t.Helper()
	got := lines(err)
	if len(got) != len(want) {
		t.Fatalf("got %d faults, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("fault %d:\n got %s\nwant %s", i, got[i], want[i])
		}
	}
}

const request = `message R { string id = 1; string name = 2; int32 n = 3; R sub = 4; repeated string list = 5;
	map<string, string> map = 6; oneof pick { string x = 7; string y = 8; } bytes raw = 9; string display_name = 10;
	optional string o = 11; optional string p = 12; }
`

func TestBadRules(t *testing.T) {
	tests := []struct {
		source string
		rule   string
		want   []string // each after "method t.v1.S.M: google.api.http"
	}{
		{"23", `get: "/a/**/*"`, []string{`: path template "/a/**/*", column 7: only literals may follow "**"`}},
		{"23", `get: "/a/**/**"`, []string{`: path template "/a/**/**", column 7: only literals may follow "**"`}},
		{"23", `get: "/**/{id}"`, []string{`: path template "/**/{id}", column 5: only literals may follow "**"`}},
		{"23", `get: "/{id}a"`, []string{`: path template "/{id}a", column 6: a variable must be a whole segment, but "a" follows it`}},
		{"23", `get: "/a{id}"`, []string{`: path template "/a{id}", column 3: a literal must be a whole segment, but "{" follows it`}},
		{"23", `get: "/a/{id=/b}"`, []string{`: path template "/a/{id=/b}", column 8: the pattern of a variable must not begin with a slash`}},
		{"23", `get: "/:verb"`, []string{`: path template "/:verb", column 2: a segment is missing before the colon`}},
		{"23", `get: "/a//b"`, []string{`: path template "/a//b", column 4: an empty segment is not allowed`}},
		{"23", `get: "/a/"`, []string{`: path template "/a/", column 3: a template must not end with a slash`}},
		{"23", `get: "/*:"`, []string{`: path template "/*:", column 4: a verb is missing at the end`}},
		{"23", `get: "/{id={name}}"`, []string{`: path template "/{id={name}}", column 6: a variable inside a variable is not allowed`}},
		{"23", `get: "/{id}/{id}"`, []string{`: path template "/{id}/{id}", column 8: the variable "id" appears twice`}},
		{"23", `get: "a"`, []string{`: path template "a", column 1: must begin with a slash`}},
		{"23", `get: ""`, []string{`: path template "", column 1: is empty`}},
		{"23", `get: "/{id"`, []string{`: path template "/{id", column 2: the variable is not closed`}},
		{"23", `get: "/{id=a"`, []string{`: path template "/{id=a", column 2: the variable is not closed`}},
		{"23", `get: "/{}"`, []string{`: path template "/{}", column 3: a field name is expected, not "}"`}},
		{"23", `get: "/{id.}"`, []string{`: path template "/{id.}", column 6: a field name is expected, not "}"`}},
		{"23", `get: "/{id=}"`, []string{`: path template "/{id=}", column 6: a segment is missing after "="`}},
		{"23", `get: "/{1d}"`, []string{`: path template "/{1d}", column 3: a field name is expected, not "1"`}},
		{"23", `get: "/a*"`, []string{`: path template "/a*", column 3: a literal must be a whole segment, but "*" follows it`}},
		{"23", `get: "/***"`, []string{`: path template "/***", column 4: "**" must be a whole segment, but "*" follows it`}},
		{"23", `get: "/a:b/c"`, []string{`: path template "/a:b/c", column 5: the verb "b" must end the template`}},
		{"23", `get: "/a}"`, []string{`: path template "/a}", column 3: unexpected "}"`}},
		{"23", `get: "/a?b=c"`, []string{`: path template "/a?b=c", column 3: "?" is not allowed: a template has a path only`}},
		{"23", `get: "/a b"`, []string{`: path template "/a b", column 3: " " is not allowed in a literal`}},
		{"23", `get: "/a%2"`, []string{`: path template "/a%2", column 3: "%" must be followed by two hex digits`}},
		{"23", `get: "/%ff"`, []string{`: path template "/%ff", column 2: the escapes of the literal do not decode to UTF-8`}},
		{"24", `get: "/{nope}"`, []string{`: path template "/{nope}", column 3: variable "nope": message t.v1.R has no field "nope"`}},
		{"24", `get: "/{nam}"`, []string{`: path template "/{nam}", column 3: variable "nam": message t.v1.R has no field "nam"; did you mean "name"?`}},
		{"24", `get: "/{displayName}"`, []string{`: path template "/{displayName}", column 3: variable "displayName": message t.v1.R has no field "displayName"; rules use protobuf names: did you mean "display_name"?`}},
		{"24", `get: "/{list}"`, []string{`: path template "/{list}", column 3: variable "list": "list" is a repeated field, which a path cannot hold`}},
		{"24", `get: "/{map}"`, []string{`: path template "/{map}", column 3: variable "map": "map" is a map field, which a path cannot hold`}},
		{"24", `get: "/{sub}"`, []string{`: path template "/{sub}", column 3: variable "sub": it is a message of type t.v1.R, which a path cannot hold`}},
		{"24", `get: "/{sub.list}"`, []string{`: path template "/{sub.list}", column 3: variable "sub.list": "sub.list" is a repeated field, which a path cannot hold`}},
		{"24", `get: "/{id.x}"`, []string{`: path template "/{id.x}", column 3: variable "id.x": "id" is of type string and has no fields`}},
		{"two of a oneof", `get: "/{x}/{y}"`, []string{`: path template "/{x}/{y}", column 7: variables "x" and "y" are members of one oneof, "pick"`}},
		{"two of a oneof", `post: "/{x}" body: "y"`, []string{`: body: "y" and the path variable "x" are members of one oneof, "pick"`}},
		{"29", `get: "/a" additional_bindings: {get: "/b" additional_bindings: {get: "/c"}}`, []string{` additional_bindings[0]: an additional binding must not have additional_bindings of its own`}},
		{"30", `post: "/a" body: "sub.name"`, []string{`: body: "sub.name" must be a field of t.v1.R itself, not a nested one`}},
		{"30", `post: "/a" body: "nope"`, []string{`: body: message t.v1.R has no field "nope"`}},
		{"30", `post: "/a" response_body: "sub.name"`, []string{`: response_body: "sub.name" must be a field of t.v1.R itself, not a nested one`}},
		{"30", `post: "/a" response_body: "nope"`, []string{`: response_body: message t.v1.R has no field "nope"`}},
		{"30", `post: "/{id}" body: "id"`, []string{`: body: the field "id" is bound by the path already`}},
		{"no pattern", `body: "*"`, []string{`: the rule has no pattern (get, put, post, delete, patch or custom)`}},
		{"custom", `custom: {kind: "GET A" path: "/a"}`, []string{`: custom kind "GET A" is not an HTTP method`}},
		{"custom", `custom: {path: "/a"}`, []string{`: custom kind "" is not an HTTP method`}},
		{"22", `get: "/a/{id}" additional_bindings: {get: "/a/{name}"}`, []string{`!method t.v1.S.M: GET /a/{name} is bound twice (as /a/{id})`}},
		{"all at once", `get: "/{nope}/{list}" body: "x.y" response_body: "zz" additional_bindings: {put: "b"}`, []string{
			`: path template "/{nope}/{list}", column 3: variable "nope": message t.v1.R has no field "nope"`,
			`: path template "/{nope}/{list}", column 10: variable "list": "list" is a repeated field, which a path cannot hold`,
			`: body: "x.y" must be a field of t.v1.R itself, not a nested one`,
			`: response_body: message t.v1.R has no field "zz"`,
			` additional_bindings[0]: path template "b", column 1: must begin with a slash`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.source+" "+tt.rule, func(t *testing.T) {
			set := sources(t, "test", map[string]string{"t.proto": request + `service S { rpc M(R) returns (R) { option (google.api.http) = {` + tt.rule + `}; } }`})
			_, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
			var want []string
			for _, w := range tt.want {
				if full, ok := strings.CutPrefix(w, "!"); ok {
					want = append(want, full)
				} else {
					want = append(want, "method t.v1.S.M: google.api.http"+w)
				}
			}
			checkFaults(t, err, want...)
		})
	}
}

// TestGoodRules are rules that must compile, with the number of bindings.
func TestGoodRules(t *testing.T) {
	for rule, want := range map[string]int{
		`get: "/{ts}/{dur}/{wrap}/{sub.raw}"`: 1, // case 24: types with a text form
		`get: "/{o}/{p}"`:                     1, // synthetic oneofs do not exclude each other
		`get: "/a=b;c,d/(x)/~"`:               1,
		`patch: "/{sub.id}" body: "sub"`:      1,
		`post: "/{id}" body: "list" response_body: "map" additional_bindings: {get: "/b"} additional_bindings: {custom: {kind: "*" path: "/c:go"}}`: 3,
	} {
		s, err := compileProto(t, strings.Replace(request, "message R {", "message R { google.protobuf.Timestamp ts = 20; google.protobuf.Duration dur = 21; google.protobuf.Int64Value wrap = 22;", 1)+
			`import "google/protobuf/timestamp.proto"; import "google/protobuf/duration.proto"; import "google/protobuf/wrappers.proto";
			service S { rpc M(R) returns (R) { option (google.api.http) = {`+rule+`}; } }`, descriptors.Options{})
		if err != nil {
			t.Errorf("%s: %v", rule, err)
			continue
		}
		if got := len(s.Bindings()); got != want {
			t.Errorf("%s: %d bindings, want %d", rule, got, want)
		}
	}
}

func TestEqualRoutes(t *testing.T) {
	_, err := routes(t, descriptors.Options{}, "GET /v1/{a}/x", "GET /v1/{b=*}/x", "POST /v1/{a}/x", "GET /v1/{a}/x:go", "GET /v2/{a=**}", "GET /v2/**", "* /v1/{a}/x")
	checkFaults(t, err,
		"methods t.v1.S.M0 and t.v1.S.M1 have the same route, GET /v1/{b=*}/x (the other is written /v1/{a}/x)",
		"methods t.v1.S.M4 and t.v1.S.M5 have the same route, GET /v2/** (the other is written /v2/{a=**})")
}

func TestBinding(t *testing.T) {
	s, err := compileProto(t, request+`service S {
		rpc Get(R) returns (R) { option idempotency_level = NO_SIDE_EFFECTS; option (google.api.http) = {get: "/{id}/{sub.name=a/*}" response_body: "list" additional_bindings: {put: "/p" body: "sub"}}; }
		rpc Put(R) returns (stream R) { option idempotency_level = IDEMPOTENT; option (google.api.http) = {post: "/all" body: "*"}; }
		rpc Up(stream R) returns (R);
	}`, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, ok := s.Method("/t.v1.S/Get")
	if !ok || m.Name != "t.v1.S.Get" || m.Effect != descriptors.EffectNone || !m.Unary() || len(m.Bindings) != 2 {
		t.Fatalf("Method: %v %+v", ok, m)
	}
	b := m.Bindings[0]
	if b.Verb != "GET" || b.Template != "/{id}/{sub.name=a/*}" || b.Body != descriptors.BodyNone || b.ResponseField == nil || b.ResponseField.Name() != "list" || b.Method != m {
		t.Errorf("first binding: %+v", b)
	}
	if v := b.Vars[1]; v.Name != "sub.name" || !v.Multi || len(v.Path) != 2 || v.Path[0].Name() != "sub" || v.Path[1].Name() != "name" {
		t.Errorf("second variable: %+v", v)
	}
	if v := b.Vars[0]; v.Multi {
		t.Errorf("{id} is not multi-segment: %+v", v)
	}
	if b := m.Bindings[1]; b.Body != descriptors.BodyField || b.BodyField.Name() != "sub" {
		t.Errorf("second binding: %+v", b)
	}
	put, _ := s.Method("/t.v1.S/Put")
	if put.Effect != descriptors.EffectIdempotent || put.ClientStreams || !put.ServerStreams || put.Bindings[0].Body != descriptors.BodyAll {
		t.Errorf("Put: %+v", put)
	}
	up, _ := s.Method("/t.v1.S/Up")
	if up.Effect != descriptors.EffectUnknown || !up.ClientStreams || up.ServerStreams || up.Bindings != nil {
		t.Errorf("Up: %+v", up)
	}
	for i, m := range s.Methods() {
		if m.ID != i {
			t.Errorf("method %s has ID %d at index %d", m.Name, m.ID, i)
		}
	}
	for i, b := range s.Bindings() {
		if b.ID != i {
			t.Errorf("binding %s has ID %d at index %d", b.Template, b.ID, i)
		}
	}
	if _, ok := s.Method("/t.v1.S/Nope"); ok {
		t.Error("Method found one that is not there")
	}
}

// TestMaskField is the part of cases 75 and 76 that is known at load.
func TestMaskField(t *testing.T) {
	const one, two, list = "google.protobuf.FieldMask mask = 20;", "google.protobuf.FieldMask m1 = 20; google.protobuf.FieldMask m2 = 21;", "repeated google.protobuf.FieldMask masks = 20;"
	for _, tt := range []struct{ fields, rule, want string }{
		{one, `patch: "/{sub.id}" body: "sub"`, "mask"},
		{one, `put: "/{sub.id}" body: "sub"`, ""},
		{one, `patch: "/{sub.id}" body: "*"`, ""},
		{one, `patch: "/{sub.id}"`, ""},
		{one, `patch: "/{sub.id}" body: "list"`, ""},
		{one, `patch: "/{sub.id}" body: "map"`, ""},
		{one, `patch: "/{sub.id}" body: "name"`, ""},
		{one, `patch: "/{sub.id}/{mask}" body: "sub"`, ""},
		{one, `patch: "/{sub.id}" body: "mask"`, ""},
		{two, `patch: "/{sub.id}" body: "sub"`, ""},
		{list, `patch: "/{sub.id}" body: "sub"`, ""},
		{"", `patch: "/{sub.id}" body: "sub"`, ""},
	} {
		s, err := compileProto(t, `import "google/protobuf/field_mask.proto";`+strings.Replace(request, "message R {", "message R {"+tt.fields, 1)+
			`service S { rpc M(R) returns (R) { option (google.api.http) = {`+tt.rule+`}; } }`, descriptors.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if f := s.Bindings()[0].MaskField; f != nil {
			got = string(f.Name())
		}
		if got != tt.want {
			t.Errorf("%s with %s: mask %q, want %q", tt.rule, tt.fields, got, tt.want)
		}
	}
}

func TestMerge(t *testing.T) {
	base := `message A { string a = 1; } enum E { E_ZERO = 0; } service S { rpc M(A) returns (A); }`
	tests := []struct {
		name, one, two string
		want           string // the fault after "file t.proto differs between one and two: ", or "" for none
	}{
		{"equal", base, base, ""},
		{"comments", base, "// A comment.\n" + base, ""},
		{"go_package", base, `option go_package = "x/y";` + base, ""},
		{"field added", base, `message A { string a = 1; int32 b = 2; } enum E { E_ZERO = 0; } service S { rpc M(A) returns (A); }`, ""},
		{"message, enum value and method added", base, `message A { string a = 1; } message B {} enum E { E_ZERO = 0; E_ONE = 1; } service S { rpc M(A) returns (A); rpc N(A) returns (B); }`, ""},
		{"each has its own", `message A { string a = 1; oneof o { string x = 3; } optional string p = 5; }`, `message A { string a = 1; oneof q { string y = 4; } optional string r = 6; oneof o { string x = 3; string z = 7; } }`, ""},
		{"rule in one only", `message A {} service S { rpc M(A) returns (A); }`, `message A {} service S { rpc M(A) returns (A) { option (google.api.http) = {get: "/a"}; } }`, ""},
		{"field removed and reserved", `message A { string a = 1; string b = 2; }`, `message A { string a = 1; reserved 2; reserved "b"; }`, ""},
		{"field type", base, `message A { bytes a = 1; }`, `field t.v1.A.a: type is "string" in one and "bytes" in the other`},
		{"field number", base, `message A { string a = 2; }`, `field t.v1.A.a: number is 1 in one and 2 in the other`},
		{"field name", base, `message A { string b = 1; }`, `message t.v1.A: field number 1: name is "a" in one and "b" in the other`},
		{"label", base, `message A { repeated string a = 1; }`, `field t.v1.A.a: label is LABEL_OPTIONAL in one and LABEL_REPEATED in the other`},
		{"presence", base, `message A { optional string a = 1; }`, `field t.v1.A.a: presence (optional) is false in one and true in the other`},
		{"json_name", base, `message A { string a = 1 [json_name = "aa"]; }`, `field t.v1.A.a: json_name is "a" in one and "aa" in the other`},
		{"oneof", base, `message A { oneof o { string a = 1; } }`, `field t.v1.A.a: oneof is "" in one and "o" in the other`},
		{"nested", `message A { message B { string c = 1; } }`, `message A { message B { int32 c = 1; } }`, `field t.v1.A.B.c: type is "string" in one and "int32" in the other`},
		{"enum number", `enum E { Z = 0; ONE = 1; }`, `enum E { Z = 0; ONE = 2; }`, `enum t.v1.E value ONE: number is 1 in one and 2 in the other`},
		{"enum name", `enum E { Z = 0; ONE = 1; }`, `enum E { Z = 0; UNO = 1; }`, `enum t.v1.E number 1: name is "ONE" in one and "UNO" in the other`},
		{"request type", base, `message A { string a = 1; } message B {} service S { rpc M(B) returns (A); }`, `method t.v1.S.M: request type is ".t.v1.A" in one and ".t.v1.B" in the other`},
		{"streaming", base, `message A { string a = 1; } service S { rpc M(A) returns (stream A); }`, `method t.v1.S.M: server streaming is false in one and true in the other`},
		{"rule", `message A {} service S { rpc M(A) returns (A) { option (google.api.http) = {get: "/a"}; } }`, `message A {} service S { rpc M(A) returns (A) { option (google.api.http) = {get: "/b"}; } }`, `method t.v1.S.M: google.api.http is "get: /a" in one and "get: /b" in the other`},
		{"idempotency", `message A {} service S { rpc M(A) returns (A) { option idempotency_level = IDEMPOTENT; } }`, `message A {} service S { rpc M(A) returns (A) { option idempotency_level = NO_SIDE_EFFECTS; } }`, `method t.v1.S.M: idempotency_level is IDEMPOTENT in one and NO_SIDE_EFFECTS in the other`},
		{"package", `syntax = "proto3"; package x; message A {}`, `syntax = "proto3"; package y; message A {}`, `file: package is "x" in one and "y" in the other`},
		{"syntax", `syntax = "proto3"; package x; message A {}`, `syntax = "proto2"; package x; message A {}`, `file: syntax is "proto3" in one and "proto2" in the other`},
		{"features", `edition = "2023"; package x; message A { string a = 1; }`, `edition = "2023"; package x; message A { string a = 1 [features.field_presence = IMPLICIT]; }`, `field x.A.a: its features differ`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			one, two := sources(t, "one", map[string]string{"t.proto": tt.one}), sources(t, "two", map[string]string{"t.proto": tt.two})
			before := proto.Clone(one.Files[len(one.Files)-1])
			s, err := descriptors.Compile([]*descriptors.Set{one, two}, descriptors.Options{})
			if tt.want != "" {
				checkFaults(t, err, "file t.proto differs between one and two: "+tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(before, one.Files[len(one.Files)-1]) {
				t.Error("Compile changed a set")
			}
			// Whatever either has is in the result, whichever comes first.
			swapped, err := descriptors.Compile([]*descriptors.Set{two, one}, descriptors.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if a, b := names(s.Files(), "t.proto"), names(swapped.Files(), "t.proto"); !slices.Equal(a, b) {
				t.Errorf("the order of sets matters: %q against %q", a, b)
			}
			for _, set := range []*descriptors.Set{one, two} {
				alone, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
				if err != nil {
					t.Fatal(err)
				}
				have := names(s.Files(), "t.proto")
				for _, n := range names(alone.Files(), "t.proto") {
					if !slices.Contains(have, n) {
						t.Errorf("%s of set %s was lost", n, set.Origin)
					}
				}
				if len(alone.Bindings()) > len(s.Bindings()) {
					t.Errorf("a binding of set %s was lost", set.Origin)
				}
			}
		})
	}
}

// names lists all names that a file declares, sorted.
func names(files *protoregistry.Files, path string) []string {
	fd, err := files.FindFileByPath(path)
	if err != nil {
		return nil
	}
	var out []string
	var messages func(ms protoreflect.MessageDescriptors)
	messages = func(ms protoreflect.MessageDescriptors) {
		for i := range ms.Len() {
			m := ms.Get(i)
			out = append(out, string(m.FullName()))
			for j := range m.Fields().Len() {
				f := m.Fields().Get(j)
				oneof := ""
				if f.ContainingOneof() != nil {
					oneof = string(f.ContainingOneof().Name())
				}
				out = append(out, string(f.FullName())+"/"+oneof)
			}
			messages(m.Messages())
		}
	}
	messages(fd.Messages())
	for i := range fd.Enums().Len() {
		for j := range fd.Enums().Get(i).Values().Len() {
			out = append(out, string(fd.Enums().Get(i).Values().Get(j).FullName()))
		}
	}
	for i := range fd.Services().Len() {
		for j := range fd.Services().Get(i).Methods().Len() {
			out = append(out, string(fd.Services().Get(i).Methods().Get(j).FullName()))
		}
	}
	slices.Sort(out)
	return out
}

// TestMergeKeepsOrder: the copy that has everything decides the order of fields, which is that of JSON output.
func TestMergeKeepsOrder(t *testing.T) {
	small := sources(t, "small", map[string]string{"t.proto": `message A { string a = 1; string c = 3; }`})
	large := sources(t, "large", map[string]string{"t.proto": `message A { string b = 2; string a = 1; string c = 3; }`})
	for _, sets := range [][]*descriptors.Set{{small, large}, {large, small}} {
		s, err := descriptors.Compile(sets, descriptors.Options{})
		if err != nil {
			t.Fatal(err)
		}
		mt, err := s.Types().FindMessageByName("t.v1.A")
		if err != nil {
			t.Fatal(err)
		}
		if got := mt.Descriptor().Fields().Get(0).Name(); got != "b" {
			t.Errorf("first field is %s, want b", got)
		}
	}
}

func TestFaultsOfSets(t *testing.T) {
	file := func(name string, f *descriptorpb.FileDescriptorProto) *descriptorpb.FileDescriptorProto {
		f.Name = proto.String(name)
		if f.Syntax == nil {
			f.Syntax = proto.String("proto3")
		}
		return f
	}
	type files = []*descriptorpb.FileDescriptorProto
	message := func(name string, fields ...*descriptorpb.FieldDescriptorProto) *descriptorpb.DescriptorProto {
		return &descriptorpb.DescriptorProto{Name: proto.String(name), Field: fields}
	}
	field := func(name string, n int32, ty string) *descriptorpb.FieldDescriptorProto {
		f := &descriptorpb.FieldDescriptorProto{Name: proto.String(name), Number: proto.Int32(n), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum()}
		if ty != "" {
			f.Type, f.TypeName = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), proto.String(ty)
		}
		return f
	}
	service := func(in, out string) *descriptorpb.ServiceDescriptorProto {
		return &descriptorpb.ServiceDescriptorProto{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{{Name: proto.String("M"), InputType: proto.String(in), OutputType: proto.String(out)}}}
	}
	tests := []struct {
		name string
		sets []*descriptors.Set
		want []string
	}{
		{"missing imports, all named", []*descriptors.Set{{Origin: "a.binpb", Files: files{
			file("b.proto", &descriptorpb.FileDescriptorProto{Dependency: []string{"c.proto", "d.proto", "google/protobuf/any.proto"}}),
			file("a.proto", &descriptorpb.FileDescriptorProto{Dependency: []string{"b.proto", "e.proto"}}),
		}}}, []string{
			`file b.proto (from a.binpb) imports "c.proto", which no descriptor set has (build sets with their imports: protoc --include_imports)`,
			`file b.proto (from a.binpb) imports "d.proto", which no descriptor set has (build sets with their imports: protoc --include_imports)`,
			`file a.proto (from a.binpb) imports "e.proto", which no descriptor set has (build sets with their imports: protoc --include_imports)`,
		}},
		{"circular import", []*descriptors.Set{{Origin: "a.binpb", Files: files{
			file("a.proto", &descriptorpb.FileDescriptorProto{Dependency: []string{"b.proto"}}),
			file("b.proto", &descriptorpb.FileDescriptorProto{Dependency: []string{"a.proto"}}),
		}}}, []string{`file b.proto (from a.binpb) imports "a.proto", which imports it in turn`}},
		{"self import", []*descriptors.Set{{Origin: "a.binpb", Files: files{
			file("a.proto", &descriptorpb.FileDescriptorProto{Dependency: []string{"a.proto"}}),
		}}}, []string{`file a.proto (from a.binpb) imports "a.proto", which imports it in turn`}},
		{"one file under two paths", []*descriptors.Set{
			{Origin: "one", Files: files{file("x/a.proto", &descriptorpb.FileDescriptorProto{Package: proto.String("x"), MessageType: []*descriptorpb.DescriptorProto{message("A"), message("B")}})}},
			{Origin: "two", Files: files{file("proto/x/a.proto", &descriptorpb.FileDescriptorProto{Package: proto.String("x"), MessageType: []*descriptorpb.DescriptorProto{message("A"), message("B")}})}},
		}, []string{`message x.A is defined by file proto/x/a.proto (from two) and by file x/a.proto (from one)`}},
		{"unknown types", []*descriptors.Set{{Origin: "a.binpb", Files: files{
			file("a.proto", &descriptorpb.FileDescriptorProto{MessageType: []*descriptorpb.DescriptorProto{message("A", field("f", 1, ".Nope"))}}),
			file("b.proto", &descriptorpb.FileDescriptorProto{Service: []*descriptorpb.ServiceDescriptorProto{service(".Nope", ".Nope")}}),
		}}}, []string{
			`file a.proto (from a.binpb): message field "A.f" cannot resolve type: "Nope" not found`,
			`file b.proto (from a.binpb): service method "S.M" cannot resolve input: "Nope" not found`,
		}},
		{"equal numbers", []*descriptors.Set{{Origin: "a.binpb", Files: files{
			file("a.proto", &descriptorpb.FileDescriptorProto{MessageType: []*descriptorpb.DescriptorProto{message("A", field("f", 1, ""), field("g", 1, ""))}}),
		}}}, []string{`file a.proto (from a.binpb): message "A" has conflicting fields: "g" with "f"`}},
		{"69: JSON names", []*descriptors.Set{{Origin: "a.binpb", Files: files{
			file("a.proto", &descriptorpb.FileDescriptorProto{Syntax: proto.String("proto2"), MessageType: []*descriptorpb.DescriptorProto{
				message("A", field("foo_bar", 1, ""), field("fooBar", 2, "")), message("Unused", field("foo_bar", 1, ""), field("fooBar", 2, "")),
				message("Outer", field("a", 1, ".A")),
			}, Service: []*descriptorpb.ServiceDescriptorProto{service(".Outer", ".Outer")}}),
		}}}, []string{`message A (file a.proto): fields "foo_bar" and "fooBar" have the same JSON name, "fooBar"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := descriptors.Compile(tt.sets, descriptors.Options{})
			checkFaults(t, err, tt.want...)
		})
	}
}

// TestOldCopies: a set's own copies of google/protobuf and google/api may be older, odd or newer than the linked-in ones.
func TestOldCopies(t *testing.T) {
	ts := func(change func(*descriptorpb.FileDescriptorProto)) *descriptorpb.FileDescriptorProto {
		f := protodesc.ToFileDescriptorProto((&annotations.HttpRule{}).ProtoReflect().Descriptor().ParentFile())
		change(f)
		return f
	}
	user := sources(t, "user", map[string]string{"t.proto": request + `service S { rpc M(R) returns (R) { option (google.api.http) = {get: "/a"}; } }`})
	user.Files = slices.DeleteFunc(user.Files, func(f *descriptorpb.FileDescriptorProto) bool { return f.GetName() == "google/api/http.proto" })
	for name, change := range map[string]func(*descriptorpb.FileDescriptorProto){
		"same":  func(*descriptorpb.FileDescriptorProto) {},
		"older": func(f *descriptorpb.FileDescriptorProto) { f.MessageType[1].Field = f.MessageType[1].Field[:7] },
		"different": func(f *descriptorpb.FileDescriptorProto) {
			f.MessageType[1].Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum()
		},
		"newer": func(f *descriptorpb.FileDescriptorProto) {
			f.MessageType = append(f.MessageType, &descriptorpb.DescriptorProto{Name: proto.String("New")})
		},
	} {
		set := &descriptors.Set{Origin: "user", Files: append([]*descriptorpb.FileDescriptorProto{ts(change)}, user.Files...)}
		s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m, err := s.MatchHTTP("GET", "/a"); err != nil || m.Binding.Method.Name != "t.v1.S.M" {
			t.Errorf("%s: MatchHTTP: %v %v", name, m, err)
		}
		if _, err := s.Types().FindMessageByName("google.api.New"); (err == nil) != (name == "newer") {
			t.Errorf("%s: FindMessageByName(google.api.New): %v", name, err)
		}
	}
}

// TestRuleSpellings: the annotation is found whether it is a known extension, a dynamic message or unknown bytes.
func TestRuleSpellings(t *testing.T) {
	set := sources(t, "known", map[string]string{"t.proto": request + `service S { rpc M(R) returns (R) { option (google.api.http) = {get: "/a"}; } }`})
	known := set.Files[len(set.Files)-1]
	respell := func(types interface {
		protoregistry.MessageTypeResolver
		protoregistry.ExtensionTypeResolver
	},
	) *descriptors.Set {
		b, err := proto.Marshal(known)
		if err != nil {
			t.Fatal(err)
		}
		f := &descriptorpb.FileDescriptorProto{}
		if err := (proto.UnmarshalOptions{Resolver: types}).Unmarshal(b, f); err != nil {
			t.Fatal(err)
		}
		return &descriptors.Set{Origin: "respelt", Files: append(slices.Clone(set.Files[:len(set.Files)-1]), f)}
	}
	base, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*descriptors.Set{"known": set, "dynamic": respell(base.Types()), "unknown": respell(new(protoregistry.Types))} {
		o := s.Files[len(s.Files)-1].GetService()[0].GetMethod()[0].GetOptions()
		if (len(o.ProtoReflect().GetUnknown()) > 0) != (name == "unknown") {
			t.Fatalf("%s: the set is not as it should be", name)
		}
		got, err := descriptors.Compile([]*descriptors.Set{s}, descriptors.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m, err := got.MatchHTTP("GET", "/a"); err != nil || m.Binding == nil {
			t.Errorf("%s: MatchHTTP: %v", name, err)
		}
	}
}

// TestLinkedFileUnderOtherPath: a vendored copy of a linked-in file may have a path of its own, unless both are imported.
func TestLinkedFileUnderOtherPath(t *testing.T) {
	vendored := map[string]string{
		"third_party/google/rpc/status.proto": `syntax = "proto3"; package google.rpc; import "google/protobuf/any.proto"; message Status { int32 code = 1; string message = 2; repeated google.protobuf.Any details = 3; }`,
		"t.proto":                             `syntax = "proto3"; package t.v1; import "third_party/google/rpc/status.proto"; message R { google.rpc.Status status = 1; } service S { rpc M(R) returns (R); }`,
	}
	s, err := descriptors.Compile([]*descriptors.Set{sources(t, "x", vendored)}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []protoreflect.FullName{"google.rpc.Status", "google.rpc.BadRequest"} {
		if _, err := s.Types().FindMessageByName(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	own := sources(t, "y", map[string]string{"y.proto": `syntax = "proto3"; package y; import "google/rpc/status.proto"; message R { google.rpc.Status status = 1; }`})
	_, err = descriptors.Compile([]*descriptors.Set{sources(t, "x", vendored), own}, descriptors.Options{})
	checkFaults(t, err, "message google.rpc.Status is defined by file google/rpc/status.proto (from transom itself) and by file third_party/google/rpc/status.proto (from x)")
}

func TestTypes(t *testing.T) {
	s, err := descriptors.Compile([]*descriptors.Set{sources(t, "x", map[string]string{"t.proto": `syntax = "proto2"; package t.v1; message A { extensions 100 to 200; message B {} } extend A { optional string ext = 101; } enum E { Z = 0; }`})}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"type.googleapis.com/t.v1.A", "example.com/x/t.v1.A.B", "type.googleapis.com/google.rpc.BadRequest", "type.googleapis.com/google.protobuf.Duration", "type.googleapis.com/google.rpc.Status"} {
		if mt, err := s.Types().FindMessageByURL(url); err != nil || !strings.HasSuffix(url, "/"+string(mt.Descriptor().FullName())) {
			t.Errorf("FindMessageByURL(%s): %v %v", url, mt, err)
		}
	}
	if x, err := s.Types().FindExtensionByName("t.v1.ext"); err != nil || x.TypeDescriptor().Number() != 101 {
		t.Errorf("FindExtensionByName: %v %v", x, err)
	}
	if x, err := s.Types().FindExtensionByNumber("t.v1.A", 101); err != nil || x.TypeDescriptor().FullName() != "t.v1.ext" {
		t.Errorf("FindExtensionByNumber: %v %v", x, err)
	}
	mt, err := s.Types().FindMessageByName("t.v1.A")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := mt.New().Interface().(*dynamicpb.Message); !ok {
		t.Errorf("type is %T, want a dynamic message", mt.New().Interface())
	}
	// The set served to reflection clients compiles to the same methods by itself.
	if f := s.FileDescriptorSet().GetFile(); len(f) != 1 || f[0].GetName() != "t.proto" {
		t.Errorf("FileDescriptorSet has %d files", len(f))
	}
}

func TestOverrides(t *testing.T) {
	body := request + `service S { rpc A(R) returns (R) { option (google.api.http) = {get: "/old"}; } rpc B(R) returns (R); }`
	rules, err := descriptors.ParseServiceConfig("svc.yaml", []byte(`
type: google.api.Service
name: t
http:
  fully_decode_reserved_expansion: true
  rules:
  - selector: t.v1.S.*
    get: /first
  - selector: t.v1.S.A
    get: /new/{id}
    additionalBindings:
    - post: /new:go
      body: "*"
  - {selector: " t.v1.S.B ", custom: {kind: PURGE, path: /b}, response_body: name}
`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := compileProto(t, body, descriptors.Options{Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ verb, path, want string }{
		{"GET", "/old", "404"}, {"GET", "/first", "404"}, {"GET", "/new/7", "A id=7"}, {"POST", "/new:go", "A"}, {"PURGE", "/b", "B"},
	} {
		if got := show(s.MatchHTTP(tt.verb, tt.path)); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.verb, tt.path, got, tt.want)
		}
	}
	_, err = compileProto(t, body, descriptors.Options{Rules: []*annotations.HttpRule{{Selector: "t.v1.S.AA"}, {}, {Selector: "t.v1.T.*"}, {Selector: "other.*"}}})
	checkFaults(t, err,
		`HTTP rule 0: the selector "t.v1.S.AA" matches no method; did you mean "t.v1.S.A"?`,
		`HTTP rule 1 has no selector`,
		`HTTP rule 2: the selector "t.v1.T.*" matches no method; did you mean "t.v1.S.*"?`,
		`HTTP rule 3: the selector "other.*" matches no method`)
}

func TestParseServiceConfigFaults(t *testing.T) {
	_, err := descriptors.ParseServiceConfig("svc.yaml", []byte(`http:
  rule: []
  rules:
  - get: /a
  - selector: x
    get: /a
    put: /b
    bodi: "*"
  - selector: y
    get: [1]
    additional_bindings: {}
  - selector: z
    custom: {kind: A, patch: /x}
  - selector: w
    delete: /w
    additional_bindings:
    - get: /v
      additional_bindings: [{get: /u}]
  - selector: v
`))
	checkFaults(t, err,
		`service config svc.yaml:2:3: unknown field "rule" in http`,
		`service config svc.yaml:4:5: a rule needs a selector`,
		`service config svc.yaml:7:5: a rule has one pattern, not both "get" and "put"`,
		`service config svc.yaml:8:5: unknown field "bodi" in a rule`,
		`service config svc.yaml:10:10: get must be a string`,
		`service config svc.yaml:11:26: additional_bindings must be a list`,
		`service config svc.yaml:13:23: unknown field "patch" in custom`,
		`service config svc.yaml:18:7: an additional binding must not have additional_bindings of its own`,
		`service config svc.yaml:19:5: a rule needs a pattern: get, put, post, delete, patch or custom`)
	for in, want := range map[string]string{
		"":        "service config x: is empty",
		"http: 1": "service config x:1:7: http must be a mapping",
		"- a":     "service config x:1:1: a service config must be a mapping",
		"a: [":    "service config x: yaml: line 1: did not find expected node content",
		"http: {fullyDecodeReservedExpansion: 3}":            "service config x:1:38: fullyDecodeReservedExpansion must be true or false",
		"http: {rules: 3}":                                   "service config x:1:15: rules must be a list",
		"{http: {rules: [{selector: a, get: /a, get: /b}]}}": `service config x:1:40: field "get" appears twice`,
	} {
		if _, err := descriptors.ParseServiceConfig("x", []byte(in)); err == nil || err.Error() != want {
			t.Errorf("ParseServiceConfig(%q): got %v, want %s", in, err, want)
		}
	}
}

// FuzzParseServiceConfig: rules have a selector and a pattern, and every fault names the file.
func FuzzParseServiceConfig(f *testing.F) {
	f.Add([]byte("http:\n  rules:\n  - {selector: a.B.C, get: /x, additional_bindings: [{custom: {kind: K, path: /y}}]}\n"))
	f.Add([]byte("a: &a [*a]\nhttp: {rules: [&r {selector: s, post: /, additionalBindings: [*r]}]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rules, err := descriptors.ParseServiceConfig("svc.yaml", b)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "service config svc.yaml:") {
				t.Errorf("fault without the file: %v", err)
			}
			return
		}
		for _, r := range rules {
			if r.GetSelector() == "" || r.GetPattern() == nil {
				t.Errorf("incomplete rule %v", r)
			}
			for _, a := range r.GetAdditionalBindings() {
				if a.GetPattern() == nil || len(a.GetAdditionalBindings()) > 0 {
					t.Errorf("bad additional binding %v", a)
				}
			}
		}
	})
}

func TestSuggest(t *testing.T) {
	s, err := compileProto(t, `message R {} service Accounts { rpc Transfer(R) returns (R); rpc Get(R) returns (R); }`, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"t.v1.Accounts.Transfr": "t.v1.Accounts.Transfer", "t.v1.accounts.get": "t.v1.Accounts.Get", "t.v1.Account": "t.v1.Accounts",
		"/t.v1.Accounts/Transfre": "t.v1.Accounts.Transfer", "t.v1.Accuonts.*": "t.v1.Accounts.*", "transfer": "t.v1.Accounts.Transfer",
		"something.else.entirely": "", "": "",
	} {
		if got := s.Suggest(in); got != want {
			t.Errorf("Suggest(%q) = %q, want %q", in, got, want)
		}
	}
}

// BenchmarkCompile is a reload's work on descriptors: reading a binary set of 2,000 methods and compiling it.
func BenchmarkCompile(b *testing.B) {
	var src strings.Builder
	src.WriteString(request)
	for i := range 100 {
		fmt.Fprintf(&src, "service S%d {\n", i)
		for j := range 20 {
			fmt.Fprintf(&src, "rpc M%d(R) returns (R) { option (google.api.http) = {get: \"/v1/{id}/s%d/m%d/{name=x/**}\"}; }\n", j, i, j)
		}
		src.WriteString("}\n")
	}
	set := sources(b, "x", map[string]string{"t.proto": src.String()})
	raw, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: set.Files})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		set, err := descriptors.FromBytes("x", raw)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
