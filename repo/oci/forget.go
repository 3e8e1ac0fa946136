package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cfsboot/cfsboot/repo"
)

// Forget removes the records about layers and images (see verifiedDir and
// computedDir) that no image with a tag or another ref needs. It frees no object.
// What is forgotten and still there is compared again before it is used, so a
// pull at the same time may lose time but nothing else. If an image with a ref
// cannot be read, nobody knows what it needs: that is the error, and nothing is
// removed.
func Forget(ctx context.Context, r *repo.Repository) error {
	if err := r.Writable(); err != nil {
		return err
	}
	needed := map[string]bool{} // names of records in both directories
	for ref, err := range r.Refs(repo.Streams, "") {
		if errors.Is(err, repo.ErrNoRef) {
			continue
		}
		if err != nil {
			return fmt.Errorf("forget records: %w", err)
		}
		text, ok := strings.CutPrefix(ref.Target, manifestPrefix)
		if !ok || needed[text] {
			continue
		}
		img, err := OpenImage(ctx, r, digest.Digest(text))
		var artifact *MediaTypeError
		if errors.As(err, &artifact) || errors.Is(err, repo.ErrNotFound) {
			continue // has no layers, or is not there
		}
		if err != nil {
			return fmt.Errorf("forget records: %w", err)
		}
		needed[text] = true
		for _, l := range img.Layers {
			needed[l.DiffID.String()] = true
		}
	}
	for _, dir := range []string{computedDir, verifiedDir} {
		if err := forgetIn(ctx, r, dir, needed); err != nil {
			return fmt.Errorf("forget records: %w", err)
		}
	}
	return nil
}

func forgetIn(ctx context.Context, r *repo.Repository, dir string, needed map[string]bool) error {
	list, err := r.Dir().ReadSubDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, x := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if needed[x.Name] || !x.IsSymlink() {
			continue
		}
		if err := r.Dir().Remove(dir + "/" + x.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
