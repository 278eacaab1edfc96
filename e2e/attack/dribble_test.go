package attack

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/http2"
)

// dribbling is how many slow clients of each kind there are.
const dribbling = 100

// allDribbles has all slow clients at once.
func allDribbles(ctx context.Context, v *victim) (string, error) {
	var wg sync.WaitGroup
	all := slices.Concat(dribbles, slowBodies)
	did, errs := make([]string, len(all)), make([]error, len(all))
	for i, d := range all {
		wg.Go(func() {
			s, err := d.run(ctx, v)
			did[i] = d.name + ": " + s
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", d.name, err)
			}
		})
	}
	wg.Wait()
	return strings.Join(did, "; "), errors.Join(errs...)
}

// dribble has clients send the beginning of something and then a byte at a time. transom must close every connection.
func dribble(secure bool, clients int, begin func(c net.Conn) error, rest func(n int) []byte) func(context.Context, *victim) (string, error) {
	return func(_ context.Context, v *victim) (string, error) {
		var wg sync.WaitGroup
		var failed atomic.Pointer[error]
		var longest atomic.Int64
		fail := func(err error) { failed.Store(&err) }
		addr := v.Plain
		if secure {
			addr = v.Secure
		}
		for range clients {
			wg.Go(func() {
				start := time.Now()
				c, err := net.Dial("tcp", addr)
				if err == nil {
					defer c.Close()
					_ = c.SetDeadline(start.Add(2 * (slow + patience)))
					if err = begin(c); errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
						return // the client was even slower than it meant to be
					}
				}
				if err != nil {
					fail(fmt.Errorf("after %v: %w", time.Since(start), err))
					return
				}
				gone := make(chan struct{})
				if rest != nil {
					go func() {
						defer close(gone)
						_, _ = io.Copy(io.Discard, c)
					}()
				}
				done := func() {
					for took := int64(time.Since(start)); ; {
						was := longest.Load()
						if took <= was || longest.CompareAndSwap(was, took) {
							return
						}
					}
				}
				tick := time.NewTicker(100 * time.Millisecond)
				defer tick.Stop()
				limit := time.After(slow + patience)
				for n := 0; ; n++ {
					select {
					case <-gone:
						done()
						return
					case <-limit:
						fail(errHeld)
						c.Close()
						if rest != nil {
							<-gone
						}
						return
					case <-tick.C:
						if rest != nil {
							_, _ = c.Write(rest(n)) // that it fails the reader sees too
						} else if _, err := c.Write([]byte("\r\n")); err != nil {
							done()
							return
						}
					}
				}
			})
		}
		wg.Wait()
		if err := failed.Load(); err != nil {
			return "", *err
		}
		return fmt.Sprintf("%d connections closed, the last after %v", clients, time.Duration(longest.Load()).Round(time.Millisecond)), nil
	}
}

// write is a beginning that is always the same.
func write(s string) func(net.Conn) error {
	return func(c net.Conn) error {
		_, err := io.WriteString(c, s)
		return err
	}
}

func one(b byte) func(int) []byte { return func(int) []byte { return []byte{b} } }

var dribbles = []attack{
	{"slow HTTP/1.1 header", dribble(false, dribbling, write("GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "), one('a'))},
	{"slow HTTP/1.1 body", dribble(false, dribbling, write("POST /v1/diagnostics/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"), one(' '))},
	{"slow HTTP/1.1 chunks of a stream", dribble(false, dribbling, write("POST /v1/support/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"), func(int) []byte { return []byte("1\r\n \r\n") })},
	{"slow HTTP/2 preface", dribble(false, dribbling, write("PRI * HT"), one('T'))},
	{"HTTP/2 connection without a request", dribble(false, dribbling, h2Begin(nil), func(n int) []byte {
		return []byte{0, 0, 8, byte(http2.FramePing), 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, byte(n)}
	})},
	{"slow HTTP/2 header", dribble(false, dribbling, h2Begin([]byte{0, 0x10, 0, byte(http2.FrameHeaders), 0, 0, 0, 0, 1}), one(0))},
	{"slow gRPC message", dribble(false, dribbling, h2Call, func(int) []byte { return []byte{0, 0, 1, byte(http2.FrameData), 0, 0, 0, 0, 1, 0} })},
	{"slow TLS handshake", dribble(true, dribbling, write("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), one(0))},
	{"slow WebSocket frame", dribble(false, dribbling, wsBegin, one('a'))},
	{"slow HTTP/3 header", h3Dribble},
	{"slow reader of a large answer", dribble(false, 10, func(c net.Conn) error {
		if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil { //nolint:forcetypeassert // it was dialled as "tcp"
			return err
		}
		body := `{"text":"` + strings.Repeat("a", 3<<20) + `"}`
		_, err := fmt.Fprintf(c, "POST /v1/diagnostics/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		return err
	}, nil)},
	{"slow reader of a stream", dribble(false, dribbling, write("GET /v1/diagnostics/generate?count=1000000&sizeBytes=60000 HTTP/1.1\r\nHost: localhost\r\n\r\n"), nil)},
}

// h2Begin sends a preface, settings and something.
func h2Begin(more []byte) func(net.Conn) error {
	return func(c net.Conn) error {
		_, err := c.Write(append([]byte(http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), more...))
		return err
	}
}

// h2Call begins a unary gRPC call and sends nothing of its message.
func h2Call(c net.Conn) error {
	f := &frames{Conn: c, Framer: http2.NewFramer(c, c), next: 1}
	if err := h2Begin(nil)(c); err != nil {
		return err
	}
	f.enc = newEncoder(f)
	_, err := f.request(false, "POST", "/bank.v1.Diagnostics/Echo", "content-type", "application/grpc", "te", "trailers")
	return err
}

// wsBegin opens a WebSocket and sends the head of a message of 10,000 bytes, masked with zeros.
func wsBegin(c net.Conn) error {
	key := base64.StdEncoding.EncodeToString(make([]byte, 16))
	_, err := fmt.Fprintf(c, "GET /v1/support/chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", key)
	if err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	_, err = c.Write([]byte{0x81, 0xfe, 0x27, 0x10, 0, 0, 0, 0})
	return err
}

// h3Dribble opens streams whose header never ends. The connections are kept alive by the bytes that come.
func h3Dribble(_ context.Context, v *victim) (string, error) {
	const conns, streams = 10, 20
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range conns {
		wg.Go(func() {
			err := func() error {
				ctx, cancel := context.WithTimeout(context.Background(), slow+patience)
				defer cancel()
				conn, err := quic.DialAddr(ctx, v.Secure, h3TLS(v.tls), &quic.Config{})
				if err != nil {
					return err
				}
				defer func() { _ = conn.CloseWithError(0x100, "") }()
				var open []*quic.Stream
				for range streams {
					s, err := conn.OpenStreamSync(ctx)
					if err != nil {
						return err
					}
					if _, err := s.Write([]byte{1, 0x40, 0x80, 0, 0}); err != nil { // HEADERS, 128 bytes
						return err
					}
					open = append(open, s)
				}
				tick := time.NewTicker(300 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-conn.Context().Done():
						return nil
					case <-ctx.Done():
						return errHeld
					case <-tick.C:
						for _, s := range open {
							_, _ = s.Write([]byte{0x51})
						}
					}
				}
			}()
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return "", *err
	}
	return fmt.Sprintf("%d connections with %d streams each closed", conns, streams), nil
}

func dialRaw(v *victim) (net.Conn, error) { return net.Dial("tcp", v.Plain) }
