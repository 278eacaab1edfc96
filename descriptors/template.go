package descriptors

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// segmentKind says what one segment of a template matches.
type segmentKind uint8

const (
	literalSegment segmentKind = iota // exactly its text
	starSegment                       // "*": one non-empty segment
	deepSegment                       // "**": any number of segments, none included, empty ones included
)

// segment is one segment of a template. text is the percent-decoded literal, "" for the wildcards.
type segment struct {
	kind segmentKind
	text string
}

// templateVar is a variable of a template: the segments first … last (inclusive) of the flattened template.
type templateVar struct {
	name        string // dotted field path
	first, last int
	multi       bool // may span several segments: anything but one literal or one "*"
	column      int
}

// template is a parsed path template with the segments of its variables in place.
type template struct {
	segments []segment
	vars     []templateVar
	verb     string // custom verb without its colon, percent-decoded; "" for none
}

// deep returns the index of the "**" segment, or -1.
func (t *template) deep() int {
	for i, s := range t.segments {
		if s.kind == deepSegment {
			return i
		}
	}
	return -1
}

// TemplateError is a fault in a path template.
type TemplateError struct {
	Template string
	Column   int // 1-based, in bytes
	Reason   string
}

func (e *TemplateError) Error() string {
	return fmt.Sprintf("path template %q, column %d: %s", e.Template, e.Column, e.Reason)
}

// parseTemplate parses a path template of google/api/http.proto:
//
//	Template  = "/" [ Segments [ Verb ] ]
//	Segments  = Segment { "/" Segment }
//	Segment   = "*" | "**" | LITERAL | Variable
//	Variable  = "{" FieldPath [ "=" Segments ] "}"       no variable inside a variable
//	FieldPath = IDENT { "." IDENT }
//	Verb      = ":" LITERAL
//	IDENT     = [A-Za-z_] { [A-Za-z0-9_] }
//	LITERAL   = one or more characters but space, control characters and any of / : * { } ? #
//
// A "%" in a literal begins an escape of two hex digits; literals are kept decoded, since they are compared with decoded
// path segments. "**" may appear once and may be followed by literals only: "/a/**/b". The spec wants it last; the
// literals after it are an extension that other implementations share. "/" alone is the root. Every error is a
// *TemplateError.
func parseTemplate(s string) (*template, error) {
	p := templateParser{in: s}
	if err := p.parse(); err != nil {
		return nil, err
	}
	return &p.out, nil
}

type templateParser struct {
	in   string
	pos  int
	out  template
	deep int // 1 + index of the "**" segment; 0 for none
}

func (p *templateParser) errorf(pos int, format string, args ...any) error {
	return &TemplateError{Template: p.in, Column: pos + 1, Reason: fmt.Sprintf(format, args...)}
}

// peek returns the next byte, or 0 at the end (a NUL in the template is refused as a control character).
func (p *templateParser) peek() byte {
	if p.pos < len(p.in) {
		return p.in[p.pos]
	}
	return 0
}

func (p *templateParser) atEnd() bool { return p.pos == len(p.in) }

func (p *templateParser) parse() error {
	if p.in == "" {
		return p.errorf(0, "is empty")
	}
	if p.peek() != '/' {
		return p.errorf(0, "must begin with a slash")
	}
	p.pos++
	if p.atEnd() {
		return nil
	}
	if err := p.segments(true); err != nil {
		return err
	}
	if p.peek() == ':' && !p.atEnd() {
		p.pos++
		start := p.pos
		verb, err := p.literal("verb")
		if err != nil {
			return err
		}
		if !p.atEnd() {
			return p.errorf(p.pos, "the verb %q must end the template", p.in[start:p.pos])
		}
		p.out.verb = verb
	}
	if !p.atEnd() {
		return p.errorf(p.pos, "unexpected %s", p.next())
	}
	return nil
}

// segments parses Segment { "/" Segment } up to the first byte that continues neither.
func (p *templateParser) segments(variables bool) error {
	for {
		if err := p.segment(variables); err != nil {
			return err
		}
		if p.atEnd() || p.peek() != '/' {
			return nil
		}
		p.pos++
	}
}

func (p *templateParser) segment(variables bool) error {
	start := p.pos
	switch {
	case p.atEnd():
		if start > 0 && p.in[start-1] == '/' {
			return p.errorf(start-1, "a template must not end with a slash")
		}
		return p.errorf(start, "a segment is missing at the end")
	case p.peek() == '/':
		return p.errorf(start, "an empty segment is not allowed")
	case p.peek() == ':':
		return p.errorf(start, "a segment is missing before the colon")
	case p.peek() == '{':
		if !variables {
			return p.errorf(start, "a variable inside a variable is not allowed")
		}
		if err := p.variable(); err != nil {
			return err
		}
		return p.endOfSegment("a variable must be a whole segment, but %s follows it")
	case strings.HasPrefix(p.in[p.pos:], "**"):
		p.pos += 2
		if err := p.add(start, segment{kind: deepSegment}); err != nil {
			return err
		}
		return p.endOfSegment("\"**\" must be a whole segment, but %s follows it")
	case p.peek() == '*':
		p.pos++
		if err := p.add(start, segment{kind: starSegment}); err != nil {
			return err
		}
		return p.endOfSegment("\"*\" must be a whole segment, but %s follows it")
	default:
		text, err := p.literal("literal")
		if err != nil {
			return err
		}
		if err := p.add(start, segment{kind: literalSegment, text: text}); err != nil {
			return err
		}
		return p.endOfSegment("a literal must be a whole segment, but %s follows it")
	}
}

// endOfSegment checks that a segment ends where it should; what must contain one %s for the offending character.
func (p *templateParser) endOfSegment(what string) error {
	if p.atEnd() {
		return nil
	}
	switch p.peek() {
	case '/', ':', '}':
		return nil
	}
	return p.errorf(p.pos, what, p.next())
}

// next quotes the next character for an error.
func (p *templateParser) next() string {
	r, _ := utf8.DecodeRuneInString(p.in[p.pos:])
	return fmt.Sprintf("%q", string(r))
}

func (p *templateParser) add(pos int, s segment) error {
	if p.deep > 0 && s.kind != literalSegment {
		return p.errorf(pos, "only literals may follow \"**\"")
	}
	p.out.segments = append(p.out.segments, s)
	if s.kind == deepSegment {
		p.deep = len(p.out.segments)
	}
	return nil
}

func (p *templateParser) variable() error {
	open := p.pos
	p.pos++ // "{"
	nameStart := p.pos
	for {
		start := p.pos
		for !p.atEnd() && isIdent(p.peek(), p.pos > start) {
			p.pos++
		}
		if p.pos == start {
			if p.atEnd() {
				return p.errorf(open, "the variable is not closed")
			}
			return p.errorf(p.pos, "a field name is expected, not %s", p.next())
		}
		if p.peek() != '.' {
			break
		}
		p.pos++
	}
	v := templateVar{name: p.in[nameStart:p.pos], first: len(p.out.segments), column: nameStart + 1}
	switch {
	case p.atEnd():
		return p.errorf(open, "the variable is not closed")
	case p.peek() == '=':
		p.pos++
		if p.peek() == '}' && !p.atEnd() {
			return p.errorf(p.pos, "a segment is missing after \"=\"")
		}
		if p.peek() == '/' {
			return p.errorf(p.pos, "the pattern of a variable must not begin with a slash")
		}
		if err := p.segments(false); err != nil {
			return err
		}
	case p.peek() == '}':
		if err := p.add(open, segment{kind: starSegment}); err != nil {
			return err
		}
	}
	if p.atEnd() {
		return p.errorf(open, "the variable is not closed")
	}
	if p.peek() != '}' {
		return p.errorf(p.pos, "\"}\" is expected to close the variable, not %s", p.next())
	}
	p.pos++
	v.last = len(p.out.segments) - 1
	v.multi = v.last > v.first || p.out.segments[v.first].kind == deepSegment
	for _, o := range p.out.vars {
		if o.name == v.name {
			return p.errorf(nameStart, "the variable %q appears twice", v.name)
		}
	}
	p.out.vars = append(p.out.vars, v)
	return nil
}

// literal parses a LITERAL and returns it percent-decoded.
func (p *templateParser) literal(what string) (string, error) {
	start := p.pos
	for p.pos < len(p.in) {
		r, size := utf8.DecodeRuneInString(p.in[p.pos:])
		if r == utf8.RuneError && size == 1 {
			return "", p.errorf(p.pos, "the template is not valid UTF-8")
		}
		if strings.ContainsRune("/:*{}", r) {
			break
		}
		switch {
		case r == '?' || r == '#':
			return "", p.errorf(p.pos, "%q is not allowed: a template has a path only", string(r))
		case unicode.IsControl(r) || unicode.IsSpace(r):
			return "", p.errorf(p.pos, "%q is not allowed in a %s", string(r), what)
		case r == '%':
			if _, ok := unhex(p.in, p.pos); !ok {
				return "", p.errorf(p.pos, "\"%%\" must be followed by two hex digits")
			}
		}
		p.pos += size
	}
	if p.pos == start {
		if p.atEnd() {
			return "", p.errorf(start, "a %s is missing at the end", what)
		}
		return "", p.errorf(start, "a %s is expected, not %s", what, p.next())
	}
	text := string(appendUnescaped(nil, p.in[start:p.pos], false))
	if !utf8.ValidString(text) {
		return "", p.errorf(start, "the escapes of the %s do not decode to UTF-8", what)
	}
	return text, nil
}

// isIdent reports whether c may stand in an IDENT; digits only after the first byte.
func isIdent(c byte, digits bool) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || digits && '0' <= c && c <= '9'
}

// unhex decodes the escape "%XY" that begins at s[i].
func unhex(s string, i int) (byte, bool) {
	if i+2 >= len(s) {
		return 0, false
	}
	hi, ok1 := hexDigit(s[i+1])
	lo, ok2 := hexDigit(s[i+2])
	return hi<<4 | lo, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// appendUnescaped appends s to dst with its escapes decoded once. With keepSlash, "%2F" and "%2f" stay as they are. A
// malformed escape is kept as text; callers have checked that there is none.
func appendUnescaped(dst []byte, s string, keepSlash bool) []byte {
	for {
		i := strings.IndexByte(s, '%')
		if i < 0 {
			return append(dst, s...)
		}
		dst = append(dst, s[:i]...)
		c, ok := unhex(s, i)
		switch {
		case !ok:
			dst = append(dst, '%')
			s = s[i+1:]
		case keepSlash && c == '/':
			dst = append(dst, s[i:i+3]...)
			s = s[i+3:]
		default:
			dst = append(dst, c)
			s = s[i+3:]
		}
	}
}
