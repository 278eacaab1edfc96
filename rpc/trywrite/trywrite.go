// Package trywrite writes to a socket what it takes at once, through TLS too, so that whoever has something to send need not
// wait for a peer that does not read.
package trywrite

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// keep is the most memory kept for encrypting.
const keep = 128 << 10

// Sealed is a raw connection as seen by what secures it. From Gather on, what is written to it is kept, for an Output to
// send in its turn: so encrypting never waits.
type Sealed struct {
	net.Conn
	mu     sync.Mutex
	gather bool
	buf    []byte
}

// Write implements net.Conn.
func (s *Sealed) Write(p []byte) (int, error) {
	s.mu.Lock()
	if s.gather {
		s.buf = append(s.buf, p...)
		s.mu.Unlock()
		return len(p), nil
	}
	s.mu.Unlock()
	return s.Conn.Write(p)
}

// CloseWrite ends the sending side of a connection that can.
func (s *Sealed) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Gather keeps what is written from now on.
func (s *Sealed) Gather() {
	s.mu.Lock()
	s.gather = true
	s.mu.Unlock()
}

// take returns what has been written, in exchange for a buffer to write to.
func (s *Sealed) take(spare []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buf
	s.buf = spare[:0]
	return b
}

// Output is the sending side of a socket. Try and Finish are called by one goroutine at a time, Limit and Pending by any.
type Output struct {
	raw    net.Conn
	conn   net.Conn // raw, or what secures it
	trier  *trier   // nil if raw cannot write without waiting
	sealed *Sealed  // nil for plaintext
	spare  []byte
	stall  time.Duration

	mu    sync.Mutex
	final bool // the deadline stays
}

// New returns the output of raw, a plain socket if it is to be tried. conn is what secures it, and writes to sealed, which
// wraps raw and has been told to gather; both are nil for plaintext. The peer must take something of what waits for it every
// stall; 0 is no limit.
func New(raw, conn net.Conn, sealed *Sealed, stall time.Duration) *Output {
	if sealed == nil {
		conn = raw
	}
	return &Output{raw: raw, conn: conn, trier: newTrier(raw), sealed: sealed, stall: stall}
}

// CanTry reports whether Try writes anything.
func (o *Output) CanTry() bool { return o.trier != nil }

// Try writes p as far as the socket takes it at once and returns the bytes that remain, for Finish: of p, or of what p
// has been made into.
func (o *Output) Try(p []byte) (rest []byte, err error) {
	if o.sealed != nil {
		if len(p) > 0 {
			if _, err := o.conn.Write(p); err != nil {
				return nil, err
			}
		}
		p = o.sealed.take(o.spare)
		o.spare = nil
		if cap(p) <= keep {
			o.spare = p // again once p is written
		}
	}
	if o.trier == nil {
		return p, nil
	}
	n, err := o.trier.write(p)
	return p[n:], err
}

// Pending is the number of bytes that wait for Try without having been given to it: records that TLS itself has made, of which a
// peer may have it make any number (KeyUpdate, RFC 8446 4.6.3). It is 0 for plaintext.
func (o *Output) Pending() int {
	if o.sealed == nil {
		return 0
	}
	o.sealed.mu.Lock()
	defer o.sealed.mu.Unlock()
	return len(o.sealed.buf)
}

// Finish writes what Try has left over. It waits.
func (o *Output) Finish(rest []byte) error {
	for {
		final := o.extend()
		n, err := o.raw.Write(rest)
		rest = rest[n:]
		if err == nil || final || n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// extend gives the peer time anew, unless Limit has been called.
func (o *Output) extend() (final bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stall > 0 && !o.final {
		_ = o.raw.SetWriteDeadline(time.Now().Add(o.stall))
	}
	return o.final
}

// Limit ends whatever is being written, or will be, at a time.
func (o *Output) Limit(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.final = true
	_ = o.raw.SetWriteDeadline(at)
}
