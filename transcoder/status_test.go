package transcoder_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"transom/transcoder"
)

// Case 90, and 83: what gRPC does not define is Unknown.
func TestHTTPStatus(t *testing.T) {
	want := []int{200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401, 500, 500}
	for c, http := range want {
		if got := transcoder.HTTPStatus(codes.Code(c)); got != http {
			t.Errorf("code %d: got %d, want %d", c, got, http)
		}
	}
	if got := transcoder.CodeName(99); got != "UNKNOWN" {
		t.Errorf("code 99 is named %q, want UNKNOWN", got)
	}
}

func TestHTTPStatusOf(t *testing.T) {
	tooLarge := fmt.Errorf("wrapped: %w", transcoder.HTTPError(413, codes.ResourceExhausted, "body exceeds 1 MiB"))
	for _, c := range []struct {
		err  error
		http int
		code codes.Code
	}{
		{nil, 200, codes.OK},
		{tooLarge, 413, codes.ResourceExhausted},
		{status.Error(codes.NotFound, "x"), 404, codes.NotFound},
		{errors.New("x"), 500, codes.Unknown},
	} {
		if got := transcoder.HTTPStatusOf(c.err); got != c.http {
			t.Errorf("%v: got %d, want %d", c.err, got, c.http)
		}
		if got := status.Code(c.err); got != c.code {
			t.Errorf("%v: got %v, want %v", c.err, got, c.code)
		}
	}
}

func withDetails(t testing.TB) *status.Status {
	t.Helper()
	known, err := anypb.New(&errdetails.ErrorInfo{Reason: "R", Domain: "d"})
	if err != nil {
		t.Fatal(err)
	}
	return status.FromProto(&spb.Status{Code: 5, Message: "no \"x\"\n", Details: []*anypb.Any{
		known,
		{TypeUrl: "type.googleapis.com/other.v1.Unknown", Value: []byte{8, 1}},
		{TypeUrl: "type.googleapis.com/google.rpc.ErrorInfo", Value: []byte{0xFF}},
	}})
}

// Cases 81 and 91.
func TestAppendStatus(t *testing.T) {
	const details = `[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"R","domain":"d"},` +
		`{"@type":"type.googleapis.com/other.v1.Unknown","value":"CAE="},` +
		`{"@type":"type.googleapis.com/google.rpc.ErrorInfo","value":"/w=="}]`
	_, ps := plans(t, transcoder.Options{})
	got := string(ps.AppendStatus([]byte("kept"), withDetails(t), 404))
	if want := `kept{"code":5,"message":"no \"x\"\n","details":` + details + `}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	_, ps = plans(t, transcoder.Options{ErrorShape: transcoder.ErrorAIP193})
	got = string(ps.AppendStatus(nil, withDetails(t), 404))
	if want := `{"error":{"code":404,"message":"no \"x\"\n","status":"NOT_FOUND","details":` + details + `}}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var none *transcoder.Plans
	got = string(none.AppendStatus(nil, status.New(99, "x"), 500))
	if want := `{"code":2,"message":"x","details":[]}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Cases 114 and 115.
func TestAppendConnectEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		st   *status.Status
		md   metadata.MD
		want string
	}{
		{"ok", status.New(codes.OK, ""), nil, `{}`},
		{"ok with trailers", status.New(codes.OK, ""), metadata.MD{"x-a": {"1", "2"}, "grpc-status": {"0"}}, `{"metadata":{"x-a":["1","2"]}}`},
		{"error", status.New(codes.Canceled, ""), nil, `{"error":{"code":"canceled"}}`},
		{"error with trailers", status.New(codes.Internal, "m"), metadata.MD{"a-bin": {"\x00"}}, `{"error":{"code":"internal","message":"m"},"metadata":{"a-bin":["AA"]}}`},
		{"details", withDetails(t), nil, `{"error":{"code":"not_found","message":"no \"x\"\n","details":[{"type":"google.rpc.ErrorInfo","value":"CgFSEgFk"},{"type":"other.v1.Unknown","value":"CAE"},{"type":"google.rpc.ErrorInfo","value":"/w"}]}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := string(transcoder.AppendConnectEnd(nil, c.st, c.md)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func FuzzAppendStatus(f *testing.F) {
	f.Add(uint32(5), "no \"x\"\n", "type.googleapis.com/google.rpc.ErrorInfo", []byte("\x0a\x01R"))
	f.Add(uint32(99), "\xFF", "x", []byte{0xFF})
	f.Fuzz(func(t *testing.T, code uint32, message, url string, value []byte) {
		_, ps := plans(t, transcoder.Options{})
		st := status.FromProto(&spb.Status{Code: int32(code), Message: message, Details: []*anypb.Any{{TypeUrl: url, Value: value}}})
		got := ps.AppendStatus(nil, st, 500)
		var body struct {
			Code    int
			Message string
			Details []map[string]any
		}
		if err := json.Unmarshal(got, &body); err != nil || !utf8.Valid(got) {
			t.Fatalf("got %q: %v", got, err)
		}
		if len(body.Details) != 1 || utf8.ValidString(message) && body.Message != message {
			t.Errorf("got %q for message %q", got, message)
		}
		if end := transcoder.AppendConnectEnd(nil, st, metadata.MD{"a": {message}}); !json.Valid(end) {
			t.Errorf("got %q", end)
		}
	})
}
