package policies_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/coder/websocket"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/cmd/transom/demo/bank"
	bankv1 "transom/proto/bank/v1"
)

// post makes a REST call with a JSON body.
func (p *proxy) post(t *testing.T, path, body string, header map[string]string) outcome {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for k, v := range header {
		r.Header.Set(k, v)
	}
	resp, err := p.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return ofHTTP(t, resp)
}

// webSocket sends messages over one WebSocket and returns the answers, and how the call ended.
func (p *proxy) webSocket(t *testing.T, path string, header map[string]string, msgs ...string) ([]string, outcome) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	h := http.Header{}
	for k, v := range header {
		h.Set(k, v)
	}
	c, resp, err := websocket.Dial(ctx, "ws://"+p.addr+path, &websocket.DialOptions{HTTPHeader: h})
	if err != nil {
		if resp == nil {
			t.Fatal(err)
		}
		return nil, ofHTTP(t, resp)
	}
	defer c.CloseNow()
	for _, m := range msgs {
		if err := c.Write(ctx, websocket.MessageText, []byte(m)); err != nil {
			break // the close frame says why
		}
	}
	var answers []string
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			var ce websocket.CloseError
			if !errors.As(err, &ce) {
				t.Fatal(err)
			}
			o := outcome{message: ce.Reason}
			if ce.Code >= 4000 {
				o.code = codes.Code(ce.Code - 4000)
			}
			return answers, o
		}
		answers = append(answers, string(bytes.TrimSpace(b)))
	}
}

func TestValidate(t *testing.T) {
	p := start(t, example(t, "Validation"))
	const path = "/v1/customers/1/accounts/1:transfer"
	const good = `{"account":"7","amount":{"currency":"EUR","units":"1"}}`
	const bad = `{"account":"7","amount":{"currency":"euro","units":"1"}}`

	t.Run("REST", func(t *testing.T) {
		p.post(t, path, bad, nil).want(t, "bad", codes.InvalidArgument, 400, "REQUEST_INVALID")
		var fields []string
		for _, d := range p.post(t, path, bad, nil).details {
			b, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			var br struct{ FieldViolations []struct{ Field string } }
			if err := json.Unmarshal(b, &br); err != nil {
				t.Fatal(err)
			}
			for _, v := range br.FieldViolations {
				fields = append(fields, v.Field)
			}
		}
		if len(fields) == 0 || fields[0] != "amount.currency" {
			t.Errorf("fields %q, want amount.currency", fields)
		}
		p.post(t, path, good, nil).wantOK(t, "good")
	})
	t.Run("gRPC", func(t *testing.T) {
		req := &bankv1.TransferRequest{Name: "1", Destination: &bankv1.TransferRequest_Account{Account: "7"}, Amount: &bankv1.Money{Currency: "euro", Units: 1}}
		_, err := bankv1.NewAccountsClient(p.conn).Transfer(t.Context(), req)
		st := status.Convert(err)
		var field string
		for _, d := range st.Details() {
			if br, ok := d.(*errdetails.BadRequest); ok {
				field = br.GetFieldViolations()[0].GetField()
			}
		}
		if st.Code() != codes.InvalidArgument || field != "amount.currency" {
			t.Errorf("%v, field %q", st, field)
		}
		req.Amount.Currency = "EUR"
		if _, err := bankv1.NewAccountsClient(p.conn).Transfer(t.Context(), req); err != nil {
			t.Error(err)
		}
		// A stream: the third message is bad.
		stream, err := bankv1.NewAccountsClient(p.conn).Deposit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, currency := range []string{"EUR", "EUR", "euro"} {
			_ = stream.Send(&bankv1.DepositRequest{Name: "7", Amount: &bankv1.Money{Currency: currency, Units: 1}})
		}
		if _, err := stream.CloseAndRecv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("bad message of a stream: %v", err)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		_, o := p.webSocket(t, "/v1/accounts:deposit", nil, `{"name":"7","amount":{"currency":"EUR","units":"1"}}`, `{"name":"7","amount":{"currency":"euro","units":"1"}}`)
		if o.code != codes.InvalidArgument || !strings.Contains(o.message, "amount.currency") {
			t.Errorf("%v %q, want InvalidArgument that names the field", o.code, o.message)
		}
	})
	t.Run("reload", func(t *testing.T) {
		p.reload(t, "policies: [{selector: bank.v1.Accounts.*, validate: true}, {selector: bank.v1.Accounts.Transfer, validate: false}]\n")
		if o := p.post(t, path, bad, nil); o.reason == "REQUEST_INVALID" {
			t.Errorf("validate: false still refuses: %+v", o)
		}
	})
}

// TestRuleFaults: rules of the descriptors are compiled when the configuration is loaded, and one that cannot be is a fault of the
// policy that wants them.
func TestRuleFaults(t *testing.T) {
	for _, tc := range []struct{ message, field, expression, want string }{
		{"BalanceRequest", "", "this.nothing == 1", `3:13: rules of bank.v1.BalanceRequest: `}, // there is no such field
		{"BalanceRequest", "", "this.name +", `3:13: rules of bank.v1.BalanceRequest: `},
		{"BalanceRequest", "", "size(this.name)", `3:13: rules of bank.v1.BalanceRequest: `}, // neither true or false nor a text
		{"BalanceRequest", "name", "this > 3", `3:13: rules of bank.v1.BalanceRequest: `},
		{"Money", "", "this.nothing == 1", `3:13: rules of bank.v1.Money: `}, // in a message within
		{"Money", "units", "this.startsWith('x')", `3:13: rules of bank.v1.Money: `},
		{"Account", "number", "this.startsWith('x')", `3:13: rules of bank.v1.Account: `},
		{"DepositRequest", "amount", "this.nothing == 1", `3:13: rules of bank.v1.DepositRequest: `},
		{"TransferRequest", "account", "this > 3", `3:13: rules of bank.v1.TransferRequest: `}, // one of a oneof
		{"BatchGetAccountsRequest", "names", "this > 3", `3:13: rules of bank.v1.BatchGetAccountsRequest: `},
		{"Account", "labels", "this > 3", `3:13: rules of bank.v1.Account: `},
		{"BalanceRequest", "", "this.name != ''", ""},
		{"Money", "units", "this < 100", ""},
	} {
		set := &descriptorpb.FileDescriptorSet{}
		if err := proto.Unmarshal(bank.DescriptorSet(), set); err != nil {
			t.Fatal(err)
		}
		rule := []*validate.Rule{{Id: proto.String("t.rule"), Expression: &tc.expression}}
		for _, f := range set.GetFile() {
			for _, m := range f.GetMessageType() {
				if f.GetPackage() != "bank.v1" || m.GetName() != tc.message {
					continue
				}
				if tc.field == "" {
					m.Options = &descriptorpb.MessageOptions{}
					proto.SetExtension(m.Options, validate.E_Message, &validate.MessageRules{Cel: rule})
				}
				for _, fd := range m.GetField() {
					if fd.GetName() == tc.field {
						fd.Options = &descriptorpb.FieldOptions{}
						proto.SetExtension(fd.Options, validate.E_Field, &validate.FieldRules{Cel: rule})
					}
				}
			}
		}
		b, err := proto.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "bank.binpb")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		found := faults(t, fmt.Sprintf("policies:\n- selector: bank.v1.Accounts.*\n  validate: true\ndescriptors: [{file: %q}]\n", path))
		if tc.want == "" && len(found) > 0 || tc.want != "" && !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s of %s: faults %q, want one that begins with %s", tc.expression, tc.message, found, tc.want)
		}
	}
}
