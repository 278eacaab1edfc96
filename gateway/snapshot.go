package gateway

import (
	"sync/atomic"

	"transom/descriptors"
	"transom/gateway/observe"
	"transom/listeners"
	"transom/policy/cache"
	"transom/policy/identity"
	"transom/policy/limit"
	"transom/transcoder"
	"transom/upstream"
)

// Snapshot is everything compiled from one configuration and one schema: immutable, swapped as a whole. A call takes one
// with Acquire and keeps it to its end. It refers to clusters, which outlive it when the next Snapshot uses them too.
type Snapshot struct {
	schema *descriptors.Schema
	plans  *transcoder.Plans
	edge   *listeners.Edge
	// awaiting says that a source of descriptors has not answered yet, ever.
	awaiting bool
	// versions is nil unless there are several of the HTTP API.
	versions *versions
	// routes are by Method.ID; opaque is the route of methods without a schema, nil if they are refused.
	routes   []listeners.Route
	opaque   *opaque
	clusters map[string]*upstream.Cluster
	// accessLog and push may be nil.
	accessLog *observe.AccessLog
	push      *observe.Push
	// effective are the policies in force, by Method.ID.
	effective []Effective
	// chains name what is in the handler chains, outermost first, by Method.ID.
	chains [][]string
	// limits are those of all methods, by name.
	limits []*limit.Limiter
	// cache is nil if no method has one.
	cache *cache.Cache
	// directory has who is known.
	directory *identity.Directory
	// store is nil if no method shares answers.
	store *cache.Store
	// usage is nil if it is not counted.
	usage *observe.Usage
	// refs counts the calls that hold the Snapshot, and one more while it is in force. At 0 drop runs, once.
	refs atomic.Int64
	drop func()
}

var _ listeners.View = (*Snapshot)(nil)

// MatchHTTP implements listeners.View.
func (s *Snapshot) MatchHTTP(verb, escapedPath, version string) (descriptors.Match, error) {
	m, err := s.schema.MatchHTTP(verb, escapedPath)
	if err != nil && s.versions != nil {
		return s.versions.match(s.schema, verb, escapedPath, version, err)
	}
	return m, err
}

// Method implements listeners.View.
func (s *Snapshot) Method(fullPath string) (*descriptors.Method, bool) {
	if m, ok := s.schema.Method(fullPath); ok {
		return m, true
	}
	if s.opaque == nil || !isMethodPath(fullPath) {
		return nil, false
	}
	return descriptors.Opaque(fullPath), true
}

// isMethodPath reports whether p has the form "/service/method", of letters, digits, "_", "-" and ".": servers that decode paths, or
// cut them at "?", must not find another method than the one whose policy held.
func isMethodPath(p string) bool {
	slash := 0
	for i := range len(p) {
		switch c := p[i]; {
		case c == '/':
			if i > 0 && p[i-1] == '/' {
				return false
			}
			slash++
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '.':
		default:
			return false
		}
	}
	return slash == 2 && p[0] == '/' && p[len(p)-1] != '/'
}

// Awaiting implements listeners.View.
func (s *Snapshot) Awaiting() bool { return s.awaiting }

// Route implements listeners.View.
func (s *Snapshot) Route(m *descriptors.Method) *listeners.Route {
	if m.ID < 0 {
		return &s.opaque.route(string(m.Name)).Route
	}
	return &s.routes[m.ID]
}

// Plans implements listeners.View.
func (s *Snapshot) Plans() *transcoder.Plans { return s.plans }

// Edge implements listeners.View.
func (s *Snapshot) Edge() *listeners.Edge { return s.edge }

// Release implements listeners.View.
func (s *Snapshot) Release() {
	if s.refs.Add(-1) == 0 {
		s.drop()
	}
}

// acquire takes a reference unless the last one is gone.
func (s *Snapshot) acquire() bool {
	for {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// current is the Snapshot in force.
type current struct {
	p      atomic.Pointer[Snapshot]
	closed atomic.Bool // what is in force is the last, and not held any more
}

var _ listeners.Source = (*current)(nil)

// take is the Snapshot in force, with a reference; nil after close.
func (c *current) take() *Snapshot {
	for {
		// A Snapshot whose last reference went between Load and acquire has been replaced; look again.
		if s := c.p.Load(); s.acquire() {
			return s
		}
		if c.closed.Load() {
			return nil
		}
	}
}

// Acquire implements listeners.Source. A request that outlives the end of the drain gets the last Snapshot, whose clusters
// refuse it.
func (c *current) Acquire() listeners.View {
	if s := c.take(); s != nil {
		return s
	}
	return late{c.p.Load()}
}

// late is the last Snapshot, after its end.
type late struct{ *Snapshot }

// Release implements listeners.View: there is nothing to let go of.
func (late) Release() {}

// swap puts next in force and lets go of the one before.
func (c *current) swap(next *Snapshot) {
	if old := c.p.Swap(next); old != nil {
		old.Release()
	}
}

// close lets go of what is in force, for good.
func (c *current) close() {
	c.closed.Store(true)
	c.p.Load().Release()
}
