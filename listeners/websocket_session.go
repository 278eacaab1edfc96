package listeners

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/transcoder"
)

// session is a socket of the subprotocol transom.v1, which carries several calls (docs/websocket.md). One goroutine reads;
// it never waits for a call, since a call's client must have credit for what it sends. Each call runs in a goroutine of its
// own and writes to the queue of the socket.
type session struct {
	front   *Front
	conn    *wsConn
	request *http.Request // the upgrade
	header  metadata.MD   // what the upgrade carried; shared, never changed
	ctx     context.Context
	cut     context.CancelCauseFunc
	work    sync.WaitGroup

	// Of the reader.
	begun bool // a frame has come, so that text is known
	last  uint32

	mu      sync.Mutex // guards what follows, and begun and text for others than the reader
	text    bool
	calls   map[uint32]*sessionCall
	held    int // bytes of messages that came and were not received
	leaving bool
}

// heldMessages is how many messages of the largest size all calls of a socket may hold together. When it is passed, the call
// that holds the most is ended, so that one which is not served cannot stop the others.
const heldMessages = transcoder.EnvelopeWindow + 4

// serveSession takes over a socket for transom.v1. It returns when the connection is no longer net/http's.
func (f *Front) serveSession(w http.ResponseWriter, r *http.Request, u upgrade) {
	v := f.source.Acquire()
	header, err := restMetadata(v.Edge(), u.authorize(r.Header))
	v.Release()
	var conn *wsConn
	if err == nil {
		conn, err = u.grant(w, &f.cfg.WebSocket, f.cfg.WebSocket.MaxMessageBytes)
	}
	if err != nil {
		f.refuseSession(w, r, err)
		return
	}
	conn.async = true
	s := &session{front: f, conn: conn, header: header, calls: map[uint32]*sessionCall{}}
	s.ctx, s.cut = context.WithCancelCause(context.WithoutCancel(r.Context()))
	s.request = r.WithContext(s.ctx)
	leave := f.sockets.add(s)
	go func() {
		defer leave()
		s.run()
	}()
}

// refuseSession answers as plain HTTP.
func (f *Front) refuseSession(w http.ResponseWriter, r *http.Request, err error) {
	v := f.source.Acquire()
	defer v.Release()
	x := &exchange{}
	x.begin(f, w, r, rpc.ProtocolWebSocket, v)
	x.refuseUpgrade(v, err)
}

// run reads to the end of the socket and closes it.
func (s *session) run() {
	err := s.readSafely()
	fault, _ := errors.AsType[*wsFault](err)
	switch {
	case fault != nil:
		s.cut(fault)
	case err == errInterrupted:
		s.cut(errDrained)
	default:
		s.cut(rpc.ErrClientGone)
	}
	s.conn.lastWrites()
	s.work.Wait() // each call has sent its status
	if fault == nil {
		s.conn.close(closeGoingAway, errDrained.Error())
		return
	}
	if s.begun && fault.close != closeGoingAway {
		s.sendStatus(nil, fault.GRPCStatus())
	}
	s.conn.close(fault.close, fault.reason)
}

// readSafely is read. A panic ends the socket, and not the process.
func (s *session) readSafely() (err error) {
	defer func() {
		if p := recover(); p != nil {
			_ = panicked(s.front, p)
			err = &wsFault{closeStatus + int(codes.Internal), codes.Internal, "internal error"}
		}
	}()
	return s.read()
}

// read reads frames until the socket ends.
func (s *session) read() error {
	for {
		m, err := s.conn.next()
		if err != nil {
			return err
		}
		text := m.op == opText
		if !s.begun {
			s.mu.Lock()
			s.begun, s.text = true, text
			s.mu.Unlock()
		} else if text != s.text {
			m.release()
			return &wsFault{closeUnsupported, codes.InvalidArgument, "a socket has either text frames or binary frames"}
		}
		v := s.front.source.Acquire()
		f, err := v.Plans().ParseFrame(m.data, text)
		if err != nil {
			v.Release()
			m.release()
			return protocolFault(rpc.StatusOf(err).Message())
		}
		if err := s.frame(f, m, v); err != nil {
			return err
		}
	}
}

// frame carries out one frame. It consumes m and v.
func (s *session) frame(f transcoder.ClientFrame, m wsMessage, v View) error {
	var c *sessionCall
	if f.Open == nil {
		v.Release()
		if f.ID == 0 || f.ID > s.last {
			m.release()
			return protocolFault(fmt.Sprintf("frame: no call has id %d", f.ID))
		}
		s.mu.Lock()
		c = s.calls[f.ID]
		s.mu.Unlock()
		if c == nil { // it has ended
			m.release()
			return nil
		}
	} else {
		if f.ID <= s.last {
			v.Release()
			m.release()
			return protocolFault(fmt.Sprintf("frame: open with id %d, which is not larger than %d", f.ID, s.last))
		}
		s.last = f.ID
		if c = s.open(f.ID, f.Open, v); c == nil {
			m.release()
			return nil
		}
	}
	if f.HasMessage {
		if err := s.deliver(c, f.Message, m); err != nil {
			return err
		}
	} else {
		m.release()
	}
	if f.End {
		c.mu.Lock()
		c.ended = true
		c.mu.Unlock()
		signal(c.arrived)
	}
	if f.Credit > 0 {
		c.mu.Lock()
		c.credit = min(c.credit+int64(f.Credit), math.MaxInt32)
		c.mu.Unlock()
		signal(c.credited)
	}
	if f.Cancel {
		c.cut(rpc.ErrClientGone)
	}
	return nil
}

// open begins a call, or answers that it cannot begin and returns nil. It consumes v.
func (s *session) open(id uint32, o *transcoder.Open, v View) *sessionCall {
	c := &sessionCall{
		s: s, id: id, view: v, window: transcoder.EnvelopeWindow, credit: int64(o.Window),
		arrived: make(chan struct{}, 1), credited: make(chan struct{}, 1),
	}
	var ctx context.Context
	ctx, c.cut = context.WithCancelCause(s.ctx)
	c.begin(s.front, nil, frameRequest(ctx, s.request, o), rpc.ProtocolWebSocket, v)
	var err error
	c.route, err = c.find(o, v, &c.requests, s.text)
	if err == nil {
		c.call.Header = mergeMetadata(s.header, o.Metadata)
		c.call.Stream = c
		err = s.front.checkMetadata(c.call.Header)
	}
	if err == nil {
		err = s.admit(c)
	} else {
		c.info.Fail(rpc.SourceClient)
	}
	if err != nil {
		c.finish(err)
		return nil
	}
	s.work.Go(func() {
		c.finish(c.run(c.route, o.Timeout))
	})
	return c
}

// admit puts c among the open calls.
func (s *session) admit(c *sessionCall) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.leaving:
		return errDrained
	case len(s.calls) >= s.front.cfg.WebSocket.MaxCalls:
		return status.Errorf(codes.ResourceExhausted, "a socket may have %d calls open at once", s.front.cfg.WebSocket.MaxCalls)
	}
	s.calls[c.id] = c
	return nil
}

// mergeMetadata is what the upgrade carried with what the call carries, which wins. The result belongs to the call.
func mergeMetadata(base, own metadata.MD) metadata.MD {
	if len(base) == 0 {
		return own
	}
	md := make(metadata.MD, len(base)+len(own))
	maps.Copy(md, base)
	maps.Copy(md, own)
	return md
}

// deliver queues a message for a call. It consumes m, in which payload lies. The error is a fault of the socket.
func (s *session) deliver(c *sessionCall, payload []byte, m wsMessage) error {
	c.mu.Lock()
	switch {
	case c.over:
		c.mu.Unlock()
		m.release()
		return nil
	case c.ended:
		c.mu.Unlock()
		m.release()
		return protocolFault(fmt.Sprintf("frame: a message after the end of call %d", c.id))
	case c.window == 0:
		c.mu.Unlock()
		m.release()
		return protocolFault(fmt.Sprintf("frame: a message without credit on call %d", c.id))
	}
	c.window--
	n := len(m.data)
	m.data = payload
	c.queue = append(c.queue, queued{m, n})
	c.held += n
	c.mu.Unlock()
	signal(c.arrived)
	s.mu.Lock()
	s.held += n
	tooMuch := s.held > heldMessages*s.front.cfg.WebSocket.MaxMessageBytes
	s.mu.Unlock()
	if tooMuch {
		s.relieve()
	}
	return nil
}

// relieve ends the call that holds the most.
func (s *session) relieve() {
	s.mu.Lock()
	var most *sessionCall
	held := -1
	for _, c := range s.calls {
		c.mu.Lock()
		if !c.over && c.held > held {
			most, held = c, c.held
		}
		c.mu.Unlock()
	}
	s.mu.Unlock()
	if most != nil {
		most.cut(status.Error(codes.ResourceExhausted, "too many messages on this socket wait to be received, most of them of this call"))
		most.drop()
	}
}

// release counts n bytes out.
func (s *session) release(n int) {
	s.mu.Lock()
	s.held -= n
	s.mu.Unlock()
}

// op is the kind of frame of this socket.
func (s *session) op() wsOp {
	if s.text {
		return opText
	}
	return opBinary
}

// sendStatus says that the socket takes no further call, and why. It gives up when done, if there is no room.
func (s *session) sendStatus(done <-chan struct{}, st *status.Status) {
	v := s.front.source.Acquire()
	defer v.Release()
	s.sendEnd(done, false, v.Plans().AppendStatusFrame(nil, s.text, 0, nil, st, nil))
}

// sendEnd sends the last frame of a call, or of the socket, plain as it is.
func (s *session) sendEnd(done <-chan struct{}, plain bool, frame []byte) {
	if s.conn.send(done, s.op(), plain, frame) == nil {
		_ = s.conn.flush()
	}
}

// goAway implements member: it tells the client, and ends the socket with its last call.
func (s *session) goAway() {
	s.mu.Lock()
	s.leaving = true
	begun, idle := s.begun, len(s.calls) == 0
	s.mu.Unlock()
	if begun {
		s.sendStatus(closedChan(), status.Convert(errDrained)) // if there is room
	}
	if idle {
		s.conn.interrupt()
	}
}

// closedChan makes a wait end at once.
func closedChan() <-chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}

// cutOff implements member.
func (s *session) cutOff(err error) {
	s.cut(err)
	s.conn.interrupt()
}

// sessionCall is one call of a session.
type sessionCall struct {
	exchange
	s        *session
	id       uint32
	view     View
	route    *Route
	requests wsRequests
	cut      context.CancelCauseFunc

	// Of the sending side.
	header    metadata.MD // committed and not sent yet
	trailer   metadata.MD
	committed bool

	// arrived and credited have an element when there may be something new to receive, and credit to send.
	arrived, credited chan struct{}

	mu     sync.Mutex // guards what follows
	queue  []queued
	held   int   // bytes of queue
	window int   // messages that the client may still send
	owed   int   // messages received for which no credit was given yet
	credit int64 // messages that may be sent
	ended  bool  // the client has half-closed
	over   bool  // nothing is queued any more
}

// queued is a message with the length that it counts for.
type queued struct {
	wsMessage
	n int
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// frameRequest is base as if it had been the HTTP request of a call that a frame opened, for observers.
func frameRequest(ctx context.Context, base *http.Request, o *transcoder.Open) *http.Request {
	r := base.WithContext(ctx)
	r.Method = http.MethodPost
	r.URL = &url.URL{Path: o.Method}
	if o.Path != "" {
		r.Method = o.Verb
		r.URL.RawPath, r.URL.RawQuery, _ = strings.Cut(o.Path, "?")
		r.URL.Path = r.URL.RawPath
	}
	return r
}

// find looks up what a call that a frame opened is of, and sets up its requests.
func (x *exchange) find(o *transcoder.Open, v View, requests *wsRequests, text bool) (*Route, error) {
	if o.Err != nil {
		return nil, o.Err
	}
	if o.Method != "" {
		m, ok := v.Method(o.Method)
		if !ok {
			return nil, x.missing(v, status.Errorf(codes.Unimplemented, "unknown method %s", o.Method))
		}
		x.call.Method = m
	} else {
		path, query, _ := strings.Cut(o.Path, "?")
		match, err := v.MatchHTTP(o.Verb, path, v.Edge().versionOfFrame(o.Metadata, x.Request.Header))
		if err != nil {
			return nil, x.routeFault(v, o.Verb, err)
		}
		x.call.Method = match.Binding.Method
		x.info.Binding = match.Binding
		*requests = newRequests(v, match, query)
	}
	route := v.Route(x.call.Method)
	if route.Plan == nil && text {
		return nil, status.Error(codes.Unimplemented, "JSON needs a schema, and this method has none")
	}
	requests.plan = route.Plan
	return route, nil
}

// Recv implements rpc.Stream.
func (c *sessionCall) Recv(ctx context.Context) (rpc.Message, error) {
	if c.requests.immediate {
		if c.requests.n > 0 {
			return rpc.Message{}, io.EOF
		}
		return c.received(wsMessage{op: opText})
	}
	for {
		if err := rpc.CauseOf(ctx); err != nil {
			return rpc.Message{}, err
		}
		c.mu.Lock()
		if len(c.queue) > 0 {
			m := c.queue[0]
			c.queue[0] = queued{}
			if c.queue = c.queue[1:]; len(c.queue) == 0 {
				c.queue = nil
			}
			c.held -= m.n
			give := 0
			if c.owed++; c.owed >= transcoder.EnvelopeWindow/2 && !c.ended {
				give, c.owed = c.owed, 0
				c.window += give
			}
			c.mu.Unlock()
			c.s.release(m.n)
			if give > 0 {
				c.giveCredit(ctx, uint32(give))
			}
			return c.received(m.wsMessage)
		}
		ended := c.ended
		c.mu.Unlock()
		if ended {
			return rpc.Message{}, io.EOF
		}
		select {
		case <-c.arrived:
		case <-ctx.Done():
		}
	}
}

// giveCredit lets the client send n further messages. If that fails the socket is about to end.
func (c *sessionCall) giveCredit(ctx context.Context, n uint32) {
	var buf [48]byte
	if c.s.conn.send(ctx.Done(), c.s.op(), true, transcoder.AppendCreditFrame(buf[:0], c.s.text, c.id, n)) == nil {
		_ = c.s.conn.flush()
	}
}

// received turns a payload into a request message.
func (c *sessionCall) received(m wsMessage) (rpc.Message, error) {
	if len(m.data) > c.route.MaxMessageBytes {
		m.release()
		c.info.Fail(rpc.SourceClient)
		return rpc.Message{}, status.Errorf(codes.ResourceExhausted, "message is larger than the limit of %d bytes", c.route.MaxMessageBytes)
	}
	n := len(m.data)
	if m.op == opBinary && m.pool != nil { // the payload is not all of the pooled buffer
		b := append(make([]byte, 0, n), m.data...)
		m.release()
		m = wsMessage{op: opBinary, data: b}
	}
	began := time.Now()
	msg, err := c.requests.message(m)
	c.info.TranscodeIn += time.Since(began)
	if err != nil {
		c.info.Fail(rpc.SourceClient)
		return msg, err
	}
	c.info.MessagesIn++
	c.info.BytesIn += int64(n)
	return msg, nil
}

// SendHeader implements rpc.Stream.
func (c *sessionCall) SendHeader(md metadata.MD) error {
	if c.committed {
		return rpc.ErrHeaderSent
	}
	if md == nil {
		md = metadata.MD{}
	}
	c.committed, c.header = true, visible(md)
	return nil
}

// visible is md without what only native gRPC clients may see.
func visible(md metadata.MD) metadata.MD {
	if _, ok := md[loadReport]; ok {
		md = md.Copy()
		delete(md, loadReport)
	}
	return md
}

// withHeaderOf is a call's trailer with the metadata that a refusal comes with, which has no other place in a frame of the end.
func withHeaderOf(err error, trailer metadata.MD) metadata.MD {
	md := rpc.HeaderOf(err)
	if md == nil {
		return trailer
	}
	maps.Copy(md, trailer)
	return md
}

// loadReport is ORCA's.
const loadReport = "endpoint-load-metrics-bin"

// Send implements rpc.Stream. It waits for the client's credit.
func (c *sessionCall) Send(ctx context.Context, m rpc.Message) error {
	defer m.Release()
	if !c.committed {
		c.committed, c.header = true, metadata.MD{}
	}
	for {
		if err := rpc.CauseOf(ctx); err != nil {
			return err
		}
		c.mu.Lock()
		ok := c.credit > 0
		if ok {
			c.credit--
		}
		c.mu.Unlock()
		if ok {
			break
		}
		if err := c.Flush(); err != nil { // the client can give none for what it has not got
			return err
		}
		select {
		case <-c.credited:
		case <-ctx.Done():
		}
	}
	b := getBuffer()
	defer putBuffer(b)
	began := time.Now()
	var err error
	*b, err = c.route.Plan.AppendMessageFrame(*b, c.s.text, c.id, c.header, c.requests.match.Binding, m.Bytes())
	c.info.TranscodeOut += time.Since(began)
	if err != nil {
		return err
	}
	c.header = nil
	c.info.MessagesOut++
	c.info.BytesOut += int64(m.Len())
	if c.s.conn.send(ctx.Done(), c.s.op(), c.route.Uncompressed, *b) != nil {
		return c.sendError(ctx)
	}
	return nil
}

// Flush implements rpc.Stream.
func (c *sessionCall) Flush() error {
	if c.header != nil {
		b := getBuffer()
		defer putBuffer(b)
		*b = transcoder.AppendHeaderFrame(*b, c.s.text, c.id, c.header)
		c.header = nil
		if c.s.conn.send(c.Request.Context().Done(), c.s.op(), c.route.Uncompressed, *b) != nil {
			return rpc.ErrClientGone
		}
	}
	return c.s.conn.flush()
}

// SetTrailer implements rpc.Stream.
func (c *sessionCall) SetTrailer(md metadata.MD) { c.trailer = visible(md) }

// drop lets go of what is queued, for good.
func (c *sessionCall) drop() {
	c.mu.Lock()
	c.over = true
	n := c.held
	for _, m := range c.queue {
		m.release()
	}
	c.queue, c.held = nil, 0
	c.mu.Unlock()
	c.s.release(n)
}

// finish sends the status, which is a call's last frame, and lets go of everything.
func (c *sessionCall) finish(err error) {
	c.cut(nil)
	st := rpc.StatusOf(err)
	b := getBuffer()
	*b = c.view.Plans().AppendStatusFrame(*b, c.s.text, c.id, c.header, st, withHeaderOf(err, c.trailer))
	c.s.sendEnd(nil, c.route != nil && c.route.Uncompressed, *b)
	putBuffer(b)
	c.drop()
	c.s.mu.Lock()
	delete(c.s.calls, c.id)
	last := c.s.leaving && len(c.s.calls) == 0
	c.s.mu.Unlock()
	c.end(err, st, http.StatusSwitchingProtocols)
	c.view.Release()
	if last {
		c.s.conn.interrupt()
	}
}
