package codec

import (
	"cmp"
	"math/bits"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// rec is one record of a field, tag included, or a run of records of one list or map.
type rec struct {
	pos, end int32
	next     int32 // index of the field's next record, -1 for none
}

// extRec is one record of an extension.
type extRec struct {
	f        *field
	pos, end int32
}

// inOrder reports whether stream writes b as it must be written: known fields come in order of declaration, none twice,
// one member of each oneof, no extensions. A malformed b is left to stream.
func (m *message) inOrder(b []byte, depth int) bool {
	var oneofs uint64
	last := -1
	for i := 0; i < len(b); {
		x, tag, j := m.find(b, i)
		if j < 0 {
			return true
		}
		if x < 0 {
			if m.ranges != nil && m.extension(protowire.Number(tag>>3)) != nil {
				return false
			}
			if i = skip(b, j, tag, depth); i < 0 {
				return true
			}
			continue
		}
		f := &m.fields[x]
		if x <= last { // also a list that goes on after a gap
			return false
		}
		if f.oneof != 0 {
			if m.oneofs > maxOneofs || oneofs>>f.oneof&1 != 0 {
				return false
			}
			oneofs |= 1 << f.oneof
		}
		last = x
		for {
			if i = skip(b, j, tag, depth); i < 0 {
				return true
			}
			if f.shape == shapeSingular || i >= len(b) {
				break
			}
			var y int
			if y, tag, j = m.find(b, i); y != x {
				break
			}
		}
	}
	return true
}

// level writes the fields of a message whose records come in any order: it chains the records of each field, lets the
// last of a oneof's members win, and writes field by field in order of declaration. What a parser merges is joined first:
// the payloads of a repeated singular message one after the other, which is what merging means on the wire, and likewise
// the runs of a list or map.
func (w *writer) level(dst []byte, m *message, b []byte) []byte {
	base, hbase, sbase, xbase := len(w.recs), len(w.heads), len(w.seen), len(w.exts)
	w.heads = slices.Grow(w.heads, 2*len(m.fields))[:hbase+2*len(m.fields)]
	for range m.seenWords {
		w.seen = append(w.seen, 0)
	}
	if !w.chain(m, b, hbase, sbase) {
		return w.malformed(b, 0)
	}
	last := -1
	pos, end := int32(0), int32(0) // a run of records in order and without a gap, not yet written
	for k := range m.seenWords {
		for set := w.seen[sbase+k]; set != 0; set &= set - 1 {
			x := k*64 + bits.TrailingZeros64(set)
			r := w.recs[w.heads[hbase+2*x]]
			if r.next < 0 {
				if r.pos != end || pos == end {
					if dst, last = w.run(dst, m, b[pos:end], last); dst == nil {
						return nil
					}
					pos = r.pos
				}
				end = r.end
				continue
			}
			if dst, last = w.run(dst, m, b[pos:end], last); dst == nil {
				return nil
			}
			pos, end = 0, 0
			if dst, last = w.join(dst, m, &m.fields[x], b, w.heads[hbase+2*x], last); dst == nil {
				return nil
			}
		}
	}
	if dst, last = w.run(dst, m, b[pos:end], last); dst == nil {
		return nil
	}
	if len(w.exts) > xbase {
		if w.defaults {
			dst = w.fill(dst, m, last, len(m.fields))
			last = len(m.fields)
		}
		if dst = w.extensions(dst, b, xbase); dst == nil {
			return nil
		}
	}
	w.last = last
	w.recs, w.heads, w.seen, w.exts = w.recs[:base], w.heads[:hbase], w.seen[:sbase], w.exts[:xbase]
	return dst
}

// run writes records that are in order.
func (w *writer) run(dst []byte, m *message, b []byte, last int) ([]byte, int) {
	if len(b) == 0 {
		return dst, last
	}
	dst = w.stream(dst, m, b, last)
	if w.defaults {
		last = w.last
	}
	return dst, last
}

// chain lists the records of b by field: the first and last of field x in heads, whether there are any in seen.
func (w *writer) chain(m *message, b []byte, hbase, sbase int) bool {
	last := -1
	for i := 0; i < len(b); {
		x, tag, j := m.find(b, i)
		if j < 0 {
			return false
		}
		next := skip(b, j, tag, w.depth)
		if next < 0 {
			return false
		}
		pos := i
		i = next
		if x < 0 {
			last = -1
			if m.ranges != nil {
				if f := m.extension(protowire.Number(tag >> 3)); f != nil && f.takes(tag) {
					w.exts = append(w.exts, extRec{f, int32(pos), int32(next)})
				}
			}
			continue
		}
		f := &m.fields[x]
		head, tail := &w.heads[hbase+2*x], &w.heads[hbase+2*x+1]
		word, bit := &w.seen[sbase+x/64], uint64(1)<<(x&63)
		if x == last && f.shape != shapeSingular {
			w.recs[*tail].end = int32(next)
			continue
		}
		last = x
		if f.oneof != 0 && *word&bit == 0 && !w.clearOneof(m, f, b, hbase, sbase) {
			return false
		}
		n := int32(len(w.recs))
		w.recs = append(w.recs, rec{int32(pos), int32(next), -1})
		if *word&bit == 0 {
			*word |= bit
			*head = n
		} else {
			w.recs[*tail].next = n
		}
		*tail = n
	}
	return true
}

// takes reports whether a value with this tag is one of f's.
func (f *field) takes(tag uint32) bool {
	return tag == f.tag || f.shape == shapeList && tag&7 == uint32(protowire.BytesType) && f.kind < kindString
}

// clearOneof drops the records of the other members of f's oneof, which must still be well-formed.
func (w *writer) clearOneof(m *message, f *field, b []byte, hbase, sbase int) bool {
	for _, x := range f.others {
		word, bit := &w.seen[sbase+x/64], uint64(1)<<(x&63)
		if *word&bit == 0 {
			continue
		}
		*word &^= bit
		for r := w.heads[hbase+2*x]; r >= 0; r = w.recs[r].next {
			if !w.checkRec(&m.fields[x], b, w.recs[r]) {
				return false
			}
		}
	}
	return true
}

func (w *writer) checkRec(f *field, b []byte, r rec) bool {
	tag, j := tagAt(b, int(r.pos))
	return checkValue(f, tag, b, j, int(r.end), w.depth)
}

// join writes field f of message m, whose records are chained from r on.
func (w *writer) join(dst []byte, m *message, f *field, b []byte, r int32, last int) ([]byte, int) {
	base := len(w.scratch)
	switch {
	case f.shape != shapeSingular:
		for ; r >= 0; r = w.recs[r].next {
			w.scratch = append(w.scratch, b[w.recs[r].pos:w.recs[r].end]...)
		}
	case f.msg != nil:
		n := 0
		for k := r; k >= 0; k = w.recs[k].next {
			from, to := f.payload(b, w.recs[k], w.depth)
			if !whole(b[from:to], w.depth) {
				return w.malformed(b, from), last
			}
			n += to - from
		}
		w.scratch = protowire.AppendVarint(w.scratch, uint64(f.tag))
		if f.kind == kindMessage {
			w.scratch = protowire.AppendVarint(w.scratch, uint64(n))
		}
		for ; r >= 0; r = w.recs[r].next {
			from, to := f.payload(b, w.recs[r], w.depth)
			w.scratch = append(w.scratch, b[from:to]...)
		}
		if f.kind == kindGroup {
			w.scratch = protowire.AppendVarint(w.scratch, uint64(f.tag&^7|uint32(protowire.EndGroupType)))
		}
	default: // the last value wins
		for ; w.recs[r].next >= 0; r = w.recs[r].next {
			if !w.checkRec(f, b, w.recs[r]) {
				return w.malformed(b, int(w.recs[r].pos)), last
			}
		}
		return w.run(dst, m, b[w.recs[r].pos:w.recs[r].end], last)
	}
	joined := w.scratch[base:]
	w.merged++
	dst, last = w.run(dst, m, joined, last)
	w.merged--
	w.scratch = w.scratch[:base]
	return dst, last
}

// payload returns where the content of a message or group record lies.
func (f *field) payload(b []byte, r rec, depth int) (from, to int) {
	tag, j := tagAt(b, int(r.pos))
	if f.kind == kindGroup {
		end, _ := skipGroup(b, j, tag, depth)
		return j, end
	}
	return span(b, j)
}

// extensions writes the extension records from xbase on, in order of their full names.
func (w *writer) extensions(dst []byte, b []byte, xbase int) []byte {
	xs := w.exts[xbase:]
	slices.SortFunc(xs, func(x, y extRec) int {
		if x.f != y.f {
			return cmp.Compare(x.f.desc.FullName(), y.f.desc.FullName())
		}
		return cmp.Compare(x.pos, y.pos)
	})
	for k := 0; k < len(xs); {
		f := xs[k].f
		base := int32(len(w.recs))
		for ; k < len(xs) && xs[k].f == f; k++ {
			w.recs = append(w.recs, rec{xs[k].pos, xs[k].end, int32(len(w.recs) + 1)})
		}
		w.recs[len(w.recs)-1].next = -1
		if int(base) == len(w.recs)-1 {
			r := w.recs[base]
			dst, _ = w.run(dst, f.solo, b[r.pos:r.end], -1)
		} else {
			dst, _ = w.join(dst, f.solo, f, b, base, -1)
		}
		if dst == nil {
			return nil
		}
		w.recs = w.recs[:base]
	}
	return dst
}
