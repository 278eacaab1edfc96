package bank

import (
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/protoadapt"
)

type detail = protoadapt.MessageV1

// invalid is INVALID_ARGUMENT about one request field, with a BadRequest.
func invalid(field, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	return statusWith(codes.InvalidArgument, field+": "+what, &errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: what}},
	})
}

// notFound is NOT_FOUND with a ResourceInfo.
func notFound(kind, name string) error {
	return statusWith(codes.NotFound, fmt.Sprintf("%s %q does not exist", kind, name), &errdetails.ResourceInfo{
		ResourceType: "bank.v1." + kind, ResourceName: name, Description: "It does not exist.",
	})
}

// refused is FAILED_PRECONDITION with an ErrorInfo for machines and a Help for people.
func refused(reason, msg string, metadata map[string]string) error {
	return statusWith(codes.FailedPrecondition, msg,
		&errdetails.ErrorInfo{Reason: reason, Domain: "bank.example", Metadata: metadata},
		&errdetails.Help{Links: []*errdetails.Help_Link{
			{Description: "What to do", Url: "https://bank.example/help/" + reason},
		}})
}
