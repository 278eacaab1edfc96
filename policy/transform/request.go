package transform

import (
	"context"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

const (
	reasonNoValue   = "VALUE_MISSING"
	reasonMalformed = "REQUEST_MALFORMED"
)

// RequestConfig is what becomes of the requests of one method.
type RequestConfig struct {
	// Edits are of the metadata; nil for none.
	Edits *Edits
	// Fields are those filled in, of the method's request message.
	Fields []*Field
}

// Request changes requests. It is nil if there is nothing to do. Fields that contradict each other are an error.
//
// A call for which a forced field has no value, because the caller is not known or lacks a claim, or because what there is
// cannot be the field's, ends with PERMISSION_DENIED. A message that is no sequence of protobuf fields ends its call with
// INVALID_ARGUMENT.
func Request(cfg RequestConfig) (rpc.Middleware, error) {
	if err := checkFields(cfg.Fields); err != nil {
		return nil, err
	}
	if cfg.Edits == nil && len(cfg.Fields) == 0 {
		return nil, nil
	}
	f := filler{}
	fixed := []byte{}
	for _, field := range cfg.Fields {
		if field.byDefault {
			f.defaults = append(f.defaults, field)
			continue
		}
		f.forced = append(f.forced, field)
		if fixed != nil && field.fixed != nil {
			fixed = append(fixed, field.fixed...)
		} else {
			fixed = nil
		}
	}
	f.fixed = fixed
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			// Fields first: what they take from metadata is as it came.
			if len(cfg.Fields) > 0 {
				stream, err := f.stream(call)
				if err != nil {
					return err
				}
				call.Stream = stream
			}
			if cfg.Edits != nil {
				call.Header = cfg.Edits.apply(call.Header, call)
			}
			return next(ctx, call)
		}
	}, nil
}

// filler fills in the fields of one method's requests.
type filler struct {
	forced, defaults []*Field
	// fixed are the forced fields on the wire if they are the same for all calls; else nil.
	fixed []byte
}

// stream wraps a call's Stream, with the values that the call has.
func (f *filler) stream(call *rpc.Call) (*filled, error) {
	s := &filled{Stream: call.Stream, filler: f, call: call, forced: f.fixed}
	if f.fixed == nil {
		for _, field := range f.forced {
			b, ok := field.wire(call)
			if !ok {
				return nil, noValue(call, field.name)
			}
			s.forced = append(s.forced, b...)
		}
	}
	for _, field := range f.defaults {
		b, _ := field.wire(call)
		s.defaults = append(s.defaults, b)
	}
	return s, nil
}

// noValue refuses a call that there is no value for a forced field of.
func noValue(call *rpc.Call, field string) error {
	call.Info.Fail(rpc.SourceClient)
	call.Info.Refuse("transform", reasonNoValue)
	return withReason(codes.PermissionDenied, "what is known of the caller gives no value for the field "+field+", which the gateway fills in", reasonNoValue)
}

func withReason(code codes.Code, msg, reason string) error {
	st := status.New(code, msg)
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "transom"}); err == nil {
		st = detailed
	}
	return st.Err()
}

// filled fills in the fields of each message.
type filled struct {
	rpc.Stream
	filler *filler
	call   *rpc.Call
	// forced are the forced fields on the wire, defaults the others, each nil if there is no value.
	forced   []byte
	defaults [][]byte
}

func (s *filled) Recv(ctx context.Context) (rpc.Message, error) {
	m, err := s.Stream.Recv(ctx)
	if err != nil {
		return m, err
	}
	if m, err = s.fill(m); err != nil {
		s.call.Info.Fail(rpc.SourceClient)
		s.call.Info.Refuse("transform", reasonMalformed)
	}
	return m, err
}

// maxCopy is the largest message, in bytes, that is copied to what is appended to it, rather than linked with it.
const maxCopy = 4 << 10

// fill takes over m.
func (s *filled) fill(m rpc.Message) (rpc.Message, error) {
	bufs := m.Buffers()
	var b []byte
	if len(bufs) <= 1 {
		b = m.Bytes()
	} else { // in one piece, with room for what comes
		b = make([]byte, 0, m.Len()+s.room())
		for _, buf := range bufs {
			b = append(b, buf.ReadOnlyData()...)
		}
		m.Release()
		m = rpc.NewMessage(b)
	}
	if !ends(b) {
		m.Release()
		return rpc.Message{}, withReason(codes.InvalidArgument, "the request is not a protobuf message", reasonMalformed)
	}
	suffix := s.suffix(b)
	switch {
	case len(suffix) == 0:
		return m, nil
	case len(bufs) > 1:
		return rpc.NewMessage(append(b, suffix...)), nil
	case len(b) <= maxCopy:
		whole := append(append(make([]byte, 0, len(b)+len(suffix)), b...), suffix...)
		m.Release()
		return rpc.NewMessage(whole), nil
	}
	return rpc.MessageOf(mem.BufferSlice{bufs[0], mem.SliceBuffer(suffix)}), nil
}

// room is how much may be appended to a message.
func (s *filled) room() int {
	n := len(s.forced)
	for _, b := range s.defaults {
		n += len(b)
	}
	return n
}

// suffix is what is to be appended to the message b.
func (s *filled) suffix(b []byte) []byte {
	suffix, own := s.forced, false
	for i, field := range s.filler.defaults {
		if s.defaults[i] == nil || field.present(b) {
			continue
		}
		if !own {
			suffix, own = append(make([]byte, 0, s.room()), s.forced...), true
		}
		suffix = append(suffix, s.defaults[i]...)
	}
	return suffix
}
