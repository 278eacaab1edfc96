package codec

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"
	"unsafe"
)

// TestPlain holds copyPlain and scanPlain to a loop, at every place beside a page that must not be touched.
func TestPlain(t *testing.T) {
	if !vectors {
		return // this processor does without them
	}
	page := syscall.Getpagesize()
	mem, err := syscall.Mmap(-1, 0, 2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Munmap(mem); err != nil {
			t.Error(err)
		}
	}()
	if err := syscall.Mprotect(mem[page:], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 1))
	dst := make([]byte, 400)
	for n := range 140 {
		for _, start := range []int{0, page - n, page - n - 1, page - n - 31, page - n - 32, page - n - 33, page - n - 200} {
			for special := range n + 1 {
				s := mem[start : start+n]
				for i := range s {
					s[i] = byte(' ' + r.IntN(90))
					for s[i] == '"' || s[i] == '\\' {
						s[i]++
					}
					if r.IntN(60) == 0 {
						s[i] = byte(0x80 + r.IntN(0x80))
					}
				}
				if special < n {
					s[special] = []byte{'"', '\\', 0, 0x1f, '\n'}[r.IntN(5)]
				}
				want := bytes.IndexFunc(s, func(c rune) bool { return c < ' ' || c == '"' || c == '\\' })
				if want < 0 {
					want = n
				}
				high := bytes.IndexFunc(s[:want], func(c rune) bool { return c >= 0x80 }) >= 0
				clear(dst)
				k, h := copyPlain(&dst[0], unsafe.SliceData(s), n)
				k2, h2 := scanPlain(unsafe.SliceData(s), n)
				if k < 0 && k2 < 0 && n%32 != 0 && (start+n-n%32)%page > page-32 {
					continue // it would have had to touch the page
				}
				if k != want || (h != 0) != high || !bytes.Equal(dst[:k], s[:k]) || k2 != want || (h2 != 0) != high {
					t.Fatalf("%d bytes at %d, special at %d: got %d %x and %d %x, want %d %v", n, start, special, k, h, k2, h2, want, high)
				}
				if i := bytes.IndexFunc(dst[min(len(dst), want+33):], func(c rune) bool { return c != 0 }); i >= 0 {
					t.Fatalf("%d bytes at %d, special at %d: wrote at %d", n, start, special, want+33+i)
				}
			}
		}
	}
}

// TestWithoutVectors runs the differential tests on what other processors do.
func TestWithoutVectors(t *testing.T) {
	defer func(v bool) { vectors = v }(vectors)
	vectors = false
	t.Setenv("CODEC_CASES", "5000")
	t.Run("JSON", TestDiffJSON)
	t.Run("wire", TestDiffWire)
	t.Run("accepts", TestAccepts)
	t.Run("refuses", TestRefuses)
}
