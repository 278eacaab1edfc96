package descriptors

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// newRouter makes a router of "VERB template" lines; the binding's ID is the index of its line. Lines that do not parse or
// whose route is taken are left out.
func newRouter(lines []string) (*router, []naiveRoute) {
	r := &router{}
	var naive []naiveRoute
	for i, l := range lines {
		verb, tmpl, ok := strings.Cut(l, " ")
		if !ok {
			continue
		}
		t, err := parseTemplate(tmpl)
		if err != nil {
			continue
		}
		b := &Binding{ID: i, Verb: verb, Template: tmpl}
		for _, v := range t.vars {
			b.Vars = append(b.Vars, Variable{Name: v.name, Multi: v.multi})
		}
		if r.add(t, b) == nil {
			naive = append(naive, naiveRoute{t, b})
		}
	}
	return r, naive
}

type naiveRoute struct {
	t *template
	b *Binding
}

// naiveMatch is the slow specification of router.match: try every template on the split path, and choose the best.
func naiveMatch(routes []naiveRoute, verb, path string) (best *Binding, values []string, allow []string, err error) {
	decoded, uerr := url.PathUnescape(path)
	if uerr != nil || !utf8.ValidString(decoded) {
		return nil, nil, nil, errors.New("bad path")
	}
	if !strings.HasPrefix(path, "/") {
		return nil, nil, nil, nil
	}
	unescape := func(s string) string {
		u, err := url.PathUnescape(s)
		if err != nil {
			panic(err)
		}
		return u
	}
	var bestKey []int
	for _, r := range routes {
		p := path
		if r.t.verb != "" {
			last := strings.LastIndex(p, "/")
			colon := strings.LastIndex(p[last:], ":")
			if colon < 0 || unescape(p[last+colon+1:]) != r.t.verb {
				continue
			}
			p = p[:last+colon]
		}
		var segs []string
		if p != "/" {
			segs = strings.Split(p[1:], "/")
		}
		deep := r.t.deep()
		n := len(segs) // segments that "**" takes
		if deep >= 0 {
			n = len(segs) - (len(r.t.segments) - 1)
			if n < 0 {
				continue
			}
		} else if len(segs) != len(r.t.segments) {
			continue
		}
		// key is compared lexically, less is better: verb first, then 0 literal, 1 "*", 2 "**" per segment.
		key := []int{0}
		if r.t.verb == "" {
			key[0] = 1
		}
		where := make([]int, 0, len(r.t.segments)+1) // index in segs where each template segment begins
		at, ok := 0, true
		var tail []int
		for i, s := range r.t.segments {
			where = append(where, at)
			switch s.kind {
			case literalSegment:
				ok = ok && segs[at] != "" && unescape(segs[at]) == s.text
				if deep < 0 || i < deep {
					key = append(key, 0)
				}
				at++
			case starSegment:
				ok = ok && segs[at] != ""
				key = append(key, 1)
				at++
			case deepSegment:
				key = append(key, 2)
				tail = []int{-(len(r.t.segments) - 1 - i)} // more literals after it are better
				at += n
			}
		}
		if !ok {
			continue
		}
		where = append(where, at)
		if deep < 0 {
			key = append(key, -1) // ends here: better than any "**"
		}
		key = append(key, tail...)
		fit := 0
		switch {
		case r.b.Verb == verb:
			fit = 1
		case r.b.Verb == "GET" && verb == "HEAD":
			fit = 2
		case r.b.Verb == "*":
			fit = 3
		}
		if fit == 0 {
			allow = append(allow, r.b.Verb)
			if r.b.Verb == "GET" {
				allow = append(allow, "HEAD")
			}
			continue
		}
		key = append(key, fit)
		if best != nil && slices.Compare(key, bestKey) >= 0 {
			continue
		}
		best, bestKey, values = r.b, key, nil
		for i, v := range r.t.vars {
			raw := strings.Join(segs[where[v.first]:where[v.last+1]], "/")
			if r.b.Vars[i].Multi {
				raw = strings.ReplaceAll(strings.ReplaceAll(raw, "%2F", "%252F"), "%2f", "%252f")
			}
			values = append(values, unescape(raw))
		}
	}
	if best != nil {
		return best, values, nil, nil
	}
	slices.Sort(allow)
	return nil, nil, slices.Compact(allow), nil
}

func compareToNaive(t *testing.T, r *router, naive []naiveRoute, verb, path string) {
	t.Helper()
	show := func(b *Binding, values, allow []string, bad bool) string {
		switch {
		case bad:
			return "400"
		case b != nil:
			return fmt.Sprintf("%d %s %q", b.ID, b.Template, values)
		}
		return fmt.Sprintf("404 %q", allow)
	}
	b, values, allow, err := naiveMatch(naive, verb, path)
	want := show(b, values, allow, err != nil)
	m, err := r.match(verb, path)
	var no *NoRouteError
	var bad *BadPathError
	errors.As(err, &no)
	got := ""
	switch {
	case err == nil:
		var vs []string
		for i := range m.Binding.Vars {
			vs = append(vs, m.Value(i))
			if !utf8.ValidString(vs[i]) {
				t.Errorf("value %q is not UTF-8", vs[i])
			}
		}
		got = show(m.Binding, vs, nil, false)
	case no != nil:
		got = show(nil, nil, no.Allow, false)
	case errors.As(err, &bad):
		got = "400"
		if bad.Offset < 0 || bad.Offset >= len(path) {
			t.Errorf("%q: offset %d of %v", path, bad.Offset, err)
		}
	default:
		got = err.Error()
	}
	if got != want {
		var all []string
		for _, n := range naive {
			all = append(all, n.b.Verb+" "+n.b.Template)
		}
		t.Errorf("%s %q over %q:\n got %s\nwant %s", verb, path, all, got, want)
	}
}

// FuzzMatchHTTP compares the trie with naiveMatch. routes has a "VERB template" a line.
func FuzzMatchHTTP(f *testing.F) {
	f.Add("GET /a/{x}\nPOST /a/b\nGET /{n=**}", "GET", "/a/b")
	f.Add("GET /v/{n=**}/t\nGET /v/{n=**}/x/t:go", "GET", "/v/a/x/t:go")
	f.Add("* /k%C3%A4/{x=a/*}\nGET /", "HEAD", "/kä/a/%2f%25")
	f.Add("GET /{a}/{b}:v\nGET /{a=x/**}:v\nGET /**", "GET", "/x/:v")
	f.Fuzz(func(t *testing.T, lines, verb, path string) {
		if len(lines) > 1000 || len(path) > 1000 {
			return
		}
		r, naive := newRouter(strings.Split(lines, "\n"))
		compareToNaive(t, r, naive, verb, path)
	})
}

// TestRandomRoutes compares the trie with naiveMatch on random routes and paths over few words, so that they often meet.
func TestRandomRoutes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	for range 3000 {
		var lines []string
		for range 1 + rnd.IntN(8) {
			var segs []string
			deep := false
			for range rnd.IntN(5) {
				s := pick("a", "b", "c", "*", "{x%}", "{x%=**}", "{x%=a/*}", "{x%=*/b/**}", "{x%=**/a}", "**")
				if deep {
					s = pick("a", "b", "{x%=c}")
				}
				deep = deep || strings.Contains(s, "**")
				segs = append(segs, strings.ReplaceAll(s, "%", fmt.Sprint(len(segs))))
			}
			lines = append(lines, pick("GET", "POST", "HEAD", "*")+" /"+strings.Join(segs, "/")+pick("", "", ":v", ":w"))
		}
		r, naive := newRouter(lines)
		for range 30 {
			path := ""
			for range rnd.IntN(6) {
				path += "/" + pick("a", "b", "c", "a", "b", "c", "", "%61", "a%2Fb", "a:v", ":w", "%25")
			}
			compareToNaive(t, r, naive, pick("GET", "POST", "HEAD", "PUT"), path+pick("", "", "", ":v", ":w", "/"))
		}
	}
}

// FuzzParseTemplate: an error has a column within the template, and a parsed template written out again parses to the
// same.
func FuzzParseTemplate(f *testing.F) {
	for _, s := range []string{"/", "/a/{b=c/*}/**/d:e", "/{a.b_1}:x", "/a%2Fb/ä", "/{a=**}", "/a//b", "/{", "/{a=", ":", "/a:", "/*/**/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tmpl, err := parseTemplate(s)
		if err != nil {
			var te *TemplateError
			if !errors.As(err, &te) || te.Column < 1 || te.Column > len(s)+1 || te.Template != s || te.Reason == "" {
				t.Fatalf("%q: bad error %#v", s, err)
			}
			return
		}
		written := tmpl.write()
		again, err := parseTemplate(written)
		if err != nil {
			t.Fatalf("%q, written %q: %v", s, written, err)
		}
		if again.write() != written || len(again.segments) != len(tmpl.segments) || again.verb != tmpl.verb {
			t.Errorf("%q, written %q, parses to %q", s, written, again.write())
		}
		for i, v := range tmpl.vars {
			if w := again.vars[i]; v.first != w.first || v.last != w.last || v.multi != w.multi || v.name != w.name {
				t.Errorf("%q: variable %+v became %+v", s, v, w)
			}
		}
	})
}

// write is the template in its longest spelling.
func (t *template) write() string {
	var b strings.Builder
	v := 0
	for i, s := range t.segments {
		b.WriteByte('/')
		if v < len(t.vars) && t.vars[v].first == i {
			b.WriteString("{" + t.vars[v].name + "=")
		}
		switch s.kind {
		case starSegment:
			b.WriteString("*")
		case deepSegment:
			b.WriteString("**")
		case literalSegment:
			for _, c := range []byte(s.text) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
		if v < len(t.vars) && t.vars[v].last == i {
			b.WriteString("}")
			v++
		}
	}
	if len(t.segments) == 0 {
		return "/"
	}
	if t.verb != "" {
		b.WriteByte(':')
		for _, c := range []byte(t.verb) {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
