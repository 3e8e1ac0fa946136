package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sources parses the non-test files of every package of the module.
func sources(t *testing.T) map[string][]*ast.File {
	t.Helper()
	out := map[string][]*ast.File{}
	for _, p := range listPackages(t, "./...") {
		rel := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			out[rel] = append(out[rel], f)
		}
	}
	return out
}

func TestPackageDocs(t *testing.T) {
	for pkg, files := range sources(t) {
		documented := false
		for _, f := range files {
			documented = documented || f.Doc != nil
			for _, name := range undocumented(f) {
				t.Errorf("%s: exported %s has no doc comment", pkg, name)
			}
		}
		if !documented && len(files) > 0 {
			t.Errorf("%s has no package comment", pkg)
		}
	}
}

// undocumented returns the exported top-level names of a file that have no comment of their own nor on their group.
func undocumented(f *ast.File) []string {
	if f.Name.Name == "main" {
		return nil
	}
	var out []string
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !implements(d.Name.Name) {
				out = append(out, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					if s.Name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
						out = append(out, s.Name.Name)
					}
				case *ast.ValueSpec:
					for _, n := range s.Names {
						if n.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
							out = append(out, n.Name)
						}
					}
				}
			}
		}
	}
	return out
}

// implements reports the methods whose meaning their interface in the standard library fixes.
func implements(name string) bool {
	return slices.Contains([]string{"Error", "Unwrap", "Is", "As", "String", "Read", "Write", "Close", "MarshalJSON", "UnmarshalJSON", "MarshalText", "UnmarshalText", "Len", "Less", "Swap"}, name)
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// forbidden calls by place: style rules that keep printing in cmd/ and changes of files in internal/durable.
var (
	printing = []string{"fmt.Print", "fmt.Printf", "fmt.Println", "os.Exit", "log.Print", "log.Printf", "log.Println", "log.Fatal", "log.Fatalf", "log.Fatalln", "log.Panic"}
	changing = []string{"os.Rename", "os.Remove", "os.RemoveAll", "os.WriteFile", "os.Create", "os.CreateTemp", "os.Mkdir", "os.MkdirAll", "os.MkdirTemp", "os.Symlink", "os.Link", "os.Truncate", "os.Chmod", "os.Chown", "os.Lchown", "os.Chtimes",
		"unix.Renameat", "unix.Renameat2", "unix.Unlinkat", "unix.Mkdirat", "unix.Symlinkat", "unix.Linkat", "unix.Mknodat", "unix.Fchmodat", "unix.Fchownat", "unix.Ftruncate", "unix.Fsetxattr", "unix.Lsetxattr", "unix.Setxattr"}
	impure = []string{"time.Now", "os.Getuid", "os.Getenv", "rand.Int", "rand.Read"}
	// pure packages depend on nothing but their input: the same tree gives the same bytes everywhere.
	pure = []string{"erofs", "erofs/tree", "erofs/dump", "repo/splitstream", "bootimage", "bootimage/bls", "deploy/record"}
	// changers may change files by themselves: durable, and what its package comment names (mount points below /run in the initramfs).
	changers = []string{"internal/durable", "internal/mnt", "systemd/setuproot"}
)

func TestForbiddenCalls(t *testing.T) {
	for pkg, files := range sources(t) {
		if strings.HasPrefix(pkg, "tests/") || strings.HasSuffix(pkg, "test") || strings.HasPrefix(pkg, "internal/testutil") {
			continue
		}
		for _, f := range files {
			for _, call := range calls(f) {
				switch {
				case slices.Contains(printing, call) && !strings.HasPrefix(pkg, "cmd/"):
					t.Errorf("%s calls %s: only cmd/ prints and exits", pkg, call)
				case slices.Contains(changing, call) && !slices.Contains(changers, pkg):
					t.Errorf("%s calls %s: files change only through internal/durable", pkg, call)
				case slices.Contains(impure, call) && slices.Contains(pure, pkg):
					t.Errorf("%s calls %s: the package must depend on its input only", pkg, call)
				}
			}
		}
	}
}

// calls returns every "package.Function" that a file mentions.
func calls(f *ast.File) []string {
	var out []string
	ast.Inspect(f, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := sel.X.(*ast.Ident); ok {
				out = append(out, id.Name+"."+sel.Sel.Name)
			}
		}
		return true
	})
	return out
}
