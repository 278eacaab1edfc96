package codec

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// reader is the state of one JSON → wire call.
//
// Its methods read in[i:], append to dst, and return dst and the index behind what they read, -1 after a fault.
type reader struct {
	types   *Types
	style   int // which names to try first
	discard bool
	partial bool // inside an Any, where required fields are not checked
	dropped bool // the value just read is an unknown enum name to discard
	depth   int  // levels left
	in      []byte

	// Lengths that got longer than the byte left for them, to be put right at the end (settle).
	fixes []fix
	extra int // the bytes that they will add

	// Arenas, used as stacks.
	seen    []uint64 // bit sets of messages with more than 64 fields
	exts    []*field // extensions seen
	keys    []mapKey
	index   []int32
	scratch []byte

	offset int
	named  bool // the fault is that of the member whose name is at offset
	msg    string
}

// fix is a length prefix to be widened: the place and size of the room left for it, and the length.
type fix struct {
	at, have, n int
}

func (r *reader) fail(i int, msg string) int {
	r.offset, r.named, r.msg = i, false, msg
	return -1
}

// failKey is fail for the member whose name is at in[i:].
func (r *reader) failKey(i int, msg string) int {
	r.offset, r.named, r.msg = i, true, msg
	return -1
}

// expected notes that something else than what was found at in[i:].
func (r *reader) expected(i int, what string) int {
	return r.fail(i, "expected "+what+", found "+found(r.in, i))
}

// found shows the token at in[i:] for a message, cut short.
func found(in []byte, i int) string {
	if i >= len(in) {
		return "the end"
	}
	n := 1
	switch c := in[i]; {
	case c == '"':
		end, _, _ := scanString(in, i+1)
		if end < 0 {
			return "a string without end"
		}
		n = end + 1 - i
	case c == 0xEF && string(in[i:min(i+3, len(in))]) == "\ufeff":
		return "a byte order mark"
	case c == '{':
		return "an object"
	case c == '[':
		return "an array"
	case isWord(c):
		for i+n < len(in) && isWord(in[i+n]) {
			n++
		}
	}
	if n > 40 {
		return string(bytes.ToValidUTF8(in[i:i+37], nil)) + "..."
	}
	return string(bytes.ToValidUTF8(in[i:i+n], []byte("\uFFFD")))
}

func isWord(c byte) bool {
	return c-'0' < 10 || c|0x20-'a' < 26 || c == '-' || c == '+' || c == '.' || c == '_'
}

// space returns the index of the first byte from in[i] on that is not white space.
func space(in []byte, i int) int {
	for i < len(in) && in[i] <= ' ' && (in[i] == ' ' || in[i] == '\n' || in[i] == '\t' || in[i] == '\r') {
		i++
	}
	return i
}

// at returns in[i], or 0 at the end.
func (r *reader) at(i int) byte {
	if uint(i) < uint(len(r.in)) {
		return r.in[i]
	}
	return 0
}

// message reads a message of any type.
func (r *reader) message(dst []byte, m *message, i int) ([]byte, int) {
	if m.special != plain {
		return r.wellKnown(dst, m, i)
	}
	return r.object(dst, m, i, false)
}

// object reads an object as the fields of a message. In an Any the key "@type" is passed over.
func (r *reader) object(dst []byte, m *message, i int, inAny bool) ([]byte, int) {
	in := r.in
	if r.at(i) != '{' {
		return dst, r.expected(i, "an object")
	}
	if r.depth--; r.depth < 0 {
		return dst, r.fail(i, "nested too deeply")
	}
	open := i
	sbase, xbase := len(r.seen), len(r.exts)
	wide := m.seenWords > 1
	if wide {
		for range m.seenWords {
			r.seen = append(r.seen, 0)
		}
	}
	var seen uint64
	required := 0
	typed := false
	next := 0
	i = space(in, i+1)
	if r.at(i) == '}' {
		i++
		goto done
	}
	for {
		if uint(i) >= uint(len(in)) || in[i] != '"' {
			return dst, r.expected(i, "a field name")
		}
		keyAt := i
		i++
		var f *field
		if i+16 <= len(in) {
			// Clients write fields in order of declaration more often than not, and leave out some.
			a, b := binary.LittleEndian.Uint64(in[i:]), binary.LittleEndian.Uint64(in[i+8:])
			for x := next; x < len(m.fields) && x < next+4; x++ {
				g := &m.fields[x]
				k := &g.name[r.style]
				if (a^k.w[0])&k.mask[0]|(b^k.w[1])&k.mask[1] == 0 &&
					(k.n <= 16 || len(in)-i >= k.n && string(in[i+16:i+k.n]) == k.rest) {
					f = g
					i += k.n
					break
				}
			}
		}
		if f == nil {
			var what keyed
			if f, what, i = r.key(m, i, inAny); i < 0 {
				return dst, i
			}
			switch what {
			case keyType:
				if typed {
					return dst, r.fail(keyAt, `duplicate "@type"`)
				}
				typed = true
				if i = r.skipValue(i); i < 0 {
					return dst, i
				}
				goto comma
			case keyUnknown:
				if i = r.skipValue(i); i < 0 {
					return dst, i
				}
				goto comma
			case keyExtension:
				if slices.Contains(r.exts[xbase:], f) {
					return dst, r.failKey(keyAt, "duplicate field")
				}
				r.exts = append(r.exts, f)
			}
		}
		if uint(i) < uint(len(in)) && in[i] <= ' ' {
			i = space(in, i)
		}
		if x := f.idx; x >= 0 {
			next = int(x) + 1
			if !wide {
				if seen>>uint(x)&1 != 0 {
					return dst, r.failKey(keyAt, "duplicate field")
				}
				seen |= 1 << uint(x)
			} else if !r.mark(sbase, int(x)) {
				return dst, r.failKey(keyAt, "duplicate field")
			}
		}
		if r.at(i) == 'n' && !f.null {
			if i = r.literal(i, "null"); i < 0 {
				return dst, i
			}
			goto comma
		}
		if f.oneof != 0 {
			x := len(m.fields) + int(f.oneof) - 1
			if !wide {
				if seen>>uint(x)&1 != 0 {
					return dst, r.otherMember(f, keyAt)
				}
				seen |= 1 << uint(x)
			} else if !r.mark(sbase, x) {
				return dst, r.otherMember(f, keyAt)
			}
		}
		if f.shape == shapeSingular {
			dst, i = r.single(dst, f, i)
			if f.kind == kindEnum && r.dropped {
				r.dropped = false
			} else if f.required {
				required++
			}
		} else if f.shape == shapeList {
			dst, i = r.list(dst, f, i)
		} else {
			dst, i = r.mapField(dst, f, i)
		}
		if i < 0 {
			return dst, i
		}
	comma:
		if uint(i) >= uint(len(in)) || in[i] <= ' ' {
			i = space(in, i)
		}
		switch r.at(i) {
		case ',':
			i++
			if r.at(i) != '"' {
				i = space(in, i)
			}
		case '}':
			i++
			goto done
		default:
			return dst, r.expected(i, "a comma or the end of the object")
		}
	}
done:
	if required < m.required && !r.partial {
		return dst, r.fail(open, "a required field of "+string(m.desc.FullName())+" is not set")
	}
	r.seen, r.exts = r.seen[:sbase], r.exts[:xbase]
	r.depth++
	return dst, i
}

// mark sets bit x of the set at r.seen[base:] and reports whether it was not set before.
func (r *reader) mark(base, x int) bool {
	word, bit := &r.seen[base+x/64], uint64(1)<<(x&63)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

func (r *reader) otherMember(f *field, i int) int {
	return r.failKey(i, "another field of oneof "+string(f.desc.ContainingOneof().Name())+" is set already")
}

// keyed says what an object key is.
type keyed uint8

const (
	keyField keyed = iota
	keyExtension
	keyType    // "@type" of an Any
	keyUnknown // to be discarded
)

// key reads an object key whose first character is in[i], and the colon.
func (r *reader) key(m *message, i int, inAny bool) (*field, keyed, int) {
	at := i - 1
	end, escaped, high := scanString(r.in, i)
	if end < 0 {
		return nil, 0, r.badString(at)
	}
	name := r.in[i:end]
	if high != 0 && !validUTF8(name) {
		return nil, 0, r.fail(at, "not valid UTF-8")
	}
	if escaped {
		base := len(r.scratch)
		b := appendUnescaped(r.scratch[base:], name)
		if b == nil {
			return nil, 0, r.badString(at)
		}
		r.scratch = append(r.scratch, b...)[:base]
		name = b
	}
	i = space(r.in, end+1)
	if r.at(i) != ':' {
		return nil, 0, r.expected(i, "a colon")
	}
	i = space(r.in, i+1)
	if inAny && string(name) == "@type" {
		return nil, keyType, i
	}
	if len(name) > 1 && name[0] == '[' && name[len(name)-1] == ']' {
		f, err := m.extensionNamed(name[1 : len(name)-1])
		if err != nil {
			return nil, 0, r.fail(at, err.Error())
		}
		if f != nil {
			return f, keyExtension, i
		}
	} else if x := m.names.find(name); x >= 0 {
		return &m.fields[x], keyField, i
	}
	if !r.discard {
		return nil, 0, r.failKey(at, "unknown field")
	}
	return nil, keyUnknown, i
}

// badString notes what is wrong with the string that starts at in[i].
func (r *reader) badString(i int) int {
	end, _, _ := scanString(r.in, i+1)
	if end >= 0 {
		return r.fail(i, "malformed escape in a string")
	}
	for _, c := range r.in[i+1:] {
		if c == '"' {
			break
		}
		if c < ' ' {
			return r.fail(i, "control character in a string")
		}
	}
	return r.fail(i, "a string without end")
}

// literal reads true, false or null.
func (r *reader) literal(i int, word string) int {
	if end := i + len(word); end <= len(r.in) && string(r.in[i:end]) == word && (end == len(r.in) || !isWord(r.in[end])) {
		return end
	}
	return r.expected(i, "a value")
}

// appendTag writes a field's tag and leaves room for 16 bytes.
func appendTag(dst []byte, f *field) []byte {
	dst = room(dst, 24)
	n := len(dst)
	binary.LittleEndian.PutUint64(dst[n:n+8], f.tagBytes)
	return dst[:n+int(f.tagLen)]
}

// single reads the value of a singular field, or of a map entry, and writes its record. What is implied is not written.
func (r *reader) single(dst []byte, f *field, i int) ([]byte, int) {
	switch f.kind {
	case kindString:
		if out, end := r.shortString(dst, f, i); end >= 0 {
			return out, end
		}
		s, escaped, end := r.string(i)
		if end < 0 || len(s) == 0 && f.implicit {
			return dst, end
		}
		return r.appendString(appendTag(dst, f), s, escaped, i, end)
	case kindBytes:
		start := len(dst)
		dst = appendTag(dst, f)
		open := len(dst)
		if dst, i = r.bytes(dst, i); i >= 0 && f.implicit && len(dst) == open+1 {
			dst = dst[:start]
		}
		return dst, i
	case kindMessage:
		dst = append(appendTag(dst, f), 0)
		at, extra := len(dst), r.extra
		if dst, i = r.message(dst, f.msg, i); i < 0 {
			return dst, i
		}
		if n := len(dst) - at; n < 0x80 && r.extra == extra {
			dst[at-1] = byte(n)
			return dst, i
		}
		return r.close(dst, at, 1, extra), i
	case kindGroup:
		dst = appendTag(dst, f)
		if dst, i = r.message(dst, f.msg, i); i < 0 {
			return dst, i
		}
		return protowire.AppendVarint(dst, uint64(f.tag&^7|uint32(protowire.EndGroupType))), i
	}
	var v uint64
	switch {
	case f.integral:
		v, i = r.integer(f, i)
	case f.kind == kindDouble && r.at(i) != '"':
		v, i = r.floatNumber(f, i)
	default:
		v, i = r.number(f, i)
	}
	if i < 0 || v == 0 && f.implicit || f.kind == kindEnum && r.dropped {
		return dst, i
	}
	dst = appendTag(dst, f)
	if f.wire == protowire.VarintType && v < 0x80 {
		return append(dst, byte(v)), i
	}
	return appendRaw(dst, f.wire, v), i
}

// appendRaw writes a numeric value in its wire type. dst must have room for 10 bytes.
func appendRaw(dst []byte, t protowire.Type, v uint64) []byte {
	n := len(dst)
	switch t {
	case protowire.Fixed32Type:
		binary.LittleEndian.PutUint32(dst[n:n+4], uint32(v))
		return dst[:n+4]
	case protowire.Fixed64Type:
		binary.LittleEndian.PutUint64(dst[n:n+8], v)
		return dst[:n+8]
	}
	return appendVarint(dst, v)
}

// appendVarint writes a varint. dst must have room for 10 bytes.
func appendVarint(dst []byte, v uint64) []byte {
	n := len(dst)
	if v < 0x80 {
		dst = dst[:n+1]
		dst[n] = byte(v)
		return dst
	}
	return appendLongVarint(dst, v)
}

// appendLongVarint is appendVarint without a branch for each byte.
func appendLongVarint(dst []byte, v uint64) []byte {
	n := len(dst)
	out := dst[n : n+10]
	size := uint(bits.Len64(v)*9+64) / 64
	if size > 8 {
		out[8] = byte(v>>56) | 0x80
		out[9] = byte(v >> 63)
		if size == 9 {
			out[8] &= 0x7f
		}
		v |= 1 << 56 // all eight below go on
	}
	// Groups of seven bits to bytes of eight: 56 bits to two times 28 in 32, to four times 14 in 16, to eight times 7 in 8.
	w := v&0xfffffff | v<<4&0xfffffff00000000
	w = w&0x3fff00003fff | w<<2&0x3fff00003fff0000
	w = w&0x7f007f007f007f | w<<1&0x7f007f007f007f00
	w |= each80 & (1<<(8*min(size-1, 8)) - 1)
	binary.LittleEndian.PutUint64(out, w)
	return dst[:n+int(size)]
}

// string reads a JSON string and returns what is between its quotes, valid UTF-8 but not unescaped.
func (r *reader) string(i int) (s []byte, escaped bool, end int) {
	in := r.in
	if uint(i) >= uint(len(in)) || in[i] != '"' {
		return nil, false, r.expected(i, "a string")
	}
	end, escaped, high := scanString(in, i+1)
	if end < 0 {
		return nil, false, r.badString(i)
	}
	s = in[i+1 : end]
	if high != 0 && !validUTF8(s) {
		return nil, false, r.fail(i, "not valid UTF-8")
	}
	return s, escaped, end + 1
}

// shortString reads a string without escapes whose length fits one byte, and writes its record, in one go. It returns -1
// for any other, before anything is written or noted.
func (r *reader) shortString(dst []byte, f *field, i int) ([]byte, int) {
	in := r.in
	if !vectors || i+1 >= len(in) || in[i] != '"' {
		return dst, -1
	}
	dst = room(dst, 8+1+127+32)
	n := len(dst)
	binary.LittleEndian.PutUint64(dst[n:n+8], f.tagBytes)
	n += int(f.tagLen)
	out := dst[n : n+160]
	i++
	k, high := copyPlain(&out[1], &in[i], min(len(in)-i, 127))
	if k < 0 || uint(i+k) >= uint(len(in)) || in[i+k] != '"' || high != 0 && !validUTF8(in[i:i+k]) {
		return dst, -1
	}
	if k == 0 && f.implicit && f.shape == shapeSingular {
		return dst, i + 1
	}
	out[0] = byte(k)
	return dst[:n+1+k], i + k + 1
}

// appendString writes the length and content of a string found by string, which began at in[i] and ended before end.
func (r *reader) appendString(dst, s []byte, escaped bool, i, end int) ([]byte, int) {
	if !escaped {
		dst = appendVarint(room(dst, 10+len(s)), uint64(len(s)))
		return append(dst, s...), end
	}
	width := protowire.SizeVarint(uint64(len(s))) // unescaped it is shorter
	dst = append(room(dst, 10+len(s)), "\x00\x00\x00\x00\x00"[:width]...)
	at, extra := len(dst), r.extra
	if dst = appendUnescaped(dst, s); dst == nil {
		return dst, r.badString(i)
	}
	return r.close(dst, at, width, extra), end
}

// bytes reads a base64 string and writes its length and content.
func (r *reader) bytes(dst []byte, i int) ([]byte, int) {
	if r.at(i) != '"' {
		return dst, r.expected(i, "a string")
	}
	// What is neither base64 nor the closing quote ends the quick way, be it wrong or escaped.
	if k := bytes.IndexByte(r.in[i+1:], '"'); k >= 0 {
		if out := appendSized(dst, r.in[i+1:i+1+k], false); out != nil {
			return out, i + k + 2
		}
	}
	s, escaped, end := r.string(i)
	if end < 0 {
		return dst, end
	}
	if escaped {
		if s = appendUnescaped(nil, s); s == nil {
			return dst, r.badString(i)
		}
	}
	if dst = appendSized(dst, s, true); dst == nil {
		return dst, r.expected(i, "base64")
	}
	return dst, end
}

// appendSized writes the length of what s is in base64, and that, or returns nil. Line breaks can only have come as
// escapes.
func appendSized(dst, s []byte, breaks bool) []byte {
	n := len(s) / 4 * 3
	switch {
	case len(s)%4 != 0:
		n += len(s)%4 - 1
	case len(s) > 0 && s[len(s)-1] == '=':
		n--
		if s[len(s)-2] == '=' {
			n--
		}
	}
	dst = appendVarint(room(dst, 16+n), uint64(n))
	at := len(dst)
	if dst = appendUnbase64(dst, s, breaks); dst == nil || len(dst) == at+n {
		return dst
	}
	// Line breaks made it shorter.
	content := bytes.Clone(dst[at:])
	return protowire.AppendBytes(dst[:at-protowire.SizeVarint(uint64(n))], content)
}

const moveNow = 1024 // contents up to this size are moved at once when their length takes more room than left

// close writes the length of dst[at:], for which width bytes were left before at, when the fixes until then came to extra
// bytes. Short contents are moved to make room; long ones are moved once, together, at the end: nested messages would
// otherwise move theirs once per level.
func (r *reader) close(dst []byte, at, width, extra int) []byte {
	n := len(dst) - at + r.extra - extra
	need := protowire.SizeVarint(uint64(n))
	switch {
	case need > width && n > moveNow:
		r.fixes = append(r.fixes, fix{at - width, width, n})
		r.extra += need - width
		return dst
	case need > width:
		dst = append(dst, "\x00\x00\x00\x00\x00"[:need-width]...)
		copy(dst[at+need-width:], dst[at:])
	case need < width:
		copy(dst[at+need-width:], dst[at:])
		dst = dst[:len(dst)+need-width]
	}
	putLength(dst[at-width:], n)
	return dst
}

func putLength(b []byte, n int) {
	i := 0
	for n >= 0x80 {
		b[i] = byte(n) | 0x80
		n >>= 7
		i++
	}
	b[i] = byte(n)
}

// settle widens the lengths that were left, moving each byte once.
func (r *reader) settle(dst []byte) []byte {
	if len(r.fixes) == 0 {
		return dst
	}
	slices.SortFunc(r.fixes, func(a, b fix) int { return a.at - b.at })
	end := len(dst)
	shift := r.extra
	dst = slices.Grow(dst, shift)[:end+shift]
	for _, f := range slices.Backward(r.fixes) {
		copy(dst[f.at+f.have+shift:], dst[f.at+f.have:end])
		shift -= protowire.SizeVarint(uint64(f.n)) - f.have
		putLength(dst[f.at+shift:], f.n)
		end = f.at
	}
	return dst
}

// list reads an array and writes the records of a repeated field.
func (r *reader) list(dst []byte, f *field, i int) ([]byte, int) {
	in := r.in
	if r.at(i) != '[' {
		return dst, r.expected(i, "an array")
	}
	if r.depth--; r.depth < 0 {
		return dst, r.fail(i, "nested too deeply")
	}
	i = space(in, i+1)
	if r.at(i) == ']' {
		r.depth++
		return dst, i + 1
	}
	if f.kind < kindString {
		if dst, i = r.numbers(dst, f, i); i >= 0 {
			r.depth++
		}
		return dst, i
	}
	width := 1 // the last message's length took this many bytes
	for {
		switch f.kind {
		case kindString:
			if out, end := r.shortString(dst, f, i); end >= 0 {
				dst, i = out, end
				break
			}
			s, escaped, end := r.string(i)
			if end < 0 {
				return dst, end
			}
			dst, i = r.appendString(appendTag(dst, f), s, escaped, i, end)
		case kindBytes:
			dst, i = r.bytes(appendTag(dst, f), i)
		case kindMessage:
			dst = append(appendTag(dst, f), "\x00\x00\x00\x00\x00"[:width]...)
			at, extra := len(dst), r.extra
			if dst, i = r.message(dst, f.msg, i); i < 0 {
				return dst, i
			}
			n := len(dst) - at + r.extra - extra
			if need := protowire.SizeVarint(uint64(n)); need == width {
				putLength(dst[at-width:], n)
			} else {
				dst = r.close(dst, at, width, extra)
				width = min(need, 2) // a shorter one than left is moved back, which must not hit a fix inside
			}
		default:
			dst, i = r.single(dst, f, i)
		}
		if i < 0 {
			return dst, i
		}
		if uint(i) >= uint(len(in)) || in[i] <= ' ' {
			i = space(in, i)
		}
		if c := r.at(i); c == ',' {
			i++
			if uint(i) < uint(len(in)) && in[i] <= ' ' {
				i = space(in, i)
			}
			continue
		} else if c == ']' {
			i++
			break
		}
		return dst, r.expected(i, "a comma or the end of the array")
	}
	r.depth++
	return dst, i
}

// numbers is list from the first element at in[i] on, for numeric, boolean and enum fields.
func (r *reader) numbers(dst []byte, f *field, i int) ([]byte, int) {
	in := r.in
	start := len(dst)
	at, extra := 0, r.extra
	if f.packed {
		dst = append(appendTag(dst, f), 0)
		at = len(dst)
	}
	for {
		var v uint64
		switch {
		case f.integral:
			v, i = r.integer(f, i)
		case (f.kind == kindDouble || f.kind == kindFloat) && r.at(i) != '"':
			v, i = r.floatNumber(f, i)
		default:
			v, i = r.number(f, i)
		}
		if i < 0 {
			return dst, i
		}
		if r.dropped {
			r.dropped = false
		} else {
			dst = room(dst, 32)
			if !f.packed {
				dst = appendTag(dst, f)
			}
			dst = appendRaw(dst, f.wire, v)
		}
		if uint(i) >= uint(len(in)) || in[i] <= ' ' {
			i = space(in, i)
		}
		if c := r.at(i); c == ']' {
			i++
			break
		} else if c != ',' {
			return dst, r.expected(i, "a comma or the end of the array")
		}
		if i++; uint(i) < uint(len(in)) && in[i] <= ' ' {
			i = space(in, i)
		}
	}
	if f.packed {
		if len(dst) == at {
			return dst[:start], i
		}
		dst = r.close(dst, at, 1, extra)
	}
	return dst, i
}

// skipValue reads past a value of any kind, which must still be JSON.
func (r *reader) skipValue(i int) int {
	in := r.in
	i = space(in, i)
	switch c := r.at(i); c {
	case '"':
		return r.skipString(i)
	case 't':
		return r.literal(i, "true")
	case 'f':
		return r.literal(i, "false")
	case 'n':
		return r.literal(i, "null")
	case '{', '[':
		if r.depth--; r.depth < 0 {
			return r.fail(i, "nested too deeply")
		}
		object := c == '{'
		if i = space(in, i+1); r.at(i) == c+2 {
			r.depth++
			return i + 1
		}
		for {
			if object {
				if r.at(i) != '"' {
					return r.expected(i, "a field name")
				}
				if i = r.skipString(i); i < 0 {
					return i
				}
				if i = space(in, i); r.at(i) != ':' {
					return r.expected(i, "a colon")
				}
				i++
			}
			if i = r.skipValue(i); i < 0 {
				return i
			}
			i = space(in, i)
			if r.at(i) == c+2 {
				r.depth++
				return i + 1
			}
			if r.at(i) != ',' {
				return r.expected(i, "a comma or an end")
			}
			i = space(in, i+1)
		}
	}
	var n decimal
	end := scanNumber(in, i, &n)
	if end < 0 || end < len(in) && isWord(in[end]) {
		return r.expected(i, "a value")
	}
	return end
}

func (r *reader) skipString(i int) int {
	s, escaped, end := r.string(i)
	if end >= 0 && escaped {
		base := len(r.scratch)
		b := appendUnescaped(r.scratch[base:], s)
		if b == nil {
			return r.badString(i)
		}
		r.scratch = append(r.scratch, b...)[:base]
	}
	return end
}
