package descriptors

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Times of Watch.
const (
	// Settle is for descriptors and configuration: no event for so long, and a writer is done.
	Settle = 100 * time.Millisecond

	maxSettles = 20               // of a directory that never rests
	pollEvery  = 30 * time.Second // file systems may lack events
)

// Watch calls read once, and again whenever one of paths may have changed, until ctx ends. paths is asked anew before each
// call; a directory stands for all that is below it. read is called from the caller's goroutine; it must find out by itself
// whether there is anything new.
//
// It is called settle after the last change in a file's directory, or 20 times settle after the first if they do not end.
// Changes are files written in place, renamed over, and symbolic links swapped at the file or above it, as Kubernetes does
// with a ConfigMap. It is called every 30 s, too, since there are file systems without events.
func Watch(ctx context.Context, settle time.Duration, paths func() []string, read func()) {
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
			follow(w, paths())
		}
		read()
		select {
		case <-ctx.Done():
			return
		case <-events:
		case <-faults: //nolint:errcheck // whatever events were lost, the files are read again
		case <-time.After(pollEvery):
			continue
		}
		rest(ctx, settle, events)
		if ctx.Err() != nil {
			return
		}
	}
}

// rest returns when there was no event for as long as settle, or 20 times as long has gone by, or ctx has ended.
func rest(ctx context.Context, settle time.Duration, events <-chan fsnotify.Event) {
	for limit := time.After(maxSettles * settle); ; {
		select {
		case <-ctx.Done():
		case <-events:
			continue
		case <-limit:
		case <-time.After(settle):
		}
		return
	}
}

// follow makes w watch the directories on which paths depend now. Those that cannot be watched are left to polling.
func follow(w *fsnotify.Watcher, paths []string) {
	want := map[string]bool{}
	for _, p := range paths {
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
