package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

// TestDrain sends SIGTERM under open calls: those that end in time are answered, the others are told, WebSockets are closed
// with 1001, new connections are refused, and the exit code is 0.
func TestDrain(t *testing.T) {
	b := startBank(t, bank.Config{})
	a := process.NewAuthority(t)
	cert, set, dir := certificate(t, a), descriptorSet(t), t.TempDir()
	config := filepath.Join(dir, "transom.yaml")
	err := os.WriteFile(config, fmt.Appendf(nil, `
listeners:
  - {address: "127.0.0.1:0"}
  - {address: "127.0.0.1:0", tls: {certificate: %s, key: %s}, http3: true}
descriptors: [{file: %s}]
clusters: {bank: {target: "static:///%s"}}
drain: {timeout: 3s}
`, cert, cert, set, b.addr), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{process.Start(t, 2, "serve", "--config", config), a.File, a.Pool}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	ws, _, err := websocket.Dial(ctx, "ws://"+p.Plain+"/v1/support/chat", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if err := ws.Write(ctx, websocket.MessageText, []byte(`{"author":"Ada","text":"hello"}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ws.Read(ctx); err != nil {
		t.Fatal(err)
	}
	chat, err := bankv1.NewSupportClient(dial(t, p, true)).Chat(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = chat.Send(&bankv1.ChatMessage{Text: "x"})
	if _, err := chat.Recv(); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		code int
		err  error
	}
	slow := map[string]chan answer{}
	for version := range versions {
		b.forget()
		c, base := client(t, p, version)
		got := make(chan answer, 1)
		slow[version] = got
		go func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", base+"/v1/diagnostics/slow?delay=1s", nil)
			resp, err := c.Do(req)
			if err != nil {
				got <- answer{err: err}
				return
			}
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			got <- answer{resp.StatusCode, err}
		}()
		b.awaitStart(t, "/bank.v1.Diagnostics/Slow")
	}
	begin := time.Now()
	if err := p.Stop(t); err != nil {
		t.Errorf("exit: %v", err)
	}
	if took := time.Since(begin); took > 20*time.Second { // the default is 30
		t.Errorf("the drain took %v with a limit of 3s", took)
	}
	for version, got := range slow {
		if a := <-got; a.err != nil || a.code != http.StatusOK {
			t.Errorf("%s: a call that ends within the drain: %d, %v", version, a.code, a.err)
		}
	}
	if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the WebSocket ends with %v, want close 1001", err)
	}
	for err == nil {
		_, err = chat.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the open stream ends with %v, want Unavailable", err)
	}
	if _, err := http.Get("http://" + p.Plain + "/healthz"); err == nil {
		t.Error("a connection is accepted after the end")
	}
}
