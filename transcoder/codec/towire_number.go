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
	switch f.kind {
	case kindBool:
		if in := r.in; i <= len(in)-8 {
			switch w := binary.LittleEndian.Uint64(in[i:]); {
			case w&0xffffffff == 't'|'r'<<8|'u'<<16|'e'<<24 && tokens[byte(w>>32)] != 2:
				return 1, i + 4
			case w&0xffffffffff == 'f'|'a'<<8|'l'<<16|'s'<<24|'e'<<32 && tokens[byte(w>>40)] != 2:
				return 0, i + 5
			}
		}
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
	return r.integer(f, i)
}

// integer reads an integer. Up to 20 digits with nothing behind them are read here, by words of eight; whatever else is
// one goes the long way.
func (r *reader) integer(f *field, i int) (uint64, int) {
	in := r.in
	start := i
	if i > len(in)-27 {
		return r.shortInteger(f, start)
	}
	quoted, neg := 0, 0
	if in[i] == '"' {
		quoted = 1
		i++
	}
	if in[i] == '-' { // no branch: signs are hard to foresee

		neg = 1
	}
	i += neg
	word := in[i : i+25]
	first := binary.LittleEndian.Uint64(word) // its lowest byte is word[0], whose own load would split this one
	t, z := digitSpan(first)
	v := spanValue(t, z)
	n := z >> 3
	if n == 8 {
		t, z = digitSpan(binary.LittleEndian.Uint64(word[8:]))
		v = v*tens[z>>3] + spanValue(t, z)
		if n += z >> 3; n == 16 {
			k, low := digitRun(binary.LittleEndian.Uint64(word[16:]))
			hi, lo := bits.Mul64(v, tens[k])
			var carry uint64
			if v, carry = bits.Add64(lo, low, 0); hi|carry != 0 || k > 4 {
				return r.integerText(f, start)
			}
			n += uint(k)
		}
	}
	if n == 0 || n > 1 && byte(first) == '0' || tokens[word[n]] != byte(quoted) {
		return r.integerText(f, start)
	}
	w, ok := f.integer(v, neg)
	if !ok {
		return 0, r.fail(start, "out of range: "+found(in, start))
	}
	return w, i + int(n) + quoted
}

// shortInteger is integer at the end of the text, one digit at a time.
func (r *reader) shortInteger(f *field, start int) (uint64, int) {
	in := r.in
	i := start
	quoted := 0
	if r.at(i) == '"' {
		quoted = 1
		i++
	}
	neg := 0
	if r.at(i) == '-' {
		neg = 1
		i++
	}
	first := i
	var v uint64
	for i < len(in) && in[i]-'0' < 10 && i-first < 19 {
		v = v*10 + uint64(in[i]-'0')
		i++
	}
	n := i - first
	if n == 0 || n > 1 && in[first] == '0' || i == len(in) || tokens[in[i]] != byte(quoted) {
		return r.integerText(f, start)
	}
	w, ok := f.integer(v, neg)
	if !ok {
		return 0, r.fail(start, "out of range: "+found(in, start))
	}
	return w, i + quoted
}

// tokens tells what may follow the digits of an integer: 0 for what ends a bare one, 1 for the quote, which ends a quoted
// one, 2 for what neither may be followed by.
var tokens = func() (t [256]byte) {
	for c := range t {
		if isWord(byte(c)) {
			t[c] = 2
		}
	}
	t['"'] = 1
	return t
}()

// integer turns v, or -v when neg is 1, into the wire form of an integer kind.
func (f *field) integer(v uint64, neg int) (uint64, bool) {
	if v > f.most[neg&1] {
		return 0, false
	}
	v = (v ^ -uint64(neg)) + uint64(neg)
	if f.zigzag {
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
func wholeNumber(s []byte) (v uint64, neg int, ok bool) {
	var n decimal
	if len(s) == 0 || scanNumber(s, 0, &n) != len(s) {
		return 0, 0, false
	}
	if s[0] == '-' {
		neg = 1
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
		return 0, 0, true
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

// floatNumber reads a JSON number as the bits of a double or float. Numbers of up to 15 digits before the point and 19 in
// all are read here, by words of eight; others go the long way.
func (r *reader) floatNumber(f *field, i int) (uint64, int) {
	in := r.in
	start := i
	if i > len(in)-48 {
		return r.longNumber(f, start)
	}
	neg := 0
	if in[i] == '-' {
		neg = 1
	}
	sign := uint64(neg) << 63
	i += neg
	first := binary.LittleEndian.Uint64(in[i:])
	k, v := digitRun(first)
	if k == 0 || byte(first) == '0' && k > 1 {
		return r.longNumber(f, start)
	}
	if k == 8 {
		k2, x := digitRun(binary.LittleEndian.Uint64(in[i+8:]))
		v = v*tens[k2] + x
		if k += k2; k == 16 {
			return r.longNumber(f, start)
		}
	}
	exp := 0
	if i += k; in[i] == '.' {
		frac := in[i+1 : i+26]
		n, x := digitRun(binary.LittleEndian.Uint64(frac))
		if n == 0 {
			return r.longNumber(f, start)
		}
		whole := v
		v = v*tens[n] + x
		if n == 8 {
			n2, x := digitRun(binary.LittleEndian.Uint64(frac[8:]))
			v = v*tens[n2] + x
			if n += n2; n == 16 && whole == 0 {
				k = 0
				n2, x := digitRun(binary.LittleEndian.Uint64(frac[16:]))
				v = v*tens[n2] + x
				n += n2
			}
		}
		if k+n > 19 {
			return r.longNumber(f, start)
		}
		exp = -n
		i += n + 1
	}
	c := in[i]
	if c|0x20 == 'e' {
		i++
		neg := in[i] == '-'
		if neg || in[i] == '+' {
			i++
		}
		x := int(in[i] - '0')
		if x > 9 {
			return r.longNumber(f, start)
		}
		for i++; in[i]-'0' < 10 && x < 100; i++ {
			x = x*10 + int(in[i]-'0')
		}
		if neg {
			x = -x
		}
		exp += x
		c = in[i]
	}
	if tokens[c] != 0 {
		return r.longNumber(f, start)
	}
	if f.kind == kindFloat {
		d, ok := float32Of(v, exp)
		if !ok {
			return 0, r.fail(start, "out of range: "+found(in, start))
		}
		return uint64(math.Float32bits(d)) | sign>>32, i
	}
	d, ok := float64Of(v, exp)
	if !ok {
		return 0, r.fail(start, "out of range: "+found(in, start))
	}
	return math.Float64bits(d) | sign, i
}

// longNumber is floatNumber for any number.
func (r *reader) longNumber(f *field, i int) (uint64, int) {
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
