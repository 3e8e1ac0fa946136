package tree_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// FuzzBuilder applies entries with any names, one a line: "name" is a file,
// "name/" a directory, "name>target" a hard link. Whatever is accepted leaves
// entries with legal names only, and what is refused changes nothing.
func FuzzBuilder(f *testing.F) {
	f.Add("usr/\nusr/f\nl>usr/f\nusr/.wh.f\nusr/.wh..wh..opq\n./a//b\n../x\n")
	f.Add("/\nd/\nd>d/x\nd/x\ny>d/x\nd\n.wh.d")
	f.Fuzz(func(t *testing.T, script string) {
		b := tree.NewBuilder()
		for line := range strings.SplitSeq(script, "\n") {
			before := countEntries(t, b.Root())
			path, target, link := strings.Cut(line, ">")
			e := tree.Entry{Path: path, HardLink: target}
			if !link {
				e.Node = tree.NewInline(tree.Meta{}, nil)
				if strings.HasSuffix(path, "/") {
					e.Node = tree.NewDir(tree.Meta{})
				}
			}
			err := b.Apply(e)
			var ee *tree.EntryError
			if err != nil && (!errors.As(err, &ee) || ee.Path != path) {
				t.Fatalf("%q: got %v, want an EntryError with this path", path, err)
			}
			if after := countEntries(t, b.Root()); err != nil && after != before {
				t.Fatalf("%q: refused (%v), but %d entries became %d", line, err, before, after)
			}
		}
	})
}

func countEntries(t *testing.T, dir *tree.Node) int {
	t.Helper()
	n := 0
	for name, c := range dir.All() {
		if name == "" || name == "." || name == ".." || len(name) > tree.MaxName || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".wh.") {
			t.Fatalf("entry %q", name)
		}
		n++
		if c.IsDir() {
			n += countEntries(t, c)
		}
	}
	return n
}
