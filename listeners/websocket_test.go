package listeners_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
	"transom/rpc/rpctest"
)

// serveSockets runs a Front configured by cfg.
func serveSockets(t *testing.T, cfg listeners.FrontConfig, h rpc.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(listeners.NewFront(cfg, newView(t, h), slog.New(slog.DiscardHandler)))
	t.Cleanup(srv.Close)
	return srv
}

func TestBareWebSocketKeepsTheStreamContract(t *testing.T) {
	for name, binary := range map[string]bool{"Text": false, "Binary": true} {
		t.Run(name, func(t *testing.T) {
			rpctest.TestStream(t, rpctest.Harness{
				Start: func(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler) rpctest.Client {
					return startBare(t, serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{MaxMessageBytes: 8 << 20}}, h), m, header, binary)
				},
				NoHeader: true, NoTrailer: true,
			})
		})
	}
}

// bareClient is a client of a bare WebSocket. It dials by itself, since the server answers when the handler is ready.
type bareClient struct {
	binary bool
	ctx    context.Context
	cancel context.CancelFunc
	dialed chan struct{}
	conn   *websocket.Conn
	err    error
}

// metadataHeader spells request metadata as REST and WebSocket clients do.
func metadataHeader(md metadata.MD) http.Header {
	h := http.Header{}
	for k, vs := range md {
		for _, v := range vs {
			if strings.HasSuffix(k, "-bin") {
				v = base64.StdEncoding.EncodeToString([]byte(v))
			}
			h.Add("Grpc-Metadata-"+k, v)
		}
	}
	return h
}

func startBare(t *testing.T, srv *httptest.Server, m *descriptors.Method, header metadata.MD, binary bool) *bareClient {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &bareClient{binary: binary, ctx: ctx, cancel: cancel, dialed: make(chan struct{})}
	go func() {
		defer close(c.dialed)
		var resp *http.Response
		c.conn, resp, c.err = websocket.Dial(ctx, "ws"+srv.URL[4:]+m.FullPath, &websocket.DialOptions{HTTPHeader: metadataHeader(header)})
		switch {
		case c.err == nil:
			c.conn.SetReadLimit(-1)
		case resp != nil && resp.StatusCode != http.StatusSwitchingProtocols:
			b, _ := io.ReadAll(resp.Body)
			c.err = statusOfJSON(b)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-c.dialed
		if c.conn != nil {
			_ = c.conn.CloseNow()
		}
	})
	return c
}

func (c *bareClient) Send(msg []byte) error {
	<-c.dialed
	if c.err != nil {
		return c.err
	}
	if c.binary {
		return c.conn.Write(c.ctx, websocket.MessageBinary, msg)
	}
	return c.conn.Write(c.ctx, websocket.MessageText, jsonOfValue(msg))
}

// jsonOfValue is the JSON form of a google.protobuf.BytesValue.
func jsonOfValue(msg []byte) []byte {
	payload := []byte{}
	if len(msg) > 0 {
		_, _, n := protowire.ConsumeTag(msg)
		payload, _ = protowire.ConsumeBytes(msg[n:])
	}
	b, _ := json.Marshal(payload)
	return b
}

func (c *bareClient) CloseSend() error {
	<-c.dialed
	if c.err != nil {
		return c.err
	}
	return c.conn.Write(c.ctx, websocket.MessageText, nil)
}

func (c *bareClient) Header() metadata.MD { return nil }

func (c *bareClient) Recv() ([]byte, error) {
	<-c.dialed
	if c.err != nil {
		return nil, c.err
	}
	typ, b, err := c.conn.Read(c.ctx)
	if err != nil {
		ce, ok := errors.AsType[websocket.CloseError](err)
		switch {
		case !ok:
			return nil, err
		case ce.Code == websocket.StatusNormalClosure:
			return nil, io.EOF
		case ce.Code >= 4000:
			return nil, status.Error(codes.Code(ce.Code-4000), ce.Reason)
		}
		return nil, status.Error(codes.Unknown, err.Error())
	}
	if typ == websocket.MessageBinary {
		return b, nil
	}
	var payload []byte
	if err := json.Unmarshal(b, &payload); err != nil {
		return nil, err
	}
	return rpctest.Value(payload), nil
}

func (c *bareClient) Trailer() metadata.MD { return nil }

func (c *bareClient) Leave() {
	c.cancel()
	<-c.dialed
	if c.conn != nil {
		_ = c.conn.CloseNow()
	}
}

// redirect is an error that REST clients get as a redirect.
type redirect struct{ error }

func (redirect) HTTPStatus() int { return http.StatusFound }
func (redirect) GRPCStatus() *status.Status {
	return status.New(codes.PermissionDenied, "log in again")
}

// TestUpgradeIsNotRedirected: clients follow no redirect of an upgrade, or to what is no socket; they get the error.
func TestUpgradeIsNotRedirected(t *testing.T) {
	srv := serveSockets(t, listeners.FrontConfig{}, func(context.Context, *rpc.Call) error { return redirect{errors.New("log in")} })
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/rpctest.Echo/Bidi", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	resp, err := srv.Client().Transport.RoundTrip(r) // which follows no redirect
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if st := status.Convert(statusOfJSON(body)); err != nil || resp.StatusCode != http.StatusForbidden || st.Code() != codes.PermissionDenied || st.Message() != "log in again" {
		t.Errorf("%d %s, %v", resp.StatusCode, body, err)
	}
}
