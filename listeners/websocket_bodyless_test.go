package listeners_test

import (
	"context"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/descriptors"
	"transom/listeners"
	"transom/rpc"
	"transom/transcoder"
)

// A rule without a body has no place for the messages of a method that takes several, so that on a WebSocket each frame is a
// whole one; the path is part of the first.
func TestWebSocketWithoutBodyTakesWholeMessages(t *testing.T) {
	dir := t.TempDir()
	const source = `syntax = "proto3";
package talk.v1;
import "google/api/annotations.proto";
service Talk {
  rpc Collect(stream Line) returns (Line) { option (google.api.http) = {get: "/rooms/{room}"}; }
}
message Line { string room = 1; string text = 2; }
`
	if err := os.WriteFile(filepath.Join(dir, "talk.proto"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := descriptors.FromProto(t.Context(), []string{dir}, []string{"talk.proto"})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	plans, err := transcoder.NewPlans(schema, transcoder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	v := &view{schema: schema, plans: plans, h: func(ctx context.Context, call *rpc.Call) error {
		got = nil
		for {
			m, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				return call.Stream.Send(ctx, rpc.NewMessage(nil))
			}
			if err != nil {
				return err
			}
			line := dynamicpb.NewMessage(call.Method.Desc.Input())
			if err := proto.Unmarshal(m.Bytes(), line); err != nil {
				return err
			}
			m.Release()
			b, err := protojson.Marshal(line)
			if err != nil {
				return err
			}
			got = append(got, strings.ReplaceAll(string(b), " ", ""))
		}
	}}
	srv := httptest.NewServer(listeners.NewFront(listeners.FrontConfig{}, v, slog.New(slog.DiscardHandler)))
	t.Cleanup(srv.Close)
	for _, tc := range []struct {
		send, want []string
	}{
		{nil, nil},
		{[]string{`{}`}, []string{`{"room":"red"}`}},
		{[]string{`{"text":"a"}`, `{"room":"blue","text":"b"}`}, []string{`{"room":"red","text":"a"}`, `{"room":"blue","text":"b"}`}},
		{[]string{`{"room":"blue","text":"a"}`}, []string{`{"room":"red","text":"a"}`}}, // the path wins
	} {
		ws, _, err := websocket.Dial(t.Context(), "ws"+srv.URL[4:]+"/rooms/red", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range append(tc.send, "") {
			if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if _, answer, err := ws.Read(t.Context()); err != nil || string(answer) != "{}" {
			t.Errorf("%q: answer %q, %v", tc.send, answer, err)
		}
		if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			t.Errorf("%q: %v", tc.send, err)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q: the handler got %q, want %q", tc.send, got, tc.want)
		}
	}
}
