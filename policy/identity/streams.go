package identity

import (
	"sync"

	"google.golang.org/grpc/status"
)

// Streams are the open streams of authenticated callers, of every Directory there was. When another Directory comes into force it
// ends those whose callers that one does not know any more: a key or password was taken from the configuration, the consumer or the
// provider, or a provider is of another kind or has another issuer, URL or cluster. What a caller may do is asked when its call begins, and not again.
//
// # Concurrency
// Safe for concurrent use. The zero value is ready.
type Streams struct {
	mu      sync.Mutex
	inForce *Directory
	open    map[*openStream]struct{}
}

// openStream is one stream; end ends it with UNAUTHENTICATED, and may be called more than once.
type openStream struct {
	who *caller
	// consumer is the known one that its identity is claimed by, in the Directory that has admitted it; "" if none does.
	consumer string
	end      func()
}

// Use puts d in force. It must be called before the first call that goes by d.
func (s *Streams) Use(d *Directory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inForce = d
	for o := range s.open {
		if !d.knows(o) {
			o.end()
		}
	}
}

// enter adds a stream that d has admitted, which may be in force no more. leave must be called at the stream's end.
func (s *Streams) enter(d *Directory, who *caller, end func()) (leave func()) {
	o := &openStream{who, d.claimant(who.identity), end}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inForce != nil && s.inForce != d && !s.inForce.knows(o) {
		end()
	}
	if s.open == nil {
		s.open = map[*openStream]struct{}{}
	}
	s.open[o] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, o)
	}
}

// knows reports whether the caller of a stream that a Directory before d has admitted would be admitted by the provider of that name
// still, as the consumer that it was.
func (d *Directory) knows(o *openStream) bool {
	e, ok := d.providers[o.who.Provider]
	return ok && e.Provider.knows(o.who) && (o.consumer == "" || d.claimant(o.who.identity) == o.consumer)
}

// claimant is the name of the known consumer that claims an identity; "" if none does.
func (d *Directory) claimant(identity string) string {
	if c := d.identities[identity]; c != nil {
		return c.Name
	}
	return ""
}

// ended is why a stream ends before its time: its credential has.
type ended struct {
	reason string
	status *status.Status
}

func endedBy(reason, msg string) *ended {
	return &ended{reason, status.Convert(unauthenticated(reason, msg))}
}

func (e *ended) Error() string { return e.status.Err().Error() }

// GRPCStatus is what rpc.StatusOf asks for.
func (e *ended) GRPCStatus() *status.Status { return e.status }
