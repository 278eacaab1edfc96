package listeners_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/rpc/rpctest"
	"transom/transcoder"
)

// view is a View whose every method is run by one handler.
type view struct {
	schema *descriptors.Schema
	plans  *transcoder.Plans
	h      rpc.Handler
	// awaiting says that there should be more methods.
	awaiting bool
}

func newView(t testing.TB, h rpc.Handler) *view {
	t.Helper()
	b, err := proto.Marshal(rpctest.Files())
	if err != nil {
		t.Fatal(err)
	}
	set, err := descriptors.FromBytes("rpctest", b)
	if err != nil {
		t.Fatal(err)
	}
	schema, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	plans, err := transcoder.NewPlans(schema, transcoder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &view{schema: schema, plans: plans, h: h}
}

func (v *view) Acquire() listeners.View { return v }
func (v *view) MatchHTTP(verb, path, _ string) (descriptors.Match, error) {
	return v.schema.MatchHTTP(verb, path)
}
func (v *view) Method(path string) (*descriptors.Method, bool) { return v.schema.Method(path) }
func (v *view) Route(m *descriptors.Method) *listeners.Route {
	return &listeners.Route{Handler: v.h, Plan: v.plans.Method(m), MaxMessageBytes: 8 << 20}
}
func (v *view) Plans() *transcoder.Plans { return v.plans }
func (v *view) Edge() *listeners.Edge    { return nil }
func (v *view) Awaiting() bool           { return v.awaiting }
func (v *view) Release()                 {}

// serve runs a Front over HTTP/1.1 or HTTP/2.
func serve(t *testing.T, h rpc.Handler, http2 bool) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(listeners.NewFront(listeners.FrontConfig{}, newView(t, h), slog.New(slog.DiscardHandler)))
	srv.EnableHTTP2 = http2
	if http2 {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv
}

func TestRESTKeepsTheStreamContract(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		t.Run(name, func(t *testing.T) {
			rpctest.TestStream(t, rpctest.Harness{
				Start: func(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler) rpctest.Client {
					return startREST(t, serve(t, h, http2), m, header)
				},
				NoTrailer: true,
			})
		})
	}
}

// restClient is a client of NDJSON both ways.
type restClient struct {
	body   *io.PipeWriter
	cancel context.CancelFunc
	done   chan struct{} // closed when the response header is there, or the request has failed
	resp   *http.Response
	err    error
	lines  *bufio.Reader
}

func startREST(t *testing.T, srv *httptest.Server, m *descriptors.Method, header metadata.MD) *restClient {
	t.Helper()
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	_, name, _ := strings.Cut(m.FullPath[1:], "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/rpctest/"+strings.ToLower(name), pr)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for k, vs := range header {
		for _, v := range vs {
			if strings.HasSuffix(k, "-bin") {
				v = base64.StdEncoding.EncodeToString([]byte(v))
			}
			req.Header.Add("Grpc-Metadata-"+k, v)
		}
	}
	c := &restClient{body: pw, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		if c.resp, c.err = srv.Client().Do(req); c.err == nil {
			c.lines = bufio.NewReader(c.resp.Body)
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

func (c *restClient) Send(msg []byte) error {
	payload, n := []byte(nil), 0
	if len(msg) > 0 {
		_, _, n = protowire.ConsumeTag(msg)
		payload, _ = protowire.ConsumeBytes(msg[n:])
	}
	b, _ := json.Marshal(payload)
	if payload == nil {
		b = []byte(`""`)
	}
	_, err := c.body.Write(append(b, '\n'))
	return err
}

func (c *restClient) CloseSend() error { return c.body.Close() }

func (c *restClient) Header() metadata.MD {
	<-c.done
	if c.resp == nil || c.resp.StatusCode != http.StatusOK {
		return nil
	}
	md := metadata.MD{}
	for k, vs := range c.resp.Header {
		k = strings.ToLower(k)
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

func (c *restClient) Recv() ([]byte, error) {
	<-c.done
	if c.err != nil {
		return nil, c.err
	}
	if c.resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(c.resp.Body)
		return nil, statusOfJSON(b)
	}
	line, err := c.lines.ReadBytes('\n')
	if len(bytes.TrimSpace(line)) == 0 {
		return nil, err
	}
	if bytes.HasPrefix(line, []byte(`{"@error":`)) {
		var late struct {
			Error json.RawMessage `json:"@error"`
		}
		if err := json.Unmarshal(line, &late); err != nil {
			return nil, err
		}
		return nil, statusOfJSON(late.Error)
	}
	var payload []byte
	if err := json.Unmarshal(line, &payload); err != nil {
		return nil, err
	}
	return rpctest.Value(payload), nil
}

func statusOfJSON(b []byte) error {
	var s struct {
		Code    uint32
		Message string
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New(string(b))
	}
	return status.Error(codes.Code(s.Code), s.Message)
}

func (c *restClient) Trailer() metadata.MD { return nil }
func (c *restClient) Leave() {
	c.cancel()
	c.body.CloseWithError(io.ErrClosedPipe)
}
