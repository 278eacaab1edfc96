package grpcwire_test

import (
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc/grpcwire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Case 102.
func TestParseTimeout(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		code codes.Code
	}{
		{"250m", 250 * time.Millisecond, 0},
		{"1H", time.Hour, 0},
		{"2M", 2 * time.Minute, 0},
		{"3S", 3 * time.Second, 0},
		{"4u", 4 * time.Microsecond, 0},
		{"5n", 5, 0},
		{"0n", 0, 0},
		{"007S", 7 * time.Second, 0},
		{"99999999S", 99999999 * time.Second, 0},
		{"99999999H", math.MaxInt64, 0},
		{"123456789n", 0, codes.InvalidArgument},
		{"", 0, codes.InvalidArgument},
		{"S", 0, codes.InvalidArgument},
		{"5", 0, codes.InvalidArgument},
		{"5s", 0, codes.InvalidArgument},
		{"-5S", 0, codes.InvalidArgument},
		{"+5S", 0, codes.InvalidArgument},
		{"5 S", 0, codes.InvalidArgument},
		{"1.5S", 0, codes.InvalidArgument},
	} {
		got, err := grpcwire.ParseTimeout(c.in)
		if got != c.want || status.Code(err) != c.code {
			t.Errorf("ParseTimeout(%q) = %v, %v, want %v, %v", c.in, got, err, c.want, c.code)
		}
	}
}

func TestAppendTimeout(t *testing.T) {
	for _, c := range []struct {
		in   time.Duration
		want string
	}{
		{0, "0n"},
		{-time.Second, "0n"},
		{1, "1n"},
		{99999999, "99999999n"},
		{100000000, "100000u"},
		{100000001, "100001u"},
		{time.Second, "1000000u"},
		{time.Hour, "3600000m"},
		{math.MaxInt64, "2562048H"},
	} {
		if got := string(grpcwire.AppendTimeout(nil, c.in)); got != c.want {
			t.Errorf("AppendTimeout(%v) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzTimeout(f *testing.F) {
	f.Add("250m")
	f.Add("99999999H")
	f.Fuzz(func(t *testing.T, v string) {
		d, err := grpcwire.ParseTimeout(v)
		if err != nil {
			return
		}
		if d < 0 {
			t.Fatalf("ParseTimeout(%q) = %v, want not negative", v, d)
		}
		text := string(grpcwire.AppendTimeout(nil, d))
		again, err := grpcwire.ParseTimeout(text)
		if err != nil || again < d {
			t.Errorf("%v as %q reads %v, %v, want not less", d, text, again, err)
		}
	})
}

// Case 89.
func TestGRPCMessage(t *testing.T) {
	for _, c := range []struct{ text, wire string }{
		{"plain", "plain"},
		{"50%", "50%25"},
		{"é\n", "%C3%A9%0A"},
		{"", ""},
	} {
		if got := string(grpcwire.AppendGRPCMessage(nil, c.text)); got != c.wire {
			t.Errorf("%q is written %q, want %q", c.text, got, c.wire)
		}
		if got := grpcwire.DecodeGRPCMessage(c.wire); got != c.text {
			t.Errorf("%q is read %q, want %q", c.wire, got, c.text)
		}
	}
	for in, want := range map[string]string{"%": "%", "%4": "%4", "%zz": "%zz", "%c3%a9": "é", "%FF": "�", "é": "é", "%25%": "%%"} {
		if got := grpcwire.DecodeGRPCMessage(in); got != want {
			t.Errorf("%q is read %q, want %q", in, got, want)
		}
	}
}

func FuzzGRPCMessage(f *testing.F) {
	f.Add("50%é\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := grpcwire.DecodeGRPCMessage(s); !utf8.ValidString(got) {
			t.Errorf("%q is read %q, not UTF-8", s, got)
		}
		wire := grpcwire.AppendGRPCMessage(nil, s)
		for _, c := range wire {
			if c < 0x20 || c > 0x7E {
				t.Fatalf("%q is written %q", s, wire)
			}
		}
		if got, want := grpcwire.DecodeGRPCMessage(string(wire)), strings.ToValidUTF8(s, "�"); utf8.ValidString(s) && got != want {
			t.Errorf("%q comes back as %q", s, got)
		}
	})
}

// Case 84.
func TestCodeOfHTTP(t *testing.T) {
	for http, want := range map[int]codes.Code{
		400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14, 200: 2, 405: 2, 500: 2, 0: 2,
	} {
		if got := grpcwire.CodeOfHTTP(http); got != want {
			t.Errorf("HTTP %d: got %v, want %v", http, got, want)
		}
	}
}

func TestCodeOfReset(t *testing.T) {
	for reset, want := range map[uint32]codes.Code{
		0: codes.Internal, 1: codes.Internal, 7: codes.Unavailable, 8: codes.Canceled, 11: codes.ResourceExhausted,
		12: codes.PermissionDenied, 13: codes.Internal, 99: codes.Internal,
	} {
		if got := grpcwire.CodeOfReset(reset); got != want {
			t.Errorf("CodeOfReset(%d) = %v, want %v", reset, got, want)
		}
	}
}

// TestValidText puts each byte at each place of values of various lengths.
func TestValidText(t *testing.T) {
	for n := 1; n <= 20; n++ {
		for at := range n {
			for c := range 256 {
				b := []byte("~ 0z~ 9!~ 0z~ 9!~ 0z")[:n]
				b[at] = byte(c)
				if got, want := grpcwire.ValidText(string(b)), c >= 0x20 && c <= 0x7E; got != want {
					t.Fatalf("%q: %v, want %v", b, got, want)
				}
			}
		}
	}
}
