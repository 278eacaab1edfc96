package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// code is what stands between backquotes and may be a name: "Front.ServeHTTP", "upstream".
var code = regexp.MustCompile("`([A-Za-z_]\\w*(?:\\.[A-Za-z_]\\w*)*)`")

// TestDesignNames looks up each name that docs/DESIGN.md gives: it must be declared somewhere, or be a package of ours.
// Names of other modules, which have their package before them, are not looked at.
func TestDesignNames(t *testing.T) {
	declared, types, packages := declarations(t)
	text, err := os.ReadFile(repository + "/docs/DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range code.FindAllStringSubmatch(string(text), -1) {
		parts := strings.Split(m[1], ".")
		if len(parts) > 1 && !packages[parts[0]] && !types[parts[0]] {
			continue
		}
		for i, part := range parts {
			if !declared[part] && !packages[part] {
				t.Errorf("%s: there is no %s in the source", m[1], strings.Join(parts[:i+1], "."))
			}
		}
		n++
	}
	if n < 80 {
		t.Errorf("only %d names were looked up", n)
	}
}

// declarations are all functions, types, fields and methods of the repository, the types by themselves, and the packages by
// each element of their paths.
func declarations(t *testing.T) (names, types, packages map[string]bool) {
	t.Helper()
	names, types, packages = map[string]bool{}, map[string]bool{}, map[string]bool{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch d.Name() {
			case "node_modules", "build", "dist", ".git":
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for dir := filepath.Dir(path); dir != repository; dir = filepath.Dir(dir) {
			packages[filepath.Base(dir)] = true
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names[n.Name.Name] = true
				return false
			case *ast.TypeSpec:
				names[n.Name.Name], types[n.Name.Name] = true, true
			case *ast.Field:
				for _, name := range n.Names {
					names[name.Name] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, types, packages
}
