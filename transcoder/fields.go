package transcoder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
)

// Fields says which parts of a JSON response a client wants: the "$fields" system parameter, compiled. A nil *Fields
// wants all.
type Fields struct {
	// names are the wanted members of an object by their quoted JSON names; a nil *Fields there wants the whole member.
	names map[string]*Fields
	// other is what is wanted of members that names does not have, with every; nil for the whole of them.
	other *Fields
	every bool
}

// maxFieldsDepth limits the nesting of a $fields expression.
const maxFieldsDepth = 32

// Fields compiles a $fields expression for the responses of b (nil for a call by RPC path):
//
//	Fields   = Selector { "," Selector }
//	Selector = Name { ( "/" | "." ) Name } [ "(" Fields ")" ]
//	Name     = "*" | a field in lowerCamelCase or as in the .proto file | a map key
//
// so that "items(id,owner/name),nextPageToken" keeps two members of each item and the token, and "*" stands for all
// members at its level. A list is looked through: a name applies to each of its elements. An expression that is malformed
// or names no field is InvalidArgument with the byte. Source: the partial responses of Google's APIs, and AIP-157.
func (p *Plan) Fields(b *descriptors.Binding, expression string) (*Fields, error) {
	c := fieldsCompiler{in: expression, protoNames: p.plans.options.JSON.ProtoNames}
	root := shapeOf(p.method.Desc.Output())
	if b != nil && b.ResponseField != nil {
		root = shapeOfField(b.ResponseField)
	}
	f := &Fields{}
	err := c.list(f, root, 0)
	if err == nil && c.pos < len(c.in) {
		err = fmt.Errorf("unexpected %q", c.in[c.pos])
	}
	if err != nil {
		return nil, paramFault("query parameter", "$fields", fmt.Errorf("%w at byte %d of %q", err, c.pos, clip(expression)))
	}
	return f, nil
}

// shape is what a JSON value holds, as far as names in it can be checked: the fields of a message, or members that only
// the data knows (map, Struct, Any).
type shape struct {
	message protoreflect.MessageDescriptor
	of      protoreflect.FieldDescriptor // the value field of a map
	free    bool                         // any name
	leaf    bool                         // no names
}

func shapeOf(md protoreflect.MessageDescriptor) shape {
	if md.ParentFile().Package() != "google.protobuf" {
		return shape{message: md}
	}
	switch md.Name() {
	case "Any", "Struct", "Value", "ListValue":
		return shape{free: true}
	case "Timestamp", "Duration", "FieldMask", "BoolValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value",
		"FloatValue", "DoubleValue", "StringValue", "BytesValue":
		return shape{leaf: true}
	}
	return shape{message: md}
}

func shapeOfField(fd protoreflect.FieldDescriptor) shape {
	switch {
	case fd.IsMap():
		return shape{free: true, of: fd.MapValue()}
	case fd.Message() == nil:
		return shape{leaf: true}
	}
	return shapeOf(fd.Message())
}

type fieldsCompiler struct {
	in         string
	pos        int
	protoNames bool
}

var errFieldsDepth = errors.New("nested too deeply")

// list compiles Fields into f.
func (c *fieldsCompiler) list(f *Fields, s shape, depth int) error {
	for {
		if err := c.selector(f, s, depth); err != nil {
			return err
		}
		if c.pos == len(c.in) || c.in[c.pos] != ',' {
			return nil
		}
		c.pos++
	}
}

// selector compiles one Selector into f.
func (c *fieldsCompiler) selector(f *Fields, s shape, depth int) error {
	if depth > maxFieldsDepth {
		return errFieldsDepth
	}
	start := c.pos
	if n := strings.IndexAny(c.in[start:], ",()/."); n >= 0 {
		c.pos += n
	} else {
		c.pos = len(c.in)
	}
	name := c.in[start:c.pos]
	if name == "" {
		return errors.New("a name is missing")
	}
	quoted, inner, err := c.resolve(name, s)
	if err != nil {
		c.pos = start
		return err
	}
	more := byte(0)
	if c.pos < len(c.in) {
		more = c.in[c.pos]
	}
	var child *Fields // nil: the whole member
	switch more {
	case '/', '.', '(':
		c.pos++
		if child = f.child(name, quoted); child == nil {
			child = &Fields{}
		}
		if more == '(' {
			if err := c.list(child, inner, depth+1); err != nil {
				return err
			}
			if c.pos == len(c.in) || c.in[c.pos] != ')' {
				return errors.New("a ) is missing")
			}
			c.pos++
		} else if err := c.selector(child, inner, depth+1); err != nil {
			return err
		}
	}
	f.want(name, quoted, child)
	return nil
}

// child is what f already wants of a member, if that is not the whole of it.
func (f *Fields) child(name, quoted string) *Fields {
	if name == "*" {
		return f.other
	}
	return f.names[quoted]
}

// want adds a member to f. A member that is wanted whole stays so.
func (f *Fields) want(name, quoted string, child *Fields) {
	if name == "*" {
		if f.every && f.other == nil {
			return
		}
		f.every, f.other = true, child
		return
	}
	if have, ok := f.names[quoted]; ok && have == nil {
		return
	}
	if f.names == nil {
		f.names = map[string]*Fields{}
	}
	f.names[quoted] = child
}

// resolve finds the JSON name of a member, quoted, and its shape.
func (c *fieldsCompiler) resolve(name string, s shape) (quoted string, inner shape, err error) {
	switch {
	case s.leaf:
		return "", s, fmt.Errorf("%q is asked of a value that has no fields", name)
	case s.of != nil:
		return quote(name), shapeOfValue(s.of), nil
	case s.free:
		return quote(name), s, nil
	case name == "*":
		return "", shape{free: true}, nil
	}
	fields := s.message.Fields()
	fd := fields.ByJSONName(name)
	if fd == nil {
		fd = fields.ByTextName(name)
	}
	if fd == nil {
		return "", s, fmt.Errorf("%s has no field %q", s.message.FullName(), name)
	}
	if c.protoNames {
		return quote(fd.TextName()), shapeOfField(fd), nil
	}
	return quote(fd.JSONName()), shapeOfField(fd), nil
}

func shapeOfValue(fd protoreflect.FieldDescriptor) shape {
	if fd.Message() == nil {
		return shape{leaf: true}
	}
	return shapeOf(fd.Message())
}

func quote(s string) string { return string(appendString(nil, s)) }

// Keep drops from the JSON value in text what is not wanted, in place, and returns the shorter text. text must be a
// valid, compact JSON value, as the codec writes it.
func (f *Fields) Keep(text []byte) []byte {
	if f == nil {
		return text
	}
	k := keeper{text: text}
	k.value(f)
	return text[:k.end]
}

// keeper moves the wanted parts of text to its front.
type keeper struct {
	text []byte
	pos  int // read so far
	end  int // kept so far
}

// copy keeps the next n bytes.
func (k *keeper) copy(n int) {
	k.end += copy(k.text[k.end:], k.text[k.pos:k.pos+n])
	k.pos += n
}

// value keeps what f wants of the value at pos.
func (k *keeper) value(f *Fields) {
	if f == nil {
		k.copy(valueLen(k.text[k.pos:]))
		return
	}
	switch k.text[k.pos] {
	case '[':
		for k.copy(1); k.text[k.pos] != ']'; {
			k.value(f)
			if k.text[k.pos] == ',' {
				k.copy(1)
			}
		}
		k.copy(1)
	case '{':
		k.object(f)
	default:
		k.copy(valueLen(k.text[k.pos:]))
	}
}

func (k *keeper) object(f *Fields) {
	k.copy(1)
	first := true
	for k.text[k.pos] != '}' {
		if k.text[k.pos] == ',' {
			k.pos++
		}
		n := stringLen(k.text[k.pos:])
		child, wanted := f.names[string(k.text[k.pos:k.pos+n])]
		if !wanted {
			child, wanted = f.other, f.every
		}
		if !wanted {
			k.pos += n + 1
			k.pos += valueLen(k.text[k.pos:])
			continue
		}
		if !first {
			k.text[k.end] = ','
			k.end++
		}
		first = false
		k.copy(n + 1)
		k.value(child)
	}
	k.copy(1)
}

// stringLen is the length of the JSON string that begins text, with its quotes.
func stringLen(text []byte) int {
	for i := 1; ; i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}

// valueLen is the length of the JSON value that begins text.
func valueLen(text []byte) int {
	depth := 0
	for i := 0; ; {
		switch text[i] {
		case '"':
			i += stringLen(text[i:])
		case '{', '[':
			depth++
			i++
			continue
		case '}', ']':
			depth--
			i++
		default:
			if depth > 0 {
				i++
				continue
			}
			for i < len(text) && text[i] != ',' && text[i] != '}' && text[i] != ']' {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
}

// AppendIndented appends a JSON text with line breaks and two spaces of indentation ($prettyPrint), and a line break at
// its end.
func AppendIndented(dst, text []byte) ([]byte, error) {
	b := bytes.NewBuffer(dst)
	if err := json.Indent(b, text, "", "  "); err != nil {
		return dst, fmt.Errorf("indent JSON: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}
