//go:build !race

package upstream_test

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"transom/rpc"
	"transom/upstream"
)

// maxOverGRPCGo and maxOverOwn are how many allocations a unary call may cost beyond those of grpc-go's own client, with each
// transport below. Under the race detector pools forget, so that nothing can be counted.
const (
	maxOverGRPCGo = 10
	maxOverOwn    = -70
)

func TestUnaryAllocs(t *testing.T) {
	addr := newBackend(t, echo)
	req := make([]byte, 200)
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	codec := grpc.ForceCodecV2(bytesCodec{})
	var reply []byte
	raw := testing.AllocsPerRun(500, func() {
		if err := cc.Invoke(t.Context(), unary.FullPath, req, &reply, codec); err != nil {
			t.Fatal(err)
		}
	})
	c := newCluster(t, upstream.Config{Target: addr})
	s, info := &sink{req: req}, &rpc.Info{}
	own := testing.AllocsPerRun(500, func() {
		s.done = false
		*info = rpc.Info{}
		call := &rpc.Call{Method: unary, Info: info, Stream: s, Header: metadata.MD{"authorization": {"x"}}}
		if err := c.Invoke(t.Context(), call); err != nil {
			t.Fatal(err)
		}
	}) - raw
	t.Logf("%v allocations a call, and %v by transom, those of the call's making and of its metadata included", raw, own)
	most := float64(maxOverOwn)
	if transport() == upstream.TransportGRPCGo {
		most = maxOverGRPCGo
	}
	if own > most {
		t.Errorf("%v allocations beyond grpc-go's %v, want at most %v", own, raw, most)
	}
}
