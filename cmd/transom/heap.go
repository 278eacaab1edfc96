package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heapFloor is the size to which the heap may grow before garbage is collected, whatever is live. Go's own is 4 MiB at GOGC=100.
// A gateway's schemas and plans lie there for good, full of pointers, so that a small heap would be marked again and again
// for the little that calls leave behind. A memory limit (GOMEMLIMIT, or the container's) goes before it.
const heapFloor = 32 << 20

// heapTuner raises GOGC while the heap is small, so that the next collection begins at the floor; once it has grown, GOGC is
// what it was. It looks after each collection.
type heapTuner struct {
	base    int // GOGC as it was set
	current int
	samples []metrics.Sample
}

// keepHeapFloor makes garbage collection begin no sooner than at heapFloor. Where GOGC is set in the environment it does
// nothing and returns false: whoever set it meant it.
func keepHeapFloor() bool {
	if os.Getenv("GOGC") != "" {
		return false
	}
	base := debug.SetGCPercent(100)
	debug.SetGCPercent(base)
	t := &heapTuner{base: base, current: base, samples: []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"},
	}}
	t.collected(new(sentinel))
	return true
}

// sentinel is unreachable from its birth: its finalizer runs after each collection. It is too large to share a block with
// what lives.
type sentinel [64]byte

func (t *heapTuner) collected(s *sentinel) {
	metrics.Read(t.samples)
	live := t.samples[0].Value.Uint64()
	percent := gcPercent(t.base, live, live+t.samples[1].Value.Uint64()+t.samples[2].Value.Uint64())
	if diff := percent - t.current; diff*10 > t.current || -diff*10 > t.current { // setting it stops the world for a moment
		debug.SetGCPercent(percent)
		t.current = percent
	}
	runtime.SetFinalizer(s, t.collected)
}

// gcPercent is the GOGC at which the heap, live bytes of it in use, grows to heapFloor; base if that is more. GOGC counts from
// scanned bytes on: live ones, stacks and globals.
func gcPercent(base int, live, scanned uint64) int {
	if live >= heapFloor || scanned == 0 {
		return base
	}
	return max(base, int(min((heapFloor-live)*100/scanned, 10_000)))
}
