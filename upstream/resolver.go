package upstream

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/resolver"
)

// schemes are the kinds of target, for errors.
const schemes = "host:port, dns:///host:port, static:///host:port,host:port, file:///path, kubernetes:///service.namespace:port, xds:///service or unix:///path"

// parseTarget checks a Config.Target and returns it as grpc-go wants it.
func parseTarget(target string) (string, error) {
	if target == "" {
		return "", errors.New("must not be empty; give " + schemes)
	}
	if strings.HasPrefix(target, "unix:") {
		return target, nil
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok {
		if err := checkHostPort(target); err != nil {
			return "", err
		}
		return "dns:///" + target, nil
	}
	u, err := url.Parse(target)
	if err != nil {
		return "", fmt.Errorf("%q is not a URL: %w", target, err)
	}
	path := strings.TrimPrefix(u.Path, "/")
	switch scheme {
	case "dns":
		return target, checkHostPort(path)
	case "static":
		if u.Host != "" {
			return "", fmt.Errorf("%q needs three slashes: static:///%s", target, rest)
		}
		_, err := staticEndpoints(path)
		return target, err
	case "file":
		if u.Host != "" {
			return "", fmt.Errorf("%q needs three slashes: file:///%s", target, rest)
		}
		if path == "" {
			return "", fmt.Errorf("%q names no file", target)
		}
		return target, nil
	case "kubernetes":
		if u.Host != "" {
			return "", fmt.Errorf("%q needs three slashes: kubernetes:///%s", target, rest)
		}
		_, err := parseKubeTarget(path)
		return target, err
	case "xds":
		if resolver.Get("xds") == nil {
			return "", fmt.Errorf("%q: xDS is not linked into this program (import google.golang.org/grpc/xds)", target)
		}
		if path == "" {
			return "", fmt.Errorf("%q names no service", target)
		}
		return target, nil
	}
	return "", fmt.Errorf("%q has the unknown scheme %q; give %s", target, scheme, schemes)
}

// checkHostPort checks an address; an IPv6 address must be in brackets.
func checkHostPort(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q must be host:port", addr)
	}
	if host == "" {
		return fmt.Errorf("%q has no host", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has the port %q, which is not 1 … 65535", addr, port)
	}
	return nil
}

// authorityOf is the authority of calls unless Config.Authority names one; "" leaves it to grpc-go.
func authorityOf(cfg Config, target string) string {
	if cfg.Authority != "" {
		return cfg.Authority
	}
	scheme, rest, _ := strings.Cut(target, "://")
	switch scheme {
	case "dns":
		return rest[strings.IndexByte(rest, '/')+1:]
	case "static":
		first, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), ",")
		return first
	case "file":
		return cfg.Name
	case "kubernetes":
		name, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), ":")
		return name
	}
	return ""
}

// resolvers are transom's own. adaptive says that the balancer understands draining.
func resolvers(cfg Config, adaptive bool, log *slog.Logger) []resolver.Builder {
	return []resolver.Builder{
		dnsBuilder{orDefault(cfg.DNSRefresh, 10*time.Second), log},
		staticBuilder{},
		fileBuilder{log, adaptive},
		kubeBuilder{cfg.Kubernetes, log, adaptive},
		unixBuilder{},
	}
}

// unixBuilder resolves unix:path and unix:///path.
type unixBuilder struct{}

func (unixBuilder) Scheme() string { return "unix" }

// Build hands on the path with "unix:" before it, for ownBackend's dial.
func (unixBuilder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	if t.URL.Host != "" {
		return nil, fmt.Errorf("unix target: %q has a host", t.URL.String())
	}
	path := t.URL.Path
	if path == "" {
		path = t.URL.Opaque
	}
	eps := []resolver.Endpoint{{Addresses: []resolver.Address{{Addr: "unix:" + path}}}}
	// An error here means that the balancer refused the endpoint; it tells the calls.
	_ = cc.UpdateState(resolver.State{Endpoints: eps})
	return staticResolver{}, nil
}

// staticBuilder resolves static:///a,b.
type staticBuilder struct{}

func (staticBuilder) Scheme() string { return "static" }

func (staticBuilder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	eps, err := staticEndpoints(t.Endpoint())
	if err != nil {
		return nil, err
	}
	// An error here means that the balancer refused the endpoints; it tells the calls.
	_ = cc.UpdateState(resolver.State{Endpoints: eps})
	return staticResolver{}, nil
}

type staticResolver struct{}

func (staticResolver) ResolveNow(resolver.ResolveNowOptions) {}
func (staticResolver) Close()                                {}

// staticEndpoints parses "host:port,host:port". An address that is given twice is an error.
func staticEndpoints(list string) ([]resolver.Endpoint, error) {
	var eps []resolver.Endpoint
	addrs := strings.Split(list, ",")
	for i, addr := range addrs {
		if err := checkHostPort(addr); err != nil {
			return nil, err
		}
		if slices.Contains(addrs[:i], addr) {
			return nil, fmt.Errorf("%q is listed twice", addr)
		}
		eps = append(eps, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}})
	}
	return eps, nil
}
