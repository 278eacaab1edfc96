package rpc_test

import (
	"errors"
	"strings"
	"testing"

	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
)

func TestFieldPath(t *testing.T) {
	m := &bankv1.Everything{Text: "t", Int64: -7, Data: []byte{0xff}, Nested: &bankv1.Everything{Text: "n", Kind: bankv1.Account_KIND_SAVINGS}}
	md := m.ProtoReflect().Descriptor()
	for _, tc := range []struct{ path, want string }{
		{"text", "t"}, {"int64", "-7"}, {"data", "/w=="}, {"nested.text", "n"}, {"nested.kind", "KIND_SAVINGS"}, {"flag", "false"}, {"double", "0"},
	} {
		f, err := rpc.ParseFieldPath(md, tc.path)
		if err != nil {
			t.Errorf("%s: %v", tc.path, err)
		} else if got := f.Text(m.ProtoReflect()); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.path, got, tc.want)
		}
	}
	for path, want := range map[string]bool{"text": true, "int64": true, "nested.text": true, "flag": false, "nested.int64": false, "nested.nested.text": false} {
		f, err := rpc.ParseFieldPath(md, path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if got := f.Has(m.ProtoReflect()); got != want {
			t.Errorf("%s: there %v, want %v", path, got, want)
		}
	}
	for _, tc := range []struct {
		path, want string
		absent     bool
	}{
		{"txt", `has no field "txt"`, true},
		{"nested.txt", `has no field "txt"`, true},
		{"text.a", "has no fields", true},
		{"nested", "is a message", false},
		{"texts", "is a list or map", false},
		{"", `has no field ""`, true},
	} {
		if _, err := rpc.ParseFieldPath(md, tc.path); err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, rpc.ErrNoField) != tc.absent {
			t.Errorf("%q: %v, want %q", tc.path, err, tc.want)
		}
	}
}
