package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// StreamWriter writes a splitstream and stores it as an object. End it with
// Commit or Abort.
type StreamWriter struct {
	*splitstream.Writer
	r *Repository
}

// NewStream starts a splitstream.
func (r *Repository) NewStream(ctx context.Context, t splitstream.ContentType) (*StreamWriter, error) {
	if err := r.mayWrite(ctx); err != nil {
		return nil, err
	}
	w := splitstream.NewWriter(r.meta.Algorithm, splitstream.WriterOptions{ContentType: t, Temp: r.scratch})
	return &StreamWriter{Writer: w, r: r}, nil
}

// Commit stores the splitstream. It has no name yet; PublishStream gives it one.
func (w *StreamWriter) Commit(ctx context.Context) (fsverity.Digest, error) {
	o, err := w.r.NewObject(ctx)
	if err != nil {
		return fsverity.Digest{}, errors.Join(err, w.Abort())
	}
	if _, err := w.Finish(o); err != nil {
		return fsverity.Digest{}, errors.Join(err, o.Abort())
	}
	d, _, err := o.Commit()
	return d, err
}

// Abort drops the splitstream. After Commit it does nothing.
func (w *StreamWriter) Abort() error { return w.Close() }

// scratch makes a file without a name for what a writer cannot hold in memory.
func (r *Repository) scratch() (splitstream.Temp, error) {
	t, err := r.temp()
	if err != nil {
		return nil, err
	}
	return scratch{t, r}, nil
}

type scratch struct {
	temp *durable.Temp
	r    *Repository
}

func (s scratch) Write(p []byte) (int, error) {
	if err := s.r.take(int64(len(p))); err != nil {
		return 0, err
	}
	return s.temp.Write(p)
}

func (s scratch) ReadAt(p []byte, offset int64) (int, error) { return s.temp.ReadAt(p, offset) }

func (s scratch) Close() error { return s.temp.Discard() }

// PublishStream makes name, one path component, the splitstream d, which must be
// stored. All objects stored before are durable first. A stream of that name is
// replaced atomically.
func (r *Repository) PublishStream(ctx context.Context, name string, d fsverity.Digest) error {
	if err := checkEntryName(name); err != nil {
		return fmt.Errorf("publish stream %q: %w", name, err)
	}
	return r.publish(ctx, Streams, name, d)
}

func (r *Repository) publish(ctx context.Context, kind Kind, name string, d fsverity.Digest) error {
	if err := r.mayWrite(ctx); err != nil {
		return err
	}
	ok, err := r.HasObject(d)
	if err != nil {
		return err
	}
	if !ok {
		return &NotFoundError{Kind: "object", Name: d.Hex()}
	}
	if err := r.settle(levelObjects); err != nil {
		return err
	}
	dir, err := r.dir.MkdirAll(kind.String(), 0o755)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced through r
	if err := dir.ReplaceSymlink("../objects/"+d.ObjectPath(), name, r.dir, linkPrefix); err != nil {
		return err
	}
	r.order.touch(levelNames)
	return nil
}

// linkPrefix starts the names of temporary links. They live in the root of the
// repository, where no scan of garbage collection meets a leftover.
const linkPrefix = ".symlink-"

func checkEntryName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || name == "refs":
		return fmt.Errorf("a reserved name: %w", unix.EINVAL)
	case len(name) > 255:
		return fmt.Errorf("%d bytes: %w", len(name), unix.ENAMETOOLONG)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("more than one path component: %w", unix.EINVAL)
	}
	return nil
}

// LookupStream returns the splitstream that has this name. If there is none, or
// its object is gone, the error is a *NotFoundError.
func (r *Repository) LookupStream(name string) (fsverity.Digest, error) {
	if err := checkEntryName(name); err != nil {
		return fsverity.Digest{}, fmt.Errorf("look up stream %q: %w", name, err)
	}
	return r.lookup(Streams, name)
}

// lookup reads a first-level link and makes sure that the object exists.
func (r *Repository) lookup(kind Kind, name string) (fsverity.Digest, error) {
	target, err := r.dir.Readlink(kind.String() + "/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return fsverity.Digest{}, &NotFoundError{Kind: kind.entry(), Name: name}
	}
	if err != nil {
		return fsverity.Digest{}, err
	}
	d, err := r.parseTarget(target)
	if err != nil {
		return fsverity.Digest{}, fmt.Errorf("%s %q: %w", kind.entry(), name, err)
	}
	ok, err := r.HasObject(d)
	if err != nil {
		return fsverity.Digest{}, err
	}
	if !ok {
		return fsverity.Digest{}, fmt.Errorf("%s %q: %w", kind.entry(), name, &NotFoundError{Kind: "object", Name: d.Hex()})
	}
	return d, nil
}

// parseTarget reads the target of a first-level link: "../", anything, and an
// object path at the end.
func (r *Repository) parseTarget(target string) (fsverity.Digest, error) {
	n := 2*r.meta.Algorithm.Size() + 1
	if !strings.HasPrefix(target, "../") || len(target) < n {
		return fsverity.Digest{}, fmt.Errorf("link target %q, want \"../objects/<digest>\"", target)
	}
	d, err := fsverity.ParseObjectPath(target[len(target)-n:])
	if err != nil {
		return fsverity.Digest{}, fmt.Errorf("link target %q: %w", target, err)
	}
	return d, nil
}

// StreamReader reads a splitstream of a repository. Close it.
type StreamReader struct {
	*splitstream.Reader
	r      *Repository
	file   *os.File
	digest fsverity.Digest
}

// OpenStreamByID opens the splitstream d, which must be of type want. Its content
// is verified in both modes. Errors: *splitstream.FormatError, those of OpenObject.
func (r *Repository) OpenStreamByID(ctx context.Context, d fsverity.Digest, want splitstream.ContentType) (*StreamReader, error) {
	return r.openStream(ctx, d, func(f *os.File, size int64) (*splitstream.Reader, error) {
		return splitstream.NewReaderOf(f, size, r.meta.Algorithm, want)
	})
}

// OpenAnyStreamByID is OpenStreamByID without an expected type.
func (r *Repository) OpenAnyStreamByID(ctx context.Context, d fsverity.Digest) (*StreamReader, error) {
	return r.openStream(ctx, d, func(f *os.File, size int64) (*splitstream.Reader, error) {
		return splitstream.NewReader(f, size, r.meta.Algorithm)
	})
}

func (r *Repository) openStream(ctx context.Context, d fsverity.Digest, parse func(*os.File, int64) (*splitstream.Reader, error)) (*StreamReader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := r.openVerified(d)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s, err := parse(f, st.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("object %s: %w", d, err), f.Close())
	}
	return &StreamReader{Reader: s, r: r, file: f, digest: d}, nil
}

// Digest returns the digest the stream was opened by.
func (s *StreamReader) Digest() fsverity.Digest { return s.digest }

// Close releases the stream.
func (s *StreamReader) Close() error { return errors.Join(s.Reader.Close(), s.file.Close()) }

// WriteTo writes the whole stream, external objects included, to w. It must be
// the first to read the stream.
func (s *StreamReader) WriteTo(w io.Writer) (int64, error) {
	c := &countingWriter{w: w}
	err := s.Cat(c, func(d fsverity.Digest) (io.ReadCloser, error) { return s.r.OpenObject(d) })
	return c.n, err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// ReadSingle returns the only object of a manifest, config or blob stream, at
// most limit bytes, verified.
func (s *StreamReader) ReadSingle(ctx context.Context, limit int64) ([]byte, error) {
	d, err := s.Single()
	if err != nil {
		return nil, err
	}
	return s.r.ReadObject(ctx, d, limit)
}
