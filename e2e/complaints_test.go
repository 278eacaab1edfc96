package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/cmd/transom/demo/bank"
	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

// TestStreamsOutliveTimeouts has streams of every protocol that pause for longer than each time limit there is for requests: of the
// header, of bodies, of readers, of idle connections and of unary calls. None of them is a limit of a stream.
func TestStreamsOutliveTimeouts(t *testing.T) {
	b := startBank(t, bank.Config{})
	a := process.NewAuthority(t)
	config := filepath.Join(t.TempDir(), "transom.yaml")
	process.Replace(t, config, fmt.Appendf(nil, `listeners:
  - {address: "127.0.0.1:0"}
  - {address: "127.0.0.1:0", tls: {certificate: %[1]s, key: %[1]s}, http3: true}
descriptors: [{file: %[2]s}]
clusters: {bank: {target: "static:///%[3]s"}}
limits: {header_timeout: 1s, body_idle_timeout: 1s, write_idle_timeout: 1s, idle_timeout: 1s}
policies: [{selector: "*", timeout: 1s}]
`, certificate(t, a), descriptorSet(t), b.addr))
	p := &proxy{process.Start(t, 2, "serve", "--config", config), a.File, a.Pool}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()

	direct, err := grpc.NewClient("passthrough:///"+b.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	const account, pause, pauses = "customers/3/accounts/1", 1500 * time.Millisecond, 3
	clock, err := bankv1.NewAccountsClient(direct).Watch(ctx, &bankv1.WatchRequest{Name: account, OnlyNew: true, Interval: durationpb.New(pause), Count: pauses})
	if err != nil {
		t.Fatal(err)
	}

	// What each stream does between pauses.
	exchanges := map[string]func() error{}
	chat, err := bankv1.NewSupportClient(dial(t, p, false)).Chat(ctx)
	if err != nil {
		t.Fatal(err)
	}
	exchanges["gRPC"] = func() error {
		if err := chat.Send(&bankv1.ChatMessage{Author: "Ada", Text: "still here"}); err != nil {
			return err
		}
		_, err := chat.Recv()
		return err
	}
	ws, _, err := websocket.Dial(ctx, "ws://"+p.Plain+"/v1/support/chat", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	exchanges["WebSocket"] = func() error {
		if err := ws.Write(ctx, websocket.MessageText, []byte(`{"author":"Ada","text":"still here"}`)); err != nil {
			return err
		}
		_, _, err := ws.Read(ctx)
		return err
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	for version := range versions {
		c, base := client(t, p, version)
		if tr, ok := c.Transport.(*http3.Transport); ok {
			// A client keeps the connection alive while it waits for an answer (RFC 9114 section 5.1), which quic-go does by half of the
			// time limits of both sides, but takes none of the server's for less than 5 s.
			tr.QUICConfig = &quic.Config{KeepAlivePeriod: 300 * time.Millisecond}
		}
		pr, pw := io.Pipe()
		defer pw.Close()
		var lines *bufio.Scanner
		exchanges["REST over "+version] = func() error {
			wrote := make(chan error, 1)
			go func() {
				_, err := io.WriteString(pw, `{"author":"Ada","text":"still here"}`+"\n")
				wrote <- err
			}()
			if lines == nil {
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/support/chat", pr)
				if err != nil {
					return err
				}
				req.Header.Set("Content-Type", "application/json")
				resp, err := c.Do(req)
				if err != nil {
					return err
				}
				t.Cleanup(func() { _ = resp.Body.Close() })
				lines = bufio.NewScanner(resp.Body)
			}
			if !lines.Scan() {
				return fmt.Errorf("the answer ends: %w", lines.Err())
			}
			if strings.Contains(lines.Text(), "@error") {
				return errors.New(lines.Text())
			}
			return <-wrote
		}
		watching.Go(func() { // a stream of the server's alone
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/%s/transactions:watch?onlyNew=true&interval=%v&count=%d", base, account, pause, pauses), nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Errorf("watch over %s: %v", version, err)
				return
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || strings.Count(string(body), "\n") != pauses || strings.Contains(string(body), "@error") {
				t.Errorf("watch over %s: %s, %v", version, body, err)
			}
		})
	}
	for i := range pauses + 1 {
		for name, exchange := range exchanges {
			if err := exchange(); err != nil {
				t.Fatalf("%s, after %d pauses of %v: %v", name, i, pause, err)
			}
		}
		if i < pauses {
			if _, err := clock.Recv(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestNoEmptyTrailers looks at the frames of answers: a block of trailers is there where native gRPC has something to say in it, and
// nowhere else. Browsers hang on empty ones, and an answer that is a status only has one block.
func TestNoEmptyTrailers(t *testing.T) {
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	message := []byte{0, 0, 0, 0, 0}
	for _, tc := range []struct {
		name, path, contentType string
		body                    []byte
		want                    string // frames: H is HEADERS, D DATA of any number, $ the end of the stream
	}{
		{"gRPC", "/bank.v1.Diagnostics/Echo", "application/grpc", message, "HDH$"},
		{"gRPC, refused", "/bank.v1.Diagnostics/Nope", "application/grpc", message, "H$"},
		{"gRPC, an error of the backend's", "/bank.v1.Diagnostics/Fail", "application/grpc", failWith(9), "H$"},
		{"gRPC-Web", "/bank.v1.Diagnostics/Echo", "application/grpc-web+proto", message, "HD$"},
		{"gRPC-Web, refused", "/bank.v1.Diagnostics/Nope", "application/grpc-web+proto", message, "H$"},
		{"gRPC-Web, an error of the backend's", "/bank.v1.Diagnostics/Fail", "application/grpc-web+proto", failWith(9), "H$"},
		{"Connect", "/bank.v1.Diagnostics/Echo", "application/json", []byte("{}"), "HD$"},
		{"Connect, an error of the backend's", "/bank.v1.Diagnostics/Fail", "application/json", []byte(`{"code":9}`), "HD$"},
		{"REST", "/v1/diagnostics/echo", "application/json", []byte("{}"), "HD$"},
		{"REST, refused", "/v1/diagnostics/nope", "application/json", []byte("{}"), "HD$"},
		{"REST, without an answer's body", "/v1/diagnostics/echo", "text/plain", nil, "HD$"},
	} {
		got, err := framesOf(p.Plain, tc.path, tc.contentType, tc.body)
		if err != nil || got != tc.want {
			t.Errorf("%s: %s, %v; want %s", tc.name, got, err, tc.want)
		}
		if tc.contentType == "application/grpc" {
			continue
		}
		c, base := client(t, p, "h3")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+tc.path, bytes.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", tc.contentType)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.Trailer != nil { // an empty block makes it an empty map
			t.Errorf("%s over HTTP/3: trailers %v, %v", tc.name, resp.Trailer, err)
		}
	}
}

// failWith is a framed FailRequest of that code.
func failWith(code byte) []byte { return []byte{0, 0, 0, 0, 2, 8, code} }

// framesOf makes one request over HTTP/2 and tells the frames of the answer. Other than of native gRPC's, no block of headers may be
// empty.
func framesOf(addr, path, contentType string, body []byte) (string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "localhost"}, {"content-type", contentType}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			return "", err
		}
	}
	_, err = io.WriteString(c, http2.ClientPreface)
	for _, write := range []func() error{
		func() error { return err },
		func() error { return f.WriteSettings() },
		func() error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
		},
		func() error { return f.WriteData(1, true, body) },
	} {
		if err := write(); err != nil {
			return "", err
		}
	}
	var got []byte
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return string(got), err
		}
		if fr.Header().StreamID != 1 {
			continue
		}
		ended := false
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			if len(fr.Fields) == 0 {
				return string(got), errors.New("an empty block of headers")
			}
			got, ended = append(got, 'H'), fr.StreamEnded()
		case *http2.DataFrame:
			if !bytes.HasSuffix(got, []byte("D")) {
				got = append(got, 'D')
			}
			ended = fr.StreamEnded()
		case *http2.RSTStreamFrame:
			return string(got), fmt.Errorf("reset: %v", fr.ErrCode)
		}
		if ended {
			return string(got) + "$", nil
		}
	}
}

// TestActivatedHTTP3: a listener with HTTP/3 that is given its TCP socket only, by systemd, binds the one of UDP itself.
func TestActivatedHTTP3(t *testing.T) {
	b := startBank(t, bank.Config{})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	f, err := lis.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := process.NewAuthority(t)
	cert := certificate(t, a)
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, process.Program(t), "serve", "--listen-tls", lis.Addr().String(), "--http3",
		"--tls-cert", cert, "--tls-key", cert, "--descriptors", descriptorSet(t), "--upstream", "static:///"+b.addr)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
	p := &proxy{process.Run(t, 1, cmd), a.File, a.Pool}
	for _, version := range []string{"h2", "h3"} {
		c, base := client(t, p, version)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/v1/customers/3/accounts/1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Proto != versions[version] || p.Secure != lis.Addr().String() {
			t.Errorf("%s at %s: %s by %s", version, p.Secure, resp.Status, resp.Proto)
		}
	}
}
