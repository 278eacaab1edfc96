package cases

import (
	"encoding/binary"
	"net"
	"sync/atomic"
)

// resetListener puts another code into the RST_STREAM frames of its connections: net/http's handlers can only reset a stream
// with INTERNAL_ERROR.
type resetListener struct {
	net.Listener
	code *atomic.Uint32
}

func (l resetListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &resetConn{Conn: c, code: l.code}, nil
}

// resetConn follows the frames that are written, wherever the writes cut them.
type resetConn struct {
	net.Conn
	code *atomic.Uint32

	head  [9]byte // of the frame at hand
	have  int     // bytes of it
	body  int     // bytes of the frame's payload still to come
	reset bool    // it is RST_STREAM
}

func (c *resetConn) Write(p []byte) (int, error) {
	out := append([]byte(nil), p...)
	for i := 0; i < len(out); {
		if c.have < len(c.head) {
			n := copy(c.head[c.have:], out[i:])
			c.have += n
			i += n
			if c.have == len(c.head) {
				c.body = int(c.head[0])<<16 | int(c.head[1])<<8 | int(c.head[2])
				c.reset = c.head[3] == 3
			}
		} else {
			n := min(c.body, len(out)-i)
			if code := c.code.Load(); c.reset && code != 0 {
				var b [4]byte
				binary.BigEndian.PutUint32(b[:], code)
				copy(out[i:i+n], b[4-c.body:])
			}
			c.body -= n
			i += n
		}
		if c.have == len(c.head) && c.body == 0 {
			c.have = 0
		}
	}
	return c.Conn.Write(out)
}
