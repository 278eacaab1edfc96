package codec

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The tags of the well-known types' fields.
const (
	tagValueNull   = 1<<3 | byte(protowire.VarintType)
	tagValueNumber = 2<<3 | byte(protowire.Fixed64Type)
	tagValueString = 3<<3 | byte(protowire.BytesType)
	tagValueBool   = 4<<3 | byte(protowire.VarintType)
	tagValueStruct = 5<<3 | byte(protowire.BytesType)
	tagValueList   = 6<<3 | byte(protowire.BytesType)
	tagSeconds     = 1<<3 | byte(protowire.VarintType)
	tagNanos       = 2<<3 | byte(protowire.VarintType)
	tagFirst       = 1<<3 | byte(protowire.BytesType)
	tagAnyValue    = 2<<3 | byte(protowire.BytesType)
)

// wellKnown reads a message whose type has a JSON form of its own.
func (r *reader) wellKnown(dst []byte, m *message, i int) ([]byte, int) {
	switch m.special {
	case timestampType, durationType, fieldMaskType:
		s, escaped, end := r.string(i)
		if end < 0 {
			return dst, end
		}
		if escaped {
			if s = appendUnescaped(nil, s); s == nil {
				return dst, r.badString(i)
			}
		}
		dst, fault := appendTextForm(dst, m.special, s)
		if fault != "" {
			return dst, r.expected(i, fault)
		}
		return dst, end
	case wrapperType:
		return r.single(dst, &m.fields[0], i)
	case valueType:
		return r.value(dst, m, i)
	case structType:
		return r.mapField(dst, &m.fields[0], i)
	case listValueType:
		return r.list(dst, &m.fields[0], i)
	case anyType:
		return r.any(dst, i)
	case messageSetType:
		return dst, r.fail(i, "message sets have no JSON form")
	}
	return r.object(dst, m, i, false)
}

// appendTextForm writes the content of a Timestamp, Duration or FieldMask given as text. The fault, if any, is what the
// text should have been.
func appendTextForm(dst []byte, t wellKnown, s []byte) (out []byte, fault string) {
	switch t {
	case timestampType:
		secs, nanos, ok := parseTimestamp(s)
		if !ok {
			return dst, `a timestamp like "2006-01-02T15:04:05Z" of the years 0001 to 9999`
		}
		return appendSeconds(dst, secs, nanos), ""
	case durationType:
		secs, nanos, ok := parseDuration(s)
		if !ok {
			return dst, `a duration like "1.5s" of at most 315576000000s`
		}
		return appendSeconds(dst, secs, nanos), ""
	}
	dst, ok := appendMask(dst, s)
	if !ok {
		return dst, `field paths like "user.displayName,photo"`
	}
	return dst, ""
}

func appendSeconds(dst []byte, secs int64, nanos int32) []byte {
	dst = room(dst, 24)
	if secs != 0 {
		dst = appendVarint(append(dst, tagSeconds), uint64(secs))
	}
	if nanos != 0 {
		dst = appendVarint(append(dst, tagNanos), uint64(int64(nanos)))
	}
	return dst
}

// value reads any JSON value as a google.protobuf.Value.
func (r *reader) value(dst []byte, m *message, i int) ([]byte, int) {
	dst = room(dst, 16)
	switch c := r.at(i); c {
	case '"':
		if out, end := r.shortString(dst, &m.fields[m.lookup(3)], i); end >= 0 {
			return out, end
		}
		s, escaped, end := r.string(i)
		if end < 0 {
			return dst, end
		}
		return r.appendString(append(dst, tagValueString), s, escaped, i, end)
	case '{', '[':
		tag, x := tagValueStruct, 5
		if c == '[' {
			tag, x = tagValueList, 6
		}
		f := &m.fields[m.lookup(protowire.Number(x))].msg.fields[0]
		dst = append(dst, tag, 0)
		at, extra := len(dst), r.extra
		if c == '{' {
			dst, i = r.mapField(dst, f, i)
		} else {
			dst, i = r.list(dst, f, i)
		}
		if i < 0 {
			return dst, i
		}
		return r.close(dst, at, 1, extra), i
	case 't':
		return append(dst, tagValueBool, 1), r.literal(i, "true")
	case 'f':
		return append(dst, tagValueBool, 0), r.literal(i, "false")
	case 'n':
		return append(dst, tagValueNull, 0), r.literal(i, "null")
	}
	v, i := r.floatNumber(&m.fields[m.lookup(2)], i)
	if i < 0 {
		return dst, r.expected(r.offset, "a value")
	}
	return appendRaw(append(dst, tagValueNumber), protowire.Fixed64Type, v), i
}

// any reads the object of a google.protobuf.Any. Its "@type" may come anywhere in it.
func (r *reader) any(dst []byte, i int) ([]byte, int) {
	if r.at(i) != '{' {
		return dst, r.expected(i, "an object")
	}
	first := space(r.in, i+1)
	if r.at(first) == '}' {
		return dst, first + 1
	}
	typeAt := r.findType(i)
	if typeAt < 0 {
		if typeAt == noType && r.discard {
			return dst, r.skipValue(i)
		}
		if typeAt == noType {
			return dst, r.fail(i, `missing "@type"`)
		}
		return dst, -1
	}
	s, escaped, end := r.string(typeAt)
	if end < 0 {
		return dst, end
	}
	if escaped {
		if s = appendUnescaped(nil, s); s == nil {
			return dst, r.badString(typeAt)
		}
	}
	if len(s) == 0 {
		return dst, r.fail(typeAt, `empty "@type"`)
	}
	m, err := r.types.anyMessage(s)
	if err != nil {
		return dst, r.fail(typeAt, "unknown type "+strconv.Quote(string(s)))
	}
	dst = appendVarint(append(room(dst, 16+len(s)), tagFirst), uint64(len(s)))
	dst = append(dst, s...)
	start := len(dst)
	dst = append(dst, tagAnyValue, 0)
	at, extra := len(dst), r.extra
	partial := r.partial
	r.partial = true
	if m.special == plain {
		dst, i = r.object(dst, m, i, true)
	} else {
		dst, i = r.anyValue(dst, m, i)
	}
	r.partial = partial
	if i < 0 {
		return dst, i
	}
	if len(dst) == at {
		return dst[:start], i
	}
	return r.close(dst, at, 1, extra), i
}

const noType = -2

// findType returns where the value of "@type" of the object at in[i:] begins, noType when it has none, or -1.
func (r *reader) findType(i int) int {
	in := r.in
	depth := r.depth
	defer func() { r.depth = depth }()
	i = space(in, i+1)
	for {
		if r.at(i) != '"' {
			return r.expected(i, "a field name")
		}
		s, escaped, end := r.string(i)
		if end < 0 {
			return end
		}
		if escaped {
			if s = appendUnescaped(nil, s); s == nil {
				return r.badString(i)
			}
		}
		if i = space(in, end); r.at(i) != ':' {
			return r.expected(i, "a colon")
		}
		i = space(in, i+1)
		if string(s) == "@type" {
			return i // object and anyValue look for a second one
		}
		if i = r.skipValue(i); i < 0 {
			return i
		}
		if i = space(in, i); r.at(i) == '}' {
			return noType
		}
		if r.at(i) != ',' {
			return r.expected(i, "a comma or the end of the object")
		}
		i = space(in, i+1)
	}
}

// anyValue reads the object of an Any whose type has a JSON form of its own, which is in "value".
func (r *reader) anyValue(dst []byte, m *message, i int) ([]byte, int) {
	in := r.in
	if r.depth--; r.depth < 0 {
		return dst, r.fail(i, "nested too deeply")
	}
	open := i
	found, typed := false, false
	i = space(in, i+1)
	for {
		at := i
		if r.at(i) != '"' {
			return dst, r.expected(i, "a field name")
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
		if i = space(in, end); r.at(i) != ':' {
			return dst, r.expected(i, "a colon")
		}
		i = space(in, i+1)
		switch {
		case string(s) == "@type":
			if typed {
				return dst, r.fail(at, `duplicate "@type"`)
			}
			typed = true
			i = r.skipValue(i)
		case string(s) == "value":
			if found {
				return dst, r.fail(at, `duplicate "value"`)
			}
			found = true
			dst, i = r.message(dst, m, i)
		case r.discard:
			i = r.skipValue(i)
		default:
			return dst, r.fail(at, "unknown field "+strconv.Quote(string(s)))
		}
		if i < 0 {
			return dst, i
		}
		if i = space(in, i); r.at(i) == '}' {
			break
		}
		if r.at(i) != ',' {
			return dst, r.expected(i, "a comma or the end of the object")
		}
		i = space(in, i+1)
	}
	if !found && m.special != emptyType {
		return dst, r.fail(open, `missing "value"`)
	}
	r.depth++
	return dst, i + 1
}

// parseTimestamp reads RFC 3339: with a zone, up to nine digits of fraction, and no leap seconds.
func parseTimestamp(s []byte) (secs int64, nanos int32, ok bool) {
	if secs, nanos, ok = parseUTC(s); ok {
		return secs, nanos, secs >= minTimestamp && secs <= maxTimestamp
	}
	t, err := time.Parse(time.RFC3339Nano, text(s))
	if err != nil {
		return 0, 0, false
	}
	if dot, zone := bytes.LastIndexByte(s, '.'), bytes.LastIndexAny(s, "Z-+"); dot >= 0 && zone >= dot && zone-dot > 10 {
		return 0, 0, false
	}
	secs = t.Unix()
	return secs, int32(t.Nanosecond()), secs >= minTimestamp && secs <= maxTimestamp
}

// parseUTC reads the form "2006-01-02T15:04:05[.fraction]Z" and leaves others to time.Parse.
func parseUTC(s []byte) (secs int64, nanos int32, ok bool) {
	if len(s) < 20 || s[len(s)-1] != 'Z' || s[4] != '-' || s[7] != '-' || s[10] != 'T' || s[13] != ':' || s[16] != ':' {
		return 0, 0, false
	}
	// The twelve digits of date and time as two words.
	d := uint64(binary.LittleEndian.Uint32(s)) | uint64(binary.LittleEndian.Uint16(s[5:]))<<32 |
		uint64(binary.LittleEndian.Uint16(s[8:]))<<48
	t := uint64('0') | uint64('0')<<8 | uint64(binary.LittleEndian.Uint16(s[11:]))<<16 |
		uint64(binary.LittleEndian.Uint16(s[14:]))<<32 | uint64(binary.LittleEndian.Uint16(s[17:]))<<48
	if !allDigits(d) || !allDigits(t) {
		return 0, 0, false
	}
	date, clock := uint32(value8(d)), uint32(value8(t))
	year, month, day := date/10000, date/100%100, date%100
	hour, minute, second := clock/10000, clock/100%100, clock%100
	if month-1 >= 12 || day-1 >= daysIn(year, month) || hour > 23 || minute > 59 || second > 59 {
		return 0, 0, false
	}
	if frac := s[19 : len(s)-1]; len(frac) > 0 {
		if frac[0] != '.' || len(frac) == 1 || len(frac) > 10 {
			return 0, 0, false
		}
		for k := range 9 {
			nanos *= 10
			if k+1 < len(frac) {
				c := frac[k+1] - '0'
				if c > 9 {
					return 0, 0, false
				}
				nanos += int32(c)
			}
		}
	}
	// Years from March, as in civil.
	y, mp := int64(year), int64(month)-3
	if month <= 2 {
		y--
		mp += 12
	}
	if y < 0 {
		return 0, 0, false
	}
	days := y*365 + y/4 - y/100 + y/400 + (153*mp+2)/5 + int64(day) - 1 - 719468 // since 1970-01-01
	return days*86400 + int64(hour*3600+minute*60+second), nanos, true
}

func daysIn(year, month uint32) uint32 {
	if month == 2 {
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 30 + (month+month>>3)&1
}

// parseDuration reads seconds with at most nine digits of fraction and the suffix s: 1s, 0.1s, 1.s, .1s, +1s, -1.5s.
func parseDuration(s []byte) (secs int64, nanos int32, ok bool) {
	if len(s) < 2 || s[len(s)-1] != 's' {
		return 0, 0, false
	}
	s = s[:len(s)-1]
	neg := s[0] == '-'
	if neg || s[0] == '+' {
		s = s[1:]
	}
	k := 0
	for k < len(s) && s[k]-'0' < 10 {
		if secs = secs*10 + int64(s[k]-'0'); secs > maxDuration {
			return 0, 0, false
		}
		k++
	}
	if len(s) == 0 || k > 1 && s[0] == '0' || k < len(s) && s[k] != '.' {
		return 0, 0, false
	}
	if k < len(s) {
		frac := s[k+1:]
		if len(frac) > 9 {
			return 0, 0, false
		}
		for j := range 9 {
			nanos *= 10
			if j < len(frac) {
				c := frac[j] - '0'
				if c > 9 {
					return 0, 0, false
				}
				nanos += int32(c)
			}
		}
	}
	if neg {
		return -secs, -nanos, true
	}
	return secs, nanos, true
}

// appendMask writes the paths of a field mask, lowerCamelCase and separated by commas, as the records of its paths.
func appendMask(dst, s []byte) ([]byte, bool) {
	s = bytes.TrimSpace(s)
	if len(s) == 0 {
		return dst, true
	}
	for more := true; more; {
		var path []byte
		path, s, more = bytes.Cut(s, []byte{','})
		n := len(path)
		for _, c := range path {
			if c >= 'A' && c <= 'Z' {
				n++
			}
		}
		dst = appendVarint(append(room(dst, n+16), tagFirst), uint64(n))
		from := len(dst)
		for _, c := range path {
			if c == '_' {
				return dst, false
			}
			if c >= 'A' && c <= 'Z' {
				dst = append(dst, '_')
				c += 'a' - 'A'
			}
			dst = append(dst, c)
		}
		if !protoreflect.FullName(text(dst[from:])).IsValid() {
			return dst, false
		}
	}
	return dst, true
}
