package main

import (
	"os"
	"strconv"
	"testing"
)

// TestInheritNothing sees that numbers of sockets that are none are none.
func TestInheritNothing(t *testing.T) {
	for _, n := range []string{"0", "-1", "x", ""} {
		t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		t.Setenv("LISTEN_FDS", n)
		if _, err := inherit(); err != nil {
			t.Errorf("LISTEN_FDS=%q: %v", n, err)
		}
	}
}
