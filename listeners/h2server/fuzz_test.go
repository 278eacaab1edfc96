package h2server_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"transom/listeners/h2server"
)

// canned is a connection that brings what it has been given and then ends. What is written to it is kept.
type canned struct {
	net.Conn // nil: no other method is used
	in       *bytes.Reader

	mu     sync.Mutex
	out    bytes.Buffer
	closed bool
}

func (c *canned) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	return c.in.Read(p)
}

func (c *canned) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *canned) Close() error                     { return nil }
func (c *canned) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
func (c *canned) SetReadDeadline(time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

// frames is what a client sends that send writes, after its preface and SETTINGS.
func frames(send func(fr *http2.Framer, block func(fields ...string) []byte)) []byte {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	fr.AllowIllegalWrites = true
	c := &client{fr: fr}
	c.enc = hpack.NewEncoder(&c.buf)
	_ = fr.WriteSettings()
	send(fr, c.block)
	return b.Bytes()
}

func newEncoder(c *client) *hpack.Encoder { return hpack.NewEncoder(&c.buf) }

// FuzzHeaders has a client send any header block at all.
func FuzzHeaders(f *testing.F) {
	c := &client{}
	c.enc = newEncoder(c)
	for _, fields := range [][]string{get("/a?b", "x-a: b"), post("*", "content-length: 7"), {":method: CONNECT", ":authority: [::1]:8"}, {"host: a", ":path: /"}} {
		f.Add(bytes.Clone(c.block(fields...)), true)
	}
	f.Add([]byte("\x82\x86\x84\x41\x01a\x00\x03A b\x01\n"), false)
	f.Fuzz(func(t *testing.T, block []byte, end bool) {
		check(t, frames(func(fr *http2.Framer, _ func(fields ...string) []byte) {
			cut := len(block) / 2
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:cut], EndStream: end})
			_ = fr.WriteContinuation(1, true, block[cut:])
			_ = fr.WriteData(1, true, []byte("hello"))
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block, EndStream: true, EndHeaders: true})
		}))
	})
}

// FuzzFrames has a client send anything at all: the connection ends, every handler returns, what a handler gets is a request,
// and what the client gets is HTTP/2.
func FuzzFrames(f *testing.F) {
	for _, send := range []func(fr *http2.Framer, block func(fields ...string) []byte){
		func(fr *http2.Framer, block func(fields ...string) []byte) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(get("/a?b", "cookie: a", "cookie: b", "te: trailers")...), EndStream: true, EndHeaders: true})
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block(post("/echo", "content-length: 5")...), EndHeaders: true})
			_ = fr.WriteDataPadded(3, false, []byte("hel"), []byte{0})
			_ = fr.WriteData(3, true, []byte("lo"))
			_ = fr.WriteWindowUpdate(3, 100)
			_ = fr.WritePing(false, [8]byte{1})
		},
		func(fr *http2.Framer, block func(fields ...string) []byte) {
			b := block(post("/long", "expect: 100-continue", "x: "+strings.Repeat("x", 300))...)
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:9], Priority: http2.PriorityParam{StreamDep: 5, Weight: 1}})
			_ = fr.WriteContinuation(1, true, b[9:])
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("a: b"), EndStream: true, EndHeaders: true})
			_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
			_ = fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		},
		func(fr *http2.Framer, block func(fields ...string) []byte) {
			for i := range uint32(8) {
				_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block(post("/panic")...), EndHeaders: true})
				_ = fr.WriteData(2*i+1, false, make([]byte, 3000))
				_ = fr.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 2*i + 3})
			}
		},
	} {
		f.Add(frames(send))
	}
	f.Fuzz(check)
}

// check serves a client that sends in, with the laws of FuzzFrames.
func check(t *testing.T, in []byte) {
	t.Helper()
	cfg := config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/") && r.Method != http.MethodConnect || !httpguts.ValidHostHeader(r.Host) {
			t.Errorf("%+v", r)
		}
		for name, values := range r.Header {
			for _, v := range values {
				if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) || http.CanonicalHeaderKey(name) != name {
					t.Errorf("field %q: %q", name, v)
				}
			}
		}
		switch r.URL.Path {
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/long":
			_, _ = w.Write(make([]byte, 20_000))
		}
		n, err := io.Copy(w, r.Body)
		if err == nil && r.ContentLength >= 0 && n != r.ContentLength {
			t.Errorf("a body of %d bytes, content-length %d", n, r.ContentLength)
		}
		w.Header()[http.TrailerPrefix+"X"] = []string{"y"}
	}))
	cfg.MaxStreams, cfg.MaxHeaderBytes = 4, 1<<10
	s := h2server.New(cfg)
	defer s.Close()
	c := &canned{in: bytes.NewReader(in)}
	ended := make(chan struct{})
	go func() {
		s.Serve(context.WithoutCancel(t.Context()), h2server.Socket{Conn: c, Raw: c, Begun: true})
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the connection hangs")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fr := http2.NewFramer(nil, &c.out)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	over := map[uint32]bool{}
	for {
		f, err := fr.ReadFrame()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("what the client gets: %v", err)
		}
		id := f.Header().StreamID
		_, isReset := f.(*http2.RSTStreamFrame)
		if _, isUpdate := f.(*http2.WindowUpdateFrame); over[id] && !isReset && !isUpdate {
			t.Errorf("%v after the end of its stream", f.Header())
		}
		if f.Header().Flags.Has(http2.FlagDataEndStream) && (f.Header().Type == http2.FrameData || f.Header().Type == http2.FrameHeaders) {
			over[id] = true
		}
	}
}

// TestTruncated cuts a connection at every byte: it ends, whatever was begun.
func TestTruncated(t *testing.T) {
	all := frames(func(fr *http2.Framer, block func(fields ...string) []byte) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(post("/")...), EndHeaders: true})
		_ = fr.WriteDataPadded(1, false, []byte("hello"), []byte{0, 0})
		_ = fr.WriteData(1, true, nil)
	})
	s := h2server.New(config(http.HandlerFunc(echo)))
	defer s.Close()
	for n := range all {
		c := &canned{in: bytes.NewReader(all[:n])}
		s.Serve(t.Context(), h2server.Socket{Conn: c, Raw: c, Begun: true})
	}
}
