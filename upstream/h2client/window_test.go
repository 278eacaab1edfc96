package h2client_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"transom/upstream/h2client"
)

// framed is a message of n bytes.
func framed(n int) []byte { return append([]byte{0, 0, 0, byte(n >> 8), byte(n)}, make([]byte, n)...) }

// window waits for SETTINGS that change nothing but the window of streams, and acknowledges them. 0 is that none came.
func (p *peer) window() uint32 {
	for {
		f := next[*http2.SettingsFrame](p)
		if f == nil {
			return 0
		}
		if f.IsAck() {
			continue
		}
		v, ok := f.Value(http2.SettingInitialWindowSize)
		if !ok || f.NumSettings() != 1 {
			p.tb.Errorf("SETTINGS %v", f)
		}
		_ = p.fr.WriteSettingsAck()
		return v
	}
}

// TestShortWindows sees that streams which nobody receives from make the windows of all short, once and for as long.
func TestShortWindows(t *testing.T) {
	const window, short = 64 << 10, 16 << 10
	shortened, overrun := make(chan struct{}), make(chan struct{})
	c := scripted(t, h2client.Config{StreamWindow: window, ConnWindow: window}, nil, func(p *peer) {
		if f := next[*http2.SettingsFrame](p); f == nil {
			return
		}
		_ = p.fr.WriteSettingsAck()
		id := p.call()
		p.begin(id)
		for range 4 {
			p.data(id, false, framed(10_000)...)
		}
		if v := p.window(); v != short {
			t.Errorf("a stream's window is %d after 40 kB that nobody takes, want %d", v, short)
		}
		close(shortened)
		other := p.call()
		p.begin(other)
		p.data(other, false, framed(short-5)...)
		p.data(other, false, 0)
		if f := next[*http2.RSTStreamFrame](p); f == nil || f.StreamID != other || f.ErrCode != http2.ErrCodeFlowControl {
			t.Errorf("a byte more than the short window is answered by %v", f)
		}
		close(overrun)
		if v := p.window(); v != window {
			t.Errorf("a stream's window is %d when all has been taken, want %d", v, window)
		}
		for b := range slices.Chunk(framed(60_000), 16<<10) {
			p.data(id, false, b...)
		}
		p.trailers(id, "grpc-status", "0")
		p.drain()
	})
	s, err := c.NewStream(soon(t), "/a.B/C", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.CloseSend()
	<-shortened
	other, err := c.NewStream(soon(t), "/a.B/C", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = other.CloseSend()
	<-overrun
	other.Close()
	for _, size := range [...]int{10_000, 10_000, 10_000, 10_000, 60_000} {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.Data.Len() != size {
			t.Errorf("%d bytes, want %d", m.Data.Len(), size)
		}
		m.Free()
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Error(err)
	}
}

// TestShortWindowsAfterTheEnd sees that what has come on a stream counts until it is received or given up, by Close or with
// the stream's context, though the stream has ended.
func TestShortWindowsAfterTheEnd(t *testing.T) {
	const window, short = 64 << 10, 16 << 10
	for _, tt := range []struct {
		how   string
		ended bool // by the server
	}{{"received", true}, {"closed", true}, {"cancelled", true}, {"cancelled", false}} {
		came, taken := make(chan struct{}), make(chan struct{})
		c := scripted(t, h2client.Config{StreamWindow: window, ConnWindow: window}, nil, func(p *peer) {
			if f := next[*http2.SettingsFrame](p); f == nil {
				return
			}
			_ = p.fr.WriteSettingsAck()
			for range 4 {
				id := p.call()
				p.begin(id)
				p.data(id, false, framed(10_000)...)
				p.data(id, false, 0, 0, 0, 1) // and a part of another message
				if tt.ended {
					p.trailers(id, "grpc-status", "0")
				}
			}
			if v := p.window(); v != short {
				t.Errorf("a stream's window is %d after 40 kB that nobody takes, want %d", v, short)
			}
			close(came)
			if v := p.window(); v != window {
				t.Errorf("a stream's window is %d when all has been taken, want %d", v, window)
			}
			close(taken)
			id := p.call()
			p.answer(id)
			p.drain()
		})
		ctx, cancel := context.WithCancel(soon(t))
		defer cancel()
		var all []*h2client.Stream
		for range 4 {
			s, err := c.NewStream(ctx, "/a.B/C", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.CloseSend()
			all = append(all, s)
		}
		<-came
		if tt.how == "cancelled" {
			cancel()
			select {
			case <-taken:
			case <-soon(t).Done():
				t.Fatal("the windows are short yet after the end of the context")
			}
			for _, s := range all {
				for range 2 {
					if _, err := s.Recv(); errorOf(t, err).Code != codes.Canceled {
						t.Errorf("Recv of a stream that is %s: %v", tt.how, err)
					}
				}
			}
		}
		for _, s := range all {
			if tt.how == "received" {
				m, err := s.Recv()
				if err != nil {
					t.Fatal(err)
				}
				m.Free()
			}
			s.Close()
		}
		<-taken
		var reply h2client.Reply
		if err := c.Unary(soon(t), "/a.B/C", nil, msg(nil), &reply); err != nil {
			t.Fatal(err)
		}
		reply.Message.Free()
	}
}

// TestTakenOneAfterTheOther has a server send to many streams of which only one is received from at a time: whatever the
// messages' sizes and however short the windows, all arrive.
func TestTakenOneAfterTheOther(t *testing.T) {
	const streams = 40
	sizes := [...]int{1, 8 << 10, 16 << 10, 16<<10 + 1, 64 << 10, 300_000, 0, 100, 40_000, 3}
	addr := newServer(t, func(ss grpc.ServerStream) error {
		var m []byte
		if err := ss.RecvMsg(&m); err != nil {
			return err
		}
		for i, n := range sizes {
			m := pattern(n, int(m[0])+i)
			if err := ss.SendMsg(&m); err != nil {
				return err
			}
		}
		return nil
	})
	for _, cfg := range []h2client.Config{{StreamWindow: 64 << 10, ConnWindow: 64 << 10}, {StreamWindow: 256 << 10, ConnWindow: 1 << 20}, {}} {
		c := dial(t, addr, cfg)
		var open []*h2client.Stream
		for i := range streams {
			s, err := c.NewStream(soon(t), "/a.B/C", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(msg([]byte{byte(i)}), true); err != nil {
				t.Fatal(err)
			}
			open = append(open, s)
		}
		for i, s := range open {
			for k, n := range sizes {
				m, err := s.Recv()
				if err != nil {
					t.Fatalf("stream %d, message %d: %v", i, k, err)
				}
				if !bytes.Equal(m.Data.Materialize(), pattern(n, i+k)) {
					t.Errorf("stream %d, message %d differs", i, k)
				}
				m.Free()
			}
			if _, err := s.Recv(); err != io.EOF {
				t.Fatal(err)
			}
		}
	}
}
