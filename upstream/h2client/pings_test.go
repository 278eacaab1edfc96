package h2client_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"transom/upstream/h2client"
)

// A server that sends PINGs, SETTINGS and WINDOW_UPDATEs with its answers, or PINGs with the DATA it gets, as grpc-go's do, is no
// flood however many calls and messages there are; one that sends them without is.
func TestPingsWithAnswers(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	flood := make(chan struct{})
	begin := sync.OnceFunc(func() { close(flood) })
	var wg sync.WaitGroup
	defer wg.Wait()
	defer begin()
	wg.Go(func() {
		nc, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		if _, err := io.ReadFull(nc, make([]byte, len(http2.ClientPreface))); err != nil {
			t.Error(err)
			return
		}
		var header, out bytes.Buffer
		enc := hpack.NewEncoder(&header)
		_ = enc.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
		_ = enc.WriteField(hpack.HeaderField{Name: "content-type", Value: "application/grpc"})
		block := bytes.Clone(header.Bytes())
		header.Reset()
		_ = enc.WriteField(hpack.HeaderField{Name: "grpc-status", Value: "0"})
		trailer := bytes.Clone(header.Bytes())
		fr := http2.NewFramer(&out, nc)
		_ = fr.WriteSettings()
		nuisance := func() {
			_ = fr.WritePing(false, [8]byte{1})
			_ = fr.WriteWindowUpdate(0, 1)
			_ = fr.WriteSettings()
		}
		wg.Go(func() {
			<-flood
			_ = nc.SetReadDeadline(time.Unix(1, 0))
		})
		for {
			if _, err := out.WriteTo(nc); err != nil {
				return
			}
			f, err := fr.ReadFrame()
			if err != nil {
				break
			}
			id := f.Header().StreamID
			switch f := f.(type) {
			case *http2.DataFrame:
				if !f.StreamEnded() { // of the upload
					_ = fr.WritePing(false, [8]byte{1})
					_ = fr.WriteWindowUpdate(0, f.Length)
					_ = fr.WriteWindowUpdate(id, f.Length)
					break
				}
				nuisance()
				_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
				_ = fr.WriteData(id, false, make([]byte, 5))
				_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: trailer, EndHeaders: true, EndStream: true})
			}
		}
		_ = nc.SetReadDeadline(time.Time{})
		wg.Go(func() { _, _ = io.Copy(io.Discard, nc) })
		for {
			nuisance()
			if _, err := out.WriteTo(nc); err != nil {
				return
			}
		}
	})
	c := dial(t, ln.Addr().String(), h2client.Config{})
	for i := range 21000 {
		var reply h2client.Reply
		if err := c.Unary(soon(t), "/a.B/C", nil, h2client.Message{}, &reply); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	upload, err := c.NewStream(soon(t), "/a.B/C", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 25000 {
		if err := upload.Send(h2client.Message{}, i == 24999); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if m, err := upload.Recv(); err != nil {
		t.Fatalf("the upload: %v", err)
	} else {
		m.Data.Free()
	}
	begin()
	<-c.Done()
	if err := c.Err(); err == nil {
		t.Error("the flood was taken")
	}
}
