package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// InitOptions say what a new repository is. The zero value: SHA-512, EROFS
// format 1, secure.
type InitOptions struct {
	Algorithm fsverity.Algorithm
	Formats   *Formats
	// Insecure does not put fs-verity on meta.json, so that objects without
	// fs-verity are accepted.
	Insecure bool
}

func (o InitOptions) metadata() Metadata {
	a, f := o.Algorithm, Formats{Default: 1}
	if a == 0 {
		a = fsverity.SHA512
	}
	if o.Formats != nil {
		f = *o.Formats
	}
	return NewMetadata(a, f)
}

// DefaultPath returns where the repository of a user is: /sysroot/composefs for
// root, else $HOME/.var/lib/composefs.
func DefaultPath(uid int, home string) (string, error) {
	if uid == 0 {
		return "/sysroot/composefs", nil
	}
	if home == "" {
		return "", errors.New("no default repository: HOME is not set")
	}
	return filepath.Join(home, ".var/lib/composefs"), nil
}

// MakeDir makes the directory at path with mode 0700, unless it exists, and opens
// it. Its parent must exist.
func MakeDir(path string) (*durable.Dir, error) {
	path = filepath.Clean(path)
	parent, err := durable.OpenDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer parent.Close() //nolint:errcheck // synced below
	if err := parent.Mkdir(filepath.Base(path), 0o700); err == nil {
		if err := parent.Sync(); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.EINVAL) {
		return nil, err
	}
	return durable.OpenDir(path)
}

// Create makes the directory at path with mode 0700, unless it exists, and then a
// repository in it: see Init. A directory that it made is removed again if that
// fails. The parent of path must exist.
func Create(ctx context.Context, path string, opts InitOptions) (_ *durable.Dir, err error) {
	_, before := os.Lstat(path)
	dir, err := MakeDir(path)
	if err != nil {
		return nil, err
	}
	if err = Init(ctx, dir, opts); err == nil {
		return dir, nil
	}
	err = errors.Join(err, dir.Close())
	if !errors.Is(before, fs.ErrNotExist) {
		return nil, err
	}
	parent, perr := durable.OpenDir(filepath.Dir(filepath.Clean(path)))
	if perr != nil {
		return nil, errors.Join(err, perr)
	}
	defer parent.Close() //nolint:errcheck // nothing is lost with it
	rerr := parent.Remove(filepath.Base(filepath.Clean(path)))
	if errors.Is(rerr, unix.ENOTEMPTY) || errors.Is(rerr, fs.ErrNotExist) {
		rerr = nil // somebody else uses it
	}
	return nil, errors.Join(err, rerr)
}

// Init makes dir a repository, durably. If it is one already with the same
// configuration nothing happens; with another one the error is a
// *ConflictError, and an *InsecureError if fs-verity is wanted and missing.
// Where the file system has no fs-verity, Init of a secure repository fails with
// an error that is errors.ErrUnsupported and leaves nothing behind.
func Init(ctx context.Context, dir *durable.Dir, opts InitOptions) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	want := opts.metadata()
	if !want.Algorithm.Valid() {
		return fmt.Errorf("initialise repository %q: unknown algorithm %d", dir.Path(), uint8(want.Algorithm))
	}
	err := sameConfiguration(dir, want, opts.Insecure)
	if !isMissing(err) {
		return err
	}
	if err := writeMeta(dir, want, !opts.Insecure); err != nil {
		if errors.Is(err, fs.ErrExist) { // another process was faster
			return sameConfiguration(dir, want, opts.Insecure)
		}
		return fmt.Errorf("initialise repository %q: %w", dir.Path(), err)
	}
	return nil
}

func isMissing(err error) bool {
	var missing *MetadataMissingError
	return errors.As(err, &missing)
}

func sameConfiguration(dir *durable.Dir, want Metadata, insecure bool) error {
	got, verity, err := readMeta(dir)
	switch {
	case err != nil:
		return err
	case !got.Equal(want):
		return &ConflictError{Path: dir.Path(), Got: got, Want: want}
	case !insecure && verity != verityRequired:
		return &InsecureError{Path: dir.Path()}
	}
	return dir.SyncFS() // what an interrupted run has written
}

// writeMeta makes meta.json. The mark of fs-verity is durable before the name is:
// without it the repository would silently be an insecure one.
func writeMeta(dir *durable.Dir, m Metadata, secure bool) (err error) {
	data, err := m.Marshal()
	if err != nil {
		return err
	}
	t, err := dir.CreateTempPrefix(".meta-", 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Discard()) }()
	if _, err := t.Write(data); err != nil {
		return err
	}
	if secure {
		f, err := t.Seal()
		if err != nil {
			return err
		}
		if err := dir.Mutate("enable fs-verity", func() error { return fsverity.Enable(f, m.Algorithm) }); err != nil {
			return err
		}
	}
	if err := t.Sync(); err != nil {
		return err
	}
	if err := t.Link(dir, metaName); err != nil {
		return err
	}
	return dir.SyncFS()
}

// Status says what Ensure did.
type Status int

// The outcomes of Ensure.
const (
	Opened   Status = iota // it was there
	Created                // it was made
	Upgraded               // it was one from before meta.json
)

// Ensure opens the repository in dir and makes or upgrades it first if that is
// needed. The configuration of an existing one is kept, but an algorithm in opts
// that differs is an *AlgorithmError.
func Ensure(ctx context.Context, dir *durable.Dir, init InitOptions, opts Options) (*Repository, Status, error) {
	status := Opened
	_, _, err := readMeta(dir)
	var missing *MetadataMissingError
	if errors.As(err, &missing) {
		if missing.OldFormat {
			status, err = Upgraded, Upgrade(ctx, dir, init.Algorithm)
		} else {
			status, err = Created, Init(ctx, dir, init)
		}
	}
	if err != nil {
		return nil, 0, err
	}
	if opts.Algorithm == 0 {
		opts.Algorithm = init.Algorithm
	}
	r, err := Open(ctx, dir, opts)
	return r, status, err
}

// ErrNoObjects says that an old repository cannot be upgraded, because without
// any object nothing tells its algorithm.
var ErrNoObjects = errors.New("the repository has no objects")

// Upgrade gives a repository from before composefs-rs 0.7.0 a meta.json. The
// length of its object names tells the algorithm, which must be want unless that
// is 0; fs-verity on the first object tells whether it is secure. Such a
// repository has images of format 2, so this is what meta.json says
// (composefs-rs writes 1 there). An up-to-date repository is left alone.
func Upgrade(ctx context.Context, dir *durable.Dir, want fsverity.Algorithm) error {
	_, _, err := readMeta(dir)
	if !isMissing(err) {
		return err
	}
	a, secure, err := detect(ctx, dir)
	if err != nil {
		return fmt.Errorf("upgrade repository %q: %w", dir.Path(), err)
	}
	if want != 0 && want != a {
		return &AlgorithmError{Where: fmt.Sprintf("repository %q", dir.Path()), Got: a, Want: want}
	}
	return writeMeta(dir, NewMetadata(a, Formats{Default: 2}), secure)
}

// detect looks at the first object.
func detect(ctx context.Context, dir *durable.Dir) (fsverity.Algorithm, bool, error) {
	shards, err := dir.ReadSubDir("objects")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, false, err
	}
	for _, shard := range shards {
		if err := ctx.Err(); err != nil {
			return 0, false, err
		}
		if !shard.IsDir() || len(shard.Name) != 2 {
			continue
		}
		list, err := dir.ReadSubDir("objects/" + shard.Name)
		if err != nil {
			return 0, false, err
		}
		for _, e := range list {
			d, err := fsverity.ParseObjectPath(shard.Name + "/" + e.Name)
			if err != nil || !e.IsRegular() {
				continue
			}
			secure, err := measurable(dir, "objects/"+d.ObjectPath())
			return d.Algorithm(), secure, err
		}
	}
	return 0, false, ErrNoObjects
}

func measurable(dir *durable.Dir, name string) (bool, error) {
	f, err := openRegular(dir, name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = fsverity.Measure(f)
	if errors.Is(err, fsverity.ErrNotEnabled) || errors.Is(err, errors.ErrUnsupported) {
		return false, nil
	}
	return err == nil, err
}

// resetMetadata removes the streams, images and meta.json of a repository and
// keeps its objects; Init makes it one again, also with another algorithm. It
// takes the exclusive lock.
func resetMetadata(ctx context.Context, dir *durable.Dir, opts Options) error {
	own, err := dir.Sub(".")
	if err != nil {
		return err
	}
	defer own.Close() //nolint:errcheck // releases the lock; synced below
	if err := Lock(ctx, own, true, opts.LockWait); err != nil {
		return err
	}
	// Refs before what they name, so that a crash leaves no dangling one.
	for _, name := range []string{"streams/refs", "images/refs", "streams", "images", metaName} {
		if err := own.RemoveAll(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return own.SyncFS()
}

// readLimited reads all of r, which must not be longer than limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("more than %d bytes: %w", limit, unix.EFBIG)
	}
	return data, nil
}
