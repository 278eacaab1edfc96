package rpc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// ErrNoField is that a path leads to no field of a message.
var ErrNoField = errors.New("no such field")

// NoField is an ErrNoField with a text of its own.
func NoField(format string, args ...any) error { return &noField{fmt.Sprintf(format, args...)} }

type noField struct{ text string }

func (e *noField) Error() string { return e.text }

func (e *noField) Is(target error) bool { return target == ErrNoField }

// FieldPath leads from a message through singular messages to a number, bool, string, bytes or enum. It is immutable.
type FieldPath struct {
	path []protoreflect.FieldDescriptor
}

// ParseFieldPath finds the field that a path like "owner.id" leads to from md. ErrNoField is that there is none.
func ParseFieldPath(md protoreflect.MessageDescriptor, path string) (FieldPath, error) {
	var f FieldPath
	names := strings.Split(path, ".")
	for i, name := range names {
		fd := md.Fields().ByName(protoreflect.Name(name))
		if fd == nil {
			return FieldPath{}, NoField("%s: %s has no field %q", path, md.FullName(), name)
		}
		f.path = append(f.path, fd)
		switch last := i == len(names)-1; {
		case fd.Cardinality() == protoreflect.Repeated:
			return FieldPath{}, fmt.Errorf("%s: %s is a list or map, and has no one value", path, fd.FullName())
		case last && fd.Message() != nil:
			return FieldPath{}, fmt.Errorf("%s: %s is a message; name a field in it", path, fd.FullName())
		case !last && fd.Message() == nil:
			return FieldPath{}, NoField("%s: %s has no fields", path, fd.FullName())
		}
		md = fd.Message()
	}
	return f, nil
}

// Has reports whether the field is there in a message of the type that the path begins at. One without presence is there if it
// has not its default.
func (f FieldPath) Has(m protoreflect.Message) bool {
	last := len(f.path) - 1
	for _, fd := range f.path[:last] {
		m = m.Get(fd).Message()
	}
	return m.Has(f.path[last])
}

// Text is the field's value in a message of the type that the path begins at: bytes in base64, an enum by name, or by number
// if it has none. A field that is not there has its default.
func (f FieldPath) Text(m protoreflect.Message) string {
	last := len(f.path) - 1
	for _, fd := range f.path[:last] {
		m = m.Get(fd).Message()
	}
	v := m.Get(f.path[last])
	switch f.path[last].Kind() {
	case protoreflect.BytesKind:
		return base64.StdEncoding.EncodeToString(v.Bytes())
	case protoreflect.EnumKind:
		if e := f.path[last].Enum().Values().ByNumber(v.Enum()); e != nil {
			return string(e.Name())
		}
		return fmt.Sprint(v.Enum())
	default:
		return v.String()
	}
}
