package codec

import (
	"encoding/binary"
	"math"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// writer is the state of one wire → JSON call.
//
// Its methods append to dst and return it, or nil after a fault. A message is first written field by field as its records
// come (stream), which is right as long as they come in order of declaration and none twice. The first surprise ends that
// attempt as a whole (struck), and everything is written again looking at each message before writing it (level): two
// passes at most, however deeply surprises nest.
type writer struct {
	types       *Types
	style       int
	defaults    bool
	enumNumbers bool
	bareInt64   bool
	scanAll     bool // second attempt
	struck      bool
	partial     bool // inside an Any, where required fields are not checked
	depth       int  // levels left
	required    int  // required fields seen in the current message
	last        int  // index of the last field written by stream; kept when defaults are written

	// Arenas, used as stacks by level and the maps.
	recs    []rec
	heads   []int32
	seen    []uint64
	exts    []extRec
	entries []entry
	scratch []byte

	wire   []byte // the whole input, for offsets
	merged int    // > 0 while the bytes at hand are not part of wire
	offset int
	msg    string
	path   []string // innermost first
}

// fail notes a fault at b[i:] and returns nil.
func (w *writer) fail(b []byte, i int, msg string) []byte {
	w.msg = msg
	w.offset = -1
	if w.merged == 0 {
		w.offset = cap(w.wire) - cap(b) + i
	}
	return nil
}

func (w *writer) malformed(b []byte, i int) []byte { return w.fail(b, i, "malformed protobuf data") }

// in notes that a fault lies inside field f, at element n of a list unless n < 0, and returns nil.
func (w *writer) in(f *field, n int) []byte {
	if w.struck {
		return nil
	}
	if f.desc.FullName() == "google.protobuf.Struct.fields" {
		return nil // not there in JSON
	}
	name := f.desc.JSONName()
	if w.style == styleProto {
		name = f.desc.TextName()
	}
	if n >= 0 {
		name += "[" + strconv.Itoa(n) + "]"
	}
	w.path = append(w.path, name)
	return nil
}

func (w *writer) strike() []byte {
	w.struck = true
	return nil
}

// find reads the tag at b[i:] and returns the index of its field, -1 when it has none here or another wire type, and the
// index behind the tag, -1 when it is malformed.
func (m *message) find(b []byte, i int) (x int, tag uint32, next int) {
	if c := b[i]; c < 0x80 {
		if x = int(m.tag1[c]) - 1; x >= 0 {
			return x, uint32(c), i + 1
		}
	}
	tag, next = tagAt(b, i)
	if next < 0 {
		return -1, 0, -1
	}
	if x = m.lookup(protowire.Number(tag >> 3)); x >= 0 {
		f := &m.fields[x]
		if tag != f.tag && !(f.shape == shapeList && tag&7 == uint32(protowire.BytesType) && f.kind < kindString) {
			x = -1
		}
	}
	return x, tag, next
}

// message writes a message of any type.
func (w *writer) message(dst []byte, m *message, b []byte) []byte {
	if m.special != plain {
		return w.wellKnown(dst, m, b)
	}
	return w.object(dst, m, b)
}

// object writes a message as an object of its fields. Each field starts with a comma; the first becomes the brace.
func (w *writer) object(dst []byte, m *message, b []byte) []byte {
	start := len(dst)
	if dst = w.members(dst, m, b); dst == nil {
		return nil
	}
	if len(dst) == start {
		return append(dst, '{', '}')
	}
	dst[start] = '{'
	return append(dst, '}')
}

// members writes the fields of a message, each with a comma in front.
func (w *writer) members(dst []byte, m *message, b []byte) []byte {
	if w.depth--; w.depth < 0 {
		return w.fail(b, 0, "nested too deeply")
	}
	outer := w.required
	if m.required > 0 {
		w.required = 0
	}
	if (m.prescan || w.scanAll) && !m.inOrder(b, w.depth) {
		dst = w.level(dst, m, b)
	} else {
		dst = w.stream(dst, m, b, -1)
	}
	if dst == nil {
		return nil
	}
	if w.defaults {
		dst = w.fill(dst, m, w.last, len(m.fields))
	}
	if m.required > 0 {
		if w.required < m.required && !w.partial {
			return w.fail(b, 0, "a required field of "+string(m.desc.FullName())+" is not set")
		}
		w.required = outer
	}
	w.depth++
	return dst
}

// fill writes the defaults of the fields without presence between two indices.
func (w *writer) fill(dst []byte, m *message, after, before int) []byte {
	for x := after + 1; x < before; x++ {
		f := &m.fields[x]
		switch {
		case f.none != "":
			dst = append(w.key(dst, f), f.none...)
		case !f.implicit:
		case f.kind == kindString, f.kind == kindBytes:
			dst = append(w.key(dst, f), '"', '"')
		default:
			dst = w.scalar(w.key(dst, f), f, 0)
		}
	}
	return dst
}

// key writes the comma and name before a field's value and leaves room for 40 bytes.
func (w *writer) key(dst []byte, f *field) []byte {
	k := &f.key[w.style]
	dst = room(dst, 64)
	n := len(dst)
	*(*[24]byte)(dst[n : n+24]) = k.b
	if k.long == "" {
		return dst[:n+k.n]
	}
	return room(append(dst, k.long...), 40)
}

// stream writes the fields of b in the order they come. The fields before and with index last have been written.
func (w *writer) stream(dst []byte, m *message, b []byte, last int) []byte {
	var oneofs uint64
	for i := 0; i < len(b); {
		var x int
		tag := uint32(b[i])
		if tag < 0x80 && m.tag1[tag] != 0 {
			x = int(m.tag1[tag]) - 1
			i++
		} else {
			at := i
			if x, tag, i = m.find(b, i); i < 0 {
				return w.malformed(b, at)
			}
			if x < 0 {
				if m.ranges != nil && m.extension(protowire.Number(tag>>3)) != nil {
					return w.strike() // not reached: inOrder has seen it
				}
				if i = skip(b, i, tag, w.depth); i < 0 {
					return w.malformed(b, at)
				}
				continue
			}
		}
		f := &m.fields[x]
		if x <= last {
			return w.strike()
		}
		if f.oneof != 0 && !m.prescan {
			if oneofs>>f.oneof&1 != 0 {
				return w.strike()
			}
			oneofs |= 1 << f.oneof
		}
		if w.defaults {
			dst = w.fill(dst, m, last, x)
		}
		last = x
		if f.required {
			w.required++
		}
		switch {
		case f.shape == shapeList:
			if dst, i = w.list(dst, f, b, i, tag); dst == nil {
				return nil
			}
		case f.shape == shapeMap:
			if dst, i = w.mapField(dst, f, b, i); dst == nil {
				return nil
			}
		case f.kind >= kindString:
			at := i
			var to int
			if f.kind == kindGroup {
				to, i = skipGroup(b, i, tag, w.depth)
			} else {
				at, to = span(b, i)
				i = to
			}
			if to < 0 || i < 0 {
				return w.malformed(b, at)
			}
			if to == at && f.implicit && !w.defaults {
				continue
			}
			k := &f.key[w.style]
			dst = room(dst, 64)
			n := len(dst)
			*(*[24]byte)(dst[n : n+24]) = k.b
			if dst = dst[:n+k.n&31]; k.long != "" {
				dst = append(dst[:n], k.long...)
			}
			switch f.kind {
			case kindString:
				var ok bool
				if dst, ok = appendQuoted(dst, b[at:to]); !ok {
					w.fail(b, at, "not valid UTF-8")
					return w.in(f, -1)
				}
			case kindBytes:
				dst = appendBase64(dst, b[at:to])
			default:
				if dst = w.message(dst, f.msg, b[at:to]); dst == nil {
					return w.in(f, -1)
				}
			}
		default:
			var v uint64
			if f.wire == protowire.VarintType && i < len(b) && b[i] < 0x80 && f.kind < kindSint32 {
				v = uint64(b[i])
				i++
				if f.kind == kindBool && v != 0 {
					v = 1
				}
			} else {
				at := i
				if v, i = f.raw(b, i); i < 0 {
					return w.malformed(b, at)
				}
			}
			if v == 0 && f.implicit && !w.defaults {
				continue
			}
			k := &f.key[w.style]
			dst = room(dst, 64)
			n := len(dst)
			*(*[24]byte)(dst[n : n+24]) = k.b
			if dst = dst[:n+k.n&31]; k.long != "" {
				dst = append(dst[:n], k.long...)
			}
			dst = w.scalar(dst, f, v)
		}
	}
	if w.defaults {
		w.last = last
	}
	return dst
}

// raw reads a numeric value at b[i:], reduced to the range of the field's kind: signed kinds are sign-extended, floats
// their bits. It returns the index behind it, or -1.
func (f *field) raw(b []byte, i int) (uint64, int) {
	switch f.wire {
	case protowire.Fixed32Type:
		if i+4 > len(b) {
			return 0, -1
		}
		v := binary.LittleEndian.Uint32(b[i:])
		if f.kind == kindSfixed32 {
			return uint64(int64(int32(v))), i + 4
		}
		return uint64(v), i + 4
	case protowire.Fixed64Type:
		if i+8 > len(b) {
			return 0, -1
		}
		return binary.LittleEndian.Uint64(b[i:]), i + 8
	}
	var v uint64
	if uint(i) < uint(len(b)) && b[i] < 0x80 {
		v = uint64(b[i])
		i++
	} else if v, i = varint(b, i); i < 0 {
		return 0, -1
	}
	switch f.kind {
	case kindBool:
		if v != 0 {
			v = 1
		}
	case kindInt32, kindEnum:
		v = uint64(int64(int32(v)))
	case kindUint32:
		v = uint64(uint32(v))
	case kindSint32:
		v = uint64(protowire.DecodeZigZag(v & math.MaxUint32))
	case kindSint64:
		v = uint64(protowire.DecodeZigZag(v))
	}
	return v, i
}

// scalar writes the JSON of a numeric value, boolean or enum as raw returns it.
func (w *writer) scalar(dst []byte, f *field, v uint64) []byte {
	dst = room(dst, 40)
	switch f.kind {
	case kindInt32, kindSint32, kindSfixed32:
		return appendInt(dst, int64(v))
	case kindUint32, kindFixed32:
		return appendUint(dst, v)
	case kindInt64, kindSint64, kindSfixed64:
		if w.bareInt64 {
			return appendInt(dst, int64(v))
		}
		return append(appendInt(append(dst, '"'), int64(v)), '"')
	case kindUint64, kindFixed64:
		if w.bareInt64 {
			return appendUint(dst, v)
		}
		return append(appendUint(append(dst, '"'), v), '"')
	case kindDouble:
		return appendFloat64(dst, math.Float64frombits(v))
	case kindFloat:
		return appendFloat32(dst, math.Float32frombits(uint32(v)))
	case kindBool:
		if v != 0 {
			return append(dst, "true"...)
		}
		return append(dst, "false"...)
	case kindEnum:
		if f.enum.null {
			return append(dst, "null"...)
		}
		if s := f.enum.quoted(int32(v)); s != "" && !w.enumNumbers {
			return append(dst, s...)
		}
		return appendInt(dst, int64(int32(v)))
	}
	return dst
}

// list writes a repeated field: the value behind the tag that ends at b[i:], and all that follow it without a gap. It
// returns the index behind them.
func (w *writer) list(dst []byte, f *field, b []byte, i int, tag uint32) ([]byte, int) {
	if w.depth--; w.depth < 0 {
		return w.fail(b, i, "nested too deeply"), i
	}
	start := len(dst)
	dst = append(w.key(dst, f), '[')
	open := len(dst)
	for n := 0; ; n++ {
		at := i
		switch {
		case tag != f.tag:
			var from int
			if from, i = span(b, i); i < 0 {
				return w.malformed(b, at), i
			}
			if dst = w.packed(dst, f, b[from:i]); dst == nil {
				return nil, i
			}
		case f.kind < kindString:
			var v uint64
			if v, i = f.raw(b, i); i < 0 {
				return w.malformed(b, at), i
			}
			dst = append(w.scalar(dst, f, v), ',')
		default:
			var to int
			if f.kind == kindGroup {
				to, i = skipGroup(b, i, tag, w.depth)
			} else {
				at, to = span(b, i)
				i = to
			}
			if to < 0 || i < 0 {
				return w.malformed(b, at), i
			}
			switch f.kind {
			case kindString:
				var ok bool
				if dst, ok = appendQuoted(dst, b[at:to]); !ok {
					w.fail(b, at, "not valid UTF-8")
					return w.in(f, n), i
				}
			case kindBytes:
				dst = appendBase64(dst, b[at:to])
			default:
				if dst = w.message(dst, f.msg, b[at:to]); dst == nil {
					return w.in(f, n), i
				}
			}
			dst = append(dst, ',')
		}
		if i >= len(b) {
			break
		}
		next := i + 1
		if tag = uint32(b[i]); tag >= 0x80 {
			if tag, next = tagAt(b, i); next < 0 {
				return w.malformed(b, i), i
			}
		}
		if tag != f.tag && (tag != f.tag&^7|uint32(protowire.BytesType) || f.kind >= kindString) {
			break
		}
		i = next
	}
	w.depth++
	if len(dst) > open {
		dst[len(dst)-1] = ']'
		return dst, i
	}
	if w.defaults || f.key[w.style].n == 0 {
		return append(dst, ']'), i
	}
	return dst[:start], i
}

// packed writes the values of one packed record, each with a comma behind.
func (w *writer) packed(dst []byte, f *field, b []byte) []byte {
	switch f.kind {
	case kindDouble:
		if len(b)%8 != 0 {
			return w.malformed(b, 0)
		}
		for ; len(b) >= 8; b = b[8:] {
			dst = append(appendFloat64(dst, math.Float64frombits(binary.LittleEndian.Uint64(b))), ',')
		}
		return dst
	case kindFloat:
		if len(b)%4 != 0 {
			return w.malformed(b, 0)
		}
		for ; len(b) >= 4; b = b[4:] {
			dst = append(appendFloat32(dst, math.Float32frombits(binary.LittleEndian.Uint32(b))), ',')
		}
		return dst
	}
	quote := !w.bareInt64
	switch f.kind {
	case kindInt32, kindUint32, kindSint32:
		quote = false
	case kindInt64, kindUint64, kindSint64:
	default:
		for i := 0; i < len(b); {
			at := i
			var v uint64
			if v, i = f.raw(b, i); i < 0 {
				return w.malformed(b, at)
			}
			dst = append(w.scalar(dst, f, v), ',')
		}
		return dst
	}
	for i := 0; i < len(b); {
		v := uint64(b[i])
		if v < 0x80 {
			i++
		} else {
			at := i
			if v, i = varint(b, i); i < 0 {
				return w.malformed(b, at)
			}
		}
		neg := false
		switch f.kind {
		case kindInt32:
			if v = uint64(int64(int32(v))); int64(v) < 0 {
				neg, v = true, -v
			}
		case kindInt64:
			if int64(v) < 0 {
				neg, v = true, -v
			}
		case kindUint32:
			v = uint64(uint32(v))
		case kindSint32, kindSint64:
			if f.kind == kindSint32 {
				v = uint64(uint32(v))
			}
			if neg = v&1 != 0; neg {
				v = v>>1 + 1
			} else {
				v >>= 1
			}
		}
		dst = room(dst, 40)
		if quote {
			dst = append(dst, '"')
		}
		if neg {
			dst = append(dst, '-')
		}
		dst = appendUint(dst, v)
		if quote {
			dst = append(dst, '"')
		}
		dst = append(dst, ',')
	}
	return dst
}

// one writes a single value given by its bytes: the payload of a string, bytes, message or group, else the raw number.
func (w *writer) one(dst []byte, f *field, b []byte) []byte {
	switch f.kind {
	case kindString:
		dst, ok := appendQuoted(dst, b)
		if !ok {
			return w.fail(b, 0, "not valid UTF-8")
		}
		return dst
	case kindBytes:
		return appendBase64(dst, b)
	case kindMessage, kindGroup:
		return w.message(dst, f.msg, b)
	}
	v, _ := f.raw(b, 0)
	return w.scalar(dst, f, v)
}
