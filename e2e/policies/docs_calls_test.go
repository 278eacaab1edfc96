package policies_test

import (
	"encoding/base64"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"transom/transcoder"
)

// TestDocumentedCalls makes the calls of docs/policies.md, each under the example above it.
func TestDocumentedCalls(t *testing.T) {
	text, err := os.ReadFile(policiesDoc)
	if err != nil {
		t.Fatal(err)
	}
	id, as := startOIDC(t), startIntrospector(t)
	_, authz := startAuthorizer(t)
	values := strings.NewReplacer(
		"$TOKEN", id.token(t, nil), "$OUTSIDER", id.token(t, map[string]any{"groups": nil, "scope": "none"}), "$OPAQUE", "opaque-of-bob",
		"$PASSWORD", base64.StdEncoding.EncodeToString([]byte("ali:open sesame")),
	)
	servers := strings.NewReplacer(
		`issuer: "https://id.example"`, `outbound: {private: true}, issuer: "`+id.URL+`"`,
		`url: "https://id.example/introspect"`, `outbound: {private: true}, url: "`+as.URL+`"`,
		`"dns:///authz:9001"`, `"static:///`+authz+`"`,
	)
	var heading, config string
	examples := 0
	for lines := strings.Split(string(text), "\n"); len(lines) > 0; lines = lines[1:] {
		if h, ok := strings.CutPrefix(lines[0], "#"); ok {
			heading = strings.Trim(h, "# ")
			heading, _, _ = strings.Cut(heading, ":")
		}
		kind, ok := strings.CutPrefix(lines[0], "```")
		if !ok {
			continue
		}
		var block []string
		for lines = lines[1:]; lines[0] != "```"; lines = lines[1:] {
			block = append(block, lines[0])
		}
		if kind == "yaml" {
			config = "\n" + servers.Replace(strings.Join(block, "\n"))
			continue
		}
		if kind != "calls" {
			continue
		}
		examples++
		t.Run(heading, func(t *testing.T) {
			p := start(t, withBanks(t, config))
			for _, line := range block {
				d := parseCall(t, line, values)
				if d.path != "" {
					d.judge(t, callPath(t, p, d.path, d.header))
					continue
				}
				everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
					d.judge(t, call(t, p, d.header))
				})
			}
		})
	}
	if examples != 17 {
		t.Errorf("%d examples were run, want 17", examples)
	}
}

// documentedCall is a line of a block of calls: "path header: value | CODE what", all but the bar and the code optional.
type documentedCall struct {
	line   string
	path   string // of a call by REST alone
	header map[string]string
	code   codes.Code
	// what is the reason of an error; of OK nothing, "from SERVER", "with NAME: VALUE" or "has NAME: VALUE".
	what string
}

func parseCall(t *testing.T, line string, values *strings.Replacer) documentedCall {
	t.Helper()
	d := documentedCall{line: line, header: map[string]string{}}
	left, right, ok := strings.Cut(line, "|")
	if left = strings.TrimSpace(left); strings.HasPrefix(left, "/") {
		d.path, left, _ = strings.Cut(left, " ")
	}
	if name, value, ok := strings.Cut(left, ": "); ok {
		d.header[strings.TrimSpace(name)] = values.Replace(value)
	}
	var name string
	name, d.what, _ = strings.Cut(strings.TrimSpace(right), " ")
	for d.code = codes.OK; d.code <= codes.Unauthenticated; d.code++ {
		if ok && transcoder.CodeName(d.code) == name {
			return d
		}
	}
	t.Fatalf("%q is no call", line)
	return d
}

// judge checks what became of the call.
func (d documentedCall) judge(t *testing.T, o outcome) {
	t.Helper()
	if d.code != codes.OK {
		o.want(t, d.line, d.code, transcoder.HTTPStatus(d.code), d.what)
		return
	}
	o.wantOK(t, d.line)
	kind, what, _ := strings.Cut(d.what, " ")
	name, value, _ := strings.Cut(what, ": ")
	switch kind {
	case "":
	case "from":
		if o.server != what {
			t.Errorf("%s: answered by %q", d.line, o.server)
		}
	case "with":
		if got := strings.Join(o.seen[name], ","); got != value {
			t.Errorf("%s: the backend sees %q", d.line, got)
		}
	case "has":
		if got := strings.Join(o.header[name], ","); o.header != nil && got != value { // a bare WebSocket has no place for it
			t.Errorf("%s: the answer has %q", d.line, got)
		}
	default:
		t.Errorf("%s: what is %q?", d.line, kind)
	}
}
