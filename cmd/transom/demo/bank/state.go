package bank

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bankv1 "transom/proto/bank/v1"
)

// Bounds of what is kept in memory; a demo may be left running.
const (
	maxAccounts     = 10_000
	maxTransactions = 1_000 // of one account; the oldest go
	maxRequestIDs   = 10_000
)

// state is the bank's books.
type state struct {
	accounts []*account // by number, rising
	byName   map[string]*account
	number   int64 // the last one given out

	answers map[string]*bankv1.TransferResponse // by request_id
	recent  []string                            // request ids, oldest first
}

// account is an account and its movements. The proto is replaced, never changed, so it may be read without the lock.
type account struct {
	*bankv1.Account

	dropped      int                   // movements that were dropped, all before transactions
	transactions []*bankv1.Transaction // oldest first
	changed      chan struct{}         // closed at the next movement
}

// seed is the state at start.
func seed() state {
	s := state{byName: map[string]*account{}, answers: map[string]*bankv1.TransferResponse{}}
	kinds := []bankv1.Account_Kind{bankv1.Account_KIND_CURRENT, bankv1.Account_KIND_SAVINGS, bankv1.Account_KIND_LOAN}
	start := time.Date(2026, 1, 1, 9, 0, 0, 0, time.UTC)
	for customer := range int64(8) {
		for i := range int64(3) {
			number := customer*3 + i + 1
			currency := "EUR"
			if customer >= 6 {
				currency = []string{"USD", "GBP"}[customer-6]
			}
			a := s.open(&bankv1.Account{
				Name:        fmt.Sprintf("customers/%d/accounts/%d", customer+1, i+1),
				DisplayName: []string{"Everyday", "Rainy day", "House"}[i],
				Kind:        kinds[i],
				Balance:     &bankv1.Money{Currency: currency, Units: 1000 * number, Nanos: 500_000_000},
				OpenTime:    timestamppb.New(start.AddDate(0, 0, int(number))),
				Labels:      map[string]string{"branch": []string{"north", "south"}[number%2]},
				Owners:      []string{fmt.Sprintf("customers/%d", customer+1)},
			})
			for j := range 3 {
				s.record(a, &bankv1.Transaction{
					Amount:       &bankv1.Money{Currency: currency, Units: int64(j+1) * 10},
					Reference:    []string{"rent", "salary", "refund"}[j],
					Time:         timestamppb.New(start.AddDate(0, 1, int(number)+j)),
					Counterparty: "Bank",
				})
			}
		}
	}
	return s
}

// open adds an account, with a number and an etag.
func (s *state) open(p *bankv1.Account) *account {
	s.number++
	p.Number, p.Etag = s.number, "1"
	a := &account{Account: p, changed: make(chan struct{})}
	s.accounts = append(s.accounts, a)
	s.byName[p.GetName()] = a
	return a
}

// close removes an account.
func (s *state) close(a *account) {
	delete(s.byName, a.GetName())
	s.accounts = slices.DeleteFunc(s.accounts, func(o *account) bool { return o == a })
}

// find returns the account of that name or number; field is the request field that names it.
func (s *state) find(field, name string) (*account, error) {
	if a, ok := s.byName[name]; ok {
		return a, nil
	}
	if number, err := strconv.ParseInt(name, 10, 64); err == nil {
		i, ok := slices.BinarySearchFunc(s.accounts, number, func(a *account, n int64) int { return int(a.GetNumber() - n) })
		if ok {
			return s.accounts[i], nil
		}
		return nil, notFound("Account", name)
	}
	if parts := strings.Split(name, "/"); len(parts) != 4 || parts[0] != "customers" || parts[2] != "accounts" {
		return nil, invalid(field, "%q is neither customers/*/accounts/* nor a number", name)
	}
	return nil, notFound("Account", name)
}

// write replaces the account's proto by one that change has edited, with a new etag.
func (s *state) write(a *account, change func(p *bankv1.Account)) {
	p := proto.CloneOf(a.Account)
	change(p)
	version, _ := strconv.Atoi(p.GetEtag()) // always one of ours
	p.Etag = strconv.Itoa(version + 1)
	a.Account = p
}

// record adds a movement, names it and wakes the watchers. It does not change the balance.
func (s *state) record(a *account, t *bankv1.Transaction) {
	t.Name = fmt.Sprintf("%s/transactions/%d", a.GetName(), a.dropped+len(a.transactions)+1)
	a.transactions = append(a.transactions, t)
	if over := len(a.transactions) - maxTransactions; over > 0 {
		a.transactions = slices.Delete(a.transactions, 0, over)
		a.dropped += over
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// since returns the movements from the n-th on (counting from 0), the number to ask for next, and a channel that is
// closed when there are more.
func (a *account) since(n int) ([]*bankv1.Transaction, int, <-chan struct{}) {
	from := min(max(0, n-a.dropped), len(a.transactions))
	return slices.Clone(a.transactions[from:]), a.dropped + len(a.transactions), a.changed
}

// remember keeps an answer for its request_id.
func (s *state) remember(id string, answer *bankv1.TransferResponse) {
	if id == "" {
		return
	}
	if len(s.recent) == maxRequestIDs {
		delete(s.answers, s.recent[0])
		s.recent = s.recent[1:]
	}
	s.answers[id] = answer
	s.recent = append(s.recent, id)
}

// page cuts a page out of n items: the range, and the token of the next page.
func page(n int, size int32, token string) (from, to int, next string, err error) {
	if size < 0 || size > 1000 {
		return 0, 0, "", invalid("page_size", "%d is outside 0 … 1000", size)
	}
	if size == 0 {
		size = 50
	}
	if token != "" {
		from, err = strconv.Atoi(strings.TrimPrefix(token, "from-"))
		if err != nil || from < 0 || !strings.HasPrefix(token, "from-") {
			return 0, 0, "", invalid("page_token", "%q is not a token of this bank", token)
		}
	}
	from = min(from, n)
	to = min(from+int(size), n)
	if to < n {
		next = "from-" + strconv.Itoa(to)
	}
	return from, to, next, nil
}

// errFull says that a bound of the demo is reached.
func errFull() error {
	return status.Errorf(codes.ResourceExhausted, "the demo keeps at most %d accounts", maxAccounts)
}
