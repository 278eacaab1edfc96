package h2client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/metadata"

	"transom/rpc/grpcwire"
	"transom/rpc/h2wire"
)

// FuzzEncoder has x/net decode what the encoder makes of calls and of changes of the table's size, one after the other, as
// a script of a byte or two each tells.
func FuzzEncoder(f *testing.F) {
	f.Add([]byte("abcabcABC0a1b9c0"), "key", "value")
	f.Add([]byte{0, 1, 2, 3, 0x80, 0, 0, 1, 0xff, 4, 5, 0, 0x81, 0, 1}, "x-bin", "\x00\xff")
	f.Add([]byte(strings.Repeat("abcdefghijklmnopqrstuvwxyz", 5)), "authorization", strings.Repeat("t", 300))
	f.Fuzz(func(t *testing.T, script []byte, name, value string) {
		script = script[:min(len(script), 200)]
		md := metadata.MD{name: {value, ""}}
		cfg := Config{Authority: "authority", UserAgent: "agent", AcceptEncoding: "gzip"}
		if len(script)%2 == 0 {
			cfg.Handshake = func(context.Context, net.Conn) (net.Conn, error) { return nil, errors.ErrUnsupported }
		}
		fields, counted, err := appendMetadata(nil, md)
		if err != nil {
			md, fields, counted = nil, nil, 0
		}
		e := newEncoder(&cfg)
		var got []hpack.HeaderField
		dec := hpack.NewDecoder(h2wire.DefaultTable, func(f hpack.HeaderField) { got = append(got, f) })
		for i := 0; i < len(script); i++ {
			b := script[i]
			if b >= 0x80 { // the table's size
				n := uint32(b&0x7f) * 100
				e.setLimit(n)
				dec.SetAllowedMaxDynamicTableSize(n)
				continue
			}
			path := fmt.Sprintf("/service.%d/%s", b, strings.Repeat("m", int(b)*3))
			block := e.appendConst(nil, path)
			block = appendTimeout(block, time.Duration(b)*time.Hour)
			block = append(block, fields...)
			got = nil
			if _, err := dec.Write(block); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			if err := dec.Close(); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			scheme := "https"
			if len(script)%2 == 1 {
				scheme = "http"
			}
			want := []hpack.HeaderField{
				{Name: ":method", Value: "POST"},
				{Name: ":scheme", Value: scheme},
				{Name: ":path", Value: path},
				{Name: ":authority", Value: "authority"},
				{Name: "content-type", Value: "application/grpc+proto"},
				{Name: "te", Value: "trailers"},
				{Name: "user-agent", Value: "agent"},
				{Name: "grpc-accept-encoding", Value: "gzip"},
				{Name: "grpc-timeout", Value: string(grpcwire.AppendTimeout(nil, time.Duration(b)*time.Hour))},
			}
			size := 0
			for _, f := range want[:8] {
				size += int(f.Size())
			}
			if most := e.size + len(path); most < size || most > size+1 { // "http" is counted as "https"
				t.Errorf("%d bytes are counted as %d", size, most)
			}
			own := 0
			for _, v := range md[name] {
				if Ours(name) {
					break
				}
				if strings.HasSuffix(name, "-bin") {
					v = grpcwire.EncodeBin(v)
				}
				want = append(want, hpack.HeaderField{Name: name, Value: v, Sensitive: h2wire.Secret(name)})
				own += int(want[len(want)-1].Size())
			}
			if own != counted {
				t.Errorf("fields of %d bytes are counted as %d", own, counted)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("step %d: got %v, want %v", i, got, want)
			}
		}
	})
}
