package deploy

import (
	"context"
	"errors"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
)

// readImage decodes an image of the repository, by digest and measured.
func readImage(ctx context.Context, r *repo.Repository, d fsverity.Digest) (_ *tree.Node, err error) {
	f, err := r.OpenImage(ctx, d)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return erofs.Decode(f, st.Size())
}
