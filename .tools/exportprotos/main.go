// Command exportprotos writes the .proto sources of the public protos that transom's own import, from the descriptors
// that their published Go packages carry, so that the proto compiler finds them without a registry of its own and no
// copy of them lives here. Its argument is the directory to write to.
package main

import (
	"fmt"
	"os"

	validatepb "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: exportprotos DIRECTORY")
		os.Exit(2)
	}
	if err := export(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "exportprotos:", err)
		os.Exit(1)
	}
}

// export writes every file under its import path below dir.
func export(dir string) error {
	files := []protoreflect.FileDescriptor{
		validatepb.File_buf_validate_validate_proto,
		annotations.File_google_api_annotations_proto,
		annotations.File_google_api_http_proto,
		httpbody.File_google_api_httpbody_proto,
		status.File_google_rpc_status_proto,
		code.File_google_rpc_code_proto,
	}
	var p protoprint.Printer
	return p.PrintProtosToFileSystem(files, dir)
}
