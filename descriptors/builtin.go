package descriptors

import (
	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/genproto/googleapis/api/visibility"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/gofeaturespb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/sourcecontextpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/typepb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"google.golang.org/protobuf/types/pluginpb"
)

// builtinOrigin names the linked-in files in errors.
const builtinOrigin = "transom itself"

// builtins returns the linked-in files by path. They stand in for imports that no set has. Those that are always are part
// of every schema, so that an Any or an error detail of their types can be shown whatever the sets hold.
func builtins() map[string]builtin {
	out := map[string]builtin{}
	for _, f := range []protoreflect.FileDescriptor{
		anypb.File_google_protobuf_any_proto,
		durationpb.File_google_protobuf_duration_proto,
		emptypb.File_google_protobuf_empty_proto,
		fieldmaskpb.File_google_protobuf_field_mask_proto,
		structpb.File_google_protobuf_struct_proto,
		timestamppb.File_google_protobuf_timestamp_proto,
		wrapperspb.File_google_protobuf_wrappers_proto,
		code.File_google_rpc_code_proto,
		errdetails.File_google_rpc_error_details_proto,
		status.File_google_rpc_status_proto,
		httpbody.File_google_api_httpbody_proto,
	} {
		out[f.Path()] = builtin{f, true}
	}
	for _, f := range []protoreflect.FileDescriptor{
		descriptorpb.File_google_protobuf_descriptor_proto,
		pluginpb.File_google_protobuf_compiler_plugin_proto,
		gofeaturespb.File_google_protobuf_go_features_proto,
		apipb.File_google_protobuf_api_proto,
		sourcecontextpb.File_google_protobuf_source_context_proto,
		typepb.File_google_protobuf_type_proto,
		annotations.File_google_api_annotations_proto,
		annotations.File_google_api_client_proto,
		annotations.File_google_api_field_behavior_proto,
		annotations.File_google_api_field_info_proto,
		annotations.File_google_api_http_proto,
		annotations.File_google_api_resource_proto,
		annotations.File_google_api_routing_proto,
		visibility.File_google_api_visibility_proto,
		validate.File_buf_validate_validate_proto,
	} {
		out[f.Path()] = builtin{f, false}
	}
	for _, b := range out { // what the built-in files import is built in too
		addImports(out, b.file)
	}
	return out
}

type builtin struct {
	file   protoreflect.FileDescriptor
	always bool
}

func addImports(out map[string]builtin, f protoreflect.FileDescriptor) {
	for i := range f.Imports().Len() {
		imp := f.Imports().Get(i).FileDescriptor
		if _, ok := out[imp.Path()]; !ok && !imp.IsPlaceholder() {
			out[imp.Path()] = builtin{imp, false}
			addImports(out, imp)
		}
	}
}
