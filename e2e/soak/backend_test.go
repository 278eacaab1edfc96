package soak

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	bankv1 "transom/proto/bank/v1"
)

// ledger counts how often backends began each call that must not be made twice.
type ledger struct {
	mu    sync.Mutex
	began map[string]int
}

func (l *ledger) saw(id string) {
	l.mu.Lock()
	l.began[id]++
	l.mu.Unlock()
}

func (l *ledger) count(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.began[id]
}

// echoes are services that answer what they were sent, and enter what has side effects in a ledger.
type echoes struct {
	bankv1.UnimplementedAccountsServer
	bankv1.UnimplementedDiagnosticsServer
	bankv1.UnimplementedSupportServer
	ledger *ledger
}

// work is slow once in a while, so that calls are under way when their backend goes.
func work(ctx context.Context) error {
	d := time.Duration(0)
	switch n := rand.IntN(100); {
	case n < 2:
		d = 300 * time.Millisecond
	case n < 20:
		d = 5 * time.Millisecond
	}
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// Transfer has side effects: it is entered in the ledger by its request_id before anything else.
func (e *echoes) Transfer(ctx context.Context, r *bankv1.TransferRequest) (*bankv1.TransferResponse, error) {
	e.ledger.saw(r.GetRequestId())
	if err := work(ctx); err != nil {
		return nil, err
	}
	return &bankv1.TransferResponse{Transaction: &bankv1.Transaction{Name: r.GetRequestId(), Reference: r.GetReference()}}, nil
}

// Deposit has side effects too; the name of its first message is the call's id. Units come back as their sum.
func (e *echoes) Deposit(s grpc.ClientStreamingServer[bankv1.DepositRequest, bankv1.DepositResponse]) error {
	answer := &bankv1.DepositResponse{Totals: []*bankv1.Money{{Currency: "EUR"}}}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(answer)
		}
		if err != nil {
			return err
		}
		if answer.Deposits++; answer.Deposits == 1 {
			e.ledger.saw(r.GetName())
		}
		answer.Totals[0].Units += r.GetAmount().GetUnits()
	}
}

// Chat answers each message with itself; the room of the first is the call's id.
func (e *echoes) Chat(s grpc.BidiStreamingServer[bankv1.ChatMessage, bankv1.ChatMessage]) error {
	for n := 0; ; n++ {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n == 0 {
			e.ledger.saw(m.GetRoom())
		}
		if err := s.Send(m); err != nil {
			return err
		}
	}
}

// Echo has no side effects: it may be made again.
func (e *echoes) Echo(ctx context.Context, r *bankv1.Everything) (*bankv1.Everything, error) {
	return r, work(ctx)
}

// Generate sends messages whose payload follows from their number.
func (e *echoes) Generate(r *bankv1.GenerateRequest, s grpc.ServerStreamingServer[bankv1.GenerateResponse]) error {
	for i := range r.GetCount() {
		if err := s.Send(&bankv1.GenerateResponse{Sequence: i + 1, Payload: payload(i+1, int(r.GetSizeBytes()))}); err != nil {
			return err
		}
	}
	return nil
}

// payload is what message n of a generated stream holds.
func payload(n int64, size int) []byte { return bytes.Repeat([]byte{byte('a' + n%26)}, size) }

// backend is a server that can be taken away and brought back on the same port.
type backend struct {
	services *echoes
	addr     string
	srv      *grpc.Server
	wg       sync.WaitGroup
}

func startBackend(t *testing.T, l *ledger) *backend {
	t.Helper()
	b := &backend{services: &echoes{ledger: l}, addr: "127.0.0.1:0"}
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *backend) start() error {
	lis, err := net.Listen("tcp", b.addr)
	if err != nil {
		return err
	}
	b.addr = lis.Addr().String()
	b.srv = grpc.NewServer(grpc.MaxConcurrentStreams(100))
	bankv1.RegisterAccountsServer(b.srv, b.services)
	bankv1.RegisterDiagnosticsServer(b.srv, b.services)
	bankv1.RegisterSupportServer(b.srv, b.services)
	healthgrpc.RegisterHealthServer(b.srv, health.NewServer())
	b.wg.Go(func() { _ = b.srv.Serve(lis) })
	return nil
}

// kill cuts the connections of the server, politely (GOAWAY, then 100 ms for what is under way) or not.
func (b *backend) kill(politely bool) {
	if politely {
		hurry := time.AfterFunc(100*time.Millisecond, b.srv.Stop)
		b.srv.GracefulStop()
		hurry.Stop()
	}
	b.srv.Stop()
	b.wg.Wait()
}

// acceptable says whether an error is one that a client may get while backends die and the network fails. The load keeps
// the limits, so that nothing else is.
func acceptable(c codes.Code) bool { return c == codes.Unavailable || c == codes.DeadlineExceeded }
