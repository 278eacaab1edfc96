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
	scheme byte    // the indexed field
	consts []field // behind :path, in their order
	size   int     // of the constant fields but the path's value, as RFC 9113 6.5.2 counts

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

func newEncoder(cfg *Config) encoder {
	e := encoder{
		scheme: 0x86,
		consts: []field{
			{":authority", cfg.Authority},
			{"content-type", "application/grpc+proto"},
			{"te", "trailers"},
			{"user-agent", cfg.UserAgent},
		},
		limit:  h2wire.DefaultTable,
		table:  map[field]int{},
		blocks: map[string]block{},
	}
	if cfg.AcceptEncoding != "" {
		e.consts = append(e.consts, field{"grpc-accept-encoding", cfg.AcceptEncoding})
	}
	if cfg.Handshake != nil {
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

// appendMetadata appends a call's own fields, and returns their size as RFC 9113 6.5.2 counts. Names must be of [0-9a-z_.-], values of
// 0x20 to 0x7E but for "-bin" names (gRPC over HTTP/2, "Custom-Metadata").
func appendMetadata(dst []byte, md metadata.MD) (block []byte, size int, err error) {
	for name, values := range md {
		if Ours(name) {
			continue
		}
		for i := range len(name) {
			if !nameChars[name[i]] {
				return dst, 0, fmt.Errorf("metadata key %q has characters that metadata cannot carry", name)
			}
		}
		var kind byte
		if h2wire.Secret(name) {
			kind = 0x10
		}
		bin := strings.HasSuffix(name, "-bin")
		for _, v := range values {
			if !bin {
				if !grpcwire.ValidText(v) {
					return dst, 0, fmt.Errorf("metadata key %q has a value with characters that metadata cannot carry", name)
				}
				size += len(name) + len(v) + 32
				dst = h2wire.AppendLiteral(dst, kind, 4, name, v)
				continue
			}
			n := base64.RawStdEncoding.EncodedLen(len(v))
			size += len(name) + n + 32
			dst = h2wire.AppendInt(h2wire.AppendName(dst, kind, 4, name), 0, 7, n)
			dst = base64.RawStdEncoding.AppendEncode(dst, []byte(v))
		}
	}
	return dst, size, nil
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

// Ours reports whether a request field is written by the transport, is of one hop only (RFC 9110 7.6.1, RFC 9113 8.2.2), or is
// reserved by gRPC and not one that whoever uses the transport sets, so that a caller's is left out.
func Ours(name string) bool {
	if name == "" || name[0] == ':' {
		return true
	}
	if name[0] == 'x' { // as most are
		return false
	}
	switch name {
	case "content-type", "content-length", "connection", "host", "http2-settings", "keep-alive", "proxy-authenticate",
		"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "user-agent":
		return true
	case "grpc-trace-bin", "grpc-tags-bin", "grpc-retry-pushback-ms", "grpc-previous-rpc-attempts", "grpc-encoding":
		return false
	}
	return strings.HasPrefix(name, "grpc-")
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

var nameChars = func() (ok [256]bool) {
	for _, c := range "abcdefghijklmnopqrstuvwxyz0123456789-_." {
		ok[c] = true
	}
	return ok
}()
