package h2server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"transom/listeners/h2server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what takes no time.
const patience = 20 * time.Second

// config has limits that no test reaches unless it means to.
func config(h http.Handler) h2server.Config {
	return h2server.Config{
		Handler: h, MaxStreams: 100, MaxHeaderBytes: 16 << 10, HeaderTimeout: time.Minute, MaxAge: time.Hour, IdleTimeout: time.Minute,
		WriteStall: time.Minute, PingAfter: time.Minute, PingTimeout: time.Minute,
		TooLarge: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, r.Method+" "+r.Header.Get("Content-Type"), http.StatusRequestHeaderFieldsTooLarge)
		}),
	}
}

// serve serves h on loopback and returns the address.
func serve(t testing.TB, cfg h2server.Config) (*h2server.Server, string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := h2server.New(cfg)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				s.Serve(context.WithoutCancel(t.Context()), h2server.Socket{Conn: c, Raw: c})
			})
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
		s.Close()
	})
	return s, lis.Addr().String()
}

// client is a client that sends any frames at all, and reads what comes.
type client struct {
	t    *testing.T
	nc   net.Conn
	fr   *http2.Framer
	buf  bytes.Buffer
	enc  *hpack.Encoder
	dec  *hpack.Decoder
	got  []hpack.HeaderField // of the last header block
	seen []string            // of the server's frames, those that await has passed
}

// dial connects and sends the preface, and SETTINGS with what is given.
func dial(t *testing.T, addr string, settings ...http2.Setting) *client {
	t.Helper()
	c := dialBare(t, addr)
	c.raw(http2.ClientPreface)
	if err := c.fr.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	_ = c.fr.WriteSettingsAck()
	return c
}

func dialBare(t *testing.T, addr string) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return clientOn(t, nc)
}

func clientOn(t *testing.T, nc net.Conn) *client {
	c := &client{t: t, nc: nc, fr: http2.NewFramer(nc, nc)}
	c.fr.AllowIllegalWrites, c.fr.AllowIllegalReads = true, true
	c.enc = hpack.NewEncoder(&c.buf)
	c.dec = hpack.NewDecoder(4096, nil)
	return c
}

// raw sends bytes.
func (c *client) raw(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, s); err != nil {
		c.t.Fatal(err)
	}
}

// block encodes fields, given as "name: value"; a name may begin with a colon.
func (c *client) block(fields ...string) []byte {
	c.buf.Reset()
	for _, f := range fields {
		i := strings.Index(f[1:], ": ") + 1
		_ = c.enc.WriteField(hpack.HeaderField{Name: f[:i], Value: f[i+2:]})
	}
	return c.buf.Bytes()
}

// get are the fields of a request for path.
func get(path string, more ...string) []string {
	return append([]string{":method: GET", ":scheme: http", ":authority: a.example", ":path: " + path}, more...)
}

func post(path string, more ...string) []string {
	return append([]string{":method: POST", ":scheme: http", ":authority: a.example", ":path: " + path}, more...)
}

// headers sends HEADERS.
func (c *client) headers(id uint32, end bool, fields ...string) {
	_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(fields...), EndStream: end, EndHeaders: true})
}

func (c *client) data(id uint32, end bool, p string) { _ = c.fr.WriteData(id, end, []byte(p)) }

// next reads a frame and says what it is: "HEADERS 1 :status=200 …", "DATA 1 hello END", "RST 1 CANCEL", "GOAWAY 5 NO_ERROR",
// "PING …"; "EOF" when the connection is closed. SETTINGS and WINDOW_UPDATE are left out.
func (c *client) next() string {
	for {
		f, err := c.frame()
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				c.t.Fatalf("nothing comes; before: %q", c.seen)
			}
			return "EOF"
		}
		end := ""
		if f.Header().Flags.Has(http2.FlagDataEndStream) {
			end = " END"
		}
		id := f.Header().StreamID
		switch f := f.(type) {
		case *http2.HeadersFrame:
			var b strings.Builder
			for _, h := range c.got {
				if h.Name != "date" {
					fmt.Fprintf(&b, " %s=%s", h.Name, h.Value)
				}
			}
			return fmt.Sprintf("HEADERS %d%s%s", id, b.String(), end)
		case *http2.DataFrame:
			return fmt.Sprintf("DATA %d %s%s", id, f.Data(), end)
		case *http2.RSTStreamFrame:
			return fmt.Sprintf("RST %d %v", id, f.ErrCode)
		case *http2.GoAwayFrame:
			return fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, f.ErrCode)
		case *http2.PingFrame:
			return fmt.Sprintf("PING %q%s", f.Data, strings.Replace(end, "END", "ACK", 1))
		}
	}
}

// frame reads a frame, and what the table must know of it.
func (c *client) frame() (http2.Frame, error) {
	f, err := c.fr.ReadFrame()
	if h, ok := f.(*http2.HeadersFrame); ok && err == nil {
		if c.got, err = c.dec.DecodeFull(h.HeaderBlockFragment()); err != nil || !h.HeadersEnded() {
			c.t.Fatalf("a header block that is not whole: %v", err)
		}
	}
	return f, err
}

// want reads frames up to one that is, or begins with, what is wanted.
func (c *client) want(frame string) string {
	c.t.Helper()
	for {
		got := c.next()
		if got == frame || strings.HasPrefix(got, frame+" ") {
			return got
		}
		if got == "EOF" {
			c.t.Fatalf("the connection ends, want %s; before: %q", frame, c.seen)
		}
		c.seen = append(c.seen, got)
	}
}

// wantNext is want for the very next frame.
func (c *client) wantNext(frame string) {
	c.t.Helper()
	if got := c.next(); got != frame && !strings.HasPrefix(got, frame+" ") {
		c.t.Fatalf("got %s, want %s", got, frame)
	}
}

// wantPing makes sure that the connection goes on.
func (c *client) wantPing() {
	c.t.Helper()
	_ = c.fr.WritePing(false, [8]byte{'s', 't', 'i', 'l', 'l', 'h', 'e', 'r'})
	c.want(`PING "stillher" ACK`)
}

// echo answers with what came: "GET /path a.example" and the body.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	fmt.Fprintf(w, "%s %s %s %s", r.Method, r.RequestURI, r.Host, b)
}
