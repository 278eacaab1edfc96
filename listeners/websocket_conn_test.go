package listeners

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sentConn is a connection on which a client has sent all that it will.
type sentConn struct {
	net.Conn
	r *bytes.Reader
}

func (c sentConn) Read(p []byte) (int, error)    { return c.r.Read(p) }
func (sentConn) SetReadDeadline(time.Time) error { return nil }

// TestFragments: a message in frames of one byte each is copied a few times, and not with each frame.
func TestFragments(t *testing.T) {
	const size = 64 << 10
	var sent []byte
	for i := range size {
		first := byte(opContinuation)
		switch i {
		case 0:
			first = byte(opBinary)
		case size - 1:
			first |= 0x80
		}
		sent = append(sent, first, 0x81, 0, 0, 0, 0, 'x')
	}
	cfg := &WebSocketConfig{}
	cfg.setDefaults()
	allocs := testing.AllocsPerRun(1, func() {
		m, err := newWSConn(sentConn{r: bytes.NewReader(sent)}, nil, cfg, size).next()
		if err != nil || len(m.data) != size || cap(m.data) > size {
			t.Fatalf("%d bytes, room for %d, %v", len(m.data), cap(m.data), err)
		}
	})
	if allocs > 100 {
		t.Errorf("%v allocations", allocs)
	}
}

// TestSlowReader: a client that takes a large message slowly, but takes it, is waited for; one that takes nothing is not, nor any
// once the call is over.
func TestSlowReader(t *testing.T) {
	const (
		size  = 1 << 20
		pace  = 100 * time.Millisecond // for 1 KiB
		whole = size >> 10 * pace
	)
	for name, tc := range map[string]struct {
		takes  int           // bytes, before the client stops
		end    func(*wsConn) // after a second
		within time.Duration
		fails  bool
	}{
		"slow":          {2 * size, nil, whole + time.Second, false},
		"stuck":         {size / 2, nil, whole/2 + defaultIdle, true},
		"slow, over":    {2 * size, (*wsConn).hurry, 2*time.Second + writeGrace, true},
		"slow, last":    {2 * size, (*wsConn).lastWrites, time.Second + defaultIdle, true},
		"slow, closing": {2 * size, func(c *wsConn) { c.close(closeGoingAway, "") }, time.Second + defaultIdle, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, client := net.Pipe()
				cfg := &WebSocketConfig{}
				cfg.setDefaults()
				c := newWSConn(server, nil, cfg, size)
				began := time.Now()
				if tc.end != nil {
					time.AfterFunc(time.Second, func() { tc.end(c) })
				}
				var reader sync.WaitGroup
				reader.Go(func() {
					for got := 0; got < tc.takes; got += 1 << 10 {
						if _, err := io.CopyN(io.Discard, client, 1<<10); err != nil {
							return
						}
						time.Sleep(pace)
					}
				})
				err := c.send(nil, opBinary, true, make([]byte, size))
				if took := time.Since(began); (err != nil) != tc.fails || took > tc.within {
					t.Errorf("after %v: %v", took, err)
				}
				server.Close()
				client.Close()
				reader.Wait()
			})
		})
	}
}
