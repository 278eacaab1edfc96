package listeners_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"transom/listeners"
	"transom/rpc"
)

// transcoded observes how long the answer of the last exchange was encoded.
type transcoded struct{ out time.Duration }

func (*transcoded) Begin(ctx context.Context, _ *listeners.Exchange) context.Context { return ctx }
func (*transcoded) Stream(*listeners.Exchange)                                       {}
func (o *transcoded) End(x *listeners.Exchange)                                      { o.out = x.Call.Info.TranscodeOut }

// TestSharedAnswer: an answer that is sent many times, as one from the cache, is turned into JSON for the first client only, and
// compressed for the first that takes the coding; what clients ask for beside it is made for them.
func TestSharedAnswer(t *testing.T) {
	data := make([]byte, 192<<10) // 256 KiB as base64
	for i := range data {
		data[i] = byte(rand.Uint32N(16))
	}
	wire, err := proto.Marshal(wrapperspb.Bytes(data))
	if err != nil {
		t.Fatal(err)
	}
	var answer rpc.Message
	send := func(ctx context.Context, call *rpc.Call) error { return call.Stream.Send(ctx, answer.Retain()) }
	var seen transcoded
	front := listeners.NewFront(listeners.FrontConfig{Observer: &seen}, newView(t, send), slog.New(slog.DiscardHandler))
	get := func(query, accept string) (body []byte, took time.Duration) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/rpctest/unary"+query, strings.NewReader(`""`))
		if accept != "" {
			r.Header.Set("Accept-Encoding", accept)
		}
		w := httptest.NewRecorder()
		began := time.Now()
		front.ServeHTTP(w, r)
		took = time.Since(began)
		if w.Code != http.StatusOK || w.Header().Get("Content-Encoding") != accept {
			t.Fatalf("%d %v", w.Code, w.Header())
		}
		return w.Body.Bytes(), took
	}
	plain := func(coded []byte) string {
		t.Helper()
		r, err := gzip.NewReader(bytes.NewReader(coded))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}

	answer = rpc.NewMessage(wire)
	want, _ := get("", "")
	if seen.out == 0 {
		t.Error("an answer that is sent once is not seen to be encoded")
	}
	anew, again := time.Hour, time.Hour
	// Where others have the processor in every one of few rounds, more of them tell.
	for round := 0; round < 5 || round < 100 && again > anew/2; round++ {
		answer = rpc.NewMessage(wire).Share()
		if text, _ := get("", ""); string(text) != string(want) || seen.out == 0 {
			t.Errorf("the first: %d bytes, want %d; encoded for %v", len(text), len(want), seen.out)
		}
		if text, _ := get("", ""); string(text) != string(want) || seen.out != 0 {
			t.Errorf("the second: %d bytes, want %d; encoded again for %v", len(text), len(want), seen.out)
		}
		first, took := get("", "gzip")
		anew = min(anew, took)
		if seen.out != 0 || plain(first) != string(want) {
			t.Errorf("the first compressed: encoded again for %v", seen.out)
		}
		second, took := get("", "gzip")
		again = min(again, took)
		if seen.out != 0 || !bytes.Equal(first, second) {
			t.Errorf("the second compressed: encoded again for %v, or another", seen.out)
		}
		if pretty, _ := get("?$prettyPrint=true", "gzip"); seen.out == 0 || plain(pretty) != string(want)+"\n" {
			t.Errorf("what is indented for a client comes from what others get: encoded for %v", seen.out)
		}
	}
	if again > anew/2 {
		t.Errorf("compressed in %v for the first client, %v for the next", anew, again)
	}
	t.Logf("compressed: %v for the first client, %v for the next", anew, again)
}
