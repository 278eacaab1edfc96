package listeners

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"sync/atomic"
)

// A request with both Content-Length and Transfer-Encoding may have been framed differently by a proxy in front, and its
// end be the begin of a request that the proxy never saw; RFC 9112 section 6.1 wants the connection closed after it.
// net/http takes such a request by its Transfer-Encoding and deletes the Content-Length before anyone can see it. So the
// socket counts the Content-Length lines that arrive, and a chunked request is the last of its connection unless all of
// them belong to requests that were seen with one. TLS hides the lines; there every chunked request is the last.

// lengthCounter is an HTTP/1.1 connection that counts the lines that begin with "Content-Length:", bodies not excepted: a
// line too many costs a connection, none is missed. It is read by one goroutine at a time.
type lengthCounter struct {
	net.Conn
	seen  atomic.Int64
	taken int64       // lines that the handler has seen too, negative if they are not counted; used by the handler's goroutine only
	off   atomic.Bool // no longer HTTP/1.1
	// matched is how much of lengthLine the bytes read so far end in.
	matched int
}

const lengthLine = "\ncontent-length:"

// connKey is where a request's context has its *lengthCounter.
type connKey struct{}

// withConn is an http.Server's ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if b := bounded(c); b != nil {
		ctx = context.WithValue(ctx, agedKey{}, b)
	}
	if l, ok := c.(*lengthCounter); ok {
		return context.WithValue(ctx, connKey{}, l)
	}
	return ctx
}

// Read implements net.Conn.
func (c *lengthCounter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.off.Load() {
		c.scan(p[:n])
	}
	return n, err
}

// scan counts the lines in b, which continues what came before.
func (c *lengthCounter) scan(b []byte) {
	for len(b) > 0 {
		if c.matched == 0 {
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				return
			}
			b = b[i+1:]
			for len(b) > 0 && b[0] == '\n' {
				b = b[1:]
			}
			if len(b) == 0 || b[0]|0x20 == lengthLine[1] {
				c.matched = 1
			}
			continue
		}
		ch := b[0]
		if 'A' <= ch && ch <= 'Z' {
			ch |= 0x20
		}
		if ch != lengthLine[c.matched] {
			c.matched = 0 // b[0] may be a line feed, and is looked at again
			continue
		}
		b = b[1:]
		if c.matched++; c.matched == len(lengthLine) {
			c.seen.Add(1)
			c.matched = 0
		}
	}
}

// CloseWrite lets net/http end a connection so that the client can read the last answer.
func (c *lengthCounter) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// countingListener makes every connection a lengthCounter.
type countingListener struct{ net.Listener }

// Accept implements net.Listener.
func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lengthCounter{Conn: c}, nil
}

// guardLength makes r the last request of its connection if it may have had a Content-Length beside its
// Transfer-Encoding.
func guardLength(w http.ResponseWriter, r *http.Request) {
	lengths, chunked := len(r.Header["Content-Length"]), len(r.TransferEncoding) > 0
	upgrade := len(r.Header["Upgrade"]) > 0
	if lengths == 0 && !chunked && !upgrade {
		return
	}
	c, _ := r.Context().Value(connKey{}).(*lengthCounter)
	switch {
	case upgrade:
		// What follows may be no longer HTTP. If it is, no chunked request is trusted.
		if c != nil {
			c.off.Store(true)
			c.taken = -1
		}
		if chunked {
			w.Header()["Connection"] = connClose
		}
	case !chunked && c != nil && c.taken >= 0:
		c.taken++
	case chunked && (c == nil || c.seen.Load() != c.taken):
		w.Header()["Connection"] = connClose
	}
}
