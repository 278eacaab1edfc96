package policies_test

import (
	"net/http"
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
	id := startOIDC(t)
	values := strings.NewReplacer("$TOKEN", id.token(t, nil), "$OUTSIDER", id.token(t, map[string]any{"groups": nil, "scope": "none"}))
	codeOf := map[string]codes.Code{}
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		codeOf[transcoder.CodeName(c)] = c
	}
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
			config = "\n" + strings.ReplaceAll(strings.Join(block, "\n"), `issuer: "https://id.example"`, `outbound: {private: true}, issuer: "`+id.URL+`"`)
			continue
		}
		if kind != "calls" {
			continue
		}
		examples++
		t.Run(heading, func(t *testing.T) {
			p := start(t, withBanks(t, config))
			for _, line := range block {
				header, want, ok := strings.Cut(line, "|")
				if !ok {
					t.Fatalf("%q is no call", line)
				}
				md := map[string]string{}
				if name, value, ok := strings.Cut(strings.TrimSpace(header), ": "); ok {
					md[name] = values.Replace(value)
				}
				name, reason, _ := strings.Cut(strings.TrimSpace(want), " ")
				code, known := codeOf[name]
				if !known {
					t.Fatalf("%q is no code", name)
				}
				everyProtocol(t, func(t *testing.T, call func(*testing.T, *proxy, map[string]string) outcome) {
					status := transcoder.HTTPStatus(code)
					if code == codes.OK {
						status = http.StatusOK
					}
					o := call(t, p, md)
					if from, said := strings.CutPrefix(reason, "from "); said {
						o.wantOK(t, line)
						if o.server != from {
							t.Errorf("%s: answered by %q", line, o.server)
						}
						return
					}
					if md, said := strings.CutPrefix(reason, "with "); said {
						o.wantOK(t, line)
						name, value, _ := strings.Cut(md, ":")
						if got := strings.Join(o.seen[name], ","); got != strings.TrimSpace(value) {
							t.Errorf("%s: the backend sees %q", line, got)
						}
						return
					}
					o.want(t, line, code, status, reason)
				})
			}
		})
	}
	if examples < 5 {
		t.Errorf("%d examples were run, want more", examples)
	}
}
