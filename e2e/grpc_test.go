package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/cmd/transom/demo/bank"
	bankv1 "transom/proto/bank/v1"
)

// dial connects a grpc-go client to the proxy.
func dial(t *testing.T, p *proxy, secure bool) *grpc.ClientConn {
	t.Helper()
	addr, creds := p.Plain, insecure.NewCredentials()
	if secure {
		addr, creds = p.Secure, credentials.NewClientTLSFromCert(p.pool, "")
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestGRPCClient is native gRPC by grpc-go, h2c and TLS: all four kinds of call, status, details, headers, trailers.
func TestGRPCClient(t *testing.T) {
	b := startBank(t, bank.Config{Name: "bank-1"})
	p := startTransom(t, "static:///"+b.addr)
	for name, secure := range map[string]bool{"h2c": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn := dial(t, p, secure)
			t.Run("unary with metadata", func(t *testing.T) {
				var header, trailer metadata.MD
				ctx := metadata.AppendToOutgoingContext(ctx, "x-request", "a", "x-request", "b", "x-key-bin", "\x00\xff", "grpc-internal", "no")
				resp, err := bankv1.NewDiagnosticsClient(conn).Metadata(ctx, &bankv1.MetadataRequest{
					Header: map[string]string{"x-one": "1"}, Trailer: map[string]string{"x-two-bin": "AQI="},
				}, grpc.Header(&header), grpc.Trailer(&trailer))
				if err != nil {
					t.Fatal(err)
				}
				if got := resp.GetMetadata()["x-request"].GetValues(); len(got) != 2 || got[0] != "a" || got[1] != "b" {
					t.Errorf("x-request at the backend: %q", got)
				}
				if header.Get("x-one") == nil || trailer.Get("x-two-bin") == nil {
					t.Errorf("header %v, trailer %v", header, trailer)
				}
				if resp.GetTimeout().AsDuration() <= 0 || resp.GetTimeout().AsDuration() > 15*time.Second {
					t.Errorf("timeout at the backend: %v, want the default of 15 s or less", resp.GetTimeout().AsDuration())
				}
			})
			t.Run("error with details", func(t *testing.T) {
				_, err := bankv1.NewAccountsClient(conn).Transfer(ctx, &bankv1.TransferRequest{
					Name: "customers/3/accounts/1", Destination: &bankv1.TransferRequest_Account{Account: "customers/1/accounts/1"},
					Amount: &bankv1.Money{Currency: "EUR", Units: 1 << 30},
				})
				st := status.Convert(err)
				var info *errdetails.ErrorInfo
				for _, d := range st.Details() {
					if i, ok := d.(*errdetails.ErrorInfo); ok {
						info = i
					}
				}
				if st.Code() != codes.FailedPrecondition || info.GetReason() != "INSUFFICIENT_FUNDS" {
					t.Errorf("%v %v", st, st.Details())
				}
			})
			t.Run("server stream", func(t *testing.T) {
				s, err := bankv1.NewDiagnosticsClient(conn).Generate(ctx, &bankv1.GenerateRequest{Count: 1000, SizeBytes: 1000})
				if err != nil {
					t.Fatal(err)
				}
				for i := range 1000 {
					m, err := s.Recv()
					if err != nil || len(m.GetPayload()) != 1000 {
						t.Fatalf("message %d: %v", i, err)
					}
				}
				if _, err := s.Recv(); err != io.EOF {
					t.Errorf("end: %v", err)
				}
			})
			t.Run("late error", func(t *testing.T) {
				s, err := bankv1.NewDiagnosticsClient(conn).FailLate(ctx, &bankv1.FailRequest{Code: 10, Message: "mid-stream", AfterMessages: 3, Details: true})
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for {
					if _, err = s.Recv(); err != nil {
						break
					}
					n++
				}
				if n != 3 || status.Code(err) != codes.Aborted || len(status.Convert(err).Details()) == 0 {
					t.Errorf("after %d messages: %v", n, err)
				}
			})
			t.Run("client stream", func(t *testing.T) {
				s, err := bankv1.NewAccountsClient(conn).Deposit(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for range 10 {
					if err := s.Send(&bankv1.DepositRequest{Name: "customers/1/accounts/1", Amount: &bankv1.Money{Currency: "EUR", Units: 1}}); err != nil {
						t.Fatal(err)
					}
				}
				if r, err := s.CloseAndRecv(); err != nil || r.GetDeposits() != 10 {
					t.Errorf("%v %v", r, err)
				}
			})
			t.Run("bidi stream", func(t *testing.T) {
				s, err := bankv1.NewSupportClient(conn).Chat(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for i := range 5 {
					if err := s.Send(&bankv1.ChatMessage{Author: "Ada", Text: "hello"}); err != nil {
						t.Fatal(err)
					}
					if _, err := s.Recv(); err != nil {
						t.Fatalf("answer %d: %v", i, err)
					}
				}
				_ = s.CloseSend()
				for {
					if _, err = s.Recv(); err != nil {
						break
					}
				}
				if err != io.EOF {
					t.Errorf("end: %v", err)
				}
			})
			t.Run("deadline", func(t *testing.T) {
				short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
				_, err := bankv1.NewDiagnosticsClient(conn).Slow(short, &bankv1.SlowRequest{Delay: durationpb.New(10 * time.Second)})
				if status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("%v", err)
				}
				expectCanceled(t, b, "/bank.v1.Diagnostics/Slow")
			})
			t.Run("cancel", func(t *testing.T) {
				inner, cancel := context.WithCancel(ctx)
				s, err := bankv1.NewSupportClient(conn).Chat(inner)
				if err != nil {
					t.Fatal(err)
				}
				_ = s.Send(&bankv1.ChatMessage{Text: "x"})
				_, _ = s.Recv()
				cancel()
				expectCanceled(t, b, "/bank.v1.Support/Chat")
			})
			t.Run("unknown method", func(t *testing.T) {
				if err := conn.Invoke(ctx, "/no.Such/Method", &bankv1.Money{}, &bankv1.Money{}); status.Code(err) != codes.Unimplemented {
					t.Errorf("%v", err)
				}
			})
			t.Run("health and reflection", func(t *testing.T) {
				h, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: "bank.v1.Accounts"})
				if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
					t.Errorf("%v %v", h, err)
				}
				s, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
				if err != nil {
					t.Fatal(err)
				}
				_ = s.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
				r, err := s.Recv()
				if err != nil || !strings.Contains(r.String(), "bank.v1.Accounts") {
					t.Errorf("%v %v", r, err)
				}
				_ = s.CloseSend()
				_, _ = s.Recv()
			})
		})
	}
}

// expectCanceled waits until the backend reports a call of method as cancelled, at most a second.
func expectCanceled(t *testing.T, b *backend, method string) {
	t.Helper()
	limit := time.After(time.Second)
	for {
		select {
		case m := <-b.canceled:
			if m == method {
				return
			}
		case <-limit:
			t.Errorf("%s was not cancelled at the backend within a second", method)
			return
		}
	}
}

// TestBackendGone kills the backend under open calls: each client gets a status.
func TestBackendGone(t *testing.T) {
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn := dial(t, p, false)
	s, err := bankv1.NewSupportClient(conn).Chat(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Send(&bankv1.ChatMessage{Text: "x"})
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	slow := make(chan error, 1)
	go func() {
		_, err := bankv1.NewDiagnosticsClient(conn).Slow(ctx, &bankv1.SlowRequest{Delay: durationpb.New(time.Minute)})
		slow <- err
	}()
	b.srv.Stop()
	for err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v", err)
	}
	if err := <-slow; status.Code(err) != codes.Unavailable {
		t.Errorf("the unary call ends with %v", err)
	}
	code, _, body := curl(t, "http://"+p.Plain+"/v1/customers/3/accounts/1")
	if code != 503 || strings.Contains(body, b.addr) || !strings.Contains(body, `"code":14`) {
		t.Errorf("REST: %d %s", code, body)
	}
}

// TestGHZ runs ghz through the proxy: unary and server streams, no error among them.
func TestGHZ(t *testing.T) {
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	ghz, err := filepath.Abs("../build/tools/ghz")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ call, data string }{
		{"bank.v1.Accounts/Get", `{"name":"customers/3/accounts/1"}`},
		{"bank.v1.Diagnostics/Generate", `{"count":20,"size_bytes":100}`},
	} {
		for name, addr := range map[string]string{"direct": b.addr, "through transom": p.Plain} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			cmd := exec.CommandContext(ctx, ghz, "--insecure", "--call", tc.call, "-d", tc.data, "-n", "2000", "-c", "20", "-O", "json", addr)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			cancel()
			if err != nil {
				t.Fatalf("ghz %s: %v: %s", name, err, stderr.String())
			}
			var report struct {
				Count                  int
				Rps                    float64
				StatusCodeDistribution map[string]int
			}
			if err := json.Unmarshal(out, &report); err != nil {
				t.Fatal(err)
			}
			if report.StatusCodeDistribution["OK"] != 2000 {
				t.Errorf("%s %s: %v", tc.call, name, report.StatusCodeDistribution)
			}
			t.Logf("%s %s: %.0f calls/s", tc.call, name, report.Rps)
		}
	}
}
