package listeners_test

import (
	"context"
	"io"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/rpc/rpctest"
	"transom/transcoder"
)

func TestGRPCWebSocketsKeepTheStreamContract(t *testing.T) {
	rpctest.TestStream(t, rpctest.Harness{
		Start: func(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler) rpctest.Client {
			return startGRPCWebSocket(t, serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{MaxMessageBytes: 8 << 20}}, h), m, header)
		},
	})
}

// grpcWebSocketClient speaks as improbable-eng's client does.
type grpcWebSocketClient struct {
	ctx             context.Context
	cancel          context.CancelFunc
	conn            *websocket.Conn
	buf             []byte
	header, trailer metadata.MD
	queue           [][]byte
	end             error
}

func startGRPCWebSocket(t *testing.T, srv *httptest.Server, m *descriptors.Method, header metadata.MD) *grpcWebSocketClient {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &grpcWebSocketClient{ctx: ctx, cancel: cancel}
	// The upgrade waits for the handler, which waits for the header block.
	conn, _, err := websocket.Dial(ctx, "ws"+srv.URL[4:]+m.FullPath, &websocket.DialOptions{Subprotocols: []string{"grpc-websockets"}})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	conn.SetReadLimit(-1)
	c.conn = conn
	t.Cleanup(c.Leave)
	block := "content-type: application/grpc-web+proto\r\nx-grpc-web: 1\r\n"
	for k, vs := range header {
		for _, v := range vs {
			if strings.HasSuffix(k, "-bin") {
				v = grpcwire.EncodeBin(v)
			}
			block += k + ": " + v + "\r\n"
		}
	}
	if err := conn.Write(ctx, websocket.MessageBinary, []byte(block)); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *grpcWebSocketClient) Send(msg []byte) error {
	f := append(transcoder.AppendFrameHeader([]byte{0}, 0, len(msg)), msg...)
	if len(f) > 8 { // in two pieces
		if err := c.conn.Write(c.ctx, websocket.MessageBinary, f[:8]); err != nil {
			return err
		}
		f = append([]byte{0}, f[8:]...)
	}
	return c.conn.Write(c.ctx, websocket.MessageBinary, f)
}

func (c *grpcWebSocketClient) CloseSend() error {
	return c.conn.Write(c.ctx, websocket.MessageBinary, []byte{1})
}

// step takes in one WebSocket message.
func (c *grpcWebSocketClient) step() {
	_, b, err := c.conn.Read(c.ctx)
	if err != nil {
		if c.end = err; websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			c.end = status.Error(codes.Unknown, "closed without a status")
		}
		return
	}
	c.buf = append(c.buf, b...)
	for {
		flags, payload, rest, err := transcoder.CutFrame(c.buf, transcoder.FramingGRPCWeb, 16<<20)
		if err != nil {
			return
		}
		c.buf = rest
		if flags&0x80 == 0 {
			c.queue = append(c.queue, append([]byte{}, payload...))
			continue
		}
		md := metadata.MD{}
		for line := range strings.SplitSeq(strings.TrimSuffix(string(payload), "\r\n"), "\r\n") {
			k, v, _ := strings.Cut(line, ": ")
			if strings.HasSuffix(k, "-bin") {
				d, _ := grpcwire.DecodeBin(v)
				v = string(d)
			}
			md.Append(k, v)
		}
		if code := md.Get("grpc-status"); len(code) == 1 {
			n, _ := strconv.Atoi(code[0])
			c.trailer, c.end = md, io.EOF
			if n != 0 {
				c.end = status.Error(codes.Code(n), grpcwire.DecodeGRPCMessage(append(md.Get("grpc-message"), "")[0]))
			}
			return
		}
		c.header = md
	}
}

func (c *grpcWebSocketClient) Header() metadata.MD {
	for c.header == nil && c.end == nil {
		c.step()
	}
	return c.header
}

func (c *grpcWebSocketClient) Recv() ([]byte, error) {
	for len(c.queue) == 0 && c.end == nil {
		c.step()
	}
	if len(c.queue) > 0 {
		m := c.queue[0]
		c.queue = c.queue[1:]
		return m, nil
	}
	return nil, c.end
}

func (c *grpcWebSocketClient) Trailer() metadata.MD { return c.trailer }

func (c *grpcWebSocketClient) Leave() {
	c.cancel()
	_ = c.conn.CloseNow()
}

func TestGRPCWebSocketFaults(t *testing.T) {
	srv := serveSockets(t, listeners.FrontConfig{}, echo)
	for _, tc := range []struct {
		name string
		in   []byte
		code int
		out  string // part of what is answered
	}{
		{"text", frame(0x81, []byte("x")), 1003, "grpc-status: 3"},
		{"no header block", frame(0x82, []byte("\x00\x01")), 1000, "grpc-status: 3"},
		{"content type", frame(0x82, []byte("content-type: text/plain\r\n")), 1000, "grpc-status: 12"},
		{"encoding", frame(0x82, []byte("grpc-encoding: zip\r\n")), 1000, "grpc-status: 12"},
		{"timeout", frame(0x82, []byte("grpc-timeout: soon\r\n")), 1000, "grpc-status: 3"},
		{"deadline", frame(0x82, []byte("grpc-timeout: 1m\r\n")), 1000, "grpc-status: 4"},
		{"mark", append(frame(0x82, []byte("a: b\r\n")), frame(0x82, []byte{2, 0})...), 1002, "grpc-status: 3"},
		{"cut off", append(append(frame(0x82, []byte("a: b\r\n")), frame(0x82, []byte{0, 0, 0, 0, 0, 9})...), frame(0x82, []byte{1})...), 1000, "grpc-status: 13"},
		{"after the end", append(append(frame(0x82, []byte("a: b\r\n")), frame(0x82, []byte{1})...), frame(0x82, []byte{1})...), 1000, "grpc-status: 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := dialRaw(t, srv, "/rpctest.Echo/Bidi", "Sec-WebSocket-Protocol: grpc-websockets\r\n")
			_, _ = s.Write(tc.in)
			var out []byte
			for {
				b0, p, err := s.read()
				if err != nil {
					t.Fatal(err)
				}
				if b0 == 0x88 {
					if code := int(p[0])<<8 | int(p[1]); code != tc.code {
						t.Errorf("close %d %q, want %d", code, p[2:], tc.code)
					}
					break
				}
				out = append(out, p...)
			}
			if !strings.Contains(string(out), tc.out) {
				t.Errorf("answer %q, want %q in it", out, tc.out)
			}
		})
	}
	silent := dialRaw(t, serveSockets(t, listeners.FrontConfig{IdleBody: 50 * time.Millisecond}, echo), "/rpctest.Echo/Bidi", "Sec-WebSocket-Protocol: grpc-websockets\r\n")
	if _, p, err := silent.read(); err != nil || !strings.Contains(string(p), "grpc-status: 4\r\ngrpc-message: no block of headers came within 50ms") {
		t.Errorf("a client that sends nothing is answered with %q, %v", p, err)
	}
	if s := dialRaw(t, srv, "/rpctest/bidi", "Sec-WebSocket-Protocol: grpc-websockets\r\n"); s.resp.StatusCode != 404 {
		t.Errorf("a path that is no method's: %s, want 404", s.resp.Status)
	}
}
