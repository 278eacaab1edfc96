package transform

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/rpc"
)

// Path leads to a field of a message type that can be taken out.
type Path struct {
	name   string
	fields []protoreflect.FieldDescriptor
}

// NewPath finds the field that name leads to from md, through lists and the values of maps. rpc.ErrNoField is that there is none. A
// path into what a google.protobuf.Any, Struct, Value or ListValue holds is another error: the field may be there, and could not be
// taken out.
func NewPath(md protoreflect.MessageDescriptor, name string) (Path, error) {
	fields, err := follow(md, name, true)
	if err != nil {
		for _, fd := range fields {
			within := fd.Message()
			if fd.IsMap() {
				within = fd.MapValue().Message()
			}
			if within == nil {
				continue
			}
			switch within.FullName() {
			case "google.protobuf.Any", "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue":
				return Path{}, fmt.Errorf("%s: %s has a %s, which is not looked into; name the field to take out all of it", name, fd.FullName(), within.FullName())
			}
		}
		return Path{}, err
	}
	if fields[len(fields)-1].Cardinality() == protoreflect.Required {
		return Path{}, fmt.Errorf("%s: %s is required, so no message is valid without it", name, fields[len(fields)-1].FullName())
	}
	return Path{name, fields}, nil
}

// Redact takes fields out of all answers, and "etag" with them: it tells of the whole, also of what other rules left in, and so would
// have clients and caches keep that (RFC 9110 section 8.8.1). It is nil if there are none.
func Redact(paths []Path) rpc.Middleware {
	if len(paths) == 0 {
		return nil
	}
	r := newRedaction(paths)
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			call.Stream = &redacted{call.Stream, r, call}
			return next(ctx, call)
		}
	}
}

// redacted redacts each answer.
type redacted struct {
	rpc.Stream
	redaction *redaction
	call      *rpc.Call
}

func (s *redacted) SendHeader(md metadata.MD) error {
	delete(md, "etag")
	return s.Stream.SendHeader(md)
}

func (s *redacted) Send(ctx context.Context, m rpc.Message) error {
	m, err := s.redaction.message(m, s.call)
	if err != nil {
		return err
	}
	return s.Stream.Send(ctx, m)
}

// redaction takes the fields of several paths out of messages of one type.
type redaction struct {
	md   protoreflect.MessageDescriptor
	root *node
}

// node is what becomes of the fields of one message type at one place.
type node struct {
	edges []edge
	// choices are the members of oneofs that have a redacted member, which are themselves kept.
	choices []choice
	// exact is that what is left depends on the order of fields, here or further in: a member of a oneof that is redacted has
	// done away with those before it.
	exact bool
}

// edge is a field that is taken out, or that leads to one.
type edge struct {
	num protowire.Number
	fd  protoreflect.FieldDescriptor
	// child is nil for a field to be taken out.
	child *node
	// seen is the bit of the oneof that a field to be taken out is a member of, or of a message that may come only once.
	seen uint64
}

// choice is a member of a oneof.
type choice struct {
	num  protowire.Number
	seen uint64
}

func newRedaction(paths []Path) *redaction {
	r := &redaction{md: paths[0].fields[0].ContainingMessage(), root: &node{}}
	for _, p := range paths {
		r.root.add(p.fields)
	}
	r.root.finish()
	return r
}

// add adds a path to the tree. A field that is taken out has nothing below it.
func (n *node) add(path []protoreflect.FieldDescriptor) {
	fd := path[0]
	i := slices.IndexFunc(n.edges, func(e edge) bool { return e.num == fd.Number() })
	if i < 0 {
		i = len(n.edges)
		n.edges = append(n.edges, edge{num: fd.Number(), fd: fd, child: &node{}})
	}
	e := &n.edges[i]
	switch {
	case e.child == nil:
	case len(path) == 1:
		e.child = nil
	case fd.IsMap():
		e.child.add(append([]protoreflect.FieldDescriptor{fd.MapValue()}, path[1:]...))
	default:
		e.child.add(path[1:])
	}
}

// finish finds what depends on order.
func (n *node) finish() {
	unused := uint64(1)
	bit := func() uint64 { // those beyond the last share it, which only makes more messages be decoded
		b := unused
		unused = max(unused, unused<<1)
		return b
	}
	oneofs := map[protoreflect.Name]uint64{}
	for i := range n.edges {
		e := &n.edges[i]
		if e.child != nil {
			e.child.finish()
			if e.child.exact {
				n.exact = true
				if e.fd.Cardinality() != protoreflect.Repeated {
					e.seen = bit()
				}
			}
			continue
		}
		if o := realOneof(e.fd); o != nil {
			n.exact = true
			if oneofs[o.Name()] == 0 {
				oneofs[o.Name()] = bit()
			}
			e.seen = oneofs[o.Name()]
		}
	}
	for i := range n.edges {
		o := realOneof(n.edges[i].fd)
		if n.edges[i].child != nil || o == nil {
			continue
		}
		for j := range o.Fields().Len() {
			num := o.Fields().Get(j).Number()
			dropped := func(e edge) bool { return e.num == num && e.child == nil }
			if !slices.ContainsFunc(n.edges, dropped) && !slices.ContainsFunc(n.choices, func(c choice) bool { return c.num == num }) {
				n.choices = append(n.choices, choice{num, oneofs[o.Name()]})
			}
		}
	}
}

// edge finds the edge of a field number; nil if nothing becomes of the field.
func (n *node) edge(num protowire.Number) *edge {
	for i := range n.edges {
		if n.edges[i].num == num {
			return &n.edges[i]
		}
	}
	return nil
}

var (
	errNotRead = errors.New("cannot be read")
	// errOrder is that fields came in an order of which what is left depends.
	errOrder = errors.New("fields in an odd order")
)

// message redacts m, which it takes over.
func (r *redaction) message(m rpc.Message, call *rpc.Call) (rpc.Message, error) {
	b := m.Bytes()
	at, seen, err := r.root.first(b)
	if err == nil && at == len(b) {
		return m, nil
	}
	var out rpc.Message
	if err == nil {
		out, err = r.rest(b, at, seen)
	}
	m.Release()
	if err != nil {
		call.Info.Fail(rpc.SourceUpstream)
		call.Info.Note("redact", err.Error())
		return rpc.Message{}, status.Errorf(codes.Internal, "the answer is not a valid %s", r.md.FullName())
	}
	return out, nil
}

// first is where the first field begins of which something may become; len(b) if there is none.
func (n *node) first(b []byte) (at int, seen uint64, err error) {
	for at < len(b) {
		num, _, _, rest, ok := next(b[at:])
		if !ok {
			return 0, 0, errNotRead
		}
		if n.edge(num) != nil {
			return at, seen, nil
		}
		seen |= n.chosen(num)
		at = len(b) - len(rest)
	}
	return at, seen, nil
}

// chosen is the bit of the oneof that a field number belongs to, 0 for none.
func (n *node) chosen(num protowire.Number) uint64 {
	for _, c := range n.choices {
		if c.num == num {
			return c.seen
		}
	}
	return 0
}

// rest redacts b, of which nothing becomes before at.
func (r *redaction) rest(b []byte, at int, seen uint64) (rpc.Message, error) {
	pool := mem.DefaultBufferPool()
	small := mem.IsBelowBufferPoolingThreshold(len(b))
	var buf *[]byte
	var dst []byte
	if small {
		dst = make([]byte, 0, len(b))
	} else {
		buf = pool.Get(len(b))
		dst = (*buf)[:0]
	}
	dst, err := r.root.append(append(dst, b[:at]...), b[at:], seen)
	if err == errOrder {
		dst, err = r.decoded(dst[:0], b)
	}
	if small {
		return rpc.NewMessage(dst), err
	}
	*buf = dst
	out := rpc.PooledMessage(buf, pool)
	if err != nil {
		out.Release()
		return rpc.Message{}, err
	}
	return out, nil
}

// append appends what is left of b.
func (n *node) append(dst, b []byte, seen uint64) ([]byte, error) {
	kept := b // what is left and not appended yet begins here
	for len(b) > 0 {
		num, typ, value, rest, ok := next(b)
		if !ok {
			return dst, errNotRead
		}
		e := n.edge(num)
		if e == nil {
			if n.exact {
				seen |= n.chosen(num)
			}
			b = rest
			continue
		}
		dst = append(dst, kept[:len(kept)-len(b)]...)
		if typ == wireType(e.fd) && e.seen&seen != 0 {
			return dst, errOrder
		}
		if e.child == nil || typ != wireType(e.fd) { // of another type it is unknown to everybody: nobody misses it
			b, kept = rest, rest
			continue
		}
		if n.exact {
			seen |= e.seen | n.chosen(num)
		}
		var err error
		if dst, err = e.child.field(dst, num, typ, value); err != nil {
			return dst, err
		}
		b, kept = rest, rest
	}
	return append(dst, kept...), nil
}

// field appends a message field of which value is redacted.
func (n *node) field(dst []byte, num protowire.Number, typ protowire.Type, value []byte) ([]byte, error) {
	dst = protowire.AppendTag(dst, num, typ)
	if typ == protowire.StartGroupType {
		dst, err := n.append(dst, value, 0)
		return protowire.AppendTag(dst, num, protowire.EndGroupType), err
	}
	// What is left is no longer than value, and so is its length.
	at := len(dst)
	room := protowire.SizeVarint(uint64(len(value)))
	for range room {
		dst = append(dst, 0)
	}
	dst, err := n.append(dst, value, 0)
	size := len(dst) - at - room
	if need := protowire.SizeVarint(uint64(size)); need < room {
		copy(dst[at+need:], dst[at+room:])
		dst = dst[:at+need+size]
	}
	protowire.AppendVarint(dst[:at], uint64(size))
	return dst, err
}

// decoded redacts b by decoding it.
func (r *redaction) decoded(dst, b []byte) ([]byte, error) {
	msg, err := rpc.Decode(r.md, b)
	if err != nil {
		return dst, errNotRead
	}
	r.root.clear(msg)
	whole, err := proto.MarshalOptions{AllowPartial: true}.Marshal(msg)
	if err != nil {
		return dst, errNotRead
	}
	// Of another type on the wire than its own, a field is unknown to the decoder, and still there.
	return r.root.append(dst, whole, 0)
}

// clear takes the fields out of a message.
func (n *node) clear(msg protoreflect.Message) {
	for i := range n.edges {
		e := &n.edges[i]
		switch {
		case e.child == nil:
			msg.Clear(e.fd)
		case !msg.Has(e.fd):
		case e.fd.IsMap():
			msg.Get(e.fd).Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				// The edge from the entry to its value is the only one.
				e.child.edges[0].child.clear(v.Message())
				return true
			})
		case e.fd.IsList():
			for j := range msg.Get(e.fd).List().Len() {
				e.child.clear(msg.Get(e.fd).List().Get(j).Message())
			}
		default:
			e.child.clear(msg.Mutable(e.fd).Message())
		}
	}
}
