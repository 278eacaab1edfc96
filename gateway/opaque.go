package gateway

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
)

// opaque are the routes of methods without a schema, whose policies go by their names like those of others. It is immutable.
type opaque struct {
	rest *opaqueRoute
	// named are by the full name of a method, within by that of a package or service, for all below it.
	named, within map[string]*opaqueRoute
}

// opaqueRoute is that of the methods without a schema that one selector takes in.
type opaqueRoute struct {
	listeners.Route

	eff Effective
	// chain names what a call goes through, outermost first.
	chain []string
}

// route is that of the most specific selector which takes in the method of that full name.
func (o *opaque) route(name string) *opaqueRoute {
	if r := o.named[name]; r != nil {
		return r
	}
	if len(o.within) > 0 {
		for end := strings.LastIndexByte(name, '.'); end > 0; end = strings.LastIndexByte(name[:end], '.') {
			if r := o.within[name[:end]]; r != nil {
				return r
			}
		}
	}
	return o.rest
}

// opaque compiles the routes of methods without a schema, one for each selector. What a policy asks for by the fields of messages
// cannot be had of them: for "*" that is a fault, and calls that a narrower selector takes in are refused. nil is a fault.
func (b *builder) opaque(set *policySet, edge *listeners.Edge) *opaque {
	if b.clusterOf("unknown_methods.cluster", b.cfg.GetUnknownMethods().GetCluster()) == nil {
		return nil
	}
	route := func(selector string) *opaqueRoute {
		eff, _ := set.effective(selector) // a method of the selector's own name is the same to all others
		eff.method = ""
		b.unknownTo(&eff)
		if selector != "" { // for unary methods, and of these nobody knows that they are
			eff.Policy.Cache = nil
			delete(eff.From, "cache")
		}
		inner := b.destination(eff)
		before := len(b.faults)
		handler, names := b.chain(descriptors.Opaque("/*/*"), eff, inner)
		if names = append(names, "the cluster"); selector != "" && len(b.faults) > before {
			b.faults = b.faults[:before]
			handler, names = unheld(selector), []string{"nothing: it is refused, since the policy for " + selector + " needs to know its messages"}
		}
		return &opaqueRoute{listeners.Route{
			Handler: handler, Edge: edge, Timeout: timeoutOf(eff.Policy, false), MaxMessageBytes: maxMessageOf(b.cfg, eff.Policy),
			Uncompressed: uncompressed(eff.Policy), Private: private(names),
		}, eff, names}
	}
	o := &opaque{rest: route(""), named: map[string]*opaqueRoute{}, within: map[string]*opaqueRoute{}}
	for _, r := range set.rules {
		switch {
		case r.name == "":
		case r.all && o.within[r.name] == nil:
			o.within[r.name] = route(r.text)
		case !r.all && o.named[r.name] == nil:
			o.named[r.name] = route(r.text)
		}
	}
	return o
}

// unknownTo has calls go where unknown_methods says, before what a policy for "*" says of it, and after what narrower ones say.
func (b *builder) unknownTo(eff *Effective) {
	fields := eff.Policy.ProtoReflect().Descriptor().Fields()
	for _, name := range []protoreflect.Name{"cluster", "split", "routes"} {
		if eff.From[name].Selector == "*" {
			eff.Policy.ProtoReflect().Clear(fields.ByName(name))
			delete(eff.From, name)
		}
	}
	if eff.Policy.GetCluster() == "" && eff.Policy.GetSplit() == nil {
		eff.Policy.Cluster = b.cfg.GetUnknownMethods().GetCluster()
		eff.From["cluster"] = Origin{Block: unknownBlock}
	}
}

// unheld refuses calls that a policy is for which cannot be held to them.
func unheld(selector string) rpc.Handler {
	return func(_ context.Context, call *rpc.Call) error {
		call.Info.Fail(rpc.SourceGateway)
		call.Info.Refuse("unknown_methods", selector)
		return status.Errorf(codes.Unimplemented, "no descriptor tells of %s, which the policy for %s needs", call.Method.FullPath, selector)
	}
}

// private reports whether answers depend on who calls, by the names of what is in a method's chain.
func private(chain []string) bool {
	return slices.Contains(chain, "auth") || slices.Contains(chain, "access")
}
