// Package transcoder turns bytes of client protocols into protobuf wire bytes and back: path, query and body into a
// request message, a response message into a body, a status into an error body; and it knows the small formats between
// them: gRPC frames, timeouts, metadata text. A [Plan] is compiled per method when descriptors are loaded, so that a
// call only walks tables. JSON itself is read and written by transom/transcoder/codec.
//
// Nothing here opens a socket, starts a goroutine or keeps state between calls. Functions named Append… write to the end
// of a caller's slice and return it, as append does; on error the returned slice must not be used except to keep its
// capacity.
//
// # Concurrency
// Everything exported is immutable after construction and safe for concurrent use, but for types that say otherwise.
package transcoder
