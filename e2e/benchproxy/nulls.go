package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// The null proxies of the protocols with frames. Like the first, they are the yardstick and stay as they are.

// dialNull is a connection to the backend with nothing turned on.
func dialNull(backend string) (*grpc.ClientConn, error) {
	return grpc.NewClient(backend, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{})))
}

const frameHeader = 5 // a byte of flags, four of length

// What ends a gRPC-Web answer and a Connect stream that went well.
const (
	webTrailer = "\x80\x00\x00\x00\x0fgrpc-status:0\r\n"
	connectEnd = "\x02\x00\x00\x00\x02{}"
)

// writeFrame writes one message with its frame header.
func writeFrame(w io.Writer, m mem.BufferSlice) {
	n := m.Len()
	_, _ = w.Write([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	for _, b := range m {
		_, _ = w.Write(b.ReadOnlyData())
	}
	m.Free()
}

// runNullFramed is the null proxy of gRPC-Web and of streams of Connect: net/http in front, a grpc-go client with a bytes codec
// behind. The one frame of the request becomes the message, and messages become frames.
func runNullFramed(backend string) error {
	conn, err := dialNull(backend)
	if err != nil {
		return err
	}
	desc := &grpc.StreamDesc{ServerStreams: true}
	return listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in, err := io.ReadAll(r.Body)
		if err != nil || len(in) < frameHeader {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		in = in[frameHeader:]
		w.Header()["Content-Type"] = r.Header["Content-Type"]
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc-web") {
			var out mem.BufferSlice
			if err := conn.Invoke(r.Context(), r.URL.Path, &in, &out); err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			writeFrame(w, out)
			_, _ = io.WriteString(w, webTrailer)
			return
		}
		s, err := conn.NewStream(r.Context(), desc, r.URL.Path)
		if err == nil {
			err = s.SendMsg(&in)
		}
		if err == nil {
			err = s.CloseSend()
		}
		for err == nil {
			var out mem.BufferSlice
			if err = s.RecvMsg(&out); err != nil {
				break
			}
			writeFrame(w, out)
			_ = http.NewResponseController(w).Flush()
		}
		if err != io.EOF {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		_, _ = io.WriteString(w, connectEnd)
	}))
}

// runNullSocket is the null proxy of WebSocket: coder/websocket in front, one socket is one stream, one goroutine each way.
func runNullSocket(backend string) error {
	conn, err := dialNull(backend)
	if err != nil {
		return err
	}
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	return listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer ws.CloseNow()
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		s, err := conn.NewStream(ctx, desc, r.URL.Path)
		if err != nil {
			return
		}
		go func() {
			defer cancel()
			for {
				_, b, err := ws.Read(ctx)
				if err != nil || s.SendMsg(&b) != nil {
					return
				}
			}
		}()
		for {
			var b []byte
			if s.RecvMsg(&b) != nil || ws.Write(ctx, websocket.MessageBinary, b) != nil {
				return
			}
		}
	}))
}

// runNullNative is the null proxy of native gRPC: a grpc-go server in front, a grpc-go client behind, messages handed through
// as bytes. A unary call is made without a stream, as a proxy that knows its methods would.
func runNullNative(backend string) error {
	conn, err := dialNull(backend)
	if err != nil {
		return err
	}
	desc := &grpc.StreamDesc{ServerStreams: true}
	srv := grpc.NewServer(grpc.ForceServerCodecV2(bytesCodec{}), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(ss)
		var in mem.BufferSlice
		if err := ss.RecvMsg(&in); err != nil {
			return err
		}
		defer in.Free()
		if strings.HasSuffix(method, "/Unary") {
			var out mem.BufferSlice
			if err := conn.Invoke(ss.Context(), method, &in, &out); err != nil {
				return err
			}
			defer out.Free()
			return ss.SendMsg(&out)
		}
		s, err := conn.NewStream(ss.Context(), desc, method)
		if err != nil {
			return err
		}
		if err := s.SendMsg(&in); err != nil {
			return err
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
		for {
			var out mem.BufferSlice
			if err := s.RecvMsg(&out); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			err := ss.SendMsg(&out)
			out.Free()
			if err != nil {
				return err
			}
		}
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return srv.Serve(l)
}
