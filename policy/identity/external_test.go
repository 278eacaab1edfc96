package identity

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/rpc"
	"transom/transcoder"
)

// authorizer is a connection to a server that answers every question as it says.
type authorizer func(ctx context.Context) (*authv3.CheckResponse, error)

func (a authorizer) Invoke(ctx context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	resp, err := a(ctx)
	if err == nil {
		proto.Merge(reply.(proto.Message), resp)
	}
	return err
}

func (a authorizer) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("there are no streams")
}

// external is an External that asks a, and what it logs.
func external(a authorizer) (*External, *bytes.Buffer) {
	var logged bytes.Buffer
	return NewExternal(ExternalConfig{Name: "authz", Timeout: time.Second}, a, slog.New(slog.NewTextHandler(&logged, nil))), &logged
}

func asking(header metadata.MD) *rpc.Call {
	return &rpc.Call{Method: descriptors.Opaque("/a.B/C"), Header: header, Info: &rpc.Info{}}
}

// What a server may set is metadata that is nobody else's to say; all other names it gives are as if it had not. What it sets or
// removes no client can say in another spelling.
func TestExternalNames(t *testing.T) {
	ok := &authv3.OkHttpResponse{HeadersToRemove: []string{"X-Gone", "x-transom-plan", "te"}}
	ok.Headers = append(ok.Headers, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: "x-encoded", Value: "a%20b"}})
	for _, name := range []string{
		"X-Good", "bad name", "x-line\r\nx-smuggled", "x-ütf", "", ":path", "grpc-timeout", "x-data-bin", "content-type", "te",
		"X-Transom-Consumer", "x_transom_consumer", "x.transom.groups", "x-transom_plan",
	} {
		ok.Headers = append(ok.Headers, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: "v\n"}})
	}
	p, _ := external(func(context.Context) (*authv3.CheckResponse, error) {
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok}}, nil
	})
	call := asking(metadata.MD{"x-gone": {"1"}, "x_gone": {"1"}, "x-kept": {"1"}, "x_kept": {"1"}, "x-good": {"mine"}, "x_good": {"mine"}, "x.good": {"mine"}})
	if who, err := p.identify(t.Context(), call); err != nil || who.identity != "" {
		t.Fatalf("%v, %v, want nobody", who, err)
	}
	want := map[string][]string{"x-good": {"v%0A"}, "x-encoded": {"a%20b"}, "x-kept": {"1"}, "x_kept": {"1"}}
	if !maps.EqualFunc(call.Header, want, slices.Equal) {
		t.Errorf("the call has %q, want %q", call.Header, want)
	}
}

// A denial is one even if the server has forgotten to say so in the status too.
func TestExternalDenies(t *testing.T) {
	p, _ := external(func(context.Context) (*authv3.CheckResponse, error) {
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 401}}}}, nil
	})
	_, err := p.identify(t.Context(), asking(nil))
	if _, denied := errors.AsType[*denial](err); !denied || rpc.StatusOf(err).Code() != codes.Unauthenticated {
		t.Errorf("%v, want a denial", err)
	}
}

// What a server says with a denial reaches the client: the HTTP status as it is over REST, and as a code; the body as the message, as far
// as it goes, or that of the status.
func TestExternalDenials(t *testing.T) {
	long, ascii := strings.Repeat("ö", maxDenial), strings.Repeat("a", maxDenial)
	for _, tc := range []struct {
		http       int32 // 0 is no denied_response
		body, said string
		code       codes.Code
		want       int
		msg        string
	}{
		{0, "", "", codes.PermissionDenied, 403, "the call is not allowed"},
		{0, "", "no contract", codes.PermissionDenied, 403, "no contract"},
		{302, "log in", "not this", codes.PermissionDenied, 302, "log in"},
		{304, "", "", codes.PermissionDenied, 403, "the call is not allowed"},
		{401, "", "no contract", codes.Unauthenticated, 401, "no contract"},
		{402, "pay", "", codes.PermissionDenied, 402, "pay"},
		{429, "", "", codes.ResourceExhausted, 429, "too many calls"},
		{500, "", "", codes.Unavailable, 500, "the authorization server does not answer"},
		{403, long, "", codes.PermissionDenied, 403, long[:maxDenial/3/2*2]},
		{403, "x%" + long, "", codes.PermissionDenied, 403, "x%" + long[:(maxDenial-4)/3/2*2]},
		{403, "\xFF" + long, "", codes.PermissionDenied, 403, "�" + long[:(maxDenial-9)/3/2*2]},
		{403, ascii + "x", "", codes.PermissionDenied, 403, ascii},
		{200, "", "", codes.PermissionDenied, 403, "the call is not allowed"},
		{999, "", "", codes.Unavailable, 503, "the authorization server does not answer"},
	} {
		resp := &authv3.CheckResponse{Status: &statuspb.Status{Code: int32(codes.PermissionDenied), Message: tc.said}}
		if tc.http != 0 {
			resp.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
				Status: &typev3.HttpStatus{Code: typev3.StatusCode(tc.http)}, Body: tc.body,
				Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "Location", Value: "/login"}}},
			}}
		}
		err := denialOf(resp)
		if st := rpc.StatusOf(err); st.Code() != tc.code || st.Message() != tc.msg || transcoder.HTTPStatusOf(err) != tc.want {
			t.Errorf("%d %.20q %q: %v %.80q %d, want %v %.80q %d", tc.http, tc.body, tc.said, st.Code(), st.Message(), transcoder.HTTPStatusOf(err), tc.code, tc.msg, tc.want)
		}
		if got := rpc.HeaderOf(err)["location"]; tc.http != 0 && !slices.Equal(got, []string{"/login"}) {
			t.Errorf("%d: location %q", tc.http, got)
		}
	}
}

// A server that does not answer is logged once, and its return; a client that leaves says nothing of the server.
func TestExternalDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		p, logged := external(func(ctx context.Context) (*authv3.CheckResponse, error) {
			if down {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &authv3.CheckResponse{}, nil
		})
		ctx, leave := context.WithCancel(t.Context())
		leave()
		if _, err := p.identify(ctx, asking(nil)); rpc.StatusOf(err).Code() != codes.Canceled || logged.Len() > 0 {
			t.Errorf("a client that has left: %v, logged %q", err, logged)
		}
		for range 3 {
			if _, err := p.identify(t.Context(), asking(nil)); rpc.StatusOf(err).Code() != codes.Unavailable {
				t.Errorf("no answer: %v", err)
			}
		}
		down = false
		for range 2 {
			if _, err := p.identify(t.Context(), asking(nil)); err != nil {
				t.Errorf("an answer: %v", err)
			}
		}
		if got := strings.Count(logged.String(), "does not answer"); got != 1 || strings.Count(logged.String(), "answers again") != 1 || strings.Count(logged.String(), "\n") != 2 {
			t.Errorf("logged %s", logged)
		}
	})
}
