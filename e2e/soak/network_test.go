package soak

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// wire is the network between transom and one backend: a TCP proxy that can be slow, stand still, or be cut.
type wire struct {
	lis    net.Listener
	target string
	delay  atomic.Int64 // added to each piece of data, in nanoseconds

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]struct{}
	still chan struct{} // nil while data moves; closed when it moves again
	wg    sync.WaitGroup
}

func startWire(t *testing.T, target string) *wire {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{lis: lis, target: target, conns: map[net.Conn]struct{}{}}
	w.wg.Go(func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.join(c) })
		}
	})
	t.Cleanup(func() {
		lis.Close()
		w.move()
		w.cut()
		w.wg.Wait()
	})
	return w
}

// join carries data both ways until either side ends.
func (w *wire) join(c net.Conn) {
	b, err := net.Dial("tcp", w.target)
	if err != nil {
		reset(c)
		return
	}
	w.mu.Lock()
	w.conns[c], w.conns[b] = struct{}{}, struct{}{}
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { w.carry(b, c) })
	w.carry(c, b)
	both.Wait()
	w.mu.Lock()
	delete(w.conns, c)
	delete(w.conns, b)
	w.mu.Unlock()
}

func (w *wire) carry(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if d := time.Duration(w.delay.Load()); d > 0 {
			time.Sleep(d) // the network's delay is what this is
		}
		w.mu.Lock()
		still := w.still
		w.mu.Unlock()
		if still != nil {
			<-still
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// stand makes data stand still until move.
func (w *wire) stand() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.still == nil {
		w.still = make(chan struct{})
	}
}

func (w *wire) move() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.still != nil {
		close(w.still)
		w.still = nil
	}
}

// cut resets all connections.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		reset(c)
	}
}

// reset closes a connection with RST rather than FIN.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// pause waits for d; it reports whether ctx ended first.
func pause(ctx context.Context, d time.Duration) (ended bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-ctx.Done():
		return true
	}
}
