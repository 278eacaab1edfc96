package soak

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// defaultDuration is how long the load goes on unless SOAK_DURATION says otherwise.
	defaultDuration = 75 * time.Second
	// grace is how much later than its timeout a call may end on a busy machine.
	grace = 10 * time.Second
	// settling is how long transom may take to let go of what the load used.
	settling = 45 * time.Second
)

// load is what the clients do, and what came of it.
type load struct {
	ledger *ledger

	seq             atomic.Int64
	calls, ok, rude atomic.Int64
	slowest         atomic.Int64    // ended that long after its timeout, in nanoseconds
	mu              sync.Mutex      // guards what follows
	ended           map[string]bool // ids of calls with side effects: whether the client got OK
	byCode          map[codes.Code]int
	byClient        map[string]int
	wrong           []string
}

// fault reports something that must not be. Only the first few are kept.
func (l *load) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) < 30 {
		l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
	}
}

// text is what a call sends and wants back: of any length, and different each time.
func text(id string) string { return id + " " + strings.Repeat("ä/\\\"\t€", rand.IntN(40)) }

var errWrong = errors.New("wrong answer")

// one makes one call of a random kind. It returns how it ended: nil, a status, errWrong, or no answer.
func (l *load) one(ctx context.Context, c *client, id string, timeout time.Duration) (what string, err error) {
	what = []string{transfer, transfer, echo, generate, deposit, chat}[rand.IntN(6)]
	return what, l.call(ctx, c, what, id, timeout)
}

func (l *load) call(ctx context.Context, c *client, method, id string, timeout time.Duration) error {
	switch method {
	case transfer:
		in := &bankv1.TransferRequest{
			Name: "customers/7/accounts/3", Destination: &bankv1.TransferRequest_Account{Account: "7"},
			Amount: &bankv1.Money{Currency: "EUR", Nanos: 1}, RequestId: id, Reference: text(id),
		}
		out := &bankv1.TransferResponse{}
		if err := single(ctx, c, method, in, out, timeout); err != nil {
			return err
		}
		if got := out.GetTransaction(); got.GetReference() != in.GetReference() || got.GetName() != id {
			return fmt.Errorf("%w: sent %q, got %q of %q", errWrong, in.GetReference(), got.GetReference(), got.GetName())
		}
		return nil
	case echo:
		in := &bankv1.Everything{Text: text(id), Int64: rand.Int64(), Data: []byte(text(id))}
		out := &bankv1.Everything{}
		if err := single(ctx, c, method, in, out, timeout); err != nil {
			return err
		}
		if !proto.Equal(in, out) {
			return fmt.Errorf("%w: sent %v, got %v", errWrong, in, out)
		}
		return nil
	}
	s, err := c.open(ctx, method, timeout)
	if err != nil {
		return err
	}
	defer s.Close()
	n := 1 + rand.IntN(8)
	switch method {
	case generate:
		size := rand.IntN(2000)
		if err := s.Send(&bankv1.GenerateRequest{Count: int64(n), SizeBytes: int32(size)}); err != nil {
			return err
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
		for i := range int64(n) {
			out := &bankv1.GenerateResponse{}
			if err := s.Recv(out); err != nil {
				return early(err, n)
			}
			if out.GetSequence() != i+1 || !bytes.Equal(out.GetPayload(), payload(i+1, size)) {
				return fmt.Errorf("%w: message %d is number %d with %d bytes", errWrong, i+1, out.GetSequence(), len(out.GetPayload()))
			}
		}
		return over(s, &bankv1.GenerateResponse{})
	case deposit:
		sum := int64(0)
		for i := range int64(n) {
			if err := s.Send(&bankv1.DepositRequest{Name: id, Amount: &bankv1.Money{Currency: "EUR", Units: i}}); err != nil {
				return err
			}
			sum += i
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
		out := &bankv1.DepositResponse{}
		if err := s.Recv(out); err != nil {
			return early(err, 1)
		}
		if out.GetDeposits() != int64(n) || out.GetTotals()[0].GetUnits() != sum {
			return fmt.Errorf("%w: %d deposits of %d, got %v", errWrong, n, sum, out)
		}
		return over(s, &bankv1.DepositResponse{})
	}
	for i := range int64(n) {
		in := &bankv1.ChatMessage{Room: id, Text: text(id), Sequence: i}
		if err := s.Send(in); err != nil {
			return err
		}
		out := &bankv1.ChatMessage{}
		if err := s.Recv(out); err != nil {
			return early(err, n)
		}
		if !proto.Equal(in, out) {
			return fmt.Errorf("%w: sent %v, got %v", errWrong, in, out)
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return over(s, &bankv1.ChatMessage{})
}

// single makes a unary call.
func single(ctx context.Context, c *client, method string, in, out proto.Message, timeout time.Duration) error {
	if c.unary != nil {
		return c.unary(ctx, method, in, out, timeout)
	}
	s, err := c.open(ctx, method, timeout)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Send(in); err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if err := s.Recv(out); err != nil {
		return early(err, 1)
	}
	return over(s, out.ProtoReflect().New().Interface())
}

// over says whether a call that has sent all its answers ends well.
func over(s stream, m proto.Message) error {
	err := s.Recv(m)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%w: one message too many", errWrong)
	}
	return err
}

// early is the error of a call that ends before it has sent all its answers: it must not look like a good end.
func early(err error, n int) error {
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: a good end before %d messages", errWrong, n)
	}
	return err
}

// work makes calls with one client until stop.
func (l *load) work(ctx context.Context, stop <-chan struct{}, c *client) {
	defer c.close()
	for {
		if pause(ctx, time.Duration(rand.IntN(40))*time.Millisecond) {
			return
		}
		select {
		case <-stop:
			return
		default:
		}
		id := fmt.Sprintf("%s-%d", c.name, l.seq.Add(1))
		timeout := time.Duration(2000+rand.IntN(1500)) * time.Millisecond
		bounded, cancel := context.WithTimeout(ctx, timeout+2*grace)
		begin := time.Now()
		what, err := l.one(bounded, c, id, timeout)
		late := time.Since(begin) - policyTimeout
		cancel()
		for was := l.slowest.Load(); int64(late) > was && !l.slowest.CompareAndSwap(was, int64(late)); was = l.slowest.Load() {
		}
		if late > grace {
			l.fault("%s: %s took %v with a timeout of %v: %v", c.name, what, late+policyTimeout, timeout, err)
		}
		l.enter(c.name, what, id, err)
	}
}

// enter judges how a call ended.
func (l *load) enter(name, what, id string, err error) {
	l.calls.Add(1)
	code := codes.OK
	switch st, answered := status.FromError(err); {
	case err == nil:
		l.ok.Add(1)
	case !answered:
		l.fault("%s: %s: no answer, or a wrong one: %v", name, what, err)
		code = codes.Unknown
	default:
		if code = st.Code(); !acceptable(code) {
			l.fault("%s: %s ends with %v: %s", name, what, code, st.Message())
		}
	}
	l.mu.Lock()
	l.byCode[code]++
	if err == nil {
		l.byClient[name]++
	}
	if what != echo && what != generate {
		l.ended[id] = err == nil
	}
	l.mu.Unlock()
}

// vanish makes calls and goes away in the midst of them; stall asks for much and reads nothing.
func (l *load) misbehave(ctx context.Context, stop <-chan struct{}, p *process.Process, all []func() *client) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		l.rude.Add(1)
		switch rand.IntN(4) {
		case 0, 1:
			c := all[rand.IntN(len(all))]()
			id := fmt.Sprintf("rude-%d", l.seq.Add(1))
			short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(40))*time.Millisecond)
			what, err := l.one(short, c, id, time.Minute)
			cancel()
			c.close()
			if what != echo && what != generate {
				l.mu.Lock()
				l.ended[id] = err == nil
				l.mu.Unlock()
			}
			if pause(ctx, 50*time.Millisecond) {
				return
			}
		case 2:
			c := all[rand.IntN(len(all))]()
			open, cancel := context.WithCancel(ctx)
			s, err := c.open(open, generate, time.Minute)
			if err == nil {
				_ = s.Send(&bankv1.GenerateRequest{Count: 1 << 20, SizeBytes: 4096})
				_ = s.CloseSend()
				pause(ctx, time.Duration(500+rand.IntN(1500))*time.Millisecond)
			}
			cancel()
			if err == nil {
				s.Close()
			}
			c.close()
		case 3:
			conn, err := net.Dial("tcp", p.Plain)
			if err != nil {
				l.fault("no connection to be had: %v", err)
				return
			}
			_, _ = io.WriteString(conn, "POST /v1/diagnostics/echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"text\":")
			pause(ctx, time.Duration(rand.IntN(1000))*time.Millisecond)
			if rand.IntN(2) == 0 {
				reset(conn)
			}
			conn.Close()
		}
	}
}

// policyTimeout is what transom gives every call at most.
const policyTimeout = 4 * time.Second

// operator changes everything that may change while transom runs.
type operator struct {
	dir     string
	targets []string
	ca      *process.Authority
	reloads int
}

func (o *operator) path(name string) string { return filepath.Join(o.dir, name) }

// change writes the n-th configuration: each third with another cluster, others with other settings and descriptors.
func (o *operator) change(t *testing.T) {
	t.Helper()
	n := o.reloads
	o.reloads++
	if n%2 == 0 {
		process.Replace(t, o.path("tls.pem"), o.ca.Issue(t))
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(bank.DescriptorSet(), set); err != nil {
		t.Fatal(err)
	}
	if n%2 == 0 { // a service comes and goes
		for _, f := range set.GetFile() {
			f.Service = slices.DeleteFunc(f.GetService(), func(s *descriptorpb.ServiceDescriptorProto) bool { return s.GetName() == "Website" })
		}
	}
	b, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	process.Replace(t, o.path("bank.binpb"), b)
	process.Replace(t, o.path("transom.yaml"), fmt.Appendf(nil, `
listeners:
  - {address: "127.0.0.1:0"}
  - {address: "127.0.0.1:0", tls: {certificate: %[1]s, key: %[1]s}, http3: true}
admin: {address: "127.0.0.1:0", pprof: true}
descriptors: [{file: %[2]s}]
clusters: {bank: {target: "static:///%[3]s", connect_timeout: %[4]dms}}
policies: [{selector: "*", timeout: %[5]v, stream_timeout: %[5]v}]
json: {emit_defaults: %[6]v}
`, o.path("tls.pem"), o.path("bank.binpb"), strings.Join(o.targets, ","), 500+n/3%2, policyTimeout, n%2 == 0))
}

// sample is what transom holds.
type sample struct {
	heap, resident int64
	goroutines     int
	files          int
}

func (s sample) String() string {
	return fmt.Sprintf("%d KiB live heap, %d KiB resident, %d goroutines, %d files", s.heap>>10, s.resident>>10, s.goroutines, s.files)
}

// within says whether s is what base is, but for what comes and goes by itself. A leak would show in hundreds.
func (s sample) within(base sample) bool {
	return s.goroutines <= base.goroutines+10 && s.files <= base.files+5 && s.heap <= base.heap+base.heap/2+(4<<20)
}

// look takes a sample after a garbage collection.
func look(t *testing.T, p *process.Process) sample {
	t.Helper()
	if _, err := p.Get(t.Context(), "/debug/pprof/heap?gc=1"); err != nil {
		t.Fatal(err)
	}
	m, err := p.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return sample{int64(m["go_memstats_heap_alloc_bytes"]), p.Memory(t, "VmRSS"), int(m["go_goroutines"]), p.Files(t)}
}

// idle waits until transom lets go of nothing any more, and returns what it holds.
func idle(t *testing.T, p *process.Process) sample {
	t.Helper()
	base := look(t, p)
	for same := 0; same < 6; same++ {
		pause(t.Context(), 250*time.Millisecond)
		s := look(t, p)
		if s.goroutines < base.goroutines || s.files < base.files {
			same = 0
		}
		base = s
	}
	return base
}

// settled waits until transom holds no more than it did at base, and returns what it holds.
func settled(t *testing.T, p *process.Process, base sample) sample {
	t.Helper()
	limit := time.Now().Add(settling)
	for {
		s := look(t, p)
		if s.within(base) || time.Now().After(limit) {
			return s
		}
		pause(t.Context(), 250*time.Millisecond)
	}
}

// TestSoak says that no call with side effects is lost or made twice, no answer is wrong, every client gets an answer or a
// clear error in time, and nothing is held on to.
func TestSoak(t *testing.T) {
	duration := defaultDuration
	if s := os.Getenv("SOAK_DURATION"); s != "" {
		var err error
		if duration, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	l := &load{ledger: &ledger{began: map[string]int{}}, ended: map[string]bool{}, byCode: map[codes.Code]int{}, byClient: map[string]int{}}
	o := &operator{dir: t.TempDir(), ca: process.NewAuthority(t)}
	var backends []*backend
	var wires []*wire
	for range 3 {
		b := startBackend(t, l.ledger)
		backends = append(backends, b)
		w := startWire(t, b.addr)
		wires = append(wires, w)
		o.targets = append(o.targets, w.lis.Addr().String())
	}
	t.Cleanup(func() {
		for _, b := range backends {
			b.kill(false)
		}
	})
	o.change(t)
	p := process.Start(t, 3, "serve", "--config", o.path("transom.yaml"))
	tc := &tls.Config{RootCAs: o.ca.Pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	all := clients(p, tc)
	// Each kind of call by each client once, before anything fails: all must go well, and it is what idle transom is compared with.
	every := func(when string) {
		for _, open := range all {
			c := open()
			for _, method := range []string{transfer, echo, generate, deposit, chat} {
				id := fmt.Sprintf("%s-%d", when, l.seq.Add(1))
				ctx, cancel := context.WithTimeout(t.Context(), 2*grace)
				if err := l.call(ctx, c, method, id, grace); err != nil {
					t.Errorf("%s: %s: %s: %v", when, c.name, method, err)
				}
				cancel()
			}
			c.close()
		}
	}
	every("before")
	if t.Failed() {
		return
	}
	base := idle(t, p)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stop, failing := make(chan struct{}), context.Context(nil)
	failing, calm := context.WithCancel(ctx)
	defer calm()
	var working, failures sync.WaitGroup
	for _, open := range all {
		working.Go(func() { l.work(ctx, stop, open()) })
	}
	for range 3 {
		working.Go(func() { l.misbehave(ctx, stop, p, all) })
	}
	var kills, cuts int
	failures.Go(func() {
		for !pause(failing, time.Duration(200+rand.IntN(800))*time.Millisecond) {
			b := backends[rand.IntN(len(backends))]
			b.kill(kills%2 == 0)
			kills++
			pause(failing, time.Duration(50+rand.IntN(600))*time.Millisecond)
			if err := b.start(); err != nil {
				l.fault("backend: %v", err)
				return
			}
		}
	})
	failures.Go(func() {
		for !pause(failing, time.Duration(100+rand.IntN(600))*time.Millisecond) {
			w := wires[rand.IntN(len(wires))]
			long := time.Duration(100+rand.IntN(2500)) * time.Millisecond
			cuts++
			switch cuts % 4 {
			case 0:
				w.cut()
			case 1:
				w.delay.Store(int64(5+rand.IntN(30)) * int64(time.Millisecond))
				pause(failing, long)
				w.delay.Store(0)
			case 2:
				w.stand()
				pause(failing, long)
				w.move()
			case 3:
				w.stand()
				pause(failing, long)
				w.cut()
				w.move()
			}
		}
	})
	var samples []sample
	end := time.Now().Add(duration)
	for next := time.Now(); time.Now().Before(end); {
		o.change(t)
		if err := p.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if o.reloads%3 == 0 {
			samples = append(samples, look(t, p))
		}
		next = next.Add(time.Second)
		pause(ctx, time.Until(next))
	}
	calm()
	failures.Wait()
	close(stop)
	working.Wait()
	// A backend that failed may be held off for a moment still.
	pause(ctx, 2*time.Second)
	every("after")
	after := settled(t, p, base)

	t.Logf("%v: %d calls, %d OK, by code %v; %d clients that vanished or stalled; %d kills, %d faults of the network, %d reloads; the latest call ended %v after its timeout",
		duration, l.calls.Load(), l.ok.Load(), l.byCode, l.rude.Load(), kills, cuts, o.reloads, max(0, time.Duration(l.slowest.Load())))
	t.Logf("OK by client: %v", l.byClient)
	t.Logf("before: %v", base)
	t.Logf("after:  %v", after)
	l.judge(t, all)
	if !after.within(base) {
		stacks, _ := p.Get(ctx, "/debug/pprof/goroutine?debug=1")
		t.Errorf("transom holds on to something: %v before, %v after\n%s", base, after, stacks)
	}
	flat(t, samples)
	for line := range strings.Lines(p.Log()) {
		if strings.Contains(line, "panic") || strings.Contains(line, "level=ERROR") {
			t.Errorf("transom logs %s", line)
		}
	}
	if err := p.Stop(t); err != nil {
		t.Errorf("transom ends with %v", err)
	}
}

// judge compares what clients were told with what backends did.
func (l *load) judge(t *testing.T, all []func() *client) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	lost, twice, unknown := 0, 0, 0
	for id, ok := range l.ended {
		switch n := l.ledger.count(id); {
		case n > 1:
			twice++
			t.Errorf("%s was made %d times", id, n)
		case ok && n == 0:
			lost++
			t.Errorf("%s was answered and never made", id)
		case !ok && n == 1:
			unknown++
		}
	}
	t.Logf("calls with side effects: %d, %d lost, %d made twice; %d ended in an error after they had begun", len(l.ended), lost, twice, unknown)
	for _, w := range l.wrong {
		t.Error(w)
	}
	if calls, ok := l.calls.Load(), l.ok.Load(); ok*10 < calls*7 {
		t.Errorf("only %d of %d calls went well", ok, calls)
	}
	for _, open := range all {
		c := open()
		c.close()
		if l.byClient[c.name] == 0 {
			t.Errorf("%s: no call went well", c.name)
		}
	}
}

// flat says that memory does not grow in the second half: the last quarter holds no more than the third.
func flat(t *testing.T, samples []sample) {
	t.Helper()
	if len(samples) < 8 {
		t.Errorf("%d samples are too few", len(samples))
		return
	}
	quarter := len(samples) / 4
	peak := func(s []sample, of func(sample) int64) (m int64) {
		for _, x := range s {
			m = max(m, of(x))
		}
		return m
	}
	third, last := samples[len(samples)-2*quarter:len(samples)-quarter], samples[len(samples)-quarter:]
	for name, of := range map[string]func(sample) int64{
		"live heap": func(s sample) int64 { return s.heap }, "resident memory": func(s sample) int64 { return s.resident },
	} {
		a, b := peak(third, of), peak(last, of)
		t.Logf("%s at most: %d KiB in the third quarter, %d KiB in the last", name, a>>10, b>>10)
		if b > a+a/4+(8<<20) {
			t.Errorf("%s grows: %d KiB in the third quarter, %d KiB in the last", name, a>>10, b>>10)
		}
	}
}
