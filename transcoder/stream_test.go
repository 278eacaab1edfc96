package transcoder_test

import (
	"encoding/json"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/transcoder"
)

// Cases 94 to 96.
func TestStreamFormats(t *testing.T) {
	const failure = `{"code":14,"message":"gone","details":[]}`
	_, ps := plans(t, transcoder.Options{})
	for _, c := range []struct {
		format transcoder.StreamFormat
		n      int64
		fail   bool
		want   string
	}{
		{transcoder.StreamNDJSON, 0, false, ""},
		{transcoder.StreamNDJSON, 2, false, "{}\n{}\n"},
		{transcoder.StreamNDJSON, 1, true, "{}\n{\"@error\":" + failure + "}\n"},
		{transcoder.StreamSSE, 0, false, "event: end\ndata: {}\n\n"},
		{transcoder.StreamSSE, 2, false, "data: {}\n\ndata: {}\n\nevent: end\ndata: {}\n\n"},
		{transcoder.StreamSSE, 1, true, "data: {}\n\nevent: error\ndata: " + failure + "\n\n"},
		{transcoder.StreamArray, 0, false, "[]\n"},
		{transcoder.StreamArray, 2, false, "[{}\n,{}\n]\n"},
		{transcoder.StreamArray, 1, true, "[{}\n,{\"@error\":" + failure + "}\n"},
	} {
		var got []byte
		for i := range c.n {
			got = c.format.AppendAfter(append(c.format.AppendBefore(got, i), "{}"...))
		}
		if c.fail {
			got = ps.AppendStreamError(got, c.format, c.n, status.New(codes.Unavailable, "gone"), 503)
		} else {
			got = c.format.AppendEnd(got, c.n)
		}
		if string(got) != c.want {
			t.Errorf("%s after %d, failed %v: got %q, want %q", c.format.ContentType(), c.n, c.fail, got, c.want)
		}
		if c.format == transcoder.StreamArray && json.Valid(got) == c.fail {
			t.Errorf("%q is valid JSON: %v", got, !c.fail)
		}
	}
}

// The shape of AIP-193 is not wrapped twice.
func TestStreamErrorAIP193(t *testing.T) {
	_, ps := plans(t, transcoder.Options{ErrorShape: transcoder.ErrorAIP193})
	got := string(ps.AppendStreamError(nil, transcoder.StreamNDJSON, 1, status.New(codes.Unavailable, "gone"), 503))
	if want := `{"@error":{"code":503,"message":"gone","status":"UNAVAILABLE","details":[]}}` + "\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
