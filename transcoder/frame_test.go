package transcoder_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/transcoder"
)

func TestParseFrameHeader(t *testing.T) {
	for _, c := range []struct {
		name    string
		in      string
		framing transcoder.Framing
		flags   byte
		n       int
		code    codes.Code
	}{
		{"plain", "\x00\x00\x00\x01\x02", transcoder.FramingGRPC, 0, 258, 0},
		{"compressed", "\x01\x00\x00\x00\x02", transcoder.FramingGRPC, 1, 2, 0},
		{"112 flag 2", "\x02\x00\x00\x00\x02", transcoder.FramingGRPC, 0, 0, codes.Internal},
		{"112 flag 4", "\x04\x00\x00\x00\x02", transcoder.FramingConnect, 0, 0, codes.Internal},
		{"109 trailers", "\x80\x00\x00\x00\x02", transcoder.FramingGRPCWeb, 0x80, 2, 0},
		{"109 compressed trailers", "\x81\x00\x00\x00\x02", transcoder.FramingGRPCWeb, 0x81, 2, 0},
		{"109 trailers are not gRPC's", "\x80\x00\x00\x00\x02", transcoder.FramingGRPC, 0, 0, codes.Internal},
		{"115 end of stream", "\x03\x00\x00\x00\x02", transcoder.FramingConnect, 3, 2, 0},
		{"113 the limit", "\x00\x00\x00\x03\xE8", transcoder.FramingGRPC, 0, 1000, 0},
		{"113 over the limit", "\x00\x00\x00\x03\xE9", transcoder.FramingGRPC, 0, 0, codes.ResourceExhausted},
		{"113 the largest", "\x00\xFF\xFF\xFF\xFF", transcoder.FramingGRPC, 0, 0, codes.ResourceExhausted},
	} {
		t.Run(c.name, func(t *testing.T) {
			flags, n, err := transcoder.ParseFrameHeader([]byte(c.in), c.framing, 1000)
			if flags != c.flags || n != c.n || status.Code(err) != c.code {
				t.Errorf("got %#x, %d, %v, want %#x, %d, %v", flags, n, err, c.flags, c.n, c.code)
			}
		})
	}
}

func TestCutFrame(t *testing.T) {
	whole := transcoder.AppendFrameHeader(nil, transcoder.FlagCompressed, 3)
	whole = append(whole, "abcrest"...)
	for cut := range whole {
		flags, payload, rest, err := transcoder.CutFrame(whole[:cut], transcoder.FramingGRPC, 10)
		switch {
		case cut == 0:
			if err != io.EOF {
				t.Errorf("nothing: got %v, want io.EOF", err)
			}
		case cut < 8:
			if err != io.ErrUnexpectedEOF {
				t.Errorf("cut at %d: got %v, want io.ErrUnexpectedEOF", cut, err)
			}
		case err != nil || flags != 1 || string(payload) != "abc" || string(rest) != "rest"[:cut-8]:
			t.Errorf("cut at %d: got %#x %q %q %v", cut, flags, payload, rest, err)
		}
	}
}

func TestPutFrameHeader(t *testing.T) {
	frame := []byte("?????abc")
	transcoder.PutFrameHeader(frame, transcoder.FlagTrailer)
	if want := "\x80\x00\x00\x00\x03abc"; string(frame) != want {
		t.Errorf("got %q, want %q", frame, want)
	}
}

func TestTextDecoder(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"one part", "aGVsbG8=", "hello"},
		{"110 padding in the middle", "aGVsbG8=IHdvcmxk", "hello world"},
		{"110 two pads", "aA==aQ==", "hi"},
		{"110 without padding at the end", "aGVsbG8", "hello"},
		{"line breaks", "aGVs\r\nbG8=", "hello"},
		{"empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for cut := range len(c.in) + 1 { // cut at any byte
				var d transcoder.TextDecoder
				got, err := d.Append(nil, []byte(c.in[:cut]))
				if err == nil {
					got, err = d.Append(got, []byte(c.in[cut:]))
				}
				if err == nil {
					got, err = d.Close(got)
				}
				if string(got) != c.want || err != nil {
					t.Errorf("cut at %d: got %q, %v, want %q", cut, got, err, c.want)
				}
			}
		})
	}
	for _, in := range []string{"a", "=", "a=", "a===", "aG!s", "aGVsbG8=A", "ab=c", "aGV=="} {
		var d transcoder.TextDecoder
		got, err := d.Append(nil, []byte(in))
		if err == nil {
			_, err = d.Close(got)
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: got %v, want InvalidArgument", in, err)
		}
	}
}

func FuzzCutFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x03abc\x01\x00\x00\x00\x00"), uint8(0))
	f.Add([]byte("\x80\x00\x00\x00\x02a"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, framing uint8) {
		f := transcoder.Framing(framing % 3)
		var again []byte
		for rest := b; ; {
			flags, payload, r, err := transcoder.CutFrame(rest, f, len(b))
			if err != nil {
				if !bytes.Equal(again, b[:len(b)-len(rest)]) {
					t.Errorf("framed again %q, want %q", again, b[:len(b)-len(rest)])
				}
				return
			}
			again = append(transcoder.AppendFrameHeader(again, flags, len(payload)), payload...)
			rest = r
		}
	})
}

func FuzzTextDecoder(f *testing.F) {
	f.Add("aGVsbG8=IHdvcmxk", 3)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		if cut < 0 || cut > len(text) {
			cut = len(text) / 2
		}
		decode := func(parts ...string) (out []byte, err error) {
			var d transcoder.TextDecoder
			for _, p := range parts {
				if out, err = d.Append(out, []byte(p)); err != nil {
					return nil, err
				}
			}
			return d.Close(out)
		}
		whole, err1 := decode(text)
		parts, err2 := decode(text[:cut], text[cut:])
		if (err1 == nil) != (err2 == nil) || err1 == nil && !bytes.Equal(whole, parts) {
			t.Errorf("whole %q %v, in parts %q %v", whole, err1, parts, err2)
		}
		if want, err := base64.StdEncoding.DecodeString(text); err == nil && !strings.ContainsAny(text, "\r\n") && !bytes.Equal(whole, want) {
			t.Errorf("got %q, want %q", whole, want)
		}
	})
}
