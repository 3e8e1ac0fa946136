package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
)

// A layer in the repository has the name of its diff_id, but composefs-rs gives
// that name without looking, so anybody's image can plant bytes under the diff_id
// of somebody else's layer. Layers are therefore used only if this program
// compared them: cfsboot/verified/<diff_id> is a symbolic link whose target is
// the splitstream that was compared. It says something about content, so it
// stays true as long as objects are what their names say. cfsctl ignores extra
// directories in the root of a repository.
const verifiedDir = "cfsboot/verified"

// The image IDs on a config stream may come from anybody too. Those that this
// program computed are recorded likewise, as the target of the symbolic link
// cfsboot/images/<manifest digest>: rules, plain ID, boot ID, with colons.
const computedDir = "cfsboot/images"

// imageRules is changed when the same layers give other image IDs.
const imageRules = "1"

// Computed are image IDs that this program computed from verified layers, in the
// default format of the repository. Boot may be zero.
type Computed struct{ Plain, Boot fsverity.Digest }

// FindComputed returns what MarkComputed recorded for a manifest; ok is false if
// there is nothing that is valid.
func FindComputed(r *repo.Repository, manifest digest.Digest) (c Computed, ok bool, err error) {
	target, err := r.Dir().Readlink(computedDir + "/" + manifest.String())
	if errors.Is(err, fs.ErrNotExist) {
		return Computed{}, false, nil
	}
	if err != nil {
		return Computed{}, false, err
	}
	parts := strings.Split(target, ":")
	if len(parts) != 3 || parts[0] != imageRules {
		return Computed{}, false, nil
	}
	if err := errors.Join(c.Plain.UnmarshalText([]byte(parts[1])), c.Boot.UnmarshalText([]byte(parts[2]))); err != nil || c.Plain.IsZero() {
		return Computed{}, false, nil // a damaged record is none
	}
	return c, true, nil
}

// MarkComputed records image IDs. Both images must be published.
func MarkComputed(ctx context.Context, r *repo.Repository, manifest digest.Digest, c Computed) error {
	if err := mark(ctx, r, computedDir, manifest, imageRules+":"+c.Plain.Hex()+":"+c.Boot.Hex()); err != nil {
		return fmt.Errorf("record images of %s: %w", manifest, err)
	}
	return nil
}

// mark makes a link. What it speaks of must be durable already.
func mark(ctx context.Context, r *repo.Repository, dirName string, name digest.Digest, target string) (err error) {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := r.Writable(); err != nil {
		return err
	}
	dir, err := r.Dir().MkdirAll(dirName, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return dir.ReplaceSymlink(target, name.String(), r.Dir(), ".symlink-")
}

// IsVerified reports whether the splitstream of a layer was compared with its
// diff_id by this program.
func IsVerified(r *repo.Repository, diffID digest.Digest, stream fsverity.Digest) (bool, error) {
	target, err := r.Dir().Readlink(verifiedDir + "/" + diffID.String())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && target == stream.String(), err
}

// markVerified records that a layer was compared. The layer must be published,
// so that its data is durable before the record can be.
func markVerified(ctx context.Context, r *repo.Repository, diffID digest.Digest, stream fsverity.Digest) error {
	return mark(ctx, r, verifiedDir, diffID, stream.String())
}

// ForgetLayer removes the record that a layer was compared, after the name of the
// layer was removed. No record is no error.
func ForgetLayer(r *repo.Repository, diffID digest.Digest) error {
	err := r.Dir().Remove(verifiedDir + "/" + diffID.String())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// PublishLayer gives an imported layer its name and remembers that it was
// compared with its diff_id. Everything that was stored before is durable first.
func PublishLayer(ctx context.Context, r *repo.Repository, l *Layer) error {
	if err := r.PublishStream(ctx, LayerStream(l.DiffID), l.Stream); err != nil {
		return fmt.Errorf("publish layer %s: %w", l.DiffID, err)
	}
	if err := markVerified(ctx, r, l.DiffID, l.Stream); err != nil {
		return fmt.Errorf("publish layer %s: %w", l.DiffID, err)
	}
	return nil
}

// FindLayer looks for a layer in the repository. A layer that this program has
// not compared with its diff_id yet is compared now, after a call of comparing,
// which may be nil: that reads the whole layer. If there is none, or its content
// is not what its name says, ok is false: it must be imported, which replaces the
// name.
func FindLayer(ctx context.Context, r *repo.Repository, diffID digest.Digest, comparing func()) (stream fsverity.Digest, ok bool, err error) {
	stream, err = r.LookupStream(LayerStream(diffID))
	if errors.Is(err, repo.ErrNotFound) {
		return fsverity.Digest{}, false, nil
	}
	if err != nil {
		return fsverity.Digest{}, false, err
	}
	ok, err = IsVerified(r, diffID, stream)
	if ok || err != nil {
		return stream, ok, err
	}
	if comparing != nil {
		comparing()
	}
	if err := VerifyLayer(ctx, r, diffID, stream); err != nil {
		if ctx.Err() != nil {
			return fsverity.Digest{}, false, context.Cause(ctx)
		}
		return fsverity.Digest{}, false, nil // whatever is wrong with it, a fresh import puts it right
	}
	if err := r.Sync(ctx); err != nil { // what was read may be in the cache only
		return fsverity.Digest{}, false, err
	}
	return stream, true, markVerified(ctx, r, diffID, stream)
}
