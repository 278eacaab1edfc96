package bank

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	bankv1 "transom/proto/bank/v1"
)

// DescriptorSet returns the bank's FileDescriptorSet in wire form, as `buf build` or `protoc --include_imports
// --descriptor_set_out` write it: every imported file, each before those that import it. The same bytes on every call.
func DescriptorSet() []byte {
	var set descriptorpb.FileDescriptorSet
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(fd))
	}
	add(bankv1.File_bank_v1_bank_proto)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&set)
	if err != nil { // descriptors linked into the binary always marshal
		panic(err)
	}
	return b
}
