package gateway

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/rpc"
)

// unaryHandler makes a Handler of a unary service method with generated types.
func unaryHandler[Req any, PReq interface {
	*Req
	proto.Message
}, Resp proto.Message](fn func(context.Context, PReq) (Resp, error)) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		m, err := rpc.RecvOne(ctx, call.Stream)
		if err != nil {
			return err
		}
		req := PReq(new(Req))
		err = unmarshal(m, req)
		if err != nil {
			call.Info.Fail(rpc.SourceClient)
			return err
		}
		resp, err := fn(ctx, req)
		if err != nil {
			if code := status.Code(err); code == codes.NotFound || code == codes.InvalidArgument {
				call.Info.Fail(rpc.SourceClient) // it asked for what there is not
			}
			return err
		}
		b, err := proto.Marshal(resp)
		if err != nil {
			return err
		}
		return call.Stream.Send(ctx, rpc.NewMessage(b))
	}
}

func unmarshal(m rpc.Message, into proto.Message) error {
	defer m.Release()
	if err := proto.Unmarshal(m.Bytes(), into); err != nil {
		return status.Errorf(codes.InvalidArgument, "request is not a valid %s", into.ProtoReflect().Descriptor().FullName())
	}
	return nil
}

// streamHandler makes a Handler of a streaming service method with generated types.
func streamHandler(fn func(grpc.ServerStream) error) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error { return fn(&serverStream{ctx, call}) }
}

// serverStream is a grpc.ServerStream over a call.
type serverStream struct {
	ctx  context.Context //nolint:containedctx // grpc.ServerStream has it
	call *rpc.Call
}

var _ grpc.ServerStream = (*serverStream)(nil)

func (s *serverStream) SetHeader(metadata.MD) error     { return nil }
func (s *serverStream) SendHeader(md metadata.MD) error { return s.call.Stream.SendHeader(md) }
func (s *serverStream) SetTrailer(md metadata.MD)       { s.call.Stream.SetTrailer(md) }
func (s *serverStream) Context() context.Context        { return s.ctx }

func (s *serverStream) SendMsg(m any) error {
	b, err := proto.Marshal(m.(proto.Message)) //nolint:forcetypeassert // generated code sends nothing else
	if err != nil {
		return err
	}
	if err := s.call.Stream.Send(s.ctx, rpc.NewMessage(b)); err != nil {
		return err
	}
	return s.call.Stream.Flush()
}

func (s *serverStream) RecvMsg(m any) error {
	msg, err := s.call.Stream.Recv(s.ctx)
	if err != nil {
		if err == io.EOF {
			return io.EOF
		}
		return err
	}
	return unmarshal(msg, m.(proto.Message)) //nolint:forcetypeassert // generated code receives nothing else
}
