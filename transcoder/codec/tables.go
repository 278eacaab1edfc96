package codec

import (
	"encoding/binary"
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// kind says how one value is written on the wire and in JSON.
type kind uint8

const (
	kindBool kind = iota
	kindInt32
	kindInt64
	kindUint32
	kindUint64
	kindSint32
	kindSint64
	kindEnum
	kindFixed32
	kindSfixed32
	kindFloat
	kindFixed64
	kindSfixed64
	kindDouble
	kindString
	kindBytes
	kindMessage
	kindGroup
)

// shape says how many values a field holds.
type shape uint8

const (
	shapeSingular shape = iota
	shapeList
	shapeMap
)

// wellKnown names the message types with a JSON form of their own.
type wellKnown uint8

const (
	plain wellKnown = iota
	anyType
	timestampType
	durationType
	fieldMaskType
	structType
	valueType
	listValueType
	wrapperType
	emptyType      // plain, but apart inside an Any
	messageSetType // refused, as protojson does
)

// keyText is the text that comes before a field's value: comma, quoted name, colon. In short keys the rest of b is zero.
type keyText struct {
	b    [24]byte
	n    int
	long string // the whole text when it is longer than b
}

// nameText is the text behind the opening quote of a field's key, up to and with the colon, for comparing eight bytes at
// a time.
type nameText struct {
	w    [2]uint64
	mask [2]uint64
	n    int    // length with quote and colon
	rest string // what follows the first 16 bytes
}

// The styles pick one of the two names of a field.
const (
	styleJSON = iota
	styleProto
	styles
)

// field is what the codec knows of one field. It is immutable once its message is compiled.
type field struct {
	kind     kind
	shape    shape
	implicit bool // no presence: a default value is as good as none
	required bool
	null     bool // JSON null is a value: google.protobuf.Value and NullValue
	packed   bool // written packed
	utf8     bool // parsers refuse text that is not UTF-8
	zigzag   bool
	integral bool // an integer, but no enum
	tagLen   uint8
	oneof    uint16 // 1 + index among the message's oneofs of two and more, 0 for none
	others   []int  // the indices of the other members of the oneof
	wire     protowire.Type
	idx      int32     // index in message.fields
	tag      uint32    // of one value; a packed list has wire type 2 instead
	tagBytes uint64    // the encoded tag as written (packed where packed), first byte lowest
	most     [2]uint64 // of an integer or enum: the largest value, and the largest of a negative one without its sign
	key      [styles]keyText
	name     [styles]nameText

	msg  *message // of a message or group, or a map's entry
	enum *enum
	none string // JSON of an empty list or map

	solo *message // of an extension: a message that has only this field
	desc protoreflect.FieldDescriptor
}

// message is the compiled form of one message type: fields in order of declaration, which is the order of JSON output.
type message struct {
	fields    []field
	tag1      [128]uint8 // one-byte tag → 1 + index, 0 for unknown or not below 255
	byNumber  []uint16   // number → 1 + index, for dense numbers
	sparse    map[protowire.Number]uint16
	names     nameTable
	special   wellKnown
	prescan   bool // servers are likely to send fields in another order than declared
	oneofs    int  // of two members and more
	required  int
	seenWords int // words of a bit set over fields and, behind them, oneofs
	desc      protoreflect.MessageDescriptor
	ranges    protoreflect.FieldRanges // extension ranges, nil for none
	types     *Types
}

// enum is a compiled enum type.
type enum struct {
	null    bool // google.protobuf.NullValue
	dense   []string
	sparse  map[int32]string // quoted names
	names   nameTable        // index into numbers
	numbers []int32
	desc    protoreflect.EnumDescriptor
}

// quoted returns the JSON string of a value's name, or "" when the number has none.
func (e *enum) quoted(n int32) string {
	if uint(n) < uint(len(e.dense)) {
		return e.dense[n]
	}
	return e.sparse[n]
}

// number returns the number of a value's name.
func (e *enum) number(name []byte) (int32, bool) {
	if x := e.names.find(name); x >= 0 {
		return e.numbers[x], true
	}
	return 0, false
}

const maxOneofs = 62 // more are not tracked in a word

const maxDense = 1024 // numbers up to this are looked up in a slice

// lookup returns the index of the field with a number, or -1.
func (m *message) lookup(num protowire.Number) int {
	if uint(num) < uint(len(m.byNumber)) {
		return int(m.byNumber[num]) - 1
	}
	if m.sparse == nil {
		return -1
	}
	return int(m.sparse[num]) - 1
}

// compile builds the table of a message type and of all types it refers to. t.mu is held.
func (t *Types) compile(md protoreflect.MessageDescriptor) *message {
	if m := t.messages[md]; m != nil {
		return m
	}
	m := &message{desc: md, types: t}
	t.messages[md] = m
	m.special = classify(md)
	if md.ExtensionRanges().Len() > 0 {
		m.ranges = md.ExtensionRanges()
	}
	fds := md.Fields()
	m.fields = make([]field, fds.Len())
	oneofs := map[protoreflect.FullName]uint16{}
	for i := range m.fields {
		t.compileField(&m.fields[i], fds.Get(i))
		m.fields[i].idx = int32(i)
		if od := fds.Get(i).ContainingOneof(); od != nil && !od.IsSynthetic() && od.Fields().Len() > 1 {
			if oneofs[od.FullName()] == 0 {
				m.oneofs++
				oneofs[od.FullName()] = uint16(m.oneofs)
			}
			m.fields[i].oneof = oneofs[od.FullName()]
		}
	}
	for i := range m.fields {
		for j := range m.fields {
			if i != j && m.fields[i].oneof != 0 && m.fields[i].oneof == m.fields[j].oneof {
				m.fields[i].others = append(m.fields[i].others, j)
			}
		}
	}
	m.index()
	return m
}

// index builds the look-up tables over m.fields.
func (m *message) index() {
	m.seenWords = (len(m.fields) + m.oneofs + 63) / 64
	top := protowire.Number(0)
	for i := range m.fields {
		if n := m.fields[i].desc.Number(); n <= maxDense {
			top = max(top, n)
		}
		if m.fields[i].required {
			m.required++
		}
	}
	m.byNumber = make([]uint16, top+1)
	for i := range m.fields {
		f := &m.fields[i]
		n := f.desc.Number()
		if n <= maxDense {
			m.byNumber[n] = uint16(i + 1)
		} else {
			if m.sparse == nil {
				m.sparse = map[protowire.Number]uint16{}
			}
			m.sparse[n] = uint16(i + 1)
		}
		if n < 16 && i < 255 {
			m.tag1[f.tag&127] = uint8(i + 1)
			if f.shape == shapeList && f.wire != protowire.BytesType && f.kind != kindGroup {
				m.tag1[uint32(n)<<3|uint32(protowire.BytesType)] = uint8(i + 1)
			}
		}
		m.names.add(f.desc.JSONName(), i)
	}
	for i := range m.fields { // a JSON name comes before another field's text name
		m.names.add(m.fields[i].desc.TextName(), i)
	}
	m.names.build()
	m.prescan = m.ranges != nil || m.oneofs > maxOneofs || m.disorderly()
}

// disorderly reports whether a server that writes fields by number, or as Go does by number but oneof members last,
// would not write them in order of declaration.
func (m *message) disorderly() bool {
	last := protowire.Number(0)
	member := false
	for i := range m.fields {
		n := m.fields[i].desc.Number()
		od := m.fields[i].desc.ContainingOneof()
		real := od != nil && !od.IsSynthetic()
		if n < last || member && !real {
			return true
		}
		last = n
		member = member || real
	}
	return false
}

func (t *Types) compileField(f *field, fd protoreflect.FieldDescriptor) {
	f.desc = fd
	f.kind = kindOf(fd.Kind())
	f.required = fd.Cardinality() == protoreflect.Required
	f.implicit = !fd.HasPresence() && !fd.ContainingMessage().IsMapEntry()
	f.utf8 = enforcesUTF8(fd)
	switch f.kind {
	case kindFixed32, kindSfixed32, kindFloat:
		f.wire = protowire.Fixed32Type
	case kindFixed64, kindSfixed64, kindDouble:
		f.wire = protowire.Fixed64Type
	case kindString, kindBytes, kindMessage:
		f.wire = protowire.BytesType
	case kindGroup:
		f.wire = protowire.StartGroupType
	default:
		f.wire = protowire.VarintType
	}
	f.tag = uint32(protowire.EncodeTag(fd.Number(), f.wire))
	switch f.kind {
	case kindInt32, kindSint32, kindSfixed32, kindEnum:
		f.most = [2]uint64{math.MaxInt32, 1 << 31}
	case kindInt64, kindSint64, kindSfixed64:
		f.most = [2]uint64{math.MaxInt64, 1 << 63}
	case kindUint32, kindFixed32:
		f.most[0] = math.MaxUint32
	case kindUint64, kindFixed64:
		f.most[0] = math.MaxUint64
	}
	f.integral = f.most[0] != 0 && f.kind != kindEnum
	f.zigzag = f.kind == kindSint32 || f.kind == kindSint64
	if md := fd.Message(); md != nil {
		f.msg = t.compile(md)
		f.null = md.FullName() == "google.protobuf.Value"
	}
	if ed := fd.Enum(); ed != nil {
		f.enum = t.compileEnum(ed)
		f.null = f.enum.null
	}
	switch {
	case fd.IsMap():
		f.shape = shapeMap
		f.none = "{}"
	case fd.IsList():
		f.shape = shapeList
		f.packed = fd.IsPacked()
		f.none = "[]"
	}
	tag := uint64(f.tag)
	if f.packed {
		tag = protowire.EncodeTag(fd.Number(), protowire.BytesType)
	}
	var b [8]byte
	f.tagLen = uint8(len(protowire.AppendVarint(b[:0], tag)))
	f.tagBytes = binary.LittleEndian.Uint64(b[:])
	f.setNames(fd.JSONName(), fd.TextName())
}

func (f *field) setNames(names ...string) {
	for s, name := range names {
		quoted, _ := appendQuoted([]byte{','}, []byte(name))
		f.key[s] = makeKey(string(quoted) + ":")
		f.name[s] = makeName(string(quoted[2:]) + ":")
	}
}

func makeKey(s string) (k keyText) {
	k.n = len(s)
	if copy(k.b[:], s) < len(s) {
		k.long = s
	}
	return k
}

func makeName(s string) (n nameText) {
	n.n = len(s)
	var b, mask [16]byte
	for i := range copy(b[:], s) {
		mask[i] = 0xff
	}
	for i := range n.w {
		n.w[i] = binary.LittleEndian.Uint64(b[i*8:])
		n.mask[i] = binary.LittleEndian.Uint64(mask[i*8:])
	}
	if len(s) > 16 {
		n.rest = s[16:]
	}
	return n
}

func kindOf(k protoreflect.Kind) kind {
	switch k {
	case protoreflect.BoolKind:
		return kindBool
	case protoreflect.EnumKind:
		return kindEnum
	case protoreflect.Int32Kind:
		return kindInt32
	case protoreflect.Sint32Kind:
		return kindSint32
	case protoreflect.Uint32Kind:
		return kindUint32
	case protoreflect.Int64Kind:
		return kindInt64
	case protoreflect.Sint64Kind:
		return kindSint64
	case protoreflect.Uint64Kind:
		return kindUint64
	case protoreflect.Sfixed32Kind:
		return kindSfixed32
	case protoreflect.Fixed32Kind:
		return kindFixed32
	case protoreflect.FloatKind:
		return kindFloat
	case protoreflect.Sfixed64Kind:
		return kindSfixed64
	case protoreflect.Fixed64Kind:
		return kindFixed64
	case protoreflect.DoubleKind:
		return kindDouble
	case protoreflect.StringKind:
		return kindString
	case protoreflect.BytesKind:
		return kindBytes
	case protoreflect.GroupKind:
		return kindGroup
	}
	return kindMessage
}

func (t *Types) compileEnum(ed protoreflect.EnumDescriptor) *enum {
	if e := t.enums[ed]; e != nil {
		return e
	}
	e := &enum{null: ed.FullName() == "google.protobuf.NullValue", sparse: map[int32]string{}, desc: ed}
	t.enums[ed] = e
	vals := ed.Values()
	top := int32(-1)
	for i := range vals.Len() {
		v := vals.Get(i)
		n := int32(v.Number())
		if _, ok := e.sparse[n]; !ok {
			e.sparse[n] = `"` + string(v.Name()) + `"`
		}
		e.names.add(string(v.Name()), i)
		e.numbers = append(e.numbers, n)
		if n <= maxDense {
			top = max(top, n)
		}
	}
	e.names.build()
	e.dense = make([]string, top+1)
	for n, s := range e.sparse {
		if n >= 0 && n <= top {
			e.dense[n] = s
			delete(e.sparse, n)
		}
	}
	return e
}

// classify recognises the well-known types by name, provided that their fields are what they should be.
func classify(md protoreflect.MessageDescriptor) wellKnown {
	if ms, ok := md.(interface{ IsMessageSet() bool }); ok && ms.IsMessageSet() {
		return messageSetType
	}
	name, ok := strings.CutPrefix(string(md.FullName()), "google.protobuf.")
	if !ok {
		return plain
	}
	has := func(num protoreflect.FieldNumber, k protoreflect.Kind, c protoreflect.Cardinality) bool {
		fd := md.Fields().ByNumber(num)
		return fd != nil && fd.Kind() == k && fd.Cardinality() == c
	}
	const one, many = protoreflect.Optional, protoreflect.Repeated
	w, ok := plain, false
	switch name {
	case "Any":
		w, ok = anyType, has(1, protoreflect.StringKind, one) && has(2, protoreflect.BytesKind, one)
	case "Timestamp":
		w, ok = timestampType, has(1, protoreflect.Int64Kind, one) && has(2, protoreflect.Int32Kind, one)
	case "Duration":
		w, ok = durationType, has(1, protoreflect.Int64Kind, one) && has(2, protoreflect.Int32Kind, one)
	case "FieldMask":
		w, ok = fieldMaskType, has(1, protoreflect.StringKind, many)
	case "Struct":
		w, ok = structType, has(1, protoreflect.MessageKind, many) && md.Fields().ByNumber(1).IsMap()
	case "ListValue":
		w, ok = listValueType, has(1, protoreflect.MessageKind, many)
	case "Value":
		w, ok = valueType, has(1, protoreflect.EnumKind, one) && has(2, protoreflect.DoubleKind, one) &&
			has(3, protoreflect.StringKind, one) && has(4, protoreflect.BoolKind, one) &&
			has(5, protoreflect.MessageKind, one) && has(6, protoreflect.MessageKind, one)
	case "BoolValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value", "FloatValue", "DoubleValue",
		"StringValue", "BytesValue":
		fd := md.Fields().ByNumber(1)
		w, ok = wrapperType, fd != nil && !fd.IsList() && !fd.IsMap() && fd.Message() == nil && fd.Enum() == nil
	case "Empty":
		w, ok = emptyType, md.Fields().Len() == 0
	}
	if !ok || name != "Empty" && md.Fields().Len() > 6 {
		return plain
	}
	return w
}

// alone returns a message that has only f, for reading or writing f outside its message's order. With keyed false its key
// is empty.
func (t *Types) alone(f *field, keyed bool) *message {
	m := &message{fields: []field{*f}, desc: f.desc.ContainingMessage(), types: t}
	c := &m.fields[0]
	c.idx, c.oneof, c.others, c.required = 0, 0, nil, false
	if !keyed {
		c.key = [styles]keyText{}
	}
	m.index()
	m.prescan = false
	return m
}

// nameTable finds fields by either name: open addressing over a hash of the first and last eight bytes and the length.
type nameTable struct {
	slots []nameSlot
	shift uint
	all   map[string]int32 // while it is being built
}

type nameSlot struct {
	name string
	idx  int32
}

func (t *nameTable) add(name string, idx int) {
	if t.all == nil {
		t.all = map[string]int32{}
	}
	if _, ok := t.all[name]; !ok { // the first wins
		t.all[name] = int32(idx)
	}
}

func (t *nameTable) build() {
	bits := uint(2)
	for 1<<bits < 2*len(t.all) {
		bits++
	}
	t.shift = 64 - bits
	t.slots = make([]nameSlot, 1<<bits)
	for i := range t.slots {
		t.slots[i].idx = -1
	}
	for name, idx := range t.all {
		h := hashName([]byte(name)) >> t.shift
		for t.slots[h].idx >= 0 {
			h = (h + 1) & uint64(len(t.slots)-1)
		}
		t.slots[h] = nameSlot{name, idx}
	}
	t.all = nil
}

// find returns the field index of a name, or -1.
func (t *nameTable) find(name []byte) int {
	h := hashName(name) >> t.shift
	for {
		s := &t.slots[h]
		if s.idx < 0 || s.name == string(name) {
			return int(s.idx)
		}
		h = (h + 1) & uint64(len(t.slots)-1)
	}
}

func hashName(s []byte) uint64 {
	var a, b uint64
	if len(s) >= 8 {
		a = binary.LittleEndian.Uint64(s)
		b = binary.LittleEndian.Uint64(s[len(s)-8:])
	} else if len(s) >= 4 {
		a = uint64(binary.LittleEndian.Uint32(s))
		b = uint64(binary.LittleEndian.Uint32(s[len(s)-4:]))
	} else if len(s) > 0 {
		a = uint64(s[0])
		b = uint64(s[len(s)/2])<<8 | uint64(s[len(s)-1])
	}
	h := (a*0x9e3779b97f4a7c15 ^ b + uint64(len(s))) * 0xd6e8feb86659fd93
	return (h ^ h>>32) * 0x9e3779b97f4a7c15
}

const maxInput = math.MaxInt32 // offsets are kept in 32 bits
