package listeners_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"transom/listeners"
	"transom/rpc"
)

// claimed is a body that begins, tells that it is waited for, and ends when it is let go.
type claimed struct {
	io.Reader
	waited *sync.WaitGroup
	once   sync.Once
	letGo  <-chan struct{}
}

func (c *claimed) Read(p []byte) (int, error) {
	if n, err := c.Reader.Read(p); err == nil {
		return n, nil
	}
	c.once.Do(c.waited.Done)
	<-c.letGo
	return 0, io.ErrUnexpectedEOF
}

// A client that says how large a message will be has no memory for it before it comes.
func TestClaimedLengths(t *testing.T) {
	const calls, size = 100, 4 << 20
	prefix := string([]byte{0, 0, size >> 16, 0, 0})
	front := listeners.NewFront(listeners.FrontConfig{}, newView(t, func(ctx context.Context, call *rpc.Call) error {
		m, err := call.Stream.Recv(ctx)
		m.Release()
		return err
	}), slog.New(slog.DiscardHandler))
	for _, tc := range []struct {
		path, ctype, begin string
		length             int64
	}{
		{"/rpctest.Echo/Unary", "application/grpc", prefix, -1},
		{"/rpctest.Echo/Bidi", "application/grpc-web", prefix, -1},
		{"/rpctest.Echo/Bidi", "application/connect+proto", prefix, -1},
		{"/rpctest.Echo/Unary", "application/proto", "\x0a", size},
		{"/rpctest/unary", "application/json", `"`, size},
	} {
		var waited, served sync.WaitGroup
		letGo := make(chan struct{})
		held := func() uint64 {
			var s runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&s)
			return s.HeapAlloc
		}
		before := held()
		waited.Add(calls)
		for range calls {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, tc.path, &claimed{Reader: strings.NewReader(tc.begin), waited: &waited, letGo: letGo})
			r.ContentLength, r.ProtoMajor = tc.length, 2
			r.Header.Set("Content-Type", tc.ctype)
			served.Go(func() { front.ServeHTTP(httptest.NewRecorder(), r) })
		}
		waited.Wait()
		if per := (int64(held()) - int64(before)) / calls; per > 128<<10 { // buffers are 16 and 32 KiB
			t.Errorf("%s %s: a call of which a few bytes have come holds %d KiB", tc.ctype, tc.path, per>>10)
		}
		close(letGo)
		served.Wait()
	}
}
