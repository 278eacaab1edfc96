package descriptors_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"transom/descriptors"
)

// compileProto compiles one .proto source, given without its header lines, to a schema.
func compileProto(t testing.TB, body string, o descriptors.Options) (*descriptors.Schema, error) {
	t.Helper()
	dir := t.TempDir()
	src := "syntax = \"proto3\";\npackage t.v1;\nimport \"google/api/annotations.proto\";\n" + body
	if err := os.WriteFile(filepath.Join(dir, "t.proto"), []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := descriptors.FromProto(context.Background(), []string{dir}, []string{"t.proto"})
	if err != nil {
		t.Fatal(err)
	}
	return descriptors.Compile([]*descriptors.Set{set}, o)
}

// routes is a service with a method per "VERB template" line; method i is called Mi. Variables are string fields.
func routes(t testing.TB, o descriptors.Options, lines ...string) (*descriptors.Schema, error) {
	t.Helper()
	var b strings.Builder
	b.WriteString("message R { string id = 1; string name = 2; string a = 3; string b = 4; string c = 5; string d = 6; string e = 7; R sub = 8; }\nservice S {\n")
	for i, l := range lines {
		verb, tmpl, _ := strings.Cut(l, " ")
		pattern := fmt.Sprintf("%s: %q", strings.ToLower(verb), tmpl)
		if !slices.Contains([]string{"GET", "PUT", "POST", "PATCH", "DELETE"}, verb) {
			pattern = fmt.Sprintf("custom: {kind: %q path: %q}", verb, tmpl)
		}
		fmt.Fprintf(&b, "  rpc M%d(R) returns (R) { option (google.api.http) = {%s}; }\n", i, pattern)
	}
	b.WriteString("}\n")
	return compileProto(t, b.String(), o)
}

func TestMatchHTTP(t *testing.T) {
	tests := []struct {
		source string // case of the transcoding table
		routes []string
		verb   string
		path   string
		want   string // "M0 id=…", "404", "405 GET,HEAD", "400"
	}{
		{"1", []string{"GET /items/{id}"}, "GET", "/items/a%2Fb", "M0 id=a/b"},
		{"2", []string{"GET /shelves/{id}/books/{name=**}"}, "GET", "/shelves/1/books/b%2Fc/%64", "M0 id=1 name=b%2Fc/d"},
		{"2", []string{"GET /{name=shelves/*/books/**}"}, "GET", "/shelves/1/books/b%2fc/d", "M0 name=shelves/1/books/b%2fc/d"},
		{"3", []string{"GET /items/{id}"}, "GET", "/items/a%252Fb", "M0 id=a%2Fb"},
		{"3", []string{"GET /items/{id=**}"}, "GET", "/items/a%252Fb", "M0 id=a%2Fb"},
		{"4", []string{"GET /items/{id}"}, "GET", "/items/a%25", "M0 id=a%"},
		{"5", []string{"GET /items/{id}"}, "GET", "/items/a%2fb", "M0 id=a/b"},
		{"6", []string{"GET /items/{id}"}, "GET", "/items/%FF", `400 path "/items/%FF": "%FF" is not UTF-8 at byte 7`},
		{"6", []string{"GET /items/{id}"}, "GET", "/items/ä\xff", `400 path "/items/ä` + "\uFFFD" + `": "%FF" is not UTF-8 at byte 9`},
		{"7", []string{"GET /items/{id}"}, "GET", "/items/a%zz", `400 path "/items/a%zz": malformed escape "%zz" at byte 8`},
		{"7", []string{"GET /items/{id}"}, "GET", "/items/%", `400 path "/items/%": malformed escape "%" at byte 7`},
		{"7", []string{"GET /items/{id}"}, "GET", "/items/%4", `400 path "/items/%4": malformed escape "%4" at byte 7`},
		{"8", []string{"GET /items/{id}"}, "GET", "/items/a+b", "M0 id=a+b"},
		{"9", []string{"GET /{name=shelves/*/books/**}"}, "GET", "/shelves/1/books", "M0 name=shelves/1/books"},
		{"9", []string{"GET /a/{name=**}"}, "GET", "/a", "M0 name="},
		{"9", []string{"GET /{name=**}"}, "GET", "/", "M0 name="},
		{"10", []string{"GET /items/{id}"}, "GET", "/items/", "404"},
		{"11", []string{"GET /items/{id}"}, "GET", "/items/abc/", "404"},
		{"12", []string{"GET /a/{id}/b"}, "GET", "/a//b", "404"},
		{"12", []string{"GET /{id}"}, "GET", "//", "404"},
		{"12", []string{"GET /{id}"}, "GET", "//a", "404"},
		{"13", []string{"GET /a/{id}", "GET /secret"}, "GET", "/a/../secret", "404"},
		{"13", []string{"GET /a/{id}", "GET /secret"}, "GET", "/a/%2e%2e", "M0 id=.."},
		{"13", []string{"GET /a/{id}/x"}, "GET", "/a/./x", "M0 id=."},
		{"14", []string{"GET /items/{id}", "GET /items/{id}:archive"}, "GET", "/items/a:b", "M0 id=a:b"},
		{"14", []string{"GET /items/{id}", "POST /items/{id}:archive"}, "GET", "/items/x:archive", "M0 id=x:archive"},
		{"14", []string{"GET /items/{id}", "POST /items/{id}:archive"}, "PUT", "/items/x:archive", "405 GET,HEAD,POST"},
		{"15", []string{"GET /items/{id}:archive"}, "GET", "/items/x:y:archive", "M0 id=x:y"},
		{"16", []string{"GET /{a}/{b}:verb"}, "GET", "/some:verb/const:verb", "M0 a=some:verb b=const"},
		{"17", []string{"GET /items/{id}", "GET /items/{id}:archive"}, "GET", "/items/a%3Aarchive", "M0 id=a:archive"},
		{"18", []string{"GET /items/{id}", "GET /other/{id}:archive"}, "GET", "/items/a:archive", "M0 id=a:archive"},
		{"19", []string{"GET /v/{name=**}", "GET /v/{id}", "GET /v/x"}, "GET", "/v/x", "M2"},
		{"19", []string{"GET /v/{name=**}", "GET /v/{id}", "GET /v/x"}, "GET", "/v/y", "M1 id=y"},
		{"19", []string{"GET /v/{name=**}", "GET /v/{id}", "GET /v/x"}, "GET", "/v/y/z", "M0 name=y/z"},
		{"19", []string{"GET /{a}/b", "GET /a/{b}"}, "GET", "/a/b", "M1 b=b"},
		{"19", []string{"GET /a/x/{id}/c", "GET /a/{b}/y/d"}, "GET", "/a/x/y/d", "M1 b=x"},
		{"20", []string{"POST /items/blue", "GET /items/{id}"}, "GET", "/items/blue", "M1 id=blue"},
		{"20", []string{"POST /items/{id}", "GET /{name=**}"}, "GET", "/items/blue", "M1 name=items/blue"},
		{"21", []string{"GET /items/{id}", "DELETE /items/{id}"}, "POST", "/items/a", "405 DELETE,GET,HEAD"},
		{"21", []string{"POST /items/blue", "PUT /items/{id}", "PATCH /{name=**}"}, "DELETE", "/items/blue", "405 PATCH,POST,PUT"},
		{"21", []string{"GET /items/{id}"}, "HEAD", "/items/a", "M0 id=a"},
		{"21", []string{"GET /items/{id}", "HEAD /items/{id}"}, "HEAD", "/items/a", "M1 id=a"},
		{"21", []string{"POST /items/{id}"}, "HEAD", "/items/a", "405 POST"},
		{"21", []string{"GET /items/{id}"}, "get", "/items/a", "405 GET,HEAD"},
		{"28", []string{"GET /käse/{id}"}, "GET", "/k%C3%A4se/1", "M0 id=1"},
		{"28", []string{"GET /k%C3%A4se/{id}"}, "GET", "/käse/1", "M0 id=1"},
		{"28", []string{"GET /abc/{id}"}, "GET", "/%61b%63/1", "M0 id=1"},
		{"kind *", []string{"* /any/{id}", "GET /any/{id}"}, "GET", "/any/1", "M1 id=1"},
		{"kind *", []string{"* /any/{id}", "GET /any/{id}"}, "BREW", "/any/1", "M0 id=1"},
		{"kind *", []string{"* /any/{id}", "GET /any/{id}"}, "HEAD", "/any/1", "M1 id=1"},
		{"** then literal", []string{"GET /v/{name=**}/tail"}, "GET", "/v/a/b/tail", "M0 name=a/b"},
		{"** then literal", []string{"GET /v/{name=**}/tail"}, "GET", "/v/tail", "M0 name="},
		{"** then literal", []string{"GET /v/{name=**}/tail"}, "GET", "/v/tail/tail", "M0 name=tail"},
		{"** then literal", []string{"GET /v/{name=**}/tail"}, "GET", "/v/x", "404"},
		{"** then literal", []string{"GET /v/{name=**/x/tail}"}, "GET", "/v/a/x/tail", "M0 name=a/x/tail"},
		{"** then literal", []string{"GET /v/{name=**/x/tail}"}, "GET", "/v/x/tail", "M0 name=x/tail"},
		{"** then literal", []string{"GET /v/{a=**}/{b=x}/{c=y/z}"}, "GET", "/v/1/2/x/y/z", "M0 a=1/2 b=x c=y/z"},
		{"** then literal", []string{"GET /v/{name=**}/tail", "GET /v/{name=**}"}, "GET", "/v/a/tail", "M0 name=a"},
		{"** then literal", []string{"GET /v/{name=**}/tail", "GET /v/{name=**}/b/tail"}, "GET", "/v/b/tail", "M1 name="},
		{"** then literal", []string{"POST /v/{name=**}/b/tail", "GET /v/{name=**}/tail"}, "GET", "/v/b/tail", "M1 name=b"},
		{"** then verb", []string{"POST /v/{name=**}:run"}, "POST", "/v/a/b:run", "M0 name=a/b"},
		{"** then verb", []string{"POST /v/{name=**}:run"}, "POST", "/v:run", "M0 name="},
		{"** then verb", []string{"POST /v/{name=**}:run"}, "POST", "/v/a/b", "404"},
		{"** then verb", []string{"POST /v/{name=**}/x:run", "POST /v/{name=**}"}, "POST", "/v/a/x:run", "M0 name=a"},
		{"** keeps empty segments", []string{"GET /f/{name=**}"}, "GET", "/f/a//b/", "M0 name=a//b/"},
		{"root", []string{"GET /", "GET /{id}"}, "GET", "/", "M0"},
		{"root", []string{"GET /{id}"}, "GET", "/", "404"},
		{"escaped verb", []string{"POST /v/{id}:run"}, "POST", "/v/1:r%75n", "M0 id=1"},
		{"empty verb", []string{"POST /v/{id}:run", "POST /v/{id}"}, "POST", "/v/1:", "M1 id=1:"},
		{"verb alone", []string{"POST /v/{id}:run", "POST /v/{id}"}, "POST", "/v/:run", "M1 id=:run"},
		{"no path", []string{"GET /{name=**}"}, "OPTIONS", "*", "404"},
		{"no path", []string{"GET /{name=**}"}, "GET", "", "404"},
		{"six variables", []string{"GET /{a}/{b}/{c}/{d}/{e}/{sub.a=x/**}"}, "GET", "/1/2/3/4/%35/x/6", "M0 a=1 b=2 c=3 d=4 e=5 sub.a=x/6"},
		{"literal in variable", []string{"GET /{id=fixed}"}, "GET", "/fixed", "M0 id=fixed"},
	}
	for _, tt := range tests {
		t.Run(tt.source+" "+tt.path, func(t *testing.T) {
			s, err := routes(t, descriptors.Options{}, tt.routes...)
			if err != nil {
				t.Fatal(err)
			}
			got := show(s.MatchHTTP(tt.verb, tt.path))
			if got != tt.want {
				t.Errorf("%s %s over %q:\n got %s\nwant %s", tt.verb, tt.path, tt.routes, got, tt.want)
			}
			slices.Reverse(tt.routes) // the order of registration does not matter
			s, err = routes(t, descriptors.Options{}, tt.routes...)
			if err != nil {
				t.Fatal(err)
			}
			renamed := show(s.MatchHTTP(tt.verb, tt.path))
			var i int
			if _, err := fmt.Sscanf(renamed, "M%d", &i); err == nil {
				_, rest, _ := strings.Cut(renamed, fmt.Sprintf("M%d", i))
				renamed = fmt.Sprintf("M%d%s", len(tt.routes)-1-i, rest)
			}
			if renamed != tt.want {
				t.Errorf("%s %s with the routes reversed: got %s, want %s", tt.verb, tt.path, renamed, tt.want)
			}
		})
	}
}

func show(m descriptors.Match, err error) string {
	var no *descriptors.NoRouteError
	var bad *descriptors.BadPathError
	switch {
	case errors.As(err, &no) && len(no.Allow) > 0:
		return "405 " + strings.Join(no.Allow, ",")
	case errors.As(err, &no):
		return "404"
	case errors.As(err, &bad):
		return "400 " + err.Error()
	case err != nil:
		return "unexpected: " + err.Error()
	}
	out := string(m.Binding.Method.Name.Name())
	for i, v := range m.Binding.Vars {
		out += fmt.Sprintf(" %s=%s", v.Name, m.Value(i))
	}
	return out
}

// TestTrailingSlash is case 11 with its option.
func TestTrailingSlash(t *testing.T) {
	for _, tt := range []struct {
		path        string
		strict, lax string
	}{
		{"/items/abc/", "404", "M0 id=abc"},
		{"/items/abc", "M0 id=abc", "M0 id=abc"},
		{"/items/abc//", "404", "404"},
		{"/items/", "404", "404"},
		{"/", "404", "404"},
		{"/f/a/", "M1 name=a/", "M1 name=a"},
	} {
		for ignore, want := range map[bool]string{false: tt.strict, true: tt.lax} {
			s, err := routes(t, descriptors.Options{IgnoreTrailingSlash: ignore}, "GET /items/{id}", "GET /f/{name=**}")
			if err != nil {
				t.Fatal(err)
			}
			if got := show(s.MatchHTTP("GET", tt.path)); got != want {
				t.Errorf("%s, IgnoreTrailingSlash %v: %s, want %s", tt.path, ignore, got, want)
			}
		}
	}
}
