package listeners_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/rpc/rpctest"
	"transom/transcoder"
)

// certificate is self-signed, for 127.0.0.1.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// listen runs a Front on sockets of its own, and returns the base URL and a client that speaks the given version of HTTP:
// "HTTP1", "H2C", "HTTP2" (over TLS) or "HTTP3".
func listen(t *testing.T, front *listeners.Front, version string) (string, *http.Client) {
	t.Helper()
	cfg := listeners.Config{Address: "127.0.0.1:0"}
	scheme := "http://"
	var pool *x509.CertPool
	if version == "HTTP2" || version == "HTTP3" {
		var cert tls.Certificate
		cert, pool = certificate(t)
		cfg.TLS, cfg.HTTP3 = &tls.Config{Certificates: []tls.Certificate{cert}}, version == "HTTP3"
		scheme = "https://"
	}
	srv, err := listeners.Listen(t.Context(), cfg, front, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Run(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	var client *http.Client
	var closeClient func()
	if version == "HTTP3" {
		tr := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
		client, closeClient = &http.Client{Transport: tr}, func() { _ = tr.Close() }
	} else {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: &http.Protocols{}, DisableCompression: true}
		tr.Protocols.SetHTTP1(version == "HTTP1")
		tr.Protocols.SetHTTP2(version == "HTTP2")
		tr.Protocols.SetUnencryptedHTTP2(version == "H2C")
		client, closeClient = &http.Client{Transport: tr}, tr.CloseIdleConnections
	}
	t.Cleanup(func() {
		closeClient()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		if err := srv.Drain(ctx); err != nil {
			t.Errorf("Drain: %v", err)
		}
		wg.Wait()
	})
	return scheme + srv.Addr().String(), client
}

// wire is one spelling of a call in frames.
type wire struct {
	contentType string
	protocol    rpc.Protocol
	text        bool
	header      http.Header
}

func TestFramedProtocolsKeepTheStreamContract(t *testing.T) {
	for _, w := range []struct {
		name string
		wire
		versions []string
	}{
		{"GRPC", wire{"application/grpc", rpc.ProtocolGRPC, false, nil}, []string{"H2C", "HTTP3"}},
		{"GRPCWeb", wire{"application/grpc-web+proto", rpc.ProtocolGRPCWeb, false, nil}, []string{"HTTP1", "H2C"}},
		{"GRPCWebText", wire{"application/grpc-web-text", rpc.ProtocolGRPCWeb, true, nil}, []string{"HTTP1"}},
		{"Connect", wire{"application/connect+proto", rpc.ProtocolConnect, false, nil}, []string{"HTTP1", "HTTP2", "HTTP3"}},
	} {
		for _, version := range w.versions {
			t.Run(w.name+"/"+version, func(t *testing.T) {
				t.Parallel()
				var current atomic.Pointer[rpc.Handler] // one call at a time
				front := listeners.NewFront(listeners.FrontConfig{}, newView(t, func(ctx context.Context, call *rpc.Call) error {
					return (*current.Load())(ctx, call)
				}), slog.New(slog.DiscardHandler))
				base, client := listen(t, front, version)
				rpctest.TestStream(t, rpctest.Harness{
					Start: func(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler) rpctest.Client {
						current.Store(&h)
						return startFramed(t, client, base+m.FullPath, w.wire, m, header)
					},
				})
			})
		}
	}
}

// framedClient is a client of any of the protocols in frames, and of Connect's unary calls.
type framedClient struct {
	wire
	unary  bool // of Connect: no frames
	body   *io.PipeWriter
	cancel context.CancelFunc
	done   chan struct{} // closed when the response header is there, or the request has failed
	resp   *http.Response
	in     io.Reader // the response body, its text decoded
	err    error

	ended   bool
	end     error
	trailer metadata.MD
}

func startFramed(t *testing.T, client *http.Client, url string, w wire, m *descriptors.Method, header metadata.MD) *framedClient {
	t.Helper()
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, pr)
	if err != nil {
		t.Fatal(err)
	}
	c := &framedClient{wire: w, body: pw, cancel: cancel, done: make(chan struct{})}
	ct := w.contentType
	if w.protocol == rpc.ProtocolConnect && m.Unary() {
		c.unary = true
		ct = strings.Replace(ct, "connect+", "", 1)
	}
	req.Header.Set("Content-Type", ct)
	maps.Copy(req.Header, w.header)
	for k, vs := range header {
		for _, v := range vs {
			if strings.HasSuffix(k, "-bin") {
				v = base64.StdEncoding.EncodeToString([]byte(v))
			}
			req.Header.Add(k, v)
		}
	}
	go func() {
		defer close(c.done)
		if c.resp, c.err = client.Do(req); c.err != nil {
			return
		}
		c.in = c.resp.Body
		if w.text {
			c.in = &textBody{r: c.resp.Body}
		}
	}()
	t.Cleanup(func() {
		cancel()
		pw.Close()
		<-c.done
		if c.resp != nil {
			c.resp.Body.Close()
		}
	})
	return c
}

// textBody decodes base64 that is padded in the midst.
type textBody struct {
	r    io.Reader
	d    transcoder.TextDecoder
	rest []byte
}

func (b *textBody) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		var text [512]byte
		n, err := b.r.Read(text[:])
		var derr error
		if b.rest, derr = b.d.Append(nil, text[:n]); derr != nil {
			return 0, derr
		}
		if err != nil && len(b.rest) == 0 {
			return 0, err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (c *framedClient) Send(msg []byte) error {
	if c.unary {
		_, err := c.body.Write(msg)
		return err
	}
	b := append(transcoder.AppendFrameHeader(nil, 0, len(msg)), msg...)
	if !c.text {
		_, err := c.body.Write(b)
		return err
	}
	b = base64.StdEncoding.AppendEncode(nil, b)
	for len(b) > 0 {
		n := min(len(b), 1+len(b)*2/3) // cut anywhere
		if _, err := c.body.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (c *framedClient) CloseSend() error { return c.body.Close() }

func (c *framedClient) Leave() {
	c.cancel()
	c.body.CloseWithError(io.ErrClosedPipe)
}

// metadataOf reads header fields as metadata, those with the prefix only.
func metadataOf(h map[string][]string, prefix string) metadata.MD {
	md := metadata.MD{}
	for k, vs := range h {
		k, ok := strings.CutPrefix(strings.ToLower(k), prefix)
		if !ok {
			continue
		}
		for _, v := range vs {
			if strings.HasSuffix(k, "-bin") {
				b, _ := grpcwire.DecodeBin(v)
				v = string(b)
			}
			md.Append(k, v)
		}
	}
	return md
}

func (c *framedClient) Header() metadata.MD {
	<-c.done
	if c.resp == nil || c.resp.Header.Get("Grpc-Status") != "" {
		return nil
	}
	return metadataOf(c.resp.Header, "")
}

func (c *framedClient) Trailer() metadata.MD { return c.trailer }

func (c *framedClient) Recv() ([]byte, error) {
	<-c.done
	if c.err != nil {
		return nil, c.err
	}
	if c.ended {
		return nil, c.end
	}
	msg, end := c.recv()
	if end != nil {
		c.ended, c.end = true, end
		c.body.Close()
	}
	return msg, end
}

// recv returns the next message, or how the call ended.
func (c *framedClient) recv() ([]byte, error) {
	if c.unary {
		c.trailer = metadataOf(c.resp.Header, "trailer-")
		b, err := io.ReadAll(c.resp.Body)
		if err != nil {
			return nil, err
		}
		if c.resp.StatusCode != http.StatusOK {
			return nil, connectStatus(b)
		}
		c.resp.Body = http.NoBody
		c.unary, c.protocol = false, rpc.ProtocolUnknown // what follows is the end
		return b, nil
	}
	if st := c.resp.Header.Get("Grpc-Status"); st != "" {
		c.trailer = metadataOf(c.resp.Header, "")
		return nil, c.atEnd(grpcStatus(st, c.resp.Header.Get("Grpc-Message")))
	}
	if c.resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(c.resp.Body)
		return nil, fmt.Errorf("HTTP status %d: %s", c.resp.StatusCode, b)
	}
	if c.protocol == rpc.ProtocolUnknown {
		return nil, io.EOF
	}
	var head [5]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		if err != io.EOF || c.protocol != rpc.ProtocolGRPC {
			return nil, fmt.Errorf("frame header: %w", err)
		}
		c.trailer = metadataOf(c.resp.Trailer, "")
		return nil, grpcStatus(c.resp.Trailer.Get("Grpc-Status"), c.resp.Trailer.Get("Grpc-Message"))
	}
	flags, n, err := transcoder.ParseFrameHeader(head[:], c.framing(), 1<<30)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.in, b); err != nil {
		return nil, err
	}
	switch {
	case flags&transcoder.FlagTrailer != 0:
		return nil, c.atEnd(c.trailerFrame(b))
	case flags&transcoder.FlagEndStream != 0:
		return nil, c.atEnd(c.endStream(b))
	}
	return b, nil
}

func (c *framedClient) framing() transcoder.Framing {
	switch c.protocol {
	case rpc.ProtocolGRPCWeb:
		return transcoder.FramingGRPCWeb
	case rpc.ProtocolConnect:
		return transcoder.FramingConnect
	}
	return transcoder.FramingGRPC
}

// atEnd checks that nothing follows the end.
func (c *framedClient) atEnd(end error) error {
	if rest, err := io.ReadAll(c.in); len(rest) > 0 || err != nil {
		return fmt.Errorf("behind the end there are %q and %w", rest, err)
	}
	if len(c.resp.Trailer) > 0 {
		return fmt.Errorf("there are HTTP trailers: %v", c.resp.Trailer)
	}
	return end
}

func (c *framedClient) trailerFrame(b []byte) error {
	h := textproto.MIMEHeader{}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(b), "\r\n"), "\r\n") {
		k, v, _ := strings.Cut(line, ": ")
		if k != strings.ToLower(k) {
			return fmt.Errorf("trailer name %q is not in lower case", k)
		}
		h.Add(k, v)
	}
	c.trailer = metadataOf(h, "")
	return grpcStatus(h.Get("Grpc-Status"), h.Get("Grpc-Message"))
}

func (c *framedClient) endStream(b []byte) error {
	var end struct {
		Error    json.RawMessage
		Metadata map[string][]string
	}
	if err := json.Unmarshal(b, &end); err != nil {
		return err
	}
	c.trailer = metadataOf(end.Metadata, "")
	if end.Error == nil {
		return io.EOF
	}
	return connectStatus(end.Error)
}

// grpcStatus is the end that a status of OK or an error makes.
func grpcStatus(code, message string) error {
	n, err := strconv.Atoi(code)
	if err != nil {
		return fmt.Errorf("grpc-status %q", code)
	}
	if n == 0 {
		return io.EOF
	}
	return status.Error(codes.Code(n), grpcwire.DecodeGRPCMessage(message))
}

// connectStatus reads a Connect error.
func connectStatus(b []byte) error {
	var e struct{ Code, Message string }
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&e); err != nil {
		return fmt.Errorf("connect error %q: %w", b, err)
	}
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		if transcoder.ConnectCodeName(c) == e.Code {
			return status.Error(c, e.Message)
		}
	}
	return fmt.Errorf("connect error %q", b)
}
