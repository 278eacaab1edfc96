package listeners_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
	"transom/transcoder"
)

// itemsView serves the methods of transcoder/testdata/items.proto.
func itemsView(t *testing.T, h rpc.Handler) *view {
	t.Helper()
	set, err := descriptors.FromProto(t.Context(), []string{"../transcoder/testdata"}, []string{"items.proto"})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	forms := func(m *descriptors.Method) bool { return m.Name.Name() != "Raw" }
	plans, err := transcoder.NewPlans(schema, transcoder.Options{Forms: forms})
	if err != nil {
		t.Fatal(err)
	}
	return &view{schema: schema, plans: plans, h: h}
}

// answer is a backend's: messages as JSON of the response type, then an error.
type answer struct {
	messages []string
	err      error
}

func (a answer) handle(ctx context.Context, call *rpc.Call) error {
	if _, err := rpc.RecvOne(ctx, call.Stream); err != nil {
		return err
	}
	for i, text := range a.messages {
		if i == 0 {
			if err := call.Stream.SendHeader(metadata.MD{"x-a": {"1"}}); err != nil {
				return err
			}
		}
		m := dynamicpb.NewMessage(call.Method.Desc.Output())
		wire := []byte("\x0a\x01\xFF") // a message without a JSON form
		if text != "" {
			if err := protojson.Unmarshal([]byte(text), m); err != nil {
				return err
			}
			var err error
			if wire, err = proto.Marshal(m); err != nil {
				return err
			}
		}
		if err := call.Stream.Send(ctx, rpc.NewMessage(wire)); err != nil {
			return err
		}
	}
	return a.err
}

// TestRESTAnswers holds what a client reads for what a backend sends. Numbers are cases of docs/transcoding.md.
func TestRESTAnswers(t *testing.T) {
	gone := status.Error(codes.Unavailable, "gone")
	for _, c := range []struct {
		name, path, accept string
		answer             answer
		code               int
		ctype              string
		body               string
		cut                bool // the body must be seen to be cut off
	}{
		{
			name: "unary", path: "/v1/items/a", answer: answer{messages: []string{`{"id":"a","bool":true}`}},
			code: 200, ctype: "application/json", body: `{"id":"a","bool":true}`,
		},
		{
			name: "fields", path: "/v1/items/a?$fields=id,owner(name)", answer: answer{messages: []string{`{"id":"a","bool":true,"owner":{"name":"x","age":3}}`}},
			code: 200, ctype: "application/json", body: `{"id":"a","owner":{"name":"x"}}`,
		},
		{
			name: "unknown field", path: "/v1/items/a?fields=nope", answer: answer{messages: []string{`{}`}},
			code: 400, ctype: "application/json", body: `items.v1.Item has no field \"nope\"`,
		},
		{
			name: "pretty", path: "/v1/items/a?$prettyPrint=true&fields=id", answer: answer{messages: []string{`{"id":"a","bool":true}`}},
			code: 200, ctype: "application/json", body: "{\n  \"id\": \"a\"\n}\n",
		},
		{name: "alt that is none", path: "/v1/items/a?$alt=xml", code: 400, ctype: "application/json", body: `cannot be written as \"xml\"`},
		{name: "63 no JSON form", path: "/v1/items/a", answer: answer{messages: []string{""}}, code: 500, ctype: "application/json", body: `"code":13`},
		{
			name: "87 message and error", path: "/v1/items/a", answer: answer{messages: []string{`{"id":"a"}`}, err: gone},
			code: 503, ctype: "application/json", body: `{"code":14,"message":"gone","details":[]}`,
		},
		{name: "93 error first", path: "/v1/watch", answer: answer{err: gone}, code: 503, ctype: "application/json", body: `{"code":14,"message":"gone","details":[]}`},
		{name: "63 first message has no JSON form", path: "/v1/watch", answer: answer{messages: []string{""}}, code: 500, ctype: "application/json", body: `"code":13`},
		{
			name: "63 second message has no JSON form", path: "/v1/watch?alt=json", answer: answer{messages: []string{`{"id":"a"}`, ""}},
			code: 200, ctype: "application/json", body: "[{\"id\":\"a\"}\n,{\"@error\":{\"code\":13", cut: true,
		},
		{name: "95 empty NDJSON", path: "/v1/watch", code: 200, ctype: "application/x-ndjson", body: ""},
		{name: "95 empty array", path: "/v1/watch", accept: "application/json", code: 200, ctype: "application/json", body: "[]\n"},
		{name: "SSE, if hardly", path: "/v1/watch", accept: "text/event-stream;q=0.05", code: 200, ctype: "text/event-stream", body: "event: end\ndata: {}\n\n"},
		{name: "no SSE", path: "/v1/watch", accept: "text/event-stream; charset=utf-8; q=0.0", code: 200, ctype: "application/x-ndjson", body: ""},
		{name: "95 empty SSE", path: "/v1/watch", accept: "text/event-stream", code: 200, ctype: "text/event-stream", body: "event: end\ndata: {}\n\n"},
		{
			name: "NDJSON", path: "/v1/watch?fields=id", answer: answer{messages: []string{`{"id":"a","bool":true}`, `{"bool":true}`}},
			code: 200, ctype: "application/x-ndjson", body: "{\"id\":\"a\"}\n{}\n",
		},
		{
			name: "94 NDJSON", path: "/v1/watch", answer: answer{messages: []string{`{"id":"a"}`}, err: gone},
			code: 200, ctype: "application/x-ndjson", body: "{\"id\":\"a\"}\n{\"@error\":{\"code\":14,\"message\":\"gone\",\"details\":[]}}\n",
		},
		{
			name: "94 SSE", path: "/v1/watch?$alt=sse", answer: answer{messages: []string{`{"id":"a"}`}, err: gone},
			code: 200, ctype: "text/event-stream", body: "data: {\"id\":\"a\"}\n\nevent: error\ndata: {\"code\":14,\"message\":\"gone\",\"details\":[]}\n\n",
		},
		{
			name: "94 array", path: "/v1/watch?alt=json", answer: answer{messages: []string{`{"id":"a"}`}, err: gone},
			code: 200, ctype: "application/json", body: "[{\"id\":\"a\"}\n,{\"@error\":{\"code\":14,\"message\":\"gone\",\"details\":[]}}\n", cut: true,
		},
		{
			name: "78 download", path: "/v1/download", answer: answer{messages: []string{`{"contentType":"a/b","data":"aGk="}`, `{"contentType":"c/d","data":"IQ=="}`}},
			code: 200, ctype: "a/b", body: "hi!",
		},
		{
			name: "78 download without a type", path: "/v1/download", answer: answer{messages: []string{`{"data":"aGk="}`}},
			code: 200, ctype: "application/octet-stream", body: "hi",
		},
		{
			name: "79 download that fails", path: "/v1/download", answer: answer{messages: []string{`{"contentType":"a/b","data":"aGk="}`}, err: gone},
			code: 200, ctype: "a/b", body: "hi", cut: true,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			front := listeners.NewFront(listeners.FrontConfig{}, itemsView(t, c.answer.handle), slog.New(slog.DiscardHandler))
			srv := httptest.NewServer(front)
			defer srv.Close()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept", c.accept)
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if (err != nil) != c.cut {
				t.Errorf("reading the body: %v, want it cut off: %v", err, c.cut)
			}
			if resp.StatusCode != c.code || resp.Header.Get("Content-Type") != c.ctype {
				t.Errorf("got %d %s, want %d %s", resp.StatusCode, resp.Header.Get("Content-Type"), c.code, c.ctype)
			}
			whole := c.code == 200 && !strings.Contains(c.body, `"code":13`)
			if got := string(body); whole && got != c.body || !strings.Contains(got, c.body) {
				t.Errorf("got %q, want %q", got, c.body)
			}
		})
	}
}

// TestRESTForms holds what becomes of forms, by where they come from; the backend answers with what it was sent.
func TestRESTForms(t *testing.T) {
	const mp = "multipart/form-data; boundary=b"
	file := func(body string) string {
		return "--b\r\nContent-Disposition: form-data; name=f; filename=x\r\nContent-Type: image/png\r\n\r\n" + body + "\r\n--b--\r\n"
	}
	large := strings.Repeat("x", 300<<10)
	for _, c := range []struct {
		name, verb, path, ctype, body, site string
		code                                int
		want                                string // the request messages joined, or a part of the error
	}{
		{name: "same origin", verb: "PUT", path: "/v1/items/a", ctype: "application/x-www-form-urlencoded", body: "bool=true", site: "same-origin", code: 200, want: `{"id":"a","bool":true}`},
		{name: "no browser", verb: "PUT", path: "/v1/items/a", ctype: "application/x-www-form-urlencoded", body: "bool=true", code: 200, want: `{"id":"a","bool":true}`},
		{name: "foreign page", verb: "PUT", path: "/v1/items/a", ctype: "application/x-www-form-urlencoded", body: "bool=true", site: "cross-site", code: 403, want: "same origin only"},
		{name: "foreign page, multipart", verb: "POST", path: "/v1/uploads/a", ctype: mp, body: file("png"), site: "cross-site", code: 403, want: "same origin only"},
		{name: "not allowed", verb: "POST", path: "/v1/raws", ctype: mp, body: "x", code: 200, want: `{"contentType":"multipart/form-data; boundary=b","data":"eA=="}`},
		{name: "file", verb: "POST", path: "/v1/uploads/a", ctype: mp, body: file("png"), code: 200, want: `{"name":"a","file":{"contentType":"image/png","data":"cG5n"}}`},
		{name: "80 file in parts", verb: "POST", path: "/v1/streams/a", ctype: mp, body: file(large), code: 200, want: `{"name":"a","file":{"contentType":"image/png","data":"` + base64.StdEncoding.EncodeToString([]byte(large)) + `"}}`},
		{name: "80 bytes in parts", verb: "POST", path: "/v1/streams/a", ctype: "a/b", body: large, code: 200, want: `{"name":"a","file":{"contentType":"a/b","data":"` + base64.StdEncoding.EncodeToString([]byte(large)) + `"}}`},
		{name: "80 nothing", verb: "POST", path: "/v1/streams/a", code: 200, want: `{"name":"a","file":{}}`},
		{name: "cut", verb: "POST", path: "/v1/streams/a", ctype: mp, body: file(large)[:200<<10], code: 400, want: "the part is cut off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var schema *descriptors.Schema
			var got string
			h := func(ctx context.Context, call *rpc.Call) error {
				m := dynamicpb.NewMessage(call.Method.Desc.Input())
				for {
					in, err := call.Stream.Recv(ctx)
					if err == io.EOF {
						break
					}
					if err != nil {
						return err
					}
					one := dynamicpb.NewMessage(call.Method.Desc.Input())
					if err := proto.Unmarshal(in.Bytes(), one); err != nil {
						return err
					}
					in.Release()
					joinData(m, one)
				}
				text, err := protojson.MarshalOptions{Resolver: schema.Types()}.Marshal(m)
				if err != nil {
					return err
				}
				var compact bytes.Buffer
				if err := json.Compact(&compact, text); err != nil {
					return err
				}
				got = compact.String()
				return call.Stream.Send(ctx, rpc.Message{})
			}
			v := itemsView(t, h)
			schema = v.schema
			srv := httptest.NewServer(listeners.NewFront(listeners.FrontConfig{}, v, slog.New(slog.DiscardHandler)))
			defer srv.Close()
			req, err := http.NewRequestWithContext(t.Context(), c.verb, srv.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", c.ctype)
			if c.site != "" {
				req.Header.Set("Sec-Fetch-Site", c.site)
			}
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.code {
				t.Errorf("got %d %s, want %d", resp.StatusCode, body, c.code)
			}
			if c.code != 200 {
				got = string(body)
			}
			if c.code == 200 && got != c.want || !strings.Contains(got, c.want) {
				t.Errorf("got %.200s, want %.200s", got, c.want)
			}
		})
	}
}

// joinData merges the messages of an upload, whose data adds up.
func joinData(dst, src *dynamicpb.Message) {
	file := src.Descriptor().Fields().ByName("file")
	if file == nil || !dst.Has(file) || !src.Has(file) {
		proto.Merge(dst, src)
		return
	}
	data := file.Message().Fields().ByName("data")
	joined := append(dst.Get(file).Message().Get(data).Bytes(), src.Get(file).Message().Get(data).Bytes()...)
	proto.Merge(dst, src)
	dst.Mutable(file).Message().Set(data, protoreflect.ValueOfBytes(joined))
}

// A client that leaves while it sends is at no fault, whatever is made of its body on the way.
func TestClientLeavesWithinBody(t *testing.T) {
	gone := iotest.ErrReader(&net.OpError{Op: "read", Err: syscall.ECONNRESET})
	for _, tc := range []struct{ path, ctype, coding, begin string }{
		{"/v1/uploads/a", "a/b", "", "data"},
		{"/v1/streams/a", "multipart/form-data; boundary=b", "", "--b\r\nContent-"},
		{"/v1/streams/a", "multipart/form-data; boundary=b", "", "--b\r\nContent-Disposition: form-data; name=file\r\n\r\ndata"},
		{"/v1/uploads/a", "a/b", "gzip", ""},
		{"/v1/streams/a", "a/b", "gzip", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"},
		{"/v1/uploads/a", "a/b", "br", "\x0b"},
		{"/v1/streams/a", "a/b", "zstd", "\x28\xb5\x2f\xfd"},
		{"/v1/raws", "a/b", "gzip", "\x1f\x8b"},
	} {
		var got error
		v := itemsView(t, func(ctx context.Context, call *rpc.Call) error {
			for {
				m, err := call.Stream.Recv(ctx)
				if err != nil {
					got = err
					return err
				}
				m.Release()
			}
		})
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, tc.path, io.MultiReader(strings.NewReader(tc.begin), gone))
		r.Header.Set("Content-Type", tc.ctype)
		if tc.coding != "" {
			r.Header.Set("Content-Encoding", tc.coding)
		}
		w := httptest.NewRecorder()
		listeners.NewFront(listeners.FrontConfig{}, v, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
		if !errors.Is(got, rpc.ErrClientGone) || w.Code != 499 {
			t.Errorf("%s, %s %s after %q: %v and HTTP status %d, want 499", tc.path, tc.ctype, tc.coding, tc.begin, got, w.Code)
		}
	}
}
