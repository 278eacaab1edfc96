package docs_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDeployed: what docs/operations.md has transom write, the package's unit lets it, and the Kubernetes manifest asks for no scrape that
// the admin listener's token would refuse.
func TestDeployed(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(repository + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	storage := regexp.MustCompile(`storage: (/[^,}\s]+)`).FindStringSubmatch(read("docs/operations.md"))
	if storage == nil || !strings.HasPrefix(storage[1], "/var/lib/transom/") || !strings.Contains(read("deploy/systemd/transom.service"), "\nStateDirectory=transom\n") {
		t.Errorf("the unit does not let transom write %q", storage)
	}
	if manifest := read("deploy/kubernetes/transom.yaml"); strings.Contains(manifest, "token_file:") && strings.Contains(manifest, "prometheus.io/scrape") {
		t.Error("a scrape by annotation has no token")
	}
}
