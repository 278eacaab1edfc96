package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newIssuer makes one without an authority; e2e has one.
func newIssuer(t *testing.T, storage string) *Issuer {
	t.Helper()
	i, err := New(Config{Names: []string{"a.example", "b.example"}, Directory: "https://ca.example:14000/Dir", Storage: storage}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Prepare(); err != nil {
		t.Fatal(err)
	}
	return i
}

// TestNew reads storage that is not there, which makes nothing, and storage that is no good.
func TestNew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if _, err := New(Config{Names: []string{"a.example"}, Storage: dir}, slog.Default()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("New made %s: %v", dir, err)
	}
	i := newIssuer(t, dir)
	if want := filepath.Join(dir, "ca.example-14000-dir"); i.store.dir != want {
		t.Errorf("storage is %s, want %s", i.store.dir, want)
	}
	for _, c := range []struct {
		file, content string
		mode          os.FileMode
		want          string
	}{
		{"a.example.pem", "nothing", 0o600, "failed to find any PEM data"},
		{"a.example.pem", "nothing", 0o640, "chmod 600 it"},
		{accountKey, "nothing", 0o604, "chmod 600 it"},
	} {
		path := filepath.Join(i.store.dir, c.file)
		if err := os.WriteFile(path, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := New(i.cfg, slog.Default())
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s of mode %v: %v, want %q", c.file, c.mode, err, c.want)
		}
		_ = os.Remove(path)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	below, err := New(Config{Names: []string{"a.example"}, Storage: filepath.Join(dir, "file", "below")}, slog.Default())
	if err == nil {
		err = below.Prepare()
	}
	if err == nil || !strings.Contains(err.Error(), "storage: ") {
		t.Errorf("storage below a file: %v", err)
	}
	if _, err := New(Config{Names: []string{"a.example"}, CAFile: filepath.Join(dir, "file")}, slog.Default()); err == nil || !strings.Contains(err.Error(), "no certificate in it") {
		t.Errorf("a CA file without a certificate: %v", err)
	}
}

// TestAccount keeps one key, and what the authority said of it.
func TestAccount(t *testing.T) {
	i := newIssuer(t, t.TempDir())
	first, err := i.store.account()
	if err != nil || first.Location != "" {
		t.Fatalf("%v, %v", first, err)
	}
	first.Location = "https://ca.example/account/7"
	if err := i.store.setAccount(first); err != nil {
		t.Fatal(err)
	}
	again, err := i.account(t.Context(), "")
	if err != nil || again.Location != first.Location {
		t.Errorf("%v, %v", again.Location, err)
	}
	a, _ := first.Thumbprint()
	if b, _ := again.Thumbprint(); a != b {
		t.Error("the account's key changed")
	}
	for _, bad := range []string{"", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(filepath.Join(i.store.dir, accountKey), []byte("x"+bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := i.store.account(); err == nil || !strings.Contains(err.Error(), accountKey) {
			t.Errorf("account key %q: %v", bad, err)
		}
	}
}

// TestLock lets one process at a time get a certificate; the other gives up with its context.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	one, two := newIssuer(t, dir), newIssuer(t, dir)
	unlock, err := one.store.lock(t.Context(), "a.example")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := two.store.lock(ctx, "a.example"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second lock: %v", err)
	}
	if other, err := two.store.lock(ctx, "b.example"); err != nil {
		t.Errorf("the lock of another name: %v", err)
	} else {
		other()
	}
	unlock()
	if unlock, err = two.store.lock(t.Context(), "a.example"); err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestChallenges answers for names and tokens that are being checked, in every process that shares the storage.
func TestChallenges(t *testing.T) {
	dir := t.TempDir()
	one, two := newIssuer(t, dir), newIssuer(t, dir)
	hello := &tls.ClientHelloInfo{ServerName: "A.example", SupportedProtos: []string{Protocol}}
	if _, err := two.Challenge(hello); err == nil {
		t.Error("a challenge that nobody asked for is answered")
	}
	c := acme.Challenge{Token: "tok_en-1", KeyAuthorization: "tok_en-1.key", Identifier: acme.Identifier{Type: "dns", Value: "a.example"}}
	for kind, s := range one.client.ChallengeSolvers {
		if err := s.Present(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	if got, ok := two.KeyAuthorization("tok_en-1"); !ok || got != "tok_en-1.key" {
		t.Errorf("http-01: %q, %v", got, ok)
	}
	if cert, err := two.Challenge(hello); err != nil || cert == nil {
		t.Errorf("tls-alpn-01: %v", err)
	}
	if _, err := two.Challenge(&tls.ClientHelloInfo{ServerName: "../a.example"}); err == nil {
		t.Error("a name that is none of ours is answered")
	}
	bad := c
	bad.Token = "../../escape"
	for kind, s := range one.client.ChallengeSolvers {
		if err := s.CleanUp(t.Context(), c); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if err := s.Present(t.Context(), bad); err == nil {
			t.Errorf("%s: the token %q is taken", kind, bad.Token)
		}
	}
	if _, ok := two.KeyAuthorization("tok_en-1"); ok {
		t.Error("a challenge that is over is answered")
	}
}

// TestCertificate picks by name.
func TestCertificate(t *testing.T) {
	i := newIssuer(t, t.TempDir())
	if pair, err := i.Certificate(&tls.ClientHelloInfo{ServerName: "c.example"}); pair != nil || err != nil {
		t.Errorf("another's name: %v, %v, want nothing, so that other certificates are looked at", pair, err)
	}
	for _, name := range []string{"", "a.example", "B.example."} {
		if _, err := i.Certificate(&tls.ClientHelloInfo{ServerName: name}); err == nil || !strings.Contains(err.Error(), "no certificate for") {
			t.Errorf("%q before there is a certificate: %v", name, err)
		}
	}
	want := &tls.Certificate{}
	i.byName["a.example"].pair.Store(want)
	for _, name := range []string{"", "A.Example"} {
		if got, err := i.Certificate(&tls.ClientHelloInfo{ServerName: name}); got != want || err != nil {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
}

// TestPause keeps within what authorities allow of failed validations, five an hour.
func TestPause(t *testing.T) {
	var first time.Duration
	for n := 1; n <= 5; n++ {
		first += pause(n)
	}
	if first < time.Hour {
		t.Errorf("six attempts within %v", first)
	}
	for n := 1; n < 100; n++ {
		if d := pause(n); d < 10*time.Second || d > 6*time.Hour {
			t.Errorf("after %d failures the pause is %v", n, d)
		}
	}
}

// FuzzKeyAuthorization answers nothing but what is being asked for, whatever the path.
func FuzzKeyAuthorization(f *testing.F) {
	for _, s := range []string{"", "token", "../account.key", "..%2faccount.key", "http-token", "a/b", "a\x00b", strings.Repeat("a", 300), "."} {
		f.Add(s)
	}
	dir := f.TempDir()
	i, err := New(Config{Names: []string{"a.example"}, Storage: dir}, slog.Default())
	if err == nil {
		err = i.Prepare()
	}
	if err == nil {
		_, err = i.store.account()
	}
	if err == nil {
		err = i.store.write(httpChallenge("token"), []byte("yes"))
	}
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, token string) {
		if got, ok := i.KeyAuthorization(token); ok != (token == "token") || ok && got != "yes" {
			t.Errorf("KeyAuthorization(%q) = %q, %v", token, got, ok)
		}
	})
}
