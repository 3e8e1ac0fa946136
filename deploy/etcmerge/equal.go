package etcmerge

import (
	"io"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

const (
	aclAccess = "system.posix_acl_access"
	selinux   = "security.selinux"
	ima       = "security.ima"
)

// ignored tells whether an extended attribute takes no part in the comparison:
// a label belongs to the policy, a signature to the contents.
func ignored(name string) bool { return name == selinux || name == ima || dropped(name) }

// dropped tells whether an attribute is never carried over: the HMAC of EVM
// holds for one inode only, overlayfs keeps its own notes.
func dropped(name string) bool {
	return name == "security.evm" || strings.HasPrefix(name, "trusted.overlay.")
}

// isSpecial tells whether n is a FIFO, socket or device, which is not merged.
func isSpecial(n *tree.Node) bool {
	if n == nil {
		return false
	}
	switch n.Kind {
	case tree.Fifo, tree.Socket, tree.CharDevice, tree.BlockDevice:
		return true
	}
	return false
}

// comparer compares nodes of images and of the live directory.
type comparer struct{ algorithm fsverity.Algorithm }

// contents is the fs-verity digest of a regular file, wherever its contents are.
func (c comparer) contents(n *tree.Node) fsverity.Digest {
	switch {
	case !n.Digest.IsZero():
		return n.Digest
	case n.Sparse:
		d, _, err := fsverity.SumReader(c.algorithm, io.LimitReader(zeros{}, n.Size))
		if err != nil {
			return fsverity.Digest{} // zeros has no errors
		}
		return d
	}
	return fsverity.Sum(c.algorithm, n.Inline)
}

// zeros reads as endless zero bytes.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// body tells whether two nodes are of one type with equal contents, link target
// or device number. Two directories always are.
func (c comparer) body(x, y *tree.Node) bool {
	if x.Kind != y.Kind {
		return false
	}
	switch x.Kind {
	case tree.Regular:
		return x.Size == y.Size && c.contents(x) == c.contents(y)
	case tree.Symlink:
		return x.Target == y.Target
	case tree.CharDevice, tree.BlockDevice:
		return x.Rdev == y.Rdev
	}
	return true
}

// meta tells whether two nodes have equal metadata, times and ignored
// attributes aside.
func (c comparer) meta(x, y *tree.Node) bool {
	if permissionOf(x) != permissionOf(y) || x.UID != y.UID || x.GID != y.GID {
		return false
	}
	for _, name := range attributeNames(x, y) {
		if attributeOf(x, name) != attributeOf(y, name) {
			return false
		}
	}
	return true
}

// deep tells whether two nodes are equal with all that is below them.
func (c comparer) deep(x, y *tree.Node) bool {
	return c.body(x, y) && c.meta(x, y) && (!x.IsDir() || c.children(x, y))
}

// children tells whether two directories have equal entries.
func (c comparer) children(x, y *tree.Node) bool {
	if x.Len() != y.Len() {
		return false
	}
	for name, child := range x.All() {
		other := y.Lookup(name)
		if other == nil || !c.deep(child, other) {
			return false
		}
	}
	return true
}
