// Command benchidle compares the memory that a proxy holds for what lies idle: a WebSocket with an open backend stream, and an
// HTTP connection between two requests, of HTTP/1.1 and of HTTP/3. It runs transom with its default settings, and null proxies
// (coder/websocket, net/http or quic-go, and grpc-go) that forward the same bytes.
//
// Each runs as a process of its own in front of one backend process. The driver opens all sockets, has one message
// answered on each, lets them lie, reads the proxy's resident memory from /proc, and has another message answered on each
// to see that all are alive. It fails if a bare socket costs more than 30 KiB, or an HTTP connection more than 1.1 times the
// null proxy's. Sockets made to carry several calls (transom.v1) are measured too, with one call each, which is the worst that
// they can do.
//
//	go run ./e2e/benchidle [-sockets N] [-connections N] [-quic N] [-settle D] -transom BINARY
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"transom/cmd/transom/demo"
	"transom/cmd/transom/demo/bank"
	bankv1 "transom/proto/bank/v1"
	wsv1 "transom/proto/transom/ws/v1"
)

// limit is what a bare socket may cost, in bytes; ratio is what an HTTP connection may cost, of the null's.
const (
	limit = 30 << 10
	ratio = 1.1
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "backend":
			log.Fatal(runBackend())
		case "null":
			log.Fatal(runNull(os.Args[2]))
		case "null-http":
			log.Fatal(runNullHTTP(os.Args[2]))
		case "null-quic":
			log.Fatal(runNullQUIC(os.Args[2], os.Args[3], os.Args[4]))
		}
	}
	sockets := flag.Int("sockets", 5000, "open sockets")
	connections := flag.Int("connections", 10000, "idle HTTP connections")
	quics := flag.Int("quic", 2000, "idle HTTP/3 connections")
	settle := flag.Duration("settle", 20*time.Second, "how long they lie idle before memory is read")
	binary := flag.String("transom", "bin/transom", "path of the transom binary")
	flag.Parse()
	if err := drive(*sockets, *connections, *quics, *settle, *binary); err != nil {
		log.Fatal(err)
	}
}

// runBackend serves the bank.
func runBackend() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	b := bank.New(bank.Config{})
	srv := grpc.NewServer(b.ServerOptions()...)
	b.Register(srv)
	fmt.Printf("listening address=%s\n", l.Addr())
	return srv.Serve(l)
}

// bytesCodec passes messages through as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }
func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// runNull serves a proxy of the same shape that does nothing but forward: one socket, one stream, one goroutine each way.
func runNull(upstream string) error {
	cc, err := grpc.NewClient(upstream, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{})))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("listening address=%s\n", l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer ws.CloseNow()
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, r.URL.Path)
		if err != nil {
			return
		}
		go func() {
			defer cancel()
			for {
				_, b, err := ws.Read(ctx)
				if err != nil || stream.SendMsg(b) != nil {
					return
				}
			}
		}()
		for {
			var b []byte
			if stream.RecvMsg(&b) != nil || ws.Write(ctx, websocket.MessageBinary, b) != nil {
				return
			}
		}
	}))
}

// runNullHTTP serves a proxy of HTTP: a request's body is the message of a unary call, and the answer's.
func runNullHTTP(upstream string) error {
	cc, err := grpc.NewClient(upstream, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{})))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("listening address=%s\n", l.Addr())
	return http.Serve(l, forward(cc))
}

// runNullQUIC is runNullHTTP over HTTP/3. All connections are of one http3.Server.
func runNullQUIC(upstream, certificate, key string) error {
	cc, err := grpc.NewClient(upstream, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{})))
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("listening address=%s\n", l.LocalAddr())
	srv := &http3.Server{
		TLSConfig:  http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}),
		QUICConfig: &quic.Config{MaxIdleTimeout: time.Hour}, Handler: forward(cc),
	}
	return srv.Serve(l)
}

// forward makes a unary call of each request.
func forward(cc *grpc.ClientConn) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in, err := io.ReadAll(r.Body)
		var out []byte
		if err == nil {
			err = cc.Invoke(r.Context(), r.URL.Path, in, &out)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		_, _ = w.Write(out)
	})
}

// proc is a process under measurement.
type proc struct {
	cmd  *exec.Cmd
	addr string
}

var listening = regexp.MustCompile(`listening address=(\S+)`)

// start runs a program that says where it listens.
func start(name string, args ...string) (*proc, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &proc{cmd: exec.Command(name, args...)}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	w.Close()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			p.addr = m[1]
			go func() { _, _ = io.Copy(io.Discard, r) }()
			return p, nil
		}
		fmt.Fprintln(os.Stderr, lines.Text())
	}
	return nil, fmt.Errorf("%s %v ended before it listened", name, args)
}

func (p *proc) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// rss is the resident memory in bytes.
func (p *proc) rss() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	return n << 10, err
}

func drive(sockets, connections, quics int, settle time.Duration, transom string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	back, err := start(self, "backend")
	if err != nil {
		return err
	}
	defer back.stop()
	dir, err := os.MkdirTemp("", "benchidle")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	set := filepath.Join(dir, "bank.binpb")
	if err := os.WriteFile(set, bank.DescriptorSet(), 0o600); err != nil {
		return err
	}
	serve := []string{"serve", "--listen", "127.0.0.1:0", "--descriptors", set, "--upstream", "static:///" + back.addr}
	fmt.Printf("%d idle WebSockets, each with an open stream to the backend\n", sockets)
	for _, c := range []struct {
		name     string
		args     []string
		protocol string
		bound    float64
	}{
		{"null", []string{self, "null", back.addr}, "", 0},
		{"transom bare", append([]string{transom}, serve...), "", limit},
		{"transom.v1", append([]string{transom}, serve...), "transom.v1", 0},
	} {
		each, err := measure(sockets, settle, c.args, func(addr string) (client, error) { return dial(addr, c.protocol) })
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Printf("  %-13s %5.1f KiB per socket\n", c.name, each/1024)
		if c.bound > 0 && each > c.bound {
			return fmt.Errorf("%s: %.1f KiB per socket, want at most %.0f", c.name, each/1024, c.bound/1024)
		}
	}
	fmt.Printf("%d idle HTTP/1.1 connections\n", connections)
	var each [2]float64
	for i, args := range [][]string{{self, "null-http", back.addr}, append([]string{transom}, serve...)} {
		if each[i], err = measure(connections, settle, args, dialHTTP); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
	}
	fmt.Printf("  null %.1f KiB, transom %.1f KiB per connection: %.2f\n", each[0]/1024, each[1]/1024, each[1]/each[0])
	if each[1] > ratio*each[0] {
		return fmt.Errorf("an idle HTTP connection costs %.2f of the null proxy's, want at most %.2f", each[1]/each[0], ratio)
	}
	return driveQUIC(quics, settle, self, transom, set, back.addr)
}

// driveQUIC measures idle HTTP/3 connections. Most of what they hold is quic-go's and crypto/tls's.
func driveQUIC(connections int, settle time.Duration, self, transom, set, backend string) error {
	dir, err := os.MkdirTemp("", "benchidle")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cert, key, err := demo.SelfSigned(dir)
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer udp.Close()
	tr := &quic.Transport{Conn: udp}
	defer tr.Close()
	fmt.Printf("%d idle HTTP/3 connections\n", connections)
	var each [2]float64
	for i, args := range [][]string{
		{self, "null-quic", backend, cert, key},
		{transom, "serve", "--listen-tls", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--http3", "--descriptors", set, "--upstream", "static:///" + backend},
	} {
		if each[i], err = measure(connections, settle, args, func(addr string) (client, error) { return dialQUIC(tr, addr) }); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
	}
	fmt.Printf("  null %.1f KiB, transom %.1f KiB per connection: %.2f\n", each[0]/1024, each[1]/1024, each[1]/each[0])
	return nil
}

// quicConn is an HTTP/3 client of one connection.
type quicConn struct {
	*quic.Conn
	http *http3.ClientConn
	url  string
}

// dialQUIC opens a connection and makes a call.
func dialQUIC(tr *quic.Transport, addr string) (client, error) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	tc := http3.ConfigureTLSConfig(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	conn, err := tr.Dial(context.Background(), to, tc, &quic.Config{MaxIdleTimeout: time.Hour})
	if err != nil {
		return nil, err
	}
	c := quicConn{conn, (&http3.Transport{}).NewClientConn(conn), "https://" + addr + bankv1.Accounts_Get_FullMethodName}
	return c, c.chat()
}

// chat makes a unary call, in Connect's form, and reads the answer.
func (c quicConn) chat() error {
	msg, err := proto.Marshal(&bankv1.GetAccountRequest{Name: "customers/3/accounts/1"})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, c.url, bytes.NewReader(msg))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/proto")
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answer %s, %w", resp.Status, err)
	}
	return nil
}

// Close implements client.
func (c quicConn) Close() error { return c.CloseWithError(0x100, "") }

// client is an open connection of the driver.
type client interface {
	// chat has one message answered.
	chat() error
	Close() error
}

// measure runs a proxy and returns the bytes that it holds for a connection.
func measure(sockets int, settle time.Duration, args []string, dial func(addr string) (client, error)) (float64, error) {
	p, err := start(args[0], args[1:]...)
	if err != nil {
		return 0, err
	}
	defer p.stop()
	var open []client
	defer func() {
		for _, s := range open {
			s.Close()
		}
	}()
	add := func(n int) error {
		for range n {
			s, err := dial(p.addr)
			if err != nil {
				return fmt.Errorf("connection %d: %w", len(open), err)
			}
			open = append(open, s)
		}
		return nil
	}
	if err := add(100); err != nil { // what all share
		return 0, err
	}
	time.Sleep(settle / 4)
	before, err := p.rss()
	if err != nil {
		return 0, err
	}
	if err := add(sockets); err != nil {
		return 0, err
	}
	time.Sleep(settle)
	after, err := p.rss()
	if err != nil {
		return 0, err
	}
	for i, s := range open {
		if err := s.chat(); err != nil {
			return 0, fmt.Errorf("connection %d is not alive: %w", i, err)
		}
	}
	return float64(after-before) / float64(sockets), nil
}

// httpConn is an HTTP/1.1 client without goroutine or buffer.
type httpConn struct{ net.Conn }

// dialHTTP opens a connection and makes a call.
func dialHTTP(addr string) (client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(time.Now().Add(10 * time.Minute))
	c := httpConn{nc}
	return c, c.chat()
}

var contentLength = regexp.MustCompile(`(?i)\r\ncontent-length: (\d+)\r\n`)

// chat makes a unary call, in Connect's form, and reads the answer.
func (c httpConn) chat() error {
	msg, err := proto.Marshal(&bankv1.GetAccountRequest{Name: "customers/3/accounts/1"})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/proto\r\nContent-Length: %d\r\n\r\n%s",
		bankv1.Accounts_Get_FullMethodName, len(msg), msg)
	if err != nil {
		return err
	}
	head, err := readHead(c)
	if err != nil {
		return err
	}
	m := contentLength.FindSubmatch(head)
	if m == nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("answer %q", head)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, c, n)
	return err
}

// readHead reads up to the empty line and no further.
func readHead(r io.Reader) ([]byte, error) {
	var head []byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		var b [1]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, fmt.Errorf("%w after %q", err, head)
		}
		head = append(head, b[0])
	}
	return head, nil
}

// socket is a WebSocket client without goroutine or buffer.
type socket struct {
	net.Conn
	protocol string
	begun    bool
}

// dial opens a socket and a chat.
func dial(addr, protocol string) (*socket, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &socket{Conn: nc, protocol: protocol}
	header := ""
	if protocol != "" {
		header = "Sec-WebSocket-Protocol: " + protocol + "\r\n"
	}
	_ = nc.SetDeadline(time.Now().Add(10 * time.Minute))
	fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n", bankv1.Support_Chat_FullMethodName, header)
	head, err := readHead(nc)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101")) {
		return nil, fmt.Errorf("handshake: %q", head)
	}
	return s, s.chat()
}

// chat says something and waits for the answer.
func (s *socket) chat() error {
	msg, err := proto.Marshal(&bankv1.ChatMessage{Room: "bench", Text: "hello"})
	if err != nil {
		return err
	}
	if s.protocol != "" {
		f := &wsv1.Frame{Id: 1, Binary: msg}
		if !s.begun {
			f.Open = &wsv1.Open{Method: bankv1.Support_Chat_FullMethodName}
		}
		if msg, err = proto.Marshal(f); err != nil {
			return err
		}
		s.begun = true
	}
	if _, err := s.Write(append([]byte{0x82, 0x80 | byte(len(msg)), 0, 0, 0, 0}, msg...)); err != nil {
		return err
	}
	for {
		var h [2]byte
		if _, err := io.ReadFull(s, h[:]); err != nil {
			return err
		}
		n := int(h[1])
		if n == 126 {
			var l uint16
			if err := binary.Read(s, binary.BigEndian, &l); err != nil {
				return err
			}
			n = int(l)
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(s, p); err != nil {
			return err
		}
		switch {
		case h[0] == 0x88:
			return fmt.Errorf("closed: %q", p)
		case h[0] == 0x89: // a ping
			if _, err := s.Write(append([]byte{0x8a, 0x80 | byte(n), 0, 0, 0, 0}, p...)); err != nil {
				return err
			}
		case bytes.Contains(p, []byte("hello")):
			return nil
		}
	}
}
