package rpctest

import (
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"transom/descriptors"
)

// Methods are those that TestStream calls, one of each kind. All take and answer google.protobuf.BytesValue.
type Methods struct {
	Unary, Server, Client, Bidi *descriptors.Method
}

// NewMethods makes the methods, without bindings; a listener that needs routes loads Files.
func NewMethods() Methods {
	fd, err := protodesc.NewFiles(Files())
	if err != nil {
		panic(err) // Files is a constant in all but name
	}
	method := func(name protoreflect.Name) *descriptors.Method {
		d, err := fd.FindDescriptorByName("rpctest.Echo." + protoreflect.FullName(name))
		if err != nil {
			panic(err)
		}
		m := d.(protoreflect.MethodDescriptor)
		return &descriptors.Method{
			FullPath: "/rpctest.Echo/" + string(name), Name: m.FullName(), Desc: m,
			ClientStreams: m.IsStreamingClient(), ServerStreams: m.IsStreamingServer(),
		}
	}
	return Methods{method("Unary"), method("Server"), method("Client"), method("Bidi")}
}

// Files is the descriptor set of the methods with all that it imports. Each method has the rule
// post: "/rpctest/{unary,server,client,bidi}" body: "*", so that a JSON body is a base64 string. A fifth, Get,
// is like Unary but without side effects and without a rule.
func Files() *descriptorpb.FileDescriptorSet {
	method := func(name, path string, client, server bool) *descriptorpb.MethodDescriptorProto {
		opts := &descriptorpb.MethodOptions{}
		if path == "" {
			opts.IdempotencyLevel = descriptorpb.MethodOptions_NO_SIDE_EFFECTS.Enum()
		} else {
			proto.SetExtension(opts, annotations.E_Http, &annotations.HttpRule{
				Pattern: &annotations.HttpRule_Post{Post: path}, Body: "*",
			})
		}
		return &descriptorpb.MethodDescriptorProto{
			Name:            proto.String(name),
			InputType:       proto.String(".google.protobuf.BytesValue"),
			OutputType:      proto.String(".google.protobuf.BytesValue"),
			ClientStreaming: proto.Bool(client),
			ServerStreaming: proto.Bool(server),
			Options:         opts,
		}
	}
	echo := &descriptorpb.FileDescriptorProto{
		Name:       proto.String("rpctest/echo.proto"),
		Package:    proto.String("rpctest"),
		Syntax:     proto.String("proto3"),
		Dependency: []string{"google/api/annotations.proto", "google/protobuf/wrappers.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{
			Name: proto.String("Echo"),
			Method: []*descriptorpb.MethodDescriptorProto{
				method("Unary", "/rpctest/unary", false, false),
				method("Server", "/rpctest/server", false, true),
				method("Client", "/rpctest/client", true, false),
				method("Bidi", "/rpctest/bidi", true, true),
				method("Get", "", false, false),
			},
		}},
	}
	return &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{
		protodesc.ToFileDescriptorProto(descriptorpb.File_google_protobuf_descriptor_proto),
		protodesc.ToFileDescriptorProto(annotations.File_google_api_http_proto),
		protodesc.ToFileDescriptorProto(annotations.File_google_api_annotations_proto),
		protodesc.ToFileDescriptorProto(wrapperspb.File_google_protobuf_wrappers_proto),
		echo,
	}}
}

// Value is a google.protobuf.BytesValue that holds payload, as wire bytes.
func Value(payload []byte) []byte {
	if len(payload) == 0 {
		return []byte{}
	}
	b := protowire.AppendTag(make([]byte, 0, len(payload)+8), 1, protowire.BytesType)
	return protowire.AppendBytes(b, payload)
}
