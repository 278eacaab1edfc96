package score

import (
	"testing"
	"unsafe"
)

// Go allocates objects of 321 to 384 bytes 384 apart from a page's start, so that the first field begins a cache line.
func TestNodeFillsWholeCacheLines(t *testing.T) {
	var n Node
	if size := unsafe.Sizeof(n); size <= 320 || size > 384 {
		t.Errorf("a node has %d bytes, want 321 to 384", size)
	}
	if at := unsafe.Offsetof(n.timed); at != 64 {
		t.Errorf("the second cache line begins at %d, want 64", at)
	}
}
