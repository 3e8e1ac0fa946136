package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// CollectOptions are those of Collect. The zero value removes everything that no
// ref leads to.
type CollectOptions struct {
	// DryRun only counts. It takes no lock but the shared one of the handle.
	DryRun bool
	// Images are digests, in hex, of listed images that are in use without a ref. One
	// that is not there is a problem.
	Images []string
	// Without are refs, or directories of refs with a slash at the end, that count
	// as gone in a dry run: "streams/refs/oci/os", "images/refs/cfsboot/<id>/".
	Without []string
	// DropDangling removes refs that lead to nothing; without it they are a problem.
	DropDangling bool
	// LockWait is how long to wait for others to close the repository.
	LockWait time.Duration
}

// Collected is what Collect has removed, or would.
type Collected struct {
	Objects     int
	Bytes       int64 // that objects and temporaries took on the medium
	Images      int   // first-level names
	Streams     int   // first-level names
	Dangling    []Ref // refs to nothing that were dropped; Name begins with the kind's directory and "refs/"
	Temporaries int   // files and links of killed programs
	KeptObjects int
	KeptImages  int // first-level names
	KeptStreams int
}

// Collect removes what no ref leads to: names of streams and images, objects, and
// temporaries of killed programs that are older than a day (repository.md 4).
//
// An image is in use by a ref, by Options.Images, or by a stream that names it; a
// stream by a ref or by a stream that names it. Names are followed by digest.
// Unless everything that is in use can be followed to its end, nothing is removed
// and the error is a *RootsError with all that is in the way. What is not of a
// repository, files with other names for example, is left alone.
//
// It takes the exclusive lock: *LockedError while another handle is open. No run
// of this handle may be open. A crash at any moment leaves names with all of their
// objects, and a second call does the rest. On success it is durable.
func (r *Repository) Collect(ctx context.Context, o CollectOptions) (*Collected, error) {
	if o.DryRun {
		c := &collector{r: r, o: o, out: &Collected{}}
		return c.out, c.run(ctx)
	}
	if err := r.mayWrite(ctx); err != nil {
		return nil, err
	}
	if err := r.Writable(); err != nil {
		return nil, err
	}
	if len(o.Without) > 0 {
		return nil, errors.New("refs can be left out in a dry run only")
	}
	r.runs.mu.Lock()
	defer r.runs.mu.Unlock()
	if r.runs.active > 0 {
		return nil, errors.New("objects are being stored through this handle")
	}
	c := &collector{r: r, o: o, out: &Collected{}}
	err := r.exclusively(ctx, o.LockWait, func(*LockedError) {}, func() error {
		// The names on the medium are to be those that are read here.
		if err := r.settle(levelRefs); err != nil {
			return err
		}
		return c.run(ctx)
	})
	return c.out, err
}

// collector is one garbage collection.
type collector struct {
	r        *Repository
	o        CollectOptions
	m        marker
	out      *Collected
	dangling []Ref // Name is below the repository
	problems []RootProblem
}

func (c *collector) run(ctx context.Context) error {
	c.m = marker{r: c.r, live: map[objectKey]struct{}{}, walked: map[fsverity.Digest]struct{}{}}
	if err := c.mark(ctx); err != nil {
		return fmt.Errorf("find out what is in use: %w", err)
	}
	if len(c.problems) > 0 {
		return &RootsError{Path: c.r.dir.Path(), Problems: c.problems}
	}
	names, err := c.doomedNames()
	if err != nil {
		return err
	}
	if err := c.removeNames(names); err != nil {
		return err
	}
	s := sweep{
		r:      c.r,
		shard:  func(byte) bool { return true },
		doomed: func(k objectKey) bool { _, live := c.m.live[k]; return !live },
		remove: !c.o.DryRun,
	}
	err = s.run(ctx)
	c.out.Objects, c.out.KeptObjects = s.objects, s.kept
	c.out.Bytes += s.bytes
	if err != nil {
		return err
	}
	if err := c.temporaries(); err != nil {
		return err
	}
	if c.o.DryRun {
		return nil
	}
	return c.r.dir.SyncFS()
}

// mark walks everything that refs and options lead to.
func (c *collector) mark(ctx context.Context) error {
	done := map[string]bool{}
	root := func(kind Kind, target, name string) error {
		entry := kind.String() + "/" + target
		if done[entry] {
			return nil
		}
		done[entry] = true
		err := c.root(ctx, entry)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errDangling):
			done[entry] = false // each ref to it is told
			if name != "" && c.o.DropDangling {
				c.dangling = append(c.dangling, Ref{name, target})
			} else {
				c.problems = append(c.problems, RootProblem{nameOr(name, entry), err, name != ""})
			}
		case err != nil:
			c.problems = append(c.problems, RootProblem{nameOr(name, entry), err, false})
		}
		return nil
	}
	for _, kind := range []Kind{Streams, Images} {
		for ref, err := range c.r.Refs(kind, "") {
			name := path.Join(kind.String(), "refs", ref.Name)
			switch {
			case errors.Is(err, ErrNoRef), err == nil && c.without(name):
				continue
			case err != nil:
				c.problems = append(c.problems, RootProblem{name, err, false})
				continue
			}
			if err := root(kind, ref.Target, name); err != nil {
				return err
			}
		}
	}
	for _, id := range c.o.Images {
		if err := root(Images, id, ""); err != nil {
			return err
		}
	}
	return nil
}

func nameOr(name, entry string) string {
	if name == "" {
		return entry
	}
	return name
}

// without tells whether a ref counts as gone.
func (c *collector) without(name string) bool {
	return slices.ContainsFunc(c.o.Without, func(w string) bool {
		return name == w || strings.HasSuffix(w, "/") && strings.HasPrefix(name, w)
	})
}

// errDangling says that a root leads to nothing.
var errDangling = errors.New("leads to nothing")

// root walks a first-level entry.
func (c *collector) root(ctx context.Context, entry string) error {
	if err := checkEntryName(path.Base(entry)); err != nil {
		return fmt.Errorf("%w: %w", errDangling, err)
	}
	d, err := c.m.target(entry)
	if err != nil {
		return err
	}
	if d.IsZero() {
		return fmt.Errorf("%w: there is no %s", errDangling, entry)
	}
	if err := c.r.checkDigest(d); err != nil {
		return err
	}
	ok, err := c.r.hasFile(d)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: there is no object %s", errDangling, d)
	}
	return c.m.name(ctx, entry)
}

// doomedNames lists the first-level names, with their directories, whose object
// is not in use. What is no link into objects/ is not ours to judge.
func (c *collector) doomedNames() ([]string, error) {
	var doomed []string
	for _, kind := range []Kind{Streams, Images} {
		list, err := c.r.dir.ReadSubDir(kind.String())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		kept, removed := &c.out.KeptImages, &c.out.Images
		if kind == Streams {
			kept, removed = &c.out.KeptStreams, &c.out.Streams
		}
		for _, e := range list {
			if !e.IsSymlink() {
				continue
			}
			name := kind.String() + "/" + e.Name
			target, err := c.r.dir.Readlink(name)
			if err != nil {
				return nil, err
			}
			d, err := c.r.parseTarget(target)
			if err != nil || d.Algorithm() != c.r.meta.Algorithm {
				continue
			}
			if _, live := c.m.live[knownKey(d)]; live {
				*kept++
				continue
			}
			*removed++
			doomed = append(doomed, name)
		}
	}
	return doomed, nil
}

// removeNames removes dangling refs and doomed names, durably before any object
// goes: a name never outlives its objects (repository.md 4.4).
func (c *collector) removeNames(names []string) error {
	c.out.Dangling = c.dangling
	if c.o.DryRun || len(names)+len(c.dangling) == 0 {
		return nil
	}
	for _, ref := range c.dangling {
		names = append([]string{ref.Name}, names...)
	}
	c.r.order.touch(levelRefs) // an error below leaves it for the next sync
	for _, name := range names {
		if err := c.r.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return c.r.settle(levelRefs)
}

// temporaryAge is how old a temporary has to be. With the exclusive lock there
// should be none in use; this is for programs that do not lock.
const temporaryAge = 24 * time.Hour

// temporaries removes what killed programs have left.
func (c *collector) temporaries() error {
	if err := c.temporariesIn(c.r.dir, linkPrefix, durable.Entry.IsSymlink); err != nil {
		return err
	}
	objects, err := c.r.objectsDir(false)
	if err != nil || objects == nil {
		return err
	}
	return c.temporariesIn(objects, tempPrefix, durable.Entry.IsRegular)
}

func (c *collector) temporariesIn(dir *durable.Dir, prefix string, wanted func(durable.Entry) bool) error {
	list, err := dir.ReadDir()
	if err != nil {
		return err
	}
	for _, e := range list {
		if !strings.HasPrefix(e.Name, prefix) || !wanted(e) {
			continue
		}
		if err := c.temporary(dir, e.Name); err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) temporary(dir *durable.Dir, name string) error {
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if time.Since(time.Unix(st.Mtim.Unix())) < temporaryAge {
		return nil
	}
	if !c.o.DryRun {
		if err := dir.Remove(name); err != nil {
			return err
		}
	}
	c.out.Temporaries++
	c.out.Bytes += st.Blocks * blockUnit
	return nil
}
