package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// Problem is one finding of Check.
type Problem struct {
	Kind   string // as composefs-rs names it, for example "object-digest-mismatch"
	Path   string // below the repository
	Detail string
}

func (p Problem) String() string {
	s := p.Kind + ": " + p.Path
	if p.Detail != "" {
		s += ": " + p.Detail
	}
	return s
}

// Report is the result of Check.
type Report struct {
	Objects, Streams, Images, Refs int // how many were looked at
	Problems                       []Problem
	// Unused are the damaged objects that no stream or image leads to: what a power
	// cut may leave of a pull. They are not in Problems; storing them again repairs
	// them.
	Unused []Problem
}

// OK says whether nothing was found.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

func (r *Report) add(kind, path, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{kind, path, fmt.Sprintf(format, args...)})
}

// Check walks the repository and reports what is wrong with it: objects whose
// content is not their name, streams that do not decode, and links and references
// to nothing. It changes nothing. The error is for a walk that could not be done.
func (r *Repository) Check(ctx context.Context) (*Report, error) {
	c := &checker{r: r, rep: &Report{}, bad: make(map[fsverity.Digest]Problem)}
	for _, step := range []func(context.Context) error{c.objects, c.streams, c.images} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	for _, kind := range []Kind{Streams, Images} {
		if err := c.refs(ctx, kind); err != nil {
			return nil, err
		}
	}
	c.rep.Unused = slices.SortedFunc(maps.Values(c.bad), func(a, b Problem) int { return strings.Compare(a.Path, b.Path) })
	return c.rep, nil
}

type checker struct {
	r   *Repository
	rep *Report
	bad map[fsverity.Digest]Problem // damaged, not used by anything so far
}

func (c *checker) objects(ctx context.Context) error {
	objects, err := c.r.objectsDir(false)
	if objects == nil {
		return err
	}
	shards, err := objects.ReadDir()
	if err != nil {
		return err
	}
	for _, shard := range shards {
		if !shard.IsDir() {
			continue
		}
		list, err := objects.ReadSubDir(shard.Name)
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := ctx.Err(); err != nil {
				return err
			}
			c.object(shard.Name + "/" + e.Name)
		}
	}
	return nil
}

func (c *checker) object(name string) {
	c.rep.Objects++
	where := "objects/" + name
	d, err := fsverity.ParseObjectPath(name)
	if err != nil || d.Algorithm() != c.r.Algorithm() || d.ObjectPath() != name {
		c.rep.add("object-invalid-name", where, "")
		return
	}
	f, err := c.r.openVerified(d)
	if err == nil {
		err = f.Close()
	}
	var mismatch *fsverity.MismatchError
	switch {
	case err == nil:
	case errors.As(err, &mismatch) && mismatch.Got.IsZero():
		c.bad[d] = Problem{"object-verity-missing", where, ""}
	case errors.As(err, &mismatch):
		c.bad[d] = Problem{"object-digest-mismatch", where, "got " + mismatch.Got.String()}
	default:
		c.bad[d] = Problem{"object-open-failed", where, err.Error()}
	}
}

// uses notes that the object d is needed by what is at path.
func (c *checker) uses(d fsverity.Digest, path, kind string) {
	if p, ok := c.bad[d]; ok {
		c.rep.Problems = append(c.rep.Problems, p)
		delete(c.bad, d)
	}
	switch ok, err := c.r.HasObject(d); {
	case err != nil:
		c.rep.add("object-check-failed", path, "%v", err)
	case !ok:
		c.rep.add(kind, path, "%s", d)
	}
}

// entries calls look for each first-level link with a target that exists.
func (c *checker) entries(ctx context.Context, kind Kind, look func(name string, d fsverity.Digest)) (int, error) {
	list, err := c.r.dir.ReadSubDir(kind.String())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		where := path.Join(kind.String(), e.Name)
		switch {
		case e.Name == "refs" && e.IsDir():
			continue
		case !e.IsSymlink():
			c.rep.add("entry-not-symlink", where, "")
			continue
		}
		n++
		target, err := c.r.dir.Readlink(where)
		if err != nil {
			return n, err
		}
		d, err := c.r.parseTarget(target)
		if err != nil || target != "../objects/"+d.ObjectPath() {
			c.rep.add("broken-symlink", where, "target %q", target)
			continue
		}
		if ok, err := c.r.HasObject(d); err != nil || !ok {
			c.rep.add("broken-symlink", where, "target %q", target)
			continue
		}
		c.uses(d, where, "missing-object")
		look(e.Name, d)
	}
	return n, nil
}

func (c *checker) streams(ctx context.Context) (err error) {
	c.rep.Streams, err = c.entries(ctx, Streams, func(name string, d fsverity.Digest) {
		where := "streams/" + name
		s, err := c.r.OpenAnyStreamByID(ctx, d)
		if err != nil {
			c.rep.add("stream-open-failed", where, "%v", err)
			return
		}
		defer s.Close() //nolint:errcheck // read only
		for i := range s.Objects() {
			c.uses(s.Object(i), where, "missing-object-ref")
		}
		for _, ref := range s.NamedRefs() {
			c.uses(ref.Digest, where, "missing-named-ref")
		}
		if err := readAll(s.Reader, c.size); err != nil {
			c.rep.add("stream-read-failed", where, "%v", err)
		}
	})
	return err
}

func (c *checker) size(d fsverity.Digest) (int64, error) {
	f, err := c.r.OpenObject(d)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// readAll decompresses a stream and adds up its length.
func readAll(s *splitstream.Reader, size func(fsverity.Digest) (int64, error)) error {
	var total int64
	for total <= s.Size() { // a stream can name a large object millions of times
		chunk, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		n := chunk.Size
		if !chunk.Object.IsZero() {
			if n, err = size(chunk.Object); err != nil {
				return err
			}
		}
		total += n
	}
	if total != s.Size() {
		return fmt.Errorf("the stream has %d bytes, want %d", total, s.Size())
	}
	return nil
}

func (c *checker) images(ctx context.Context) (err error) {
	c.rep.Images, err = c.entries(ctx, Images, func(name string, d fsverity.Digest) {
		where := "images/" + name
		if name != d.Hex() {
			c.rep.add("image-invalid", where, "the link leads to %s", d)
			return
		}
		f, err := c.r.OpenImage(ctx, d)
		if err != nil {
			c.rep.add("image-open-failed", where, "%v", err)
			return
		}
		defer f.Close()
		c.image(where, f)
	})
	return err
}

// image checks the objects that an image needs.
func (c *checker) image(where string, f *os.File) {
	st, err := f.Stat()
	if err != nil {
		c.rep.add("image-read-failed", where, "%v", err)
		return
	}
	digests, err := imageObjects(f, st.Size())
	if err != nil {
		c.rep.add("image-invalid", where, "%v", err)
		return
	}
	for _, d := range digests {
		c.uses(d, where, "image-missing-object")
	}
}

// refs checks that every ref leads to a first-level entry, by the shortest path.
func (c *checker) refs(ctx context.Context, kind Kind) error {
	for ref, err := range c.r.Refs(kind, "") {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.rep.Refs++
		where := path.Join(kind.String(), "refs", ref.Name)
		if err != nil {
			c.rep.add("unexpected-file-type", where, "%v", err)
			continue
		}
		target, err := c.r.dir.Readlink(where)
		want := strings.Repeat("../", strings.Count(ref.Name, "/")+1) + ref.Target
		if err != nil || target != want {
			c.rep.add("broken-symlink", where, "target %q, want %q", target, want)
			continue
		}
		if ok, err := c.r.dir.Exists(path.Join(kind.String(), ref.Target)); err != nil || !ok {
			c.rep.add("broken-symlink", where, "target %q", target)
		}
	}
	return nil
}
