package transform

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// ErrorConfig is what clients are told in place of an error.
type ErrorConfig struct {
	// Codes are those it is for; all if there are none.
	Codes []codes.Code
	// To is the code that takes their place; OK for the same.
	To codes.Code
	// Message is the template of the message that takes the place of the error's; empty for the same.
	Message string
	// KeepDetails leaves the details in.
	KeepDetails bool
}

// ErrorRule is a compiled ErrorConfig.
type ErrorRule struct {
	cfg     ErrorConfig
	message *Template
}

// NewErrorRule compiles cfg.
func NewErrorRule(cfg ErrorConfig) (*ErrorRule, error) {
	t, err := NewTemplate(cfg.Message)
	return &ErrorRule{cfg, t}, err
}

// Conditional are fields that are taken out unless the caller has a scope.
type Conditional struct {
	Paths []Path
	Scope string
}

// ResponseConfig is what becomes of the answers of one method.
type ResponseConfig struct {
	// Header and Trailer are edits of metadata; nil for none.
	Header, Trailer *Edits
	// Redact are fields that some callers may see.
	Redact []Conditional
	// Errors are rules for errors of the backend, or of reaching none; the first that has the code decides. What the gateway
	// itself refuses is not theirs.
	Errors []*ErrorRule
}

// Response changes answers. It is nil if there is nothing to do.
//
// Edits of the header hold for a refusal too: for what comes with it, and for the metadata of a backend that has sent an error
// and nothing else, which gRPC has in the trailer. Where a field was taken out for one caller, "etag" goes, since it tells of
// the whole.
func Response(cfg ResponseConfig) rpc.Middleware {
	if cfg.Header == nil && cfg.Trailer == nil && len(cfg.Redact)+len(cfg.Errors) == 0 {
		return nil
	}
	a := &answers{header: cfg.Header, trailer: cfg.Trailer, errors: cfg.Errors}
	for _, c := range cfg.Redact {
		a.hidden = append(a.hidden, hidden{newRedaction(c.Paths), c.Scope})
	}
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error { return a.run(ctx, call, next) }
	}
}

// answers is what becomes of one method's answers.
type answers struct {
	header, trailer *Edits
	hidden          []hidden
	errors          []*ErrorRule
}

// hidden is what callers without a scope don't see.
type hidden struct {
	*redaction
	scope string
}

func (a *answers) run(ctx context.Context, call *rpc.Call, next rpc.Handler) error {
	if a.header == nil && a.trailer == nil && len(a.hidden) == 0 {
		return a.translate(call, next(ctx, call))
	}
	s := &answered{Stream: call.Stream, answers: a, call: call}
	call.Stream = s
	return s.end(a.translate(call, next(ctx, call)))
}

// answered is the Stream of a call whose answers are changed.
type answered struct {
	rpc.Stream
	answers *answers
	call    *rpc.Call
	began   bool
	// trailer is kept until the end, when it is known what it is the trailer of.
	trailer metadata.MD
}

// from reports whether a call's caller must not see it.
func (h *hidden) from(call *rpc.Call) bool {
	return call.Principal == nil || !slices.Contains(call.Principal.Scopes, h.scope)
}

func (s *answered) SendHeader(md metadata.MD) error {
	s.began = true
	for i := range s.answers.hidden {
		if s.answers.hidden[i].from(s.call) {
			delete(md, "etag")
		}
	}
	if e := s.answers.header; e != nil {
		md = e.apply(md, s.call)
	}
	return s.Stream.SendHeader(md)
}

func (s *answered) Send(ctx context.Context, m rpc.Message) error {
	if !s.began && s.answers.header != nil {
		if err := s.SendHeader(nil); err != nil {
			m.Release()
			return err
		}
	}
	s.began = true
	for i := range s.answers.hidden {
		if h := &s.answers.hidden[i]; h.from(s.call) {
			var err error
			if m, err = h.message(m, s.call); err != nil {
				return err
			}
		}
	}
	return s.Stream.Send(ctx, m)
}

func (s *answered) SetTrailer(md metadata.MD) { s.trailer = md }

// end sends the trailer, and the header of a call without an answer. err is how the call ended, and what is returned has
// the metadata that goes with it.
func (s *answered) end(err error) error {
	header := s.answers.header
	if header != nil && !s.began {
		if err == nil {
			if md := header.apply(nil, s.call); md != nil {
				if err := s.Stream.SendHeader(md); err != nil {
					return err
				}
			}
		} else {
			s.trailer, _ = header.clear(s.trailer, nil)
			err = header.refusal(err, s.call)
		}
	}
	if s.answers.trailer != nil {
		s.trailer = s.answers.trailer.apply(s.trailer, s.call)
	}
	if s.trailer != nil {
		s.Stream.SetTrailer(s.trailer)
	}
	return err
}

// refusal changes the metadata that comes with an error.
func (e *Edits) refusal(err error, call *rpc.Call) error {
	before := rpc.HeaderOf(err)
	after := e.apply(rpc.HeaderOf(err), call)
	if after == nil && before != nil {
		after = metadata.MD{}
	}
	for name := range before {
		if _, there := after[name]; !there {
			after[name] = nil // further out wins
		}
	}
	if len(after) == 0 {
		return err
	}
	return rpc.WithHeader(err, after)
}

// translate is err as clients are told.
func (a *answers) translate(call *rpc.Call, err error) error {
	if err == nil || len(a.errors) == 0 || call.Info.ErrorSource != rpc.SourceUpstream {
		return err
	}
	st := rpc.StatusOf(err)
	for _, r := range a.errors {
		if len(r.cfg.Codes) == 0 || slices.Contains(r.cfg.Codes, st.Code()) {
			return r.translate(call, err, st)
		}
	}
	return err
}

// translated is an error in place of another. The log has the other's text.
type translated struct {
	st    *status.Status
	cause error
}

func (e *translated) Error() string { return e.cause.Error() }

func (e *translated) GRPCStatus() *status.Status { return e.st }

func (r *ErrorRule) translate(call *rpc.Call, err error, st *status.Status) error {
	p := st.Proto()
	if r.cfg.To != codes.OK {
		p.Code = int32(r.cfg.To)
		call.Info.Note("error_was", st.Code().String())
	}
	if r.cfg.Message != "" {
		// A message without its variables would be better than the one that is to be hidden.
		p.Message, _ = r.message.text(call, false)
	}
	if !r.cfg.KeepDetails {
		p.Details = nil
	}
	out := error(&translated{status.FromProto(p), err})
	if md := rpc.HeaderOf(err); md != nil {
		out = rpc.WithHeader(out, md)
	}
	return out
}
