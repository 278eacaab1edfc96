package descriptors

import (
	"context"
	"fmt"
	"strings"

	"github.com/jhump/protoreflect/v2/grpcreflect"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// FromReflection asks a gRPC server for its services by server reflection, grpc.reflection.v1 or else v1alpha. The
// reflection service itself is left out. It returns when ctx ends.
func FromReflection(ctx context.Context, conn grpc.ClientConnInterface) (*Set, error) {
	set := &Set{Origin: "server reflection"}
	if t, ok := conn.(interface{ Target() string }); ok {
		set.Origin += " of " + t.Target()
	}
	linked := &protoregistry.Files{}
	for _, b := range builtins() {
		if err := linked.RegisterFile(b.file); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := grpcreflect.NewClientAuto(ctx, conn, grpcreflect.WithFallbackResolvers(linked, &protoregistry.Types{}))
	services, err := c.ListServices()
	if err != nil {
		return nil, fmt.Errorf("%s: list services: %w", set.Origin, err)
	}
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor) error
	add = func(fd protoreflect.FileDescriptor) error {
		if seen[fd.Path()] {
			return nil
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			if err := add(fd.Imports().Get(i).FileDescriptor); err != nil {
				return err
			}
		}
		f, err := normalized(fd)
		if err != nil {
			return fmt.Errorf("%s: file %s: %w", set.Origin, fd.Path(), err)
		}
		set.Files = append(set.Files, f)
		return nil
	}
	for _, name := range services {
		if strings.HasPrefix(string(name), "grpc.reflection.") {
			continue
		}
		fd, err := c.FileContainingSymbol(name)
		if err != nil {
			return nil, fmt.Errorf("%s: service %s: %w", set.Origin, name, err)
		}
		if err := add(fd); err != nil {
			return nil, err
		}
	}
	return set, nil
}
