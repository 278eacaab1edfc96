package h2client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"transom/upstream/h2client"
)

// TestStorm has many callers cancel at any moment while the server answers, resets and refuses as it likes, all on
// connections that carry on: every message that arrives must be the one that belongs to its call.
func TestStorm(t *testing.T) {
	const calls = 400
	addr := newServer(t, func(ss grpc.ServerStream) error {
		var m []byte
		if err := ss.RecvMsg(&m); err != nil {
			return err
		}
		reply := bytes.Repeat(m[:1], int(m[1])<<8)
		for range 1 + m[2]%3 {
			if err := ss.SendMsg(&reply); err != nil {
				return err
			}
		}
		return nil
	}, grpc.MaxConcurrentStreams(20), grpc.InitialWindowSize(64<<10))
	both := []*h2client.Conn{
		dial(t, addr, h2client.Config{StreamWindow: 64 << 10, ConnWindow: 64 << 10}),
		scripted(t, h2client.Config{}, []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 10}}, stormyServer),
	}
	var wg sync.WaitGroup
	for i := range 16 {
		c := both[i%2]
		r := rand.New(rand.NewPCG(1, uint64(i)))
		wg.Go(func() {
			for range calls {
				if !stormCall(t, c, r) {
					return
				}
			}
		})
	}
	wg.Wait()
	for _, c := range both {
		if c.State() != h2client.Ready || c.InFlight() != 0 || c.Waiting() != 0 {
			t.Errorf("%v (%v), %d in flight, %d waiting", c.State(), c.Err(), c.InFlight(), c.Waiting())
		}
	}
}

// stormCall makes a call that may be cancelled, and reports whether what came is right.
func stormCall(t *testing.T, c *h2client.Conn, r *rand.Rand) bool {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if r.IntN(2) == 0 {
		timer := time.AfterFunc(time.Duration(r.IntN(2000))*time.Microsecond, cancel)
		defer timer.Stop()
	}
	seed, size := byte(r.Uint32()), byte(r.IntN(100))
	req := msg(append([]byte{seed, size, 0}, make([]byte, r.IntN(3)*10_000)...))
	check := func(m h2client.Message) bool {
		got := m.Data.Materialize()
		m.Free()
		if !bytes.Equal(got, bytes.Repeat([]byte{seed}, int(size)<<8)) {
			t.Errorf("a message of %d bytes that is not this call's, which are %d", len(got), int(size)<<8)
			return false
		}
		return true
	}
	var err error
	if r.IntN(2) == 0 {
		var reply h2client.Reply
		if err = c.Unary(ctx, "/a.B/C", nil, req, &reply); err == nil {
			return check(reply.Message)
		}
	} else {
		req.Data[0].ReadOnlyData()[2] = byte(r.IntN(3))
		var s *h2client.Stream
		if s, err = c.NewStream(ctx, "/a.B/C", nil); err == nil {
			_ = s.Send(req, true)
			for err == nil {
				if r.IntN(20) == 0 {
					s.Close()
				}
				var m h2client.Message
				if m, err = s.Recv(); err == nil && !check(m) {
					s.Close()
					return false
				}
			}
		}
	}
	if err == io.EOF {
		return true
	}
	e := (*h2client.Error)(nil)
	if !errors.As(err, &e) || e.Code != codes.Canceled && e.Origin != h2client.OriginReset {
		t.Errorf("%v", err)
		return false
	}
	return true
}

// stormyServer answers, resets and refuses, in pieces and late.
func stormyServer(p *peer) {
	r := rand.New(rand.NewPCG(2, 2))
	_ = p.fr.WriteWindowUpdate(0, 1<<30)
	requests := map[uint32][]byte{}
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.RSTStreamFrame:
			delete(requests, f.StreamID)
		case *http2.PingFrame:
			_ = p.fr.WritePing(true, f.Data)
		case *http2.DataFrame:
			id := f.StreamID
			requests[id] = append(requests[id], f.Data()...)
			_ = p.fr.WriteWindowUpdate(id, 20_000)
			if !f.StreamEnded() {
				if r.IntN(10) == 0 {
					_ = p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)
				}
				continue
			}
			m := requests[id][5:]
			delete(requests, id)
			if r.IntN(5) == 0 {
				_ = p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
				continue
			}
			body := bytes.Repeat(m[:1], int(m[1])<<8)
			body = append([]byte{0, 0, 0, byte(len(body) >> 8), byte(len(body))}, body...)
			body = bytes.Repeat(body, 1+int(m[2]%3))
			p.begin(id)
			for len(body) > 0 {
				n := 1 + r.IntN(min(len(body), 16<<10))
				p.data(id, false, body[:n]...)
				body = body[n:]
				if r.IntN(20) == 0 {
					break
				}
			}
			switch {
			case len(body) > 0:
				_ = p.fr.WriteRSTStream(id, http2.ErrCodeInternal)
			default:
				p.trailers(id, "grpc-status", "0")
			}
			_ = p.fr.WriteWindowUpdate(id, 1)
		}
	}
}
