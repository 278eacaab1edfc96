package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"transom/e2e/benchproxy/benchv1"
)

const streamLen = 1000

func order(i, lines int) *benchv1.Order {
	o := &benchv1.Order{
		Name: fmt.Sprintf("orders/%d", i), Id: int64(1_000_000 + i), Customer: "Grace Hopper", Price: 19.99 + float64(i),
		Quantity: int32(i % 7), Paid: i%2 == 0, Created: timestamppb.New(timestamppb.Now().AsTime().Truncate(1e9)),
		State: benchv1.Order_OPEN,
	}
	for j := range lines {
		o.Lines = append(o.Lines, &benchv1.Order_Line{Sku: fmt.Sprintf("SKU-%05d", j), Quantity: int32(j + 1), Price: 1.25 * float64(j)})
	}
	return o
}

// orders is a page of n orders with an address each.
func orders(n int) *benchv1.ListResponse {
	r := &benchv1.ListResponse{NextPageToken: "next"}
	for i := range n {
		o := order(i, 2)
		o.Tags = []string{"gift", "express"}
		o.Address = &benchv1.Order_Address{Street: "1 Main Street", City: "Springfield", Country: "US"}
		r.Orders = append(r.Orders, o)
	}
	return r
}

// messages are the answers by scenario: about 200 B, 4 KiB and 256 KiB of JSON.
func messages() map[string]proto.Message {
	return map[string]proto.Message{"unary": order(1, 0), "4k": orders(11), "256k": orders(690), "1000": order(1, 0)}
}

// bytesCodec passes messages as they are, keeping grpc's pooled buffers.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*mem.BufferSlice); ok {
		m.Ref()
		return *m, nil
	}
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = data.Materialize()
	case *mem.BufferSlice:
		data.Ref()
		*v = data
	}
	return nil
}
func (bytesCodec) Name() string { return "proto" }

var _ encoding.CodecV2 = bytesCodec{}

// runBackend answers every method with a prepared message: protobuf, or under /null the JSON that it becomes.
func runBackend() error {
	wire, text := map[string][]byte{}, map[string][]byte{}
	for name, m := range messages() {
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		wire[name] = b
		if text[name], err = protojson.Marshal(m); err != nil {
			return err
		}
	}
	handler := func(_ any, ss grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(ss)
		if !strings.HasPrefix(method, "/null/") && !strings.HasPrefix(method, "/transom.bench.v1.") {
			return status.Error(codes.Unimplemented, "unknown method")
		}
		if strings.HasSuffix(method, "/Echo") {
			return echo(ss)
		}
		var in []byte
		if err := ss.RecvMsg(&in); err != nil {
			return err
		}
		answers, size := wire, ""
		if strings.HasPrefix(method, "/null") {
			answers = text
			size = method[strings.LastIndexByte(method, '/')+1:]
		} else if strings.HasSuffix(method, "/Unary") {
			size = "unary"
		} else {
			req := new(benchv1.ListRequest)
			if err := proto.Unmarshal(in, req); err != nil {
				return err
			}
			size = req.GetSize()
		}
		answer, ok := answers[size]
		if !ok {
			return errors.New("no answer " + size)
		}
		n := 1
		if size == "1000" {
			n = streamLen
		}
		for range n {
			if err := ss.SendMsg(&answer); err != nil {
				return err
			}
		}
		return nil
	}
	srv := grpc.NewServer(grpc.ForceServerCodecV2(bytesCodec{}), grpc.UnknownServiceHandler(handler))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return srv.Serve(l)
}

// echo sends back each message.
func echo(ss grpc.ServerStream) error {
	for {
		var m []byte
		if err := ss.RecvMsg(&m); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := ss.SendMsg(&m); err != nil {
			return err
		}
	}
}

// runNull is the null proxy of REST and unary Connect: net/http in front, a grpc-go client with a bytes codec behind, the body handed through as one
// message. No deadline, no metadata. It is the yardstick and stays as it is.
func runNull(backend string) error {
	conn, err := grpc.NewClient(backend, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry())
	if err != nil {
		return err
	}
	desc := &grpc.StreamDesc{ServerStreams: true}
	return listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header()["Content-Type"] = []string{"application/json"}
		method := r.URL.Path
		if !strings.HasPrefix(method, "/null/bench/stream") {
			var out mem.BufferSlice
			if err := conn.Invoke(r.Context(), method, &in, &out, grpc.ForceCodecV2(bytesCodec{})); err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			for _, b := range out {
				_, _ = w.Write(b.ReadOnlyData())
			}
			out.Free()
			return
		}
		s, err := conn.NewStream(r.Context(), desc, method, grpc.ForceCodecV2(bytesCodec{}))
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
			for _, b := range out {
				_, _ = w.Write(b.ReadOnlyData())
			}
			out.Free()
			_, _ = w.Write([]byte{'\n'})
			_ = http.NewResponseController(w).Flush()
		}
		if err != io.EOF {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	}))
}

// runGateway is grpc-gateway with generated code.
func runGateway(backend string) error {
	mux := runtime.NewServeMux()
	err := benchv1.RegisterBenchHandlerFromEndpoint(context.Background(), mux, backend, []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())})
	if err != nil {
		return err
	}
	return listen(mux)
}

func listen(h http.Handler) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, h)
}
