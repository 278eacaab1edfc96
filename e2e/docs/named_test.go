package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestNamedCommands: each make target that a document names is in the Makefile, and each go test that one names has something to run.
func TestNamedCommands(t *testing.T) {
	makefile, err := os.ReadFile(repository + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(repository + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var (
		target   = regexp.MustCompile("`(?:[A-Z]+=\\S+ )*make ([a-z0-9-]+)")
		command  = regexp.MustCompile("`(?:[A-Z_]+=\\S+ )*go test ([^`]*)`")
		selected = regexp.MustCompile(`-(run|bench|fuzz) (?:'([^']*)'|"([^"]*)"|(\S+))`)
		dirs     = regexp.MustCompile(`(?:^|\s)(\./[^\s']*)`)
	)
	targets, tests := 0, 0
	for _, file := range append(files, repository+"/README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			for _, m := range target.FindAllStringSubmatch(line, -1) {
				targets++
				if !strings.Contains(string(makefile), "\n"+m[1]+":") {
					t.Errorf("%s:%d: there is no target %s", filepath.Base(file), i+1, m[1])
				}
			}
			for _, m := range command.FindAllStringSubmatch(line, -1) {
				names := declared(t, dirs.FindAllString(m[1], -1))
				for _, s := range selected.FindAllStringSubmatch(m[1], -1) {
					pattern := strings.ReplaceAll(s[2]+s[3]+s[4], `\|`, "|") // in a table
					if pattern == "NONE" {
						continue
					}
					for one := range strings.SplitSeq(pattern, "|") {
						tests++
						of := map[string]string{"run": "Test|Fuzz", "bench": "Benchmark", "fuzz": "Fuzz"}[s[1]]
						first, _, _ := strings.Cut(one, "/") // what is after it is known when it is run
						if first == "." {
							first = ""
						}
						re, err := regexp.Compile(first)
						if err != nil {
							t.Errorf("%s:%d: %s: %v", filepath.Base(file), i+1, one, err)
							continue
						}
						if !slices.ContainsFunc(names, func(n string) bool {
							return regexp.MustCompile("^("+of+")").MatchString(n) && re.MatchString(n)
						}) {
							t.Errorf("%s:%d: go test %s: nothing matches %q", filepath.Base(file), i+1, m[1], one)
						}
					}
				}
			}
		}
	}
	if targets < 50 || tests < 150 {
		t.Errorf("%d targets and %d tests, want more", targets, tests)
	}
}

// declared are the tests, benchmarks and fuzz targets in the packages.
func declared(t *testing.T, packages []string) []string {
	t.Helper()
	re := regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w*)\(`)
	var names []string
	for _, p := range packages {
		dir, below := strings.CutSuffix(strings.TrimSpace(p), "/...")
		files, err := filepath.Glob(filepath.Join(repository, dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		if below {
			more, err := filepath.Glob(filepath.Join(repository, dir, "*", "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, more...)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range re.FindAllSubmatch(text, -1) {
				names = append(names, string(m[1]))
			}
		}
	}
	return names
}
