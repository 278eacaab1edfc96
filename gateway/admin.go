package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"transom/descriptors"
	"transom/gateway/acme"
	"transom/listeners"
	"transom/policy/limit"
	adminv1 "transom/proto/transom/admin/v1"
	configv1 "transom/proto/transom/config/v1"
	"transom/rpc"
	"transom/transcoder"
	"transom/upstream/loadaware"
)

// view is what is in force, as the admin listener reads it without waiting for a reload. It is immutable.
type view struct {
	cfg     *configv1.Config
	servers []*serving
	missing []string
	issuers []*acme.Issuer
	// configHash and schemaHash are hashOf the configuration without secrets, and of the schema's files by name.
	configHash, schemaHash string
}

// hashOf tells messages apart: 12 hexadecimal digits of a SHA-256.
func hashOf(m proto.Message) string {
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m) // what is in force is valid
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}

// admin is the operator's listener.
type admin struct {
	address string
	lis     net.Listener
	srv     *http.Server
	handler atomic.Pointer[http.Handler]
	log     *slog.Logger
	started bool
}

// adminChange is a listener with the handler that it is to have; next is nil for none.
type adminChange struct {
	next, was *admin
	handler   http.Handler
}

// opened reports whether next was bound for this change.
func (c adminChange) opened() bool { return c.next != nil && c.next != c.was }

// openAdmin binds the admin listener that cfg asks for, unless it is bound already. cfg may be nil.
func (g *Gateway) openAdmin(ctx context.Context, cfg *configv1.Admin) (adminChange, error) {
	c := adminChange{was: g.admin}
	if cfg == nil {
		return c, nil
	}
	h, err := g.adminHandler(cfg)
	if err != nil {
		return c, err
	}
	c.handler = h
	if g.admin != nil && g.admin.address == cfg.GetAddress() {
		c.next = g.admin
		return c, nil
	}
	var lis net.Listener
	if b := g.sockets.take(false, adminKey, adminKey, cfg.GetAddress()); b != nil {
		lis, err = b.lis, allowedAdmin(cfg)
	} else {
		lis, err = listenAdmin(ctx, cfg)
	}
	if err != nil {
		return c, &Fault{Path: "admin.address", Msg: err.Error()}
	}
	a := &admin{address: cfg.GetAddress(), lis: lis, log: g.log}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	a.srv = &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*a.handler.Load()).ServeHTTP(w, r) }),
		Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 3 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	c.next = a
	return c, nil
}

// useAdmin puts a change in force.
func (g *Gateway) useAdmin(c adminChange) {
	if c.was != nil && c.was != c.next {
		c.was.close()
	}
	if g.admin = c.next; c.next == nil {
		return
	}
	c.next.handler.Store(&c.handler)
	if c.opened() {
		g.log.LogAttrs(context.Background(), slog.LevelInfo, "admin listening", slog.String("address", c.next.lis.Addr().String()))
	}
}

// AdminAddr is the address of the admin listener, nil if there is none.
func (g *Gateway) AdminAddr() net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.admin == nil {
		return nil
	}
	return g.admin.lis.Addr()
}

func (a *admin) serve() {
	if err := a.srv.Serve(a.lis); !errors.Is(err, http.ErrServerClosed) {
		a.log.LogAttrs(context.Background(), slog.LevelError, "admin listener", slog.String("error", err.Error()))
	}
}

// adminGrace is how long answers under way may take when the admin listener ends.
const adminGrace = time.Second

func (a *admin) close() {
	ctx, cancel := context.WithTimeout(context.Background(), adminGrace)
	defer cancel()
	_ = a.srv.Shutdown(ctx)
	_ = a.srv.Close()
	_ = a.lis.Close()
}

// listenAdmin binds the socket.
func listenAdmin(ctx context.Context, cfg *configv1.Admin) (net.Listener, error) {
	var lc net.ListenConfig
	if err := allowedAdmin(cfg); err != nil {
		return nil, err
	}
	if path, ok := isUnix(cfg.GetAddress()); ok {
		if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
			if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); err == nil {
				_ = c.Close()
				return nil, fmt.Errorf("another process serves %s", path)
			}
			_ = os.Remove(path) // left behind
		}
		lis, err := lc.Listen(ctx, "unix", path)
		if err == nil {
			err = os.Chmod(path, 0o660) //nolint:gosec // the group may use it, as is said
		}
		return lis, err
	}
	return lc.Listen(ctx, "tcp", cfg.GetAddress())
}

// allowedAdmin checks the address: one that is not loopback needs a token.
func allowedAdmin(cfg *configv1.Admin) error {
	if _, ok := isUnix(cfg.GetAddress()); ok {
		return nil
	}
	host, _, err := net.SplitHostPort(cfg.GetAddress())
	if err != nil {
		return fmt.Errorf("want host:port or unix:/path: %w", err)
	}
	if !isLoopback(host) && cfg.GetTokenFile() == "" {
		return fmt.Errorf("%q is not a loopback address; set token_file, or use 127.0.0.1 or unix:/path", host)
	}
	return nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// adminToken reads the token that requests must show, "" if they need none.
func adminToken(cfg *configv1.Admin) (string, error) {
	path := cfg.GetTokenFile()
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return token, nil
}

// adminHandler is everything that the admin listener serves.
func (g *Gateway) adminHandler(cfg *configv1.Admin) (http.Handler, error) {
	front, err := g.adminFront()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", front)
	mux.HandleFunc("GET /{$}", adminIndex(cfg))
	mux.Handle("GET /metrics", g.metrics.Handler())
	if cfg.GetPprof() {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	var guarded http.Handler = mux
	token, err := adminToken(cfg)
	if err != nil {
		return nil, &Fault{Path: "admin.token_file", Msg: err.Error()}
	}
	if token != "" {
		guarded = needToken(token, guarded)
	}
	guarded = sameSite(cfg, guarded)
	probes := http.NewServeMux()
	probes.Handle("/", guarded)
	probes.HandleFunc("GET /livez", probe(func() bool { return true }))
	probes.HandleFunc("GET /readyz", probe(g.Ready))
	probes.HandleFunc("GET /startupz", probe(g.started.Load))
	return probes, nil
}

// adminIndex lists what the admin listener serves, as text.
func adminIndex(cfg *configv1.Admin) http.HandlerFunc {
	var b strings.Builder
	line := func(verb, path, what string) { fmt.Fprintf(&b, "%-5s %-18s %s\n", verb, path, what) }
	fmt.Fprintf(&b, "transom %s: for operators\n\n", Version())
	line("GET", "/livez", "200 while the process answers")
	line("GET", "/readyz", "200 while clients should come")
	line("GET", "/startupz", "200 once it has been ready")
	line("GET", "/metrics", "for Prometheus")
	if cfg.GetPprof() {
		line("GET", "/debug/pprof/", "profiles")
	}
	service := adminv1.File_transom_admin_v1_admin_proto.Services().ByName("Admin")
	fmt.Fprintf(&b, "\n%s, by gRPC and as JSON:\n\n", service.FullName())
	for i := range service.Methods().Len() {
		m := service.Methods().Get(i)
		rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
		if path := rule.GetGet(); path != "" {
			line("GET", path, string(m.Name()))
		} else {
			line("POST", rule.GetPost(), string(m.Name()))
		}
	}
	text := b.String()
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, text)
	}
}

func probe(ok func() bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if !ok() {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	}
}

// needToken lets in who shows the token. It compares hashes, whose length says nothing.
func needToken(token string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte("Bearer " + token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "show the token of admin.token_file: Authorization: Bearer TOKEN", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// sameSite keeps web pages out: one that has a name of its own resolve to this address is told by the Host header (DNS
// rebinding; an address in it is no such name), one that calls across origins by what browsers say of a request's origin (CSRF).
func sameSite(cfg *configv1.Admin, next http.Handler) http.Handler {
	hosts := append([]string{"localhost"}, cfg.GetHosts()...)
	if host, _, err := net.SplitHostPort(cfg.GetAddress()); err == nil {
		hosts = append(hosts, host)
	}
	csrf := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		if _, err := netip.ParseAddr(host); err != nil && !slices.Contains(hosts, host) {
			http.Error(w, fmt.Sprintf("host %q is none of the admin listener's; add it to admin.hosts if it should be", host), http.StatusMisdirectedRequest)
			return
		}
		if site := r.Header.Get("Sec-Fetch-Site"); csrf.Check(r) != nil || site == "cross-site" || site == "same-site" {
			http.Error(w, "web pages of other origins may not call the admin listener", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// adminFront serves transom.admin.v1.Admin in every protocol, from a Snapshot of its own.
func (g *Gateway) adminFront() (*listeners.Front, error) {
	set := builtinSet()
	set.Origin = "transom's admin API"
	addFiles(set, adminv1.File_transom_admin_v1_admin_proto, map[string]bool{})
	schema, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		return nil, err
	}
	plans, err := transcoder.NewPlans(schema, transcoder.Options{})
	if err != nil {
		return nil, err
	}
	handlers := builtinHandlers(schema, health.NewServer())
	maps.Copy(handlers, map[string]rpc.Handler{
		adminv1.Admin_GetStatus_FullMethodName:    unaryHandler(g.getStatus),
		adminv1.Admin_GetConfig_FullMethodName:    unaryHandler(g.getConfig),
		adminv1.Admin_GetSchema_FullMethodName:    unaryHandler(g.getSchema),
		adminv1.Admin_ListMethods_FullMethodName:  unaryHandler(g.listMethods),
		adminv1.Admin_ListClusters_FullMethodName: unaryHandler(g.listClusters),
		adminv1.Admin_ListLimits_FullMethodName:   unaryHandler(g.listLimits),
		adminv1.Admin_GetUsage_FullMethodName:     unaryHandler(g.getUsage),
		adminv1.Admin_Reload_FullMethodName:       unaryHandler(g.adminReload),
		adminv1.Admin_Drain_FullMethodName:        unaryHandler(g.adminDrain),
		adminv1.Admin_PurgeCache_FullMethodName:   unaryHandler(g.purgeCache),
		adminv1.Admin_SetLogLevel_FullMethodName:  unaryHandler(g.setLogLevel),
	})
	s := &Snapshot{schema: schema, plans: plans, drop: func() {}}
	for _, m := range schema.Methods() {
		s.routes = append(s.routes, listeners.Route{Handler: handlers[m.FullPath], Plan: plans.Method(m), Timeout: time.Minute, MaxMessageBytes: 1 << 20})
	}
	s.refs.Store(1)
	var c current
	c.swap(s)
	return listeners.NewFront(listeners.FrontConfig{Name: "admin"}, &c, g.log), nil
}

// addFiles adds a file and what it imports.
func addFiles(set *descriptors.Set, fd protoreflect.FileDescriptor, seen map[string]bool) {
	if seen[fd.Path()] {
		return
	}
	seen[fd.Path()] = true
	for i := range fd.Imports().Len() {
		addFiles(set, fd.Imports().Get(i), seen)
	}
	set.Files = append(set.Files, protodesc.ToFileDescriptorProto(fd))
}

func (g *Gateway) getStatus(context.Context, *adminv1.GetStatusRequest) (*adminv1.Status, error) {
	v := g.view.Load()
	s := &adminv1.Status{
		Version: Version(), Ready: g.Ready(), Draining: g.draining.Load(), StartTime: timestamppb.New(g.began),
		Pid: uint32(os.Getpid()), Goroutines: uint32(runtime.NumGoroutine()),
		MissingDescriptors: v.missing, ConfigHash: v.configHash, SchemaHash: v.schemaHash,
		Reloads: &adminv1.Reloads{
			Succeeded: uint32(g.loads.good.Load()), Failed: uint32(g.loads.bad.Load()),
			LastSucceeded: g.loads.ok.Load(), LastSuccessTime: timestamppb.New(time.Unix(0, g.loads.at.Load())),
		},
	}
	s.MemoryBytes, s.MemoryLimitBytes = memory()
	for _, l := range v.servers {
		info := &adminv1.Listener{Address: l.server.Addr().String(), Name: l.server.Name(), Tls: l.certs != nil, Http3: l.cfg.HTTP3}
		open := l.server.Connections()
		info.Connections, info.Websockets = uint32(open.HTTP1+open.HTTP2+open.HTTP3), uint32(open.WebSockets)
		if l.certs != nil {
			if at, _ := l.certs.notAfter(); !at.IsZero() {
				info.CertificateExpireTime = timestamppb.New(at)
			}
			for _, n := range l.certs.inForce.Load().issued() {
				info.Issued = append(info.Issued, issuedName(n))
			}
		}
		s.Listeners = append(s.Listeners, info)
	}
	g.Snapshot(func(snap *Snapshot) {
		s.Methods, s.Routes = uint32(len(snap.schema.Methods())), uint32(len(snap.schema.Bindings()))
	})
	return s, nil
}

func issuedName(n acme.Status) *adminv1.IssuedName {
	out := &adminv1.IssuedName{Name: n.Name, Fault: n.Fault}
	if !n.NotAfter.IsZero() {
		out.ExpireTime = timestamppb.New(n.NotAfter)
	}
	if !n.Next.IsZero() {
		out.NextTime = timestamppb.New(n.Next)
	}
	return out
}

func (g *Gateway) getConfig(context.Context, *adminv1.GetConfigRequest) (*configv1.Config, error) {
	return redacted(g.view.Load().cfg), nil
}

func (g *Gateway) getSchema(context.Context, *adminv1.GetSchemaRequest) (*adminv1.Schema, error) {
	s := &adminv1.Schema{ServiceConfig: g.view.Load().cfg.GetHttpRules().GetServiceConfig()}
	g.Snapshot(func(snap *Snapshot) { s.Files = snap.schema.FileDescriptorSet() })
	return s, nil
}

func (g *Gateway) listMethods(_ context.Context, req *adminv1.ListMethodsRequest) (*adminv1.ListMethodsResponse, error) {
	resp := &adminv1.ListMethodsResponse{}
	g.Snapshot(func(s *Snapshot) {
		for _, m := range s.schema.Methods() {
			if !strings.HasPrefix(string(m.Name), req.GetPrefix()) {
				continue
			}
			am := &adminv1.Method{Name: string(m.Name), Kind: kindOf(m), From: map[string]string{}}
			for _, b := range m.Bindings {
				am.Routes = append(am.Routes, b.Verb+" "+b.Template)
			}
			if eff := s.effective[m.ID]; eff.Policy != nil {
				am.Policy = redacted(eff.Policy)
				for field, from := range eff.From {
					am.From[string(field)] = from.Selector
				}
			}
			resp.Methods = append(resp.Methods, am)
		}
	})
	slices.SortFunc(resp.Methods, func(a, b *adminv1.Method) int { return strings.Compare(a.GetName(), b.GetName()) })
	return resp, nil
}

func (g *Gateway) listClusters(context.Context, *adminv1.ListClustersRequest) (*adminv1.ListClustersResponse, error) {
	resp := &adminv1.ListClustersResponse{}
	g.Snapshot(func(s *Snapshot) {
		for _, c := range s.sortedClusters() {
			ac := &adminv1.Cluster{Name: c.Name(), State: c.State().String(), InFlight: uint32(c.InFlight()), Queued: uint32(c.Queued()), Limit: uint32(c.Limit())}
			for _, e := range c.Endpoints() {
				ac.Endpoints = append(ac.Endpoints, endpointOf(e))
			}
			resp.Clusters = append(resp.Clusters, ac)
		}
	})
	return resp, nil
}

// listLimits tells what a caller has left, as far as the request says who it is.
func (g *Gateway) listLimits(ctx context.Context, req *adminv1.ListLimitsRequest) (*adminv1.ListLimitsResponse, error) {
	call := &rpc.Call{Info: &rpc.Info{}}
	if name := req.GetConsumer(); name != "" {
		call.Principal = &rpc.Principal{Consumer: name, Plan: g.view.Load().cfg.GetConsumers().GetKnown()[name].GetPlan()}
	}
	if text := req.GetAddress(); text != "" {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "address: %q is no IP address", text)
		}
		call.Peer.Addr = netip.AddrPortFrom(addr, 0)
	}
	resp := &adminv1.ListLimitsResponse{}
	found := req.GetMethod() == ""
	g.Snapshot(func(s *Snapshot) {
		if i := slices.IndexFunc(s.schema.Methods(), func(m *descriptors.Method) bool { return string(m.Name) == req.GetMethod() }); i >= 0 {
			call.Method, found = s.schema.Methods()[i], true
		}
		for _, l := range s.limits {
			resp.Limits = append(resp.Limits, limitOf(l.State(ctx, call)))
		}
	})
	if !found {
		return nil, status.Errorf(codes.NotFound, "method: there is no %q", req.GetMethod())
	}
	return resp, nil
}

func limitOf(s limit.State) *adminv1.Limit {
	out := &adminv1.Limit{
		Name: s.Name, Kind: s.Kind.String(), Amount: s.Amount.Text(s.Kind), Plan: s.Plan,
		Messages: s.Messages, Shared: s.Shared, Counted: uint32(s.Keys),
	}
	if s.Kind == limit.Rate {
		out.Burst = uint64(s.Amount.Burst)
	}
	for _, p := range s.Per {
		out.Per = append(out.Per, p.String())
	}
	if s.Known {
		out.Remaining = proto.Uint64(uint64(s.Remaining))
		if s.Kind != limit.Concurrent {
			out.FullIn = durationpb.New(s.Reset)
		}
	}
	return out
}

func endpointOf(e loadaware.EndpointStats) *adminv1.Endpoint {
	out := &adminv1.Endpoint{
		Address: e.Address, State: e.State.String(), Weight: e.Weight, Zone: e.Zone, Priority: uint32(e.Priority), Draining: e.Drain,
		InFlight: uint32(e.InFlight), Streams: uint32(e.Streams), Calls: e.Calls,
		Utilization: e.Utilization, Health: e.Health, Latency: durationpb.New(e.Latency),
		Ejected: e.Ejected, Probation: e.Probation, WarmingUp: e.WarmingUp, Age: durationpb.New(e.Age), Failure: e.Failure,
	}
	if out.GetWeight() == 0 {
		out.Weight = 1
	}
	if e.Reported >= 0 {
		out.ReportAge = durationpb.New(e.Reported)
	}
	return out
}

func (g *Gateway) adminReload(ctx context.Context, _ *adminv1.ReloadRequest) (*adminv1.Status, error) {
	if err := g.Refresh(context.WithoutCancel(ctx)); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return g.getStatus(ctx, nil)
}

func (g *Gateway) adminDrain(context.Context, *adminv1.DrainRequest) (*adminv1.DrainResponse, error) {
	g.Drain()
	return &adminv1.DrainResponse{}, nil
}

func (g *Gateway) purgeCache(ctx context.Context, req *adminv1.PurgeCacheRequest) (*adminv1.PurgeCacheResponse, error) {
	known := req.GetMethod() == ""
	g.Snapshot(func(s *Snapshot) {
		known = known || slices.ContainsFunc(s.schema.Methods(), func(m *descriptors.Method) bool { return string(m.Name) == req.GetMethod() })
	})
	if !known {
		return nil, status.Errorf(codes.NotFound, "method: there is no %q", req.GetMethod())
	}
	n, shared, err := g.PurgeCache(ctx, req.GetMethod(), req.GetConsumer(), req.GetTag())
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &adminv1.PurgeCacheResponse{Purged: uint32(n), Shared: shared}, nil
}

func (g *Gateway) setLogLevel(_ context.Context, req *adminv1.SetLogLevelRequest) (*adminv1.SetLogLevelResponse, error) {
	if g.level == nil {
		return nil, status.Error(codes.FailedPrecondition, "the log has no level that can be changed")
	}
	if req.GetLevel() != "" {
		var l slog.Level
		if err := l.UnmarshalText([]byte(req.GetLevel())); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "level: %q is not debug, info, warn or error", req.GetLevel())
		}
		g.level.Set(l)
	}
	return &adminv1.SetLogLevelResponse{Level: strings.ToLower(g.level.Level().String())}, nil
}

// memory is what the process uses of its limit; a limit of 0 is none.
func memory() (used, limit uint64) {
	var s debugStats
	s.read()
	if l := debug.SetMemoryLimit(-1); l < 1<<62 {
		limit = uint64(l)
	}
	return s.used, limit
}

// version is set by the linker when a release is built: -X transom/gateway.version=v1.2.3.
var version string

// Version is that of the program: the release's, or what Go knows of the module, or "devel".
func Version() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		return bi.Main.Version
	}
	return "devel"
}
