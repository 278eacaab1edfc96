package transcoder

import (
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ParseConnectTimeout reads a Connect-Timeout-Ms value: 1 to 10 digits, milliseconds. A malformed one is
// InvalidArgument. Source: Connect protocol, "Timeout".
func ParseConnectTimeout(v string) (time.Duration, error) {
	n, ok := digits(v)
	if !ok || len(v) > 10 {
		return 0, status.Errorf(codes.InvalidArgument, "header connect-timeout-ms: %q is not a timeout", clip(v))
	}
	return time.Duration(n) * time.Millisecond, nil
}

// digits reads 1 to 18 decimal digits.
func digits(s string) (n int64, ok bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + int64(c)
	}
	return n, true
}

// clip shortens what a client sent to what an error message needs to show of it, and copies it.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return strings.Clone(s)
	}
	n := most
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
