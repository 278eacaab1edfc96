package listeners

import (
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/webtransport-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/transcoder"
)

// wtKeepAlive is how often a silent WebTransport connection is asked for a sign of life.
const wtKeepAlive = 15 * time.Second

// wtServer serves HTTP/3 with WebTransport. It takes the place of http3.Server's own loop, which does not let streams of
// other kinds through.
type wtServer struct {
	wt     webtransport.Server
	server *Server
}

// newWTServer serves the HTTP/3 part of a Server.
func newWTServer(server *Server) *wtServer {
	s := &wtServer{server: server}
	h3 := server.h3
	s.wt.H3 = h3
	s.wt.CheckOrigin = func(*http.Request) bool { return true } // by then it is checked
	h3.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// http3.Server does not know these connections, so a drain waits for their requests as it does for sockets.
		defer server.sockets.add(&countedRequest{})()
		if isWebTransport(r) {
			s.serveSession(w, r)
			return
		}
		server.serve(w, r)
	})
	h3.QUICConfig.EnableDatagrams = true
	h3.QUICConfig.EnableStreamResetPartialDelivery = true
	h3.QUICConfig.KeepAlivePeriod = wtKeepAlive
	return s
}

// countedRequest is a request that a drain waits for; Server's context cuts it. It is not empty, so that each is another.
type countedRequest struct{ _ byte }

func (*countedRequest) goAway()      {}
func (*countedRequest) cutOff(error) {}

// serve serves a connection to its end.
func (s *wtServer) serve(conn *quic.Conn) { _ = s.wt.ServeQUICConn(conn) } // the client's faults

// isWebTransport reports whether r opens a WebTransport session (draft-ietf-webtrans-http3).
func isWebTransport(r *http.Request) bool {
	return r.Method == http.MethodConnect && (r.Proto == "webtransport" || r.Proto == "webtransport-h3")
}

// wtSession is one WebTransport session: each bidirectional stream that the client opens is a call, in frames of
// transom.v1 (docs/websocket.md).
type wtSession struct {
	front   *Front
	session *webtransport.Session
	request *http.Request
	header  metadata.MD
	ctx     context.Context
	cut     context.CancelCauseFunc
	calls   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	open    int
	leaving bool
	idle    *time.Timer // ends a session without calls; nil for never
}

// serveSession runs a session to its end.
func (s *wtServer) serveSession(w http.ResponseWriter, r *http.Request) {
	f := s.server.front.Load()
	refuse := func(err error) {
		v := f.source.Acquire()
		defer v.Release()
		x := &exchange{}
		x.begin(f, w, r, rpc.ProtocolWebTransport, v)
		x.refuseUpgrade(v, err)
	}
	err := f.checkOrigin(r)
	t := &wtSession{front: f}
	if err == nil {
		v := f.source.Acquire()
		t.header, err = restMetadata(v.Edge(), r.Header)
		v.Release()
	}
	if err != nil {
		refuse(err)
		return
	}
	if t.session, err = s.wt.Upgrade(w, r); err != nil {
		refuse(transcoder.HTTPError(http.StatusBadRequest, codes.InvalidArgument, "WebTransport: the session cannot be opened"))
		return
	}
	t.ctx, t.cut = context.WithCancelCause(context.WithoutCancel(r.Context()))
	t.request = r.WithContext(t.ctx)
	if limit := f.cfg.WebSocket.IdleTimeout; limit > 0 {
		t.idle = time.AfterFunc(limit, t.unused)
		defer t.idle.Stop()
	}
	defer s.server.sockets.add(t)()
	for {
		str, err := t.session.AcceptStream(t.session.Context())
		if err != nil {
			break
		}
		t.calls.Go(func() { t.serve(str) })
	}
	t.cut(rpc.ErrClientGone)
	t.calls.Wait()
}

// unused ends a session that has had no call for too long. HTTP/3 keeps it alive by itself.
func (t *wtSession) unused() {
	t.mu.Lock()
	over := t.open == 0
	t.leaving = t.leaving || over
	t.mu.Unlock()
	if over {
		_ = t.session.CloseWithError(closeGoingAway, "the session had no call for too long")
	}
}

// goAway implements member.
func (t *wtSession) goAway() {
	t.mu.Lock()
	t.leaving = true
	idle := t.open == 0
	t.mu.Unlock()
	if idle {
		t.close()
	}
}

// close ends the session. Its code is a WebSocket's.
func (t *wtSession) close() { _ = t.session.CloseWithError(closeGoingAway, errDrained.Error()) }

// cutOff implements member.
func (t *wtSession) cutOff(err error) {
	t.cut(err)
	t.goAway()
}

// enter counts a call in, unless there may be none.
func (t *wtSession) enter() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch limit := t.front.cfg.WebSocket.MaxCalls; {
	case t.leaving:
		return errDrained
	case t.open >= limit:
		return status.Errorf(codes.ResourceExhausted, "a session may have %d calls open at once", limit)
	}
	t.open++
	if t.idle != nil {
		t.idle.Stop()
	}
	return nil
}

// leave counts a call out.
func (t *wtSession) leave() {
	t.mu.Lock()
	t.open--
	last := t.leaving && t.open == 0
	if t.open == 0 && t.idle != nil && !t.leaving {
		t.idle.Reset(t.front.cfg.WebSocket.IdleTimeout)
	}
	t.mu.Unlock()
	if last {
		// The end of a session throws away what its streams still hold, so the last status gets a moment to arrive.
		select {
		case <-t.session.Context().Done():
		case <-time.After(writeGrace):
		}
		t.close()
	}
}

// wtCall is one call of a WebTransport session.
type wtCall struct {
	exchange
	t        *wtSession
	str      *webtransport.Stream
	id       uint32
	text     bool
	plans    *transcoder.Plans
	route    *Route
	requests wsRequests

	// Of the receiving side.
	in       io.Reader
	first    *transcoder.ClientFrame // the opening frame, until its message is received
	ended    bool
	recvDone <-chan struct{}
	recvStop func() bool

	// Of the sending side.
	out       *[]byte
	header    metadata.MD // committed and not sent yet
	trailer   metadata.MD
	committed bool
	sendDone  <-chan struct{}
	sendStop  func() bool
}

// serve runs the call of one stream. A panic over a frame resets the stream, and does not end the process.
func (t *wtSession) serve(str *webtransport.Stream) {
	c := &wtCall{t: t, str: str, in: str}
	defer func() {
		if p := recover(); p != nil {
			_ = panicked(t.front, p)
			str.CancelRead(closeProtocol)
			str.CancelWrite(closeProtocol)
		}
	}()
	v := t.front.source.Acquire()
	defer v.Release()
	c.plans = v.Plans()
	ctx, cut := context.WithCancelCause(t.ctx)
	defer cut(nil)
	// The client's STOP_SENDING, or the end of the connection.
	unfollow := context.AfterFunc(str.Context(), func() { cut(rpc.ErrClientGone) })
	defer unfollow()
	_ = str.SetReadDeadline(time.Now().Add(t.front.cfg.IdleBody))
	f, err := c.frame()
	_ = str.SetReadDeadline(time.Time{})
	if err != nil || f.Open == nil {
		str.CancelRead(closeProtocol)
		str.CancelWrite(closeProtocol)
		return
	}
	c.id, c.first = f.ID, &f
	c.begin(t.front, nil, frameRequest(ctx, t.request, f.Open), rpc.ProtocolWebTransport, v)
	if err = t.enter(); err == nil {
		defer t.leave()
		if c.route, err = c.find(f.Open, v, &c.requests, c.text); err == nil {
			c.call.Header = mergeMetadata(t.header, f.Open.Metadata)
			c.call.Stream = c
			err = t.front.checkMetadata(c.call.Header)
		}
		if err == nil {
			own := *c.route
			own.Handler = func(ctx context.Context, call *rpc.Call) error {
				defer c.disarm()
				return c.route.Handler(ctx, call)
			}
			err = c.run(&own, f.Open.Timeout)
		} else {
			c.info.Fail(rpc.SourceClient)
		}
	}
	c.disarm()
	c.finish(err)
}

// frame reads the client's next frame: a byte, 1 for JSON and 0 for wire form, four of length, and the frame.
func (c *wtCall) frame() (transcoder.ClientFrame, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return transcoder.ClientFrame{}, err
	}
	text := head[0] == 1
	if head[0] > 1 || c.first != nil && text != c.text {
		return transcoder.ClientFrame{}, status.Errorf(codes.InvalidArgument, "frame: a frame begins with %d", head[0])
	}
	if c.first == nil { // later frames are read beside the sending, and have the same form
		c.text = text
	}
	n, limit := int(binary.BigEndian.Uint32(head[1:])), c.t.front.cfg.WebSocket.MaxMessageBytes
	if n > limit {
		return transcoder.ClientFrame{}, status.Error(codes.ResourceExhausted, "message is larger than the limit of "+strconv.Itoa(limit)+" bytes")
	}
	b := make([]byte, 0, min(n, wsStep))
	for len(b) < n {
		step := min(n-len(b), max(wsStep, len(b)))
		b = append(b, make([]byte, step)...)
		if _, err := io.ReadFull(c.in, b[len(b)-step:]); err != nil {
			return transcoder.ClientFrame{}, rpc.ErrClientGone
		}
	}
	return c.plans.ParseFrame(b, text)
}

// disarm lets the end of a context release nothing any more.
func (c *wtCall) disarm() {
	for _, stop := range []func() bool{c.recvStop, c.sendStop} {
		if stop != nil {
			stop()
		}
	}
	c.recvStop, c.sendStop = nil, nil
}

// Recv implements rpc.Stream.
func (c *wtCall) Recv(ctx context.Context) (rpc.Message, error) {
	if c.requests.immediate {
		if c.requests.n > 0 {
			return rpc.Message{}, io.EOF
		}
		return c.received(wsMessage{op: opText})
	}
	if err := rpc.CauseOf(ctx); err != nil {
		return rpc.Message{}, err
	}
	if done := ctx.Done(); done != c.recvDone {
		if c.recvStop != nil {
			c.recvStop()
		}
		c.recvDone = done
		c.recvStop = context.AfterFunc(ctx, func() { _ = c.str.SetReadDeadline(time.Unix(1, 0)) })
	}
	op := opBinary
	if c.text {
		op = opText
	}
	if f := c.first; f.Open != nil {
		c.first = &transcoder.ClientFrame{}
		c.ended = f.End
		if f.HasMessage {
			return c.received(wsMessage{op: op, data: f.Message})
		}
	}
	for !c.ended {
		f, err := c.frame()
		switch {
		case err == io.EOF: // the stream's own end is a half-close too
			c.ended = true
			continue
		case err != nil:
			if cause := rpc.CauseOf(ctx); cause != nil {
				return rpc.Message{}, cause
			}
			c.info.Fail(rpc.SourceClient)
			if rpc.Known(err) {
				return rpc.Message{}, err
			}
			return rpc.Message{}, rpc.ErrClientGone
		case f.Open != nil:
			c.info.Fail(rpc.SourceClient)
			return rpc.Message{}, status.Error(codes.InvalidArgument, "frame: a stream carries one call")
		case f.Cancel:
			c.info.Fail(rpc.SourceClient)
			return rpc.Message{}, rpc.ErrClientGone
		}
		c.ended = f.End
		if f.HasMessage {
			return c.received(wsMessage{op: op, data: f.Message})
		}
	}
	return rpc.Message{}, io.EOF
}

// received turns a payload into a request message.
func (c *wtCall) received(m wsMessage) (rpc.Message, error) {
	if len(m.data) > c.route.MaxMessageBytes {
		c.info.Fail(rpc.SourceClient)
		return rpc.Message{}, status.Errorf(codes.ResourceExhausted, "message is larger than the limit of %d bytes", c.route.MaxMessageBytes)
	}
	began := time.Now()
	msg, err := c.requests.message(m)
	c.info.TranscodeIn += time.Since(began)
	if err != nil {
		c.info.Fail(rpc.SourceClient)
		return msg, err
	}
	c.info.MessagesIn++
	c.info.BytesIn += int64(len(m.data))
	return msg, nil
}

// SendHeader implements rpc.Stream.
func (c *wtCall) SendHeader(md metadata.MD) error {
	if c.committed {
		return rpc.ErrHeaderSent
	}
	if md == nil {
		md = metadata.MD{}
	}
	c.committed, c.header = true, visible(md)
	return nil
}

// add queues a frame that appendFrame makes.
func (c *wtCall) add(appendFrame func(dst []byte) ([]byte, error)) error {
	if c.out == nil {
		c.out = getBuffer()
	}
	start := len(*c.out)
	kind := byte(0)
	if c.text {
		kind = 1
	}
	b, err := appendFrame(append(*c.out, kind, 0, 0, 0, 0))
	if err != nil {
		*c.out = b[:start]
		return err
	}
	*c.out = b
	transcoder.PutFrameHeader(b[start:], kind)
	return nil
}

// write writes what is queued.
func (c *wtCall) write() error {
	if c.out == nil || len(*c.out) == 0 {
		return nil
	}
	_ = c.str.SetWriteDeadline(time.Now().Add(c.front.cfg.IdleWrite))
	_, err := c.str.Write(*c.out)
	putBuffer(c.out)
	c.out = nil
	if err != nil {
		return rpc.ErrClientGone
	}
	return nil
}

// Send implements rpc.Stream.
func (c *wtCall) Send(ctx context.Context, m rpc.Message) error {
	defer m.Release()
	if err := rpc.CauseOf(ctx); err != nil {
		return err
	}
	if done := ctx.Done(); done != c.sendDone {
		if c.sendStop != nil {
			c.sendStop()
		}
		c.sendDone = done
		c.sendStop = context.AfterFunc(ctx, func() { _ = c.str.SetWriteDeadline(time.Now().Add(writeGrace)) })
	}
	if !c.committed {
		c.committed, c.header = true, metadata.MD{}
	}
	began := time.Now()
	err := c.add(func(dst []byte) ([]byte, error) {
		return c.route.Plan.AppendMessageFrame(dst, c.text, c.id, c.header, c.requests.match.Binding, m.Bytes())
	})
	c.info.TranscodeOut += time.Since(began)
	if err != nil {
		return err
	}
	c.header = nil
	c.info.MessagesOut++
	c.info.BytesOut += int64(m.Len())
	if len(*c.out) >= wsWriteLen {
		if c.write() != nil {
			return c.sendError(ctx)
		}
	}
	return nil
}

// Flush implements rpc.Stream.
func (c *wtCall) Flush() error {
	if c.header != nil {
		_ = c.add(func(dst []byte) ([]byte, error) {
			return transcoder.AppendHeaderFrame(dst, c.text, c.id, c.header), nil
		})
		c.header = nil
	}
	return c.write()
}

// SetTrailer implements rpc.Stream.
func (c *wtCall) SetTrailer(md metadata.MD) { c.trailer = visible(md) }

// finish sends the status and ends the stream.
func (c *wtCall) finish(err error) {
	st := rpc.StatusOf(err)
	trailer := withHeaderOf(err, c.trailer)
	_ = c.add(func(dst []byte) ([]byte, error) {
		return c.plans.AppendStatusFrame(dst, c.text, c.id, c.header, st, trailer), nil
	})
	if c.write() == nil {
		_ = c.str.Close()
	} else {
		c.str.CancelWrite(closeNormal)
	}
	c.str.CancelRead(closeNormal)
	c.end(err, st, http.StatusOK)
}
