package descriptors_test

import (
	"slices"
	"testing"

	"transom/descriptors"
)

func TestDiff(t *testing.T) {
	compile := func(t *testing.T, body string) *descriptors.Schema {
		t.Helper()
		s, err := descriptors.Compile([]*descriptors.Set{sources(t, "t", map[string]string{"t.proto": body})}, descriptors.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	rule := func(rule string) string {
		return `message R { string id = 1; string name = 2; R sub = 3; } service S { rpc M(R) returns (R) { option (google.api.http) = {` + rule + `}; } rpc N(R) returns (R); }`
	}
	in := func(fields string) string {
		return `message R { ` + fields + ` } message X {} message Y {} enum E { Z = 0; } service S { rpc M(R) returns (X); }`
	}
	for _, tt := range []struct {
		name, old, new string
		want           []string
	}{
		{"nothing", rule(`get: "/a/{id}"`), rule(`get: "/a/{id=*}"`), nil},
		{"route removed", rule(`get: "/a" additional_bindings: {post: "/b" body: "*"}`), rule(`get: "/a"`), []string{"breaking: route POST /b of t.v1.S.M is removed"}},
		{"route added", rule(`get: "/a"`), rule(`get: "/a" additional_bindings: {post: "/b"}`), []string{"route POST /b of t.v1.S.M is added"}},
		{"route changed", rule(`post: "/a/{id}:go" body: "*"`), rule(`post: "/a/{name}:go" body: "sub" response_body: "id"`), []string{
			`breaking: route POST /a/{id}:go body is "sub" instead of "*"`,
			`breaking: route POST /a/{id}:go response_body is "id" instead of ""`,
			`route POST /a/{id}:go has variables name instead of id`,
		}},
		{"route moved", rule(`get: "/a"`), `message R { string id = 1; string name = 2; R sub = 3; } service S { rpc M(R) returns (R); rpc N(R) returns (R) { option (google.api.http) = {get: "/a"}; } }`, []string{
			`breaking: route GET /a method is "t.v1.S.N" instead of "t.v1.S.M"`,
		}},
		{
			"methods", `message R {} service S { rpc A(R) returns (R); rpc B(R) returns (R) { option idempotency_level = NO_SIDE_EFFECTS; } }`,
			`message R {} service S { rpc B(stream R) returns (R); rpc C(R) returns (R); }`,
			[]string{
				"breaking: method t.v1.S.A is removed",
				"breaking: method t.v1.S.B client streaming is true instead of false",
				"breaking: method t.v1.S.B promises IDEMPOTENCY_UNKNOWN instead of NO_SIDE_EFFECTS",
				"method t.v1.S.C is added",
			},
		},
		{"types of a method", `message A {} message B {} service S { rpc M(A) returns (A); }`, `message A {} message B {} service S { rpc M(B) returns (B); }`, []string{
			`breaking: method t.v1.S.M request type is "t.v1.B" instead of "t.v1.A"`,
			`breaking: method t.v1.S.M response type is "t.v1.B" instead of "t.v1.A"`,
		}},
		{
			"fields", in(`string gone = 1; string a = 2; string b = 3; X c = 4; string d = 5; string e = 6; string f = 7; map<string, X> m = 8;`),
			in(`int32 a = 2; repeated string b = 3; Y c = 4; string dd = 5; string e = 16; optional string f = 7 [json_name = "ff"]; map<string, Y> m = 8; string added = 9;`),
			[]string{
				`breaking: field t.v1.R.a type is "int32" instead of "string"`,
				`breaking: field t.v1.R.b type is "repeated string" instead of "string"`,
				`breaking: field t.v1.R.c type is "t.v1.Y" instead of "t.v1.X"`,
				`breaking: field t.v1.R.d name is "dd" instead of "d"`,
				`breaking: field t.v1.R.e number is 16 instead of 6`,
				`breaking: field t.v1.R.f json_name is "ff" instead of "f"`,
				`breaking: field t.v1.R.f presence is true instead of false`,
				`breaking: field t.v1.R.gone is removed`,
				`breaking: field t.v1.R.m type is "map<string, t.v1.Y>" instead of "map<string, t.v1.X>"`,
				`field t.v1.R.added is added`,
			},
		},
		{"oneof", in(`string a = 1; oneof o { string b = 2; }`), in(`oneof o { string a = 1; string b = 2; string c = 3; }`), []string{
			`breaking: field t.v1.R.a oneof is "o" instead of ""`,
			`breaking: field t.v1.R.a presence is true instead of false`,
			`field t.v1.R.c is added`,
		}},
		{
			"enums, nested and recursive", `message R { R r = 1; N n = 2; message N { repeated E e = 1; } enum E { Z = 0; ONE = 1; TWO = 2; } } service S { rpc M(R) returns (R); }`,
			`message R { R r = 1; N n = 2; message N { repeated E e = 1; } enum E { Z = 0; ONE = 3; THREE = 4; } } service S { rpc M(R) returns (R); }`,
			[]string{
				"breaking: enum value t.v1.R.E.ONE number is 3 instead of 1",
				"breaking: enum value t.v1.R.E.TWO is removed",
				"enum value t.v1.R.E.THREE is added",
			},
		},
		{"types that no method uses", `message R {} message U { string a = 1; } service S { rpc M(R) returns (R); }`, `message R {} service S { rpc M(R) returns (R); }`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			old, new := compile(t, tt.old), compile(t, tt.new)
			var got []string
			for _, c := range descriptors.Diff(old, new) {
				got = append(got, c.String())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got:\n%q\nwant:\n%q", got, tt.want)
			}
			if same := descriptors.Diff(old, compile(t, tt.old)); len(same) > 0 {
				t.Errorf("difference to itself: %v", same)
			}
		})
	}
}
