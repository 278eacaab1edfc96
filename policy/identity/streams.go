package identity

import (
	"sync"

	"google.golang.org/grpc/status"
)

// Streams are the open streams of authenticated callers, of every Directory there was. When another Directory comes into force it
// ends those whose callers that one does not know any more: a key or password was taken from the configuration, the consumer or the
// provider, or a provider has another issuer. What a caller may do is asked when its call begins, and not again.
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
	end func()
}

// Use puts d in force. It must be called before the first call that goes by d.
func (s *Streams) Use(d *Directory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inForce = d
	for o := range s.open {
		if !d.knows(o.who) {
			o.end()
		}
	}
}

// enter adds a stream that d has admitted, which may be in force no more. leave must be called at the stream's end.
func (s *Streams) enter(d *Directory, who *caller, end func()) (leave func()) {
	o := &openStream{who, end}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inForce != nil && s.inForce != d && !s.inForce.knows(who) {
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

// knows reports whether a caller that a Directory before d has admitted would be admitted by the provider of that name still.
func (d *Directory) knows(who *caller) bool {
	e, ok := d.providers[who.Provider]
	return ok && e.Provider.knows(who)
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
