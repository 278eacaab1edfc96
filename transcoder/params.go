package transcoder

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
)

// claim says that a request already sets something: a leaf field (member 0), or a oneof by one of its members. Keys are
// hashes of field paths; two paths with one key could only make transom refuse a request, never take a wrong one.
type claim struct {
	key    uint64
	member protoreflect.FieldNumber
}

// rootKey is the key of the request message itself.
const rootKey uint64 = 0x9E3779B97F4A7C15

// fieldKey is the key of a field of the message with key parent.
func fieldKey(parent uint64, n protoreflect.FieldNumber) uint64 { return mix(parent, uint64(n)) }

// oneofKey is the key of a oneof; index counts from 1.
func oneofKey(parent uint64, index int32) uint64 { return mix(parent, uint64(index)|1<<40) }

// mix is the finisher of SplitMix64 over both.
func mix(h, v uint64) uint64 {
	h = (h ^ v) * 0xBF58476D1CE4E5B9
	h = (h ^ h>>27) * 0x94D049BB133111EB
	return h ^ h>>31
}

// manyClaims is where the claims of a request move from a list to a map, so that hostile queries stay linear.
const manyClaims = 16

// paramReader reads the parameters of one request: of its query, and of its form body.
type paramReader struct {
	plan    *Plan
	binding *binding
	// masked says that a parameter has set the rule's field mask.
	masked bool
	list   [manyClaims]claim
	claims int
	more   map[uint64]protoreflect.FieldNumber
}

// claim records c unless its key is taken, and then says by what.
func (r *paramReader) claim(c claim) (taken bool, by protoreflect.FieldNumber) {
	for i := range r.binding.claims {
		if o := &r.binding.claims[i]; o.key == c.key {
			return true, o.member
		}
	}
	for i := range r.claims {
		if r.list[i].key == c.key {
			return true, r.list[i].member
		}
	}
	if r.claims < manyClaims {
		r.list[r.claims] = c
		r.claims++
		return false, 0
	}
	if by, taken = r.more[c.key]; taken {
		return true, by
	}
	if r.more == nil {
		r.more = map[uint64]protoreflect.FieldNumber{}
	}
	r.more[c.key] = c.member
	return false, 0
}

// inPath reports whether the path sets the leaf of this key.
func (r *paramReader) inPath(key uint64) bool {
	for i := range r.binding.claims {
		if r.binding.claims[i].key == key {
			return true
		}
	}
	return false
}

// scope is what parameter names are relative to.
type scope struct {
	kind  string // what a parameter is called in errors
	table *params
	key   uint64
	// field is the request's field that holds the message of table; nil for the request itself.
	field *param
	// closed says that no parameter is taken, since the body holds the whole request.
	closed bool
	// body is the field that only the body sets.
	body *param
}

func (r *paramReader) queryScope() scope {
	return scope{
		kind: "query parameter", table: r.plan.query, key: rootKey,
		closed: r.binding.Body == descriptors.BodyAll, body: r.binding.body,
	}
}

func (r *paramReader) formScope() scope {
	s := scope{kind: "form field", table: r.plan.query, key: rootKey}
	if f := r.binding.body; f != nil {
		s.field, s.table, s.key = f, f.child, fieldKey(rootKey, f.desc.Number())
	}
	return s
}

// read appends the records of all parameters of raw, in order.
func (r *paramReader) read(dst []byte, raw string, s *scope) ([]byte, error) {
	var nameBuf, valueBuf [64]byte
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		if strings.IndexByte(pair, ';') >= 0 {
			// Some parsers split here and others do not; guessing would lose data.
			return dst, paramFault(s.kind, rawName, errSemicolon)
		}
		name, ok := unescape(nameBuf[:0], rawName)
		if !ok {
			return dst, paramFault(s.kind, rawName, errEscape)
		}
		value, ok := unescape(valueBuf[:0], rawValue)
		if !ok {
			return dst, paramFault(s.kind, strings.Clone(name), errEscape)
		}
		var err error
		if dst, err = r.param(dst, s, name, value); err != nil {
			if strings.IndexByte(rawValue, '+') >= 0 {
				err = fmt.Errorf("%w (a + is read as a space: write %%2B for a plus)", err)
			}
			return dst, paramFault(s.kind, strings.Clone(name), err)
		}
	}
	return dst, nil
}

var (
	errSemicolon = errors.New("a bare semicolon is not allowed: write & between parameters, and %3B for a semicolon in a value")
	errEscape    = errors.New("malformed percent escape")
	errClosed    = errors.New("the body holds the whole request, no parameter is taken")
	errInBody    = errors.New("the body holds this field, a parameter cannot set it")
	errInPath    = errors.New("the path sets this field, a parameter cannot")
	errTwice     = errors.New("given twice, but the field is not repeated")
	errMapTwice  = errors.New("given twice")
	errNoMaps    = errors.New("map parameters are not enabled")
	errDepth     = errors.New("names more nested fields than are allowed")
)

// splitKey splits the name of a map entry, "labels[k]", into field and key.
func splitKey(name string) (path, key string, isMap bool) {
	if i := strings.IndexByte(name, '['); i >= 0 && name[len(name)-1] == ']' {
		return name[:i], name[i+1 : len(name)-1], true
	}
	return name, "", false
}

// find resolves the path of a parameter and claims the oneofs on the way: the field, the messages that lead to it, and its
// key. A nil field without an error is a parameter to leave out. The steps are appended to buf. (Several results rather
// than a struct, so that nothing of the caller's escapes.)
func (r *paramReader) find(s *scope, path string, buf []*param) (f *param, steps []*param, key uint64, err error) {
	ps := r.plan.plans
	if s.closed {
		if ps.options.IgnoreUnknownQuery {
			return nil, nil, 0, nil
		}
		return nil, nil, 0, errClosed
	}
	steps, key = buf, s.key
	if s.field != nil {
		steps = append(steps, s.field)
	}
	table := s.table
	for more := true; more; {
		var seg string
		seg, path, more = strings.Cut(path, ".")
		parent := f
		if parent != nil {
			if parent.form != formMessage {
				return nil, nil, 0, fmt.Errorf("field %q has no fields of its own", parent.desc.Name())
			}
			if len(steps) == ps.depth {
				return nil, nil, 0, errDepth
			}
			steps, table = append(steps, parent), parent.child
		}
		if f = table.byName[seg]; f == nil {
			if ps.options.IgnoreUnknownQuery {
				return nil, nil, 0, nil
			}
			return nil, nil, 0, table.unknown(seg)
		}
		if parent == nil && s.body == f {
			return nil, nil, 0, errInBody
		}
		if f.oneof > 0 {
			if taken, by := r.claim(claim{oneofKey(key, f.oneof), f.desc.Number()}); taken && by != f.desc.Number() {
				return nil, nil, 0, fmt.Errorf("another member of oneof %q is set already", f.desc.ContainingOneof().Name())
			}
		}
		key = fieldKey(key, f.desc.Number())
	}
	return f, steps, key, nil
}

// claimLeaf claims the field with that key, unless it is repeated.
func (r *paramReader) claimLeaf(f *param, key uint64) error {
	if f.desc.IsList() {
		return nil
	}
	if taken, _ := r.claim(claim{key, 0}); taken {
		if r.inPath(key) {
			return errInPath
		}
		return errTwice
	}
	return nil
}

// nest puts the record that begins at start into the messages of steps.
func nest(dst []byte, start int, steps []*param) []byte {
	for _, step := range slices.Backward(steps) {
		dst = step.shut(dst, start)
	}
	return dst
}

// leftOut reports whether a parameter is none of the request's fields.
func (r *paramReader) leftOut(s *scope, name string) bool {
	return r.plan.plans.ignore[name] || isSystem(name, s.table)
}

// param appends the record of one parameter. name and value are not kept.
func (r *paramReader) param(dst []byte, s *scope, name, value string) ([]byte, error) {
	if r.leftOut(s, name) {
		return dst, nil
	}
	var buf [8]*param
	path, mapKey, isMap := splitKey(name)
	f, steps, key, err := r.find(s, path, buf[:0])
	if err != nil || f == nil {
		return dst, err
	}
	start := len(dst)
	switch {
	case isMap && f.form == formMap:
		if !r.plan.plans.options.QueryMaps {
			return dst, errNoMaps
		}
		if taken, _ := r.claim(claim{mix(key, maphash.String(r.plan.plans.seed, mapKey)), 0}); taken {
			return dst, errMapTwice
		}
		if dst, err = f.key.appendText(dst, mapKey); err != nil {
			return dst, fmt.Errorf("map key: %w", err)
		}
		if dst, err = f.val.appendText(dst, value); err != nil {
			return dst, err
		}
		dst = f.shut(dst, start)
	case isMap:
		return dst, fmt.Errorf("field %q is not a map", f.desc.Name())
	case f.form == formMap:
		return dst, fmt.Errorf("field %q is a map: write %s[key]=value", f.desc.Name(), f.desc.Name())
	case !f.settable():
		return dst, fmt.Errorf("field %q is %s, a parameter cannot set it", f.desc.Name(), f.kindName())
	default:
		if err = r.claimLeaf(f, key); err != nil {
			return dst, err
		}
		if dst, err = f.appendText(dst, value); err != nil {
			return dst, err
		}
		if f == r.binding.mask && len(steps) == 0 && value != "" {
			r.masked = true
		}
	}
	return nest(dst, start, steps), nil
}

// unescape decodes a form-urlencoded name or value: "+" is a space, "%" begins an escape of two hex digits. The result is
// s itself if it has neither, else it lies in buf or, when that is too small, in memory of its own.
func unescape(buf []byte, s string) (_ string, ok bool) {
	i := 0
	for i < len(s) && s[i] != '%' && s[i] != '+' {
		i++
	}
	if i == len(s) {
		return s, true
	}
	buf = append(buf, s[:i]...)
	for ; i < len(s); i++ {
		c := s[i]
		switch c {
		case '+':
			c = ' '
		case '%':
			if i+2 >= len(s) {
				return "", false
			}
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi > 15 || lo > 15 {
				return "", false
			}
			c = hi<<4 | lo
			i += 2
		}
		buf = append(buf, c)
	}
	return stringOf(buf), true
}

// System are the system parameters of a request (cloud.google.com/apis/docs/system-parameters), each "" or false unless
// given. Alt, Fields, PrettyPrint and Key may be written with or without a leading "$"; without it, a request field of
// the same name comes first.
type System struct {
	Alt         string
	Fields      string
	PrettyPrint bool
	Key         string
	AccessToken string
}

// isSystem reports whether name is a system parameter for requests whose fields are table.
func isSystem(name string, table *params) bool {
	switch name {
	case "$alt", "$fields", "$prettyPrint", "$key", "access_token":
		return true
	case "alt", "fields", "prettyPrint", "key":
		return table.byName[name] == nil
	}
	return false
}

// System reads the system parameters of the query of a call by HTTP rule. A value that is none is InvalidArgument naming the parameter.
func (p *Plan) System(rawQuery string) (System, error) {
	var s System
	if rawQuery == "" || p.query == nil {
		return s, nil
	}
	for raw := rawQuery; raw != ""; {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		name, value, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "%24") {
			name = "$" + name[3:]
		}
		if !isSystem(name, p.query) {
			continue
		}
		value, ok := unescape(nil, value)
		if !ok {
			return s, paramFault("query parameter", name, errEscape)
		}
		switch strings.TrimPrefix(name, "$") {
		case "alt":
			s.Alt = value
		case "fields":
			s.Fields = value
		case "key":
			s.Key = value
		case "access_token":
			s.AccessToken = value
		case "prettyPrint":
			switch value {
			case "", "true":
				s.PrettyPrint = true
			case "false":
				s.PrettyPrint = false
			default:
				return s, paramFault("query parameter", name, expected("true or false", value))
			}
		}
	}
	return s, nil
}

// unhex is the value of a hexadecimal digit, 255 if c is none.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
