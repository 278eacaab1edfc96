package upstream_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	_ "google.golang.org/grpc/encoding/gzip" // of the backends here
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
	"transom/rpc/rpctest"
	"transom/upstream"
)

// Every policy by its name, and by gRPC's own JSON.
func TestPolicies(t *testing.T) {
	addrs := nameBackend(t, "A") + "," + nameBackend(t, "B")
	for _, lb := range []string{
		"adaptive", "round_robin", "weighted_round_robin", "least_request", "peak_ewma", "random", "ring_hash", "bounded_hash",
		`[{"round_robin": {}}]`, `[{"adaptive": {"policy": "least_request", "warmup": "1s"}}]`,
	} {
		c := newCluster(t, upstream.Config{Target: "static:///" + addrs, LB: lb})
		untilOnly(t, c, "A", "B")
		if got := len(c.Endpoints()); got != 2 {
			t.Errorf("%s: %d endpoints shown, want 2", lb, got)
		}
	}
	c := newCluster(t, upstream.Config{Target: "static:///" + addrs, LB: "pick_first"})
	if _, _, err := exchange(t, c, unary, nil, "m"); err != nil {
		t.Errorf("pick_first: %v", err)
	}
}

// The calls of one key go to one endpoint, those of many to all.
func TestHashOn(t *testing.T) {
	addrs := nameBackend(t, "A") + "," + nameBackend(t, "B") + "," + nameBackend(t, "C")
	for _, on := range []string{"header:user", "ip"} {
		c := newCluster(t, upstream.Config{
			Target: "static:///" + addrs, HashOn: on,
			LB: `[{"adaptive": {"policy": "ring_hash", "ejection": {"consecutive": 0, "successMargin": 0, "latencyFactor": 0}}}]`,
		})
		do := func(key int) string {
			var got string
			call := rpctest.Start(t.Context(), func(ctx context.Context, call *rpc.Call) error {
				call.Peer.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(key)}), uint16(time.Now().UnixNano()))
				return c.Invoke(ctx, call)
			}, unary, metadata.MD{"user": {fmt.Sprint(key)}})
			_ = call.Send(nil)
			_ = call.CloseSend()
			b, err := call.Recv()
			if got = string(b); err != nil {
				t.Fatal(err)
			}
			return got
		}
		untilReady(t, c, 3)
		homes := map[string]int{}
		for key := range 60 {
			home := do(key)
			homes[home]++
			for range 3 {
				if got := do(key); got != home {
					t.Errorf("%s: key %d went to %s, then to %s", on, key, home, got)
				}
			}
		}
		if len(homes) != 3 {
			t.Errorf("%s: 60 keys went to %v", on, homes)
		}
	}
	for _, on := range []string{"cookie", "header:", "header:User", "field:", "field:a..b", "field:a-b"} {
		if err := (upstream.Config{Name: "a", Target: "b:1", HashOn: on}).Validate(); err == nil || !strings.Contains(err.Error(), "lb.hash_on: ") {
			t.Errorf("%q: %v", on, err)
		}
	}
}

// So do those with one value of a field of the request, of unary and of server-streaming calls.
func TestHashOnField(t *testing.T) {
	addrs := nameBackend(t, "A") + "," + nameBackend(t, "B") + "," + nameBackend(t, "C")
	c := newCluster(t, upstream.Config{
		Target: "static:///" + addrs, HashOn: "field:amount.currency",
		LB: `[{"adaptive": {"policy": "ring_hash", "ejection": {"consecutive": 0, "successMargin": 0, "latencyFactor": 0}}}]`,
	})
	untilReady(t, c, 3)
	request := bankv1.File_bank_v1_bank_proto.Services().ByName("Accounts").Methods().ByName("Transfer")
	for _, m := range []*descriptors.Method{
		{FullPath: "/t.T/Unary", Desc: request}, {FullPath: "/t.T/Download", Desc: request, ServerStreams: true},
	} {
		homes := map[string]int{}
		for key := range 40 {
			home := ""
			for try := range 3 {
				wire, err := proto.Marshal(&bankv1.TransferRequest{
					Name: fmt.Sprint(try), Amount: &bankv1.Money{Currency: fmt.Sprint(key)},
				})
				if err != nil {
					t.Fatal(err)
				}
				got, _, err := exchange(t, c, m, nil, string(wire))
				if err != nil || len(got) != 1 {
					t.Fatal(got, err)
				}
				if try == 0 {
					home = got[0]
					homes[home]++
				} else if got[0] != home {
					t.Errorf("%s: key %d went to %s, then to %s", m.FullPath, key, home, got[0])
				}
			}
		}
		if len(homes) != 3 {
			t.Errorf("%s: 40 keys went to %v", m.FullPath, homes)
		}
	}
}

// A cluster that finds its limit itself begins low, gives its servers more as they keep up, and never more than it may.
func TestAdaptiveConcurrency(t *testing.T) {
	var inside, most atomic.Int64
	addr := newBackend(t, func(method string, s stream) error {
		n := inside.Add(1)
		defer inside.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		return echo(method, s)
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr, AdaptiveConcurrency: true, MaxInFlight: 40})
	if got := c.Limit(); got != 8 {
		t.Errorf("limit %d at first, want 8", got)
	}
	var wg sync.WaitGroup
	start := time.Now()
	for range 60 {
		wg.Go(func() {
			for c.Limit() <= 8 && time.Since(start) < time.Minute {
				if _, call, err := exchange(t, c, unary, nil, "m"); err != nil {
					t.Errorf("%v: %v", err, call.Wait())
					return
				}
			}
		})
	}
	wg.Wait()
	if got := c.Limit(); got <= 8 || got > 40 {
		t.Errorf("limit %d after a while, want more than 8, at most 40", got)
	}
	if got := most.Load(); got > 40 {
		t.Errorf("%d calls at a time, at most 40 may be", got)
	}
}

// untilReady calls until n endpoints are connected.
func untilReady(t *testing.T, c *upstream.Cluster, n int) {
	t.Helper()
	for {
		if _, _, err := exchange(t, c, unary, nil, "m"); err != nil {
			t.Fatal(err)
		}
		ready := 0
		for _, e := range c.Endpoints() {
			if e.State == connectivity.Ready {
				ready++
			}
		}
		if ready == n {
			return
		}
	}
}

// A retry goes elsewhere while there is anywhere else.
func TestRetryGoesElsewhere(t *testing.T) {
	var mu sync.Mutex
	seen := map[string][]string{} // by call
	serve := func(name string) string {
		return newBackend(t, func(_ string, s stream) error {
			id, err := s.recv()
			if err != nil {
				return err
			}
			if id == "m" { // of untilReady
				return s.send(id)
			}
			mu.Lock()
			seen[id] = append(seen[id], name)
			mu.Unlock()
			return status.Error(codes.Unavailable, "try elsewhere")
		})
	}
	c := newCluster(t, upstream.Config{
		Target: "static:///" + serve("A") + "," + serve("B") + "," + serve("C"), RetryBudget: 1,
		LB: `[{"adaptive": {"ejection": {"consecutive": 0, "successMargin": 0}}}]`,
	})
	untilReady(t, c, 3)
	for i := range 30 {
		_, _, _ = exchange(t, c, idempotent, nil, fmt.Sprint(i))
	}
	mu.Lock()
	defer mu.Unlock()
	full := 0
	for id, names := range seen {
		distinct := map[string]bool{}
		for _, n := range names {
			distinct[n] = true
		}
		if len(names) == 3 {
			full++
		}
		if len(distinct) != len(names) {
			t.Errorf("call %s went to %v", id, names)
		}
	}
	if full < 5 { // the floor of the budget
		t.Errorf("only %d calls had three attempts", full)
	}
}

// When every endpoint has as many calls as it may, further ones wait for one to end.
func TestSaturated(t *testing.T) {
	var inside, most atomic.Int64
	h := func(method string, s stream) error {
		n := inside.Add(1)
		defer inside.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		return echo(method, s)
	}
	c := newCluster(t, upstream.Config{
		Target: "static:///" + newBackend(t, h) + "," + newBackend(t, h), MaxInFlightPerEndpoint: 2, QueueTimeout: time.Minute,
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				if _, call, err := exchange(t, c, unary, nil, "m"); err != nil || call.Info().Attempts != 1 {
					t.Errorf("%v after %d attempts", err, call.Info().Attempts)
				}
				if _, _, err := exchange(t, c, bidi, nil, "m"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := most.Load(); got > 8 { // a handler returns a little after its call has ended
		t.Errorf("%d calls at the backends, want about 4", got)
	}
	if c.InFlight() != 0 || c.Queued() != 0 {
		t.Errorf("%d calls in flight and %d queued at the end", c.InFlight(), c.Queued())
	}
}

// calls is how many calls the endpoint has got.
func calls(c *upstream.Cluster, addr string) uint64 {
	for _, e := range c.Endpoints() {
		if e.Address == addr {
			return e.Calls
		}
	}
	return 0
}

func TestEndpoints(t *testing.T) {
	a, b := nameBackend(t, "A"), nameBackend(t, "B")
	path := t.TempDir() + "/endpoints.yaml"
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q, weight: 50, zone: z}, {address: %q, drain: true}]", a, b))
	c := newCluster(t, upstream.Config{Target: "file://" + path})
	untilOnly(t, c, "A") // B may be asked before A is connected
	before := map[string]uint64{}
	for _, e := range c.Endpoints() {
		before[e.Address] = e.Calls
	}
	for range 20 {
		if _, _, err := exchange(t, c, unary, nil, "m"); err != nil {
			t.Fatal(err)
		}
	}
	shown := map[string]string{}
	for _, e := range c.Endpoints() {
		shown[e.Address] = fmt.Sprintf("%v %q %v %v %v", e.Weight, e.Zone, e.Drain, e.State == connectivity.Ready, e.Calls-before[e.Address] >= 20)
	}
	if got := shown[a]; got != `50 "z" false true true` {
		t.Errorf("A is shown as %q", got)
	}
	if got := shown[b]; !strings.HasPrefix(got, `100 "" true`) || !strings.HasSuffix(got, "false") || calls(c, b) != before[b] {
		t.Errorf("B is shown as %q", got)
	}
}

// Endpoints of second choice get what those of first choice cannot take.
func TestPriority(t *testing.T) {
	a, b := nameBackend(t, "A"), nameBackend(t, "B")
	path := t.TempDir() + "/endpoints.yaml"
	list := func(firsts ...string) {
		text := "endpoints:\n"
		for _, addr := range firsts {
			text += fmt.Sprintf("- {address: %q}\n", addr)
		}
		replace(t, path, text+fmt.Sprintf("- {address: %q, priority: 1}\n", b))
	}
	list(a)
	c := newCluster(t, upstream.Config{Target: "file://" + path})
	untilOnly(t, c, "A")
	const dead = "127.0.0.1:1" // half of the first choice: 0.7 of the calls stay there
	list(a, dead)
	untilOnly(t, c, "A", "B")
	before := calls(c, a)
	const n = 400
	for range n {
		if _, _, err := exchange(t, c, unary, nil, "m"); err != nil {
			t.Fatal(err)
		}
	}
	if got := calls(c, a) - before; got < n*6/10 || got > n*8/10 { // four standard deviations
		t.Errorf("%d of %d calls stay with the first choice, want about 0.7", got, n)
	}
	list(a)
	untilOnly(t, c, "A")
	list(dead)
	untilOnly(t, c, "B")
}

// So do calls for which those of first choice have no room, and further attempts at calls that failed there.
func TestPrioritySpills(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	a := newBackend(t, func(_ string, s stream) error {
		switch m, err := s.recv(); {
		case err != nil:
			return err
		case m == "fail":
			return status.Error(codes.Unavailable, "try elsewhere")
		case m == "hold":
			entered <- struct{}{}
			<-release
		}
		return s.send("A")
	})
	b := nameBackend(t, "B")
	path := t.TempDir() + "/endpoints.yaml"
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}, {address: %q, priority: 1}]", a, b))
	c := newCluster(t, upstream.Config{Target: "file://" + path, MaxInFlightPerEndpoint: 1, QueueTimeout: time.Minute})
	untilReady(t, c, 2)
	one := func(m *descriptors.Method, msg, want string) {
		t.Helper()
		if got, _, err := exchange(t, c, m, nil, msg); err != nil || got[0] != want {
			t.Errorf("%s is answered by %v, %v; want %s", msg, got, err, want)
		}
	}
	one(unary, "m", "A")
	one(idempotent, "fail", "B")
	one(unary, "m", "A")
	held := make(chan error)
	go func() {
		_, _, err := exchange(t, c, unary, nil, "hold")
		held <- err
	}()
	<-entered
	one(unary, "m", "B")
	close(release)
	if err := <-held; err != nil {
		t.Error(err)
	}
	one(unary, "m", "A")
}

// What a service config says of single attempts: sizes and wait-for-ready.
func TestAttemptLimits(t *testing.T) {
	const config = `{"methodConfig": [
		{"name": [{"service": "t.T", "method": "Unary"}, {"service": "t.T", "method": "Bidi"}], "maxRequestMessageBytes": 10},
		{"name": [{"service": "t.T"}], "maxResponseMessageBytes": 10}]}`
	c := newCluster(t, upstream.Config{Target: "static:///" + newBackend(t, echo), ServiceConfig: config})
	for _, tt := range []struct {
		method *descriptors.Method
		msgs   []string
		code   codes.Code
		text   string
	}{
		{unary, []string{"0123456789"}, codes.OK, ""},
		{unary, []string{"0123456789a"}, codes.ResourceExhausted, `cluster "bank" does not take messages as large as this`},
		{bidi, []string{"0123456789"}, codes.OK, ""},
		{server, []string{"012345678"}, codes.OK, ""},
		{server, []string{"0123456789"}, codes.ResourceExhausted, `cluster "bank" sent a message larger than the limit for answers`},
		{client, []string{"012345678901"}, codes.ResourceExhausted, `cluster "bank" sent a message larger than the limit for answers`},
	} {
		_, _, err := exchange(t, c, tt.method, nil, tt.msgs...)
		if st := status.Convert(err); st.Code() != tt.code || st.Message() != tt.text {
			t.Errorf("%s(%q): %v %q, want %v %q", tt.method.FullPath, tt.msgs, st.Code(), st.Message(), tt.code, tt.text)
		}
	}
	if _, _, err := exchange(t, c, bidi, nil, "0123456789a"); status.Code(err) == codes.OK {
		t.Error("a stream's message that is too large was sent")
	}

	path := t.TempDir() + "/endpoints.yaml"
	replace(t, path, `endpoints: [{address: "127.0.0.1:1"}]`)
	c = newCluster(t, upstream.Config{Target: "file://" + path, ServiceConfig: `{"methodConfig": [{"name": [{}], "waitForReady": true}]}`})
	done := make(chan error)
	for _, m := range []*descriptors.Method{unary, bidi} {
		go func() {
			_, _, err := exchange(t, c, m, nil, "m")
			done <- err
		}()
	}
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}]", newBackend(t, echo)))
	for range 2 {
		if err := <-done; err != nil {
			t.Errorf("a call that waits for an endpoint: %v", err)
		}
	}
}

// Answers may come compressed by gzip; what they hold is as without.
func TestCompressedAnswers(t *testing.T) {
	accepts := make(chan string, 8)
	long := strings.Repeat("x", 2000)
	addr := newBackend(t, func(method string, s stream) error {
		md, _ := metadata.FromIncomingContext(s.Context())
		accepts <- strings.Join(md["grpc-accept-encoding"], ",")
		if err := grpc.SetSendCompressor(s.Context(), "gzip"); err != nil {
			return err
		}
		return echo(method, s)
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr, MaxMessageBytes: 1000})
	for _, m := range []*descriptors.Method{unary, bidi} {
		got, call, err := exchange(t, c, m, metadata.MD{"grpc-accept-encoding": {"br"}}, "m")
		if err != nil || fmt.Sprint(got) != "[re:m]" {
			t.Errorf("%s: %v, %v", m.FullPath, got, err)
		}
		if a := <-accepts; a != "gzip" {
			t.Errorf("%s: the backend was told %q", m.FullPath, a)
		}
		if e := call.Header()["grpc-encoding"]; e != nil {
			t.Errorf("%s: the client was told of %v", m.FullPath, e)
		}
		// A small frame that becomes a large message.
		if _, _, err := exchange(t, c, m, nil, long); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s: a message beyond the limit: %v", m.FullPath, err)
		}
		<-accepts
	}
}
