package identity

import (
	"crypto/sha256"
	"strings"
	"sync"
	"time"

	"transom/rpc"
)

// bearerToken finds the token of "authorization: Bearer …" (RFC 6750 section 2.1). errNone: there is none, or a credential of
// another scheme.
func bearerToken(call *rpc.Call) (string, error) {
	v, err := authorization(call, "bearer")
	if err != nil {
		return "", err
	}
	if v == "" || strings.IndexByte(v, ' ') >= 0 || strings.IndexByte(v, '\t') >= 0 || strings.IndexByte(v, ',') >= 0 {
		return "", invalid("the authorization header is malformed")
	}
	return v, nil
}

// authorization is what follows a scheme, in lower case, in the authorization header.
func authorization(call *rpc.Call, scheme string) (string, error) {
	values := call.Header["authorization"]
	switch len(values) {
	case 0:
		return "", errNone
	case 1:
	default:
		return "", invalid("the call has more than one authorization header")
	}
	v := values[0]
	if !isOf(scheme, v) {
		return "", errNone
	}
	return strings.TrimLeft(v[len(scheme):], " "), nil
}

// isOf reports whether a value of authorization is of the scheme.
func isOf(scheme, v string) bool {
	return len(v) > len(scheme) && v[len(scheme)] == ' ' && strings.EqualFold(v[:len(scheme)], scheme)
}

// bearer is where tokens are.
func bearer() place { return place{header: "authorization", scheme: "bearer"} }

// bearerChallenge is of RFC 6750 section 3.
func bearerChallenge(code string) string {
	if code == "" {
		return `Bearer realm="transom"`
	}
	return `Bearer realm="transom", error="` + code + `"`
}

// hashOf is the SHA-256 of a credential, without an allocation for those of ordinary length.
func hashOf(credential string) [sha256.Size]byte {
	var buf [1 << 10]byte
	return sha256.Sum256(append(buf[:0], credential...))
}

// credentialCache remembers what became of credentials, by their SHA-256. It holds at most cacheShards*cacheShard entries
// and starts no goroutine.
type credentialCache struct {
	shards [cacheShards]struct {
		mu sync.RWMutex
		m  map[[sha256.Size]byte]cached
	}
}

const (
	cacheShards = 16
	cacheShard  = 1024
)

type cached struct {
	who *caller // nil: refused
	// until is when the entry ends.
	until time.Time
	// epoch is the key set that who was verified with; 0 if there is none.
	epoch uint64
}

func (c *credentialCache) get(hash *[sha256.Size]byte, now time.Time) (cached, bool) {
	s := &c.shards[hash[0]%cacheShards]
	s.mu.RLock()
	e, ok := s.m[*hash]
	s.mu.RUnlock()
	return e, ok && now.Before(e.until)
}

// put remembers e. In a full shard what has ended makes room, or else any entry.
func (c *credentialCache) put(hash [sha256.Size]byte, e cached, now time.Time) {
	s := &c.shards[hash[0]%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[[sha256.Size]byte]cached{}
	}
	if len(s.m) >= cacheShard {
		for k, old := range s.m {
			if !now.Before(old.until) {
				delete(s.m, k)
			}
		}
		for k := range s.m {
			if len(s.m) < cacheShard {
				break
			}
			delete(s.m, k)
		}
	}
	s.m[hash] = e
}
