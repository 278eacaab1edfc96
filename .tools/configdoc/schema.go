package main

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"

	validatepb "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// object is a JSON object; it is written with its names in order.
type object = map[string]any

// schema writes the JSON Schema (draft 7, which editors know best) of a message and all that it has.
type schema struct{ definitions object }

// jsonSchema is the schema of files that are a root.
func jsonSchema(root protoreflect.MessageDescriptor) ([]byte, error) {
	s := &schema{definitions: object{
		// What "${NAME}" stands for is not known before it is run.
		"variable": object{"type": "string", "pattern": `\$\{`},
		"duration": object{"type": "string", "pattern": `^(([0-9]+(\.[0-9]*)?|\.[0-9]+)(h|m|s|ms|us|µs|ns))+$|^0$|\$\{`},
		"size":     object{"type": "string", "pattern": `^[0-9]+(\.[0-9]+)? ?([KMGTPE]i?B?)?$|\$\{`},
	}}
	top := s.message(root)
	top["$schema"], top["title"], top["definitions"] = "http://json-schema.org/draft-07/schema#", "transom's configuration", s.definitions
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	err := enc.Encode(top)
	return b.Bytes(), err
}

// ref refers to the definition of a message, which is made when it is first met.
func (s *schema) ref(m protoreflect.MessageDescriptor) object {
	if _, ok := s.definitions[title(m)]; !ok {
		s.definitions[title(m)] = nil // it may have itself
		s.definitions[title(m)] = s.message(m)
	}
	return object{"$ref": "#/definitions/" + title(m)}
}

func (s *schema) message(m protoreflect.MessageDescriptor) object {
	properties, required := object{}, []string{}
	for f := range all(m.Fields()) {
		rules := fieldRules(f)
		p := s.value(f, rules)
		if _, ok := p["$ref"]; ok {
			p = object{"allOf": []any{p}} // draft 7 looks at nothing beside $ref
		}
		if c := leading(f); c != "" {
			p["description"] = c
		}
		properties[string(f.Name())] = p
		if f.ContainingOneof() == nil && mustBe(f, rules) {
			required = append(required, string(f.Name()))
		}
	}
	out := object{"type": "object", "additionalProperties": false, "properties": properties}
	if c := leading(m); c != "" {
		out["description"] = c
	}
	if len(required) > 0 {
		out["required"] = required
	}
	var choices []any
	for o := range all(m.Oneofs()) {
		if !o.IsSynthetic() {
			choices = append(choices, oneOf(o))
		}
	}
	if len(choices) > 0 {
		out["allOf"] = choices
	}
	return out
}

// oneOf allows one of the fields, or none if none need be.
func oneOf(o protoreflect.OneofDescriptor) object {
	var ways, either []any
	for f := range all(o.Fields()) {
		has := object{"required": []string{string(f.Name())}}
		ways, either = append(ways, has), append(either, has)
	}
	if rules, _ := extension(o.Options(), validatepb.E_Oneof).(*validatepb.OneofRules); !rules.GetRequired() {
		ways = append(ways, object{"not": object{"anyOf": either}})
	}
	return object{"oneOf": ways}
}

// value is what a field may be: of a list, one of its values too.
func (s *schema) value(f protoreflect.FieldDescriptor, rules *validatepb.FieldRules) object {
	switch {
	case f.IsMap():
		out := object{"type": "object", "additionalProperties": s.single(f.MapValue(), rules.GetMap().GetValues())}
		if p := rules.GetMap().GetKeys().GetString().GetPattern(); p != "" {
			out["propertyNames"] = object{"pattern": p}
		}
		if n := rules.GetMap().GetMinPairs(); n > 0 {
			out["minProperties"] = n
		}
		return out
	case f.IsList():
		item := s.single(f, rules.GetRepeated().GetItems())
		list := object{"type": "array", "items": item}
		if n := rules.GetRepeated().GetMinItems(); n > 0 {
			list["minItems"] = n
		}
		if rules.GetRepeated().HasMaxItems() {
			list["maxItems"] = rules.GetRepeated().GetMaxItems()
		}
		return object{"anyOf": []any{list, item}}
	}
	return s.single(f, rules)
}

func (s *schema) single(f protoreflect.FieldDescriptor, rules *validatepb.FieldRules) object {
	variable := object{"$ref": "#/definitions/variable"}
	switch f.Kind() {
	case protoreflect.MessageKind:
		switch f.Message().FullName() {
		case "google.protobuf.Duration":
			return object{"$ref": "#/definitions/duration"}
		case "google.protobuf.Struct":
			return object{"type": "object"}
		}
		return s.ref(f.Message())
	case protoreflect.EnumKind:
		var names []string
		for v := range all(f.Enum().Values()) {
			if v.Number() == 0 && strings.HasSuffix(string(v.Name()), "UNSPECIFIED") {
				continue
			}
			names = append(names, valueName(v))
			if f.Enum().ParentFile().Package() != f.ParentFile().Package() { // a code of gRPC's is best known as it is
				names = append(names, string(v.Name()))
			}
		}
		return object{"anyOf": []any{object{"enum": names}, variable}}
	case protoreflect.BoolKind:
		return object{"anyOf": []any{object{"type": "boolean"}, variable}}
	case protoreflect.StringKind:
		text := object{"type": []string{"string", "number", "boolean"}} // YAML's idea of a word is no fault
		if n := rules.GetString().GetMinLen(); n > 0 && rules.GetIgnore() != validatepb.Ignore_IGNORE_IF_ZERO_VALUE {
			text["minLength"] = n
		}
		if in := rules.GetString().GetIn(); len(in) > 0 {
			return object{"anyOf": []any{object{"enum": in}, variable}}
		}
		p := rules.GetString().GetPattern()
		if p == "" {
			return text
		}
		if ok, _ := regexp.MatchString(p, "10"); !ok {
			text["type"] = "string"
		}
		if text["pattern"] = p; rules.GetIgnore() == validatepb.Ignore_IGNORE_IF_ZERO_VALUE {
			text["pattern"] = "^$|" + p
		}
		return object{"anyOf": []any{text, variable}}
	case protoreflect.DoubleKind:
		number := object{"type": "number"}
		if d := rules.GetDouble(); d != nil {
			bound(number, "minimum", "exclusiveMinimum", d.HasGte(), d.GetGte(), d.HasGt(), d.GetGt())
			bound(number, "maximum", "exclusiveMaximum", d.HasLte(), d.GetLte(), d.HasLt(), d.GetLt())
		}
		return object{"anyOf": []any{number, variable}}
	default:
		number := object{"type": "integer", "minimum": 0}
		if r := rules.GetUint32(); r != nil && rules.GetIgnore() != validatepb.Ignore_IGNORE_IF_ZERO_VALUE {
			bound(number, "minimum", "exclusiveMinimum", r.HasGte(), float64(r.GetGte()), r.HasGt(), float64(r.GetGt()))
		}
		if r := rules.GetUint32(); r != nil {
			bound(number, "maximum", "exclusiveMaximum", r.HasLte(), float64(r.GetLte()), r.HasLt(), float64(r.GetLt()))
		}
		if r := rules.GetUint64(); r != nil {
			bound(number, "maximum", "exclusiveMaximum", r.HasLte(), float64(r.GetLte()), r.HasLt(), float64(r.GetLt()))
		}
		if strings.HasSuffix(string(f.Name()), "bytes") {
			return object{"anyOf": []any{number, object{"$ref": "#/definitions/size"}}}
		}
		return object{"anyOf": []any{number, variable}}
	}
}

// bound sets a limit, with the limit itself or without.
func bound(number object, with, without string, hasWith bool, valueWith float64, hasWithout bool, valueWithout float64) {
	if hasWith {
		number[with] = valueWith
	}
	if hasWithout {
		number[without] = valueWithout
	}
}

// mustBe reports whether a field may not be left out.
func mustBe(f protoreflect.FieldDescriptor, rules *validatepb.FieldRules) bool {
	if rules.GetIgnore() == validatepb.Ignore_IGNORE_IF_ZERO_VALUE {
		return false
	}
	return rules.GetRequired() || rules.GetString().GetMinLen() > 0 && !f.IsList() ||
		rules.GetRepeated().GetMinItems() > 0 || rules.GetMap().GetMinPairs() > 0
}

func fieldRules(f protoreflect.FieldDescriptor) *validatepb.FieldRules {
	rules, _ := extension(f.Options(), validatepb.E_Field).(*validatepb.FieldRules)
	return rules
}

// extension is an option's value. The compiler has read it as a message of its own.
func extension(options proto.Message, xt protoreflect.ExtensionType) any {
	b, err := proto.Marshal(options)
	if err != nil {
		return nil
	}
	known := options.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, known); err != nil {
		return nil
	}
	return proto.GetExtension(known, xt)
}
