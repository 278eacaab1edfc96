package codec

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unsafe"

	"github.com/segmentio/asm/base64"
)

// vectorLen is from how many bytes on the processor's vector instructions are worth the call. They are segmentio/asm's.
const vectorLen = 64

const base64Std = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

// encode12 maps 12 bits to their two base64 characters, the first in the low byte.
var encode12 = func() (t [4096]uint16) {
	for i := range t {
		t[i] = uint16(base64Std[i>>6]) | uint16(base64Std[i&63])<<8
	}
	return t
}()

// decode6 maps a character of either base64 alphabet (RFC 4648 sections 4 and 5) to its six bits, shifted to its place in
// a group of four; other bytes have a bit above 24 set.
var decode6 = func() (t [4][256]uint32) {
	for p := range t {
		for i := range t[p] {
			t[p][i] = 1 << 31
		}
		for i := range 64 {
			t[p][base64Std[i]] = uint32(i) << (18 - 6*p)
		}
		t[p]['-'], t[p]['_'] = t[p]['+']|markURL, t[p]['/']|markURL
		t[p]['+'], t[p]['/'] = t[p]['+']|markStd, t[p]['/']|markStd
	}
	return t
}()

const (
	markStd = 1 << 24
	markURL = 1 << 25
)

// appendBase64 writes b as a JSON string in the standard alphabet with padding.
func appendBase64(dst, b []byte) []byte {
	dst = room(dst, (len(b)+2)/3*4+16)
	n := len(dst)
	end := n + (len(b)+2)/3*4 + 2
	out := dst[n : end+8]
	out[0] = '"'
	out = out[1:]
	if len(b) >= vectorLen {
		base64.StdEncoding.Encode(out, b)
		dst[:end][end-1] = '"'
		return dst[:end]
	}
	i, o := 0, 0
	from, to := unsafe.SliceData(b), unsafe.SliceData(out)
	for ; i+14 <= len(b); i, o = i+12, o+16 { // out has 16 characters for each 12 bytes
		w, x := bits.ReverseBytes64(load64(from, i)), bits.ReverseBytes64(load64(from, i+6))
		store64(to, o, uint64(encode12[w>>52])|uint64(encode12[w>>40&0xfff])<<16|
			uint64(encode12[w>>28&0xfff])<<32|uint64(encode12[w>>16&0xfff])<<48)
		store64(to, o+8, uint64(encode12[x>>52])|uint64(encode12[x>>40&0xfff])<<16|
			uint64(encode12[x>>28&0xfff])<<32|uint64(encode12[x>>16&0xfff])<<48)
	}
	b, out = b[i:], out[o:]
	for len(b) >= 3 {
		w := uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2])
		binary.LittleEndian.PutUint32(out, uint32(encode12[w>>12])|uint32(encode12[w&0xfff])<<16)
		b = b[3:]
		out = out[4:]
	}
	switch len(b) {
	case 1:
		binary.LittleEndian.PutUint32(out, uint32(encode12[uint32(b[0])<<4])|'='<<16|'='<<24)
		out = out[4:]
	case 2:
		w := uint32(b[0])<<16 | uint32(b[1])<<8
		binary.LittleEndian.PutUint32(out, uint32(encode12[w>>12])|uint32(base64Std[w>>6&63])<<16|'='<<24)
		out = out[4:]
	}
	out[0] = '"'
	return dst[:end]
}

// appendUnbase64 decodes s, in either alphabet, padded or not; line breaks are skipped, as encoding/base64 does, if
// breaks are allowed. It returns nil when s is malformed. s has no JSON escapes.
func appendUnbase64(dst, s []byte, breaks bool) []byte {
	dst = room(dst, len(s)/4*3+16)
	n := len(dst)
	out := dst[n:cap(dst)]
	var seen uint32
	o := 0
	i := 0
	if len(s) >= vectorLen {
		// All but the end at once, if it is whole groups of the standard alphabet; anything else goes the way below.
		whole := (len(s) - 8) &^ 3
		k, err := base64.StdEncoding.Decode(out, s[:whole])
		if err == nil && k == whole/4*3 && !bytes.ContainsAny(s[whole:], "-_") {
			return appendUnbase64Tail(dst[:n+k], s, whole, 0, breaks)
		}
	}
	from, to := unsafe.SliceData(s), unsafe.SliceData(out)
	for ; i+8 <= len(s) && o+8 <= len(out); i, o = i+8, o+6 {
		q := load64(from, i)
		a := decode6[0][byte(q)] | decode6[1][byte(q>>8)] | decode6[2][byte(q>>16)] | decode6[3][byte(q>>24)]
		b := decode6[0][byte(q>>32)] | decode6[1][byte(q>>40)] | decode6[2][byte(q>>48)] | decode6[3][byte(q>>56)]
		if (a|b)>>31 != 0 {
			break
		}
		seen |= a | b
		store64(to, o, bits.ReverseBytes64(uint64(a)<<40|uint64(b&0xffffff)<<16))
	}
	return appendUnbase64Tail(dst[:n+o], s, i, seen, breaks)
}

// appendUnbase64Tail decodes s[i:], where i is a whole number of groups. Mixed alphabets are refused, and so is text
// whose padding does not fit: when its length is a multiple of four it must be padded, else it must not.
func appendUnbase64Tail(dst, s []byte, i int, seen uint32, breaks bool) []byte {
	var group uint32
	count := 0
	for ; i < len(s); i++ {
		c := s[i]
		if c == '=' {
			break
		}
		if (c == '\r' || c == '\n') && breaks {
			continue
		}
		v := decode6[3][c]
		if v>>31 != 0 {
			return nil
		}
		seen |= v
		group = group<<6 | v&63
		if count++; count == 4 {
			dst = append(dst, byte(group>>16), byte(group>>8), byte(group))
			group, count = 0, 0
		}
	}
	pads := 0
	for ; i < len(s); i++ {
		switch s[i] {
		case '=':
			pads++
		case '\r', '\n':
			if !breaks {
				return nil
			}
		default:
			return nil
		}
	}
	switch {
	case seen&(markStd|markURL) == markStd|markURL, count == 1:
		return nil
	case pads > 0 && (count < 2 || count+pads != 4 || len(s)%4 != 0), pads == 0 && count > 0 && len(s)%4 == 0:
		return nil
	case count == 2:
		dst = append(dst, byte(group>>4))
	case count == 3:
		dst = append(dst, byte(group>>10), byte(group>>2))
	}
	return dst
}
