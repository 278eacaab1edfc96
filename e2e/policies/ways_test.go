package policies_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/webtransport-go"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
	wsv1 "transom/proto/transom/ws/v1"
	"transom/rpc/grpcwire"
	"transom/transcoder"
)

// open is a gateway that every protocol and version of HTTP reaches: its second listener has TLS, HTTP/3 and WebTransport.
type open struct {
	*proxy
	// pem is the file of the certificate and its key.
	pem    string
	secure string
	tls    *tls.Config
	h1     *http.Client
	h2c    *http.Client
	h2     *http.Client
	h3     *http.Client
}

// openTo runs a gateway with the policies that text has.
func openTo(t *testing.T, text string) *open {
	t.Helper()
	ca := process.NewAuthority(t)
	file := filepath.Join(t.TempDir(), "edge.pem")
	process.Replace(t, file, ca.Issue(t))
	o := &open{pem: file, tls: &tls.Config{RootCAs: ca.Pool, MinVersion: tls.VersionTLS13}}
	o.proxy = start(t, o.with(text))
	o.secure = strings.Replace(o.Addrs()[1].String(), "127.0.0.1", "localhost", 1)
	client := func(set func(*http.Protocols)) *http.Client {
		tr := &http.Transport{TLSClientConfig: o.tls.Clone(), Protocols: new(http.Protocols), DisableCompression: true}
		set(tr.Protocols)
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	o.h1 = client(func(p *http.Protocols) { p.SetHTTP1(true) })
	o.h2c = client(func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) })
	o.h2 = client(func(p *http.Protocols) { p.SetHTTP2(true) })
	h3 := &http3.Transport{TLSClientConfig: o.tls.Clone()}
	t.Cleanup(func() { h3.Close() })
	o.h3 = &http.Client{Transport: h3}
	return o
}

// with is text with the listeners.
func (o *open) with(text string) string {
	return fmt.Sprintf(`
%s
listeners:
- {address: "127.0.0.1:0"}
- {name: secure, address: "127.0.0.1:0", tls: {certificate: %q, key: %q}, http3: true, webtransport: true}
`, text, o.pem, o.pem)
}

// ask is a call with one request message.
type ask struct {
	// method is the gRPC path, rest what a GET of it is.
	method, rest string
	stream       bool
	in           proto.Message
	// out makes an empty answer.
	out func() proto.Message
	// header is sent as it is.
	header http.Header
}

// reply is how a call ended.
type reply struct {
	code     codes.Code
	http     int
	reason   string
	header   http.Header // and trailers, where the protocol has them
	messages []proto.Message
}

// seen is the metadata that the bank got.
func (r *reply) seen() map[string][]string {
	if len(r.messages) == 0 {
		return nil
	}
	seen := map[string][]string{}
	if m, ok := r.messages[0].(*bankv1.MetadataResponse); ok {
		for k, v := range m.GetMetadata() {
			seen[k] = v.GetValues()
		}
	}
	return seen
}

// metadataAsk asks what metadata the bank gets.
func metadataAsk(header http.Header) ask {
	return ask{
		method: "/bank.v1.Diagnostics/Metadata", rest: metadataPath, in: &bankv1.MetadataRequest{},
		out: func() proto.Message { return &bankv1.MetadataResponse{} }, header: header,
	}
}

// ways are all the ways to call a method.
var ways = map[string]func(ctx context.Context, t *testing.T, o *open, a ask) *reply{
	"REST, HTTP/1.1":            byREST(func(o *open) (*http.Client, string) { return o.h1, "http://" + o.addr }),
	"REST, h2c":                 byREST(func(o *open) (*http.Client, string) { return o.h2c, "http://" + o.addr }),
	"REST, HTTP/2":              byREST(func(o *open) (*http.Client, string) { return o.h2, "https://" + o.secure }),
	"REST, HTTP/3":              byREST(func(o *open) (*http.Client, string) { return o.h3, "https://" + o.secure }),
	"Connect, HTTP/1.1":         byConnect(func(o *open) (*http.Client, string) { return o.h1, "http://" + o.addr }),
	"Connect, HTTP/3":           byConnect(func(o *open) (*http.Client, string) { return o.h3, "https://" + o.secure }),
	"Connect GET":               byConnectGET,
	"gRPC-Web, HTTP/1.1":        byGRPCWeb(func(o *open) (*http.Client, string) { return o.h1, "http://" + o.addr }),
	"gRPC-Web, HTTP/2":          byGRPCWeb(func(o *open) (*http.Client, string) { return o.h2, "https://" + o.secure }),
	"gRPC":                      byGRPC,
	"WebSocket":                 byWebSocket,
	"transom.v1, frame":         bySession(true),
	"transom.v1, upgrade":       bySession(false),
	"grpc-websockets, block":    byGRPCWebSockets(true),
	"grpc-websockets, upgrade":  byGRPCWebSockets(false),
	"WebTransport, frame":       byWebTransport(true),
	"WebTransport, the session": byWebTransport(false),
}

// everyWay runs fn for each of them, in order.
func (o *open) everyWay(t *testing.T, fn func(t *testing.T, way string, call func(t *testing.T, a ask) *reply)) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		t.Run(name, func(t *testing.T) { o.oneWay(t, name, fn) })
	}
}

// oneWay runs fn for one of them.
func (o *open) oneWay(t *testing.T, name string, fn func(t *testing.T, way string, call func(t *testing.T, a ask) *reply)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	fn(t, name, func(t *testing.T, a ask) *reply {
		t.Helper()
		return ways[name](ctx, t, o, a)
	})
}

// bare reports whether a way has no place for metadata and details in answers.
func bare(way string) bool { return way == "WebSocket" }

// do makes a request and reads all of the answer.
func do(ctx context.Context, t *testing.T, c *http.Client, verb, url string, header http.Header, body []byte) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, verb, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

// canonical has the names of a header as net/http wants them.
func canonical(h http.Header) http.Header {
	c := http.Header{}
	for k, vs := range h {
		k = http.CanonicalHeaderKey(k)
		c[k] = append(c[k], vs...)
	}
	return c
}

// reasonOf is that of the ErrorInfo among details.
func reasonOf(details []*anypb.Any) string {
	for _, d := range details {
		if m, err := d.UnmarshalNew(); err == nil {
			if i, ok := m.(interface{ GetReason() string }); ok {
				return i.GetReason()
			}
		}
	}
	return ""
}

// fail fills in a JSON status.
func (r *reply) fail(t *testing.T, body []byte) {
	t.Helper()
	var st struct {
		Code    codes.Code
		Message string
		Details []map[string]any
	}
	if err := json.Unmarshal(body, &st); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	r.code = st.Code
	for _, d := range st.Details {
		if reason, ok := d["reason"].(string); ok {
			r.reason = reason
		}
	}
}

func (r *reply) add(t *testing.T, a ask, unmarshal func([]byte, proto.Message) error, b []byte) {
	t.Helper()
	m := a.out()
	if err := unmarshal(b, m); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	r.messages = append(r.messages, m)
}

func byREST(by func(o *open) (*http.Client, string)) func(context.Context, *testing.T, *open, ask) *reply {
	return func(ctx context.Context, t *testing.T, o *open, a ask) *reply {
		t.Helper()
		c, base := by(o)
		resp, body := do(ctx, t, c, http.MethodGet, base+a.rest, canonical(a.header), nil)
		r := &reply{http: resp.StatusCode, header: resp.Header}
		if resp.StatusCode != http.StatusOK {
			r.fail(t, body)
			return r
		}
		for line := range strings.Lines(string(body)) {
			if late, ok := strings.CutPrefix(line, `{"@error":`); ok {
				r.fail(t, []byte(strings.TrimSuffix(strings.TrimSpace(late), "}")))
				continue
			}
			r.add(t, a, protojson.Unmarshal, []byte(line))
		}
		return r
	}
}

// connectFault fills in an error of Connect.
func (r *reply) connectFault(t *testing.T, body []byte) {
	t.Helper()
	var st struct {
		Code    string
		Details []struct{ Type, Value string }
	}
	if err := json.Unmarshal(body, &st); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if err := r.code.UnmarshalJSON([]byte(strconv.Quote(strings.ToUpper(st.Code)))); err != nil && st.Code != "canceled" {
		t.Fatal(err)
	}
	for _, d := range st.Details {
		b, err := base64.RawStdEncoding.DecodeString(d.Value)
		if err != nil {
			t.Fatal(err)
		}
		if reason := reasonOf([]*anypb.Any{{TypeUrl: "type.googleapis.com/" + d.Type, Value: b}}); reason != "" {
			r.reason = reason
		}
	}
}

func byConnect(by func(o *open) (*http.Client, string)) func(context.Context, *testing.T, *open, ask) *reply {
	return func(ctx context.Context, t *testing.T, o *open, a ask) *reply {
		t.Helper()
		c, base := by(o)
		h, body := canonical(a.header), wire(t, a.in)
		h["Content-Type"], h["Connect-Protocol-Version"] = []string{"application/proto"}, []string{"1"}
		if a.stream {
			h["Content-Type"], body = []string{"application/connect+proto"}, frame(0, body)
		}
		resp, answer := do(ctx, t, c, http.MethodPost, base+a.method, h, body)
		return connectReply(t, a, resp, answer)
	}
}

func connectReply(t *testing.T, a ask, resp *http.Response, body []byte) *reply {
	t.Helper()
	r := &reply{http: resp.StatusCode, header: resp.Header}
	switch {
	case resp.StatusCode != http.StatusOK:
		r.connectFault(t, body)
	case !a.stream:
		r.add(t, a, proto.Unmarshal, body)
	default:
		for len(body) > 0 {
			flags, payload := cut(t, &body, transcoder.FramingConnect)
			if flags&2 == 0 {
				r.add(t, a, proto.Unmarshal, payload)
				continue
			}
			var end struct{ Error json.RawMessage }
			if err := json.Unmarshal(payload, &end); err != nil {
				t.Fatal(err)
			}
			if end.Error != nil {
				r.connectFault(t, end.Error)
			}
		}
	}
	return r
}

func byConnectGET(ctx context.Context, t *testing.T, o *open, a ask) *reply {
	t.Helper()
	query := "?connect=v1&encoding=proto&base64=1&message=" + base64.RawURLEncoding.EncodeToString(wire(t, a.in))
	resp, body := do(ctx, t, o.h2c, http.MethodGet, "http://"+o.addr+a.method+query, canonical(a.header), nil)
	return connectReply(t, a, resp, body)
}

// wire is a message on the wire.
func wire(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func frame(flags byte, b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(b))), b...)
}

// cut takes a frame from b.
func cut(t *testing.T, b *[]byte, f transcoder.Framing) (flags byte, payload []byte) {
	t.Helper()
	flags, payload, rest, err := transcoder.CutFrame(*b, f, 16<<20)
	if err != nil {
		t.Fatalf("%q: %v", *b, err)
	}
	*b = rest
	return flags, payload
}

func byGRPCWeb(by func(o *open) (*http.Client, string)) func(context.Context, *testing.T, *open, ask) *reply {
	return func(ctx context.Context, t *testing.T, o *open, a ask) *reply {
		t.Helper()
		c, base := by(o)
		h := canonical(a.header)
		h["Content-Type"] = []string{"application/grpc-web+proto"}
		resp, body := do(ctx, t, c, http.MethodPost, base+a.method, h, frame(0, wire(t, a.in)))
		r := &reply{http: resp.StatusCode, header: resp.Header}
		for len(body) > 0 {
			r.grpcWeb(t, a, &body)
		}
		r.status(t)
		return r
	}
}

// grpcWeb takes in a frame of an answer.
func (r *reply) grpcWeb(t *testing.T, a ask, body *[]byte) {
	t.Helper()
	flags, payload := cut(t, body, transcoder.FramingGRPCWeb)
	if flags&0x80 == 0 {
		r.add(t, a, proto.Unmarshal, payload)
		return
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(payload), "\r\n"), "\r\n") {
		k, v, _ := strings.Cut(line, ": ")
		r.header.Add(k, v)
	}
}

// status fills in what gRPC's header fields say.
func (r *reply) status(t *testing.T) {
	t.Helper()
	n, err := strconv.Atoi(r.header.Get("Grpc-Status"))
	if err != nil {
		t.Fatalf("header %v without a status", r.header)
	}
	r.code = codes.Code(n)
	if details := r.header.Get("Grpc-Status-Details-Bin"); details != "" {
		b, err := grpcwire.DecodeBin(details)
		st := &spb.Status{}
		if err != nil || proto.Unmarshal(b, st) != nil {
			t.Fatalf("details %q: %v", details, err)
		}
		r.reason = reasonOf(st.GetDetails())
	}
}

func byGRPC(ctx context.Context, t *testing.T, o *open, a ask) *reply {
	t.Helper()
	md := metadata.MD{}
	for k, vs := range a.header {
		for _, v := range vs {
			if strings.HasSuffix(strings.ToLower(k), "-bin") {
				b, err := grpcwire.DecodeBin(v)
				if err != nil {
					t.Fatal(err)
				}
				v = string(b)
			}
			md.Append(k, v)
		}
	}
	s, err := o.conn.NewStream(metadata.NewOutgoingContext(ctx, md), &grpc.StreamDesc{ServerStreams: true}, a.method)
	if err != nil {
		t.Fatal(err)
	}
	r := &reply{header: http.Header{}}
	if err := s.SendMsg(a.in); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	_ = s.CloseSend()
	for {
		m := a.out()
		if err = s.RecvMsg(m); err != nil {
			break
		}
		r.messages = append(r.messages, m)
	}
	if err != io.EOF {
		r.code = status.Code(err)
		r.reason = reasonOf(status.Convert(err).Proto().GetDetails())
	}
	header, _ := s.Header()
	for _, md := range []metadata.MD{header, s.Trailer()} {
		for k, vs := range md {
			for _, v := range vs {
				r.header.Add(k, v)
			}
		}
	}
	return r
}

// dial opens a WebSocket, or says how it was refused.
func dial(ctx context.Context, t *testing.T, o *open, path, protocol string, header http.Header) (*websocket.Conn, *reply) {
	t.Helper()
	opts := &websocket.DialOptions{HTTPClient: o.h1, HTTPHeader: canonical(header)}
	if protocol != "" {
		opts.Subprotocols = []string{protocol}
	}
	c, resp, err := websocket.Dial(ctx, "ws://"+o.addr+path, opts)
	if err == nil {
		c.SetReadLimit(-1)
		return c, &reply{header: resp.Header}
	}
	if resp == nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := &reply{http: resp.StatusCode, header: resp.Header}
	r.fail(t, body)
	return nil, r
}

func byWebSocket(ctx context.Context, t *testing.T, o *open, a ask) *reply {
	t.Helper()
	c, r := dial(ctx, t, o, a.method, "", a.header)
	if c == nil {
		return r
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageBinary, wire(t, a.in)); err != nil {
		t.Fatal(err)
	}
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			var ce websocket.CloseError
			if !errors.As(err, &ce) {
				t.Fatal(err)
			}
			if ce.Code != websocket.StatusNormalClosure {
				r.code = codes.Code(ce.Code - 4000)
			}
			return r
		}
		r.add(t, a, proto.Unmarshal, b)
	}
}

// opening is the frame that opens a call; its metadata is the ask's if framed.
func opening(a ask, framed bool) *wsv1.Frame {
	f := &wsv1.Frame{Id: 1, Open: &wsv1.Open{Method: a.method, Metadata: map[string]*structpb.ListValue{}, Window: 1 << 20}, End: true}
	if framed {
		for k, vs := range a.header {
			list := &structpb.ListValue{}
			for _, v := range vs {
				list.Values = append(list.Values, structpb.NewStringValue(v))
			}
			f.Open.Metadata[k] = list
		}
	}
	return f
}

// frame takes in a frame of the server's, and reports whether it is the last.
func (r *reply) frame(t *testing.T, a ask, b []byte) bool {
	t.Helper()
	f := &wsv1.Frame{}
	if err := proto.Unmarshal(b, f); err != nil {
		t.Fatal(err)
	}
	for _, md := range []map[string]*structpb.ListValue{f.GetHeader().GetMetadata(), f.GetStatus().GetTrailers()} {
		for k, vs := range md {
			for _, v := range vs.GetValues() {
				r.header.Add(k, v.GetStringValue())
			}
		}
	}
	if f.Binary != nil {
		r.add(t, a, proto.Unmarshal, f.GetBinary())
	}
	if st := f.GetStatus(); st != nil {
		r.code, r.reason = codes.Code(st.GetCode()), reasonOf(st.GetDetails())
		return true
	}
	return false
}

func bySession(framed bool) func(context.Context, *testing.T, *open, ask) *reply {
	return func(ctx context.Context, t *testing.T, o *open, a ask) *reply {
		t.Helper()
		header := a.header
		if framed {
			header = nil
		}
		c, r := dial(ctx, t, o, "/", "transom.v1", header)
		if c == nil {
			return r
		}
		defer c.CloseNow()
		r.header = http.Header{}
		f := opening(a, framed)
		f.Binary = append([]byte{}, wire(t, a.in)...)
		if err := c.Write(ctx, websocket.MessageBinary, wire(t, f)); err != nil {
			t.Fatal(err)
		}
		for {
			_, b, err := c.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if r.frame(t, a, b) {
				return r
			}
		}
	}
}

func byGRPCWebSockets(framed bool) func(context.Context, *testing.T, *open, ask) *reply {
	return func(ctx context.Context, t *testing.T, o *open, a ask) *reply {
		t.Helper()
		header, block := a.header, "content-type: application/grpc-web+proto\r\nx-grpc-web: 1\r\n"
		if framed {
			for k, vs := range header {
				for _, v := range vs {
					block += k + ": " + v + "\r\n"
				}
			}
			header = nil
		}
		c, r := dial(ctx, t, o, a.method, "grpc-websockets", header)
		if c == nil {
			return r
		}
		defer c.CloseNow()
		r.header = http.Header{}
		for _, b := range [][]byte{[]byte(block), append([]byte{0}, frame(0, wire(t, a.in))...), {1}} {
			if err := c.Write(ctx, websocket.MessageBinary, b); err != nil {
				break // it may have been answered already
			}
		}
		for {
			_, b, err := c.Read(ctx)
			if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
				r.status(t)
				return r
			}
			if err != nil {
				t.Fatal(err)
			}
			for len(b) > 0 {
				r.grpcWeb(t, a, &b)
			}
		}
	}
}

// session opens a session of WebTransport.
func (o *open) session(ctx context.Context, t *testing.T, header http.Header) (*webtransport.Session, func()) {
	t.Helper()
	d := &webtransport.Transport{TLSClientConfig: o.tls.Clone()}
	d.TLSClientConfig.NextProtos = []string{"h3"}
	_, s, err := d.Dial(ctx, "https://"+o.secure+"/transom.v1", header)
	if err != nil {
		d.Close()
		t.Fatal(err)
	}
	return s, func() {
		_ = s.CloseWithError(0, "")
		d.Close()
	}
}

func byWebTransport(framed bool) func(context.Context, *testing.T, *open, ask) *reply {
	return func(ctx context.Context, t *testing.T, o *open, a ask) *reply {
		t.Helper()
		header := canonical(a.header)
		if framed {
			header = nil
		}
		s, end := o.session(ctx, t, header)
		defer end()
		str, err := s.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		f := opening(a, framed)
		f.Binary = append([]byte{}, wire(t, a.in)...)
		if _, err := str.Write(frame(0, wire(t, f))); err != nil {
			t.Fatal(err)
		}
		r := &reply{header: http.Header{}}
		for {
			var head [5]byte
			if _, err := io.ReadFull(str, head[:]); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, binary.BigEndian.Uint32(head[1:]))
			if _, err := io.ReadFull(str, b); err != nil {
				t.Fatal(err)
			}
			if r.frame(t, a, b) {
				return r
			}
		}
	}
}
