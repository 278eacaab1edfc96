package codec

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// varint reads the varint at b[i:] and returns the index behind it, or -1.
func varint(b []byte, i int) (uint64, int) {
	if i+1 < len(b) && b[i+1] < 0x80 { // two bytes: one-byte varints are read in place by the callers that care
		if b[i] < 0x80 {
			return uint64(b[i]), i + 1
		}
		return uint64(b[i]&0x7f) | uint64(b[i+1])<<7, i + 2
	}
	var v uint64
	for s := uint(0); i < len(b) && s < 64; s += 7 {
		c := b[i]
		i++
		if c < 0x80 {
			if s == 63 && c > 1 {
				return 0, -1
			}
			return v | uint64(c)<<s, i
		}
		v |= uint64(c&0x7f) << s
	}
	return 0, -1
}

// span reads a length at b[i:] and returns where what it measures begins and ends, or -1.
func span(b []byte, i int) (from, to int) {
	if uint(i) < uint(len(b)) && b[i] < 0x80 {
		from = i + 1
		to = from + int(b[i])
	} else {
		var n uint64
		n, from = varint(b, i)
		if from < 0 || n > uint64(len(b)) {
			return 0, -1
		}
		to = from + int(n)
	}
	if to > len(b) {
		return 0, -1
	}
	return from, to
}

// tagAt reads the tag at b[i:] and returns the index behind it, or -1 when it is malformed or its number out of range.
func tagAt(b []byte, i int) (uint32, int) {
	v, i := varint(b, i)
	if i < 0 || v>>3 < uint64(protowire.MinValidNumber) || v>>3 > uint64(protowire.MaxValidNumber) {
		return 0, -1
	}
	return uint32(v), i
}

// skip returns the index behind the value at b[i:] of a field with this tag, or -1. Groups may nest depth levels.
func skip(b []byte, i int, tag uint32, depth int) int {
	switch protowire.Type(tag & 7) {
	case protowire.VarintType:
		_, i = varint(b, i)
		return i
	case protowire.Fixed32Type:
		i += 4
	case protowire.Fixed64Type:
		i += 8
	case protowire.BytesType:
		_, i = span(b, i)
		return i
	case protowire.StartGroupType:
		_, i = skipGroup(b, i, tag, depth)
		return i
	default:
		return -1
	}
	if i > len(b) {
		return -1
	}
	return i
}

// skipGroup finds the end of the group whose start tag comes before b[i:]: the index of its end tag and the one behind it,
// or -1.
func skipGroup(b []byte, i int, tag uint32, depth int) (end, next int) {
	if depth <= 0 {
		return 0, -1
	}
	for i < len(b) {
		t, j := tagAt(b, i)
		if j < 0 {
			return 0, -1
		}
		if protowire.Type(t&7) == protowire.EndGroupType {
			if t>>3 != tag>>3 {
				return 0, -1
			}
			return i, j
		}
		if i = skip(b, j, t, depth-1); i < 0 {
			return 0, -1
		}
	}
	return 0, -1
}

// whole reports whether b is a sequence of whole records. Messages are merged by joining their bytes, which must not make
// one record of the end of one and the beginning of the next.
func whole(b []byte, depth int) bool {
	for i := 0; i < len(b); {
		tag, j := tagAt(b, i)
		if j < 0 {
			return false
		}
		if i = skip(b, j, tag, depth); i < 0 {
			return false
		}
	}
	return true
}

// check reports whether b is well-formed as a message m, down to the UTF-8 of strings that must have it. It is for
// messages that a later one replaces, so that they are refused as a parser would refuse them.
func check(m *message, b []byte, depth int) bool {
	if depth <= 0 {
		return false
	}
	for i := 0; i < len(b); {
		tag, j := tagAt(b, i)
		if j < 0 {
			return false
		}
		next := skip(b, j, tag, depth)
		if next < 0 {
			return false
		}
		num := protowire.Number(tag >> 3)
		var f *field
		if x := m.lookup(num); x >= 0 {
			f = &m.fields[x]
		} else if f = m.extension(num); f == nil {
			i = next
			continue
		}
		if !checkValue(f, tag, b, j, next, depth) {
			return false
		}
		i = next
	}
	return true
}

// checkValue is check for the one value of a field between j and next.
func checkValue(f *field, tag uint32, b []byte, j, next, depth int) bool {
	if tag != f.tag {
		if f.shape == shapeList && protowire.Type(tag&7) == protowire.BytesType && f.kind < kindString {
			from, to := span(b, j)
			return checkPacked(f, b[from:to])
		}
		return true
	}
	switch {
	case f.kind == kindString:
		from, to := span(b, j)
		return !f.utf8 || validUTF8(b[from:to])
	case f.kind == kindMessage:
		from, to := span(b, j)
		return check(f.msg, b[from:to], depth-1)
	case f.kind == kindGroup:
		end, _ := skipGroup(b[:next], j, tag, depth)
		return check(f.msg, b[j:end], depth-1)
	}
	return true
}

// checkPacked reports whether b is a sequence of whole values.
func checkPacked(f *field, b []byte) bool {
	for i := 0; i < len(b); {
		if i = skip(b, i, f.tag, 1); i < 0 {
			return false
		}
	}
	return true
}

// enforcesUTF8 reports whether parsers refuse a string field when it is not UTF-8.
func enforcesUTF8(fd protoreflect.FieldDescriptor) bool {
	if e, ok := fd.(interface{ EnforceUTF8() bool }); ok && fd.Syntax() == protoreflect.Editions {
		return e.EnforceUTF8()
	}
	return fd.Syntax() == protoreflect.Proto3
}
