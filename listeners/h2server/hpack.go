package h2server

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"transom/rpc/h2wire"
)

// encoder writes the header blocks of answers (RFC 7541). Into the client's table it inserts fields that have the same
// value in many answers, and nothing when the table is full, so that nothing is ever evicted; all others are literals,
// credentials such as no proxy may put into a table.
type encoder struct {
	limit, used int // bytes of the table
	table       []field
	resized     bool // limit is to be told before the next block
}

// setLimit hears of the client's SETTINGS_HEADER_TABLE_SIZE. More than the default is not made use of.
func (e *encoder) setLimit(n uint32) {
	limit := int(min(n, h2wire.DefaultTable))
	if limit == e.limit {
		return
	}
	e.limit, e.used, e.resized = limit, 0, true
	e.table = e.table[:0]
}

// begin begins a block.
func (e *encoder) begin(dst []byte) []byte {
	if e.resized { // through 0, which empties the table and is below whatever the limit was in between (RFC 7541 4.2)
		e.resized = false
		dst = append(dst, 0x20)
		if e.limit > 0 {
			dst = h2wire.AppendInt(dst, 0x20, 5, e.limit)
		}
	}
	return dst
}

// appendStatus appends the field ":status", 100 to 999.
func appendStatus(dst []byte, code int) []byte {
	switch code {
	case 200:
		return append(dst, 0x88)
	case 204:
		return append(dst, 0x89)
	case 206:
		return append(dst, 0x8a)
	case 304:
		return append(dst, 0x8b)
	case 400:
		return append(dst, 0x8c)
	case 404:
		return append(dst, 0x8d)
	case 500:
		return append(dst, 0x8e)
	}
	return append(dst, 0x08, 3, byte('0'+code/100%10), byte('0'+code/10%10), byte('0'+code%10))
}

// append appends a field, whose name is canonical. One that is not valid, or not HTTP/2's, is left out.
func (e *encoder) append(dst []byte, name, value string) []byte {
	if !validValue(value) {
		return dst
	}
	known, ok := responseNames[name]
	if !ok {
		return appendOther(dst, name, value)
	}
	if !known.constant || known.name == "grpc-status" && value != "0" {
		return h2wire.AppendLiteral(dst, known.kind, h2wire.LiteralBits, known.name, value)
	}
	for i := len(e.table) - 1; i >= 0; i-- {
		if f := &e.table[i]; f.value == value && f.name == known.name {
			return h2wire.AppendInt(dst, 0x80, 7, 61+len(e.table)-i)
		}
	}
	size := len(known.name) + len(value) + 32
	if e.used+size > e.limit || len(value) > maxConstant {
		return h2wire.AppendLiteral(dst, known.kind, h2wire.LiteralBits, known.name, value)
	}
	e.used += size
	e.table = append(e.table, field{known.name, value})
	return h2wire.AppendLiteral(dst, h2wire.LiteralIndexed, h2wire.LiteralIndexedBits, known.name, value)
}

// maxConstant is the length of a value that is still put into the table.
const maxConstant = 512

// appendOther appends a field whose name is not common.
func appendOther(dst []byte, name, value string) []byte {
	for i := range len(name) {
		if !httpguts.IsTokenRune(rune(name[i])) {
			return dst
		}
	}
	name = strings.ToLower(name)
	switch name {
	case "", "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return dst
	}
	kind := byte(h2wire.LiteralPlain)
	if h2wire.Secret(name) {
		kind = h2wire.LiteralNeverIndexed
	}
	return h2wire.AppendLiteral(dst, kind, h2wire.LiteralBits, name, value)
}

// known is what is known of a common field of answers.
type known struct {
	name     string // in lower case
	constant bool   // of the same value in many answers
	kind     byte   // of literals
}

var responseNames = func() map[string]known {
	m := map[string]known{}
	for _, name := range []string{
		"content-type", "content-encoding", "grpc-encoding", "grpc-accept-encoding", "grpc-status", "alt-svc", "vary", "cache-control",
		"strict-transport-security", "x-content-type-options", "access-control-allow-origin", "access-control-allow-credentials",
		"access-control-expose-headers", "access-control-allow-methods", "access-control-allow-headers", "access-control-max-age",
		"content-security-policy", "x-frame-options", "referrer-policy", "server", "accept-encoding", "accept-post", "trailer",
	} {
		m[http.CanonicalHeaderKey(name)] = known{name: name, constant: true}
	}
	for _, name := range []string{
		"content-length", "date", "grpc-message", "grpc-status-details-bin", "etag", "last-modified", "location", "retry-after",
		"x-request-id", "allow", "age", "www-authenticate",
	} {
		m[http.CanonicalHeaderKey(name)] = known{name: name}
	}
	m["Set-Cookie"] = known{name: "set-cookie", kind: h2wire.LiteralNeverIndexed}
	return m
}()

// date keeps the text of the field "Date", which changes every second.
type date struct{ now atomic.Pointer[dateText] }

type dateText struct {
	second int64
	text   string
}

func (d *date) text() string {
	now := time.Now()
	t := d.now.Load()
	if t == nil || t.second != now.Unix() {
		t = &dateText{now.Unix(), now.UTC().Format(http.TimeFormat)}
		d.now.Store(t)
	}
	return t.text
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
