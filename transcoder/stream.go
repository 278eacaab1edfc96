package transcoder

import (
	"google.golang.org/grpc/status"
)

// StreamFormat is how the messages of a server stream stand in an HTTP body.
type StreamFormat uint8

// The formats. None lets a stream that failed be taken for one that ended: NDJSON's last line is then
// {"@error":{…}}, whose name no field has; SSE's last event is "error" instead of "end"; the array's last element is
// {"@error":{…}} and the array is not closed, and the listener breaks the exchange off.
const (
	StreamNDJSON StreamFormat = iota // one line each (ndjson.org)
	StreamSSE                        // one server-sent event each, and a last one named "end" (HTML, section 9.2)
	StreamArray                      // the elements of one JSON array
)

// ContentType is the media type of a body in this format.
func (f StreamFormat) ContentType() string {
	switch f {
	case StreamSSE:
		return "text/event-stream"
	case StreamArray:
		return "application/json"
	default:
		return "application/x-ndjson"
	}
}

// AppendBefore appends what stands before the JSON of a message; n messages are in the body already. The JSON must have
// no line breaks, and AppendAfter must follow it.
func (f StreamFormat) AppendBefore(dst []byte, n int64) []byte {
	switch {
	case f == StreamSSE:
		return append(dst, "data: "...)
	case f == StreamArray && n == 0:
		return append(dst, '[')
	case f == StreamArray:
		return append(dst, ',')
	}
	return dst
}

// AppendAfter appends what stands after the JSON of a message.
func (f StreamFormat) AppendAfter(dst []byte) []byte {
	if f == StreamSSE {
		return append(dst, "\n\n"...)
	}
	return append(dst, '\n')
}

// AppendEnd appends the end of a stream that ended well after n messages.
func (f StreamFormat) AppendEnd(dst []byte, n int64) []byte {
	switch {
	case f == StreamSSE:
		return append(dst, "event: end\ndata: {}\n\n"...)
	case f == StreamArray && n == 0:
		return append(dst, "[]\n"...)
	case f == StreamArray:
		return append(dst, "]\n"...)
	}
	return dst
}

// AppendStreamError appends the end of a stream in format f that failed after n messages, at least one. httpStatus is
// shown by AIP-193's shape, as in AppendStatus.
func (p *Plans) AppendStreamError(dst []byte, f StreamFormat, n int64, st *status.Status, httpStatus int) []byte {
	if f == StreamSSE {
		return append(p.appendError(append(dst, "event: error\ndata: "...), st, httpStatus), "\n\n"...)
	}
	dst = append(f.AppendBefore(dst, n), `{"@error":`...)
	return append(p.appendError(dst, st, httpStatus), "}\n"...)
}
