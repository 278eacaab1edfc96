package codec

import (
	"encoding/binary"
	"unsafe"
)

// The innermost loops load and store eight bytes at offsets that the loop has just compared with the length; through
// slices each would be compared again. Callers guarantee that the bytes are inside the slice whose start p is.

func load64(p *byte, i int) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(unsafe.Pointer(p), i))[:])
}

func store64(p *byte, i int, w uint64) {
	binary.LittleEndian.PutUint64((*[8]byte)(unsafe.Add(unsafe.Pointer(p), i))[:], w)
}
