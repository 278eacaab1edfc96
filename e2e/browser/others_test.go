package browser

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"transom/cmd/transom/demo/bank"
)

// The bundle of the clients that others wrote, see clients/clients.js. `make e2e` builds it.
const othersBundle = "clients/dist/clients.js"

// openOthers is open, with the bundle loaded into the page as the object clients. flags say which version of HTTP it speaks.
func openOthers(t *testing.T, w *world, url string, flags ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	code, err := os.ReadFile(othersBundle)
	if err != nil {
		t.Fatalf("%v: run make web first", err)
	}
	ctx := open(t, w, url, flags...)
	eval(ctx, t, `(0, eval)(args.code)`, map[string]any{"code": string(code)}, nil)
	return ctx
}

// results is what a client of clients.js tells.
type results struct {
	Unary     string
	Code      int
	Details   bool
	Deadline  int
	Metadata  []string
	Version   string
	Generated int
	Late      int
	LateCode  int
	// Only of some clients.
	Verbs   []string
	Aborted int
	Chat    []string
}

func (r results) check(t *testing.T, version string) {
	t.Helper()
	if r.Unary != "customers/3/accounts/1" || r.Code != 5 || !r.Details || r.Deadline != 4 || r.Generated != 100_000 ||
		r.Late != 3 || r.LateCode != 10 {
		t.Errorf("the page got %+v", r)
	}
	if fmt.Sprint(r.Metadata) != "[1 2 3]" {
		t.Errorf("header, trailer and request metadata %q", r.Metadata)
	}
	if r.Version != version {
		t.Errorf("the calls went over %q, want %q", r.Version, version)
	}
}

// The clients that others wrote, over HTTP/2 and HTTP/3, from pages of the gateway's own origin, of a foreign one that is
// allowed, and of one that is not.
func TestOtherClients(t *testing.T) {
	w := start(t)
	base, set := "https://"+w.secure, base64.StdEncoding.EncodeToString(bank.DescriptorSet())
	for _, version := range []string{"h2", "h3"} {
		flag := chromedp.Flag("disable-quic", true)
		if version == "h3" {
			flag = chromedp.Flag("origin-to-force-quic-on", w.secure)
		}
		for origin, url := range map[string]string{"Own": base + "/healthz", "Foreign": w.page} {
			t.Run(version+origin, func(t *testing.T) {
				ctx := openOthers(t, w, url, flag)
				for _, format := range []string{"text", "binary"} {
					t.Run("GRPCWeb/"+format, func(t *testing.T) {
						var out results
						eval(ctx, t, `return await clients.officialGRPCWeb(args)`, map[string]any{"base": base, "set": set, "format": format}, &out)
						out.check(t, version)
						expectCanceled(t, w, "/Slow")
					})
				}
				for _, kind := range []string{"json", "binary", "get", "grpc-web"} {
					t.Run("Connect/"+kind, func(t *testing.T) {
						var out results
						eval(ctx, t, `return await clients.connect(args)`, map[string]any{"base": base, "set": set, "kind": kind}, &out)
						out.check(t, version)
						verb := "POST"
						if kind == "get" {
							verb = "GET"
						}
						if out.Aborted != 1 || !slices.Equal(out.Verbs, []string{verb}) {
							t.Errorf("the aborted call ended with %d, want 1; the requests were %q, want %s", out.Aborted, out.Verbs, verb)
						}
						expectCanceled(t, w, "/Slow")
					})
				}
				for _, kind := range []string{"fetch", "websocket"} {
					t.Run("Improbable/"+kind, func(t *testing.T) {
						var out results
						eval(ctx, t, `return await clients.improbableGRPCWeb(args)`, map[string]any{"base": base, "set": set, "kind": kind}, &out)
						if kind == "fetch" {
							out.check(t, version)
						} else { // which is no resource of the page
							out.check(t, "")
							if got, want := strings.Join(out.Chat, "|"), `Hello! How can I help?|You said "hi".|Goodbye.`; got != want {
								t.Errorf("chat %q, want %q", got, want)
							}
						}
						expectCanceled(t, w, "/Slow")
					})
				}
			})
		}
		t.Run(version+"Refused", func(t *testing.T) {
			ctx := openOthers(t, w, w.foreign, flag)
			var answered []string
			eval(ctx, t, `return await clients.refused(args)`, map[string]any{"base": base, "set": set}, &answered)
			if len(answered) > 0 {
				t.Errorf("a page of an origin that is not allowed got answers by %q", answered)
			}
		})
	}
}
