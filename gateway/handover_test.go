package gateway_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"

	"transom/e2e/process"
	"transom/gateway"
	bankv1 "transom/proto/bank/v1"
	configv1 "transom/proto/transom/config/v1"
)

// TestReplacementWaits has a gateway take over the sockets of another before the server that it asks for descriptors is there: until it is,
// or the other is gone, the other alone takes connections. The new one answered part of them, that it is not ready.
func TestReplacementWaits(t *testing.T) {
	for _, gone := range []bool{false, true} {
		name := map[bool]string{false: "until it is ready", true: "until the other is gone"}[gone]
		t.Run(name, func(t *testing.T) {
			schema := process.Listen(t) // at a port that stays free
			_ = schema.Close()
			var wg sync.WaitGroup
			defer wg.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			run := func(ctx context.Context, g *gateway.Gateway) (over chan struct{}) {
				over = make(chan struct{})
				wg.Go(func() {
					defer close(over)
					if err := g.Run(ctx); err != nil {
						t.Error(err)
					}
				})
				return over
			}
			cfg := &configv1.Config{
				Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0"}},
				Admin:       &configv1.Admin{Address: "127.0.0.1:0"},
				Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}},
				Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///" + schema.Addr().String()}},
			}
			before, err := gateway.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			old, end := context.WithCancel(ctx)
			defer end()
			overBefore := run(old, before)
			<-before.Up()
			names, files, err := before.Files()
			if err != nil {
				t.Fatal(err)
			}
			turn := make(chan struct{})
			sockets := &gateway.Sockets{Turn: turn}
			for i, f := range files {
				if err := sockets.Add(names[i], f); err != nil {
					t.Fatal(err)
				}
			}
			cfg.Descriptors = []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_Reflection_{Reflection: &configv1.DescriptorSource_Reflection{Cluster: "bank"}}}}
			next, err := gateway.NewOn(t.Context(), sockets, cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			overNext := run(ctx, next)
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			get := func(addr net.Addr, path string) int {
				resp, err := client.Get("http://" + addr.String() + path)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				_, _ = io.Copy(io.Discard, resp.Body)
				return resp.StatusCode
			}
			for range 100 {
				for path, addr := range map[string]net.Addr{"/healthz": next.Addrs()[0], "/readyz": next.AdminAddr()} {
					if code := get(addr, path); code != http.StatusOK {
						t.Fatalf("%s: status %d of the one that is not ready", path, code)
					}
				}
			}
			want := http.StatusOK
			if gone {
				end()
				<-overBefore
				close(turn)
				want = http.StatusServiceUnavailable
			} else {
				schema, err := new(net.ListenConfig).Listen(t.Context(), "tcp", schema.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				srv := grpc.NewServer()
				bankv1.RegisterAccountsServer(srv, accounts{})
				reflection.Register(srv)
				wg.Go(func() { _ = srv.Serve(schema) })
				defer srv.Stop()
				<-next.Up()
				before.Replaced()
				<-overBefore
				close(turn)
			}
			if code := get(next.Addrs()[0], "/healthz"); code != want {
				t.Errorf("status %d, want %d", code, want)
			}
			cancel()
			<-overNext
		})
	}
}
