package codec

import (
	"encoding/binary"
	"math/bits"
)

// digits8 returns the eight decimal digits of x < 1e8 as bytes 0 to 9, the first digit in the lowest byte.
func digits8(x uint32) uint64 {
	v := uint64(x/10000) | uint64(x%10000)<<32 // two groups of four
	q := v * 5243 >> 19 & 0x7f0000007f
	v = q | (v-q*100)<<16 // four groups of two
	q = v * 103 >> 10 & 0xf000f000f000f
	return q | (v-q*10)<<8
}

const ascii0 = 0x3030303030303030

// pairs holds the two digits of 0 to 99.
const pairs = "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899"

// digitCount returns the number of decimal digits of x < 1e8, 1 for 0. It is apart from digits8 so that where the next
// value goes does not wait for the digits.
func digitCount(x uint32) int {
	n := bits.Len32(x) * 1233 >> 12
	if x >= tens32[n&15] {
		n++
	}
	return n
}

// tens32 is 10^n, where 10^0 counts as 0: the one digit of 0 is a digit.
var tens32 = [16]uint32{0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9}

// appendUint writes x in decimal. dst must have room for 24 bytes.
func appendUint(dst []byte, x uint64) []byte {
	n := len(dst)
	if x < 100 {
		dst = dst[:n+2]
		if x < 10 {
			dst[n] = byte('0' + x)
			return dst[:n+1]
		}
		dst[n] = pairs[x*2]
		dst[n+1] = pairs[x*2+1]
		return dst
	}
	if x < 1e8 {
		k := digitCount(uint32(x))
		dst = dst[:n+8]
		binary.LittleEndian.PutUint64(dst[n:], (digits8(uint32(x))+ascii0)>>(64-k*8))
		return dst[:n+k]
	}
	hi := x / 1e8
	lo := uint32(x - hi*1e8)
	if hi >= 1e8 {
		top := hi / 1e8 // at most 1844
		hi -= top * 1e8
		dst = appendUint(dst, top)
		n = len(dst)
		dst = dst[:n+16]
		binary.LittleEndian.PutUint64(dst[n:], digits8(uint32(hi))+ascii0)
		n += 8
	} else {
		k := digitCount(uint32(hi))
		dst = dst[:n+16]
		binary.LittleEndian.PutUint64(dst[n:], (digits8(uint32(hi))+ascii0)>>(64-k*8))
		n += k
	}
	binary.LittleEndian.PutUint64(dst[n:], digits8(lo)+ascii0)
	return dst[:n+8]
}

// appendInt writes x in decimal. dst must have room for 24 bytes.
func appendInt(dst []byte, x int64) []byte {
	if x < 0 {
		return appendUint(append(dst, '-'), -uint64(x))
	}
	return appendUint(dst, uint64(x))
}

// allDigits reports whether the eight bytes are all '0' to '9'.
func allDigits(w uint64) bool {
	return w&0xf0f0f0f0f0f0f0f0 == ascii0 && (w+0x0606060606060606)&0xf0f0f0f0f0f0f0f0 == ascii0
}

// value8 returns the number written by eight digits, the first in the lowest byte.
func value8(w uint64) uint64 {
	w -= ascii0
	w = w*10 + w>>8
	return ((w&0xff000000ff)*(100+1000000<<32) + (w>>16&0xff000000ff)*(1+10000<<32)) >> 32
}

// digitSpan looks for the end of the digits at the start of w, the first in its lowest byte. It returns w with digits as 0
// to 9, for spanValue, and how many bits the digits take, 64 when all bytes are digits.
func digitSpan(w uint64) (t uint64, z uint) {
	t = w ^ ascii0
	return t, uint(bits.TrailingZeros64((t+0x7676767676767676|t)&each80)) &^ 7
}

// spanValue returns the number that the digits of digitSpan write.
func spanValue(t uint64, z uint) uint64 {
	t <<= 64 - z // leading zeros; nothing is left of no digits, as shifts by 64 give 0
	t = t*10 + t>>8
	return ((t&0xff000000ff)*(100+1000000<<32) + (t>>16&0xff000000ff)*(1+10000<<32)) >> 32
}

// digitRun returns how many of the eight bytes of w, from the lowest on, are digits, and the number they write.
func digitRun(w uint64) (n int, v uint64) {
	t, z := digitSpan(w)
	return int(z >> 3), spanValue(t, z)
}

// tens holds the powers of ten of a digit run.
var tens = [9]uint64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8}

// digitsAt goes on reading the digits at in[i:] into d, which has used digits, as long as there are at most 19 and they
// can be read by the word. Leading zeros do not count.
func digitsAt(in []byte, i int, d uint64, used int) (uint64, int, int) {
	for i+8 <= len(in) {
		k, v := digitRun(binary.LittleEndian.Uint64(in[i:]))
		if used+k > 19 {
			break
		}
		i += k
		if d != 0 {
			used += k
		} else if v != 0 {
			used = digitCount(uint32(v))
		}
		d = d*tens[k] + v
		if k < 8 {
			break
		}
	}
	return d, used, i
}

// decimal is a JSON number taken apart: ±digits·10^exp, where only 19 digits are kept.
type decimal struct {
	digits uint64
	exp    int
	neg    bool
	whole  bool // no point and no exponent
	long   bool // digits were lost
}

// scanNumber reads the JSON number at in[i:] and returns the index behind it, or -1 when there is none. Exponents saturate.
func scanNumber(in []byte, i int, n *decimal) int {
	*n = decimal{}
	if i < len(in) && in[i] == '-' {
		n.neg = true
		i++
	}
	start := i
	var d uint64
	used := 0  // digits of d
	exp := 0   // of the last digit of d
	frac := -1 // where the digits behind the point begin
	d, used, i = digitsAt(in, i, 0, 0)
	for i < len(in) && in[i]-'0' < 10 {
		n.long = n.long || used >= 19
		if used < 19 {
			d = d*10 + uint64(in[i]-'0')
			used++
		}
		i++
	}
	count := i - start
	if count == 0 || in[start] == '0' && count > 1 {
		return -1
	}
	if d == 0 || n.long {
		exp = count - max(used, 1)
	}
	n.whole = true
	if i < len(in) && in[i] == '.' {
		n.whole = false
		i++
		frac = i
	}
	if frac >= 0 {
		if !n.long {
			if d == 0 {
				used = 0
			}
			d, used, i = digitsAt(in, i, d, used)
			exp -= i - frac
		}
		for i < len(in) && in[i]-'0' < 10 {
			switch {
			case used < 19 && !n.long:
				d = d*10 + uint64(in[i]-'0')
				exp--
				if d != 0 {
					used++
				}
			case in[i] != '0':
				n.long = true
			}
			i++
		}
		if i == frac {
			return -1
		}
	}
	if i < len(in) && in[i]|0x20 == 'e' {
		n.whole = false
		i++
		neg := false
		if i < len(in) && (in[i] == '+' || in[i] == '-') {
			neg = in[i] == '-'
			i++
		}
		first := i
		x := 0
		for i < len(in) && in[i]-'0' < 10 {
			x = min(x*10+int(in[i]-'0'), 1<<40)
			i++
		}
		if i == first {
			return -1
		}
		if neg {
			x = -x
		}
		exp += x
	}
	n.digits, n.exp = d, exp
	return i
}
