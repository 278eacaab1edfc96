package transcoder_test

import (
	"context"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/descriptors"
	"transom/transcoder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// schema compiles testdata/items.proto once.
var schema = sync.OnceValues(func() (*descriptors.Schema, error) {
	set, err := descriptors.FromProto(context.Background(), []string{"testdata"}, []string{"items.proto"})
	if err != nil {
		return nil, err
	}
	return descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
})

func plans(t testing.TB, o transcoder.Options) (*descriptors.Schema, *transcoder.Plans) {
	t.Helper()
	s, err := schema()
	if err != nil {
		t.Fatal(err)
	}
	ps, err := transcoder.NewPlans(s, o)
	if err != nil {
		t.Fatal(err)
	}
	return s, ps
}

func method(t testing.TB, s *descriptors.Schema, name string) *descriptors.Method {
	t.Helper()
	m, ok := s.Method("/items.v1.Items/" + name)
	if !ok {
		t.Fatalf("no method %s", name)
	}
	return m
}

// read parses wire bytes as the message type.
func read(t testing.TB, md protoreflect.MessageDescriptor, wire []byte) proto.Message {
	t.Helper()
	m := dynamicpb.NewMessage(md)
	if err := proto.Unmarshal(wire, m); err != nil {
		t.Fatalf("the wire form %x cannot be parsed: %v", wire, err)
	}
	return m
}

// fromJSON parses JSON as the message type.
func fromJSON(t testing.TB, s *descriptors.Schema, md protoreflect.MessageDescriptor, text string) proto.Message {
	t.Helper()
	m := dynamicpb.NewMessage(md)
	if err := (protojson.UnmarshalOptions{Resolver: s.Types()}).Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

// toJSON is a message for people to read.
func toJSON(m proto.Message) string {
	b, err := protojson.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
