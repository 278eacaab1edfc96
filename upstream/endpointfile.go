package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/experimental/balancer/weight"
	"google.golang.org/grpc/resolver"

	"transom/descriptors"
	"transom/upstream/loadaware"
)

// Limits of an endpoint file.
const (
	maxEndpointFileBytes = 16 << 20
	maxEndpointWeight    = 1 << 20
	maxEndpointPriority  = 100
)

// EndpointFile is the content of a file:/// target, YAML:
//
//	endpoints:
//	  - {address: "127.0.0.1:50051"}
//	  - {address: "10.0.0.2:50051", weight: 200, zone: b, drain: true}
//	  - {address: "10.1.0.1:50051", priority: 1}
//
// The file is followed as [descriptors.Watch] does, so that it may be replaced by rename (as editors and Kubernetes do). A change is
// taken as a whole or not at all: while the file is missing or has a fault, the endpoints before stay in use and the
// fault is logged with its line.
type EndpointFile struct {
	Endpoints []FileEndpoint
}

// FileEndpoint is one entry of an endpoint file.
type FileEndpoint struct {
	// Address is host:port; each may appear once.
	Address string
	// Weight is the endpoint's size relative to the others, 1 … 1048576. 0 (not given) is 100.
	Weight uint32
	// Zone is where the endpoint runs, in words of the operator's own.
	Zone string
	// Priority is 0 (not given) for endpoints of first choice, at most 100. A priority takes 1.4 times the part of its endpoints
	// that is connected, healthy and not ejected, so all calls from five of seven on; what is left, or finds no room, goes to the next.
	Priority uint32
	// Drain keeps new calls away; those in flight end in their own time.
	Drain bool
}

// DefaultWeight is that of an endpoint which has none of its own.
const DefaultWeight = 100

// ParseEndpointFile parses an endpoint file and reports every fault in it, joined, each with its line.
func ParseEndpointFile(b []byte) (*EndpointFile, error) {
	var doc struct {
		Endpoints []fileEntry `yaml:"endpoints"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file must be one YAML document")
	}
	var errs []error
	fault := func(line int, format string, args ...any) {
		errs = append(errs, fmt.Errorf("line %d: %s", line, fmt.Sprintf(format, args...)))
	}
	f := &EndpointFile{Endpoints: make([]FileEndpoint, 0, len(doc.Endpoints))}
	lines := map[string]int{}
	for _, e := range doc.Endpoints {
		if err := checkHostPort(e.Address); err != nil {
			fault(e.line, "address: %v", err)
		} else if first, ok := lines[e.Address]; ok {
			fault(e.line, "address: %q is on line %d already", e.Address, first)
		} else {
			lines[e.Address] = e.line
		}
		if e.Weight != nil && (*e.Weight < 1 || *e.Weight > maxEndpointWeight) {
			fault(e.line, "weight: %d is not 1 … %d; to take no calls say drain: true", *e.Weight, maxEndpointWeight)
			continue
		}
		if e.Priority < 0 || e.Priority > maxEndpointPriority {
			fault(e.line, "priority: %d is not 0 … %d", e.Priority, maxEndpointPriority)
			continue
		}
		fe := FileEndpoint{Address: e.Address, Zone: e.Zone, Priority: uint32(e.Priority), Drain: e.Drain, Weight: DefaultWeight}
		if e.Weight != nil {
			fe.Weight = uint32(*e.Weight)
		}
		f.Endpoints = append(f.Endpoints, fe)
	}
	if len(doc.Endpoints) == 0 {
		errs = append(errs, errors.New("the file lists no endpoints"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return f, nil
}

// fileEntry is one entry as it stands in the file.
type fileEntry struct {
	Address string `yaml:"address"`
	Weight  *int64 `yaml:"weight"`
	Zone    string `yaml:"zone"`
	Drain   bool   `yaml:"drain"`
	// Priority is checked as a number, so that one that is too large is a fault and not another number.
	Priority int64 `yaml:"priority"`
	line     int
}

// UnmarshalYAML remembers the line.
func (e *fileEntry) UnmarshalYAML(n *yaml.Node) error {
	type plain fileEntry // without this method
	e.line = n.Line
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: an endpoint must be a mapping such as {address: \"host:port\"}", n.Line)
	}
	for i := 0; i+1 < len(n.Content); i += 2 { // Node.Decode does not check for unknown fields
		switch k := n.Content[i]; k.Value {
		case "address", "weight", "zone", "priority", "drain":
		default:
			return fmt.Errorf("line %d: an endpoint has address, weight, zone, priority and drain, but no %q", k.Line, k.Value)
		}
	}
	return n.Decode((*plain)(e))
}

// CheckEndpoints reports every fault of the endpoint file that the target names, joined FieldErrors; nil for other targets. A Cluster
// takes a file that is missing or has a fault for one that will come.
func (c Config) CheckEndpoints() error {
	u, err := url.Parse(c.Target)
	if err != nil || u.Scheme != "file" {
		return nil //nolint:nilerr // Validate says what is wrong with a target
	}
	b, err := readLimited(u.Path, maxEndpointFileBytes)
	if err == nil {
		_, err = ParseEndpointFile(b)
	}
	var errs []error
	for _, e := range each(err) {
		errs = append(errs, inField("target", fmt.Errorf("endpoint file %s: %w", u.Path, e))...)
	}
	return errors.Join(errs...)
}

// fileBuilder resolves file:///path.
type fileBuilder struct {
	log *slog.Logger
	// drains says that the balancer understands draining. From others, endpoints that drain are kept.
	drains bool
}

func (fileBuilder) Scheme() string { return "file" }

func (b fileBuilder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	path := t.URL.Path
	if _, err := os.Stat(filepath.Dir(path)); err != nil { // the file itself may come later
		return nil, fmt.Errorf("endpoint file: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &fileResolver{path: path, cc: cc, log: b.log.With("file", path), drains: b.drains, cancel: cancel}
	r.load()
	r.wg.Go(func() { descriptors.Watch(ctx, fileSettle, func() []string { return []string{path} }, r.load) })
	return r, nil
}

// fileSettle is for how long a file must rest before it is read: a server that has just left the list may be gone soon.
const fileSettle = 20 * time.Millisecond

// fileResolver follows one endpoint file.
type fileResolver struct {
	path   string
	cc     resolver.ClientConn
	log    *slog.Logger
	drains bool
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// seen is the hash of the content last looked at, good or bad. Only Build and then Watch use it.
	seen [sha256.Size]byte
	good bool // some content was good
}

func (r *fileResolver) ResolveNow(resolver.ResolveNowOptions) {}

func (r *fileResolver) Close() {
	r.cancel()
	r.wg.Wait()
}

// load reads the file and, if its content is new and good, hands it to the channel.
func (r *fileResolver) load() {
	b, err := readLimited(r.path, maxEndpointFileBytes)
	if err != nil {
		r.fault(sha256.Sum256([]byte(err.Error())), err)
		return
	}
	hash := sha256.Sum256(b)
	if hash == r.seen {
		return
	}
	f, err := ParseEndpointFile(b)
	if err != nil {
		r.fault(hash, err)
		return
	}
	r.seen, r.good = hash, true
	state := resolver.State{}
	for _, e := range f.Endpoints {
		if r.drains || !e.Drain { // one that is taken away ends its calls in their own time
			state.Endpoints = append(state.Endpoints, e.endpoint())
		}
	}
	// An error here means that the balancer refused the endpoints; it tells the calls.
	_ = r.cc.UpdateState(state)
	r.log.Info("endpoint file loaded", "endpoints", len(state.Endpoints))
}

// fault reports that the file cannot be used, once per content.
func (r *fileResolver) fault(hash [sha256.Size]byte, err error) {
	if hash == r.seen {
		return
	}
	r.seen = hash
	if r.good {
		r.log.Error("endpoint file cannot be used, the endpoints before stay", "error", err)
		return
	}
	r.log.Error("endpoint file cannot be used", "error", err)
	r.cc.ReportError(fmt.Errorf("endpoint file: %w", err))
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("the file is larger than %d bytes", limit)
	}
	return b, errors.Join(err, f.Close())
}

// endpoint is e for grpc-go.
func (e FileEndpoint) endpoint() resolver.Endpoint {
	ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: e.Address}}}
	ep = weight.Set(ep, weight.EndpointInfo{Weight: e.Weight}) // for grpc-go's own policies
	return loadaware.SetEndpoint(ep, loadaware.EndpointAttrs{
		Weight: float64(e.Weight), Zone: e.Zone, Priority: int(e.Priority), Drain: e.Drain,
	})
}
