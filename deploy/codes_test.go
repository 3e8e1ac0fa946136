package deploy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestCodesAreDescribed compares the codes of refusals and problems with docs/design/codes.md.
func TestCodesAreDescribed(t *testing.T) {
	text, err := os.ReadFile("../docs/design/codes.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{"Code": "## Codes of refusals", "Problem": "## Codes of problems"}
	described := map[string]map[string]bool{}
	for prefix, heading := range sections {
		_, section, ok := strings.Cut(string(text), heading)
		if !ok {
			t.Fatalf("no section %q", heading)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		described[prefix] = map[string]bool{}
		for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(section, -1) {
			described[prefix][m[1]] = true
		}
	}
	for name, value := range constants(t) {
		for prefix := range sections {
			if !strings.HasPrefix(name, prefix) {
				continue
			}
			if !described[prefix][value] {
				t.Errorf("%s (%q) is not in docs/design/codes.md", name, value)
			}
			delete(described[prefix], value)
		}
	}
	for prefix, left := range described {
		for value := range left {
			t.Errorf("docs/design/codes.md describes %q, and no %s… constant has it", value, prefix)
		}
	}
}

// constants returns the string constants of this package's files.
func constants(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source files: %v", err)
	}
	found := map[string]string{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for i, expr := range v.Values {
					if lit, ok := expr.(*ast.BasicLit); ok && lit.Kind == token.STRING {
						value, err := strconv.Unquote(lit.Value)
						if err != nil {
							t.Fatal(err)
						}
						found[v.Names[i].Name] = value
					}
				}
			}
		}
	}
	return found
}
