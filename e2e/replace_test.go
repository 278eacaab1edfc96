package e2e

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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

// TestReplace replaces the program five times by SIGUSR2 under calls of REST (a connection for each, kept-alive connections,
// and HTTP/2), gRPC and WebSocket (a socket for each). None may fail, nor may a WebSocket that is open all the while, or a call
// over HTTP/3 that is under way; HTTP/3 is served again afterwards. A new program that does not start leaves the old one
// serving.
func TestReplace(t *testing.T) {
	b := startBank(t, bank.Config{})
	a := process.NewAuthority(t)
	cert, set := certificate(t, a), descriptorSet(t)
	config := filepath.Join(t.TempDir(), "transom.yaml")
	write := func(drain string) {
		process.Replace(t, config, fmt.Appendf(nil, `
listeners:
  - {address: "127.0.0.1:0"}
  - {address: "127.0.0.1:0", tls: {certificate: %[1]s, key: %[1]s}, http3: true}
admin: {address: "127.0.0.1:0"}
descriptors: [{file: %[2]s}]
clusters: {bank: {target: "static:///%[3]s"}}
reload: {no_watch: true}
drain: {timeout: %[4]s}
`, cert, set, b.addr, drain))
	}
	write("10s")
	p := &proxy{process.Start(t, 3, "serve", "--config", config), a.File, a.Pool}
	pid := p.Cmd.Process.Pid
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	var stop atomic.Bool
	var calls [6]atomic.Int64
	var wg sync.WaitGroup
	work := func(i int, call func() error) {
		wg.Go(func() {
			for !stop.Load() {
				if err := call(); err != nil {
					t.Errorf("client %d, call %d: %v", i, calls[i].Load(), err)
					return
				}
				calls[i].Add(1)
			}
		})
	}
	get := func(c *http.Client, base string) func() error {
		return func() error {
			resp, err := c.Get(base + "/v1/customers/3/accounts/1")
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
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	h2 := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.Pool}, ForceAttemptHTTP2: true}}
	t.Cleanup(h2.CloseIdleConnections)
	work(0, get(fresh, "http://"+p.Plain))
	work(1, get(h2, "https://"+p.Secure))
	for i, secure := range []bool{false, true} {
		c := bankv1.NewAccountsClient(dial(t, p, secure))
		work(2+i, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := c.Get(ctx, &bankv1.GetAccountRequest{Name: "customers/3/accounts/1"})
			return err
		})
	}
	kept := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(kept.CloseIdleConnections)
	work(4, get(kept, "http://"+p.Plain))
	work(5, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		ws, _, err := websocket.Dial(ctx, "ws://"+p.Plain+"/bank.v1.Accounts/Get", nil)
		if err != nil {
			return err
		}
		defer ws.CloseNow()
		if err := ws.Write(ctx, websocket.MessageText, []byte(`{"name":"customers/3/accounts/1"}`)); err != nil {
			return err
		}
		if _, answer, err := ws.Read(ctx); err != nil || !strings.Contains(string(answer), "customers/3/accounts/1") {
			return fmt.Errorf("%s, %w", answer, err)
		}
		if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			return err
		}
		return nil
	})
	// echoes says something in a room, and hears it.
	echoes := func(ws *websocket.Conn, text string) {
		t.Helper()
		if err := ws.Write(t.Context(), websocket.MessageText, fmt.Appendf(nil, `{"room":"r","text":%q}`, text)); err != nil {
			t.Fatal(err)
		}
		for {
			_, said, err := ws.Read(t.Context())
			if err != nil {
				t.Fatalf("an open WebSocket ends: %v", err)
			}
			if strings.Contains(string(said), text) {
				return
			}
		}
	}
	h3, base3 := client(t, p, "h3")
	get3 := get(h3, base3)
	// serves waits until clients have called once more.
	serves := func() {
		for i := range calls {
			for was := calls[i].Load(); calls[i].Load() < was+2 && !t.Failed(); {
				time.Sleep(time.Millisecond) // the calls are the event
			}
		}
	}
	serves()
	seen := map[int]bool{pid: true} // one that goes may still answer when its successor does
	for n := range 5 {
		ws, _, err := websocket.Dial(t.Context(), "ws://"+p.Plain+"/v1/support/r/chat", nil)
		if err != nil {
			t.Fatal(err)
		}
		echoes(ws, "before")
		await(t, "HTTP/3", func() bool { return get3() == nil })
		slow := make(chan error, 1)
		wg.Go(func() {
			resp, err := h3.Get(base3 + "/v1/diagnostics/slow?delay=1s")
			if err == nil {
				defer resp.Body.Close()
				if _, err = io.Copy(io.Discard, resp.Body); err == nil && resp.StatusCode != http.StatusOK {
					err = errors.New(resp.Status)
				}
			}
			slow <- err
		})
		b.awaitStart(t, "/bank.v1.Diagnostics/Slow")
		if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		mark := "msg=replacing"
		for limit := time.Now().Add(patience); strings.Count(p.Log(), mark) <= n || seen[pid]; time.Sleep(5 * time.Millisecond) {
			if now, err := p.Get(t.Context(), "/v1/status"); err == nil {
				if _, rest, ok := strings.Cut(compact(now), `"pid":`); ok {
					digits := rest[:strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })]
					pid, _ = strconv.Atoi(digits)
				}
			}
			if time.Now().After(limit) {
				t.Fatalf("replacement %d did not come", n)
			}
		}
		seen[pid] = true
		serves()
		echoes(ws, "after")
		_ = ws.CloseNow()
		if err := <-slow; err != nil {
			t.Errorf("a call over HTTP/3 that was under way: %v", err)
		}
	}
	// The next one does not start, and this one goes on.
	write("forever")
	if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(patience); !strings.Contains(p.Log(), `msg="not replaced"`); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("a program that does not start is not noticed")
		}
	}
	serves()
	stop.Store(true)
	wg.Wait()
	await(t, "HTTP/3", func() bool { return get3() == nil })
	t.Logf("calls over 5 replacements: REST with a connection each %d, over HTTP/2 %d, gRPC %d, with TLS %d, over kept connections %d, WebSocket %d",
		calls[0].Load(), calls[1].Load(), calls[2].Load(), calls[3].Load(), calls[4].Load(), calls[5].Load())
}

// TestReplaceTooSoon asks a process to be replaced, twice, that does not serve yet itself and for which another waits. It
// does so once it serves; when it did at once, the one that waited took its end for a failure, and both went on serving.
func TestReplaceTooSoon(t *testing.T) {
	b := startBank(t, bank.Config{})
	schema := process.Listen(t) // at a port that stays free
	// reflects has a server answer on the schema's address until it is stopped.
	reflects := func(l net.Listener) *grpc.Server {
		srv := grpc.NewServer()
		bank.New(bank.Config{}).Register(srv)
		go func() { _ = srv.Serve(l) }()
		return srv
	}
	srv := reflects(schema)
	config := filepath.Join(t.TempDir(), "transom.yaml")
	process.Replace(t, config, fmt.Appendf(nil, `
listeners: [{address: "127.0.0.1:0"}]
descriptors: [{reflection: {cluster: schema}}]
clusters: {bank: {target: "static:///%s"}, schema: {target: "static:///%s"}}
policies: [{selector: "*", cluster: bank}]
reload: {no_watch: true}
drain: {timeout: 5s}
`, b.addr, schema.Addr()))
	p := &proxy{Process: process.Start(t, 1, "serve", "--config", config)}
	var pids []int
	t.Cleanup(func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	// await waits until the log has text n times.
	await := func(text string, n int) {
		t.Helper()
		for limit := time.Now().Add(2 * patience); strings.Count(p.Log(), text) < n; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("no %q", text)
			}
		}
	}
	// replacing waits for the nth replacement to begin, and returns its process.
	replacing := func(n int) int {
		t.Helper()
		await("msg=replacing", n)
		_, rest, _ := strings.Cut(p.Log()[strings.LastIndex(p.Log(), "msg=replacing"):], "pid=")
		pid, err := strconv.Atoi(rest[:strings.IndexByte(rest, '\n')])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
		return pid
	}
	for limit := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if code, _, _ := curl(t, "http://"+p.Plain+"/healthz"); code == http.StatusOK {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("it does not become ready")
		}
	}
	srv.Stop() // so that the next one is not ready
	if err := p.Cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	second := replacing(1)
	await("msg=listening", 2)
	for range 2 {
		if err := syscall.Kill(second, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		await("to be replaced once it serves", 1)
	}
	schema, err := net.Listen("tcp", schema.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer reflects(schema).Stop()
	third := replacing(2)
	await("replaced=true", 2) // both drain
	<-p.Exited
	if code, _, _ := curl(t, "http://"+p.Plain+"/v1/customers/3/accounts/1"); code != http.StatusOK {
		t.Errorf("the third one answers %d", code)
	}
	if strings.Contains(p.Log(), "not replaced") || strings.Count(p.Log(), "msg=replacing") != 2 {
		t.Error("there were not two replacements")
	}
	_ = syscall.Kill(third, syscall.SIGTERM)
}

// TestSystemd starts transom as systemd does: with bound sockets, a socket for notices and a watchdog.
func TestSystemd(t *testing.T) {
	b := startBank(t, bank.Config{})
	dir := t.TempDir()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	f, err := lis.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	notices, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notices.Close()
	// await waits for a notice, whatever comes before.
	await := func(want string) {
		t.Helper()
		_ = notices.SetReadDeadline(time.Now().Add(patience))
		for buf := make([]byte, 1000); ; {
			n, err := notices.Read(buf)
			if err != nil {
				t.Fatalf("no %s: %v", want, err)
			}
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
		}
	}
	// LISTEN_PID is the pid of the program, so a shell sets it and becomes the program.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, process.Program(t),
		"serve", "--listen", lis.Addr().String(), "--descriptors", descriptorSet(t), "--upstream", "static:///"+b.addr)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "WATCHDOG_USEC=200000")
	p := process.Run(t, 1, cmd)
	await("READY=1")
	if p.Plain != lis.Addr().String() {
		t.Errorf("listens on %s, was given %v", p.Plain, lis.Addr())
	}
	if code, _, _ := curl(t, "http://"+p.Plain+"/v1/customers/3/accounts/1"); code != 200 {
		t.Errorf("answers %d", code)
	}
	await("WATCHDOG=1")
	if err := p.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await("RELOADING=1\nMONOTONIC_USEC=")
	await("READY=1")
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await("STOPPING=1")
	<-p.Exited
	if p.Err != nil {
		t.Error(p.Err)
	}
}
