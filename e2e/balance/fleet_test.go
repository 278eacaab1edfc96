// Package balance runs the balancer's scenarios for real: servers that take their time over gRPC on loopback, the proxy as
// its own process in front of them, and calls that come when they come, whether earlier ones were answered or not. The
// numbers of the scenarios (S3, S5 …) are those of docs/balancing.md, where the simulator runs them at full size. What is
// held here are shares, errors and ratios, no absolute times.
package balance

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
	"transom/upstream/loadaware/report"
)

// childServer is set in the environment of a process that is one of the servers, so that it can be stopped as a whole.
const childServer = "TRANSOM_TEST_BALANCE_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(childServer) != "" {
		if err := serveChild(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// serveChild prints the server's address, and how many calls have come after each line that it reads. It serves until its
// input ends.
func serveChild(in io.Reader, out io.Writer) error {
	n := newNode()
	if err := n.serve("127.0.0.1:0"); err != nil {
		return err
	}
	fmt.Fprintln(out, n.addr)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		fmt.Fprintln(out, n.calls.Load())
	}
	n.srv.Stop()
	n.done.Wait()
	return nil
}

// child is a server that is a process of its own.
type child struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	addr string
}

func startChild(t *testing.T) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])}
	c.cmd.Env = append(os.Environ(), childServer+"=1")
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait() // killed
	})
	c.out = bufio.NewScanner(out)
	c.addr = c.line()
	return c
}

func (c *child) line() string {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatalf("the server's process has ended: %v", c.out.Err())
	}
	return c.out.Text()
}

// calls returns how many calls have come.
func (c *child) calls() (n int64) {
	c.t.Helper()
	fmt.Fprintln(c.in)
	if _, err := fmt.Sscan(c.line(), &n); err != nil {
		c.t.Fatal(err)
	}
	return n
}

func (c *child) signal(s os.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

const (
	slots   = 4                     // calls that a server works at; others wait
	mean    = 25 * time.Millisecond // of the time that a call takes, which is exponentially distributed
	perNode = slots * float64(time.Second) / float64(mean)
)

// node is one server.
type node struct {
	addr  string
	srv   *grpc.Server
	done  sync.WaitGroup
	slots chan struct{}
	// slow multiplies the time that calls take; broken answers UNAVAILABLE at once.
	slow   atomic.Int64
	broken atomic.Bool
	calls  atomic.Int64 // that have come
	drain  bool         // it is listed as draining
	// learning, if positive, is how many more calls take ten times as long: a server whose code is not compiled yet.
	learning atomic.Int64
}

// fleet is the servers of a test and the file that lists them.
type fleet struct {
	t     *testing.T
	file  string
	nodes []*node
}

func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := &fleet{t: t, file: filepath.Join(t.TempDir(), "endpoints.yaml")}
	for range n {
		f.nodes = append(f.nodes, startNode(t, "127.0.0.1:0"))
	}
	f.list(f.nodes...)
	return f
}

// pace makes all servers take times as long.
func (f *fleet) pace(times int64) {
	for _, n := range f.nodes {
		n.slow.Store(times)
	}
}

// startNode starts a server. It ends with the test, if not before.
func startNode(t *testing.T, addr string) *node {
	t.Helper()
	n := newNode()
	if err := n.serve(addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.srv.Stop()
		n.done.Wait()
	})
	return n
}

func newNode() *node {
	n := &node{slots: make(chan struct{}, slots)}
	n.slow.Store(1)
	return n
}

func (n *node) serve(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	n.addr = l.Addr().String()
	r := report.New(report.Config{Capacity: slots})
	n.srv = grpc.NewServer(grpc.ChainUnaryInterceptor(r.Unary), grpc.ChainStreamInterceptor(r.Stream))
	bankv1.RegisterRatesServer(n.srv, rates{node: n})
	bankv1.RegisterAccountsServer(n.srv, accounts{node: n})
	srv := n.srv
	n.done.Go(func() { _ = srv.Serve(l) })
	return nil
}

// list makes nodes the servers that the proxy knows.
func (f *fleet) list(nodes ...*node) {
	f.t.Helper()
	var b strings.Builder
	b.WriteString("endpoints:\n")
	for _, n := range nodes {
		fmt.Fprintf(&b, "- {address: %q, drain: %t}\n", n.addr, n.drain)
	}
	process.Replace(f.t, f.file, []byte(b.String()))
}

func (n *node) work(ctx context.Context) error {
	n.calls.Add(1)
	if n.broken.Load() {
		return status.Error(codes.Unavailable, "broken")
	}
	select {
	case n.slots <- struct{}{}:
		defer func() { <-n.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	took := time.Duration(rand.ExpFloat64() * float64(mean) * float64(n.slow.Load()))
	if n.learning.Add(-1) >= 0 {
		took *= 10
	}
	timer := time.NewTimer(took)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rates has a call that may be repeated, accounts one that may not.
type (
	rates struct {
		bankv1.UnimplementedRatesServer
		node *node
	}
	accounts struct {
		bankv1.UnimplementedAccountsServer
		node *node
	}
)

func (r rates) Get(ctx context.Context, _ *bankv1.GetRateRequest) (*bankv1.Rate, error) {
	return &bankv1.Rate{Rate: 1}, r.node.work(ctx)
}

func (a accounts) Transfer(ctx context.Context, _ *bankv1.TransferRequest) (*bankv1.TransferResponse, error) {
	return &bankv1.TransferResponse{}, a.node.work(ctx)
}

// Watch is a stream that takes its time: as many messages as the request says, as far apart.
func (a accounts) Watch(r *bankv1.WatchRequest, s grpc.ServerStreamingServer[bankv1.Transaction]) error {
	timer := time.NewTicker(r.GetInterval().AsDuration())
	defer timer.Stop()
	for range r.GetCount() {
		select {
		case <-timer.C:
		case <-s.Context().Done():
			return s.Context().Err()
		}
		if err := s.Send(&bankv1.Transaction{}); err != nil {
			return err
		}
	}
	return nil
}

// load sends calls to a proxy.
type load struct {
	t     *testing.T
	fleet *fleet
	admin string // the proxy's admin listener
	conns []*grpc.ClientConn
	once  bool // calls that must not be repeated
	rng   *rand.Rand
}

// startProxy runs a proxy in front of the fleet and returns what calls it. more are further settings of the cluster.
func startProxy(t *testing.T, f *fleet, policy string, warmup time.Duration, more ...string) *load {
	t.Helper()
	dir := t.TempDir()
	set, cfg := filepath.Join(dir, "bank.binpb"), filepath.Join(dir, "transom.yaml")
	process.Replace(t, set, bank.DescriptorSet())
	process.Replace(t, cfg, fmt.Appendf(nil, `listeners: [{address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
descriptors: [{file: %q}]
clusters:
  bank: {target: "file://%s", lb: {policy: %s, warmup: %s}%s}
`, set, f.file, policy, warmup, strings.Join(append([]string{""}, more...), ", ")))
	p := process.Start(t, 2, "serve", "--config", cfg)
	l := &load{t: t, fleet: f, admin: p.Admin, rng: rand.New(rand.NewPCG(1, 2))}
	for range 4 {
		c, err := grpc.NewClient("passthrough:///"+p.Plain, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		l.conns = append(l.conns, c)
	}
	return l
}

// outcome is what became of the calls of one phase.
type outcome struct {
	calls  int
	errors map[codes.Code]int
	took   []time.Duration // from when a call should have been sent, sorted
}

func (o outcome) failed() (n int) {
	for _, k := range o.errors {
		n += k
	}
	return n
}

// and adds a further phase's calls, without their times.
func (o outcome) and(p outcome) outcome {
	sum := outcome{calls: o.calls + p.calls, errors: map[codes.Code]int{}}
	for _, e := range []map[codes.Code]int{o.errors, p.errors} {
		for code, k := range e {
			sum.errors[code] += k
		}
	}
	return sum
}

// at returns a quantile of the time that calls took.
func (o outcome) at(q float64) time.Duration { return o.took[int(q*float64(len(o.took)-1))] }

// run sends calls at a rate per second for a while, with the gaps between them that independent callers make, and waits
// for all of them.
func (l *load) run(rate float64, d time.Duration) outcome {
	l.t.Helper()
	o := outcome{errors: map[codes.Code]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for due := time.Duration(0); due < d; due += time.Duration(l.rng.ExpFloat64() / rate * float64(time.Second)) {
		timer.Reset(time.Until(start.Add(due)))
		<-timer.C
		sent := start.Add(due)
		conn := l.conns[o.calls%len(l.conns)]
		o.calls++
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			var err error
			if l.once {
				_, err = bankv1.NewAccountsClient(conn).Transfer(ctx, &bankv1.TransferRequest{})
			} else {
				_, err = bankv1.NewRatesClient(conn).Get(ctx, &bankv1.GetRateRequest{Base: "EUR", Quote: "USD"})
			}
			mu.Lock()
			defer mu.Unlock()
			o.took = append(o.took, time.Since(sent))
			if err != nil {
				o.errors[status.Code(err)]++
			}
		})
	}
	wg.Wait()
	slices.Sort(o.took)
	return o
}

// streams opens n streams that last for long, a message every quarter of a second, and returns what waits for their ends
// and says how many there were of each kind.
func (l *load) streams(n int, long time.Duration) (wait func() (whole int, broken []error)) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l.t.Cleanup(cancel)
	const apart = 250 * time.Millisecond
	count := int(long / apart)
	ended := make(chan error, n)
	for i := range n {
		s, err := bankv1.NewAccountsClient(l.conns[i%len(l.conns)]).Watch(ctx, &bankv1.WatchRequest{Count: int32(count), Interval: durationpb.New(apart)})
		if err != nil {
			l.t.Fatal(err)
		}
		go func() {
			for k := 0; ; k++ {
				_, err := s.Recv()
				switch {
				case err == nil:
					continue
				case err == io.EOF && k == count:
					err = nil
				default:
					err = fmt.Errorf("after %d of %d messages: %w", k, count, err)
				}
				ended <- err
				return
			}
		}()
	}
	return func() (whole int, broken []error) {
		for range n {
			if err := <-ended; err != nil {
				broken = append(broken, err)
			} else {
				whole++
			}
		}
		return whole, broken
	}
}

// counts returns how many calls each node has got.
func counts(nodes []*node) (out []int64) {
	for _, n := range nodes {
		out = append(out, n.calls.Load())
	}
	return out
}

// shares returns each node's part of the calls since before, 1 being an equal part.
func shares(nodes []*node, before []int64) []float64 {
	now := counts(nodes)
	var all int64
	for i := range now {
		now[i] -= before[i]
		all += now[i]
	}
	out := make([]float64, len(now))
	for i := range now {
		out[i] = float64(now[i]) / float64(all) * float64(len(now))
	}
	return out
}
