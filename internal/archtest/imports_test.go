package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cfsboot/cfsboot"

// goPackage is the part of `go list -json` that the tests need.
type goPackage struct {
	ImportPath string
	Dir        string
	Standard   bool
	Imports    []string
	Deps       []string
	GoFiles    []string
}

// listPackages returns the packages of this module, and with deps everything that they link.
func listPackages(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Standard,Imports,Deps,GoFiles"}, args...)...)
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// rules is imports.txt, parsed.
type rules struct {
	allow  map[string][]string // package -> patterns
	deny   map[string][]string // binary -> packages it must not link
	except map[string][]string // package of the standard library -> the only importers
}

func parseRules(t *testing.T, text string) rules {
	t.Helper()
	r := rules{map[string][]string{}, map[string][]string{}, map[string][]string{}}
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		head, tail, ok := strings.Cut(line, ": ")
		if !ok {
			t.Fatalf("imports.txt:%d: no colon", n+1)
		}
		words := strings.Fields(tail)
		switch kind, name, _ := strings.Cut(strings.TrimSpace(head), " "); kind {
		case "deny":
			r.deny[name] = words
		case "deny-except-in":
			r.except[name] = words
		default:
			r.allow[kind] = words
		}
	}
	return r
}

// patterns returns the allow list of a package: its own line, or the line of a folder above it that says "test".
func (r rules) patterns(pkg string) ([]string, bool) {
	if p, ok := r.allow[pkg]; ok {
		return p, true
	}
	for dir := path.Dir(pkg); dir != "."; dir = path.Dir(dir) {
		if p, ok := r.allow[dir]; ok && slices.Equal(p, []string{"test"}) {
			return p, true
		}
	}
	return nil, false
}

// violation says why pkg may not import imp, or returns "".
func (r rules) violation(pkg, imp string, standard bool) string {
	allowed, known := r.patterns(pkg)
	if !known {
		return "package has no line in imports.txt"
	}
	if slices.Equal(allowed, []string{"test"}) {
		return ""
	}
	if standard {
		if only, ok := r.except[imp]; ok && !slices.Contains(only, pkg) {
			return "only " + strings.Join(only, ", ") + " may import it"
		}
		return ""
	}
	rel, internal := strings.CutPrefix(imp, module+"/")
	for _, p := range allowed {
		ext, isExt := strings.CutPrefix(p, "ext:")
		switch {
		case isExt && !internal && (imp == ext || strings.HasPrefix(imp, ext+"/")):
			return ""
		case internal && (p == "*" || p == rel || path.Dir(rel)+"/*" == p):
			if target, ok := r.patterns(rel); ok && slices.Equal(target, []string{"test"}) {
				return "it is a test package"
			}
			return ""
		}
	}
	return "not in its line of imports.txt"
}

func TestImports(t *testing.T) {
	text, err := os.ReadFile("imports.txt")
	if err != nil {
		t.Fatal(err)
	}
	r := parseRules(t, string(text))
	standard := map[string]bool{}
	all := map[string]goPackage{}
	for _, p := range listPackages(t, "-deps", "./...") {
		standard[p.ImportPath] = p.Standard
		all[p.ImportPath] = p
	}
	for _, p := range all {
		rel, ok := strings.CutPrefix(p.ImportPath, module+"/")
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			if why := r.violation(rel, imp, standard[imp]); why != "" {
				t.Errorf("%s imports %s: %s", rel, imp, why)
			}
		}
	}
	for pkg := range r.allow {
		if _, ok := all[module+"/"+pkg]; !ok && pkg != "tests" && pkg != "internal/testutil" {
			t.Errorf("imports.txt has a line for %s, which does not exist", pkg)
		}
	}
	for binary, denied := range r.deny {
		p, ok := all[module+"/"+binary]
		if !ok {
			t.Errorf("imports.txt: binary %s does not exist", binary)
		}
		for _, d := range denied {
			for _, dep := range p.Deps {
				if dep == d || strings.HasPrefix(dep, d+"/") && !standard[d] {
					t.Errorf("%s links %s", binary, dep)
				}
			}
		}
	}
}

// TestRulesRefuse shows that the check above can fail: each row is an import that the project must never have.
func TestRulesRefuse(t *testing.T) {
	text, err := os.ReadFile("imports.txt")
	if err != nil {
		t.Fatal(err)
	}
	r := parseRules(t, string(text))
	for _, c := range []struct {
		pkg, imp string
		standard bool
	}{
		{"fsverity", module + "/repo", false},
		{"erofs/tree", module + "/erofs", false},
		{"erofs", module + "/repo", false},
		{"repo/oci", module + "/repo/remote", false},
		{"keyring", "net/http", true},
		{"repo/oci", "github.com/google/go-containerregistry/pkg/v1", false},
		{"systemd/setuproot", "github.com/spf13/cobra", false},
		{"deploy", module + "/internal/durable/durabletest", false},
		{"unheard/of", "fmt", true},
	} {
		if r.violation(c.pkg, c.imp, c.standard) == "" {
			t.Errorf("%s importing %s was allowed", c.pkg, c.imp)
		}
	}
	if why := r.violation("erofs", module+"/erofs/tree", false); why != "" {
		t.Errorf("erofs importing erofs/tree was refused: %s", why)
	}
}

// TestDeps compares what each binary links with the reviewed list beside its main.go (rewritten by `make deps`).
func TestDeps(t *testing.T) {
	for _, binary := range []string{"cmd/cfsboot", "cmd/cfsboot-setup-root"} {
		var got []string
		for _, p := range listPackages(t, "-deps", "./"+binary) {
			if !p.Standard {
				got = append(got, p.ImportPath)
			}
		}
		slices.Sort(got)
		file := "../../" + binary + "/deps.txt"
		if os.Getenv("CFSBOOT_UPDATE_DEPS") != "" {
			if err := os.WriteFile(file, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("%v; run make deps and review the list", err)
		}
		want := strings.Fields(string(b))
		for _, p := range got {
			if !slices.Contains(want, p) {
				t.Errorf("%s links %s, which deps.txt does not list; run make deps and review the change", binary, p)
			}
		}
		for _, p := range want {
			if !slices.Contains(got, p) {
				t.Errorf("%s/deps.txt lists %s, which is not linked; run make deps", binary, p)
			}
		}
	}
}
