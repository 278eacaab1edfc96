package descriptors

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
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
	compiled, faults := compileProtos(ctx, roots, files)
	if len(faults) > 0 && len(files) > 1 {
		// The compiler gives up at the first file that fails: look at each by itself.
		faults = nil
		for _, f := range files {
			_, err := compileProtos(ctx, roots, []string{f})
			faults = append(faults, err...)
		}
	}
	if len(faults) > 0 {
		slices.SortStableFunc(faults, comparePositions)
		faults = slices.CompactFunc(faults, func(a, b error) bool { return a.Error() == b.Error() })
		return nil, fmt.Errorf("proto sources: %w", errors.Join(faults...))
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

// compileProtos compiles files, or returns all faults that the compiler reports.
func compileProtos(ctx context.Context, roots, files []string) (linker.Files, []error) {
	linked := builtins()
	source := protocompile.SourceResolver{ImportPaths: roots}
	var faults []error
	c := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard,
		MaxParallelism: 1, // so that the faults are the same each time
		Resolver: protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
			found, err := source.FindFileByPath(path)
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return found, err
			}
			if b, ok := linked[path]; ok {
				return protocompile.SearchResult{Desc: b.file}, nil
			}
			return found, fmt.Errorf("file %q is not in %s", path, strings.Join(roots, ", "))
		}),
		Reporter: reporter.NewReporter(func(err reporter.ErrorWithPos) error {
			faults = append(faults, err)
			return nil
		}, nil),
	}
	compiled, err := c.Compile(ctx, files...)
	if err != nil && len(faults) == 0 {
		faults = []error{err}
	}
	return compiled, faults
}

// comparePositions orders faults by file, line and column; those without a position come first.
func comparePositions(a, b error) int {
	var at, bt reporter.ErrorWithPos
	switch okA, okB := errors.As(a, &at), errors.As(b, &bt); {
	case !okA && !okB:
		return strings.Compare(a.Error(), b.Error())
	case !okA:
		return -1
	case !okB:
		return 1
	}
	ap, bp := at.GetPosition(), bt.GetPosition()
	return cmp.Or(strings.Compare(ap.Filename, bp.Filename), cmp.Compare(ap.Line, bp.Line), cmp.Compare(ap.Col, bp.Col))
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
