package policies_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/coder/websocket"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"transom/cmd/transom/demo/bank"
	bankv1 "transom/proto/bank/v1"
	wsv1 "transom/proto/transom/ws/v1"
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

// validated are the ways to send messages to a method, each of which tells the status.
var validated = map[string]func(t *testing.T, p *proxy, method, path string, messages []proto.Message) *spb.Status{
	"REST": func(t *testing.T, p *proxy, _, path string, messages []proto.Message) *spb.Status {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url("http")+path, strings.NewReader(strings.Join(jsonOf(t, messages), "\n")))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := p.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		st := &spb.Status{}
		if resp.StatusCode == http.StatusOK {
			return st
		}
		if err := protojson.Unmarshal(body, st); err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("REST: %d %s (%v), want a status and 400", resp.StatusCode, body, err)
		}
		return st
	},
	"gRPC": func(t *testing.T, p *proxy, method, _ string, messages []proto.Message) *spb.Status {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		s, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			_ = s.SendMsg(m) // the status says why it cannot
		}
		_ = s.CloseSend()
		return status.Convert(s.RecvMsg(&emptypb.Empty{})).Proto()
	},
	"WebSocket": func(t *testing.T, p *proxy, method, _ string, messages []proto.Message) *spb.Status {
		t.Helper()
		_, o := p.webSocket(t, method, nil, append(jsonOf(t, messages), "")...)
		return &spb.Status{Code: int32(o.code), Message: o.message}
	},
	"transom.v1": func(t *testing.T, p *proxy, method, _ string, messages []proto.Message) *spb.Status {
		t.Helper()
		return p.overSession(t, &wsv1.Open{Method: method}, messages...)
	},
}

// overSession makes a call over a socket of transom.v1.
func (p *proxy) overSession(t *testing.T, open *wsv1.Open, messages ...proto.Message) *spb.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, p.url("ws")+"/", &websocket.DialOptions{HTTPClient: p.http, Subprotocols: []string{"transom.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	frames := []*wsv1.Frame{{Id: 1, Open: open, End: len(messages) == 0}}
	for i, m := range messages {
		frames = append(frames, &wsv1.Frame{Id: 1, Binary: append([]byte{}, wire(t, m)...), End: i == len(messages)-1})
	}
	for _, f := range frames {
		if err := c.Write(ctx, websocket.MessageBinary, wire(t, f)); err != nil {
			t.Fatal(err)
		}
	}
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		f := &wsv1.Frame{}
		if err := proto.Unmarshal(b, f); err != nil {
			t.Fatal(err)
		}
		if st := f.GetStatus(); st != nil {
			return &spb.Status{Code: int32(st.GetCode()), Message: st.GetMessage(), Details: st.GetDetails()}
		}
	}
}

func jsonOf(t *testing.T, messages []proto.Message) (texts []string) {
	t.Helper()
	for _, m := range messages {
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(b))
	}
	return texts
}

// TestValidate: what is wrong with a message is told field by field, whatever the protocol, and of a stream's messages too.
func TestValidate(t *testing.T) {
	p := start(t, example(t, "Validation"))
	const path = "/v1/customers/1/accounts/1:transfer"
	const bad = `{"account":"7","amount":{"currency":"euro","units":"1"}}`

	for name, by := range validated {
		for _, tc := range []struct {
			what, method, path string
			in                 func() proto.Message
			messages           []string
			message            string            // of the status
			want               map[string]string // the violations' reasons by their fields
		}{
			{
				what: "good", method: "/bank.v1.Accounts/Transfer", path: path, in: func() proto.Message { return &bankv1.TransferRequest{} },
				messages: []string{`{"name":"customers/1/accounts/1","account":"7","amount":{"currency":"EUR","units":"1"}}`},
			},
			{
				what: "bad in every way", method: "/bank.v1.Accounts/Transfer", path: path, in: func() proto.Message { return &bankv1.TransferRequest{} },
				messages: []string{`{"name":"customers/1/accounts/1","amount":{"currency":"eur","nanos":1000000000},"reference":"` + strings.Repeat("x", 141) + `"}`},
				message:  "destination: exactly one field is required in oneof (and 3 more)",
				want:     map[string]string{"destination": "REQUIRED", "amount.currency": "STRING_PATTERN", "amount.nanos": "INT32_GTE_LTE", "reference": "STRING_MAX_LEN"},
			},
			{
				what: "the third of a stream", method: "/bank.v1.Accounts/Deposit", path: "/v1/accounts:deposit", in: func() proto.Message { return &bankv1.DepositRequest{} },
				messages: []string{
					`{"name":"7","amount":{"currency":"EUR","units":"1"}}`, `{"name":"7","amount":{"currency":"EUR","units":"1"}}`,
					`{"name":"7","amount":{"currency":"eur","nanos":1000000000}}`, `{"name":"7","amount":{"currency":"EUR","units":"1"}}`,
				},
				message: "amount.currency: does not match regex pattern `^[A-Z]*$` (and 1 more)",
				want:    map[string]string{"amount.currency": "STRING_PATTERN", "amount.nanos": "INT32_GTE_LTE"},
			},
		} {
			var messages []proto.Message
			for _, text := range tc.messages {
				m := tc.in()
				if err := protojson.Unmarshal([]byte(text), m); err != nil {
					t.Fatal(err)
				}
				messages = append(messages, m)
			}
			st := by(t, p, tc.method, tc.path, messages)
			if tc.want == nil {
				if st.GetCode() != 0 {
					t.Errorf("%s, %s: %v", name, tc.what, st)
				}
				continue
			}
			got := map[string]string{}
			for _, d := range st.GetDetails() {
				var br errdetails.BadRequest
				if d.UnmarshalTo(&br) != nil {
					continue
				}
				for _, v := range br.GetFieldViolations() {
					got[v.GetField()] = v.GetReason()
				}
			}
			if codes.Code(st.GetCode()) != codes.InvalidArgument || st.GetMessage() != tc.message {
				t.Errorf("%s, %s: %v %q, want InvalidArgument %q", name, tc.what, codes.Code(st.GetCode()), st.GetMessage(), tc.message)
			}
			// The close frame of a WebSocket that is one call has no place for details.
			if reason := reasonOf(st.GetDetails()); name != "WebSocket" && (reason != "REQUEST_INVALID" || !maps.Equal(got, tc.want)) {
				t.Errorf("%s, %s: reason %q, violations %v; want REQUEST_INVALID, %v", name, tc.what, reason, got, tc.want)
			}
		}
	}
	t.Run("reload", func(t *testing.T) {
		p.reload(t, "policies: [{selector: bank.v1.Accounts.*, validate: true}, {selector: bank.v1.Accounts.Transfer, validate: false}]\n")
		if o := p.post(t, path, bad, nil); o.reason == "REQUEST_INVALID" {
			t.Errorf("validate: false still refuses: %+v", o)
		}
	})
}

// TestValidateUnderLoad puts rules in force and out of it while calls go on that keep them, single ones and streams: none fails. What
// breaks them is refused then by every protocol.
func TestValidateUnderLoad(t *testing.T) {
	configs := []string{
		"\npolicies: [{selector: bank.v1.Accounts.*, validate: true}]\n",
		"\npolicies: [{selector: bank.v1.Accounts.*, validate: false}]\n",
		"\npolicies: [{selector: bank.v1.Accounts.*, validate: true}, {selector: bank.v1.Accounts.Deposit, validate: false}]\n",
		"\npolicies: [{selector: bank.v1.Accounts.Deposit, validate: true, message_bytes: 1024}]\n",
	}
	list := func(size int32) []proto.Message { return []proto.Message{&bankv1.ListAccountsRequest{PageSize: size}} }
	deposit := func(currencies ...string) (messages []proto.Message) {
		for _, c := range currencies {
			messages = append(messages, &bankv1.DepositRequest{Name: "7", Amount: &bankv1.Money{Currency: c, Units: 1}})
		}
		return messages
	}
	p := start(t, configs[0])
	load := underLoad(t, func(t *testing.T, name string, _, n int, _ caller) {
		by, method, path, messages := validated[name], "/bank.v1.Accounts/List", "/v1/accounts:search", list(2)
		if n%2 == 1 {
			method, path, messages = "/bank.v1.Accounts/Deposit", "/v1/accounts:deposit", deposit("EUR", "EUR", "EUR")
		}
		if st := by(t, p, method, path, messages); st.GetCode() != 0 {
			t.Errorf("%s of %s: %v", name, method, st)
		}
	})
	for i := range 3*len(configs) + 1 {
		p.reload(t, configs[i%len(configs)])
		load.calls(t, 20)
	}
	load.end()
	for name, by := range validated {
		for _, st := range []*spb.Status{
			by(t, p, "/bank.v1.Accounts/List", "/v1/accounts:search", list(-1)), by(t, p, "/bank.v1.Accounts/Deposit", "/v1/accounts:deposit", deposit("EUR", "eur")),
		} {
			if codes.Code(st.GetCode()) != codes.InvalidArgument || name != "WebSocket" && reasonOf(st.GetDetails()) != "REQUEST_INVALID" {
				t.Errorf("%s, after the last reload: %v, want InvalidArgument, REQUEST_INVALID", name, st)
			}
		}
	}
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
