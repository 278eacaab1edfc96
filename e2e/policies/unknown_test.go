package policies_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// TestUnknownMethods: policies hold for methods that no descriptor knows by their names, as for others; and where a policy needs what
// only descriptors tell, nothing gets by.
func TestUnknownMethods(t *testing.T) {
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		in := &emptypb.Empty{}
		if err := s.RecvMsg(in); err != nil {
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
	defer func() {
		srv.Stop()
		wg.Wait()
	}()
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
`, sha("k")), fmt.Sprintf(", any: {target: \"static:///%s\", no_health_check: true}", l.Addr()))
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
