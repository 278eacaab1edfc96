package traffic

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// untold is a Stream that takes no header.
type untold struct{ rpc.Stream }

func (untold) SendHeader(metadata.MD) error { return rpc.ErrHeaderSent }

// TestDeprecatedUntold: a call that ended well became an error when its client could not be told of the deprecation.
func TestDeprecatedUntold(t *testing.T) {
	h := rpc.Chain(func(context.Context, *rpc.Call) error { return nil }, Deprecated(Deprecation{Link: "https://bank.example/v2"}))
	if err := h(t.Context(), &rpc.Call{Method: method(), Info: &rpc.Info{}, Stream: untold{}}); err != nil {
		t.Error(err)
	}
}

// answer sends one message with header.
func answer(header metadata.MD) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		if header != nil {
			if err := call.Stream.SendHeader(header); err != nil {
				return err
			}
		}
		return call.Stream.Send(ctx, rpc.Message{})
	}
}

func TestFaults(t *testing.T) {
	h := rpc.Chain(answer(nil), Faults([]Fault{
		{Share: 1, Delay: 3 * time.Second},
		{When: []Condition{{"x-fault", Exact, "abort"}}, Share: 1, Delay: time.Second, Abort: codes.Unavailable},
	}))
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if _, err := rpc.Local(t.Context(), h, method(), nil); err != nil || time.Since(began) != 3*time.Second {
			t.Errorf("delayed: %v after %v", err, time.Since(began))
		}
		began = time.Now()
		r, err := rpc.Local(t.Context(), h, method(), metadata.MD{"x-fault": {"abort"}})
		st := status.Convert(err)
		if st.Code() != codes.Unavailable || time.Since(began) != 4*time.Second || len(r.Messages) > 0 {
			t.Errorf("aborted: %v after %v", err, time.Since(began))
		}
		if info, ok := st.Details()[0].(*errdetails.ErrorInfo); !ok || info.GetReason() != "FAULT_INJECTED" {
			t.Errorf("details %v", st.Details())
		}
		if r.Info.ErrorSource != rpc.SourceGateway || r.Info.Notes.Get("fault") != "abort" {
			t.Errorf("info %+v", r.Info)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if _, err := rpc.Local(ctx, h, method(), nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("with a deadline: %v after %v", err, time.Since(began))
		}
	})
}

// TestFaultShare has a share of calls fail: 10,000 calls, within five standard deviations of the binomial distribution, which
// fails once in 1.7 million runs.
func TestFaultShare(t *testing.T) {
	const n, p = 10_000, 0.2
	h := rpc.Chain(answer(nil), Faults([]Fault{{Share: p, Abort: codes.Internal}}))
	failed := 0
	for range n {
		if _, err := rpc.Local(t.Context(), h, method(), nil); err != nil {
			failed++
		}
	}
	if d := math.Abs(float64(failed) - n*p); d > 5*math.Sqrt(n*p*(1-p)) {
		t.Errorf("%d of %d calls failed, want about %v", failed, n, n*p)
	}
}

func TestDeprecated(t *testing.T) {
	d := Deprecation{
		Since: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Sunset: time.Date(2027, 6, 30, 12, 0, 0, 0, time.FixedZone("", 3600)),
		Link: "https://bank.example/v2",
	}
	want := map[string][]string{
		"deprecation": {"@1767225600"}, "sunset": {"Wed, 30 Jun 2027 11:00:00 GMT"}, "link": {`<https://bank.example/v2>; rel="deprecation"`},
	}
	for what, tc := range map[string]struct {
		h    rpc.Handler
		over map[string][]string // beside want
	}{
		"without a header of its own": {answer(nil), nil},
		"with one":                    {answer(metadata.MD{"x": {"y"}}), map[string][]string{"x": {"y"}}},
		"that knows better": {
			answer(metadata.MD{"sunset": {"now"}, "link": {"<a>"}}),
			map[string][]string{"sunset": {"now"}, "link": {"<a>", `<https://bank.example/v2>; rel="deprecation"`}},
		},
		"refused":           {func(context.Context, *rpc.Call) error { return status.Error(codes.NotFound, "no") }, nil},
		"without any":       {func(_ context.Context, c *rpc.Call) error { return c.Stream.SendHeader(nil) }, nil},
		"without a message": {func(context.Context, *rpc.Call) error { return nil }, nil},
		"of many calls":     {answer(metadata.MD{}), nil},
	} {
		r, err := rpc.Local(t.Context(), rpc.Chain(tc.h, Deprecated(d)), method(), nil)
		got := r.Header
		if err != nil {
			got = rpc.HeaderOf(err)
		}
		for k, v := range want {
			if over := tc.over[k]; over != nil {
				v = over
			}
			if !slices.Equal(got[k], v) {
				t.Errorf("%s: %s is %q, want %q", what, k, got[k], v)
			}
		}
		if x := tc.over["x"]; !slices.Equal(got["x"], x) {
			t.Errorf("%s: %v", what, got)
		}
	}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	if err := (Deprecation{Since: d.Sunset, Sunset: d.Since}).Validate(); err == nil {
		t.Error("a sunset before the deprecation is sound")
	}
	if md := (Deprecation{Sunset: d.Sunset}).header(); len(md) != 1 {
		t.Errorf("a sunset alone says %v", md)
	}
}
