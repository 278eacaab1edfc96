package lbhost

import "sync"

// serializer runs functions one after the other in the order in which they came, on a goroutine that lives while there
// are any. Balancers are promised that no two calls into them overlap.
type serializer struct {
	mu      sync.Mutex
	queue   []func()
	running bool
	closed  bool
	wg      sync.WaitGroup
}

// schedule queues f and reports whether it will run. It never waits.
func (s *serializer) schedule(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.add(f)
	return true
}

// add queues f. mu is held.
func (s *serializer) add(f func()) {
	s.queue = append(s.queue, f)
	if !s.running {
		s.running = true
		s.wg.Go(s.run)
	}
}

func (s *serializer) run() {
	for {
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		if len(queue) == 0 {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, f := range queue {
			f()
		}
	}
}

// close runs last after all that is queued, waits for it and takes nothing further. Only the first call does anything.
func (s *serializer) close(last func()) {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		s.add(last)
	}
	s.mu.Unlock()
	s.wg.Wait()
}
