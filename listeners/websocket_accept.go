package listeners

import (
	"crypto/sha1" //nolint:gosec // RFC 6455 asks for it, as a checksum
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"transom/transcoder"
)

// WebSocketConfig bounds what one WebSocket may use. The zero value of a field means its default.
type WebSocketConfig struct {
	// MaxMessageBytes limits one WebSocket message; default 1 MiB. A method's own message limit holds too.
	MaxMessageBytes int
	// MaxCalls limits the open calls of one socket that carries several; default 100.
	MaxCalls int
	// PingInterval is how long a client may be silent before it is asked for a sign of life; default 30 s. A client that
	// then gives none for PongTimeout, default 15 s, is gone. So a dead one is found within twice PingInterval and
	// PongTimeout.
	PingInterval, PongTimeout time.Duration
	// IdleTimeout closes a socket on which no message has gone either way for so long; default 1 h, negative for never. It is
	// late by PingInterval at most, which is no longer than it.
	IdleTimeout time.Duration
	// Compression lets clients that ask for it compress messages (permessage-deflate, without context takeover). It costs
	// CPU, and lets a page that can put text of its own beside a secret guess the secret from the sizes.
	Compression bool

	idleWrite time.Duration // the Front's
}

func (c *WebSocketConfig) setDefaults() {
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = 1 << 20
	}
	if c.MaxCalls == 0 {
		c.MaxCalls = 100
	}
	if c.PingInterval == 0 {
		c.PingInterval = 30 * time.Second
	}
	if c.PongTimeout == 0 {
		c.PongTimeout = 15 * time.Second
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = time.Hour
	}
	if c.idleWrite == 0 {
		c.idleWrite = defaultIdle
	}
	if c.IdleTimeout > 0 { // both are looked after at once
		c.PingInterval = min(c.PingInterval, c.IdleTimeout)
	}
}

// The subprotocols. A client that offers none speaks for one call, as does one that offers bearer alone.
const (
	protocolTransom        = "transom.v1"
	protocolGRPCWebSockets = "grpc-websockets"
	// protocolBearer marks the subprotocol behind it as a token: browsers can set no headers. Only the mark is echoed.
	protocolBearer = "bearer"
)

// upgrade is a request to become a WebSocket that may be granted.
type upgrade struct {
	key string
	// protocol is the subprotocol that is answered, "" for none.
	protocol string
	// token is what stood behind bearer.
	token   string
	deflate bool
}

// isWebSocket reports whether r asks for an upgrade to WebSocket (RFC 6455 section 4.2.1).
func isWebSocket(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.Method == http.MethodGet && r.Header["Upgrade"] != nil &&
		slices.ContainsFunc(r.Header["Upgrade"], func(v string) bool { return hasToken(v, "websocket") })
}

// hasToken reports whether a comma-separated header value has token, case ignored.
func hasToken(value, token string) bool {
	for item := range strings.SplitSeq(value, ",") {
		if strings.EqualFold(strings.TrimSpace(item), token) {
			return true
		}
	}
	return false
}

// newUpgrade checks the handshake and the origin. The error is an HTTP one.
func (f *Front) newUpgrade(r *http.Request) (u upgrade, err error) {
	bad := func(reason string) (upgrade, error) {
		return upgrade{}, transcoder.HTTPError(http.StatusBadRequest, codes.InvalidArgument, reason)
	}
	if !slices.ContainsFunc(r.Header["Connection"], func(v string) bool { return hasToken(v, "upgrade") }) {
		return bad("WebSocket handshake: the Connection header does not say Upgrade")
	}
	if v := r.Header.Get("Sec-Websocket-Version"); v != "13" {
		return upgrade{}, &withHeader{
			transcoder.HTTPError(http.StatusUpgradeRequired, codes.InvalidArgument, fmt.Sprintf("WebSocket version %q is not supported, use 13", v)),
			http.Header{"Sec-Websocket-Version": {"13"}},
		}
	}
	u.key = r.Header.Get("Sec-Websocket-Key")
	if raw, err := base64.StdEncoding.DecodeString(u.key); err != nil || len(raw) != 16 || len(r.Header["Sec-Websocket-Key"]) != 1 {
		return bad("WebSocket handshake: Sec-WebSocket-Key is not 16 bytes in base64")
	}
	if r.ContentLength != 0 {
		return upgrade{}, &withHeader{
			transcoder.HTTPError(http.StatusBadRequest, codes.InvalidArgument, "WebSocket handshake: the request has a body"),
			http.Header{"Connection": {"close"}}, // which nobody waits for
		}
	}
	if err := f.checkOrigin(r); err != nil {
		return upgrade{}, err
	}
	offered := offeredProtocols(r.Header["Sec-Websocket-Protocol"])
	for i := 0; i < len(offered); i++ {
		switch p := offered[i]; {
		case p == protocolTransom, p == protocolGRPCWebSockets:
			if u.protocol == "" || strings.EqualFold(u.protocol, protocolBearer) {
				u.protocol = p
			}
		case strings.EqualFold(p, protocolBearer):
			if i+1 == len(offered) {
				return bad("WebSocket handshake: the subprotocol bearer must be followed by a token")
			}
			i++
			u.token = offered[i]
			if u.protocol == "" {
				u.protocol = p
			}
		}
	}
	if len(offered) > 0 && u.protocol == "" {
		return bad("WebSocket handshake: none of the subprotocols is known, offer transom.v1, grpc-websockets or none")
	}
	u.deflate = f.cfg.WebSocket.Compression && acceptsDeflate(r.Header["Sec-Websocket-Extensions"])
	return u, nil
}

// offeredProtocols is the list of subprotocols, in the client's order.
func offeredProtocols(values []string) (list []string) {
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
	}
	return list
}

// acceptsDeflate reports whether one of the client's offers of permessage-deflate can be met without context takeover and
// with flate's window (RFC 7692 section 7.1).
func acceptsDeflate(values []string) bool {
	for _, v := range values {
		for offer := range strings.SplitSeq(v, ",") {
			name, params, _ := strings.Cut(offer, ";")
			if strings.TrimSpace(name) == "permessage-deflate" && !slices.ContainsFunc(strings.Split(params, ";"), func(p string) bool {
				switch k, _, _ := strings.Cut(strings.TrimSpace(p), "="); k {
				case "", "client_no_context_takeover", "server_no_context_takeover", "client_max_window_bits":
					return false
				}
				return true
			}) {
				return true
			}
		}
	}
	return false
}

// checkOrigin refuses pages of origins that are not listed, so that a foreign page cannot use the cookies of a user who
// visits it (cross-site WebSocket hijacking). A browser always sends Origin; a client that sends none is no browser.
func (f *Front) checkOrigin(r *http.Request) error {
	origins := r.Header["Origin"]
	if len(origins) == 0 {
		return nil
	}
	origin := strings.ToLower(origins[0])
	if len(origins) == 1 {
		if isOwn(r, origin) || f.names(origin) {
			return nil
		}
		if slices.Contains(f.cfg.Origins, "*") && !ambient(r).certificate {
			// Anybody's page is let in, but without what the user has, which browsers send along.
			delete(r.Header, "Cookie")
			if ambient(r).password {
				delete(r.Header, "Authorization")
			}
			return nil
		}
	}
	return originDenied("pages of origin %q may not open a WebSocket here", origins[0])
}

// isOwn reports whether an origin, in lower case, is that of the request's own host. Without TLS of our own there may be a proxy's, so
// that either scheme will do; what the browser says by Sec-Fetch-Site goes before that.
func isOwn(r *http.Request, origin string) bool {
	scheme, host, _ := strings.Cut(origin, "://")
	if !strings.EqualFold(host, r.Host) || scheme != "https" && (scheme != "http" || r.TLS != nil) {
		return false
	}
	site := r.Header["Sec-Fetch-Site"]
	return len(site) == 0 || len(site) == 1 && (site[0] == "same-origin" || site[0] == "none")
}

// matchOrigin reports whether an origin, in lower case, is the pattern: "*", "https://app.example", or
// "https://*.example" for any number of labels in front. Scheme and port are compared too.
func matchOrigin(pattern, origin string) bool {
	pattern = strings.ToLower(pattern)
	if pattern == "*" || pattern == origin {
		return true
	}
	scheme, domain, ok := strings.Cut(pattern, "://*.")
	if !ok {
		return false
	}
	host, ok := strings.CutPrefix(origin, scheme+"://")
	if !ok {
		return false
	}
	sub, ok := strings.CutSuffix(host, "."+domain)
	return ok && sub != "" && !strings.ContainsAny(sub, "/@:")
}

// authorize puts the token of the subprotocol where a header would be. A header wins.
func (u *upgrade) authorize(h http.Header) http.Header {
	if u.token == "" || h["Authorization"] != nil {
		return h
	}
	h = h.Clone()
	h["Authorization"] = []string{"Bearer " + u.token}
	return h
}

// grant answers 101 and takes the connection over from net/http. The caller owns the result and must close it.
func (u *upgrade) grant(w http.ResponseWriter, cfg *WebSocketConfig, maxMessage int) (*wsConn, error) {
	nc, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	sum := sha1.Sum([]byte(u.key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // as RFC 6455 section 4.2.2 says
	h := w.Header()
	h["Upgrade"] = []string{"websocket"}
	h["Connection"] = []string{"Upgrade"}
	h["Sec-WebSocket-Accept"] = []string{base64.StdEncoding.EncodeToString(sum[:])}
	if u.protocol != "" {
		h["Sec-WebSocket-Protocol"] = []string{u.protocol}
	}
	if u.deflate {
		h["Sec-WebSocket-Extensions"] = []string{"permessage-deflate; server_no_context_takeover; client_no_context_takeover"}
	}
	var answer strings.Builder
	answer.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = h.Write(&answer) // a Builder takes everything
	answer.WriteString("\r\n")
	_ = nc.SetWriteDeadline(time.Now().Add(cfg.idleWrite))
	if _, err := nc.Write([]byte(answer.String())); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("answer the handshake: %w", err)
	}
	var buffered []byte
	if n := brw.Reader.Buffered(); n > 0 {
		buffered, _ = brw.Reader.Peek(n)
	}
	c := newWSConn(nc, buffered, cfg, maxMessage)
	c.deflate = u.deflate
	return c, nil
}
