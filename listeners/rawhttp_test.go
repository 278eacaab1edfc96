package listeners_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"transom/listeners"
	"transom/rpc"
)

// callCount counts by client address the messages that reached the handler whole.
type callCount struct{ sync.Map }

func (c *callCount) of(client string) *atomic.Int64 {
	n, _ := c.LoadOrStore(client, &atomic.Int64{})
	return n.(*atomic.Int64)
}

// rawServer runs a Front that echoes, on a socket with a short header timeout, and returns its address.
func rawServer(t *testing.T) (string, *callCount) {
	t.Helper()
	calls := &callCount{}
	front := listeners.NewFront(listeners.FrontConfig{}, newView(t, func(ctx context.Context, call *rpc.Call) error {
		for {
			m, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			calls.of(call.Peer.Addr.String()).Add(1)
			if err := call.Stream.Send(ctx, m); err != nil {
				return err
			}
		}
	}), slog.New(slog.DiscardHandler))
	srv, err := listeners.Listen(t.Context(), listeners.Config{
		Address: "127.0.0.1:0",
		Limits:  listeners.Limits{HeaderTimeout: time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10},
	}, front, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Run() })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		_ = srv.Drain(ctx)
		wg.Wait()
	})
	return srv.Addr().String(), calls
}

const (
	// unary is a request that is right but for what is put into it: header lines, and a body.
	unaryHead = "POST /rpctest/unary HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
	echoBody  = `"AQ=="`
	good      = unaryHead + "Content-Length: 6\r\n\r\n" + echoBody
	chunked   = unaryHead + "Transfer-Encoding: chunked\r\n"
	// hidden is what must never be taken for a request.
	hidden = "POST /rpctest/unary HTTP/1.1\r\nHost: hidden\r\nContent-Length: 6\r\n\r\n" + echoBody
)

// fields are n header lines, each of another name.
func fields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "X-%d: y\r\n", i)
	}
	return b.String()
}

// TestMalformedHTTP1 sends bytes to a socket and looks at what comes back: the status codes, how often a message reached
// the handler, and whether the connection is closed. In every case that must happen soon.
func TestMalformedHTTP1(t *testing.T) {
	big := strings.Repeat("x", 9<<10)
	var coded strings.Builder
	zw := gzip.NewWriter(&coded)
	_, _ = io.WriteString(zw, echoBody)
	_ = zw.Close()
	gzipped := coded.String()
	const open, closed = false, true
	addr, count := rawServer(t)
	var all sync.WaitGroup // most of the time is spent waiting
	for _, tc := range []struct {
		name, raw string
		codes     string
		calls     int64
		closed    bool
	}{
		{"good", good, "200", 1, open},
		{"good twice", good + good, "200 200", 2, open},
		{"good, close", unaryHead + "Connection: close\r\nContent-Length: 6\r\n\r\n" + echoBody, "200", 1, closed},
		{"chunked", chunked + "\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n", "200", 1, open},
		{"chunked in parts", chunked + "\r\n1\r\n\"\r\n5\r\nAQ==\"\r\n0\r\n\r\n", "200", 1, open},
		{"chunked with trailers", chunked + "\r\n6\r\n" + echoBody + "\r\n0\r\nX: y\r\n\r\n", "200", 1, open},
		{"chunk extension", chunked + "\r\n6;a=b\r\n" + echoBody + "\r\n0\r\n\r\n", "200", 1, open},
		{"good, chunked, good", good + chunked + "\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n", "200 200", 2, open},

		{"100 header fields", unaryHead + "Content-Length: 6\r\n" + fields(98) + "\r\n" + echoBody, "200", 1, open},
		{"101 header fields", unaryHead + "Content-Length: 6\r\n" + fields(99) + "\r\n" + echoBody + good, "431 200", 1, open},
		{"101 header fields, 99 of one name", unaryHead + "Content-Length: 6\r\n" + strings.Repeat("a: b\r\n", 99) + "\r\n" + echoBody, "431", 0, open},

		// Two ways to find the body's end.
		{"CL and TE", chunked + "Content-Length: 6\r\n\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n", "200", 1, closed},
		{"TE and CL", unaryHead + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n", "200", 1, closed},
		{"CL and TE, request behind", unaryHead + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "200", 1, closed},
		{"CL.TE, empty", unaryHead + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 5+len(hidden)) + hidden, "200", 1, closed},
		{"CL and TE in odd case", unaryHead + "cOntent-LENGTH: 6\r\ntransfer-ENCODING: chunked\r\n\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "200", 1, closed},
		{"good, then CL and TE", good + chunked + "Content-Length: 6\r\n\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "200 200", 2, closed},
		{"CL, bare LF, TE", unaryHead + "X: y\nContent-Length: 6\nTransfer-Encoding: chunked\r\n\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "200", 1, closed},
		{"TE not chunked", unaryHead + "Transfer-Encoding: gzip\r\n\r\n", "501", 0, closed},
		{"TE identity", unaryHead + "Transfer-Encoding: identity\r\nContent-Length: 6\r\n\r\n" + echoBody, "501", 0, closed},
		{"TE chunked twice", unaryHead + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501", 0, closed},
		{"TE gzip, chunked", unaryHead + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501", 0, closed},
		{"TE chunked, identity", unaryHead + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "501", 0, closed},
		{"TE xchunked", unaryHead + "Transfer-Encoding: xchunked\r\nContent-Length: 6\r\n\r\n" + echoBody, "501", 0, closed},
		{"TE with a tab", unaryHead + "Transfer-Encoding:\tchunked\r\n\r\n6\r\n" + echoBody + "\r\n0\r\n\r\n", "200", 1, open},
		{"TE with a vertical tab", unaryHead + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "400", 0, closed},
		{"TE with a quote", unaryHead + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "501", 0, closed},
		{"TE name with a space", unaryHead + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400", 0, closed},
		{"TE in HTTP/1.0", "POST /rpctest/unary HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n" + echoBody, "200", 1, closed},

		// Content-Length.
		{"CL twice, equal", unaryHead + "Content-Length: 6\r\nContent-Length: 6\r\n\r\n" + echoBody, "200", 1, open},
		{"CL twice, different", unaryHead + "Content-Length: 6\r\nContent-Length: 5\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL list, equal", unaryHead + "Content-Length: 6, 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL list, different", unaryHead + "Content-Length: 6, 0\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL negative", unaryHead + "Content-Length: -6\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL with plus", unaryHead + "Content-Length: +6\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL hexadecimal", unaryHead + "Content-Length: 0x6\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL empty", unaryHead + "Content-Length:\r\n\r\n", "400", 0, closed},
		{"CL text", unaryHead + "Content-Length: six\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL past 64 bits", unaryHead + "Content-Length: 18446744073709551622\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL with an inner space", unaryHead + "Content-Length: 6 0\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL with an underscore", unaryHead + "Content-Length: 6_0\r\n\r\n" + echoBody, "400", 0, closed},
		{"CL name with a space", unaryHead + "Content-Length : 6\r\n\r\n" + echoBody, "400", 0, closed},
		// A folded line belongs to the one before (RFC 9112 section 5.2): there is no body, and what follows is a request.
		{"CL on a folded line", unaryHead + "X: y\r\n Content-Length: 6\r\n\r\n" + good, "200 200", 2, open},
		{"CL too small", unaryHead + "Content-Length: 3\r\n\r\n" + echoBody + "\r\n\r\n", "400 400", 0, closed},
		{"CL over the limit", unaryHead + "Content-Length: 99999999\r\n\r\n", "413", 0, closed},

		// Chunks.
		{"chunk size not hexadecimal", chunked + "\r\nz\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk size with 0x", chunked + "\r\n0x6\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk size negative", chunked + "\r\n-6\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk size empty", chunked + "\r\n\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk size past 64 bits", chunked + "\r\n10000000000000006\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk too long for its size", chunked + "\r\n5\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk too short for its size", chunked + "\r\n7\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk without CRLF behind", chunked + "\r\n6\r\n" + echoBody + "0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk line with bare LF", chunked + "\r\n6\n" + echoBody + "\r\n0\r\n\r\n", "400", 0, closed},
		{"chunk line too long", chunked + "\r\n6;" + big + "\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"chunk extension with bare LF", chunked + "\r\n6;a\nb\r\n" + echoBody + "\r\n0\r\n\r\n" + hidden, "400", 0, closed},
		{"last chunk missing", chunked + "\r\n6\r\n" + echoBody + "\r\n" + hidden, "400", 0, closed},
		{"trailer malformed", chunked + "\r\n6\r\n" + echoBody + "\r\n0\r\nno colon\r\n\r\n" + hidden, "400", 0, closed},
		{"trailer with a Content-Length", chunked + "\r\n6\r\n" + echoBody + "\r\n0\r\nContent-Length: 6\r\n\r\n", "200", 1, closed},
		{"stream of bad chunks", "POST /rpctest/bidi HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n" + echoBody + "\n\r\nz\r\n" + hidden, "200", 1, closed},
		{"Connect stream of bad chunks", "POST /rpctest.Echo/Bidi HTTP/1.1\r\nHost: h\r\nContent-Type: application/connect+proto\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\x00\x00\x00\x00\x00\r\nz\r\n" + hidden, "200", 1, closed},
		{"gRPC-Web stream of bad chunks", "POST /rpctest.Echo/Bidi HTTP/1.1\r\nHost: h\r\nContent-Type: application/grpc-web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\x00\x00\x00\x00\x00\r\nz\r\n" + hidden, "200", 1, closed},
		{"refused stream, body behind", "POST /rpctest.Echo/Bidi HTTP/1.1\r\nHost: h\r\nContent-Type: application/connect+proto\r\nConnect-Timeout-Ms: x\r\nContent-Length: 9999\r\n\r\n" + hidden, "200", 0, closed},

		// The header.
		{"no Host", "POST /rpctest/unary HTTP/1.1\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"two Hosts", "POST /rpctest/unary HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"Host with a space", "POST /rpctest/unary HTTP/1.1\r\nHost: a b\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"bare LF lines", strings.ReplaceAll(good, "\r\n", "\n"), "200", 1, open},
		{"bare CR lines", strings.ReplaceAll(good, "\r\n", "\r"), "400", 0, closed},
		{"obs-fold", unaryHead + "X: y\r\n z\r\nContent-Length: 6\r\n\r\n" + echoBody, "200", 1, open},
		{"obs-fold first", "POST /rpctest/unary HTTP/1.1\r\n Host: h\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"NUL in a value", unaryHead + "X: a\x00b\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"NUL in a name", unaryHead + "X\x00: a\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"CR in a value", unaryHead + "X: a\rb\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"name empty", unaryHead + ": a\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"name with a space", unaryHead + "X y: a\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"no colon", unaryHead + "no colon\r\nContent-Length: 6\r\n\r\n" + echoBody, "400", 0, closed},
		{"header too large", unaryHead + "X: " + big + big + "\r\nContent-Length: 6\r\n\r\n" + echoBody, "431", 0, closed},
		{"request line too long", "GET /" + big + big + " HTTP/1.1\r\nHost: h\r\n\r\n", "431", 0, closed},
		{"request line without version", "GET /healthz\r\nHost: h\r\n\r\n", "400", 0, closed},
		{"version 2.0", "GET /healthz HTTP/2.0\r\nHost: h\r\n\r\n", "505", 0, closed},
		{"version 9.9", "GET /healthz HTTP/9.9\r\nHost: h\r\n\r\n", "505", 0, closed},
		{"version text", "GET /healthz HTTP/x\r\nHost: h\r\n\r\n", "400", 0, closed},
		{"method with a bracket", "PO[ST /rpctest/unary HTTP/1.1\r\nHost: h\r\n\r\n", "400", 0, closed},
		{"target with a space", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", "400", 0, closed},
		{"target with a bad escape", "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", "400", 0, closed},
		{"target empty", "GET  HTTP/1.1\r\nHost: h\r\n\r\n", "400", 0, closed},
		{"leading empty lines", "\r\n\r\n" + good, "400", 0, closed},
		{"garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n", "400", 0, closed},
		{"unknown expectation", unaryHead + "Expect: a miracle\r\nContent-Length: 6\r\n\r\n" + echoBody, "417", 0, closed},
		{"100-continue", unaryHead + "Expect: 100-continue\r\nContent-Length: 6\r\n\r\n" + echoBody, "100 200", 1, open},
		{"native gRPC", "POST /rpctest.Echo/Unary HTTP/1.1\r\nHost: h\r\nContent-Type: application/grpc\r\nContent-Length: 5\r\n\r\n\x00\x00\x00\x00\x00", "505", 0, open},

		// Slow and silent senders.
		{"header never ends", "POST /rpctest/unary HTTP/1.1\r\nHost: h\r\nX: ", "", 0, closed},
		{"nowhere, body never ends", "POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n\"A", "404", 0, closed},
		{"wrong type, body never ends", "POST /rpctest/unary HTTP/1.1\r\nHost: h\r\nContent-Encoding: x\r\nContent-Length: 6\r\n\r\n\"A", "415", 0, closed},
		{"body never ends", unaryHead + "Grpc-Timeout: 50m\r\nContent-Length: 6\r\n\r\n\"A", "504", 0, closed},
		{"gzip never begins", unaryHead + "Grpc-Timeout: 50m\r\nContent-Encoding: gzip\r\nContent-Length: 30\r\n\r\n", "504", 0, closed},
		{"gzip never ends", unaryHead + "Grpc-Timeout: 50m\r\nContent-Encoding: gzip\r\nContent-Length: 30\r\n\r\n" + gzipped[:len(gzipped)-4], "504", 0, closed},
		{"gzip cut off", unaryHead + "Content-Encoding: gzip\r\nContent-Length: 12\r\n\r\n" + gzipped[:12], "400", 0, open},
		{"gzip in bad chunks", chunked + "Content-Encoding: gzip\r\n\r\n2\r\n\x1f\x8b\r\nz\r\n" + hidden, "400", 0, closed},
		{"stream of gzip never ends", "POST /rpctest/bidi HTTP/1.1\r\nHost: h\r\nGrpc-Timeout: 50m\r\nContent-Encoding: gzip\r\nContent-Length: 30\r\n\r\n\x1f\x8b", "504", 0, closed},
		{"Connect refused, body never ends", "POST /rpctest.Echo/Unary HTTP/1.1\r\nHost: h\r\nContent-Type: application/proto\r\nContent-Encoding: x\r\nContent-Length: 6\r\n\r\n\"A", "501", 0, closed},
		{"gRPC-Web refused, body never ends", "POST /rpctest.Echo/Bidi HTTP/1.1\r\nHost: h\r\nContent-Type: application/grpc-web\r\nGrpc-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\x00", "200", 0, closed},
	} {
		all.Go(func() {
			codes, isClosed, client, err := exchange(t, addr, tc.raw, len(strings.Fields(tc.codes)))
			if calls := count.of(client).Load(); err != nil || codes != tc.codes || isClosed != tc.closed || calls != tc.calls {
				t.Errorf("%s: answers %q, closed %v, %d calls, %v; want %q, %v, %d", tc.name, codes, isClosed, calls, err, tc.codes, tc.closed, tc.calls)
			}
		})
	}
	all.Wait()
}

// exchange sends raw, reads n answers, and asks once more on the connection to see whether it is closed and whether there
// was an answer too many.
func exchange(t *testing.T, addr, raw string, n int) (codes string, closed bool, client string, err error) {
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return "", false, "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _, _ = io.WriteString(c, raw) })
	r := bufio.NewReader(c)
	var got []string
	for probed := n == 0; ; {
		if !probed && len(got) == n {
			probed = true
			_, _ = io.WriteString(c, "GET /probe HTTP/1.1\r\nHost: h\r\n\r\n") // to a closed connection it fails, and so does the read
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return strings.Join(got, " "), false, c.LocalAddr().String(), errors.New("the connection hangs")
			}
			return strings.Join(got, " "), true, c.LocalAddr().String(), nil
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if probed && resp.StatusCode == http.StatusNotFound {
			return strings.Join(got, " "), false, c.LocalAddr().String(), nil
		}
		got = append(got, strconv.Itoa(resp.StatusCode))
	}
}
