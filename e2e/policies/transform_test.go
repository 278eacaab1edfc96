package policies_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"transom/gateway"
	bankv1 "transom/proto/bank/v1"
)

// shopKey is the key of the consumer shop in the examples, auditKey that of audit.
var (
	shopKey  = map[string]string{"x-api-key": "shop-key-4f9a1c"}
	auditKey = map[string]string{"x-api-key": "audit-key-77b2e0"}
)

func TestMetadataEdits(t *testing.T) {
	p := start(t, example(t, "Metadata both ways"))
	everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
		header := map[string]string{"x-user": "admin", "x-tenant": "acme", "x-debug": "1"}
		maps.Copy(header, shopKey)
		o := call(t, p, header)
		o.wantOK(t, "shop")
		for name, want := range map[string]string{"x-user": "shop", "x-organization": "acme", "x-via": "transom", "x-from": "127.0.0.1 of gold", "x-tenant": "", "x-debug": ""} {
			if got := strings.Join(o.seen[name], ","); got != want {
				t.Errorf("the backend sees %s: %q, want %q", name, got, want)
			}
		}
		o = call(t, p, map[string]string{"x-user": "admin"})
		o.wantOK(t, "nobody")
		if got := o.seen["x-user"]; got != nil {
			t.Errorf("nobody is x-user: %q", got)
		}
		// A refusal has the edits too.
		o = call(t, p, map[string]string{"x-api-key": "wrong"})
		o.want(t, "wrong key", codes.Unauthenticated, 401, "CREDENTIALS_INVALID")
		if got := o.header["cache-control"]; got == nil {
			t.Errorf("refusal: %v", o.header)
		}
	})
	t.Run("aliases", func(t *testing.T) { // which only clients of gRPC can send
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x_user", "admin", "x.user", "admin", "x-user", "admin", "x-debug", "1", "x_debug", "1")
		resp, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(ctx, &bankv1.MetadataRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for name := range resp.GetMetadata() {
			if strings.HasSuffix(name, "user") || strings.HasSuffix(name, "debug") {
				t.Errorf("the backend sees %s", name)
			}
		}
	})
	answer := &bankv1.MetadataRequest{Header: map[string]string{"x-powered-by": "bank", "x-kept": "1"}, Trailer: map[string]string{"x-cost": "7", "x-end": "1"}}
	t.Run("gRPC answer", func(t *testing.T) {
		var header, trailer metadata.MD
		ctx := metadata.NewOutgoingContext(t.Context(), metadata.New(shopKey))
		if _, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(ctx, answer, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
			t.Fatal(err)
		}
		if header["x-powered-by"] != nil || header["x-kept"] == nil || !slices.Equal(header["x-served-for"], []string{"shop"}) || trailer["x-cost"] != nil || trailer["x-end"] == nil {
			t.Errorf("header %v, trailer %v", header, trailer)
		}
	})
	t.Run("REST answer", func(t *testing.T) {
		b, err := protojson.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		h := p.post(t, metadataPath, string(b), shopKey).header
		if h["x-powered-by"] != nil || h["x-kept"] == nil || !slices.Equal(h["x-served-for"], []string{"shop"}) || !slices.Equal(h["cache-control"], []string{"private"}) || h["grpc-trailer-x-cost"] != nil {
			t.Errorf("header %v", h)
		}
	})
}

// everywhere makes an Echo over REST, gRPC and WebSocket.
func (p *proxy) everywhere(t *testing.T, key map[string]string, in *bankv1.Everything, check func(t *testing.T, out *bankv1.Everything, o outcome)) {
	t.Helper()
	const path = "/v1/diagnostics/echo"
	body, err := protojson.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	read := func(t *testing.T, text string) *bankv1.Everything {
		t.Helper()
		out := &bankv1.Everything{}
		if err := protojson.Unmarshal([]byte(text), out); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return out
	}
	t.Run("REST", func(t *testing.T) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.addr+path, strings.NewReader(string(body)))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range key {
			r.Header.Set(k, v)
		}
		resp, err := p.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			check(t, nil, ofHTTP(t, resp))
			return
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		check(t, read(t, string(b)), outcome{http: 200})
	})
	t.Run("gRPC", func(t *testing.T) {
		out, err := bankv1.NewDiagnosticsClient(p.conn).Echo(metadata.NewOutgoingContext(t.Context(), metadata.New(key)), in)
		o := outcome{code: status.Code(err), message: status.Convert(err).Message()}
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				o.reason = info.GetReason()
			}
		}
		check(t, out, o)
	})
	t.Run("WebSocket", func(t *testing.T) {
		// By the method's path: of the rules the one for GET would be taken, which has no body.
		answers, o := p.webSocket(t, "/bank.v1.Diagnostics/Echo", key, string(body))
		if len(answers) != 1 {
			if o.http == 0 { // a close frame carries no details
				o.reason = "VALUE_MISSING"
			}
			check(t, nil, o)
			return
		}
		check(t, read(t, answers[0]), o)
	})
}

func TestRequestFields(t *testing.T) {
	p := start(t, example(t, "Request fields"))
	in := &bankv1.Everything{Text: "admin", Nested: &bankv1.Everything{Text: "kept", Kind: bankv1.Account_KIND_LOAN}, Choice: &bankv1.Everything_ChoiceText{ChoiceText: "mine"}, Int32: 3}
	want := &bankv1.Everything{Text: "shop", Nested: &bankv1.Everything{Text: "kept", Kind: bankv1.Account_KIND_SAVINGS}, Choice: &bankv1.Everything_ChoiceNumber{ChoiceNumber: 7}, Int32: 3}
	p.everywhere(t, shopKey, in, func(t *testing.T, out *bankv1.Everything, o outcome) { // the rule of allow holds for what was forced
		if diff := cmp.Diff(want, out, protocmp.Transform()); diff != "" {
			t.Errorf("%+v: %s", o, diff)
		}
	})
	in, want.Int32 = &bankv1.Everything{}, 50
	want.Nested.Text = ""
	p.everywhere(t, shopKey, in, func(t *testing.T, out *bankv1.Everything, o outcome) {
		if diff := cmp.Diff(want, out, protocmp.Transform()); diff != "" {
			t.Errorf("%+v: %s", o, diff)
		}
	})
	t.Run("a stream", func(t *testing.T) {
		// Every message is paid into the caller's own account, whatever it says.
		ctx := metadata.NewOutgoingContext(t.Context(), metadata.New(shopKey))
		accounts := bankv1.NewAccountsClient(p.conn)
		balance := func(name string) int64 {
			b, err := accounts.Balance(ctx, &bankv1.BalanceRequest{Name: name})
			if err != nil {
				t.Fatal(err)
			}
			return b.GetBalance().GetUnits()
		}
		own, other := balance("customers/1/accounts/1"), balance("customers/2/accounts/1")
		stream, err := accounts.Deposit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			_ = stream.Send(&bankv1.DepositRequest{Name: "customers/2/accounts/1", Amount: &bankv1.Money{Currency: "EUR", Units: 5}})
		}
		if _, err := stream.CloseAndRecv(); err != nil {
			t.Fatal(err)
		}
		if _, o := p.webSocket(t, "/v1/accounts:deposit", shopKey, `{"name":"customers/2/accounts/1","amount":{"currency":"EUR","units":"5"}}`, ""); o.code != codes.OK {
			t.Errorf("over WebSocket: %+v", o)
		}
		if balance("customers/2/accounts/1") != other || balance("customers/1/accounts/1") != own+20 {
			t.Errorf("balances are %d and %d; were %d and %d", balance("customers/1/accounts/1"), balance("customers/2/accounts/1"), own, other)
		}
	})
	t.Run("no value", func(t *testing.T) {
		p.reload(t, strings.Replace(example(t, "Request fields"), "claim: kind", "claim: none", 1))
		p.everywhere(t, shopKey, in, func(t *testing.T, _ *bankv1.Everything, o outcome) {
			o.want(t, "a claim that is missing", codes.PermissionDenied, 403, "VALUE_MISSING")
			if !strings.Contains(o.message, "nested.kind") {
				t.Errorf("%q does not name the field", o.message)
			}
		})
	})
	t.Run("cached", func(t *testing.T) { // under the caller's own request
		p.reload(t, strings.Replace(example(t, "Request fields"), "  allow: request", "  cache: {ttl: 1m, shared: true}\n  allow: request", 1))
		for range 2 {
			p.everywhere(t, shopKey, in, func(t *testing.T, out *bankv1.Everything, o outcome) {
				if out.GetText() != "shop" {
					t.Errorf("%v %+v", out, o)
				}
			})
		}
	})
}

func TestRedact(t *testing.T) {
	p := start(t, example(t, "Redaction"))
	in := &bankv1.Everything{
		Text: "kept", Data: []byte("secret"), Int64: 1000, Nested: &bankv1.Everything{Text: "in", Data: []byte("secret")},
		MessageMap: map[uint64]*bankv1.Everything{1: {Text: "m", Data: []byte("secret")}},
	}
	redacted := func(in *bankv1.Everything) *bankv1.Everything {
		out, _ := proto.Clone(in).(*bankv1.Everything)
		out.Data, out.Nested.Data, out.MessageMap[1].Data = nil, nil, nil
		return out
	}
	for _, config := range []string{example(t, "Redaction"), example(t, "Redaction") + "- {selector: bank.v1.Diagnostics.Echo, cache: {ttl: 1m, shared: true}}\n"} {
		p.reload(t, config)
		for range 2 { // of the cache, the answer that was kept
			p.everywhere(t, auditKey, in, func(t *testing.T, out *bankv1.Everything, o outcome) {
				if diff := cmp.Diff(redacted(in), out, protocmp.Transform()); diff != "" {
					t.Errorf("audit: %+v: %s", o, diff)
				}
			})
			p.everywhere(t, shopKey, in, func(t *testing.T, out *bankv1.Everything, o outcome) {
				want := redacted(in)
				want.Int64 = 0
				if diff := cmp.Diff(want, out, protocmp.Transform()); diff != "" {
					t.Errorf("shop: %+v: %s", o, diff)
				}
			})
		}
	}
	t.Run("streams", func(t *testing.T) {
		const path = "/v1/customers/1/accounts/1/transactions:watch?count=2"
		has := func(text string) bool {
			return strings.Contains(text, "amount") || strings.Contains(text, "counterparty")
		}
		_, _, body := p.get(t, path, shopKey)
		lines := strings.Split(strings.TrimSpace(body), "\n")
		if has(body) || len(lines) != 2 || !strings.Contains(lines[1], "reference") {
			t.Errorf("REST: %s", body)
		}
		if _, _, body := p.get(t, path, auditKey); !strings.Contains(body, "amount") || strings.Contains(body, "counterparty") {
			t.Errorf("REST, audit: %s", body)
		}
		answers, o := p.webSocket(t, path, shopKey)
		if len(answers) != 2 || has(strings.Join(answers, "")) {
			t.Errorf("WebSocket: %q, %+v", answers, o)
		}
		stream, err := bankv1.NewAccountsClient(p.conn).Watch(metadata.NewOutgoingContext(t.Context(), metadata.New(shopKey)), &bankv1.WatchRequest{Name: "customers/1/accounts/1", Count: 2})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; ; n++ {
			tx, err := stream.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if tx.GetAmount() != nil || tx.GetCounterparty() != "" || tx.GetName() == "" {
				t.Errorf("gRPC: %v", tx)
			}
		}
		if n != 2 {
			t.Errorf("gRPC: %d messages", n)
		}
	})
	t.Run("Connect", func(t *testing.T) {
		o := map[string]json.RawMessage{}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.addr+"/bank.v1.Accounts/Get", strings.NewReader(`{"name":"customers/1/accounts/1"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Connect-Protocol-Version", "1")
		r.Header.Set("X-Api-Key", shopKey["x-api-key"])
		resp, err := p.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&o); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 200 || o["name"] == nil || o["balance"] != nil || o["owners"] != nil {
			t.Errorf("%d %s", resp.StatusCode, o)
		}
	})
}

func TestErrorRules(t *testing.T) {
	p := start(t, example(t, "Errors"))
	for _, tc := range []struct {
		in, out codes.Code
		http    int
		message string
		details bool
	}{
		{codes.NotFound, codes.PermissionDenied, 403, "no such account, or not yours", false},
		{codes.PermissionDenied, codes.PermissionDenied, 403, "no such account, or not yours", false},
		{codes.FailedPrecondition, codes.FailedPrecondition, 400, "row 7 of table x", true},
		{codes.DataLoss, codes.Internal, 500, "something went wrong, reference r-17", false},
		{codes.Aborted, codes.Aborted, 409, "row 7 of table x", true},
	} {
		header := map[string]string{"x-request-id": "r-17"}
		check := func(t *testing.T, o outcome) {
			t.Helper()
			if o.code != tc.out || o.http != 0 && o.http != tc.http || o.message != tc.message || len(o.details) > 0 != tc.details {
				t.Errorf("%v: %v %d %q, %d details; want %v %d %q, %v", tc.in, o.code, o.http, o.message, len(o.details), tc.out, tc.http, tc.message, tc.details)
			}
		}
		body := fmt.Sprintf(`{"code":%d,"message":"row 7 of table x","details":true}`, tc.in)
		t.Run("REST", func(t *testing.T) { check(t, p.post(t, "/v1/diagnostics/fail", body, header)) })
		t.Run("gRPC", func(t *testing.T) {
			ctx := metadata.NewOutgoingContext(t.Context(), metadata.New(header))
			_, err := bankv1.NewDiagnosticsClient(p.conn).Fail(ctx, &bankv1.FailRequest{Code: int32(tc.in), Message: "row 7 of table x", Details: true})
			st := status.Convert(err)
			check(t, outcome{code: st.Code(), message: st.Message(), details: st.Details()})
		})
		t.Run("WebSocket", func(t *testing.T) {
			_, o := p.webSocket(t, "/bank.v1.Diagnostics/Fail", header, body)
			if o.details = nil; tc.details { // of which a close frame has none
				o.details = []any{1}
			}
			check(t, o)
		})
		t.Run("late", func(t *testing.T) {
			stream, err := bankv1.NewDiagnosticsClient(p.conn).FailLate(metadata.NewOutgoingContext(t.Context(), metadata.New(header)), &bankv1.FailRequest{Code: int32(tc.in), Message: "row 7 of table x", Details: true, AfterMessages: 2})
			for err == nil {
				_, err = stream.Recv()
			}
			st := status.Convert(err)
			check(t, outcome{code: st.Code(), message: st.Message(), details: st.Details()})
		})
	}
}

func TestTransformFaults(t *testing.T) {
	const head = "policies:\n- selector: bank.v1.Diagnostics.Echo\n"
	for _, tc := range []struct{ text, want string }{
		{head + "  request_metadata: {set: {x-a: \"{consumr}\"}}\n", "3:33: column 2: there is no {consumr}; "},
		{head + "  request_metadata:\n    set:\n      x-transom-consumer: me\n", "5:27: x-transom-consumer is one of the names in which only authentication says who calls"},
		{head + "  request_metadata: {rename: {x-a: x_transom_plan}}\n", "3:36: x_transom_plan is one of the names"},
		{head + "  request_metadata: {remove: [te]}\n", "3:31: te belongs to HTTP or gRPC themselves"},
		{head + "  response_metadata: {add: {content-length: \"7\"}}\n", "3:45: content-length belongs to"},
		{head + "  response_trailers: {set: {grpc-status: \"0\"}}\n", "3:42: grpc-status belongs to"},
		{head + "  request_metadata: {set: {x-a: \"1\"}}\n  cache: {ttl: 1s}\n", "3:33: the backend would not get x-a: answers are cached, and cache.vary does not have it"},
		{head + "  request_metadata: {set: {authorization: \"1\"}}\n  cache: {ttl: 1s, shared: true}\n", "3:43: the backend would not get authorization: answers are cached, and cache.vary does not have it"},
		{head + "  request_metadata: {rename: {x-a: cookie}}\n  cache: {ttl: 1s, shared: true}\n", "3:36: the backend would not get cookie: answers are cached, and cache.vary does not have it"},
		{head + "  request_fields:\n  - {field: nested.txt, value: x}\n", `4:13: nested.txt: bank.v1.Everything has no field "txt"`},
		{head + "  request_fields:\n  - {field: texts, value: x}\n", "4:13: texts is a list or map"},
		{head + "  request_fields:\n  - {field: int32, value: x}\n", `4:27: int32: "x" is not a whole number of 32 bits`},
		{head + "  request_fields:\n  - {field: text, value: \"{x}\"}\n", "4:26: column 2: there is no {x}"},
		{head + "  request_fields:\n  - {field: text}\n", "4:5: "},
		{head + "  request_fields:\n  - {field: text, claim: a}\n  - {field: text, claim: b}\n", "4:3: text is filled in twice"},
		{head + "  redact:\n  - {fields: [text, nested.secret]}\n", `4:21: nested.secret: bank.v1.Everything has no field "secret"`},
		{head + "  redact: {}\n", "3:11: "},
		{head + "  errors: [{codes: [NOTFOUND]}]\n", `3:21: unknown value "NOTFOUND"`},
		{head + "  errors: [{codes: [OK]}]\n", "3:21: "},
		{head + "  errors: [{message: \"{}\"}]\n", "3:22: column 2: there is no {}"},
		{"policies:\n- selector: \"*\"\n  redact: [{fields: [server]}]\nunknown_methods: {cluster: bank}\n", "3:12: answers of methods without a schema"},
	} {
		found := faults(t, tc.text)
		if len(found) == 0 || !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
	// A path that one method of many has is none.
	if found := faults(t, "policies: [{selector: bank.v1.*, redact: [{fields: [server]}], request_fields: [{field: after_messages, value: \"0\"}]}]\n"); len(found) > 0 {
		t.Errorf("faults %q", found)
	}
}

// TestTransformReload changes all of it under load: metadata both ways, fields, redaction, and the errors of calls that fail.
func TestTransformReload(t *testing.T) {
	// Each configuration has its number in all that it fills in, so that a call under two of them shows.
	config := func(n int, fields string) string {
		return fmt.Sprintf(`
consumers: {providers: {keys: {api_key: {}}}, known: {shop: {api_keys: [%q]}}}
policies:
- {selector: "*", auth: {require: [keys]}, response_metadata: {set: {x-n: "%d"}}}
- selector: bank.v1.Diagnostics.Metadata
  request_metadata: {set: {x-user: "{consumer} %d", x-n: "%d"}}
  redact: [{fields: [%s]}]
- selector: bank.v1.Diagnostics.Echo
  request_fields: %s
- selector: bank.v1.Diagnostics.Fail
  errors: [{codes: [NOT_FOUND], to: %s, message: "n %d"}]
`, sha("k"), n, n, n, []string{"server", "peer", "timeout"}[n%3], fmt.Sprintf(fields, n), []string{"ABORTED", "DATA_LOSS"}[n%2], n)
	}
	const good, bad = `[{field: text, value: "{consumer} %d"}]`, `[{field: texts, value: "%d"}]` // which is a list
	key := map[string]string{"x-api-key": "k"}
	p := start(t, config(0, good))
	load := underLoad(t, func(t *testing.T, name string, _, n int, call caller) {
		switch n % 3 {
		case 0:
			o := call(t, p, key)
			o.wantOK(t, name)
			n := strings.Join(o.seen["x-n"], ",")
			if user := o.seen["x-user"]; n == "" || !slices.Equal(user, []string{"shop " + n}) || o.header != nil && !slices.Equal(o.header["x-n"], []string{n}) {
				t.Errorf("%s: x-n %q and %v, x-user %q", name, n, o.header["x-n"], user)
			}
		case 1:
			text, header := echoes[name](t, p, key)
			if n, ok := strings.CutPrefix(text, "shop "); !ok || header != nil && !slices.Equal(header["x-n"], []string{n}) {
				t.Errorf("%s: the backend has text %q, x-n %v", name, text, header["x-n"])
			}
		default:
			o := failures[name](t, p, key)
			n, err := strconv.Atoi(strings.TrimPrefix(o.message, "n "))
			if err != nil || o.code != []codes.Code{codes.Aborted, codes.DataLoss}[n%2] || o.header != nil && !slices.Equal(o.header["x-n"], []string{strconv.Itoa(n)}) {
				t.Errorf("%s: %v %q, x-n %v", name, o.code, o.message, o.header["x-n"])
			}
		}
	})
	for i := range 17 {
		p.reload(t, config(i, good))
		if i%5 == 0 { // one that is refused changes nothing
			if err := p.Reload(t.Context(), p.parse(t, config(i, bad)).Config); err == nil {
				t.Fatal("a configuration with a fault was put in force")
			}
		}
		load.calls(t, 20)
	}
	load.end()
}

// echoes are the ways to call Diagnostics.Echo: each returns the text that the backend had, and the answer's header where there is one.
var echoes = map[string]func(t *testing.T, p *proxy, header map[string]string) (string, metadata.MD){
	"REST": func(t *testing.T, p *proxy, header map[string]string) (string, metadata.MD) {
		t.Helper()
		_, h, body := p.get(t, "/v1/diagnostics/echo?text=own", header)
		return textOf(t, body), metadata.MD{"x-n": h.Values("X-N")}
	},
	"gRPC": func(t *testing.T, p *proxy, header map[string]string) (string, metadata.MD) {
		t.Helper()
		var md metadata.MD
		answer, err := bankv1.NewDiagnosticsClient(p.conn).Echo(metadata.NewOutgoingContext(t.Context(), metadata.New(header)), &bankv1.Everything{Text: "own"}, grpc.Header(&md))
		if err != nil {
			t.Error(err)
		}
		return answer.GetText(), md
	},
	"WebSocket": func(t *testing.T, p *proxy, header map[string]string) (string, metadata.MD) {
		t.Helper()
		answers, _ := p.webSocket(t, "/v1/diagnostics/echo?text=own", header)
		return textOf(t, strings.Join(answers, "")), nil
	},
}

// textOf is the field text of a message in JSON.
func textOf(t *testing.T, body string) string {
	t.Helper()
	var m struct{ Text string }
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Errorf("%s: %v", body, err)
	}
	return m.Text
}

// failures are the ways to call Diagnostics.Fail, which fails with NOT_FOUND.
var failures = map[string]caller{
	"REST": func(t *testing.T, p *proxy, header map[string]string) outcome {
		t.Helper()
		_, h, body := p.get(t, "/v1/diagnostics/fail?code=5", header)
		var st struct {
			Code    codes.Code
			Message string
		}
		if err := json.Unmarshal([]byte(body), &st); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		return outcome{code: st.Code, message: st.Message, header: metadata.MD{"x-n": h.Values("X-N")}}
	},
	"gRPC": func(t *testing.T, p *proxy, header map[string]string) outcome {
		t.Helper()
		var md, trailer metadata.MD
		_, err := bankv1.NewDiagnosticsClient(p.conn).Fail(metadata.NewOutgoingContext(t.Context(), metadata.New(header)), &bankv1.FailRequest{Code: int32(codes.NotFound)}, grpc.Header(&md), grpc.Trailer(&trailer))
		o := ofStatus(err)
		o.header = metadata.Join(md, trailer)
		return o
	},
	"WebSocket": func(t *testing.T, p *proxy, header map[string]string) outcome {
		t.Helper()
		_, o := p.webSocket(t, "/v1/diagnostics/fail?code=5", header)
		return o
	},
}

// TestTransformExplain shows where each setting comes from.
func TestTransformExplain(t *testing.T) {
	p := &proxy{bank: "127.0.0.1:1", set: descriptorSet(t)}
	file := p.parse(t, "policies:\n- {selector: bank.v1.*, redact: {fields: server}}\n- selector: bank.v1.Diagnostics.Metadata\n  request_metadata: {set: {x-a: b}}\n  errors: {codes: not_found, to: INTERNAL}\n")
	where := func(path string) string {
		line, column := file.Position(path)
		return fmt.Sprintf("%d:%d", line, column)
	}
	var out strings.Builder
	if err := gateway.Explain(t.Context(), file.Config, "bank.v1.Diagnostics.Metadata", where, &out, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	got := squeeze(strings.NewReplacer(`": `, `":`, `, "`, `,"`).Replace(out.String()))
	for _, want := range []string{
		`request_metadata {"set":{"x-a":"b"}} bank.v1.Diagnostics.Metadata 4:21`,
		`redact [{"fields":["server"]}] bank.v1.* 2:33`,
		`errors [{"codes":["NOT_FOUND"],"to":"INTERNAL"}] bank.v1.Diagnostics.Metadata 5:11`,
		"a call goes through overload, answers, requests, redact, the cluster",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("explain says\n%s\nwant\n%s", got, want)
		}
	}
}

// TestUndecodable has a message over which protobuf panics when it decodes without a Go type: a map entry whose key comes
// again as another type. It is refused, or passed on, like any other.
func TestUndecodable(t *testing.T) {
	const odd = "\n\x05\n\x01a\x08\x00" // MetadataRequest.header
	for what, policy := range map[string]string{
		"allow": `allow: 'size(request.header) < 100'`,
		"cache": `cache: {ttl: 1m}`,
	} {
		p := start(t, "policies: [{selector: bank.v1.Diagnostics.Metadata, "+policy+"}]\n")
		want := map[string]codes.Code{"allow": codes.PermissionDenied, "cache": codes.OK}[what] // the backend can read it
		for range 2 {
			var raw []byte
			if err := p.conn.Invoke(t.Context(), "/bank.v1.Diagnostics/Metadata", []byte(odd), &raw, grpc.ForceCodec(asIs{})); status.Code(err) != want {
				t.Errorf("%s over gRPC: %v, want %v", what, err, want)
			}
			c, _, err := websocket.Dial(t.Context(), "ws://"+p.addr+"/bank.v1.Diagnostics/Metadata", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Write(t.Context(), websocket.MessageBinary, []byte(odd)); err != nil {
				t.Fatal(err)
			}
			_, _, err = c.Read(t.Context())
			if got := websocket.CloseStatus(err); want != codes.OK && got != 4000+websocket.StatusCode(want) || want == codes.OK && err != nil {
				t.Errorf("%s over WebSocket: %v, want %v", what, err, want)
			}
			c.CloseNow()
		}
	}
}

// asIs sends bytes, and takes them.
type asIs struct{}

func (asIs) Name() string                  { return "proto" }
func (asIs) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (asIs) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = slices.Clone(b)
	return nil
}
