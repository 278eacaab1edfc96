package listeners

import (
	"bytes"
	"strings"
	"testing"
)

var lengthLines = []struct {
	raw  string
	want int64
}{
	{"", 0},
	{"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 1},
	{"POST / HTTP/1.1\r\ncontent-LENGTH:5\r\n\r\nhello", 1},
	{"a\nContent-Length: 1\nContent-Length: 2\n", 2},
	{"a\n\nContent-Length: 1\n", 1},
	{"a\nContent-Length\nContent-Length: 1\n", 1},
	{"a\nContent\ncontent-length:", 1},
	{"Content-Length: 5\r\n", 0}, // no line begins here: the request line comes first
	{"a\r\n Content-Length: 5\r\nX-Content-Length: 5\r\nContent-Length : 5\r\n", 0},
}

func TestLengthCounter(t *testing.T) {
	for _, tc := range lengthLines {
		for i := range len(tc.raw) + 1 {
			c := &lengthCounter{}
			c.scan([]byte(tc.raw[:i]))
			c.scan([]byte(tc.raw[i:]))
			if got := c.seen.Load(); got != tc.want {
				t.Errorf("%q cut at %d: %d lines, want %d", tc.raw, i, got, tc.want)
			}
		}
	}
}

func FuzzLengthCounter(f *testing.F) {
	for _, tc := range lengthLines {
		f.Add([]byte(tc.raw), uint(3))
	}
	f.Fuzz(func(t *testing.T, raw []byte, step uint) {
		c := &lengthCounter{}
		for rest := raw; len(rest) > 0; {
			n := min(len(rest), 1+int(step%64))
			c.scan(rest[:n])
			rest = rest[n:]
		}
		want := int64(0)
		for i := range raw {
			if n := len(lengthLine); i+n <= len(raw) && raw[i] == '\n' && strings.EqualFold(string(raw[i:i+n]), lengthLine) {
				want++
			}
		}
		if got := c.seen.Load(); got != want {
			t.Errorf("%q in steps of %d: %d lines, want %d", raw, step, got, want)
		}
	})
}

// What the guard costs a request; the read itself is left out. The second is hostile: a body of line feeds.
func BenchmarkLengthCounter(b *testing.B) {
	head := []byte("POST /v1/accounts/7:transfer HTTP/1.1\r\nHost: bank.example\r\nUser-Agent: Mozilla/5.0\r\nAccept: application/json\r\n" +
		"Accept-Encoding: gzip, br\r\nAuthorization: Bearer " + strings.Repeat("x", 300) + "\r\nContent-Type: application/json\r\nContent-Length: 42\r\n\r\n")
	for _, bc := range []struct {
		name string
		raw  []byte
	}{{"Head", head}, {"LineFeeds", bytes.Repeat([]byte("\n"), 4<<10)}} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(bc.raw)))
			c := &lengthCounter{}
			for b.Loop() {
				c.scan(bc.raw)
			}
		})
	}
}
