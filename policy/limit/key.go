package limit

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"transom/rpc"
)

// Part is one thing that a limit counts by.
type Part struct {
	kind partKind
	// name is that of a header, in lower case, or the path of a claim.
	name string
}

type partKind uint8

const (
	perConsumer partKind = iota + 1 // the consumer; of anonymous calls the address
	perIP
	perMethod
	perHeader
	perClaim
)

// ParsePart reads "consumer", "ip", "method", "header:NAME" or "claim:PATH".
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
	}
	return Part{}, fmt.Errorf("%q is not consumer, ip, method, header:name (in lower case) or claim:path", s)
}

// key appends the bytes that say whose count a call is of. Calls have equal keys only if all parts are equal: each has its
// kind and length before it.
func (l *Limiter) key(dst []byte, call *rpc.Call) []byte {
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
		}
	}
	return dst
}

func appendText(dst []byte, s string) []byte {
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
