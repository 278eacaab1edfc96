package h2server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// bytesCodec has grpc-go send bytes as they are.
type bytesCodec struct{}

var _ encoding.CodecV2 = bytesCodec{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, _ := v.(*[]byte)
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, _ := v.(*[]byte)
	*b = data.Materialize()
	return nil
}

// grpcEcho answers each message with itself, and ends with the status that the last is.
func grpcEcho(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	w.Header()["Content-Type"] = []string{"application/grpc"}
	code := "0"
	for {
		var prefix [5]byte
		if _, err := io.ReadFull(r.Body, prefix[:]); err != nil {
			break
		}
		m := make([]byte, binary.BigEndian.Uint32(prefix[1:]))
		if _, err := io.ReadFull(r.Body, m); err != nil {
			break
		}
		if string(m) == "fail" {
			code = "9"
			break
		}
		_, _ = w.Write(append(prefix[:], m...))
		_ = rc.Flush()
	}
	w.Header()[http.TrailerPrefix+"Grpc-Status"] = []string{code}
}

// TestGRPC has grpc-go call: unary calls, streams both ways, an error in trailers, a deadline.
func TestGRPC(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(grpcEcho)))
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, size := range []int{0, 1, 100, 5000, 70_000, 1 << 20} {
		in, out := bytes.Repeat([]byte{byte(size)}, size), []byte(nil)
		if err := conn.Invoke(ctx, "/a.B/C", &in, &out); err != nil || !bytes.Equal(in, out) {
			t.Errorf("%d bytes: %d came, %v", size, len(out), err)
		}
	}
	in, out := []byte("fail"), []byte(nil)
	if err := conn.Invoke(ctx, "/a.B/C", &in, &out); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/a.B/C")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		in := fmt.Appendf(nil, "%d", i)
		if err := s.SendMsg(&in); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(&out); err != nil || !bytes.Equal(in, out) {
			t.Fatalf("%s: %s, %v", in, out, err)
		}
	}
	_ = s.CloseSend()
	if err := s.RecvMsg(&out); err != io.EOF {
		t.Error(err)
	}
	short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
	defer stop()
	s, err = conn.NewStream(short, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/a.B/C")
	if err == nil {
		err = s.RecvMsg(&out)
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
}

// transports are the clients of net/http and x/net.
func transports() map[string]http.RoundTripper {
	std := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	std.Protocols.SetUnencryptedHTTP2(true)
	return map[string]http.RoundTripper{
		"net/http": std,
		"x/net": &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) { //nolint:staticcheck // as those set it who use this client
			return new(net.Dialer).DialContext(ctx, network, addr)
		}},
	}
}

// TestStorm has many callers cancel at any moment while handlers answer, panic and return as they like, on connections that
// carry on: every byte that arrives must be one of its own answer.
func TestStorm(t *testing.T) {
	var handlers atomic.Int64
	cfg := config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Add(-1)
		b := make([]byte, 3)
		if _, err := io.ReadFull(r.Body, b); err != nil {
			return
		}
		if b[2]%8 == 0 {
			panic(http.ErrAbortHandler)
		}
		if b[2]%2 == 0 {
			n, err := io.Copy(io.Discard, r.Body)
			if err == nil && int(n) != int(b[2])*200 {
				t.Errorf("%d bytes of body, want %d", n, int(b[2])*200)
			}
		}
		w.Header().Set("X-Seed", fmt.Sprint(b[0]))
		for i := range 1 + int(b[2]%3) {
			if _, err := w.Write(bytes.Repeat(b[:1], int(b[1])<<6)); err != nil {
				return
			}
			if i%2 == 0 {
				_ = http.NewResponseController(w).Flush()
			}
		}
		w.Header()[http.TrailerPrefix+"X-End"] = []string{fmt.Sprint(b[0])}
	}))
	cfg.MaxStreams = 20
	cfg.WriteStall = 10 * time.Second
	_, addr := serve(t, cfg)
	for name, tr := range transports() {
		var wg sync.WaitGroup
		var good atomic.Int64
		for i := range 16 {
			r := rand.New(rand.NewPCG(7, uint64(i)))
			wg.Go(func() {
				for range 100 {
					stormCall(t, tr, addr, r, &good)
				}
			})
		}
		wg.Wait()
		tr.(interface{ CloseIdleConnections() }).CloseIdleConnections() //nolint:forcetypeassert // both have it
		if good.Load() < 100 {
			t.Errorf("%s: only %d of 1,600 calls went well", name, good.Load())
		}
	}
	for limit := time.Now().Add(patience); handlers.Load() > 0; {
		if time.Now().After(limit) {
			t.Fatalf("%d handlers have not returned", handlers.Load())
		}
	}
}

func stormCall(t *testing.T, tr http.RoundTripper, addr string, r *rand.Rand, good *atomic.Int64) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if r.IntN(3) == 0 {
		timer := time.AfterFunc(time.Duration(r.IntN(3000))*time.Microsecond, cancel)
		defer timer.Stop()
	}
	seed, size, kind := byte(r.Uint32()), byte(r.IntN(256)), byte(r.IntN(256))
	body := append([]byte{seed, size, kind}, make([]byte, int(kind)*200)...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/", bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("X-Seed"); got != fmt.Sprint(seed) {
		t.Errorf("an answer for %s, not for %d", got, seed)
	}
	got, err := io.ReadAll(resp.Body)
	if n := bytes.Count(got, []byte{seed}); n != len(got) {
		t.Errorf("%d of %d bytes are not this answer's", len(got)-n, len(got))
	}
	want := int(size) << 6 * (1 + int(kind%3))
	if err == nil && (len(got) != want || resp.Trailer.Get("X-End") != fmt.Sprint(seed)) {
		t.Errorf("%d bytes, want %d; trailers %v", len(got), want, resp.Trailer)
	}
	if err == nil {
		good.Add(1)
	} else if ctx.Err() == nil && !errors.As(err, new(http2.StreamError)) {
		t.Logf("%v", err)
	}
}
