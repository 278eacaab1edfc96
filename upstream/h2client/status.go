package h2client

import (
	"errors"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

var errNoALPN = errors.New("the server did not choose HTTP/2 by ALPN")

// Origin says who ended a call.
type Origin uint8

// The origins of an Error.
const (
	OriginServer   Origin = iota // a grpc-status
	OriginHTTP                   // an HTTP status without a grpc-status
	OriginReset                  // RST_STREAM
	OriginConn                   // the connection was lost, closed, drained or never there
	OriginProtocol               // the server's bytes are not gRPC
	OriginLimit                  // the message or metadata is larger than this side takes
	OriginRequest                // what was to be sent cannot be: its metadata is invalid or too large for the server
	OriginContext                // the call's context has ended
)

// Error is a call's end other than OK.
type Error struct {
	Code    codes.Code // 0…16
	Message string
	// Details is the google.rpc.Status in wire form that came with a grpc-status, nil if none did.
	Details []byte
	Origin  Origin
	// HTTP is the HTTP status for OriginHTTP, Reset the HTTP/2 error code for OriginReset.
	HTTP  int
	Reset uint32
	// Unprocessed tells that the server surely has not seen the call, so that it may be made again elsewhere whatever its
	// method: REFUSED_STREAM, a GOAWAY that leaves the call out, a connection that took no call any more.
	Unprocessed bool
	// Cause is for the log and may name addresses; nil if Message says all.
	Cause error
}

func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Message
	}
	return e.Message + ": " + e.Cause.Error()
}

func (e *Error) Unwrap() error { return e.Cause }

// GRPCStatus is the status with its details. Message has no text that only an operator should see.
func (e *Error) GRPCStatus() *status.Status {
	if len(e.Details) > 0 {
		var p spb.Status
		if proto.Unmarshal(e.Details, &p) == nil && p.GetCode() == int32(e.Code) {
			return status.FromProto(&p)
		}
	}
	return status.New(e.Code, e.Message)
}
