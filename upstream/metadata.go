package upstream

import (
	"strings"

	"google.golang.org/grpc/metadata"
)

// reserved reports whether a metadata key belongs to the protocol of one hop and so is never passed on: pseudo-headers,
// what gRPC reserves ("grpc-…", but for what travels end to end), and the hop-by-hop and framing fields of HTTP
// (RFC 9110 7.6.1, RFC 9113 8.2.2).
func reserved(key string) bool {
	if key == "" || key[0] == ':' {
		return true
	}
	if strings.HasPrefix(key, "grpc-") {
		switch key {
		case "grpc-trace-bin", "grpc-tags-bin", "grpc-retry-pushback-ms":
			return false
		}
		return true
	}
	if key[0] == 'x' { // as most are
		return false
	}
	switch key {
	case "content-type", "content-length", "connection", "host", "http2-settings", "keep-alive", "proxy-authenticate",
		"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "user-agent":
		return true
	}
	return false
}

// strip removes what must not go on. md may be nil.
func strip(md metadata.MD) {
	for k := range md {
		if reserved(k) {
			delete(md, k)
		}
	}
}

// stripResponse removes what must not go to a client and returns md, or nil if nothing is left.
func stripResponse(md metadata.MD) metadata.MD {
	strip(md)
	if len(md) == 0 {
		return nil
	}
	return md
}

// join adds b's values to a's, into one of the two maps.
func join(a, b metadata.MD) metadata.MD {
	if len(a) == 0 {
		return b
	}
	for k, vs := range b {
		a[k] = append(a[k], vs...)
	}
	return a
}
