package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

func xattrs(n, valueSize int) []tree.Xattr {
	list := make([]tree.Xattr, n)
	for i := range list {
		list[i] = tree.Xattr{Name: fmt.Sprintf("user.%03d", i), Value: strings.Repeat("v", valueSize)}
	}
	return list
}

// TestEncodeRefuses: what the format cannot hold, or what readers would refuse, is
// an error that names the node, and nothing is written.
func TestEncodeRefuses(t *testing.T) {
	digest := fsverity.Sum(fsverity.SHA256, []byte("x"))
	file := func(change func(*tree.Node)) *tree.Node {
		n := tree.NewInline(tree.Meta{}, []byte("x"))
		change(n)
		return n
	}
	with := func(name string, n *tree.Node) *tree.Node {
		root := tree.NewDir(tree.Meta{})
		dir := tree.NewDir(tree.Meta{})
		root.Set("d", dir)
		dir.Set(name, n)
		return root
	}
	plain := tree.NewInline(tree.Meta{}, nil)
	for name, c := range map[string]struct {
		root        *tree.Node
		path, field string
	}{
		"root is a file":        {plain, "/", "type"},
		"no kind":               {with("f", new(tree.Node)), "/d/f", "type"},
		"empty name":            {with("", plain), "/d/", "name"},
		"dot":                   {with(".", plain), "/d/.", "name"},
		"dot dot":               {with("..", plain), "/d/..", "name"},
		"slash":                 {with("a/b", plain), "/d/a/b", "name"},
		"NUL":                   {with("a\x00", plain), "/d/a\x00", "name"},
		"long name":             {with(strings.Repeat("n", 256), plain), "", "name"},
		"negative time":         {with("f", file(func(n *tree.Node) { n.MtimeSec = -1 })), "/d/f", "mtime"},
		"nanoseconds":           {with("f", file(func(n *tree.Node) { n.MtimeNsec = 1_000_000_000 })), "/d/f", "mtime"},
		"inline too long":       {with("f", tree.NewInline(tree.Meta{}, make([]byte, 5001))), "/d/f", "size"},
		"inline size differs":   {with("f", file(func(n *tree.Node) { n.Size = 2 })), "/d/f", "size"},
		"contents twice":        {with("f", file(func(n *tree.Node) { n.Digest = digest })), "/d/f", "contents"},
		"external and sparse":   {with("f", &tree.Node{Kind: tree.Regular, Size: 5, Digest: digest, Sparse: true}), "/d/f", "contents"},
		"no object":             {with("f", &tree.Node{Kind: tree.Regular, NoVerity: true}), "/d/f", "contents"},
		"external empty":        {with("f", tree.NewExternal(tree.Meta{}, digest, 0)), "/d/f", "size"},
		"external too large":    {with("f", tree.NewExternal(tree.Meta{}, digest, 1<<53+1)), "/d/f", "size"},
		"external negative":     {with("f", tree.NewExternal(tree.Meta{}, digest, -1)), "/d/f", "size"},
		"symlink empty":         {with("l", tree.NewSymlink(tree.Meta{}, "")), "/d/l", "target"},
		"symlink too long":      {with("l", tree.NewSymlink(tree.Meta{}, strings.Repeat("t", 4096))), "/d/l", "target"},
		"symlink with NUL":      {with("l", tree.NewSymlink(tree.Meta{}, "a\x00")), "/d/l", "target"},
		"many xattrs":           {with("f", tree.NewInline(tree.Meta{Xattrs: xattrs(129, 0)}, nil)), "/d/f", "xattr"},
		"xattr area":            {with("f", tree.NewInline(tree.Meta{Xattrs: xattrs(5, 65000)}, nil)), "/d/f", "xattr"},
		"xattr value":           {with("f", tree.NewInline(tree.Meta{Xattrs: xattrs(1, 65536)}, nil)), "/d/f", "xattr"},
		"xattr name":            {with("f", tree.NewInline(tree.Meta{Xattrs: []tree.Xattr{{Name: strings.Repeat("n", 256)}}}, nil)), "/d/f", "xattr"},
		"xattr without a name":  {with("f", tree.NewInline(tree.Meta{Xattrs: []tree.Xattr{{}}}, nil)), "/d/f", "xattr"},
		"xattr name with NUL":   {with("f", tree.NewInline(tree.Meta{Xattrs: []tree.Xattr{{Name: "user.\x00"}}}, nil)), "/d/f", "xattr"},
		"xattrs not in order":   {with("f", tree.NewInline(tree.Meta{Xattrs: []tree.Xattr{{Name: "user.b"}, {Name: "user.a"}}}, nil)), "/d/f", "xattr"},
		"xattr twice":           {with("f", tree.NewInline(tree.Meta{Xattrs: []tree.Xattr{{Name: "user.b"}, {Name: "user.b"}}}, nil)), "/d/f", "xattr"},
		"ACL with a suffix":     {with("f", tree.NewInline(tree.Meta{Xattrs: []tree.Xattr{{Name: "system.posix_acl_accessory"}}}, nil)), "/d/f", "xattr"},
		"root is bad":           {tree.NewDir(tree.Meta{MtimeSec: -1}), "/", "mtime"},
		"hard-linked whiteout":  {linkedTwice(&tree.Node{Kind: tree.CharDevice}), "/a/f", "links"},
		"directory entered 2x":  {linkedTwice(tree.NewDir(tree.Meta{})), "/b/f", "links"},
		"directory in itself":   {cycle(), "/d/e/loop", "links"},
		"root in the tree":      {rootInTree(), "/d/loop", "links"},
		"too deep":              {deep(2049), "", "depth"},
		"shared xattrs above":   {sharedAbove(), "/a", "xattr"},
		"external, wide number": {with("f", tree.NewExternal(tree.Meta{}, digest, math.MaxInt64)), "/d/f", "size"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range formats {
				var out bytes.Buffer
				err := erofs.Encode(&out, c.root, v)
				var te *erofs.TreeError
				if !errors.As(err, &te) || te.Field != c.field || c.path != "" && te.Path != c.path {
					t.Fatalf("format %d: got %v, want a TreeError for %s of %q", v, err, c.field, c.path)
				}
				if out.Len() > 0 {
					t.Errorf("format %d: %d bytes were written", v, out.Len())
				}
			}
		})
	}
}

func linkedTwice(n *tree.Node) *tree.Node {
	root, a, b := tree.NewDir(tree.Meta{}), tree.NewDir(tree.Meta{}), tree.NewDir(tree.Meta{})
	root.Set("a", a)
	root.Set("b", b)
	a.Set("f", n)
	b.Set("f", n)
	return root
}

func cycle() *tree.Node {
	root, d, e := tree.NewDir(tree.Meta{}), tree.NewDir(tree.Meta{}), tree.NewDir(tree.Meta{})
	root.Set("d", d)
	d.Set("e", e)
	e.Set("loop", d)
	return root
}

func rootInTree() *tree.Node {
	root, d := tree.NewDir(tree.Meta{}), tree.NewDir(tree.Meta{})
	root.Set("d", d)
	d.Set("loop", root)
	return root
}

// deep returns a tree of n levels of directories.
func deep(n int) *tree.Node {
	root := tree.NewDir(tree.Meta{})
	for dir := root; n > 1; n-- {
		next := tree.NewDir(tree.Meta{})
		dir.Set("d", next)
		dir = next
	}
	return root
}

// sharedAbove has two files with 128 equal attributes of their own, and two more
// that come from the object.
func sharedAbove() *tree.Node {
	root := tree.NewDir(tree.Meta{})
	for _, name := range []string{"a", "b"} {
		root.Set(name, tree.NewExternal(tree.Meta{Xattrs: xattrs(128, 0)}, fsverity.Sum(fsverity.SHA256, nil), 5))
	}
	return root
}

// longV2 are trees that format 2 does not hold.
var longV2 = map[string]bool{"inline": true, "target": true}

// TestEncodeRefusesV2: what is too long for format 2 is an error that names the
// node, and nothing is written; one byte less comes back.
func TestEncodeRefusesV2(t *testing.T) {
	meta := tree.Meta{Xattrs: []tree.Xattr{{Name: "user.x", Value: "value"}}} // 24 bytes of area
	for name, c := range map[string]struct {
		make  func(length int) *tree.Node
		limit int
		field string
	}{
		"contents":               {func(n int) *tree.Node { return tree.NewInline(tree.Meta{}, make([]byte, n)) }, 512, "size"},
		"target":                 {func(n int) *tree.Node { return tree.NewSymlink(tree.Meta{}, strings.Repeat("t", n)) }, 4096 - 64, "target"},
		"target with attributes": {func(n int) *tree.Node { return tree.NewSymlink(meta, strings.Repeat("t", n)) }, 4096 - 64 - 24, "target"},
	} {
		t.Run(name, func(t *testing.T) {
			roundTrip(t, one(c.make(c.limit)), erofs.V2)
			long := one(c.make(c.limit + 1))
			roundTrip(t, long, erofs.V0, erofs.V1)
			var out bytes.Buffer
			err := erofs.Encode(&out, long, erofs.V2)
			var te *erofs.TreeError
			if !errors.As(err, &te) || te.Path != "/f" || te.Field != c.field || out.Len() > 0 {
				t.Errorf("got %v and %d bytes, want a TreeError for %s of /f", err, out.Len(), c.field)
			}
		})
	}
}

func TestEncodeLimitsAreReached(t *testing.T) {
	for name, root := range map[string]*tree.Node{
		"depth":           deep(2048),
		"unshared xattrs": one(tree.NewInline(tree.Meta{Xattrs: xattrs(128, 2000)}, nil)),
		"inline":          one(tree.NewInline(tree.Meta{}, make([]byte, 5000))),
		"target":          one(tree.NewSymlink(tree.Meta{Xattrs: xattrs(3, 3000)}, strings.Repeat("t", 4095))),
		"size":            one(tree.NewExternal(tree.Meta{Xattrs: xattrs(1, 3900)}, fsverity.Sum(fsverity.SHA512, nil), 1<<53)),
		"link removed":    linkRemoved(),
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range formats {
				if v != erofs.V2 || !longV2[name] {
					roundTrip(t, root, v)
				}
			}
		})
	}
}

func one(n *tree.Node) *tree.Node {
	root := tree.NewDir(tree.Meta{Mode: 0o755})
	root.Set("f", n)
	return root
}

// linkRemoved has nodes that had two names once.
func linkRemoved() *tree.Node {
	root := linkedTwice(&tree.Node{Kind: tree.CharDevice, Meta: tree.Meta{Mode: 0o600}})
	root.Lookup("a").Remove("f")
	moved := tree.NewDir(tree.Meta{})
	root.Set("x", moved)
	root.Set("y", moved)
	root.Remove("x")
	return root
}

// TestEncodeHugeImage: what would not fit into the 1 GiB that readers accept is
// refused before it is written.
func TestEncodeHugeImage(t *testing.T) {
	root := tree.NewDir(tree.Meta{})
	value := strings.Repeat("v", 65535)
	for i := range 1 << 14 { // different names, so that nothing is shared
		name := fmt.Sprintf("user.%05d", i)
		root.Set(name, tree.NewInline(tree.Meta{Xattrs: []tree.Xattr{{Name: name, Value: value}}}, nil))
	}
	for _, v := range formats {
		err := erofs.Encode(io.Discard, root, v)
		var te *erofs.TreeError
		if !errors.As(err, &te) || te.Field != "size" {
			t.Errorf("format %d: got %v, want a TreeError for the size", v, err)
		}
	}
}

// TestEncodeWriteErrors: the writer's error comes back from wherever it happens.
func TestEncodeWriteErrors(t *testing.T) {
	root := tree.NewDir(tree.Meta{})
	for i := range 20_000 {
		root.Set(fmt.Sprintf("%0100d", i), tree.NewInline(tree.Meta{}, nil))
	}
	for _, v := range formats {
		var size int64
		if err := erofs.Encode(counter{&size}, root, v); err != nil {
			t.Fatal(err)
		}
		for limit := int64(0); limit < size; limit += size / 7 {
			if err := erofs.Encode(&limited{limit}, root, v); !errors.Is(err, errFull) {
				t.Errorf("format %d, after %d of %d bytes: got %v, want %v", v, limit, size, err, errFull)
			}
		}
	}
}

type counter struct{ n *int64 }

func (c counter) Write(p []byte) (int, error) { *c.n += int64(len(p)); return len(p), nil }

var errFull = errors.New("full")

type limited struct{ left int64 }

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= int64(len(p)); l.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// TestEncodeLeavesTreeAlone: plain and boot image are made from one tree.
func TestEncodeLeavesTreeAlone(t *testing.T) {
	root := linkedTwice(tree.NewExternal(tree.Meta{Mode: 0o644}, fsverity.Sum(fsverity.SHA256, nil), 100))
	root.Set("w", &tree.Node{Kind: tree.CharDevice, Meta: tree.Meta{Mode: 0o600}})
	before := dumpOf(t, root)
	first, _, _ := imageID(t, root)
	if after := dumpOf(t, root); after != before {
		t.Errorf("tree changed to\n%s\nfrom\n%s", after, before)
	}
	if second, _, _ := imageID(t, root); !bytes.Equal(first, second) {
		t.Error("the second image differs")
	}
}
