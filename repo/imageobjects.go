package repo

import (
	"io"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// imageObjects returns the distinct objects that an EROFS image needs, in the
// order of the tree. Errors about its content are *erofs.FormatError.
func imageObjects(r io.ReaderAt, size int64) ([]fsverity.Digest, error) {
	root, err := erofs.Decode(r, size)
	if err != nil {
		return nil, err
	}
	var list []fsverity.Digest
	seen := make(map[fsverity.Digest]bool)
	var walk func(n *tree.Node)
	walk = func(n *tree.Node) {
		if !n.Digest.IsZero() && !seen[n.Digest] {
			seen[n.Digest] = true
			list = append(list, n.Digest)
		}
		if n.Kind != tree.Directory {
			return
		}
		for _, child := range n.All() {
			walk(child)
		}
	}
	walk(root)
	return list, nil
}
