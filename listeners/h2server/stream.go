package h2server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"transom/rpc/h2wire"
)

var _ http.ResponseWriter = (*stream)(nil)

// stream is one request and its answer. It is the handler's http.ResponseWriter, and never used for another request: only
// its buffers are, which are touched under conn.mu and given up when the handler returns.
type stream struct {
	c      *conn
	id     uint32
	req    *http.Request
	body   body
	cancel context.CancelFunc
	over   bool // its header is over the limit
	head   bool // it is a HEAD request

	// header is the handler's, who may use it while it runs.
	header http.Header

	// overdue is from when a reset is that of a client whose timeout has run out; zero if it named none. It is a tenth of the timeout
	// early, as the request may have been on its way for longer than the reset.
	overdue time.Time

	// Conn.mu guards the rest.
	gone     error // it is ended, and nothing of it is sent any more; nil until then
	finished bool  // the handler has returned
	queued   bool  // in conn.pending

	// The request's body.
	readable     chan struct{} // has room for one wake; nil until somebody waits
	waking       bool          // in conn.wakes
	remoteClosed bool
	declared     int64 // content-length, negative if there is none
	received     int64
	in           *[]byte // what has come; nil if all has been read
	read         int     // how much of in
	bodyClosed   bool    // nobody reads any more
	expect       bool    // the client waits for 100 (Continue)
	recvWindow   int     // what the client may still send
	recvDebt     int     // what is to be given back
	readBy       time.Time

	// The answer.
	sendable    chan struct{} // as readable
	blocked     bool          // in conn.blocked
	sendWindow  int64
	writeBy     time.Time
	wroteHeader bool
	status      int
	fields      []field // of the header, once wroteHeader
	room        [8]field
	sniff       bool     // the header has no Content-Type, nor an encoding
	dated       bool     // it has a Date
	trailers    []string // that it declares
	length      int64    // its Content-Length, negative if there is none
	unsized     bool     // it is to have none
	written     int64    // of the body by the handler
	committed   bool     // the header is gathered
	out         *[]byte  // of the body, to be sent with more of it; nil if there is nothing
}

func newStream(c *conn, id uint32, end bool) *stream {
	s := &stream{
		c: c, id: id, remoteClosed: end, declared: -1, length: -1, header: make(http.Header, 4),
		sendWindow: c.initialWindow, recvWindow: streamWindow,
	}
	s.body.s = s
	return s
}

// Buffers of bodies. A small one is held by streams whose body comes or goes in one piece, a large one by others.
const (
	smallBuf = 4 << 10
	largeBuf = streamWindow
)

var smallBufs, largeBufs sync.Pool // of *[]byte

func getBuf(n int) *[]byte {
	pool, size := &smallBufs, smallBuf
	if n > smallBuf {
		pool, size = &largeBufs, largeBuf
	}
	if b, ok := pool.Get().(*[]byte); ok {
		*b = (*b)[:0]
		return b
	}
	b := make([]byte, 0, size)
	return &b
}

func putBuf(b *[]byte) {
	switch cap(*b) {
	case smallBuf:
		smallBufs.Put(b)
	case largeBuf:
		largeBufs.Put(b)
	}
}

// serve runs the handler and ends the answer. It returns the next request of the connection that waits for a handler.
func (s *stream) serve() *stream {
	failed := s.run()
	c := s.c
	c.mu.Lock()
	if failed {
		if s.gone == nil {
			c.abort(s, h2wire.CodeInternal, http.ErrAbortHandler)
		}
	} else {
		s.complete()
	}
	s.finished = true
	s.closeBody()
	if s.out != nil {
		putBuf(s.out)
		s.out = nil
	}
	c.handlers--
	var next *stream
	if c.state != closed {
		next = c.next()
	}
	c.rest()
	c.closeIfIdle()
	c.flush(true)
	s.cancel()
	c.running.Done()
	return next
}

// run runs the handler. It reports whether that panicked.
func (s *stream) run() (failed bool) {
	defer func() {
		if v := recover(); v != nil {
			failed = true
			if v != http.ErrAbortHandler {
				s.c.srv.cfg.Log.LogAttrs(context.WithoutCancel(s.req.Context()), slog.LevelError, "panic while serving a request",
					slog.String("panic", fmt.Sprint(v)), slog.String("stack", string(debug.Stack())))
			}
		}
	}()
	switch {
	case s.over:
		s.c.srv.cfg.TooLarge.ServeHTTP(s, s.req)
	case s.req.RequestURI == "*" && s.req.Method == http.MethodOptions: // of the server as a whole
		s.header["Content-Length"] = []string{"0"}
		s.WriteHeader(http.StatusOK)
	default:
		s.c.srv.cfg.Handler.ServeHTTP(s, s.req)
	}
	return false
}

// end ends the stream for its handler, who is told err. c.mu is held.
func (s *stream) end(err error) {
	if s.gone != nil {
		return
	}
	s.gone = err
	s.cancel()
	wake(s.sendable)
	s.c.notify(s)
}

// closeRemote hears that the request has ended. c.mu is held.
func (s *stream) closeRemote() {
	s.remoteClosed = true
	s.c.notify(s)
}

// take keeps a piece of the body, for which the window had room. c.mu is held.
func (s *stream) take(p []byte) {
	if s.gone != nil || s.bodyClosed {
		s.c.pay(len(p))
		return
	}
	switch {
	case s.in == nil:
		s.in, s.read = getBuf(len(p)), 0
	case len(*s.in)+len(p) > cap(*s.in):
		b, to := s.in, s.in
		if cap(*b) < largeBuf {
			to = getBuf(largeBuf)
			defer putBuf(b)
		}
		*to = append((*to)[:0], (*b)[s.read:]...)
		s.in, s.read = to, 0
	}
	*s.in = append(*s.in, p...) // never more than the window, which a large one has room for
	s.c.notify(s)
}

// pay gives n bytes of body back to the stream's window, in portions. c.mu is held.
func (s *stream) pay(n int) {
	if s.recvDebt += n; s.recvDebt >= streamWindow/4 && !s.remoteClosed && s.gone == nil && !s.bodyClosed {
		s.c.out = h2wire.AppendWindowUpdate(s.c.out, s.id, s.recvDebt)
		s.recvWindow += s.recvDebt
		s.recvDebt = 0
	}
}

// closeBody drops what has not been read, and what is still to come, and ends a read. c.mu is held.
func (s *stream) closeBody() {
	s.bodyClosed = true
	wake(s.readable)
	if s.in != nil {
		s.c.pay(len(*s.in) - s.read)
		putBuf(s.in)
		s.in = nil
	}
}

// block waits on ch, which it makes if need be, until by; zero is for ever. It reports whether that has come. c.mu is held
// on entry and on return, not between.
func (s *stream) block(ch *chan struct{}, by time.Time) (late bool) {
	if *ch == nil {
		*ch = make(chan struct{}, 1)
	}
	wait := *ch
	if by.IsZero() {
		s.c.flush(false)
		<-wait
		s.c.mu.Lock()
		return false
	}
	left := time.Until(by)
	if left <= 0 {
		return true
	}
	s.c.flush(false)
	t := time.NewTimer(left)
	select {
	case <-wait:
	case <-t.C:
	}
	t.Stop()
	s.c.mu.Lock()
	return false
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	s := b.s
	c := s.c
	c.mu.Lock()
	if s.expect && !s.committed && !s.remoteClosed && s.gone == nil && !s.bodyClosed {
		s.expect = false
		if s.in == nil {
			s.interim(http.StatusContinue, nil)
		}
	}
	for {
		switch {
		case s.finished || s.bodyClosed:
			c.mu.Unlock()
			return 0, http.ErrBodyReadAfterClose
		case !s.readBy.IsZero() && !time.Now().Before(s.readBy):
			c.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case s.gone != nil:
			err := s.gone
			c.mu.Unlock()
			return 0, err
		case s.in != nil:
			n := copy(p, (*s.in)[s.read:])
			if s.read += n; s.read == len(*s.in) {
				putBuf(s.in)
				s.in = nil
			}
			c.pay(n)
			s.pay(n)
			var err error
			if s.in == nil && s.remoteClosed {
				err = io.EOF
			}
			c.flush(false)
			return n, err
		case s.remoteClosed:
			c.mu.Unlock()
			return 0, io.EOF
		case len(p) == 0:
			c.mu.Unlock()
			return 0, nil
		}
		s.block(&s.readable, s.readBy)
	}
}

// Close implements io.Closer: what is not read yet is dropped.
func (b *body) Close() error {
	c := b.s.c
	c.mu.Lock()
	b.s.closeBody()
	c.flush(false)
	return nil
}

var (
	errReturned = errors.New("the handler has returned")
	errStalled  = fmt.Errorf("the client takes nothing: %w", os.ErrDeadlineExceeded)
)

// SetReadDeadline is for http.ResponseController: reads fail from then on. Zero is never.
func (s *stream) SetReadDeadline(at time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readBy = at
	wake(s.readable)
	return nil
}

// SetWriteDeadline is for http.ResponseController: writes that would wait fail from then on. Zero is never, but a client
// must not leave its windows shut for longer than WriteStall.
func (s *stream) SetWriteDeadline(at time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.writeBy = at
	wake(s.sendable)
	return nil
}

// EnableFullDuplex is for http.ResponseController: there is nothing else.
func (s *stream) EnableFullDuplex() error { return nil }

// Header implements http.ResponseWriter.
func (s *stream) Header() http.Header { return s.header }

// WriteHeader implements http.ResponseWriter. 1xx are sent at once.
func (s *stream) WriteHeader(code int) {
	if code < 100 || code > 999 {
		panic("invalid WriteHeader code " + strconv.Itoa(code))
	}
	c := s.c
	c.mu.Lock()
	if s.wroteHeader || s.finished || s.gone != nil {
		c.mu.Unlock()
		return
	}
	if code >= 200 || code == http.StatusSwitchingProtocols {
		s.writeHeader(code)
		c.mu.Unlock()
		return
	}
	s.interim(code, s.header)
	c.flush(false)
}

// interim gathers an answer before the answer. c.mu is held.
func (s *stream) interim(code int, header http.Header) {
	c := s.c
	start := len(c.out)
	c.out = h2wire.AppendFrame(c.out, 0, h2wire.FrameHeaders, h2wire.FlagEndHeaders, s.id)
	c.out = appendStatus(c.enc.begin(c.out), code)
	for name, values := range header {
		for _, v := range values {
			c.out = c.enc.append(c.out, name, v)
		}
	}
	c.out = h2wire.EndHeaders(c.out, start, s.id, c.maxFrame)
}

// writeHeader notes the header as it is now. c.mu is held.
func (s *stream) writeHeader(code int) {
	s.wroteHeader, s.status, s.sniff = true, code, true
	s.fields = s.room[:0]
	for name, values := range s.header {
		if len(values) == 0 {
			s.unsized = s.unsized || name == "Content-Length"
			continue
		}
		switch name {
		case "Content-Length":
			n, err := strconv.ParseUint(values[0], 10, 63)
			if err != nil {
				continue
			}
			s.length = int64(n)
			values = values[:1]
		case "Content-Type", "Content-Encoding":
			s.sniff = false
		case "Date":
			s.dated = true
		case "Connection":
			if values[0] == "close" { // as of HTTP/1.1, which net/http understands here, too
				s.c.firstGoAway()
			}
		case "Trailer":
			for _, v := range values {
				for name := range strings.SplitSeq(v, ",") {
					s.trailers = append(s.trailers, http.CanonicalHeaderKey(strings.TrimSpace(name)))
				}
			}
		default:
			if s.trailer(name) {
				continue
			}
		}
		for _, v := range values {
			s.fields = append(s.fields, field{name, v})
		}
	}
}

// trailer reports whether a key of the header is that of a trailer.
func (s *stream) trailer(name string) bool {
	const at = len(http.TrailerPrefix)
	return len(name) > at && name[at-1] == ':' && name[:at] == http.TrailerPrefix
}

// hasBody reports whether the answer may have a body (RFC 9110 6.4.1). c.mu is held.
func (s *stream) hasBody() bool {
	return s.status >= 200 && s.status != http.StatusNoContent && s.status != http.StatusNotModified
}

// Write implements http.ResponseWriter.
func (s *stream) Write(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	n, err := s.write(p)
	if err != nil || s.out != nil || s.head {
		c.mu.Unlock()
		return n, err
	}
	c.flush(true)
	return n, nil
}

// write does the work of Write: little is kept for what follows it. c.mu is held.
func (s *stream) write(p []byte) (int, error) {
	switch {
	case s.finished:
		return 0, errReturned
	case s.gone != nil:
		return 0, s.gone
	case !s.wroteHeader:
		s.writeHeader(http.StatusOK)
	}
	switch {
	case s.head:
		s.written += int64(len(p))
		return len(p), nil
	case !s.hasBody():
		return 0, http.ErrBodyNotAllowed
	case s.length >= 0 && s.written+int64(len(p)) > s.length:
		return 0, http.ErrContentLength
	case len(p) == 0:
		return 0, nil
	}
	s.written += int64(len(p))
	have := 0
	if s.out != nil {
		have = len(*s.out)
	}
	if have+len(p) <= smallBuf {
		if s.out == nil {
			s.out = getBuf(smallBuf)
		}
		*s.out = append(*s.out, p...)
		return len(p), nil
	}
	if err := s.push(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush implements http.Flusher.
func (s *stream) Flush() { _ = s.FlushError() }

// FlushError is for http.ResponseController.
func (s *stream) FlushError() error {
	c := s.c
	c.mu.Lock()
	err := errReturned
	if !s.finished {
		if !s.wroteHeader {
			s.writeHeader(http.StatusOK)
		}
		err = s.push(nil)
	}
	c.flush(true)
	return err
}

// push gathers the header, what has been kept of the body, and more of it. c.mu is held.
func (s *stream) push(more []byte) error {
	if s.head {
		return s.commit(true, -1)
	}
	kept := s.out
	s.out = nil
	var first []byte
	if kept != nil {
		first = *kept
		defer putBuf(kept)
	}
	if !s.committed {
		if len(first) == 0 {
			first, more = more, nil
		}
		s.detect(first)
		if err := s.commit(false, -1); err != nil {
			return err
		}
	}
	if err := s.send(first, false); err != nil {
		return err
	}
	return s.send(more, false)
}

// detect adds a Content-Type if there is none. c.mu is held.
func (s *stream) detect(begin []byte) {
	if s.sniff && len(begin) > 0 && s.hasBody() {
		s.fields = append(s.fields, field{"Content-Type", http.DetectContentType(begin)})
	}
}

// commit gathers the header, if it is not yet. length is the body's, if the handler did not say; negative for unknown. It
// waits for room. c.mu is held on entry and on return, not between.
func (s *stream) commit(end bool, length int64) error {
	if s.committed {
		return nil
	}
	if err := s.awaitRoom(); err != nil {
		return err
	}
	s.committed = true
	c := s.c
	start := len(c.out)
	flags := byte(h2wire.FlagEndHeaders)
	if end {
		flags |= h2wire.FlagEndStream
	}
	c.out = h2wire.AppendFrame(c.out, 0, h2wire.FrameHeaders, flags, s.id)
	c.out = appendStatus(c.enc.begin(c.out), s.status)
	for i := range s.fields {
		c.out = c.enc.append(c.out, s.fields[i].name, s.fields[i].value)
	}
	if s.length < 0 && length >= 0 && !s.unsized && s.hasBody() {
		c.out = c.enc.append(c.out, "Content-Length", itoa(length))
	}
	if !s.dated {
		c.out = c.enc.append(c.out, "Date", c.srv.date.text())
	}
	c.out = h2wire.EndHeaders(c.out, start, s.id, c.maxFrame)
	return nil
}

// deadline is until when the answer may wait, if it begins to now. c.mu is held.
func (s *stream) deadline() time.Time {
	if s.writeBy.IsZero() {
		return time.Now().Add(s.c.srv.cfg.WriteStall)
	}
	return s.writeBy
}

// awaitRoom waits until less is gathered. c.mu is held on entry and on return, not between.
func (s *stream) awaitRoom() error {
	c := s.c
	var by time.Time
	for len(c.out) >= maxUnsent && s.gone == nil {
		if !c.writing {
			c.flush(false)
			c.mu.Lock()
			continue
		}
		if by.IsZero() || !s.writeBy.IsZero() {
			by = s.deadline()
		}
		s.enlist(true)
		if s.block(&s.sendable, by) && s.gone == nil {
			c.abort(s, h2wire.CodeInternal, errStalled) // lest what was left out look like the end
		}
	}
	return s.gone
}

// enlist has s woken when there is more of the connection's window, or room. c.mu is held.
func (s *stream) enlist(room bool) {
	c := s.c
	c.roomWanted = c.roomWanted || room
	if !s.blocked {
		s.blocked = true
		c.blocked = append(c.blocked, s)
	}
}

// send gathers a piece of the body, and the end of the stream behind it if last. It waits for windows and for room. c.mu is
// held on entry and on return, not between.
func (s *stream) send(p []byte, last bool) error {
	c := s.c
	var by time.Time
	for len(p) > 0 {
		if s.gone != nil {
			return s.gone
		}
		n := int(min(int64(len(p)), int64(c.maxFrame), s.sendWindow, c.sendWindow, int64(maxUnsent-len(c.out))))
		if n <= 0 {
			full := len(c.out) >= maxUnsent
			if full && !c.writing {
				c.flush(false)
				c.mu.Lock()
				continue
			}
			if by.IsZero() || !s.writeBy.IsZero() {
				by = s.deadline()
			}
			if s.sendWindow > 0 || full { // else it is the stream's window, which wakes s itself
				s.enlist(full)
			}
			if s.block(&s.sendable, by) && s.gone == nil {
				c.abort(s, h2wire.CodeInternal, errStalled) // lest what was left out look like the end
			}
			continue
		}
		by = time.Time{}
		s.sendWindow -= int64(n)
		c.sendWindow -= int64(n)
		c.echoes = min(c.echoes+3, maxIdleFrames)
		var flags byte
		if last && n == len(p) {
			flags = h2wire.FlagEndStream
		}
		c.out = append(h2wire.AppendFrame(c.out, n, h2wire.FrameData, flags, s.id), p[:n]...)
		p = p[n:]
	}
	return nil
}

// complete ends the answer when the handler has returned. c.mu is held on entry and on return, not between.
func (s *stream) complete() {
	c := s.c
	if s.gone != nil {
		return
	}
	if err := s.finish(); err != nil {
		if s.gone == nil {
			c.abort(s, h2wire.CodeInternal, err)
		}
		return
	}
	if !s.remoteClosed {
		c.leave(s.id)
	}
	s.gone = errReturned
	c.remove(s)
}

// errShort is that a handler has written less than it declared.
var errShort = errors.New("the handler has written less than its Content-Length")

// finish gathers what is left of the answer. c.mu is held on entry and on return, not between.
func (s *stream) finish() error {
	if !s.wroteHeader {
		s.writeHeader(http.StatusOK)
	}
	if s.head {
		length := int64(-1)
		if s.written > 0 {
			length = s.written
		}
		return s.commit(true, length)
	}
	if s.length >= 0 && s.written < s.length && s.hasBody() {
		return errShort
	}
	trailers := s.endFields()
	kept := s.out
	s.out = nil
	var rest []byte
	if kept != nil {
		rest = *kept
		defer putBuf(kept)
	}
	if !s.committed {
		length := int64(len(rest))
		if len(trailers) > 0 {
			length = -1
		}
		s.detect(rest)
		end := len(rest) == 0 && len(trailers) == 0
		if err := s.commit(end, length); err != nil || end {
			return err
		}
	}
	if err := s.send(rest, len(trailers) == 0); err != nil {
		return err
	}
	c := s.c
	if len(trailers) == 0 {
		if len(rest) == 0 {
			c.out = h2wire.AppendFrame(c.out, 0, h2wire.FrameData, h2wire.FlagEndStream, s.id)
		}
		return nil
	}
	if err := s.awaitRoom(); err != nil {
		return err
	}
	start := len(c.out)
	c.out = h2wire.AppendFrame(c.out, 0, h2wire.FrameHeaders, h2wire.FlagEndHeaders|h2wire.FlagEndStream, s.id)
	c.out = c.enc.begin(c.out)
	for _, f := range trailers {
		c.out = c.enc.append(c.out, f.name, f.value)
	}
	c.out = h2wire.EndHeaders(c.out, start, s.id, c.maxFrame)
	return nil
}

// endFields are the trailers. c.mu is held.
func (s *stream) endFields() []field {
	var fields []field
	for name, values := range s.header {
		if s.trailer(name) {
			for _, v := range values {
				fields = append(fields, field{name[len(http.TrailerPrefix):], v})
			}
		}
	}
	for _, name := range s.trailers {
		for _, v := range s.header[name] {
			fields = append(fields, field{name, v})
		}
	}
	return fields
}
