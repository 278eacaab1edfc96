package identity

import (
	"context"
	"encoding/base64"
	"runtime"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"transom/rpc"
)

// Basic identifies consumers by name and password (RFC 7617). A password that was right is not hashed again for five
// minutes; at most half of the processors hash at once.
type Basic struct {
	users map[string]basicUser
	// nobody is the hash that names without one are compared with, so that they take as long.
	nobody []byte
	cache  credentialCache
	slots  chan struct{}
}

type basicUser struct {
	hash []byte
	who  *caller
}

// NewBasic makes the provider of that name from the consumers that have passwords.
func NewBasic(name string, known []*Consumer) (*Basic, error) {
	p := &Basic{users: map[string]basicUser{}, slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	cost := bcrypt.MinCost
	for _, c := range known {
		if c.PasswordHash == "" {
			continue
		}
		n, err := bcrypt.Cost([]byte(c.PasswordHash))
		if err != nil {
			return nil, err
		}
		cost = max(cost, n)
		p.users[c.Name] = basicUser{[]byte(c.PasswordHash), callerOfKnown(name, c, c.PasswordHash)}
	}
	var err error
	p.nobody, err = bcrypt.GenerateFromPassword([]byte("nobody"), cost)
	return p, err
}

func (p *Basic) place() place            { return place{header: "authorization", scheme: "basic"} }
func (p *Basic) challenge(string) string { return `Basic realm="transom", charset="UTF-8"` }

func (p *Basic) knows(who *caller) bool {
	user, ok := p.users[who.Consumer]
	return ok && user.who.voucher == who.voucher
}

func (p *Basic) identify(ctx context.Context, call *rpc.Call) (*caller, error) {
	v, err := authorization(call, "basic")
	if err != nil {
		return nil, err
	}
	seen := tagOf(bytesOf(v))
	now := time.Now()
	if e, ok := p.cache.get(seen, now); ok {
		return e.who, nil
	}
	raw, err := base64.StdEncoding.DecodeString(v)
	name, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || len(password) > 72 { // bcrypt's limit
		return nil, invalid("the authorization header is malformed")
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, rpc.CauseOf(ctx)
	}
	user, known := p.users[name]
	if !known {
		user.hash = p.nobody
	}
	if bcrypt.CompareHashAndPassword(user.hash, []byte(password)) != nil || !known {
		return nil, invalid("name or password is wrong")
	}
	p.cache.put(seen, cached{who: user.who, until: now.Add(maxCached)}, now)
	return user.who, nil
}
