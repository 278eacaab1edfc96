package listeners

import "net/http"

// EdgeConfig is what holds for every request before its method is known.
type EdgeConfig struct {
	// Forward are the names of headers that REST and WebSocket requests pass on as metadata, case ignored, beside
	// authorization, cookie, traceparent, tracestate and Grpc-Metadata-* (without the prefix), which always pass.
	Forward []string
}

// Edge is a compiled EdgeConfig: immutable, and part of a View. A nil Edge is that of the zero EdgeConfig.
type Edge struct {
	// forward are canonical header names.
	forward map[string]bool
}

// NewEdge compiles cfg.
func NewEdge(cfg EdgeConfig) *Edge {
	e := &Edge{forward: map[string]bool{}}
	for _, name := range cfg.Forward {
		e.forward[http.CanonicalHeaderKey(name)] = true
	}
	return e
}

// forwards reports whether REST and WebSocket requests pass on the header of that canonical name as metadata.
func (e *Edge) forwards(name string) bool {
	switch name {
	case "Authorization", "Cookie", "Traceparent", "Tracestate":
		return true
	}
	return e != nil && e.forward[name]
}
