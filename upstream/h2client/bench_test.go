package h2client_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"

	"transom/upstream/h2client"
)

// many answers a message with 1,000 of the same on /a.B/Many, else with one of the size that its first bytes tell.
func many(ss grpc.ServerStream) error {
	var m []byte
	if err := ss.RecvMsg(&m); err != nil {
		return err
	}
	n := 1
	if method, _ := grpc.MethodFromServerStream(ss); method == "/a.B/Many" {
		n = 1000
	} else if len(m) >= 3 {
		m = make([]byte, int(m[0])<<16|int(m[1])<<8|int(m[2]))
	}
	for range n {
		if err := ss.SendMsg(&m); err != nil {
			return err
		}
	}
	return nil
}

// keepCodec keeps grpc-go's pooled buffers, as package upstream does.
type keepCodec struct{}

func (keepCodec) Name() string { return "proto" }

func (keepCodec) Marshal(v any) (mem.BufferSlice, error) { return *v.(*mem.BufferSlice), nil }

func (keepCodec) Unmarshal(d mem.BufferSlice, v any) error {
	d.Ref()
	*v.(*mem.BufferSlice) = d
	return nil
}

// caller makes calls of one kind; both must check the answer.
type caller interface {
	unary(ctx context.Context, req mem.BufferSlice, want int) error
	stream(ctx context.Context, req mem.BufferSlice) error
}

type oursCaller struct{ c *h2client.Conn }

func (o oursCaller) unary(ctx context.Context, req mem.BufferSlice, want int) error {
	var reply h2client.Reply
	if err := o.c.Unary(ctx, "/a.B/One", nil, h2client.Message{Data: req}, &reply); err != nil {
		return err
	}
	defer reply.Message.Free()
	if got := reply.Message.Data.Len(); got != want {
		return fmt.Errorf("%d bytes", got)
	}
	return nil
}

func (o oursCaller) stream(ctx context.Context, req mem.BufferSlice) error {
	s, err := o.c.NewStream(ctx, "/a.B/Many", nil)
	if err != nil {
		return err
	}
	_ = s.Send(h2client.Message{Data: req}, true)
	for n := 0; ; n++ {
		m, err := s.Recv()
		if err == io.EOF && n == 1000 {
			return nil
		}
		if err != nil || m.Data.Len() != req.Len() {
			return fmt.Errorf("%d messages: %w", n, err)
		}
		m.Free()
	}
}

type grpcCaller struct{ cc *grpc.ClientConn }

func (g grpcCaller) unary(ctx context.Context, req mem.BufferSlice, want int) error {
	var reply mem.BufferSlice
	if err := g.cc.Invoke(ctx, "/a.B/One", &req, &reply, grpc.ForceCodecV2(keepCodec{})); err != nil {
		return err
	}
	defer reply.Free()
	if got := reply.Len(); got != want {
		return fmt.Errorf("%d bytes", got)
	}
	return nil
}

func (g grpcCaller) stream(ctx context.Context, req mem.BufferSlice) error {
	s, err := g.cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/a.B/Many", grpc.ForceCodecV2(keepCodec{}))
	if err != nil {
		return err
	}
	_ = s.SendMsg(&req)
	_ = s.CloseSend()
	for n := 0; ; n++ {
		var m mem.BufferSlice
		err := s.RecvMsg(&m)
		if err == io.EOF && n == 1000 {
			return nil
		}
		if err != nil || m.Len() != req.Len() {
			return fmt.Errorf("%d messages: %w", n, err)
		}
		m.Free()
	}
}

func request(size, reply int) mem.BufferSlice {
	b := make([]byte, size)
	b[0], b[1], b[2] = byte(reply>>16), byte(reply>>8), byte(reply)
	return mem.BufferSlice{mem.SliceBuffer(b)}
}

// callers returns ours and grpc-go's, to a server at addr.
func callers(tb testing.TB, addr string) []caller {
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(512<<10), grpc.WithStaticConnWindowSize(8<<20), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { cc.Close() })
	return []caller{oursCaller{dial(tb, addr, h2client.Config{})}, grpcCaller{cc}}
}

// BenchmarkCall makes calls to a grpc-go server in the same process, whose cost is included.
func BenchmarkCall(b *testing.B) {
	addr := newServer(b, many)
	for i, c := range callers(b, addr) {
		name := [...]string{"ours", "grpc-go"}[i]
		for _, kind := range kinds {
			b.Run(kind.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(kind.callers)
				b.RunParallel(func(pb *testing.PB) {
					req := request(kind.request, kind.reply)
					for pb.Next() {
						if err := kind.call(b.Context(), c, req); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

type kind struct {
	name                    string
	callers, request, reply int
	stream                  bool
}

func (k kind) call(ctx context.Context, c caller, req mem.BufferSlice) error {
	if k.stream {
		return c.stream(ctx, req)
	}
	return c.unary(ctx, req, k.reply)
}

var kinds = []kind{
	{"200B/1", 1, 200, 200, false},
	{"200B/16", 16, 200, 200, false},
	{"200B/256", 256, 200, 200, false},
	{"256KiB/8", 8, 200, 256 << 10, false},
	{"stream/4", 4, 200, 0, true},
}

// BenchmarkCompare makes calls with both clients in turns of 300 ms to a grpc-go server in a process of its own, and reports
// the processor time per call of this process, system included, in the best turn, and the ratio of the two.
func BenchmarkCompare(b *testing.B) {
	addr := serverProcess(b)
	cs := callers(b, addr)
	for _, k := range kinds {
		b.Run(k.name, func(b *testing.B) {
			var best [2]time.Duration
			for b.Loop() {
				for i, c := range cs {
					if cpu := turn(b, k, c); best[i] == 0 || cpu < best[i] {
						best[i] = cpu
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(best[0])/1e3, "us-ours")
			b.ReportMetric(float64(best[1])/1e3, "us-grpc-go")
			b.ReportMetric(float64(best[0])/float64(best[1]), "ratio")
		})
	}
}

// turn returns the processor time per call.
func turn(b *testing.B, k kind, c caller) time.Duration {
	var calls atomic.Int64
	var wg sync.WaitGroup
	before := usage(b)
	end := time.Now().Add(300 * time.Millisecond)
	for range k.callers {
		wg.Go(func() {
			req := request(k.request, k.reply)
			for time.Now().Before(end) {
				if err := k.call(b.Context(), c, req); err != nil {
					b.Error(err)
					return
				}
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	return (usage(b) - before) / time.Duration(calls.Load())
}

func usage(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const serverVariable = "TRANSOM_TEST_SERVER"

// serverProcess runs this test binary as a server, until the benchmark ends.
func serverProcess(b *testing.B) (addr string) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverVariable+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	if _, err := fmt.Fscanln(stdout, &addr); err != nil {
		b.Fatal(err)
	}
	return addr
}

// serveProcess is what that process does.
func serveProcess() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(bytesCodec{}), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error { return many(ss) }))
	go func() { _ = s.Serve(ln) }()
	fmt.Println(ln.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Stop()
}
