package tree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

func names(dir *tree.Node) []string {
	var list []string
	for name := range dir.All() {
		list = append(list, name)
	}
	return list
}

// TestDirectoryAgainstMap does random things to a directory and to a map.
func TestDirectoryAgainstMap(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 2))
		dir, want := tree.NewDir(tree.Meta{}), map[string]*tree.Node{}
		for step := range 3000 {
			name := fmt.Sprint(rng.IntN(1 + rng.IntN(400)))
			switch op := rng.IntN(100); {
			case op < 60:
				n := tree.NewInline(tree.Meta{}, nil)
				dir.Set(name, n)
				want[name] = n
			case op < 95:
				dir.Remove(name)
				delete(want, name)
			case op == 95 && rng.IntN(20) == 0:
				dir.Clear()
				clear(want)
			case op > 97:
				if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), names(dir)); diff != "" && len(want)+dir.Len() > 0 {
					t.Fatalf("seed %d, step %d: names mismatch (-want +got):\n%s", seed, step, diff)
				}
				for i := range dir.Len() {
					if name, n := dir.At(i); want[name] != n {
						t.Fatalf("seed %d, step %d: entry %d is %q", seed, step, i, name)
					}
				}
			}
			if dir.Len() != len(want) || dir.Lookup(name) != want[name] {
				t.Fatalf("seed %d, step %d: %d entries, want %d; %q differs: %v", seed, step, dir.Len(), len(want), name, dir.Lookup(name) != want[name])
			}
		}
	}
}

// TestDirectoryOrders: no order of adding and removing costs quadratic time. The
// numbers would take minutes if it did.
func TestDirectoryOrders(t *testing.T) {
	const n = 200_000
	start := time.Now()
	for name, key := range map[string]func(i int) int{
		"ascending": func(i int) int { return i }, "descending": func(i int) int { return n - i }, "mixed": func(i int) int { return i * 7919 % n },
	} {
		dir, node := tree.NewDir(tree.Meta{}), tree.NewInline(tree.Meta{}, nil)
		for i := range n {
			dir.Set(fmt.Sprintf("%06d", key(i)), node)
		}
		if dir.Len() != n || !slices.IsSorted(names(dir)) {
			t.Errorf("%s: %d entries", name, dir.Len())
		}
		for i := range n {
			dir.Remove(fmt.Sprintf("%06d", key(i)))
		}
		if dir.Len() != 0 {
			t.Errorf("%s: %d entries left", name, dir.Len())
		}
	}
	if spent := time.Since(start); spent > 20*time.Second {
		t.Errorf("took %v", spent)
	}
}

func TestNodeIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(tree.Node{}); size > 128 {
		t.Errorf("a node takes %d bytes, want at most 128 (an allocator size class)", size)
	}
}

func TestKinds(t *testing.T) {
	for k := tree.Regular; k <= tree.Symlink; k++ {
		if got, ok := tree.KindOfMode(uint32(k.ModeType()) | 0o644); !ok || got != k || !k.Valid() {
			t.Errorf("%s: %o is %s, %v", k, k.ModeType(), got, ok)
		}
	}
	if k, ok := tree.KindOfMode(0o150000); ok {
		t.Errorf("0150000 is %s", k)
	}
	if k := tree.Kind(0); k.Valid() || k.ModeType() != 0 || tree.Kind(9).String() != "kind 9" {
		t.Errorf("kind 0 is valid: %v", k)
	}
}

func TestFind(t *testing.T) {
	root, usr := tree.NewDir(tree.Meta{}), tree.NewDir(tree.Meta{})
	file := tree.NewInline(tree.Meta{}, nil)
	root.Set("usr", usr)
	usr.Set("f", file)
	root.Set("link", tree.NewSymlink(tree.Meta{}, "usr"))
	for path, want := range map[string]*tree.Node{"": root, "/": root, "usr/f": file, "/usr//./f": file, "usr/": usr} {
		if got, err := root.Find(path); err != nil || got != want {
			t.Errorf("%q: got %v, %v", path, got, err)
		}
	}
	for _, path := range []string{"x", "usr/x", "usr/f/x", "link/f", "usr/..", ".."} {
		if got, err := root.Find(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: got %v, %v; want %v", path, got, err, fs.ErrNotExist)
		}
	}
}

// show renders the paths of a tree with a letter for what is there.
func show(root *tree.Node) []string {
	var list []string
	var walk func(path string, n *tree.Node)
	walk = func(path string, n *tree.Node) {
		for name, c := range n.All() {
			list = append(list, fmt.Sprintf("%s/%s %d", path, name, c.Mode))
			if c.IsDir() {
				walk(path+"/"+name, c)
			}
		}
	}
	walk("", root)
	return list
}

func dir(path string, mode uint16) tree.Entry {
	return tree.Entry{Path: path, Node: tree.NewDir(tree.Meta{Mode: mode})}
}

func file(path string, mode uint16) tree.Entry {
	return tree.Entry{Path: path, Node: tree.NewInline(tree.Meta{Mode: mode}, nil)}
}

func hard(path, target string) tree.Entry { return tree.Entry{Path: path, HardLink: target} }

func TestBuilder(t *testing.T) {
	for name, c := range map[string]struct {
		entries []tree.Entry
		want    []string
	}{
		"paths": {
			[]tree.Entry{dir("./a/", 1), dir("/a/b//", 2), file("a/./b/c", 3), file("//d", 4)},
			[]string{"/a 1", "/a/b 2", "/a/b/c 3", "/d 4"},
		},
		"directory over directory keeps the entries": {
			[]tree.Entry{dir("a", 1), file("a/f", 2), dir("a", 3)}, []string{"/a 3", "/a/f 2"},
		},
		"file over directory drops them":      {[]tree.Entry{dir("a", 1), file("a/f", 2), file("a", 3)}, []string{"/a 3"}},
		"directory over file":                 {[]tree.Entry{file("a", 1), dir("a", 2), file("a/f", 3)}, []string{"/a 2", "/a/f 3"}},
		"file over file":                      {[]tree.Entry{file("a", 1), file("a", 2)}, []string{"/a 2"}},
		"whiteout of a file":                  {[]tree.Entry{file("a", 1), file("b", 2), file(".wh.a", 0)}, []string{"/b 2"}},
		"whiteout of a directory":             {[]tree.Entry{dir("a", 1), file("a/f", 2), file(".wh.a", 0)}, nil},
		"whiteout of nothing":                 {[]tree.Entry{file("a", 1), file(".wh.x", 0)}, []string{"/a 1"}},
		"whiteout of any type":                {[]tree.Entry{file("a", 1), dir(".wh.a", 0)}, nil},
		"whiteout given as a hard link":       {[]tree.Entry{file("a", 1), hard(".wh.a", "nowhere")}, nil},
		"whiteout, then again":                {[]tree.Entry{file("a", 1), file(".wh.a", 0), file("a", 2)}, []string{"/a 2"}},
		"opaque removes what came before":     {[]tree.Entry{dir("a", 1), file("a/f", 2), file("a/.wh..wh..opq", 0), file("a/g", 3)}, []string{"/a 1", "/a/g 3"}},
		"opaque keeps the directory itself":   {[]tree.Entry{dir("a", 7), file("a/.wh..wh..opq", 0)}, []string{"/a 7"}},
		"opaque in the root":                  {[]tree.Entry{dir("a", 1), file(".wh..wh..opq", 0), file("b", 2)}, []string{"/b 2"}},
		"whiteout without a name":             {[]tree.Entry{file("a", 1), file(".wh.", 0)}, []string{"/a 1"}},
		"whiteout of .wh. is not opaque":      {[]tree.Entry{file("a", 1), file(".wh..wh.", 0)}, []string{"/a 1"}},
		"AUFS names follow the rule":          {[]tree.Entry{file("a", 1), dir(".wh..wh.plnk", 0)}, []string{"/a 1"}},
		"device whiteouts are devices":        {[]tree.Entry{file("a", 1), {Path: "a", Node: &tree.Node{Kind: tree.CharDevice, Meta: tree.Meta{Mode: 5}}}}, []string{"/a 5"}},
		"hard link shares the node":           {[]tree.Entry{file("a", 1), hard("b", "a"), hard("/c", "/b/")}, []string{"/a 1", "/b 1", "/c 1"}},
		"hard link survives a replacement":    {[]tree.Entry{file("a", 1), hard("b", "./a"), file("a", 2)}, []string{"/a 2", "/b 1"}},
		"hard link survives a whiteout":       {[]tree.Entry{file("a", 1), hard("b", "a"), file(".wh.a", 0)}, []string{"/b 1"}},
		"hard link over a directory":          {[]tree.Entry{file("a", 1), dir("d", 2), file("d/x", 3), hard("d", "a")}, []string{"/a 1", "/d 1"}},
		"name that only starts like a marker": {[]tree.Entry{file("a", 1), file(".whx", 2)}, []string{"/.whx 2", "/a 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := tree.NewBuilder()
			for _, e := range c.entries {
				if err := b.Apply(e); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(c.want, show(b.Root())); diff != "" {
				t.Errorf("tree mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBuilderRoot(t *testing.T) {
	for _, path := range []string{"", "/", "./", ".", "//"} {
		b := tree.NewBuilder()
		if err := errors.Join(b.Apply(file("f", 1)), b.Apply(dir(path, 0o711))); err != nil {
			t.Fatal(err)
		}
		if root := b.Root(); root.Mode != 0o711 || root.Len() != 1 {
			t.Errorf("%q: mode %o, %d entries", path, root.Mode, root.Len())
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		entry  tree.Entry
		reason error
	}{
		"no parent":                  {file("x/f", 0), tree.ErrNoParent},
		"parent is a file":           {file("f/g", 0), tree.ErrParentNotDir},
		"parent is a symlink":        {file("l/g", 0), tree.ErrParentNotDir},
		"parent of a whiteout":       {file("x/.wh.f", 0), tree.ErrNoParent},
		"parent of a marker":         {file("f/.wh..wh..opq", 0), tree.ErrParentNotDir},
		"dot dot":                    {file("d/../f", 0), tree.ErrBadName},
		"dot dot at the end":         {dir("d/..", 0), tree.ErrBadName},
		"dot dot alone":              {dir("..", 0), tree.ErrBadName},
		"NUL":                        {file("a\x00b", 0), tree.ErrBadName},
		"long name":                  {file(strings.Repeat("n", 256), 0), tree.ErrBadName},
		"root is a file":             {file("/", 0), tree.ErrRootNotDir},
		"root is a hard link":        {hard("", "f"), tree.ErrRootNotDir},
		"hard link without a target": {tree.Entry{Path: "h"}, tree.ErrNoLinkTarget},
		"hard link to nothing":       {hard("h", "x"), tree.ErrNoLinkTarget},
		"hard link through a link":   {hard("h", "l/x"), tree.ErrNoLinkTarget},
		"hard link to a directory":   {hard("h", "d"), tree.ErrLinkToDirectory},
		"hard link to the root":      {hard("h", "/"), tree.ErrLinkToDirectory},
		"hard link upwards":          {hard("h", "../f"), tree.ErrBadName},
		"hard link to itself":        {hard("h", "h"), tree.ErrNoLinkTarget},
	} {
		t.Run(name, func(t *testing.T) {
			b := tree.NewBuilder()
			link := tree.Entry{Path: "l", Node: tree.NewSymlink(tree.Meta{}, "d")}
			for _, e := range []tree.Entry{dir("d", 1), file("f", 2), link, file("d/x", 3)} {
				if err := b.Apply(e); err != nil {
					t.Fatal(err)
				}
			}
			before := show(b.Root())
			err := b.Apply(c.entry)
			var ee *tree.EntryError
			if !errors.As(err, &ee) || !errors.Is(err, c.reason) || ee.Path != c.entry.Path {
				t.Errorf("got %v, want an EntryError of %q: %v", err, c.entry.Path, c.reason)
			}
			if diff := cmp.Diff(before, show(b.Root())); diff != "" {
				t.Errorf("tree changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestTransformOCIRefuses(t *testing.T) {
	withUsr := func(name string, n *tree.Node) *tree.Node {
		root := tree.NewDir(tree.Meta{})
		root.Set("usr", tree.NewDir(tree.Meta{}))
		root.Set(name, n)
		return root
	}
	for name, c := range map[string]struct {
		root *tree.Node
		path string
		got  tree.Kind
	}{
		"no usr":        {tree.NewDir(tree.Meta{}), "/usr", 0},
		"usr is a link": {withUsr("usr", tree.NewSymlink(tree.Meta{}, "x")), "/usr", tree.Symlink},
		"run is a link": {withUsr("run", tree.NewSymlink(tree.Meta{}, "var/run")), "/run", tree.Symlink},
	} {
		t.Run(name, func(t *testing.T) {
			var re *tree.RequiredError
			if err := tree.TransformOCI(c.root, tree.AllowlistOnly); !errors.As(err, &re) || re.Path != c.path || re.Got != c.got {
				t.Errorf("got %v, want a RequiredError for %s", err, c.path)
			}
		})
	}
}

// TestTransformOCIShared: attribute lists that several nodes share are not written
// into.
func TestTransformOCIShared(t *testing.T) {
	list := []tree.Xattr{{Name: "security.capability", Value: "c"}, {Name: "security.selinux", Value: "s"}, {Name: "user.a", Value: "u"}}
	root := tree.NewDir(tree.Meta{})
	usr := tree.NewDir(tree.Meta{Xattrs: list, Mode: 0o711, MtimeSec: 5, MtimeNsec: 6})
	root.Set("usr", usr)
	ext := tree.NewExternal(tree.Meta{Xattrs: list}, fsverity.Sum(fsverity.SHA256, nil), 100)
	usr.Set("f", ext)
	usr.Set("g", ext)
	if err := tree.TransformOCI(root, tree.KeepUserXattrs); err != nil {
		t.Fatal(err)
	}
	want := []tree.Xattr{{Name: "security.capability", Value: "c"}, {Name: "user.a", Value: "u"}}
	for name, n := range map[string]*tree.Node{"root": root, "usr": usr, "file": ext} {
		if diff := cmp.Diff(want, n.Xattrs); diff != "" {
			t.Errorf("%s: attributes mismatch (-want +got):\n%s", name, diff)
		}
	}
	if len(list) != 3 || list[1].Name != "security.selinux" {
		t.Errorf("the shared list became %v", list)
	}
	if root.Mode != 0o711 || root.MtimeSec != 5 || root.MtimeNsec != 6 {
		t.Errorf("root is %+v, want the metadata of /usr", root.Meta)
	}
}
