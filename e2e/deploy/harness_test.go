package deploy

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"transom/cmd/transom/demo"
	"transom/cmd/transom/demo/bank"
	"transom/gateway"
	bankv1 "transom/proto/bank/v1"
	configv1 "transom/proto/transom/config/v1"
)

// running is a gateway with a bank behind it.
type running struct {
	plain   string // host:port
	metrics string // URL
}

// startGateway runs a gateway until the test ends, and makes calls of each kind, so that every metric there is has a value.
func startGateway(t *testing.T) running {
	t.Helper()
	dir := t.TempDir()
	set := filepath.Join(dir, "bank.binpb")
	if err := os.WriteFile(set, bank.DescriptorSet(), 0o600); err != nil {
		t.Fatal(err)
	}
	certificate, key, err := demo.SelfSigned(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := bank.New(bank.Config{})
	srv := grpc.NewServer(b.ServerOptions()...)
	b.Register(srv)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })
	g, err := gateway.New(t.Context(), &configv1.Config{
		Listeners: []*configv1.Listener{
			{Address: "127.0.0.1:0"},
			{Address: "127.0.0.1:0", Tls: &configv1.TLS{Certificate: certificate, Key: key}, Http3: true},
		},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: set}}},
		Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///" + lis.Addr().String()}},
		Policies: []*configv1.Policy{{
			Selector: []string{"bank.v1.Accounts.Get"}, Limits: []*configv1.Limit{{Kind: &configv1.Limit_Rate{Rate: "4/h"}, Everybody: true}},
		}},
		Admin: &configv1.Admin{Address: "127.0.0.1:0"},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		srv.Stop()
		wg.Wait()
	})
	r := running{plain: g.Addrs()[0].String(), metrics: "http://" + g.AdminAddr().String() + "/metrics"}
	r.traffic(t)
	return r
}

// traffic makes calls that succeed and fail, over REST, gRPC and WebSocket.
func (r running) traffic(t *testing.T) {
	t.Helper()
	for path, want := range map[string]int{
		"/v1/accounts/7": http.StatusOK, "/v1/accounts/none": http.StatusBadRequest, "/nowhere": http.StatusNotFound,
		"/v1/diagnostics/fail?code=14": http.StatusServiceUnavailable,
	} {
		resp, err := http.Get("http://" + r.plain + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Fatalf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	conn, err := grpc.NewClient(r.plain, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := bankv1.NewAccountsClient(conn).Get(t.Context(), &bankv1.GetAccountRequest{Name: "7"}); err != nil {
		t.Fatal(err)
	}
	ws, _, err := websocket.Dial(t.Context(), "ws://"+r.plain+"/bank.v1.Accounts/Get", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if err := ws.Write(t.Context(), websocket.MessageText, []byte(`{"name":"7"}`)); err != nil {
		t.Fatal(err)
	}
	_, answer, err := ws.Read(t.Context())
	if err != nil || !bytes.Contains(answer, []byte("customers/3/accounts/1")) {
		t.Fatalf("%s, %v", answer, err)
	}
	if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Fatalf("the WebSocket ends with %v", err)
	}
	resp, err := http.Get("http://" + r.plain + "/v1/accounts/7")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests {
		t.Fatalf("beyond the limit: %d", resp.StatusCode)
	}
}
