package listeners_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"transom/listeners"
	"transom/upstream"
)

// echoMetadata answers each message with its own, in a header and a trailer that have the call's x-id under names of its own, so that
// what is of another call shows. With x-fail it ends with an error at once, or after its answers.
func echoMetadata(_ any, s grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	if len(md["x-id"]) != 1 { // a health check
		return status.Error(codes.Unimplemented, "no id")
	}
	id, fail := md["x-id"][0], strings.Join(md["x-fail"], "")
	tagged := func(kind string) metadata.MD {
		return metadata.Pairs(kind+"-"+id, id, kind+"-all", id, kind+"-all", id)
	}
	s.SetTrailer(tagged("t"))
	if fail == "first" {
		return status.Error(codes.Aborted, id)
	}
	if err := s.SetHeader(tagged("h")); err != nil {
		return err
	}
	for {
		m := &wrapperspb.BytesValue{}
		if err := s.RecvMsg(m); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(m); err != nil {
			return err
		}
	}
	if fail == "last" {
		return status.Error(codes.Aborted, id)
	}
	return nil
}

// Metadata is in maps that are used again: many calls at once, of all protocols, by real connections to a backend, each get their own.
func TestMetadataOfManyCalls(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	backend := grpc.NewServer(grpc.UnknownServiceHandler(echoMetadata))
	var serving sync.WaitGroup
	serving.Go(func() { _ = backend.Serve(ln) })
	cluster, err := upstream.New(upstream.Config{Name: "c", Target: "static:///" + ln.Addr().String()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	front := listeners.NewFront(listeners.FrontConfig{}, newView(t, cluster.Invoke), slog.New(slog.DiscardHandler))
	srv, err := listeners.Listen(t.Context(), listeners.Config{Address: "127.0.0.1:0"}, front, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	serving.Go(func() { _ = srv.Run() })
	cc, err := grpc.NewClient(srv.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(func() {
		_ = cc.Close()
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		_ = srv.Drain(ctx)
		_ = cluster.Close(ctx)
		backend.Stop()
		serving.Wait()
	})

	// mine checks that what begins with prefix, in any case, is of the call id alone, and some of it there if want.
	mine := func(got map[string][]string, prefix, id string, want bool) error {
		n := 0
		for name, values := range got {
			if name = strings.ToLower(name); !strings.HasPrefix(name, prefix) {
				continue
			}
			n++
			if rest := name[len(prefix):]; rest == id && slices.Equal(values, []string{id}) || rest == "all" && slices.Equal(values, []string{id, id}) {
				continue
			}
			return fmt.Errorf("%s: %q, of the call %s", name, values, id)
		}
		if want && n != 2 {
			return fmt.Errorf("%d names begin with %s, want 2: %v", n, prefix, got)
		}
		return nil
	}
	overGRPC := func(id, fail string, stream bool) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-id", id, "x-fail", fail)
		method := "/rpctest.Echo/Unary"
		if stream {
			method = "/rpctest.Echo/Bidi"
		}
		cs, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err != nil {
			return err
		}
		_ = cs.SendMsg(wrapperspb.Bytes([]byte(id)))
		_ = cs.CloseSend()
		for m := (&wrapperspb.BytesValue{}); err == nil; {
			err = cs.RecvMsg(m)
		}
		if fail == "" && err != io.EOF || fail != "" && status.Code(err) != codes.Aborted {
			return err
		}
		header, _ := cs.Header()
		if err := mine(header, "h-", id, fail == ""); err != nil {
			return err
		}
		return mine(cs.Trailer(), "t-", id, true)
	}
	overHTTP := func(id, fail, path, ctype string, body []byte, trailer string) error {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+srv.Addr().String()+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.Header = http.Header{"Content-Type": {ctype}, "X-Id": {id}, "X-Fail": {fail}, "Grpc-Metadata-X-Id": {id}, "Grpc-Metadata-X-Fail": {fail}}
		w, err := transport.RoundTrip(r)
		if err != nil {
			return err
		}
		defer w.Body.Close()
		if _, err := io.Copy(io.Discard, w.Body); err != nil {
			return err
		}
		if err := mine(w.Header, "h-", id, fail == ""); err != nil {
			return err
		}
		if trailer == "" {
			return nil // it is in the body
		}
		return mine(w.Header, trailer, id, true)
	}

	var calls sync.WaitGroup
	for worker := range 16 {
		calls.Go(func() {
			for n := range 40 {
				id := fmt.Sprintf("id-%d-%d", worker, n)
				fail := [...]string{"", "", "first", "last"}[n%4]
				var err error
				switch (worker + n/4) % 5 {
				case 0:
					err = overGRPC(id, fail, false)
				case 1:
					err = overGRPC(id, fail, true)
				case 2:
					err = overHTTP(id, fail, "/rpctest/unary", "application/json", []byte(`"AQ=="`), "grpc-trailer-t-")
				case 3:
					err = overHTTP(id, fail, "/rpctest.Echo/Unary", "application/proto", nil, "trailer-t-")
				case 4:
					err = overHTTP(id, fail, "/rpctest.Echo/Unary", "application/grpc-web", []byte(enveloped(0, "")), "")
				}
				if err != nil {
					t.Errorf("call %s, fail %q: %v", id, fail, err)
				}
			}
		})
	}
	calls.Wait()
}

// A native gRPC call whose header is too large is told so in the way of gRPC, if it can be told that it is one. grpc-go would not send
// it, as other clients do.
func TestGRPCLargeHeader(t *testing.T) {
	addr, _ := rawServer(t)
	for _, tt := range []struct {
		name   string
		fields [][2]string
		want   string
	}{
		{"gRPC", [][2]string{{"content-type", "application/grpc+proto"}, {"x", ""}}, ":status 200, content-type application/grpc, grpc-status 8, " +
			"grpc-message the header of the request is too large, END"},
		{"gRPC, though nothing says so within the limit", [][2]string{{"x", ""}, {"content-type", "application/grpc"}}, ":status 431, "},
		{"gRPC-Web", [][2]string{{"content-type", "application/grpc-web"}, {"x", ""}}, ":status 431, "},
		{"REST", [][2]string{{"content-type", "application/json"}, {"x", ""}}, ":status 431, "},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fr := http2.NewFramer(conn, conn)
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		for _, f := range append([][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/rpctest.Echo/Unary"}}, tt.fields...) {
			if f[0] == "x" {
				f[1] = strings.Repeat("x", 17<<10) // no more than a frame when it is compressed
			}
			_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		_, _ = io.WriteString(conn, http2.ClientPreface)
		_ = fr.WriteSettings()
		_ = fr.WriteSettingsAck()
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
		_ = fr.WriteData(1, true, make([]byte, 5))
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			h, ok := f.(*http2.MetaHeadersFrame)
			if !ok {
				continue
			}
			got := map[string]string{}
			for _, f := range h.Fields {
				got[f.Name] = f.Value
			}
			text := ""
			for _, name := range []string{":status", "content-type", "grpc-status", "grpc-message"} {
				text += name + " " + got[name] + ", "
			}
			if h.StreamEnded() {
				text += "END"
			}
			if !strings.HasPrefix(text, tt.want) {
				t.Errorf("%s: got %s; want %s", tt.name, text, tt.want)
			}
			break
		}
		_ = conn.Close()
	}
}

// A native gRPC call with more header fields than are taken is told so in the way of gRPC.
func TestGRPCTooManyFields(t *testing.T) {
	addr, _ := rawServer(t)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var fields []string
	for range 101 {
		fields = append(fields, "a", "b")
	}
	err = conn.Invoke(metadata.AppendToOutgoingContext(t.Context(), fields...), "/rpctest.Echo/Unary", &wrapperspb.BytesValue{}, &wrapperspb.BytesValue{})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "header fields, 100 are the limit") {
		t.Errorf("got %v, want ResourceExhausted", err)
	}
}
