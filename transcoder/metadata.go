package transcoder

import (
	"bytes"
	"encoding/base64"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc/grpcwire"
)

// fate says what becomes of a header field on its way between client and backend.
type fate uint8

const (
	pass    fate = iota
	drop         // hop-by-hop, or the message framing of one leg: never crosses
	ambient      // sent by browsers unasked: dropped rather than refused if gRPC cannot carry its value
)

// fates are the header fields with a fate of their own, in lower case. Besides these all "grpc-", "connect-",
// "proxy-", "sec-" and ":" names are dropped.
var fates = map[string]fate{
	// RFC 9110 section 7.6.1; RFC 9113 section 8.2.2.
	"connection": drop, "keep-alive": drop, "te": drop, "trailer": drop, "transfer-encoding": drop, "upgrade": drop,
	"http2-settings": drop,
	// The framing of one HTTP message; each leg has its own.
	"accept-encoding": drop, "content-encoding": drop, "content-length": drop, "content-type": drop, "expect": drop,
	"host": drop, "date": drop,
	// Conditions and ranges are answered from the transcoded body, which the backend does not see.
	"if-match": drop, "if-none-match": drop, "if-modified-since": drop, "if-unmodified-since": drop, "if-range": drop,
	"range": drop,
	// grpc-go writes its own.
	"user-agent": drop,
	// gRPC-Web's own.
	"x-grpc-web": drop, "x-user-agent": drop,
	"cookie": ambient, "referer": ambient,
}

// Reserved reports whether a header or metadata name, in lower case, belongs to one leg of the way and must neither be
// taken from a client's request as metadata nor be set in it by a frame or a policy: hop-by-hop fields, message framing,
// and what the gRPC protocols reserve.
func Reserved(lower string) bool { return fateOf(lower) == drop }

// identityPrefix begins the names of request metadata that only the gateway sets.
const identityPrefix = "x-transom-"

// Identity reports whether a name, in lower case, is one in which the gateway tells backends who calls, or is an alias of
// one: "_" and "." are "-" to CGI and many frameworks. Clients must not be able to send it.
func Identity(lower string) bool {
	if len(lower) < len(identityPrefix) || lower[0] != 'x' {
		return false
	}
	for i := range len(identityPrefix) {
		c := lower[i]
		if c == '_' || c == '.' {
			c = '-'
		}
		if c != identityPrefix[i] {
			return false
		}
	}
	return true
}

// Forwarded reports whether a name, in lower case, is one in which proxies tell backends of the client, or is an alias of one:
// "_" and "." are "-" to CGI and many frameworks. Clients may say nothing in them.
func Forwarded(lower string) bool {
	if len(lower) < len("x-real-ip") || strings.IndexByte("xftc", lower[0]) < 0 {
		return false
	}
	var buf [32]byte
	n := copy(buf[:], lower)
	for i := range n {
		if buf[i] == '_' || buf[i] == '.' {
			buf[i] = '-'
		}
	}
	plain := buf[:n]
	for _, p := range [...]string{"x-forwarded", "x-envoy-", "x-original-forwarded-"} {
		if bytes.HasPrefix(plain, []byte(p)) {
			return true
		}
	}
	switch string(plain) {
	case "forwarded", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip", "cf-connecting-ipv6", "fastly-client-ip":
		return true
	}
	return false
}

// DropForwarded takes out of md what no proxy has said (Forwarded).
func DropForwarded(md metadata.MD) {
	for key := range md {
		if Forwarded(key) {
			delete(md, key)
		}
	}
}

func fateOf(lower string) fate {
	if f, ok := fates[lower]; ok {
		return f
	}
	for _, p := range [...]string{"grpc-", ":", "connect-", "proxy-", "sec-"} {
		if strings.HasPrefix(lower, p) {
			return drop
		}
	}
	return pass
}

// lowered spares the allocation of a lower-case name for what clients commonly send.
var lowered = func() map[string]string {
	m := map[string]string{}
	for _, n := range [...]string{
		"Accept", "Accept-Language", "Authorization", "Cache-Control", "Forwarded", "Origin", "Pragma", "Priority",
		"Traceparent", "Tracestate", "Baggage", "Via", "X-Api-Key", "X-Correlation-Id", "X-Csrf-Token", "X-Forwarded-For",
		"X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "X-Request-Id", "X-Requested-With",
	} {
		m[n] = strings.ToLower(n)
	}
	for n := range fates {
		m[canonical(n)] = n
	}
	return m
}()

// canonical is net/textproto's spelling of a lower-case field name.
func canonical(lower string) string {
	b := []byte(lower)
	up := true
	for i, c := range b {
		if up && 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
		up = c == '-'
	}
	return string(b)
}

// response is what AddHeader makes of one name of response metadata.
type response struct {
	name string // in net/textproto's spelling
	fate fate
}

// responses spare looking at names that are common, the gateway's own, or have a fate of their own.
var responses = func() map[string]response {
	m := map[string]response{}
	for n, f := range fates {
		m[n] = response{canonical(n), f}
	}
	for _, n := range [...]string{
		"age", "cache-control", "cache-status", "deprecation", "etag", "expires", "last-modified", "link", "location", "ratelimit",
		"ratelimit-policy", "retry-after", "server", "set-cookie", "sunset", "user-agent", "vary", "www-authenticate", "x-request-id", "x-user-agent",
	} {
		m[n] = response{canonical(n), pass}
	}
	return m
}()

// Lower returns a field name in lower case, without allocation for common ones.
func Lower(name string) string {
	if l, ok := lowered[name]; ok {
		return l
	}
	return strings.ToLower(name)
}

// RequestMetadata makes gRPC request metadata of the header fields of an HTTP request, each as RequestField says. It is nil if
// nothing is left.
func RequestMetadata(h map[string][]string) (metadata.MD, error) {
	var md metadata.MD
	hop := h["Connection"]
	for name, values := range h {
		key, values, err := RequestField(name, values, hop)
		if err != nil {
			return nil, err
		}
		if key == "" {
			continue
		}
		if md == nil {
			md = make(metadata.MD, len(h))
		}
		md[key] = values
	}
	return md, nil
}

// RequestField is what a header field of an HTTP request, in any case, is as metadata, whose values may be the field's own
// slice: the name is lowered; values are without the white space around them, those of "-bin" names are split at commas and decoded
// from base64, padded or not. The key is empty if it is none: reserved names, those that connection, the values of the Connection field, name, and those in which
// the gateway itself tells backends who calls (Identity), and aliases of those in which proxies do (Forwarded). A name or value
// that gRPC cannot carry (ASCII 0x20 to 0x7E) is InvalidArgument naming the field, except in the fields that browsers add
// unasked, which are none.
// Source: gRPC over HTTP/2, "Custom-Metadata"; RFC 9110 sections 5.5 and 7.6.1.
func RequestField(name string, values, connection []string) (string, []string, error) {
	f := FieldOf(name)
	return f.Metadata(values, connection)
}

// Field is what is known of the fields of one name before there is one; immutable.
type Field struct {
	name, key string
	fate      fate
	bin, bad  bool
}

// FieldOf looks at a name, in any case.
func FieldOf(name string) Field {
	f := Field{name: name, key: Lower(name)}
	f.fate = fateOf(f.key)
	if Identity(f.key) || Forwarded(f.key) && strings.ContainsAny(f.key, "_.") {
		f.fate = drop
	}
	f.bin, f.bad = strings.HasSuffix(f.key, "-bin"), !validKey(f.key)
	return f
}

// Metadata is RequestField for a field of that name.
func (f *Field) Metadata(values, connection []string) (string, []string, error) {
	if f.fate == drop || len(connection) > 0 && named(connection, f.key) {
		return "", nil, nil
	}
	if f.bad {
		return "", nil, status.Errorf(codes.InvalidArgument, "header %q: the name has characters that metadata cannot carry", clip(f.name))
	}
	if f.bin {
		decoded, err := decodeBins(f.key, values)
		return f.key, decoded, err
	}
	values = trimmed(values)
	for _, v := range values {
		if grpcwire.ValidText(v) {
			continue
		}
		if f.fate == ambient {
			return "", nil, nil
		}
		return "", nil, status.Errorf(codes.InvalidArgument, "header %s: the value has characters that metadata cannot carry; a -bin header may", f.key)
	}
	return f.key, values, nil
}

// trimmed is values without the white space around each (RFC 9110 section 5.5), which HTTP/1.1 takes off and frames and HTTP/3 do
// not. It is values itself if there is none.
func trimmed(values []string) []string {
	for i, v := range values {
		if v == "" || !blank(v[0]) && !blank(v[len(v)-1]) {
			continue
		}
		values = slices.Clone(values)
		for i := i; i < len(values); i++ {
			values[i] = strings.Trim(values[i], " \t")
		}
		break
	}
	return values
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// named reports whether one of the Connection values lists key.
func named(connection []string, key string) bool {
	for _, v := range connection {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(token, " \t"), key) {
				return true
			}
		}
	}
	return false
}

// decodeBins decodes the values of a "-bin" field.
func decodeBins(key string, values []string) ([]string, error) {
	out := make([]string, 0, len(values))
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			b, err := grpcwire.DecodeBin(strings.Trim(part, " \t"))
			if err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "header %s: the value is not base64", key)
			}
			out = append(out, string(b))
		}
	}
	return out, nil
}

// AddHeader adds response metadata to the header fields of an HTTP response, each name put behind prefix ("" or
// "Trailer-"): values of "-bin" names become base64 and stay apart, reserved names are left out, and so are values that
// would break the field's line. Names are written in net/textproto's spelling. Values are appended, never joined. h may share
// value slices with md afterwards.
func AddHeader(h map[string][]string, md metadata.MD, prefix string) {
	for key, values := range md {
		r, known := responses[key]
		if !known {
			if fateOf(key) == drop || !validKey(key) {
				continue
			}
		} else if r.fate == drop {
			continue
		}
		name := r.name
		if prefix != "" || !known {
			name = canonical(prefix + key)
		}
		bin := strings.HasSuffix(key, "-bin")
		if !bin && len(values) > 0 && h[name] == nil && !slices.ContainsFunc(values, invalidField) {
			h[name] = slices.Clip(values)
			continue
		}
		for _, v := range values {
			switch {
			case bin:
				v = grpcwire.EncodeBin(v)
			case invalidField(v):
				continue
			}
			h[name] = append(h[name], v)
		}
	}
}

// AppendTrailerBlock appends a gRPC-Web trailer block: grpc-status, grpc-message if there is one,
// grpc-status-details-bin if details is not empty, then md, one "name: value" line each, names in lower case and sorted
// (PROTOCOL-WEB.md). details is the google.rpc.Status message on the wire.
func AppendTrailerBlock(dst []byte, code codes.Code, message string, details []byte, md metadata.MD) []byte {
	dst = append(dst, "grpc-status: "...)
	dst = appendUint(dst, uint64(code))
	dst = append(dst, "\r\n"...)
	if message != "" {
		dst = append(dst, "grpc-message: "...)
		dst = grpcwire.AppendGRPCMessage(dst, message)
		dst = append(dst, "\r\n"...)
	}
	if len(details) > 0 {
		dst = append(dst, "grpc-status-details-bin: "...)
		dst = base64.RawStdEncoding.AppendEncode(dst, details)
		dst = append(dst, "\r\n"...)
	}
	if len(md) == 0 {
		return dst
	}
	for _, key := range slices.Sorted(maps.Keys(md)) {
		if Reserved(key) || !validKey(key) {
			continue
		}
		bin := strings.HasSuffix(key, "-bin")
		for _, v := range md[key] {
			if !bin && invalidField(v) {
				continue
			}
			dst = append(append(dst, key...), ": "...)
			if bin {
				dst = base64.RawStdEncoding.AppendEncode(dst, []byte(v))
			} else {
				dst = append(dst, v...)
			}
			dst = append(dst, "\r\n"...)
		}
	}
	return dst
}

// validKey reports whether key is a gRPC metadata name: [0-9a-z_.-]+.
func validKey(key string) bool {
	for i := range len(key) {
		c := key[i]
		if ('a' > c || c > 'z') && ('0' > c || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return key != ""
}

// invalidField reports whether v is not an HTTP field value (RFC 9110 section 5.5).
func invalidField(v string) bool {
	if grpcwire.ValidText(v) { // as most are
		return false
	}
	for i := range len(v) {
		if v[i] < 0x20 && v[i] != '\t' || v[i] == 0x7F {
			return true
		}
	}
	return false
}
