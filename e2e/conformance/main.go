// Command conformance is the server under test of Connect's conformance suite (connectrpc.com/conformance): transom in
// front of one of the suite's own servers, spoken to by gRPC. It reads one ServerCompatRequest from standard input, starts
// the backend that -backend names and a gateway as the request wants it, and answers where the gateway listens. SIGTERM
// ends it.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

func main() {
	backend := flag.String("backend", "", "the suite's server to put behind the gateway: a path to its binary")
	protos := flag.String("protos", "", "the directory that the suite's .proto files are under")
	client := flag.Bool("client", false, "be the suite's client under test instead, by the client that carries calls to backends")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if *client {
		if err := runClient(ctx, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(ctx, *backend, *protos, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// The enum numbers that the launcher itself uses (connectrpc/conformance/v1/config.proto).
const (
	protocolGRPC = 2
	httpVersion2 = 2
	httpVersion3 = 3
)

// compatRequest is what of a ServerCompatRequest matters.
type compatRequest struct {
	httpVersion  uint64
	useTLS       bool
	receiveLimit uint64
	cert, key    []byte
	clientCert   []byte
}

// run serves until ctx ends.
func run(ctx context.Context, backend, protos string, in io.Reader, out io.Writer) error {
	b, err := readDelimited(in)
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	req, err := parseRequest(b)
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	dir, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	addr, stop, err := startBackend(ctx, backend)
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	defer stop()
	cfg, err := config(req, addr, protos, dir)
	if err != nil {
		return err
	}
	g, err := gateway.New(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- g.Run(ctx) }()
	at := g.Addrs()[0]
	answer := protowire.AppendTag(nil, 1, protowire.BytesType)
	answer = protowire.AppendString(answer, at.IP.String())
	answer = protowire.AppendTag(answer, 2, protowire.VarintType)
	answer = protowire.AppendVarint(answer, uint64(at.Port))
	if req.useTLS {
		answer = protowire.AppendTag(answer, 3, protowire.BytesType)
		answer = protowire.AppendBytes(answer, req.cert)
	}
	if err := writeDelimited(out, answer); err != nil {
		return err
	}
	return <-served
}

// config is a gateway for req in front of the backend at addr.
func config(req compatRequest, addr, protos, dir string) (*configv1.Config, error) {
	l := &configv1.Listener{Address: "127.0.0.1:0", Http3: req.httpVersion == httpVersion3}
	if req.useTLS {
		l.Tls = &configv1.TLS{Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
		if err := os.WriteFile(l.Tls.Certificate, req.cert, 0o600); err != nil {
			return nil, err
		}
		if err := os.WriteFile(l.Tls.Key, req.key, 0o600); err != nil {
			return nil, err
		}
		if len(req.clientCert) > 0 {
			l.Tls.ClientCa = filepath.Join(dir, "client.pem")
			if err := os.WriteFile(l.Tls.ClientCa, req.clientCert, 0o600); err != nil {
				return nil, err
			}
		}
	}
	return &configv1.Config{
		Listeners: []*configv1.Listener{l},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_Proto{Proto: &configv1.DescriptorSource_ProtoFiles{
			Roots: []string{protos}, Files: []string{"connectrpc/conformance/v1/service.proto"},
		}}}},
		Clusters: map[string]*configv1.Cluster{"backend": {
			Target: "static:///" + addr, Lb: &configv1.LoadBalancing{Policy: "round_robin"}, MessageBytes: 64 << 20,
		}},
		// The suite checks that a backend sees the client's timeout and no other.
		Policies: []*configv1.Policy{{Selector: []string{"*"}, Timeout: durationpb.New(0), StreamTimeout: durationpb.New(0)}},
		Limits:   &configv1.Limits{MessageBytes: uint32(min(req.receiveLimit, 1<<30))},
		Drain:    &configv1.Drain{Timeout: durationpb.New(time.Second)},
	}, nil
}

// startBackend runs a server of the suite for gRPC over plain-text HTTP/2 and returns its address. stop ends it.
func startBackend(ctx context.Context, path string) (addr string, stop func(), err error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	req := protowire.AppendTag(nil, 1, protowire.VarintType)
	req = protowire.AppendVarint(req, protocolGRPC)
	req = protowire.AppendTag(req, 2, protowire.VarintType)
	req = protowire.AppendVarint(req, httpVersion2)
	// The gateway limits what clients send; the backend must not be the one to.
	req = protowire.AppendTag(req, 6, protowire.VarintType)
	req = protowire.AppendVarint(req, 64<<20)
	if err = writeDelimited(stdin, req); err != nil {
		return "", nil, err
	}
	_ = stdin.Close()
	b, err := readDelimited(stdout)
	if err != nil {
		return "", nil, err
	}
	var host string
	var port uint64
	err = eachField(b, func(num protowire.Number, v []byte, n uint64) error {
		switch num {
		case 1:
			host = string(v)
		case 2:
			port = n
		}
		return nil
	})
	return net.JoinHostPort(host, strconv.FormatUint(port, 10)), stop, err
}

func parseRequest(b []byte) (req compatRequest, err error) {
	err = eachField(b, func(num protowire.Number, v []byte, n uint64) error {
		switch num {
		case 2:
			req.httpVersion = n
		case 4:
			req.useTLS = n != 0
		case 5:
			req.clientCert = v
		case 6:
			req.receiveLimit = n
		case 7:
			return eachField(v, func(num protowire.Number, v []byte, _ uint64) error {
				switch num {
				case 1:
					req.cert = v
				case 2:
					req.key = v
				}
				return nil
			})
		}
		return nil
	})
	return req, err
}

// eachField calls f for each field of a message that is a varint or length-delimited.
func eachField(b []byte, f func(num protowire.Number, v []byte, n uint64) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var v []byte
		var u uint64
		switch typ {
		case protowire.VarintType:
			u, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v, u); err != nil {
			return err
		}
	}
	return nil
}

// readDelimited reads a message behind its length in four bytes.
func readDelimited(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > 1<<20 {
		return nil, errors.New("message of more than 1 MiB")
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeDelimited(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}
