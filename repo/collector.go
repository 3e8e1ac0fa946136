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

// collector removes what nothing leads to: Collect, the end of failed runs and
// Reclaim.
type collector struct {
	r *Repository
	o CollectOptions
	// giveUp, if it is set, makes every name a root, not only what refs lead to: all
	// but streams for which it is true and to which no ref leads. What is damaged is
	// read as far as it can be, instead of being in the way.
	giveUp func(stream string) bool
	// only, if it is set, are the objects that may go, and names that are given up
	// were made with them.
	only map[objectKey]struct{}

	m        marker
	images   []string // of CollectOptions.Images
	names    []string // first-level names that go, with their directories
	dangling []Ref    // refs that go; Name is below the repository
	problems []RootProblem
	out      Collected
}

// exclusively runs it with the exclusive lock. waiting may be nil.
func (c *collector) exclusively(ctx context.Context, wait time.Duration, waiting func(*LockedError)) error {
	return c.r.exclusively(ctx, wait, waiting, func() error {
		// The names on the medium are to be those that are read here.
		if err := c.r.settle(levelRefs); err != nil {
			return err
		}
		return c.run(ctx)
	})
}

func (c *collector) run(ctx context.Context) error {
	c.m = marker{r: c.r, live: map[objectKey]struct{}{}, walked: map[fsverity.Digest]struct{}{}, lenient: c.giveUp != nil}
	if c.o.Images != nil {
		var err error
		if c.images, err = c.o.Images(); err != nil {
			return err
		}
	}
	mark := c.markRefs
	if c.giveUp != nil {
		mark = c.markNames
	}
	if err := mark(ctx); err != nil {
		return fmt.Errorf("find out what is in use: %w", err)
	}
	if len(c.problems) > 0 {
		return &RootsError{Path: c.r.dir.Path(), Problems: c.problems}
	}
	if err := c.doomedNames(); err != nil {
		return err
	}
	if err := c.removeNames(); err != nil {
		return err
	}
	if c.m.unknown && c.only == nil { // it may need any of them
		return nil
	}
	s := sweep{r: c.r, doomed: c.doomed, remove: !c.o.DryRun}
	err := s.run(ctx)
	c.out.Objects, c.out.KeptObjects, c.out.Bytes = s.objects, s.kept, s.bytes
	if err != nil || c.giveUp != nil {
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

// doomed tells whether an object goes.
func (c *collector) doomed(k objectKey) bool {
	if _, live := c.m.live[k]; live {
		return false
	}
	_, may := c.only[k]
	return may || c.only == nil
}

// removed is the result of taking back.
func (c *collector) removed() Removed {
	r := Removed{Objects: c.out.Objects, Bytes: c.out.Bytes, Damaged: c.m.damaged}
	for _, name := range c.names {
		r.Streams = append(r.Streams, path.Base(name))
	}
	slices.Sort(r.Streams)
	return r
}

// markNames walks every name that is not given up.
func (c *collector) markNames(ctx context.Context) error {
	held := map[string]bool{}
	for ref, err := range c.r.Refs(Streams, "") {
		if err != nil && !errors.Is(err, ErrNoRef) {
			return err
		}
		held[ref.Target] = true
	}
	var given []string
	for _, kind := range []Kind{Streams, Images} {
		list, err := c.links(kind)
		if err != nil {
			return err
		}
		for _, name := range list {
			entry := kind.String() + "/" + name
			if kind == Streams && !held[name] && c.giveUp(name) {
				given = append(given, entry)
				continue
			}
			if err := c.m.name(ctx, entry); err != nil {
				return err
			}
		}
	}
	if c.only != nil || len(c.m.damaged) == 0 {
		return nil
	}
	for _, entry := range given { // what is damaged may need one of them by its name
		if err := c.m.name(ctx, entry); err != nil {
			return err
		}
	}
	return nil
}

// links lists the links in the directory of a kind.
func (c *collector) links(kind Kind) ([]string, error) {
	list, err := c.r.dir.ReadSubDir(kind.String())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range list {
		if e.IsSymlink() {
			names = append(names, e.Name)
		}
	}
	return names, nil
}

// markRefs walks everything that refs and options lead to.
func (c *collector) markRefs(ctx context.Context) error {
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
	for _, id := range c.images {
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

// doomedNames lists the first-level names whose object is not in use. What is no
// link into objects/ is not ours to judge.
func (c *collector) doomedNames() error {
	for _, kind := range []Kind{Streams, Images} {
		list, err := c.links(kind)
		if err != nil {
			return err
		}
		kept, removed := &c.out.KeptImages, &c.out.Images
		if kind == Streams {
			kept, removed = &c.out.KeptStreams, &c.out.Streams
		}
		for _, name := range list {
			name = kind.String() + "/" + name
			target, err := c.r.dir.Readlink(name)
			if err != nil {
				return err
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
			c.names = append(c.names, name)
		}
	}
	return nil
}

// removeNames removes dangling refs and doomed names, durably before any object
// goes: a name never outlives its objects (repository.md 4.4).
func (c *collector) removeNames() error {
	c.out.Dangling = c.dangling
	if c.o.DryRun || len(c.names)+len(c.dangling) == 0 {
		return nil
	}
	c.r.order.touch(levelRefs) // an error below leaves it for the next sync
	remove := func(name string) error {
		err := c.r.dir.Remove(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, ref := range c.dangling {
		if err := remove(ref.Name); err != nil {
			return err
		}
	}
	for i, name := range c.names {
		if err := remove(name); err != nil {
			c.names = c.names[:i]
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
