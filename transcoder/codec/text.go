package codec

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"unicode/utf8"
	"unsafe"

	vector "github.com/segmentio/asm/utf8"
)

// text views b as a string without copying. The string must not outlive a change of b.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// room makes sure that n bytes can be appended to dst in place.
func room(dst []byte, n int) []byte {
	if cap(dst)-len(dst) < n {
		return slices.Grow(dst, n)
	}
	return dst
}

const (
	each01 = 0x0101010101010101
	each80 = 0x8080808080808080
)

// mustEscape marks, by the high bit of each byte, the bytes of w that cannot stand in a JSON string as they are: control
// characters, quotes and backslashes. Marks above the lowest may be false.
//
// Flipping bit 1 brings the quote (0x22) next to the control characters, so that one subtraction finds both.
func mustEscape(w uint64) uint64 {
	return (((w ^ 0x02*each01) - 0x21*each01) | ((w ^ 0x5c*each01) - each01)) &^ w & each80
}

// appendQuoted writes s as a JSON string and reports whether s is valid UTF-8. It escapes what protojson escapes: the
// quote, the backslash and control characters.
func appendQuoted(dst, s []byte) ([]byte, bool) {
	dst = room(dst, len(s)+40)
	n := len(dst)
	out := dst[n : n+len(s)+16]
	out[0] = '"'
	if vectors {
		if k, high := copyPlain(&out[1], unsafe.SliceData(s), len(s)); k == len(s) {
			out[1+k] = '"'
			return dst[:n+k+2], high == 0 || validUTF8(s)
		} else if k >= 0 {
			return appendEscaped(dst, s, k, high)
		}
	}
	var high uint64
	i := 0
	if len(s) >= 8 {
		from, to := unsafe.SliceData(s), &out[1]
		for ; i+16 <= len(s); i += 16 {
			a, b := load64(from, i), load64(from, i+8)
			if mustEscape(a)|mustEscape(b) != 0 {
				return appendEscaped(dst, s, i, high&each80)
			}
			high |= a | b
			store64(to, i, a)
			store64(to, i+8, b)
		}
		if i+8 <= len(s) {
			w := load64(from, i)
			if mustEscape(w) != 0 {
				return appendEscaped(dst, s, i, high&each80)
			}
			high |= w
			store64(to, i, w)
			i += 8
		}
	}
	if i < len(s) {
		w := tailWord(s, i)
		// Spaces fill the word up, they are never special.
		if mustEscape(w|0x20*each01<<((len(s)-i)*8)) != 0 {
			return appendEscaped(dst, s, i, high&each80)
		}
		high |= w
		binary.LittleEndian.PutUint64(out[1+i:], w)
	}
	out[1+len(s)] = '"'
	return dst[:n+len(s)+2], high&each80 == 0 || validUTF8(s)
}

// appendEscaped goes on where appendQuoted met a byte of s[i:] to escape; the quote and s[:i] are in dst's spare room, and
// high is not 0 when s[:i] has a byte with the high bit.
func appendEscaped(dst, s []byte, i int, high uint64) ([]byte, bool) {
	dst = dst[:len(dst)+1+i]
	for i < len(s) {
		if vectors && s[i] >= ' ' {
			dst = room(dst, len(s)-i+32)
			if k, h := copyPlain(unsafe.SliceData(dst[len(dst):cap(dst)]), &s[i], len(s)-i); k >= 0 {
				high |= h
				dst = dst[:len(dst)+k]
				if i += k; i == len(s) {
					break
				}
			}
		} else if i+8 <= len(s) {
			w := binary.LittleEndian.Uint64(s[i:])
			k := 8
			if m := mustEscape(w); m != 0 {
				k = bits.TrailingZeros64(m) >> 3
			}
			high |= w & each80
			dst = room(dst, 16)
			n := len(dst)
			binary.LittleEndian.PutUint64(dst[n:n+8], w)
			dst = dst[:n+k]
			if i += k; k == 8 {
				continue
			}
		}
		c := s[i]
		i++
		high |= uint64(c & 0x80)
		switch {
		case c >= ' ' && c != '"' && c != '\\':
			dst = append(dst, c)
		default:
			dst = appendEscape(dst, c)
		}
	}
	return append(dst, '"'), high == 0 || validUTF8(s)
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, '\\', 'b')
	case '\f':
		return append(dst, '\\', 'f')
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
}

// validUTF8 is utf8.Valid, faster on text of two- and three-byte characters: eight bytes at a time it compares where
// continuation bytes are with where the lead bytes want them. Lead bytes that need more care (E0, ED, F0 and above)
// leave the rest to utf8.Valid.
func validUTF8(s []byte) bool {
	if len(s) >= 32 {
		return vector.Valid(s)
	}
	var due uint64 // continuation bytes due in the next word
	from := unsafe.SliceData(s)
	for i := 0; i < len(s); i += 8 {
		var w uint64
		if i+8 <= len(s) {
			w = load64(from, i)
		} else {
			w = tailWord(s, i)
		}
		high := w & each80
		if high|due == 0 {
			continue
		}
		lead := high & (w << 1)
		cont := high &^ lead
		lead3 := lead & (w << 2)
		low := w & (0x0f * each01)
		odd := lead3 &^ ((low + 0x7f*each01) & ((low ^ 0x0d*each01) + 0x7f*each01)) // E0, ED
		odd |= lead3 & (w << 3)                                                     // F0 and above
		odd |= lead &^ lead3 &^ ((w & (0x1e * each01)) + 0x7e*each01)               // C0, C1
		if odd != 0 {
			return validUTF8From(s, i)
		}
		if cont != due|lead<<8|lead3<<16 {
			return false
		}
		due = lead>>56 | lead3>>48
	}
	return due == 0
}

// validUTF8From leaves the text from the character before s[i:] on to utf8.Valid.
func validUTF8From(s []byte, i int) bool {
	for i > 0 {
		i--
		if s[i]&0xc0 != 0x80 {
			break
		}
	}
	return utf8.Valid(s[i:])
}

// tailWord returns the last bytes of s, from i on and fewer than eight, with zeros above them.
func tailWord(s []byte, i int) uint64 {
	switch rest := len(s) - i; {
	case len(s) >= 8:
		return binary.LittleEndian.Uint64(s[len(s)-8:]) >> ((8 - rest) * 8)
	case rest >= 4:
		return uint64(binary.LittleEndian.Uint32(s[i:])) | uint64(binary.LittleEndian.Uint32(s[len(s)-4:]))<<((rest-4)*8)
	default:
		return uint64(s[i]) | uint64(s[i+rest/2])<<(rest/2*8) | uint64(s[i+rest-1])<<((rest-1)*8)
	}
}

// scanString looks for the end of a JSON string whose first character is in[i]. It returns the index of the closing
// quote, or -1 when there is none or a control character comes first; whether there are backslashes; and a word that is not
// 0 when a byte has the high bit.
func scanString(in []byte, i int) (end int, escaped bool, high uint64) {
	for vectors && i < len(in) {
		k, h := scanPlain(&in[i], len(in)-i)
		if k < 0 {
			break
		}
		high |= h
		if i += k; i == len(in) {
			break
		}
		switch in[i] {
		case '"':
			return i, escaped, high
		case '\\':
			escaped = true
			i += 2
		default:
			return -1, escaped, high
		}
	}
	from := unsafe.SliceData(in)
	for i+8 <= len(in) {
		for ; i+16 <= len(in); i += 16 {
			a, b := load64(from, i), load64(from, i+8)
			if mustEscape(a)|mustEscape(b) != 0 {
				break
			}
			high |= (a | b) & each80
		}
		if i+8 > len(in) {
			break
		}
		w := load64(from, i)
		m := mustEscape(w)
		if m == 0 {
			high |= w & each80
			i += 8
			continue
		}
		k := bits.TrailingZeros64(m) &^ 7
		high |= w & (1<<k - 1) & each80
		i += k >> 3
		switch in[i] {
		case '"':
			return i, escaped, high
		case '\\':
			escaped = true
			i += 2
		default:
			return -1, escaped, high
		}
	}
	for i < len(in) {
		c := in[i]
		switch {
		case c == '"':
			return i, escaped, high
		case c == '\\':
			escaped = true
			i++
		case c < ' ':
			return -1, escaped, high
		default:
			high |= uint64(c & 0x80)
		}
		i++
	}
	return -1, escaped, high
}

// unescapes maps what follows a backslash to what both mean, 0 for what is no escape or \u.
var unescapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// appendUnescaped writes what the inside of a JSON string means. It returns nil when an escape is malformed or a surrogate
// stands alone. s was found by scanString.
func appendUnescaped(dst, s []byte) []byte {
	dst = room(dst, len(s)+8) // no escape is shorter than what it means
	n := len(dst)
	out := dst[n : n+len(s)+8]
	o, i := 0, 0
	for i+8 <= len(s) {
		w := binary.LittleEndian.Uint64(s[i:])
		binary.LittleEndian.PutUint64(out[o:], w)
		m := ((w ^ 0x5c*each01) - each01) & ^(w ^ 0x5c*each01) & each80 // backslashes; marks above the lowest may be false
		if m == 0 {
			i += 8
			o += 8
			continue
		}
		k := bits.TrailingZeros64(m) >> 3
		i += k
		o += k
		if i+1 < len(s) {
			if c := unescapes[s[i+1]]; c != 0 {
				out[o] = c
				o++
				i += 2
				continue
			}
		}
		size, read := unescape(out[o:], s[i:])
		if read == 0 {
			return nil
		}
		o += size
		i += read
	}
	for i < len(s) {
		if s[i] != '\\' {
			out[o] = s[i]
			o++
			i++
			continue
		}
		size, read := unescape(out[o:], s[i:])
		if read == 0 {
			return nil
		}
		o += size
		i += read
	}
	return dst[:n+o]
}

// unescape writes what the escape at the start of s means to out. It returns the sizes of both, 0 when it is malformed.
func unescape(out, s []byte) (size, read int) {
	if len(s) < 2 {
		return 0, 0
	}
	if c := unescapes[s[1]]; c != 0 {
		out[0] = c
		return 1, 2
	}
	r := hex4(s)
	if r < 0 {
		return 0, 0
	}
	read = 6
	if r&^0x7ff == 0xd800 { // UTF-16: a high surrogate needs its low one, a low one never comes first
		low := hex4(s[6:])
		if r >= 0xdc00 || low&^0x3ff != 0xdc00 {
			return 0, 0
		}
		read = 12
		r = 0x10000 + (r-0xd800)<<10 + low - 0xdc00
	}
	return utf8.EncodeRune(out, r), read
}

// hex4 reads \uXXXX at the start of s, or returns -1.
func hex4(s []byte) rune {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range s[2:6] {
		switch {
		case c-'0' < 10:
			c -= '0'
		case c|0x20-'a' < 6:
			c = c | 0x20 - 'a' + 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}
