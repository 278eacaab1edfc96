package limit

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/rpc"
)

// Part is one thing that a limit counts by.
type Part struct {
	kind partKind
	// name is that of a header, in lower case, or the path of a claim or field.
	name string
}

type partKind uint8

const (
	perConsumer partKind = iota + 1 // the consumer; of anonymous calls the address
	perIP
	perMethod
	perHeader
	perClaim
	perField
)

// ParsePart reads "consumer", "ip", "method", "header:NAME", "claim:PATH" or "field:PATH". Whether requests have the field is for
// [rpc.ParseFieldPath] to tell.
func ParsePart(s string) (Part, error) {
	kind, name, named := strings.Cut(s, ":")
	switch {
	case s == "consumer":
		return Part{kind: perConsumer}, nil
	case s == "ip":
		return Part{kind: perIP}, nil
	case s == "method":
		return Part{kind: perMethod}, nil
	case kind == "header" && named && name != "" && name == strings.ToLower(name):
		return Part{perHeader, name}, nil
	case kind == "claim" && named && name != "":
		return Part{perClaim, name}, nil
	case kind == "field" && named && name != "":
		return Part{perField, name}, nil
	}
	return Part{}, fmt.Errorf("%q is not consumer, ip, method, header:name (in lower case), claim:path or field:path", s)
}

// Fields are the fields of a method's request that limits count by, by their paths.
type Fields map[string]rpc.FieldPath

// request is what the fields are taken from. The zero value has none of them.
type request struct {
	fields  Fields
	message protoreflect.Message // nil if there is no message
}

// byField reports whether the limit counts by a field of the request.
func (l *Limiter) byField() bool {
	return slices.ContainsFunc(l.cfg.Per, func(p Part) bool { return p.kind == perField })
}

// anonymous reports whether the limit can be asked of a call before it is known who calls, and harms nobody but those at the
// call's address: it counts calls by the address, or by address and method.
func (l *Limiter) anonymous() bool {
	if len(l.plans) > 0 || l.cfg.Messages {
		return false
	}
	return slices.Contains(l.cfg.Per, Part{kind: perIP}) &&
		!slices.ContainsFunc(l.cfg.Per, func(p Part) bool { return p.kind != perIP && p.kind != perMethod })
}

// key appends the bytes that say whose count a call is of. Calls have equal keys only if all parts are equal: each has its
// kind and length before it.
func (l *Limiter) key(dst []byte, call *rpc.Call, req request) []byte {
	for _, p := range l.cfg.Per {
		dst = append(dst, byte('0'+p.kind))
		switch p.kind {
		case perConsumer:
			if call.Principal != nil {
				dst = appendText(dst, call.Principal.Consumer)
			} else {
				dst = appendAddr(append(dst, 'a'), call.Peer.Addr.Addr())
			}
		case perIP:
			dst = appendAddr(dst, call.Peer.Addr.Addr())
		case perMethod:
			dst = appendText(dst, call.Method.FullPath)
		case perHeader:
			dst = binary.AppendUvarint(dst, uint64(len(call.Header[p.name])))
			for _, v := range call.Header[p.name] {
				dst = appendText(dst, v)
			}
		case perClaim:
			dst = appendText(dst, call.Principal.ClaimText(p.name))
		case perField:
			// That there is none is a key of its own.
			if path, ok := req.fields[p.name]; ok && req.message != nil && path.Has(req.message) {
				dst = appendText(append(dst, 1), path.Text(req.message))
			} else {
				dst = append(dst, 0)
			}
		}
	}
	return dst
}

// maxText is how many bytes of a value are in a key; of longer ones there is a hash. Clients choose how long they are, and
// Redis keeps keys as they are.
const maxText = 128

// appendText appends a text of any length behind its length, by its SHA-256 if it is longer than maxText.
func appendText(dst []byte, s string) []byte {
	if len(s) > maxText {
		sum := sha256.Sum256([]byte(s))
		return append(binary.AppendUvarint(dst, uint64(len(s))), sum[:]...)
	}
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// appendAddr appends an address: of IPv6 its /64, since that is what one client has.
func appendAddr(dst []byte, a netip.Addr) []byte {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return append(append(dst, 4), b[:]...)
	}
	b := a.As16()
	return append(append(dst, 6), b[:8]...)
}
