package policies_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/proto"

	bankv1 "transom/proto/bank/v1"
)

// payloads notes whether the answers of gRPC calls came compressed.
type payloads struct{ compressed atomic.Bool }

func (p *payloads) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		p.compressed.Store(in.CompressedLength < in.Length)
	}
}
func (*payloads) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*payloads) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*payloads) HandleConn(context.Context, stats.ConnStats)                       {}

// countedConn counts what is read.
type countedConn struct {
	net.Conn
	read *atomic.Int64
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// TestCompress: an answer of a method with compress: false is as long as it is, whatever the client accepts, so that its
// length tells nobody what it repeats of the request (BREACH); others are compressed.
func TestCompress(t *testing.T) {
	config := func(compress string) string {
		return fmt.Sprintf("\nlisteners: [{address: \"127.0.0.1:0\", websocket_compression: true}]\npolicies: [{selector: bank.v1.Diagnostics.Echo, %s}]\n", compress)
	}
	p := start(t, config("timeout: 10s"))
	const size = 8 << 10
	text := strings.Repeat("a", size)
	message, err := json.Marshal(map[string]string{"text": text})
	if err != nil {
		t.Fatal(err)
	}
	wire, err := proto.Marshal(&bankv1.Everything{Text: text})
	if err != nil {
		t.Fatal(err)
	}
	// post returns how many bytes of body answer the request.
	post := func(t *testing.T, path, contentType string, body []byte, accept string) int64 {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url("http")+path, strings.NewReader(string(body)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Content-Type": {contentType}, "Accept-Encoding": {"gzip"}, accept: {"gzip"}}
		resp, err := p.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v", path, resp.StatusCode, err)
		}
		return n
	}
	var read atomic.Int64
	counted := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return countedConn{c, &read}, err
	}}}
	t.Cleanup(counted.CloseIdleConnections)
	// socket returns how many bytes come when the message is sent to path and answered by want messages.
	socket := func(t *testing.T, path, protocol, message string, want int) int64 {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		read.Store(0)
		c, _, err := websocket.Dial(ctx, p.url("ws")+path, &websocket.DialOptions{
			HTTPClient: counted, Subprotocols: []string{protocol}[:min(1, len(protocol))], CompressionMode: websocket.CompressionNoContextTakeover,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		if err := c.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			t.Fatal(err)
		}
		for range want {
			if _, _, err := c.Read(ctx); err != nil {
				t.Fatal(err)
			}
		}
		return read.Load()
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(wire))), wire...)
	seen := &payloads{}
	conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStatsHandler(seen))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const echo = "/bank.v1.Diagnostics/Echo"
	for _, off := range []bool{false, true, false} {
		p.reload(t, config(map[bool]string{true: "compress: false", false: "compress: true"}[off]))
		for name, n := range map[string]int64{
			"REST":       post(t, "/v1/diagnostics/echo", "application/json", message, "X-None"),
			"Connect":    post(t, echo, "application/json", message, "X-None"),
			"gRPC-Web":   post(t, echo, "application/grpc-web+proto", frame, "Grpc-Accept-Encoding"),
			"WebSocket":  socket(t, echo, "", string(message), 1),
			"transom.v1": socket(t, "/", "transom.v1", `{"id":1,"open":{"method":"`+echo+`"},"message":`+string(message)+`,"end":true}`, 1),
		} {
			if (n > size) != off {
				t.Errorf("%s, compress: %v: %d bytes answer %d", name, !off, n, size)
			}
		}
		if _, err := bankv1.NewDiagnosticsClient(conn).Echo(t.Context(), &bankv1.Everything{Text: text}, grpc.UseCompressor("gzip")); err != nil {
			t.Fatal(err)
		}
		if seen.compressed.Load() == off {
			t.Errorf("gRPC, compress: %v: the answer came compressed: %v", !off, seen.compressed.Load())
		}
	}
}
