package transcoder

import (
	"errors"
	"fmt"
	"hash/maphash"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"transom/descriptors"
	wsv1 "transom/proto/transom/ws/v1"
	"transom/transcoder/codec"
)

// Options say how messages are read and written. The zero value is strict ProtoJSON: unknown fields and parameters are
// refused by name.
type Options struct {
	JSON codec.Options
	// IgnoreUnknownQuery leaves out query parameters that name no field instead of refusing them.
	IgnoreUnknownQuery bool
	// IgnoreQuery are the names of parameters that are left out whether or not a field has the name.
	IgnoreQuery []string
	// QueryMaps lets name[key]=value set the entries of a map field.
	QueryMaps  bool
	ErrorShape ErrorShape
	// Forms says which methods take form-urlencoded and multipart/form-data bodies; nil means none. A page of any origin
	// may send these with the user's cookies, so that a listener must check the origin of a method that does.
	Forms func(*descriptors.Method) bool
}

// Plans are the compiled plans of all methods of a schema.
type Plans struct {
	options  Options
	types    *codec.Types
	any      *codec.Message
	open     *codec.Message // of the WebSocket envelope
	ignore   map[string]bool
	depth    int          // of parameter names
	seed     maphash.Seed // of map keys in parameters
	plans    []*Plan      // by Method.ID
	bindings []*binding   // by Binding.ID
}

// Plan turns the messages of one method into JSON and back.
type Plan struct {
	plans   *Plans
	method  *descriptors.Method
	in, out *codec.Message
	query   *params // nil without bindings
	forms   bool
}

// binding is a compiled HTTP rule.
type binding struct {
	*descriptors.Binding
	vars []pathVar
	// claims are the leaves and oneofs that the path sets.
	claims []claim
	// body is the field that the HTTP body holds and its codec; nil unless Body is BodyField.
	body      *param
	bodyCodec *codec.Field
	// bodyMessage is the type of the body field if it is a plain singular message, else nil.
	bodyMessage *codec.Message
	// mask is the field mask that a PATCH without one gets from the body; nil if the rule has none.
	mask *param
	// unmasked are the paths, within the body field, that the template sets: names of the resource, not changes to it.
	unmasked []string
	response *codec.Field
	raw      HTTPBody
}

// pathVar is a template variable: the messages that lead to the field, and the field.
type pathVar struct {
	parents []*param
	leaf    *param
}

// NewPlans compiles the plan of every method of s. The error joins all faults.
func NewPlans(s *descriptors.Schema, o Options) (*Plans, error) {
	types := codec.NewTypes(s.Types())
	ps := &Plans{
		options: o, types: types,
		any:    types.Message((*anypb.Any)(nil).ProtoReflect().Descriptor()),
		open:   types.Message((*wsv1.Open)(nil).ProtoReflect().Descriptor()),
		ignore: make(map[string]bool, len(o.IgnoreQuery)), depth: o.JSON.MaxDepth, seed: maphash.MakeSeed(),
	}
	if ps.depth == 0 {
		ps.depth = 100
	}
	for _, name := range o.IgnoreQuery {
		ps.ignore[name] = true
	}
	tables := &paramTables{types: types, done: map[protoreflect.FullName]*params{}, enums: map[protoreflect.FullName]map[string]int32{}}
	methods := s.Methods()
	ps.plans = make([]*Plan, len(methods))
	var faults []error
	for _, m := range methods {
		p := &Plan{
			plans: ps, method: m,
			in: ps.types.Message(m.Desc.Input()), out: ps.types.Message(m.Desc.Output()),
		}
		p.forms = o.Forms != nil && o.Forms(m)
		ps.plans[m.ID] = p
		if len(m.Bindings) > 0 {
			p.query = tables.message(m.Desc.Input())
		}
		for _, b := range m.Bindings {
			c, err := p.compile(b)
			if err != nil {
				faults = append(faults, fmt.Errorf("method %s, %s %s: %w", m.Name, b.Verb, b.Template, err))
				continue
			}
			for b.ID >= len(ps.bindings) {
				ps.bindings = append(ps.bindings, nil)
			}
			ps.bindings[b.ID] = c
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return ps, nil
}

// Method returns the plan of m, nil if m is opaque: its messages can only be passed through.
func (p *Plans) Method(m *descriptors.Method) *Plan {
	if m.ID < 0 || m.ID >= len(p.plans) {
		return nil
	}
	return p.plans[m.ID]
}

func (p *Plan) compile(b *descriptors.Binding) (*binding, error) {
	c := &binding{Binding: b}
	types := p.plans.types
	for _, v := range b.Vars {
		var pv pathVar
		table, key := p.query, rootKey
		for i, fd := range v.Path {
			f := table.byName[string(fd.Name())]
			if f == nil || f.desc != fd {
				return nil, fmt.Errorf("variable %q is not a field of the request", v.Name)
			}
			if f.oneof > 0 {
				c.claims = append(c.claims, claim{oneofKey(key, f.oneof), fd.Number()})
			}
			key = fieldKey(key, fd.Number())
			if i < len(v.Path)-1 {
				pv.parents, table = append(pv.parents, f), f.child
				continue
			}
			switch {
			case !f.settable() || fd.IsList():
				return nil, fmt.Errorf("variable %q: %s cannot be given in a path", v.Name, f.kindName())
			case f.form == formMask:
				// Two masks add up, so that a body could add to what the path says.
				return nil, fmt.Errorf("variable %q: a field mask cannot be given in a path", v.Name)
			}
			pv.leaf = f
		}
		c.claims = append(c.claims, claim{key, 0})
		c.vars = append(c.vars, pv)
	}
	if b.Body == descriptors.BodyField {
		c.body = p.query.byName[string(b.BodyField.Name())]
		c.bodyCodec = types.Field(b.BodyField)
		if c.body.form == formMessage {
			c.bodyMessage = types.Message(b.BodyField.Message())
			if b.Verb == "PATCH" {
				c.mask = maskField(p.query)
			}
			for _, v := range b.Vars {
				if rest, ok := strings.CutPrefix(v.Name, string(b.BodyField.Name())+"."); ok {
					c.unmasked = append(c.unmasked, rest)
				}
			}
		}
	}
	if b.ResponseField != nil {
		c.response = types.Field(b.ResponseField)
	}
	c.raw = httpBodyOf(b)
	return c, nil
}

// maskField is the only google.protobuf.FieldMask among the fields of m, nil if there are none or several.
func maskField(m *params) *param {
	var found *param
	for i := range m.desc.Fields().Len() {
		fd := m.desc.Fields().Get(i)
		if fd.Message() == nil || fd.Message().FullName() != "google.protobuf.FieldMask" || fd.IsList() || fd.IsMap() {
			continue
		}
		if found != nil {
			return nil
		}
		found = m.byName[string(fd.Name())]
	}
	return found
}

// AppendJSON appends the JSON form of a response message. A message that has none (a Timestamp out of range, text that
// is not UTF-8) is Internal naming the field.
func (p *Plan) AppendJSON(dst, wire []byte) ([]byte, error) {
	dst, err := p.out.AppendJSON(dst, wire, &p.plans.options.JSON)
	if err != nil {
		return dst, responseFault(err)
	}
	return dst, nil
}

// AppendRequestJSON appends the JSON form of a request message, for calls made inside transom and for logs.
func (p *Plan) AppendRequestJSON(dst, wire []byte) ([]byte, error) {
	dst, err := p.in.AppendJSON(dst, wire, &p.plans.options.JSON)
	if err != nil {
		return dst, responseFault(err)
	}
	return dst, nil
}

// AppendResponse appends the JSON body of a response message: the field that the rule's response_body names, else the
// whole message, as also for a nil b. A list that is empty is [], a message that is not set is null. Errors are those of AppendJSON.
func (p *Plan) AppendResponse(dst []byte, b *descriptors.Binding, wire []byte) ([]byte, error) {
	if b == nil || b.ResponseField == nil {
		return p.AppendJSON(dst, wire)
	}
	c := p.plans.bindings[b.ID]
	dst, err := c.response.AppendJSON(dst, wire, &p.plans.options.JSON)
	if err != nil {
		return dst, responseFault(err)
	}
	return dst, nil
}

func responseFault(err error) error {
	return status.Errorf(codes.Internal, "the response has no JSON form: %v", err)
}
