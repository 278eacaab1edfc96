// Package demo is what `transom demo` runs: three banks of different speed, transom in front of them on plain and on TLS
// ports, and a page that calls them from a browser.
package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"mime"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/cmd/transom/demo/bank"
	"transom/gateway"
	bankv1 "transom/proto/bank/v1"
	configv1 "transom/proto/transom/config/v1"
)

// Config says where the demo listens. The zero value is complete.
type Config struct {
	// Plain and TLS are the proxy's addresses. Default localhost:8080 and localhost:8443.
	Plain, TLS string
	// Admin is the operator's address. Default localhost:9901, where transom status and the like look.
	Admin string
	// Backends are the banks' addresses, the fastest first. Default localhost:50061 to 50063.
	Backends []string
	// Out is told what to try. Default: nobody.
	Out io.Writer
	// Log takes the gateway's events. Default: none.
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	if c.Plain == "" {
		c.Plain = "localhost:8080"
	}
	if c.TLS == "" {
		c.TLS = "localhost:8443"
	}
	if c.Admin == "" {
		c.Admin = "localhost:9901"
	}
	if len(c.Backends) == 0 {
		c.Backends = []string{"localhost:50061", "localhost:50062", "localhost:50063"}
	}
	if c.Out == nil {
		c.Out = io.Discard
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Run serves until ctx ends, then drains. It fails at once if an address is taken.
func Run(ctx context.Context, cfg Config) (err error) {
	cfg.setDefaults()
	dir, err := os.MkdirTemp("", "transom-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	descriptors := filepath.Join(dir, "bank.binpb")
	if err := os.WriteFile(descriptors, bank.DescriptorSet(), 0o600); err != nil {
		return err
	}
	certificate, key, err := SelfSigned(dir)
	if err != nil {
		return err
	}

	var banks sync.WaitGroup
	defer banks.Wait()
	head := bank.New(bank.Config{})
	addrs := make([]string, len(cfg.Backends))
	for i, addr := range cfg.Backends {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("the demo's bank %d: %w", i+1, err)
		}
		s := newServer(head, i)
		addrs[i] = l.Addr().String()
		banks.Go(func() {
			if err := s.Serve(l); err != nil {
				cfg.Log.LogAttrs(context.WithoutCancel(ctx), slog.LevelError, "bank failed", slog.String("error", err.Error()))
			}
		})
		defer s.Stop()
	}

	g, err := gateway.New(ctx, &configv1.Config{
		Listeners: []*configv1.Listener{
			{Address: cfg.Plain},
			{Address: cfg.TLS, Tls: &configv1.TLS{Certificate: certificate, Key: key}, Http3: true},
		},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptors}}},
		Clusters:    map[string]*configv1.Cluster{"bank": {Target: "static:///" + strings.Join(addrs, ",")}},
		Admin:       &configv1.Admin{Address: cfg.Admin},
		Usage:       &configv1.Usage{},
	}, cfg.Log)
	if err != nil {
		return err
	}
	bound := g.Addrs()
	if _, err := fmt.Fprint(cfg.Out, guide(bound[0].Port, bound[1].Port, g.AdminAddr().String(), addrs)); err != nil {
		return err
	}
	return g.Run(ctx)
}

// newServer is the i-th branch: the first is fast, and each further one slower.
func newServer(head *bank.Bank, i int) *grpc.Server {
	b := head.Branch(bank.Config{Name: fmt.Sprintf("bank-%d", i+1), Delay: time.Duration(i*i) * 5 * time.Millisecond, Capacity: 64})
	s := grpc.NewServer(b.ServerOptions()...)
	bankv1.RegisterWebsiteServer(s, website{})
	b.Register(s)
	return s
}

// guide is what to try; each command works as it is printed, in the project's directory.
func guide(plain, tls int, admin string, backends []string) string {
	ghz := "go tool -modfile=.tools/ghz.mod ghz --insecure"
	return fmt.Sprintf(`transom demo: three banks behind one proxy. Ctrl-C ends it.

In a browser (REST, a stream, chat):
  http://localhost:%[1]d/demo
  https://localhost:%[2]d/demo   over HTTP/2; the certificate is self-signed

In a shell:
  curl http://localhost:%[1]d/v1/accounts/7
  curl 'http://localhost:%[1]d/v1/accounts?pageSize=2&filter.kinds=KIND_SAVINGS'
  curl --json '{"account": "2", "amount": {"currency": "EUR", "units": 5}}' http://localhost:%[1]d/v1/accounts/1:transfer
  curl -X PATCH --json '{"displayName": "Holidays"}' http://localhost:%[1]d/v1/customers/1/accounts/2
  curl -N 'http://localhost:%[1]d/v1/customers/1/accounts/1/transactions:watch?interval=0.5s&count=6'
  curl -N -H 'Accept: text/event-stream' 'http://localhost:%[1]d/v1/customers/1/accounts/1/transactions:watch?count=3'
  curl -T go.mod -H 'Content-Type: text/plain' http://localhost:%[1]d/v1/statements:import
  curl 'http://localhost:%[1]d/v1/diagnostics/fail?code=9&message=as+asked&details=true'
  curl -k --http2 https://localhost:%[2]d/v1/rates/EUR/USD

gRPC, through the proxy and to a bank directly:
  %[3]s --call bank.v1.Accounts.Get -d '{"name": "7"}' -n 1000 -c 10 localhost:%[1]d
  %[3]s --call bank.v1.Accounts.Get -d '{"name": "7"}' -n 1000 -c 10 %[4]s

As its operator (metrics: http://%[5]s/metrics):
  bin/transom status --admin %[5]s
  bin/transom clusters --admin %[5]s
`, plain, tls, ghz, backends[0], admin)
}

// website implements bank.v1.Website from the embedded page.
type website struct {
	bankv1.UnimplementedWebsiteServer
}

//go:embed page
var page embed.FS

// Page implements bank.v1.Website.
func (website) Page(_ context.Context, req *bankv1.PageRequest) (*httpbody.HttpBody, error) {
	file := req.GetFile()
	if file == "" {
		file = "index.html"
	}
	data, err := page.ReadFile(path.Join("page", file))
	if err != nil { // there is nothing in the way of an embedded file but that it does not exist
		return nil, status.Errorf(codes.NotFound, "the demo has no page %q", file)
	}
	return &httpbody.HttpBody{ContentType: mime.TypeByExtension(path.Ext(file)), Data: data}, nil
}

// SelfSigned writes a new certificate for localhost and its private key to dir, as PEM files, and returns their paths.
// The certificate is good for ten days: WebTransport takes it by its hash, for which fourteen are the most.
func SelfSigned(dir string) (certificate, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		Subject:               pkix.Name{CommonName: "localhost"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(0, 0, 10),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true, // so that a client can be told to trust it alone
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return "", "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	certificate, key = filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "key.pem")
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{certificate, "CERTIFICATE", der}, {key, "PRIVATE KEY", pkcs8}} {
		if err := os.WriteFile(f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			return "", "", err
		}
	}
	return certificate, key, nil
}
