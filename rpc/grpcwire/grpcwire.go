// Package grpcwire is what both sides of gRPC over HTTP/2 have to spell in the same way: timeouts, status messages, binary
// metadata, and the codes that HTTP and HTTP/2 errors stand for. Pure functions, no input or output.
package grpcwire

import "google.golang.org/grpc/codes"

// CodeOfHTTP is the gRPC code of an HTTP answer that carries no gRPC status (gRPC over HTTP/2, "HTTP to gRPC Status Code
// Mapping").
func CodeOfHTTP(httpStatus int) codes.Code {
	switch httpStatus {
	case 400:
		return codes.Internal
	case 401:
		return codes.Unauthenticated
	case 403:
		return codes.PermissionDenied
	case 404:
		return codes.Unimplemented
	case 429, 502, 503, 504:
		return codes.Unavailable
	}
	return codes.Unknown
}

// CodeOfReset is the gRPC code of a stream that the server ended with RST_STREAM and this HTTP/2 error code (gRPC over
// HTTP/2, "HTTP2 Transport Mapping", "Errors").
func CodeOfReset(http2Error uint32) codes.Code {
	switch http2Error {
	case 0x7: // REFUSED_STREAM
		return codes.Unavailable
	case 0x8: // CANCEL
		return codes.Canceled
	case 0xb: // ENHANCE_YOUR_CALM
		return codes.ResourceExhausted
	case 0xc: // INADEQUATE_SECURITY
		return codes.PermissionDenied
	}
	return codes.Internal
}
