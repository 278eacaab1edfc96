package descriptors

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// manyRoutes are n routes shaped like those of a large REST API: some per resource, with verbs and nested names.
func manyRoutes(n int) []string {
	var out []string
	for i := 0; len(out) < n; i++ {
		for _, l := range []string{
			"GET /v1/{name=projects/*/things%d/*}", "GET /v1/{parent=projects/*}/things%d", "POST /v1/{parent=projects/*}/things%d",
			"DELETE /v1/{name=projects/*/things%d/*}", "POST /v1/{name=projects/*/things%d/*}:move", "GET /v1/objects%d/{path=**}",
			"GET /v%d/users/{id}", "PATCH /v1/{thing.name=projects/*/things%d/*}", "GET /v1/items/{a}/{b}/{c}/{d}/x%d", "PUT /v1/items/{a}/y%d",
		} {
			if len(out) < n {
				out = append(out, fmt.Sprintf(l, i))
			}
		}
	}
	return out
}

// BenchmarkMatchHTTP is the route lookup alone: no request, no decoding of values unless the name says so.
func BenchmarkMatchHTTP(b *testing.B) {
	long := "/v1/objects0/" + strings.Repeat("a/", 4000)
	for _, n := range []int{10, 10_000} {
		r, _ := newRouter(manyRoutes(n))
		for _, bb := range []struct{ name, verb, path string }{
			{"literal+id", "GET", "/v0/users/1234567"},
			{"nested-name", "GET", "/v1/projects/acme/things0/7"},
			{"custom-verb", "POST", "/v1/projects/acme/things0/7:move"},
			{"four-vars", "GET", "/v1/items/1/2/3/4/x0"},
			{"escaped", "GET", "/v0/users/a%2Fb"},
			{"deep", "GET", "/v1/objects0/a/b/c/d/e/f"},
			{"hostile-8KB", "GET", long},
		} {
			b.Run(fmt.Sprintf("routes=%d/%s", n, bb.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					m, err := r.match(bb.verb, bb.path)
					if err != nil {
						b.Fatal(err)
					}
					_ = m.Binding
				}
			})
		}
		b.Run(fmt.Sprintf("routes=%d/not-found", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.match("GET", "/v1/nothing/here"); err == nil {
					b.Fatal("matched")
				}
			}
		})
	}
}

// TestMatchAllocs: a match of up to four variables, and its values without escapes, cost no allocation.
func TestMatchAllocs(t *testing.T) {
	for _, n := range []int{10, 10_000} {
		r, _ := newRouter(manyRoutes(n))
		for _, path := range []string{"/v0/users/1234567", "/v1/projects/acme/things0/7", "/v1/items/1/2/3/4/x0", "/v1/objects0/a/b/c", "/v0/users/a%2Fb", "/v1/pr%6Fjects/ä/things0/7", "/v0/users/" + strings.Repeat("%41", 80)} {
			escaped := strings.Contains(path, "%")
			got := testing.AllocsPerRun(100, func() {
				m, err := r.match("GET", path)
				if err != nil {
					t.Fatal(err)
				}
				if escaped {
					return
				}
				for i := range m.Binding.Vars {
					if m.Value(i) == "" {
						t.Error("empty value")
					}
				}
			})
			if got != 0 {
				t.Errorf("%d routes, %s: %v allocations, want 0", n, path, got)
			}
		}
	}
}

// TestHostilePaths is case 25: long paths take linear time and routes that all meet do not multiply it.
func TestHostilePaths(t *testing.T) {
	lines := manyRoutes(1000)
	for i := range 256 { // every mix of "a" and "*" over eight segments, none of which takes GET
		tmpl := ""
		for j := range 8 {
			tmpl += "/" + []string{"a", "*"}[i>>j&1]
		}
		lines = append(lines, "POST "+tmpl, "POST "+tmpl+"/**/z")
	}
	lines = append(lines, "GET /deep/{n=**}/end:go")
	r, _ := newRouter(lines)
	for name, path := range map[string]string{
		"slashes": strings.Repeat("/", 64_000), "segments": strings.Repeat("/a", 64_000), "deep": "/deep" + strings.Repeat("/", 64_000) + "end:gone",
		"one segment": "/" + strings.Repeat("a", 64_000), "escapes": "/deep/" + strings.Repeat("%2F", 64_000), "colons": "/deep/" + strings.Repeat(":", 64_000),
		"meets all": "/a/a/a/a/a/a/a/a", "meets all deeper": strings.Repeat("/a", 8) + strings.Repeat("/z", 8_000),
	} {
		start := time.Now()
		if _, err := r.match("GET", path); err == nil {
			t.Errorf("%s: matched", name)
		} else if len(err.Error()) > 2000 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
		if d := time.Since(start); d > 10*time.Second { // some milliseconds are usual; quadratic would be minutes
			t.Errorf("%s: took %v", name, d)
		}
	}
}
