package transcoder

import (
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// MaxTimeout is what a timeout too long for time.Duration becomes, some 292 years.
const MaxTimeout = time.Duration(math.MaxInt64)

// ParseTimeout reads a grpc-timeout value: 1 to 8 digits and one unit of H M S m u n, so "250m" is 250 ms and "0n" ends
// the call at once. A value past time.Duration saturates to MaxTimeout; a malformed one is InvalidArgument.
// Source: gRPC over HTTP/2, "Timeout".
func ParseTimeout(v string) (time.Duration, error) {
	if len(v) < 2 || len(v) > 9 {
		return 0, badTimeout("grpc-timeout", v)
	}
	var unit time.Duration
	switch v[len(v)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, badTimeout("grpc-timeout", v)
	}
	n, ok := digits(v[:len(v)-1])
	if !ok {
		return 0, badTimeout("grpc-timeout", v)
	}
	return times(n, unit), nil
}

// AppendTimeout appends d as a grpc-timeout value, in the finest unit that needs no more than 8 digits, rounded up, so
// that the receiver never gives up before the sender. d <= 0 is "0n".
func AppendTimeout(dst []byte, d time.Duration) []byte {
	if d <= 0 {
		return append(dst, "0n"...)
	}
	units := [...]struct {
		d time.Duration
		c byte
	}{
		{time.Nanosecond, 'n'},
		{time.Microsecond, 'u'},
		{time.Millisecond, 'm'},
		{time.Second, 'S'},
		{time.Minute, 'M'},
		{time.Hour, 'H'},
	}
	for _, u := range units {
		n := int64(d / u.d)
		if d%u.d != 0 {
			n++
		}
		if n < 1e8 || u.c == 'H' {
			return append(strconv.AppendInt(dst, n, 10), u.c)
		}
	}
	return dst
}

// ParseConnectTimeout reads a Connect-Timeout-Ms value: 1 to 10 digits, milliseconds. A malformed one is
// InvalidArgument. Source: Connect protocol, "Timeout".
func ParseConnectTimeout(v string) (time.Duration, error) {
	n, ok := digits(v)
	if !ok || len(v) > 10 {
		return 0, badTimeout("connect-timeout-ms", v)
	}
	return times(n, time.Millisecond), nil
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

// times is n×unit, saturated.
func times(n int64, unit time.Duration) time.Duration {
	if n > int64(MaxTimeout/unit) {
		return MaxTimeout
	}
	return time.Duration(n) * unit
}

func badTimeout(name, v string) error {
	return status.Errorf(codes.InvalidArgument, "header %s: %q is not a timeout", name, clip(v))
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
