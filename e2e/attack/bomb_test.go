package attack

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/coder/websocket"
	"github.com/klauspost/compress/zstd"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2/hpack"
)

func newEncoder(f *frames) *hpack.Encoder { return hpack.NewEncoder(&f.buf) }

func newRequest(url string) *http.Request {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		panic(err) // the URL is well-formed
	}
	return r
}

// bombBytes is what a bomb decodes to. Four come at a time.
const bombBytes = 256 << 20

// zeros are bombBytes zero bytes in one encoding.
func zeros(encoding string) []byte {
	var buf bytes.Buffer
	var w io.WriteCloser
	switch encoding {
	case "gzip":
		w, _ = gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	case "br":
		w = brotli.NewWriterLevel(&buf, brotli.BestSpeed)
	case "zstd":
		w, _ = zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
	}
	chunk := make([]byte, 1<<20)
	for range bombBytes >> 20 {
		_, _ = w.Write(chunk)
	}
	_ = w.Close()
	return buf.Bytes()
}

// post sends a body over HTTP/2 in plain text and returns what came back.
func post(ctx context.Context, c *http.Client, url string, body []byte, header ...string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// repeat has four clients do something until ctx ends, and at least once each. One that fails ends the attack.
func repeat(ctx context.Context, do func(ctx context.Context) error) (int64, error) {
	var wg sync.WaitGroup
	var n atomic.Int64
	var failed atomic.Pointer[error]
	for range 4 {
		wg.Go(func() {
			for {
				own, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
				err := do(own)
				cancel()
				if err != nil {
					failed.Store(&err)
					return
				}
				n.Add(1)
				if ctx.Err() != nil || failed.Load() != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return n.Load(), *err
	}
	return n.Load(), nil
}

// h2c is a client of HTTP/2 in plain text.
func h2c() (*http.Client, func()) {
	tr := &http.Transport{Protocols: &http.Protocols{}, DisableCompression: true}
	tr.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: tr}, tr.CloseIdleConnections
}

// encoded sends a bomb in every protocol that takes the encoding.
func encoded(encoding string) attack {
	return attack{encoding + " bomb", func(ctx context.Context, v *victim) (string, error) {
		bomb := zeros(encoding)
		framed := append([]byte{1}, binary.BigEndian.AppendUint32(nil, uint32(len(bomb)))...)
		framed = append(framed, bomb...)
		c, closing := h2c()
		defer closing()
		n, err := repeat(ctx, func(ctx context.Context) error {
			for _, p := range []struct {
				name, path, want string
				body             []byte
				header           []string
			}{
				{"REST", "/v1/diagnostics/echo", `"code":8`, bomb, []string{"Content-Type", "application/json", "Content-Encoding", encoding}},
				{"REST upload", "/v1/customers/3/accounts/1/statements/x:upload", `"code":8`, bomb, []string{"Content-Type", "text/plain", "Content-Encoding", encoding}},
				{"Connect", "/bank.v1.Diagnostics/Echo", "resource_exhausted", bomb, []string{"Content-Type", "application/json", "Connect-Protocol-Version", "1", "Content-Encoding", encoding}},
				{"gRPC-Web", "/bank.v1.Diagnostics/Echo", "grpc-status: 8", framed, []string{"Content-Type", "application/grpc-web+proto", "Grpc-Encoding", encoding}},
				{"gRPC", "/bank.v1.Diagnostics/Echo", "8", framed, []string{"Content-Type", "application/grpc", "Te", "trailers", "Grpc-Encoding", encoding}},
			} {
				resp, got, err := post(ctx, c, "http://"+v.Plain+p.path, p.body, p.header...)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				if s := resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status"); s != "" {
					got = "grpc-status: " + s
				}
				if !strings.Contains(got, p.want) {
					return fmt.Errorf("%s: %s: %.200s, want %s", p.name, resp.Status, got, p.want)
				}
			}
			return nil
		})
		return fmt.Sprintf("%d times 5 requests of %d KiB that decode to %d MiB", n, len(bomb)>>10, bombBytes>>20), err
	}}
}

var bombs = []attack{
	encoded("gzip"), encoded("br"), encoded("zstd"),
	{"deep JSON", deepJSON},
	{"metadata out of proportion", metadata},
	{"metadata out of proportion over HTTP/3", metadataHTTP3},
	{"compressed WebSocket messages that were not agreed on", deflated},
}

// deepJSON nests 10,000 levels in every way that JSON can.
func deepJSON(ctx context.Context, v *victim) (string, error) {
	c, closing := h2c()
	defer closing()
	const depth = 10_000
	var longest atomic.Int64
	n, err := repeat(ctx, func(ctx context.Context) error {
		for _, body := range []string{
			strings.Repeat(`{"nested":`, depth) + "{}" + strings.Repeat("}", depth),
			strings.Repeat(`{"list":[`, depth) + strings.Repeat("]}", depth),
			`{"value":` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + "}",
			`{"struct":` + strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth) + "}",
			`{"unknown":` + strings.Repeat("[", depth),
			strings.Repeat("[", 1<<20),
		} {
			for _, path := range []string{"/v1/diagnostics/echo", "/bank.v1.Diagnostics/Echo"} {
				header := []string{"Content-Type", "application/json"}
				if path[1] == 'b' {
					header = append(header, "Connect-Protocol-Version", "1")
				}
				begin := time.Now()
				resp, got, err := post(ctx, c, "http://"+v.Plain+path, []byte(body), header...)
				if err != nil {
					return err
				}
				if took := int64(time.Since(begin)); took > longest.Load() {
					longest.Store(took)
				}
				if resp.StatusCode != http.StatusBadRequest {
					return fmt.Errorf("%.20s…: %s: %.100s", body, resp.Status, got)
				}
			}
		}
		ws, _, err := websocket.Dial(ctx, "ws://"+v.Plain+"/v1/support/chat", nil)
		if err != nil {
			return err
		}
		defer ws.CloseNow()
		if err := ws.Write(ctx, websocket.MessageText, []byte(strings.Repeat(`{"a":`, depth))); err != nil {
			return err
		}
		if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != 4003 {
			return fmt.Errorf("WebSocket: %w", err)
		}
		return nil
	})
	return fmt.Sprintf("%d times 13 documents, answered within %v", n, time.Duration(longest.Load()).Round(time.Millisecond)), err
}

// metadata sends one huge header, and many of them. It must be refused, by a status or by closing the connection.
func metadata(ctx context.Context, v *victim) (string, error) {
	h2, closing := h2c()
	defer closing()
	h1 := &http.Client{Transport: &http.Transport{}}
	defer h1.CloseIdleConnections()
	statuses := map[string]bool{}
	var mu sync.Mutex
	n, err := repeat(ctx, func(ctx context.Context) error {
		for name, c := range map[string]*http.Client{"HTTP/1.1": h1, "HTTP/2": h2} {
			for _, contentType := range []string{"application/json", "application/grpc"} {
				for what, header := range oversized() {
					resp, got, err := post(ctx, c, "http://"+v.Plain+"/bank.v1.Diagnostics/Metadata", nil, append([]string{"Content-Type", contentType}, header...)...)
					said := name + " " + what + ": cut off"
					if err == nil {
						said = name + " " + what + ": " + resp.Status
						if resp.StatusCode == http.StatusOK && resp.Header.Get("Grpc-Status")+resp.Trailer.Get("Grpc-Status") != "8" {
							return fmt.Errorf("%s %s: %s %.100s", name, what, resp.Status, got)
						}
					} else if ctx.Err() != nil {
						return err
					}
					mu.Lock()
					statuses[said] = true
					mu.Unlock()
				}
			}
		}
		return nil
	})
	return fmt.Sprintf("%d times 8 requests: %v", n, statuses), err
}

// oversized are headers out of all proportion.
func oversized() map[string][]string {
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf("X-Many-%d", i), "0123456789")
	}
	return map[string][]string{"1 MiB": {"X-Large", strings.Repeat("a", 1<<20)}, "1000 fields": many}
}

func metadataHTTP3(ctx context.Context, v *victim) (string, error) {
	n, err := repeat(ctx, func(ctx context.Context) error {
		for what, header := range oversized() {
			tr := &http3.Transport{TLSClientConfig: v.tls.Clone()}
			resp, got, err := post(ctx, &http.Client{Transport: tr}, "https://"+v.Secure+"/bank.v1.Diagnostics/Metadata", nil, append([]string{"Content-Type", "application/json"}, header...)...)
			_ = tr.Close()
			if err == nil && resp.StatusCode == http.StatusOK {
				return fmt.Errorf("%s: %s %.100s", what, resp.Status, got)
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
		}
		return nil
	})
	return fmt.Sprintf("%d times 2 requests", n), err
}

// deflated sends a frame with the bit of permessage-deflate, which is not offered.
func deflated(ctx context.Context, v *victim) (string, error) {
	n, err := repeat(ctx, func(context.Context) error {
		c, err := dialRaw(v)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := wsBegin(c); err != nil {
			return err
		}
		// The rest of the message that wsBegin has begun, then one with RSV1.
		_, _ = c.Write(append(bytes.Repeat([]byte(" "), 10_000), 0xc1, 0x80|100, 0, 0, 0, 0))
		_, _ = c.Write(make([]byte, 100))
		_ = c.SetReadDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(c)
		if errors.Is(err, syscall.ECONNRESET) {
			return nil // the close frame was overtaken by the end of the connection, as we had sent more
		}
		if err != nil {
			return err
		}
		if len(b) < 4 || b[0] != 0x88 {
			return fmt.Errorf("got %x, want a close", b)
		}
		return nil
	})
	return fmt.Sprintf("%d sockets closed", n), err
}

// TestEarlyData says that HTTP/3 takes no requests before the handshake is complete, so that there are none to replay.
func TestEarlyData(t *testing.T) {
	v := startVictim(t)
	tc := h3TLS(v.tls)
	tc.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		conn, err := quic.DialAddrEarly(ctx, v.Secure, tc, &quic.Config{})
		if err != nil {
			t.Fatal(err)
		}
		tr := &http3.Transport{}
		hc := tr.NewClientConn(conn)
		resp, err := hc.RoundTrip(newRequest("https://" + v.Secure + "/v1/customers/3/accounts/1").WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Error(resp.Status)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		state := conn.ConnectionState()
		t.Logf("resumed %v, early data %v", state.TLS.DidResume, state.Used0RTT)
		if state.Used0RTT {
			t.Error("early data was taken")
		}
		_ = conn.CloseWithError(0x100, "")
		_ = tr.Close()
		cancel()
	}
}
