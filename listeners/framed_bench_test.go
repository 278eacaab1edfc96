package listeners_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"transom/listeners"
	"transom/rpc"
	"transom/rpc/rpctest"
)

// discard is a ResponseWriter that is used for many requests.
type discard struct {
	h http.Header
	n int
}

func (d *discard) Header() http.Header              { return d.h }
func (d *discard) WriteHeader(int)                  {}
func (d *discard) Write(b []byte) (int, error)      { d.n += len(b); return len(b), nil }
func (d *discard) Flush()                           {}
func (d *discard) SetReadDeadline(time.Time) error  { return nil }
func (d *discard) SetWriteDeadline(time.Time) error { return nil }
func (d *discard) EnableFullDuplex() error          { return nil }

// BenchmarkFront is the cost of a call within the listener: sockets, net/http and the backend are left out.
func BenchmarkFront(b *testing.B) {
	one := string(rpctest.Value(bytes.Repeat([]byte("x"), 200)))
	many := 1000
	handler := func(ctx context.Context, call *rpc.Call) error {
		if !call.Method.ClientStreams {
			m, err := rpc.RecvOne(ctx, call.Stream)
			if err != nil {
				return err
			}
			if err := call.Stream.SendHeader(nil); err != nil {
				return err
			}
			return call.Stream.Send(ctx, m)
		}
		for {
			m, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := call.Stream.Send(ctx, m); err != nil {
				return err
			}
		}
	}
	front := listeners.NewFront(listeners.FrontConfig{}, newView(b, handler), slog.New(slog.DiscardHandler))
	var stream bytes.Buffer
	for range many {
		stream.WriteString(enveloped(0, one))
	}
	for _, bc := range []struct {
		name, method, contentType, body string
	}{
		{"GRPC/Unary", "Unary", "application/grpc", enveloped(0, one)},
		{"GRPCWeb/Unary", "Unary", "application/grpc-web+proto", enveloped(0, one)},
		{"Connect/Unary", "Unary", "application/proto", one},
		{"GRPC/1000", "Bidi", "application/grpc", stream.String()},
		{"Connect/1000", "Bidi", "application/connect+proto", stream.String()},
	} {
		b.Run(bc.name, func(b *testing.B) {
			r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, "http://h/rpctest.Echo/"+bc.method, nil)
			if err != nil {
				b.Fatal(err)
			}
			r.Proto, r.ProtoMajor, r.ProtoMinor, r.RemoteAddr = "HTTP/2.0", 2, 0, "127.0.0.1:5555"
			r.ContentLength = int64(len(bc.body))
			r.Header = http.Header{"Content-Type": {bc.contentType}, "User-Agent": {"bench"}, "Accept": {"*/*"}}
			body := bytes.NewReader(nil)
			r.Body = io.NopCloser(body)
			w := &discard{h: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				body.Reset([]byte(bc.body))
				clear(w.h)
				w.n = 0
				front.ServeHTTP(w, r)
				if w.n < len(bc.body)-16 {
					b.Fatalf("%d bytes of answer", w.n)
				}
			}
		})
	}
}
