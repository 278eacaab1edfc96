package h2wire

import "strings"

// The kinds of literal fields (RFC 7541 6.2), and how many bits of their first byte an index has.
const (
	LiteralIndexed      = 0x40 // inserted into the table
	LiteralIndexedBits  = 6
	LiteralPlain        = 0x00
	LiteralNeverIndexed = 0x10 // nor by anybody on the way
	LiteralBits         = 4
)

// AppendInt appends an integer, not negative, with an n-bit prefix in a byte whose other bits are first's (RFC 7541 5.1).
func AppendInt(dst []byte, first byte, n, v int) []byte {
	most := 1<<n - 1
	if v < most {
		return append(dst, first|byte(v))
	}
	dst = append(dst, first|byte(most))
	for v -= most; v >= 128; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

// AppendName begins a literal field: its kind, whose index has prefix bits, and its name, in lower case: by index if the
// static table has it.
func AppendName(dst []byte, kind byte, prefix int, name string) []byte {
	if i := StaticName(name); i > 0 {
		return AppendInt(dst, kind, prefix, i)
	}
	return AppendString(append(dst, kind), name)
}

// AppendString appends a string as it is, without Huffman's coding.
func AppendString(dst []byte, s string) []byte { return append(AppendInt(dst, 0, 7, len(s)), s...) }

// AppendLiteral appends a literal field.
func AppendLiteral(dst []byte, kind byte, prefix int, name, value string) []byte {
	return AppendString(AppendName(dst, kind, prefix, name), value)
}

// StaticName is the index of a name in the static table (RFC 7541 appendix A), 0 if it is not in it, or not one that we
// write.
func StaticName(name string) int {
	if name != "" && name[0] == 'x' { // as most are that are not in it
		return 0
	}
	switch name {
	case ":authority":
		return 1
	case ":path":
		return 4
	case "accept":
		return 19
	case "accept-language":
		return 17
	case "access-control-allow-origin":
		return 20
	case "age":
		return 21
	case "allow":
		return 22
	case "authorization":
		return 23
	case "cache-control":
		return 24
	case "content-disposition":
		return 25
	case "content-encoding":
		return 26
	case "content-length":
		return 28
	case "content-type":
		return 31
	case "cookie":
		return 32
	case "date":
		return 33
	case "etag":
		return 34
	case "from":
		return 37
	case "last-modified":
		return 44
	case "location":
		return 46
	case "referer":
		return 51
	case "retry-after":
		return 53
	case "server":
		return 54
	case "set-cookie":
		return 55
	case "strict-transport-security":
		return 56
	case "user-agent":
		return 58
	case "vary":
		return 59
	case "via":
		return 60
	case "www-authenticate":
		return 61
	}
	return 0
}

// Secret reports whether values of a field must not be put into any table on the way (RFC 7541 7.1.3).
func Secret(name string) bool {
	switch name {
	case "authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key":
		return true
	}
	return strings.HasSuffix(name, "-token") || strings.HasSuffix(name, "-secret") || strings.HasSuffix(name, "-key")
}
