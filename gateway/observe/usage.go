package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"transom/listeners"
)

// Names of those who have none: calls without a consumer, and consumers beyond those that are told apart.
const (
	anonymousConsumer = "_anonymous"
	otherConsumer     = "_other"
)

// UsageConfig is how usage is counted.
type UsageConfig struct {
	// File is where each period's lines go: a file to append to, "stdout", "stderr"; "" for nowhere.
	File string
	// Period is how long one is, above 0. Periods begin at multiples of it in UTC.
	Period time.Duration
	// Consumers is how many are told apart in a period, above 0.
	Consumers int
}

// Usage counts what each consumer uses of each API, in periods. What is known of a period is bounded by the number of
// consumers and APIs; that before the last one is forgotten.
type Usage struct {
	cfg      UsageConfig
	log      *slog.Logger
	seed     maphash.Seed
	current  atomic.Pointer[usagePeriod]
	previous atomic.Pointer[usagePeriod]
	stop     context.CancelFunc
	done     sync.WaitGroup
}

const usageShards = 64

// usagePeriod is one period. end is zero while it is under way.
type usagePeriod struct {
	start, end time.Time
	// consumers is how many there are in all shards.
	consumers atomic.Int64
	shards    [usageShards]usageShard
}

// usageShard is a part of the consumers under a lock of its own.
type usageShard struct {
	mu sync.Mutex
	// closed says that the period has ended: what is counted then belongs to the next.
	closed    bool
	consumers map[string]*consumerUsage
}

type consumerUsage struct {
	plan string
	apis map[string]*usageCounts
}

// UsageCounts are those of one consumer and API.
type UsageCounts struct {
	// Errors are calls that did not end with OK, Refused those of them that no backend has seen.
	Calls, Errors, Refused                     uint64
	MessagesIn, MessagesOut, BytesIn, BytesOut uint64
	// Time is that of all calls together, Max of the longest unary one.
	Time, Max time.Duration
}

// usageCounts are UsageCounts as they are counted.
type usageCounts struct {
	UsageCounts
	shard *usageShard
	// took counts unary calls by their time: at most shortest<<i.
	took [usageBuckets]uint32
}

const (
	shortest     = 125 * time.Microsecond
	usageBuckets = 20 // the last but one is 32 s
)

// NewUsage begins a period, and ends it and those that follow at their time until Close. A file that cannot be appended to is
// an error.
func NewUsage(cfg UsageConfig, log *slog.Logger) (*Usage, error) {
	u := &Usage{cfg: cfg, log: log, seed: maphash.MakeSeed()}
	if err := u.append(nil); err != nil {
		return nil, err
	}
	now := time.Now()
	u.current.Store(&usagePeriod{start: now})
	ctx, stop := context.WithCancel(context.Background())
	u.stop = stop
	u.done.Go(func() { u.run(ctx, now) })
	return u, nil
}

// Close ends the period under way and writes it. Nothing may be counted any more.
func (u *Usage) Close() {
	u.stop()
	u.done.Wait()
	u.turn(time.Now())
}

// run ends periods at their time.
func (u *Usage) run(ctx context.Context, now time.Time) {
	for {
		next := now.Truncate(u.cfg.Period).Add(u.cfg.Period)
		t := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		now = next
		u.turn(next)
	}
}

// turn ends the period under way, begins the next, and writes what was used.
func (u *Usage) turn(now time.Time) {
	p := u.current.Load()
	u.current.Store(&usagePeriod{start: now})
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
	}
	p.end = now
	u.previous.Store(p)
	if u.cfg.File == "" {
		return
	}
	var b []byte
	for _, r := range p.rows("", "") {
		b = r.appendLine(b, p.start, p.end)
	}
	if err := u.append(b); err != nil {
		u.log.LogAttrs(context.Background(), slog.LevelError, "usage was not written", slog.String("error", err.Error()))
	}
}

// append writes whole lines to the file.
func (u *Usage) append(b []byte) error {
	switch u.cfg.File {
	case "":
		return nil
	case "stdout":
		_, err := os.Stdout.Write(b)
		return err
	case "stderr":
		_, err := os.Stderr.Write(b)
		return err
	}
	f, err := os.OpenFile(u.cfg.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("usage: %w", err)
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// add counts a call that has ended.
func (u *Usage) add(api string, x *listeners.Exchange, took time.Duration) {
	consumer, plan := anonymousConsumer, ""
	if p := x.Call.Principal; p != nil {
		consumer, plan = p.Consumer, p.Plan
	}
	for {
		p := u.current.Load()
		n, ended := p.lock(u, consumer, plan, api)
		if n == nil && !ended {
			n, ended = p.lock(u, otherConsumer, "", api)
		}
		if !ended {
			n.add(x, took)
			n.shard.mu.Unlock()
			return
		}
	}
}

// lock finds the counts of a consumer and API, whose shard it leaves locked. They are nil if there are too many consumers, or
// if the period has ended.
func (p *usagePeriod) lock(u *Usage, consumer, plan, api string) (n *usageCounts, ended bool) {
	s := &p.shards[maphash.String(u.seed, consumer)%usageShards]
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, true
	}
	c := s.consumers[consumer]
	if c == nil {
		told := consumer != anonymousConsumer && consumer != otherConsumer
		if told && p.consumers.Add(1) > int64(u.cfg.Consumers) {
			p.consumers.Add(-1)
			s.mu.Unlock()
			return nil, false
		}
		if s.consumers == nil {
			s.consumers = map[string]*consumerUsage{}
		}
		c = &consumerUsage{apis: map[string]*usageCounts{}}
		s.consumers[consumer] = c
	}
	c.plan = plan
	if n = c.apis[api]; n == nil {
		n = &usageCounts{shard: s}
		c.apis[api] = n
	}
	return n, false
}

// add counts one call.
func (n *usageCounts) add(x *listeners.Exchange, took time.Duration) {
	info := x.Call.Info
	n.Calls++
	if x.Status.Code() != codes.OK {
		n.Errors++
		if info.Attempts == 0 {
			n.Refused++
		}
	}
	n.MessagesIn += uint64(info.MessagesIn)
	n.MessagesOut += uint64(info.MessagesOut)
	n.BytesIn += uint64(info.BytesIn)
	n.BytesOut += uint64(info.BytesOut)
	n.Time += took
	if x.Call.Method.Unary() {
		n.Max = max(n.Max, took)
		i := 0
		for i < usageBuckets-1 && took > shortest<<i {
			i++
		}
		n.took[i]++
	}
}

// quantile is the time that a share q of the unary calls took at most, between the bounds of its bucket by how many calls are
// there. It is never above the longest.
func (n *usageCounts) quantile(q float64) time.Duration {
	var total float64
	for _, k := range n.took {
		total += float64(k)
	}
	before := 0.0
	for i, k := range n.took {
		in := float64(k)
		if in == 0 || before+in < q*total {
			before += in
			continue
		}
		low, high := time.Duration(0), shortest<<i
		if i > 0 {
			low = shortest << (i - 1)
		}
		if i == usageBuckets-1 {
			high = max(low, n.Max)
		}
		return min(n.Max, low+time.Duration(float64(high-low)*(q*total-before)/in))
	}
	return 0
}

// UsageRow is what one consumer used of one API.
type UsageRow struct {
	Consumer, Plan, API string
	UsageCounts
	P50, P95, P99 time.Duration
}

// rows are those of a consumer and an API, "" for any, sorted by both.
func (p *usagePeriod) rows(consumer, api string) []UsageRow {
	var rows []UsageRow
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		for name, c := range s.consumers {
			if consumer != "" && name != consumer {
				continue
			}
			for of, n := range c.apis {
				if api != "" && of != api {
					continue
				}
				rows = append(rows, UsageRow{
					Consumer: name, Plan: c.plan, API: of, UsageCounts: n.UsageCounts,
					P50: n.quantile(0.5), P95: n.quantile(0.95), P99: n.quantile(0.99),
				})
			}
		}
		s.mu.Unlock()
	}
	slices.SortFunc(rows, func(a, b UsageRow) int {
		return cmp.Or(cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.API, b.API))
	})
	return rows
}

// UsageReport is what was used in a period, sorted by consumer and API. End is now if the period is under way.
type UsageReport struct {
	Start, End time.Time
	Rows       []UsageRow
}

// Report tells of the period under way, or of the one before it, what a consumer and an API have; "" for any. No period has
// ended at first: Start is zero then.
func (u *Usage) Report(previous bool, consumer, api string) UsageReport {
	p := u.current.Load()
	end := time.Now()
	if previous {
		if p = u.previous.Load(); p == nil {
			return UsageReport{}
		}
		end = p.end
	}
	return UsageReport{Start: p.start, End: end, Rows: p.rows(consumer, api)}
}

// appendLine appends a row as a line of JSON. Times are UTC, durations milliseconds.
func (r *UsageRow) appendLine(b []byte, start, end time.Time) []byte {
	const layout = "2006-01-02T15:04:05.000Z"
	b = append(b, `{"start":"`...)
	b = start.UTC().AppendFormat(b, layout)
	b = append(b, `","end":"`...)
	b = append(end.UTC().AppendFormat(b, layout), '"')
	b = text(b, `,"consumer":"`, r.Consumer)
	b = text(b, `,"plan":"`, r.Plan)
	b = text(b, `,"api":"`, r.API)
	for _, f := range []struct {
		key string
		n   uint64
	}{
		{`,"calls":`, r.Calls},
		{`,"errors":`, r.Errors},
		{`,"refused":`, r.Refused},
		{`,"messages_in":`, r.MessagesIn},
		{`,"messages_out":`, r.MessagesOut},
		{`,"bytes_in":`, r.BytesIn},
		{`,"bytes_out":`, r.BytesOut},
	} {
		b = number(b, f.key, int64(f.n))
	}
	b = millis(b, `,"time_ms":`, r.Time)
	b = millis(b, `,"p50_ms":`, r.P50)
	b = millis(b, `,"p95_ms":`, r.P95)
	b = millis(b, `,"p99_ms":`, r.P99)
	b = millis(b, `,"max_ms":`, r.Max)
	return append(b, '}', '\n')
}

// UsageOf is a Usage with the APIs of one schema.
type UsageOf struct {
	*Usage
	// APIs are names of APIs by full method path. Methods that it does not have are not counted, but for those without a schema.
	APIs map[string]string
}

// end counts the call, if it was one.
func (u *UsageOf) end(x *listeners.Exchange, took time.Duration) {
	if x.Call.Method == nil {
		return
	}
	api := other
	if x.Call.Method.ID >= 0 {
		if api = u.APIs[x.Call.Method.FullPath]; api == "" {
			return
		}
	}
	u.add(api, x, took)
}
