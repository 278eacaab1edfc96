package identity

import (
	"crypto/rand"
	"encoding/binary"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/dchest/siphash"

	"transom/rpc"
)

// checkBearer refuses what follows "Bearer" if it cannot be a token (RFC 6750 section 2.1). Tokens that were accepted before need not
// be looked at.
func checkBearer(token string) error {
	switch {
	case token == "" || strings.ContainsAny(token, " \t,"):
		return invalid("the authorization header is malformed")
	case len(token) > maxTokenBytes:
		return invalid("the token is too long")
	}
	return nil
}

// authorization is what follows a scheme, in lower case, in the authorization header. errNone: there is none, or a credential of
// another scheme.
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

// isOf reports whether a value of authorization is of the scheme, with a credential or without.
func isOf(scheme, v string) bool {
	return len(v) >= len(scheme) && (len(v) == len(scheme) || v[len(scheme)] == ' ') && strings.EqualFold(v[:len(scheme)], scheme)
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

// tag stands for a credential within this process: its SipHash-2-4 of 128 bits under a key that is drawn anew at each start. Whoever
// does not know that key finds no other credential of the same tag, and none by its tag.
type tag struct{ low, high uint64 }

// tagKey is the key of all tags.
var tagKey = func() (k tag) {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	return tag{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
}()

func tagOf(credential []byte) tag {
	low, high := siphash.Hash128(tagKey.low, tagKey.high, credential)
	return tag{low, high}
}

// bytesOf views s as bytes, which nobody may change.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// credentialCache remembers what became of credentials, by their tags. It holds at most cacheShards*cacheShard entries
// and starts no goroutine.
type credentialCache struct {
	shards [cacheShards]struct {
		mu sync.RWMutex
		m  map[tag]cached
	}
}

const (
	cacheShards = 16
	cacheShard  = 1024
)

type cached struct {
	who *caller
	// until is when the entry ends.
	until time.Time
	// epoch is the key set that who was verified with; 0 if there is none.
	epoch uint64
}

func (c *credentialCache) get(t tag, now time.Time) (cached, bool) {
	s := &c.shards[t.low%cacheShards]
	s.mu.RLock()
	e, ok := s.m[t]
	s.mu.RUnlock()
	return e, ok && now.Before(e.until)
}

// put remembers e. In a full shard what has ended makes room, or else any entry.
func (c *credentialCache) put(t tag, e cached, now time.Time) {
	s := &c.shards[t.low%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[tag]cached{}
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
	s.m[t] = e
}
