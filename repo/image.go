package repo

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/cfsboot/cfsboot/fsverity"
)

// PublishImage lists the stored object d in images/, so that it may be mounted.
// All objects stored before are durable first.
func (r *Repository) PublishImage(ctx context.Context, d fsverity.Digest) error {
	return r.publish(ctx, Images, d.Hex(), d)
}

// OpenImage opens the image d, which must be listed in images/, and verifies its
// content: by the kernel, which then enforces it, or by hashing it where an
// insecure repository has no fs-verity. A ref is never followed.
func (r *Repository) OpenImage(ctx context.Context, d fsverity.Digest) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := r.checkDigest(d); err != nil {
		return nil, err
	}
	listed, err := r.lookup(Images, d.Hex())
	if err != nil {
		return nil, err
	}
	if listed != d {
		return nil, &fsverity.MismatchError{Where: fmt.Sprintf("the link images/%s", d.Hex()), Got: listed, Want: d}
	}
	return r.openVerified(d)
}

// ResolveImage returns the digest that a name leads to: a digest in hex, which
// must be listed in images/ and never means a ref; "refs/" and a ref; or a ref.
func (r *Repository) ResolveImage(name string) (fsverity.Digest, error) {
	if d, err := fsverity.ParseHex(name); err == nil {
		if err := r.checkDigest(d); err != nil {
			return fsverity.Digest{}, err
		}
		listed, err := r.lookup(Images, d.Hex())
		if err == nil && listed != d {
			err = &fsverity.MismatchError{Where: fmt.Sprintf("the link images/%s", name), Got: listed, Want: d}
		}
		return d, err
	}
	target, err := r.ResolveRef(Images, strings.TrimPrefix(name, "refs/"))
	if err != nil {
		return fsverity.Digest{}, err
	}
	d, err := fsverity.ParseHex(target)
	if err != nil {
		return fsverity.Digest{}, fmt.Errorf("image ref %q: %w", name, err)
	}
	return r.lookup(Images, d.Hex())
}
