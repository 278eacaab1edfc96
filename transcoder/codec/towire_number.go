package codec

import (
	"encoding/binary"
	"math"
	"math/bits"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// number reads the value of a numeric, boolean or enum field and returns what goes on the wire: a varint, or the bits of
// a fixed-width value.
func (r *reader) number(f *field, i int) (uint64, int) {
	in := r.in
	switch f.kind {
	case kindBool:
		switch r.at(i) {
		case 't':
			return 1, r.literal(i, "true")
		case 'f':
			return 0, r.literal(i, "false")
		}
		return 0, r.expected(i, "true or false")
	case kindEnum:
		return r.enumValue(f, i)
	case kindDouble, kindFloat:
		if r.at(i) != '"' {
			return r.floatNumber(f, i)
		}
		return r.float(f, i)
	}
	quoted := 0
	if r.at(i) == '"' {
		quoted = 1
	}
	start := i
	i += quoted
	neg := false
	if r.at(i) == '-' {
		neg = true
		i++
	}
	first := i
	var v uint64
	for i+8 <= len(in) && i-first < 16 {
		k, x := digitRun(binary.LittleEndian.Uint64(in[i:]))
		if k < 8 {
			if i+k-first > 19 {
				break
			}
			v = v*tens[k] + x
			i += k
			break
		}
		v = v*1e8 + x
		i += 8
	}
	for uint(i) < uint(len(in)) && in[i]-'0' < 10 && i-first < 19 {
		v = v*10 + uint64(in[i]-'0')
		i++
	}
	if i-first == 19 && uint(i) < uint(len(in)) && in[i]-'0' < 10 {
		if hi, lo := bits.Mul64(v, 10); hi == 0 && lo+uint64(in[i]-'0') >= lo {
			v = lo + uint64(in[i]-'0')
			i++
		}
	}
	n := i - first
	// The plain case: up to 20 digits and nothing behind them. Others go the long way.
	if n == 0 || n > 1 && in[first] == '0' || uint(i) >= uint(len(in)) || isWord(in[i]) || quoted == 1 && in[i] != '"' {
		return r.integerText(f, start)
	}
	w, ok := f.integer(v, neg)
	if !ok {
		return 0, r.fail(start, "out of range: "+found(in, start))
	}
	return w, i + quoted
}

// integer turns ±v into the wire form of an integer kind.
func (f *field) integer(v uint64, neg bool) (uint64, bool) {
	switch f.kind {
	case kindInt32, kindSint32, kindSfixed32, kindEnum:
		if neg {
			if v > 1<<31 {
				return 0, false
			}
			v = -v
		} else if v > math.MaxInt32 {
			return 0, false
		}
	case kindInt64, kindSint64, kindSfixed64:
		if neg {
			if v > 1<<63 {
				return 0, false
			}
			v = -v
		} else if v > math.MaxInt64 {
			return 0, false
		}
	case kindUint32, kindFixed32:
		if neg && v != 0 || v > math.MaxUint32 {
			return 0, false
		}
	default:
		if neg && v != 0 {
			return 0, false
		}
	}
	if f.kind == kindSint32 || f.kind == kindSint64 {
		v = protowire.EncodeZigZag(int64(v))
	}
	return v, true
}

// integerText reads an integer that is not plain digits: with a fraction of zeros, an exponent, 20 digits, escapes.
func (r *reader) integerText(f *field, i int) (uint64, int) {
	in := r.in
	if r.at(i) != '"' {
		var n decimal
		end := scanNumber(in, i, &n)
		if end < 0 || end < len(in) && isWord(in[end]) {
			return 0, r.expected(i, "an integer")
		}
		v, neg, ok := wholeNumber(in[i:end])
		w, fits := f.integer(v, neg)
		if !ok || !fits {
			return 0, r.expected(i, integerName(f))
		}
		return w, end
	}
	s, escaped, end := r.string(i)
	if end < 0 {
		return 0, end
	}
	if escaped {
		if s = appendUnescaped(nil, s); s == nil {
			return 0, r.badString(i)
		}
	}
	v, neg, ok := wholeNumber(s)
	w, fits := f.integer(v, neg)
	if !ok || !fits {
		return 0, r.expected(i, integerName(f))
	}
	return w, end
}

func integerName(f *field) string {
	switch f.kind {
	case kindInt32, kindSint32, kindSfixed32:
		return "a 32-bit integer"
	case kindInt64, kindSint64, kindSfixed64:
		return "a 64-bit integer"
	case kindUint32, kindFixed32:
		return "an unsigned 32-bit integer"
	}
	return "an unsigned 64-bit integer"
}

// wholeNumber returns the value of a JSON number that is an integer, whatever its notation: 100, 1e2, 1.0, 10.0e-1. As in
// protojson, more than 20 digits before the point are refused even when they are zeros.
func wholeNumber(s []byte) (v uint64, neg, ok bool) {
	var n decimal
	if len(s) == 0 || scanNumber(s, 0, &n) != len(s) {
		return 0, false, false
	}
	if s[0] == '-' {
		neg = true
		s = s[1:]
	}
	digits := func(s []byte) []byte {
		k := 0
		for k < len(s) && s[k]-'0' < 10 {
			k++
		}
		return s[:k]
	}
	whole := digits(s)
	s = s[len(whole):]
	if whole[0] == '0' {
		whole = nil
	}
	var frac []byte
	if len(s) > 0 && s[0] == '.' {
		frac = digits(s[1:])
		s = s[1+len(frac):]
		for len(frac) > 0 && frac[len(frac)-1] == '0' {
			frac = frac[:len(frac)-1]
		}
	}
	if len(whole) == 0 && len(frac) == 0 {
		return 0, false, true
	}
	exp := 0
	if len(s) > 0 {
		x, err := strconv.ParseInt(text(s[1:]), 10, 32)
		if err != nil {
			return 0, neg, false
		}
		exp = int(x)
	}
	if exp < 0 {
		keep := len(whole) + exp
		if len(frac) > 0 || keep < 0 {
			return 0, neg, false
		}
		for _, c := range whole[keep:] {
			if c != '0' {
				return 0, neg, false
			}
		}
		whole, exp = whole[:keep], 0
	} else if len(frac) > exp || len(whole)+exp > 20 {
		return 0, neg, false
	}
	zeros := exp - len(frac)
	for _, part := range [2][]byte{whole, frac} {
		for _, c := range part {
			if v > math.MaxUint64/10 || v == math.MaxUint64/10 && c > '5' {
				return 0, neg, false
			}
			v = v*10 + uint64(c-'0')
		}
	}
	for range zeros {
		if v > math.MaxUint64/10 {
			return 0, neg, false
		}
		v *= 10
	}
	return v, neg, true
}

// float reads a double or float in a string: a number, or one of the names of what is not finite.
func (r *reader) float(f *field, i int) (uint64, int) {
	s, escaped, end := r.string(i)
	if end < 0 {
		return 0, end
	}
	if escaped {
		if s = appendUnescaped(nil, s); s == nil {
			return 0, r.badString(i)
		}
	}
	v := math.NaN()
	switch string(s) {
	case "NaN":
	case "Infinity":
		v = math.Inf(1)
	case "-Infinity":
		v = math.Inf(-1)
	default:
		inner := reader{in: s}
		bits, n := inner.floatNumber(f, 0)
		if n != len(s) {
			return 0, r.expected(i, "a number")
		}
		return bits, end
	}
	if f.kind == kindFloat {
		return uint64(math.Float32bits(float32(v))), end
	}
	return math.Float64bits(v), end
}

// floatNumber reads a JSON number as the bits of a double or float.
func (r *reader) floatNumber(f *field, i int) (uint64, int) {
	in := r.in
	var n decimal
	end := scanNumber(in, i, &n)
	if end < 0 || end < len(in) && isWord(in[end]) {
		return 0, r.expected(i, "a number")
	}
	if f.kind == kindFloat {
		v, ok := float32Of(n.digits, n.exp)
		if n.long {
			var d float64
			d, ok = floatOfText(in[i:end], 32)
			v = float32(math.Abs(d))
		}
		if !ok {
			return 0, r.fail(i, "out of range: "+found(in, i))
		}
		bits := uint64(math.Float32bits(v))
		if n.neg {
			bits |= 1 << 31
		}
		return bits, end
	}
	v, ok := float64Of(n.digits, n.exp)
	if n.long {
		v, ok = floatOfText(in[i:end], 64)
		v = math.Abs(v)
	}
	if !ok {
		return 0, r.fail(i, "out of range: "+found(in, i))
	}
	bits := math.Float64bits(v)
	if n.neg {
		bits |= 1 << 63
	}
	return bits, end
}

// enumValue reads an enum value: a name, a number, or null for NullValue. With unknown fields discarded an unknown name
// is dropped.
func (r *reader) enumValue(f *field, i int) (uint64, int) {
	switch c := r.at(i); {
	case c == '"':
		s, escaped, end := r.string(i)
		if end < 0 {
			return 0, end
		}
		if escaped {
			if s = appendUnescaped(nil, s); s == nil {
				return 0, r.badString(i)
			}
		}
		if n, ok := f.enum.number(s); ok {
			return uint64(int64(n)), end
		}
		if r.discard {
			r.dropped = true
			return 0, end
		}
		return 0, r.fail(i, found(r.in, i)+" is not a value of enum "+string(f.enum.desc.FullName()))
	case c == 'n' && f.enum.null:
		return 0, r.literal(i, "null")
	case c == '-' || c-'0' < 10:
		return r.integerText(f, i)
	}
	return 0, r.expected(i, "a name or number of enum "+string(f.enum.desc.FullName()))
}
