package cases

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"transom/e2e/cases/casespb"
)

// Reply is what the backend answers. The zero Reply is one empty message and status 0.
type Reply struct {
	// Messages are wire bytes, one frame each. Nil is one empty message; empty but not nil is none.
	Messages []string
	// Header and Trailer are "name: value" lines, as they are on the wire.
	Header, Trailer []string
	// Status and Text are the grpc-status and grpc-message; an empty Status is "0", "-" is none at all.
	Status, Text string
	// TrailersOnly answers with one block of headers.
	TrailersOnly bool
	// HTTP, if not 0, answers with this HTTP status and a page of HTML, as something does that speaks no gRPC.
	HTTP int
	// Hang never answers: the call ends when the caller ends it.
	Hang bool
	// Endless sends messages of 64 KiB for as long as the caller takes them.
	Endless bool
	// Reset, if not 0, answers with RST_STREAM and this code (RFC 9113 section 7).
	Reset uint32
}

// Call is what the backend saw.
type Call struct {
	// Method is the last part of the path, "GetItem".
	Method string
	// Items are the messages; a message that does not parse is nil.
	Items []*casespb.Item
	// Header is the metadata. The values of a "-bin" key are unpadded base64.
	Header http.Header
}

// Backend is a gRPC server for the services of cases.v1 that records each call and answers what it was told to, also what no
// decent server would. It serves one call at a time: set, call, take.
type Backend struct {
	addr string
	srv  *http.Server
	done chan struct{}
	// begun gets a value when a call begins that hangs or is endless, and ended when its caller has left.
	begun, ended chan struct{}
	sent         atomic.Int64  // bytes of an endless answer
	reset        atomic.Uint32 // the code of the resets, 0 for net/http's own

	mu    sync.Mutex
	reply Reply
	calls []Call
}

// StartBackend serves on a free port of 127.0.0.1 until Close.
func StartBackend() (*Backend, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &Backend{addr: l.Addr().String(), done: make(chan struct{}), begun: make(chan struct{}, 16), ended: make(chan struct{}, 16)}
	b.srv = &http.Server{Handler: b, Protocols: new(http.Protocols), ReadHeaderTimeout: 10 * time.Second}
	b.srv.Protocols.SetUnencryptedHTTP2(true)
	go func() {
		defer close(b.done)
		_ = b.srv.Serve(resetListener{l, &b.reset})
	}()
	return b, nil
}

// Addr is host:port.
func (b *Backend) Addr() string { return b.addr }

// Close ends the server and waits for it.
func (b *Backend) Close() {
	_ = b.srv.Close()
	<-b.done
}

// set says what the next calls are answered and forgets the earlier ones.
func (b *Backend) set(r Reply) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reply, b.calls = r, nil
	b.sent.Store(0)
	b.reset.Store(r.Reset)
	for len(b.begun) > 0 {
		<-b.begun
	}
	for len(b.ended) > 0 {
		<-b.ended
	}
}

// take returns the calls since set.
func (b *Backend) take() []Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

// ServeHTTP implements http.Handler.
func (b *Backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/cases.v1.") { // a health check
		answer(w, Reply{TrailersOnly: true, Status: "12"})
		return
	}
	c := Call{Method: r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:], Header: readable(r.Header)}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller has left
	}
	for len(body) >= 5 {
		n := binary.BigEndian.Uint32(body[1:5])
		if uint64(n) > uint64(len(body)-5) {
			break
		}
		m := &casespb.Item{}
		if proto.Unmarshal(body[5:5+n], m) != nil {
			m = nil
		}
		c.Items, body = append(c.Items, m), body[5+n:]
	}
	b.mu.Lock()
	b.calls = append(b.calls, c)
	reply := b.reply
	b.mu.Unlock()
	switch {
	case reply.Reset != 0:
		panic(http.ErrAbortHandler)
	case reply.Endless:
		b.begun <- struct{}{}
		b.endless(w)
		b.ended <- struct{}{}
	case reply.Hang:
		b.begun <- struct{}{}
		<-r.Context().Done()
		b.ended <- struct{}{}
	default:
		answer(w, reply)
	}
}

// endless sends messages until it cannot.
func (b *Backend) endless(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/grpc")
	m, err := proto.Marshal(&casespb.Item{Name: strings.Repeat("x", 64<<10)})
	if err != nil {
		panic(err)
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
	for {
		n, err := w.Write(frame)
		b.sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// answer writes a reply that ends.
func answer(w http.ResponseWriter, reply Reply) {
	if reply.HTTP != 0 {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(reply.HTTP)
		_, _ = io.WriteString(w, "<html>no gRPC here</html>")
		return
	}
	add := func(prefix string, lines []string) {
		for _, line := range lines {
			if k, v, ok := strings.Cut(line, ": "); ok {
				w.Header().Add(prefix+k, v)
			}
		}
	}
	w.Header().Set("Content-Type", "application/grpc")
	add("", reply.Header)
	prefix := http.TrailerPrefix
	if reply.TrailersOnly {
		prefix = ""
	} else {
		w.WriteHeader(http.StatusOK)
		msgs := reply.Messages
		if msgs == nil {
			msgs = []string{""}
		}
		for _, m := range msgs {
			frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m)))
			_, _ = w.Write(append(frame, m...))
		}
		_ = http.NewResponseController(w).Flush()
	}
	add(prefix, reply.Trailer)
	switch reply.Status {
	case "-":
	case "":
		w.Header().Set(prefix+"Grpc-Status", "0")
	default:
		w.Header().Set(prefix+"Grpc-Status", reply.Status)
	}
	if reply.Text != "" {
		w.Header().Set(prefix+"Grpc-Message", reply.Text)
	}
}

// readable is h with binary values taken apart and in one spelling of base64.
func readable(h http.Header) http.Header {
	out := http.Header{}
	for k, vs := range h {
		for _, v := range vs {
			if !strings.HasSuffix(k, "-Bin") {
				out.Add(k, v)
				continue
			}
			for part := range strings.SplitSeq(v, ",") {
				raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(part), "="))
				if err != nil {
					out.Add(k, "no base64: "+part)
					continue
				}
				out.Add(k, base64.RawStdEncoding.EncodeToString(raw))
			}
		}
	}
	return out
}
