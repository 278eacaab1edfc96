package descriptors

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Change is one difference between two schemas.
type Change struct {
	// Breaking says that a client of the old schema may fail or read something else with the new one.
	Breaking bool
	// Subject is what changed: "method bank.v1.Accounts.Get", "route GET /v1/{name=customers/*}", "field bank.v1.Account.id".
	Subject string
	// Text says how: "is removed", "type is int32 instead of string".
	Text string
}

// String is the change in one line.
func (c Change) String() string {
	if c.Breaking {
		return "breaking: " + c.Subject + " " + c.Text
	}
	return c.Subject + " " + c.Text
}

// Diff lists what changes for clients from old to new: methods, routes, and the messages and enums that methods of both
// schemas use, whichever file they are in. Breaking changes come first, then it is ordered by subject. A schema has no
// difference to itself.
//
// Routes are the same if their templates match the same paths, whatever their variables are called. Messages are compared
// as ProtoJSON and as wire bytes: a renamed field breaks JSON clients, a renumbered one the others.
func Diff(old, new *Schema) []Change {
	d := differ{seen: map[protoreflect.FullName]bool{}}
	d.methods(old, new)
	d.routes(old, new)
	slices.SortFunc(d.out, func(a, b Change) int {
		if a.Breaking != b.Breaking {
			if a.Breaking {
				return -1
			}
			return 1
		}
		return cmp.Or(strings.Compare(a.Subject, b.Subject), strings.Compare(a.Text, b.Text))
	})
	return d.out
}

type differ struct {
	out  []Change
	seen map[protoreflect.FullName]bool // messages and enums that were compared
}

func (d *differ) add(breaking bool, subject, format string, args ...any) {
	d.out = append(d.out, Change{breaking, subject, fmt.Sprintf(format, args...)})
}

// was adds a breaking change if a property differs.
func was[T comparable](d *differ, subject, what string, old, new T) {
	if old != new {
		d.add(true, subject, "%s is %s instead of %s", what, show(new), show(old))
	}
}

func (d *differ) methods(old, new *Schema) {
	for _, m := range new.methods {
		if _, ok := old.byPath[m.FullPath]; !ok {
			d.add(false, "method "+string(m.Name), "is added")
		}
	}
	for _, o := range old.methods {
		subject := "method " + string(o.Name)
		n, ok := new.byPath[o.FullPath]
		if !ok {
			d.add(true, subject, "is removed")
			continue
		}
		was(d, subject, "client streaming", o.ClientStreams, n.ClientStreams)
		was(d, subject, "server streaming", o.ServerStreams, n.ServerStreams)
		if o.Effect != n.Effect {
			d.add(n.Effect < o.Effect, subject, "promises %s instead of %s", n.Effect, o.Effect)
		}
		d.messageType(subject, "request type", o.Desc.Input(), n.Desc.Input())
		d.messageType(subject, "response type", o.Desc.Output(), n.Desc.Output())
	}
}

// messageType compares the types named in a method or field. A type of another name counts as another type.
func (d *differ) messageType(subject, what string, old, new protoreflect.MessageDescriptor) {
	if old.FullName() != new.FullName() {
		was(d, subject, what, string(old.FullName()), string(new.FullName()))
		return
	}
	d.message(old, new)
}

func (d *differ) message(old, new protoreflect.MessageDescriptor) {
	if d.seen[old.FullName()] {
		return
	}
	d.seen[old.FullName()] = true
	for i := range new.Fields().Len() {
		n := new.Fields().Get(i)
		if old.Fields().ByNumber(n.Number()) == nil && old.Fields().ByName(n.Name()) == nil {
			d.add(n.Cardinality() == protoreflect.Required, "field "+string(n.FullName()), "is added")
		}
	}
	for i := range old.Fields().Len() {
		o := old.Fields().Get(i)
		subject := "field " + string(o.FullName())
		n := new.Fields().ByNumber(o.Number())
		if n == nil {
			if n = new.Fields().ByName(o.Name()); n == nil {
				d.add(true, subject, "is removed")
			} else {
				was(d, subject, "number", o.Number(), n.Number())
			}
			continue
		}
		was(d, subject, "name", string(o.Name()), string(n.Name()))
		if o.Name() == n.Name() {
			was(d, subject, "json_name", o.JSONName(), n.JSONName())
		}
		was(d, subject, "type", fieldType(o), fieldType(n))
		was(d, subject, "presence", o.HasPresence(), n.HasPresence())
		if o.ContainingOneof() != nil || n.ContainingOneof() != nil {
			was(d, subject, "oneof", oneofName(o), oneofName(n))
		}
		switch {
		case fieldType(o) != fieldType(n):
		case o.Enum() != nil:
			d.enum(o.Enum(), n.Enum())
		case o.Message() != nil:
			d.message(o.Message(), n.Message())
		}
	}
}

func (d *differ) enum(old, new protoreflect.EnumDescriptor) {
	if d.seen[old.FullName()] {
		return
	}
	d.seen[old.FullName()] = true
	subject := func(v protoreflect.EnumValueDescriptor) string { // the scope of a value is that of its enum
		return "enum value " + string(old.FullName()) + "." + string(v.Name())
	}
	for i := range new.Values().Len() {
		n := new.Values().Get(i)
		if old.Values().ByName(n.Name()) == nil {
			d.add(false, subject(n), "is added")
		}
	}
	for i := range old.Values().Len() {
		o := old.Values().Get(i)
		if n := new.Values().ByName(o.Name()); n == nil {
			d.add(true, subject(o), "is removed")
		} else {
			was(d, subject(o), "number", o.Number(), n.Number())
		}
	}
}

func oneofName(f protoreflect.FieldDescriptor) string {
	if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
		return string(o.Name())
	}
	return ""
}

// fieldType writes a field's type as in a .proto file.
func fieldType(f protoreflect.FieldDescriptor) string {
	if f.IsMap() {
		return fmt.Sprintf("map<%s, %s>", fieldType(f.MapKey()), fieldType(f.MapValue()))
	}
	t := f.Kind().String()
	if f.Enum() != nil {
		t = string(f.Enum().FullName())
	} else if f.Message() != nil {
		t = string(f.Message().FullName())
	}
	if f.IsList() {
		t = "repeated " + t
	}
	return t
}

func (d *differ) routes(old, new *Schema) {
	index := func(s *Schema) map[string]*Binding {
		out := make(map[string]*Binding, len(s.bindings))
		for _, b := range s.bindings {
			out[b.Verb+" "+b.template.shape()] = b
		}
		return out
	}
	before, after := index(old), index(new)
	for key, n := range after {
		if before[key] == nil {
			d.add(false, "route "+n.Verb+" "+n.Template, "of %s is added", n.Method.Name)
		}
	}
	for key, o := range before {
		subject := "route " + o.Verb + " " + o.Template
		n := after[key]
		if n == nil {
			d.add(true, subject, "of %s is removed", o.Method.Name)
			continue
		}
		was(d, subject, "method", string(o.Method.Name), string(n.Method.Name))
		was(d, subject, "body", bodyText(o), bodyText(n))
		was(d, subject, "response_body", responseText(o), responseText(n))
		var ov, nv []string
		for _, v := range o.Vars {
			ov = append(ov, v.Name)
		}
		for _, v := range n.Vars {
			nv = append(nv, v.Name)
		}
		if !slices.Equal(ov, nv) {
			d.add(false, subject, "has variables %s instead of %s", strings.Join(nv, ", "), strings.Join(ov, ", "))
		}
	}
}

func bodyText(b *Binding) string {
	switch b.Body {
	case BodyAll:
		return "*"
	case BodyField:
		return string(b.BodyField.Name())
	default:
		return ""
	}
}

func responseText(b *Binding) string {
	if b.ResponseField == nil {
		return ""
	}
	return string(b.ResponseField.Name())
}

// shape is the template without its variables: equal for templates that match the same paths.
func (t *template) shape() string {
	var b strings.Builder
	for _, s := range t.segments {
		switch s.kind {
		case starSegment:
			b.WriteString("/*")
		case deepSegment:
			b.WriteString("/**")
		default:
			fmt.Fprintf(&b, "/%q", s.text)
		}
	}
	if t.verb != "" {
		fmt.Fprintf(&b, ":%q", t.verb)
	}
	return b.String()
}
