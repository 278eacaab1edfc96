package bank

import (
	"context"
	"encoding/base64"
	"io"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	bankv1 "transom/proto/bank/v1"
)

// diagnostics implements bank.v1.Diagnostics.
type diagnostics struct {
	bankv1.UnimplementedDiagnosticsServer

	bank *Bank
}

// Echo implements bank.v1.Diagnostics.
func (*diagnostics) Echo(_ context.Context, req *bankv1.Everything) (*bankv1.Everything, error) {
	return req, nil
}

// Unbound implements bank.v1.Diagnostics.
func (*diagnostics) Unbound(_ context.Context, req *bankv1.Everything) (*bankv1.Everything, error) {
	return req, nil
}

// Slow implements bank.v1.Diagnostics.
func (s *diagnostics) Slow(ctx context.Context, req *bankv1.SlowRequest) (*bankv1.SlowResponse, error) {
	start := time.Now()
	if err := sleep(ctx, req.GetDelay().AsDuration()); err != nil {
		return nil, err
	}
	return &bankv1.SlowResponse{Took: durationpb.New(time.Since(start)), Server: s.bank.cfg.Name}, nil
}

// Fail implements bank.v1.Diagnostics.
func (*diagnostics) Fail(_ context.Context, req *bankv1.FailRequest) (*bankv1.FailResponse, error) {
	if err := asked(req); err != nil {
		return nil, err
	}
	return &bankv1.FailResponse{}, nil
}

// FailLate implements bank.v1.Diagnostics.
func (*diagnostics) FailLate(req *bankv1.FailRequest, stream grpc.ServerStreamingServer[bankv1.FailResponse]) error {
	for i := range req.GetAfterMessages() {
		if err := stream.Send(&bankv1.FailResponse{Sequence: i + 1}); err != nil {
			return err
		}
	}
	return asked(req)
}

// asked is the status that req asks for.
func asked(req *bankv1.FailRequest) error {
	st := &spb.Status{Code: req.GetCode(), Message: req.GetMessage()}
	if req.GetDetails() {
		for _, d := range everyDetail() {
			if a, err := anypb.New(protoadapt.MessageV2Of(d)); err == nil {
				st.Details = append(st.Details, a)
			}
		}
	}
	if req.GetUnknownDetail() {
		st.Details = append(st.Details, &anypb.Any{TypeUrl: "type.googleapis.com/bank.v1.NobodyKnows", Value: []byte{0x0a, 0x01, 'x'}})
	}
	return status.FromProto(st).Err()
}

// everyDetail is one of each message of google/rpc/error_details.proto.
func everyDetail() []detail {
	return []detail{
		&errdetails.ErrorInfo{Reason: "ASKED_FOR", Domain: "bank.example", Metadata: map[string]string{"key": "value"}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)},
		&errdetails.DebugInfo{StackEntries: []string{"one", "two"}, Detail: "for the bank's own eyes"},
		&errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "customers/1", Description: "too many"}}},
		&errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{Type: "TOS", Subject: "customers/1", Description: "not accepted"}}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "code", Description: "is not OK"}}},
		&errdetails.RequestInfo{RequestId: "r-1", ServingData: "none"},
		&errdetails.ResourceInfo{ResourceType: "bank.v1.Account", ResourceName: "customers/1/accounts/1", Owner: "customers/1"},
		&errdetails.Help{Links: []*errdetails.Help_Link{{Description: "read on", Url: "https://bank.example/help"}}},
		&errdetails.LocalizedMessage{Locale: "de", Message: "So gewünscht."},
	}
}

// Metadata implements bank.v1.Diagnostics.
func (s *diagnostics) Metadata(ctx context.Context, req *bankv1.MetadataRequest) (*bankv1.MetadataResponse, error) {
	header, err := toMetadata("header", req.GetHeader())
	if err != nil {
		return nil, err
	}
	trailer, err := toMetadata("trailer", req.GetTrailer())
	if err != nil {
		return nil, err
	}
	if err := grpc.SetHeader(ctx, header); err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, trailer); err != nil {
		return nil, err
	}
	resp := &bankv1.MetadataResponse{Metadata: map[string]*bankv1.MetadataResponse_Values{}, Server: s.bank.cfg.Name}
	md, _ := metadata.FromIncomingContext(ctx)
	for key, values := range md {
		vs := &bankv1.MetadataResponse_Values{}
		for _, v := range values {
			if strings.HasSuffix(key, "-bin") {
				v = base64.StdEncoding.EncodeToString([]byte(v))
			}
			vs.Values = append(vs.Values, v)
		}
		resp.Metadata[key] = vs
	}
	if deadline, ok := ctx.Deadline(); ok {
		resp.Timeout = durationpb.New(time.Until(deadline))
	}
	if p, ok := peer.FromContext(ctx); ok {
		resp.Peer = p.Addr.String()
	}
	return resp, nil
}

// toMetadata makes metadata of a request's map; values of "-bin" keys are base64.
func toMetadata(field string, in map[string]string) (metadata.MD, error) {
	md := metadata.MD{}
	for key, value := range in {
		if key == "" || key != strings.ToLower(key) || strings.HasPrefix(key, "grpc-") || key[0] == ':' {
			return nil, invalid(field, "%q can't be a metadata key", key)
		}
		if strings.HasSuffix(key, "-bin") {
			b, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return nil, invalid(field, "%q: %v", key, err)
			}
			value = string(b)
		}
		md.Append(key, value)
	}
	return md, nil
}

// Generate implements bank.v1.Diagnostics.
func (*diagnostics) Generate(req *bankv1.GenerateRequest, stream grpc.ServerStreamingServer[bankv1.GenerateResponse]) error {
	if n := req.GetSizeBytes(); n < 0 || n > 64<<20 {
		return invalid("size_bytes", "%d is outside 0 … %d", n, 64<<20)
	}
	payload, err := io.ReadAll(Content(int64(req.GetSizeBytes())))
	if err != nil {
		return err
	}
	for i := range req.GetCount() {
		if err := stream.Send(&bankv1.GenerateResponse{Sequence: i + 1, Payload: payload}); err != nil {
			return err
		}
	}
	return nil
}
