package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"transom/descriptors"
)

// versions are those of an HTTP API, whose paths begin with them.
type versions struct {
	// names are in the order of their age, the oldest first; each stands for "/name/…".
	names []string
	// header is what requests say their version in, fallback the index of the version of those that don't; -1 for none.
	header   string
	fallback int
}

// versions compiles the configuration's; nil if it has none.
func (b *builder) versions() *versions {
	c := b.cfg.GetApiVersions()
	if c == nil {
		return nil
	}
	oldest := "/" + c.GetVersions()[0] + "/"
	if len(b.missing) == 0 && !slices.ContainsFunc(b.schema.Bindings(), func(r *descriptors.Binding) bool { return strings.HasPrefix(r.Template, oldest) }) {
		b.fault("api_versions.versions[0]", "no HTTP rule begins with %s: the oldest version must have some", oldest)
	}
	return &versions{names: c.GetVersions(), header: c.GetHeader(), fallback: slices.Index(c.GetVersions(), c.GetDefault())}
}

// match looks for a path that no rule has, which err says: as of the version that it begins with and those that are older, or
// else as of the version that the request asks for, and those. The first version that has the path counts, whatever verbs it
// has there. If none has, the error is err.
func (v *versions) match(schema *descriptors.Schema, verb, path, version string, err error) (descriptors.Match, error) {
	if known(err) {
		return descriptors.Match{}, err
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	i, rest := slices.Index(v.names, first), path
	switch {
	case i >= 0:
		rest = path[1+len(first):]
		i--
	case version != "":
		if i = slices.Index(v.names, version); i < 0 {
			return descriptors.Match{}, fmt.Errorf("header %s: there is no version %.40q, only %s", v.header, version, strings.Join(v.names, ", "))
		}
	default:
		i = v.fallback
	}
	for ; i >= 0; i-- {
		if m, other := schema.MatchHTTP(verb, "/"+v.names[i]+rest); other == nil || known(other) {
			return m, other
		}
	}
	return descriptors.Match{}, err
}

// known reports whether err, of MatchHTTP, says more than that there is no such path.
func known(err error) bool {
	none, ok := errors.AsType[*descriptors.NoRouteError](err)
	return !ok || len(none.Allow) > 0
}

// others are the templates of the paths at which a rule is found beside its own. v may be nil.
func (v *versions) others(schema *descriptors.Schema, b *descriptors.Binding) []string {
	if v == nil {
		return nil
	}
	var list []string
	own, rest, _ := strings.Cut(strings.TrimPrefix(b.Template, "/"), "/")
	i := slices.Index(v.names, own)
	if i < 0 {
		return nil
	}
	for j := i + 1; j < len(v.names); j++ {
		list = append(list, "/"+v.names[j]+"/"+rest)
	}
	list = append(list, "/"+rest)
	return slices.DeleteFunc(list, func(template string) bool {
		m, err := schema.MatchHTTP(verbOf(b), sample(template))
		if err != nil {
			m, err = v.match(schema, verbOf(b), sample(template), "", err)
		}
		return err != nil || m.Binding != b
	})
}

// verbOf is a verb that a rule takes.
func verbOf(b *descriptors.Binding) string {
	if b.Verb == "*" {
		return http.MethodPost
	}
	return b.Verb
}

// sample is a path that a template takes: "/v1/{name=shelves/*}:read" is "/v1/shelves/x:read".
func sample(template string) string {
	var path strings.Builder
	for template != "" {
		before, variable, found := strings.Cut(template, "{")
		path.WriteString(before)
		if !found {
			break
		}
		inside, after, _ := strings.Cut(variable, "}")
		if _, pattern, ok := strings.Cut(inside, "="); ok {
			path.WriteString(pattern)
		} else {
			path.WriteString("*")
		}
		template = after
	}
	return strings.ReplaceAll(strings.ReplaceAll(path.String(), "**", "*"), "*", "x")
}
