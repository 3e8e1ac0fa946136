package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPeersTable: every test that docs/peers.md names is there, and every test that is named after a defect is in the table.
func TestPeersTable(t *testing.T) {
	const root = "../.."
	text, err := os.ReadFile(filepath.Join(root, "docs/peers.md"))
	if err != nil {
		t.Fatal(err)
	}
	var source = map[string]string{} // package -> its tests
	defined := func(pkg, name string) bool {
		if _, ok := source[pkg]; !ok {
			files, err := filepath.Glob(filepath.Join(root, pkg, "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				all.Write(data)
			}
			source[pkg] = all.String()
		}
		return strings.Contains(source[pkg], "\nfunc "+name+"(t *testing.T)")
	}
	named := 0
	for _, m := range regexp.MustCompile(`([a-z0-9/]+)\.(Test\w+)`).FindAllStringSubmatch(string(text), -1) {
		named++
		if !defined(m[1], m[2]) {
			t.Errorf("docs/peers.md names %s.%s, which does not exist", m[1], m[2])
		}
	}
	if named < 50 {
		t.Errorf("only %d tests are named", named)
	}
	for pkg, all := range source {
		for _, m := range regexp.MustCompile(`func (Test(?:Root)?[DP][0-9]+\w*)\(`).FindAllStringSubmatch(all, -1) {
			if !strings.Contains(string(text), pkg+"."+m[1]) {
				t.Errorf("%s.%s is not in docs/peers.md", pkg, m[1])
			}
		}
	}
}
