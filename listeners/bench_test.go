package listeners_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"transom/listeners"
	"transom/rpc"
)

// sink is a ResponseWriter that keeps nothing.
type sink struct {
	header http.Header
	code   int
	n      int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(code int)        { s.code = code }
func (s *sink) Write(b []byte) (int, error) { s.n += len(b); return len(b), nil }

// BenchmarkRESTUnary is what a Front adds to a REST call: routing, transcoding both ways, headers. The handler answers with
// the request; net/http and the backend are left out.
func BenchmarkRESTUnary(b *testing.B) {
	echo := func(ctx context.Context, call *rpc.Call) error {
		m, err := rpc.RecvOne(ctx, call.Stream)
		if err != nil {
			return err
		}
		return call.Stream.Send(ctx, m)
	}
	front := listeners.NewFront(listeners.FrontConfig{}, newView(b, echo), slog.New(slog.DiscardHandler))
	body := []byte(`"aGVsbG8gd29ybGQ="`)
	rd := bytes.NewReader(body)
	req := httptest.NewRequest(http.MethodPost, "/rpctest/unary", io.NopCloser(rd))
	req.Header.Set("Content-Type", "application/json")
	req.ContentLength = int64(len(body))
	w := &sink{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		rd.Reset(body)
		clear(w.header)
		front.ServeHTTP(w, req)
		if w.code != http.StatusOK {
			b.Fatal(w.code)
		}
	}
}
