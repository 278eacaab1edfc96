package policies_test

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"transom/e2e/process"
	adminv1 "transom/proto/transom/admin/v1"
)

// redisCluster is three nodes that share the slots of a Redis Cluster, without replicas.
type redisCluster struct {
	nodes []*clusterNode
}

type clusterNode struct {
	port, dir string
	cmd       *exec.Cmd
	exited    chan struct{}
}

func startRedisCluster(t *testing.T) *redisCluster {
	t.Helper()
	c := &redisCluster{}
	for range 3 {
		n := &clusterNode{dir: t.TempDir()}
		for attempt := 1; !n.run(t); attempt++ {
			if attempt == 5 {
				t.Fatal("a node of the cluster does not start")
			}
			n.port = ""
		}
		t.Cleanup(n.kill)
		c.nodes = append(c.nodes, n)
	}
	const slots = 16384
	for i, n := range c.nodes {
		n.cli(t, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*slots/3), strconv.Itoa((i+1)*slots/3-1))
		if i > 0 {
			first := c.nodes[0].port
			n.cli(t, "CLUSTER", "MEET", "127.0.0.1", first, busPort(first))
		}
	}
	c.await(t)
	return c
}

// busPort is that on which a node talks to others.
func busPort(port string) string {
	n, _ := strconv.Atoi(port)
	return strconv.Itoa(n - 1)
}

// run starts the node and waits until it answers; at a port that nobody has, if it had none before. It reports false if the server
// ends, since somebody else has one of its ports.
func (n *clusterNode) run(t *testing.T) bool {
	t.Helper()
	if n.port == "" {
		l := process.Listen(t)
		n.port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
		l.Close()
	}
	n.cmd = exec.Command("redis-server", "--bind", "127.0.0.1", "--save", "", "--dir", n.dir, "--port", n.port, "--cluster-enabled", "yes",
		"--cluster-port", busPort(n.port), "--cluster-announce-ip", "127.0.0.1", "--cluster-require-full-coverage", "no", "--cluster-node-timeout", "2000")
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.exited = make(chan struct{})
	go func() {
		defer close(n.exited)
		_ = n.cmd.Wait()
	}()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		select {
		case <-n.exited:
			return false
		case <-time.After(10 * time.Millisecond):
		}
		if out, err := exec.Command("redis-cli", "-p", n.port, "PING").Output(); err == nil && strings.TrimSpace(string(out)) == "PONG" {
			return true
		}
	}
	t.Fatal("a node of the cluster does not answer")
	return false
}

func (n *clusterNode) kill() {
	_ = n.cmd.Process.Kill()
	<-n.exited
}

// cli runs a command.
func (n *clusterNode) cli(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("redis-cli", append([]string{"-p", n.port}, args...)...).CombinedOutput()
	if err != nil || strings.HasPrefix(string(out), "ERR") {
		t.Fatalf("%v: %s, %v", args, out, err)
	}
	return string(out)
}

// await waits until all nodes know that all are there.
func (c *redisCluster) await(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for _, n := range c.nodes {
		for {
			info := n.cli(t, "CLUSTER", "INFO")
			if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_slots_ok:16384") && strings.Contains(info, "cluster_size:3") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the cluster is not ready: %s", info)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// addresses are all nodes'.
func (c *redisCluster) addresses() string {
	var list []string
	for _, n := range c.nodes {
		list = append(list, strconv.Quote("127.0.0.1:"+n.port))
	}
	return strings.Join(list, ", ")
}

// kept waits until the nodes together have n answers, and each has some.
func (c *redisCluster) kept(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		var by []int
		sum := 0
		for _, node := range c.nodes {
			by = append(by, len(strings.Fields(node.cli(t, "KEYS", "transom:cache:*"))))
			sum += by[len(by)-1]
		}
		if sum == n && !slices.Contains(by, 0) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the nodes have %d answers, want %d", by, n)
		}
	}
}

// TestRedisCluster has two transoms share limits and answers in a Redis Cluster, whose nodes have a part of the keys each, lose one of
// them, and get it back.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	c := startRedisCluster(t)
	top := fmt.Sprintf("\nadmin: {address: \"127.0.0.1:0\"}\nredis: {addresses: [%s], instances: 2, timeout: 5s}\n", c.addresses())
	limited := top + `
policies:
- selector: bank.v1.Diagnostics.Metadata
  limits: [{rate: 4/h, per: "header:x-user"}]
`
	both := []*proxy{start(t, limited), start(t, limited)}
	const users = 24
	user := func(n int) map[string]string { return map[string]string{"x-user": fmt.Sprintf("user-%d", n)} }
	// limit has users make five calls of four, the fifth by the other transom.
	limit := func(what string, first int) {
		t.Helper()
		for n := first; n < first+users; n++ {
			for range 4 { // of its own share a transom has two
				callGRPC(t, both[n%2], user(n)).wantOK(t, what)
			}
			callGRPC(t, both[1-n%2], user(n)).want(t, what+", the fifth", codes.ResourceExhausted, 429, "RATE_LIMITED")
		}
	}
	limit("a call of a user", 0)

	for _, p := range both {
		p.reload(t, top+`
policies:
- {selector: bank.v1.Diagnostics.Metadata, cache: {ttl: 1h, redis: true, shared: true, vary: [x-user]}}
`)
	}
	ask := func(what string, p *proxy, status string) {
		t.Helper()
		for n := range users {
			o := callGRPC(t, p, user(n))
			o.wantOK(t, what)
			if got := o.header["cache-status"]; !slices.Equal(got, []string{status}) {
				t.Errorf("%s: %q, want %q", what, got, status)
			}
		}
	}
	ask("new answers", both[0], "transom; fwd=miss; stored")
	c.kept(t, users)
	ask("answers of another", both[1], "transom; hit; detail=shared")
	r, err := both[1].admin(t).PurgeCache(t.Context(), &adminv1.PurgeCacheRequest{Method: "bank.v1.Diagnostics.Metadata"})
	if err != nil || !r.GetShared() {
		t.Errorf("a purge: %v, %v", r, err)
	}
	ask("purged answers", both[1], "transom; fwd=miss; stored")

	// Without one of the nodes each transom holds callers to its part, and none fails.
	for _, p := range both {
		p.reload(t, limited)
	}
	lost := c.nodes[2]
	lost.kill()
	for n := users; n < 3*users; n++ {
		if o := callGRPC(t, both[n%2], user(n)); o.code != codes.OK {
			t.Errorf("without a node: %v %s", o.code, o.message)
		}
	}
	for attempt := 1; !lost.run(t); attempt++ { // a connection of another test's may have the port for a while
		if attempt == 100 {
			t.Fatal("the node that was killed does not start again")
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.await(t)
	// The transoms try again within a second, and as many users in a row have their counts on every node.
	for deadline, n, good := time.Now().Add(patience), 10*users, 0; good < users; n++ {
		var left []string
		for _, p := range both {
			left = append(left, callGRPC(t, p, user(n)).header["ratelimit"]...)
		}
		if len(left) == 2 && strings.Contains(left[0], ";r=3;") && strings.Contains(left[1], ";r=2;") {
			good++
			continue
		}
		good = 0
		if time.Now().After(deadline) {
			t.Fatalf("the node is back, and limits are not shared: %q", left)
		}
	}
	limit("the node is back", 4*users)
}
