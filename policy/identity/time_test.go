package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// idp is an OpenID Connect provider without a network, for tests of what takes hours. It is used by one goroutine at a time.
type idp struct {
	key     *ecdsa.PrivateKey
	kid     string
	header  http.Header // of the answer with the keys
	down    bool
	more    []jose.JSONWebKey // further ones in the set
	takes   time.Duration     // that the keys are on their way
	fetches int               // of the keys
	asked   int               // about tokens
	// about is what is said of tokens.
	about map[string]any
}

const idpURL = "https://id.example"

func newIDP(t *testing.T) *idp {
	t.Helper()
	p := &idp{header: http.Header{}}
	p.rotate(t, "1")
	return p
}

func (p *idp) rotate(t *testing.T, kid string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.key, p.kid = key, kid
}

// RoundTrip implements http.RoundTripper.
func (p *idp) RoundTrip(r *http.Request) (*http.Response, error) {
	var doc any
	header := http.Header{}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		doc = map[string]any{"issuer": idpURL, "jwks_uri": idpURL + "/keys"}
	case "/keys":
		if p.fetches++; p.down {
			return nil, errors.New("down")
		}
		header = p.header.Clone()
		doc = jose.JSONWebKeySet{Keys: append([]jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.kid}}, p.more...)}
	case "/introspect":
		if p.asked++; p.down {
			return nil, errors.New("down")
		}
		doc = p.about
	default:
		return nil, errors.New("no such document")
	}
	b, err := json.Marshal(doc)
	if r.URL.Path == "/keys" {
		time.Sleep(p.takes)
	}
	header.Set("Content-Type", "application/json")
	return &http.Response{StatusCode: http.StatusOK, Header: header, Body: io.NopCloser(strings.NewReader(string(b))), Request: r}, err
}

// token is one of alice's, good for a time, with a header typ.
func (p *idp) token(t *testing.T, life time.Duration, typ string) string {
	t.Helper()
	return p.sign(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.key, KeyID: p.kid}}, life, typ)
}

// sign is token by any key.
func (p *idp) sign(t *testing.T, key jose.SigningKey, life time.Duration, typ string) string {
	t.Helper()
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := jwt.Signed(signer).Claims(map[string]any{"iss": idpURL, "aud": "bank", "sub": "alice", "exp": time.Now().Add(life).Unix()}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// jwt is the provider of tokens of p.
func (p *idp) jwt(t *testing.T, cfg JWTConfig) *JWT {
	t.Helper()
	c, err := newClient(Outbound{})
	if err != nil {
		t.Fatal(err)
	}
	c.http.Transport = p
	cfg.Name, cfg.Issuer, cfg.Audiences, cfg.SubjectClaim = "main", idpURL, []string{"bank"}, "sub"
	v := &JWT{cfg: cfg, keys: newKeySet(c, idpURL, cfg.JWKSURI, slog.New(slog.DiscardHandler))}
	for _, a := range cfg.Algorithms {
		v.algs = append(v.algs, jose.SignatureAlgorithm(a))
	}
	t.Cleanup(v.Close)
	return v
}

type identifier interface {
	identify(ctx context.Context, call *rpc.Call) (*caller, error)
}

// who is alice, or nobody and why: "" for anything but a refusal.
func who(t *testing.T, v identifier, token string) (*caller, string, error) {
	t.Helper()
	c, err := v.identify(t.Context(), &rpc.Call{Header: metadata.MD{"authorization": {"Bearer " + token}}, Info: &rpc.Info{}})
	if r, ok := errors.AsType[*refusal](err); ok {
		return c, r.reason, err
	}
	return c, "", err
}

// TestKeysOverTime: keys are fetched again when they are old, used for a day when they cannot be, and not at all after it.
func TestKeysOverTime(t *testing.T) {
	for _, tc := range []struct {
		cacheControl, uri string
		fresh             time.Duration
	}{
		{"", "", 10 * time.Minute},
		{"public, Max-Age=60", "", time.Minute},
		{"max-age=1", "", 30 * time.Second},
		{"max-age=99999", "", 10 * time.Minute},
		{"", idpURL + "/keys", 10 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newIDP(t)
			p.header.Set("Cache-Control", tc.cacheControl)
			v := p.jwt(t, JWTConfig{JWKSURI: tc.uri, Algorithms: []string{"ES256"}})
			ask := func(when string, code codes.Code, fetches int) {
				t.Helper()
				_, _, err := who(t, v, p.token(t, time.Hour, "JWT"))
				if synctest.Wait(); rpc.StatusOf(err).Code() != code || err != nil && code == codes.OK || p.fetches != fetches {
					t.Errorf("%q, %s: %v, %d fetches; want %v, %d", tc.cacheControl, when, err, p.fetches, code, fetches)
				}
			}
			ask("at first", codes.OK, 1)
			time.Sleep(tc.fresh - time.Second)
			ask("fresh", codes.OK, 1)
			time.Sleep(2 * time.Second)
			ask("old", codes.OK, 2)
			ask("fresh again", codes.OK, 2)
			p.down = true
			fetches := 2
			for range 23 {
				time.Sleep(time.Hour)
				fetches++
				ask("while the issuer is down", codes.OK, fetches)
			}
			time.Sleep(time.Hour + time.Second)
			ask("a day later", codes.Unavailable, fetches+1)
			p.down = false
			time.Sleep(fetchEvery)
			ask("the issuer is back", codes.OK, fetches+2)
		})
	}
}

// TestVerifiedTokens: a token is verified once in five minutes, not after its end, and again when the keys have changed.
func TestVerifiedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newIDP(t)
		v := p.jwt(t, JWTConfig{Algorithms: []string{"ES256"}})
		long, short := p.token(t, time.Hour, "JWT"), p.token(t, time.Minute, "JWT")
		one := func(token string) *caller {
			t.Helper()
			c, _, err := who(t, v, token)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		first, brief := one(long), one(short)
		time.Sleep(59 * time.Second)
		if one(long) != first || one(short) != brief {
			t.Error("a token that is known was verified again")
		}
		time.Sleep(time.Second)
		if c, reason, err := who(t, v, short); reason != reasonExpired {
			t.Errorf("at its end: %v, %v", c, err)
		}
		if one(long) != first {
			t.Error("a token that is known was verified again")
		}
		time.Sleep(maxCached - time.Minute)
		again := one(long)
		if again == first {
			t.Error("after five minutes the token was not verified again")
		}
		p.rotate(t, "2")
		_ = one(p.token(t, time.Hour, "JWT")) // whose key id has the keys be fetched
		if c, reason, err := who(t, v, long); reason != reasonInvalid {
			t.Errorf("a known token whose key has left: %v, %v", c, err)
		}
	})
}

// TestAlgorithmsAndTypes: a token is taken only if it says one of the algorithms and the type that the configuration has.
func TestAlgorithmsAndTypes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newIDP(t)
		for _, tc := range []struct {
			algs      []string
			want, has string
			ok        bool
		}{
			{[]string{"ES256"}, "", "JWT", true},
			{[]string{"RS256", "ES256"}, "", "", true},
			{[]string{"RS256"}, "", "JWT", false},
			{[]string{"ES384", "EdDSA", "PS256"}, "", "JWT", false},
			{[]string{"ES256"}, "at+jwt", "at+jwt", true},
			{[]string{"ES256"}, "at+jwt", "application/AT+JWT", true},
			{[]string{"ES256"}, "at+jwt", "JWT", false},
			{[]string{"ES256"}, "at+jwt", "", false},
		} {
			v := p.jwt(t, JWTConfig{Algorithms: tc.algs, Type: tc.want})
			if c, reason, err := who(t, v, p.token(t, time.Hour, tc.has)); (err == nil) != tc.ok || !tc.ok && reason != reasonInvalid {
				t.Errorf("a token of ES256 and type %q where %q and type %q will do: %v, %v", tc.has, tc.algs, tc.want, c, err)
			}
		}
	})
}

// TestIntrospectionOverTime: an answer is remembered for as long as the configuration says and the token lives, a refusal for ten
// seconds, and a failure not at all.
func TestIntrospectionOverTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newIDP(t)
		v, err := NewIntrospection(IntrospectionConfig{Name: "opaque", URL: idpURL + "/introspect", ClientID: "a", ClientSecret: "b", Cache: time.Minute}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		v.client.http.Transport = p
		defer v.Close()
		ask := func(when, token, reason string, asked int) {
			t.Helper()
			if c, got, err := who(t, v, token); got != reason || reason == "" && (err != nil || c.identity != "opaque:alice") || p.asked != asked {
				t.Errorf("%s: %v, %v, asked %d times; want %q, %d", when, c, err, p.asked, reason, asked)
			}
		}
		p.about = map[string]any{"active": true, "sub": "alice"}
		ask("at first", "a", "", 1)
		time.Sleep(59 * time.Second)
		ask("remembered", "a", "", 1)
		time.Sleep(2 * time.Second)
		ask("a minute later", "a", "", 2)
		p.about["exp"] = time.Now().Add(10 * time.Second).Unix()
		ask("a token that ends soon", "b", "", 3)
		time.Sleep(9 * time.Second)
		ask("remembered", "b", "", 3)
		time.Sleep(2 * time.Second)
		ask("it has ended", "b", reasonExpired, 4)
		ask("its end is remembered", "b", reasonExpired, 4)
		p.about = map[string]any{"active": false}
		ask("revoked", "c", reasonInvalid, 5)
		time.Sleep(9 * time.Second)
		ask("remembered", "c", reasonInvalid, 5)
		p.about = map[string]any{"active": true, "sub": "alice"}
		time.Sleep(2 * time.Second)
		ask("active after all", "c", "", 6)
		p.down = true
		for n := range 2 {
			if _, _, err := who(t, v, "d"); rpc.StatusOf(err).Code() != codes.Unavailable || p.asked != 7+n {
				t.Errorf("while the server is down: %v, asked %d times", err, p.asked)
			}
		}
		p.down = false
		ask("the server is back", "d", "", 9)
	})
}

// guessed is an authorization server that takes guessedIn for each answer and knows one token.
type guessed struct{ asked atomic.Int32 }

// guessedIn has no multiple that is outboundTimeout: a turn that comes when patience ends may be taken or not.
const guessedIn = 1100 * time.Millisecond

func (g *guessed) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.ParseForm(); err != nil {
		return nil, err
	}
	g.asked.Add(1)
	select {
	case <-time.After(guessedIn):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	body := `{"active":false}`
	if r.PostForm.Get("token") == "good" {
		body = `{"active":true,"sub":"alice"}`
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// TestIntrospectionUnderGuesses: while tokens are guessed faster than the server answers, others wait for their turn, for as long as an
// answer may take; and what is remembered of good tokens is not pushed out by what is of guesses.
func TestIntrospectionUnderGuesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, err := NewIntrospection(IntrospectionConfig{Name: "opaque", URL: idpURL + "/introspect", Cache: time.Hour}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		server := &guessed{}
		v.client.http.Transport = server
		defer v.Close()
		guesses := 0
		var wg sync.WaitGroup
		guess := func(n int) {
			for range n {
				guesses++
				token := "guess-" + strconv.Itoa(guesses)
				wg.Go(func() {
					_, _ = v.identify(t.Context(), &rpc.Call{Header: metadata.MD{"authorization": {"Bearer " + token}}, Info: &rpc.Info{}})
				})
			}
			synctest.Wait()
		}
		guess(3 * maxFlights)
		began := time.Now()
		if c, _, err := who(t, v, "good"); err != nil || c.identity != "opaque:alice" || time.Since(began) != 4*guessedIn {
			t.Errorf("behind three rounds of guesses: %v, %v, after %v", c, err, time.Since(began))
		}
		wg.Wait()
		for i := range 4 * cacheShards * cacheShard {
			seen := tagOf([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
			v.refused.put(seen, cached{who: &caller{refused: invalid("")}, until: time.Now().Add(time.Minute)}, time.Now())
		}
		guess(6 * maxFlights)
		asked := server.asked.Load()
		if c, _, err := who(t, v, "good"); err != nil || c.identity != "opaque:alice" || server.asked.Load() != asked {
			t.Errorf("a token that was good before: %v, %v", c, err)
		}
		began = time.Now()
		if _, _, err := who(t, v, "other"); rpc.StatusOf(err).Code() != codes.Unavailable || time.Since(began) != outboundTimeout {
			t.Errorf("behind six rounds of guesses: %v, after %v", err, time.Since(began))
		}
		wg.Wait()
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		guess(maxFlights)
		leave()
		if _, err := v.identify(ctx, &rpc.Call{Header: metadata.MD{"authorization": {"Bearer more"}}, Info: &rpc.Info{}}); rpc.StatusOf(err).Code() != codes.Canceled {
			t.Errorf("a client that has left: %v", err)
		}
		asked = server.asked.Load()
		wg.Wait()
		synctest.Wait()
		if server.asked.Load() != asked {
			t.Errorf("asked for a client that has left")
		}
		guess(1)
		first := "guess-" + strconv.Itoa(guesses)
		guess(maxWaiting - 1)
		began = time.Now()
		if _, _, err := who(t, v, "last"); rpc.StatusOf(err).Code() != codes.Unavailable || time.Since(began) != 0 {
			t.Errorf("beside as many guesses as may wait: %v, after %v", err, time.Since(began))
		}
		if _, reason, err := who(t, v, first); reason != reasonInvalid {
			t.Errorf("a token that is asked about: %v", err)
		}
		wg.Wait()
		synctest.Wait()
		if len(v.slots) > 0 || len(v.flights) > 0 {
			t.Errorf("%d slots and %d flights are left", len(v.slots), len(v.flights))
		}
	})
}
