package h2client

import (
	"net"
	"runtime"
	"sync"
)

// Frames are gathered in Conn.out. Whoever adds some and finds no write under way writes all that has been gathered, and
// again until there is nothing left: callers' writes join those of others. A write never waits: what the socket does not
// take at once is left to a goroutine that lives until the socket has caught up, so that a caller is held up by a
// server that does not read only as long as its context allows.

const (
	// maxUnsent is the number of bytes gathered from which callers wait.
	maxUnsent = 256 << 10
	// maxGathered is the number of bytes gathered at which a server that makes us answer (PING, SETTINGS, …) but does not read
	// is given up.
	maxGathered = 1 << 20
	// keepOut is the most memory kept for gathering.
	keepOut = 512 << 10
	// maxRounds is how often a caller writes for others before a goroutine takes over.
	maxRounds = 8
)

// sealed is a raw connection as seen by what secures it. After the handshake what is written is kept in buf, for the
// connection's writer to send in its turn: so encrypting never waits.
type sealed struct {
	net.Conn
	mu     sync.Mutex
	gather bool
	buf    []byte
}

func (s *sealed) Write(p []byte) (int, error) {
	s.mu.Lock()
	if s.gather {
		s.buf = append(s.buf, p...)
		s.mu.Unlock()
		return len(p), nil
	}
	s.mu.Unlock()
	return s.Conn.Write(p)
}

// take returns what has been written, in exchange for a buffer to write to.
func (s *sealed) take(spare []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buf
	s.buf = spare[:0]
	return b
}

// output is the sending side of a socket, used by one goroutine at a time.
type output struct {
	raw    net.Conn
	conn   net.Conn // raw, or what secures it
	trier  *trier   // nil if raw cannot write without waiting
	sealed *sealed  // nil for plaintext
	spare  []byte
}

// try writes p as far as the socket takes it at once and returns the bytes that remain, for finish: of p, or of what p
// has been made into.
func (o *output) try(p []byte) (rest []byte, err error) {
	if o.sealed != nil {
		if _, err := o.conn.Write(p); err != nil {
			return nil, err
		}
		p = o.sealed.take(o.spare)
		o.spare = nil
		if cap(p) <= keepOut {
			o.spare = p // again once p is written
		}
	}
	if o.trier == nil {
		return p, nil
	}
	n, err := o.trier.write(p)
	return p[n:], err
}

// finish writes what try has left over. It waits.
func (o *output) finish(rest []byte) error {
	_, err := o.raw.Write(rest)
	return err
}

// flush writes what has been gathered unless somebody else does. c.mu is held on entry and not on return. With join it
// lets other callers add theirs first.
func (c *Conn) flush(join bool) {
	if c.writing || len(c.out) == 0 || c.state == Closed {
		c.mu.Unlock()
		return
	}
	c.writing = true
	if join && c.active > 1 && c.joins() {
		n := len(c.out)
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
		c.joined(len(c.out) > n)
	}
	for round := 0; ; round++ {
		if len(c.out) == 0 || c.state == Closed {
			c.writing = false
			c.mu.Unlock()
			return
		}
		if round == maxRounds {
			c.writers.Go(func() { c.writeRest(nil, nil) })
			c.mu.Unlock()
			return
		}
		p := c.swap()
		c.mu.Unlock()
		rest, err := c.output.try(p)
		c.mu.Lock()
		if err != nil {
			c.writing = false
			c.fail(errWrite(err), codeNo)
			c.mu.Unlock()
			return
		}
		if len(rest) > 0 {
			if c.state != Closed {
				c.writers.Go(func() { c.writeRest(rest, p) })
			}
			c.mu.Unlock()
			return
		}
		c.written(p)
	}
}

// swap takes what has been gathered. c.mu is held.
func (c *Conn) swap() []byte {
	p := c.out
	c.out, c.spareOut = c.spareOut[:0], nil
	c.handed = c.nextID
	return p
}

// written keeps the memory of p and lets those go on who waited for room. c.mu is held.
func (c *Conn) written(p []byte) {
	if cap(p) <= keepOut {
		c.spareOut = p
	}
	if len(c.out) < maxUnsent {
		if c.roomWanted {
			c.roomWanted = false
			c.wakeBlocked()
		}
		c.grant()
	}
}

// writeRest writes rest, of p, and then what has been gathered, until there is nothing left. It waits for the socket.
func (c *Conn) writeRest(rest, p []byte) {
	for {
		if len(rest) > 0 {
			if err := c.output.finish(rest); err != nil {
				c.mu.Lock()
				c.fail(errWrite(err), codeNo)
				c.mu.Unlock()
				return
			}
		}
		c.mu.Lock()
		if p != nil {
			c.written(p)
		}
		if len(c.out) == 0 || c.state == Closed {
			c.writing = false
			c.mu.Unlock()
			return
		}
		p = c.swap()
		c.mu.Unlock()
		var err error
		if rest, err = c.output.try(p); err != nil {
			c.mu.Lock()
			c.fail(errWrite(err), codeNo)
			c.mu.Unlock()
			return
		}
	}
}

// joins reports whether it pays to let others run before writing: a yield costs little beside a system call, but
// something, so it is tried now and then only while nobody makes use of it.
func (c *Conn) joins() bool {
	if c.joinScore > 0 {
		return true
	}
	c.joinSkips++
	return c.joinSkips%16 == 0
}

func (c *Conn) joined(gain bool) {
	if gain {
		c.joinScore = min(c.joinScore+4, 16)
	} else if c.joinScore > 0 {
		c.joinScore--
	}
}
