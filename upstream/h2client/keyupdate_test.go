package h2client_test

import (
	"bytes"
	"context"
	"net"
	"testing"

	"golang.org/x/net/http2"

	"transom/upstream/h2client"
)

const askKey = 0xfe // the type of a frame

// answering is what secures a connection: it answers by itself when it is asked, as TLS answers KeyUpdate.
type answering struct{ net.Conn }

func (c answering) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bytes.IndexByte(p[:n], askKey) >= 0 {
		_ = http2.NewFramer(c.Conn, nil).WritePing(false, [8]byte{'n', 'e', 'w', ' ', 'k', 'e', 'y', 's'})
	}
	return n, err
}

// What TLS answers goes out though HTTP/2 has nothing to say.
func TestKeyUpdate(t *testing.T) {
	answered := make(chan struct{})
	cfg := h2client.Config{Handshake: func(_ context.Context, raw net.Conn) (net.Conn, error) { return answering{raw}, nil }}
	scripted(t, cfg, nil, func(p *peer) {
		for f := next[*http2.SettingsFrame](p); f != nil && !f.IsAck(); {
			f = next[*http2.SettingsFrame](p)
		}
		_ = p.fr.WriteRawFrame(askKey, 0, 0, nil)
		if f := next[*http2.PingFrame](p); f != nil {
			close(answered)
		}
		p.drain()
	})
	select {
	case <-answered:
	case <-soon(t).Done():
		t.Error("no answer")
	}
}
