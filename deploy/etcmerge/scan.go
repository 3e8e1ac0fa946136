package etcmerge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

const (
	// maxDepth bounds the nesting of the live directory; PATH_MAX allows no more
	// in practice.
	maxDepth = 128

	// settleTime is how long before a scan the last change must lie for a
	// fingerprint to be trusted: timestamps are not finer than a clock tick, so a
	// file that was changed twice within one looks unchanged.
	settleTime = 2 * time.Second
)

// Live is the live /etc as it was read.
type Live struct {
	Root *tree.Node // contents of all regular files by digest
	// Algorithm is that of the digests in Root.
	Algorithm fsverity.Algorithm
	// Fingerprint changes when anything in the directory does. It is "" if the
	// last change was too recent to tell.
	Fingerprint string

	dir *durable.Dir
}

// ChangedError says that a live file changed while it was merged. Scanning and
// merging again may succeed.
type ChangedError struct {
	Path   string // relative to /etc
	Detail string
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%q changed while /etc was merged: %s", "etc/"+e.Path, e.Detail)
}

// Scan reads a live directory: types, metadata, all extended attributes, and
// digests of contents by algorithm a, which must be that of the images' digests.
// It follows no link and does not leave the directory. Files that vanish
// meanwhile are absent. The directory must stay open until Build is done.
func Scan(ctx context.Context, dir *durable.Dir, a fsverity.Algorithm) (*Live, error) {
	return scanAt(ctx, dir, a, time.Now())
}

func scanAt(ctx context.Context, dir *durable.Dir, a fsverity.Algorithm, now time.Time) (*Live, error) {
	s := &scanner{fingerprinter: newFingerprinter(), algorithm: a, inodes: map[inode]*tree.Node{}}
	s.start = now
	root, err := s.directory(ctx, dir, ".", 0)
	if err != nil {
		return nil, fmt.Errorf("read live /etc: %w", err)
	}
	return &Live{Root: root, Algorithm: a, Fingerprint: s.sum(), dir: dir}, nil
}

// Fingerprint reads only what it takes to tell whether the directory changed
// since a Scan: names, inode numbers, sizes and times. Two equal fingerprints
// that are not "" mean that nothing did.
func Fingerprint(ctx context.Context, dir *durable.Dir) (string, error) {
	f := newFingerprinter()
	if err := f.walk(ctx, dir, ".", 0); err != nil {
		return "", fmt.Errorf("read live /etc: %w", err)
	}
	return f.sum(), nil
}

type fingerprinter struct {
	hash   hash.Hash
	start  time.Time
	newest unix.Timespec // latest change time met
}

func newFingerprinter() fingerprinter {
	return fingerprinter{hash: sha256.New(), start: time.Now()}
}

func (f *fingerprinter) add(at string, st unix.Stat_t) {
	if st.Ctim.Nano() > f.newest.Nano() {
		f.newest = st.Ctim
	}
	fmt.Fprintf(f.hash, "%s\x00%d %o %d %d.%d %d.%d\n", at, st.Ino, st.Mode, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
}

func (f *fingerprinter) sum() string {
	if time.Unix(f.newest.Unix()).After(f.start.Add(-settleTime)) {
		return ""
	}
	return "sha256:" + hex.EncodeToString(f.hash.Sum(nil))
}

// walk visits in the order in which the scanner does.
func (f *fingerprinter) walk(ctx context.Context, dir *durable.Dir, at string, depth int) error {
	st, err := dir.Lstat(".")
	if err != nil {
		return err
	}
	f.add(at, st)
	list, err := listDir(ctx, dir, at, depth)
	if err != nil {
		return err
	}
	for _, e := range list {
		child := path.Join(at, e.Name)
		if e.IsDir() {
			sub, err := dir.Sub(e.Name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			err = f.walk(ctx, sub, child, depth+1)
			if err := errors.Join(err, sub.Close()); err != nil {
				return err
			}
			continue
		}
		st, err := dir.Lstat(e.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		f.add(child, st)
	}
	return nil
}

// listDir lists a directory without what no merge looks at.
func listDir(ctx context.Context, dir *durable.Dir, at string, depth int) ([]durable.Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%q: more than %d directories deep", at, maxDepth)
	}
	list, err := dir.ReadDir()
	if at == "." {
		list = slices.DeleteFunc(list, func(e durable.Entry) bool { return e.Name == updatedStamp })
	}
	return list, err
}

type inode struct{ dev, ino uint64 }

type scanner struct {
	fingerprinter
	algorithm fsverity.Algorithm
	inodes    map[inode]*tree.Node // files with more than one name
}

func (s *scanner) directory(ctx context.Context, dir *durable.Dir, at string, depth int) (*tree.Node, error) {
	st, err := dir.Lstat(".")
	if err != nil {
		return nil, err
	}
	s.add(at, st)
	attrs, err := dir.Xattrs(".")
	if err != nil {
		return nil, err
	}
	n := tree.NewDir(metaOf(st, attrs))
	list, err := listDir(ctx, dir, at, depth)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		child, err := s.entry(ctx, dir, e, path.Join(at, e.Name), depth)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		n.Set(e.Name, child)
	}
	return n, nil
}

func (s *scanner) entry(ctx context.Context, dir *durable.Dir, e durable.Entry, at string, depth int) (*tree.Node, error) {
	if e.IsDir() {
		sub, err := dir.Sub(e.Name)
		if err != nil {
			return nil, err
		}
		n, err := s.directory(ctx, sub, at, depth+1)
		return n, errors.Join(err, sub.Close())
	}
	st, err := dir.Lstat(e.Name)
	if err != nil {
		return nil, err
	}
	s.add(at, st)
	kind, ok := tree.KindOfMode(st.Mode)
	if !ok || kind == tree.Directory {
		return nil, &ChangedError{at, "it was replaced by a directory"}
	}
	id := inode{st.Dev, st.Ino}
	if n := s.inodes[id]; n != nil {
		return n, nil
	}
	attrs, err := dir.Xattrs(e.Name)
	if err != nil {
		return nil, err
	}
	n := &tree.Node{Meta: metaOf(st, attrs), Kind: kind}
	switch kind {
	case tree.Regular:
		n.Digest, n.Size, err = s.contents(dir, e.Name, at)
	case tree.Symlink:
		n.Target, err = dir.Readlink(e.Name)
	case tree.CharDevice, tree.BlockDevice:
		n.Rdev = uint32(unix.Mkdev(unix.Major(st.Rdev), unix.Minor(st.Rdev))) //nolint:gosec // the kernel's numbers have 32 bits
	}
	if err != nil {
		return nil, err
	}
	if st.Nlink > 1 {
		s.inodes[id] = n
	}
	return n, nil
}

func (s *scanner) contents(dir *durable.Dir, name, at string) (fsverity.Digest, int64, error) {
	f, err := dir.Open(name)
	if errors.Is(err, unix.ELOOP) {
		return fsverity.Digest{}, 0, &ChangedError{at, "it was replaced by a symbolic link"}
	}
	if err != nil {
		return fsverity.Digest{}, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fsverity.Digest{}, 0, err
	}
	if !st.Mode().IsRegular() {
		return fsverity.Digest{}, 0, &ChangedError{at, "it is no regular file any more"}
	}
	return fsverity.SumReader(s.algorithm, f)
}

func metaOf(st unix.Stat_t, attrs map[string]string) tree.Meta {
	m := tree.Meta{
		Mode: uint16(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid, //nolint:gosec // 12 bits
		MtimeSec: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec), //nolint:gosec // below 10^9
	}
	for name, value := range attrs {
		m.Xattrs = append(m.Xattrs, tree.Xattr{Name: name, Value: value})
	}
	slices.SortFunc(m.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return m
}
