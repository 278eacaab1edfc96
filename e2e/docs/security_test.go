package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurity has every test that docs/security.md names exist, and every row name one or say that it is open.
func TestSecurity(t *testing.T) {
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9]+)\(`)
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && (name == "node_modules" || name == ".git" || name == "build" || name == ".cache") {
			return filepath.SkipDir
		} else if d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(repository + "/docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`")
	rows := 0
	for i, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| Threat |") {
			continue
		}
		rows++
		cells := strings.Split(line, " | ")
		if len(cells) != 3 {
			t.Errorf("line %d has %d columns", i+1, len(cells))
		}
		last := cells[len(cells)-1]
		found := named.FindAllStringSubmatch(last, -1)
		if len(found) == 0 && !strings.Contains(last, "**open**") {
			t.Errorf("line %d names no test and does not say that it is open", i+1)
		}
		for _, m := range found {
			if !tests[m[1]] {
				t.Errorf("line %d: there is no %s", i+1, m[1])
			}
		}
	}
	if rows < 25 {
		t.Errorf("%d rows, want more", rows)
	}
}
