package listeners_test

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestEarlyAnswers sends requests over HTTP/2 that are refused before anyone has read their body. The answer must come alone:
// curl before 8 reports "Stream error in the HTTP/2 framing layer" in place of one that comes with a RST_STREAM while it is still
// sending.
func TestEarlyAnswers(t *testing.T) {
	addr, _ := rawServer(t)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := nc.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(nc, nc)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	id := uint32(1)
	// request sends all but the body, of which length tells.
	request := func(path, contentType, length string) {
		t.Helper()
		block.Reset()
		for _, h := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":authority", "h"},
			{":path", path},
			{"content-type", contentType},
			{"content-length", length},
		} {
			_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	// answer reads to the end of the stream's answer, and then to that of a PING, and reports whether the stream was reset.
	answer := func() (reset bool) {
		t.Helper()
		ended, ponged := false, false
		for !ended || !ponged {
			fr, err := f.ReadFrame()
			if err != nil {
				t.Fatalf("stream %d: %v", id, err)
			}
			switch fr := fr.(type) {
			case *http2.RSTStreamFrame:
				reset = reset || fr.StreamID == id
			case *http2.HeadersFrame:
				ended = ended || fr.StreamEnded() && fr.StreamID == id
			case *http2.DataFrame:
				ended = ended || fr.StreamEnded() && fr.StreamID == id
			case *http2.SettingsFrame:
				if !fr.IsAck() {
					_ = f.WriteSettingsAck()
				}
			case *http2.PingFrame:
				ponged = ponged || fr.IsAck()
			}
			if ended && !ponged {
				_ = f.WritePing(false, [8]byte{1})
			}
		}
		id += 2
		return reset
	}
	for _, c := range []struct{ name, path, contentType string }{
		{"REST", "/nowhere", "application/json"},
		{"gRPC", "/no.Such/Method", "application/grpc"},
		{"gRPC-Web", "/no.Such/Method", "application/grpc-web"},
		{"Connect", "/rpctest.Service/Bidi", "application/json"},
	} {
		for range 20 {
			request(c.path, c.contentType, "5")
			if err := f.WriteData(id, true, []byte("12345")); err != nil {
				t.Fatal(err)
			}
			if answer() {
				t.Fatalf("%s: the answer came with a RST_STREAM", c.name)
			}
		}
	}
	// A body that does not come is not waited for.
	for _, length := range []string{"5", "1000000"} {
		if request("/nowhere", "application/json", length); answer() {
			t.Fatalf("the answer to a request of %s bytes came with a RST_STREAM", length)
		}
	}
}
