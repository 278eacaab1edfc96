package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"transom/cmd/transom/demo/bank"
	bankv1 "transom/proto/bank/v1"
)

// TestTrailersAtEverySize: an answer ends in its status and trailers whatever its length, above all at the sizes of frames
// and windows of HTTP/2, in native gRPC and, as the last frame of the body, in gRPC-Web.
func TestTrailersAtEverySize(t *testing.T) {
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	conn := dial(t, p, false)
	web := &http.Client{Transport: &http.Transport{}}
	defer web.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for _, around := range []int{0, 4096, 16384, 32768, 65535, 65536, 131072, 1 << 20} {
		for size := around - 8; size <= around+8; size++ {
			want := &bankv1.Everything{Text: strings.Repeat("x", max(size-4, 0))} // tag, length: 2 to 4 bytes
			var trailer metadata.MD
			got, err := bankv1.NewDiagnosticsClient(conn).Echo(ctx, want, grpc.Trailer(&trailer))
			if err != nil || len(got.GetText()) != len(want.GetText()) {
				t.Fatalf("gRPC, %d bytes: %d bytes back, %v", size, len(got.GetText()), err)
			}
			if len(trailer) == 0 { // the bank reports its load there
				t.Fatalf("gRPC, %d bytes: no trailers", size)
			}
			if err := webEcho(ctx, web, p.Plain, want); err != nil {
				t.Fatalf("gRPC-Web, %d bytes: %v", size, err)
			}
		}
	}
}

// webEcho makes one gRPC-Web call over HTTP/1.1 and wants its message back, then a trailer frame with status 0, then nothing.
func webEcho(ctx context.Context, c *http.Client, addr string, m proto.Message) error {
	wire, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	framed := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(wire))), wire...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/bank.v1.Diagnostics/Echo", bytes.NewReader(framed))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc-web+proto")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(body, framed) {
		return fmt.Errorf("%d bytes of body, not the message of %d", len(body), len(framed))
	}
	last := body[len(framed):]
	if len(last) < 5 || last[0] != 0x80 || int(binary.BigEndian.Uint32(last[1:])) != len(last)-5 || !bytes.Contains(last, []byte("grpc-status: 0\r\n")) {
		return fmt.Errorf("after the message: %q", last)
	}
	if len(resp.Trailer) > 0 {
		return fmt.Errorf("trailers of HTTP towards a browser: %v", resp.Trailer)
	}
	return nil
}
