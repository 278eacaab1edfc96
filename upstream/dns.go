package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/resolver"
)

// Pace of name resolution.
const (
	dnsTimeout = 5 * time.Second
	dnsPause   = time.Second // between lookups, however often they are asked for
)

// dnsBuilder resolves dns://[server]/host:port: every address of host is an endpoint. Names are looked up again and
// again, since grpc-go's own resolver asks only when a connection fails, and so never sees an endpoint that was added.
type dnsBuilder struct {
	refresh time.Duration
	log     *slog.Logger
}

func (dnsBuilder) Scheme() string { return "dns" }

func (b dnsBuilder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	host, port, err := net.SplitHostPort(t.Endpoint())
	if err != nil {
		return nil, fmt.Errorf("dns target: %w", err)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		_ = cc.UpdateState(resolver.State{Endpoints: addressEndpoints([]netip.Addr{addr}, port)})
		return staticResolver{}, nil
	}
	r := &dnsResolver{
		host: host, port: port, cc: cc, refresh: b.refresh,
		log: b.log.With("host", host), now: make(chan struct{}, 1), lookup: &net.Resolver{},
	}
	if server := t.URL.Host; server != "" {
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(server, "53")
		}
		r.lookup.PreferGo = true
		r.lookup.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.wg.Go(func() { r.run(ctx) })
	return r, nil
}

// dnsResolver follows the addresses of one host.
type dnsResolver struct {
	host, port string
	cc         resolver.ClientConn
	refresh    time.Duration
	log        *slog.Logger
	lookup     *net.Resolver
	now        chan struct{} // asks for a lookup
	cancel     context.CancelFunc
	wg         sync.WaitGroup
}

// ResolveNow asks for a lookup soon: a connection has failed.
func (r *dnsResolver) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.now <- struct{}{}:
	default:
	}
}

func (r *dnsResolver) Close() {
	r.cancel()
	r.wg.Wait()
}

// run looks the host up until ctx ends. While that fails the addresses before stay.
func (r *dnsResolver) run(ctx context.Context) {
	var known []netip.Addr
	failed := false
	for {
		addrs, err := r.addresses(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failed {
				r.log.Error("name cannot be resolved", "error", err, "addresses_kept", len(known))
			}
			failed = true
			if known == nil {
				r.cc.ReportError(err)
			}
		case failed || !slices.Equal(addrs, known):
			known, failed = addrs, false
			// An error here means that the balancer refused the endpoints; it tells the calls.
			_ = r.cc.UpdateState(resolver.State{Endpoints: addressEndpoints(addrs, r.port)})
			r.log.Info("name resolved", "addresses", len(addrs))
		}
		if !pause(ctx, dnsPause) {
			return
		}
		next := time.NewTimer(max(r.refresh-dnsPause, 0))
		if failed {
			next.Reset(0)
		}
		select {
		case <-next.C:
		case <-r.now:
		case <-ctx.Done():
		}
		next.Stop()
	}
}

// addresses looks the host up: its addresses in order, at least one.
func (r *dnsResolver) addresses(ctx context.Context) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	addrs, err := r.lookup.LookupNetIP(ctx, "ip", r.host)
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s has no addresses", r.host)
	}
	return addrs, nil
}

func addressEndpoints(addrs []netip.Addr, port string) []resolver.Endpoint {
	eps := make([]resolver.Endpoint, len(addrs))
	for i, a := range addrs {
		eps[i].Addresses = []resolver.Address{{Addr: net.JoinHostPort(a.String(), port)}}
	}
	return eps
}
