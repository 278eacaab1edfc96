package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// keysFresh is how long keys are used before they are fetched again, unless the answer says less; never under
	// keysFreshMin.
	keysFresh    = 10 * time.Minute
	keysFreshMin = 30 * time.Second
	// keysStale is how long keys are used when they cannot be fetched again.
	keysStale = 24 * time.Hour
	// fetchBurst fetches may follow one another, and one more for every fetchEvery: tokens with key ids that nobody knows
	// cannot make transom flood the issuer, and while they come a new key is found within fetchEvery and the time of a fetch.
	fetchBurst = 3
	fetchEvery = 2 * time.Second
	// maxKeys is how many keys of an issuer are taken.
	maxKeys = 100
)

// keySet is the keys of one issuer. They are fetched when they are first wanted or grow old, and when a token has a key id
// that is not among them; one fetch at a time, in a goroutine of the set's own.
type keySet struct {
	log    *slog.Logger
	client *client
	issuer string
	// uri is empty if discovery is to tell.
	uri string

	keys atomic.Pointer[keys]

	ctx  context.Context //nolint:containedctx // ends the set's own goroutines
	stop context.CancelFunc
	work sync.WaitGroup

	mu       sync.Mutex
	tokens   float64   // of the bucket that limits fetches
	filled   time.Time // when tokens was counted
	inflight chan struct{}
	// down says that the last fetch failed. It belongs to the fetch under way.
	down bool
}

// keys is what one fetch brought.
type keys struct {
	epoch   uint64
	byID    map[string]*jose.JSONWebKey
	all     []*jose.JSONWebKey
	fetched time.Time
	fresh   time.Duration
}

func newKeySet(c *client, issuer, uri string, log *slog.Logger) *keySet {
	k := &keySet{log: log, client: c, issuer: issuer, uri: uri, tokens: fetchBurst, filled: time.Now()}
	k.ctx, k.stop = context.WithCancel(context.Background())
	return k
}

func (k *keySet) close() {
	k.stop()
	k.work.Wait()
	k.client.close()
}

// find returns the key for a token, and the epoch of the set that it is in. Without a key id the only key that can have made
// such a signature is taken.
func (k *keySet) find(ctx context.Context, id string, alg jose.SignatureAlgorithm) (*jose.JSONWebKey, uint64, error) {
	now := time.Now()
	set := k.keys.Load()
	for range 2 {
		if set.usable(now) && set.key(id, alg) != nil {
			break
		}
		wait, began := k.refresh(now, set)
		if wait != nil {
			select {
			case <-wait:
			case <-ctx.Done():
				return nil, 0, ctx.Err()
			}
		}
		was := set
		// What a fetch brought that was under way before may be of before the key was there.
		if set = k.keys.Load(); began || set == was {
			break
		}
	}
	if !set.usable(now) {
		return nil, 0, status.Error(codes.Unavailable, "the keys of the token's issuer cannot be had")
	}
	key := set.key(id, alg)
	if key == nil {
		return nil, 0, invalid("the token is signed with a key that its issuer does not have")
	}
	if now.Sub(set.fetched) > set.fresh {
		k.refresh(now, set) // and go on with what there is
	}
	return key, set.epoch, nil
}

// usable reports whether there are keys, and not too old ones.
func (s *keys) usable(now time.Time) bool { return s != nil && now.Sub(s.fetched) <= keysStale }

// key finds a key that may verify signatures of alg.
func (s *keys) key(id string, alg jose.SignatureAlgorithm) *jose.JSONWebKey {
	if id != "" {
		if key := s.byID[id]; key != nil && fits(key, alg) {
			return key
		}
		return nil
	}
	var only *jose.JSONWebKey
	for _, key := range s.all {
		if fits(key, alg) {
			if only != nil {
				return nil
			}
			only = key
		}
	}
	return only
}

// fits reports whether a key makes signatures of alg: its type must be right, and what it says about itself.
func fits(key *jose.JSONWebKey, alg jose.SignatureAlgorithm) bool {
	if key.Algorithm != "" && key.Algorithm != string(alg) || key.Use != "" && key.Use != "sig" {
		return false
	}
	switch pub := key.Key.(type) {
	case *rsa.PublicKey:
		return (strings.HasPrefix(string(alg), "RS") || strings.HasPrefix(string(alg), "PS")) && pub.Size() >= 256
	case *ecdsa.PublicKey:
		return map[string]jose.SignatureAlgorithm{"P-256": jose.ES256, "P-384": jose.ES384, "P-521": jose.ES512}[pub.Params().Name] == alg
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

// refresh begins a fetch, unless one is under way, too many have been, or there are other keys by now than seen. The channel is
// closed when the fetch has ended, the one that began or the one under way; nil if there is nothing to wait for.
func (k *keySet) refresh(now time.Time, seen *keys) (wait <-chan struct{}, began bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.inflight != nil {
		return k.inflight, false
	}
	if k.keys.Load() != seen {
		return nil, false
	}
	k.tokens = min(fetchBurst, k.tokens+now.Sub(k.filled).Seconds()/fetchEvery.Seconds())
	k.filled = now
	if k.tokens < 1 || k.ctx.Err() != nil {
		return nil, false
	}
	k.tokens--
	done := make(chan struct{})
	k.inflight = done
	k.work.Go(func() {
		set, err := k.fetch(k.ctx)
		if err == nil {
			if old := k.keys.Load(); old != nil {
				set.epoch = old.epoch
			}
			set.epoch++
			k.keys.Store(set)
			if k.down {
				k.log.LogAttrs(k.ctx, slog.LevelInfo, "keys of a token issuer can be fetched again", slog.String("issuer", k.issuer))
			}
			k.down = false
		} else if k.ctx.Err() == nil && !k.down {
			k.log.LogAttrs(k.ctx, slog.LevelWarn, "keys of a token issuer cannot be fetched", slog.String("issuer", k.issuer), slog.String("error", err.Error()))
			k.down = true
		}
		k.mu.Lock()
		k.inflight = nil
		k.mu.Unlock()
		close(done)
	})
	return done, true
}

func (k *keySet) fetch(ctx context.Context) (*keys, error) {
	uri := k.uri
	if uri == "" {
		var err error
		if uri, err = k.discover(ctx); err != nil {
			return nil, err
		}
	}
	body, header, err := k.client.getJSON(ctx, uri)
	if err != nil {
		return nil, err
	}
	set, err := parseKeys(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	set.fetched, set.fresh = time.Now(), freshness(header)
	return set, nil
}

// discover asks the issuer where its keys are (OpenID Connect Discovery 1.0 section 4).
func (k *keySet) discover(ctx context.Context) (string, error) {
	at := strings.TrimSuffix(k.issuer, "/") + "/.well-known/openid-configuration"
	body, _, err := k.client.getJSON(ctx, at)
	if err != nil {
		return "", err
	}
	var doc struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", fmt.Errorf("%s: %w", at, err)
	}
	if doc.Issuer != k.issuer {
		return "", fmt.Errorf("%s is of issuer %q", at, doc.Issuer)
	}
	return doc.JWKSURI, nil
}

// parseKeys reads a JSON Web Key Set (RFC 7517). Keys that cannot be used are left out; of one key id the first is taken.
func parseKeys(body []byte) (*keys, error) {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("not a key set: %w", err)
	}
	if len(doc.Keys) > maxKeys {
		return nil, fmt.Errorf("a set of %d keys, more than %d", len(doc.Keys), maxKeys)
	}
	set := &keys{byID: map[string]*jose.JSONWebKey{}}
	for _, raw := range doc.Keys {
		key := new(jose.JSONWebKey)
		if json.Unmarshal(raw, key) != nil || !key.IsPublic() || !key.Valid() {
			continue
		}
		set.all = append(set.all, key)
		if key.KeyID != "" && set.byID[key.KeyID] == nil {
			set.byID[key.KeyID] = key
		}
	}
	if len(set.all) == 0 {
		return nil, errors.New("a set without a usable public key")
	}
	return set, nil
}

// freshness is how long an answer may be used by its max-age, within bounds.
func freshness(h http.Header) time.Duration {
	for part := range strings.SplitSeq(h.Get("Cache-Control"), ",") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(strings.ToLower(part)), "max-age="); ok {
			if s, err := strconv.ParseUint(v, 10, 31); err == nil {
				return min(max(time.Duration(s)*time.Second, keysFreshMin), keysFresh)
			}
		}
	}
	return keysFresh
}
