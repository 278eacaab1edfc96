// Package acme gets certificates from an authority by ACME (RFC 8555), and new ones before they expire: when the authority
// says (RFC 9773), or after two thirds of their time. It answers the authority's challenges http-01 (RFC 8555, 8.3) and
// tls-alpn-01 (RFC 8737) for listeners, which ask it what to say.
//
// Everything is kept in a directory, see store. Processes that share one share the account and the certificates, get each
// certificate only once, and answer challenges for each other.
//
// # Concurrency
// An Issuer's methods may be called from any goroutine.
package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// LetsEncrypt is the directory of the default authority.
const LetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// Protocol is what a client that is the authority offers by ALPN, and nothing else (RFC 8737, 4).
const Protocol = acmez.ACMETLS1Protocol

// Config says what certificates to get, and where.
type Config struct {
	// Names are DNS names in lower case; each gets a certificate of its own.
	Names []string
	// Directory is the authority's URL; "" is LetsEncrypt.
	Directory string
	// CAFile is a PEM file of the authorities that vouch for the directory's server; "" is the system's.
	CAFile string
	// Email is where the authority may write to; may be "".
	Email string
	// Storage is the directory to keep everything in.
	Storage string
	// KeyID and MACKey, in base64url, bind the account to one that there is with the authority otherwise; may be "".
	KeyID, MACKey string
	// NoHTTP and NoALPN leave out http-01 and tls-alpn-01.
	NoHTTP, NoALPN bool
}

// Issuer has the certificates of some names.
type Issuer struct {
	cfg       Config
	log       *slog.Logger
	store     store
	transport *http.Transport
	client    acmez.Client
	certs     []*certificate
	byName    map[string]*certificate
	// registering guards the account.
	registering sync.Mutex
	// slots bounds the orders at a time.
	slots chan struct{}
	// orders counts those that ended well, failures those that did not.
	orders, failures atomic.Int64
}

// certificate is one name's.
type certificate struct {
	name string
	// pair is nil until there is one.
	pair atomic.Pointer[tls.Certificate]

	mu sync.Mutex // guards what follows
	// fault is why the last attempt failed, "" if it did not.
	fault string
	// next is when something is tried again.
	next time.Time

	// renewal is what the authority says about the certificate of pair. It belongs to keep.
	renewal acme.RenewalInfo
}

// Status is how one name stands.
type Status struct {
	Name string
	// NotAfter is when the certificate expires; zero if there is none yet.
	NotAfter time.Time
	// Fault is why the last attempt to get one failed, "" if it did not.
	Fault string
	// Next is when the next attempt is due; zero if that is not known yet.
	Next time.Time
}

const (
	atATime      = 4                // orders
	askTimeout   = 30 * time.Second // one question to the authority
	orderTimeout = 5 * time.Minute  // one order, challenges included
	lookAgain    = time.Hour        // between looks at a certificate that is not due
)

// New reads what the storage has. It makes nothing and asks nobody; Prepare and Run do.
func New(cfg Config, log *slog.Logger) (*Issuer, error) {
	if cfg.Directory == "" {
		cfg.Directory = LetsEncrypt
	}
	st, err := newStore(cfg.Storage, cfg.Directory)
	if err != nil {
		return nil, err
	}
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		tc.RootCAs = x509.NewCertPool()
		if err == nil && !tc.RootCAs.AppendCertsFromPEM(pem) {
			err = errors.New("no certificate in it")
		}
		if err != nil {
			return nil, fmt.Errorf("ca %s: %w", cfg.CAFile, err)
		}
	}
	i := &Issuer{
		cfg: cfg, log: log, store: st, byName: map[string]*certificate{}, slots: make(chan struct{}, atATime),
		transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: tc, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute},
	}
	i.client = acmez.Client{
		Client:           &acme.Client{Directory: cfg.Directory, HTTPClient: &http.Client{Transport: i.transport, Timeout: askTimeout}, UserAgent: "transom"},
		ChallengeSolvers: map[string]acmez.Solver{},
	}
	if !cfg.NoHTTP {
		i.client.ChallengeSolvers[acme.ChallengeTypeHTTP01] = solver{st, func(c acme.Challenge) string { return httpChallenge(c.Token) }}
	}
	if !cfg.NoALPN {
		i.client.ChallengeSolvers[acme.ChallengeTypeTLSALPN01] = solver{st, func(c acme.Challenge) string { return alpnChallenge(c.Identifier.Value) }}
	}
	var errs []error
	for _, name := range cfg.Names {
		c := &certificate{name: name}
		pair, err := st.certificate(name)
		if err != nil {
			errs = append(errs, err)
		}
		c.pair.Store(pair)
		i.certs, i.byName[name] = append(i.certs, c), c
	}
	if _, err := st.readSecret(accountKey); err != nil {
		errs = append(errs, err)
	}
	return i, errors.Join(errs...)
}

// Prepare makes the storage.
func (i *Issuer) Prepare() error { return i.store.prepare() }

// Certificate is that of the name that a client asks for; of a client that asks for none, that of the first name. It is nil
// without an error if the name is none of the Issuer's: tls looks further then.
func (i *Issuer) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := i.certs[0]
	if name := strings.ToLower(strings.TrimSuffix(hello.ServerName, ".")); name != "" {
		if c = i.byName[name]; c == nil {
			return nil, nil //nolint:nilnil // as tls.Config.GetCertificate says
		}
	}
	pair := c.pair.Load()
	if pair == nil {
		return nil, fmt.Errorf("there is no certificate for %s yet", c.name)
	}
	return pair, nil
}

// Challenge is the certificate to show the authority in a handshake that offers Protocol.
func (i *Issuer) Challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	if i.cfg.NoALPN || i.byName[name] == nil {
		return nil, fmt.Errorf("no challenge of %q is being solved", name)
	}
	auth, ok := i.store.challenge(alpnChallenge(name))
	if !ok {
		return nil, fmt.Errorf("no challenge of %q is being solved", name)
	}
	return acmez.TLSALPN01ChallengeCert(acme.Challenge{Identifier: acme.Identifier{Type: "dns", Value: name}, KeyAuthorization: auth})
}

// KeyAuthorization is what to answer to http-01.
func (i *Issuer) KeyAuthorization(token string) (string, bool) {
	if i.cfg.NoHTTP || !isToken(token) {
		return "", false
	}
	return i.store.challenge(httpChallenge(token))
}

// Status is how the names stand, in the order of the configuration.
func (i *Issuer) Status() []Status {
	all := make([]Status, len(i.certs))
	for n, c := range i.certs {
		s := Status{Name: c.name}
		if pair := c.pair.Load(); pair != nil {
			s.NotAfter = pair.Leaf.NotAfter
		}
		c.mu.Lock()
		s.Fault, s.Next = c.fault, c.next
		c.mu.Unlock()
		all[n] = s
	}
	return all
}

// Orders counts the certificates that were got since New, and the attempts that failed.
func (i *Issuer) Orders() (good, bad int64) { return i.orders.Load(), i.failures.Load() }

// Run gets what is missing and renews what is due, until ctx ends. The listeners should serve by then.
func (i *Issuer) Run(ctx context.Context) {
	defer i.transport.CloseIdleConnections()
	var wg sync.WaitGroup
	for _, c := range i.certs {
		wg.Go(func() { i.keep(ctx, c) })
	}
	wg.Wait()
}

// keep looks after one name.
func (i *Issuer) keep(ctx context.Context, c *certificate) {
	for failed := 0; ; {
		i.refresh(ctx, c)
		at := i.due(ctx, c)
		wait := time.Until(at)
		if wait <= 0 {
			err := i.obtain(ctx, c)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				failed = 0
				continue
			}
			failed++
			i.failures.Add(1)
			wait = pause(failed)
			c.note(err.Error(), time.Now().Add(wait))
			i.log.LogAttrs(ctx, slog.LevelError, "no certificate from the authority", slog.String("name", c.name),
				slog.String("directory", i.cfg.Directory), slog.String("error", err.Error()), slog.Duration("next_attempt_in", wait.Round(time.Second)))
		} else {
			c.note("", at)
			wait = min(wait, lookAgain)
		}
		if sleep(ctx, wait) != nil {
			return
		}
	}
}

func (c *certificate) note(fault string, next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault, c.next = fault, next
}

// pause is how long to wait after so many failures in a row: authorities allow few failed validations an hour.
func pause(failed int) time.Duration {
	const first, second, most = 10 * time.Second, 15 * time.Minute, 6 * time.Hour
	if failed <= 1 {
		return first
	}
	d := min(second<<min(failed-2, 10), most)
	return d - time.Duration(rand.Int64N(int64(d/5)))
}

// refresh takes a certificate that another process has got.
func (i *Issuer) refresh(ctx context.Context, c *certificate) {
	pair, err := i.store.certificate(c.name)
	if err != nil {
		i.log.LogAttrs(ctx, slog.LevelError, "certificate", slog.String("name", c.name), slog.String("error", err.Error()))
		return
	}
	if was := c.pair.Load(); pair != nil && (was == nil || pair.Leaf.NotAfter.After(was.Leaf.NotAfter)) {
		c.pair.Store(pair)
	}
}

// due is when a certificate is to be got; the past is now.
func (i *Issuer) due(ctx context.Context, c *certificate) time.Time {
	pair := c.pair.Load()
	if pair == nil {
		return time.Time{}
	}
	leaf := pair.Leaf
	own := leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3)
	id, err := acme.ARIUniqueIdentifier(leaf)
	if err != nil {
		return own // the authority could not tell which it is
	}
	if c.renewal.UniqueIdentifier != id || c.renewal.NeedsRefresh() {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		now, err := i.client.GetRenewalInfo(ctx, leaf)
		if err != nil {
			return own
		}
		if now.UniqueIdentifier == c.renewal.UniqueIdentifier && now.SameWindow(c.renewal) {
			now.SelectedTime = c.renewal.SelectedTime
		}
		c.renewal = now
	}
	if !c.renewal.HasWindow() {
		return own
	}
	return c.renewal.SelectedTime
}

// obtain gets a certificate for one name.
func (i *Issuer) obtain(ctx context.Context, c *certificate) error {
	select {
	case i.slots <- struct{}{}:
		defer func() { <-i.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	unlock, err := i.store.lock(ctx, c.name)
	if err != nil {
		return err
	}
	defer unlock()
	was := c.pair.Load()
	i.refresh(ctx, c)
	if now := c.pair.Load(); now != was {
		return nil
	}
	account, err := i.account(ctx, "")
	if err != nil {
		return fmt.Errorf("account: %w", err)
	}
	chain, key, err := i.order(ctx, account, c)
	if problem, ok := errors.AsType[acme.Problem](err); ok && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		if account, err = i.account(ctx, account.Location); err != nil {
			return fmt.Errorf("account: %w", err)
		}
		chain, key, err = i.order(ctx, account, c)
	}
	if err != nil {
		return err
	}
	if err := i.store.setCertificate(c.name, chain, key); err != nil {
		return err
	}
	pair, err := i.store.certificate(c.name)
	if err != nil {
		return err
	}
	c.pair.Store(pair)
	i.orders.Add(1)
	i.log.LogAttrs(ctx, slog.LevelInfo, "certificate from the authority", slog.String("name", c.name),
		slog.String("directory", i.cfg.Directory), slog.Time("not_after", pair.Leaf.NotAfter))
	return nil
}
