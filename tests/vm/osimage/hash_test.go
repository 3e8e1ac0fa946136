package osimage

import (
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

func TestHashTreeSeesEveryChange(t *testing.T) {
	base := func() fstest.MapFS {
		return fstest.MapFS{"d/a": {Data: []byte("x"), Mode: 0o644}, "d/b": {Data: []byte("y"), Mode: 0o644}}
	}
	sum := func(f fstest.MapFS) string {
		s, err := hashTree(f, "d")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	want := sum(base())
	if got := sum(base()); got != want {
		t.Errorf("same tree: %s and %s", got, want)
	}
	for name, change := range map[string]func(fstest.MapFS){
		"content":    func(f fstest.MapFS) { f["d/a"].Data = []byte("z") },
		"mode":       func(f fstest.MapFS) { f["d/a"].Mode = 0o755 },
		"added":      func(f fstest.MapFS) { f["d/c"] = &fstest.MapFile{} },
		"removed":    func(f fstest.MapFS) { delete(f, "d/b") },
		"split":      func(f fstest.MapFS) { f["d/a"].Data, f["d/b"].Data = []byte("xy"), nil },
		"made a dir": func(f fstest.MapFS) { delete(f, "d/b"); f["d/b/y"] = &fstest.MapFile{} },
	} {
		f := base()
		change(f)
		if sum(f) == want {
			t.Errorf("%s: not seen", name)
		}
	}
}

func TestHashSourcesFollowsTheContainerfile(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("Containerfile", "FROM x\nCOPY files/ prog /usr/\n")
	write("files/a", "1")
	write("prog", "2")
	write("unrelated", "3")
	sum := func() string {
		t.Helper()
		s, err := hashSources(root)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := sum()
	write("unrelated", "4")
	if sum() != first {
		t.Error("a file that is not copied counts")
	}
	write("prog", "5")
	second := sum()
	write("files/b", "6")
	if third := sum(); second == first || third == second {
		t.Error("a copied file does not count")
	}
	write("Containerfile", "FROM x\nCOPY missing /\n")
	if _, err := hashSources(root); err == nil {
		t.Error("a missing source is no error")
	}
}
