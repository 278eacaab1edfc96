package listeners

import (
	"bytes"
	"encoding/base64"
	"io"
	"testing"
	"testing/iotest"
)

var acceptCases = []struct {
	sent   string
	accept string // "" is no header
	want   string
}{
	{"", "", ""},
	{"gzip", "", "gzip"},
	{"", "gzip", "gzip"},
	{"", "gzip, deflate, br, zstd", "zstd"},
	{"", "deflate, br", "br"},
	{"br", "gzip, br", "br"},
	{"br", "gzip", "gzip"},
	{"gzip", "identity", ""},
	{"", "identity,gzip", "gzip"},
	{"", "gzip;q=1, zstd;q=0.5", "gzip"},
	{"", "gzip;q=0, zstd;q=0.001", "zstd"},
	{"gzip", "gzip;q=0", ""},
	{"", "GZIP ; Q=1", "gzip"},
	{"", "gzip;q=x", ""},
	{"", "gzip;q=2", ""},
	{"", "*", ""},
	{"", ",,;=,", ""},
}

func TestReplyCoding(t *testing.T) {
	for _, tc := range acceptCases {
		var accept []string
		if tc.accept != "" {
			accept = []string{tc.accept}
		}
		got := ""
		if c := replyCoding(codingOf(tc.sent), accept); c != nil {
			got = c.name
		}
		if got != tc.want {
			t.Errorf("a client that sends %q and accepts %q gets %q, want %q", tc.sent, tc.accept, got, tc.want)
		}
	}
}

// What is chosen was named, and not by a member with q=0 alone.
func FuzzReplyCoding(f *testing.F) {
	for _, tc := range acceptCases {
		f.Add(tc.accept)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		if c := replyCoding(nil, []string{accept}); c != nil && !bytes.Contains(bytes.ToLower([]byte(accept)), []byte(c.name)) {
			t.Errorf("%q gets %s", accept, c.name)
		}
	})
}

// The codings undo themselves, whatever the bytes, and say so when the result is over a limit.
func TestCodings(t *testing.T) {
	plain := bytes.Repeat([]byte("transom "), 1000)
	for _, c := range []*coding{gzipCoding, brCoding, zstdCoding} {
		coded, err := c.compress([]byte("kept"), plain)
		if err != nil || !bytes.HasPrefix(coded, []byte("kept")) || len(coded) > 500 {
			t.Fatalf("%s: %d bytes, %v", c.name, len(coded), err)
		}
		coded = coded[4:]
		var out []byte
		if err := c.decompress(&out, coded, len(plain)); err != nil || !bytes.Equal(out, plain) {
			t.Errorf("%s: %d bytes, %v", c.name, len(out), err)
		}
		out = nil
		if err := c.decompress(&out, coded, len(plain)-1); err == nil || len(out) > len(plain) {
			t.Errorf("%s over the limit: %d bytes, %v", c.name, len(out), err)
		}
		for i := 1; i < len(coded); i++ { // zstd takes nothing at all for an empty stream
			out = nil
			if err := c.decompress(&out, coded[:i], len(plain)); err == nil {
				t.Errorf("%s cut at %d: no error", c.name, i)
			}
		}
	}
}

// A text body of any cut and padding is what was encoded, and what textEncoder writes is read back.
func FuzzText(f *testing.F) {
	f.Add([]byte("hello world"), uint(1))
	f.Add([]byte{}, uint(7))
	f.Fuzz(func(t *testing.T, plain []byte, step uint) {
		n := 1 + int(step%7)
		var e textEncoder
		var text []byte
		for rest := plain; len(rest) > 0; {
			part := rest[:min(n, len(rest))]
			rest = rest[len(part):]
			text = append(text, e.encode(part)...)
			if step%3 == 0 {
				text = append(text, e.pad()...)
			}
		}
		text = append(text, e.pad()...)
		for _, body := range [][]byte{text, []byte(base64.StdEncoding.EncodeToString(plain)), []byte(base64.RawStdEncoding.EncodeToString(plain))} {
			r := &textReader{r: iotest.OneByteReader(bytes.NewReader(body))}
			got, err := io.ReadAll(r)
			r.done()
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%q reads as %q, %v; want %q", body, got, err, plain)
			}
		}
	})
}
