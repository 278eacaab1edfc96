package upstream_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
	"transom/rpc/rpctest"
	"transom/upstream"
)

// idempotent is a unary method that may be called twice.
var idempotent = &descriptors.Method{FullPath: "/t.T/Get", Name: "t.T.Get", Effect: descriptors.EffectNone}

// failing serves like echo after its first n attempts, which fail by fail having read what there is to read.
func failing(n int64, fail func(s stream) error) (h func(method string, s stream) error, attempts *atomic.Int64) {
	attempts = new(atomic.Int64)
	return func(method string, s stream) error {
		if attempts.Add(1) <= n {
			if _, err := s.recv(); err != nil && err != io.EOF {
				return err
			}
			return fail(s)
		}
		if method == idempotent.FullPath {
			method = unary.FullPath
		}
		return echo(method, s)
	}, attempts
}

const retryAborted = `{"methodConfig": [{"name": [{"service": "t.T"}], "retryPolicy": {
	"maxAttempts": 4, "initialBackoff": "0.001s", "maxBackoff": "0.01s", "backoffMultiplier": 2,
	"retryableStatusCodes": ["ABORTED", 14]}}]}`

func TestRetries(t *testing.T) {
	code := func(c codes.Code) func(stream) error {
		return func(stream) error { return status.Error(c, "try again") }
	}
	trailer := func(kv ...string) func(stream) error {
		return func(s stream) error {
			s.SetTrailer(metadata.Pairs(kv...))
			return status.Error(codes.Aborted, "try again")
		}
	}
	long := []string{strings.Repeat("a", 600), strings.Repeat("b", 600)}
	for _, tt := range []struct {
		name     string
		method   *descriptors.Method
		config   string
		failures int64
		fail     func(stream) error
		msgs     []string
		attempts int
		code     codes.Code
	}{
		{"repeatable by default", idempotent, "", 2, code(codes.Unavailable), nil, 3, codes.OK},
		{"repeatable, too often", idempotent, "", 3, code(codes.Unavailable), nil, 3, codes.Unavailable},
		{"repeatable, another code", idempotent, "", 1, code(codes.Internal), nil, 1, codes.Internal},
		{"not repeatable", unary, "", 1, code(codes.Unavailable), nil, 1, codes.Unavailable},
		{"stream", server, "", 1, code(codes.Unavailable), nil, 1, codes.Unavailable},
		{"configured", unary, retryAborted, 3, code(codes.Aborted), nil, 4, codes.OK},
		{"configured by number", unary, retryAborted, 1, code(codes.Unavailable), nil, 2, codes.OK},
		{"configured, another code", unary, retryAborted, 1, code(codes.Internal), nil, 1, codes.Internal},
		{"server stream", server, retryAborted, 2, code(codes.Aborted), nil, 3, codes.OK},
		{"client stream", client, retryAborted, 2, code(codes.Aborted), []string{"a", "b", "c"}, 3, codes.OK},
		{"bidi", bidi, retryAborted, 2, code(codes.Aborted), []string{"a", "b", "c"}, 3, codes.OK},
		{"more than is kept", bidi, retryAborted, 1, func(s stream) error {
			for range 1 { // one message was read before
				if _, err := s.recv(); err != nil {
					return err
				}
			}
			return status.Error(codes.Aborted, "try again")
		}, long, 1, codes.Aborted},
		{"after headers", unary, retryAborted, 1, func(s stream) error {
			if err := s.SendHeader(metadata.Pairs("h", "1")); err != nil {
				return err
			}
			return status.Error(codes.Aborted, "try again")
		}, nil, 1, codes.Aborted},
		{"stream after headers", bidi, retryAborted, 1, func(s stream) error {
			if err := s.SendHeader(metadata.Pairs("h", "1")); err != nil {
				return err
			}
			return status.Error(codes.Aborted, "try again")
		}, nil, 1, codes.Aborted},
		{"pushback", unary, retryAborted, 1, trailer("grpc-retry-pushback-ms", "5"), nil, 2, codes.OK},
		{"pushback past the deadline", unary, retryAborted, 1, trailer("grpc-retry-pushback-ms", "3600000"), nil, 1, codes.Aborted},
		{"pushback that stops", unary, retryAborted, 1, trailer("grpc-retry-pushback-ms", "-1"), nil, 1, codes.Aborted},
		{"pushback that is no number", server, retryAborted, 1, trailer("grpc-retry-pushback-ms", "soon"), nil, 1, codes.Aborted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, attempts := failing(tt.failures, tt.fail)
			previous := make(chan string, 8)
			addr := newBackend(t, func(method string, s stream) error {
				md, _ := metadata.FromIncomingContext(s.Context())
				previous <- strings.Join(md["grpc-previous-rpc-attempts"], ",")
				return h(method, s)
			})
			c := newCluster(t, upstream.Config{Target: "static:///" + addr, ServiceConfig: tt.config, RetryBytes: 1000})
			if tt.msgs == nil {
				tt.msgs = []string{"m"}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			call := rpctest.Start(ctx, c.Invoke, tt.method, nil)
			for _, m := range tt.msgs {
				_ = call.Send([]byte(m))
			}
			_ = call.CloseSend()
			var got []string
			var err error
			for err == nil {
				var b []byte
				if b, err = call.Recv(); err == nil {
					got = append(got, string(b))
				}
			}
			if st := rpc.StatusOf(call.Wait()); st.Code() != tt.code {
				t.Errorf("status %v, want %v", st, tt.code)
			}
			if tt.code == codes.OK {
				want := map[*descriptors.Method]string{
					unary: "[re:m]", idempotent: "[re:m]", server: "[m0 m1 m2]", client: "[a+b+c]", bidi: "[re:a re:b re:c]",
				}[tt.method]
				if fmt.Sprint(got) != want {
					t.Errorf("replies %v, want %s", got, want)
				}
			}
			if n := call.Info().Attempts; n != tt.attempts || attempts.Load() != int64(tt.attempts) {
				t.Errorf("%d attempts counted, %d seen, want %d", n, attempts.Load(), tt.attempts)
			}
			for i := range tt.attempts {
				want := ""
				if i > 0 {
					want = fmt.Sprint(i)
				}
				if got := <-previous; got != want {
					t.Errorf("attempt %d has grpc-previous-rpc-attempts %q, want %q", i+1, got, want)
				}
			}
		})
	}
}

// A call that no server has seen is made again whatever its method.
func TestUnseenIsRetried(t *testing.T) {
	addr := newBackend(t, echo)
	path := t.TempDir() + "/endpoints.yaml"
	replace(t, path, "endpoints: [{address: \"127.0.0.1:1\"}]")
	c := newCluster(t, upstream.Config{Target: "file://" + path})
	for _, m := range []*descriptors.Method{unary, server, bidi} {
		if _, call, err := exchange(t, c, m, nil, "m"); status.Code(err) != codes.Unavailable || call.Info().Attempts != 3 {
			t.Errorf("%s: %v after %d attempts, want Unavailable after 3", m.FullPath, err, call.Info().Attempts)
		}
	}
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}]", addr))
	for {
		if _, _, err := exchange(t, c, unary, nil, "m"); err == nil {
			break
		}
	}
}

// What a client sends between two attempts reaches the second, even if it is more than is kept.
func TestSentBetweenAttempts(t *testing.T) {
	failed := make(chan struct{})
	addr := newBackend(t, func(method string, s stream) error {
		if md, _ := metadata.FromIncomingContext(s.Context()); len(md["grpc-previous-rpc-attempts"]) > 0 {
			return echo(method, s)
		}
		if _, err := s.recv(); err != nil {
			return err
		}
		defer close(failed)
		s.SetTrailer(metadata.Pairs("grpc-retry-pushback-ms", "100"))
		return status.Error(codes.Aborted, "try again")
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr, ServiceConfig: retryAborted, RetryBytes: 1000})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	call := rpctest.Start(ctx, c.Invoke, bidi, nil)
	sent := []string{"first", strings.Repeat("a", 600), strings.Repeat("b", 600)}
	_ = call.Send([]byte(sent[0]))
	<-failed
	for e := c.Endpoints(); (len(e) != 1 || e[0].Streams > 0) && ctx.Err() == nil; e = c.Endpoints() {
		runtime.Gosched() // until the first attempt has ended for the cluster, too
	}
	for _, m := range sent[1:] {
		_ = call.Send([]byte(m))
	}
	_ = call.CloseSend()
	var got []string
	for {
		b, err := call.Recv()
		if err != nil {
			break
		}
		got = append(got, strings.TrimPrefix(string(b), "re:"))
	}
	switch err := call.Wait(); status.Code(err) {
	case codes.OK:
		if !slices.Equal(got, sent) {
			t.Errorf("the second attempt got %d messages, want all %d", len(got), len(sent))
		}
	case codes.Aborted: // they came before it was decided to make another attempt, and were too many
	default:
		t.Errorf("%v, having answered %d messages", err, len(got))
	}
}

// The budget bounds what retries add when everything fails.
func TestRetryBudget(t *testing.T) {
	for _, tt := range []struct {
		budget   float64
		min, max int64
	}{{0, 220, 240}, {0.5, 290, 300}, {-1, 200, 200}} {
		h, attempts := failing(1<<40, func(stream) error { return status.Error(codes.Unavailable, "down") })
		c := newCluster(t, upstream.Config{Target: "static:///" + newBackend(t, h), RetryBudget: tt.budget})
		var wg sync.WaitGroup
		noted := new(atomic.Int64)
		for range 8 {
			wg.Go(func() {
				for range 25 {
					if _, call, _ := exchange(t, c, idempotent, nil, "m"); call.Info().Notes.Get("retry") != "" {
						noted.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if got := attempts.Load(); got < tt.min || got > tt.max {
			t.Errorf("budget %v: %d attempts at 200 calls, want %d … %d", tt.budget, got, tt.min, tt.max)
		}
		if noted.Load() == 0 {
			t.Errorf("budget %v: no call says that it was over the budget", tt.budget)
		}
	}
}

func TestRetryThrottling(t *testing.T) {
	const config = `{"retryThrottling": {"maxTokens": 4, "tokenRatio": 0.5}}`
	fail := new(atomic.Bool)
	attempts := new(atomic.Int64)
	c := newCluster(t, upstream.Config{ServiceConfig: config, Target: "static:///" + newBackend(t, func(_ string, s stream) error {
		attempts.Add(1)
		if fail.Load() {
			return status.Error(codes.Unavailable, "down")
		}
		return echo(unary.FullPath, s)
	})})
	do := func() int64 {
		before := attempts.Load()
		_, _, _ = exchange(t, c, idempotent, nil, "m")
		return attempts.Load() - before
	}
	fail.Store(true)
	if got := do(); got != 2 { // 4 tokens → 3, a retry → 2, not more than half
		t.Errorf("%d attempts with all tokens, want 2", got)
	}
	if got := do(); got != 1 {
		t.Errorf("%d attempts with few tokens, want 1", got)
	}
	fail.Store(false)
	for range 6 { // 1 + 6·0.5 = 4
		do()
	}
	fail.Store(true)
	if got := do(); got != 2 {
		t.Errorf("%d attempts with the tokens back, want 2", got)
	}
}

// A method's timeout is for the call as a whole, and reaches the backend.
func TestTimeout(t *testing.T) {
	for _, m := range []*descriptors.Method{unary, bidi} {
		for timeout := 50 * time.Millisecond; ; timeout *= 2 {
			deadlines := make(chan bool, 1)
			c := newCluster(t, upstream.Config{
				Target: "static:///" + newBackend(t, func(_ string, s stream) error {
					_, ok := s.Context().Deadline()
					deadlines <- ok
					<-s.Context().Done()
					return status.FromContextError(s.Context().Err()).Err()
				}),
				ServiceConfig: fmt.Sprintf(`{"methodConfig": [{"name": [{"service": "t.T", "method": %q}], "timeout": "%vs"}, {"name": [{}]}]}`, m.Name.Name(), timeout.Seconds()),
			})
			if _, _, err := exchange(t, c, m, nil, "m"); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s: %v, want DeadlineExceeded", m.FullPath, err)
			}
			select {
			case ok := <-deadlines:
				if !ok {
					t.Errorf("%s: the backend knows of no deadline", m.FullPath)
				}
			default: // the time did not suffice for the backend to be reached
				if timeout < time.Minute {
					continue
				}
				t.Errorf("%s: the backend was not reached", m.FullPath)
			}
			break
		}
	}
}

func TestHedging(t *testing.T) {
	const config = `{"methodConfig": [{"name": [{"service": "t.T"}], "hedgingPolicy":
		{"maxAttempts": %d, "hedgingDelay": %q, "nonFatalStatusCodes": ["UNAVAILABLE", "ABORTED"]}}]}`
	cancelled := make(chan struct{}, 8)
	stuck := func(s stream) error {
		<-s.Context().Done()
		cancelled <- struct{}{}
		return nil
	}
	for _, tt := range []struct {
		name     string
		delay    string
		fail     []func(s stream) error // by attempt; echo afterwards
		attempts int
		code     codes.Code
		cut      int // attempts that are cancelled
		most     int // attempts that the policy allows; 3 if 0
	}{
		{"first answers", "3600s", nil, 1, codes.OK, 0, 0},
		{"first is stuck", "0.01s", []func(stream) error{stuck}, 2, codes.OK, 1, 2}, // the second may take longer than the delay
		{"two are stuck", "0.01s", []func(stream) error{stuck, stuck}, 3, codes.OK, 2, 0},
		{"failure brings the next forward", "3600s", []func(stream) error{
			func(stream) error { return status.Error(codes.Aborted, "x") },
			func(stream) error { return status.Error(codes.Unavailable, "x") },
		}, 3, codes.OK, 0, 0},
		{"fatal failure", "3600s", []func(stream) error{func(stream) error { return status.Error(codes.Internal, "x") }}, 1, codes.Internal, 0, 0},
		{"all fail", "3600s", []func(stream) error{
			func(stream) error { return status.Error(codes.Aborted, "x") },
			func(stream) error { return status.Error(codes.Aborted, "x") },
			func(stream) error { return status.Error(codes.Aborted, "x") },
		}, 3, codes.Aborted, 0, 0},
		{"pushback that stops", "3600s", []func(stream) error{func(s stream) error {
			s.SetTrailer(metadata.Pairs("grpc-retry-pushback-ms", "-1"))
			return status.Error(codes.Aborted, "x")
		}}, 1, codes.Aborted, 0, 0},
		{"pushback that waits", "3600s", []func(stream) error{func(s stream) error {
			s.SetTrailer(metadata.Pairs("grpc-retry-pushback-ms", "5"))
			return status.Error(codes.Aborted, "x")
		}}, 2, codes.OK, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := new(atomic.Int64)
			c := newCluster(t, upstream.Config{
				ServiceConfig: fmt.Sprintf(config, cmp.Or(tt.most, 3), tt.delay),
				Target: "static:///" + newBackend(t, func(method string, s stream) error {
					if i := int(n.Add(1)) - 1; i < len(tt.fail) {
						return tt.fail[i](s)
					}
					return echo(method, s)
				}),
			})
			got, call, err := exchange(t, c, unary, nil, "m")
			if status.Code(err) != tt.code || tt.code == codes.OK && fmt.Sprint(got) != "[re:m]" {
				t.Errorf("%v, %v; want %v", got, err, tt.code)
			}
			if got := call.Info().Attempts; got != tt.attempts {
				t.Errorf("%d attempts, want %d", got, tt.attempts)
			}
			for range tt.cut {
				<-cancelled
			}
		})
	}
}

// Hedging cuts the tail that stalls make, for few calls more: 1.5 % of them, for as many meet a stall. A busy machine makes
// others late too; few by as much as the delay, which is long for that reason, and those that are may be hedged as well.
func TestHedgingCutsTheTail(t *testing.T) {
	const calls, every, stall, delay = 2000, 66, 3 * time.Second, time.Second
	// late is how many calls took the delay and more, stalled how many attempts met a stall.
	run := func(config string) (took []time.Duration, late int, stalled, extra int64) {
		var n, stalls atomic.Int64
		answer := func(_ string, s stream) error {
			if n.Add(1)%every == 0 {
				stalls.Add(1)
				timer := time.NewTimer(stall)
				defer timer.Stop()
				select {
				case <-timer.C:
				case <-s.Context().Done():
				}
			}
			return echo(unary.FullPath, s)
		}
		c := newCluster(t, upstream.Config{
			Target: "static:///" + newBackend(t, answer) + "," + newBackend(t, answer), ServiceConfig: config,
		})
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for range calls / 100 {
					start := time.Now()
					if _, _, err := exchange(t, c, unary, nil, "m"); err != nil {
						t.Error(err)
					}
					d := time.Since(start)
					mu.Lock()
					took = append(took, d)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		slices.Sort(took)
		fast, _ := slices.BinarySearch(took, delay)
		return took, calls - fast, stalls.Load(), n.Load() - calls
	}
	const p99 = calls * 99 / 100
	without, _, _, none := run("")
	with, late, stalled, extra := run(fmt.Sprintf(`{"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 2, "hedgingDelay": "%vs"}}]}`, delay.Seconds()))
	t.Logf("p99 %v without hedging, %v with, by %d more attempts at %d calls; %d were late, %d attempts met a stall", without[p99], with[p99], extra, calls, late, stalled)
	if none != 0 {
		t.Errorf("%d more attempts without hedging", none)
	}
	if without[p99] < stall || with[p99] > stall*2/3 {
		t.Errorf("p99 %v without hedging, %v with; want at least %v and at most %v", without[p99], with[p99], stall, stall*2/3)
	}
	if busy := max(0, int64(late)-stalled); extra < calls/100 || extra > calls*2/100+busy || extra > int64(late) {
		t.Errorf("%d more attempts at %d calls, want 1 to 2 %%, and none but for the %d that were late", extra, calls, late)
	}
}

// A client that leaves while a hedged call waits ends all its attempts.
func TestHedgedClientLeaves(t *testing.T) {
	started, ended := make(chan struct{}, 2), make(chan struct{}, 2)
	c := newCluster(t, upstream.Config{
		ServiceConfig: `{"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 2}}]}`,
		Target: "static:///" + newBackend(t, func(_ string, s stream) error {
			started <- struct{}{}
			<-s.Context().Done()
			ended <- struct{}{}
			return nil
		}),
	})
	call := rpctest.Start(t.Context(), c.Invoke, unary, nil)
	_ = call.Send([]byte("m"))
	_ = call.CloseSend()
	<-started
	<-started
	call.Leave()
	if err := call.Wait(); rpc.StatusOf(err).Code() != codes.Canceled {
		t.Errorf("%v, want Canceled", err)
	}
	<-ended
	<-ended
}

// recording is the policy "recorded": another that tells how attempts ended.
type recording struct{ balancer.Builder }

// recorded is how they ended.
var recorded = make(chan codes.Code, 2)

func (recording) Name() string { return "recorded" }

func (b recording) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	return b.Builder.Build(recordingConn{cc}, opts)
}

type recordingConn struct{ balancer.ClientConn }

func (c recordingConn) UpdateState(s balancer.State) {
	s.Picker = recordingPicker{s.Picker}
	c.ClientConn.UpdateState(s)
}

type recordingPicker struct{ balancer.Picker }

func (p recordingPicker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	r, err := p.Picker.Pick(info)
	r.Done = func(d balancer.DoneInfo) { recorded <- status.Code(d.Err) } // round robin has none
	return r, err
}

// The balancer hears of hedged attempts that ran to the call's deadline that they failed by it; of those whose client left, or that lost
// to another, that they were cancelled.
func TestHedgedDeadline(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer bool  // the second attempt
		cause  error // of the end of the call's context, if nothing is answered
		want   []codes.Code
	}{
		{"deadline", false, context.DeadlineExceeded, []codes.Code{codes.DeadlineExceeded, codes.DeadlineExceeded}},
		{"cancelled", false, rpc.ErrClientGone, []codes.Code{codes.Canceled, codes.Canceled}},
		{"lost to another", true, nil, []codes.Code{codes.OK, codes.Canceled}},
	} {
		started := make(chan struct{}, 2)
		var attempts atomic.Int64
		c := newCluster(t, upstream.Config{
			Transport: upstream.TransportOwn, // grpc-go says of all that they were cancelled
			ServiceConfig: `{"loadBalancingConfig": [{"recorded": {}}],
				"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 2}}]}`,
			Target: "static:///" + newBackend(t, func(method string, s stream) error {
				n := attempts.Add(1)
				started <- struct{}{}
				if tt.answer && n == 2 {
					return echo(method, s)
				}
				<-s.Context().Done()
				return nil
			}),
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		call := rpctest.Start(ctx, c.Invoke, unary, nil)
		_ = call.Send([]byte("m"))
		_ = call.CloseSend()
		<-started
		<-started
		if !tt.answer {
			cancel(tt.cause)
		}
		_ = call.Wait() // other tests look at how it ended
		cancel(nil)
		got := []codes.Code{<-recorded, <-recorded}
		slices.Sort(got)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: the attempts ended with %v, want %v", tt.name, got, tt.want)
		}
	}
}

// A server that puts off the next attempt keeps nobody longer than the call lasts: neither the deadline nor the client's leaving ended
// the wait, and an attempt that the budget did not allow then was waited for without end.
func TestHedgePutOff(t *testing.T) {
	const hour = "3600000"
	for _, tt := range []struct {
		name     string
		pushback string
		timeout  time.Duration // 0: none
		leave    bool
		budget   float64
		code     codes.Code
	}{
		{"past the deadline", hour, time.Minute, false, 0, codes.Aborted},
		{"the client leaves", hour, 0, true, 0, codes.Canceled},
		{"over the budget", "5", 0, false, -1, codes.Aborted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tried := make(chan struct{}, 3)
			c := newCluster(t, upstream.Config{
				ServiceConfig: `{"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 3, "hedgingDelay": "3600s", "nonFatalStatusCodes": ["ABORTED"]}}]}`,
				RetryBudget:   tt.budget,
				Target: "static:///" + newBackend(t, func(_ string, s stream) error {
					s.SetTrailer(metadata.Pairs("grpc-retry-pushback-ms", tt.pushback))
					tried <- struct{}{}
					return status.Error(codes.Aborted, "later")
				}),
			})
			ctx := t.Context()
			if tt.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.timeout)
				defer cancel()
			}
			began := time.Now()
			call := rpctest.Start(ctx, c.Invoke, unary, nil)
			_ = call.Send([]byte("m"))
			_ = call.CloseSend()
			<-tried
			if tt.leave {
				call.Leave()
			}
			// A client that leaves before the wait begins has the call end as its attempt did.
			if err := call.Wait(); rpc.StatusOf(err).Code() != tt.code && !(tt.leave && rpc.StatusOf(err).Code() == codes.Aborted) {
				t.Errorf("%v, want %v", err, tt.code)
			}
			if took := time.Since(began); took > tt.timeout/2+30*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestServiceConfigFaults(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`{`, "unexpected EOF"},
		{"{\n  \"methodConfig\": [}", "line 2, column 20: invalid character '}'"},
		{`{"methodConfigs": []}`, `unknown field "methodConfigs"`},
		{`{} {}`, "there is more after the JSON object"},
		{`{"methodConfig": [{}]}`, "methodConfig[0].name: must not be empty"},
		{`{"methodConfig": [{"name": [{"method": "m"}]}]}`, "methodConfig[0].name[0]: has a method but no service"},
		{`{"methodConfig": [{"name": [{"service": "s"}, {"service": "s"}]}]}`, `methodConfig[0].name[1]: "/s/" is named twice`},
		{`{"methodConfig": [{"name": [{}], "timeout": "5m"}]}`, `duration "5m": must be seconds such as "1.5s"`},
		{`{"methodConfig": [{"name": [{}], "timeout": "0s"}]}`, `methodConfig[0].timeout: must be more than 0s`},
		{`{"methodConfig": [{"name": [{}], "timeout": 5}]}`, `duration 5: must be seconds`},
		{`{"methodConfig": [{"name": [{}], "maxRequestMessageBytes": -1}]}`, `methodConfig[0].maxRequestMessageBytes: must not be negative`},
		{`{"methodConfig": [{"name": [{}], "retryPolicy": {}}]}`, `methodConfig[0].retryPolicy.maxAttempts: must be at least 2, is 0`},
		{`{"methodConfig": [{"name": [{}], "retryPolicy": {}}]}`, `methodConfig[0].retryPolicy.retryableStatusCodes: must not be empty`},
		{`{"methodConfig": [{"name": [{}], "retryPolicy": {}}]}`, `methodConfig[0].retryPolicy.initialBackoff: must be more than 0s`},
		{`{"methodConfig": [{"name": [{}], "retryPolicy": {"retryableStatusCodes": ["NOPE"]}}]}`, `invalid code: "\"NOPE\""`},
		{`{"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 1, "hedgingDelay": "-1s"}}]}`, `hedgingPolicy.hedgingDelay: must not be negative`},
		{`{"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 2}, "retryPolicy": {}}]}`, `methodConfig[0]: has both a retryPolicy and a hedgingPolicy`},
		{`{"retryThrottling": {"maxTokens": 2000, "tokenRatio": 0}}`, `retryThrottling.maxTokens: must be more than 0 and at most 1000, is 2000`},
		{`{"retryThrottling": {"maxTokens": 2000, "tokenRatio": 0}}`, `retryThrottling.tokenRatio: must be at least 0.001`},
		{`{"loadBalancingConfig": [{"nope": {}}]}`, `service_config: loadBalancingConfig: there is no "nope"`},
	} {
		err := upstream.Config{Name: "a", Target: "b:1", ServiceConfig: tt.in}.Validate()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.in, err, tt.want)
		}
	}
	err := upstream.Config{Name: "a", Target: "b:1", LB: "round_robin", ServiceConfig: `{"loadBalancingConfig": [{"round_robin": {}}]}`}.Validate()
	if err == nil || !strings.Contains(err.Error(), "the cluster has a balancing policy of its own") {
		t.Errorf("two policies: %v", err)
	}
}

func FuzzServiceConfig(f *testing.F) {
	f.Add(retryAborted)
	f.Add(`{"loadBalancingPolicy": "ROUND_ROBIN", "healthCheckConfig": {"serviceName": "x"}}`)
	f.Add(`{"methodConfig": [{"name": [{}], "timeout": "1.5s", "waitForReady": true, "hedgingPolicy": {"maxAttempts": 2}}]}`)
	f.Add(`{"retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}}`)
	f.Fuzz(func(t *testing.T, text string) {
		cfg := upstream.Config{Name: "a", Target: "127.0.0.1:1", ServiceConfig: text}
		if cfg.Validate() != nil {
			return
		}
		newCluster(t, cfg) // what is valid must be accepted by grpc-go too
	})
}
