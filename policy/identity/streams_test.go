package identity

import (
	"context"
	"crypto/sha256"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"transom/descriptors"
	"transom/rpc"
)

// TestRevokedBeforeItBegan has a stream that an old Directory admits when one without its key is in force already: it must not slip
// through.
func TestRevokedBeforeItBegan(t *testing.T) {
	var streams Streams
	directory := func(keys ...string) *Directory {
		shop := &Consumer{Name: "shop"}
		for _, k := range keys {
			shop.KeyHashes = append(shop.KeyHashes, sha256.Sum256([]byte(k)))
		}
		p, err := NewAPIKeys("keys", "x-api-key", []*Consumer{shop})
		if err != nil {
			t.Fatal(err)
		}
		d, err := NewDirectory(map[string]Entry{"keys": {Provider: p}}, []*Consumer{shop}, &streams)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	old := directory("a", "b")
	streams.Use(old)
	mw, err := old.Middleware(Requirement{Providers: []string{"keys"}})
	if err != nil {
		t.Fatal(err)
	}
	streams.Use(directory("b"))
	for key, want := range map[string]codes.Code{"a": codes.Unauthenticated, "b": codes.OK} {
		call := &rpc.Call{Method: descriptors.Opaque("/bank.v1.Accounts/Watch"), Header: metadata.Pairs("x-api-key", key), Info: &rpc.Info{}}
		err := mw(func(ctx context.Context, _ *rpc.Call) error { return rpc.CauseOf(ctx) })(t.Context(), call)
		if status.Code(err) != want {
			t.Errorf("key %s: %v, want %v", key, err, want)
		}
	}
	if len(streams.open) > 0 {
		t.Errorf("%d streams are kept that are over", len(streams.open))
	}
}
