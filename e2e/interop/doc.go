// Package interop runs gRPC's own interoperability client through transom to gRPC's own server. It is a module of its own,
// so that what these programs need stays out of transom's.
package interop
