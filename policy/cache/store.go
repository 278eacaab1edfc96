package cache

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	cachev1 "transom/proto/transom/cache/v1"
	"transom/rpc"
)

// StoreConfig is where answers are shared.
type StoreConfig struct {
	// Client is how to connect.
	Client rueidis.ClientOption
	// Prefix of every key.
	Prefix string
	// Timeout bounds the wait for an answer of Redis.
	Timeout time.Duration
	// MaxBytes is the largest message that is kept.
	MaxBytes int
}

const (
	// writes is how many answers are on their way to Redis at a time; further ones are not written.
	writes = 64
	// pause is how long Redis is left alone after it failed, and follow how often purges of others are looked for.
	pause  = time.Second
	follow = time.Second
	// maxPurges is how many purges Redis and each process remember; with one more, all answers from before it are gone.
	maxPurges = 10000
)

var errDown = errors.New("left alone for a moment after it failed")

// Store keeps answers in Redis, so that several processes have them in common. While Redis does not answer it has nothing.
// Close it.
//
// # Purges
// Each has a number, larger than those before. Redis has the last purge of every [Selection], and an answer the last purge that
// was known when it began to be fetched: it counts only if no later one is for it. A look-up takes the last number along, so
// a purge holds for what is in Redis at once, and for the memory of other processes within a second. What was purged stays in
// Redis until its time is over; nobody gets it.
type Store struct {
	cfg    StoreConfig
	cache  *Cache
	log    *slog.Logger
	client atomic.Pointer[rueidis.Client]
	script *rueidis.Lua
	// downUntil is when to ask again, in ns since began; 0 while all is well.
	downUntil atomic.Int64
	began     time.Time
	slots     chan struct{}
	stop      context.CancelFunc
	done      sync.WaitGroup

	// complained is when it was last logged that Redis refuses, in ns since began.
	complained atomic.Int64

	purged atomic.Pointer[purges]
	mu     sync.Mutex // held to change purged, and guards what follows
	closed bool
}

// purges are those that are known, immutable.
type purges struct {
	last uint64
	by   map[Selection]uint64
}

// purgeScript records a purge and answers its number. KEYS[1] is the hash of purges, in which the last number stands under "";
// ARGV: the field, that of a purge of all, and how many fields there may be.
const purgeScript = `
local t = redis.call('TIME')
local n = math.max(t[1] * 1000000 + t[2], 1 + tonumber(redis.call('HGET', KEYS[1], '') or '0'))
local field, number = ARGV[1], string.format('%.0f', n)
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  redis.call('DEL', KEYS[1])
  field = ARGV[2]
end
redis.call('HSET', KEYS[1], '', number, field, number)
return number
`

// NewStore connects, in the background and again until it succeeds, and follows the purges of others. c is where answers stand
// in memory.
func NewStore(cfg StoreConfig, c *Cache, log *slog.Logger) *Store {
	ctx, stop := context.WithCancel(context.Background())
	s := &Store{cfg: cfg, cache: c, log: log, script: rueidis.NewLuaScript(purgeScript), began: time.Now(), slots: make(chan struct{}, writes), stop: stop}
	s.purged.Store(&purges{})
	s.done.Go(func() { s.run(ctx) })
	return s
}

// run connects and follows purges.
func (s *Store) run(ctx context.Context) {
	tick := time.NewTicker(follow)
	defer tick.Stop()
	for {
		if s.client.Load() == nil {
			if client, err := rueidis.NewClient(s.cfg.Client); err == nil {
				s.client.Store(&client)
			} else {
				s.log.LogAttrs(ctx, slog.LevelWarn, "Redis cannot be reached", slog.String("error", err.Error()))
			}
		}
		_ = s.do(ctx, func(ctx context.Context, c rueidis.Client) error {
			last, err := lastOf(c.Do(ctx, c.B().Hget().Key(s.purgeKey()).Field("").Build()))
			return errors.Join(err, s.learn(ctx, c, last))
		})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Close ends the connection, after what is on its way.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.done.Wait()
	if c := s.client.Load(); c != nil {
		(*c).Close()
	}
}

// do runs fn with the client, for as long as Timeout, unless Redis has just failed.
func (s *Store) do(ctx context.Context, fn func(context.Context, rueidis.Client) error) error {
	client := s.client.Load()
	now := int64(time.Since(s.began))
	until := s.downUntil.Load()
	if client == nil || until > now {
		return errDown
	}
	if until != 0 && !s.downUntil.CompareAndSwap(until, now+int64(pause)) {
		return errDown // another tries
	}
	// The client's own leaving must not be taken for Redis's failing.
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	defer cancel()
	err := fn(ask, *client)
	_, refused := rueidis.IsRedisErr(err) // say because it is full
	switch {
	case refused:
		if last := s.complained.Load(); (last == 0 || now-last > int64(time.Minute)) && s.complained.CompareAndSwap(last, now) {
			s.log.LogAttrs(ctx, slog.LevelWarn, "Redis refuses what the cache asks of it", slog.String("error", err.Error()))
		}
	case err != nil:
		if until == 0 {
			s.log.LogAttrs(ctx, slog.LevelWarn, "Redis does not answer, answers are cached here only", slog.String("error", err.Error()))
		}
		s.downUntil.Store(int64(time.Since(s.began) + pause))
	case until != 0:
		s.downUntil.Store(0)
		s.log.LogAttrs(ctx, slog.LevelInfo, "Redis answers again")
	}
	return err
}

// get looks for an answer. It is nil if there is none that counts; an error says that Redis could not be asked. The answer may
// be kept as long as there have been no more than purges.
func (s *Store) get(ctx context.Context, key string) (e *entry, purges uint64, err error) {
	var found []byte
	err = s.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		got := c.DoMulti(ctx, c.B().Hget().Key(s.purgeKey()).Field("").Build(), c.B().Get().Key(s.name(key)).Build())
		last, err := lastOf(got[0])
		if err == nil {
			found, err = got[1].AsBytes()
		}
		if rueidis.IsRedisNil(err) {
			err = nil
		}
		if err != nil {
			return err
		}
		return s.learn(ctx, c, last) // if nothing is found too: what is fetched next is of after these purges
	})
	if err != nil || found == nil {
		return nil, 0, err
	}
	purges = s.cache.purges.Load()
	if e = readable(found); e != nil && s.purged.Load().has(e) {
		e = nil
	}
	return e, purges, nil
}

// readable is the entry that b is; nil if it is none, say because a newer transom wrote it.
func readable(b []byte) *entry {
	e, err := decode(b)
	if err != nil {
		return nil
	}
	return e
}

// put keeps an answer, in the background. s may be nil.
func (s *Store) put(key string, e *entry) {
	if s == nil || e.msg.Len() > s.cfg.MaxBytes {
		return
	}
	life := e.ttl + max(e.swr, e.sie) - time.Since(e.stored)
	if life < time.Millisecond {
		return
	}
	value, err := encode(e)
	if err != nil {
		return
	}
	select {
	case s.slots <- struct{}{}:
	default:
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		<-s.slots
		return
	}
	s.done.Go(func() {
		defer func() { <-s.slots }()
		_ = s.do(context.Background(), func(ctx context.Context, c rueidis.Client) error {
			return c.Do(ctx, c.B().Set().Key(s.name(key)).Value(rueidis.BinaryString(value)).PxMilliseconds(life.Milliseconds()).Build()).Error()
		})
	})
}

// Purge makes the answers in Redis count no more, for all processes, and drops those in memory; it returns how many these were.
// On error only those in memory are gone.
func (s *Store) Purge(ctx context.Context, sel Selection) (int, error) {
	n := s.cache.Purge(sel)
	err := s.do(ctx, func(ctx context.Context, c rueidis.Client) error {
		last, err := lastOf(s.script.Exec(ctx, c, []string{s.purgeKey()}, []string{field(sel), field(Selection{}), strconv.Itoa(maxPurges)}))
		return errors.Join(err, s.learn(ctx, c, last))
	})
	if err != nil {
		return n, fmt.Errorf("the answers are still in Redis, which does not answer: %w", err)
	}
	return n, nil
}

// lastPurge is the number of the last purge that is known. s may be nil.
func (s *Store) lastPurge() uint64 {
	if s == nil {
		return 0
	}
	return s.purged.Load().last
}

// learn asks for all purges if there are later ones than are known, and drops from memory what they are for.
func (s *Store) learn(ctx context.Context, c rueidis.Client, last uint64) error {
	if last <= s.lastPurge() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.purged.Load()
	if last <= known.last {
		return nil
	}
	all, err := c.Do(ctx, c.B().Hgetall().Key(s.purgeKey()).Build()).AsStrMap()
	if err != nil {
		return err
	}
	next := &purges{last: known.last, by: maps.Clone(known.by)}
	if next.by == nil {
		next.by = map[Selection]uint64{}
	}
	var later []Selection
	for name, text := range all {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			continue
		}
		next.last = max(next.last, n)
		if sel, ok := selectionOf(name); ok && n > next.by[sel] {
			next.by[sel] = n
			if n > known.last {
				later = append(later, sel)
			}
		}
	}
	if len(next.by) > maxPurges {
		next.by = map[Selection]uint64{{}: next.last}
		later = []Selection{{}}
	}
	s.purged.Store(next)
	for _, sel := range later {
		s.cache.Purge(sel)
	}
	return nil
}

// has reports whether a purge is for e that was not known when it began to be fetched.
func (p *purges) has(e *entry) bool {
	if p.last <= e.purge {
		return false
	}
	later := func(method, consumer, tag string) bool { return p.by[Selection{method, consumer, tag}] > e.purge }
	for _, method := range []string{"", e.method} {
		for _, consumer := range []string{"", e.consumer} {
			if later(method, consumer, "") {
				return true
			}
			for _, tag := range e.tags {
				if later(method, consumer, tag) {
					return true
				}
			}
		}
	}
	return false
}

// field is a Selection as a field of the hash, and selectionOf the reverse.
func field(s Selection) string { return "p" + s.Method + "\x00" + s.Consumer + "\x00" + s.Tag }

func selectionOf(name string) (Selection, bool) {
	rest, ok := strings.CutPrefix(name, "p")
	method, rest, more := strings.Cut(rest, "\x00")
	consumer, tag, evenMore := strings.Cut(rest, "\x00")
	return Selection{method, consumer, tag}, ok && more && evenMore
}

// lastOf is the number of a purge in an answer of Redis, 0 if there is none.
func lastOf(r rueidis.RedisResult) (uint64, error) {
	text, err := r.ToString()
	if rueidis.IsRedisNil(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(text, 10, 64)
}

func (s *Store) purgeKey() string { return s.cfg.Prefix + "cache-purges" }

// name is the key in Redis: what callers sent cannot be read from it.
func (s *Store) name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return s.cfg.Prefix + "cache:" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// encode writes an entry: four bytes of its checksum (CRC-32C, big endian), and a transom.cache.v1.Entry. decode reads it.
func encode(e *entry) ([]byte, error) {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, checksumBytes, 256+e.msg.Len()), &cachev1.Entry{
		Method: e.method, Consumer: e.consumer, Tags: e.tags, StoredMs: e.stored.UnixMilli(), TtlMs: e.ttl.Milliseconds(),
		StaleWhileRevalidateMs: e.swr.Milliseconds(), StaleIfErrorMs: e.sie.Milliseconds(), Purge: e.purge,
		Header: fieldsOf(e.header), Trailer: fieldsOf(e.trailer), Message: e.msg.Bytes(),
	})
	if err == nil {
		binary.BigEndian.PutUint32(b, checksum(b[checksumBytes:]))
	}
	return b, err
}

const checksumBytes = 4

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

var errEntry = errors.New("not a cached answer")

func decode(b []byte) (*entry, error) {
	if len(b) < checksumBytes || binary.BigEndian.Uint32(b) != checksum(b[checksumBytes:]) {
		return nil, errEntry
	}
	var m cachev1.Entry
	if err := proto.Unmarshal(b[checksumBytes:], &m); err != nil {
		return nil, errEntry
	}
	for _, ms := range []int64{m.GetTtlMs(), m.GetStaleWhileRevalidateMs(), m.GetStaleIfErrorMs()} {
		if ms < 0 || ms > maxAge.Milliseconds() {
			return nil, errEntry
		}
	}
	if m.GetMethod() == "" || m.GetTtlMs() == 0 {
		return nil, errEntry
	}
	e := &entry{
		method: m.GetMethod(), consumer: m.GetConsumer(), tags: m.GetTags(), purge: m.GetPurge(), stored: time.UnixMilli(m.GetStoredMs()),
		ttl: time.Duration(m.GetTtlMs()) * time.Millisecond, swr: time.Duration(m.GetStaleWhileRevalidateMs()) * time.Millisecond,
		sie: time.Duration(m.GetStaleIfErrorMs()) * time.Millisecond, header: metadataOf(m.GetHeader()), trailer: metadataOf(m.GetTrailer()),
		msg: rpc.NewMessage(m.GetMessage()).Share(),
	}
	// The clock of who wrote it may be ahead.
	if now := time.Now(); e.stored.After(now) {
		e.stored = now
	}
	return e, nil
}

func fieldsOf(md metadata.MD) []*cachev1.Field {
	var fields []*cachev1.Field
	for name, values := range md {
		f := &cachev1.Field{Name: name}
		for _, v := range values {
			f.Values = append(f.Values, []byte(v))
		}
		fields = append(fields, f)
	}
	return fields
}

func metadataOf(fields []*cachev1.Field) metadata.MD {
	md := make(metadata.MD, len(fields))
	for _, f := range fields {
		for _, v := range f.GetValues() {
			md[f.GetName()] = append(md[f.GetName()], string(v))
		}
	}
	return md
}
