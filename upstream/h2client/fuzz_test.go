package h2client_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"transom/upstream/h2client"
)

// canned is a connection to a server that sends SETTINGS, then on release what it has been given, and closes. What is
// written to it is dropped.
type canned struct {
	net.Conn // nil: no other method is used
	first    *bytes.Reader
	rest     *bytes.Reader
	release  chan struct{}
	closed   chan struct{}
	once     sync.Once
}

func (c *canned) Read(p []byte) (int, error) {
	if c.first.Len() > 0 {
		return c.first.Read(p)
	}
	select {
	case <-c.release:
	case <-c.closed:
		return 0, net.ErrClosed
	}
	return c.rest.Read(p)
}

func (c *canned) Write(p []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
		return len(p), nil
	}
}

func (c *canned) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// FuzzFrames has a server send anything at all to two streams and a unary call: each must end, at the latest with the
// connection, and nothing may be left behind.
func FuzzFrames(f *testing.F) {
	seed := func(send func(p *peer)) {
		var b bytes.Buffer
		p := &peer{fr: http2.NewFramer(&b, nil)}
		p.fr.AllowIllegalWrites = true
		p.enc = hpack.NewEncoder(&p.ebuf)
		p.nc = writerConn{w: &b}
		send(p)
		f.Add(b.Bytes())
	}
	for _, tc := range oddServers {
		switch tc.name {
		case "CONTINUATION without end", "empty CONTINUATION without end", "PINGs without end", "empty DATA without end":
		default:
			seed(func(p *peer) { tc.serve(p, 1) })
			seed(func(p *peer) { tc.serve(p, 5); p.answer(1); p.answer(3) })
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		conn := &canned{
			first: bytes.NewReader([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}), rest: bytes.NewReader(in),
			release: make(chan struct{}), closed: make(chan struct{}),
		}
		c, err := h2client.New(t.Context(), conn, h2client.Config{StreamWindow: 64 << 10, MaxMessageBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 2 {
			s, err := c.NewStream(t.Context(), "/a.B/C", nil)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				for err == nil {
					var m h2client.Message
					m, err = s.Recv()
					m.Free()
				}
				s.Trailer()
				s.Close()
			})
		}
		wg.Go(func() {
			var reply h2client.Reply
			_ = c.Unary(t.Context(), "/a.B/C", nil, msg([]byte("x")), &reply)
			reply.Message.Free()
		})
		for c.InFlight() < 3 {
			runtime.Gosched()
		}
		close(conn.release)
		ended := make(chan struct{})
		go func() { wg.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("calls hang")
		}
		<-c.Done()
		if c.InFlight() != 0 || c.Waiting() != 0 || c.State() != h2client.Closed {
			t.Errorf("%d in flight, %d waiting, %v", c.InFlight(), c.Waiting(), c.State())
		}
		c.Close()
	})
}

// writerConn is a connection for what is written to it.
type writerConn struct {
	net.Conn
	w io.Writer
}

func (c writerConn) Write(p []byte) (int, error) { return c.w.Write(p) }
func (c writerConn) Close() error                { return nil }

// TestTruncated cuts a good answer short at every byte: no call may succeed then, nor hang.
func TestTruncated(t *testing.T) {
	var b bytes.Buffer
	p := &peer{fr: http2.NewFramer(&b, nil)}
	p.enc = hpack.NewEncoder(&p.ebuf)
	p.answer(1)
	for n := range b.Len() + 1 {
		conn := &canned{
			first: bytes.NewReader([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}), rest: bytes.NewReader(b.Bytes()[:n]),
			release: make(chan struct{}), closed: make(chan struct{}),
		}
		c, err := h2client.New(t.Context(), conn, h2client.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var reply h2client.Reply
		var wg sync.WaitGroup
		wg.Go(func() { err = c.Unary(t.Context(), "/a.B/C", nil, msg([]byte("x")), &reply) })
		for c.InFlight() < 1 {
			runtime.Gosched()
		}
		close(conn.release)
		wg.Wait()
		if (err == nil) != (n == b.Len()) {
			t.Errorf("%d of %d bytes: %v", n, b.Len(), err)
		}
		reply.Message.Free()
		c.Close()
	}
}
