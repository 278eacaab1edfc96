package h2client

import (
	"runtime"

	"transom/rpc/h2wire"
)

// Frames are gathered in Conn.out. Whoever adds some and finds no write under way writes all that has been gathered, and
// again until there is nothing left: callers' writes join those of others. A write never waits: what the socket does not
// take at once is left to a goroutine that lives until the socket has caught up, so that a caller is held up by a
// server that does not read only as long as its context allows.

const (
	// maxUnsent is the number of bytes gathered from which callers wait.
	maxUnsent = 256 << 10
	// maxGathered is the number of bytes gathered at which a server that makes us answer (PING, SETTINGS, KeyUpdate of TLS, …) but does
	// not read is given up.
	maxGathered = 1 << 20
	// keepOut is the most memory kept for gathering.
	keepOut = 512 << 10
	// maxRounds is how often a caller writes for others before a goroutine takes over.
	maxRounds = 8
)

// flush writes what has been gathered unless somebody else does. c.mu is held on entry and not on return. With join it
// lets other callers add theirs first.
func (c *Conn) flush(join bool) {
	if c.writing || !c.unsent() || c.state == Closed {
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
		if !c.unsent() || c.state == Closed {
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
		rest, err := c.output.Try(p)
		c.mu.Lock()
		if err != nil {
			c.writing = false
			c.fail(errWrite(err), h2wire.CodeNo)
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

// unsent reports whether there is something to write: frames, or what TLS has to say. c.mu is held.
func (c *Conn) unsent() bool { return len(c.out) > 0 || c.output.Pending() > 0 }

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
			if err := c.output.Finish(rest); err != nil {
				c.mu.Lock()
				c.fail(errWrite(err), h2wire.CodeNo)
				c.mu.Unlock()
				return
			}
		}
		c.mu.Lock()
		if p != nil {
			c.written(p)
		}
		if !c.unsent() || c.state == Closed {
			c.writing = false
			c.mu.Unlock()
			return
		}
		p = c.swap()
		c.mu.Unlock()
		var err error
		if rest, err = c.output.Try(p); err != nil {
			c.mu.Lock()
			c.fail(errWrite(err), h2wire.CodeNo)
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
