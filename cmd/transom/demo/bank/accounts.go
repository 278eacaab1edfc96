package bank

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bankv1 "transom/proto/bank/v1"
)

// accounts implements bank.v1.Accounts.
type accounts struct {
	bankv1.UnimplementedAccountsServer

	bank *Bank
}

// Get implements bank.v1.Accounts.
func (s *accounts) Get(_ context.Context, req *bankv1.GetAccountRequest) (*bankv1.Account, error) {
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	a, err := s.bank.state.find("name", req.GetName())
	if err != nil {
		return nil, err
	}
	return masked(a.Account, req.GetReadMask())
}

// List implements bank.v1.Accounts.
func (s *accounts) List(_ context.Context, req *bankv1.ListAccountsRequest) (*bankv1.ListAccountsResponse, error) {
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	var found []*account
	for _, a := range s.bank.state.accounts {
		if (req.GetParent() == "" || strings.HasPrefix(a.GetName(), req.GetParent()+"/")) && matches(a.Account, req.GetFilter()) {
			found = append(found, a)
		}
	}
	from, to, next, err := page(len(found), req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	resp := &bankv1.ListAccountsResponse{NextPageToken: next, TotalSize: int32(len(found))}
	for _, a := range found[from:to] {
		p, err := masked(a.Account, req.GetReadMask())
		if err != nil {
			return nil, err
		}
		resp.Accounts = append(resp.Accounts, p)
	}
	return resp, nil
}

// matches reports whether an account meets all that is set in f.
func matches(a *bankv1.Account, f *bankv1.ListAccountsRequest_Filter) bool {
	for k, v := range f.GetLabels() {
		if a.GetLabels()[k] != v {
			return false
		}
	}
	return (len(f.GetKinds()) == 0 || slices.Contains(f.GetKinds(), a.GetKind())) &&
		(f.GetMinBalance() == nil || a.GetBalance().GetCurrency() == f.GetMinBalance().GetCurrency() && !less(a.GetBalance(), f.GetMinBalance())) &&
		(f.GetOpenedAfter() == nil || a.GetOpenTime().AsTime().After(f.GetOpenedAfter().AsTime())) &&
		(f.GetFrozen() == nil || a.GetFrozen() == f.GetFrozen().GetValue())
}

// BatchGet implements bank.v1.Accounts.
func (s *accounts) BatchGet(_ context.Context, req *bankv1.BatchGetAccountsRequest) (*bankv1.BatchGetAccountsResponse, error) {
	if n := len(req.GetNames()); n == 0 || n > 100 {
		return nil, invalid("names", "%d names are outside 1 … 100", n)
	}
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	resp := &bankv1.BatchGetAccountsResponse{}
	for _, name := range req.GetNames() {
		a, err := s.bank.state.find("names", name)
		if err != nil {
			return nil, err
		}
		resp.Accounts = append(resp.Accounts, a.Account)
	}
	return resp, nil
}

// Create implements bank.v1.Accounts.
func (s *accounts) Create(_ context.Context, req *bankv1.CreateAccountRequest) (*bankv1.Account, error) {
	if parts := strings.Split(req.GetParent(), "/"); len(parts) != 2 || parts[0] != "customers" || parts[1] == "" {
		return nil, invalid("parent", "%q is not customers/*", req.GetParent())
	}
	if strings.Contains(req.GetAccountId(), "/") {
		return nil, invalid("account_id", "%q has a slash", req.GetAccountId())
	}
	if req.GetAccount() == nil {
		return nil, invalid("account", "is required")
	}
	currency := req.GetAccount().GetBalance().GetCurrency()
	if currency == "" {
		currency = "EUR"
	}
	if rateOf(currency) == 0 {
		return nil, invalid("account.balance.currency", "%q is not a currency of this bank", currency)
	}
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	st := &s.bank.state
	if len(st.accounts) >= maxAccounts {
		return nil, errFull()
	}
	id := req.GetAccountId()
	if id == "" {
		id = "n" + time.Now().UTC().Format("20060102150405.000000000")
	}
	name := req.GetParent() + "/accounts/" + id
	if _, ok := st.byName[name]; ok {
		return nil, statusWith(codes.AlreadyExists, "account "+name+" exists",
			&errdetails.ResourceInfo{ResourceType: "bank.v1.Account", ResourceName: name})
	}
	p := &bankv1.Account{}
	for _, field := range settable {
		copyPath(p.ProtoReflect(), req.GetAccount().ProtoReflect(), []string{field})
	}
	p.Name, p.Balance, p.OpenTime = name, &bankv1.Money{Currency: currency}, timestamppb.Now()
	return st.open(p).Account, nil
}

// settable are the fields of an Account that clients may set.
var settable = []string{"display_name", "kind", "labels", "owners", "daily_limit"}

// Update implements bank.v1.Accounts.
func (s *accounts) Update(_ context.Context, req *bankv1.UpdateAccountRequest) (*bankv1.Account, error) {
	in := req.GetAccount()
	paths := req.GetUpdateMask().GetPaths()
	switch {
	case in == nil:
		return nil, invalid("account", "is required")
	case slices.Equal(paths, []string{"*"}):
		paths = settable
	case len(paths) == 0:
		for _, field := range settable {
			if in.ProtoReflect().Has(in.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field))) {
				paths = append(paths, field)
			}
		}
	}
	if err := checkPaths("update_mask", paths, true); err != nil {
		return nil, err
	}
	return s.change(in, paths)
}

// Replace implements bank.v1.Accounts.
func (s *accounts) Replace(_ context.Context, req *bankv1.ReplaceAccountRequest) (*bankv1.Account, error) {
	if req.GetAccount() == nil {
		return nil, invalid("account", "is required")
	}
	return s.change(req.GetAccount(), settable)
}

// change copies the fields at paths from in to the account of its name, if in carries no other etag.
func (s *accounts) change(in *bankv1.Account, paths []string) (*bankv1.Account, error) {
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	a, err := s.bank.state.find("account.name", in.GetName())
	if err != nil {
		return nil, err
	}
	if in.GetEtag() != "" && in.GetEtag() != a.GetEtag() {
		return nil, statusWith(codes.Aborted, "the account has changed; read it again",
			&errdetails.ErrorInfo{Reason: "ETAG_MISMATCH", Domain: "bank.example", Metadata: map[string]string{"etag": a.GetEtag()}})
	}
	s.bank.state.write(a, func(p *bankv1.Account) {
		for _, path := range paths {
			copyPath(p.ProtoReflect(), in.ProtoReflect(), strings.Split(path, "."))
		}
	})
	return a.Account, nil
}

// Delete implements bank.v1.Accounts.
func (s *accounts) Delete(_ context.Context, req *bankv1.DeleteAccountRequest) (*emptypb.Empty, error) {
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	a, err := s.bank.state.find("name", req.GetName())
	if err != nil {
		return nil, err
	}
	if b := a.GetBalance(); b.GetUnits() != 0 || b.GetNanos() != 0 {
		return nil, statusWith(codes.FailedPrecondition, "the account is not empty: it holds "+text(b),
			&errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{
				{Type: "BALANCE", Subject: a.GetName(), Description: "It holds " + text(b) + "; transfer it first."},
			}})
	}
	s.bank.state.close(a)
	return &emptypb.Empty{}, nil
}

// Freeze implements bank.v1.Accounts.
func (s *accounts) Freeze(_ context.Context, req *bankv1.FreezeAccountRequest) (*bankv1.Account, error) {
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	a, err := s.bank.state.find("name", req.GetName())
	if err != nil {
		return nil, err
	}
	s.bank.state.write(a, func(p *bankv1.Account) { p.Frozen = true })
	return a.Account, nil
}

// Balance implements bank.v1.Accounts.
func (s *accounts) Balance(_ context.Context, req *bankv1.BalanceRequest) (*bankv1.BalanceResponse, error) {
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	a, err := s.bank.state.find("name", req.GetName())
	if err != nil {
		return nil, err
	}
	return &bankv1.BalanceResponse{Balance: a.GetBalance(), AsOf: timestamppb.Now()}, nil
}

// Transfer implements bank.v1.Accounts.
func (s *accounts) Transfer(_ context.Context, req *bankv1.TransferRequest) (*bankv1.TransferResponse, error) {
	if err := checkAmount("amount", req.GetAmount()); err != nil {
		return nil, err
	}
	if req.GetAccount() == "" && req.GetIban().GetIban() == "" {
		return nil, invalid("destination", "one of account and iban is required")
	}
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	st := &s.bank.state
	if answer, ok := st.answers[req.GetRequestId()]; ok && req.GetRequestId() != "" {
		return answer, nil
	}
	from, err := st.find("name", req.GetName())
	if err != nil {
		return nil, err
	}
	var to *account
	counterparty := req.GetIban().GetIban()
	if req.GetAccount() != "" {
		if to, err = st.find("account", req.GetAccount()); err != nil {
			return nil, err
		}
		counterparty = to.GetName()
	}
	switch {
	case from == to:
		return nil, invalid("account", "is the account the money leaves")
	case from.GetFrozen():
		return nil, refused("FROZEN", "the account is frozen", map[string]string{"account": from.GetName()})
	case from.GetBalance().GetCurrency() != req.GetAmount().GetCurrency(),
		to != nil && to.GetBalance().GetCurrency() != req.GetAmount().GetCurrency():
		return nil, refused("CURRENCY_MISMATCH", "both accounts must be in "+req.GetAmount().GetCurrency(), nil)
	case less(from.GetBalance(), req.GetAmount()):
		return nil, refused("INSUFFICIENT_FUNDS", "the account holds "+text(from.GetBalance()),
			map[string]string{"balance": text(from.GetBalance()), "amount": text(req.GetAmount())})
	}
	now := timestamppb.Now()
	out := &bankv1.Transaction{
		Amount:    add(&bankv1.Money{Currency: req.GetAmount().GetCurrency()}, req.GetAmount(), -1),
		Reference: req.GetReference(), Time: now, Counterparty: counterparty,
	}
	s.move(from, out)
	if to != nil {
		s.move(to, &bankv1.Transaction{
			Amount: req.GetAmount(), Reference: req.GetReference(), Time: now, Counterparty: from.GetName(),
		})
	}
	answer := &bankv1.TransferResponse{Transaction: out, Balance: from.GetBalance()}
	st.remember(req.GetRequestId(), answer)
	return answer, nil
}

// move books a movement and changes the balance by it.
func (s *accounts) move(a *account, t *bankv1.Transaction) {
	s.bank.state.write(a, func(p *bankv1.Account) { p.Balance = add(p.GetBalance(), t.GetAmount(), 1) })
	s.bank.state.record(a, t)
}

// Deposit implements bank.v1.Accounts. Those before a faulty one stay booked.
func (s *accounts) Deposit(stream grpc.ClientStreamingServer[bankv1.DepositRequest, bankv1.DepositResponse]) error {
	resp := &bankv1.DepositResponse{}
	for {
		req, err := stream.Recv()
		if err == io.EOF {
			return stream.SendAndClose(resp)
		}
		if err != nil {
			return err
		}
		if err := s.deposit(req); err != nil {
			return err
		}
		resp.Deposits++
		i := slices.IndexFunc(resp.GetTotals(), func(m *bankv1.Money) bool { return m.GetCurrency() == req.GetAmount().GetCurrency() })
		if i < 0 {
			resp.Totals = append(resp.Totals, req.GetAmount())
		} else {
			resp.Totals[i] = add(resp.GetTotals()[i], req.GetAmount(), 1)
		}
	}
}

// deposit books one deposit.
func (s *accounts) deposit(req *bankv1.DepositRequest) error {
	if err := checkAmount("amount", req.GetAmount()); err != nil {
		return err
	}
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	a, err := s.bank.state.find("name", req.GetName())
	if err != nil {
		return err
	}
	if a.GetBalance().GetCurrency() != req.GetAmount().GetCurrency() {
		return refused("CURRENCY_MISMATCH", "the account is in "+a.GetBalance().GetCurrency(), nil)
	}
	s.move(a, &bankv1.Transaction{Amount: req.GetAmount(), Reference: "deposit", Time: timestamppb.Now(), Counterparty: "Bank"})
	return nil
}

// Watch implements bank.v1.Accounts.
func (s *accounts) Watch(req *bankv1.WatchRequest, stream grpc.ServerStreamingServer[bankv1.Transaction]) error {
	if req.GetCount() < 0 {
		return invalid("count", "is negative")
	}
	interval := req.GetInterval().AsDuration()
	if interval < 0 || interval > 0 && interval < time.Millisecond {
		return invalid("interval", "%v is less than 1ms", interval)
	}
	s.bank.mu.Lock()
	a, err := s.bank.state.find("name", req.GetName())
	if err != nil {
		s.bank.mu.Unlock()
		return err
	}
	shown, next := a.Account, 0 // what is written replaces it
	if req.GetOnlyNew() {
		_, next, _ = a.since(0)
	}
	s.bank.mu.Unlock()
	var tick <-chan time.Time
	if interval > 0 {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	if err := stream.SendHeader(nil); err != nil { // tells the client that it is watching
		return err
	}
	for sent, made := int32(0), 0; ; {
		s.bank.mu.Lock()
		var news []*bankv1.Transaction
		var changed <-chan struct{}
		news, next, changed = a.since(next)
		s.bank.mu.Unlock()
		for len(news) > 0 {
			if err := stream.Send(news[0]); err != nil {
				return err
			}
			news = news[1:]
			if sent++; sent == req.GetCount() {
				return nil
			}
		}
		select {
		case <-changed:
		case now := <-tick:
			made++
			if err := stream.Send(madeUp(shown, made, now)); err != nil {
				return err
			}
			if sent++; sent == req.GetCount() {
				return nil
			}
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// madeUp is the n-th transaction that is sent to a watcher for show; it is not booked.
func madeUp(a *bankv1.Account, n int, now time.Time) *bankv1.Transaction {
	return &bankv1.Transaction{
		Name:         a.GetName() + "/transactions/demo-" + strconv.Itoa(n),
		Amount:       &bankv1.Money{Currency: a.GetBalance().GetCurrency(), Units: int64(n%50) + 1, Nanos: 990_000_000},
		Reference:    []string{"coffee", "book", "train", "lunch"}[n%4],
		Time:         timestamppb.New(now),
		Counterparty: "Shop",
	}
}

// Transactions implements bank.v1.Accounts.
func (s *accounts) Transactions(_ context.Context, req *bankv1.ListTransactionsRequest) (*bankv1.ListTransactionsResponse, error) {
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	a, err := s.bank.state.find("parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	all, _, _ := a.since(0)
	from, to, next, err := page(len(all), req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	return &bankv1.ListTransactionsResponse{Transactions: all[from:to], NextPageToken: next}, nil
}

// masked is the account with the fields that mask names only; all of it without a mask.
func masked(p *bankv1.Account, mask *fieldmaskpb.FieldMask) (*bankv1.Account, error) {
	paths := mask.GetPaths()
	if len(paths) == 0 || slices.Contains(paths, "*") {
		return p, nil
	}
	if err := checkPaths("read_mask", paths, false); err != nil {
		return nil, err
	}
	out := &bankv1.Account{}
	for _, path := range paths {
		copyPath(out.ProtoReflect(), p.ProtoReflect(), strings.Split(path, "."))
	}
	return out, nil
}

// checkPaths says which of a mask's paths does not exist, or may not be written.
func checkPaths(field string, paths []string, write bool) error {
	for _, path := range paths {
		if _, err := fieldmaskpb.New(&bankv1.Account{}, path); err != nil {
			return invalid(field, "%q is not a field of Account", path)
		}
		if top, _, _ := strings.Cut(path, "."); write && !slices.Contains(settable, top) {
			return invalid(field, "%q is set by the bank", path)
		}
	}
	return nil
}

// copyPath sets the field of dst at path to that of src, clearing it if src has none. The path is valid.
func copyPath(dst, src protoreflect.Message, path []string) {
	fd := dst.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	switch {
	case !src.Has(fd):
		dst.Clear(fd)
	case len(path) > 1:
		copyPath(dst.Mutable(fd).Message(), src.Get(fd).Message(), path[1:])
	default:
		one := proto.Clone(src.Interface()).ProtoReflect() // lists and messages must not be shared
		dst.Set(fd, one.Get(fd))
	}
}
