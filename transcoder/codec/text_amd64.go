package codec

import "golang.org/x/sys/cpu"

// vectors says whether copyPlain and scanPlain may be called: they need AVX2 and the bit instructions that came with it.
var vectors = cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasBMI2

// copyPlain copies from src to dst what can stand in a JSON string as it is, at most n bytes: it ends at the first quote,
// backslash or control character. It returns how many bytes those are, and a word that is not zero if one of them has the
// high bit. Up to 32 bytes behind them are overwritten too, so that dst must have room for n+32. Reading past src[n] stays
// within a page; where it cannot, k is -1 and nothing is copied for certain.
//
//go:noescape
func copyPlain(dst, src *byte, n int) (k int, high uint64)

// scanPlain is copyPlain without the copy.
//
//go:noescape
func scanPlain(src *byte, n int) (k int, high uint64)
