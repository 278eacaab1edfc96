package traffic

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// Deprecation is what clients are told of a method that will go.
type Deprecation struct {
	// Since is when it became, or will become, deprecated; zero says nothing of it.
	Since time.Time
	// Sunset is when it is expected to stop; zero if that is not known. It is not before Since.
	Sunset time.Time
	// Link is the URL of a page about it; "" for none.
	Link string
}

// Validate reports what is wrong with d.
func (d Deprecation) Validate() error {
	if !d.Since.IsZero() && !d.Sunset.IsZero() && d.Sunset.Before(d.Since) {
		// RFC 9745 section 4.
		return errors.New("the sunset is before the deprecation")
	}
	return nil
}

// header is the response metadata: deprecation (RFC 9745: a structured field of type Date), sunset (RFC 8594: an
// HTTP-date) and link with the relation "deprecation".
func (d Deprecation) header() metadata.MD {
	md := metadata.MD{}
	if !d.Since.IsZero() {
		md["deprecation"] = []string{"@" + strconv.FormatInt(d.Since.Unix(), 10)}
	}
	if !d.Sunset.IsZero() {
		md["sunset"] = []string{d.Sunset.UTC().Format(http.TimeFormat)}
	}
	if d.Link != "" {
		md["link"] = []string{"<" + d.Link + `>; rel="deprecation"`}
	}
	return md
}

// Deprecated is the middleware that puts d into the header of every answer and refusal. What the backend says itself goes
// before it, but for links, which add up.
func Deprecated(d Deprecation) rpc.Middleware {
	header := d.header()
	return func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			s := &deprecated{Stream: call.Stream, header: header}
			call.Stream = s
			if err := next(ctx, call); err != nil {
				return rpc.WithHeader(err, header)
			}
			if !s.told { // a stream without messages
				_ = s.SendHeader(nil) // the call has ended well, also if this cannot be told
			}
			return nil
		}
	}
}

// deprecated adds to the response metadata.
type deprecated struct {
	rpc.Stream
	header metadata.MD
	told   bool
}

func (s *deprecated) SendHeader(md metadata.MD) error {
	s.told = true
	if md == nil {
		md = make(metadata.MD, len(s.header))
	}
	for k, v := range s.header {
		switch had, ok := md[k]; {
		case !ok:
			md[k] = slices.Clip(v) // who appends gets a copy
		case k == "link":
			md[k] = append(slices.Clip(had), v...)
		}
	}
	return s.Stream.SendHeader(md)
}

func (s *deprecated) Send(ctx context.Context, m rpc.Message) error {
	if !s.told {
		if err := s.SendHeader(nil); err != nil {
			m.Release()
			return err
		}
	}
	return s.Stream.Send(ctx, m)
}
