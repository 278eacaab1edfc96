package report

import (
	"math"
	"sync"
	"time"
)

// Load is what a Meter knows.
type Load struct {
	InFlight int
	// Latency is the mean time per request, 0 before the first one.
	Latency time.Duration
	// PerSecond and ErrorsPerSecond are rates over about ten seconds.
	PerSecond, ErrorsPerSecond float64
}

// rateMemory is the time constant of the rates, latencyMemory the number of requests behind the latency.
const (
	rateMemory    = 10 * time.Second
	latencyMemory = 64
)

// Meter counts requests. It reads no clock: times are since an epoch of the caller's. The zero value is ready for use;
// methods may be called concurrently.
type Meter struct {
	mu            sync.Mutex
	inFlight      int
	latency       float64 // seconds
	seen          float64
	ended, failed float64 // decaying counts
	at            time.Duration
}

// Begin counts a request as in flight.
func (m *Meter) Begin() {
	m.mu.Lock()
	m.inFlight++
	m.mu.Unlock()
}

// End counts the request as finished, after took.
func (m *Meter) End(now, took time.Duration, failed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	m.decay(now)
	m.ended++
	if failed {
		m.failed++
		return // how fast it failed says nothing of its speed
	}
	m.seen = min(m.seen+1, latencyMemory)
	m.latency += (took.Seconds() - m.latency) / m.seen
}

// decay lets the counts fade, so that count/rateMemory is a rate.
func (m *Meter) decay(now time.Duration) {
	k := math.Exp(-float64(now-m.at) / float64(rateMemory))
	m.ended *= k
	m.failed *= k
	m.at = now
}

// Read returns the load. Rates of a meter younger than rateMemory are over its age.
func (m *Meter) Read(now time.Duration) Load {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.decay(now)
	// The counts decay from the start, so a young meter has seen only this much of its window.
	window := rateMemory.Seconds() * -math.Expm1(-float64(now)/float64(rateMemory))
	l := Load{InFlight: m.inFlight, Latency: time.Duration(m.latency * float64(time.Second))}
	if window > 0 {
		l.PerSecond, l.ErrorsPerSecond = m.ended/window, m.failed/window
	}
	return l
}
