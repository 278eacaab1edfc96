package listeners_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"transom/listeners"
	"transom/rpc"
)

// TestEncodedMethodPaths: a path that is a method's only once it is decoded is no method's, in no protocol. A proxy in front that
// lets callers at some methods only would be got around by it.
func TestEncodedMethodPaths(t *testing.T) {
	var called bool
	front := listeners.NewFront(listeners.FrontConfig{}, newView(t, func(ctx context.Context, call *rpc.Call) error {
		called = true
		m, err := rpc.RecvOne(ctx, call.Stream)
		if err != nil {
			return err
		}
		return call.Stream.Send(ctx, m)
	}), slog.New(slog.DiscardHandler))
	for _, c := range []struct{ name, contentType, body string }{
		{"Connect JSON", "application/json", `""`},
		{"Connect binary", "application/proto", ""},
		{"gRPC-Web", "application/grpc-web+proto", "\x00\x00\x00\x00\x00"},
		{"gRPC-Web text", "application/grpc-web-text", "AAAAAAA="},
		{"gRPC", "application/grpc", "\x00\x00\x00\x00\x00"},
	} {
		for path, want := range map[string]bool{
			"/rpctest.Echo/Unary": true, "/rpctest.Echo%2FUnary": false, "/rpctest.Echo/%55nary": false, "/%72pctest.Echo/Unary": false,
			"/rpctest.Echo%2funary": false, "/rpctest.Echo/Unary/": false, "//rpctest.Echo/Unary": false, "/./rpctest.Echo/Unary": false,
			"/rpctest.Echo/Unary;a=1": false, "/rpctest.Echo/Unary%00": false,
		} {
			called = false
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://transom"+path, strings.NewReader(c.body))
			r.Header.Set("Content-Type", c.contentType)
			r.ProtoMajor, r.ProtoMinor = 2, 0
			w := httptest.NewRecorder()
			front.ServeHTTP(w, r)
			if called != want {
				t.Errorf("%s, %s: called %v, want %v (%d %s)", c.name, path, called, want, w.Code, w.Body)
			}
		}
	}
}
