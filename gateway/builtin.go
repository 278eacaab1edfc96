package gateway

import (
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/descriptors"
	"transom/rpc"
)

// builtinSet describes the services that transom answers itself on the data port.
func builtinSet() *descriptors.Set {
	set := &descriptors.Set{Origin: "transom's own services"}
	for _, fd := range []protoreflect.FileDescriptor{
		healthpb.File_grpc_health_v1_health_proto,
		reflectionpb.File_grpc_reflection_v1_reflection_proto,
		reflectionalphapb.File_grpc_reflection_v1alpha_reflection_proto,
	} {
		set.Files = append(set.Files, protodesc.ToFileDescriptorProto(fd))
	}
	return set
}

// builtinHandlers answer grpc.health.v1 and gRPC server reflection, by gRPC path, from the schema in force.
func builtinHandlers(schema *descriptors.Schema, hs *health.Server) map[string]rpc.Handler {
	opts := reflection.ServerOptions{
		Services:           servicesOf{schema},
		DescriptorResolver: schema.Files(),
		ExtensionResolver:  extensionsOf{schema.Types(), schema.Files()},
	}
	v1, alpha := reflection.NewServerV1(opts), reflection.NewServer(opts)
	return map[string]rpc.Handler{
		healthpb.Health_Check_FullMethodName: unaryHandler(hs.Check),
		healthpb.Health_List_FullMethodName:  unaryHandler(hs.List),
		healthpb.Health_Watch_FullMethodName: streamHandler(func(ss grpc.ServerStream) error {
			req := new(healthpb.HealthCheckRequest)
			if err := ss.RecvMsg(req); err != nil {
				return err
			}
			return hs.Watch(req, &grpc.GenericServerStream[healthpb.HealthCheckRequest, healthpb.HealthCheckResponse]{ServerStream: ss})
		}),
		reflectionpb.ServerReflection_ServerReflectionInfo_FullMethodName: streamHandler(func(ss grpc.ServerStream) error {
			return v1.ServerReflectionInfo(&grpc.GenericServerStream[reflectionpb.ServerReflectionRequest, reflectionpb.ServerReflectionResponse]{ServerStream: ss})
		}),
		reflectionalphapb.ServerReflection_ServerReflectionInfo_FullMethodName: streamHandler(func(ss grpc.ServerStream) error {
			return alpha.ServerReflectionInfo(&grpc.GenericServerStream[reflectionalphapb.ServerReflectionRequest, reflectionalphapb.ServerReflectionResponse]{ServerStream: ss}) //nolint:staticcheck // many clients still ask the alpha version first
		}),
	}
}

// isHealth reports whether m is of grpc.health.v1, which policies do not hold for: what stands in front of the gateway asks
// it without credentials, and it tells no more than up or down.
func isHealth(m *descriptors.Method) bool {
	return strings.HasPrefix(m.FullPath, "/"+healthpb.Health_ServiceDesc.ServiceName+"/")
}

// servicesOf lists the services of a schema for reflection.
type servicesOf struct{ schema *descriptors.Schema }

// GetServiceInfo implements reflection.ServiceInfoProvider.
func (s servicesOf) GetServiceInfo() map[string]grpc.ServiceInfo {
	info := map[string]grpc.ServiceInfo{}
	for _, m := range s.schema.Methods() {
		info[string(m.Desc.Parent().FullName())] = grpc.ServiceInfo{}
	}
	return info
}

// extensionsOf finds the extensions of a schema for reflection.
type extensionsOf struct {
	*dynamicpb.Types
	files *protoregistry.Files
}

// declarations is what files and messages have in common.
type declarations interface {
	Extensions() protoreflect.ExtensionDescriptors
	Messages() protoreflect.MessageDescriptors
}

// RangeExtensionsByMessage implements reflection.ExtensionResolver.
func (e extensionsOf) RangeExtensionsByMessage(message protoreflect.FullName, f func(protoreflect.ExtensionType) bool) {
	more := true
	var visit func(scope declarations)
	visit = func(scope declarations) {
		for i := 0; more && i < scope.Extensions().Len(); i++ {
			if xd := scope.Extensions().Get(i); xd.ContainingMessage().FullName() == message {
				more = f(dynamicpb.NewExtensionType(xd))
			}
		}
		for i := 0; more && i < scope.Messages().Len(); i++ {
			visit(scope.Messages().Get(i))
		}
	}
	e.files.RangeFiles(func(fd protoreflect.FileDescriptor) bool {
		visit(fd)
		return more
	})
}

// announce makes grpc.health.v1 say that every service of the schema, and the whole ("") is up.
func announce(hs *health.Server, schema *descriptors.Schema, ready bool) {
	st := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		st = healthpb.HealthCheckResponse_SERVING
	}
	hs.SetServingStatus("", st)
	for name := range (servicesOf{schema}).GetServiceInfo() {
		hs.SetServingStatus(name, st)
	}
}
