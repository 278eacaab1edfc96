package gateway_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "transom/proto/transom/config/v1"
)

// The settings of WebSockets reach the sockets: compression is agreed on, a silent client is pinged and then given up, and one
// without messages is closed.
func TestWebSocketSettings(t *testing.T) {
	for _, tc := range []struct {
		name      string
		edit      func(*configv1.Listener)
		extension string
		frame     byte   // the first byte of the first frame that comes
		reason    string // of the close frame
	}{
		{"Ping", func(l *configv1.Listener) {
			l.Limits = &configv1.Limits{WebsocketPingInterval: durationpb.New(time.Second), WebsocketPongTimeout: durationpb.New(time.Second)}
		}, "", 0x89, ""},
		{"Idle", func(l *configv1.Listener) {
			l.WebsocketCompression = true
			l.Limits = &configv1.Limits{WebsocketIdleTimeout: durationpb.New(time.Second)}
		}, "permessage-deflate; server_no_context_takeover; client_no_context_takeover", 0x88, "idle for too long"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, addr := start(t, func(cfg *configv1.Config) { tc.edit(cfg.GetListeners()[0]) })
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
			fmt.Fprintf(nc, "GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
				"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: transom.v1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", addr)
			r := bufio.NewReader(nc)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-WebSocket-Extensions") != tc.extension {
				t.Fatalf("status %d, extension %q, want 101 and %q", resp.StatusCode, resp.Header.Get("Sec-WebSocket-Extensions"), tc.extension)
			}
			// A ping, then the close; or the close at once.
			var head [2]byte
			if _, err := io.ReadFull(r, head[:]); err != nil || head[0] != tc.frame {
				t.Fatalf("the first frame begins with %x, %v, want %x", head, err, tc.frame)
			}
			rest, err := io.ReadAll(r)
			if err != nil || !bytes.HasSuffix(rest, []byte(tc.reason)) {
				t.Errorf("then %q, %v, want the reason %q", rest, err, tc.reason)
			}
		})
	}
}
