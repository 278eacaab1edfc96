package limit

import (
	"hash/maphash"
	"sync"
)

const (
	shards = 64
	// maxKeys is how many keys a table holds: at most some 50 MB.
	maxKeys = 1 << 20
	// probes is how many keys are looked at for one to drop.
	probes = 16
)

// table holds a value for each key, for up to maxKeys keys: more only if none may be dropped. Keys are known by a 64-bit
// hash with a secret seed: of a million keys, two share one with a probability below 1 in 10 million.
//
// When a shard is full the entry that is worth least of those looked at makes room: one that is out of date if there is one.
// So a flood of keys costs those with little used their history, not those at their limit.
type table[V any] struct {
	seed maphash.Seed
	// worth tells how much the entry matters: the more of a limit was used, the more. It is out of date at 0. nil if no entry may be
	// dropped.
	worth  func(v V, now float64) float64
	shards [shards]shard[V]
}

// shard is a part of a table under a lock of its own.
type shard[V any] struct {
	mu    sync.Mutex
	m     map[uint64]V
	worth func(v V, now float64) float64
	_     [40]byte // a cache line of its own
}

// slot is a key's place in a locked shard.
type slot[V any] struct {
	*shard[V]
	hash uint64
}

func newTable[V any](worth func(v V, now float64) float64) *table[V] {
	t := &table[V]{seed: maphash.MakeSeed(), worth: worth}
	for i := range t.shards {
		t.shards[i].m, t.shards[i].worth = map[uint64]V{}, worth
	}
	return t
}

// shard finds the key's place; its lock is the caller's to take.
func (t *table[V]) shard(key []byte) slot[V] {
	h := maphash.Bytes(t.seed, key)
	return slot[V]{&t.shards[h%shards], h}
}

func (s slot[V]) unlock() { s.mu.Unlock() }

// put stores the key's value, making room if the shard is full.
func (s slot[V]) put(v V, now float64) {
	if s.worth != nil && len(s.m) >= maxKeys/shards {
		if _, there := s.m[s.hash]; !there {
			s.makeRoom(now)
		}
	}
	s.m[s.hash] = v
}

// makeRoom drops the entries out of date among some, or the one that is next.
func (s slot[V]) makeRoom(now float64) {
	n, dropped := 0, false
	var least uint64
	leastWorth := 0.0
	for h, v := range s.m { // in an order that differs each time
		w := s.worth(v, now)
		if w <= 0 {
			delete(s.m, h)
			dropped = true
		} else if n == 0 || w < leastWorth || leastWorth <= 0 {
			least, leastWorth = h, w
		}
		if n++; n == probes {
			break
		}
	}
	if !dropped {
		delete(s.m, least)
	}
}

// update replaces the key's value by what fn makes of it, if fn says so.
func (t *table[V]) update(key []byte, now float64, fn func(V) (V, bool)) {
	s := t.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := fn(s.m[s.hash]); ok {
		s.put(v, now)
	}
}

// len is how many keys there are.
func (t *table[V]) len() int {
	n := 0
	for i := range t.shards {
		t.shards[i].mu.Lock()
		n += len(t.shards[i].m)
		t.shards[i].mu.Unlock()
	}
	return n
}
