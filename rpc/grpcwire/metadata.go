package grpcwire

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// DecodeBin decodes one value of a "-bin" field: standard base64, padded or not (gRPC over HTTP/2, "Binary-Header").
func DecodeBin(v string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
}

// EncodeBin encodes one value of a "-bin" field: standard base64 without padding.
func EncodeBin(v string) string { return base64.RawStdEncoding.EncodeToString([]byte(v)) }

// AppendGRPCMessage appends a grpc-message value: percent-encoded UTF-8, with bytes outside 0x20 to 0x7E and '%' escaped, so
// that the result is safe in a header (gRPC over HTTP/2, "Status-Message"). Invalid UTF-8 becomes U+FFFD.
func AppendGRPCMessage(dst []byte, message string) []byte {
	const hex = "0123456789ABCDEF"
	if !utf8.ValidString(message) {
		message = strings.ToValidUTF8(message, "�")
	}
	for i := range len(message) {
		c := message[i]
		if c >= 0x20 && c <= 0x7E && c != '%' {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		}
	}
	return dst
}

// DecodeGRPCMessage reads a grpc-message value. It never fails: an escape that is none stays as text, and bytes that are not
// UTF-8 become U+FFFD (gRPC over HTTP/2, "Status-Message").
func DecodeGRPCMessage(v string) string {
	if strings.IndexByte(v, '%') < 0 {
		return strings.ToValidUTF8(v, "�")
	}
	b := make([]byte, 0, len(v))
	for i := 0; i < len(v); i++ {
		if v[i] == '%' && i+2 < len(v) {
			hi, lo := unhex(v[i+1]), unhex(v[i+2])
			if hi < 16 && lo < 16 {
				b = append(b, hi<<4|lo)
				i += 2
				continue
			}
		}
		b = append(b, v[i])
	}
	return strings.ToValidUTF8(string(b), "�")
}

// unhex is the value of a hexadecimal digit, 255 if c is none.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
