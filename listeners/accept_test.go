package listeners_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"transom/listeners"
)

// poorListener is a socket for whose first connections the process has no files left.
type poorListener struct {
	net.Listener
	fail int
}

func (l *poorListener) Accept() (net.Conn, error) {
	if l.fail > 0 {
		l.fail--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// TestAcceptFails has the system give no connections for a while: that is logged once, and then they are served.
func TestAcceptFails(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	front := listeners.NewFront(listeners.FrontConfig{HealthPath: "/healthz"}, nil, log)
	srv, err := listeners.Listen(t.Context(), listeners.Config{Name: "edge", Sockets: &listeners.Sockets{TCP: &poorListener{tcp, 3}}}, front, log)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Run(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + srv.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := srv.Drain(ctx); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "listener=edge") || !strings.Contains(got, "too many open files") {
		t.Errorf("logged:\n%s", got)
	}
}
