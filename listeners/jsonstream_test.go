package listeners

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestJSONStream(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want string // values joined by "|", then "!" and the code if it ends in an error
	}{
		{"", ""},
		{" \n\t", ""},
		{"{}", "{}"},
		{"{}\n{\"a\":1}\n", `{}|{"a":1}`},
		{"{}{}", "{}|{}"},
		{`[]`, ""},
		{`[{},{"a":[1,2]}]`, `{}|{"a":[1,2]}`},
		{` [ {} , {} ] `, `{}|{}`},
		{`"a" "b\"]" 1 2`, `"a"|"b\"]"|1|2`},
		{`[1,"x",null,[2]]`, `1|"x"|null|[2]`},
		{`{"a":"}\\"}`, `{"a":"}\\"}`},
		{`[{},]`, `{}!InvalidArgument`},
		{`[,]`, `!InvalidArgument`},
		{`[{}{}]`, `{}!InvalidArgument`},
		{`[{}`, `{}!InvalidArgument`},
		{`[{}] {}`, `{}!InvalidArgument`},
		{`{"a":`, `!InvalidArgument`},
		{`{"a":"\`, `!InvalidArgument`},
		{`}`, `!InvalidArgument`},
		{`{"k":"` + strings.Repeat("x", 100) + `"}`, `!ResourceExhausted`},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r },
			"bytes": iotest.OneByteReader,
			"data+EOF": func(r io.Reader) io.Reader {
				return iotest.DataErrReader(r)
			},
		} {
			if got := drainJSON(&jsonStream{r: wrap(strings.NewReader(tc.in)), max: 64}); got != tc.want {
				t.Errorf("%s: %q gives %q, want %q", name, tc.in, got, tc.want)
			}
		}
	}
}

func drainJSON(s *jsonStream) string {
	var out []string
	for {
		v, err := s.next()
		if errors.Is(err, io.EOF) {
			return strings.Join(out, "|")
		}
		if err != nil {
			return strings.Join(out, "|") + "!" + status.Code(err).String()
		}
		out = append(out, string(v))
	}
}

func TestJSONStreamPassesReadErrors(t *testing.T) {
	want := status.Error(codes.Aborted, "x")
	_, err := (&jsonStream{r: iotest.ErrReader(want), max: 64}).next()
	if !errors.Is(err, want) {
		t.Errorf("err = %v, want the reader's", err)
	}
}

func FuzzJSONStream(f *testing.F) {
	for _, s := range []string{"{}{}", `[{},"a"]`, `{"a":"\"}"} 1`, "[", `"\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		whole := drainJSON(&jsonStream{r: strings.NewReader(in), max: 1 << 10})
		cut := drainJSON(&jsonStream{r: iotest.OneByteReader(strings.NewReader(in)), max: 1 << 10})
		if whole != cut {
			t.Errorf("%q read at once gives %q, byte by byte %q", in, whole, cut)
		}
	})
}
