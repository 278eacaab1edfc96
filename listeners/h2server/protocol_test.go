package h2server_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestMalformed sends requests that are none (RFC 9113 8.2, 8.3): each is reset with PROTOCOL_ERROR and reaches no handler,
// and the connection goes on.
func TestMalformed(t *testing.T) {
	handled := make(chan string, 100)
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handled <- r.RequestURI })))
	for _, tc := range []struct {
		name   string
		fields []string
	}{
		{"upper case", get("/", "Accept: x")},
		{"space in a name", get("/", "a b: x")},
		{"colon in a name", get("/", "a:b: x")},
		{"NUL in a value", get("/", "a: x\x00")},
		{"line feed in a value", get("/", "a: x\ny")},
		{"carriage return in a value", get("/", "a: x\ry")},
		{"DEL in a value", get("/", "a: x\x7f")},
		{"no method", get("/")[1:]},
		{"no scheme", append(get("/")[:1:1], get("/")[2:]...)},
		{"no path", get("/")[:3]},
		{"empty path", get("")},
		{"path without a slash", get("a")},
		{"absolute path", get("http://a.example/")},
		{"path with a bad escape", get("/%zz")},
		{"asterisk", get("*")},
		{"empty method", append([]string{":method: "}, get("/")[1:]...)},
		{"method with a space", append([]string{":method: GE T"}, get("/")[1:]...)},
		{"scheme twice", get("/", ":scheme: http")},
		{"method twice", append(get("/"), ":method: GET")},
		{"foreign scheme", []string{":method: GET", ":scheme: ftp", ":authority: a", ":path: /"}},
		{"pseudo-header behind a field", []string{":method: GET", ":scheme: http", "a: b", ":path: /"}},
		{"status", get("/", ":status: 200")},
		{"unknown pseudo-header", get("/", ":protocol: websocket")},
		{"connection", get("/", "connection: close")},
		{"keep-alive", get("/", "keep-alive: 5")},
		{"proxy-connection", get("/", "proxy-connection: close")},
		{"transfer-encoding", post("/", "transfer-encoding: chunked")},
		{"upgrade", get("/", "upgrade: h2c")},
		{"te", get("/", "te: gzip")},
		{"host that is not the authority", get("/", "host: b.example")},
		{"two hosts", []string{":method: GET", ":scheme: http", ":path: /", "host: a", "host: b"}},
		{"user in the authority", []string{":method: GET", ":scheme: http", ":authority: u@a", ":path: /"}},
		{"authority that is none", []string{":method: GET", ":scheme: http", ":authority: a/b", ":path: /"}},
		{"content-length without a body", post("/", "content-length: 1")},
		{"content-length that is none", post("/", "content-length: x")},
		{"content-length with a sign", post("/", "content-length: +0")},
		{"negative content-length", post("/", "content-length: -1")},
		{"two lengths", post("/", "content-length: 0", "content-length: 1")},
		{"CONNECT with a path", []string{":method: CONNECT", ":authority: a:1", ":path: /"}},
		{"CONNECT without an authority", []string{":method: CONNECT"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, addr)
			c.headers(1, true, tc.fields...)
			c.wantNext("RST 1 PROTOCOL_ERROR")
			c.headers(3, true, get("/fine")...)
			c.want("HEADERS 3")
			if got := <-handled; got != "/fine" {
				t.Errorf("the handler got %s", got)
			}
		})
	}
}

// TestFrames sends frames in wrong places, of wrong lengths and the like: the stream or the connection ends with the code that
// RFC 9113 names.
func TestFrames(t *testing.T) {
	block := make(chan struct{})
	t.Cleanup(func() { close(block) })
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/block" {
			select {
			case <-block:
			case <-r.Context().Done():
			}
			return
		}
		echo(w, r)
	})))
	frame := func(length int, typ, flags byte, id uint32, payload string) string {
		return string([]byte{byte(length >> 16), byte(length >> 8), byte(length), typ, flags, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}) + payload
	}
	whole := func(typ, flags byte, id uint32, payload string) string {
		return frame(len(payload), typ, flags, id, payload)
	}
	for _, tc := range []struct {
		name string
		send func(c *client)
		want string
	}{
		{"DATA of stream 0", func(c *client) { c.raw(whole(0, 0, 0, "x")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"DATA of an idle stream", func(c *client) { c.raw(whole(0, 0, 1, "x")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"DATA of an even stream", func(c *client) { c.raw(whole(0, 0, 2, "x")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"DATA behind the end", func(c *client) {
			c.headers(1, true, get("/block")...)
			c.data(1, false, "x")
		}, "RST 1 STREAM_CLOSED"},
		{"DATA of a stream that has ended", func(c *client) {
			c.headers(1, true, get("/")...)
			c.want("DATA 1")
			c.data(1, false, "x")
		}, "RST 1 STREAM_CLOSED"},
		{"too much padding", func(c *client) {
			c.headers(1, false, post("/block")...)
			c.raw(whole(0, 8, 1, "\x05abc"))
		}, "GOAWAY 1 PROTOCOL_ERROR"},
		{"padded and empty", func(c *client) {
			c.headers(1, false, post("/block")...)
			c.raw(whole(0, 8, 1, ""))
		}, "GOAWAY 1 FRAME_SIZE_ERROR"},
		{"more than the content-length", func(c *client) {
			c.headers(1, false, post("/block", "content-length: 2")...)
			c.data(1, false, "abc")
		}, "RST 1 PROTOCOL_ERROR"},
		{"less than the content-length", func(c *client) {
			c.headers(1, false, post("/block", "content-length: 2")...)
			c.data(1, true, "a")
		}, "RST 1 PROTOCOL_ERROR"},
		{"trailers after less than the content-length", func(c *client) {
			c.headers(1, false, post("/block", "content-length: 2")...)
			c.data(1, false, "a")
			c.headers(1, true, "a: b")
		}, "RST 1 PROTOCOL_ERROR"},
		{"trailers that do not end", func(c *client) {
			c.headers(1, false, post("/block")...)
			c.headers(1, false, "a: b")
		}, "RST 1 PROTOCOL_ERROR"},
		{"pseudo-header in trailers", func(c *client) {
			c.headers(1, false, post("/block")...)
			c.headers(1, true, ":path: /")
		}, "RST 1 PROTOCOL_ERROR"},
		{"HEADERS behind the end", func(c *client) {
			c.headers(1, true, get("/block")...)
			c.headers(1, true, "a: b")
		}, "RST 1 STREAM_CLOSED"},
		{"HEADERS of a stream that has ended", func(c *client) {
			c.headers(1, true, get("/")...)
			c.want("DATA 1")
			c.headers(1, true, get("/")...)
		}, "GOAWAY 1 STREAM_CLOSED"},
		{"HEADERS of a lower stream", func(c *client) {
			c.headers(5, true, get("/")...)
			c.want("DATA 5")
			c.headers(3, true, get("/")...)
		}, "GOAWAY 5 STREAM_CLOSED"},
		{"HEADERS of stream 0", func(c *client) { c.headers(0, true, get("/")...) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"HEADERS of an even stream", func(c *client) { c.headers(2, true, get("/")...) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"HEADERS that depend on themselves", func(c *client) {
			_ = c.fr.WriteHeaders(http2.HeadersFrameParam{
				StreamID: 1, BlockFragment: c.block(get("/")...), EndStream: true, EndHeaders: true,
				Priority: http2.PriorityParam{StreamDep: 1, Weight: 3},
			})
		}, "RST 1 PROTOCOL_ERROR"},
		{"HEADERS cut off in their priority", func(c *client) { c.raw(whole(1, 0x24, 1, "abcd")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"HEADERS with too much padding", func(c *client) { c.raw(whole(1, 0xc, 1, "\x05abc")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"a header block that is not HPACK", func(c *client) { c.raw(whole(1, 5, 1, "\xff\xff\xff\xff\xff")) }, "GOAWAY 0 COMPRESSION_ERROR"},
		{"a header block cut off", func(c *client) { c.raw(whole(1, 5, 1, "\x40\x05ab")) }, "GOAWAY 0 COMPRESSION_ERROR"},
		{"CONTINUATION of nothing", func(c *client) { c.raw(whole(9, 4, 1, "")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"CONTINUATION of another stream", func(c *client) { c.raw(whole(1, 1, 1, "\x82") + whole(9, 4, 3, "")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"a frame inside a header block", func(c *client) { c.raw(whole(1, 1, 1, "\x82") + whole(6, 0, 0, "12345678")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"CONTINUATION without end", func(c *client) {
			c.raw(whole(1, 1, 1, "\x82"))
			for range 20 {
				_ = c.fr.WriteContinuation(1, false, []byte(strings.Repeat("\x00\x01a\x01b", 1000)))
			}
		}, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"empty CONTINUATION without end", func(c *client) {
			c.raw(whole(1, 1, 1, "\x82"))
			for range 1000 {
				_ = c.fr.WriteContinuation(1, false, nil)
			}
		}, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"PRIORITY of stream 0", func(c *client) { c.raw(whole(2, 0, 0, "\x00\x00\x00\x00\x01")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"PRIORITY of a wrong length", func(c *client) { c.raw(whole(2, 0, 1, "abcd")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"PRIORITY on itself", func(c *client) { c.raw(whole(2, 0, 1, "\x00\x00\x00\x01\x01")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"RST_STREAM of stream 0", func(c *client) { c.raw(whole(3, 0, 0, "\x00\x00\x00\x08")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"RST_STREAM of an idle stream", func(c *client) { c.raw(whole(3, 0, 1, "\x00\x00\x00\x08")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"RST_STREAM of a wrong length", func(c *client) { c.raw(whole(3, 0, 1, "abc")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"SETTINGS of a stream", func(c *client) { c.raw(whole(4, 0, 1, "")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"SETTINGS of a wrong length", func(c *client) { c.raw(whole(4, 0, 0, "abc")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"an acknowledgement with contents", func(c *client) { c.raw(whole(4, 1, 0, "\x00\x01\x00\x00\x00\x00")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"ENABLE_PUSH 2", func(c *client) { c.raw(whole(4, 0, 0, "\x00\x02\x00\x00\x00\x02")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"a window past 2 GiB", func(c *client) { c.raw(whole(4, 0, 0, "\x00\x04\x80\x00\x00\x00")) }, "GOAWAY 0 FLOW_CONTROL_ERROR"},
		{"frames shorter than the least", func(c *client) { c.raw(whole(4, 0, 0, "\x00\x05\x00\x00\x3f\xff")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"PUSH_PROMISE", func(c *client) { c.raw(whole(5, 4, 1, "\x00\x00\x00\x02")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"PING of a stream", func(c *client) { c.raw(whole(6, 0, 1, "12345678")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"PING of a wrong length", func(c *client) { c.raw(whole(6, 0, 0, "1234567")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"GOAWAY of a stream", func(c *client) { c.raw(whole(7, 0, 1, "12345678")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"GOAWAY of a wrong length", func(c *client) { c.raw(whole(7, 0, 0, "1234567")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"WINDOW_UPDATE of a wrong length", func(c *client) { c.raw(whole(8, 0, 0, "abc")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"WINDOW_UPDATE of 0", func(c *client) { c.raw(whole(8, 0, 0, "\x00\x00\x00\x00")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"WINDOW_UPDATE past 2 GiB", func(c *client) { c.raw(whole(8, 0, 0, "\x7f\xff\xff\xff")) }, "GOAWAY 0 FLOW_CONTROL_ERROR"},
		{"WINDOW_UPDATE of an idle stream", func(c *client) { c.raw(whole(8, 0, 1, "\x00\x00\x00\x01")) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of 0 on a stream", func(c *client) {
			c.headers(1, true, get("/block")...)
			c.raw(whole(8, 0, 1, "\x00\x00\x00\x00"))
		}, "RST 1 PROTOCOL_ERROR"},
		{"WINDOW_UPDATE past 2 GiB on a stream", func(c *client) {
			c.headers(1, true, get("/block")...)
			c.raw(whole(8, 0, 1, "\x7f\xff\xff\xff"))
		}, "RST 1 FLOW_CONTROL_ERROR"},
		{"SETTINGS that raise a stream's window past 2 GiB", func(c *client) {
			c.headers(1, true, get("/block")...)
			c.raw(whole(8, 0, 1, "\x7f\xff\x00\x00") + whole(4, 0, 0, "\x00\x04\x7f\xff\xff\xff"))
		}, "GOAWAY 1 FLOW_CONTROL_ERROR"},
		{"more than the stream's window", func(c *client) {
			c.headers(1, false, post("/block")...)
			for range 5 {
				c.data(1, false, strings.Repeat("x", 16000))
			}
		}, "RST 1 FLOW_CONTROL_ERROR"},
		{"more than the connection's window", func(c *client) {
			for i := range uint32(20) {
				c.headers(2*i+1, false, post("/block")...)
				for range 4 {
					c.data(2*i+1, false, strings.Repeat("x", 16000))
				}
			}
		}, "GOAWAY 33 FLOW_CONTROL_ERROR"},
		{"a frame that is too long", func(c *client) { c.raw(frame(16<<10+1, 0, 0, 1, "x")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"a long frame of an unknown type", func(c *client) { c.raw(frame(16<<10+1, 99, 0, 1, "x")) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"PING again and again", func(c *client) {
			for range 4000 {
				_ = c.fr.WritePing(false, [8]byte{})
			}
		}, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"SETTINGS again and again", func(c *client) {
			for range 4000 {
				_ = c.fr.WriteSettings()
			}
		}, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"PRIORITY again and again", func(c *client) {
			for range 4000 {
				_ = c.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3})
			}
		}, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"WINDOW_UPDATE again and again", func(c *client) {
			for range 4000 {
				_ = c.fr.WriteWindowUpdate(0, 1)
			}
		}, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"unknown frames again and again", func(c *client) {
			for range 4000 {
				c.raw(whole(99, 0, 0, ""))
			}
		}, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"empty DATA again and again", func(c *client) {
			c.headers(1, false, post("/block")...)
			for range 4000 {
				c.data(1, false, "")
			}
		}, "GOAWAY 1 ENHANCE_YOUR_CALM"},
		{"RST_STREAM again and again", func(c *client) {
			c.headers(1, true, get("/")...)
			c.want("DATA 1")
			for range 4000 {
				_ = c.fr.WriteRSTStream(1, http2.ErrCodeCancel)
			}
		}, "GOAWAY 1 ENHANCE_YOUR_CALM"},
		{"rapid reset", func(c *client) {
			for i := range uint32(1000) {
				c.headers(2*i+1, true, get("/block")...)
				_ = c.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			}
		}, "GOAWAY 999 ENHANCE_YOUR_CALM"},
		{"made you reset", func(c *client) {
			for i := range uint32(1000) {
				c.headers(2*i+1, true, get("/block")...)
				_ = c.fr.WriteWindowUpdate(2*i+1, 0)
			}
		}, "GOAWAY 999 ENHANCE_YOUR_CALM"},
		{"malformed again and again", func(c *client) {
			for i := range uint32(1000) {
				c.headers(2*i+1, true, get("")...)
			}
		}, "GOAWAY 999 ENHANCE_YOUR_CALM"},
		{"a header bomb, twice", func(c *client) {
			bomb := append(c.block(get("/", "x: "+strings.Repeat("x", 3900))...), bytes.Repeat([]byte{0x80 | 62}, 12_000)...)
			for i := range uint32(2) {
				_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: bomb, EndStream: true, EndHeaders: true})
			}
		}, "GOAWAY 1 ENHANCE_YOUR_CALM"},
		{"refused again and again", func(c *client) {
			for i := range uint32(1000) {
				c.headers(2*i+1, true, get("/block")...)
			}
		}, "GOAWAY 999 ENHANCE_YOUR_CALM"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, addr)
			tc.send(c)
			c.want(tc.want)
			if strings.HasPrefix(tc.want, "RST") {
				c.wantPing()
				return
			}
			if got := c.next(); got != "EOF" {
				t.Errorf("after it came %s", got)
			}
		})
	}
}

// TestBeginnings are connections that do not begin as they should.
func TestBeginnings(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(echo)))
	for _, tc := range []struct{ name, send, want string }{
		{"no preface", strings.Repeat("x", 24), "GOAWAY 0 PROTOCOL_ERROR"},
		{"HTTP/1.1", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GOAWAY 0 PROTOCOL_ERROR"},
		{"PING before SETTINGS", http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", "GOAWAY 0 PROTOCOL_ERROR"},
		{"an acknowledgement before SETTINGS", http2.ClientPreface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00", "GOAWAY 0 PROTOCOL_ERROR"},
	} {
		c := dialBare(t, addr)
		c.raw(tc.send)
		c.want(tc.want)
		if got := c.next(); got != "EOF" {
			t.Errorf("%s: after it came %s", tc.name, got)
		}
	}
}
