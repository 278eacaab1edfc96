package policies_test

import (
	"os"
	"strings"
	"testing"
)

const policiesDoc = "../../docs/policies.md"

// example is the first YAML block under a heading, of whatever level, of docs/policies.md.
func example(t *testing.T, heading string) string {
	t.Helper()
	doc, err := os.ReadFile(policiesDoc)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(doc), "# "+heading+"\n")
	section, _, _ := strings.Cut(rest, "\n## ")
	_, block, ok := strings.Cut(section, "```yaml\n")
	block, _, _ = strings.Cut(block, "```")
	if !found || !ok {
		t.Fatalf("docs/policies.md has no example under %q", heading)
	}
	return block
}
