package descriptors

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// mergeFiles merges two copies of a file. Copies are compatible if every message, field, enum value, service and method
// that both have means the same on the wire, in JSON and over HTTP; the result has what either has. Comments, options for
// code generators and the like do not count. The order of declarations, which is the order of JSON output, is that of the
// copy that has everything, or of a if neither has. The error is the first difference. Neither argument is changed.
func mergeFiles(a, b *descriptorpb.FileDescriptorProto) (*descriptorpb.FileDescriptorProto, error) {
	merged, added, err := mergeInto(a, b)
	if err != nil || !added {
		return a, err
	}
	if _, added, err := mergeInto(b, a); err == nil && !added {
		return b, nil
	}
	return merged, nil
}

// mergeInto returns a with what only b has, and whether that was anything.
func mergeInto(a, b *descriptorpb.FileDescriptorProto) (*descriptorpb.FileDescriptorProto, bool, error) {
	out := proto.CloneOf(a)
	out.SourceCodeInfo = nil // its paths are indexes that merging moves
	m := merger{}
	m.file(out, b)
	if m.err != nil || !m.added {
		return a, false, m.err
	}
	return out, true, nil
}

// merger merges one file; it stops at the first difference.
type merger struct {
	added bool
	err   error
}

// same records that a and b differ in what of subject, and reports whether they are equal.
func (m *merger) same(subject, what string, a, b any) bool {
	if a != b && m.err == nil {
		m.err = fmt.Errorf("%s: %s is %s in one and %s in the other", subject, what, show(a), show(b))
	}
	return a == b
}

func show(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprint(v)
}

func (m *merger) file(a, b *descriptorpb.FileDescriptorProto) {
	syntax := func(f *descriptorpb.FileDescriptorProto) string {
		switch f.GetSyntax() {
		case "":
			return "proto2"
		case "editions":
			return f.GetEdition().String()
		}
		return f.GetSyntax()
	}
	m.same("file", "package", a.GetPackage(), b.GetPackage())
	m.same("file", "syntax", syntax(a), syntax(b))
	m.features("file", a.GetOptions().GetFeatures(), b.GetOptions().GetFeatures())
	if m.err != nil {
		return
	}
	for i, dep := range b.GetDependency() {
		j := slices.Index(a.GetDependency(), dep)
		if j < 0 {
			j = len(a.GetDependency())
			a.Dependency = append(a.Dependency, dep)
			m.added = true
		}
		if slices.Contains(b.GetPublicDependency(), int32(i)) && !slices.Contains(a.GetPublicDependency(), int32(j)) {
			a.PublicDependency = append(a.PublicDependency, int32(j))
			m.added = true
		}
	}
	m.options(a, b)
	scope := a.GetPackage()
	a.MessageType = mergeNamed(m, scope, a.GetMessageType(), b.GetMessageType(), m.message)
	a.EnumType = mergeNamed(m, scope, a.GetEnumType(), b.GetEnumType(), m.enum)
	a.Service = mergeNamed(m, scope, a.GetService(), b.GetService(), m.service)
	a.Extension = mergeNamed(m, scope, a.GetExtension(), b.GetExtension(), m.field)
}

// mergeNamed merges two lists of named things: merge for those that both have, appended if only b has them.
func mergeNamed[T interface {
	comparable
	proto.Message
	GetName() string
}](m *merger, scope string, as, bs []T, merge func(subject string, a, b T)) []T {
	index := make(map[string]T, len(as))
	for _, a := range as {
		index[a.GetName()] = a
	}
	for _, b := range bs {
		if m.err != nil {
			break
		}
		if a, ok := index[b.GetName()]; ok {
			name := b.GetName()
			if scope != "" {
				name = scope + "." + name
			}
			merge(name, a, b)
			continue
		}
		as = append(as, proto.CloneOf(b))
		m.added = true
	}
	return as
}

func (m *merger) message(name string, a, b *descriptorpb.DescriptorProto) {
	subject := "message " + name
	m.same(subject, "map_entry", a.GetOptions().GetMapEntry(), b.GetOptions().GetMapEntry())
	m.same(subject, "message_set_wire_format", a.GetOptions().GetMessageSetWireFormat(), b.GetOptions().GetMessageSetWireFormat())
	m.features(subject, a.GetOptions().GetFeatures(), b.GetOptions().GetFeatures())
	m.options(a, b)
	a.NestedType = mergeNamed(m, name, a.GetNestedType(), b.GetNestedType(), m.message)
	a.EnumType = mergeNamed(m, name, a.GetEnumType(), b.GetEnumType(), m.enum)
	a.Extension = mergeNamed(m, name, a.GetExtension(), b.GetExtension(), m.field)
	if m.err != nil {
		return
	}
	oneof := func(md *descriptorpb.DescriptorProto, f *descriptorpb.FieldDescriptorProto) string {
		if f.OneofIndex == nil || f.GetProto3Optional() || int(f.GetOneofIndex()) >= len(md.GetOneofDecl()) || f.GetOneofIndex() < 0 {
			return ""
		}
		return md.GetOneofDecl()[f.GetOneofIndex()].GetName()
	}
	byNumber := make(map[int32]*descriptorpb.FieldDescriptorProto, len(a.GetField()))
	for _, f := range a.GetField() {
		byNumber[f.GetNumber()] = f
	}
	for _, bf := range b.GetField() {
		if af, ok := byNumber[bf.GetNumber()]; ok {
			if m.same(subject+": field number "+strconv.Itoa(int(bf.GetNumber())), "name", af.GetName(), bf.GetName()) {
				m.same("field "+name+"."+bf.GetName(), "oneof", oneof(a, af), oneof(b, bf))
				m.field(name+"."+bf.GetName(), af, bf)
			}
			if m.err != nil {
				return
			}
			continue
		}
		if i := slices.IndexFunc(a.GetField(), func(f *descriptorpb.FieldDescriptorProto) bool { return f.GetName() == bf.GetName() }); i >= 0 {
			m.same("field "+name+"."+bf.GetName(), "number", a.GetField()[i].GetNumber(), bf.GetNumber())
			return
		}
		bf = proto.CloneOf(bf)
		if bf.OneofIndex != nil && bf.GetOneofIndex() >= 0 && int(bf.GetOneofIndex()) < len(b.GetOneofDecl()) {
			decl := b.GetOneofDecl()[bf.GetOneofIndex()]
			i := slices.IndexFunc(a.GetOneofDecl(), func(o *descriptorpb.OneofDescriptorProto) bool { return o.GetName() == decl.GetName() })
			if i < 0 {
				i = len(a.GetOneofDecl())
				a.OneofDecl = append(a.OneofDecl, proto.CloneOf(decl))
			}
			bf.OneofIndex = proto.Int32(int32(i))
		}
		at := len(a.GetField()) // the members of a oneof must stand together
		for i, f := range slices.Backward(a.GetField()) {
			if bf.OneofIndex != nil && f.OneofIndex != nil && f.GetOneofIndex() == bf.GetOneofIndex() {
				at = i + 1
				break
			}
		}
		a.Field = slices.Insert(a.Field, at, bf)
		m.added = true
	}
	syntheticLast(a)
	for _, r := range b.GetExtensionRange() {
		if !slices.ContainsFunc(a.GetExtensionRange(), func(o *descriptorpb.DescriptorProto_ExtensionRange) bool {
			return o.GetStart() <= r.GetStart() && r.GetEnd() <= o.GetEnd()
		}) {
			a.ExtensionRange = slices.DeleteFunc(a.ExtensionRange, func(o *descriptorpb.DescriptorProto_ExtensionRange) bool {
				return r.GetStart() <= o.GetStart() && o.GetEnd() <= r.GetEnd()
			})
			a.ExtensionRange = append(a.ExtensionRange, proto.CloneOf(r))
			m.added = true
		}
	}
	// A field that one copy has and the other has reserved since it was removed is kept.
	a.ReservedName = slices.DeleteFunc(a.ReservedName, func(n string) bool {
		return slices.ContainsFunc(a.GetField(), func(f *descriptorpb.FieldDescriptorProto) bool { return f.GetName() == n })
	})
	a.ReservedRange = slices.DeleteFunc(a.ReservedRange, func(r *descriptorpb.DescriptorProto_ReservedRange) bool {
		return slices.ContainsFunc(a.GetField(), func(f *descriptorpb.FieldDescriptorProto) bool {
			return r.GetStart() <= f.GetNumber() && f.GetNumber() < r.GetEnd()
		})
	})
}

// syntheticLast moves the oneofs that proto3 optional fields stand in behind the written ones, as descriptor.proto asks.
func syntheticLast(d *descriptorpb.DescriptorProto) {
	synthetic := make([]bool, len(d.GetOneofDecl()))
	for _, f := range d.GetField() {
		if f.GetProto3Optional() && f.OneofIndex != nil && int(f.GetOneofIndex()) < len(synthetic) {
			synthetic[f.GetOneofIndex()] = true
		}
	}
	moved := make([]int32, len(synthetic))
	var decls []*descriptorpb.OneofDescriptorProto
	for _, want := range []bool{false, true} {
		for i, o := range d.GetOneofDecl() {
			if synthetic[i] == want {
				moved[i] = int32(len(decls))
				decls = append(decls, o)
			}
		}
	}
	d.OneofDecl = decls
	for _, f := range d.GetField() {
		if f.OneofIndex != nil && int(f.GetOneofIndex()) < len(moved) {
			f.OneofIndex = proto.Int32(moved[f.GetOneofIndex()])
		}
	}
}

func (m *merger) field(name string, a, b *descriptorpb.FieldDescriptorProto) {
	subject := "field " + name
	m.same(subject, "number", a.GetNumber(), b.GetNumber())
	m.same(subject, "type", typeName(a), typeName(b))
	m.same(subject, "label", a.GetLabel(), b.GetLabel())
	m.same(subject, "extended message", a.GetExtendee(), b.GetExtendee())
	m.same(subject, "presence (optional)", a.GetProto3Optional(), b.GetProto3Optional())
	m.same(subject, "json_name", jsonName(a), jsonName(b))
	m.same(subject, "default", a.GetDefaultValue(), b.GetDefaultValue())
	m.features(subject, a.GetOptions().GetFeatures(), b.GetOptions().GetFeatures())
	m.options(a, b)
}

func typeName(f *descriptorpb.FieldDescriptorProto) string {
	if f.GetTypeName() != "" {
		return f.GetTypeName()
	}
	return strings.ToLower(strings.TrimPrefix(f.GetType().String(), "TYPE_"))
}

func jsonName(f *descriptorpb.FieldDescriptorProto) string {
	if f.JsonName != nil {
		return f.GetJsonName()
	}
	var out []byte
	upper := false
	for _, c := range []byte(f.GetName()) {
		if c == '_' {
			upper = true
			continue
		}
		if upper && 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		out, upper = append(out, c), false
	}
	return string(out)
}

func (m *merger) enum(name string, a, b *descriptorpb.EnumDescriptorProto) {
	subject := "enum " + name
	m.features(subject, a.GetOptions().GetFeatures(), b.GetOptions().GetFeatures())
	m.options(a, b)
	byName := map[string]*descriptorpb.EnumValueDescriptorProto{}
	byNumber := map[int32]string{}
	for _, v := range a.GetValue() {
		byName[v.GetName()] = v
		if _, ok := byNumber[v.GetNumber()]; !ok {
			byNumber[v.GetNumber()] = v.GetName()
		}
	}
	for _, v := range b.GetValue() {
		if have, ok := byName[v.GetName()]; ok {
			if !m.same(subject+" value "+v.GetName(), "number", have.GetNumber(), v.GetNumber()) {
				return
			}
			m.options(have, v)
			continue
		}
		if other, ok := byNumber[v.GetNumber()]; ok && !a.GetOptions().GetAllowAlias() {
			m.same(fmt.Sprintf("%s number %d", subject, v.GetNumber()), "name", other, v.GetName())
			return
		}
		a.Value = append(a.Value, proto.CloneOf(v))
		m.added = true
	}
	a.ReservedName = slices.DeleteFunc(a.ReservedName, func(n string) bool {
		return slices.ContainsFunc(a.GetValue(), func(v *descriptorpb.EnumValueDescriptorProto) bool { return v.GetName() == n })
	})
	a.ReservedRange = slices.DeleteFunc(a.ReservedRange, func(r *descriptorpb.EnumDescriptorProto_EnumReservedRange) bool {
		return slices.ContainsFunc(a.GetValue(), func(v *descriptorpb.EnumValueDescriptorProto) bool {
			return r.GetStart() <= v.GetNumber() && v.GetNumber() <= r.GetEnd()
		})
	})
}

func (m *merger) service(name string, a, b *descriptorpb.ServiceDescriptorProto) {
	m.options(a, b)
	a.Method = mergeNamed(m, name, a.GetMethod(), b.GetMethod(), func(name string, a, b *descriptorpb.MethodDescriptorProto) {
		subject := "method " + name
		m.same(subject, "request type", a.GetInputType(), b.GetInputType())
		m.same(subject, "response type", a.GetOutputType(), b.GetOutputType())
		m.same(subject, "client streaming", a.GetClientStreaming(), b.GetClientStreaming())
		m.same(subject, "server streaming", a.GetServerStreaming(), b.GetServerStreaming())
		if a.GetOptions().GetIdempotencyLevel() != 0 && b.GetOptions().GetIdempotencyLevel() != 0 {
			m.same(subject, "idempotency_level", a.GetOptions().GetIdempotencyLevel(), b.GetOptions().GetIdempotencyLevel())
		}
		if ra, rb := httpRule(a.GetOptions()), httpRule(b.GetOptions()); ra != nil && rb != nil && !proto.Equal(ra, rb) {
			m.same(subject, "google.api.http", ruleText(ra), ruleText(rb))
		}
		m.options(a, b)
	})
}

// ruleText shows a rule in one line.
func ruleText(r *annotations.HttpRule) string {
	s := ""
	r.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if s != "" {
			s += " "
		}
		s += fmt.Sprintf("%s: %v", fd.Name(), v)
		return true
	})
	return s
}

func (m *merger) features(subject string, a, b *descriptorpb.FeatureSet) {
	if m.err == nil && !proto.Equal(a, b) {
		m.err = fmt.Errorf("%s: its features differ", subject)
	}
}

// options gives a the options that only b has set. Where both have set one, a's stays: those that change what goes over
// the wire have been compared before.
func (m *merger) options(a, b proto.Message) {
	if m.err != nil {
		return
	}
	fd := a.ProtoReflect().Descriptor().Fields().ByName("options")
	if !b.ProtoReflect().Has(fd) {
		return
	}
	from := b.ProtoReflect().Get(fd).Message()
	if !a.ProtoReflect().Has(fd) {
		a.ProtoReflect().Set(fd, protoreflect.ValueOfMessage(proto.Clone(from.Interface()).ProtoReflect()))
		m.added = true
		return
	}
	to := a.ProtoReflect().Mutable(fd).Message()
	from = proto.Clone(from.Interface()).ProtoReflect()
	from.Range(func(opt protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if !to.Has(opt) {
			to.Set(opt, v)
			m.added = true
		}
		return true
	})
	if len(to.GetUnknown()) == 0 && len(from.GetUnknown()) > 0 {
		to.SetUnknown(from.GetUnknown())
		m.added = true
	}
}
