package codec

import (
	"encoding/binary"
	"math"
	"math/bits"
	"strconv"
)

// Floating point to shortest decimal and back, by exact scaling with a 128-bit power of ten: x·2^e·10^p is computed to
// two bits below the integer point, the lowest being sticky, which is enough to round every way correctly. The method is
// Russ Cox, "Floating-Point Printing and Parsing Can Be Simple And Fast" (2026).

// unrounded is a number times four, truncated, with the lowest bit set when anything was cut off.
type unrounded uint64

func (u unrounded) floor() uint64 { return uint64(u >> 2) }
func (u unrounded) ceil() uint64  { return uint64((u + 3) >> 2) }
func (u unrounded) round() uint64 { return uint64((u + 1 + (u>>2)&1) >> 2) }

// log10Pow2 is floor(log10 2^x) and log2Pow10 is floor(log2 10^x), exact over all exponents of a float64.
func log10Pow2(x int) int { return (x * 78913) >> 18 }
func log2Pow10(x int) int { return (x * 108853) >> 15 }

// log10ThreeQuarters is floor(log10(3/4·2^x)), for the narrower interval below a power of two.
func log10ThreeQuarters(x int) int { return (x*631305 - 261663) >> 21 }

// scaler multiplies by 2^e·10^p.
type scaler struct {
	hi, lo uint64
	shift  uint
}

// newScaler returns the scaler of e and p, where lp is log2Pow10(p).
func newScaler(e, p, lp int) scaler {
	t := &pow10[p-pow10Min]
	return scaler{t.hi, t.lo, uint(-(e + lp + 3)) & 63}
}

// scale returns the product with x, unrounded. The top bit of x is set, or so near the top that the product fits.
func (c *scaler) scale(x uint64) unrounded {
	hi, mid := bits.Mul64(x, c.hi)
	if hi&(1<<c.shift-1) != 0 {
		return unrounded(hi>>c.shift | 1)
	}
	return c.exactly(x, hi, mid)
}

// exactly is scale where the upper half of the product does not tell whether anything is cut off.
func (c *scaler) exactly(x, hi, mid uint64) unrounded {
	mid2, _ := bits.Mul64(x, c.lo)
	var sticky uint64
	if mid-mid2 > 1 {
		sticky = 1
	}
	if mid < mid2 {
		hi--
	}
	return unrounded(hi>>c.shift | sticky)
}

// shortest returns the shortest decimal d·10^p that reads back as the float m·2^e. The top bit of m is set, zeros says how
// many low bits of m lie below the float's precision, minExp is the exponent of the least subnormal.
func shortest(m uint64, e, zeros, minExp int) (d uint64, p int) {
	z := zeros
	var low uint64
	if m == 1<<63 && e+z > minExp {
		p = -log10ThreeQuarters(e + z)
		low = m - 1<<(z-2)
	} else {
		if e+z < minExp {
			z = minExp - e
		}
		p = -log10Pow2(e + z)
		low = m - 1<<(z-1)
	}
	high := m + 1<<(z-1)
	odd := unrounded(m>>z) & 1
	c := newScaler(e, p, log2Pow10(p))
	dmin := (c.scale(low) + odd).ceil()
	dmax := (c.scale(high) - odd).floor()
	if d = dmax / 10; d*10 >= dmin {
		p = -(p - 1)
		for d%100 == 0 {
			d, p = d/100, p+2
		}
		if d%10 == 0 {
			d, p = d/10, p+1
		}
		return d, p
	}
	if d = dmin; d < dmax {
		d = c.scale(m).round()
	}
	return d, -p
}

// appendFloat64 writes f as protojson does: shortest digits, an exponent below 1e-6 and from 1e21, and the three names
// as strings.
func appendFloat64(dst []byte, f float64) []byte {
	dst = room(dst, 64)
	b := math.Float64bits(f)
	if b>>63 != 0 {
		dst = append(dst, '-')
		f = -f
		b &= 1<<63 - 1
	}
	if f < 1<<53 {
		if u := uint64(f); float64(u) == f {
			return appendUint(dst, u)
		}
		// A decimal of at most 15 digits that reads back as f is the only one: nothing shorter exists but itself
		// without trailing zeros.
		if f >= 1e-6 && f < 1e9 {
			if u := uint64(f*1e6 + 0.5); float64(u)/1e6 == f {
				return appendMicros(dst, u)
			}
		}
	} else if b >= 0x7ff<<52 {
		return appendNonFinite(dst, b != 0x7ff<<52)
	}
	exp := int(b >> 52)
	m := b & (1<<52 - 1)
	if exp == 0 {
		s := bits.LeadingZeros64(m)
		d, p := shortest(m<<s, -1074-s, 11, -1074)
		return appendDecimal(dst, d, p)
	}
	d, p := shortest(m<<11|1<<63, exp-1075-11, 11, -1074)
	return appendDecimal(dst, d, p)
}

// appendFloat32 is appendFloat64 with the shortest digits that tell f from other float32 values.
func appendFloat32(dst []byte, f float32) []byte {
	dst = room(dst, 64)
	b := math.Float32bits(f)
	if b>>31 != 0 {
		dst = append(dst, '-')
		f = -f
		b &= 1<<31 - 1
	}
	if f < 1<<24 {
		if u := uint64(f); float32(u) == f {
			return appendUint(dst, u)
		}
	} else if b >= 0xff<<23 {
		return appendNonFinite(dst, b != 0xff<<23)
	}
	if b == 115<<23 { // 2^-12 lies half-way between two shortest decimals. protojson has which of them strconv takes
		return strconv.AppendFloat(dst, float64(f), 'f', -1, 32)
	}
	exp := int(b >> 23)
	m := uint64(b & (1<<23 - 1))
	if exp == 0 {
		s := bits.LeadingZeros64(m)
		d, p := shortest(m<<s, -149-s, 40, -149)
		return appendDecimal(dst, d, p)
	}
	d, p := shortest(m<<40|1<<63, exp-150-40, 40, -149)
	return appendDecimal(dst, d, p)
}

// appendNonFinite writes the name of an infinity, whose sign is written already, or of a NaN.
func appendNonFinite(dst []byte, nan bool) []byte {
	neg := len(dst) > 0 && dst[len(dst)-1] == '-'
	if neg {
		dst = dst[:len(dst)-1]
	}
	switch {
	case nan:
		return append(dst, `"NaN"`...)
	case neg:
		return append(dst, `"-Infinity"`...)
	}
	return append(dst, `"Infinity"`...)
}

// appendMicros writes u millionths without trailing zeros. u must not be a whole number of millions, and dst have room.
func appendMicros(dst []byte, u uint64) []byte {
	whole := u / 1e6
	dst = appendUint(dst, whole)
	v := digits8(uint32(u-whole*1e6)) >> 8 // the second of eight digits on: a zero for the point and six digits
	n := len(dst)
	dst = dst[:n+8]
	binary.LittleEndian.PutUint64(dst[n:], v+ascii0)
	dst[n] = '.'
	return dst[:n+8-bits.LeadingZeros64(v)/8]
}

// appendDecimal writes d·10^p, where d > 0 has at most 17 digits. dst must have room for 48 bytes.
func appendDecimal(dst []byte, d uint64, p int) []byte {
	var buf [64]byte // digits, and room to copy a fixed size from any of them on
	nd := len(appendUint(buf[:0], d))
	n := len(dst)
	point := nd + p // digits before the point
	switch {
	case point > 21 || point <= -6: // d.ddde±x
		dst = append(dst, buf[0])
		if nd > 1 {
			dst = append(dst, '.')
			dst = append(dst, buf[1:nd]...)
		}
		dst = append(dst, 'e')
		exp := point - 1
		if exp < 0 {
			dst = append(dst, '-')
			exp = -exp
		} else {
			dst = append(dst, '+')
		}
		return appendUint(dst, uint64(exp))
	case point <= 0: // 0.000ddd
		z := 2 - point
		out := dst[n : n+32]
		*(*[8]byte)(out) = [8]byte{'0', '.', '0', '0', '0', '0', '0', '0'}
		*(*[24]byte)(out[z:]) = *(*[24]byte)(buf[:])
		return dst[:n+z+nd]
	case point < nd: // dd.ddd
		out := dst[n : n+48]
		*(*[24]byte)(out) = *(*[24]byte)(buf[:])
		out[point] = '.'
		*(*[24]byte)(out[point+1:]) = *(*[24]byte)(buf[point&31:])
		return dst[:n+nd+1]
	}
	dst = append(dst, buf[:nd]...)
	for range point - nd {
		dst = append(dst, '0')
	}
	return dst
}

// float64Of returns the float64 nearest to d·10^p, where d has at most 19 digits, and false when it is out of range.
func float64Of(d uint64, p int) (float64, bool) {
	if d < 1<<53 && uint(p+22) <= 44 { // both exact, one rounding
		if p < 0 {
			return float64(d) / exact10[-p], true
		}
		return float64(d) * exact10[p], true
	}
	if d == 0 || p < -344 {
		return 0, true
	}
	if p > 310 {
		return 0, false
	}
	b := bits.Len64(d)
	lp := log2Pow10(p)
	e := min(1074, 53-b-lp)
	if e+b+lp < -2 { // less than a quarter of the least subnormal; the shift would not fit
		return 0, true
	}
	c := newScaler(e-(64-b), p, lp)
	u := c.scale(d << (64 - b))
	if u >= 1<<55-2 {
		u = u>>1 | u&1
		e--
	}
	m := u.round()
	if m&(1<<52) == 0 {
		return math.Float64frombits(m), true
	}
	if 1075-e >= 0x7ff {
		return 0, false
	}
	return math.Float64frombits(m&^(1<<52) | uint64(1075-e)<<52), true
}

// float32Of is float64Of for float32: rounded once, not by way of a float64.
func float32Of(d uint64, p int) (float32, bool) {
	if d < 1<<24 && uint(p+10) <= 20 {
		if p < 0 {
			return float32(d) / float32(exact10[-p]), true
		}
		return float32(d) * float32(exact10[p]), true
	}
	if d == 0 || p < -70 {
		return 0, true
	}
	if p > 40 {
		return 0, false
	}
	b := bits.Len64(d)
	lp := log2Pow10(p)
	e := min(149, 24-b-lp)
	if e+b+lp < -2 {
		return 0, true
	}
	c := newScaler(e-(64-b), p, lp)
	u := c.scale(d << (64 - b))
	if u >= 1<<26-2 {
		u = u>>1 | u&1
		e--
	}
	m := u.round()
	if m&(1<<23) == 0 {
		return math.Float32frombits(uint32(m)), true
	}
	if 150-e >= 0xff {
		return 0, false
	}
	return math.Float32frombits(uint32(m)&^(1<<23) | uint32(150-e)<<23), true
}

// exact10 holds the powers of ten a float64 holds exactly; those to 1e10 are exact in a float32 too.
var exact10 = [...]float64{
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
}

// floatOfText is the rare way for numbers of more than 19 digits. The text is a JSON number.
func floatOfText(s []byte, size int) (float64, bool) {
	f, err := strconv.ParseFloat(text(s), size)
	return f, err == nil
}
