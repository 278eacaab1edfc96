package listeners

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// jsonStream cuts a request body into JSON texts: values one after another with any white space between them (NDJSON,
// RFC 7464 without the separators), or the elements of one array. It finds where a value ends and no more; whether it is
// valid JSON is for the transcoder to say.
type jsonStream struct {
	r   io.Reader
	max int
	buf []byte
	// buf[start:] is not yet consumed; buf[:start] is the value given last, and what lay before.
	start  int
	eof    error
	array  bool // inside the array
	begun  bool // first token seen
	ended  bool // the array is closed
	comma  bool // a comma was read after the last element
	given  int  // values returned
	offset int64
	lines  int // that ended in what is no longer in buf
	column int // characters of the last line of what is no longer in buf
}

// next returns the next value, valid until the next call; io.EOF at the end of the body. Errors of the body's reader are
// passed on. A value longer than max is ResourceExhausted, what is no sequence of values InvalidArgument with the byte.
func (s *jsonStream) next() ([]byte, error) {
	for {
		c, err := s.peek()
		if err != nil {
			if err == io.EOF && s.array && !s.ended {
				err = s.bad("the array is not closed")
			}
			return nil, err
		}
		if s.ended {
			return nil, s.bad(fmt.Sprintf("unexpected %q after the array", c))
		}
		if !s.begun {
			s.begun = true
			if c == '[' {
				s.array = true
				s.skip(1)
				continue
			}
		}
		if s.array {
			switch {
			case c == ']':
				if s.comma {
					return nil, s.bad("a comma before the end of the array")
				}
				s.ended = true
				s.skip(1)
				continue
			case c == ',':
				if s.comma || s.given == 0 {
					return nil, s.bad("unexpected comma")
				}
				s.comma = true
				s.skip(1)
				continue
			case s.given > 0 && !s.comma:
				return nil, s.bad(fmt.Sprintf("expected a comma or ] between elements, found %q", c))
			}
			s.comma = false
		}
		n, err := s.value()
		if err != nil {
			return nil, err
		}
		v := s.buf[s.start : s.start+n]
		s.skip(n)
		s.given++
		return v, nil
	}
}

func (s *jsonStream) skip(n int) {
	s.start += n
	s.offset += int64(n)
}

func (s *jsonStream) bad(what string) error {
	return status.Errorf(codes.InvalidArgument, "request body, message %d at byte %d: %s", s.given+1, s.offset, what)
}

// peek returns the next byte that is not white space.
func (s *jsonStream) peek() (byte, error) {
	for {
		for s.start < len(s.buf) {
			switch c := s.buf[s.start]; c {
			case ' ', '\t', '\r', '\n':
				s.skip(1)
			default:
				return c, nil
			}
		}
		if err := s.more(); err != nil {
			return 0, err
		}
	}
}

// position returns how many lines ended before buf[i:], and the characters of its line that come before it.
func (s *jsonStream) position(i int) (lines, column int) {
	before := s.buf[:i]
	lines, column = s.lines+bytes.Count(before, []byte{'\n'}), s.column
	if k := bytes.LastIndexByte(before, '\n'); k >= 0 {
		before, column = before[k+1:], 0
	}
	return lines, column + utf8.RuneCount(before)
}

// more reads on, moving what is left to the front.
func (s *jsonStream) more() error {
	if s.eof != nil {
		return s.eof
	}
	if s.start > 0 {
		s.lines, s.column = s.position(s.start)
		s.buf = s.buf[:copy(s.buf, s.buf[s.start:])]
		s.start = 0
	}
	if len(s.buf) == cap(s.buf) {
		grown := make([]byte, len(s.buf), max(4<<10, 2*cap(s.buf)))
		copy(grown, s.buf)
		s.buf = grown
	}
	n, err := s.r.Read(s.buf[len(s.buf):cap(s.buf)])
	s.buf = s.buf[:len(s.buf)+n]
	s.eof = err
	if n == 0 && err != nil {
		return err
	}
	return nil
}

// value returns the length of the value that begins at start.
func (s *jsonStream) value() (int, error) {
	depth, inString, scalar := 0, false, false
	for i := 0; ; i++ {
		if i > s.max {
			return 0, status.Errorf(codes.ResourceExhausted, "request body, message %d: larger than the limit of %d bytes", s.given+1, s.max)
		}
		if s.start+i == len(s.buf) {
			if err := s.more(); err != nil {
				if !errors.Is(err, io.EOF) {
					return 0, err
				}
				if scalar && depth == 0 && !inString {
					return i, nil
				}
				return 0, s.bad("the body ends inside the message")
			}
		}
		if s.start+i == len(s.buf) { // a read of nothing
			i--
			continue
		}
		c := s.buf[s.start+i]
		switch {
		case inString:
			switch c {
			case '\\':
				// The escaped character is passed over; more of a \u escape is ordinary text here.
				i++
				for s.start+i == len(s.buf) {
					if err := s.more(); err != nil {
						return 0, s.endOf(err)
					}
				}
			case '"':
				inString = false
				if depth == 0 {
					return i + 1, nil
				}
			}
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			if scalar {
				return i, nil
			}
			depth++
		case c == '}' || c == ']':
			if depth == 0 {
				if scalar {
					return i, nil
				}
				return 0, s.bad(fmt.Sprintf("unexpected %q", c))
			}
			if depth--; depth == 0 {
				return i + 1, nil
			}
		case depth > 0:
		case c == ',' || c == ' ' || c == '\t' || c == '\r' || c == '\n':
			if !scalar {
				return 0, s.bad(fmt.Sprintf("unexpected %q", c))
			}
			return i, nil
		default:
			scalar = true
		}
	}
}

func (s *jsonStream) endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return s.bad("the body ends inside the message")
	}
	return err
}
