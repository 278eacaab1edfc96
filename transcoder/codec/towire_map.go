package codec

import (
	"bytes"
	"hash/maphash"
	"math"
	"strconv"
)

// mapKey is a key of the object being read as a map.
type mapKey struct {
	hash    uint64 // of the key's text; the key itself when it is a number
	at, end int32  // the text between the quotes
	escaped bool
}

const linearKeys = 12 // maps up to this size are searched for a key, larger ones get an index

// mapField reads an object and writes the entries of a map field. Keys must not repeat.
func (r *reader) mapField(dst []byte, f *field, i int) ([]byte, int) {
	in := r.in
	if r.at(i) != '{' {
		return dst, r.expected(i, "an object")
	}
	if r.depth--; r.depth < 0 {
		return dst, r.fail(i, "nested too deeply")
	}
	kf, vf := &f.msg.fields[0], &f.msg.fields[1]
	kbase, xbase := len(r.keys), len(r.index)
	i = space(in, i+1)
	if r.at(i) == '}' {
		r.depth++
		return dst, i + 1
	}
	for {
		if r.at(i) != '"' {
			return dst, r.expected(i, "a map key")
		}
		keyAt := i
		start := len(dst)
		dst = append(appendTag(dst, f), 0)
		at, extra := len(dst), r.extra
		var k mapKey
		if dst, k, i = r.mapKey(dst, kf, i); i < 0 {
			return dst, i
		}
		if !r.newKey(k, kf, kbase, xbase) {
			return dst, r.fail(keyAt, "duplicate map key "+found(in, keyAt))
		}
		if i = space(in, i); r.at(i) != ':' {
			return dst, r.expected(i, "a colon")
		}
		if i++; uint(i) < uint(len(in)) && in[i] <= ' ' {
			i = space(in, i)
		}
		dst, i = r.single(dst, vf, i)
		if i < 0 {
			return dst, i
		}
		if r.dropped { // the entry with it: its key may come again
			r.dropped = false
			dst = dst[:start]
			r.forgetKey(xbase)
		} else if n := len(dst) - at; n < 0x80 && r.extra == extra {
			dst[at-1] = byte(n)
		} else {
			dst = r.close(dst, at, 1, extra)
		}
		if uint(i) >= uint(len(in)) || in[i] <= ' ' {
			i = space(in, i)
		}
		switch r.at(i) {
		case ',':
			i++
			if r.at(i) != '"' {
				i = space(in, i)
			}
			continue
		case '}':
			r.keys, r.index = r.keys[:kbase], r.index[:xbase]
			r.depth++
			return dst, i + 1
		}
		return dst, r.expected(i, "a comma or the end of the object")
	}
}

// mapKey reads a map key and writes its record.
func (r *reader) mapKey(dst []byte, kf *field, i int) ([]byte, mapKey, int) {
	if kf.kind == kindString {
		if out, end := r.shortString(dst, kf, i); end >= 0 {
			k := mapKey{hash: hashName(r.in[i+1 : end-1]), at: int32(i + 1), end: int32(end - 1)}
			return out, k, end
		}
	}
	s, escaped, end := r.string(i)
	if end < 0 {
		return dst, mapKey{}, end
	}
	k := mapKey{at: int32(i + 1), end: int32(end - 1), escaped: escaped}
	if kf.kind != kindString {
		v, ok := r.numericKey(kf, s, escaped)
		if !ok {
			return dst, k, r.expected(i, "a map key of type "+kf.desc.Kind().String())
		}
		k.hash = v
		return appendRaw(appendTag(dst, kf), kf.wire, v), k, end
	}
	key := len(dst) + 1
	if dst, i = r.appendString(appendTag(dst, kf), s, escaped, i, end); i < 0 {
		return dst, k, i
	}
	if escaped {
		k.hash = hashName(r.keyText(k, dst, key))
	} else {
		k.hash = hashName(s)
	}
	return dst, k, end
}

// numericKey reads the key of a map whose keys are integers or booleans, as protojson does: in decimal, where a sign and
// leading zeros are no harm.
func (r *reader) numericKey(kf *field, s []byte, escaped bool) (uint64, bool) {
	if escaped {
		if s = appendUnescaped(nil, s); s == nil {
			return 0, false
		}
	}
	if kf.kind == kindBool {
		switch string(s) {
		case "true":
			return 1, true
		case "false":
			return 0, true
		}
		return 0, false
	}
	if signed(kf.kind) {
		v, err := strconv.ParseInt(text(s), 10, 64)
		if err != nil {
			return 0, false
		}
		neg := 0
		if v < 0 {
			v, neg = -v, 1
		}
		return kf.integer(uint64(v), neg)
	}
	v, err := strconv.ParseUint(text(s), 10, 64)
	if err != nil || v > math.MaxUint32 && (kf.kind == kindUint32 || kf.kind == kindFixed32) {
		return 0, false
	}
	return v, true
}

// newKey pushes a key unless it is there already, among the keys from kbase on.
func (r *reader) newKey(k mapKey, kf *field, kbase, xbase int) bool {
	n := len(r.keys) - kbase
	number := kf.kind != kindString
	if n < linearKeys {
		for j := range r.keys[kbase:] {
			if o := &r.keys[kbase+j]; o.hash == k.hash && (number || r.sameText(o, &k)) {
				return false
			}
		}
		r.keys = append(r.keys, k)
		return true
	}
	// An open-addressed index of positions, at most half full, seeded against keys chosen to collide.
	if size := len(r.index) - xbase; 2*(n+1) > size {
		size = max(4*linearKeys, 2*size)
		size = 1 << bitsFor(size)
		r.index = r.index[:xbase]
		for range size {
			r.index = append(r.index, 0)
		}
		for j := range r.keys[kbase:] {
			r.place(int32(j), kbase, xbase, number)
		}
	}
	r.keys = append(r.keys, k)
	return r.place(int32(n), kbase, xbase, number)
}

func bitsFor(n int) (bits int) {
	for 1<<bits < n {
		bits++
	}
	return bits
}

// place puts key j into the index and reports whether it was not there.
func (r *reader) place(j int32, kbase, xbase int, number bool) bool {
	k := &r.keys[kbase+int(j)]
	mask := len(r.index) - xbase - 1
	for h := int(r.seeded(k, number)) & mask; ; h = (h + 1) & mask {
		o := r.index[xbase+h]
		if o == 0 {
			r.index[xbase+h] = j + 1
			return true
		}
		if o := &r.keys[kbase+int(o)-1]; o.hash == k.hash && (number || r.sameText(o, k)) {
			return false
		}
	}
}

func (r *reader) seeded(k *mapKey, number bool) uint64 {
	if number {
		return maphash.Comparable(r.types.seed, k.hash)
	}
	if !k.escaped {
		return maphash.Bytes(r.types.seed, r.in[k.at:k.end])
	}
	return maphash.Bytes(r.types.seed, appendUnescaped(nil, r.in[k.at:k.end]))
}

// forgetKey takes the newest key back. Its place in the index is found and emptied: nothing came behind it.
func (r *reader) forgetKey(xbase int) {
	n := int32(len(r.keys))
	r.keys = r.keys[:n-1]
	if len(r.index) == xbase {
		return
	}
	last := int32(0)
	at := -1
	for h, o := range r.index[xbase:] {
		if o > last {
			last, at = o, h
		}
	}
	r.index[xbase+at] = 0
}

// keyText returns the key that was just written to dst at key, its length first.
func (r *reader) keyText(k mapKey, dst []byte, key int) []byte {
	from, to := span(dst, key)
	if to != len(dst) { // its length is to be widened later
		return appendUnescaped(nil, r.in[k.at:k.end])
	}
	return dst[from:to]
}

// sameText reports whether two string keys mean the same.
func (r *reader) sameText(a, b *mapKey) bool {
	x, y := r.in[a.at:a.end], r.in[b.at:b.end]
	if a.escaped {
		x = appendUnescaped(nil, x)
	}
	if b.escaped {
		y = appendUnescaped(nil, y)
	}
	return bytes.Equal(x, y)
}
