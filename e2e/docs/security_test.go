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
func TestSecurity(t *testing.T) { checkRows(t, "security.md", "| Threat |", 3, 25) }

// TestComplaints does the same for what docs/migrating.md says of complaints.
func TestComplaints(t *testing.T) { checkRows(t, "migrating.md", "| Complaint |", 4, 24) }

// checkRows looks at the rows of the table with that head, the last cell of which names tests.
func checkRows(t *testing.T, document, head string, columns, least int) {
	t.Helper()
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
	text, err := os.ReadFile(repository + "/docs/" + document)
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`")
	rows, within := 0, false
	for i, line := range strings.Split(string(text), "\n") {
		if within = strings.HasPrefix(line, head) || within && strings.HasPrefix(line, "|"); !within || !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, head) {
			continue
		}
		rows++
		cells := strings.Split(line, " | ")
		if len(cells) != columns {
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
	if rows < least {
		t.Errorf("%d rows, want more", rows)
	}
}
