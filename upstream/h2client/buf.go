package h2client

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/mem"
)

// buf is the memory of one received message: a mem.Buffer that is its own list of buffers, so that handing it over takes
// no allocation. Of the embedded SliceBuffer it has the unexported methods of mem.Buffer, which take views of the bytes
// and lose the reference: such a buffer never returns to its pool.
type buf struct {
	mem.SliceBuffer
	refs  atomic.Int32
	class int // of bufPools, -1 if not pooled
	list  [1]mem.Buffer
}

// Message buffers are pooled by powers of two from 512 bytes to 4 MiB.
const (
	minBufBits = 9
	maxBufBits = 22
)

var bufPools [maxBufBits - minBufBits + 1]sync.Pool // of *buf

// newBuf returns n bytes with one reference.
func newBuf(n int) *buf {
	class := max(bits.Len(uint(max(n, 1)-1))-minBufBits, 0)
	if class >= len(bufPools) {
		b := &buf{SliceBuffer: make([]byte, n), class: -1}
		b.list[0] = b
		b.refs.Store(1)
		return b
	}
	b, ok := bufPools[class].Get().(*buf)
	if !ok {
		b = &buf{SliceBuffer: make([]byte, 1<<(class+minBufBits)), class: class}
		b.list[0] = b
	}
	b.SliceBuffer = b.SliceBuffer[:n]
	b.refs.Store(1)
	return b
}

// slice hands over the reference.
func (b *buf) slice() mem.BufferSlice { return b.list[:1:1] }

// grown returns a buffer of n bytes that begins with the contents of b, whose reference it takes over.
func (b *buf) grown(n int) *buf {
	g := newBuf(n)
	copy(g.SliceBuffer, b.SliceBuffer)
	b.Free()
	return g
}

func (b *buf) Ref() { b.refs.Add(1) }

func (b *buf) Free() {
	switch n := b.refs.Add(-1); {
	case n < 0:
		panic("h2client: message buffer freed twice")
	case n == 0 && b.class >= 0:
		bufPools[b.class].Put(b)
	}
}

// Slice returns a copy, which needs no reference.
func (b *buf) Slice(start, end int) mem.Buffer {
	return slices.Clone(b.SliceBuffer[start:end])
}
