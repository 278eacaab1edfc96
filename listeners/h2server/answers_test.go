package h2server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"transom/listeners/h2server"
)

// TestAnswers compares what a handler does with the frames that come of it.
func TestAnswers(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, tc := range []struct {
		name    string
		fields  []string
		body    string // of the request, which has none if it is empty
		handler http.HandlerFunc
		want    []string
	}{
		{
			"nothing", get("/"), "", func(http.ResponseWriter, *http.Request) {},
			[]string{"HEADERS 1 :status=200 content-length=0 END"},
		},
		{"a small body has its length", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "hello")
		}, []string{"HEADERS 1 :status=200 content-type=text/plain; charset=utf-8 content-length=5", "DATA 1 hello END"}},
		{"many small writes are one frame", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{"a/b"}
			for range 5 {
				_, _ = io.WriteString(w, "ab")
			}
		}, []string{"HEADERS 1 :status=200 content-type=a/b content-length=10", "DATA 1 ababababab END"}},
		{"a long body", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{"a/b"}
			_, _ = io.WriteString(w, long)
		}, []string{"HEADERS 1 :status=200 content-type=a/b", "DATA 1 " + long, "DATA 1  END"}},
		{
			"status", get("/"), "", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) },
			[]string{"HEADERS 1 :status=418 content-length=0 END"},
		},
		{
			"no length", get("/"), "", func(w http.ResponseWriter, _ *http.Request) { w.Header()["Content-Length"] = nil },
			[]string{"HEADERS 1 :status=200 END"},
		},
		{"the header is what it was when it was written", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-A", "1")
			w.WriteHeader(http.StatusOK)
			w.Header().Set("X-A", "2")
			w.WriteHeader(http.StatusTeapot)
		}, []string{"HEADERS 1 :status=200 x-a=1 content-length=0 END"}},
		{"flushes", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{"a/b"}
			rc := http.NewResponseController(w)
			_ = rc.Flush()
			_, _ = io.WriteString(w, "a")
			_ = rc.Flush()
			_, _ = io.WriteString(w, "b")
		}, []string{"HEADERS 1 :status=200 content-type=a/b", "DATA 1 a", "DATA 1 b END"}},
		{"HEAD", append([]string{":method: HEAD"}, get("/")[1:]...), "", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "hello")
		}, []string{"HEADERS 1 :status=200 content-length=5 END"}},
		{"204 has no body", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "hello"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Error(err)
			}
		}, []string{"HEADERS 1 :status=204 END"}},
		{"trailers by prefix", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{"a/b"}
			_, _ = io.WriteString(w, "a")
			w.Header()[http.TrailerPrefix+"Grpc-Status"] = []string{"0"}
		}, []string{"HEADERS 1 :status=200 content-type=a/b", "DATA 1 a", "HEADERS 1 grpc-status=0 END"}},
		{"trailers set before the header", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()[http.TrailerPrefix+"X-T"] = []string{"1", "2"}
			w.WriteHeader(http.StatusOK)
		}, []string{"HEADERS 1 :status=200", "HEADERS 1 x-t=1 x-t=2 END"}},
		{"declared trailers", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "x-t, X-U")
			_, _ = io.WriteString(w, "")
			w.Header().Set("X-T", "1")
			w.Header().Set("X-V", "1")
		}, []string{"HEADERS 1 :status=200 trailer=x-t, X-U", "HEADERS 1 x-t=1 END"}},
		{"fields that are not HTTP/2's", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			for _, name := range []string{"Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Proxy-Connection", "a b", "x:y", ""} {
				w.Header()[name] = []string{"x"}
			}
			w.Header()["X-A"] = []string{"a\nb", "c"}
		}, []string{"HEADERS 1 :status=200 x-a=c content-length=0 END"}},
		{"interim answers", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "x")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			w.WriteHeader(http.StatusOK)
		}, []string{"HEADERS 1 :status=103 link=x", "HEADERS 1 :status=200 content-length=0 END"}},
		{"more than the length", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			w.Header()["Content-Type"] = []string{"a/b"}
			_, _ = io.WriteString(w, "ab")
			if _, err := io.WriteString(w, "c"); !errors.Is(err, http.ErrContentLength) {
				t.Error(err)
			}
		}, []string{"HEADERS 1 :status=200 content-length=2 content-type=a/b|HEADERS 1 :status=200 content-type=a/b content-length=2", "DATA 1 ab END"}},
		{"less than the length", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			_, _ = io.WriteString(w, "a")
		}, []string{"RST 1 INTERNAL_ERROR"}},
		{"panic", get("/"), "", func(http.ResponseWriter, *http.Request) { panic("oh") }, []string{"RST 1 INTERNAL_ERROR"}},
		{"abort", get("/"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush() //nolint:forcetypeassert // it is one
			panic(http.ErrAbortHandler)
		}, []string{"HEADERS 1 :status=200", "RST 1 INTERNAL_ERROR"}},
		{
			"an answer before the request has ended", post("/"), "", func(http.ResponseWriter, *http.Request) {},
			[]string{"HEADERS 1 :status=200 content-length=0 END", "RST 1 NO_ERROR"},
		},
		{
			"the body", post("/"), "hello", echo,
			[]string{"HEADERS 1 :status=200 content-type=text/plain; charset=utf-8 content-length=22", "DATA 1 POST / a.example hello END"},
		},
		{"100 is sent when the body is asked for", post("/", "expect: 100-continue"), "", func(w http.ResponseWriter, r *http.Request) {
			if r.Header["Expect"] != nil {
				t.Error("the handler sees Expect")
			}
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := r.Body.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		}, []string{"HEADERS 1 :status=100", "HEADERS 1 :status=200 content-length=0 END", "RST 1 NO_ERROR"}},
		{"100 is not sent when it is not", post("/", "expect: 100-continue"), "", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
		}, []string{"HEADERS 1 :status=418 content-length=0 END", "RST 1 NO_ERROR"}},
		{
			"OPTIONS of the server",
			[]string{":method: OPTIONS", ":scheme: http", ":path: *"},
			"", echo,
			[]string{"HEADERS 1 :status=200 content-length=0 END"},
		},
		{
			"CONNECT",
			[]string{":method: CONNECT", ":authority: a:1"},
			"x", echo,
			[]string{"HEADERS 1 :status=200 content-type=text/plain; charset=utf-8 content-length=17", "DATA 1 CONNECT a:1 a:1 x END"},
		},
		{
			"a header that is too large", get("/", "x: "+strings.Repeat("x", 20<<10)), "", echo,
			[]string{"HEADERS 1 :status=431", "DATA 1 GET \n END"},
		},
		{
			"a header that is too large, whose content-type is known",
			post("/", "content-type: application/grpc", "x: "+strings.Repeat("x", 20<<10)), "x", echo,
			[]string{"HEADERS 1 :status=431", "DATA 1 POST application/grpc\n END"},
		},
		{
			"a header that is too large, whose content-type is not",
			post("/", "x: "+strings.Repeat("x", 20<<10), "content-type: application/grpc"), "x", echo,
			[]string{"HEADERS 1 :status=431", "DATA 1 POST \n END"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, addr := serve(t, config(tc.handler))
			c := dial(t, addr)
			block, rest := c.block(tc.fields...), []byte(nil)
			if len(block) > 16<<10 {
				block, rest = block[:16<<10], block[16<<10:]
			}
			method := tc.fields[0]
			end := tc.body == "" && !strings.HasSuffix(method, "POST")
			_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: end, EndHeaders: rest == nil})
			if rest != nil {
				_ = c.fr.WriteContinuation(1, true, rest)
			}
			if tc.body != "" {
				c.data(1, true, tc.body)
			}
			for _, want := range tc.want {
				got := c.next()
				for strings.HasPrefix(got, "PING") {
					got = c.next()
				}
				if strings.HasSuffix(want, "431") {
					got = got[:len(want)]
				}
				if !slices.Contains(strings.Split(want, "|"), got) {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			c.wantPing()
		})
	}
}

// TestAnsweredEarly answers requests that go on: RST_STREAM does not come with the answer, of which curl 7.88 made "(92) Stream
// error" and nothing else, and not at all if the client ends its request in time.
func TestAnsweredEarly(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	c := dial(t, addr)
	answered := func(id uint32) {
		c.headers(id, false, post("/")...)
		c.want(fmt.Sprintf("HEADERS %d :status=200 content-length=0 END", id))
		_ = c.fr.WritePing(false, [8]byte{'a'})
		c.wantNext(`PING "a\x00\x00\x00\x00\x00\x00\x00" ACK`)
	}
	answered(1)
	c.data(1, false, "more")
	c.data(1, true, "")
	answered(3)
	_ = c.fr.WriteRSTStream(3, http2.ErrCodeNo)
	answered(5)
	c.headers(5, true, "x-trailer: a")
	answered(7)
	c.data(7, false, "more")
	c.wantNext("RST 7 NO_ERROR")
	c.data(7, false, "what was on its way")
	c.wantPing()
	c.data(1, false, "after the end")
	c.wantNext("RST 1 STREAM_CLOSED")

	// So many at once that the first are told at once.
	const first, n = 9, 40
	for i := range uint32(n) {
		c.headers(first+2*i, false, post("/")...)
		c.want(fmt.Sprintf("HEADERS %d", first+2*i))
	}
	for i := range n {
		if want := fmt.Sprintf("RST %d NO_ERROR", first+2*i); !slices.Contains(c.seen, want) {
			c.wantNext(want)
		}
	}
}

// TestRequests compares header blocks with what the handler gets.
func TestRequests(t *testing.T) {
	got := make(chan *http.Request, 1)
	_, addr := serve(t, config(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r })))
	for _, tc := range []struct {
		name   string
		fields []string
		check  func(r *http.Request) any
		want   string
	}{
		{"plain path", get("/a/b.c"), func(r *http.Request) any { return r.URL.Path + " " + r.RequestURI + " " + r.URL.RawQuery }, "/a/b.c /a/b.c "},
		{"path with a query", get("/a%2fb?c=d"), func(r *http.Request) any { return r.URL.Path + " " + r.URL.RawPath + " " + r.URL.RawQuery }, "/a/b /a%2fb c=d"},
		{"two slashes", get("//a/b"), func(r *http.Request) any { return r.URL.Path + " " + r.URL.Host }, "//a/b "},
		{"version", get("/"), func(r *http.Request) any { return fmt.Sprint(r.Proto, r.ProtoMajor, r.ProtoMinor) }, "HTTP/2.02 0"},
		{"authority", get("/"), func(r *http.Request) any { return r.Host }, "a.example"},
		{"host", []string{":method: GET", ":scheme: http", ":path: /", "host: b"}, func(r *http.Request) any { return fmt.Sprint(r.Host, r.Header) }, "bmap[]"},
		{"host that is the authority", get("/", "host: A.example"), func(r *http.Request) any { return fmt.Sprint(r.Host, r.Header) }, "a.examplemap[]"},
		{"names", get("/", "x-some-name: a", "accept: b"), func(r *http.Request) any { return fmt.Sprint(r.Header) }, "map[Accept:[b] X-Some-Name:[a]]"},
		{"values of one name", get("/", "a: 1", "b: 2", "a: 3", "a: 4"), func(r *http.Request) any { return fmt.Sprint(r.Header) }, "map[A:[1 3 4] B:[2]]"},
		{"blanks around a value", get("/", "a:  1 "), func(r *http.Request) any { return fmt.Sprintf("%q", r.Header["A"]) }, `["1"]`},
		{"cookies", get("/", "cookie: a=1", "x: y", "cookie: b=2"), func(r *http.Request) any { return fmt.Sprintf("%q", r.Header["Cookie"]) }, `["a=1; b=2"]`},
		{"trailers are announced to nobody", get("/", "trailer: x", "te: trailers"), func(r *http.Request) any { return fmt.Sprint(r.Header, r.Trailer) }, "map[Te:[trailers]] map[]"},
		{"length", get("/", "content-length: 0"), func(r *http.Request) any { return fmt.Sprint(r.ContentLength, r.Body == http.NoBody, r.Header) }, "0 true map[Content-Length:[0]]"},
		{"peer", get("/"), func(r *http.Request) any { return strings.HasPrefix(r.RemoteAddr, "127.0.0.1:") && r.TLS == nil }, "true"},
	} {
		c := dial(t, addr)
		c.headers(1, true, tc.fields...)
		c.want("HEADERS 1")
		if s := fmt.Sprint(tc.check(<-got)); s != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, s, tc.want)
		}
	}
}

// TestWindows has a client whose windows are small: what is sent keeps to them, and goes on when they grow, are raised by
// SETTINGS or even become negative first.
func TestWindows(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = []string{"a/b"}
		_, _ = io.WriteString(w, strings.Repeat("0123456789", 1000))
	})))
	c := dial(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3})
	c.headers(1, true, get("/")...)
	c.want("HEADERS 1")
	c.wantNext("DATA 1 012")
	_ = c.fr.WriteWindowUpdate(1, 2)
	c.wantNext("DATA 1 34")
	_ = c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}) // 2 below 0
	_ = c.fr.WriteWindowUpdate(1, 3)
	c.wantNext("DATA 1 5")
	_ = c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10000})
	n := 6
	for n < 10000 {
		got := c.next()
		n += len(strings.TrimSuffix(got, " END")) - len("DATA 1 ")
	}
	if n != 10000 {
		t.Errorf("%d bytes came, want 10,000", n)
	}
}

// TestConnectionWindow has two answers share the connection's window, of which there is less than they need.
func TestConnectionWindow(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 100_000))
	})))
	c := dial(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	got := [4]int{}
	read := func(most int) {
		for got[1]+got[3] < most {
			f, err := c.frame()
			if err != nil {
				t.Fatal(err)
			}
			if d, ok := f.(*http2.DataFrame); ok {
				got[d.StreamID] += len(d.Data())
			}
		}
	}
	c.headers(1, true, get("/")...)
	c.headers(3, true, get("/")...)
	read(65535)
	c.wantPing()
	_ = c.fr.WriteWindowUpdate(0, 200_000-65535)
	read(200_000)
	if got[1] != 100_000 || got[3] != 100_000 {
		t.Errorf("%v", got)
	}
}

// TestUpload sends a body of many windows, padded too: all of it arrives, and the windows are given back as it is read, not
// before.
func TestUpload(t *testing.T) {
	const size = 3 << 20
	began, goOn := make(chan struct{}), make(chan struct{})
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-goOn
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})))
	c := dial(t, addr)
	c.headers(1, false, post("/")...)
	c.wantPing() // behind the connection's first window
	chunk := bytes.Repeat([]byte("x"), 16<<10-100)
	stream, conn := 64<<10, 1<<20
	sent := 0
	for begun := false; sent < size; {
		for stream < 16<<10 || conn < 16<<10 {
			if !begun {
				begun = true
				<-began
				c.wantPing() // and no window is given back
				close(goOn)
			}
			f, err := c.frame()
			if err != nil {
				t.Fatal(err)
			}
			if u, ok := f.(*http2.WindowUpdateFrame); ok && u.StreamID == 1 {
				stream += int(u.Increment)
			} else if ok {
				conn += int(u.Increment)
			}
		}
		if err := c.fr.WriteDataPadded(1, false, chunk, make([]byte, 99)); err != nil {
			t.Fatal(err)
		}
		sent += len(chunk)
		stream, conn = stream-16<<10, conn-16<<10
	}
	c.data(1, true, "")
	c.want("HEADERS 1")
	c.want(fmt.Sprintf("DATA 1 %d <nil> END", sent))
}

// TestUnreadBodies has handlers that do not read what is sent to them: the connection's window comes back all the same.
func TestUnreadBodies(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _ = r.Body.Close() })))
	c := dial(t, addr)
	c.wantPing()
	conn := 1 << 20
	for i := range uint32(200) {
		id := 2*i + 1
		c.headers(id, false, post("/")...)
		for range 3 {
			for conn < 16000 {
				f, err := c.frame()
				if err != nil {
					t.Fatal(err)
				}
				if u, ok := f.(*http2.WindowUpdateFrame); ok && u.StreamID == 0 {
					conn += int(u.Increment)
				}
			}
			c.data(id, false, strings.Repeat("x", 16000))
			conn -= 16000
		}
		_ = c.fr.WriteRSTStream(id, http2.ErrCodeCancel) // whether it has ended by then or not
	}
	c.wantPing()
}

// TestCancel resets streams in all their stages: the handler's context ends, and so do reads and writes that wait.
func TestCancel(t *testing.T) {
	for _, tc := range []struct {
		name string
		wait func(w http.ResponseWriter, r *http.Request) error
	}{
		{"context", func(_ http.ResponseWriter, r *http.Request) error {
			<-r.Context().Done()
			return context.Cause(r.Context())
		}},
		{"read", func(_ http.ResponseWriter, r *http.Request) error {
			_, err := r.Body.Read(make([]byte, 1))
			return err
		}},
		{"write", func(w http.ResponseWriter, _ *http.Request) error {
			_, err := w.Write(make([]byte, 1<<20))
			return err
		}},
	} {
		for _, how := range []string{"reset", "close", "fault"} {
			t.Run(tc.name+" "+how, func(t *testing.T) {
				began, ended := make(chan struct{}), make(chan error, 1)
				_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/wait" {
						return
					}
					close(began)
					err := tc.wait(w, r)
					<-r.Context().Done()
					ended <- err
				})))
				c := dial(t, addr)
				c.headers(1, false, post("/wait")...)
				<-began
				switch how {
				case "reset":
					_ = c.fr.WriteRSTStream(1, http2.ErrCodeCancel)
				case "close":
					_ = c.nc.Close()
				case "fault":
					_ = c.fr.WriteWindowUpdate(1, 0)
				}
				select {
				case err := <-ended:
					if err == nil {
						t.Error("no error")
					}
				case <-time.After(patience):
					t.Fatal("the handler goes on")
				}
				if how != "close" {
					c.headers(3, true, get("/")...)
					c.want("HEADERS 3")
				}
			})
		}
	}
}

// TestConcurrency opens more streams than there may be: those that have not been reset are served in their order once there
// is room, no more handlers run than may, and streams beyond the limit are refused.
func TestConcurrency(t *testing.T) {
	running, goOn := make(chan string, 10), make(chan struct{})
	cfg := config(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		running <- r.URL.Path
		<-goOn
	}))
	cfg.MaxStreams = 2
	_, addr := serve(t, cfg)
	c := dial(t, addr)
	c.headers(1, true, get("/1")...)
	c.headers(3, true, get("/3")...)
	got := []string{<-running, <-running}
	slices.Sort(got)
	if !slices.Equal(got, []string{"/1", "/3"}) {
		t.Fatal(got)
	}
	c.headers(5, true, get("/5")...)
	c.want("RST 5 REFUSED_STREAM")
	_ = c.fr.WriteRSTStream(1, http2.ErrCodeCancel) // its handler goes on
	_ = c.fr.WriteRSTStream(3, http2.ErrCodeCancel)
	c.headers(7, true, get("/7")...)
	c.headers(9, true, get("/9")...)
	_ = c.fr.WriteRSTStream(7, http2.ErrCodeCancel)
	c.headers(11, true, get("/11")...)
	c.wantPing()
	select {
	case path := <-running:
		t.Fatalf("%s is served beside two others", path)
	default:
	}
	close(goOn)
	c.want("HEADERS")
	c.want("HEADERS")
	got = []string{<-running, <-running}
	slices.Sort(got)
	if !slices.Equal(got, []string{"/11", "/9"}) {
		t.Error(got)
	}
}

// TestDrain ends connections: those without requests at once, others with their last. Requests that were on their way when the
// client was told are served.
func TestDrain(t *testing.T) {
	goOn, began := make(chan struct{}), make(chan struct{}, 1)
	s, addr := serve(t, config(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			began <- struct{}{}
			<-goOn
		}
	})))
	idle, busy := dial(t, addr), dial(t, addr)
	idle.wantPing()
	busy.headers(1, true, get("/slow")...)
	<-began
	s.GoAway()
	idle.want("GOAWAY 2147483647 NO_ERROR")
	idle.wantNext(`PING "go away."`)
	idle.headers(1, true, get("/")...) // on its way
	_ = idle.fr.WritePing(true, [8]byte{'g', 'o', ' ', 'a', 'w', 'a', 'y', '.'})
	var answered, told bool
	for got := idle.next(); got != "EOF"; got = idle.next() {
		answered = answered || strings.HasPrefix(got, "HEADERS 1 ")
		told = told || got == "GOAWAY 1 NO_ERROR"
	}
	if !answered || !told {
		t.Errorf("answered %v, told %v", answered, told)
	}
	busy.want("GOAWAY 2147483647 NO_ERROR")
	busy.want("GOAWAY 1 NO_ERROR") // a second later, since it does not answer
	busy.headers(3, true, get("/")...)
	busy.data(3, true, "")
	close(goOn)
	busy.want("HEADERS 1")
	if got := busy.next(); got != "EOF" {
		t.Errorf("got %s", got)
	}
	late := dial(t, addr)
	late.want("GOAWAY 2147483647 NO_ERROR")
}

// TestAge tells the client of an old connection to open another, and serves the request that it has under way to its end.
func TestAge(t *testing.T) {
	goOn := make(chan struct{})
	cfg := config(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-goOn }))
	cfg.MaxAge = 50 * time.Millisecond
	_, addr := serve(t, cfg)
	c := dial(t, addr)
	c.headers(1, true, get("/")...)
	c.want("GOAWAY 2147483647 NO_ERROR")
	c.want("GOAWAY 1 NO_ERROR")
	close(goOn)
	c.want("HEADERS 1")
	if got := c.next(); got != "EOF" {
		t.Errorf("got %s", got)
	}
}

// TestTimeouts are clients that do not get on.
func TestTimeouts(t *testing.T) {
	const (
		short = 50 * time.Millisecond
		long  = time.Second // for what the client sends in time
	)
	for _, tc := range []struct {
		name string
		set  func(cfg *h2server.Config)
		send func(c *client)
		want string
	}{
		{"no SETTINGS", func(cfg *h2server.Config) { cfg.HeaderTimeout = short }, func(*client) {}, "GOAWAY 0 SETTINGS_TIMEOUT"},
		{"no preface", func(cfg *h2server.Config) { cfg.HeaderTimeout = short }, nil, "GOAWAY 0 SETTINGS_TIMEOUT"},
		{"no acknowledgement", func(cfg *h2server.Config) { cfg.HeaderTimeout = short }, func(c *client) { _ = c.fr.WriteSettings() }, "GOAWAY 0 SETTINGS_TIMEOUT"},
		{"half a header", func(cfg *h2server.Config) { cfg.HeaderTimeout = long }, func(c *client) {
			_ = c.fr.WriteSettings()
			_ = c.fr.WriteSettingsAck()
			_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(get("/")...)})
		}, "GOAWAY 0 ENHANCE_YOUR_CALM"},
		{"no request", func(cfg *h2server.Config) { cfg.IdleTimeout = short }, func(c *client) { _ = c.fr.WriteSettings() }, "GOAWAY 0 NO_ERROR"},
		{"no further request", func(cfg *h2server.Config) { cfg.IdleTimeout = long }, func(c *client) {
			_ = c.fr.WriteSettings()
			c.headers(1, true, get("/")...)
		}, "GOAWAY 1 NO_ERROR"},
		{"no answer to PING", func(cfg *h2server.Config) { cfg.PingAfter, cfg.PingTimeout = long, short }, func(c *client) {
			_ = c.fr.WriteSettings()
			c.headers(1, true, get("/wait")...)
		}, `PING "\x00\x00\x00\x00\x00\x00\x00\x00"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/wait" {
					<-r.Context().Done()
				}
			}))
			tc.set(&cfg)
			_, addr := serve(t, cfg)
			c := dialBare(t, addr)
			if tc.send != nil {
				c.raw(http2.ClientPreface)
				tc.send(c)
			}
			c.want(tc.want)
			if got := c.next(); got != "EOF" {
				t.Errorf("got %s", got)
			}
		})
	}
}

// TestStall has a client that takes nothing: an answer that waits for its window is reset, one that waits for its socket loses
// the connection, and neither holds up a handler longer.
func TestStall(t *testing.T) {
	for _, tc := range []struct {
		name   string
		window uint32
	}{{"window", 0}, {"socket", 1 << 30}} {
		t.Run(tc.name, func(t *testing.T) {
			ended := make(chan error, 1)
			cfg := config(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				var err error
				for err == nil {
					_, err = w.Write(make([]byte, 64<<10))
				}
				ended <- err
			}))
			cfg.WriteStall = 100 * time.Millisecond
			_, addr := serve(t, cfg)
			c := dial(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: tc.window})
			_ = c.fr.WriteWindowUpdate(0, 1<<30)
			c.headers(1, true, get("/")...)
			select {
			case err := <-ended:
				if !errors.Is(err, os.ErrDeadlineExceeded) && tc.window == 0 {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("the handler is held up")
			}
			if tc.window == 0 {
				c.want("RST 1 INTERNAL_ERROR")
				c.wantPing()
			}
		})
	}
}

// TestDeadlines sets deadlines, past and to come, before and while something waits.
func TestDeadlines(t *testing.T) {
	result := make(chan error, 1)
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		at := time.Now().Add(20 * time.Millisecond)
		set, wait := rc.SetReadDeadline, func() error { _, err := r.Body.Read(make([]byte, 1)); return err }
		if strings.HasPrefix(r.URL.Path, "/write") {
			set, wait = rc.SetWriteDeadline, func() error { _, err := w.Write(make([]byte, 1<<20)); return err }
		}
		switch _, when, _ := strings.Cut(r.URL.Path, "-"); when {
		case "past":
			_ = set(time.Unix(1, 0))
		case "soon":
			_ = set(at)
		case "meanwhile":
			time.AfterFunc(20*time.Millisecond, func() { _ = set(time.Unix(1, 0)) })
		}
		result <- errors.Join(wait(), rc.EnableFullDuplex())
	})))
	for _, path := range []string{"/read-past", "/read-soon", "/read-meanwhile", "/write-past", "/write-soon", "/write-meanwhile"} {
		c := dial(t, addr)
		c.headers(1, false, post(path)...)
		if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", path, err)
		}
		c.wantPing()
	}
}

// TestAfterReturn uses a request and its answer when its handler has returned: all fails, and nothing is sent.
func TestAfterReturn(t *testing.T) {
	type both struct {
		w http.ResponseWriter
		r *http.Request
	}
	got := make(chan both, 1)
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got <- both{w, r} })))
	c := dial(t, addr)
	c.headers(1, false, post("/")...)
	c.data(1, true, "hello")
	c.want("HEADERS 1")
	b := <-got
	c.wantPing()
	<-b.r.Context().Done()
	if _, err := b.w.Write([]byte("x")); err == nil {
		t.Error("Write goes well")
	}
	if err := http.NewResponseController(b.w).Flush(); err == nil {
		t.Error("Flush goes well")
	}
	b.w.WriteHeader(http.StatusTeapot)
	if _, err := b.r.Body.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("Read: %v", err)
	}
	_ = b.r.Body.Close()
	_ = http.NewResponseController(b.w).SetReadDeadline(time.Now())
	_ = c.fr.WritePing(false, [8]byte{1})
	c.wantNext(`PING "\x01\x00\x00\x00\x00\x00\x00\x00" ACK`)
}

// TestTableSizes lets the client change the size of its header table, while answers use it.
func TestTableSizes(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = []string{"text/" + strings.Repeat("x", len(r.URL.Path))}
		w.Header()["Vary"] = []string{"Origin"}
	})))
	c := dial(t, addr)
	id := uint32(1)
	for i, size := range []uint32{4096, 0, 100, 4096, 60, 1 << 20} {
		_ = c.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: size})
		c.wantPing()
		c.dec.SetAllowedMaxDynamicTableSize(size)
		for j := range 3 {
			path := "/" + strings.Repeat("a", (i+j)%3)
			c.headers(id, true, get(path)...)
			if got := c.want(fmt.Sprintf("HEADERS %d", id)); !strings.Contains(got, "content-type=text/"+strings.Repeat("x", len(path))+" ") || !strings.Contains(got, "vary=Origin") {
				t.Errorf("table of %d: %s", size, got)
			}
			id += 2
		}
	}
}

// A handler may leave a goroutine behind that waits for the request's body: it ends with the handler.
func TestReadEndsWithHandler(t *testing.T) {
	returns, read := make(chan struct{}), make(chan error, 1)
	_, addr := serve(t, config(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		go func() {
			_, err := r.Body.Read(make([]byte, 1))
			read <- err
		}()
		<-returns
	})))
	c := dial(t, addr)
	c.headers(1, false, post("/", "expect: 100-continue")...)
	for c.next() != "HEADERS 1 :status=100" { // which says that the body is being read
		continue
	}
	close(returns)
	select {
	case err := <-read:
		if !errors.Is(err, http.ErrBodyReadAfterClose) {
			t.Errorf("the read ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("the read goes on")
	}
}

// A client may end any number of streams by a reset that it has begun to get the answers of: to watch something until it has
// happened is what they are for, and calls beside them must go on.
func TestResetsOfAnswers(t *testing.T) {
	_, addr := serve(t, config(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})))
	c := dial(t, addr)
	for id := uint32(1); id < 2*600; id += 2 {
		c.headers(id, true, get("/")...)
		c.want(fmt.Sprintf("HEADERS %d", id))
		_ = c.fr.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	c.wantPing()
}

// A client whose timeout has run out resets its stream, as those of gRPC and Connect do, and may do so with any number of streams. A timeout that lets a
// stream be reset at once is no excuse.
func TestResetsAtTheDeadline(t *testing.T) {
	for _, tc := range []struct {
		timeout string
		after   time.Duration
		want    string
	}{
		{"grpc-timeout: 100m", 100 * time.Millisecond, ""},
		{"grpc-timeout: 100m", 95 * time.Millisecond, ""}, // the request took 5 ms longer than the reset
		{"grpc-timeout: 2S", 2 * time.Second, ""},
		{"connect-timeout-ms: 100", 100 * time.Millisecond, ""},
		{"grpc-timeout: 100m", 50 * time.Millisecond, "ENHANCE_YOUR_CALM"},
		{"grpc-timeout: 99m", 99 * time.Millisecond, "ENHANCE_YOUR_CALM"},
		{"grpc-timeout: 1n", time.Millisecond, "ENHANCE_YOUR_CALM"},
		{"grpc-timeout: 1x", time.Second, "ENHANCE_YOUR_CALM"},
		{"connect-timeout-ms: 99", 99 * time.Millisecond, "ENHANCE_YOUR_CALM"},
		{"connect-timeout-ms: 10000000000", time.Second, "ENHANCE_YOUR_CALM"},
		{"", time.Second, "ENHANCE_YOUR_CALM"},
	} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			s := h2server.New(config(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })))
			var wg sync.WaitGroup
			wg.Go(func() { s.Serve(context.WithoutCancel(t.Context()), h2server.Socket{Conn: far, Raw: far}) })
			c := clientOn(t, near)
			got := ""
			wg.Go(func() {
				for f, err := c.fr.ReadFrame(); err == nil; f, err = c.fr.ReadFrame() {
					if f, ok := f.(*http2.GoAwayFrame); ok && got == "" {
						got = f.ErrCode.String()
					}
				}
			})
			c.raw(http2.ClientPreface)
			_ = c.fr.WriteSettings()
			_ = c.fr.WriteSettingsAck()
			fields := post("/")
			if tc.timeout != "" {
				fields = append(fields, tc.timeout)
			}
			for id := uint32(1); id < 2*600; id += 2 {
				c.headers(id, true, fields...)
				time.Sleep(tc.after)
				_ = c.fr.WriteRSTStream(id, http2.ErrCodeCancel)
			}
			synctest.Wait()
			if tc.want == "" && got != "" || tc.want != "" && got != tc.want {
				t.Errorf("timeout %q, reset after %v: GOAWAY %q, want %q", tc.timeout, tc.after, got, tc.want)
			}
			_ = near.Close()
			wg.Wait()
			s.Close()
			synctest.Wait()
		})
	}
}
