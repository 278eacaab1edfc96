// Command benchidle compares the memory that a proxy holds for an idle WebSocket with an open backend stream: transom with
// its default settings, and a null proxy (coder/websocket and grpc-go) that forwards the same bytes.
//
// Each runs as a process of its own in front of one backend process. The driver opens all sockets, has one message
// answered on each, lets them lie, reads the proxy's resident memory from /proc, and has another message answered on each
// to see that all are alive. It fails if a bare socket costs more than 30 KiB. Sockets made to carry several calls
// (transom.v1) are measured too, with one call each, which is the worst that they can do.
//
//	go run ./e2e/benchidle [-sockets N] [-settle D] -transom BINARY
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
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
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"transom/cmd/transom/demo/bank"
	bankv1 "transom/proto/bank/v1"
	wsv1 "transom/proto/transom/ws/v1"
)

// limit is what a bare socket may cost, in bytes.
const limit = 30 << 10

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "backend":
			log.Fatal(runBackend())
		case "null":
			log.Fatal(runNull(os.Args[2]))
		}
	}
	sockets := flag.Int("sockets", 5000, "open sockets")
	settle := flag.Duration("settle", 20*time.Second, "how long they lie idle before memory is read")
	binary := flag.String("transom", "bin/transom", "path of the transom binary")
	flag.Parse()
	if err := drive(*sockets, *settle, *binary); err != nil {
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

func drive(sockets int, settle time.Duration, transom string) error {
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
		each, err := measure(sockets, settle, c.args, c.protocol)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Printf("  %-13s %5.1f KiB per socket\n", c.name, each/1024)
		if c.bound > 0 && each > c.bound {
			err = errors.Join(err, fmt.Errorf("%s: %.1f KiB per socket, want at most %.0f", c.name, each/1024, c.bound/1024))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// measure runs a proxy and returns the bytes that it holds for a socket.
func measure(sockets int, settle time.Duration, args []string, protocol string) (float64, error) {
	p, err := start(args[0], args[1:]...)
	if err != nil {
		return 0, err
	}
	defer p.stop()
	var open []*socket
	defer func() {
		for _, s := range open {
			s.Close()
		}
	}()
	add := func(n int) error {
		for range n {
			s, err := dial(p.addr, protocol)
			if err != nil {
				return fmt.Errorf("socket %d: %w", len(open), err)
			}
			open = append(open, s)
		}
		return nil
	}
	if err := add(100); err != nil { // what all sockets share
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
			return 0, fmt.Errorf("socket %d is not alive: %w", i, err)
		}
	}
	return float64(after-before) / float64(sockets), nil
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
	var head []byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		var b [1]byte
		if _, err := io.ReadFull(nc, b[:]); err != nil {
			return nil, fmt.Errorf("handshake: %w, %q", err, head)
		}
		head = append(head, b[0])
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
