// Package configfile reads transom's configuration: one YAML file, whose schema is the message transom.config.v1.Config.
//
// Everything that is wrong with a file is reported at once, each [Fault] with line, column and the line's text. What
// needs more than the file to be judged (an unknown cluster, a selector that takes in no method) is found by the gateway,
// which speaks of fields by path; [File.Fault] puts such a finding at its place in the file.
//
// # The dialect
// Field names are those of the proto, or their JSON names. A value where a list is expected is a list of one. Enum values
// may be written without their prefix and in lower case. "${NAME}" in a value is replaced by an environment variable after
// the YAML has been parsed, so that it can't change the file's structure; "$${" stands for "${". Anchors, aliases, merge
// keys, several documents and the line separators CR alone, NEL, LS and PS are refused.
package configfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"buf.build/go/protovalidate"
	"buf.build/go/protoyaml"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	configv1 "transom/proto/transom/config/v1"
)

// File is a configuration file that has been read without fault. It is immutable.
type File struct {
	// Name is the file's name as it is printed in faults.
	Name string
	// Config is what the file says; defaults are not filled in.
	Config *configv1.Config

	lines []string
	at    map[string]position // by canonical path
	// paths is the reverse of at: the innermost path whose value stands there. It serves faults only.
	paths map[position]string
}

type position struct{ line, column int }

// Fault is one thing that is wrong with a file.
type Fault struct {
	File string `json:"file"`
	// Line and Column count from 1; Column counts characters.
	Line   int `json:"line"`
	Column int `json:"column"`
	// Path leads to the field, "clusters[bank].target"; "" if it is not known.
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
	// Snippet is the line's text.
	Snippet string `json:"snippet,omitempty"`
}

// Error is "file:line:column: message", and below it the line with a mark under the column.
func (f *Fault) Error() string {
	s := fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Message)
	if strings.TrimSpace(f.Snippet) == "" {
		return s
	}
	// A tab stays one in the margin, so that the mark stands where it should.
	margin := []rune(f.Snippet)
	margin = margin[:min(len(margin), f.Column-1)]
	for i, r := range margin {
		if r != '\t' {
			margin[i] = ' '
		}
	}
	return fmt.Sprintf("%s\n%5d | %s\n      | %s^", s, f.Line, f.Snippet, string(margin))
}

// Faults are the faults of one file in the order of their lines. As an error they are printed one below the other.
type Faults []*Fault

func (fs Faults) Error() string {
	var b strings.Builder
	for i, f := range fs {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(f.Error())
	}
	return b.String()
}

// Unwrap gives the faults to errors.As.
func (fs Faults) Unwrap() []error {
	errs := make([]error, len(fs))
	for i, f := range fs {
		errs[i] = f
	}
	return errs
}

// Load reads the file at path, with the process's environment for "${NAME}". An error is Faults, or what the file system
// says.
func Load(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, data, os.LookupEnv)
}

// Parse reads data, which came from a file of that name; env is asked for the variables of "${NAME}". An error is Faults. What
// config.proto's rules are compiled to is not kept: some megabytes full of pointers would be marked in every collection of garbage
// for the sake of the next reload.
func Parse(name string, data []byte, env func(string) (string, bool)) (*File, error) {
	return new(Reader).Parse(name, data, env)
}

// A Reader is for reading many files: it keeps the compiled rules, which take most of the time. The zero value is ready; it must not
// be copied. It is safe for concurrent use.
type Reader struct {
	once  sync.Once
	rules protovalidate.Validator
	err   error
}

// Parse is the package's.
func (r *Reader) Parse(name string, data []byte, env func(string) (string, bool)) (*File, error) {
	f := &File{Name: name, Config: &configv1.Config{}, lines: strings.Split(string(data), "\n"), at: map[string]position{}}
	root, faults := f.tree(data)
	if len(faults) > 0 {
		return nil, faults
	}
	w := walker{file: f, env: env}
	if root != nil {
		w.message(root, f.Config.ProtoReflect().Descriptor(), "")
	}
	faults = w.faults
	for _, d := range f.decode(data, root) {
		// The decoder may stumble over what the walk has reported.
		if !slices.ContainsFunc(w.faults, func(o *Fault) bool { return o.Line == d.Line && o.Column == d.Column }) {
			faults = append(faults, d)
		}
	}
	if len(faults) == 0 { // half a Config would be blamed for what is missing of it
		faults = r.validate(f)
	}
	if len(faults) > 0 {
		slices.SortStableFunc(faults, func(a, b *Fault) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		return nil, faults
	}
	return f, nil
}

// Position is where in the file the value at path stands, counting from 1. path is written as in
// "policies[2].selector[0]" or `clusters["bank"].target` (the quotes may be left out). For a field that the file leaves
// out it is where the closest message around it begins.
func (f *File) Position(path string) (line, column int) {
	path = strings.NewReplacer(`["`, "[", `"]`, "]").Replace(path)
	for path != "" {
		if p, ok := f.at[path]; ok {
			return p.line, p.column
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	if p, ok := f.at[""]; ok {
		return p.line, p.column
	}
	return 1, 1
}

// Fault is a fault of the value at path (see Position).
func (f *File) Fault(path, message string) *Fault {
	line, column := f.Position(path)
	fault := f.fault(line, column, message)
	fault.Path = path
	return fault
}

func (f *File) fault(line, column int, message string) *Fault {
	line, column = min(max(line, 1), len(f.lines)), max(column, 1) // the parser's place of nothing may lie outside
	return &Fault{File: f.Name, Line: line, Column: column, Message: message, Snippet: strings.TrimRight(f.lines[line-1], "\r")}
}

// tree parses the YAML. The root is nil for a file without content.
func (f *File) tree(data []byte) (*yaml.Node, Faults) {
	if fault := f.checkText(); fault != nil {
		return nil, Faults{fault}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, Faults{f.syntaxFault(err)}
	}
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, Faults{f.syntaxFault(err)}
	default:
		return nil, Faults{f.fault(second.Line, second.Column, "a second YAML document; the configuration is one")}
	}
	f.keepWithin(doc.Content[0])
	return doc.Content[0], nil
}

// keepWithin has no node stand behind the last line: the parser's place of nothing may, and the decoder looks for its text there.
func (f *File) keepWithin(n *yaml.Node) {
	n.Line = min(n.Line, len(f.lines))
	for _, c := range n.Content {
		f.keepWithin(c)
	}
}

// checkText refuses what would make YAML's idea of a line differ from everybody else's.
func (f *File) checkText() *Fault {
	for i, line := range f.lines {
		if !utf8.ValidString(line) {
			return f.fault(i+1, 1, "not UTF-8 text")
		}
		line = strings.TrimSuffix(line, "\r")
		if j := strings.IndexAny(line, "\r\u0085\u2028\u2029"); j >= 0 {
			r, _ := utf8.DecodeRuneInString(line[j:])
			return f.fault(i+1, utf8.RuneCountInString(line[:j])+1, fmt.Sprintf("line separator %U; end lines with a line feed", r))
		}
	}
	return nil
}

// syntaxFault places a YAML syntax error, which reads "yaml: line 3: what".
func (f *File) syntaxFault(err error) *Fault {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, msg = min(max(n, 1), len(f.lines)), what
			}
		}
	}
	if line <= len(f.lines) && strings.HasPrefix(strings.TrimLeft(f.lines[line-1], " "), "\t") {
		msg = "a tab; lines are indented with spaces"
	}
	return f.fault(line, 1, "YAML: "+msg)
}

// decode fills f.Config from the walked tree.
func (f *File) decode(data []byte, root *yaml.Node) Faults {
	if root == nil {
		return nil
	}
	// The decoder takes text only, but lets a hook see the root before anything is read from it.
	err := protoyaml.UnmarshalOptions{CustomUnmarshaler: &swapRoot{root}, DiscardUnknown: true}.Unmarshal(data, f.Config)
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return Faults{f.fault(1, 1, err.Error())}
	}
	f.paths = make(map[position]string, len(f.at))
	for path, at := range f.at {
		if len(path) > len(f.paths[at]) {
			f.paths[at] = path
		}
	}
	var faults Faults
	for _, e := range joined.Unwrap() {
		faults = append(faults, f.decodeFault(e))
	}
	return faults
}

// decodeFault reads the decoder's ":line:column what\n…" (its errors have no exported type).
func (f *File) decodeFault(err error) *Fault {
	head, _, _ := strings.Cut(err.Error(), "\n")
	place, what, _ := strings.Cut(head, " ")
	parts := strings.Split(place, ":")
	if len(parts) == 3 {
		line, err1 := strconv.Atoi(parts[1])
		column, err2 := strconv.Atoi(parts[2])
		if err1 == nil && err2 == nil {
			for _, name := range []string{"strconv.ParseUint: ", "strconv.ParseFloat: ", "strconv.ParseInt: "} {
				what = strings.ReplaceAll(what, name, "")
			}
			fault := f.fault(line, column, what)
			fault.Path = f.paths[position{line, column}]
			fault.Message = withField(fault.Path, what)
			return fault
		}
	}
	return f.fault(1, 1, head)
}

// withField puts the path's last field before msg.
func withField(path, msg string) string {
	if name := path[strings.LastIndexByte(path, '.')+1:]; name != "" {
		return name + ": " + msg
	}
	return msg
}

// swapRoot puts the walked tree in the place of the decoder's own, once.
type swapRoot struct{ root *yaml.Node }

// Unmarshal implements protoyaml.CustomUnmarshaler.
func (s *swapRoot) Unmarshal(node *yaml.Node, _ proto.Message) (bool, error) {
	if s.root != nil {
		*node = *s.root
		s.root = nil
	}
	return false, nil
}

// validate checks the rules that config.proto states.
func (r *Reader) validate(f *File) Faults {
	r.once.Do(func() { r.rules, r.err = protovalidate.New() })
	err := r.err
	if err == nil {
		err = r.rules.Validate(f.Config)
	}
	if err == nil {
		return nil
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		return Faults{f.fault(1, 1, err.Error())}
	}
	var faults Faults
	for _, v := range invalid.Violations {
		path := protovalidate.FieldPathString(v.Proto.GetField())
		faults = append(faults, f.Fault(path, withField(path, v.Proto.GetMessage())))
	}
	return faults
}
