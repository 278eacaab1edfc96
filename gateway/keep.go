package gateway

import (
	"sync"

	"google.golang.org/protobuf/proto"
)

// keep holds what outlives a Snapshot: clusters with their connections and balancer history, limiter counts, caches, key
// sets. Each has a key made of its kind, name and configuration; a Snapshot that wants the same gets the same, so that a
// reload loses nothing of what it did not change. What no Snapshot refers to any more is closed.
//
// # Concurrency
// Safe for concurrent use.
type keep struct {
	mu   sync.Mutex
	kept map[string]*kept
}

type kept struct {
	value any
	close func()
	refs  int
}

// holds are one Snapshot's references. They belong to the goroutine that compiles it, and then to whoever releases it.
type holds struct {
	keep *keep
	keys []string
}

// hold returns what is kept under kind, name and cfg, or keeps what makeIt makes; close, which may be nil, is run once it
// is no longer referred to. cfg may be nil.
func hold[T any](h *holds, kind, name string, cfg proto.Message, makeIt func() (value T, closeIt func(), err error)) (T, error) {
	var zero T
	key := kind + "\x00" + name
	if cfg != nil {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(cfg)
		if err != nil {
			return zero, err
		}
		key += "\x00" + string(b)
	}
	h.keep.mu.Lock()
	defer h.keep.mu.Unlock()
	k := h.keep.kept[key]
	if k == nil {
		value, closeIt, err := makeIt()
		if err != nil {
			return zero, err
		}
		if h.keep.kept == nil {
			h.keep.kept = map[string]*kept{}
		}
		k = &kept{value: value, close: closeIt}
		h.keep.kept[key] = k
	}
	k.refs++
	h.keys = append(h.keys, key)
	return k.value.(T), nil //nolint:forcetypeassert // the kind says the type
}

// release gives all references back.
func (h *holds) release() {
	var last []func()
	h.keep.mu.Lock()
	for _, key := range h.keys {
		k := h.keep.kept[key]
		if k.refs--; k.refs == 0 {
			delete(h.keep.kept, key)
			if k.close != nil {
				last = append(last, k.close)
			}
		}
	}
	h.keys = nil
	h.keep.mu.Unlock()
	for _, closeIt := range last {
		closeIt()
	}
}
