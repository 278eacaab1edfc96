package configfile

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// walker goes over the tree beside the descriptors: it notes where each field stands, finds what the decoder lets pass
// (keys that are unknown or come twice), and turns transom's dialect into what the decoder reads.
type walker struct {
	file   *File
	env    func(string) (string, bool)
	faults Faults
}

func (w *walker) fault(n *yaml.Node, path, format string, args ...any) {
	f := w.file.fault(n.Line, n.Column, fmt.Sprintf(format, args...))
	f.Path = path
	w.faults = append(w.faults, f)
}

// message walks the value of a message.
func (w *walker) message(n *yaml.Node, md protoreflect.MessageDescriptor, path string) {
	w.file.at[path] = position{n.Line, n.Column}
	if n.Kind != yaml.MappingNode || md.ParentFile().Package() == "google.protobuf" {
		w.scalars(n, path) // a Duration, or the decoder's to refuse
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		fd := md.Fields().ByTextName(key.Value)
		if fd == nil {
			fd = md.Fields().ByJSONName(key.Value)
		}
		if fd == nil || key.Kind != yaml.ScalarNode {
			w.unknown(key, md, path)
			continue
		}
		sub := strings.TrimPrefix(path+"."+string(fd.Name()), ".")
		if seen[string(fd.Name())] {
			w.fault(key, sub, "%s is set twice", key.Value)
			continue
		}
		seen[string(fd.Name())] = true
		w.field(value, fd, sub)
	}
}

// unknown reports a key that is no field of md.
func (w *walker) unknown(key *yaml.Node, md protoreflect.MessageDescriptor, path string) {
	var names []string
	for i := range md.Fields().Len() {
		names = append(names, md.Fields().Get(i).TextName())
	}
	slices.Sort(names)
	hint := ""
	if near := nearest(key.Value, names); near != "" {
		hint = fmt.Sprintf("did you mean %q? ", near)
	}
	w.fault(key, path, "unknown field %q; %sthe fields here are %s", key.Value, hint, strings.Join(names, ", "))
}

// field walks the value of a field.
func (w *walker) field(n *yaml.Node, fd protoreflect.FieldDescriptor, path string) {
	w.file.at[path] = position{n.Line, n.Column}
	switch {
	case fd.IsMap():
		w.mapping(n, fd, path)
	case fd.IsList():
		if n.Kind != yaml.SequenceNode && n.Tag != "!!null" {
			one := *n
			*n = yaml.Node{Kind: yaml.SequenceNode, Line: n.Line, Column: n.Column, Content: []*yaml.Node{&one}}
		}
		for i, item := range n.Content {
			w.value(item, fd, fmt.Sprintf("%s[%d]", path, i))
		}
	default:
		w.value(n, fd, path)
	}
}

// mapping walks the value of a map field.
func (w *walker) mapping(n *yaml.Node, fd protoreflect.FieldDescriptor, path string) {
	if n.Kind != yaml.MappingNode {
		return // the decoder says so
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		sub := fmt.Sprintf("%s[%s]", path, key.Value)
		if seen[key.Value] {
			w.fault(key, sub, "%s is set twice", key.Value)
			continue
		}
		seen[key.Value] = true
		w.value(n.Content[i+1], fd.MapValue(), sub)
	}
}

// value walks one value: of a singular field, a list or a map.
func (w *walker) value(n *yaml.Node, fd protoreflect.FieldDescriptor, path string) {
	w.file.at[path] = position{n.Line, n.Column}
	if fd.Message() != nil {
		w.message(n, fd.Message(), path)
		return
	}
	w.scalars(n, path)
	if n.Kind != yaml.ScalarNode {
		return
	}
	switch fd.Kind() {
	case protoreflect.EnumKind:
		w.enum(n, fd.Enum(), path)
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Int32Kind, protoreflect.Int64Kind:
		// The decoder knows the units of sizes without their B.
		if size.MatchString(n.Value) {
			n.Value = strings.TrimSuffix(n.Value, "B")
		}
	default:
	}
}

// size is a number of bytes with a unit, "4MiB" or "4MB".
var size = regexp.MustCompile(`^[0-9.]+ ?[KMGTPE]i?B$`)

// enum turns a short name into the value's own.
func (w *walker) enum(n *yaml.Node, ed protoreflect.EnumDescriptor, path string) {
	zero := string(ed.Values().Get(0).Name())
	prefix := strings.TrimSuffix(zero, "UNSPECIFIED")
	var names []string
	for i := range ed.Values().Len() {
		full := string(ed.Values().Get(i).Name())
		short := strings.ToLower(strings.TrimPrefix(full, prefix))
		if n.Value == short || n.Value == full {
			n.Value = full
			return
		}
		if i > 0 {
			names = append(names, short)
		}
	}
	w.fault(n, path, "unknown value %q, expected one of %s", n.Value, strings.Join(names, ", "))
	n.Value = zero // reported once
}

// scalars replaces variables in every scalar from n down, and refuses aliases.
func (w *walker) scalars(n *yaml.Node, path string) {
	switch n.Kind {
	case yaml.AliasNode:
		w.fault(n, path, "aliases are not supported; write the value out")
		*n = yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line, Column: n.Column}
	case yaml.ScalarNode:
		value, err := expand(n.Value, w.env)
		if err != nil {
			w.fault(n, path, "%v", err)
			return
		}
		if value != n.Value {
			n.Value, n.Tag = value, "" // its type is to be judged by what it says now
		}
	default:
		for _, c := range n.Content {
			w.scalars(c, path)
		}
	}
}

// variable is what may stand between "${" and "}" (POSIX.1-2017, 3.235).
var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand replaces "${NAME}" by the variable's value and "$${" by "${". A value is not looked into again.
func expand(s string, env func(string) (string, bool)) (string, error) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			b.WriteString(s)
			return b.String(), nil
		}
		if i > 0 && s[i-1] == '$' {
			b.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		name, rest, ok := strings.Cut(s[i+2:], "}")
		if !ok {
			return "", errors.New(`"${" without "}"; write "$${" for the characters themselves`)
		}
		if !variable.MatchString(name) {
			return "", fmt.Errorf("${%s}: not a variable's name (letters, digits and _)", name)
		}
		value, ok := env(name)
		if !ok {
			return "", fmt.Errorf("${%s}: the environment variable is not set", name)
		}
		b.WriteString(value)
		s = rest
	}
}

// nearest is the one of names that s was most likely meant to be, or "".
func nearest(s string, names []string) string {
	if len(s) > 64 { // no name is; the work below is bounded by it
		return ""
	}
	best, least := "", max(1, len(s)/3)+1
	for _, name := range names {
		if d := distance(s, name); d < least {
			best, least = name, d
		}
	}
	return best
}

// distance is the number of bytes to insert, delete or replace to turn a into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
