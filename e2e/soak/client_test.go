package soak

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/quic-go/quic-go/http3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/e2e/process"
	bankv1 "transom/proto/bank/v1"
)

// client calls methods over one protocol. An error that is a gRPC status is an answer; any other says that there was none,
// or that it is none of the protocol. One call at a time.
type client struct {
	name string
	// open begins a call. transom is to end it after timeout if the protocol can say so, and else by its policy; ctx is much
	// longer, so that its end is transom's fault.
	open func(ctx context.Context, method string, timeout time.Duration) (stream, error)
	// unary makes a unary call; nil if it is a stream like all others.
	unary func(ctx context.Context, method string, in, out proto.Message, timeout time.Duration) error
	close func()
}

// stream is one call. Recv returns io.EOF at its good end.
type stream interface {
	Send(m proto.Message) error
	CloseSend() error
	Recv(m proto.Message) error
	// Close leaves the call, whether it has ended or not.
	Close()
}

// The methods that are called.
const (
	transfer = bankv1.Accounts_Transfer_FullMethodName
	deposit  = bankv1.Accounts_Deposit_FullMethodName
	chat     = bankv1.Support_Chat_FullMethodName
	echo     = bankv1.Diagnostics_Echo_FullMethodName
	generate = bankv1.Diagnostics_Generate_FullMethodName
)

// clients make a client of each protocol and HTTP version.
func clients(p *process.Process, tc *tls.Config) []func() *client {
	var all []func() *client
	for _, version := range []string{"h1", "h2c", "h2", "h3"} {
		for name, open := range map[string]func(*http.Client, string) *client{"REST": restClient, "gRPC-Web": webClient, "Connect": connectClient} {
			all = append(all, func() *client {
				hc, base, closing := httpClient(p, tc, version)
				c := open(hc, base)
				c.name, c.close = name+" "+version, closing
				return c
			})
		}
	}
	for _, secure := range []bool{false, true} {
		all = append(all,
			func() *client { return grpcClient(p, tc, secure) },
			func() *client { return bareClient(p, tc, secure) },
			func() *client { return sessionClient(p, tc, secure) },
		)
	}
	return all
}

// httpClient is a client of one HTTP version, with connections of its own.
func httpClient(p *process.Process, tc *tls.Config, version string) (c *http.Client, base string, closing func()) {
	if version == "h3" {
		tr := &http3.Transport{TLSClientConfig: tc.Clone()}
		return &http.Client{Transport: tr}, "https://" + p.Secure, func() { tr.Close() }
	}
	tr, closing := transport(tc)
	tr.Protocols = &http.Protocols{}
	base = "http://" + p.Plain
	switch version {
	case "h1":
		tr.Protocols.SetHTTP1(true)
	case "h2c":
		tr.Protocols.SetUnencryptedHTTP2(true)
	case "h2":
		tr.Protocols.SetHTTP2(true)
		base = "https://" + p.Secure
	}
	return &http.Client{Transport: tr}, base, closing
}

// transport is an HTTP transport, and what closes its connections, also those on which a request was left: net/http's own
// keeps them.
func transport(tc *tls.Config) (tr *http.Transport, closing func()) {
	var mu sync.Mutex
	var conns []net.Conn
	tr = &http.Transport{TLSClientConfig: tc.Clone(), DisableCompression: true}
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		if err == nil {
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
		return c, err
	}
	return tr, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
		tr.CloseIdleConnections()
	}
}

// grpcClient is grpc-go. It is told not to make transparent retries of its own, which would hide transom's faults.
func grpcClient(p *process.Process, tc *tls.Config, secure bool) *client {
	name, addr, creds := "gRPC h2c", p.Plain, insecure.NewCredentials()
	if secure {
		name, addr, creds = "gRPC h2", p.Secure, credentials.NewTLS(tc.Clone())
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithDisableRetry())
	if err != nil {
		panic(err) // the target is well-formed
	}
	return &client{
		name: name, close: func() { conn.Close() },
		unary: func(ctx context.Context, method string, in, out proto.Message, _ time.Duration) error {
			return conn.Invoke(ctx, method, in, out)
		},
		open: func(ctx context.Context, method string, _ time.Duration) (stream, error) {
			ctx, cancel := context.WithCancel(ctx)
			s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
			if err != nil {
				cancel()
				return nil, err
			}
			return grpcStream{s, cancel}, nil
		},
	}
}

type grpcStream struct {
	grpc.ClientStream
	cancel context.CancelFunc
}

func (s grpcStream) Send(m proto.Message) error {
	if err := s.SendMsg(m); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil // of io.EOF Recv says what it means
}
func (s grpcStream) Recv(m proto.Message) error { return s.RecvMsg(m) }
func (s grpcStream) Close()                     { s.cancel() }

// clear turns a status by number into an error that the load takes for an answer.
func clear(code int64, message string) error {
	if code < 0 || code > 16 {
		return fmt.Errorf("code %d is none", code)
	}
	return status.Error(codes.Code(code), message)
}
