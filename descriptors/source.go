package descriptors

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Times of Source.Run.
const (
	retryFirst   = time.Second // of a server that cannot be reached; doubled each time
	retryMost    = 30 * time.Second
	fetchTimeout = 30 * time.Second // one exchange with a server
)

// Source is where a Set comes from, again whenever it changes. It is immutable and may be shared.
type Source struct {
	origin  string
	load    func(context.Context) (*Set, error)
	paths   []string // watched: files, and directories with all below them; nil for a server
	refresh time.Duration
}

// FileSource is a binary descriptor set file; see FromFile.
func FileSource(path string) *Source {
	return &Source{origin: path, paths: []string{path}, load: func(context.Context) (*Set, error) { return FromFile(path) }}
}

// ProtoSource is .proto sources; see FromProto.
func ProtoSource(roots, files []string) *Source {
	if len(roots) == 0 {
		roots = []string{"."}
	}
	return &Source{origin: "proto sources in " + strings.Join(roots, ", "), paths: roots, load: func(ctx context.Context) (*Set, error) { return FromProto(ctx, roots, files) }}
}

// ReflectionSource is a server with reflection; see FromReflection. refresh is how often Run asks again once it has an
// answer; 0 is never.
func ReflectionSource(conn grpc.ClientConnInterface, refresh time.Duration) *Source {
	return &Source{origin: reflectionOrigin(conn), refresh: refresh, load: func(ctx context.Context) (*Set, error) {
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		return FromReflection(ctx, conn)
	}}
}

// String is the origin of the sets.
func (s *Source) String() string { return s.origin }

// Load reads the source once.
func (s *Source) Load(ctx context.Context) (*Set, error) { return s.load(ctx) }

// Run reads the source until ctx ends, then returns nil. It calls onChange, from its own goroutine, with the first Set and
// with each that differs from the last, and with the error whenever reading fails for another reason than the last time:
// exactly one of the two is nil. A source that fails keeps its last Set.
//
// Files are read again 100 ms after the last change in their directory, which notices files written in place, renamed
// over, and symbolic links swapped at the file or above it as Kubernetes does with a ConfigMap; without events they are
// read every 30 s. A server is asked again after 1 s, doubled up to 30 s with jitter, while it does not answer.
func (s *Source) Run(ctx context.Context, onChange func(*Set, error)) error {
	var d delivery
	if s.paths == nil {
		return s.runServer(ctx, &d, onChange)
	}
	return s.runFiles(ctx, &d, onChange)
}

// delivery remembers what was last delivered.
type delivery struct {
	hash [sha256.Size]byte
	err  string
}

// try reads the source and delivers what is new; it reports whether reading succeeded.
func (s *Source) try(ctx context.Context, d *delivery, onChange func(*Set, error)) bool {
	set, err := s.load(ctx)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		if err.Error() != d.err {
			d.err = err.Error()
			onChange(nil, err)
		}
		return false
	}
	h := set.Digest()
	if h != d.hash || d.err != "" {
		d.hash, d.err = h, ""
		onChange(set, nil)
	}
	return true
}

// Digest identifies the content of the set. It is the same within one program only.
func (s *Set) Digest() [sha256.Size]byte {
	// Deterministic within one program, which is all that is asked.
	b, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(&descriptorpb.FileDescriptorSet{File: s.Files})
	if err != nil { // invalid UTF-8 in some name: Compile will say so
		b = []byte(fmt.Sprint(s.Files))
	}
	return sha256.Sum256(b)
}

func (s *Source) runServer(ctx context.Context, d *delivery, onChange func(*Set, error)) error {
	retry := retryFirst
	for {
		wait := s.refresh
		if s.try(ctx, d, onChange) {
			retry = retryFirst
			if wait <= 0 {
				<-ctx.Done()
				return nil
			}
		} else {
			wait = retry/2 + rand.N(retry/2+1)
			retry = min(2*retry, retryMost)
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// pause waits for d; false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (s *Source) runFiles(ctx context.Context, d *delivery, onChange func(*Set, error)) error {
	Watch(ctx, Settle, func() []string { return s.paths }, func() { s.try(ctx, d, onChange) })
	return nil
}
