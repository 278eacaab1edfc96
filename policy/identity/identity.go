// Package identity tells who calls. A [Provider] checks one kind of credential: API keys, signed tokens (JWT) and others. A
// [Directory] joins providers with the consumers that are known by name, and makes the middleware that sets a call's
// Principal or refuses the call.
//
// # What is refused, and how
// A call without a credential, or with one that is no good, ends with UNAUTHENTICATED, a google.rpc.ErrorInfo of domain
// "transom" and a challenge in "www-authenticate" for each provider that would do. What the credential was is never said.
// If a provider cannot tell, because what it must ask does not answer, the call ends with UNAVAILABLE and a reason of its own: it
// fails closed.
//
// Streams are ended when their credential is: with CREDENTIALS_EXPIRED by its time, with CREDENTIALS_REVOKED when a configuration
// comes into force that does not have it any more, see [Streams].
//
// # What backends see
// The credential is taken out of the call's metadata, unless the provider is to leave it in, as are those that further providers
// would have looked for, which nobody has checked. The caller's name comes in as "x-transom-consumer", with "x-transom-provider", "-plan", "-scopes" (split by spaces) and "-groups" (split by
// commas) where there are any. Bytes outside 0x20 to 0x7E and "%" are percent-encoded in them, as are a scope's own spaces and a
// group's own commas. Listeners drop every name
// like these from what clients send.
//
// # Concurrency
// Everything is safe for concurrent use. A provider that fetches keys does so in goroutines of its own, which Close ends.
package identity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/rpc"
)

// Provider checks one kind of credential.
type Provider interface {
	// identify looks for the provider's credential in the call. It returns errNone if there is none, errForeign if there is
	// one that another provider might know, a *refusal if it is no good, and any other error if it cannot be judged.
	identify(ctx context.Context, call *rpc.Call) (*caller, error)
	// place is where the provider looks for its credential.
	place() place
	// challenge is the value of www-authenticate for a call without a good credential; code is the error code of RFC 6750
	// section 3.1, or "" if there was no credential. "" if there is no challenge to make.
	challenge(code string) string
	// knows reports whether who, that a provider of this name has identified under this or an earlier configuration, still is
	// whom it says: what vouches for it is there.
	knows(who *caller) bool
}

// place is where in a call's metadata a credential is; the zero value is none.
type place struct {
	// header is the metadata name.
	header string
	// scheme, in lower case, begins the values of authorization that are such a credential; empty for all values of header.
	scheme string
	// all says that the provider looks at everything, and takes out itself what is to go.
	all bool
}

// strip takes the credential out of the call's metadata.
func (p *place) strip(call *rpc.Call) {
	if p.scheme == "" || slices.ContainsFunc(call.Header[p.header], func(v string) bool { return isOf(p.scheme, v) }) {
		delete(call.Header, p.header)
	}
}

var (
	errNone    = errors.New("no credential")
	errForeign = errors.New("a credential of another issuer")
)

// refusal is a credential that is no good.
type refusal struct {
	// reason is that of the google.rpc.ErrorInfo.
	reason string
	msg    string
}

func (r *refusal) Error() string { return r.msg }

// The reasons of refusals.
const (
	reasonMissing = "CREDENTIALS_MISSING"
	reasonInvalid = "CREDENTIALS_INVALID"
	reasonExpired = "CREDENTIALS_EXPIRED"
	reasonUnknown = "CREDENTIALS_UNKNOWN"
	reasonRevoked = "CREDENTIALS_REVOKED"
)

func invalid(msg string) *refusal { return &refusal{reasonInvalid, msg} }

// caller is what a provider found out. It is shared by the calls of one credential and immutable but for linked. What each call
// looks at is at the beginning, and so in few lines of the processor's cache.
type caller struct {
	// identity is "provider:subject".
	identity string
	// linked is the caller joined with the consumer of one Directory.
	linked atomic.Pointer[linked]
	// refused is why a credential that is remembered is no good; then there is nothing else.
	refused *refusal
	// answer is metadata that the client gets, extra are claims that backends get as metadata.
	answer metadata.MD
	extra  []field
	// voucher is what in the configuration vouches for the caller: the hash of its key or password, or the kind of the provider
	// with the issuer, URL or cluster that it goes by.
	voucher string
	rpc.Principal
}

// field is one metadata entry, shared and never changed.
type field struct {
	key   string
	value [1]string
}

// linked is a caller as one Directory knows it.
type linked struct {
	by        *Directory
	header    []field
	principal rpc.Principal
}

// Consumer is a caller that is known by name.
type Consumer struct {
	Name string
	// KeyHashes are the SHA-256 of its API keys.
	KeyHashes [][32]byte
	// PasswordHash is a bcrypt hash for HTTP basic authentication; empty if it has no password.
	PasswordHash string
	// Identities are what providers call it, "provider:subject".
	Identities []string
	Groups     []string
	Scopes     []string
	Plan       string
	Claims     map[string]any
}

// Entry is a provider as a Directory has it.
type Entry struct {
	Provider Provider
	// Forward leaves the credential in the call that it admits.
	Forward bool
}

// Directory knows providers and consumers by name. It is immutable.
type Directory struct {
	providers map[string]Entry
	// identities are the consumers by "provider:subject".
	identities map[string]*Consumer
	streams    *Streams
}

// NewDirectory joins providers, by name, with the consumers that are known. streams has the streams that it admits. An identity
// that two consumers claim is an error.
func NewDirectory(providers map[string]Entry, known []*Consumer, streams *Streams) (*Directory, error) {
	d := &Directory{providers: providers, identities: map[string]*Consumer{}, streams: streams}
	var errs []error
	for _, c := range known {
		for _, id := range c.Identities {
			if other := d.identities[id]; other != nil {
				errs = append(errs, fmt.Errorf("identity %q is claimed by consumer %s and by %s", id, other.Name, c.Name))
			}
			d.identities[id] = c
			if name, _, _ := strings.Cut(id, ":"); providers[name].Provider == nil {
				errs = append(errs, fmt.Errorf("identity %q of consumer %s: there is no provider %q", id, c.Name, name))
			}
		}
	}
	return d, errors.Join(errs...)
}

// link joins a caller with what the Directory knows of it.
func (d *Directory) link(c *caller) *linked {
	if l := c.linked.Load(); l != nil && l.by == d {
		return l
	}
	p := c.Principal
	if e, ok := d.providers[p.Provider]; ok {
		p.Bearer = e.Provider.place() == bearer()
	}
	if known := d.identities[c.identity]; known != nil {
		p.Consumer = known.Name
		p.Groups = union(p.Groups, known.Groups)
		p.Scopes = union(p.Scopes, known.Scopes)
		if known.Plan != "" {
			p.Plan = known.Plan
		}
		if len(known.Claims) > 0 {
			claims := maps.Clone(known.Claims)
			maps.Copy(claims, p.Claims)
			p.Claims = claims
		}
	}
	l := &linked{by: d, principal: p, header: together(append(headerOf(&p), c.extra...))}
	c.linked.Store(l)
	return l
}

// union is a with what only b has.
func union(a, b []string) []string {
	a = slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// headerOf is the metadata that tells backends who calls.
func headerOf(p *rpc.Principal) []field {
	h := []field{{"x-transom-consumer", [1]string{rpc.MetadataText(p.Consumer)}}, {"x-transom-provider", [1]string{rpc.MetadataText(p.Provider)}}}
	for _, f := range []struct{ key, value string }{
		{"x-transom-plan", rpc.MetadataText(p.Plan)}, {"x-transom-scopes", rpc.ListText(p.Scopes, ' ', true)}, {"x-transom-groups", rpc.ListText(p.Groups, ',', true)},
	} {
		if f.value != "" {
			h = append(h, field{f.key, [1]string{f.value}})
		}
	}
	return h
}

// together is h in one piece of memory, and all of its text in another: calls take it from there one after the other, mostly when
// the processor's caches have forgotten it.
func together(h []field) []field {
	var b strings.Builder
	for _, f := range h {
		b.WriteString(f.key)
		b.WriteString(f.value[0])
	}
	text := b.String()
	all := make([]field, len(h))
	for i, f := range h {
		all[i].key, text = text[:len(f.key)], text[len(f.key):]
		all[i].value[0], text = text[:len(f.value[0])], text[len(f.value[0]):]
	}
	return all
}

// Requirement says who must show who they are.
type Requirement struct {
	// Providers are names of the Directory's, in order: the first that finds its kind of credential decides.
	Providers []string
	// Anonymous lets calls without a credential through as well.
	Anonymous bool
}

// Middleware enforces a Requirement. It is nil if that asks for nothing. A provider that the Directory does not have is an
// error.
func (d *Directory) Middleware(req Requirement) (rpc.Middleware, error) {
	if len(req.Providers) == 0 {
		return nil, nil
	}
	c := &check{dir: d, anonymous: req.Anonymous}
	for _, name := range req.Providers {
		e, ok := d.providers[name]
		if !ok {
			return nil, fmt.Errorf("there is no provider %q, only %q", name, slices.Sorted(maps.Keys(d.providers)))
		}
		c.entries = append(c.entries, e)
	}
	for i := range c.entries {
		c.strips = append(c.strips, c.stripsOf(&c.entries[i]))
	}
	return c.wrap, nil
}

// check is the compiled Requirement.
type check struct {
	dir     *Directory
	entries []Entry
	// strips are, for each of the entries, where credentials are that are taken out of a call that it admits.
	strips    [][]place
	anonymous bool
}

// wrap is the rpc.Middleware. Little of it is on the stack while next runs.
func (c *check) wrap(next rpc.Handler) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		who, err := c.identify(ctx, call)
		if err != nil {
			return err
		}
		if who == nil || call.Method.Unary() && len(who.answer) == 0 {
			return next(ctx, call)
		}
		return c.hold(ctx, call, who, next)
	}
}

// identify finds out who calls, and says so in the call. It returns nil if the call may go on without.
func (c *check) identify(ctx context.Context, call *rpc.Call) (*caller, error) {
	var foreign Provider
	for i := range c.entries {
		who, err := c.entries[i].Provider.identify(ctx, call)
		switch err {
		case nil:
			for j := range c.strips[i] {
				c.strips[i][j].strip(call)
			}
			c.name(call, who)
			return who, nil
		case errNone:
			continue
		case errForeign:
			foreign = c.entries[i].Provider
			continue
		}
		return nil, c.fail(call, c.entries[i].Provider, err)
	}
	switch {
	case foreign != nil:
		return nil, c.refuse(call, foreign, invalid("the credential is of no issuer that is trusted here"))
	case c.anonymous:
		return nil, nil
	}
	return nil, c.refuse(call, nil, &refusal{reasonMissing, "the call needs a credential"})
}

// name says in the call who makes it.
func (c *check) name(call *rpc.Call, who *caller) {
	if who.identity == "" { // allowed, by an External, without saying who it is
		return
	}
	l := c.dir.link(who)
	call.Principal = &l.principal
	if call.Header == nil {
		call.Header = make(metadata.MD, len(l.header))
	}
	for i := range l.header {
		f := &l.header[i]
		call.Header[f.key] = f.value[:]
	}
}

// fail is the end of a call whose credential p has not accepted.
func (c *check) fail(call *rpc.Call, p Provider, err error) error {
	if r, ok := errors.AsType[*refusal](err); ok {
		return c.refuse(call, p, r)
	}
	if d, ok := errors.AsType[*denial](err); ok {
		call.Info.Fail(rpc.SourceClient)
		call.Info.Refuse("auth", "DENIED")
		return d.error
	}
	call.Info.Fail(rpc.SourceGateway)
	call.Info.Refuse("auth", "unavailable")
	return unknown(err)
}

// stripsOf are the places of the credentials that a call which e admits goes on without: e's own unless it is to go on, and those
// that others would have looked for. Nobody has checked these, which the backend could not tell.
func (c *check) stripsOf(e *Entry) []place {
	own := e.Provider.place()
	if own.all {
		return nil
	}
	var all []place
	for i := range c.entries {
		if p := c.entries[i].Provider.place(); p.header != "" && (p != own || !e.Forward) && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

// refuse ends the call with UNAUTHENTICATED. by has found a credential that is no good; nil if there was none. Challenges of providers
// that look for theirs elsewhere tell of no error: they have seen nothing (RFC 6750 section 3).
func (c *check) refuse(call *rpc.Call, by Provider, r *refusal) error {
	call.Info.Fail(rpc.SourceClient)
	call.Info.Refuse("auth", r.reason)
	md := metadata.MD{}
	for _, e := range c.entries {
		code := ""
		if by != nil && e.Provider.place() == by.place() {
			code = "invalid_token"
		}
		if v := e.Provider.challenge(code); v != "" && !slices.Contains(md["www-authenticate"], v) {
			md["www-authenticate"] = append(md["www-authenticate"], v)
		}
	}
	return rpc.WithHeader(unauthenticated(r.reason, r.msg), md)
}

// unknown tells the client of a credential that cannot be judged now, because what must be asked does not answer, that this is
// so and that a second is polite. Another err, such as the call's end, is returned as it is.
func unknown(err error) error {
	st := rpc.StatusOf(err)
	if st.Code() != codes.Unavailable {
		return err
	}
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reasonUnknown, Domain: "transom"}, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}); err == nil {
		st = detailed
	}
	return rpc.WithHeader(st.Err(), metadata.MD{"retry-after": {"1"}})
}

// unauthenticated is a status with an ErrorInfo.
func unauthenticated(reason, msg string) error {
	st := status.New(codes.Unauthenticated, msg)
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "transom"}); err == nil {
		st = detailed
	}
	return st.Err()
}

// hold runs a call of who that is not over with its answer, or whose answer has something of the provider's. A stream is ended when
// the credential is, by its time or by a configuration without it.
func (c *check) hold(ctx context.Context, call *rpc.Call, who *caller, next rpc.Handler) error {
	if len(who.answer) > 0 {
		next = answering(who.answer, next)
	}
	if who.identity == "" || call.Method.Unary() {
		return next(ctx, call)
	}
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	if !who.Expires.IsZero() {
		timer := time.AfterFunc(time.Until(who.Expires), func() {
			cut(endedBy(reasonExpired, "the credential has expired while the call was open"))
		})
		defer timer.Stop()
	}
	defer c.dir.streams.enter(c.dir, who, func() {
		cut(endedBy(reasonRevoked, "the credential was withdrawn while the call was open"))
	})()
	err := next(ctx, call)
	if end, ok := errors.AsType[*ended](context.Cause(ctx)); ok && err != nil {
		call.Info.Fail(rpc.SourceClient)
		call.Info.Refuse("auth", end.reason)
		return end.status.Err()
	}
	return err
}
