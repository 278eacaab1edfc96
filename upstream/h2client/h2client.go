// Package h2client is the client side of gRPC over HTTP/2: one [Conn] is one connection to one server, on which calls
// are made. It neither resolves names, balances, retries nor connects again; package lbhost does. Messages are the bytes
// on the wire, compressed or not, and travel untouched.
//
// # Calls
// [Conn.Unary] makes a call of one message each way on the caller's goroutine. [Conn.NewStream] opens a call of any kind,
// which must be received from until it ends, or be closed, unless its context ends. How a call failed is an [*Error] always.
//
// # The life of a connection
// [New] returns once the server's SETTINGS are here. After a GOAWAY, or [Conn.Drain], the connection is draining: it takes no new
// calls (they fail with [Error].Unprocessed, at no cost) and closes with the last of its calls. [Conn.Done] is closed
// when it is gone and nothing it started runs any more.
//
// # Buffers
// A received message lies in one pooled buffer, handed over with one reference: Free it when done. A message that is sent
// is borrowed until the method returns.
//
// # Concurrency
// All methods of Conn may be called by many goroutines. Of a [Stream], one goroutine may call Send and CloseSend while
// another calls Header, Recv and Trailer; Close may be called by any.
package h2client

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

// Config is how a connection behaves. The zero value is usable but for Authority.
type Config struct {
	// Authority is the ":authority" of all calls: "bank.internal:50051".
	Authority string
	// Handshake secures a fresh connection: ClientTLS, or the ClientHandshake of a grpc TransportCredentials, which has
	// to see to ALPN. It must do all its input and output through raw, and what it returns must write to raw only in
	// Write. Nil is plaintext, with ":scheme" "http" instead of "https".
	Handshake func(ctx context.Context, raw net.Conn) (net.Conn, error)
	// UserAgent is "transom" if empty.
	UserAgent string
	// AcceptEncoding is the "grpc-accept-encoding" of all calls, "gzip"; none if empty.
	AcceptEncoding string
	// MaxMessageBytes limits each received message; 0 is 4 MiB. A larger one ends its call with ResourceExhausted before
	// memory is taken for it.
	MaxMessageBytes int
	// MaxHeaderListBytes limits response metadata as RFC 9113 6.5.2 counts; 0 is 64 KiB.
	MaxHeaderListBytes int
	// StreamWindow is what a stream may hold that has not been received, besides one message; 0 is 512 KiB. At least 64 KiB.
	// It grows, up to eight times, while the server could send more and all that comes is received at once. It is 16 KiB
	// while all streams together hold more than half of ConnWindow, until they hold less than an eighth.
	StreamWindow int
	// ConnWindow is what may be on its way to all streams, given back as data arrive, and the most by which the windows of
	// all streams may have grown together; 0 is 16 MiB. At least 64 KiB.
	ConnWindow int
	// KeepaliveTime is the silence after which a PING asks whether the server is still there, KeepaliveTimeout the time
	// it has for an answer. 0 is never, and 20 s. Without KeepaliveIdle only connections with calls are asked.
	KeepaliveTime, KeepaliveTimeout time.Duration
	KeepaliveIdle                   bool
}

// Message is one message as it is on the wire.
type Message struct {
	// Data is nil for an empty message.
	Data mem.BufferSlice
	// Compressed is the flag of the message's frame: Data is in the encoding that the metadata "grpc-encoding" names.
	Compressed bool
}

// Free gives back the reference to Data.
func (m *Message) Free() {
	m.Data.Free()
	m.Data = nil
}

// Reply is what a server sent to a unary call. Metadata is without the fields of the protocol itself (content-type,
// grpc-status, …) and nil where there is none; keys are lower case, values of "-bin" keys decoded. The caller owns all.
type Reply struct {
	// Message holds one reference if the call succeeded, and is empty if it did not.
	Message Message
	// Encoding is the response's "grpc-encoding".
	Encoding        string
	Header, Trailer metadata.MD
	// Answered tells that response headers came: not in a trailers-only answer, whose metadata is in Trailer.
	Answered bool
}

// State is where in its life a connection is.
type State uint8

// The states of a connection, in their order.
const (
	Ready    State = iota
	Draining       // takes no new calls
	Closed
)

func (s State) String() string { return [...]string{"ready", "draining", "closed"}[s] }

// ClientTLS is a Handshake for Config that speaks TLS and insists on ALPN "h2" (RFC 9113 3.2). serverName, if not empty,
// is used when cfg names none.
func ClientTLS(cfg *tls.Config, serverName string) func(context.Context, net.Conn) (net.Conn, error) {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	if cfg.ServerName == "" {
		cfg.ServerName = serverName
	}
	return func(ctx context.Context, raw net.Conn) (net.Conn, error) {
		c := tls.Client(raw, cfg)
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		if c.ConnectionState().NegotiatedProtocol != "h2" {
			return nil, errNoALPN
		}
		return c, nil
	}
}
