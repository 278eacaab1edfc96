package transcoder_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/transcoder"
)

func TestForwarded(t *testing.T) {
	for name, want := range map[string]bool{
		"forwarded": true, "x-forwarded-for": true, "x_forwarded_for": true, "x.forwarded-host": true, "x-forwarded-for-bin": true, "x-forwarded-client-cert": true,
		"x-real-ip": true, "x-real_ip": true, "true-client-ip": true, "cf-connecting-ip": true, "x-envoy-external-address": true, "x-original-forwarded-for": true,
		"x-client-ip": true, "x-cluster-client-ip": true, "fastly-client-ip": true,
		"": false, "x": false, "x-request-id": false, "forwarder": false, "x-real-ip-2": false, "x-transom-consumer": false, "traceparent": false, "content-language": false,
		"x-real-ip" + strings.Repeat("-", 40): false,
	} {
		if got := transcoder.Forwarded(name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestRequestMetadata(t *testing.T) {
	for _, c := range []struct {
		name  string
		in    http.Header
		want  metadata.MD
		fault string
	}{
		{name: "104 order", in: http.Header{"X-A": {"2", "1"}}, want: metadata.MD{"x-a": {"2", "1"}}},
		{name: "99 binary", in: http.Header{"X-Bin": {"aGk=, aGVsbG8", "AA"}}, want: metadata.MD{"x-bin": {"hi", "hello", "\x00"}}},
		{name: "99 not base64", in: http.Header{"X-Bin": {"!"}}, fault: "header x-bin: the value is not base64"},
		{name: "100 hop by hop", in: http.Header{
			"Connection": {"keep-alive, X-Hop"}, "Keep-Alive": {"1"}, "Te": {"trailers"}, "Upgrade": {"x"}, "Trailer": {"x"},
			"Transfer-Encoding": {"chunked"}, "Proxy-Authorization": {"x"}, "X-Hop": {"1"}, "X-A": {"1"},
		}, want: metadata.MD{"x-a": {"1"}}},
		{name: "101 reserved", in: http.Header{
			"Grpc-Status": {"0"}, "Grpc-Timeout": {"1S"}, ":path": {"/"}, "Host": {"x"}, "Content-Type": {"x"}, "Content-Length": {"1"},
			"Sec-Websocket-Key": {"x"}, "Connect-Timeout-Ms": {"1"},
		}},
		{name: "111 gRPC-Web", in: http.Header{"X-Grpc-Web": {"1"}, "X-User-Agent": {"x"}}},
		{name: "101 not ASCII", in: http.Header{"X-A": {"é"}}, fault: "header x-a: the value"},
		{name: "101 not ASCII, unasked", in: http.Header{"Cookie": {"é"}, "Referer": {"http://x"}}, want: metadata.MD{"referer": {"http://x"}}},
		{name: "101 name", in: http.Header{"X!": {"a"}}, fault: `header "X!"`},
		{name: "identity", in: http.Header{
			"X-Transom-Consumer": {"x"}, "X_transom_consumer": {"x"}, "X.transom.plan": {"x"}, "X-Transom_groups": {"x"}, "X-Transomx": {"1"}, "X-T": {"1"},
		}, want: metadata.MD{"x-transomx": {"1"}, "x-t": {"1"}}},
		{name: "forwarded", in: http.Header{
			"X-Forwarded-For": {"a"}, "X_forwarded_for": {"b"}, "X-Real-Ip": {"c"}, "X_real_ip": {"d"}, "X-Real.ip": {"e"}, "Forwarded": {"f"}, "X-Really": {"g"}, "X_really": {"h"},
		}, want: metadata.MD{"x-forwarded-for": {"a"}, "x-real-ip": {"c"}, "forwarded": {"f"}, "x-really": {"g"}, "x_really": {"h"}}},
		{name: "white space around", in: http.Header{"X-A": {"a", " \tb c\t ", "  ", ""}, "Authorization": {" bearer x"}}, want: metadata.MD{"x-a": {"a", "b c", "", ""}, "authorization": {"bearer x"}}},
		{name: "authorization", in: http.Header{"Authorization": {"Bearer x"}}, want: metadata.MD{"authorization": {"Bearer x"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := transcoder.RequestMetadata(c.in)
			if c.fault != "" {
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.fault) {
					t.Errorf("got %v, want InvalidArgument about %q", err, c.fault)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v, (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestValues puts each byte at each place of values of various lengths.
func TestValues(t *testing.T) {
	for n := 1; n <= 20; n++ {
		for at := range n {
			for c := range 256 {
				b := []byte(strings.Repeat("~ 0z~ 9!", 3)[:n])
				b[at] = byte(c)
				v := []string{string(b)}
				_, got, err := transcoder.RequestField("x-field", v, nil)
				want := strings.Trim(v[0], " \t") // a tab at either end goes, RFC 9110 section 5.5
				bad := strings.IndexByte(want, byte(c)) >= 0 && (c < 0x20 || c > 0x7E)
				if (err != nil) != bad || err == nil && got[0] != want {
					t.Fatalf("%q as metadata: %q, %v", v, got, err)
				}
				h := http.Header{}
				transcoder.AddHeader(h, metadata.MD{"x-field": v}, "")
				if left := h["X-Field"]; (left == nil) != (c < 0x20 && c != '\t' || c == 0x7F) {
					t.Fatalf("%q as a field: %q", v, left)
				}
			}
		}
	}
}

func TestAddHeader(t *testing.T) {
	h := http.Header{"X-A": {"0"}}
	transcoder.AddHeader(h, metadata.MD{
		"x-a": {"1", "2"}, "x-bin": {"\x00\xFF", "hi"}, "set-cookie": {"a=1", "b=2"}, "grpc-status": {"0"}, "content-type": {"x"},
		"x-cut": {"a\r\nb: c", "fine"}, "connection": {"close"}, "date": {"today"}, "user-agent": {"b/1"},
	}, "")
	transcoder.AddHeader(h, metadata.MD{"x-a": {"3"}}, "Trailer-")
	want := http.Header{
		"X-A": {"0", "1", "2"}, "X-Bin": {"AP8", "aGk"}, "Set-Cookie": {"a=1", "b=2"}, "X-Cut": {"fine"}, "Trailer-X-A": {"3"}, "User-Agent": {"b/1"},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAppendTrailerBlock(t *testing.T) {
	got := string(transcoder.AppendTrailerBlock(nil, codes.NotFound, "no\nsuch é", []byte{0xFF}, metadata.MD{
		"x-b": {"2", "bad\n"}, "a-bin": {"\x00"}, "grpc-status": {"0"},
	}))
	want := "grpc-status: 5\r\ngrpc-message: no%0Asuch %C3%A9\r\ngrpc-status-details-bin: /w\r\na-bin: AA\r\nx-b: 2\r\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func BenchmarkRequestMetadata(b *testing.B) {
	h := http.Header{
		"Accept": {"*/*"}, "Accept-Encoding": {"gzip"}, "Authorization": {"Bearer x"}, "Content-Type": {"application/json"},
		"User-Agent": {"curl"}, "X-Request-Id": {"1"},
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := transcoder.RequestMetadata(h); err != nil {
			b.Fatal(err)
		}
	}
}
