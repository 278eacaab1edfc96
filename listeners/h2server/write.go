package h2server

import (
	"runtime"

	"transom/rpc/h2wire"
)

// Frames are gathered in conn.out. Whoever adds some and finds no write under way writes all that has been gathered, and
// again until there is nothing left: answers join those of others. A write never waits: what the socket does not take at
// once is left to a goroutine that lives until the socket has caught up.

const (
	// maxUnsent is the number of bytes gathered from which answers wait.
	maxUnsent = 256 << 10
	// maxGathered is the number of bytes gathered at which a client that makes us answer (PING, SETTINGS, KeyUpdate of TLS, …) but does
	// not read is given up.
	maxGathered = 1 << 20
	// keepOut and keepBusy are the most memory kept for gathering: by a connection without requests, and with some.
	keepOut  = 64 << 10
	keepBusy = 512 << 10
	// maxRounds is how often one writes for others before a goroutine takes over.
	maxRounds = 8
)

// flush writes what has been gathered unless somebody else does. c.mu is held on entry and not on return. With join it
// lets other handlers add theirs first.
func (c *conn) flush(join bool) {
	if c.writing || !c.unsent() || c.state == closed {
		c.mu.Unlock()
		return
	}
	c.writing = true
	if join && c.handlers > 1 && c.joins() {
		n := len(c.out)
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
		c.joined(len(c.out) > n)
	}
	for round := 0; ; round++ {
		if !c.unsent() || c.broken {
			c.stop()
			c.mu.Unlock()
			return
		}
		if round == maxRounds {
			go c.writeRest(nil, nil)
			c.mu.Unlock()
			return
		}
		p := c.swap()
		c.mu.Unlock()
		rest, err := c.output.Try(p)
		c.mu.Lock()
		if err != nil {
			c.lose(err)
			c.stop()
			c.mu.Unlock()
			return
		}
		if len(rest) > 0 {
			go c.writeRest(rest, p)
			c.mu.Unlock()
			return
		}
		c.written(p)
	}
}

// unsent reports whether there is something to write: frames, or what TLS has to say. c.mu is held.
func (c *conn) unsent() bool { return len(c.out) > 0 || c.output.Pending() > 0 }

// stop ends a write. c.mu is held.
func (c *conn) stop() {
	c.writing = false
	if c.state == closed {
		wake(c.wrote)
	}
}

// swap takes what has been gathered. c.mu is held.
func (c *conn) swap() []byte {
	p := c.out
	c.out, c.spareOut = c.spareOut[:0], nil
	return p
}

// written keeps the memory of p and lets those go on who waited for room. c.mu is held.
func (c *conn) written(p []byte) {
	if cap(p) <= keepOut || c.handlers > 0 && cap(p) <= keepBusy {
		c.spareOut = p
	}
	if c.roomWanted && len(c.out) < maxUnsent {
		c.roomWanted = false
		c.wakeBlocked()
	}
}

// writeRest writes rest, of p, and then what has been gathered, until there is nothing left. It waits for the socket.
func (c *conn) writeRest(rest, p []byte) {
	for {
		if len(rest) > 0 {
			if err := c.output.Finish(rest); err != nil {
				c.mu.Lock()
				c.lose(err)
				c.stop()
				c.mu.Unlock()
				return
			}
		}
		c.mu.Lock()
		if p != nil {
			c.written(p)
		}
		if !c.unsent() || c.broken {
			c.stop()
			c.mu.Unlock()
			return
		}
		p = c.swap()
		c.mu.Unlock()
		var err error
		if rest, err = c.output.Try(p); err != nil {
			c.mu.Lock()
			c.lose(err)
			c.stop()
			c.mu.Unlock()
			return
		}
	}
}

// joins reports whether it pays to let others run before writing: a yield costs little beside a system call, but
// something, so it is tried now and then only while nobody makes use of it.
func (c *conn) joins() bool {
	if c.joinScore > 0 {
		return true
	}
	c.joinSkips++
	return c.joinSkips%16 == 0
}

func (c *conn) joined(gain bool) {
	if gain {
		c.joinScore = min(c.joinScore+4, 16)
	} else if c.joinScore > 0 {
		c.joinScore--
	}
}

// wake lets go the one who waits on ch, or the next to wait. Those who wait look again at what they wait for.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// wakeBlocked lets those go on who wait for the connection's window, or for room. c.mu is held.
func (c *conn) wakeBlocked() {
	for i, s := range c.blocked {
		s.blocked = false
		wake(s.sendable)
		c.blocked[i] = nil
	}
	c.blocked = c.blocked[:0]
}

// reset gathers RST_STREAM and remembers it. c.mu is held.
func (c *conn) reset(id uint32, code h2wire.ErrCode) {
	c.out = h2wire.AppendReset(c.out, id, code)
	if c.ended == nil {
		c.ended = new([endedLen]uint32)
	}
	c.ended[c.endedNext%endedLen] = id
	c.endedNext++
}
