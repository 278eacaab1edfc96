package grpcwire

import (
	"math"
	"strconv"
	"time"

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
		return 0, badTimeout(v)
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
		return 0, badTimeout(v)
	}
	var n int64
	for _, c := range []byte(v[:len(v)-1]) {
		if c < '0' || c > '9' {
			return 0, badTimeout(v)
		}
		n = n*10 + int64(c-'0')
	}
	if n > int64(MaxTimeout/unit) {
		return MaxTimeout, nil
	}
	return time.Duration(n) * unit, nil
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

func badTimeout(v string) error {
	return status.Errorf(codes.InvalidArgument, "header grpc-timeout: %q is not a timeout", v[:min(len(v), 64)])
}
