package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"transom/e2e/benchproxy/benchv1"
)

const (
	method       = "/transom.bench.v1.Bench/"
	workers      = 16
	perNativeTCP = 4 // workers that share a connection, in native gRPC
)

func scenarios() []scenario {
	body, err := protojson.Marshal(order(7, 0))
	if err != nil {
		panic(err)
	}
	wire, err := proto.Marshal(order(7, 0))
	if err != nil {
		panic(err)
	}
	ask, err := proto.Marshal(&benchv1.ListRequest{Size: "1000"})
	if err != nil {
		panic(err)
	}
	framed := func(m []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
	}
	post := func(path, contentType string, body []byte) *httpLoad {
		return &httpLoad{verb: "POST", path: path, body: body, contentType: contentType}
	}
	get := func(path string) *httpLoad { return &httpLoad{verb: "GET", path: path} }
	return []scenario{
		{"200 B unary", "null", true, 12000, 1.35, post("/bench/unary", "application/json", body).run},
		{"4 KiB unary", "null", true, 8000, 1.7, get("/bench/list/4k").run},
		{"256 KiB list", "null", true, 700, 2.3, get("/bench/list/256k").run},
		{"1000 messages", "null", true, 400, 1.5, get("/bench/stream/1000").run},
		{"Connect unary", "null", false, 12000, 1.35, post(method+"Unary", "application/proto", wire).run},
		{"Connect stream", "null-framed", false, 400, 1.5, post(method+"Stream", "application/connect+proto", framed(ask)).run},
		{"gRPC-Web unary", "null-framed", false, 12000, 1.35, post(method+"Unary", "application/grpc-web+proto", framed(wire)).run},
		{"WebSocket echo", "null-socket", false, 20000, 1.4, echoLoad(wire).run},
		{"native unary", "null-native", false, 16000, 1.4, nativeLoad{method + "Unary", wire, 1}.run},
		{"native stream", "null-native", false, 400, 0.85, nativeLoad{method + "Stream", ask, streamLen}.run},
	}
}

// inParallel shares n calls out to workers and returns the first error.
func inParallel(n int, work func(worker, share int) error) error {
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		share := n / workers
		if w < n%workers {
			share++
		}
		wg.Go(func() { errs[w] = work(w, share) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// httpLoad is one request, made over HTTP/1.1 on a connection for each worker. One without contentType has no body.
type httpLoad struct {
	verb, path, contentType string
	body                    []byte
	header                  http.Header // beside what the body needs
}

func (l *httpLoad) run(ctx context.Context, p *proc, n int) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers, DisableCompression: true}}
	defer client.CloseIdleConnections()
	path := l.path
	if p.name == "null" && strings.HasPrefix(path, "/bench/") {
		path = "/null" + path // where the backend has JSON
	}
	return inParallel(n, func(_, share int) error {
		for range share {
			var body io.Reader
			if l.contentType != "" {
				body = bytes.NewReader(l.body)
			}
			req, err := http.NewRequestWithContext(ctx, l.verb, "http://"+p.addr+path, body)
			if err != nil {
				return err
			}
			if l.contentType != "" {
				req.Header["Content-Type"] = []string{l.contentType}
			}
			maps.Copy(req.Header, l.header)
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			size, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || size < 40 {
				return fmt.Errorf("status %d, %d bytes, %v", resp.StatusCode, size, err)
			}
		}
		return nil
	})
}

// echoLoad is a message that goes there and back on a WebSocket for each worker, one after the other.
type echoLoad []byte

func (m echoLoad) run(ctx context.Context, p *proc, n int) error {
	return inParallel(n, func(_, share int) error {
		ws, _, err := websocket.Dial(ctx, "ws://"+p.addr+method+"Echo", nil)
		if err != nil {
			return err
		}
		defer ws.CloseNow()
		for range share {
			if err := ws.Write(ctx, websocket.MessageBinary, m); err != nil {
				return err
			}
			if _, b, err := ws.Read(ctx); err != nil || !bytes.Equal(b, m) {
				return fmt.Errorf("%d bytes came back, %v", len(b), err)
			}
		}
		return nil
	})
}

// nativeLoad is a call by grpc-go.
type nativeLoad struct {
	method  string
	request []byte
	answers int
}

func (l nativeLoad) run(ctx context.Context, p *proc, n int) error {
	var conns [workers / perNativeTCP]*grpc.ClientConn
	for i := range conns {
		conn, err := grpc.NewClient("passthrough:///"+p.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{})))
		if err != nil {
			return err
		}
		defer conn.Close()
		conns[i] = conn
	}
	desc := &grpc.StreamDesc{ServerStreams: true}
	return inParallel(n, func(w, share int) error {
		conn := conns[w/perNativeTCP]
		for range share {
			if l.answers == 1 {
				var out mem.BufferSlice
				if err := conn.Invoke(ctx, l.method, &l.request, &out); err != nil {
					return err
				}
				out.Free()
				continue
			}
			s, err := conn.NewStream(ctx, desc, l.method)
			if err != nil {
				return err
			}
			if err := s.SendMsg(&l.request); err != nil {
				return err
			}
			if err := s.CloseSend(); err != nil {
				return err
			}
			for got := 0; ; got++ {
				var out mem.BufferSlice
				if err := s.RecvMsg(&out); err == io.EOF && got == l.answers {
					break
				} else if err != nil {
					return fmt.Errorf("after %d messages: %w", got, err)
				}
				out.Free()
			}
		}
		return nil
	})
}
