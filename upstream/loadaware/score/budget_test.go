package score

import (
	"testing"
	"time"
)

func TestBudget(t *testing.T) {
	const ratio = 0.2
	b := NewBudget(ratio)
	took := func(at time.Duration, tries int) (n int) {
		for range tries {
			if b.Take(at) {
				n++
			}
		}
		return n
	}
	at := time.Hour
	if n := took(at, 30); n != 10 {
		t.Errorf("%d extra attempts without calls, want the 10 that there always may be", n)
	}
	for range 1000 {
		b.Call(at)
	}
	if n := took(at, 1000); n != 190 {
		t.Errorf("%d extra attempts at 1,000 calls after 10, want 190", n)
	}
	if n := took(at+9*time.Second, 100); n != 0 {
		t.Errorf("%d extra attempts within ten seconds of all that were allowed", n)
	}
	if n := took(at+10*time.Second, 100); n != 10 {
		t.Errorf("%d extra attempts after ten seconds of quiet, want 10", n)
	}
	for i := range 40 { // the calls of a second count for nine
		for range 100 {
			b.Call(at + time.Minute + time.Duration(i)*time.Second)
		}
	}
	if n := took(at+time.Minute+39*time.Second, 1000); n != 180 {
		t.Errorf("%d extra attempts at 100 calls a second, want 180", n)
	}
	if NewBudget(0).Take(at) {
		t.Error("an empty budget allows an attempt")
	}
}
