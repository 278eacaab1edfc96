//go:build !race

package h2server_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"golang.org/x/net/http2"
)

// TestAllocations counts what a request costs of a client that makes none: it sends the same bytes and takes no notice of the
// answer but of its length.
func TestAllocations(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var buf [64]byte
		n, _ := io.ReadFull(r.Body, buf[:])
		h := w.Header()
		h["Content-Type"] = grpcType
		_, _ = w.Write(buf[:n])
		h[http.TrailerPrefix+"Grpc-Status"] = grpcOK
	})))
	c := dial(t, addr)
	fields := []string{":method: POST", ":scheme: http", ":authority: a", ":path: /a.B/C", "content-type: application/grpc", "te: trailers", "user-agent: x"}
	c.headers(1, false, fields...)
	c.data(1, true, "hello, world")
	c.want("HEADERS 1")
	c.want("DATA 1")
	c.want("HEADERS 1")
	var request bytes.Buffer
	fr := http2.NewFramer(&request, nil)
	fr.AllowIllegalWrites = true
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: c.block(fields...), EndHeaders: true}) // all of it is indexed now
	data := request.Len()
	_ = fr.WriteData(3, true, []byte("hello, world"))
	buf := make([]byte, 64<<10)
	id := uint32(1)
	call := func() {
		id += 2
		for _, at := range [...]int{0, data} {
			b := request.Bytes()[at:]
			b[5], b[6], b[7], b[8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
		}
		if _, err := c.nc.Write(request.Bytes()); err != nil {
			t.Fatal(err)
		}
		for ends, n, r := 0, 0, 0; ends < 2; { // HEADERS twice
			for n-r < 9 || n-r < 9+length(buf[r:]) {
				k, err := c.nc.Read(buf[n:])
				if err != nil {
					t.Fatal(err)
				}
				n += k
			}
			if buf[r+3] == byte(http2.FrameHeaders) {
				ends++
			}
			r += 9 + length(buf[r:])
		}
	}
	for range 100 {
		call()
	}
	n := testing.AllocsPerRun(1000, call)
	t.Logf("%v allocations", n)
	if n > 13 {
		t.Errorf("%v allocations a request, want at most 13", n)
	}
}

var grpcType, grpcOK = []string{"application/grpc"}, []string{"0"}

func length(f []byte) int { return int(f[0])<<16 | int(f[1])<<8 | int(f[2]) }
