// Package rpc is the neutral middle of transom: a gRPC call as every client protocol spells it and as upstream carries
// it. Listeners make a [Call] of what arrives on a socket, policies are [Middleware] around a [Handler], and the
// innermost Handler sends the call to a backend. The package knows no socket and no JSON; a message here is protobuf wire
// bytes ([Message]).
//
// # Concurrency
// A Call belongs to the goroutine that runs its Handler. Its Stream may be received from by one goroutine while another
// sends; nothing else about a Call is safe for concurrent use.
package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"

	"transom/descriptors"
)

// Handler runs one call to its end. nil is status OK; any other error becomes a status by [StatusOf]. The handler must
// not keep call or its Stream after it returns, and must have ended every goroutine that uses them. It must return soon
// after ctx ends.
type Handler func(ctx context.Context, call *Call) error

// Middleware wraps a Handler with a concern of its own: the one shape for all four kinds of call.
type Middleware func(next Handler) Handler

// Chain composes mws around h; the first is the outermost. A nil Middleware is left out.
func Chain(h Handler, mws ...Middleware) Handler {
	for i := len(mws) - 1; i >= 0; i-- {
		if mws[i] != nil {
			h = mws[i](h)
		}
	}
	return h
}

// Call is one gRPC call on its way through transom.
type Call struct {
	// Method is never nil. It may be opaque (no schema) or virtual (composed by the gateway).
	Method *descriptors.Method
	// Header is the request metadata to be sent upstream; keys are lower case, values of "-bin" keys are decoded bytes.
	// The call owns it: middleware may change it. It may be nil; use SetHeader to add.
	Header metadata.MD
	Peer   Peer
	// Principal is who calls. It is nil until authentication sets it, and stays nil for anonymous calls.
	Principal *Principal
	// Info is what observers report about the call. It is never nil.
	Info   *Info
	Stream Stream
}

// SetHeader sets one request metadata key, replacing what was there.
func (c *Call) SetHeader(key string, values ...string) {
	if c.Header == nil {
		c.Header = metadata.MD{}
	}
	c.Header[key] = values
}

// RateLimited is a Stream that tells the client of limits by itself, which spares a Stream around it.
type RateLimited interface {
	Stream
	// RateLimit has the fields "ratelimit" and "ratelimit-policy" be in the header of whatever answers the call, in place of the
	// backend's, but not of an error's. It is called before SendHeader and Send.
	RateLimit(state, policy string)
}

// Stream is the client's side of a call: what the client sends is received, and what is sent goes to the client. How the
// call ends (status, trailers, close frame) is not here: the Handler's return value says it, and the listener sends it.
//
// # Concurrency
// One goroutine may call Recv while another calls the sending methods (SendHeader, Send, Flush, SetTrailer).
type Stream interface {
	// Recv returns the client's next message with one reference, or io.EOF after the client's half-close (and again on
	// every later call). It returns when ctx ends, or the client is gone, with an error that StatusOf understands; after
	// an error other than io.EOF the stream gives no further message. ctx bounds only this wait.
	Recv(ctx context.Context) (Message, error)
	// SendHeader commits the response metadata. It may be called at most once, before the first Send; without it the
	// first Send, or the end of the call, commits empty metadata. A call that ends with an error before SendHeader and
	// Send is answered trailers-only. The stream takes over md.
	SendHeader(md metadata.MD) error
	// Send hands one message to the client, and one reference with it whether or not it fails. It may buffer until Flush.
	// It blocks while the client does not read (back-pressure) and returns an error when the client is gone or ctx ends.
	Send(ctx context.Context, m Message) error
	// Flush pushes out what Send has buffered. Call it when no further message is ready. The end of the call flushes.
	Flush() error
	// SetTrailer sets the trailing metadata, sent when the call ends. A later call replaces an earlier one. The stream
	// takes over md.
	SetTrailer(md metadata.MD)
}

// Peer is the client as the socket knows it.
type Peer struct {
	// Addr is the client's address: the socket's peer, or what a trusted proxy in front says.
	Addr netip.AddrPort
	// TLS is nil on a plaintext connection.
	TLS *tls.ConnectionState
}

// Principal is an authenticated caller.
type Principal struct {
	// Consumer is the stable name that limits, quotas, cache keys and usage reports go by.
	Consumer string
	// Provider is the name of the authentication provider that vouches for the caller.
	Provider string
	// Claims are the verified claims of a token, or what the provider knows of the consumer. Read only.
	Claims map[string]any
	Scopes []string
	Groups []string
	// Plan is the consumer's tier, "" if it has none.
	Plan string
	// Expires is when the credential ends; zero if it does not. Long streams are ended then.
	Expires time.Time
	// Bearer says that the credential was a bearer token, whose holder is told what it lacks (RFC 6750 section 3).
	Bearer bool
}

// Claim is the claim at a path, "org.id"; nil if there is none, or no Principal. A claim whose own name has dots is found
// by it, and goes before one that a path leads to.
func (p *Principal) Claim(path string) any {
	if p == nil {
		return nil
	}
	claims := p.Claims
	for {
		if v, ok := claims[path]; ok {
			return v
		}
		name, rest, ok := strings.Cut(path, ".")
		if !ok {
			return nil
		}
		if claims, ok = claims[name].(map[string]any); !ok {
			return nil
		}
		path = rest
	}
}

// ClaimText is the text of a claim by its path, as Claim has it; "" if there is none.
func (p *Principal) ClaimText(path string) string {
	switch v := p.Claim(path).(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

// Source says whose fault an error is.
type Source uint32

// The sources of an error.
const (
	SourceNone     Source = iota
	SourceClient          // the client's bytes, credentials or absence
	SourceGateway         // transom refused or failed: a limit, a policy, a fault of its own
	SourceUpstream        // a backend answered so, or could not be reached
)

func (s Source) String() string {
	return [...]string{"none", "client", "gateway", "upstream"}[s]
}

// Protocol is the client protocol of a call.
type Protocol uint8

// The client protocols.
const (
	ProtocolUnknown Protocol = iota
	ProtocolREST
	ProtocolGRPC
	ProtocolGRPCWeb
	ProtocolConnect
	ProtocolWebSocket
	ProtocolWebTransport
	ProtocolLocal // made inside transom: composition, mirroring, admin
)

func (p Protocol) String() string {
	return [...]string{"unknown", "rest", "grpc", "grpc_web", "connect", "websocket", "webtransport", "local"}[p]
}

// Info collects what observers report of a call. The listener fills the client's side, upstream the backend's; counts
// are final once the Handler has returned and the listener has ended the exchange.
type Info struct {
	Protocol Protocol
	// Binding is the HTTP rule that matched; nil for a call by gRPC path.
	Binding *descriptors.Binding
	Start   time.Time
	// RequestID is unique per call; "" until one is taken from the client or made.
	RequestID string

	MessagesIn, MessagesOut int64
	// BytesIn and BytesOut count message payload as it was on the client's side of the wire, before decompression and
	// transcoding in and after it out, without framing.
	BytesIn, BytesOut int64

	// TranscodeIn and TranscodeOut are the time that messages took from JSON to wire bytes and back. Each belongs to the
	// goroutine that receives, or sends.
	TranscodeIn, TranscodeOut time.Duration

	// Cluster and Endpoint are the last attempt's; Attempts counts those made, 0 if the call never left transom.
	Cluster  string
	Endpoint string
	Attempts int
	// Upstream is the time from the first attempt's start to the last's end.
	Upstream time.Duration
	// ErrorSource is set by whoever first makes the error; SourceNone on success.
	ErrorSource Source
	// Policy is the policy that refused the call; "" if none did.
	Policy string
	// Notes are what policies decided, for the access log: "cache", "hit". No key is there twice.
	Notes Notes

	// noting is held to change Notes and Policy.
	noting sync.Mutex
	// few is where Notes begin: hardly a call has more.
	few [2]Note
}

// Note is what a policy decided.
type Note struct{ Key, Value string }

// Notes are in the order in which their keys were noted first.
type Notes []Note

// Get is what was noted last under key; "" if nothing was.
func (n Notes) Get(key string) string {
	for i := range n {
		if n[i].Key == key {
			return n[i].Value
		}
	}
	return ""
}

// Fail records whose fault the call's error is, unless it was recorded before. It may be called by both sides of a stream at
// once: the client's, which is received from, and the one that sees the call end.
func (i *Info) Fail(s Source) {
	atomic.CompareAndSwapUint32((*uint32)(&i.ErrorSource), uint32(SourceNone), uint32(s))
}

// Refuse records that a policy refuses the call, and why, in a word: not in words of the client's. The first counts. As Fail, it
// may be called by both sides of a stream at once, and so may Note.
func (i *Info) Refuse(policy, reason string) {
	i.noting.Lock()
	defer i.noting.Unlock()
	if i.Policy == "" {
		i.Policy = policy
	}
	i.note(policy, reason)
}

// Note records a policy's decision for the access log, in place of what was recorded under the key before.
func (i *Info) Note(key, value string) {
	i.noting.Lock()
	defer i.noting.Unlock()
	i.note(key, value)
}

// note does the work of Note. noting is held.
func (i *Info) note(key, value string) {
	for n := range i.Notes {
		if i.Notes[n].Key == key {
			i.Notes[n].Value = value
			return
		}
	}
	if i.Notes == nil {
		i.Notes = i.few[:0]
	}
	i.Notes = append(i.Notes, Note{key, value})
}
