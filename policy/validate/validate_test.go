package validate_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"transom/cmd/transom/demo/bank"
	"transom/descriptors"
	"transom/policy/validate"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
	"transom/rpc/rpctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func schema(tb testing.TB) *descriptors.Schema {
	tb.Helper()
	set, err := descriptors.FromBytes("bank", bank.DescriptorSet())
	if err != nil {
		tb.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func method(tb testing.TB, s *descriptors.Schema, path string) *descriptors.Method {
	tb.Helper()
	m, ok := s.Method(path)
	if !ok {
		tb.Fatalf("no method %s", path)
	}
	return m
}

func wire(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// count receives all messages and counts them.
func count(n *int) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		for {
			m, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			m.Release()
			*n++
		}
	}
}

func TestNoRules(t *testing.T) {
	s := schema(t)
	mw, err := validate.NewCompiler(s.Types()).Middleware(method(t, s, "/bank.v1.Rates/Get"))
	if mw != nil || err != nil {
		t.Errorf("a method without rules has a middleware (%v)", err)
	}
	if _, err := validate.NewCompiler(s.Types()).Middleware(descriptors.Opaque("/a/B")); err == nil {
		t.Error("an opaque method is taken")
	}
}

func TestUnary(t *testing.T) {
	s := schema(t)
	mw, err := validate.NewCompiler(s.Types()).Middleware(method(t, s, "/bank.v1.Accounts/Transfer"))
	if err != nil {
		t.Fatal(err)
	}
	good := &bankv1.TransferRequest{Name: "customers/1/accounts/1", Destination: &bankv1.TransferRequest_Account{Account: "7"}, Amount: &bankv1.Money{Currency: "EUR", Units: 1}}
	for _, tc := range []struct {
		name string
		msg  []byte
		want map[string]string // field to reason; nil for a good one
	}{
		{"good", wire(t, good), nil},
		{"empty", nil, map[string]string{"name": "REQUIRED", "amount": "REQUIRED", "destination": "REQUIRED"}},
		{"nested", wire(t, &bankv1.TransferRequest{Name: "a", Destination: good.Destination, Amount: &bankv1.Money{Currency: "euro"}}), map[string]string{"amount.currency": "STRING_LEN"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var n int
			c := rpctest.Start(t.Context(), mw(count(&n)), method(t, s, "/bank.v1.Accounts/Transfer"), nil)
			if err := c.Send(tc.msg); err != nil {
				t.Fatal(err)
			}
			_ = c.CloseSend()
			st := rpc.StatusOf(c.Wait())
			got := map[string]string{}
			for _, d := range st.Details() {
				if bad, ok := d.(*errdetails.BadRequest); ok {
					for _, v := range bad.GetFieldViolations() {
						got[v.GetField()] = v.GetReason()
					}
				}
			}
			if tc.want == nil {
				if st.Code() != codes.OK || n != 1 {
					t.Fatalf("%v, %d messages passed", st, n)
				}
				return
			}
			if st.Code() != codes.InvalidArgument || n != 0 {
				t.Errorf("%v, %d messages passed", st, n)
			}
			for f := range tc.want {
				if _, ok := got[f]; !ok {
					t.Errorf("no violation of %s in %v", f, got)
				}
			}
			if len(got) < len(tc.want) {
				t.Errorf("violations %v, want %v", got, tc.want)
			}
		})
	}
	t.Run("not a message", func(t *testing.T) {
		var n int
		c := rpctest.Start(t.Context(), mw(count(&n)), method(t, s, "/bank.v1.Accounts/Transfer"), nil)
		_ = c.Send([]byte{0x0a, 0x7f})
		_ = c.CloseSend()
		if err := c.Wait(); rpc.StatusOf(err).Code() != codes.InvalidArgument || n != 0 {
			t.Errorf("%v, %d passed", err, n)
		}
	})
	t.Run("no message", func(t *testing.T) {
		var n int
		c := rpctest.Start(t.Context(), mw(count(&n)), method(t, s, "/bank.v1.Accounts/Transfer"), nil)
		_ = c.CloseSend()
		if err := c.Wait(); err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("the missing message is not left to the next handler: %v", err)
		}
	})
}

// TestStream refuses the message that is bad, and lets those before it through.
func TestStream(t *testing.T) {
	s := schema(t)
	mw, err := validate.NewCompiler(s.Types()).Middleware(method(t, s, "/bank.v1.Accounts/Deposit"))
	if err != nil {
		t.Fatal(err)
	}
	var n int
	c := rpctest.Start(t.Context(), mw(count(&n)), method(t, s, "/bank.v1.Accounts/Deposit"), nil)
	for _, currency := range []string{"EUR", "EUR", "euros", "EUR"} {
		_ = c.Send(wire(t, &bankv1.DepositRequest{Name: "7", Amount: &bankv1.Money{Currency: currency, Units: 1}}))
	}
	_ = c.CloseSend()
	if st := rpc.StatusOf(c.Wait()); st.Code() != codes.InvalidArgument || n != 2 {
		t.Errorf("%v after %d messages, want InvalidArgument after 2", st, n)
	}
}

// TestPredefined: rules that a schema defines itself were unknown, and every method that has one was refused.
func TestPredefined(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "shop.proto"), []byte(`edition = "2023";
package shop.v1;
import "buf/validate/validate.proto";
extend buf.validate.StringRules {
  bool no_spaces = 80048952 [(buf.validate.predefined).cel = {id: "string.no_spaces" message: "must have no spaces" expression: "!rule || !this.contains(' ')"}];
}
service Shop { rpc Buy(Order) returns (Order); }
message Order { string name = 1 [(buf.validate.field).string.(no_spaces) = true]; }
`), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := descriptors.FromProto(t.Context(), []string{dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := method(t, s, "/shop.v1.Shop/Buy")
	mw, err := validate.NewCompiler(s.Types()).Middleware(m)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"tea": "", "green tea": "name: must have no spaces"} {
		var n int
		c := rpctest.Start(t.Context(), mw(count(&n)), m, nil)
		_ = c.Send(append([]byte{0x0a, byte(len(name))}, name...))
		_ = c.CloseSend()
		if got := rpc.StatusOf(c.Wait()).Message(); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	s := schema(b)
	m := method(b, s, "/bank.v1.Accounts/Transfer")
	mw, err := validate.NewCompiler(s.Types()).Middleware(m)
	if err != nil {
		b.Fatal(err)
	}
	var n int
	h := mw(count(&n))
	msg := rpc.NewMessage(wire(b, &bankv1.TransferRequest{Name: "customers/1/accounts/1", Destination: &bankv1.TransferRequest_Account{Account: "7"}, Amount: &bankv1.Money{Currency: "EUR", Units: 1}}))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rpc.Local(b.Context(), h, m, nil, msg.Retain()); err != nil {
			b.Fatal(err)
		}
	}
}
