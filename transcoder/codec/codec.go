// Package codec turns JSON text into protobuf wire bytes and wire bytes into JSON text, for types known by descriptor
// only. The JSON form is ProtoJSON (protobuf.dev/programming-guides/json).
//
// # Concurrency
//
// A [Types], and every [Message] and [Field] of it, may be used by any number of goroutines at once.
package codec

import (
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Options say how a message is written to and read from JSON. The zero value is ProtoJSON as the specification has it.
// A nil *Options is the zero value.
type Options struct {
	// EmitDefaults writes fields without presence that hold their default, and empty lists and maps.
	EmitDefaults bool
	// ProtoNames writes field names as in the .proto file instead of lowerCamelCase. Both are read either way.
	ProtoNames bool
	// EnumNumbers writes enum values as numbers.
	EnumNumbers bool
	// Int64Numbers writes 64-bit integers as JSON numbers instead of strings. Many clients lose precision above 2^53.
	Int64Numbers bool
	// DiscardUnknown reads past unknown fields and unknown enum names instead of refusing them.
	DiscardUnknown bool
	// MaxDepth limits how deeply objects and arrays may nest; 0 means 100.
	MaxDepth int
}

// Resolver finds the types inside google.protobuf.Any and extensions. [google.golang.org/protobuf/types/dynamicpb.Types]
// is one.
type Resolver interface {
	protoregistry.MessageTypeResolver
	protoregistry.ExtensionTypeResolver
}

// Types compiles and keeps the tables of message types.
type Types struct {
	resolver Resolver
}

// NewTypes returns an empty cache over r. A nil r knows no type for Any and no extensions.
func NewTypes(r Resolver) *Types {
	if r == nil {
		r = new(protoregistry.Types)
	}
	return &Types{resolver: r}
}

// Message returns the codec of one message type. Call it at load: it compiles the type and all it refers to.
func (t *Types) Message(md protoreflect.MessageDescriptor) *Message { return &Message{t, md} }

// Field returns the codec of one field, for a request body or response body that is a single field of the message
// (google.api.http body and response_body) and for path and query parameters.
func (t *Types) Field(fd protoreflect.FieldDescriptor) *Field {
	return &Field{t.Message(fd.ContainingMessage()), fd}
}

// Message is the codec of one message type.
type Message struct {
	types *Types
	desc  protoreflect.MessageDescriptor
}

// Descriptor returns the message type.
func (m *Message) Descriptor() protoreflect.MessageDescriptor { return m.desc }

// Field is the codec of one field of a message.
type Field struct {
	parent *Message
	desc   protoreflect.FieldDescriptor
}

// Descriptor returns the field.
func (f *Field) Descriptor() protoreflect.FieldDescriptor { return f.desc }
