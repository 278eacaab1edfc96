// Package codec turns JSON text into protobuf wire bytes and wire bytes into JSON text, for types known by descriptor
// only. The JSON form is ProtoJSON (protobuf.dev/programming-guides/json).
//
// # Concurrency
//
// A [Types], and every [Message] and [Field] of it, may be used by any number of goroutines at once.
package codec

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"maps"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
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
	seed     maphash.Seed
	writers  sync.Pool // of *writer
	readers  sync.Pool // of *reader

	mu       sync.Mutex // guards the maps below while tables are compiled
	messages map[protoreflect.MessageDescriptor]*message
	enums    map[protoreflect.EnumDescriptor]*enum

	// Found by name or number in the input and kept: both are bounded by what the resolver knows, not by the input.
	anys       atomic.Pointer[map[string]*message]
	extensions atomic.Pointer[map[extensionKey]*field]
}

type extensionKey struct {
	extendee *message
	number   protowire.Number
}

// NewTypes returns an empty cache over r. A nil r knows no type for Any and no extensions.
func NewTypes(r Resolver) *Types {
	if r == nil {
		r = new(protoregistry.Types)
	}
	t := &Types{
		resolver: r,
		seed:     maphash.MakeSeed(),
		messages: map[protoreflect.MessageDescriptor]*message{},
		enums:    map[protoreflect.EnumDescriptor]*enum{},
	}
	t.anys.Store(&map[string]*message{})
	t.extensions.Store(&map[extensionKey]*field{})
	return t
}

// Message returns the codec of one message type. Call it at load: it compiles the type and all it refers to.
func (t *Types) Message(md protoreflect.MessageDescriptor) *Message {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &Message{t.compile(md)}
}

// Field returns the codec of one field, for a request body or response body that is a single field of the message
// (google.api.http body and response_body) and for path and query parameters.
func (t *Types) Field(fd protoreflect.FieldDescriptor) *Field {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.compile(fd.ContainingMessage())
	if fd.IsExtension() {
		f := &field{}
		t.compileField(f, fd)
		return newField(m, f)
	}
	return newField(m, &m.fields[fd.Index()])
}

func newField(m *message, f *field) *Field {
	element := *f
	element.shape, element.implicit = shapeSingular, false
	return &Field{m, f, m.types.alone(f, false), &element}
}

// anyMessage returns the table of the type named by an Any's type URL. It keeps no part of url.
func (t *Types) anyMessage(url []byte) (*message, error) {
	name := url[bytes.LastIndexByte(url, '/')+1:]
	if m := (*t.anys.Load())[string(name)]; m != nil {
		return m, nil
	}
	mt, err := t.resolver.FindMessageByURL(string(url))
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.compile(mt.Descriptor())
	anys := maps.Clone(*t.anys.Load())
	anys[string(name)] = m
	t.anys.Store(&anys)
	return m, nil
}

// extension returns the extension of m with a number, or nil when there is none.
func (m *message) extension(num protowire.Number) *field {
	if m.ranges == nil || !m.ranges.Has(num) {
		return nil
	}
	key := extensionKey{m, num}
	if f := (*m.types.extensions.Load())[key]; f != nil {
		return f
	}
	xt, err := m.types.resolver.FindExtensionByNumber(m.desc.FullName(), num)
	if err != nil || xt == nil {
		return nil
	}
	return m.addExtension(key, xt.TypeDescriptor().Descriptor())
}

// extensionNamed returns the extension of m with a full name, or nil when there is none.
func (m *message) extensionNamed(name []byte) (*field, error) {
	if m.types == nil {
		return nil, nil
	}
	xt, err := m.types.resolver.FindExtensionByName(protoreflect.FullName(name))
	if err != nil || xt == nil {
		return nil, nil //nolint:nilerr // it is not there: unknown to the caller
	}
	fd := xt.TypeDescriptor().Descriptor()
	if fd.ContainingMessage().FullName() != m.desc.FullName() || m.ranges == nil || !m.ranges.Has(fd.Number()) {
		return nil, fmt.Errorf("%s cannot be extended by %s", m.desc.FullName(), fd.FullName())
	}
	key := extensionKey{m, fd.Number()}
	if f := (*m.types.extensions.Load())[key]; f != nil && f.desc == fd {
		return f, nil
	}
	return m.addExtension(key, fd), nil
}

func (m *message) addExtension(key extensionKey, fd protoreflect.FieldDescriptor) *field {
	t := m.types
	t.mu.Lock()
	defer t.mu.Unlock()
	f := &field{}
	t.compileField(f, fd)
	f.idx = -1
	f.solo = t.alone(f, true)
	extensions := maps.Clone(*t.extensions.Load())
	extensions[key] = f
	t.extensions.Store(&extensions)
	return f
}

// Message is the codec of one message type.
type Message struct {
	m *message
}

// Descriptor returns the message type.
func (m *Message) Descriptor() protoreflect.MessageDescriptor { return m.m.desc }

// Field is the codec of one field of a message.
type Field struct {
	parent  *message
	f       *field
	bare    *message // f alone and without its key
	element *field   // one value of f if that is repeated; none is as good as absent
}

// Descriptor returns the field.
func (f *Field) Descriptor() protoreflect.FieldDescriptor { return f.f.desc }
