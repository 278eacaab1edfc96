package listeners

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/transcoder"
)

// wsStream is a bare WebSocket: the socket is one call. A text frame is one JSON message, a binary frame one protobuf
// message, an empty text frame the half-close, the close code the status (docs/websocket.md).
type wsStream struct {
	exchange
	conn  *websocket.Conn
	route *Route
	match descriptors.Match // Binding is nil for a call by RPC path
	// immediate: path and query are the whole request, no frame is waited for.
	immediate bool
	recv      int
	frames    chan wsFrame
	stop      context.CancelFunc
	reader    sync.WaitGroup
	// The client's first data frame decides the form of answers; text until then.
	mu      sync.Mutex
	binary  bool
	out     *[]byte
	trailer metadata.MD
	sent    bool
}

// wsFrame is what the reader goroutine hands over: one message, or the error that ended the reading.
type wsFrame struct {
	typ  websocket.MessageType
	data []byte
	err  error
}

// isWebSocket reports whether r asks for an upgrade to WebSocket (RFC 6455 section 4.2.1).
func isWebSocket(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.Method == http.MethodGet && r.Header["Upgrade"] != nil &&
		strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// serveWebSocket runs a WebSocket. What fails before the upgrade is answered as plain HTTP.
func (f *Front) serveWebSocket(w http.ResponseWriter, r *http.Request, v View) {
	s := &wsStream{}
	s.begin(f, w, r, rpc.ProtocolWebSocket)
	timeout, err := s.open(v)
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		st, code := rpc.StatusOf(err), transcoder.HTTPStatusOf(err)
		w.Header()["Content-Type"] = jsonType
		w.WriteHeader(code)
		_, _ = w.Write(v.Plans().AppendStatus(nil, st, code))
		s.end(err, st, code)
		return
	}
	s.conn, err = websocket.Accept(w, r, &websocket.AcceptOptions{OriginPatterns: f.cfg.Origins, CompressionMode: websocket.CompressionDisabled})
	if err != nil { // Accept has answered
		s.info.Fail(rpc.SourceClient)
		s.end(err, status.New(codes.InvalidArgument, err.Error()), http.StatusBadRequest)
		return
	}
	defer f.sockets.add()()
	s.conn.SetReadLimit(int64(s.route.MaxMessageBytes))
	s.read()
	err = s.run(s.route, timeout)
	s.finish(err)
}

// open finds the method and prepares the call.
func (s *wsStream) open(v View) (time.Duration, error) {
	r := s.Request
	m, ok := v.Method(r.URL.Path)
	if !ok {
		var err error
		if s.match, err = matchAnyVerb(v, r.URL.EscapedPath()); err != nil {
			return 0, routeFault(r.Method, err)
		}
		b := s.match.Binding
		m = b.Method
		s.info.Binding = b
		s.immediate = b.Body == descriptors.BodyNone && !m.ClientStreams
	}
	s.call.Method = m
	s.route = v.Route(m)
	if s.route.Plan == nil {
		return 0, transcoder.HTTPError(http.StatusNotFound, codes.Unimplemented, "a method without a schema cannot be called by WebSocket")
	}
	timeout := time.Duration(-1)
	var err error
	if t := r.Header.Get("Grpc-Timeout"); t != "" {
		if timeout, err = transcoder.ParseTimeout(t); err != nil {
			return 0, err
		}
	}
	if s.call.Header, err = s.front.restMetadata(r.Header); err != nil {
		return 0, err
	}
	s.call.Peer = peerOf(r)
	s.call.Stream = s
	return timeout, nil
}

// matchAnyVerb finds the rule of a path opened as WebSocket, whose own verb is always GET: the rule for GET, else for the
// first verb that the path has.
func matchAnyVerb(v View, path string) (descriptors.Match, error) {
	m, err := v.MatchHTTP(http.MethodGet, path)
	if none, ok := errors.AsType[*descriptors.NoRouteError](err); ok && len(none.Allow) > 0 {
		return v.MatchHTTP(none.Allow[0], path)
	}
	return m, err
}

// read starts the reader. Its context is its own: cancelling a read would close the socket and lose the final status.
func (s *wsStream) read() {
	s.frames = make(chan wsFrame)
	ctx, stop := context.WithCancel(context.WithoutCancel(s.Request.Context()))
	call, cut := context.WithCancelCause(s.Request.Context())
	s.Request = s.Request.WithContext(call)
	s.stop = stop
	s.reader.Go(func() {
		for {
			typ, data, err := s.conn.Read(ctx)
			if err != nil {
				// The client is gone; end the call even if it is not receiving.
				cut(rpc.ErrClientGone)
			}
			select {
			case s.frames <- wsFrame{typ, data, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
}

// Recv implements rpc.Stream.
func (s *wsStream) Recv(ctx context.Context) (rpc.Message, error) {
	if s.immediate {
		if s.recv > 0 {
			return rpc.Message{}, io.EOF
		}
		return s.message(websocket.MessageText, nil)
	}
	if s.recv < 0 || s.recv > 0 && !s.call.Method.ClientStreams {
		return rpc.Message{}, io.EOF
	}
	select {
	case f := <-s.frames:
		switch {
		case f.err != nil:
			s.info.Fail(rpc.SourceClient)
			if errors.Is(f.err, websocket.ErrMessageTooBig) {
				return rpc.Message{}, status.Errorf(codes.ResourceExhausted, "message is larger than the limit of %d bytes", s.route.MaxMessageBytes)
			}
			return rpc.Message{}, rpc.ErrClientGone
		case f.typ == websocket.MessageText && len(f.data) == 0:
			s.recv = -1
			return rpc.Message{}, io.EOF
		}
		return s.message(f.typ, f.data)
	case <-ctx.Done():
		return rpc.Message{}, rpc.CauseOf(ctx)
	}
}

// message turns one frame into a request message.
func (s *wsStream) message(typ websocket.MessageType, data []byte) (rpc.Message, error) {
	plan := s.route.Plan
	var wire []byte
	var err error
	if s.recv == 0 {
		s.mu.Lock()
		s.binary = typ == websocket.MessageBinary
		s.mu.Unlock()
	}
	switch {
	case typ == websocket.MessageBinary:
		wire = data
	case s.match.Binding != nil:
		wire, err = plan.AppendBody(nil, s.match.Binding, "", data)
	default:
		wire, err = plan.AppendMessage(nil, data)
	}
	if err == nil && s.recv == 0 && s.match.Binding != nil {
		wire, err = plan.AppendQueryAndPath(wire, &s.match, s.Request.URL.RawQuery)
	}
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return rpc.Message{}, err
	}
	s.recv++
	s.info.MessagesIn++
	s.info.BytesIn += int64(len(data))
	return rpc.NewMessage(wire), nil
}

// SendHeader implements rpc.Stream. A bare socket has no place for response metadata.
func (s *wsStream) SendHeader(metadata.MD) error {
	if s.sent {
		return rpc.ErrHeaderSent
	}
	s.sent = true
	return nil
}

// SetTrailer implements rpc.Stream. A bare socket has no place for it.
func (s *wsStream) SetTrailer(md metadata.MD) { s.trailer = md }

// Send implements rpc.Stream.
func (s *wsStream) Send(ctx context.Context, m rpc.Message) error {
	defer m.Release()
	if err := rpc.CauseOf(ctx); err != nil {
		return err
	}
	s.sent = true
	s.mu.Lock()
	binary := s.binary
	s.mu.Unlock()
	typ, data := websocket.MessageBinary, m.Bytes()
	if !binary {
		typ = websocket.MessageText
		b := getBuffer()
		defer putBuffer(b)
		var err error
		if *b, err = s.route.Plan.AppendResponse(*b, s.match.Binding, data); err != nil {
			return err
		}
		data = *b
	}
	s.info.MessagesOut++
	s.info.BytesOut += int64(len(data))
	// A write that its context cuts short would close the socket; the close frame must still get out.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeStall)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(writeGrace, cancel) })
	defer stop()
	if err := s.conn.Write(wctx, typ, data); err != nil {
		return s.sendError(ctx)
	}
	return nil
}

// Flush implements rpc.Stream; every frame is written at once.
func (s *wsStream) Flush() error { return nil }

// finish closes the socket with the status: 1000 for OK, else 4000 + code, the message as reason.
func (s *wsStream) finish(err error) {
	st := rpc.StatusOf(err)
	code := websocket.StatusNormalClosure
	switch {
	case st.Code() != codes.OK:
		code = websocket.StatusCode(4000 + int(st.Code())) //nolint:gosec // a code is 0 to 16
	}
	if errors.Is(err, errDrained) {
		code = websocket.StatusGoingAway
	}
	_ = s.conn.Close(code, closeReason(st.Message()))
	s.stop()
	s.reader.Wait()
	s.end(err, st, http.StatusSwitchingProtocols)
}

// closeReason cuts msg to the 123 bytes that a close frame holds (RFC 6455 section 5.5), on a character border.
func closeReason(msg string) string {
	const limit = 123
	msg = strings.ToValidUTF8(msg, "\uFFFD")
	if len(msg) <= limit {
		return msg
	}
	n := limit
	for !utf8.RuneStart(msg[n]) {
		n--
	}
	return msg[:n]
}

// sockets counts the open WebSockets of a Front, which net/http no longer knows of.
type sockets struct {
	mu   sync.Mutex
	open int
	idle chan struct{} // closed when open falls to 0; nil while nobody waits
}

// add counts one in; the returned func counts it out.
func (s *sockets) add() func() {
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open--; s.open == 0 && s.idle != nil {
			close(s.idle)
			s.idle = nil
		}
	}
}

// wait returns when no WebSocket is open, or with the error of ctx.
func (s *sockets) wait(ctx context.Context) error {
	s.mu.Lock()
	if s.open == 0 {
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
