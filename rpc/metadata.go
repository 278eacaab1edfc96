package rpc

import (
	"sync"

	"google.golang.org/grpc/metadata"
)

// spare are empty maps of metadata that was written.
var spare sync.Pool // of metadata.MD

// maxSpare is the number of keys above which a map is left to the collector. A map of Go with up to 8 is one piece.
const maxSpare = 8

// NewMetadata returns an empty map for the metadata of one response: a new one, or one that was given back. A Stream to
// which it is handed takes it over.
func NewMetadata() metadata.MD {
	if md, ok := spare.Get().(metadata.MD); ok {
		return md
	}
	return metadata.MD{}
}

// FreeMetadata empties md, of whatever origin, so that NewMetadata may return it: nobody may use it afterwards. A Stream does
// so with what it took over and has written. The slices and strings in it are left alone. nil does nothing.
func FreeMetadata(md metadata.MD) {
	if md != nil && len(md) <= maxSpare {
		clear(md)
		spare.Put(md)
	}
}

// MetadataText is s as a text value of metadata: bytes outside 0x20 to 0x7E, which metadata cannot carry, are
// percent-encoded, and "%" too.
func MetadataText(s string) string { return percentEncoded(s, '%', true) }

// ListText is list joined by sep, which is ASCII. Within each of it sep and "%" are percent-encoded, so that whoever splits the text
// and then decodes the parts has the list again; in a text for metadata, bytes outside 0x20 to 0x7E are too.
func ListText(list []string, sep byte, metadata bool) string {
	if len(list) == 1 {
		return percentEncoded(list[0], sep, metadata)
	}
	var b []byte
	for i, s := range list {
		if i > 0 {
			b = append(b, sep)
		}
		b = append(b, percentEncoded(s, sep, metadata)...)
	}
	return string(b)
}

// percentEncoded is s with "%" and sep percent-encoded, and bytes that metadata cannot carry if it is for that.
func percentEncoded(s string, sep byte, metadata bool) string {
	const hex = "0123456789ABCDEF"
	plain := func(c byte) bool { return c != '%' && c != sep && (!metadata || c >= 0x20 && c <= 0x7E) }
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	b := append(make([]byte, 0, len(s)+8), s[:i]...)
	for ; i < len(s); i++ {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}
