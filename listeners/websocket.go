package listeners

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/transcoder"
)

// wsStream is a bare WebSocket: the socket is one call. A text frame is one JSON message, a binary frame one protobuf
// message, an empty text frame the half-close, the close code the status (docs/websocket.md).
type wsStream struct {
	wsCall
	route    *Route
	requests wsRequests
	binary   atomic.Bool // the first data frame of the client is binary, and so are the answers
	trailer  metadata.MD
}

// serveWebSocket answers a request to become a WebSocket. It returns when the connection is no longer net/http's: what
// goes on then is a goroutine of the socket's own, so that an idle socket does not hold what net/http has for a request.
// What fails before is answered as plain HTTP.
func (f *Front) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	u, err := f.newUpgrade(r)
	switch {
	case err != nil:
		f.refuseSession(w, r, err)
	case u.protocol == protocolTransom:
		f.serveSession(w, r, u)
	case u.protocol == protocolGRPCWebSockets:
		f.serveGRPCWebSockets(w, r, u)
	default:
		s := &wsStream{}
		s.serve(f, w, r, u, s)
	}
}

// refuseUpgrade answers as plain HTTP, with no redirect, which browsers do not follow for a socket and other clients seldom (RFC 6455
// section 4.1).
func (x *exchange) refuseUpgrade(v View, err error) {
	x.info.Fail(rpc.SourceClient)
	st := rpc.StatusOf(err)
	code := errorStatus(err, st)
	h := x.w.Header()
	x.addHeaderOf(h, err)
	h["Content-Type"], h["Cache-Control"] = jsonType, noStore
	x.w.WriteHeader(code)
	_, _ = x.w.Write(v.Plans().AppendStatus(nil, st, code)) //nolint:gosec // JSON, and said to be
	x.end(err, st, code)
}

// socketCall is a protocol in which a WebSocket is one call.
type socketCall interface {
	rpc.Stream
	// open finds the method and prepares the call. It returns the client's timeout, negative for none.
	open(v View) (*Route, time.Duration, error)
	// ended sends what tells the client how the call ended, and returns the close frame that is to follow.
	ended(err error, st *status.Status) (code int, reason string)
	// isEnd reports whether m is the client's half-close.
	isEnd(m wsMessage) bool
}

// wsCall is what the protocols in which a WebSocket is one call have in common. The upgrade is granted when the handler
// first uses the stream, so that a policy which refuses the call before is answered as plain HTTP.
type wsCall struct {
	exchange
	upgrade upgrade
	socket  socketCall
	view    View
	cut     context.CancelCauseFunc
	// left is closed when ServeHTTP may return: the connection is ours, or the request is answered.
	left     chan struct{}
	unfollow func() bool // stops the end of the HTTP request from ending the call

	once      sync.Once
	granted   bool
	acceptErr error
	conn      *wsConn
	max       int

	// Of the receiving side.
	recvDone   <-chan struct{} // of the context that interrupts reading
	recvStop   func() bool
	sendDone   <-chan struct{} // of the context that hurries writing
	sendStop   func() bool
	committed  bool
	readerWork sync.WaitGroup

	mu      sync.Mutex // guards what follows
	reading bool       // Recv is reading the socket
	ahead   chan wsRead
	over    bool // the handler has returned
	drained bool // the client may send no further message
	halved  bool // its half-close has come
	fault   error
	timer   *time.Timer
}

// wsRead is what reading ahead brought.
type wsRead struct {
	m   wsMessage
	err error
}

// readAheadAfter is how long nobody may receive before the socket is read all the same, one message ahead, so that pings
// are answered and the client's leaving is seen.
const readAheadAfter = 200 * time.Millisecond

// serve starts the call and returns when the connection is taken over, or the request answered.
func (c *wsCall) serve(f *Front, w http.ResponseWriter, r *http.Request, u upgrade, s socketCall) {
	c.view = f.source.Acquire()
	c.begin(f, w, r, rpc.ProtocolWebSocket, c.view)
	c.upgrade, c.socket = u, s
	c.view.Edge().setHeader(w, r)
	route, timeout, err := s.open(c.view)
	if err != nil {
		c.refuseUpgrade(c.view, err)
		c.view.Release()
		return
	}
	c.upgrade.deflate = c.upgrade.deflate && !route.Uncompressed
	c.max = min(route.MaxMessageBytes, f.cfg.WebSocket.MaxMessageBytes)
	c.call.Stream = s
	request := c.Request.Context()
	var ctx context.Context
	ctx, c.cut = context.WithCancelCause(context.WithoutCancel(request))
	c.unfollow = context.AfterFunc(request, func() {
		if cause := context.Cause(request); rpc.Known(cause) && !errors.Is(cause, context.Canceled) {
			c.cut(cause)
			return
		}
		c.cut(rpc.ErrClientGone)
	})
	c.Request = c.Request.WithContext(ctx)
	c.left = make(chan struct{})
	leave := f.sockets.add(c)
	go func() {
		defer leave()
		defer c.view.Release()
		c.finish(c.runDisarmed(route, timeout))
	}()
	<-c.left
}

// runDisarmed runs the call, and disarms before its context is cancelled, whose only meaning is then that it is over.
func (c *wsCall) runDisarmed(route *Route, timeout time.Duration) error {
	own := *route
	own.Handler = func(ctx context.Context, call *rpc.Call) error {
		defer c.disarm()
		return route.Handler(ctx, call)
	}
	return c.run(&own, timeout)
}

// disarm lets the end of a context release nothing any more.
func (c *wsCall) disarm() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	for _, stop := range []func() bool{c.recvStop, c.sendStop} {
		if stop != nil {
			stop()
		}
	}
}

// unlessOver makes f a func that does nothing once the call is over.
func (c *wsCall) unlessOver(f func()) func() {
	return func() {
		c.mu.Lock()
		over := c.over
		c.mu.Unlock()
		if !over {
			f()
		}
	}
}

// goAway implements member: the one call may finish.
func (c *wsCall) goAway() {}

// cutOff implements member.
func (c *wsCall) cutOff(err error) { c.cut(err) }

// accept grants the upgrade, once.
func (c *wsCall) accept() error {
	c.once.Do(func() {
		if !c.unfollow() { // the client left, or the drain is over
			c.acceptErr = rpc.ErrClientGone
			return
		}
		c.conn, c.acceptErr = c.upgrade.grant(c.w, &c.front.cfg.WebSocket, c.max)
		if c.acceptErr != nil {
			c.acceptErr = rpc.ErrClientGone
		}
		c.granted = true
		c.w = nil
		close(c.left)
		if c.acceptErr == nil {
			c.mu.Lock()
			c.timer = time.AfterFunc(readAheadAfter, c.readAhead)
			c.mu.Unlock()
		}
	})
	return c.acceptErr
}

// readAhead starts a goroutine that reads one message, unless somebody reads already.
func (c *wsCall) readAhead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading || c.ahead != nil || c.over || c.fault != nil {
		return
	}
	ahead := make(chan wsRead, 1)
	c.ahead = ahead
	c.readerWork.Go(func() {
		m, err := c.read()
		ahead <- wsRead{m, err}
	})
}

// read reads one message and, when there may be none, makes it a fault. A fault ends the call.
func (c *wsCall) read() (wsMessage, error) {
	for {
		m, err := c.conn.next()
		if err == nil {
			c.mu.Lock()
			drained, halved := c.drained, c.halved
			c.halved = halved || drained
			c.mu.Unlock()
			if !drained {
				return m, nil
			}
			end := c.socket.isEnd(m)
			m.release()
			if end && !halved {
				continue
			}
			err = &wsFault{closePolicy, codes.InvalidArgument, "a message came after the last one that the method takes, or after the half-close"}
		}
		if err != errInterrupted {
			c.mu.Lock()
			c.fault = err
			c.mu.Unlock()
			c.cut(err)
		}
		return wsMessage{}, err
	}
}

// next is the next message from the client.
func (c *wsCall) next(ctx context.Context) (wsMessage, error) {
	if err := c.accept(); err != nil {
		return wsMessage{}, err
	}
	if done := ctx.Done(); done != c.recvDone {
		if c.recvStop != nil {
			c.recvStop()
		}
		c.recvDone = done
		c.recvStop = context.AfterFunc(ctx, c.unlessOver(c.conn.interrupt))
	}
	c.mu.Lock()
	c.timer.Stop()
	if c.fault != nil {
		err := c.fault
		c.mu.Unlock()
		return wsMessage{}, c.recvFault(ctx, err)
	}
	ahead := c.ahead
	c.reading = ahead == nil
	c.mu.Unlock()
	var got wsRead
	if ahead == nil {
		got.m, got.err = c.read()
	} else {
		select {
		case got = <-ahead:
		case <-ctx.Done():
			return wsMessage{}, rpc.CauseOf(ctx)
		}
	}
	c.mu.Lock()
	c.reading, c.ahead = false, nil
	c.timer.Reset(readAheadAfter)
	c.mu.Unlock()
	if got.err != nil {
		return wsMessage{}, c.recvFault(ctx, got.err)
	}
	return got.m, nil
}

// recvFault says what a failed read means to the call.
func (c *wsCall) recvFault(ctx context.Context, err error) error {
	if err == errInterrupted {
		return rpc.CauseOf(ctx)
	}
	c.info.Fail(rpc.SourceClient)
	return err
}

// lastMessage says that the client has sent all that it may. halved: its half-close was seen.
func (c *wsCall) lastMessage(halved bool) {
	c.mu.Lock()
	c.drained, c.halved = true, c.halved || halved
	c.mu.Unlock()
}

// commit is the first of SendHeader and Send.
func (c *wsCall) commit(ctx context.Context) error {
	if err := c.accept(); err != nil {
		return err
	}
	if ctx == nil {
		return nil
	}
	if done := ctx.Done(); done != c.sendDone {
		if c.sendStop != nil {
			c.sendStop()
		}
		c.sendDone = done
		c.sendStop = context.AfterFunc(ctx, c.unlessOver(c.conn.hurry))
	}
	return nil
}

// write queues one message.
func (c *wsCall) write(ctx context.Context, op wsOp, parts ...[]byte) error {
	if err := c.conn.send(ctx.Done(), op, false, parts...); err != nil {
		return c.sendError(ctx)
	}
	return nil
}

// Flush implements rpc.Stream.
func (c *wsCall) Flush() error {
	if !c.committed {
		return nil
	}
	return c.conn.flush()
}

// finish closes the socket with the status, or answers the request as plain HTTP if it was never granted.
func (c *wsCall) finish(err error) {
	c.once.Do(func() { c.unfollow() })
	c.cut(nil)
	if !c.granted {
		if err == nil {
			err = status.Error(codes.Internal, "the call ended before it began")
		}
		c.refuseUpgrade(c.view, err)
		close(c.left)
		return
	}
	st := rpc.StatusOf(err)
	if c.conn != nil {
		c.closeSocket(err, st)
	}
	c.end(err, st, http.StatusSwitchingProtocols)
}

// closeSocket ends the reading and closes.
func (c *wsCall) closeSocket(err error, st *status.Status) {
	c.mu.Lock()
	c.timer.Stop()
	fault := c.fault
	c.mu.Unlock()
	c.conn.interrupt()
	code, reason := c.socket.ended(err, st)
	f, ok := errors.AsType[*wsFault](fault)
	if !ok {
		f, ok = errors.AsType[*wsFault](err)
	}
	if ok && err != nil {
		code, reason = f.close, f.reason
	} else if errors.Is(err, errDrained) {
		code = closeGoingAway
	}
	c.readerWork.Wait()
	c.conn.close(code, reason)
	if c.ahead != nil {
		(<-c.ahead).m.release()
	}
}

// open implements socketCall.
func (s *wsStream) open(v View) (*Route, time.Duration, error) {
	r := s.Request
	m, ok := methodOf(r, v)
	if !ok {
		match, err := matchAnyVerb(v, r.URL.EscapedPath(), v.Edge().version(r.Header))
		if err != nil {
			return nil, 0, s.routeFault(v, r.Method, err)
		}
		m = match.Binding.Method
		s.info.Binding = match.Binding
		s.requests = newRequests(v, match, r.URL.RawQuery)
	}
	s.call.Method = m
	s.route = v.Route(m)
	if s.route.Plan == nil {
		return nil, 0, transcoder.HTTPError(http.StatusNotFound, codes.Unimplemented, "a method without a schema cannot be called by WebSocket")
	}
	s.requests.plan = s.route.Plan
	timeout := time.Duration(-1)
	var err error
	if t := r.Header.Get("Grpc-Timeout"); t != "" {
		if timeout, err = grpcwire.ParseTimeout(t); err != nil {
			return nil, 0, err
		}
	}
	s.call.Header, err = restMetadata(v.Edge(), s.upgrade.authorize(r.Header))
	return s.route, timeout, err
}

// matchAnyVerb finds the rule of a path opened as WebSocket, whose own HTTP method is always GET: the rule for GET, else
// for the first method that the path has. A rule that has the path's custom verb comes before one for GET that takes it
// for a part of a variable.
func matchAnyVerb(v View, path, version string) (descriptors.Match, error) {
	m, err := v.MatchHTTP(http.MethodGet, path, version)
	if none, ok := errors.AsType[*descriptors.NoRouteError](err); ok && len(none.Allow) > 0 {
		return v.MatchHTTP(none.Allow[0], path, version)
	}
	colon := strings.LastIndexByte(path, ':')
	if err != nil || colon < strings.LastIndexByte(path, '/') || strings.HasSuffix(m.Binding.Template, path[colon:]) {
		return m, err
	}
	for _, verb := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if other, err := v.MatchHTTP(verb, path, version); err == nil && strings.HasSuffix(other.Binding.Template, path[colon:]) {
			return other, nil
		}
	}
	return m, nil
}

// isEnd implements socketCall.
func (s *wsStream) isEnd(m wsMessage) bool { return m.op == opText && len(m.data) == 0 }

// Recv implements rpc.Stream.
func (s *wsStream) Recv(ctx context.Context) (rpc.Message, error) {
	if s.requests.immediate && s.requests.n == 0 {
		return s.received(wsMessage{op: opText}) // before the upgrade: what it is refused for is answered in plain HTTP
	}
	if s.requests.over || s.requests.n > 0 && !s.call.Method.ClientStreams {
		if err := s.accept(); err != nil {
			return rpc.Message{}, err
		}
		s.lastMessage(false)
		return rpc.Message{}, io.EOF
	}
	m, err := s.next(ctx)
	if err != nil {
		return rpc.Message{}, err
	}
	if s.isEnd(m) {
		s.requests.over = true
		s.lastMessage(true)
		return rpc.Message{}, io.EOF
	}
	if s.requests.n == 0 {
		s.binary.Store(m.op == opBinary)
	}
	return s.received(m)
}

// received turns one frame into a request message.
func (s *wsStream) received(m wsMessage) (rpc.Message, error) {
	s.info.BytesIn += int64(len(m.data))
	began := time.Now()
	msg, err := s.requests.message(m)
	s.info.TranscodeIn += time.Since(began)
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return msg, err
	}
	s.info.MessagesIn++
	return msg, nil
}

// SendHeader implements rpc.Stream. A bare socket has no place for response metadata.
func (s *wsStream) SendHeader(metadata.MD) error {
	if s.committed {
		return rpc.ErrHeaderSent
	}
	s.committed = true
	return s.commit(nil) //nolint:staticcheck // a nil context: nothing to wait for
}

// SetTrailer implements rpc.Stream. A bare socket has no place for it.
func (s *wsStream) SetTrailer(md metadata.MD) { s.trailer = md }

// Send implements rpc.Stream.
func (s *wsStream) Send(ctx context.Context, m rpc.Message) error {
	defer m.Release()
	if err := rpc.CauseOf(ctx); err != nil {
		return err
	}
	s.committed = true
	if err := s.commit(ctx); err != nil {
		return err
	}
	s.info.MessagesOut++
	if s.binary.Load() {
		s.info.BytesOut += int64(m.Len())
		return s.write(ctx, opBinary, m.Bytes())
	}
	b := getBuffer()
	defer putBuffer(b)
	began := time.Now()
	var err error
	*b, err = s.route.Plan.AppendResponse(*b, s.requests.match.Binding, m.Bytes())
	s.info.TranscodeOut += time.Since(began)
	if err != nil {
		return err
	}
	s.info.BytesOut += int64(len(*b))
	return s.write(ctx, opText, *b)
}

// ended implements socketCall: 1000 for OK, else 4000 + code, the message as reason.
func (s *wsStream) ended(_ error, st *status.Status) (int, string) {
	if st.Code() == codes.OK {
		return closeNormal, ""
	}
	return closeStatus + int(st.Code()), st.Message()
}

// wsRequests turns what a client sends on a WebSocket into the request messages of one call.
type wsRequests struct {
	plan     *transcoder.Plan
	match    descriptors.Match // Binding is nil for a call by RPC path
	rawQuery string
	// immediate: path and query are the whole request, no message is waited for.
	immediate bool
	// whole: the rule has no body and the method takes several requests, so that each frame is all of one.
	whole bool
	n     int
	over  bool
}

// newRequests is for a call by the HTTP rule that matched.
func newRequests(v View, match descriptors.Match, rawQuery string) wsRequests {
	m := match.Binding.Method
	bodyless := match.Binding.Body == descriptors.BodyNone
	return wsRequests{
		plan: v.Route(m).Plan, match: match, rawQuery: rawQuery,
		immediate: bodyless && !m.ClientStreams, whole: bodyless && m.ClientStreams,
	}
}

// message makes a request message of one frame's payload, JSON in a text frame and protobuf in a binary one. It consumes
// m. What path and query hold goes into the first message.
func (q *wsRequests) message(m wsMessage) (rpc.Message, error) {
	first := q.n == 0 && q.match.Binding != nil
	if m.op == opBinary && !first {
		q.n++
		return m.take(), nil
	}
	defer m.release()
	var wire []byte
	var err error
	switch {
	case m.op == opBinary:
		wire = append(wire, m.data...)
	case q.match.Binding != nil && !q.whole:
		wire, err = q.plan.AppendBody(nil, q.match.Binding, "", m.data)
	default:
		wire, err = q.plan.AppendMessage(nil, m.data)
	}
	if err == nil && first {
		wire, err = q.plan.AppendQueryAndPath(wire, &q.match, q.rawQuery)
	}
	if err != nil {
		return rpc.Message{}, err
	}
	q.n++
	return rpc.NewMessage(wire), nil
}

// member is an open socket, as a drain sees it.
type member interface {
	// goAway asks for the end: what is open may finish, nothing new may begin.
	goAway()
	// cutOff ends what is open with err.
	cutOff(err error)
}

// sockets are the open WebSockets of a Front, which net/http no longer knows of.
type sockets struct {
	mu      sync.Mutex
	open    map[member]struct{}
	leaving bool
	idle    chan struct{} // closed when none is open; nil while nobody waits
}

// add counts one in; the returned func counts it out.
func (s *sockets) add(m member) func() {
	s.mu.Lock()
	if s.open == nil {
		s.open = map[member]struct{}{}
	}
	s.open[m] = struct{}{}
	leaving := s.leaving
	s.mu.Unlock()
	if leaving {
		m.goAway()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, m)
		if len(s.open) == 0 && s.idle != nil {
			close(s.idle)
			s.idle = nil
		}
	}
}

// count is how many are open.
func (s *sockets) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// members lists who is open.
func (s *sockets) members() []member {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]member, 0, len(s.open))
	for m := range s.open {
		list = append(list, m)
	}
	return list
}

// goAway asks all sockets, and those that come later, to end.
func (s *sockets) goAway() {
	s.mu.Lock()
	s.leaving = true
	s.mu.Unlock()
	for _, m := range s.members() {
		m.goAway()
	}
}

// cutOff ends all sockets.
func (s *sockets) cutOff(err error) {
	for _, m := range s.members() {
		m.cutOff(err)
	}
}

// wait returns when no WebSocket is open, or with the error of ctx.
func (s *sockets) wait(ctx context.Context) error {
	s.mu.Lock()
	if len(s.open) == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
