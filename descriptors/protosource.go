package descriptors

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/reporter"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// FromProto compiles .proto sources. roots are the directories that imports are relative to (protoc's -I); files are named
// relative to a root, with slashes, and all .proto files under the roots are taken if there are none. Imports that no root
// has are resolved to the linked-in files of google.protobuf, google.api, google.rpc and buf.validate. All faults of all
// files are reported, joined, each as file:line:column.
func FromProto(ctx context.Context, roots, files []string) (*Set, error) {
	if len(roots) == 0 {
		roots = []string{"."}
	}
	if len(files) == 0 {
		var err error
		if files, err = protoFiles(roots); err != nil {
			return nil, err
		}
	}
	linked := builtins()
	var faults []error
	c := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard,
		MaxParallelism: 1, // so that the order of faults does not change
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: roots},
			protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
				if b, ok := linked[path]; ok {
					return protocompile.SearchResult{Desc: b.file}, nil
				}
				return protocompile.SearchResult{}, protoregistry.NotFound
			}),
		},
		Reporter: reporter.NewReporter(func(err reporter.ErrorWithPos) error {
			faults = append(faults, err)
			return nil
		}, nil),
	}
	compiled, err := c.Compile(ctx, files...)
	if len(faults) > 0 {
		return nil, fmt.Errorf("proto sources: %w", errors.Join(faults...))
	}
	if err != nil {
		return nil, fmt.Errorf("proto sources in %s: %w", strings.Join(roots, ", "), err)
	}
	set := &Set{Origin: "proto sources in " + strings.Join(roots, ", ")}
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
			return fmt.Errorf("file %s: %w", fd.Path(), err)
		}
		set.Files = append(set.Files, f)
		return nil
	}
	for _, fd := range compiled {
		if err := add(fd); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// normalized returns the proto of fd with the options of linked-in extensions resolved to their generated types.
func normalized(fd protoreflect.FileDescriptor) (*descriptorpb.FileDescriptorProto, error) {
	from := protodesc.ToFileDescriptorProto(fd)
	if r, ok := fd.(interface {
		FileDescriptorProto() *descriptorpb.FileDescriptorProto
	}); ok {
		from = r.FileDescriptorProto() // as compiled
	}
	b, err := proto.MarshalOptions{AllowPartial: true, Deterministic: true}.Marshal(from)
	if err != nil {
		return nil, err
	}
	out := &descriptorpb.FileDescriptorProto{}
	return out, proto.UnmarshalOptions{AllowPartial: true, Resolver: protoregistry.GlobalTypes}.Unmarshal(b, out)
}

// protoFiles lists the .proto files under roots, each relative to its root.
func protoFiles(roots []string) ([]string, error) {
	var files []string
	for _, root := range roots {
		err := fs.WalkDir(os.DirFS(root), ".", func(p string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir():
				if strings.HasPrefix(d.Name(), ".") && p != "." {
					return fs.SkipDir
				}
			case path.Ext(p) == ".proto":
				files = append(files, p)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("proto sources: %w", err)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("proto sources: no .proto file in %s", strings.Join(roots, ", "))
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}
