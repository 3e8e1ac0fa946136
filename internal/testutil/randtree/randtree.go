// Package randtree makes random file trees for tests of the image formats. They
// are full of what such formats get wrong: hard links across directories, names
// that sort before ".", shared and unshared times and attributes, names of object
// folders in the root, contents and entries that end near a block border,
// whiteouts, files of every way to store contents.
package randtree

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// Options bound a tree. The zero value gives small trees in SHA-256.
type Options struct {
	Nodes     int                // at most about so many, 0: 1 to 400
	Algorithm fsverity.Algorithm // of the objects, 0: SHA-256
}

// New returns a tree that depends on nothing but rng and o. Every tree can be
// encoded, and is read back from a dumpfile as it is.
func New(rng *rand.Rand, o Options) *tree.Node {
	if o.Nodes == 0 {
		o.Nodes = 1 + rng.IntN(400)
	}
	if o.Algorithm == 0 {
		o.Algorithm = fsverity.SHA256
	}
	g := &generator{rng: rng, alg: o.Algorithm, left: o.Nodes}
	g.pools()
	root := tree.NewDir(g.meta())
	g.dirs = []*tree.Node{root}
	for g.left > 0 {
		g.left--
		dir := g.dirs[rng.IntN(len(g.dirs))]
		if rng.IntN(3) == 0 {
			dir = g.dirs[len(g.dirs)-1] // grow deep
		}
		if rng.IntN(60) == 0 {
			g.many(dir)
			continue
		}
		name := g.name(dir == root)
		if dir.Lookup(name) != nil {
			continue
		}
		g.enter(dir, name)
	}
	return root
}

type generator struct {
	rng     *rand.Rand
	alg     fsverity.Algorithm
	left    int
	dirs    []*tree.Node
	leaves  []*tree.Node // that may get a second name
	mtimes  []tree.Meta
	xattrs  []tree.Xattr
	digests []fsverity.Digest
}

func (g *generator) digest() fsverity.Digest {
	b := make([]byte, g.alg.Size())
	for i := range b {
		b[i] = byte(g.rng.Uint32())
	}
	d, err := fsverity.NewDigest(g.alg, b)
	if err != nil {
		panic(err)
	}
	return d
}

func (g *generator) bytes(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.rng.Uint32())
	}
	return string(b)
}

var xattrNames = []string{
	"user.a", "user.b", "user.mime_type", "user.", "user.=", "user.sp ace", "trusted.x", "trusted.overlay.opaque", "trusted.overlay.overlay.x",
	"trusted.overlay.", "trusted.overlay.redirect", "trusted.overlay.metacopy", "security.selinux", "security.capability", "security.ima",
	"system.posix_acl_access", "system.posix_acl_default", "lustre.lov", "odd", "btrfs.compression", "user.overlay.opaque",
}

func (g *generator) pools() {
	for range 1 + g.rng.IntN(4) {
		g.mtimes = append(g.mtimes, tree.Meta{MtimeSec: int64(g.rng.Uint32()) * int64(g.rng.IntN(3)), MtimeNsec: uint32(g.rng.IntN(3)) * 499_999_999})
	}
	for _, name := range xattrNames {
		for range 1 + g.rng.IntN(3) {
			g.xattrs = append(g.xattrs, tree.Xattr{Name: name, Value: g.bytes(g.rng.IntN(9))})
		}
	}
	for range 4 {
		g.digests = append(g.digests, g.digest())
	}
}

func (g *generator) meta() tree.Meta {
	m := g.mtimes[g.rng.IntN(len(g.mtimes))]
	if g.rng.IntN(4) == 0 {
		m.MtimeSec, m.MtimeNsec = int64(g.rng.Uint64()>>(2+g.rng.IntN(60))), uint32(g.rng.IntN(1_000_000_000))
	}
	m.Mode = uint16(g.rng.IntN(0o10000))
	switch g.rng.IntN(6) {
	case 0:
		m.UID, m.GID = g.rng.Uint32(), g.rng.Uint32()
	case 1:
		m.UID, m.GID = uint32(65534+g.rng.IntN(4)), uint32(65534+g.rng.IntN(4))
	}
	if g.rng.IntN(3) == 0 {
		used := make(map[string]bool)
		for range 1 + g.rng.IntN(6) {
			x := g.xattrs[g.rng.IntN(len(g.xattrs))]
			if g.rng.IntN(8) == 0 {
				x.Value = g.bytes(g.rng.IntN(300))
			}
			if !used[x.Name] {
				used[x.Name] = true
				m.Xattrs = append(m.Xattrs, x)
			}
		}
		slices.SortFunc(m.Xattrs, func(a, b tree.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	}
	return m
}

func (g *generator) name(inRoot bool) string {
	switch g.rng.IntN(8) {
	case 0:
		if inRoot {
			return fmt.Sprintf("%02x", g.rng.IntN(256))
		}
		return string([]byte{byte(0x21 + g.rng.IntN(13))}) + g.word()
	case 1:
		return "." + strings.Repeat(".", g.rng.IntN(3)) + g.word()
	case 2:
		return strings.Repeat(g.word(), 1+g.rng.IntN(20))
	case 3:
		return strings.NewReplacer("/", "_", "\x00", "_").Replace(g.bytes(1+g.rng.IntN(20)) + "x")
	case 4:
		return g.word() + strings.Repeat("n", g.rng.IntN(240))
	}
	return g.word()
}

func (g *generator) word() string {
	b := make([]byte, 1+g.rng.IntN(8))
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyzABC0123456789+_-=\\ "[g.rng.IntN(45)]
	}
	return string(b)
}

// many fills dir with files whose names bring it near a block border.
func (g *generator) many(dir *tree.Node) {
	length := 1 + g.rng.IntN(60)
	for i := range 20 + g.rng.IntN(400) {
		name := fmt.Sprintf("%0*d", max(length, 3), i)
		if dir.Lookup(name) == nil {
			dir.Set(name, tree.NewInline(g.mtimes[0], nil))
		}
	}
	g.left -= 20
}

// size returns a size that is often a border of something.
func (g *generator) size() int64 {
	switch g.rng.IntN(6) {
	case 0:
		return 1<<(12+g.rng.IntN(35)) + int64(g.rng.IntN(3)) - 1
	case 1:
		return int64(g.rng.Uint64()>>11)%(1<<53) + 1
	case 2:
		return 1<<53 - int64(g.rng.IntN(2))*(1<<43)
	}
	return 65 + int64(g.rng.IntN(1<<20))
}

func (g *generator) enter(dir *tree.Node, name string) {
	if len(g.leaves) > 0 && g.rng.IntN(10) == 0 {
		dir.Set(name, g.leaves[g.rng.IntN(len(g.leaves))])
		return
	}
	n := &tree.Node{Meta: g.meta()}
	switch g.rng.IntN(14) {
	case 0, 1, 2:
		n = tree.NewDir(n.Meta)
		g.dirs = append(g.dirs, n)
		dir.Set(name, n)
		return
	case 3, 4, 5:
		n.Kind, n.Size, n.Digest = tree.Regular, g.size(), g.digest()
		if g.rng.IntN(4) == 0 {
			n.Digest = g.digests[g.rng.IntN(len(g.digests))]
		}
		n.NoVerity = g.rng.IntN(8) == 0
	case 6, 7:
		n.Kind, n.Inline = tree.Regular, []byte(g.bytes(g.rng.IntN(70)))
		if g.rng.IntN(4) == 0 {
			n.Inline = bytes.Repeat([]byte{'x'}, g.rng.IntN(513))
		}
		n.Size = int64(len(n.Inline))
	case 8, 9:
		n.Kind, n.Target = tree.Symlink, strings.Repeat(g.word(), 1+g.rng.IntN(8))
		if g.rng.IntN(4) == 0 {
			n.Target = strings.Repeat("t", 1+g.rng.IntN(1024))
		}
	case 10:
		n.Kind, n.Rdev = tree.CharDevice+tree.Kind(g.rng.IntN(2)), g.rng.Uint32()|1
	case 11:
		n.Kind = tree.Fifo + tree.Kind(g.rng.IntN(2))
	case 12:
		n.Kind, n.Sparse, n.Size = tree.Regular, true, g.size()
	case 13: // a whiteout, with a mode that no stub has
		n.Kind, n.Mode = tree.CharDevice, 0o600
		dir.Set(name, n)
		return
	}
	dir.Set(name, n)
	g.leaves = append(g.leaves, n)
}
