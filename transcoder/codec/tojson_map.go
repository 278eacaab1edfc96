package codec

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// entry is one map entry on the wire. Positions are in the bytes of the message that has the map.
type entry struct {
	order    uint64 // numeric keys: the key, ordered as unsigned; strings: the first eight bytes, big endian
	key, end int32  // a string key
	at, to   int32  // the value as writer.one takes it; at is -1 when the entry has none
	seq      int32
	merged   []byte // a message value that came in several pieces, instead of at and to
}

const signBit = 1 << 63

// mapField writes a map field: the entry behind the tag that ends at b[i:] and all that follow it without a gap, sorted
// by key, the last of equal keys. It returns the index behind them.
func (w *writer) mapField(dst []byte, f *field, b []byte, i int) ([]byte, int) {
	base := len(w.entries)
	for {
		from, to := span(b, i)
		if to < 0 {
			return w.malformed(b, i), i
		}
		if !w.entry(f, b, from, to) {
			return w.malformed(b, from), i
		}
		i = to
		if i >= len(b) {
			break
		}
		tag, next := uint32(b[i]), i+1
		if tag >= 0x80 {
			if tag, next = tagAt(b, i); next < 0 {
				return w.malformed(b, i), i
			}
		}
		if tag != f.tag {
			break
		}
		i = next
	}
	return w.sorted(w.key(dst, f), f, b, base), i
}

// entry reads the map entry in b[i:to] and pushes it.
func (w *writer) entry(f *field, b []byte, i, to int) bool {
	kf, vf := &f.msg.fields[0], &f.msg.fields[1]
	e := entry{at: -1, seq: int32(len(w.entries))}
	if signed(kf.kind) {
		e.order = signBit
	}
	b = b[:to]
	for i < to {
		tag, at := uint32(b[i]), i+1
		if tag >= 0x80 || tag < 8 {
			if tag, at = tagAt(b, i); at < 0 {
				return false
			}
		}
		switch tag {
		case kf.tag:
			if kf.kind == kindString {
				from, end := span(b, at)
				if end < 0 || kf.utf8 && e.end > e.key && !validUTF8(b[e.key:e.end]) {
					return false
				}
				e.key, e.end, e.order = int32(from), int32(end), first8(b[from:end])
				i = end
				continue
			}
			v, next := kf.raw(b, at)
			if next < 0 {
				return false
			}
			if signed(kf.kind) {
				v ^= signBit
			}
			e.order = v
			i = next
		case vf.tag:
			next := skip(b, at, tag, w.depth)
			if next < 0 {
				return false
			}
			if e.at >= 0 && !e.again(vf, b, w.depth) {
				return false
			}
			switch vf.kind {
			case kindString, kindBytes, kindMessage:
				from, _ := span(b, at)
				e.at, e.to = int32(from), int32(next)
			case kindGroup:
				end, _ := skipGroup(b, at, tag, w.depth)
				e.at, e.to = int32(at), int32(end)
			default:
				e.at, e.to = int32(at), int32(next)
			}
			if e.merged != nil {
				e.merged = append(e.merged, b[e.at:e.to]...)
			}
			i = next
		default:
			if i = skip(b, at, tag, w.depth); i < 0 {
				return false
			}
		}
	}
	w.entries = append(w.entries, e)
	return true
}

// again prepares e for a second value in the same entry: messages merge, others are replaced.
func (e *entry) again(vf *field, b []byte, depth int) bool {
	switch vf.kind {
	case kindMessage, kindGroup:
		if !whole(b[e.at:e.to], depth) {
			return false
		}
		if e.merged == nil {
			e.merged = append([]byte{}, b[e.at:e.to]...)
		}
	case kindString:
		return !vf.utf8 || validUTF8(b[e.at:e.to])
	}
	return true
}

func signed(k kind) bool {
	switch k {
	case kindInt32, kindInt64, kindSint32, kindSint64, kindSfixed32, kindSfixed64:
		return true
	}
	return false
}

func first8(s []byte) uint64 {
	if len(s) >= 8 {
		return binary.BigEndian.Uint64(s)
	}
	var v uint64
	for i, c := range s {
		v |= uint64(c) << (56 - 8*i)
	}
	return v
}

// sorted writes the entries from base on as an object and pops them.
func (w *writer) sorted(dst []byte, f *field, b []byte, base int) []byte {
	if w.depth--; w.depth < 0 {
		return w.fail(b, 0, "nested too deeply")
	}
	kf, vf := &f.msg.fields[0], &f.msg.fields[1]
	es := w.entries[base:]
	text := kf.kind == kindString
	for k := 1; k < len(es); k++ {
		if c := cmp.Compare(es[k-1].order, es[k].order); c > 0 || c == 0 && (!text || compareKeys(b, &es[k-1], &es[k]) >= 0) {
			sortEntries(es, b, text)
			break
		}
	}
	if len(es) == 0 {
		dst = append(dst, '{', '}')
		w.depth++
		return dst
	}
	n := len(es)
	mark := len(dst)
	for k := range n {
		e := w.entries[base+k] // nested maps may move the arena
		if k+1 < n {
			if next := &w.entries[base+k+1]; next.order == e.order && (!text || compareKeys(b, &e, next) == 0) {
				if !w.dropped(vf, &e, b) {
					return w.malformed(b, int(e.at))
				}
				continue
			}
		}
		dst = room(append(dst, ','), 40)
		switch {
		case text:
			var ok bool
			if dst, ok = appendQuoted(dst, b[e.key:e.end]); !ok {
				w.fail(b, int(e.key), "map key is not valid UTF-8")
				return w.in(f, -1)
			}
		case kf.kind == kindBool:
			dst = append(dst, `"false"`...)
			if e.order != 0 {
				dst = append(dst[:len(dst)-7], `"true"`...)
			}
		case signed(kf.kind):
			dst = append(appendInt(append(dst, '"'), int64(e.order^signBit)), '"')
		default:
			dst = append(appendUint(append(dst, '"'), e.order), '"')
		}
		dst = append(dst, ':')
		if dst = w.entryValue(dst, vf, &e, b); dst == nil {
			if !w.struck {
				w.path = append(w.path, keySegment(entryKey(kf, &e, b)))
			}
			return w.in(f, -1)
		}
	}
	w.entries = w.entries[:base]
	w.depth++
	dst[mark] = '{'
	return append(dst, '}')
}

func (w *writer) entryValue(dst []byte, vf *field, e *entry, b []byte) []byte {
	switch {
	case e.merged != nil:
		w.merged++
		dst = w.one(dst, vf, e.merged)
		w.merged--
		return dst
	case e.at >= 0:
		return w.one(dst, vf, b[e.at:e.to])
	case vf.kind == kindString, vf.kind == kindBytes:
		return append(dst, '"', '"')
	case vf.msg != nil:
		return w.message(dst, vf.msg, nil)
	case vf.enum != nil:
		return w.scalar(dst, vf, uint64(int64(vf.desc.Default().Enum())))
	}
	return w.scalar(dst, vf, 0)
}

// dropped checks the value of an entry whose key comes again.
func (w *writer) dropped(vf *field, e *entry, b []byte) bool {
	switch {
	case e.merged != nil:
		return check(vf.msg, e.merged, w.depth)
	case e.at < 0:
		return true
	case vf.msg != nil:
		return check(vf.msg, b[e.at:e.to], w.depth)
	case vf.kind == kindString:
		return !vf.utf8 || validUTF8(b[e.at:e.to])
	}
	return true
}

func entryKey(kf *field, e *entry, b []byte) string {
	switch {
	case kf.kind == kindString:
		return string(b[e.key:e.end])
	case signed(kf.kind):
		return string(appendInt(make([]byte, 0, 24), int64(e.order^signBit)))
	}
	return string(appendUint(make([]byte, 0, 24), e.order))
}

func compareKeys(b []byte, x, y *entry) int {
	return bytes.Compare(b[x.key:x.end], b[y.key:y.end])
}

// sortEntries sorts by key and, for equal keys, as they came.
func sortEntries(es []entry, b []byte, text bool) {
	if len(es) <= 16 {
		for i := 1; i < len(es); i++ {
			e := es[i]
			j := i
			for j > 0 && (es[j-1].order > e.order || es[j-1].order == e.order && text && compareKeys(b, &es[j-1], &e) > 0) {
				es[j] = es[j-1]
				j--
			}
			es[j] = e
		}
		return
	}
	slices.SortFunc(es, func(x, y entry) int {
		if c := cmp.Compare(x.order, y.order); c != 0 {
			return c
		}
		if text {
			if c := compareKeys(b, &x, &y); c != 0 {
				return c
			}
		}
		return cmp.Compare(x.seq, y.seq)
	})
}

// structEntries pushes the entries of every record of map field f in b, passing over what is not one.
func (w *writer) structEntries(f *field, b []byte) bool {
	for i := 0; i < len(b); {
		tag, at := tagAt(b, i)
		if at < 0 {
			return false
		}
		if tag != f.tag {
			if i = skip(b, at, tag, w.depth); i < 0 {
				return false
			}
			continue
		}
		from, to := span(b, at)
		if to < 0 || !w.entry(f, b, from, to) {
			return false
		}
		i = to
	}
	return true
}
