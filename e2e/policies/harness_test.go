package policies_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/cmd/transom/demo/bank"
	"transom/gateway"
	"transom/gateway/configfile"
	bankv1 "transom/proto/bank/v1"
)

func TestMain(m *testing.M) {
	// The client of a Redis Cluster closes connections to nodes that have gone some seconds later.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient)._refresh.func2"))
}

// patience is how long a test waits for what takes no time on a good day.
const patience = 20 * time.Second

// reader reads the configurations of all tests: compiling the rules anew for each was most of the time.
var reader configfile.Reader

// startBank runs a bank until the test ends, and returns its address.
func startBank(t testing.TB) string {
	t.Helper()
	return startNamed(t, "")
}

// startNamed is startBank for a bank that says its name.
func startNamed(t testing.TB, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bankOn(t, name, l))
	return l.Addr().String()
}

// bankOn is startNamed for a bank on a listener, until it is stopped.
func bankOn(t testing.TB, name string, l net.Listener) (stop func()) {
	t.Helper()
	b := bank.New(bank.Config{Name: name})
	srv := grpc.NewServer(b.ServerOptions()...)
	b.Register(srv)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	return func() {
		srv.Stop()
		wg.Wait()
	}
}

// descriptorSet writes the bank's descriptors to a file.
func descriptorSet(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bank.binpb")
	if err := os.WriteFile(path, bank.DescriptorSet(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// proxy is a gateway in this process with a bank behind it.
type proxy struct {
	*gateway.Gateway
	addr string
	bank string
	set  string // the descriptor set's file
	// clusters are further ones, as YAML.
	clusters string
	conn     *grpc.ClientConn
	http     *http.Client
	// tls says that the listener has TLS; conn and http are then the test's to make.
	tls bool
}

// url is where the proxy is, by "http" or "ws".
func (p *proxy) url(scheme string) string {
	if p.tls {
		scheme += "s"
	}
	return scheme + "://" + p.addr
}

// start runs a gateway with the policies, consumers and so on that text has. The rest of the file is put around it.
func start(t *testing.T, text string) *proxy {
	t.Helper()
	return startWith(t, text, "")
}

// startWith is start with more clusters, ", name: {…}".
func startWith(t *testing.T, text, clusters string) *proxy {
	t.Helper()
	return startFor(t, text, clusters)
}

// startFor is startWith for tests, benchmarks and fuzz targets.
func startFor(t testing.TB, text, clusters string) *proxy {
	t.Helper()
	p := &proxy{clusters: clusters, bank: startBank(t), set: descriptorSet(t), http: &http.Client{Transport: &http.Transport{}}}
	var err error
	p.Gateway, err = gateway.New(t.Context(), p.parse(t, text).Config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	p.addr = p.Addrs()[0].String()
	if p.conn, err = grpc.NewClient(p.addr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.conn.Close()
		p.http.CloseIdleConnections()
		stop()
		wg.Wait()
	})
	return p
}

// parse reads a configuration file that holds text.
func (p *proxy) parse(t testing.TB, text string) *configfile.File {
	t.Helper()
	file, err := reader.Parse("transom.yaml", p.whole(text), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// whole is the file around text, which comes first so that its lines keep their numbers.
func (p *proxy) whole(text string) []byte {
	if !strings.Contains(text, "\nlisteners:") {
		text += "\nlisteners: [{address: \"127.0.0.1:0\"}]\n"
	}
	if !strings.Contains(text, "\nclusters:") && !strings.HasPrefix(text, "clusters:") {
		text += fmt.Sprintf("\nclusters: {bank: {target: \"static:///%s\"}%s}\n", p.bank, p.clusters)
	}
	if !strings.Contains(text, "\ndescriptors:") {
		text += "\ndescriptors: [{file: $SET}]\n"
	}
	return []byte(strings.ReplaceAll(text, "$SET", p.set))
}

// bankTarget is how examples name a bank.
var bankTarget = regexp.MustCompile(`"dns:///([a-z-]+):50051"`)

// withBanks puts a running bank of that name in the place of each that an example names.
func withBanks(t testing.TB, text string) string {
	t.Helper()
	return bankTarget.ReplaceAllStringFunc(text, func(target string) string {
		return `"static:///` + startNamed(t, bankTarget.FindStringSubmatch(target)[1]) + `"`
	})
}

// reload puts other policies in force.
func (p *proxy) reload(t *testing.T, text string) {
	t.Helper()
	if err := p.Reload(t.Context(), p.parse(t, text).Config); err != nil {
		t.Fatal(err)
	}
}

// faults are what is wrong with a configuration, one line each as "line:column: message".
func faults(t *testing.T, text string) []string {
	t.Helper()
	p := &proxy{bank: "127.0.0.1:1", set: descriptorSet(t)}
	file, err := reader.Parse("transom.yaml", p.whole(text), noEnv)
	if err == nil {
		err = gateway.Locate(gateway.Check(t.Context(), file.Config, slog.New(slog.DiscardHandler)), file)
	}
	var found configfile.Faults
	if err != nil && !errors.As(err, &found) {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range found {
		lines = append(lines, fmt.Sprintf("%d:%d: %s", f.Line, f.Column, f.Message))
	}
	return lines
}

// outcome is how a call ended, whatever the protocol.
type outcome struct {
	code    codes.Code
	http    int    // of REST, and of a WebSocket that was refused
	message string // of the status
	reason  string // of the ErrorInfo
	details []any
	// header is what came with a refusal, in lower case.
	header metadata.MD
	// seen is the metadata that the bank got, server its name.
	seen   map[string][]string
	server string
}

// protocols are the ways to call Diagnostics.Metadata.
var protocols = map[string]func(t *testing.T, p *proxy, header map[string]string) outcome{
	"REST": callREST, "gRPC": callGRPC, "WebSocket": callWebSocket,
}

// everyProtocol runs fn for each protocol.
func everyProtocol(t *testing.T, fn func(t *testing.T, call func(t *testing.T, p *proxy, header map[string]string) outcome)) {
	t.Helper()
	for name, call := range protocols {
		t.Run(name, func(t *testing.T) { fn(t, call) })
	}
}

const metadataPath = "/v1/diagnostics/metadata"

func callREST(t *testing.T, p *proxy, header map[string]string) outcome {
	t.Helper()
	return callPath(t, p, metadataPath, header)
}

// callPath is callREST by a path that may be another.
func callPath(t *testing.T, p *proxy, path string, header map[string]string) outcome {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url("http")+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	resp, err := p.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return ofHTTP(t, resp)
}

// ofHTTP reads a JSON answer.
func ofHTTP(t *testing.T, resp *http.Response) outcome {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil && len(body) == 0 {
		t.Fatal(err)
	}
	o := outcome{http: resp.StatusCode, header: metadata.MD{}}
	for k, v := range resp.Header {
		o.header[strings.ToLower(k)] = v
	}
	if resp.StatusCode == http.StatusOK {
		o.seen, o.server = seenOf(t, body)
		return o
	}
	var st struct {
		Code    codes.Code
		Message string
		Details []map[string]any
	}
	if err := json.Unmarshal(body, &st); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	o.code, o.message = st.Code, st.Message
	for _, d := range st.Details {
		o.details = append(o.details, d)
		if d["@type"] == "type.googleapis.com/google.rpc.ErrorInfo" {
			o.reason, _ = d["reason"].(string)
		}
	}
	return o
}

func seenOf(t *testing.T, body []byte) (seen map[string][]string, server string) {
	t.Helper()
	var answer struct {
		Metadata map[string]struct{ Values []string }
		Server   string
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	seen = map[string][]string{}
	for k, v := range answer.Metadata {
		seen[k] = v.Values
	}
	return seen, answer.Server
}

func callGRPC(t *testing.T, p *proxy, header map[string]string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(t.Context(), metadata.New(header)), patience)
	defer cancel()
	var md, trailer metadata.MD
	resp, err := bankv1.NewDiagnosticsClient(p.conn).Metadata(ctx, &bankv1.MetadataRequest{}, grpc.Header(&md), grpc.Trailer(&trailer))
	st := status.Convert(err)
	o := outcome{code: st.Code(), message: st.Message(), header: md, seen: map[string][]string{}}
	if o.header == nil {
		o.header = metadata.MD{}
	}
	maps.Copy(o.header, trailer)
	for _, d := range st.Details() {
		o.details = append(o.details, d)
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			o.reason = info.GetReason()
		}
	}
	for k, v := range resp.GetMetadata() {
		o.seen[k] = v.GetValues()
	}
	o.server = resp.GetServer()
	return o
}

func callWebSocket(t *testing.T, p *proxy, header map[string]string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	h := http.Header{}
	var offered []string
	for k, v := range header {
		if k == "sec-websocket-protocol" {
			offered = strings.Split(v, ", ")
			continue
		}
		h.Set(k, v)
	}
	c, resp, err := websocket.Dial(ctx, p.url("ws")+metadataPath, &websocket.DialOptions{HTTPClient: p.http, HTTPHeader: h, Subprotocols: offered})
	if err != nil {
		if resp == nil {
			t.Fatal(err)
		}
		return ofHTTP(t, resp)
	}
	defer c.CloseNow()
	_, b, err := c.Read(ctx)
	if err != nil {
		var ce websocket.CloseError
		if !errors.As(err, &ce) {
			t.Fatal(err)
		}
		return outcome{code: codes.Code(ce.Code - 4000), message: ce.Reason}
	}
	o := outcome{http: http.StatusOK}
	o.seen, o.server = seenOf(t, bytes.TrimSpace(b))
	return o
}

// want checks an outcome: the code, and for REST and WebSocket the HTTP status that goes with it.
func (o outcome) want(t *testing.T, what string, code codes.Code, httpStatus int, reason string) {
	t.Helper()
	if o.code != code || o.http != 0 && o.http != httpStatus || o.reason != reason {
		t.Errorf("%s: %v, HTTP %d, reason %q (%s); want %v, %d, %q", what, o.code, o.http, o.reason, o.message, code, httpStatus, reason)
	}
}

// wantOK checks that a call succeeded.
func (o outcome) wantOK(t *testing.T, what string) {
	t.Helper()
	o.want(t, what, codes.OK, 200, "")
}

// noEnv is an environment without variables.
func noEnv(string) (string, bool) { return "", false }
