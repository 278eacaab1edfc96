package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/descriptors"
	"transom/rpc"
)

const (
	// maxExpression is the longest source, in code points.
	maxExpression = 4096
	// maxCost is what one evaluation may cost, in CEL's unit (about one simple operation). An expression that may cost more
	// with inputs of the assumed sizes is refused when it is compiled; one that does with larger inputs refuses the call.
	maxCost = 1_000_000
	// assumedLength and assumedCount are how long a text and how many the elements of a list or map are taken to be at
	// most, to judge the cost.
	assumedLength = 4096
	assumedCount  = 1000
)

// Compiler compiles expressions. It belongs to one goroutine.
//
// # Variables
//   - method, service: string, full names as "bank.v1.Accounts.Transfer" and "bank.v1.Accounts"
//   - consumer, provider, plan: string, "" for anonymous calls
//   - scopes, groups: list of string
//   - claims: map of string to any
//   - metadata: map of string to string, the values of one name joined by ","
//   - peer.address: string; peer.tls: bool
//   - request: the request message
//
// Functions are CEL's own and those of its strings and sets extensions.
type Compiler struct {
	base *cel.Env
	// shared are expressions that do not look at the request, by source.
	shared map[string]*Expression
	envs   map[protoreflect.FullName]*cel.Env
}

// NewCompiler makes a Compiler.
func NewCompiler() (*Compiler, error) {
	base, err := cel.NewEnv(
		cel.Variable("method", cel.StringType), cel.Variable("service", cel.StringType),
		cel.Variable("consumer", cel.StringType), cel.Variable("provider", cel.StringType), cel.Variable("plan", cel.StringType),
		cel.Variable("scopes", cel.ListType(cel.StringType)), cel.Variable("groups", cel.ListType(cel.StringType)),
		cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("metadata", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("peer.address", cel.StringType), cel.Variable("peer.tls", cel.BoolType),
		ext.Strings(), ext.Sets(),
		cel.ParserExpressionSizeLimit(maxExpression), cel.ParserRecursionLimit(64), cel.DefaultUTCTimeZone(true),
	)
	if err != nil {
		return nil, fmt.Errorf("CEL environment: %w", err)
	}
	return &Compiler{base: base, shared: map[string]*Expression{}, envs: map[protoreflect.FullName]*cel.Env{}}, nil
}

// Expression is a compiled condition.
type Expression struct {
	program cel.Program
	// input is the request's type if the expression looks at the request, else nil.
	input protoreflect.MessageDescriptor
}

// Compile compiles source for the calls of m. What is wrong with it is told by column, all of it joined; so is one that
// may cost too much.
func (c *Compiler) Compile(source string, m *descriptors.Method) (*Expression, error) {
	if e := c.shared[source]; e != nil {
		return e, nil
	}
	e, err := compile(c.base, source, nil)
	if err == nil {
		c.shared[source] = e
		return e, nil
	}
	if m.Desc == nil || !strings.Contains(source, "request") {
		return nil, err
	}
	input := m.Desc.Input()
	env := c.envs[input.FullName()]
	if env == nil {
		env, err = c.base.Extend(cel.Types(dynamicpb.NewMessage(input)), cel.Variable("request", cel.ObjectType(string(input.FullName()))))
		if err != nil {
			return nil, fmt.Errorf("CEL environment: %w", err)
		}
		c.envs[input.FullName()] = env
	}
	return compile(env, source, input)
}

func compile(env *cel.Env, source string, input protoreflect.MessageDescriptor) (*Expression, error) {
	ast, issues := env.Compile(source)
	if issues.Err() != nil {
		var errs []error
		for _, e := range issues.Errors() {
			errs = append(errs, fmt.Errorf("column %d: %s", e.Location.Column()+1, e.Message))
		}
		return nil, errors.Join(errs...)
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("the expression is of type %s, not bool", ast.OutputType())
	}
	estimate, err := env.EstimateCost(ast, sizes{})
	if err != nil {
		return nil, fmt.Errorf("the expression's cost cannot be told: %w", err)
	}
	if estimate.Max > maxCost {
		return nil, fmt.Errorf("the expression may cost too much: %d steps for lists of %d elements and texts of %d bytes, at most %d are allowed", estimate.Max, assumedCount, assumedLength, maxCost)
	}
	program, err := env.Program(ast, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, err
	}
	return &Expression{program, input}, nil
}

// sizes estimates inputs.
type sizes struct{}

var _ cost.Estimator = sizes{}

// EstimateCallCost implements cost.Estimator: CEL's own estimate holds.
func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// EstimateSize implements cost.Estimator.
func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	text := cost.RangedSizeEstimate(0, assumedLength)
	switch n.Type().Kind() {
	case types.ListKind, types.MapKind:
		e := cost.RangedSizeEstimate(0, assumedCount)
		e.Key, e.Elem = &text, &text
		return &e
	case types.StringKind, types.BytesKind, types.DynKind, types.AnyKind:
		return &text
	}
	return nil
}

// guard runs the call if the expression is true; one that looks at the request must be true for every message. A stream
// of no messages is judged as one empty message.
func (e *Expression) guard(ctx context.Context, call *rpc.Call, next rpc.Handler) error {
	if e.input == nil {
		if err := e.judge(call, nil); err != nil {
			return err
		}
		return next(ctx, call)
	}
	first, stream, err := rpc.Peek(ctx, call.Stream)
	if err != nil && err != io.EOF {
		return err
	}
	if err := e.judgeMessage(call, first); err != nil {
		first.Release()
		return err
	}
	if call.Method.ClientStreams {
		stream = &guarded{Stream: stream, e: e, call: call}
	}
	call.Stream = stream
	return next(ctx, call)
}

// guarded judges the messages after the first.
type guarded struct {
	rpc.Stream
	e    *Expression
	call *rpc.Call
	n    int
}

func (g *guarded) Recv(ctx context.Context) (rpc.Message, error) {
	m, err := g.Stream.Recv(ctx)
	if g.n++; err != nil || g.n == 1 {
		return m, err
	}
	if err := g.e.judgeMessage(g.call, m); err != nil {
		m.Release()
		return rpc.Message{}, err
	}
	return m, nil
}

func (e *Expression) judgeMessage(call *rpc.Call, m rpc.Message) error {
	request, err := rpc.Decode(e.input, m.Bytes())
	if err != nil {
		return denied(call, reasonRule, "the request cannot be read as its type, which this method's rule needs")
	}
	return e.judge(call, request)
}

func (e *Expression) judge(call *rpc.Call, request proto.Message) error {
	out, _, err := e.program.Eval(&activation{call, request})
	if err == nil && out == types.True {
		return nil
	}
	if err != nil {
		call.Info.Note("allow", err.Error())
	}
	return denied(call, reasonRule, "this method's rule does not allow the call")
}

// activation gives an expression its variables, when it asks for them.
type activation struct {
	call    *rpc.Call
	request proto.Message
}

var _ cel.Activation = (*activation)(nil)

// Parent implements cel.Activation.
func (*activation) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	var p rpc.Principal
	if a.call.Principal != nil {
		p = *a.call.Principal
	}
	switch name {
	case "method":
		return string(a.call.Method.Name), true
	case "service":
		return string(a.call.Method.Name.Parent()), true
	case "consumer":
		return p.Consumer, true
	case "provider":
		return p.Provider, true
	case "plan":
		return p.Plan, true
	case "scopes":
		return p.Scopes, true
	case "groups":
		return p.Groups, true
	case "claims":
		return p.Claims, true
	case "metadata":
		md := make(map[string]string, len(a.call.Header))
		for k, v := range a.call.Header {
			md[k] = strings.Join(v, ",")
		}
		return md, true
	case "peer.address":
		return a.call.Peer.Addr.Addr().Unmap().WithZone("").String(), true
	case "peer.tls":
		return a.call.Peer.TLS != nil, true
	case "request":
		return a.request, a.request != nil
	}
	return nil, false
}
