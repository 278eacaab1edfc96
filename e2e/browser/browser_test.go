package browser

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
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

	"github.com/chromedp/chromedp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"transom/cmd/transom/demo/bank"
	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for something that takes no time on a good day.
const patience = 60 * time.Second

// world is a bank, a gateway in front of it, and two places that serve pages.
type world struct {
	// plain and secure are host:port of the gateway; secure speaks HTTP/3 too.
	plain, secure string
	// page may call the gateway, foreign may not.
	page, foreign string
	// spki and hash are SHA-256, in base64, of the certificate's public key and of the certificate.
	spki, hash string
	// canceled gets the method of every call that the backend saw cancelled.
	canceled chan string
}

func start(t *testing.T) *world {
	t.Helper()
	w := &world{canceled: make(chan string, 64)}
	b := bank.New(bank.Config{Canceled: func(method string, _ error) {
		select {
		case w.canceled <- method:
		default:
		}
	}})
	srv := grpc.NewServer(b.ServerOptions()...)
	b.Register(srv)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })

	dist, err := filepath.Abs("../../clients/web/dist")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dist, "index.js")); err != nil {
		t.Fatalf("%v: run make web first", err)
	}
	files := http.NewServeMux()
	files.Handle("/dist/", http.StripPrefix("/dist/", http.FileServer(http.Dir(dist))))
	files.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!doctype html><title>test</title>")
	})
	page, foreign := httptest.NewServer(files), httptest.NewServer(files)
	w.page, w.foreign = strings.Replace(page.URL, "127.0.0.1", "localhost", 1), foreign.URL

	cert, key := w.certificate(t)
	set := filepath.Join(t.TempDir(), "bank.binpb")
	if err := os.WriteFile(set, bank.DescriptorSet(), 0o600); err != nil {
		t.Fatal(err)
	}
	cors := &configv1.Cors{AllowOrigins: []string{w.page}, AllowHeaders: []string{"x-mine"}, ExposeHeaders: []string{"h", "trailer-t"}}
	g, err := gateway.New(t.Context(), &configv1.Config{
		Listeners: []*configv1.Listener{
			{Address: "127.0.0.1:0", Cors: cors},
			{Address: "127.0.0.1:0", Cors: cors, Http3: true, Webtransport: true, Tls: &configv1.TLS{Certificate: cert, Key: key}},
		},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: set}}},
		Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///" + lis.Addr().String()}},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w.plain, w.secure = g.Addrs()[0].String(), g.Addrs()[1].String()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		page.Close()
		foreign.Close()
		srv.Stop()
		wg.Wait()
	})
	return w
}

// certificate makes one for 127.0.0.1 that WebTransport takes by its hash: ECDSA, valid for less than 14 days.
func (w *world) certificate(t *testing.T) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	spki, hash := sha256.Sum256(parsed.RawSubjectPublicKeyInfo), sha256.Sum256(der)
	w.spki, w.hash = base64.StdEncoding.EncodeToString(spki[:]), base64.StdEncoding.EncodeToString(hash[:])
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// open starts Chromium with a page, which ends with the test.
func open(t *testing.T, w *world, url string, flags ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	opts := append([]chromedp.ExecAllocatorOption{
		chromedp.ExecPath("chromium"), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("ignore-certificate-errors-spki-list", w.spki), chromedp.UserDataDir(t.TempDir()),
		chromedp.WSURLReadTimeout(patience),
	}, flags...)
	ctx, stopAlloc := chromedp.NewExecAllocator(t.Context(), opts...)
	ctx, stop := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the process
		stop()
		stopAlloc()
	})
	if _, err := chromedp.Run(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return ctx
}

// eval runs the body of an async function in the page and decodes what it returns into v. Its arguments are named in the
// object args.
func eval(ctx context.Context, t *testing.T, body string, args map[string]any, v any) {
	t.Helper()
	if err := tryEval(ctx, body, args, v); err != nil {
		t.Fatal(err)
	}
}

func tryEval(ctx context.Context, body string, args map[string]any, v any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b, err := json.Marshal(args)
	if err != nil {
		return err
	}
	script := fmt.Sprintf("(async (args) => { %s })(%s).then((v) => JSON.stringify(v ?? null), (e) => { throw new Error(String(e?.stack ?? e)) })", body, b)
	out, err := chromedp.Run(ctx, chromedp.Evaluate[string](script, chromedp.EvalAwaitPromise))
	if err != nil {
		return err
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal([]byte(out), v)
}

// expectCanceled waits until the backend has seen a call of method cancelled.
func expectCanceled(t *testing.T, w *world, method string) {
	t.Helper()
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	for {
		select {
		case got := <-w.canceled:
			if strings.HasSuffix(got, method) {
				return
			}
		case <-timer.C:
			t.Fatalf("the backend did not see %s cancelled", method)
		}
	}
}

// useClient is the client made in a page; args.base and args.options are its arguments.
const useClient = `
	const { Client, Code } = await import("/dist/index.js");
	const options = args.options ?? {};
	if (args.hash) {
		const value = Uint8Array.from(atob(args.hash), (c) => c.charCodeAt(0));
		options.webTransportOptions = { serverCertificateHashes: [{ algorithm: "sha-256", value }] };
	}
	const client = new Client(args.base, options);
`

// everything is what our client can do, whatever the transport.
const everything = useClient + `
	const out = {};
	// unary, with status
	const account = await client.unary("/bank.v1.Accounts/Get", { name: "customers/3/accounts/1" });
	out.unary = account.name;
	try {
		await client.unary("/bank.v1.Accounts/Get", { name: "customers/3/accounts/99" });
	} catch (e) {
		out.code = e.code;
	}
	// server stream
	out.generated = 0;
	for await (const m of client.serverStream("/bank.v1.Diagnostics/Generate", { count: "100", sizeBytes: 1000 })) out.generated += atob(m.payload).length;
	// both ways, one question after the other
	if (args.streams) {
		let ask;
		const questions = (async function* () {
			yield { room: "r", text: "" };
			for (const text of ["hi", "you", "bye"]) {
				await new Promise((resolve) => (ask = resolve));
				yield { text };
			}
		})();
		out.chat = [];
		for await (const m of client.bidi("/bank.v1.Support/Chat", questions)) {
			out.chat.push(m.text);
			ask?.();
		}
		const file = (n) => ({ contentType: "text/plain", data: btoa("x".repeat(n)) });
		out.imported = (await client.clientStream("/bank.v1.Statements/Import", [file(10), file(20), file(30)])).sizeBytes;
	}
	// metadata both ways
	let header, trailer;
	const md = await client.unary("/bank.v1.Diagnostics/Metadata", { header: { "h": "1" }, trailer: { "t": "2" } },
		{ metadata: { "x-mine": "3" }, onHeader: (h) => (header = h), onTrailer: (t) => (trailer = t) });
	out.metadata = [header["h"]?.[0], trailer["t"]?.[0], md.metadata["x-mine"]?.values?.[0]];
	// deadline
	try {
		await client.unary("/bank.v1.Diagnostics/Slow", { delay: "600s" }, { timeoutMs: 200 });
	} catch (e) {
		out.deadline = e.code;
	}
	await client.close();
	return out;
`

func checkEverything(ctx context.Context, t *testing.T, args map[string]any) {
	t.Helper()
	var out struct {
		Unary     string
		Code      int
		Generated int
		Chat      []string
		Imported  string
		Metadata  []string
		Deadline  int
	}
	eval(ctx, t, everything, args, &out)
	if out.Unary != "customers/3/accounts/1" || out.Code != 5 || out.Generated != 100_000 || fmt.Sprint(out.Metadata) != "[1 2 3]" || out.Deadline != 4 {
		t.Errorf("the page got %+v", out)
	}
	if args["streams"] == true {
		if got, want := strings.Join(out.Chat, "|"), `Hello! How can I help?|You said "hi".|You said "you".|Goodbye.`; got != want {
			t.Errorf("chat %q, want %q", got, want)
		}
		if out.Imported != "60" {
			t.Errorf("imported %q bytes, want 60", out.Imported)
		}
	}
}

func TestClient(t *testing.T) {
	w := start(t)
	ctx := open(t, w, w.page)
	for _, tc := range []struct {
		name, base string
		options    map[string]any
		streams    bool
	}{
		{"WebSocket", "http://" + w.plain, map[string]any{"transports": []string{"websocket"}}, true},
		{"SecureWebSocket", "https://" + w.secure, map[string]any{"transports": []string{"websocket"}}, true},
		{"Fetch", "https://" + w.secure, map[string]any{"transports": []string{"fetch"}}, false},
		{"WebTransport", "https://" + w.secure, map[string]any{"transports": []string{"webtransport"}}, true},
		{"Default", "http://" + w.plain, nil, true},
		{"DefaultSecure", "https://" + w.secure, nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			checkEverything(ctx, t, map[string]any{"base": tc.base, "options": tc.options, "streams": tc.streams, "hash": w.hash})
		})
		t.Run(tc.name+"Abort", func(t *testing.T) {
			args := map[string]any{"base": tc.base, "options": tc.options, "hash": w.hash}
			const slow = useClient + `
				const abort = new AbortController();
				const call = client.unary("/bank.v1.Diagnostics/Slow", { delay: "600s" }, { signal: abort.signal });
				setTimeout(() => abort.abort(), 200);
				try { await call } catch (e) { return e.code }
			`
			var code int
			if eval(ctx, t, slow, args, &code); code != 1 {
				t.Errorf("the aborted call ended with %d, want 1", code)
			}
			expectCanceled(t, w, "/Slow")
			// Leaving a loop cancels too.
			const watch = useClient + `
				for await (const m of client.serverStream("/bank.v1.Diagnostics/Generate", { count: "100000000", sizeBytes: 10 })) break;
			`
			eval(ctx, t, watch, args, nil)
			expectCanceled(t, w, "/Generate")
		})
	}
}

// A fetch that is aborted ends the backend's call.
func TestAbortController(t *testing.T) {
	w := start(t)
	ctx := open(t, w, w.page)
	for _, base := range []string{"http://" + w.plain, "https://" + w.secure} {
		var name string
		eval(ctx, t, `
			const abort = new AbortController();
			setTimeout(() => abort.abort(), 200);
			try { await fetch(args.base + "/v1/diagnostics/slow?delay=600s", { signal: abort.signal }) } catch (e) { return e.name }
		`, map[string]any{"base": base}, &name)
		if name != "AbortError" {
			t.Errorf("%s: the fetch ended with %s", base, name)
		}
		expectCanceled(t, w, "/Slow")
	}
}

// bareChat talks on a bare WebSocket and tells the answers and the close.
const bareChat = `
	const ws = new WebSocket(args.base.replace(/^http/, "ws") + (args.path ?? "/bank.v1.Support/Chat"), args.protocols ?? []);
	const out = { texts: [] };
	return await new Promise((resolve) => {
		ws.onopen = () => { out.protocol = ws.protocol; ws.send(JSON.stringify({ room: "r", text: "" })) };
		const say = ["hi", args.last];
		ws.onmessage = (e) => {
			out.texts.push(JSON.parse(e.data).text);
			const text = say.shift();
			if (text !== undefined) ws.send(text === "" ? "" : JSON.stringify({ text }));
		};
		ws.onclose = (e) => { out.code = e.code; out.reason = e.reason; resolve(out) };
	});
`

type closed struct {
	Texts    []string
	Protocol string
	Code     int
	Reason   string
}

func TestBareWebSocket(t *testing.T) {
	w := start(t)
	ctx := open(t, w, w.page)
	for _, tc := range []struct {
		last, texts string
		protocols   []string
		protocol    string
		code        int
		reason      string
	}{
		{"bye", `Hello! How can I help?|You said "hi".|Goodbye.`, nil, "", 1000, ""},
		{"", `Hello! How can I help?|You said "hi".`, []string{"bearer", "secret.token"}, "bearer", 1000, ""},
		{"fail", `Hello! How can I help?|You said "hi".`, nil, "", 4014, "the help desk has gone home"},
	} {
		var out closed
		eval(ctx, t, bareChat, map[string]any{"base": "https://" + w.secure, "last": tc.last, "protocols": tc.protocols}, &out)
		if strings.Join(out.Texts, "|") != tc.texts || out.Protocol != tc.protocol || out.Code != tc.code || out.Reason != tc.reason {
			t.Errorf("last %q: %+v", tc.last, out)
		}
	}
}

// Pages of foreign origins can neither open a WebSocket nor read an answer; those that are listed can.
func TestOrigins(t *testing.T) {
	w := start(t)
	for origin, allowed := range map[string]bool{w.page: true, w.foreign: false} {
		ctx := open(t, w, origin)
		for _, protocols := range [][]string{nil, {"transom.v1"}, {"grpc-websockets"}} {
			var opened bool
			eval(ctx, t, `
				const ws = new WebSocket(args.base + "/bank.v1.Support/Chat", args.protocols);
				return await new Promise((resolve) => {
					ws.onopen = () => { ws.close(); resolve(true) };
					ws.onerror = () => resolve(false);
				});
			`, map[string]any{"base": "ws://" + w.plain, "protocols": append([]string{}, protocols...)}, &opened)
			// A bare socket opens when its call begins, which here waits for nothing.
			if opened != allowed {
				t.Errorf("%s, subprotocols %v: opened %v, want %v", origin, protocols, opened, allowed)
			}
		}
		var read string
		eval(ctx, t, `
			try { return (await (await fetch(args.base + "/v1/accounts/7")).json()).name } catch (e) { return e.name }
		`, map[string]any{"base": "http://" + w.plain}, &read)
		if want := map[bool]string{true: "customers/3/accounts/1", false: "TypeError"}[allowed]; read != want {
			t.Errorf("%s: fetch gave %q, want %q", origin, read, want)
		}
	}
}

// fetch over HTTP/2 and HTTP/3, as the browser itself names them.
func TestHTTPVersions(t *testing.T) {
	w := start(t)
	for proto, flag := range map[string]chromedp.ExecAllocatorOption{
		"h2": chromedp.Flag("disable-quic", true), "h3": chromedp.Flag("origin-to-force-quic-on", w.secure),
	} {
		ctx := open(t, w, "https://"+w.secure+"/healthz", flag)
		var out struct {
			Name  string
			Proto []string
			Lines int
		}
		eval(ctx, t, `
			const got = await (await fetch("/v1/accounts/7")).json();
			const lines = (await (await fetch("/v1/diagnostics/generate?count=1000&size_bytes=100")).text()).trim().split("\n").length;
			const proto = performance.getEntriesByType("resource").filter((e) => e.initiatorType === "fetch").map((e) => e.nextHopProtocol);
			return { name: got.name, proto, lines };
		`, nil, &out)
		if out.Name != "customers/3/accounts/1" || out.Lines != 1000 || strings.Join(out.Proto, " ") != proto+" "+proto {
			t.Errorf("%s: the page got %+v", proto, out)
		}
	}
}

func TestEventSource(t *testing.T) {
	w := start(t)
	ctx := open(t, w, "https://"+w.secure+"/healthz")
	var out []string
	eval(ctx, t, `
		const es = new EventSource("/v1/diagnostics/generate?count=3&size_bytes=1");
		const out = [];
		return await new Promise((resolve) => {
			es.onmessage = (e) => out.push(JSON.parse(e.data).sequence ?? "0");
			es.addEventListener("end", () => { es.close(); resolve(out) });
		});
	`, nil, &out)
	if len(out) != 3 {
		t.Errorf("events %q, want 3", out)
	}
}
