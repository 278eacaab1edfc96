package configfile

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "transom/proto/transom/config/v1"
)

// needless is the comma that the encoder puts before a bracket that a comment follows.
var needless = regexp.MustCompile(`(?m),([]}])( *#.*)?$`)

// Format writes a configuration file in its canonical form: indented by two spaces, lists not further than what they are of, fields
// by the names of the proto, enum values by their short ones, at most one empty line between two others. Comments stay, as do the
// order, quotes, brackets and "${NAME}"; so does what is no field, which only [Parse] judges. What has this form comes out as it is.
// An error is Faults if data is not YAML, or a Fault if there is no such form of it.
func Format(name string, data []byte) ([]byte, error) {
	const most = 4 // an odd comment may take a second round to come to rest
	for range most {
		out, err := formatted(name, data)
		if err != nil || bytes.Equal(out, data) {
			return out, err
		}
		data = out
	}
	f := &File{Name: name, lines: strings.Split(string(data), "\n")}
	return nil, f.fault(1, 1, lossy)
}

// lossy is what is said of a file that has no canonical form.
const lossy = "it cannot be written in another form without a loss; put the comments that stand in brackets elsewhere"

// formatted does the work of Format once.
func formatted(name string, data []byte) ([]byte, error) {
	f := &File{Name: name, lines: strings.Split(string(data), "\n")}
	switch root, faults := f.tree(data); {
	case len(faults) > 0:
		return nil, faults
	case root == nil || root.Kind != yaml.MappingNode:
		return data, nil
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	canonical(doc.Content[0], (&configv1.Config{}).ProtoReflect().Descriptor())
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	enc.CompactSeqIndent()
	if err := enc.Encode(&doc); err != nil {
		return nil, err
	}
	text := strings.TrimRight(b.String(), "\n") + "\n"
	for _, text := range []string{needless.ReplaceAllString(text, "$1$2"), text} {
		var again yaml.Node
		if err := yaml.Unmarshal([]byte(text), &again); err != nil {
			continue
		}
		if pairs, same := paired(nil, &doc, &again); same && slices.Equal(comments(&doc), comments(&again)) {
			return spaced(f.lines, strings.Split(strings.TrimSuffix(text, "\n"), "\n"), pairs), nil
		}
	}
	return nil, f.fault(1, 1, lossy)
}

// canonical gives the fields below a message their names, and enum values theirs.
func canonical(n *yaml.Node, md protoreflect.MessageDescriptor) {
	if n.Kind != yaml.MappingNode || md.ParentFile().Package() == "google.protobuf" {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		fd := md.Fields().ByJSONName(key.Value)
		if fd == nil {
			fd = md.Fields().ByTextName(key.Value)
		}
		if fd == nil {
			continue
		}
		key.Value = string(fd.Name())
		values := []*yaml.Node{value}
		switch {
		case fd.IsMap() && value.Kind == yaml.MappingNode:
			values = nil
			for j := 1; j < len(value.Content); j += 2 {
				values = append(values, value.Content[j])
			}
			fd = fd.MapValue()
		case fd.IsList() && value.Kind == yaml.SequenceNode:
			values = value.Content
		}
		for _, v := range values {
			switch {
			case fd.Message() != nil:
				canonical(v, fd.Message())
			case fd.Enum() != nil && fd.Enum().ParentFile().Package() == md.ParentFile().Package():
				v.Value = shortName(v.Value, fd.Enum())
			}
		}
	}
}

// shortName is the short name of an enum value that is named in full; other texts stay.
func shortName(s string, ed protoreflect.EnumDescriptor) string {
	if ed.Values().ByName(protoreflect.Name(s)) == nil {
		return s
	}
	return strings.ToLower(strings.TrimPrefix(s, strings.TrimSuffix(string(ed.Values().Get(0).Name()), "UNSPECIFIED")))
}

// paired appends the lines of the nodes in both trees, and reports whether these say the same.
func paired(all [][2]int, a, b *yaml.Node) ([][2]int, bool) {
	if a.Kind != b.Kind || a.Tag != b.Tag || a.Value != b.Value || a.Anchor != b.Anchor || len(a.Content) != len(b.Content) {
		return all, false
	}
	all = append(all, [2]int{a.Line, b.Line})
	for i := range a.Content {
		var same bool
		if all, same = paired(all, a.Content[i], b.Content[i]); !same {
			return all, false
		}
	}
	return all, true
}

// comments are the lines of all comments, in no order of meaning: which node has one may change.
func comments(n *yaml.Node) []string {
	var all []string
	for _, c := range []string{n.HeadComment, n.LineComment, n.FootComment} {
		for line := range strings.SplitSeq(c, "\n") {
			if line = strings.TrimSpace(line); line != "" {
				all = append(all, line)
			}
		}
	}
	for _, c := range n.Content {
		all = append(all, comments(c)...)
	}
	slices.Sort(all)
	return all
}

// spaced is the text of lines with the empty lines that there were before the same nodes, or the comments over them.
func spaced(was, lines []string, pairs [][2]int) []byte {
	top := func(lines []string, line int) int { // where the comments over a line begin; both count from 1
		for line > 1 && strings.HasPrefix(strings.TrimSpace(lines[line-2]), "#") {
			line--
		}
		return line
	}
	empty := func(lines []string, line int) bool { return line > 1 && strings.TrimSpace(lines[line-2]) == "" }
	before := map[int]bool{}
	for _, p := range pairs {
		if empty(was, top(was, p[0])) {
			before[top(lines, p[1])] = true
		}
	}
	var b bytes.Buffer
	for i, line := range lines {
		if before[i+1] && i > 0 && strings.TrimSpace(lines[i-1]) != "" {
			b.WriteByte('\n')
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.Bytes()
}
