// Package cache keeps answers of unary methods without side effects: in memory ([Cache]), and if it is asked to in Redis as
// well, where other processes find them ([Store]).
//
// # Whose answers
// An answer is found again only for the same method, the same request (field by field, however it was written), the same
// values of the metadata that the policy lists, and the same caller: its credentials, cookies and everything that
// authentication says of it, unless the policy shares answers between callers. The backend gets the metadata that is part of
// this key, the trace context, and nothing else, so that nobody can put an answer into another's way by metadata that the key
// does not have.
//
// # What is kept
// Answers with status OK. The backend's cache-control goes before the policy: no-store, no-cache and (where answers are
// shared) private keep nothing, s-maxage, max-age and else expires set the time, stale-while-revalidate and stale-if-error too. Its
// age is part of that time. Nothing is kept with set-cookie, or with a vary that the policy does not list.
//
// # What is dropped
// Answers are purged by method, by consumer, by tag, and by these together. Tags come from the policy, from fields of the
// request, and from the backend's "cache-tag" (names split by commas), which clients do not get. An answer that began to be
// fetched before a purge is not kept after it.
//
// # What clients see
// "cache-status" (RFC 9211), after what caches behind say in it, and "age" of answers that are or could be kept. An entity tag is the
// backend's: what a client gets is not these bytes, and whoever renders them tags what comes of it.
//
// # Concurrency
// A Cache is safe for concurrent use. Answers are brought up to date by goroutines that Close ends.
package cache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	"transom/rpc"
)

const (
	// maxKey is the largest key, in bytes: calls with a larger one are not cached.
	maxKey = 64 << 10
	// refreshes is how many answers are brought up to date at a time; further ones wait for the next call.
	refreshes = 64
	// reserve is the most of a call's time that is left for an old answer to get out in.
	reserve = 500 * time.Millisecond
	// maxAge is the longest that a backend may ask for.
	maxAge = 365 * 24 * time.Hour
)

// Config is how the answers of one method are cached.
type Config struct {
	// TTL is how long an answer is fresh unless the backend says otherwise.
	TTL time.Duration
	// StaleWhileRevalidate is how long after that it is still given, while a new one is fetched; StaleIfError how long it is
	// given if no new one can be had (RFC 5861).
	StaleWhileRevalidate, StaleIfError time.Duration
	// Timeout is how long it may take to bring an answer up to date in the background; 0 is 15 s.
	Timeout time.Duration
	// Vary are the metadata names, in lower case, that answers depend on.
	Vary []string
	// Shared gives one caller's answers to others.
	Shared bool
	// Tags are of all answers, TagFields give each the tag "NAME:VALUE" of a request field.
	Tags      []string
	TagFields []TagField
	// Store keeps answers in Redis as well; nil for in memory only.
	Store *Store
	// Salt is part of every key: of what else answers depend on, such as policies further in.
	Salt string
}

// TagField is a request field that answers are tagged by.
type TagField struct {
	Name string
	Path rpc.FieldPath
}

// The most tags that an answer may have, and the longest of them, in bytes. An answer with more, or longer ones, is not kept.
const (
	maxTags = 64
	maxTag  = 256
)

// Cache holds the answers of all methods.
type Cache struct {
	entries *otter.Cache[string, *entry]
	ctx     context.Context //nolint:containedctx // of the refreshing goroutines, which are the Cache's own
	stop    context.CancelFunc
	slots   chan struct{}
	// purges counts them.
	purges atomic.Uint64

	mu      sync.Mutex // guards what follows
	flights map[string]*flight
	closed  bool
	wg      sync.WaitGroup
}

// entry is one answer, immutable.
type entry struct {
	method, consumer string
	tags             []string
	// purge is the last purge of the Store that was known when the answer began to be fetched.
	purge           uint64
	msg             rpc.Message // shared, and its bytes are the collector's
	header, trailer metadata.MD
	stored          time.Time
	ttl, swr, sie   time.Duration
}

// flight is a fetch that others wait for.
type flight struct {
	done  chan struct{}
	entry *entry // nil if the answer may not be kept
	old   *entry // what the Store had, which may be given in place of err; nil for nothing
	err   error
	// source is whose fault err is, and own says that err is of the call that fetched alone: it left, or its time was over.
	source rpc.Source
	own    bool
}

// New makes a cache of about maxBytes.
func New(maxBytes int64) (*Cache, error) {
	entries, err := otter.New(&otter.Options[string, *entry]{
		MaximumWeight: uint64(max(1, maxBytes)),
		Weigher:       func(key string, e *entry) uint32 { return e.weight(key) },
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[string, *entry]) time.Duration {
			return e.Value.ttl + max(e.Value.swr, e.Value.sie) - time.Since(e.Value.stored)
		}),
	})
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Cache{entries: entries, ctx: ctx, stop: stop, slots: make(chan struct{}, refreshes), flights: map[string]*flight{}}, nil
}

// Close ends the refreshing. Calls in flight go on.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.wg.Wait()
	c.entries.InvalidateAll()
	c.entries.StopAllGoroutines()
}

// Selection is which answers to purge: those of a method (full name), of a consumer, and with a tag; "" is any.
type Selection struct{ Method, Consumer, Tag string }

// has reports whether e is one of them.
func (s Selection) has(e *entry) bool {
	return (s.Method == "" || e.method == s.Method) && (s.Consumer == "" || e.consumer == s.Consumer) && (s.Tag == "" || slices.Contains(e.tags, s.Tag))
}

// Purge drops answers from memory, and returns how many they were. Calls that come from then on do not wait for what is being
// fetched.
func (c *Cache) Purge(s Selection) int {
	c.purges.Add(1)
	c.mu.Lock()
	clear(c.flights)
	c.mu.Unlock()
	c.entries.CleanUp() // what is over the bound goes a little later than what comes
	n := 0
	for key, e := range c.entries.All() {
		if s.has(e) {
			if _, ok := c.entries.Invalidate(key); ok {
				n++
			}
		}
	}
	return n
}

// set keeps an entry that was looked for, or began to be fetched, when there had been so many purges.
func (c *Cache) set(key string, e *entry, purges uint64) {
	c.entries.Set(key, e)
	if c.purges.Load() != purges {
		c.entries.Invalidate(key)
	}
}

// weight is about what an entry takes, with one rendering in JSON.
func (e *entry) weight(key string) uint32 {
	n := 512 + len(key) + 4*e.msg.Len()
	for _, t := range e.tags {
		n += len(t) + 16
	}
	for _, md := range []metadata.MD{e.header, e.trailer} {
		for k, vs := range md {
			n += len(k) + 64
			for _, v := range vs {
				n += len(v) + 16
			}
		}
	}
	return uint32(min(n, 1<<31))
}

// Middleware caches the answers of m, which must be unary and without side effects.
func (c *Cache) Middleware(m *descriptors.Method, cfg Config) (rpc.Middleware, error) {
	switch {
	case m.Desc == nil || !m.Unary():
		return nil, fmt.Errorf("answers of %s cannot be cached: it is not a unary method", m.Name)
	case m.Effect != descriptors.EffectNone:
		return nil, fmt.Errorf("answers of %s cannot be cached: it has side effects (say option idempotency_level = NO_SIDE_EFFECTS if not)", m.Name)
	}
	vary := slices.Clone(cfg.Vary)
	slices.Sort(vary)
	cfg.Vary = slices.Compact(vary)
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	return func(next rpc.Handler) rpc.Handler {
		h := &handler{cache: c, cfg: cfg, method: m, input: shapeOf(m.Desc.Input(), map[protoreflect.FullName]*shape{}), next: next}
		return h.run
	}, nil
}

// handler is the cache before one method.
type handler struct {
	cache  *Cache
	cfg    Config
	method *descriptors.Method
	input  *shape
	next   rpc.Handler
}

func (h *handler) run(ctx context.Context, call *rpc.Call) error {
	request, err := rpc.RecvOne(ctx, call.Stream)
	if err != nil {
		call.Info.Fail(rpc.SourceClient)
		return err
	}
	key, ok := h.key(call, request)
	if !ok {
		call.Info.Note("cache", "bypass")
		call.Stream = &replayed{Stream: call.Stream, in: request}
		return h.next(ctx, call)
	}
	defer request.Release()
	now := time.Now()
	old, _ := h.cache.entries.GetIfPresent(key)
	if old != nil {
		age := now.Sub(old.stored)
		if age < old.ttl {
			return h.give(ctx, call, old, "hit", "transom; hit")
		}
		if age < old.ttl+old.swr {
			h.refresh(call, key, request)
			return h.give(ctx, call, old, "stale", "transom; hit; detail=stale-while-revalidate")
		}
	}
	early, cancel := old.early(ctx, now)
	defer cancel()
	for {
		f, leads := h.cache.lead(key)
		if leads {
			return h.lead(ctx, call, key, request, f, old, now)
		}
		select {
		case <-f.done:
		case <-early.Done():
			if err := rpc.CauseOf(ctx); err != nil {
				return err
			}
			return h.give(ctx, call, old, "stale", "transom; hit; detail=stale-if-error")
		}
		if f.old != nil {
			old = f.old
		}
		switch {
		case f.entry != nil:
			return h.give(ctx, call, f.entry, "hit", "transom; hit; collapsed")
		case f.err != nil && old.saves(f.err, now):
			return h.give(ctx, call, old, "stale", "transom; hit; detail=stale-if-error")
		case f.err == nil: // what others may not have: fetch alone, not one after the other
			return h.alone(ctx, call, request)
		case !f.own:
			call.Info.Fail(f.source)
			call.Info.Note("cache", "collapsed")
			return f.err
		}
		// The one that fetched has left, or had less time: one of those that wait fetches for the others.
	}
}

// over reports whether the call of ctx has ended, by the clock too: a backend knows the deadline and may say so first.
func over(ctx context.Context) bool {
	at, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(at)
}

// early is ctx, but if the entry may be given in place of an answer that does not come in time, it ends before the call does, by a
// tenth of the call's time or [reserve], so that there is time to give it: once the call has ended no Stream takes anything.
func (e *entry) early(ctx context.Context, now time.Time) (context.Context, context.CancelFunc) {
	at, ok := ctx.Deadline()
	if !ok || !e.last(now) {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, at.Add(-min(at.Sub(now)/10, reserve)))
}

// last reports whether the entry may be given if no new one can be had.
func (e *entry) last(now time.Time) bool { return e != nil && now.Sub(e.stored) < e.ttl+e.sie }

// saves reports whether the entry may be given in place of err.
func (e *entry) saves(err error, now time.Time) bool {
	if !e.last(now) {
		return false
	}
	switch rpc.StatusOf(err).Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Unknown, codes.ResourceExhausted, codes.DataLoss, codes.Aborted:
		return true
	default:
		return false
	}
}

// lead takes the lead of the key's flight, or returns the one there is.
func (c *Cache) lead(key string) (f *flight, leads bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[key]; f != nil {
		return f, false
	}
	f = &flight{done: make(chan struct{})}
	c.flights[key] = f
	return f, true
}

// land ends a flight.
func (c *Cache) land(key string, f *flight) {
	c.mu.Lock()
	if c.flights[key] == f { // a purge has forgotten it
		delete(c.flights, key)
	}
	c.mu.Unlock()
	close(f.done)
}

// lead gets the answer for itself and those that wait: from the Store, if it has one, else from the backend.
func (h *handler) lead(ctx context.Context, call *rpc.Call, key string, request rpc.Message, f *flight, old *entry, now time.Time) error {
	landed := false
	defer func() {
		if !landed { // next panicked
			f.err, f.own = context.Canceled, true
			h.cache.land(key, f)
		}
	}()
	if kept := h.stored(ctx, call, key); kept != nil {
		switch age := now.Sub(kept.stored); {
		case age < kept.ttl:
			f.entry, landed = kept, true
			h.cache.land(key, f)
			return h.give(ctx, call, kept, "hit", "transom; hit; detail=shared")
		case age < kept.ttl+kept.swr:
			f.entry, landed = kept, true
			h.cache.land(key, f)
			h.refresh(call, key, request)
			return h.give(ctx, call, kept, "stale", "transom; hit; detail=stale-while-revalidate")
		}
		old, f.old = kept, kept
	}
	early, cancel := old.early(ctx, now)
	defer cancel()
	var r recorder
	f.entry, f.err = h.fetch(early, call, key, request, &r)
	f.source, f.own, landed = call.Info.ErrorSource, over(early), true
	h.cache.land(key, f)
	if f.err != nil && old.saves(f.err, now) {
		r.drop()
		call.Info.ErrorSource = rpc.SourceNone
		return h.give(ctx, call, old, "stale", "transom; hit; detail=stale-if-error")
	}
	if f.entry != nil {
		r.drop()
		return h.give(ctx, call, f.entry, "miss", "transom; fwd=miss; stored")
	}
	return r.forward(ctx, call, f.err, "transom; fwd=miss")
}

// stored is the answer that the Store has, which is kept in memory from then on; nil if it has none.
func (h *handler) stored(ctx context.Context, call *rpc.Call, key string) *entry {
	if h.cfg.Store == nil {
		return nil
	}
	e, purges, err := h.cfg.Store.get(ctx, key)
	if err != nil {
		call.Info.Note("cache_shared", "no")
	}
	if e == nil || time.Since(e.stored) >= e.ttl+max(e.swr, e.sie) {
		return nil
	}
	h.cache.set(key, e, purges)
	return e
}

// alone fetches for itself only.
func (h *handler) alone(ctx context.Context, call *rpc.Call, request rpc.Message) error {
	var r recorder
	_, err := h.fetch(ctx, call, "", request, &r)
	return r.forward(ctx, call, err, "transom; fwd=miss")
}

// fetch makes the call with the metadata of its key, and keeps the answer under key if it may be kept; "" keeps nothing.
func (h *handler) fetch(ctx context.Context, call *rpc.Call, key string, request rpc.Message, r *recorder) (*entry, error) {
	purges, purge := h.cache.purges.Load(), h.cfg.Store.lastPurge()
	r.in = request
	inner := *call
	inner.Header, inner.Stream = h.header(call), r
	began := time.Now()
	err := h.next(ctx, &inner)
	if err != nil || key == "" || !r.sent {
		r.untag()
		return nil, err
	}
	e := h.entry(call, r, request, began)
	r.untag()
	if e != nil {
		e.purge = purge
		h.cache.set(key, e, purges)
		h.cfg.Store.put(key, e)
	}
	return e, nil
}

// refresh brings the answer up to date in the background, unless that is under way or there are too many.
func (h *handler) refresh(call *rpc.Call, key string, request rpc.Message) {
	c := h.cache
	select {
	case c.slots <- struct{}{}:
	default:
		return
	}
	f, leads := c.lead(key)
	c.mu.Lock()
	if !leads || c.closed {
		c.mu.Unlock()
		<-c.slots
		if leads {
			f.err, f.own = context.Canceled, true
			c.land(key, f)
		}
		return
	}
	c.wg.Add(1)
	c.mu.Unlock()
	again := rpc.Call{Method: call.Method, Header: h.header(call), Peer: call.Peer, Principal: call.Principal, Info: &rpc.Info{Protocol: rpc.ProtocolLocal, Start: time.Now()}}
	// The caller's request lives as long as its call.
	request = rpc.NewMessage(slices.Clone(request.Bytes()))
	go func() {
		defer c.wg.Done()
		defer func() { <-c.slots }()
		defer c.land(key, f)
		ctx, cancel := context.WithTimeout(c.ctx, h.cfg.Timeout)
		defer cancel()
		// Another process may have done it.
		if f.old = h.stored(ctx, &again, key); f.old != nil && time.Since(f.old.stored) < f.old.ttl {
			f.entry = f.old
			return
		}
		var r recorder
		func() {
			defer rpc.Recovered(&f.err) // of a call of our own, whose panic would end the process
			f.entry, f.err = h.fetch(ctx, &again, key, request, &r)
		}()
		f.source, f.own = again.Info.ErrorSource, over(ctx)
		r.drop()
	}()
}

// give answers the call with an entry.
func (h *handler) give(ctx context.Context, call *rpc.Call, e *entry, note, cacheStatus string) error {
	call.Info.Note("cache", note)
	md := rpc.NewMetadata()
	maps.Copy(md, e.header)
	values := []string{cacheStatus, strconv.FormatInt(int64(time.Since(e.stored)/time.Second), 10)}
	if before := md["cache-status"]; len(before) == 0 {
		md["cache-status"] = values[:1:1]
	} else { // of the caches behind, which stand before this one (RFC 9211 section 2)
		md["cache-status"] = append(slices.Clip(before), cacheStatus)
	}
	md["age"] = values[1:]
	if err := call.Stream.SendHeader(md); err != nil {
		return err
	}
	if err := call.Stream.Send(ctx, e.msg.Retain()); err != nil {
		call.Info.Fail(rpc.SourceClient)
		return err
	}
	if len(e.trailer) > 0 {
		call.Stream.SetTrailer(maps.Clone(e.trailer))
	}
	return nil
}

// keyed reports whether the metadata of that name is part of the key.
func (h *handler) keyed(name string) bool {
	return slices.Contains(h.cfg.Vary, name) ||
		!h.cfg.Shared && (name == "authorization" || name == "cookie" || strings.HasPrefix(name, "x-transom-"))
}

// header is the metadata that the backend gets: what is part of the key, and the trace context.
func (h *handler) header(call *rpc.Call) metadata.MD {
	md := make(metadata.MD, len(call.Header))
	for name, values := range call.Header {
		if h.keyed(name) || name == "traceparent" || name == "tracestate" {
			md[name] = values
		}
	}
	return md
}

// key is what an answer is found by. It is not ok if the call cannot be cached.
func (h *handler) key(call *rpc.Call, m rpc.Message) (key string, ok bool) {
	var buf [512]byte
	b := appendText(appendText(buf[:0], h.method.FullPath), h.cfg.Salt)
	if call.Principal != nil && !h.cfg.Shared {
		b = appendText(append(b, 'p'), call.Principal.Provider)
		b = appendText(b, call.Principal.Consumer)
	}
	var few [8]string
	names := few[:0]
	for name := range call.Header {
		if h.keyed(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	b = binary.AppendUvarint(b, uint64(len(names)))
	for _, name := range names {
		values := call.Header[name]
		b = binary.AppendUvarint(appendText(b, name), uint64(len(values)))
		for _, v := range values {
			b = appendText(b, v)
		}
	}
	wire := m.Bytes()
	if !h.input.canonical(wire, 0) {
		msg, err := rpc.Decode(h.method.Desc.Input(), wire)
		if err == nil {
			wire, err = proto.MarshalOptions{Deterministic: true}.Marshal(msg)
		}
		if err != nil {
			return "", false
		}
	}
	if len(b)+len(wire) > maxKey {
		return "", false
	}
	return string(append(b, wire...)), true
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// entry is the answer as it may be kept; nil if it may not. It began to be fetched at began.
func (h *handler) entry(call *rpc.Call, r *recorder, request rpc.Message, began time.Time) *entry {
	e := &entry{method: string(h.method.Name), tags: h.cfg.Tags, stored: time.Now(), ttl: h.cfg.TTL, swr: h.cfg.StaleWhileRevalidate, sie: h.cfg.StaleIfError}
	if call.Principal != nil && !h.cfg.Shared {
		e.consumer = call.Principal.Consumer
	}
	if len(r.header["set-cookie"])+len(r.trailer["set-cookie"]) > 0 || !h.varies(r.header["vary"]) || !e.control(r.header, h.cfg.Shared) {
		return nil
	}
	e.aged(r.header["age"], began)
	if time.Since(e.stored) >= e.ttl {
		return nil
	}
	if len(h.cfg.TagFields) > 0 {
		msg, err := rpc.Decode(h.method.Desc.Input(), request.Bytes())
		if err != nil {
			return nil
		}
		for _, f := range h.cfg.TagFields {
			e.tag(f.Name + ":" + f.Path.Text(msg))
		}
	}
	for _, v := range r.header[tagHeader] {
		for tag := range strings.SplitSeq(v, ",") {
			if tag = strings.TrimSpace(tag); tag != "" {
				e.tag(tag)
			}
		}
	}
	if len(e.tags) > maxTags || slices.ContainsFunc(e.tags, func(t string) bool { return len(t) > maxTag }) {
		return nil // a purge could not find it
	}
	e.msg = rpc.NewMessage(slices.Clone(r.msg.Bytes())).Share()
	e.header, e.trailer = maps.Clone(r.header), maps.Clone(r.trailer)
	if e.header == nil {
		e.header = metadata.MD{}
	}
	delete(e.header, tagHeader)
	delete(e.header, "endpoint-load-metrics-bin")
	delete(e.trailer, "endpoint-load-metrics-bin")
	if len(h.cfg.Vary) > 0 && len(e.header["vary"]) == 0 { // caches on the way to the client must not mix them up either
		e.header["vary"] = []string{strings.Join(h.cfg.Vary, ", ")}
	}
	return e
}

// tag adds a tag, and leaves alone those of the policy.
func (e *entry) tag(name string) { e.tags = append(slices.Clip(e.tags), name) }

// varies reports whether the key has all that the backend says its answer depends on.
func (h *handler) varies(vary []string) bool {
	for _, v := range vary {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name != "" && !slices.Contains(h.cfg.Vary, name) {
				return false
			}
		}
	}
	return true
}

// aged takes off what the answer has aged in caches on the way: what they say, and as long as the fetch took (RFC 9111 sections 4.2.3
// and 5.1). A value that is no number says nothing.
func (e *entry) aged(values []string, began time.Time) {
	if len(values) == 0 {
		return
	}
	first, _, _ := strings.Cut(values[0], ",")
	n, err := strconv.ParseUint(strings.TrimSpace(first), 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return
	}
	age := time.Duration(min(n, uint64(maxAge/time.Second))) * time.Second
	if at := began.Add(-age); at.Before(e.stored) {
		e.stored = at
	}
}

// expire follows the backend's expires, whose time counts from the answer's date, or from now if there is none (RFC 9111 sections
// 4.2.1 and 4.2.3). What is no date, such as "0", is in the past (section 5.3).
func (e *entry) expire(expires string, date []string) {
	until, err := http.ParseTime(expires)
	if err != nil {
		e.ttl = 0
		return
	}
	from := e.stored
	if len(date) > 0 {
		if at, err := http.ParseTime(date[0]); err == nil {
			from = at
		}
	}
	e.ttl = min(until.Sub(from), maxAge)
	if from.Before(e.stored) {
		e.stored = from
	}
}

// control follows the backend's cache-control, and its expires if that names no time; false keeps nothing. must-revalidate and proxy-revalidate allow no stale answer at
// all, s-maxage none but what the backend itself allows (RFC 9111 sections 5.2.2.2, 5.2.2.8 and 5.2.2.10), in whatever order they come.
func (e *entry) control(header metadata.MD, shared bool) bool {
	const unsaid = time.Duration(-1)
	ttl, shareTTL, swr, sie, revalidate := unsaid, unsaid, unsaid, unsaid, false
	for _, v := range header["cache-control"] {
		for d := range strings.SplitSeq(v, ",") {
			name, arg, _ := strings.Cut(strings.TrimSpace(d), "=")
			var seconds *time.Duration
			switch strings.ToLower(name) {
			case "no-store", "no-cache":
				return false
			case "private":
				if shared {
					return false
				}
			case "must-revalidate", "proxy-revalidate":
				revalidate = true
			case "s-maxage":
				seconds = &shareTTL
			case "max-age":
				seconds = &ttl
			case "stale-while-revalidate":
				seconds = &swr
			case "stale-if-error":
				seconds = &sie
			}
			if seconds == nil {
				continue
			}
			n, err := strconv.ParseInt(strings.Trim(arg, `"`), 10, 64)
			if err != nil { // an age that cannot be read is none (RFC 9111 section 4.2.1)
				return false
			}
			*seconds = time.Duration(max(0, min(n, int64(maxAge/time.Second)))) * time.Second
		}
	}
	switch {
	case shareTTL != unsaid:
		e.ttl, e.swr, e.sie = shareTTL, 0, 0
	case ttl != unsaid:
		e.ttl = ttl
	case len(header["expires"]) > 0:
		e.expire(header["expires"][0], header["date"])
	}
	if swr != unsaid {
		e.swr = swr
	}
	if sie != unsaid {
		e.sie = sie
	}
	if revalidate {
		e.swr, e.sie = 0, 0
	}
	return true
}

// replayed gives the request again that was taken from the Stream.
type replayed struct {
	rpc.Stream
	in    rpc.Message
	given bool
}

func (r *replayed) Recv(context.Context) (rpc.Message, error) {
	if r.given {
		return rpc.Message{}, io.EOF
	}
	r.given = true
	return r.in, nil
}

// recorder is the Stream of a fetch: it gives the request and holds the answer.
type recorder struct {
	in              rpc.Message
	given           bool
	header, trailer metadata.MD
	began           bool
	msg             rpc.Message
	sent            bool
}

var _ rpc.Stream = (*recorder)(nil)

var errSecond = errors.New("a unary method answered twice")

func (r *recorder) Recv(ctx context.Context) (rpc.Message, error) {
	if err := rpc.CauseOf(ctx); err != nil {
		return rpc.Message{}, err
	}
	if r.given {
		return rpc.Message{}, io.EOF
	}
	r.given = true
	return r.in.Retain(), nil
}

func (r *recorder) SendHeader(md metadata.MD) error {
	if r.began {
		return rpc.ErrHeaderSent
	}
	r.header, r.began = md, true
	return nil
}

func (r *recorder) Send(_ context.Context, m rpc.Message) error {
	if r.sent {
		m.Release()
		return errSecond
	}
	r.msg, r.began, r.sent = m, true, true
	return nil
}

func (r *recorder) Flush() error { return nil }

func (r *recorder) SetTrailer(md metadata.MD) { r.trailer = md }

// tagHeader is where backends name the tags of an answer.
const tagHeader = "cache-tag"

// untag keeps the tags from the client.
func (r *recorder) untag() {
	if _, tagged := r.header[tagHeader]; tagged {
		r.header = maps.Clone(r.header)
		delete(r.header, tagHeader)
	}
}

// drop releases the answer.
func (r *recorder) drop() {
	if r.sent {
		r.msg.Release()
		r.sent = false
	}
}

// forward gives the client the answer as it came.
func (r *recorder) forward(ctx context.Context, call *rpc.Call, err error, cacheStatus string) error {
	defer r.drop()
	call.Info.Note("cache", "miss")
	if r.began {
		if r.header == nil {
			r.header = metadata.MD{}
		}
		r.header["cache-status"] = append(slices.Clip(r.header["cache-status"]), cacheStatus)
		if err := call.Stream.SendHeader(r.header); err != nil {
			return err
		}
	}
	if r.sent {
		r.sent = false
		if err := call.Stream.Send(ctx, r.msg); err != nil {
			call.Info.Fail(rpc.SourceClient)
			return err
		}
	}
	if r.trailer != nil {
		call.Stream.SetTrailer(r.trailer)
	}
	return err
}
