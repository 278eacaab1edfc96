package score

import (
	"sync/atomic"
	"time"
)

// Settings of the budget.
const (
	budgetSeconds = 10
	// budgetFloor is how many extra attempts per budgetSeconds there may always be, so that a quiet cluster has retries.
	budgetFloor = 10
)

// Budget limits the attempts of a cluster beyond the first of each call: over the last ten seconds they may be a share
// of the calls, or ten. Counts are kept by the second; calls are those of one second less, so that over any ten seconds the
// share is kept though calls do not come evenly, and may be off by the few that arrive as a second begins. It may be used
// concurrently.
type Budget struct {
	ratio float64
	slots [budgetSeconds + 1]budgetSlot
}

type budgetSlot struct {
	second       atomic.Int64
	calls, extra atomic.Int64
}

// NewBudget returns a budget of ratio extra attempts per call; none if it is not positive.
func NewBudget(ratio float64) *Budget { return &Budget{ratio: ratio} }

// slot is that of the second of now, a time since any epoch.
func (b *Budget) slot(now time.Duration) (s *budgetSlot, second int64) {
	second = int64(now / time.Second)
	s = &b.slots[second%int64(len(b.slots))]
	if old := s.second.Load(); old != second && s.second.CompareAndSwap(old, second) {
		s.calls.Store(0)
		s.extra.Store(0)
	}
	return s, second
}

// Call counts a call.
func (b *Budget) Call(now time.Duration) {
	s, _ := b.slot(now)
	s.calls.Add(1)
}

// Take counts an extra attempt if there is room for one.
func (b *Budget) Take(now time.Duration) bool {
	s, second := b.slot(now)
	var calls, extra int64
	for i := range b.slots {
		o := &b.slots[i]
		if age := second - o.second.Load(); age < budgetSeconds {
			extra += o.extra.Load()
			if age < budgetSeconds-1 {
				calls += o.calls.Load()
			}
		}
	}
	if b.ratio <= 0 || float64(extra+1) > max(b.ratio*float64(calls), budgetFloor) {
		return false
	}
	s.extra.Add(1)
	return true
}
