package codec

import (
	"encoding/binary"
	"math"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// wellKnown writes a message whose type has a JSON form of its own.
func (w *writer) wellKnown(dst []byte, m *message, b []byte) []byte {
	switch m.special {
	case timestampType:
		return w.timestamp(dst, m, b)
	case durationType:
		return w.duration(dst, m, b)
	case wrapperType:
		return w.wrapper(dst, m, b)
	case valueType:
		return w.value(dst, m, b)
	case structType:
		base := len(w.entries)
		if !w.structEntries(&m.fields[0], b) {
			return w.malformed(b, 0)
		}
		return w.sorted(dst, &m.fields[0], b, base)
	case listValueType:
		return w.listValue(dst, m, b)
	case fieldMaskType:
		return w.fieldMask(dst, m, b)
	case anyType:
		return w.any(dst, m, b)
	case messageSetType:
		return w.fail(b, 0, "message sets have no JSON form")
	}
	return w.object(dst, m, b)
}

// seconds reads the two fields of a Timestamp or Duration.
func seconds(m *message, b []byte, depth int) (secs int64, nanos int32, ok bool) {
	for i := 0; i < len(b); {
		tag, j := uint32(b[i]), i+1
		var v uint64
		switch tag {
		case 1 << 3:
			if v, i = varint(b, j); i < 0 {
				return 0, 0, false
			}
			secs = int64(v)
		case 2 << 3:
			if v, i = varint(b, j); i < 0 {
				return 0, 0, false
			}
			nanos = int32(v)
		default:
			x, tag, j := m.find(b, i)
			if j < 0 {
				return 0, 0, false
			}
			if x < 0 {
				if i = skip(b, j, tag, depth); i < 0 {
					return 0, 0, false
				}
				continue
			}
			if v, i = varint(b, j); i < 0 { // a tag written longer than it need be
				return 0, 0, false
			}
			if m.fields[x].kind == kindInt64 {
				secs = int64(v)
			} else {
				nanos = int32(v)
			}
		}
	}
	return secs, nanos, true
}

const (
	minTimestamp = -62135596800 // 0001-01-01T00:00:00Z
	maxTimestamp = 253402300799 // 9999-12-31T23:59:59Z
	maxDuration  = 315576000000 // 10,000 years
)

func (w *writer) timestamp(dst []byte, m *message, b []byte) []byte {
	secs, nanos, ok := seconds(m, b, w.depth)
	switch {
	case !ok:
		return w.malformed(b, 0)
	case secs < minTimestamp || secs > maxTimestamp:
		return w.fail(b, 0, "timestamp out of range: "+strconv.FormatInt(secs, 10)+" seconds")
	case nanos < 0 || nanos > 999999999:
		return w.fail(b, 0, "timestamp out of range: "+strconv.Itoa(int(nanos))+" nanoseconds")
	}
	days := (secs - minTimestamp) / 86400 // since 0001-01-01
	rest := uint32((secs - minTimestamp) % 86400)
	year, month, day := civil(uint32(days))
	dst = room(dst, 40)
	n := len(dst)
	out := dst[n : n+40]
	// "YYYY-MM-" and "DDTHH:MM:SS" out of digit pairs.
	p := digits8(year*10000 + month*100 + day)
	h := digits8(rest/3600*10000*1 + rest/60%60*100 + rest%60)
	p += ascii0
	h += ascii0
	out[0] = '"'
	binary.LittleEndian.PutUint32(out[1:], uint32(p))
	out[5] = '-'
	binary.LittleEndian.PutUint16(out[6:], uint16(p>>32))
	out[8] = '-'
	binary.LittleEndian.PutUint16(out[9:], uint16(p>>48))
	out[11] = 'T'
	binary.LittleEndian.PutUint16(out[12:], uint16(h>>16))
	out[14] = ':'
	binary.LittleEndian.PutUint16(out[15:], uint16(h>>32))
	out[17] = ':'
	binary.LittleEndian.PutUint16(out[18:], uint16(h>>48))
	return append(appendNanos(dst[:n+20], uint32(nanos)), 'Z', '"')
}

// appendNanos writes the fraction of a second with 0, 3, 6 or 9 digits.
func appendNanos(dst []byte, nanos uint32) []byte {
	if nanos == 0 {
		return dst
	}
	first := nanos / 100000000
	v := digits8(nanos-first*100000000) + ascii0
	dst = append(dst, '.', byte('0'+first))
	n := len(dst)
	dst = dst[:n+8]
	binary.LittleEndian.PutUint64(dst[n:], v)
	switch {
	case nanos%1000 != 0:
		return dst
	case nanos%1000000 != 0:
		return dst[:n+5]
	}
	return dst[:n+2]
}

// civil turns days since 0001-01-01 into a date of the Gregorian calendar. Years are counted from March, so that leap days
// come last (after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
func civil(days uint32) (year, month, day uint32) {
	z := days + 306 // since 0000-03-01
	era := z / 146097
	doe := z - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	day = doy - (153*mp+2)/5 + 1
	month = mp + 3
	year = yoe + era*400
	if month > 12 {
		month -= 12
		year++
	}
	return year, month, day
}

func (w *writer) duration(dst []byte, m *message, b []byte) []byte {
	secs, nanos, ok := seconds(m, b, w.depth)
	switch {
	case !ok:
		return w.malformed(b, 0)
	case secs < -maxDuration || secs > maxDuration:
		return w.fail(b, 0, "duration out of range: "+strconv.FormatInt(secs, 10)+" seconds")
	case nanos < -999999999 || nanos > 999999999:
		return w.fail(b, 0, "duration out of range: "+strconv.Itoa(int(nanos))+" nanoseconds")
	case secs > 0 && nanos < 0 || secs < 0 && nanos > 0:
		return w.fail(b, 0, "seconds and nanoseconds of a duration differ in sign")
	}
	dst = append(room(dst, 40), '"')
	if secs < 0 || nanos < 0 {
		dst = append(dst, '-')
		secs, nanos = -secs, -nanos
	}
	return append(appendNanos(appendUint(dst, uint64(secs)), uint32(nanos)), 's', '"')
}

func (w *writer) wrapper(dst []byte, m *message, b []byte) []byte {
	f := &m.fields[0]
	at, to := -1, 0
	for i := 0; i < len(b); {
		x, tag, j := m.find(b, i)
		if j < 0 {
			return w.malformed(b, i)
		}
		next := skip(b, j, tag, w.depth)
		if next < 0 {
			return w.malformed(b, i)
		}
		i = next
		if x < 0 {
			continue
		}
		if at >= 0 && f.utf8 && f.kind == kindString && !validUTF8(b[at:to]) {
			return w.fail(b, at, "not valid UTF-8")
		}
		at, to = j, next
		if f.kind >= kindString {
			at, to = span(b, j)
		}
	}
	switch {
	case at >= 0:
		return w.one(dst, f, b[at:to])
	case f.kind >= kindString:
		return append(dst, '"', '"')
	}
	return w.scalar(dst, f, 0)
}

// value writes a google.protobuf.Value: whichever member of its oneof came last.
func (w *writer) value(dst []byte, m *message, b []byte) []byte {
	// Nearly always it is one record and nothing else.
	if len(b) >= 2 {
		switch b[0] {
		case tagValueString:
			if from, to := span(b, 1); to == len(b) {
				dst, ok := appendQuoted(dst, b[from:])
				if !ok {
					return w.fail(b, from, "not valid UTF-8")
				}
				return dst
			}
		case tagValueNumber:
			if v := b[1:]; len(v) == 8 {
				if x := math.Float64frombits(binary.LittleEndian.Uint64(v)); x-x == 0 {
					return appendFloat64(dst, x)
				}
			}
		case tagValueBool:
			if len(b) == 2 && b[1] == 1 {
				return append(dst, "true"...)
			}
			if len(b) == 2 && b[1] == 0 {
				return append(dst, "false"...)
			}
		case tagValueNull:
			if len(b) == 2 && b[1] < 0x80 {
				return append(dst, "null"...)
			}
		}
	}
	var f *field
	var at, to int
	var merged []byte
	for i := 0; i < len(b); {
		x, tag, j := m.find(b, i)
		if j < 0 {
			return w.malformed(b, i)
		}
		next := skip(b, j, tag, w.depth)
		if next < 0 {
			return w.malformed(b, i)
		}
		i = next
		if x < 0 {
			continue
		}
		if g := &m.fields[x]; f != nil && f == g && f.msg != nil {
			from, end := span(b, j)
			if merged == nil && whole(b[at:to], w.depth) {
				merged = append([]byte{}, b[at:to]...)
			}
			if merged == nil || !whole(b[from:end], w.depth) {
				return w.malformed(b, from)
			}
			merged = append(merged, b[from:end]...)
			continue
		}
		if f != nil {
			old := b[at:to]
			if merged != nil {
				old = merged
			}
			if f.kind == kindString && !validUTF8(old) || f.msg != nil && !check(f.msg, old, w.depth) {
				return w.malformed(b, at)
			}
		}
		f, merged = &m.fields[x], nil
		at, to = j, next
		if f.kind >= kindString {
			at, to = span(b, j)
		}
	}
	switch {
	case f == nil:
		return w.fail(b, 0, "a google.protobuf.Value holds nothing")
	case merged != nil:
		w.merged++
		dst = w.one(dst, f, merged)
		w.merged--
		return dst
	case f.kind == kindDouble:
		if v := math.Float64frombits(binary.LittleEndian.Uint64(b[at:])); math.IsNaN(v) || math.IsInf(v, 0) {
			return w.fail(b, at, "a google.protobuf.Value cannot hold "+strconv.FormatFloat(v, 'g', -1, 64))
		}
	}
	return w.one(dst, f, b[at:to])
}

func (w *writer) listValue(dst []byte, m *message, b []byte) []byte {
	if w.depth--; w.depth < 0 {
		return w.fail(b, 0, "nested too deeply")
	}
	f := &m.fields[0]
	dst = append(dst, '[')
	open := len(dst)
	n := 0
	for i := 0; i < len(b); {
		x, tag, j := m.find(b, i)
		if j < 0 {
			return w.malformed(b, i)
		}
		if x < 0 {
			if i = skip(b, j, tag, w.depth); i < 0 {
				return w.malformed(b, j)
			}
			continue
		}
		from, to := span(b, j)
		if to < 0 {
			return w.malformed(b, j)
		}
		if dst = w.value(dst, f.msg, b[from:to]); dst == nil {
			if !w.struck {
				w.path = append(w.path, "["+strconv.Itoa(n)+"]")
			}
			return nil
		}
		dst = append(dst, ',')
		i = to
		n++
	}
	w.depth++
	if len(dst) == open {
		return append(dst, ']')
	}
	dst[len(dst)-1] = ']'
	return dst
}

// fieldMask writes the paths in lowerCamelCase, joined by commas. A path that would not read back the same is refused.
func (w *writer) fieldMask(dst []byte, m *message, b []byte) []byte {
	dst = append(dst, '"')
	open := len(dst)
	for i := 0; i < len(b); {
		x, tag, j := m.find(b, i)
		if j < 0 {
			return w.malformed(b, i)
		}
		if x < 0 {
			if i = skip(b, j, tag, w.depth); i < 0 {
				return w.malformed(b, j)
			}
			continue
		}
		from, to := span(b, j)
		if to < 0 {
			return w.malformed(b, j)
		}
		path := b[from:to]
		if len(dst) > open {
			dst = append(dst, ',')
		}
		var ok bool
		if dst, ok = appendCamel(dst, path); !ok {
			return w.fail(b, from, "field mask path has no JSON form: "+strconv.Quote(string(path)))
		}
		i = to
	}
	return append(dst, '"')
}

// appendCamel writes a field path in lowerCamelCase and reports whether it is a path and would read back the same.
func appendCamel(dst, path []byte) ([]byte, bool) {
	if !protoreflect.FullName(text(path)).IsValid() {
		return dst, false
	}
	up := false
	for _, c := range path {
		switch {
		case c == '_':
			if up {
				return dst, false // two in a row
			}
			up = true
			continue
		case up && (c < 'a' || c > 'z'), c >= 'A' && c <= 'Z':
			return dst, false
		case up:
			c -= 'a' - 'A'
		}
		up = false
		dst = append(dst, c)
	}
	return dst, !up
}

// any writes a google.protobuf.Any: the object of the message inside with the type URL in front, or, for a type with a
// JSON form of its own, an object of the type URL and the value.
func (w *writer) any(dst []byte, m *message, b []byte) []byte {
	var url, val []byte
	for i := 0; i < len(b); {
		x, tag, j := m.find(b, i)
		if j < 0 {
			return w.malformed(b, i)
		}
		if x < 0 {
			if i = skip(b, j, tag, w.depth); i < 0 {
				return w.malformed(b, j)
			}
			continue
		}
		from, to := span(b, j)
		if to < 0 {
			return w.malformed(b, j)
		}
		if m.fields[x].kind == kindString {
			if !validUTF8(url) {
				return w.malformed(b, j)
			}
			url = b[from:to]
		} else {
			val = b[from:to]
		}
		i = to
	}
	if len(url) == 0 {
		if len(val) == 0 {
			return append(dst, '{', '}')
		}
		return w.fail(b, 0, "a google.protobuf.Any has a value but no type")
	}
	start := len(dst)
	dst = append(dst, `{"@type":`...)
	dst, ok := appendQuoted(dst, url)
	if !ok {
		return w.fail(b, 0, "type URL is not valid UTF-8")
	}
	inner, err := w.types.anyMessage(url)
	if err != nil {
		return w.fail(b, 0, "unknown type "+strconv.Quote(string(url)))
	}
	if w.depth--; w.depth < 0 {
		return w.fail(b, 0, "nested too deeply")
	}
	partial := w.partial
	w.partial = true
	if inner.special == plain || inner.special == emptyType {
		dst = w.members(dst, inner, val)
	} else {
		dst = w.message(append(dst, `,"value":`...), inner, val)
	}
	w.partial = partial
	if dst == nil {
		return nil
	}
	w.depth++
	dst[start] = '{'
	return append(dst, '}')
}
