package score_test

import (
	"testing"
	"time"

	"transom/upstream/loadaware/score"
)

// queue is a server that works at some calls at a time while as many wait as the limit lets in, in virtual time.
type queue struct {
	*score.Limiter
	now           time.Duration
	slots, limit  int64
	service       time.Duration
	offered       int64 // callers that call again at once
	refuses       bool
	least, most   int64 // limits seen
	callsInFlight int64
}

// run lets d pass.
func (q *queue) run(d time.Duration) {
	q.least, q.most = 1<<40, 0
	for end := q.now + d; q.now < end; {
		q.callsInFlight = min(q.offered, q.limit)
		took := q.service
		if q.callsInFlight > q.slots {
			took = time.Duration(float64(took) * float64(q.callsInFlight) / float64(q.slots))
		}
		busy := min(q.callsInFlight, q.slots)
		q.now += q.service / time.Duration(busy)
		if l := q.End(q.now, took, q.callsInFlight, !q.refuses, q.refuses); l > 0 {
			q.limit = l
		}
		q.least, q.most = min(q.least, q.limit), max(q.most, q.limit)
	}
}

func newQueue(most int) *queue {
	q := &queue{slots: 20, service: 40 * time.Millisecond, now: time.Hour, offered: 1 << 30}
	q.Limiter, q.limit = score.NewLimiter(most)
	return q
}

func TestLimiterFindsWhatTheServersTake(t *testing.T) {
	q := newQueue(10000)
	q.run(10 * time.Second)
	for minute := range 5 { // what was best must not be forgotten under a load that lasts
		q.run(time.Minute)
		if q.least < 19 || q.most > 60 {
			t.Errorf("minute %d: limits from %d to %d, want about 20 to 40 for 20 slots", minute, q.least, q.most)
		}
	}
	q.slots = 5
	q.run(2 * time.Minute)
	q.run(time.Minute)
	if q.least < 4 || q.most > 20 {
		t.Errorf("limits from %d to %d for 5 slots", q.least, q.most)
	}
	q.slots = 100
	q.run(2 * time.Minute)
	q.run(time.Minute)
	if q.least < 90 || q.most > 300 {
		t.Errorf("limits from %d to %d for 100 slots", q.least, q.most)
	}
}

func TestLimiterDoesNotGrowUnused(t *testing.T) {
	q := newQueue(10000)
	q.offered = 10
	q.run(10 * time.Minute)
	if q.limit > 30 {
		t.Errorf("limit %d with 10 callers", q.limit)
	}
}

func TestLimiterBounds(t *testing.T) {
	q := newQueue(12)
	q.run(time.Minute)
	if q.least < 8 || q.most > 12 || q.limit != 12 {
		t.Errorf("limits from %d to %d, at last %d, want 12 as it may be no more", q.least, q.most, q.limit)
	}
	q.refuses = true
	q.run(time.Minute)
	if q.limit != 4 {
		t.Errorf("limit %d where all calls are refused, want 4", q.limit)
	}
	if _, limit := score.NewLimiter(1); limit != 1 {
		t.Errorf("limit %d, want 1", limit)
	}
}
