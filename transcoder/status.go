package transcoder

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"transom/rpc"
)

// HTTPStatus is the HTTP status of a gRPC code, as google/rpc/code.proto and the Connect protocol both have it. A code
// that gRPC does not define is Unknown, hence 500.
func HTTPStatus(c codes.Code) int {
	switch c {
	case codes.OK:
		return http.StatusOK
	case codes.Canceled:
		return 499 // Client Closed Request; not in RFC 9110
	case codes.Unknown:
		return http.StatusInternalServerError
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	case codes.NotFound:
		return http.StatusNotFound
	case codes.AlreadyExists:
		return http.StatusConflict
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.FailedPrecondition:
		return http.StatusBadRequest
	case codes.Aborted:
		return http.StatusConflict
	case codes.OutOfRange:
		return http.StatusBadRequest
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.Internal:
		return http.StatusInternalServerError
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	case codes.DataLoss:
		return http.StatusInternalServerError
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	}
	return http.StatusInternalServerError
}

// codeNames are the names of google.rpc.Code by number.
var codeNames = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
	"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// connectNames are Connect's names of the codes by number.
var connectNames = [...]string{
	"ok", "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
	"permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented",
	"internal", "unavailable", "data_loss", "unauthenticated",
}

// CodeName is the name of a code in google.rpc.Code, "NOT_FOUND"; a code that gRPC does not define is "UNKNOWN".
func CodeName(c codes.Code) string { return codeNames[defined(c)] }

// ConnectCodeName is the name of a code in the Connect protocol, "not_found".
func ConnectCodeName(c codes.Code) string { return connectNames[defined(c)] }

// defined is c, or Unknown if gRPC does not define it.
func defined(c codes.Code) codes.Code {
	if int(c) < len(codeNames) {
		return c
	}
	return codes.Unknown
}

// httpError is a refusal whose HTTP status is not the one of its code.
type httpError struct {
	status *status.Status
	http   int
}

// HTTPError is an error that tells clients of REST and Connect a particular HTTP status (404, 405, 406, 413, 415, …)
// and all others code and message.
func HTTPError(httpStatus int, c codes.Code, message string) error {
	return &httpError{status.New(c, message), httpStatus}
}

func (e *httpError) Error() string              { return e.status.Message() }
func (e *httpError) GRPCStatus() *status.Status { return e.status }
func (e *httpError) HTTPStatus() int            { return e.http }

// HTTPStatusOf is the HTTP status that err is answered with: that of an error in its chain with a method HTTPStatus, unless
// it is 0, else the one of its code. nil is 200.
func HTTPStatusOf(err error) int {
	var e interface{ HTTPStatus() int }
	if errors.As(err, &e) && e.HTTPStatus() != 0 {
		return e.HTTPStatus()
	}
	return HTTPStatus(rpc.StatusOf(err).Code())
}

// ErrorShape is the JSON form of an error body.
type ErrorShape uint8

// The shapes: the bare google.rpc.Status, {"code":5,"message":"…","details":[…]}, or the one of AIP-193,
// {"error":{"code":404,"message":"…","status":"NOT_FOUND","details":[…]}}.
const (
	ErrorStatus ErrorShape = iota
	ErrorAIP193
)

// AppendStatus appends the JSON error body of st, in the shape the options ask for; httpStatus is shown by AIP-193. It
// never fails: a detail of a type that the schema does not know, or that its type cannot read, is kept as
// {"@type":…,"value":"<base64>"}. A nil p knows no types and has the default shape.
func (p *Plans) AppendStatus(dst []byte, st *status.Status, httpStatus int) []byte {
	if !p.aip193() {
		return p.appendError(dst, st, httpStatus)
	}
	return append(p.appendError(append(dst, `{"error":`...), st, httpStatus), '}')
}

func (p *Plans) aip193() bool { return p != nil && p.options.ErrorShape == ErrorAIP193 }

// appendError appends the object of an error, without what AIP-193 puts around it.
func (p *Plans) appendError(dst []byte, st *status.Status, httpStatus int) []byte {
	ps := st.Proto()
	dst = append(dst, `{"code":`...)
	if p.aip193() {
		dst = strconv.AppendInt(dst, int64(httpStatus), 10)
	} else {
		dst = appendUint(dst, uint64(defined(st.Code())))
	}
	dst = appendString(append(dst, `,"message":`...), ps.GetMessage())
	if p.aip193() {
		dst = append(dst, `,"status":"`...)
		dst = append(append(dst, CodeName(st.Code())...), '"')
	}
	dst = append(dst, `,"details":[`...)
	for i, d := range ps.GetDetails() {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = p.appendDetail(dst, d)
	}
	return append(dst, "]}"...)
}

// appendDetail appends one error detail as the JSON of an Any.
func (p *Plans) appendDetail(dst []byte, d *anypb.Any) []byte {
	start := len(dst)
	if wire, err := proto.Marshal(d); err == nil && p != nil {
		if dst, err = p.any.AppendJSON(dst, wire, &p.options.JSON); err == nil {
			return dst
		}
		dst = dst[:start]
	}
	dst = append(dst, `{"@type":`...)
	dst = appendString(dst, d.GetTypeUrl())
	dst = append(dst, `,"value":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, d.GetValue())
	return append(dst, `"}`...)
}

// AppendConnectError appends the JSON of a Connect error: {"code":"not_found","message":"…","details":[{"type":
// "google.rpc.BadRequest","value":"<base64 without padding>"}]}. Source: Connect protocol, "Error Codes".
func AppendConnectError(dst []byte, st *status.Status) []byte {
	dst = append(dst, `{"code":"`...)
	dst = append(append(dst, ConnectCodeName(st.Code())...), '"')
	ps := st.Proto()
	if m := ps.GetMessage(); m != "" {
		dst = append(dst, `,"message":`...)
		dst = appendString(dst, m)
	}
	if len(ps.GetDetails()) == 0 {
		return append(dst, '}')
	}
	dst = append(dst, `,"details":[`...)
	for i, d := range ps.GetDetails() {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"type":`...)
		dst = appendString(dst, d.GetTypeUrl()[strings.LastIndexByte(d.GetTypeUrl(), '/')+1:])
		dst = append(dst, `,"value":"`...)
		dst = base64.RawStdEncoding.AppendEncode(dst, d.GetValue())
		dst = append(dst, `"}`...)
	}
	return append(dst, "]}"...)
}

// AppendConnectEnd appends the payload of a Connect end-stream frame: {"error":…,"metadata":{"name":["value"]}}, error
// absent when st is OK, metadata absent when there is none. Values of "-bin" names become base64. Source: Connect
// protocol, "EndStreamResponse".
func AppendConnectEnd(dst []byte, st *status.Status, md metadata.MD) []byte {
	dst = append(dst, '{')
	if st.Code() != codes.OK {
		dst = append(dst, `"error":`...)
		dst = AppendConnectError(dst, st)
	}
	if len(md) > 0 {
		if st.Code() != codes.OK {
			dst = append(dst, ',')
		}
		dst = appendMetadataJSON(append(dst, `"metadata":`...), md)
	}
	return append(dst, '}')
}

// appendString appends s as a JSON string. Bytes that are not UTF-8 become U+FFFD.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(append(dst, s[start:i]...), "�"...)
				start = i + 1
			}
			i += n
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	return append(append(dst, s[start:]...), '"')
}

func appendUint(dst []byte, v uint64) []byte { return strconv.AppendUint(dst, v, 10) }
