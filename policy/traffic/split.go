package traffic

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"

	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// Route sends the calls that meet all of its conditions to one place.
type Route struct {
	When []Condition
	To   rpc.Handler
}

// Target is one of several places that share calls.
type Target struct {
	// Name is what a key's place goes by: a target keeps its keys wherever it stands in the list.
	Name string
	// Weight is the target's part of the sum of all weights. 0 gets no calls.
	Weight uint32
	To     rpc.Handler
}

// Config says where the calls of a method go. Its targets have a weight above 0 among them, if there are any.
type Config struct {
	// Routes are tried in order; the first whose conditions hold has the call.
	Routes []Route
	// Split shares what no route takes.
	Split []Target
	// Sticky are the keys by which a caller stays with its target: the first that the call has counts. Calls without any are
	// spread at random.
	Sticky []Key
	// Otherwise takes what no route takes; it is for a Config without a Split.
	Otherwise rpc.Handler
}

// New makes the handler that hands calls on.
func New(cfg Config) rpc.Handler {
	otherwise := cfg.Otherwise
	if len(cfg.Split) > 0 {
		otherwise = newSplit(cfg.Split, cfg.Sticky).handle
	}
	if len(cfg.Routes) == 0 {
		return otherwise
	}
	return func(ctx context.Context, call *rpc.Call) error {
		for i := range cfg.Routes {
			if r := &cfg.Routes[i]; all(r.When, call.Header) {
				return r.To(ctx, call)
			}
		}
		return otherwise(ctx, call)
	}
}

// split chooses among targets by weighted rendezvous hashing: of a key and each target a pseudo-random number is drawn that
// is distributed exponentially with the target's weight, and the least wins. A target's number depends on no other target, so
// raising one weight moves keys to that target only, lowering it moves keys away from that target only, and every transom of
// the same configuration chooses alike.
type split struct {
	targets []target
	sticky  []Key
}

type target struct {
	seed   uint64
	weight float64
	to     rpc.Handler
}

func newSplit(targets []Target, sticky []Key) *split {
	s := &split{sticky: sticky}
	for _, t := range targets {
		if t.Weight > 0 {
			s.targets = append(s.targets, target{hash(t.Name), float64(t.Weight), t.To})
		}
	}
	return s
}

func (s *split) handle(ctx context.Context, call *rpc.Call) error {
	return s.targets[s.choose(s.key(call))].to(ctx, call)
}

// key is the hash that a call's target goes by.
func (s *split) key(call *rpc.Call) uint64 {
	for i := range s.sticky {
		if h, ok := s.sticky[i].of(call); ok {
			return h
		}
	}
	return rand.Uint64()
}

// choose is the index of a key's target.
func (s *split) choose(key uint64) int {
	if len(s.targets) == 1 {
		return 0
	}
	best, least := 0, math.Inf(1)
	for i := range s.targets {
		t := &s.targets[i]
		// 53 bits, from the middle of their interval: never 0, never 1.
		u := (float64(mix(key^t.seed)>>11) + 0.5) / (1 << 53)
		if e := -math.Log(u) / t.weight; e < least {
			best, least = i, e
		}
	}
	return best
}

// offset and prime are those of FNV-1a, 64 bits.
const (
	offset = 14695981039346656037
	prime  = 1099511628211
)

// hash is FNV-1a.
func hash(s string) uint64 {
	h := uint64(offset)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * prime
	}
	return h
}

// mix makes every bit of the result depend on every bit of h (the finalizer of SplitMix64).
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// Key is something that calls of one caller have in common.
type Key struct {
	kind keyKind
	// name is that of a header, in lower case, or of a cookie, or the path of a claim.
	name string
}

type keyKind uint8

const (
	byConsumer keyKind = iota + 1
	byIP
	byHeader
	byCookie
	byClaim
)

// ParseKey reads "consumer", "ip", "header:NAME", "cookie:NAME" or "claim:PATH".
func ParseKey(s string) (Key, error) {
	kind, name, named := strings.Cut(s, ":")
	switch {
	case s == "consumer":
		return Key{kind: byConsumer}, nil
	case s == "ip":
		return Key{kind: byIP}, nil
	case kind == "header" && named && name != "" && name == strings.ToLower(name):
		return Key{byHeader, name}, nil
	case kind == "cookie" && named && name != "":
		return Key{byCookie, name}, nil
	case kind == "claim" && named && name != "":
		return Key{byClaim, name}, nil
	}
	return Key{}, fmt.Errorf("%q is not consumer, ip, header:name (in lower case), cookie:name or claim:path", s)
}

// Header is the metadata that the key is found in; "" for none.
func (k Key) Header() string {
	switch k.kind {
	case byHeader:
		return k.name
	case byCookie:
		return "cookie"
	default:
		return ""
	}
}

// of is the hash of a call's key, if it has one.
func (k Key) of(call *rpc.Call) (h uint64, ok bool) {
	var text string
	switch k.kind {
	case byConsumer:
		if call.Principal != nil {
			text = call.Principal.Consumer
		}
	case byIP:
		return ofAddr(call.Peer.Addr.Addr())
	case byHeader:
		if v := call.Header[k.name]; len(v) > 0 {
			text = v[0]
		}
	case byCookie:
		text = cookie(call.Header, k.name)
	case byClaim:
		text = call.Principal.ClaimText(k.name)
	}
	return hash(text), text != ""
}

// ofAddr hashes an address: of IPv6 its /64, since that is what one client has.
func ofAddr(a netip.Addr) (h uint64, ok bool) {
	if !a.IsValid() {
		return 0, false
	}
	b := a.As16()
	if !a.Is4() && !a.Is4In6() {
		clear(b[8:])
	}
	h = offset
	for _, c := range b {
		h = (h ^ uint64(c)) * prime
	}
	return h, true
}

// cookie is the value of a cookie by name (RFC 6265 section 4.2.1), the first that has one; "" if there is none.
func cookie(md metadata.MD, name string) string {
	for _, line := range md["cookie"] {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			if n, v, ok := strings.Cut(pair, "="); ok && strings.TrimSpace(n) == name {
				if v = strings.Trim(strings.TrimSpace(v), `"`); v != "" {
					return v
				}
			}
		}
	}
	return ""
}
