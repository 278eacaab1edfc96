package gateway

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
)

// opaque are the routes of methods without a schema, whose policies go by their names like those of others. It is immutable.
type opaque struct {
	rest listeners.Route
	// named are by the full name of a method, within by that of a package or service, for all below it.
	named, within map[string]*listeners.Route
}

// route is that of the most specific selector which takes in the method of that full name.
func (o *opaque) route(name string) *listeners.Route {
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
	return &o.rest
}

// opaque compiles the routes of methods without a schema, one for each selector. What a policy asks for by the fields of messages
// cannot be had of them: for "*" that is a fault, and calls that a narrower selector takes in are refused.
func (b *builder) opaque(set *policySet, edge *listeners.Edge, inner rpc.Handler) *opaque {
	route := func(selector string) *listeners.Route {
		eff, _ := set.effective(selector) // a method of the selector's own name is the same to all others
		eff.method = ""
		if selector != "" {
			eff.Policy.Cache = nil // for unary methods, and of these nobody knows that they are
		}
		before := len(b.faults)
		handler, names := b.chain(descriptors.Opaque("/*/*"), eff, inner)
		if selector != "" && len(b.faults) > before {
			b.faults = b.faults[:before]
			handler = unheld(selector)
		}
		return &listeners.Route{
			Handler: handler, Edge: edge, Timeout: timeoutOf(eff.Policy, false), MaxMessageBytes: maxMessageOf(b.cfg, eff.Policy),
			Uncompressed: uncompressed(eff.Policy), Private: private(names),
		}
	}
	o := &opaque{rest: *route(""), named: map[string]*listeners.Route{}, within: map[string]*listeners.Route{}}
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
