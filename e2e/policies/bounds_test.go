package policies_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	bankv1 "transom/proto/bank/v1"
)

// TestSizeOfMessages holds a method's requests to its own bound, over REST, gRPC and WebSocket, decoded and as protobuf, while
// other methods have the general one; a reload changes it.
func TestSizeOfMessages(t *testing.T) {
	text := example(t, "Size and time")
	p := start(t, text)
	echo := func(what string, in *bankv1.Everything, fits bool) {
		p.everywhere(t, nil, in, func(t *testing.T, out *bankv1.Everything, o outcome) {
			t.Helper()
			switch {
			case fits && len(out.GetText()) != len(in.GetText()):
				t.Errorf("%s: %v %s", what, o.code, o.message)
			case !fits && out != nil, !fits && o.code != codes.ResourceExhausted && !strings.HasPrefix(o.message, "message is larger"): // of a WebSocket, close 1009
				t.Errorf("%s: %v %s; want it refused", what, o.code, o.message)
			case !fits && (o.http != 0 && o.http != http.StatusRequestEntityTooLarge || !strings.Contains(o.message, "16384 bytes")):
				t.Errorf("%s: HTTP %d, %s", what, o.http, o.message)
			}
		})
	}
	echo("below the bound", &bankv1.Everything{Text: strings.Repeat("x", 16_000)}, true)
	echo("over it", &bankv1.Everything{Text: strings.Repeat("x", 17_000)}, false)
	// The general bound is 4 MiB.
	if o := p.post(t, "/v1/accounts:deposit", `{"name":"`+strings.Repeat("x", 17_000)+`"}`, nil); o.http == http.StatusRequestEntityTooLarge {
		t.Errorf("a method without a bound of its own: %d %s", o.http, o.message)
	}
	p.reload(t, strings.Replace(text, "message_bytes: 16384", "message_bytes: 18000", 1))
	echo("within a wider bound", &bankv1.Everything{Text: strings.Repeat("x", 17_000)}, true)
}

func TestBoundsMisconfigured(t *testing.T) {
	for field, want := range map[string]string{
		"message_bytes: 3GiB":       "3:18: message_bytes: must be less than or equal to 2147483647",
		"timeout: 0s":               "3:12: timeout: must be greater than or equal to 0.001s and less than or equal to 86400s",
		"timeout: 25h":              "3:12: timeout: must be greater than or equal to 0.001s and less than or equal to 86400s",
		"timeout: soon":             "3:12: timeout: invalid number, expected digit",
		"stream_timeout: 1ms":       "3:19: stream_timeout: must be greater than or equal to 1s and less than or equal to 2592000s",
		"stream_idle_timeout: 10ms": "3:24: stream_idle_timeout: must be greater than or equal to 1s and less than or equal to 86400s",
	} {
		if found := faults(t, "\npolicies:\n- "+field+"\n  selector: bank.v1.Diagnostics.*\n"); !slices.Equal(found, []string{want}) {
			t.Errorf("%s: %q, want %q", field, found, want)
		}
	}
}

// TestTimeouts ends calls that take longer than their method may, over REST, gRPC and WebSocket; clients may ask for less, not for
// more.
func TestTimeouts(t *testing.T) {
	p := start(t, example(t, "Size and time"))
	slow := map[string]func(t *testing.T, delay time.Duration, timeout string) outcome{
		"REST": func(t *testing.T, delay time.Duration, timeout string) outcome {
			t.Helper()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%s/v1/diagnostics/slow?delay=%gs", p.url("http"), delay.Seconds()), nil)
			if err != nil {
				t.Fatal(err)
			}
			if timeout != "" {
				r.Header.Set("Grpc-Timeout", timeout)
			}
			resp, err := p.http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			return ofHTTP(t, resp)
		},
		"gRPC": func(t *testing.T, delay time.Duration, timeout string) outcome {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), map[string]time.Duration{"": patience, "100m": 100 * time.Millisecond, "1H": time.Hour}[timeout])
			defer cancel()
			_, err := bankv1.NewDiagnosticsClient(p.conn).Slow(ctx, &bankv1.SlowRequest{Delay: durationpb.New(delay)})
			return ofStatus(err)
		},
		"WebSocket": func(t *testing.T, delay time.Duration, timeout string) outcome {
			t.Helper()
			h := map[string]string{}
			if timeout != "" {
				h["grpc-timeout"] = timeout
			}
			_, o := p.webSocket(t, fmt.Sprintf("/v1/diagnostics/slow?delay=%gs", delay.Seconds()), h)
			return o
		},
	}
	for name, call := range slow {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := call(t, 0, "")
			for deadline := time.Now().Add(patience); o.code == codes.DeadlineExceeded && time.Now().Before(deadline); { // so busy a machine
				o = call(t, 0, "")
			}
			if o.code != codes.OK {
				t.Errorf("at once: %v %s", o.code, o.message)
			}
			for _, timeout := range []string{"", "100m", "1H"} {
				began := time.Now()
				o := call(t, time.Minute, timeout)
				took := time.Since(began)
				if o.code != codes.DeadlineExceeded || o.http != 0 && o.http != http.StatusGatewayTimeout {
					t.Errorf("timeout %q: %v, HTTP %d, %s", timeout, o.code, o.http, o.message)
				}
				if timeout == "100m" && took < 100*time.Millisecond || timeout != "100m" && took < time.Second {
					t.Errorf("timeout %q: over after %v", timeout, took)
				}
			}
		})
	}
}

// TestStreamTimeout ends streams that take longer than their method may, over REST, gRPC and WebSocket.
func TestStreamTimeout(t *testing.T) {
	p := start(t, "policies: [{selector: bank.v1.Accounts.*, stream_timeout: 2s}]\n")
	callGRPC(t, p, nil).wantOK(t, "what the streams need not wait for: the connection to the bank")
	const account = "customers/1/accounts/1"
	for name, watch := range map[string]func(ctx context.Context, t *testing.T) (n int, o outcome){
		"REST": func(ctx context.Context, t *testing.T) (int, outcome) {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url("http")+"/v1/"+account+"/transactions:watch", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := p.http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(body)), "\n")
			if last := lines[len(lines)-1]; !strings.Contains(last, `"code":4`) {
				t.Fatalf("the last line is %s", last)
			}
			return len(lines) - 1, outcome{code: codes.DeadlineExceeded}
		},
		"gRPC": func(ctx context.Context, t *testing.T) (n int, _ outcome) {
			s, err := bankv1.NewAccountsClient(p.conn).Watch(ctx, &bankv1.WatchRequest{Name: account})
			for ; err == nil; n++ {
				_, err = s.Recv()
			}
			return n - 1, ofStatus(err)
		},
		"WebSocket": func(_ context.Context, t *testing.T) (int, outcome) {
			answers, o := p.webSocket(t, "/v1/"+account+"/transactions:watch", nil)
			return len(answers), o
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			began := time.Now()
			n, o := watch(ctx, t)
			if took := time.Since(began); o.code != codes.DeadlineExceeded || n < 1 || took < 2*time.Second {
				t.Errorf("%v %s, after %d messages and %v", o.code, o.message, n, took)
			}
		})
	}
}
