//go:build unix

package trywrite

import (
	"net"
	"syscall"
)

// trier writes to a socket what it takes at once.
type trier struct {
	rc  syscall.RawConn
	try func(fd uintptr) bool // once, since a closure would be allocated
	p   []byte
	n   int
	err error
}

// newTrier returns nil if conn is not a plain socket: a wrapper's SyscallConn would go past what it wraps around.
func newTrier(conn net.Conn) *trier {
	var sc syscall.Conn
	switch c := conn.(type) {
	case *net.TCPConn:
		sc = c
	case *net.UnixConn:
		sc = c
	default:
		return nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	t := &trier{rc: rc}
	t.try = func(fd uintptr) bool {
		for {
			t.n, t.err = syscall.Write(int(fd), t.p)
			if t.err != syscall.EINTR {
				return true
			}
		}
	}
	return t
}

// write returns the number of bytes written without waiting, 0 if the socket takes none.
func (t *trier) write(p []byte) (int, error) {
	t.p = p
	if err := t.rc.Write(t.try); err != nil {
		return 0, err
	}
	t.p = nil
	if t.err != nil {
		if t.err == syscall.EAGAIN {
			return 0, nil
		}
		return 0, t.err
	}
	return t.n, nil
}
