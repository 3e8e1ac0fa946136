package etcmerge_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy/etcmerge"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

const algorithm = fsverity.SHA512

// The nodes of a case: f a file, d a directory, l a link.

func meta(mode uint16) tree.Meta {
	return tree.Meta{Mode: mode, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), MtimeSec: 1_700_000_000}
}

func f(contents string) *tree.Node { return fm(contents, 0o644) }

func fm(contents string, mode uint16) *tree.Node { return tree.NewInline(meta(mode), []byte(contents)) }

func l(target string) *tree.Node { return tree.NewSymlink(meta(0o777), target) }

func d(mode uint16, entries map[string]*tree.Node) *tree.Node {
	n := tree.NewDir(meta(mode))
	for name, child := range entries {
		if child != nil {
			n.Set(name, child)
		}
	}
	return n
}

func special(kind tree.Kind, rdev uint32) *tree.Node {
	return &tree.Node{Meta: meta(0o600), Kind: kind, Rdev: rdev}
}

// with returns a copy of a node that is no directory, with attributes
// "name=value" added.
func with(n *tree.Node, attrs ...string) *tree.Node {
	c := *n
	c.Xattrs = slices.Clone(n.Xattrs)
	for _, a := range attrs {
		name, value, _ := strings.Cut(a, "=")
		c.Xattrs = append(c.Xattrs, tree.Xattr{Name: name, Value: value})
	}
	slices.SortFunc(c.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return &c
}

// show prints a tree, one line a path, without owner and times; long values are
// cut.
func show(n *tree.Node) []string {
	out := []string{}
	var walk func(at string, n *tree.Node)
	walk = func(at string, n *tree.Node) {
		line := fmt.Sprintf("%s %04o", at, n.Mode)
		switch n.Kind {
		case tree.Directory:
			line += " dir"
		case tree.Symlink:
			line += " -> " + n.Target
		case tree.Regular:
			line += fmt.Sprintf(" %q", n.Inline)
		default:
			line += " " + n.Kind.String()
		}
		for _, x := range n.Xattrs {
			value := x.Value
			if len(value) > 40 {
				value = fmt.Sprintf("(%d bytes)", len(value))
			}
			line += fmt.Sprintf(" %s=%s", x.Name, value)
		}
		out = append(out, line)
		if n.IsDir() {
			for name, child := range n.All() {
				walk(path.Join(at, name), child)
			}
		}
	}
	walk(".", n)
	return out[1:] // the root is the same everywhere
}

// showItems prints the report: "path action reason [fields]".
func showItems(items []etcmerge.Item) []string {
	out := []string{}
	for _, i := range items {
		line := fmt.Sprintf("%s %s %s", i.Path, i.Action, i.Reason)
		if more := slices.Concat(i.Fields, i.Links); len(more) > 0 {
			line += " " + strings.Join(more, ",")
		}
		out = append(out, line)
	}
	return out
}

// liveOf makes a live side out of a tree, as Scan would.
func liveOf(root *tree.Node) *etcmerge.Live {
	return &etcmerge.Live{Root: root, Algorithm: algorithm}
}

// objects keeps contents by digest in a directory.
type objects struct {
	t   testing.TB
	dir string
}

func newObjects(t testing.TB) objects { return objects{t, t.TempDir()} }

func (o objects) put(contents string) *tree.Node {
	o.t.Helper()
	digest := fsverity.Sum(algorithm, []byte(contents))
	if err := os.WriteFile(filepath.Join(o.dir, digest.Hex()), []byte(contents), 0o600); err != nil {
		o.t.Fatal(err)
	}
	return tree.NewExternal(meta(0o644), digest, int64(len(contents)))
}

// OpenObject implements etcmerge.ObjectOpener.
func (o objects) OpenObject(d fsverity.Digest) (*os.File, error) {
	return os.Open(filepath.Join(o.dir, d.Hex()))
}

// generator makes random trees of which two share most files.
type generator struct {
	r       *rand.Rand
	special bool
}

func newGenerator(seed uint64) *generator {
	return &generator{r: rand.New(rand.NewPCG(seed, 7))}
}

func (g *generator) tree(depth int) *tree.Node {
	n := g.meta(tree.NewDir(tree.Meta{}))
	for i := range g.r.IntN(6) {
		n.Set(string(rune('a'+i)), g.node(depth))
	}
	return n
}

func (g *generator) node(depth int) *tree.Node {
	k := g.r.IntN(10)
	switch {
	case k < 3 && depth > 0:
		return g.tree(depth - 1)
	case k < 5:
		return g.meta(tree.NewSymlink(tree.Meta{}, string(rune('p'+g.r.IntN(3)))))
	case k < 6 && g.special:
		return g.meta(special(tree.Fifo, 0))
	}
	return g.meta(tree.NewInline(tree.Meta{}, []byte(strings.Repeat("x", g.r.IntN(4)))))
}

func (g *generator) meta(n *tree.Node) *tree.Node {
	n.Meta = meta([]uint16{0o600, 0o644, 0o755, 0o4755}[g.r.IntN(4)])
	if n.Kind == tree.Symlink {
		n.Mode = 0o777
	}
	n.MtimeSec += int64(g.r.IntN(3))
	n.MtimeNsec = uint32(g.r.IntN(3))
	if n.Kind != tree.Symlink && n.Kind != tree.Fifo {
		for i := range g.r.IntN(3) {
			n.Xattrs = append(n.Xattrs, tree.Xattr{Name: "user." + string(rune('a'+i)), Value: strings.Repeat("v", g.r.IntN(300))})
		}
	}
	return n
}

// edit returns a deep copy with random changes.
func (g *generator) edit(n *tree.Node, depth int) *tree.Node {
	if g.r.IntN(12) == 0 {
		return g.node(depth)
	}
	c := *n
	if n.IsDir() {
		cd := tree.NewDir(n.Meta)
		for name, child := range n.All() {
			if g.r.IntN(8) > 0 {
				cd.Set(name, g.edit(child, depth-1))
			}
		}
		if g.r.IntN(3) == 0 {
			cd.Set(string(rune('g'+g.r.IntN(3))), g.node(max(depth-1, 0)))
		}
		if g.r.IntN(6) == 0 {
			g.meta(cd)
		}
		return cd
	}
	if g.r.IntN(6) == 0 {
		g.meta(&c)
	}
	return &c
}

// editDir is edit for a root, which stays a directory.
func (g *generator) editDir(n *tree.Node) *tree.Node {
	for {
		if e := g.edit(n, 3); e.IsDir() {
			return e
		}
	}
}

func build(ctx context.Context, t testing.TB, r *etcmerge.Result, o objects, where string) {
	t.Helper()
	parent := openDir(t, where)
	if err := r.Build(ctx, parent, "etc.tx", o); err != nil {
		t.Fatal(err)
	}
}
