// Command configdoc writes docs/configuration.md from the comments of transom's configuration protos, or with -schema the JSON Schema
// of configuration files. It fails if a field's comment does not say what the field is by default. Its argument is the directory of
// the protos.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	validatepb "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/bufbuild/protocompile"
	_ "google.golang.org/genproto/googleapis/rpc/code" // an import of the protos
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

func main() {
	asSchema := flag.Bool("schema", false, "write the JSON Schema")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: configdoc [-schema] DIRECTORY >FILE")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *asSchema, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "configdoc:", err)
		os.Exit(1)
	}
}

const (
	root = "transom/config/v1/config.proto"
	// syntaxPath is the number of FileDescriptorProto.syntax, whose comment is the package's.
	syntaxPath = 12
)

func run(dir string, asSchema bool, out io.Writer) error {
	files, err := (&protocompile.Compiler{
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: []string{dir}},
			protocompile.ResolverFunc(linked),
		},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}).Compile(context.Background(), root)
	if err != nil {
		return err
	}
	file := files.FindFileByPath(root)
	if asSchema {
		b, err := jsonSchema(file.Messages().ByName("Config"))
		if err != nil {
			return err
		}
		_, err = out.Write(b)
		return err
	}
	d := &doc{}
	d.printf("# Configuration\n\n")
	d.printf("<!-- Written by `make generate` from proto/%s and its neighbour. Change the comments there. -->\n\n", root)
	intro := comment(file.SourceLocations().ByPath(protoreflect.SourcePath{syntaxPath}).LeadingComments)
	_, intro, _ = strings.Cut(intro, ": ")
	d.printf("%s%s\n\n", strings.ToUpper(intro[:1]), intro[1:])
	d.printf("`transom check --config transom.yaml` names every fault with its line and column; `transom explain` shows what is in force for a\nmethod and where each setting comes from. Examples of policies are in [policies.md](policies.md).\n\n")
	d.message(file.Messages().ByName("Config"))
	for len(d.next) > 0 {
		m := d.next[0]
		d.next = d.next[1:]
		d.message(m)
	}
	if len(d.faults) > 0 {
		return errors.Join(d.faults...)
	}
	_, err = io.WriteString(out, strings.TrimRight(d.text.String(), "\n")+"\n")
	return err
}

// linked finds what the protos import among the descriptors of Go packages.
func linked(path string) (protocompile.SearchResult, error) {
	f, err := protoregistry.GlobalFiles.FindFileByPath(path)
	if err != nil {
		return protocompile.SearchResult{}, err
	}
	return protocompile.SearchResult{Proto: protodesc.ToFileDescriptorProto(f)}, nil
}

// doc is the document as it is written.
type doc struct {
	text   strings.Builder
	seen   []protoreflect.FullName
	next   []protoreflect.MessageDescriptor // met, and not yet described
	faults []error
}

func (d *doc) printf(format string, args ...any) { fmt.Fprintf(&d.text, format, args...) }

func (d *doc) message(m protoreflect.MessageDescriptor) {
	d.printf("## %s\n\n", title(m))
	if c := leading(m); c != "" {
		d.printf("%s\n\n", c)
	} else {
		d.faults = append(d.faults, fmt.Errorf("%s has no comment", m.FullName()))
	}
	if m.Fields().Len() == 0 {
		d.printf("It has no fields: write `{}`.\n\n")
		return
	}
	d.printf("| Field | Type | Default, range | Meaning |\n|---|---|---|---|\n")
	for f := range all(m.Fields()) {
		text, def := split(leading(f))
		switch oneof := f.ContainingOneof(); {
		case text == "":
			d.faults = append(d.faults, fmt.Errorf("%s has no comment", f.FullName()))
		case oneof != nil && !oneof.IsSynthetic():
			var others []string
			for o := range all(oneof.Fields()) {
				others = append(others, "`"+string(o.Name())+"`")
			}
			def = "one of " + strings.Join(others, ", ")
		case def == "" && f.Kind() == protoreflect.BoolKind && !f.IsList():
			def = "false"
		case def == "":
			d.faults = append(d.faults, fmt.Errorf("%s: say what it is by default, or \"Required\"", f.FullName()))
		}
		d.printf("| `%s` | %s | %s | %s |\n", f.Name(), d.kind(f), cell(def), cell(text))
	}
	d.printf("\n")
	for e := range all(m.Enums()) {
		for v := range all(e.Values()) {
			if c := leading(v); c != "" {
				d.printf("- `%s`: %s\n", valueName(v), c)
			}
		}
		d.printf("\n")
	}
	if rules := rulesOf(m); len(rules) > 0 {
		d.printf("Checked: %s.\n\n", strings.Join(rules, "; "))
	}
}

// kind is a field's type as one writes it in YAML.
func (d *doc) kind(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return "map of " + d.single(f.MapKey()) + " to " + d.single(f.MapValue())
	case f.IsList():
		return "list of " + d.single(f)
	}
	return d.single(f)
}

func (d *doc) single(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		switch m := f.Message(); m.FullName() {
		case "google.protobuf.Duration":
			return "duration"
		case "google.protobuf.Struct":
			return "object"
		default:
			if !slices.Contains(d.seen, m.FullName()) {
				d.seen = append(d.seen, m.FullName())
				d.next = append(d.next, m)
			}
			return fmt.Sprintf("[%s](#%s)", title(m), strings.ToLower(strings.ReplaceAll(title(m), ".", "")))
		}
	case protoreflect.EnumKind:
		var names []string
		for v := range all(f.Enum().Values()) {
			if v.Number() != 0 {
				names = append(names, "`"+valueName(v)+"`")
			}
		}
		return strings.Join(names, ", ")
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		if strings.HasSuffix(string(f.Name()), "bytes") {
			return "size"
		}
		return "number"
	case protoreflect.DoubleKind:
		return "number"
	default:
		return f.Kind().String()
	}
}

// title is a message's name within the package.
func title(m protoreflect.MessageDescriptor) string {
	return strings.TrimPrefix(string(m.FullName()), string(m.ParentFile().Package())+".")
}

// valueName is an enum value as it is written in YAML: in lower case, without the enum's name.
func valueName(v protoreflect.EnumValueDescriptor) string {
	values := v.Parent().(protoreflect.EnumDescriptor).Values()
	prefix := strings.TrimSuffix(string(values.ByNumber(0).Name()), "UNSPECIFIED")
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix))
}

// rulesOf are the messages of the rules that hold between fields.
func rulesOf(m protoreflect.MessageDescriptor) []string {
	rules, _ := extension(m.Options(), validatepb.E_Message).(*validatepb.MessageRules)
	var texts []string
	for _, r := range rules.GetCel() {
		texts = append(texts, r.GetMessage())
	}
	return texts
}

// byDefault finds the sentence about the default, or "Required".
var byDefault = regexp.MustCompile(`(?:^| )(?:Default:? (.+?)|(Required(?: by [^.]+)?))\.(?: |$)`)

// split parts what a field means from what it is by default.
func split(text string) (meaning, def string) {
	at := byDefault.FindStringSubmatchIndex(text)
	if at == nil {
		return text, ""
	}
	if at[2] >= 0 {
		def = text[at[2]:at[3]]
	} else {
		def = "required" + strings.TrimPrefix(text[at[4]:at[5]], "Required")
	}
	return strings.TrimSpace(text[:at[0]] + " " + strings.TrimSpace(text[at[1]:])), def
}

func leading(d protoreflect.Descriptor) string {
	return comment(d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments)
}

// comment is a comment's text on one line.
func comment(text string) string { return strings.Join(strings.Fields(text), " ") }

// cell is a text that may stand in a table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`).Replace(text)
}

// all are the elements of a descriptor's list.
func all[D any](list interface {
	Len() int
	Get(int) D
}) func(func(D) bool) {
	return func(yield func(D) bool) {
		for i := range list.Len() {
			if !yield(list.Get(i)) {
				return
			}
		}
	}
}
