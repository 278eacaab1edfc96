package descriptors

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Set is the protobuf files of one source. Compile does not change it; it may be shared.
type Set struct {
	// Origin says in errors where the files came from: a path, "reflection of TARGET".
	Origin string
	Files  []*descriptorpb.FileDescriptorProto
}

// FromFile reads a binary google.protobuf.FileDescriptorSet, as written by protoc --include_imports -o or buf build -o.
func FromFile(path string) (*Set, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("descriptor set: %w", err)
	}
	return FromBytes(path, b)
}

// FromBytes parses a binary google.protobuf.FileDescriptorSet; name is its origin in errors. A malformed set is refused
// with the offset of the innermost fault, and the usual mistakes (text, JSON, .proto source, a compressed set) by name.
func FromBytes(name string, b []byte) (*Set, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("descriptor set %s: is empty", name)
	}
	fds := &descriptorpb.FileDescriptorSet{}
	err := proto.UnmarshalOptions{AllowPartial: true, Resolver: protoregistry.GlobalTypes}.Unmarshal(b, fds)
	if mistake := notASet(b); mistake != "" && (err != nil || len(fds.GetFile()) == 0) {
		return nil, fmt.Errorf("descriptor set %s: %s; a binary FileDescriptorSet is needed (protoc --include_imports -o FILE)", name, mistake)
	}
	if err != nil {
		if where := wireFault(fds.ProtoReflect().Descriptor(), b, 0, "", 0); where != nil {
			err = where
		}
		return nil, fmt.Errorf("descriptor set %s: %w", name, err)
	}
	if len(fds.GetFile()) == 0 {
		return nil, fmt.Errorf("descriptor set %s: holds no files", name)
	}
	var faults []error
	for i, f := range fds.GetFile() {
		if f.GetName() == "" {
			faults = append(faults, fmt.Errorf("descriptor set %s: file %d has no name", name, i))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return &Set{Origin: name, Files: fds.GetFile()}, nil
}

// notASet guesses what b is if it is not a binary descriptor set, or returns "".
func notASet(b []byte) string {
	head := b[:min(len(b), 512)]
	trimmed := bytes.TrimSpace(head)
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		return "is gzip-compressed"
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "is zstd-compressed"
	case bytes.HasPrefix(b, []byte("PK\x03\x04")):
		return "is a ZIP archive"
	case bytes.ContainsFunc(bytes.TrimRight(head, "\xff\xfe\xfd\xfc"), func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' }):
		return ""
	case bytes.HasPrefix(trimmed, []byte("{")):
		return "is JSON"
	case bytes.HasPrefix(trimmed, []byte("file")), bytes.HasPrefix(trimmed, []byte("# proto-file")):
		return "is in protobuf text format"
	case bytes.Contains(head, []byte("syntax")) || bytes.Contains(head, []byte("edition")) || bytes.Contains(head, []byte("package ")):
		return "is .proto source"
	case len(trimmed) > 0 && b[0] != '\n' && utf8.Valid(trimmed):
		return "is text"
	}
	return ""
}

// wireFault finds the innermost fault of b as an encoding of md. b begins at offset base of the input; path names it.
func wireFault(md protoreflect.MessageDescriptor, b []byte, base int, path string, depth int) error {
	at := func() string {
		if path == "" {
			return ""
		}
		return " (in " + strings.TrimPrefix(path, ".") + ")"
	}
	if depth > protowire.DefaultRecursionLimit {
		return fmt.Errorf("nested too deeply at byte %d%s", base, at())
	}
	counts := map[protowire.Number]int{}
	for pos := 0; pos < len(b); {
		num, typ, n := protowire.ConsumeTag(b[pos:])
		if n < 0 {
			return fmt.Errorf("malformed field tag at byte %d%s: %w", base+pos, at(), protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(num, typ, b[pos+n:])
		fd := md.Fields().ByNumber(num)
		name := fmt.Sprintf("field %d", num)
		if fd != nil {
			name = string(fd.Name())
		}
		if size < 0 {
			return fmt.Errorf("%s at byte %d%s: %w", name, base+pos, at(), protowire.ParseError(size))
		}
		if fd != nil && typ == protowire.BytesType {
			val, n2 := protowire.ConsumeBytes(b[pos+n:])
			start := base + pos + n + n2 - len(val)
			elem := "." + name
			if fd.IsList() {
				elem = fmt.Sprintf(".%s[%d]", name, counts[num])
				counts[num]++
			}
			if fd.Kind() == protoreflect.MessageKind {
				if err := wireFault(fd.Message(), val, start, path+elem, depth+1); err != nil {
					return err
				}
			}
		}
		pos += n + size
	}
	return nil
}
