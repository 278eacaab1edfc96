package identity

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"transom/rpc"
)

// JWTConfig configures a JWT provider.
type JWTConfig struct {
	// Name is the provider's.
	Name string
	// Issuer is what iss must be, and Audiences has what aud must have one of.
	Issuer    string
	Audiences []string
	// JWKSURI is where the keys are; empty for what the issuer's discovery document says.
	JWKSURI string
	// Algorithms are those accepted; empty for RS256 and ES256. Symmetric ones and "none" are never.
	Algorithms []string
	// Type is what the header typ must be, without "application/"; empty for anything.
	Type string
	// Leeway is how far clocks may be apart.
	Leeway time.Duration
	// SubjectClaim and GroupClaims are paths of claims, "sub" and "realm_access.roles"; empty for "sub", and for groups,
	// roles and realm_access.roles.
	SubjectClaim string
	GroupClaims  []string
	// PlanClaim is the path of the caller's plan; empty for none.
	PlanClaim string
	// Metadata are claims, as paths, that backends get, by metadata name.
	Metadata map[string]string
	Outbound Outbound
}

// JWT identifies callers by signed tokens (RFC 7519) in "authorization: Bearer". Close it.
type JWT struct {
	cfg   JWTConfig
	algs  []jose.SignatureAlgorithm
	keys  *keySet
	cache credentialCache
}

const (
	// maxTokenBytes is the longest token that is looked at.
	maxTokenBytes = 16 << 10
	// maxCached is how long a verified token is not verified again.
	maxCached = 5 * time.Minute
)

// NewJWT begins to fetch the keys, and does not wait for them.
func NewJWT(cfg JWTConfig, log *slog.Logger) (*JWT, error) {
	c, err := newClient(cfg.Outbound)
	if err != nil {
		return nil, fmt.Errorf("outbound: %w", err)
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = []string{string(jose.RS256), string(jose.ES256)}
	}
	if cfg.SubjectClaim == "" {
		cfg.SubjectClaim = "sub"
	}
	if cfg.GroupClaims == nil {
		cfg.GroupClaims = []string{"groups", "roles", "realm_access.roles"}
	}
	p := &JWT{cfg: cfg}
	for _, a := range cfg.Algorithms {
		if !asymmetric(a) {
			return nil, fmt.Errorf("algorithm %q is not accepted", a)
		}
		p.algs = append(p.algs, jose.SignatureAlgorithm(a))
	}
	ask := cfg.JWKSURI
	if ask == "" {
		ask = cfg.Issuer
	}
	if err := c.checkURL(ask); err != nil {
		return nil, err
	}
	p.keys = newKeySet(c, cfg.Issuer, cfg.JWKSURI, log)
	p.keys.refresh(time.Now(), nil)
	return p, nil
}

// asymmetric reports whether a is a signature algorithm with a public key.
func asymmetric(a string) bool {
	switch jose.SignatureAlgorithm(a) {
	case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA:
		return true
	}
	return false
}

// Close ends what the provider does by itself.
func (p *JWT) Close() { p.keys.close() }

func (p *JWT) place() place                 { return bearer() }
func (p *JWT) challenge(code string) string { return bearerChallenge(code) }

func (p *JWT) voucher() string        { return "jwt " + p.cfg.Issuer }
func (p *JWT) knows(who *caller) bool { return who.voucher == p.voucher() }

func (p *JWT) identify(ctx context.Context, call *rpc.Call) (*caller, error) {
	token, err := authorization(call, "bearer")
	if err != nil {
		return nil, err
	}
	seen := tagOf(bytesOf(token))
	now := time.Now()
	if e, ok := p.cache.get(seen, now); ok {
		if set := p.keys.keys.Load(); set != nil && e.epoch == set.epoch {
			return e.who, nil
		}
	}
	if err := checkBearer(token); err != nil {
		return nil, err
	}
	who, epoch, err := p.verify(ctx, token, now)
	if err != nil {
		return nil, err
	}
	until := now.Add(maxCached)
	if who.Expires.Before(until) {
		until = who.Expires
	}
	p.cache.put(seen, cached{who, until, epoch}, now)
	return who, nil
}

// verify checks a token: who signed it, for whom, and until when (RFC 7519 section 7.2; RFC 8725).
func (p *JWT) verify(ctx context.Context, token string, now time.Time) (*caller, uint64, error) {
	if iss, ok := peekIssuer(token); !ok || iss != p.cfg.Issuer {
		return nil, 0, errForeign
	}
	jws, err := jose.ParseSignedCompact(token, p.algs)
	if err != nil {
		if _, ok := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); ok {
			return nil, 0, invalid("the token's signature algorithm is not accepted")
		}
		return nil, 0, invalid("the token is malformed")
	}
	h := jws.Signatures[0].Protected
	if p.cfg.Type != "" {
		typ, _ := h.ExtraHeaders[jose.HeaderType].(string)
		if !strings.EqualFold(strings.TrimPrefix(strings.ToLower(typ), "application/"), p.cfg.Type) {
			return nil, 0, invalid("the token is of the wrong type")
		}
	}
	key, epoch, err := p.keys.find(ctx, h.KeyID, jose.SignatureAlgorithm(h.Algorithm))
	if err != nil {
		return nil, 0, err
	}
	payload, err := jws.Verify(key.Key)
	if err != nil {
		return nil, 0, invalid("the token's signature is not valid")
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, 0, invalid("the token is malformed")
	}
	who, err := p.judge(claims, now)
	return who, epoch, err
}

// peekIssuer reads iss of a token that is not verified yet.
func peekIssuer(token string) (string, bool) {
	_, rest, ok := strings.Cut(token, ".")
	payload, _, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 {
		return "", false
	}
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return "", false
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	return claims.Issuer, json.Unmarshal(b, &claims) == nil
}

// judge checks the claims of a token whose signature is good.
func (p *JWT) judge(claims map[string]any, now time.Time) (*caller, error) {
	if iss, _ := claims["iss"].(string); iss != p.cfg.Issuer {
		return nil, invalid("the token is of another issuer")
	}
	if !slices.ContainsFunc(stringsOf(claims["aud"]), func(a string) bool { return slices.Contains(p.cfg.Audiences, a) }) {
		return nil, invalid("the token is for another audience")
	}
	exp, ok := timeOf(claims["exp"])
	switch {
	case !ok:
		return nil, invalid("the token has no expiry")
	case !now.Before(exp.Add(p.cfg.Leeway)):
		return nil, &refusal{reasonExpired, "the token has expired"}
	}
	for _, name := range []string{"nbf", "iat"} {
		if v, there := claims[name]; there {
			if t, ok := timeOf(v); !ok || now.Add(p.cfg.Leeway).Before(t) {
				return nil, invalid("the token is not valid yet")
			}
		}
	}
	return callerOf(p.cfg.Name, p.voucher(), claims, paths{p.cfg.SubjectClaim, p.cfg.PlanClaim, p.cfg.GroupClaims, p.cfg.Metadata}, exp.Add(p.cfg.Leeway))
}

// paths are where claims say something of a caller.
type paths struct {
	subject, plan string
	groups        []string
	metadata      map[string]string
}

// callerOf makes a caller of verified claims.
func callerOf(provider, voucher string, claims map[string]any, of paths, expires time.Time) (*caller, error) {
	sub, _ := at(claims, of.subject).(string)
	if sub == "" {
		return nil, invalid("the token does not say whose it is")
	}
	c := &caller{identity: provider + ":" + sub, voucher: voucher}
	c.Principal = rpc.Principal{Consumer: c.identity, Provider: provider, Claims: claims, Expires: expires}
	if of.plan != "" {
		c.Plan, _ = at(claims, of.plan).(string)
	}
	for _, name := range []string{"scope", "scp"} { // RFC 8693 section 4.2; scp is widespread
		for _, s := range stringsOf(claims[name]) {
			c.Scopes = union(c.Scopes, strings.Fields(s))
		}
	}
	for _, path := range of.groups {
		c.Groups = union(c.Groups, stringsOf(at(claims, path)))
	}
	for key, path := range of.metadata {
		if v := textOf(at(claims, path)); v != "" {
			c.extra = append(c.extra, field{key, [1]string{rpc.MetadataText(v)}})
		}
	}
	return c, nil
}

// at follows a path of claims. A claim whose own name has dots is found too, as "https://id.example/roles".
func at(claims map[string]any, path string) any {
	if v, ok := claims[path]; ok {
		return v
	}
	name, rest, nested := strings.Cut(path, ".")
	if !nested {
		return nil
	}
	inner, _ := claims[name].(map[string]any)
	return at(inner, rest)
}

// stringsOf is a claim that is a string or a list of them; others are left out.
func stringsOf(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		list := make([]string, 0, len(v))
		for _, e := range v {
			if s, ok := e.(string); ok {
				list = append(list, s)
			}
		}
		return list
	}
	return nil
}

// textOf is a claim as text: strings, numbers and truth values as they are, others as JSON.
func textOf(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

// timeOf reads a NumericDate (RFC 7519 section 2). One that is not a number, or beyond the year 9999, is none.
func timeOf(v any) (time.Time, bool) {
	f, ok := v.(float64)
	if !ok || f < 0 || f > 253402300799 {
		return time.Time{}, false
	}
	return time.Unix(int64(f), 0), true
}
