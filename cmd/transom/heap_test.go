package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestGCPercent(t *testing.T) {
	for _, tc := range []struct {
		base          int
		live, scanned uint64
		want          int
	}{
		{100, 0, 0, 100}, // before the first collection
		{100, 8 << 20, 8 << 20, 300},
		{100, 8 << 20, 16 << 20, 150}, // large stacks
		{100, 16 << 20, 16 << 20, 100},
		{100, 30 << 20, 30 << 20, 100},
		{100, 200 << 20, 200 << 20, 100},
		{50, 16 << 20, 16 << 20, 100},
		{400, 16 << 20, 16 << 20, 400},
		{100, 1 << 10, 1 << 10, 10_000},
	} {
		if got := gcPercent(tc.base, tc.live, tc.scanned); got != tc.want {
			t.Errorf("gcPercent(%d, %d, %d) = %d, want %d", tc.base, tc.live, tc.scanned, got, tc.want)
		}
	}
}

// Garbage beside little that lives is collected once for each 32 MiB or so, and not once for each 4.
func TestHeapFloor(t *testing.T) {
	t.Setenv("GOGC", "")
	base := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(base) })
	keepHeapFloor()
	runtime.GC()
	runtime.GC() // by now the finalizer of the first has run, or will within the loop
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const total = 640 << 20
	garbage := make([][]byte, 1)
	for i := range total >> 16 {
		garbage[i%len(garbage)] = make([]byte, 1<<16)
	}
	runtime.ReadMemStats(&after)
	if n := after.NumGC - before.NumGC; n > 60 {
		t.Errorf("%d collections for 640 MiB, want about 20", n)
	}
}

// Who sets GOGC gets it.
func TestHeapFloorLeavesGOGC(t *testing.T) {
	t.Setenv("GOGC", "70")
	if keepHeapFloor() {
		t.Error("GOGC=70 is overruled")
	}
}
