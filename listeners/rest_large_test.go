package listeners_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/listeners"
	"transom/rpc"
	"transom/transcoder"
)

// owners is a JSON array, one element a line; the element at, if it is one, is replaced.
func owners(n, at int, element string) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`{"name":"owner %d é","age":%d,"tags":["a","b"]}`, i, i)
	}
	if at < n {
		list[at] = element
	}
	return "[" + strings.Join(list, ",\n ") + "]\n"
}

// TestLargeBodies: a body that becomes the message while it is read makes the message that the whole body makes, or is
// refused for the same reason at the same place.
func TestLargeBodies(t *testing.T) {
	const many = 3000
	file := strings.Repeat("\x00\xff data", 20_000)
	for _, c := range []struct {
		name, verb, path, ctype, body string
		fault                         string // of what is no array; other faults are those of the whole body
	}{
		{name: "list", verb: "PUT", path: "/v1/lists/a?int32=5", body: owners(many, many, "")},
		{name: "list of strings", verb: "PUT", path: "/v1/tags/a", body: `["",` + strings.Repeat(` "x\u00e9", `+"\n"+`"",`, 9000) + `"y"]`},
		{name: "white space", verb: "PUT", path: "/v1/lists/a", body: strings.Repeat(" \n", 50_000) + `[ { } , {"name":"x"}]` + strings.Repeat("\t", 50_000)},
		{name: "nothing but white space and an empty list", verb: "PUT", path: "/v1/lists/a", body: strings.Repeat(" ", 100_000) + `[ ]`},
		{name: "null", verb: "PUT", path: "/v1/lists/a", body: strings.Repeat(" ", 100_000) + "null"},
		{name: "an object", verb: "PUT", path: "/v1/lists/a", body: strings.Repeat(" ", 100_000) + `{"name":"x"}`},
		{name: "wrong type", verb: "PUT", path: "/v1/lists/a", body: owners(many, 2500, `{"name":"x","age":"old"}`)},
		{name: "wrong type lines below", verb: "PUT", path: "/v1/lists/a", body: owners(many, 2500, "{\n\n \"parent\": {\"age\":1.5}}")},
		{name: "unknown field", verb: "PUT", path: "/v1/lists/a", body: owners(many, 2999, `{"nope":1}`)},
		{name: "null element", verb: "PUT", path: "/v1/lists/a", body: owners(many, 1, `null`)},
		{name: "wrong query", verb: "PUT", path: "/v1/lists/a?id=b", body: owners(many, many, "")},
		{name: "deep", verb: "PUT", path: "/v1/lists/a", body: owners(many, 7, strings.Repeat(`{"parent":`, 99)+"{}"+strings.Repeat("}", 99))},
		{name: "too deep", verb: "PUT", path: "/v1/lists/a", body: owners(many, 7, strings.Repeat(`{"parent":`, 100)+"{}"+strings.Repeat("}", 100))},
		{name: "no comma", verb: "PUT", path: "/v1/lists/a", body: owners(many, 7, `{} {}`), fault: "message 9 at byte"},
		{name: "not closed", verb: "PUT", path: "/v1/lists/a", body: strings.TrimSuffix(owners(many, many, ""), "]\n"), fault: "the array is not closed"},
		{name: "text behind it", verb: "PUT", path: "/v1/lists/a", body: owners(many, many, "") + "x", fault: "after the array"},
		{name: "form", verb: "PUT", path: "/v1/items/a", ctype: "application/x-www-form-urlencoded", body: "bool=true&strings=" + strings.Repeat("x", 100_000)},
		{name: "file", verb: "POST", path: "/v1/uploads/a", ctype: "image/png", body: file},
		{name: "file without a type", verb: "POST", path: "/v1/raws", body: file},
		{name: "file in the query's company", verb: "POST", path: "/v1/raw?name=x", ctype: "a/b\x80", body: file},
	} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, chunked %v", c.name, chunked), func(t *testing.T) {
				var got []byte
				v := itemsView(t, func(ctx context.Context, call *rpc.Call) error {
					m, err := call.Stream.Recv(ctx)
					if err != nil {
						return err
					}
					got = slices.Clone(m.Bytes())
					m.Release()
					return call.Stream.Send(ctx, rpc.Message{})
				})
				srv := httptest.NewServer(listeners.NewFront(listeners.FrontConfig{}, v, slog.New(slog.DiscardHandler)))
				defer srv.Close()
				var body io.Reader = strings.NewReader(c.body)
				if chunked {
					body = io.MultiReader(body)
				}
				req, err := http.NewRequestWithContext(t.Context(), c.verb, srv.URL+c.path, body)
				if err != nil {
					t.Fatal(err)
				}
				if c.ctype != "" {
					req.Header.Set("Content-Type", c.ctype)
				}
				resp, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				if c.fault != "" {
					if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), c.fault) {
						t.Errorf("got %d %s, want 400 with %q", resp.StatusCode, text, c.fault)
					}
					return
				}
				match, err := v.MatchHTTP(c.verb, req.URL.Path, "")
				if err != nil {
					t.Fatal(err)
				}
				plan := v.plans.Method(match.Binding.Method)
				want, err := plan.AppendRequest(nil, &match, req.URL.RawQuery, c.ctype, []byte(c.body))
				if err != nil {
					st := status.Convert(err)
					body := string(v.plans.AppendStatus(nil, st, transcoder.HTTPStatusOf(err)))
					if string(text) != body || st.Code() != codes.InvalidArgument {
						t.Errorf("got %d %s, want %s", resp.StatusCode, text, body)
					}
					return
				}
				if resp.StatusCode != http.StatusOK || string(got) != string(want) {
					t.Errorf("got %d %.200s and %d bytes, want %d", resp.StatusCode, text, len(got), len(want))
				}
			})
		}
	}
}

// TestLargeBodyMemory: while a large list or file of known length is received, no more than the message that it becomes is
// in memory; a body over the limit takes a few times the limit, of 8 MiB, whatever its size.
func TestLargeBodyMemory(t *testing.T) {
	const size = 7 << 20
	element := `{"name":"` + strings.Repeat("n", 400) + `","age":7},` + "\n"
	for _, c := range []struct {
		name, verb, path, ctype string
		size                    int
		chunked                 bool
		piece                   string
		code                    int
		most                    int64 // bytes of live heap
	}{
		{name: "list", verb: "PUT", path: "/v1/lists/a", size: size, piece: element, code: 200, most: size * 9 / 8},
		{name: "file", verb: "POST", path: "/v1/raws", ctype: "a/b", size: size, piece: strings.Repeat("x", 500), code: 200, most: size * 9 / 8},
		{name: "list over the limit", verb: "PUT", path: "/v1/lists/a", size: 100 << 20, chunked: true, piece: element, code: 413, most: 4 * (8 << 20)},
		{name: "file over the limit", verb: "POST", path: "/v1/raws", ctype: "a/b", size: 100 << 20, chunked: true, piece: strings.Repeat("x", 500), code: 413, most: 4 * (8 << 20)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var peak atomic.Int64
			sample := func() {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), int64(m.HeapAlloc)))
			}
			v := itemsView(t, func(ctx context.Context, call *rpc.Call) error {
				m, err := call.Stream.Recv(ctx)
				if err != nil {
					return err
				}
				sample()
				if m.Len() < c.size/2 {
					t.Errorf("got %d bytes", m.Len())
				}
				m.Release()
				return call.Stream.Send(ctx, rpc.Message{})
			})
			srv := httptest.NewServer(listeners.NewFront(listeners.FrontConfig{}, v, slog.New(slog.DiscardHandler)))
			defer srv.Close()
			body := &pieces{piece: c.piece, n: c.size / len(c.piece), sample: sample}
			length := int64(body.n * len(c.piece))
			if c.ctype == "" {
				body.begin, body.end = "[", "{}]"
				length += int64(len(body.begin) + len(body.end))
			}
			req, err := http.NewRequestWithContext(t.Context(), c.verb, srv.URL+c.path, body)
			if err != nil {
				t.Fatal(err)
			}
			if !c.chunked {
				req.ContentLength = length
			}
			req.Header.Set("Content-Type", c.ctype)
			if c.ctype == "" {
				req.Header.Del("Content-Type")
			}
			sample()
			before := peak.Load()
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			grown := peak.Load() - before
			t.Logf("%d KiB of live heap for %d KiB", grown>>10, c.size>>10)
			if resp.StatusCode != c.code || grown > c.most {
				t.Errorf("got %d and %d bytes of live heap, want %d and at most %d", resp.StatusCode, grown, c.code, c.most)
			}
		})
	}
}

// pieces is a body that is nowhere whole: begin, n times piece, end. It samples once a MiB.
type pieces struct {
	begin, piece, end string
	n                 int
	sample            func()
	rest              string
	read              int
	begun, ended      bool
}

func (p *pieces) Read(b []byte) (int, error) {
	for p.rest == "" {
		switch {
		case !p.begun:
			p.begun, p.rest = true, p.begin
		case p.n > 0:
			p.n--
			p.rest = p.piece
		case !p.ended:
			p.ended, p.rest = true, p.end
		default:
			return 0, io.EOF
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	if before := p.read; before>>20 != (before+n)>>20 {
		p.sample()
	}
	p.read += n
	return n, nil
}
