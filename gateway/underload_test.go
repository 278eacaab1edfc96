package gateway_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	bankv1 "transom/proto/bank/v1"
)

// TestReloadUnderLoad reloads fifty times under calls of REST and gRPC and an open WebSocket: the first listener is never
// touched, the second has its socket handed on at each reload, and clusters, descriptors and formats change in turn. No call
// may fail. (On the second listener REST clients connect for each call: an idle HTTP/1.1 connection may be closed under a
// client that is about to use it.)
func TestReloadUnderLoad(t *testing.T) {
	const reloads = 50
	backend, set := startBank(t), descriptorSet(t)
	path := filepath.Join(t.TempDir(), "transom.yaml")
	config := func(n int) string {
		return fmt.Sprintf(`listeners:
  - {address: "127.0.0.1:0"}
  - {address: "127.0.0.2:0", limits: {streams: %d}}
descriptors: [{file: %s}]
clusters: {bank: {target: "static:///%s", connect_timeout: %ds}}
json: {emit_defaults: %v}
reload: {no_watch: true}
`, 100+n, set, backend, 1+n%3, n%2 == 0)
	}
	replace(t, path, config(0))
	g, _ := serveFile(t, path)
	addrs := g.Addrs()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()

	var calls [5]atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	work := func(i int, call func() error) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := call(); err != nil {
					t.Errorf("client %d, call %d: %v", i, calls[i].Load(), err)
					return
				}
				calls[i].Add(1)
			}
		})
	}
	rest := func(base string, c *http.Client) func() error {
		return func() error {
			req, _ := http.NewRequestWithContext(ctx, "GET", base+"/v1/customers/7/accounts/1", nil)
			resp, err := c.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
				return fmt.Errorf("status %d, %w", resp.StatusCode, err)
			}
			return nil
		}
	}
	unary := func(addr string) func() error {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c := bankv1.NewAccountsClient(conn)
		return func() error {
			_, err := c.Get(ctx, &bankv1.GetAccountRequest{Name: "customers/7/accounts/1"})
			return err
		}
	}
	kept, fresh := &http.Client{Transport: &http.Transport{}}, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	defer kept.CloseIdleConnections()
	work(0, rest("http://"+addrs[0].String(), kept))
	work(1, unary(addrs[0].String()))
	work(2, rest("http://"+addrs[1].String(), fresh))
	work(3, unary(addrs[1].String()))
	ws, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://%s/v1/support/chat", addrs[0]), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	work(4, func() error {
		if err := ws.Write(ctx, websocket.MessageText, []byte(`{"text":"hello"}`)); err != nil {
			return err
		}
		_, _, err := ws.Read(ctx)
		return err
	})
	for n := range reloads {
		replace(t, path, config(n+1))
		if err := g.Refresh(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range calls { // each client has called with what this reload put in force
			for was := calls[i].Load(); calls[i].Load() < was+2 && !t.Failed(); {
				time.Sleep(time.Millisecond) // as long as it takes; the calls are the event
			}
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("calls over %d reloads: REST %d and %d, gRPC %d and %d, WebSocket messages %d", reloads,
		calls[0].Load(), calls[2].Load(), calls[1].Load(), calls[3].Load(), calls[4].Load())
}
