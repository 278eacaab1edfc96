package listeners_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/listeners"
	"transom/rpc"
	"transom/rpc/rpctest"
)

// rawSocket is a WebSocket client that sends any bytes.
type rawSocket struct {
	net.Conn
	r    *bufio.Reader
	resp *http.Response
}

// dialRaw makes the handshake for path with further header lines, each ending in CR LF.
func dialRaw(t *testing.T, srv *httptest.Server, path, header string) *rawSocket {
	t.Helper()
	nc, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(header, "Sec-WebSocket-Version") {
		header += "Sec-WebSocket-Version: 13\r\n"
	}
	if !strings.Contains(header, "Sec-WebSocket-Key") {
		header += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	}
	if !strings.Contains(header, "Connection:") {
		header += "Connection: Upgrade\r\n"
	}
	fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\n%s\r\n", path, srv.Listener.Addr(), header)
	s := &rawSocket{Conn: nc, r: bufio.NewReader(nc)}
	if s.resp, err = http.ReadResponse(s.r, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// frame is a client's frame with first byte b0; the mask is not zero.
func frame(b0 byte, payload []byte) []byte {
	b := []byte{b0}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	key := []byte{0x12, 0x34, 0x56, 0x78}
	b = append(b, key...)
	for i, c := range payload {
		b = append(b, c^key[i&3])
	}
	return b
}

// read returns the server's next frame.
func (s *rawSocket) read() (b0 byte, payload []byte, err error) {
	var h [2]byte
	if _, err = io.ReadFull(s.r, h[:]); err != nil {
		return 0, nil, err
	}
	n := uint64(h[1])
	switch n {
	case 126:
		var l uint16
		err = binary.Read(s.r, binary.BigEndian, &l)
		n = uint64(l)
	case 127:
		err = binary.Read(s.r, binary.BigEndian, &n)
	}
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(s.r, payload)
	return h[0], payload, err
}

// closed reads up to the close frame and returns its code and reason.
func (s *rawSocket) closed() (int, string, error) {
	for {
		b0, p, err := s.read()
		if err != nil {
			return 0, "", err
		}
		if b0 == 0x88 {
			if len(p) < 2 {
				return 1005, "", nil
			}
			return int(binary.BigEndian.Uint16(p)), string(p[2:]), nil
		}
	}
}

// echo receives and sends until the client half-closes.
func echo(ctx context.Context, call *rpc.Call) error {
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
		if err := call.Stream.Flush(); err != nil {
			return err
		}
	}
}

func TestWebSocketHandshake(t *testing.T) {
	cfg := listeners.FrontConfig{Origins: []string{"https://app.example", "https://*.wild.example"}}
	var got rpc.Call
	srv := serveSockets(t, cfg, func(ctx context.Context, call *rpc.Call) error {
		got = *call
		if call.Header["authorization"] == nil && call.Header["need"] != nil {
			return status.Error(codes.Unauthenticated, "who are you?")
		}
		return echo(ctx, call)
	})
	host := srv.Listener.Addr().String()
	for _, tc := range []struct {
		name, path, header string
		code               int
		want               string // a response header that must be there, "Name: value", or text of the body
	}{
		{"plain", "/rpctest.Echo/Bidi", "", 101, "Sec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="},
		{"rule", "/rpctest/bidi", "", 101, ""},
		{"connection list", "/rpctest/bidi", "Connection: keep-alive, upgrade\r\n", 101, ""},
		{"unknown path", "/nowhere", "", 404, "no route"},
		{"unknown method", "/rpctest.Echo/Nope", "", 404, "no route"},
		{"version", "/rpctest/bidi", "Sec-WebSocket-Version: 8\r\n", 426, "Sec-Websocket-Version: 13"},
		{"key", "/rpctest/bidi", "Sec-WebSocket-Key: abc\r\n", 400, "Sec-WebSocket-Key"},
		{"two keys", "/rpctest/bidi", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", 400, "Sec-WebSocket-Key"},
		{"no connection token", "/rpctest/bidi", "Connection: close\r\n", 400, "Connection"},
		{"body", "/rpctest/bidi", "Content-Length: 1\r\n", 400, "body"},
		{"timeout", "/rpctest.Echo/Bidi", "Grpc-Timeout: 12\r\n", 400, "grpc-timeout"},
		{"subprotocol", "/rpctest/bidi", "Sec-WebSocket-Protocol: chat\r\n", 400, "subprotocols"},
		{"bearer", "/rpctest/bidi", "Sec-WebSocket-Protocol: bearer, abc.def\r\nGrpc-Metadata-Need: 1\r\n", 101, "Sec-Websocket-Protocol: bearer"},
		{"bearer without token", "/rpctest/bidi", "Sec-WebSocket-Protocol: bearer\r\n", 400, "token"},
		{"refused by policy", "/rpctest/bidi", "Grpc-Metadata-Need: 1\r\n", 401, "who are you?"},
		{"own origin", "/rpctest/bidi", "Origin: http://" + host + "\r\n", 101, ""},
		{"own origin, by a proxy's TLS", "/rpctest/bidi", "Origin: https://" + host + "\r\nSec-Fetch-Site: same-origin\r\n", 101, ""},
		{"own host, but another site", "/rpctest/bidi", "Origin: http://" + host + "\r\nSec-Fetch-Site: cross-site\r\n", 403, "origin"},
		{"own host, no page", "/rpctest/bidi", "Origin: chrome-extension://" + host + "\r\n", 403, "origin"},
		{"listed origin of another site", "/rpctest/bidi", "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n", 101, ""},
		{"listed origin", "/rpctest/bidi", "Origin: https://app.example\r\n", 101, ""},
		{"listed origin in capitals", "/rpctest/bidi", "Origin: https://APP.example\r\n", 101, ""},
		{"wildcard", "/rpctest/bidi", "Origin: https://a.b.wild.example\r\n", 101, ""},
		{"foreign origin", "/rpctest/bidi", "Origin: https://evil.example\r\n", 403, "https://evil.example"},
		{"other scheme", "/rpctest/bidi", "Origin: http://app.example\r\n", 403, "origin"},
		{"other port", "/rpctest/bidi", "Origin: https://app.example:8443\r\n", 403, "origin"},
		{"suffix", "/rpctest/bidi", "Origin: https://evilapp.example\r\n", 403, "origin"},
		{"prefix", "/rpctest/bidi", "Origin: https://app.example.evil\r\n", 403, "origin"},
		{"wildcard itself", "/rpctest/bidi", "Origin: https://wild.example\r\n", 403, "origin"},
		{"wildcard suffix", "/rpctest/bidi", "Origin: https://evilwild.example\r\n", 403, "origin"},
		{"user in wildcard", "/rpctest/bidi", "Origin: https://evil@x.wild.example\r\n", 403, "origin"},
		{"null origin", "/rpctest/bidi", "Origin: null\r\n", 403, "origin"},
		{"empty origin", "/rpctest/bidi", "Origin:\r\n", 403, "origin"},
		{"two origins", "/rpctest/bidi", "Origin: https://app.example\r\nOrigin: https://app.example\r\n", 403, "origin"},
		{"deflate is off", "/rpctest/bidi", "Sec-WebSocket-Extensions: permessage-deflate\r\n", 101, "Sec-Websocket-Extensions: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got = rpc.Call{}
			s := dialRaw(t, srv, tc.path, tc.header)
			if tc.code != 101 {
				if s.resp.StatusCode != tc.code {
					t.Fatalf("status %d, want %d", s.resp.StatusCode, tc.code)
				}
				b, _ := io.ReadAll(s.resp.Body)
				if s.resp.Header.Get("Content-Type") != "application/json" || statusOfJSON(b) == nil {
					t.Errorf("the refusal has type %q and body %s", s.resp.Header.Get("Content-Type"), b)
				}
				name, value, ok := strings.Cut(tc.want, ": ")
				if ok && s.resp.Header.Get(name) != value || !ok && !bytes.Contains(b, []byte(tc.want)) {
					t.Errorf("header %v, body %s, want %q", s.resp.Header, b, tc.want)
				}
				return
			}
			if s.resp.StatusCode != 101 {
				t.Fatalf("status %d, want 101", s.resp.StatusCode)
			}
			if name, value, ok := strings.Cut(tc.want, ": "); ok && s.resp.Header.Get(name) != value {
				t.Errorf("%s is %q, want %q", name, s.resp.Header.Get(name), value)
			}
			for _, vs := range s.resp.Header {
				if strings.Contains(strings.Join(vs, ","), "abc.def") {
					t.Error("the token was echoed")
				}
			}
			_, _ = s.Write(append(frame(0x82, rpctest.Value([]byte("x"))), frame(0x81, nil)...))
			b0, p, err := s.read()
			if err != nil || b0 != 0x82 || !bytes.Equal(p, rpctest.Value([]byte("x"))) {
				t.Errorf("echo: %x %q, %v", b0, p, err)
			}
			if code, reason, err := s.closed(); code != 1000 || reason != "" {
				t.Errorf("close %d %q, %v", code, reason, err)
			}
			if strings.Contains(tc.header, "abc.def") && got.Header["authorization"][0] != "Bearer abc.def" {
				t.Errorf("metadata %v, want the token", got.Header)
			}
		})
	}
}

// What a client may and may not send, and the close code it gets.
func TestWebSocketFrames(t *testing.T) {
	v := rpctest.Value
	deflated := []byte{0xaa, 0x56, 0x4a, 0x44, 0x02, 0x4a, 0x00} // "aaaa…" is not this: see the compressed tests
	srv := serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{MaxMessageBytes: 1 << 16}}, func(ctx context.Context, call *rpc.Call) error {
		if call.Method.ClientStreams {
			return echo(ctx, call)
		}
		m, err := rpc.RecvOne(ctx, call.Stream)
		if err != nil {
			return err
		}
		if bytes.Contains(m.Bytes(), []byte("wait")) {
			<-ctx.Done()
			return rpc.CauseOf(ctx)
		}
		if bytes.Contains(m.Bytes(), []byte("long")) {
			return status.Error(codes.Aborted, strings.Repeat("ü", 100))
		}
		return call.Stream.Send(ctx, m)
	})
	join := func(bs ...[]byte) []byte { return bytes.Join(bs, nil) }
	unmasked := []byte{0x82, 0x01, 'x'}
	for _, tc := range []struct {
		name  string
		path  string
		in    []byte
		out   string // the answers, with %q
		close int
	}{
		{"text", "Bidi", join(frame(0x81, []byte(`"eA=="`)), frame(0x81, nil)), `["\"eA==\""]`, 1000},
		{"fragments", "Bidi", join(frame(0x01, []byte(`"e`)), frame(0x00, []byte(`A=`)), frame(0x80, []byte(`="`)), frame(0x81, nil)), `["\"eA==\""]`, 1000},
		{"control between fragments", "Bidi", join(frame(0x01, []byte(`"e`)), frame(0x8a, nil), frame(0x80, []byte(`A=="`)), frame(0x81, nil)), `["\"eA==\""]`, 1000},
		{"both types", "Bidi", join(frame(0x82, v([]byte("x"))), frame(0x81, []byte(`"eA=="`)), frame(0x81, nil)), `["\n\x01x" "\n\x01x"]`, 1000},
		{"empty binary is a message", "Bidi", join(frame(0x82, nil), frame(0x81, nil)), `[""]`, 1000},
		{"half-close after one message", "Unary", join(frame(0x82, v([]byte("x"))), frame(0x81, nil)), `["\n\x01x"]`, 1000},
		{"no message", "Unary", frame(0x81, nil), `[]`, 4012},
		{"bad JSON", "Unary", frame(0x81, []byte(`{`)), `[]`, 4003},
		{"long reason", "Unary", frame(0x82, v([]byte("long"))), `[]`, 4010},
		{"two messages", "Unary", join(frame(0x82, v([]byte("wait"))), frame(0x82, v([]byte("x")))), `[]`, 1008},
		{"two half-closes", "Unary", join(frame(0x82, v([]byte("wait"))), frame(0x81, nil), frame(0x81, nil)), `[]`, 1008},
		{"message after half-close", "Client", join(frame(0x81, nil)), `[]`, 1000},
		{"close", "Bidi", frame(0x88, []byte{0x03, 0xe8}), `[]`, 1000},
		{"close without code", "Bidi", frame(0x88, nil), `[]`, 1005},
		{"close with 4321", "Bidi", frame(0x88, []byte{0x10, 0xe1, 'b', 'y', 'e'}), `[]`, 4321},
		{"half a close code", "Bidi", frame(0x88, []byte{3}), `[]`, 1002},
		{"close 1005", "Bidi", frame(0x88, []byte{0x03, 0xed}), `[]`, 1002},
		{"close 999", "Bidi", frame(0x88, []byte{0x03, 0xe7}), `[]`, 1002},
		{"close 2999", "Bidi", frame(0x88, []byte{0x0b, 0xb7}), `[]`, 1002},
		{"close with bad UTF-8", "Bidi", frame(0x88, []byte{0x03, 0xe8, 0xff}), `[]`, 1007},
		{"text with bad UTF-8", "Bidi", frame(0x81, []byte("\"\xff\"")), `[]`, 1007},
		{"character cut by fragments", "Bidi", join(frame(0x01, []byte("\"\xc3")), frame(0x80, []byte("\xbc\""))), `[]`, 4003},
		{"not masked", "Bidi", unmasked, `[]`, 1002},
		{"reserved bit", "Bidi", frame(0xa2, nil), `[]`, 1002},
		{"compressed without being agreed", "Bidi", frame(0xc1, deflated), `[]`, 1002},
		{"unknown opcode", "Bidi", frame(0x83, nil), `[]`, 1002},
		{"unknown control opcode", "Bidi", frame(0x8b, nil), `[]`, 1002},
		{"fragmented ping", "Bidi", frame(0x09, nil), `[]`, 1002},
		{"long ping", "Bidi", frame(0x89, make([]byte, 126)), `[]`, 1002},
		{"continuation of nothing", "Bidi", frame(0x80, nil), `[]`, 1002},
		{"message inside a message", "Bidi", join(frame(0x01, []byte(`"`)), frame(0x81, nil)), `[]`, 1002},
		{"16-bit length not needed", "Bidi", []byte{0x82, 0xfe, 0, 5, 0, 0, 0, 0}, `[]`, 1002},
		{"64-bit length not needed", "Bidi", []byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0}, `[]`, 1002},
		{"negative length", "Bidi", []byte{0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, `[]`, 1002},
		{"huge length", "Bidi", []byte{0x82, 0xff, 0x3f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, `[]`, 1009},
		{"too big", "Bidi", frame(0x82, make([]byte, 1<<16+1)), `[]`, 1009},
		{"too big in fragments", "Bidi", join(frame(0x02, make([]byte, 1<<15)), frame(0x00, make([]byte, 1<<15)), frame(0x80, []byte{1})), `[]`, 1009},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// All at once, and byte by byte.
			for _, step := range []int{len(tc.in), 1} {
				if step == 1 && len(tc.in) > 1<<10 {
					continue
				}
				s := dialRaw(t, srv, "/rpctest.Echo/"+tc.path, "")
				if s.resp.StatusCode != 101 {
					t.Fatal(s.resp.Status)
				}
				for i := 0; i < len(tc.in); i += step {
					_, _ = s.Write(tc.in[i : i+step]) // the server may have closed already
				}
				out := []string{}
				for {
					b0, p, err := s.read()
					if err != nil {
						t.Fatalf("after %q: %v", out, err)
					}
					if b0 == 0x88 {
						code := 1005
						if len(p) >= 2 {
							code = int(binary.BigEndian.Uint16(p))
						}
						if code != tc.close || len(p) > 125 {
							t.Errorf("close %d %q, want %d", code, p, tc.close)
						}
						if tc.name == "long reason" && string(p[2:]) != strings.Repeat("ü", 61) {
							t.Errorf("reason %q is not cut on a character border", p[2:])
						}
						break
					}
					out = append(out, string(p))
				}
				if got := fmt.Sprintf("%q", out); got != tc.out {
					t.Errorf("answers %s, want %s", got, tc.out)
				}
			}
		})
	}
}

// A ping is answered while the handler is busy, a client that answers no ping is given up, and one that does lives on.
func TestWebSocketPing(t *testing.T) {
	ended := make(chan error, 2)
	cfg := listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{PingInterval: 100 * time.Millisecond, PongTimeout: 2 * time.Second}}
	srv := serveSockets(t, cfg, func(ctx context.Context, call *rpc.Call) error {
		if _, err := call.Stream.Recv(ctx); err != nil {
			return err
		}
		if call.Header["busy"] != nil {
			<-ctx.Done()
		} else {
			_, _ = call.Stream.Recv(ctx)
		}
		ended <- rpc.CauseOf(ctx)
		return rpc.CauseOf(ctx)
	})
	for _, busy := range []string{"", "Grpc-Metadata-Busy: 1\r\n"} {
		s := dialRaw(t, srv, "/rpctest.Echo/Bidi", busy)
		_, _ = s.Write(append(frame(0x82, nil), frame(0x89, []byte("hello"))...))
		for pings := 0; pings < 2; {
			b0, p, err := s.read()
			if err != nil {
				t.Fatalf("a client that answers pings was given up after %d: %v", pings, err)
			}
			switch b0 {
			case 0x89:
				pings++
				_, _ = s.Write(frame(0x8a, p))
			case 0x8a:
				if string(p) != "hello" {
					t.Errorf("pong %q", p)
				}
			default:
				t.Errorf("frame %x %q", b0, p)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("the call ended with %v while the client was there", err)
		default:
		}
		select { // silent from now on
		case err := <-ended:
			if !errors.Is(err, rpc.ErrClientGone) {
				t.Errorf("the call of a dead client ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("a dead client was not found")
		}
	}
}

func TestWebSocketIdle(t *testing.T) {
	cfg := listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{PingInterval: 20 * time.Millisecond, PongTimeout: 10 * time.Second, IdleTimeout: 200 * time.Millisecond}}
	srv := serveSockets(t, cfg, echo)
	c, _, err := websocket.Dial(t.Context(), "ws"+srv.URL[4:]+"/rpctest/bidi", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("an idle socket ends with %v, want close 1001", err)
	}
}

func TestWebSocketCompression(t *testing.T) {
	srv := serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{Compression: true, MaxMessageBytes: 1 << 20}}, echo)
	url := "ws" + srv.URL[4:] + "/rpctest.Echo/Bidi"
	for _, mode := range []websocket.CompressionMode{websocket.CompressionContextTakeover, websocket.CompressionNoContextTakeover} {
		c, resp, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{CompressionMode: mode, CompressionThreshold: 1})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := resp.Header.Get("Sec-Websocket-Extensions"), "permessage-deflate; server_no_context_takeover; client_no_context_takeover"; got != want {
			t.Errorf("extensions %q, want %q", got, want)
		}
		c.SetReadLimit(-1)
		for _, n := range []int{1, 511, 100_000, 1<<20 - 10} {
			msg := rpctest.Value(bytes.Repeat([]byte("abcdefgh"), n/8+1)[:n])
			if err := c.Write(t.Context(), websocket.MessageBinary, msg); err != nil {
				t.Fatal(err)
			}
			if _, b, err := c.Read(t.Context()); err != nil || !bytes.Equal(b, msg) {
				t.Fatalf("echo of %d bytes: %d bytes, %v", len(msg), len(b), err)
			}
		}
		// A bomb: the limit counts what comes out.
		if err := c.Write(t.Context(), websocket.MessageBinary, rpctest.Value(make([]byte, 2<<20))); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
			t.Errorf("a bomb ends with %v, want close 1009", err)
		}
	}
	for offer, want := range map[string]bool{
		"permessage-deflate; client_max_window_bits":                                 true,
		"x-webkit-deflate-frame, permessage-deflate":                                 true,
		"permessage-deflate; server_max_window_bits=10":                              false,
		"permessage-deflate; server_max_window_bits=10, permessage-deflate":          true,
		"permessage-deflate; server_no_context_takeover; client_no_context_takeover": true,
		"permessage-foo": false,
	} {
		s := dialRaw(t, srv, "/rpctest.Echo/Bidi", "Sec-WebSocket-Extensions: "+offer+"\r\n")
		if got := s.resp.Header.Get("Sec-Websocket-Extensions") != ""; got != want {
			t.Errorf("offer %q was accepted: %v, want %v", offer, got, want)
		}
		if want {
			_, _ = s.Write(frame(0xc2, []byte{0xff, 0xff, 0xff}))
			if code, _, err := s.closed(); code != 1007 {
				t.Errorf("garbage ends with close %d, %v, want 1007", code, err)
			}
		}
	}
}

// The limits of a panic: the call ends, the process does not.
func TestWebSocketPanic(t *testing.T) {
	srv := serveSockets(t, listeners.FrontConfig{}, func(ctx context.Context, call *rpc.Call) error {
		if _, err := call.Stream.Recv(ctx); err != nil {
			return err
		}
		panic("secret")
	})
	s := dialRaw(t, srv, "/rpctest.Echo/Bidi", "")
	_, _ = s.Write(frame(0x82, nil))
	if code, reason, err := s.closed(); code != 4013 || strings.Contains(reason, "secret") {
		t.Errorf("close %d %q, %v", code, reason, err)
	}
}

func FuzzWebSocketFrames(f *testing.F) {
	for _, b := range [][]byte{frame(0x82, rpctest.Value([]byte("x"))), frame(0x88, nil), {0x82, 0xff}, frame(0xc1, []byte{0xaa, 0}), frame(0x01, []byte("a"))} {
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, in []byte, deflate bool) {
		srv := serveSockets(t, listeners.FrontConfig{WebSocket: listeners.WebSocketConfig{Compression: deflate, MaxMessageBytes: 1 << 12}}, echo)
		s := dialRaw(t, srv, "/rpctest.Echo/Bidi", "Sec-WebSocket-Extensions: permessage-deflate\r\n")
		_, _ = s.Write(in)
		_ = s.Conn.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(io.LimitReader(s.r, 1<<20))
		if len(b) > 8*len(in)+1<<13 {
			t.Errorf("%d bytes were answered to %d", len(b), len(in))
		}
	})
}
