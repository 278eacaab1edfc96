package transcoder_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/transcoder"
)

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
