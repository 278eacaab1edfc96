package soak

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	bankv1 "transom/proto/bank/v1"
)

// exchange is a call that is one HTTP request. The answer's header comes when it comes, sending does not wait for it.
type exchange struct {
	framing framing
	cancel  context.CancelFunc
	body    *io.PipeWriter
	ready   chan struct{} // closed when resp and err are there
	resp    *http.Response
	err     error
	r       *bufio.Reader
}

// framing is how messages lie in the bodies of a protocol.
type framing interface {
	frame(m proto.Message) ([]byte, error)
	// next reads an answer into m; io.EOF or a status ends the call.
	next(resp *http.Response, r *bufio.Reader, m proto.Message) error
}

// post begins an exchange. Its request body is open until CloseSend.
func post(ctx context.Context, c *http.Client, f framing, verb, url string, header map[string]string) (stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, verb, url, pr)
	if err != nil {
		cancel()
		return nil, err
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	x := &exchange{framing: f, cancel: cancel, body: pw, ready: make(chan struct{})}
	// Do returns only when the body's reader has, and not all transports close a body that they have no use for.
	context.AfterFunc(ctx, func() { _ = pw.CloseWithError(ctx.Err()) })
	go func() {
		defer close(x.ready)
		if x.resp, x.err = c.Do(req); x.err == nil {
			x.r = bufio.NewReader(x.resp.Body)
		} else {
			_ = pr.CloseWithError(io.ErrClosedPipe)
		}
	}()
	return x, nil
}

// Send implements stream. That the server wants no more is no error: Recv has its answer.
func (x *exchange) Send(m proto.Message) error {
	b, err := x.framing.frame(m)
	if err != nil {
		return err
	}
	_, _ = x.body.Write(b)
	return nil
}

// CloseSend implements stream.
func (x *exchange) CloseSend() error { return x.body.Close() }

// Recv implements stream.
func (x *exchange) Recv(m proto.Message) error {
	<-x.ready
	if x.err != nil {
		return x.err
	}
	return x.framing.next(x.resp, x.r, m)
}

// Close implements stream.
func (x *exchange) Close() {
	x.cancel()
	x.body.CloseWithError(context.Canceled)
	<-x.ready
	if x.resp != nil {
		x.resp.Body.Close()
	}
}

// millis is a timeout as gRPC spells it.
func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "m" }

// lines is REST with a line of JSON for each message.
type lines struct{}

func (lines) frame(m proto.Message) ([]byte, error) {
	b, err := protojson.Marshal(m)
	return append(b, '\n'), err
}

func (lines) next(resp *http.Response, r *bufio.Reader, m proto.Message) error {
	if resp.StatusCode != http.StatusOK {
		return restError(resp, r)
	}
	line, err := r.ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) == 0 {
		return io.EOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if rest, late := bytes.CutPrefix(line, []byte(`{"@error":`)); late {
		return statusOf(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte("}")))
	}
	return protojson.Unmarshal(line, m)
}

// restError reads the error object of REST.
func restError(resp *http.Response, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := statusOf(b); status.Code(err) != codes.Unknown {
		return err
	}
	return fmt.Errorf("%s: %s", resp.Status, b)
}

func statusOf(b []byte) error {
	var st struct {
		Code    int64
		Message string
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return fmt.Errorf("%q is no error object: %w", b, err)
	}
	return clear(st.Code, st.Message)
}

// restClient is REST and JSON by the methods' HTTP rules.
func restClient(c *http.Client, base string) *client {
	return &client{
		unary: func(ctx context.Context, method string, in, out proto.Message, timeout time.Duration) error {
			path := base + "/v1/diagnostics/echo"
			if r, ok := in.(*bankv1.TransferRequest); ok {
				path = base + "/v1/" + r.GetName() + ":transfer"
				in, _ = proto.Clone(in).(*bankv1.TransferRequest)
				in.(*bankv1.TransferRequest).Name = "" //nolint:forcetypeassert // it is one
			}
			b, err := protojson.Marshal(in)
			if err != nil {
				return err
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(b))
			if err != nil {
				return err
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Grpc-Timeout", millis(timeout))
			resp, err := c.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return restError(resp, resp.Body)
			}
			if b, err = io.ReadAll(resp.Body); err != nil {
				return err
			}
			return protojson.Unmarshal(b, out)
		},
		open: func(ctx context.Context, method string, timeout time.Duration) (stream, error) {
			header := map[string]string{"Content-Type": "application/json", "Accept": "application/x-ndjson", "Grpc-Timeout": millis(timeout)}
			switch method {
			case deposit:
				return post(ctx, c, lines{}, http.MethodPost, base+"/v1/accounts:deposit", header)
			case chat:
				return post(ctx, c, lines{}, http.MethodPost, base+"/v1/support/chat", header)
			}
			return &generated{ctx: ctx, c: c, base: base, header: header}, nil
		},
	}
}

// generated is a call of Generate by GET: its request is the query.
type generated struct {
	ctx    context.Context //nolint:containedctx // a stream owns its call's
	c      *http.Client
	base   string
	header map[string]string
	x      stream
}

// Send implements stream.
func (g *generated) Send(m proto.Message) error {
	r, ok := m.(*bankv1.GenerateRequest)
	if !ok {
		return fmt.Errorf("Generate with a %T", m)
	}
	q := url.Values{"count": {strconv.FormatInt(r.GetCount(), 10)}, "sizeBytes": {strconv.Itoa(int(r.GetSizeBytes()))}}
	ctx, cancel := context.WithCancel(g.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.base+"/v1/diagnostics/generate?"+q.Encode(), nil)
	if err != nil {
		cancel()
		return err
	}
	for k, v := range g.header {
		req.Header.Set(k, v)
	}
	req.Header.Del("Content-Type")
	_, pw := io.Pipe()
	x := &exchange{framing: lines{}, cancel: cancel, body: pw, ready: make(chan struct{})}
	defer close(x.ready)
	if x.resp, x.err = g.c.Do(req); x.err == nil {
		x.r = bufio.NewReader(x.resp.Body)
	}
	g.x = x
	return nil
}

// CloseSend implements stream.
func (g *generated) CloseSend() error { return nil }

// Recv implements stream.
func (g *generated) Recv(m proto.Message) error { return g.x.Recv(m) }

// Close implements stream.
func (g *generated) Close() {
	if g.x != nil {
		g.x.Close()
	}
}

// envelopes are frames with a prefix of five bytes.
type envelopes struct {
	// end is the flag of the last frame, and last reads it.
	end  byte
	last func(b []byte) error
	// first reads an answer that has no frames.
	first func(resp *http.Response, r io.Reader) error
}

func (envelopes) frame(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 5, 64), m)
	if err == nil {
		binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	}
	return b, err
}

func (e envelopes) next(resp *http.Response, r *bufio.Reader, m proto.Message) error {
	if err := e.first(resp, r); err != nil {
		return err
	}
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("the answer ends without its last frame: %w", io.ErrUnexpectedEOF)
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	switch head[0] {
	case 0:
		return proto.Unmarshal(b, m)
	case e.end:
		return e.last(b)
	}
	return fmt.Errorf("a frame with flags %#x", head[0])
}

// webClient is gRPC-Web, in its binary form.
func webClient(c *http.Client, base string) *client {
	trailer := func(code, message string) error {
		n, err := strconv.ParseInt(strings.TrimSpace(code), 10, 64)
		switch {
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		}
		return clear(n, message)
	}
	f := envelopes{
		end: 0x80,
		last: func(b []byte) error {
			code, message := "", ""
			for line := range strings.SplitSeq(string(b), "\r\n") {
				k, v, _ := strings.Cut(line, ":")
				switch strings.ToLower(k) {
				case "grpc-status":
					code = v
				case "grpc-message":
					message = v
				}
			}
			return trailer(code, message)
		},
		first: func(resp *http.Response, _ io.Reader) error {
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			if code := resp.Header.Get("Grpc-Status"); code != "" && code != "0" {
				return trailer(code, resp.Header.Get("Grpc-Message"))
			}
			return nil
		},
	}
	return &client{open: func(ctx context.Context, method string, timeout time.Duration) (stream, error) {
		return post(ctx, c, f, http.MethodPost, base+method, map[string]string{"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1", "Grpc-Timeout": millis(timeout)})
	}}
}

// connectClient is the Connect protocol with protobuf.
func connectClient(c *http.Client, base string) *client {
	fault := func(b []byte) error {
		var e struct{ Code, Message string }
		if err := json.Unmarshal(b, &e); err != nil {
			return fmt.Errorf("%q is no Connect error: %w", b, err)
		}
		var code codes.Code
		name := strings.ToUpper(e.Code)
		if name == "CANCELED" {
			name = "CANCELLED"
		}
		if err := code.UnmarshalJSON([]byte(strconv.Quote(name))); err != nil {
			return err
		}
		return clear(int64(code), e.Message)
	}
	f := envelopes{
		end: 2,
		last: func(b []byte) error {
			var end struct{ Error json.RawMessage }
			if err := json.Unmarshal(b, &end); err != nil {
				return err
			}
			if end.Error == nil {
				return io.EOF
			}
			return fault(end.Error)
		},
		first: func(resp *http.Response, _ io.Reader) error {
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			return nil
		},
	}
	header := func(contentType string, timeout time.Duration) map[string]string {
		return map[string]string{"Content-Type": contentType, "Connect-Protocol-Version": "1", "Connect-Timeout-Ms": strconv.FormatInt(timeout.Milliseconds(), 10)}
	}
	return &client{
		open: func(ctx context.Context, method string, timeout time.Duration) (stream, error) {
			return post(ctx, c, f, http.MethodPost, base+method, header("application/connect+proto", timeout))
		},
		unary: func(ctx context.Context, method string, in, out proto.Message, timeout time.Duration) error {
			b, err := proto.Marshal(in)
			if err != nil {
				return err
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+method, bytes.NewReader(b))
			if err != nil {
				return err
			}
			for k, v := range header("application/proto", timeout) {
				req.Header.Set(k, v)
			}
			resp, err := c.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if b, err = io.ReadAll(resp.Body); err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				return fault(b)
			}
			return proto.Unmarshal(b, out)
		},
	}
}
