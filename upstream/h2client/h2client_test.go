package h2client_test

import (
	"context"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"transom/upstream/h2client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }
func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (bytesCodec) Unmarshal(d mem.BufferSlice, v any) error {
	*v.(*[]byte) = d.Materialize()
	return nil
}

// newServer is a grpc-go server that answers each message with the same.
func newServer(tb testing.TB, opts ...grpc.ServerOption) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := grpc.NewServer(append(opts, grpc.ForceServerCodecV2(bytesCodec{}), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		for {
			var m []byte
			if err := ss.RecvMsg(&m); err != nil {
				return nil
			}
			if err := ss.SendMsg(&m); err != nil {
				return err
			}
		}
	}))...)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }()
	tb.Cleanup(func() { s.Stop(); <-done })
	return ln.Addr().String()
}

func dial(tb testing.TB, addr string, cfg h2client.Config) *h2client.Conn {
	tb.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Authority = addr
	c, err := h2client.New(tb.Context(), nc, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func TestUnary(t *testing.T) {
	c := dial(t, newServer(t), h2client.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var reply h2client.Reply
	req := h2client.Message{Data: mem.BufferSlice{mem.SliceBuffer("hello")}}
	if err := c.Unary(ctx, "/a.B/C", metadata.MD{"k": {"v"}}, req, &reply); err != nil {
		t.Fatal(err)
	}
	if got := string(reply.Message.Data.Materialize()); got != "hello" {
		t.Errorf("reply %q", got)
	}
	reply.Message.Free()
}
