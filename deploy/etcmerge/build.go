package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// ObjectOpener gives the contents of the images' files. A *repo.Repository is
// one.
type ObjectOpener interface {
	OpenObject(fsverity.Digest) (*os.File, error)
}

// ErrConflicts says that a result with conflicts cannot be built.
var ErrConflicts = errors.New("/etc has conflicts")

// Build writes the result as the new directory name below parent; it must not
// exist. Owner, mode, times and extended attributes are those of the result. All
// contents are checked against their digests while they are copied. Nothing is
// synced: the caller does that before anything refers to the directory, and
// removes it after an error. Errors are *ChangedError if the live directory
// changed since the scan, *fsverity.MismatchError if an object is damaged,
// *durable.SpaceError if the file system is full.
func (r *Result) Build(ctx context.Context, parent *durable.Dir, name string, objects ObjectOpener) error {
	if len(r.Conflicts) > 0 {
		return ErrConflicts
	}
	w := &writer{objects: objects, open: func(at string, n *tree.Node) (io.ReadCloser, error) {
		if live, ok := r.local[n]; ok {
			return r.openLive(live)
		}
		return nil, nil
	}}
	w.mismatch = func(at string, n *tree.Node, err error) error {
		if live, ok := r.local[n]; ok {
			return &ChangedError{live, err.Error()}
		}
		return err
	}
	return w.tree(ctx, parent, name, r.Root)
}

// Objects returns an opener of the contents of every file of the result, by the
// digests that Root has: of the live directory, or from objects. What it opens of the
// live directory may have changed since the scan, which only Build notices.
func (r *Result) Objects(objects ObjectOpener) ObjectOpener {
	live := make(map[fsverity.Digest]string, len(r.local))
	for n, at := range r.local {
		live[n.Digest] = at
	}
	return &resultObjects{r, objects, live}
}

type resultObjects struct {
	result  *Result
	objects ObjectOpener
	live    map[fsverity.Digest]string
}

func (o *resultObjects) OpenObject(d fsverity.Digest) (*os.File, error) {
	if at, ok := o.live[d]; ok {
		return o.result.openLive(at)
	}
	return o.objects.OpenObject(d)
}

func (r *Result) openLive(at string) (*os.File, error) {
	f, err := r.live.dir.Open(at)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return nil, &ChangedError{at, err.Error()}
	case err != nil:
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &ChangedError{at, "it is no regular file any more"}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Copy writes a directory of an image, with all that is below it, as the new
// directory name below parent, as Build does. Hard links stay hard links.
func Copy(ctx context.Context, parent *durable.Dir, name string, root *tree.Node, objects ObjectOpener) error {
	return (&writer{objects: objects, links: map[*tree.Node]string{}}).tree(ctx, parent, name, root)
}

// CopyEtc is Copy for the /etc of a first installation: without etc/.updated, so
// that units with ConditionNeedsUpdate=/etc run at the first boot.
func CopyEtc(ctx context.Context, parent *durable.Dir, name string, root *tree.Node, objects ObjectOpener) error {
	w := &writer{objects: objects, links: map[*tree.Node]string{}, skip: updatedStamp}
	return w.tree(ctx, parent, name, root)
}

// room returns a *durable.SpaceError if the file system of parent has no room for
// the tree: seen before the first byte, not after the last.
func room(parent *durable.Dir, name string, root *tree.Node) error {
	have, err := parent.Space()
	if err != nil {
		return err
	}
	size, inodes := footprint(root, have.BlockSize)
	return fits(path.Join(parent.Path(), name), size, inodes, have)
}

func fits(where string, size, inodes int64, have durable.Space) error {
	full := &durable.SpaceError{Where: where, Need: size, Have: have.Bytes, Err: unix.ENOSPC}
	switch {
	case size > have.Bytes:
		return full
	case have.Inodes >= 0 && inodes > have.Inodes:
		full.Inodes, full.NeedFiles, full.HaveFiles = true, inodes, have.Inodes
		return full
	}
	return nil
}

// footprint is what a tree takes on a file system with blocks of blockSize bytes:
// contents and directories, rounded up, and inodes.
func footprint(root *tree.Node, blockSize int64) (size, inodes int64) {
	size, inodes = blockSize, 1
	for _, n := range root.All() {
		cost, count := n.Size, int64(1)
		if n.IsDir() {
			cost, count = footprint(n, blockSize)
		}
		if cost > math.MaxInt64-size-blockSize {
			return math.MaxInt64, inodes // sparse files may claim anything
		}
		size, inodes = size+(cost+blockSize-1)/blockSize*blockSize, inodes+count
	}
	return size, inodes
}

// writer writes a tree to a file system.
type writer struct {
	objects  ObjectOpener
	open     func(at string, n *tree.Node) (io.ReadCloser, error) // nil, or nil result: contents are the image's
	mismatch func(at string, n *tree.Node, err error) error       // nil: return err
	links    map[*tree.Node]string                                // first path below top; nil: files of their own
	skip     string                                               // path that is left out
	top      *durable.Dir
}

func (w *writer) tree(ctx context.Context, parent *durable.Dir, name string, root *tree.Node) (err error) {
	if !root.IsDir() {
		return fmt.Errorf("write %q: the root is a %s, want a directory", name, root.Kind)
	}
	if err := room(parent, name, root); err != nil {
		return err
	}
	if err := parent.Mkdir(name, 0o700); err != nil {
		return err
	}
	if w.top, err = parent.Sub(name); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.top.Close()) }()
	if err := w.entries(ctx, w.top, ".", root); err != nil {
		return err
	}
	return w.metadata(parent, name, root)
}

func (w *writer) entries(ctx context.Context, dir *durable.Dir, at string, n *tree.Node) error {
	for name, child := range n.All() {
		if err := ctx.Err(); err != nil {
			return err
		}
		childAt := path.Join(at, name)
		if childAt == w.skip {
			continue
		}
		if err := w.entry(ctx, dir, name, childAt, child); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) entry(ctx context.Context, dir *durable.Dir, name, at string, n *tree.Node) error {
	if w.links != nil && n.MaybeLinked() {
		if first, ok := w.links[n]; ok {
			return w.top.Link(first, dir, name)
		}
		w.links[n] = at
	}
	var err error
	switch n.Kind {
	case tree.Regular:
		return w.file(dir, name, at, n)
	case tree.Directory:
		err = w.directory(ctx, dir, name, at, n)
	case tree.Symlink:
		err = dir.Symlink(n.Target, name)
	default:
		err = dir.Mknod(name, uint32(n.Kind.ModeType())|0o600, uint64(n.Rdev))
	}
	if err != nil {
		return err
	}
	return w.metadata(dir, name, n)
}

func (w *writer) directory(ctx context.Context, parent *durable.Dir, name, at string, n *tree.Node) error {
	if err := parent.Mkdir(name, 0o700); err != nil {
		return err
	}
	dir, err := parent.Sub(name)
	if err != nil {
		return err
	}
	return errors.Join(w.entries(ctx, dir, at, n), dir.Close())
}

// metadata comes last: entries change the time of their directory, a new owner
// clears set-id bits and capabilities.
func (w *writer) metadata(dir *durable.Dir, name string, n *tree.Node) error {
	if err := dir.Lchown(name, int(n.UID), int(n.GID)); err != nil {
		return err
	}
	for _, x := range n.Xattrs {
		if dropped(x.Name) {
			continue
		}
		if err := dir.Setxattr(name, x.Name, []byte(x.Value)); err != nil {
			return err
		}
	}
	if n.Kind != tree.Symlink {
		if err := dir.Chmod(name, uint32(n.Mode)); err != nil {
			return err
		}
	}
	mtime := timeOf(n)
	return dir.Utimes(name, mtime, mtime)
}

func timeOf(n *tree.Node) unix.Timespec {
	return unix.Timespec{Sec: n.MtimeSec, Nsec: int64(n.MtimeNsec)}
}

func (w *writer) file(dir *durable.Dir, name, at string, n *tree.Node) (err error) {
	r, err := w.contents(at, n)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := dir.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var src io.Reader = r
	var hasher *fsverity.Hasher
	if !n.Digest.IsZero() {
		hasher = fsverity.NewHasher(n.Digest.Algorithm())
		src = io.TeeReader(r, hasher)
	}
	size, err := f.ReadFrom(src)
	if err != nil {
		return err
	}
	if hasher != nil {
		if got := hasher.Sum(); got != n.Digest {
			err := error(&fsverity.MismatchError{Where: path.Join(dir.Path(), name), Got: got, Want: n.Digest})
			if w.mismatch != nil {
				err = w.mismatch(at, n, err)
			}
			return err
		}
	}
	if size != n.Size {
		return fmt.Errorf("copy %q: got %d bytes, want %d", at, size, n.Size)
	}
	return w.fileMetadata(f, n)
}

func (w *writer) fileMetadata(f *durable.File, n *tree.Node) error {
	if err := f.Chown(int(n.UID), int(n.GID)); err != nil {
		return err
	}
	for _, x := range n.Xattrs {
		if dropped(x.Name) {
			continue
		}
		if err := f.Setxattr(x.Name, []byte(x.Value)); err != nil {
			return err
		}
	}
	if err := f.Chmod(uint32(n.Mode)); err != nil {
		return err
	}
	mtime := timeOf(n)
	return f.Utimes(mtime, mtime)
}

// contents opens what a regular file holds.
func (w *writer) contents(at string, n *tree.Node) (io.ReadCloser, error) {
	if w.open != nil {
		if r, err := w.open(at, n); r != nil || err != nil {
			return r, err
		}
	}
	switch {
	case !n.Digest.IsZero():
		return w.objects.OpenObject(n.Digest)
	case n.Sparse:
		return io.NopCloser(io.LimitReader(zeros{}, n.Size)), nil
	}
	return io.NopCloser(bytes.NewReader(n.Inline)), nil
}
