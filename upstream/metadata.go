package upstream

import (
	"google.golang.org/grpc/metadata"

	"transom/upstream/h2client"
)

// Keys that package h2client lets through, but not from clients: how often a call was attempted before (gRFC A6), and how its messages
// are compressed.
const (
	previousAttempts = "grpc-previous-rpc-attempts"
	encodingKey      = "grpc-encoding"
)

// reserved reports whether a metadata key belongs to the protocol of one hop and so is never passed on: pseudo-headers,
// what gRPC reserves ("grpc-…", but for what travels end to end), and the hop-by-hop and framing fields of HTTP
// (RFC 9110 7.6.1, RFC 9113 8.2.2).
func reserved(key string) bool {
	return h2client.Ours(key) || key == previousAttempts || key == encodingKey
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
