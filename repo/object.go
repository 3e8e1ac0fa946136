package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// tempPrefix is the name of temporaries in objects/ where there is no O_TMPFILE;
// garbage collection ignores it.
const tempPrefix = ".tmp-object-"

// Method says how an object came into the repository.
type Method int

// The methods.
const (
	Copied         Method = iota // written
	Reflinked                    // shares the blocks of the source file
	AlreadyPresent               // was there and right
)

// Stats counts what a handle has stored.
type Stats struct {
	ObjectsCopied, BytesCopied       int64
	ObjectsReflinked, BytesReflinked int64
	ObjectsPresent                   int64
	ObjectsRepaired                  int64 // of the above: replaced a damaged object
}

type stats struct {
	count, size [3]atomic.Int64
	repaired    atomic.Int64
}

func (s *stats) add(m Method, size int64) {
	s.count[m].Add(1)
	s.size[m].Add(size)
}

// Stats returns the counters of this handle.
func (r *Repository) Stats() Stats {
	s := &r.stats
	return Stats{
		ObjectsCopied: s.count[Copied].Load(), BytesCopied: s.size[Copied].Load(),
		ObjectsReflinked: s.count[Reflinked].Load(), BytesReflinked: s.size[Reflinked].Load(),
		ObjectsPresent: s.count[AlreadyPresent].Load(), ObjectsRepaired: s.repaired.Load(),
	}
}

// objectName returns the shard and the file name of an object.
func objectName(d fsverity.Digest) (b0 byte, rest string) {
	return d.Raw()[0], d.ObjectPath()[3:]
}

func (r *Repository) checkDigest(d fsverity.Digest) error {
	if d.Algorithm() != r.meta.Algorithm {
		return &AlgorithmError{Where: "digest " + d.String(), Got: d.Algorithm(), Want: r.meta.Algorithm}
	}
	return nil
}

// HasObject says whether there is a file for d, without looking into it.
func (r *Repository) HasObject(d fsverity.Digest) (bool, error) {
	if err := r.checkDigest(d); err != nil {
		return false, err
	}
	if r.known.has(d) {
		return true, nil
	}
	return r.hasFile(d)
}

// hasFile is HasObject for a digest of the right algorithm, and looks in any case.
func (r *Repository) hasFile(d fsverity.Digest) (bool, error) {
	b0, rest := objectName(d)
	shard, err := r.shard(b0, false)
	if shard == nil {
		return false, err
	}
	st, err := shard.Lstat(rest)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG, err
}

// OpenObject opens the object d for reading. In a secure repository the kernel
// enforces the digest from then on. In an insecure one a digest that the kernel
// knows must be right too, but a file without fs-verity is not looked into; use
// ReadObject, or hash what is read, where that matters.
//
// Errors: *NotFoundError; *fsverity.MismatchError, with no digest in Got if
// fs-verity is missing in a secure repository; *AlgorithmError.
func (r *Repository) OpenObject(d fsverity.Digest) (*os.File, error) {
	f, _, err := r.openObject(d)
	return f, err
}

// openObject also says whether the kernel vouches for the content.
func (r *Repository) openObject(d fsverity.Digest) (*os.File, bool, error) {
	if err := r.checkDigest(d); err != nil {
		return nil, false, err
	}
	b0, rest := objectName(d)
	shard, err := r.shard(b0, false)
	if err != nil {
		return nil, false, err
	}
	missing := &NotFoundError{Kind: "object", Name: d.Hex()}
	if shard == nil {
		return nil, false, missing
	}
	f, err := openRegular(shard, rest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, missing
	}
	if err != nil {
		return nil, false, err
	}
	enforced, err := r.measure(f, d)
	if err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	return f, enforced, nil
}

// openRegular opens a file for reading: whoever can write the directory could put
// a pipe or a device there, which never ends.
func openRegular(dir *durable.Dir, name string) (*os.File, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%q: got a file of type %v, want a regular file", f.Name(), st.Mode().Type())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// measure applies the table of repository.md 1.7.
func (r *Repository) measure(f *os.File, want fsverity.Digest) (enforced bool, err error) {
	if r.verity == verityNone {
		return false, nil
	}
	got, err := fsverity.Measure(f)
	switch {
	case err == nil && got.Algorithm() != want.Algorithm():
		return false, &AlgorithmError{Where: f.Name(), Got: got.Algorithm(), Want: want.Algorithm()}
	case err == nil && got == want:
		return true, nil
	case err == nil:
		return false, &fsverity.MismatchError{Where: f.Name(), Got: got, Want: want}
	case !errors.Is(err, fsverity.ErrNotEnabled) && !errors.Is(err, errors.ErrUnsupported):
		return false, err
	case r.verity == verityRequired:
		return false, fmt.Errorf("%w (%w)", &fsverity.MismatchError{Where: f.Name(), Want: want}, err)
	}
	return false, nil
}

// openVerified opens an object whose content is right: enforced by the kernel, or
// hashed here.
func (r *Repository) openVerified(d fsverity.Digest) (*os.File, error) {
	f, enforced, err := r.openObject(d)
	if err != nil || enforced {
		return f, err
	}
	if err := hashFile(f, d); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// hashFile compares the content with want and rewinds.
func hashFile(f *os.File, want fsverity.Digest) error {
	got, _, err := fsverity.SumReader(want.Algorithm(), f)
	if err != nil {
		return err
	}
	if got != want {
		return &fsverity.MismatchError{Where: f.Name(), Got: got, Want: want}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// ReadObject returns the content of the object d, which must not be longer than
// limit bytes. It is verified in both modes.
func (r *Repository) ReadObject(ctx context.Context, d fsverity.Digest, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, enforced, err := r.openObject(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readLimited(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read object %s: %w", d, err)
	}
	if enforced {
		return data, nil
	}
	if got := fsverity.Sum(d.Algorithm(), data); got != d {
		return nil, &fsverity.MismatchError{Where: f.Name(), Got: got, Want: d}
	}
	return data, nil
}

// PutObject stores data and returns its name.
func (r *Repository) PutObject(ctx context.Context, data []byte) (fsverity.Digest, error) {
	if err := r.mayWrite(ctx); err != nil {
		return fsverity.Digest{}, err
	}
	d := fsverity.Sum(r.meta.Algorithm, data)
	_, err := r.putBytes(d, data)
	return d, err
}

func (r *Repository) mayWrite(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.unlocked.Load() {
		return &LockedError{Path: r.dir.Path(), PID: lockHolder(r.dir)}
	}
	return r.readOnly
}

// putBytes stores data, whose digest is d.
func (r *Repository) putBytes(d fsverity.Digest, data []byte) (_ Method, err error) {
	if r.known.has(d) {
		r.stats.add(AlreadyPresent, int64(len(data)))
		return AlreadyPresent, nil
	}
	b0, rest := objectName(d)
	shard, err := r.shard(b0, true)
	if err != nil {
		return 0, err
	}
	// A look first: storing costs ten times as much, and a damaged object is found.
	replace := false
	if _, err := shard.Lstat(rest); err == nil {
		good, err := r.existing(shard, rest, d, int64(len(data)))
		if err != nil || good {
			return r.stored(d, AlreadyPresent, int64(len(data)), err)
		}
		replace = true
	}
	if err := r.take(int64(len(data))); err != nil {
		return 0, err
	}
	t, err := r.temp()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.Discard()) }()
	if _, err := t.Write(data); err != nil {
		return 0, err
	}
	return r.place(t, d, int64(len(data)), Copied, replace)
}

func (r *Repository) temp() (*durable.Temp, error) {
	objects, err := r.objectsDir(true)
	if err != nil {
		return nil, err
	}
	return objects.CreateTempPrefix(tempPrefix, 0o644)
}

// place enables fs-verity on a written temporary, where that is possible, and
// gives it the name d, the digest of its content. The temporary is finished.
func (r *Repository) place(t *durable.Temp, d fsverity.Digest, size int64, m Method, replace bool) (Method, error) {
	if r.verity != verityNone {
		var got fsverity.Digest
		var err error
		t, got, err = r.enable(t, size)
		if err == nil && !got.IsZero() && got != d {
			err = &fsverity.MismatchError{Where: "new object", Got: got, Want: d}
		}
		if err != nil {
			return 0, errors.Join(err, t.Discard())
		}
	}
	return r.link(t, d, size, m, replace)
}

// link gives a finished temporary the name d. An object that is there already is
// checked and, if it is damaged, replaced. The temporary is finished.
func (r *Repository) link(t *durable.Temp, d fsverity.Digest, size int64, m Method, replace bool) (_ Method, err error) {
	defer func() { err = errors.Join(err, t.Discard()) }()
	b0, rest := objectName(d)
	shard, err := r.shard(b0, true)
	if err != nil {
		return 0, err
	}
	if !replace {
		err := t.Link(shard, rest)
		if !errors.Is(err, fs.ErrExist) {
			return r.stored(d, m, size, err)
		}
		good, err := r.existing(shard, rest, d, size)
		if err != nil || good {
			return r.stored(d, AlreadyPresent, size, err)
		}
	}
	if err := t.Replace(shard, rest); err != nil {
		return 0, err
	}
	r.log.Warn("replaced a damaged object", "digest", d.String())
	r.stats.repaired.Add(1)
	r.order.touch(levelObjects)
	r.known.add(d, false) // it was there before: nobody's to take back
	r.stats.add(m, size)
	return m, nil
}

func (r *Repository) stored(d fsverity.Digest, m Method, size int64, err error) (Method, error) {
	if err != nil {
		return 0, err
	}
	r.order.touch(levelObjects) // first: who finds it known relies on a sync before its name
	r.known.add(d, m != AlreadyPresent)
	r.stats.add(m, size)
	return m, nil
}

// enable enables fs-verity on t. While another process, forked at the wrong
// moment, keeps a copy of the writer, that is impossible; after a second of
// trying the content, size bytes, is copied to a new file, a few times
// (go-ecosystem.md 6.1).
// The digest is none where an insecure repository has to do without.
func (r *Repository) enable(t *durable.Temp, size int64) (*durable.Temp, fsverity.Digest, error) {
	for try := 0; ; try++ {
		f, err := t.Seal()
		if err != nil {
			return t, fsverity.Digest{}, err
		}
		err = r.dir.Mutate("enable fs-verity", func() error { return fsverity.Enable(f, r.meta.Algorithm) })
		switch {
		case err == nil:
			d, err := fsverity.Measure(f)
			return t, d, err
		case errors.Is(err, errors.ErrUnsupported) && r.verity == verityPossible:
			return t, fsverity.Digest{}, nil
		case !errors.Is(err, unix.ETXTBSY) || try == 3:
			return t, fsverity.Digest{}, err
		}
		c, err := r.temp()
		if err != nil {
			return t, fsverity.Digest{}, err
		}
		_, err = c.ReadFrom(io.NewSectionReader(t, 0, size))
		if err = errors.Join(err, t.Discard()); err != nil {
			return c, fsverity.Digest{}, errors.Join(err, c.Discard())
		}
		t = c
	}
}

// existing says whether the file that has the name of d is that object. Size is
// that of the right content. fs-verity is enabled where it was forgotten.
func (r *Repository) existing(shard *durable.Dir, rest string, d fsverity.Digest, size int64) (bool, error) {
	f, err := openRegular(shard, rest)
	if errors.Is(err, unix.ELOOP) {
		return false, nil // a symbolic link is no object
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	if st.Size() != size {
		return false, nil
	}
	enforced, err := r.measure(f, d)
	var mismatch *fsverity.MismatchError
	var algorithm *AlgorithmError
	switch {
	case errors.As(err, &mismatch) || errors.As(err, &algorithm):
		return false, nil
	case err != nil || enforced:
		return enforced, err
	}
	if err := hashFile(f, d); err != nil {
		return false, nil // wrong content, or a medium that cannot read it
	}
	if r.verity == verityPossible {
		err := r.dir.Mutate("enable fs-verity", func() error { return fsverity.Enable(f, r.meta.Algorithm) })
		if err != nil {
			r.log.Debug("fs-verity of an existing object", "digest", d.String(), "error", err)
		}
	}
	return true, nil
}

// putFile stores the content of f from its start: by sharing blocks (FICLONE)
// where both files are on one file system that can, else by copying. The source
// stays as it is.
func (r *Repository) putFile(ctx context.Context, f *os.File) (d fsverity.Digest, m Method, err error) {
	if err := r.mayWrite(ctx); err != nil {
		return d, 0, err
	}
	d, m, err = r.reflink(f)
	if !errors.Is(err, errNoReflink) {
		return d, m, err
	}
	w, err := r.NewObject(ctx)
	if err != nil {
		return d, 0, err
	}
	defer w.Abort() //nolint:errcheck // nothing is left after Commit
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return d, 0, err
	}
	if _, err := w.ReadFrom(f); err != nil {
		return d, 0, err
	}
	d, _, err = w.Commit()
	return d, w.Method(), err
}

var errNoReflink = errors.New("blocks cannot be shared")

func (r *Repository) reflink(f *os.File) (d fsverity.Digest, m Method, err error) {
	st, err := f.Stat()
	if err != nil {
		return d, 0, err
	}
	t, err := r.temp()
	if err != nil {
		return d, 0, err
	}
	defer func() { err = errors.Join(err, t.Discard()) }()
	err = r.dir.Mutate("reflink", func() error {
		return unix.IoctlFileClone(t.Fd(), int(f.Fd()))
	})
	for _, no := range []error{unix.EOPNOTSUPP, unix.EXDEV, unix.ENOTTY, unix.EINVAL} {
		if errors.Is(err, no) {
			return d, 0, errNoReflink
		}
	}
	if err != nil {
		return d, 0, fmt.Errorf("reflink %q: %w", f.Name(), err)
	}
	d, n, err := fsverity.SumReader(r.meta.Algorithm, io.NewSectionReader(t, 0, 1<<62))
	if err != nil {
		return d, 0, err
	}
	if n != st.Size() {
		return d, 0, fmt.Errorf("reflink %q: got %d bytes, want %d", f.Name(), n, st.Size())
	}
	if r.known.has(d) {
		r.stats.add(AlreadyPresent, n)
		return d, AlreadyPresent, nil
	}
	m, err = r.place(t, d, n, Reflinked, false)
	return d, m, err
}
