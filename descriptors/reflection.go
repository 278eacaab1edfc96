package descriptors

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	refpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Limits on what a server may answer.
const (
	maxReflectedFiles   = 50_000
	maxReflectionAnswer = 64 << 20 // bytes of one message: servers send a file with all its imports
)

// FromReflection asks a gRPC server for its services and their files by server reflection: grpc.reflection.v1, or v1alpha
// where the server lacks v1. The reflection service itself is left out, and so are services that the files declare but the
// server does not list. Imports that the server does not know are left to
// Compile if they are linked in and are otherwise dropped, since servers are known to lack files that only hold options.
// It returns at the latest when ctx ends; the origin of the Set is the target of conn.
//
// The client is transom's own because a server must not be able to crash it: the files are only collected here, and
// Compile checks them, circular imports included, as it does those of any source.
func FromReflection(ctx context.Context, conn grpc.ClientConnInterface) (*Set, error) {
	origin := reflectionOrigin(conn)
	files, err := reflectFiles(ctx, conn, "grpc.reflection.v1.ServerReflection")
	if c := status.Code(err); c == codes.Unimplemented || c == codes.Unavailable {
		// Unavailable too: some servers drop the stream of a service that they do not know.
		alpha, alphaErr := reflectFiles(ctx, conn, "grpc.reflection.v1alpha.ServerReflection")
		if alphaErr == nil || c == codes.Unimplemented {
			files, err = alpha, alphaErr
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", origin, err)
	}
	return &Set{Origin: origin, Files: files}, nil
}

// reflectionOrigin names a server in errors.
func reflectionOrigin(conn grpc.ClientConnInterface) string {
	if t, ok := conn.(interface{ Target() string }); ok {
		return "server reflection of " + t.Target()
	}
	return "server reflection"
}

// reflectFiles collects the files of all services over one stream of the given reflection service. The messages of v1 and
// v1alpha are the same on the wire.
func reflectFiles(ctx context.Context, conn grpc.ClientConnInterface, service string) ([]*descriptorpb.FileDescriptorProto, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: "ServerReflectionInfo", ClientStreams: true, ServerStreams: true},
		"/"+service+"/ServerReflectionInfo", grpc.MaxCallRecvMsgSize(maxReflectionAnswer))
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	r := reflector{stream: stream, files: map[string]*descriptorpb.FileDescriptorProto{}, unknown: map[string]bool{}}
	return r.collect()
}

// reflector is one exchange with a reflection service.
type reflector struct {
	stream  grpc.ClientStream
	files   map[string]*descriptorpb.FileDescriptorProto
	queue   []string // imports to look for
	unknown map[string]bool
}

func (r *reflector) collect() ([]*descriptorpb.FileDescriptorProto, error) {
	a, err := r.ask(&refpb.ServerReflectionRequest{MessageRequest: &refpb.ServerReflectionRequest_ListServices{}})
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	if a.GetListServicesResponse() == nil {
		return nil, fmt.Errorf("list services: %w", answerError(a))
	}
	listed := map[string]bool{}
	for _, s := range a.GetListServicesResponse().GetService() {
		if strings.HasPrefix(s.GetName(), "grpc.reflection.") {
			continue
		}
		listed[s.GetName()] = true
		a, err := r.ask(&refpb.ServerReflectionRequest{MessageRequest: &refpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: s.GetName()}})
		if err == nil {
			err = r.add(a)
		}
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", s.GetName(), err)
		}
	}
	linked := builtins()
	for len(r.queue) > 0 {
		path := r.queue[len(r.queue)-1]
		r.queue = r.queue[:len(r.queue)-1]
		if r.files[path] != nil || r.unknown[path] {
			continue
		}
		a, err := r.ask(&refpb.ServerReflectionRequest{MessageRequest: &refpb.ServerReflectionRequest_FileByFilename{FileByFilename: path}})
		if err == nil {
			if err = r.add(a); err != nil && r.files[path] == nil && a.GetErrorResponse() != nil {
				err = nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("file %s: %w", path, err)
		}
		if r.files[path] == nil {
			r.unknown[path] = true
		}
	}
	out := make([]*descriptorpb.FileDescriptorProto, 0, len(r.files))
	for _, f := range r.files {
		dropImports(f, func(path string) bool { _, ok := linked[path]; return r.unknown[path] && !ok })
		served := slices.DeleteFunc(slices.Clone(f.GetService()), func(s *descriptorpb.ServiceDescriptorProto) bool {
			return !listed[strings.TrimPrefix(f.GetPackage()+"."+s.GetName(), ".")]
		})
		if len(served) < len(f.GetService()) {
			f.Service, f.SourceCodeInfo = served, nil // comments are found by index
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *descriptorpb.FileDescriptorProto) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

func (r *reflector) ask(q *refpb.ServerReflectionRequest) (*refpb.ServerReflectionResponse, error) {
	sendErr := r.stream.SendMsg(q) // io.EOF if the stream has ended: RecvMsg then has the status
	a := &refpb.ServerReflectionResponse{}
	if err := r.stream.RecvMsg(a); err != nil {
		return nil, err
	}
	return a, sendErr
}

// add keeps the files of an answer and queues their imports.
func (r *reflector) add(a *refpb.ServerReflectionResponse) error {
	if a.GetFileDescriptorResponse() == nil {
		return answerError(a)
	}
	for _, b := range a.GetFileDescriptorResponse().GetFileDescriptorProto() {
		f := &descriptorpb.FileDescriptorProto{}
		if err := (proto.UnmarshalOptions{AllowPartial: true, Resolver: protoregistry.GlobalTypes}).Unmarshal(b, f); err != nil {
			if where := wireFault(f.ProtoReflect().Descriptor(), b, 0, "", 0); where != nil {
				err = where
			}
			return fmt.Errorf("a file descriptor is malformed: %w", err)
		}
		if f.GetName() == "" {
			return errors.New("a file descriptor has no name")
		}
		if r.files[f.GetName()] != nil {
			continue
		}
		if len(r.files) == maxReflectedFiles {
			return fmt.Errorf("the server has more than %d files", maxReflectedFiles)
		}
		r.files[f.GetName()] = f
		r.queue = append(r.queue, f.GetDependency()...)
	}
	return nil
}

// answerError says why an answer is not what was asked for.
func answerError(a *refpb.ServerReflectionResponse) error {
	if e := a.GetErrorResponse(); e != nil {
		return status.Error(codes.Code(uint32(e.GetErrorCode())), e.GetErrorMessage())
	}
	return fmt.Errorf("the server sent an unexpected answer, %T", a.GetMessageResponse())
}

// dropImports removes the imports of f that drop names.
func dropImports(f *descriptorpb.FileDescriptorProto, drop func(path string) bool) {
	var kept []string
	var public, weak []int32
	for i, path := range f.GetDependency() {
		if drop(path) {
			continue
		}
		if slices.Contains(f.GetPublicDependency(), int32(i)) {
			public = append(public, int32(len(kept)))
		}
		if slices.Contains(f.GetWeakDependency(), int32(i)) {
			weak = append(weak, int32(len(kept)))
		}
		kept = append(kept, path)
	}
	f.Dependency, f.PublicDependency, f.WeakDependency = kept, public, weak
}
