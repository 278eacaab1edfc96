package transform_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	"transom/policy/transform"
	bankv1 "transom/proto/bank/v1"
	"transom/rpc"
	"transom/transcoder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// everything is a message type that has a field of every kind.
func everything() protoreflect.MessageDescriptor {
	return (&bankv1.Everything{}).ProtoReflect().Descriptor()
}

// alice is a caller.
func alice() *rpc.Principal {
	return &rpc.Principal{
		Consumer: "shop", Provider: "main", Plan: "gold", Scopes: []string{"a", "b"}, Groups: []string{"g", "h"},
		Claims: map[string]any{
			"sub": "alice", "age": 42.0, "big": 1e15, "half": 0.5, "ok": true, "org": map[string]any{"id": "7", "name": "Öl 50%"},
			"dotted.name": "d", "aud": []any{"bank"}, "empty": "", "kind": "KIND_SAVINGS",
		},
	}
}

// run makes a call with a chain of middleware around h.
func run(t testing.TB, p *rpc.Principal, header metadata.MD, msgs [][]byte, h rpc.Handler, mws ...rpc.Middleware) (*rpc.Result, error) {
	t.Helper()
	var in []rpc.Message
	for _, b := range msgs {
		in = append(in, rpc.NewMessage(b))
	}
	as := func(next rpc.Handler) rpc.Handler {
		return func(ctx context.Context, call *rpc.Call) error {
			call.Principal = p
			call.Peer.Addr = netip.MustParseAddrPort("192.0.2.7:1000")
			call.Info.RequestID = "r-1"
			return next(ctx, call)
		}
	}
	return rpc.Local(t.Context(), rpc.Chain(h, append([]rpc.Middleware{as}, mws...)...), descriptors.Opaque("/bank.v1.Accounts/Get"), header, in...)
}

// edits compiles cfg.
func edits(t testing.TB, cfg transform.EditsConfig) *transform.Edits {
	t.Helper()
	cfg.Reserved, cfg.Identity = transcoder.Reserved, transcoder.Identity
	e, err := transform.NewEdits(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// seen is the metadata that a backend gets.
func seen(t *testing.T, p *rpc.Principal, header metadata.MD, cfg transform.EditsConfig) metadata.MD {
	t.Helper()
	mw, err := transform.Request(transform.RequestConfig{Edits: edits(t, cfg)})
	if err != nil {
		t.Fatal(err)
	}
	var got metadata.MD
	if _, err := run(t, p, header, nil, func(_ context.Context, call *rpc.Call) error {
		got = call.Header
		return nil
	}, mw); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTemplates(t *testing.T) {
	header := metadata.MD{"x-in": {"a", "b"}, "x-one": {"1"}}
	for _, tc := range []struct {
		text string
		who  *rpc.Principal
		want string // "-" for no value
	}{
		{"", nil, ""},
		{"plain", nil, "plain"},
		{"{{{{}}", nil, "{{}"},
		{"{consumer}", alice(), "shop"},
		{"{consumer}", nil, "-"},
		{"of {consumer}!", alice(), "of shop!"},
		{"of {consumer}!", nil, "-"},
		{"{subject}/{provider}/{plan}", alice(), "alice/main/gold"},
		{"{subject}", &rpc.Principal{Consumer: "till"}, "till"},
		{"{plan}", &rpc.Principal{Consumer: "till"}, "-"},
		{"{scopes};{groups}", alice(), "a b;g,h"},
		{"{scopes};{groups}", &rpc.Principal{Scopes: []string{"a b", "c"}, Groups: []string{"x,admins", "50%", "Ö"}}, "a%20b c;x%2Cadmins,50%25,%C3%96"},
		{"{groups}", nil, "-"},
		{"{claims.age} {claims.big} {claims.half} {claims.ok}", alice(), "42 1000000000000000 0.5 true"},
		{"{claims.org.id}{claims.dotted.name}", alice(), "7d"},
		{"{claims.org.name}", alice(), "%C3%96l 50%25"},
		{"{claims.org}", alice(), "-"},
		{"{claims.aud}", alice(), "-"},
		{"{claims.empty}", alice(), "-"},
		{"{claims.none.x}", alice(), "-"},
		{"{claims.sub}", nil, "-"},
		{"{method} {service}", nil, "bank.v1.Accounts.Get bank.v1.Accounts"},
		{"{request_id} {peer.address}", nil, "r-1 192.0.2.7"},
		{"{metadata.x-in}", nil, "a,b"},
		{"{metadata.x-none}", nil, "-"},
	} {
		got := "-"
		if v := seen(t, tc.who, header.Copy(), transform.EditsConfig{Set: map[string]string{"x-out": tc.text}})["x-out"]; len(v) == 1 {
			got = v[0]
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.text, got, tc.want)
		}
	}
	if got := seen(t, alice(), nil, transform.EditsConfig{Set: map[string]string{"x-bin": "Ö {claims.org.name}"}})["x-bin"]; !slices.Equal(got, []string{"Ö Öl 50%"}) {
		t.Errorf("binary: %q", got)
	}
	if got := seen(t, &rpc.Principal{Groups: []string{"x,admins", "Ö%"}}, nil, transform.EditsConfig{Set: map[string]string{"x-bin": "{groups}"}})["x-bin"]; !slices.Equal(got, []string{"x%2Cadmins,Ö%25"}) {
		t.Errorf("binary groups: %q", got)
	}
	for text, want := range map[string]string{
		"{nobody}":           "column 2: there is no {nobody}; ",
		"ä{nobody}":          "column 3: there is no {nobody}; ",
		"{":                  `column 1: "{" without "}"`,
		"a}":                 `column 2: "}" without "{"`,
		"{}":                 "column 2: there is no {}",
		"{claims.}":          "column 2: there is no {claims.}",
		"{metadata.X-Up}":    `column 2: "X-Up" is no name of metadata`,
		"{metadata.x-a-bin}": `column 2: "x-a-bin" is no name of metadata in text`,
	} {
		if _, err := transform.NewTemplate(text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"", "{consumer}", "{{x}}", "a{claims.a.b}c", "{metadata.x}", "}", "{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tmpl, err := transform.NewTemplate(s)
		if err != nil && (tmpl != nil || !strings.HasPrefix(err.Error(), "column ")) {
			t.Errorf("%q: %v, %v", s, tmpl, err)
		}
		if err == nil && !strings.ContainsAny(s, "{}") {
			e, err := transform.NewEdits(transform.EditsConfig{Set: map[string]string{"x-bin": s}, Reserved: transcoder.Reserved, Identity: transcoder.Identity})
			if err != nil {
				t.Errorf("%q: %v", s, err)
			}
			mw, _ := transform.Request(transform.RequestConfig{Edits: e})
			_, _ = run(t, nil, nil, nil, func(_ context.Context, call *rpc.Call) error {
				if got := call.Header["x-bin"]; len(got) != 1 || got[0] != s {
					t.Errorf("%q became %q", s, got)
				}
				return nil
			}, mw)
		}
	})
}

func TestEdits(t *testing.T) {
	for _, tc := range []struct {
		what     string
		in, want metadata.MD
		cfg      transform.EditsConfig
	}{
		{"set", metadata.MD{"x-a": {"1"}, "x-b": {"2"}}, metadata.MD{"x-a": {"shop"}, "x-b": {"2"}}, transform.EditsConfig{Set: map[string]string{"x-a": "{consumer}"}}},
		{"set in none", nil, metadata.MD{"x-a": {"v"}}, transform.EditsConfig{Set: map[string]string{"x-a": "v"}}},
		{"set without a value", metadata.MD{"x-a": {"spoofed"}}, metadata.MD{}, transform.EditsConfig{Set: map[string]string{"x-a": "{claims.none}"}}},
		{"set over aliases", metadata.MD{"x_a": {"1"}, "x.a": {"2"}, "x-a": {"3"}, "xa": {"4"}}, metadata.MD{"x-a": {"v"}, "xa": {"4"}}, transform.EditsConfig{Set: map[string]string{"x-a": "v"}}},
		{"set an alias", metadata.MD{"x_a": {"1"}, "x-a": {"3"}}, metadata.MD{"x_a": {"v"}}, transform.EditsConfig{Set: map[string]string{"x_a": "v"}}},
		{"add", metadata.MD{"x-a": {"1"}}, metadata.MD{"x-a": {"1", "2"}}, transform.EditsConfig{Add: map[string]string{"x-a": "2"}}},
		{"add without a value", metadata.MD{"x-a": {"1"}}, metadata.MD{"x-a": {"1"}}, transform.EditsConfig{Add: map[string]string{"x-a": "{claims.none}"}}},
		{"remove", metadata.MD{"x-a": {"1"}, "x_a": {"2"}, "x-b": {"3"}}, metadata.MD{"x-b": {"3"}}, transform.EditsConfig{Remove: []string{"x-a"}}},
		{"remove identity", metadata.MD{"x-transom-consumer": {"1"}}, metadata.MD{}, transform.EditsConfig{Remove: []string{"x-transom-consumer"}}},
		{"rename", metadata.MD{"x-a": {"1", "2"}, "x-b": {"3"}}, metadata.MD{"x-b": {"1", "2"}}, transform.EditsConfig{Rename: map[string]string{"x-a": "x-b"}}},
		{"rename what is not there", metadata.MD{"x-b": {"spoofed"}}, metadata.MD{}, transform.EditsConfig{Rename: map[string]string{"x-a": "x-b"}}},
		{"rename in a row", metadata.MD{"x-a": {"1"}, "x-b": {"2"}}, metadata.MD{"x-b": {"1"}, "x-c": {"2"}}, transform.EditsConfig{Rename: map[string]string{"x-a": "x-b", "x-b": "x-c"}}},
		{"swap", metadata.MD{"x-a": {"1"}, "x-b": {"2"}}, metadata.MD{"x-b": {"1"}, "x-a": {"2"}}, transform.EditsConfig{Rename: map[string]string{"x-a": "x-b", "x-b": "x-a"}}},
		{"move by template", metadata.MD{"x-a": {"1"}}, metadata.MD{"x-b": {"was 1"}}, transform.EditsConfig{Remove: []string{"x-a"}, Set: map[string]string{"x-b": "was {metadata.x-a}"}}},
		{"remove and add", metadata.MD{"x-a": {"1"}}, metadata.MD{"x-a": {"2"}}, transform.EditsConfig{Remove: []string{"x-a"}, Add: map[string]string{"x-a": "2"}}},
	} {
		if got := seen(t, alice(), tc.in, tc.cfg); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.what, got, tc.want)
		}
	}
	// Values that calls share are not written to.
	shared := make([]string, 1, 4)
	shared[0] = "1"
	seen(t, nil, metadata.MD{"x-a": shared}, transform.EditsConfig{Add: map[string]string{"x-a": "2"}})
	if shared[:2][1] != "" {
		t.Error("add writes into a slice that is not its own")
	}
	if e, err := transform.NewEdits(transform.EditsConfig{}); e != nil || err != nil {
		t.Errorf("no edits: %v, %v", e, err)
	}
}

func TestEditFaults(t *testing.T) {
	_, err := transform.NewEdits(transform.EditsConfig{
		Set:      map[string]string{"X-Up": "v", "x-transom-consumer": "v", "x_transom.consumer": "v", "grpc-timeout": "v", "x-a": "{no}", "x-b": "ü", "x-c": "v", "x_c": "w"},
		Add:      map[string]string{"content-type": "v", "x-transom-plan": "v"},
		Remove:   []string{"x-ok", "te", ""},
		Rename:   map[string]string{"x-d": "x-transom-groups", "x-e": "x-f", "x-g": "x-f", "x-transom-plan": "x-plan", ":path": "x-p"},
		Reserved: transcoder.Reserved, Identity: transcoder.Identity,
	})
	var got []string
	for _, err := range err.(interface{ Unwrap() []error }).Unwrap() {
		var f *transform.Fault
		if !errors.As(err, &f) {
			t.Fatalf("%v is no Fault", err)
		}
		text, _, _ := strings.Cut(f.Error(), "\n")
		got = append(got, text)
	}
	slices.Sort(got)
	want := []string{
		`add[content-type]: content-type belongs to HTTP or gRPC themselves and cannot be changed`,
		`add[x-transom-plan]: x-transom-plan is one of the names in which only authentication says who calls`,
		`remove[1]: te belongs to HTTP or gRPC themselves and cannot be changed`,
		`remove[2]: "" is no name of metadata, which has lower-case letters, digits, dots, - and _`,
		`rename[:path]: ":path" is no name of metadata, which has lower-case letters, digits, dots, - and _`,
		`rename[x-d]: x-transom-groups is one of the names in which only authentication says who calls`,
		`rename[x-g]: x-f is given twice, the other time as x-f`,
		`set[X-Up]: "X-Up" is no name of metadata, which has lower-case letters, digits, dots, - and _`,
		`set[grpc-timeout]: grpc-timeout belongs to HTTP or gRPC themselves and cannot be changed`,
		`set[x-a]: column 2: there is no {no}; there are consumer, subject, provider, plan, scopes, groups, claims.PATH, method, service, request_id, peer.address and metadata.NAME`,
		`set[x-b]: "ü": metadata cannot carry 'ü'; a name that ends in -bin can`,
		`set[x-transom-consumer]: x-transom-consumer is one of the names in which only authentication says who calls`,
		`set[x_c]: x_c is given twice, the other time as x-c`,
		`set[x_transom.consumer]: x_transom.consumer is one of the names in which only authentication says who calls`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("faults\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// answering sends a header, messages and a trailer, and ends with err.
func answering(header, trailer metadata.MD, err error, msgs ...[]byte) rpc.Handler {
	return func(ctx context.Context, call *rpc.Call) error {
		if header != nil {
			if err := call.Stream.SendHeader(header); err != nil {
				return err
			}
		}
		for _, b := range msgs {
			if err := call.Stream.Send(ctx, rpc.NewMessage(b)); err != nil {
				return err
			}
		}
		if trailer != nil {
			call.Stream.SetTrailer(trailer)
		}
		if err != nil {
			call.Info.Fail(rpc.SourceUpstream)
		}
		return err
	}
}

func TestResponseMetadata(t *testing.T) {
	mw := transform.Response(transform.ResponseConfig{
		Header:  edits(t, transform.EditsConfig{Set: map[string]string{"x-who": "{consumer}"}, Remove: []string{"x-internal"}, Rename: map[string]string{"x-old": "x-new"}}),
		Trailer: edits(t, transform.EditsConfig{Set: map[string]string{"x-end": "{method}"}, Remove: []string{"x-cost"}}),
	})
	const end = "bank.v1.Accounts.Get"
	boom := status.Error(codes.NotFound, "no")
	for _, tc := range []struct {
		what            string
		h               rpc.Handler
		header, trailer metadata.MD
		refusal         metadata.MD // what comes with the error
	}{
		{
			"an answer", answering(metadata.MD{"x-internal": {"1"}, "x-old": {"2"}}, metadata.MD{"x-cost": {"3"}, "x-t": {"4"}}, nil, []byte{}),
			metadata.MD{"x-who": {"shop"}, "x-new": {"2"}},
			metadata.MD{"x-t": {"4"}, "x-end": {end}},
			nil,
		},
		{"no header", answering(nil, nil, nil, []byte{}), metadata.MD{"x-who": {"shop"}}, metadata.MD{"x-end": {end}}, nil},
		{"no answer", answering(nil, nil, nil), metadata.MD{"x-who": {"shop"}}, metadata.MD{"x-end": {end}}, nil},
		{
			"an error", answering(nil, metadata.MD{"x-internal": {"1"}, "x-old": {"2"}, "x-cost": {"3"}, "x-t": {"4"}}, boom),
			nil,
			metadata.MD{"x-new": {"2"}, "x-t": {"4"}, "x-end": {end}},
			metadata.MD{"x-who": {"shop"}},
		},
		{
			"a refusal", answering(nil, nil, rpc.WithHeader(boom, metadata.MD{"x-internal": {"1"}, "x-old": {"2"}, "retry-after": {"1"}})),
			nil,
			metadata.MD{"x-end": {end}},
			metadata.MD{"x-who": {"shop"}, "x-new": {"2"}, "retry-after": {"1"}},
		},
		{
			"a late error", answering(metadata.MD{"x-internal": {"1"}}, metadata.MD{"x-cost": {"3"}}, boom, []byte{}),
			metadata.MD{"x-who": {"shop"}},
			metadata.MD{"x-end": {end}},
			nil,
		},
	} {
		r, err := run(t, alice(), nil, nil, tc.h, mw)
		if !reflect.DeepEqual(r.Header, tc.header) || !reflect.DeepEqual(r.Trailer, tc.trailer) || !reflect.DeepEqual(rpc.HeaderOf(err), tc.refusal) {
			t.Errorf("%s: header %v, trailer %v, refusal %v; want %v, %v, %v", tc.what, r.Header, r.Trailer, rpc.HeaderOf(err), tc.header, tc.trailer, tc.refusal)
		}
	}
	if transform.Response(transform.ResponseConfig{}) != nil {
		t.Error("nothing to do is something")
	}
}

func TestErrors(t *testing.T) {
	rule := func(cfg transform.ErrorConfig) *transform.ErrorRule {
		r, err := transform.NewErrorRule(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	mw := transform.Response(transform.ResponseConfig{Errors: []*transform.ErrorRule{
		rule(transform.ErrorConfig{Codes: []codes.Code{codes.NotFound}, To: codes.PermissionDenied, Message: "not for {consumer}"}),
		rule(transform.ErrorConfig{Codes: []codes.Code{codes.Aborted}, KeepDetails: true, Message: "try again"}),
		rule(transform.ErrorConfig{Codes: []codes.Code{codes.Internal, codes.Unknown}, Message: "something went wrong: {request_id}"}),
		rule(transform.ErrorConfig{Codes: []codes.Code{codes.DataLoss}}),
	}})
	failure := func(code codes.Code) error {
		st, err := status.New(code, "row 7 of table x").WithDetails(&errdetails.DebugInfo{Detail: "secret"})
		if err != nil {
			t.Fatal(err)
		}
		return rpc.WithHeader(fmt.Errorf("backend: %w", st.Err()), metadata.MD{"retry-after": {"1"}})
	}
	for _, tc := range []struct {
		in, out codes.Code
		msg     string
		details int
	}{
		{codes.NotFound, codes.PermissionDenied, "not for shop", 0},
		{codes.Aborted, codes.Aborted, "try again", 1},
		{codes.Internal, codes.Internal, "something went wrong: r-1", 0},
		{codes.Unknown, codes.Unknown, "something went wrong: r-1", 0},
		{codes.DataLoss, codes.DataLoss, "row 7 of table x", 0},
		{codes.FailedPrecondition, codes.FailedPrecondition, "row 7 of table x", 1},
	} {
		_, err := run(t, alice(), nil, nil, answering(nil, nil, failure(tc.in)), mw)
		st := rpc.StatusOf(err)
		if st.Code() != tc.out || st.Message() != tc.msg || len(st.Details()) != tc.details || rpc.HeaderOf(err)["retry-after"] == nil {
			t.Errorf("%v: %v %q, %d details, %v; want %v %q, %d", tc.in, st.Code(), st.Message(), len(st.Details()), rpc.HeaderOf(err), tc.out, tc.msg, tc.details)
		}
		if !strings.Contains(err.Error(), "row 7") {
			t.Errorf("the log does not have what it was: %v", err)
		}
	}
	// What the gateway refuses is not touched.
	refuse := func(_ context.Context, call *rpc.Call) error {
		call.Info.Fail(rpc.SourceClient)
		return status.Error(codes.NotFound, "own")
	}
	if _, err := run(t, alice(), nil, nil, refuse, mw); status.Code(err) != codes.NotFound {
		t.Errorf("a refusal became %v", err)
	}
	if _, err := transform.NewErrorRule(transform.ErrorConfig{Message: "{x}"}); err == nil {
		t.Error("a bad template passes")
	}
}

// received runs mw and returns the messages that the backend gets.
func received(t testing.TB, p *rpc.Principal, header metadata.MD, mw rpc.Middleware, msgs ...[]byte) ([][]byte, error) {
	t.Helper()
	var got [][]byte
	_, err := run(t, p, header, msgs, func(ctx context.Context, call *rpc.Call) error {
		for {
			m, err := call.Stream.Recv(ctx)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			got = append(got, slices.Clone(m.Bytes()))
			m.Release()
		}
	}, mw)
	return got, err
}
