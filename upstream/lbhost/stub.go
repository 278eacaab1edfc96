package lbhost

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // of answers
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"transom/upstream/h2client"
)

// maxStubMessage limits what a compressed answer to a stub may grow to; connections have a limit of their own.
const maxStubMessage = 4 << 20

// stub makes calls for generated clients, over the connections that open finds.
type stub struct {
	open opener
}

// opener finds the connection for one call of a method. Its errors carry a status.
type opener func(ctx context.Context, method string, wait bool) (Pick, error)

// Stub is the Channel for generated clients. Messages are protobuf, or what grpc.ForceCodecV2 says; of the other call
// options those count that ask for metadata, the peer, wait-for-ready or OnFinish.
func (c *Channel) Stub() grpc.ClientConnInterface { return channelStub{stub{c.Pick}, c} }

// channelStub lets those who have a stub follow the state of its Channel, as grpc.ClientConn does.
type channelStub struct {
	stub
	channel *Channel
}

func (s channelStub) GetState() connectivity.State { return s.channel.State() }

func (s channelStub) WaitForStateChange(ctx context.Context, state connectivity.State) bool {
	return s.channel.WaitForStateChange(ctx, state)
}

// options are the call options that count.
type options struct {
	codec           encoding.CodecV2
	header, trailer []*metadata.MD
	peer            []*peer.Peer
	finish          []func(error)
	wait            bool
}

func optionsOf(opts []grpc.CallOption) options {
	o := options{codec: encoding.GetCodecV2(proto.Name)}
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.ForceCodecV2CallOption:
			o.codec = opt.CodecV2
		case grpc.HeaderCallOption:
			o.header = append(o.header, opt.HeaderAddr)
		case grpc.TrailerCallOption:
			o.trailer = append(o.trailer, opt.TrailerAddr)
		case grpc.PeerCallOption:
			o.peer = append(o.peer, opt.PeerAddr)
		case grpc.OnFinishCallOption:
			o.finish = append(o.finish, opt.OnFinish)
		case grpc.FailFastCallOption:
			o.wait = !opt.FailFast
		}
	}
	return o
}

// Invoke makes a unary call.
func (s stub) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	cs, err := s.NewStream(ctx, &grpc.StreamDesc{}, method, opts...)
	if err != nil {
		return err
	}
	if err := cs.SendMsg(args); err != nil && err != io.EOF {
		return err
	}
	return cs.RecvMsg(reply)
}

// NewStream opens a call, which ends as grpc.ClientConn's do: when RecvMsg fails, or ctx ends.
func (s stub) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	o := optionsOf(opts)
	md, _ := metadata.FromOutgoingContext(ctx)
	for {
		p, err := s.open(ctx, method, o.wait)
		if err != nil {
			return nil, err
		}
		hs, err := p.Conn.NewStream(ctx, method, metadata.Join(md, p.Metadata))
		if err != nil {
			p.End(err, false, nil)
			if Unprocessed(err) && ctx.Err() == nil {
				continue // the connection went between the pick and now
			}
			return nil, status.Convert(err).Err()
		}
		cs := &clientStream{ctx: ctx, s: hs, pick: p, options: o, desc: desc}
		cs.unwatch = context.AfterFunc(ctx, cs.givenUp)
		return cs, nil
	}
}

// clientStream is a call for generated clients.
type clientStream struct {
	options
	ctx  context.Context // the call's
	s    *h2client.Stream
	desc *grpc.StreamDesc
	// pick is ended once: by whoever finds that the call has ended, or by the end of ctx, which unwatch stops looking for.
	pick    Pick
	once    sync.Once
	unwatch func() bool
	// answered says that a message has come.
	answered atomic.Bool
	// sent says that the client has half-closed, end how the call ended; ended that it has.
	sent  bool
	ended bool
	end   error
}

func (c *clientStream) Context() context.Context { return c.ctx }
func (c *clientStream) Trailer() metadata.MD     { return c.s.Trailer() }

func (c *clientStream) Header() (metadata.MD, error) {
	md, _ := c.s.Header()
	return md, nil
}

func (c *clientStream) CloseSend() error {
	if c.sent {
		return nil
	}
	c.sent = true
	return c.s.CloseSend()
}

func (c *clientStream) SendMsg(m any) error {
	data, err := c.codec.Marshal(m)
	if err != nil {
		c.s.Close()
		text := "cannot encode the message: " + err.Error()
		c.endPick(&h2client.Error{Code: codes.Internal, Message: text, Origin: h2client.OriginRequest}, c.answered.Load(), nil)
		return status.Error(codes.Internal, text)
	}
	c.sent = c.sent || !c.desc.ClientStreams
	err = c.s.Send(h2client.Message{Data: data}, c.sent)
	data.Free()
	return err
}

// RecvMsg receives a message. Of a call with one answer it returns when the call has ended.
func (c *clientStream) RecvMsg(m any) error {
	if c.ended {
		return c.end
	}
	msg, err := c.s.Recv()
	if err != nil {
		if err == io.EOF && !c.desc.ServerStreams {
			err = &h2client.Error{Code: codes.Internal, Message: "the server sent no answer", Origin: h2client.OriginProtocol}
		}
		return c.finish(err)
	}
	defer func() { msg.Free() }()
	c.answered.Store(true)
	if msg.Compressed {
		if msg.Data, err = Decompress(msg.Data, c.s.Encoding(), maxStubMessage); err != nil {
			return c.finish(err)
		}
	}
	if err := c.codec.Unmarshal(msg.Data, m); err != nil {
		return c.finish(status.Error(codes.Internal, "cannot decode the answer: "+err.Error()))
	}
	if c.desc.ServerStreams {
		return nil
	}
	more, err := c.s.Recv()
	if err == nil {
		more.Free()
		err = &h2client.Error{Code: codes.Internal, Message: "the server sent a second answer", Origin: h2client.OriginProtocol}
	}
	if err = c.finish(err); err == io.EOF {
		return nil
	}
	return err
}

// finish ends the call with err, io.EOF if it ended well.
func (c *clientStream) finish(err error) error {
	c.s.Close()
	header, answered := c.s.Header()
	trailer := c.s.Trailer()
	c.ended, c.end = true, err
	if err == io.EOF {
		err = nil
	} else {
		err = status.Convert(err).Err()
		c.end = err
	}
	c.endPick(err, answered, trailer)
	for _, md := range c.header {
		*md = header
	}
	for _, md := range c.trailer {
		*md = trailer
	}
	for _, p := range c.peer {
		p.Addr = c.pick.Conn.RemoteAddr()
	}
	for _, f := range c.options.finish {
		f(err)
	}
	return c.end
}

// endPick tells the policy how the call ended, if it has not been told.
func (c *clientStream) endPick(err error, answered bool, trailer metadata.MD) {
	c.unwatch()
	c.once.Do(func() { c.pick.End(err, answered, trailer) })
}

// givenUp ends the call for the policy with its context: its caller need not receive to its end.
func (c *clientStream) givenUp() {
	c.once.Do(func() { c.pick.End(h2client.ContextError(c.ctx), c.answered.Load(), nil) })
}

// End tells the policy how an attempt ended: err of the connection's, nil for OK, answered if response headers came, and the
// trailer, from which the load report is taken.
func (p *Pick) End(err error, answered bool, trailer metadata.MD) {
	if p.done == nil {
		p.held.calls.Add(-1)
		return
	}
	info := balancer.DoneInfo{Err: err, Trailer: trailer, BytesSent: true, BytesReceived: true, ServerLoad: ServerLoad(trailer)}
	if e, ok := err.(*h2client.Error); ok { //nolint:errorlint // it is one or was none of the connection's
		info.BytesSent = !e.Unprocessed && e.Origin != h2client.OriginRequest
		switch e.Origin {
		case h2client.OriginConn, h2client.OriginContext, h2client.OriginReset:
			info.BytesReceived = answered
		case h2client.OriginRequest:
			info.BytesReceived = false
		case h2client.OriginServer, h2client.OriginHTTP, h2client.OriginProtocol, h2client.OriginLimit:
		}
	}
	p.Done(info)
}

// Unprocessed reports whether an attempt that ended with err was surely not seen by the server.
func Unprocessed(err error) bool {
	e, ok := err.(*h2client.Error) //nolint:errorlint // it is one or was none of the connection's
	return ok && e.Unprocessed
}

// Decompress replaces data, whose reference it takes over, by what it is in the named encoding: one that is registered
// with grpc-go, as gzip is. The result is at most limit bytes long. The error is an *h2client.Error.
func Decompress(data mem.BufferSlice, name string, limit int) (mem.BufferSlice, error) {
	defer data.Free()
	fail := func(format string, args ...any) (mem.BufferSlice, error) {
		return nil, &h2client.Error{Code: codes.Internal, Origin: h2client.OriginProtocol, Message: fmt.Sprintf(format, args...)}
	}
	if name == "" || name == encoding.Identity {
		return fail("the answer is said to be compressed, without an encoding")
	}
	c := encoding.GetCompressor(name)
	if c == nil {
		return fail("the answer is in the unknown encoding %.20q", name)
	}
	r, err := c.Decompress(data.Reader())
	if err != nil {
		return fail("the answer is not what its encoding %s says", name)
	}
	out, err := mem.ReadAll(io.LimitReader(r, int64(limit)+1), mem.DefaultBufferPool())
	if err != nil {
		out.Free()
		return fail("the answer is not what its encoding %s says", name)
	}
	if out.Len() > limit {
		out.Free()
		return nil, &h2client.Error{
			Code: codes.ResourceExhausted, Origin: h2client.OriginLimit, Message: "the answer is larger than the limit when it is decompressed",
		}
	}
	return out, nil
}
