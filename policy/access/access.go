// Package access decides whether a caller may make a call: by the scopes, groups and name of its Principal, by its address,
// and by a CEL expression over the call and its messages. It decides on the method's descriptor and on verified identity,
// never on a path.
//
// A call that is refused ends with PERMISSION_DENIED and a google.rpc.ErrorInfo of domain "transom", which tells what kind
// of rule it was and not the rule. Whatever cannot be decided is refused.
//
// # Concurrency
// Everything is immutable once made.
package access

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// Config is what callers of a method must be; all of it must hold. The zero value lets everyone through.
type Config struct {
	// Scopes the caller must all have.
	Scopes []string
	// Groups are lists, of each of which the caller must have one.
	Groups [][]string
	// Consumers are the callers let through.
	Consumers []string
	// AllowIPs are where calls may come from, everywhere if it is empty; DenyIPs where they may not come from all the same.
	AllowIPs, DenyIPs []netip.Prefix
	// Allow must all be true.
	Allow []*Expression
}

// The reasons of refusals, as in google.rpc.ErrorInfo.
const (
	reasonAddress  = "ADDRESS_DENIED"
	reasonConsumer = "CONSUMER_DENIED"
	reasonScope    = "SCOPE_MISSING"
	reasonGroup    = "GROUP_MISSING"
	reasonRule     = "RULE_DENIED"
	reasonDefault  = "NOT_ALLOWED"
)

// New makes the middleware; nil if cfg asks for nothing.
func New(cfg Config) rpc.Middleware {
	if len(cfg.Scopes)+len(cfg.Groups)+len(cfg.Consumers)+len(cfg.AllowIPs)+len(cfg.DenyIPs)+len(cfg.Allow) == 0 {
		return nil
	}
	return func(next rpc.Handler) rpc.Handler {
		for _, e := range slices.Backward(cfg.Allow) {
			inner := next
			next = func(ctx context.Context, call *rpc.Call) error { return e.guard(ctx, call, inner) }
		}
		return func(ctx context.Context, call *rpc.Call) error {
			if err := cfg.judge(call); err != nil {
				return err
			}
			return next(ctx, call)
		}
	}
}

// Deny refuses every call.
func Deny(_ context.Context, call *rpc.Call) error {
	return denied(call, reasonDefault, "no policy allows calls of this method")
}

// judge checks all but Allow.
func (c *Config) judge(call *rpc.Call) error {
	if len(c.AllowIPs)+len(c.DenyIPs) > 0 {
		a := call.Peer.Addr.Addr().Unmap().WithZone("")
		in := func(list []netip.Prefix) bool {
			return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		if !a.IsValid() || len(c.AllowIPs) > 0 && !in(c.AllowIPs) || in(c.DenyIPs) {
			return denied(call, reasonAddress, "calls from this address are not allowed")
		}
	}
	if len(c.Scopes)+len(c.Groups)+len(c.Consumers) == 0 {
		return nil
	}
	var p rpc.Principal
	if call.Principal != nil {
		p = *call.Principal
	}
	if len(c.Consumers) > 0 && !slices.Contains(c.Consumers, p.Consumer) {
		return denied(call, reasonConsumer, "the caller is not allowed to call this method")
	}
	for _, s := range c.Scopes {
		if !slices.Contains(p.Scopes, s) {
			err := denied(call, reasonScope, "the credential lacks a scope that this method needs")
			if !p.Bearer { // the others have no way to ask for more
				return err
			}
			// RFC 6750 section 3.1 has the scopes told.
			return rpc.WithHeader(err, metadata.MD{"www-authenticate": {
				`Bearer realm="transom", error="insufficient_scope", scope="` + strings.Join(c.Scopes, " ") + `"`,
			}})
		}
	}
	for _, list := range c.Groups {
		if !slices.ContainsFunc(list, func(g string) bool { return slices.Contains(p.Groups, g) }) {
			return denied(call, reasonGroup, "the caller is in no group that may call this method")
		}
	}
	return nil
}

// denied ends the call with PERMISSION_DENIED.
func denied(call *rpc.Call, reason, msg string) error {
	call.Info.Fail(rpc.SourceClient)
	call.Info.Refuse("access", reason)
	st := status.New(codes.PermissionDenied, msg)
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "transom"}); err == nil {
		st = detailed
	}
	return st.Err()
}

// ParseNetwork reads "192.0.2.7", "192.0.2.0/24" or "2001:db8::/32". An IPv4 address written as IPv6 is IPv4. Bits beyond
// the prefix must be zero.
func ParseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not an address or network like 192.0.2.7 or 192.0.2.0/24", s)
	case p.Masked() != p:
		return netip.Prefix{}, fmt.Errorf("network %s has bits beyond its prefix, write %s", s, p.Masked())
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("network %s is IPv4 written as IPv6, write it as IPv4", s)
	}
	return p, nil
}
