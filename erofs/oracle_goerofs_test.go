package erofs_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/randtree"
)

// oracleTree is a tree that any reader of EROFS understands: names are UTF-8, and
// attributes have namespaces that the kernel knows. Format v holds all of it.
func oracleTree(v erofs.Version) *tree.Node {
	root := randtree.Large(5000)
	wide := tree.NewDir(tree.Meta{Mode: 0o755})
	root.Set("wide", wide)
	for i := range 1000 { // several blocks of entries, and a tail
		wide.Set(fmt.Sprintf("entry-%d", i), tree.NewInline(tree.Meta{Mode: 0o600, MtimeSec: int64(i)}, []byte("x")))
	}
	root.Set("null", &tree.Node{Kind: tree.CharDevice, Rdev: 1<<8 | 3, Meta: tree.Meta{Mode: 0o666}})
	root.Set("pipe", &tree.Node{Kind: tree.Fifo, Meta: tree.Meta{Mode: 0o600, UID: 70000, GID: 1}})
	large, long := 4500, 4090
	if v == erofs.V2 {
		large, long = 512, 4096-64
		dropFractions(root)
	}
	root.Set("large", tree.NewInline(tree.Meta{Mode: 0o400}, bytes.Repeat([]byte("0123456789"), large/10)))
	root.Set("long", tree.NewSymlink(tree.Meta{Mode: 0o777}, strings.Repeat("t", long)))
	return root
}

// TestOracleGoErofs reads an image with an EROFS reader that knows nothing of
// composefs: types, owners, times, link counts, small contents, link targets and
// attributes are those of the tree.
func TestOracleGoErofs(t *testing.T) {
	for _, v := range formats {
		t.Run(fmt.Sprint(v), func(t *testing.T) { compareGoErofs(t, v) })
	}
}

func compareGoErofs(t *testing.T, v erofs.Version) {
	root := oracleTree(v)
	image, _, _ := imageIn(t, root, v)
	img, err := goerofs.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	if err := fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line, err := describeFile(img, path, info)
		if !isStub(path) {
			got[path] = line
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	describeTree(want, ".", root, linkCounts(root), v)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree mismatch (-want +got):\n%.3000s", diff)
	}
}

// isStub reports whether path is one of the whiteouts that the format adds; the
// tree has no such names.
func isStub(path string) bool {
	return len(path) == 2 && strings.Trim(path, "0123456789abcdef") == ""
}

func describeFile(img fs.FS, path string, info fs.FileInfo) (string, error) {
	st, ok := info.Sys().(*goerofs.Stat)
	if !ok {
		return "", fmt.Errorf("%s: %T", path, info.Sys())
	}
	contents := ""
	var err error
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		contents, err = fs.ReadLink(img, path)
	case info.Mode().IsRegular() && len(st.Xattrs["trusted.overlay.redirect"]) == 0:
		var b []byte
		b, err = fs.ReadFile(img, path)
		contents = string(b)
	}
	size := info.Size()
	if info.IsDir() {
		size = 0
	}
	return describe(info.Mode(), size, st.UID, st.GID, int64(st.Mtime), st.MtimeNs, st.Nlink, st.Rdev, contents, st.Xattrs), err
}

func describe(mode fs.FileMode, size int64, uid, gid uint32, sec int64, nsec uint32, nlink int, rdev uint32, contents string, xattrs map[string]string) string {
	line := fmt.Sprintf("%v %d %d:%d %d.%09d links %d rdev %d %q", mode, size, uid, gid, sec, nsec, nlink, rdev, contents)
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		line += fmt.Sprintf(" %s=%x", name, xattrs[name])
	}
	return line
}

func linkCounts(dir *tree.Node) map[*tree.Node]int {
	counts := make(map[*tree.Node]int)
	var walk func(*tree.Node)
	walk = func(dir *tree.Node) {
		for _, n := range dir.All() {
			counts[n]++
			if n.IsDir() {
				walk(n)
			}
		}
	}
	walk(dir)
	return counts
}

var modes = map[tree.Kind]fs.FileMode{
	tree.Directory: fs.ModeDir, tree.Symlink: fs.ModeSymlink, tree.Fifo: fs.ModeNamedPipe, tree.CharDevice: fs.ModeDevice | fs.ModeCharDevice,
}

// describeTree writes what a reader of the image in format v sees.
func describeTree(out map[string]string, path string, n *tree.Node, counts map[*tree.Node]int, v erofs.Version) {
	nlink, size, contents := counts[n], n.Size, string(n.Inline)
	xattrs := make(map[string]string)
	for _, x := range n.Xattrs {
		xattrs[x.Name] = x.Value
	}
	switch {
	case n.IsDir():
		nlink = 2
		for name, c := range n.All() {
			if c.IsDir() {
				nlink++
			}
			describeTree(out, strings.TrimPrefix(path+"/"+name, "./"), c, counts, v)
		}
		if path == "." && v != erofs.V2 {
			xattrs["trusted.overlay.opaque"] = "y"
		}
	case n.Kind == tree.Symlink:
		size, contents = int64(len(n.Target)), n.Target
	case n.IsExternal():
		xattrs["trusted.overlay.redirect"] = "/" + n.Digest.ObjectPath()
		xattrs["trusted.overlay.metacopy"] = string([]byte{0, byte(4 + n.Digest.Algorithm().Size()), 0, byte(fsverity.SHA256)}) + n.Digest.Raw()
	}
	out[path] = describe(fs.FileMode(n.Mode)|modes[n.Kind], size, n.UID, n.GID, n.MtimeSec, n.MtimeNsec, nlink, n.Rdev, contents, xattrs)
}
