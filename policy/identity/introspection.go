package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4/json"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// IntrospectionConfig configures an Introspection.
type IntrospectionConfig struct {
	// Name is the provider's.
	Name string
	// URL is the endpoint; ClientID and ClientSecret are for HTTP basic authentication at it.
	URL, ClientID, ClientSecret string
	// Audiences has what aud must have one of; empty for anything.
	Audiences []string
	// Cache is how long an answer is remembered; positive.
	Cache time.Duration
	// SubjectClaim is a path, empty for "sub", or "client_id" where there is none. The rest is as in JWTConfig.
	SubjectClaim string
	GroupClaims  []string
	PlanClaim    string
	Metadata     map[string]string
	Outbound     Outbound
}

// Introspection identifies callers by tokens that say nothing themselves, by asking the authorization server (RFC 7662).
// What it says is remembered, also that a token is not active; calls with one token wait for one answer. Close it.
type Introspection struct {
	cfg    IntrospectionConfig
	client *client
	asked
	// good are the callers of tokens that are active, refused those of tokens that are not: whoever guesses tokens fills the second only.
	good, refused credentialCache
	slots         chan struct{}

	ctx  context.Context //nolint:containedctx // ends the provider's own goroutines
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	flights map[tag]*flight
}

// flight is one question, waiting for a slot or under way.
type flight struct {
	done    chan struct{}
	callers int // that wait for it; under Introspection.mu
	who     *caller
	err     error
}

const (
	// inactiveCached is how long it is remembered that a token is not active.
	inactiveCached = 10 * time.Second
	// maxFlights is how many questions may be under way; others wait for as long as one may take.
	maxFlights = 64
	// maxWaiting is how many questions there may be, with those that wait; more have no answer.
	maxWaiting = 16 * maxFlights
)

// NewIntrospection makes the provider.
func NewIntrospection(cfg IntrospectionConfig, log *slog.Logger) (*Introspection, error) {
	c, err := newClient(cfg.Outbound)
	if err != nil {
		return nil, fmt.Errorf("outbound: %w", err)
	}
	if err := c.checkURL(cfg.URL); err != nil {
		return nil, err
	}
	if cfg.GroupClaims == nil {
		cfg.GroupClaims = []string{"groups", "roles", "realm_access.roles"}
	}
	p := &Introspection{cfg: cfg, client: c, asked: asked{log: log, provider: cfg.Name}, slots: make(chan struct{}, maxFlights), flights: map[tag]*flight{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p, nil
}

// Close ends what the provider does by itself.
func (p *Introspection) Close() {
	p.stop()
	p.work.Wait()
	p.client.close()
}

func (p *Introspection) place() place                 { return bearer() }
func (p *Introspection) challenge(code string) string { return bearerChallenge(code) }

func (p *Introspection) voucher() string        { return "introspection " + p.cfg.URL }
func (p *Introspection) knows(who *caller) bool { return who.voucher == p.voucher() }

func (p *Introspection) identify(ctx context.Context, call *rpc.Call) (*caller, error) {
	token, err := authorization(call, "bearer")
	if err != nil {
		return nil, err
	}
	if err := checkBearer(token); err != nil {
		return nil, err
	}
	seen := tagOf(bytesOf(token))
	if who := p.remembered(seen); who != nil {
		return who.admitted()
	}
	f, err := p.ask(seen, token)
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		return f.who, f.err
	case <-ctx.Done():
		p.mu.Lock()
		f.callers--
		p.mu.Unlock()
		return nil, rpc.CauseOf(ctx)
	}
}

// remembered is whose token the server has said it is, or that it is no good; nil if that is not known any more.
func (p *Introspection) remembered(seen tag) *caller {
	now := time.Now()
	if e, ok := p.good.get(seen, now); ok {
		return e.who
	}
	if e, ok := p.refused.get(seen, now); ok {
		return e.who
	}
	return nil
}

// admitted is c, or why its credential is no good.
func (c *caller) admitted() (*caller, error) {
	if c.refused != nil {
		return nil, c.refused
	}
	return c, nil
}

var errNoAnswer = status.Error(codes.Unavailable, "the authorization server does not answer")

// asked is a server that is asked for each call. Its silence is logged once, and its return.
type asked struct {
	log      *slog.Logger
	provider string
	down     atomic.Bool
}

func (a *asked) failed(ctx context.Context, err error) {
	if !a.down.Swap(true) {
		a.log.LogAttrs(ctx, slog.LevelWarn, "an authorization server does not answer, its calls are refused", slog.String("provider", a.provider), slog.String("error", err.Error()))
	}
}

func (a *asked) answered(ctx context.Context) {
	if a.down.Load() && a.down.Swap(false) {
		a.log.LogAttrs(ctx, slog.LevelInfo, "an authorization server answers again", slog.String("provider", a.provider))
	}
}

// ask joins the question about a token, or begins it. The caller counts as one of the flight's until it is done.
func (p *Introspection) ask(seen tag, token string) (*flight, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flights[seen]; f != nil {
		f.callers++
		return f, nil
	}
	if len(p.flights) == maxWaiting || p.ctx.Err() != nil {
		return nil, errNoAnswer
	}
	f := &flight{done: make(chan struct{}), callers: 1, err: errNoAnswer}
	p.flights[seen] = f
	p.work.Go(func() { p.fly(f, seen, token) })
	return f, nil
}

// fly waits for a slot and puts the question, unless nobody waits for the answer any more.
func (p *Introspection) fly(f *flight, seen tag, token string) {
	defer close(f.done)
	patience := time.NewTimer(outboundTimeout)
	defer patience.Stop()
	entered := false
	select {
	case p.slots <- struct{}{}:
		entered = true
		defer func() { <-p.slots }()
	case <-patience.C:
	case <-p.ctx.Done():
	}
	p.mu.Lock()
	if entered && f.callers > 0 {
		p.mu.Unlock()
		f.who, f.err = p.introspect(seen, token)
		p.mu.Lock()
	}
	delete(p.flights, seen)
	p.mu.Unlock()
}

// introspect asks the server and remembers what it says.
func (p *Introspection) introspect(seen tag, token string) (*caller, error) {
	claims, err := p.post(token)
	if err != nil {
		if p.ctx.Err() == nil {
			p.failed(p.ctx, err)
		}
		return nil, errNoAnswer
	}
	p.answered(p.ctx)
	now := time.Now()
	who, err := p.judge(claims, now)
	if err != nil {
		if r, ok := errors.AsType[*refusal](err); ok {
			p.refused.put(seen, cached{who: &caller{refused: r}, until: now.Add(min(inactiveCached, p.cfg.Cache))}, now)
		}
		return nil, err
	}
	until := now.Add(p.cfg.Cache)
	if !who.Expires.IsZero() && who.Expires.Before(until) {
		until = who.Expires
	}
	p.good.put(seen, cached{who: who, until: until}, now)
	return who, nil
}

// post sends the request of RFC 7662 section 2.1.
func (p *Introspection) post(token string) (map[string]any, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}.Encode()
	r, err := http.NewRequestWithContext(p.ctx, http.MethodPost, p.cfg.URL, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	r.SetBasicAuth(url.QueryEscape(p.cfg.ClientID), url.QueryEscape(p.cfg.ClientSecret)) // RFC 6749 section 2.3.1
	body, _, err := p.client.do(r)
	if err != nil {
		return nil, err
	}
	var claims map[string]any
	return claims, json.Unmarshal(body, &claims)
}

// judge reads the answer of RFC 7662 section 2.2.
func (p *Introspection) judge(claims map[string]any, now time.Time) (*caller, error) {
	if active, _ := claims["active"].(bool); !active {
		return nil, invalid("the token is not active")
	}
	var expires time.Time
	if v, there := claims["exp"]; there {
		var ok bool
		if expires, ok = timeOf(v); !ok || !now.Before(expires) {
			return nil, &refusal{reasonExpired, "the token has expired"}
		}
	}
	if len(p.cfg.Audiences) > 0 && !slices.ContainsFunc(stringsOf(claims["aud"]), func(a string) bool { return slices.Contains(p.cfg.Audiences, a) }) {
		return nil, invalid("the token is for another audience")
	}
	subject := p.cfg.SubjectClaim
	if subject == "" {
		if subject = "sub"; claims["sub"] == nil {
			subject = "client_id"
		}
	}
	return callerOf(p.cfg.Name, p.voucher(), claims, paths{subject, p.cfg.PlanClaim, p.cfg.GroupClaims, p.cfg.Metadata}, expires)
}
