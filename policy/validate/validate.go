// Package validate enforces the rules that descriptors carry (buf.validate, protovalidate.com): on the one message of a
// call, and on every message of a stream.
//
// A message that breaks rules ends its call with INVALID_ARGUMENT, a google.rpc.BadRequest that names each field by its
// path ("amount.currency", "names[3]", "labels[\"a\"]") with what is wrong with it, and a google.rpc.ErrorInfo of domain
// "transom" and reason REQUEST_INVALID. The backend never sees it; of a stream it has seen the messages before.
//
// # Concurrency
// A Compiler belongs to one goroutine; what it makes is safe for concurrent use.
package validate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	validatepb "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/descriptors"
	"transom/rpc"
)

const (
	reasonInvalid = "REQUEST_INVALID"
	// maxViolations is how many broken rules one refusal tells of.
	maxViolations = 50
)

// Compiler compiles the rules of message types, each type once.
type Compiler struct {
	types    *dynamicpb.Types
	compiled map[protoreflect.FullName]protovalidate.Validator
}

// NewCompiler makes a Compiler for methods of a schema, whose types are asked for the predefined rules that it defines itself: extensions
// of buf.validate's.
func NewCompiler(types *dynamicpb.Types) *Compiler {
	return &Compiler{types: types, compiled: map[protoreflect.FullName]protovalidate.Validator{}}
}

// Middleware enforces the rules of m's request message. It is nil if there are none, in the message itself or in any that
// it can hold. Rules that do not compile are an error, as is a method without a schema.
func (c *Compiler) Middleware(m *descriptors.Method) (rpc.Middleware, error) {
	if m.Desc == nil {
		return nil, errors.New("a method without a schema has no rules to enforce")
	}
	input := m.Desc.Input()
	types := within(input, map[protoreflect.FullName]bool{})
	if !slices.ContainsFunc(types, hasRules) {
		return nil, nil
	}
	v := c.compiled[input.FullName()]
	if v == nil {
		var err error
		if v, err = protovalidate.New(protovalidate.WithMessageDescriptors(types...), protovalidate.WithDisableLazy(), protovalidate.WithExtensionTypeResolver(c.types)); err != nil {
			return nil, fmt.Errorf("rules of %s: %w", input.FullName(), err)
		}
		// A rule that does not compile shows when its message is first looked at, and none within an empty one is.
		for _, md := range types {
			err := v.Validate(dynamicpb.NewMessage(md))
			if _, broken := errors.AsType[*protovalidate.CompilationError](err); broken {
				return nil, fmt.Errorf("rules of %s: %w", md.FullName(), err)
			}
		}
		c.compiled[input.FullName()] = v
	}
	r := &rules{input: input, validator: v}
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error { return r.run(ctx, call, next) }
	}, nil
}

// within are the types of the messages that one of type md can hold, those within others before them, and md at last; without those
// that were seen.
func within(md protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) (types []protoreflect.MessageDescriptor) {
	if seen[md.FullName()] {
		return nil
	}
	seen[md.FullName()] = true
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if fd.IsMap() {
			fd = fd.MapValue()
		}
		if inner := fd.Message(); inner != nil {
			types = append(types, within(inner, seen)...)
		}
	}
	return append(types, md)
}

// hasRules reports whether md itself carries rules. Options that were not understood count as rules.
func hasRules(md protoreflect.MessageDescriptor) bool {
	if marked(md.Options(), validatepb.E_Message) {
		return true
	}
	for i := range md.Oneofs().Len() {
		if marked(md.Oneofs().Get(i).Options(), validatepb.E_Oneof) {
			return true
		}
	}
	for i := range md.Fields().Len() {
		if marked(md.Fields().Get(i).Options(), validatepb.E_Field) {
			return true
		}
	}
	return false
}

func marked(options proto.Message, ext protoreflect.ExtensionType) bool {
	return options != nil && options.ProtoReflect().IsValid() &&
		(proto.HasExtension(options, ext) || len(options.ProtoReflect().GetUnknown()) > 0)
}

// rules are those of one message type.
type rules struct {
	input     protoreflect.MessageDescriptor
	validator protovalidate.Validator
}

// run checks the only message before next runs, so that the backend hears nothing of a bad one; messages of a stream as
// they come, since the server may be the first to speak.
func (r *rules) run(ctx context.Context, call *rpc.Call, next rpc.Handler) error {
	if call.Method.ClientStreams {
		call.Stream = &checked{call.Stream, r, call}
		return next(ctx, call)
	}
	first, stream, err := rpc.Peek(ctx, call.Stream)
	if err == nil {
		err = r.check(call, first)
	}
	if err != nil && err != io.EOF {
		first.Release()
		return err
	}
	call.Stream = stream
	return next(ctx, call)
}

// checked checks each message.
type checked struct {
	rpc.Stream
	rules *rules
	call  *rpc.Call
}

func (c *checked) Recv(ctx context.Context) (rpc.Message, error) {
	m, err := c.Stream.Recv(ctx)
	if err != nil {
		return m, err
	}
	if err := c.rules.check(c.call, m); err != nil {
		m.Release()
		return rpc.Message{}, err
	}
	return m, nil
}

// check returns the status of a message that breaks rules.
func (r *rules) check(call *rpc.Call, m rpc.Message) error {
	msg, err := rpc.Decode(r.input, m.Bytes())
	if err != nil {
		call.Info.Fail(rpc.SourceClient)
		return status.Errorf(codes.InvalidArgument, "the request cannot be read as a %s", r.input.FullName())
	}
	if err = r.validator.Validate(msg); err == nil {
		return nil
	}
	broken, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok { // a CEL rule that failed as it ran: nobody can say that the message is good
		call.Info.Fail(rpc.SourceGateway)
		return fmt.Errorf("rules of %s: %w", r.input.FullName(), err)
	}
	call.Info.Fail(rpc.SourceClient)
	call.Info.Refuse("validate", reasonInvalid)
	return refusal(broken)
}

// refusal tells the client what is wrong, field by field.
func refusal(broken *protovalidate.ValidationError) error {
	var bad errdetails.BadRequest
	for _, v := range broken.Violations[:min(len(broken.Violations), maxViolations)] {
		text := v.Proto.GetMessage()
		if text == "" {
			text = "must keep the rule " + v.Proto.GetRuleId()
		}
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: protovalidate.FieldPathString(v.Proto.GetField()), Description: text, Reason: reasonOf(v.Proto.GetRuleId()),
		})
	}
	first := bad.FieldViolations[0]
	msg := first.Description
	if first.Field != "" {
		msg = first.Field + ": " + msg
	}
	if more := len(broken.Violations) - 1; more > 0 {
		msg += fmt.Sprintf(" (and %d more)", more)
	}
	st := status.New(codes.InvalidArgument, msg)
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reasonInvalid, Domain: "transom"}, &bad); err == nil {
		st = detailed
	}
	return st.Err()
}

// reasonOf makes a rule's id, "string.max_len", the reason of a violation, "STRING_MAX_LEN" (google/rpc/error_details.proto
// wants [A-Z][A-Z0-9_]+[A-Z0-9] of at most 63 bytes); "" if it can't be one.
func reasonOf(id string) string {
	b := []byte(strings.ToUpper(id))
	for i, c := range b {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			b[i] = '_'
		}
	}
	s := strings.Trim(string(b), "_")
	if len(s) < 3 || len(s) > 63 || s[0] < 'A' {
		return ""
	}
	return s
}
