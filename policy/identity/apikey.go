package identity

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"

	"transom/rpc"
)

// APIKeys identifies consumers by secret keys. Only hashes of the keys are kept: keys are random and long, so that a fast
// hash protects them.
type APIKeys struct {
	header string
	// byPrefix are the keys by the first 8 bytes of their hash, so that what is looked up in variable time tells nothing
	// about a key.
	byPrefix map[uint64][]apiKey
	// seen are keys that were found, for each tag in the place that its lower bits say, so that they need not be hashed again. There
	// are a power of two places.
	seen []atomic.Pointer[seenKey]
}

type seenKey struct {
	tag tag
	who *caller
}

type apiKey struct {
	hash [sha256.Size]byte
	who  *caller
}

// SameKeyError is that two consumers have one API key.
type SameKeyError struct {
	First, Second string
	// Index is that of the key in the KeyHashes of Second.
	Index int
}

func (e *SameKeyError) Error() string {
	return fmt.Sprintf("consumers %s and %s have the same API key", e.First, e.Second)
}

// NewAPIKeys makes the provider of that name from the consumers that have keys. header is the metadata name, in lower case,
// that carries the key. Two consumers with one key are an error, a *[SameKeyError].
func NewAPIKeys(name, header string, known []*Consumer) (*APIKeys, error) {
	p := &APIKeys{header: header, byPrefix: map[uint64][]apiKey{}}
	var errs []error
	for _, c := range known {
		for i, hash := range c.KeyHashes {
			who := callerOfKnown(name, c, string(hash[:]))
			at := binary.LittleEndian.Uint64(hash[:])
			for _, other := range p.byPrefix[at] {
				if other.hash == hash {
					errs = append(errs, &SameKeyError{other.who.Consumer, c.Name, i})
				}
			}
			p.byPrefix[at] = append(p.byPrefix[at], apiKey{hash, who})
		}
	}
	p.seen = make([]atomic.Pointer[seenKey], 1<<bits.Len(uint(2*len(p.byPrefix))))
	return p, errors.Join(errs...)
}

// callerOfKnown is a consumer as a provider that knows it by name identifies it. voucher is the hash of the key or password that it
// did so by.
func callerOfKnown(provider string, c *Consumer, voucher string) *caller {
	return &caller{
		Principal: rpc.Principal{
			Consumer: c.Name, Provider: provider, Claims: c.Claims, Scopes: c.Scopes, Groups: c.Groups, Plan: c.Plan,
		},
		identity: provider + ":" + c.Name, voucher: voucher,
	}
}

func (p *APIKeys) identify(_ context.Context, call *rpc.Call) (*caller, error) {
	values := call.Header[p.header]
	switch len(values) {
	case 0:
		return nil, errNone
	case 1:
	default:
		return nil, invalid("the call has more than one API key")
	}
	t := tagOf(bytesOf(values[0]))
	at := &p.seen[t.low&uint64(len(p.seen)-1)]
	if k := at.Load(); k != nil && k.tag == t {
		return k.who, nil
	}
	hash := sha256.Sum256([]byte(values[0]))
	for _, k := range p.byPrefix[binary.LittleEndian.Uint64(hash[:])] {
		if subtle.ConstantTimeCompare(k.hash[:], hash[:]) == 1 {
			at.Store(&seenKey{t, k.who})
			return k.who, nil
		}
	}
	return nil, invalid("the API key is not valid")
}

func (p *APIKeys) knows(who *caller) bool {
	if len(who.voucher) != sha256.Size {
		return false
	}
	keys := p.byPrefix[binary.LittleEndian.Uint64([]byte(who.voucher))]
	return slices.ContainsFunc(keys, func(k apiKey) bool { return string(k.hash[:]) == who.voucher && k.who.identity == who.identity })
}

func (p *APIKeys) place() place { return place{header: p.header} }

// challenge names the header, since there is no registered scheme for API keys.
func (p *APIKeys) challenge(string) string {
	return `ApiKey realm="transom", header="` + p.header + `"`
}
