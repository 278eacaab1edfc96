package h2client_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"transom/upstream/h2client"
)

// oneWay is how long bytes are under way, so that a round trip takes two of it.
const oneWay = 25 * time.Millisecond

// far is one end of a connection on which bytes take oneWay, and any number of them may be under way.
type far struct {
	net.Conn // for what is not used: nil
	in, out  *wire
}

// wire is one direction.
type wire struct {
	mu     sync.Mutex
	chunks []chunk
	closed bool
	wake   chan struct{} // has room for one
}

type chunk struct {
	at time.Time // when it is there
	b  []byte
}

func newFar() (a, b *far) {
	x, y := &wire{wake: make(chan struct{}, 1)}, &wire{wake: make(chan struct{}, 1)}
	return &far{in: x, out: y}, &far{in: y, out: x}
}

func (w *wire) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (f *far) Read(p []byte) (int, error) {
	w := f.in
	for {
		w.mu.Lock()
		switch {
		case len(w.chunks) > 0 && !time.Now().Before(w.chunks[0].at):
			n := copy(p, w.chunks[0].b)
			if w.chunks[0].b = w.chunks[0].b[n:]; len(w.chunks[0].b) == 0 {
				w.chunks = w.chunks[1:]
			}
			w.mu.Unlock()
			return n, nil
		case len(w.chunks) > 0:
			d := time.Until(w.chunks[0].at)
			w.mu.Unlock()
			timer := time.NewTimer(d)
			<-timer.C
		case w.closed:
			w.mu.Unlock()
			return 0, io.EOF
		default:
			w.mu.Unlock()
			<-w.wake
		}
	}
}

func (f *far) Write(p []byte) (int, error) {
	f.out.mu.Lock()
	defer f.out.mu.Unlock()
	if f.out.closed {
		return 0, net.ErrClosed
	}
	f.out.chunks = append(f.out.chunks, chunk{time.Now().Add(oneWay), append([]byte(nil), p...)})
	f.out.signal()
	return len(p), nil
}

func (f *far) Close() error {
	for _, w := range []*wire{f.in, f.out} {
		w.mu.Lock()
		w.closed = true
		w.signal()
		w.mu.Unlock()
	}
	return nil
}

func (f *far) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (f *far) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (f *far) SetDeadline(time.Time) error      { return nil }
func (f *far) SetReadDeadline(time.Time) error  { return nil }
func (f *far) SetWriteDeadline(time.Time) error { return nil }

// farListener takes the other ends.
type farListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *farListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *farListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *farListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *farListener) dial() net.Conn {
	a, b := newFar()
	l.conns <- b
	return a
}

// roundTrips is what work takes, in round trips.
func roundTrips(work func()) float64 {
	start := time.Now()
	work()
	return float64(time.Since(start)) / float64(2*oneWay)
}

// TestLatency counts the round trips that things take on a connection with a latency of 50 ms, in virtual time: nothing
// waits for an answer that need not, and windows keep much data under way.
func TestLatency(t *testing.T) {
	const size, parts = 256 << 10, 64 // 16 MiB
	handler := func(ss grpc.ServerStream) error {
		var m []byte
		if err := ss.RecvMsg(&m); err != nil {
			return err
		}
		if string(m) != "download" {
			n := 0
			for {
				n++
				var more []byte
				if err := ss.RecvMsg(&more); err == io.EOF {
					answer := fmt.Append(nil, n)
					return ss.SendMsg(&answer)
				} else if err != nil {
					return err
				}
			}
		}
		for i := range parts {
			b := pattern(size, i)
			if err := ss.SendMsg(&b); err != nil {
				return err
			}
		}
		return nil
	}
	synctest.Test(t, func(t *testing.T) {
		l := &farListener{conns: make(chan net.Conn), done: make(chan struct{})}
		s := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.ForceServerCodecV2(bytesCodec{}),
			grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error { return handler(ss) }))
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Serve(l) })
		defer func() { s.Stop(); wg.Wait() }()
		ctx := context.Background()

		var c *h2client.Conn
		expect := func(what string, least, most float64, work func()) float64 {
			t.Helper()
			n := roundTrips(work)
			t.Logf("%s: %.2f round trips", what, n)
			if n < least || n > most {
				t.Errorf("%s took %.2f round trips, want %v to %v", what, n, least, most)
			}
			return n
		}
		expect("the connection", 0.5, 0.5, func() { // a server may begin at once
			var err error
			if c, err = h2client.New(ctx, l.dial(), h2client.Config{Authority: "far", MaxMessageBytes: 64 << 20}); err != nil {
				t.Fatal(err)
			}
		})
		defer c.Close()
		unary := func() {
			var reply h2client.Reply
			if err := c.Unary(ctx, "/a.B/C", nil, msg([]byte("x")), &reply); err != nil {
				t.Error(err)
			}
			reply.Message.Free()
		}
		expect("a call", 1, 1, unary)
		expect("a hundred calls at a time", 1, 1, func() {
			var calls sync.WaitGroup
			for range 100 {
				calls.Go(unary)
			}
			calls.Wait()
		})
		download := func(recv func() (int, error)) {
			total := 0
			for {
				n, err := recv()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				total += n
			}
			if total != size*parts {
				t.Errorf("%d bytes, want %d", total, size*parts)
			}
		}
		ours := expect("16 MiB down", 1, 16, func() {
			st, err := c.NewStream(ctx, "/a.B/C", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			if err := st.Send(msg([]byte("download")), true); err != nil {
				t.Fatal(err)
			}
			download(func() (int, error) {
				m, err := st.Recv()
				n := m.Data.Len()
				m.Free()
				return n, err
			})
		})
		expect("4 MiB up", 1, 16, func() { // as the server gives it windows
			st, err := c.NewStream(ctx, "/a.B/C", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			for i := range 16 {
				if err := st.Send(msg(pattern(size, i)), false); err != nil {
					t.Fatal(err)
				}
			}
			_ = st.CloseSend()
			m, err := st.Recv()
			if err != nil || string(m.Data.Materialize()) != "16" {
				t.Errorf("%v", err)
			}
			m.Free()
		})

		g, err := grpc.NewClient("passthrough:///far", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{}), grpc.MaxCallRecvMsgSize(64<<20)),
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.dial(), nil }))
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		theirs := roundTrips(func() {
			gs, err := g.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/a.B/C")
			if err != nil {
				t.Fatal(err)
			}
			b := []byte("download")
			if err := gs.SendMsg(&b); err != nil {
				t.Fatal(err)
			}
			_ = gs.CloseSend()
			download(func() (int, error) {
				var b []byte
				err := gs.RecvMsg(&b)
				return len(b), err
			})
		})
		if t.Logf("grpc-go's client, connecting: %.2f", theirs); ours > theirs {
			t.Errorf("16 MiB down took %.2f round trips, grpc-go's client takes %.2f", ours, theirs)
		}
	})
}
