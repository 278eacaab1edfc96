package interop

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	v3orcaservicepb "github.com/cncf/xds/go/xds/service/orca/v3"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

// cases are all of the client's test cases but those that need an account with a cloud provider, and pick_first_unary,
// for which this server lacks the name that answers must bear.
var cases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
	"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message",
	"special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service",
	"rpc_soak", "channel_soak", "orca_per_rpc", "orca_oob",
}

func TestInterop(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "google.golang.org/grpc/interop/client", "google.golang.org/grpc/interop/server")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cert, key := certificate(t)
	for _, mode := range []struct {
		name        string
		tls, opaque bool
	}{
		{"H2C/Schema", false, false},
		{"H2C/Opaque", false, true},
		{"TLS/Schema", true, false},
		{"TLS/Opaque", true, true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			cfg := &configv1.Config{
				Listeners: []*configv1.Listener{{Address: "127.0.0.1:0"}},
				Clusters:  map[string]*configv1.Cluster{"interop": {Target: "static:///" + startServer(t, filepath.Join(bin, "server"))}},
			}
			if mode.opaque {
				cfg.UnknownMethods = &configv1.UnknownMethods{Cluster: "interop"}
			} else {
				cfg.Descriptors = []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: descriptorSet(t)}}}
			}
			if mode.tls {
				cfg.Listeners[0].Tls = &configv1.TLS{Certificate: cert, Key: key}
			}
			port := startGateway(t, cfg)
			for _, name := range cases {
				t.Run(name, func(t *testing.T) {
					args := []string{
						"-server_host=127.0.0.1", "-server_port=" + port, "-test_case=" + name,
						"-soak_iterations=200", "-soak_num_threads=2", "-soak_overall_timeout_seconds=60",
					}
					if name == "orca_per_rpc" || name == "orca_oob" {
						args = append(args, `-service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`)
					}
					if mode.tls {
						args = append(args, "-use_tls", "-use_test_ca", "-ca_file="+cert)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
					defer cancel()
					if out, err := exec.CommandContext(ctx, filepath.Join(bin, "client"), args...).CombinedOutput(); err != nil {
						t.Errorf("%v\n%s", err, out)
					}
				})
			}
		})
	}
}

// startServer runs gRPC's interop server and returns its address.
func startServer(t *testing.T, path string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the server wants a port by number
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	var out bytes.Buffer
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), path, "-port="+port)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("server: %s", out.Bytes())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not listen: %v", err)
		}
	}
}

// startGateway runs a gateway and returns its port.
func startGateway(t *testing.T, cfg *configv1.Config) string {
	t.Helper()
	g, err := gateway.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return strconv.Itoa(g.Addrs()[0].Port)
}

// descriptorSet writes the descriptors of the interop services to a file. UnimplementedService is left out, as a gateway
// would not know of it either.
func descriptorSet(t *testing.T) string {
	t.Helper()
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i))
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(fd))
	}
	add(testpb.File_grpc_testing_test_proto)
	add(v3orcaservicepb.File_xds_service_orca_v3_orca_proto)
	b, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "interop.binpb")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate writes a self-signed certificate for 127.0.0.1 and its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
