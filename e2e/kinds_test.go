package e2e

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"transom/cmd/transom/demo/bank"
)

// kinds has a call of each kind: what the client sends, and what must be in each answer, in order.
var kinds = []struct {
	name, verb, path string
	send, want       []string
}{
	{"unary", "POST", "/v1/accounts/3:transfer", []string{`{"account":"2","amount":{"currency":"EUR","units":"1"}}`}, []string{`"units":"-1"`}},
	{
		"server stream", "POST", "/v1/accounts/1/transactions:watch",
		[]string{`{"count":3,"interval":"0.001s"}`},
		[]string{`"amount"`, `"amount"`, `"amount"`},
	},
	{
		"client stream", "POST", "/v1/accounts:deposit",
		[]string{`{"name":"customers/1/accounts/1","amount":{"currency":"EUR","units":"2"}}`, `{"name":"customers/1/accounts/1","amount":{"currency":"EUR","units":"3"}}`},
		[]string{`{"deposits":"2","totals":[{"currency":"EUR","units":"5"}]}`},
	},
	{
		"bidi stream", "POST", "/v1/support/chat",
		[]string{`{"author":"Ada","text":"one"}`, `{"author":"Ada","text":"two"}`},
		[]string{`"sequence":"1"`, `"sequence":"2"`},
	},
}

// TestFourKinds makes a call of each kind by REST over every version of HTTP, the whole request first where the client
// streams, and by WebSocket. TestGRPCClient has the same four by native gRPC, TestEveryVersion a REST stream in which
// answers come while the request is open.
func TestFourKinds(t *testing.T) {
	b := startBank(t, bank.Config{})
	p := startTransom(t, "static:///"+b.addr)
	for _, k := range kinds {
		check := func(t *testing.T, got []string) {
			t.Helper()
			if len(got) != len(k.want) {
				t.Fatalf("%d answers, want %d: %q", len(got), len(k.want), got)
			}
			for i, want := range k.want {
				if !strings.Contains(got[i], want) {
					t.Errorf("answer %d is %s, want %s in it", i, got[i], want)
				}
			}
		}
		for version := range versions {
			t.Run(k.name+"/REST over "+version, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				c, base := client(t, p, version)
				req, err := http.NewRequestWithContext(ctx, k.verb, base+k.path, strings.NewReader(strings.Join(k.send, "\n")))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/json")
				if len(k.send) > 1 {
					req.Header.Set("Content-Type", "application/x-ndjson")
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Fatalf("%d %s %v", resp.StatusCode, body, err)
				}
				check(t, strings.Split(strings.TrimSpace(string(body)), "\n"))
			})
		}
		t.Run(k.name+"/WebSocket", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c, _, err := websocket.Dial(ctx, "ws://"+p.Plain+k.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			for _, m := range append(k.send, "") { // an empty frame is the half-close
				if err := c.Write(ctx, websocket.MessageText, []byte(m)); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for {
				_, m, err := c.Read(ctx)
				if err != nil {
					if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
						t.Fatalf("after %q: %v", got, err)
					}
					break
				}
				got = append(got, string(m))
			}
			check(t, got)
		})
	}
}
