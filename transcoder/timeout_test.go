package transcoder_test

import (
	"math"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/transcoder"
)

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
		got, err := transcoder.ParseTimeout(c.in)
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
		if got := string(transcoder.AppendTimeout(nil, c.in)); got != c.want {
			t.Errorf("AppendTimeout(%v) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestParseConnectTimeout(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		code codes.Code
	}{
		{"0", 0, 0},
		{"1500", 1500 * time.Millisecond, 0},
		{"9999999999", 9999999999 * time.Millisecond, 0},
		{"12345678901", 0, codes.InvalidArgument},
		{"", 0, codes.InvalidArgument},
		{"-3", 0, codes.InvalidArgument},
		{"1.5", 0, codes.InvalidArgument},
	} {
		got, err := transcoder.ParseConnectTimeout(c.in)
		if got != c.want || status.Code(err) != c.code {
			t.Errorf("ParseConnectTimeout(%q) = %v, %v, want %v, %v", c.in, got, err, c.want, c.code)
		}
	}
}

func FuzzTimeout(f *testing.F) {
	f.Add("250m")
	f.Add("99999999H")
	f.Fuzz(func(t *testing.T, v string) {
		d, err := transcoder.ParseTimeout(v)
		if err != nil {
			return
		}
		if d < 0 {
			t.Fatalf("ParseTimeout(%q) = %v, want not negative", v, d)
		}
		text := string(transcoder.AppendTimeout(nil, d))
		again, err := transcoder.ParseTimeout(text)
		if err != nil || again < d {
			t.Errorf("%v as %q reads %v, %v, want not less", d, text, again, err)
		}
	})
}
