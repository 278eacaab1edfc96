package h2server

import (
	"sync"
	"time"
)

// workers are the goroutines that run handlers. One that has ended its request waits for another, so that its stack need
// not grow again; those that nobody needed for a while end.
type workers struct {
	mu     sync.Mutex
	idle   []*worker // the last used is the next
	unused int       // the fewest that were idle since the last trim
	timer  *time.Timer
	closed bool
}

// worker is one of them. next has room for one; it is closed to end it.
type worker struct{ next chan *stream }

// trimEvery is how long a worker is kept that is not needed, at least.
const trimEvery = time.Second

// run runs s's handler.
func (p *workers) run(s *stream) {
	p.mu.Lock()
	n := len(p.idle)
	if n == 0 {
		p.mu.Unlock()
		w := &worker{make(chan *stream, 1)}
		go p.work(w, s)
		return
	}
	w := p.idle[n-1]
	p.idle = p.idle[:n-1]
	p.unused = min(p.unused, n-1)
	p.mu.Unlock()
	w.next <- s
}

// work is a worker's goroutine.
func (p *workers) work(w *worker, s *stream) {
	for s != nil {
		for s != nil {
			s = s.serve()
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return
		}
		p.idle = append(p.idle, w)
		if len(p.idle) == 1 {
			p.arm()
		}
		p.mu.Unlock()
		s = <-w.next
	}
}

// arm starts the timer. mu is held.
func (p *workers) arm() {
	p.unused = 0
	if p.timer == nil {
		p.timer = time.AfterFunc(trimEvery, p.trim)
		return
	}
	p.timer.Reset(trimEvery)
}

// trim ends those that were idle all the time since it last looked.
func (p *workers) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(p.unused, len(p.idle))
	for _, w := range p.idle[:n] {
		close(w.next)
	}
	left := copy(p.idle, p.idle[n:])
	clear(p.idle[left:])
	p.idle = p.idle[:left]
	p.unused = left
	if left > 0 {
		p.timer.Reset(trimEvery)
	}
}

// close ends those that are idle, and others when their request ends.
func (p *workers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, w := range p.idle {
		close(w.next)
	}
	p.idle = nil
	if p.timer != nil {
		p.timer.Stop()
	}
}
