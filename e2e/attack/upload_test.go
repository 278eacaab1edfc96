package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// trickle is a request body that brings a byte every tenth of a second, and does not end before ctx does.
type trickle struct {
	ctx  context.Context //nolint:containedctx // it is a reader's
	tick *time.Ticker
}

func (t trickle) Read(p []byte) (int, error) {
	select {
	case <-t.tick.C:
		p[0] = ' '
		return 1, nil
	case <-t.ctx.Done():
		return 0, t.ctx.Err()
	}
}

// slowBody has clients send a body a byte at a time over each version of HTTP. transom must answer that it took too long.
func slowBody(clients int, method, path, contentType string) func(context.Context, *victim) (string, error) {
	return func(_ context.Context, v *victim) (string, error) {
		h1, h2, h3 := &http.Transport{}, &http.Transport{TLSClientConfig: v.tls.Clone(), ForceAttemptHTTP2: true}, &http3.Transport{TLSClientConfig: h3TLS(v.tls)}
		defer h1.CloseIdleConnections()
		defer h2.CloseIdleConnections()
		defer h3.Close()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var errs []error
		var longest atomic.Int64
		one := func(version, base string, rt http.RoundTripper) error {
			ctx, cancel := context.WithTimeout(context.Background(), slow+patience)
			defer cancel()
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			req, err := http.NewRequestWithContext(ctx, method, base+path, trickle{ctx, tick})
			if err != nil {
				return err
			}
			req.Header.Set("Content-Type", contentType)
			began := time.Now()
			resp, err := rt.RoundTrip(req)
			if err != nil {
				return fmt.Errorf("%s: %w after %v", version, err, time.Since(began))
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusGatewayTimeout || err != nil {
				return fmt.Errorf("%s: %s, %s, %w", version, resp.Status, b, err)
			}
			for took := int64(time.Since(began)); ; {
				if was := longest.Load(); took <= was || longest.CompareAndSwap(was, took) {
					return nil
				}
			}
		}
		for _, c := range []struct {
			version, base string
			rt            http.RoundTripper
		}{{"HTTP/1.1", "http://" + v.Plain, h1}, {"HTTP/2", "https://" + v.Secure, h2}, {"HTTP/3", "https://" + v.Secure, h3}} {
			for range clients {
				wg.Go(func() {
					if err := one(c.version, c.base, c.rt); err != nil {
						mu.Lock()
						defer mu.Unlock()
						errs = append(errs, err)
					}
				})
			}
		}
		wg.Wait()
		return fmt.Sprintf("%d bodies answered, the last after %v", 3*clients, time.Duration(longest.Load()).Round(time.Millisecond)), errors.Join(errs...)
	}
}

var slowBodies = []attack{
	{"slow bodies of unary calls", slowBody(20, http.MethodPost, "/v1/diagnostics/echo", "application/json")},
	{"slow files", slowBody(20, http.MethodPost, "/v1/customers/1/accounts/1/statements/2026:upload", "text/csv")},
}
