package attack

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// patience is how long a well-behaved client waits for what takes no time on a good day.
	patience = 20 * time.Second
	// assault is how long an attack goes on.
	assault = 1500 * time.Millisecond
	// slow is the time limit that the victim has for whatever a client might drag out.
	slow = 4 * time.Second
	// limit is the memory that transom is told to keep to (GOMEMLIMIT), ceiling what it may hold in the worst moment: some
	// of it is not Go's.
	limit, ceiling = 256 << 20, 320 << 20
)

// victim is a transom with short time limits, and a bank behind it.
type victim struct {
	*process.Process
	tls *tls.Config
	// open counts the calls that the bank is at.
	open atomic.Int64
	base held
}

// held is what a process holds.
type held struct{ goroutines, files int }

func startVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{}
	b := bank.New(bank.Config{})
	srv := grpc.NewServer(append(b.ServerOptions(), grpc.ChainUnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			v.open.Add(1)
			defer v.open.Add(-1)
			return handler(ctx, req)
		}))...)
	b.Register(srv)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })
	t.Cleanup(func() {
		srv.Stop()
		wg.Wait()
	})
	dir, ca := t.TempDir(), process.NewAuthority(t)
	at := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		process.Replace(t, path, content)
		return path
	}
	pem, set := at("tls.pem", ca.Issue(t)), at("bank.binpb", bank.DescriptorSet())
	cmd := exec.Command(process.Program(t), "serve", "--config", at("transom.yaml", fmt.Appendf(nil, `
listeners:
  - {address: "127.0.0.1:0"}
  - {address: "127.0.0.1:0", tls: {certificate: %[1]s, key: %[1]s}, http3: true}
admin: {address: "127.0.0.1:0", pprof: true}
descriptors: [{file: %[2]s}]
clusters: {bank: {target: "static:///%[3]s"}}
limits: {header_timeout: %[4]v, body_idle_timeout: %[4]v, write_idle_timeout: %[4]v, idle_timeout: %[5]v}
policies:
  - {selector: "*", stream_timeout: 60s, stream_idle_timeout: %[4]v}
  - {selector: bank.v1.Diagnostics.Echo, timeout: %[4]v}
`, pem, set, lis.Addr(), slow, 2*slow)))
	cmd.Env = append(os.Environ(), "GOMEMLIMIT="+strconv.Itoa(limit))
	v.Process = process.Run(t, 3, cmd)
	v.tls = &tls.Config{RootCAs: ca.Pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	return v
}

// now is what transom holds.
func (v *victim) now(t *testing.T) held {
	t.Helper()
	m, err := v.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return held{int(m["go_goroutines"]), v.Files(t)}
}

// forgetPeak makes VmHWM begin anew (proc(5), clear_refs).
func (v *victim) forgetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/"+strconv.Itoa(v.Cmd.Process.Pid)+"/clear_refs", []byte("5"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// bystander is the well-behaved clients while an attack goes on.
type bystander struct {
	mu     sync.Mutex
	took   []time.Duration
	failed []string
}

// watch calls over HTTP/1.1, HTTP/2 with TLS, gRPC and WebSocket until ctx ends.
func (v *victim) watch(ctx context.Context, t *testing.T) *bystander {
	t.Helper()
	b := &bystander{}
	h1, h2 := &http.Transport{}, &http.Transport{TLSClientConfig: v.tls.Clone(), ForceAttemptHTTP2: true}
	defer h1.CloseIdleConnections()
	defer h2.CloseIdleConnections()
	conn, err := grpc.NewClient("passthrough:///"+v.Plain, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	get := func(tr *http.Transport, url string) func(context.Context) error {
		return func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			resp, err := (&http.Client{Transport: tr}).Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s, %w", resp.Status, err)
			}
			return nil
		}
	}
	const path = "/v1/customers/3/accounts/1"
	calls := map[string]func(context.Context) error{
		"HTTP/1.1": get(h1, "http://"+v.Plain+path),
		"HTTP/2":   get(h2, "https://"+v.Secure+path),
		"gRPC": func(ctx context.Context) error {
			_, err := bankv1.NewAccountsClient(conn).Get(ctx, &bankv1.GetAccountRequest{Name: "customers/3/accounts/1"})
			return err
		},
		"WebSocket": func(ctx context.Context) error {
			ws, _, err := websocket.Dial(ctx, "ws://"+v.Plain+"/v1/support/chat", nil)
			if err != nil {
				return err
			}
			defer ws.CloseNow()
			if err := ws.Write(ctx, websocket.MessageText, []byte(`{"text":"hello"}`)); err != nil {
				return err
			}
			_, _, err = ws.Read(ctx)
			return err
		},
	}
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				own, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
				begin := time.Now()
				err := call(own)
				cancel()
				b.mu.Lock()
				b.took = append(b.took, time.Since(begin))
				if err != nil {
					b.failed = append(b.failed, name+": "+err.Error())
				}
				b.mu.Unlock()
				<-tick.C
			}
		})
	}
	wg.Wait()
	slices.Sort(b.took)
	return b
}

// at is a quantile of the times that calls took.
func (b *bystander) at(q float64) time.Duration { return b.took[int(q*float64(len(b.took)-1))] }

// attack is something that clients do to transom. run goes on until ctx ends and says what it did; an error is something
// that transom should have done and did not.
type attack struct {
	name string
	run  func(ctx context.Context, v *victim) (did string, err error)
}

// TestAttacks makes each attack while well-behaved clients call: none of their calls may fail, memory stays below the
// ceiling, and what the attack cost is given back.
func TestAttacks(t *testing.T) {
	v := startVictim(t)
	calm := func(d time.Duration) *bystander {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		return v.watch(ctx, t)
	}
	calm(500 * time.Millisecond) // warm
	base := calm(2 * time.Second)
	t.Logf("without an attack: %d calls, median %v, 99 %% within %v", len(base.took), base.at(0.5), base.at(0.99))
	v.base = v.now(t)
	idle := v.Memory(t, "VmRSS")
	for _, a := range slices.Concat(floods, []attack{{"slow clients", allDribbles}}, bombs) {
		t.Run(a.name, func(t *testing.T) {
			v.forgetPeak(t)
			ctx, cancel := context.WithTimeout(t.Context(), assault)
			defer cancel()
			var wg sync.WaitGroup
			var did string
			var err error
			watching, enough := context.WithCancel(t.Context())
			wg.Go(func() {
				defer enough()
				did, err = a.run(ctx, v)
			})
			b := v.watch(watching, t)
			wg.Wait()
			peak := v.Memory(t, "VmHWM")
			t.Logf("%s; %d of %d calls of others went well, median %v (%.1f×), 99 %% within %v (%.1f×); %d MiB at most, %d when idle", did,
				len(b.took)-len(b.failed), len(b.took), b.at(0.5), float64(b.at(0.5))/float64(base.at(0.5)), b.at(0.99), float64(b.at(0.99))/float64(base.at(0.99)), peak>>20, idle>>20)
			if err != nil {
				t.Error(err)
			}
			if len(b.failed) > 0 {
				t.Errorf("%d calls of others failed, the first: %s", len(b.failed), b.failed[0])
			}
			if peak > ceiling {
				t.Errorf("%d MiB at most, want %d", peak>>20, ceiling>>20)
			}
			v.recovers(t)
		})
	}
}

// recovers waits until transom holds what it did before any attack, and the bank has nothing to do.
func (v *victim) recovers(t *testing.T) {
	t.Helper()
	limit := time.Now().Add(patience)
	for {
		now := v.now(t)
		if now.goroutines <= v.base.goroutines+20 && now.files <= v.base.files+10 && v.open.Load() == 0 {
			return
		}
		if time.Now().After(limit) {
			stacks, _ := v.Get(t.Context(), "/debug/pprof/goroutine?debug=1")
			t.Errorf("%+v before, %+v after; the bank is at %d calls\n%s", v.base, now, v.open.Load(), stacks)
			return
		}
		time.Sleep(50 * time.Millisecond) // transom tells nobody that it has let go
	}
}

// errHeld says that transom let a client go on that it should have got rid of.
var errHeld = errors.New("the connection is still open")
