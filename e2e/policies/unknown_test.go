package policies_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"transom/gateway"
)

// startEcho runs a server that answers every method with what it was sent, says its name in the metadata x-server, and
// tells copies the method of each mirrored call. It returns its address.
func startEcho(t *testing.T, name string, copies ...chan<- string) string {
	t.Helper()
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		if md, _ := metadata.FromIncomingContext(s.Context()); md["x-transom-mirrored"] != nil {
			for _, c := range copies {
				method, _ := grpc.MethodFromServerStream(s)
				c <- method
			}
		}
		in := &emptypb.Empty{}
		if err := s.RecvMsg(in); err != nil {
			return err
		}
		if err := s.SetHeader(metadata.Pairs("x-server", name)); err != nil {
			return err
		}
		return s.SendMsg(in)
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() {
		srv.Stop()
		wg.Wait()
	})
	return l.Addr().String()
}

// TestUnknownMethods: policies hold for methods that no descriptor knows by their names, as for others; and where a policy needs what
// only descriptors tell, nothing gets by.
func TestUnknownMethods(t *testing.T) {
	any := startEcho(t, "any")
	p := startWith(t, fmt.Sprintf(`
unknown_methods: {cluster: any}
consumers:
  providers: {keys: {api_key: {}}}
  known: {shop: {api_keys: [%q]}}
policies:
- {selector: "*", cluster: bank, deprecated: {since: "2026-01-01"}}
- {selector: bank.v1.*, auth: {require: [keys]}}
- {selector: bank.v1.Rates.*, auth: {anonymous: true}, cache: {ttl: 1m}}
- {selector: bank.v1.Support.*, redact: [{fields: [text]}]}
- {selector: bank.v1.Diagnostics.Echo, allow: request.text == ""}
- {selector: pay.v1.*, optional: true, auth: {require: [keys]}, limits: [{rate: 1/h}]}
- {selector: pay.v1.Open.Ask, optional: true, auth: {anonymous: true}, limits: [{rate: 100/h}], allow: 'method == "pay.v1.Open.Ask"'}
`, sha("k")), fmt.Sprintf(", any: {target: \"static:///%s\", no_health_check: true}", any))
	for _, tc := range []struct {
		path, key string
		code      codes.Code
		msg       string
	}{
		{"/other.v1.Service/Method", "", codes.OK, ""},
		{"/bank.v1x.Service/Method", "", codes.OK, ""},
		{"/bank.v1.Accounts/New", "", codes.Unauthenticated, ""},
		{"/bank.v1.Accounts/New", "nonsense", codes.Unauthenticated, ""},
		{"/bank.v1.Accounts/New", "k", codes.OK, ""},
		{"/bank.v1.New/Get", "", codes.Unauthenticated, ""},
		{"/bank.v1.sub.New/Get", "", codes.Unauthenticated, ""},
		{"/bank.v1/Accounts.Get", "", codes.Unauthenticated, ""},
		{"/bank.v1.Accounts/get", "", codes.Unauthenticated, ""},
		{"/bank.v1.Accounts/%47et", "k", codes.Unimplemented, "unknown method"},
		{"/bank.v1%2EAccounts/Get", "k", codes.Unimplemented, "unknown method"},
		{"/bank.v1.Accounts/Get;x", "k", codes.Unimplemented, "unknown method"},
		{"/bank.v1.Accounts/Get%3F", "", codes.Unimplemented, "unknown method"},
		{"/bank.v1.Accounts/Get%3Fx=1", "k", codes.Unimplemented, "unknown method"},
		{"/bank.v1.Accounts/Get%23x", "k", codes.Unimplemented, "unknown method"},
		{"/bank.v1.Accounts/Get%20", "k", codes.Unimplemented, "unknown method"},
		{"/bank.v1.Accounts/Get%C3%A9", "k", codes.Unimplemented, "unknown method"},
		{"/bank.v1.Rates/New", "", codes.OK, ""},
		{"/bank.v1.Support/New", "k", codes.Unimplemented, "no descriptor tells of /bank.v1.Support/New, which the policy for bank.v1.Support.* needs"},
		{"/bank.v1/Diagnostics.Echo", "k", codes.Unimplemented, "no descriptor tells of /bank.v1/Diagnostics.Echo, which the policy for bank.v1.Diagnostics.Echo needs"},
		{"/pay.v1.Cards/Charge", "", codes.Unauthenticated, ""},
		{"/pay.v1.Cards/Charge", "k", codes.OK, ""},
		{"/pay.v1.Cards/Refund", "k", codes.ResourceExhausted, ""},
		{"/pay.v1.Open/Ask", "", codes.OK, ""},
		{"/pay.v1.Open/Ask", "", codes.OK, ""},
		{"/pay.v1.Open/Tell", "", codes.Unauthenticated, ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if tc.key != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-api-key", tc.key)
		}
		var header, trailer metadata.MD
		err := p.conn.Invoke(ctx, tc.path, &emptypb.Empty{}, &emptypb.Empty{}, grpc.Header(&header), grpc.Trailer(&trailer))
		cancel()
		if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.msg) {
			t.Errorf("%s with key %q: %v, want %v", tc.path, tc.key, err, tc.code)
		}
		if tc.code != codes.Unimplemented && len(header["deprecation"])+len(trailer["deprecation"]) != 1 {
			t.Errorf("%s: the policy of all methods is not in force", tc.path)
		}
	}
}

// TestUnknownMethodsGo: where calls of methods that no descriptor knows go is for unknown_methods to say, but that a policy narrower
// than "*" goes before it.
func TestUnknownMethodsGo(t *testing.T) {
	copies := make(chan string, 10)
	p := startWith(t, `
unknown_methods: {cluster: any}
policies:
- {selector: "*", cluster: bank, routes: [{when: {header: x-to, present: true}, cluster: bank}]}
- {selector: new.v1.*, optional: true, cluster: other}
- {selector: new.v1.Old.*, optional: true, split: {clusters: {any: 1}}}
- {selector: new.v1.Old.Ask, optional: true, cluster: other}
- {selector: routed.v1.*, optional: true, routes: [{when: {header: x-to, exact: other}, cluster: other}]}
- {selector: copied.v1.*, optional: true, mirror: {cluster: other}}
- {selector: typed.v1.*, optional: true, redact: {fields: [a]}, cluster: other}
`, fmt.Sprintf(", any: {target: \"static:///%s\", no_health_check: true}, other: {target: \"static:///%s\", no_health_check: true}",
		startEcho(t, "any"), startEcho(t, "other", copies)))
	for _, tc := range []struct{ path, to, want string }{
		{"/some.v1.Service/Ask", "", "any"},
		{"/some.v1.Service/Ask", "other", "any"}, // by the route of "*" it would go to the bank
		{"/new.v1.Service/Ask", "", "other"},
		{"/new.v1.Old/Tell", "", "any"},
		{"/new.v1.Old/Ask", "", "other"},
		{"/routed.v1.Service/Ask", "", "any"},
		{"/routed.v1.Service/Ask", "other", "other"},
		{"/copied.v1.Service/Ask", "", "any"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if tc.to != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-to", tc.to)
		}
		var header metadata.MD
		err := p.conn.Invoke(ctx, tc.path, &emptypb.Empty{}, &emptypb.Empty{}, grpc.Header(&header))
		cancel()
		if got := header["x-server"]; err != nil || !slices.Equal(got, []string{tc.want}) {
			t.Errorf("%s with x-to %q went to %q, %v; want %s", tc.path, tc.to, got, err, tc.want)
		}
	}
	select {
	case got := <-copies:
		if got != "/copied.v1.Service/Ask" {
			t.Errorf("%s is copied", got)
		}
	case <-time.After(patience):
		t.Error("no copy has come")
	}
	if found := faults(t, "unknown_methods: {cluster: bank}\npolicies:\n- {selector: new.v1.*, optional: true, cluster: nowhere}\n"); !slices.Contains(found, `3:49: there is no cluster "nowhere", only ["bank"]`) {
		t.Errorf("faults %q, want one of the cluster", found)
	}
}

// TestExplainUnknown: transom explain tells what becomes of calls of methods that no descriptor knows.
func TestExplainUnknown(t *testing.T) {
	p := &proxy{bank: "127.0.0.1:1", set: descriptorSet(t), clusters: `, any: {target: "static:///127.0.0.1:1"}`}
	text := `unknown_methods: {cluster: any}
policies:
- {selector: "*", cluster: bank, auth: {anonymous: true}}
- {selector: bank.v1.*, access: {deny_ips: [192.0.2.1]}, cluster: bank}
- {selector: bank.v1.Support.*, redact: {fields: [text]}}
`
	explain := func(name string) (string, error) {
		file := p.parse(t, text)
		where := func(path string) string {
			line, column := file.Position(path)
			return fmt.Sprintf("%d:%d", line, column)
		}
		var out strings.Builder
		err := gateway.Explain(t.Context(), file.Config, name, where, &out, slog.New(slog.DiscardHandler))
		return strings.ReplaceAll(squeeze(out.String()), `": `, `":`), err
	}
	for name, want := range map[string]string{
		"/pay.v1.Cards/Charge": `pay.v1.Cards.Charge of which no descriptor tells
POST /pay.v1.Cards/Charge

FIELD VALUE SELECTOR FROM
cluster "any" 1:28
stream_timeout 24h0m0s default
stream_idle_timeout 5m0s default
message_bytes 4194304 default
auth {"anonymous":true} * 3:40

a call goes through overload, idle, the cluster
`,
		"bank.v1.Accounts.Gett": `bank.v1.Accounts.Gett of which no descriptor tells; did you mean bank.v1.Accounts.Get?
POST /bank.v1.Accounts/Gett

FIELD VALUE SELECTOR FROM
cluster "bank" bank.v1.* 4:67
stream_timeout 24h0m0s default
stream_idle_timeout 5m0s default
message_bytes 4194304 default
auth {"anonymous":true} * 3:40
access {"deny_ips":["192.0.2.1"]} bank.v1.* 4:33

a call goes through overload, idle, access, the cluster
`,
	} {
		if got, err := explain(name); err != nil || got != want {
			t.Errorf("explain says\n%s%v\nwant\n%s", got, err, want)
		}
	}
	if got, err := explain("bank.v1.Support.New"); err != nil || !strings.HasSuffix(got, "a call goes through nothing: it is refused, since the policy for bank.v1.Support.* needs to know its messages\n") {
		t.Errorf("explain says\n%s%v", got, err)
	}
	for _, name := range []string{"Method", "a b.c", ".", ""} {
		if got, err := explain(name); err == nil {
			t.Errorf("explain %q says\n%s", name, got)
		}
	}
	text = "policies: [{selector: \"*\", cluster: bank}]\n"
	if got, err := explain("pay.v1.Cards.Charge"); err == nil || !strings.Contains(err.Error(), "there is no method pay.v1.Cards.Charge") {
		t.Errorf("without unknown_methods explain says\n%s%v", got, err)
	}
}
