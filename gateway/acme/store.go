package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"golang.org/x/sys/unix"
)

// store is a directory that keeps an account, certificates with their keys, and the challenges that are being solved. Files
// are replaced in one step, and locks are the kernel's, so that several processes may share it. Only the user that transom
// runs as can read it.
//
//	account.key      the account's private key (PEM)
//	account.json     what the authority said of the account
//	NAME.pem         a certificate chain, the leaf first, and its private key
//	NAME.lock        held while a certificate is got; account.lock likewise
//	challenges/      what to answer the authority, by token or by name
type store struct{ dir string }

// newStore is the part of a storage directory that belongs to one authority, so that certificates of a test authority are
// not taken for those of another. It makes nothing.
func newStore(storage, directory string) (store, error) {
	u, err := url.Parse(directory)
	if err != nil {
		return store{}, fmt.Errorf("directory: %w", err)
	}
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(u.Host+u.Path))
	return store{filepath.Join(storage, strings.Trim(plain, "-."))}, nil
}

const challengesDir = "challenges"

// prepare makes the directories and sees that files can be made in them.
func (s store) prepare() error {
	if err := os.MkdirAll(filepath.Join(s.dir, challengesDir), 0o700); err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	f, err := os.CreateTemp(s.dir, ".try-")
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	_ = f.Close()
	return os.Remove(f.Name())
}

// write replaces a file.
func (s store) write(name string, content []byte) error {
	f, err := os.CreateTemp(s.dir, ".new-") // of mode 0600
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("storage: %w", err)
	}
	return nil
}

// readSecret reads a file that nobody else may read; nil if there is none.
func (s store) readSecret(name string) ([]byte, error) {
	path := filepath.Join(s.dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("storage: others may read or write %s (mode %04o), which holds a private key; chmod 600 it", path, info.Mode().Perm())
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	return b, nil
}

// lockWait is how often a lock that another process holds is tried again.
const lockWait = 500 * time.Millisecond

// lock waits until nobody else has the lock of name, or ctx ends.
func (s store) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
		if err = sleep(ctx, lockWait); err != nil {
			break
		}
	}
	_ = f.Close()
	return nil, fmt.Errorf("storage: lock of %s: %w", name, err)
}

// certificate reads a certificate with its key; nil if there is none.
func (s store) certificate(name string) (*tls.Certificate, error) {
	b, err := s.readSecret(name + ".pem")
	if b == nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil, fmt.Errorf("storage: %s: %w", filepath.Join(s.dir, name+".pem"), err)
	}
	return &pair, nil
}

// setCertificate keeps a certificate chain in PEM, with its key.
func (s store) setCertificate(name string, chain []byte, key crypto.Signer) error {
	k, err := keyPEM(key)
	if err != nil {
		return err
	}
	return s.write(name+".pem", slices.Concat(chain, []byte{'\n'}, k))
}

const (
	accountKey  = "account.key"
	accountFile = "account.json"
)

// account reads the account. Without one it has a new key, which is kept, and no Location.
func (s store) account() (acme.Account, error) {
	var a acme.Account
	b, err := s.readSecret(accountKey)
	if err != nil {
		return a, err
	}
	if b == nil {
		key, err := newKey()
		if err == nil {
			a.PrivateKey = key
			b, err = keyPEM(key)
		}
		if err == nil {
			err = s.write(accountKey, b)
		}
		return a, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return a, fmt.Errorf("storage: %s has no PEM block", filepath.Join(s.dir, accountKey))
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return a, fmt.Errorf("storage: %s: %w", filepath.Join(s.dir, accountKey), err)
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return a, fmt.Errorf("storage: %s: a %T can't sign", filepath.Join(s.dir, accountKey), k)
	}
	if b, err = os.ReadFile(filepath.Join(s.dir, accountFile)); err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return a, fmt.Errorf("storage: %s: %w", filepath.Join(s.dir, accountFile), err)
	}
	a.PrivateKey = signer
	return a, nil
}

// setAccount keeps what the authority said of the account; the key is kept already.
func (s store) setAccount(a acme.Account) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return s.write(accountFile, b)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// A challenge's answer is in a file of the name that who asks knows: the token, or the name to have a certificate for.
func httpChallenge(token string) string { return filepath.Join(challengesDir, "http-"+token) }
func alpnChallenge(name string) string  { return filepath.Join(challengesDir, "alpn-"+name) }

// maxToken is longer than any authority's.
const maxToken = 256

// isToken reports whether a token is one (RFC 8555, 8.1: base64url, so never a path).
func isToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// challenge reads what to answer.
func (s store) challenge(file string) (string, bool) {
	b, err := os.ReadFile(filepath.Join(s.dir, file))
	return string(b), err == nil
}

// solver keeps answers where every process that shares the storage finds them.
type solver struct {
	store store
	file  func(acme.Challenge) string
}

// Present implements acmez.Solver.
func (s solver) Present(_ context.Context, c acme.Challenge) error {
	if !isToken(c.Token) {
		return fmt.Errorf("the authority's token %q is not one", c.Token)
	}
	return s.store.write(s.file(c), []byte(c.KeyAuthorization))
}

// CleanUp implements acmez.Solver.
func (s solver) CleanUp(_ context.Context, c acme.Challenge) error {
	if !isToken(c.Token) {
		return nil
	}
	return os.Remove(filepath.Join(s.store.dir, s.file(c)))
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
