package trywrite_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"transom/rpc/trywrite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair are the two ends of a TCP connection.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if a, err = net.Dial("tcp", lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = lis.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return a, b
}

// TestOutput writes more than a socket takes at once: Try comes back, Finish brings the rest once the peer reads, in order.
func TestOutput(t *testing.T) {
	a, b := pair(t)
	o := trywrite.New(a, nil, nil, time.Minute)
	if !o.CanTry() {
		t.Fatal("a TCP connection cannot be tried")
	}
	var all []byte
	for i := range 32 << 20 {
		all = append(all, byte(i>>8))
	}
	rest, err := o.Try(all)
	if err != nil || len(rest) == 0 {
		t.Fatalf("%d bytes are left, %v", len(rest), err)
	}
	done := make(chan error, 1)
	go func() {
		done <- o.Finish(rest)
		_ = a.Close()
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes came, %v", len(got), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestStall has a peer that takes nothing, and one that Limit leaves no more time.
func TestStall(t *testing.T) {
	for _, limit := range []bool{false, true} {
		a, _ := pair(t)
		stall := 50 * time.Millisecond
		if limit {
			stall = time.Hour
		}
		o := trywrite.New(a, nil, nil, stall)
		rest, err := o.Try(make([]byte, 32<<20))
		if err != nil {
			t.Fatal(err)
		}
		if limit {
			time.AfterFunc(20*time.Millisecond, func() { o.Limit(time.Now()) })
		}
		if err := o.Finish(rest); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("limit %v: %v", limit, err)
		}
	}
}

// TestSealed passes on what is written until it is told to gather.
func TestSealed(t *testing.T) {
	a, b := pair(t)
	s := &trywrite.Sealed{Conn: a}
	if _, err := s.Write([]byte("hello ")); err != nil {
		t.Fatal(err)
	}
	s.Gather()
	o := trywrite.New(a, s, s, time.Minute)
	if rest, err := o.Try([]byte("world")); err != nil || len(rest) > 0 {
		t.Fatal(rest, err)
	}
	_, _ = s.Write([]byte("!"))
	if n := o.Pending(); n != 1 {
		t.Errorf("%d bytes wait, want 1", n)
	}
	if rest, err := o.Try(nil); err != nil || len(rest) > 0 {
		t.Fatal(rest, err)
	}
	if n := o.Pending(); n != 0 {
		t.Errorf("%d bytes wait, want none", n)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); string(got) != "hello world!" {
		t.Errorf("%s, %v", got, err)
	}
}
