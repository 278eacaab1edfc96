// Package discovery runs the whole of transom in front of servers that come and go, as told by a file, by DNS, by a
// Kubernetes API server and by an xDS control plane, while REST and gRPC clients call all the time. No call may fail.
package discovery

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what takes a second or two on a good day.
const patience = time.Minute

// server is one of the servers, all on the same port of different loopback addresses.
type server struct {
	host  string
	calls atomic.Int64
}

func (s *server) addr(port int) string { return net.JoinHostPort(s.host, strconv.Itoa(port)) }

// rates and accounts have methods of the same name.
type (
	rates struct {
		bankv1.UnimplementedRatesServer
		*server
	}
	accounts struct {
		bankv1.UnimplementedAccountsServer
		*server
	}
)

func (s rates) Get(context.Context, *bankv1.GetRateRequest) (*bankv1.Rate, error) {
	s.calls.Add(1)
	return &bankv1.Rate{Rate: 1}, nil
}

func (s accounts) Transfer(context.Context, *bankv1.TransferRequest) (*bankv1.TransferResponse, error) {
	s.calls.Add(1)
	return &bankv1.TransferResponse{}, nil
}

// startServers runs three servers until the test ends.
func startServers(t *testing.T) (servers []*server, port int) {
	t.Helper()
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		s := &server{host: host}
		l, err := net.Listen("tcp", s.addr(port))
		if err != nil {
			t.Fatal(err)
		}
		port = l.Addr().(*net.TCPAddr).Port
		srv := grpc.NewServer()
		bankv1.RegisterRatesServer(srv, rates{server: s})
		bankv1.RegisterAccountsServer(srv, accounts{server: s})
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Serve(l) })
		t.Cleanup(func() { srv.Stop(); wg.Wait() })
		servers = append(servers, s)
	}
	return servers, port
}

// source is what knows the servers: it is told the hosts, and tells the proxy.
type source interface {
	list(t *testing.T, hosts ...string)
	// cluster is the proxy's configuration of it, environ what its process needs.
	cluster() string
	environ() []string
}

func TestServersComeAndGo(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, port int) source{
		"file": newFile, "dns": newNameServer, "kubernetes": newAPIServer, "xds": newControlPlane,
	} {
		t.Run(name, func(t *testing.T) {
			servers, port := startServers(t)
			src := start(t, port)
			src.list(t, servers[0].host)

			dir := t.TempDir()
			set, cfg := filepath.Join(dir, "bank.binpb"), filepath.Join(dir, "transom.yaml")
			process.Replace(t, set, bank.DescriptorSet())
			process.Replace(t, cfg, fmt.Appendf(nil, "listeners: [{address: \"127.0.0.1:0\"}]\ndescriptors: [{file: %q}]\nclusters:\n  bank: %s\n", set, src.cluster()))
			cmd := exec.CommandContext(context.WithoutCancel(t.Context()), process.Program(t), "serve", "--config", cfg)
			cmd.Env = append(os.Environ(), src.environ()...)
			p := process.Run(t, 1, cmd)

			c := startCallers(t, p.Plain)
			for _, step := range [][]int{{0}, {0, 1}, {0, 1, 2}, {1, 2}, {2}, {0, 2}, {1}} {
				var hosts []string
				for _, i := range step {
					hosts = append(hosts, servers[i].host)
				}
				src.list(t, hosts...)
				until(t, servers, step)
			}
			rest, native := c.stop()
			t.Logf("%d REST and %d gRPC calls", rest, native)
		})
	}
}

// until waits until calls go to the wanted servers, all of them, and to no other.
func until(t *testing.T, servers []*server, want []int) {
	t.Helper()
	counts := func() (all []int64) {
		for _, s := range servers {
			all = append(all, s.calls.Load())
		}
		return all
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	wanted := map[int]bool{}
	for _, i := range want {
		wanted[i] = true
	}
	before, start := counts(), time.Now()
	for range tick.C {
		now := counts()
		total, good := int64(0), true
		for i := range now {
			n := now[i] - before[i]
			total += n
			if n > 0 && !wanted[i] {
				before, good = now, false // not yet: count anew
				break
			}
			good = good && (n > 0 || !wanted[i])
		}
		if good && total >= 200 {
			return
		}
		if time.Since(start) > patience {
			t.Fatalf("calls of %v go to servers %v: %v, before %v", patience, want, now, before)
		}
	}
}

// callers call until they are stopped, each one call after the other.
type callers struct {
	t            *testing.T
	ended        chan struct{}
	wg           sync.WaitGroup
	rest, native atomic.Int64
}

func startCallers(t *testing.T, addr string) *callers {
	t.Helper()
	c := &callers{t: t, ended: make(chan struct{})}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		c.stop()
		_ = conn.Close()
		web.CloseIdleConnections()
	})
	ctx := t.Context()
	// A transfer may not be repeated by the proxy, unless no server has seen it.
	c.start(&c.native, func() error {
		_, err := bankv1.NewAccountsClient(conn).Transfer(ctx, &bankv1.TransferRequest{})
		return err
	})
	post := func(method, path, body string) error {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, strings.NewReader(body))
		if err != nil {
			return err
		}
		resp, err := web.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s: %s", method, path, resp.Status)
		}
		return nil
	}
	c.start(&c.rest, func() error { return post(http.MethodGet, "/v1/rates/EUR/USD", "") })
	c.start(&c.rest, func() error { return post(http.MethodPost, "/v1/customers/1/accounts/2:transfer", "{}") })
	return c
}

func (c *callers) start(count *atomic.Int64, call func() error) {
	c.wg.Go(func() {
		for {
			select {
			case <-c.ended:
				return
			default:
			}
			if err := call(); err != nil {
				c.t.Errorf("call %d: %v", count.Load(), err)
				return
			}
			count.Add(1)
		}
	})
}

// stop ends the calls and returns how many there were.
func (c *callers) stop() (rest, native int64) {
	select {
	case <-c.ended:
	default:
		close(c.ended)
	}
	c.wg.Wait()
	return c.rest.Load(), c.native.Load()
}
