package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/resolver"

	"transom/upstream/loadaware"
)

// Kubernetes says how the API server is reached.
type Kubernetes struct {
	// Server is its URL, "https://10.0.0.1:443".
	Server string
	// TokenFile holds the bearer token, read again for each request, since it is rotated. Empty: none is sent.
	TokenFile string
	// CAFile holds the PEM certificates that the server's must lead to. Empty: the system's.
	CAFile string
}

// inCluster is how a pod reaches the API server (kubernetes.io, "Accessing the Kubernetes API from a Pod").
func inCluster() (Kubernetes, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Kubernetes{}, errors.New("this is not a pod of a Kubernetes cluster: say how its API server is reached")
	}
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	return Kubernetes{Server: "https://" + net.JoinHostPort(host, port), TokenFile: account + "token", CAFile: account + "ca.crt"}, nil
}

// client makes an HTTP client for the API server.
func (k Kubernetes) client() (*http.Client, error) {
	if u, err := url.Parse(k.Server); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("kubernetes: server %q is not a URL such as https://10.0.0.1:443", k.Server)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if k.CAFile != "" {
		pem, err := os.ReadFile(k.CAFile)
		if err != nil {
			return nil, fmt.Errorf("kubernetes: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("kubernetes: %s holds no PEM certificate", k.CAFile)
		}
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: cfg, ForceAttemptHTTP2: true, ResponseHeaderTimeout: 30 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		// A watch may be silent for minutes, and that of a server that is gone is too.
		HTTP2: &http.HTTP2Config{SendPingTimeout: kubePingAfter, PingTimeout: kubePingTimeout},
	}}, nil
}

// kubeService is the target kubernetes:///service.namespace:port.
type kubeService struct{ service, namespace, port string }

// parseKubeTarget reads "service.namespace:port".
func parseKubeTarget(s string) (kubeService, error) {
	name, port, ok := strings.Cut(s, ":")
	service, namespace, dot := strings.Cut(name, ".")
	if !ok || !dot || service == "" || namespace == "" || port == "" || strings.ContainsAny(s, "/ ?#%&") || strings.Contains(namespace, ".") {
		return kubeService{}, fmt.Errorf("%q must be service.namespace:port, the port by name or number", s)
	}
	return kubeService{service, namespace, port}, nil
}

// kubeBuilder resolves kubernetes:///service.namespace:port by watching the service's EndpointSlices
// (discovery.k8s.io/v1). Endpoints that terminate but still serve are drained; those that are not ready are left out. The
// port is one of the pods', by name or number; of a service that has one port only it is that, whatever the number.
// A service of both IP families has slices of each: a pod that is in both is one endpoint, by its address of the family that
// the API server's own address is of, which is the cluster's first; IPv4 if that is a name.
type kubeBuilder struct {
	api    *Kubernetes // nil is inCluster
	log    *slog.Logger
	drains bool // as of fileBuilder
}

func (kubeBuilder) Scheme() string { return "kubernetes" }

func (b kubeBuilder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	service, err := parseKubeTarget(t.Endpoint())
	if err != nil {
		return nil, err
	}
	var api Kubernetes
	if b.api != nil {
		api = *b.api
	} else if api, err = inCluster(); err != nil {
		return nil, err
	}
	client, err := api.client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &kubeResolver{
		kubeService: service, api: api, client: client, cc: cc, drains: b.drains, cancel: cancel,
		log: b.log.With("service", service.service, "namespace", service.namespace),
	}
	r.wg.Go(func() { r.run(ctx) })
	return r, nil
}

// kubeResolver follows the EndpointSlices of one service.
type kubeResolver struct {
	kubeService
	api    Kubernetes
	client *http.Client
	cc     resolver.ClientConn
	drains bool
	log    *slog.Logger
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// What follows is run's.
	slices  map[string]*endpointSlice // by name
	version string                    // of what is in slices; "" if they are not from the server
	told    bool                      // the channel has had a state
}

func (r *kubeResolver) ResolveNow(resolver.ResolveNowOptions) {}

func (r *kubeResolver) Close() {
	r.cancel()
	r.wg.Wait()
	r.client.CloseIdleConnections()
}

// The parts of the API's objects that matter (k8s.io/api/discovery/v1, apimachinery meta/v1).
type (
	listMeta struct {
		ResourceVersion string `json:"resourceVersion"`
		Continue        string `json:"continue"`
	}
	endpointSlice struct {
		Metadata struct {
			Name            string `json:"name"`
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		AddressType string `json:"addressType"`
		Endpoints   []struct {
			Addresses  []string `json:"addresses"`
			Zone       string   `json:"zone"`
			Conditions struct {
				Ready       *bool `json:"ready"`
				Serving     *bool `json:"serving"`
				Terminating *bool `json:"terminating"`
			} `json:"conditions"`
			// TargetRef is the pod.
			TargetRef objectRef `json:"targetRef"`
		} `json:"endpoints"`
		Ports []struct {
			Name     string `json:"name"`
			Port     int    `json:"port"`
			Protocol string `json:"protocol"`
		} `json:"ports"`
	}
	objectRef struct {
		Kind      string `json:"kind"`
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
		UID       string `json:"uid"`
	}
	sliceList struct {
		Metadata listMeta         `json:"metadata"`
		Items    []*endpointSlice `json:"items"`
	}
	watchEvent struct {
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	// apiStatus is a meta/v1 Status, the body of refusals and of ERROR events.
	apiStatus struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
)

// errGone says that the server no longer knows our resourceVersion: everything must be listed anew.
var errGone = errors.New("resource version is gone (410)")

// Pace and bounds of the watch.
const (
	kubeRetryMin     = 500 * time.Millisecond
	kubeRetryMax     = 30 * time.Second
	kubeWatchSeconds = 240              // after which the server ends a watch, and a new one begins
	kubePingAfter    = 30 * time.Second // of silence
	kubePingTimeout  = 15 * time.Second
	kubePage         = 500
	kubeMaxBody      = 256 << 20
)

// run lists and watches until ctx ends. While the server cannot be reached the endpoints before stay.
func (r *kubeResolver) run(ctx context.Context) {
	wait := kubeRetryMin
	for {
		began := time.Now()
		err := r.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, errGone):
			r.version = ""
		case err != nil:
			r.log.Error("endpoints cannot be watched", "error", err, "endpoints_kept", r.told)
			if !r.told {
				r.cc.ReportError(fmt.Errorf("kubernetes: %w", err))
			}
		}
		if d := time.Since(began); err == nil && d > kubeRetryMin {
			continue // the server has ended the watch in its time
		} else if d > kubeRetryMax {
			wait = kubeRetryMin
		}
		if !pause(ctx, time.Duration(float64(wait)*(0.5+rand.Float64()/2))) {
			return
		}
		wait = min(wait*2, kubeRetryMax)
	}
}

// follow lists the slices, unless their state is known, and watches them until the watch ends, with nil at its time.
func (r *kubeResolver) follow(ctx context.Context) error {
	if r.version == "" {
		if err := r.list(ctx); err != nil {
			return err
		}
	}
	return r.watch(ctx)
}

// list reads all slices.
func (r *kubeResolver) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	found := map[string]*endpointSlice{}
	q := url.Values{"limit": {strconv.Itoa(kubePage)}}
	for {
		var l sliceList
		err := r.get(ctx, q, func(body io.Reader) error { return json.NewDecoder(body).Decode(&l) })
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		for _, s := range l.Items {
			if s != nil {
				found[s.Metadata.Name] = s
			}
		}
		if l.Metadata.Continue == "" {
			r.slices, r.version = found, l.Metadata.ResourceVersion
			r.tell()
			return nil
		}
		q.Set("continue", l.Metadata.Continue)
	}
}

// watch applies changes as they come.
func (r *kubeResolver) watch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, (kubeWatchSeconds+30)*time.Second)
	defer cancel()
	q := url.Values{
		"watch": {"1"}, "allowWatchBookmarks": {"true"}, "resourceVersion": {r.version},
		"timeoutSeconds": {strconv.Itoa(kubeWatchSeconds)},
	}
	err := r.get(ctx, q, func(body io.Reader) error {
		dec := json.NewDecoder(body)
		for {
			var e watchEvent
			if err := dec.Decode(&e); err != nil {
				return err
			}
			if err := r.apply(e); err != nil {
				return err
			}
		}
	})
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fmt.Errorf("watch: %w", err)
}

// apply takes one event in.
func (r *kubeResolver) apply(e watchEvent) error {
	if e.Type == "ERROR" {
		var st apiStatus
		if err := json.Unmarshal(e.Object, &st); err != nil {
			return err
		}
		return st.err()
	}
	var s endpointSlice
	if err := json.Unmarshal(e.Object, &s); err != nil {
		return err
	}
	if v := s.Metadata.ResourceVersion; v != "" {
		r.version = v
	}
	switch e.Type {
	case "ADDED", "MODIFIED":
		r.slices[s.Metadata.Name] = &s
	case "DELETED":
		delete(r.slices, s.Metadata.Name)
	default: // BOOKMARK, which only brings a version
		return nil
	}
	r.tell()
	return nil
}

func (s apiStatus) err() error {
	if s.Code == http.StatusGone {
		return errGone
	}
	return fmt.Errorf("the API server says %d: %s", s.Code, s.Message)
}

// get reads the collection of the service's slices with query q.
func (r *kubeResolver) get(ctx context.Context, q url.Values, read func(io.Reader) error) error {
	q.Set("labelSelector", "kubernetes.io/service-name="+r.service)
	u := strings.TrimSuffix(r.api.Server, "/") + "/apis/discovery.k8s.io/v1/namespaces/" + url.PathEscape(r.namespace) + "/endpointslices?" + q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if r.api.TokenFile != "" {
		token, err := os.ReadFile(r.api.TokenFile)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	body := io.LimitReader(resp.Body, kubeMaxBody)
	if resp.StatusCode == http.StatusOK {
		err = read(body)
	} else {
		st := apiStatus{Message: http.StatusText(resp.StatusCode)}
		_ = json.NewDecoder(body).Decode(&st) // which may be no Status
		st.Code = resp.StatusCode
		err = st.err()
	}
	return cmp.Or(err, resp.Body.Close())
}

// tell hands the endpoints of all slices to the channel.
func (r *kubeResolver) tell() {
	eps := map[string]loadaware.EndpointAttrs{}
	first := r.api.family()
	pods := map[objectRef]string{} // the family that each pod has an address of
	all := slices.Collect(maps.Values(r.slices))
	slices.SortFunc(all, func(a, b *endpointSlice) int {
		switch {
		case a.AddressType == b.AddressType:
			return 0
		case a.AddressType == first:
			return -1
		case b.AddressType == first:
			return 1
		}
		return strings.Compare(a.AddressType, b.AddressType)
	})
	for _, s := range all {
		port, ok := s.port(r.port)
		if !ok || s.AddressType == "FQDN" {
			continue
		}
		for _, e := range s.Endpoints {
			if e.TargetRef != (objectRef{}) {
				if known, ok := pods[e.TargetRef]; ok && known != s.AddressType {
					continue
				}
				pods[e.TargetRef] = s.AddressType
			}
			c := e.Conditions
			ready := c.Ready == nil || *c.Ready
			drain := c.Terminating != nil && *c.Terminating
			serving := c.Serving != nil && *c.Serving || c.Serving == nil && ready
			if len(e.Addresses) == 0 || drain && (!serving || !r.drains) || !drain && !ready {
				continue
			}
			addr := net.JoinHostPort(e.Addresses[0], strconv.Itoa(port)) // the others are the same pod's
			if old, ok := eps[addr]; !ok || old.Drain {                  // one may be in two slices for a while
				eps[addr] = loadaware.EndpointAttrs{Zone: e.Zone, Drain: drain}
			}
		}
	}
	var state resolver.State
	for _, addr := range slices.Sorted(maps.Keys(eps)) {
		ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}}
		state.Endpoints = append(state.Endpoints, loadaware.SetEndpoint(ep, eps[addr]))
	}
	r.told = true
	// An error here means that the balancer refused the endpoints; it tells the calls.
	_ = r.cc.UpdateState(state)
	r.log.Debug("endpoints changed", "endpoints", len(state.Endpoints))
}

// family is the address type of the API server's own address.
func (k Kubernetes) family() string {
	u, err := url.Parse(k.Server)
	if err != nil {
		return "IPv4"
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.Unmap().Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// port finds the slice's port by name or number.
func (s *endpointSlice) port(want string) (int, bool) {
	for _, p := range s.Ports {
		if p.Protocol != "" && p.Protocol != "TCP" {
			continue
		}
		if p.Name == want || strconv.Itoa(p.Port) == want || len(s.Ports) == 1 {
			return p.Port, p.Port > 0
		}
	}
	return 0, false
}
