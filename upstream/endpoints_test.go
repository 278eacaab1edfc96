package upstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	"transom/rpc"
	"transom/rpc/rpctest"
	"transom/upstream"
)

// The queue takes what the cluster does not, up to its own limit.
func TestLimits(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	addr := newBackend(t, func(method string, s stream) error {
		entered <- struct{}{}
		<-release
		return echo(method, s)
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr, MaxInFlight: 1, MaxQueued: 2, QueueTimeout: time.Hour})
	start := func(ctx context.Context) *rpctest.Call {
		call := rpctest.Start(ctx, c.Invoke, unary, nil)
		_ = call.Send([]byte("m"))
		_ = call.CloseSend()
		return call
	}
	first := start(t.Context())
	<-entered
	// Two of these three find room in the queue, and one of those then gives up.
	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	var calls []*rpctest.Call
	var wg sync.WaitGroup
	for range 3 {
		call := start(ctx)
		calls = append(calls, call)
		wg.Go(func() { ended <- call.Wait() })
	}
	if err := <-ended; status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "and so is its queue") {
		t.Errorf("a call beyond the queue: %v", err)
	}
	giveUp()
	for range 2 {
		if err := <-ended; rpc.StatusOf(err).Code() != codes.Canceled {
			t.Errorf("a call that left the queue: %v", err)
		}
	}
	wg.Wait()
	gateway := 0
	for _, call := range calls {
		if call.Info().ErrorSource == rpc.SourceGateway {
			gateway++
		}
	}
	if gateway != 1 {
		t.Errorf("%d calls failed by the gateway's fault, want 1", gateway)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := start(short).Wait(); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "in its queue") {
		t.Errorf("a deadline in the queue: %v", err)
	}

	second := start(t.Context())
	third := start(t.Context())
	for _, call := range []*rpctest.Call{first, second, third} {
		if call != first {
			<-entered
		}
		release <- struct{}{}
	}
	for _, call := range []*rpctest.Call{first, second, third} {
		if err := call.Wait(); err != nil {
			t.Errorf("a call that waited: %v", err)
		}
	}
}

func TestQueueTimeout(t *testing.T) {
	entered := make(chan struct{})
	addr := newBackend(t, func(_ string, s stream) error {
		close(entered)
		<-s.Context().Done()
		return nil
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr, MaxInFlight: 1, QueueTimeout: 20 * time.Millisecond})
	call := rpctest.Start(t.Context(), c.Invoke, bidi, nil)
	<-entered
	_, second, err := exchange(t, c, unary, nil, "m")
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "gave up after waiting") {
		t.Errorf("%v", err)
	}
	if got := second.Info(); got.ErrorSource != rpc.SourceGateway || got.Attempts != 0 {
		t.Errorf("Info = %+v", got)
	}
	call.Leave()
	_ = call.Wait()
}

// Many calls through a small gate: none is lost, none fails, never are more inside than may be.
func TestGateUnderLoad(t *testing.T) {
	var inside, most atomic.Int64
	addr := newBackend(t, func(method string, s stream) error {
		n := inside.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		defer inside.Add(-1)
		return echo(method, s)
	})
	c := newCluster(t, upstream.Config{Target: "static:///" + addr, MaxInFlight: 3})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 25 {
				if _, _, err := exchange(t, c, unary, nil, "m"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// A call has left the gate a little before its backend's handler has returned.
	if got := most.Load(); got > 6 {
		t.Errorf("%d calls at the backend, want about 3", got)
	}
}

// A backend that takes few streams on a connection gets more connections.
func TestConnectionsGrow(t *testing.T) {
	const streams, calls = 20, 70
	entered, release := make(chan struct{}), make(chan struct{})
	h := func(_ string, s stream) error {
		entered <- struct{}{}
		<-release
		return nil
	}
	addr := newBackend(t, h, grpc.MaxConcurrentStreams(streams))
	for _, secure := range []bool{false, true} {
		cfg := upstream.Config{Target: "static:///" + addr}
		if secure {
			ca := newAuthority(t)
			cfg.TLS = &upstream.TLS{CAFile: ca.file}
			cfg.Target = "static:///" + newBackend(t, h, grpc.MaxConcurrentStreams(streams), grpc.Creds(credentials.NewServerTLSFromCert(ca.issue(t, "127.0.0.1"))))
		}
		c := newCluster(t, cfg)
		if _, _, err := exchange1(t, c, entered, release); err != nil { // the first call hears of the limit
			t.Fatal(err)
		}
		var open []*rpctest.Call
		for i := range calls {
			open = append(open, rpctest.Start(t.Context(), c.Invoke, bidi, nil))
			select {
			case <-entered:
			case <-time.After(10 * time.Second):
				t.Fatalf("secure %v: call %d waits", secure, i+1)
			}
		}
		for range open {
			release <- struct{}{}
		}
		for _, call := range open {
			if err := call.Wait(); err != nil {
				t.Errorf("secure %v: %v", secure, err)
			}
			if e := call.Info().Endpoint; strings.Contains(e, "#") {
				t.Errorf("the endpoint is shown as %s", e)
			}
		}
	}
}

// exchange1 makes one call to a handler that announces itself and waits.
func exchange1(t *testing.T, c *upstream.Cluster, entered <-chan struct{}, release chan<- struct{}) ([]string, *rpctest.Call, error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { <-entered; release <- struct{}{} })
	return exchange(t, c, bidi, nil)
}

// turn sends a message and returns the answer.
func turn(t *testing.T, c *rpctest.Call) string {
	t.Helper()
	if err := c.Send([]byte("m")); err != nil {
		t.Fatal(err)
	}
	b, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A backend that says that it is not serving gets no calls, and gets them again when it is. Streams that it has go on.
func TestHealthChecks(t *testing.T) {
	serve := func(name string) (string, *health.Server) {
		h := health.NewServer()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer(grpc.ForceServerCodecV2(mixedCodec{}), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
			s := stream{ss}
			for {
				if _, err := s.recv(); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := s.send(name); err != nil {
					return err
				}
			}
		}))
		healthpb.RegisterHealthServer(srv, h)
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Serve(ln) })
		t.Cleanup(func() { srv.Stop(); wg.Wait() })
		return ln.Addr().String(), h
	}
	a, ha := serve("A")
	b, hb := serve("B")
	c := newCluster(t, upstream.Config{Target: "static:///" + a + "," + b})
	untilOnly(t, c, "A", "B")
	var open *rpctest.Call // a stream at A
	for home := ""; home != "A"; {
		open = rpctest.Start(t.Context(), c.Invoke, bidi, nil)
		home = turn(t, open)
		defer open.Leave()
	}
	ha.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	untilOnly(t, c, "B")
	if got := turn(t, open); got != "A" {
		t.Errorf("the stream that was open is answered by %s", got)
	}
	ha.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	hb.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	untilOnly(t, c, "A")
}

// A backend that reports out of band, by grpc-go's own service, is asked to.
func TestOutOfBandReports(t *testing.T) {
	metrics := orca.NewServerMetricsRecorder()
	metrics.SetApplicationUtilization(0.7)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	if err := orca.Register(srv, orca.ServiceOptions{ServerMetricsProvider: metrics}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	c := newCluster(t, upstream.Config{Target: "static:///" + ln.Addr().String(), LB: `[{"adaptive": {"oobPeriod": "1s"}}]`})
	for e := c.Endpoints(); len(e) != 1 || e[0].Utilization != 0.7; e = c.Endpoints() {
		// The server has no such method, and nothing in its answers.
		if _, _, err := exchange(t, c, unary, nil, "m"); status.Code(err) != codes.Unimplemented {
			t.Fatalf("%v, with endpoints %+v", err, e)
		}
	}
}

// A backend whose health cannot be asked for is not used, unless it is not to be asked.
func TestNoHealthCheck(t *testing.T) {
	addr := newBackend(t, func(_ string, s stream) error {
		_, err := s.recv()
		if err != nil {
			return err
		}
		return s.send("m")
	}, grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		if strings.HasPrefix(info.FullMethod, "/grpc.health") {
			return status.Error(codes.Unauthenticated, "who are you?")
		}
		return h(srv, ss)
	}))
	for _, off := range []bool{false, true} {
		c := newCluster(t, upstream.Config{Target: addr, NoHealthCheck: off})
		if _, _, err := exchange(t, c, unary, nil, "m"); (err == nil) != off {
			t.Errorf("no health check %v: %v", off, err)
		}
	}
}

// A killed backend costs a call that may be repeated nothing, and a restart one by one costs no call anything.
func TestBackendsRestart(t *testing.T) {
	const n = 3
	var addrs []string
	var servers []*grpc.Server
	h := func(method string, s stream) error { return echo(unary.FullPath, s) }
	for range n {
		addr, srv := newServer(t, "127.0.0.1:0", h)
		addrs, servers = append(addrs, addr), append(servers, srv)
	}
	for _, tt := range []struct {
		name   string
		method *descriptors.Method
		stop   func(*grpc.Server)
	}{{"kill", idempotent, (*grpc.Server).Stop}, {"graceful", unary, (*grpc.Server).GracefulStop}} {
		c := newCluster(t, upstream.Config{Target: "static:///" + strings.Join(addrs, ",")})
		stop := make(chan struct{})
		made := make(chan struct{}) // for each call, if anybody waits
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, call, err := exchange(t, c, tt.method, nil, "m"); err != nil {
						t.Errorf("%s: %v (%v) after %d attempts, %v", tt.name, err, call.Wait(), call.Info().Attempts, call.Info().Notes)
					}
					select {
					case made <- struct{}{}:
					default:
					}
				}
			})
		}
		after := func(n int) {
			for range n {
				<-made
			}
		}
		for i := range n {
			after(100)
			tt.stop(servers[i])
			after(100)
			_, servers[i] = newServer(t, addrs[i], h)
			// Until it is used again: else the next stop might leave none.
			for seen := false; !seen && !t.Failed(); {
				_, call, _ := exchange(t, c, tt.method, nil, "m")
				seen = call.Info().Endpoint == addrs[i]
			}
		}
		close(stop)
		wg.Wait()
	}
}

// mixedCodec deals in raw messages, and in protobuf for services that are registered.
type mixedCodec struct{ bytesCodec }

func (c mixedCodec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(proto.Message); ok {
		b, err := proto.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return c.bytesCodec.Marshal(v)
}

func (c mixedCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(proto.Message); ok {
		return proto.Unmarshal(data.Materialize(), m)
	}
	return c.bytesCodec.Unmarshal(data, v)
}

// authority is a certificate authority.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool(), file: filepath.Join(t.TempDir(), "ca.pem")}
	a.pool.AddCert(cert)
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue makes a certificate for a host name or address.
func (a *authority) issue(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// write puts a certificate and its key into files.
func write(t *testing.T, c *tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})))
	replace(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	clients := make(chan string, 8)
	server := func(cert *tls.Certificate) string {
		return newBackend(t, func(method string, s stream) error {
			return echo(method, s)
		}, grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{*cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.pool,
			VerifyConnection: func(cs tls.ConnectionState) error {
				name := ""
				if len(cs.PeerCertificates) > 0 {
					name = cs.PeerCertificates[0].Subject.CommonName
				}
				clients <- name
				return nil
			},
		})))
	}
	bank := server(ca.issue(t, "bank.example"))
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	write(t, ca.issue(t, "transom-1"), certFile, keyFile)
	for _, tt := range []struct {
		name string
		cfg  upstream.Config
		ok   bool
	}{
		{"name from TLS", upstream.Config{TLS: &upstream.TLS{CAFile: ca.file, ServerName: "bank.example"}}, true},
		{"name from authority", upstream.Config{TLS: &upstream.TLS{CAFile: ca.file}, Authority: "bank.example"}, true},
		{"name differs from authority", upstream.Config{TLS: &upstream.TLS{CAFile: ca.file, ServerName: "bank.example"}, Authority: "api"}, true},
		{"wrong name", upstream.Config{TLS: &upstream.TLS{CAFile: ca.file, ServerName: "evil.example"}}, false},
		{"name of the address", upstream.Config{TLS: &upstream.TLS{CAFile: ca.file}}, false},
		{"wrong authority", upstream.Config{TLS: &upstream.TLS{CAFile: other.file, ServerName: "bank.example"}}, false},
		{"not verified", upstream.Config{TLS: &upstream.TLS{SkipVerify: true}}, true},
		{"client certificate", upstream.Config{TLS: &upstream.TLS{CAFile: ca.file, ServerName: "bank.example", CertFile: certFile, KeyFile: keyFile}}, true},
		{"plaintext", upstream.Config{}, false},
	} {
		tt.cfg.Target = "static:///" + bank
		c := newCluster(t, tt.cfg)
		_, _, err := exchange(t, c, unary, nil, "m")
		if ok := err == nil; ok != tt.ok {
			t.Errorf("%s: %v, want success %v", tt.name, err, tt.ok)
		}
		if err != nil && err.Error() != `rpc error: code = Unavailable desc = cluster "bank" has no endpoint that can be reached` {
			t.Errorf("%s: %v tells too much or too little", tt.name, err)
		}
		if tt.ok {
			want := ""
			if tt.cfg.TLS.CertFile != "" {
				want = "transom-1"
			}
			for got := <-clients; got != want; got = <-clients { // those of refused handshakes came before
			}
		}
	}

	// A renewed certificate serves for the next connection.
	addr, srv := newServer(t, "127.0.0.1:0", echo, grpc.Creds(credentials.NewServerTLSFromCert(ca.issue(t, "bank.example"))))
	srv.Stop()
	path := filepath.Join(dir, "endpoints.yaml")
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}]", addr))
	c := newCluster(t, upstream.Config{
		Target: "file://" + path, TLS: &upstream.TLS{CAFile: ca.file, ServerName: "bank.example", CertFile: certFile, KeyFile: keyFile},
	})
	write(t, ca.issue(t, "transom-2"), certFile, keyFile)
	replace(t, path, fmt.Sprintf("endpoints: [{address: %q}]", bank))
	for {
		if _, _, err := exchange(t, c, unary, nil, "m"); err == nil {
			break
		}
	}
	for got := <-clients; got != "transom-2"; got = <-clients {
	}
}

func TestUnixTarget(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	newServer(t, "unix:"+path, echo)
	for _, target := range []string{"unix:" + path, "unix://" + path} {
		c := newCluster(t, upstream.Config{Target: target})
		if got, _, err := exchange(t, c, unary, nil, "m"); err != nil || fmt.Sprint(got) != "[re:m]" {
			t.Errorf("%s: %v, %v", target, got, err)
		}
	}
}

// nameServer is a DNS server for one name.
type nameServer struct {
	mu    sync.Mutex
	addrs []netip.Addr
	addr  string
}

func (n *nameServer) set(addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs = nil
	for _, a := range addrs {
		n.addrs = append(n.addrs, netip.MustParseAddr(a))
	}
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{addr: pc.LocalAddr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			size, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if b := n.answer(buf[:size]); b != nil {
				_, _ = pc.WriteTo(b, from)
			}
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return n
}

func (n *nameServer) answer(q []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(q) != nil || len(m.Questions) != 1 {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	question := m.Questions[0]
	if len(n.addrs) == 0 {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range n.addrs {
		if question.Type == dnsmessage.TypeA && a.Is4() {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: question.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: a.As4()},
			})
		}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func TestDNSTarget(t *testing.T) {
	// Two backends on one port of two loopback addresses.
	serve := func(addr, name string) string {
		got, _ := newServer(t, addr, func(_ string, s stream) error {
			if _, err := s.recv(); err != nil {
				return err
			}
			return s.send(name)
		})
		return got
	}
	_, port, err := net.SplitHostPort(serve("127.0.0.1:0", "A"))
	if err != nil {
		t.Fatal(err)
	}
	serve("127.0.0.2:"+port, "B")
	ns := newNameServer(t)
	ns.set("127.0.0.1")
	c := newCluster(t, upstream.Config{Target: "dns://" + ns.addr + "/bank.example.:" + port, DNSRefresh: time.Second})
	untilOnly(t, c, "A")
	ns.set("127.0.0.1", "127.0.0.2")
	untilOnly(t, c, "A", "B")
	ns.set() // the name is gone: the addresses stay
	untilOnly(t, c, "A", "B")
	ns.set("127.0.0.2")
	untilOnly(t, c, "B")
}

func TestDNSTargetFails(t *testing.T) {
	ns := newNameServer(t)
	c := newCluster(t, upstream.Config{Target: "dns://" + ns.addr + "/bank.example.:1"})
	_, call, err := exchange(t, c, unary, nil, "m")
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), ns.addr) {
		t.Errorf("%v, want Unavailable without addresses", err)
	}
	if got := call.Info().ErrorSource; got != rpc.SourceUpstream {
		t.Errorf("source = %v, want upstream", got)
	}
}

// TestUnreachable: why an endpoint cannot be used is logged once, however often it is tried, and shown.
func TestUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// A server that speaks no TLS, and counts the attempts.
	attempts := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = conn.Close()
			select {
			case attempts <- struct{}{}:
			case <-t.Context().Done():
			}
		}
	})
	defer wg.Wait()
	defer ln.Close()
	var said syncBuffer
	c, err := upstream.New(upstream.Config{
		Name: "bank", Target: "static:///" + ln.Addr().String(), Transport: transport(), TLS: &upstream.TLS{},
	}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(t.Context())) }()
	for range 4 { // the first three have failed by then
		select {
		case <-attempts:
		case <-time.After(20 * time.Second):
			t.Fatal("no attempt to connect")
		}
	}
	const cause = "first record does not look like a TLS handshake"
	if log := said.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "endpoint="+ln.Addr().String()) || !strings.Contains(log, cause) {
		t.Errorf("the log says\n%s", log)
	}
	if e := c.Endpoints(); len(e) != 1 || !strings.Contains(e[0].Failure, cause) {
		t.Errorf("shown are %+v", e)
	}
}
