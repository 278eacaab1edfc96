package h2client

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/rpc/grpcwire"
	"transom/rpc/h2wire"
)

// encoder writes the header blocks of requests (RFC 7541). Into the server's table it inserts only what is the same in all
// calls of a method, and nothing when the table is full, so that nothing is ever evicted: an entry's index changes only
// when another is inserted, and in between the constant part of a method's block is the same bytes every time. What
// differs by call is written as literals without indexing, credentials as never indexed.
type encoder struct {
	scheme byte     // the indexed field
	consts [4]field // behind :path, in their order
	size   int      // of the constant fields but the path's value, as RFC 9113 6.5.2 counts

	limit, used int // bytes of the table
	table       map[field]int
	resized     bool // limit is to be told before the next block
	// blocks are constant parts by path, valid as long as their version is the present one, which changes with the table.
	blocks  map[string]block
	version int
}

type field struct{ name, value string }

type block struct {
	bytes   []byte
	version int
}

// Bounds of what is remembered of paths that clients may have made up.
const (
	maxBlocks    = 512
	maxBlockPath = 256
)

func newEncoder(authority, userAgent string, secure bool) encoder {
	e := encoder{
		scheme: 0x86,
		consts: [4]field{
			{":authority", authority},
			{"content-type", "application/grpc+proto"},
			{"te", "trailers"},
			{"user-agent", userAgent},
		},
		limit:  h2wire.DefaultTable,
		table:  map[field]int{},
		blocks: map[string]block{},
	}
	if secure {
		e.scheme = 0x87
	}
	e.size = len(":method") + len("POST") + 32 + len(":scheme") + len("https") + 32 + len(":path") + 32
	for _, f := range e.consts {
		e.size += len(f.name) + len(f.value) + 32
	}
	return e
}

// setLimit hears of the server's SETTINGS_HEADER_TABLE_SIZE. More than the default is not made use of.
func (e *encoder) setLimit(n uint32) {
	limit := int(min(n, h2wire.DefaultTable))
	if limit == e.limit {
		return
	}
	e.limit, e.used, e.resized = limit, 0, true
	clear(e.table)
	e.version++
}

// appendConst appends the fields that all calls of a method have.
func (e *encoder) appendConst(dst []byte, path string) []byte {
	if e.resized { // through 0, which empties the table and is below whatever the limit was in between (RFC 7541 4.2)
		e.resized = false
		dst = append(dst, 0x20)
		if e.limit > 0 {
			dst = h2wire.AppendInt(dst, 0x20, 5, e.limit)
		}
	}
	b, ok := e.blocks[path]
	if ok && b.version == e.version {
		return append(dst, b.bytes...)
	}
	start, version := len(dst), e.version
	dst = append(dst, 0x83, e.scheme)
	dst = e.appendField(dst, field{":path", path})
	for _, f := range e.consts {
		dst = e.appendField(dst, f)
	}
	if version == e.version && (ok || len(e.blocks) < maxBlocks) && len(path) <= maxBlockPath {
		e.blocks[path] = block{slices.Clone(dst[start:]), version}
	}
	return dst
}

// appendField appends a constant field, inserting it into the table if it has room.
func (e *encoder) appendField(dst []byte, f field) []byte {
	if nth, ok := e.table[f]; ok {
		return h2wire.AppendInt(dst, 0x80, 7, 61+len(e.table)-nth)
	}
	size := len(f.name) + len(f.value) + 32
	if e.used+size > e.limit || len(f.value) > maxBlockPath {
		return h2wire.AppendLiteral(dst, 0x00, 4, f.name, f.value)
	}
	e.used += size
	e.table[f] = len(e.table)
	e.version++
	return h2wire.AppendLiteral(dst, 0x40, 6, f.name, f.value)
}

// appendMetadata appends a call's own fields, which checkMetadata has passed.
func appendMetadata(dst []byte, md metadata.MD) []byte {
	for name, values := range md {
		if ours(name) {
			continue
		}
		var kind byte
		if h2wire.Secret(name) {
			kind = 0x10
		}
		bin := strings.HasSuffix(name, "-bin")
		for _, v := range values {
			if !bin {
				dst = h2wire.AppendLiteral(dst, kind, 4, name, v)
				continue
			}
			dst = h2wire.AppendInt(h2wire.AppendName(dst, kind, 4, name), 0, 7, base64.RawStdEncoding.EncodedLen(len(v)))
			n := len(dst)
			dst = slices.Grow(dst, base64.RawStdEncoding.EncodedLen(len(v)))
			dst = dst[:n+base64.RawStdEncoding.EncodedLen(len(v))]
			base64.RawStdEncoding.Encode(dst[n:], []byte(v))
		}
	}
	return dst
}

// appendTimeout appends the field grpc-timeout.
func appendTimeout(dst []byte, d time.Duration) []byte {
	const name = "grpc-timeout"
	dst = append(append(dst, 0x00, byte(len(name))), name...)
	at := len(dst)
	dst = grpcwire.AppendTimeout(append(dst, 0), d)
	dst[at] = byte(len(dst) - at - 1)
	return dst
}

// ours reports whether a request field is written by the transport, or has no place in HTTP/2 (RFC 9113 8.2.2), so that a
// caller's is left out.
func ours(name string) bool {
	switch name {
	case "content-type", "te", "user-agent", "grpc-timeout", "connection", "keep-alive", "proxy-connection",
		"transfer-encoding", "upgrade", "host", "content-length":
		return true
	}
	return name == "" || name[0] == ':'
}

// validPath reports whether method can be the ":path" of a call.
func validPath(method string) bool {
	for i := range len(method) {
		if method[i] <= 0x20 || method[i] > 0x7e {
			return false
		}
	}
	return method != "" && method[0] == '/'
}

// checkMetadata returns the size of md as RFC 9113 6.5.2 counts. Names must be of [0-9a-z_.-], values of 0x20 to 0x7E but
// for "-bin" names (gRPC over HTTP/2, "Custom-Metadata").
func checkMetadata(md metadata.MD) (size int, err error) {
	for name, values := range md {
		if ours(name) {
			continue
		}
		for i := range len(name) {
			if !nameChars[name[i]] {
				return 0, fmt.Errorf("metadata key %q has characters that metadata cannot carry", name)
			}
		}
		bin := strings.HasSuffix(name, "-bin")
		for _, v := range values {
			if bin {
				size += len(name) + base64.RawStdEncoding.EncodedLen(len(v)) + 32
				continue
			}
			size += len(name) + len(v) + 32
			if !grpcwire.ValidText(v) {
				return 0, fmt.Errorf("metadata key %q has a value with characters that metadata cannot carry", name)
			}
		}
	}
	return size, nil
}

var nameChars = func() (ok [256]bool) {
	for _, c := range "abcdefghijklmnopqrstuvwxyz0123456789-_." {
		ok[c] = true
	}
	return ok
}()
