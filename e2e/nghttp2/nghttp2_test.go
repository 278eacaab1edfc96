// Package nghttp2 has the client that carries calls to backends talk to an HTTP/2 stack that is not Go's: nghttpd, which
// serves files that are gRPC messages, with the type of gRPC by their suffix and a status as its trailer.
package nghttp2

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"transom/e2e/process"
	"transom/upstream/h2client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long the server may take to listen.
const patience = 30 * time.Second

// files writes a small message and a large one as a gRPC server sends them, and the server's map of types.
func files(t *testing.T) (dir string, large []byte) {
	t.Helper()
	dir, large = t.TempDir(), make([]byte, 3<<20)
	for i := range large {
		large[i] = byte(i*7 + i>>8)
	}
	for name, b := range map[string][]byte{"Small.grpc": []byte("hello"), "Large.grpc": large} {
		process.Replace(t, filepath.Join(dir, name), append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...))
	}
	process.Replace(t, filepath.Join(dir, "types"), []byte("application/grpc grpc\n"))
	return dir, large
}

// serve runs nghttpd on dir until the test ends and returns a connection to it. last are the arguments after the port.
func serve(t *testing.T, dir string, options []string, last ...string) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	_ = l.Close() // nghttpd has to be told a port
	args := append([]string{
		"--htdocs", dir, "--mime-types-file", filepath.Join(dir, "types"), "--trailer", "grpc-status: 0", "--trailer", "x-end: e",
		"--address", addr.IP.String(),
	}, options...)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "nghttpd", append(append(args, strconv.Itoa(addr.Port)), last...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); ; <-tick.C {
		nc, err := net.Dial("tcp", addr.String())
		if err == nil {
			return nc
		}
		if time.Since(start) > patience {
			t.Fatal(err)
		}
	}
}

// TestCalls makes calls side by side, of small and large messages each way, and one that is no gRPC.
func TestCalls(t *testing.T) {
	dir, large := files(t)
	authority := process.NewAuthority(t)
	pem := filepath.Join(dir, "server.pem") // with its key
	process.Replace(t, pem, authority.Issue(t))
	for name, connect := range map[string]func(*testing.T) (net.Conn, h2client.Config){
		"plaintext": func(t *testing.T) (net.Conn, h2client.Config) {
			return serve(t, dir, []string{"--no-tls"}), h2client.Config{Authority: "files"}
		},
		"TLS": func(t *testing.T) (net.Conn, h2client.Config) {
			return serve(t, dir, nil, pem, pem), h2client.Config{
				Authority: "files", Handshake: h2client.ClientTLS(&tls.Config{RootCAs: authority.Pool, MinVersion: tls.VersionTLS12}, "127.0.0.1"),
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			nc, cfg := connect(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, err := h2client.New(ctx, nc, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var calls sync.WaitGroup
			for i := range 200 {
				path, want := "/Small.grpc", []byte("hello")
				if i%10 == 0 {
					path, want = "/Large.grpc", large
				}
				calls.Go(func() {
					var reply h2client.Reply
					request := h2client.Message{Data: mem.BufferSlice{mem.SliceBuffer(make([]byte, i*1000))}}
					err := c.Unary(ctx, path, metadata.MD{"k": {"v"}}, request, &reply)
					defer reply.Message.Free()
					if err != nil || !bytes.Equal(reply.Message.Data.Materialize(), want) || len(reply.Trailer["x-end"]) != 1 {
						t.Errorf("call %d: %v, %d bytes, trailer %v", i, err, reply.Message.Data.Len(), reply.Trailer)
					}
				})
			}
			calls.Wait()
			var reply h2client.Reply
			err = c.Unary(ctx, "/none", nil, h2client.Message{}, &reply)
			if e, ok := err.(*h2client.Error); !ok || e.Origin != h2client.OriginHTTP || e.HTTP != 404 || e.Code != codes.Unimplemented { //nolint:errorlint // always one
				t.Errorf("what is not there: %v", err)
			}
		})
	}
}
