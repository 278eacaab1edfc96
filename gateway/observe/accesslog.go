package observe

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"transom/listeners"
	"transom/rpc"
)

// AccessLog writes one line of JSON for every exchange that has ended. Lines are kept for up to a second, or 32 KiB, before
// they are written. Headers, query strings and messages are not in it, and so no secrets of theirs.
type AccessLog struct {
	name string

	mu    sync.Mutex // guards what follows
	w     io.Writer
	file  *os.File // nil if w is not ours to close
	buf   []byte
	timer *time.Timer
	// lost counts lines that could not be written.
	lost uint64
	// second is the one that clock is the text of.
	second int64
	clock  []byte
}

const (
	flushAt    = 32 << 10
	flushAfter = time.Second
)

// OpenAccessLog opens a log by name: "stdout", "stderr", or a file to append to. The caller must Close it.
func OpenAccessLog(name string) (*AccessLog, error) {
	l := &AccessLog{name: name}
	return l, l.Reopen()
}

// NewAccessLog writes to w, which the caller closes after the log.
func NewAccessLog(w io.Writer) *AccessLog { return &AccessLog{w: w} }

// Reopen opens the file anew, after it has been renamed. On error the log goes on in the old one.
func (l *AccessLog) Reopen() error {
	var w io.Writer
	var file *os.File
	switch l.name {
	case "":
		return nil
	case "stdout":
		w = os.Stdout
	case "stderr":
		w = os.Stderr
	default:
		var err error
		if file, err = os.OpenFile(l.name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
			return fmt.Errorf("access log: %w", err)
		}
		w = file
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	if l.file != nil {
		_ = l.file.Close()
	}
	l.w, l.file = w, file
	return nil
}

// Close writes what is kept.
func (l *AccessLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.flush()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// Flush writes what is kept.
func (l *AccessLog) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
}

// Lost counts the flushes that failed: a full disk must not stop traffic.
func (l *AccessLog) Lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

func (l *AccessLog) flush() {
	if len(l.buf) == 0 {
		return
	}
	if _, err := l.w.Write(l.buf); err != nil {
		l.lost++
	}
	l.buf = l.buf[:0]
}

// end appends the line of one exchange. Times are UTC, durations milliseconds.
func (l *AccessLog) end(x *listeners.Exchange, took time.Duration) {
	now := x.Start.Add(took).UTC()
	var room [1 << 10]byte
	fields := appendFields(room[:0], x, took) // outside the lock
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) == 0 {
		if l.timer == nil {
			l.timer = time.AfterFunc(flushAfter, l.Flush)
		} else {
			l.timer.Reset(flushAfter)
		}
	}
	l.buf = append(l.appendTime(append(l.buf, `{"time":"`...), now), '"')
	l.buf = append(append(l.buf, fields...), '}', '\n')
	if len(l.buf) >= flushAt {
		l.flush()
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

// appendFields appends what comes behind the time, each field with a comma before it.
func appendFields(b []byte, x *listeners.Exchange, took time.Duration) []byte {
	r := x.Request
	var info *rpc.Info
	if x.Call != nil {
		info = x.Call.Info
	}
	if info != nil {
		b = text(b, `,"request_id":`, info.RequestID)
	}
	b = text(b, `,"trace_id":`, traceID(r))
	b = text(b, `,"listener":`, x.Listener)
	b = text(b, `,"client.address":`, r.RemoteAddr)
	b = text(b, `,"network.protocol.version":`, versionName(uint8(r.ProtoMajor)))
	b = text(b, `,"transom.protocol":`, x.Protocol.String())
	b = text(b, `,"http.request.method":`, r.Method)
	b = text(b, `,"url.path":`, r.URL.Path)
	if info != nil && info.Binding != nil {
		b = text(b, `,"http.route":`, info.Binding.Template)
	}
	b = number(b, `,"http.response.status_code":`, int64(x.HTTPStatus))
	if x.Call != nil && x.Call.Method != nil && len(x.Call.Method.FullPath) > 0 {
		b = text(b, `,"rpc.method":`, x.Call.Method.FullPath[1:])
	}
	b = text(b, `,"rpc.status_code":`, codeName(x.Status.Code()))
	if info != nil && info.ErrorSource != rpc.SourceNone {
		b = text(b, `,"transom.error_source":`, info.ErrorSource.String())
		if x.Err != nil {
			b = text(b, `,"error":`, x.Err.Error())
		}
	}
	if x.Call != nil && x.Call.Principal != nil {
		b = text(b, `,"consumer":`, x.Call.Principal.Consumer)
	}
	b = millis(b, `,"duration_ms":`, took)
	if info != nil {
		if info.Attempts > 0 {
			b = text(b, `,"cluster":`, info.Cluster)
			b = text(b, `,"upstream.address":`, info.Endpoint)
			b = number(b, `,"attempts":`, int64(info.Attempts))
			b = millis(b, `,"upstream_ms":`, info.Upstream)
		}
		b = number(b, `,"bytes_in":`, info.BytesIn)
		b = number(b, `,"bytes_out":`, info.BytesOut)
		b = number(b, `,"messages_in":`, info.MessagesIn)
		b = number(b, `,"messages_out":`, info.MessagesOut)
		if len(info.Notes) > 0 {
			for _, k := range slices.Sorted(maps.Keys(info.Notes)) {
				b = text(b, `,"`+k+`":`, info.Notes[k])
			}
		}
	}
	if ua := r.Header["User-Agent"]; len(ua) > 0 {
		b = text(b, `,"user_agent":`, ua[0])
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

// text appends a field whose key is as it is written, `,"key":`, unless v is empty.
func text(b []byte, key, v string) []byte {
	if v == "" {
		return b
	}
	if len(v) > maxText {
		v = v[:maxText]
	}
	b = append(append(b, key...), '"')
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
