package listeners_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/listeners"
	"transom/rpc"
)

// TestHeartbeat: a stream of events that is quiet gets a comment each ten seconds, once its status is written, and none
// behind its end; other formats get none.
func TestHeartbeat(t *testing.T) {
	const item = "\x0a\x01a" // id "a"
	send := func(ctx context.Context, call *rpc.Call) error {
		if err := call.Stream.Send(ctx, rpc.NewMessage([]byte(item))); err != nil {
			return err
		}
		return call.Stream.Flush()
	}
	const event, end = "data: {\"id\":\"a\"}\n\n", "event: end\ndata: {}\n\n"
	for _, c := range []struct {
		name, accept string
		do           func(ctx context.Context, call *rpc.Call) error
		want         string
	}{
		{"before and between events", "text/event-stream", func(ctx context.Context, call *rpc.Call) error {
			time.Sleep(time.Minute) // nothing is written: an error would still be a status
			if err := call.Stream.SendHeader(metadata.MD{}); err != nil {
				return err
			}
			if err := call.Stream.Flush(); err != nil {
				return err
			}
			time.Sleep(31 * time.Second)
			if err := send(ctx, call); err != nil {
				return err
			}
			time.Sleep(16 * time.Second)
			if err := send(ctx, call); err != nil {
				return err
			}
			time.Sleep(20 * time.Second)
			return nil
		}, ":\n\n:\n\n" + event + event + ":\n\n" + end},
		{"an error ends them", "text/event-stream", func(ctx context.Context, call *rpc.Call) error {
			if err := send(ctx, call); err != nil {
				return err
			}
			time.Sleep(39 * time.Second)
			return status.Error(codes.Unavailable, "gone")
		}, event + ":\n\n:\n\n" + "event: error\ndata: {\"code\":14,\"message\":\"gone\",\"details\":[]}\n\n"},
		{"busy", "text/event-stream", func(ctx context.Context, call *rpc.Call) error {
			for range 9 {
				if err := send(ctx, call); err != nil {
					return err
				}
				time.Sleep(9 * time.Second)
			}
			return nil
		}, event + event + event + event + event + event + event + event + event + end},
		{"lines", "", func(ctx context.Context, call *rpc.Call) error {
			if err := send(ctx, call); err != nil {
				return err
			}
			time.Sleep(time.Minute)
			return nil
		}, "{\"id\":\"a\"}\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := itemsView(t, func(ctx context.Context, call *rpc.Call) error {
				if _, err := rpc.RecvOne(ctx, call.Stream); err != nil {
					return err
				}
				return c.do(ctx, call)
			})
			synctest.Test(t, func(t *testing.T) {
				front := listeners.NewFront(listeners.FrontConfig{}, v, slog.New(slog.DiscardHandler))
				req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/watch", nil)
				if c.accept != "" {
					req.Header.Set("Accept", c.accept)
				}
				w := httptest.NewRecorder()
				front.ServeHTTP(w, req)
				time.Sleep(time.Hour)
				if got := w.Body.String(); w.Code != 200 || got != c.want {
					t.Errorf("got %d %q, want %q", w.Code, got, c.want)
				}
			})
		})
	}
}
