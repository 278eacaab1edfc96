package upstream

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	"transom/rpc"
)

// hashOn says what the balancer's hash key of a call is: the value of a metadata key or of a field of the request, the
// client's address, or nothing.
type hashOn struct {
	header string
	ip     bool
	field  []protoreflect.Name
}

// parseHashOn reads Config.HashOn.
func parseHashOn(s string) (hashOn, error) {
	header, isHeader := strings.CutPrefix(s, "header:")
	field, isField := strings.CutPrefix(s, "field:")
	switch {
	case s == "":
		return hashOn{}, nil
	case s == "ip":
		return hashOn{ip: true}, nil
	case isHeader && header != "" && header == strings.ToLower(header):
		return hashOn{header: header}, nil
	case isField:
		var h hashOn
		for part := range strings.SplitSeq(field, ".") {
			if !protoreflect.Name(part).IsValid() {
				return hashOn{}, fmt.Errorf("%q is not the name of a field", part)
			}
			h.field = append(h.field, protoreflect.Name(part))
		}
		return h, nil
	}
	return hashOn{}, fmt.Errorf(`%q is neither "ip" nor "header:" with a key in lower case nor "field:" with the path of a field`, s)
}

// key is a call's, "" if it has none. req is its request if it has one only, else empty.
func (h hashOn) key(call *rpc.Call, req rpc.Message) string {
	switch {
	case h.ip:
		return call.Peer.Addr.Addr().String()
	case h.header != "":
		return strings.Join(call.Header[h.header], ",")
	case h.field != nil && req.Len() > 0:
		if path := fieldPath(call.Method, h.field); path != nil {
			return string(fieldValue(req.Bytes(), path))
		}
	}
	return ""
}

// HashesOn reports whether the calls of m have a key by Config.HashOn: whether a path that it names leads to a field of the
// method's only request.
func HashesOn(hashOn string, m *descriptors.Method) bool {
	h, err := parseHashOn(hashOn)
	return err == nil && (h.field == nil || !m.ClientStreams && fieldPath(m, h.field) != nil)
}

// fieldPath returns the fields that names lead through from m's request to one that is not repeated and no message; nil if
// they do not.
func fieldPath(m *descriptors.Method, names []protoreflect.Name) []protoreflect.FieldDescriptor {
	if m.Desc == nil {
		return nil
	}
	message := m.Desc.Input()
	path := make([]protoreflect.FieldDescriptor, 0, 4)
	for _, name := range names {
		if message == nil {
			return nil
		}
		f := message.Fields().ByName(name)
		if f == nil || f.Cardinality() == protoreflect.Repeated {
			return nil
		}
		path = append(path, f)
		message = f.Message()
	}
	if message != nil {
		return nil
	}
	return path
}

// fieldValue returns the value of the field at the end of path in a message's wire bytes, as it is on the wire without tag
// and length: the last one if there are several, nil if there is none or the bytes are not a message. Where a message on
// the path comes several times, which decoders merge, the last that has the field counts.
func fieldValue(wire []byte, path []protoreflect.FieldDescriptor) (value []byte) {
	f := path[0]
	for len(wire) > 0 {
		num, typ, n := protowire.ConsumeTag(wire)
		if n < 0 {
			return nil
		}
		wire = wire[n:]
		size := protowire.ConsumeFieldValue(num, typ, wire)
		if size < 0 {
			return nil
		}
		if num == f.Number() && typ == wireType(f.Kind()) {
			v := wire[:size]
			switch typ {
			case protowire.BytesType:
				v, _ = protowire.ConsumeBytes(v)
			case protowire.StartGroupType:
				v, _ = protowire.ConsumeGroup(num, v)
			default:
			}
			if len(path) > 1 {
				v = fieldValue(v, path[1:])
			}
			if v != nil {
				value = v
			}
		}
		wire = wire[size:]
	}
	return value
}

// wireType is how a field of a kind that is not repeated is written; where it comes otherwise it counts as unknown.
func wireType(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	default:
		return protowire.VarintType
	}
}
