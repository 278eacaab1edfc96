//go:build !race

package h2client_test

import (
	"bytes"
	"io"
	"testing"

	"google.golang.org/grpc/metadata"

	"transom/upstream/h2client"
)

// TestAllocations counts allocations of the whole process, so the server is one that makes none: it sends the same bytes
// to each call, of one message or of 1,000.
func TestAllocations(t *testing.T) {
	c := scripted(t, h2client.Config{}, nil, func(p *peer) {
		buf := make([]byte, 64<<10)
		answer := make([]byte, 0, 64<<10)
		_ = p.fr.WriteWindowUpdate(0, 1<<30)
		// Both fields are inserted into the table and are then known by their indices.
		headers, trailers := "\x88\x5f\x10application/grpc", "\x40\x0bgrpc-status\x010"
		for w, r := 0, 0; ; {
			for w-r < 9 || w-r < 9+length(buf[r:]) {
				w, r = copy(buf, buf[r:w]), 0
				n, err := p.nc.Read(buf[w:])
				if err != nil {
					return
				}
				w += n
			}
			f := buf[r : r+9+length(buf[r:])]
			r += len(f)
			if f[3] != 0 || f[4]&1 == 0 { // DATA with END_STREAM
				continue
			}
			n := 1
			if len(f) < 50 {
				n = 1000
			}
			id := f[5:9]
			answer = appendRaw(answer[:0], 1, 4, id, headers)
			for range n {
				answer = appendRaw(answer, 0, 0, id, "\x00\x00\x00\x00\x02hi")
			}
			answer = appendRaw(answer, 1, 5, id, trailers)
			if _, err := p.nc.Write(answer); err != nil {
				return
			}
			headers, trailers = "\x88\xbf", "\xbe"
		}
	})
	ctx := t.Context()
	large, small := msg(make([]byte, 200)), msg(make([]byte, 2))
	count := func(name string, most float64, call func()) {
		for range 100 {
			call()
		}
		n := testing.AllocsPerRun(1000, call)
		t.Logf("%s: %v allocations", name, n)
		if n > most {
			t.Errorf("%s: %v allocations, want at most %v", name, n, most)
		}
	}
	md := metadata.MD{"x-bin": {"\x00\xff"}, "authorization": {"Bearer " + string(bytes.Repeat([]byte("t"), 3000))}}
	for _, key := range []string{"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "traceparent", "x-request-id", "cookie", "accept"} {
		md[key] = []string{"a value of some length"}
	}
	var reply h2client.Reply
	count("a unary call", 0, func() {
		if err := c.Unary(ctx, "/a.B/C", md, large, &reply); err != nil {
			t.Error(err)
		}
		reply.Message.Free()
	})
	count("a stream of 1,000 messages", 20, func() {
		s, err := c.NewStream(ctx, "/a.B/C", md)
		if err != nil {
			t.Error(err)
			return
		}
		if err := s.Send(small, true); err != nil {
			t.Error(err)
		}
		n := 0
		for ; err == nil; n++ {
			var m h2client.Message
			m, err = s.Recv()
			m.Free()
		}
		if n != 1001 || err != io.EOF {
			t.Errorf("%d messages, %v", n-1, err)
		}
	})
}

func length(f []byte) int { return int(f[0])<<16 | int(f[1])<<8 | int(f[2]) }

func appendRaw(dst []byte, typ, flags byte, id []byte, payload string) []byte {
	n := len(payload)
	dst = append(dst, byte(n>>16), byte(n>>8), byte(n), typ, flags)
	return append(append(dst, id...), payload...)
}
