package rpc

import (
	"errors"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

var errDecode = errors.New("not a message of the type")

// Decode reads wire bytes, of which nothing need be true, as a message of type md.
//
// It is the one place where the bytes of clients and backends are decoded to messages without a Go type: with these
// protobuf 1.36.12 panics over a map entry whose key comes a second time with another wire type.
func Decode(md protoreflect.MessageDescriptor, b []byte) (msg *dynamicpb.Message, err error) {
	defer func() {
		if recover() != nil {
			msg, err = nil, errDecode
		}
	}()
	msg = dynamicpb.NewMessage(md)
	if err := proto.Unmarshal(b, msg); err != nil {
		return nil, errDecode
	}
	return msg, nil
}
