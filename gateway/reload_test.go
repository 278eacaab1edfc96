package gateway_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/gateway"
	"transom/gateway/configfile"
	bankv1 "transom/proto/bank/v1"
	configv1 "transom/proto/transom/config/v1"
)

// logLines is a log whose lines can be waited for.
type logLines struct{ lines chan string }

func newLog() (*slog.Logger, logLines) {
	l := logLines{make(chan string, 1000)}
	return slog.New(slog.NewTextHandler(l, nil)), l
}

func (l logLines) Write(b []byte) (int, error) {
	select {
	case l.lines <- string(b):
	default:
	}
	return len(b), nil
}

// await returns the next line that has all of parts.
func (l logLines) await(t *testing.T, parts ...string) string {
	t.Helper()
	limit := time.After(20 * time.Second)
	var seen strings.Builder
	for {
		select {
		case line := <-l.lines:
			seen.WriteString(line)
			found := true
			for _, p := range parts {
				found = found && strings.Contains(line, p)
			}
			if found {
				return line
			}
		case <-limit:
			t.Fatalf("no log line with %q in:\n%s", parts, seen.String())
		}
	}
}

// startBank runs the bank's backend and returns its address.
func startBank(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	bankv1.RegisterAccountsServer(srv, accounts{})
	bankv1.RegisterSupportServer(srv, support{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })
	t.Cleanup(func() {
		srv.Stop()
		wg.Wait()
	})
	return lis.Addr().String()
}

// support echoes.
type support struct {
	bankv1.UnimplementedSupportServer
}

func (support) Chat(s grpc.BidiStreamingServer[bankv1.ChatMessage, bankv1.ChatMessage]) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if err := s.Send(m); err != nil {
			return err
		}
	}
}

// serveFile runs a gateway from a configuration file, followed as it changes.
func serveFile(t *testing.T, path string) (*gateway.Gateway, logLines) {
	t.Helper()
	log, lines := newLog()
	file, err := configfile.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(t.Context(), file.Config, log)
	if err != nil {
		t.Fatal(err)
	}
	g.Follow(path)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		stop()
		wg.Wait()
	})
	return g, lines
}

// replace puts content into the file at path by renaming, as editors do.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// TestReloadFile changes the file under an open WebSocket: a listener comes, another goes, one changes, and one is not
// touched. A file with faults changes nothing and is told of by line.
func TestReloadFile(t *testing.T) {
	backend, set := startBank(t), descriptorSet(t)
	path := filepath.Join(t.TempDir(), "transom.yaml")
	config := func(listeners, rest string) string {
		return fmt.Sprintf("listeners:\n%sdescriptors: [{file: %s}]\nclusters: {bank: {target: \"static:///%s\"}}\n%s", listeners, set, backend, rest)
	}
	const a, b = "  - {address: \"127.0.0.1:0\", name: a}\n", "  - {address: \"127.0.0.2:0\", name: b}\n"
	replace(t, path, config(a+b, ""))
	g, lines := serveFile(t, path)
	before := g.Addrs()

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://%s/v1/support/chat", before[0]), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	chat := func() {
		t.Helper()
		if err := ws.Write(ctx, websocket.MessageText, []byte(`{"text":"hello"}`)); err != nil {
			t.Fatal(err)
		}
		if _, m, err := ws.Read(ctx); err != nil || string(m) != `{"text":"hello"}` {
			t.Fatalf("%s, %v", m, err)
		}
	}
	chat()

	// b changes its limits, c comes.
	replace(t, path, config(a+"  - {address: \"127.0.0.2:0\", name: b, limits: {streams: 7}}\n  - {address: \"127.0.0.3:0\", name: c}\n", "json: {emit_defaults: true}\n"))
	lines.await(t, "msg=reloaded")
	after := g.Addrs()
	if len(after) != 3 || after[0].String() != before[0].String() || after[1].String() != before[1].String() {
		t.Errorf("listeners at %v, were at %v", after, before)
	}
	for _, addr := range after {
		if code, body := get(t, fmt.Sprintf("http://%s/v1/customers/7/accounts/1", addr)); code != 200 || !strings.Contains(body, `""`) {
			t.Errorf("%s answers %d %s, want defaults to be there", addr, code, body)
		}
	}
	chat()

	replace(t, path, config(a, "polices: []\npolicies: [{selector: \"*\", cluster: bonk}]\n"))
	lines.await(t, "reload refused", "transom.yaml:5:1", "polices")
	replace(t, path, config(a, "policies:\n  - {selector: \"*\",\n     cluster: bonk}\n"))
	lines.await(t, "reload refused", "transom.yaml:7:15", "bonk")
	chat()
	if code, _ := get(t, fmt.Sprintf("http://%s/v1/customers/7/accounts/1", after[2])); code != 200 {
		t.Errorf("after a refused reload: %d", code)
	}

	replace(t, path, config(a, ""))
	lines.await(t, "msg=reloaded")
	chat()
	for range 2 {
		lines.await(t, "listener retired")
	}
	if c, err := net.Dial("tcp", after[2].String()); err == nil {
		c.Close()
		t.Error("the listener that went still accepts")
	}
}

// TestReloadSymlink swaps the directory above the file, as Kubernetes does with a ConfigMap.
func TestReloadSymlink(t *testing.T) {
	backend, set := startBank(t), descriptorSet(t)
	dir := t.TempDir()
	write := func(version, rest string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		replace(t, filepath.Join(dir, version, "transom.yaml"), fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\"}]\ndescriptors: [{file: %s}]\nclusters: {bank: {target: \"static:///%s\"}}\n%s", set, backend, rest))
		if err := os.Symlink(version, filepath.Join(dir, "data.new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "data.new"), filepath.Join(dir, "data")); err != nil {
			t.Fatal(err)
		}
	}
	write("1", "")
	path := filepath.Join(dir, "transom.yaml")
	if err := os.Symlink("data/transom.yaml", path); err != nil {
		t.Fatal(err)
	}
	g, lines := serveFile(t, path)
	write("2", "health: {path: /up}\n")
	lines.await(t, "msg=reloaded")
	if code, body := get(t, fmt.Sprintf("http://%s/up", g.Addrs()[0])); code != 200 {
		t.Errorf("%d %s", code, body)
	}
}

// TestReloadDescriptors replaces a descriptor set by one without a method: the change is named, and refused if so configured.
func TestReloadDescriptors(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("refuse %v", refuse), func(t *testing.T) {
			backend, set := startBank(t), descriptorSet(t)
			path := filepath.Join(t.TempDir(), "transom.yaml")
			replace(t, path, fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\"}]\ndescriptors: [{file: %s}]\nclusters: {bank: {target: \"static:///%s\"}}\nreload: {refuse_breaking: %v}\n", set, backend, refuse))
			g, lines := serveFile(t, path)
			replace(t, set, withoutService(t, set, "Support"))
			chat := fmt.Sprintf("http://%s/bank.v1.Support/Chat", g.Addrs()[0])
			if refuse {
				lines.await(t, "reload refused", "transom.yaml:2:", "method bank.v1.Support.Chat is removed")
			} else {
				lines.await(t, "level=WARN", "schema change", "method bank.v1.Support.Chat is removed")
				lines.await(t, "msg=reloaded", "bank.binpb")
			}
			code, body := get(t, chat)
			if gone := strings.Contains(body, "no route"); gone == refuse {
				t.Errorf("refuse %v: the removed method answers %d %s", refuse, code, body)
			}
			if code, _ := get(t, fmt.Sprintf("http://%s/v1/customers/7/accounts/1", g.Addrs()[0])); code != 200 {
				t.Errorf("the method that stays answers %d", code)
			}
		})
	}
}

// TestReloadRecovers damages a descriptor set, and then puts one there that is refused: both count as refused reloads, as the status says
// until the set that is in force is back. A configuration that needs other descriptors is put in force when they come.
func TestReloadRecovers(t *testing.T) {
	backend, set := startBank(t), descriptorSet(t)
	whole, err := os.ReadFile(set)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "transom.yaml")
	config := fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:0\"}\ndescriptors: [{file: %s}]\nclusters: {bank: {target: \"static:///%s\"}}\n", set, backend)
	replace(t, path, config+"reload: {refuse_breaking: true}\n")
	g, lines := serveFile(t, path)
	status := func(refused int, ok string) {
		t.Helper()
		_, body := ask(t, g, "GET", "/v1/status", nil)
		var s struct {
			Reloads struct {
				Failed        int
				LastSucceeded bool
			}
		}
		if err := json.Unmarshal([]byte(body), &s); err != nil || s.Reloads.Failed != refused || s.Reloads.LastSucceeded != (ok == "ok") {
			t.Errorf("reloads %+v, want %d refused, the last %s", s.Reloads, refused, ok)
		}
		if _, body = ask(t, g, "GET", "/metrics", nil); strings.Contains(body, "transom_config_last_reload_successful 1\n") != (ok == "ok") {
			t.Errorf("the metric does not say %s", ok)
		}
		if code, _ := get(t, fmt.Sprintf("http://%s/v1/customers/7/accounts/1", g.Addrs()[0])); code != 200 {
			t.Errorf("a call: %d", code)
		}
	}
	status(0, "ok")
	replace(t, set, string(whole[:len(whole)/2]))
	lines.await(t, "reload refused", "descriptors of", "bank.binpb")
	status(1, "refused")
	replace(t, set, string(whole))
	lines.await(t, "msg=reloaded", "descriptors of")
	status(1, "ok")
	replace(t, set, withoutService(t, set, "Support"))
	lines.await(t, "reload refused", "Support.Chat is removed")
	status(2, "refused")
	replace(t, set, string(whole))
	lines.await(t, "msg=reloaded", "descriptors of")
	status(2, "ok")

	replace(t, path, config)
	lines.await(t, "msg=reloaded", "what=configuration")
	replace(t, set, withoutService(t, set, "Support"))
	lines.await(t, "msg=reloaded", "descriptors of")
	replace(t, path, config+"policies: [{selector: bank.v1.Support.Chat, stream_timeout: 1h}]\n")
	lines.await(t, "reload refused", "transom.yaml:5:", "Support.Chat")
	status(3, "refused")
	replace(t, set, string(whole))
	lines.await(t, "msg=reloaded", "what=configuration")
	status(3, "ok")
	if _, body := ask(t, g, "GET", "/v1/methods?prefix=bank.v1.Support.Chat", nil); !strings.Contains(body, `"3600s"`) {
		t.Errorf("the policy is not in force: %s", body)
	}
}

// TestWatchWithoutFile: the files that a configuration names are followed though it is itself none.
func TestWatchWithoutFile(t *testing.T) {
	dir := t.TempDir()
	cert, key := pair(t, dir, "a", "a.example")
	log, lines := newLog()
	g, err := gateway.New(t.Context(), &configv1.Config{
		Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0", Tls: &configv1.TLS{Certificate: cert, Key: key}}},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}},
		Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///" + startBank(t)}},
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Run(ctx) })
	defer wg.Wait()
	defer stop()
	first := leaf(t, g.Addrs()[0], "a.example")
	pair(t, dir, "a", "a.example")
	lines.await(t, "msg=reloaded")
	if bytes.Equal(first.Raw, leaf(t, g.Addrs()[0], "a.example").Raw) {
		t.Error("the old certificate is still shown")
	}
}

// withoutService is the descriptor set at path without one service.
func withoutService(t *testing.T, path, name string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(b, set); err != nil {
		t.Fatal(err)
	}
	for _, f := range set.GetFile() {
		for i, s := range f.GetService() {
			if s.GetName() == name {
				f.Service, f.SourceCodeInfo = append(f.GetService()[:i:i], f.GetService()[i+1:]...), nil
				break
			}
		}
	}
	b, err = proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// pair writes a self-signed certificate for name and returns its files.
func pair(t *testing.T, dir, file, name string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, file+".crt"), filepath.Join(dir, file+".key")
	replace(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})))
	replace(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return cert, key
}

// leaf is the certificate that a server shows for a name.
func leaf(t *testing.T, addr net.Addr, name string) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", addr.String(), &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Errorf("ALPN is %q", got)
	}
	return c.ConnectionState().PeerCertificates[0]
}

// TestReloadCertificates replaces certificate files: the next handshake has the new one; by name there are several.
func TestReloadCertificates(t *testing.T) {
	backend, set, dir := startBank(t), descriptorSet(t), t.TempDir()
	certA, keyA := pair(t, dir, "a", "a.example")
	certB, keyB := pair(t, dir, "b", "b.example")
	path := filepath.Join(dir, "transom.yaml")
	replace(t, path, fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\", tls: {certificate: %s, key: %s, more: [{certificate: %s, key: %s}]}}]\ndescriptors: [{file: %s}]\nclusters: {bank: {target: \"static:///%s\"}}\n",
		certA, keyA, certB, keyB, set, backend))
	g, lines := serveFile(t, path)
	addr := g.Addrs()[0]
	first := leaf(t, addr, "a.example")
	for name, want := range map[string]string{"a.example": "a.example", "b.example": "b.example", "c.example": "a.example"} {
		if got := leaf(t, addr, name).Subject.CommonName; got != want {
			t.Errorf("%s gets the certificate of %s", name, got)
		}
	}
	pair(t, dir, "a", "a.example")
	lines.await(t, "msg=reloaded")
	if second := leaf(t, addr, "a.example"); bytes.Equal(first.Raw, second.Raw) {
		t.Error("the old certificate is still shown")
	}
	replace(t, certA, "not a certificate")
	lines.await(t, "reload refused", "transom.yaml:1:", "a.crt")
	if got := leaf(t, addr, "a.example").Subject.CommonName; got != "a.example" {
		t.Errorf("after a refused reload: %s", got)
	}
}

// TestReopenLogs renames the access log away, as log rotation does.
func TestReopenLogs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	g, addr := start(t, func(c *configv1.Config) { c.AccessLog = &configv1.AccessLog{File: path} })
	get(t, "http://"+addr+"/v1/customers/7/accounts/1")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	g.ReopenLogs(t.Context())
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// TestMetricsPush pushes to one collector, then by a reload to another, and, at the end, of all that was called. No admin
// listener is there. A reload that leaves the collector alone pushes nothing.
func TestMetricsPush(t *testing.T) {
	var pushed [2]chan *collectorpb.ExportMetricsServiceRequest
	var urls [2]string
	for i := range pushed {
		pushed[i] = make(chan *collectorpb.ExportMetricsServiceRequest, 10)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			var req collectorpb.ExportMetricsServiceRequest
			if err == nil {
				err = proto.Unmarshal(b, &req)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			pushed[i] <- &req
		}))
		t.Cleanup(srv.Close)
		urls[i] = srv.URL + "/v1/metrics"
	}
	// calls are those counted and endpoints those of clusters, as one push says; -1 if it does not.
	says := func(req *collectorpb.ExportMetricsServiceRequest) (calls uint64, endpoints float64) {
		endpoints = -1
		for _, m := range req.GetResourceMetrics()[0].GetScopeMetrics()[0].GetMetrics() {
			switch m.GetName() {
			case "rpc.server.call.duration":
				for _, p := range m.GetHistogram().GetDataPoints() {
					calls += p.GetCount()
				}
			case "transom_cluster_endpoints":
				endpoints = 0
				for _, p := range m.GetGauge().GetDataPoints() {
					endpoints += p.GetAsDouble()
				}
			}
		}
		return calls, endpoints
	}
	t.Run("serve", func(t *testing.T) {
		var cfg *configv1.Config
		g, addr := start(t, func(c *configv1.Config) {
			c.MetricsPush = &configv1.MetricsPush{Endpoint: urls[0], Interval: durationpb.New(time.Hour)}
			cfg = c
		})
		get(t, "http://"+addr+"/v1/customers/7/accounts/1")
		if err := g.Reload(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if n := len(pushed[0]); n != 0 {
			t.Errorf("%d pushes at a reload that changes nothing", n)
		}
		next := proto.CloneOf(cfg)
		next.MetricsPush.Endpoint = urls[1]
		if err := g.Reload(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		// A call is counted after its answer, which may be later than this push.
		if calls, endpoints := says(<-pushed[0]); calls > 1 || endpoints != 1 {
			t.Errorf("the first collector was told of %d calls and %v endpoints", calls, endpoints)
		}
		get(t, "http://"+addr+"/v1/customers/7/accounts/1")
	})
	if len(pushed[0]) != 0 || len(pushed[1]) != 1 {
		t.Fatalf("%d further pushes to the first collector, %d to the second", len(pushed[0]), len(pushed[1]))
	}
	if calls, endpoints := says(<-pushed[1]); calls != 2 || endpoints != 1 {
		t.Errorf("the second collector was told of %d calls and %v endpoints", calls, endpoints)
	}
}

// TestReloadTwice says that reloading the configuration in force changes nothing.
func TestReloadTwice(t *testing.T) {
	var cfg *configv1.Config
	g, addr := start(t, func(c *configv1.Config) { cfg = c })
	for range 3 {
		if err := g.Reload(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	if got := g.Addrs()[0].String(); got != addr {
		t.Errorf("listens on %s, was on %s", got, addr)
	}
	if code, _ := get(t, "http://"+addr+"/v1/customers/7/accounts/1"); code != 200 {
		t.Errorf("%d", code)
	}
}
