package listeners_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"transom/listeners"
	wsv1 "transom/proto/transom/ws/v1"
	"transom/rpc"
	"transom/rpc/rpctest"
	"transom/transcoder"
)

// echoFront answers each message with itself; a unary or server-streaming method takes one.
func echoFront(t *testing.T) *listeners.Front {
	t.Helper()
	return listeners.NewFront(listeners.FrontConfig{}, newView(t, func(ctx context.Context, call *rpc.Call) error {
		if !call.Method.ClientStreams {
			m, err := rpc.RecvOne(ctx, call.Stream)
			if err != nil {
				return err
			}
			return call.Stream.Send(ctx, m)
		}
		for {
			m, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := call.Stream.Send(ctx, m); err != nil {
				return err
			}
		}
	}), slog.New(slog.DiscardHandler))
}

func enveloped(flags byte, payload string) string {
	return string(transcoder.AppendFrameHeader(nil, flags, len(payload))) + payload
}

func gzipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, s)
	_ = w.Close()
	return b.String()
}

// TestTrailersOnly: an answer of native gRPC that has nothing but a status has the fields of the specification's Trailers-Only, and no
// content-length among them.
func TestTrailersOnly(t *testing.T) {
	for _, version := range []string{"H2C", "HTTP2", "HTTP3"} {
		base, client := listen(t, echoFront(t), version)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/rpctest.Echo/Nothing", strings.NewReader(enveloped(0, "")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Grpc-Status"); got != "12" {
			t.Errorf("%s: status %q in %v", version, got, resp.Header)
		}
		if got, ok := resp.Header["Content-Length"]; ok {
			t.Errorf("%s: content-length %q", version, got)
		}
	}
}

// TestFrameFaults holds the protocols in frames to the codes that the gRPC specification and the Connect protocol have for
// faults of the client.
func TestFrameFaults(t *testing.T) {
	one := string(rpctest.Value([]byte("x")))
	const encoding = "Encoding" // stands for the protocol's own header
	for _, tc := range []struct {
		name, method string
		header       map[string]string
		body         string
		want         codes.Code
		connect      bool // Connect has another answer or no such case
	}{
		{"good", "Bidi", nil, enveloped(0, one) + enveloped(0, ""), codes.OK, false},
		{"good, gzip", "Bidi", map[string]string{encoding: "gzip"}, enveloped(1, gzipped(one)) + enveloped(0, one), codes.OK, false},
		{"compressed, empty", "Bidi", map[string]string{encoding: "gzip"}, enveloped(1, ""), codes.OK, false},
		{"no message", "Server", nil, "", codes.Unimplemented, false},
		{"two messages", "Server", nil, enveloped(0, one) + enveloped(0, one), codes.Unimplemented, false},
		{"header cut off", "Bidi", nil, "\x00\x00\x00", codes.Internal, false},
		{"message cut off", "Bidi", nil, enveloped(0, one)[:6], codes.Internal, false},
		{"second message cut off", "Bidi", nil, enveloped(0, one) + "\x00", codes.Internal, false},
		{"flags 0x02", "Bidi", nil, enveloped(2, one), codes.Internal, false},
		{"flags 0x04", "Bidi", nil, enveloped(4, one), codes.Internal, false},
		{"flags 0x80", "Bidi", nil, enveloped(0x80, one), codes.Internal, false},
		{"flags 0xff", "Bidi", nil, enveloped(0xff, one), codes.Internal, false},
		{"compressed without encoding", "Bidi", nil, enveloped(1, gzipped(one)), codes.Internal, false},
		{"compressed with identity", "Bidi", map[string]string{encoding: "identity"}, enveloped(1, gzipped(one)), codes.Internal, false},
		{"unknown encoding", "Bidi", map[string]string{encoding: "lzma"}, enveloped(1, one), codes.Unimplemented, false},
		{"not gzip", "Bidi", map[string]string{encoding: "gzip"}, enveloped(1, one), codes.InvalidArgument, false},
		{"over the limit", "Bidi", nil, "\x00\x00\x80\x00\x01", codes.ResourceExhausted, false},
		{"4 GiB", "Bidi", nil, "\x00\xff\xff\xff\xff", codes.ResourceExhausted, false},
		{"decompressed over the limit", "Bidi", map[string]string{encoding: "gzip"}, enveloped(1, gzipped(strings.Repeat("x", 8<<20+1))), codes.ResourceExhausted, false},
		{"bad timeout", "Bidi", map[string]string{"Grpc-Timeout": "1d", "Connect-Timeout-Ms": "1s"}, enveloped(0, one), codes.InvalidArgument, false},
		{"timeout too long", "Bidi", map[string]string{"Grpc-Timeout": "123456789S", "Connect-Timeout-Ms": "12345678901"}, enveloped(0, one), codes.InvalidArgument, false},
		{"timeout of zero", "Bidi", map[string]string{"Grpc-Timeout": "0n", "Connect-Timeout-Ms": "0"}, enveloped(0, one), codes.DeadlineExceeded, false},
		{"bad -bin metadata", "Bidi", map[string]string{"X-Bin": "?"}, enveloped(0, one), codes.InvalidArgument, false},
		{"unknown method", "Nothing", nil, enveloped(0, one), codes.Unimplemented, true},
		{"JSON that is none", "Bidi", map[string]string{"Content-Type": "+json"}, enveloped(0, "{"), codes.InvalidArgument, false},
		{"unknown message encoding", "Bidi", map[string]string{"Content-Type": "+thrift"}, enveloped(0, one), codes.Unimplemented, true},
	} {
		for _, p := range []struct {
			name, contentType, encoding string
			protocol                    rpc.Protocol
			version                     string
		}{
			{"GRPC", "application/grpc", "Grpc-Encoding", rpc.ProtocolGRPC, "H2C"},
			{"GRPCWeb", "application/grpc-web", "Grpc-Encoding", rpc.ProtocolGRPCWeb, "HTTP1"},
			{"GRPCWebText", "application/grpc-web-text", "Grpc-Encoding", rpc.ProtocolGRPCWeb, "HTTP1"},
			{"Connect", "application/connect", "Connect-Content-Encoding", rpc.ProtocolConnect, "HTTP1"},
		} {
			if tc.connect && p.protocol == rpc.ProtocolConnect {
				continue
			}
			t.Run(tc.name+"/"+p.name, func(t *testing.T) {
				base, client := listen(t, echoFront(t), p.version)
				ct := p.contentType + tc.header["Content-Type"]
				if tc.header["Content-Type"] == "" && p.protocol == rpc.ProtocolConnect {
					ct += "+proto"
				}
				body := tc.body
				c := &framedClient{wire: wire{contentType: ct, protocol: p.protocol, text: p.name == "GRPCWebText"}, done: make(chan struct{})}
				if c.text {
					body = base64.StdEncoding.EncodeToString([]byte(body))
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/rpctest.Echo/"+tc.method, strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				for k, v := range tc.header {
					if k == encoding {
						k = p.encoding
					}
					req.Header.Set(k, v)
				}
				req.Header.Set("Content-Type", ct)
				if c.resp, err = client.Do(req); err != nil {
					t.Fatal(err)
				}
				defer c.resp.Body.Close()
				close(c.done)
				c.in, c.body = c.resp.Body, new(io.PipeWriter)
				_, c.body = io.Pipe()
				if c.text {
					c.in = &textBody{r: c.resp.Body}
				}
				for err == nil {
					_, err = c.Recv()
				}
				if err == io.EOF {
					err = nil
				}
				if st := rpc.StatusOf(err); c.resp.StatusCode != http.StatusOK || st.Code() != tc.want || err != nil && !rpc.Known(err) {
					t.Errorf("HTTP %d, %v, want %v", c.resp.StatusCode, err, tc.want)
				}
				if tc.name == "unknown encoding" && c.resp.Header.Get(strings.Replace(p.encoding, "Content", "Accept", 1)) == "" && c.resp.Header.Get("Grpc-Accept-Encoding") == "" && c.resp.Header.Get("Connect-Accept-Encoding") == "" {
					t.Errorf("what is supported is not said: %v", c.resp.Header)
				}
			})
		}
	}
}

// TestConnectUnary holds unary Connect calls to the protocol: status, code and headers of POST and GET.
func TestConnectUnary(t *testing.T) {
	base, client := listen(t, echoFront(t), "HTTP1")
	one := string(rpctest.Value([]byte("x")))
	long := string(rpctest.Value(bytes.Repeat([]byte("x"), 2000)))
	get := func(kv ...string) string {
		q := url.Values{}
		for i := 0; i < len(kv); i += 2 {
			q.Set(kv[i], kv[i+1])
		}
		return "?" + q.Encode()
	}
	for _, tc := range []struct {
		name, verb, path string
		header           map[string]string
		body             string
		status           int
		want             string // of the body; of an error its code
		header2          string // a header line of the answer
	}{
		{"proto", "POST", "Unary", map[string]string{"Content-Type": "application/proto"}, one, 200, one, "Content-Type: application/proto"},
		{"json", "POST", "Unary", map[string]string{"Content-Type": "application/json"}, `"eA=="`, 200, `"eA=="`, "Content-Type: application/json"},
		{"json, charset", "POST", "Unary", map[string]string{"Content-Type": "Application/JSON; charset=utf-8"}, `"eA=="`, 200, `"eA=="`, "Content-Type: application/json"},
		{"empty", "POST", "Unary", map[string]string{"Content-Type": "application/proto"}, "", 200, "", "Content-Length: 0"},
		{"gzip", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Content-Encoding": "gzip"}, gzipped(one), 200, one, "Content-Encoding: gzip"},
		{"gzip, answer not accepted", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Content-Encoding": "gzip", "Accept-Encoding": "gzip;q=0"}, gzipped(one), 200, one, "Content-Encoding: "},
		{"long, gzip accepted", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Accept-Encoding": "deflate, gzip;q=0.5"}, long, 200, long, "Content-Encoding: gzip"},
		{"short, gzip accepted", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Accept-Encoding": "gzip"}, one, 200, one, "Content-Encoding: "},
		{"version 2", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Connect-Protocol-Version": "2"}, one, 400, "invalid_argument", ""},
		{"timeout of zero", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Connect-Timeout-Ms": "0"}, one, 504, "deadline_exceeded", ""},
		{"bad timeout", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Connect-Timeout-Ms": "-3"}, one, 400, "invalid_argument", ""},
		{"bad JSON", "POST", "Unary", map[string]string{"Content-Type": "application/json"}, `{`, 400, "invalid_argument", ""},
		{"unknown compression", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Content-Encoding": "lzma"}, one, 501, "unimplemented", "Accept-Encoding: gzip, br, zstd"},
		{"not gzip", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Content-Encoding": "gzip"}, one, 400, "invalid_argument", ""},
		{"over the limit", "POST", "Unary", map[string]string{"Content-Type": "application/proto"}, strings.Repeat("x", 8<<20+1), 429, "resource_exhausted", ""},
		{"decompressed over the limit", "POST", "Unary", map[string]string{"Content-Type": "application/proto", "Content-Encoding": "gzip"}, gzipped(strings.Repeat("x", 8<<20+1)), 429, "resource_exhausted", ""},
		{"unknown method", "POST", "Nothing", map[string]string{"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}, one, 404, "unimplemented", ""},
		{"unknown type", "POST", "Unary", map[string]string{"Content-Type": "application/thrift", "Connect-Protocol-Version": "1"}, one, 415, "unknown", "Accept-Post: application/json, application/proto"},
		{"unary form of a stream", "POST", "Server", map[string]string{"Content-Type": "application/proto"}, one, 415, "unknown", "Accept-Post: application/connect+json, application/connect+proto"},
		{"stream form of a unary", "POST", "Unary", map[string]string{"Content-Type": "application/connect+proto"}, one, 415, "unknown", "Accept-Post: application/json, application/proto"},
		{"PUT", "PUT", "Unary", map[string]string{"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}, one, 405, "unknown", "Allow: POST"},
		{"GET of a method with effects", "GET", "Unary" + get("encoding", "proto", "message", one), nil, "", 405, "unknown", "Allow: POST"},
		{"GET", "GET", "Get" + get("encoding", "proto", "message", one), nil, "", 200, one, "Vary: Accept-Encoding"},
		{"GET, version", "GET", "Get" + get("connect", "v1", "encoding", "proto", "message", one), nil, "", 200, one, ""},
		{"GET, base64", "GET", "Get" + get("base64", "1", "encoding", "proto", "message", base64.RawURLEncoding.EncodeToString([]byte(one))), nil, "", 200, one, ""},
		{"GET, padded base64", "GET", "Get" + get("base64", "1", "encoding", "proto", "message", base64.URLEncoding.EncodeToString([]byte(one+"\x00"))), nil, "", 200, one + "\x00", ""},
		{"GET, json", "GET", "Get" + get("encoding", "json", "message", `"eA=="`), nil, "", 200, `"eA=="`, "Content-Type: application/json"},
		{"GET, gzip", "GET", "Get" + get("compression", "gzip", "encoding", "proto", "message", gzipped(one)), nil, "", 200, one, ""},
		{"GET, unknown parameter", "GET", "Get" + get("encoding", "proto", "message", "", "utm", "x"), nil, "", 200, "", ""},
		{"GET without message", "GET", "Get" + get("encoding", "proto"), nil, "", 400, "invalid_argument", ""},
		{"GET without encoding", "GET", "Get" + get("message", one), nil, "", 400, "invalid_argument", ""},
		{"GET, unknown encoding", "GET", "Get" + get("encoding", "thrift", "message", one), nil, "", 415, "unknown", ""},
		{"GET, unknown compression", "GET", "Get" + get("compression", "lzma", "encoding", "proto", "message", one), nil, "", 501, "unimplemented", ""},
		{"GET, version 2", "GET", "Get" + get("connect", "v2", "encoding", "proto", "message", one), nil, "", 400, "invalid_argument", ""},
		{"GET, bad base64", "GET", "Get" + get("base64", "1", "encoding", "proto", "message", "?"), nil, "", 400, "invalid_argument", ""},
		{"GET of nothing", "GET", "Get", nil, "", 400, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tc.verb, base+"/rpctest.Echo/"+tc.path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range tc.header {
				req.Header.Set(k, v)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			got := string(b)
			if resp.Header.Get("Content-Encoding") == "gzip" {
				r, err := gzip.NewReader(bytes.NewReader(b))
				if err != nil {
					t.Fatal(err)
				}
				plain, _ := io.ReadAll(r)
				got = string(plain)
			}
			if resp.StatusCode != http.StatusOK && tc.want != "" {
				if ct := resp.Header.Get("Content-Type"); ct != "application/json" {
					t.Errorf("error of type %q", ct)
				}
				got = transcoder.ConnectCodeName(rpc.StatusOf(connectStatus(b)).Code())
			}
			if resp.StatusCode != tc.status || got != tc.want && tc.want != "" {
				t.Errorf("%d %.80q, want %d %.80q", resp.StatusCode, got, tc.status, tc.want)
			}
			if k, v, ok := strings.Cut(tc.header2, ": "); ok && resp.Header.Get(k) != v {
				t.Errorf("%s: %q, want %q", k, resp.Header.Get(k), v)
			}
		})
	}
}

// exchanges counts those that have begun and not ended, and has the last one's status.
type exchanges struct {
	open int
	code codes.Code
}

func (e *exchanges) Begin(ctx context.Context, _ *listeners.Exchange) context.Context {
	e.open++
	return ctx
}

func (*exchanges) Stream(*listeners.Exchange) {}

func (e *exchanges) End(x *listeners.Exchange) {
	e.open--
	e.code = x.Status.Code()
}

// A panic within a call is answered, observed and logged as an error inside the gateway, by any protocol.
func TestPanic(t *testing.T) {
	var seen exchanges
	var log bytes.Buffer
	front := listeners.NewFront(listeners.FrontConfig{Observer: &seen}, newView(t, func(context.Context, *rpc.Call) error {
		panic("secret")
	}), slog.New(slog.NewTextHandler(&log, nil)))
	for _, tt := range []struct {
		path, ctype, body string
		code              int
	}{
		{"/rpctest/unary", "application/json", `""`, 500},
		{"/rpctest/bidi", "application/json", `""`, 500},
		{"/rpctest.Echo/Unary", "application/json", `""`, 500},
		{"/rpctest.Echo/Bidi", "application/connect+proto", enveloped(0, ""), 200},
		{"/rpctest.Echo/Unary", "application/grpc", enveloped(0, ""), 200},
		{"/rpctest.Echo/Unary", "application/grpc-web", enveloped(0, ""), 200},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, tt.path, strings.NewReader(tt.body))
		r.ProtoMajor = 2
		r.Header.Set("Content-Type", tt.ctype)
		w := httptest.NewRecorder()
		log.Reset()
		seen.code = codes.OK
		front.ServeHTTP(w, r)
		if w.Code != tt.code || seen.open != 0 || seen.code != codes.Internal || strings.Contains(w.Body.String()+w.Header().Get("Grpc-Message"), "secret") {
			t.Errorf("%s %s: HTTP status %d, %v, %d exchanges have not ended, %v %q", tt.ctype, tt.path, w.Code, seen.code, seen.open, w.Header(), w.Body)
		}
		if !strings.Contains(log.String(), "secret") || !strings.Contains(log.String(), "framed_faults_test.go") {
			t.Errorf("%s %s: the log has neither the panic nor where it was: %s", tt.ctype, tt.path, &log)
		}
	}
}

// ends has the last exchange that has ended.
type ends struct {
	transcoded
	last listeners.Exchange
}

func (e *ends) End(x *listeners.Exchange) { e.last = *x }

// What is refused before it is a call is the client's fault, as observers see it, by any protocol.
func TestRefusedBeforeCall(t *testing.T) {
	var seen ends
	front := listeners.NewFront(listeners.FrontConfig{Observer: &seen}, newView(t, func(context.Context, *rpc.Call) error { return nil }), slog.New(slog.DiscardHandler))
	for _, tt := range []struct {
		verb, path, ctype string
		header            http.Header
		status            int
		method            bool
	}{
		{"GET", "/nope", "", nil, 404, false},
		{"GET", "/rpctest/unary", "", nil, 405, false},
		{"POST", "/rpctest.Echo/Unary", "text/plain", nil, 415, false},
		{"POST", "/rpctest/unary", "application/json", http.Header{"Content-Encoding": {"rot13"}}, 415, true},
		{"POST", "/rpctest/unary", "application/json", http.Header{"Grpc-Timeout": {"x"}}, 400, true},
		{"POST", "/rpctest.Echo/Nope", "application/grpc", nil, 200, false},
		{"POST", "/rpctest.Echo/Nope", "application/grpc-web", nil, 200, false},
		{"POST", "/rpctest.Echo/Unary", "application/grpc+xml", nil, 200, true},
		{"POST", "/rpctest.Echo/Unary", "application/xml", http.Header{"Connect-Protocol-Version": {"1"}}, 415, true},
		{"GET", "/", "", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}, "Origin": {"https://other.example"}}, 403, false},
	} {
		r := httptest.NewRequestWithContext(t.Context(), tt.verb, tt.path, strings.NewReader(""))
		if tt.header.Get("Upgrade") == "" {
			r.ProtoMajor = 2
		}
		maps.Copy(r.Header, tt.header)
		if tt.ctype != "" {
			r.Header.Set("Content-Type", tt.ctype)
		}
		seen.last = listeners.Exchange{}
		front.ServeHTTP(httptest.NewRecorder(), r)
		x := seen.last
		if x.Call == nil || x.Call.Info == nil {
			t.Errorf("%s %s %s: the exchange has no call", tt.verb, tt.path, tt.ctype)
			continue
		}
		if x.HTTPStatus != tt.status || x.Status.Code() == codes.OK || x.Call.Info.ErrorSource != rpc.SourceClient || (x.Call.Method != nil) != tt.method {
			t.Errorf("%s %s %s %v: status %d, %v, fault of %v, method %v", tt.verb, tt.path, tt.ctype, tt.header, x.HTTPStatus, x.Status, x.Call.Info.ErrorSource, x.Call.Method)
		}
	}
}

// While descriptors are awaited, what is not found may be there soon: each protocol says so in a way that clients try again.
func TestMissingWhileAwaiting(t *testing.T) {
	var seen ends
	v := newView(t, func(context.Context, *rpc.Call) error { return nil })
	v.awaiting = true
	front := listeners.NewFront(listeners.FrontConfig{Observer: &seen}, v, slog.New(slog.DiscardHandler))
	socket := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}}
	grpcSocket := maps.Clone(socket)
	grpcSocket["Sec-Websocket-Protocol"] = []string{"grpc-websockets"}
	for _, tt := range []struct {
		verb, path, ctype string
		header            http.Header
		status            int
	}{
		{"GET", "/nope", "", nil, 503},
		{"GET", "/rpctest/unary", "", nil, 503},
		{"POST", "/a.B/C", "application/json", nil, 503},
		{"POST", "/a.B/C", "application/json", http.Header{"Connect-Protocol-Version": {"1"}}, 503},
		{"POST", "/a.B/C", "application/connect+proto", nil, 503},
		{"POST", "/a.B/C", "application/grpc", nil, 200},
		{"POST", "/a.B/C", "application/grpc-web", nil, 200},
		{"GET", "/a.B/C", "", socket, 503},
		{"GET", "/a.B/C", "", grpcSocket, 503},
	} {
		r := httptest.NewRequestWithContext(t.Context(), tt.verb, tt.path, strings.NewReader(""))
		if tt.header.Get("Upgrade") == "" {
			r.ProtoMajor = 2
		}
		maps.Copy(r.Header, tt.header)
		if tt.ctype != "" {
			r.Header.Set("Content-Type", tt.ctype)
		}
		seen.last = listeners.Exchange{}
		w := httptest.NewRecorder()
		front.ServeHTTP(w, r)
		x := seen.last
		if w.Code != tt.status || x.Status.Code() != codes.Unavailable || !strings.Contains(x.Status.Message(), "descriptors") || x.Call.Info.ErrorSource != rpc.SourceGateway {
			t.Errorf("%s %s %s %v: HTTP status %d, %v, fault of %v", tt.verb, tt.path, tt.ctype, tt.header, w.Code, x.Status, x.Call.Info.ErrorSource)
		}
	}
	srv := httptest.NewServer(front)
	defer srv.Close()
	s, err := dialSession(t.Context(), srv.URL, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.CloseNow()
	for id, open := range []*wsv1.Open{{Method: "/a.B/C"}, {Path: "/nope"}} {
		if err := s.send(&wsv1.Frame{Id: uint32(id) + 1, Open: open}, nil); err != nil {
			t.Fatal(err)
		}
		if f, _, err := s.receive(); err != nil || codes.Code(f.GetStatus().GetCode()) != codes.Unavailable {
			t.Errorf("%v: got %v, %v, want Unavailable", open, f, err)
		}
	}
}

// The name of a content coding has no case, and a body that is only there to be large is too large.
func TestRESTContentCodings(t *testing.T) {
	var got int
	front := listeners.NewFront(listeners.FrontConfig{}, newView(t, func(ctx context.Context, call *rpc.Call) error {
		m, err := call.Stream.Recv(ctx)
		if err != nil {
			return err
		}
		got = m.Len()
		return call.Stream.Send(ctx, m)
	}), slog.New(slog.DiscardHandler))
	for _, tt := range []struct {
		coding, body string
		status       int
	}{
		{"gzip", gzipped(`"AQ=="`), 200},
		{"GZIP", gzipped(`"AQ=="`), 200},
		{"X-GZip", gzipped(`"AQ=="`), 200},
		{"Identity", `"AQ=="`, 200},
		{"rot13", `"AQ=="`, 415},
		{"gzip", gzipped(`"` + strings.Repeat("A", 4<<20) + `"`), 413},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/rpctest/unary", strings.NewReader(tt.body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Content-Encoding", tt.coding)
		r.ProtoMajor = 2
		w := httptest.NewRecorder()
		got = 0
		front.ServeHTTP(w, r)
		if w.Code != tt.status || tt.status == 200 && got == 0 {
			t.Errorf("%s, %d bytes: HTTP status %d, want %d: %s", tt.coding, len(tt.body), w.Code, tt.status, w.Body)
		}
	}
}

// A fault within a stream of JSON says which message it is in, and where that is in the body.
func TestFaultInJSONStream(t *testing.T) {
	front := listeners.NewFront(listeners.FrontConfig{}, newView(t, func(ctx context.Context, call *rpc.Call) error {
		for {
			m, err := call.Stream.Recv(ctx)
			if err != nil {
				return err
			}
			m.Release()
		}
	}), slog.New(slog.DiscardHandler))
	for _, tt := range []struct{ body, want string }{
		{strings.Repeat("\"AQ==\"\n", 3000) + " 5", "body, message 3001: expected a string, found 5 (line 3001, column 2)"},
		{"5", "body, message 1: expected a string, found 5 (line 1, column 1)"},
		{`["AQ==", 5]`, "body, message 2: expected a string, found 5 (line 1, column 10)"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/rpctest/bidi", strings.NewReader(tt.body))
		r.Header.Set("Content-Type", "application/json")
		r.ProtoMajor = 2
		w := httptest.NewRecorder()
		front.ServeHTTP(w, r)
		if w.Code != 400 || !strings.Contains(w.Body.String(), tt.want) || !strings.Contains(w.Body.String(), "BadRequest") {
			t.Errorf("HTTP status %d, %s, want %q", w.Code, w.Body, tt.want)
		}
	}
}
