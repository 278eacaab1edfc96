package gateway

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	"transom/policy/transform"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
	"transom/transcoder"
)

// fieldPaths are the paths of message fields in policies, by their place in the configuration: a path must lead to a field
// for one of the methods that it holds for.
type fieldPaths struct {
	found map[string]bool
	// faults are those of the first method that has no such field.
	faults map[string]Fault
}

// foundField records that the path at a place leads to a field, unless err says that it does not. It reports whether it does;
// another err is a fault.
func (b *builder) foundField(place string, err error) bool {
	if b.paths.found == nil {
		b.paths = fieldPaths{map[string]bool{}, map[string]Fault{}}
	}
	switch {
	case err == nil:
		b.paths.found[place] = true
		return true
	case !errors.Is(err, rpc.ErrNoField):
		b.paths.found[place] = true
		b.faultOf(place, err)
	default:
		if _, ok := b.paths.faults[place]; !ok {
			b.paths.faults[place] = Fault{Path: place, Msg: err.Error()}
		}
	}
	return false
}

// lostFields makes faults of the paths that lead to no field of any method.
func (b *builder) lostFields() {
	if len(b.missing) > 0 { // the methods that have them may be missing too
		return
	}
	for _, place := range slices.Sorted(maps.Keys(b.paths.faults)) {
		if !b.paths.found[place] {
			b.faults = append(b.faults, b.paths.faults[place])
		}
	}
}

// edits compiles the edits of one field of the policy; nil if there are none.
func (b *builder) edits(eff Effective, field protoreflect.Name, m *configv1.MetadataEdits) *transform.Edits {
	e, err := transform.NewEdits(transform.EditsConfig{
		Set: m.GetSet(), Add: m.GetAdd(), Remove: m.GetRemove(), Rename: m.GetRename(),
		Reserved: transcoder.Reserved, Identity: transcoder.Identity,
	})
	if err == nil {
		return e
	}
	for _, err := range flatten(err) {
		if f, ok := errors.AsType[*transform.Fault](err); ok {
			b.faultOf(eff.path(field)+"."+f.Path, f.Err)
		}
	}
	return nil
}

// request is the middleware that changes requests; nil if none is.
func (b *builder) request(m *descriptors.Method, eff Effective) rpc.Middleware {
	p := eff.Policy
	cfg := transform.RequestConfig{Edits: b.edits(eff, "request_metadata", p.GetRequestMetadata())}
	if cfg.Edits != nil && p.GetCache() != nil {
		b.uncached(eff)
	}
	for i, f := range p.GetRequestFields() {
		place := fmt.Sprintf("%s[%d]", eff.path("request_fields"), i)
		if m.Desc == nil {
			b.fault(place, "requests of methods without a schema (unknown_methods) have no fields that are known")
			continue
		}
		field, err := transform.NewField(m.Desc.Input(), transform.FieldConfig{
			Path: f.GetField(), Value: f.GetValue(), Claim: f.GetClaim(), Default: f.GetMode() == configv1.RequestField_MODE_DEFAULT,
		})
		if fault, ok := errors.AsType[*transform.Fault](err); ok && fault.Path != "field" {
			b.faultOf(place+"."+fault.Path, fault.Err)
			err = nil
		} else if ok {
			err = fault.Err
		}
		if b.foundField(place+".field", err) && field != nil {
			cfg.Fields = append(cfg.Fields, field)
		}
	}
	mw, err := transform.Request(cfg)
	if err != nil {
		b.faultOf(eff.path("request_fields"), err)
	}
	return mw
}

// overruled finds response metadata that security.response_headers sets otherwise.
func (b *builder) overruled(eff Effective) {
	global := map[string]bool{}
	for name := range b.cfg.GetSecurity().GetResponseHeaders() {
		global[strings.ToLower(name)] = true
	}
	delete(global, "vary") // which adds up
	edits := eff.Policy.GetResponseMetadata()
	for _, of := range []struct {
		field string
		names map[string]string
	}{{"set", edits.GetSet()}, {"add", edits.GetAdd()}} {
		for _, name := range slices.Sorted(maps.Keys(of.names)) {
			if global[name] {
				b.fault(fmt.Sprintf("%s.%s[%s]", eff.path("response_metadata"), of.field, name), "security.response_headers says %s in every answer", name)
			}
		}
	}
}

// uncached finds metadata that the cache would keep from the backend.
func (b *builder) uncached(eff Effective) {
	edits, vary := eff.Policy.GetRequestMetadata(), eff.Policy.GetCache().GetVary()
	check := func(name, path string, args ...any) {
		own := !eff.Policy.GetCache().GetShared() && (name == "authorization" || name == "cookie") // part of the key, as is who calls
		if !own && !slices.Contains(vary, name) {
			b.fault(eff.path("request_metadata")+"."+fmt.Sprintf(path, args...), "the backend would not get %s: answers are cached, and cache.vary does not have it", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(edits.GetSet())) {
		check(name, "set[%s]", name)
	}
	for _, name := range slices.Sorted(maps.Keys(edits.GetAdd())) {
		check(name, "add[%s]", name)
	}
	for _, from := range slices.Sorted(maps.Keys(edits.GetRename())) {
		check(edits.GetRename()[from], "rename[%s]", from)
	}
}

// uncovered makes a fault of an error rule that leaves nothing to decide for, since rules before it, which covered tells of, have all
// its codes.
func (b *builder) uncovered(eff Effective, i int, e *configv1.ErrorRule, covered map[codes.Code]int) {
	of := []codes.Code{codes.OK}
	if len(e.GetCodes()) > 0 {
		of = nil
	}
	for _, c := range e.GetCodes() {
		of = append(of, codes.Code(c))
	}
	last := -1
	for _, c := range of {
		first, ok := covered[c]
		if all, every := covered[codes.OK]; every && (!ok || all < first) {
			first, ok = all, true
		}
		if !ok {
			last = -1
			break
		}
		last = max(last, first)
	}
	for _, c := range of {
		if _, ok := covered[c]; !ok {
			covered[c] = i
		}
	}
	if last >= 0 {
		path := eff.path("errors")
		b.faults = append(b.faults, Fault{
			Path: fmt.Sprintf("%s[%d]", path, i), Msg: "no error comes to this rule: those before it have all its codes", Other: fmt.Sprintf("%s[%d]", path, last),
		})
	}
}

// answers are the middleware that changes answers as clients get them, and the one that takes out what nobody may see; nil
// if there is nothing to do.
func (b *builder) answers(m *descriptors.Method, eff Effective) (response, redact rpc.Middleware) {
	p := eff.Policy
	cfg := transform.ResponseConfig{
		Header:  b.edits(eff, "response_metadata", p.GetResponseMetadata()),
		Trailer: b.edits(eff, "response_trailers", p.GetResponseTrailers()),
	}
	var always []transform.Path
	for i, r := range p.GetRedact() {
		place := fmt.Sprintf("%s[%d]", eff.path("redact"), i)
		if m.Desc == nil {
			b.fault(place, "answers of methods without a schema (unknown_methods) have no fields that are known")
			continue
		}
		var paths []transform.Path
		for j, name := range r.GetFields() {
			path, err := transform.NewPath(m.Desc.Output(), name)
			if b.foundField(fmt.Sprintf("%s.fields[%d]", place, j), err) {
				paths = append(paths, path)
			}
		}
		if r.GetUnlessScope() == "" {
			always = append(always, paths...)
		} else if len(paths) > 0 {
			cfg.Redact = append(cfg.Redact, transform.Conditional{Paths: paths, Scope: r.GetUnlessScope()})
		}
	}
	b.overruled(eff)
	covered := map[codes.Code]int{} // by code the first rule that has it; OK stands for all
	for i, e := range p.GetErrors() {
		b.uncovered(eff, i, e, covered)
		ec := transform.ErrorConfig{To: codes.Code(e.GetTo()), Message: e.GetMessage(), KeepDetails: e.GetKeepDetails()}
		for _, c := range e.GetCodes() {
			ec.Codes = append(ec.Codes, codes.Code(c))
		}
		rule, err := transform.NewErrorRule(ec)
		if err != nil {
			b.faultOf(fmt.Sprintf("%s[%d].message", eff.path("errors"), i), err)
		}
		cfg.Errors = append(cfg.Errors, rule)
	}
	return transform.Response(cfg), transform.Redact(always)
}
