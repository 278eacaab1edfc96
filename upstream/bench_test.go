package upstream_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"transom/descriptors"
	"transom/rpc"
	"transom/upstream"
)

// sink is the least of a client: it sends one request, or none, and drops what it gets. A flush writes to conn, so that it
// costs what it costs a listener.
type sink struct {
	req           []byte
	done          bool
	got, flushes  int
	bytes         int
	conn          io.Writer
	header, trail metadata.MD
}

func (s *sink) Recv(context.Context) (rpc.Message, error) {
	if s.done {
		return rpc.Message{}, io.EOF
	}
	s.done = true
	return rpc.NewMessage(s.req), nil
}

func (s *sink) Send(_ context.Context, m rpc.Message) error {
	s.got++
	s.bytes += m.Len()
	m.Release()
	return nil
}

func (s *sink) Flush() error {
	s.flushes++
	_, err := s.conn.Write(s.req[:1])
	return err
}

func (s *sink) SendHeader(md metadata.MD) error { s.header = md; return nil }
func (s *sink) SetTrailer(md metadata.MD)       { s.trail = md }

// drainedConn is a loopback connection whose other end reads all.
func drainedConn(b *testing.B) net.Conn {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	other, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, other); other.Close() })
	b.Cleanup(func() { conn.Close(); wg.Wait() })
	return conn
}

const benchStream = 1000 // messages

func benchBackend(b *testing.B) string {
	return newBackend(b, func(method string, s stream) error {
		m, err := s.recv()
		if err != nil {
			return err
		}
		n := 1
		if method == server.FullPath {
			n = benchStream
		}
		for range n {
			if err := s.send(m); err != nil {
				return err
			}
		}
		return nil
	})
}

// BenchmarkInvoke makes calls with 200-byte messages to a backend in the same process, whose cost is included. "raw" is
// the least that a grpc-go client with a bytes codec can do.
func BenchmarkInvoke(b *testing.B) {
	addr := benchBackend(b)
	req := make([]byte, 200)
	for _, m := range []*descriptors.Method{unary, server} {
		b.Run(string(m.Name.Name())+"/raw", func(b *testing.B) {
			cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				b.Fatal(err)
			}
			defer cc.Close()
			codec := grpc.ForceCodecV2(bytesCodec{})
			desc := &grpc.StreamDesc{ServerStreams: true}
			b.ReportAllocs()
			for b.Loop() {
				var reply []byte
				if m == unary {
					if err := cc.Invoke(b.Context(), m.FullPath, req, &reply, codec); err != nil {
						b.Fatal(err)
					}
					continue
				}
				ctx, cancel := context.WithCancel(b.Context())
				cs, err := cc.NewStream(ctx, desc, m.FullPath, codec)
				if err != nil {
					b.Fatal(err)
				}
				_ = cs.SendMsg(req)
				for err == nil {
					err = cs.RecvMsg(&reply)
				}
				cancel()
			}
		})
		b.Run(string(m.Name.Name())+"/cluster", func(b *testing.B) {
			c := newCluster(b, upstream.Config{Target: addr})
			s := &sink{req: req, conn: drainedConn(b)}
			info := &rpc.Info{}
			b.ReportAllocs()
			calls := 0
			for b.Loop() {
				s.done = false
				*info = rpc.Info{}
				call := &rpc.Call{Method: m, Info: info, Stream: s, Header: metadata.MD{"authorization": {"x"}}}
				if err := c.Invoke(b.Context(), call); err != nil {
					b.Fatal(err)
				}
				calls++
			}
			b.ReportMetric(float64(s.flushes)/float64(calls), "flushes/op")
			b.ReportMetric(float64(s.got)/float64(calls), "messages/op")
		})
	}
}
