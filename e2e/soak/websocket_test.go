package soak

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"transom/e2e/process"
	wsv1 "transom/proto/transom/ws/v1"
)

// dialing is where and how a WebSocket is opened.
func dialing(p *process.Process, tc *tls.Config, secure bool) (base string, c *http.Client, closing func()) {
	tr, closing := transport(tc)
	if secure {
		return "wss://" + p.Secure, &http.Client{Transport: tr}, closing
	}
	return "ws://" + p.Plain, &http.Client{Transport: tr}, closing
}

// bareClient opens a WebSocket for each call; with TLS its messages are binary.
func bareClient(p *process.Process, tc *tls.Config, secure bool) *client {
	base, hc, closing := dialing(p, tc, secure)
	c := &client{name: "WebSocket JSON", close: closing}
	if secure {
		c.name = "WebSocket binary"
	}
	c.open = func(ctx context.Context, method string, timeout time.Duration) (stream, error) {
		conn, resp, err := websocket.Dial(ctx, base+method, &websocket.DialOptions{HTTPClient: hc, HTTPHeader: http.Header{"Grpc-Timeout": {millis(timeout)}}})
		if err != nil {
			if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
				return nil, restError(resp, resp.Body)
			}
			return nil, err
		}
		conn.SetReadLimit(1 << 20)
		return &bare{ctx, conn, secure}, nil
	}
	return c
}

// bare is a call that is a WebSocket.
type bare struct {
	ctx    context.Context //nolint:containedctx // a stream owns its call's
	conn   *websocket.Conn
	binary bool
}

// Send implements stream. That the server has ended the call is for Recv to tell.
func (s *bare) Send(m proto.Message) error {
	typ, b, err := websocket.MessageBinary, []byte(nil), error(nil)
	if s.binary {
		b, err = proto.Marshal(m)
	} else {
		typ = websocket.MessageText
		b, err = protojson.Marshal(m)
	}
	if err == nil {
		_ = s.conn.Write(s.ctx, typ, b)
	}
	return err
}

// CloseSend implements stream.
func (s *bare) CloseSend() error {
	_ = s.conn.Write(s.ctx, websocket.MessageText, nil)
	return nil
}

// Recv implements stream.
func (s *bare) Recv(m proto.Message) error {
	_, b, err := s.conn.Read(s.ctx)
	var end websocket.CloseError
	switch {
	case errors.As(err, &end) && end.Code == websocket.StatusNormalClosure:
		return io.EOF
	case errors.As(err, &end) && end.Code >= 4000:
		return clear(int64(end.Code)-4000, end.Reason)
	case err != nil:
		return err
	case s.binary:
		return proto.Unmarshal(b, m)
	}
	return protojson.Unmarshal(b, m)
}

// Close implements stream.
func (s *bare) Close() { s.conn.CloseNow() }

// session is a socket of transom.v1 that has one call after the other. It is opened anew when it has broken.
type session struct {
	base   string
	hc     *http.Client
	binary bool
	conn   *websocket.Conn
	id     uint32
}

// sessionClient keeps one socket for its calls; with TLS its frames are binary.
func sessionClient(p *process.Process, tc *tls.Config, secure bool) *client {
	base, hc, closing := dialing(p, tc, secure)
	s := &session{base: base, hc: hc, binary: secure}
	c := &client{name: "transom.v1 JSON", open: s.open}
	if secure {
		c.name = "transom.v1 binary"
	}
	c.close = func() {
		if s.conn != nil {
			_ = s.conn.CloseNow()
		}
		closing()
	}
	return c
}

func (s *session) open(ctx context.Context, method string, timeout time.Duration) (stream, error) {
	if s.conn == nil {
		conn, resp, err := websocket.Dial(ctx, s.base+"/", &websocket.DialOptions{HTTPClient: s.hc, Subprotocols: []string{"transom.v1"}})
		if err != nil {
			if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
				return nil, restError(resp, resp.Body)
			}
			return nil, err
		}
		conn.SetReadLimit(1 << 20)
		s.conn, s.id = conn, 0
	}
	s.id++
	call := &sessionCall{session: s, ctx: ctx, conn: s.conn, id: s.id}
	return call, call.write(&wsv1.Frame{Open: &wsv1.Open{Method: method, Timeout: durationpb.New(timeout), Window: 1 << 20}})
}

// sessionCall is one call of a session.
type sessionCall struct {
	*session
	ctx   context.Context //nolint:containedctx // a stream owns its call's
	conn  *websocket.Conn
	id    uint32
	ended error
}

func (c *sessionCall) write(f *wsv1.Frame) error {
	f.Id = c.id
	var b []byte
	var err error
	typ := websocket.MessageBinary
	if c.binary {
		b, err = proto.Marshal(f)
	} else {
		typ = websocket.MessageText
		b, err = protojson.Marshal(f)
	}
	if err != nil {
		return err
	}
	return c.conn.Write(c.ctx, typ, b)
}

// Send implements stream.
func (c *sessionCall) Send(m proto.Message) error {
	f := &wsv1.Frame{}
	if c.binary {
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		f.Binary = b
		return c.write(f)
	}
	b, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	f.Message = &structpb.Value{}
	if err := protojson.Unmarshal(b, f.GetMessage()); err != nil {
		return err
	}
	return c.write(f)
}

// CloseSend implements stream.
func (c *sessionCall) CloseSend() error { return c.write(&wsv1.Frame{End: true}) }

// Recv implements stream.
func (c *sessionCall) Recv(m proto.Message) error {
	for c.ended == nil {
		_, b, err := c.conn.Read(c.ctx)
		if err != nil {
			return err
		}
		f := &wsv1.Frame{}
		if c.binary {
			err = proto.Unmarshal(b, f)
		} else {
			err = protojson.Unmarshal(b, f)
		}
		switch {
		case err != nil:
			return err
		case f.GetId() == 0:
			return fmt.Errorf("the socket ends: %v", f.GetStatus())
		case f.GetId() != c.id:
			continue // of a call that was left
		}
		if st := f.GetStatus(); st != nil {
			if c.ended = io.EOF; st.GetCode() != 0 {
				c.ended = clear(int64(st.GetCode()), st.GetMessage())
			}
		}
		switch {
		case f.Binary != nil:
			return proto.Unmarshal(f.GetBinary(), m)
		case f.GetMessage() != nil:
			b, err := protojson.Marshal(f.GetMessage())
			if err != nil {
				return err
			}
			return protojson.Unmarshal(b, m)
		}
	}
	return c.ended
}

// Close implements stream. A call that is left is cancelled; a socket that broke is given up.
func (c *sessionCall) Close() {
	if c.ended == nil && (c.ctx.Err() != nil || c.write(&wsv1.Frame{Cancel: true}) != nil) {
		_ = c.conn.CloseNow()
		c.session.conn = nil
	}
}
