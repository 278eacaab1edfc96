package h2server_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// renewer makes records of a TLS 1.3 client whose cipher suite is TLS_AES_128_GCM_SHA256, with KeyUpdate messages, which
// crypto/tls sends none of.
type renewer struct {
	t      *testing.T
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
	out    []byte
}

// dialRenewing does the handshake and returns the socket, from which nobody has read further and which takes little unread.
func dialRenewing(t *testing.T, addr string, trust *tls.Config) (net.Conn, *renewer) {
	t.Helper()
	small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // before it connects: later on it would only waste what comes
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10)
		})
		return errors.Join(err, failed)
	}}
	raw, err := small.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var keys bytes.Buffer
	trust.KeyLogWriter = &keys
	c := tls.Client(raw, trust)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if s := c.ConnectionState().CipherSuite; s != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("the cipher suite is %s; records are made here for AES, which crypto/tls prefers where the processor has it", tls.CipherSuiteName(s))
	}
	r := &renewer{t: t}
	for line := range strings.Lines(keys.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			r.secret, _ = hex.DecodeString(f[2])
		}
	}
	r.derive()
	return raw, r
}

// expand is HKDF-Expand-Label (RFC 8446 7.1).
func (r *renewer) expand(label string, n int) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(n))
	b = append(b, byte(len("tls13 ")+len(label)))
	b = append(b, "tls13 "+label+"\x00"...)
	key, err := hkdf.Expand(sha256.New, r.secret, string(b), n)
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}

// derive makes the keys of the secret (RFC 8446 7.3).
func (r *renewer) derive() {
	block, err := aes.NewCipher(r.expand("key", 16))
	if err != nil {
		r.t.Fatal(err)
	}
	if r.aead, err = cipher.NewGCM(block); err != nil {
		r.t.Fatal(err)
	}
	r.iv, r.seq = r.expand("iv", 12), 0
}

// record adds a record to out.
func (r *renewer) record(typ byte, content ...byte) {
	inner := append(slices.Clone(content), typ)
	head := []byte{23, 3, 3, 0, byte(len(inner) + r.aead.Overhead())}
	nonce := slices.Clone(r.iv)
	for i := range 8 {
		nonce[11-i] ^= byte(r.seq >> (8 * i))
	}
	r.seq++
	r.out = r.aead.Seal(append(r.out, head...), nonce, inner, head)
}

// renew adds as many KeyUpdates as crypto/tls takes in a row, each of which asks for one, and a byte of data.
func (r *renewer) renew(data byte) {
	for range 15 {
		r.record(22, 24, 0, 0, 1, 1)
		r.secret = r.expand("traffic upd", 32)
		r.derive()
	}
	r.record(23, data)
}

// Answers to KeyUpdate go out though HTTP/2 has nothing to say.
func TestKeyUpdate(t *testing.T) {
	_, addr, trust := serveTLS(t, config(http.HandlerFunc(echo)))
	raw, r := dialRenewing(t, addr, trust)
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	r.renew('P')
	if _, err := raw.Write(r.out); err != nil {
		t.Fatal(err)
	}
	for answers := 0; answers < 15; {
		var head [5]byte
		if _, err := io.ReadFull(raw, head[:]); err != nil {
			t.Fatalf("%d answers, %v", answers, err)
		}
		n := int64(binary.BigEndian.Uint16(head[3:]))
		if n == 22 { // as long as that of no frame that the server sends now
			answers++
		}
		if _, err := io.CopyN(io.Discard, raw, n); err != nil {
			t.Fatal(err)
		}
	}
}

// A client that asks for new keys again and again, and does not read the answers, is given up before they are much.
func TestKeyUpdateFlood(t *testing.T) {
	_, addr, trust := serveTLS(t, config(http.HandlerFunc(echo)))
	raw, r := dialRenewing(t, addr, trust)
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(3 * time.Minute)) // tens of thousands of keys are derived at both ends
	var data bytes.Buffer
	data.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&data, nil)
	_ = fr.WriteSettings()
	_ = fr.WriteSettingsAck()
	_ = fr.WriteRawFrame(0xfe, 0, 0, make([]byte, 16<<10)) // a frame that takes long to arrive
	sent := 0
	for _, b := range data.Bytes() {
		r.renew(b)
		if len(r.out) < 16<<10 {
			continue
		}
		n, err := raw.Write(r.out)
		if sent += n; err != nil {
			if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
				t.Errorf("after %d bytes the connection is still there", sent)
			}
			return
		}
		r.out = r.out[:0]
	}
	t.Errorf("all %d bytes are taken", sent)
}
