package limit

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// RedisConfig is where counts are shared.
type RedisConfig struct {
	// Addresses are that of the server, or those of two or more nodes of a cluster, "host:port".
	Addresses          []string
	Username, Password string
	Database           int
	TLS                *tls.Config
	// Prefix of every key.
	Prefix string
	// Timeout bounds the wait for an answer.
	Timeout time.Duration
	// Instances is how many transoms share the counts: while Redis does not answer, each allows that part of a limit.
	Instances int
	// FailClosed refuses calls while Redis does not answer.
	FailClosed bool
}

const (
	dialTimeout = time.Second
	// pause is how long Redis is left alone after it failed.
	pause = time.Second
)

var (
	errDown = errors.New("Redis is left alone for a moment after it failed")
	errOdd  = errors.New("Redis gave an answer of no known form")
)

// rateScript is [gcra] in Redis, in the same arithmetic of doubles and µs since 2025. KEYS[1] holds the theoretical arrival
// time; ARGV: cost, tolerance, and now, or "" to take the server's clock, which all share. It answers whether the call may
// pass, how far the schedule is ahead, rounded down, and the wait, rounded up, both in µs.
const rateScript = `
local cost, tolerance, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
  local t = redis.call('TIME')
  now = (t[1] - 1735689600) * 1000000 + t[2]
end
local tat = tonumber(redis.call('GET', KEYS[1]) or now)
local next = math.max(tat, now) + cost
local wait = next - now - tolerance
if wait < 0.5 or cost < 0 then
  local ms = math.ceil((next - now) / 1000)
  if ms > 0 then
    redis.call('SET', KEYS[1], string.format('%.17g', next), 'PX', ms)
  else
    redis.call('DEL', KEYS[1])
  end
  return {1, math.floor(next - now), 0}
end
return {0, math.floor(tat - now), math.ceil(wait)}
`

// quotaScript is [used.add] in Redis. KEYS[1] counts one window; ARGV: cost, count, and how long the window is kept, in ms.
const quotaScript = `
local n, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if n > 0 and used + n > count then
  return {0, used}
end
used = math.max(0, used + n)
redis.call('SET', KEYS[1], string.format('%.0f', used), 'PX', ARGV[3])
return {1, used}
`

// Redis shares counts between processes. Make one with NewRedis; Close it.
type Redis struct {
	cfg    RedisConfig
	log    *slog.Logger
	client atomic.Pointer[rueidis.Client]
	rate   *rueidis.Lua
	quota  *rueidis.Lua
	// downUntil is when to ask again, in µs of clock; 0 while all is well.
	downUntil atomic.Int64
	clock     clock
	// tried is closed when the first attempt to connect has ended.
	tried chan struct{}
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// NewRedis connects, in the background, and again until it succeeds.
func NewRedis(cfg RedisConfig, log *slog.Logger) *Redis {
	ctx, stop := context.WithCancel(context.Background())
	r := &Redis{cfg: cfg, log: log, rate: rueidis.NewLuaScript(rateScript), quota: rueidis.NewLuaScript(quotaScript), stop: stop, clock: newClock(), tried: make(chan struct{})}
	r.done.Go(func() { r.connect(ctx) })
	return r
}

// ClientOption is how to connect.
func (c RedisConfig) ClientOption() rueidis.ClientOption {
	return rueidis.ClientOption{
		InitAddress: c.Addresses, Username: c.Username, Password: c.Password, SelectDB: c.Database, TLSConfig: c.TLS,
		ClientName: "transom", Dialer: net.Dialer{Timeout: dialTimeout}, ConnWriteTimeout: max(dialTimeout, c.Timeout),
		ForceSingleClient: len(c.Addresses) == 1, DisableCache: true, DisableRetry: true, PipelineMultiplex: -1, ReadBufferEachConn: 32 << 10, WriteBufferEachConn: 32 << 10,
	}
}

// connect makes the client. Once made it reconnects by itself.
func (r *Redis) connect(ctx context.Context) {
	tried := sync.OnceFunc(func() { close(r.tried) })
	for {
		client, err := rueidis.NewClient(r.cfg.ClientOption())
		if err == nil {
			r.client.Store(&client)
			tried()
			return
		}
		tried()
		r.log.LogAttrs(ctx, slog.LevelWarn, "Redis cannot be reached", slog.String("error", err.Error()))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// Await waits until Redis is connected, or has been tried in vain, or ctx ends: what is decided before is decided without Redis.
func (r *Redis) Await(ctx context.Context) {
	select {
	case <-r.tried:
	case <-ctx.Done():
	}
}

// Close ends the connections.
func (r *Redis) Close() {
	r.stop()
	r.done.Wait()
	if c := r.client.Load(); c != nil {
		(*c).Close()
	}
}

// take is Limiter.take in Redis.
func (r *Redis) take(ctx context.Context, l *Limiter, p *plan, key []byte, cost int64) (verdict, error) {
	client := r.client.Load()
	now := r.clock.now()
	until := r.downUntil.Load()
	if client == nil || until > int64(now) {
		return verdict{}, errDown
	}
	if until != 0 && !r.downUntil.CompareAndSwap(until, int64(now)+pause.Microseconds()) {
		return verdict{}, errDown // another call tries
	}
	// The client's own leaving must not be taken for Redis's failing.
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Timeout)
	defer cancel()
	v, err := r.run(ask, *client, l, p, key, cost, "")
	if err != nil {
		if until == 0 {
			if why := slog.String("error", err.Error()); r.cfg.FailClosed {
				r.log.LogAttrs(ctx, slog.LevelWarn, "Redis does not answer, calls that it limits are refused", why)
			} else {
				r.log.LogAttrs(ctx, slog.LevelWarn, "Redis does not answer, limits are held here", why)
			}
		}
		r.downUntil.Store(int64(now) + pause.Microseconds())
		return v, err
	}
	if until != 0 {
		r.downUntil.Store(0)
		r.log.LogAttrs(ctx, slog.LevelInfo, "Redis answers again")
	}
	return v, nil
}

// run executes a script. clock is what that of a rate takes for now, "" for the server's.
func (r *Redis) run(ctx context.Context, client rueidis.Client, l *Limiter, p *plan, key []byte, cost int64, clock string) (verdict, error) {
	v := verdict{plan: p}
	name := r.cfg.Prefix + l.cfg.Name + ":"
	if l.cfg.Kind == Quota {
		now := wall()
		u := used{end: window(now, p.Period)}
		name += strconv.FormatFloat(u.end/1e6, 'f', 0, 64) + ":" + string(key)
		keep := strconv.FormatInt(micros(u.end-now).Milliseconds()+Day.Milliseconds(), 10)
		a, err := r.quota.Exec(ctx, client, []string{name}, []string{strconv.FormatInt(cost, 10), strconv.FormatInt(p.Count, 10), keep}).AsIntSlice()
		if err != nil || len(a) != 2 {
			return v, errors.Join(err, odd(len(a) == 2))
		}
		u.n = a[1]
		v.of(p, u, now, a[0] == 1)
		return v, nil
	}
	args := []string{number(p.cost * float64(cost)), number(p.tolerance), clock}
	a, err := r.rate.Exec(ctx, client, []string{name + string(key)}, args).AsIntSlice()
	if err != nil || len(a) != 3 {
		return v, errors.Join(err, odd(len(a) == 3))
	}
	v.ofRate(p, float64(a[1]), float64(a[2]))
	return v, nil
}

func odd(ok bool) error {
	if ok {
		return nil
	}
	return errOdd
}

// number is a double in full.
func number(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
