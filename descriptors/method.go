package descriptors

import (
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Effect is what a method's idempotency_level option promises (descriptor.proto, MethodOptions).
type Effect uint8

// The levels, weakest promise first.
const (
	EffectUnknown    Effect = iota // no promise: may not be retried once sent, nor cached
	EffectIdempotent               // same result when repeated; may write
	EffectNone                     // NO_SIDE_EFFECTS: safe to repeat, to cache, and to call by GET
)

// String is the level's name in descriptor.proto.
func (e Effect) String() string {
	switch e {
	case EffectIdempotent:
		return "IDEMPOTENT"
	case EffectNone:
		return "NO_SIDE_EFFECTS"
	default:
		return "IDEMPOTENCY_UNKNOWN"
	}
}

// Method is one callable RPC method. It is immutable once its Schema is compiled and is shared by all calls.
type Method struct {
	// ID is dense in its Schema, 0 … Schema.Len()-1, so that what is compiled per method is a slice. It is -1 for an
	// opaque method, which has no schema and is only passed through.
	ID int
	// FullPath is the gRPC request path, "/pkg.Service/Method".
	FullPath string
	// Name is the protobuf full name, "pkg.Service.Method".
	Name protoreflect.FullName
	// Desc is nil for an opaque method.
	Desc protoreflect.MethodDescriptor
	// ClientStreams and ServerStreams say which sides send any number of messages. Both are true for an opaque method.
	ClientStreams, ServerStreams bool
	Effect                       Effect
	// Bindings are the HTTP rules of the method: its google.api.http annotation (or service-config rule) and the rule's
	// additional_bindings, in the order they were written.
	Bindings []*Binding
}

// Opaque returns a method known by path only, for native gRPC pass-through without a schema. The path must be
// "/service/method".
func Opaque(fullPath string) *Method {
	return &Method{ID: -1, FullPath: fullPath, Name: nameOfPath(fullPath), ClientStreams: true, ServerStreams: true}
}

// Unary reports whether the method takes one message and answers with one.
func (m *Method) Unary() bool { return !m.ClientStreams && !m.ServerStreams }

// nameOfPath turns "/pkg.Service/Method" into "pkg.Service.Method".
func nameOfPath(path string) protoreflect.FullName {
	b := []byte(path)
	if len(b) > 0 && b[0] == '/' {
		b = b[1:]
	}
	for i, c := range b {
		if c == '/' {
			b[i] = '.'
		}
	}
	return protoreflect.FullName(b)
}

// Binding is one HTTP rule of a method (google/api/http.proto).
type Binding struct {
	Method *Method
	// ID is dense over all bindings of the Schema.
	ID int
	// Verb is the HTTP method in the case it was written ("GET", or a custom kind); "*" matches every method.
	Verb string
	// Template is the path template as written.
	Template string
	// Vars are the template's variables in the order they appear. A Match holds one value for each.
	Vars []Variable
	// Body says what the HTTP body holds: nothing (BodyNone), the whole request (BodyAll), or BodyField.
	Body BodyKind
	// BodyField is the top-level request field that the body holds; nil unless Body is BodyField.
	BodyField protoreflect.FieldDescriptor
	// ResponseField is the top-level response field sent as the HTTP body; nil for the whole response.
	ResponseField protoreflect.FieldDescriptor
	// MaskField is the field to fill from the members of the body where the client leaves it empty: the only
	// google.protobuf.FieldMask of the request, if the rule is a PATCH whose body is one message. nil otherwise.
	MaskField protoreflect.FieldDescriptor

	template *template
}

// BodyKind says how a binding uses the HTTP request body.
type BodyKind uint8

// The kinds of body: the body clause is absent, "*", or names a field.
const (
	BodyNone BodyKind = iota
	BodyAll
	BodyField
)

// Variable is a path template variable.
type Variable struct {
	// Name is the field path as written, "account.name".
	Name string
	// Path leads from the request message to the bound field; every element but the last is a singular message.
	Path []protoreflect.FieldDescriptor
	// Multi says that the variable may span several segments; then "%2F" in its value stays encoded
	// (google/api/http.proto).
	Multi bool
}
