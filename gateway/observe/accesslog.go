package observe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"transom/listeners"
	"transom/rpc"
)

// AccessLogConfig configures an AccessLog.
type AccessLogConfig struct {
	// File is a file to append to, "stdout" or "stderr".
	File string
	// StreamStarts has a line written when a streaming call begins, too.
	StreamStarts bool
	// Log is told when lines are lost, and when they are written again.
	Log *slog.Logger
	// Lost counts the lines that could not be written, or had no room to wait.
	Lost prometheus.Counter
}

// AccessLog writes one line of JSON for every exchange that has ended, and for streams that begin if asked to. Headers, query strings and messages are not in it, and so
// no secrets of theirs.
//
// A goroutine of the log's own writes, 64 KiB at a time or what has come in a quarter of a second, so that no call waits for a
// disk or a pipe. While it waits for one itself up to 4 MiB of lines are kept; those that come then, and those that a full disk
// does not take, are lost and counted.
type AccessLog struct {
	cfg AccessLogConfig
	// due ends the wait of lines, wake does at once. ended is closed once nothing more will be written.
	due   *time.Timer
	wake  chan struct{}
	ended chan struct{}
	// lost counts what cfg.Lost does, of this log alone.
	lost atomic.Int64

	mu sync.Mutex // guards what follows; nobody waits for anything with it
	// lines are those to be written, earlier those that belong to the file before next.
	lines, earlier []byte
	// next is the file that was opened anew, nil if none was.
	next    *os.File
	closing bool
	// second is the one that clock is the text of.
	second int64
	clock  []byte
}

const (
	writeAt    = 64 << 10
	writeAfter = 250 * time.Millisecond
	// maxLines bounds what is kept while nothing can be written, in bytes, but for the last line.
	maxLines = 4 << 20
	// keepRoom is how much memory for lines is kept for the next, in bytes.
	keepRoom = 1 << 20
)

// OpenAccessLog opens a log. The caller must Close it. A file that cannot be opened to append to is an error.
func OpenAccessLog(cfg AccessLogConfig) (*AccessLog, error) {
	switch cfg.File {
	case "stdout":
		return NewAccessLog(os.Stdout, cfg), nil
	case "stderr":
		return NewAccessLog(os.Stderr, cfg), nil
	}
	f, err := openLog(cfg.File)
	if err != nil {
		return nil, err
	}
	return NewAccessLog(f, cfg), nil
}

func openLog(name string) (*os.File, error) {
	// A named pipe that nobody reads is an error, not a wait.
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	return f, nil
}

// NewAccessLog writes to w. The caller must Close it, which does not close w unless w is the file of cfg.
func NewAccessLog(w io.Writer, cfg AccessLogConfig) *AccessLog {
	l := &AccessLog{cfg: cfg, due: time.NewTimer(time.Hour), wake: make(chan struct{}, 1), ended: make(chan struct{})}
	l.due.Stop()
	go l.run(w)
	return l
}

// Reopen opens the file anew, after it has been renamed: lines of exchanges that end from here on are in the new one. On error
// the log goes on in the old one.
func (l *AccessLog) Reopen() error {
	if l.cfg.File == "stdout" || l.cfg.File == "stderr" {
		return nil
	}
	f, err := openLog(l.cfg.File)
	if err != nil {
		return err
	}
	l.mu.Lock()
	if l.next != nil { // nothing was written since it was opened
		_ = l.next.Close()
	}
	l.earlier = append(l.earlier, l.lines...)
	l.lines, l.next = l.lines[:0], f
	l.mu.Unlock()
	l.hurry()
	return nil
}

// Close writes what is kept and closes the file. If ctx ends before, it gives that up and returns an error. No exchange may end
// any more.
func (l *AccessLog) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.hurry()
	select {
	case <-l.ended:
		return nil
	case <-ctx.Done():
		return errors.New("access log: what it writes to takes nothing, the last lines are lost")
	}
}

// lose counts n lines that are lost.
func (l *AccessLog) lose(n int) {
	l.lost.Add(int64(n))
	l.cfg.Lost.Add(float64(n))
}

// hurry makes run write without a wait.
func (l *AccessLog) hurry() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run writes to w, and then to the files that are opened anew, until the log is closed.
func (l *AccessLog) run(w io.Writer) {
	defer close(l.ended)
	out := logOutput{w: w, log: l}
	var lines, earlier []byte
	for closing := false; !closing; {
		select {
		case <-l.due.C:
		case <-l.wake:
		}
		l.mu.Lock()
		lines, l.lines = l.lines, lines[:0]
		earlier, l.earlier = l.earlier, nil
		next := l.next
		l.next, closing = nil, l.closing
		l.mu.Unlock()
		out.write(earlier)
		if next != nil {
			out.close()
			out.w, out.torn = next, false
		}
		out.write(lines)
		if cap(lines) > keepRoom {
			lines = nil
		}
	}
	out.close()
}

// complainEvery is how often a log or a collector that takes nothing is logged.
const complainEvery = 10 * time.Minute

// logOutput is what the lines go to. It belongs to run.
type logOutput struct {
	w   io.Writer
	log *AccessLog
	// torn says that the last line written is not whole.
	torn bool
	// known is what was lost when it was last looked at, since what had been when all was well. complained is when it was logged.
	known, since int64
	complained   time.Time
}

// write writes whole lines. Those that are not taken are lost: a full disk does not stop traffic.
func (o *logOutput) write(lines []byte) {
	if len(lines) == 0 {
		return
	}
	var err error
	if o.torn {
		if _, err = o.w.Write([]byte{'\n'}); err == nil {
			o.torn = false
		}
	}
	if err == nil {
		var n int
		if n, err = o.w.Write(lines); err != nil {
			o.torn = n > 0 && lines[n-1] != '\n'
			lines = lines[n:]
		}
	}
	if err != nil {
		o.log.lose(bytes.Count(lines, []byte{'\n'}))
	}
	o.complain(err)
}

// complain logs that lines were lost, because of err or for want of room, once in a while, and when none are any more.
func (o *logOutput) complain(err error) {
	lost := o.log.lost.Load()
	was := o.known
	o.known = lost
	switch now := time.Now(); {
	case lost == was && err == nil:
		if !o.complained.IsZero() {
			o.log.cfg.Log.LogAttrs(context.Background(), slog.LevelInfo, "the access log is written again", slog.String("file", o.log.cfg.File), slog.Int64("lost", lost-o.since))
		}
		o.complained, o.since = time.Time{}, lost
	case now.Sub(o.complained) >= complainEvery:
		o.complained = now
		why := "it is written more slowly than lines come"
		if err != nil {
			why = err.Error()
		}
		o.log.cfg.Log.LogAttrs(context.Background(), slog.LevelError, "lines of the access log are lost",
			slog.String("file", o.log.cfg.File), slog.Int64("lost", lost-o.since), slog.String("error", why))
	}
}

// close closes a file of the log's own.
func (o *logOutput) close() {
	if f, ok := o.w.(*os.File); ok && f != os.Stdout && f != os.Stderr {
		_ = f.Close()
	}
}

// begin appends the line of a stream that begins: what is known then, and "event":"start".
func (l *AccessLog) begin(x *listeners.Exchange) {
	var room [1 << 10]byte
	b := appendRequest(append(room[:0], `,"event":"start"`...), x)
	l.line(x.Start, appendAgent(b, x.Request))
}

// end appends the line of one exchange. Times are UTC, durations milliseconds.
func (l *AccessLog) end(x *listeners.Exchange, took time.Duration) {
	var room [1 << 10]byte
	l.line(x.Start.Add(took), appendAgent(appendOutcome(appendRequest(room[:0], x), x, took), x.Request))
}

// line appends a line of fields, each of which has a comma before it, which were made outside the lock.
func (l *AccessLog) line(at time.Time, fields []byte) {
	now := at.UTC()
	l.mu.Lock()
	before := len(l.lines)
	if before+len(l.earlier) >= maxLines {
		l.mu.Unlock()
		l.lose(1)
		return
	}
	l.lines = append(l.appendTime(append(l.lines, `{"time":"`...), now), '"')
	l.lines = append(append(l.lines, fields...), '}', '\n')
	after := len(l.lines)
	l.mu.Unlock()
	if before == 0 {
		l.due.Reset(writeAfter)
	}
	if before < writeAt && after >= writeAt {
		l.hurry()
	}
}

// appendTime appends a time of UTC to the microsecond (RFC 3339). Most lines are of the second of the line before.
func (l *AccessLog) appendTime(b []byte, t time.Time) []byte {
	if s := t.Unix(); s != l.second || l.clock == nil {
		l.second, l.clock = s, t.AppendFormat(l.clock[:0], "2006-01-02T15:04:05")
	}
	b = append(append(b, l.clock...), '.')
	us := t.Nanosecond() / int(time.Microsecond)
	for digit := 100_000; digit > 0; digit /= 10 {
		b = append(b, byte('0'+us/digit%10))
	}
	return append(b, 'Z')
}

// appendRequest appends what is known of a call as soon as its method is, each field with a comma before it.
func appendRequest(b []byte, x *listeners.Exchange) []byte {
	r, info := x.Request, x.Call.Info
	b = text(b, `,"request_id":"`, info.RequestID)
	b = text(b, `,"trace_id":"`, traceID(r))
	b = text(b, `,"listener":"`, x.Listener)
	b = appendClient(b, x)
	b = text(b, `,"network.protocol.version":"`, versionName(uint8(r.ProtoMajor)))
	b = text(b, `,"transom.protocol":"`, x.Protocol.String())
	b = text(b, `,"http.request.method":"`, r.Method)
	b = text(b, `,"url.path":"`, r.URL.Path)
	if info.Binding != nil {
		b = text(b, `,"http.route":"`, info.Binding.Template)
	}
	if m := x.Call.Method; m != nil {
		b = text(b, `,"rpc.method":"`, m.FullPath[1:])
	}
	return b
}

// appendClient appends the address of the client and, where a trusted proxy speaks for it, the proxy's.
func appendClient(b []byte, x *listeners.Exchange) []byte {
	addr := x.Client.Addr()
	if !addr.IsValid() {
		return text(b, `,"client.address":"`, x.Request.RemoteAddr)
	}
	b = append(b, `,"client.address":"`...)
	from := len(b)
	b = addr.Unmap().AppendTo(b)
	is := len(b) - from
	b = append(b, '"')
	if port := x.Client.Port(); port != 0 {
		b = number(b, `,"client.port":`, int64(port))
		// Most often the client is the peer itself, whose address was written just now.
		if peer := x.Request.RemoteAddr; len(peer) > is && peer[:is] == string(b[from:from+is]) && peer[is] == ':' && peer[is+1:] == string(b[from+is+len(`","client.port":`):]) {
			return b
		}
	}
	if peer, err := netip.ParseAddrPort(x.Request.RemoteAddr); err == nil && peer != x.Client {
		b = append(peer.Addr().Unmap().AppendTo(append(b, `,"network.peer.address":"`...)), '"')
	}
	return b
}

// appendOutcome appends how a call ended.
func appendOutcome(b []byte, x *listeners.Exchange, took time.Duration) []byte {
	info := x.Call.Info
	b = number(b, `,"http.response.status_code":`, int64(x.HTTPStatus))
	b = text(b, `,"rpc.status_code":"`, codeName(x.Status.Code()))
	if info.ErrorSource != rpc.SourceNone {
		b = text(b, `,"transom.error_source":"`, info.ErrorSource.String())
		b = text(b, `,"transom.policy":"`, info.Policy)
		if x.Err != nil {
			b = text(b, `,"error":"`, x.Err.Error())
		}
	}
	if p := x.Call.Principal; p != nil {
		b = text(b, `,"consumer":"`, p.Consumer)
	}
	b = millis(b, `,"duration_ms":`, took)
	if info.Attempts > 0 {
		b = text(b, `,"cluster":"`, info.Cluster)
		b = text(b, `,"upstream.address":"`, info.Endpoint)
		b = number(b, `,"attempts":`, int64(info.Attempts))
		b = millis(b, `,"upstream_ms":`, info.Upstream)
	}
	b = number(b, `,"bytes_in":`, info.BytesIn)
	b = number(b, `,"bytes_out":`, info.BytesOut)
	b = number(b, `,"messages_in":`, info.MessagesIn)
	b = number(b, `,"messages_out":`, info.MessagesOut)
	for _, n := range info.Notes {
		if n.Value != "" {
			b = append(append(b, `,"`...), n.Key...)
			b = text(b, `":"`, n.Value)
		}
	}
	return b
}

func appendAgent(b []byte, r *http.Request) []byte {
	if ua := r.Header["User-Agent"]; len(ua) > 0 {
		b = text(b, `,"user_agent":"`, ua[0])
	}
	return b
}

// traceID is that of the W3C trace context that r came with, "" if it has none.
func traceID(r *http.Request) string {
	if v := r.Header["Traceparent"]; len(v) == 1 && len(v[0]) >= 55 {
		return v[0][3:35]
	}
	return ""
}

// maxText bounds one value, in bytes.
const maxText = 1 << 10

// text appends a field whose key is as it is written, `,"key":"`, unless v is empty.
func text(b []byte, key, v string) []byte {
	if v == "" {
		return b
	}
	if len(v) > maxText {
		v = v[:maxText]
	}
	b = append(b, key...)
	if allPlain(v) {
		return append(append(b, v...), '"')
	}
	return append(appendEscaped(b, v), '"')
}

const hexDigits = "0123456789abcdef"

// plain are the bytes that stand for themselves in a JSON string.
var plain = func() (p [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		p[c] = c != '"' && c != '\\'
	}
	return p
}()

// allPlain reports whether all bytes of v stand for themselves.
func allPlain(v string) bool {
	const each = 0x0101010101010101
	for ; len(v) >= 8; v = v[8:] {
		w := uint64(v[0]) | uint64(v[1])<<8 | uint64(v[2])<<16 | uint64(v[3])<<24 | uint64(v[4])<<32 | uint64(v[5])<<40 | uint64(v[6])<<48 | uint64(v[7])<<56
		quote, back := w^'"'*each, w^'\\'*each
		// Each subtraction sets the high bit of bytes below what is taken away, and of others only above such a one.
		if (w|(w-' '*each)|(quote-each)|(back-each))&(0x80*each) != 0 {
			return false
		}
	}
	for i := range len(v) {
		if !plain[v[i]] {
			return false
		}
	}
	return true
}

// appendEscaped appends v as the inside of a JSON string; what is not UTF-8 becomes U+FFFD.
func appendEscaped(b []byte, v string) []byte {
	start := 0
	for i := 0; i < len(v); {
		c := v[i]
		if plain[c] {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			b = append(b, v[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(v[i:])
		if r == utf8.RuneError && size == 1 {
			b = append(b, v[start:i]...)
			b = append(b, "\ufffd"...)
			i++
			start = i
			continue
		}
		i += size
	}
	return append(b, v[start:]...)
}

func number(b []byte, key string, n int64) []byte {
	return strconv.AppendInt(append(b, key...), n, 10)
}

// millis appends a duration with three digits behind the point.
func millis(b []byte, key string, d time.Duration) []byte {
	b = number(b, key, int64(d/time.Millisecond))
	us := int64(d/time.Microsecond) % 1000
	return append(b, '.', byte('0'+us/100), byte('0'+us/10%10), byte('0'+us%10))
}
