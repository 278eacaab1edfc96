package descriptors

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// Match is a request path matched to a Binding. It refers to the path it came from and is a value without a lock: copy it
// freely.
type Match struct {
	Binding *Binding
	path    string
	spans   [inlineVars]span // of the first variables
	more    []span           // of the rest; nil for most
}

// inlineVars is how many variables a Match holds without an allocation.
const inlineVars = 4

// span is a half-open range of bytes of a path.
type span struct{ start, end int32 }

func (m *Match) raw(i int) string {
	s := m.more
	if i < inlineVars {
		s = m.spans[:]
	} else {
		i -= inlineVars
	}
	return m.path[s[i].start:s[i].end]
}

// Value returns the value of m.Binding.Vars[i], percent-decoded once. In a variable that may span several segments an
// escaped slash stays escaped, so that it can be told from a separator (google/api/http.proto). Always valid UTF-8. It
// allocates only if the value has escapes.
func (m *Match) Value(i int) string {
	raw := m.raw(i)
	if strings.IndexByte(raw, '%') < 0 {
		return raw
	}
	return string(m.AppendValue(make([]byte, 0, len(raw)), i))
}

// AppendValue appends what Value(i) returns to dst.
func (m *Match) AppendValue(dst []byte, i int) []byte {
	return appendUnescaped(dst, m.raw(i), m.Binding.Vars[i].Multi)
}

// NoRouteError says that no binding takes a request.
type NoRouteError struct {
	Verb, Path string
	// Allow lists, sorted, the HTTP methods that the path does take: the answer is then 405 with this list in Allow, and
	// 404 if there are none.
	Allow []string
}

func (e *NoRouteError) Error() string {
	if len(e.Allow) > 0 {
		return fmt.Sprintf("method %s is not allowed for path %q; allowed: %s", e.Verb, clip(e.Path), strings.Join(e.Allow, ", "))
	}
	return fmt.Sprintf("no route for %s %q", e.Verb, clip(e.Path))
}

// BadPathError says that a request path cannot be decoded: the answer is 400.
type BadPathError struct {
	Path   string
	Offset int // of the fault, in bytes
	Reason string
}

func (e *BadPathError) Error() string {
	return fmt.Sprintf("path %q: %s at byte %d", clip(e.Path), e.Reason, e.Offset)
}

// clip shortens a path for an error message, so that hostile paths do not make long answers.
func clip(s string) string {
	const limit = 256
	if len(s) <= limit {
		return s
	}
	n := limit
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// router finds the binding for a request. It is a trie over the segments of all templates. A node is reached by exactly
// one sequence of template segments, so a search visits each node at most once and back-tracking is never more than one
// walk over the nodes whose prefix matches the path. The search looks at no more segments of the path than the longest
// template has before its "**" and after it; what "**" swallows is never split.
//
// At each segment a literal is tried first, then "*", then "**", and a leaf that lacks the HTTP method does not end the
// search. If the path ends in ":verb" and some template has that verb, templates with it are searched first.
type router struct {
	root    node
	verbs   map[string]bool // custom verbs of any template
	depth   int             // segments before "**", most of any template
	tail    int             // literals after "**", most of any template
	longest int             // bytes of the longest literal of any template
}

// literals are the children of a node by decoded literal. Most nodes have one, which is found without the map.
type literals[N any] struct {
	text string
	next *N
	more map[string]*N
}

// find returns the child for a literal, or nil.
func (l *literals[N]) find(text string) *N {
	if l.next == nil || l.text == text {
		return l.next
	}
	return l.more[text]
}

// at returns the child for a literal, which it makes if there is none.
func (l *literals[N]) at(text string) *N {
	switch n := l.find(text); {
	case n != nil:
		return n
	case l.next == nil:
		l.text, l.next = text, new(N)
		return l.next
	case l.more == nil:
		l.more = map[string]*N{}
	}
	l.more[text] = new(N)
	return l.more[text]
}

// node stands for a sequence of template segments.
type node struct {
	literals literals[node]
	star     *node
	deep     *suffix // templates that go on with "**"
	leaves   []leaf  // templates that end here
}

// suffix stands for literals after a "**", read from the end of the path backwards.
type suffix struct {
	literals literals[suffix]
	leaves   []leaf
}

// leaf holds the routes of one template; verb is its custom verb or "".
type leaf struct {
	verb   string
	routes []route
}

// route is a template bound to an HTTP method, with where its variables lie.
type route struct {
	http    string // "*" for every method
	binding *Binding
	bounds  []bounds
}

// bounds says where a variable begins and ends. An edge is the slash before a template segment: i ≥ 0 is the slash before
// segment i counted from the front, i < 0 the one before segment -i counted from the back (-1 is before the last), and
// endOfPath the end of the path.
type bounds struct{ from, to int }

const endOfPath = math.MinInt

func varBounds(t *template) []bounds {
	deep, n := t.deep(), len(t.segments)
	edge := func(i int) int { // the slash before segment i
		switch {
		case i == n:
			return endOfPath
		case deep >= 0 && i > deep:
			return i - n
		}
		return i
	}
	var out []bounds
	for _, v := range t.vars {
		out = append(out, bounds{from: edge(v.first), to: edge(v.last + 1)})
	}
	return out
}

// add registers a binding. If an equal template has the same HTTP method it changes nothing and returns that binding.
func (r *router) add(t *template, b *Binding) (taken *Binding) {
	var leaves *[]leaf
	n := &r.root
	deep := t.deep()
	for _, s := range t.segments {
		r.longest = max(r.longest, len(s.text))
	}
	for i, s := range t.segments {
		if i == deep {
			break
		}
		if s.kind == starSegment {
			if n.star == nil {
				n.star = &node{}
			}
			n = n.star
			continue
		}
		n = n.literals.at(s.text)
	}
	leaves = &n.leaves
	if deep >= 0 {
		if n.deep == nil {
			n.deep = &suffix{}
		}
		sn := n.deep
		for i := len(t.segments) - 1; i > deep; i-- {
			sn = sn.literals.at(t.segments[i].text)
		}
		leaves = &sn.leaves
		r.depth, r.tail = max(r.depth, deep), max(r.tail, len(t.segments)-deep-1)
	} else {
		r.depth = max(r.depth, len(t.segments))
	}
	i := slices.IndexFunc(*leaves, func(l leaf) bool { return l.verb == t.verb })
	if i < 0 {
		i = len(*leaves)
		*leaves = append(*leaves, leaf{verb: t.verb})
	}
	l := &(*leaves)[i]
	for _, o := range l.routes {
		if o.http == b.Verb {
			return o.binding
		}
	}
	l.routes = append(l.routes, route{http: b.Verb, binding: b, bounds: varBounds(t)})
	if t.verb != "" {
		if r.verbs == nil {
			r.verbs = map[string]bool{}
		}
		r.verbs[t.verb] = true
	}
	return nil
}

// search is one walk of the trie.
type search struct {
	method  string
	path    string // without the custom verb
	verb    string
	escaped bool // the path has escapes
	longest int  // bytes of the longest literal
	// slashes[i] is the offset of the slash before segment i, or len(path) where the path has ended.
	slashes []int32
	// backSlashes[i] is the offset of the slash before the segment i+1 from the end, as far as literals matched there.
	backSlashes []int32
	found       *route
	blocked     bool // a template matched but not its HTTP methods
	allow       *[]string
}

// match finds the binding for method and path.
func (r *router) match(method, path string) (Match, error) {
	escaped, err := checkPath(path)
	if err != nil {
		return Match{}, err
	}
	if len(path) == 0 || path[0] != '/' {
		return Match{}, &NoRouteError{Verb: method, Path: path}
	}
	var front [16]int32
	var back [8]int32
	s := search{method: method, escaped: escaped, longest: r.longest, slashes: front[:], backSlashes: back[:]}
	if r.depth+1 > len(front) {
		s.slashes = make([]int32, r.depth+1)
	}
	if r.tail > len(back) {
		s.backSlashes = make([]int32, r.tail)
	}
	if !r.walk(&s, path) {
		err := &NoRouteError{Verb: method, Path: path}
		if s.blocked {
			s.allow = &err.Allow
			r.walk(&s, path)
			if slices.Contains(err.Allow, "GET") {
				err.Allow = append(err.Allow, "HEAD")
			}
			slices.Sort(err.Allow)
			err.Allow = slices.Compact(err.Allow)
		}
		return Match{}, err
	}
	m := Match{Binding: s.found.binding, path: path}
	bs := s.found.bounds
	if len(bs) > inlineVars {
		m.more = make([]span, len(bs)-inlineVars)
	}
	for i, b := range bs {
		v := span{start: min(s.edge(b.from)+1, int32(len(s.path))), end: s.edge(b.to)}
		if v.start > v.end { // "**" that matched no segment
			v.start = v.end
		}
		if i < inlineVars {
			m.spans[i] = v
		} else {
			m.more[i-inlineVars] = v
		}
	}
	return m, nil
}

// edge returns the offset that i names; see bounds.
func (s *search) edge(i int) int32 {
	switch {
	case i == endOfPath:
		return int32(len(s.path))
	case i < 0:
		return s.backSlashes[-i-1]
	}
	return s.slashes[i]
}

// walk searches with the path's custom verb, if any template has it, and then without.
func (r *router) walk(s *search, path string) bool {
	if len(r.verbs) > 0 {
		last := strings.LastIndexByte(path, '/')
		if colon := strings.LastIndexByte(path[last:], ':'); colon >= 0 {
			s.path, s.verb = path[:last+colon], path[last+colon+1:]
			if strings.IndexByte(s.verb, '%') >= 0 {
				s.verb = string(appendUnescaped(nil, s.verb, false))
			}
			if s.verb != "" && r.verbs[s.verb] && s.node(&r.root, 0, s.start()) {
				return true
			}
		}
	}
	s.path, s.verb = path, ""
	return s.node(&r.root, 0, s.start())
}

// start is the offset of the first slash; "/" alone has no segment.
func (s *search) start() int {
	if len(s.path) == 1 {
		return 1
	}
	return 0
}

// node searches below n, whose segments matched the path before offset p: the slash before segment depth, or the end.
// Recursion is as deep as templates are long.
func (s *search) node(n *node, depth, p int) bool {
	s.slashes[depth] = int32(p)
	if p == len(s.path) {
		if s.leaf(n.leaves) {
			return true
		}
	} else if n.literals.next != nil || n.star != nil {
		end := len(s.path)
		if i := strings.IndexByte(s.path[p+1:], '/'); i >= 0 {
			end = p + 1 + i
		}
		if seg := s.path[p+1 : end]; seg != "" {
			if next := lookup(s, &n.literals, seg); next != nil && s.node(next, depth+1, end) {
				return true
			}
			if n.star != nil && s.node(n.star, depth+1, end) {
				return true
			}
		}
	}
	if n.deep == nil {
		return false
	}
	return s.suffix(n.deep, 0, p, len(s.path))
}

// suffix searches below n for the longest run of literals that ends the path, where "**" may begin at p and end, the end
// of what is not yet consumed, is where it would end now.
func (s *search) suffix(n *suffix, depth, p, end int) bool {
	if n.literals.next != nil && end > p {
		slash := strings.LastIndexByte(s.path[p:end], '/') + p
		if next := lookup(s, &n.literals, s.path[slash+1:end]); next != nil {
			s.backSlashes[depth] = int32(slash)
			if s.suffix(next, depth+1, p, slash) {
				return true
			}
		}
	}
	return s.leaf(n.leaves)
}

// lookup finds a path segment among literals, decoded only if it may have escapes.
func lookup[N any](s *search, l *literals[N], seg string) *N {
	if !s.escaped {
		return l.find(seg)
	}
	if len(seg) > len("%XX")*s.longest {
		return nil // longer than any literal, however it is escaped
	}
	var buf [128]byte
	decoded := appendUnescaped(buf[:0], seg, false)
	if l.next == nil || l.text == string(decoded) {
		return l.next
	}
	return l.more[string(decoded)] // converted here, where it costs no allocation
}

// leaf looks for the verb and the HTTP method: its own first, for HEAD then GET's, then "*".
func (s *search) leaf(leaves []leaf) bool {
	for i := range leaves {
		l := &leaves[i]
		if l.verb != s.verb {
			continue
		}
		if s.allow != nil {
			for _, r := range l.routes {
				*s.allow = append(*s.allow, r.http)
			}
			return false
		}
		var get, all *route
		for j := range l.routes {
			r := &l.routes[j]
			switch r.http {
			case s.method:
				s.found = r
				return true
			case "GET":
				get = r
			case "*":
				all = r
			}
		}
		switch {
		case get != nil && s.method == "HEAD":
			s.found = get
		case all != nil:
			s.found = all
		default:
			s.blocked = true
			return false
		}
		return true
	}
	return false
}

// checkPath reports whether a path has escapes, and malformed ones and a path that does not decode to UTF-8 as errors.
func checkPath(path string) (escaped bool, err error) {
	if len(path) > math.MaxInt32 {
		return false, &BadPathError{Path: path, Reason: "too long"}
	}
	escape := strings.IndexByte(path, '%')
	if escape < 0 {
		if utf8.ValidString(path) {
			return false, nil
		}
		return false, notUTF8(path, []byte(path))
	}
	for i := escape; i < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		if _, ok := unhex(path, i); !ok {
			return true, &BadPathError{Path: path, Offset: i, Reason: fmt.Sprintf("malformed escape %q", strings.ToValidUTF8(path[i:min(i+3, len(path))], "\uFFFD"))}
		}
		i += 2
	}
	var buf [256]byte
	decoded := appendUnescaped(buf[:0], path, false)
	if utf8.Valid(decoded) {
		return true, nil
	}
	return true, notUTF8(path, decoded)
}

// notUTF8 says where path, which decodes to decoded, is not UTF-8.
func notUTF8(path string, decoded []byte) error {
	at := 0 // in decoded
	for at < len(decoded) {
		r, size := utf8.DecodeRune(decoded[at:])
		if r == utf8.RuneError && size == 1 {
			break
		}
		at += size
	}
	i := 0 // the same place in path
	for range at {
		if path[i] == '%' {
			i += 2
		}
		i++
	}
	return &BadPathError{Path: strings.ToValidUTF8(path, "\uFFFD"), Offset: i, Reason: fmt.Sprintf("%q is not UTF-8", fmt.Sprintf("%%%02X", decoded[at]))}
}
