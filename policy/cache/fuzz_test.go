package cache

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// FuzzDecode reads anything as an entry: what is read can be given, and written again to the same.
func FuzzDecode(f *testing.F) {
	b, err := encode(&entry{
		method: "a.B.C", consumer: "shop", tags: []string{"x", "y"}, stored: time.Now(), ttl: time.Minute, swr: time.Second, sie: time.Hour, purge: 7,
		header: metadata.MD{"a": {"1", "2"}, "b-bin": {"\xff"}}, trailer: metadata.MD{"c": {""}}, msg: rpc.NewMessage([]byte("message")),
	})
	if err != nil {
		f.Fatal(err)
	}
	for i := range b {
		if _, err := decode(b[:i]); err == nil {
			f.Errorf("the entry is read from its first %d bytes", i)
		}
		f.Add(b[:i])
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < checksumBytes {
			return
		}
		b = bytes.Clone(b)
		binary.BigEndian.PutUint32(b, checksum(b[checksumBytes:]))
		e, err := decode(b)
		if err != nil {
			return
		}
		if e.ttl <= 0 || e.swr < 0 || e.sie < 0 || time.Since(e.stored) < 0 || e.method == "" {
			t.Fatalf("%+v", e)
		}
		again, err := encode(e)
		if err != nil {
			t.Fatal(err)
		}
		same, err := decode(again)
		if err != nil || !bytes.Equal(same.msg.Bytes(), e.msg.Bytes()) || same.ttl != e.ttl || len(same.header) != len(e.header) || len(same.tags) != len(e.tags) {
			t.Fatalf("%+v, %v", same, err)
		}
	})
}

// FuzzSelection has each selection be found again from its field.
func FuzzSelection(f *testing.F) {
	f.Add("a.B.C", "shop", "x")
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, method, consumer, tag string) {
		if bytes.ContainsRune([]byte(method+consumer), 0) { // neither can be
			return
		}
		want := Selection{method, consumer, tag}
		if got, ok := selectionOf(field(want)); !ok || got != want {
			t.Errorf("%q: %q, %v", want, got, ok)
		}
	})
}
