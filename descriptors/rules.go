package descriptors

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// methodOptions returns the options of a method as the type linked into the program, with google.api.http resolved
// whether it arrived as a known extension, as a dynamic message or as unknown bytes.
func methodOptions(md protoreflect.MethodDescriptor) (*descriptorpb.MethodOptions, error) {
	out := &descriptorpb.MethodOptions{}
	in := md.Options()
	if in == nil || !in.ProtoReflect().IsValid() {
		return out, nil
	}
	b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(in)
	if err != nil {
		return nil, err
	}
	err = proto.UnmarshalOptions{AllowPartial: true, Resolver: protoregistry.GlobalTypes}.Unmarshal(b, out)
	if err != nil {
		return nil, fmt.Errorf("its options cannot be read (google.api.http has field number %d): %w", annotations.E_Http.TypeDescriptor().Number(), err)
	}
	return out, nil
}

// httpRule returns the google.api.http annotation in o, or nil.
func httpRule(o *descriptorpb.MethodOptions) *annotations.HttpRule {
	rule, _ := proto.GetExtension(o, annotations.E_Http).(*annotations.HttpRule)
	return rule
}

// effectOf translates idempotency_level.
func effectOf(o *descriptorpb.MethodOptions) Effect {
	switch o.GetIdempotencyLevel() {
	case descriptorpb.MethodOptions_IDEMPOTENT:
		return EffectIdempotent
	case descriptorpb.MethodOptions_NO_SIDE_EFFECTS:
		return EffectNone
	default:
		return EffectUnknown
	}
}

// bindings compiles a rule and its additional_bindings for m, with all faults joined.
func bindings(m *Method, rule *annotations.HttpRule) ([]*Binding, error) {
	var out []*Binding
	var faults []error
	one := func(r *annotations.HttpRule, label string) {
		b, err := binding(m, r)
		if err != nil {
			for _, e := range unjoin(err) {
				faults = append(faults, fmt.Errorf("method %s: %s: %w", m.Name, label, e))
			}
			return
		}
		out = append(out, b)
	}
	one(rule, "google.api.http")
	for i, r := range rule.GetAdditionalBindings() {
		label := fmt.Sprintf("google.api.http additional_bindings[%d]", i)
		if len(r.GetAdditionalBindings()) > 0 {
			faults = append(faults, fmt.Errorf("method %s: %s: an additional binding must not have additional_bindings of its own", m.Name, label))
		}
		one(r, label)
	}
	return out, errors.Join(faults...)
}

// binding compiles one rule, with all faults joined.
func binding(m *Method, r *annotations.HttpRule) (*Binding, error) {
	b := &Binding{Method: m}
	switch p := r.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		b.Verb, b.Template = "GET", p.Get
	case *annotations.HttpRule_Put:
		b.Verb, b.Template = "PUT", p.Put
	case *annotations.HttpRule_Post:
		b.Verb, b.Template = "POST", p.Post
	case *annotations.HttpRule_Delete:
		b.Verb, b.Template = "DELETE", p.Delete
	case *annotations.HttpRule_Patch:
		b.Verb, b.Template = "PATCH", p.Patch
	case *annotations.HttpRule_Custom:
		b.Verb, b.Template = p.Custom.GetKind(), p.Custom.GetPath()
		if b.Verb != "*" && !isToken(b.Verb) {
			return nil, fmt.Errorf("custom kind %q is not an HTTP method", b.Verb)
		}
	default:
		return nil, errors.New("the rule has no pattern (get, put, post, delete, patch or custom)")
	}
	t, err := parseTemplate(b.Template)
	if err != nil {
		return nil, err
	}
	b.template = t
	var faults []error
	input := m.Desc.Input()
	for _, v := range t.vars {
		path, err := variablePath(input, v.name)
		if err != nil {
			faults = append(faults, &TemplateError{Template: b.Template, Column: v.column, Reason: err.Error()})
			continue
		}
		for _, o := range b.Vars {
			if err := overlap(o.Path, path); err != nil {
				faults = append(faults, &TemplateError{
					Template: b.Template, Column: v.column,
					Reason: fmt.Sprintf("variables %q and %q %v", o.Name, v.name, err),
				})
			}
		}
		b.Vars = append(b.Vars, Variable{Name: v.name, Path: path, Multi: v.multi})
	}
	switch r.GetBody() {
	case "":
	case "*":
		b.Body = BodyAll
	default:
		b.Body = BodyField
		if b.BodyField, err = topLevelField(input, r.GetBody()); err != nil {
			faults = append(faults, fmt.Errorf("body: %w", err))
			break
		}
		for _, v := range b.Vars {
			if len(v.Path) == 1 && v.Path[0] == b.BodyField {
				faults = append(faults, fmt.Errorf("body: the field %q is bound by the path already", r.GetBody()))
			} else if o := b.BodyField.ContainingOneof(); o != nil && !o.IsSynthetic() && v.Path[0] != b.BodyField && v.Path[0].ContainingOneof() == o {
				faults = append(faults, fmt.Errorf("body: %q and the path variable %q are members of one oneof, %q", r.GetBody(), v.Name, o.Name()))
			}
		}
	}
	if name := r.GetResponseBody(); name != "" {
		if b.ResponseField, err = topLevelField(m.Desc.Output(), name); err != nil {
			faults = append(faults, fmt.Errorf("response_body: %w", err))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	b.MaskField = maskField(b, input)
	return b, nil
}

// maskField finds Binding.MaskField. More than one mask, or one that the path sets, leaves none.
func maskField(b *Binding, input protoreflect.MessageDescriptor) protoreflect.FieldDescriptor {
	if b.Verb != "PATCH" || b.BodyField == nil || b.BodyField.Message() == nil || b.BodyField.Cardinality() == protoreflect.Repeated {
		return nil
	}
	var mask protoreflect.FieldDescriptor
	for i := range input.Fields().Len() {
		fd := input.Fields().Get(i)
		if fd.Message() == nil || fd.Message().FullName() != "google.protobuf.FieldMask" {
			continue
		}
		if mask != nil || fd == b.BodyField || fd.Cardinality() == protoreflect.Repeated {
			return nil
		}
		mask = fd
	}
	for _, v := range b.Vars {
		if v.Path[0] == mask {
			return nil
		}
	}
	return mask
}

// topLevelField resolves body and response_body, which name a field of the message itself (google/api/http.proto).
func topLevelField(md protoreflect.MessageDescriptor, name string) (protoreflect.FieldDescriptor, error) {
	if strings.Contains(name, ".") {
		return nil, fmt.Errorf("%q must be a field of %s itself, not a nested one", name, md.FullName())
	}
	return field(md, name)
}

// field finds a field by its protobuf name.
func field(md protoreflect.MessageDescriptor, name string) (protoreflect.FieldDescriptor, error) {
	if fd := md.Fields().ByName(protoreflect.Name(name)); fd != nil {
		return fd, nil
	}
	hint := ""
	if fd := md.Fields().ByJSONName(name); fd != nil {
		hint = fmt.Sprintf("; rules use protobuf names: did you mean %q?", fd.Name())
	} else {
		var names []string
		for i := range md.Fields().Len() {
			names = append(names, string(md.Fields().Get(i).Name()))
		}
		if s := Closest(name, names); s != "" {
			hint = fmt.Sprintf("; did you mean %q?", s)
		}
	}
	return nil, fmt.Errorf("message %s has no field %q%s", md.FullName(), name, hint)
}

// variablePath resolves the field path of a template variable: singular messages, then a field that has a text form.
func variablePath(md protoreflect.MessageDescriptor, name string) ([]protoreflect.FieldDescriptor, error) {
	var path []protoreflect.FieldDescriptor
	parts := strings.Split(name, ".")
	for i, part := range parts {
		fd, err := field(md, part)
		if err != nil {
			return nil, fmt.Errorf("variable %q: %w", name, err)
		}
		path = append(path, fd)
		so := strings.Join(parts[:i+1], ".")
		switch {
		case fd.IsMap():
			return nil, fmt.Errorf("variable %q: %q is a map field, which a path cannot hold", name, so)
		case fd.IsList():
			return nil, fmt.Errorf("variable %q: %q is a repeated field, which a path cannot hold", name, so)
		case i < len(parts)-1:
			if fd.Message() == nil {
				return nil, fmt.Errorf("variable %q: %q is of type %s and has no fields", name, so, fd.Kind())
			}
			md = fd.Message()
		case fd.Message() != nil && !hasTextForm(fd.Message().FullName()):
			return nil, fmt.Errorf("variable %q: it is a message of type %s, which a path cannot hold", name, fd.Message().FullName())
		}
	}
	return path, nil
}

// hasTextForm reports whether ProtoJSON writes the message as one string, number or boolean.
func hasTextForm(name protoreflect.FullName) bool {
	switch name {
	case "google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask",
		"google.protobuf.DoubleValue", "google.protobuf.FloatValue", "google.protobuf.Int64Value",
		"google.protobuf.UInt64Value", "google.protobuf.Int32Value", "google.protobuf.UInt32Value",
		"google.protobuf.BoolValue", "google.protobuf.StringValue", "google.protobuf.BytesValue":
		return true
	}
	return false
}

// overlap says why two variables cannot both be set: one lies in the other, or they are members of one oneof.
func overlap(a, b []protoreflect.FieldDescriptor) error {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		if o := a[i].ContainingOneof(); o != nil && !o.IsSynthetic() && o == b[i].ContainingOneof() {
			return fmt.Errorf("are members of one oneof, %q", o.Name())
		}
		return nil
	}
	return errors.New("bind the same field")
}

// isToken reports whether s is an HTTP token (RFC 9110, 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// unjoin returns the errors that err joins, or err alone.
func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return slices.Concat(j.Unwrap())
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// overrides maps method names to the last of the rules whose selector covers them. A selector is a comma-separated list
// of names, each of which may end in ".*" or be "*". It reports selectors that cover no method.
func overrides(rules []*annotations.HttpRule, methods []*Method, suggest func(string) string) (map[protoreflect.FullName]*annotations.HttpRule, error) {
	out := map[protoreflect.FullName]*annotations.HttpRule{}
	known := make(map[protoreflect.FullName]bool, len(methods))
	for _, m := range methods {
		known[m.Name] = true
	}
	var faults []error
	for i, r := range rules {
		for sel := range strings.SplitSeq(r.GetSelector(), ",") {
			sel = strings.TrimSpace(sel)
			hit := known[protoreflect.FullName(sel)]
			if hit {
				out[protoreflect.FullName(sel)] = r
			} else if prefix, wild := strings.CutSuffix(sel, "*"); wild && (prefix == "" || strings.HasSuffix(prefix, ".")) {
				for _, m := range methods {
					if strings.HasPrefix(string(m.Name), prefix) {
						out[m.Name], hit = r, true
					}
				}
			}
			switch {
			case hit:
			case sel == "":
				faults = append(faults, fmt.Errorf("HTTP rule %d has no selector", i))
			default:
				hint := ""
				if s := suggest(sel); s != "" {
					hint = fmt.Sprintf("; did you mean %q?", s)
				}
				faults = append(faults, fmt.Errorf("HTTP rule %d: the selector %q matches no method%s", i, sel, hint))
			}
		}
	}
	return out, errors.Join(faults...)
}
