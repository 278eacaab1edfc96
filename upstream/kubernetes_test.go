package upstream_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/upstream"
)

// apiServer is the part of a Kubernetes API server that serves the EndpointSlices of one namespace: paged lists, watches
// from a resource version with bookmarks, 410 for versions it has forgotten, tokens.
type apiServer struct {
	*httptest.Server
	t     *testing.T
	token string

	mu        sync.Mutex
	version   int
	forgotten int // versions below cannot be watched from
	slices    map[string]string
	events    []apiEvent
	changed   chan struct{} // closed and replaced when events come or watches are to end
	// generation counts the ends of watches; the next fail requests are answered 500.
	generation, fail int

	lists, watches []string      // the queries seen
	watching       chan struct{} // a watch has begun
}

type apiEvent struct {
	version int
	json    string
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{t: t, token: "t1", slices: map[string]string{}, changed: make(chan struct{}), version: 10, watching: make(chan struct{}, 100)}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// config writes the files that a pod would find.
func (s *apiServer) config() *upstream.Kubernetes {
	dir := s.t.TempDir()
	k := &upstream.Kubernetes{Server: s.URL, TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt")}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for path, b := range map[string][]byte{k.TokenFile: []byte("t1\n"), k.CAFile: ca} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return k
}

// slice is an EndpointSlice in JSON; endpoints are like {"addresses":["127.0.0.1"]}.
func slice(name string, version int, port int, endpoints ...string) string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"resourceVersion":"%d","labels":{"kubernetes.io/service-name":"bank"}},
		"addressType":"IPv4","ports":[{"name":"metrics","port":1,"protocol":"TCP"},{"name":"grpc","port":%d,"protocol":"TCP"}],
		"endpoints":[%s],"unknown":{"x":[1]}}`, name, version, port, strings.Join(endpoints, ","))
}

// event changes the state and tells the watches. typ is ADDED, MODIFIED, DELETED or BOOKMARK.
func (s *apiServer) event(typ, name string, port int, endpoints ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	object := slice(name, s.version, port, endpoints...)
	switch typ {
	case "BOOKMARK":
		object = fmt.Sprintf(`{"kind":"EndpointSlice","metadata":{"resourceVersion":"%d","annotations":{}}}`, s.version)
	case "DELETED":
		delete(s.slices, name)
	default:
		s.slices[name] = object
	}
	s.events = append(s.events, apiEvent{s.version, fmt.Sprintf(`{"type":%q,"object":%s}`+"\n", typ, object)})
	s.wake()
}

func (s *apiServer) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// endWatches ends all watches. If forget, none can be taken up from where it was.
func (s *apiServer) endWatches(forget bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	if forget {
		s.version++
		s.forgotten = s.version
	}
	s.wake()
}

func (s *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	refuse := func(code int, msg string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","status":"Failure","message":%q,"code":%d}`, msg, code)
	}
	q := r.URL.Query()
	s.mu.Lock()
	token, fail := s.token, s.fail > 0
	if fail {
		s.fail--
	}
	s.mu.Unlock()
	switch {
	case fail:
		http.Error(w, "etcd is down", http.StatusInternalServerError)
		return
	case r.Header.Get("Authorization") != "Bearer "+token:
		refuse(http.StatusUnauthorized, "Unauthorized")
		return
	case r.URL.Path != "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices" || q.Get("labelSelector") != "kubernetes.io/service-name=bank":
		s.t.Errorf("unexpected request %s", r.URL)
		refuse(http.StatusNotFound, "not found")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if q.Get("watch") == "" {
		s.list(w, q.Get("continue"))
		return
	}
	s.mu.Lock()
	s.watches = append(s.watches, q.Get("resourceVersion"))
	generation := s.generation
	from, err := strconv.Atoi(q.Get("resourceVersion"))
	s.mu.Unlock()
	if err != nil || q.Get("allowWatchBookmarks") != "true" || q.Get("timeoutSeconds") == "" {
		s.t.Errorf("unexpected watch %s", r.URL)
	}
	s.watching <- struct{}{}
	for {
		s.mu.Lock()
		changed, ended := s.changed, s.generation != generation
		if from < s.forgotten {
			s.mu.Unlock()
			fmt.Fprint(w, `{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","code":410,"message":"too old resource version"}}`+"\n")
			return
		}
		for _, e := range s.events {
			if e.version > from {
				fmt.Fprint(w, e.json)
				from = e.version
			}
		}
		s.mu.Unlock()
		w.(http.Flusher).Flush()
		if ended {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// list serves the slices one a page.
func (s *apiServer) list(w http.ResponseWriter, after string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists = append(s.lists, after)
	items, next := []json.RawMessage{}, ""
	for name, object := range s.slices {
		if name > after && (len(items) == 0 || name < next) {
			items, next = []json.RawMessage{json.RawMessage(object)}, name
		}
	}
	more := ""
	for name := range s.slices {
		if next != "" && name > next {
			more = next
		}
	}
	b, err := json.Marshal(map[string]any{
		"kind": "EndpointSliceList", "items": items,
		"metadata": map[string]any{"resourceVersion": fmt.Sprint(s.version), "continue": more},
	})
	if err != nil {
		s.t.Error(err)
	}
	_, _ = w.Write(b)
}

func TestKubernetesTarget(t *testing.T) {
	// Three pods with one port on three loopback addresses.
	serve := func(addr, name string) string {
		got, _ := newServer(t, addr, func(_ string, s stream) error {
			if _, err := s.recv(); err != nil {
				return err
			}
			return s.send(name)
		})
		return got
	}
	_, portText, err := net.SplitHostPort(serve("127.0.0.1:0", "A"))
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		t.Fatal(err)
	}
	serve("127.0.0.2:"+portText, "B")
	serve("127.0.0.3:"+portText, "C")

	const (
		a        = `{"addresses":["127.0.0.1"],"zone":"z1","conditions":{"ready":true,"serving":true,"terminating":false}}`
		b        = `{"addresses":["127.0.0.2"]}` // ready, for it says nothing
		c        = `{"addresses":["127.0.0.3"],"conditions":{"ready":true}}`
		notReady = `{"addresses":["127.0.0.2"],"conditions":{"ready":false}}`
		ending   = `{"addresses":["127.0.0.1"],"conditions":{"ready":false,"serving":true,"terminating":true}}`
		ended    = `{"addresses":["127.0.0.1"],"conditions":{"ready":false,"serving":false,"terminating":true}}`
	)
	api := newAPIServer(t)
	api.event("ADDED", "bank-1", port, a)
	api.event("ADDED", "bank-2", port, notReady)
	api.event("ADDED", "bank-3", port)
	kube := api.config()
	cluster := newCluster(t, upstream.Config{Target: "kubernetes:///bank.default:grpc", Kubernetes: kube})

	// Calls go on all the time, and none fails.
	stop := make(chan struct{})
	var calls atomic.Int64
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	untilOnly(t, cluster, "A")
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, call, err := exchange(t, cluster, unary, nil, "m"); err != nil {
					t.Errorf("call %d: %v: %v", calls.Load(), err, call.Wait())
				}
				calls.Add(1)
			}
		})
	}
	<-api.watching
	api.mu.Lock()
	if got := len(api.lists); got != 3 {
		t.Errorf("%d pages were read, want 3: %q", got, api.lists)
	}
	api.mu.Unlock()

	api.event("MODIFIED", "bank-2", port, b)
	untilOnly(t, cluster, "A", "B")
	api.event("ADDED", "bank-4", port, c)
	untilOnly(t, cluster, "A", "B", "C")
	api.event("MODIFIED", "bank-1", port, ending)
	untilOnly(t, cluster, "B", "C")
	api.event("MODIFIED", "bank-1", port, ended)
	untilOnly(t, cluster, "B", "C")
	api.event("DELETED", "bank-2", port)
	untilOnly(t, cluster, "C")

	// A watch that ends is taken up where it was, after the bookmark.
	api.event("BOOKMARK", "", port)
	api.mu.Lock()
	bookmark := fmt.Sprint(api.version)
	api.mu.Unlock()
	api.event("ADDED", "bank-9", port) // so that it is known that the bookmark has come
	api.event("MODIFIED", "bank-1", port, a)
	untilOnly(t, cluster, "A", "C")
	api.event("BOOKMARK", "", port)
	api.endWatches(false)
	<-api.watching
	api.mu.Lock()
	if got := api.watches[len(api.watches)-1]; got < bookmark { // all versions here have two digits
		t.Errorf("the watch goes on from %s, want %s or later", got, bookmark)
	}
	before := len(api.lists)
	api.mu.Unlock()

	// A version that is gone: all is listed anew.
	api.endWatches(true)
	api.event("MODIFIED", "bank-1", port, notReady)
	<-api.watching
	untilOnly(t, cluster, "C")
	api.mu.Lock()
	if len(api.lists) == before {
		t.Error("after a 410 nothing was listed")
	}
	// The server fails for a while, and the token is rotated meanwhile: the endpoints stay.
	api.fail = 2
	api.token = "t2"
	api.mu.Unlock()
	if err := os.WriteFile(kube.TokenFile, []byte("t2"), 0o600); err != nil {
		t.Fatal(err)
	}
	api.endWatches(false)
	<-api.watching
	untilOnly(t, cluster, "C")
	api.event("MODIFIED", "bank-2", port, b)
	untilOnly(t, cluster, "B", "C")
}

func TestKubernetesTargetFaults(t *testing.T) {
	for target, want := range map[string]string{
		"kubernetes:///bank:grpc":           "must be service.namespace:port",
		"kubernetes:///bank.default":        "must be service.namespace:port",
		"kubernetes:///bank.default.svc:1":  "must be service.namespace:port",
		"kubernetes://bank.default:1":       "needs three slashes",
		"kubernetes:///bank.default:grpc/x": "must be service.namespace:port",
	} {
		err := upstream.Config{Name: "a", Target: target}.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", target, err, want)
		}
	}
	if err := (upstream.Config{Name: "a", Target: "x:1", Kubernetes: &upstream.Kubernetes{Server: "10.0.0.1"}}).Validate(); err == nil || !strings.Contains(err.Error(), "is not a URL") {
		t.Errorf("server without scheme: %v", err)
	}

	// No service, no permission: calls say no more than that there is no endpoint.
	api := newAPIServer(t)
	cfg := api.config()
	c := newCluster(t, upstream.Config{Target: "kubernetes:///bank.default:grpc", Kubernetes: cfg})
	if _, _, err := exchange(t, c, unary, nil, "m"); status.Code(err) != codes.Unavailable {
		t.Errorf("no slices: %v", err)
	}
	cfg.TokenFile = ""
	c = newCluster(t, upstream.Config{Target: "kubernetes:///bank.default:grpc", Kubernetes: cfg})
	if _, _, err := exchange(t, c, unary, nil, "m"); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "nauthorized") {
		t.Errorf("no token: %v", err)
	}
}
