package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	configv1 "transom/proto/transom/config/v1"
	transomv1 "transom/proto/transom/v1"
)

// optionName is what faults and explain call the option, and how paths of its fields begin.
const optionName = "(transom.v1.policy)"

// methodOption is what a method asks for by its option.
type methodOption struct {
	policy        *configv1.Policy
	authenticated bool
}

// options reads the option of every method that has one, by full name. What is wrong with one is a fault.
func (b *builder) options() map[string]*methodOption {
	var all map[string]*methodOption
	var v protovalidate.Validator
	for _, m := range b.schema.Methods() {
		wire := optionBytes(m)
		if wire == nil {
			continue
		}
		path := fmt.Sprintf("%s of %s", optionName, m.Name)
		var said transomv1.Policy
		o := &methodOption{policy: &configv1.Policy{}}
		if err := errors.Join(proto.Unmarshal(wire, &said), proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(wire, o.policy)); err != nil {
			b.fault(path, "it cannot be read; is the set built with another transom/v1/policy.proto?")
			continue
		}
		if n := unknownField(said.ProtoReflect()); n != 0 {
			b.fault(path, "it has field %d, which this transom does not know, and which may be there to protect the method", n)
			continue
		}
		if v == nil {
			var err error
			if v, err = protovalidate.New(); err != nil {
				b.faultOf(path, err)
				return nil
			}
		}
		o.authenticated = said.GetAuthenticated()
		o.policy.Selector = []string{string(m.Name)}
		var invalid *protovalidate.ValidationError
		switch err := v.Validate(o.policy); {
		case errors.As(err, &invalid):
			for _, v := range invalid.Violations {
				b.fault(path+"."+protovalidate.FieldPathString(v.Proto.GetField()), "%s", v.Proto.GetMessage())
			}
			continue
		case err != nil:
			b.faultOf(path, err)
			continue
		}
		o.policy.Selector = nil
		if all == nil {
			all = map[string]*methodOption{}
		}
		all[string(m.Name)] = o
	}
	return all
}

// optionBytes is a method's option in wire form, nil without one. It does not matter whether the schema knows the extension.
func optionBytes(m *descriptors.Method) []byte {
	if m.Desc == nil {
		return nil
	}
	all, err := proto.Marshal(m.Desc.Options())
	if err != nil {
		return nil
	}
	var found []byte
	for len(all) > 0 {
		num, typ, n := protowire.ConsumeTag(all)
		if n < 0 {
			return nil
		}
		size := protowire.ConsumeFieldValue(num, typ, all[n:])
		if size < 0 {
			return nil
		}
		if num == transomv1.E_Policy.TypeDescriptor().Number() && typ == protowire.BytesType {
			b, _ := protowire.ConsumeBytes(all[n:])
			found = append(slices.Grow(found, 1), b...) // parts of one message are one behind the other
		}
		all = all[n+size:]
	}
	return found
}

// unknownField is the number of a field, at any depth, that the message's type does not have; 0 if there is none.
func unknownField(m protoreflect.Message) protowire.Number {
	if b := m.GetUnknown(); len(b) > 0 {
		num, _, _ := protowire.ConsumeTag(b)
		return num
	}
	var found protowire.Number
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && found == 0; i++ {
				found = unknownField(v.List().Get(i).Message())
			}
		default:
			found = unknownField(v.Message())
		}
		return found == 0
	})
	return found
}

// add joins what the method asks for by its option with what the configuration says: defaults for what it leaves out, and what
// protects the method, which it cannot take away.
func (o *methodOption) add(e *Effective) []Fault {
	if o == nil {
		return nil
	}
	e.option = o
	dst := e.Policy.ProtoReflect()
	o.policy.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if _, set := e.From[fd.Name()]; !set {
			dst.Set(fd, v)
			e.From[fd.Name()] = Origin{Selector: optionName, Block: optionBlock}
		}
		return true
	})
	if o.policy.GetValidate() && !e.Policy.GetValidate() {
		return []Fault{{Path: e.path("validate"), Msg: e.method + " has its messages checked by its option " + optionName + ", and the configuration cannot turn that off"}}
	}
	return nil
}

// also are the scopes, groups and expression that the option asks for beside those of the configuration.
func (e *Effective) also() (scopes, groups []string, allow string) {
	if e.option == nil {
		return nil, nil, ""
	}
	p := e.option.policy
	if e.From["access"].Block != optionBlock {
		scopes, groups = p.GetAccess().GetScopes(), p.GetAccess().GetGroups()
	}
	if e.From["allow"].Block != optionBlock {
		allow = p.GetAllow()
	}
	return scopes, groups, allow
}

// checkAuthenticated has methods whose option asks for callers that say who they are be configured so.
func (b *builder) checkAuthenticated(e Effective) {
	if e.option == nil || !e.option.authenticated {
		return
	}
	if a := e.Policy.GetAuth(); len(a.GetRequire()) == 0 || a.GetAnonymous() {
		b.fault(e.path("auth"), "callers of %s must say who they are, by its option %s: it needs auth.require, without anonymous", e.method, optionName)
	}
}

// placed gives faults of options a place: where descriptors are named.
func placed(faults []Fault) {
	for i, f := range faults {
		if strings.HasPrefix(f.Path, optionName) {
			faults[i] = Fault{Path: "descriptors", Msg: "option " + f.Path + ": " + Fault{Msg: f.Msg, Method: f.Method}.Error(), Other: f.Other}
		}
	}
}
