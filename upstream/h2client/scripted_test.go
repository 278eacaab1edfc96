package h2client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"transom/upstream/h2client"
)

// peer is a server that does as it is told.
type peer struct {
	tb   testing.TB
	nc   net.Conn
	fr   *http2.Framer
	enc  *hpack.Encoder
	ebuf bytes.Buffer
}

// scripted starts a server that runs serve on its one connection, after the client's preface and with its own settings
// sent, and connects to it.
func scripted(tb testing.TB, cfg h2client.Config, settings []http2.Setting, serve func(*peer)) *h2client.Conn {
	tb.Helper()
	c, err := connect(tb, cfg, func(p *peer) {
		if err := p.fr.WriteSettings(settings...); err != nil {
			return
		}
		serve(p)
	})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func connect(tb testing.TB, cfg h2client.Config, serve func(*peer)) (*h2client.Conn, error) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		p := &peer{tb: tb, nc: nc, fr: http2.NewFramer(nc, nc)}
		p.fr.AllowIllegalWrites = true
		p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		p.enc = hpack.NewEncoder(&p.ebuf)
		var preface [24]byte
		if _, err := io.ReadFull(nc, preface[:]); err != nil {
			return
		}
		serve(p)
	})
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Authority = "test"
	c, err := h2client.New(soon(tb), nc, cfg)
	tb.Cleanup(func() {
		if c != nil {
			c.Close()
		}
		ln.Close()
		wg.Wait()
	})
	return c, err
}

// next returns the next frame of a type, or nil when the client has left.
func next[T http2.Frame](p *peer) (frame T) {
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return frame
		}
		if f, ok := f.(T); ok {
			return f
		}
	}
}

// call returns the stream of the next request, 0 when the client has left.
func (p *peer) call() uint32 {
	h := next[*http2.MetaHeadersFrame](p)
	if h == nil {
		return 0
	}
	return h.StreamID
}

// drain reads until the client leaves.
func (p *peer) drain() { _, _ = io.Copy(io.Discard, p.nc) }

func (p *peer) block(fields ...string) []byte {
	p.ebuf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.ebuf.Bytes())
}

func (p *peer) headers(id uint32, end bool, fields ...string) {
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(fields...), EndStream: end, EndHeaders: true})
}

var okHeaders = []string{":status", "200", "content-type", "application/grpc"}

func (p *peer) begin(id uint32)                      { p.headers(id, false, okHeaders...) }
func (p *peer) data(id uint32, end bool, b ...byte)  { _ = p.fr.WriteData(id, end, b) }
func (p *peer) trailers(id uint32, fields ...string) { p.headers(id, true, fields...) }

// hi is a message.
var hi = []byte{0, 0, 0, 0, 2, 'h', 'i'}

// answer answers a call well.
func (p *peer) answer(id uint32) {
	p.begin(id)
	p.data(id, false, hi...)
	p.trailers(id, "grpc-status", "0")
}

// want is how a call ends.
type want struct {
	code   codes.Code
	origin h2client.Origin
	text   string // in the message
	// unprocessed is of the Error; gone says that the connection is over for further calls.
	unprocessed, gone bool
}

var good = want{} // a call that succeeds with "hi", on a connection that goes on

var oddServers = []struct {
	name  string
	serve func(p *peer, id uint32)
	want  want
}{
	{"an answer", func(p *peer, id uint32) { p.answer(id) }, good},
	{"OK without a message", func(p *peer, id uint32) {
		p.trailers(id, ":status", "200", "content-type", "application/grpc", "grpc-status", "0")
	}, want{code: codes.Unimplemented, origin: h2client.OriginProtocol}},
	{"trailers only", func(p *peer, id uint32) {
		p.trailers(id, ":status", "200", "content-type", "application/grpc", "grpc-status", "5", "grpc-message", "no%20such %zz")
	}, want{code: codes.NotFound, text: "no such %zz"}},
	{"trailers only without content-type", func(p *peer, id uint32) {
		p.trailers(id, ":status", "200", "grpc-status", "5")
	}, want{code: codes.NotFound}},
	{"trailers only with another HTTP status", func(p *peer, id uint32) {
		p.trailers(id, ":status", "503", "content-type", "application/grpc", "grpc-status", "5")
	}, want{code: codes.NotFound}},
	{"HTTP 503", func(p *peer, id uint32) {
		p.trailers(id, ":status", "503")
	}, want{code: codes.Unavailable, origin: h2client.OriginHTTP, text: "503"}},
	{"HTTP 404 with a page", func(p *peer, id uint32) {
		p.headers(id, false, ":status", "404", "content-type", "text/html")
		p.data(id, true, []byte("<html>")...)
	}, want{code: codes.Unimplemented, origin: h2client.OriginHTTP, text: "404"}},
	{"HTTP 200 with a page", func(p *peer, id uint32) {
		p.headers(id, false, ":status", "200", "content-type", "text/html")
		p.data(id, true, []byte("<html>")...)
	}, want{code: codes.Unknown, origin: h2client.OriginHTTP, text: "text/html"}},
	{"content-type application/grpcx", func(p *peer, id uint32) {
		p.headers(id, false, ":status", "200", "content-type", "application/grpcx")
	}, want{code: codes.Unknown, origin: h2client.OriginHTTP}},
	{"content-type application/grpc+json", func(p *peer, id uint32) {
		p.headers(id, false, ":status", "200", "content-type", "application/grpc+json")
	}, want{code: codes.Unknown, origin: h2client.OriginHTTP}},
	{"content-type with parameters", func(p *peer, id uint32) {
		p.headers(id, false, ":status", "200", "content-type", "application/grpc;charset=utf-8")
		p.data(id, false, hi...)
		p.trailers(id, "grpc-status", "0")
	}, good},
	{"trailers without grpc-status", func(p *peer, id uint32) {
		p.begin(id)
		p.data(id, false, hi...)
		p.trailers(id, "k", "v")
	}, want{code: codes.Unknown, origin: h2client.OriginProtocol}},
	{"malformed grpc-status", func(p *peer, id uint32) {
		p.begin(id)
		p.trailers(id, "grpc-status", "x")
	}, want{code: codes.Unknown, origin: h2client.OriginProtocol}},
	{
		"undefined grpc-status", func(p *peer, id uint32) {
			p.begin(id)
			p.trailers(id, "grpc-status", "99", "grpc-message", "odd")
		},
		want{code: codes.Unknown, text: "odd"},
	},
	{
		"no trailers", func(p *peer, id uint32) { p.begin(id); p.data(id, true, hi...) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{"two messages", func(p *peer, id uint32) {
		p.begin(id)
		p.data(id, false, append(hi, hi...)...)
		p.trailers(id, "grpc-status", "0")
	}, want{code: codes.Unimplemented, origin: h2client.OriginProtocol}},
	{"a message and an error", func(p *peer, id uint32) {
		p.begin(id)
		p.data(id, false, hi...)
		p.trailers(id, "grpc-status", "9")
	}, want{code: codes.FailedPrecondition}},
	{"a message cut short", func(p *peer, id uint32) {
		p.begin(id)
		p.data(id, false, hi[:6]...)
		p.trailers(id, "grpc-status", "0")
	}, want{code: codes.Internal, origin: h2client.OriginProtocol}},
	{"a prefix cut short", func(p *peer, id uint32) {
		p.begin(id)
		p.data(id, false, append(hi, 0, 0)...)
		p.trailers(id, "grpc-status", "0")
	}, want{code: codes.Internal, origin: h2client.OriginProtocol}},
	{"a message over the limit", func(p *peer, id uint32) {
		p.begin(id)
		p.data(id, false, 0, 0xff, 0xff, 0xff, 0xff, 'x')
		p.data(id, false, hi...)
	}, want{code: codes.ResourceExhausted, origin: h2client.OriginLimit, text: "4294967295"}},
	{
		"an invalid flag", func(p *peer, id uint32) { p.begin(id); p.data(id, false, 2, 0, 0, 0, 0) },
		want{code: codes.Internal, origin: h2client.OriginProtocol, text: "0x02"},
	},
	{
		"compressed with no encoding", func(p *peer, id uint32) { p.begin(id); p.data(id, false, 1, 0, 0, 0, 0) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		"data before headers", func(p *peer, id uint32) { p.data(id, false, hi...) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{"one byte at a time", func(p *peer, id uint32) {
		p.begin(id)
		for _, b := range hi {
			p.data(id, false, b)
			p.data(id, false)
		}
		p.trailers(id, "grpc-status", "0")
	}, good},
	{
		"RST_STREAM REFUSED_STREAM", func(p *peer, id uint32) { _ = p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) },
		want{code: codes.Unavailable, origin: h2client.OriginReset, unprocessed: true},
	},
	{
		"RST_STREAM CANCEL", func(p *peer, id uint32) { _ = p.fr.WriteRSTStream(id, http2.ErrCodeCancel) },
		want{code: codes.Canceled, origin: h2client.OriginReset},
	},
	{
		"RST_STREAM ENHANCE_YOUR_CALM", func(p *peer, id uint32) { _ = p.fr.WriteRSTStream(id, http2.ErrCodeEnhanceYourCalm) },
		want{code: codes.ResourceExhausted, origin: h2client.OriginReset},
	},
	{
		"RST_STREAM INADEQUATE_SECURITY", func(p *peer, id uint32) { _ = p.fr.WriteRSTStream(id, http2.ErrCodeInadequateSecurity) },
		want{code: codes.PermissionDenied, origin: h2client.OriginReset},
	},
	{"RST_STREAM NO_ERROR after the message", func(p *peer, id uint32) {
		p.begin(id)
		p.data(id, false, hi...)
		_ = p.fr.WriteRSTStream(id, http2.ErrCodeNo)
	}, want{code: codes.Internal, origin: h2client.OriginReset}},
	{"RST_STREAM NO_ERROR after the end", func(p *peer, id uint32) { p.answer(id); _ = p.fr.WriteRSTStream(id, http2.ErrCodeNo) }, good},
	{
		"GOAWAY before the call", func(p *peer, _ uint32) { _ = p.fr.WriteGoAway(0, http2.ErrCodeNo, []byte("bye")) },
		want{code: codes.Unavailable, origin: h2client.OriginConn, unprocessed: true, gone: true},
	},
	{"GOAWAY behind the call, twice", func(p *peer, id uint32) {
		_ = p.fr.WriteGoAway(math.MaxInt32, http2.ErrCodeNo, nil)
		_ = p.fr.WriteGoAway(id, http2.ErrCodeNo, nil)
		p.answer(id)
	}, want{gone: true}},
	{
		"the connection is lost", func(p *peer, _ uint32) { p.nc.Close() },
		want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true},
	},
	{"the connection is lost inside a frame", func(p *peer, id uint32) {
		p.begin(id)
		_, _ = p.nc.Write([]byte{0, 0, 9, 0, 0, 0, 0, 0, byte(id), 0, 0, 0, 0, 9, 'x'})
		p.nc.Close()
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{"interim responses", func(p *peer, id uint32) {
		p.headers(id, false, ":status", "103", "link", "x")
		p.headers(id, false, ":status", "100")
		p.answer(id)
	}, good},
	{
		"an interim response at the end", func(p *peer, id uint32) { p.headers(id, true, ":status", "103") },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{"padding everywhere", func(p *peer, id uint32) {
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: p.block(okHeaders...), EndHeaders: true, PadLength: 200,
			Priority: http2.PriorityParam{StreamDep: 0, Weight: 3},
		})
		_ = p.fr.WriteDataPadded(id, false, nil, make([]byte, 255))
		_ = p.fr.WriteDataPadded(id, false, hi[:3], make([]byte, 100))
		_ = p.fr.WriteDataPadded(id, false, hi[3:], make([]byte, 1))
		p.trailers(id, "grpc-status", "0")
	}, good},
	{"more padding than data", func(p *peer, id uint32) {
		p.begin(id)
		_, _ = p.nc.Write([]byte{0, 0, 2, 0, 8, 0, 0, 0, byte(id), 9, 9})
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{"CONTINUATION", func(p *peer, id uint32) {
		b := p.block(append(okHeaders, "k", "v")...)
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:1]})
		_ = p.fr.WriteContinuation(id, false, nil)
		_ = p.fr.WriteContinuation(id, false, b[1:3])
		_ = p.fr.WriteContinuation(id, true, b[3:])
		p.data(id, false, hi...)
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true})
		_ = p.fr.WriteContinuation(id, true, p.block("grpc-status", "0"))
	}, good},
	{"a header block interrupted", func(p *peer, id uint32) {
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(okHeaders...)})
		_ = p.fr.WritePing(false, [8]byte{})
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{
		"CONTINUATION of nothing", func(p *peer, id uint32) { _ = p.fr.WriteContinuation(id, true, nil) },
		want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true},
	},
	{"CONTINUATION without end", func(p *peer, id uint32) {
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id})
		for p.fr.WriteContinuation(id, false, make([]byte, 16<<10)) == nil {
		}
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{"empty CONTINUATION without end", func(p *peer, id uint32) {
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id})
		for p.fr.WriteContinuation(id, false, nil) == nil {
		}
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{"metadata over the limit", func(p *peer, id uint32) {
		b := p.block(append(okHeaders, "k", strings.Repeat("\x01x", 40<<10))...)
		for first := true; len(b) > 0; first = false {
			n := min(len(b), 16<<10)
			if first {
				_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:n]})
			} else {
				_ = p.fr.WriteContinuation(id, n == len(b), b[:n])
			}
			b = b[n:]
		}
	}, want{code: codes.ResourceExhausted, origin: h2client.OriginLimit}},
	{
		"a field name in upper case", func(p *peer, id uint32) { p.headers(id, false, append(okHeaders, "K", "v")...) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		"a line break in a value", func(p *peer, id uint32) { p.headers(id, false, append(okHeaders, "k", "v\r\nx: y")...) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		"a binary value that is not base64", func(p *peer, id uint32) { p.headers(id, false, append(okHeaders, "k-bin", "!")...) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		"no :status", func(p *peer, id uint32) { p.headers(id, false, "content-type", "application/grpc") },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		"two :status", func(p *peer, id uint32) { p.headers(id, false, append([]string{":status", "200"}, okHeaders...)...) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		":status in the trailers", func(p *peer, id uint32) { p.begin(id); p.trailers(id, append(okHeaders, "grpc-status", "0")...) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		"headers in the middle", func(p *peer, id uint32) { p.begin(id); p.headers(id, false, "k", "v") },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{"frames of no meaning", func(p *peer, id uint32) {
		_ = p.fr.WriteRawFrame(0xee, 0xff, id, []byte("x"))
		_ = p.fr.WriteRawFrame(0xee, 0xff, 0, nil)
		_ = p.fr.WritePriority(id, http2.PriorityParam{StreamDep: 7})
		_ = p.fr.WriteSettings(http2.Setting{ID: 0xabcd, Val: 1})
		_ = p.fr.WriteWindowUpdate(id, 1)
		_ = p.fr.WritePing(false, [8]byte{1})
		p.answer(id)
		_ = p.fr.WriteWindowUpdate(id, 1)
		p.data(id, false, hi...)
	}, good},
	{"PUSH_PROMISE", func(p *peer, id uint32) {
		_ = p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: id, PromiseID: 2, EndHeaders: true})
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{
		"a frame too long", func(p *peer, id uint32) { p.begin(id); p.data(id, false, make([]byte, 16<<10+1)...) },
		want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true},
	},
	{
		"data of a stream never opened", func(p *peer, id uint32) { p.data(id+2, false, hi...) },
		want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true},
	},
	{
		"a reset of a stream of its own", func(p *peer, _ uint32) { _ = p.fr.WriteRSTStream(2, http2.ErrCodeNo) },
		want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true},
	},
	{
		"a window update of 0", func(p *peer, id uint32) { _ = p.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4)) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		"a stream's window over 2 GiB", func(p *peer, id uint32) { _ = p.fr.WriteWindowUpdate(id, math.MaxInt32) },
		want{code: codes.Internal, origin: h2client.OriginProtocol},
	},
	{
		"the connection's window over 2 GiB", func(p *peer, _ uint32) { _ = p.fr.WriteWindowUpdate(0, math.MaxInt32) },
		want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true},
	},
	{"an index out of the table", func(p *peer, id uint32) {
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0xff, 0x20}, EndHeaders: true})
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{"a header block cut short", func(p *peer, id uint32) {
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x00, 0x05, 'a'}, EndHeaders: true})
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{
		"SETTINGS of half an entry", func(p *peer, _ uint32) { _ = p.fr.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 3)) },
		want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true},
	},
	{"SETTINGS_MAX_FRAME_SIZE too small", func(p *peer, _ uint32) {
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1})
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{"SETTINGS_INITIAL_WINDOW_SIZE too large", func(p *peer, _ uint32) {
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{
		"a PING of 7 bytes", func(p *peer, _ uint32) { _ = p.fr.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) },
		want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true},
	},
	{"PINGs without end", func(p *peer, _ uint32) {
		var b bytes.Buffer
		fr := http2.NewFramer(&b, nil)
		for range 1000 {
			_ = fr.WritePing(false, [8]byte{})
		}
		for {
			if _, err := p.nc.Write(b.Bytes()); err != nil {
				return
			}
		}
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
	{"empty DATA without end", func(p *peer, id uint32) {
		p.begin(id)
		b := bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 0, 0, byte(id)}, 1000)
		for {
			if _, err := p.nc.Write(b); err != nil {
				return
			}
		}
	}, want{code: codes.Unavailable, origin: h2client.OriginConn, gone: true}},
}

func TestOddServers(t *testing.T) {
	for _, tc := range oddServers {
		t.Run(tc.name, func(t *testing.T) {
			c := scripted(t, h2client.Config{}, nil, func(p *peer) {
				tc.serve(p, p.call())
				if id := p.call(); id != 0 { // whatever came before, the next call is not affected
					p.answer(id)
				}
				p.drain()
			})
			var reply h2client.Reply
			err := c.Unary(soon(t), "/a.B/C", nil, msg([]byte("x")), &reply)
			if tc.want.code == codes.OK {
				if err != nil || string(reply.Message.Data.Materialize()) != "hi" {
					t.Fatalf("%v, %q", err, reply.Message.Data.Materialize())
				}
			} else {
				e := errorOf(t, err)
				if e.Code != tc.want.code || e.Origin != tc.want.origin || e.Unprocessed != tc.want.unprocessed || !strings.Contains(e.Message, tc.want.text) {
					t.Errorf("got %v, origin %v, unprocessed %v: %v; want %+v", e.Code, e.Origin, e.Unprocessed, e, tc.want)
				}
				if len(reply.Message.Data) != 0 {
					t.Error("a failed call has a message")
				}
			}
			reply.Message.Free()
			if tc.want.gone {
				<-c.Draining()
				if c.Err() == nil {
					t.Error("nobody says why the connection is gone")
				}
				return
			}
			if err := c.Unary(soon(t), "/a.B/C", nil, msg([]byte("x")), &reply); err != nil || string(reply.Message.Data.Materialize()) != "hi" {
				t.Errorf("the next call: %v", err)
			}
			reply.Message.Free()
			if n := c.InFlight(); n != 0 {
				t.Errorf("%d calls in flight at the end", n)
			}
		})
	}
}

func TestNotHTTP2(t *testing.T) {
	for name, serve := range map[string]func(*peer){
		"HTTP/1":            func(p *peer) { _, _ = io.WriteString(p.nc, "HTTP/1.1 400 Bad Request\r\n\r\n") },
		"PING first":        func(p *peer) { _ = p.fr.WritePing(false, [8]byte{}); p.drain() },
		"an ACK first":      func(p *peer) { _ = p.fr.WriteSettingsAck(); p.drain() },
		"nothing":           func(*peer) {},
		"GOAWAY first":      func(p *peer) { _ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil); p.drain() },
		"SETTINGS cut":      func(p *peer) { _, _ = p.nc.Write([]byte{0, 0, 6, 4, 0}) },
		"SETTINGS of push":  func(p *peer) { _ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 1}); p.drain() },
		"SETTINGS on a one": func(p *peer) { _ = p.fr.WriteRawFrame(http2.FrameSettings, 0, 1, nil); p.drain() },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := connect(t, h2client.Config{}, serve); err == nil {
				t.Error("connected")
			} else {
				t.Log(err)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := h2client.New(ctx, ours, h2client.Config{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		theirs.Close()
	})
}

// TestPipe uses a connection that cannot be written to without waiting.
func TestPipe(t *testing.T) {
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer theirs.Close()
		p := &peer{tb: t, nc: theirs, fr: http2.NewFramer(theirs, theirs)}
		p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		p.enc = hpack.NewEncoder(&p.ebuf)
		_, _ = io.ReadFull(theirs, make([]byte, 24))
		_ = next[*http2.SettingsFrame](p)
		_ = p.fr.WriteSettings()
		for id := p.call(); id != 0; id = p.call() {
			p.answer(id)
		}
	})
	c, err := h2client.New(soon(t), ours, h2client.Config{Authority: "pipe"})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		var reply h2client.Reply
		if err := c.Unary(soon(t), "/a.B/C", nil, msg([]byte("x")), &reply); err != nil {
			t.Fatal(err)
		}
		reply.Message.Free()
	}
	c.Close()
	wg.Wait()
}

// TestMaxStreams sees that calls wait in turn for the number of streams that the server takes, live, and can give up.
func TestMaxStreams(t *testing.T) {
	set := func(p *peer, n uint32) {
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: n})
	}
	step := make(chan struct{})
	c := scripted(t, h2client.Config{}, []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}, func(p *peer) {
		<-step
		set(p, 1)
		for range 3 { // in the order in which they came
			h := next[*http2.MetaHeadersFrame](p)
			p.headers(h.StreamID, false, append(okHeaders, "path", h.PseudoValue("path"))...)
			<-step
			p.data(h.StreamID, false, hi...)
			p.trailers(h.StreamID, "grpc-status", "0")
		}
		p.drain()
	})
	if c.MaxStreams() != 0 {
		t.Fatalf("MaxStreams %d", c.MaxStreams())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	order := make(chan string, 3)
	waiting := 0
	for i := range 5 {
		ctx := ctx
		if i%2 == 0 {
			ctx = soon(t)
		}
		wg.Go(func() {
			var reply h2client.Reply
			err := c.Unary(ctx, fmt.Sprintf("/a.B/%d", i), nil, msg([]byte("x")), &reply)
			if i%2 == 1 {
				if e := errorOf(t, err); e.Code != codes.Canceled {
					t.Errorf("given up: %v", err)
				}
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			reply.Message.Free()
			order <- reply.Header.Get("path")[0]
		})
		for waiting++; c.Waiting() < waiting; {
			<-time.After(time.Millisecond)
		}
	}
	cancel()
	for c.Waiting() > 3 {
		<-time.After(time.Millisecond)
	}
	step <- struct{}{}
	for _, want := range []string{"/a.B/0", "/a.B/2", "/a.B/4"} {
		step <- struct{}{}
		if got := <-order; got != want {
			t.Errorf("served %s, want %s", got, want)
		}
	}
	wg.Wait()
	if c.Waiting() != 0 || c.InFlight() != 0 {
		t.Errorf("%d waiting, %d in flight", c.Waiting(), c.InFlight())
	}
}

// TestWaitingIsRefused sees that calls that wait for a place are refused when the connection drains or closes.
func TestWaitingIsRefused(t *testing.T) {
	for name, end := range map[string]func(*h2client.Conn, *peer){
		"GOAWAY": func(_ *h2client.Conn, p *peer) { _ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) },
		"Drain":  func(c *h2client.Conn, _ *peer) { c.Drain() },
		"Close":  func(c *h2client.Conn, _ *peer) { c.Close() },
		"lost":   func(_ *h2client.Conn, p *peer) { p.nc.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan *peer, 1)
			c := scripted(t, h2client.Config{}, []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}, func(p *peer) {
				got <- p
				p.drain()
			})
			p := <-got
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if _, err := c.NewStream(t.Context(), "/a.B/C", nil); !errorOf(t, err).Unprocessed {
						t.Errorf("%+v", err)
					}
				})
			}
			for c.Waiting() < 3 {
				<-time.After(time.Millisecond)
			}
			end(c, p)
			wg.Wait()
			<-c.Done()
		})
	}
}

// TestUnsent sees that a call whose headers never left is told so, and that they do not leave with the connection's end.
func TestUnsent(t *testing.T) {
	for range 20 {
		seen := make(chan bool, 1)
		c := scripted(t, h2client.Config{}, nil, func(p *peer) { seen <- next[*http2.MetaHeadersFrame](p) != nil })
		s, err := c.NewStream(t.Context(), "/a.B/C", nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		_, err = s.Recv()
		unsent := errorOf(t, err).Unprocessed
		if <-seen && unsent {
			t.Error("the server has seen the call")
		}
		if unsent {
			return
		}
		// The headers have left with the acknowledgement of the server's SETTINGS.
	}
	t.Error("no call is told that it was not sent")
}

// TestTableSize sees that header blocks can be decoded whatever the server makes of its table.
func TestTableSize(t *testing.T) {
	const calls = 40
	sizes := []uint32{4096, 0, 100, 4096, 64 << 10, 0}
	c := scripted(t, h2client.Config{}, []http2.Setting{{ID: http2.SettingHeaderTableSize, Val: 0}}, func(p *peer) {
		for i := range calls {
			h := next[*http2.MetaHeadersFrame](p)
			if h == nil {
				t.Errorf("call %d cannot be decoded", i)
				return
			}
			if got, want := h.PseudoValue("path"), fmt.Sprintf("/a.B/%d", i%7); got != want {
				t.Errorf("call %d has path %q, want %q", i, got, want)
			}
			if i%5 == 4 {
				v := sizes[i/5%len(sizes)]
				p.fr.ReadMetaHeaders.SetAllowedMaxDynamicTableSize(v)
				_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 77}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: v})
			}
			p.answer(h.StreamID)
		}
		p.drain()
	})
	for i := range calls {
		var reply h2client.Reply
		md := metadata.MD{"authorization": {"secret"}, "k": {"v"}}
		if err := c.Unary(soon(t), fmt.Sprintf("/a.B/%d", i%7), md, msg([]byte("x")), &reply); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		reply.Message.Free()
	}
}

// TestNeverIndexed sees how fields are to be treated by those on the way.
func TestNeverIndexed(t *testing.T) {
	c := scripted(t, h2client.Config{}, nil, func(p *peer) {
		h := next[*http2.MetaHeadersFrame](p)
		got := map[string]bool{}
		for _, f := range h.Fields {
			got[f.Name] = f.Sensitive
		}
		for name, want := range map[string]bool{"authorization": true, "cookie": true, "x-auth-token": true, "x-api-key": true, "traceparent": false, ":path": false} {
			if s, ok := got[name]; !ok || s != want {
				t.Errorf("%s: sensitive %v (there: %v), want %v", name, s, ok, want)
			}
		}
		p.answer(h.StreamID)
		p.drain()
	})
	var reply h2client.Reply
	md := metadata.Pairs("authorization", "a", "cookie", "b", "x-auth-token", "c", "x-api-key", "d", "traceparent", "e")
	if err := c.Unary(soon(t), "/a.B/C", md, msg(nil), &reply); err != nil {
		t.Fatal(err)
	}
	reply.Message.Free()
}

// TestSendWindows sends through windows of all sizes, which change meanwhile.
func TestSendWindows(t *testing.T) {
	want := pattern(100_000, 1)
	for _, initial := range []uint32{0, 1, 100, 65_535, 1 << 20} {
		t.Run(fmt.Sprint(initial), func(t *testing.T) {
			c := scripted(t, h2client.Config{}, []http2.Setting{
				{ID: http2.SettingInitialWindowSize, Val: initial}, {ID: http2.SettingMaxFrameSize, Val: 16 << 10},
			}, func(p *peer) {
				id := p.call()
				var got []byte
				stream, conn := int(initial), 65_535
				if initial == 0 {
					_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
					stream = 10
				}
				for len(got) < len(want)+5 {
					d := next[*http2.DataFrame](p)
					if d == nil {
						return
					}
					got = append(got, d.Data()...)
					stream -= len(d.Data())
					conn -= len(d.Data())
					if stream < 0 || conn < 0 {
						t.Errorf("windows overrun: stream %d, connection %d", stream, conn)
						return
					}
					if stream == 0 {
						_ = p.fr.WriteWindowUpdate(id, 5000)
						stream += 5000
					}
					if conn == 0 {
						_ = p.fr.WriteWindowUpdate(0, 30_000)
						conn += 30_000
					}
				}
				if !bytes.Equal(got[5:], want) {
					t.Error("the message differs")
				}
				p.answer(id)
				p.drain()
			})
			var reply h2client.Reply
			if err := c.Unary(soon(t), "/a.B/C", nil, msg(want), &reply); err != nil {
				t.Fatal(err)
			}
			reply.Message.Free()
		})
	}
}

// TestShutWindow has streams end that wait for the connection's window, which the server never opens: nothing of them is kept.
func TestShutWindow(t *testing.T) {
	c := scripted(t, h2client.Config{}, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 20}}, (*peer).drain)
	const streams = 50
	var freed atomic.Int32
	for range streams {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.NewStream(ctx, "/a.B/C", nil)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(2*time.Millisecond, cancel)
		runtime.AddCleanup(s, func(*atomic.Int32) { freed.Add(1) }, &freed)
		if err := s.Send(msg(pattern(100_000, 1)), false); err != io.EOF {
			t.Fatal(err)
		}
		s.Close()
		cancel()
	}
	for late := time.Now().Add(time.Minute); freed.Load() < streams-1; runtime.GC() { // the last may be in a register
		if time.Now().After(late) {
			t.Fatalf("of %d streams that have ended %d are kept", streams, streams-freed.Load())
		}
	}
	runtime.KeepAlive(c)
}

// TestEarlyAnswer sees that an answer counts although the request is stuck, and that the server is told to forget the rest.
func TestEarlyAnswer(t *testing.T) {
	reset := make(chan http2.ErrCode, 1)
	c := scripted(t, h2client.Config{}, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, func(p *peer) {
		p.answer(p.call())
		if r := next[*http2.RSTStreamFrame](p); r != nil {
			reset <- r.ErrCode
		}
		p.drain()
	})
	var reply h2client.Reply
	if err := c.Unary(soon(t), "/a.B/C", nil, msg(pattern(1000, 0)), &reply); err != nil {
		t.Error(err)
	}
	reply.Message.Free()
	if got := <-reset; got != http2.ErrCodeNo {
		t.Errorf("reset with %v", got)
	}
}

// TestReceiveWindows sees that a server may always send what was announced, and no more: a message larger than the window
// arrives, and a stream that nobody receives from takes a window and a message at most.
func TestReceiveWindows(t *testing.T) {
	const window = 64 << 10
	send := func(p *peer, id uint32, b []byte, stream *int) bool {
		for len(b) > 0 {
			n := min(len(b), 16<<10, *stream)
			if n == 0 {
				w := next[*http2.WindowUpdateFrame](p)
				if w == nil {
					return false
				}
				if w.StreamID == id {
					*stream += int(w.Increment)
				}
				continue
			}
			p.data(id, false, b[:n]...)
			*stream -= n
			b = b[n:]
		}
		return true
	}
	frame := func(b []byte) []byte {
		return append([]byte{0, byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}, b...)
	}
	sizes := []int{1, window / 2, window/2 + 1, window, window + 1, 10 * window, 0, 100, 3 * window, 3 * window, 1}
	arrived := make(chan struct{})
	c := scripted(t, h2client.Config{StreamWindow: window}, nil, func(p *peer) {
		id, stream := p.call(), window
		p.begin(id)
		for i, n := range sizes {
			if !send(p, id, frame(pattern(n, i)), &stream) {
				t.Errorf("message %d of %d bytes is stuck", i, n)
				return
			}
		}
		p.trailers(id, "grpc-status", "0")
		// To one who does not receive: more than the window.
		id = p.call()
		p.begin(id)
		for range 5 {
			p.data(id, false, frame(make([]byte, 15_000))...)
		}
		close(arrived)
		p.drain()
	})
	s, err := c.NewStream(soon(t), "/a.B/C", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range sizes {
		m, err := s.Recv()
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if !bytes.Equal(m.Data.Materialize(), pattern(n, i)) {
			t.Errorf("message %d differs", i)
		}
		m.Free()
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
	s, err = c.NewStream(soon(t), "/a.B/C", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Header()
	<-arrived
	for err == nil {
		var m h2client.Message
		m, err = s.Recv()
		m.Free()
	}
	// Whether the receiver kept up decides if the window was overrun.
	if e := (*h2client.Error)(nil); !errors.As(err, &e) || e.Origin != h2client.OriginProtocol && e.Origin != h2client.OriginContext {
		t.Errorf("%v", err)
	}
}

// TestDeadlineOfTheServer sees that a server's CANCEL at the deadline is the deadline's.
func TestDeadlineOfTheServer(t *testing.T) {
	c := scripted(t, h2client.Config{}, nil, func(p *peer) {
		id := p.call()
		<-time.After(40 * time.Millisecond)
		_ = p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
		p.drain()
	})
	deadline := time.Now().Add(40 * time.Millisecond)
	var reply h2client.Reply
	e := errorOf(t, c.Unary(lateContext{t.Context(), deadline}, "/a.B/C", nil, msg(nil), &reply))
	if e.Code != codes.DeadlineExceeded {
		t.Errorf("%+v", e)
	}
}

// lateContext has a deadline but does not end by it.
type lateContext struct {
	context.Context
	deadline time.Time
}

func (c lateContext) Deadline() (time.Time, bool) { return c.deadline, true }

// TestStalledServer sees that calls come back by their deadlines from a server that does not read, and that the memory
// for what it does not read is bounded.
func TestStalledServer(t *testing.T) {
	stall := func(t *testing.T, c *h2client.Conn) {
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				md := metadata.Pairs("k", strings.Repeat("x", 5000))
				for n := 0; ctx.Err() == nil; n++ { // small calls and large, until nothing goes
					var reply h2client.Reply
					short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
					e := errorOf(t, c.Unary(short, "/a.B/C", md, msg(make([]byte, i%3*2<<20)), &reply))
					cancel()
					if e.Code != codes.DeadlineExceeded {
						t.Errorf("%+v", e)
					}
				}
			})
		}
		wg.Wait()
		if d := time.Since(start); d > 10*time.Second { // on any machine; without deadlines they never would
			t.Errorf("calls with a deadline of 200 ms came back after %v", d)
		}
	}
	cert, pool := certificate(t)
	for name, secure := range map[string]bool{"plaintext": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			var cfg h2client.Config
			if secure {
				cfg.Handshake = h2client.ClientTLS(tlsConfig(pool), "127.0.0.1")
			}
			hold := make(chan struct{})
			addr, wait := accept(t, cert, secure, func(nc net.Conn) {
				fr := http2.NewFramer(nc, nc)
				_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: math.MaxInt32})
				_ = fr.WriteWindowUpdate(0, math.MaxInt32-65_535)
				<-hold
			})
			stall(t, dial(t, addr, cfg))
			close(hold)
			wait()
		})
	}
}

func TestKeepalive(t *testing.T) {
	t.Run("a silent server", func(t *testing.T) {
		c := scripted(t, h2client.Config{KeepaliveTime: 20 * time.Millisecond, KeepaliveTimeout: 20 * time.Millisecond}, nil, func(p *peer) { p.drain() })
		var reply h2client.Reply
		if e := errorOf(t, c.Unary(soon(t), "/a.B/C", nil, msg(nil), &reply)); e.Code != codes.Unavailable || e.Origin != h2client.OriginConn {
			t.Errorf("%+v", e)
		}
		<-c.Done()
	})
	t.Run("one that answers", func(t *testing.T) {
		pings := make(chan struct{}, 100)
		c := scripted(t, h2client.Config{KeepaliveTime: 5 * time.Millisecond, KeepaliveTimeout: 10 * time.Second, KeepaliveIdle: true}, nil, func(p *peer) {
			for {
				f := next[*http2.PingFrame](p)
				if f == nil {
					return
				}
				if !f.IsAck() {
					_ = p.fr.WritePing(true, f.Data)
					pings <- struct{}{}
				}
			}
		})
		for range 5 {
			<-pings
		}
		if c.State() != h2client.Ready {
			t.Errorf("%v: %v", c.State(), c.Err())
		}
	})
}
