package upstream

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/resolver"
)

// pipeListener accepts the one connection that it has.
type pipeListener struct {
	conns chan net.Conn
	end   chan struct{}
	once  *sync.Once
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.end:
		return nil, net.ErrClosed
	}
}

func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l pipeListener) Close() error {
	l.once.Do(func() { close(l.end) })
	return nil
}

// frozen is a connection that takes and gives nothing once it is frozen, as that of a machine that is gone without a word.
type frozen struct {
	net.Conn
	now chan struct{}
}

func (c frozen) Write(b []byte) (int, error) {
	select {
	case <-c.now:
		return len(b), nil // into the void
	default:
		return c.Conn.Write(b)
	}
}

// TestKubernetesServerGone: a watch of a server that is gone without a word ends in less than a minute, so that the next begins at another.
func TestKubernetesServerGone(t *testing.T) {
	cert := httptest.NewTLSServer(nil)
	cert.Close()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		client, err := Kubernetes{Server: "https://example.com", CAFile: ca}.client()
		if err != nil {
			t.Fatal(err)
		}
		ln, freeze := pipeListener{make(chan net.Conn, 1), make(chan struct{}), &sync.Once{}}, make(chan struct{})
		tr, _ := client.Transport.(*http.Transport)
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			ln.conns <- theirs
			return frozen{ours, freeze}, nil
		}
		srv := &http.Server{
			TLSConfig: &tls.Config{Certificates: cert.TLS.Certificates, NextProtos: []string{"h2"}},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}),
		}
		go func() { _ = srv.ServeTLS(ln, "", "") }()
		defer srv.Close()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://example.com/watch", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Fatal(resp.Proto)
		}
		began := time.Now()
		close(freeze)
		_, err = io.ReadAll(resp.Body)
		if took := time.Since(began); err == nil || took > time.Minute {
			t.Errorf("the watch ended after %v: %v", took, err)
		}
		tr.CloseIdleConnections()
	})
}

// told is a channel that keeps what it is told last.
type told struct {
	resolver.ClientConn
	state resolver.State
}

func (c *told) UpdateState(s resolver.State) error {
	c.state = s
	return nil
}

// TestKubernetesNull: a null among the slices of a list, which no server should send, is none; it once was a panic.
func TestKubernetesNull(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"metadata":{"resourceVersion":"7"},"items":[null,{"metadata":{"name":"a"},"ports":[{"port":1}],"endpoints":[{"addresses":["10.0.0.1"]}]}]}`)
	}))
	defer srv.Close()
	k := Kubernetes{Server: srv.URL}
	client, err := k.client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	var cc told
	r := &kubeResolver{kubeService: kubeService{"bank", "default", "1"}, api: k, client: client, cc: &cc, log: slog.New(slog.DiscardHandler)}
	if err := r.list(t.Context()); err != nil || r.version != "7" || len(cc.state.Endpoints) != 1 {
		t.Errorf("%v, version %s, endpoints %v", err, r.version, cc.state.Endpoints)
	}
}

// TestKubernetesDualStack: a pod that is in slices of both IP families is one endpoint, whichever slice is known first, and one that
// has an address of one family only is another.
func TestKubernetesDualStack(t *testing.T) {
	const (
		four = `{"metadata":{"name":"bank-4"},"addressType":"IPv4","ports":[{"port":1}],"endpoints":[
			{"addresses":["10.0.0.1"],"zone":"z1","targetRef":{"kind":"Pod","namespace":"default","name":"a","uid":"1"}},
			{"addresses":["10.0.0.2"],"targetRef":{"kind":"Pod","namespace":"default","name":"b","uid":"2"}},
			{"addresses":["10.0.0.9"]}]}`
		six = `{"metadata":{"name":"bank-6"},"addressType":"IPv6","ports":[{"port":1}],"endpoints":[
			{"addresses":["fd00::1"],"zone":"z1","targetRef":{"kind":"Pod","namespace":"default","name":"a","uid":"1"}},
			{"addresses":["fd00::2"],"targetRef":{"kind":"Pod","namespace":"default","name":"b","uid":"2"}},
			{"addresses":["fd00::3"],"targetRef":{"kind":"Pod","namespace":"default","name":"c","uid":"3"}}]}`
	)
	for _, tc := range []struct {
		server string
		slices []string
		want   string
	}{
		{"https://10.96.0.1:443", []string{four, six}, "10.0.0.1:1 10.0.0.2:1 10.0.0.9:1 [fd00::3]:1"},
		{"https://10.96.0.1:443", []string{six, four}, "10.0.0.1:1 10.0.0.2:1 10.0.0.9:1 [fd00::3]:1"},
		{"https://kubernetes.default.svc", []string{six, four}, "10.0.0.1:1 10.0.0.2:1 10.0.0.9:1 [fd00::3]:1"},
		{"https://[fd00::a]:443", []string{four, six}, "10.0.0.9:1 [fd00::1]:1 [fd00::2]:1 [fd00::3]:1"},
		{"https://[fd00::a]:443", []string{four}, "10.0.0.1:1 10.0.0.2:1 10.0.0.9:1"},
		{"https://10.96.0.1:443", []string{six}, "[fd00::1]:1 [fd00::2]:1 [fd00::3]:1"},
	} {
		var cc told
		r := &kubeResolver{kubeService: kubeService{"bank", "default", "1"}, api: Kubernetes{Server: tc.server}, cc: &cc, slices: map[string]*endpointSlice{}, log: slog.New(slog.DiscardHandler)}
		for _, s := range tc.slices {
			if err := r.apply(watchEvent{"ADDED", json.RawMessage(s)}); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for _, e := range cc.state.Endpoints {
			got = append(got, e.Addresses[0].Addr)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s, %d slices: %q, want %s", tc.server, len(tc.slices), got, tc.want)
		}
	}
}
