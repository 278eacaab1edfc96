package descriptors

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Times of Source.Run.
const (
	settle       = 100 * time.Millisecond // no event for so long: a writer is done
	maxSettle    = 2 * time.Second        // but a directory that never rests is read this often
	pollEvery    = 30 * time.Second       // file systems may lack events
	retryFirst   = time.Second            // of a server that cannot be reached; doubled each time
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
	h := set.hash()
	if h != d.hash || d.err != "" {
		d.hash, d.err = h, ""
		onChange(set, nil)
	}
	return true
}

// hash identifies the content of the set.
func (s *Set) hash() [sha256.Size]byte {
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
	// Without a watcher (the system has too many) its channels stay nil and polling remains.
	var events chan fsnotify.Event
	var faults chan error
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = w.Close() }()
		events, faults = w.Events, w.Errors
	}
	for {
		if w != nil { // before reading, so that no change is missed between the two
			s.watch(w)
		}
		s.try(ctx, d, onChange)
		select {
		case <-ctx.Done():
			return nil
		case <-events:
		case <-faults: //nolint:errcheck // whatever events were lost, the files are read again
		case <-time.After(pollEvery):
			continue
		}
		for limit := time.After(maxSettle); ; {
			select {
			case <-ctx.Done():
				return nil
			case <-events:
				continue
			case <-limit:
			case <-time.After(settle):
			}
			break
		}
	}
}

// watch makes w watch the directories on which the source depends now. Those that cannot be watched are left to polling.
func (s *Source) watch(w *fsnotify.Watcher) {
	want := map[string]bool{}
	for _, p := range s.paths {
		addWatchDirs(want, p, 0)
		root, err := filepath.Abs(p)
		if err != nil {
			continue
		}
		if real, err := filepath.EvalSymlinks(root); err == nil {
			root = real
		}
		// What cannot be walked cannot be read either, and reading says so.
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil //nolint:nilerr // see above
			case !e.IsDir():
				return nil
			case path != root && strings.HasPrefix(e.Name(), "."):
				return fs.SkipDir
			}
			want[path] = true
			return nil
		})
	}
	for _, dir := range w.WatchList() {
		if !want[dir] {
			_ = w.Remove(dir) // it may be gone, which removed it
		}
	}
	for dir := range want {
		_ = w.Add(dir)
	}
}

// addWatchDirs adds the directories in which an entry must change for path to lead elsewhere: that of path itself and, for
// each symbolic link on the way, that of the link and those of its target.
func addWatchDirs(want map[string]bool, path string, links int) {
	path, err := filepath.Abs(path)
	if err != nil || links > 40 {
		return
	}
	want[filepath.Dir(path)] = true
	for p := path; p != filepath.Dir(p); p = filepath.Dir(p) {
		target, err := os.Readlink(p)
		if err != nil {
			continue
		}
		want[filepath.Dir(p)] = true
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(p), target)
		}
		rest, err := filepath.Rel(p, path)
		if err == nil {
			addWatchDirs(want, filepath.Join(target, rest), links+1)
		}
	}
}
