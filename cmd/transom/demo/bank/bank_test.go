package bank

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	bankv1 "transom/proto/bank/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dial serves a bank in memory and connects to it.
func dial(t *testing.T, cfg Config) *grpc.ClientConn {
	t.Helper()
	b := New(cfg)
	s := grpc.NewServer(b.ServerOptions()...)
	b.Register(s)
	l := bufconn.Listen(1 << 20)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	conn, err := grpc.NewClient("passthrough:bank", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func money(currency string, units int64, nanos int32) *bankv1.Money {
	return &bankv1.Money{Currency: currency, Units: units, Nanos: nanos}
}

func TestAccounts(t *testing.T) {
	c := bankv1.NewAccountsClient(dial(t, Config{}))
	ctx := t.Context()

	a, err := c.Get(ctx, &bankv1.GetAccountRequest{Name: "7"})
	if err != nil || a.GetName() != "customers/3/accounts/1" || a.GetBalance().GetUnits() != 7000 {
		t.Fatalf("Get(7) = %v, %v", a, err)
	}
	a, err = c.Get(ctx, &bankv1.GetAccountRequest{Name: a.GetName(), ReadMask: &fieldmaskpb.FieldMask{Paths: []string{"number", "balance.units"}}})
	if want := (&bankv1.Account{Number: 7, Balance: &bankv1.Money{Units: 7000}}); err != nil || !proto.Equal(a, want) {
		t.Errorf("Get with a mask = %v, %v, want %v", a, err, want)
	}

	var names []string
	for token, pages := "", 0; ; pages++ {
		resp, err := c.List(ctx, &bankv1.ListAccountsRequest{PageSize: 10, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range resp.GetAccounts() {
			names = append(names, a.GetName())
		}
		if token = resp.GetNextPageToken(); token == "" {
			if pages != 2 || resp.GetTotalSize() != 24 || len(names) != 24 {
				t.Errorf("%d full pages, %d accounts of %d, want 2, 24 of 24", pages, len(names), resp.GetTotalSize())
			}
			break
		}
	}
	list, err := c.List(ctx, &bankv1.ListAccountsRequest{Filter: &bankv1.ListAccountsRequest_Filter{
		Kinds: []bankv1.Account_Kind{bankv1.Account_KIND_LOAN}, MinBalance: money("EUR", 12000, 0), Labels: map[string]string{"branch": "north"},
	}})
	if err != nil || len(list.GetAccounts()) != 2 || list.GetAccounts()[0].GetNumber() != 12 || list.GetAccounts()[1].GetNumber() != 18 {
		t.Errorf("List with a filter = %v, %v, want the accounts 12 and 18", list, err)
	}

	a, err = c.Create(ctx, &bankv1.CreateAccountRequest{Parent: "customers/9", AccountId: "new", Account: &bankv1.Account{
		DisplayName: "New", Labels: map[string]string{"a": "b"}, Number: 99, Balance: money("USD", 5, 0), Frozen: true,
	}})
	if err != nil || a.GetNumber() != 25 || !proto.Equal(a.GetBalance(), money("USD", 0, 0)) || a.GetFrozen() || a.GetLabels()["a"] != "b" {
		t.Fatalf("Create = %v, %v", a, err)
	}
	a, err = c.Update(ctx, &bankv1.UpdateAccountRequest{Account: &bankv1.Account{Name: a.GetName(), DisplayName: "Newer", DailyLimit: money("USD", 1, 0)}})
	if err != nil || a.GetDisplayName() != "Newer" || a.GetLabels()["a"] != "b" || a.GetEtag() != "2" {
		t.Errorf("Update without a mask = %v, %v", a, err)
	}
	a, err = c.Update(ctx, &bankv1.UpdateAccountRequest{
		Account: &bankv1.Account{Name: a.GetName(), DailyLimit: money("", 9, 0)}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels", "daily_limit.units"}},
	})
	if err != nil || a.GetDisplayName() != "Newer" || len(a.GetLabels()) != 0 || !proto.Equal(a.GetDailyLimit(), money("USD", 9, 0)) {
		t.Errorf("Update with a mask = %v, %v", a, err)
	}
	a, err = c.Replace(ctx, &bankv1.ReplaceAccountRequest{Account: &bankv1.Account{Name: a.GetName(), Kind: bankv1.Account_KIND_LOAN}})
	if err != nil || a.GetDisplayName() != "" || a.GetKind() != bankv1.Account_KIND_LOAN {
		t.Errorf("Replace = %v, %v", a, err)
	}
	if _, err := c.Delete(ctx, &bankv1.DeleteAccountRequest{Name: a.GetName()}); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if _, err := c.Get(ctx, &bankv1.GetAccountRequest{Name: "25"}); status.Code(err) != codes.NotFound {
		t.Errorf("Get after Delete: %v, want NOT_FOUND", err)
	}
}

func TestTransfer(t *testing.T) {
	c := bankv1.NewAccountsClient(dial(t, Config{}))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	watch, err := c.Watch(ctx, &bankv1.WatchRequest{Name: "2", OnlyNew: true, Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Header(); err != nil { // it watches from here on
		t.Fatal(err)
	}
	req := &bankv1.TransferRequest{
		Name: "1", Destination: &bankv1.TransferRequest_Account{Account: "customers/1/accounts/2"},
		Amount: money("EUR", 10, 750_000_000), Reference: "lunch", RequestId: "r1",
	}
	for range 2 { // the second changes nothing
		resp, err := c.Transfer(ctx, req)
		if err != nil || !proto.Equal(resp.GetBalance(), money("EUR", 989, 750_000_000)) || !proto.Equal(resp.GetTransaction().GetAmount(), money("EUR", -10, -750_000_000)) {
			t.Fatalf("Transfer = %v, %v", resp, err)
		}
	}
	up, err := c.Deposit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := up.Send(&bankv1.DepositRequest{Name: "2", Amount: money("EUR", 0, 500_000_000)}); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := up.CloseAndRecv()
	if err != nil || sum.GetDeposits() != 3 || !proto.Equal(sum.GetTotals()[0], money("EUR", 1, 500_000_000)) {
		t.Errorf("Deposit = %v, %v", sum, err)
	}
	for i, want := range []*bankv1.Money{money("EUR", 10, 750_000_000), money("EUR", 0, 500_000_000)} {
		got, err := watch.Recv()
		if err != nil || !proto.Equal(got.GetAmount(), want) {
			t.Errorf("watched %d: %v, %v, want %v", i, got, err, want)
		}
	}
	if _, err := watch.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after count: %v, want EOF", err)
	}
	balance, err := c.Balance(ctx, &bankv1.BalanceRequest{Name: "2"})
	if err != nil || !proto.Equal(balance.GetBalance(), money("EUR", 2012, 750_000_000)) {
		t.Errorf("Balance = %v, %v", balance, err)
	}
	made, err := c.Watch(ctx, &bankv1.WatchRequest{Name: "3", Count: 5, Interval: durationpb.New(time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		if _, err := made.Recv(); err != nil {
			if n != 5 || !errors.Is(err, io.EOF) {
				t.Errorf("%d transactions, then %v; want 5, then EOF", n, err)
			}
			break
		}
		n++
	}
}

// TestWatchedWhileBooked has an account be written to while transactions are made up for its watcher: for the race detector.
func TestWatchedWhileBooked(t *testing.T) {
	ctx := t.Context()
	c := bankv1.NewAccountsClient(dial(t, Config{}))
	const count = 200
	watch, err := c.Watch(ctx, &bankv1.WatchRequest{Name: "3", OnlyNew: true, Count: count, Interval: durationpb.New(time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	deposits, err := c.Deposit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; err == nil; n++ {
		if n < count/2 {
			if err := deposits.Send(&bankv1.DepositRequest{Name: "3", Amount: money("EUR", 1, 0)}); err != nil {
				t.Fatal(err)
			}
		}
		_, err = watch.Recv()
	}
	if n != count+1 || !errors.Is(err, io.EOF) {
		t.Errorf("%d transactions, then %v; want %d, then EOF", n-1, err, count)
	}
	if _, err := deposits.CloseAndRecv(); err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	conn := dial(t, Config{})
	c := bankv1.NewAccountsClient(conn)
	eur := money("EUR", 1, 0)
	to := &bankv1.TransferRequest_Account{Account: "2"}
	if _, err := c.Freeze(t.Context(), &bankv1.FreezeAccountRequest{Name: "5"}); err != nil {
		t.Fatal(err)
	}
	type ctx = context.Context
	for _, tc := range []struct {
		name string
		call func(ctx) error
		code codes.Code
		want string // in the status's text, details included
	}{
		{"no such account", func(x ctx) error { _, err := c.Get(x, &bankv1.GetAccountRequest{Name: "77"}); return err }, codes.NotFound, "bank.v1.Account"},
		{"bad name", func(x ctx) error { _, err := c.Get(x, &bankv1.GetAccountRequest{Name: "x/y"}); return err }, codes.InvalidArgument, `name: "x/y"`},
		{"bad mask", func(x ctx) error {
			_, err := c.Get(x, &bankv1.GetAccountRequest{Name: "1", ReadMask: &fieldmaskpb.FieldMask{Paths: []string{"nope"}}})
			return err
		}, codes.InvalidArgument, `"nope" is not a field`},
		{"mask of the bank's", func(x ctx) error {
			_, err := c.Update(x, &bankv1.UpdateAccountRequest{Account: &bankv1.Account{Name: "1"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"balance"}}})
			return err
		}, codes.InvalidArgument, `"balance" is set by the bank`},
		{"etag", func(x ctx) error {
			_, err := c.Replace(x, &bankv1.ReplaceAccountRequest{Account: &bankv1.Account{Name: "1", Etag: "9"}})
			return err
		}, codes.Aborted, "ETAG_MISMATCH"},
		{"page token", func(x ctx) error { _, err := c.List(x, &bankv1.ListAccountsRequest{PageToken: "z"}); return err }, codes.InvalidArgument, "page_token"},
		{"exists", func(x ctx) error {
			_, err := c.Create(x, &bankv1.CreateAccountRequest{Parent: "customers/1", AccountId: "1", Account: &bankv1.Account{}})
			return err
		}, codes.AlreadyExists, "customers/1/accounts/1"},
		{"not empty", func(x ctx) error { _, err := c.Delete(x, &bankv1.DeleteAccountRequest{Name: "1"}); return err }, codes.FailedPrecondition, "1000.50 EUR"},
		{"no amount", func(x ctx) error {
			_, err := c.Transfer(x, &bankv1.TransferRequest{Name: "1", Destination: to})
			return err
		}, codes.InvalidArgument, "amount: is required"},
		{"negative", func(x ctx) error {
			_, err := c.Transfer(x, &bankv1.TransferRequest{Name: "1", Destination: to, Amount: money("EUR", -1, 0)})
			return err
		}, codes.InvalidArgument, "more than zero"},
		{"nowhere", func(x ctx) error {
			_, err := c.Transfer(x, &bankv1.TransferRequest{Name: "1", Amount: eur})
			return err
		}, codes.InvalidArgument, "destination"},
		{"too little", func(x ctx) error {
			_, err := c.Transfer(x, &bankv1.TransferRequest{Name: "1", Destination: to, Amount: money("EUR", 1001, 0)})
			return err
		}, codes.FailedPrecondition, "INSUFFICIENT_FUNDS"},
		{"frozen", func(x ctx) error {
			_, err := c.Transfer(x, &bankv1.TransferRequest{Name: "5", Destination: to, Amount: eur})
			return err
		}, codes.FailedPrecondition, "FROZEN"},
		{"currency", func(x ctx) error {
			_, err := c.Transfer(x, &bankv1.TransferRequest{Name: "1", Destination: to, Amount: money("USD", 1, 0)})
			return err
		}, codes.FailedPrecondition, "CURRENCY_MISMATCH"},
		{"rate", func(x ctx) error {
			_, err := bankv1.NewRatesClient(conn).Get(x, &bankv1.GetRateRequest{Base: "EUR", Quote: "XXX"})
			return err
		}, codes.NotFound, "XXX"},
		{"asked for", func(x ctx) error {
			_, err := bankv1.NewDiagnosticsClient(conn).Fail(x, &bankv1.FailRequest{Code: 9, Message: "as asked", Details: true, UnknownDetail: true})
			return err
		}, codes.FailedPrecondition, "bank.v1.NobodyKnows"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := status.Convert(tc.call(t.Context()))
			if st.Code() != tc.code || !strings.Contains(st.String()+st.Proto().String(), tc.want) {
				t.Errorf("got %v, want %v with %q", st.Proto(), tc.code, tc.want)
			}
		})
	}
}

func TestStatements(t *testing.T) {
	c := bankv1.NewStatementsClient(dial(t, Config{}))
	const size = 1_000_003
	want := sha256.New()
	if _, err := io.Copy(want, Content(size)); err != nil {
		t.Fatal(err)
	}

	down, err := c.Download(t.Context(), &bankv1.DownloadStatementRequest{Name: "customers/1/accounts/1/statements/2026", SizeBytes: size, PartBytes: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	up, err := c.Upload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name := "customers/1/accounts/1/statements/2026/01"
	for {
		part, err := down.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := up.Send(&bankv1.UploadStatementRequest{Name: name, File: part}); err != nil {
			t.Fatal(err)
		}
		name = ""
	}
	got, err := up.CloseAndRecv()
	if err != nil || got.GetSizeBytes() != size || got.GetParts() != 101 || !bytes.Equal(got.GetSha256(), want.Sum(nil)) ||
		got.GetContentType() != "application/octet-stream" || got.GetName() != "customers/1/accounts/1/statements/2026/01" {
		t.Errorf("Upload = %v, %v", got, err)
	}

	imp, err := c.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := imp.Send(&httpbody.HttpBody{ContentType: "text/plain", Data: []byte("abc")}); err != nil {
		t.Fatal(err)
	}
	if got, err := imp.CloseAndRecv(); err != nil || got.GetSizeBytes() != 3 || got.GetContentType() != "text/plain" {
		t.Errorf("Import = %v, %v", got, err)
	}
	csv, err := c.Get(t.Context(), &bankv1.GetStatementRequest{Name: "1"})
	if err != nil || !strings.HasPrefix(string(csv.GetData()), "time,amount,reference,counterparty\n2026-02-02T09:00:00Z,10.00 EUR,rent,Bank\n") {
		t.Errorf("Get = %q, %v", csv.GetData(), err)
	}
}

func TestChat(t *testing.T) {
	c := bankv1.NewSupportClient(dial(t, Config{}))
	chat, err := c.Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, tc := range []struct{ say, want string }{{"", "Hello! How can I help?"}, {"hi", `You said "hi".`}, {"bye", "Goodbye."}} {
		if err := chat.Send(&bankv1.ChatMessage{Room: "r", Text: tc.say}); err != nil {
			t.Fatal(err)
		}
		got, err := chat.Recv()
		if err != nil || got.GetText() != tc.want || got.GetRoom() != "r" || got.GetSequence() != int64(i+1) {
			t.Errorf("to %q: %v, %v, want %q", tc.say, got, err, tc.want)
		}
	}
	if _, err := chat.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after bye: %v, want EOF", err)
	}
}

func TestDiagnostics(t *testing.T) {
	canceled := make(chan string, 1)
	conn := dial(t, Config{Name: "slow one", Canceled: func(method string, err error) { canceled <- method + " " + err.Error() }})
	c := bankv1.NewDiagnosticsClient(conn)

	var header, trailer metadata.MD
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-a", "1", "x-a", "2", "x-b-bin", "\x00\xff")
	resp, err := c.Metadata(ctx, &bankv1.MetadataRequest{
		Header: map[string]string{"x-h": "v"}, Trailer: map[string]string{"x-t-bin": "AAE="},
	}, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil || resp.GetServer() != "slow one" || resp.GetTimeout() != nil ||
		strings.Join(resp.GetMetadata()["x-a"].GetValues(), " ") != "1 2" || resp.GetMetadata()["x-b-bin"].GetValues()[0] != "AP8=" {
		t.Errorf("Metadata = %v, %v", resp, err)
	}
	if header.Get("x-h")[0] != "v" || trailer.Get("x-t-bin")[0] != "\x00\x01" || len(trailer.Get("endpoint-load-metrics-bin")) != 1 {
		t.Errorf("header %v, trailer %v; want x-h, x-t-bin and a load report", header, trailer)
	}

	late, err := c.FailLate(t.Context(), &bankv1.FailRequest{Code: 14, AfterMessages: 3})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for err == nil {
		if _, err = late.Recv(); err == nil {
			n++
		}
	}
	if n != 3 || status.Code(err) != codes.Unavailable {
		t.Errorf("FailLate: %d messages, then %v", n, err)
	}

	gen, err := c.Generate(t.Context(), &bankv1.GenerateRequest{Count: 4, SizeBytes: 300})
	if err != nil {
		t.Fatal(err)
	}
	for n = 0; ; n++ {
		m, err := gen.Recv()
		if err != nil {
			break
		}
		if len(m.GetPayload()) != 300 || m.GetPayload()[252] != 1 {
			t.Errorf("payload of %d bytes", len(m.GetPayload()))
		}
	}
	if n != 4 {
		t.Errorf("%d messages, want 4", n)
	}

	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.Slow(short, &bankv1.SlowRequest{Delay: durationpb.New(time.Hour)}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Slow: %v, want DEADLINE_EXCEEDED", err)
	}
	select {
	case got := <-canceled:
		if !strings.HasPrefix(got, "/bank.v1.Diagnostics/Slow ") {
			t.Errorf("canceled %q", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the end of the call is not told")
	}
	if resp, err := c.Slow(t.Context(), &bankv1.SlowRequest{}); err != nil || resp.GetServer() != "slow one" {
		t.Errorf("Slow = %v, %v", resp, err)
	}
	if resp, err := healthgrpc.NewHealthClient(conn).Check(t.Context(), &healthgrpc.HealthCheckRequest{Service: "bank.v1.Accounts"}); err != nil ||
		resp.GetStatus() != healthgrpc.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", resp, err)
	}
}

func TestCapacity(t *testing.T) {
	conn := dial(t, Config{Capacity: 1, Delay: time.Millisecond})
	c := bankv1.NewDiagnosticsClient(conn)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := c.Slow(ctx, &bankv1.SlowRequest{Delay: durationpb.New(time.Hour)})
		first <- err
	}()
	// Until the first has the slot others pass; then they wait for it.
	for {
		short, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := c.Echo(short, &bankv1.Everything{Text: "x"})
		stop()
		if status.Code(err) == codes.DeadlineExceeded {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-first; status.Code(err) != codes.Canceled {
		t.Errorf("the first: %v, want CANCELED", err)
	}
	if resp, err := c.Echo(t.Context(), &bankv1.Everything{Text: "x"}); err != nil || resp.GetText() != "x" {
		t.Errorf("after it: %v, %v", resp, err)
	}
}

func TestBranch(t *testing.T) {
	head := New(Config{})
	branch := head.Branch(Config{Name: "branch"})
	if _, err := (&accounts{bank: head}).Freeze(t.Context(), &bankv1.FreezeAccountRequest{Name: "1"}); err != nil {
		t.Fatal(err)
	}
	if a, err := (&accounts{bank: branch}).Get(t.Context(), &bankv1.GetAccountRequest{Name: "1"}); err != nil || !a.GetFrozen() {
		t.Errorf("Get at a branch = %v, %v, want it frozen", a, err)
	}
}

func TestDescriptorSet(t *testing.T) {
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(DescriptorSet(), &set); err != nil {
		t.Fatal(err)
	}
	files, err := protodesc.NewFiles(&set) // refuses a set that lacks an import
	if err != nil {
		t.Fatal(err)
	}
	if _, err := files.FindDescriptorByName("bank.v1.Accounts.Transfer"); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(DescriptorSet(), DescriptorSet()) {
		t.Error("two calls differ")
	}
}
